"""More than two classes: offsets of log-probabilities by group."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from fairsteer._utils.types import Codes, Doubles
from fairsteer.score_alignment._cells import Aggregate, Cells, Constraint
from fairsteer.score_alignment._rate_program import RateProgram, _aligned
from fairsteer.score_alignment._scores import Scores

# A probability of 0 counts for this much where its logarithm is taken.
_LEAST_PROBA = 1e-12


class VectorScaling(NamedTuple):
    """Calibration of each group's probabilities: ``log p_k`` becomes ``t_a log p_k + c[a, k]``, scaled to sum to 1.

    Vector scaling (Guo et al. 2017) with one temperature, by the likelihood of the rows and a Gaussian prior on the
    offsets ``c``, so that they stay finite where a group lacks a class.
    """

    slopes: Doubles
    offsets: Doubles

    @classmethod
    def fit(cls, proba: Doubles, cells: Cells) -> VectorScaling:
        fitted = np.zeros((cells.n_groups, 1 + cells.n_classes))
        fitted[:, 0] = 1
        for a in range(cells.n_groups):
            rows = cells.group_codes == a
            if rows.any():
                log_proba = np.log(np.maximum(proba[rows], _LEAST_PROBA))
                fitted[a] = _scaled_to(log_proba, cells.y_codes[rows], cells.weight[rows])
        return cls(fitted[:, 0], fitted[:, 1:])

    def __call__(self, proba: Doubles, group_codes: Codes) -> Doubles:
        log_proba = np.log(np.maximum(proba, _LEAST_PROBA))
        return np.asarray(softmax(self.slopes[group_codes, None] * log_proba + self.offsets[group_codes], axis=1))


def _scaled_to(log_proba: Doubles, y: Codes, weight: Doubles) -> Doubles:
    """Slope and offsets of the largest posterior probability, (1 + n_classes,)."""
    rows, total = np.arange(len(y)), weight.sum()

    def loss(parameters: Doubles) -> tuple[float, Doubles]:
        offsets = parameters[1:]
        log_scaled = log_softmax(parameters[0] * log_proba + offsets, axis=1)
        excess = np.exp(log_scaled)
        excess[rows, y] -= 1
        excess *= weight[:, None]
        value = offsets @ offsets / 2 - weight @ log_scaled[rows, y]
        slopes = np.concatenate([[np.vdot(excess, log_proba)], excess.sum(axis=0) + offsets])
        return float(value / total), slopes / total

    start = np.concatenate([[1.0], np.zeros(log_proba.shape[1])])
    bounds = [(0, None), *[(None, None)] * log_proba.shape[1]]
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x)


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
    calibration: VectorScaling | None = None

    @classmethod
    def fit(
        cls,
        scores: Scores | Doubles,
        cells: Cells,
        max_gap: float,
        shrinkage: float,
        aggregate: Aggregate = "max",
        calibrate: bool = False,
    ) -> OffsetAlignment:
        """Find the offsets that lose least accuracy."""
        scores = scores if isinstance(scores, Scores) else Scores.of(scores)
        proba, epsilon = scores.values, scores.epsilon
        calibration = VectorScaling.fit(proba, cells) if calibrate else None
        if calibration is not None:
            proba = calibration(proba, cells.group_codes)
        program = RateProgram(proba, cells, max_gap, shrinkage, aggregate, epsilon)
        offsets, budget = program.solve()
        return cls(offsets, cells.constraint, _differences(program.rates(offsets)[0]), budget, calibration)

    def proba(self, scores: Doubles, group_codes: Codes) -> Doubles:
        if self.calibration is not None:
            scores = self.calibration(scores, group_codes)
        return _aligned(scores, self.offsets[group_codes], self.constraint == "equal_opportunity")


def _differences(rates: Doubles) -> Doubles:
    """Absolute differences of each two groups' rates (n_groups, n_classes), (n_classes, n_groups, n_groups)."""
    return np.abs(rates.T[:, :, None] - rates.T[:, None, :])
