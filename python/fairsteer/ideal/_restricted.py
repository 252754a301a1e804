"""The nearest ideal distribution that maps without mixing of features reach: translations, and scales of each feature.

Block-coordinate descent as in the core (theory: alternate the groups' maps, the canonical family and the priors, each
exactly), with the group's problem restricted: with ``B = I`` the shift alone is free, with ``B = diag(beta)`` the
objective is a strictly convex function of ``beta > 0``, minimised by damped Newton steps.
"""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, cholesky, solve
from scipy.special import logsumexp, softmax

from fairsteer._utils.types import Doubles

# Newton steps of one group's problem; a self-concordant function of this kind needs a dozen.
_NEWTON_STEPS = 100


class RestrictedSolution(NamedTuple):
    """Maps ``x = scale * z + shift`` from the canonical family, by group, and that family."""

    scale: Doubles
    """(G, d); ones for translations."""
    shift: Doubles
    """(G, d)."""
    means: Doubles
    """Canonical, (K, d)."""
    covariances: Doubles
    """Canonical: (1, d, d), (K, d, d) or (K, d)."""
    class_prior: Doubles
    group_prior: Doubles
    subgroup_divergence: Doubles
    """Nats, (K, G); 0 for cells without rows."""
    path: Doubles
    converged: bool


class _Family(NamedTuple):
    means: Doubles
    covariances: Doubles


def solve_restricted(
    weights: Doubles,
    means: Doubles,
    covariances: Doubles,
    *,
    scales: bool,
    reference: int | None,
    max_iter: int,
    tol: float,
    max_time: float | None = None,
) -> RestrictedSolution:
    """Find the nearest ideal distribution that translations, or translations and scales, of the groups reach.

    Parameters
    ----------
    weights : ndarray of shape (K, G)
        Weights of the cells; 0 for a cell without rows. Every group has rows.
    means : ndarray of shape (K, G, d)
        Means.
    covariances : ndarray of shape (1, G, d, d), (K, G, d, d) or (K, G, d)
        Positive definite: the tied model, the full one, or variances.
    scales : bool
        Whether features are scaled, by positive numbers, or only shifted.
    reference : int or None
        The group that stays (``"affirmative"``); None: all move.
    max_iter : int
        Rounds.
    tol : float
        Stop when a round gains less, in nats, relative to max(1, KL).
    max_time : float or None, default=None
        Seconds after which no further round begins.

    Returns
    -------
    RestrictedSolution
        In nats and the units of the features.
    """
    problem = _Problem(weights, means, covariances, scales)
    if reference is not None:
        return problem.affirmative(reference)
    return problem.all_subgroups(max_iter, tol, np.inf if max_time is None else time.monotonic() + max_time)


class _Dense:
    """What is done with covariance matrices."""

    @staticmethod
    def invert(S: Doubles) -> tuple[Doubles, float]:
        """Inverse and log-determinant."""
        factor = cholesky(S, lower=True)
        inverse = cho_solve((factor, True), np.eye(len(S)))
        return (inverse + inverse.T) / 2, float(2 * np.log(np.diag(factor)).sum())

    @staticmethod
    def log_det(S: Doubles) -> float:
        return float(np.linalg.slogdet(S)[1])

    @staticmethod
    def times(P: Doubles, x: Doubles) -> Doubles:
        return np.asarray(P @ x)

    @staticmethod
    def solve(P: Doubles, x: Doubles) -> Doubles:
        return np.asarray(solve(P, x, assume_a="pos"))

    @staticmethod
    def scaled(P: Doubles, scale: Doubles) -> Doubles:
        return np.asarray(scale[:, None] * P * scale)

    @staticmethod
    def diagonal(S: Doubles) -> Doubles:
        return np.diag(S)

    @staticmethod
    def dense(S: Doubles) -> Doubles:
        return S


