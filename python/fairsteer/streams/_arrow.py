"""Arrow datasets: a file, a folder or a table, of which only the columns and row groups are read that are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

from fairsteer._utils.columns import lay_out
from fairsteer._utils.input import few
from fairsteer.streams._stream import BLOCK_BYTES, RowBatch, Stream, block_rows

# Bytes that are decoded at once: every column of every piece costs some microseconds, whatever its length.
_PIECE_BYTES = 2**22
# Bytes of a table. Rows of labels alone: read as Python objects they take far more than in a file.
_TABLE_BYTES, _MOST_ROWS = 2**21, 2**16
# Bytes that Arrow reads of a column at once where a row group is too large to be read whole.
_BUFFER_BYTES = 2**13


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
        for table in self.tables(roles, len(roles), labels=roles):
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
        row_bytes = dtype.itemsize * max(1, width)
        n_rows = max(64, min(size, _PIECE_BYTES // row_bytes, self._batch_bytes // 8 // row_bytes))
        depth = max(1, self._batch_bytes // 8 // (n_rows * row_bytes))
        pieces = self._record_batches(list(dict.fromkeys([*columns, *roles])), n_rows, labels=roles)
        kinds = {name: self._dataset.schema.field(name).type for name in columns if name not in self._widths}
        others = {name for name, kind in kinds.items() if not _is_number(kind, name)}
        values, labels, filled = np.empty((size, width), dtype), [], 0
        for piece in _ahead(pieces, depth):
            start = 0
            while start < piece.num_rows:
                some = piece.slice(start, size - filled)
                n = some.num_rows
                self._lay_out(some, columns, others, values[filled : filled + n])
                labels.append(some.select(roles))
                start, filled = start + n, filled + n
                del some
                if filled == size:
                    whole = self._batch(values, _together(labels), groups)
                    del values
                    yield whole
                    del whole
                    values, filled = np.empty((size, width), dtype), 0
            del piece
        if filled:
            yield self._batch(values[:filled], _together(labels), groups)

    def tables(self, columns: list[str], n_numbers: int, *, labels: Sequence[str] = ()) -> Iterator[Any]:
        """Read columns in tables of about as many bytes as a batch may take.

        Parameters
        ----------
        columns : list of str
            Names.
        n_numbers : int
            Numbers that a row of them takes.
        labels : sequence of str, default=()
            Those whose texts may come as dictionaries.

        Yields
        ------
        pyarrow.Table
        """
        gathered: list[Any] = []
        n_bytes = n_rows = 0
        size = max(64, min(_TABLE_BYTES, self._batch_bytes) // (8 * n_numbers))
        for batch in _ahead(self._record_batches(columns, min(size, _MOST_ROWS), labels=labels), 1):
            gathered.append(batch)
            n_bytes, n_rows = n_bytes + batch.nbytes, n_rows + batch.num_rows
            if n_bytes >= self._batch_bytes or n_rows >= _MOST_ROWS:
                yield _together(gathered)
                n_bytes = n_rows = 0
        if gathered:
            yield _together(gathered)

    def _record_batches(self, columns: list[str], n_rows: int, *, labels: Sequence[str] = ()) -> Iterator[Any]:
        """Read columns in record batches of at most so many rows, none empty."""
        kind = getattr(getattr(self._dataset, "format", None), "default_extname", None)
        filtered = self._filter is not None or (getattr(self._dataset, "_scan_options", None) or {}).get("filter")
        if kind == "parquet" and filtered is None:
            fragments = self._dataset.get_fragments()
            found = (batch for fragment in fragments for batch in self._of_fragment(fragment, columns, n_rows, labels))
        else:
            scanner = self._dataset.scanner(
                columns=columns, filter=self._filter, batch_size=n_rows, batch_readahead=2, fragment_readahead=1
            )
            found = scanner.to_batches()
        yield from (batch for batch in found if batch.num_rows)

    def _of_fragment(self, fragment: Any, columns: list[str], n_rows: int, labels: Sequence[str]) -> Iterator[Any]:
        """Read a parquet file without holding a row group, which is what a scanner does."""
        import pyarrow as pa
        from pyarrow import dataset as arrow
        from pyarrow import parquet

        fields = [self._dataset.schema.field(name) for name in columns]
        constants = arrow.get_partition_keys(fragment.partition_expression)
        # Texts that stand for groups or classes are mostly stored as dictionaries, and are wanted as such.
        texts = [field.name for field in fields if field.name in labels and _is_text(field.type)]
        wanted = [_dictionary() if field.name in texts else field.type for field in fields]
        # Not the metadata's, which refers to the metadata and is referred to by it: both would stay for long.
        in_file = set(fragment.physical_schema.names)
        metadata, sizes = _row_groups(fragment)
        with parquet.ParquetFile(
            fragment.open(),
            metadata=metadata,
            # A buffer a column instead of all bytes of the row group, where these are many.
            buffer_size=0 if max(sizes.values(), default=0) <= 4 * _PIECE_BYTES else _BUFFER_BYTES,
            pre_buffer=False,
            read_dictionary=[name for name in texts if name in in_file],
        ) as file:
            stored = [name for name in columns if name in file.schema_arrow.names and name not in constants]
            # Some column has to be read, to know how many rows there are.
            read = stored or file.schema_arrow.names[:1]
            as_wanted = None
            for batch in file.iter_batches(n_rows, list(sizes), read, use_threads=False):
                if as_wanted is None:
                    schema = batch.schema
                    # Other files of the dataset may say otherwise of nulls, and batches of both go into one table.
                    as_wanted = schema.names == columns and schema.types == wanted and all(f.nullable for f in schema)
                if as_wanted:
                    yield batch
                    continue
                arrays = [
                    _as_type(batch.column(name), kind)
                    if name in stored
                    else _as_type(pa.repeat(pa.scalar(constants.get(name), field.type), batch.num_rows), kind)
                    for name, field, kind in zip(columns, fields, wanted, strict=True)
                ]
                yield pa.record_batch(arrays, names=columns)

    def _dtype(self, columns: list[str]) -> np.dtype[Any]:
        """Single precision if no column needs more."""
        from pyarrow import types

        kinds = [self._dataset.schema.field(name).type for name in columns]
        elements = {kind.value_type if _is_list(kind) else kind for kind in kinds}
        single = all(types.is_float32(kind) or types.is_float16(kind) for kind in elements)
        return np.dtype(np.float32 if single else np.float64)

    def _lay_out(self, piece: Any, columns: list[str], others: set[str], out: Any) -> None:
        """Write the features of a piece, its first columns, row by row."""
        arrays = [
            (column.cast("float64") if name in others else column).to_numpy(zero_copy_only=False)
            if name not in self._widths
            else self._vectors(column, name)
            for column, name in zip(piece.columns, columns, strict=False)
        ]
        if not self._widths:
            lay_out(arrays, out)
        else:
            np.concatenate([array.reshape(len(out), -1) for array in arrays], axis=1, out=out, casting="same_kind")

    def _vectors(self, column: Any, name: str) -> Any:
        width = self._widths[name]
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


def _is_number(kind: Any, name: str) -> bool:
    """Whether a column holds numbers, and not what becomes some; ValueError if it holds neither."""
    from pyarrow import types

    if types.is_floating(kind) or types.is_integer(kind):
        return True
    if not (types.is_boolean(kind) or types.is_decimal(kind)):
        msg = (
            f"The column {name!r} holds {kind}, which is no feature. Encode it, leave it out by columns=…, or "
            "name it in sensitive_features=…."
        )
        raise ValueError(msg)
    return False


def _row_groups(fragment: Any) -> tuple[Any, dict[int, int]]:
    """Metadata of a parquet file, and the row groups of it that take part with their bytes."""
    metadata, sizes = fragment.metadata, {group.id: group.total_byte_size for group in fragment.row_groups}
    # A dataset keeps the metadata of every file that it has been asked about, as much as a kilobyte a column and row
    # group: it is told to forget. Before pyarrow 20 it cannot.
    with suppress(TypeError):
        fragment.to_table(columns=[], cache_metadata=False)
    return metadata, sizes


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _as_type(column: Any, kind: Any) -> Any:
    if column.type == kind:
        return column
    if kind == _dictionary():
        return column.cast(kind.value_type).dictionary_encode()
    return column.cast(kind)


def _dictionary() -> Any:
    """Type of the texts that stand for groups or classes."""
    import pyarrow as pa

    return pa.dictionary(pa.int32(), pa.string())
