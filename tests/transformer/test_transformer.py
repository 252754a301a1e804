from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.covariance import EmpiricalCovariance, LedoitWolf, ShrunkCovariance
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    PowerTransformer,
    QuantileTransformer,
    StandardScaler,
)
from sklearn.utils import get_tags

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, nearest_ideal

INTERVENTIONS = [
    {"intervention": "affirmative", "covariance": "tied"},
    {"intervention": "all_subgroups", "covariance": "tied"},
    {"intervention": "affirmative", "covariance": "full"},
    {"intervention": "all_subgroups", "covariance": "diagonal"},
]
FRAMES = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table}


def fitted(data: Any, **parameters: Any) -> FairSteeringTransformer:
    return FairSteeringTransformer(**parameters).fit(data.X, data.y, sensitive_features=data.group)


# ---- what transform computes


@pytest.mark.parametrize("parameters", INTERVENTIONS)
def test_transform_applies_the_map_of_each_group(data: Any, parameters: dict[Any, Any]) -> None:
    steer = fitted(data, **parameters)
    steered = steer.transform(data.X, sensitive_features=data.group)
    for group, (A, b) in steer.maps_.items():
        rows = data.group == group
        np.testing.assert_allclose(steered[rows], data.X[rows] @ A.T + b, atol=1e-12)
    assert np.abs(steered - data.X).max() > 0.1


