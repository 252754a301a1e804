"""Gaps between groups, for any number of classes and of groups.

Which one to use
----------------
* `demographic_parity_difference`: do the groups receive each prediction equally often?
* `equal_opportunity_difference`: are rows of the same true class recognised equally often?
* `equalized_odds_difference`: is every kind of error made equally often?
* `tpr_gap_rms`: equal opportunity of many classes, averaged over them instead of the worst.
* `group_metrics`: the table behind these numbers, one entry per group.

With two classes the three differences equal those of fairlearn, whose names they carry; fairlearn
has no version for more classes, which is why they are here. To score models by these or any of
fairlearn's, see :mod:`fairsteer.scoring`.

One rule for what cannot be compared
------------------------------------
A rate has a value in a group only if the group has rows (of positive weight) to compute it from. A
group without rows of a class is *left out* of that class's comparison instead of counting as a rate
of 0, and a comparison with fewer than two groups left is skipped. When every comparison is skipped
the result is NaN, never a silent 0. With a single group there is nothing to compare and the result
is 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairsteer._input import warn_caller
from fairsteer.groups import GroupEncoder

__all__ = [
    "Gap",
    "demographic_parity_difference",
    "equal_opportunity_difference",
    "equalized_odds_difference",
    "gaps",
    "group_metrics",
    "tpr_gap_rms",
]

FloatArray = NDArray[np.float64]


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


class _Counts(NamedTuple):
    """Confusion weights by group, and the labels that their axes stand for."""

    weights: FloatArray  # (G, K, K): group, true class, predicted class
    rows: NDArray[np.intp]  # (G,)
    groups: NDArray[Any]
    classes: NDArray[Any]
    binary: bool


def demographic_parity_difference(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Any,
    sample_weight: ArrayLike | None = None,
    pos_label: Any = None,
    labels: ArrayLike | None = None,
) -> float:
    """Largest gap between two groups in how often a class is predicted.

    ``max_c max_{a,b} |P(h = c | A=a) - P(h = c | A=b)|``. With two classes this is
    :func:`fairlearn.metrics.demographic_parity_difference`.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels. Only used to know the classes.
    y_pred : array-like of shape (n_samples,)
        Predicted labels.
    sensitive_features : array-like of shape (n_samples,) or (n_samples, n_columns)
        Groups; several columns mean their intersections. Rows without a group are left out with a
        warning.
    sample_weight : array-like of shape (n_samples,), optional
        Non-negative weights; every row counts 1 by default.
    pos_label : label, optional
        Fold all other labels into one and compare only this class against the rest.
    labels : array-like, optional
        All classes, where `y_true` and `y_pred` may lack some. By default those that occur.

    Returns
    -------
    float
        Gap in [0, 1]; 0 with a single group, NaN if no two groups can be compared.

    Raises
    ------
    ValueError
        For lengths that differ, missing labels, labels of mixed types, negative weights or an
        absent `pos_label`.

    Examples
    --------
    >>> from fairsteer.metrics import demographic_parity_difference
    >>> demographic_parity_difference([0, 1, 1, 1], [1, 1, 0, 0], sensitive_features=["a", "a", "b", "b"])
    1.0
    """
    counts = _count(y_true, y_pred, sensitive_features, sample_weight, pos_label, labels)
    return _demographic_parity(counts).value


def equal_opportunity_difference(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Any,
    sample_weight: ArrayLike | None = None,
    pos_label: Any = None,
    labels: ArrayLike | None = None,
) -> float:
    """Largest gap between two groups in how often rows of a class are recognised.

    ``max_k max_{a,b} |P(h = k | Y = k, A=a) - P(h = k | Y = k, A=b)|`` over all classes. With two
    classes only the positive one counts (the larger label, unless `pos_label` says otherwise),
    which makes it :func:`fairlearn.metrics.equal_opportunity_difference`, except that fairlearn
    gives a group without positive rows a rate of 0 where this function leaves it out.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_pred : array-like of shape (n_samples,)
        Predicted labels.
    sensitive_features : array-like of shape (n_samples,) or (n_samples, n_columns)
        Groups; several columns mean their intersections. Rows without a group are left out with a
        warning.
    sample_weight : array-like of shape (n_samples,), optional
        Non-negative weights; every row counts 1 by default.
    pos_label : label, optional
        The positive class. With more than two classes, the only class compared.
    labels : array-like, optional
        All classes, where `y_true` and `y_pred` may lack some. By default those that occur.

    Returns
    -------
    float
        Gap in [0, 1]; 0 with a single group, NaN if no two groups can be compared.

    Raises
    ------
    ValueError
        For lengths that differ, missing labels, labels of mixed types, negative weights or an
        absent `pos_label`.

    Examples
    --------
    >>> from fairsteer.metrics import equal_opportunity_difference
    >>> equal_opportunity_difference([1, 1, 1, 1], [1, 1, 1, 0], sensitive_features=["a", "a", "b", "b"])
    0.5
    """
    counts = _count(y_true, y_pred, sensitive_features, sample_weight, pos_label, labels)
    return _equal_opportunity(counts).value


def equalized_odds_difference(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Any,
    sample_weight: ArrayLike | None = None,
    pos_label: Any = None,
    labels: ArrayLike | None = None,
) -> float:
    """Largest gap between two groups in any entry of the normalised confusion matrix.

    ``max_{k,c} max_{a,b} |P(h = c | Y = k, A=a) - P(h = c | Y = k, A=b)|``. With two classes this
    is the larger of the true-positive-rate and the false-positive-rate gap,
    :func:`fairlearn.metrics.equalized_odds_difference` with its default ``agg="worst_case"``,
    except that fairlearn gives a group without rows of a class a rate of 0 where this function
    leaves it out.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_pred : array-like of shape (n_samples,)
        Predicted labels.
    sensitive_features : array-like of shape (n_samples,) or (n_samples, n_columns)
        Groups; several columns mean their intersections. Rows without a group are left out with a
        warning.
    sample_weight : array-like of shape (n_samples,), optional
        Non-negative weights; every row counts 1 by default.
    pos_label : label, optional
        Fold all other labels into one and compare only this class against the rest.
    labels : array-like, optional
        All classes, where `y_true` and `y_pred` may lack some. By default those that occur.

    Returns
    -------
    float
        Gap in [0, 1]; 0 with a single group, NaN if no two groups can be compared.

    Raises
    ------
    ValueError
        For lengths that differ, missing labels, labels of mixed types, negative weights or an
        absent `pos_label`.

    Examples
    --------
    >>> from fairsteer.metrics import equalized_odds_difference
    >>> equalized_odds_difference([0, 1, 0, 1], [0, 1, 1, 1], sensitive_features=["a", "a", "b", "b"])
    1.0
    """
    counts = _count(y_true, y_pred, sensitive_features, sample_weight, pos_label, labels)
    return _equalized_odds(counts).value


def tpr_gap_rms(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Any,
    sample_weight: ArrayLike | None = None,
    pos_label: Any = None,
    labels: ArrayLike | None = None,
) -> float:
    """Root mean square over the classes of the gap in how often rows of a class are recognised.

    ``sqrt(mean_k gap_k ** 2)`` with ``gap_k = max_{a,b} |P(h = k | Y = k, A=a) - P(h = k | Y = k, A=b)|``, for two
    groups the measure of De-Arteaga et al. (2019) [1]_ as Ravfogel et al. (2020) [2]_ sum it up. Where
    :func:`equal_opportunity_difference` shows the worst class, which among dozens is often a rare one, this shows
    the typical class. All classes count, also when there are two of them.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_pred : array-like of shape (n_samples,)
        Predicted labels.
    sensitive_features : array-like of shape (n_samples,) or (n_samples, n_columns)
        Groups; several columns mean their intersections. Rows without a group are left out with a
        warning.
    sample_weight : array-like of shape (n_samples,), optional
        Non-negative weights; every row counts 1 by default.
    pos_label : label, optional
        The only class compared.
    labels : array-like, optional
        All classes, where `y_true` and `y_pred` may lack some. By default those that occur.

    Returns
    -------
    float
        Gap in [0, 1]; 0 with a single group, NaN if no class can be compared.

    Raises
    ------
    ValueError
        For lengths that differ, missing labels, labels of mixed types, negative weights or an
        absent `pos_label`.

    References
    ----------
    .. [1] De-Arteaga et al. "Bias in Bios: A Case Study of Semantic Representation Bias in a
       High-Stakes Setting". FAT* 2019. arXiv:1901.09451.
    .. [2] Ravfogel et al. "Null It Out: Guarding Protected Attributes by Iterative Nullspace
       Projection". ACL 2020. arXiv:2004.07667.

    Examples
    --------
    >>> from fairsteer.metrics import tpr_gap_rms
    >>> groups = ["a", "a", "b", "b"]
    >>> round(tpr_gap_rms([0, 1, 0, 1], [0, 1, 0, 0], sensitive_features=groups), 3)
    0.707
    """
    counts = _count(y_true, y_pred, sensitive_features, sample_weight, pos_label, labels)
    if len(counts.groups) < 2:
        return 0.0
    hits, of_class = _recognised(counts, all_classes=pos_label is None)
    rates = _ratio(hits, of_class)
    rates = rates[:, np.isfinite(rates).sum(axis=0) >= 2]
    if rates.size == 0:
        return float("nan")
    spread = np.nanmax(rates, axis=0) - np.nanmin(rates, axis=0)
    return float(np.sqrt(np.mean(spread**2)))


def group_metrics(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Any,
    sample_weight: ArrayLike | None = None,
    pos_label: Any = None,
    labels: ArrayLike | None = None,
) -> dict[str, NDArray[Any]]:
    """Tabulate counts and rates of every group.

    fairlearn's ``MetricFrame`` gives the same for two classes (and any metric you hand it).

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_pred : array-like of shape (n_samples,)
        Predicted labels.
    sensitive_features : array-like of shape (n_samples,) or (n_samples, n_columns)
        Groups; several columns mean their intersections. Rows without a group are left out with a
        warning.
    sample_weight : array-like of shape (n_samples,), optional
        Non-negative weights; every row counts 1 by default.
    pos_label : label, optional
        The positive class; with more than two classes, all others are folded into one.
    labels : array-like, optional
        All classes, where `y_true` and `y_pred` may lack some. By default those that occur.

    Returns
    -------
    dict of str to ndarray
        ``group`` (G,) labels; ``count`` (G,) rows; ``weight`` (G,) sums of weights; ``accuracy``
        (G,); ``selection_rate``, ``true_positive_rate``, ``false_positive_rate``: (G,) for the
        positive class when there are two classes, so that ``pandas.DataFrame(group_metrics(...))``
        is the table; with more classes they have shape (G, K), one class against the rest per
        column, and ``classes`` (K,) names the columns. A rate without rows to compute it from is
        NaN.

    Raises
    ------
    ValueError
        For lengths that differ, missing labels, labels of mixed types, negative weights or an
        absent `pos_label`.

    Examples
    --------
    >>> from fairsteer.metrics import group_metrics
    >>> table = group_metrics([0, 1, 0, 1], [0, 1, 1, 1], sensitive_features=["a", "a", "b", "b"])
    >>> table["selection_rate"].tolist()
    [0.5, 1.0]
    """
    counts = _count(y_true, y_pred, sensitive_features, sample_weight, pos_label, labels)
    weights = counts.weights
    total = weights.sum(axis=(1, 2))
    hits = np.diagonal(weights, axis1=1, axis2=2)
    of_class, predicted = weights.sum(axis=2), weights.sum(axis=1)
    rates = {
        "selection_rate": _ratio(predicted, total[:, None]),
        "true_positive_rate": _ratio(hits, of_class),
        "false_positive_rate": _ratio(predicted - hits, total[:, None] - of_class),
    }
    if counts.binary:
        rates = {name: rate[:, -1] for name, rate in rates.items()}
    table: dict[str, NDArray[Any]] = {
        "group": counts.groups,
        "count": counts.rows,
        "weight": total,
        "accuracy": _ratio(hits.sum(axis=1), total),
        **rates,
    }
    if not counts.binary:
        table["classes"] = counts.classes
    return table


def gaps(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Any,
    pos_label: Any = None,
    min_rows: int = 0,
) -> dict[str, Gap]:
    """All three differences at once, each with the size it would have by chance.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_pred : array-like of shape (n_samples,)
        Predicted labels.
    sensitive_features : array-like of shape (n_samples,) or (n_samples, n_columns)
        Groups.
    pos_label : label, optional
        The positive class.
    min_rows : int, default=0
        A rate that a group has fewer rows to compute from takes no part in its comparison.

    Returns
    -------
    dict of str to Gap
        Keys ``demographic_parity``, ``equal_opportunity``, ``equalized_odds``.
    """
    counts = _count(y_true, y_pred, sensitive_features, None, pos_label)
    return {
        "demographic_parity": _demographic_parity(counts, min_rows),
        "equal_opportunity": _equal_opportunity(counts, min_rows),
        "equalized_odds": _equalized_odds(counts, min_rows),
    }


def _demographic_parity(counts: _Counts, min_rows: int = 0) -> Gap:
    total = counts.weights.sum(axis=(1, 2))
    out_of = np.broadcast_to(total[:, None], counts.weights.shape[:2])
    return _largest_gap(counts.weights.sum(axis=1), out_of, min_rows)


def _equal_opportunity(counts: _Counts, min_rows: int = 0) -> Gap:
    return _largest_gap(*_recognised(counts, all_classes=not counts.binary), min_rows)


def _recognised(counts: _Counts, *, all_classes: bool) -> tuple[FloatArray, FloatArray]:
    """Weight of the rows of each class that are recognised, and of all its rows: (G, K), or the last class alone."""
    first = 0 if all_classes else -1
    hits, of_class = np.diagonal(counts.weights, axis1=1, axis2=2), counts.weights.sum(axis=2)
    return hits[:, first:], of_class[:, first:]


def _equalized_odds(counts: _Counts, min_rows: int = 0) -> Gap:
    n_groups = len(counts.groups)
    of_class = np.broadcast_to(counts.weights.sum(axis=2, keepdims=True), counts.weights.shape)
    return _largest_gap(counts.weights.reshape(n_groups, -1), of_class.reshape(n_groups, -1), min_rows)


def _largest_gap(hits: FloatArray, out_of: FloatArray, min_rows: int) -> Gap:
    """Largest gap over the columns of two (G, M) arrays: the weight of events, and of rows they could happen to."""
    if len(hits) < 2:
        return Gap(0.0, 0.0)
    counted = (out_of > 0) & (out_of >= min_rows)
    rates = np.where(counted, _ratio(hits, out_of), np.nan)
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


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Quotient of two arrays of one shape after broadcasting; NaN where there is nothing to divide by."""
    quotient = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=quotient, where=np.broadcast_to(denominator, quotient.shape) > 0)
    return quotient


