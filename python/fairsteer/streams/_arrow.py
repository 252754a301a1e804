"""Arrow datasets: a file, a folder or a table, of which only the columns and row groups are read that are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from fairsteer._utils.input import few
from fairsteer.streams._stream import RowBatch, Stream

# Bytes that the rows of a batch take, unless more is said.
BATCH_BYTES = 2**25
# Rows that the scanner decodes at once, and batches that it reads ahead while others are computed with.
_SCANNED_BYTES = 2**21
_READ_AHEAD = 2


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
        Memory that the features of a batch take.
    threads : bool, default=True
        Whether Arrow decodes columns in all its threads, which read several row groups ahead. Else one thread reads
        while batches are computed with, and takes the memory of one.

    Raises
    ------
    ValueError
        If a column is absent, or holds neither numbers nor vectors of them where it is to be a feature.
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
        batch_bytes: int = BATCH_BYTES,
        threads: bool = True,
    ) -> None:
        from pyarrow import Table
        from pyarrow import dataset as arrow

        self._dataset = arrow.dataset(dataset) if isinstance(dataset, Table) else dataset
        self._filter, self._batch_bytes, self._threads = filter, batch_bytes, threads
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
        columns = [name for name in self._columns if name not in sensitive] if features else []
        groups = sensitive or self._groups
        named = [*columns, *(groups or []), *(name for name in (self._y, self._weight) if name is not None)]
        n_numbers = max(1, self.n_columns if features else len(named))
        for table in self.tables(list(dict.fromkeys(named)), n_numbers):
            batch = RowBatch(
                self._matrix(table, columns) if features else None,
                None if self._y is None else table.column(self._y),
                None if groups is None else table.select(groups),
                None if self._weight is None else table.column(self._weight).to_numpy(),
            )
            del table  # the features are there twice no longer than it takes to copy them
            yield batch
            del batch

    def tables(self, columns: list[str], n_numbers: int) -> Iterator[Any]:
        """Read columns in tables of about as many bytes as a batch may take."""
        from pyarrow import dataset as arrow
        from pyarrow import default_memory_pool

        options = {}
        if getattr(getattr(self._dataset, "format", None), "default_extname", None) == "parquet":
            # Decodes a row group piece by piece instead of holding all of it.
            scan = arrow.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)
            options["fragment_scan_options"] = scan
        scanner = self._dataset.scanner(
            columns=columns,
            filter=self._filter,
            batch_size=max(64, min(_SCANNED_BYTES, self._batch_bytes) // (8 * n_numbers)),
            batch_readahead=_READ_AHEAD,
            fragment_readahead=1,
            use_threads=self._threads,
            **options,
        )
        gathered: list[Any] = []
        n_bytes = 0
        for batch in scanner.to_batches() if self._threads else _ahead(scanner.to_batches()):
            if batch.num_rows == 0:
                continue
            gathered.append(batch)
            n_bytes += batch.nbytes
            if n_bytes >= self._batch_bytes:
                default_memory_pool().release_unused()  # what the tables before took
                yield _together(gathered)
                n_bytes = 0
        if gathered:
            yield _together(gathered)
        default_memory_pool().release_unused()

    def _matrix(self, table: Any, columns: list[str]) -> Any:
        """Features of a table as an array, column after column, in single precision if none needs more."""
        from pyarrow import types

        kinds = {table.schema.field(name).type for name in columns}
        elements = {kind.value_type if _is_list(kind) else kind for kind in kinds}
        single = all(types.is_float32(kind) or types.is_float16(kind) for kind in elements)
        dtype = np.float32 if single else np.float64
        if len(columns) == 1 and columns[0] in self._widths:
            return self._vectors(table, columns[0]).astype(dtype, copy=False)
        out = np.empty((table.num_rows, sum(self._widths.get(name, 1) for name in columns)), dtype, order="F")
        start = 0
        for name in columns:
            if name in self._widths:
                stop = start + self._widths[name]
                out[:, start:stop] = self._vectors(table, name)
                start = stop
                continue
            _fill(out[:, start], table.column(name), name)
            start += 1
        return out

    def _vectors(self, table: Any, name: str) -> Any:
        width = self._widths[name]
        column = table.column(name).combine_chunks()
        values = column.flatten().to_numpy(zero_copy_only=False)
        if len(values) != width * len(column):
            msg = f"The vectors of column {name!r} are missing or not all of length {width}."
            raise ValueError(msg)
        return values.reshape(len(column), width)


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Read the next batch in a thread while one is worked on."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = reader.submit(next, batches, None)
            yield batch


def _together(gathered: list[Any]) -> Any:
    """Make a table of batches, and forget them."""
    from pyarrow import Table

    table = Table.from_batches(gathered)
    gathered.clear()
    return table


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind))


def _fill(out: Any, column: Any, name: str) -> None:
    """Copy a column of numbers, NaN where it is null."""
    from pyarrow import types

    kind = column.type
    if not (types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind) or types.is_decimal(kind)):
        msg = (
            f"The column {name!r} holds {kind}, which is no feature. Encode it, leave it out by columns=…, or "
            "name it in sensitive_features=…."
        )
        raise ValueError(msg)
    start = 0
    for chunk in column.chunks:
        if not types.is_floating(kind):
            chunk = chunk.cast("float64")
        stop = start + len(chunk)
        out[start:stop] = chunk.to_numpy(zero_copy_only=False)
        start = stop
