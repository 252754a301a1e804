"""Moments and ideal distributions as tensors and plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from fairsteer._utils.labels import label_from_json, label_to_json, labels_from_json, labels_to_json
from fairsteer.groups import GroupEncoder
from fairsteer.ideal import IdealDistribution
from fairsteer.moments import SubgroupMoments
from fairsteer.persistence._file import Tensors, read_integer

# What `SubgroupMoments` accumulates, in its order.
_SUMS = ("weights", "weight_squares", "means", "scatters", "cubics", "quartics")


# Attributes of an ideal distribution that JSON holds as they are.
_IDEAL_PLAIN: dict[str, type] = {
    "intervention": str,
    "map_type": str,
    "covariance": str,
    "n_iter": int,
    "converged": bool,
}


def pack_encoder(encoder: GroupEncoder | None) -> dict[str, Any] | None:
    if encoder is None:
        return None
    return {"n_columns": encoder.n_columns_, "column_names": pack_names(encoder.column_names_)}


def unpack_encoder(block: Mapping[str, Any] | None, groups: NDArray[Any]) -> GroupEncoder | None:
    if block is None:
        return None
    encoder = GroupEncoder()
    encoder.groups_ = groups
    encoder.n_columns_ = read_integer(block["n_columns"])
    encoder.column_names_ = unpack_names(block["column_names"])
    return encoder


# ---- distributions


def _scatter_shape(covariance: str, K: int, G: int, d: int) -> tuple[int, ...]:
    return {"tied": (G, d, d), "full": (K, G, d, d), "diagonal": (K, G, d)}[covariance]


def pack_moments(moments: SubgroupMoments, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    tensors.update(zip((f"moments.{name}" for name in _SUMS), moments._sums(), strict=True))
    return {
        "n_features": moments.n_features,
        "covariance": moments.covariance,
        "classes": labels_to_json(moments.classes),
        "groups": labels_to_json(moments.groups),
    }


def unpack_moments(block: Mapping[str, Any], tensors: Tensors) -> SubgroupMoments:
    classes, groups = labels_from_json(block["classes"]), labels_from_json(block["groups"])
    covariance, K, G, d = block["covariance"], len(classes), len(groups), read_integer(block["n_features"])
    quartic = (K, G, d) if covariance == "diagonal" else (K, G)
    shapes = ((K, G), (K, G), (K, G, d), _scatter_shape(covariance, K, G, d), (K, G, d), quartic)
    # Taken first, so that a header's word alone never makes memory be allocated.
    sums = [tensors.take(f"moments.{name}", shape) for name, shape in zip(_SUMS, shapes, strict=True)]
    moments = SubgroupMoments(d, classes=classes, groups=groups, covariance=covariance)
    for to, array in zip(moments._sums(), sums, strict=True):
        to[...] = array
    _check_weights(moments)
    return moments


def pack_model(model: SubgroupMoments, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Describe the moments that were projected: merged, shrunk and filled up ones."""
    tensors.update({f"model.{name}": getattr(model, name) for name in ("weights", "means", "covariances")})
    return {"groups": labels_to_json(model.groups)}


def unpack_model(block: Mapping[str, Any], moments: SubgroupMoments, tensors: Tensors) -> SubgroupMoments:
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


def pack_ideal(ideal: IdealDistribution, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    shapes = _ideal_shapes(ideal.covariance, len(ideal.classes), *ideal.offset.shape)
    tensors.update({f"ideal.{name}": getattr(ideal, name) for name in shapes})
    return {
        "classes": labels_to_json(ideal.classes),
        "reference_group": label_to_json(ideal.reference_group),
        "kl_divergence": label_to_json(ideal.kl_divergence),
        **{name: getattr(ideal, name) for name in _IDEAL_PLAIN},
    }


def unpack_ideal(block: Mapping[str, Any], moments: SubgroupMoments, tensors: Tensors) -> IdealDistribution:
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


def pack_names(names: Sequence[Any] | NDArray[Any] | None) -> list[Any] | None:
    return None if names is None else [label_to_json(name) for name in names]


def unpack_names(names: Sequence[Any] | None) -> list[Any] | None:
    return None if names is None else [label_from_json(name) for name in names]
