"""What every form of export needs of a fitted transformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from fairsteer.transformer._base import GroupMapTransformer
from fairsteer.transformer._coordinates import SimpleCoordinates
from fairsteer.transformer._maps import AffineMaps

# ---- what is exported


def group_maps(transformer: Any) -> tuple[AffineMaps, SimpleCoordinates]:
    """Fold strength and any scaler into the maps; beside them, the coordinates of the model."""
    if not isinstance(transformer, GroupMapTransformer):
        way_out = (
            " Export its steering_, which moves rows; the rule that classifies them is no map."
            if hasattr(transformer, "steering_")
            else ""
        )
        msg = f"{type(transformer).__name__} is no transformer that moves rows by affine maps of their groups.{way_out}"
        raise TypeError(msg)
    check_is_fitted(transformer, "moments_")
    maps = transformer._group_maps(transformer._strength())
    fitted = transformer.feature_transform_
    coordinates = SimpleCoordinates.of(fitted, maps.b.shape[1])
    if coordinates is None:
        msg = (
            f"feature_transform={fitted!r} is no affine map of the features, so the steering cannot be exported. "
            "None, 'log' and a StandardScaler, MinMaxScaler, MaxAbsScaler or RobustScaler without clipping can; "
            "or export the steering alone, fitted on transformed features, and run the transform beside it."
        )
        raise ValueError(msg)
    A, b = maps.A.copy(), maps.b - coordinates.shift
    coordinates.fold(A, b)
    # What does not move stays exactly the identity.
    A[~maps.moves], b[~maps.moves] = np.eye(maps.b.shape[1]), 0.0
    return AffineMaps(A, b, maps.moves), coordinates


def group_codes(transformer: GroupMapTransformer) -> Mapping[Any, int]:
    """Code of every label that rows may have; those of merged groups share one."""
    labels = transformer.moments_.groups.tolist()
    return dict(zip(labels, transformer._group_of_label.tolist(), strict=True))
