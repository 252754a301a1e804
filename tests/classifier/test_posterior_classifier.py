"""Any classifier on the nearest ideal distribution: fair at every cost, repaired rows, and what users do with it."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Perceptron
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fairsteer import IdealPosteriorClassifier, ScoreAligner

COSTS = [0.2, 0.35, 0.5, 0.65, 0.8]


def data(n: int = 3000, seed: int = 0, n_groups: int = 2) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, n_groups, n)
    y = (rng.random(n) < 0.35 + 0.1 * group).astype(int)
    X = (
        rng.normal(size=(n, 3)) * (1 + 0.3 * group[:, None])
        + np.outer(y, [1, 0.7, 0])
        + np.outer(group, [0.5, -0.5, 1])
    )
    return np.column_stack([X, group]), y, group


def boosting() -> Any:
    return HistGradientBoostingClassifier(max_iter=30, max_leaf_nodes=8, random_state=0)


@pytest.mark.parametrize("estimator", [LogisticRegression(), boosting()], ids=["logistic", "boosting"])
@pytest.mark.parametrize("intervention", ["all_subgroups", "affirmative"])
def test_fair_at_every_cost_on_samples_of_the_repaired_distribution(estimator: Any, intervention: Any) -> None:
    X, y, group = data(6000)
    model = IdealPosteriorClassifier(estimator, intervention=intervention, cv=3).fit(X, y, sensitive_features=group)
    repaired = model.repair(X, y, sensitive_features=group)
    rng = np.random.default_rng(1)
    weight = repaired.sample_weight / repaired.sample_weight.sum()
    rows = rng.choice(len(weight), 100_000, p=weight)
    t, a = repaired.proba[rows, 1], group[rows]
    drawn = rng.random(len(rows)) < t
    for cost in COSTS:
        for given in (np.ones_like(drawn), drawn, ~drawn):
            cells = [(t > cost)[given & (a == g)] for g in (0, 1)]
            error = 4 * np.sqrt(2 * 0.25 / min(len(y) / 4, min(map(len, cells))))
            assert abs(cells[0].mean() - cells[1].mean()) < error


def test_fresh_rows_have_one_law_of_the_ideal_posterior() -> None:
    X, y, group = data(20_000)
    fresh, _, of_fresh = data(20_000, seed=1)
    model = IdealPosteriorClassifier(LogisticRegression(), mode="labels").fit(X, y, sensitive_features=group)
    t = model.predict_proba(fresh, sensitive_features=of_fresh)[:, 1]
    raw = model.estimator_.predict_proba(fresh)[:, 1]
    for cost in COSTS:
        gap = abs((t > cost)[of_fresh == 0].mean() - (t > cost)[of_fresh == 1].mean())
        assert gap < 0.03
    assert abs((raw > 0.5)[of_fresh == 0].mean() - (raw > 0.5)[of_fresh == 1].mean()) > 0.05


@pytest.mark.parametrize("groups", ["columns", "beside", "routed"])
def test_scores_of_ideal_posteriors_can_be_aligned(groups: str) -> None:
    """The ideal posterior has one law in all groups; recognition rates of the labels as they are need the alignment."""
    (X, y, group), (fresh, y_fresh, of_fresh) = data(3000), data(20_000, seed=1)
    columns = [3] if groups == "columns" else None
    inner = IdealPosteriorClassifier(LogisticRegression(), cv=2, sensitive_columns=columns)
    given, asked = ({}, {}) if columns else ({"sensitive_features": group}, {"sensitive_features": of_fresh})
    with sklearn.config_context(enable_metadata_routing=groups == "routed"):
        aligner = ScoreAligner(inner, cv=2, sensitive_columns=columns).fit(X, y, **given)
        predicted = aligner.predict(fresh, **asked)
        before = aligner.estimator_.predict(fresh, **asked)
    gaps = []
    for answer in (before, predicted):
        rates = [answer[(of_fresh == a) & (y_fresh == 1)].mean() for a in (0, 1)]
        gaps.append(abs(rates[0] - rates[1]))
    assert gaps[1] < 0.5 * gaps[0]
    assert isinstance(aligner.estimator_, IdealPosteriorClassifier)


def test_models_on_expanded_rows_learn_the_ideal_posterior() -> None:
    X, y, group = data(6000)
    model = IdealPosteriorClassifier(LogisticRegression()).fit(X, y, sensitive_features=group)
    repaired = model.repair(X, y, sensitive_features=group)
    rows, labels, weight = repaired.expanded()
    np.testing.assert_allclose(weight.sum(), repaired.sample_weight.sum())
    learnt = LogisticRegression().fit(rows, labels, sample_weight=weight)
    t = model.predict_proba(X, sensitive_features=group)
    assert np.abs(learnt.predict_proba(X) - t).mean() < 0.03


def test_no_row_is_repaired_by_a_model_that_has_seen_its_label() -> None:
    """A nearest neighbour knows its training rows by heart: with it labels would come back as they are."""
    X, y, group = data(1000)
    noise = np.random.default_rng(7).integers(0, 2, len(y))
    model = IdealPosteriorClassifier(KNeighborsClassifier(1)).fit(X, noise, sensitive_features=group)
    t = model.repair(X, noise, sensitive_features=group).proba[:, 1]
    assert abs(t[noise == 1].mean() - t[noise == 0].mean()) < 0.05


def test_weights_alone_keep_labels_and_equalise_base_rates() -> None:
    X, y, group = data()
    model = IdealPosteriorClassifier(LogisticRegression(), mode="weights").fit(X, y, sensitive_features=group)
    repaired = model.repair(X, y, sensitive_features=group)
    np.testing.assert_array_equal(repaired.proba[:, 1], y)
    w = repaired.sample_weight
    rates = [np.average(y[group == a], weights=w[group == a]) for a in (0, 1)]
    assert abs(rates[0] - rates[1]) < 0.01
    assert abs(y[group == 0].mean() - y[group == 1].mean()) > 0.05


def test_costs_decide_and_labels_are_what_they_were() -> None:
    X, y, group = data()
    y = np.array(["no", "yes"])[y]
    costs = [[0, 1], [4, 0]]
    model = IdealPosteriorClassifier(LogisticRegression(), cost_matrix=costs).fit(X, y, sensitive_features=group)
    proba = model.predict_proba(X, sensitive_features=group)
    predicted = model.predict(X, sensitive_features=group)
    np.testing.assert_array_equal(predicted, np.where(proba[:, 1] > 0.2, "yes", "no"))
    with pytest.raises(ValueError, match="cost_matrix has shape"):
        IdealPosteriorClassifier(LogisticRegression(), cost_matrix=[[0, 1]]).fit(X, y, sensitive_features=group)


def test_groups_come_as_columns_or_beside() -> None:
    X, y, group = data(600)
    frame = pd.DataFrame(X, columns=["a", "b", "c", "sex"])
    beside = IdealPosteriorClassifier(LogisticRegression()).fit(X, y, sensitive_features=group)
    within = IdealPosteriorClassifier(LogisticRegression(), sensitive_columns="sex").fit(frame, y)
    np.testing.assert_allclose(
        within.predict_proba(frame), beside.predict_proba(X, sensitive_features=group), atol=1e-9
    )
    with pytest.raises(ValueError, match="twice"):
        within.fit(frame, y, sensitive_features=group)
    both = np.column_stack([group, np.arange(len(y)) % 2])
    crossed = IdealPosteriorClassifier(LogisticRegression()).fit(X, y, sensitive_features=both)
    assert crossed.groups_.tolist() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert set(crossed.h_) == set(crossed.calibration_) == set(crossed.groups_.tolist())
    assert crossed.subgroup_divergence_.shape == (2, 4)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_unknown_groups_are_an_error_or_the_average(n_classes: int) -> None:
    X, y, group = data(600) if n_classes == 2 else many(600, 3)
    model = IdealPosteriorClassifier(LogisticRegression()).fit(X, y, sensitive_features=group)
    with pytest.raises(ValueError, match="The way out"):
        model.predict(X)
    average = model.set_params(unknown_group="average")
    t = average.predict_proba(X)
    of_groups = [average.predict_proba(X, sensitive_features=np.full(len(X), a)) for a in (0, 1)]
    np.testing.assert_allclose(t, np.average(of_groups, axis=0, weights=np.bincount(group)))
    strange = np.where(np.arange(len(X)) < 5, 7, group)
    some = average.predict_proba(X, sensitive_features=strange)
    np.testing.assert_allclose(some[:5], t[:5])
    np.testing.assert_allclose(some[5:], average.predict_proba(X, sensitive_features=group)[5:])


def test_missing_groups_and_weight_zero_take_no_part() -> None:
    X, y, group = data(600)
    weight = np.ones(600)
    weight[:50] = 0
    labels = group.astype(object)
    labels[50:80] = None
    with pytest.warns(UserWarning, match="30 of 600 rows have a missing group"):
        model = IdealPosteriorClassifier(LogisticRegression()).fit(
            X, y, sensitive_features=labels, sample_weight=weight
        )
    same = IdealPosteriorClassifier(LogisticRegression()).fit(X[80:], y[80:], sensitive_features=group[80:])
    assert abs(model.kl_divergence_ - same.kl_divergence_) < 0.3 * same.kl_divergence_  # other folds
    repaired = model.set_params(unknown_group="average").repair(X, y, sensitive_features=labels, sample_weight=weight)
    assert len(repaired.sample_weight) == len(repaired.X) == 520


@pytest.mark.parametrize("estimator", [Perceptron(), make_pipeline(StandardScaler(), LogisticRegression())])
def test_any_classifier_with_scores(estimator: Any) -> None:
    X, y, group = data(600)
    model = IdealPosteriorClassifier(estimator).fit(X, y, sensitive_features=group)
    assert model.score(X, y, sensitive_features=group) > 0.6
    proba = model.predict_proba(X, sensitive_features=group)
    np.testing.assert_allclose(np.log(proba), model.predict_log_proba(X, sensitive_features=group))
    odds = np.log(proba[:, 1] / proba[:, 0])
    np.testing.assert_allclose(model.decision_function(X, sensitive_features=group), odds, atol=1e-9)


def test_a_frozen_classifier_is_not_trained() -> None:
    X, y, group = data(600)
    frozen = FrozenEstimator(LogisticRegression().fit(X[:300], y[:300]))
    model = IdealPosteriorClassifier(frozen).fit(X[300:], y[300:], sensitive_features=group[300:])
    np.testing.assert_array_equal(model.estimator_.predict(X), frozen.predict(X))


# ---- more than two classes


def many(n: int = 2000, n_classes: int = 4, n_groups: int = 2, seed: int = 0) -> tuple[Any, Any, Any]:
    """Classes about the corners of a simplex, groups shifted and of other shares."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, n_groups, n)
    y = np.where(rng.random(n) < 0.2 * group, 0, rng.integers(0, n_classes, n))
    X = rng.normal(size=(n, n_classes)) + 1.5 * np.eye(n_classes)[y]
    X[:, 0] += 0.6 * group
    return np.column_stack([X, group]), y, group


