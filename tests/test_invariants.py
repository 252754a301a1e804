"""The theorems of the method, against brute force and generic solvers. None of them knows how the core works.

Numbers in the section titles are those of the list of invariants in the project's theory notes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import cvxpy
import numpy as np
import pytest
from scipy import linalg, optimize, stats
from scipy.special import expit, xlogy

from benchmarks import problems, reference
from fairsteer.ideal import nearest_ideal
from fairsteer.moments import SubgroupMoments

KINDS = ["tied", "full", "diagonal"]
MAP_TYPES = ["affine", "symmetric"]
INTERVENTIONS = ["all_subgroups", "affirmative"]
TIGHT: dict[str, Any] = {"tol": 1e-13, "max_iter": 10_000}


def solve(data: Any, **options: Any) -> Any:
    moments = SubgroupMoments.from_statistics(data.weights, data.means, data.covariances)
    return nearest_ideal(moments, covariance=data.covariance, **TIGHT, **options)


def matrix(covariance: Any) -> Any:
    return np.diag(covariance) if np.ndim(covariance) == 1 else covariance


def covariance_of(owner: Any, k: Any, a: Any) -> Any:
    return matrix(reference.cell_covariance(owner.covariances, owner.covariance, k, a))


def group_problem(data: Any, ideal: Any, a: Any) -> Any:
    """The problem of moved group ``a`` of an affirmative solution, from the reference's side."""
    of_group = data.covariances[a] if data.covariance == "tied" else data.covariances[:, a]
    C = ideal.canonical_covariances
    return reference.GroupProblem(ideal.class_prior, ideal.canonical_means, C, data.means[:, a], of_group)


# ---
# The oracle itself: f and its gradient are what section 4 says
# ---
@pytest.mark.parametrize("kind", ["tied", "full"])
def test_oracle_objective_is_the_divergence_and_its_gradient_is_right(kind: Any) -> None:
    d = 3
    data = problems.statistics(3, 2, d, covariance=kind, seed=1)
    w = np.array([0.5, 0.3, 0.2])
    C, Sigma = (
        (data.covariances[0], data.covariances[1])
        if kind == "tied"
        else (data.covariances[:, 0], data.covariances[:, 1])
    )
    problem = reference.GroupProblem(w, data.means[:, 0], C, data.means[:, 1], Sigma)
    B = np.eye(d) + np.random.default_rng(0).standard_normal((d, d)) / 3

    def explicit(B: Any, m: Any) -> Any:
        return sum(
            w[k]
            * reference.gaussian_kl(
                m + B @ data.means[k, 0],
                B @ covariance_of(data, k, 0) @ B.T,
                data.means[k, 1],
                covariance_of(data, k, 1),
            )
            for k in range(3)
        )

    best = optimize.minimize(lambda m: explicit(B, m), np.zeros(d), tol=1e-12)
    assert problem.divergence(B) == pytest.approx(best.fun, abs=1e-10)
    assert problem.divergence(B) == pytest.approx(explicit(B, problem.shift(B)), abs=1e-10)
    gradient = np.empty((d, d))
    for i, j in itertools.product(range(d), repeat=2):
        step = np.zeros((d, d))
        step[i, j] = 1e-6
        gradient[i, j] = (problem.objective(B + step) - problem.objective(B - step)) / 2e-6
    np.testing.assert_allclose(problem.gradient(B), gradient, rtol=1e-6, atol=1e-8)


# ---
# 1. Tied covariances: the closed form is the global optimum
# ---
@pytest.mark.parametrize(("n_classes", "d"), [(2, 3), (3, 4), (6, 3), (2, 1)])
def test_tied_closed_form_is_stationary_and_no_start_of_a_generic_optimiser_beats_it(n_classes: Any, d: Any) -> None:
    data = problems.statistics(n_classes, 2, d, seed=10 * n_classes + d, difference=1.0)
    ideal = solve(data, intervention="affirmative", reference_group=0)
    problem = group_problem(data, ideal, 1)
    B = np.linalg.inv(ideal.maps[1][0])
    assert np.linalg.norm(problem.gradient(B)) < 1e-10
    rng = np.random.default_rng(0)
    others = [problem.objective(reference.lbfgs(problem, rng.standard_normal((d, d)))) for _ in range(20)]
    assert problem.objective(B) <= min(others) + 1e-9
    # The optimiser does come near, so that the comparison says something.
    assert min(others) <= problem.objective(B) + 1e-6


