"""Theorems about aligned scores, and the manners of the estimator that aligns them."""

from __future__ import annotations

import pickle
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pytest
import sklearn
from scipy.optimize import linprog
from scipy.sparse import csr_array
from scipy.special import expit, softmax
from scipy.stats import norm
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, KFold, ShuffleSplit, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, ScoreAligner
from fairsteer.metrics import equal_opportunity_difference
from fairsteer.score_alignment._cells import Cells
from fairsteer.score_alignment._monotone import MonotoneAlignment, ScoreDistribution
from fairsteer.score_alignment._offsets import GroupScalings, OffsetAlignment
from fairsteer.score_alignment._rate_program import RateProgram

CONSTRAINTS: list[Any] = ["equal_opportunity", "demographic_parity"]
METHODS = ["predict", "predict_proba", "predict_log_proba", "decision_function"]


class Scores(ClassifierMixin, BaseEstimator):
    """A classifier whose features are its own probabilities."""

    def fit(self, X: Any, y: Any) -> Scores:
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[Any]:
        return np.asarray(X)


def sample(n: int = 400, n_groups: int = 2, seed: int = 0, digits: int = 12) -> tuple[npt.NDArray[Any], Cells]:
    """Log-odds of two classes that are shifted and stretched by group; weighted; tied after rounding."""
    rng = np.random.default_rng(seed)
    y, group = rng.integers(0, 2, n), rng.integers(0, n_groups, n)
    scores = np.round((rng.normal(size=n) + 1.5 * y) * (1 + 0.3 * group) + 0.9 * group, digits)
    return scores, Cells(y, group, rng.uniform(0.5, 2, n), 2, n_groups, "equal_opportunity")


