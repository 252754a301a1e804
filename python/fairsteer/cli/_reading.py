"""Reading tables: what a file is made of is guessed and said, and whatever does not fit is refused."""

from __future__ import annotations

import csv
import gzip
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from fairsteer._utils.files import is_special

from . import UsageError, count
from ._columns import Column, Reading

__all__ = [
    "PIECE_BYTES",
    "Dialect",
    "Table",
    "csv_head",
    "first_line",
    "format_of",
    "read_table",
    "table_of_parquet",
    "wrong_length",
]

Tell = Callable[[str], None]

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_SHOWN = {
    "utf-8-sig": "UTF-8",
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16",
    "utf-16-be": "UTF-16",
    "utf-32": "UTF-32",
    "latin-1": "Latin-1",
    "cp1252": "Windows-1252",
}
_SAMPLE = 200  # records that are looked at to guess a separator
#: Bytes of numbers that are steered and written at once, so that only they are in memory.
PIECE_BYTES = 2**25
#: Rows that a piece of a table in memory has at least.
FEWEST_ROWS = 1024
_LONGEST = 60  # characters of a line that a message quotes


@dataclass(frozen=True)
class Dialect:
    """How a csv file is written.

    Attributes
    ----------
    separator, decimal : str
        Between values, and between the whole and the fractional part of a number.
    encoding : str
        Python's name of it.
    newline : str
        End of a line.
    gzipped : bool
        Whether the file is compressed.
    quoted : frozenset of str
        Columns whose values are quoted without need, as far as the first row tells.
    quoted_names : bool
        Whether the names of the columns are.
    """

    separator: str = ","
    decimal: str = "."
    encoding: str = "utf-8"
    newline: str = "\n"
    gzipped: bool = False
    quoted: frozenset[str] = frozenset()
    quoted_names: bool = False


