"""What is saved of every kind, and how it is put together again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.validation import check_is_fitted

from fairsteer._utils.calibration import VectorScaling
from fairsteer._utils.estimators import asked_method
from fairsteer._utils.fields import Fields
from fairsteer._utils.files import write_file
from fairsteer._utils.input import few
from fairsteer._utils.labels import label_to_json, labels_to_json
from fairsteer._utils.types import PathLike
from fairsteer.baselines import CovarianceMatchingTransformer, GroupMaps, LeaceTransformer, MeanMatchingTransformer
from fairsteer.classifier import IdealDistributionClassifier, IdealDistributionClassifierCV, IdealPosteriorClassifier
from fairsteer.concepts import ConceptSteering, MeasuredShifts, measured_shifts
from fairsteer.groups import GroupEncoder
from fairsteer.ideal import (
    MOST_CLASSES,
    Certificate,
    IdealDistribution,
    IdealPosterior,
    IdealPosteriorCells,
    SubgroupGaussians,
)
from fairsteer.metrics._intervals import Measured, MeasuredGaps
from fairsteer.moments import SubgroupMoments
from fairsteer.moments._coordinates import Coordinates
from fairsteer.persistence._alignment import (
    pack_alignment,
    pack_score_maps,
    unpack_alignment,
    unpack_score_maps,
)
from fairsteer.persistence._checks import check_finite_number, listed_names, shares
from fairsteer.persistence._coordinates import pack_coordinates, unfitted, unpack_coordinates
from fairsteer.persistence._distributions import (
    pack_encoder,
    pack_ideal,
    pack_model,
    pack_moments,
    unpack_encoder,
    unpack_ideal,
    unpack_model,
    unpack_moments,
)
from fairsteer.persistence._file import (
    FORMAT_VERSION,
    Tensors,
    damaged_file,
    import_safetensors,
    read_container,
    write_header,
)
from fairsteer.persistence._posteriors import pack_posterior, unpack_cells, unpack_two_classes
from fairsteer.score_alignment import Alignment, ScoreAligner
from fairsteer.score_alignment._monotone import Calibration, MonotoneAlignment, ScoreDistribution
from fairsteer.score_alignment._offsets import GroupScalings, OffsetAlignment
from fairsteer.score_alignment._scores import Ties
from fairsteer.transformer import FairSteeringTransformer
from fairsteer.transformer._base import GroupMapTransformer, Solution
from fairsteer.transformer._maps import FoldedMaps
from fairsteer.transformer._monotone import MonotoneMaps

#: Types that a file of skops needs beside scikit-learn's to hold estimators of fairsteer, alone or within pipelines and
#: searches: ``skops.io.load(path, trusted=SKOPS_TYPES)``.
SKOPS_TYPES = [
    f"{kind.__module__}.{kind.__qualname__}"
    for kind in (
        FairSteeringTransformer,
        MeanMatchingTransformer,
        CovarianceMatchingTransformer,
        LeaceTransformer,
        IdealDistributionClassifier,
        IdealDistributionClassifierCV,
        IdealPosteriorClassifier,
        ScoreAligner,
        ConceptSteering,
        MeasuredShifts,
        GroupEncoder,
        SubgroupMoments,
        Coordinates,
        IdealDistribution,
        Certificate,
        SubgroupGaussians,
        IdealPosterior,
        IdealPosteriorCells,
        GroupMaps,
        Solution,
        FoldedMaps,
        VectorScaling,
        Alignment,
        MonotoneAlignment,
        ScoreDistribution,
        Calibration,
        OffsetAlignment,
        GroupScalings,
        Ties,
        MeasuredGaps,
        Measured,
    )
]

_OTHER_WAYS = (
    "skops.io.dump keeps any scikit-learn estimator, and skops.io.load reads it with trusted=persistence.SKOPS_TYPES; "
    "so does joblib.dump, whose files run code when loaded."
)


#: What can be saved.
Savable = (
    GroupMapTransformer
    | IdealDistributionClassifier
    | IdealPosteriorClassifier
    | ScoreAligner
    | Alignment
    | ConceptSteering
    | SubgroupMoments
    | IdealDistribution
    | IdealPosterior
    | IdealPosteriorCells
)


def save(estimator: Savable, path: PathLike, *, extra: Mapping[str, Any] | None = None) -> None:
    """Write a fitted estimator, moments or an ideal distribution to a file.

    Parameters
    ----------
    estimator : estimator or result of fairsteer
        A fitted FairSteeringTransformer, transformer of :mod:`fairsteer.baselines`, IdealDistributionClassifier,
        IdealPosteriorClassifier, ScoreAligner or :class:`~fairsteer.concepts.ConceptSteering`; or SubgroupMoments, an
        IdealDistribution, an IdealPosterior (of two classes, or of more the IdealPosteriorCells) or an
        :class:`~fairsteer.score_alignment.Alignment`. A function, slice or mask as `sensitive_columns` is kept as the
        columns that it selected; the `steering` of a classifier as a clone of its ``steering_``. A classifier that is
        not fairsteer's, the `estimator` of one that wraps it, is *not* in the file, only what maps its scores: keep it
        beside, by :func:`skops.io.dump` or as you keep your others, and hand it to `load`.
    path : path-like
        File to create or replace, usually ``*.safetensors``, or a pipe or device to write to. A file is replaced only
        when the new one is complete.
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
        text, booleans and tuples of these, a `cv` or a `random_state` that is no number, a subclass, or any other
        estimator; or if a parameter has a value that ``fit`` would refuse.
    OSError
        If the file cannot be written.

    See Also
    --------
    load : The way back.
    SKOPS_TYPES : For pipelines and all that cannot be saved here.

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
    import_safetensors()
    tensors: dict[str, NDArray[Any]] = {}
    kind = type(estimator).__name__
    if isinstance(estimator, IdealDistributionClassifierCV):
        msg = f"{kind} is a search, which a file does not keep: save its best_estimator_. {_OTHER_WAYS}"
        raise ValueError(msg)
    if kind not in _KINDS or type(estimator) is not _KINDS[kind].of:
        msg = f"{kind} cannot be saved without pickling it; {', '.join(_KINDS)} themselves can. {_OTHER_WAYS}"
        raise ValueError(msg)
    header = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "saved": _KINDS[kind].pack(estimator, tensors),
        "extra": None if extra is None else dict(extra),
    }
    write_file(path, write_header(header, tensors))


