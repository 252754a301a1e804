"""The method once more, in NumPy and SciPy alone: the plain reading of the theory.

Nothing here imports ``fairsteer``, and nothing here is meant to be fast at the price of being plain. Where the
mathematics leaves a choice open, the choice is stated in the docstring, and ``fairsteer`` follows it.

Notation: ``K`` classes, ``G`` groups, ``d`` features; ``q[k, a]`` weight of class ``k`` in group ``a``; ``nu[k]``,
``C[k]`` the canonical family; group ``a`` sees it through ``z -> m[a] + B[a] z``. Divergences are in nats. Tied arrays
drop the class axis, diagonal ones hold variances in place of matrices:

=========  ===================  =================
kind       covariances          canonical C
=========  ===================  =================
full       ``(K, G, d, d)``     ``(K, d, d)``
tied       ``(G, d, d)``        ``(d, d)``
diagonal   ``(K, G, d)``        ``(K, d)``
=========  ===================  =================
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize
from scipy.special import logsumexp, xlogy

Array = NDArray[np.float64]

# Singular values of the class information below this share of the largest are rounding, not information (§5).
RANK_TOLERANCE = 1e-10


# ------------------------------------------------------------------------------------------------------------------
# Matrices
# ------------------------------------------------------------------------------------------------------------------
def symmetrised(A: Array) -> Array:
    return np.asarray((A + np.swapaxes(A, -1, -2)) / 2)


def spectral(A: Array, function: Callable[[Array], Array]) -> Array:
    """``function`` of the symmetric matrix ``A``, through its eigenvalues."""
    values, vectors = np.linalg.eigh(symmetrised(A))
    return np.asarray((vectors * function(values)) @ vectors.T)


def square_root(A: Array) -> Array:
    return spectral(A, lambda e: np.sqrt(np.maximum(e, 0)))


def inverse_square_root(A: Array) -> Array:
    return spectral(A, lambda e: 1 / np.sqrt(e))


def log_det(A: Array) -> Array:
    """log |det A| of a matrix or a stack of them."""
    return np.asarray(np.linalg.slogdet(A)[1])


# ------------------------------------------------------------------------------------------------------------------
# Moments and shrinkage, §12
# ------------------------------------------------------------------------------------------------------------------
@dataclass
class Moments:
    """Weight sums (K, G), means (K, G, d) and maximum-likelihood covariances (module docstring) of every cell."""

    weights: Array
    means: Array
    covariances: Array
    covariance: str


def moments(
    X: NDArray[np.floating],
    y: NDArray[np.integer],
    a: NDArray[np.integer],
    n_classes: int,
    n_groups: int,
    *,
    sample_weight: Array | None = None,
    covariance: str = "tied",
) -> Moments:
    """Two passes a cell: the mean, then the scatter about it. Rows with a negative code stay out.

    One stable sort brings the rows of a cell together, so every cell is one contiguous block and one symmetric product.
    Empty cells have weight 0, zero mean and zero covariance.
    """
    d = X.shape[1]
    K, G = n_classes, n_groups
    cell = np.where((y < 0) | (a < 0), -1, y * G + a)
    order = np.argsort(cell, kind="stable")
    bounds = np.searchsorted(cell[order], np.arange(K * G + 1))

    weights = np.zeros((K, G))
    means = np.zeros((K, G, d))
    scatter = np.zeros({"full": (K, G, d, d), "tied": (G, d, d), "diagonal": (K, G, d)}[covariance])
    for k in range(K):
        for g in range(G):
            rows = order[bounds[k * G + g] : bounds[k * G + g + 1]]
            block = X[rows].astype(np.float64)
            if sample_weight is None:
                total = float(len(rows))
                if total == 0:
                    continue
                mean = block.mean(axis=0)
                block -= mean
            else:
                w = np.asarray(sample_weight, dtype=np.float64)[rows]
                total = float(w.sum())
                if total == 0:
                    continue
                mean = w @ block / total
                block -= mean
                block *= np.sqrt(w)[:, None]
            weights[k, g] = total
            means[k, g] = mean
            if covariance == "diagonal":
                scatter[k, g] = np.einsum("ij,ij->j", block, block)
            elif covariance == "tied":
                scatter[g] += block.T @ block
            else:
                scatter[k, g] = block.T @ block
    denominator = weights.sum(axis=0) if covariance == "tied" else weights
    denominator = np.where(denominator > 0, denominator, 1.0)
    scatter /= denominator.reshape(denominator.shape + (1,) * (scatter.ndim - denominator.ndim))
    return Moments(weights, means, scatter, covariance)


def sample_count(sample_weight: Array) -> float:
    """How many rows a weighted sample counts for: weights are frequencies; fractions count as Kish's effective size."""
    total = float(np.sum(sample_weight))
    return max(total, total**2 / float(np.sum(np.square(sample_weight))))


def ledoit_wolf_intensity(rows: Array, sample_weight: Array) -> float:
    """Ledoit and Wolf (2004) for centred ``rows``; with unit weights, scikit-learn's ``ledoit_wolf_shrinkage``."""
    d = rows.shape[1]
    w = sample_weight / sample_weight.sum()
    S = rows.T @ (rows * w[:, None])
    mean_variance = np.trace(S) / d
    squared_norm = np.sum(S**2)
    noise = (w @ np.sum(rows**2, axis=1) ** 2 - squared_norm) / sample_count(sample_weight)
    distance = squared_norm - d * mean_variance**2
    noise = min(noise, distance)
    return 0.0 if noise <= 0 else float(noise / distance)