class _Diagonal:
    """The same with variances alone."""

    @staticmethod
    def invert(S: Doubles) -> tuple[Doubles, float]:
        return 1 / S, float(np.log(S).sum())

    @staticmethod
    def log_det(S: Doubles) -> float:
        return float(np.log(S).sum())

    @staticmethod
    def times(P: Doubles, x: Doubles) -> Doubles:
        return np.asarray(P * x)

    @staticmethod
    def solve(P: Doubles, x: Doubles) -> Doubles:
        return np.asarray(x / P)

    @staticmethod
    def scaled(P: Doubles, scale: Doubles) -> Doubles:
        return np.asarray(scale**2 * P)

    @staticmethod
    def diagonal(S: Doubles) -> Doubles:
        return S

    @staticmethod
    def dense(S: Doubles) -> Doubles:
        return np.diag(S)


class _Problem:
    def __init__(self, weights: Doubles, means: Doubles, covariances: Doubles, scales: bool) -> None:
        self.K, self.G, self.d = means.shape
        self.seen = weights > 0
        q = weights / weights.sum()
        # A cell without rows takes the weight of independence: it then says nothing about the priors.
        q = np.where(self.seen, q, q.sum(axis=1, keepdims=True) * q.sum(axis=0))
        self.q: Doubles = q / q.sum()
        self.means, self.covariances, self.scales = means, covariances, scales
        self.tied = covariances.ndim == 4 and len(covariances) == 1 and self.K > 1
        self.algebra = _Diagonal if covariances.ndim == 3 else _Dense
        self.precisions = np.empty_like(covariances)
        self.log_dets = np.empty(covariances.shape[:2])
        for index in np.ndindex(covariances.shape[:2]):
            if not self.tied and not self.seen[index]:
                self.precisions[index], self.log_dets[index] = 0, 0
                continue
            self.precisions[index], self.log_dets[index] = self.algebra.invert(covariances[index])

    def precision(self, k: Any, a: Any) -> Doubles:
        return np.asarray(self.precisions[0 if self.tied else k, a])

    # ---- the two interventions

    def affirmative(self, reference: int) -> RestrictedSolution:
        p = self.q[:, reference] / self.q[:, reference].sum()
        log_p = np.log(self.q[:, reference]) - np.log(self.q[:, reference].sum())
        r = self.q.sum(axis=0)
        scale, shift = np.ones((self.G, self.d)), np.zeros((self.G, self.d))
        covariances = self.covariances[:, reference]
        family = _Family(self.means[:, reference], covariances)
        known = self.seen[:, reference]
        for a in range(self.G):
            if a != reference:
                scale[a], shift[a] = self.fit_group(a, log_p, family, known)
        if not known.all():
            # Classes that the reference lacks follow from the other groups, through maps that shared classes decided.
            found = self.fit_family(p, r, scale, shift)
            means = np.where(known[:, None], family.means, found.means)
            shape = (-1,) + (1,) * (covariances.ndim - 1)
            spread = covariances if self.tied else np.where(known.reshape(shape), covariances, found.covariances)
            family = _Family(means, spread)
        cells = self.divergences(family, scale, shift)
        value = self.objective(p, r, cells)
        return RestrictedSolution(scale, shift, *family, p, r, cells, np.array([value]), converged=True)

    def all_subgroups(self, max_iter: int, tol: float, deadline: float) -> RestrictedSolution:
        log_p, log_r = np.log(self.q.sum(axis=1)), np.log(self.q.sum(axis=0))
        scale, shift = self.start()
        family = self.fit_family(np.exp(log_p), np.exp(log_r), scale, shift)
        cells = self.divergences(family, scale, shift)
        path = [self.objective(np.exp(log_p), np.exp(log_r), cells)]
        everything = np.ones(self.K, dtype=bool)
        converged = False
        for _ in range(max_iter):
            if time.monotonic() > deadline:
                break
            log_p, log_r = self.fit_priors(log_p, log_r, cells)
            p, r = np.exp(log_p), np.exp(log_r)
            family = self.fit_family(p, r, scale, shift)
            for a in range(self.G):
                scale[a], shift[a] = self.fit_group(a, log_p, family, everything, scale[a])
            cells = self.divergences(family, scale, shift)
            path.append(self.objective(p, r, cells))
            if path[-2] - path[-1] <= tol * max(1.0, abs(path[-1])):
                converged = True
                break
        return RestrictedSolution(
            scale, shift, *family, np.exp(log_p), np.exp(log_r), cells, np.minimum.accumulate(path), converged=converged
        )

    def start(self) -> tuple[Doubles, Doubles]:
        """Standardised means, and spreads of every group relative to their geometric mean: free of any order."""
        p = self.q.sum(axis=1)
        scale = np.ones((self.G, self.d))
        share = p[:, None] * self.seen
        share /= share.sum(axis=0)
        if self.scales:
            spread = np.empty((self.G, self.d))
            for a in range(self.G):
                spread[a] = sum(
                    share[k, a] * self.algebra.diagonal(self.covariances[0 if self.tied else k, a])
                    for k in range(self.K)
                )
            logs = np.log(spread) / 2
            scale = np.exp(logs - self.q.sum(axis=0) @ logs)
        return scale, np.einsum("ka,kaj->aj", share, self.means)

    # ---- blocks

    def fit_group(
        self, a: int, log_p: Doubles, family: _Family, known: npt.NDArray[np.bool_], start: Doubles | None = None
    ) -> tuple[Doubles, Doubles]:
        shared = self.seen[:, a] & known
        if not shared.any():
            msg = "a group shares no class with the reference group"
            raise ValueError(msg)
        # Within the classes that the group has, so that none is left without weights where a prior vanishes.
        w = np.exp(np.where(shared, log_p - log_p[shared].max(), -np.inf))
        w /= w.sum()
        classes = np.flatnonzero(w)
        # About averages, so that a common offset costs no digits.
        own, canonical = w @ self.means[:, a], w @ family.means
        mu, nu = self.means[:, a] - own, family.means - canonical
        total: Doubles = np.sum([w[k] * self.precision(k, a) for k in classes], axis=0)
        beta = np.ones(self.d)
        if self.scales:
            beta = self._scale(a, w, mu, nu, family, total, start)
        pulls = [w[k] * self.algebra.times(self.precision(k, a), mu[k] - beta * nu[k]) for k in classes]
        return beta, own + self.algebra.solve(total, np.sum(pulls, axis=0)) - beta * canonical

    def _scale(
        self,
        a: int,
        w: Doubles,
        mu: Doubles,
        nu: Doubles,
        family: _Family,
        total: Doubles,
        start: Doubles | None,
    ) -> Doubles:
        """Minimise ``beta H beta / 2 - g beta - sum log beta``, the shift eliminated; `start` is near."""
        d = self.d
        H, g, cross, pull = np.zeros((d, d)), np.zeros(d), np.zeros((d, d)), np.zeros(d)
        for k in np.flatnonzero(w):
            P, C = (self.algebra.dense(S) for S in (self.precision(k, a), family.covariances[0 if self.tied else k]))
            H += w[k] * P * (C + np.outer(nu[k], nu[k]))
            g += w[k] * nu[k] * (P @ mu[k])
            cross += w[k] * P * nu[k]
            pull += w[k] * (P @ mu[k])
        solved = np.linalg.solve(self.algebra.dense(total), np.column_stack([cross, pull]))
        H -= cross.T @ solved[:, :d]
        g -= cross.T @ solved[:, d]
        # In units in which H has a unit diagonal.
        unit = 1 / np.sqrt(np.diag(H))
        H, g = H * np.outer(unit, unit), g * unit
        x = (g + np.sqrt(g**2 + 4)) / 2 if start is None else start / unit
        for _ in range(_NEWTON_STEPS):
            gradient = H @ x - g - 1 / x
            step = np.linalg.solve(H + np.diag(1 / x**2), gradient)
            decrement = math.sqrt(max(float(gradient @ step), 0.0))
            x = x - step / (1 + decrement) if decrement > 0.25 else x - step
            if decrement < 1e-12 * math.sqrt(d):
                break
        return np.asarray(x * unit)

    def fit_family(self, p: Doubles, r: Doubles, scale: Doubles, shift: Doubles) -> _Family:
        target = np.where(self.seen, np.outer(p, r), 0.0)
        nu = np.empty((self.K, self.d))
        shape = self.covariances.shape[2:]
        precisions = np.zeros((1 if self.tied else self.K, *shape))
        for k in range(self.K):
            # Of a class the groups' shares alone count, however small its prior; if they vanish too, all alike.
            share = np.where(self.seen[k], r, 0.0)
            share = share / share.sum() if share.any() else self.seen[k] / self.seen[k].sum()
            lhs, rhs = np.zeros(shape), np.zeros(self.d)
            for a in np.flatnonzero(share):
                P = self.precision(k, a)
                lhs += share[a] * self.algebra.scaled(P, scale[a])
                rhs += share[a] * scale[a] * self.algebra.times(P, self.means[k, a] - shift[a])
            nu[k] = self.algebra.solve(lhs, rhs)
            if not self.tied:
                precisions[k] = lhs
        if self.tied:
            shares = target.sum(axis=0) / target.sum()
            precisions[0] = sum(shares[a] * self.algebra.scaled(self.precision(0, a), scale[a]) for a in range(self.G))
        return _Family(nu, np.stack([self.algebra.invert(P)[0] for P in precisions]))

    def divergences(self, family: _Family, scale: Doubles, shift: Doubles) -> Doubles:
        cells = np.zeros((self.K, self.G))
        log_dets = [self.algebra.log_det(C) for C in family.covariances]
        for k, a in np.argwhere(self.seen):
            P, c = self.precision(k, a), 0 if self.tied else k
            residual = shift[a] + scale[a] * family.means[k] - self.means[k, a]
            trace = np.sum(self.algebra.scaled(P * family.covariances[c], scale[a]))
            log_ratio = self.log_dets[c, a] - log_dets[c] - 2 * np.log(scale[a]).sum()
            distance = residual @ self.algebra.times(P, residual)
            cells[k, a] = max(0.5 * (trace + distance - self.d + log_ratio), 0.0)
        return cells

    def objective(self, p: Doubles, r: Doubles, cells: Doubles) -> float:
        target = np.outer(p, r)
        positive = target > 0
        ratio = np.log(np.where(positive, target, 1.0)) - np.log(self.q)
        return float(np.sum(np.where(positive, target * (ratio + cells), 0.0)))

    def fit_priors(self, log_p: Doubles, log_r: Doubles, cells: Doubles) -> tuple[Doubles, Doubles]:
        energy = np.log(self.q) - cells
        for _ in range(1000):
            before = log_p
            log_p = energy @ softmax(log_r)
            log_p = log_p - logsumexp(log_p)
            log_r = energy.T @ np.exp(log_p)
            log_r = log_r - logsumexp(log_r)
            if np.abs(np.exp(log_p) - np.exp(before)).sum() < 1e-15:
                break
        return log_p, log_r


