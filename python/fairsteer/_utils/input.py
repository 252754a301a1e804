"""Rows, classes, weights and columns as users pass them, checked in scikit-learn's manner."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from numbers import Number
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from fairsteer._utils.labels import count_missing
from fairsteer._utils.types import Codes

#: Arguments of ``check_array`` for rows: these types are kept, any other becomes the first.
ROW_CHECKS: dict[str, Any] = {"dtype": [np.float64, np.float32, np.float16]}


def check_classes(y: Any, rows: Any, name: str = "y") -> npt.NDArray[Any]:
    """Check class labels: one a row, discrete, none missing.

    Numbers in an object array (Decimal, Fraction, integers and booleans side by side) become an array of numbers.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        A list, a NumPy array, or a pandas, polars or pyarrow column, or a table of one.
    rows : array-like of n_samples rows
        What they are the labels of.
    name : str, default="y"
        What messages call them.

    Returns
    -------
    ndarray of shape (n_samples,)
        The labels.

    Raises
    ------
    ValueError
        If a label is missing, labels are continuous or of several types, or there is not one a row.
    """
    labels = _plain_column(y)
    missing = count_missing(labels)
    if missing:
        msg = f"{name} has {missing} missing labels among {len(labels)}; leave those rows out first."
        raise ValueError(msg)
    labels = np.asarray(labels)  # no longer masked
    if labels.dtype.kind == "O":
        labels = _of_one_type(labels, name)
    assert_all_finite(labels, input_name=name)
    check_consistent_length(rows, labels)
    check_classification_targets(labels)
    return labels


def _plain_column(y: Any) -> npt.NDArray[Any]:
    """One column of any container as a NumPy array; labels of several types stay what they are, as objects."""
    if hasattr(y, "column_names") and hasattr(y, "column"):  # pyarrow Table
        y = y.column(0) if y.num_columns == 1 else np.asarray(y)
    if hasattr(y, "to_pylist"):  # pyarrow
        y = y.to_pylist()
    elif hasattr(y, "to_numpy"):  # pandas, polars
        y = y.to_numpy()
    if isinstance(y, Sequence) and not isinstance(y, (str, bytes)) and len(set(map(type, y))) > 1:
        objects = np.empty(len(y), dtype=object)
        objects[:] = y
        y = objects
    if np.ma.isMaskedArray(y):
        return y if y.ndim == 1 else y.ravel() if y.shape == (len(y), 1) else column_or_1d(y)
    return np.asarray(column_or_1d(y, warn=True))


def _of_one_type(labels: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Objects as numbers if all are; refuse numbers beside text, which NumPy would turn into text."""
    numeric = [isinstance(label, (Number, np.number, np.bool_)) for label in labels]
    if not any(numeric):
        return labels
    if not all(numeric):
        number, other = labels[numeric.index(True)], labels[numeric.index(False)]
        msg = f"{name} mixes numbers and other labels, such as {number!r} and {other!r}. Make them all one type."
        raise ValueError(msg)
    if all(isinstance(label, (bool, np.bool_)) for label in labels):
        return labels.astype(bool)
    numbers = labels.astype(np.float64)
    whole = np.isfinite(numbers) & (np.abs(numbers) < 2**53)
    return labels.astype(np.int64) if whole.all() and (numbers % 1 == 0).all() else numbers


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


def brief(value: Any, most: int = 80) -> str:
    """Representation of a value, cut in the middle if it is long, for messages."""
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[: most - 20]} … {text[-17:]}"


def did_you_mean(asked: str, known: Iterable[Any]) -> str:
    """Sentence that suggests the nearest of some names, with a space before it; nothing if none is near."""
    names = [name for name in known if isinstance(name, str)]
    plain = [name for name in names if name.strip().casefold() == asked.strip().casefold()]
    near = plain or difflib.get_close_matches(asked, names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


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
