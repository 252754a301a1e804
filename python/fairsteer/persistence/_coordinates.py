"""Coordinates in which rows are steered, as tensors and plain values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

from fairsteer._utils.labels import label_from_json, label_to_json
from fairsteer.persistence._file import Tensors
from fairsteer.transformer._base import GroupMapTransformer

# Scalers that are affine maps of each feature, and the fitted arrays that make them up.
_SCALERS: dict[str, tuple[type, tuple[str, ...]]] = {
    "StandardScaler": (StandardScaler, ("mean_", "var_", "scale_")),
    "MinMaxScaler": (MinMaxScaler, ("min_", "scale_", "data_min_", "data_max_", "data_range_")),
    "MaxAbsScaler": (MaxAbsScaler, ("scale_", "max_abs_")),
    "RobustScaler": (RobustScaler, ("center_", "scale_")),
}


# ---- coordinates


def pack_coordinates(transformer: GroupMapTransformer, tensors: dict[str, NDArray[Any]]) -> Any:
    given, fitted = transformer.feature_transform, transformer.feature_transform_
    if given is None and fitted is None:
        return None
    if isinstance(given, str) and given == "log" and isinstance(fitted, FunctionTransformer):
        return "log"
    frozen = isinstance(fitted, FrozenEstimator)
    scaler: Any = fitted.estimator if frozen else fitted
    name = type(scaler).__name__
    known: Any = _SCALERS.get(name, (None,))[0]
    if known is not type(scaler) or type(given) is not type(fitted):
        msg = (
            f"feature_transform={given!r} cannot be saved without pickling it; None, 'log', and a "
            f"{', '.join(_SCALERS)} can, as shift and scale."
        )
        raise ValueError(msg)
    arrays = {attribute: getattr(scaler, attribute) for attribute in _SCALERS[name][1]}
    present = {attribute: array for attribute, array in arrays.items() if array is not None}
    tensors.update({f"scaler.{attribute}": array for attribute, array in present.items()})
    params = {param: label_to_json(value) for param, value in scaler.get_params(deep=False).items()}
    return {"scaler": name, "frozen": frozen, "params": params, "arrays": list(present)}


def unpack_coordinates(block: Any, n_features: int, tensors: Tensors) -> Any:
    if block is None:
        return None
    if block == "log":
        return FunctionTransformer(np.log, np.exp, check_inverse=False).fit(np.ones((1, n_features)))
    kind, attributes = _SCALERS[block["scaler"]]
    scaler = kind(**{param: label_from_json(value) for param, value in block["params"].items()})
    for attribute in attributes:
        array = None
        if attribute in block["arrays"]:
            array = tensors.take(f"scaler.{attribute}", (n_features,), dtypes=("float64", "float32"))
        setattr(scaler, attribute, array)
    scaler.n_features_in_ = n_features
    return FrozenEstimator(scaler) if block["frozen"] else scaler


def unfitted(fitted: Any) -> Any:
    """Give the parameter that `fitted` was made from."""
    return "log" if isinstance(fitted, FunctionTransformer) else clone(fitted) if fitted is not None else None
