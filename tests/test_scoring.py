"""Scorers hand the groups to the predictions and to the metric, as a loop by hand would, or say that they have none."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pytest
import sklearn
import sklearn.experimental.enable_halving_search_cv  # brings HalvingGridSearchCV
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer, log_loss, make_scorer, roc_auc_score
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    StratifiedKFold,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import make_pipeline

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, metrics
from fairsteer.scoring import best_within_budget, budget_scorer, fairness_scorer, performance_scorer

STRENGTHS = {"steer": "fairsteeringtransformer__strength", "ideal": "steering__strength"}
GAPS = ["demographic_parity_difference", "equal_opportunity_difference", "equalized_odds_difference", "tpr_gap_rms"]


def model(kind: str, **parameters: Any) -> Any:
    """A pipeline that steers, the classifier, or one that knows nothing of groups."""
    if kind == "plain":
        return LogisticRegression()
    steer = FairSteeringTransformer(**parameters)
    return (
        make_pipeline(steer, LogisticRegression()) if kind == "steer" else IdealDistributionClassifier(steering=steer)
    )


def with_group(data: Any) -> npt.NDArray[Any]:
    return np.column_stack([data.X, data.group])


class ByHand:
    """Fit and predict with the groups passed to every single step, without any tool of scikit-learn."""

    def __init__(self, kind: str, **parameters: Any) -> None:
        self.kind = kind
        self.steer = FairSteeringTransformer(**parameters)

    def fit(self, X: Any, y: Any, group: Any, weight: Any = None) -> ByHand:
        if self.kind == "ideal":
            self.last = IdealDistributionClassifier(steering=self.steer)
            self.last.fit(X, y, sensitive_features=group, sample_weight=weight)
            return self
        if self.kind == "steer":
            X = self.steer.fit_transform(X, y, sensitive_features=group, sample_weight=weight)
        self.last = LogisticRegression().fit(X, y, sample_weight=weight)
        return self

    def ask(self, method: str, X: Any, group: Any) -> Any:
        if self.kind == "ideal":
            return getattr(self.last, method)(X, sensitive_features=group)
        if self.kind == "steer":
            X = self.steer.transform(X, sensitive_features=group)
        return getattr(self.last, method)(X)


def by_hand(kind: str, data: Any, measure: Any, *, weight: Any = None, **parameters: Any) -> list[float]:
    """``measure(y, ask, group, weight)`` on every test fold; ``ask(method)`` predicts."""
    scores = []
    for train, test in StratifiedKFold(3).split(data.X, data.y):
        fitted = ByHand(kind, **parameters).fit(
            data.X[train], data.y[train], data.group[train], None if weight is None else weight[train]
        )
        scores.append(
            measure(
                data.y[test],
                lambda method, fitted=fitted, test=test: fitted.ask(method, data.X[test], data.group[test]),
                data.group[test],
                None if weight is None else weight[test],
            )
        )
    return scores


def minus(gap: str) -> Any:
    return lambda y, ask, group, weight: (
        -getattr(metrics, gap)(y, ask("predict"), sensitive_features=group, sample_weight=weight)
    )


def accuracy(y: Any, ask: Any, group: Any, weight: Any) -> float:
    return float((ask("predict") == y).mean())


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("kind", ["steer", "ideal"])
def test_groups_in_columns_and_groups_beside_score_as_by_hand(data: Any, kind: str, gap: str) -> None:
    expected = by_hand(kind, data, minus(gap))
    in_columns = cross_val_score(
        model(kind, sensitive_columns=[3]),
        with_group(data),
        data.y,
        cv=3,
        scoring=fairness_scorer(gap, sensitive_columns=[3]),
    )
    with sklearn.config_context(enable_metadata_routing=True):
        beside = cross_val_score(
            model(kind), data.X, data.y, cv=3, scoring=fairness_scorer(gap), params={"sensitive_features": data.group}
        )
    np.testing.assert_allclose(in_columns, expected, atol=1e-12)
    np.testing.assert_allclose(beside, expected, atol=1e-12)
    assert np.ptp(expected) > 0


@pytest.mark.parametrize("gap", GAPS)
def test_a_classifier_without_groups_is_scored_by_groups(data: Any, gap: str) -> None:
    expected = by_hand("plain", data, minus(gap))
    with sklearn.config_context(enable_metadata_routing=True):
        beside = cross_val_score(
            LogisticRegression(),
            data.X,
            data.y,
            cv=3,
            scoring=fairness_scorer(gap),
            params={"sensitive_features": data.group},
        )
    np.testing.assert_allclose(beside, expected, atol=1e-12)
    fitted = LogisticRegression().fit(with_group(data), data.y)
    assert fairness_scorer(gap, sensitive_columns=3)(fitted, with_group(data), data.y) == -getattr(metrics, gap)(
        data.y, fitted.predict(with_group(data)), sensitive_features=data.group
    )


@pytest.mark.parametrize("kind", ["steer", "ideal", "plain"])
@pytest.mark.parametrize(
    ("scoring", "measure"),
    [
        ("accuracy", accuracy),
        ("roc_auc", lambda y, ask, group, weight: roc_auc_score(y, ask("decision_function"))),
        ("neg_log_loss", lambda y, ask, group, weight: -log_loss(y, ask("predict_proba"))),
    ],
)
def test_scorers_of_scikit_learn_get_predictions_made_with_groups(
    data: Any, kind: str, scoring: str, measure: Any
) -> None:
    with sklearn.config_context(enable_metadata_routing=True):
        scores = cross_val_score(
            model(kind),
            data.X,
            data.y,
            cv=3,
            scoring=performance_scorer(scoring),
            params={"sensitive_features": data.group},
        )
    np.testing.assert_allclose(scores, by_hand(kind, data, measure), atol=1e-12)


@pytest.mark.parametrize("kind", ["steer", "ideal"])
def test_several_scorers_at_once(data: Any, kind: str) -> None:
    def scoring(**columns: Any) -> dict[str, Any]:
        return {
            "accuracy": performance_scorer("accuracy"),
            **{gap: fairness_scorer(gap, **columns) for gap in GAPS},
            "budget": budget_scorer("accuracy", GAPS[0], max_gap=0.02, **columns),
        }

    with sklearn.config_context(enable_metadata_routing=True):
        params = {"sensitive_features": data.group}
        beside = cross_validate(model(kind), data.X, data.y, cv=3, scoring=scoring(), params=params)
    in_columns = cross_validate(
        model(kind, sensitive_columns=[3]), with_group(data), data.y, cv=3, scoring=scoring(sensitive_columns=[3])
    )
    accuracies = by_hand(kind, data, accuracy)
    gaps = {gap: by_hand(kind, data, minus(gap)) for gap in GAPS}
    budget = [a - 1e6 * max(-g - 0.02, 0) for a, g in zip(accuracies, gaps[GAPS[0]], strict=True)]
    for name, expected in {"accuracy": accuracies, **gaps, "budget": budget}.items():
        np.testing.assert_allclose(beside[f"test_{name}"], expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(in_columns[f"test_{name}"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("search", [GridSearchCV, HalvingGridSearchCV])
@pytest.mark.parametrize("kind", ["steer", "ideal"])
def test_searches_choose_by_the_gap(make_data: Any, kind: str, search: Any) -> None:
    data, gap = make_data(n_classes=3, n_groups=3, seed=1), "tpr_gap_rms"
    grid = {STRENGTHS[kind]: [0, 0.5, 1]}
    options = {"cv": StratifiedKFold(3)} | ({"min_resources": 600} if search is HalvingGridSearchCV else {})
    in_columns = search(
        model(kind, sensitive_columns=[3]), grid, scoring=fairness_scorer(gap, sensitive_columns=[3]), **options
    ).fit(with_group(data), data.y)
    with sklearn.config_context(enable_metadata_routing=True):
        beside = search(model(kind), grid, scoring=fairness_scorer(gap), **options)
        beside.fit(data.X, data.y, sensitive_features=data.group)
        assert beside.score(data.X, data.y, sensitive_features=data.group) == in_columns.score(with_group(data), data.y)
    means = [np.mean(by_hand(kind, data, minus(gap), strength=strength)) for strength in (0, 0.5, 1)]
    for fitted in (in_columns, beside):
        np.testing.assert_allclose(fitted.cv_results_["mean_test_score"], means, atol=1e-12)
        assert fitted.best_index_ == np.argmax(means)
    assert len(set(means)) > 1


def test_a_search_is_itself_cross_validated(data: Any) -> None:
    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(model("steer"), {STRENGTHS["steer"]: [1]}, cv=3, scoring=fairness_scorer(GAPS[0]))
        scores = cross_val_score(
            search,
            data.X,
            data.y,
            cv=3,
            scoring=fairness_scorer(GAPS[0]),
            params={"sensitive_features": data.group},
        )
    np.testing.assert_allclose(scores, by_hand("steer", data, minus(GAPS[0])), atol=1e-12)


@pytest.mark.parametrize("kind", ["steer", "ideal"])
def test_weights_reach_the_fit_and_the_metric(data: Any, kind: str) -> None:
    weight = np.random.default_rng(0).exponential(size=len(data.y))
    with sklearn.config_context(enable_metadata_routing=True):
        estimator = model(kind)
        for step in estimator if kind == "steer" else [estimator]:
            step.set_fit_request(sample_weight=True)
        scoring = {
            "gap": fairness_scorer(GAPS[2]).set_score_request(sample_weight=True),
            "auc": performance_scorer("roc_auc").set_score_request(sample_weight=True),
        }
        params = {"sensitive_features": data.group, "sample_weight": weight}
        scores = cross_validate(estimator, data.X, data.y, cv=3, scoring=scoring, params=params)
    np.testing.assert_allclose(scores["test_gap"], by_hand(kind, data, minus(GAPS[2]), weight=weight), atol=1e-12)
    auc = by_hand(
        kind,
        data,
        lambda y, ask, group, weight: roc_auc_score(y, ask("decision_function"), sample_weight=weight),
        weight=weight,
    )
    np.testing.assert_allclose(scores["test_auc"], auc, atol=1e-12)


def test_weights_that_nobody_asked_for_are_refused_by_scikit_learn(data: Any) -> None:
    with (
        sklearn.config_context(enable_metadata_routing=True),
        pytest.raises(ValueError, match=r"sample_weight.*not explicitly set as requested"),
    ):
        cross_val_score(
            LogisticRegression().set_fit_request(sample_weight=True),
            data.X,
            data.y,
            scoring=fairness_scorer(GAPS[0]),
            params={"sensitive_features": data.group, "sample_weight": np.ones(len(data.y))},
        )


def test_weights_without_routing_reach_several_scorers(data: Any) -> None:
    weight = np.random.default_rng(0).exponential(size=len(data.y))
    scoring = {"gap": fairness_scorer(GAPS[0], sensitive_columns=3), "accuracy": performance_scorer("accuracy")}
    search = GridSearchCV(IdealDistributionClassifier(steering=FairSteeringTransformer(sensitive_columns=3)), {}, cv=3)
    search.set_params(scoring=scoring, refit="gap").fit(with_group(data), data.y, sample_weight=weight)
    measure = minus(GAPS[0])
    if tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 7):  # weights went to the fit alone

        def measure(y: Any, ask: Any, group: Any, weight: Any) -> Any:
            return minus(GAPS[0])(y, ask, group, None)

    expected = np.mean(by_hand("ideal", data, measure, weight=weight))
    assert search.cv_results_["mean_test_gap"][0] == pytest.approx(expected)


def test_groups_reach_a_pipeline_by_hand_even_with_routing_off(data: Any) -> None:
    with sklearn.config_context(enable_metadata_routing=True):
        fitted = model("steer").fit(data.X, data.y, sensitive_features=data.group)
        predicted = fitted.predict(data.X, sensitive_features=data.group)
    score = fairness_scorer(GAPS[0])(fitted, data.X, data.y, sensitive_features=data.group)
    assert score == -metrics.demographic_parity_difference(data.y, predicted, sensitive_features=data.group)


def test_containers_give_one_score(data: Any) -> None:
    frame = pd.DataFrame(data.X, columns=["a", "b", "c"]).assign(sex=data.group)
    fitted = LogisticRegression().fit(with_group(data), data.y)
    expected = fairness_scorer(GAPS[1], sensitive_columns=[-1])(fitted, with_group(data), data.y)
    sparse = csr_array(with_group(data))
    assert fairness_scorer(GAPS[1], sensitive_columns=[3])(fitted, sparse, data.y) == expected
    assert fairness_scorer(GAPS[1], sensitive_columns=[3])(fitted, with_group(data).tolist(), data.y) == expected
    named = LogisticRegression().fit(frame, data.y)
    for table in (frame, pl.from_pandas(frame)):
        assert fairness_scorer(GAPS[1], sensitive_columns=["sex"])(named, table, data.y) == expected


def test_intersections_of_columns(data: Any) -> None:
    other = np.arange(len(data.y)) % 2
    X = np.column_stack([with_group(data), other])
    fitted = LogisticRegression().fit(X, data.y)
    expected = metrics.equalized_odds_difference(data.y, fitted.predict(X), sensitive_features=X[:, 3:])
    assert fairness_scorer(GAPS[2], sensitive_columns=[3, 4])(fitted, X, data.y) == -expected
    assert expected > -fairness_scorer(GAPS[2], sensitive_columns=[3])(fitted, X, data.y)


@pytest.mark.parametrize("name", ["accuracy_score_group_min", "zero_one_loss_difference", "equalized_odds_ratio"])
def test_metrics_of_fairlearn_by_name(data: Any, name: str) -> None:
    fairlearn = pytest.importorskip("fairlearn.metrics")
    sign = -1 if name.endswith("_difference") else 1
    expected = by_hand(
        "steer",
        data,
        lambda y, ask, group, weight: sign * getattr(fairlearn, name)(y, ask("predict"), sensitive_features=group),
    )
    for metric in (name, getattr(fairlearn, name)):
        scorer = fairness_scorer(metric, sensitive_columns=3)
        scores = cross_val_score(model("steer", sensitive_columns=3), with_group(data), data.y, cv=3, scoring=scorer)
        np.testing.assert_allclose(scores, expected, atol=1e-12)


def test_the_worst_group_by_ranking_is_computed_from_scores(data: Any) -> None:
    scorer = fairness_scorer("roc_auc_score_group_min", sensitive_columns=3)
    X = with_group(data)
    fitted = model("steer", sensitive_columns=3).fit(X, data.y)
    by_group = [
        roc_auc_score(data.y[data.group == a], fitted.decision_function(X)[data.group == a])
        for a in np.unique(data.group)
    ]
    assert scorer(fitted, X, data.y) == pytest.approx(min(by_group))


def test_a_function_is_a_metric_too(data: Any) -> None:
    def first_group_rate(y_true: Any, y_pred: Any, *, sensitive_features: Any, label: int) -> float:
        return float((y_pred[np.asarray(sensitive_features) == 0] == label).mean())

    with pytest.raises(ValueError, match="'first_group_rate' does not tell whether"):
        fairness_scorer(first_group_rate)
    scorer = fairness_scorer(first_group_rate, greater_is_better=True, label=1)
    fitted = LogisticRegression().fit(data.X, data.y)
    expected = (fitted.predict(data.X)[data.group == 0] == 1).mean()
    assert scorer(fitted, data.X, data.y, sensitive_features=data.group) == expected


def test_a_fold_that_lacks_classes_is_compared_by_the_rule_for_all_of_them() -> None:
    X, group = np.zeros((4, 1)), ["a", "a", "b", "b"]
    fitted = DummyClassifier(strategy="constant", constant=1).fit([[0], [0], [0]], [0, 1, 2])
    # Of the classes 0 and 1 alone only 1 would count, where both groups are right.
    y = [0, 1, 1, 1]
    scorer = fairness_scorer("equal_opportunity_difference", greater_is_better=False)
    assert metrics.equal_opportunity_difference(y, [0, 1, 1, 1], sensitive_features=group) == 0
    assert scorer(fitted, X, [0, 1, 0, 1], sensitive_features=group) == 0
    parity = fairness_scorer("demographic_parity_difference", pos_label=2)
    assert parity(fitted, X, y, sensitive_features=group) == 0  # class 2 exists, though no row has it
    assert fairness_scorer("tpr_gap_rms")(fitted, X, [1, 1, 1, 1], sensitive_features=group) == 0


# ---- no silent mismatch


def test_scores_without_groups_are_refused_with_the_ways_out(data: Any) -> None:
    fitted = LogisticRegression().fit(data.X, data.y)
    for scorer in (fairness_scorer(GAPS[0]), budget_scorer("accuracy", GAPS[0], max_gap=0.1)):
        with pytest.raises(ValueError, match=r"got no groups.*sensitive_columns=….*enable_metadata_routing"):
            scorer(fitted, data.X, data.y)


def test_groups_passed_to_a_search_without_routing_are_missed(data: Any) -> None:
    # scikit-learn then gives them to fit alone.
    search = GridSearchCV(IdealDistributionClassifier(), {}, scoring=fairness_scorer(GAPS[0]), error_score="raise")
    with pytest.raises(ValueError, match="got no groups"):
        search.fit(data.X, data.y, sensitive_features=data.group)


def test_groups_given_twice_are_refused(data: Any) -> None:
    fitted = LogisticRegression().fit(with_group(data), data.y)
    with pytest.raises(ValueError, match=r"groups twice, by sensitive_columns=\[3\]"):
        fairness_scorer(GAPS[0], sensitive_columns=[3])(fitted, with_group(data), data.y, sensitive_features=data.group)


def test_a_fold_of_one_group_has_no_gap_instead_of_the_best(data: Any) -> None:
    order = np.argsort(data.group, kind="stable")
    X, y = with_group(data)[order], data.y[order]
    halves = [(np.arange(300, 600), np.arange(100))]
    with pytest.raises(ValueError, match=r"the only group among these rows is 0\.0\."):
        cross_val_score(
            LogisticRegression(),
            X,
            y,
            cv=halves,
            scoring=fairness_scorer(GAPS[0], sensitive_columns=3),
            error_score="raise",
        )


def test_the_column_is_asked_of_the_rows_that_are_scored(data: Any) -> None:
    frame = pd.DataFrame(data.X, columns=["a", "b", "c"]).assign(sex=data.group)
    fitted = LogisticRegression().fit(frame, data.y)
    with pytest.raises(ValueError, match="names 'gender', but X has the columns 'a', 'b', 'c', 'sex'"):
        fairness_scorer(GAPS[0], sensitive_columns="gender")(fitted, frame, data.y)
    with pytest.raises(ValueError, match="looks continuous"):
        fairness_scorer(GAPS[0], sensitive_columns="a")(fitted, frame, data.y)


def test_make_scorer_forgets_the_groups_and_the_steering_says_so(data: Any) -> None:
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_scorer(metrics.demographic_parity_difference, greater_is_better=False)
        scorer.set_score_request(sensitive_features=True)
        for scoring in (scorer, "accuracy"):
            with pytest.raises(ValueError, match="No groups are given"):
                cross_val_score(
                    model("steer"),
                    data.X,
                    data.y,
                    scoring=scoring,
                    params={"sensitive_features": data.group},
                    error_score="raise",
                )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: fairness_scorer("equal_oportunity_difference"),
            r"compares groups by 'equal_oportunity_difference'\. T",
        ),
        (lambda: fairness_scorer("selection_rate"), "compares groups by 'selection_rate'"),
        (lambda: fairness_scorer(GAPS[0], sensitive_features=[0]), r"\['sensitive_features'\] belong to the rows"),
        (lambda: fairness_scorer(GAPS[0], sample_weight=[0]), r"\['sample_weight'\] belong to the rows"),
        (lambda: performance_scorer("acuracy"), "'acuracy' is not a valid scoring value"),
        (lambda: budget_scorer("accuracy", "demographic_parity_ratio", max_gap=0.1), "is to be large"),
        (lambda: budget_scorer("accuracy", GAPS[0], max_gap=-0.1), "max_gap must be at least 0, got -0.1"),
        (lambda: budget_scorer("accuracy", GAPS[0], max_gap=float("nan")), "max_gap must be at least 0, got nan"),
        (
            lambda: budget_scorer("accuracy", fairness_scorer(GAPS[0]), max_gap=0.1, sensitive_columns=[3]),
            "give sensitive_columns to fairness_scorer",
        ),
        (lambda: best_within_budget("accuracy", "gap", max_gap=-1), "max_gap must be at least 0"),
    ],
)
def test_what_makes_no_scorer_is_refused_at_once(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_without_fairlearn_its_metrics_are_missed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fairlearn", None)
    monkeypatch.setitem(__import__("sys").modules, "fairlearn.metrics", None)
    with pytest.raises(ImportError, match=r"pip install 'fairsteer\[report\]'"):
        fairness_scorer("accuracy_score_group_min")
    fairness_scorer("tpr_gap_rms")


# ---- the budget


def budget_scores(accuracies: Any, gaps: Any, max_gap: float) -> list[float]:
    def gap_metric(y_true: Any, y_pred: Any, *, sensitive_features: Any) -> float:
        return float(gaps[len(y_true) - 2])

    scorer = budget_scorer(
        lambda estimator, X, y: accuracies[len(X) - 2],
        fairness_scorer(gap_metric, greater_is_better=False),
        max_gap=max_gap,
    )
    fitted = DummyClassifier().fit([[0], [0]], [0, 1])
    return [
        scorer(fitted, np.zeros((n, 1)), np.arange(n) % 2, sensitive_features=np.arange(n) % 2)
        for n in range(2, len(gaps) + 2)
    ]


def test_the_budget_orders_candidates_by_excess_and_then_by_performance() -> None:
    rng = np.random.default_rng(0)
    accuracies = rng.choice([0.5, 0.7, 0.7001, 0.9], 40)
    gaps = rng.choice([0, 0.01, 0.05, 0.0501, 0.2, 1], 40)
    scores = budget_scores(accuracies, gaps, 0.05)
    for i, j in itertools.combinations(range(40), 2):
        first, second = ((max(gaps[k] - 0.05, 0), -accuracies[k]) for k in (i, j))
        assert (scores[i] > scores[j]) == (first < second)
    within = gaps <= 0.05
    np.testing.assert_array_equal(np.array(scores)[within], accuracies[within])


def test_in_the_mean_a_candidate_within_the_budget_everywhere_beats_any_other() -> None:
    careful = budget_scores([0.5] * 5, [0.05] * 5, 0.05)
    careless = budget_scores([1.0] * 5, [0, 0, 0, 0, 0.0501], 0.05)
    assert np.mean(careful) > np.mean(careless)


def test_a_gap_that_cannot_be_computed_is_not_within_the_budget() -> None:
    assert np.isnan(budget_scores([0.9], [float("nan")], 0.05)).all()


@pytest.mark.slow
def test_best_within_budget_is_exact_in_the_mean(data: Any) -> None:
    scoring = {"accuracy": "accuracy", "gap": fairness_scorer(GAPS[0], sensitive_columns=[3])}
    strengths = [0, 0.25, 0.5, 0.75, 1]
    means = np.array(
        [[np.mean(by_hand("steer", data, m, strength=s)) for m in (accuracy, minus(GAPS[0]))] for s in strengths]
    )
    middle = -np.sort(means[:, 1])[2]
    for max_gap in (0, middle, 1):
        search = GridSearchCV(
            model("steer", sensitive_columns=[3]),
            {STRENGTHS["steer"]: strengths},
            cv=3,
            scoring=scoring,
            refit=best_within_budget("accuracy", "gap", max_gap=max_gap),
        ).fit(with_group(data), data.y)
        within = [i for i in range(5) if -means[i, 1] <= max_gap + 1e-12]
        best = max(within, key=lambda i: means[i, 0]) if within else int(np.argmax(means[:, 1]))
        assert search.best_index_ == best
    assert 0 < middle < 1


def test_best_within_budget_never_chooses_what_is_not_known() -> None:
    choose = best_within_budget("accuracy", "gap", max_gap=0.1)
    nan = float("nan")
    assert choose({"mean_test_accuracy": [0.9, nan, 0.6], "mean_test_gap": [nan, 0.0, -0.5]}) == 2
    with pytest.raises(ValueError, match="None of the 1 candidates"):
        choose({"mean_test_accuracy": [nan], "mean_test_gap": [0.0]})
    with pytest.raises(ValueError, match=r"mean_test_gap has positive scores, up to 0\.2"):
        choose({"mean_test_accuracy": [0.9], "mean_test_gap": [0.2]})
    with pytest.raises(ValueError, match="no scorer 'accuracy', only 'score'"):
        choose({"mean_test_score": [0.9]})


# ---- scikit-learn's conventions


@pytest.mark.parametrize(
    "scorer",
    [
        fairness_scorer("equal_opportunity_difference", sensitive_columns=["sex"], pos_label=1),
        performance_scorer("roc_auc"),
        budget_scorer("accuracy", "tpr_gap_rms", max_gap=0.1),
        best_within_budget("accuracy", "gap", max_gap=0.1),
    ],
    ids=["fairness", "performance", "budget", "best"],
)
def test_scorers_are_cloned_pickled_and_shown(scorer: Any) -> None:
    assert repr(pickle.loads(pickle.dumps(scorer))) == repr(scorer)
    search = GridSearchCV(LogisticRegression(), {}, scoring=scorer)
    assert repr(clone(search).scoring) == repr(scorer)


def test_requests_may_be_changed(data: Any) -> None:
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = fairness_scorer(GAPS[0]).set_score_request(sensitive_features="sex")
        scores = cross_val_score(LogisticRegression(), data.X, data.y, cv=3, scoring=scorer, params={"sex": data.group})
        np.testing.assert_allclose(scores, by_hand("plain", data, minus(GAPS[0])), atol=1e-12)
        clone(GridSearchCV(LogisticRegression(), {}, scoring=scorer)).fit(data.X, data.y, sex=data.group)


def test_a_scorer_that_has_groups_is_left_alone() -> None:
    scorer = fairness_scorer("accuracy_score_group_min")
    assert performance_scorer(scorer) is scorer
    assert repr(get_scorer(scorer)) == repr(scorer)
