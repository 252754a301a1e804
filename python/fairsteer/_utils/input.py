"""Rows, classes, weights and columns as users pass them, checked in scikit-learn's manner."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from fairsteer._utils.types import Codes

#: Arguments of ``check_array`` for rows: these types are kept, any other becomes the first.
ROW_CHECKS: dict[str, Any] = {"dtype": [np.float64, np.float32, np.float16]}


def check_classes(y: Any, rows: Any) -> npt.NDArray[Any]:
    """Check class labels: one a row, discrete, none missing."""
    y = column_or_1d(y, warn=True)
    assert_all_finite(y, input_name="y")
    check_consistent_length(rows, y)
    check_classification_targets(y)
    return np.asarray(y)


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
