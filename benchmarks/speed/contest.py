"""What is measured: a case builds its input once and gives the contenders that solve it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from benchmarks import timing

# ours; the same answer by other means; a different answer to the same question; a part of the work at full speed
Kind = Literal["ours", "same", "peer", "limit"]


@dataclass(frozen=True)
class Case:
    """One line of work; ``variant`` is the covariance model, the intervention or the quantity that grows."""

    operation: str
    n_features: int
    n_rows: int = 0
    n_cells: int = 0
    dtype: str = "float32"
    variant: str = ""
    seconds: float = 3.0  # of rounds, after a first run of each
    rounds: int = 15

    @property
    def n_classes(self) -> int:
        return self.n_cells // 2

    @property
    def is_long(self) -> bool:
        return self.operation == "projection" and self.n_features > 2048

    def title(self) -> str:
        parts = [self.operation, self.variant, f"d = {self.n_features:,}"]
        parts += [f"n = {self.n_rows:,}"] if self.n_rows else []
        parts += [f"{self.n_cells} cells"] if self.n_cells else []
        parts += [self.dtype] if self.n_rows else []
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Contender:
    """One way to an answer.

    ``error`` is relative, against a float64 oracle; None where there is no answer (limits). ``calls`` runs count as
    one measurement, for what takes microseconds.
    """

    name: str
    kind: Kind
    run: Callable[[], Any]
    error: Callable[[Any], float] | None = None
    tolerance: float = np.inf
    calls: int = 1
    work: float = 0.0  # bytes that a limit moves, for its rate


@dataclass(frozen=True)
class Contest:
    contenders: Sequence[Contender]
    output_bytes: int = 0


@dataclass
class Result:
    """What a contender did: seconds a round (paired with the others' by position), error, memory beyond the input."""

    name: str
    kind: Kind
    seconds: list[float]
    error: float | None = None
    tolerance: float = np.inf
    peak: int | None = None
    work: float = 0.0

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def wrong(self) -> bool:
        # "not <=" would let NaN through the other way round
        return self.error is not None and not self.error <= self.tolerance


@dataclass
class Measurement:
    case: Case
    threads: int
    results: list[Result]
    output_bytes: int = 0
    info: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Result:
        return next(result for result in self.results if result.name == name)

    def ratios(self, one: str, other: str) -> list[float]:
        """Time of ``one`` over that of ``other``, round by round; of medians where one of the two ran only once."""
        first, second = self[one].seconds, self[other].seconds
        if len(first) != len(second):
            return [self[one].median / self[other].median]
        return [a / b for a, b in zip(first, second, strict=True)]

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Measurement:
        results = [Result(**result) for result in record["results"]]
        return cls(Case(**record["case"]), record["threads"], results, record["output_bytes"], record["info"])


def race(case: Case, contest: Contest, threads: int, clock: timing.Clock = time.perf_counter) -> Measurement:
    """Answers once, then rounds in turns; a rival that took a fourth of the case's seconds at first has only that."""
    results = []
    for contender in contest.contenders:
        answer, spent, peak = _first(contender.run, clock)
        error = contender.error(answer) if contender.error is not None else None
        # Where a run takes long, there is no second process for its memory.
        own = peak if case.is_long and contender.kind != "limit" else None
        results.append(Result(contender.name, contender.kind, [spent], error, contender.tolerance, own, contender.work))
        del answer  # as large as the input, some of them
    again = [
        i
        for i, result in enumerate(results)
        if result.seconds[0] <= case.seconds / 4 or (result.kind in ("ours", "limit") and not case.is_long)
    ]
    if again:
        runs = [_repeated(contest.contenders[i]) for i in again]
        found = timing.paired(runs, budget=case.seconds, rounds=case.rounds, clock=clock)
        for i, seconds in zip(again, found, strict=True):
            results[i].seconds = [spent / contest.contenders[i].calls for spent in seconds]
    return Measurement(case, threads, results, contest.output_bytes)


def peaks(contest: Contest) -> list[int | None]:
    """Extra memory of each contender that has an answer, in this process."""
    return [
        None if contender.kind == "limit" else timing.extra_peak_memory(contender.run)
        for contender in contest.contenders
    ]


def _first(run: Callable[[], Any], clock: timing.Clock) -> tuple[Any, float, int]:
    """Answer, seconds and extra memory."""
    answers: list[Any] = []
    start = clock()
    peak = timing.extra_peak_memory(lambda: answers.append(run()))
    return answers[0], clock() - start, peak


def _repeated(contender: Contender) -> Callable[[], Any]:
    if contender.calls == 1:
        return contender.run

    def run() -> None:
        for _ in range(contender.calls):
            contender.run()

    return run


def relative(ours: Any, truth: Any, axes: tuple[int, ...] | None = None) -> float:
    """Largest difference over the largest value; ``axes``: of the worst of the parts that these axes hold."""
    difference, scale = np.abs(ours - truth).max(axis=axes), np.abs(truth).max(axis=axes)
    return float(np.max(np.divide(difference, scale, out=np.zeros_like(difference), where=scale > 0)))
