"""How alike the groups' distributions are, before and after."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fairsteer._utils.types import Floats
from fairsteer.ideal import IdealDistribution
from fairsteer.moments import SubgroupMoments
from fairsteer.report._held_out import Rows, codes_in, take_rows
from fairsteer.report._tables import Table
from fairsteer.transformer import FairSteeringTransformer
from fairsteer.transformer._maps import AffineMaps
from fairsteer.transformer._monotone import MonotoneMaps

# ---- how far the groups are from being alike


def divergence_table(
    transformer: FairSteeringTransformer,
    rows: Rows,
    judged: Sequence[tuple[Any, Floats, npt.NDArray[np.intp]]],
) -> Table:
    """Table of divergences before and after; `judged` are steerings with features of all rows and rows held out."""
    fitted = transformer._fitted().model
    held_out = [
        [len(some), *_unlikeness(steering, _moments(steering, rows, values, some))] for steering, values, some in judged
    ]
    n, *found = np.array(held_out).T
    of_fit = _unlikeness(transformer, fitted)
    pairs = [[known, float(np.average(others, weights=n))] for known, others in zip(of_fit, found, strict=True)]
    return {"rows": ["of the fit", "held out"], "before": pairs[0], "after": pairs[1]}


def _moments(
    steering: FairSteeringTransformer, rows: Rows, values: Floats, some: npt.NDArray[np.intp]
) -> SubgroupMoments | None:
    """Moments of some rows in the coordinates and with the regularisation of a transformer.

    None if there are fewer than two rows a feature behind a covariance: too few to compare it with another.
    """
    codes = codes_in(steering, rows)[some]
    y_codes = np.zeros(len(some), dtype=np.intp)
    if not steering._class_blind:
        position = {label: k for k, label in enumerate(steering.classes_.tolist())}
        y_codes = np.array([position.get(label, -1) for label in take_rows(rows.y, some).tolist()], dtype=np.intp)
    values = steering._to_model(values[some])
    moments = SubgroupMoments(
        values.shape[1], classes=steering.classes_, groups=steering.groups_, covariance=steering.covariance
    )
    moments.update(values, y_codes, codes, rows.weight[some])
    behind = moments.sizes.sum(axis=0) if moments.covariance == "tied" else moments.sizes[moments.weights > 0]
    if behind.min(initial=np.inf) < 2 * (1 if moments.covariance == "diagonal" else moments.n_features):
        return None
    if steering.pooling > 0:
        moments = moments.pool(steering.pooling)
    return moments.shrink(steering.shrinkage, X=values, y_codes=y_codes, group_codes=codes)


def _unlikeness(steering: FairSteeringTransformer, moments: SubgroupMoments | None) -> list[float]:
    """Divergence of the distribution, alike in all groups, that is nearest to the fit, from moments of rows.

    Of rows as they are, and as they are after steering.
    """
    fitted, ideal, _ = steering._fitted()
    if moments is None or len(ideal.classes) < len(fitted.classes):  # the others need not be alike
        return [float("nan"), float("nan")]
    found = []
    for strength in (0.0, steering._strength()):
        maps = steering._group_maps(strength)
        if isinstance(maps, MonotoneMaps):  # of the Gaussian model, as the divergence is
            maps = AffineMaps.at_strength(ideal.linear, ideal.offset, strength)
        moved_fit = _moved(fitted, maps)
        moved = moved_fit if moments is fitted else _moved(moments, maps)
        alike = _alike(ideal, moved_fit)
        try:
            with np.errstate(divide="ignore", invalid="ignore"):
                found.append(float(alike.divergence_from(moved)))
        except np.linalg.LinAlgError:
            found.append(float("nan"))
    return found


def _moved(moments: SubgroupMoments, maps: AffineMaps) -> SubgroupMoments:
    """Moments of rows after the maps of their groups."""
    covariances, _ = moments._positive_definite()
    if moments.covariance == "diagonal":
        means = maps.A * moments.means + maps.b
        covariances = maps.A**2 * covariances
    else:
        A = maps.matrices
        means = np.einsum("aij,kaj->kai", A, moments.means) + maps.b
        covariances = A @ covariances @ np.swapaxes(A, 1, 2)
        covariances = (covariances + np.swapaxes(covariances, -1, -2)) / 2
    return SubgroupMoments.from_statistics(
        *(moments.weights, means, covariances),
        classes=moments.classes,
        groups=moments.groups,
        covariance=moments.covariance,
    )


def _alike(ideal: IdealDistribution, moments: SubgroupMoments) -> IdealDistribution:
    """Nearest to the moments of all distributions with the same Gaussian a class in every group.

    With the shares of classes and groups of `ideal`. Its precisions are averages of those of the groups.
    """
    K, G, d = moments.means.shape
    present = [k for k, label in enumerate(moments.classes.tolist()) if label in set(ideal.classes.tolist())]
    weight = ideal.weights * (moments.weights[present] > 0)
    covariances, _ = moments._positive_definite()
    precision: Any
    if moments.covariance == "diagonal":
        precision = 1 / covariances[present]
        total = np.einsum("ka,kaj->kj", weight, precision)
        means = np.einsum("ka,kaj,kaj->kj", weight, precision, moments.means[present]) / total
        common = weight.sum(axis=1, keepdims=True) / total
    else:
        precision = np.linalg.inv(covariances)
        precision = np.broadcast_to(precision, (K, G, d, d))[present]
        total = np.einsum("ka,kaij->kij", weight, precision)
        pulled = np.einsum("ka,kaij,kaj->ki", weight, precision, moments.means[present])
        means = np.linalg.solve(total, pulled[..., None])[..., 0]
        if moments.covariance == "tied":
            common = np.linalg.inv(total.sum(axis=0) / weight.sum())
            common = (common + common.T) / 2
        else:
            common = np.linalg.inv(total / weight.sum(axis=1)[:, None, None])
            common = (common + np.swapaxes(common, 1, 2)) / 2
    still = np.ones((G, d)) if moments.covariance == "diagonal" else np.tile(np.eye(d), (G, 1, 1))
    return dataclasses.replace(
        ideal,
        canonical_means=means,
        canonical_covariances=common,
        linear=still,
        offset=np.zeros((G, d)),
    )
