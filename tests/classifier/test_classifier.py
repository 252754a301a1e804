from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, ScoreAligner

METHODS = ["predict", "predict_proba", "predict_log_proba", "decision_function"]


def fitted(data: Any, estimator: Any = None, cost_matrix: Any = None, **steering: Any) -> Any:
    classifier: Any = IdealDistributionClassifier(
        estimator, FairSteeringTransformer(**steering), cost_matrix=cost_matrix
    )
    return classifier.fit(data.X, data.y, sensitive_features=data.group)


# ---- the Bayes classifier of the ideal distribution


@pytest.mark.filterwarnings("ignore:The nearest ideal distribution all but leaves out")
@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
@pytest.mark.parametrize("intervention", ["affirmative", "all_subgroups"])
def test_posterior_is_the_canonical_one_of_the_steered_row(
    make_data: Callable[..., Any], covariance: str, intervention: str
) -> None:
    data = make_data(n_classes=3, n_groups=3)
    classifier = fitted(data, covariance=covariance, intervention=intervention)
    ideal = classifier.steering_.ideal_
    U = classifier.steering_.transform(data.X, sensitive_features=data.group)
    C = np.array([np.diag(c) for c in ideal.canonical_covariances]) if covariance == "diagonal" else None
    C = ideal.canonical_covariances if C is None else C
    C = np.broadcast_to(C, (3, 3, 3))
    density = [ideal.class_prior[k] * multivariate_normal(ideal.canonical_means[k], C[k]).pdf(U) for k in range(3)]
    expected = np.column_stack(density) / np.sum(density, axis=0)[:, None]
    proba = classifier.predict_proba(data.X, sensitive_features=data.group)
    np.testing.assert_allclose(proba, expected, atol=1e-9)
    predicted = classifier.predict(data.X, sensitive_features=data.group)
    assert np.array_equal(predicted, expected.argmax(axis=1))


@pytest.mark.parametrize("cost_matrix", [None, [[0, 1], [5, 0]], [[0, 3], [1, 0]], [[-1, 2], [2, 0.5]]])
@pytest.mark.parametrize("intervention", ["affirmative", "all_subgroups"])
def test_on_the_ideal_distribution_all_gaps_are_zero(
    data: Any, cost_matrix: list[Any] | None, intervention: str
) -> None:
    classifier = fitted(data, cost_matrix=cost_matrix, intervention=intervention)
    ideal = classifier.steering_.ideal_
    rng = np.random.default_rng(0)
    n = 20_000
    rates = np.empty((2, 2))
    for k in range(2):
        for a in range(2):
            X = rng.multivariate_normal(ideal.means[k, a], ideal.covariances[a], n)
            rates[k, a] = classifier.predict(X, sensitive_features=np.full(n, a)).mean()
    # Equalized odds up to 5 standard errors, and equal class weights in the groups make it demographic parity.
    np.testing.assert_allclose(rates[:, 0], rates[:, 1], atol=5 * np.sqrt(0.5 / n))
    prior = ideal.weights / ideal.weights.sum(axis=0)
    np.testing.assert_allclose(prior[:, 0], prior[:, 1], atol=1e-9)


def test_strength_zero_is_discriminant_analysis_within_groups(make_data: Callable[..., Any]) -> None:
    data = make_data(n_classes=3)
    classifier = fitted(data, strength=0, shrinkage=None, standardize=False)
    for group in (0, 1):
        rows = data.group == group
        lda = LinearDiscriminantAnalysis(solver="lsqr").fit(data.X[rows], data.y[rows])
        proba = classifier.predict_proba(data.X[rows], sensitive_features=data.group[rows])
        np.testing.assert_allclose(proba, lda.predict_proba(data.X[rows]), atol=1e-6)