@pytest.mark.parametrize("mode", ["joint", "labels"])
@pytest.mark.parametrize("intervention", ["all_subgroups", "affirmative"])
@pytest.mark.parametrize("estimator", [LogisticRegression(), boosting()], ids=["logistic", "boosting"])
def test_many_classes_are_fair_at_every_cost_on_samples_of_the_repaired_distribution(
    estimator: Any, intervention: Any, mode: Any
) -> None:
    X, y, group = many(1200, 3)
    options: dict[str, Any] = {"intervention": intervention, "mode": mode, "cv": 2, "posterior": "pooled"}
    model = IdealPosteriorClassifier(estimator, **options).fit(X, y, sensitive_features=group)
    repaired = model.repair(X, y, sensitive_features=group)
    rng = np.random.default_rng(1)
    rows = rng.choice(len(y), 100_000, p=repaired.sample_weight / repaired.sample_weight.sum())
    t, a = repaired.proba[rows], group[rows]
    for _ in range(5):
        predicted = (t @ (rng.random((3, 3)) * (1 - np.eye(3)))).argmin(axis=1)
        for k in range(3):
            rates = [(predicted[a == g] == k).mean() for g in (0, 1)]
            assert abs(rates[0] - rates[1]) < 4 * np.sqrt(2 * 0.25 / (len(y) / 2))


