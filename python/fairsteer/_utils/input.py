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
from scipy.sparse import issparse
from sklearn.utils import assert_all_finite, check_array, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _num_samples, validate_data

from fairsteer._utils.arrays import check_floats, is_foreign, like, namespace, to_numpy
from fairsteer._utils.labels import count_missing, distinct_labels, encoded_labels, label_array
from fairsteer._utils.types import Codes, Floats

#: Arguments of ``check_array`` for rows: these types are kept, any other becomes the first.
ROW_CHECKS: dict[str, Any] = {"dtype": [np.float64, np.float32, np.float16]}


def check_rows(
    X: Any, estimator: Any, *, reset: bool | None = None, of_columns: npt.NDArray[Any] | None = None
) -> Floats:
    """Check rows: a table of finite numbers; the message names the columns that are not.

    Parameters
    ----------
    X : array-like or dataframe of shape (n_samples, n_features)
        Rows.
    estimator : estimator
        What they are for.
    reset : bool, default=None
        Whether the estimator learns the number and the names of the columns, or has them compared with those it knows;
        None: neither.
    of_columns : ndarray, default=None
        Names or positions of the columns, where `X` has been taken out of another table.

    Returns
    -------
    ndarray of shape (n_samples, n_features)
        In the floating-point type of `X`, at addresses that are multiples of the size of its items.
    """
    if np.ma.isMaskedArray(X) and np.ma.getmaskarray(X).any():
        msg = f"X holds {np.ma.getmaskarray(X).sum()} masked values, which have no meaning here. Fill them first."
        raise ValueError(msg)
    try:
        if reset is None:
            rows = check_array(X, **ROW_CHECKS, estimator=estimator, input_name="X")
        else:
            rows = validate_data(estimator, X, reset=reset, **ROW_CHECKS)
    except ValueError as error:
        explained = _explain(X, of_columns, groups_too=hasattr(estimator, "sensitive_columns"))
        if explained is None:
            raise
        raise ValueError(explained) from error
    return with_whole_strides(rows)


def check_elsewhere(X: Any, names: Sequence[str]) -> Any:
    """Check rows that lie on a device, and leave them there: a table of finite numbers with these columns."""
    X, xp = check_floats(X), namespace(X)
    if X.shape[1] != len(names):
        msg = f"X has {X.shape[1]} features, but {len(names)} are expected."
        raise ValueError(msg)
    if bool(xp.all(xp.isfinite(X))):
        return X
    counts = to_numpy(xp.sum(xp.astype(~xp.isfinite(X), xp.int64), axis=0))
    found = few((f"{counts[j]} in {names[j]}" for j in np.flatnonzero(counts).tolist()), 5)
    msg = f"X must hold finite numbers, but it holds NaN or infinite values: {found}. Impute or leave out such rows."
    raise ValueError(msg)


def with_whole_strides(array: Floats) -> Floats:
    """Copy an array whose items lie anywhere, such as a field of packed records."""
    whole = array.flags.aligned and all(stride % array.itemsize == 0 for stride in array.strides)
    return array if whole else np.array(array)


def _explain(X: Any, names: npt.NDArray[Any] | None, *, groups_too: bool) -> str | None:
    """Say which columns hold what is no finite number; None if that is not what is wrong with `X`."""
    if np.ndim(X) != 2 or issparse(X):
        return None
    if names is None and hasattr(X, "columns"):
        names = np.array(getattr(X, "column_names", X.columns), dtype=object)
    columns = np.asarray(X, dtype=object).T
    found = []
    for j, column in enumerate(columns):
        name = f"column {j if names is None else repr(names.tolist()[j])}"
        try:
            values = column.astype(np.float64)
        except (TypeError, ValueError):
            text = [value for value in column if isinstance(value, str)]
            if text:
                found.append(f"text, such as {brief(text[0])}, in {name}")
            continue
        missing, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        if missing:
            found.append(f"{missing} NaN (missing values) in {name}")
        if infinite:
            plural = "values" if infinite > 1 else "value"
            found.append(f"{infinite} infinite {plural} (infinity, or too large for float64) in {name}")
    if not found:
        return None
    of_groups = " Columns that hold groups are named in sensitive_columns=…." if groups_too else ""
    return (
        f"X must hold finite numbers, but it holds {few(found, 5)}. Impute or leave out such rows, and encode text as "
        f"numbers.{of_groups}"
    )


def check_table(X: Any, estimator: Any) -> Any:
    """Check that there are rows and columns; a list of rows becomes an array of objects."""
    if issparse(X):
        check_array(X, estimator=estimator)  # raises scikit-learn's error
    if isinstance(X, Sequence) and not isinstance(X, (str, bytes)):
        X = np.asarray(X, dtype=object)
    n_dims = 2 if hasattr(X, "column_names") else np.ndim(X)
    if n_dims != 2:
        what = f"an array of shape {np.shape(X)}" if n_dims else brief(X)
        msg = (
            f"X must have two dimensions, rows and columns, got {what}. Reshape your data: X.reshape(-1, 1) is one "
            "column, X.reshape(1, -1) one row. The rows of a list must all have the same length."
        )
        raise ValueError(msg)
    return X


