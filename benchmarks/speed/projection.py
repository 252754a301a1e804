"""The nearest ideal distribution, tied covariances: fairsteer, NumPy, L-BFGS-B and cvxpy, in eigen-decompositions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import linalg

from benchmarks import problems, reference, rivals
from benchmarks.speed import limits
from benchmarks.speed.contest import Case, Contender, Contest, relative
from fairsteer import IdealDistribution, SubgroupMoments, nearest_ideal

N_GROUPS = 2
CANONICAL, MOVED = 0, 1

# All stop at the same relative accuracy of the divergence, so that none does idle rounds.
STOP = 1e-6
TOLERANCE = 1e-5

# Above this the reference and the generic solvers take minutes.
LARGEST_FOR_RIVALS = 768
LARGEST_FOR_CONIC = 16


def in_class_span(data: reference.Moments) -> reference.Moments:
    """The same problem in as few dimensions as there are classes, less one: all else is at the ideal already (§7).

    For a few classes this makes the divergence of any number of features cheap, and leaves out what `nearest_ideal`
    has to do there: the maps.
    """
    K, G, d = data.means.shape
    r = min(d, K - 1)
    means = np.zeros((K, G, r))
    for a in range(G):
        centre = data.weights[:, a] @ data.means[:, a] / data.weights[:, a].sum()
        L = np.linalg.cholesky(data.covariances[a])
        white = linalg.solve_triangular(L, (data.means[:, a] - centre).T, lower=True)
        Q, _ = np.linalg.qr(white[:, 1:] - white[:, :1])
        means[:, a] = (Q.T @ white).T
    return reference.Moments(data.weights, means, np.tile(np.eye(r), (G, 1, 1)), "tied")


def unfairness(ideal: IdealDistribution) -> float:
    """How far apart the groups' subgroups are after the maps; nothing, in an ideal distribution."""
    apart = 0.0
    for a in range(len(ideal.groups)):
        A = ideal.linear[a]
        moved = ideal.means[:, a] @ A.T + ideal.offset[a]
        covariance = A @ ideal.covariances[a] @ A.T
        apart = max(
            apart,
            relative(moved, ideal.canonical_means),
            relative(covariance, ideal.canonical_covariances),
        )
    return apart


def contest(case: Case, threads: int) -> Contest:
    """``variant``: the intervention, or "symmetric" for the convex program of the affirmative one."""
    K, d = case.n_classes, case.n_features
    data = problems.statistics(K, N_GROUPS, d)
    moments = SubgroupMoments.from_statistics(data.weights, data.means, data.covariances)
    alone = case.variant != "all_subgroups"
    options: dict[str, Any] = {"intervention": "affirmative", "reference_group": CANONICAL} if alone else {}
    theirs: dict[str, Any] = {"intervention": "affirmative", "reference": CANONICAL} if alone else {"reduce": True}
    if case.variant == "symmetric":
        options["map_type"] = theirs["map_type"] = "symmetric"

    def ours() -> IdealDistribution:
        return nearest_ideal(moments, tol=STOP, **options)

    def with_subgroups() -> IdealDistribution:
        ideal = ours()
        # Computed when first asked for, by way of the inverse maps; the reference always computes them.
        _ = ideal.means, ideal.covariances
        return ideal

    def by_reference() -> reference.Ideal:
        return reference.nearest_ideal(data, tol=STOP, **theirs)

    @functools.cache
    def truth() -> reference.Ideal:
        problem = data if case.variant == "symmetric" else in_class_span(data)
        return reference.nearest_ideal(problem, tol=1e-10, **theirs)

    def error(ideal: IdealDistribution) -> float:
        by_definition, _ = reference.divergence(ideal.weights, ideal.means, ideal.covariances, data)
        return max(above(ideal.kl_divergence), above(by_definition), unfairness(ideal))

    def above(divergence: float) -> float:
        return abs(divergence / truth().kl_divergence - 1)

    contenders = [
        Contender("fairsteer", "ours", ours, error, TOLERANCE),
        Contender("fairsteer, means and covariances too", "ours", with_subgroups, error, TOLERANCE),
    ]
    if d <= LARGEST_FOR_RIVALS:
        contenders.append(
            Contender("NumPy reference", "same", by_reference, lambda ideal: above(ideal.kl_divergence), TOLERANCE)
        )
    if alone and d <= LARGEST_FOR_RIVALS:
        contenders += generic_solvers(case.variant, data, truth)
    return Contest([*contenders, limits.eigh(data.covariances[MOVED])], (N_GROUPS + 1) * data.covariances[0].nbytes)


def generic_solvers(variant: str, data: reference.Moments, truth: Callable[[], reference.Ideal]) -> list[Contender]:
    """They find the moved group's map, and nothing else: not the other maps and distributions."""

    def error(value: float) -> float:
        of_moved = float(truth().class_prior @ truth().subgroup_divergence[:, MOVED])
        return abs(value / of_moved - 1)

    if variant == "affirmative":
        w = data.weights[:, CANONICAL] / data.weights[:, CANONICAL].sum()
        tied = reference.GroupProblem(
            w,
            data.means[:, CANONICAL],
            data.covariances[CANONICAL],
            data.means[:, MOVED],
            data.covariances[MOVED],
        )

        def run() -> float:
            objective = rivals.WhitenedTied(tied)
            return rivals.lbfgs(objective, np.eye(tied.d), max_iter=500, memory=5).value

        return [Contender("SciPy L-BFGS-B", "same", run, error, TOLERANCE)]
    if data.means.shape[2] > LARGEST_FOR_CONIC:
        return []
    cells = np.broadcast_to(data.covariances, (len(data.means), *data.covariances.shape))
    full = reference.Moments(data.weights, data.means, cells, "full")
    program = rivals.ConicSymmetric(rivals.group_problem(full, CANONICAL, MOVED))

    def solve() -> float:
        return program.solve("CLARABEL", tol_gap_abs=1e-6, tol_gap_rel=1e-6, tol_feas=1e-6)

    return [Contender("cvxpy, Clarabel", "same", solve, error, TOLERANCE)]
