"""A graph of standard ONNX operators that moves rows as a fitted transformer does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from fairsteer._utils.types import Doubles
from fairsteer.export._maps import Steps
from fairsteer.moments import SubgroupMoments

#: The operators' version: ReduceSumSquare and ReduceLogSumExp take axes as an input from it on.
_OPSET = 18


#: Of the file format; what onnxruntime reads since 1.17.
_IR_VERSION = 9


class Posterior(NamedTuple):
    """What the probabilities of the groups given a row follow from."""

    model: SubgroupMoments
    """The fitted subgroups, in the coordinates of the model."""
    scale: Doubles
    """Features times this, (d,), plus `shift` are in these coordinates."""
    shift: Doubles
    slope: float
    """Of the calibration."""
    offsets: Doubles
    """Of the calibration, (n_groups,)."""
    hard: bool
    """Whether the likeliest group's map is taken, instead of all maps weighted."""


class Graph:
    """Nodes in the order of their computation."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._n_names = 0

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        array = np.ascontiguousarray(np.asarray(value, dtype=dtype))
        self.constants.append(self.onnx.numpy_helper.from_array(array.reshape(np.shape(value)), name))
        return name

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or self._new_name()
        self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def add_pair(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator of two outputs, and give the first."""
        names = [self._new_name(), self._new_name()]
        self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), names, **attributes))
        return names[0]

    def add_if(self, condition: str, then: Callable[[], str], otherwise: str, element_type: int) -> str:
        """Compute `then` where the condition holds, and where not, spend no time on it."""
        branches = []
        for compute in (then, lambda: self.add("Identity", otherwise)):
            outer, self.nodes = self.nodes, []
            name = compute()
            output = self.onnx.helper.make_tensor_value_info(name, element_type, None)
            branches.append(self.onnx.helper.make_graph(self.nodes, f"branch of {name}", [], [output]))
            self.nodes = outer
        return self.add("If", condition, then_branch=branches[0], else_branch=branches[1])

    def any(self, conditions: list[str]) -> str:
        """Whether one of several conditions holds."""
        return functools.reduce(lambda one, other: self.add("Or", one, other), conditions)

    def choose(self, conditions: list[str], then: str, otherwise: str) -> str:
        """Take one value where all conditions hold, another one elsewhere."""
        return self.add("Where", functools.reduce(lambda a, b: self.add("And", a, b), conditions), then, otherwise)

    def model(self, inputs: list[Any], outputs: list[Any]) -> Any:
        """Wrap the nodes up."""
        helper = self.onnx.helper
        model = helper.make_model(
            helper.make_graph(self.nodes, "fairsteer", inputs, outputs, self.constants),
            producer_name="fairsteer",
            opset_imports=[helper.make_opsetid("", _OPSET)],
        )
        model.ir_version = _IR_VERSION
        return model

    def _new_name(self) -> str:
        self._n_names += 1
        return f"n{self._n_names}"


def build_model(onnx: Any, steps: Steps, *, by_group: bool, logarithmic: bool, posterior: Posterior | None) -> Any:
    """Build the graph.

    Parameters
    ----------
    onnx : module
        The package.
    steps : Steps
        One for each code, or one for all rows.
    by_group : bool
        Whether rows have codes; otherwise the only step moves all.
    logarithmic : bool
        Whether the steps are those of the features' logarithms.
    posterior : Posterior or None
        How negative codes are inferred; None: their rows become NaN.

    Returns
    -------
    onnx.ModelProto
        The model.
    """
    graph = Graph(onnx)
    rows = Rows(graph, logarithmic, steps.offset.shape[1])
    taken = [
        rows.step(steps.displacement[c], steps.centre[c], steps.offset[c]) if moves else None
        for c, moves in enumerate(steps.moves)
    ]
    d = steps.offset.shape[1]
    helper, types = onnx.helper, onnx.TensorProto
    inputs = [helper.make_tensor_value_info("X", types.FLOAT, ["n", d])]
    if by_group:
        inputs.append(helper.make_tensor_value_info("group", types.INT64, ["n"]))
        result = _by_group(graph, rows, taken, posterior)
    else:
        result = graph.choose(
            [rows.accepted], "X" if taken[0] is None else rows.moved(taken[0]), graph.constant(np.nan)
        )
    graph.add("Identity", result, output="Y")
    return graph.model(inputs, [helper.make_tensor_value_info("Y", types.FLOAT, ["n", d])])