def load(path: PathLike, *, estimator: Any = None) -> Any:
    """Read what `save` wrote, without running anything.

    Parameters
    ----------
    path : path-like
        The file.
    estimator : classifier, default=None
        The fitted classifier that is not in the file: the ``estimator_`` of what was saved. Of an
        IdealPosteriorClassifier with ``group_estimators_`` the pair of both. None: what is loaded can do all that needs
        no such classifier, and says what it lacks when it is to predict.

    Returns
    -------
    estimator
        Of the class that was saved; it does everything as the saved one did, further batches included.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    ValueError
        If the file is damaged, no such file, or of another format version; or if `estimator` is not the one that is
        missing: it has other classes, another number of features, or other scores, or none is missing.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from sklearn.linear_model import LogisticRegression
    >>> from fairsteer import ScoreAligner, persistence
    >>> from fairsteer.datasets import make_biased_groups
    >>> X, y, group = make_biased_groups(200, random_state=0)
    >>> aligner = ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=group)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     persistence.save(aligner, Path(folder) / "maps.safetensors")
    ...     again = persistence.load(Path(folder) / "maps.safetensors", estimator=aligner.estimator_)
    >>> predicted = aligner.predict(X, sensitive_features=group)
    >>> bool((again.predict(X, sensitive_features=group) == predicted).all())
    True
    """
    header, tensors = read_container(path)
    try:
        kind = header["kind"]
        if type(kind) is not str or kind not in _KINDS:
            raise ValueError("it holds something that this fairsteer does not know")
        loaded = _KINDS[kind].unpack(Fields(header.get("saved"), kind), Tensors(tensors))
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise damaged_file(path, error) from error
    if estimator is not None:
        _complete(loaded, estimator)
    return loaded


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