def oas_intensity(S: Array, count: float) -> float:
    """Oracle-approximating shrinkage (Chen et al. 2010) of covariance ``S`` from ``count`` rows, as in scikit-learn."""
    d = S.shape[0]
    mean_square = float(np.mean(S**2))
    squared_mean = float(np.trace(S) / d) ** 2
    denominator = (count + 1) * (mean_square - squared_mean / d)
    return 1.0 if denominator == 0 else min((mean_square + squared_mean) / denominator, 1.0)


def shrinkage_intensities(
    X: NDArray[np.floating],
    y: NDArray[np.integer],
    a: NDArray[np.integer],
    n_classes: int,
    n_groups: int,
    method: str,
    *,
    sample_weight: Array | None = None,
    covariance: str = "tied",
) -> Array:
    """One intensity a covariance: ``(G,)`` tied, ``(K, G)`` full. Rows are centred on their own cell's mean."""
    weight = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    stats = moments(X, y, a, n_classes, n_groups, sample_weight=weight, covariance=covariance)
    keep = (y >= 0) & (a >= 0) & (weight > 0)
    X, y, a, weight = X[keep].astype(np.float64), y[keep], a[keep], weight[keep]
    centred = X - stats.means[y, a]

    def intensity(rows: NDArray[np.bool_], S: Array) -> float:
        if not rows.any():
            return 0.0
        if method == "oas":
            return oas_intensity(S, sample_count(weight[rows]))
        return ledoit_wolf_intensity(centred[rows], weight[rows])

    if covariance == "tied":
        return np.array([intensity(a == g, stats.covariances[g]) for g in range(n_groups)])
    return np.array(
        [[intensity((y == k) & (a == g), stats.covariances[k, g]) for g in range(n_groups)] for k in range(n_classes)]
    )


def shrunk(covariances: Array, intensity: Array | float) -> Array:
    """``(1 - s) S + s tr(S)/d I`` for a stack of matrices; ``intensity`` broadcasts over the stack."""
    d = covariances.shape[-1]
    s = np.asarray(intensity)[..., None, None]
    trace = np.trace(covariances, axis1=-2, axis2=-1)[..., None, None]
    return np.asarray((1 - s) * covariances + s * trace / d * np.eye(d))


# ------------------------------------------------------------------------------------------------------------------
# Divergence, §3
# ------------------------------------------------------------------------------------------------------------------
def gaussian_kl(means0: Array, cov0: Array, means1: Array, cov1: Array) -> Array:
    """``KL(N(mean0, cov0) || N(mean1, cov1))`` for one pair of means or rows of them.

    Vectors in place of the matrices are variances.
    """
    residual = np.asarray(means0 - means1)
    if np.ndim(cov0) == 1:
        shape = np.sum(cov0 / cov1 - 1 + np.log(cov1 / cov0))
        return np.asarray(shape + np.sum(residual**2 / cov1, axis=-1)) / 2
    factor = linalg.cho_factor(cov1)
    shape = np.trace(linalg.cho_solve(factor, cov0)) - len(cov0) + log_det(cov1) - log_det(cov0)
    quadratic = np.sum(residual * linalg.cho_solve(factor, residual.T).T, axis=-1)
    return np.asarray(shape + quadratic) / 2


def gaussian_log_density(X: Array, mean: Array, cov: Array) -> Array:
    """log N(x; mean, cov) at the rows of ``X``; a vector in place of the matrix holds variances."""
    if np.ndim(cov) == 1:
        return np.asarray(-0.5 * np.sum((X - mean) ** 2 / cov + np.log(2 * np.pi * cov), axis=1))
    L = np.linalg.cholesky(cov)
    whitened = linalg.solve_triangular(L, (X - mean).T, lower=True)
    constant = len(mean) * np.log(2 * np.pi) + 2 * np.sum(np.log(np.diag(L)))
    return np.asarray(-0.5 * (np.sum(whitened**2, axis=0) + constant))


def cell_covariance(covariances: Array, covariance: str, k: int, a: int) -> Array:
    return np.asarray(covariances[a] if covariance == "tied" else covariances[k, a])


def usable_weights(weights: Array) -> Array:
    """``q``: weights normalised, after an empty cell got the product of its class's and its group's share."""
    q = weights / weights.sum()
    q = np.where(weights > 0, q, np.outer(q.sum(axis=1), q.sum(axis=0)))
    return np.asarray(q / q.sum())


def divergence(
    ideal_weights: Array, ideal_means: Array, ideal_covariances: Array, data: Moments
) -> tuple[float, Array]:
    """``KL(ideal || data)`` and its Gaussian part by cell, (K, G). Empty cells of ``data`` count 0 in the second."""
    K, G = data.weights.shape
    cells = np.zeros((K, G))
    for a in range(G):
        seen = np.flatnonzero(data.weights[:, a] > 0)
        # Tied: the classes of a group differ in their means alone.
        for k in [seen] if data.covariance == "tied" else seen:
            own = data.covariances[a] if data.covariance == "tied" else data.covariances[k, a]
            moved = ideal_covariances[a] if data.covariance == "tied" else ideal_covariances[k, a]
            cells[k, a] = gaussian_kl(ideal_means[k, a], moved, data.means[k, a], own)
    q = usable_weights(data.weights)
    positive = ideal_weights > 0
    prior = np.sum(xlogy(ideal_weights, ideal_weights)) - np.sum(ideal_weights[positive] * np.log(q[positive]))
    return float(prior + np.sum(ideal_weights * cells)), cells


