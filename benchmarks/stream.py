"""``python -m benchmarks.stream``: a tied fit of many features from a stream of float16 batches, phase by phase.

By default 4096 features in 28 classes and 2 groups, 16,384 rows in batches of 1024. Rows are synthetic, and made in the
time that is not counted. For every phase its seconds, and how far the resident set of the process peaked in it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fairsteer
from benchmarks import timing
from fairsteer import SubgroupMoments, nearest_ideal


class Phases:
    """Seconds and peaks of the phases, printed as they end."""

    def __init__(self) -> None:
        self.peak = 0
        print(f"{'phase':<24} {'seconds':>8} {'peak':>10} {'after':>10}   resident set")

    def __call__(self, name: str, run: Callable[[], Any]) -> Any:
        answers: list[Any] = []
        before, start = timing._resident("VmRSS"), time.perf_counter()
        extra = timing.extra_peak_memory(lambda: answers.append(run()))
        spent = time.perf_counter() - start
        self.peak = max(self.peak, before + extra)
        [answer] = answers
        if isinstance(answer, float):  # the phase knows better
            spent = answer
        after = timing._resident("VmRSS")
        print(f"{name:<24} {spent:>8.2f} {(before + extra) / 2**20:>7.0f} MB {after / 2**20:>7.0f} MB", flush=True)
        return answer


def batches(d: int, n_classes: int, n_rows: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
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
    parser.add_argument("--batch", type=int, default=1024)
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

    def accumulate() -> float:
        seconds = 0.0
        for rows, y, group in batches(d, K, arguments.rows, arguments.batch):
            start = time.perf_counter()
            moments.update(rows, y, group)
            seconds += time.perf_counter() - start
        return seconds

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
