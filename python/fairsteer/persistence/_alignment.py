"""Aligned scores as tensors and plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from fairsteer._utils.labels import label_from_json, label_to_json
from fairsteer.persistence._file import Tensors
from fairsteer.score_alignment._cells import Constraint, Maps
from fairsteer.score_alignment._monotone import Calibration, MonotoneAlignment, ScoreDistribution
from fairsteer.score_alignment._offsets import OffsetAlignment
from fairsteer.score_alignment._scores import Ties


def pack_alignment(alignment: Any, tensors: dict[str, NDArray[Any]]) -> dict[str, Any] | None:
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
        tensors[f"alignment.ties.{a}"] = np.stack(alignment.ties[a])
    return block | {
        "amount": label_to_json(float(alignment.amount)),
        "scales": [label_to_json(float(distribution.scale)) for distribution in alignment.distributions],
    }


def unpack_alignment(block: Mapping[str, Any] | None, K: int, G: int, tensors: Tensors) -> Maps | None:
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
    ties = tuple(Ties(*tensors.take(f"alignment.ties.{a}", (3, None))) for a in range(G))
    calibration = Calibration(*_increasing("alignment.calibration", tensors))
    shares = tensors.take("alignment.shares", (G,))
    return MonotoneAlignment(ties, tuple(distributions), shares, amount, calibration, measured, budget)


def _increasing(name: str, tensors: Tensors) -> NDArray[Any]:
    """Take the points of an increasing function: their abscissae, then their ordinates."""
    points = tensors.take(name, (2, None))
    if not points.size or (np.diff(points) < 0).any():
        msg = f"the array {name} does not increase"
        raise ValueError(msg)
    return points
