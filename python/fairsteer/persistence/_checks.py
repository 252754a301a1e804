"""What numbers must be like to be written and read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_finite_number(name: str, value: Any) -> float:
    """Check a number before it is written."""
    if not np.isfinite(value):
        msg = f"{name} is {value!r}: only finite numbers can be saved."
        raise ValueError(msg)
    return float(value)


def symmetric(name: str, matrices: NDArray[Any]) -> NDArray[Any]:
    """Check covariances: symmetric but for rounding, with variances that are not negative."""
    variances, transposed = np.diagonal(matrices, axis1=-2, axis2=-1), np.swapaxes(matrices, -1, -2)
    asymmetry = np.abs(matrices - transposed).max(initial=0)
    if (variances < 0).any() or asymmetry > 1e-8 * variances.max(initial=0):
        msg = f"the array {name} holds no covariances"
        raise ValueError(msg)
    return matrices


def shares(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Check shares: not negative, of sum 1."""
    if (array < 0).any() or abs(array.sum() - 1) > 1e-8:
        msg = f"the array {name} holds no shares of a whole"
        raise ValueError(msg)
    return array


def listed_names(names: Sequence[Any] | NDArray[Any] | None) -> list[str] | None:
    return None if names is None else [str(name) for name in names]
