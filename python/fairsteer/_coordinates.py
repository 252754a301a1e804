"""Coordinates in which features are taken as Gaussian: the parameter `feature_transform`."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler, MinMaxScaler
from sklearn.utils import check_array, get_tags
from sklearn.utils.validation import has_fit_parameter

from fairsteer._input import ROW_CHECKS, Floats, warn_caller


def needs_all_rows(feature_transform: Any) -> bool:
    """Whether fitting on a first batch alone would leave something out."""
    if feature_transform is None or isinstance(feature_transform, (str, FrozenEstimator)):
        return False
    return bool(get_tags(feature_transform).requires_fit)


def fit_coordinates(feature_transform: Any, rows: Floats, names: list[str], sample_weight: Any) -> Any:
    """Fit a clone of `feature_transform`; raise ValueError if it cannot be undone."""
    if feature_transform is None:
        return None
    if isinstance(feature_transform, str):
        return FunctionTransformer(np.log, np.exp, check_inverse=False).fit(rows)
    rows = _widened(rows)
    fitted = clone(feature_transform).fit(rows, None, **_weight_params(feature_transform, sample_weight))
    some = rows[:: -(-len(rows) // 1000)]
    # The median forgives clipping in the tails, which a quantile transform needs.
    error = np.median(np.abs(fitted.inverse_transform(fitted.transform(some)) - some), axis=0)
    lost = np.flatnonzero(error > 1e-2 * rows.std(axis=0) + 1e-5 * np.abs(rows).max(axis=0))
    if lost.size:
        j = lost[0]
        msg = (
            f"feature_transform={feature_transform!r} cannot be undone: its inverse_transform misses {names[j]} by "
            f"{error[j]:.3g}, where the feature has standard deviation {rows[:, j].std():.3g}."
        )
        raise ValueError(msg)
    return fitted


def _weight_params(feature_transform: Any, sample_weight: Any) -> dict[str, Any]:
    if sample_weight is None or np.ptp(sample_weight) == 0:
        return {}
    if has_fit_parameter(feature_transform, "sample_weight"):
        return {"sample_weight": sample_weight}
    # Ranges are the same under any weights.
    if needs_all_rows(feature_transform) and not isinstance(feature_transform, (MaxAbsScaler, MinMaxScaler)):
        warn_caller(
            f"feature_transform={feature_transform!r} takes no sample_weight, so all rows count the same in it. Fit it "
            "to weighted data beforehand and pass it as sklearn.frozen.FrozenEstimator(fitted), or use "
            "StandardScaler()."
        )
    return {}


def to_coordinates(fitted: Any, rows: Floats, names: list[str]) -> Floats:
    """Bring rows to the coordinates of the model; raise ValueError for logarithms of what is not positive."""
    if fitted is None:
        return rows
    if getattr(fitted, "func", None) is np.log and not (rows > 0).all():
        j = np.flatnonzero((rows <= 0).any(axis=0))[0]
        msg = (
            f"feature_transform='log' needs positive features, but {names[j]} holds {(rows[:, j] <= 0).sum()} values "
            f"that are not (smallest {rows[:, j].min():g}). Use a transform that takes them, such as "
            "feature_transform=PowerTransformer()."
        )
        raise ValueError(msg)
    coordinates: Floats = check_array(fitted.transform(_widened(rows)), **ROW_CHECKS)
    return coordinates


def _widened(rows: Floats) -> Floats:
    return rows.astype(np.float32) if rows.dtype == np.float16 else rows