def test_ten_classes_from_labels_to_expanded_rows() -> None:
    X, y, group = many(4000, 10)
    names = np.array([f"class {k}" for k in range(10)])
    model = IdealPosteriorClassifier(LogisticRegression(), cv=2).fit(X, names[y], sensitive_features=group)
    proba = model.predict_proba(X, sensitive_features=group)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_array_equal(model.predict(X, sensitive_features=group), names[proba.argmax(axis=1)])
    assert model.score(X, names[y], sensitive_features=group) > 0.35
    log_proba = model.predict_log_proba(X, sensitive_features=group)
    np.testing.assert_allclose(np.exp(log_proba), proba)
    own, ideal = model.h_[0]
    assert own.shape == ideal.shape
    assert own.shape[1] == 10
    assert model.subgroup_divergence_.shape == model.certificate_.total_variation.shape == (10, 2)
    assert (model.calibration_error_ < 0.15).all()
    rows, labels, weight = model.repair(X, names[y], sensitive_features=group).expanded()
    learnt = LogisticRegression().fit(rows, labels, sample_weight=weight)
    assert np.abs(learnt.predict_proba(X) - proba).mean() < 0.03
    repaired = model.repair(X, names[y], sensitive_features=group)
    predicted = repaired.proba.argmax(axis=1)
    for k in range(10):
        shares = [np.average(predicted[group == a] == k, weights=repaired.sample_weight[group == a]) for a in (0, 1)]
        assert abs(shares[0] - shares[1]) < 0.03