# ------------------------------------------------------------------------------------------------------------------
# The problem of one group, §4
# ------------------------------------------------------------------------------------------------------------------
class GroupProblem:
    """``min over B, m`` of the weighted divergence from the canonical family, seen through ``(B, m)``, to one group.

    With the best shift put in, ``f(B) = <B, Q(B)>/2 - <J, B> - log|det B| + constant``: a linear operator ``Q``, a
    matrix ``J``. Classes of weight 0 (the group's empty cells) take no part; the other weights are normalised.
    """

    def __init__(self, w: Array, nu: Array, C: Array, mu: Array, Sigma: Array) -> None:
        present = w > 0
        self.w = w[present] / w[present].sum()
        self.nu, self.mu = nu[present], mu[present]
        self.tied = C.ndim == 2
        self.C = C if self.tied else C[present]
        self.Sigma = Sigma if self.tied else Sigma[present]
        self.P = np.linalg.inv(self.Sigma)
        self.d = nu.shape[1]
        self.nu_mean, self.mu_mean = self.w @ self.nu, self.w @ self.mu
        nu_c, mu_c = self.nu - self.nu_mean, self.mu - self.mu_mean
        if self.tied:
            self.T = self.C + nu_c.T @ (nu_c * self.w[:, None])
            self.M = mu_c.T @ (nu_c * self.w[:, None])
            self.J = self.P @ self.M
            self.constant = float(np.einsum("k,ki,ij,kj->", self.w, mu_c, self.P, mu_c)) / 2
            average = self.w.sum() * log_det(self.Sigma) - self.w.sum() * log_det(self.C)
        else:
            self.P_bar = np.tensordot(self.w, self.P, axes=1)
            residual = self.mu - self.shift(np.zeros((self.d, self.d)))
            pulled = np.einsum("k,kij,kj->ki", self.w, self.P, residual)
            self.J = pulled.T @ self.nu
            self.constant = float(np.sum(pulled * residual)) / 2
            average = self.w @ log_det(self.Sigma) - self.w @ log_det(self.C)
        self.offset = float(average - self.d) / 2

    def shift(self, B: Array) -> Array:
        """The best ``m`` for this ``B``."""
        if self.tied:
            return np.asarray(self.mu_mean - B @ self.nu_mean)
        pulled = np.einsum("k,kij,kj->i", self.w, self.P, self.mu - self.nu @ B.T)
        return np.asarray(np.linalg.solve(self.P_bar, pulled))

    def quadratic(self, D: Array) -> Array:
        """``Q(D) = sum_k w[k] P[k] (D C[k] + (delta + D nu[k]) nu[k]^T)``."""
        if self.tied:
            return np.asarray(self.P @ D @ self.T)
        moved = self.nu @ D.T
        delta = -np.linalg.solve(self.P_bar, np.einsum("k,kij,kj->i", self.w, self.P, moved))
        result = np.zeros_like(D)
        for k in range(len(self.w)):
            result += self.w[k] * self.P[k] @ (D @ self.C[k] + np.outer(delta + moved[k], self.nu[k]))
        return result

    def objective(self, B: Array) -> float:
        return float(np.sum(B * self.quadratic(B)) / 2 - np.sum(self.J * B) - log_det(B) + self.constant)

    def gradient(self, B: Array) -> Array:
        return np.asarray(self.quadratic(B) - self.J - np.linalg.inv(B).T)

    def divergence(self, B: Array) -> float:
        """``sum_k w[k] KL[k]``, w normalised over the classes that take part."""
        return self.objective(B) + self.offset


def tied_map(problem: GroupProblem, target: Array | None = None) -> Array:
    """§5: the global optimum over all invertible ``B`` with tied covariances; completed so that points move least.

    Points move from the group's coordinates to ``target @ z``, by default to the canonical ``z`` themselves.
    """
    L_sigma = np.linalg.cholesky(problem.Sigma)
    L_t = np.linalg.cholesky(problem.T)
    # L = left right^T has the rank of the class means: its singular vectors come from thin factors.
    root = np.sqrt(problem.w)[:, None]
    left = linalg.solve_triangular(L_sigma, ((problem.mu - problem.mu_mean) * root).T, lower=True)
    right = linalg.solve_triangular(L_t, ((problem.nu - problem.nu_mean) * root).T, lower=True)
    (Q_left, R_left), (Q_right, R_right) = np.linalg.qr(left), np.linalg.qr(right)
    u, s, vt = np.linalg.svd(R_left @ R_right.T)
    rank = int(np.sum(s > RANK_TOLERANCE * max(1.0, s[0])))
    U, V = (Q_left @ u)[:, :rank], (Q_right @ vt.T)[:, :rank]
    X = (U * ((s[:rank] + np.sqrt(s[:rank] ** 2 + 4)) / 2)) @ V.T
    if rank < problem.d:
        # Off the class information any isometry is optimal; the polar factor maximises
        # tr(B C target^T).
        U_off, V_off = (np.linalg.qr(Z, mode="complete")[0][:, rank:] for Z in (U, V))
        image = problem.C if target is None else problem.C @ target.T
        pull = linalg.solve_triangular(L_t, image, lower=True) @ L_sigma
        before, _, after = np.linalg.svd(U_off.T @ pull.T @ V_off)
        X += U_off @ before @ after @ V_off.T
    return np.asarray(linalg.solve_triangular(L_t.T, (L_sigma @ X).T, lower=False).T)


