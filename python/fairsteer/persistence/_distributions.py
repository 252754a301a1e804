"""Moments and ideal distributions as tensors and plain values."""

from __future__ import annotations

from typing import Any, get_args

from numpy.typing import NDArray

from fairsteer._utils.fields import Fields
from fairsteer._utils.input import brief
from fairsteer._utils.labels import label_to_json, labels_to_json
from fairsteer._utils.types import CovarianceModel
from fairsteer.groups import GroupEncoder
from fairsteer.ideal import Certificate, IdealDistribution, Intervention, MapType
from fairsteer.moments import SubgroupMoments
from fairsteer.moments._coordinates import Coordinates
from fairsteer.moments._covariances import covariance_model
from fairsteer.moments._moments import SUMS
from fairsteer.moments._privacy import Privacy, checked_clip
from fairsteer.persistence._checks import check_finite_number, listed_names, shares, symmetric
from fairsteer.persistence._file import Tensors

_COVARIANCES = get_args(CovarianceModel)


def pack_encoder(encoder: GroupEncoder | None) -> dict[str, Any] | None:
    if encoder is None:
        return None
    return {"n_columns": encoder.n_columns_, "column_names": listed_names(encoder.column_names_)}


def unpack_encoder(block: Fields, groups: NDArray[Any]) -> GroupEncoder:
    encoder = GroupEncoder()
    n_columns = block.integer("n_columns", 1)
    lengths = {len(label) if isinstance(label, tuple) else 1 for label in groups.tolist()}
    if n_columns > 1 and lengths != {n_columns}:
        msg = f"its groups are not made of {n_columns} labels each"
        raise ValueError(msg)
    encoder.groups_, encoder.n_columns_ = groups, n_columns
    encoder.column_names_ = block.names("column_names", n_columns)
    return encoder


# ---- moments


