"""How long, and how much memory. Both sides are measured the same way."""

from __future__ import annotations

import ctypes
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# glibc then gives every large block pages of its own and takes them back when it is freed, so that
# one case's memory does not hide in what an earlier one left behind.
MEMORY_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measured:
    """One way to an answer: what came out, how long it took and how far its memory peaked."""

    answer: Any
    seconds: float
    peak: int
    rounds: int


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds * 1e6:.1f} µs"


# Seconds: those of the wall, or those of the process's processors for a machine that others use too.
Clock = Callable[[], float]


def seconds_of(run: Callable[[], Any], clock: Clock = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


def paired(
    runs: Sequence[Callable[[], Any]], *, budget: float, rounds: int = 15, clock: Clock = time.perf_counter
) -> list[list[float]]:
    """Seconds of each in every round, measured in turns so that a busy moment hits all.

    Each has run once before (the caller compared the answers). Ends after ``rounds`` rounds, or after
    the round in which ``budget`` seconds are used up.
    """
    seconds: list[list[float]] = [[] for _ in runs]
    end = clock() + budget
    for index in range(rounds):
        # Who goes first alternates too.
        for side in range(len(runs))[:: 1 if index % 2 == 0 else -1]:
            seconds[side].append(seconds_of(runs[side], clock))
        if clock() > end:
            break
    return seconds


def alternated(runs: Sequence[Callable[[], Any]], *, budget: float, rounds: int = 15) -> tuple[list[float], int]:
    """Median seconds of each over paired rounds; and the rounds."""
    seconds = paired(runs, budget=budget, rounds=rounds)
    return [statistics.median(own) for own in seconds], len(seconds[0])


def measured(runs: Sequence[Callable[[], Any]], *, budget: float) -> list[Measured]:
    """Answer, memory and time of each: a first run for the memory, then rounds in turns for the time.

    When the first runs took more than the budget there are no others (0 rounds), and they are the time.
    """
    first = []
    for run in runs:
        answers: list[Any] = []

        def keep(run: Callable[[], Any] = run, answers: list[Any] = answers) -> None:
            answers.append(run())

        start = time.perf_counter()
        peak = extra_peak_memory(keep)
        first.append((answers[0], time.perf_counter() - start, peak))
    seconds, rounds = [spent for _, spent, _ in first], 0
    if sum(seconds) <= budget:
        seconds, rounds = alternated(runs, budget=budget)
    return [Measured(answer, spent, peak, rounds) for (answer, _, peak), spent in zip(first, seconds, strict=True)]


def memory_method() -> str:
    if _CLEAR.exists() and _STATUS.exists():
        return "peak resident set over its level before the call (VmHWM, reset)"
    return "growth of the largest resident set (getrusage; small calls may show as 0)"


def extra_peak_memory(run: Callable[[], Any]) -> int:
    """Bytes by which the process's resident set peaked above its level before the call."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc: what earlier calls freed goes back, and counts when taken again
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
