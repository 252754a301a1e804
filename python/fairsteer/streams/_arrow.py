"""Arrow datasets: a file, a folder or a table, of which only the columns and row groups are read that are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from fairsteer._utils.input import few
from fairsteer.streams._stream import BLOCK_BYTES, RowBatch, Stream, block_rows

# Bytes that are decoded at once, and the most that are decoded ahead while a batch is computed with.
_PIECE_BYTES, _AHEAD_BYTES = 2**21, 2**24
# Rows of a piece of labels alone: read as Python objects they take far more than in a file.
_MOST_ROWS = 2**16


class ArrowRows(Stream):
    """Rows of a `pyarrow.dataset.Dataset` or `pyarrow.Table`, read in batches while others are computed with.

    Only the columns that are needed are read, and of those only the row groups that `filter` leaves. Columns of
    vectors (fixed-size lists, or lists of equal lengths) become a feature an element.

    Parameters
    ----------
    dataset : pyarrow.dataset.Dataset or pyarrow.Table
        The rows, in any format that Arrow reads: a file, a folder, partitions.
    columns : sequence of str, default=None
        Columns of `X`, in this order; by default all that have no other role.
    y, sample_weight : str, default=None
        Columns of the classes and the weights.
    sensitive_features : str or sequence of str, default=None
        Columns of the groups.
    filter : pyarrow.compute.Expression, default=None
        Which rows.
    batch_bytes : int, default=2**25
        Memory that the features of a batch take. Half as much again is read ahead; see the notes.

    Raises
    ------
    ValueError
        If a column is absent, or holds neither numbers nor vectors of them where it is to be a feature.

    Notes
    -----
    Parquet files are decoded piece by piece, whatever the size of their row groups. With a `filter` Arrow's scanner
    reads, which leaves out row groups but decodes each of the others whole.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        columns: Sequence[str] | None = None,
        y: str | None = None,
        sensitive_features: str | Sequence[str] | None = None,
        sample_weight: str | None = None,
        filter: Any = None,  # noqa: A002 — the name that pyarrow gives it
        batch_bytes: int = BLOCK_BYTES,
    ) -> None:
        from pyarrow import Table
        from pyarrow import dataset as arrow

        self._dataset = arrow.dataset(dataset) if isinstance(dataset, Table) else dataset
        self._filter, self._batch_bytes = filter, batch_bytes
        schema = self._dataset.schema
        groups = [sensitive_features] if isinstance(sensitive_features, str) else sensitive_features
        self._groups = None if groups is None else list(groups)
        self._y, self._weight = y, sample_weight
        taken = [name for name in (y, *(self._groups or ()), sample_weight) if name is not None]
        self._columns = [name for name in schema.names if name not in taken] if columns is None else list(columns)
        for name in (*self._columns, *taken):
            if name not in schema.names:
                msg = f"The dataset has no column {name!r}; it has {few(map(repr, schema.names))}."
                raise ValueError(msg)
        self.positions: list[int] = []
        self.n_columns, self.column_names = len(self._columns), list(self._columns)
        self.has_classes, self.has_groups = y is not None, self._groups is not None
        self._widths: dict[str, int] = {}
        for name in self._columns:
            if _is_list(schema.field(name).type):
                self._widths[name] = self._width(name, schema.field(name).type)
        if self._widths:
            self.column_names = [
                one
                for name in self._columns
                for one in ([f"{name}[{i}]" for i in range(self._widths[name])] if name in self._widths else [name])
            ]
            self.n_columns = len(self.column_names)

    def _width(self, name: str, kind: Any) -> int:
        from pyarrow import types

        if types.is_fixed_size_list(kind):
            return int(kind.list_size)
        values = self._dataset.head(1, columns=[name], filter=self._filter).column(0).to_pylist()
        return len(values[0]) if values and values[0] is not None else 0

    def head(self) -> Any:
        return self._dataset.head(1000, columns=self._columns, filter=self._filter).to_pandas()

    def split(self, positions: list[int]) -> None:
        if self._widths:
            msg = "sensitive_columns are named beside columns of vectors; pass sensitive_features=… instead."
            raise ValueError(msg)
        super().split(positions)

    def batches(self, *, features: bool = True) -> Iterator[RowBatch]:
        sensitive = [self._columns[j] for j in self.positions]
        groups = sensitive or self._groups
        roles = [*(groups or []), *(name for name in (self._y, self._weight) if name is not None)]
        if features or not roles:
            columns = [name for name in self._columns if name not in sensitive]
            yield from self._of_features(columns, roles, groups)
            return
        for table in self.tables(roles, len(roles)):
            yield self._batch(None, table, groups)

    def _batch(self, values: Any, table: Any, groups: list[str] | None) -> RowBatch:
        return RowBatch(
            values,
            None if self._y is None else table.column(self._y),
            None if groups is None else table.select(groups),
            None if self._weight is None else table.column(self._weight).to_numpy(),
        )

    def _of_features(self, columns: list[str], roles: list[str], groups: list[str] | None) -> Iterator[RowBatch]:
        """Lay features out row by row, in batches of equal numbers of rows."""
        dtype, width = self._dtype(columns), sum(self._widths.get(name, 1) for name in columns)
        size = block_rows(width, dtype.itemsize, self._batch_bytes)
        n_rows = max(64, min(size, _PIECE_BYTES // (dtype.itemsize * max(1, width))))
        pieces = (
            (self._laid_out(piece, columns, dtype), piece.select(roles))
            for piece in self._record_batches(list(dict.fromkeys([*columns, *roles])), n_rows)
        )
        depth = max(1, min(_AHEAD_BYTES, self._batch_bytes // 2) // max(1, n_rows * width * dtype.itemsize))
        values, labels, filled = np.empty((size, width), dtype), [], 0
        for rows, of_rows in _ahead(pieces, depth):
            start = 0
            while start < len(rows):
                n = min(size - filled, len(rows) - start)
                values[filled : filled + n] = rows[start : start + n]
                labels.append(of_rows.slice(start, n))
                start, filled = start + n, filled + n
                if filled == size:
                    whole = self._batch(values, _together(labels), groups)
                    del values
                    yield whole
                    del whole
                    values, filled = np.empty((size, width), dtype), 0
            del rows
        if filled:
            yield self._batch(values[:filled], _together(labels), groups)

    def tables(self, columns: list[str], n_numbers: int) -> Iterator[Any]:
        """Read columns in tables of about as many bytes as a batch may take.

        Parameters
        ----------
        columns : list of str
            Names.
        n_numbers : int
            Numbers that a row of them takes.

        Yields
        ------
        pyarrow.Table
        """
        gathered: list[Any] = []
        n_bytes = n_rows = 0
        size = max(64, min(_PIECE_BYTES, self._batch_bytes) // (8 * n_numbers))
        for batch in _ahead(self._record_batches(columns, min(size, _MOST_ROWS)), 1):
            gathered.append(batch)
            n_bytes, n_rows = n_bytes + batch.nbytes, n_rows + batch.num_rows
            if n_bytes >= self._batch_bytes or n_rows >= _MOST_ROWS:
                yield _together(gathered)
                n_bytes = n_rows = 0
        if gathered:
            yield _together(gathered)

    def _record_batches(self, columns: list[str], n_rows: int) -> Iterator[Any]:
        """Read columns in record batches of at most so many rows, none empty."""
        kind = getattr(getattr(self._dataset, "format", None), "default_extname", None)
        filtered = self._filter is not None or (getattr(self._dataset, "_scan_options", None) or {}).get("filter")
        if kind == "parquet" and filtered is None:
            fragments = self._dataset.get_fragments()
            found = (batch for fragment in fragments for batch in self._of_fragment(fragment, columns, n_rows))
        else:
            scanner = self._dataset.scanner(
                columns=columns, filter=self._filter, batch_size=n_rows, batch_readahead=2, fragment_readahead=1
            )
            found = scanner.to_batches()
        yield from (batch for batch in found if batch.num_rows)

    def _of_fragment(self, fragment: Any, columns: list[str], n_rows: int) -> Iterator[Any]:
        """Read a parquet file without holding a row group, which is what a scanner does."""
        import pyarrow as pa
        from pyarrow import dataset as arrow
        from pyarrow import parquet

        fields = [self._dataset.schema.field(name) for name in columns]
        constants = arrow.get_partition_keys(fragment.partition_expression)
        groups = [group.id for group in fragment.row_groups]
        # A buffer a column instead of all bytes of the row group.
        with parquet.ParquetFile(
            fragment.open(), metadata=fragment.metadata, buffer_size=2**13, pre_buffer=False
        ) as file:
            stored = [name for name in columns if name in file.schema_arrow.names and name not in constants]
            # Some column has to be read, to know how many rows there are.
            read = stored or file.schema_arrow.names[:1]
            for batch in file.iter_batches(n_rows, groups, read, use_threads=False):
                yield pa.record_batch(
                    [
                        _as_type(batch.column(field.name), field.type)
                        if field.name in stored
                        else pa.repeat(pa.scalar(constants.get(field.name), field.type), batch.num_rows)
                        for field in fields
                    ],
                    schema=pa.schema(fields),
                )

    def _dtype(self, columns: list[str]) -> np.dtype[Any]:
        """Single precision if no column needs more."""
        from pyarrow import types

        kinds = [self._dataset.schema.field(name).type for name in columns]
        elements = {kind.value_type if _is_list(kind) else kind for kind in kinds}
        single = all(types.is_float32(kind) or types.is_float16(kind) for kind in elements)
        return np.dtype(np.float32 if single else np.float64)

    def _laid_out(self, piece: Any, columns: list[str], dtype: np.dtype[Any]) -> Any:
        """Features of a piece, row by row."""
        if len(columns) == 1 and columns[0] in self._widths:
            return self._vectors(piece, columns[0])
        if not self._widths:
            return _rows_of([_numbers(piece.column(name), name) for name in columns])
        parts = [
            self._vectors(piece, name)
            if name in self._widths
            else _numbers(piece.column(name), name).to_numpy(zero_copy_only=False)[:, None]
            for name in columns
        ]
        return np.concatenate(parts, axis=1, dtype=dtype, casting="same_kind")

    def _vectors(self, piece: Any, name: str) -> Any:
        width = self._widths[name]
        column = piece.column(name)
        values = column.flatten().to_numpy(zero_copy_only=False)
        if len(values) != width * len(column):
            msg = f"The vectors of column {name!r} are missing or not all of length {width}."
            raise ValueError(msg)
        return values.reshape(len(column), width)


def _ahead(items: Iterator[Any], depth: int) -> Iterator[Any]:
    """Make the next items in a thread, while one is worked on."""
    with ThreadPoolExecutor(1) as reader:
        waiting = deque(reader.submit(next, items, None) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(reader.submit(next, items, None))
                yield item
                del item
        finally:
            for one in waiting:
                one.cancel()


def _together(gathered: list[Any]) -> Any:
    """Make a table of batches, and forget them."""
    from pyarrow import Table

    table = Table.from_batches(gathered)
    gathered.clear()
    return table


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind))


def _numbers(column: Any, name: str) -> Any:
    """Check a column of numbers, and make floating ones of those that no tensor takes."""
    from pyarrow import types

    kind = column.type
    if types.is_floating(kind) or types.is_integer(kind):
        return column
    if not (types.is_boolean(kind) or types.is_decimal(kind)):
        msg = (
            f"The column {name!r} holds {kind}, which is no feature. Encode it, leave it out by columns=…, or "
            "name it in sensitive_features=…."
        )
        raise ValueError(msg)
    return column.cast("float64")


def _rows_of(columns: list[Any]) -> Any:
    """Lay columns out row by row, NaN where they are null."""
    import pyarrow as pa

    # Where the length of a row is a multiple of a large power of two, numbers of a column displace one another in
    # the processor's cache; a column more makes that twice as fast.
    padded = [*columns, columns[0]] if len(columns) % 64 == 0 else columns
    batch = pa.record_batch(padded, names=list(map(str, range(len(padded)))))
    return np.asarray(batch.to_tensor(null_to_nan=True, row_major=True))[:, : len(columns)]


def _as_type(column: Any, kind: Any) -> Any:
    return column if column.type == kind else column.cast(kind)
