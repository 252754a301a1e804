"""Rows, classes, weights and columns as users pass them, checked in scikit-learn's manner."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from itertools import islice
from numbers import Integral, Number
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils import assert_all_finite, check_array, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

Floats = npt.NDArray[np.floating[Any]]
Codes = npt.NDArray[np.intp]

#: Arguments of ``check_array`` for rows: these types are kept, any other becomes the first.
ROW_CHECKS: dict[str, Any] = {"dtype": [np.float64, np.float32, np.float16]}


def column_positions(columns: Any, names: npt.NDArray[Any] | None, n_columns: int) -> list[int]:
    """Find columns given by name or position (a negative one counts from the end)."""
    positions = []
    for column in [columns] if isinstance(columns, (str, Integral)) else columns:
        if isinstance(column, str):
            found = [] if names is None else np.flatnonzero(names == column).tolist()
            if not found:
                have = "has no column names" if names is None else f"has the columns {few(map(repr, names))}"
                msg = f"sensitive_columns names {column!r}, but X {have}."
                raise ValueError(msg)
            positions += found
        else:
            position = int(column)
            if not -n_columns <= position < n_columns:
                msg = f"sensitive_columns names column {position}, but X has {n_columns} columns."
                raise ValueError(msg)
            positions.append(position % n_columns)
    if len(set(positions)) == n_columns:
        msg = f"sensitive_columns names all {n_columns} columns of X: no feature is left to steer."
        raise ValueError(msg)
    return positions


def check_classes(y: Any, rows: Any) -> npt.NDArray[Any]:
    """Check class labels: one a row, discrete, none missing."""
    y = column_or_1d(y, warn=True)
    assert_all_finite(y, input_name="y")
    check_consistent_length(rows, y)
    check_classification_targets(y)
    return np.asarray(y)


def check_sample_weight(sample_weight: Any, rows: Any) -> npt.NDArray[np.float64] | None:
    """Check weights: one a row, finite, not negative. A number stands for that weight in every row."""
    if sample_weight is None:
        return None
    if isinstance(sample_weight, Number):
        sample_weight = np.full(len(rows), sample_weight)
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


def few(texts: Iterable[str], most: int = 10) -> str:
    """List the first texts and count the rest, for messages."""
    texts = iter(texts)
    listed = ", ".join(islice(texts, most))
    rest = sum(1 for _ in texts)
    return f"{listed} and {rest} more" if rest else listed


def warn_caller(message: str) -> None:
    """Warn at the line of user code that called, however deep in this package or scikit-learn we are."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in {"fairsteer", "sklearn"}:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def is_bfloat16(X: Any) -> bool:
    """Tell a bfloat16 array by name: NumPy has no such type of its own, and ml_dtypes is no dependency."""
    return isinstance(X, np.ndarray) and X.dtype.name == "bfloat16"


def widen_bfloat16(X: Any) -> Any:
    """Make a bfloat16 array float32, which scikit-learn knows; leave anything else."""
    return X.astype(np.float32) if is_bfloat16(X) else X
