"""The command line: ``fairsteer demo``, ``steer``, ``audit``, ``apply``, ``export``, ``versions``.

One job per module: `_app` declares the commands, `_options` says what their options may be, `_jobs`
runs them, `_audit` and `_export` do both for theirs, `_files` reads and writes, `_tabular` turns columns into
numbers, `_evaluate` measures before and after, `_report` prints. This module only holds the console
entry, so that it can say in a sentence what to install when the extra ``cli`` is missing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ._errors import UsageError

__all__ = ["main"]

_NEEDED = ("typer", "rich", "pandas")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    The code is 0 for success, 2 for bad input (one sentence on stderr), 1 for a defect of fairsteer.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments without the program's name; by default those of the process.

    Raises
    ------
    SystemExit
        Always, with the exit code.
    """
    try:
        from ._app import app
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in _NEEDED:
            raise
        _fail(f'the command line needs {package}: pip install "fairsteer[cli]" brings it.')
    try:
        code = app(
            args=None if arguments is None else list(arguments),
            prog_name="fairsteer",
            standalone_mode=False,
        )
    except UsageError as problem:
        _fail(str(problem))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        _fail_on(error)
    sys.exit(code if isinstance(code, int) else 0)


def _fail_on(error: Exception) -> None:
    """Report what no job expected: a wrong option (typer's exceptions) or a defect."""
    explain = getattr(error, "format_message", None)
    if explain is not None:
        sentence = " ".join(explain().split())  # choices come on lines of their own
        _fail(f"{sentence} Try: fairsteer --help", getattr(error, "exit_code", 2))
    if type(error).__name__ == "Abort":  # typer's answer to an interrupt
        sys.exit(130)
    if os.environ.get("FAIRSTEER_TRACEBACK"):
        raise error
    _fail(
        f"unexpected {type(error).__name__}: {error} (a defect of fairsteer, please report it; "
        "FAIRSTEER_TRACEBACK=1 shows where it happened)",
        1,
    )


def _fail(sentence: str, code: int = 2) -> None:
    sys.stderr.write(f"fairsteer: {sentence}\n")
    sys.exit(code)
