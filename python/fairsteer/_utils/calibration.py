"""The one calibration of log-probabilities, of classes as of groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import log_softmax

from fairsteer._utils.types import Codes, Doubles

# With more parameters than this their Hessian costs more than it saves.
_MOST_NEWTON = 200


class VectorScaling(NamedTuple):
    """Calibrated log-probabilities of labels, ``slope * log_proba + offsets`` up to a constant a row.

    Vector scaling with one temperature for all labels (Guo, Pleiss, Sun and Weinberger 2017).
    """

    slope: float
    """At least 0; below 1 where the given probabilities are too sure."""
    offsets: Doubles
    """(n_labels,)."""

    def __repr__(self) -> str:
        return f"VectorScaling(slope={self.slope:.4g}, offsets of {len(self.offsets)} labels)"

    @classmethod
    def fit(cls, log_proba: Doubles, codes: Codes, weight: Doubles) -> VectorScaling:
        """Most probable calibration of held-out rows.

        Parameters
        ----------
        log_proba : ndarray of shape (n, n_labels)
            Log-probabilities of rows under distributions that were fitted without them, up to a constant a row;
            -inf where those rows knew nothing of a label.
        codes : ndarray of shape (n,)
            True labels.
        weight : ndarray of shape (n,)
            Positive weights.

        Returns
        -------
        VectorScaling
            Maximum of the likelihood times a standard normal density of ``slope - 1`` and of the offsets, which
            decides where rows are too few to.
        """
        n_labels = log_proba.shape[1]
        own = np.isfinite(log_proba[np.arange(len(codes)), codes])
        if not own.any():
            return cls(1.0, np.zeros(n_labels))
        log_proba, codes, weight = log_softmax(log_proba[own], axis=1), codes[own], weight[own]
        log_proba = np.maximum(log_proba, log_proba[np.isfinite(log_proba)].min())
        # Weights of mean 1, unless they stand for repeated rows, so that their scale does not weaken the prior.
        weight = weight * max(1.0, weight.sum() / np.square(weight).sum())
        # With more the prior has no say, and rounding would.
        weight *= min(1.0, 1e8 / weight.sum())
        best = _most_probable(log_proba, codes, weight)
        if best[0] < 0:
            # Held-out rows contradict the given probabilities: the labels' frequencies are all that is known.
            best = _most_probable(np.zeros_like(log_proba), codes, weight)
            best[0] = 0.0
        return cls(float(best[0]), best[1:])

    def apply(self, log_proba: Doubles) -> Doubles:
        """Calibrated log-probabilities of rows, (n, n_labels), up to a constant a row."""
        calibrated: Doubles = self.slope * log_proba + self.offsets
        return calibrated


def _most_probable(log_proba: Doubles, codes: Codes, weight: Doubles) -> Doubles:
    """Slope and offsets of largest posterior density: the minimum of a strictly convex function."""
    truth = (np.arange(len(codes)), codes)
    prior = np.append(1.0, np.zeros(log_proba.shape[1]))

    def evaluate(parameters: Doubles) -> tuple[float, Doubles]:
        """Find the loss, and the probabilities of the labels."""
        scores = parameters[0] * log_proba  # in place from here on: with many labels it is large
        scores += parameters[1:]
        scores -= scores.max(axis=1, keepdims=True)
        own = scores[truth]
        proba = np.exp(scores, out=scores)
        total = proba.sum(axis=1, keepdims=True)
        proba /= total
        loss = weight @ (np.log(total[:, 0]) - own) + np.square(parameters - prior).sum() / 2
        return float(loss), proba

    observed = np.bincount(codes, weight, log_proba.shape[1])

    def gradient_at(parameters: Doubles, proba: Doubles) -> Doubles:
        gradient: Doubles = parameters - prior
        gradient[0] -= weight @ (log_proba[truth] - np.einsum("na,na->n", proba, log_proba))
        gradient[1:] += weight @ proba - observed
        return gradient

    def differentiate(parameters: Doubles, proba: Doubles) -> tuple[Doubles, Doubles, Doubles]:
        """Find the gradient, the diagonal of the Hessian, and log-probabilities about their means."""
        centred = log_proba - np.einsum("na,na->n", proba, log_proba)[:, None]
        curvature = np.append(
            np.einsum("n,na,na,na->", weight, proba, centred, centred), weight @ proba - weight @ proba**2
        )
        return gradient_at(parameters, proba), 1 + curvature, centred

    # Where scores are saturated there is no curvature to follow: begin with scores of order one.
    start: Doubles = prior / max(1.0, float(np.abs(log_proba).mean()))
    if len(prior) > _MOST_NEWTON:
        # The Hessian of many labels is large, and nearly its diagonal.
        scale = np.sqrt(differentiate(start, evaluate(start)[1])[1])

        def scaled(z: Doubles) -> tuple[float, Doubles]:
            loss, proba = evaluate(z / scale)
            return loss, gradient_at(z / scale, proba) / scale

        found = minimize(scaled, start * scale, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-14})
        best: Doubles = found.x / scale
        return best
    return _newton(start, weight, evaluate, differentiate)


def _newton(
    best: Doubles,
    weight: Doubles,
    evaluate: Callable[[Doubles], tuple[float, Doubles]],
    differentiate: Callable[[Doubles, Doubles], tuple[Doubles, Doubles, Doubles]],
) -> Doubles:
    loss, proba = evaluate(best)
    for _ in range(100):
        gradient, curvature, centred = differentiate(best, proba)
        hessian = np.zeros((len(best), len(best)))
        hessian[1:, 1:] = -proba.T @ (weight[:, None] * proba)
        hessian[0, 1:] = hessian[1:, 0] = np.einsum("n,na,na->a", weight, proba, centred)
        hessian[np.diag_indices_from(hessian)] = curvature
        # Slope and offsets may differ by many orders of magnitude in scale.
        scale = np.sqrt(curvature)
        step = cho_solve(cho_factor(hessian / np.outer(scale, scale)), gradient / scale) / scale
        decrement = gradient @ step
        if decrement < 1e-12 * max(1.0, loss):
            nearer: Doubles = best - step  # so near it squares the error: the order of rows does not show
            return nearer
        length = 1.0
        next_loss, proba = evaluate(best - step)
        while next_loss > loss - 0.1 * length * decrement and length > 1e-9:
            length /= 2
            next_loss, proba = evaluate(best - length * step)
        best, loss = best - length * step, next_loss
    return best