def newton_symmetric(problem: GroupProblem, S: Array | None = None, max_iter: int = 100) -> Array:
    """The convex problem over symmetric positive definite ``B = S``: damped Newton–CG, as in §4.

    The preconditioner is ``X -> S X S / 2``.
    """
    d = problem.d
    S = np.eye(d) if S is None else S.copy()
    J = symmetrised(problem.J)

    def value(candidate: Array) -> float:
        try:
            np.linalg.cholesky(candidate)
        except np.linalg.LinAlgError:
            return np.inf
        return problem.objective(candidate)

    current = value(S)
    for _ in range(max_iter):
        inverse = np.linalg.inv(S)
        gradient = symmetrised(problem.quadratic(S)) - J - inverse
        step = np.zeros((d, d))
        residual = -gradient
        z = S @ residual @ S / 2
        direction = z
        rho = rho_start = float(np.sum(residual * z))
        # rho is (half) the squared Newton decrement in the metric of the preconditioner.
        if rho_start < 1e-26 * max(1.0, d):
            break
        for _ in range(200):
            image = symmetrised(problem.quadratic(direction)) + inverse @ direction @ inverse
            alpha = rho / float(np.sum(direction * image))
            step += alpha * direction
            residual = residual - alpha * image
            z = S @ residual @ S / 2
            rho_next = float(np.sum(residual * z))
            if rho_next <= rho_start * min(1e-2, rho_start) ** 2 or rho_next < 1e-30:
                break
            direction = z + rho_next / rho * direction
            rho = rho_next
        slope = float(np.sum(gradient * step))
        length = 1.0
        while value(S + length * step) > current + 1e-4 * length * slope + 1e-14 * abs(current):
            length /= 2
            if length < 1e-12:
                return S
        S = symmetrised(S + length * step)
        current = value(S)
    return S


def symmetric_map(w: Array, nu: Array, C: Array, mu: Array, Sigma: Array, start: Array | None = None) -> Array:
    """The paper's Theorem 4.1: ``B = S R``, ``R = C[i]^{-1/2}`` of the likeliest class (tied: of the one ``C``)."""
    R = inverse_square_root(C if C.ndim == 2 else C[int(np.argmax(w))])
    problem = GroupProblem(w, nu @ R, R @ C @ R, mu, Sigma)
    return np.asarray(newton_symmetric(problem, start) @ R)


def lbfgs(problem: GroupProblem, B: Array) -> Array:
    """A stationary ``B`` near the given one, in coordinates where both families are white on average."""
    if problem.tied:
        L_sigma, L_s = np.linalg.cholesky(problem.Sigma), np.linalg.cholesky(problem.T)
    else:
        nu_c = problem.nu - problem.nu_mean
        S_bar = np.tensordot(problem.w, problem.C, axes=1) + nu_c.T @ (nu_c * problem.w[:, None])
        L_sigma = np.linalg.inv(np.linalg.cholesky(problem.P_bar)).T
        L_s = np.linalg.cholesky(S_bar)
    d = problem.d
    right = np.linalg.inv(L_s)

    def value_and_slope(flat: Array) -> tuple[float, Array]:
        B = L_sigma @ flat.reshape(d, d) @ right
        if not np.isfinite(log_det(B)):
            return np.inf, np.zeros_like(flat)
        quadratic = problem.quadratic(B)
        value = np.sum(B * quadratic) / 2 - np.sum(problem.J * B) - log_det(B) + problem.constant
        slope = L_sigma.T @ (quadratic - problem.J - np.linalg.inv(B).T) @ right.T
        return float(value), slope.ravel()

    start = np.linalg.solve(L_sigma, B) @ L_s
    result = optimize.minimize(
        value_and_slope,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 5000, "maxfun": 20000, "maxcor": 30, "ftol": 1e-16, "gtol": 1e-10},
    )
    return np.asarray(L_sigma @ result.x.reshape(d, d) @ right)


def paired_start(problem: GroupProblem, i: int, j: int) -> Array:
    """Two classes diagonalised at once, ascending against descending, signs from their means (§6)."""
    alpha, U = linalg.eigh(problem.P[j], problem.P[i])
    beta, V = linalg.eigh(problem.C[j], problem.C[i])
    d = problem.d
    pulled_nu = V.T @ (problem.nu[j] - problem.nu[i])
    pulled_mu = np.linalg.solve(U, problem.mu[j] - problem.mu[i])
    share = problem.w[j] / (problem.w[i] + problem.w[j])
    X = np.zeros((d, d))
    for row in range(d):
        column = d - 1 - row
        sign = 1.0 if pulled_nu[column] * pulled_mu[row] >= 0 else -1.0
        X[row, column] = sign / np.sqrt(1 - share + share * alpha[row] * beta[column])
    return np.asarray(U @ X @ V.T)


