"""Weights of rows, checked, and how many rows stand behind their sums."""

from __future__ import annotations

from numbers import Number
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_array, check_consistent_length

from fairsteer._utils.arrays import to_numpy
from fairsteer._utils.types import Doubles


def check_sample_weight(sample_weight: Any, rows: Any) -> npt.NDArray[np.float64] | None:
    """Check weights: one a row, finite, not negative. A number stands for that weight in every row."""
    if sample_weight is None:
        return None
    sample_weight = to_numpy(sample_weight)
    if isinstance(sample_weight, Number):
        sample_weight = np.full(rows.shape[0] if hasattr(rows, "shape") else len(rows), sample_weight)
    weight: npt.NDArray[np.float64] = check_array(
        sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight"
    )
    if weight.ndim != 1:
        msg = f"sample_weight must have one dimension, got shape {weight.shape}."
        raise ValueError(msg)
    check_consistent_length(rows, weight)
    if (weight < 0).any():
        msg = (
            f"sample_weight must not be negative, but {(weight < 0).sum()} of {len(weight)} values are "
            f"(smallest {weight.min():g})."
        )
        raise ValueError(msg)
    return weight


def rows_behind(weights: Doubles, squares: Doubles) -> Doubles:
    """Count rows behind sums of weights and of their squares, see `SubgroupMoments.sizes`."""
    effective = np.divide(weights**2, squares, out=np.zeros_like(weights), where=squares > 0)
    return np.maximum(weights, effective)
