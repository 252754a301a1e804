"""Keep a fitted estimator in one file that is read without running any code.

The file is safetensors: arrays of numbers, and a header of JSON. Nothing is pickled, so a file from a stranger can do
no more than be wrong, and `load` says so. A loaded estimator does what the saved one did, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from fairsteer._utils.files import write_file
from fairsteer._utils.labels import label_from_json, label_to_json
from fairsteer._utils.types import PathLike
from fairsteer.baselines import CovarianceMatchingTransformer, GroupMaps, LeaceTransformer, MeanMatchingTransformer
from fairsteer.classifier import IdealDistributionClassifier
from fairsteer.concepts import ConceptSteering
from fairsteer.ideal import IdealDistribution
from fairsteer.moments import SubgroupMoments
from fairsteer.persistence._alignment import pack_alignment, unpack_alignment
from fairsteer.persistence._coordinates import pack_coordinates, unfitted, unpack_coordinates
from fairsteer.persistence._distributions import (
    pack_encoder,
    pack_ideal,
    pack_model,
    pack_moments,
    pack_names,
    unpack_encoder,
    unpack_ideal,
    unpack_model,
    unpack_moments,
    unpack_names,
)
from fairsteer.persistence._file import (
    FORMAT_VERSION,
    KEY,
    Tensors,
    checksum,
    damaged_file,
    import_safetensors,
    read_container,
    read_integer,
)
from fairsteer.transformer import FairSteeringTransformer
from fairsteer.transformer._base import GroupMapTransformer, Solution
from fairsteer.transformer._calibration import GroupCalibration

# Transformers that can be saved. A subclass may have anything in it, so it cannot.
_TRANSFORMERS: dict[str, type[GroupMapTransformer]] = {
    kind.__name__: kind
    for kind in (FairSteeringTransformer, MeanMatchingTransformer, CovarianceMatchingTransformer, LeaceTransformer)
}


_OTHER_WAYS = "skops.io.dump keeps any scikit-learn estimator; so does joblib.dump, whose files run code when loaded."


def save(
    estimator: GroupMapTransformer | IdealDistributionClassifier | ConceptSteering,
    path: PathLike,
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
    safetensors = import_safetensors()
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
    write_file(path, safetensors.numpy.save(arrays, metadata={KEY: checksum(text, arrays) + text}))


def load(path: PathLike) -> Any:
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
    header, tensors = read_container(path)
    try:
        return _unpack(header, Tensors(tensors))
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise damaged_file(path, error) from error


def read_extra(path: PathLike) -> dict[str, Any] | None:
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
    extra = read_container(path)[0].get("extra")
    if extra is not None and not isinstance(extra, dict):
        raise damaged_file(path, ValueError("its extra block is no object"))
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


def _unpack(header: Mapping[str, Any], tensors: Tensors) -> Any:
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
        "alignment": pack_alignment(classifier._alignment, tensors),
    }


def _unpack_classifier(block: Mapping[str, Any], tensors: Tensors) -> IdealDistributionClassifier:
    steering: Any = _unpack_transformer(FairSteeringTransformer, block["steering"], tensors)
    K, G = len(steering.classes_), len(steering.groups_)
    costs = tensors.take("cost_matrix", (K, K)) if block["costs"] else None
    classifier = IdealDistributionClassifier(
        steering=None if block["default_steering"] else clone(steering),
        cost_matrix=None if costs is None else costs.copy(),
        score_alignment=label_from_json(block["score_alignment"]),
        cv=label_from_json(block["cv"]),
    )
    classifier.steering_, classifier.estimator_, classifier.cost_matrix_ = steering, None, costs
    classifier.classes_, classifier.n_features_in_ = steering.classes_, steering.n_features_in_
    if hasattr(steering, "feature_names_in_"):
        classifier.feature_names_in_ = steering.feature_names_in_
    classifier._alignment = unpack_alignment(block["alignment"], K, G, tensors)
    return classifier


def _pack_concept(steering: ConceptSteering, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    check_is_fitted(steering, "directions_")
    _check_number("random_state", steering.random_state, 0)
    tensors.update({"concept.directions": steering.directions_, "concept.separation": steering.separation_})
    return {
        "params": {name: label_to_json(value) for name, value in steering.get_params(deep=False).items()},
        "encoder": pack_encoder(steering._encoder),
        "moments": pack_moments(steering.probe_moments_, tensors),
        "ideal": pack_ideal(steering.ideal_, tensors),
    }


def _unpack_concept(block: Mapping[str, Any], tensors: Tensors) -> ConceptSteering:
    steering = ConceptSteering(**{name: label_from_json(value) for name, value in block["params"].items()})
    moments = unpack_moments(block["moments"], tensors)
    K, G, d = moments.means.shape
    steering.classes_, steering.groups_, steering.n_features_in_ = moments.classes, moments.groups, d
    steering.probe_moments_, steering.ideal_ = moments, unpack_ideal(block["ideal"], moments, tensors)
    steering.directions_ = tensors.take("concept.directions", (K, G, d))
    steering.separation_ = tensors.take("concept.separation", (K, G))
    encoder = unpack_encoder(block["encoder"], moments.groups)
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
        ideal = pack_ideal(maps, tensors)
    else:
        ideal = None
        tensors.update({"maps.linear": maps.linear, "maps.offset": maps.offset})
    return {
        "params": _pack_params(transformer),
        "output": getattr(transformer, "_sklearn_output_config", {}).get("transform"),
        "n_features_in": transformer.n_features_in_,
        "feature_names_in": pack_names(getattr(transformer, "feature_names_in_", None)),
        "sensitive_positions": list(transformer._sensitive_positions),
        "class_blind": transformer._class_blind,
        "encoder": pack_encoder(transformer._encoder),
        "feature_transform": pack_coordinates(transformer, tensors),
        "moments": pack_moments(transformer.moments_, tensors),
        "model": pack_model(model, tensors),
        "calibration": _pack_calibration(transformer.group_calibration_, tensors),
        "ideal": ideal,
    }


def _unpack_transformer(
    kind: type[GroupMapTransformer], block: Mapping[str, Any], tensors: Tensors
) -> GroupMapTransformer:
    moments = unpack_moments(block["moments"], tensors)
    model = unpack_model(block["model"], moments, tensors)
    coordinates = unpack_coordinates(block["feature_transform"], moments.n_features, tensors)
    transformer = kind(**_unpack_params(kind, block["params"], coordinates))
    transformer.n_features_in_ = read_integer(block["n_features_in"])
    names = unpack_names(block["feature_names_in"])
    if names is not None:
        transformer.feature_names_in_ = np.array(names, dtype=object)
    transformer._sensitive_positions = [read_integer(position) for position in block["sensitive_positions"]]
    transformer._class_blind = bool(block["class_blind"])
    transformer._encoder = unpack_encoder(block["encoder"], moments.groups)
    transformer.feature_transform_ = coordinates
    transformer.moments_, transformer.classes_ = moments, moments.classes
    transformer._merge_labels()
    if transformer.groups_.tolist() != model.groups.tolist():
        msg = f"its model has the groups {model.groups.tolist()}, its moments {transformer.groups_.tolist()}"
        raise ValueError(msg)
    ideal = kind is FairSteeringTransformer
    maps = unpack_ideal(block["ideal"], model, tensors) if ideal else _unpack_maps(kind, model, tensors)
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
        params["feature_transform"] = unfitted(fitted)
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


def _pack_calibration(calibration: GroupCalibration | None, tensors: dict[str, NDArray[Any]]) -> Any:
    if calibration is None:
        return None
    tensors["calibration.offsets"] = calibration.offsets
    return label_to_json(calibration.slope)


def _unpack_calibration(slope: Any, n_groups: int, tensors: Tensors) -> GroupCalibration | None:
    if slope is None:
        return None
    return GroupCalibration(float(label_from_json(slope)), tensors.take("calibration.offsets", (n_groups,)))


def _unpack_maps(kind: type[GroupMapTransformer], model: SubgroupMoments, tensors: Tensors) -> GroupMaps:
    n_maps, d = 1 if kind is LeaceTransformer else model.n_groups, model.n_features
    return GroupMaps(tensors.take("maps.linear", (n_maps, d, d)), tensors.take("maps.offset", (n_maps, d)))