def test_strength_zero_with_full_covariances_is_the_quadratic_rule(data: Any) -> None:
    classifier = fitted(data, strength=0, shrinkage=None, covariance="full")
    rows = data.group == 1
    X, y = data.X[rows], data.y[rows]
    density = [
        (y == k).mean() * multivariate_normal(X[y == k].mean(axis=0), np.cov(X[y == k].T, bias=True)).pdf(X)
        for k in (0, 1)
    ]
    proba = classifier.predict_proba(X, sensitive_features=data.group[rows])
    np.testing.assert_allclose(proba[:, 1], density[1] / np.sum(density, axis=0), atol=1e-6)


def test_without_groups_it_is_discriminant_analysis_and_a_warning_says_so(data: Any) -> None:
    with pytest.warns(UserWarning, match="nothing is being steered"):
        classifier = IdealDistributionClassifier(steering=FairSteeringTransformer(shrinkage=None)).fit(data.X, data.y)
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(data.X, data.y)
    np.testing.assert_allclose(classifier.predict_proba(data.X), lda.predict_proba(data.X), atol=1e-6)
    with pytest.raises(ValueError, match="fitted without groups"):
        classifier.predict(data.X, sensitive_features=data.group)


def test_partial_strength_pools_the_two_posteriors(data: Any) -> None:
    classifier = fitted(data)

    def log_proba(strength: float) -> npt.NDArray[Any]:
        classifier.steering_.set_params(strength=strength)  # needs no new fit
        return np.asarray(classifier.predict_log_proba(data.X, sensitive_features=data.group))

    pooled = 0.7 * log_proba(0) + 0.3 * log_proba(1)
    expected = pooled - logsumexp(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(log_proba(0.3), expected, atol=1e-9)
    assert np.abs(log_proba(0) - log_proba(1)).max() > 0.1


def test_a_class_that_a_group_lacks_has_probability_zero_only_unsteered(data: Any) -> None:
    some = (data.y == 0) | (data.group == 0)
    with pytest.warns(UserWarning, match="class"):
        classifier = fitted(type(data)(*(part[some] for part in data)))
    for strength, bound in ((0, 0), (0.5, 0), (1, 1)):
        classifier.steering_.set_params(strength=strength)
        proba = classifier.predict_proba(data.X, sensitive_features=np.ones(600, dtype=int))
        np.testing.assert_allclose(proba.sum(axis=1), 1)
        assert (proba[:, 1].max() > 0) == bound


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("strength", [0, 0.5, 1])
def test_methods_agree_with_one_another(make_data: Callable[..., Any], n_classes: int, strength: float) -> None:
    data = make_data(n_classes=n_classes)
    y = np.array(["no", "yes", "maybe"])[data.y]
    classifier = fitted(data._replace(y=y), strength=strength)
    predicted, proba, log_proba, decision = (
        getattr(classifier, method)(data.X, sensitive_features=data.group) for method in METHODS
    )
    assert classifier.classes_.tolist() == sorted(set(y))
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_allclose(proba, np.exp(log_proba))
    assert np.array_equal(predicted, classifier.classes_[proba.argmax(axis=1)])
    if n_classes == 2:
        np.testing.assert_allclose(decision, log_proba[:, 1] - log_proba[:, 0])
    else:
        np.testing.assert_array_equal(decision, log_proba)


def test_predictions_minimise_the_expected_cost(make_data: Callable[..., Any]) -> None:
    data = make_data(n_classes=3)
    costs = np.array([[0, 1, 9], [2, 0, 1], [1, 4, -1]])
    classifier = fitted(data, cost_matrix=costs)
    proba = classifier.predict_proba(data.X, sensitive_features=data.group)
    expected = [min(range(3), key=lambda j: sum(p[i] * costs[i, j] for i in range(3))) for p in proba]
    predicted = classifier.predict(data.X, sensitive_features=data.group)
    assert predicted.tolist() == expected
    assert not np.array_equal(predicted, proba.argmax(axis=1))
    even = fitted(data, cost_matrix=1 - np.eye(3))
    assert np.array_equal(
        even.predict(data.X, sensitive_features=data.group),
        fitted(data).predict(data.X, sensitive_features=data.group),
    )


@pytest.mark.parametrize(
    ("cost_matrix", "message"),
    [
        (np.zeros((3, 3)), r"shape \(3, 3\).*2 classes.*shape \(2, 2\)"),
        ([[0, 1], [np.nan, 0]], "cost_matrix contains NaN"),
        ([0, 1], "2D array"),
    ],
)
def test_bad_costs_are_refused(data: Any, cost_matrix: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted(data, cost_matrix=cost_matrix)


def test_posteriors_are_taken_in_the_coordinates_of_the_feature_transform(data: Any) -> None:
    expected = fitted(data)
    logs = fitted(data._replace(X=np.exp(data.X)), feature_transform="log")
    for method in METHODS:
        np.testing.assert_allclose(
            getattr(logs, method)(np.exp(data.X), sensitive_features=data.group),
            getattr(expected, method)(data.X, sensitive_features=data.group),
            atol=1e-8,
        )


# ---- groups


def test_groups_from_columns_of_a_frame(data: Any) -> None:
    X = pd.DataFrame(data.X, columns=list("abc")).assign(sex=np.array(["f", "m"])[data.group])
    classifier = IdealDistributionClassifier(steering=FairSteeringTransformer(sensitive_columns="sex")).fit(X, data.y)
    expected = fitted(data).predict_proba(data.X, sensitive_features=data.group)
    np.testing.assert_allclose(classifier.predict_proba(X), expected, atol=1e-12)
    assert classifier.feature_names_in_.tolist() == ["a", "b", "c", "sex"]
    assert classifier.n_features_in_ == 4
    assert 0.5 < classifier.score(X, data.y) < 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("estimator", [None, LogisticRegression()])
def test_unknown_groups_follow_the_rule_of_the_steering(data: Any, method: str, estimator: Any) -> None:
    classifier = fitted(data, estimator)
    with pytest.raises(ValueError, match="unknown_group='infer'"):
        getattr(classifier, method)(data.X)
    with pytest.raises(ValueError, match=r"9 \(600 rows\)"):
        getattr(classifier, method)(data.X, sensitive_features=np.full(600, 9))
    infers = fitted(data, estimator, unknown_group="infer")
    groups = data.group.astype(object)
    groups[:300] = None
    mixed = getattr(infers, method)(data.X, sensitive_features=groups)
    known = getattr(classifier, method)(data.X, sensitive_features=data.group)
    inferred = getattr(infers, method)(data.X)
    np.testing.assert_allclose(mixed[300:], known[300:], atol=1e-9)
    np.testing.assert_allclose(mixed[:300], inferred[:300], atol=1e-9)


def test_inferred_posterior_is_that_of_the_mixed_map(data: Any) -> None:
    classifier = fitted(data, unknown_group="infer")
    ideal = classifier.steering_.ideal_
    np.testing.assert_allclose(
        classifier.predict_log_proba(data.X), ideal.log_posterior(classifier.steering_.transform(data.X)), atol=1e-9
    )
    classifier.steering_.set_params(strength=0)
    joint = classifier.steering_.moments_.tie(standardize=True).shrink("ledoit_wolf").log_joint(data.X)
    given_group = softmax(joint, axis=1)
    expected = np.einsum("nka,na->nk", given_group, classifier.steering_.predict_group_proba(data.X))
    np.testing.assert_allclose(classifier.predict_proba(data.X), expected, atol=1e-9)


def test_half_precision_loses_no_more_than_its_own_rounding(data: Any) -> None:
    half = data.X.astype(np.float16)
    classifier = fitted(data)
    np.testing.assert_allclose(
        classifier.predict_proba(half, sensitive_features=data.group),
        classifier.predict_proba(half.astype(np.float64), sensitive_features=data.group),
        atol=1e-12,
    )


def test_rows_are_classified_in_chunks(make_data: Callable[..., Any]) -> None:
    data = make_data(n=9000)
    classifier = fitted(data, strength=0.5)
    few = [0, 4095, 4096, 8999]
    np.testing.assert_allclose(
        classifier.predict_proba(data.X, sensitive_features=data.group)[few],
        classifier.predict_proba(data.X[few], sensitive_features=data.group[few]),
        atol=1e-12,
    )


# ---- another estimator on steered rows


@pytest.mark.parametrize("strength", [0, 0.5, 1])
def test_an_estimator_is_trained_on_steered_rows_with_ideal_weights(data: Any, strength: float) -> None:
    given = np.random.default_rng(0).uniform(0.5, 2, len(data.y))
    classifier: Any = IdealDistributionClassifier(LogisticRegression(), FairSteeringTransformer(strength=strength))
    classifier.fit(data.X, data.y, sensitive_features=data.group, sample_weight=given)

    steer = FairSteeringTransformer(strength=strength)
    steered = steer.fit_transform(data.X, data.y, sensitive_features=data.group, sample_weight=given)
    ideal = steer.ideal_sample_weight(data.y, sensitive_features=data.group, sample_weight=given)
    weight = (1 - strength) * given + strength * ideal
    by_hand = LogisticRegression().fit(steered, data.y, sample_weight=weight)
    np.testing.assert_allclose(classifier.estimator_.coef_, by_hand.coef_, rtol=1e-6)
    for method in METHODS:
        np.testing.assert_allclose(
            getattr(classifier, method)(data.X, sensitive_features=data.group), getattr(by_hand, method)(steered)
        )


def test_rows_without_group_or_weight_do_not_train_the_estimator(data: Any) -> None:
    groups = data.group.astype(object)
    groups[:50] = None
    weight = np.ones(600)
    weight[50:100] = 0
    classifier: Any = IdealDistributionClassifier(estimator=LogisticRegression())
    with pytest.warns(UserWarning, match="50 of 600"):
        classifier.fit(data.X, data.y, sensitive_features=groups, sample_weight=weight)
    without = fitted(type(data)(*(part[100:] for part in data)), LogisticRegression())
    np.testing.assert_allclose(classifier.estimator_.coef_, without.estimator_.coef_, rtol=1e-6)


def test_the_last_step_of_a_pipeline_gets_the_weights(data: Any) -> None:
    class Recording(LogisticRegression):
        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
            self.weight_ = sample_weight
            return super().fit(X, y, sample_weight=sample_weight)

    classifier = fitted(data, make_pipeline(StandardScaler(), Recording()))
    expected = classifier.steering_.ideal_sample_weight(data.y, sensitive_features=data.group)
    np.testing.assert_allclose(classifier.estimator_[-1].weight_, expected)
    assert np.ptp(expected) > 0.1


def test_an_estimator_without_weights_is_refused_unless_they_are_equal(data: Any) -> None:
    for estimator in (KNeighborsClassifier(), make_pipeline(StandardScaler(), KNeighborsClassifier())):
        with pytest.raises(ValueError, match="takes no sample_weight"):
            fitted(data, estimator)
        fitted(data, estimator, strength=0)


def test_costs_apply_to_the_estimator(data: Any) -> None:
    plain = fitted(data, RandomForestClassifier(20, random_state=0))
    costly = fitted(data, RandomForestClassifier(20, random_state=0), cost_matrix=[[0, 1], [9, 0]])
    proba = plain.predict_proba(data.X, sensitive_features=data.group)
    predicted = costly.predict(data.X, sensitive_features=data.group)
    assert np.array_equal(predicted, 9 * proba[:, 1] > proba[:, 0])
    with pytest.raises(ValueError, match=r"RidgeClassifier\(\) has no predict_proba"):
        fitted(data, RidgeClassifier(), cost_matrix=[[0, 1], [9, 0]])


def test_methods_are_those_of_the_estimator(data: Any) -> None:
    for estimator, lacks in ((RidgeClassifier(), "predict_proba"), (RandomForestClassifier(5), "decision_function")):
        assert not hasattr(IdealDistributionClassifier(estimator=estimator), lacks)
        assert not hasattr(fitted(data, estimator), lacks)
    assert all(hasattr(IdealDistributionClassifier(), method) for method in METHODS)


# ---- aligned scores


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [None, LogisticRegression()])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("constraint", ["equal_opportunity", "demographic_parity"])
def test_aligned_scores_are_those_of_the_aligner_around_it(
    make_data: Callable[..., Any], constraint: Any, n_classes: int, estimator: Any
) -> None:
    data = make_data(n_classes=n_classes, n=1200)
    groups = np.array(["f", "m"])[data.group]
    aligned = IdealDistributionClassifier(estimator=estimator, score_alignment=constraint, cv=3)
    aligner = ScoreAligner(IdealDistributionClassifier(estimator=estimator), constraint=constraint, cv=3)
    for classifier in (aligned, aligner):
        classifier.fit(data.X, data.y, sensitive_features=groups)
    for method in METHODS:
        np.testing.assert_allclose(
            getattr(aligned, method)(data.X, sensitive_features=groups),
            getattr(aligner, method)(data.X, sensitive_features=groups),
        )
    plain = IdealDistributionClassifier(estimator=estimator).fit(data.X, data.y, sensitive_features=groups)
    change = aligned.predict_proba(data.X, sensitive_features=groups) - plain.predict_proba(
        data.X, sensitive_features=groups
    )
    assert np.abs(change).max() > 0.01


def test_alignment_takes_groups_from_columns_and_weights(data: Any) -> None:
    weight = np.random.default_rng(0).integers(0, 3, 600)
    frame = np.column_stack([data.X, data.group])
    columns = IdealDistributionClassifier(
        steering=FairSteeringTransformer(sensitive_columns=-1), score_alignment="equal_opportunity", cv=3
    ).fit(frame, data.y, sample_weight=weight)
    beside = IdealDistributionClassifier(score_alignment="equal_opportunity", cv=3)
    beside.fit(data.X, data.y, sensitive_features=data.group, sample_weight=weight)
    np.testing.assert_allclose(
        columns.predict_proba(frame), beside.predict_proba(data.X, sensitive_features=data.group), atol=1e-9
    )


def test_costs_apply_to_aligned_probabilities_of_two_classes(make_data: Callable[..., Any]) -> None:
    data = make_data()
    costs = [[0, 1], [3, 0]]
    classifier: Any = IdealDistributionClassifier(cost_matrix=costs, score_alignment="equal_opportunity")
    classifier.fit(data.X, data.y, sensitive_features=data.group)
    proba = classifier.predict_proba(data.X, sensitive_features=data.group)
    predicted = classifier.predict(data.X, sensitive_features=data.group)
    assert np.array_equal(predicted, (proba @ costs).argmin(axis=1))
    three = make_data(n_classes=3)
    with pytest.raises(ValueError, match="leave out cost_matrix, or score_alignment"):
        classifier.set_params(cost_matrix=1 - np.eye(3)).fit(three.X, three.y, sensitive_features=three.group)


def test_alignment_weights_inferred_groups_by_their_probability(data: Any) -> None:
    classifier: Any = IdealDistributionClassifier(
        steering=FairSteeringTransformer(unknown_group="infer"), score_alignment="equal_opportunity"
    ).fit(data.X, data.y, sensitive_features=data.group)
    steering = classifier.steering_
    plain = IdealDistributionClassifier(steering=steering).fit(data.X, data.y, sensitive_features=data.group)
    log_odds = plain.decision_function(data.X)
    each = [classifier._alignment.proba(log_odds, np.full(600, a)) for a in (0, 1)]
    expected = np.einsum("na,ank->nk", steering.predict_group_proba(data.X), each)
    np.testing.assert_allclose(classifier.predict_proba(data.X), expected, atol=1e-9)
    with pytest.raises(ValueError, match="unknown_group='infer'"):
        IdealDistributionClassifier(score_alignment="equal_opportunity").fit(
            data.X, data.y, sensitive_features=data.group
        ).predict(data.X)


def test_alignment_gives_probabilities_to_an_estimator_without_them(data: Any) -> None:
    classifier: Any = IdealDistributionClassifier(estimator=RidgeClassifier(), score_alignment="demographic_parity")
    assert hasattr(classifier, "predict_proba")
    proba = classifier.fit(data.X, data.y, sensitive_features=data.group).predict_proba(
        data.X, sensitive_features=data.group
    )
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    rate = [classifier.predict(data.X, sensitive_features=data.group)[data.group == a].mean() for a in (0, 1)]
    assert abs(rate[0] - rate[1]) < 0.05


def test_one_class_needs_no_alignment(data: Any) -> None:
    classifier: Any = IdealDistributionClassifier(score_alignment="equal_opportunity")
    classifier.fit(data.X, np.ones(600), sensitive_features=data.group)
    assert (classifier.predict(data.X, sensitive_features=data.group) == 1).all()


# ---- scikit-learn's manners


def test_parameters_are_left_alone(data: Any) -> None:
    steering, estimator = FairSteeringTransformer(), LogisticRegression()
    classifier: Any = IdealDistributionClassifier(estimator, steering)
    classifier.fit(data.X, data.y, sensitive_features=data.group)
    assert not hasattr(steering, "moments_")
    assert not hasattr(estimator, "coef_")
    assert classifier.get_params()["steering__strength"] == 1
    for bad in (
        {"steering": LogisticRegression()},
        {"estimator": 3},
        {"cost_matrix": "none"},
        {"score_alignment": "all"},
    ):
        with pytest.raises(ValueError, match=f"The '{next(iter(bad))}' parameter"):
            IdealDistributionClassifier(**bad).fit(data.X, data.y, sensitive_features=data.group)


def test_score_is_weighted_accuracy(data: Any) -> None:
    classifier = fitted(data)
    weight = np.random.default_rng(0).random(600)
    predicted = classifier.predict(data.X, sensitive_features=data.group)
    assert classifier.score(data.X, data.y, sensitive_features=data.group) == accuracy_score(data.y, predicted)
    assert classifier.score(data.X, data.y, sensitive_features=data.group, sample_weight=weight) == accuracy_score(
        data.y, predicted, sample_weight=weight
    )


@pytest.mark.parametrize("method", METHODS)
def test_nothing_works_before_fit(data: Any, method: str) -> None:
    with pytest.raises(NotFittedError):
        getattr(IdealDistributionClassifier(), method)(data.X)


def test_y_is_needed(data: Any) -> None:
    with pytest.raises(ValueError, match="requires y"):
        IdealDistributionClassifier().fit(data.X, None, sensitive_features=data.group)
    with pytest.raises(ValueError, match="continuous"):
        IdealDistributionClassifier().fit(data.X, data.X[:, 0], sensitive_features=data.group)


def test_groups_are_requested_without_being_asked() -> None:
    requests = IdealDistributionClassifier().get_metadata_routing()
    for method in ("fit", "score", *METHODS):
        assert getattr(requests, method).requests["sensitive_features"] is True
    assert requests.fit.requests["sample_weight"] is None


def test_clone_and_pickle(data: Any) -> None:
    classifier = fitted(data, cost_matrix=[[0, 1], [3, 0]], strength=0.5)
    expected = classifier.predict_proba(data.X, sensitive_features=data.group)
    again = clone(classifier).fit(data.X, data.y, sensitive_features=data.group)
    for other in (again, pickle.loads(pickle.dumps(classifier))):
        assert np.array_equal(other.predict_proba(data.X, sensitive_features=data.group), expected)
