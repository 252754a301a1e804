"""Keep a fitted transformer in one file that is read without running any code.

The file is safetensors: arrays of numbers, and a header of JSON. Nothing is pickled, so a file from a stranger can do no
more than be wrong, and `load` says so. A loaded transformer does what the saved one did, bit for bit.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

from fairsteer.groups import GroupEncoder
from fairsteer.ideal import Certificate, IdealDistribution
from fairsteer.moments import SubgroupMoments
from fairsteer.transformer import FairSteeringTransformer

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["FORMAT_VERSION", "label_from_json", "label_to_json", "load", "read_extra", "save"]

#: Version of the file format; a file of another version is refused.
FORMAT_VERSION = 1

Doubles = NDArray[np.float64]
_PathLike = str | os.PathLike[str]

# Scalers that are affine maps of each feature, and the fitted arrays that make them up.
_SCALERS: dict[str, tuple[type, tuple[str, ...]]] = {
    "StandardScaler": (StandardScaler, ("mean_", "var_", "scale_")),
    "MinMaxScaler": (MinMaxScaler, ("min_", "scale_", "data_min_", "data_max_", "data_range_")),
    "MaxAbsScaler": (MaxAbsScaler, ("scale_", "max_abs_")),
    "RobustScaler": (RobustScaler, ("center_", "scale_")),
}


def save(
    transformer: FairSteeringTransformer, path: _PathLike, *, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a fitted transformer to a file.

    Parameters
    ----------
    transformer : FairSteeringTransformer
        Fitted.
    path : path-like
        File to create or replace, usually ``*.safetensors``. It is replaced only when the new one is complete.
    extra : mapping, optional
        Values of your own that `json` can write; `read_extra` returns them.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    sklearn.exceptions.NotFittedError
        If the transformer is not fitted.
    ValueError
        If something cannot be kept without running code at `load`: an estimator as `shrinkage`, a `feature_transform`
        other than None, ``"log"`` or a standard, min-max, max-abs or robust scaler, labels other than integers, floats,
        text, booleans and tuples of these, or a subclass of FairSteeringTransformer.
    OSError
        If the file cannot be written.

    See Also
    --------
    load : The way back.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from fairsteer import FairSteeringTransformer, persistence
    >>> X = np.arange(16.0).reshape(8, 2) ** 1.5
    >>> groups = ["a", "b"] * 4
    >>> steer = FairSteeringTransformer().fit(X, [0, 0, 1, 1] * 2, sensitive_features=groups)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     persistence.save(steer, Path(folder) / "map.safetensors")
    ...     again = persistence.load(Path(folder) / "map.safetensors")
    >>> steered = steer.transform(X, sensitive_features=groups)
    >>> bool((again.transform(X, sensitive_features=groups) == steered).all())
    True
    """
    safetensors = _safetensors()
    if type(transformer) is not FairSteeringTransformer:
        msg = f"Only a FairSteeringTransformer itself can be saved, not a {type(transformer).__name__}."
        raise ValueError(msg)
    tensors: dict[str, NDArray[Any]] = {}
    header = {
        "format_version": FORMAT_VERSION,
        "kind": "FairSteeringTransformer",
        "transformer": _pack_transformer(transformer, tensors),
        "extra": None if extra is None else dict(extra),
    }
    try:
        text = json.dumps(header)
    except (TypeError, ValueError) as error:
        msg = f"extra must hold values that json can write: {error}."
        raise ValueError(msg) from error
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    content = safetensors.numpy.save(arrays, metadata={"fairsteer": text})
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: _PathLike) -> FairSteeringTransformer:
    """Read a fitted transformer from a file that `save` wrote.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    FairSteeringTransformer
        Fitted; it transforms, inverts, steers, infers groups and takes further batches as the saved one did.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    ValueError
        If the file is damaged, no such file, or of another format version.
    OSError
        If the file cannot be read.
    """
    header, tensors = _read(path)
    try:
        return _unpack_transformer(header["transformer"], _Tensors(tensors))
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def read_extra(path: _PathLike) -> dict[str, Any] | None:
    """Read the values that were given to `save` as `extra`.

    Parameters
    ----------
    path : path-like
        A file that `save` wrote.

    Returns
    -------
    dict or None
        What was given; None if nothing was.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    ValueError
        If the file is damaged, no such file, or of another format version.
    OSError
        If the file cannot be read.
    """
    extra = _read(path)[0].get("extra")
    if extra is not None and not isinstance(extra, dict):
        raise _damaged(path, ValueError("its extra block is no object"))
    return extra