def class_proba(
    n: int = 3000,
    n_classes: int = 4,
    n_groups: int = 2,
    seed: int = 0,
    constraint: Any = "equal_opportunity",
    spread: float = 1.5,
) -> tuple[npt.NDArray[Any], Cells]:
    """Probabilities of several classes, true ones, under which groups differ."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, n_groups, n)
    proba = softmax(rng.normal(size=(n, n_classes)) + spread * rng.normal(size=(n_groups, n_classes))[group], axis=1)
    y = (proba.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return proba, Cells(y, group, np.ones(n), n_classes, n_groups, constraint)


def class_data(
    n: int = 900, n_classes: int = 3, seed: int = 0
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    y, group = rng.integers(0, n_classes, n), rng.integers(0, 2, n)
    X = rng.normal(size=(n, 3)) + np.eye(n_classes, 3)[y] * 1.5 + np.outer(group, [0.8, 0, -0.5])
    return X, y, group


# ---- two classes


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("n_groups", [2, 3])
@pytest.mark.parametrize("digits", [12, 1])
def test_rates_are_equal_at_every_threshold_up_to_ties(constraint: Any, n_groups: int, digits: int) -> None:
    scores, cells = sample(n_groups=n_groups, digits=digits)
    cells = cells._replace(constraint=constraint)
    proba = MonotoneAlignment.fit(scores, cells, 0.0).proba(scores, cells.group_codes)[:, 1]
    rate, largest_tie = [], []
    for a in range(n_groups):
        rows = cells.counted(1, a)
        total = cells.weight[rows].sum()
        rate.append([cells.weight[rows & (proba > t)].sum() / total for t in np.unique(proba)])
        largest_tie.append(max(cells.weight[rows & (scores == s)].sum() for s in scores[rows]) / total)
    for a, b in combinations(range(n_groups), 2):
        assert np.abs(np.subtract(rate[a], rate[b])).max() <= (largest_tie[a] + largest_tie[b]) / 2 + 1e-12
    before = [
        [cells.weight[cells.counted(1, a) & (scores > 1)].sum() / cells.weight[cells.counted(1, a)].sum()]
        for a in (0, 1)
    ]
    assert abs(before[0][0] - before[1][0]) > 0.1


@pytest.mark.parametrize("max_gap", [0.0, 0.1])
def test_probabilities_rise_strictly_with_the_score_far_outside_the_range_too(max_gap: float) -> None:
    scores, cells = sample(n=60)
    alignment = MonotoneAlignment.fit(scores, cells, max_gap)
    grid = np.concatenate([-np.geomspace(500, 1e-3, 200), np.geomspace(1e-3, 500, 200)])
    for a in (0, 1):
        codes = np.full(len(grid), a)
        mapped = alignment.mapped(grid, codes)
        assert (np.diff(mapped) > 0).all()
        assert (np.diff(alignment.calibration(mapped)) > 0).all()
        proba = alignment.proba(grid, codes)
        np.testing.assert_allclose(proba.sum(axis=1), 1)
        assert ((proba >= 0) & (proba <= 1)).all()


def test_nothing_moves_where_groups_have_the_same_scores() -> None:
    scores, cells = sample()
    twice = Cells(
        np.tile(cells.y_codes, 2), np.repeat([0, 1], 400), np.tile(cells.weight, 2), 2, 2, "equal_opportunity"
    )
    both = np.tile(scores, 2)
    alignment = MonotoneAlignment.fit(both, twice, 0.0)
    np.testing.assert_allclose(alignment.mapped(both, twice.group_codes), both, atol=1e-9)
    assert alignment.amount == 0


@pytest.mark.slow
def test_gaussian_scores_are_mapped_to_their_barycentre() -> None:
    n, means, scales, shares = 200_000, np.array([0.0, 2.0]), np.array([1.0, 3.0]), np.array([0.25, 0.75])
    group = np.repeat([0, 1], (n * shares).astype(int))
    scores = means[group] + scales[group] * np.random.default_rng(0).normal(size=n)
    cells = Cells(np.ones(n, dtype=int), group, np.ones(n), 2, 2, "equal_opportunity")
    z = norm.ppf(np.linspace(0.01, 0.99, 50))
    for a in (0, 1):
        mapped = MonotoneAlignment.fit(scores, cells, 0.0).mapped(means[a] + scales[a] * z, np.full(50, a))
        np.testing.assert_allclose(mapped, shares @ means + (shares @ scales) * z, atol=0.05)


def test_distribution_function_and_quantiles_are_inverse_and_near_the_empirical_one() -> None:
    scores, cells = sample(digits=1)
    fitted = ScoreDistribution.of(scores, cells.weight)
    grid = np.linspace(-30, 30, 2001)
    np.testing.assert_allclose(fitted.quantile(fitted.level(grid)), grid, atol=1e-8)
    assert (np.diff(fitted.level(grid)) > 0).all()
    share = cells.weight / cells.weight.sum()
    largest_tie = max(share[scores == s].sum() for s in scores)
    for side in (np.less_equal, np.less):
        empirical = np.array([share[side(scores, s)].sum() for s in grid])
        assert np.abs(fitted.level(grid) - empirical).max() <= largest_tie / 2 + 1e-12


def test_one_half_is_nearly_the_most_accurate_threshold() -> None:
    scores, cells = sample(n=4000)
    proba = MonotoneAlignment.fit(scores, cells, 0.0).proba(scores, cells.group_codes)[:, 1]
    accuracy = [np.average((proba > t) == cells.y_codes, weights=cells.weight) for t in np.unique(proba)]
    at_half = np.average((proba > 0.5) == cells.y_codes, weights=cells.weight)
    assert max(accuracy) - 0.002 <= at_half
    for low, high in ((0.1, 0.3), (0.4, 0.6), (0.7, 0.9)):  # and probabilities are what they say
        bin_ = (proba > low) & (proba < high)
        assert abs(np.average(cells.y_codes[bin_] - proba[bin_], weights=cells.weight[bin_])) < 0.02


def test_the_budget_is_used_up_and_no_more() -> None:
    scores, cells = sample(n=2000)
    amounts = []
    for max_gap in (0.0, 0.05, 0.1, 0.2, 0.9):
        alignment = MonotoneAlignment.fit(scores, cells, max_gap)
        gap = np.nanmax(alignment.measured)
        amounts.append(alignment.amount)
        largest_tie = cells.weight.max() / cells.totals.min()
        assert gap <= max(max_gap, largest_tie)
        assert alignment.amount in (0, 1) or gap > max_gap - 0.01
    assert amounts[0] == 1
    assert amounts[-1] == 0
    assert np.array_equal(amounts, sorted(amounts, reverse=True))
    assert len(set(amounts)) > 3


def test_the_measured_gap_is_the_largest_over_thresholds() -> None:
    scores, cells = sample(n=300)
    alignment = MonotoneAlignment.fit(scores, cells, 0.1)
    mapped = alignment.mapped(scores, cells.group_codes)
    one, two = (
        np.array([np.average(mapped[rows] > t, weights=cells.weight[rows]) for t in mapped])
        for rows in (cells.counted(1, a) for a in (0, 1))
    )
    assert alignment.measured[0, 0, 1] == pytest.approx(np.abs(one - two).max())


# ---- several classes


def primal(proba: npt.NDArray[Any], cells: Cells, max_gap: float) -> float:
    """Accuracy of the best randomised classifier within the budget, from a generic solver."""
    n, K = proba.shape
    G = cells.n_groups
    cost = np.concatenate([-proba.ravel() / n, np.zeros(K)])
    limits, bounds = [], []
    for k in range(K):
        for a in range(G):
            rate = np.zeros((n, K))
            rows = cells.group_codes == a
            gain = proba[:, k] if cells.constraint == "equal_opportunity" else np.ones(n)
            rate[rows, k] = gain[rows] / gain[rows].sum()
            centre = np.eye(K)[k]
            for sign in (1, -1):
                limits.append(np.concatenate([sign * rate.ravel(), -sign * centre]))
                bounds.append(max_gap / 2)
    one_class_each = np.hstack([np.kron(np.eye(n), np.ones(K)), np.zeros((n, K))])
    found = linprog(cost, A_ub=limits, b_ub=bounds, A_eq=one_class_each, b_eq=np.ones(n), bounds=(0, None))
    return -float(found.fun)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("max_gap", [0.0, 0.15])
@pytest.mark.parametrize("n_groups", [2, 3])
def test_the_multipliers_are_optimal(constraint: Any, max_gap: float, n_groups: int) -> None:
    proba, cells = class_proba(n=150, n_classes=3, n_groups=n_groups, constraint=constraint)
    program = RateProgram(proba, cells, max_gap, prior_rows=np.inf)
    optimum = primal(proba, cells, max_gap)
    free = np.zeros(program._basis.shape[1])
    for width in (1e-2, 1e-3, 1e-4, 1e-5):
        free = program._minimise(free, width)
    multipliers = (program._basis @ free).reshape(n_groups, 3)
    assert program.dual(multipliers) == pytest.approx(optimum, abs=1e-4)
    assert primal(proba, cells, 1.0) - optimum > 0.005  # the budget binds
    # Without randomisation it is as accurate but for the rows on a boundary, one for each free multiplier.
    chosen = (
        OffsetAlignment(program.offsets(multipliers), constraint, np.zeros(0), max_gap)
        .proba(proba, cells.group_codes)
        .argmax(axis=1)
    )
    assert abs(proba[np.arange(150), chosen].mean() - optimum) <= len(free) / 150


def primal_rms(proba: npt.NDArray[Any], cells: Cells, max_gap: float) -> float:
    """Accuracy under the probabilities of the best randomised classifier whose gaps have a bounded root mean square."""
    cp = pytest.importorskip("cvxpy")
    n, K = proba.shape
    decided, centre, half = cp.Variable((n, K), nonneg=True), cp.Variable(K), cp.Variable(K)
    limits = [cp.sum(decided, axis=1) == 1, cp.norm(half) <= np.sqrt(K) * max_gap / 2]
    for a in range(cells.n_groups):
        rows = cells.group_codes == a
        counts = proba[rows] if cells.constraint == "equal_opportunity" else np.ones((rows.sum(), K))
        rate = cp.sum(cp.multiply(decided[rows], counts / counts.sum(axis=0)), axis=0)
        limits.append(cp.abs(rate - centre) <= half)
    problem = cp.Problem(cp.Maximize(cp.sum(cp.multiply(decided, proba)) / n), limits)
    return float(problem.solve(solver="CLARABEL"))


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("n_groups", [2, 3])
@pytest.mark.parametrize("dense", [True, False])
def test_the_multipliers_are_optimal_for_the_root_mean_square(
    constraint: Any, n_groups: int, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not dense:
        monkeypatch.setattr(RateProgram, "_MAX_DENSE", 0)
    proba, cells = class_proba(n=150, n_classes=3, n_groups=n_groups, constraint=constraint)
    program = RateProgram(proba, cells, 0.1, prior_rows=np.inf, agg="rms")
    free = np.zeros(program._basis.shape[1])
    for width in (1e-2, 1e-3, 1e-4, 1e-5):
        free = program._minimise(free, width)
    optimum = primal_rms(proba, cells, 0.1)
    assert program.dual((program._basis @ free).reshape(n_groups, 3)) == pytest.approx(optimum, abs=1e-4)
    # Every classifier whose largest gap is within the budget is allowed, and more.
    assert primal(proba, cells, 0.1) < optimum - 1e-3
    assert primal(proba, cells, 1.0) - optimum > 0.005


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("n_groups", [2, 3])
def test_the_root_mean_square_of_the_gaps_is_at_the_budget(constraint: Any, n_groups: int) -> None:
    proba, cells = class_proba(n_groups=n_groups, constraint=constraint)
    gaps = OffsetAlignment.fit(proba, cells, 0.1, 0.0, "rms").measured.max(axis=(1, 2))
    assert np.sqrt(np.mean(gaps**2)) == pytest.approx(0.1, abs=0.01)
    assert gaps.max() > 0.11


def test_the_aligner_bounds_the_root_mean_square_when_asked() -> None:
    proba, cells = class_proba()
    fitted = {}
    for agg in ("max", "rms"):
        aligner = ScoreAligner(FrozenEstimator(Scores().fit(None, range(4))), max_gap=0.1, agg=agg)
        fitted[agg] = aligner.fit(proba, cells.y_codes, sensitive_features=cells.group_codes)
    gaps = {name: aligner.gap_band().measured.max(axis=(1, 2)) for name, aligner in fitted.items()}
    assert gaps["max"].max() < gaps["rms"].max()
    assert np.sqrt(np.mean(gaps["rms"] ** 2)) == pytest.approx(0.1, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("max_gap", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("n_groups", [2, 3])
def test_the_gap_of_the_rows_is_at_the_budget(constraint: Any, max_gap: float, n_groups: int) -> None:
    proba, cells = class_proba(n_groups=n_groups, constraint=constraint)
    before = np.nanmax(OffsetAlignment.fit(proba, cells, 1.0, 0.0).measured)
    alignment = OffsetAlignment.fit(proba, cells, max_gap, 0.0)
    assert before > 0.3
    assert max_gap - 0.02 < np.nanmax(alignment.measured) < max_gap + 2 / cells.totals.min()
    chosen = alignment.proba(proba, cells.group_codes).argmax(axis=1)
    for k in range(cells.n_classes):
        rate = [(chosen[cells.counted(k, a)] == k).mean() for a in range(n_groups)]
        assert np.ptp(rate) == pytest.approx(alignment.measured[k].max())


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_aligned_probabilities_are_probabilities_and_favour_the_class_with_the_largest_offset_one(
    constraint: Any,
) -> None:
    proba, cells = class_proba(constraint=constraint)
    alignment = OffsetAlignment.fit(proba, cells, 0.0, 10.0)
    aligned = alignment.proba(proba, cells.group_codes)
    np.testing.assert_allclose(aligned.sum(axis=1), 1)
    assert (aligned >= 0).all()
    offsets = alignment.offsets[cells.group_codes]
    ranked = np.log(proba) + offsets if constraint == "equal_opportunity" else proba + offsets
    assert np.array_equal(aligned.argmax(axis=1), ranked.argmax(axis=1))


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_nothing_changes_within_the_budget(constraint: Any) -> None:
    proba, cells = class_proba(constraint=constraint)
    alignment = OffsetAlignment.fit(proba, cells, 1.0, 10.0)
    np.testing.assert_allclose(alignment.proba(proba, cells.group_codes), proba)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_both_ways_agree_on_two_classes(constraint: Any) -> None:
    proba, cells = class_proba(n=20_000, n_classes=2, constraint=constraint, seed=1)
    log_odds = np.log(proba[:, 1] / proba[:, 0])
    maps = MonotoneAlignment.fit(log_odds, cells, 0.0).proba(log_odds, cells.group_codes).argmax(axis=1)
    offsets = OffsetAlignment.fit(proba, cells, 0.0, 0.0).proba(proba, cells.group_codes).argmax(axis=1)
    assert (maps != offsets).mean() < 0.02
    assert (maps != proba.argmax(axis=1)).mean() > 0.05
    assert (maps == cells.y_codes).mean() == pytest.approx((offsets == cells.y_codes).mean(), abs=0.002)


def test_offsets_reach_the_smallest_gap_where_one_group_is_better_in_every_class() -> None:
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 3, 3000), rng.integers(0, 2, 3000)
    proba = softmax(np.where(group == 0, 3, 1)[:, None] * (np.eye(3)[y] + 0.6 * rng.normal(size=(3000, 3))), axis=1)
    proba[group == 1] = softmax(np.eye(3)[y[group == 1]] + 0.9 * rng.normal(size=((group == 1).sum(), 3)), axis=1)
    cells = Cells(y, group, np.ones(3000), 3, 2, "equal_opportunity")
    before = OffsetAlignment.fit(proba, cells, 1.0, 0.0).measured[:, 0, 1]
    alignment = OffsetAlignment.fit(proba, cells, 0.0, 0.0)
    # Offsets trade the rates of a group for one another, so the best is the mean of the gaps in every class.
    assert alignment.budget == pytest.approx(before.mean(), abs=0.02)
    assert alignment.measured.max() == pytest.approx(alignment.budget, abs=0.01)
    aligner = ScoreAligner(FrozenEstimator(Scores().fit(None, [0, 1, 2])), prior_rows=0)
    with pytest.warns(UserWarning, match="would have to be made worse at random"):
        aligner.fit(proba, y, sensitive_features=group)
    assert aligner.max_gap_ == alignment.budget


def distorted(proba: npt.NDArray[Any], cells: Cells) -> npt.NDArray[Any]:
    """Probabilities that are too sure, and off by class, otherwise in each group."""
    slope = 2 + np.arange(cells.n_groups)[cells.group_codes, None]
    shift = np.random.default_rng(5).normal(size=(cells.n_groups, cells.n_classes))
    return np.asarray(softmax(slope * np.log(proba) + shift[cells.group_codes], axis=1))


def test_calibration_undoes_what_a_slope_and_offsets_did_to_the_probabilities() -> None:
    proba, cells = class_proba(n=30_000)
    off = distorted(proba, cells)
    calibrated = GroupScalings.fit(off, cells)(off, cells.group_codes)
    np.testing.assert_allclose(calibrated.sum(axis=1), 1)
    assert np.abs(off - proba).mean() > 0.05
    assert np.abs(calibrated - proba).mean() < 0.01


def test_calibration_counts_integer_weights_as_repetitions_and_stays_finite() -> None:
    proba, cells = class_proba(n=300, n_groups=2)
    proba[:5] = np.eye(4)[0]
    kept = (cells.y_codes != 2) | (cells.group_codes != 1)
    some = Cells(cells.y_codes[kept], cells.group_codes[kept], np.ones(kept.sum()), 4, 2, cells.constraint)
    times = np.random.default_rng(0).integers(1, 4, kept.sum())
    weighted = GroupScalings.fit(proba[kept], some._replace(weight=times.astype(float)))
    y_codes, group_codes = np.repeat(some.y_codes, times), np.repeat(some.group_codes, times)
    repeated = Cells(y_codes, group_codes, np.repeat(some.weight, times), 4, 2, cells.constraint)
    again = GroupScalings.fit(np.repeat(proba[kept], times, axis=0), repeated)
    np.testing.assert_allclose(weighted.offsets, again.offsets, atol=1e-3)
    assert np.isfinite(weighted.offsets).all()
    assert np.isfinite(weighted(proba, cells.group_codes)).all()


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_calibrated_probabilities_are_aligned_as_the_true_ones_are(constraint: Any) -> None:
    proba, cells = class_proba(n=10_000, constraint=constraint)
    off = distorted(proba, cells)

    def chosen(scores: npt.NDArray[Any], calibrate: bool) -> npt.NDArray[Any]:
        alignment = OffsetAlignment.fit(scores, cells, 0.05, 10.0, calibrate=calibrate)
        return np.asarray(alignment.proba(scores, cells.group_codes).argmax(axis=1))

    truth = chosen(proba, False)
    agree = {calibrate: np.mean(chosen(off, calibrate) == truth) for calibrate in (False, True)}
    assert agree[True] > 0.97
    assert agree[True] > agree[False] + 0.01


def test_the_aligner_calibrates_when_asked() -> None:
    proba, cells = class_proba()
    off = distorted(proba, cells)
    known = {"sensitive_features": cells.group_codes}
    likelihood = {}
    for calibrate in (False, True):
        aligner = ScoreAligner(FrozenEstimator(Scores().fit(None, range(4))), max_gap=1.0, calibrate=calibrate)
        answer = aligner.fit(off, cells.y_codes, **known).predict_proba(off, **known)
        likelihood[calibrate] = np.log(answer[np.arange(len(off)), cells.y_codes]).mean()
    assert likelihood[True] > likelihood[False] + 0.1


@pytest.mark.slow
def test_small_cells_are_drawn_to_what_the_probabilities_expect() -> None:
    proba, cells = class_proba(n=400)
    gaps = []
    for prior_rows in (0.0, 10.0, 1e9):
        program = RateProgram(proba, cells, 0.0, prior_rows)
        _, expected = program.rates(program.solve()[0])
        gaps.append(np.ptp(expected, axis=0).max())
    assert gaps[2] < gaps[1] < gaps[0]
    assert gaps[2] < gaps[0] / 2


@pytest.mark.slow
def test_a_cell_without_rows_takes_no_part() -> None:
    proba, cells = class_proba(n_groups=3)
    some = (cells.y_codes != 2) | (cells.group_codes != 1)
    proba = proba[some]
    cells = cells._replace(**{name: getattr(cells, name)[some] for name in ("y_codes", "group_codes", "weight")})
    alignment = OffsetAlignment.fit(proba, cells, 0.0, 0.0)
    assert alignment.offsets[1, 2] == 0
    assert np.isnan(alignment.measured[2, 1]).all()
    assert np.nanmax(alignment.measured) <= 1 / cells.totals[cells.totals > 0].min()


def test_many_groups_and_classes_need_no_factored_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    proba, cells = class_proba(n_groups=3)
    newton = OffsetAlignment.fit(proba, cells, 0.05, 0.0)
    monkeypatch.setattr(RateProgram, "_MAX_DENSE", 0)
    other = OffsetAlignment.fit(proba, cells, 0.05, 0.0)
    assert np.nanmax(other.measured) < 0.08
    agree = newton.proba(proba, cells.group_codes).argmax(axis=1) == other.proba(proba, cells.group_codes).argmax(
        axis=1
    )
    assert agree.mean() > 0.98


# ---- the band


@pytest.mark.slow
def test_the_band_holds_at_every_threshold_as_often_as_it_says() -> None:
    """Two groups, exponential scores: the deployed gap at every threshold is known exactly."""
    rng = np.random.default_rng(0)
    n, failures, widths = 50, 0, []
    grid = np.linspace(0, 12, 400)
    group = np.repeat([0, 1], n)
    for _ in range(200):
        scores = rng.exponential([1.0, 2.0], (n, 2)).T.ravel()
        aligner = ScoreAligner(FrozenEstimator(Scores().fit(None, [0, 1])), constraint="demographic_parity")
        proba = np.column_stack([expit(-scores), expit(scores)])
        aligner.fit(proba, rng.integers(0, 2, 2 * n), sensitive_features=group)
        band = aligner.gap_band(confidence_level=0.8)
        widths.append(band.upper[0, 0, 1])
        # P(mapped > t) in group a is that of the score above the only score that is mapped to t.
        maps: Any = aligner.alignment_.maps
        mapped = [maps.mapped(grid, np.full(400, a)) for a in (0, 1)]
        above = [np.interp(mapped[0], m, np.exp(-grid / scale)) for m, scale in zip(mapped, (1, 2), strict=True)]
        failures += np.abs(above[0] - above[1]).max() > band.upper[0, 0, 1]
    assert failures / 200 <= 0.2
    assert max(widths) < 0.6


@pytest.mark.slow
def test_the_band_of_several_classes_holds_on_fresh_rows() -> None:
    failures = 0
    for seed in range(12):
        proba, cells = class_proba(n=1500, n_classes=3, seed=seed, spread=0.7)
        aligner = ScoreAligner(FrozenEstimator(Scores().fit(None, [0, 1, 2])))
        aligner.fit(proba[:500], cells.y_codes[:500], sensitive_features=cells.group_codes[:500])
        chosen = aligner.predict(proba[500:], sensitive_features=cells.group_codes[500:])
        upper = aligner.gap_band(confidence_level=0.5).upper
        for k in range(3):
            rate = [(chosen == k)[(cells.y_codes[500:] == k) & (cells.group_codes[500:] == a)].mean() for a in (0, 1)]
            failures += abs(rate[0] - rate[1]) > upper[k, 0, 1]
    assert failures <= 6


def test_the_band_is_the_measured_gap_and_two_radii() -> None:
    X, y, group = class_data(n_classes=2)
    aligner = ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=group)
    band = aligner.gap_band(confidence_level=0.9)
    rows = [((y == 1) & (group == a)).sum() for a in (0, 1)]
    radius = [np.sqrt(np.log(2 * 2 / 0.1) / (2 * n)) for n in rows]
    assert band.rows.tolist() == [rows]
    assert band.upper[0, 0, 1] == pytest.approx(band.measured[0, 0, 1] + sum(radius))
    assert band.upper[0, 0, 0] == 0
    assert band.classes.tolist() == [1]
    assert band.groups.tolist() == [0, 1]
    for confidence in (0, 1, 1.5):
        with pytest.raises(ValueError, match="confidence_level must be in"):
            aligner.gap_band(confidence_level=confidence)


# ---- cross-fitting


def test_maps_are_fitted_on_out_of_fold_scores() -> None:
    X, y, group = class_data(n_classes=2)
    aligner = ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=group)
    scores = np.empty(len(y))
    for train, test in StratifiedKFold(5).split(X, 2 * y + group):
        scores[test] = LogisticRegression().fit(X[train], y[train]).decision_function(X[test])
    by_hand = MonotoneAlignment.fit(scores, Cells(y, group, np.ones(len(y)), 2, 2, "equal_opportunity"), 0.0)
    final = LogisticRegression().fit(X, y)
    np.testing.assert_allclose(aligner.estimator_.coef_, final.coef_)
    np.testing.assert_allclose(
        aligner.predict_proba(X, sensitive_features=group), by_hand.proba(final.decision_function(X), group), atol=1e-9
    )


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_frozen_classifier_is_aligned_on_all_rows_and_not_trained(n_classes: int) -> None:
    X, y, group = class_data(n_classes=n_classes)
    classifier = LogisticRegression().fit(X[:300], y[:300])
    coefficients = classifier.coef_.copy()
    X, y, group = X[300:], y[300:], group[300:]
    aligner = ScoreAligner(FrozenEstimator(classifier), prior_rows=0).fit(X, y, sensitive_features=group)
    assert np.array_equal(classifier.coef_, coefficients)
    predicted = aligner.predict(X, sensitive_features=group)
    assert equal_opportunity_difference(y, predicted, sensitive_features=group) < aligner.max_gap_ + 0.01
    assert aligner.max_gap_ < 0.02
    assert equal_opportunity_difference(y, classifier.predict(X), sensitive_features=group) > 0.1


@pytest.mark.slow
def test_splits_of_every_kind(recwarn: pytest.WarningsRecorder) -> None:
    X, y, group = class_data()
    expected = ScoreAligner(LogisticRegression(), cv=4).fit(X, y, sensitive_features=group)
    splits = list(StratifiedKFold(4).split(X, 2 * y + group))
    given = ScoreAligner(LogisticRegression(), cv=splits).fit(X, y, sensitive_features=group)
    assert np.array_equal(
        given.predict_proba(X, sensitive_features=group), expected.predict_proba(X, sensitive_features=group)
    )
    ScoreAligner(LogisticRegression(), cv=KFold(3)).fit(X, y, sensitive_features=group)
    some = ScoreAligner(LogisticRegression(), cv=splits[:2]).fit(X, y, sensitive_features=group)  # half of the rows
    assert some.gap_band().rows.sum() == pytest.approx(450, abs=2)
    with pytest.raises(ValueError, match="more than once"):
        ScoreAligner(LogisticRegression(), cv=ShuffleSplit(5)).fit(X, y, sensitive_features=group)
    assert not recwarn


def test_a_fold_without_a_class_is_refused_with_the_way_out() -> None:
    X, y, group = class_data()
    y = np.where(y == 2, 0, y)
    y[7] = 2
    with pytest.raises(ValueError, match=r"no rows of class 2.*FrozenEstimator"):
        ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=group)


def test_small_strata_need_no_row_in_every_fold() -> None:
    X, y, group = class_data(n_classes=2)
    group[:3] = 5
    aligner = ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=group)
    assert aligner.groups_.tolist() == [0, 1, 5]
    assert np.isfinite(aligner.predict_proba(X, sensitive_features=group)).all()


@pytest.mark.filterwarnings("ignore:There are fewer rows than the .* features in the group 5")
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_a_group_of_one_row_is_treated_as_the_others_together(n_classes: int, constraint: Any) -> None:
    X, y, group = class_data(n_classes=n_classes)
    group[0] = 5
    aligner = ScoreAligner(IdealDistributionClassifier(), constraint=constraint)
    with pytest.warns(UserWarning, match=r"No row of the subgroups|no out-of-fold row of .*group 5"):
        aligner.fit(X, y, sensitive_features=group)
    proba = aligner.predict_proba(X, sensitive_features=np.full(900, 5))
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert np.isnan(aligner.gap_band().upper[:, 2]).all()


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_class_that_a_group_lacks_is_said_and_does_no_harm(n_classes: int) -> None:
    X, y, group = class_data(n_classes=n_classes)
    some = (y != 1) | (group != 1)
    X, y, group = X[some], y[some], group[some]
    with pytest.warns(UserWarning, match="no out-of-fold row of class 1 in group 1: the rates there are not known"):
        aligner = ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=group)
    proba = aligner.predict_proba(X, sensitive_features=group)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert np.isnan(aligner.gap_band().upper[:, 1, 1]).sum() == 1


def test_a_class_without_rows_at_all_cannot_be_aligned() -> None:
    X, y, group = class_data(n_classes=2)
    frozen = FrozenEstimator(LogisticRegression().fit(X, y))
    with pytest.raises(ValueError, match="No row of class 1 is left"):
        ScoreAligner(frozen).fit(X[y == 0], y[y == 0], sensitive_features=group[y == 0])
    with pytest.raises(ValueError, match="classes 7, which the fitted classifier does not know"):
        ScoreAligner(frozen).fit(X, np.where(y == 0, 7, y), sensitive_features=group)


# ---- classifiers of every kind


def test_two_classes_need_no_probabilities() -> None:
    X, y, group = class_data(n_classes=2)
    aligner = ScoreAligner(RidgeClassifier()).fit(X, y, sensitive_features=group)
    proba = aligner.predict_proba(X, sensitive_features=group)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_allclose(
        aligner.decision_function(X, sensitive_features=group), np.log(proba[:, 1] / proba[:, 0]), atol=1e-9
    )
    three = class_data()
    with pytest.raises(
        ValueError, match=r"no predict_proba, which more than two classes need \(3 here\).*CalibratedClass"
    ):
        ScoreAligner(RidgeClassifier()).fit(three[0], three[1], sensitive_features=three[2])


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 3])
def test_methods_agree_with_one_another_on_string_labels(n_classes: int) -> None:
    X, codes, group = class_data(n_classes=n_classes)
    y = np.array(["no", "yes", "maybe"])[codes]
    aligner = ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=np.array(["f", "m"])[group])
    predicted, proba, log_proba, decision = (
        getattr(aligner, method)(X, sensitive_features=np.array(["f", "m"])[group]) for method in METHODS
    )
    assert aligner.classes_.tolist() == sorted(set(y))
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_allclose(proba, np.exp(log_proba))
    assert np.array_equal(predicted, aligner.classes_[proba.argmax(axis=1)])
    expected = log_proba[:, 1] - log_proba[:, 0] if n_classes == 2 else log_proba
    np.testing.assert_array_equal(decision, expected)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_probabilities_of_zero_and_one_and_many_ties(n_classes: int) -> None:
    X, y, group = class_data(n_classes=n_classes)
    for constraint in CONSTRAINTS:
        aligner = ScoreAligner(DecisionTreeClassifier(max_depth=8, random_state=0), constraint=constraint)
        proba = aligner.fit(X, y, sensitive_features=group).predict_proba(X, sensitive_features=group)
        assert np.isfinite(proba).all()
        np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_one_class_is_predicted_for_all() -> None:
    X, _, group = class_data()
    tree = DecisionTreeClassifier()
    aligner = ScoreAligner(tree).fit(X, np.full(len(X), "a"), sensitive_features=group)
    assert set(aligner.predict(X, sensitive_features=group)) == {"a"}
    assert aligner.gap_band().upper.size == 0


def test_rows_in_other_containers() -> None:
    X, y, group = class_data(n_classes=2)
    expected = ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=group)
    proba = expected.predict_proba(X, sensitive_features=group)
    for rows, labels in (
        (X.tolist(), group.tolist()),
        (csr_array(X), pd.Series(group)),
        (pl.DataFrame(X, schema=list("abc")), pl.Series(group)),
    ):
        aligner = ScoreAligner(LogisticRegression()).fit(rows, y.tolist(), sensitive_features=labels)
        np.testing.assert_allclose(aligner.predict_proba(rows, sensitive_features=labels), proba, atol=1e-6)


# ---- groups


def test_groups_from_columns_of_a_frame() -> None:
    X, y, group = class_data(n_classes=2)
    frame = pd.DataFrame(X, columns=list("abc")).assign(sex=np.array(["f", "m"])[group])
    blind = make_pipeline(make_column_transformer(("passthrough", list("abc"))), LogisticRegression())
    aligner = ScoreAligner(blind, sensitive_columns="sex").fit(frame, y)
    beside = ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=group)
    np.testing.assert_allclose(
        aligner.predict_proba(frame), beside.predict_proba(X, sensitive_features=group), atol=1e-9
    )
    assert aligner.groups_.tolist() == ["f", "m"]
    assert aligner.feature_names_in_.tolist() == ["a", "b", "c", "sex"]
    assert 0.5 < aligner.score(frame, y) < 1
    with pytest.raises(ValueError, match="given twice"):
        aligner.predict(frame, sensitive_features=group)
    with pytest.raises(TypeError, match="sparse X"):
        ScoreAligner(LogisticRegression(), sensitive_columns=0).fit(csr_array(X), y)


@pytest.mark.parametrize("method", METHODS)
def test_unknown_groups_are_an_error_with_the_way_out(method: str) -> None:
    X, y, group = class_data(n_classes=2)
    aligner = ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=group)
    with pytest.raises(ValueError, match=r"fitted on the groups 0, 1 .*unknown_group='average'"):
        getattr(aligner, method)(X)
    with pytest.raises(ValueError, match=r"9 \(900 rows\).*unknown_group='average'"):
        getattr(aligner, method)(X, sensitive_features=np.full(900, 9))
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[900, 3\]"):
        getattr(aligner, method)(X, sensitive_features=group[:3])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_unknown_groups_may_get_the_average_over_groups(n_classes: int) -> None:
    X, y, group = class_data(n_classes=n_classes)
    weight = np.where(group == 0, 3.0, 1.0)
    aligner = ScoreAligner(LogisticRegression(), unknown_group="average")
    aligner.fit(X, y, sensitive_features=group, sample_weight=weight)
    share = weight[group == 0].sum() / weight.sum()
    each = [aligner.predict_proba(X, sensitive_features=np.full(900, a)) for a in (0, 1)]
    np.testing.assert_allclose(aligner.predict_proba(X), share * each[0] + (1 - share) * each[1])
    labels = group.astype(object)
    labels[:300] = None
    mixed = aligner.predict_proba(X, sensitive_features=labels)
    np.testing.assert_allclose(mixed[:300], aligner.predict_proba(X[:300]))
    np.testing.assert_allclose(mixed[300:], aligner.predict_proba(X[300:], sensitive_features=group[300:]))


@pytest.mark.slow
def test_rows_without_a_group_are_left_out_of_the_fit() -> None:
    X, y, group = class_data()
    labels = group.astype(object)
    labels[:50] = None
    with pytest.warns(UserWarning, match="50 of 900 rows have a missing group"):
        aligner = ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=labels)
    without = ScoreAligner(LogisticRegression()).fit(X[50:], y[50:], sensitive_features=group[50:])
    np.testing.assert_allclose(
        aligner.predict_proba(X, sensitive_features=group), without.predict_proba(X, sensitive_features=group)
    )


@pytest.mark.parametrize("n_classes", [2, 3])
def test_without_groups_the_order_of_rows_stays_and_a_warning_says_so(n_classes: int) -> None:
    X, y, group = class_data(n_classes=n_classes)
    with pytest.warns(UserWarning, match="nothing is being aligned"):
        aligner = ScoreAligner(LogisticRegression()).fit(X, y)
    plain = LogisticRegression().fit(X, y).predict_proba(X)
    aligned = aligner.predict_proba(X)
    if n_classes == 2:  # calibrated
        order = np.argsort(aligner.estimator_.decision_function(X))
        assert (np.diff(aligner.decision_function(X)[order]) > 0).all()
    else:
        np.testing.assert_allclose(aligned, plain)
    with pytest.raises(ValueError, match="fitted without groups"):
        aligner.predict(X, sensitive_features=group)


# ---- what reaches the classifier


@pytest.mark.parametrize(
    "container", [list, pd.array, pd.Series, pd.Categorical, pl.Series, pl.DataFrame, pd.DataFrame]
)
def test_groups_in_any_container_are_split_into_folds(container: Any) -> None:
    X, y, group = class_data(n=300, n_classes=2)
    labels = np.array(["f", "m"])[group]
    expected = ScoreAligner(IdealDistributionClassifier()).fit(X, y, sensitive_features=labels)
    given = container(labels.tolist())
    aligner = ScoreAligner(IdealDistributionClassifier()).fit(X, y, sensitive_features=given)
    np.testing.assert_allclose(
        aligner.predict_proba(X, sensitive_features=given), expected.predict_proba(X, sensitive_features=labels)
    )


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("routing", [False, True])
def test_groups_reach_a_classifier_that_takes_them(routing: bool, frozen: bool) -> None:
    X, y, group = class_data(n_classes=2)
    inner: Any = IdealDistributionClassifier()
    if frozen:
        inner = FrozenEstimator(inner.fit(X[:300], y[:300], sensitive_features=group[:300]))
        X, y, group = X[300:], y[300:], group[300:]
    with sklearn.config_context(enable_metadata_routing=routing):
        aligner = ScoreAligner(inner).fit(X, y, sensitive_features=group)
        proba = aligner.predict_proba(X, sensitive_features=group)
        assert aligner.score(X, y, sensitive_features=group) > 0.6
    scores = aligner.estimator_.decision_function(X, sensitive_features=group)
    assert aligner.estimator_.steering_.groups_.tolist() == [0, 1]
    np.testing.assert_allclose(proba, aligner.alignment_.predict_proba(scores, sensitive_features=group), atol=1e-9)


def test_groups_reach_the_steering_of_a_pipeline_by_routing() -> None:
    X, y, group = class_data(n_classes=2)
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(FairSteeringTransformer(), LogisticRegression())
        aligner = ScoreAligner(pipeline).fit(X, y, sensitive_features=group)
        predicted = aligner.predict(X, sensitive_features=group)
    assert equal_opportunity_difference(y, predicted, sensitive_features=group) < 0.05
    assert aligner.estimator_[0].groups_.tolist() == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_integer_weights_are_repetitions_and_zero_leaves_out(n_classes: int, constraint: Any) -> None:
    X, y, group = class_data(n_classes=n_classes)
    weight = np.random.default_rng(1).integers(0, 3, len(y))
    frozen = FrozenEstimator(LogisticRegression().fit(X[:200], y[:200]))
    weighted = ScoreAligner(frozen, constraint=constraint).fit(X, y, sensitive_features=group, sample_weight=weight)
    again = ScoreAligner(frozen, constraint=constraint)
    again.fit(*(np.repeat(part, weight, axis=0) for part in (X, y)), sensitive_features=np.repeat(group, weight))
    np.testing.assert_allclose(
        weighted.predict_proba(X, sensitive_features=group), again.predict_proba(X, sensitive_features=group), atol=1e-4
    )
    scaled = ScoreAligner(frozen, constraint=constraint)
    ones = np.full(len(y), 1e-3)
    scaled.fit(X, y, sensitive_features=group, sample_weight=ones)
    plain = ScoreAligner(frozen, constraint=constraint).fit(X, y, sensitive_features=group)
    np.testing.assert_allclose(
        scaled.predict_proba(X, sensitive_features=group), plain.predict_proba(X, sensitive_features=group), atol=1e-4
    )


def test_weights_reach_the_classifier_or_a_warning_says_they_do_not() -> None:
    X, y, group = class_data(n_classes=2)
    weight = np.random.default_rng(0).uniform(0.5, 2, len(y))
    for classifier in (LogisticRegression(), make_pipeline(StandardScaler(), LogisticRegression())):
        aligner = ScoreAligner(classifier).fit(X, y, sensitive_features=group, sample_weight=weight)
        name = {} if isinstance(classifier, LogisticRegression) else {"logisticregression__sample_weight": weight}
        by_hand = clone(classifier).fit(X, y, **(name or {"sample_weight": weight}))
        np.testing.assert_allclose(aligner.estimator_.predict_proba(X), by_hand.predict_proba(X))
    with pytest.warns(UserWarning, match="takes no sample_weight in fit: the weights are used for the alignment only"):
        ScoreAligner(KNeighborsClassifier()).fit(X, y, sensitive_features=group, sample_weight=weight)


# ---- scikit-learn's manners


def test_a_search_over_the_budget() -> None:
    X, y, group = class_data(n_classes=2)
    frame = np.column_stack([X, group])
    aligner = ScoreAligner(LogisticRegression(), sensitive_columns=-1)
    search = GridSearchCV(aligner, {"max_gap": [0.0, 0.1, 1.0], "estimator__C": [0.1, 1]}, cv=3).fit(frame, y)
    assert search.best_score_ > 0.6


def test_groups_are_requested_without_being_asked() -> None:
    with sklearn.config_context(enable_metadata_routing=True):
        routing = ScoreAligner(LogisticRegression()).get_metadata_routing()
    for method in ("fit", "score", *METHODS):
        assert getattr(routing._self_request, method).requests["sensitive_features"] is True


@pytest.mark.parametrize("method", METHODS)
def test_nothing_works_before_fit(method: str) -> None:
    with pytest.raises(NotFittedError):
        getattr(ScoreAligner(LogisticRegression()), method)(np.zeros((2, 2)))


@pytest.mark.parametrize(
    "bad",
    [
        {"constraint": "equalized_odds"},
        {"max_gap": -0.1},
        {"max_gap": 1.1},
        {"prior_rows": -1},
        {"unknown_group": 0},
        {"agg": "mean"},
        {"calibrate": 2},
    ],
)
def test_bad_parameters_are_refused(bad: dict[str, Any]) -> None:
    X, y, group = class_data()
    with pytest.raises(ValueError, match=f"The '{next(iter(bad))}' parameter"):
        ScoreAligner(LogisticRegression(), **bad).fit(X, y, sensitive_features=group)


def test_bad_rows_are_refused() -> None:
    X, y, group = class_data()
    aligner = ScoreAligner(LogisticRegression())
    with pytest.raises(ValueError, match="continuous"):
        aligner.fit(X, X[:, 0], sensitive_features=group)
    with pytest.raises(ValueError, match="inconsistent"):
        aligner.fit(X, y, sensitive_features=group[:10])
    with pytest.raises(ValueError, match="No row is left"):
        aligner.fit(X, y, sensitive_features=group, sample_weight=np.zeros(900))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_clone_and_pickle(n_classes: int) -> None:
    X, y, group = class_data(n_classes=n_classes)
    aligner = ScoreAligner(LogisticRegression(), max_gap=0.03).fit(X, y, sensitive_features=group)
    expected = aligner.predict_proba(X, sensitive_features=group)
    again = clone(aligner).fit(X, y, sensitive_features=group)
    for other in (again, pickle.loads(pickle.dumps(aligner))):
        assert np.array_equal(other.predict_proba(X, sensitive_features=group), expected)


# ---- real data


def test_the_gap_on_fresh_rows_of_compas_falls(real_data: Path) -> None:
    table = pd.read_parquet(real_data / "tabular" / "compas.parquet")
    table = table[table["race"].isin(["African-American", "Caucasian"])]
    columns = ["age", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count"]
    X, y = table[columns].to_numpy(float), table["two_year_recid"].to_numpy()
    group = table["race"].astype(str).to_numpy()
    train = np.arange(len(y)) % 2 == 0
    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    raw = clone(classifier).fit(X[train], y[train]).predict(X[~train])
    aligner = ScoreAligner(classifier).fit(X[train], y[train], sensitive_features=group[train])
    aligned = aligner.predict(X[~train], sensitive_features=group[~train])
    gap = [equal_opportunity_difference(y[~train], p, sensitive_features=group[~train]) for p in (raw, aligned)]
    accuracy = [(p == y[~train]).mean() for p in (raw, aligned)]
    assert gap[0] > 0.2
    assert gap[1] < 0.06
    assert accuracy[1] > accuracy[0] - 0.02
