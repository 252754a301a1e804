"""Scores of a classifier: asked for, checked, and equal where they differ by rounding only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fairsteer._utils.estimators import asked_method
from fairsteer._utils.input import brief, num_rows
from fairsteer._utils.types import Codes, Doubles, Floats

#: Scores that differ by so many units in the last place are one: a row's score changes by a few with its place in the
#: batch, for matrix products are summed in another order at the edges.
_UNITS = 64


# With larger scores distances between them, and their sums over groups, would overflow.
_LARGEST = 1e150


# Probabilities lie in [0, 1] and sum to 1 but for this much, or for the rounding of half precision: they may have been
# computed in less precision than they come in.
_SLACK = 1e-3


_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Scores:
    """What an alignment maps, and how far it is known.

    Of two classes one number a row, larger for the second: the log-odds, or the decision function. Of more classes the
    probabilities.
    """

    values: Doubles
    """(n,) or (n, n_classes)."""
    low: Doubles
    """The bounds between which values are known; scores of two classes that lie within them are one."""
    high: Doubles
    epsilon: float = _EPSILON
    """Spacing of numbers at 1 in the type that the classifier answers in."""

    @classmethod
    def of(cls, values: Doubles, epsilon: float = _EPSILON) -> Scores:
        """Scores that are as exact as their type allows."""
        # Near 0 a sum is as inexact as its terms were, which are of the size of the larger scores, but for outliers.
        magnitude = np.abs(values)
        typical = float(np.quantile(np.unique(magnitude), 0.9)) if values.size else 0.0
        tolerance = _UNITS * epsilon * (magnitude + typical)
        return cls(values, values - tolerance, values + tolerance, epsilon)

    def take(self, rows: npt.NDArray[Any]) -> Scores:
        """Those of some rows, given by mask or positions."""
        return Scores(self.values[rows], self.low[rows], self.high[rows], self.epsilon)

    def classes(self) -> Codes:
        """Class of every row without an alignment, (n,): the more probable one."""
        codes: Codes = (self.values > 0).astype(np.intp) if self.values.ndim == 1 else self.values.argmax(axis=1)
        return codes

    @classmethod
    def joined(cls, n: int, parts: Sequence[tuple[Codes, Scores]]) -> Scores:
        """Scores of n rows from those of some of them; NaN for the others."""
        epsilon = max((part.epsilon for _, part in parts), default=_EPSILON)
        shape = (n, *parts[0][1].values.shape[1:]) if parts else (n,)
        values, low, high = np.full((3, *shape), np.nan)
        for rows, part in parts:
            values[rows], low[rows], high[rows] = part.values, part.low, part.high
        return cls(values, low, high, epsilon)


def class_scores(
    estimator: Any, X: Any, classes: npt.NDArray[Any], params: Mapping[str, Any], rows: Codes | None = None
) -> Scores:
    """Ask a fitted classifier for its scores, and check them.

    A row of zeros from ``predict_proba``, which scikit-learn's one-vs-rest gives where every binary classifier says no,
    says nothing: it counts as equal probabilities of all classes.

    Parameters
    ----------
    estimator : classifier
        Fitted.
    X : array-like or dataframe of shape (n_samples, n_features)
        Rows.
    classes : ndarray of shape (n_classes,)
        Its classes.
    params : mapping
        Keywords for the method that is asked.
    rows : ndarray of shape (n_samples,), default=None
        Numbers of the rows for messages; None: their positions.

    Returns
    -------
    Scores
        Finite.

    Raises
    ------
    ValueError
        If the answer has another shape, is not finite, or is no probability; if there are more than two classes and no
        ``predict_proba``.
    """
    asked = asked_method(estimator)
    return as_scores(getattr(estimator, asked)(X, **params), asked, num_rows(X), classes, estimator, rows)


def given_scores(scores: Any, classes: npt.NDArray[Any], response_method: str) -> Scores:
    """Check scores that were computed elsewhere: as `class_scores` gives them, or of two classes the log-odds."""
    array = np.asarray(scores)
    if len(classes) == 2 and array.ndim == 1:
        response_method = "decision_function"
    return as_scores(scores, response_method, len(array) if array.ndim else 0, classes, None)


def as_scores(
    answer: Any, asked: str, n: int, classes: npt.NDArray[Any], estimator: Any, rows: Codes | None = None
) -> Scores:
    """Check what a classifier answered for n rows to the method `asked`, and make scores of it."""
    if asked == "decision_function" and len(classes) > 2:
        msg = (
            f"{brief(estimator)} has no predict_proba, which more than two classes need ({len(classes)} here). Wrap it "
            "in sklearn.calibration.CalibratedClassifierCV."
        )
        raise ValueError(msg)

    def who() -> str:  # to represent an estimator takes longer than to check its answer
        return f"{asked} of {'the classifier' if estimator is None else brief(estimator)}"

    answer = _floats(answer, who)
    shape = (n,) if asked == "decision_function" else (n, len(classes))
    if answer.shape != shape and not (answer.shape == (n, 1) and asked == "decision_function"):
        msg = f"{who()} gave an array of shape {answer.shape} for {n} rows of {len(classes)} classes, not {shape}."
        raise ValueError(msg)
    bad = ~np.isfinite(answer)
    if bad.any():
        raise ValueError(_complaint(who, answer, bad, "not finite", classes, rows))
    if asked == "decision_function":
        values = answer.astype(np.float64).reshape(n)
        bad = np.abs(values) > _LARGEST
        if bad.any():
            raise ValueError(_complaint(who, values, bad, f"larger than {_LARGEST:g}", classes, rows))
        return Scores.of(values, float(np.finfo(answer.dtype).eps))
    return _of_probabilities(answer, who, classes, rows)


def _of_probabilities(answer: Floats, who: Callable[[], str], classes: npt.NDArray[Any], rows: Codes | None) -> Scores:
    dtype, proba = answer.dtype, answer.astype(np.float64)
    epsilon = float(np.finfo(dtype).eps)
    slack = max(_SLACK, 0.5 * np.sqrt(epsilon))
    bad = (proba < -slack) | (proba > 1 + slack)
    if bad.any():
        raise ValueError(_complaint(who, proba, bad, "no probabilities, in [0, 1]", classes, rows))
    proba = np.maximum(proba, 0)
    total = proba.sum(axis=1)
    silent = total == 0
    bad = ~silent & (np.abs(total - 1) > slack)
    if bad.any():
        raise ValueError(_complaint(who, total, bad, "sums of probabilities (each must be 1, or 0)", classes, rows))
    proba[silent] = 1 / proba.shape[1]
    if proba.shape[1] != 2:
        total[silent] = 1
        return Scores.of(proba / total[:, None], epsilon)
    smallest = float(np.finfo(dtype).tiny)
    log_odds = np.subtract(*np.log(np.maximum(proba, smallest)).T[::-1])
    tolerance = _UNITS * epsilon * (1 + np.abs(log_odds))
    # Many classifiers compute one of the two as 1 less the other, in steps of half an epsilon: the smaller one is then
    # known as well as the larger one only, and its logarithm far less.
    least = proba.min(axis=1)
    subtracted = np.rint(least / (epsilon / 2)) * (epsilon / 2) == least
    unknown = np.where(subtracted, _UNITS * epsilon, 0.0)
    relative = unknown / np.maximum(least, smallest)
    inwards = tolerance + np.log1p(relative)
    outwards = tolerance - np.log1p(-np.minimum(relative, 0.5))
    outwards[relative > 0.5] = _LARGEST
    return Scores(
        log_odds,
        log_odds - np.where(log_odds > 0, inwards, outwards),
        log_odds + np.where(log_odds > 0, outwards, inwards),
        epsilon,
    )


def _floats(answer: Any, who: Callable[[], str]) -> Floats:
    if isinstance(answer, (list, tuple)) and len(answer) and np.ndim(answer[0]) == 2:
        msg = f"{who()} gave {len(answer)} arrays, as for several outputs; an alignment has one class a row."
        raise ValueError(msg)
    array = np.asarray(answer)
    if array.dtype.kind == "f":
        return array
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        msg = f"{who()} gave an array of type {array.dtype}, not numbers."
        raise ValueError(msg) from error


def _complaint(
    who: Callable[[], str],
    values: Floats,
    bad: npt.NDArray[np.bool_],
    what: str,
    classes: npt.NDArray[Any],
    rows: Codes | None,
) -> str:
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    row = first[0] if rows is None else int(rows[first[0]])
    column = f", class {classes.tolist()[first[1]]!r}" if len(first) > 1 and len(classes) == bad.shape[1] else ""
    n_rows = int(bad.reshape(len(bad), -1).any(axis=1).sum())
    return (
        f"{who()} gave scores that are {what}: {int(bad.sum())} in {n_rows} of {len(bad)} rows, the first "
        f"{values[first]:g} in row {row}{column}. Mend the classifier, or leave those rows out."
    )


# ---- scores that are one


class Ties(NamedTuple):
    """Intervals of scores that are one, in ascending order."""

    values: Doubles
    """The score that stands for all in the interval."""
    low: Doubles
    high: Doubles

    @classmethod
    def of(cls, scores: Scores) -> Ties:
        """Find scores that occur more than once, but for rounding; the one nearest 0 stands for them."""
        order = np.argsort(scores.values, kind="stable")
        values, low, high = (part[order] for part in (scores.values, scores.low, scores.high))
        first = np.flatnonzero(_starts(low, high))
        size = np.diff(np.append(first, len(values)))
        first, size = first[size > 1], size[size > 1]
        last = first + size - 1
        ends = np.stack([values[first], values[last]])
        nearest = np.clip(0.0, *ends)
        low, high = low[first], high[last]
        # Neighbours share what both reach.
        middle = (values[last[:-1]] + values[first[1:]]) / 2
        overlap = high[:-1] >= low[1:]
        high[:-1][overlap], low[1:][overlap] = middle[overlap], np.nextafter(middle[overlap], np.inf)
        return cls(nearest, low, high)

    def settle(self, scores: Doubles) -> Doubles:
        """Replace scores in the intervals by what stands for them."""
        if not len(self.values):
            return scores
        at = np.maximum(np.searchsorted(self.low, scores, side="right") - 1, 0)
        return np.where((scores >= self.low[at]) & (scores <= self.high[at]), self.values[at], scores)


def _starts(low: Doubles, high: Doubles) -> npt.NDArray[np.bool_]:
    """Which of sorted scores begin a new tie: those beyond the reach of the first of the tie before."""
    starts = np.ones(len(low), dtype=bool)
    near = np.flatnonzero(low[1:] <= high[:-1]) + 1
    # In runs of near neighbours the first one decides, so that a dense sample is not one long tie.
    reach, previous = -np.inf, -1
    for i in near.tolist():
        if i != previous + 1 or previous < 0:
            reach = high[i - 1]
        if low[i] <= reach:
            starts[i] = False
        else:
            reach = high[i]
        previous = i
    return starts


def settled(scores: Doubles) -> Doubles:
    """Scores of which those that differ by rounding only are made equal."""
    return Ties.of(Scores.of(scores)).settle(scores)


def without_rounding(proba: Doubles, epsilon: float = _EPSILON) -> Doubles:
    """Probabilities of which the largest of a row are equal where they differ by rounding only.

    The class that is predicted is the first of the largest ones, whatever the last digits say.
    """
    top = proba.max(axis=1, keepdims=True)
    tied = proba >= top - _UNITS * epsilon * top
    several = np.flatnonzero((tied & (proba < top)).any(axis=1))
    if several.size:
        proba = proba.copy()
        some, where = proba[several], tied[several]
        mean = np.where(where, some, 0).sum(axis=1, keepdims=True) / where.sum(axis=1, keepdims=True)
        proba[several] = np.where(where, mean, some)
    return proba