# ---- labels, which JSON alone would confuse: 1, True, 1.0 and "1" are tagged with their types


def label_to_json(label: Any) -> Any:
    """Tag a label with its type.

    Parameters
    ----------
    label : int, float, str, bool, None, NumPy scalar of these, or tuple
        A label.

    Returns
    -------
    dict or None
        What `json` can write and `label_from_json` reads; None for None.

    Raises
    ------
    ValueError
        If the label has another type.
    """
    if label is None:
        return None
    if isinstance(label, np.generic) and label.dtype.kind in "biufU":
        return {"numpy": label.dtype.str, "value": label_to_json(label.item())}
    if type(label) is float:
        return {"float": label.hex()}
    if type(label) in (bool, int, str):
        return {type(label).__name__: label}
    if type(label) is tuple:
        return {"tuple": [label_to_json(part) for part in label]}
    msg = (
        f"The label {label!r} of type {type(label).__name__} cannot be saved; integers, floats, text, booleans and "
        "tuples of these can."
    )
    raise ValueError(msg)


def label_from_json(tagged: Any) -> Any:
    """Read what `label_to_json` wrote.

    Parameters
    ----------
    tagged : dict or None
        A tagged label.

    Returns
    -------
    label
        Equal to the one that was tagged, and of its type.

    Raises
    ------
    ValueError
        If it is no tagged label.
    """
    match tagged:
        case None:
            return None
        case {"bool": bool(value)} | {"int": int(value)} | {"str": str(value)}:
            return value
        case {"float": str(value)}:
            return float.fromhex(value)
        case {"tuple": list(parts)}:
            return tuple(label_from_json(part) for part in parts)
        case {"numpy": str(dtype), "value": value} if np.dtype(dtype).kind in "biufU":
            return np.dtype(dtype).type(label_from_json(value))
    msg = f"{tagged!r} is no label"
    raise ValueError(msg)


def _labels_to_json(labels: NDArray[Any]) -> dict[str, Any]:
    """Labels and the dtype of their array."""
    if labels.dtype.kind not in "biufUO":
        msg = f"Labels of dtype {labels.dtype} cannot be saved; integers, floats, text and booleans can."
        raise ValueError(msg)
    dtype = "object" if labels.dtype.kind == "O" else labels.dtype.str
    return {"dtype": dtype, "labels": [label_to_json(label) for label in labels.tolist()]}


def _labels_from_json(block: Mapping[str, Any]) -> NDArray[Any]:
    labels = [label_from_json(label) for label in block["labels"]]
    dtype = np.dtype(block["dtype"])
    if dtype.kind not in "biufUO":
        msg = f"labels have dtype {dtype}"
        raise ValueError(msg)
    array = np.empty(len(labels), dtype=dtype)
    array[:] = labels
    return array


# ---- the transformer


