"""Memory that may not be written, mapped from a file or shared between processes, works like any other."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fairsteer import (
    CovarianceMatchingTransformer,
    FairSteeringTransformer,
    IdealDistributionClassifier,
    LeaceTransformer,
    MeanMatchingTransformer,
    ScoreAligner,
    SubgroupMoments,
    nearest_ideal,
)
from fairsteer.concepts import ConceptSteering


def _freeze(*arrays: Any) -> Any:
    frozen = [np.array(array) for array in arrays]
    for array in frozen:
        array.flags.writeable = False
    return frozen


@pytest.fixture
def mapped(tmp_path: Path) -> Any:
    """Give an object back with its arrays mapped from a file, read-only."""

    def read_back(value: Any) -> Any:
        joblib.dump(value, tmp_path / "value.joblib")
        return joblib.load(tmp_path / "value.joblib", mmap_mode="r")

    return read_back


def _moments(data: Any, covariance: Any, part: Any = slice(None)) -> Any:
    moments = SubgroupMoments(3, classes=[0, 1], groups=[0, 1], covariance=covariance)
    return moments.update(data.X[part], data.y[part], data.group[part])


def _assert_same(first: Any, second: Any) -> None:
    for name in ("weights", "means", "covariances", "sizes"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(first.shrink("ledoit_wolf").covariances, second.shrink("ledoit_wolf").covariances)


@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
def test_mapped_moments_are_updated_and_merged(data: Any, mapped: Any, covariance: Any) -> None:
    first, rest = slice(0, 300), slice(300, None)
    in_memory = _moments(data, covariance, first)
    other = mapped(_moments(data, covariance, rest))
    _assert_same(in_memory.merge(other), in_memory.merge(_moments(data, covariance, rest)))
    _assert_same(other.merge(in_memory), _moments(data, covariance, rest).merge(in_memory))
    _assert_same(other.merge_groups([0, 1], "all"), _moments(data, covariance, rest).merge_groups([0, 1], "all"))
    updated = mapped(_moments(data, covariance, first)).update(data.X[rest], data.y[rest], data.group[rest])
    _assert_same(updated, _moments(data, covariance, first).update(data.X[rest], data.y[rest], data.group[rest]))


def test_an_update_leaves_the_file_alone(data: Any, mapped: Any) -> None:
    moments = mapped(_moments(data, "tied"))
    assert not moments.means.flags.writeable
    before = pickle.dumps(moments.means)
    view = moments.means
    moments.update(data.X, data.y, data.group)
    assert pickle.dumps(view) == before
    assert moments.weights.sum() == 2 * len(data.X)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_rows_codes_and_weights_may_be_read_only(data: Any, dtype: Any) -> None:
    X, y, group, weight = _freeze(data.X.astype(dtype), data.y, data.group, np.ones(len(data.X)))
    _assert_same(
        SubgroupMoments(3, classes=[0, 1], groups=[0, 1]).update(X, y, group, weight),
        SubgroupMoments(3, classes=[0, 1], groups=[0, 1]).update(data.X.astype(dtype), data.y, data.group),
    )


@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
def test_mapped_moments_are_projected(data: Any, mapped: Any, covariance: Any) -> None:
    moments = _moments(data, covariance)
    prepared: list[Callable[[Any], Any]] = [
        lambda m: m,
        lambda m: m.shrink("oas"),
        lambda m: m.borrow(1000.0),
        lambda m: m.pool(0.5) if covariance == "full" else m,
    ]
    for prepare in prepared:
        expected = nearest_ideal(prepare(moments), covariance=covariance)
        for found in (nearest_ideal(prepare(mapped(moments)), covariance=covariance), mapped(expected)):
            assert found.kl_divergence == expected.kl_divergence
            np.testing.assert_array_equal(found.means, expected.means)
            np.testing.assert_array_equal(found.certificate.equal_opportunity, expected.certificate.equal_opportunity)


@pytest.mark.parametrize(
    "transformer",
    [
        FairSteeringTransformer(),
        FairSteeringTransformer(covariance="full", unknown_group="infer", feature_transform=StandardScaler()),
        FairSteeringTransformer(small_subgroups="merge", min_subgroup_size=90, strength=0.5),
        MeanMatchingTransformer(unknown_group="infer_hard"),
        CovarianceMatchingTransformer(),
        LeaceTransformer(),
    ],
    ids=str,
)
def test_a_mapped_transformer_does_what_the_other_does(make_data: Any, mapped: Any, transformer: Any) -> None:
    X, y, group = make_data(n_groups=3)
    transformer.fit(X, y, sensitive_features=group)
    other = mapped(transformer)
    for method in ("transform", "inverse_transform", "steer"):
        if hasattr(transformer, method) and not (method == "inverse_transform" and "Leace" in str(transformer)):
            arguments = (X, y) if method == "steer" else (X,)
            np.testing.assert_array_equal(
                getattr(other, method)(*arguments, sensitive_features=group),
                getattr(transformer, method)(*arguments, sensitive_features=group),
            )
    np.testing.assert_array_equal(other.predict_group_proba(X), transformer.predict_group_proba(X))
    if transformer.get_params().get("feature_transform") is None:
        for one in (transformer, other):
            one.partial_fit(X + 1, y, sensitive_features=group)
        np.testing.assert_array_equal(
            other.transform(X, sensitive_features=group), transformer.transform(X, sensitive_features=group)
        )


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    "classifier",
    [
        IdealDistributionClassifier(score_alignment="equal_opportunity"),
        IdealDistributionClassifier(estimator=LogisticRegression()),
        ScoreAligner(LogisticRegression()),
        ScoreAligner(LogisticRegression(), constraint="demographic_parity"),
    ],
    ids=str,
)
def test_a_mapped_classifier_does_what_the_other_does(
    make_data: Any, mapped: Any, classifier: Any, n_classes: Any
) -> None:
    X, y, group = make_data(n_classes=n_classes)
    classifier.fit(X, y, sensitive_features=group)
    other = mapped(classifier)
    for method in ("predict", "predict_proba", "decision_function"):
        np.testing.assert_array_equal(
            getattr(other, method)(X, sensitive_features=group),
            getattr(classifier, method)(X, sensitive_features=group),
        )


def test_a_mapped_concept_steers(make_data: Any, mapped: Any) -> None:
    X, y, group = make_data()
    concept = ConceptSteering(n_probes=4).fit(X + 3 * np.eye(3)[y], y, sensitive_features=group)
    found, expected = (one.steer(X, sensitive_features=group) for one in (mapped(concept), concept))
    np.testing.assert_array_equal(found, expected)
