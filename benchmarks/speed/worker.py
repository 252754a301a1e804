"""One case in a process of its own, in which every library has the same number of threads from the start."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import threadpoolctl

from benchmarks import timing
from benchmarks.speed.contest import Case, Contest, Measurement, peaks, race

# Read by OpenBLAS, MKL, BLIS and OpenMP (PyTorch's too) when they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")

OPERATIONS = {
    "moments": ("moments", "contest"),
    "transform": ("transform", "contest"),
    "latency": ("transform", "latency"),
    "projection": ("projection", "contest"),
    "fit": ("fit", "contest"),
    "growth": ("growth", "contest"),
}

PACKAGES = ("numpy", "scipy", "scikit-learn", "POT", "torch", "concept-erasure", "cvxpy", "clarabel")


def contest_of(case: Case, threads: int) -> Contest:
    module, function = OPERATIONS[case.operation]
    made: Contest = getattr(importlib.import_module(f"benchmarks.speed.{module}"), function)(case, threads)
    return made


def measure(case: Case, threads: int, *, clock: str = "perf_counter", memory: bool = True) -> Measurement:
    """Time (by this clock of ``time``) and errors in one process, memory in another, whose allocator hides nothing."""
    measurement = Measurement.of_record(_in_process(case, threads, clock, {}))
    if memory and case.operation != "growth" and not case.is_long:
        for result, peak in zip(
            measurement.results, _in_process(case, threads, "memory", timing.MEMORY_ENVIRONMENT), strict=True
        ):
            result.peak = peak
    return measurement


def _in_process(case: Case, threads: int, what: str, environment: dict[str, str]) -> Any:
    limits = dict.fromkeys(THREAD_VARIABLES, str(threads))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.worker"],
        input=json.dumps({"case": asdict(case), "threads": threads, "what": what}),
        env={**os.environ, **limits, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{case.title()}, {threads} threads: the process that measures {what} failed")
    return json.loads(done.stdout)


def main() -> None:
    asked = json.load(sys.stdin)
    case, threads = Case(**asked["case"]), asked["threads"]
    answer: Any
    # Rivals print; what is measured goes out alone.
    out, sys.stdout = sys.stdout, sys.stderr
    if asked["what"] == "memory":
        small = replace(case, n_features=16, n_rows=min(case.n_rows, 400), n_cells=min(case.n_cells, 4))
        for contender in contest_of(small, threads).contenders:  # modules and thread pools are there before
            contender.run()
        answer = peaks(contest_of(case, threads))
    else:
        measurement = race(case, contest_of(case, threads), threads, getattr(time, asked["what"]))
        measurement.info = {"libraries": libraries(), "packages": packages(), "clock": asked["what"]}
        answer = measurement.record()
    json.dump(answer, out)


def libraries() -> list[str]:
    """BLAS and OpenMP libraries of this process with their threads; no paths."""
    names = ("internal_api", "version", "architecture")
    found = []
    for library in threadpoolctl.threadpool_info():
        parts = [str(library[name]) for name in names if library.get(name) is not None]
        found.append(f"{library['prefix']}: {', '.join(parts)}, {library['num_threads']} threads")
    return found


def packages() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


if __name__ == "__main__":
    main()