def pack_moments(moments: SubgroupMoments, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    tensors.update(zip((f"moments.{name.lstrip('_')}" for name in SUMS), moments._sums(), strict=True))
    if moments._shrunk is not None:
        tensors["moments.shrunk"] = moments._shrunk
    if moments._factors is not None:
        tensors["moments.factors"] = moments._factors
        if moments._scatter_sums is not None:  # the sums above are of weighted rows
            tensors.update(
                {"moments.own_weights": moments.weights, "moments.own_weight_squares": moments._weight_squares}
            )
    if moments._mixed is not None:
        tensors["moments.thirds"], tensors["moments.fourths"] = moments._mixed
    coordinates = moments.coordinates
    if isinstance(coordinates, Coordinates):
        tensors.update({"moments.scale": coordinates.scale, "moments.shift": coordinates.shift})
    elif coordinates is not None:
        msg = (
            f"Moments in the coordinates of {brief(coordinates)} cannot be saved without pickling it; those of "
            "features as they are, of their logarithms, and of shifts and scales can."
        )
        raise ValueError(msg)
    return {
        "n_features": moments.n_features,
        "feature_names": listed_names(moments.feature_names),
        "coordinates": None if coordinates is None else {"log": bool(coordinates.log)},
        "covariance": moments.covariance,
        "classes": labels_to_json(moments.classes),
        "groups": labels_to_json(moments.groups),
        "pooling": float(moments._pooling),
        "shrunk": moments._shrunk is not None,
        "standardized": moments._factors is not None,
        "rescalable": moments._mixed is not None,
        "clip": moments.clip,
        "privacy": None if moments.privacy is None else moments.privacy._asdict(),
    }


def unpack_moments(block: Fields, tensors: Tensors) -> SubgroupMoments:
    classes, groups = block.labels("classes"), block.labels("groups")
    covariance, K, G, d = block.text("covariance", _COVARIANCES), len(classes), len(groups), block.integer("n_features")
    model = covariance_model(covariance)
    scatter = model.shape(K, G, d)
    shapes = ((K, G), (K, G), (K, G, d), scatter, (K, G, d), model.quartic_shape(K, G, d))
    # Taken first, so that a header's word alone never makes memory be allocated.
    sums = [tensors.take(f"moments.{name.lstrip('_')}", shape) for name, shape in zip(SUMS, shapes, strict=True)]
    coordinates = None
    if "coordinates" in block:
        scale, shift = tensors.take("moments.scale", (d,)), tensors.take("moments.shift", (d,))
        if (scale == 0).any():
            raise ValueError("a scale of its coordinates is zero")
        coordinates = Coordinates(block.fields("coordinates").flag("log"), scale, shift)
    moments = SubgroupMoments(
        d,
        classes=classes,
        groups=groups,
        covariance=covariance,
        feature_names=block.names("feature_names", d),
        coordinates=coordinates,
    )
    for to, array in zip(moments._sums(), sums, strict=True):
        to[...] = array
    _check_sums(moments)
    _read_privacy(moments, block)
    if block.flag("standardized"):
        factors = tensors.take("moments.factors", (K, G))
        if (factors < 0).any():
            raise ValueError("a factor of its moments is negative")
        moments._factors = factors
        if not model.by_class:
            moments._scatter_sums = (moments.weights, moments._weight_squares)
            own = [tensors.take(f"moments.own_{name}", (K, G)) for name in ("weights", "weight_squares")]
            if min(array.min() for array in own) < 0 or not own[0].any():
                raise ValueError("a weight of its moments is negative, or all are zero")
            moments.weights, moments._weight_squares = own
    if block.flag("rescalable"):
        if covariance != "full":
            raise ValueError("its moments are rescalable and not full")
        moments._mixed = (tensors.take("moments.thirds", scatter), tensors.take("moments.fourths", scatter))
        if (moments._mixed[1] < 0).any():
            raise ValueError("a fourth moment is negative")
    moments._pooling = block.number("pooling", 0, 1)
    if block.flag("shrunk"):
        moments._shrunk = _covariances("moments.shrunk", tensors, covariance, scatter)
    return moments


def _read_privacy(moments: SubgroupMoments, block: Fields) -> None:
    if "clip" in block:
        moments.clip = checked_clip(block.number("clip"))
    if "privacy" in block:
        inner = block.fields("privacy")
        moments.privacy = Privacy(inner.number("epsilon", 0), inner.number("delta", 0, 1), inner.number("clip", 0))


def pack_model(model: SubgroupMoments, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Describe the moments that were projected: merged, shrunk and filled up ones."""
    tensors.update({f"model.{name}": getattr(model, name) for name in ("weights", "means", "covariances")})
    return {"groups": labels_to_json(model.groups), "covariance": model.covariance}


def unpack_model(block: Fields, moments: SubgroupMoments, tensors: Tensors) -> SubgroupMoments:
    groups = block.labels("groups")
    K, G, d = moments.n_classes, len(groups), moments.n_features
    weights, means = tensors.take("model.weights", (K, G)), tensors.take("model.means", (K, G, d))
    # Moments of cells may have been tied.
    allowed = ("full", "tied") if moments.covariance == "full" else (moments.covariance,)
    covariance = block.text("covariance", allowed)
    shape = covariance_model(covariance).shape(K, G, d)
    covariances = _covariances("model.covariances", tensors, covariance, shape)
    model = moments._empty(groups=groups, covariance=covariance)
    model.weights[...], model.means[...] = weights, means
    _check_sums(model)
    return model._replace_covariances(covariances)


def _check_sums(moments: SubgroupMoments) -> None:
    for name, array in zip(SUMS, moments._sums(), strict=True):
        if name in ("weights", "_weight_squares", "_quartics") and (array < 0).any():
            msg = f"a number of {name.lstrip('_')} is negative"
            raise ValueError(msg)
    if moments.model.matrices:
        scatters = symmetric("moments.scatters", moments._scatters)
        # The core takes one triangle for the backup of the other.
        moments._scatters = (scatters + scatters.swapaxes(-1, -2)) / 2
    elif (moments._scatters < 0).any():
        raise ValueError("a scatter is negative")
    if not moments.weights.any():
        raise ValueError("all weights are zero")


def _covariances(name: str, tensors: Tensors, covariance: str, shape: tuple[int, ...]) -> NDArray[Any]:
    array = tensors.take(name, shape)
    if covariance_model(covariance).matrices:
        return symmetric(name, array)
    if (array < 0).any():
        msg = f"the array {name} holds no variances"
        raise ValueError(msg)
    return array


# ---- ideal distributions


def pack_ideal(ideal: IdealDistribution, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    shapes = _ideal_shapes(ideal.covariance, ideal.map_type, len(ideal.classes), *ideal.offset.shape)
    tensors.update({f"ideal.{name}": getattr(ideal, name) for name in shapes})
    # What it was found from is as large as the moments, and of no other use.
    known = ideal.known_certificate if ideal.subgroups is None else ideal.certificate
    if known is not None:
        tensors["ideal.total_variation"] = known.total_variation
    return {
        "classes": labels_to_json(ideal.classes),
        "groups": labels_to_json(ideal.groups),
        "n_features": ideal.offset.shape[1],
        "reference_group": label_to_json(ideal.reference_group),
        "kl_divergence": check_finite_number("kl_divergence", ideal.kl_divergence),
        "intervention": ideal.intervention,
        "map_type": ideal.map_type,
        "covariance": ideal.covariance,
        "n_iter": int(ideal.n_iter),
        "converged": bool(ideal.converged),
        "certificate": None if known is None else {"accuracy": known.accuracy, "gaussians": known.gaussians},
    }


def unpack_ideal(
    block: Fields, tensors: Tensors, like: SubgroupMoments | None = None, counted: list[Any] | None = None
) -> IdealDistribution:
    """Read an ideal distribution, of the groups and features of `like`, and of its classes or those that count."""
    classes, groups, d = block.labels("classes"), block.labels("groups"), block.integer("n_features", 1)
    if like is not None and (
        classes.tolist() != (like.classes.tolist() if counted is None else counted)
        or groups.tolist() != like.groups.tolist()
        or d != like.n_features
    ):
        raise ValueError("its ideal distribution has other classes, groups or features than its model")
    covariance, reference = block.text("covariance", _COVARIANCES), block.label("reference_group")
    if reference is not None and reference not in groups.tolist():
        raise ValueError("its reference group is none of its groups")
    map_type = block.text("map_type", get_args(MapType))
    shapes = _ideal_shapes(covariance, map_type, len(classes), len(groups), d)
    arrays: dict[str, Any] = {name: tensors.take(f"ideal.{name}", shape) for name, shape in shapes.items()}
    for name in ("class_prior", "group_prior"):
        shares(f"ideal.{name}", arrays[name])
    for name in ("canonical_covariances", "source_covariances"):
        if covariance_model(covariance).matrices:
            symmetric(f"ideal.{name}", arrays[name])
        elif (arrays[name] < 0).any():
            msg = f"the array ideal.{name} holds no variances"
            raise ValueError(msg)
    if (arrays["source_weights"] < 0).any() or not arrays["source_weights"].any():
        raise ValueError("a source weight is negative, or all are zero")
    return IdealDistribution(
        classes=classes,
        groups=groups,
        reference_group=reference,
        kl_divergence=block.number("kl_divergence"),
        intervention=block.text("intervention", get_args(Intervention)),
        map_type=map_type,
        covariance=covariance,
        n_iter=block.integer("n_iter"),
        converged=block.flag("converged"),
        known_certificate=_unpack_certificate(block, (len(classes), len(groups)), tensors),
        **arrays,
    )


def _unpack_certificate(block: Fields, shape: tuple[int, int], tensors: Tensors) -> Certificate | None:
    if "certificate" not in block:
        return None
    inner = block.fields("certificate")
    bound = tensors.take("ideal.total_variation", shape)
    if (bound < 0).any() or (bound > 1).any():
        raise ValueError("a bound of its certificate is no probability")
    return Certificate.of_bounds(bound, inner.number("accuracy", 0, 1), inner.text("gaussians", ("subgroups", "model")))


def _ideal_shapes(covariance: str, map_type: str, K: int, G: int, d: int) -> dict[str, tuple[int | None, ...]]:
    """Shape of every array of an ideal distribution; None for any length."""
    return {
        "class_prior": (K,),
        "group_prior": (G,),
        "canonical_means": (K, d),
        "canonical_covariances": {"tied": (d, d), "full": (K, d, d), "diagonal": (K, d)}[covariance],
        "subgroup_divergence": (K, G),
        "objective_path": (None,),
        "source_weights": (K, G),
        "source_means": (K, G, d),
        "source_covariances": covariance_model(covariance).shape(K, G, d),
        "linear": (G, d) if covariance == "diagonal" or map_type in ("diagonal", "translation") else (G, d, d),
        "offset": (G, d),
    }
