"""Tables, as Markdown: printed while measuring, and written as a page."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import fairsteer
from benchmarks import timing
from benchmarks.speed.claims import Claim, claims
from benchmarks.speed.contest import Measurement, Result
from benchmarks.speed.growth import SIZES, exponent_of

KINDS = {"ours": "", "same": "computes the same", "peer": "serves the same purpose", "limit": "machine's limit"}
MEGABYTE = 2**20


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned, so that it reads well as plain text too."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * w for w in widths], *rows]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def row(m: Measurement, result: Result) -> list[str]:
    ours = m.results[0].name
    ratios = m.ratios(result.name, ours)
    share = "" if result.name == ours else f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    error = "" if result.error is None else f"{result.error:.0e}" + (" WRONG" if result.wrong else "")
    memory = "" if result.peak is None else f"{result.peak / MEGABYTE:.0f} MiB"
    what = KINDS[result.kind]
    if result.work:
        what += f", {result.work / result.median / 1e9:.1f} GB/s"
    return [result.name, what, timing.duration(result.median), share, error, memory, str(len(result.seconds))]


def section(m: Measurement) -> str:
    title = f"### {m.case.title()}; {m.threads} thread{'s' * (m.threads > 1)}"
    if m.case.operation == "growth":
        fixed = {"n": "n_rows", "d": "n_features", "cells": "n_cells"}[m.case.variant.rpartition(" ")[2]]
        title = f"### growth of {m.case.variant}; {m.threads} thread{'s' * (m.threads > 1)}"
        sizes = ", ".join(
            f"{name} = {getattr(m.case, field):,}"
            for name, field in (("n", "n_rows"), ("d", "n_features"), ("cells", "n_cells"))
            if field != fixed and getattr(m.case, field)
        )
        slope, error, residual = exponent_of(m)
        head = [m.case.variant.rpartition(" ")[2], *(f"{size:,}" for size in SIZES[m.case.variant])]
        times = ["time", *(timing.duration(result.median) for result in m.results)]
        fitted = f"exponent {slope:.2f} ± {error:.2f}; residuals within {100 * (residual - 1):.0f} %"
        return f"{title}\n\n{table(head, [times])}\n\n{sizes}: {fitted}\n"
    head = ["", "", "time", "times ours", "error", "extra memory", "rounds"]
    memory = f"\nOutput: {m.output_bytes / MEGABYTE:.1f} MiB.\n" if m.output_bytes else ""
    return f"{title}\n\n{table(head, [row(m, result) for result in m.results])}\n{memory}"


def verdicts(found: Sequence[Claim]) -> str:
    rows = [[str(c.number), c.text, str(c.threads), c.found, "yes" if c.holds else "**no**"] for c in found]
    return table(["", "claim", "threads", "measured", "holds"], rows)


def environment(measurements: Sequence[Measurement]) -> Iterator[str]:
    yield f"* CPU: {cpu()}, {os.cpu_count()} cores; {platform.system()} {platform.machine()}"
    build = fairsteer.build_info()
    built = ", ".join(f"{key} {build[key]}" for key in ("compiler", "eigen", "simd", "flags"))
    yield f"* fairsteer {_version()}: {built}"
    versions: dict[str, str] = {}
    libraries: dict[int, set[str]] = {}
    for m in measurements:
        versions.update(m.info["packages"])
        libraries.setdefault(m.threads, set()).update(m.info["libraries"])
    yield f"* Python {platform.python_version()}, " + ", ".join(
        f"{name} {version}" for name, version in versions.items()
    )
    for threads, found in sorted(libraries.items()):
        yield f"* BLAS and OpenMP where {threads} threads were asked for: {'; '.join(sorted(found))}"
    core = os.environ.get("OPENBLAS_CORETYPE")
    yield f"* OPENBLAS_CORETYPE: {core or 'not set'}"
    yield f"* Memory: {timing.memory_method()}, in a process that is not timed"
    passed = {m.info["clock"] for m in measurements} == {"perf_counter"}
    yield (
        f"* Time: {'that passed' if passed else 'of the processor'}; median of rounds in which all take turns, after a "
        "first run; one round: the first run took long"
    )


def page(measurements: Sequence[Measurement]) -> str:
    found = list(claims(measurements))
    parts = [
        "# Speed",
        "Written by `python -m benchmarks.speed`; [docs/speed.md](../../docs/speed.md) says how to read it.",
    ]
    parts.append("\n".join(environment(measurements)))
    if found:
        parts += ["## Claims", verdicts(found)]
    parts += ["## Measurements", *(section(m).rstrip() for m in measurements)]
    return "\n\n".join(parts) + "\n"


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version() -> str:
    return str(getattr(fairsteer, "__version__", ""))
