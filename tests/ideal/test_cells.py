"""The nearest ideal distribution of more than two classes: against a conic solver, NumPy, and by sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from benchmarks import posterior as reference
from fairsteer import _core
from fairsteer.ideal import IdealPosteriorCells, nearest_ideal_posterior
from fairsteer.ideal._cells import costs_of

INTERVENTIONS: list[Any] = ["all_subgroups", "affirmative"]
MODES: list[Any] = ["joint", "labels", "weights"]


def rows(n: int = 4000, n_classes: int = 3, n_groups: int = 2, seed: int = 0) -> tuple[Any, Any]:
    """Posteriors of Gaussian features that are shifted and stretched by group."""
    rng = np.random.default_rng(seed)
    group, y = rng.integers(0, n_groups, n), rng.integers(0, n_classes, n)
    x = rng.normal(size=(n, n_classes)) * (1 + 0.2 * group[:, None])
    x[np.arange(n), y] += 1.2
    x[:, 0] += 0.6 * group
    return softmax(x, axis=1), group


def problem(seed: int, n_groups: int = 2, n_cells: int = 14, n_targets: int = 12) -> tuple[Any, Any, Any, Any]:
    """Posteriors of cells in every group, their laws, shares, and ideal posteriors."""
    rng = np.random.default_rng(seed)
    posteriors = rng.dirichlet([1, 1, 1], (n_groups, n_cells))
    laws = rng.dirichlet(np.ones(n_cells), n_groups)
    laws[0, :2] = 0
    laws /= laws.sum(axis=1, keepdims=True)
    return posteriors, laws, rng.dirichlet(np.full(n_groups, 3.0)), rng.dirichlet([1, 1, 1], n_targets)


def core(posteriors: Any, laws: Any, shares: Any, targets: Any, common: Any = None, **options: Any) -> Any:
    given = {"free_shares": False, "max_iter": 100, "tol": 1e-9} | options
    return _core.nearest_ideal_cells(costs_of(posteriors, targets), laws, shares, common, **given)


def conic(costs: Any, laws: Any, shares: Any, common: Any, *, keep_rows: bool = False) -> float:
    cp = pytest.importorskip("cvxpy", reason="an independent solver")
    plans = [cp.Variable(cost.shape, nonneg=True) for cost in costs]
    target = cp.Variable(costs.shape[2]) if common is None else common
    constraints = [cp.sum(plan, axis=0) == target for plan in plans]
    if common is None:
        constraints.append(cp.sum(target) == 1)
    value = 0
    for w, plan, cost, law in zip(shares, plans, costs, laws, strict=True):
        value += w * cp.sum(cp.multiply(plan, cost))
        own = law > 0
        constraints.append(plan[~own] == 0)
        if keep_rows:
            constraints.append(cp.sum(plan, axis=1) == law)
        else:
            value += w * cp.sum(cp.rel_entr(cp.sum(plan[own], axis=1), law[own]))
    program = cp.Problem(cp.Minimize(value), constraints)
    program.solve(solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    return float(program.value)


# ---- the program


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("n_groups", [2, 3, 4])
def test_a_conic_solver_agrees(n_groups: int, given: bool) -> None:
    posteriors, laws, shares, targets = problem(n_groups, n_groups)
    common = np.random.default_rng(0).dirichlet(np.ones(len(targets))) if given else None
    found = core(posteriors, laws, shares, targets, common)
    assert found["converged"]
    assert found["gap"] < 1e-9
    assert abs(found["kl_divergence"] - conic(costs_of(posteriors, targets), laws, shares, common)) < 1e-6


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_numpy_agrees_to_the_gap(seed: int, given: bool) -> None:
    posteriors, laws, shares, targets = problem(seed, 2 + seed)
    common = np.random.default_rng(0).dirichlet(np.ones(len(targets))) if given else None
    laws = np.maximum(laws, 1e-3)
    laws /= laws.sum(axis=1, keepdims=True)
    plain = reference.solve_costs(laws, costs_of(posteriors, targets), shares, common)
    found = core(posteriors, laws, shares, targets, common)
    assert abs(found["kl_divergence"] - plain.objective) < 1e-9
    np.testing.assert_allclose(found["plan"], plain.plans, atol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_every_group_has_one_law_and_the_gap_is_met(seed: int) -> None:
    """The ideal condition, to the last digits: the same ideal posteriors with the same probabilities."""
    posteriors, laws, shares, targets = problem(seed, 2 + seed % 3, 20 + 5 * seed, 30)
    found = core(posteriors, laws, shares, targets, free_shares=seed % 2 == 0)
    assert found["converged"]
    assert found["gap"] < 1e-9
    np.testing.assert_allclose(
        found["plan"].sum(axis=1), np.broadcast_to(found["target_law"], (2 + seed % 3, 30)), atol=1e-9
    )
    np.testing.assert_allclose(found["plan"].sum(axis=2), laws * np.exp(found["log_ratio"]), atol=1e-7)


def test_the_core_refuses_what_is_no_law() -> None:
    posteriors, laws, shares, targets = problem(0)
    with pytest.raises(ValueError, match="sum of the law of group 1 must be 1"):
        core(posteriors, laws * [[1], [2]], shares, targets)
    with pytest.raises(ValueError, match="sum of the common law must be 1"):
        core(posteriors, laws, shares, targets, np.full(12, 1.0))
    with pytest.raises(ValueError, match="common must have shape"):
        core(posteriors, laws, shares, targets, np.full(3, 1 / 3))
    with pytest.raises(ValueError, match="cost must have 3 dimensions"):
        _core.nearest_ideal_cells(np.ones((2, 3)), laws, shares, None, free_shares=True, max_iter=9, tol=1e-9)
    with pytest.raises(ValueError, match="not negative"):
        _core.nearest_ideal_cells(-np.ones((2, 14, 3)), laws, shares, None, free_shares=True, max_iter=9, tol=1e-9)


# ---- rows


@pytest.mark.parametrize("mode", ["joint", "labels"])
@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize(("n_classes", "n_groups"), [(3, 2), (4, 3), (10, 2)])
def test_every_cost_matrix_is_fair_on_samples_of_the_ideal(
    n_classes: int, n_groups: int, intervention: Any, mode: Any
) -> None:
    s, group = rows(1600, n_classes, n_groups)
    ideal = nearest_ideal_posterior(s, group, intervention=intervention, mode=mode)
    assert isinstance(ideal, IdealPosteriorCells)
    rng = np.random.default_rng(2)
    t, weight = ideal.ideal_posterior(s, group), ideal.sample_weight(s, group)
    np.testing.assert_allclose(np.bincount(group, weight) / weight.sum(), ideal.group_prior, rtol=1e-6)
    drawn = rng.choice(len(s), 100_000, p=weight / weight.sum())
    t, a = t[drawn], group[drawn]
    for _ in range(5):
        costs = rng.random((n_classes, n_classes)) * (1 - np.eye(n_classes))
        predicted = (t @ costs).argmin(axis=1)
        for k in range(n_classes):
            rates = [(predicted[a == g] == k).mean() for g in range(n_groups)]
            assert np.ptp(rates) < 4 * np.sqrt(0.5 / (len(s) / n_groups))


@pytest.mark.parametrize("mode", ["joint", "labels"])
@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_the_ideal_condition_is_exact_on_cells(intervention: Any, mode: Any) -> None:
    s, group = rows(1200, 3, 3)
    ideal: Any = nearest_ideal_posterior(s, group, intervention=intervention, mode=mode)
    assert ideal.converged
    assert ideal.dual_gap < 1e-9
    for plan in ideal.plans:
        np.testing.assert_allclose(plan.sum(axis=0), ideal.target_law, atol=1e-8)
    if mode == "labels":
        np.testing.assert_allclose(ideal.plans.sum(axis=2), ideal.laws, atol=1e-9)
        np.testing.assert_array_equal(ideal.log_weights, 0)
    rates = np.einsum("ac,ack->ak", ideal.ideal_laws, ideal.ideal_posteriors)
    assert np.ptp(rates, axis=0).max() < 1e-7
    np.testing.assert_allclose(rates[0], ideal.ideal_class_rates, atol=1e-7)
    if intervention == "affirmative":
        a = int(np.bincount(group).argmax())
        np.testing.assert_allclose(ideal.ideal_posterior(s[group == a], group[group == a]), s[group == a], atol=1e-12)
        np.testing.assert_allclose(ideal.sample_weight(s[group == a], group[group == a]), 1, atol=1e-6)


@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_labels_are_a_linear_program_that_another_solver_agrees_with(intervention: Any) -> None:
    s, group = rows(300, 3, 2, seed=4)
    few = np.random.default_rng(1).dirichlet([1, 1, 1], 12)
    ideal: Any = nearest_ideal_posterior(
        few[s.argmax(axis=1) * 4 + group * 2], group, mode="labels", intervention=intervention
    )
    costs = costs_of(ideal.cell_posteriors, ideal.targets)
    common = ideal.target_law if intervention == "affirmative" else None
    best = conic(costs, ideal.laws, ideal.source_group_prior, common, keep_rows=True)
    assert abs(ideal.kl_divergence - best) < 1e-6


@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_the_joint_one_is_nearest(intervention: Any) -> None:
    s, group = rows(1000, 4)
    joint, labels = (
        nearest_ideal_posterior(s, group, intervention=intervention, mode=mode).kl_divergence
        for mode in ("joint", "labels")
    )
    assert 0 < joint < labels


def test_two_classes_agree_with_the_grid() -> None:
    """Two classes as three of which one never occurs: the grid's optimum, within what cells lose."""
    s, group = rows(4000, 2)
    two: Any = nearest_ideal_posterior(s, group)
    three: Any = nearest_ideal_posterior(np.column_stack([s, np.zeros(len(s))]), group)
    assert abs(three.kl_divergence - two.kl_divergence) < 0.03 * two.kl_divergence
    error = three.ideal_posterior(np.column_stack([s, np.zeros(len(s))]), group)[:, 1] - two.ideal_posterior(s, group)
    assert np.abs(error).mean() < 0.01
    np.testing.assert_allclose(two.ideal_posterior(s, group), two.ideal_posterior(s[:, 1], group), rtol=1e-12)


