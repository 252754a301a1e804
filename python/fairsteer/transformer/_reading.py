"""The one reader of rows and groups."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fairsteer._utils.types import Codes, Floats
from fairsteer.groups import GroupEncoder


class Batch(NamedTuple):
    """Rows that take part in a fit: none has a missing group or weight zero."""

    rows: Floats
    y_codes: Codes
    group_codes: Codes
    sample_weight: npt.NDArray[np.float64] | None
    classes: npt.NDArray[Any]
    groups: npt.NDArray[Any]
    encoder: GroupEncoder | None
    class_blind: bool


def check_as_before(what: str, now: bool, before: bool) -> None:
    if now != before:
        words = {True: "with", False: "without"}
        msg = f"This batch comes {words[now]} {what}, the batches before it came {words[before]}."
        raise ValueError(msg)
