"""Maps of a classifier's scores, by group, after which the groups are treated alike; numbers and integer codes only."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit
from sklearn.isotonic import isotonic_regression

from fairsteer._utils.types import Codes, Doubles
from fairsteer.score_alignment._cells import Cells
from fairsteer.score_alignment._scores import Scores, Ties, settled

#: A level nearer to 0 or 1 has no quantile in double precision.
LEAST_LEVEL = 2.0**-53


class ScoreDistribution(NamedTuple):
    """Continuous, strictly increasing distribution function of weighted scores.

    At each score stands the mean of the empirical distribution function from the left and from the
    right; lines join these points, so that no two scores are tied in between. Outside the range the
    function nears 0 and 1 as ``1 / (1 + distance / scale)``, so that scores never seen keep their
    order. It is never farther from the empirical distribution function than half the largest share
    of a score.
    """

    values: Doubles
    levels: Doubles
    scale: float

    @classmethod
    def of(cls, scores: Doubles, weight: Doubles) -> ScoreDistribution:
        values, inverse = np.unique(scores, return_inverse=True)
        mass = np.bincount(inverse, weight)
        below = np.cumsum(mass)
        return cls(values, (below - mass / 2) / below[-1], float(np.ptp(values)) or 1.0)

    def level(self, scores: Doubles) -> Doubles:
        """Value of the function at scores, in (0, 1)."""
        first, last = self.values[0], self.values[-1]
        low = self.levels[0] / (1 + np.maximum(first - scores, 0) / self.scale)
        high = (1 - self.levels[-1]) / (1 + np.maximum(scores - last, 0) / self.scale)
        inside = np.interp(scores, self.values, self.levels)
        levels = np.where(scores < first, low, np.where(scores > last, 1 - high, inside))
        return np.clip(levels, LEAST_LEVEL, 1 - LEAST_LEVEL)

    def quantile(self, levels: Doubles) -> Doubles:
        """Score at which the function has given values: the inverse of ``level``."""
        low = self.values[0] - self.scale * (self.levels[0] / np.minimum(levels, self.levels[0]) - 1)
        rest = 1 - self.levels[-1]
        high = self.values[-1] + self.scale * (rest / np.minimum(1 - levels, rest) - 1)
        inside = np.interp(levels, self.levels, self.values)
        return np.where(levels < self.levels[0], low, np.where(levels > self.levels[-1], high, inside))


class Calibration(NamedTuple):
    """Strictly increasing map of scores to log-odds of the second class.

    Centred isotonic regression (Oron and Flournoy 2017): the blocks of pooled adjacent violators, joined by lines
    between their centres; slope 1 outside. Targets are Platt's, so that log-odds stay finite.
    """

    scores: Doubles
    log_odds: Doubles

    @classmethod
    def of(cls, scores: Doubles, positive: npt.NDArray[np.bool_], weight: Doubles) -> Calibration:
        scores = settled(scores)
        values, inverse = np.unique(scores, return_inverse=True)
        mass, hits = np.bincount(inverse, weight), np.bincount(inverse, weight * positive)
        rows = np.array([hits.sum(), (mass - hits).sum()])
        high, low = (rows[0] + 1) / (rows[0] + 2), 1 / (rows[1] + 2)
        fitted = isotonic_regression(low + (high - low) * hits / mass, sample_weight=mass)
        block = np.concatenate([[0], np.cumsum(np.diff(fitted) > 1e-12)])  # equal but for rounding
        total = np.bincount(block, mass)
        return cls(np.bincount(block, mass * values) / total, logit(np.bincount(block, mass * fitted) / total))

    def __call__(self, scores: Doubles) -> Doubles:
        beyond = np.maximum(scores - self.scores[-1], 0) - np.maximum(self.scores[0] - scores, 0)
        return np.asarray(np.interp(scores, self.scores, self.log_odds) + beyond)


class MonotoneAlignment(NamedTuple):
    """Monotone maps ``s -> (1 - t) s + t Q(F_a(s))`` of the scores of two classes, then one common calibration.

    ``F_a`` is the distribution of the scores of group a on the rows that the constraint counts, and ``Q`` the average
    of the groups' quantile functions, so that mapped scores have one distribution in all groups: every
    threshold gives them equal rates. Before that, scores of a group that differ by rounding only are made equal.
    """

    ties: tuple[Ties, ...]
    distributions: tuple[ScoreDistribution, ...]
    shares: Doubles
    amount: float
    calibration: Calibration
    measured: Doubles
    budget: float

    @classmethod
    def fit(cls, scores: Scores | Doubles, cells: Cells, max_gap: float) -> MonotoneAlignment:
        """Map no farther than the gap at any threshold needs to come down to `max_gap`."""
        if not isinstance(scores, Scores):
            scores = Scores.of(scores)
        of_group = [cells.group_codes == a for a in range(cells.n_groups)]
        ties = tuple(Ties.of(scores.take(rows)) for rows in of_group)
        scores = _settled_by_group(scores.values, cells.group_codes, ties)
        counted = [cells.counted(1, a) for a in range(cells.n_groups)]
        present = np.array([rows.any() for rows in counted])
        # A group without such rows is mapped as all the others together are.
        pooled = np.any(counted, axis=0)
        distributions = tuple(
            ScoreDistribution.of(scores[rows], cells.weight[rows])
            for rows in (rows if rows.any() else pooled for rows in counted)
        )
        shares = np.where(present, cells.group_shares, 0)
        shares /= shares.sum()
        target = _to_average(scores, cells.group_codes, distributions, shares)

        def gaps(amount: float) -> Doubles:
            mapped = settled((1 - amount) * scores + amount * target)
            return _distances([(mapped[rows], cells.weight[rows]) for rows in counted])

        amount = _least_amount(lambda amount: float(np.nanmax(gaps(amount))), max_gap)
        calibration = Calibration.of((1 - amount) * scores + amount * target, cells.y_codes == 1, cells.weight)
        return cls(ties, distributions, shares, amount, calibration, gaps(amount)[None], max_gap)

    def mapped(self, scores: Doubles, group_codes: Codes) -> Doubles:
        """Scores after the groups' maps, on the scale they came in."""
        scores = _settled_by_group(scores, group_codes, self.ties)
        if self.amount == 0:
            return scores
        target = _to_average(scores, group_codes, self.distributions, self.shares)
        return (1 - self.amount) * scores + self.amount * target

    def proba(self, scores: Doubles, group_codes: Codes) -> Doubles:
        log_odds = self.calibration(self.mapped(scores, group_codes))
        return np.column_stack([expit(-log_odds), expit(log_odds)])


