"""Writing tables as they were read: the same dialect, and the same bytes in the columns that are not steered."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, parquet

from fairsteer._utils.files import Output, descriptor_of, is_special

from . import UsageError
from ._reading import Dialect, Table, first_line, format_of

__all__ = [
    "TableWriter",
    "as_path",
    "check_output",
    "check_outputs",
    "is_standard_output",
    "is_stream",
    "open_writer",
    "writing",
]


# ---- what may be written


def as_path(path: Path | None) -> Path | None:
    """Path of what an option was given, ``-`` for standard output."""
    return Path("/dev/stdout") if str(path) == "-" else path


def is_standard_output(path: Path | None) -> bool:
    """Whether a path is standard output, where nothing else may be printed then."""
    return path is not None and descriptor_of(path) == 1


def is_stream(path: Path) -> bool:
    """Whether a path is no file, so that its name need not say what is written to it."""
    return descriptor_of(path) is not None or is_special(path)


def check_outputs(outputs: Iterable[tuple[str, Path | None]], *, sources: Iterable[Path], force: bool) -> None:
    """Refuse output paths before the work is done instead of after.

    Parameters
    ----------
    outputs : iterable of (str, Path or None)
        Options and what they were given.
    sources : iterable of Path
        Input files.
    force : bool
        Whether what exists may be replaced.

    Raises
    ------
    UsageError
        For two outputs that are one, and as `check_output` raises.
    """
    seen: list[tuple[str, Path]] = []
    for option, path in outputs:
        if path is None:
            continue
        check_output(path, sources=sources, force=force)
        for other, taken in seen:
            if _same(path, taken):
                raise UsageError(f"{other} and {option} are both {path}; name two files.")
        seen.append((option, path))


def check_output(path: Path, *, sources: Iterable[Path] = (), force: bool) -> None:
    """Refuse a path that cannot be written, or would replace what is there.

    Parameters
    ----------
    path : Path
        Where a file is to be written.
    sources : iterable of Path
        Input files.
    force : bool
        Whether what exists may be replaced.

    Raises
    ------
    UsageError
        For a directory, a folder or file that is absent or not writable, and a file that exists unless `force`.
    """
    if descriptor_of(path) is not None:
        return
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a directory; name a file to write.")
        special = is_special(path)
        folder = Path(os.path.realpath(path)).parent
        if not special and not folder.is_dir():
            raise UsageError(f"the folder {folder} does not exist.")
        exists = path.exists()
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {first_line(error)}.") from error
    if (not special and not os.access(folder, os.W_OK)) or (exists and not os.access(path, os.W_OK)):
        raise UsageError(f"{path} cannot be written: permission denied.")
    if not exists or special or force:
        return
    if any(_same(path, source) for source in sources):
        raise UsageError(f"{path} is the input file itself; --force replaces it.")
    raise UsageError(f"{path} exists; --force replaces it.")


def _same(path: Path, other: Path) -> bool:
    if descriptor_of(path) is not None:
        return descriptor_of(path) == descriptor_of(other)
    try:
        return path == other or path.samefile(other)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)


@contextmanager
def writing(path: Path) -> Iterator[Output]:
    """Open an output; what the system refuses is a sentence.

    Parameters
    ----------
    path : Path
        Where to write.

    Yields
    ------
    Output
        To be committed by the caller.
    """
    try:
        with Output(path) as output:
            yield output
    except BrokenPipeError:
        if descriptor_of(path) is not None:
            raise
        raise UsageError(f"{path} cannot be written: its reader is gone.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {first_line(error)}.") from error


# ---- tables


class TableWriter(Protocol):
    """What writes a long table in pieces."""

    #: Columns that pass through, those included that pandas keeps an index in.
    carried: list[str]

    def write(self, features: NDArray[np.float64], more: Sequence[pa.Array], piece: Table) -> None:
        """Append rows: their features, columns that were computed, and the piece that has the carried columns."""

    def close(self) -> None:
        """Write what ends the file."""


def open_writer(
    path: Path,
    file: BinaryIO,
    table: Table,
    features: Sequence[str],
    more: dict[str, pa.DataType],
    carried: Sequence[str],
) -> TableWriter:
    """Make the writer for a path: parquet by its extension, else csv in the dialect of the input.

    Parameters
    ----------
    path : Path
        Where the rows go; its name says the format.
    file : BinaryIO
        What to write to.
    table : Table
        The input.
    features : sequence of str
        Names of the numeric columns; they come first.
    more : dict of str to pyarrow.DataType
        Columns that are computed besides; they come second.
    carried : sequence of str
        Columns of `table` that pass through unchanged; they come last.

    Returns
    -------
    TableWriter

    Raises
    ------
    UsageError
        If two columns would have one name.
    """
    names = [*features, *more, *carried]
    if len(set(names)) < len(names):
        double = next(name for i, name in enumerate(names) if name in names[:i])
        raise UsageError(f"two columns of the output would both be named {double!r}; rename a column of the table.")
    if format_of(path) == "parquet":
        return _ParquetWriter(file, table, features, more, carried)
    dialect = table.dialect or Dialect()
    if format_of(path) == "tsv":
        dialect = Dialect(**{**vars(dialect), "separator": "\t"})
    gzipped = path.suffix.lower() == ".gz" or (dialect.gzipped and format_of(path) is None and path.suffix == "")
    return _CsvWriter(file, table, features, more, carried, dialect, gzipped=gzipped)


_FIRST = 256  # values


class _CsvWriter:
    """Text in the dialect of the input; pyarrow's own writer knows UTF-8, points and newlines only."""

    def __init__(
        self,
        file: BinaryIO,
        table: Table,
        features: Sequence[str],
        more: dict[str, pa.DataType],
        carried: Sequence[str],
        dialect: Dialect,
        *,
        gzipped: bool,
    ) -> None:
        self._table, self._dialect, self.carried = table, dialect, list(carried)
        # Without a name and a time in it, a compressed file is the same bytes every time.
        self._zip = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) if gzipped else None
        self._file = cast("BinaryIO", self._zip) if self._zip is not None else file
        self._encoder = codecs.getincrementalencoder(dialect.encoding)()
        # Inside an array, after a separator or a quote.
        self._unsafe = f'[{re.escape(dialect.separator)}"\r\n]'
        names = [*features, *more, *carried]
        self._emit([self._texts(pa.array([name], pa.string()), always=dialect.quoted_names) for name in names])

    def write(self, features: NDArray[np.float64], more: Sequence[pa.Array], piece: Table) -> None:
        columns = [self._numbers(pa.array(column)) for column in np.ascontiguousarray(features.T)]
        columns += [self._numbers(x) if pa.types.is_floating(x.type) else self._texts(x) for x in more]
        for name in self.carried:
            values = piece.column(name).values
            always = self._table.dialect is not None and name in self._table.dialect.quoted
            columns.append(self._texts(values, always=always))
        self._emit(columns)

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()

    def _emit(self, columns: list[pa.Array]) -> None:
        if not len(columns[0]):
            return
        if len(columns) == 1:  # an empty line would be no row
            columns = [compute.if_else(compute.equal(columns[0], ""), '""', columns[0])]
        columns[-1] = compute.binary_join_element_wise(columns[-1], self._dialect.newline, "")
        rows = compute.binary_join_element_wise(*columns, self._dialect.separator)
        encoded: bytes | memoryview = memoryview(_text_of(rows))
        if self._dialect.encoding != "utf-8":
            encoded = self._encoder.encode(str(encoded, "utf-8"))
        self._file.write(encoded)

    def _numbers(self, values: pa.Array) -> pa.Array:
        """Shortest texts that are read as the same numbers."""
        few = values.slice(0, _FIRST).dictionary_encode()
        if len(few.dictionary) < len(few) / 4 and len((few := values.dictionary_encode()).dictionary) < len(few) / 4:
            texts = compute.cast(few.dictionary, pa.string()).take(few.indices)
        else:
            texts = compute.cast(values, pa.string())
        return compute.replace_substring(texts, ".", ",") if self._dialect.decimal == "," else texts

    def _texts(self, values: Any, *, always: bool = False) -> pa.Array:
        texts = _as_text(values)
        quoted = compute.binary_join_element_wise('"', compute.replace_substring(texts, '"', '""'), '"', "")
        return quoted if always else compute.if_else(self._unsafe_in(texts), quoted, texts)

    def _unsafe_in(self, texts: pa.Array) -> pa.Array:
        """Whether a value would not be read as one if it stood there without quotes."""
        return compute.match_substring_regex(texts, self._unsafe)


