"""Which cases are run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.speed.contest import Case
from benchmarks.speed.growth import SIZES

SECTIONS = ("moments", "transform", "projection", "fit", "growth")

CELLS = (4, 56, 400)

# Rows a case: half a gigabyte, or what takes seconds and not minutes.
ROWS = {16: 4_000_000, 64: 2_000_000, 384: 400_000, 768: 200_000, 1152: 100_000, 4096: 20_000}

# Matrices beyond this many bytes are left out.
MOST = 2**30

MOMENTS = Case("moments", 768, 200_000, 56, variant="tied", seconds=18, rounds=3)
MANY_CELLS = Case("moments", 16, 200_000, 400, variant="tied", seconds=4)
FULL_MOMENTS = Case("moments", 384, 50_000, 56, variant="full", seconds=6, rounds=3)
TRANSFORM = Case("transform", 768, 100_000, 4, variant="transformer", seconds=10)
LATENCY = Case("latency", 768, 2_000, 2, seconds=4)
FIT = Case("fit", 768, 50_000, 4, seconds=16, rounds=5)
PROJECTIONS = tuple(Case("projection", 768, 0, 56, variant=how, seconds=8) for how in ("affirmative", "all_subgroups"))
LARGE_PROJECTIONS = tuple(replace(case, n_features=4096, seconds=1) for case in PROJECTIONS)


def growth_cases() -> Iterator[Case]:
    for variant in SIZES:
        operation, _, quantity = variant.partition(" in ")
        d = 384 if quantity == "n" else 64
        n = 16_384 if quantity == "d" else 100_000
        cells = 4 if operation == "transform" or quantity == "groups" else 56
        case = Case("growth", d, n, cells, variant=variant, seconds=4, rounds=5)
        yield replace(case, n_rows=0) if operation == "projection" else case


def must(threads: list[int]) -> Iterator[tuple[Case, int]]:
    """The cases behind the claims of ``claims.py``."""
    most = max(threads)
    small = [MOMENTS, MANY_CELLS, *PROJECTIONS, TRANSFORM, LATENCY, FIT]
    yield from ((case, k) for case in small for k in threads)
    yield FULL_MOMENTS, most
    yield from ((case, most) for case in LARGE_PROJECTIONS)
    yield from ((case, most) for case in growth_cases())


def quick(threads: list[int]) -> Iterator[tuple[Case, int]]:
    chosen = [
        *(Case("moments", d, n, 56, variant="tied") for d, n in ((16, 200_000), (64, 100_000), (384, 20_000))),
        Case("moments", 16, 200_000, 400, variant="tied"),
        Case("moments", 64, 50_000, 56, variant="full"),
        Case("transform", 384, 20_000, 4, variant="transformer"),
        replace(LATENCY, seconds=1),
        *(Case("projection", 16, 0, 56, variant=how, seconds=1) for how in ("affirmative", "symmetric")),
        *(Case("projection", 64, 0, 56, variant=how) for how in ("affirmative", "all_subgroups")),
        Case("fit", 128, 20_000, 4),
    ]
    yield from ((case, k) for case in chosen for k in threads)


def full(threads: list[int]) -> Iterator[tuple[Case, int]]:
    chosen = []
    for d, n in ROWS.items():
        for cells in CELLS:
            case = Case("moments", d, n, cells, variant="tied", seconds=6)
            if (d, n, cells) == (MOMENTS.n_features, MOMENTS.n_rows, MOMENTS.n_cells):
                case = MOMENTS
            chosen += [case, replace(case, n_rows=n // 2, dtype="float64")]
            chosen += [replace(case, n_rows=n // 4, variant=how) for how in ("full", "diagonal") if fits(cells, d, how)]
    for d, n in ROWS.items():
        for cells in CELLS:
            if fits(cells // 2, d, "full"):
                chosen.append(Case("transform", d, min(n, 200_000), cells, variant="maps", seconds=4))
    chosen += [replace(LATENCY, n_features=d, n_rows=2 * d) for d in (16, 64, 384, 1152)]
    chosen += [Case("projection", d, 0, cells, variant="symmetric") for d in (16, 64) for cells in (4, 56)]
    for d in (16, 64, 384, 1152):
        chosen += [replace(case, n_features=d) for case in PROJECTIONS]
    chosen += PROJECTIONS
    chosen += [MANY_CELLS, FULL_MOMENTS, TRANSFORM, LATENCY, FIT, *growth_cases()]
    yield from ((case, k) for case in chosen for k in threads)
    yield from ((case, max(threads)) for case in LARGE_PROJECTIONS)


def fits(matrices: int, d: int, how: str) -> bool:
    return how == "diagonal" or matrices * d * d * 8 <= MOST