def test_groups_agree_after_steering_without_classes(data: Any) -> None:
    steer = FairSteeringTransformer(shrinkage=None).fit(data.X, sensitive_features=data.group)
    steered = steer.transform(data.X, sensitive_features=data.group)
    first, second = (steered[data.group == a] for a in (0, 1))
    np.testing.assert_allclose(first.mean(axis=0), second.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(np.cov(first.T, bias=True), np.cov(second.T, bias=True), atol=1e-6)
    assert steer.classes_.tolist() == [0]


@pytest.mark.filterwarnings("ignore:The certificate of the model")  # the rows are no Gaussians without the logarithm
@pytest.mark.parametrize("feature_transform", [None, "log", StandardScaler()])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_rows_of_the_reference_group_come_back_bit_for_bit(data: Any, feature_transform: Any, dtype: type[Any]) -> None:
    X = np.exp(data.X / 4).astype(dtype)
    steer = FairSteeringTransformer(
        intervention="affirmative", reference_group=1, feature_transform=feature_transform
    ).fit(X, data.y, sensitive_features=data.group)
    steered = steer.transform(X, sensitive_features=data.group)
    assert steered[data.group == 1].tobytes() == X[data.group == 1].tobytes()
    assert not np.any(steered[data.group == 0] == X[data.group == 0], axis=1).all()


def test_the_group_of_most_weight_is_the_default_reference(data: Any) -> None:
    for heavy in (0, 1):
        weight = np.where(data.group == heavy, 3.0, 1.0)
        steer = FairSteeringTransformer(intervention="affirmative").fit(
            data.X, data.y, sensitive_features=data.group, sample_weight=weight
        )
        A, b = steer.maps_[heavy]
        assert np.array_equal(A, np.eye(3))
        assert not b.any()


@pytest.mark.filterwarnings("ignore:The certificate of the model")  # the rows are no Gaussians without the logarithm
@pytest.mark.parametrize("feature_transform", [None, "log"])
def test_strength_moves_rows_part_of_the_way_without_a_new_fit(data: Any, feature_transform: Any) -> None:
    X = np.exp(data.X / 4)
    to_model, from_model = (np.log, np.exp) if feature_transform else (np.array, np.array)
    steer = FairSteeringTransformer(feature_transform=feature_transform)
    full = to_model(steer.fit_transform(X, data.y, sensitive_features=data.group))
    steer.set_params(strength=0.3)
    part = steer.transform(X, sensitive_features=data.group)
    np.testing.assert_allclose(part, from_model(0.7 * to_model(X) + 0.3 * full), rtol=1e-10)
    steer.set_params(strength=0)
    assert steer.transform(X, sensitive_features=data.group).tobytes() == X.tobytes()


@pytest.mark.parametrize("strength", [-0.1, 1.1, np.nan])
def test_strength_outside_its_range_is_refused_at_fit_and_transform(data: Any, strength: float) -> None:
    with pytest.raises(ValueError, match="strength"):
        fitted(data, strength=strength)
    steer = fitted(data).set_params(strength=strength)
    with pytest.raises(ValueError, match="strength"):
        steer.transform(data.X, sensitive_features=data.group)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_floating_types_are_kept(data: Any, dtype: type[Any]) -> None:
    X = data.X.astype(dtype)
    reference = fitted(data).transform(data.X, sensitive_features=data.group)
    steered = FairSteeringTransformer().fit_transform(X, data.y, sensitive_features=data.group)
    assert steered.dtype == dtype
    np.testing.assert_allclose(steered, reference, atol=20 * np.finfo(dtype).eps)


def test_bfloat16_is_kept(data: Any) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    X = data.X.astype(bfloat16)
    steer = FairSteeringTransformer().fit(X, data.y, sensitive_features=data.group)
    steered = steer.transform(X, sensitive_features=data.group)
    assert steered.dtype == bfloat16
    wide = X.astype(np.float32)
    expected = steer.transform(wide, sensitive_features=data.group)
    assert np.array_equal(steered, expected.astype(bfloat16))
    assert steer.inverse_transform(steered, sensitive_features=data.group).dtype == bfloat16
    assert steer.steer(X, data.y, sensitive_features=data.group).dtype == bfloat16


@pytest.mark.parametrize("convert", [lambda X: X.astype(int), lambda X: X.astype(int).tolist()])
def test_other_types_become_float64(data: Any, convert: Callable[..., Any]) -> None:
    steered = FairSteeringTransformer().fit_transform(convert(10 * data.X), data.y, sensitive_features=data.group)
    assert steered.dtype == np.float64


def test_memory_layout_does_not_matter(data: Any) -> None:
    steer = fitted(data)
    expected = steer.transform(data.X, sensitive_features=data.group)
    wide = np.zeros((len(data.X), 7))
    wide[:, ::3] = data.X
    readonly = data.X.copy()
    readonly.setflags(write=False)
    for X in (np.asfortranarray(data.X), wide[:, ::3], data.X[::-1][::-1], readonly):
        steered = fitted(data._replace(X=X)).transform(X, sensitive_features=data.group)
        assert steered.flags.c_contiguous
        np.testing.assert_allclose(steered, expected, atol=1e-9)


def test_every_row_is_treated_alone(data: Any) -> None:
    steer = fitted(data, unknown_group="infer")
    groups = data.group.astype(object)
    groups[::3] = None
    whole = steer.transform(data.X, sensitive_features=groups)
    for rows in (slice(7), slice(0, 1), np.random.default_rng(0).permutation(len(groups))):
        alone = steer.transform(data.X[rows], sensitive_features=groups[rows])
        np.testing.assert_allclose(alone, whole[rows], atol=1e-12)


# ---- where groups come from


def with_columns(data: Any) -> dict[str, Any]:
    """Features and two sensitive columns, one of strings, in the middle of the features."""
    sex = np.array(["f", "m"])[data.group].tolist()
    old = (data.X[:, 0] > 0).tolist()
    a, b, c = data.X.T
    return {"a": a, "sex": sex, "b": b, "old": old, "c": c}


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("columns", ["sex", ["sex"], 1, [-4]])
def test_sensitive_columns_of_a_frame(data: Any, frame: str, columns: Any) -> None:
    table = with_columns(data)
    del table["old"]
    if columns == [-4]:
        columns = [-3]
    X = FRAMES[frame](table)
    steer = FairSteeringTransformer(sensitive_columns=columns)
    steered = steer.fit_transform(X, data.y)
    sex = np.array(["f", "m"])[data.group]
    expected = FairSteeringTransformer().fit(data.X, data.y, sensitive_features=sex)
    np.testing.assert_allclose(steered, expected.transform(data.X, sensitive_features=sex), atol=1e-12)
    assert steer.groups_.tolist() == ["f", "m"]
    assert steer.n_features_in_ == 4
    assert steer.get_feature_names_out().tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("frame", FRAMES)
def test_several_sensitive_columns_are_intersections(data: Any, frame: str) -> None:
    X = FRAMES[frame](with_columns(data))
    steer = FairSteeringTransformer(sensitive_columns=["old", "sex"]).fit(X, data.y)
    assert steer.groups_.tolist() == [(False, "f"), (False, "m"), (True, "f"), (True, "m")]
    assert set(steer.maps_) == set(steer.groups_.tolist())
    table = with_columns(data)
    labels = pd.DataFrame({"old": table["old"], "sex": table["sex"]})
    beside = FairSteeringTransformer().fit(data.X, data.y, sensitive_features=labels)
    np.testing.assert_allclose(steer.transform(X), beside.transform(data.X, sensitive_features=labels), atol=1e-12)


def test_sensitive_columns_of_arrays_and_lists(data: Any) -> None:
    expected = fitted(data).transform(data.X, sensitive_features=data.group)
    X = np.column_stack([data.group, data.X])
    mixed = X.astype(object)
    mixed[:, 0] = np.array(["f", "m"])[data.group]
    for rows in (X, mixed, mixed.tolist(), X.astype(np.float64)):
        steered = FairSteeringTransformer(sensitive_columns=[0]).fit_transform(rows, data.y)
        np.testing.assert_allclose(steered, expected, atol=1e-12)
    assert FairSteeringTransformer(sensitive_columns=0).fit_transform(X.astype(np.float32), data.y).dtype == np.float32


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["gender"], "'gender'.*columns 'a', 'sex', 'b'"),
        ([5], "column 5.*5 columns"),
        ([-6], "column -6"),
        (["a", "b", "c", "sex", "old"], "all 5 columns of X: no feature is left"),
    ],
)
def test_sensitive_columns_that_are_not_there(data: Any, columns: list[Any], message: str) -> None:
    X = pd.DataFrame(with_columns(data))
    with pytest.raises(ValueError, match=message):
        FairSteeringTransformer(sensitive_columns=columns).fit(X, data.y)
    with pytest.raises(ValueError, match="no column names"):
        FairSteeringTransformer(sensitive_columns="sex").fit(data.X, data.y)


