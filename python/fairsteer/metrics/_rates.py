"""The one definition of every gap between groups: which rates are compared, from which counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from fairsteer._utils.input import check_classes, few, warn_caller
from fairsteer._utils.labels import described, distinct_labels, kind_of, label_array, sorted_labels
from fairsteer._utils.types import Codes, Doubles
from fairsteer._utils.weights import check_sample_weight
from fairsteer.groups import GroupEncoder

# ---- the table of criteria


class Criterion(NamedTuple):
    """One way to treat groups alike: certain rates are the same in all of them.

    A rate is a number of events out of a number of rows, both of them sums of confusion counts, the weights of rows by
    (group, true class, predicted class).
    """

    name: str
    question: str
    """What is asked of the groups, for people."""
    formula: str
    """The difference between groups."""
    counts: Callable[[Doubles], tuple[Doubles, Doubles]]
    """From confusion counts (…, n_classes, n_classes): events and the rows they could happen to, (…, n_rates), one rate
    a predicted class, or one for each true and predicted class, predicted classes last."""

    def events_and_rows(self, confusion: Doubles, *, all_classes: bool = False) -> tuple[Doubles, Doubles]:
        """Events and rows of every compared rate, (…, n_rates).

        Of two classes one is compared, the last, unless `all_classes`: a rate of the other is 1 less the same rate, or
        the question is about the positive class.
        """
        n_classes = confusion.shape[-1]
        events, rows = self.counts(confusion)
        if n_classes > 2 or all_classes:
            return events, rows
        last = slice(n_classes - 1, None, n_classes)
        return events[..., last], rows[..., last]

    def rates(self, confusion: Doubles, *, all_classes: bool = False) -> Doubles:
        """Divide events by rows, (…, n_rates); NaN where there are no rows."""
        return safe_ratio(*self.events_and_rows(confusion, all_classes=all_classes))


def _predicted(confusion: Doubles) -> tuple[Doubles, Doubles]:
    events = confusion.sum(axis=-2)
    return events, np.broadcast_to(events.sum(axis=-1, keepdims=True), events.shape)


def _recognised(confusion: Doubles) -> tuple[Doubles, Doubles]:
    return np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-1)


def _confused(confusion: Doubles) -> tuple[Doubles, Doubles]:
    rows = np.broadcast_to(confusion.sum(axis=-1, keepdims=True), confusion.shape)
    shape = (*confusion.shape[:-2], -1)
    return confusion.reshape(shape), rows.reshape(shape)


#: Every criterion by name. Metrics, intervals, scorers, reports and pictures read this table.
CRITERIA = {
    criterion.name: criterion
    for criterion in (
        Criterion(
            "demographic_parity",
            "how often a class is predicted",
            "max_c max_{a,b} |P(h = c | A=a) - P(h = c | A=b)|",
            _predicted,
        ),
        Criterion(
            "equal_opportunity",
            "how often rows of a class are recognised",
            "max_k max_{a,b} |P(h = k | Y = k, A=a) - P(h = k | Y = k, A=b)|",
            _recognised,
        ),
        Criterion(
            "equalized_odds",
            "how often rows of a class are predicted each class",
            "max_{k,c} max_{a,b} |P(h = c | Y = k, A=a) - P(h = c | Y = k, A=b)|",
            _confused,
        ),
    )
}


# ---- gaps from counts


class Gap(NamedTuple):
    """The largest gap between two groups, and what it would be by chance.

    Attributes
    ----------
    value : float
        Largest rate minus smallest rate, in [0, 1]; NaN when no comparison is possible.
    noise : float
        Standard error of a gap between the same two groups if their true rates were equal,
        ``sqrt(p (1 - p) (1/n_a + 1/n_b))`` with the pooled rate ``p``.
    """

    value: float
    noise: float


class Tally(NamedTuple):
    """Confusion counts by group, and the labels that their axes stand for."""

    weights: Doubles
    """Sums of weights by group, true and predicted class, (n_groups, n_classes, n_classes)."""
    squares: Doubles
    """Sums of squared weights, likewise."""
    rows: Codes
    """Rows of every group."""
    groups: npt.NDArray[Any]
    classes: npt.NDArray[Any]
    folded: bool
    """Whether all classes but the positive one were folded into one."""

    @property
    def binary(self) -> bool:
        """Whether there is a positive class, the last."""
        return len(self.classes) <= 2

    def sizes(self, criterion: Criterion) -> Doubles:
        """Rows behind every compared rate, (n_groups, n_rates): with weights their effective number (Kish)."""
        sums, squares = (criterion.events_and_rows(counts)[1] for counts in (self.weights, self.squares))
        return effective_rows(sums, squares)


def effective_rows(sums: Doubles, squares: Doubles) -> Doubles:
    """Count the rows behind sums of weights and of their squares (Kish); 0 without weight."""
    return np.divide(sums**2, squares, out=np.zeros(np.shape(sums)), where=squares > 0)


def largest_gap(criterion: Criterion, tally: Tally, min_rows: int = 0) -> Gap:
    """Largest difference between two groups in any of the rates that a criterion compares."""
    if len(tally.groups) < 2:
        return Gap(0.0, 0.0)
    n = tally.sizes(criterion)
    rates = np.where(n >= min_rows, criterion.rates(tally.weights), np.nan)
    seen = np.isfinite(rates)
    comparable = np.flatnonzero(seen.sum(axis=0) >= 2)
    if comparable.size == 0:
        return Gap(float("nan"), float("nan"))
    spread = np.nanmax(rates[:, comparable], axis=0) - np.nanmin(rates[:, comparable], axis=0)
    worst = comparable[np.argmax(spread)]
    pair = [int(np.nanargmax(rates[:, worst])), int(np.nanargmin(rates[:, worst]))]
    behind = n[pair, worst]
    pooled = rates[pair, worst] @ behind / behind.sum()
    noise = np.sqrt(max(pooled * (1 - pooled), 0.0) * (1 / behind).sum())
    return Gap(float(spread.max()), float(noise))


def root_mean_square_gap(criterion: Criterion, tally: Tally) -> float:
    """Root mean square over the classes of the largest difference between two groups."""
    if len(tally.groups) < 2:
        return 0.0
    rates = criterion.rates(tally.weights, all_classes=not tally.folded)
    rates = rates[:, np.isfinite(rates).sum(axis=0) >= 2]
    if rates.size == 0:
        return float("nan")
    spread = np.nanmax(rates, axis=0) - np.nanmin(rates, axis=0)
    return float(np.sqrt(np.mean(spread**2)))


def safe_ratio(numerator: Doubles, denominator: Doubles) -> Doubles:
    """Quotient of two arrays of one shape after broadcasting; NaN where there is nothing to divide by."""
    quotient = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=quotient, where=np.broadcast_to(denominator, quotient.shape) > 0)
    return quotient


# ---- reading predictions


class Predictions(NamedTuple):
    """Rows with a known group, their true and their predicted classes, as codes."""

    true: Codes
    pred: Codes
    group: Codes
    weight: Doubles
    classes: npt.NDArray[Any]
    """The positive class last if there are two."""
    groups: npt.NDArray[Any]
    folded: bool = False

    def tally(self) -> Tally:
        """Add up the weights of every group, true and predicted class."""
        shape = (len(self.groups), len(self.classes), len(self.classes))
        cell = np.ravel_multi_index((self.group, self.true, self.pred), shape)
        sums, squares = (
            np.bincount(cell, w, int(np.prod(shape))).astype(np.float64).reshape(shape)
            for w in (self.weight, self.weight**2)
        )
        rows = np.bincount(self.group, minlength=len(self.groups))
        return Tally(sums, squares, rows, self.groups, self.classes, self.folded)


def read_predictions(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    sensitive_features: Any,
    sample_weight: ArrayLike | None,
    pos_label: Any,
    labels: ArrayLike | None,
) -> Predictions:
    """Check the arguments of a metric, and turn labels into codes."""
    true, pred = _read_labels(y_true, "y_true"), _read_labels(y_pred, "y_pred")
    if len(true) != len(pred):
        raise ValueError(f"y_true has {len(true)} rows and y_pred has {len(pred)}; they must be the same rows.")
    weight = check_sample_weight(sample_weight, true)
    encoder = GroupEncoder()
    group_codes = encoder.partial_fit_encode(sensitive_features)
    if len(group_codes) != len(true):
        raise ValueError(f"sensitive_features has {len(group_codes)} rows and y_true has {len(true)}.")
    more = None if labels is None else _read_labels(labels, "labels")
    classes, true_codes, pred_codes = encode_classes(true, pred, more, pos_label)
    known = group_codes >= 0
    if not known.all():
        warn_caller(f"{int((~known).sum())} of {len(known)} rows have no group and are left out.")
    return Predictions(
        true_codes[known],
        pred_codes[known],
        group_codes[known],
        np.ones(int(known.sum())) if weight is None else weight[known],
        classes,
        encoder.groups_,
        folded=pos_label is not None,
    )


def _read_labels(y: ArrayLike, name: str) -> npt.NDArray[Any]:
    array = np.asarray(y)
    if array.ndim == 0 or array.shape[1:] not in ((), (1,)):
        raise ValueError(f"{name} must hold one label per row, not an array of shape {array.shape}.")
    if array.size == 0:
        raise ValueError(f"{name} is empty; at least one row is needed.")
    values = y.ravel() if isinstance(y, np.ndarray) else y  # a masked array keeps its mask
    if array.dtype.kind == "f":
        fractions = np.unique(array[np.isfinite(array) & (array != np.rint(array))])
        if fractions.size:
            raise ValueError(
                f"{name} is continuous: {fractions.size} distinct fractions, such as {fractions[0]:.6g}. Gaps are "
                "between predicted classes: pass labels, as predict gives them, not probabilities, scores or values."
            )
    return check_classes(values, values, name)


def encode_classes(
    true: npt.NDArray[Any], pred: npt.NDArray[Any], more: npt.NDArray[Any] | None, pos_label: Any
) -> tuple[npt.NDArray[Any], Codes, Codes]:
    """Classes in sorted order (the positive one last when there are two) and the codes of both label arrays."""
    of_rows = [distinct_labels(y) for y in (true, pred)]
    given = [labels for labels, _ in of_rows] + ([] if more is None else [distinct_labels(more)[0]])
    if len({kind_of(label) for labels in given for label in labels}) > 1:
        # Concatenated, NumPy would turn the numbers into text.
        listed = "; ".join(
            f"{name} has the {described(sorted_labels(labels))}"
            for name, labels in zip(("y_true", "y_pred", "labels"), given, strict=False)
        )
        raise ValueError(f"y_true and y_pred mix labels of different types, which are never equal: {listed}.")
    found = [set(labels) for labels in given]
    _check_spelling(found[0], found[1], None if more is None else found[2], pos_label)
    classes = label_array(sorted_labels(set().union(*found)))
    position = {label: k for k, label in enumerate(classes.tolist())}
    codes = [np.array([position[label] for label in labels], dtype=np.intp)[rows] for labels, rows in of_rows]
    if pos_label is None:
        return classes, codes[0], codes[1]
    if isinstance(pos_label, np.generic):
        pos_label = pos_label.item()
    if pos_label not in position:
        raise ValueError(
            f"pos_label={pos_label!r} is neither in y_true nor in y_pred; the labels are "
            f"[{few(map(repr, classes.tolist()))}]."
        )
    return np.array([False, True]), *((code == position[pos_label]).astype(np.intp) for code in codes)


def _check_spelling(true: set[Any], pred: set[Any], known: set[Any] | None, pos_label: Any) -> None:
    """Refuse predictions that are spelt otherwise than the truth: their gap would be 0, or mean nothing."""
    if known is not None:
        for name, labels in (("y_true", true), ("y_pred", pred)):
            if labels - known:
                raise ValueError(f"{name} holds {_some(labels - known)}, but labels names the classes {_some(known)}.")
        if len(known) == 1 and pos_label is None:
            raise ValueError(f"labels names one class only, {_some(known)}: there is nothing to tell it from.")
        return
    way_out = "If they are the labels of one problem all the same, name all its classes: labels=[…]."
    unequal = f"y_true has the classes {_some(true)} and y_pred has {_some(pred)}"
    alike: dict[str, Any] = {}
    for label in sorted((label for label in true | pred if isinstance(label, str)), key=str):
        other = alike.setdefault(label.strip().casefold(), label)
        if other != label:
            raise ValueError(f"{other!r} and {label!r} look like two spellings of one class: {unequal}. {way_out}")
    if not true & pred:
        raise ValueError(f"No predicted label is a true one: {unequal}. {way_out}")
    if len(true | pred) > 2 and pred - true and true - pred:
        raise ValueError(
            f"y_true and y_pred look like two codings of the classes: {_some(pred - true)} is never true, and "
            f"{_some(true - pred)} is never predicted. {way_out}"
        )
    if len(true | pred) == 1 and pos_label is None:
        raise ValueError(
            f"All true and predicted labels are {_some(true)}: with one label nothing says whether it is the positive "
            "class. Name all classes, labels=[…], or the positive one, pos_label=…."
        )


def _some(labels: set[Any]) -> str:
    return few(map(repr, sorted_labels(labels)))
