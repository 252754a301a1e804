"""``python -m benchmarks.speed``: time, memory and error beside every rival and beside the machine's own limits.

Exits with status 1 when an answer is farther from the float64 oracle than its tolerance; speed has no such limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import fairsteer
from benchmarks.speed import plans, report
from benchmarks.speed.claims import claims
from benchmarks.speed.contest import Measurement
from benchmarks.speed.worker import measure


def section_of(operation: str) -> str:
    return "transform" if operation == "latency" else operation


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_const", const="quick", dest="plan", help="small sizes (the default)")
    sizes.add_argument("--must", action="store_const", const="must", dest="plan", help="the cases behind the claims")
    sizes.add_argument("--full", action="store_const", const="full", dest="plan", help="every size (hours)")
    parser.add_argument("--only", choices=plans.SECTIONS, help="one section")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads, 1 2 by default")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="counts that in place of the time that passes: for a machine that others use, and one thread",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes every number there as well")
    parser.add_argument("--report", type=Path, metavar="FILE", help="writes the tables there as a page")
    arguments = parser.parse_args()
    if min(arguments.threads) < 1:
        parser.error("--threads: at least 1")
    clock = "process_time" if arguments.processor_time else "perf_counter"
    if arguments.processor_time and max(arguments.threads) > 1:
        parser.error("--processor-time adds up what threads spend, waiting too: use --threads 1")

    fairsteer.show_versions()
    print(f"  CPU: {report.cpu()}\n")
    chosen = getattr(plans, arguments.plan or "quick")(sorted(set(arguments.threads)))
    start = time.perf_counter()
    measurements: list[Measurement] = []
    for case, threads in chosen:
        if arguments.only in (None, section_of(case.operation)):
            # With more threads more buffers: the largest number stands for all.
            memory = threads == max(arguments.threads)
            measurements.append(measure(case, threads, clock=clock, memory=memory))
            print(report.section(measurements[-1]), flush=True)
    print("\n".join(report.environment(measurements)))
    found = list(claims(measurements))
    if found:
        print(f"\n{report.verdicts(found)}")
    print(f"\n{time.perf_counter() - start:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps([m.record() for m in measurements], indent=1) + "\n")
    if arguments.report:
        arguments.report.write_text(report.page(measurements))
    wrong = [(m, result) for m in measurements for result in m.results if result.wrong]
    for m, result in wrong:
        said = f"error {result.error:.1e}, tolerance {result.tolerance:g}"
        print(f"{m.case.title()}, {m.threads} threads: {result.name}: {said}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
