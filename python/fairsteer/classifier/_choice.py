"""Which candidate is taken: accuracy and gaps of out-of-fold predictions, with their standard errors, and the rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, norm

from fairsteer._utils.types import Codes, Doubles
from fairsteer._utils.weights import rows_behind
from fairsteer.metrics._rates import CRITERIA, safe_ratio

Constraint = Literal["equal_opportunity", "demographic_parity", "ideal"]

#: Criterion whose gap each constraint is about.
CRITERION_OF: dict[Constraint, str] = {
    "equal_opportunity": "equal_opportunity",
    "demographic_parity": "demographic_parity",
    "ideal": "equalized_odds",
}

#: Probability that chance alone takes a gap beyond one standard error.
CHANCE = float(2 * norm.sf(1))


class Gap(NamedTuple):
    """The largest difference of a rate between two groups."""

    value: float
    """NaN where no two groups have rows."""
    std_err: float
    p_value: float
    """How probable differences as large are if groups have the same rates; 1 where nothing can be compared."""


class HeldOutRows(NamedTuple):
    """Rows with out-of-fold predictions."""

    y_codes: Codes
    group_codes: Codes
    weight: Doubles
    n_classes: int
    n_groups: int

    def accuracy(self, predicted: Codes) -> tuple[float, float]:
        """Share of rows whose class is predicted, and its standard error."""
        return self._mean((predicted == self.y_codes).astype(np.float64))

    def loss(self, best: Codes, predicted: Codes) -> tuple[float, float]:
        """Accuracy of the best less that of others on the same rows, and the standard error of this difference."""
        return self._mean((best == self.y_codes) - (predicted == self.y_codes).astype(np.float64))

    def _mean(self, values: Doubles) -> tuple[float, float]:
        total = self.weight.sum()
        mean = float(self.weight @ values / total)
        variance = float(self.weight @ (values - mean) ** 2 / total)
        n = float(rows_behind(total, np.square(self.weight).sum()))
        return mean, float(np.sqrt(variance / n))

    def gap(self, predicted: Codes, criterion: str, compared: list[int] | None = None) -> Gap:
        """Largest gap of a criterion.

        Parameters
        ----------
        predicted : ndarray of shape (n_rows,)
            Classes.
        criterion : str
            Name in `CRITERIA`.
        compared : list of int, default=None
            Classes whose recall counts, for equal opportunity; None: the second of two, else all.
        """
        G, K = self.n_groups, self.n_classes
        cell = (self.group_codes * K + self.y_codes) * K + predicted
        sums, squares = (
            np.bincount(cell, w, G * K * K).reshape(G, K, K).astype(np.float64) for w in (self.weight, self.weight**2)
        )
        every = compared is not None
        events, of_rows = CRITERIA[criterion].events_and_rows(sums, all_classes=every)
        behind = rows_behind(of_rows, CRITERIA[criterion].events_and_rows(squares, all_classes=every)[1])
        if compared is not None:
            events, of_rows, behind = (x[:, compared] for x in (events, of_rows, behind))
        return largest_gap(safe_ratio(events, of_rows), behind)


def largest_gap(rates: Doubles, rows: Doubles) -> Gap:
    """Largest gap between groups, from rates and the rows behind them, (n_groups, n_rates); rates of no row are NaN.

    Each rate has Pearson's chi-squared test of equal rates; of two groups it is the difference over its standard error
    under equal rates, squared. The smallest of the p-values is corrected for their number (Šidák).
    """
    if len(rates) < 2:
        return Gap(0.0, 0.0, 1.0)
    rows = np.where(np.isfinite(rates), rows, 0.0)
    comparable = (rows > 0).sum(axis=0) >= 2
    if not comparable.any():
        return Gap(float("nan"), float("nan"), 1.0)
    rates, rows = rates[:, comparable], rows[:, comparable]
    spread = np.nanmax(rates, axis=0) - np.nanmin(rates, axis=0)
    worst = int(spread.argmax())
    pair = [int(np.nanargmax(rates[:, worst])), int(np.nanargmin(rates[:, worst]))]
    own = rates[pair, worst]
    std_err = np.sqrt((own * (1 - own) / rows[pair, worst]).sum())

    filled = np.nan_to_num(rates)
    pooled = (filled * rows).sum(axis=0) / rows.sum(axis=0)
    variance = np.maximum(pooled * (1 - pooled), 0.0)
    excess = (rows * (filled - pooled) ** 2).sum(axis=0)
    statistic = np.divide(excess, variance, out=np.zeros_like(excess), where=variance > 0)
    smallest = chi2.sf(statistic, (rows > 0).sum(axis=0) - 1).min()
    p_value = -np.expm1(rates.shape[1] * np.log1p(-min(float(smallest), 1 - 1e-16)))
    return Gap(float(spread[worst]), float(std_err), float(p_value))


@dataclass(frozen=True)
class Choice:
    """The candidate that is taken, and why."""

    index: int
    most_accurate: int
    within: npt.NDArray[np.bool_]
    """Candidates whose gap allows them to be taken, (n_candidates,)."""
    loss: Doubles
    """Accuracy lost against the most accurate of these, (n_candidates,); NaN of what could not be fitted."""
    loss_std_err: Doubles


def choose(
    tested: HeldOutRows,
    predicted: Sequence[Codes | None],
    gaps: Sequence[Gap],
    max_gap: float | None,
    chance: float = CHANCE,
) -> Choice:
    """Take the simplest candidate that is about as accurate as the most accurate one whose gap is small enough.

    Parameters
    ----------
    tested : HeldOutRows
        Rows.
    predicted : sequence of (ndarray of shape (n_rows,) or None)
        Classes by every candidate, the simplest first; None of one that could not be fitted.
    gaps : sequence of Gap
        Their gaps.
    max_gap : float or None
        Largest gap that may be; None: any whose p-value is at least `chance`. If no candidate is within it, those
        count as within it that are within a standard error of the smallest gap.
    chance : float
        Smallest p-value of a gap that passes for chance.
    """
    fitted = np.array([classes is not None for classes in predicted])
    value, std_err, p_value = np.array(gaps, dtype=np.float64).T
    unknown = np.isnan(value)
    allowed = p_value >= chance if max_gap is None else value <= max_gap
    within = fitted & (unknown | allowed)
    if not within.any():
        fairest = int(np.where(fitted, value, np.inf).argmin())
        within = fitted & (value <= value[fairest] + std_err[fairest])
    accuracy = [-np.inf if classes is None else tested.accuracy(classes)[0] for classes in predicted]
    best = int(np.where(within, accuracy, -np.inf).argmax())
    of_best = predicted[best]
    assert of_best is not None
    lost = [(np.nan, np.nan) if classes is None else tested.loss(of_best, classes) for classes in predicted]
    loss, loss_std_err = np.array(lost).T
    with np.errstate(invalid="ignore"):
        about_as_accurate = within & (loss <= loss_std_err)
    about_as_accurate[best] = True
    return Choice(int(about_as_accurate.argmax()), best, within, loss, loss_std_err)