def test_groups_cannot_be_given_twice(data: Any) -> None:
    X = pd.DataFrame(with_columns(data)).drop(columns="old")
    steer = FairSteeringTransformer(sensitive_columns="sex")
    with pytest.raises(ValueError, match="given twice"):
        steer.fit(X, data.y, sensitive_features=data.group)
    with pytest.raises(ValueError, match="given twice"):
        steer.fit(X, data.y).transform(X, sensitive_features=data.group)


def test_without_groups_nothing_is_steered_and_a_warning_says_so(data: Any) -> None:
    with pytest.warns(UserWarning, match="nothing is being steered"):
        steer = FairSteeringTransformer().fit(data.X, data.y)
    assert steer.transform(data.X).tobytes() == data.X.tobytes()
    assert steer.groups_.tolist() == [0]
    assert steer.kl_divergence_ == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="fitted without groups"):
        steer.transform(data.X, sensitive_features=data.group)


def test_warnings_point_at_the_line_that_called(data: Any) -> None:
    callers: list[Callable[[], Any]] = [
        lambda: FairSteeringTransformer().fit(data.X, data.y),
        lambda: FairSteeringTransformer().fit_transform(data.X, data.y),
        lambda: make_pipeline(FairSteeringTransformer()).fit(data.X, data.y),
        lambda: IdealDistributionClassifier().fit(data.X, data.y),
    ]
    for call in callers:
        with pytest.warns(UserWarning, match="nothing is being steered") as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]


def test_one_group_is_left_as_it_is(data: Any) -> None:
    one = np.full(len(data.y), "only")
    steer = FairSteeringTransformer().fit(data.X, data.y, sensitive_features=one)
    assert steer.transform(data.X, sensitive_features=one).tobytes() == data.X.tobytes()


def test_groups_must_be_as_many_as_rows(data: Any) -> None:
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[600, 599\]"):
        FairSteeringTransformer().fit(data.X, data.y, sensitive_features=data.group[1:])
    with pytest.raises(ValueError, match="inconsistent numbers"):
        fitted(data).transform(data.X[1:], sensitive_features=data.group)


def test_continuous_groups_and_targets_are_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="looks continuous"):
        FairSteeringTransformer().fit(data.X, data.y, sensitive_features=data.X[:, 0])
    with pytest.raises(ValueError, match="continuous"):
        FairSteeringTransformer().fit(data.X, data.X[:, 0], sensitive_features=data.group)


# ---- missing and unknown groups


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_rows_without_a_group_are_left_out_of_the_fit(data: Any, missing: Any) -> None:
    groups = data.group.astype(object)
    groups[:40] = missing
    with pytest.warns(UserWarning, match="40 of 600 rows have a missing group"):
        steer = FairSteeringTransformer().fit(data.X, data.y, sensitive_features=groups)
    without = fitted(type(data)(*(part[40:] for part in data)))
    for group in (0, 1):
        np.testing.assert_array_equal(steer.maps_[group][0], without.maps_[group][0])


def test_groups_not_given_at_transform_name_three_ways_out(data: Any) -> None:
    with pytest.raises(ValueError, match=r"fitted on the groups 0, 1") as caught:
        fitted(data).transform(data.X)
    for way in ("sensitive_features=", "sensitive_columns=", "unknown_group='infer'"):
        assert way in str(caught.value)


def test_unknown_labels_are_named_and_counted(data: Any) -> None:
    groups = data.group.astype(object)
    groups[:3], groups[3:5] = 7, None
    with pytest.raises(ValueError, match=r"5 of 600 rows.*missing \(2 rows\), 7 \(3 rows\).*Known groups: 0, 1"):
        fitted(data).transform(data.X, sensitive_features=groups)


def test_group_probabilities_are_those_of_the_fitted_gaussians(data: Any) -> None:
    steer = fitted(data, covariance="full", shrinkage=0.2)
    moments = steer.moments_.shrink(0.2)
    density = [
        sum(
            moments.weights[k, a] * multivariate_normal(moments.means[k, a], moments.covariances[k, a]).pdf(data.X)
            for k in range(2)
        )
        for a in range(2)
    ]
    expected = np.column_stack(density) / np.sum(density, axis=0)[:, None]
    np.testing.assert_allclose(steer.predict_group_proba(data.X), expected, atol=1e-9)


@pytest.mark.parametrize("parameters", INTERVENTIONS)
@pytest.mark.parametrize("strength", [1, 0.4])
def test_inferred_groups_weight_the_maps_by_their_posterior(
    data: Any, parameters: dict[Any, Any], strength: float
) -> None:
    steer = fitted(data, unknown_group="infer", strength=strength, **parameters)
    groups = data.group.astype(object)
    groups[0:200], groups[200:400] = 7, None
    steered = steer.transform(data.X, sensitive_features=groups)

    proba = steer.predict_group_proba(data.X)
    full = sum(proba[:, [a]] * (data.X @ A.T + b) for a, (A, b) in steer.maps_.items())
    mixture = (1 - strength) * data.X + strength * full
    np.testing.assert_allclose(steered[:400], mixture[:400], atol=1e-10)
    known = steer.transform(data.X, sensitive_features=data.group)
    np.testing.assert_array_equal(steered[400:], known[400:])
    np.testing.assert_allclose(steer.transform(data.X), mixture, atol=1e-10)  # no groups given at all