def _pack_transformer(transformer: FairSteeringTransformer, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Describe a fitted transformer in JSON and add its arrays to `tensors`."""
    shrunk, ideal = transformer._fitted()
    encoder = transformer._encoder
    config = getattr(transformer, "_sklearn_output_config", {})
    return {
        "params": _pack_params(transformer),
        "output": config.get("transform"),
        "n_features_in": transformer.n_features_in_,
        "feature_names_in": _names(getattr(transformer, "feature_names_in_", None)),
        "sensitive_positions": list(transformer._sensitive_positions),
        "class_blind": transformer._class_blind,
        "encoder": None if encoder is None else _pack_encoder(encoder),
        "feature_transform": _pack_coordinates(transformer.feature_transform_, "feature_transform_.", tensors),
        "moments": _pack_moments(transformer.moments_, shrunk, tensors),
        "ideal": _pack_ideal(ideal, tensors),
    }


def _unpack_transformer(block: Mapping[str, Any], tensors: _Tensors) -> FairSteeringTransformer:
    moments, shrunk = _unpack_moments(block["moments"], tensors)
    coordinates = _unpack_coordinates(block["feature_transform"], "feature_transform_.", moments.n_features, tensors)
    transformer = FairSteeringTransformer(**_unpack_params(block["params"], tensors, moments.n_features))
    transformer.n_features_in_ = _integer(block["n_features_in"])
    if block["feature_names_in"] is not None:
        transformer.feature_names_in_ = np.array(_texts(block["feature_names_in"]), dtype=object)
    transformer._sensitive_positions = [_integer(position) for position in block["sensitive_positions"]]
    transformer._class_blind = bool(block["class_blind"])
    transformer._encoder = None if block["encoder"] is None else _unpack_encoder(block["encoder"], moments)
    transformer.feature_transform_ = coordinates
    transformer.moments_, transformer.classes_, transformer.groups_ = moments, moments.classes, moments.groups
    transformer._solution = (shrunk, _unpack_ideal(block["ideal"], moments, tensors))
    _check_columns(transformer, moments.n_features)
    if block["output"] is not None:
        transformer.set_output(transform=str(block["output"]))
    return transformer


def _check_columns(transformer: FairSteeringTransformer, n_features: int) -> None:
    n_columns, positions = transformer.n_features_in_, transformer._sensitive_positions
    names = getattr(transformer, "feature_names_in_", None)
    if len(set(positions)) != n_columns - n_features or not all(0 <= p < n_columns for p in positions):
        msg = f"it has {n_columns} columns, the sensitive ones at {positions}, and {n_features} features"
        raise ValueError(msg)
    if names is not None and len(names) != n_columns:
        msg = f"it has {len(names)} names for {n_columns} columns"
        raise ValueError(msg)


def _pack_params(transformer: FairSteeringTransformer) -> dict[str, Any]:
    params = transformer.get_params(deep=False)
    if hasattr(params["shrinkage"], "fit"):
        msg = (
            f"shrinkage={params['shrinkage']!r} is an estimator and cannot be saved without pickling it; 'ledoit_wolf', "
            "'oas', a number in [0, 1] and None can."
        )
        raise ValueError(msg)
    columns = params["sensitive_columns"]
    if columns is not None and not isinstance(columns, str) and np.ndim(columns) == 1:
        columns = tuple(columns)
    params["sensitive_columns"] = columns
    transform = params.pop("feature_transform")
    packed = {name: label_to_json(value) for name, value in params.items()}
    return {**packed, "feature_transform": _pack_unfitted(transform)}


def _unpack_params(block: Mapping[str, Any], tensors: _Tensors, n_features: int) -> dict[str, Any]:
    known = set(FairSteeringTransformer().get_params(deep=False))
    if set(block) != known:
        msg = f"its parameters are {sorted(block)}"
        raise ValueError(msg)
    params = {name: label_from_json(value) for name, value in block.items() if name != "feature_transform"}
    if isinstance(params["sensitive_columns"], tuple):
        params["sensitive_columns"] = list(params["sensitive_columns"])
    return {**params, "feature_transform": block["feature_transform"]}


# ---- labels of groups


def _pack_encoder(encoder: GroupEncoder) -> dict[str, Any]:
    return {"n_columns": encoder.n_columns_, "column_names": _names(encoder.column_names_)}


def _unpack_encoder(block: Mapping[str, Any], moments: SubgroupMoments) -> GroupEncoder:
    encoder = GroupEncoder()
    encoder.groups_ = moments.groups
    encoder.n_columns_ = _integer(block["n_columns"])
    encoder.column_names_ = None if block["column_names"] is None else _texts(block["column_names"])
    return encoder