def affine_map(problem: GroupProblem, starts: int = 10, start: Array | None = None) -> Array:
    """The best invertible ``B``: §5 with tied covariances, else L-BFGS from many starts (or from ``start`` alone)."""
    if problem.tied:
        return tied_map(problem)
    if start is not None:
        return lbfgs(problem, start)
    averaged = GroupProblem(
        problem.w,
        problem.nu,
        np.tensordot(problem.w, problem.C, axes=1),
        problem.mu,
        np.linalg.inv(problem.P_bar),
    )
    tied = tied_map(averaged)
    candidates = [tied, symmetric_map(problem.w, problem.nu, problem.C, problem.mu, problem.Sigma)]
    pairs = itertools.combinations(range(len(problem.w)), 2)
    candidates += [paired_start(problem, i, j) for i, j in pairs]
    rng = np.random.default_rng(0)
    L_sigma, L_t = np.linalg.cholesky(averaged.Sigma), np.linalg.cholesky(averaged.T)
    for _ in range(starts):
        rotation = np.linalg.qr(rng.standard_normal((problem.d, problem.d)))[0]
        rotation[:, 0] *= rng.choice([-1, 1])
        candidates.append(L_sigma @ rotation @ np.linalg.inv(L_t))
    # Where the problem leaves a rotation open (one class), all ends are equal but for rounding: the first one, which
    # moves points least, stands.
    best, value = candidates[0], np.inf
    for candidate in candidates:
        end = lbfgs(problem, candidate)
        if problem.objective(end) < value - 1e-10:
            best, value = end, problem.objective(end)
    return best


def diagonal_map(w: Array, nu: Array, C: Array, mu: Array, Sigma: Array, map_type: str) -> Array:
    """§8 feature by feature: the diagonal of ``B``, (d,). "affine" takes the sign of the lower objective."""
    present = w > 0
    w, nu, C, mu, P = w[present, None], nu[present], C[present], mu[present], 1 / Sigma[present]
    weight = w / w.sum() * P
    nu_c = nu - np.sum(weight * nu, axis=0) / weight.sum(axis=0)
    mu_c = mu - np.sum(weight * mu, axis=0) / weight.sum(axis=0)
    A = np.sum(weight * (C + nu_c**2), axis=0)
    b = np.sum(weight * nu_c * mu_c, axis=0)
    gamma = (np.abs(b) + np.sqrt(b**2 + 4 * A)) / (2 * A)
    if map_type == "affine":
        return np.asarray(np.where(b >= 0, gamma, -gamma))
    return np.asarray((b + np.sqrt(b**2 + 4 * A)) / (2 * A))


def diagonal_shift(w: Array, nu: Array, mu: Array, Sigma: Array, B: Array) -> Array:
    weight = w[:, None] / np.where(w[:, None] > 0, Sigma, 1.0)
    return np.asarray(np.sum(weight * (mu - B * nu), axis=0) / weight.sum(axis=0))


# ------------------------------------------------------------------------------------------------------------------
# The whole problem, §3 and §7
# ------------------------------------------------------------------------------------------------------------------
@dataclass
class Ideal:
    """What ``nearest_ideal`` finds. Maps are stacked by group, in the order of the groups."""

    class_prior: Array
    group_prior: Array
    weights: Array
    means: Array
    covariances: Array
    kl_divergence: float
    subgroup_divergence: Array
    maps_A: Array
    maps_b: Array
    canonical_means: Array
    canonical_covariances: Array
    objective_path: list[float]
    n_iter: int
    converged: bool
    covariance: str


def product_prior(q: Array, cells: Array, p: Array, r: Array) -> tuple[Array, Array]:
    """§7, step 3, repeated until it stands still. Classes of no weight at all keep none."""
    alive = q.sum(axis=1) > 0
    score = np.log(q[alive]) - cells[alive]
    p, r = p.copy(), r.copy()
    for _ in range(1000):
        log_p = score @ r
        p_next = np.zeros_like(p)
        p_next[alive] = np.exp(log_p - logsumexp(log_p))
        log_r = p_next[alive] @ score
        r_next = np.exp(log_r - logsumexp(log_r))
        moved = np.abs(p_next - p).max() + np.abs(r_next - r).max()
        p, r = p_next, r_next
        if moved < 1e-14:
            break
    return p, r


def pooled(data: Moments) -> Moments:
    """One covariance a group: the cells' averages, by weight."""
    if data.covariance == "tied":
        return data
    share = data.weights / data.weights.sum(axis=0)
    return Moments(data.weights, data.means, np.einsum("ka,kaij->aij", share, data.covariances), "tied")