def test_costs_of_many_classes_decide() -> None:
    X, y, group = many(900, 3)
    costs = np.array([[0, 1, 4], [2, 0, 1], [1, 5, 0]])
    model = IdealPosteriorClassifier(LogisticRegression(), cost_matrix=costs, cv=2).fit(X, y, sensitive_features=group)
    proba = model.predict_proba(X, sensitive_features=group)
    np.testing.assert_array_equal(model.predict(X, sensitive_features=group), (proba @ costs).argmin(axis=1))
    with pytest.raises(ValueError, match=r"cost_matrix has shape \(2, 2\)"):
        model.set_params(cost_matrix=np.eye(2)).fit(X, y, sensitive_features=group)


def test_weights_alone_equalise_the_shares_of_many_classes() -> None:
    X, y, group = many()
    model = IdealPosteriorClassifier(LogisticRegression(), mode="weights", cv=2).fit(X, y, sensitive_features=group)
    repaired = model.repair(X, y, sensitive_features=group)
    np.testing.assert_array_equal(repaired.proba.argmax(axis=1), y)
    for k in range(4):
        shares = [np.average(y[group == a] == k, weights=repaired.sample_weight[group == a]) for a in (0, 1)]
        assert abs(shares[0] - shares[1]) < 0.01


def test_more_than_ten_classes_name_the_gaussian_way() -> None:
    X, y, group = many(600, 11)
    with pytest.raises(ValueError, match="IdealDistributionClassifier, which models the features as Gaussian"):
        IdealPosteriorClassifier(LogisticRegression()).fit(X, y, sensitive_features=group)
    with pytest.raises(ValueError, match="no predict_proba, which more than two classes need"):
        IdealPosteriorClassifier(Perceptron()).fit(X, y % 3, sensitive_features=group)


# ---- whose posterior


def test_features_that_mean_something_else_in_a_group_need_its_own_posterior() -> None:
    X, y, group = data(3000)
    X[group == 1, :2] *= -1
    models = {
        kind: IdealPosteriorClassifier(LogisticRegression(), posterior=kind).fit(X, y, sensitive_features=group)
        for kind in ("auto", "pooled", "by_group")
    }
    accuracy = {kind: model.score(X, y, sensitive_features=group) for kind, model in models.items()}
    assert accuracy["auto"] == accuracy["by_group"] > accuracy["pooled"] + 0.05
    assert set(models["auto"].group_estimators_) == {0, 1}
    assert not models["pooled"].group_estimators_
    t = models["auto"].predict_proba(X, sensitive_features=group)
    for a in (0, 1):
        own = models["auto"].group_estimators_[a]
        np.testing.assert_array_equal(own.coef_, LogisticRegression().fit(X[group == a], y[group == a]).coef_)
    repaired = models["auto"].repair(X, y, sensitive_features=group)
    assert np.abs(repaired.proba - t).mean() < 0.02


def test_a_group_like_the_others_keeps_the_pooled_posterior() -> None:
    rng = np.random.default_rng(0)
    X, y, group = rng.normal(size=(600, 20)), rng.integers(0, 2, 600), np.repeat([0, 1], [540, 60])
    X[:, 0] += 2 * y
    model = IdealPosteriorClassifier(LogisticRegression()).fit(X, y, sensitive_features=group)
    assert 1 not in model.group_estimators_
    rare = y.copy()
    rare[group == 1] = 0
    rare[-1] = 1
    pooled = IdealPosteriorClassifier(LogisticRegression(), posterior="by_group").fit(X, rare, sensitive_features=group)
    assert list(pooled.group_estimators_) == [0]  # a training fold of the other lacks a class


# ---- small groups


