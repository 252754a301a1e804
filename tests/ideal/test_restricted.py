"""Translations and scales: the optimum against a generic optimiser, the order of map classes, frames, empty cells."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from fairsteer import SubgroupMoments, nearest_ideal

KINDS = ["tied", "full", "diagonal"]
RESTRICTED = ["translation", "diagonal"]
INTERVENTIONS = ["all_subgroups", "affirmative"]


def statistics(kind: str, K: int = 3, G: int = 3, d: int = 3, seed: int = 0) -> SubgroupMoments:
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(K, G, d, d)) / 2
    covariances: Any = factors @ np.swapaxes(factors, -1, -2) + np.eye(d) / 2
    if kind == "tied":
        covariances = covariances[0]
    if kind == "diagonal":
        covariances = np.diagonal(covariances, axis1=2, axis2=3)
    return SubgroupMoments.from_statistics(
        rng.uniform(0.5, 2, (K, G)), rng.normal(size=(K, G, d)), covariances, classes=list("xyz"), groups=[1, 2, 3]
    )


def objective(moments: SubgroupMoments, p: Any, r: Any, means: Any, covariances: Any) -> float:
    """KL of a distribution of these priors, means (K, G, d) and covariances (K, G, d, d), term by term."""
    q = moments.weights / moments.weights.sum()
    own = moments.covariances
    total = 0.0
    for k, a in np.ndindex(q.shape):
        source = own[a] if moments.covariance == "tied" else own[k, a]
        residual = means[k, a] - moments.means[k, a]
        divergence = np.trace(np.linalg.solve(source, covariances[k, a])) + residual @ np.linalg.solve(source, residual)
        divergence += np.linalg.slogdet(source)[1] - np.linalg.slogdet(covariances[k, a])[1] - len(residual)
        total += p[k] * r[a] * (np.log(p[k] * r[a] / q[k, a]) + divergence / 2)
    return total


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "map_type"), list(itertools.product(["tied", "full"], RESTRICTED)))
def test_no_generic_optimiser_finds_a_nearer_one(kind: Any, map_type: Any) -> None:
    moments = statistics(kind, d=2)
    K, G, d = moments.means.shape
    n_families = 1 if kind == "tied" else K
    shapes = [(G, d), (G, d), (K, d), (n_families, d, d), (K,), (G,)]
    sizes = [int(np.prod(shape)) for shape in shapes]

    def value(x: Any) -> float:
        parts = np.split(x, np.cumsum(sizes)[:-1])
        shift, log_scale, nu, L, log_p, log_r = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        scale = np.exp(log_scale) if map_type == "diagonal" else np.ones((G, d))
        C = np.tril(L) @ np.swapaxes(np.tril(L), 1, 2) + 1e-9 * np.eye(d)
        C = np.broadcast_to(C, (K, d, d))
        p, r = np.exp(log_p - np.logaddexp.reduce(log_p)), np.exp(log_r - np.logaddexp.reduce(log_r))
        B = scale[:, :, None] * np.eye(d)
        return objective(moments, p, r, shift + scale * nu[:, None], B[None] @ C[:, None] @ B[None])

    start = np.concatenate([np.zeros(sum(sizes[:3])), np.tile(np.eye(d).ravel(), n_families), np.zeros(K + G)])
    rng = np.random.default_rng(0)
    found = [minimize(value, start + 0.1 * rng.normal(size=len(start)), method="BFGS").fun for _ in range(2)]
    ideal = nearest_ideal(moments, covariance=kind, map_type=map_type, tol=1e-12, max_iter=5000)
    assert ideal.kl_divergence <= min(found) + 1e-8
    assert ideal.kl_divergence >= min(found) - 1e-4  # the optimiser has come near enough to be a judge


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "intervention"), list(itertools.product(KINDS, INTERVENTIONS)))
def test_each_class_of_maps_is_nearer_than_the_one_it_contains(kind: Any, intervention: Any) -> None:
    for seed in range(5):
        moments = statistics(kind, seed=seed)
        options: dict[str, Any] = {"covariance": kind, "intervention": intervention, "tol": 1e-10, "max_iter": 5000}
        order: list[Any] = ["translation", "diagonal", "affine" if kind == "diagonal" else "symmetric"]
        found = [nearest_ideal(moments, map_type=name, **options).kl_divergence for name in order]
        assert found[0] >= found[1] - 1e-8
        assert found[1] >= found[2] - 1e-8


@pytest.mark.parametrize(
    ("kind", "map_type", "intervention"), list(itertools.product(KINDS, RESTRICTED, INTERVENTIONS))
)
def test_maps_have_the_form_and_lead_to_one_family(kind: Any, map_type: Any, intervention: Any) -> None:
    moments = statistics(kind)
    ideal = nearest_ideal(moments, covariance=kind, map_type=map_type, intervention=intervention)
    for a, (A, _) in enumerate(ideal.maps.values()):
        np.testing.assert_array_equal(A, np.diag(np.diag(A)))
        assert (np.diag(A) > 0).all()
        if map_type == "translation":
            np.testing.assert_array_equal(A, np.eye(3))
        B, m = ideal.inverse_maps[moments.groups.tolist()[a]]
        np.testing.assert_allclose(ideal.means[:, a], ideal.canonical_means @ B.T + m, atol=1e-10)
    assert abs(ideal.divergence_from(moments) - ideal.kl_divergence) < 1e-9
    if intervention == "affirmative":
        A, b = ideal.maps[ideal.reference_group]
        np.testing.assert_array_equal(A, np.eye(3))
        np.testing.assert_array_equal(b, 0)


def test_a_tied_translation_takes_away_the_standardised_class_means() -> None:
    moments = statistics("tied")
    ideal = nearest_ideal(moments, map_type="translation", tol=1e-14, max_iter=5000)
    standardised = np.einsum("k,kaj->aj", ideal.class_prior, moments.means)
    np.testing.assert_allclose(ideal.offset - ideal.offset[0], standardised[0] - standardised, atol=1e-10)


@pytest.mark.parametrize("map_type", RESTRICTED)
def test_no_other_frame_moves_the_rows_less(map_type: Any) -> None:
    moments = statistics("full")
    ideal = nearest_ideal(moments, covariance="full", map_type=map_type)

    def displacement(frame: Any, origin: Any) -> float:
        total = 0.0
        for k, a in np.ndindex(moments.weights.shape):
            A, b = frame * ideal.linear[a], frame * ideal.offset[a] + origin
            step = np.diag(A - 1)
            moved = step @ moments.means[k, a] + b
            total += moments.weights[k, a] * (moved @ moved + np.trace(step @ moments.covariances[k, a] @ step))
        return total

    best, rng = displacement(np.ones(3), np.zeros(3)), np.random.default_rng(0)
    for _ in range(50):
        frame = 1 + 0.05 * rng.normal(size=3) if map_type == "diagonal" else np.ones(3)
        assert displacement(frame, 0.05 * rng.normal(size=3)) > best


@pytest.mark.parametrize(("kind", "map_type"), list(itertools.product(KINDS, RESTRICTED)))
def test_names_and_order_of_groups_and_classes_do_not_matter(kind: Any, map_type: Any) -> None:
    moments = statistics(kind)
    ideal = nearest_ideal(moments, covariance=kind, map_type=map_type)
    classes, groups = [2, 0, 1], [1, 2, 0]
    own = moments.covariances[groups] if kind == "tied" else moments.covariances[np.ix_(classes, groups)]
    other = SubgroupMoments.from_statistics(
        moments.weights[np.ix_(classes, groups)], moments.means[np.ix_(classes, groups)], own, groups=["c", "a", "b"]
    )
    again = nearest_ideal(other, covariance=kind, map_type=map_type)
    np.testing.assert_allclose(again.linear, ideal.linear[groups], atol=1e-9)
    np.testing.assert_allclose(again.offset, ideal.offset[groups], atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "map_type", "intervention"), list(itertools.product(KINDS, RESTRICTED, INTERVENTIONS))
)
def test_empty_cells_and_units_leave_finite_maps(kind: Any, map_type: Any, intervention: Any) -> None:
    moments = statistics(kind)
    weights = moments.weights.copy()
    weights[0, 1] = weights[2, 0] = 0
    unit = np.array([1e9, 1.0, 1e-9])
    variances = unit**2 if kind == "diagonal" else np.outer(unit, unit)
    plain = SubgroupMoments.from_statistics(weights, moments.means, moments.covariances)
    scaled = SubgroupMoments.from_statistics(weights, moments.means * unit, moments.covariances * variances)
    found = []
    for some in (plain, scaled):
        with pytest.warns(UserWarning, match="No row of the subgroups"):
            found.append(nearest_ideal(some, covariance=kind, map_type=map_type, intervention=intervention))
    assert np.isfinite(found[0].linear).all()
    np.testing.assert_allclose(found[1].linear, found[0].linear, rtol=1e-6)
    np.testing.assert_allclose(found[1].offset, found[0].offset * unit, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found[1].kl_divergence, found[0].kl_divergence, rtol=1e-6)


@pytest.mark.parametrize(("kind", "map_type"), list(itertools.product(["tied", "full"], RESTRICTED)))
def test_a_group_that_has_one_class_alone_is_mapped_though_its_prior_vanishes(kind: Any, map_type: Any) -> None:
    moments = statistics(kind)
    weights, means = moments.weights.copy(), moments.means.copy()
    weights[:2, 2] = 0  # the third group has rows of the third class only …
    weights[2, :2] *= 1e-3
    means[2, 1] += 200  # … which costs so much in the others that the class is all but given up
    some = SubgroupMoments.from_statistics(weights, means, moments.covariances, covariance=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ideal = nearest_ideal(some, covariance=kind, map_type=map_type)
    assert np.isfinite(ideal.linear).all()
    assert np.isfinite(ideal.offset).all()
    assert np.isfinite(ideal.kl_divergence)