def test_inference_goes_over_rows_in_chunks(make_data: Callable[..., Any]) -> None:
    data = make_data(n=9000)
    steer = fitted(data, unknown_group="infer")
    np.testing.assert_allclose(
        steer.transform(data.X)[[0, 4095, 4096, 8999]],
        steer.transform(data.X[[0, 4095, 4096, 8999]]),
        atol=1e-12,
    )


# ---- weights


@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
def test_integer_weights_are_repetitions(data: Any, covariance: Any) -> None:
    weight = np.random.default_rng(0).integers(0, 4, len(data.y))
    weighted = FairSteeringTransformer(covariance=covariance).fit(
        data.X, data.y, sensitive_features=data.group, sample_weight=weight
    )
    repeated = fitted(type(data)(*(np.repeat(part, weight, axis=0) for part in data)), covariance=covariance)
    one, two = (steer.moments_.shrink("ledoit_wolf").covariances for steer in (weighted, repeated))
    np.testing.assert_allclose(one, two, atol=1e-12)
    # Rounding may stop the projection elsewhere on its flat bottom, but not higher up.
    assert weighted.kl_divergence_ == pytest.approx(repeated.kl_divergence_, rel=1e-4)
    if covariance == "tied":
        one, two = (steer.transform(data.X, sensitive_features=data.group) for steer in (weighted, repeated))
        np.testing.assert_allclose(one, two, atol=1e-9)


@pytest.mark.parametrize("scaler", [StandardScaler(), MinMaxScaler()])
def test_integer_weights_are_repetitions_in_the_coordinates_too(data: Any, scaler: Any) -> None:
    weight = np.random.default_rng(0).integers(0, 4, len(data.y))
    steer = FairSteeringTransformer(feature_transform=scaler, intervention="affirmative")
    weighted = clone(steer).fit(data.X, data.y, sensitive_features=data.group, sample_weight=weight)
    X, y, group = (np.repeat(part, weight, axis=0) for part in data)
    repeated = clone(steer).fit(X, y, sensitive_features=group)
    one, two = (steer.transform(data.X, sensitive_features=data.group) for steer in (weighted, repeated))
    np.testing.assert_allclose(one, two, atol=1e-9)


def test_coordinates_that_take_no_weights_say_so(data: Any) -> None:
    steer = FairSteeringTransformer(feature_transform=PowerTransformer())
    weight = np.random.default_rng(0).uniform(1, 2, len(data.y))
    with pytest.warns(UserWarning, match=r"PowerTransformer\(\) takes no sample_weight, .*FrozenEstimator"):
        steer.fit(data.X, data.y, sensitive_features=data.group, sample_weight=weight)
    steer.fit(data.X, data.y, sensitive_features=data.group, sample_weight=np.full(len(data.y), 2.0))
    fitted_before = FrozenEstimator(PowerTransformer().fit(data.X))
    steer.set_params(feature_transform=fitted_before)
    steer.fit(data.X, data.y, sensitive_features=data.group, sample_weight=weight)