@pytest.mark.parametrize(("n_classes", "d"), [(2, 3), (2, 8), (3, 4), (4, 3)])
def test_full_affine_optimum_is_stationary(n_classes: Any, d: Any) -> None:
    # Not convex: no promise of the global optimum, but a promise of a stationary point that is no worse than symmetric.
    data = problems.statistics(n_classes, 2, d, covariance="full", seed=d, difference=1.0)
    ideal = solve(data, intervention="affirmative", reference_group=0)
    problem = group_problem(data, ideal, 1)
    B = np.linalg.inv(ideal.maps[1][0])
    # B^T grad f is the derivative along B -> B (I + D), the same in all units.
    assert np.linalg.norm(B.T @ problem.gradient(B)) < 1e-5
    symmetric = solve(data, intervention="affirmative", reference_group=0, map_type="symmetric")
    assert ideal.kl_divergence <= symmetric.kl_divergence + 1e-10


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_with_equal_means_are_the_best_of_all_pairings_at_once(seed: Any) -> None:
    """Section 6: a scaled permutation of the two eigenbases, found here by trying every one."""
    d = 5
    data = problems.statistics(2, 2, d, covariance="full", seed=seed, degrees=d + 2)
    means = np.repeat(data.means[:1], 2, axis=0)
    data = dataclasses.replace(data, means=means)
    ideal = solve(data, intervention="affirmative", reference_group=0)
    w = ideal.class_prior
    precision = w[:, None, None] * np.linalg.inv(data.covariances[:, 1])
    a = linalg.eigh(precision[1], precision.sum(axis=0), eigvals_only=True)
    average = np.tensordot(w, data.covariances[:, 0], axes=1)
    c1 = linalg.eigh(data.covariances[1, 0], average, eigvals_only=True)
    curvature = np.outer(1 - a, (1 - w[1] * c1) / w[0]) + np.outer(a, c1)
    pairings = itertools.permutations(range(d))
    best = min(np.log(curvature[range(d), list(pairing)]).sum() / 2 for pairing in pairings)
    shared = (np.linalg.slogdet(precision.sum(axis=0))[1] - np.linalg.slogdet(average)[1]) / 2
    log_dets = np.linalg.slogdet(data.covariances[:, 1])[1] - np.linalg.slogdet(data.covariances[:, 0])[1]
    # f = d/2 + sum log h / 2 at X = h^{-1/2}; the change of coordinates adds log|det U| + log|det V|.
    expected = best + (w @ log_dets) / 2 + shared + (np.linalg.slogdet(average)[1])
    assert w @ ideal.subgroup_divergence[:, 1] == pytest.approx(expected, abs=1e-10)
    assert ideal.n_iter == 1


@pytest.mark.slow
@pytest.mark.parametrize(("n_classes", "d", "separation"), [(2, 12, 0.1), (2, 12, 5.0), (2, 60, 1.0), (3, 12, 1.0)])
def test_affine_is_never_farther_than_lbfgs_from_the_pairing(n_classes: Any, d: Any, separation: Any) -> None:
    data = problems.statistics(n_classes, 2, d, covariance="full", separation=separation, seed=d)
    ideal = solve(data, intervention="affirmative", reference_group=0)
    problem = group_problem(data, ideal, 1)
    generic = problem.divergence(reference.lbfgs(problem, reference.paired_start(problem, 0, 1)))
    assert ideal.class_prior @ ideal.subgroup_divergence[:, 1] <= generic * (1 + 1e-4)


# ---
# 2. Symmetric: the optimum of a convex program
# ---
def symmetric_coordinates(data: Any, ideal: Any) -> Any:
    """Canonical means and covariances (K, d, d) in which the map of *symmetric* is symmetric: R taken out."""
    K = len(ideal.class_prior)
    C = ideal.canonical_covariances
    C = np.broadcast_to(C, (K, *C.shape)) if data.covariance == "tied" else C
    R = reference.inverse_square_root(C[int(np.argmax(ideal.class_prior))])
    return ideal.canonical_means @ R, R @ C @ R, R


def symmetric_case(kind: Any, n_classes: Any, d: Any) -> Any:
    data = problems.statistics(n_classes, 2, d, covariance=kind, seed=d, difference=1.0)
    ideal = solve(data, intervention="affirmative", reference_group=0, map_type="symmetric")
    nu, C, R = symmetric_coordinates(data, ideal)
    Sigma = np.array([covariance_of(data, k, 1) for k in range(n_classes)])
    offset = ideal.class_prior @ (reference.log_det(Sigma) - reference.log_det(C) - d) / 2
    return data, ideal, nu, C, R, Sigma, offset


SYMMETRIC_CASES = [
    (kind, n_classes, d) for kind in ["tied", "full"] for n_classes, d in [(2, 1), (2, 4), (3, 6), (2, 10)]
]