class _State:
    """The unknowns of §7, and how each is updated with the others held."""

    def __init__(self, data: Moments, map_type: str, pinned: int | None) -> None:
        self.data, self.map_type, self.pinned = data, map_type, pinned
        self.kind = data.covariance
        self.K, self.G = data.weights.shape
        self.d = data.means.shape[2]
        self.present = data.weights > 0
        self.q = usable_weights(data.weights)
        self.p, self.r = self.q.sum(axis=1), self.q.sum(axis=0)
        self.nu = np.zeros((self.K, self.d))
        self.C = np.zeros(0)
        vector = self.kind == "diagonal"
        self.B = np.ones((self.G, self.d)) if vector else np.tile(np.eye(self.d), (self.G, 1, 1))
        self.m = np.zeros((self.G, self.d))
        self.mapped = False
        self.known = np.ones(self.K, dtype=bool)

    def group_covariances(self, a: int) -> Array:
        return self.data.covariances[a] if self.kind == "tied" else self.data.covariances[:, a]

    def take_family_of(self, g: int) -> None:
        """Group g's own class-conditionals as the canonical family; classes it lacks are unknown for now."""
        self.known = self.present[:, g].copy()
        self.nu = self.data.means[:, g].copy()
        self.C = self.group_covariances(g).copy()
        if self.kind != "tied":
            # Classes that take part in nothing must not break a factorisation.
            self.C[~self.known] = np.ones(self.d) if self.kind == "diagonal" else np.eye(self.d)
        if self.pinned is not None and self.kind != "diagonal":
            R = inverse_square_root(self.C if self.kind == "tied" else self.C[self.pinned])
            self.nu, self.C = self.nu @ R, symmetrised(R @ self.C @ R)

    def start_from(self, g: int) -> None:
        """Group g stays as it is, every other group gets its best map into g's family.

        The classes that g lacks then follow from the groups that have them, through the maps that the shared classes
        have decided.
        """
        self.take_family_of(g)
        self.p = self.q[:, g] / self.q[:, g].sum()
        for a in range(self.G):
            if a != g or self.pinned is not None:
                self.update_map(a)
        if not self.known.all():
            self.update_family(~self.known & self.present.any(axis=1))
            self.known[:] = True

    def update_map(self, a: int) -> None:
        w = np.where(self.present[:, a] & self.known, self.p, 0)
        mu, Sigma = self.data.means[:, a], self.group_covariances(a)
        if self.kind == "diagonal":
            self.B[a] = diagonal_map(w, self.nu, self.C, mu, Sigma, self.map_type)
            self.m[a] = diagonal_shift(w, self.nu, mu, Sigma, self.B[a])
            return
        problem = GroupProblem(w, self.nu, self.C, mu, Sigma)
        if self.map_type == "affine":
            self.B[a] = affine_map(problem, start=self.B[a] if self.mapped else None)
        elif self.pinned is None:
            self.B[a] = symmetric_map(w, self.nu, self.C, mu, Sigma)
        else:
            # The pinned canonical covariance is the identity, so B itself is the symmetric factor.
            self.B[a] = newton_symmetric(problem, self.B[a] if self.mapped else None)
        self.m[a] = problem.shift(self.B[a])

    def update_family(self, classes: NDArray[np.bool_]) -> None:
        """§7, step 2, for some classes: exact for the means and for every covariance that is not pinned."""
        K, G, d = self.K, self.G, self.d
        w = np.where(self.present & classes[:, None], np.outer(self.p, self.r), 0)
        if self.kind == "diagonal":
            precision = self.B**2 / np.where(self.present[..., None], self.data.covariances, np.inf)
            target = (self.data.means - self.m) / self.B
            total = np.einsum("ka,kad->kd", w, precision)
            alive = w.sum(axis=1) > 0
            self.nu[alive] = np.einsum("ka,kad,kad->kd", w, precision, target)[alive] / total[alive]
            self.C[alive] = w.sum(axis=1)[alive, None] / total[alive]
            return
        if self.kind == "tied":
            P = np.linalg.inv(self.data.covariances)
            seen = np.array([self.B[a].T @ P[a] @ self.B[a] for a in range(G)])
            if self.pinned is None and self.known.all():
                self.C = symmetrised(np.linalg.inv(np.tensordot(w.sum(axis=0), seen, axes=1) / w.sum()))
            pulled = np.array([(self.data.means[:, a] - self.m[a]) @ P[a] @ self.B[a] for a in range(G)])
            for k in range(K):
                if w[k].sum() > 0:
                    self.nu[k] = np.linalg.solve(np.tensordot(w[k], seen, axes=1), w[k] @ pulled[:, k])
            return
        for k in range(K):
            precision, pulled_k = np.zeros((d, d)), np.zeros(d)
            for a in range(G):
                if w[k, a] > 0:
                    PB = np.linalg.solve(self.data.covariances[k, a], self.B[a])
                    precision += w[k, a] * self.B[a].T @ PB
                    pulled_k += w[k, a] * PB.T @ (self.data.means[k, a] - self.m[a])
            if w[k].sum() > 0:
                self.nu[k] = np.linalg.solve(precision, pulled_k)
                if k != self.pinned:
                    self.C[k] = symmetrised(np.asarray(np.linalg.inv(precision))) * w[k].sum()

    def ideal_means(self) -> Array:
        if self.kind == "diagonal":
            return np.asarray(self.m + self.B * self.nu[:, None])
        return np.asarray(self.m + np.einsum("aij,kj->kai", self.B, self.nu))

    def ideal_covariances(self) -> Array:
        if self.kind == "diagonal":
            return np.asarray(self.B**2 * self.C[:, None])
        if self.kind == "tied":
            return np.array([symmetrised(B @ self.C @ B.T) for B in self.B])
        return np.array([[symmetrised(B @ C @ B.T) for B in self.B] for C in self.C])

    def value(self) -> tuple[float, Array]:
        return divergence(np.outer(self.p, self.r), self.ideal_means(), self.ideal_covariances(), self.data)


def frame(state: _State) -> tuple[Array, Array]:
    """§7: the affine map ``u = F z + f`` after which the data, taken to canonical coordinates, moved least."""
    data, d = state.data, state.d
    q = data.weights / data.weights.sum()
    diagonal = state.kind == "diagonal"
    x_mean, z_mean = np.zeros(d), np.zeros(d)
    zz, xz = np.zeros((d, d)), np.zeros((d, d))
    for a in range(state.G):
        group = q[:, a].sum()
        share = q[:, a] / group
        mean = share @ data.means[:, a]
        centred = data.means[:, a] - mean
        within = state.group_covariances(a)
        if state.kind != "tied":
            within = np.tensordot(share, within, axes=1)
        if diagonal:
            V = np.diag(within + share @ centred**2)
            backward = np.diag(1 / state.B[a])
        else:
            V = within + centred.T @ (centred * share[:, None])
            backward = np.linalg.inv(state.B[a])
        z = backward @ (mean - state.m[a])
        x_mean += group * mean
        z_mean += group * z
        zz += group * (backward @ V @ backward.T + np.outer(z, z))
        xz += group * (V @ backward.T + np.outer(mean, z))
    zz -= np.outer(z_mean, z_mean)
    xz -= np.outer(x_mean, z_mean)
    F = np.diag(np.diag(xz) / np.diag(zz)) if diagonal else np.asarray(np.linalg.solve(zz, xz.T).T, dtype=np.float64)
    return F, x_mean - F @ z_mean