def test_weight_zero_removes_rows_classes_and_groups(make_data: Callable[..., Any]) -> None:
    data = make_data(n_classes=3, n_groups=3)
    weight = ((data.y != 2) & (data.group != 0)).astype(float)
    steer = FairSteeringTransformer().fit(data.X, data.y, sensitive_features=data.group, sample_weight=weight)
    assert steer.classes_.tolist() == [0, 1]
    assert steer.groups_.tolist() == [1, 2]
    with pytest.raises(ValueError, match="0 "):
        steer.transform(data.X, sensitive_features=data.group)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (-1.0, "not be negative, but 600 of 600"),
        (np.zeros(600), "sample_weight zero"),
        (np.full(600, np.nan), "NaN"),
        (np.ones((600, 2)), "one dimension"),
        (np.ones(3), "inconsistent numbers"),
    ],
)
def test_bad_weights_are_refused(data: Any, weight: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FairSteeringTransformer().fit(data.X, data.y, sensitive_features=data.group, sample_weight=weight)


# ---- other ways to move rows


def test_fit_transform_is_fit_then_transform(data: Any) -> None:
    groups = data.group.astype(object)
    groups[:5] = None
    weight = np.random.default_rng(0).random(len(data.y))
    steer = FairSteeringTransformer(unknown_group="infer")
    with pytest.warns(UserWarning, match="missing group"):
        together = steer.fit_transform(data.X, data.y, sensitive_features=groups, sample_weight=weight)
    apart = steer.transform(data.X, sensitive_features=groups)
    assert together.tobytes() == apart.tobytes()
    with pytest.raises(ValueError, match="missing"), pytest.warns(UserWarning, match="missing"):
        clone(steer).set_params(unknown_group="error").fit_transform(data.X, data.y, sensitive_features=groups)


@pytest.mark.filterwarnings("ignore:The certificate of the model")  # the rows are no Gaussians without the logarithm
@pytest.mark.parametrize("parameters", INTERVENTIONS)
@pytest.mark.parametrize("strength", [1, 0.4, 0])
@pytest.mark.parametrize("feature_transform", [None, "log", StandardScaler()])
def test_inverse_transform_undoes_transform(
    data: Any, parameters: dict[Any, Any], strength: float, feature_transform: Any
) -> None:
    X = np.exp(data.X / 4)
    steer = FairSteeringTransformer(strength=strength, feature_transform=feature_transform, **parameters)
    steered = steer.fit_transform(X, data.y, sensitive_features=data.group)
    np.testing.assert_allclose(steer.inverse_transform(steered, sensitive_features=data.group), X, rtol=1e-8)


def test_inverse_transform_with_sensitive_columns_takes_groups_beside(data: Any) -> None:
    X = pd.DataFrame(with_columns(data)).drop(columns="old")
    steer = FairSteeringTransformer(sensitive_columns="sex")
    steered = steer.fit_transform(X, data.y)
    back = steer.inverse_transform(steered, sensitive_features=X["sex"])
    np.testing.assert_allclose(back, data.X, atol=1e-9)
    with pytest.raises(ValueError, match="inverse_transform cannot infer"):
        steer.set_params(unknown_group="infer").inverse_transform(steered)
    with pytest.raises(ValueError, match=r"X has 4 features.*expecting 3"):
        steer.inverse_transform(X.drop(columns="sex").assign(d=1), sensitive_features=X["sex"])


def test_a_singular_map_has_no_inverse() -> None:
    # The second group is the mirror image of the first, so half of its way is a point.
    X = np.random.default_rng(0).normal(size=(200, 1)) + np.repeat([-3.0, 3.0], 100)[:, None]
    y = np.repeat([0, 1], 100)
    steer = FairSteeringTransformer(intervention="affirmative", reference_group=0, shrinkage=None)
    steer.fit(np.vstack([X, -X]), np.tile(y, 2), sensitive_features=np.repeat([0, 1], 200))
    assert steer.maps_[1][0] == pytest.approx(-1)
    steer.set_params(strength=0.5)
    with pytest.raises(ValueError, match="map of group 1 is singular"):
        steer.inverse_transform(X, sensitive_features=np.ones(200, dtype=int))


@pytest.mark.parametrize("parameters", INTERVENTIONS)
def test_steered_and_weighted_rows_have_the_moments_of_the_ideal(data: Any, parameters: dict[Any, Any]) -> None:
    steer = fitted(data, shrinkage=None, **parameters)
    ideal = steer.ideal_
    rows = steer.steer(data.X, data.y, sensitive_features=data.group)
    weight = steer.ideal_sample_weight(data.y, sensitive_features=data.group)
    for a in (0, 1):
        scatter, total = 0.0, 0.0
        for k in (0, 1):
            cell = (data.y == k) & (data.group == a)
            assert weight[cell].sum() / weight.sum() == pytest.approx(ideal.weights[k, a])
            np.testing.assert_allclose(rows[cell].mean(axis=0), ideal.means[k, a], atol=1e-6)
            covariance = np.cov(rows[cell].T, bias=True)
            if parameters["covariance"] == "full":
                np.testing.assert_allclose(covariance, ideal.covariances[k, a], atol=1e-6)
            if parameters["covariance"] == "diagonal":
                np.testing.assert_allclose(np.diag(covariance), ideal.covariances[k, a], atol=1e-6)
            share = np.mean(data.y == k)  # the same in both groups
            scatter, total = scatter + share * covariance, total + share
        if parameters["covariance"] == "tied":
            np.testing.assert_allclose(scatter / total, ideal.covariances[a], atol=1e-6)


def test_partial_strength_steers_part_of_the_way(data: Any) -> None:
    steer = fitted(data)
    full = steer.steer(data.X, data.y, sensitive_features=data.group)
    part = steer.set_params(strength=0.25).steer(data.X, data.y, sensitive_features=data.group)
    np.testing.assert_allclose(part, 0.75 * data.X + 0.25 * full, atol=1e-12)
    assert np.abs(full - data.X).max() > 0.1


def test_steer_needs_known_classes_and_groups(data: Any) -> None:
    steer = fitted(data, unknown_group="infer")
    with pytest.raises(ValueError, match=r"class labels 7, 8.*Known classes: 0, 1"):
        steer.steer(data.X[:3], [0, 7, 8], sensitive_features=[0, 0, 1])
    with pytest.raises(ValueError, match="steer cannot infer"):
        steer.steer(data.X, data.y)
    with pytest.raises(ValueError, match="y is needed"):
        steer.steer(data.X, sensitive_features=data.group)
    blind = FairSteeringTransformer().fit(data.X, sensitive_features=data.group)
    assert blind.steer(data.X, sensitive_features=data.group).shape == data.X.shape


def test_a_subgroup_without_rows_is_named(data: Any) -> None:
    some = (data.y == 0) | (data.group == 0)
    with pytest.warns(UserWarning, match="class"):
        steer = fitted(type(data)(*(part[some] for part in data)))
    steered = steer.transform(data.X, sensitive_features=data.group)
    assert np.isfinite(steered).all()
    with pytest.raises(ValueError, match="Class 1 had no rows in group 1"):
        steer.steer(data.X, data.y, sensitive_features=data.group)
    with pytest.raises(ValueError, match="Class 1 had no rows in group 1"):
        steer.ideal_sample_weight(data.y, sensitive_features=data.group)


@pytest.mark.filterwarnings("ignore:The nearest ideal distribution all but leaves out")
def test_ideal_weights_make_classes_and_groups_independent(make_data: Callable[..., Any]) -> None:
    data = make_data(n_classes=3, n_groups=3)
    given = np.random.default_rng(0).uniform(0.5, 2, len(data.y))
    steer = FairSteeringTransformer().fit(data.X, data.y, sensitive_features=data.group, sample_weight=given)
    weight = steer.ideal_sample_weight(data.y, sensitive_features=data.group, sample_weight=given)
    table = np.zeros((3, 3))
    np.add.at(table, (data.y, data.group), weight / weight.sum())
    np.testing.assert_allclose(table, np.outer(table.sum(axis=1), table.sum(axis=0)), atol=1e-12)
    np.testing.assert_allclose(table, steer.ideal_.weights, atol=1e-9)
    with pytest.raises(ValueError, match="no X to take groups from"):
        steer.ideal_sample_weight(data.y)


# ---- feature transform


def test_log_steers_logarithms(data: Any) -> None:
    X = np.exp(data.X)
    steer = FairSteeringTransformer(feature_transform="log")
    steered = steer.fit_transform(X, data.y, sensitive_features=data.group)
    expected = fitted(data).transform(data.X, sensitive_features=data.group)
    np.testing.assert_allclose(np.log(steered), expected, atol=1e-9)
    labelled = steer.steer(X, data.y, sensitive_features=data.group)
    expected = fitted(data).steer(data.X, data.y, sensitive_features=data.group)
    np.testing.assert_allclose(np.log(labelled), expected, atol=1e-9)


@pytest.mark.parametrize("transform", [StandardScaler(), PowerTransformer(), QuantileTransformer(n_quantiles=50)])
def test_any_invertible_transformer(data: Any, transform: Any) -> None:
    if isinstance(transform, QuantileTransformer):
        transform.set_params(output_distribution="normal", subsample=None)
    steer = FairSteeringTransformer(feature_transform=transform)
    steered = steer.fit_transform(data.X, data.y, sensitive_features=data.group)
    by_hand = clone(transform).fit(data.X)
    Z = by_hand.transform(data.X)
    inner = FairSteeringTransformer().fit_transform(Z, data.y, sensitive_features=data.group)
    np.testing.assert_allclose(steered, by_hand.inverse_transform(inner), atol=1e-9)
    assert not hasattr(transform, "n_features_in_")  # a clone was fitted
    assert steer.feature_transform_.n_features_in_ == 3
    half = FairSteeringTransformer(feature_transform=transform)
    assert half.fit_transform(data.X.astype(np.float16), data.y, sensitive_features=data.group).dtype == np.float16


def test_log_of_what_is_not_positive_names_the_column(data: Any) -> None:
    X = pd.DataFrame(np.exp(data.X), columns=["age", "debt", "pay"])
    bad = X.assign(debt=X["debt"].where(X.index > 1, -2.0))
    steer = FairSteeringTransformer(feature_transform="log")
    with pytest.raises(ValueError, match=r"debt holds 2 values.*smallest -2"):
        steer.fit(bad, data.y, sensitive_features=data.group)
    steer.fit(X, data.y, sensitive_features=data.group)
    with pytest.raises(ValueError, match="debt holds 2 values"):
        steer.transform(bad, sensitive_features=data.group)


def test_a_transformer_that_cannot_be_undone_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="inverse_transform"):
        fitted(data, feature_transform=LedoitWolf())
    with pytest.raises(ValueError, match="cannot be undone"):
        fitted(data, feature_transform=FunctionTransformer(np.arctan))
    with pytest.raises(ValueError, match="cannot be undone"):
        fitted(data, feature_transform=PCA(n_components=1))


