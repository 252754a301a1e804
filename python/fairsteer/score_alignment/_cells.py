"""Rows and rates that an alignment works with; numbers and integer codes only."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fairsteer._utils.types import Codes, Doubles

Constraint = Literal["equal_opportunity", "demographic_parity"]


Agg = Literal["max", "rms"]


class Cells(NamedTuple):
    """Classes, groups and positive weights of rows that the classifier was not trained on.

    An integer weight equals as many repetitions.
    """

    y_codes: Codes
    group_codes: Codes
    weight: Doubles
    n_classes: int
    n_groups: int
    constraint: Constraint

    @classmethod
    def of_rows(
        cls,
        y_codes: Codes,
        group_codes: Codes,
        weight: Doubles,
        *,
        n_classes: int,
        n_groups: int,
        constraint: Constraint,
    ) -> Cells:
        """Make cells; weights get mean 1, unless they stand for repeated rows, so that their scale does not count."""
        weight = weight * max(1.0, weight.sum() / np.square(weight).sum())
        return cls(y_codes, group_codes, weight, n_classes, n_groups, constraint)

    @property
    def compared(self) -> list[int]:
        """Classes whose rates of prediction the groups are to have in common: of two, the second."""
        return [1] if self.n_classes == 2 else list(range(self.n_classes))

    def counted(self, k: int, a: int) -> npt.NDArray[np.bool_]:
        """Which rows group `a`'s rate of predicting class `k` is taken over."""
        counted: npt.NDArray[np.bool_] = (self.group_codes == a) & self._counts(k)
        return counted

    def _counts(self, k: int) -> npt.NDArray[np.bool_]:
        return np.asarray(self.y_codes == k if self.constraint == "equal_opportunity" else self.y_codes >= 0)

    @property
    def totals(self) -> Doubles:
        """Weight of the counted rows of every compared class and group, (n_compared, n_groups)."""
        return self._sums(self.weight)

    def rates(self, predicted: Codes) -> Doubles:
        """How often every compared class is predicted among its counted rows, (n_compared, n_groups); NaN without."""
        totals = self.totals
        hits = [
            np.bincount(self.group_codes, self.weight * ((predicted == k) & self._counts(k)), self.n_groups)
            for k in self.compared
        ]
        rates: Doubles = np.divide(hits, totals, out=np.full(totals.shape, np.nan), where=totals > 0)
        return rates

    @property
    def effective_rows(self) -> Doubles:
        """How many rows of equal weight those count for (Kish), (n_compared, n_groups)."""
        squares = self._sums(self.weight**2)
        return np.divide(self.totals**2, squares, out=np.zeros_like(squares), where=squares > 0)

    def _sums(self, values: Doubles) -> Doubles:
        if self.constraint == "demographic_parity":
            return np.tile(np.bincount(self.group_codes, values, self.n_groups), (len(self.compared), 1))
        cell = self.y_codes * self.n_groups + self.group_codes
        sums = np.bincount(cell, values, self.n_classes * self.n_groups)
        return np.asarray(sums.reshape(self.n_classes, self.n_groups)[self.compared])

    @property
    def group_shares(self) -> Doubles:
        """Share of each group in the weight, (n_groups,)."""
        total = np.bincount(self.group_codes, self.weight, self.n_groups)
        return np.asarray(total / total.sum())


class Maps(Protocol):
    """What the maps of two classes and those of more offer."""

    @property
    def measured(self) -> Doubles:
        """Gap of each two groups on the rows of the fit, (n_compared, n_groups, n_groups); NaN without rows."""

    @property
    def budget(self) -> float:
        """What the gaps were kept within: more than was asked for where that needs randomised predictions."""

    def proba(self, scores: Doubles, group_codes: Codes) -> Doubles:
        """Probabilities of the classes after alignment, (n, n_classes)."""
