"""Between one covariance a subgroup and one a group, and the divergence from moments of other rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import problems
from fairsteer import FairSteeringTransformer, SubgroupMoments, nearest_ideal


def rows(n: int = 900, d: int = 3, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    y, a = rng.integers(0, 3, n), rng.integers(0, 2, n)
    X = rng.normal(size=(n, d)) * (1 + 0.3 * y[:, None]) + y[:, None] + 0.5 * a[:, None]
    return X, y, a


def full_moments(n: int = 900, seed: int = 0) -> Any:
    X, y, a = rows(n, seed=seed)
    moments = SubgroupMoments(X.shape[1], classes=[0, 1, 2], groups=["F", "M"], covariance="full")
    return moments.update(X, y, a)


def test_pooling_is_friedmans_formula() -> None:
    moments = full_moments()
    scatters = moments.covariances * moments.weights[..., None, None]
    pooled = moments.pool(0.3)
    weights = 0.7 * moments.weights + 0.3 * moments.weights.sum(axis=0)
    expected = (0.7 * scatters + 0.3 * scatters.sum(axis=0)) / weights[..., None, None]
    np.testing.assert_allclose(pooled.covariances, expected, rtol=1e-12)
    np.testing.assert_array_equal(pooled.weights, moments.weights)
    np.testing.assert_array_equal(pooled.means, moments.means)


@pytest.mark.parametrize("shrinkage", [None, "ledoit_wolf", "oas", 0.2])
def test_pooling_ends_at_full_and_at_tied_covariances(shrinkage: Any) -> None:
    moments = full_moments(60)
    full, tied = moments.shrink(shrinkage).covariances, moments.tie().shrink(shrinkage).covariances
    np.testing.assert_allclose(moments.pool(0).shrink(shrinkage).covariances, full, rtol=1e-12)
    pooled = moments.pool(1).shrink(shrinkage).covariances
    np.testing.assert_allclose(pooled, np.broadcast_to(tied, pooled.shape), rtol=1e-9)


def test_pooled_moments_take_no_more_rows() -> None:
    X, y, a = rows()
    pooled = full_moments().pool(0.5)
    with pytest.raises(ValueError, match="accept no more rows"):
        pooled.update(X, y, a)
    with pytest.raises(ValueError, match="cannot be merged"):
        pooled.merge(full_moments())
    with pytest.raises(ValueError, match="not tied ones"):
        full_moments().tie().pool(0.5)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], not 2"):
        full_moments().pool(2)


def test_the_transformer_pools_before_it_shrinks() -> None:
    X, y, a = rows()
    steer = FairSteeringTransformer(covariance="full", pooling=0.4).fit(X, y, sensitive_features=a)
    moments = SubgroupMoments(3, classes=[0, 1, 2], groups=[0, 1], covariance="full").update(X, y, a)
    ideal = nearest_ideal(moments.pool(0.4, standardize=True).shrink("ledoit_wolf"), covariance="full")
    assert steer.kl_divergence_ == ideal.kl_divergence
    assert steer.objective_path_[-1] == pytest.approx(steer.kl_divergence_)
    batches = FairSteeringTransformer(covariance="full", pooling=0.4)
    for part in np.array_split(np.arange(len(y)), 3):
        batches.partial_fit(X[part], y[part], sensitive_features=a[part])
    assert batches.partial_fit().kl_divergence_ == pytest.approx(ideal.kl_divergence, rel=1e-6)
    with pytest.raises(ValueError, match="needs covariance='full', not 'tied'"):
        FairSteeringTransformer(pooling=0.4).fit(X, y, sensitive_features=a)


@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
def test_the_divergence_from_its_own_moments_is_the_divergence(covariance: Any) -> None:
    data = problems.statistics(3, 2, 4, covariance=covariance, seed=3)
    moments = SubgroupMoments.from_statistics(data.weights, data.means, data.covariances, groups=["F", "M"])
    ideal = nearest_ideal(moments, covariance=covariance)
    assert ideal.divergence_from(moments) == pytest.approx(ideal.kl_divergence, rel=1e-9)
    # Labels decide, not positions.
    shuffled = SubgroupMoments.from_statistics(
        data.weights[::-1, ::-1],
        data.means[::-1, ::-1],
        data.covariances[::-1] if covariance == "tied" else data.covariances[::-1, ::-1],
        classes=[2, 1, 0],
        groups=["M", "F"],
    )
    assert ideal.divergence_from(shuffled) == pytest.approx(ideal.kl_divergence, rel=1e-9)
    with pytest.raises(ValueError, match="group labels"):
        ideal.divergence_from(SubgroupMoments.from_statistics(data.weights, data.means, data.covariances))


def test_full_covariances_of_few_rows_fit_noise() -> None:
    # All subgroups have the same covariance in truth: tied is right, and full learns noise.
    rng = np.random.default_rng(0)
    d, y, a = 8, np.tile([0, 1], 60), np.repeat([0, 1], 60)
    X, fresh = (rng.normal(size=(120, d)) + y[:, None] for _ in range(2))
    held_out = SubgroupMoments(d, classes=[0, 1], groups=[0, 1], covariance="full").update(fresh, y, a)
    moments = SubgroupMoments(d, classes=[0, 1], groups=[0, 1], covariance="full").update(X, y, a)
    tied, full = (nearest_ideal(moments, covariance=model) for model in ("tied", "full"))
    assert full.divergence_from(held_out) > tied.divergence_from(held_out)
    assert full.divergence_from(held_out) > 3 * full.kl_divergence


def test_an_empty_cell_of_the_other_moments_adds_nothing_but_its_weight() -> None:
    data = problems.statistics(2, 2, 3, covariance="full", seed=5)
    moments = SubgroupMoments.from_statistics(data.weights, data.means, data.covariances)
    ideal = nearest_ideal(moments, covariance="full")
    weights = np.array(data.weights)
    weights[1, 1] = 0
    other = SubgroupMoments.from_statistics(weights, data.means, data.covariances)
    q = weights / weights.sum()
    q[1, 1] = q[1].sum() * q[:, 1].sum()
    q /= q.sum()
    divergence = np.array(ideal.subgroup_divergence)
    divergence[1, 1] = 0
    expected = np.sum(ideal.weights * (np.log(ideal.weights / q) + divergence))
    assert ideal.divergence_from(other) == pytest.approx(expected, rel=1e-9)
