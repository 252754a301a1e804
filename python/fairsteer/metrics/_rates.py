"""The one definition of every gap between groups, and of the rates that it compares."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairsteer._utils.input import warn_caller
from fairsteer._utils.types import Doubles
from fairsteer.groups import GroupEncoder


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


class Counts(NamedTuple):
    """Confusion weights by group, and the labels that their axes stand for."""

    weights: Doubles  # (G, K, K): group, true class, predicted class
    rows: NDArray[np.intp]  # (G,)
    groups: NDArray[Any]
    classes: NDArray[Any]
    binary: bool


def demographic_parity(counts: Counts, min_rows: int = 0) -> Gap:
    total = counts.weights.sum(axis=(1, 2))
    out_of = np.broadcast_to(total[:, None], counts.weights.shape[:2])
    return largest_gap(counts.weights.sum(axis=1), out_of, min_rows)


def equal_opportunity(counts: Counts, min_rows: int = 0) -> Gap:
    return largest_gap(*recognised(counts, all_classes=not counts.binary), min_rows)


def recognised(counts: Counts, *, all_classes: bool) -> tuple[Doubles, Doubles]:
    """Weight of the rows of each class that are recognised, and of all its rows: (G, K), or the last class alone."""
    first = 0 if all_classes else -1
    hits, of_class = np.diagonal(counts.weights, axis1=1, axis2=2), counts.weights.sum(axis=2)
    return hits[:, first:], of_class[:, first:]


def equalized_odds(counts: Counts, min_rows: int = 0) -> Gap:
    n_groups = len(counts.groups)
    of_class = np.broadcast_to(counts.weights.sum(axis=2, keepdims=True), counts.weights.shape)
    return largest_gap(counts.weights.reshape(n_groups, -1), of_class.reshape(n_groups, -1), min_rows)


def largest_gap(hits: Doubles, out_of: Doubles, min_rows: int) -> Gap:
    """Largest gap over the columns of two (G, M) arrays: the weight of events, and of rows they could happen to."""
    if len(hits) < 2:
        return Gap(0.0, 0.0)
    counted = (out_of > 0) & (out_of >= min_rows)
    rates = np.where(counted, safe_ratio(hits, out_of), np.nan)
    comparable = np.flatnonzero(counted.sum(axis=0) >= 2)
    if comparable.size == 0:
        return Gap(float("nan"), float("nan"))
    spread = np.nanmax(rates[:, comparable], axis=0) - np.nanmin(rates[:, comparable], axis=0)
    worst = comparable[np.argmax(spread)]
    pair = [int(np.nanargmax(rates[:, worst])), int(np.nanargmin(rates[:, worst]))]
    n = out_of[pair, worst]
    pooled = hits[pair, worst].sum() / n.sum()
    noise = np.sqrt(max(pooled * (1 - pooled), 0.0) * (1 / n).sum())
    return Gap(float(spread.max()), float(noise))


def safe_ratio(numerator: Doubles, denominator: Doubles) -> Doubles:
    """Quotient of two arrays of one shape after broadcasting; NaN where there is nothing to divide by."""
    quotient = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=quotient, where=np.broadcast_to(denominator, quotient.shape) > 0)
    return quotient


def count_predictions(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    sensitive_features: Any,
    sample_weight: ArrayLike | None,
    pos_label: Any,
    labels: ArrayLike | None = None,
) -> Counts:
    """Validate the arguments and add up the confusion weights of every group."""
    true, pred = class_labels(y_true, "y_true"), class_labels(y_pred, "y_pred")
    if len(true) != len(pred):
        raise ValueError(f"y_true has {len(true)} rows and y_pred has {len(pred)}; they must be the same rows.")
    weight = check_weights(sample_weight, len(true))
    encoder = GroupEncoder().fit(sensitive_features)
    group_codes = encoder.encode(sensitive_features)
    if len(group_codes) != len(true):
        raise ValueError(f"sensitive_features has {len(group_codes)} rows and y_true has {len(true)}.")
    more = true[:0] if labels is None else class_labels(labels, "labels")
    classes, true_codes, pred_codes = encode_classes(true, pred, more, pos_label)
    known = group_codes >= 0
    if not known.all():
        warn_caller(f"{int((~known).sum())} of {len(known)} rows have no group and are left out of the metric.")
    n_groups, n_classes = len(encoder.groups_), len(classes)
    cell = (group_codes * n_classes + true_codes) * n_classes + pred_codes
    weights = np.bincount(cell[known], weights=weight[known], minlength=n_groups * n_classes**2)
    rows = np.bincount(group_codes[known], minlength=n_groups)
    return Counts(
        weights.astype(np.float64).reshape(n_groups, n_classes, n_classes),
        rows,
        encoder.groups_,
        classes,
        binary=n_classes <= 2,
    )


def class_labels(y: ArrayLike, name: str) -> NDArray[Any]:
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ValueError(f"{name} must hold one label per row, not an array of shape {labels.shape}.")
    if labels.size == 0:
        raise ValueError(f"{name} is empty; at least one row is needed.")
    n_missing = count_missing(labels)
    if n_missing:
        raise ValueError(f"{name} has {n_missing} missing labels; leave those rows out first.")
    return labels


def count_missing(labels: NDArray[Any]) -> int:
    if labels.dtype.kind in "fc":
        return int(np.isnan(labels).sum())
    if labels.dtype.kind != "O":
        return 0
    # NaN and pd.NA are the values that do not equal themselves (pd.NA by raising on bool()); None
    # does.
    return sum(1 for label in labels if label is None or _differs_from_itself(label))


def _differs_from_itself(label: Any) -> bool:
    try:
        return bool(label != label)
    except TypeError:
        return True


def check_weights(sample_weight: ArrayLike | None, n_rows: int) -> Doubles:
    if sample_weight is None:
        return np.ones(n_rows)
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.shape != (n_rows,):
        raise ValueError(f"sample_weight has shape {weight.shape}; expected ({n_rows},), one weight per row.")
    bad = ~np.isfinite(weight) | (weight < 0)
    if bad.any():
        raise ValueError(f"sample_weight has {int(bad.sum())} negative or non-finite entries; weights must be >= 0.")
    return weight


def encode_classes(
    true: NDArray[Any], pred: NDArray[Any], more: NDArray[Any], pos_label: Any
) -> tuple[NDArray[Any], NDArray[np.intp], NDArray[np.intp]]:
    """Classes in sorted order (the positive one last when there are two) and the codes of both label arrays."""
    text, number = set("US"), set("biufc")
    kinds = {true.dtype.kind, pred.dtype.kind, more.dtype.kind}
    mixed = bool(kinds & text) and bool(kinds & number)  # concatenating would turn the numbers into text
    try:
        if mixed:
            raise TypeError
        classes, codes = np.unique(np.concatenate([true, pred, more]), return_inverse=True)
    except TypeError:
        given = f"y_true (dtype {true.dtype})" + (f", labels (dtype {more.dtype})" if more.size else "")
        raise ValueError(
            f"{given} and y_pred (dtype {pred.dtype}) mix labels of different types, such as text and numbers; give "
            "all the same type."
        ) from None
    if pos_label is not None:
        classes, codes = against_rest(classes, codes, pos_label)
    return classes, codes[: len(true)], codes[len(true) : 2 * len(true)]


def against_rest(
    classes: NDArray[Any], codes: NDArray[np.intp], pos_label: Any
) -> tuple[NDArray[Any], NDArray[np.intp]]:
    position = [i for i, label in enumerate(classes.tolist()) if label == pos_label]
    if not position:
        raise ValueError(
            f"pos_label={pos_label!r} is neither in y_true nor in y_pred; the labels are {classes.tolist()}."
        )
    return np.array([False, True]), (codes == position[0]).astype(np.intp)
