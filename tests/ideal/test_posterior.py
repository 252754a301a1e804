"""The nearest ideal distribution without a family: against a conic solver, NumPy, the Gaussian one, and by sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit, rel_entr

from benchmarks import posterior as reference
from fairsteer import _core
from fairsteer.ideal import nearest_ideal, nearest_ideal_posterior
from fairsteer.moments import SubgroupMoments

INTERVENTIONS: list[Any] = ["all_subgroups", "affirmative"]
MODES: list[Any] = ["joint", "labels"]
COSTS = [0.1, 0.3, 0.5, 0.7, 0.9]


def problem(seed: int, n: int = 40, n_groups: int = 2, *, rough: bool = True) -> tuple[Any, Any, Any]:
    """Grid of log-odds, laws of the groups, shares."""
    rng = np.random.default_rng(seed)
    logits = np.linspace(-5, 5, n)
    laws = np.stack([np.exp(-((logits - rng.normal()) ** 2) / 2 / rng.uniform(0.5, 3)) for _ in range(n_groups)])
    if rough:
        laws *= rng.uniform(0.2, 1, laws.shape)
    return logits, laws / laws.sum(axis=1, keepdims=True), rng.dirichlet(np.full(n_groups, 3.0))


def core(logits: Any, laws: Any, shares: Any, intervention: str = "all_subgroups", **options: Any) -> Any:
    given = {"reference": 0, "free_shares": True, "max_iter": 100, "tol": 1e-9} | options
    return _core.nearest_ideal_posterior(logits, logits, laws, shares, intervention=intervention, **given)


def conic(laws: Any, s: Any, t: Any, shares: Any, common: Any = None) -> float:
    cp = pytest.importorskip("cvxpy", reason="an independent solver")
    cost = reference.costs_of(s, t)
    plans = [cp.Variable(cost.shape, nonneg=True) for _ in laws]
    target = cp.Variable(len(t)) if common is None else common
    value = sum(
        w * (cp.sum(cp.rel_entr(cp.sum(plan, axis=1), law)) + cp.sum(cp.multiply(plan, cost)))
        for w, plan, law in zip(shares, plans, laws, strict=True)
    )
    constraints = [cp.sum(plan, axis=0) == target for plan in plans]
    if common is None:
        constraints.append(cp.sum(target) == 1)
    program = cp.Problem(cp.Minimize(value), constraints)
    program.solve(solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    return float(program.value)


# ---- the program


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("n_groups", [2, 3, 4])
def test_a_conic_solver_agrees(n_groups: int, intervention: Any) -> None:
    logits, laws, shares = problem(n_groups, n_groups=n_groups)
    found = core(logits, laws, shares, intervention, free_shares=False)
    s = expit(logits)
    common = laws[0] if intervention == "affirmative" else None
    assert found["converged"]
    assert abs(found["kl_divergence"] - conic(laws, s, s, shares, common)) < 1e-6


@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("n_groups", [2, 3])
def test_numpy_agrees_to_the_gap(n_groups: int, rough: bool, intervention: Any) -> None:
    logits, laws, shares = problem(7 + n_groups, n_groups=n_groups, rough=rough)
    s = expit(logits)
    common = laws[0] if intervention == "affirmative" else None
    plain = reference.solve(laws, s, s, shares, common)
    found = core(logits, laws, shares, intervention, free_shares=False)
    assert abs(found["kl_divergence"] - plain.objective) < 1e-9
    np.testing.assert_allclose(found["group_divergence"], plain.costs, atol=1e-7)
    weighted = laws * np.exp(found["log_ratio"])
    np.testing.assert_allclose(weighted, plain.plans.sum(axis=2), atol=1e-6)


def test_shares_are_a_fixed_point_that_numpy_finds_too() -> None:
    logits, laws, shares = problem(3, n_groups=3)
    s = expit(logits)
    _, plain, divergence = reference.solve_shares(laws, s, s, shares)
    found = core(logits, laws, shares)
    np.testing.assert_allclose(found["shares"], plain, atol=1e-6)
    assert abs(found["kl_divergence"] - divergence) < 1e-8
    fixed = shares * np.exp(-found["group_divergence"])
    np.testing.assert_allclose(found["shares"], fixed / fixed.sum(), atol=1e-8)


@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("seed", range(6))
def test_grids_of_every_size_meet_the_gap(seed: int, intervention: Any) -> None:
    """What a band leaves out is checked by the gap, which counts every pair."""
    for n in (5, 23, 41, 150):
        logits, laws, shares = problem(seed, n, 2 + seed % 2, rough=seed % 2 == 0)
        laws[1, : n // 3] = 0  # posteriors that a group has not
        laws /= laws.sum(axis=1, keepdims=True)
        found = core(logits, laws, shares, intervention, reference=1)
        assert found["converged"]
        assert found["gap"] <= 1e-9
        assert (np.diff(found["posterior"], axis=1) >= 0).all()
        np.testing.assert_allclose((laws * np.exp(found["log_ratio"])).sum(axis=1), 1, atol=1e-9)


def test_the_order_of_groups_does_not_matter() -> None:
    logits, laws, shares = problem(1, n_groups=3)
    one, other = core(logits, laws, shares), core(logits, laws[::-1].copy(), shares[::-1].copy())
    assert abs(one["kl_divergence"] - other["kl_divergence"]) < 1e-9
    np.testing.assert_allclose(one["shares"], other["shares"][::-1], atol=1e-7)


def test_the_core_refuses_what_is_no_law() -> None:
    logits, laws, shares = problem(0)
    with pytest.raises(ValueError, match="sum of the law of group 0 must be 1"):
        core(logits, 2 * laws, shares)
    with pytest.raises(ValueError, match="must be above the value before it"):
        core(logits[::-1].copy(), laws, shares)
    with pytest.raises(ValueError, match="shares must have shape"):
        core(logits, laws, np.full(3, 1 / 3))
    with pytest.raises(ValueError, match="reference must lie in"):
        core(logits, laws, shares, "affirmative", reference=2)
    with pytest.raises(ValueError, match="intervention must be"):
        core(logits, laws, shares, "none")
    with pytest.raises(ValueError, match="tol must be positive"):
        core(logits, laws, shares, tol=0.0)
    laws[0, 3] = np.nan
    with pytest.raises(ValueError, match="not negative"):
        core(logits, laws, shares)


# ---- rows


def beta_rows(n: int = 4000, seed: int = 0, n_groups: int = 2) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, n_groups, n)
    return rng.beta(2 + group, 2 + 0.5 * (group % 2)), group


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("n_groups", [2, 4])
def test_every_cost_matrix_is_fair_on_samples_of_the_ideal(n_groups: int, intervention: Any, mode: Any) -> None:
    s, group = beta_rows(40_000, 1, n_groups)
    ideal = nearest_ideal_posterior(s, group, intervention=intervention, mode=mode)
    rng = np.random.default_rng(2)
    t, weight = ideal.ideal_posterior(s, group), ideal.sample_weight(s, group)
    rows = rng.choice(len(s), 400_000, p=weight / weight.sum())
    y = rng.random(len(rows)) < t[rows]
    for cost in COSTS:
        predicted = t[rows] > cost
        for given in (np.ones_like(y), y, ~y):
            cells = [predicted[given & (group[rows] == a)] for a in range(n_groups)]
            rates = np.array([cell.mean() for cell in cells])
            error = 4 * np.sqrt(0.25 / min(map(len, cells))) + 2 / 256  # sampling, and the grid
            assert np.ptp(rates) < error


@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_modes_are_ordered_and_the_joint_one_is_nearest(intervention: Any) -> None:
    s, group = beta_rows()
    divergence = {
        mode: nearest_ideal_posterior(s, group, intervention=intervention, mode=mode).kl_divergence for mode in MODES
    }
    assert 0 < divergence["joint"] < divergence["labels"]


def test_labels_alone_are_the_quantile_average_of_log_odds() -> None:
    """Of two groups with one law at two places: the middle, by shares."""
    logits = np.linspace(-2, 2, 200)
    s = expit(np.concatenate([logits, logits + 1, logits + 1]))
    group = np.repeat([0, 1, 1], 200)
    ideal = nearest_ideal_posterior(s, group, mode="labels")
    np.testing.assert_allclose(logit(ideal.ideal_posterior(s[:200], group[:200])), logits + 2 / 3, atol=0.03)
    np.testing.assert_allclose(ideal.sample_weight(s, group), 1)


def test_weights_alone_make_class_and_group_independent() -> None:
    s, group = beta_rows()
    ideal: Any = nearest_ideal_posterior(s, group, mode="weights")
    rates = (ideal.ideal_laws * expit(ideal.ideal_logits)).sum(axis=1)
    assert np.ptp(rates) < 1e-12
    base = ideal.class_rates[1]
    classes, shares = np.array([1 - rates[0], rates[0]]), ideal.group_prior
    q = ideal.source_group_prior * np.stack([1 - base, base])
    assert abs(rel_entr(np.outer(classes, shares), q).sum() - ideal.kl_divergence) < 1e-12
    for factor in (0.99, 1.01):  # a minimum
        other = np.array([1 - rates[0] * factor, rates[0] * factor])
        assert rel_entr(np.outer(other, shares), q).sum() > ideal.kl_divergence
    with pytest.raises(AttributeError, match="nothing is certified"):
        _ = ideal.certificate


def test_the_reference_is_left_as_it_is() -> None:
    s, group = beta_rows()
    labels = np.array(["f", "m"])[group]
    ideal = nearest_ideal_posterior(s, labels, intervention="affirmative", reference_group="m")
    one = group == 1
    np.testing.assert_allclose(ideal.ideal_posterior(s[one], group[one]), s[one], atol=1e-12)
    np.testing.assert_allclose(ideal.sample_weight(s[one], group[one]), 1, atol=1e-12)
    assert ideal.reference_group == "m"
    with pytest.raises(ValueError, match="'x' is not among the groups 'f', 'm'"):
        nearest_ideal_posterior(s, labels, intervention="affirmative", reference_group="x")


def test_an_ideal_input_stays_as_it_is() -> None:
    s = np.tile(np.random.default_rng(0).beta(2, 3, 500), 2)
    ideal = nearest_ideal_posterior(s, np.repeat([0, 1], 500))
    assert ideal.kl_divergence < 1e-9
    np.testing.assert_allclose(ideal.ideal_posterior(s[:500], np.zeros(500, int)), s[:500], atol=1e-4)


def test_weights_of_rows_are_repetitions() -> None:
    s, group = beta_rows(100)
    weight = np.random.default_rng(0).integers(0, 3, 100)
    one = nearest_ideal_posterior(s, group, weight)
    other = nearest_ideal_posterior(np.repeat(s, weight), np.repeat(group, weight))
    assert abs(one.kl_divergence - other.kl_divergence) < 1e-9
    np.testing.assert_allclose(one.ideal_posterior(s, group), other.ideal_posterior(s, group), atol=1e-6)


def test_no_group_is_left_out() -> None:
    """Two groups of opposite classes: dropping one of them would be nearest."""
    s, group = np.array([0.002, 0.23, 0.7, 0.9983]), np.array([0, 0, 1, 1])
    weight = np.array([0.459, 0.004, 0.003, 0.534])
    with pytest.warns(UserWarning, match="would leave a group out; the groups keep their shares"):
        ideal = nearest_ideal_posterior(s, group, weight)
    assert ideal.converged
    np.testing.assert_allclose(ideal.group_prior, [0.463, 0.537])


@pytest.mark.parametrize("values", [[0.5], [0.0, 1.0], [0.2, 0.7], [1e-300, 0.5, 1.0]])
def test_few_and_extreme_posteriors(values: Any) -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 50)
    s = rng.choice(values, 100, p=np.arange(1, len(values) + 1) / (len(values) * (len(values) + 1) / 2))
    for intervention in INTERVENTIONS:
        for mode in ("joint", "labels", "weights"):
            ideal = nearest_ideal_posterior(s, group, intervention=intervention, mode=mode)
            assert np.isfinite(ideal.kl_divergence)
            assert np.isfinite(ideal.ideal_posterior(s, group)).all()
            assert np.isfinite(ideal.sample_weight(s, group)).all()


@pytest.mark.parametrize(
    ("posterior", "message"),
    [
        ([0.2, 1.2], "no probabilities"),
        ([0.2, np.nan], "NaN"),
        ([[0.2], [0.3]], "has one column"),
        ([[[0.2]]], "dim 3"),
    ],
)
def test_what_is_no_posterior_is_refused(posterior: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_ideal_posterior(posterior, [0, 1])


# ---- against the Gaussian way


@pytest.mark.parametrize("seed", range(3))
def test_never_farther_than_the_gaussian_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(2, 2, 1)) + 1.5 * np.array([0, 1])[:, None, None]
    covariances = rng.uniform(0.5, 1.5, (2, 2, 1, 1))
    q = rng.dirichlet(np.full(4, 5.0)).reshape(2, 2)
    gaussian = nearest_ideal(
        SubgroupMoments.from_statistics(q, means, covariances), covariance="full", map_type="affine"
    )
    x = np.linspace(-12, 14, 40_001)
    density = q[..., None] * np.exp(-((x - means) ** 2) / 2 / covariances[..., 0]) / np.sqrt(covariances[..., 0])
    s = density[1] / density.sum(axis=0)
    group = np.repeat([0, 1], len(x))
    ideal = nearest_ideal_posterior(np.clip(s.ravel(), 0, 1), group, density.sum(axis=0).ravel())
    assert ideal.converged
    assert 0 < ideal.kl_divergence < gaussian.kl_divergence


def test_the_certificate_bounds_fair_classifiers_on_the_rows() -> None:
    s, group = beta_rows(20_000, 3)
    ideal = nearest_ideal_posterior(s, group)
    t, y = ideal.ideal_posterior(s, group), np.random.default_rng(0).random(len(s)) < s
    certificate = ideal.certificate
    for cost in COSTS:
        for k in (0, 1):
            rates = [(t > cost)[(group == a) & (y == k)].mean() for a in (0, 1)]
            assert abs(rates[0] - rates[1]) <= certificate.equal_opportunity[k] + 0.03
    assert 0 < certificate.accuracy < 1
