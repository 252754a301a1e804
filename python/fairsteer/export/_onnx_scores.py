"""A graph of standard ONNX operators that maps scores by group as a fitted alignment does."""

from __future__ import annotations

from typing import Any

import numpy as np

from fairsteer._utils.types import Doubles
from fairsteer.export._onnx_graph import Graph
from fairsteer.score_alignment._cells import Maps
from fairsteer.score_alignment._monotone import LEAST_LEVEL, MonotoneAlignment, ScoreDistribution
from fairsteer.score_alignment._offsets import LEAST_PROBA, OffsetAlignment
from fairsteer.score_alignment._scores import Ties


def build_score_model(
    onnx: Any, alignment: Maps, *, n_classes: int, by_proba: bool, average: Doubles | None, n_groups: int
) -> Any:
    """Build the graph.

    Parameters
    ----------
    onnx : module
        The package.
    alignment : Maps
        Fitted.
    n_classes : int
        At least 2.
    by_proba : bool
        Whether scores are probabilities, (n, n_classes); otherwise those of a decision function, (n,).
    average : ndarray of shape (n_groups,) or None
        Weights of what the groups would get, for negative codes; None: these become NaN.
    n_groups : int
        Number of codes.

    Returns
    -------
    onnx.ModelProto
        The model; all in double precision.
    """
    graph = _Scores(onnx)
    helper, types = onnx.helper, onnx.TensorProto
    score = "score"
    if by_proba and n_classes == 2:
        logs = graph.add("Log", graph.add("Max", "score", graph.number(np.finfo(np.float64).tiny)))
        columns = [graph.add("Slice", logs, *graph.bounds(k)) for k in (0, 1)]
        score = graph.add("Sub", columns[1], columns[0])
    elif by_proba:
        score = graph.normalised(score, n_classes)
    else:
        score = graph.add("Unsqueeze", "score", graph.constant([1], np.int64))
    code = graph.add("Unsqueeze", "group", graph.constant([1], np.int64))
    each = [_proba(graph, alignment, score, a) for a in range(n_groups)]
    # Nothing times 0 is NaN but what is no number or infinite; a score that is refused must not pass for one.
    nothing = graph.add(
        "ReduceSum", graph.add("Mul", score, graph.number(0)), graph.constant([1], np.int64), keepdims=1
    )
    result = graph.add("Add", nothing, graph.number(np.nan))
    for a, proba in enumerate(each):
        result = graph.add("Where", graph.add("Equal", code, graph.constant(a, np.int64)), proba, result)
    if average is not None:
        parts = [graph.add("Mul", proba, graph.number(share)) for proba, share in zip(each, average, strict=True)]
        unknown = graph.add("Less", code, graph.constant(0, np.int64))
        result = graph.add("Where", unknown, graph.add("Sum", *parts), result)
    graph.add("Add", result, nothing, output="probability")
    shape = ["n", n_classes] if by_proba else ["n"]
    inputs = [
        helper.make_tensor_value_info("score", types.DOUBLE, shape),
        helper.make_tensor_value_info("group", types.INT64, ["n"]),
    ]
    return graph.model(inputs, [helper.make_tensor_value_info("probability", types.DOUBLE, ["n", n_classes])])


class _Scores(Graph):
    """Nodes in double precision."""

    def number(self, value: Any) -> str:
        return self.constant(value, np.float64)

    def bounds(self, k: int) -> list[str]:
        """Give the inputs of Slice for one column."""
        return [self.constant([i], np.int64) for i in (k, k + 1, 1)]

    def normalised(self, proba: str, n_classes: int) -> str:
        """Scale rows to sum to 1; a row of zeros says nothing, and becomes equal probabilities."""
        total = self.add("ReduceSum", proba, self.constant([1], np.int64), keepdims=1)
        silent = self.add("Equal", total, self.number(0))
        return self.add("Where", silent, self.number(1 / n_classes), self.add("Div", proba, total))

    def settled(self, x: str, ties: Ties) -> str:
        """Replace scores in intervals by what stands for them."""
        if not len(ties.values):
            return x
        at = self.add("Max", self.last_reached(x, ties.low), self.constant(0, np.int64))
        ends = [self.add("Gather", self.number(end), at) for end in (ties.low, ties.high)]
        inside = self.add("And", self.add("LessOrEqual", ends[0], x), self.add("LessOrEqual", x, ends[1]))
        return self.add("Where", inside, self.add("Gather", self.number(ties.values), at), x)

    def last_reached(self, x: str, points: Doubles) -> str:
        """Position of the last of points in rising order that is not above x; -1 if all are."""
        n_steps = max(int(np.ceil(np.log2(len(points) + 1))), 1)
        # Padded to a power of two by what no score reaches, so that a binary search needs to look at no bounds.
        padded = self.number(np.append(points, np.full(2**n_steps - len(points), np.nan)))
        last = self.constant(-1, np.int64)
        for step in (2**i for i in reversed(range(n_steps))):
            further = self.add("Add", last, self.constant(step, np.int64))
            reached = self.add("LessOrEqual", self.add("Gather", padded, further), x)
            last = self.add("Where", reached, further, last)
        return last

    def interpolate(self, x: str, points: Doubles, values: Doubles) -> str:
        """Do what numpy.interp does: lines between points in rising order, constant outside."""
        widths = np.diff(points)
        slopes = np.append(np.divide(np.diff(values), widths, out=np.zeros_like(widths), where=widths > 0), 0.0)
        last = self.add("Max", self.last_reached(x, points), self.constant(0, np.int64))
        beyond = self.add("Sub", x, self.add("Gather", self.number(points), last))
        rise = self.add("Mul", self.add("Gather", self.number(slopes), last), self.add("Max", beyond, self.number(0)))
        return self.add("Add", self.add("Gather", self.number(values), last), rise)

    def positive_part(self, x: str, *, below: float | None = None, above: float | None = None) -> str:
        """Distance of x to a bound beyond it, 0 within."""
        parts = (self.number(below), x) if below is not None else (x, self.number(above))
        return self.add("Max", self.add("Sub", *parts), self.number(0))


