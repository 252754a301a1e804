"""Moments that travel: names and coordinates are checked when they are added, kept in files, and scaled afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.preprocessing import PowerTransformer, StandardScaler

from fairsteer import FairSteeringTransformer, SubgroupMoments, nearest_ideal, persistence

D = 3


def moments(**parameters: Any) -> SubgroupMoments:
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 2, (2, 400))
    rows = rng.normal(size=(400, D)) ** 3 * [1, 20, 3000] + y[:, None] + 100
    found = SubgroupMoments(D, **{"classes": [0, 1], "groups": ["f", "m"], "covariance": "full", **parameters})
    return found.update(rows, y, group, rng.random(400))


def test_names_are_kept_and_come_from_either_side() -> None:
    named, plain = moments(feature_names=["a", "b", "c"]), moments()
    assert (named + plain).feature_names == (plain + named).feature_names == ("a", "b", "c")
    assert (plain + plain).feature_names is None
    assert named.tie().feature_names == named.of_classes([1]).feature_names == ("a", "b", "c")
    assert named.merge_groups(["f", "m"], "all").feature_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"feature_names": ["b", "a", "c"]}, "in another order: feature 0 is 'a' in one and 'b' in the other"),
        ({"feature_names": ["a", "b", "z"]}, "the first has 'c', the second 'z' instead"),
        (
            {"coordinates": (False, np.array([1, 1, 2.0]), np.zeros(3))},
            "the scale of 'c' is 1 in one and 2 in the other",
        ),
        (
            {"coordinates": (False, np.ones(3), np.array([0, 5.0, 0]))},
            "the shift of 'b' is 0 in one and 5 in the other",
        ),
        ({"coordinates": (True, np.ones(3), np.zeros(3))}, "one has logarithms of the features"),
        ({"coordinates": PowerTransformer()}, "can be compared with itself only"),
        ({"groups": [0, 1]}, r"groups are the strings 'f', 'm' in one and the integers 0, 1 in the other"),
        ({"classes": ["no", "yes"]}, r"classes are the integers 0, 1 in one and the strings 'no', 'yes'"),
        ({"groups": [("f", 1), ("m", 1)]}, "which are never equal"),
        ({"covariance": "tied"}, "covariance='tied' cannot be merged with those with covariance='full'"),
    ],
    ids=str,
)
def test_what_must_agree_is_said(other: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moments(feature_names=["a", "b", "c"]) + moments(**other)


def test_other_numbers_of_features_and_wrong_names() -> None:
    with pytest.raises(ValueError, match="Moments of 3 and of 2 features cannot be merged"):
        moments() + SubgroupMoments(2, classes=[0, 1], groups=["f", "m"], covariance="full")
    with pytest.raises(ValueError, match="must hold 3 names, one a feature, not 2"):
        moments(feature_names=["a", "b"])
    with pytest.raises(ValueError, match="'a' occurs more than once"):
        moments(feature_names=["a", "a", "b"])


def test_fitted_moments_are_those_of_the_coordinates() -> None:
    rng = np.random.default_rng(0)
    rows, group = rng.normal(size=(200, D)), rng.integers(0, 2, 200)
    scaled = FairSteeringTransformer(map_type="affine", feature_transform=StandardScaler())
    plain = FairSteeringTransformer(map_type="affine").fit(rows, sensitive_features=group).moments_
    first = scaled.fit(rows, sensitive_features=group).moments_
    assert plain.coordinates is None
    np.testing.assert_allclose(first.coordinates.scale, 1 / rows.std(axis=0))
    with pytest.raises(ValueError, match="different coordinates: the scale of feature 0"):
        first + plain
    with pytest.raises(ValueError, match="different coordinates: the scale of feature 0"):
        first + scaled.fit(rows[:100], sensitive_features=group[:100]).moments_


@pytest.mark.parametrize("rescalable", [False, True])
def test_files_keep_names_coordinates_and_mixed_moments(tmp_path: Path, rescalable: bool) -> None:
    given = moments(
        feature_names=["a", "b", "c"], coordinates=(True, np.full(3, 2.0), np.arange(3.0)), rescalable=rescalable
    )
    persistence.save(given, tmp_path / "m.safetensors")
    again = persistence.load(tmp_path / "m.safetensors")
    assert again.feature_names == given.feature_names
    assert again.rescalable is rescalable
    total = again + given
    assert total.rescalable is rescalable
    assert total.weights.sum() == pytest.approx(2 * given.weights.sum())
    with pytest.raises(ValueError, match="without pickling it"):
        persistence.save(moments(coordinates=PowerTransformer()), tmp_path / "n.safetensors")


def test_ideal_distributions_travel(tmp_path: Path) -> None:
    ideal = nearest_ideal(moments().tie().shrink("oas"))
    persistence.save(ideal, tmp_path / "i.safetensors")
    np.testing.assert_array_equal(persistence.load(tmp_path / "i.safetensors").linear, ideal.linear)


def _rows() -> Any:
    rng = np.random.default_rng(1)
    y, group = rng.integers(0, 2, (2, 500))
    return rng.normal(size=(500, D)) ** 3 * [1, 20, 3000] + y[:, None] * 5 + 1000, y, group, rng.random(500)


@pytest.mark.parametrize("batch", [500, 37])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rescaled_moments_are_those_of_rescaled_rows(batch: int, dtype: Any) -> None:
    rows, y, group, weight = _rows()
    rows = rows.astype(dtype)
    scale, shift = 1 / rows.astype(float).std(axis=0), np.array([1.0, -2, 3])
    parts: Any = 0
    for start in range(0, 500, batch):
        some = slice(start, start + batch)
        part = SubgroupMoments(D, classes=[0, 1], groups=[0, 1], covariance="full", rescalable=True)
        parts = parts + part.update(rows[some], y[some], group[some], weight[some])
    expected = SubgroupMoments(D, classes=[0, 1], groups=[0, 1], covariance="full")
    expected.update(rows.astype(float) * scale + shift, y, group, weight)
    found = parts.rescaled(scale, shift)
    close = 1e-10 if dtype == np.float64 else 2e-5
    np.testing.assert_allclose(found.means, expected.means, rtol=1e-9)
    np.testing.assert_allclose(found.covariances, expected.covariances, rtol=close, atol=close)
    for formula in ("ledoit_wolf", "oas"):
        np.testing.assert_allclose(
            found.shrinkage_intensity(formula), expected.shrinkage_intensity(formula), rtol=1e-4, atol=1e-9
        )
    again = found.rescaled(1 / scale, -shift / scale)
    np.testing.assert_allclose(again.covariances, parts.covariances, rtol=1e-9)
    np.testing.assert_allclose(again.coordinates.scale, np.ones(D))


def test_diagonal_moments_of_full_ones() -> None:
    rows, y, group, weight = _rows()
    full = SubgroupMoments(D, classes=[0, 1], groups=[0, 1], covariance="full", rescalable=True)
    expected = SubgroupMoments(D, classes=[0, 1], groups=[0, 1], covariance="diagonal").update(rows, y, group, weight)
    found = full.update(rows, y, group, weight).diagonal()
    np.testing.assert_allclose(found.covariances, expected.covariances, rtol=1e-10)
    np.testing.assert_allclose(
        found.shrinkage_intensity("ledoit_wolf"), expected.shrinkage_intensity("ledoit_wolf"), rtol=1e-8
    )
    assert expected.diagonal() is expected


def test_what_cannot_be_rescaled() -> None:
    with pytest.raises(ValueError, match="rescalable=True"):
        moments().rescaled(np.ones(3))
    with pytest.raises(ValueError, match="rescalable=True"):
        moments().diagonal()
    with pytest.raises(ValueError, match="need covariance='full'"):
        moments(covariance="tied", rescalable=True)
    with pytest.raises(ValueError, match="finite and not zero"):
        moments(rescalable=True).rescaled([1, 0, 1])
    with pytest.raises(ValueError, match="Pooled or shrunk"):
        moments(rescalable=True).pool(0.5).rescaled(np.ones(3))


def test_failed_update_leaves_rescalable_moments_as_they_were() -> None:
    given = moments(rescalable=True)
    before = given.rescaled(np.ones(3))
    with pytest.raises(ValueError, match="not finite"):
        given.update([[np.nan, 1, 2]], [0], [0])
    np.testing.assert_array_equal(given.rescaled(np.ones(3))._quartics, before._quartics)
