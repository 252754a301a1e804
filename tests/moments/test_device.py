"""Moments of rows that lie on a device, against those of the same rows in NumPy.

`array_api_strict` has devices that refuse to be read by NumPy, so that nothing can pass by the processor unseen.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, SubgroupMoments
from fairsteer._utils import arrays

strict = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")
pytest.importorskip("array_api_compat", reason="array_api_compat is not installed")
DEVICE = strict.Device("device1")

D, K, G = 5, 3, 2


def _there(array: Any) -> Any:
    return strict.asarray(array, device=DEVICE)


def _rows(seed: int, n: int = 1500, dtype: Any = np.float32, offset: float = 3.0) -> Any:
    """Correlated rows of cells of uneven sizes, some of which are left out, and weights, of which some are zero."""
    rng = np.random.default_rng(seed)
    y, a = rng.integers(-1, K, n), rng.choice([-1, 0, 1], n, p=[0.1, 0.2, 0.7])
    X = rng.normal(size=(n, D)) @ rng.normal(size=(D, D)) + offset + y[:, None] / 2
    return X.astype(dtype), y, a, np.maximum(rng.uniform(-0.2, 2, n), 0)


def _moments(covariance: Any, **parameters: Any) -> SubgroupMoments:
    return SubgroupMoments(D, classes=range(K), groups=["f", "m"], covariance=covariance, **parameters)


def _assert_same(found: SubgroupMoments, expected: SubgroupMoments, tolerance: float) -> None:
    for own, other in zip(found._sums(), expected._sums(), strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=tolerance * max(1e-300, np.abs(other).max()))
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-14)
    shrunk, other = (one.shrink("ledoit_wolf").covariances for one in (found, expected))
    np.testing.assert_allclose(shrunk, other, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-13)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal", "standardised"])
def test_sums_are_those_of_the_rows_in_numpy(covariance: str, weighted: bool, dtype: Any, tolerance: float) -> None:
    counts = {"subgroup_counts": [[3, 1], [2, 2], [1, 4]]} if covariance == "standardised" else {}
    model = "tied" if counts else covariance
    found, expected = _moments(model, **counts), _moments(model, **counts)
    for seed in range(3):  # batches of other means
        X, y, a, w = _rows(seed, dtype=dtype, offset=seed)
        weights = w if weighted else None
        expected.update(X, y, a, weights)
        found.update(_there(X), _there(y), _there(a), None if weights is None else _there(weights))
    _assert_same(found, expected, tolerance)


def test_rows_come_back_once_and_when_they_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    moments, brought, home = _moments("tied"), list[int](), arrays._brought

    def counted(X: Any) -> Any:
        brought.append(int(np.prod(X.shape)))
        return home(X)

    monkeypatch.setattr(arrays, "_brought", counted)
    for seed in range(4):
        X, y, a, _ = _rows(seed)
        moments.update(_there(X), y, a)
    assert not brought
    assert moments.weights.sum() > 0
    assert moments.covariances.shape == (G, D, D)
    # Means, third and fourth moments, and a matrix a group: one copy, whatever the rows.
    assert sum(brought) == 2 * K * G * D + K * G + G * D * D


def test_rows_may_come_from_everywhere_in_turn() -> None:
    found, expected = _moments("full"), _moments("full")
    other = strict.Device("device2")
    for seed, device in enumerate((DEVICE, None, DEVICE, other)):
        X, y, a, _ = _rows(seed, dtype=np.float64)
        expected.update(X, y, a)
        found.update(X if device is None else strict.asarray(X, device=device), y, a)
    _assert_same(found, expected, 1e-12)


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_large_means_cost_no_digits(offset: float) -> None:
    X, y, a, _ = _rows(0, offset=0.0)
    X = X + np.float32(offset)
    expected = _moments("full").update(X.astype(np.float64), y, a)
    found = _moments("full").update(_there(X), y, a)
    np.testing.assert_allclose(found.means, expected.means, rtol=1e-14)
    largest = np.abs(expected.covariances).max()
    np.testing.assert_allclose(found.covariances, expected.covariances, rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize("scale", [1e-20, 1e18])
def test_what_single_precision_cannot_square_is_squared_in_double(scale: float) -> None:
    X, y, a, _ = _rows(0)
    X = X * np.float32(scale)
    expected = _moments("full").update(X.astype(np.float64), y, a)
    found = _moments("full").update(_there(X), y, a)
    np.testing.assert_allclose(found.covariances / scale**2, expected.covariances / scale**2, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_a_row_that_is_no_number_is_named_and_nothing_is_added(value: float) -> None:
    X, y, a, _ = _rows(0, dtype=np.float64)
    moments = _moments("tied").update(_there(X), y, a)
    before = copy.deepcopy(moments)
    X[700, 2], y[700], a[700] = value, 1, 0
    with pytest.raises(ValueError, match=r"Row 700 is not finite, or too large to be squared \(class 1, group 'f'\)"):
        moments.update(_there(X), y, a)
    _assert_same(moments, before, 1e-15)
    y[700] = -1  # left out, and not looked at
    moments.update(_there(X), y, a)
    assert np.isfinite(moments.covariances).all()


def test_what_does_not_fit_is_refused() -> None:
    X, y, a, _ = _rows(0)
    for rows, message in (
        (X[:, :3], "X has 3 features, but the moments are of 5"),
        (X[0], r"two dimensions, rows and columns, got an array of shape \(5,\)"),
        (X.astype(np.complex64), "real numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            _moments("tied").update(_there(rows), y[: len(rows)], a[: len(rows)])
    with pytest.raises(ValueError, match=r"y_codes must have shape \(1500,\)"):
        _moments("tied").update(_there(X), y[:-1], a)
    with pytest.raises(ValueError, match="sample_weight must be finite and not negative"):
        _moments("tied").update(_there(X), y, a, np.full(len(y), -1.0))
    with pytest.raises(ValueError, match="for which subgroup_counts has 0"):
        _moments("tied", subgroup_counts=[[0, 1], [1, 1], [1, 1]]).update(_there(X), y, a)


def test_sums_that_do_not_fit_into_the_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairsteer.moments._device.free_memory", lambda X: 1000)
    X, y, a, _ = _rows(0)
    with pytest.raises(MemoryError, match=r"6 covariances of 5 features .* covariance='tied'"):
        _moments("full").update(_there(X), y, a)
    _moments("diagonal").update(_there(X), y, a)


def test_integers_count_as_numbers_and_empty_batches_as_none() -> None:
    X, y, a, _ = _rows(0)
    whole = np.round(X).astype(np.int64)
    found = _moments("tied").update(_there(whole), y, a).update(_there(X[:0]), y[:0], a[:0])
    _assert_same(found, _moments("tied").update(whole, y, a), 1e-13)


def test_moments_are_copied_pickled_merged_and_pooled_with_what_is_on_the_device() -> None:
    X, y, a, _ = _rows(0, dtype=np.float64)
    expected = _moments("full").update(X, y, a)

    def fresh() -> SubgroupMoments:
        return _moments("full").update(_there(X), y, a)

    for found in (copy.copy(fresh()), copy.deepcopy(fresh()), pickle.loads(pickle.dumps(fresh()))):
        _assert_same(found, expected, 1e-13)
    _assert_same(fresh() + fresh(), expected + expected, 1e-13)
    np.testing.assert_allclose(fresh().pool(0.5).covariances, expected.pool(0.5).covariances, rtol=1e-10)
    np.testing.assert_allclose(fresh().shrink(0.1).covariances, expected.shrink(0.1).covariances, rtol=1e-10)


def test_rescalable_moments_and_devices_without_double_precision_are_served_by_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, y, a, _ = _rows(0, dtype=np.float64)
    expected = _moments("full", rescalable=True).update(X, y, a)
    found = _moments("full", rescalable=True).update(_there(X), y, a)
    _assert_same(found.rescaled(np.arange(1.0, D + 1)), expected.rescaled(np.arange(1.0, D + 1)), 1e-13)
    monkeypatch.setattr("fairsteer.moments._moments.has_double", lambda X: False)
    _assert_same(_moments("full").update(_there(X), y, a), _moments("full").update(X, y, a), 1e-15)


# ---- the transformer

PARAMETERS: dict[str, dict[str, Any]] = {
    "affine": {"map_type": "affine"},
    "affirmative": {"map_type": "affine", "intervention": "affirmative", "reference_group": "m", "strength": 0.5},
    "diagonal": {"covariance": "diagonal"},
    "translation": {"map_type": "translation"},
}


def _labelled(dtype: Any = np.float64) -> Any:
    X, y, a, w = _rows(3, dtype=dtype)
    return X, np.maximum(y, 0), np.array(["f", "m"])[np.maximum(a, 0)], w


@pytest.mark.filterwarnings("ignore:The certificate of the model")  # rows here are correlated
@pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=PARAMETERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-5), (np.float64, 1e-11)])
def test_rows_are_fitted_and_steered_where_they_lie(parameters: Any, dtype: Any, tolerance: float) -> None:
    X, y, group, w = _labelled(dtype)
    expected = FairSteeringTransformer(**parameters).fit(X, y, sensitive_features=group, sample_weight=w)
    found = FairSteeringTransformer(**parameters).fit(_there(X), y, sensitive_features=group, sample_weight=w)
    for label, (A, b) in expected.maps_.items():
        np.testing.assert_allclose(found.maps_[label][0], A, atol=tolerance)
        np.testing.assert_allclose(found.maps_[label][1], b, atol=10 * tolerance)
    steered = found.transform(_there(X), sensitive_features=group)
    assert (steered.device, steered.dtype) == (DEVICE, strict.asarray(X).dtype)
    plain = expected.transform(X, sensitive_features=group)
    np.testing.assert_allclose(arrays.to_numpy(steered), plain, atol=30 * tolerance)
    if "reference_group" in parameters:
        still = group == "m"
        np.testing.assert_array_equal(arrays.to_numpy(steered)[still], X[still])
    again = FairSteeringTransformer(**parameters).fit_transform(_there(X), y, sensitive_features=group, sample_weight=w)
    np.testing.assert_array_equal(arrays.to_numpy(again), arrays.to_numpy(steered))


@pytest.mark.parametrize("unknown_group", ["infer", "infer_hard"])
def test_groups_that_are_not_known_are_inferred(unknown_group: Any) -> None:
    X, y, group, _ = _labelled()
    fitted = FairSteeringTransformer(map_type="affine", unknown_group=unknown_group)
    fitted.fit(X, y, sensitive_features=group)
    some = np.where(np.arange(len(group)) % 3 == 0, None, group)
    steered = fitted.transform(_there(X), sensitive_features=some)
    expected = fitted.transform(X, sensitive_features=some)
    np.testing.assert_allclose(arrays.to_numpy(steered), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["scaled", "log", "monotone"])
def test_other_coordinates_and_maps_have_the_same_result(name: str) -> None:
    from sklearn.preprocessing import StandardScaler

    parameters: dict[str, dict[str, Any]] = {
        "scaled": {"map_type": "affine", "feature_transform": StandardScaler()},
        "log": {"map_type": "affine", "feature_transform": "log"},
        "monotone": {"map_type": "monotone"},
    }
    X, y, group, _ = _labelled()
    X = np.exp(X / 4) if name == "log" else X
    expected = FairSteeringTransformer(**parameters[name]).fit(X, y, sensitive_features=group)
    found = FairSteeringTransformer(**parameters[name]).fit(_there(X), y, sensitive_features=group)
    for fitted in (expected, found):
        steered = fitted.transform(_there(X), sensitive_features=group)
        assert steered.device == DEVICE
        plain = expected.transform(X, sensitive_features=group)
        np.testing.assert_allclose(arrays.to_numpy(steered), plain, rtol=1e-8, atol=1e-8)
    back = expected.inverse_transform(steered, sensitive_features=group) if name != "monotone" else None
    if back is not None:
        assert back.device == DEVICE
        np.testing.assert_allclose(arrays.to_numpy(back), X, rtol=1e-6)


@pytest.mark.parametrize("estimator", [None, LogisticRegression()])
def test_a_classifier_reads_rows_on_a_device(estimator: Any) -> None:
    X, y, group, _ = _labelled()
    steering = FairSteeringTransformer(map_type="affine")
    expected = IdealDistributionClassifier(estimator, steering).fit(X, y, sensitive_features=group)
    found = IdealDistributionClassifier(estimator, steering).fit(_there(X), y, sensitive_features=group)
    np.testing.assert_allclose(
        found.predict_proba(_there(X), sensitive_features=group),
        expected.predict_proba(X, sensitive_features=group),
        atol=1e-9,
    )


def test_batches_on_the_device_are_fitted_as_they_come() -> None:
    X, y, group, w = _labelled()
    group = np.where(np.arange(len(group)) % 50 == 0, None, group)
    expected, found, streamed = (FairSteeringTransformer(map_type="affine") for _ in range(3))
    parts = [slice(0, 500), slice(500, 900), slice(900, None)]
    for part in parts:
        kinds = {"sensitive_features": group[part], "sample_weight": w[part]}
        with pytest.warns(UserWarning, match="missing group"):
            expected.partial_fit(X[part], y[part], **kinds)
        with pytest.warns(UserWarning, match="missing group"):
            found.partial_fit(_there(X[part]), y[part], **kinds)
    with pytest.warns(UserWarning, match="missing group"):
        streamed.fit(lambda: ((_there(X[p]), y[p], group[p], w[p]) for p in parts))
    for one in (found, streamed):
        for label, (A, b) in expected.partial_fit().maps_.items():
            np.testing.assert_allclose(one.partial_fit().maps_[label][0], A, atol=1e-9)
            np.testing.assert_allclose(one.maps_[label][1], b, atol=1e-8)


def test_a_transformer_names_what_is_wrong_with_rows_on_a_device() -> None:
    X, y, group, _ = _labelled()
    fitted = FairSteeringTransformer(map_type="affine").fit(X, y, sensitive_features=group)
    with pytest.raises(ValueError, match="X has 4 features, but 5 are expected"):
        fitted.transform(_there(X[:, 1:]), sensitive_features=group)
    with pytest.raises(ValueError, match="known group in every row"):
        fitted.transform(_there(X))
    X[3, 1] = X[5, 1] = X[4, 2] = np.nan
    for call in (
        lambda rows: fitted.transform(rows, sensitive_features=group),
        lambda rows: FairSteeringTransformer(map_type="affine").fit(rows, y, sensitive_features=group),
        lambda rows: FairSteeringTransformer(map_type="affine").partial_fit(rows, y, sensitive_features=group),
    ):
        with pytest.raises(ValueError, match="NaN or infinite values: 2 in x1, 1 in x2"):
            call(_there(X))
    with pytest.raises(ValueError, match="sensitive_columns names columns"):
        FairSteeringTransformer(sensitive_columns=[0]).fit(_there(X), y)