def test_small_groups_are_an_error_or_one() -> None:
    X, y, group = data(900)
    labels = np.where(group == 1, "b", "a").astype(object)
    labels[:12], labels[12:30] = "c", "d"
    options: dict[str, Any] = {"min_subgroup_size": 11, "cv": 2}
    model = IdealPosteriorClassifier(LogisticRegression(), **options)
    with pytest.raises(
        ValueError, match=r"4 of 8 subgroups have fewer than min_subgroup_size=11 rows \(.*group 'c' has . of"
    ):
        model.fit(X, y, sensitive_features=labels)
    model.set_params(small_subgroups="merge", min_subgroup_size=8).fit(X, y, sensitive_features=labels)
    assert model.groups_.tolist() == ["a", "b", "(small groups)"]
    joined = np.where(np.isin(labels, ["c", "d"]), "e", labels)
    same = IdealPosteriorClassifier(LogisticRegression(), cv=2).fit(X, y, sensitive_features=joined)
    np.testing.assert_allclose(
        model.predict_proba(X, sensitive_features=labels), same.predict_proba(X, sensitive_features=joined), atol=1e-9
    )
    np.testing.assert_allclose(
        model.repair(X, y, sensitive_features=labels).sample_weight,
        same.repair(X, y, sensitive_features=joined).sample_weight,
        atol=1e-9,
    )
    with pytest.raises(ValueError, match="reference_group='c' is too small to stay"):
        model.set_params(intervention="affirmative", reference_group="c").fit(X, y, sensitive_features=labels)
    with pytest.raises(ValueError, match="all groups would have to merge into one"):
        model.set_params(min_subgroup_size=800, reference_group=None).fit(X, y, sensitive_features=labels)


def test_small_intersections_merge_into_one() -> None:
    X, y, group = data(900)
    other = np.arange(900) % 30 == 0
    both = np.column_stack([group, other.astype(int)])
    model = IdealPosteriorClassifier(LogisticRegression(), min_subgroup_size=9, small_subgroups="merge", cv=2)
    model.fit(X, y, sensitive_features=both)
    assert model.groups_.tolist() == [(0, 0), (1, 0), ("(small groups)", "(small groups)")]
    assert np.isfinite(model.predict_proba(X, sensitive_features=both)).all()


# ---- the rest


def test_a_reference_is_named_by_its_label() -> None:
    X, y, group = data(900)
    labels = np.array(["f", "m"])[group]
    options: dict[str, Any] = {"intervention": "affirmative", "reference_group": "m"}
    model = IdealPosteriorClassifier(LogisticRegression(), **options).fit(X, y, sensitive_features=labels)
    assert model.ideal_ is not None
    assert model.ideal_.reference_group == "m"
    own, ideal = model.h_["m"]
    np.testing.assert_allclose(own, ideal, atol=1e-9)
    with pytest.raises(ValueError, match="reference_group='x'"):
        model.set_params(reference_group="x").fit(X, y, sensitive_features=labels)


def test_what_is_certified_and_how_sure_the_posterior_is() -> None:
    X, y, group = data()
    model = IdealPosteriorClassifier(LogisticRegression()).fit(X, y, sensitive_features=group)
    assert 0 < model.certificate_.equalized_odds < 1
    assert model.kl_divergence_ > 0
    assert (model.calibration_error_ < 0.1).all()
    assert (model.subgroup_divergence_ >= 0).all()


def test_the_life_of_an_estimator() -> None:
    X, y, group = data(600)
    model = IdealPosteriorClassifier(LogisticRegression())
    with pytest.raises(NotFittedError):
        model.predict(X, sensitive_features=group)
    model.fit(X, y, sensitive_features=group)
    copy = pickle.loads(pickle.dumps(model))
    groups = {"sensitive_features": group}
    np.testing.assert_array_equal(copy.predict_proba(X, **groups), model.predict_proba(X, **groups))
    again = clone(model).set_params(n_jobs=2).fit(X, y, **groups)
    np.testing.assert_allclose(again.predict_proba(X, **groups), model.predict_proba(X, **groups))
    search = GridSearchCV(
        IdealPosteriorClassifier(LogisticRegression(), sensitive_columns=[3], cv=2),
        {"mode": ["joint", "labels"], "estimator__C": [0.1, 1.0]},
        cv=2,
    ).fit(X, y)
    assert search.best_score_ > 0.6


def test_metadata_is_routed() -> None:
    X, y, group = data(600)
    with sklearn.config_context(enable_metadata_routing=True):
        scores = cross_val_score(
            IdealPosteriorClassifier(LogisticRegression(), cv=2), X, y, cv=3, params={"sensitive_features": group}
        )
    assert (scores > 0.6).all()


def test_one_class_has_no_ideal_distribution() -> None:
    X, y, group = data(100)
    model = IdealPosteriorClassifier(boosting(), cv=2)
    model.fit(X, np.zeros_like(y), sensitive_features=group)
    assert (model.predict(X, sensitive_features=group) == 0).all()
    with pytest.raises(AttributeError, match="There is one class"):
        _ = model.kl_divergence_
