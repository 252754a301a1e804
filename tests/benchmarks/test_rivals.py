"""What the benchmarks compare with: the same problem in every form, and bounds that hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import optimize

from benchmarks import problems, reference, rivals
from fairsteer import SubgroupMoments, nearest_ideal


def full_problem(n_classes: Any, d: Any, seed: int = 0) -> Any:
    data = problems.statistics(n_classes, 2, d, covariance="full", seed=seed, difference=1.0)
    return data, rivals.group_problem(data, 0, 1)


def moments_of(data: Any) -> Any:
    return SubgroupMoments.from_statistics(data.weights, data.means, data.covariances)


OBJECTIVES = [(rivals.Diagonalised, 2), (rivals.Whitened, 2), (rivals.Whitened, 4)]


@pytest.mark.parametrize(("objective", "n_classes"), OBJECTIVES)
def test_objectives_of_lbfgs_are_the_divergence_and_its_gradient(objective: Any, n_classes: Any) -> None:
    _, problem = full_problem(n_classes, 5)
    chosen = objective(problem)
    for start in rivals.starts(problem).values():
        B = start()
        x = chosen.coordinates(B)
        np.testing.assert_allclose(chosen.matrix(x), B, atol=1e-10)
        assert chosen(x.ravel())[0] == pytest.approx(problem.divergence(B), abs=1e-10)
        slope = optimize.approx_fprime(x.ravel(), lambda flat: chosen(flat)[0], 1e-7)
        np.testing.assert_allclose(chosen(x.ravel())[1], slope, atol=1e-4)


def test_lbfgs_ends_where_the_fit_does() -> None:
    data, problem = full_problem(2, 6)
    ideal = nearest_ideal(moments_of(data), intervention="affirmative", reference_group=0, covariance="full", tol=1e-9)
    objective = rivals.Diagonalised(problem)
    ends = [
        rivals.lbfgs(objective, objective.coordinates(make()), max_iter=2000, memory=5)
        for make in rivals.starts(problem).values()
    ]
    best = min(ends, key=lambda end: end.value)
    own = ideal.class_prior @ ideal.subgroup_divergence[:, 1]
    assert own == pytest.approx(best.value, abs=1e-6)
    assert best.seconds_to(best.value) is not None
    assert best.seconds_to(best.value - 1) is None


@pytest.mark.parametrize("solver", ["CLARABEL", "SCS"])
def test_the_compact_conic_program_is_the_symmetric_problem(solver: Any) -> None:
    data, problem = full_problem(3, 5)
    ideal = nearest_ideal(
        moments_of(data),
        intervention="affirmative",
        reference_group=0,
        map_type="symmetric",
        covariance="full",
        tol=1e-10,
    )
    own = ideal.class_prior @ ideal.subgroup_divergence[:, 1]
    assert own == pytest.approx(rivals.ConicSymmetric(problem).solve(solver), abs=1e-4)
    assert rivals.symmetric_gap(problem, ideal.inverse_linear[1]) < 1e-9


def test_the_gap_of_a_symmetric_map_bounds_what_is_left() -> None:
    _, problem = full_problem(2, 4)
    best = reference.symmetric_map(problem.w, problem.nu, problem.C, problem.mu, problem.Sigma)
    optimum = problem.divergence(best)
    for stretch in (1 + 1e-3, 0.95, 1.1):
        gap = rivals.symmetric_gap(problem, stretch * best)
        assert 0 < problem.divergence(stretch * best) - optimum <= gap < np.inf
    assert rivals.symmetric_gap(problem, 5 * best) == np.inf


def test_divergence_with_the_maps_of_the_nearest_ideal_is_its_own() -> None:
    data, _ = full_problem(3, 4)
    ideal = nearest_ideal(moments_of(data), covariance="full", tol=1e-12, max_iter=2000)
    kl = reference.divergence_with_maps(data, ideal.inverse_linear, ideal.inverse_offset)
    assert kl == pytest.approx(ideal.kl_divergence, abs=1e-8)


def test_divergence_with_maps_is_at_most_that_of_any_ideal_that_has_them() -> None:
    data, _ = full_problem(3, 4)
    other, _ = full_problem(3, 4, seed=1)
    for covariance in ("tied", "full"):
        ideal = nearest_ideal(moments_of(data), covariance=covariance)
        kl = reference.divergence_with_maps(other, ideal.inverse_linear, ideal.inverse_offset)
        assert 0 < kl < ideal.divergence_from(moments_of(other))
        own_shares = reference.divergence_with_maps(other, ideal.inverse_linear, ideal.inverse_offset, fit_priors=False)
        assert own_shares > kl
