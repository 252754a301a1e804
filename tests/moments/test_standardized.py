"""Standardised pooling: classes weigh alike in every group, however the moments came about."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from fairsteer import SubgroupMoments, nearest_ideal

BASE_RATES = [0.2, 0.7]


def rows(n: int = 3000, d: int = 4, seed: int = 0) -> tuple[Any, Any, Any]:
    """Features that depend on the class alone; class 1 is wider in one direction."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, n)
    y = (rng.random(n) < np.take(BASE_RATES, group)).astype(int)
    X = rng.normal(size=(n, d)) + y[:, None]
    X[:, 0] *= 1 + y
    return X, y, group


def counts(y: Any, group: Any, weight: Any = None) -> Any:
    return np.bincount(2 * y + group, weight, 4).reshape(2, 2)


def accumulated(X: Any, y: Any, group: Any, weight: Any = None) -> SubgroupMoments:
    moments = SubgroupMoments(X.shape[1], classes=[0, 1], groups=["f", "m"], subgroup_counts=counts(y, group, weight))
    return moments.update(X, y, group, weight)


def full(X: Any, y: Any, group: Any, weight: Any = None) -> SubgroupMoments:
    return SubgroupMoments(X.shape[1], classes=[0, 1], groups=["f", "m"], covariance="full").update(X, y, group, weight)


def test_groups_that_differ_in_base_rates_alone_stay_where_they_are() -> None:
    spread = np.diag([4.0, 1.0, 1.0])
    covariances = np.stack([[np.eye(3)] * 2, [spread] * 2])
    means = np.repeat([np.zeros(3), np.ones(3)], 2, axis=0).reshape(2, 2, 3)
    weights = [[0.8, 0.3], [0.2, 0.7]]
    population = SubgroupMoments.from_statistics(weights, means, covariances)
    for map_type in ("affine", "symmetric", "diagonal", "translation"):
        standardised = nearest_ideal(population.tie(standardize=True), map_type=map_type)
        for A, _ in standardised.maps.values():
            np.testing.assert_allclose(A, np.eye(3), atol=1e-10)
        np.testing.assert_allclose(standardised.offset, 0, atol=1e-10)
        assert standardised.subgroup_divergence.max() < 1e-10
    own = nearest_ideal(population.tie())
    assert np.abs(own.linear - np.eye(3)).max() > 0.1


def test_the_covariance_is_the_average_by_the_shares_of_all_rows() -> None:
    X, y, group = rows()
    weight = np.random.default_rng(1).uniform(0.5, 2, len(y))
    cells, p = full(X, y, group, weight), np.bincount(y, weight) / weight.sum()
    expected = np.einsum("k,kaij->aij", p, cells.covariances)
    np.testing.assert_allclose(accumulated(X, y, group, weight).covariances, expected)
    np.testing.assert_allclose(cells.tie(standardize=True).covariances, expected)
    np.testing.assert_allclose(cells.pool(1.0, standardize=True).covariances, np.stack([expected] * 2))
    np.testing.assert_array_equal(accumulated(X, y, group, weight).weights, cells.weights)


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas"])
def test_shrinkage_is_that_of_rows_that_are_weighted(shrinkage: Any) -> None:
    X, y, group = rows(200)
    q = counts(y, group)
    factors = q.sum(axis=1, keepdims=True) * q.sum(axis=0) / len(y) / q
    small = factors / 1e3  # so that the effective number of rows counts: these are no repetitions
    weighted = SubgroupMoments(4, classes=[0, 1], groups=["f", "m"]).update(X, y, group, small[y, group])
    expected = weighted.shrinkage_intensity(shrinkage)
    for moments in (accumulated(X, y, group), full(X, y, group).tie(standardize=True)):
        np.testing.assert_allclose(moments.shrinkage_intensity(shrinkage), expected, rtol=1e-6)
        np.testing.assert_allclose(moments.shrink(shrinkage).covariances, weighted.shrink(shrinkage).covariances)


def test_with_equal_base_rates_it_is_what_ledoit_wolf_is_without() -> None:
    X, y, group = rows(400)
    y = np.arange(400) % 2
    group = np.arange(400) // 2 % 2
    moments = accumulated(X, y, group)
    for a in (0, 1):
        own = group == a
        centred = X[own] - moments.means[y[own], a]
        expected = LedoitWolf(assume_centered=True).fit(centred).shrinkage_
        np.testing.assert_allclose(moments.shrinkage_intensity("ledoit_wolf")[a], expected)


def test_parts_of_the_rows_merge_when_they_know_the_counts_of_all() -> None:
    X, y, group = rows()
    whole = accumulated(X, y, group)
    parts = [slice(0, 700), slice(700, 701), slice(701, None)]
    some = [
        SubgroupMoments(4, classes=[0, 1], groups=["f", "m"], subgroup_counts=counts(y, group)).update(
            X[p], y[p], group[p]
        )
        for p in parts
    ]
    together = some[2] + some[0] + some[1]
    np.testing.assert_allclose(together.covariances, whole.covariances)
    np.testing.assert_array_equal(together.weights, whole.weights)
    assert together.standardized
    with pytest.raises(ValueError, match="give the subgroup_counts of all rows"):
        whole.merge(accumulated(X[:500], y[:500], group[:500]))
    with pytest.raises(ValueError, match="give the subgroup_counts of all rows"):
        whole.merge(SubgroupMoments(4, classes=[0, 1], groups=["f", "m"]).update(X, y, group))


def test_groups_whose_counts_were_their_own_do_not_merge() -> None:
    X, y, group = rows()
    three = np.where(np.arange(len(y)) % 3 == 0, 2, group)
    q = np.bincount(3 * y + three, minlength=6).reshape(2, 3)
    moments = SubgroupMoments(4, classes=[0, 1], groups=[0, 1, 2], subgroup_counts=q).update(X, y, three)
    with pytest.raises(ValueError, match="those of the groups as merged"):
        moments.merge_groups([1, 2], "rest")


def test_a_class_that_a_group_lacks_is_left_out_there() -> None:
    X, y, group = rows()
    kept = (group == 0) | (y == 1)
    moments = accumulated(X[kept], y[kept], group[kept])
    cells = full(X[kept], y[kept], group[kept])
    np.testing.assert_allclose(moments.covariances[1], cells.covariances[1, 1])


def test_refusals_name_the_way_out() -> None:
    X, y, group = rows(100)
    with pytest.raises(ValueError, match="subgroup_counts is for covariance='tied'"):
        SubgroupMoments(4, classes=[0, 1], groups=["f", "m"], covariance="full", subgroup_counts=np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"shape \(2, 2\), got shape \(3,\)"):
        SubgroupMoments(4, classes=[0, 1], groups=["f", "m"], subgroup_counts=[1, 2, 3])
    with pytest.raises(ValueError, match="class 1 in group 'm', for which subgroup_counts has 0"):
        SubgroupMoments(4, classes=[0, 1], groups=["f", "m"], subgroup_counts=[[1, 1], [1, 0]]).update(X, y, group)
    with pytest.raises(ValueError, match=r"accumulate with SubgroupMoments\(..., subgroup_counts=...\)"):
        SubgroupMoments(4, classes=[0, 1], groups=["f", "m"]).update(X, y, group).tie(standardize=True)