class Rows:
    """The input rows, in the coordinates of the maps."""

    def __init__(self, graph: Graph, logarithmic: bool, n_features: int) -> None:
        self._graph, self._logarithmic = graph, logarithmic
        self._centred: dict[bytes, str] = {}
        self.coordinates = self._numbers = "X"
        if logarithmic:
            positive = graph.add("Greater", "X", graph.constant(0.0))
            self._numbers = graph.add("Where", positive, "X", graph.constant(np.nan))
            self.coordinates = graph.add("Log", self._numbers)
        # Nothing times 0 is NaN but what is no number or infinite.
        nothing = graph.add("MatMul", self._numbers, graph.constant(np.zeros((n_features, 1))))
        self.accepted = graph.add("Not", graph.add("IsNaN", nothing))
        """Whether a row is none that transform refuses, whatever its code: (n, 1)."""

    def step(self, displacement: Doubles, centre: Doubles, offset: Doubles) -> str:
        """Step of every row, in the coordinates of the maps."""
        add, constant = self._graph.add, self._graph.constant
        key = centre.tobytes()  # several maps may have one
        if key not in self._centred:
            if self._logarithmic:  # of numbers near 1, which has all its digits
                self._centred[key] = add("Log", add("Mul", self._numbers, constant(np.exp(-centre))))
            else:
                self._centred[key] = add("Sub", "X", constant(centre))
        if displacement.ndim == 1:
            return add("Add", add("Mul", self._centred[key], constant(displacement)), constant(offset))
        return add("Gemm", self._centred[key], constant(displacement.T), constant(offset))

    def moved(self, step: str) -> str:
        """Rows after a step: rounded once, however far from the origin they are."""
        if self._logarithmic:
            return self._graph.add("Mul", "X", self._graph.add("Exp", step))
        return self._graph.add("Add", "X", step)


def _by_group(graph: Graph, rows: Rows, taken: list[str | None], posterior: Posterior | None) -> str:
    """Choose every row's step by its code."""
    column = graph.constant([1], np.int64)
    code = graph.add("Unsqueeze", "group", column)
    zero = graph.constant(0, np.int64)
    unknown = graph.add("Less", code, zero)
    types = graph.onnx.TensorProto
    moving = [a for a, step in enumerate(taken) if step is not None]
    infers = posterior if moving else None  # where nothing moves there is nothing to choose
    if infers is not None:
        count = graph.add("ReduceSum", graph.add("Cast", unknown, to=types.INT64), keepdims=0)
        some = graph.add("Greater", count, zero)
        if infers.hard:
            given = code
            code = graph.add_if(
                some,
                lambda: graph.add(
                    "Where", unknown, graph.add("ArgMax", _log_proba(graph, rows.coordinates, infers), axis=1), given
                ),
                given,
                types.INT64,
            )
    of = [graph.add("Equal", code, graph.constant(a, np.int64)) for a in range(len(taken))]
    # Whatever is in no group, or refused, is NaN: a mistake must not pass for a group.
    staying = [of[a] for a in range(len(taken)) if a not in moving]
    if posterior is not None and infers is None:
        staying.append(unknown)
    result = graph.choose([graph.any(staying), rows.accepted], "X", graph.constant(np.nan)) if staying else None
    if moving:
        step: Any = taken[moving[0]]
        for a in moving[1:]:
            step = graph.add("Where", of[a], str(taken[a]), step)
        moves = [graph.any([of[a] for a in moving]), rows.accepted]
        result = graph.choose(moves, rows.moved(step), result or graph.constant(np.nan))
    if infers is None or infers.hard:
        return str(result)

    def with_mixed() -> str:
        proba = graph.add("Softmax", _log_proba(graph, rows.coordinates, infers), axis=1)
        proba = graph.add("Cast", proba, to=types.FLOAT)
        parts = []
        for a in moving:
            bounds = (graph.constant([i], np.int64) for i in (a, a + 1, 1))
            parts.append(graph.add("Mul", graph.add("Slice", proba, *bounds), str(taken[a])))
        return graph.choose([unknown, rows.accepted], rows.moved(graph.add("Sum", *parts)), str(result))

    return graph.add_if(some, with_mixed, str(result), types.FLOAT)