def num_rows(rows: Any) -> int:
    """Count the rows of any container."""
    return int(_num_samples(rows))


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
    # Objects are told apart by their hashes; to sort all of them takes ten times as long.
    check_classification_targets(label_array(distinct_labels(labels)[0]) if labels.dtype.kind == "O" else labels)
    return labels


def coded_classes(y: Any, rows: Any) -> tuple[npt.NDArray[Any], Codes]:
    """Distinct class labels, sorted, and the position of each row's among them; checked as by `check_classes`.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        As for `check_classes`. Of a pyarrow column Python sees the distinct values alone.
    rows : array-like of n_samples rows
        What they are the labels of.

    Returns
    -------
    labels : ndarray
        The labels that occur.
    codes : ndarray of shape (n_samples,)
        Positions.

    Raises
    ------
    ValueError
        As by `check_classes`.
    """
    if hasattr(y, "column_names") and hasattr(y, "column") and y.num_columns == 1:  # pyarrow Table
        y = y.column(0)
    if hasattr(y, "iterchunks") and len(y) and y.null_count == 0:
        indices, distinct = _indexed(y)
        present = np.flatnonzero(np.bincount(indices[indices >= 0], minlength=len(distinct)))
        # Thrice: where more than half of the rows have labels of their own scikit-learn suspects a regression.
        values = distinct.take(np.tile(present, 3))
        if indices.min() >= 0 and not count_missing(_plain_column(values)):  # a null may stand in a dictionary
            check_consistent_length(rows, y)
            labels, order = np.unique(check_classes(values, values), return_inverse=True)
            position = np.zeros(len(distinct), dtype=np.intp)
            position[present] = order[: len(present)]
            return labels, position[indices]
    return _distinct(check_classes(y, rows))


# Range of whole numbers within which they are counted instead of sorted.
_COUNTED = 1024


def _distinct(labels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Codes]:
    """Values that occur, sorted, and every one's position among them."""
    if labels.dtype.kind in "iu" and len(labels):
        low = labels.min()
        if int(labels.max()) - int(low) < _COUNTED:
            # A difference of narrow numbers may be none of them.
            place = (labels - low if labels.itemsize == 8 else labels.astype(np.intp) - int(low)).astype(np.intp)
            there = np.bincount(place) > 0
            found = np.arange(int(low), int(low) + len(there), dtype=labels.dtype)[there]
            return found, (np.cumsum(there) - 1)[place]
    return np.unique(labels, return_inverse=True)


def _indexed(column: Any) -> tuple[Codes, Any]:
    """Positions of the values of a pyarrow column without nulls in an array that has all of them."""
    from pyarrow import array, types

    if types.is_integer(column.type):
        numbers = column.to_numpy()
        dtype = numbers.dtype
        if dtype.itemsize < 8:
            numbers = numbers.astype(np.int64)  # differences of the shorter ones overflow
        low = numbers.min()
        size = int(numbers.max()) - int(low) + 1
        if size <= 4 * len(numbers) + 1024:  # counting needs no hashes
            values = np.arange(size).astype(numbers.dtype) + low
            return (numbers - low).astype(np.intp, copy=False), array(values.astype(dtype, copy=False))
    return encoded_labels(column)


def _plain_column(y: Any) -> npt.NDArray[Any]:
    """One column of any container as a NumPy array; labels of several types stay what they are, as objects."""
    y = to_numpy(y)
    if hasattr(y, "column_names") and hasattr(y, "column"):  # pyarrow Table
        y = y.column(0) if y.num_columns == 1 else np.asarray(y)
    if hasattr(y, "to_pylist"):  # pyarrow
        # NumPy would make floating ones of a list of small and very large integers.
        y = y.to_numpy() if str(getattr(y, "type", None)) == "uint64" and y.null_count == 0 else y.to_pylist()
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
    try:
        values: list[Any] = distinct_labels(labels)[0]
    except TypeError as error:
        msg = f"{name} must hold labels that can be hashed: {error}."
        raise ValueError(msg) from error
    numbers: list[Any] = [value for value in values if isinstance(value, (Number, np.number, np.bool_))]
    if not numbers:
        return labels
    if len(numbers) < len(values):
        other = next(value for value in values if not isinstance(value, (Number, np.number, np.bool_)))
        msg = f"{name} mixes numbers and other labels, such as {numbers[0]!r} and {other!r}. Make them all one type."
        raise ValueError(msg)
    if all(isinstance(value, (bool, np.bool_)) for value in numbers):
        return labels.astype(bool)
    whole = all(value == int(value) for value in numbers if np.isfinite(float(value)))
    if whole and all(np.isfinite(float(value)) and abs(value) < 2**63 for value in numbers):
        return labels.astype(np.int64)
    return labels.astype(np.float64)


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


def in_numpy(X: Any) -> Any:
    """Bring an array of another library to NumPy, and bfloat16 to float32, which scikit-learn knows."""
    X = to_numpy(X)
    return X.astype(np.float32) if is_bfloat16(X) else X


def as_given(rows: Floats, X: Any) -> Any:
    """Bring rows to the library, the device and the floating-point type of those that they were made from."""
    if is_foreign(X):
        return like(rows, X)
    return rows.astype(X.dtype) if is_bfloat16(X) else rows