def in_common_frame(
    found: RestrictedSolution, weights: Doubles, means: Doubles, covariances: Doubles, *, scales: bool, held: int | None
) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    """Find maps of the rows into the frame that moves them least, and the canonical family there.

    Parameters
    ----------
    found : RestrictedSolution
        As solved.
    weights, means, covariances : ndarray
        As given to `solve_restricted`.
    scales : bool
        Whether the frame may scale features.
    held : int or None
        Group whose own coordinates the frame is; None: the least displacement of all rows decides.

    Returns
    -------
    linear : ndarray of shape (G, d)
        Diagonals of the maps.
    offset : ndarray of shape (G, d)
        Shifts of the maps.
    canonical_means, canonical_covariances : ndarray
        In the common frame, shaped as in the solution.
    """
    if held is not None:
        frame, origin = found.scale[held], found.shift[held]
    else:
        # Pooled regression of every feature on its canonical coordinate.
        w = weights / weights.sum()
        dense = covariances.ndim == 4
        variances = np.diagonal(covariances, axis1=-2, axis2=-1) if dense else covariances
        z_means = (means - found.shift) / found.scale
        centre, z_centre = np.einsum("ka,kaj->j", w, means), np.einsum("ka,kaj->j", w, z_means)
        together = variances / found.scale + (means - centre) * (z_means - z_centre)
        spread = variances / found.scale**2 + (z_means - z_centre) ** 2
        frame = (
            np.einsum("ka,kaj->j", w, together) / np.einsum("ka,kaj->j", w, spread) if scales else np.ones(len(centre))
        )
        origin = centre - frame * z_centre
    linear = frame / found.scale
    family = found.covariances
    factor = np.outer(frame, frame) if family.ndim == 3 else frame**2
    return linear, origin - linear * found.shift, found.means * frame + origin, family * factor
