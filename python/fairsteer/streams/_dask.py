"""Dask arrays and data frames: added up block by block where the blocks are, and merged in a tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from fairsteer.streams._batches import rows_of
from fairsteer.streams._stream import Reduction, RowBatch, Stream, divided

_State = TypeVar("_State")
# States that are merged at once.
_ARITY = 8


class DaskRows(Stream):
    """Rows of a Dask array or DataFrame; a batch is a block of rows.

    Parameters
    ----------
    X : dask.array.Array or dask.dataframe.DataFrame
        Features; sizes of chunks may be unknown.
    y, sample_weight : dask collection, array-like or str, default=None
        Classes and weights: a Dask array or Series with the blocks of `X` (where sizes are known, any blocks), an
        array, or the name of a column of a DataFrame, which is no feature then.
    sensitive_features : dask collection, array-like, str or list of str, default=None
        Groups, likewise; a list names columns of a DataFrame.
    columns : sequence of str, default=None
        Columns of a DataFrame that are features; by default all that have no other role.

    Raises
    ------
    ValueError
        If the blocks of two arguments do not belong together, or a column is absent.
    """

    def __init__(
        self,
        X: Any,
        y: Any = None,
        sensitive_features: Any = None,
        sample_weight: Any = None,
        *,
        columns: Sequence[str] | None = None,
    ) -> None:
        self.positions = []
        self.has_classes, self.has_groups = y is not None, sensitive_features is not None
        self._frame = X if hasattr(X, "divisions") else None
        if self._frame is not None:
            X, columns = self._without_roles(X, y, sensitive_features, sample_weight, columns)
            self._head = X.head(1000, npartitions=-1, compute=True) if X.npartitions else None
            self.column_names = [str(name) for name in X.columns]
            self.n_columns = len(self.column_names)
            self._sizes: list[float] = [np.nan] * X.npartitions
            self._divisions, self._meta = X.divisions, X._meta
            blocks = X.to_delayed()
        else:
            if X.ndim != 2:
                msg = f"X must have two dimensions, rows and columns, got a Dask array of {X.ndim}."
                raise ValueError(msg)
            X = X.rechunk({1: -1})
            self.column_names, self.n_columns = None, int(X.shape[1])
            self._sizes = list(X.chunks[0])
            self._meta = X._meta
            blocks = X.to_delayed()[:, 0]
            self._head = None
        self._X = X
        self._blocks = list(blocks)
        self._of_rows = [self._aligned(one, name) for name, one in (
            ("y", y), ("sensitive_features", sensitive_features), ("sample_weight", sample_weight)
        )]  # fmt: skip

    def _without_roles(self, X: Any, y: Any, groups: Any, weight: Any, columns: Any) -> tuple[Any, Any]:
        named = [one for one in (y, weight) if isinstance(one, str)]
        if isinstance(groups, str):
            named.append(groups)
        elif isinstance(groups, (list, tuple)) and groups and all(one in X.columns for one in groups):
            named += groups
        for name in (*named, *(columns or ())):
            if name not in X.columns:
                msg = f"The Dask DataFrame has no column {name!r}."
                raise ValueError(msg)
        kept = list(columns) if columns is not None else [name for name in X.columns if name not in named]
        return X[kept] if named or columns is not None else X, columns

    def head(self) -> Any:
        if self._head is None:
            for block in self._blocks:
                rows = block.compute()
                if len(rows):
                    self._head = rows[:1000]
                    break
        return self._head

    def _aligned(self, column: Any, name: str) -> list[Any]:
        """Blocks of a column, one a block of `X`."""
        n_blocks = len(self._blocks)
        if column is None:
            return [None] * n_blocks
        if self._frame is not None and isinstance(column, str):
            column = self._frame[column]
        elif self._frame is not None and isinstance(column, (list, tuple)) and set(column) <= set(self._frame.columns):
            column = self._frame[list(column)]
        if not type(column).__module__.startswith("dask"):
            return self._sliced(column, name)
        if hasattr(column, "divisions"):
            blocks = list(column.to_delayed())
        else:
            known = not np.isnan([*self._sizes, *column.chunks[0]]).any()
            if known and sum(column.chunks[0]) == sum(self._sizes):
                column = column.rechunk({0: tuple(map(int, self._sizes))})
            if column.ndim == 2:
                column = column.rechunk({1: -1})
            delayed = column.to_delayed()
            blocks = list(delayed[:, 0] if column.ndim == 2 else delayed)
            if known and sum(column.chunks[0]) != sum(self._sizes):
                msg = f"{name} has {sum(column.chunks[0])} rows, and X has {sum(self._sizes)}."
                raise ValueError(msg)
        if len(blocks) != n_blocks:
            msg = (
                f"{name} has {len(blocks)} blocks of rows, and X has {n_blocks}. If sizes are unknown, give both the "
                "same blocks, such as columns of one DataFrame; compute_chunk_sizes() finds them."
            )
            raise ValueError(msg)
        return blocks

    def _sliced(self, column: Any, name: str) -> list[Any]:
        """Parts of a column that is in memory; the sizes of blocks are computed for it if they are unknown."""
        import dask

        if np.isnan(self._sizes).any():
            self._sizes = list(dask.compute(*(dask.delayed(len)(block) for block in self._blocks)))
        ends = np.cumsum([0, *self._sizes]).astype(int).tolist()
        n_rows = len(column)
        if n_rows != ends[-1]:
            msg = f"{name} has {n_rows} rows, and X has {ends[-1]}."
            raise ValueError(msg)
        return [dask.delayed(rows_of(column, slice(start, stop)), traverse=False) for start, stop in pairwise(ends)]

    def _delayed(self, *, features: bool = True) -> Iterator[list[Any]]:
        needs_X = features or bool(self.positions)
        for i, block in enumerate(self._blocks):
            yield [block if needs_X else None, *(column[i] for column in self._of_rows)]

    def batches(self, *, features: bool = True) -> Iterator[RowBatch]:
        import dask

        for parts in self._delayed(features=features):
            yield batch_of(self.positions, self.n_columns, *dask.compute(*parts))

    def reduce(self, reduction: Reduction[_State]) -> _State:
        import dask

        one = dask.delayed(reduction, traverse=False)
        add, merge = dask.delayed(_added, pure=False), dask.delayed(_merged, pure=False)
        states = [
            add(one, self.positions, self.n_columns, *parts) for parts in self._delayed(features=reduction.features)
        ]
        while len(states) > 1:
            states = [merge(one, states[i : i + _ARITY]) for i in range(0, len(states), _ARITY)]
        [state] = dask.compute(*states) if states else [reduction.start()]
        return state

    def map(self, function: Callable[[RowBatch], Any]) -> Any:
        """Apply a function to the blocks, lazily: a collection like `X`, with its chunks, index and divisions.

        Parameters
        ----------
        function : callable
            From a `RowBatch` to rows, an array or a data frame like its `X`.

        Returns
        -------
        dask.array.Array or dask.dataframe.DataFrame
            The rows, not computed.
        """
        import dask

        apply = dask.delayed(_applied, pure=False)
        one = dask.delayed(function, traverse=False)
        parts = [apply(one, self.positions, self.n_columns, *block) for block in self._delayed()]
        rest = [j for j in range(self.n_columns) if j not in set(self.positions)]
        if self._frame is not None:
            from dask import dataframe

            meta = function(batch_of(self.positions, self.n_columns, self._meta, None, None, None))
            return dataframe.from_delayed(parts, meta=meta, divisions=self._divisions, verify_meta=False)
        from dask import array
        from dask.highlevelgraph import HighLevelGraph

        dtype = self._meta.dtype if self._meta.dtype.kind == "f" else np.dtype(np.float64)
        name = f"steered-{dask.base.tokenize(*(part.key for part in parts))}"
        # Not by concatenate, which leaves out blocks without rows.
        blocks = {(name, i, 0): part.key for i, part in enumerate(parts)}
        graph = HighLevelGraph.from_collections(name, blocks, dependencies=parts)
        return array.Array(graph, name, (tuple(self._sizes), (len(rest),)), meta=np.empty((0, 0), dtype))


def batch_of(positions: list[int], n_columns: int, X: Any, y: Any, groups: Any, weight: Any) -> RowBatch:
    """Batch of a block, its sensitive columns taken out of it."""
    X, groups = divided(X, groups, positions, n_columns)
    return RowBatch(X, y, groups, weight)


def _added(reduction: Reduction[_State], positions: list[int], n_columns: int, *parts: Any) -> _State:
    """State of a block; one without rows adds nothing."""
    batch = batch_of(positions, n_columns, *parts)
    state = reduction.start()
    some = next((one for one in (batch.X, batch.y, batch.sensitive_features) if one is not None), ())
    return reduction.add(state, batch) if len(some) else state


def _merged(reduction: Reduction[_State], states: list[_State]) -> _State:
    first, *others = states
    for other in others:
        first = reduction.merge(first, other)
    return first


def _applied(function: Callable[[RowBatch], Any], positions: list[int], n_columns: int, *parts: Any) -> Any:
    return function(batch_of(positions, n_columns, *parts))