# ---- classifiers


class AbsentClassifier(ClassifierMixin, BaseEstimator):
    """Stands where a classifier was that is not in the file.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        Its labels.
    asked : {"predict_proba", "decision_function"}
        What the maps take its scores from.
    """

    def __init__(self, classes: NDArray[Any], asked: str) -> None:
        self.classes = classes
        self.asked = asked

    @property
    def classes_(self) -> NDArray[Any]:
        """Labels of the classes."""
        return self.classes

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        if name in ("fit", "predict", self.__dict__.get("asked")):
            return self._absent
        raise AttributeError(name)

    def _absent(self, *_: Any, **__: Any) -> Any:
        msg = (
            "The classifier is not in the file that this was loaded from, only the maps of its scores. The way out: "
            "persistence.load(path, estimator=…) with the fitted classifier."
        )
        raise ValueError(msg)


def _complete(loaded: Any, estimator: Any) -> None:
    """Put classifiers where they are missing."""
    absent = getattr(loaded, "estimator_", None)
    if not isinstance(absent, AbsentClassifier):
        msg = f"estimator={estimator!r} is given, but a {type(loaded).__name__} was saved whole; leave it out."
        raise ValueError(msg)
    groups = list(getattr(loaded, "group_estimators_", {}))
    if groups:
        pair = isinstance(estimator, tuple) and len(estimator) == 2 and isinstance(estimator[1], Mapping)
        if not pair or list(estimator[1]) != groups:
            msg = (
                f"What was saved has classifiers of the groups {few(map(repr, groups))} besides the one of all: give "
                "estimator=(classifier.estimator_, classifier.group_estimators_)."
            )
            raise ValueError(msg)
        estimator, of_groups = estimator
        for group in groups:
            _check_present(loaded, absent, of_groups[group])
            loaded.group_estimators_[group] = of_groups[group]
    _check_present(loaded, absent, estimator)
    loaded.estimator_ = estimator
    loaded.estimator = clone(estimator)


def _check_present(loaded: Any, absent: AbsentClassifier, estimator: Any) -> None:
    """Refuse a classifier that is not the one that is missing."""
    check_is_fitted(estimator)
    classes = np.asarray(getattr(estimator, "classes_", absent.classes_))
    if classes.tolist() != absent.classes_.tolist():
        msg = (
            f"estimator={estimator!r} has the classes {few(map(repr, classes.tolist()))}; the one that is missing has "
            f"{few(map(repr, absent.classes_.tolist()))}."
        )
        raise ValueError(msg)
    if asked_method(estimator) != absent.asked:
        msg = f"estimator={estimator!r} answers by {asked_method(estimator)}; what is missing did by {absent.asked}."
        raise ValueError(msg)
    n_features = loaded.n_features_in_
    if hasattr(loaded, "steering_"):
        n_features -= len(loaded.steering_._sensitive_positions)
    if getattr(estimator, "n_features_in_", n_features) != n_features:
        msg = f"estimator={estimator!r} takes {estimator.n_features_in_} features; what is missing takes {n_features}."
        raise ValueError(msg)


def _absent(block: Fields, classes: NDArray[Any]) -> AbsentClassifier:
    return AbsentClassifier(classes, block.text("asked", ("predict_proba", "decision_function")))


def _pack_input(estimator: Any) -> dict[str, Any]:
    return {
        "n_features_in": int(estimator.n_features_in_),
        "feature_names_in": listed_names(getattr(estimator, "feature_names_in_", None)),
    }


def _unpack_input(block: Fields, estimator: Any) -> None:
    estimator.n_features_in_ = block.integer("n_features_in", 1)
    names = block.names("feature_names_in", estimator.n_features_in_)
    if names is not None:
        estimator.feature_names_in_ = np.array(names, dtype=object)


