"""Keep a fitted estimator in one file that is read without running any code.

The file is safetensors: arrays of numbers, and a header of JSON. Nothing is pickled, so a file from a stranger can do
no more than be wrong, and `load` says so. A loaded estimator does what the saved one did, bit for bit.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler
from sklearn.utils.validation import check_is_fitted

from fairsteer._calibration import GroupCalibration
from fairsteer._group_map_transformer import GroupMapTransformer, Solution
from fairsteer._json_labels import label_from_json, label_to_json, labels_from_json, labels_to_json
from fairsteer._score_maps import (
    Alignment,
    Calibration,
    Constraint,
    MonotoneAlignment,
    OffsetAlignment,
    ScoreDistribution,
)
from fairsteer.baselines import CovarianceMatchingTransformer, GroupMaps, LeaceTransformer, MeanMatchingTransformer
from fairsteer.classifier import IdealDistributionClassifier
from fairsteer.concepts import ConceptSteering
from fairsteer.groups import GroupEncoder
from fairsteer.ideal import IdealDistribution
from fairsteer.moments import SubgroupMoments
from fairsteer.transformer import FairSteeringTransformer

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["FORMAT_VERSION", "load", "read_extra", "save"]

#: Version of the file format; a file of another version is refused.
FORMAT_VERSION = 2

_PathLike = str | os.PathLike[str]

# Transformers that can be saved. A subclass may have anything in it, so it cannot.
_TRANSFORMERS: dict[str, type[GroupMapTransformer]] = {
    kind.__name__: kind
    for kind in (FairSteeringTransformer, MeanMatchingTransformer, CovarianceMatchingTransformer, LeaceTransformer)
}

_OTHER_WAYS = "skops.io.dump keeps any scikit-learn estimator; so does joblib.dump, whose files run code when loaded."

# Scalers that are affine maps of each feature, and the fitted arrays that make them up.
_SCALERS: dict[str, tuple[type, tuple[str, ...]]] = {
    "StandardScaler": (StandardScaler, ("mean_", "var_", "scale_")),
    "MinMaxScaler": (MinMaxScaler, ("min_", "scale_", "data_min_", "data_max_", "data_range_")),
    "MaxAbsScaler": (MaxAbsScaler, ("scale_", "max_abs_")),
    "RobustScaler": (RobustScaler, ("center_", "scale_")),
}

# One entry of metadata, checksum and JSON: safetensors would write several in an order that changes from run to run.
_KEY = "fairsteer"

# What `SubgroupMoments` accumulates, in its order.
_SUMS = ("weights", "weight_squares", "means", "scatters", "cubics", "quartics")

# Attributes of an ideal distribution that JSON holds as they are.
_IDEAL_PLAIN: dict[str, type] = {
    "intervention": str,
    "alignment": str,
    "covariance": str,
    "n_iter": int,
    "converged": bool,
}


def save(
    estimator: GroupMapTransformer | IdealDistributionClassifier | ConceptSteering,
    path: _PathLike,
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a fitted estimator to a file.

    Parameters
    ----------
    estimator : estimator of fairsteer
        A fitted FairSteeringTransformer, transformer of :mod:`fairsteer.baselines`, IdealDistributionClassifier or
        :class:`~fairsteer.concepts.ConceptSteering`. A function, slice or mask as `sensitive_columns` is kept as the
        columns that it selected; the `steering` of a classifier as a clone of its ``steering_``.
    path : path-like
        File to create or replace, usually ``*.safetensors``. It is replaced only when the new one is complete.
    extra : mapping, optional
        Values of your own that `json` can write; `read_extra` returns them.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.
    ValueError
        If something cannot be kept without running code at `load`: an estimator as `shrinkage`, a `feature_transform`
        other than None, ``"log"`` or a standard, min-max, max-abs or robust scaler, labels other than integers, floats,
        text, booleans and tuples of these, an `estimator` in the classifier, a `cv` or a `random_state` that is no
        number, a subclass, or any other estimator, such as :class:`~fairsteer.ScoreAligner`.
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
    tensors: dict[str, NDArray[Any]] = {}
    header = {
        "format_version": FORMAT_VERSION,
        "kind": type(estimator).__name__,
        **_pack(estimator, tensors),
        "extra": None if extra is None else dict(extra),
    }
    try:
        text = json.dumps(header)
    except (TypeError, ValueError) as error:
        msg = f"extra must hold values that json can write: {error}."
        raise ValueError(msg) from error
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    content = safetensors.numpy.save(arrays, metadata={_KEY: _checksum(text, arrays) + text})
    target = Path(path).resolve()  # a link stays a link
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: _PathLike) -> Any:
    """Read a fitted estimator from a file that `save` wrote.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    estimator
        Fitted, of the class that was saved; it does everything as the saved one did, further batches included.

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
        return _unpack(header, _Tensors(tensors))
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
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


