"""IdealDistributionClassifierCV: what is measured out of fold, the rule of the choice, and the classifier it gives."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy import stats
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, ShuffleSplit, StratifiedKFold, cross_val_score, cross_validate
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from fairsteer import (
    FairSteeringTransformer,
    IdealDistributionClassifier,
    IdealDistributionClassifierCV,
    ScoreAligner,
    metrics,
)
from fairsteer.classifier._candidates import default_candidates, shared_fits
from fairsteer.classifier._choice import CHANCE, Gap, HeldOutRows, choose, largest_gap
from fairsteer.scoring import fairness_scorer, performance_scorer

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.intp]


def problem(n: int = 900, n_classes: int = 2, n_groups: int = 2, seed: int = 0) -> tuple[Floats, Codes, Codes]:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, n_groups, n)
    y = np.where(rng.random(n) < 0.35 + 0.3 * group / n_groups, 1, rng.integers(0, n_classes, n))
    X = (
        rng.normal(size=(n, 4)) * (1 + 0.3 * group[:, None])
        + np.outer(y, [1, 0.5, 0, 0])
        + np.outer(group, [0, 1, 0.8, 0])
    )
    X[:, 3] = np.floor(2 * X[:, 3] + group)
    return X, y, group


X, Y, GROUP = problem()
GRID = {
    "score_alignment": [None, "equal_opportunity"],
    "steering__map_type": ["translation", "monotone"],
    "steering__strength": [0, 1],
}
BASE = FairSteeringTransformer(standardize=True, map_type="diagonal")


def search(**params: Any) -> IdealDistributionClassifierCV:
    return IdealDistributionClassifierCV(
        **{"estimator": LogisticRegression(), "steering": BASE, "candidates": GRID} | params
    )


@pytest.fixture(scope="module")
def fitted() -> IdealDistributionClassifierCV:
    return search().fit(X, Y, sensitive_features=GROUP)


# ---- what is measured, by hand


def folds_of(y: Codes, group: Codes, n: int = 5) -> list[tuple[Codes, Codes]]:
    return list(StratifiedKFold(n).split(np.zeros(len(y)), y * (group.max() + 2) + group))


def by_hand(params: dict[str, Any]) -> Codes:
    """Out-of-fold predictions by fits from the rows, fold by fold, and by ScoreAligner on the other folds' scores."""
    folds, predicted, scores = folds_of(Y, GROUP), np.zeros_like(Y), np.zeros(len(Y))
    plain = {name: value for name, value in params.items() if name != "score_alignment"}
    for train, test in folds:
        model = IdealDistributionClassifier(LogisticRegression(), clone(BASE)).set_params(**plain)
        model.fit(X[train], Y[train], sensitive_features=GROUP[train])
        predicted[test] = model.predict(X[test], sensitive_features=GROUP[test])
        scores[test] = model.decision_function(X[test], sensitive_features=GROUP[test])
    if params["score_alignment"] is None:
        return predicted
    for _, test in folds:
        others = np.setdiff1d(np.arange(len(Y)), test)
        aligner = ScoreAligner(FrozenEstimator(LogOdds().fit(scores[:, None], Y)), constraint=params["score_alignment"])
        aligner.fit(scores[others, None], Y[others], sensitive_features=GROUP[others])
        predicted[test] = aligner.predict(scores[test, None], sensitive_features=GROUP[test])
    return predicted


class LogOdds(ClassifierMixin, BaseEstimator):
    """A classifier whose single feature is its decision function."""

    def fit(self, X: Any, y: Any) -> LogOdds:
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X: Any) -> Floats:
        return np.asarray(X)[:, 0]

    def predict(self, X: Any) -> Codes:
        return np.asarray(self.classes_[(self.decision_function(X) > 0).astype(int)])