def _count(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    sensitive_features: Any,
    sample_weight: ArrayLike | None,
    pos_label: Any,
    labels: ArrayLike | None = None,
) -> _Counts:
    """Validate the arguments and add up the confusion weights of every group."""
    true, pred = _labels(y_true, "y_true"), _labels(y_pred, "y_pred")
    if len(true) != len(pred):
        raise ValueError(f"y_true has {len(true)} rows and y_pred has {len(pred)}; they must be the same rows.")
    weight = _weights(sample_weight, len(true))
    encoder = GroupEncoder().fit(sensitive_features)
    group_codes = encoder.encode(sensitive_features)
    if len(group_codes) != len(true):
        raise ValueError(f"sensitive_features has {len(group_codes)} rows and y_true has {len(true)}.")
    more = true[:0] if labels is None else _labels(labels, "labels")
    classes, true_codes, pred_codes = _encode_classes(true, pred, more, pos_label)
    known = group_codes >= 0
    if not known.all():
        warn_caller(f"{int((~known).sum())} of {len(known)} rows have no group and are left out of the metric.")
    n_groups, n_classes = len(encoder.groups_), len(classes)
    cell = (group_codes * n_classes + true_codes) * n_classes + pred_codes
    weights = np.bincount(cell[known], weights=weight[known], minlength=n_groups * n_classes**2)
    rows = np.bincount(group_codes[known], minlength=n_groups)
    return _Counts(
        weights.astype(np.float64).reshape(n_groups, n_classes, n_classes),
        rows,
        encoder.groups_,
        classes,
        binary=n_classes <= 2,
    )


