"""The public metrics: differences between groups, and the table behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairsteer.metrics._rates import (
    CRITERIA,
    Criterion,
    Gap,
    Tally,
    largest_gap,
    read_predictions,
    root_mean_square_gap,
    safe_ratio,
)

#: What every metric computes from counts, by the metric's name.
MEASURES: dict[str, Callable[[Tally], float]] = {
    f"{name}_difference": lambda tally, criterion=criterion: largest_gap(criterion, tally).value
    for name, criterion in CRITERIA.items()
} | {"tpr_gap_rms": lambda tally: root_mean_square_gap(CRITERIA["equal_opportunity"], tally)}


class GapMetric(Protocol):
    """A metric that compares groups."""

    __name__: str

    def __call__(
        self,
        y_true: ArrayLike,
        y_pred: ArrayLike,
        *,
        sensitive_features: Any,
        sample_weight: ArrayLike | None = None,
        pos_label: Any = None,
        labels: ArrayLike | None = None,
    ) -> float:
        """Compare groups."""


_PARAMETERS = """
    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_pred : array-like of shape (n_samples,)
        Predicted labels, not probabilities or scores.
    sensitive_features : array-like of shape (n_samples,) or (n_samples, n_columns)
        Groups; several columns mean their intersections. Rows without a group are left out with a
        warning.
    sample_weight : array-like of shape (n_samples,), optional
        Non-negative weights; every row counts 1 by default.
    pos_label : label, optional
        The positive class; all others are folded into one. By default the larger of two labels, and
        every class of more.
    labels : array-like, optional
        All classes, where `y_true` and `y_pred` may lack some. By default those that occur.
"""

_RAISES = """
    Raises
    ------
    ValueError
        For lengths that differ, missing labels, labels of mixed types, negative weights or an
        absent `pos_label`; for predictions that are continuous or spelt otherwise than the truth,
        and where one label is all there is, unless `labels` names the classes.
