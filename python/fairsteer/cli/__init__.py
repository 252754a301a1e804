"""The command line: ``fairsteer demo``, ``steer``, ``audit``, ``apply``, ``moments``, ``merge``, ``export``.

`_app` declares the commands and `_options` what their options may be; neither imports anything heavy, so that help is
there at once. One module a command does the job. `_reading` and `_writing` know files, `_large` and `_streams` those
that are read in pieces, `_columns` and `_table` what is
in them, `_question` which rows have a class and a group, `_fitting` what the commands that fit have in common,
`_comparison` what is measured, `_printing` how it is shown. This module holds the console entry, so that it can say in
a sentence what to install when the extra ``cli`` is missing.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
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
    # A stream that is closed is there for nobody to read.
    sys.stdout, sys.stderr = (stream or io.StringIO() for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        _adapt(stream)
    try:
        os.getcwd()
    except OSError:
        _fail("the working directory no longer exists; cd to another.")
    for package in _NEEDED:
        if _is_absent(package):
            _fail(f'the command line needs {package}: pip install "fairsteer[cli]" brings it.')
    from ._app import app

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
    except Exception as error:
        _fail_on(error, sys.argv[1:] if arguments is None else list(arguments))
    sys.exit(code if isinstance(code, int) else 0)


def _is_absent(package: str) -> bool:
    try:
        return find_spec(package) is None
    except ValueError:  # of a module that somebody took out of reach
        return True


def _fail_on(error: Exception, arguments: list[str]) -> None:
    """Report what no job expected: a wrong option (typer's exceptions), a system that refuses, or a defect."""
    explain = getattr(error, "format_message", None)
    if explain is not None:
        command = getattr(getattr(error, "ctx", None), "command_path", None) or "fairsteer"
        sentence = _about_option(error, " ".join(explain().split()), arguments)  # choices come on lines of their own
        end = "" if sentence.endswith("?") else "."
        _fail(f"{sentence.rstrip('.')}{end} Try: {command} --help", getattr(error, "exit_code", 2))
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


def _about_option(error: Exception, text: str, arguments: list[str]) -> str:
    """Say what an option must be and what it was given, which the validation leaves out."""
    rule = text.partition(": Input should be ")[2].partition(", unable")[0].rstrip(".")
    rule = rule or text.partition(" is not one of ")[2].rstrip(".").replace("', '", "' or '")
    names = getattr(getattr(error, "param", None), "opts", None) or []
    if not rule or not names:
        return text
    rule = rule.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    given = [after for before, after in pairwise(arguments) if before in names]
    given += [one.partition("=")[2] for one in arguments if one.partition("=")[0] in names and "=" in one]
    return f"{max(names, key=len)} must be {rule}" + (f", not {given[-1]}" if given else "")


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
