"""Inferred groups: probabilities that agree with rows they were not fitted to, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy.optimize import check_grad, minimize
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.covariance import OAS
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier
from fairsteer._utils import calibration
from fairsteer._utils.calibration import VectorScaling
from fairsteer.transformer._calibration import MAX_ROWS, N_FOLDS, held_out_folds

METHODS = ["predict", "predict_proba", "predict_log_proba", "decision_function"]


def slope_of(steer: FairSteeringTransformer) -> float:
    assert steer.group_calibration_ is not None
    return steer.group_calibration_.slope


def fitted(data: Any, unknown_group: Any = "infer", **parameters: Any) -> Any:
    steer = FairSteeringTransformer(unknown_group=unknown_group, **parameters)
    return steer.fit(data.X, data.y, sensitive_features=data.group)


def overconfident(n: int, seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Groups that differ little, in 40 heavy-tailed features that all tell the same."""
    rng = np.random.default_rng(seed)
    y, group = rng.integers(0, 2, (2, n))
    common = rng.normal(size=(n, 1)) + 0.7 * group[:, None]
    return common * rng.standard_gamma(3, (n, 40)) / 3 + 0.5 * y[:, None] + rng.normal(size=(n, 40)), y, group


# ---- the calibration


def test_the_calibration_is_the_most_probable_one() -> None:
    rng = np.random.default_rng(0)
    log_proba, codes, weight = 5 * rng.normal(size=(200, 3)), rng.integers(0, 3, 200), rng.integers(1, 4, 200)
    log_proba[np.arange(200), codes] += 3
    found = VectorScaling.fit(log_proba, codes, weight.astype(float))

    def loss(p: npt.NDArray[Any]) -> float:
        logs = log_softmax(p[0] * log_proba + p[1:], axis=1)[np.arange(200), codes]
        return float(-weight @ logs + ((p[0] - 1) ** 2 + p[1:] @ p[1:]) / 2)

    best = np.array([found.slope, *found.offsets])
    assert 0 < found.slope < 1
    assert check_grad(loss, lambda p: np.zeros(4), best) < 1e-4
    assert loss(best) <= minimize(loss, np.zeros(4)).fun + 1e-9


