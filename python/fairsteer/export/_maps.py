"""What every form of export needs of a fitted transformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from fairsteer._utils.types import Doubles
from fairsteer.moments import SubgroupMoments
from fairsteer.transformer._base import GroupMapTransformer
from fairsteer.transformer._coordinates import SimpleCoordinates
from fairsteer.transformer._maps import AffineMaps, as_matrices

# Standard deviations within a subgroup. Rows so far from a centre lose nothing that single precision would keep.
_NEAR = 16.0


class Steps(NamedTuple):
    """Steps ``displacement[c] @ (x - centre[c]) + offset[c]`` that rows ``x`` with code ``c`` take."""

    displacement: Doubles
    """Matrices, (n_codes, d, d), or what each feature is multiplied by, (n_codes, d)."""
    centre: Doubles
    """Amid the rows of each code, so that what is multiplied is small; (n_codes, d)."""
    offset: Doubles
    """(n_codes, d)."""
    moves: npt.NDArray[np.bool_]
    """Whether rows take any step, (n_codes,)."""


def group_steps(transformer: Any) -> tuple[Steps, SimpleCoordinates]:
    """Fold strength and any scaler into the steps; beside them, the coordinates of the model."""
    coordinates = _simple_coordinates(transformer)
    transformer._affine_maps("an exported graph or file")
    model, maps, _ = transformer._fitted()
    strength = transformer._strength()
    one = np.eye(model.n_features) if maps.linear.ndim == 3 else 1.0
    displacement, offset = strength * (maps.linear - one), strength * maps.offset
    moves = displacement.any(axis=tuple(range(1, displacement.ndim))) | offset.any(axis=1)
    coordinates.fold(displacement, offset)
    centre = coordinates.centres(model.weights, model.means, len(offset))
    # One centre for all, which is subtracted once, where the groups lie no farther from it than their rows do.
    common = np.tile(coordinates.centres(model.weights, model.means, 1), (len(offset), 1))
    if (np.abs(centre - common) <= _NEAR * _spread(model) / np.abs(coordinates.scale)).all():
        centre = common
    if displacement.ndim == 2:
        return Steps(displacement, centre, offset + displacement * centre, moves), coordinates
    return Steps(displacement, centre, offset + np.einsum("cij,cj->ci", displacement, centre), moves), coordinates


def _spread(model: SubgroupMoments) -> Doubles:
    """Smallest standard deviation of every feature within the subgroups, (d,)."""
    covariances = model.covariances
    variances = covariances if model.covariance == "diagonal" else np.diagonal(covariances, axis1=-2, axis2=-1)
    return np.asarray(np.sqrt(variances.reshape(-1, model.n_features).min(axis=0)))


def group_maps(transformer: Any) -> tuple[AffineMaps, SimpleCoordinates]:
    """Fold strength and any scaler into the maps; beside them, the coordinates of the model."""
    coordinates = _simple_coordinates(transformer)
    maps = transformer._affine_maps("an exported graph or file")
    A, b = np.array(as_matrices(maps.A)), maps.b - coordinates.shift
    coordinates.fold(A, b)
    # What does not move stays exactly the identity.
    A[~maps.moves], b[~maps.moves] = np.eye(maps.b.shape[1]), 0.0
    return AffineMaps(A, b, maps.moves, (maps.centre - coordinates.shift) / coordinates.scale), coordinates


def _simple_coordinates(transformer: Any) -> SimpleCoordinates:
    """Coordinates of a fitted transformer's maps, if they can be folded into these."""
    if not isinstance(transformer, GroupMapTransformer):
        way_out = ""
        if hasattr(transformer, "steering_"):
            way_out = (
                " Export its steering_, which moves rows; the rule that classifies them is no map. With a "
                "score_alignment, export_onnx writes the maps of its scores."
            )
        msg = f"{type(transformer).__name__} is no transformer that moves rows by affine maps of their groups.{way_out}"
        raise TypeError(msg)
    check_is_fitted(transformer, "moments_")
    fitted = transformer.feature_transform_
    coordinates = SimpleCoordinates.of(fitted, transformer._fitted().model.n_features)
    if coordinates is None:
        msg = (
            f"feature_transform={fitted!r} is no affine map of the features, so the steering cannot be exported. "
            "None, 'log' and a StandardScaler, MinMaxScaler, MaxAbsScaler or RobustScaler without clipping can; "
            "or export the steering alone, fitted on transformed features, and run the transform beside it."
        )
        raise ValueError(msg)
    return coordinates


def group_codes(transformer: GroupMapTransformer) -> Mapping[Any, int]:
    """Code of every label that rows may have; those of merged groups share one."""
    labels = transformer.moments_.groups.tolist()
    return dict(zip(labels, transformer._group_of_label.tolist(), strict=True))
