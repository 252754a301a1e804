"""Coordinates in which features are taken as Gaussian: the parameter `feature_transform`."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler
from sklearn.utils import check_array, get_tags
from sklearn.utils.validation import has_fit_parameter

from fairsteer._utils.input import ROW_CHECKS, brief, few, warn_caller
from fairsteer._utils.types import Doubles, Floats
from fairsteer.moments._coordinates import Coordinates


class Scaler(NamedTuple):
    """A scaler of scikit-learn that is an affine map of each feature."""

    arrays: tuple[str, ...]
    """What ``fit`` makes, one number a feature."""
    centred: tuple[str, str] | None = None
    """Parameter that says whether rows are centred, and the centre."""
    scaled: str | None = None
    """Parameter that says whether they are scaled; None: always."""


SCALERS: dict[Any, Scaler] = {
    StandardScaler: Scaler(("mean_", "var_", "scale_"), ("with_mean", "mean_"), "with_std"),
    MinMaxScaler: Scaler(("min_", "scale_", "data_min_", "data_max_", "data_range_")),
    MaxAbsScaler: Scaler(("scale_", "max_abs_")),
    RobustScaler: Scaler(("center_", "scale_"), ("with_centering", "center_"), "with_scaling"),
}


class SimpleCoordinates(Coordinates):
    """Coordinates that maps can take in."""

    @classmethod
    def of(cls, fitted: Any, n_features: int) -> SimpleCoordinates | None:
        """Coordinates of a fitted `feature_transform`; None if they are not so simple."""
        one, zero = np.ones(n_features), np.zeros(n_features)
        scaler: Any = fitted.estimator if isinstance(fitted, FrozenEstimator) else fitted
        kind: Any = type(scaler)
        if scaler is None:
            return cls(False, one, zero)
        if getattr(scaler, "func", None) is np.log and scaler.inverse_func is np.exp:
            return cls(True, one, zero)
        if getattr(scaler, "clip", False):
            return None
        if kind is MinMaxScaler:
            return cls(False, one * scaler.scale_, one * scaler.min_)
        if kind not in SCALERS:
            return None
        _, centred, scaled = SCALERS[kind]
        scale = one / scaler.scale_ if scaled is None or getattr(scaler, scaled) else one
        centre = getattr(scaler, centred[1]) if centred is not None and getattr(scaler, centred[0]) else zero
        return cls(False, scale, -centre * scale)

    def centres(self, weights: Doubles, means: Doubles, n_maps: int) -> Doubles:
        """Points amid the features of every map's rows, relative to which its product loses no digits.

        Parameters
        ----------
        weights : ndarray of shape (n_classes, n_groups)
            Weights of the subgroups.
        means : ndarray of shape (n_classes, n_groups, d)
            Their means, in these coordinates.
        n_maps : int
            The number of groups, or 1 where one map moves them all.

        Returns
        -------
        ndarray of shape (n_maps, d)
            Numbers of single precision, so that rows of any type subtract the same ones; of logarithms those of such
            numbers.
        """
        if n_maps == 1:
            weights, means = weights.reshape(-1, 1), means.reshape(-1, 1, means.shape[-1])
        points = np.einsum("ka,kaj->aj", weights / weights.sum(axis=0), means)
        if self.log:  # of numbers that rows are multiplied by before their logarithms are taken
            factors = np.exp(-np.clip(points, -80, 80)).astype(np.float32)
            return np.asarray(-np.log(factors.astype(np.float64)))
        with np.errstate(over="ignore"):
            centres = ((points - self.shift) / self.scale).astype(np.float32)
        return np.where(np.isfinite(centres), centres, 0).astype(np.float64)

    def fold(self, linear: Doubles, vectors: Doubles) -> None:
        """Make ``M (D x + c) + v`` of these coordinates ``D^-1`` of that, in place: matrices may be large.

        Parameters
        ----------
        linear : ndarray of shape (n_maps, d, d) or (n_maps, d)
            Matrices, or their diagonals.
        vectors : ndarray of shape (n_maps, d)
            What is added.
        """
        vectors += linear * self.shift if linear.ndim == 2 else linear @ self.shift
        vectors /= self.scale
        if linear.ndim == 3:
            linear *= self.scale / self.scale[:, None]


def coordinates_of(fitted: Any, n_features: int) -> Any:
    """Coordinates of a fitted `feature_transform` as moments keep them: as numbers, or if need be the transformer."""
    if fitted is None:
        return None
    simple = SimpleCoordinates.of(fitted, n_features)
    return fitted if simple is None else Coordinates(*simple)


def needs_all_rows(feature_transform: Any) -> bool:
    """Whether fitting on a first batch alone would leave something out."""
    if feature_transform is None or isinstance(feature_transform, (str, FrozenEstimator)):
        return False
    return bool(get_tags(feature_transform).requires_fit)


def fit_coordinates(
    feature_transform: Any, rows: Floats, names: list[str], sample_weight: Any, *, named: bool = False
) -> Any:
    """Fit a clone of `feature_transform`; raise ValueError if it cannot be undone.

    Parameters
    ----------
    feature_transform : None, "log" or transformer
        The parameter.
    rows : ndarray of shape (n, d)
        Rows.
    names : list of str
        Names of the features, for messages.
    sample_weight : ndarray of shape (n,) or None
        Weights, for a transformer that takes them.
    named : bool, default=False
        Whether the names were given by the user: one that was fitted beforehand must then know the same ones.

    Returns
    -------
    transformer or None
        Fitted; what was fitted beforehand on a table takes arrays without names from now on.
    """
    if feature_transform is None:
        return None
    if isinstance(feature_transform, FrozenEstimator):
        known = getattr(feature_transform.estimator, "feature_names_in_", None)
        if named and known is not None and list(known) != names:
            msg = (
                f"feature_transform={brief(feature_transform)} was fitted on the columns {few(map(repr, known))}, but "
                f"the features are {few(map(repr, names))}. Pass the same columns in the same order."
            )
            raise ValueError(msg)
        feature_transform = _without_names(feature_transform)
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
            f"feature_transform={brief(feature_transform)} cannot be undone: its inverse_transform misses {names[j]} "
            f"by {error[j]:.3g}, where the feature has standard deviation {rows[:, j].std():.3g}."
        )
        raise ValueError(msg)
    return fitted


def _without_names(fitted: Any) -> Any:
    """Take from a fitted transformer the names of its columns, of which it would miss every array's."""
    if isinstance(fitted, FrozenEstimator):
        return FrozenEstimator(_without_names(fitted.estimator))
    nameless = copy.copy(fitted)
    if isinstance(fitted, Pipeline):
        nameless.steps = [
            (name, step if step is None or isinstance(step, str) else _without_names(step))
            for name, step in fitted.steps
        ]
    vars(nameless).pop("feature_names_in_", None)
    return nameless


def _weight_params(feature_transform: Any, sample_weight: Any) -> dict[str, Any]:
    if sample_weight is None or np.ptp(sample_weight) == 0:
        return {}
    if has_fit_parameter(feature_transform, "sample_weight"):
        return {"sample_weight": sample_weight}
    # Ranges are the same under any weights.
    if needs_all_rows(feature_transform) and not isinstance(feature_transform, (MaxAbsScaler, MinMaxScaler)):
        warn_caller(
            f"feature_transform={brief(feature_transform)} takes no sample_weight, so all rows count the same in it. "
            "Fit it to weighted data beforehand and pass it as sklearn.frozen.FrozenEstimator(fitted), or use "
            "StandardScaler()."
        )
    return {}


def to_coordinates(fitted: Any, rows: Floats, names: list[str]) -> Floats:
    """Bring rows to the coordinates of the model; raise ValueError for logarithms of what is not positive."""
    if fitted is None or len(rows) == 0:  # scikit-learn's transformers refuse no rows at all
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
