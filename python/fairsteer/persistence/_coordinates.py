"""Coordinates in which rows are steered, as tensors and plain values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import FunctionTransformer

from fairsteer._utils.fields import Fields
from fairsteer._utils.labels import label_to_json
from fairsteer.persistence._checks import listed_names
from fairsteer.persistence._file import Tensors
from fairsteer.transformer._base import GroupMapTransformer
from fairsteer.transformer._coordinates import SCALERS, SimpleCoordinates

_KINDS = {kind.__name__: kind for kind in SCALERS}


def pack_coordinates(transformer: GroupMapTransformer, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    given, fitted = transformer.feature_transform, transformer.feature_transform_
    if given is None and fitted is None:
        return {"kind": "none"}
    if isinstance(given, str) and given == "log" and isinstance(fitted, FunctionTransformer):
        return {"kind": "log"}
    frozen = isinstance(fitted, FrozenEstimator)
    scaler: Any = fitted.estimator if frozen else fitted
    if type(scaler) not in SCALERS or type(given) is not type(fitted):
        msg = (
            f"feature_transform={given!r} cannot be saved without pickling it; None, 'log', and a "
            f"{', '.join(_KINDS)} can, as shift and scale."
        )
        raise ValueError(msg)
    arrays = {name: getattr(scaler, name) for name in SCALERS[type(scaler)].arrays}
    present = {name: array for name, array in arrays.items() if array is not None}
    tensors.update({f"scaler.{name}": array for name, array in present.items()})
    return {
        "kind": type(scaler).__name__,
        "frozen": frozen,
        "params": {name: label_to_json(value) for name, value in scaler.get_params(deep=False).items()},
        "feature_names_in": listed_names(getattr(scaler, "feature_names_in_", None)),
        "absent": [name for name in arrays if name not in present],
    }


def unpack_coordinates(block: Fields, n_features: int, tensors: Tensors) -> Any:
    kind = block.text("kind", ("none", "log", *_KINDS))
    if kind == "none":
        return None
    if kind == "log":
        return FunctionTransformer(np.log, np.exp, check_inverse=False).fit(np.ones((1, n_features)))
    params = block.params("params")
    for name in ("feature_range", "quantile_range"):
        low, high = params.get(name, (0, 1))
        if not (isinstance(low, (int, float)) and isinstance(high, (int, float)) and low < high):
            msg = f"the {name} of its scaler is no range"
            raise ValueError(msg)
    scaler = _KINDS[kind](**params)
    scaler._validate_params()
    absent = block.texts("absent")
    for name in SCALERS[type(scaler)].arrays:
        array = None
        if name not in absent:
            array = tensors.take(f"scaler.{name}", (n_features,), dtypes=("float64", "float32"))
        setattr(scaler, name, array)
    scaler.n_features_in_ = n_features
    names = block.names("feature_names_in", n_features)
    if names is not None:
        scaler.feature_names_in_ = np.array(names, dtype=object)
    _check(scaler, n_features)
    return FrozenEstimator(scaler) if block.flag("frozen") else scaler


def _check(scaler: Any, n_features: int) -> None:
    """Raise ValueError for a scaler that would lack an array or divide by zero."""
    _, centred, scaled = SCALERS[type(scaler)]
    needed = [] if centred is None or not getattr(scaler, centred[0]) else [centred[1]]
    if scaled is None or getattr(scaler, scaled):
        needed.append("scale_")
    missing = [name for name in needed if getattr(scaler, name) is None]
    if missing or ("scale_" in needed and not (scaler.scale_ > 0).all()):
        raise ValueError("its scaler has no centre, or a scale that is not positive")
    if hasattr(scaler, "min_") and scaler.min_ is None:
        raise ValueError("its scaler has no shift")
    coordinates = SimpleCoordinates.of(scaler, n_features)
    if coordinates is not None and not (np.isfinite(coordinates.scale).all() and np.isfinite(coordinates.shift).all()):
        raise ValueError("the shift or scale of its scaler is not finite")


def unfitted(fitted: Any) -> Any:
    """Give the parameter that `fitted` was made from."""
    return "log" if isinstance(fitted, FunctionTransformer) else clone(fitted) if fitted is not None else None