@pytest.mark.parametrize(("kind", "n_classes", "d"), SYMMETRIC_CASES)
def test_symmetric_equals_a_conic_solver(kind: Any, n_classes: Any, d: Any) -> None:
    data, ideal, nu, C, _, Sigma, offset = symmetric_case(kind, n_classes, d)
    S, m = cvxpy.Variable((d, d), PSD=True), cvxpy.Variable(d)
    quadratic = 0
    for k, w in enumerate(ideal.class_prior):
        root = reference.inverse_square_root(Sigma[k])
        quadratic += w * cvxpy.sum_squares(root @ S @ reference.square_root(C[k]))
        quadratic += w * cvxpy.sum_squares(root @ (m + S @ nu[k] - data.means[k, 1]))
    program = cvxpy.Problem(cvxpy.Minimize(quadratic / 2 - cvxpy.log_det(S)))
    program.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11, max_iter=500)
    own = ideal.class_prior @ ideal.subgroup_divergence[:, 1]
    assert own == pytest.approx(program.value + offset, abs=1e-8)


@pytest.mark.parametrize(("kind", "n_classes", "d"), SYMMETRIC_CASES)
def test_symmetric_equals_lbfgs_on_a_cholesky_factor(kind: Any, n_classes: Any, d: Any) -> None:
    data, ideal, nu, C, R, Sigma, offset = symmetric_case(kind, n_classes, d)
    problem = reference.GroupProblem(ideal.class_prior, nu, C, data.means[:, 1], Sigma)
    lower = np.tril_indices(d)
    on_diagonal = lower[0] == lower[1]

    def value_and_slope(theta: Any) -> Any:
        L = np.zeros((d, d))
        L[lower] = np.where(on_diagonal, np.exp(theta), theta)
        S = L @ L.T
        gradient = reference.symmetrised(problem.gradient(S))
        slope = (2 * gradient @ L)[lower]
        return problem.objective(S), np.where(on_diagonal, slope * L[lower], slope)

    start = np.zeros(len(lower[0]))
    best = optimize.minimize(
        value_and_slope,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 5000, "maxfun": 20_000, "maxcor": 50, "ftol": 1e-16, "gtol": 1e-11},
    )
    own = ideal.class_prior @ ideal.subgroup_divergence[:, 1]
    assert own == pytest.approx(best.fun + offset, abs=1e-8)
    # And the map is symmetric in those coordinates, and stationary among the symmetric ones.
    S = np.linalg.inv(ideal.maps[1][0]) @ np.linalg.inv(R)
    np.testing.assert_allclose(S, S.T, atol=1e-8)
    assert np.linalg.eigvalsh(reference.symmetrised(S))[0] > 0
    assert np.linalg.norm(reference.symmetrised(problem.gradient(S))) < 1e-6


# ---
# 3. Order of the divergences; an ideal input stays
# ---
@pytest.mark.filterwarnings("ignore:The nearest ideal distribution all but leaves out")
@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_affine_is_never_farther_than_symmetric(kind: Any, intervention: Any) -> None:
    for seed, shape in enumerate([(2, 2, 1), (2, 2, 3), (3, 3, 4), (4, 2, 2), *[(3, 2, 4)] * 8]):
        data = problems.statistics(*shape, covariance=kind, seed=seed, difference=1.0)
        affine = solve(data, intervention=intervention).kl_divergence
        symmetric = solve(data, intervention=intervention, map_type="symmetric").kl_divergence
        assert affine <= symmetric + 1e-9


