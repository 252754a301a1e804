"""The certificate: of the Gaussians of the subgroups themselves, by brute force and by Monte Carlo."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from fairsteer import SubgroupMoments, nearest_ideal
from fairsteer.ideal import Certificate, SubgroupGaussians

SHAPES = [(2, 2, 2), (3, 2, 3), (2, 3, 2)]


def misfit(K: int, G: int, d: int, seed: int = 0) -> SubgroupMoments:
    """Population moments of subgroups that share no covariance."""
    rng = np.random.default_rng(seed)
    roots = np.eye(d) + 0.3 * rng.normal(size=(K, G, d, d))
    return SubgroupMoments.from_statistics(
        rng.uniform(0.5, 1.5, (K, G)), rng.normal(size=(K, G, d)), roots @ np.swapaxes(roots, -1, -2)
    )


def kl(m: Any, C: Any, mean: Any, S: Any) -> float:
    """KL(N(m, C) || N(mean, S)), by the textbook."""
    inverse = np.linalg.inv(S)
    return float(
        0.5
        * (
            np.trace(inverse @ C)
            + (mean - m) @ inverse @ (mean - m)
            - len(m)
            + np.linalg.slogdet(S)[1]
            - np.linalg.slogdet(C)[1]
        )
    )


def bound(divergence: Any) -> Any:
    return np.minimum(np.sqrt(np.asarray(divergence) / 2), np.sqrt(1 - np.exp(-np.asarray(divergence))))


def mapped(ideal: Any, moments: SubgroupMoments) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Means and covariances of the subgroups in the common frame."""
    A, b = (np.stack(part) for part in zip(*ideal.maps.values(), strict=True))
    means = np.einsum("aij,kaj->kai", A, moments.means) + b
    return means, np.einsum("aij,kajl,aml->kaim", A, moments.covariances, A)