# ---- the estimators


def _pack(estimator: Any, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    if type(estimator) in _TRANSFORMERS.values():
        return {"transformer": _pack_transformer(estimator, tensors)}
    if type(estimator) is IdealDistributionClassifier:
        return {"classifier": _pack_classifier(estimator, tensors)}
    if type(estimator) is ConceptSteering:
        return {"concept": _pack_concept(estimator, tensors)}
    kinds = ", ".join([*_TRANSFORMERS, IdealDistributionClassifier.__name__, ConceptSteering.__name__])
    msg = f"{type(estimator).__name__} cannot be saved without pickling it; {kinds} themselves can. {_OTHER_WAYS}"
    raise ValueError(msg)


def _unpack(header: Mapping[str, Any], tensors: _Tensors) -> Any:
    if header["kind"] == IdealDistributionClassifier.__name__:
        return _unpack_classifier(header["classifier"], tensors)
    if header["kind"] == ConceptSteering.__name__:
        return _unpack_concept(header["concept"], tensors)
    return _unpack_transformer(_TRANSFORMERS[header["kind"]], header["transformer"], tensors)


def _pack_classifier(classifier: IdealDistributionClassifier, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    check_is_fitted(classifier, "steering_")
    if classifier.estimator_ is not None:
        msg = (
            f"estimator={classifier.estimator_!r} cannot be saved without pickling it; estimator=None can, and so can "
            f"the steering_ alone. {_OTHER_WAYS}"
        )
        raise ValueError(msg)
    _check_number("cv", classifier.cv, 5)
    if type(classifier.steering_) is not FairSteeringTransformer:
        msg = (
            f"steering={classifier.steering_!r} cannot be saved without pickling it; a FairSteeringTransformer itself "
            f"can. {_OTHER_WAYS}"
        )
        raise ValueError(msg)
    if classifier.cost_matrix_ is not None:
        tensors["cost_matrix"] = classifier.cost_matrix_
    return {
        "steering": _pack_transformer(classifier.steering_, tensors),
        "default_steering": classifier.steering is None,
        "costs": classifier.cost_matrix_ is not None,
        "score_alignment": label_to_json(classifier.score_alignment),
        "cv": label_to_json(classifier.cv),
        "alignment": _pack_alignment(classifier._alignment, tensors),
    }


def _unpack_classifier(block: Mapping[str, Any], tensors: _Tensors) -> IdealDistributionClassifier:
    steering: Any = _unpack_transformer(FairSteeringTransformer, block["steering"], tensors)
    K, G = len(steering.classes_), len(steering.groups_)
    costs = tensors.take("cost_matrix", (K, K)) if block["costs"] else None
    classifier = IdealDistributionClassifier(
        None if block["default_steering"] else clone(steering),
        cost_matrix=None if costs is None else costs.copy(),
        score_alignment=label_from_json(block["score_alignment"]),
        cv=label_from_json(block["cv"]),
    )
    classifier.steering_, classifier.estimator_, classifier.cost_matrix_ = steering, None, costs
    classifier.classes_, classifier.n_features_in_ = steering.classes_, steering.n_features_in_
    if hasattr(steering, "feature_names_in_"):
        classifier.feature_names_in_ = steering.feature_names_in_
    classifier._alignment = _unpack_alignment(block["alignment"], K, G, tensors)
    return classifier


def _pack_concept(steering: ConceptSteering, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    check_is_fitted(steering, "directions_")
    _check_number("random_state", steering.random_state, 0)
    tensors.update({"concept.directions": steering.directions_, "concept.separation": steering.separation_})
    return {
        "params": {name: label_to_json(value) for name, value in steering.get_params(deep=False).items()},
        "encoder": _pack_encoder(steering._encoder),
        "moments": _pack_moments(steering.probe_moments_, tensors),
        "ideal": _pack_ideal(steering.ideal_, tensors),
    }


def _unpack_concept(block: Mapping[str, Any], tensors: _Tensors) -> ConceptSteering:
    steering = ConceptSteering(**{name: label_from_json(value) for name, value in block["params"].items()})
    moments = _unpack_moments(block["moments"], tensors)
    K, G, d = moments.means.shape
    steering.classes_, steering.groups_, steering.n_features_in_ = moments.classes, moments.groups, d
    steering.probe_moments_, steering.ideal_ = moments, _unpack_ideal(block["ideal"], moments, tensors)
    steering.directions_ = tensors.take("concept.directions", (K, G, d))
    steering.separation_ = tensors.take("concept.separation", (K, G))
    encoder = _unpack_encoder(block["encoder"], moments.groups)
    if encoder is None:
        msg = "it does not say what its groups are made of"
        raise ValueError(msg)
    steering._encoder = encoder
    return steering


def _check_number(name: str, value: Any, replacement: int) -> None:
    if not (value is None or isinstance(value, Integral)):
        msg = (
            f"{name}={value!r} cannot be saved without pickling it. The way out: set_params({name}={replacement}), for "
            f"what has been fitted needs its {name} no more."
        )
        raise ValueError(msg)


def _pack_transformer(transformer: GroupMapTransformer, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Describe a fitted transformer in JSON and add its arrays to `tensors`."""
    model, maps, _ = transformer._fitted()
    if isinstance(maps, IdealDistribution):
        ideal = _pack_ideal(maps, tensors)
    else:
        ideal = None
        tensors.update({"maps.linear": maps.linear, "maps.offset": maps.offset})
    return {
        "params": _pack_params(transformer),
        "output": getattr(transformer, "_sklearn_output_config", {}).get("transform"),
        "n_features_in": transformer.n_features_in_,
        "feature_names_in": _pack_names(getattr(transformer, "feature_names_in_", None)),
        "sensitive_positions": list(transformer._sensitive_positions),
        "class_blind": transformer._class_blind,
        "encoder": _pack_encoder(transformer._encoder),
        "feature_transform": _pack_coordinates(transformer, tensors),
        "moments": _pack_moments(transformer.moments_, tensors),
        "model": _pack_model(model, tensors),
        "calibration": _pack_calibration(transformer.group_calibration_, tensors),
        "ideal": ideal,
    }


def _unpack_transformer(
    kind: type[GroupMapTransformer], block: Mapping[str, Any], tensors: _Tensors
) -> GroupMapTransformer:
    moments = _unpack_moments(block["moments"], tensors)
    model = _unpack_model(block["model"], moments, tensors)
    coordinates = _unpack_coordinates(block["feature_transform"], moments.n_features, tensors)
    transformer = kind(**_unpack_params(kind, block["params"], coordinates))
    transformer.n_features_in_ = _integer(block["n_features_in"])
    names = _unpack_names(block["feature_names_in"])
    if names is not None:
        transformer.feature_names_in_ = np.array(names, dtype=object)
    transformer._sensitive_positions = [_integer(position) for position in block["sensitive_positions"]]
    transformer._class_blind = bool(block["class_blind"])
    transformer._encoder = _unpack_encoder(block["encoder"], moments.groups)
    transformer.feature_transform_ = coordinates
    transformer.moments_, transformer.classes_ = moments, moments.classes
    transformer._merge_labels()
    if transformer.groups_.tolist() != model.groups.tolist():
        msg = f"its model has the groups {model.groups.tolist()}, its moments {transformer.groups_.tolist()}"
        raise ValueError(msg)
    ideal = kind is FairSteeringTransformer
    maps = _unpack_ideal(block["ideal"], model, tensors) if ideal else _unpack_maps(kind, model, tensors)
    transformer._solution = Solution.of(model, maps)
    transformer.group_calibration_ = _unpack_calibration(block["calibration"], model.n_groups, tensors)
    _check_columns(transformer, moments.n_features)
    if block["output"] is not None:
        transformer.set_output(transform=str(block["output"]))
    return transformer


def _pack_params(transformer: GroupMapTransformer) -> dict[str, Any]:
    params = transformer.get_params(deep=False)
    params.pop("feature_transform", None)  # rebuilt from the fitted one
    if hasattr(transformer.shrinkage, "fit"):
        msg = (
            f"shrinkage={transformer.shrinkage!r} is an estimator and cannot be saved without pickling it; "
            "'ledoit_wolf', 'oas', a number in [0, 1] and None can."
        )
        raise ValueError(msg)
    columns = params["sensitive_columns"]
    if columns is not None and not isinstance(columns, (str, Integral)):  # a function, a slice, ...: what it selected
        names = getattr(transformer, "feature_names_in_", range(transformer.n_features_in_))
        params["sensitive_columns"] = tuple(names[position] for position in transformer._sensitive_positions)
    return {name: label_to_json(value) for name, value in params.items()}


def _unpack_params(kind: type[GroupMapTransformer], block: Mapping[str, Any], fitted: Any) -> dict[str, Any]:
    params = {name: label_from_json(value) for name, value in block.items()}
    known = kind().get_params(deep=False)
    if "feature_transform" in known:
        params["feature_transform"] = _unfitted(fitted)
    if set(params) != set(known):
        msg = f"its parameters are {sorted(params)}"
        raise ValueError(msg)
    if isinstance(params["sensitive_columns"], tuple):
        params["sensitive_columns"] = list(params["sensitive_columns"])
    return params


def _check_columns(transformer: GroupMapTransformer, n_features: int) -> None:
    n_columns, positions = transformer.n_features_in_, transformer._sensitive_positions
    names = getattr(transformer, "feature_names_in_", None)
    if len(set(positions)) != n_columns - n_features or not all(0 <= p < n_columns for p in positions):
        msg = f"it has {n_columns} columns, the sensitive ones at {positions}, and {n_features} features"
        raise ValueError(msg)
    if names is not None and len(names) != n_columns:
        msg = f"it has {len(names)} names for {n_columns} columns"
        raise ValueError(msg)


def _pack_encoder(encoder: GroupEncoder | None) -> dict[str, Any] | None:
    if encoder is None:
        return None
    return {"n_columns": encoder.n_columns_, "column_names": _pack_names(encoder.column_names_)}


def _unpack_encoder(block: Mapping[str, Any] | None, groups: NDArray[Any]) -> GroupEncoder | None:
    if block is None:
        return None
    encoder = GroupEncoder()
    encoder.groups_ = groups
    encoder.n_columns_ = _integer(block["n_columns"])
    encoder.column_names_ = _unpack_names(block["column_names"])
    return encoder


# ---- coordinates


def _pack_coordinates(transformer: GroupMapTransformer, tensors: dict[str, NDArray[Any]]) -> Any:
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


def _unpack_coordinates(block: Any, n_features: int, tensors: _Tensors) -> Any:
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


def _unfitted(fitted: Any) -> Any:
    """Give the parameter that `fitted` was made from."""
    return "log" if isinstance(fitted, FunctionTransformer) else clone(fitted) if fitted is not None else None


# ---- distributions


def _scatter_shape(covariance: str, K: int, G: int, d: int) -> tuple[int, ...]:
    return {"tied": (G, d, d), "full": (K, G, d, d), "diagonal": (K, G, d)}[covariance]


def _pack_moments(moments: SubgroupMoments, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    tensors.update(zip((f"moments.{name}" for name in _SUMS), moments._sums(), strict=True))
    return {
        "n_features": moments.n_features,
        "covariance": moments.covariance,
        "classes": labels_to_json(moments.classes),
        "groups": labels_to_json(moments.groups),
    }


def _unpack_moments(block: Mapping[str, Any], tensors: _Tensors) -> SubgroupMoments:
    classes, groups = labels_from_json(block["classes"]), labels_from_json(block["groups"])
    covariance, K, G, d = block["covariance"], len(classes), len(groups), _integer(block["n_features"])
    quartic = (K, G, d) if covariance == "diagonal" else (K, G)
    shapes = ((K, G), (K, G), (K, G, d), _scatter_shape(covariance, K, G, d), (K, G, d), quartic)
    # Taken first, so that a header's word alone never makes memory be allocated.
    sums = [tensors.take(f"moments.{name}", shape) for name, shape in zip(_SUMS, shapes, strict=True)]
    moments = SubgroupMoments(d, classes=classes, groups=groups, covariance=covariance)
    for to, array in zip(moments._sums(), sums, strict=True):
        to[...] = array
    _check_weights(moments)
    return moments


def _pack_model(model: SubgroupMoments, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Describe the moments that were projected: merged, shrunk and filled up ones."""
    tensors.update({f"model.{name}": getattr(model, name) for name in ("weights", "means", "covariances")})
    return {"groups": labels_to_json(model.groups)}


def _unpack_model(block: Mapping[str, Any], moments: SubgroupMoments, tensors: _Tensors) -> SubgroupMoments:
    groups = labels_from_json(block["groups"])
    K, G, d = moments.n_classes, len(groups), moments.n_features
    weights, means = tensors.take("model.weights", (K, G)), tensors.take("model.means", (K, G, d))
    covariances = tensors.take("model.covariances", _scatter_shape(moments.covariance, K, G, d))
    model = SubgroupMoments(d, classes=moments.classes, groups=groups, covariance=moments.covariance)
    model.weights[...], model.means[...] = weights, means
    _check_weights(model)
    return model._replace_covariances(covariances)


def _check_weights(moments: SubgroupMoments) -> None:
    if (moments.weights < 0).any() or not moments.weights.any():
        msg = "a weight is negative or all are zero"
        raise ValueError(msg)


def _pack_calibration(calibration: GroupCalibration | None, tensors: dict[str, NDArray[Any]]) -> Any:
    if calibration is None:
        return None
    tensors["calibration.offsets"] = calibration.offsets
    return label_to_json(calibration.slope)


def _unpack_calibration(slope: Any, n_groups: int, tensors: _Tensors) -> GroupCalibration | None:
    if slope is None:
        return None
    return GroupCalibration(float(label_from_json(slope)), tensors.take("calibration.offsets", (n_groups,)))


def _unpack_maps(kind: type[GroupMapTransformer], model: SubgroupMoments, tensors: _Tensors) -> GroupMaps:
    n_maps, d = 1 if kind is LeaceTransformer else model.n_groups, model.n_features
    return GroupMaps(tensors.take("maps.linear", (n_maps, d, d)), tensors.take("maps.offset", (n_maps, d)))


def _pack_ideal(ideal: IdealDistribution, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    shapes = _ideal_shapes(ideal.covariance, len(ideal.classes), *ideal.offset.shape)
    tensors.update({f"ideal.{name}": getattr(ideal, name) for name in shapes})
    return {
        "classes": labels_to_json(ideal.classes),
        "reference_group": label_to_json(ideal.reference_group),
        "kl_divergence": label_to_json(ideal.kl_divergence),
        **{name: getattr(ideal, name) for name in _IDEAL_PLAIN},
    }


def _unpack_ideal(block: Mapping[str, Any], moments: SubgroupMoments, tensors: _Tensors) -> IdealDistribution:
    classes, covariance = labels_from_json(block["classes"]), str(block["covariance"])
    shapes = _ideal_shapes(covariance, len(classes), moments.n_groups, moments.n_features)
    arrays: dict[str, Any] = {name: tensors.take(f"ideal.{name}", shape) for name, shape in shapes.items()}
    plain: dict[str, Any] = {name: kind(block[name]) for name, kind in _IDEAL_PLAIN.items()}
    return IdealDistribution(
        classes=classes,
        groups=moments.groups.copy(),
        reference_group=label_from_json(block["reference_group"]),
        kl_divergence=float(label_from_json(block["kl_divergence"])),
        **plain,
        **arrays,
    )


def _ideal_shapes(covariance: str, K: int, G: int, d: int) -> dict[str, tuple[int | None, ...]]:
    """Shape of every array of an ideal distribution; None for any length."""
    return {
        "class_prior": (K,),
        "group_prior": (G,),
        "canonical_means": (K, d),
        "canonical_covariances": {"tied": (d, d), "full": (K, d, d), "diagonal": (K, d)}[covariance],
        "cell_divergence": (K, G),
        "objective_path": (None,),
        "source_weights": (K, G),
        "source_means": (K, G, d),
        "source_covariances": _scatter_shape(covariance, K, G, d),
        "linear": (G, d, d),
        "offset": (G, d),
    }


def _pack_alignment(alignment: Any, tensors: dict[str, NDArray[Any]]) -> dict[str, Any] | None:
    if alignment is None:
        return None
    tensors["alignment.measured"] = alignment.measured
    block = {"budget": label_to_json(float(alignment.budget))}
    if isinstance(alignment, OffsetAlignment):
        tensors["alignment.offsets"] = alignment.offsets
        return block | {"constraint": alignment.constraint}
    calibration = alignment.calibration
    tensors["alignment.shares"] = alignment.shares
    tensors["alignment.calibration"] = np.stack([calibration.scores, calibration.log_odds])
    for a, distribution in enumerate(alignment.distributions):
        tensors[f"alignment.distribution.{a}"] = np.stack([distribution.values, distribution.levels])
    return block | {
        "amount": label_to_json(float(alignment.amount)),
        "scales": [label_to_json(float(distribution.scale)) for distribution in alignment.distributions],
    }


def _unpack_alignment(block: Mapping[str, Any] | None, K: int, G: int, tensors: _Tensors) -> Alignment | None:
    if block is None:
        return None
    measured = tensors.take("alignment.measured", (1 if K == 2 else K, G, G), nan=True)
    budget = float(label_from_json(block["budget"]))
    if K > 2:
        if block["constraint"] not in get_args(Constraint):
            msg = f"its constraint is {block['constraint']!r}"
            raise ValueError(msg)
        return OffsetAlignment(tensors.take("alignment.offsets", (G, K)), block["constraint"], measured, budget)
    amount, scales = float(label_from_json(block["amount"])), [float(label_from_json(s)) for s in block["scales"]]
    if len(scales) != G or not all(0 < scale < np.inf for scale in scales) or not 0 <= amount <= 1:
        msg = f"its score alignment has the amount {amount} and the scales {scales} for {G} groups"
        raise ValueError(msg)
    distributions = []
    for a, scale in enumerate(scales):
        values, levels = _increasing(f"alignment.distribution.{a}", tensors)
        if not 0 < levels[0] <= levels[-1] < 1:
            msg = f"the levels of a score distribution go from {levels[0]} to {levels[-1]}"
            raise ValueError(msg)
        distributions.append(ScoreDistribution(values, levels, scale))
    calibration = Calibration(*_increasing("alignment.calibration", tensors))
    shares = tensors.take("alignment.shares", (G,))
    return MonotoneAlignment(tuple(distributions), shares, amount, calibration, measured, budget)


def _increasing(name: str, tensors: _Tensors) -> NDArray[Any]:
    """Take the points of an increasing function: their abscissae, then their ordinates."""
    points = tensors.take(name, (2, None))
    if not points.size or (np.diff(points) < 0).any():
        msg = f"the array {name} does not increase"
        raise ValueError(msg)
    return points


# ---- the file


class _Tensors:
    """The arrays of a file, each taken under the dtype and shape it must have."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = arrays

    def take(
        self, name: str, shape: tuple[int | None, ...], dtypes: Sequence[str] = ("float64",), *, nan: bool = False
    ) -> NDArray[Any]:
        """Return a copy of an array; raise ValueError if it is absent or not what it must be."""
        array = self._arrays.get(name)
        if array is None:
            msg = f"the array {name} is absent"
            raise ValueError(msg)
        fits = len(shape) == array.ndim and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
        if not fits or array.dtype.name not in dtypes:
            msg = f"the array {name} has shape {array.shape} and dtype {array.dtype}, not {shape} and {dtypes[0]}"
            raise ValueError(msg)
        if not (np.isfinite(array) | (nan & np.isnan(array))).all():
            msg = f"the array {name} is not finite"
            raise ValueError(msg)
        return np.array(array)


def _read(path: _PathLike) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and arrays of a file, their integrity checked."""
    safetensors = _safetensors()
    content = Path(path).read_bytes()
    try:
        tensors = safetensors.numpy.load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except Exception as error:  # safetensors raises an exception class of its own, KeyError for unknown dtypes, …
        raise _damaged(path, ValueError("it is no safetensors file, or cut short")) from error
    if _KEY not in metadata:
        raise _damaged(path, ValueError("it is a safetensors file of something else"))
    checksum, text = metadata[_KEY][:8], metadata[_KEY][8:]
    try:
        header = json.loads(text)
        version = header["format_version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, ValueError("its header cannot be read")) from error
    if version != FORMAT_VERSION:
        msg = (
            f"{path} has format version {version!r}, and this fairsteer reads version {FORMAT_VERSION}; use the "
            "fairsteer that wrote it, or save it anew."
        )
        raise ValueError(msg)
    if checksum != _checksum(text, tensors):
        raise _damaged(path, ValueError("its checksum does not agree"))
    return header, tensors


def _checksum(text: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    """CRC-32 of the header's text and of all arrays, against accidents (not against forgery)."""
    value = zlib.crc32(text.encode())
    for name in sorted(tensors):
        value = zlib.crc32(np.ascontiguousarray(tensors[name]).data, zlib.crc32(name.encode(), value))
    return f"{value:08x}"


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        msg = "Saving and loading need safetensors: pip install safetensors brings it (so does fairsteer[cli])."
        raise ImportError(msg) from error
    return safetensors


def _damaged(path: _PathLike, error: Exception) -> ValueError:
    reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
    return ValueError(f"{path} is damaged or no saved map of fairsteer: {reason}.")


def _integer(value: Any) -> int:
    if type(value) is not int:
        msg = f"{value!r} is no integer"
        raise TypeError(msg)
    return value


def _pack_names(names: Sequence[Any] | NDArray[Any] | None) -> list[Any] | None:
    return None if names is None else [label_to_json(name) for name in names]


def _unpack_names(names: Sequence[Any] | None) -> list[Any] | None:
    return None if names is None else [label_from_json(name) for name in names]
