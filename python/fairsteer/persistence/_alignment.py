"""Aligned scores as tensors and plain values."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from fairsteer._utils.fields import Fields
from fairsteer._utils.labels import labels_to_json
from fairsteer.persistence._checks import check_finite_number, shares
from fairsteer.persistence._file import Tensors
from fairsteer.score_alignment._alignment import Alignment
from fairsteer.score_alignment._cells import Constraint, Maps
from fairsteer.score_alignment._monotone import Calibration, MonotoneAlignment, ScoreDistribution
from fairsteer.score_alignment._offsets import GroupScalings, OffsetAlignment
from fairsteer.score_alignment._scores import Ties


def pack_alignment(alignment: Alignment, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Describe the maps with all that is known of them."""
    tensors.update({"shares": alignment.shares, "rows": alignment.rows, "rates": alignment.rates})
    return {
        "classes": labels_to_json(alignment.classes),
        "groups": labels_to_json(alignment.groups),
        "constraint": alignment.constraint,
        "response_method": alignment.response_method,
        "maps": pack_score_maps(alignment.maps, tensors),
    }


def unpack_alignment(block: Fields, tensors: Tensors) -> Alignment:
    classes, groups = block.labels("classes"), block.labels("groups")
    K, G = len(classes), len(groups)
    maps = unpack_score_maps(block.fields("maps"), K, G, tensors) if K > 1 else None
    rows = tensors.take("rows", ({1: 0, 2: 1}.get(K, K), G))
    if (rows < 0).any():
        raise ValueError("a number of rows is negative")
    rates = tensors.take("rates", (2, *rows.shape), nan=True)
    if ((rates < 0) | (rates > 1)).any():
        raise ValueError("a rate is none, in [0, 1]")
    return Alignment(
        classes,
        groups,
        shares("shares", tensors.take("shares", (G,))),
        block.text("constraint", get_args(Constraint)),
        block.text("response_method", ("predict_proba", "decision_function")),
        maps,
        rows,
        rates,
    )


def pack_score_maps(alignment: Any, tensors: dict[str, NDArray[Any]]) -> dict[str, Any] | None:
    if alignment is None:
        return None
    tensors["alignment.measured"] = alignment.measured
    block = {"budget": check_finite_number("budget", alignment.budget)}
    if isinstance(alignment, OffsetAlignment):
        tensors["alignment.offsets"] = alignment.offsets
        scaling = alignment.calibration
        if scaling is not None:
            tensors["alignment.slopes"], tensors["alignment.scaled_offsets"] = scaling.slopes, scaling.offsets
        return block | {"constraint": alignment.constraint, "calibrated": scaling is not None}
    calibration = alignment.calibration
    tensors["alignment.shares"] = alignment.shares
    tensors["alignment.calibration"] = np.stack([calibration.scores, calibration.log_odds])
    for a, distribution in enumerate(alignment.distributions):
        tensors[f"alignment.distribution.{a}"] = np.stack([distribution.values, distribution.levels])
        tensors[f"alignment.ties.{a}"] = np.stack(alignment.ties[a])
    return block | {
        "amount": check_finite_number("amount", alignment.amount),
        "scales": [check_finite_number("scale", distribution.scale) for distribution in alignment.distributions],
    }


def unpack_score_maps(block: Fields, K: int, G: int, tensors: Tensors) -> Maps:
    measured = tensors.take("alignment.measured", (1 if K == 2 else K, G, G), nan=True)
    budget = block.number("budget", 0, 1)
    if K > 2:
        offsets, constraint = tensors.take("alignment.offsets", (G, K)), block.text("constraint", get_args(Constraint))
        scaling = None
        if block.flag("calibrated"):
            slopes = tensors.take("alignment.slopes", (G,))
            if (slopes < 0).any():
                raise ValueError("a slope of its calibration is negative")
            scaling = GroupScalings(slopes, tensors.take("alignment.scaled_offsets", (G, K)))
        return OffsetAlignment(offsets, constraint, measured, budget, scaling)
    amount, scales = block.number("amount", 0, 1), block.numbers("scales", 0)
    if len(scales) != G:
        msg = f"its score alignment has {len(scales)} scales for {G} groups"
        raise ValueError(msg)
    distributions = []
    for a, scale in enumerate(scales):
        values, levels = _increasing(f"alignment.distribution.{a}", tensors)
        if not 0 < levels[0] <= levels[-1] < 1:
            msg = f"the levels of a score distribution go from {levels[0]} to {levels[-1]}"
            raise ValueError(msg)
        distributions.append(ScoreDistribution(values, levels, scale))
    ties = tuple(_ties(f"alignment.ties.{a}", tensors) for a in range(G))
    calibration = Calibration(*_increasing("alignment.calibration", tensors))
    of_groups = shares("alignment.shares", tensors.take("alignment.shares", (G,)))
    return MonotoneAlignment(ties, tuple(distributions), of_groups, amount, calibration, measured, budget)


def _increasing(name: str, tensors: Tensors) -> NDArray[Any]:
    """Take the points of an increasing function: their abscissae, then their ordinates."""
    points = tensors.take(name, (2, None))
    if not points.size or (np.diff(points) < 0).any():
        msg = f"the array {name} does not increase"
        raise ValueError(msg)
    return points


def _ties(name: str, tensors: Tensors) -> Ties:
    """Take disjoint intervals in ascending order, and the values that stand for them."""
    ties = Ties(*tensors.take(name, (3, None)))
    if (ties.low > ties.values).any() or (ties.values > ties.high).any() or (ties.low[1:] <= ties.high[:-1]).any():
        msg = f"the array {name} holds no intervals in ascending order"
        raise ValueError(msg)
    return ties
