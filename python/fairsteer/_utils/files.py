"""Writing files so that a reader finds the old one or the new one, and never half of either."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import BinaryIO, cast

if sys.platform != "win32":
    import fcntl

__all__ = ["Output", "write_file"]

_PREFIX, _SUFFIX = ".fairsteer-", ".tmp"

# Names of what is open already: opening them anew would start at the beginning of a file that others append to.
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self|proc/\d+)/fd/(\d+)")
_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}


def write_file(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write a whole file at once, as `Output` does.

    Parameters
    ----------
    path : path-like
        File to create or replace, a pipe or a device.
    content : bytes or str
        What it shall hold; text as UTF-8.

    Raises
    ------
    OSError
        If it cannot be written; what was there before is untouched then.
    """
    with Output(path) as output:
        output.file.write(content.encode() if isinstance(content, str) else content)
        output.commit()


class Output:
    """Something to write to that is the target only once it is complete.

    A regular file is written beside its target and takes the target's place in `commit`, with the permissions that the
    target had; a symbolic link stays one, and what it points to is replaced. Pipes, devices and what is open already
    (``/dev/stdout``, ``/dev/fd/3``) get their content in `commit`. Left without `commit`, nothing has happened.

    A run that is killed leaves its temporary file; the next one that writes to the same folder removes it.

    Parameters
    ----------
    target : path-like
        Where the content goes.

    Attributes
    ----------
    target : Path
        As given.
    file : BinaryIO
        Where to write; it can be sought and read.

    Raises
    ------
    OSError
        If nothing can be written there.
    """

    def __init__(self, target: str | os.PathLike[str]) -> None:
        self.target = Path(target)
        self._descriptor = descriptor_of(self.target)
        self._replaced: Path | None = None
        if self._descriptor is not None or is_special(self.target):
            self._temporary, self.file = _temporary(Path(tempfile.gettempdir()), 0o600)
        else:
            self._replaced = Path(os.path.realpath(self.target))
            self._temporary, self.file = _temporary(self._replaced.parent, 0o666)

    def __enter__(self) -> Output:
        return self

    def commit(self) -> None:
        """Put the content where it belongs."""
        self.file.flush()
        if self._replaced is None:
            self.file.seek(0)
            with self._open_special() as special:
                shutil.copyfileobj(self.file, special, 1 << 20)
            return
        if self._replaced.exists():
            shutil.copymode(self._replaced, self._temporary)
        if sys.platform == "win32":
            self.file.close()  # Windows moves no file that is open; elsewhere the lock lasts until it has moved
        os.replace(self._temporary, self._replaced)

    def _open_special(self) -> BinaryIO:
        if self._descriptor is None:
            return self.target.open("wb", buffering=0)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()  # what was printed comes first
        return cast("BinaryIO", os.fdopen(os.dup(self._descriptor), "wb"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if sys.platform == "win32":
            self.file.close()  # Windows removes no file that is open; elsewhere the lock lasts until it is removed
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)
        self.file.close()


def descriptor_of(path: Path) -> int | None:
    """Descriptor that a path stands for; None if it is the path of a file.

    Parameters
    ----------
    path : Path
        ``/dev/stdout``, ``/dev/fd/3`` or any other.

    Returns
    -------
    int or None
        1 for standard output.
    """
    found = _DESCRIPTOR.fullmatch(str(path))
    return int(found[1]) if found else _STANDARD.get(str(path))


def is_special(path: Path) -> bool:
    """Whether a path leads to a pipe, a device or a socket, which must not be replaced by a file.

    Parameters
    ----------
    path : Path
        A path; links are followed.

    Returns
    -------
    bool
        False also where there is nothing.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _temporary(folder: Path, mode: int) -> tuple[Path, BinaryIO]:
    """Create a locked file in a folder, after removing what dead runs left there."""
    for leftover in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        _remove_abandoned(leftover)
    while True:
        path = folder / f"{_PREFIX}{token_hex(6)}{_SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        file = cast("BinaryIO", os.fdopen(descriptor, "w+b"))
        if _lock(descriptor) is not False and path.exists():
            return path, file
        file.close()  # another run took it for a leftover before it was locked


def _remove_abandoned(path: Path) -> None:
    """Remove a temporary file that no run holds."""
    with suppress(OSError):
        if sys.platform == "win32":
            path.unlink()  # refused while it is open
            return
        descriptor = os.open(path, os.O_RDWR)
        try:
            if _lock(descriptor):
                path.unlink()
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Lock an open file: False if another run holds it, None if the file system has no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
