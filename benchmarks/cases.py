"""What is measured: a case builds its input once and gives one callable for each side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import problems, reference
from fairsteer import SubgroupMoments, nearest_ideal

N_GROUPS = 2

# Both sides stop at the same relative accuracy of the divergence, so that neither does idle rounds.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Sides:
    """Two ways to the same answer, and how far apart the answers are."""

    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    difference: Callable[[Any, Any], float]


@dataclass(frozen=True)
class Case:
    operation: str
    n_features: int
    n_cells: int
    tolerance: float
    n_rows: int = 0
    dtype: str = ""

    def sides(self) -> Sides:
        return OPERATIONS[self.operation](self)

    @property
    def n_classes(self) -> int:
        return self.n_cells // N_GROUPS


def relative(ours: Any, theirs: Any) -> float:
    """Largest difference over the largest value of the reference."""
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def moments_sides(case: Case) -> Sides:
    K = case.n_classes
    X, y, a = problems.rows(case.n_rows, K, N_GROUPS, case.n_features, dtype=case.dtype)

    def ours() -> Any:
        accumulator = SubgroupMoments(case.n_features, classes=range(K), groups=range(N_GROUPS))
        return accumulator.update(X, y, a)

    def theirs() -> Any:
        return reference.moments(X, y, a, K, N_GROUPS)

    def difference(one: Any, two: Any) -> float:
        return max(relative(one.means, two.means), relative(one.covariances, two.covariances))

    return Sides(ours, theirs, difference)


def projection_sides(case: Case) -> Sides:
    options: dict[str, Any] = {
        "tied": {"intervention": "affirmative", "reference": 0},
        "symmetric": {"intervention": "affirmative", "reference": 0, "alignment": "symmetric"},
        "all_subgroups": {"intervention": "all_subgroups", "reduce": True},
    }[case.operation]
    data = problems.statistics(case.n_classes, N_GROUPS, case.n_features)
    moments = SubgroupMoments.from_statistics(data.weights, data.means, data.covariances)
    ours_options = {name: value for name, value in options.items() if name not in ("reference", "reduce")}
    if "reference" in options:
        ours_options["reference_group"] = options["reference"]

    def ours() -> Any:
        ideal = nearest_ideal(moments, tol=TOLERANCE, **ours_options)
        # Computed when first asked for; the reference always computes them.
        _ = ideal.means, ideal.covariances, ideal.maps
        return ideal

    def theirs() -> Any:
        return reference.nearest_ideal(data, tol=TOLERANCE, **options)

    def difference(one: Any, two: Any) -> float:
        distance = abs(one.kl_divergence - two.kl_divergence) / two.kl_divergence
        if case.operation == "all_subgroups":
            return distance
        maps = max(relative(A, two.maps_A[a]) for a, (A, _) in one.maps.items())
        return max(distance, maps)

    return Sides(ours, theirs, difference)


def transform_sides(case: Case) -> Sides:
    from fairsteer import _core

    G = case.n_cells // 2  # a map for each group, two classes
    X, _, codes = problems.rows(case.n_rows, 1, G, case.n_features, dtype=case.dtype)
    codes = codes.astype(np.int64)
    rng = np.random.default_rng(0)
    d = case.n_features
    A = np.eye(d) + rng.standard_normal((G, d, d)) / d
    b = rng.standard_normal((G, d))

    def ours() -> Any:
        out = np.empty_like(X)
        _core.apply_maps(X, codes, A, b, out)
        return out

    def theirs() -> Any:
        return reference.apply_maps(X, codes, A, b)

    return Sides(ours, theirs, relative)


OPERATIONS: dict[str, Callable[[Case], Sides]] = {
    "moments": moments_sides,
    "tied": projection_sides,
    "symmetric": projection_sides,
    "all_subgroups": projection_sides,
    "transform": transform_sides,
}


def cases(large: bool) -> Iterator[Case]:
    sizes = [16, 64, 256, *([768] if large else [])]
    for d in sizes:
        n_rows = {16: 50_000, 64: 50_000, 256: 20_000, 768: 20_000}[d]
        for n_cells in (4, 56):
            for dtype, tolerance in (("float64", 1e-9), ("float32", 1e-5)):
                yield Case("moments", d, n_cells, tolerance, n_rows, dtype)
    for operation, tolerance in (("tied", 1e-7), ("symmetric", 1e-5), ("all_subgroups", 1e-4)):
        for d in sizes:
            for n_cells in (4, 56):
                yield Case(operation, d, n_cells, tolerance)
    for d in sizes:
        for n_cells in (4, 56):
            yield Case("transform", d, n_cells, 1e-5, 20_000, "float32")
