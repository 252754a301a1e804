"""What other commands have saved, maps and moments: from files, from pipes, and from standard input."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from fairsteer import persistence
from fairsteer._utils.files import is_special

from . import UsageError

__all__ = ["load_saved", "name_of", "write_saved"]


def load_saved(path: Path, what: str) -> tuple[Any, dict[str, Any]]:
    """Load what was saved, and what was saved beside it.

    Parameters
    ----------
    path : Path
        A file, a pipe, or ``-`` for standard input.
    what : str
        What it should be, for the message where there is nothing.

    Returns
    -------
    value : object
        As `fairsteer.persistence.load` gives it.
    extra : dict
        The extra block; empty without one.

    Raises
    ------
    UsageError
        If there is no such file, or it cannot be read.
    """
    try:
        with _as_file(path) as file:
            try:
                return persistence.load(file), persistence.read_extra(file) or {}
            except (ImportError, ValueError, OSError) as error:
                if isinstance(error, FileNotFoundError):
                    raise
                text = " ".join(str(error).split())
                raise UsageError(text.replace(str(file), name_of(path))) from error
    except FileNotFoundError:
        raise UsageError(f"there is no {what} {path}.") from None


def write_saved(value: Any, extra: dict[str, Any], file: BinaryIO, what: str) -> None:
    """Write a value and what belongs to it, by way of a file of its own.

    Parameters
    ----------
    value : object
        As `fairsteer.persistence.save` takes it.
    extra : dict
        The extra block.
    file : BinaryIO
        Where to write.
    what : str
        What it is, for the message.

    Raises
    ------
    UsageError
        If it cannot be saved.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "saved.safetensors"
        try:
            persistence.save(value, path, extra=extra)
        except (ImportError, ValueError) as error:
            raise UsageError(f"{what} cannot be saved: {error}") from error
        with path.open("rb") as saved:
            shutil.copyfileobj(saved, file)


def name_of(path: Path) -> str:
    """Name of an input, for messages."""
    return "standard input" if str(path) == "-" else str(path)


@contextmanager
def _as_file(path: Path) -> Iterator[Path]:
    """Give a file that can be read more than once."""
    if str(path) != "-" and not is_special(path):
        yield path
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "saved.safetensors"
        copy.write_bytes(sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes())
        yield copy
