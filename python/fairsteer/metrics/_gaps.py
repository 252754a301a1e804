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

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairsteer.metrics._rates import (
    Gap,
    count_predictions,
    demographic_parity,
    equal_opportunity,
    equalized_odds,
    recognised,
    safe_ratio,
)


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
    counts = count_predictions(y_true, y_pred, sensitive_features, sample_weight, pos_label, labels)
    return demographic_parity(counts).value


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
    counts = count_predictions(y_true, y_pred, sensitive_features, sample_weight, pos_label, labels)
    return equal_opportunity(counts).value


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
    counts = count_predictions(y_true, y_pred, sensitive_features, sample_weight, pos_label, labels)
    return equalized_odds(counts).value


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
    counts = count_predictions(y_true, y_pred, sensitive_features, sample_weight, pos_label, labels)
    if len(counts.groups) < 2:
        return 0.0
    hits, of_class = recognised(counts, all_classes=pos_label is None)
    rates = safe_ratio(hits, of_class)
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
    counts = count_predictions(y_true, y_pred, sensitive_features, sample_weight, pos_label, labels)
    weights = counts.weights
    total = weights.sum(axis=(1, 2))
    hits = np.diagonal(weights, axis1=1, axis2=2)
    of_class, predicted = weights.sum(axis=2), weights.sum(axis=1)
    rates = {
        "selection_rate": safe_ratio(predicted, total[:, None]),
        "true_positive_rate": safe_ratio(hits, of_class),
        "false_positive_rate": safe_ratio(predicted - hits, total[:, None] - of_class),
    }
    if counts.binary:
        rates = {name: rate[:, -1] for name, rate in rates.items()}
    table: dict[str, NDArray[Any]] = {
        "group": counts.groups,
        "count": counts.rows,
        "weight": total,
        "accuracy": safe_ratio(hits.sum(axis=1), total),
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
    counts = count_predictions(y_true, y_pred, sensitive_features, None, pos_label)
    return {
        "demographic_parity": demographic_parity(counts, min_rows),
        "equal_opportunity": equal_opportunity(counts, min_rows),
        "equalized_odds": equalized_odds(counts, min_rows),
    }
