"""Generic solvers for the problem of one group with full covariances, each in the form that suits it best."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg, optimize, sparse

from benchmarks import reference
from benchmarks.reference import Array, GroupProblem


def group_problem(data: reference.Moments, canonical: int, moved: int) -> GroupProblem:
    """The problem of group ``moved`` when group ``canonical`` is left as it is (§4)."""
    w = data.weights[:, canonical] / data.weights[:, canonical].sum()
    return GroupProblem(
        w, data.means[:, canonical], data.covariances[:, canonical], data.means[:, moved], data.covariances[:, moved]
    )


def between_and_within(problem: GroupProblem) -> Array:
    """Average of the canonical covariances and the scatter of the canonical means."""
    centred = problem.nu - problem.nu_mean
    return np.asarray(np.tensordot(problem.w, problem.C, axes=1) + centred.T @ (centred * problem.w[:, None]))


# ---- symmetric: a conic solver


def in_symmetric_coordinates(problem: GroupProblem) -> GroupProblem:
    """The same problem with the map of *symmetric* symmetric: ``R`` taken into the canonical family (§4)."""
    R = reference.inverse_square_root(problem.C[int(np.argmax(problem.w))])
    return GroupProblem(problem.w, problem.nu @ R, R @ problem.C @ R, problem.mu, problem.Sigma)


class ConicSymmetric:
    """The convex program of *symmetric* for cvxpy, as a quadratic form in the d(d + 1)/2 entries of one matrix.

    The shift is eliminated, and the coordinates are those in which averaged covariances would give the identity: next
    to the program as one writes it down, with a matrix variable and a sum of squares a class, that saves Clarabel a
    factor of 10 and more and SCS one of 20 at 32 features.
    """

    def __init__(self, problem: GroupProblem) -> None:
        import cvxpy

        symmetric = in_symmetric_coordinates(problem)
        root = reference.square_root(symmetric.P_bar)
        inverse_root = reference.inverse_square_root(symmetric.P_bar)
        T = between_and_within(symmetric)
        middle = reference.symmetrised(
            inverse_root @ reference.square_root(root @ np.linalg.inv(T) @ root) @ inverse_root
        )
        W = reference.square_root(middle)
        back = np.linalg.inv(W)
        self._problem = GroupProblem(
            symmetric.w, symmetric.nu @ W, W @ symmetric.C @ W, symmetric.mu @ back, back @ symmetric.Sigma @ back
        )
        Q, linear, unpack = self._quadratic_form()
        d = self._problem.d
        entries = cvxpy.Variable(len(linear))
        S = cvxpy.reshape(unpack @ entries, (d, d), order="C")
        objective = cvxpy.quad_form(entries, Q, assume_PSD=True) / 2 - linear @ entries - cvxpy.log_det(S)
        self.program = cvxpy.Problem(cvxpy.Minimize(objective))
        self.solver_seconds: list[float] = []

    def _quadratic_form(self) -> tuple[Array, Array, Any]:
        problem, d = self._problem, self._problem.d
        rows, columns = np.tril_indices(d)
        n = np.arange(len(rows))
        off = rows != columns
        places = np.concatenate([rows * d + columns, (columns * d + rows)[off]])
        unpack = sparse.csr_matrix((np.ones(len(places)), (places, np.concatenate([n, n[off]]))), shape=(d * d, len(n)))
        full = np.zeros((d * d, d * d))
        shifted = np.zeros((d * d, d))
        for w, P, C, nu in zip(problem.w, problem.P, problem.C, problem.nu, strict=True):
            full += w * np.kron(P, C + np.outer(nu, nu))
            shifted += w * np.kron(P, nu[:, None])
        full -= shifted @ np.linalg.solve(problem.P_bar, shifted.T)
        Q = reference.symmetrised(unpack.T @ (unpack.T @ full).T)
        return Q, np.asarray(unpack.T @ problem.J.ravel()), unpack

    def solve(self, solver: str, **options: Any) -> float:
        """The divergence; the seconds that the solver itself reports are added to ``solver_seconds``."""
        self.program.solve(solver=solver, warm_start=False, **options)
        if self.program.status != "optimal":
            raise RuntimeError(f"{solver}: {self.program.status}")
        stats = self.program.solver_stats
        self.solver_seconds.append(stats.solve_time + (stats.setup_time or 0.0))
        return float(self.program.value + self._problem.constant + self._problem.offset)


def symmetric_gap(problem: GroupProblem, B: Array) -> float:
    """A bound on how far a symmetric map is above the optimum, in nats; infinite when the bound does not hold yet.

    The objective is self-concordant and its Hessian is at least that of ``-log det``, so ``<G, S G S>`` bounds the
    squared Newton decrement, and below 0.68 the decrement's square bounds the gap (Boyd and Vandenberghe, 9.6.3).
    """
    R = reference.inverse_square_root(problem.C[int(np.argmax(problem.w))])
    symmetric = in_symmetric_coordinates(problem)
    S = B @ np.linalg.inv(R)
    G = reference.symmetrised(symmetric.gradient(S))
    squared = float(np.sum(G * (S @ G @ S)))
    return squared if squared <= 0.68**2 else np.inf


# ---- affine: L-BFGS


class Diagonalised:
    """Two classes where all four matrices are diagonal (§6), in units that make both families white on average.

    A value and its gradient cost one LU factorisation and elementwise work: the white coordinates of `Whitened`,
    without its products of matrices. The scatter between the class means is a diagonal matrix and one of rank one,
    and so is its inverse root.
    """

    def __init__(self, problem: GroupProblem) -> None:
        alpha, self.U = linalg.eigh(problem.P[1], problem.P[0])
        beta, self.V = linalg.eigh(problem.C[1], problem.C[0])
        w0, w1 = problem.w
        left, right = 1 / np.sqrt(w0 + w1 * alpha), 1 / np.sqrt(w0 + w1 * beta)
        self.unit = np.multiply.outer(left, right)
        self.curvature = self.unit * (w0 + w1 * np.multiply.outer(alpha, beta))
        self.weight = w0 * w1 * alpha / (w0 + w1 * alpha)
        self.nu = self.V.T @ (problem.nu[1] - problem.nu[0])
        self.mu = np.linalg.solve(self.U, problem.mu[1] - problem.mu[0])
        scatter = w0 * w1 * np.sum((right * self.nu) ** 2)
        norm = np.linalg.norm(right * self.nu)
        self.direction = right * self.nu / norm if norm > 0 else np.zeros_like(self.nu)
        self.stretch = 1 / np.sqrt(1 + scatter) - 1
        self.d = problem.d
        log_det_bases = np.linalg.slogdet(self.U)[1] + np.linalg.slogdet(self.V)[1]
        self.constant = problem.offset - log_det_bases

    def _stretched(self, Y: Array, by: float) -> Array:
        return np.asarray(Y + np.multiply.outer(by * (Y @ self.direction), self.direction))

    def coordinates(self, B: Array) -> Array:
        X = np.linalg.solve(self.V, np.linalg.solve(self.U, B).T).T
        return self._stretched(X / self.unit, -self.stretch / (1 + self.stretch))

    def matrix(self, Y: Array) -> Array:
        return np.asarray(self.U @ (self.unit * self._stretched(Y, self.stretch)) @ self.V.T)

    def paired(self) -> Array:
        """The sorted pairing, ascending against descending, with signs from the means; a map, not coordinates."""
        X = np.zeros((self.d, self.d))
        rows, columns = np.arange(self.d), np.arange(self.d)[::-1]
        sign = np.where(self.nu[columns] * self.mu[rows] >= 0, 1.0, -1.0)
        X[rows, columns] = sign * np.sqrt((self.unit / self.curvature)[rows, columns])
        return np.asarray(self.U @ X @ self.V.T)

    def __call__(self, flat: Array) -> tuple[float, Array]:
        stretched = self._stretched(flat.reshape(self.d, self.d), self.stretch)
        X = self.unit * stretched
        inverse, log_det = inverse_and_log_det(X)
        if inverse is None:
            return np.inf, np.zeros_like(flat)
        residual = X @ self.nu - self.mu
        pull = self.weight * residual
        # The curvature holds one factor of the unit, which the slope needs anyway.
        slope = self.curvature * X
        value = 0.5 * (np.vdot(stretched, slope) + pull @ residual) - log_det + self.constant
        slope += self.unit * (np.multiply.outer(pull, self.nu) - inverse.T)
        return float(value), self._stretched(slope, self.stretch).ravel()


class Whitened:
    """Any number of classes in coordinates where both families are white on average (§6)."""

    def __init__(self, problem: GroupProblem) -> None:
        self.left = np.linalg.inv(np.linalg.cholesky(problem.P_bar)).T
        self.right = np.linalg.cholesky(between_and_within(problem))
        self.d = problem.d
        backward = np.linalg.inv(self.right)
        nu = (problem.nu - problem.nu_mean) @ backward.T
        scaled = problem.w[:, None, None]
        self.P = scaled * (self.left.T @ problem.P @ self.left)
        self.C = backward @ problem.C @ backward.T
        self.nu = nu
        # The best shift takes the average residual out: sum_k w[k] P[k] is the identity here.
        residual = np.linalg.solve(self.left, (problem.mu - problem.mu_mean).T).T
        self.mu = residual - np.einsum("kij,kj->i", self.P, residual)
        self.constant = problem.offset - np.linalg.slogdet(self.left)[1] + np.log(np.diag(self.right)).sum()

    def coordinates(self, B: Array) -> Array:
        return np.asarray(np.linalg.solve(self.left, B) @ self.right)

    def matrix(self, X: Array) -> Array:
        return np.asarray(self.left @ np.linalg.solve(self.right.T, X.T).T)

    def __call__(self, flat: Array) -> tuple[float, Array]:
        X = flat.reshape(self.d, self.d)
        inverse, log_det = inverse_and_log_det(X)
        if inverse is None:
            return np.inf, np.zeros_like(flat)
        moved = self.nu @ X.T
        residual = moved - np.einsum("kij,kj->i", self.P, moved) - self.mu
        pull = np.einsum("kij,kj->ki", self.P, residual)
        slope = pull.T @ self.nu
        value = 0.5 * np.vdot(pull, residual) - log_det + self.constant
        # A product at a time: K of them at once would not fit a cache.
        for P, C in zip(self.P, self.C, strict=True):
            weighted = P @ (X @ C)
            value += 0.5 * np.vdot(X, weighted)
            slope += weighted
        slope -= inverse.T
        return float(value), slope.ravel()


class WhitenedTied:
    """The tied problem where both covariances are the identity: ``|Y|^2 / 2 - <Y, L> - log|det Y|`` (§5).

    A value and its gradient cost one LU factorisation and elementwise work.
    """

    def __init__(self, problem: GroupProblem) -> None:
        self._L_sigma = np.linalg.cholesky(problem.Sigma)
        self._L_t = np.linalg.cholesky(problem.T)
        left = linalg.solve_triangular(self._L_sigma, problem.M, lower=True)
        self._L = linalg.solve_triangular(self._L_t, left.T, lower=True).T
        self.d = problem.d
        log_dets = np.log(np.diag(self._L_t)).sum() - np.log(np.diag(self._L_sigma)).sum()
        self.constant = problem.constant + problem.offset + log_dets

    def matrix(self, Y: Array) -> Array:
        return np.asarray(linalg.solve_triangular(self._L_t.T, (self._L_sigma @ Y).T, lower=False).T)

    def __call__(self, flat: Array) -> tuple[float, Array]:
        Y = flat.reshape(self.d, self.d)
        inverse, log_det = inverse_and_log_det(Y)
        if inverse is None:
            return np.inf, np.zeros_like(flat)
        value = 0.5 * np.vdot(Y, Y) - np.vdot(Y, self._L) - log_det + self.constant
        slope = Y - self._L
        slope -= inverse.T
        return float(value), slope.ravel()


def inverse_and_log_det(X: Array) -> tuple[Array | None, float]:
    factors, pivots, info = linalg.lapack.dgetrf(X)
    diagonal = np.abs(np.diag(factors))
    if info != 0 or not diagonal.all():
        return None, -np.inf
    inverse, _ = linalg.lapack.dgetri(factors, pivots, overwrite_lu=1)
    return inverse, float(np.log(diagonal).sum())


@dataclass(frozen=True)
class Descent:
    """A run of L-BFGS."""

    B: Array
    value: float
    n_iter: int
    trace: list[tuple[float, float]]  # seconds since the start, lowest value so far

    def seconds_to(self, value: float) -> float | None:
        """When the lowest value so far first was at most ``value``."""
        return next((seconds for seconds, lowest in self.trace if lowest <= value), None)


def lbfgs(objective: Diagonalised | Whitened | WhitenedTied, start: Array, *, max_iter: int, memory: int) -> Descent:
    """SciPy's L-BFGS-B for as many iterations, from ``start`` in the objective's coordinates."""
    trace: list[tuple[float, float]] = []
    begin = time.perf_counter()

    def traced(flat: Array) -> tuple[float, Array]:
        value, slope = objective(flat)
        trace.append((time.perf_counter() - begin, min(value, trace[-1][1] if trace else np.inf)))
        return value, slope

    result = optimize.minimize(
        traced,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iter, "maxfun": 10 * max_iter, "maxcor": memory, "ftol": 1e-14, "gtol": 1e-9},
    )
    return Descent(objective.matrix(result.x.reshape(start.shape)), float(result.fun), int(result.nit), trace)


def starts(problem: GroupProblem) -> dict[str, Callable[[], Array]]:
    """Maps to descend from: the closed form for averaged covariances, *symmetric*, and for two classes the pairing."""

    def tied() -> Array:
        averaged = GroupProblem(
            problem.w,
            problem.nu,
            np.tensordot(problem.w, problem.C, axes=1),
            problem.mu,
            np.linalg.inv(problem.P_bar),
        )
        return reference.tied_map(averaged)

    def symmetric() -> Array:
        return reference.symmetric_map(problem.w, problem.nu, problem.C, problem.mu, problem.Sigma)

    def paired() -> Array:
        return Diagonalised(problem).paired()

    return {"tied": tied, "symmetric": symmetric, **({"pairing": paired} if len(problem.w) == 2 else {})}