def test_weights_alone_make_class_and_group_independent() -> None:
    s, group = rows()
    ideal: Any = nearest_ideal_posterior(s, group, mode="weights")
    rates = np.einsum("ac,ack->ak", ideal.ideal_laws, ideal.ideal_posteriors)
    assert np.ptp(rates, axis=0).max() < 1e-12
    own = ideal.class_rates
    q = own * ideal.source_group_prior
    joint = np.outer(rates[0], ideal.group_prior)
    assert abs(rel_entr(joint, q).sum() - ideal.kl_divergence) < 1e-12
    with pytest.raises(AttributeError, match="nothing is certified"):
        _ = ideal.certificate


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_rows_and_their_repetition_do_not_matter(mode: Any) -> None:
    s, group = rows(400)
    weight = np.random.default_rng(0).integers(0, 3, 400)
    order = np.random.default_rng(1).permutation(400)
    one = nearest_ideal_posterior(s, group, weight, mode=mode)
    other = nearest_ideal_posterior(s[order], group[order], weight[order], mode=mode)
    assert abs(one.kl_divergence - other.kl_divergence) < 1e-9
    np.testing.assert_allclose(one.ideal_posterior(s, group), other.ideal_posterior(s, group), atol=1e-6)
    few = np.random.default_rng(2).dirichlet([1, 1, 1], 20)[s.argmax(axis=1) * 6 + group]
    one = nearest_ideal_posterior(few, group, weight, mode=mode)
    repeated = nearest_ideal_posterior(np.repeat(few, weight, axis=0), np.repeat(group, weight), mode=mode)
    assert abs(one.kl_divergence - repeated.kl_divergence) < 1e-9