def _log_proba(graph: Graph, rows: str, posterior: Posterior) -> str:
    """Calibrated log-probability of the groups given the rows, (n, n_groups), up to a constant a row.

    In double precision: the distances that are compared grow with the number of features, their differences do not.
    """
    rows = graph.add("Cast", rows, to=graph.onnx.TensorProto.DOUBLE)
    if (posterior.scale != 1).any() or posterior.shift.any():
        scaled = graph.add("Mul", rows, graph.constant(posterior.scale, np.float64))
        rows = graph.add("Add", scaled, graph.constant(posterior.shift, np.float64))
    model = posterior.model
    covariances, _ = model._positive_definite()
    log_weights = np.log(np.maximum(model.weights, np.finfo(np.float64).tiny) / model.weights.sum())
    axis = graph.constant([1], np.int64)
    columns = []
    for a in range(model.n_groups):
        seen = np.flatnonzero(model.weights[:, a] > 0)
        blocks = [seen] if model.covariance == "tied" else [seen[[i]] for i in range(len(seen))]
        parts = [
            _log_joint(
                graph,
                rows,
                log_weights[k, a],
                model.means[k, a],
                covariances[a] if model.covariance == "tied" else covariances[k[0], a],
                axis,
            )
            for k in blocks
        ]
        joint = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)
        columns.append(graph.add("ReduceLogSumExp", joint, axis, keepdims=1))
    log_proba = graph.add("Concat", *columns, axis=1)
    scaled = graph.add("Mul", log_proba, graph.constant(posterior.slope, np.float64))
    return graph.add("Add", scaled, graph.constant(posterior.offsets, np.float64))


def _log_joint(graph: Graph, rows: str, log_weights: Doubles, means: Doubles, covariance: Doubles, axis: str) -> str:
    """Log-density of subgroups with one covariance, (n, n_subgroups), but for a constant that all share."""
    # Relative to a point among the means, so that a common offset costs no digits.
    centre = means.mean(axis=0)
    centred = graph.add("Sub", rows, graph.constant(centre, np.float64))
    if covariance.ndim == 1:
        whitener = 1 / np.sqrt(covariance)
        white = graph.add("Mul", centred, graph.constant(whitener, np.float64))
        white_means, log_det = (means - centre) * whitener, np.log(covariance).sum()
    else:
        factor = np.linalg.cholesky(covariance)
        whitener = solve_triangular(factor, np.eye(len(factor)), lower=True).T
        white = graph.add("MatMul", centred, graph.constant(whitener, np.float64))
        white_means, log_det = (means - centre) @ whitener, 2 * np.log(np.diag(factor)).sum()
    constants = log_weights - (np.square(white_means).sum(axis=1) + log_det) / 2
    linear = graph.add("Gemm", white, graph.constant(white_means.T, np.float64), graph.constant(constants, np.float64))
    square = graph.add("ReduceSumSquare", white, axis, keepdims=1)
    return graph.add("Sub", linear, graph.add("Mul", square, graph.constant(0.5, np.float64)))