@pytest.mark.parametrize("map_type", MAP_TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_all_subgroups_is_never_farther_than_affirmative(kind: Any, map_type: Any) -> None:
    for seed, shape in enumerate([(2, 2, 1), (2, 2, 3), (3, 3, 4), (4, 2, 2)]):
        data = problems.statistics(*shape, covariance=kind, seed=seed, difference=1.0)
        free = solve(data, map_type=map_type).kl_divergence
        for group in range(shape[1]):
            held = solve(data, map_type=map_type, intervention="affirmative", reference_group=group)
            assert free <= held.kl_divergence + 1e-9


def ideal_input(kind: Any, map_type: Any, shape: Any = (3, 3, 4), seed: int = 0) -> Any:
    """Statistics that meet the conditions, and group 0's coordinates as the canonical ones."""
    K, G, d = shape
    rng = np.random.default_rng(seed)
    p, r = rng.dirichlet(5 * np.ones(K)), rng.dirichlet(5 * np.ones(G))
    nu = rng.standard_normal((K, d))
    C = np.array([problems.wishart(rng, d, 3 * d) for _ in range(K)])
    if kind == "tied":
        C[:] = C[0]
    if kind == "diagonal":
        C = C * np.eye(d)
    R = reference.inverse_square_root(C[int(np.argmax(p))])
    means, covariances = np.empty((K, G, d)), np.empty((K, G, d, d))
    for a in range(G):
        B = np.eye(d) if a == 0 else rng.standard_normal((d, d))
        if kind == "diagonal":
            B = B * np.eye(d)
        if map_type == "symmetric" and a:
            B = B @ B.T @ R
        m = rng.standard_normal(d) * (a > 0)
        means[:, a] = m + nu @ B.T
        covariances[:, a] = B @ C @ B.T
    if kind == "tied":
        covariances = covariances[0]
    if kind == "diagonal":
        covariances = np.einsum("kaii->kai", covariances).copy()
    return reference.Moments(np.outer(p, r), means, covariances, kind)


@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("map_type", MAP_TYPES)
@pytest.mark.parametrize("kind", ["tied", "diagonal", "full"])
def test_an_ideal_input_has_divergence_zero_and_stays(kind: Any, map_type: Any, intervention: Any) -> None:
    for seed in range(5):
        data = ideal_input(kind, map_type, seed=seed)
        options = {"reference_group": 0} if intervention == "affirmative" else {}
        ideal = solve(data, intervention=intervention, map_type=map_type, **options)
        assert ideal.kl_divergence < 1e-9
        np.testing.assert_allclose(ideal.means, data.means, atol=1e-4)
        np.testing.assert_allclose(ideal.covariances, data.covariances, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ideal.weights, data.weights, atol=1e-6)
        assert ideal.certificate.accuracy < 1e-4


@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("kind", ["tied", "full"])
def test_symmetric_meets_the_papers_conditions_literally(kind: Any, intervention: Any) -> None:
    data = problems.statistics(3, 3, 4, covariance=kind, seed=2, difference=1.0)
    ideal = solve(data, map_type="symmetric", intervention=intervention)
    share = ideal.class_prior if intervention == "affirmative" else data.weights.sum(axis=1)
    i = int(np.argmax(share))
    for j in range(3):
        firsts, seconds, thirds = [], [], []
        for a in range(3):
            root = reference.square_root(covariance_of(ideal, i, a))
            firsts.append(np.linalg.solve(root, ideal.means[i, a] - ideal.means[j, a]))
            seconds.append(root @ np.linalg.solve(covariance_of(ideal, j, a), root))
            thirds.append(ideal.weights[i, a] / ideal.weights[j, a])
        np.testing.assert_allclose(firsts, [firsts[0]] * 3, atol=1e-8)
        np.testing.assert_allclose(seconds, [seconds[0]] * 3, atol=1e-8)
        np.testing.assert_allclose(thirds, [thirds[0]] * 3, rtol=1e-10)


@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_affine_meets_them_up_to_a_rotation(kind: Any, intervention: Any) -> None:
    data = problems.statistics(3, 3, 4, covariance=kind, seed=2, difference=1.0)
    ideal = solve(data, intervention=intervention)
    for i, j, k in itertools.product(range(3), repeat=3):
        distances, spectra = [], []
        for a in range(3):
            gap = ideal.means[i, a] - ideal.means[j, a]
            distances.append(gap @ np.linalg.solve(covariance_of(ideal, k, a), gap))
            ratio = np.linalg.solve(covariance_of(ideal, i, a), covariance_of(ideal, j, a))
            spectra.append(np.sort(np.linalg.eigvals(ratio).real))
        np.testing.assert_allclose(distances, distances[0], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(spectra, [spectra[0]] * 3, rtol=1e-7)


# ---
# All subgroups: brute force in one dimension, and no nearer ideal distribution nearby in several
# ---
def brute_force(data: Any, signs: Any) -> Any:
    """The nearest ideal distribution of two classes, two groups, one feature: all parameters at once.

    The canonical family is group 0's; group 1 is seen through z -> m + b z. Quasi-Newton with numerical
    gradients from many starts, for either sign of b.
    """
    q = data.weights / data.weights.sum()
    mean = data.means[:, :, 0]
    tied = data.covariance == "tied"
    variance = np.squeeze(data.covariances).reshape((2,) if tied else (2, 2))
    variance = np.broadcast_to(variance, (2, 2))

    def objective(theta: Any, sign: Any) -> Any:
        nu, log_c, m = theta[:2], theta[2:4], theta[4]
        b = sign * np.exp(theta[5])
        if tied:
            log_c = np.array([log_c[0], log_c[0]])
        moved = np.column_stack([nu, m + b * nu])
        ratio = np.exp(np.column_stack([log_c, log_c + 2 * theta[5]])) / variance
        cells = (ratio + (moved - mean) ** 2 / variance - 1 - np.log(ratio)) / 2
        p, r = expit(theta[6]), expit(theta[7])
        weights = np.outer([p, 1 - p], [r, 1 - r])
        return np.sum(xlogy(weights, weights / q) + weights * cells)

    rng = np.random.default_rng(0)
    best = np.inf
    for sign in signs:
        for start in range(8):
            scale = 1.0 if start else 0.0
            theta = scale * rng.standard_normal(8)
            theta[:2] += mean[:, start % 2]
            theta[6:] /= 2
            end = optimize.minimize(objective, theta, args=(sign,), method="BFGS")
            best = min(best, end.fun)
    return best


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(20))
def test_all_subgroups_in_one_dimension_equals_brute_force(kind: Any, seed: Any) -> None:
    # "full" and "diagonal" are the same model here, so they share the oracle's answer.
    data = problems.statistics(2, 2, 1, covariance=kind, seed=seed, difference=1.0)
    best = one_dimension("diagonal" if kind == "full" else kind, seed)
    if kind == "full":
        source = problems.statistics(2, 2, 1, covariance="diagonal", seed=seed, difference=1.0)
        data = reference.Moments(source.weights, source.means, source.covariances[..., None], "full")
    ideal = solve(data)
    assert ideal.kl_divergence == pytest.approx(best, abs=1e-6)


@functools.cache
def one_dimension(kind: Any, seed: Any) -> Any:
    return brute_force(problems.statistics(2, 2, 1, covariance=kind, seed=seed, difference=1.0), signs=(1, -1))


@pytest.mark.parametrize("kind", ["tied", "diagonal"])
@pytest.mark.parametrize("seed", range(4))
def test_symmetric_all_subgroups_in_one_dimension_keeps_the_order_of_points(kind: Any, seed: Any) -> None:
    data = problems.statistics(2, 2, 1, covariance=kind, seed=seed, difference=1.0)
    ideal = solve(data, map_type="symmetric")
    assert ideal.kl_divergence == pytest.approx(brute_force(data, signs=(1,)), abs=1e-6)


@pytest.mark.parametrize("map_type", MAP_TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_ideal_distribution_nearby_is_nearer(kind: Any, map_type: Any) -> None:
    K, G, d = 3, 3, 4
    data = problems.statistics(K, G, d, covariance=kind, seed=7)
    ideal = solve(data, map_type=map_type)
    rng = np.random.default_rng(0)
    C = ideal.canonical_covariances
    C = np.array([C if kind == "tied" else matrix(C[k]) for k in range(K)])
    nu = ideal.canonical_means
    # B of *symmetric* must stay symmetric where the pinned covariance is the identity: there every group moves by a
    # multiple of its map, and the means and free covariances in every direction.
    restricted = map_type == "symmetric" and kind != "diagonal"
    pinned = int(np.argmax(data.weights.sum(axis=1)))

    def direction() -> Any:
        D = rng.standard_normal((d, d))
        return D * np.eye(d) if kind == "diagonal" else D

    for size in [1e-3, 1e-2]:
        for _ in range(100):
            means, covariances = np.empty((K, G, d)), np.empty((K, G, d, d))
            moved_nu = nu + size * rng.standard_normal((K, d))
            moved_C = C.copy()
            common = direction()
            for k in range(K):
                if restricted and (kind == "tied" or k == pinned):
                    continue
                E = np.eye(d) + size * (common if kind == "tied" else direction())
                moved_C[k] = E @ C[k] @ E.T
            for a in range(G):
                A, b = ideal.maps[a]
                B = np.linalg.inv(A)
                m = -B @ b + size * rng.standard_normal(d)
                step = rng.standard_normal() * np.eye(d) if restricted else direction()
                B = (np.eye(d) + size * step) @ B
                means[:, a] = m + moved_nu @ B.T
                covariances[:, a] = B @ moved_C @ B.T
            if kind == "tied":
                covariances = covariances[0]
            if kind == "diagonal":
                covariances = np.einsum("kaii->kai", covariances)
            p = ideal.class_prior * np.exp(size * rng.standard_normal(K))
            r = ideal.group_prior * np.exp(size * rng.standard_normal(G))
            weights = np.outer(p / p.sum(), r / r.sum())
            kl, _ = reference.divergence(weights, means, covariances, data)
            assert kl >= ideal.kl_divergence - 1e-9


# ---
# 4. Equivariance
# ---
@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("map_type", MAP_TYPES)
@pytest.mark.parametrize("kind", ["tied", "full"])
def test_orthogonal_equivariance(kind: Any, map_type: Any, intervention: Any) -> None:
    d = 4
    data = problems.statistics(3, 3, d, covariance=kind, seed=3)
    Q = stats.ortho_group.rvs(d, random_state=0)
    c = np.array([5.0, -2, 0, 1])
    turned = reference.Moments(data.weights, data.means @ Q.T + c, Q @ data.covariances @ Q.T, kind)
    options = {"intervention": intervention, "map_type": map_type}
    one, two = solve(data, **options), solve(turned, **options)
    assert two.kl_divergence == pytest.approx(one.kl_divergence, rel=1e-8)
    for a in range(3):
        (A, b), (A_turned, b_turned) = one.maps[a], two.maps[a]
        # u' = Q u + c must hold for x' = Q x + c.
        np.testing.assert_allclose(A_turned, Q @ A @ Q.T, atol=2e-4)
        np.testing.assert_allclose(A_turned @ c + b_turned, Q @ b + c, atol=2e-4)
    for k, a in itertools.product(range(3), repeat=2):
        W, W_turned = one.subgroup_maps[k, a][0], two.subgroup_maps[k, a][0]
        np.testing.assert_allclose(W_turned, Q @ W @ Q.T, atol=1e-4)


@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_is_invariant_under_every_map_that_keeps_the_model(kind: Any, intervention: Any) -> None:
    d = 4
    data = problems.statistics(3, 2, d, covariance=kind, seed=3)
    M = np.eye(d) + np.random.default_rng(0).standard_normal((d, d)) / 2
    if kind == "diagonal":
        M = np.diag([-2.0, 0.1, 30.0, 1.0])
        covariances = data.covariances * np.diag(M) ** 2
    else:
        covariances = M @ data.covariances @ M.T
    mapped = reference.Moments(data.weights, data.means @ M.T + 3, covariances, kind)
    one, two = (solve(s, intervention=intervention) for s in (data, mapped))
    # Where the problem is not convex, symmetric starts are not invariant; the divergence nearly is.
    tolerance = 1e-2 if kind == "full" else 1e-8
    assert two.kl_divergence == pytest.approx(one.kl_divergence, rel=tolerance)


# ---
# 5. On the ideal distribution Bayes classifiers are fair
# ---
COSTS = [
    [[0, 1, 1], [1, 0, 1], [1, 1, 0]],
    [[0, 5, 1], [1, 0, 1], [2, 1, 0]],
    [[0, 1, 4], [3, 0, 1], [8, 6, 0]],
]


@pytest.mark.parametrize(
    ("kind", "intervention", "map_type"),
    [
        ("tied", "all_subgroups", "affine"),
        ("full", "affirmative", "affine"),
        ("full", "all_subgroups", "symmetric"),
        ("diagonal", "all_subgroups", "affine"),
    ],
)
def test_bayes_classifiers_on_the_ideal_have_no_gap(kind: Any, intervention: Any, map_type: Any) -> None:
    K, G, d, n = 3, 3, 4, 1_000_000
    data = problems.statistics(K, G, d, covariance=kind, seed=4, separation=0.7)
    ideal = solve(data, intervention=intervention, map_type=map_type)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(n, ideal.weights.ravel()).reshape(K, G)
    # P(decision c | class k, group a), for every cost matrix: the classifier is told the group.
    rate = np.empty((len(COSTS), K, G, K))
    for k, a in itertools.product(range(K), range(G)):
        root = np.linalg.cholesky(covariance_of(ideal, k, a))
        X = ideal.means[k, a] + rng.standard_normal((counts[k, a], d)) @ root.T
        joint = np.column_stack(
            [
                np.log(ideal.weights[j, a])
                + reference.gaussian_log_density(X, ideal.means[j, a], covariance_of(ideal, j, a))
                for j in range(K)
            ]
        )
        posterior = np.exp(joint - joint.max(axis=1, keepdims=True))
        for i, cost in enumerate(COSTS):
            # cost[j][c] of deciding c where the class is j
            decision = np.argmin(posterior @ np.array(cost, float), axis=1)
            rate[i, k, a] = np.bincount(decision, minlength=K) / counts[k, a]
    assert rate.max() < 0.999
    for i, c, a, b in itertools.product(range(len(COSTS)), range(K), range(G), range(G)):
        # equal opportunity and equalized odds: every class, every decision
        for k in range(K):
            p = (rate[i, k, a, c] + rate[i, k, b, c]) / 2
            error = np.sqrt(p * (1 - p) * (1 / counts[k, a] + 1 / counts[k, b]))
            assert abs(rate[i, k, a, c] - rate[i, k, b, c]) <= 5 * error + 1e-12
        # demographic parity
        selected = [counts[:, g] @ rate[i, :, g, c] / counts[:, g].sum() for g in (a, b)]
        p = sum(selected) / 2
        error = np.sqrt(p * (1 - p) * (1 / counts[:, a].sum() + 1 / counts[:, b].sum()))
        assert abs(selected[0] - selected[1]) <= 5 * error + 1e-12


def test_bayes_classifiers_on_the_data_do_have_gaps() -> None:
    # The same measurement must fail on the distribution before the steering, or it shows nothing.
    K, G, d, n = 3, 3, 4, 100_000
    data = problems.statistics(K, G, d, covariance="full", seed=4, separation=0.7)
    q = data.weights / data.weights.sum()
    rng = np.random.default_rng(0)
    rate = np.empty((K, G))
    for k, a in itertools.product(range(K), range(G)):
        root = np.linalg.cholesky(data.covariances[k, a])
        X = data.means[k, a] + rng.standard_normal((n // 9, d)) @ root.T
        joint = [
            np.log(q[j, a]) + reference.gaussian_log_density(X, data.means[j, a], data.covariances[j, a])
            for j in range(K)
        ]
        rate[k, a] = np.mean(np.argmax(joint, axis=0) == k)
    assert np.ptp(rate, axis=1).max() > 0.05


# ---
# 6. The label-aware steered sample
# ---
@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_label_aware_rows_have_exactly_the_target_moments(kind: Any, intervention: Any) -> None:
    K, G, d = 3, 2, 4
    X, y, a = problems.rows(900, K, G, d, seed=2)
    moments = SubgroupMoments(d, classes=range(K), groups=range(G), covariance=kind)
    moments = moments.update(X, y, a)
    ideal = nearest_ideal(moments, intervention=intervention, covariance=kind)
    steered = np.empty_like(X)
    for k, g in itertools.product(range(K), range(G)):
        W, b = ideal.subgroup_maps[k, g]
        cell = (y == k) & (a == g)
        steered[cell] = X[cell] @ W.T + b
    after = reference.moments(steered, y, a, K, G, covariance=kind)
    np.testing.assert_allclose(after.means, ideal.means, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(after.covariances, ideal.covariances, rtol=1e-8, atol=1e-9)
    # Condition 3 through the weights.
    weight = (ideal.weights / (moments.weights / moments.weights.sum()))[y, a]
    total = np.array([[weight[(y == k) & (a == g)].sum() for g in range(G)] for k in range(K)])
    np.testing.assert_allclose(total / total.sum(), ideal.weights, rtol=1e-10)


# ---
# 7. Moments merge
# ---
@pytest.mark.parametrize("kind", KINDS)
def test_steering_from_merged_moments_equals_steering_from_all_rows(kind: Any) -> None:
    X, y, a = problems.rows(600, 2, 2, 3, seed=6)

    def part(rows: Any, dtype: Any = np.float64) -> Any:
        moments = SubgroupMoments(3, classes=range(2), groups=range(2), covariance=kind)
        return moments.update(X[rows].astype(dtype), y[rows], a[rows])

    everything = slice(None)
    whole = nearest_ideal(part(everything), covariance=kind)
    merged = part(slice(400, None)).merge(part(slice(0, 50))).merge(part(slice(50, 400)))
    steered = nearest_ideal(merged, covariance=kind)
    single = nearest_ideal(part(everything, np.float32), covariance=kind)
    for g in range(2):
        np.testing.assert_allclose(steered.maps[g][0], whole.maps[g][0], atol=1e-7)
        np.testing.assert_allclose(single.maps[g][0], whole.maps[g][0], atol=1e-4)


# ---
# 8. Special cases
# ---
@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_one_class_is_gaussian_optimal_transport(kind: Any, d: Any) -> None:
    data = problems.statistics(1, 3, d, covariance=kind, seed=d)
    ideal = solve(data, intervention="affirmative", reference_group=1)
    for a in range(3):
        W, b = reference.transport(
            data.means[0, a], covariance_of(data, 0, a), data.means[0, 1], covariance_of(data, 0, 1)
        )
        np.testing.assert_allclose(ideal.maps[a][0], W, atol=1e-7)
        np.testing.assert_allclose(ideal.maps[a][1], b, atol=1e-7)
        np.testing.assert_allclose(ideal.means[0, a], data.means[0, a], atol=1e-10)
    assert ideal.kl_divergence < 1e-12


def test_equal_class_means_are_gaussian_optimal_transport_too() -> None:
    data = problems.statistics(3, 2, 4, seed=0)
    data.means[:] = data.means[:1]
    ideal = solve(data, intervention="affirmative", reference_group=0)
    W, b = reference.transport(data.means[0, 1], data.covariances[1], data.means[0, 0], data.covariances[0])
    np.testing.assert_allclose(ideal.maps[1][0], W, atol=1e-8)
    np.testing.assert_allclose(ideal.maps[1][1], b, atol=1e-8)


@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("map_type", MAP_TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_group_is_the_identity(kind: Any, map_type: Any, intervention: Any) -> None:
    data = problems.statistics(3, 1, 4, covariance=kind, seed=0)
    ideal = solve(data, map_type=map_type, intervention=intervention)
    A, b = ideal.maps[0]
    np.testing.assert_array_equal(A, np.eye(4))
    np.testing.assert_array_equal(b, np.zeros(4))
    assert ideal.kl_divergence == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(ideal.means, data.means, atol=1e-10)
    np.testing.assert_allclose(ideal.covariances, data.covariances, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_one_dimension_equals_the_closed_form(seed: Any) -> None:
    data = problems.statistics(3, 2, 1, covariance="diagonal", seed=seed, difference=1.0)
    p = data.weights[:, 0] / data.weights[:, 0].sum()
    (nu, mu), (var_nu, var_mu) = data.means[:, :, 0].T, data.covariances[:, :, 0].T
    precision = p / var_mu
    nu_bar, mu_bar = precision @ nu / precision.sum(), precision @ mu / precision.sum()
    A = precision @ (var_nu + (nu - nu_bar) ** 2)
    b = precision @ ((nu - nu_bar) * (mu - mu_bar))
    positive = (b + np.sqrt(b**2 + 4 * A)) / (2 * A)
    negative = (b - np.sqrt(b**2 + 4 * A)) / (2 * A)

    def f(gamma: Any) -> Any:
        return A * gamma**2 / 2 - b * gamma - np.log(abs(gamma))

    nearest = positive if f(positive) <= f(negative) else negative
    full = reference.Moments(data.weights, data.means, data.covariances[..., None], "full")
    for statistics in (data, full):
        for map_type, gamma in [("symmetric", positive), ("affine", nearest)]:
            ideal = solve(statistics, intervention="affirmative", reference_group=0, map_type=map_type)
            m = mu_bar - gamma * nu_bar
            assert ideal.maps[1][0][0, 0] == pytest.approx(1 / gamma, rel=1e-7)
            assert ideal.maps[1][1][0] == pytest.approx(-m / gamma, rel=1e-6, abs=1e-7)
            np.testing.assert_allclose(ideal.means[:, 1, 0], m + gamma * nu, atol=1e-6)
            # Corollary 4.2: the standard deviations are the reference's, times one factor.
            deviation = np.sqrt(np.squeeze(ideal.covariances))
            np.testing.assert_allclose(deviation[:, 1], abs(gamma) * np.sqrt(var_nu), rtol=1e-6)


# ---
# 9. Certificates
# ---
@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize(("kind", "map_type"), list(itertools.product(KINDS, MAP_TYPES)))
def test_the_certificate_holds_for_threshold_classifiers(kind: Any, map_type: Any, intervention: Any) -> None:
    K, G, d, n = 2, 2, 3, 20_000
    rng = np.random.default_rng(0)
    for seed in range(3):
        data = problems.statistics(K, G, d, covariance=kind, seed=seed, difference=0.3, degrees=40)
        ideal = solve(data, map_type=map_type, intervention=intervention)
        q = data.weights / data.weights.sum()
        scores = {}
        for (k, a), (name, owner) in itertools.product(
            itertools.product(range(K), range(G)), [("D", data), ("ideal", ideal)]
        ):
            root = np.linalg.cholesky(covariance_of(owner, k, a))
            X = owner.means[k, a] + rng.standard_normal((n, d)) @ root.T
            A, b = ideal.maps[a]
            scores[name, k, a] = ideal.log_posterior(X @ A.T + b)[:, 1]
        noise = 5 * np.sqrt(0.25 * 2 / n)
        for threshold in np.log([0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95]):
            rate = {key: np.mean(score > threshold) for key, score in scores.items()}
            for k in range(K):
                assert abs(rate["ideal", k, 0] - rate["ideal", k, 1]) <= noise
                gap = abs(rate["D", k, 0] - rate["D", k, 1])
                assert gap <= ideal.certificate.equal_opportunity[k] + noise
                for a in range(G):
                    moved = abs(rate["D", k, a] - rate["ideal", k, a])
                    assert moved <= ideal.certificate.total_variation[k, a] + noise
            wrong = {}
            for name, weights in [("D", q), ("ideal", ideal.weights)]:
                wrong[name] = sum(
                    weights[k, a] * (rate[name, k, a] if k == 0 else 1 - rate[name, k, a])
                    for k, a in itertools.product(range(K), range(G))
                )
            assert abs(wrong["D"] - wrong["ideal"]) <= ideal.certificate.accuracy + noise


def test_the_bounds_on_total_variation_are_bounds_and_not_vacuous() -> None:
    for mean, scale in itertools.product([0, 0.3, 1, 3], [0.3, 1, 2]):
        kl = reference.gaussian_kl(np.array([mean]), np.array([scale**2]), np.zeros(1), np.ones(1))
        x = np.linspace(-30, 30, 400_001)
        density = np.abs(stats.norm.pdf(x, mean, scale) - stats.norm.pdf(x))
        exact = np.trapezoid(density, x) / 2
        bound = float(reference.total_variation_bound(kl))
        assert exact <= bound + 1e-9
        assert bound <= min(1.0, float(np.sqrt(kl / 2)) + 1e-12)