def _proba(graph: _Scores, alignment: Any, score: str, a: int) -> str:
    """Probabilities of all rows as if they were of one group, (n, n_classes)."""
    if isinstance(alignment, OffsetAlignment):
        return _offset_proba(graph, alignment, score, a)
    score = graph.settled(score, alignment.ties[a])
    mapped = score if alignment.amount == 0 else _to_average(graph, alignment, score, a)
    first, last = alignment.calibration.scores[[0, -1]]
    log_odds = graph.interpolate(mapped, *alignment.calibration)
    log_odds = graph.add("Add", log_odds, graph.positive_part(mapped, above=last))
    log_odds = graph.add("Sub", log_odds, graph.positive_part(mapped, below=first))
    return graph.add("Concat", graph.add("Sigmoid", graph.add("Neg", log_odds)), graph.add("Sigmoid", log_odds), axis=1)


def _to_average(graph: _Scores, alignment: MonotoneAlignment, score: str, a: int) -> str:
    level = _level(graph, alignment.distributions[a], score)
    parts = [
        graph.add("Mul", _quantile(graph, distribution, level), graph.number(share))
        for distribution, share in zip(alignment.distributions, alignment.shares, strict=True)
        if share > 0
    ]
    target = graph.add("Mul", graph.add("Sum", *parts), graph.number(alignment.amount))
    return graph.add("Add", graph.add("Mul", score, graph.number(1 - alignment.amount)), target)


def _level(graph: _Scores, distribution: ScoreDistribution, score: str) -> str:
    """As `ScoreDistribution.level`."""
    values, levels, scale = distribution
    one, by = graph.number(1), graph.number(scale)
    beyond = [graph.positive_part(score, below=values[0]), graph.positive_part(score, above=values[-1])]
    low, high = (
        graph.add("Div", graph.number(rest), graph.add("Add", one, graph.add("Div", distance, by)))
        for rest, distance in zip((levels[0], 1 - levels[-1]), beyond, strict=True)
    )
    above = graph.add("Greater", score, graph.number(values[-1]))
    inside = graph.add("Where", above, graph.add("Sub", one, high), graph.interpolate(score, values, levels))
    level = graph.add("Where", graph.add("Less", score, graph.number(values[0])), low, inside)
    return graph.add("Min", graph.add("Max", level, graph.number(LEAST_LEVEL)), graph.number(1 - LEAST_LEVEL))


def _quantile(graph: _Scores, distribution: ScoreDistribution, level: str) -> str:
    """As `ScoreDistribution.quantile`."""
    values, levels, scale = distribution
    one, by = graph.number(1), graph.number(scale)
    rests = (levels[0], 1 - levels[-1])
    tails = []
    for rest, of_level in zip(rests, (level, graph.add("Sub", one, level)), strict=True):
        ratio = graph.add("Div", graph.number(rest), graph.add("Min", of_level, graph.number(rest)))
        tails.append(graph.add("Mul", by, graph.add("Sub", ratio, one)))
    low = graph.add("Sub", graph.number(values[0]), tails[0])
    high = graph.add("Add", graph.number(values[-1]), tails[1])
    above = graph.add("Greater", level, graph.number(levels[-1]))
    inside = graph.add("Where", above, high, graph.interpolate(level, levels, values))
    return graph.add("Where", graph.add("Less", level, graph.number(levels[0])), low, inside)


def _offset_proba(graph: _Scores, alignment: OffsetAlignment, score: str, a: int) -> str:
    proba, offsets, scaling = score, alignment.offsets[a], alignment.calibration
    if scaling is not None:
        logs = graph.add("Log", graph.add("Max", proba, graph.number(LEAST_PROBA)))
        scaled = graph.add("Mul", logs, graph.number(scaling.slopes[a]))
        proba = graph.add("Softmax", graph.add("Add", scaled, graph.number(scaling.offsets[a])), axis=1)
    axis = graph.constant([1], np.int64)
    if alignment.constraint == "equal_opportunity":
        weighted = graph.add("Mul", proba, graph.number(np.exp(offsets - offsets.max())))
        return graph.add("Div", weighted, graph.add("ReduceSum", weighted, axis, keepdims=1))
    # The nearest probabilities, by sorting (Held, Wolfe and Crowder 1974).
    points, K = graph.add("Add", proba, graph.number(offsets)), len(offsets)
    falling = graph.add_pair("TopK", points, graph.constant([K], np.int64), axis=1)
    sums = graph.add("CumSum", falling, graph.constant(1, np.int64))
    excess = graph.add("Div", graph.add("Sub", sums, graph.number(1)), graph.number(np.arange(1.0, K + 1)))
    counted = graph.add("Cast", graph.add("Greater", falling, excess), to=graph.onnx.TensorProto.INT64)
    n = graph.add("ReduceSum", counted, axis, keepdims=1)
    last = graph.add("Max", graph.add("Sub", n, graph.constant(1, np.int64)), graph.constant(0, np.int64))
    threshold = graph.add("GatherElements", excess, last, axis=1)
    return graph.add("Max", graph.add("Sub", points, threshold), graph.number(0))
