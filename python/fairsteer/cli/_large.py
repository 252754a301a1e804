"""Tables larger than the memory they may take: files and folders that are read piece by piece, as often as needed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv
from pyarrow import dataset as arrow_dataset
from pyarrow import parquet

from fairsteer._utils.files import is_special
from fairsteer.streams import ArrowRows

from . import UsageError
from ._columns import Reading
from ._reading import (
    PIECE_BYTES,
    Table,
    csv_head,
    first_line,
    format_of,
    read_table,
    table_of_parquet,
    wrong_length,
)

__all__ = ["AnyTable", "LargeTable", "distinct_rows", "open_table"]

Tell = Callable[[str], None]

# Bytes in memory for a byte of a file: what is read, decoded and made numbers of, at once.
_CSV_FACTOR, _GZIP_FACTOR, _PARQUET_FACTOR = 10, 50, 4
# Bytes of a csv file from which the rest is guessed.
_HEAD = 2**20
# Share of the memory that a piece of a table may take, and its limits in bytes.
_PIECE_SHARE, _SMALLEST_PIECE = 16, 2**18
# Share of the memory that a block of csv text may take, of which Arrow reads some thirty ahead; a row must fit.
_BLOCK_SHARE, _SMALLEST_BLOCK = 512, 2**18
# By how much a row may be longer than those of the head are in the mean.
_ROW_FACTOR = 16


@dataclass(frozen=True)
class LargeTable:
    """A table that is read in pieces.

    Attributes
    ----------
    name : str
        Name of the file or folder, for messages.
    head : Table
        Its first rows, with the names, the dialect and the types of all.
    files : list of Path
        Where the rows are, in their order.
    memory : int
        Bytes that all that is made of it at once may take.
    dataset : pyarrow.dataset.Dataset or None
        Of parquet files.
    trailing : bool
        Whether every row of a csv file ends in a separator.
    n_header_lines : int
        Lines of a csv file before the first row.
    """

    name: str
    head: Table
    files: list[Path]
    memory: int
    dataset: Any = None
    trailing: bool = False
    n_header_lines: int = 0

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return self.head.names

    def pieces(self, columns: Sequence[str] | None = None, *, n_numbers: int = 1) -> Iterator[Table]:
        """Read all rows piece by piece; only the columns that are named, None: all.

        The pieces are the same every time, with the same columns and memory. While one is worked on, Arrow's threads
        read the next.
        """
        named = list(dict.fromkeys(self.head.data.column_names if columns is None else columns))
        bytes_of_piece = min(PIECE_BYTES, max(_SMALLEST_PIECE, self.memory // _PIECE_SHARE))
        tables = self._of_csv if self.head.dialect is not None else self._of_parquet
        try:
            for data in tables(named, bytes_of_piece):
                size = max(256, bytes_of_piece // (8 * max(1, n_numbers)))
                for start in range(0, data.num_rows, size):
                    yield replace(self.head, name=self.name, data=data.slice(start, size), _columns={})
        except (pa.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.name} cannot be read: {first_line(error)}.") from error

    def _of_parquet(self, columns: list[str], n_bytes: int) -> Iterator[pa.Table]:
        rows = ArrowRows(self.dataset, columns=[], batch_bytes=n_bytes)
        for data in rows.tables(columns, len(columns)):
            yield data.cast(self.head.data.select(columns).schema)

    def _of_csv(self, columns: list[str], n_bytes: int) -> Iterator[pa.Table]:
        dialect = self.head.dialect
        assert dialect is not None
        long_row = _ROW_FACTOR * _HEAD // max(1, self.head.data.num_rows)
        block = min(n_bytes, max(_SMALLEST_BLOCK, self.memory // _BLOCK_SHARE, long_row))
        names = [*self.head.data.column_names, *([""] if self.trailing else [])]
        for file in self.files:
            wrong: list[Any] = []

            def refuse(row: Any, wrong: list[Any] = wrong) -> str:
                wrong.append(row)
                return "error"

            try:
                with pa.input_stream(str(file), compression="gzip" if dialect.gzipped else None) as stream:
                    reader = arrow_csv.open_csv(
                        stream,
                        read_options=arrow_csv.ReadOptions(
                            column_names=names,
                            skip_rows=self.n_header_lines,
                            block_size=block,
                            encoding={"utf-8-sig": "utf8", "utf-8": "utf8"}.get(dialect.encoding, dialect.encoding),
                        ),
                        parse_options=arrow_csv.ParseOptions(
                            delimiter=dialect.separator,
                            newlines_in_values=True,
                            invalid_row_handler=refuse,
                            ignore_empty_lines=len(names) > 1,
                        ),
                        convert_options=arrow_csv.ConvertOptions(
                            column_types=dict.fromkeys(names, pa.string()),
                            strings_can_be_null=False,
                            include_columns=columns,
                        ),
                    )
                    # As many blocks together, whichever columns are read.
                    while batches := list(islice(reader, max(1, n_bytes // block))):
                        piece = pa.Table.from_batches(batches)
                        del batches
                        if piece.num_rows:
                            yield piece.combine_chunks()
                        del piece
                        pa.default_memory_pool().release_unused()
            except pa.ArrowInvalid as error:
                if wrong:
                    raise UsageError(wrong_length(file.name, wrong[0], names, dialect.separator)) from None
                if "Empty CSV file" not in str(error):
                    raise

    def sample(self, n_rows: int) -> tuple[Table, int]:
        """Give rows that are evenly spaced, at least half of `n_rows` of them, or all; and the number of all rows."""
        kept: list[pa.Table] = []
        stride, seen, n_kept = 1, 0, 0
        for piece in self.pieces():
            first = -seen % stride
            if first < len(piece):
                rows = piece.data.take(pa.array(range(first, len(piece), stride)))
                kept.append(rows)
                n_kept += rows.num_rows
            seen += len(piece)
            while n_kept > n_rows:
                together = pa.concat_tables(kept)
                kept = [together.take(pa.array(range(0, together.num_rows, 2)))]
                stride, n_kept = 2 * stride, kept[0].num_rows
        if seen == 0:
            raise UsageError(f"{self.name} has no rows.")
        data = pa.concat_tables(kept).combine_chunks()
        return replace(self.head, name=self.name, data=data, _columns={}), seen


AnyTable = Table | LargeTable


def open_table(path: Path, reading: Reading, tell: Tell, memory: int) -> AnyTable:
    """Read a table, or if it is larger than the memory it may take, prepare to read it in pieces.

    Parameters
    ----------
    path : Path
        A file as for `read_table`, or a folder of csv, tsv or parquet files, all of one kind, in the order of their
        names; folders within it whose names are values (``year=2020``) are a column of parquet files.
    reading : Reading
        What the user said about it.
    tell : callable
        Receives a sentence about what was guessed.
    memory : int
        Bytes.

    Returns
    -------
    Table or LargeTable

    Raises
    ------
    UsageError
        As `read_table` does.
    """
    if str(path) == "-" or not path.exists() or is_special(path):
        return read_table(path, reading, tell)
    if path.is_dir():
        return _open(path, _files_of(path), reading, tell, memory)
    if _bytes_needed(path) <= memory:
        return read_table(path, reading, tell)
    return _open(path, [path], reading, tell, memory)


def distinct_rows(table: AnyTable, columns: Sequence[str]) -> tuple[Table, NDArray[np.int64]]:
    """Distinct rows of some columns, in order of appearance, and how many rows each stands for."""
    found: dict[tuple[Any, ...], int] = {}
    last: Table | None = None
    for piece in table.pieces(columns):
        plain = [
            values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values
            for values in (piece.data.column(name) for name in columns)
        ]
        names = [str(j) for j in range(len(columns))]
        counted = pa.table(plain, names=names).group_by(names, use_threads=False).aggregate([([], "count_all")])
        keys = zip(*(counted.column(name).to_pylist() for name in names), strict=True)
        for key, n in zip(keys, counted.column("count_all").to_pylist(), strict=True):
            same = tuple("nan" if isinstance(one, float) and one != one else one for one in key)
            found[same] = found.get(same, 0) + n
        last = piece
    if last is None:
        raise UsageError(f"{table.name} has no rows.")
    arrays = []
    for j, name in enumerate(columns):
        kind = last.data.schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        floats = pa.types.is_floating(kind)
        values = [float("nan") if floats and key[j] == "nan" else key[j] for key in found]
        arrays.append(pa.chunked_array([pa.array(values, kind)]))
    distinct = replace(last, data=pa.table(arrays, names=list(columns)), _columns={})
    return distinct, np.array(list(found.values()), dtype=np.int64)


def _files_of(folder: Path) -> list[Path]:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
    )
    files = [file for file in files if format_of(file) is not None]
    if not files:
        raise UsageError(f"the folder {folder} has no .csv, .tsv or .parquet file.")
    kinds = {format_of(file) for file in files}
    if len(kinds) > 1:
        raise UsageError(
            f"the folder {folder} has {' and '.join(sorted(map(str, kinds)))} files; keep those of one kind."
        )
    return files


def _bytes_needed(path: Path) -> int:
    """Estimate the memory that it takes to read a file whole and work on it."""
    size = path.stat().st_size
    if _is_parquet(path):
        try:
            metadata = parquet.read_metadata(path)
        except (pa.ArrowException, OSError):
            return 0  # to be refused with a sentence by the one who reads it
        groups = range(metadata.num_row_groups)
        return int(_PARQUET_FACTOR * sum(metadata.row_group(i).total_byte_size for i in groups))
    return size * (_GZIP_FACTOR if path.suffix.lower() == ".gz" else _CSV_FACTOR)


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _open(path: Path, files: list[Path], reading: Reading, tell: Tell, memory: int) -> LargeTable:
    shown = path.name
    try:
        if format_of(files[0]) == "parquet" or _is_parquet(files[0]):
            return _open_parquet(path, files, reading, memory)
        return _open_csv(shown, files, reading, tell, memory)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{shown} cannot be read: {first_line(error)}.") from error


def _open_parquet(path: Path, files: list[Path], reading: Reading, memory: int) -> LargeTable:
    source: Any = str(path) if path.is_dir() else [str(file) for file in files]
    dataset = arrow_dataset.dataset(source, format="parquet", partitioning="hive" if path.is_dir() else None)
    schema = dataset.schema
    known = schema.pandas_metadata
    if len(files) > 1:  # where one file has no nulls others may
        schema = pa.schema([field.with_nullable(True) for field in schema], schema.metadata)
    if known and len(files) > 1:  # row numbers of one file are not those of all
        stored = [one for one in known.get("index_columns", []) if isinstance(one, str)]
        schema = schema.with_metadata({b"pandas": json.dumps({**known, "index_columns": stored}).encode()})
    head = table_of_parquet(path.name, dataset.head(1000).cast(schema), reading)
    _check_names(head)
    return LargeTable(path.name, head, files, memory, dataset)


def _open_csv(shown: str, files: list[Path], reading: Reading, tell: Tell, memory: int) -> LargeTable:
    content, gzipped = _head_of(files[0])
    head, trailing, n_lines = csv_head(
        shown, content, reading, tell, "\t" if format_of(files[0]) == "tsv" else None, gzipped=gzipped
    )
    _check_names(head)
    assert head.dialect is not None
    for file in files[1:]:
        other, also_gzipped = _head_of(file)
        names = csv_head(file.name, other, _as_first(reading, head), lambda _: None, None, gzipped=also_gzipped)[0]
        if names.names != head.names or also_gzipped != gzipped:
            raise UsageError(
                f"{file.name} in {shown} has other columns than {files[0].name}, or one is compressed and the other is "
                "not; files of a folder are one table."
            )
    return LargeTable(shown, head, files, memory, None, trailing, n_lines)


def _as_first(reading: Reading, head: Table) -> Reading:
    """How further files of a folder are read: as the first one."""
    assert head.dialect is not None
    dialect = head.dialect
    return replace(reading, separator=dialect.separator, decimal=dialect.decimal, encoding=dialect.encoding)


def _head_of(file: Path) -> tuple[bytes, bool]:
    """Read the beginning of a csv file, unpacked, up to the end of a row."""
    with file.open("rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(file) if gzipped else file.open("rb") as stream:
            content = stream.read(_HEAD)
            whole = not stream.read(1)
    except (EOFError, OSError, ValueError) as error:
        raise UsageError(f"{file.name} cannot be unpacked as gzip: {first_line(error)}.") from error
    if whole:
        return content, gzipped
    end = len(content)
    while (end := content.rfind(b"\n", 0, end)) > 0:
        if content.count(b'"', 0, end) % 2 == 0:  # else it is a line break within quotes
            width = 4 if content[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff") else 2 if content[:2] in _WIDE else 1
            return content[: end + width - (end % width) if width > 1 else end + 1], gzipped
    return content, gzipped


_WIDE = (b"\xff\xfe", b"\xfe\xff")


def _check_names(head: Table) -> None:
    doubles = [name for i, name in enumerate(head.names) if name in head.names[:i]]
    if doubles:
        raise UsageError(f"{head.name} has more than one column named {doubles[0]!r}; rename one.")