def test_shrinkage_across_scales_warns_and_names_the_features(data: Any) -> None:
    X = pd.DataFrame(data.X * [1, 1e4, 1], columns=["age", "income", "years"])
    with pytest.warns(UserWarning, match=r"features age, years vary.*StandardScaler"):
        FairSteeringTransformer().fit(X, data.y, sensitive_features=data.group)
    for quiet in ({"feature_transform": StandardScaler()}, {"shrinkage": None}, {"shrinkage": 0.5}):
        FairSteeringTransformer(**quiet).fit(X, data.y, sensitive_features=data.group)
    few = slice(20)  # strong shrinkage, but scales that are not so far apart
    FairSteeringTransformer().fit(data.X[few] * [1, 20, 1], sensitive_features=data.group[few])
    # A constant feature has nothing to hide.
    constant = np.column_stack([data.X, np.full(len(data.y), 1e6)])
    FairSteeringTransformer().fit(constant, data.y, sensitive_features=data.group)


# ---- streams


@pytest.mark.filterwarnings("ignore:The nearest ideal distribution all but leaves out")
@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
def test_partial_fit_on_batches_equals_fit(make_data: Callable[..., Any], covariance: Any) -> None:
    data = make_data(n_classes=3, n_groups=3)
    labels = np.array(["z", "b", "m"])[data.group]
    weight = np.random.default_rng(1).uniform(0.5, 2, len(data.y))
    # Sorted by group and class, so that batches bring new ones in an order of their own.
    order = np.lexsort((data.y, data.group))
    steer = FairSteeringTransformer(covariance=covariance, shrinkage="oas")
    for batch in np.array_split(order, 7):
        steer.partial_fit(data.X[batch], data.y[batch], sensitive_features=labels[batch], sample_weight=weight[batch])
    once = clone(steer).fit(data.X, data.y, sensitive_features=labels, sample_weight=weight)
    assert steer.groups_.tolist() == once.groups_.tolist() == ["b", "m", "z"]
    assert steer.classes_.tolist() == [0, 1, 2]
    np.testing.assert_allclose(
        steer.transform(data.X, sensitive_features=labels),
        once.transform(data.X, sensitive_features=labels),
        atol=1e-6,
    )
    np.testing.assert_allclose(steer.kl_divergence_, once.kl_divergence_, rtol=1e-6)


