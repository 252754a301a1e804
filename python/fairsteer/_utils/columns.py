"""Columns of tables in any container: which are asked for, and how to take them."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from fairsteer import _core
from fairsteer._utils.arrays import to_numpy
from fairsteer._utils.input import brief, did_you_mean, few
from fairsteer._utils.labels import is_missing


def column_positions(columns: Any, X: Any, names: npt.NDArray[Any] | None, n_columns: int) -> list[int]:
    """Find columns given by name, position (a negative one counts from the end), mask, slice, or a function of `X`."""
    asked = "sensitive_columns"
    if callable(columns):
        asked = f"sensitive_columns={brief(columns)}"
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
            msg = f"{asked} must hold names or positions of columns, or one boolean for each; it holds {brief(column)}."
            raise ValueError(msg)
        if isinstance(column, str):
            found = [] if names is None else np.flatnonzero(names == column).tolist()
            if not found:
                have = "has no column names" if names is None else f"has the columns {few(map(repr, names))}"
                suggestion = "" if names is None else did_you_mean(column, names.tolist())
                msg = f"{asked} names {column!r}, but X {have}.{suggestion}"
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


def select_columns(table: Any, positions: list[int]) -> Any:
    """Select columns of a table, in the container they came in (lists become object arrays).

    Parameters
    ----------
    table : array-like or dataframe of shape (n_samples, n_columns)
        A list of rows, a NumPy array, or a pandas, polars or pyarrow table.
    positions : list of int
        Which columns.

    Returns
    -------
    array or dataframe of shape (n_samples, len(positions))
        The columns, in the order of `positions`.
    """
    if hasattr(table, "iloc"):  # pandas
        return table.iloc[:, positions]
    if hasattr(table, "get_columns"):  # polars
        return table[:, positions]
    if hasattr(table, "column_names"):  # pyarrow
        return table.select(positions)
    # As objects, a list of mixed rows stays what it is; NumPy would turn numbers into strings.
    array = np.asarray(table, dtype=object) if isinstance(table, Sequence) else np.asarray(table)
    return array[:, positions]


def split_columns(data: Any) -> tuple[list[Any], list[str] | None]:
    """Columns of any supported container, and their names where it has any."""
    columns: list[Any]
    names: list[str] | None = None
    data = to_numpy(data)
    if hasattr(data, "column_names"):  # pyarrow Table, RecordBatch
        columns, names = list(data.columns), list(data.column_names)
    elif hasattr(data, "get_columns"):  # polars DataFrame
        columns, names = data.get_columns(), list(data.columns)
    elif hasattr(data, "iloc") and data.ndim == 2:  # pandas DataFrame
        columns, names = [data.iloc[:, j] for j in range(data.shape[1])], list(data.columns)
    elif hasattr(data, "to_list") or hasattr(data, "to_pylist"):  # pandas, polars Series; pyarrow Array
        columns = [data]
    elif isinstance(data, np.ndarray) and data.dtype.names is not None and data.ndim == 1:  # records
        columns, names = [data[name] for name in data.dtype.names], list(data.dtype.names)
    else:
        array = _as_array(data)
        if isinstance(data, (str, bytes)) or array.ndim not in (1, 2):
            got = f"shape {array.shape}" if array.ndim else brief(data)
            msg = f"sensitive_features must have one or two dimensions (rows, columns), got {got}."
            raise ValueError(msg)
        columns = [array] if array.ndim == 1 else list(array.T)
    if not columns:
        msg = "sensitive_features has no columns."
        raise ValueError(msg)
    return columns, names


def _as_array(data: Any) -> npt.NDArray[Any]:
    """Array of labels in a list or an array."""
    if np.ma.isMaskedArray(data):
        objects: npt.NDArray[Any] = np.ma.getdata(data).astype(object)
        objects[np.ma.getmaskarray(data)] = None
        return objects
    if not isinstance(data, Sequence) or isinstance(data, (str, bytes)):
        return np.asarray(data)
    if any(issubclass(kind, (list, tuple, np.ndarray)) for kind in set(map(type, data))):
        counts = {len(row) if isinstance(row, (list, tuple, np.ndarray)) else 1 for row in data if not is_missing(row)}
        if len(counts) > 1:
            msg = (
                "Every row of sensitive_features must have the same number of labels, but there are rows of "
                f"{few(map(str, sorted(counts)))}."
            )
            raise ValueError(msg)
        data = [[None] * max(counts) if is_missing(row) else row for row in data]
    # NumPy would turn a list of mixed labels into strings; as objects they stay what they are.
    return np.asarray(data, dtype=object)


def lay_out(columns: list[npt.NDArray[Any]], out: npt.NDArray[Any]) -> None:
    """Write columns of numbers row by row.

    Parameters
    ----------
    columns : list of ndarray of shape (n,)
        Of any type of number.
    out : ndarray of shape (n, n_columns), float32 or float64
        Where the rows go, contiguous.
    """
    # Buffers that lie in a file or came over a network may begin anywhere.
    _core.lay_out([np.require(column, out.dtype, ["C", "A"]) for column in columns], out)
