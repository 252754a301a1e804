"""More than two classes: offsets of log-probabilities by group."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from fairsteer._utils.calibration import VectorScaling
from fairsteer._utils.types import Codes, Doubles
from fairsteer.score_alignment._cells import Agg, Cells, Constraint
from fairsteer.score_alignment._rate_program import RateProgram, _aligned
from fairsteer.score_alignment._scores import Scores

#: A probability of 0 counts for this much where its logarithm is taken.
LEAST_PROBA = 1e-12


class GroupScalings(NamedTuple):
    """Calibration of each group's probabilities, by a slope and an offset for each class of their logarithms."""

    slopes: Doubles
    """(n_groups,)."""
    offsets: Doubles
    """(n_groups, n_classes)."""

    @classmethod
    def fit(cls, proba: Doubles, cells: Cells) -> GroupScalings:
        """Most probable calibration of each group's rows; none where there are no rows."""
        slopes, offsets = np.ones(cells.n_groups), np.zeros((cells.n_groups, cells.n_classes))
        for a in range(cells.n_groups):
            rows = cells.group_codes == a
            if rows.any():
                slopes[a], offsets[a] = VectorScaling.fit(_log(proba[rows]), cells.y_codes[rows], cells.weight[rows])
        return cls(slopes, offsets)

    def __call__(self, proba: Doubles, group_codes: Codes) -> Doubles:
        scaled = self.slopes[group_codes, None] * _log(proba) + self.offsets[group_codes]
        return np.asarray(softmax(scaled, axis=1))


def _log(proba: Doubles) -> Doubles:
    return np.asarray(np.log(np.maximum(proba, LEAST_PROBA)))


class OffsetAlignment(NamedTuple):
    """Offsets of the probabilities for each class and group, after which the largest one is predicted at equal rates.

    Of all classifiers, randomised ones included, whose rates differ by no more than the budget, the most accurate one
    under the given probabilities ``p`` maximises ``p_k - λ[a, k] g_k`` over classes ``k``, with multipliers ``λ`` of a
    linear program (as in LinearPost: Xian and Zhao, arXiv 2405.04025). For equal opportunity ``g_k`` is proportional to
    ``p_k``, so that the offsets are of log-probabilities; for demographic parity it is constant.
    """

    offsets: Doubles
    """Of log-probabilities (equal opportunity) or of probabilities (demographic parity), (n_groups, n_classes)."""
    constraint: Constraint
    measured: Doubles
    budget: float
    calibration: GroupScalings | None = None

    @classmethod
    def fit(
        cls,
        scores: Scores | Doubles,
        cells: Cells,
        max_gap: float,
        prior_rows: float,
        agg: Agg = "max",
        calibrate: bool = False,
    ) -> OffsetAlignment:
        """Find the offsets that lose least accuracy."""
        scores = scores if isinstance(scores, Scores) else Scores.of(scores)
        proba, epsilon = scores.values, scores.epsilon
        calibration = GroupScalings.fit(proba, cells) if calibrate else None
        if calibration is not None:
            proba = calibration(proba, cells.group_codes)
        program = RateProgram(proba, cells, max_gap, prior_rows, agg, epsilon)
        offsets, budget = program.solve()
        return cls(offsets, cells.constraint, _differences(program.rates(offsets)[0]), budget, calibration)

    def proba(self, scores: Doubles, group_codes: Codes) -> Doubles:
        if self.calibration is not None:
            scores = self.calibration(scores, group_codes)
        return _aligned(scores, self.offsets[group_codes], self.constraint == "equal_opportunity")


def _differences(rates: Doubles) -> Doubles:
    """Absolute differences of each two groups' rates (n_groups, n_classes), (n_classes, n_groups, n_groups)."""
    return np.abs(rates.T[:, :, None] - rates.T[:, None, :])
