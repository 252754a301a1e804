"""``python -m benchmarks.stream``: a tied fit of many features from a stream of float16 batches, phase by phase.

By default 4096 features in 28 classes and 2 groups, 16,384 rows in batches of 4096. Rows are synthetic, and made in
time that is not counted. For every phase the seconds that passed, those of the processor (all threads; they tell when
the machine is busy with other things), and how far the resident set of the process peaked.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

import fairsteer
from benchmarks import timing
from fairsteer import SubgroupMoments, nearest_ideal


class Phases:
    """Seconds and peaks of the phases, printed as they end."""

    def __init__(self) -> None:
        self.peak = 0
        print(f"{'phase':<24} {'seconds':>8} {'CPU':>8} {'peak':>10} {'after':>10}   resident set")

    def __call__(self, name: str, run: Callable[[], Any]) -> Any:
        answers: list[Any] = []
        clocks = Clocks()

        def timed() -> None:
            with clocks:
                answers.append(run())

        before = timing._resident("VmRSS")
        self.peak = max(self.peak, top := before + timing.extra_peak_memory(timed))
        [answer] = answers
        if isinstance(answer, Clocks):  # the phase knows better
            clocks = answer
        after = timing._resident("VmRSS")
        print(
            f"{name:<24} {clocks.wall:>8.2f} {clocks.cpu:>8.2f} {top / 2**20:>7.0f} MB {after / 2**20:>7.0f} MB",
            flush=True,
        )
        return answer


class Clocks:
    """Seconds on the wall and of the processor, summed over the times that it is entered."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *error: object) -> None:
        self.wall += time.perf_counter() - self._start[0]
        self.cpu += time.process_time() - self._start[1]


def batches(
    d: int, n_classes: int, n_rows: int, size: int
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]]:
    """Rows with a decaying spectrum, class means on a few directions, and groups that differ in mean and scale."""
    rng = np.random.default_rng(0)
    scales = (1 / np.sqrt(1 + np.arange(d) / 64)).astype(np.float32)
    means = rng.normal(size=(n_classes, d)).astype(np.float32) * scales
    shift = rng.normal(size=d).astype(np.float32) * 0.3 * scales
    for start in range(0, n_rows, size):
        n = min(size, n_rows - start)
        y, group = rng.integers(0, n_classes, n), rng.integers(0, 2, n)
        rows = rng.standard_normal((n, d), dtype=np.float32)
        rows *= scales * np.where(group == 1, np.float32(1.3), np.float32(1))[:, None]
        rows += means[y] + group[:, None].astype(np.float32) * shift
        yield rows.astype(np.float16), y, group


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--classes", type=int, default=28)
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--limit", type=float, default=2.0, help="GiB that the peak must stay below; status 1 if not")
    parser.add_argument("--torch", action="store_true", help="a SteeringModule at the end")
    arguments = parser.parse_args()
    fairsteer.show_versions()
    d, K = arguments.features, arguments.classes
    print(
        f"\n{d} features, {K} classes x 2 groups, {arguments.rows:,} rows of float16 in batches of {arguments.batch}\n"
    )

    phases = Phases()
    moments = SubgroupMoments(d, classes=range(K), groups=["f", "m"])

    def accumulate() -> Clocks:
        clocks = Clocks()
        for rows, y, group in batches(d, K, arguments.rows, arguments.batch):
            with clocks:
                moments.update(rows, y, group)
        return clocks

    phases("moments", accumulate)
    shrunk = phases("shrinkage", lambda: moments.shrink("ledoit_wolf"))
    ideal = phases("projection", lambda: nearest_ideal(shrunk))
    phases("maps", lambda: ideal.maps)
    if arguments.torch:
        from fairsteer.torch import SteeringModule

        phases("SteeringModule, float32", lambda: SteeringModule(ideal))
    print(f"\nKL divergence {ideal.kl_divergence:.4f} nats, {ideal.n_iter} iterations, converged: {ideal.converged}")
    below = phases.peak < arguments.limit * 2**30
    print(f"peak {phases.peak / 2**30:.2f} GiB, {'below' if below else 'NOT below'} {arguments.limit} GiB")
    return int(not below)


if __name__ == "__main__":
    sys.exit(main())
