"""What is claimed of speed, checked against what was measured. Nothing here changes an exit status."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.speed import plans
from benchmarks.speed.contest import Measurement
from benchmarks.speed.growth import exponent_of

OURS = "fairsteer"
MEGABYTE = 2**20

# Most by which a fitted exponent may be above the one claimed: caches and thread starts bend the line a little.
SLACK = 0.1


class Claim(NamedTuple):
    """A line: what is claimed, with how many threads, what came out (median and range of paired ratios)."""

    number: int
    text: str
    threads: int
    found: str
    holds: bool


def spread(ratios: Sequence[float], digits: int = 2) -> str:
    low, middle, high = min(ratios), float(np.median(ratios)), max(ratios)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def at_least(m: Measurement, number: int, text: str, slower: str, ours: str, least: float) -> Claim:
    """``slower`` takes at least this many times as long as ours."""
    ratios = m.ratios(slower, ours)
    return Claim(number, text, m.threads, spread(ratios), bool(np.median(ratios) >= least))


def at_most(m: Measurement, number: int, text: str, ours: str, limit: str, most: float) -> Claim:
    ratios = m.ratios(ours, limit)
    return Claim(number, text, m.threads, spread(ratios), bool(np.median(ratios) <= most))


def faster_than_all(m: Measurement, number: int, text: str, kind: str) -> Claim:
    """Than each of this kind, by median; the closest is named."""
    times = {r.name: float(np.median(m.ratios(r.name, OURS))) for r in m.results if r.kind == kind}
    times.pop("scikit-learn LedoitWolf", None)  # shrinks as well: a line of its own
    closest = min(times, key=lambda name: times[name])
    return Claim(number, text, m.threads, f"closest: {closest}, {times[closest]:.2f}", times[closest] > 1)


def little_memory(m: Measurement, number: int) -> Iterator[Claim]:
    peak = m[OURS].peak
    if peak is None:
        return
    beyond = (peak - m.output_bytes) / MEGABYTE
    text = "moments: peak extra memory under the output plus 64 MiB"
    yield Claim(number, text, m.threads, f"output {m.output_bytes / MEGABYTE:.0f} MiB {beyond:+.0f} MiB", beyond < 64)


def claims(measurements: Sequence[Measurement]) -> Iterator[Claim]:
    for m in measurements:
        case = m.case
        if case == plans.MOMENTS:
            size = "moments, float32, 200,000 x 768, 56 cells"
            yield at_least(m, 1, f"{size}: at least 0.8 of one ssyrk's rate", "one ssyrk", OURS, 0.8)
            yield at_least(m, 1, f"{size}: 3 times faster than the NumPy reference", "NumPy reference", OURS, 3)
            yield faster_than_all(m, 1, f"{size}: faster than every rival that computes the same", "same")
            yield from little_memory(m, 1)
        elif case == plans.FULL_MOMENTS:
            size = "moments, float32, 50,000 x 384, 56 full cells"
            yield faster_than_all(m, 1, f"{size}: faster than every rival that computes the same", "same")
            ours, theirs = "fairsteer, Ledoit-Wolf", "scikit-learn LedoitWolf"
            yield at_least(m, 1, f"{size}: with Ledoit-Wolf, faster than scikit-learn's", theirs, ours, 1)
        elif case == plans.MANY_CELLS:
            size = "moments, float32, 200,000 x 16, 400 cells"
            yield at_least(m, 2, f"{size}: 10 times faster than the NumPy reference", "NumPy reference", OURS, 10)
            limit = "reading the input once"
            yield at_most(m, 2, f"{size}: within 3 times of reading the input once", OURS, limit, 3)
        elif case in plans.PROJECTIONS + plans.LARGE_PROJECTIONS:
            text = f"projection, {case.variant}, 28 x 2, d = {case.n_features}: within 4 eigen-decompositions"
            yield at_most(m, 3, text, OURS, "one eigen-decomposition", 4)
        elif case == plans.TRANSFORM:
            for ours in ("fairsteer, transform", "fairsteer, maps alone"):
                for output in ("new", "its own"):
                    limit = f"one sgemm, {output} output"
                    yield at_least(m, 4, f"{ours}, 100,000 x 768: at least 0.8 of {limit}", limit, ours, 0.8)
        elif case == plans.LATENCY:
            text = "single row, d = 768: under 3 times PCA.transform"
            yield at_most(m, 4, text, "fairsteer, transform", "scikit-learn PCA.transform", 3)
        elif case == plans.FIT:
            yield faster_than_all(m, 5, "fit, 50,000 x 768, two groups, two classes: faster than every peer", "peer")
        elif case.operation == "growth":
            yield growth(m)


def growth(m: Measurement) -> Claim:
    slope, error, residual = exponent_of(m)
    operation, _, quantity = m.case.variant.partition(" in ")
    most = {"n": 1.0, "d": 3.0, "cells": 0.0, "groups": 1.0}[quantity]
    text = f"{operation}: {'flat' if most == 0 else f'at most power {most:.0f}'} in {quantity}"
    found = f"{slope:.2f} ± {error:.2f}, residuals within {100 * (residual - 1):.0f} %"
    return Claim(6, text, m.threads, found, slope <= most + SLACK)
