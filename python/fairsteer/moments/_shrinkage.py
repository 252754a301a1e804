"""Covariances between what few rows say and what they would say of features that are all alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone

from fairsteer._utils.input import brief
from fairsteer._utils.types import Doubles
from fairsteer._utils.weights import rows_behind

if TYPE_CHECKING:
    from fairsteer.moments._moments import SubgroupMoments

FORMULAS = ("ledoit_wolf", "oas")


def shrunk_covariances(
    moments: SubgroupMoments,
    shrinkage: Any,
    X: ArrayLike | None,
    y_codes: ArrayLike | None,
    group_codes: ArrayLike | None,
) -> Doubles:
    """Regularise covariances, see `SubgroupMoments.shrink`."""
    model = moments.model
    if isinstance(shrinkage, str) and shrinkage in FORMULAS:
        return model.shrunk(moments.covariances, formula_intensity(moments, shrinkage))
    if isinstance(shrinkage, (int, float, np.integer, np.floating)) and not isinstance(shrinkage, bool):
        if not 0 <= shrinkage <= 1:
            msg = f"shrinkage must lie in [0, 1], not {shrinkage}."
            raise ValueError(msg)
        of_covariances = model.in_cells(moments.weights).shape
        return model.shrunk(moments.covariances, np.full(of_covariances, float(shrinkage)))
    if not hasattr(shrinkage, "fit"):
        msg = f"shrinkage must be 'ledoit_wolf', 'oas', a float, None or an estimator, not {brief(shrinkage)}."
        raise ValueError(msg)
    if X is None or y_codes is None or group_codes is None:
        msg = f"shrinkage={brief(shrinkage)} is fitted to rows: pass X, y_codes and group_codes."
        raise ValueError(msg)
    rows = np.asarray(X, dtype=np.float64)
    return _fit_estimator(moments, shrinkage, rows, np.asarray(y_codes), np.asarray(group_codes))


def formula_intensity(moments: SubgroupMoments, shrinkage: str) -> Doubles:
    """Intensity that a formula gives every covariance, see `SubgroupMoments.shrinkage_intensity`."""
    model = moments.model
    own_weights, own_squares = moments._sums()[:2]
    sums = ((own_weights, 1), (own_squares, 2), (moments._quartics, 1))
    weights, squares, quartics = (model.in_cells(moments._pooled(of_cells, power)) for of_cells, power in sums)
    if shrinkage == "ledoit_wolf" and not np.isfinite(quartics).all():
        msg = (
            "The features are too large for shrinkage='ledoit_wolf', which needs their fourth powers. Scale them, or "
            "use 'oas', a number in [0, 1] or None."
        )
        raise ValueError(msg)
    # In units in which covariances are of order one: they are squared.
    unit = np.abs(moments.covariances).max(initial=0.0) or 1.0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        fourth = quartics / weights.reshape(weights.shape + (1,) * (quartics.ndim - weights.ndim)) / unit / unit
        if moments._scatter_sums is None:
            rows = rows_behind(weights, squares)
        else:  # the rows of a cell count as ever; what the cells weigh makes the effective number smaller
            rows = weights**2 / np.sum(own_weights**2 / moments.sizes, axis=0, where=moments.sizes > 0)
        intensity = model.intensity(shrinkage, moments.covariances / unit, fourth, rows)
    # 0/0: nothing to shrink (one feature, or a multiple of the identity already).
    clipped: Doubles = np.clip(np.nan_to_num(intensity, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
    return clipped


def _fit_estimator(
    moments: SubgroupMoments, estimator: Any, X: Doubles, y_codes: NDArray[Any], group_codes: NDArray[Any]
) -> Doubles:
    """Fit a covariance estimator to the rows of every covariance, about the means of their subgroups."""
    model, shape = moments.model, (moments.n_features, moments.n_features)
    covariances = np.zeros_like(moments.covariances)
    seen = (y_codes >= 0) & (group_codes >= 0)
    for cell in model.cells(moments.n_classes, moments.n_groups):
        rows = seen & (group_codes == cell[-1])
        if model.by_class:
            rows &= y_codes == cell[0]
        if not rows.any():
            continue
        centred = X[rows] - moments.means[y_codes[rows], group_codes[rows]]
        if moments._factors is not None:  # of classes that weigh alike in every group
            centred *= np.sqrt(moments._factors[y_codes[rows], group_codes[rows]])[:, None]
        fitted = np.asarray(getattr(clone(estimator).fit(centred), "covariance_", None))
        if fitted.shape != shape or not np.isfinite(fitted).all():
            found = "none" if fitted.ndim == 0 else f"one of shape {fitted.shape}"
            if fitted.shape == shape:
                found = "one with NaN or infinite values"
            msg = (
                f"shrinkage={brief(estimator)} must give covariance_, of shape {shape}, once it is fitted; it gives "
                f"{found}. Use a covariance estimator, such as sklearn.covariance.LedoitWolf()."
            )
            raise ValueError(msg)
        covariances[cell] = model.of_matrix(fitted)
    return covariances