def test_partial_fit_projects_when_next_used(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairsteer.transformer import _steering

    projected = Mock(wraps=nearest_ideal)
    monkeypatch.setattr(_steering, "nearest_ideal", projected)
    steer = FairSteeringTransformer()
    steer.partial_fit(data.X[:300], data.y[:300], sensitive_features=data.group[:300])
    steer.partial_fit(data.X[300:], data.y[300:], sensitive_features=data.group[300:])
    projected.assert_not_called()
    steer.transform(data.X, sensitive_features=data.group)
    first = steer.ideal_
    steer.partial_fit()
    assert steer.ideal_ is first
    projected.assert_called_once()
    steer.partial_fit(data.X, data.y, sensitive_features=data.group)
    projected.assert_called_once()
    assert steer.partial_fit().ideal_ is not first
    assert steer.moments_.weights.sum() == 1200


def test_moments_stay_raw_and_mergeable(data: Any) -> None:
    first, second = (
        FairSteeringTransformer(shrinkage=0.9).fit(data.X[part], data.y[part], sensitive_features=data.group[part])
        for part in (slice(250), slice(250, None))
    )
    merged, whole = first.moments_.merge(second.moments_), fitted(data).moments_
    np.testing.assert_allclose(merged.covariances, whole.covariances, atol=1e-12)


def test_partial_fit_refuses_what_needs_all_rows(data: Any) -> None:
    for params, way_out in (
        ({"shrinkage": LedoitWolf()}, "'ledoit_wolf', 'oas'"),
        ({"feature_transform": StandardScaler()}, "FrozenEstimator"),
    ):
        steer = FairSteeringTransformer(**params)
        assert not hasattr(steer, "partial_fit")
        with pytest.raises(AttributeError, match="partial_fit") as error:
            steer.partial_fit(data.X, data.y, sensitive_features=data.group)
        assert way_out in str(error.value.__cause__)


def test_partial_fit_takes_the_way_out_that_its_error_names(data: Any) -> None:
    scaler = StandardScaler().fit(data.X)
    steer = FairSteeringTransformer(feature_transform=FrozenEstimator(scaler), shrinkage="oas")
    for part in (slice(300), slice(300, None)):
        steer.partial_fit(data.X[part], data.y[part], sensitive_features=data.group[part])
    whole = fitted(data, feature_transform=StandardScaler(), shrinkage="oas")
    np.testing.assert_allclose(steer.partial_fit().maps_[0][0], whole.maps_[0][0], atol=1e-6)


@pytest.mark.parametrize("covariance", ["tied", "full"])
def test_a_covariance_estimator_gets_the_rows(data: Any, covariance: Any) -> None:
    by_estimator = fitted(data, shrinkage=EmpiricalCovariance(assume_centered=True), covariance=covariance)
    plain = fitted(data, shrinkage=None, covariance=covariance)
    assert by_estimator.kl_divergence_ == pytest.approx(plain.kl_divergence_, rel=1e-4)
    shrunk = fitted(data, shrinkage=ShrunkCovariance(shrinkage=0.5, assume_centered=True), covariance=covariance)
    assert shrunk.kl_divergence_ < 0.9 * plain.kl_divergence_


def test_a_covariance_estimator_would_ignore_weights(data: Any) -> None:
    steer = FairSteeringTransformer(shrinkage=LedoitWolf())
    weight = np.arange(600) % 2
    steer.fit(data.X, data.y, sensitive_features=data.group, sample_weight=weight)  # leaves rows out
    with pytest.raises(ValueError, match="cannot take sample_weight"):
        steer.fit(data.X, data.y, sensitive_features=data.group, sample_weight=1 + weight)


def test_batches_must_agree_on_what_they_bring(data: Any) -> None:
    steer = FairSteeringTransformer().partial_fit(data.X, data.y, sensitive_features=data.group)
    with pytest.raises(ValueError, match="without groups, the batches before it came with"):
        steer.partial_fit(data.X, data.y)
    with pytest.raises(ValueError, match="without class labels"):
        steer.partial_fit(data.X, sensitive_features=data.group)
    with pytest.raises(ValueError, match="2 column"):
        steer.partial_fit(data.X, data.y, sensitive_features=np.column_stack([data.group, data.group]))
    with pytest.raises(ValueError, match="2 features"):
        steer.partial_fit(data.X[:, :2], data.y, sensitive_features=data.group)
    assert steer.moments_.weights.sum() == 600


# ---- scikit-learn's manners


def test_bad_rows_are_refused(data: Any) -> None:
    for bad, message in ((np.nan, "NaN"), (np.inf, "infinity")):
        X = data.X.copy()
        X[3, 1] = bad
        with pytest.raises(ValueError, match=message):
            FairSteeringTransformer().fit(X, data.y, sensitive_features=data.group)
        with pytest.raises(ValueError, match=message):
            fitted(data).transform(X, sensitive_features=data.group)
    sparse = scipy.sparse.csr_array(np.column_stack([data.group, data.X]))
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        FairSteeringTransformer().fit(sparse, data.y, sensitive_features=data.group)
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        FairSteeringTransformer(sensitive_columns=0).fit(sparse, data.y)


@pytest.mark.parametrize("method", ["transform", "inverse_transform", "steer", "predict_group_proba"])
def test_nothing_works_before_fit(data: Any, method: str) -> None:
    with pytest.raises(NotFittedError):
        getattr(FairSteeringTransformer(), method)(data.X)


@pytest.mark.parametrize("name", ["ideal_", "maps_", "kl_divergence_", "certificate_", "n_iter_", "moments_"])
def test_fitted_attributes_appear_at_fit(data: Any, name: str) -> None:
    steer = FairSteeringTransformer()
    assert not hasattr(steer, name)
    steer.fit(data.X, data.y, sensitive_features=data.group)
    assert hasattr(steer, name)


def test_columns_are_checked_as_scikit_learn_does(data: Any) -> None:
    X = pd.DataFrame(with_columns(data)).drop(columns="old")
    steer = FairSteeringTransformer(sensitive_columns="sex").fit(X, data.y)
    assert steer.feature_names_in_.tolist() == ["a", "sex", "b", "c"]
    with pytest.raises(ValueError, match="same order"):
        steer.transform(X[["sex", "a", "b", "c"]])
    with pytest.raises(ValueError, match="feature names should match"):
        steer.transform(X.drop(columns="sex"))
    with pytest.warns(UserWarning, match="valid feature names"):
        steered = steer.transform(X.to_numpy())
    np.testing.assert_array_equal(steered, steer.transform(X))
    with pytest.raises(ValueError, match="X has 2 features, but FairSteeringTransformer is expecting 3"):
        fitted(data).transform(data.X[:, :2], sensitive_features=data.group)


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_set_output(data: Any, container: str) -> None:
    X = FRAMES[container](with_columns(data))
    steer = FairSteeringTransformer(sensitive_columns=["sex", "old"]).set_output(transform=container)
    for steered in (steer.fit_transform(X, data.y), steer.transform(X)):
        assert type(steered) is type(X)
        assert list(steered.columns) == ["a", "b", "c"]
    if container == "pandas":
        X.index = X.index + 1000
        assert steer.transform(X).index[0] == 1000


def test_parameters_are_checked(data: Any) -> None:
    for name, bad in (
        ("intervention", "none"),
        ("map_type", "curved"),
        ("covariance", "spherical"),
        ("shrinkage", 2.0),
        ("shrinkage", "lw"),
        ("feature_transform", "exp"),
        ("unknown_group", "guess"),
        ("max_iter", 0),
        ("tol", -1.0),
    ):
        with pytest.raises(ValueError, match=f"The '{name}' parameter"):
            fitted(data, **{name: bad})
    with pytest.raises(ValueError, match="7"):
        fitted(data, intervention="affirmative", reference_group=7)


def test_groups_are_requested_without_being_asked() -> None:
    requests = FairSteeringTransformer().get_metadata_routing()
    for method in ("fit", "partial_fit", "transform", "inverse_transform", "fit_transform"):
        assert getattr(requests, method).requests["sensitive_features"] is True
    assert requests.fit.requests["sample_weight"] is None


def test_tags() -> None:
    tags = get_tags(FairSteeringTransformer())
    assert tags.transformer_tags.preserves_dtype == ["float64", "float32", "float16"]
    assert not tags.input_tags.sparse
    assert not tags.input_tags.allow_nan
    assert not tags.non_deterministic


def test_clone_and_pickle(data: Any) -> None:
    steer = fitted(data, intervention="affirmative", reference_group=1, strength=0.5)
    expected = steer.transform(data.X, sensitive_features=data.group)
    again = clone(steer).fit(data.X, data.y, sensitive_features=data.group)
    thawed = pickle.loads(pickle.dumps(steer))
    for other in (again, thawed):
        assert other.transform(data.X, sensitive_features=data.group).tobytes() == expected.tobytes()
    assert re.search("reference_group=1", repr(again))


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({}, "the 30 features in the group 'a' (20): "),
        ({"covariance": "full"}, "the 30 features in a class of the group 'a' (8), 'b' (28): "),
        ({"covariance": "diagonal"}, None),
        ({"small_subgroups": "pool", "min_subgroup_size": 1}, None),
    ],
)
def test_fewer_rows_than_features_are_worth_a_word(params: Any, named: Any) -> None:
    rng = np.random.default_rng(0)
    y, group = np.repeat([0, 1, 0, 1], [8, 12, 28, 52]), np.repeat(["a", "b"], [20, 80])
    X = rng.normal(size=(100, 30))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FairSteeringTransformer(**params).fit(X, y, sensitive_features=group)
    texts = [str(one.message) for one in caught if "fewer rows than" in str(one.message)]
    assert len(texts) == (named is not None)
    assert all(named in text for text in texts)


def test_as_many_rows_as_features_are_enough() -> None:
    rng = np.random.default_rng(0)
    y, group = np.repeat([0, 1, 0, 1], [8, 12, 28, 52]), np.repeat(["a", "b"], [20, 80])
    FairSteeringTransformer().fit(rng.normal(size=(100, 20)), y, sensitive_features=group)  # warnings are errors