"""

_DIFFERENCE = """Largest gap between two groups in {question}.

    ``{formula}``. {more}
{parameters}
    Returns
    -------
    float
        Gap in [0, 1]; 0 with a single group, NaN if no two groups can be compared.
{raises}
    Examples
    --------
    >>> from fairsteer.metrics import {name}
    >>> {name}({example})
    {value}
    """


def _difference(criterion: Criterion, more: str, example: str, value: str) -> GapMetric:
    """Metric of one criterion: every public difference is made here."""

    def difference(
        y_true: ArrayLike,
        y_pred: ArrayLike,
        *,
        sensitive_features: Any,
        sample_weight: ArrayLike | None = None,
        pos_label: Any = None,
        labels: ArrayLike | None = None,
    ) -> float:
        tally = read_predictions(y_true, y_pred, sensitive_features, sample_weight, pos_label, labels).tally()
        return largest_gap(criterion, tally).value

    difference.__name__ = difference.__qualname__ = name = f"{criterion.name}_difference"
    difference.__doc__ = _DIFFERENCE.format(
        name=name,
        question=criterion.question,
        formula=criterion.formula,
        more=more,
        example=example,
        value=value,
        parameters=_PARAMETERS,
        raises=_RAISES,
    )
    return difference


demographic_parity_difference = _difference(
    CRITERIA["demographic_parity"],
    "With two classes this is\n    :func:`fairlearn.metrics.demographic_parity_difference`.",
    '[0, 1, 1, 1], [1, 1, 0, 0], sensitive_features=["a", "a", "b", "b"]',
    "1.0",
)


equal_opportunity_difference = _difference(
    CRITERIA["equal_opportunity"],
    """With two
    classes only the positive one counts (the larger label, unless `pos_label` says otherwise),
    which makes it :func:`fairlearn.metrics.equal_opportunity_difference`, except that fairlearn
    gives a group without positive rows a rate of 0 where this function leaves it out.""",
    '[1, 1, 1, 1], [1, 1, 1, 0], sensitive_features=["a", "a", "b", "b"]',
    "0.5",
)


equalized_odds_difference = _difference(
    CRITERIA["equalized_odds"],
    """With two classes this
    is the larger of the true-positive-rate and the false-positive-rate gap,
    :func:`fairlearn.metrics.equalized_odds_difference` with its default ``agg="worst_case"``,
    except that fairlearn gives a group without rows of a class a rate of 0 where this function
    leaves it out.""",
    '[0, 1, 0, 1], [0, 1, 1, 1], sensitive_features=["a", "a", "b", "b"]',
    "1.0",
)


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
        absent `pos_label`; for predictions that are continuous or spelt otherwise than the truth,
        and where one label is all there is, unless `labels` names the classes.

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
    tally = read_predictions(y_true, y_pred, sensitive_features, sample_weight, pos_label, labels).tally()
    return MEASURES["tpr_gap_rms"](tally)


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
        absent `pos_label`; for predictions that are continuous or spelt otherwise than the truth,
        and where one label is all there is, unless `labels` names the classes.

    Examples
    --------
    >>> from fairsteer.metrics import group_metrics
    >>> table = group_metrics([0, 1, 0, 1], [0, 1, 1, 1], sensitive_features=["a", "a", "b", "b"])
    >>> table["selection_rate"].tolist()
    [0.5, 1.0]
    """
    tally = read_predictions(y_true, y_pred, sensitive_features, sample_weight, pos_label, labels).tally()
    weights = tally.weights
    total = weights.sum(axis=(1, 2))
    hits = np.diagonal(weights, axis1=1, axis2=2)
    of_class, predicted = weights.sum(axis=2), weights.sum(axis=1)
    rates = {
        "selection_rate": safe_ratio(predicted, total[:, None]),
        "true_positive_rate": safe_ratio(hits, of_class),
        "false_positive_rate": safe_ratio(predicted - hits, total[:, None] - of_class),
    }
    if tally.binary:
        rates = {name: rate[:, -1] for name, rate in rates.items()}
    table: dict[str, NDArray[Any]] = {
        "group": tally.groups,
        "count": tally.rows,
        "weight": total,
        "accuracy": safe_ratio(hits.sum(axis=1), total),
        **rates,
    }
    if not tally.binary:
        table["classes"] = tally.classes
    return table


def gaps(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Any,
    sample_weight: ArrayLike | None = None,
    pos_label: Any = None,
    labels: ArrayLike | None = None,
    min_rows: int = 0,
) -> dict[str, Gap]:
    """All differences at once, each with the size it would have by chance.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_pred : array-like of shape (n_samples,)
        Predicted labels, not probabilities or scores.
    sensitive_features : array-like of shape (n_samples,) or (n_samples, n_columns)
        Groups; several columns mean their intersections. Rows without a group are left out with a
        warning.
    sample_weight : array-like of shape (n_samples,), optional
        Non-negative weights; every row counts 1 by default.
    pos_label : label, optional
        The positive class; all others are folded into one.
    labels : array-like, optional
        All classes, where `y_true` and `y_pred` may lack some. By default those that occur.
    min_rows : int, default=0
        A rate that a group has fewer rows to compute from takes no part in its comparison; with
        weights their effective number (Kish).

    Returns
    -------
    dict of str to Gap
        Keys ``demographic_parity``, ``equal_opportunity``, ``equalized_odds``.

    Raises
    ------
    ValueError
        As from `equal_opportunity_difference`.

    Examples
    --------
    >>> from fairsteer.metrics import gaps
    >>> gaps([1, 1, 1, 1], [1, 1, 1, 0], sensitive_features=["a", "a", "b", "b"])["equal_opportunity"].value
    0.5
    """
    tally = read_predictions(y_true, y_pred, sensitive_features, sample_weight, pos_label, labels).tally()
    return {name: largest_gap(criterion, tally, min_rows) for name, criterion in CRITERIA.items()}