@dataclass(frozen=True)
class Table:
    """A table as it is in its file.

    Attributes
    ----------
    name : str
        Name of the file, for messages.
    data : pyarrow.Table
        Text of every value of a csv file; the columns of a parquet file as they are.
    names : list of str
        Names of the columns, without those that pandas keeps an index in.
    dialect : Dialect or None
        Of a csv file.
    reading : Reading
        How texts are read.
    categories : frozenset of str
        Columns that the file says are categories, whatever their values.
    """

    name: str
    data: pa.Table
    names: list[str]
    dialect: Dialect | None
    reading: Reading
    categories: frozenset[str] = frozenset()
    _columns: dict[str, Column] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return int(self.data.num_rows)

    def column(self, name: str) -> Column:
        """Column of that name, which is read once."""
        if name in self._columns:
            return self._columns[name]
        values = self.data.column(self.data.schema.get_field_index(name))
        of_categories = name in self.categories or pa.types.is_dictionary(values.type)
        column = Column(name, values, self.reading, is_text=self.dialect is not None, of_categories=of_categories)
        self._columns[name] = column
        return column

    def take(self, columns: Sequence[str] | None, rows: slice) -> Table:
        """Take some columns of some rows."""
        data = self.data if columns is None else self.data.select(list(columns))
        return replace(self, data=data.slice(rows.start, rows.stop - rows.start), _columns={})

    def pieces(self, columns: Sequence[str] | None = None, *, n_numbers: int = 1) -> Iterator[Table]:
        """Read all rows piece by piece.

        Parameters
        ----------
        columns : sequence of str, default=None
            Which columns are needed; None: all.
        n_numbers : int
            Numbers that will be made of a row, by which pieces are the smaller.

        Yields
        ------
        Table
        """
        size = max(FEWEST_ROWS, PIECE_BYTES // (8 * max(1, n_numbers)))
        for start in range(0, len(self), size):
            yield self.take(columns, slice(start, min(start + size, len(self))))

    def where(self, rows: NDArray[np.bool_]) -> Table:
        """Rows for which a mask of shape (n_rows,) holds."""
        return replace(self, data=self.data.filter(pa.array(rows)), _columns={})


def format_of(path: Path) -> str | None:
    """Say what a file is by the end of its name: ``csv``, ``tsv``, ``parquet``, or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}.get(suffixes[-1] if suffixes else "")


def read_table(path: Path, reading: Reading, tell: Tell) -> Table:
    """Read a csv or parquet file.

    Parameters
    ----------
    path : Path
        A file whose name ends in ``.csv``, ``.tsv`` (either with ``.gz``) or ``.parquet``, a pipe, or ``-`` for
        standard input.
    reading : Reading
        What the user said about it; the rest is guessed.
    tell : callable
        Receives a sentence about what was guessed.

    Returns
    -------
    Table
        All rows, in the order of the file.

    Raises
    ------
    UsageError
        If the file is absent, is no table, has no rows, has rows of different lengths, or has two columns of one name.
    """
    content = _content(path)
    shown = "standard input" if str(path) == "-" else path.name
    try:
        if content[:4] == b"PAR1":
            table = _read_parquet(shown, content, reading)
        elif format_of(path) == "parquet":
            raise UsageError(f"{shown} cannot be read as parquet: it does not begin with PAR1.")
        else:
            table = _read_csv(shown, content, reading, tell, "\t" if format_of(path) == "tsv" else None)
    except (pa.ArrowException, MemoryError, OSError, OverflowError) as error:
        kind = "parquet" if content[:4] == b"PAR1" else "csv"
        raise UsageError(f"{shown} cannot be read as {kind}: {first_line(error)}") from error
    doubles = [name for i, name in enumerate(table.names) if name in table.names[:i]]
    if doubles:
        raise UsageError(f"{shown} has more than one column named {doubles[0]!r}; rename one.")
    if len(table) == 0:
        raise UsageError(f"{shown} has no rows.")
    return table


def first_line(error: BaseException) -> str:
    """First line of what an error says, without a full stop at the end."""
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _content(path: Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read()
    if path.is_dir():
        raise UsageError(f"{path} is a directory, not a csv or parquet file.")
    if not path.exists():
        raise UsageError(f"there is no file {path}.")
    if format_of(path) is None and not is_special(path):
        raise UsageError(f"{path} must end in .csv, .tsv (or either with .gz) or .parquet, which names its format.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}.") from error


# ---- parquet


def _read_parquet(shown: str, content: bytes, reading: Reading) -> Table:
    given = [
        option
        for option, value in (
            ("--separator", reading.separator),
            ("--decimal", reading.decimal),
            ("--encoding", reading.encoding),
        )
        if value is not None
    ]
    if given:
        raise UsageError(f"{given[0]} belongs to csv files, and {shown} is parquet.")
    return table_of_parquet(shown, parquet.read_table(pa.BufferReader(content)), reading)


def table_of_parquet(shown: str, data: pa.Table, reading: Reading) -> Table:
    """Columns of a parquet file as they are, without those that pandas keeps an index in."""
    views = [i for i, kind in enumerate(data.schema.types) if str(kind) == "string_view"]
    for i in views:  # which few functions take
        data = data.set_column(i, data.schema.field(i).with_type(pa.string()), data.column(i).cast(pa.string()))
    known = data.schema.pandas_metadata or {}
    stored = {name for name in known.get("index_columns", []) if isinstance(name, str)}
    # Categories that are numbers are stored as numbers.
    categories = {c["field_name"] for c in known.get("columns", []) if c["pandas_type"] == "categorical"}
    names = [name for name in data.column_names if name not in stored]
    return Table(shown, data, names, None, reading, frozenset(categories))


# ---- csv


def _read_csv(shown: str, content: bytes, reading: Reading, tell: Tell, separator: str | None) -> Table:
    gzipped = content[:2] == b"\x1f\x8b"
    if gzipped:
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, ValueError) as error:
            raise UsageError(f"{shown} cannot be unpacked as gzip: {first_line(error)}.") from error
    if content[:4] == b"PK\x03\x04":
        raise UsageError(f"{shown} cannot be read as csv: it is a zip archive or a spreadsheet; save the sheet as csv.")
    return csv_head(shown, content, reading, tell, separator, gzipped=gzipped)[0]


def csv_head(
    shown: str, content: bytes, reading: Reading, tell: Tell, separator: str | None, *, gzipped: bool
) -> tuple[Table, bool, int]:
    """Read the text of a csv file, or its beginning up to the end of a row.

    Returns
    -------
    table : Table
        The rows.
    trailing : bool
        Whether every row ends in a separator.
    n_lines : int
        Lines before the first row.
    """
    encoding = reading.encoding or _guess_encoding(content)
    text = _decode(shown, content, encoding)
    if "\0" in text:
        raise UsageError(f"{shown} cannot be read as csv: it holds NUL characters, which no text does.")
    if not text.strip():
        raise UsageError(f"{shown} cannot be read as csv: it is empty.")
    guessed = []
    if reading.encoding is None and encoding not in ("utf-8", "utf-8-sig"):
        guessed.append(f"{_SHOWN.get(encoding, encoding)} text (--encoding)")
    if reading.separator is not None:
        separator = reading.separator
    elif separator is None:
        separator = _guess_separator(text)
        if separator != ",":
            guessed.append(f"values separated by {_SEPARATORS[separator]} (--separator)")
    names, quoted_names, start = _header(text, separator)
    body = text[start:]
    data, trailing = _parse(shown, body, names, separator, tell)
    decimal = reading.decimal
    if decimal is None:
        decimal = _guess_decimal(data)
        if decimal == ",":
            guessed.append("decimal commas (--decimal)")
    if decimal == separator:
        raise UsageError(f"the separator and the decimal point of {shown} cannot both be {decimal!r}.")
    if gzipped:
        guessed.append("gzip")
    if guessed:
        tell(f"{shown} is read as {_listed(guessed)}.")
    dialect = Dialect(
        separator=separator,
        decimal=decimal,
        encoding=encoding,
        newline=_newline(text[: start + 1]),
        gzipped=gzipped,
        quoted=_quoted(body, names, separator),
        quoted_names=quoted_names,
    )
    table = Table(shown, data, list(data.column_names), dialect, replace(reading, decimal=decimal))
    return table, trailing, len(re.findall(r"\r\n|\n|\r", text[:start]))


def _newline(header: str) -> str:
    if "\r\n" in header:
        return "\r\n"
    return "\r" if "\r" in header and "\n" not in header else "\n"


def _guess_encoding(content: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return encoding
    sample = content[:4096]
    for encoding, zeros in (("utf-16-le", sample[1::2]), ("utf-16-be", sample[::2])):
        if zeros.count(0) > len(zeros) / 2:
            return encoding
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        # Windows' own encoding has letters where Latin-1 has control characters.
        return "cp1252" if re.search(rb"[\x80-\x9f]", content) else "latin-1"
    return "utf-8"


def _decode(shown: str, content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except LookupError:
        raise UsageError(
            f"--encoding {encoding!r} is no encoding that Python knows, such as utf-8 or latin-1."
        ) from None
    except UnicodeDecodeError as error:
        where = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{shown} cannot be read as csv: it is no {_SHOWN.get(encoding, encoding)} text, for line {where} holds "
            f"the byte 0x{content[error.start]:02x}; --encoding names another encoding."
        ) from None


def _guess_separator(text: str) -> str:
    """Choose the separator that gives rows of the header's length, and the longest if several do."""
    best, key = ",", (0.0, 1)
    for separator in _SEPARATORS:
        lengths = []
        try:
            for record in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
                if record:
                    lengths.append(len(record))
                if len(lengths) > _SAMPLE:
                    break
        except csv.Error:
            continue
        if not lengths or lengths[0] == 1:
            continue
        rows = lengths[1:]
        share = rows.count(lengths[0]) / len(rows) if rows else 1.0
        if (share, lengths[0]) > key:
            best, key = separator, (share, lengths[0])
        elif key == (0.0, 1):
            best = separator  # nothing fits; the message will say what does not
    return best


def _header(text: str, separator: str) -> tuple[list[str], bool, int]:
    """Names of the columns, whether they are quoted, and where the rows begin."""
    consumed = 0

    def lines() -> Iterator[str]:
        nonlocal consumed
        for line in io.StringIO(text, newline=""):
            consumed += len(line)
            yield line

    try:
        for record in csv.reader(lines(), delimiter=separator):
            if record:
                first = text[:consumed].lstrip("\r\n")
                return record, first.startswith('"'), consumed
    except csv.Error as error:
        raise UsageError(f"the names of the columns cannot be read: {first_line(error)}.") from error
    return [], False, consumed


def _parse(shown: str, body: str, names: list[str], separator: str, tell: Tell) -> tuple[pa.Table, bool]:
    """Values as text, row by row as long as the header; and whether a separator follows every row."""
    content = body.encode("utf-8", "surrogatepass")
    data, wrong = _parse_rows(content, len(names), separator)
    trailing = False
    if data is None and wrong is not None and wrong.actual_columns == len(names) + 1 and names[-1] != "":
        longer, _ = _parse_rows(content, len(names) + 1, separator)
        if longer is not None and set(longer.column(len(names)).unique().to_pylist()) <= {""}:
            data, trailing = longer.select(range(len(names))), True
            tell(f"every row of {shown} ends in a separator; the empty value after it is left out.")
    if data is None:
        assert wrong is not None
        raise UsageError(wrong_length(shown, wrong, names, separator))
    return data.rename_columns(names), trailing


def _parse_rows(content: bytes, n_columns: int, separator: str) -> tuple[pa.Table | None, Any]:
    """Parse the rows below the header: all of them, or the first one of another length."""
    names = [str(j) for j in range(n_columns)]
    if not content.strip():
        return pa.table({name: pa.array([], pa.string()) for name in names}), None
    wrong: list[Any] = []

    def refuse(row: Any) -> str:
        wrong.append(row)
        return "error"

    try:
        data = arrow_csv.read_csv(
            pa.BufferReader(content),
            # In one thread rows have numbers; a block must hold the longest row.
            read_options=arrow_csv.ReadOptions(column_names=names, use_threads=False, block_size=1 << 24),
            parse_options=arrow_csv.ParseOptions(
                delimiter=separator,
                newlines_in_values=True,
                invalid_row_handler=refuse,
                ignore_empty_lines=n_columns > 1,
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        if not wrong:
            raise
        return None, wrong[0]
    return data, None


def wrong_length(shown: str, row: Any, names: Sequence[str], separator: str) -> str:
    """Say which row has too few or too many values."""
    text = row.text.rstrip("\r\n")
    quoted = repr(text if len(text) <= _LONGEST else text[:_LONGEST] + "…")
    where = "a row" if row.number is None else f"row {row.number}"
    message = (
        f"{where} of {shown} has {count(row.actual_columns, 'value')} and the header has "
        f"{count(len(names), 'name')}: {quoted}. "
    )
    if row.actual_columns > len(names) and text.endswith(separator):
        return message + "It ends in a separator too many; remove it."
    if separator == "," and row.actual_columns > len(names) and re.search(r"\d,\d", text):
        return message + "Numbers with decimal commas must be quoted, or separated by semicolons (--separator ';')."
    return message + "Every row must have a value for each name; --separator says what stands between them."


def _guess_decimal(data: pa.Table) -> str:
    """Decimal comma, if the first rows have numbers with commas and none with points.

    Commas before three digits only may as well separate thousands.
    """
    found = False
    for column in data.slice(0, _SAMPLE).columns:
        for text in map(str.strip, column.to_pylist()):
            if re.fullmatch(r"[+-]?\d*\.\d+", text):
                return "."
            if re.fullmatch(r"[+-]?\d*,\d+", text) and not re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", text):
                found = True
    return "," if found else "."


def _quoted(body: str, names: Sequence[str], separator: str) -> frozenset[str]:
    """Columns whose value in the first row is quoted."""
    if '"' not in body[:100_000]:
        return frozenset()
    mark = re.escape(separator)
    fields = re.match(
        rf'(?:(?:"(?:[^"]|"")*"|[^{mark}\r\n]*)(?:{mark}|\r?\n|\r|$)){{{len(names)}}}', body.lstrip("\r\n")
    )
    if fields is None:
        return frozenset()
    found = re.findall(rf'("(?:[^"]|"")*"|[^{mark}\r\n]*)(?:{mark}|\r?\n|\r|$)', fields[0])
    return frozenset(name for name, field in zip(names, found, strict=False) if field.startswith('"'))


def _listed(parts: Iterable[str]) -> str:
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last
