"""The nearest ideal distribution without a family, in NumPy alone: the plain reading of the theory.

Nothing here imports ``fairsteer``. The whole ``S x T`` plan of every group, dense matrices, one interior-point method;
``fairsteer`` solves the same program on a band about the monotone coupling.

Notation: ``s[i]`` posteriors that occur, ``t[j]`` posteriors that the ideal distribution may have, ``pi[a, i]`` law of
the posterior in group ``a``, ``w[a]`` shares of the groups, ``plans[a, i, j]``; all divergences in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, rel_entr

Array = NDArray[np.float64]


@dataclass
class Solution:
    """What solves the program, and how exactly."""

    plans: Array
    costs: Array
    objective: float
    gap: float


def costs_of(s: Array, t: Array) -> Array:
    """kl(t || s) of two Bernoulli distributions, (S, T)."""
    return np.asarray(rel_entr(t, s[:, None]) + rel_entr(1 - t, 1 - s[:, None]))


def group_costs(plans: Array, pi: Array, cost: Array) -> Array:
    """KL of the reweighting of rows, and the expected divergence of the labels, of every group."""
    return np.asarray(rel_entr(plans.sum(axis=2), pi).sum(axis=1) + (plans * cost).sum(axis=(1, 2)))


def solve(pi: Array, s: Array, t: Array, w: Array, rho: Array | None = None, tol: float = 1e-11) -> Solution:
    """Solve for two classes, whose costs are those of the posteriors."""
    return solve_costs(pi, np.broadcast_to(costs_of(s, t), (len(pi), len(s), len(t))), w, rho, tol)


def solve_costs(pi: Array, cost: Array, w: Array, rho: Array | None = None, tol: float = 1e-11) -> Solution:
    """Minimise ``sum_a w[a] cost_a`` over plans whose second marginals are equal (to `rho` if that is given).

    Costs are given by group, (G, S, T).

    Primal-dual interior point with Mehrotra's corrector: potentials ``f[a, i] + g[a, j] <= cost[i, j]`` with slacks
    ``z``, and ``sum_a w[a] g[a] = level`` where the common marginal is free. A row has mass ``pi exp(-f)``.
    """
    free = rho is None
    g = np.zeros((len(pi), cost.shape[2]))
    f = (cost - g[:, None, :]).min(axis=2) - 0.1
    z = cost - f[:, :, None] - g[:, None, :]
    plans = 1 / z
    plans /= plans.sum(axis=(1, 2), keepdims=True)
    common = plans.sum(axis=1).mean(axis=0) if rho is None else rho
    for _ in range(200):
        primal, dual = _bounds(pi, cost, w, plans, g, common, free)
        step = _Step(pi, w, f, plans, z, common, free)
        if primal - dual < tol and step.residual < tol:
            break
        _, _, d_plans, d_z, _ = step.direction(-plans)
        length = min(1.0, _longest(plans, d_plans, z, d_z))
        mu = float((plans * z).mean())
        after = float(((plans + length * d_plans) * (z + length * d_z)).mean())
        centre = (after / mu) ** 3 * mu
        d_f, d_g, d_plans, d_z, d_common = step.direction((centre - d_plans * d_z) / z - plans)
        length = min(1.0, 0.99 * _longest(plans, d_plans, z, d_z))
        f, g, plans, common = f + length * d_f, g + length * d_g, plans + length * d_plans, common + length * d_common
        z = cost - f[:, :, None] - g[:, None, :]
    return Solution(plans, group_costs(plans, pi, cost), primal, primal - dual)


def solve_shares(pi: Array, s: Array, t: Array, share: Array, rounds: int = 500) -> tuple[Solution, Array, float]:
    """Alternate plans and shares ``w ~ share exp(-cost)``, each step exact; solution, shares, divergence in all."""
    w = share
    for _ in range(rounds):
        found = solve(pi, s, t, w)
        after = share * np.exp(-found.costs)
        after /= after.sum()
        moved, w = np.abs(after - w).max(), after
        if moved < 1e-10:
            break
    found = solve(pi, s, t, w)
    return found, w, float(found.objective + rel_entr(w, share).sum())


class _Step:
    """One linearisation: rows eliminated, then the potentials of the targets, all groups at once."""

    def __init__(self, pi: Array, w: Array, f: Array, plans: Array, z: Array, common: Array, free: bool) -> None:
        self.w, self.free = w, free
        self.D = plans / z
        mass = pi * np.exp(-f)
        self.rows = mass - plans.sum(axis=2)
        self.columns = common - plans.sum(axis=1)
        self.total = 1 - common.sum()
        self.residual = max(np.abs(self.rows).sum(axis=1).max(), np.abs(self.columns).sum(axis=1).max())
        self.den = self.D.sum(axis=2) + mass
        self.K = np.stack(
            [np.diag(D.sum(axis=0)) - D.T @ (D / den[:, None]) for D, den in zip(self.D, self.den, strict=True)]
        )

    def direction(self, push: Array) -> tuple[Array, Array, Array, Array, Array]:
        """Towards ``plans * z`` increased by ``push * z``: changes of f, g, plans, z and the common marginal."""
        rows = self.rows - push.sum(axis=2)
        b = self.columns - push.sum(axis=1) - np.einsum("ait,ai->at", self.D, rows / self.den)
        G, T = b.shape
        if self.free:
            # Unknown: all g, the common marginal, and the level; G equations K g - common = b, T, and one.
            n = G * T
            A = np.zeros((n + T + 1, n + T + 1))
            for a in range(G):
                block = slice(a * T, (a + 1) * T)
                A[block, block] = self.w[a] * self.K[a]
                A[block, n : n + T] = A[n : n + T, block] = -self.w[a] * np.eye(T)
            A[n : n + T, -1] = A[-1, n : n + T] = 1.0
            right = np.concatenate([(self.w[:, None] * b).ravel(), np.zeros(T), [self.total]])
            found = np.linalg.solve(A, right)
            d_g, d_common = found[:n].reshape(G, T), found[n : n + T]
        else:
            d_g, d_common = np.stack([np.linalg.solve(K, one) for K, one in zip(self.K, b, strict=True)]), np.zeros(T)
        d_f = (rows - np.einsum("ait,at->ai", self.D, d_g)) / self.den
        d_z = -d_f[:, :, None] - d_g[:, None, :]
        return d_f, d_g, push - self.D * d_z, d_z, d_common


def _longest(plans: Array, d_plans: Array, z: Array, d_z: Array) -> float:
    return float(1 / max((-d_plans / plans).max(), (-d_z / z).max(), 1e-300))


def _bounds(pi: Array, cost: Array, w: Array, plans: Array, g: Array, common: Array, free: bool) -> tuple[float, float]:
    primal = w @ group_costs(plans, pi, cost)
    with np.errstate(divide="ignore"):
        own = -logsumexp(np.log(pi) - (cost - g[:, None, :]).min(axis=2), axis=1)
    dual = w @ own + ((w @ g).min() if free else w @ (g @ common))
    return float(primal), float(dual)
