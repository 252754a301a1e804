"""What a small subgroup borrows from those that share its class or its group."""

from __future__ import annotations

import numpy as np

from fairsteer._utils.types import Doubles


def additive_means(weights: Doubles, means: Doubles) -> tuple[Doubles, Doubles]:
    """Fit means (K, G, d) by those of classes (K, d) plus offsets of groups (G, d), which average to zero."""
    group_weights, shares = weights.sum(axis=0), weights.sum(axis=1, keepdims=True)
    shares = np.divide(weights, shares, out=np.zeros_like(weights), where=shares > 0)  # P(group | class)
    class_means = np.einsum("ka,kaj->kj", shares, means)
    residuals = np.einsum("ka,kaj->aj", weights, means - class_means[:, None])
    # Normal equations without the classes; scaled, so that their spectrum lies in [0, 1] whatever the weights.
    scale = np.sqrt(np.where(group_weights > 0, group_weights, 1.0))
    matrix = np.eye(len(scale)) - (weights / scale).T @ (shares / scale)
    offsets = np.linalg.pinv(matrix, rcond=1e-10, hermitian=True) @ (residuals / scale[:, None]) / scale[:, None]
    offsets -= group_weights @ offsets / group_weights.sum()
    return class_means - shares @ offsets, offsets


def broadcast_factors(factors: Doubles, covariances: Doubles) -> Doubles:
    return factors.reshape(factors.shape + (1,) * (covariances.ndim - factors.ndim))