def test_the_true_model_needs_no_calibration() -> None:
    rng = np.random.default_rng(0)
    log_proba = 3 * rng.normal(size=(20_000, 4))
    codes = (softmax(log_proba, axis=1).cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    calibration = VectorScaling.fit(log_proba, codes, np.ones(20_000))
    assert calibration.slope == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(calibration.offsets, 0, atol=0.1)


def test_probabilities_that_mislead_leave_the_frequencies() -> None:
    rng = np.random.default_rng(0)
    codes = (rng.random(5000) < 0.8).astype(int)
    log_proba = np.where(np.eye(2)[codes] > 0, -3.0, 0.0)  # always on the wrong group
    calibration = VectorScaling.fit(log_proba, codes, np.ones(5000))
    assert calibration.slope == 0
    np.testing.assert_allclose(softmax(calibration.apply(log_proba)[0])[1], codes.mean(), atol=1e-3)


def test_groups_that_a_fold_did_not_know_tell_nothing() -> None:
    log_proba = np.array([[0.0, -np.inf], [0.0, -1.0], [-2.0, 0.0], [-np.inf, 0.0]])
    known = VectorScaling.fit(log_proba, np.array([0, 0, 1, 1]), np.ones(4))
    assert np.isfinite([known.slope, *known.offsets]).all()
    nothing = VectorScaling.fit(log_proba[[0, 3]], np.array([1, 0]), np.ones(2))
    assert nothing.slope == 1
    assert nothing.offsets.tolist() == [0, 0]


@pytest.mark.parametrize("scale", [1e3, 1e9, 1e12])
def test_certainty_beyond_measure_is_calibrated_too(scale: float) -> None:
    rng = np.random.default_rng(0)
    log_proba, codes = scale * rng.normal(size=(50, 3)), rng.integers(0, 3, 50)
    log_proba[np.arange(40), codes[:40]] += 3 * scale
    calibration = VectorScaling.fit(log_proba, codes, np.ones(50))
    assert 0 < calibration.slope < 10 / scale
    unscaled = VectorScaling.fit(log_proba / scale, codes, np.ones(50))
    large, small = (
        softmax(one.apply(x), axis=1) for one, x in ((calibration, log_proba), (unscaled, log_proba / scale))
    )
    np.testing.assert_allclose(large, small, atol=0.05)  # the prior of the slope does not scale


# ---- folds


def test_folds_follow_the_rows_and_not_their_order_or_number() -> None:
    rng = np.random.default_rng(0)
    rows, cells = rng.normal(size=(500, 3)), rng.integers(0, 4, 500)
    folds, sample = held_out_folds(rows, cells)
    assert sample.tolist() == list(range(500))
    for cell in range(4):
        counts = np.bincount(folds[cells == cell], minlength=N_FOLDS)
        assert np.ptp(counts) <= 1
    more = rng.permutation(np.repeat(np.arange(500), rng.integers(1, 4, 500)))
    np.testing.assert_array_equal(held_out_folds(rows[more], cells[more])[0], folds[more])
    narrow = rows.astype(np.float32)
    np.testing.assert_array_equal(held_out_folds(narrow, cells)[0], held_out_folds(narrow.astype(float), cells)[0])
    np.testing.assert_array_equal(held_out_folds(rows.T.copy().T, cells)[0], folds)


@pytest.mark.parametrize("scale", [1.0, 1 / 8, 1e6])
def test_rows_of_small_integers_differ_as_well(scale: float) -> None:
    rows = scale * np.array(np.meshgrid(*[np.arange(20)] * 4)).reshape(4, -1).T
    folds, sample = held_out_folds(rows, np.zeros(len(rows), dtype=np.intp))
    assert len(sample) == MAX_ROWS  # all hashes differ
    assert np.ptp(np.bincount(folds)) <= 1
    # Neighbours fall apart: the next row's fold is no better guessed than any.
    assert np.mean(folds[1:] == folds[:-1]) == pytest.approx(1 / N_FOLDS, abs=0.01)


# ---- the transformer


@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
def test_calibrated_probabilities_are_nearer_to_the_truth(covariance: Any) -> None:
    X, y, group = overconfident(3000, 0)
    X2, _, group2 = overconfident(3000, 1)
    calibrated = FairSteeringTransformer(covariance=covariance, unknown_group="infer")
    calibrated.fit(X, y, sensitive_features=group)
    plain = FairSteeringTransformer(covariance=covariance).fit(X, y, sensitive_features=group)
    losses = [log_loss(group2, steer.predict_group_proba(X2)) for steer in (calibrated, plain)]
    assert losses[0] < np.log(2) < losses[1]
    confidence = calibrated.predict_group_proba(X2).max(axis=1).mean()
    right = (calibrated.predict_group_proba(X2).argmax(axis=1) == group2).mean()
    assert confidence == pytest.approx(right, abs=0.03)


def test_probabilities_are_calibrated_out_of_fold(data: Any) -> None:
    steer = fitted(data, shrinkage=0.1)
    folds, _ = held_out_folds(data.X, data.y * 2 + data.group)
    log_proba = np.empty((len(data.y), 2))
    for fold in range(N_FOLDS):
        rest, out = folds != fold, folds == fold
        model = (
            fitted(type(data)(*(part[rest] for part in data)), unknown_group="error")
            .moments_.tie(standardize=True)
            .shrink(0.1)
        )
        log_proba[out] = logsumexp(model.log_joint(data.X[out]), axis=1)
    expected = VectorScaling.fit(log_proba, data.group, np.ones(len(data.y)))
    assert steer.group_calibration_.slope == pytest.approx(expected.slope, abs=1e-6)
    gaussian = logsumexp(steer.moments_.tie(standardize=True).shrink(0.1).log_joint(data.X), axis=1)
    np.testing.assert_allclose(steer.predict_group_proba(data.X), softmax(expected.apply(gaussian), axis=1), atol=1e-6)


@pytest.mark.parametrize("parameters", [{}, {"covariance": "full", "pooling": 0.5}, {"shrinkage": OAS()}])
def test_the_calibration_is_deterministic(data: Any, parameters: dict[Any, Any]) -> None:
    one, two = (fitted(data, **parameters).predict_group_proba(data.X) for _ in range(2))
    assert one.tobytes() == two.tobytes()


def test_only_inference_is_calibrated_and_batches_are_not(data: Any) -> None:
    assert fitted(data, "error").group_calibration_ is None
    steer = fitted(data)
    assert steer.group_calibration_.slope > 0
    steer.partial_fit(data.X, data.y, sensitive_features=data.group)
    assert steer.group_calibration_ is None
    with pytest.warns(UserWarning, match="No groups were given"):
        assert FairSteeringTransformer(unknown_group="infer").fit(data.X, data.y).group_calibration_ is None


@pytest.mark.filterwarnings("ignore:There are fewer rows than the 3 features")
def test_a_group_of_one_row_can_be_inferred(data: Any) -> None:
    X, y, group = np.vstack([data.X, [[9.0, 9, 9]]]), np.append(data.y, 1), np.append(data.group, 2)
    with pytest.warns(UserWarning, match="No row of the subgroups"):
        steer = FairSteeringTransformer(unknown_group="infer").fit(X, y, sensitive_features=group)
    proba = steer.predict_group_proba(X)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert np.isfinite(steer.transform(X)).all()


# ---- hard and soft


@pytest.mark.parametrize("groups", ["none", "missing", "unseen", "mixed"])
def test_hard_inference_moves_a_row_by_the_likeliest_map(data: Any, groups: str) -> None:
    steer = fitted(data, "infer_hard")
    labels = {
        "none": None,
        "missing": [None] * 600,
        "unseen": np.full(600, 7),
        "mixed": pd.Series(data.group, dtype="Int64").mask(np.arange(600) % 2 == 0),
    }[groups]
    likeliest = steer.predict_group_proba(data.X).argmax(axis=1)
    expected = np.where(np.arange(600) % 2 == 0, likeliest, data.group) if groups == "mixed" else likeliest
    steered = steer.transform(data.X, sensitive_features=labels)
    np.testing.assert_array_equal(steered, steer.transform(data.X, sensitive_features=expected))
    assert (expected != data.group).any()


@pytest.mark.parametrize("unknown_group", ["infer", "infer_hard"])
def test_inference_treats_every_row_alone(data: Any, unknown_group: Any) -> None:
    data = data._replace(X=np.exp(data.X))
    steer = fitted(data, unknown_group, feature_transform="log", strength=0.7)
    X, labels = data.X, data.group.astype(object)
    labels[::3], labels[1::3] = None, 5
    together = steer.transform(X, sensitive_features=labels)
    alone = np.vstack([steer.transform(X[[i]], sensitive_features=labels[[i]]) for i in range(30)])
    np.testing.assert_allclose(together[:30], alone, rtol=1e-10)


@pytest.mark.parametrize("estimator", [None, LogisticRegression()])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strength", [0, 0.5, 1])
def test_the_classifier_infers_hard(data: Any, estimator: Any, method: str, strength: float) -> None:
    steering = FairSteeringTransformer(unknown_group="infer_hard", strength=strength)
    classifier = IdealDistributionClassifier(estimator, steering)
    classifier.fit(data.X, data.y, sensitive_features=data.group)
    likeliest = classifier.steering_.predict_group_proba(data.X).argmax(axis=1)
    ask = getattr(classifier, method)
    np.testing.assert_allclose(ask(data.X), ask(data.X, sensitive_features=likeliest), atol=1e-12)
    partly = data.group.astype(object)
    partly[:200] = None
    expected = np.where(np.arange(600) < 200, likeliest, data.group)
    np.testing.assert_allclose(
        ask(data.X, sensitive_features=partly), ask(data.X, sensitive_features=expected), atol=1e-12
    )


@pytest.mark.parametrize("unknown_group", ["infer", "infer_hard"])
@pytest.mark.parametrize("labels", [["0", "1"] * 300, [b"0"] * 600, [None, "x"] * 300])
def test_labels_of_another_type_are_not_inferred(data: Any, unknown_group: Any, labels: list[Any]) -> None:
    with pytest.raises(ValueError, match="another type than at fit"):
        fitted(data, unknown_group).transform(data.X, sensitive_features=labels)


def test_what_needs_known_groups_does_not_infer_them(data: Any) -> None:
    steer = fitted(data, "infer_hard")
    for method, arguments in (("steer", (data.X, data.y)), ("inverse_transform", (data.X,))):
        with pytest.raises(ValueError, match="cannot infer any"):
            getattr(steer, method)(*arguments, sensitive_features=[None] * 600)


# ---- weights


@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
@pytest.mark.parametrize("feature_transform", [None, "log"])
def test_integer_weights_are_repetitions_in_any_order(
    make_data: Callable[..., Any], covariance: Any, feature_transform: Any
) -> None:
    data = make_data(n_groups=3)
    X = np.exp(data.X / 4)
    weight = np.random.default_rng(0).integers(0, 4, len(data.y))
    steer = FairSteeringTransformer(
        covariance=covariance, unknown_group="infer", feature_transform=feature_transform, intervention="affirmative"
    )
    weighted = steer.fit(X, data.y, sensitive_features=data.group, sample_weight=weight).predict_group_proba(X)
    calibration = steer.group_calibration_
    index = np.random.default_rng(1).permutation(np.repeat(np.arange(len(X)), weight))
    steer.fit(X[index], data.y[index], sensitive_features=data.group[index])
    assert calibration is not None
    assert slope_of(steer) == pytest.approx(calibration.slope, rel=1e-6)
    np.testing.assert_allclose(steer.predict_group_proba(X), weighted, atol=1e-6)


def test_the_scale_of_weights_does_not_matter(data: Any) -> None:
    slopes = []
    for scale in (1.0, 1e-4, 1e-12):
        steer = FairSteeringTransformer(unknown_group="infer")
        steer.fit(data.X, data.y, sensitive_features=data.group, sample_weight=np.full(600, scale))
        slopes.append(slope_of(steer))
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-6)
    assert slopes[0] == pytest.approx(fitted(data).group_calibration_.slope, rel=1e-6)


def test_huge_weights_leave_the_prior_behind(data: Any) -> None:
    slopes = []
    for weight in (1.0, 1e15):
        steer = FairSteeringTransformer(unknown_group="infer", shrinkage=0.1)  # that of Ledoit and Wolf knows the size
        steer.fit(data.X, data.y, sensitive_features=data.group, sample_weight=np.full(600, weight))
        slopes.append(slope_of(steer))
    assert slopes[0] == pytest.approx(slopes[1], rel=0.02)


def test_many_groups_are_calibrated_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    log_proba = 3 * rng.normal(size=(2000, 6))
    proba = np.exp(0.4 * log_proba)
    codes = (np.cumsum(proba / proba.sum(axis=1, keepdims=True), axis=1) < rng.uniform(size=(2000, 1))).sum(axis=1)
    newton = VectorScaling.fit(log_proba, codes, np.ones(2000))
    monkeypatch.setattr(calibration, "_MOST_NEWTON", 2)
    descent = VectorScaling.fit(log_proba, codes, np.ones(2000))
    assert 0.35 < newton.slope < 0.45
    assert descent.slope == pytest.approx(newton.slope, rel=1e-5)
    np.testing.assert_allclose(descent.offsets, newton.offsets, atol=1e-4)