def _labels(y: ArrayLike, name: str) -> NDArray[Any]:
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ValueError(f"{name} must hold one label per row, not an array of shape {labels.shape}.")
    if labels.size == 0:
        raise ValueError(f"{name} is empty; at least one row is needed.")
    n_missing = _count_missing(labels)
    if n_missing:
        raise ValueError(f"{name} has {n_missing} missing labels; leave those rows out first.")
    return labels


def _count_missing(labels: NDArray[Any]) -> int:
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


def _weights(sample_weight: ArrayLike | None, n_rows: int) -> FloatArray:
    if sample_weight is None:
        return np.ones(n_rows)
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.shape != (n_rows,):
        raise ValueError(f"sample_weight has shape {weight.shape}; expected ({n_rows},), one weight per row.")
    bad = ~np.isfinite(weight) | (weight < 0)
    if bad.any():
        raise ValueError(f"sample_weight has {int(bad.sum())} negative or non-finite entries; weights must be >= 0.")
    return weight


def _encode_classes(
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
        classes, codes = _against_rest(classes, codes, pos_label)
    return classes, codes[: len(true)], codes[len(true) : 2 * len(true)]


def _against_rest(
    classes: NDArray[Any], codes: NDArray[np.intp], pos_label: Any
) -> tuple[NDArray[Any], NDArray[np.intp]]:
    position = [i for i, label in enumerate(classes.tolist()) if label == pos_label]
    if not position:
        raise ValueError(
            f"pos_label={pos_label!r} is neither in y_true nor in y_pred; the labels are {classes.tolist()}."
        )
    return np.array([False, True]), (codes == position[0]).astype(np.intp)