def _pack_classifier(classifier: IdealDistributionClassifier, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    check_is_fitted(classifier, "steering_")
    classifier._validate_params()
    _check_number("cv", classifier.cv, 5)
    if type(classifier.steering_) is not FairSteeringTransformer:
        msg = (
            f"steering={classifier.steering!r} cannot be saved without pickling it; a FairSteeringTransformer itself "
            f"can. {_OTHER_WAYS}"
        )
        raise ValueError(msg)
    if classifier.cost_matrix_ is not None:
        tensors["cost_matrix"] = classifier.cost_matrix_
    estimator = classifier.estimator_
    return {
        "steering": _pack_transformer(classifier.steering_, tensors),
        "default_steering": classifier.steering is None,
        "costs": classifier.cost_matrix_ is not None,
        "params": {name: label_to_json(getattr(classifier, name)) for name in ("score_alignment", "cv")},
        "asked": None if estimator is None else asked_method(estimator),
        "alignment": pack_score_maps(classifier._alignment, tensors),
    }


def _unpack_classifier(block: Fields, tensors: Tensors) -> IdealDistributionClassifier:
    steering: Any = _unpack_transformer(FairSteeringTransformer, block.fields("steering"), tensors)
    K, G = len(steering.classes_), len(steering.groups_)
    costs = tensors.take("cost_matrix", (K, K)) if block.flag("costs") else None
    absent = _absent(block, steering.classes_) if "asked" in block else None
    classifier = IdealDistributionClassifier(
        estimator=absent,
        steering=None if block.flag("default_steering") else clone(steering),
        cost_matrix=None if costs is None else costs.copy(),
        **block.params("params"),
    )
    classifier._validate_params()
    classifier.steering_, classifier.estimator_, classifier.cost_matrix_ = steering, absent, costs
    classifier.classes_, classifier.n_features_in_ = steering.classes_, steering.n_features_in_
    if hasattr(steering, "feature_names_in_"):
        classifier.feature_names_in_ = steering.feature_names_in_
    classifier._alignment = None
    if "alignment" in block:
        classifier._alignment = unpack_score_maps(block.fields("alignment"), K, G, tensors)
    return classifier


def _pack_aligner(aligner: ScoreAligner, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    check_is_fitted(aligner, "estimator_")
    aligner._validate_params()
    _check_number("cv", aligner.cv, 5)
    params = aligner.get_params(deep=False)
    del params["estimator"]
    positions = _pack_columns(aligner, params)
    return {
        "params": {name: label_to_json(value) for name, value in params.items()},
        **_pack_input(aligner),
        "sensitive_positions": positions,
        "encoder": pack_encoder(aligner._encoder),
        "max_gap": check_finite_number("max_gap_", aligner.max_gap_),
        "alignment": pack_alignment(aligner.alignment_, tensors),
    }


def _unpack_aligner(block: Fields, tensors: Tensors) -> ScoreAligner:
    alignment = unpack_alignment(block.fields("alignment"), tensors)
    absent = AbsentClassifier(alignment.classes, alignment.response_method)
    aligner = ScoreAligner(absent, **_listed_columns(block.params("params")))
    aligner._validate_params()
    aligner.estimator_, aligner.classes_, aligner.groups_ = absent, alignment.classes, alignment.groups
    _unpack_input(block, aligner)
    aligner._sensitive_positions = block.positions("sensitive_positions", aligner.n_features_in_)
    aligner._encoder = unpack_encoder(block.fields("encoder"), alignment.groups) if "encoder" in block else None
    _check_sensitive(aligner)
    aligner.max_gap_, aligner.alignment_ = block.number("max_gap", 0, 1), alignment
    return aligner


def _pack_posterior_classifier(
    classifier: IdealPosteriorClassifier, tensors: dict[str, NDArray[Any]]
) -> dict[str, Any]:
    check_is_fitted(classifier, "estimator_")
    classifier._validate_params()
    _check_number("cv", classifier.cv, 5)
    params = classifier.get_params(deep=False)
    del params["estimator"], params["cost_matrix"]
    positions = _pack_columns(classifier, params)
    if classifier.cost_matrix_ is not None:
        tensors["cost_matrix"] = classifier.cost_matrix_
    tensors["shares"] = classifier._shares
    groups, encoder = classifier.groups_.tolist(), classifier._encoder
    ideal = classifier.ideal_
    if ideal is not None:
        scalings = classifier._scalings
        tensors["calibration.slopes"] = np.array([scaling.slope for scaling in scalings])
        tensors["calibration.offsets"] = np.stack([scaling.offsets for scaling in scalings])
        tensors["calibration.errors"] = classifier.calibration_error_
    return {
        "params": {name: label_to_json(value) for name, value in params.items()},
        **_pack_input(classifier),
        "sensitive_positions": positions,
        "classes": labels_to_json(classifier.classes_),
        "groups": labels_to_json(classifier.groups_),
        "encoder": pack_encoder(encoder),
        "labels": None if encoder is None else labels_to_json(encoder.groups_),
        "group_of_label": classifier._group_of_label.tolist(),
        "own": [groups.index(group) for group in classifier.group_estimators_],
        "costs": classifier.cost_matrix_ is not None,
        "asked": asked_method(classifier.estimator_),
        "ideal": None if ideal is None else pack_posterior(ideal, tensors),
    }


def _unpack_posterior_classifier(block: Fields, tensors: Tensors) -> IdealPosteriorClassifier:
    classes, groups = block.labels("classes"), block.labels("groups")
    K, G = len(classes), len(groups)
    if K > MOST_CLASSES:
        msg = f"its ideal posterior has {K} classes"
        raise ValueError(msg)
    absent = _absent(block, classes)
    costs = tensors.take("cost_matrix", (K, K)) if block.flag("costs") else None
    classifier = IdealPosteriorClassifier(
        absent, cost_matrix=None if costs is None else costs.copy(), **_listed_columns(block.params("params"))
    )
    classifier._validate_params()
    classifier.estimator_, classifier.cost_matrix_ = absent, costs
    classifier.classes_, classifier.groups_ = classes, groups
    _unpack_input(block, classifier)
    classifier._sensitive_positions = block.positions("sensitive_positions", classifier.n_features_in_)
    labels = block.labels("labels") if "labels" in block else groups
    classifier._encoder = unpack_encoder(block.fields("encoder"), labels) if "encoder" in block else None
    _check_sensitive(classifier)
    group_of_label = block.positions("group_of_label", G, distinct=False)
    if len(group_of_label) != len(labels) or set(group_of_label) != set(range(G)):
        raise ValueError("its labels do not lead to its groups")
    classifier._group_of_label = np.array(group_of_label, dtype=np.intp)
    classifier._shares = shares("shares", tensors.take("shares", (G,)))
    own = block.positions("own", G)
    classifier.group_estimators_ = dict.fromkeys((groups.tolist()[a] for a in own), absent)
    classifier.ideal_ = None
    if (K > 1) != ("ideal" in block):
        raise ValueError("its classes and its ideal posterior do not belong together")
    if K == 1:
        return classifier
    slopes, offsets = tensors.take("calibration.slopes", (G,)), tensors.take("calibration.offsets", (G, K))
    if (slopes < 0).any():
        raise ValueError("a slope of its calibration is negative")
    classifier._scalings = [VectorScaling(float(slope), offset) for slope, offset in zip(slopes, offsets, strict=True)]
    classifier.calibration_ = dict(zip(groups.tolist(), classifier._scalings, strict=True))
    classifier.calibration_error_ = tensors.take("calibration.errors", (G,))
    unpack: Any = unpack_two_classes if K == 2 else unpack_cells
    classifier.ideal_ = unpack(block.fields("ideal"), tensors)
    rates = classifier.ideal_.class_rates
    if classifier.ideal_.groups.tolist() != groups.tolist() or len(rates) != K:
        raise ValueError("its ideal posterior has other classes or groups")
    return classifier


# ---- concepts


def _pack_concept(steering: ConceptSteering, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    check_is_fitted(steering, "directions_")
    steering._validate_params()
    _check_number("random_state", steering.random_state, 0)
    tensors.update({"concept.directions": steering.directions_, "concept.separation": steering.separation_})
    classes = steering.classes_.tolist()
    equalized = sorted(classes.index(label) for label in steering.equalized_)
    for k in equalized:
        measured = steering.equalized_[classes[k]]
        tensors[f"concept.strengths.{k}"], tensors[f"concept.shifts.{k}"] = measured
    return {
        "params": {name: label_to_json(value) for name, value in steering.get_params(deep=False).items()},
        "encoder": pack_encoder(steering._encoder),
        "equalized": equalized,
        "moments": pack_moments(steering.probe_moments_, tensors),
        "ideal": pack_ideal(steering.ideal_, tensors),
    }


def _unpack_concept(block: Fields, tensors: Tensors) -> ConceptSteering:
    steering = ConceptSteering(**block.params("params"))
    steering._validate_params()
    moments = unpack_moments(block.fields("moments"), tensors)
    K, G, d = moments.means.shape
    steering.classes_, steering.groups_, steering.n_features_in_ = moments.classes, moments.groups, d
    steering.probe_moments_, steering.ideal_ = moments, unpack_ideal(block.fields("ideal"), tensors, like=moments)
    steering.directions_ = tensors.take("concept.directions", (K, G, d))
    steering.separation_ = tensors.take("concept.separation", (K, G))
    classes, groups = steering.classes_.tolist(), steering.groups_.tolist()
    steering.equalized_ = {}
    for k in block.positions("equalized", K):
        strengths = tensors.take(f"concept.strengths.{k}", (None,))
        steering.equalized_[classes[k]] = measured_shifts(
            strengths, tensors.take(f"concept.shifts.{k}", (len(strengths), G)), groups
        )
    steering._encoder = unpack_encoder(block.fields("encoder"), moments.groups)
    return steering


def _check_number(name: str, value: Any, replacement: int) -> None:
    if not (value is None or isinstance(value, Integral)):
        msg = (
            f"{name}={value!r} cannot be saved without pickling it. The way out: set_params({name}={replacement}), for "
            f"what has been fitted needs its {name} no more."
        )
        raise ValueError(msg)


# ---- transformers


def _pack_transformer(transformer: GroupMapTransformer, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Describe a fitted transformer in JSON and add its arrays to `tensors`."""
    model, maps, folded = transformer._fitted()
    transformer._validate_params()
    monotone = isinstance(folded, MonotoneMaps)
    if isinstance(folded, MonotoneMaps):
        tensors.update(_pack_monotone(folded))
    ideal = isinstance(maps, IdealDistribution)
    if not ideal:
        tensors.update({"maps.linear": maps.linear, "maps.offset": maps.offset})
    params = transformer.get_params(deep=False)
    params.pop("feature_transform", None)  # rebuilt from the fitted one
    if isinstance(params.get("pos_label"), (list, set, frozenset, np.ndarray)):
        params["pos_label"] = tuple(params["pos_label"])
    if hasattr(transformer.shrinkage, "fit"):
        msg = (
            f"shrinkage={transformer.shrinkage!r} is an estimator and cannot be saved without pickling it; "
            "'ledoit_wolf', 'oas', a number in [0, 1] and None can."
        )
        raise ValueError(msg)
    positions = _pack_columns(transformer, params)
    return {
        "params": {name: label_to_json(value) for name, value in params.items()},
        "output": getattr(transformer, "_sklearn_output_config", {}).get("transform"),
        **_pack_input(transformer),
        "sensitive_positions": positions,
        "class_blind": bool(transformer._class_blind),
        "encoder": pack_encoder(transformer._encoder),
        "feature_transform": pack_coordinates(transformer, tensors),
        "moments": pack_moments(transformer.moments_, tensors),
        "model": pack_model(model, tensors),
        "calibration": _pack_calibration(transformer.group_calibration_, tensors),
        "ideal": pack_ideal(maps, tensors) if ideal else None,
        "monotone": monotone,
    }


def _unpack_transformer(kind: type[GroupMapTransformer], block: Fields, tensors: Tensors) -> GroupMapTransformer:
    moments = unpack_moments(block.fields("moments"), tensors)
    model = unpack_model(block.fields("model"), moments, tensors)
    coordinates = unpack_coordinates(block.fields("feature_transform"), moments.n_features, tensors)
    params = _listed_columns(block.params("params"))
    if "feature_transform" in kind().get_params(deep=False):
        params["feature_transform"] = unfitted(coordinates)
    if set(params) != set(kind().get_params(deep=False)):
        msg = f"its parameters are {sorted(params)}"
        raise ValueError(msg)
    transformer = kind(**params)
    transformer._validate_params()
    reference = transformer.reference_group
    if reference is not None and reference not in moments.groups.tolist():
        raise ValueError("its reference_group is none of its groups")
    _unpack_input(block, transformer)
    transformer._sensitive_positions = block.positions("sensitive_positions", transformer.n_features_in_)
    if transformer.n_features_in_ - len(transformer._sensitive_positions) != moments.n_features:
        msg = (
            f"it has {transformer.n_features_in_} columns, the sensitive ones at {transformer._sensitive_positions}, "
            f"and {moments.n_features} features"
        )
        raise ValueError(msg)
    transformer._class_blind = block.flag("class_blind")
    transformer._encoder = unpack_encoder(block.fields("encoder"), moments.groups) if "encoder" in block else None
    _check_sensitive(transformer)
    transformer.feature_transform_ = coordinates
    transformer.moments_, transformer.classes_ = moments, moments.classes
    transformer._merge_labels()
    if transformer.groups_.tolist() != model.groups.tolist():
        msg = f"its model has the groups {model.groups.tolist()}, its moments {transformer.groups_.tolist()}"
        raise ValueError(msg)
    if isinstance(transformer, FairSteeringTransformer):
        maps: Any = unpack_ideal(block.fields("ideal"), tensors, like=model, counted=transformer._favourable())
    else:
        maps = _unpack_maps(kind, model, tensors)
    solution = Solution.of(model, maps)
    if block.flag("monotone"):
        solution = solution._replace(folded=_unpack_monotone(model, tensors))
    transformer._set_solution(solution)
    transformer.group_calibration_ = None
    if "calibration" in block:
        slope = block.fields("calibration").number("slope", 0)
        offsets = tensors.take("calibration.offsets", (model.n_groups,))
        transformer.group_calibration_ = VectorScaling(slope, offsets)
    if "output" in block:
        transformer.set_output(transform=block.text("output", ("default", "pandas", "polars")))
    return transformer


def _pack_columns(estimator: Any, params: dict[str, Any]) -> list[int]:
    """Replace a function, a slice or a mask among the parameters by what it selected; give the positions."""
    columns, positions = params["sensitive_columns"], list(getattr(estimator, "_sensitive_positions", []))
    if columns is not None and not isinstance(columns, (str, Integral)):
        names = getattr(estimator, "feature_names_in_", range(estimator.n_features_in_))
        params["sensitive_columns"] = tuple(names[position] for position in positions)
    return positions


def _listed_columns(params: dict[str, Any]) -> dict[str, Any]:
    if isinstance(params.get("sensitive_columns"), tuple):
        params["sensitive_columns"] = list(params["sensitive_columns"])
    return params


def _check_sensitive(estimator: Any) -> None:
    """Raise ValueError for columns that the parameter does not name."""
    columns, positions = estimator.sensitive_columns, estimator._sensitive_positions
    listed = columns if isinstance(columns, list) else [columns]
    if (columns is None) != (not positions) or (positions and estimator._encoder is None):
        raise ValueError("its sensitive columns are those of another estimator")
    if columns is not None and any(isinstance(c, bool) or not isinstance(c, (str, Integral)) for c in listed):
        raise ValueError("its sensitive columns are neither names nor positions")


def _pack_calibration(calibration: VectorScaling | None, tensors: dict[str, NDArray[Any]]) -> Any:
    if calibration is None:
        return None
    tensors["calibration.offsets"] = calibration.offsets
    return {"slope": check_finite_number("slope", calibration.slope)}


def _unpack_maps(kind: type[GroupMapTransformer], model: SubgroupMoments, tensors: Tensors) -> GroupMaps:
    n_maps, d = 1 if kind.one_map else model.n_groups, model.n_features
    linear = (n_maps, d) if kind is MeanMatchingTransformer else (n_maps, d, d)
    return GroupMaps(tensors.take("maps.linear", linear), tensors.take("maps.offset", (n_maps, d)))


def _pack_monotone(maps: MonotoneMaps) -> dict[str, NDArray[Any]]:
    parts = {
        "values": maps.values,
        "lengths": np.diff(maps.starts),
        "lower": maps.lower,
        "upper": maps.upper,
        "common_values": maps.common_values,
        "common_lengths": np.diff(maps.common_starts),
        "common_lower": maps.common_lower,
        "common_upper": maps.common_upper,
        "spread": maps.spread,
        "discrete": maps.discrete,
        "moving": maps.moving,
    }
    return {f"monotone.{name}": np.asarray(part, dtype=np.float64) for name, part in parts.items()}


def _unpack_monotone(model: SubgroupMoments, tensors: Tensors) -> MonotoneMaps:
    d, G = model.n_features, model.n_groups
    parts: list[Any] = []
    for of, rows in (("", (G,)), ("common_", ())):
        values, lengths = (
            tensors.take(f"monotone.{of}{name}", n) for name, n in (("values", (None,)), ("lengths", (d,)))
        )
        shape = (*rows, len(values))
        lower, upper = (tensors.take(f"monotone.{of}{name}", shape) for name in ("lower", "upper"))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        if (lengths < 1).any() or (lengths % 1 != 0).any() or starts[-1] != len(values):
            raise ValueError("its tables of values do not have the lengths that it says")
        within = np.ones(len(values), dtype=bool)
        within[starts[:-1].astype(np.intp)] = False  # a feature's first value follows no other
        steps = np.stack([np.atleast_2d(lower), np.atleast_2d(upper)], axis=-1)
        if (np.diff(values)[within[1:]] <= 0).any():
            raise ValueError("a table of values does not increase")
        levels_fall = (steps[:, 1:, 0] < steps[:, :-1, 1] - 1e-9)[:, within[1:]].any()
        if levels_fall or (steps[..., 1] < steps[..., 0]).any() or steps.min() < 0 or steps.max() > 1 + 1e-9:
            raise ValueError("a distribution function does not increase from 0 to 1")
        parts += [values, starts.astype(np.intp), lower, upper]
    shapes = {"spread": (len(parts[0]),), "discrete": (d,), "moving": (G, d)}
    flags = [tensors.take(f"monotone.{name}", shape) for name, shape in shapes.items()]
    if not all(np.isin(flag, (0, 1)).all() for flag in flags):
        raise ValueError("a feature is neither discrete nor not, or neither moves nor stays")
    names = [f"{of}{name}" for of in ("", "common_") for name in ("values", "starts", "lower", "upper")]
    arrays = dict(zip(names, parts, strict=True)) | {name: flag == 1 for name, flag in zip(shapes, flags, strict=True)}
    return MonotoneMaps(**arrays)


# ---- what can be saved


class _Kind(NamedTuple):
    of: type
    pack: Callable[[Any, dict[str, NDArray[Any]]], dict[str, Any]]
    unpack: Callable[[Fields, Tensors], Any]


# A subclass may have anything in it, so it cannot.
_KINDS = {
    kind.of.__name__: kind
    for kind in (
        *(
            _Kind(transformer, _pack_transformer, partial(_unpack_transformer, transformer))
            for transformer in (
                FairSteeringTransformer,
                MeanMatchingTransformer,
                CovarianceMatchingTransformer,
                LeaceTransformer,
            )
        ),
        _Kind(IdealDistributionClassifier, _pack_classifier, _unpack_classifier),
        _Kind(IdealPosteriorClassifier, _pack_posterior_classifier, _unpack_posterior_classifier),
        _Kind(ScoreAligner, _pack_aligner, _unpack_aligner),
        _Kind(Alignment, pack_alignment, unpack_alignment),
        _Kind(ConceptSteering, _pack_concept, _unpack_concept),
        _Kind(SubgroupMoments, pack_moments, unpack_moments),
        _Kind(IdealDistribution, pack_ideal, unpack_ideal),
        _Kind(IdealPosterior, pack_posterior, unpack_two_classes),
        _Kind(IdealPosteriorCells, pack_posterior, unpack_cells),
    )
}
