"""What a small subgroup borrows from those that share its class or its group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fairsteer._utils.types import Doubles
from fairsteer.moments._standardizing import class_factors

if TYPE_CHECKING:
    from fairsteer.moments._moments import SubgroupMoments


def additive_means(weights: Doubles, means: Doubles) -> tuple[Doubles, Doubles]:
    """Fit means (K, G, d) by those of classes (K, d) plus offsets of groups (G, d), which average to zero."""
    group_weights, shares = weights.sum(axis=0), weights.sum(axis=1, keepdims=True)
    shares = np.divide(weights, shares, out=np.zeros_like(weights), where=shares > 0)  # P(group | class)
    class_means = np.einsum("ka,kaj->kj", shares, means)
    residuals = np.einsum("ka,kaj->aj", weights, means - class_means[:, None])
    # Normal equations without the classes; scaled, so that their spectrum lies in [0, 1] whatever the weights. Their
    # matrix is the identity but for the few directions that classes span, so that many groups cost no more than each.
    scale = np.sqrt(np.where(group_weights > 0, group_weights, 1.0))
    _, cosines, spanned = np.linalg.svd(np.sqrt(weights * shares) / scale, full_matrices=False)
    eigenvalues = (1 - cosines) * (1 + cosines)
    determined = eigenvalues > 1e-10
    inverse = np.divide(1.0, eigenvalues, out=np.zeros_like(eigenvalues), where=determined)
    residuals = residuals / scale[:, None]
    offsets = (residuals + spanned.T @ ((inverse - 1)[:, None] * (spanned @ residuals))) / scale[:, None]
    offsets -= group_weights @ offsets / group_weights.sum()
    return class_means - shares @ offsets, offsets


def borrowed_sums(
    moments: SubgroupMoments, min_subgroup_size: float, standardize: bool
) -> tuple[Doubles, Doubles, Doubles]:
    """Weights, means and covariances of subgroups that are filled up, see `SubgroupMoments.borrow`."""
    model, weights, means = moments.model, moments.weights, moments.means
    own, of_group = (np.minimum(n / min_subgroup_size, 1.0) for n in (moments.sizes, moments.group_sizes))
    group_weights = weights.sum(axis=0)
    shares = weights * class_factors(weights) if standardize else weights
    of_class = np.divide(shares, group_weights, out=np.zeros_like(weights), where=group_weights > 0)
    class_means, offsets = additive_means(weights, means)
    borrowed = class_means[:, None] + offsets * of_group[:, None]
    difference = means - borrowed
    # Two sets of rows with different means vary about their common mean.
    spread = own * (1 - own)
    within = model.within(moments.covariances, of_class)
    overall = np.tensordot(group_weights / group_weights.sum(), within, axes=1)
    fill = model.scaled_by(of_group, within)
    within = fill * within + (1 - fill) * overall
    if model.by_class:
        fill = model.scaled_by(own, moments.covariances)
        between = model.scaled_by(spread, moments.covariances) * model.outer(difference)
        filled = fill * moments.covariances + (1 - fill) * within + between
    else:
        # Summed over classes at once: there may be gigabytes of them.
        filled = within + np.einsum("ka,kai,kaj->aij", of_class * spread, difference, difference, optimize=True)
    independent = np.outer(weights.sum(axis=1), group_weights) / weights.sum()
    return (
        np.where(weights > 0, weights, independent),
        own[..., None] * means + (1 - own[..., None]) * borrowed,
        filled,
    )
