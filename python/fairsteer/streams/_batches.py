"""Batches that a function makes, and arrays that are mapped from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fairsteer._utils.input import num_rows
from fairsteer.streams._stream import RowBatch, Stream, block_rows, divided


class BatchRows(Stream):
    """Batches that a function makes anew each time it is called.

    Parameters
    ----------
    make : callable
        Takes no argument; returns an iterable of batches, each a tuple ``(X, y, sensitive_features, sample_weight)``
        whose end may be missing, a mapping with these keys, or `X` alone. The same rows each time.

    Examples
    --------
    >>> import numpy as np
    >>> from fairsteer import FairSteeringTransformer
    >>> from fairsteer.streams import BatchRows
    >>> def batches():
    ...     for seed in range(3):
    ...         rng = np.random.default_rng(seed)
    ...         y, group = rng.integers(0, 2, (2, 100))
    ...         yield rng.normal(size=(100, 2)) + group[:, None], y, group
    >>> FairSteeringTransformer(map_type="affine").fit(BatchRows(batches)).moments_.weights.sum()
    np.float64(300.0)
    """

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        self._make = make
        self.positions, self.n_columns = [], 0
        first = next(iter(self.batches()), None)
        if first is None or first.X is None:
            msg = "There is no batch of rows: the function that makes them gives none, or one without X."
            raise ValueError(msg)
        self._head = first.X
        self.n_columns = np.shape(first.X)[1] if np.ndim(first.X) == 2 else len(first.X[0])
        names = getattr(first.X, "column_names", getattr(first.X, "columns", None))
        listed = None if names is None else list(names)
        self.column_names = listed if listed and all(isinstance(name, str) for name in listed) else None
        self.has_classes, self.has_groups = first.y is not None, first.sensitive_features is not None

    def head(self) -> Any:
        return self._head

    def batches(self, *, features: bool = True) -> Iterator[RowBatch]:
        for made in self._make():
            batch = as_batch(made)
            X, groups = divided(batch.X, batch.sensitive_features, self.positions, self.n_columns)
            yield RowBatch(X, batch.y, groups, batch.sample_weight)


def as_batch(made: Any) -> RowBatch:
    """Read a batch from a tuple, a mapping or rows alone."""
    if isinstance(made, RowBatch):
        return made
    if isinstance(made, Mapping) and not hasattr(made, "iloc"):
        unknown = set(made) - set(RowBatch._fields)
        if unknown or "X" not in made:
            msg = f"A batch needs X, and may have y, sensitive_features and sample_weight; it has {sorted(made)}."
            raise ValueError(msg)
        return RowBatch(**made)
    if isinstance(made, tuple):
        if not 1 <= len(made) <= 4:
            msg = f"A batch is a tuple (X, y, sensitive_features, sample_weight), not one of {len(made)} things."
            raise ValueError(msg)
        return RowBatch(*made)
    return RowBatch(made)


class ArrayRows(Stream):
    """Rows of an array that lies in a file (`numpy.memmap`), read some at a time.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        The array.
    y, sensitive_features, sample_weight : array-like, default=None
        As for ``fit``.
    batch_rows : int, default=None
        Rows of a batch; by default as many as 32 MiB hold.
    """

    def __init__(
        self,
        X: Any,
        y: Any = None,
        sensitive_features: Any = None,
        sample_weight: Any = None,
        *,
        batch_rows: int | None = None,
    ) -> None:
        self._all = RowBatch(X, y, sensitive_features, sample_weight)
        self.n_columns, self.column_names, self.positions = X.shape[1], None, []
        self.has_classes, self.has_groups = y is not None, sensitive_features is not None
        self._step = batch_rows or block_rows(X.shape[1], X.dtype.itemsize)
        for name, column in self._all._asdict().items():
            if column is not None and num_rows(column) != len(X):
                msg = f"{name} has {num_rows(column)} rows, and X has {len(X)}."
                raise ValueError(msg)

    def head(self) -> Any:
        return self._all.X[:1000]

    def batches(self, *, features: bool = True) -> Iterator[RowBatch]:
        X, y, groups, weight = self._all
        for start in range(0, len(X), self._step):
            rows = slice(start, start + self._step)
            some, of_rows = divided(X[rows], rows_of(groups, rows), self.positions, self.n_columns)
            yield RowBatch(np.array(some) if features else None, rows_of(y, rows), of_rows, rows_of(weight, rows))


def rows_of(data: Any, rows: slice) -> Any:
    """Take some rows of any container."""
    if data is None:
        return None
    if hasattr(data, "iloc"):
        return data.iloc[rows]
    if hasattr(data, "column_names") or hasattr(data, "to_pylist"):  # pyarrow
        return data.slice(rows.start, rows.stop - rows.start)
    return data[rows]
