"""What the options of several commands may be."""

from __future__ import annotations

from enum import Enum
from typing import Any

from ._errors import UsageError

Columns = list[str]


class Intervention(str, Enum):
    """Which groups move."""

    all_subgroups = "all_subgroups"
    affirmative = "affirmative"


class Alignment(str, Enum):
    """Which ideal distributions compete."""

    affine = "affine"
    symmetric = "symmetric"


class Covariance(str, Enum):
    """How many covariances are fitted."""

    tied = "tied"
    full = "full"
    diagonal = "diagonal"


class SmallCells(str, Enum):
    """What happens to subgroups with too few rows."""

    error = "error"
    pool = "pool"
    merge = "merge"


class Inference(str, Enum):
    """How rows without a known group are steered."""

    infer = "infer"
    infer_hard = "infer_hard"


class UnknownGroup(str, Enum):
    """What happens to rows of groups the map does not know."""

    error = "error"
    infer = "infer"
    infer_hard = "infer_hard"


def parse_shrinkage(text: str) -> Any:
    """Turn what ``--shrinkage`` was given into a parameter."""
    if text in ("ledoit_wolf", "oas"):
        return text
    if text == "none":
        return None
    try:
        amount = float(text)
    except ValueError:
        raise UsageError(f"--shrinkage must be ledoit_wolf, oas, none or a number in [0, 1], not {text!r}.") from None
    check_range("--shrinkage", amount, 0.0, 1.0)
    return amount


def check_range(option: str, value: float, low: float, high: float) -> None:
    """Refuse a number out of ``[low, high]``."""
    if not low <= value <= high:
        raise UsageError(f"{option} must be a number in [{low:g}, {high:g}], not {value:g}.")
