"""A saved transformer comes back bit for bit, its labels of their types; anything else is refused with a sentence."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy as st
from sklearn.base import clone
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, PowerTransformer, RobustScaler, StandardScaler
from sklearn.svm import LinearSVC

from fairsteer import (
    IdealDistributionClassifier,
    IdealDistributionClassifierCV,
    IdealPosteriorClassifier,
    ScoreAligner,
    SubgroupMoments,
    nearest_ideal,
    nearest_ideal_posterior,
    persistence,
)
from fairsteer._utils.labels import label_from_json, label_to_json
from fairsteer.baselines import MeanMatchingTransformer
from fairsteer.concepts import ConceptSteering
from fairsteer.persistence import _file
from fairsteer.transformer import FairSteeringTransformer


@pytest.fixture
def rows() -> Any:
    rng = np.random.default_rng(0)
    y, group = rng.integers(3, size=150), rng.integers(2, size=150)
    X = np.exp(0.3 * rng.normal(size=(150, 4)) + 0.2 * np.outer(y, [1, 0, 0, 1]) + 0.3 * group[:, None])
    return X, y, group


@pytest.fixture
def hidden(rows: Any) -> Any:
    X, y, group = rows
    return X + np.eye(4)[y], y, group


@pytest.fixture
def path(tmp_path: Path) -> Any:
    return tmp_path / "map.safetensors"


def _round_trip(transformer: Any, path: Any, **options: Any) -> Any:
    persistence.save(transformer, path, **options)
    return persistence.load(path)


def _assert_same(loaded: Any, saved: Any, X: Any, y: Any, group: Any) -> None:
    """Everything the two can do gives the same bits."""
    for dtype in (np.float64, np.float32):
        rows = X.astype(dtype)
        steered = saved.transform(rows, sensitive_features=group)
        np.testing.assert_array_equal(loaded.transform(rows, sensitive_features=group), steered, strict=True)
        for method in ("inverse_transform", "steer"):
            arguments = (steered,) if method == "inverse_transform" else (rows, y)
            np.testing.assert_array_equal(
                getattr(loaded, method)(*arguments, sensitive_features=group),
                getattr(saved, method)(*arguments, sensitive_features=group),
            )
    np.testing.assert_array_equal(
        loaded.ideal_sample_weight(y, sensitive_features=group), saved.ideal_sample_weight(y, sensitive_features=group)
    )
    for transformer in (loaded, saved):
        transformer.set_params(unknown_group="infer")
    np.testing.assert_array_equal(loaded.transform(X), saved.transform(X))
    assert loaded.kl_divergence_ == saved.kl_divergence_
    np.testing.assert_array_equal(loaded.certificate_.equal_opportunity, saved.certificate_.equal_opportunity)
    assert loaded.n_iter_ == saved.n_iter_
    assert list(loaded.maps_) == list(saved.maps_)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"intervention": "affirmative", "reference_group": 1, "strength": 0.4},
        {"covariance": "full", "map_type": "symmetric", "shrinkage": "oas"},
        {"covariance": "diagonal", "shrinkage": 0.25},
        {"shrinkage": None, "max_iter": 300, "tol": 1e-9},
        {"feature_transform": "log"},
        {"feature_transform": StandardScaler(with_mean=False)},
        {"feature_transform": MinMaxScaler(feature_range=(-1, 2))},
        {"feature_transform": MaxAbsScaler()},
        {"feature_transform": RobustScaler(quantile_range=(10, 90))},
    ],
    ids=str,
)
def test_loaded_transformer_does_what_the_saved_one_did(rows: Any, path: Any, params: Any) -> None:
    X, y, group = rows
    saved = FairSteeringTransformer(**params).fit(X, y, sensitive_features=group)
    loaded = _round_trip(saved, path)
    _assert_same(loaded, saved, X, y, group)
    given, kept = saved.get_params(), loaded.get_params()
    assert {k: v for k, v in kept.items() if k != "feature_transform"} == {
        k: v for k, v in given.items() if k != "feature_transform"
    }
    assert str(kept["feature_transform"]) == str(given["feature_transform"])
    refitted = clone(loaded).fit(X, y, sensitive_features=group)
    np.testing.assert_array_equal(
        refitted.transform(X, sensitive_features=group), saved.transform(X, sensitive_features=group)
    )


LABELS = {
    "int": (np.arange(3), np.arange(2)),
    "text": (np.array(["a", "b", "ç"]), np.array(["1", "2"])),
    "objects": (np.array(["a", "b", "ç"], dtype=object), np.array(["f", "m"], dtype=object)),
    "bool": (np.array([0, 1, 2]), np.array([False, True])),
    "float": (np.array([0.0, 1.0, 2.0]), np.array([0.5, 1.5])),
    "small": (np.arange(3, dtype=np.int8), np.arange(2, dtype=np.uint16)),
    "mixed": (np.arange(3), np.array([1, "1"], dtype=object)),
}


@pytest.mark.parametrize(("classes", "groups"), LABELS.values(), ids=LABELS.keys())
def test_labels_keep_their_types(rows: Any, path: Any, classes: Any, groups: Any) -> None:
    X, y, group = rows
    saved = FairSteeringTransformer().fit(X, classes[y], sensitive_features=groups[group])
    loaded = _round_trip(saved, path)
    for attribute in ("classes_", "groups_"):
        got, expected = getattr(loaded, attribute), getattr(saved, attribute)
        np.testing.assert_array_equal(got, expected, strict=True)
        assert list(map(type, got.tolist())) == list(map(type, expected.tolist()))
    _assert_same(loaded, saved, X, classes[y], groups[group])


@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
@pytest.mark.parametrize("small_subgroups", ["pool", "merge"])
@pytest.mark.parametrize("unknown_group", ["error", "infer", "infer_hard"])
def test_small_subgroups_and_calibration(
    rows: Any, path: Any, covariance: Any, small_subgroups: Any, unknown_group: Any
) -> None:
    X, y, group = rows
    group = np.where(np.arange(150) % 9 == 0, 2 + np.arange(150) % 2, group)
    saved = FairSteeringTransformer(
        covariance=covariance, min_subgroup_size=6, small_subgroups=small_subgroups, unknown_group=unknown_group
    )
    saved.fit(X, y, sensitive_features=group)
    loaded = _round_trip(saved, path)
    assert loaded.get_params() == saved.get_params()
    assert loaded.groups_.tolist() == saved.groups_.tolist()
    assert (unknown_group == "error") == (loaded.group_calibration_ is None)
    np.testing.assert_array_equal(loaded.predict_group_proba(X), saved.predict_group_proba(X))
    _assert_same(loaded, saved, X, y, group)
    more = X + 0.1, y, group[::-1]
    for transformer in (loaded, saved):
        transformer.partial_fit(*more[:2], sensitive_features=more[2])
    _assert_same(loaded, saved, X, y, group)


def test_intersections_and_their_column_names(rows: Any, path: Any) -> None:
    X, y, group = rows
    groups = pd.DataFrame({"sex": np.array(["f", "m"])[group], "old": np.arange(150) % 2 == 0})
    saved = FairSteeringTransformer().fit(X, y, sensitive_features=groups)
    loaded = _round_trip(saved, path)
    assert loaded.groups_.tolist() == [("f", False), ("f", True), ("m", False), ("m", True)]
    _assert_same(loaded, saved, X, y, groups)
    with pytest.raises(ValueError, match="columns of sensitive_features are"):
        loaded.transform(X, sensitive_features=groups[["old", "sex"]])


@pytest.mark.parametrize("columns", ["g", ["g"], [4], 4, -1])
def test_sensitive_columns_names_and_output(rows: Any, path: Any, columns: Any) -> None:
    X, y, group = rows
    frame = pd.DataFrame(X, columns=list("abcd")).assign(g=group)
    saved = FairSteeringTransformer(sensitive_columns=columns).fit(frame, y).set_output(transform="pandas")
    loaded = _round_trip(saved, path)
    pd.testing.assert_frame_equal(loaded.transform(frame), saved.transform(frame), check_exact=True)
    assert loaded.get_feature_names_out().tolist() == list("abcd")
    assert loaded.feature_names_in_.tolist() == saved.feature_names_in_.tolist()
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.transform(frame.rename(columns={"a": "z"}))


def test_without_classes_and_without_groups(rows: Any, path: Any) -> None:
    X, _, group = rows
    blind = FairSteeringTransformer().fit(X, sensitive_features=group)
    loaded = _round_trip(blind, path)
    np.testing.assert_array_equal(loaded.steer(X, sensitive_features=group), blind.steer(X, sensitive_features=group))
    with pytest.warns(UserWarning, match="nothing is being steered"):
        identity = FairSteeringTransformer().fit(X)
    np.testing.assert_array_equal(_round_trip(identity, path).transform(X), X)


@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
def test_loaded_transformer_takes_further_batches(rows: Any, path: Any, covariance: Any) -> None:
    X, y, group = rows
    frozen = FrozenEstimator(StandardScaler().fit(X))
    first = FairSteeringTransformer(covariance=covariance, feature_transform=frozen)
    first.partial_fit(X[:100], y[:100], sensitive_features=group[:100])
    loaded = _round_trip(first, path)
    for transformer in (first, loaded):
        transformer.partial_fit(X[100:], y[100:], sensitive_features=group[100:])
    _assert_same(loaded, first, X, y, group)


def test_extra_values_come_back(rows: Any, path: Any) -> None:
    X, y, group = rows
    saved = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    extra = {"columns": ["a", "ü"], "fill": [1.5, None], "deep": {"er": True}}
    persistence.save(saved, path, extra=extra)
    assert persistence.read_extra(path) == extra
    persistence.save(saved, path)
    assert persistence.read_extra(path) is None
    with pytest.raises(ValueError, match="extra must hold values that json can write"):
        persistence.save(saved, path, extra={"f": print})


@pytest.mark.parametrize(
    "label",
    [1, True, 1.5, 0.1, float("inf"), "1", "", (1, "1", (True, 2.5)), np.int8(3), np.float32(0.1), np.str_("a"), None],
)
def test_label_survives_json(label: Any) -> None:
    again = label_from_json(json.loads(json.dumps(label_to_json(label))))
    assert again == label
    assert type(again) is type(label)


def test_the_file_is_the_same_every_time(rows: Any, path: Any) -> None:
    X, y, group = rows
    saved = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    contents = set()
    for _ in range(5):
        persistence.save(saved, path, extra={"b": 1, "a": 2})
        contents.add(path.read_bytes())
    persistence.save(persistence.load(path), path, extra={"b": 1, "a": 2})
    assert contents == {path.read_bytes()}


# ---- the classifier


def _assert_predicts_the_same(loaded: Any, saved: Any, X: Any, group: Any) -> None:
    for method in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        np.testing.assert_array_equal(
            getattr(loaded, method)(X, sensitive_features=group),
            getattr(saved, method)(X, sensitive_features=group),
            strict=True,
        )


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("score_alignment", [None, "equal_opportunity", "demographic_parity"])
@pytest.mark.parametrize("steering", [None, FairSteeringTransformer(unknown_group="infer", covariance="full")], ids=str)
def test_loaded_classifier_predicts_as_the_saved_one_did(
    rows: Any, path: Any, n_classes: Any, score_alignment: Any, steering: Any
) -> None:
    X, y, group = rows
    y = np.array(["a", "b", "c"])[y % n_classes]
    saved = IdealDistributionClassifier(steering=steering, score_alignment=score_alignment, cv=4)
    loaded = _round_trip(saved.fit(X, y, sensitive_features=group), path)
    assert str(loaded.get_params()) == str(saved.get_params())
    assert loaded.n_features_in_ == 4
    assert loaded.classes_.tolist() == saved.classes_.tolist()
    beyond = np.concatenate([X, 3 * X, -X])  # scores that the alignment has not seen
    _assert_predicts_the_same(loaded, saved, beyond, np.tile(group, 3))
    if steering is not None:
        _assert_predicts_the_same(loaded, saved, beyond, None)
    _assert_same(loaded.steering_, saved.steering_, X, y, group)
    refitted = clone(loaded).fit(X, y, sensitive_features=group)
    _assert_predicts_the_same(refitted, saved, X, group)


def test_loaded_classifier_keeps_costs_columns_and_a_class_without_rows_in_a_group(rows: Any, path: Any) -> None:
    X, y, group = rows
    y = np.where(group == 1, np.minimum(y, 1), y)
    frame = pd.DataFrame(X, columns=list("abcd")).assign(sex=group)
    saved = IdealDistributionClassifier(
        steering=FairSteeringTransformer(sensitive_columns=["sex"]), cost_matrix=1 - np.eye(3)
    )
    with pytest.warns(UserWarning, match="No row of the subgroups"):
        saved.fit(frame, y)
    loaded = _round_trip(saved, path)
    _assert_predicts_the_same(loaded, saved, frame, None)
    np.testing.assert_array_equal(loaded.cost_matrix, saved.cost_matrix)
    assert loaded.feature_names_in_.tolist() == list(frame)
    with (
        pytest.warns(UserWarning, match="No row of the subgroups"),
        pytest.warns(UserWarning, match="There is no out-of-fold row of class 2 in group 1"),
    ):
        saved.set_params(cost_matrix=None, score_alignment="equal_opportunity").fit(frame, y)
    _assert_predicts_the_same(_round_trip(saved, path), saved, frame, None)


def test_save_names_the_way_out_for_classifiers_that_hold_other_things(rows: Any, path: Any) -> None:
    X, y, group = rows
    with pytest.raises(ValueError, match=r"LogisticRegression cannot be saved.*skops.*SKOPS_TYPES.*joblib"):
        persistence.save(LogisticRegression().fit(X, y), path)
    with pytest.raises(NotFittedError):
        persistence.save(IdealDistributionClassifier(), path)

    class Mine(FairSteeringTransformer):
        pass

    classifier = IdealDistributionClassifier(steering=Mine(), cv=KFold(3)).fit(X, y, sensitive_features=group)
    with pytest.raises(ValueError, match=r"cv=KFold.*set_params\(cv=5\)"):
        persistence.save(classifier, path)
    with pytest.raises(ValueError, match=r"steering=Mine\(\) cannot be saved"):
        persistence.save(classifier.set_params(cv=5), path)
    assert not path.exists()


@pytest.mark.parametrize("params", [{}, {"covariance": "tied", "reference_group": ("M", 2), "towards_ideal": 0.5}])
def test_loaded_concept_steers_as_the_saved_one_did(hidden: Any, path: Any, params: Any) -> None:
    X, y, group = hidden
    groups = pd.DataFrame({"sex": np.array(["F", "M"])[group], "site": 2})
    saved = ConceptSteering(n_probes=6, **params).fit(X, y, sensitive_features=groups)
    loaded = _round_trip(saved, path)
    assert loaded.get_params() == saved.get_params()
    assert loaded.groups_.tolist() == saved.groups_.tolist() == [("F", 2), ("M", 2)]
    for dtype in (np.float64, np.float32):
        steered = saved.steer(X.astype(dtype), sensitive_features=groups, strength=0.7, concept=2)
        np.testing.assert_array_equal(
            loaded.steer(X.astype(dtype), sensitive_features=groups, strength=0.7, concept=2), steered
        )
    np.testing.assert_array_equal(loaded.direction(("F", 2), 0), saved.direction(("F", 2), 0))
    np.testing.assert_array_equal(loaded.separation_, saved.separation_)
    np.testing.assert_array_equal(loaded.probe_moments_.covariances, saved.probe_moments_.covariances)
    np.testing.assert_array_equal(loaded.ideal_.means, saved.ideal_.means)
    assert loaded.ideal_.reference_group == saved.ideal_.reference_group
    with pytest.raises(ValueError, match="'X'"):
        loaded.steer(X, sensitive_features=groups.replace("F", "X"), concept=2)


# ---- moments and ideal distributions


def _assert_equal_arrays(loaded: Any, saved: Any) -> None:
    for name, value in vars(saved).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(loaded, name), value, strict=True)
        else:
            assert getattr(loaded, name) == value


@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
def test_moments_come_back_and_go_on(rows: Any, path: Any, covariance: Any) -> None:
    X, y, group = rows
    saved = SubgroupMoments(4, classes=["a", "b", "c"], groups=[(0, "x"), (1, "y")], covariance=covariance)
    saved.update(X, y, group, np.linspace(0.5, 2, 150))
    loaded = _round_trip(saved, path)
    _assert_equal_arrays(loaded, saved)
    _assert_equal_arrays(loaded.merge(saved), saved.merge(loaded))
    for name in ("ledoit_wolf", "oas", 0.3):
        _assert_equal_arrays(_round_trip(saved.shrink(name), path), saved.shrink(name))
        with pytest.raises(ValueError, match="accept no more rows"):
            persistence.load(path).update(X, y, group)
    _assert_equal_arrays(_round_trip(saved.borrow(60), path), saved.borrow(60))
    if covariance == "full":
        pooled = _round_trip(saved.pool(0.25), path)
        np.testing.assert_array_equal(pooled.shrink("oas").covariances, saved.pool(0.25).shrink("oas").covariances)
    _assert_equal_arrays(loaded.update(X, y, group), saved.update(X, y, group))


@pytest.mark.parametrize("covariance", ["tied", "full"])
def test_scatters_that_others_rounded_are_symmetric(rows: Any, path: Any, covariance: Any) -> None:
    X, y, group = rows
    saved = SubgroupMoments(4, classes=["a", "b", "c"], groups=[(0, "x"), (1, "y")], covariance=covariance)
    persistence.save(saved.update(X, y, group), path)
    _rewrite(path.read_bytes(), path, arrays=lambda t: t["moments.scatters"].__imul__(1 + 1e-12 * np.tri(4)))
    loaded, untouched = persistence.load(path), persistence.load(path)
    np.testing.assert_array_equal(loaded._scatters, np.swapaxes(loaded._scatters, -1, -2))
    with pytest.raises(ValueError, match="not finite"):
        loaded.update(X * np.where(np.arange(len(X)) == 7, np.inf, 1)[:, None], y, group)
    _assert_equal_arrays(loaded, untouched)


def test_moments_without_rows_or_from_statistics(path: Any) -> None:
    given = SubgroupMoments.from_statistics([[1.0, 2.0], [0.0, 3.0]], np.zeros((2, 2, 1)), np.ones((2, 1, 1)))
    _assert_equal_arrays(_round_trip(given, path), given)


@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
@pytest.mark.parametrize("reference", [None, "m"])
def test_ideal_distributions_come_back(rows: Any, path: Any, covariance: Any, reference: Any) -> None:
    X, y, group = rows
    moments = SubgroupMoments(4, classes=[0, 1, 2], groups=["f", "m"], covariance=covariance).update(X, y, group)
    saved = nearest_ideal(
        moments.shrink("oas"),
        intervention="affirmative" if reference else "all_subgroups",
        reference_group=reference,
        covariance=covariance,
    )
    loaded = _round_trip(saved, path)
    _assert_equal_arrays(loaded, saved)
    np.testing.assert_array_equal(loaded.covariances, saved.covariances)
    np.testing.assert_array_equal(loaded.certificate.equal_opportunity, saved.certificate.equal_opportunity)
    np.testing.assert_array_equal(loaded.log_posterior(X), saved.log_posterior(X))
    with pytest.raises(ValueError, match="read-only"):
        loaded.linear[0] = 0


# ---- aligned scores, and classifiers that are not ours


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [1, 2, 3])
@pytest.mark.parametrize("constraint", ["equal_opportunity", "demographic_parity"])
@pytest.mark.parametrize("params", [{}, {"max_gap": 0.1, "unknown_group": "average", "calibrate": True}], ids=str)
def test_loaded_aligner_predicts_as_the_saved_one_did(
    rows: Any, path: Any, n_classes: Any, constraint: Any, params: Any
) -> None:
    X, y, group = rows
    y, groups = np.array(["a", "b", "c"])[y % n_classes], np.array(["f", "m"])[group]
    classifier = LogisticRegression() if n_classes > 1 else DummyClassifier()
    saved = ScoreAligner(classifier, constraint=constraint, cv=4, **params).fit(X, y, sensitive_features=groups)
    persistence.save(saved, path)
    loaded = persistence.load(path, estimator=saved.estimator_)
    assert str(loaded.get_params()) == str(saved.get_params())
    beyond, groups = np.concatenate([X, 3 * X, -X]), np.tile(groups, 3)
    _assert_predicts_the_same(loaded, saved, beyond, groups)
    if params:
        _assert_predicts_the_same(loaded, saved, beyond, None)
    assert loaded.max_gap_ == saved.max_gap_
    for found, expected in zip(loaded.gap_band(), saved.gap_band(), strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="'z'"):
        loaded.set_params(unknown_group="error").predict(X[:1], sensitive_features=["z"])
    refitted = clone(loaded).fit(X, y, sensitive_features=groups[:150])
    assert set(refitted.predict(X, sensitive_features=groups[:150])) <= set(y)


@pytest.mark.parametrize("n_classes", [1, 2, 3])
def test_the_alignment_alone_comes_back(rows: Any, path: Any, n_classes: Any) -> None:
    X, y, group = rows
    classifier = LogisticRegression() if n_classes > 1 else DummyClassifier()
    aligner = ScoreAligner(classifier, max_gap=0.3).fit(X, y % n_classes, sensitive_features=group)
    loaded, scores = _round_trip(aligner.alignment_, path), aligner.estimator_.predict_proba(X)
    np.testing.assert_array_equal(
        loaded.predict_proba(scores, sensitive_features=group), aligner.predict_proba(X, sensitive_features=group)
    )
    assert repr(loaded) == repr(aligner.alignment_)
    for found, expected in zip(loaded.gap_band(), aligner.gap_band(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_aligner_of_columns_and_of_scores_without_probabilities(rows: Any, path: Any) -> None:
    X, y, group = rows
    frame = pd.DataFrame(X, columns=list("abcd")).assign(sex=group, old=np.arange(150) % 2)
    for columns in (["sex", "old"], slice(4, 6), [False] * 4 + [True] * 2):
        saved = ScoreAligner(LinearSVC(), sensitive_columns=columns).fit(frame, y > 0)
        persistence.save(saved, path)
        loaded = persistence.load(path, estimator=saved.estimator_)
        _assert_predicts_the_same(loaded, saved, frame, None)
        assert loaded.groups_.tolist() == saved.groups_.tolist()
        assert loaded.feature_names_in_.tolist() == list(frame)
    with pytest.raises(ValueError, match="answers by predict_proba; what is missing did by decision_function"):
        persistence.load(path, estimator=LogisticRegression().fit(frame, y > 0))


@pytest.mark.parametrize("score_alignment", [None, "equal_opportunity"])
def test_loaded_classifier_takes_its_estimator_back(rows: Any, path: Any, score_alignment: Any) -> None:
    X, y, group = rows
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    saved = IdealDistributionClassifier(estimator=pipeline, score_alignment=score_alignment, cost_matrix=1 - np.eye(2))
    saved.fit(X, y > 0, sensitive_features=group)
    persistence.save(saved, path)
    loaded = persistence.load(path, estimator=saved.estimator_)
    for method in ("predict", "predict_proba"):
        np.testing.assert_array_equal(
            getattr(loaded, method)(X, sensitive_features=group), getattr(saved, method)(X, sensitive_features=group)
        )
    assert str(loaded.get_params()) == str(saved.get_params())
    alone = persistence.load(path)
    _assert_same(alone.steering_, saved.steering_, X, y > 0, group)
    with pytest.raises(ValueError, match=r"not in the file.*persistence\.load\(path, estimator=…\)"):
        alone.predict(X, sensitive_features=group)


def test_what_is_loaded_without_its_classifier_says_so(rows: Any, path: Any) -> None:
    X, y, group = rows
    saved = ScoreAligner(LogisticRegression()).fit(X, y > 0, sensitive_features=group)
    loaded = _round_trip(saved, path)
    np.testing.assert_array_equal(loaded.gap_band().upper, saved.gap_band().upper)
    for method in ("predict", "predict_proba", "decision_function"):
        with pytest.raises(ValueError, match=r"not in the file.*persistence\.load\(path, estimator=…\)"):
            getattr(loaded, method)(X, sensitive_features=group)
    persistence.save(loaded, path)
    again = persistence.load(path, estimator=saved.estimator_)
    _assert_predicts_the_same(again, saved, X, group)


def test_a_classifier_that_is_not_the_missing_one_is_refused(rows: Any, path: Any) -> None:
    X, y, group = rows
    persistence.save(ScoreAligner(LogisticRegression()).fit(X, y > 0, sensitive_features=group), path)
    with pytest.raises(NotFittedError):
        persistence.load(path, estimator=LogisticRegression())
    with pytest.raises(ValueError, match=r"has the classes 0, 1, 2; the one that is missing has False, True"):
        persistence.load(path, estimator=LogisticRegression().fit(X, y))
    with pytest.raises(ValueError, match="takes 3 features; what is missing takes 4"):
        persistence.load(path, estimator=LogisticRegression().fit(X[:, :3], y > 0))
    persistence.save(FairSteeringTransformer().fit(X, y, sensitive_features=group), path)
    with pytest.raises(ValueError, match="was saved whole; leave it out"):
        persistence.load(path, estimator=LogisticRegression().fit(X, y > 0))


@pytest.mark.slow
def test_pipelines_are_kept_by_skops(rows: Any) -> None:
    skops = pytest.importorskip("skops.io", reason="skops is not installed")
    X, y, group = rows
    frame = pd.DataFrame(X, columns=list("abcd")).assign(sex=np.array(["f", "m"])[group])
    steer = FairSteeringTransformer(sensitive_columns=["sex"])
    matching = MeanMatchingTransformer(sensitive_columns=["sex"], unknown_group="infer")
    logistic = LogisticRegression()
    for saved in (
        make_pipeline(steer, StandardScaler(), logistic),
        make_pipeline(matching, logistic),
        IdealDistributionClassifier(estimator=logistic, steering=steer, score_alignment="equal_opportunity"),
        IdealDistributionClassifierCV(logistic, steer, candidates={"steering__strength": [0, 1]}, cv=2),
        ScoreAligner(make_pipeline(steer, logistic), sensitive_columns=["sex"]),
        ScoreAligner(make_pipeline(steer, logistic), sensitive_columns=["sex"], calibrate=True),
        IdealPosteriorClassifier(make_pipeline(steer, logistic), sensitive_columns=["sex"], posterior="pooled", cv=2),
    ):
        target = y if "calibrate=True" in str(saved) or "pooled" in str(saved) else y > 0
        content = skops.dumps(saved.fit(frame, target))
        assert set(skops.get_untrusted_types(data=content)) <= set(persistence.SKOPS_TYPES)
        loaded = skops.loads(content, trusted=persistence.SKOPS_TYPES)
        np.testing.assert_array_equal(loaded.predict_proba(frame), saved.predict_proba(frame))


def test_equalized_concepts_are_kept_by_skops(hidden: Any) -> None:
    skops = pytest.importorskip("skops.io", reason="skops is not installed")
    X, y, group = hidden
    saved = ConceptSteering(n_probes=4).fit(X, y, sensitive_features=group)
    saved.equalize([2.0, 4.0], [[1.0, 1.2], [1.9, 2.5]], concept=2)
    loaded = skops.loads(skops.dumps(saved), trusted=persistence.SKOPS_TYPES)
    np.testing.assert_array_equal(loaded.group_strengths(3.0, 2), saved.group_strengths(3.0, 2))


def test_of_a_search_the_classifier_that_it_took_is_saved(rows: Any, path: Any) -> None:
    X, y, group = rows
    grid = {"steering__map_type": ["diagonal"], "score_alignment": ["equal_opportunity"]}
    search = IdealDistributionClassifierCV(LogisticRegression(), candidates=grid, cv=2)
    search.fit(X, y > 0, sensitive_features=group)
    with pytest.raises(ValueError, match="save its best_estimator_"):
        persistence.save(search, path)
    persistence.save(search.best_estimator_, path)
    loaded = persistence.load(path, estimator=search.best_estimator_.estimator_)
    np.testing.assert_array_equal(
        loaded.predict_proba(X, sensitive_features=group), search.predict_proba(X, sensitive_features=group)
    )


# ---- outputs that are no files


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_maps_are_written_through_pipes_and_links(rows: Any, path: Any, tmp_path: Path) -> None:
    X, y, group = rows
    saved = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    persistence.save(saved, path)
    os.mkfifo(tmp_path / "pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    persistence.save(saved, tmp_path / "pipe")
    reader.join(timeout=30)
    assert received == [path.read_bytes()]
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to("/dev/null")
    persistence.save(saved, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OSError, match="no file that can be read"):
        persistence.load(tmp_path / "link")


# ---- what is refused


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"shrinkage": LedoitWolf()}, "shrinkage=LedoitWolf.. is an estimator"),
        ({"feature_transform": PowerTransformer()}, "feature_transform=PowerTransformer.. cannot be saved"),
        ({"feature_transform": PCA()}, "feature_transform=PCA.. cannot be saved"),
    ],
)
def test_save_refuses_what_would_need_a_pickle(rows: Any, path: Any, params: Any, message: Any) -> None:
    X, y, group = rows
    saved = FairSteeringTransformer(**params).fit(X, y, sensitive_features=group)
    path.write_text("old")
    with pytest.raises(ValueError, match=message):
        persistence.save(saved, path)
    assert path.read_text() == "old"


def test_save_refuses_other_things(rows: Any, path: Any) -> None:
    X, y, group = rows

    class Mine(FairSteeringTransformer):
        pass

    with pytest.raises(ValueError, match=r"Mine cannot be saved.*FairSteeringTransformer.* themselves can"):
        persistence.save(Mine().fit(X, y, sensitive_features=group), path)
    with pytest.raises(NotFittedError):
        persistence.save(FairSteeringTransformer(), path)
    fitted = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    with pytest.raises(OSError, match="nowhere"):
        persistence.save(fitted, path.parent / "nowhere" / "map.safetensors")
    with pytest.raises(FileNotFoundError):
        persistence.load(path)


@pytest.fixture
def content(rows: Any, path: Any) -> Any:
    X, y, group = rows
    saved = FairSteeringTransformer(feature_transform=StandardScaler()).fit(X, y, sensitive_features=group)
    persistence.save(saved, path)
    return path.read_bytes()


def test_every_cut_and_every_flipped_byte_is_a_value_error(content: Any, path: Any) -> None:
    for size in (0, 1, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="damaged"):
            persistence.load(path)
    rng = np.random.default_rng(0)
    for position in rng.choice(len(content), size=200, replace=False):
        broken = bytearray(content)
        broken[position] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"damaged|format version"):
            persistence.load(path)


@pytest.mark.parametrize("other", [b"", b"PK\x03\x04", b"{}", pickle.dumps(1), st.save({"a": np.zeros(3)})])
def test_other_files_are_refused(path: Any, other: Any) -> None:
    path.write_bytes(other)
    with pytest.raises(ValueError, match="damaged or no saved map"):
        persistence.load(path)


def _rewrite(content: Any, path: Any, *, header: Any = None, arrays: Any = None) -> None:
    """Write the file anew with a changed header or changed arrays, and a checksum that agrees."""
    tensors = st.load(content)
    length = int.from_bytes(content[:8], "little")
    old = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["fairsteer"][8:])
    if header is not None:
        header(old)
    if arrays is not None:
        arrays(tensors)
    text = json.dumps(old)
    path.write_bytes(st.save(tensors, metadata={"fairsteer": _file.checksum(text, tensors) + text}))


_NESTED: list[Any] = [{"int": 1}]
for _ in range(400):
    _NESTED = [{"tuple": _NESTED}]


def _set(*keys_and_value: Any) -> Any:
    *keys, last, value = keys_and_value

    def change(block: Any) -> None:
        for key in keys:
            block = block[key]
        block[last] = value

    return change


_INT = {"dtype": "<i8", "labels": [{"int": 0}, {"int": 1}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format_version", 1), "has format version 1, and this fairsteer reads version 3"),
        (_set("format_version", True), "has no format version"),
        (_set("format_version", "3" * 10**6), "has no format version"),
        (_set("kind", "Pipeline"), "does not know"),
        (_set("kind", ["FairSteeringTransformer"]), "does not know"),
        (_set("kind", "ScoreAligner"), "its ScoreAligner has no alignment"),
        (_set("saved", None), "is no object"),
        (_set("saved", []), "is no object"),
        (_set("saved", "moments", "classes", {"dtype": "object", "labels": _NESTED}), "damaged"),
        (_set("saved", "moments", "classes", {"dtype": "<i8", "labels": []}), "at least one label"),
        (_set("saved", "moments", "classes", {"dtype": "<i8", "labels": [{"int": 1}] * 3}), "distinct"),
        (_set("saved", "moments", "classes", {"dtype": "<i8", "labels": [{"int": 10**30}] * 3}), "damaged"),
        (_set("saved", "moments", "classes", {"dtype": "<f8", "labels": [{"str": "1"}] * 3}), "are of another"),
        (_set("saved", "moments", "classes", {"dtype": "object", "labels": [None, {"int": 1}, {"int": 2}]}), "missing"),
        (_set("saved", "moments", "covariance", "none"), "not one of tied, full, diagonal"),
        (_set("saved", "moments", "covariance", ["tied"]), "not one of tied, full, diagonal"),
        (_set("saved", "moments", "n_features", 10**9), "has shape"),
        (_set("saved", "moments", "n_features", 10**400), "an integer from 0 on"),
        (_set("saved", "moments", "n_features", 5), "has shape"),
        (_set("saved", "moments", "n_features", "4"), "of type str, not an integer"),
        (_set("saved", "moments", "n_features", True), "True, not an integer"),
        (_set("saved", "moments", "n_features", 4.0), "4.0, not an integer"),
        (_set("saved", "moments", "pooling", "much"), "of type str, not a number"),
        (_set("saved", "moments", "pooling", 2.0), "2.0, not a number from 0 to 1"),
        (_set("saved", "moments", "shrunk", True), "moments.shrunk is absent"),
        (_set("saved", "moments", "shrunk", 1), "not true or false"),
        (_set("saved", "moments", "groups", {"dtype": "<i8", "labels": [{"int": 0}]}), "has shape"),
        (_set("saved", "moments", "groups", {"dtype": "<i8", "labels": ["0", "1"]}), "label is none"),
        (_set("saved", "moments", "groups", {"dtype": "<M8[s]", "labels": []}), "labels is none"),
        (_set("saved", "moments", "groups", {"dtype": "<U1000000000", "labels": []}), "labels is none"),
        (_set("saved", "moments", "groups", {"dtype": "(9,9)<f8", "labels": []}), "labels is none"),
        (_set("saved", "moments", "groups", {"dtype": "<i8", "labels": "ab"}), "labels is none"),
        (_set("saved", "moments", "groups", {"dtype": "object", "labels": [{"tuple": []}] * 2}), "label is none"),
        (_set("saved", "encoder", {"n_columns": 2, "column_names": None}), "not made of 2 labels"),
        (_set("saved", "encoder", {"n_columns": 0, "column_names": None}), "integer from 1 on"),
        (_set("saved", "encoder", {"n_columns": 1, "column_names": ["a", "b"]}), "a list of 1 names"),
        (_set("saved", "encoder", {"n_columns": 1, "column_names": [1]}), "a list of 1 names"),
        (_set("saved", "ideal", "covariance", "full"), "has shape"),
        (_set("saved", "ideal", "classes", _INT), "other classes, groups or features"),
        (_set("saved", "ideal", "reference_group", {"str": "f"}), "none of its groups"),
        (_set("saved", "ideal", "kl_divergence", "0x1"), "not a number"),
        (_set("saved", "ideal", "kl_divergence", float("nan")), "not a number"),
        (_set("saved", "ideal", "kl_divergence", float("inf")), "not a number"),
        (_set("saved", "ideal", "n_iter", -1), "an integer from 0 on"),
        (_set("saved", "ideal", "converged", "yes"), "not true or false"),
        (_set("saved", "ideal", "intervention", "none"), "not one of all_subgroups"),
        (_set("saved", "ideal", "map_type", None), "not one of affine"),
        (_set("saved", "model", "groups", {"dtype": "<i8", "labels": [{"int": 0}, {"int": 5}]}), "its model has"),
        (_set("saved", "calibration", {"slope": 1.0}), "calibration.offsets is absent"),
        (_set("saved", "calibration", 1.0), "is no object"),
        (_set("saved", "params", {}), "parameters are"),
        (_set("saved", "params", []), "not an object"),
        (_set("saved", "params", "strength", {"str": "0.5"}), "'strength' parameter"),
        (_set("saved", "params", "strength", {"float": "0x1p+3"}), "'strength' parameter"),
        (_set("saved", "params", "strength", {"float": "nan"}), "'strength' parameter"),
        (_set("saved", "params", "strength", {"numpy": "<f8", "value": {"str": "1"}}), "label is none"),
        (_set("saved", "params", "tol", {"str": "small"}), "'tol' parameter"),
        (_set("saved", "params", "max_iter", {"float": "0x1p+3"}), "'max_iter' parameter"),
        (_set("saved", "params", "max_iter", {"int": 10**100}), "beyond 64 bits"),
        (_set("saved", "params", "min_subgroup_size", {"str": "5"}), "'min_subgroup_size' parameter"),
        (_set("saved", "params", "pooling", {"tuple": [{"int": 0}]}), "'pooling' parameter"),
        (_set("saved", "params", "unknown_group", {"str": "guess"}), "'unknown_group' parameter"),
        (_set("saved", "params", "reference_group", {"str": "guess"}), "reference_group is none of"),
        (_set("saved", "params", "sensitive_columns", {"str": "sex"}), "sensitive columns are those of another"),
        (_set("saved", "output", "html"), "not one of default"),
        (_set("saved", "class_blind", "no"), "not true or false"),
        (_set("saved", "n_features_in", 7), "7 columns"),
        (_set("saved", "n_features_in", 10**15), "columns"),
        (_set("saved", "sensitive_positions", [9]), "a list of positions below 4"),
        (_set("saved", "sensitive_positions", [0, 0]), "distinct positions"),
        (_set("saved", "sensitive_positions", {"0": 1}), "a list of positions"),
        (_set("saved", "feature_names_in", ["a"]), "a list of 4 names"),
        (_set("saved", "feature_names_in", [1, 2, 3, 4]), "a list of 4 names"),
        (_set("saved", "feature_transform", None), "is no object"),
        (_set("saved", "feature_transform", "kind", "Pipeline"), "not one of none, log, StandardScaler"),
        (_set("saved", "feature_transform", "params", {"evil": {"int": 1}}), "evil"),
        (_set("saved", "feature_transform", "params", {"with_mean": {"str": "yes"}}), "'with_mean' parameter"),
        (_set("saved", "feature_transform", "absent", ["mean_"]), "no centre"),
        (_set("saved", "feature_transform", "absent", "mean_"), "a list of texts"),
        (_set("saved", "feature_transform", "feature_names_in", ["a"]), "a list of 4 names"),
        (_set("saved", "feature_transform", "frozen", 0), "not true or false"),
    ],
)
def test_header_that_does_not_fit_is_refused(content: Any, path: Any, change: Any, message: Any) -> None:
    _rewrite(content, path, header=change)
    with pytest.raises(ValueError, match=message):
        persistence.load(path)


def _without(tensors: Any) -> None:
    del tensors["ideal.linear"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without, "the array ideal.linear is absent"),
        (lambda t: t.update({"ideal.linear": t["ideal.linear"].astype(np.float32)}), "dtype float32"),
        (lambda t: t.update({"ideal.offset": t["ideal.offset"][:1]}), r"shape \(1, 4\)"),
        (lambda t: t.update({"ideal.offset": t["ideal.offset"] * np.nan}), "not finite"),
        (lambda t: t.update({"moments.weights": -t["moments.weights"]}), "negative"),
        (lambda t: t.update({"moments.weights": 0 * t["moments.weights"]}), "all weights are zero"),
        (lambda t: t.update({"moments.weight_squares": -t["moments.weight_squares"]}), "negative"),
        (lambda t: t.update({"moments.quartics": -t["moments.quartics"]}), "negative"),
        (lambda t: t.update({"moments.scatters": -t["moments.scatters"]}), "no covariances"),
        (lambda t: t.update({"model.covariances": t["model.covariances"] + np.tri(4)}), "no covariances"),
        (lambda t: t.update({"ideal.class_prior": t["ideal.class_prior"] * 2}), "no shares of a whole"),
        (lambda t: t.update({"ideal.group_prior": t["ideal.group_prior"] - 1}), "no shares of a whole"),
        (lambda t: t.update({"ideal.source_weights": -t["ideal.source_weights"]}), "negative"),
        (lambda t: t.update({"ideal.canonical_covariances": -t["ideal.canonical_covariances"]}), "no covariances"),
        (lambda t: t.update({"scaler.scale_": 0 * t["scaler.scale_"]}), "not positive"),
        (lambda t: t.update({"scaler.mean_": t["scaler.mean_"] * np.inf}), "not finite"),
        (lambda t: t.update({"scaler.mean_": np.zeros(3)}), r"shape \(3,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(content: Any, path: Any, change: Any, message: Any) -> None:
    _rewrite(content, path, arrays=change)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message):
            persistence.load(path)


@pytest.fixture
def aligned(rows: Any, path: Any) -> Any:
    X, y, group = rows
    classifier = IdealDistributionClassifier(score_alignment="equal_opportunity", cost_matrix=1 - np.eye(2))
    persistence.save(classifier.fit(X, y > 0, sensitive_features=group), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("header", "arrays", "message"),
    [
        (_set("kind", "LeaceTransformer"), None, "has no moments"),
        (_set("saved", "alignment", "scales", [1.0]), None, "1 scales for 2 groups"),
        (_set("saved", "alignment", "scales", [float("nan")] * 2), None, "a list of numbers above 0"),
        (_set("saved", "alignment", "scales", ["1"] * 2), None, "a list of numbers above 0"),
        (_set("saved", "alignment", "amount", 8.0), None, "8.0, not a number from 0 to 1"),
        (_set("saved", "alignment", "budget", "0"), None, "not a number"),
        (_set("saved", "alignment", []), None, "is no object"),
        (_set("saved", "params", {"cv": {"str": "5"}}), None, "'cv' parameter"),
        (_set("saved", "params", {"score_alignment": {"str": "odds"}}), None, "'score_alignment' parameter"),
        (_set("saved", "params", {"estimator": {"int": 1}}), None, "estimator"),
        (_set("saved", "costs", None), None, "not true or false"),
        (None, lambda t: t.update({"cost_matrix": np.eye(3)}), r"shape \(3, 3\)"),
        (None, lambda t: t.update({"alignment.measured": t["alignment.measured"] + np.inf}), "not finite"),
        (None, lambda t: t.update({"alignment.calibration": -t["alignment.calibration"]}), "not increase"),
        (None, lambda t: t.update({"alignment.calibration": np.zeros((2, 0))}), "not increase"),
        (None, lambda t: t.update({"alignment.distribution.0": np.array([[0.0, 1], [0, 1]])}), "levels"),
        (None, lambda t: t.update({"alignment.shares": np.ones(3)}), r"shape \(3,\)"),
        (None, lambda t: t.update({"alignment.shares": np.ones(2)}), "no shares of a whole"),
    ],
)
def test_classifier_that_does_not_fit_together_is_refused(
    aligned: Any, path: Any, header: Any, arrays: Any, message: Any
) -> None:
    _rewrite(aligned, path, header=header, arrays=arrays)
    with pytest.raises(ValueError, match=message):
        persistence.load(path)


@pytest.mark.parametrize(
    ("header", "arrays", "message"),
    [
        (_set("saved", "alignment", "response_method", "predict"), None, "not one of predict_proba"),
        (_set("saved", "alignment", "constraint", 1), None, "not one of equal_opportunity"),
        (_set("saved", "alignment", "classes", {"dtype": "<i8", "labels": [{"int": 0}]}), None, r"shape \(1, 2\)"),
        (_set("saved", "alignment", "groups", {"dtype": "<i8", "labels": [{"int": 0}]}), None, r"shape \(1, 2, 2\)"),
        (_set("saved", "alignment", "maps", None), None, "maps is no object"),
        (_set("saved", "params", "max_gap", {"str": "0"}), None, "'max_gap' parameter"),
        (_set("saved", "params", "prior_rows", {"float": "-0x1p+0"}), None, "'prior_rows' parameter"),
        (_set("saved", "params", "calibrate", {"str": "no"}), None, "'calibrate' parameter"),
        (_set("saved", "params", "unknown_group", {"str": "infer"}), None, "'unknown_group' parameter"),
        (_set("saved", "params", "estimator", {"str": "os.system"}), None, "estimator"),
        (_set("saved", "max_gap", 2.0), None, "2.0, not a number from 0 to 1"),
        (_set("saved", "encoder", {"n_columns": "1", "column_names": None}), None, "of type str, not an integer"),
        (None, lambda t: t.update({"shares": np.array([0.5, 0.6])}), "no shares of a whole"),
        (None, lambda t: t.update({"rows": -t["rows"]}), "number of rows is negative"),
        (None, lambda t: t.update({"alignment.ties.0": np.array([[1.0], [3.0], [2.0]])}), "no intervals"),
        (None, lambda t: t.update({"alignment.ties.0": np.zeros((2, 0))}), r"shape \(2, 0\)"),
    ],
)
def test_aligner_that_does_not_fit_together_is_refused(
    rows: Any, path: Any, header: Any, arrays: Any, message: Any
) -> None:
    X, y, group = rows
    persistence.save(ScoreAligner(LogisticRegression()).fit(X, y > 0, sensitive_features=group), path)
    _rewrite(path.read_bytes(), path, header=header, arrays=arrays)
    with pytest.raises(ValueError, match=message):
        persistence.load(path)


def test_baseline_that_does_not_fit_together_is_refused(rows: Any, path: Any) -> None:
    X, _, group = rows
    persistence.save(MeanMatchingTransformer().fit(X, sensitive_features=group), path)
    content = path.read_bytes()
    _rewrite(content, path, arrays=lambda t: t.update({"maps.linear": t["maps.linear"][:1]}))
    with pytest.raises(ValueError, match=r"maps.linear has shape \(1, 4\)"):
        persistence.load(path)
    _rewrite(content, path, header=_set("kind", "FairSteeringTransformer"))
    with pytest.raises(ValueError, match="parameters are"):
        persistence.load(path)


def test_loaded_concept_is_equalized_as_the_saved_one_was(hidden: Any, path: Any) -> None:
    X, y, group = hidden
    saved = ConceptSteering(n_probes=4).fit(X, y, sensitive_features=group)
    saved.equalize([2.0, 4.0], [[1.0, 1.2], [1.9, 2.5]], concept=2).equalize([1.0], [[2.0, 3.0]], concept=0)
    loaded = _round_trip(saved, path)
    for concept, strength in ((2, 3.0), (0, 0.4), (1, 9.0)):
        expected = saved.group_strengths(strength, concept)
        np.testing.assert_array_equal(loaded.group_strengths(strength, concept), expected)
    content = path.read_bytes()
    for header, arrays, message in (
        (_set("saved", "equalized", [0, 3]), None, "equalized"),
        (_set("saved", "equalized", [1]), None, "concept.strengths.1 is absent"),
        (None, lambda t: t.update({"concept.shifts.2": np.ones((3, 2))}), "nothing shifts"),
        (None, lambda t: t.update({"concept.shifts.2": np.ones((2, 2))}), r"has shape \(2, 2\)"),
    ):
        _rewrite(content, path, header=header, arrays=arrays)
        with pytest.raises(ValueError, match=message):
            persistence.load(path)


@pytest.mark.parametrize(
    ("header", "arrays", "message"),
    [
        (_set("saved", "encoder", None), None, "encoder is no object"),
        (_set("saved", "params", {"evil": {"int": 1}}), None, "evil"),
        (_set("saved", "params", {"C": {"str": "1"}}), None, "'C' parameter"),
        (_set("saved", "moments", "covariance", "full"), None, "has shape"),
        (None, lambda t: t.update({"concept.directions": np.zeros((3, 2, 5))}), r"shape \(3, 2, 5\)"),
        (None, lambda t: t.update({"concept.separation": np.full((3, 2), np.nan)}), "not finite"),
    ],
)
def test_concept_that_does_not_fit_together_is_refused(
    hidden: Any, path: Any, header: Any, arrays: Any, message: Any
) -> None:
    persistence.save(ConceptSteering(n_probes=4).fit(*hidden[:2], sensitive_features=hidden[2]), path)
    _rewrite(path.read_bytes(), path, header=header, arrays=arrays)
    with pytest.raises(ValueError, match=message):
        persistence.load(path)


def test_save_names_the_way_out_for_a_concept_with_a_generator(hidden: Any, path: Any) -> None:
    concept = ConceptSteering(n_probes=4, random_state=np.random.RandomState(0))
    concept.fit(*hidden[:2], sensitive_features=hidden[2])
    with pytest.raises(ValueError, match=r"random_state=RandomState.* cannot be saved.*set_params\(random_state=0\)"):
        persistence.save(concept, path)
    loaded = _round_trip(concept.set_params(random_state=0), path)
    np.testing.assert_array_equal(loaded.directions_, concept.directions_)
    with pytest.raises(NotFittedError):
        persistence.save(ConceptSteering(), path)


@pytest.mark.slow
def test_missing_safetensors_is_a_sentence() -> None:
    program = "import sys; sys.modules['safetensors'] = None\nfrom fairsteer import persistence\npersistence.load('x')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ImportError: Saving and loading need safetensors" in result.stderr


# ---- ideal posteriors


def _posterior_classifier(n_classes: int, **params: Any) -> tuple[IdealPosteriorClassifier, Any, Any, Any]:
    rng = np.random.default_rng(0)
    group, y = rng.integers(0, 3, 600), rng.integers(0, n_classes, 600)
    X = rng.normal(size=(600, 3)) + np.outer(group == 1, [1, 0, 0])
    X[:, :2] += np.where(group == 2, -1, 1)[:, None] * np.stack([y == 1, y == 2], axis=1) * 1.5
    labels = np.array(["a", "b", "c"])[group]
    given: dict[str, Any] = {"cv": 2} | params
    return IdealPosteriorClassifier(LogisticRegression(), **given).fit(X, y, sensitive_features=labels), X, y, labels


@pytest.mark.parametrize("mode", ["joint", "labels", "weights"])
@pytest.mark.parametrize("intervention", ["all_subgroups", "affirmative"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_ideal_posteriors_come_back_as_they_were(n_classes: int, intervention: Any, mode: Any, path: Any) -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 3, 300)
    s = rng.dirichlet(np.ones(n_classes) + 1, 300) * (1 + 0.3 * group[:, None] * (np.arange(n_classes) == 1))
    s /= s.sum(axis=1, keepdims=True)
    saved = nearest_ideal_posterior(s, np.array(["a", "b", "c"])[group], intervention=intervention, mode=mode)
    loaded = _round_trip(saved, path)
    assert repr(loaded) == repr(saved)
    for name, value in vars(saved).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    np.testing.assert_array_equal(loaded.ideal_posterior(s, group), saved.ideal_posterior(s, group))
    np.testing.assert_array_equal(loaded.sample_weight(s, group), saved.sample_weight(s, group))


@pytest.mark.parametrize("n_classes", [1, 2, 3])
def test_classifier_of_the_ideal_posterior_comes_back_without_what_it_wraps(n_classes: int, path: Any) -> None:
    costs = np.arange(n_classes**2).reshape(n_classes, -1) % 5 * (1.0 - np.eye(n_classes))
    params: dict[str, Any] = {"small_subgroups": "merge", "min_subgroup_size": 5, "cost_matrix": costs}
    if n_classes == 1:
        classifier = IdealPosteriorClassifier(DummyClassifier()).fit(
            np.eye(4), [7] * 4, sensitive_features=list("abab")
        )
        persistence.save(classifier, path)
        loaded = persistence.load(path, estimator=classifier.estimator_)
        assert loaded.predict(np.eye(4), sensitive_features=list("abab")).tolist() == [7] * 4
        return
    saved, X, y, labels = _posterior_classifier(n_classes, **params)
    assert saved.group_estimators_
    persistence.save(saved, path)
    loaded = persistence.load(path)
    assert set(loaded.h_) == set(saved.h_)
    np.testing.assert_array_equal(loaded.subgroup_divergence_, saved.subgroup_divergence_)
    assert loaded.certificate_.equalized_odds == saved.certificate_.equalized_odds
    with pytest.raises(ValueError, match="classifier is not in the file"):
        loaded.predict(X, sensitive_features=labels)
    with pytest.raises(ValueError, match=r"give estimator=\(classifier.estimator_, classifier.group_estimators_\)"):
        persistence.load(path, estimator=saved.estimator_)
    loaded = persistence.load(path, estimator=(saved.estimator_, saved.group_estimators_))
    groups = {"sensitive_features": labels}
    np.testing.assert_array_equal(loaded.predict_proba(X, **groups), saved.predict_proba(X, **groups))
    np.testing.assert_array_equal(loaded.predict(X, **groups), saved.predict(X, **groups))
    for ours, theirs in zip(loaded.repair(X, y, **groups), saved.repair(X, y, **groups), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    again = clone(loaded).fit(X, y, **groups)
    np.testing.assert_array_equal(again.predict_proba(X, **groups), saved.predict_proba(X, **groups))


_THREE = {"dtype": "<U1", "labels": [{"str": "a"}, {"str": "b"}, {"str": "x"}]}


@pytest.mark.parametrize(
    ("n_classes", "header", "arrays", "message"),
    [
        (2, _set("saved", "own", [3]), None, "a list of positions below 3"),
        (2, _set("saved", "own", [0, 0]), None, "distinct positions"),
        (2, _set("saved", "group_of_label", [0, 1, 1]), None, "labels do not lead to its groups"),
        (2, _set("saved", "group_of_label", [0, 1, 2] * 10**5), None, "labels do not lead to its groups"),
        (2, _set("saved", "labels", []), None, "labels is none"),
        (2, _set("saved", "ideal", None), None, "do not belong together"),
        (2, _set("saved", "ideal", []), None, "is no object"),
        (2, _set("saved", "ideal", "groups", _THREE), None, "other classes or groups"),
        (2, _set("saved", "ideal", "mode", "all"), None, "not one of joint"),
        (2, _set("saved", "ideal", "intervention", "affirmative"), None, "none of its groups"),
        (2, _set("saved", "ideal", "reference_group", {"str": "z"}), None, "none of its groups"),
        (2, _set("saved", "ideal", "kl_divergence", -1.0), None, "not a number from 0"),
        (2, _set("saved", "ideal", "dual_gap", "0"), None, "not a number"),
        (2, _set("saved", "ideal", "n_iter", 1.5), None, "not an integer"),
        (2, _set("saved", "ideal", "converged", 1), None, "not true or false"),
        (2, _set("saved", "params", "posterior", {"str": "mine"}), None, "'posterior' parameter"),
        (2, _set("saved", "params", "small_subgroups", {"str": "pool"}), None, "'small_subgroups' parameter"),
        (2, _set("saved", "asked", "predict"), None, "not one of predict_proba"),
        (2, _set("saved", "classes", {"dtype": "<i8", "labels": [{"int": k} for k in range(11)]}), None, "11 classes"),
        (2, None, lambda t: t.update({"posterior.logits": t["posterior.logits"][::-1].copy()}), "do not ascend"),
        (2, None, lambda t: t.update({"posterior.ideal_logits": -t["posterior.ideal_logits"]}), "do not ascend"),
        (2, None, lambda t: t.update({"posterior.laws": 2 * t["posterior.laws"]}), "no probabilities"),
        (2, None, lambda t: t.update({"posterior.log_weights": t["posterior.log_weights"] + np.inf}), "not finite"),
        (
            2,
            None,
            lambda t: t.update({"posterior.group_prior": np.array([0.0, 0.5, 0.5])}),
            "a share in group_prior is 0",
        ),
        (2, None, lambda t: t.update({"posterior.group_prior": np.ones(3)}), "no shares of a whole"),
        (2, None, lambda t: t.update({"calibration.slopes": -t["calibration.slopes"]}), "slope of its calibration"),
        (2, None, lambda t: t.update({"calibration.offsets": np.zeros((3, 3))}), r"shape \(3, 3\)"),
        (2, None, lambda t: t.update({"shares": np.ones(3)}), "no shares of a whole"),
        (3, None, lambda t: t.update({"posterior.centers": 0 * t["posterior.centers"]}), "no distributions of classes"),
        (3, None, lambda t: t.update({"posterior.centers": np.full((2, 11), 1 / 11)}), "2 cells and 11 classes"),
        (3, None, lambda t: t.update({"posterior.centers": np.ones((0, 3))}), "0 cells"),
        (3, None, lambda t: t.update({"posterior.targets": np.ones((0, 3))}), "do not belong together"),
        (3, None, lambda t: t.update({"posterior.targets": 2 * t["posterior.targets"]}), "no distributions"),
        (3, None, lambda t: t.update({"posterior.plans": -t["posterior.plans"]}), "no probabilities"),
        (
            3,
            None,
            lambda t: t.update({"posterior.ideal_posteriors": 0 * t["posterior.ideal_posteriors"]}),
            "no distrib",
        ),
        (3, None, lambda t: t.update({"posterior.target_law": 2 * t["posterior.target_law"]}), "no shares"),
    ],
)
def test_ideal_posterior_that_does_not_fit_together_is_refused(
    posterior_files: Any, path: Any, n_classes: int, header: Any, arrays: Any, message: Any
) -> None:
    _rewrite(posterior_files[n_classes], path, header=header, arrays=arrays)
    with pytest.raises(ValueError, match=message):
        persistence.load(path)


@pytest.fixture(scope="module")
def posterior_files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("posteriors") / "saved.safetensors"
    found = {}
    for n_classes in (2, 3):
        persistence.save(_posterior_classifier(n_classes)[0], path)
        found[n_classes] = path.read_bytes()
    return found