class _ParquetWriter:
    """Columns of a parquet file with their types and the index that pandas kept; texts of a csv file as texts."""

    def __init__(
        self,
        file: BinaryIO,
        table: Table,
        features: Sequence[str],
        more: dict[str, pa.DataType],
        carried: Sequence[str],
    ) -> None:
        self.carried = list(carried)
        source = table.data.schema
        known = source.pandas_metadata or {}
        index = known.get("index_columns", [])
        self.carried += [name for name in index if isinstance(name, str) and name in source.names]
        fields = [pa.field(name, pa.float64()) for name in features]
        fields += [pa.field(name, kind) for name, kind in more.items()]
        fields += [source.field(name) for name in self.carried]
        self._schema = pa.schema(fields)
        if known:
            described = {column["field_name"]: column for column in known.get("columns", [])}
            columns = [_describe(field) for field in fields[: len(features) + len(more)]]
            columns += [described[name] for name in self.carried if name in described]
            block = {**known, "columns": columns, "index_columns": index}
            self._schema = self._schema.with_metadata({b"pandas": json.dumps(block).encode()})
        self._writer = parquet.ParquetWriter(file, self._schema)

    def write(self, features: NDArray[np.float64], more: Sequence[pa.Array], piece: Table) -> None:
        arrays = [pa.array(column) for column in np.ascontiguousarray(features.T)]
        arrays += [*more, *(piece.data.column(name) for name in self.carried)]
        self._writer.write_table(pa.table(arrays, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


def _describe(field: pa.Field) -> dict[str, Any]:
    """Describe a column that is new, as pandas describes its own."""
    kind, dtype = {
        "double": ("float64", "float64"),
        "int64": ("int64", "int64"),
        "bool": ("bool", "bool"),
    }.get(str(field.type), ("unicode", "object"))
    return {"name": field.name, "field_name": field.name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}


def _as_text(values: Any) -> pa.Array:
    """Texts of a column as they would stand in a csv file; empty where missing."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.cast(kind.value_type), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_temporal(kind):
        texts = compute.fill_null(compute.cast(values, pa.string()), "")
        return texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    return pa.array(["" if value is None else str(value) for value in values.to_pylist()], pa.string())


def _text_of(texts: pa.Array) -> pa.Buffer:
    """All texts of an array, which lie one behind the other."""
    _, offsets, content = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return content.slice(int(ends[0]), int(ends[-1] - ends[0]))
