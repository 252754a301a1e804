"""Gaps between groups as measured on rows, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike
from scipy.stats import beta

from fairsteer._utils.types import Codes, Doubles
from fairsteer.metrics._rates import CRITERIA, Predictions, effective_rows, read_predictions, safe_ratio

Flags = npt.NDArray[np.bool_]


IntervalMethod = Literal["exact", "bootstrap"]


GAPS = tuple(CRITERIA)


RandomState = int | np.random.RandomState | np.random.Generator | None


# The shares of each prediction among the rows of a class: what is reported of a class and of a subgroup.
_OF_ROWS = CRITERIA["equalized_odds"]


# Numbers that a batch of resamples may take.
_BATCH = 4_000_000


class Measured(NamedTuple):
    """What was measured on rows, and the interval around it.

    Attributes
    ----------
    value : float or ndarray
        Measured; NaN where there is nothing to measure.
    lower, upper : float or ndarray
        Ends of the confidence interval.
    """

    value: Any
    lower: Any
    upper: Any

    def __repr__(self) -> str:
        if np.ndim(self.value):
            return f"<Measured of shape {np.shape(self.value)}>"
        return f"Measured(value={self.value:.6g}, lower={self.lower:.6g}, upper={self.upper:.6g})"

    def verdict(self, bound: float) -> str:
        """Say of one number whether a bound is consistent with it.

        Parameters
        ----------
        bound : float
            What is promised: no more than this.

        Returns
        -------
        str
            "contradicted" if the interval lies above the bound, else "consistent"; "" where nothing is known.
        """
        return "" if np.isnan(self.lower) else "contradicted" if self.lower > bound else "consistent"


@dataclass(frozen=True)
class MeasuredGaps:
    """Prediction rates of every subgroup and the gaps between them, measured on rows.

    The counterpart of `Certificate`, which is a statement about fitted Gaussians. Returned by `measured_gaps`.

    Attributes
    ----------
    classes : ndarray of shape (n_classes,)
        Class labels; the positive one last if there are two.
    groups : ndarray of shape (n_groups,)
        Group labels.
    rows : ndarray of shape (n_classes, n_groups)
        Rows of every subgroup; with weights, their effective number (Kish).
    rates : Measured of ndarrays of shape (n_classes, n_groups, n_classes)
        Share of the rows of a class and group for which each class is predicted, in [0, 1], each with its own
        Clopper-Pearson interval.
    by_subgroup : Measured of ndarrays of shape (n_classes, n_groups)
        Largest difference in a rate between the subgroup and the same class of any other group, in [0, 1]. The
        intervals of a class hold for all its groups at once.
    by_class : Measured of ndarrays of shape (n_classes,)
        The largest of these over the groups: what `Certificate.equal_opportunity` bounds.
    gaps : mapping of str to Measured of floats
        The differences of :mod:`fairsteer.metrics`, in [0, 1], by name: ``demographic_parity``, ``equal_opportunity``,
        ``equalized_odds``. Each is an attribute as well.
    accuracy : Measured of floats
        Share of rows predicted right, in [0, 1].
    confidence_level : float
        Probability with which an interval holds what it is for.
    interval : str
        How the intervals of the gaps were found, "exact" or "bootstrap".
    """

    classes: npt.NDArray[Any]
    groups: npt.NDArray[Any]
    rows: Doubles
    rates: Measured
    by_subgroup: Measured
    by_class: Measured
    gaps: Mapping[str, Measured]
    accuracy: Measured
    confidence_level: float
    interval: str

    @property
    def measures(self) -> Mapping[str, Measured]:
        """Accuracy and the gaps, by name."""
        return {"accuracy": self.accuracy, **self.gaps}

    def __getattr__(self, name: str) -> Measured:
        if name in CRITERIA:
            return self.gaps[name]
        msg = f"{type(self).__name__!r} object has no attribute {name!r}"
        raise AttributeError(msg)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.gaps]

    def __repr__(self) -> str:
        gaps = ", ".join(f"{name}={gap.value:.3f}" for name, gap in self.gaps.items())
        return (
            f"<{type(self).__name__} of {len(self.classes)} classes and {len(self.groups)} groups: "
            f"accuracy={self.accuracy.value:.3f}, {gaps}>"
        )


def measured_gaps(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Any,
    sample_weight: ArrayLike | None = None,
    pos_label: Any = None,
    labels: ArrayLike | None = None,
    confidence_level: float = 0.95,
    interval: IntervalMethod = "exact",
    min_rows: int = 0,
    n_resamples: int = 1000,
    random_state: RandomState = 0,
) -> MeasuredGaps:
    """Measure the gaps of predictions, with intervals.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_pred : array-like of shape (n_samples,)
        Labels predicted for rows that the classifier was not trained on.
    sensitive_features : array-like of shape (n_samples,) or (n_samples, n_columns)
        Groups; several columns mean their intersections. Rows without a group are left out with a warning.
    sample_weight : array-like of shape (n_samples,), optional
        Non-negative weights; every row counts 1 by default.
    pos_label : label, optional
        Fold all other labels into one and compare only this class against the rest.
    labels : array-like, optional
        All classes, where `y_true` and `y_pred` may lack some. By default those that occur.
    confidence_level : float in (0, 1), default=0.95
        Probability with which each interval holds the rate or gap of the distribution that the rows come from.
    interval : {"exact", "bootstrap"}, default="exact"
        How the intervals of the gaps are found, see Notes.
    min_rows : int, default=0
        A rate that a group has fewer rows to compute from takes no part in its comparison.
    n_resamples : int, default=1000
        Resamples of the bootstrap, at least 1.
    random_state : int, RandomState, Generator or None, default=0
        Seed of the bootstrap; equal integers give equal intervals.

    Returns
    -------
    MeasuredGaps
        Rates, gaps and their intervals.

    Raises
    ------
    ValueError
        For lengths that differ, missing labels, labels of mixed types, negative weights, an absent `pos_label`, or
        parameters out of range; for predictions that are continuous or spelt otherwise than the truth, and where one
        label is all there is, unless `labels` names the classes.

    Notes
    -----
    A gap is the largest of many differences of rates, so its interval has to hold for all of them at once.

    *Exact*: every rate has a Clopper-Pearson interval [1]_, at a level divided by the number of rates compared
    (Bonferroni); the gap lies between the largest difference that they prove and the largest that they allow. It is
    valid for any number of rows and any distribution, and wider than need be. With weights the number of rows is the
    effective one (Korn and Graubard [2]_), and the interval is approximate.

    *Bootstrap*: the interval is the gap plus and minus ``t``, where ``t`` is the quantile, over resamples of each
    group's rows, of the largest change of any difference. It is narrower, holds for many rows, and can say little of
    a rate that is 0 or 1 on the rows.

    References
    ----------
    .. [1] Clopper, Pearson. "The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial".
       Biometrika 26 (1934).
    .. [2] Korn, Graubard. "Confidence Intervals for Proportions with Small Expected Number of Positive Counts
       Estimated from Survey Data". Survey Methodology 24 (1998).

    Examples
    --------
    >>> import numpy as np
    >>> from fairsteer.report import measured_gaps
    >>> y_pred = np.repeat([1, 0, 1, 0], [80, 20, 60, 40])
    >>> group = np.repeat(["a", "b"], 100)
    >>> gap = measured_gaps(np.ones(200, int), y_pred, sensitive_features=group).equal_opportunity
    >>> print(f"{gap.value:.2f}, between {gap.lower:.2f} and {gap.upper:.2f}")
    0.20, between 0.00 and 0.40
    """
    if interval not in ("exact", "bootstrap"):
        msg = f"interval must be 'exact' or 'bootstrap', not {interval!r}."
        raise ValueError(msg)
    read = read_predictions(y_true, y_pred, sensitive_features, sample_weight, pos_label, labels)
    rows = PredictedRows(read.true, read.pred[None], read.group, read.weight, read.classes, read.groups)
    return rows.measure(0, confidence_level, interval, min_rows, n_resamples, random_state)


class PredictedRows(NamedTuple):
    """Rows with their predictions by one or several classifiers, as codes."""

    true: Codes
    pred: Codes
    """Predictions of every classifier, (n_classifiers, n_rows)."""
    group: Codes
    weight: Doubles
    classes: npt.NDArray[Any]
    groups: npt.NDArray[Any]

    def of(self, classifier: int) -> Predictions:
        """Rows with the predictions of one classifier."""
        return Predictions(self.true, self.pred[classifier], self.group, self.weight, self.classes, self.groups)

    def sizes(self) -> Doubles:
        """Effective number of rows of every group and class: (n_groups, n_classes)."""
        tally = self.of(0).tally()
        return effective_rows(tally.weights.sum(axis=-1), tally.squares.sum(axis=-1))

    def group_sizes(self) -> Doubles:
        """Effective number of rows of every group: (n_groups,)."""
        tally = self.of(0).tally()
        return effective_rows(tally.weights.sum(axis=(1, 2)), tally.squares.sum(axis=(1, 2)))

    def _rows_compared(self, classifier: int) -> dict[Any, Doubles]:
        """Rows behind the rates of `_compared`."""
        tally = self.of(classifier).tally()
        rows = {name: tally.sizes(criterion) for name, criterion in CRITERIA.items()}
        return rows | _by_class(tally.sizes(_OF_ROWS), len(self.classes))

    def measure(
        self,
        classifier: int,
        confidence_level: float,
        interval: IntervalMethod,
        min_rows: int,
        n_resamples: int,
        random_state: RandomState,
    ) -> MeasuredGaps:
        """Measure the rates and gaps of one classifier."""
        if not 0 < confidence_level < 1:
            msg = f"confidence_level must be in (0, 1), got {confidence_level!r}."
            raise ValueError(msg)
        if n_resamples < 1:
            msg = f"n_resamples must be at least 1, got {n_resamples!r}."
            raise ValueError(msg)
        confusion, sizes = self.of(classifier).tally().weights, self.sizes()
        K = sizes.shape[1]
        rows = self._rows_compared(classifier)
        counted = {name: n >= min_rows for name, n in rows.items()}
        compared = _compared(confusion, counted)
        if interval == "exact":
            spreads = {name: _exact_spread(rates, rows[name], confidence_level) for name, rates in compared.items()}
        else:
            radii = _Resamples(self, classifier).radii(compared, counted, n_resamples, random_state)
            spreads = {}
            for name, rates in compared.items():
                value = _spread(rates, rates, rates).value
                radius = np.quantile(radii[name], confidence_level)
                spreads[name] = Measured(value, np.maximum(value - radius, 0), np.minimum(value + radius, 1))
        of_classes = [spreads[k] for k in range(K)]
        total = self.weight.sum()
        right = np.trace(confusion, axis1=1, axis2=2).sum()
        rows_in_all = total**2 / (self.weight**2).sum() if total > 0 else 0.0
        rates = safe_ratio(confusion, confusion.sum(axis=-1, keepdims=True)).transpose(1, 0, 2)
        accuracy = np.array([right / total if total > 0 else np.nan])
        return MeasuredGaps(
            classes=self.classes,
            groups=self.groups,
            rows=sizes.T,
            rates=Measured(rates, *clopper_pearson(rates, sizes.T[..., None], 1 - confidence_level)),
            by_subgroup=Measured(*(np.array([part[i] for part in of_classes]) for i in range(3))),
            by_class=Measured(*(np.array([_largest(part[i]) for part in of_classes]) for i in range(3))),
            gaps={name: Measured(*map(_largest, spreads[name])) for name in GAPS},
            accuracy=Measured(
                *(float(x[0]) for x in (accuracy, *clopper_pearson(accuracy, rows_in_all, 1 - confidence_level)))
            ),
            confidence_level=confidence_level,
            interval=interval,
        )

    def changes(
        self, confidence_level: float, min_rows: int, n_resamples: int, random_state: RandomState
    ) -> dict[str, Measured]:
        """Accuracy and gaps of the second classifier minus those of the first, on the same rows.

        The intervals come from a bootstrap that resamples both classifiers' predictions together.
        """
        resamples = _Resamples(self, 0, 1)
        names = ("accuracy", *GAPS)
        counted = [{name: n >= min_rows for name, n in self._rows_compared(c).items()} for c in (0, 1)]
        value = np.array([_statistics(self.of(c).tally().weights, counted[c]) for c in (0, 1)])
        drawn = np.concatenate(
            [
                [_statistics(confusion, counts) for confusion, counts in zip(pair, counted, strict=True)]
                for pair in resamples.draw(n_resamples, random_state)
            ],
            axis=1,
        )
        with np.errstate(invalid="ignore"):
            change, moved = value[1] - value[0], drawn[1] - drawn[0]
            radius = np.quantile(np.nan_to_num(np.abs(moved - change)), confidence_level, axis=0)
        parts = np.stack([change, np.clip(change - radius, -1, 1), np.clip(change + radius, -1, 1)])
        return {name: Measured(*map(float, column)) for name, column in zip(names, parts.T, strict=True)}


class _Resamples:
    """Resamples of each group's rows, drawn from the counts of equal rows."""

    def __init__(self, rows: PredictedRows, *classifiers: int) -> None:
        G, K = len(rows.groups), len(rows.classes)
        self._shape = (G, K, K)
        profile = rows.group * K + rows.true
        for classifier in classifiers:
            profile = profile * K + rows.pred[classifier]
        kinds, inverse = np.unique(profile, return_inverse=True)
        weight = np.bincount(inverse, rows.weight, len(kinds))
        codes = []
        for _ in classifiers:
            kinds, code = np.divmod(kinds, K)
            codes.append(code)
        self._cells = [kinds * K + code for code in reversed(codes)]
        # Rows of a group are drawn as often as it has (effective) rows.
        group = kinds // K
        self._strata = []
        for a, n in enumerate(np.rint(rows.group_sizes()).astype(int)):
            members = np.flatnonzero(group == a)
            total = weight[members].sum()
            if total > 0:
                self._strata.append((members, max(int(n), 1), total, weight[members] / total))

    def draw(self, n_resamples: int, random_state: RandomState) -> Iterator[list[Doubles]]:
        """Confusion weights of every classifier in batches, (n_drawn, n_groups, n_classes, n_classes)."""
        if isinstance(random_state, np.random.RandomState):
            random_state = random_state.randint(2**31)
        rng = np.random.default_rng(random_state)
        n_kinds, length = len(self._cells[0]), int(np.prod(self._shape))
        batch = max(1, _BATCH // max(n_kinds, length))
        for start in range(0, n_resamples, batch):
            size = min(batch, n_resamples - start)
            counts = np.zeros((size, n_kinds))
            for members, n, total, probabilities in self._strata:
                counts[:, members] = rng.multinomial(n, probabilities, size) * (total / n)
            yield [
                np.array([np.bincount(cells, one, length) for one in counts], np.float64).reshape(size, *self._shape)
                for cells in self._cells
            ]

    def radii(
        self, compared: dict[Any, Doubles], counted: dict[Any, Flags], n_resamples: int, random_state: RandomState
    ) -> dict[Any, Doubles]:
        """Largest change of any difference, (n_resamples,) for each comparison."""
        found: dict[Any, list[Doubles]] = {name: [] for name in compared}
        for (confusion,) in self.draw(n_resamples, random_state):
            for name, rates in _compared(confusion, counted).items():
                found[name].append(_widest(rates - compared[name]))
        return {name: np.nan_to_num(np.concatenate(parts)) for name, parts in found.items()}


def _by_class(rates: Doubles, n_classes: int) -> dict[Any, Doubles]:
    """Rates (or their rows) of `_OF_ROWS`, taken apart by the code of the true class."""
    return dict(enumerate(np.moveaxis(rates.reshape(*rates.shape[:-1], n_classes, -1), -2, 0)))


def _compared(confusion: Doubles, counted: dict[Any, Flags]) -> dict[Any, Doubles]:
    """Rates that every gap compares, and those of the rows of each class by its code; NaN takes no part."""
    rates: dict[Any, Doubles] = {name: criterion.rates(confusion) for name, criterion in CRITERIA.items()}
    rates |= _by_class(_OF_ROWS.rates(confusion), confusion.shape[-1])
    return {name: np.where(counted[name], x, np.nan) for name, x in rates.items()}


def _statistics(confusion: Doubles, counted: dict[Any, Flags]) -> Doubles:
    """Accuracy and the gaps, (…, 1 + n_gaps)."""
    accuracy = safe_ratio(np.trace(confusion, axis1=-2, axis2=-1).sum(axis=-1), confusion.sum(axis=(-3, -2, -1)))
    rates = (np.where(counted[name], x.rates(confusion), np.nan) for name, x in CRITERIA.items())
    return np.stack([accuracy, *map(_widest, rates)], axis=-1)


def _widest(rates: Doubles) -> Doubles:
    """Largest difference between two groups in any of the rates (…, n_groups, n_rates); 0 of one group, NaN of none."""
    seen = np.isfinite(rates)
    if rates.shape[-2] < 2:
        return np.zeros(rates.shape[:-2])
    highest, lowest = (np.where(seen, rates, end) for end in (-np.inf, np.inf))
    apart = highest.max(axis=-2) - lowest.min(axis=-2)
    apart = np.where(seen.sum(axis=-2) >= 2, apart, -np.inf).max(axis=-1, initial=-np.inf)
    return np.where(np.isfinite(apart), apart, np.nan)


def _exact_spread(rates: Doubles, rows: Doubles, confidence_level: float) -> Measured:
    rows = np.broadcast_to(rows, rates.shape)
    compared = max(int(np.isfinite(rates).sum()), 1)
    return _spread(*clopper_pearson(rates, rows, (1 - confidence_level) / compared, middle=True))


def _spread(lower: Doubles, rates: Doubles, upper: Doubles) -> Measured:
    """Largest difference between each group and any other over all rates: three arrays of shape (n_groups,).

    From rates (n_groups, n_rates) and bounds on them; NaN rates are not compared.
    """
    if len(rates) < 2:
        return Measured(*np.zeros((3, len(rates))))
    seen = np.isfinite(rates)
    seen &= seen.sum(axis=0) >= 2
    above = [np.where(seen, x, -np.inf) for x in (lower, rates, upper)]
    below = [np.where(seen, x, np.inf) for x in (lower, rates, upper)]
    highest = [_largest_of_others(x) for x in above]
    lowest = [-_largest_of_others(-x) for x in below]
    parts = []
    with np.errstate(invalid="ignore"):
        for mine_low, others_high, others_low, mine_high in (
            (rates, highest[1], lowest[1], rates),  # as measured
            (upper, highest[0], lowest[2], lower),  # proved: the bounds of the two rates apart
            (lower, highest[2], lowest[0], upper),  # allowed: the bounds that are farthest apart
        ):
            apart = np.maximum(mine_high - others_low, others_high - mine_low)
            parts.append(np.max(np.where(seen, apart, -np.inf), axis=1, initial=-np.inf))
    value, least, most = parts
    some = seen.any(axis=1)
    return Measured(
        np.where(some, value, np.nan),
        np.where(some, np.maximum(least, 0), np.nan),
        np.where(some, most, np.nan),
    )


def _largest_of_others(values: Doubles) -> Doubles:
    """For every group the largest value of another one, column by column."""
    order = np.argsort(values, axis=0)
    columns = np.arange(values.shape[1])
    out = np.broadcast_to(values[order[-1], columns], values.shape).copy()
    out[order[-1], columns] = values[order[-2], columns]
    return out


def _largest(values: Doubles) -> float:
    known = values[np.isfinite(values)]
    return float(known.max()) if known.size else float("nan")


def clopper_pearson(rates: Doubles, rows: Any, alpha: float, *, middle: bool = False) -> tuple[Doubles, ...]:
    """Bound binomial rates at level ``1 - alpha``: lower and upper ends, with `middle` the rates between them."""
    hits = rates * rows
    misses = rows - hits
    with np.errstate(invalid="ignore"):
        lower = np.where(hits > 0, beta.ppf(alpha / 2, hits, misses + 1), 0.0)
        upper = np.where(misses > 0, beta.ppf(1 - alpha / 2, hits + 1, misses), 1.0)
    lower, upper = (np.where(np.isfinite(rates), x, np.nan) for x in (lower, upper))
    return (lower, rates, upper) if middle else (lower, upper)
