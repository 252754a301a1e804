"""Rows, classes, weights and columns as users pass them, checked in scikit-learn's manner."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from itertools import islice
from numbers import Integral, Number
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import get_config
from sklearn.pipeline import Pipeline
from sklearn.utils import assert_all_finite, check_array, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import has_fit_parameter

Floats = npt.NDArray[np.floating[Any]]
Codes = npt.NDArray[np.intp]

#: Arguments of ``check_array`` for rows: these types are kept, any other becomes the first.
ROW_CHECKS: dict[str, Any] = {"dtype": [np.float64, np.float32, np.float16]}


def column_positions(columns: Any, X: Any, names: npt.NDArray[Any] | None, n_columns: int) -> list[int]:
    """Find columns given by name, position (a negative one counts from the end), mask, slice, or a function of `X`."""
    asked = "sensitive_columns"
    if callable(columns):
        asked = f"sensitive_columns={columns!r}"
        columns = columns(X)
    if isinstance(columns, slice):
        columns = range(*columns.indices(n_columns))
    columns = [columns] if isinstance(columns, (str, Integral)) else list(columns)
    if columns and all(isinstance(column, (bool, np.bool_)) for column in columns):
        if len(columns) != n_columns:
            msg = f"{asked} is a mask of {len(columns)} columns, but X has {n_columns}."
            raise ValueError(msg)
        columns = np.flatnonzero(columns).tolist()
    positions = []
    for column in columns:
        if isinstance(column, (bool, np.bool_)) or not isinstance(column, (str, Integral)):
            msg = f"{asked} must hold names or positions of columns, or one boolean for each; it holds {column!r}."
            raise ValueError(msg)
        if isinstance(column, str):
            found = [] if names is None else np.flatnonzero(names == column).tolist()
            if not found:
                have = "has no column names" if names is None else f"has the columns {few(map(repr, names))}"
                msg = f"{asked} names {column!r}, but X {have}."
                raise ValueError(msg)
            positions += found
        else:
            position = int(column)
            if not -n_columns <= position < n_columns:
                msg = f"{asked} names column {position}, but X has {n_columns} columns."
                raise ValueError(msg)
            positions.append(position % n_columns)
    positions = list(dict.fromkeys(positions))  # a column named twice is one
    if not positions:
        msg = f"{asked} selects none of the {n_columns} columns of X. Leave it at None to give groups beside X."
        raise ValueError(msg)
    if len(positions) == n_columns:
        msg = f"{asked} names all {n_columns} columns of X: no feature is left to steer."
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


def weight_params(estimator: Any, weight: npt.NDArray[np.float64]) -> dict[str, Any] | None:
    """Keywords that hand sample weights to an estimator's ``fit``; None if it takes none."""
    if has_fit_parameter(estimator, "sample_weight"):
        return {"sample_weight": weight}
    if isinstance(estimator, Pipeline):
        # With metadata routing on, the pipeline's own requests say which step takes them.
        if get_config()["enable_metadata_routing"]:
            return {"sample_weight": weight}
        name, last = estimator.steps[-1]
        if has_fit_parameter(last, "sample_weight"):
            return {f"{name}__sample_weight": weight}
    return None


def unknown_group_message(codes: Codes, counts: Mapping[Any, int], groups: npt.NDArray[Any], ways_out: str) -> str:
    """Say which rows have no known group; `codes` and `counts` are a GroupEncoder's."""
    listed = few(f"{'missing' if k is None else repr(k)} ({n} rows)" for k, n in counts.items())
    return (
        f"{(codes < 0).sum()} of {len(codes)} rows have a group that is missing or was not there at fit: {listed}. "
        f"Known groups: {few(map(repr, groups.tolist()))}. The way out: {ways_out}."
    )


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