def alternate(
    data: Moments, map_type: str, pinned: int | None, max_iter: int, tol: float
) -> tuple[_State, list[float], bool]:
    """§7 from each group's own family: the best end, the divergence after every round, whether it converged."""
    runs = []
    for g in range(data.weights.shape[1]):
        state = _State(data, map_type, pinned)
        state.start_from(g)
        state.mapped = True
        path = [state.value()[0]]
        step, converged = np.inf, False
        for _ in range(max_iter):
            state.p, state.r = product_prior(state.q, state.value()[1], state.p, state.r)
            state.update_family(np.asarray(state.present.any(axis=1)))
            for a in range(state.G):
                state.update_map(a)
            path.append(state.value()[0])
            # Steps that shrink geometrically leave the rest of a geometric series.
            before, step = step, path[-2] - path[-1]
            rate = min(step / before, 0.9999) if before > 0 else 0.9999
            scale = max(1.0, path[-1])
            if len(path) > 2 and (step * rate / (1 - rate) <= tol * scale or step <= 1e-15 * scale):
                converged = True
                break
        runs.append((path[-1], g, state, path, converged))
    _, _, state, path, converged = min(runs, key=lambda run: run[:2])
    return state, path, converged


def reduced_alternation(
    data: Moments, map_type: str, pinned: int | None, max_iter: int, tol: float
) -> tuple[_State, list[float], bool]:
    """The same for tied covariances and affine maps, in the span of the whitened class-mean differences (§7).

    In coordinates where a group's covariance is the identity and its class means fill the first coordinates, all that
    is decided is decided there.
    """
    assert data.covariance == "tied"
    assert map_type == "affine"
    K, G, d = data.means.shape
    r = min(d, K - 1)
    if r == 0 or r == d:
        return alternate(data, map_type, pinned, max_iter, tol)
    means = np.zeros((K, G, r))
    for a in range(G):
        seen = data.weights[:, a] > 0
        centre = data.weights[:, a] @ data.means[:, a] / data.weights[:, a].sum()
        L = np.linalg.cholesky(data.covariances[a])
        whitened = linalg.solve_triangular(L, (data.means[seen, a] - centre).T, lower=True)
        Q, _ = np.linalg.qr(whitened[:, 1:] - whitened[:, :1])
        means[seen, a, : Q.shape[1]] = (Q.T @ whitened).T
    small = Moments(data.weights, means, np.tile(np.eye(r), (G, 1, 1)), "tied")
    inner, path, converged = alternate(small, map_type, pinned, max_iter, tol)
    state = _State(data, map_type, pinned)
    state.p, state.r = inner.p, inner.r
    state.nu = np.hstack([inner.nu, np.zeros((K, d - r))])
    state.C = linalg.block_diag(inner.C, np.eye(d - r))
    for a in range(G):
        state.update_map(a)
    return state, path, converged


def settled_frame(state: _State) -> tuple[Array, Array]:
    """The least-squares frame together with the isometries that §5 leaves free: each in turn, until both stand still.

    Starts in the coordinates of the heaviest group. The ideal distribution does not change.
    """
    if state.kind != "tied" or state.map_type != "affine":
        return frame(state)
    F = state.B[int(np.argmax(state.data.weights.sum(axis=0)))]
    f = np.zeros(state.d)
    for _ in range(200):
        for a in range(state.G):
            w = np.where(state.present[:, a], state.p, 0)
            problem = GroupProblem(w, state.nu, state.C, state.data.means[:, a], state.data.covariances[a])
            state.B[a] = tied_map(problem, F)
            state.m[a] = problem.shift(state.B[a])
        before = F
        F, f = frame(state)
        if np.linalg.norm(F - before) <= 1e-12 * np.linalg.norm(F):
            break
    return F, f