@pytest.mark.parametrize("map_type", ["affine", "translation", "diagonal"])
@pytest.mark.parametrize("shape", SHAPES)
def test_of_the_nearest_family_no_other_is_nearer_to_the_cells(shape: Any, map_type: Any) -> None:
    K, G, d = shape
    moments = misfit(K, G, d)
    ideal = nearest_ideal(moments, map_type=map_type)
    assert ideal.certificate.gaussians == "subgroups"
    assert ideal.model_certificate.gaussians == "model"
    means, covariances = mapped(ideal, moments)
    lower = np.tril_indices(d)

    for k in range(K):

        def divergences(x: Any, k: int = k) -> Any:
            root = np.zeros((d, d))
            root[lower] = x[d:]
            return [kl(x[:d], root @ root.T, means[k, a], covariances[k, a]) for a in range(G)]

        start = np.concatenate([means[k].mean(axis=0), np.linalg.cholesky(covariances[k].mean(axis=0))[lower]])
        found = minimize(
            lambda x, f=divergences: ideal.group_prior @ f(x), start, method="BFGS", options={"gtol": 1e-9}
        )
        expected = bound(divergences(found.x))
        np.testing.assert_allclose(ideal.certificate.total_variation[k], expected, atol=1e-5)
        assert ideal.certificate.equal_opportunity[k] == pytest.approx(min(np.sort(expected)[-2:].sum(), 1), abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_under_affirmative_the_cells_of_the_reference_group_are_the_family(shape: Any) -> None:
    K, G, d = shape
    moments = misfit(K, G, d)
    ideal = nearest_ideal(moments, intervention="affirmative", reference_group=1)
    means, covariances = mapped(ideal, moments)
    expected = [
        [kl(means[k, 1], covariances[k, 1], means[k, a], covariances[k, a]) for a in range(G)] for k in range(K)
    ]
    np.testing.assert_allclose(ideal.certificate.total_variation, bound(np.maximum(expected, 0)), atol=1e-7)
    q = moments.weights / moments.weights.sum()
    total = np.sum(ideal.weights * (np.log(ideal.weights / q) + expected))
    assert ideal.certificate.accuracy == pytest.approx(bound(total))


@pytest.mark.parametrize("map_type", ["affine", "translation"])
def test_with_full_covariances_the_model_is_the_cells(map_type: Any) -> None:
    moments = misfit(2, 2, 3)
    ideal = nearest_ideal(moments, covariance="full", map_type=map_type, tol=1e-12, max_iter=2000)
    assert ideal.certificate is ideal.model_certificate
    assert ideal.certificate.gaussians == "subgroups"
    again = ideal.certify(SubgroupGaussians(moments))
    np.testing.assert_allclose(again.total_variation, ideal.certificate.total_variation, atol=1e-5)
    assert again.accuracy == pytest.approx(ideal.certificate.accuracy, abs=1e-5)


def test_without_covariances_of_cells_the_certificate_is_the_model_s() -> None:
    ideal = nearest_ideal(misfit(2, 2, 2).tie())
    assert ideal.certificate is ideal.model_certificate
    assert ideal.certificate.gaussians == "model"
    assert "gaussians='model'" in repr(ideal.certificate)


def test_groups_that_differ_in_base_rates_alone_are_certified_to_be_fair() -> None:
    """Classes of unequal spread are no misfit: the maps are the identity, and every group is the same."""
    spread = np.array([[np.eye(2)] * 2, [np.diag([9.0, 4.0])] * 2])
    means = np.array([[[0.0, 0.0]] * 2, [[1.0, 2.0]] * 2])
    moments = SubgroupMoments.from_statistics([[0.4, 0.15], [0.1, 0.35]], means, spread)
    ideal = nearest_ideal(moments.tie(standardize=True), map_type="affine")
    found = ideal.certify(SubgroupGaussians(moments))
    assert found.equalized_odds < 1e-7
    assert found.accuracy < 0.5  # what is left is that class and group are not independent


@pytest.mark.parametrize("covariance", ["tied", "full"])
@pytest.mark.parametrize("intervention", ["all_subgroups", "affirmative"])
def test_no_classifier_of_mapped_rows_has_a_larger_gap_or_accuracy_farther_off(
    covariance: Any, intervention: Any
) -> None:
    """By Monte Carlo, on the cells' own Gaussians, for linear and quadratic rules."""
    rng = np.random.default_rng(1)
    d, n = 2, 20_000
    moments = misfit(2, 2, d, seed=4)
    ideal = nearest_ideal(moments, covariance=covariance, intervention=intervention)
    means, covariances = mapped(ideal, moments)
    rows = np.array(
        [[multivariate_normal(means[k, a], covariances[k, a]).rvs(n, random_state=rng) for a in (0, 1)] for k in (0, 1)]
    )
    largest = 0.0
    for _ in range(200):
        linear, square = rng.normal(size=d), rng.normal(size=(d, d)) * rng.integers(0, 2)
        score = rows @ linear + np.einsum("kani,ij,kanj->kan", rows, square, rows)
        rate = (score > np.quantile(score, rng.uniform(0.05, 0.95))).mean(axis=2)
        gap = np.abs(rate[:, 0] - rate[:, 1])
        assert (gap <= ideal.certificate.equal_opportunity + 0.02).all()
        largest = max(largest, gap.max())
    assert largest > 0.2 * ideal.certificate.equalized_odds  # so that a smaller bound would fail


def test_spreads_that_are_reversed_between_the_groups_are_seen() -> None:
    S = np.array([[np.eye(2), 9 * np.eye(2)], [9 * np.eye(2), np.eye(2)]])
    moments = SubgroupMoments.from_statistics(np.ones((2, 2)), np.ones((2, 2, 2)) * [[[0]], [[1]]], S)
    ideal = nearest_ideal(moments)
    assert ideal.model_certificate.equalized_odds < 1e-6
    # The nearest Gaussian to N(0, I) and N(0, 9 I) has the harmonic mean, 1.8, as its variance.
    expected = [bound(0.5 * 2 * (1.8 / s - 1 + np.log(s / 1.8))) for s in (1, 9)]
    np.testing.assert_allclose(ideal.certificate.total_variation, [expected, expected[::-1]], atol=1e-9)


def test_few_rows_are_not_believed_and_many_are() -> None:
    """Covariances are drawn to the model's as far as chance explains the difference."""
    rng = np.random.default_rng(0)
    S = np.array([[np.eye(3), 4 * np.eye(3)], [4 * np.eye(3), np.eye(3)]])
    found = {}
    for n in (2, 20, 100_000):
        moments = SubgroupMoments.from_statistics(np.full((2, 2), float(n)), rng.normal(size=(2, 2, 3)), S)
        ideal = nearest_ideal(moments.tie())
        found[n] = ideal.certify(SubgroupGaussians(moments, chance=1.0)).equalized_odds
        as_it_is = ideal.certify(SubgroupGaussians(moments)).equalized_odds
        assert as_it_is == pytest.approx(nearest_ideal(moments).certificate.equalized_odds)
    assert found[2] == pytest.approx(ideal.model_certificate.equalized_odds, abs=0.05)
    assert found[2] < found[20] < found[100_000] == pytest.approx(as_it_is, abs=1e-2)


def test_what_is_known_of_a_certificate_is_kept_and_nothing_promises_nothing() -> None:
    ideal = nearest_ideal(misfit(2, 2, 2))
    known = Certificate.of_bounds(np.full((2, 2), 0.25), 0.5, "subgroups")
    assert replace(ideal, known_certificate=known).certificate is known
    np.testing.assert_allclose(known.equal_opportunity, 0.5)
    nothing = Certificate.of_nothing((2, 3), "subgroups")
    assert nothing.equalized_odds == nothing.accuracy == 1
    assert Certificate.of_divergences(np.zeros((2, 1)), 0.0, "subgroups").equalized_odds == 0
