"""The nearest ideal distribution without a family (theory: ideal distributions of posteriors), in NumPy alone.

Nothing here imports ``fairsteer``. The plain reading: the whole ``S x T`` plan of every group, dense matrices, one
interior-point method. ``fairsteer`` solves the same program on a band along the monotone coupling.

Notation: ``s[i]`` posteriors that occur, ``t[j]`` posteriors that the ideal distribution may have, ``pi[a, i]`` law of
the posterior in group ``a``, ``r[a]`` shares of the groups, ``gamma[a, i, j]`` plan of group ``a``; all in nats.
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
    group_prior: Array
    costs: Array
    objective: float
    gap: float


def costs_of(s: Array, t: Array) -> Array:
    """kl(t || s) of two Bernoulli distributions, (S, T)."""
    return np.asarray(rel_entr(t, s[:, None]) + rel_entr(1 - t, 1 - s[:, None]))


def group_costs(plans: Array, pi: Array, cost: Array) -> Array:
    """KL of the reweighting of rows, and the expected divergence of the labels, of every group."""
    return np.asarray(rel_entr(plans.sum(axis=2), pi).sum(axis=1) + (plans * cost).sum(axis=(1, 2)))


def _best_f(cost: Array, g: Array) -> Array:
    return np.asarray((cost[None] - g[:, None, :]).min(axis=2))


def solve(
    pi: Array, s: Array, t: Array, w: Array, rho: Array | None = None, tol: float = 1e-11, verbose: bool = False
) -> Solution:
    """Minimise ``sum_a w[a] cost_a`` over plans whose second marginals are equal (to `rho` if that is given).

    Primal-dual interior point: dual variables ``f + g <= cost``, with ``sum_a w[a] g[a] = lambda`` where the common
    marginal is free, and slacks ``z``; every group has its own mass one by the multiplier ``lambda``.
    """
    cost = costs_of(s, t)
    G, S, T = len(pi), len(s), len(t)
    g = np.zeros((G, T))
    f = _best_f(cost, g) - 0.1
    lam = 0.0
    z = cost[None] - f[:, :, None] - g[:, None, :]
    gamma = 1 / z
    gamma /= gamma.sum(axis=(1, 2), keepdims=True)
    free = rho is None
    if free:
        rho = gamma.sum(axis=1).mean(axis=0)
    for it in range(200):
        m = pi * np.exp(-f)
        r1 = m - gamma.sum(axis=2)
        r2 = rho - gamma.sum(axis=1)
        r3 = 1 - rho.sum()
        mu = (gamma * z).sum() / z.size
        primal, dual = _bounds(pi, cost, w, gamma, g, rho, free)
        residual = max(abs(r1).sum(axis=1).max(), abs(r2).sum(axis=1).max(), abs(r3))
        if verbose:
            print(it, mu * z.size / G, primal, primal - dual, residual)
        if primal - dual < tol and residual < tol:
            break
        D = gamma / z
        D1, D2 = D.sum(axis=2), D.sum(axis=1)
        K = np.stack([np.diag(D2[a]) - D[a].T @ (D[a] / (D1[a] + m[a])[:, None]) for a in range(G)])

        def direction(e):
            b1 = r1 - e.sum(axis=2)
            b2 = r2 - e.sum(axis=1)
            b = b2 - np.einsum("ait,ai->at", D, b1 / (D1 + m))
            if free:
                last = G - 1
                n = (G - 1) * T
                P = np.zeros((n + 1, n + 1))
                rhs = np.zeros(n + 1)
                KL = K[last] / w[last]
                ones = np.ones(T)
                for a in range(G - 1):
                    sl = slice(a * T, (a + 1) * T)
                    P[sl, sl] += w[a] * K[a]
                    rhs[sl] = w[a] * (b[a] - b[last])
                    for c in range(G - 1):
                        P[sl, c * T : (c + 1) * T] += w[a] * w[c] * KL
                    P[sl, n] = P[n, sl] = -w[a] * KL @ ones
                P[n, n] = ones @ KL @ ones
                rhs[n] = b[last].sum() - (-r3)
                sol = np.linalg.solve(P, rhs)
                dlam = sol[n]
                dg = np.zeros((G, T))
                dg[:-1] = sol[:n].reshape(G - 1, T)
                dg[last] = (dlam - w[:-1] @ dg[:-1]) / w[last]
                drho = K[last] @ dg[last] - b[last]
            else:
                dg = np.stack([np.linalg.solve(K[a], b[a]) for a in range(G)])
                drho, dlam = np.zeros(T), 0.0
            df = (b1 - np.einsum("ait,at->ai", D, dg)) / (D1 + m)
            dz = -df[:, :, None] - dg[:, None, :]
            dgamma = e - D * dz
            return df, dg, dgamma, dz, drho, dlam

        def longest(dgamma, dz):
            worst = max((-dgamma / gamma).max(), (-dz / z).max())
            return 1 / max(worst, 1e-300)

        df, dg, dgamma, dz, drho, dlam = direction(-gamma)
        alpha = min(1, longest(dgamma, dz))
        mu_aff = ((gamma + alpha * dgamma) * (z + alpha * dz)).sum() / z.size
        sigma = (mu_aff / mu) ** 3
        df, dg, dgamma, dz, drho, dlam = direction((sigma * mu - dgamma * dz) / z - gamma)
        alpha = min(1, 0.99 * longest(dgamma, dz))
        f, g, gamma, rho, lam = (
            f + alpha * df,
            g + alpha * dg,
            gamma + alpha * dgamma,
            rho + alpha * drho,
            lam + alpha * dlam,
        )
        z = cost[None] - f[:, :, None] - g[:, None, :]
    return Solution(gamma, w, group_costs(gamma, pi, cost), primal, primal - dual)


def _bounds(pi, cost, w, gamma, g, rho, free):
    primal = w @ group_costs(gamma, pi, cost)
    with np.errstate(divide="ignore"):
        own = -logsumexp(np.log(pi) - _best_f(cost, g), axis=1)
    dual = w @ own + ((w @ g).min() if free else w @ (g @ rho))
    return float(primal), float(dual)