def test_results_are_those_of_fits_by_hand(fitted: IdealDistributionClassifierCV) -> None:
    results = fitted.cv_results_
    assert len(results["params"]) == 8
    right = []
    for i, params in enumerate(results["params"]):
        predicted = by_hand(params)
        right.append(predicted == Y)
        assert results["accuracy"][i] == pytest.approx(np.mean(predicted == Y), abs=1e-12)
        assert results["accuracy_std_err"][i] == pytest.approx(np.std(predicted == Y) / np.sqrt(len(Y)))
        for name, gap in metrics.gaps(Y, predicted, sensitive_features=GROUP).items():
            assert results[f"{name}_difference"][i] == pytest.approx(gap.value, abs=1e-12)
        rates = [np.mean(predicted[(Y == 1) & (a == GROUP)]) for a in (0, 1)]
        rows = [np.sum((Y == 1) & (a == GROUP)) for a in (0, 1)]
        error = np.sqrt(sum(p * (1 - p) / n for p, n in zip(rates, rows, strict=True)))
        assert results["gap"][i] == pytest.approx(abs(rates[0] - rates[1]), abs=1e-12)
        assert results["gap_std_err"][i] == pytest.approx(error)
        # Of two groups: within chance is within the standard error that the gap has under equal rates.
        noise = metrics.gaps(Y, predicted, sensitive_features=GROUP)["equal_opportunity"].noise
        assert results["within_max_gap"][i] == (results["gap"][i] <= noise)
    # The rule, once more in a few lines.
    within = np.flatnonzero(results["within_max_gap"])
    assert 0 < len(within) < 8
    best = within[np.argmax(results["accuracy"][within])]
    losses = [right[best].astype(float) - right[i] for i in within]
    close = [i for i, loss in zip(within, losses, strict=True) if loss.mean() <= loss.std() / np.sqrt(len(Y))]
    assert fitted.best_index_ == min([best, *close])
    np.testing.assert_allclose(results["loss"][within], [loss.mean() for loss in losses], atol=1e-12)


def test_results_are_a_frame(fitted: IdealDistributionClassifierCV) -> None:
    frame = pd.DataFrame(fitted.cv_results_)
    assert len(frame) == 8
    assert (
        frame["param_steering__map_type"].tolist()
        == ["translation"] * 2 + ["monotone"] * 2 + ["translation"] * 2 + ["monotone"] * 2
    )
    assert frame.loc[fitted.best_index_, "params"] == fitted.best_params_
    mixed = search(candidates=[{"steering__strength": [0]}, {"score_alignment": ["equal_opportunity"]}], cv=2)
    column = mixed.fit(X, Y, sensitive_features=GROUP).cv_results_["param_steering__strength"]
    assert column.mask.tolist() == [False, True]


def test_fairness_is_that_of_the_out_of_fold_predictions(fitted: IdealDistributionClassifierCV) -> None:
    i, fairness = fitted.best_index_, fitted.fairness_
    assert fairness.accuracy.value == pytest.approx(fitted.cv_results_["accuracy"][i])
    assert fairness.equal_opportunity.value == pytest.approx(fitted.cv_results_["gap"][i])
    assert fairness.equal_opportunity.lower <= fairness.equal_opportunity.value < fairness.equal_opportunity.upper
    assert fairness.groups.tolist() == [0, 1]


# ---- what is fitted


@pytest.mark.parametrize("candidate", range(8))
def test_what_is_taken_is_the_classifier_with_those_parameters(candidate: int) -> None:
    params = search().fit(X, Y, sensitive_features=GROUP).cv_results_["params"][candidate]
    model = search(candidates={name: [value] for name, value in params.items()}).fit(X, Y, sensitive_features=GROUP)
    expected = IdealDistributionClassifier(LogisticRegression(), clone(BASE), cv=5).set_params(**params)
    expected.fit(X, Y, sensitive_features=GROUP)
    assert model.best_params_ == params
    assert repr(model.best_estimator_) == repr(expected)
    for method in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        ours, theirs = (getattr(one, method)(X, sensitive_features=GROUP) for one in (model, expected))
        # The out-of-fold scores come from merged moments, which differ by rounding.
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)
    assert model.score(X, Y, sensitive_features=GROUP) == expected.score(X, Y, sensitive_features=GROUP)


