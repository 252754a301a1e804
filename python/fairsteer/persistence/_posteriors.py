"""Ideal posteriors as tensors and plain values."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from fairsteer._utils.fields import Fields
from fairsteer._utils.labels import label_to_json, labels_to_json
from fairsteer.ideal import MOST_CLASSES, IdealOfRows, IdealPosterior, IdealPosteriorCells, Intervention, Mode
from fairsteer.persistence._checks import check_finite_number, shares
from fairsteer.persistence._file import Tensors

#: How far sums of probabilities may be from 1.
_SLACK = 1e-6


def pack_posterior(ideal: IdealOfRows, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Describe an ideal posterior, of two classes or of more."""
    arrays = {name: value for name, value in vars(ideal).items() if isinstance(value, np.ndarray) and name != "groups"}
    tensors.update({f"posterior.{name}": value for name, value in arrays.items()})
    return {
        "groups": labels_to_json(ideal.groups),
        "intervention": ideal.intervention,
        "mode": ideal.mode,
        "reference_group": label_to_json(ideal.reference_group),
        "kl_divergence": check_finite_number("kl_divergence", ideal.kl_divergence),
        "dual_gap": check_finite_number("dual_gap", ideal.dual_gap),
        "n_iter": int(ideal.n_iter),
        "converged": bool(ideal.converged),
    }


def unpack_two_classes(block: Fields, tensors: Tensors) -> IdealPosterior:
    groups, values = _values(block)
    G = len(groups)
    logits = tensors.take("posterior.logits", (None,))
    if len(logits) < 2 or (np.diff(logits) <= 0).any():
        raise ValueError("the log-odds of its posteriors do not ascend")
    of_points = (G, len(logits))
    laws = _laws("posterior.laws", tensors.take("posterior.laws", of_points))
    ideal_logits = tensors.take("posterior.ideal_logits", of_points)
    if (np.diff(ideal_logits) < -_SLACK).any():
        raise ValueError("its ideal posteriors do not ascend")
    log_weights = tensors.take("posterior.log_weights", of_points)
    return IdealPosterior(
        logits=logits, laws=laws, log_weights=log_weights, ideal_logits=ideal_logits, **values, **_of_groups(G, tensors)
    )


def unpack_cells(block: Fields, tensors: Tensors) -> IdealPosteriorCells:
    groups, values = _values(block)
    G = len(groups)
    centers = _distributions("posterior.centers", tensors.take("posterior.centers", (None, None)))
    C, K = centers.shape
    if not C or not 2 <= K <= MOST_CLASSES:
        msg = f"its ideal posterior has {C} cells and {K} classes"
        raise ValueError(msg)
    laws = _laws("posterior.laws", tensors.take("posterior.laws", (G, C)))
    targets = tensors.take("posterior.targets", (None, K))
    T = len(targets)
    if (values["mode"] == "weights") != (T == 0):
        raise ValueError("its mode and its ideal posteriors do not belong together")
    target_law, plans = tensors.take("posterior.target_law", (T,)), tensors.take("posterior.plans", (G, C, T))
    if T:
        _distributions("posterior.targets", targets)
        shares("posterior.target_law", target_law)
        _laws("posterior.plans", plans.reshape(G, -1))
    of_cells: dict[str, Any] = {
        name: _distributions(f"posterior.{name}", tensors.take(f"posterior.{name}", (G, C, K)))
        for name in ("cell_posteriors", "ideal_posteriors")
    }
    return IdealPosteriorCells(
        centers=centers,
        laws=laws,
        log_weights=tensors.take("posterior.log_weights", (G, C)),
        targets=targets,
        target_law=target_law,
        plans=plans,
        **of_cells,
        **values,
        **_of_groups(G, tensors),
    )


def _values(block: Fields) -> tuple[NDArray[Any], dict[str, Any]]:
    groups, reference = block.labels("groups"), block.label("reference_group")
    intervention = block.text("intervention", get_args(Intervention))
    if (reference is not None) != (intervention == "affirmative") or (
        reference is not None and reference not in groups.tolist()
    ):
        raise ValueError("its reference group is none of its groups")
    return groups, {
        "groups": groups,
        "intervention": intervention,
        "mode": block.text("mode", get_args(Mode)),
        "reference_group": reference,
        "kl_divergence": block.number("kl_divergence", 0),
        "dual_gap": block.number("dual_gap", 0),
        "n_iter": block.integer("n_iter"),
        "converged": block.flag("converged"),
    }


def _of_groups(G: int, tensors: Tensors) -> dict[str, Any]:
    found = {name: tensors.take(f"posterior.{name}", (G,)) for name in ("source_group_prior", "group_prior")}
    for name, array in found.items():
        if not (shares(name, array) > 0).all():
            msg = f"a share in {name} is 0"
            raise ValueError(msg)
    return found | {"group_divergence": tensors.take("posterior.group_divergence", (G,))}


def _laws(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if (array < 0).any() or (np.abs(array.sum(axis=1) - 1) > _SLACK).any():
        msg = f"the array {name} holds no probabilities"
        raise ValueError(msg)
    return array


def _distributions(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Check distributions of classes, whose logarithms are taken."""
    if not (array > 0).all() or (np.abs(array.sum(axis=-1) - 1) > _SLACK).any():
        msg = f"the array {name} holds no distributions of classes"
        raise ValueError(msg)
    return array
