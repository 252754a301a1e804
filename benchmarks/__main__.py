"""``python -m benchmarks``: time, memory and answers of fairsteer beside the NumPy reference, in one table.

Exits with status 1 when an answer differs from the reference's by more than the case's tolerance.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import threadpoolctl

import fairsteer
from benchmarks import timing
from benchmarks.cases import Case, cases

COLUMNS = (
    f"{'operation':<14} {'d':>4} {'cells':>5} {'rows':>6} {'dtype':<8} {'fairsteer':>10} {'reference':>10}"
    f" {'speed-up':>8} {'memory':>9} {'reference':>9} {'difference':>10} {'rounds':>6}"
)


NOTES = f"""
memory: {timing.memory_method()}, in a subprocess
time: median of alternated runs after a first one
difference: largest, relative to the largest value; projections: of the divergence and of the maps,
  all_subgroups: of the divergence alone
"""


def memory(chosen: list[Case], side: str) -> list[int]:
    """Extra peak of every case, in one subprocess that runs this side only."""
    command = [sys.executable, "-m", "benchmarks", "--memory-of", side]
    result = subprocess.run(
        command,
        input=json.dumps([asdict(case) for case in chosen]),
        env={**os.environ, **timing.MEMORY_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        sys.exit(f"the subprocess that measures memory failed:\n{result.stderr}")
    peaks: list[int] = json.loads(result.stdout)
    return peaks


def report_memory(side: str) -> None:
    """The subprocess: cases on stdin, peaks on stdout."""
    warm = (
        Case("moments", 16, 4, 0, 100, "float64"),
        Case("tied", 64, 4, 0),
        Case("transform", 64, 4, 0, 100, "float32"),
    )
    for case in warm:
        getattr(case.sides(), side)()
    peaks = []
    for fields in json.load(sys.stdin):
        sides = Case(**fields).sides()
        peaks.append(timing.extra_peak_memory(getattr(sides, side)))
    json.dump(peaks, sys.stdout)


def measure(case: Case, budget: float) -> dict[str, Any]:
    sides = case.sides()
    difference = sides.difference(sides.ours(), sides.theirs())
    (ours, theirs), rounds = timing.alternated((sides.ours, sides.theirs), budget=budget)
    return {
        **asdict(case),
        "seconds": ours,
        "reference_seconds": theirs,
        "rounds": rounds,
        "difference": difference,
        # "not >" would let NaN through
        "agrees": bool(difference <= case.tolerance),
    }


def row(result: dict[str, Any]) -> str:
    mark = "" if result["agrees"] else f"  DIFFERS (tolerance {result['tolerance']:g})"
    return (
        f"{result['operation']:<14} {result['n_features']:>4} {result['n_cells']:>5}"
        f" {result['n_rows'] or '':>6} {result['dtype']:<8}"
        f" {timing.duration(result['seconds']):>10} {timing.duration(result['reference_seconds']):>10}"
        f" {result['reference_seconds'] / result['seconds']:>7.1f}x"
        f" {result['memory'] / 2**20:>6.1f} MB {result['reference_memory'] / 2**20:>6.1f} MB"
        f" {result['difference']:>10.1e} {result['rounds']:>6}{mark}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="adds 768 features (minutes)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes every number there as well")
    parser.add_argument("--only", metavar="NAME", help="one operation, such as moments or tied")
    parser.add_argument("--budget", type=float, default=0.8, help="seconds for the rounds of a case")
    parser.add_argument("--memory-of", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        report_memory(arguments.memory_of)
        return 0

    chosen = [case for case in cases(arguments.large) if arguments.only in (None, case.operation)]
    if not chosen:
        parser.error(f"--only: no operation is called {arguments.only!r}")
    fairsteer.show_versions()
    print(NOTES)
    peaks = {side: memory(chosen, side) for side in ("ours", "theirs")}
    print(COLUMNS)
    results = []
    for case, own, other in zip(chosen, peaks["ours"], peaks["theirs"], strict=True):
        result = {**measure(case, arguments.budget), "memory": own, "reference_memory": other}
        results.append(result)
        print(row(result), flush=True)
    if arguments.json:
        record = {
            "versions": fairsteer.build_info(),
            "threads": threadpoolctl.threadpool_info(),
            "machine": platform.platform(),
            "notes": NOTES.strip(),
            "results": results,
        }
        arguments.json.write_text(json.dumps(record, indent=2, default=str) + "\n")
    wrong = [result for result in results if not result["agrees"]]
    if wrong:
        print(f"\n{len(wrong)} of {len(results)} answers differ from the reference:", file=sys.stderr)
        for result in wrong:
            print(row(result), file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