STEERINGS = [
    {"map_type": "translation"},
    {"map_type": "diagonal", "constraint": "equal_opportunity"},
    {"map_type": "monotone", "constraint": "equal_opportunity"},
    {"map_type": "symmetric", "constraint": "demographic_parity"},
    {"map_type": "affine"},
    {"map_type": "affine", "constraint": "equal_opportunity", "standardize": False},
    {"map_type": "affine", "covariance": "full", "pooling": 0.5},
    {"map_type": "symmetric", "covariance": "full", "constraint": "equal_opportunity", "shrinkage": "oas"},
    {"map_type": "translation", "covariance": "diagonal", "shrinkage": 0.1},
    {"map_type": "affine", "intervention": "affirmative"},
    # Tied moments that merge groups know Ledoit and Wolf's intensity up to a term of 1/n only, so another one.
    {"map_type": "affine", "min_subgroup_size": 28, "small_subgroups": "merge", "shrinkage": "oas"},
    {"map_type": "affine", "min_subgroup_size": 60, "small_subgroups": "pool", "constraint": "equal_opportunity"},
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("params", STEERINGS)
def test_merged_moments_give_the_maps_of_the_rows(params: dict[str, Any], weighted: bool) -> None:
    rows, y, group = problem(800, n_classes=3, n_groups=3, seed=1)
    rare = (group == 2) & (y == 2)
    keep = ~rare | (np.cumsum(rare) <= 30)
    rows, y, group = rows[keep], y[keep], group[keep]
    weight = np.random.default_rng(0).integers(0, 3, len(y)).astype(float) if weighted else None
    steering = FairSteeringTransformer(**{"standardize": True} | params)
    batch = steering._read(rows, y, group, weight, reset=True).batch()
    parts = np.array_split(np.random.default_rng(2).permutation(len(batch.y_codes))[:-20], 4)  # 20 are never left out
    merged = steering._moments_without(batch, parts)
    assert merged is not None
    for part, moments in zip(parts, merged, strict=True):
        some = batch.take(np.setdiff1d(np.arange(len(batch.y_codes)), part))
        by_merging, from_rows = steering._fit_alike(some, moments), steering._fit_alike(some)
        assert by_merging.groups_.tolist() == from_rows.groups_.tolist()
        codes = from_rows._group_of_label[some.group_codes]
        ours, theirs = (m._move(some.rows, codes, m._group_maps(1.0)) for m in (by_merging, from_rows))
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(by_merging.ideal_.sample_weight, from_rows.ideal_.sample_weight, rtol=1e-7)


def test_moments_that_are_not_enough_are_not_merged() -> None:
    steering = FairSteeringTransformer(feature_transform=StandardScaler())
    batch = steering._read(X, Y, GROUP, None, reset=True).batch()
    assert steering._moments_without(batch, [np.arange(9)]) is None
    plain = search(cv=3, candidates={"steering__map_type": ["affine"]})
    scaled = clone(plain).set_params(
        steering=FairSteeringTransformer(standardize=True, feature_transform=StandardScaler())
    )
    accuracy = scaled.fit(X, Y, sensitive_features=GROUP).cv_results_["accuracy"][0]
    right = []
    for train, test in folds_of(Y, GROUP, 3):
        model = IdealDistributionClassifier(LogisticRegression(), clone(scaled.steering).set_params(map_type="affine"))
        model.fit(X[train], Y[train], sensitive_features=GROUP[train])
        right.append(model.predict(X[test], sensitive_features=GROUP[test]) == Y[test])
    assert accuracy == pytest.approx(np.concatenate(right).mean(), abs=1e-12)


class Counting(LogisticRegression):
    """Counts its fits."""

    fits: ClassVar[int] = 0

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Counting:
        Counting.fits += 1
        super().fit(X, y, sample_weight=sample_weight)
        return self


def test_a_classifier_is_trained_once_for_a_fold_and_steering() -> None:
    Counting.fits = 0
    search(estimator=Counting(), cv=4).fit(X, Y, sensitive_features=GROUP)
    assert Counting.fits == 4 * 4 + 1  # two maps at two strengths, with and without alignment; and the last one
    Counting.fits = 0
    search(estimator=Counting(), candidates=None, steering=None, cv=2).fit(X, Y, sensitive_features=GROUP)
    assert Counting.fits == 2 * 16 + 1


def test_the_result_does_not_depend_on_the_number_of_jobs_or_the_run(fitted: IdealDistributionClassifierCV) -> None:
    other = search(n_jobs=2).fit(X, Y, sensitive_features=GROUP)
    pd.testing.assert_frame_equal(pd.DataFrame(fitted.cv_results_), pd.DataFrame(other.cv_results_))
    ours, theirs = (m.predict_proba(X, sensitive_features=GROUP) for m in (fitted, other))
    np.testing.assert_array_equal(ours, theirs)


# ---- the rule


def rows_of_two_groups() -> HeldOutRows:
    group, y = np.divmod(np.arange(400) % 4, 2)
    return HeldOutRows(y, group, np.ones(400), 2, 2)


def wrong_in(rows: HeldOutRows, some: Any) -> Codes:
    predicted = rows.y_codes.copy()
    predicted[some] = 1 - predicted[some]
    return predicted


def test_the_most_accurate_within_the_budget_sets_the_standard_and_the_simplest_about_as_good_is_taken() -> None:
    rows = rows_of_two_groups()
    # Errors on rows of their own, so that a standard error of the difference is about the root of their number.
    predicted = [wrong_in(rows, slice(a, b)) for a, b in ((0, 60), (60, 80), (80, 94), (100, 110))]
    gaps = [Gap(0.0, 0.02, 0.9), Gap(0.08, 0.02, 0.01), Gap(0.01, 0.02, 0.5), Gap(0.02, 0.02, 0.32)]
    choice = choose(rows, predicted, gaps, None)
    assert choice.within.tolist() == [True, False, True, True]
    assert (choice.most_accurate, choice.index) == (3, 2)  # 14 errors against 10, and a standard error of 4.9
    np.testing.assert_allclose(choice.loss * 400, [50, 10, 4, 0])
    strict = choose(rows, predicted, gaps, 0.0)
    assert (strict.within.tolist(), strict.index) == ([True, False, False, False], 0)
    generous = choose(rows, predicted, gaps, 0.1)
    assert generous.within.all()
    far = [wrong_in(rows, slice(0, 40)), wrong_in(rows, slice(60, 80)), wrong_in(rows, slice(100, 103))]
    assert choose(rows, far, gaps[:3], 0.1).index == 2


def test_where_all_gaps_are_too_large_those_like_the_smallest_count() -> None:
    rows = rows_of_two_groups()
    predicted = [wrong_in(rows, slice(0, n)) for n in (5, 40, 10)]
    gaps = [Gap(0.30, 0.02, 0.0), Gap(0.20, 0.02, 0.0), Gap(0.21, 0.02, 0.0)]
    choice = choose(rows, predicted, gaps, None)
    assert (choice.within.tolist(), choice.index) == ([False, True, True], 2)


def test_what_could_not_be_fitted_is_never_taken() -> None:
    rows = rows_of_two_groups()
    nan = float("nan")
    choice = choose(rows, [None, wrong_in(rows, slice(0, 9))], [Gap(nan, nan, nan), Gap(0.5, 0.1, 0.0)], None)
    assert choice.index == 1
    assert np.isnan(choice.loss[0])


@pytest.mark.parametrize("n_groups", [2, 5])
def test_the_p_value_is_that_of_the_chi_squared_test(n_groups: int) -> None:
    rng = np.random.default_rng(n_groups)
    rows = rng.integers(20, 200, (n_groups, 3)).astype(float)
    hits = rng.binomial(rows.astype(int), 0.6).astype(float)
    p = [
        stats.chi2_contingency(np.stack([hits[:, k], rows[:, k] - hits[:, k]]), correction=False).pvalue
        for k in range(3)
    ]
    found = largest_gap(hits / rows, rows)
    assert found.p_value == pytest.approx(1 - (1 - min(p)) ** 3)
    assert found.value == pytest.approx(np.ptp(hits / rows, axis=0).max())
    one = largest_gap((hits / rows)[:, :1], rows[:, :1])
    assert one.p_value == pytest.approx(p[0])


def test_chance_is_one_standard_error() -> None:
    n = np.array([[150.0], [60.0]])
    noise = np.sqrt(0.25 * (1 / n).sum())
    shares = n / n.sum()
    for factor, within in ((0.999, True), (1.001, False)):
        rates = 0.5 + factor * noise * np.array([[shares[1, 0]], [-shares[0, 0]]])  # pooled: one half
        assert (largest_gap(rates, n).p_value >= CHANCE) == within


def test_equal_rates_are_within_chance_as_often_as_they_should_be() -> None:
    rng = np.random.default_rng(3)
    rows = np.array([[300.0] * 4, [500.0] * 4, [400.0] * 4])
    hits = rng.binomial(rows.astype(int), [0.5, 0.7, 0.3, 0.6], (4000, 3, 4))
    within = np.mean([largest_gap(some / rows, rows).p_value >= CHANCE for some in hits])
    assert within == pytest.approx(1 - CHANCE, abs=0.025)


@pytest.mark.filterwarnings("ignore:No row of the subgroups")
def test_gaps_that_cannot_be_compared_leave_the_choice_to_accuracy() -> None:
    assert largest_gap(np.array([[0.3]]), np.array([[9.0]])) == (0.0, 0.0, 1.0)
    found = largest_gap(np.array([[0.3], [np.nan]]), np.array([[9.0], [0.0]]))
    assert np.isnan(found.value)
    assert found.p_value == 1
    only = np.where(GROUP == 0, 0, Y)
    with pytest.warns(UserWarning, match="gap of constraint='equal_opportunity' is not known"):
        model = search(candidates={"steering__strength": [0]}).fit(X, only, sensitive_features=GROUP)
    assert model.best_index_ == 0


# ---- what a user asks for


@pytest.mark.parametrize("constraint", ["equal_opportunity", "demographic_parity", "ideal"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_constraint_names_the_gap(constraint: Any, n_classes: int) -> None:
    rows, y, group = problem(600, n_classes=n_classes, seed=4)
    grid = {"score_alignment": [None, "demographic_parity"], "steering__strength": [0, 1]}
    model = search(constraint=constraint, candidates=grid, cv=3).fit(rows, y, sensitive_features=group)
    name = {"ideal": "equalized_odds"}.get(constraint, constraint)
    results = model.cv_results_
    np.testing.assert_array_equal(results["gap"], results[f"{name}_difference"])
    np.testing.assert_array_equal(results["gap_std_err"], results[f"{name}_difference_std_err"])
    assert np.isfinite(results["gap"]).all()


def test_the_classes_that_the_steering_favours_are_compared() -> None:
    steering = clone(BASE).set_params(pos_label=0)
    model = search(steering=steering, candidates={"steering__strength": [0]}).fit(X, Y, sensitive_features=GROUP)
    predicted = by_hand({"steering__strength": 0, "score_alignment": None})
    expected = metrics.equal_opportunity_difference(Y, predicted, sensitive_features=GROUP, pos_label=0)
    assert model.cv_results_["gap"][0] == pytest.approx(expected, abs=1e-12)
    assert model.cv_results_["gap"][0] != pytest.approx(model.cv_results_["equal_opportunity_difference"][0])


def test_a_generous_budget_buys_accuracy_and_a_large_gap_is_closed() -> None:
    shifted = X + np.outer(GROUP, [2, 0, 0, 0])
    chance = search(candidates=None).fit(shifted, Y, sensitive_features=GROUP)
    free = search(candidates=None, max_gap=1.0).fit(shifted, Y, sensitive_features=GROUP)
    accuracy, gap = chance.cv_results_["accuracy"], chance.cv_results_["gap"]
    assert free.cv_results_["within_max_gap"].all()
    assert accuracy[free.best_index_] >= accuracy[chance.best_index_]
    assert gap[0] > 0.1  # doing nothing
    assert gap[chance.best_index_] < 0.05


def test_where_nothing_need_be_done_nothing_is_done() -> None:
    rows, y, group = np.vstack([X, X]), np.tile(Y, 2), np.repeat([0, 1], len(Y))  # two groups of the same rows
    model = IdealDistributionClassifierCV(LogisticRegression(), cv=3).fit(rows, y, sensitive_features=group)
    assert model.best_params_ == {"steering__strength": 0.0, "score_alignment": None}
    plain = LogisticRegression().fit(rows, y)
    np.testing.assert_allclose(
        model.predict_proba(rows, sensitive_features=group), plain.predict_proba(rows), rtol=1e-12
    )


@pytest.mark.parametrize("constraint", ["equal_opportunity", "ideal"])
def test_the_default_grid(constraint: Any) -> None:
    every = {"bayes": False, "takes_weight": True, "has_scores": True, "lends": False}
    grid = default_candidates(constraint, n_features=5, **every)
    kinds = {
        (one.get("steering__map_type"), one.get("steering__constraint"), one["steering__strength"]) for one in grid
    }
    assert len(grid) == 2 * len(kinds) == (22 if constraint == "ideal" else 32)
    assert sum(len(maps.trainings) for maps in shared_fits(grid)) == len(kinds)
    maps = {"translation", "diagonal", "monotone", "symmetric", "affine"}
    assert {kind[0] for kind in kinds} == {None, *maps}
    assert {kind[1] for kind in kinds} == {None, constraint, "ideal"}
    assert grid[0] == {"steering__strength": 0.0, "score_alignment": None}
    no_weights = default_candidates(constraint, n_features=5, **every | {"takes_weight": False})
    assert not any(one.get("steering__constraint") == "ideal" for one in no_weights)
    assert not any(
        one.get("score_alignment")
        for one in default_candidates(constraint, n_features=5, **every | {"has_scores": False})
    )
    lends = default_candidates(constraint, n_features=5, **every | {"lends": True})
    assert {one.get("steering__map_type") for one in lends} == {None, *maps - {"monotone"}}
    wide = default_candidates(constraint, n_features=300, **every)
    assert {one.get("steering__map_type") for one in wide} == {None, "translation", "diagonal", "affine"}
    bayes = default_candidates(constraint, n_features=5, **every | {"bayes": True})
    assert {one.get("steering__constraint") for one in bayes} == {None, "ideal"}


@pytest.mark.parametrize("estimator", [None, KNeighborsClassifier(15), DecisionTreeClassifier(max_depth=3)])
def test_any_classifier_has_a_default_grid_that_it_can_do(estimator: Any) -> None:
    model = IdealDistributionClassifierCV(estimator, cv=2).fit(X, Y, sensitive_features=GROUP)
    assert np.isfinite(model.cv_results_["accuracy"]).all()
    proba = model.predict_proba(X, sensitive_features=GROUP)
    np.testing.assert_allclose(proba.sum(axis=1), 1)


# ---- rows and groups in every form


def test_groups_in_a_column_are_groups_beside_the_rows(fitted: IdealDistributionClassifierCV) -> None:
    frame = pd.DataFrame(X, columns=list("abcd")).assign(sex=np.where(GROUP, "m", "f"))
    model = search(steering=clone(BASE).set_params(sensitive_columns="sex")).fit(frame, Y)
    np.testing.assert_allclose(model.cv_results_["accuracy"], fitted.cv_results_["accuracy"])
    assert model.best_params_ == fitted.best_params_
    np.testing.assert_allclose(model.predict_proba(frame), fitted.predict_proba(X, sensitive_features=GROUP), rtol=1e-9)
    assert model.feature_names_in_.tolist() == ["a", "b", "c", "d", "sex"]
    assert model.n_features_in_ == 5
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[["b", "a", "c", "d", "sex"]])


def test_intersections_and_rows_without_a_group() -> None:
    two = pd.DataFrame({"sex": np.where(GROUP, "m", "f"), "old": X[:, 0] > 0.5})
    two.loc[:9, "sex"] = None
    with pytest.warns(UserWarning, match="10 of 900 rows have a missing group"):
        model = search(cv=3).fit(X, Y, sensitive_features=two)
    assert model.fairness_.groups.tolist() == [("f", False), ("f", True), ("m", False), ("m", True)]
    assert model.fairness_.rows.sum() == 890
    rest = search(cv=list(folds_without(two, 10))).fit(X[10:], Y[10:], sensitive_features=two[10:])
    np.testing.assert_allclose(model.cv_results_["accuracy"], rest.cv_results_["accuracy"])


def folds_without(groups: pd.DataFrame, n: int) -> Any:
    """The splits of all rows, less the first n."""
    codes = 2 * (groups["sex"].to_numpy() == "m") + groups["old"].to_numpy()
    strata = np.where(groups["sex"].isna(), -1, 10 * Y + codes)
    for train, test in StratifiedKFold(3).split(X, strata):
        yield train[train >= n] - n, test[test >= n] - n


def test_unknown_groups_are_treated_as_the_steering_says(fitted: IdealDistributionClassifierCV) -> None:
    with pytest.raises(ValueError, match="sensitive_features"):
        fitted.predict(X)
    model = search(steering=clone(BASE).set_params(unknown_group="infer"), cv=3).fit(X, Y, sensitive_features=GROUP)
    assert model.predict(X).shape == Y.shape


def test_integer_weights_are_repetitions() -> None:
    repeat = np.random.default_rng(6).integers(0, 3, len(Y))
    fold = np.arange(len(Y)) % 4
    copies = np.repeat(np.arange(len(Y)), repeat)
    weighted = search(cv=PredefinedSplit(fold)).fit(X, Y, sensitive_features=GROUP, sample_weight=repeat)
    repeated = search(cv=PredefinedSplit(fold[copies])).fit(X[copies], Y[copies], sensitive_features=GROUP[copies])
    for name, values in weighted.cv_results_.items():
        if not name.startswith("param"):
            np.testing.assert_allclose(values, repeated.cv_results_[name], rtol=1e-9, atol=1e-12, err_msg=name)
    assert weighted.best_index_ == repeated.best_index_
    ours, theirs = (m.predict_proba(X, sensitive_features=GROUP) for m in (weighted, repeated))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)  # as near as the solver of the classifier comes


def test_small_groups_are_merged_in_what_is_measured_too() -> None:
    rows, y, group = problem(700, n_groups=2, seed=7)
    group[:24] = np.arange(24) % 3 + 2
    steering = clone(BASE).set_params(min_subgroup_size=5, small_subgroups="merge")
    model = search(steering=steering, cv=3).fit(rows, y, sensitive_features=group)
    assert "(small groups)" in model.fairness_.groups.tolist()
    assert np.isfinite(model.cv_results_["gap"]).all()
    assert set(model.predict(rows, sensitive_features=group)) == {0, 1}


def test_labels_are_kept() -> None:
    words = np.array(["no", "yes"])[Y]
    model = search(cv=2).fit(X, words, sensitive_features=GROUP)
    assert model.classes_.tolist() == ["no", "yes"]
    assert set(model.predict(X, sensitive_features=GROUP)) == {"no", "yes"}


def test_splits_of_any_kind() -> None:
    held_out = ShuffleSplit(1, test_size=0.4, random_state=0)
    model = search(candidates={"steering__strength": [0, 1]}, cv=held_out).fit(X, Y, sensitive_features=GROUP)
    ((train, test),) = held_out.split(X)
    assert model.fairness_.rows.sum() == len(test)
    plain = IdealDistributionClassifier(LogisticRegression(), clone(BASE)).set_params(steering__strength=1)
    plain.fit(X[train], Y[train], sensitive_features=GROUP[train])
    assert model.cv_results_["accuracy"][1] == pytest.approx(
        plain.score(X[test], Y[test], sensitive_features=GROUP[test])
    )
    with pytest.warns(UserWarning, match="4 of 8 candidates cannot be fitted .* two folds or more"):
        some = search(cv=held_out).fit(X, Y, sensitive_features=GROUP)
    assert np.isnan(some.cv_results_["accuracy"]).sum() == 4
    with pytest.raises(ValueError, match="more than once"):
        search(cv=ShuffleSplit(3, random_state=0)).fit(X, Y, sensitive_features=GROUP)


def test_groups_are_routed_to_it() -> None:
    model = search(cv=2)
    with config_context(enable_metadata_routing=True):
        scores = cross_validate(
            model,
            X,
            Y,
            cv=2,
            scoring={
                "accuracy": performance_scorer("accuracy"),
                "gap": fairness_scorer("equal_opportunity_difference"),
            },
            params={"sensitive_features": GROUP},
        )
    for (train, test), accuracy in zip(StratifiedKFold(2).split(X, Y), scores["test_accuracy"], strict=True):
        one = clone(model).fit(X[train], Y[train], sensitive_features=GROUP[train])
        assert accuracy == pytest.approx(one.score(X[test], Y[test], sensitive_features=GROUP[test]))
    assert (scores["test_gap"] <= 0).all()


def test_maps_that_move_nothing_are_not_warned_of() -> None:
    tiny = X * np.array([1, 1, 1, 1e-4])  # drowned by the shrinkage of covariances
    affine = FairSteeringTransformer(map_type="affine")
    for strength, warned in ((0, False), (1, True)):
        model = search(steering=affine, candidates={"steering__strength": [strength]}, cv=2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(tiny, Y, sensitive_features=GROUP)
        assert any("shrinkage" in str(one.message) for one in caught) == warned


def test_it_can_be_searched_over_and_cross_validated() -> None:
    table = np.column_stack([X, GROUP])
    model = search(steering=clone(BASE).set_params(sensitive_columns=[4]), cv=2)
    assert cross_val_score(model, table, Y, cv=2).min() > 0.5
    for one in (clone(model), IdealDistributionClassifierCV()):
        changed = one.set_params(steering__min_subgroup_size=3)
        assert changed.get_params()["steering__min_subgroup_size"] == 3


# ---- what is refused


def test_before_the_fit() -> None:
    model = search()
    with pytest.raises(NotFittedError):
        model.predict(X, sensitive_features=GROUP)
    assert not hasattr(search(estimator=KNeighborsClassifier()), "decision_function")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"candidates": []}, "candidates is empty"),
        ({"candidates": {"cost_matrix": [None]}}, "cannot differ in 'cost_matrix'"),
        ({"candidates": {"steering__sensitive_columns": [[0]]}}, "which groups there are"),
        ({"candidates": {"steering__map_type": ["bent"]}}, "'map_type' parameter"),
        ({"candidates": {"steering__bent": [1]}}, "Invalid parameter 'bent'"),
        ({"candidates": {"score_alignment": ["odds"]}}, "'score_alignment' parameter"),
        ({"constraint": "equalized_odds"}, "'constraint' parameter"),
        ({"max_gap": -0.1}, "'max_gap' parameter"),
        ({"estimator": None, "candidates": {"estimator__C": [1]}}, "there is no estimator"),
    ],
)
def test_wrong_parameters_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(**params).fit(X, Y, sensitive_features=GROUP)


def test_candidates_that_cannot_be_fitted_are_left_out_with_their_reason() -> None:
    grid = [{"steering__strength": [0]}, {"steering__constraint": ["ideal"], "steering__map_type": ["affine"]}]
    knn = KNeighborsClassifier()
    with pytest.warns(UserWarning, match="1 of 2 candidates cannot be fitted.*takes no sample_weight"):
        model = search(estimator=knn, candidates=grid, cv=2).fit(X, Y, sensitive_features=GROUP)
    assert model.best_index_ == 0
    assert np.isnan(model.cv_results_["gap"][1])
    assert not model.cv_results_["within_max_gap"][1]
    with pytest.raises(ValueError, match="takes no sample_weight"):
        search(estimator=knn, candidates=grid[1], cv=2).fit(X, Y, sensitive_features=GROUP)


def test_every_class_is_needed_in_every_training_fold() -> None:
    rare = np.where(np.arange(len(Y)) == 0, 2, Y)
    with pytest.raises(ValueError, match="training fold has no rows of class 2"):
        search().fit(X, rare, sensitive_features=GROUP)
