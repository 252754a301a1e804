"""What ``--json`` prints: one object, made of what the command knows, for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["json_text"]


def json_text(values: Mapping[str, Any]) -> str:
    """Write values as one JSON object; numbers that are not finite become null, intersections of groups lists.

    Parameters
    ----------
    values : mapping of str to object
        Numbers, texts, labels, arrays, named tuples (by the names of their fields), and mappings and sequences of them.

    Returns
    -------
    str
        The object, two spaces a level, in ASCII.
    """
    return json.dumps(_plain(values), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {_key(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _key(key: Any) -> str:
    return key if isinstance(key, str) else str(_plain(key))
