"""The command line: ``fairsteer demo``, ``steer``, ``audit``, ``apply``, ``export``, ``versions``.

`_app` declares the commands and `_options` what their options may be; neither imports anything heavy, so that help is
there at once. One module a command does the job. `_reading` and `_writing` know files, `_columns` and `_table` what is
in them, `_question` which rows have a class and a group, `_fitting` what the commands that fit have in common,
`_comparison` what is measured, `_printing` how it is shown. This module holds the console entry, so that it can say in
a sentence what to install when the extra ``cli`` is missing.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Sequence
from typing import TextIO

__all__ = ["UsageError", "count", "main", "mute"]

_NEEDED = ("typer", "rich", "pandas", "pyarrow", "safetensors")

# What the tables are drawn with, where the terminal has only the letters of its own encoding.
_ASCII = str.maketrans({"≤": "<=", "→": "->", "×": "x", "•": "*", "…": "...", "∞": "inf", "–": "-", "—": "-", "─": "-"})


class UsageError(Exception):
    """Input that the user can put right; the message is one sentence that says how."""


def count(n: int, noun: str) -> str:
    """Write a number with its noun: ``1 row``, ``1,200 rows``.

    Parameters
    ----------
    n : int
        The number.
    noun : str
        Singular of a noun that takes an s or, after s or x, es.

    Returns
    -------
    str
        Both.
    """
    plural = "es" if noun.endswith(("s", "x")) else "s"
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}{plural}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    The code is 0 for success, 2 for bad input (one sentence on stderr), 1 for a defect of fairsteer, 130 after an
    interrupt. A pipe that its reader has closed ends nothing: files are written as asked.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments without the program's name; by default those of the process.

    Raises
    ------
    SystemExit
        Always, with the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        _adapt(stream)
    try:
        os.getcwd()
    except OSError:
        _fail("the working directory no longer exists; cd to another.")
    try:
        from ._app import app
    except ModuleNotFoundError as missing:
        _fail_on_missing(missing)
    try:
        code = app(
            args=None if arguments is None else list(arguments),
            prog_name="fairsteer",
            standalone_mode=False,
        )
        _flush()
    except UsageError as problem:
        _fail(str(problem))
    except BrokenPipeError:
        mute()
        code = 0
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as missing:
        _fail_on_missing(missing)
    except Exception as error:
        _fail_on(error)
    sys.exit(code if isinstance(code, int) else 0)


def _fail_on_missing(missing: ModuleNotFoundError) -> None:
    package = (missing.name or "").partition(".")[0]
    if package not in _NEEDED:
        raise missing
    _fail(f'the command line needs {package}: pip install "fairsteer[cli]" brings it.')


def _fail_on(error: Exception) -> None:
    """Report what no job expected: a wrong option (typer's exceptions), a system that refuses, or a defect."""
    explain = getattr(error, "format_message", None)
    if explain is not None:
        sentence = " ".join(explain().split())  # choices come on lines of their own
        command = getattr(getattr(error, "ctx", None), "command_path", None) or "fairsteer"
        _fail(f"{sentence.rstrip('.')}. Try: {command} --help", getattr(error, "exit_code", 2))
    if type(error).__name__ == "Abort":  # typer's answer to an interrupt
        sys.exit(130)
    if os.environ.get("FAIRSTEER_TRACEBACK"):
        raise error
    if isinstance(error, OSError) and error.strerror:
        _fail(f"{error.filename or 'the output'} cannot be read or written: {error.strerror}.")
    if isinstance(error, MemoryError):
        _fail("there is not enough memory for this table; --drop columns, or give fewer rows.")
    text = " ".join(str(error).split())
    _fail(
        f"unexpected {type(error).__name__}: {text[:300]} (a defect of fairsteer, please report it; "
        "FAIRSTEER_TRACEBACK=1 shows where it happened)",
        1,
    )


def _fail(sentence: str, code: int = 2) -> None:
    try:
        _flush()
        sys.stderr.write(f"fairsteer: {sentence}\n")
    except BrokenPipeError:
        mute()
    sys.exit(code)


# ---- the streams


def _adapt(stream: object) -> None:
    """Let a stream write every text, whatever its encoding: signs in other letters, the rest with their numbers."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="fairsteer")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error("fairsteer", _replace)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def mute() -> None:
    """Send to nowhere what is still to be printed, so that Python does not complain of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if _is_broken(stream):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _is_broken(stream: TextIO) -> bool:
    try:
        stream.flush()
    except BrokenPipeError:
        return True
    return False