def nearest_ideal(
    data: Moments,
    *,
    intervention: str = "all_subgroups",
    reference: int | None = None,
    map_type: str = "affine",
    covariance: str = "tied",
    max_iter: int = 2000,
    tol: float = 1e-13,
    reduce: bool = False,
) -> Ideal:
    """The nearest ideal distribution to ``data``, all of it.

    ``tol``: the alternation ends at this estimated distance to its limit, in nats, relative to max(1, KL).
    ``reduce``: tied and affine alone, the alternation works in as few dimensions as there are classes, less one.

    Choices that the mathematics leaves open:

    * *symmetric* fixes ``R = C[i]^{-1/2}`` with ``i`` the class of the largest prior; under *all subgroups* ``C[i]`` is
      held at the identity (tied: the one ``C`` is) and everything else is free;
    * *diagonal*: every map is diagonal; "affine" lets a feature be reflected, "symmetric" does not;
    * an empty cell in a group that has others pulls at no map, and its share of the weights is the product of its
      class's and its group's;
    * a class that the reference group lacks follows from the other groups, after the classes that they share with the
      reference have decided the maps;
    * *all subgroups* starts from each group's own family, and the best end counts.
    """
    if (data.weights.sum(axis=0) <= 0).any():
        raise ValueError("a group has no row in any class")
    if covariance == "tied":
        data = pooled(data)
    assert data.covariance == covariance, (data.covariance, covariance)
    affirmative = intervention == "affirmative"
    if reference is None:
        reference = int(np.argmax(data.weights.sum(axis=0)))
    G = data.weights.shape[1]

    if affirmative:
        state = _State(data, map_type, pinned=None)
        state.start_from(reference)
        path, converged = [state.value()[0]], True
    else:
        pinned = None
        if map_type == "symmetric" and covariance != "diagonal":
            pinned = int(np.argmax(usable_weights(data.weights).sum(axis=1)))
        alternation = reduced_alternation if reduce else alternate
        state, path, converged = alternation(data, map_type, pinned, max_iter, tol)

    diagonal = covariance == "diagonal"
    d = state.d
    F, f = (np.eye(d), np.zeros(d)) if affirmative else settled_frame(state)
    A = np.empty((G, d, d))
    b = np.empty((G, d))
    for a in range(G):
        B = np.diag(state.B[a]) if diagonal else state.B[a]
        A[a] = np.linalg.solve(B.T, F.T).T
        b[a] = f - A[a] @ state.m[a]
    if G == 1 or affirmative:
        unmoved = 0 if G == 1 else reference
        A[unmoved], b[unmoved] = np.eye(d), 0
    canonical_C = np.diag(F) ** 2 * state.C if diagonal else symmetrised(F @ state.C @ F.T)
    kl, cells = state.value()
    return Ideal(
        class_prior=state.p,
        group_prior=state.r,
        weights=np.outer(state.p, state.r),
        means=state.ideal_means(),
        covariances=state.ideal_covariances(),
        kl_divergence=kl,
        subgroup_divergence=cells,
        maps_A=A,
        maps_b=b,
        canonical_means=state.nu @ F.T + f,
        canonical_covariances=canonical_C,
        objective_path=path,
        n_iter=len(path),
        converged=converged,
        covariance=covariance,
    )


def divergence_with_maps(data: Moments, B: Array, m: Array, *, fit_priors: bool = True) -> float:
    """The least divergence of an ideal distribution whose groups have the maps ``z -> m[a] + B[a] z``.

    The canonical family is the best for them (§7, step 2); so are the priors, with which it takes turns (step 3), or
    they are held at the data's own class and group shares.
    """
    state = _State(data, "affine", pinned=None)
    state.take_family_of(0)
    state.known[:] = True
    state.B, state.m = np.array(B), np.array(m)
    before = np.inf
    while True:
        state.update_family(np.asarray(state.present.any(axis=1)))
        value, cells = state.value()
        if not fit_priors or before - value <= 1e-10:
            return value
        state.p, state.r = product_prior(state.q, cells, state.p, state.r)
        before = value


# ------------------------------------------------------------------------------------------------------------------
# From distributions to points, §10; certificates, §11
# ------------------------------------------------------------------------------------------------------------------
def transport(mean0: Array, cov0: Array, mean1: Array, cov1: Array) -> tuple[Array, Array]:
    """The optimal-transport map ``x -> W x + b`` from one Gaussian to another (W symmetric); vectors are variances."""
    if np.ndim(cov0) == 1:
        W = np.diag(np.sqrt(cov1 / cov0))
    else:
        root, inverse = square_root(cov0), inverse_square_root(cov0)
        W = inverse @ square_root(root @ cov1 @ root) @ inverse
    return W, mean1 - W @ mean0


def apply_maps(X: NDArray[np.floating], codes: NDArray[np.integer], A: Array, b: Array) -> NDArray[np.floating]:
    """Each row through its group's map; rows with a negative code unchanged. Works in the precision of ``X``."""
    out = X.copy()
    for g in range(len(A)):
        rows = np.flatnonzero(codes == g)
        out[rows] = X[rows] @ A[g].T.astype(X.dtype) + b[g].astype(X.dtype)
    return out


def log_posterior(U: Array, ideal: Ideal) -> Array:
    """``log P(y = k | u)`` of the canonical family at rows of the common frame, rows by classes."""
    C = ideal.canonical_covariances
    joint = np.column_stack(
        [
            np.log(prior) + gaussian_log_density(U, ideal.canonical_means[k], C if ideal.covariance == "tied" else C[k])
            for k, prior in enumerate(ideal.class_prior)
        ]
    )
    return np.asarray(joint - logsumexp(joint, axis=1, keepdims=True))


def total_variation_bound(kl: Array | float) -> Array:
    """Pinsker's and Bretagnolle–Huber's bound, whichever is smaller."""
    kl = np.maximum(kl, 0)
    return np.asarray(np.minimum(np.sqrt(kl / 2), np.sqrt(-np.expm1(-kl))))


def certificate(kl: float, cells: Array) -> tuple[Array, Array, float]:
    """Bounds for a classifier fair on the ideal: by cell (K, G); equal-opportunity gap by class (K,); accuracy."""
    tv = total_variation_bound(cells)
    gap = np.sort(tv, axis=1)[:, -2:].sum(axis=1) if tv.shape[1] > 1 else np.zeros(len(tv))
    return tv, np.minimum(gap, 1.0), float(total_variation_bound(kl))