@pytest.mark.parametrize("mode", MODES)
def test_an_ideal_input_and_one_group_stay_as_they_are(mode: Any) -> None:
    s = np.tile(rows(500)[0], (2, 1))
    ideal = nearest_ideal_posterior(s, np.repeat([0, 1], 500), mode=mode)
    assert ideal.kl_divergence < 1e-6
    alone = nearest_ideal_posterior(s, np.zeros(1000, int), mode=mode)
    assert alone.kl_divergence < 1e-12
    np.testing.assert_allclose(alone.ideal_posterior(s, np.zeros(1000, int)), s, atol=1e-9)


@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_few_and_extreme_posteriors(intervention: Any, mode: Any) -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 50)
    for values in (np.eye(3), [[1 / 3] * 3], [[1, 0, 0], [0.2, 0.3, 0.5], [1e-300, 0, 1]]):
        s = np.asarray(values)[np.append(np.arange(len(values)), rng.integers(0, len(values), 100 - len(values)))]
        ideal: Any = nearest_ideal_posterior(s, group, intervention=intervention, mode=mode)
        assert np.isfinite(ideal.kl_divergence)
        for answer in (ideal.ideal_posterior(s, group), ideal.sample_weight(s, group), ideal.subgroup_divergence):
            assert np.isfinite(answer).all()


def test_the_certificate_bounds_fair_classifiers_on_the_rows() -> None:
    s, group = rows(20_000)
    ideal: Any = nearest_ideal_posterior(s, group)
    rng = np.random.default_rng(0)
    y = (rng.random((len(s), 1)) > np.cumsum(s, axis=1)).sum(axis=1)
    t, certificate = ideal.ideal_posterior(s, group), ideal.certificate
    assert certificate.total_variation.shape == (3, 2)
    for _ in range(5):
        predicted = (t @ (rng.random((3, 3)) * (1 - np.eye(3)))).argmin(axis=1)
        for k in range(3):
            rates = [(predicted[(group == a) & (y == k)] == k).mean() for a in (0, 1)]
            assert abs(rates[0] - rates[1]) <= certificate.equal_opportunity[k] + 0.04
    assert 0 < certificate.accuracy < 1


def test_what_is_no_posterior_is_refused() -> None:
    s, group = rows(20)
    with pytest.raises(ValueError, match="do not sum to 1, the first of them row 3, to"):
        nearest_ideal_posterior(np.where(np.arange(20)[:, None] == 3, 0.9 * s, s), group)
    with pytest.raises(ValueError, match="no probabilities"):
        nearest_ideal_posterior(s + np.array([0.9, -0.9, 0]), group)
    with pytest.raises(ValueError, match=r"11 classes.*The Gaussian way, IdealDistributionClassifier"):
        nearest_ideal_posterior(np.full((20, 11), 1 / 11), group)
    ideal = nearest_ideal_posterior(s, group)
    with pytest.raises(ValueError, match="posterior has 2 columns, and there are 3 classes"):
        ideal.ideal_posterior(s[:, :2] / s[:, :2].sum(axis=1, keepdims=True), group)
