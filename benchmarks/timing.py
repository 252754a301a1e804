"""How long, and how much memory. Both sides are measured the same way."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# glibc then gives every large block pages of its own and takes them back when it is freed, so that
# one case's memory does not hide in what an earlier one left behind.
MEMORY_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def paired(
    ours: Callable[[], Any], theirs: Callable[[], Any], *, budget: float, rounds: int = 15
) -> tuple[float, float, int]:
    """Median seconds of each, measured in turns so that a busy moment hits both; and the rounds.

    Each has run once before (the caller compared the answers). Ends after ``rounds`` rounds, or after
    the round in which ``budget`` seconds are used up.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + budget
    for index in range(rounds):
        # Who goes first alternates too.
        for side in (0, 1) if index % 2 == 0 else (1, 0):
            run = (ours, theirs)[side]
            start = time.perf_counter()
            run()
            seconds[side].append(time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return statistics.median(seconds[0]), statistics.median(seconds[1]), len(seconds[0])


def memory_method() -> str:
    if _CLEAR.exists() and _STATUS.exists():
        return "peak resident set of a subprocess over its level before the call (VmHWM, reset)"
    return "growth of a subprocess's largest resident set (getrusage; small calls may show as 0)"


def extra_peak_memory(run: Callable[[], Any]) -> int:
    """Bytes by which the process's resident set peaked above its level before the call."""
    try:
        _CLEAR.write_text("5")  # the peak starts again from the present level
        before = _resident("VmRSS")
        run()
        return max(0, _resident("VmHWM") - before)
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit


def _resident(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in {_STATUS}")