def _settled_by_group(scores: Doubles, group_codes: Codes, ties: tuple[Ties, ...]) -> Doubles:
    """Make scores equal that differ by rounding only from those of their group."""
    scores = scores.copy()
    for a, of_group in enumerate(ties):
        rows = group_codes == a
        scores[rows] = of_group.settle(scores[rows])
    return scores


def _to_average(
    scores: Doubles, group_codes: Codes, distributions: tuple[ScoreDistribution, ...], shares: Doubles
) -> Doubles:
    """Map scores of each group to the average of the groups' quantile functions."""
    levels = np.empty(len(scores))
    for a, distribution in enumerate(distributions):
        rows = group_codes == a
        levels[rows] = distribution.level(scores[rows])
    parts = (share * d.quantile(levels) for share, d in zip(shares, distributions, strict=True) if share > 0)
    return sum(parts, np.zeros(len(scores)))


def _distances(samples: list[tuple[Doubles, Doubles]]) -> Doubles:
    """Kolmogorov distance of each two weighted samples, the largest gap at any threshold; NaN for empty ones."""
    grid = np.unique(np.concatenate([scores for scores, _ in samples]))
    distances = np.full((len(samples), len(samples)), np.nan)
    present = [a for a, (scores, _) in enumerate(samples) if len(scores)]
    levels = {}
    for a in present:
        scores, weight = samples[a]
        below = np.cumsum(np.bincount(np.searchsorted(grid, scores), weight, len(grid)))
        levels[a] = below / below[-1]
    for a in present:
        for b in present:
            distances[a, b] = np.abs(levels[a] - levels[b]).max()
    return distances


def _least_amount(gap: Callable[[float], float], max_gap: float) -> float:
    """Smallest amount found, by bisection, at which a gap is within the budget; 1 if even that is not."""
    if gap(0.0) <= max_gap:
        return 0.0
    low, high = 0.0, 1.0
    while max_gap > 0 and high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if gap(middle) <= max_gap else (middle, high)
    return high
