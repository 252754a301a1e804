"""Reading tables, and writing them so that a failure leaves the old file as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ._errors import UsageError

__all__ = [
    "Replacement",
    "TableWriter",
    "check_output",
    "check_target_folder",
    "read_header",
    "read_table",
]

_FORMATS = (".csv", ".parquet")


def read_table(path: Path, text_columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a csv or parquet file; column names become text.

    Parameters
    ----------
    path : Path
        File whose extension is ``.csv`` or ``.parquet``.
    text_columns : sequence of str
        Columns of a csv file to read as text whatever they look like, so that a code like ``01``
        stays what it was.

    Returns
    -------
    DataFrame
        All rows, in the order of the file.

    Raises
    ------
    UsageError
        If the file is absent, is no table, has no rows, or has two columns of one name.
    """
    _check_extension(path)
    if path.is_dir():
        raise UsageError(f"{path} is a directory, not a csv or parquet file.")
    if not path.exists():
        raise UsageError(f"there is no file {path}.")
    try:
        frame = _read(path, text_columns)
    except ImportError as error:
        raise UsageError(f'reading {path.name} needs pyarrow: pip install "fairsteer[cli]" brings it.') from error
    except Exception as error:  # the readers raise whatever their parsers raise; every one means the same to the user
        raise UsageError(f"{path} cannot be read as {_kind(path)}: {_first_line(error)}") from error
    frame.columns = pd.Index([str(name) for name in frame.columns], dtype=object)
    doubles = frame.columns[frame.columns.duplicated()]
    if len(doubles):
        raise UsageError(f"{path.name} has more than one column named {doubles[0]!r}.")
    if len(frame) == 0:
        raise UsageError(f"{path.name} has no rows.")
    return frame


def read_header(path: Path) -> list[str]:
    """Column names of a csv file as pandas would name them; empty for other formats.

    Parameters
    ----------
    path : Path
        A file that exists.

    Returns
    -------
    list of str
        Names, in the order of the file.
    """
    if path.suffix.lower() != ".csv" or not path.is_file():
        return []
    try:
        return [str(name) for name in pd.read_csv(path, nrows=0).columns]
    except Exception:  # read_table reports it
        return []


def check_output(path: Path, *, sources: Iterable[Path], overwrite: bool) -> None:
    """Refuse an output path before the work is done instead of after.

    Parameters
    ----------
    path : Path
        Where a table is to be written.
    sources : iterable of Path
        Input files, which `path` may only be when `overwrite` is given.
    overwrite : bool
        Whether an input file may be replaced.

    Raises
    ------
    UsageError
        For a wrong extension, a directory, a folder that is absent or not writable, or an input
        file.
    """
    _check_extension(path)
    check_target_folder(path)
    for source in sources:
        if path.exists() and source.exists() and path.samefile(source) and not overwrite:
            raise UsageError(f"{path} is the input file itself; pass --overwrite to replace it.")


def check_target_folder(path: Path) -> None:
    """Refuse a path that cannot be written, whatever its extension.

    Parameters
    ----------
    path : Path
        Where a file is to be written.

    Raises
    ------
    UsageError
        For a directory, or a folder or file that is absent or not writable.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a directory; name a file to write.")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist.")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UsageError(f"{path} cannot be written: permission denied.")


class Replacement:
    """A temporary file beside the target, which takes the target's place in `commit` or vanishes.

    Parameters
    ----------
    target : Path
        File to create or replace.
    """

    def __init__(self, target: Path) -> None:
        self.target = target.resolve()  # a link stays a link: what it points to is replaced
        self.path = self.target.with_name(f".{self.target.stem}.{os.getpid()}.tmp{self.target.suffix}")

    def __enter__(self) -> Replacement:
        return self

    def commit(self) -> None:
        """Put the finished file in the target's place, with the permissions the target had."""
        try:
            if self.target.exists():
                shutil.copymode(self.target, self.path)
            os.replace(self.path, self.target)
        except OSError as error:
            raise UsageError(f"{self.target} cannot be written: {error.strerror}.") from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.path.unlink(missing_ok=True)


class TableWriter:
    """Write a long table in pieces, as parquet or csv by the extension.

    Parameters
    ----------
    path : Path
        File to create.
    carried : DataFrame
        The columns that pass through unchanged, all rows. Its index is kept: in parquet as it is,
        in csv as leading columns unless it is the plain row number.
    features : sequence of str
        Names of the numeric columns that `write` receives; they come first in the file.

    Raises
    ------
    UsageError
        When the file cannot be written.
    """

    def __init__(self, path: Path, carried: pd.DataFrame, features: Sequence[str]) -> None:
        self._path, self._carried, self._features = path, carried, list(features)
        self._csv: TextIO | None = None
        self._parquet: Any = None

    def __enter__(self) -> TableWriter:
        try:
            if self._path.suffix.lower() == ".csv":
                self._csv = self._path.open("w", encoding="utf-8", newline="")
            else:
                self._open_parquet()
        except OSError as error:
            raise self._problem(error) from error
        return self

    def write(self, values: NDArray[np.float64], rows: slice) -> None:
        """Append the next rows.

        Parameters
        ----------
        values : ndarray of shape (n_rows, n_features)
            Their numeric columns.
        rows : slice
            Which rows of `carried` they are.
        """
        carried = self._carried.iloc[rows]
        piece = pd.concat([pd.DataFrame(values, columns=self._features, index=carried.index), carried], axis=1)
        try:
            if self._csv is not None:
                piece.to_csv(self._csv, header=rows.start == 0, index=self._csv_index(), lineterminator="\n")
            else:
                self._write_parquet(piece)
        except OSError as error:
            raise self._problem(error) from error

    def _open_parquet(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        # The types of the whole table, index included, before its first piece is written: a piece
        # may hold only missing values.
        zeros = np.broadcast_to(np.float64(0), (len(self._carried), len(self._features)))
        numbers = pd.DataFrame(zeros, columns=self._features, index=self._carried.index)
        try:
            self._schema = pa.Schema.from_pandas(pd.concat([numbers, self._carried], axis=1))
        except pa.ArrowException as error:
            raise UsageError(
                f"parquet cannot hold the columns that are kept as they are: {_first_line(error)}"
            ) from error
        self._parquet = pq.ParquetWriter(self._path, self._schema)

    def _write_parquet(self, piece: pd.DataFrame) -> None:
        import pyarrow as pa

        table = pa.Table.from_pandas(piece, schema=self._schema)
        self._parquet.write_table(table.replace_schema_metadata(self._schema.metadata))

    def _csv_index(self) -> bool:
        index = self._carried.index
        return not (isinstance(index, pd.RangeIndex) and index.start == 0 and index.step == 1 and index.name is None)

    def _problem(self, error: OSError) -> UsageError:
        return UsageError(f"{self._path.parent} cannot be written to: {error.strerror or error}.")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in (self._csv, self._parquet):
            if handle is not None:
                handle.close()


def _read(path: Path, text_columns: Sequence[str]) -> pd.DataFrame:
    if path.suffix.lower() == ".parquet":
        return pd.read_parquet(path)
    as_text: dict[Any, Any] = {name: str for name in text_columns if name in read_header(path)}
    return pd.read_csv(path, dtype=as_text, low_memory=False)


def _check_extension(path: Path) -> None:
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"{path} must end in .csv or .parquet, which names its format.")


def _kind(path: Path) -> str:
    return path.suffix.lower().lstrip(".")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
