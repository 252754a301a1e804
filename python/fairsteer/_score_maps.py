"""Maps of a classifier's scores, by group, after which the groups are treated alike; numbers and integer codes only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.isotonic import isotonic_regression

from fairsteer._input import Codes

Constraint = Literal["equal_opportunity", "demographic_parity"]
Aggregate = Literal["max", "rms"]
Doubles = npt.NDArray[np.float64]


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

    @property
    def compared(self) -> list[int]:
        """Classes whose rates of prediction the groups are to have in common: of two, the second."""
        return [1] if self.n_classes == 2 else list(range(self.n_classes))

    def counted(self, k: int, a: int) -> npt.NDArray[np.bool_]:
        """Which rows group `a`'s rate of predicting class `k` is taken over."""
        counted: npt.NDArray[np.bool_] = self.group_codes == a
        if self.constraint == "equal_opportunity":
            counted &= self.y_codes == k
        return counted

    @property
    def totals(self) -> Doubles:
        """Weight of the counted rows of every compared class and group, (n_compared, n_groups)."""
        return self._sums(self.weight)

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


class Alignment(Protocol):
    """What both kinds of alignment offer."""

    @property
    def measured(self) -> Doubles:
        """Gap of each two groups on the rows of the fit, (n_compared, n_groups, n_groups); NaN without rows."""

    @property
    def budget(self) -> float:
        """What the gaps were kept within: more than was asked for where that needs randomised predictions."""

    def proba(self, scores: Doubles, group_codes: Codes) -> Doubles:
        """Probabilities of the classes after alignment, (n, n_classes)."""


def align(
    scores: Doubles,
    cells: Cells,
    max_gap: float,
    shrinkage: float,
    aggregate: Aggregate = "max",
    calibrate: bool = False,
) -> Alignment:
    """Fit the alignment for the number of classes.

    Parameters
    ----------
    scores : ndarray of shape (n,) or (n, n_classes)
        Out-of-fold scores: of two classes one number, larger for the second; else probabilities.
    cells : Cells
        The same rows.
    max_gap : float
        Gap to leave between groups, in [0, 1].
    shrinkage : float
        With more than two classes, how many rows the classifier's own probabilities count for in a cell.
    aggregate : {"max", "rms"}
        With more than two classes, whether `max_gap` bounds the largest gap or the root mean square over classes.
    calibrate : bool
        With more than two classes, whether the probabilities are calibrated for each group first.
    """
    if scores.ndim == 1:
        return MonotoneAlignment.fit(scores, cells, max_gap)
    return OffsetAlignment.fit(scores, cells, max_gap, shrinkage, aggregate, calibrate)


# ---- two classes: one monotone map a group


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
        return np.where(scores < first, low, np.where(scores > last, 1 - high, inside))

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
    threshold gives them equal rates.
    """

    distributions: tuple[ScoreDistribution, ...]
    shares: Doubles
    amount: float
    calibration: Calibration
    measured: Doubles
    budget: float

    @classmethod
    def fit(cls, scores: Doubles, cells: Cells, max_gap: float) -> MonotoneAlignment:
        """Map no farther than the gap at any threshold needs to come down to `max_gap`."""
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
            mapped = (1 - amount) * scores + amount * target
            return _distances([(mapped[rows], cells.weight[rows]) for rows in counted])

        amount = _least_amount(lambda amount: float(np.nanmax(gaps(amount))), max_gap)
        calibration = Calibration.of((1 - amount) * scores + amount * target, cells.y_codes == 1, cells.weight)
        return cls(distributions, shares, amount, calibration, gaps(amount)[None], max_gap)

    def mapped(self, scores: Doubles, group_codes: Codes) -> Doubles:
        """Scores after the groups' maps, on the scale they came in."""
        if self.amount == 0:
            return scores
        target = _to_average(scores, group_codes, self.distributions, self.shares)
        return (1 - self.amount) * scores + self.amount * target

    def proba(self, scores: Doubles, group_codes: Codes) -> Doubles:
        log_odds = self.calibration(self.mapped(scores, group_codes))
        return np.column_stack([expit(-log_odds), expit(log_odds)])


def _to_average(
    scores: Doubles, group_codes: Codes, distributions: tuple[ScoreDistribution, ...], shares: Doubles
) -> Doubles:
    """Map scores of each group to the average of the groups' quantile functions."""
    levels = np.empty(len(scores))
    for a, distribution in enumerate(distributions):
        rows = group_codes == a
        levels[rows] = distribution.level(scores[rows])
    return sum((r * d.quantile(levels) for r, d in zip(shares, distributions, strict=True)), np.zeros(len(scores)))


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


# ---- several classes: offsets for each class and group


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
        proba: Doubles,
        cells: Cells,
        max_gap: float,
        shrinkage: float,
        aggregate: Aggregate = "max",
        calibrate: bool = False,
    ) -> OffsetAlignment:
        """Find the offsets that lose least accuracy."""
        calibration = VectorScaling.fit(proba, cells) if calibrate else None
        if calibration is not None:
            proba = calibration(proba, cells.group_codes)
        program = RateProgram(proba, cells, max_gap, shrinkage, aggregate)
        offsets, budget = program.solve()
        return cls(offsets, cells.constraint, _differences(program.rates(offsets)[0]), budget, calibration)

    def proba(self, scores: Doubles, group_codes: Codes) -> Doubles:
        if self.calibration is not None:
            scores = self.calibration(scores, group_codes)
        return _aligned(scores, self.offsets[group_codes], self.constraint == "equal_opportunity")


class Bend(NamedTuple):
    """What a norm of sums over groups, ``s_k = Σ_a |λ[a, k]|``, adds to the second derivatives by the multipliers."""

    signs: Doubles
    """Smoothed signs of the multipliers, (n_groups, n_classes)."""
    steep: float
    down: Doubles
    """The derivatives by the sums are ``steep I - down downᵀ``, (n_classes,)."""

    def product(self, along: Doubles) -> Doubles:
        """With a direction (n_groups, n_classes)."""
        sums = (self.signs * along).sum(axis=0)
        return np.asarray(self.signs * (self.steep * sums - self.down * (self.down @ sums)))


class Curvature(NamedTuple):
    """Second derivatives of the smoothed dual: a block for each group, and what the norm adds between groups."""

    blocks: list[Doubles]
    bend: Bend | None

    def product(self, along: Doubles) -> Doubles:
        """With a direction (n_groups, n_classes)."""
        result = np.stack([block @ v for block, v in zip(self.blocks, along, strict=True)])
        return result if self.bend is None else result + self.bend.product(along)

    def dense(self) -> Doubles:
        """As a matrix over raveled (n_groups, n_classes)."""
        matrix: Doubles = linalg.block_diag(*self.blocks)
        if self.bend is not None:
            n = len(matrix)
            matrix += np.stack([self.bend.product(e).ravel() for e in np.eye(n).reshape(n, *self.bend.signs.shape)])
        return matrix


class RateProgram:
    """The linear program behind `OffsetAlignment`, solved in its multipliers.

    The dual ``D(λ) = Σ_i w_i max_k (p_ik - λ[a_i, k] g_ik) + ½ max_gap ‖s‖``, with ``s_k = Σ_a |λ[a, k]|`` and
    ``Σ_a λ[a, k] = 0``, is convex. Where `max_gap` bounds the largest gap of the classes, ``‖s‖ = Σ_k s_k``; where it
    bounds the root mean square over K of them, ``‖s‖ = √(K Σ_k s_k²)``: the dual norms. The maximum and the absolute
    value are smoothed, less and less, and each smooth problem is solved by Newton's method in a trust region.

    The rates of equal opportunity ``P(predicted k | Y = k, A = a)`` are those under the probabilities, times a factor
    for each cell (class, group) by which the measured rate differs; it is shrunk to 1 where rows are few.
    """

    # Widths of the smoothing, in probability.
    _WIDTHS: ClassVar[dict[Constraint, tuple[float, ...]]] = {
        "equal_opportunity": (1e-2, 3e-3, 1e-3, 3e-4),
        # The offsets of rare classes are as small as their probabilities.
        "demographic_parity": (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5),
    }
    _MAX_CORRECTIONS = 20
    # So many corrections without a smaller gap end them.
    _PATIENCE = 5
    # A class is never predicted in a group if its probability is multiplied with less.
    _LEAST_FACTOR = 1e-6
    # A group whose probabilities are all multiplied with less than e to this power has nothing to gain.
    _INDIFFERENT = -3.0
    # What is farther below the largest exponent than this has no share in double precision.
    _NEGLIGIBLE = 40.0
    # With more multipliers their Hessian is not factored.
    _MAX_DENSE = 500

    def __init__(
        self, proba: Doubles, cells: Cells, max_gap: float, shrinkage: float, aggregate: Aggregate = "max"
    ) -> None:
        self._cells, self._max_gap, self._shrinkage, self._aggregate = cells, max_gap, shrinkage, aggregate
        weight = cells.weight / cells.weight.sum()
        of_group = [np.flatnonzero(cells.group_codes == a) for a in range(cells.n_groups)]
        self._groups = [(proba[rows], weight[rows], cells.y_codes[rows]) for rows in of_group]
        shape = (cells.n_groups, cells.n_classes)
        self._opportunity = cells.constraint == "equal_opportunity"
        if self._opportunity:
            mass = np.stack([w @ p for p, w, _ in self._groups])
        else:
            mass = np.broadcast_to(cells.group_shares[:, None], shape)
        self._counts = np.zeros(shape)
        self._counts[:, cells.compared] = cells.totals.T
        # A cell without rows takes no part; nor does a class that fewer than two groups have.
        counted = (self._counts > 0) & (mass > 0)
        counted &= counted.sum(axis=0) >= 2
        self._basis = _zero_sum_basis(counted)
        self._counted, self._mass = counted, np.where(counted, mass, 1.0)
        self._n_compared = int(counted.any(axis=0).sum())
        self._correction = np.ones(shape)

    def solve(self) -> tuple[Doubles, float]:
        """Offsets (n_groups, n_classes), and the budget that they keep.

        Where one group's rates are higher than another's in every class, the optimum makes its predictions worse at
        random. No offsets do that: the budget is then raised to the smallest that needs no such thing.
        """
        best = self.offsets(np.zeros(self._mass.shape))
        high = self._max_gap + self._excess(best)
        if high <= self._max_gap:
            return best, self._max_gap
        offsets, reached = self._solve_within(self._max_gap)
        if reached:
            return offsets, self._max_gap
        low = self._max_gap
        while high - low > 0.005:
            middle = (low + high) / 2
            offsets, reached = self._solve_within(middle)
            low, high, best = (low, middle, offsets) if reached else (middle, high, best)
        return best, high

    def _solve_within(self, max_gap: float) -> tuple[Doubles, bool]:
        """Offsets within a budget, and whether they stand for the optimum."""
        self._max_gap = max_gap
        self._correction = np.ones(self._mass.shape)
        free = np.zeros(self._basis.shape[1])
        least, patience = np.inf, self._PATIENCE
        widths = self._WIDTHS[self._cells.constraint]
        for width in (*widths, *widths[-1:] * self._MAX_CORRECTIONS):
            free = self._minimise(free, width)
            offsets = self.offsets((self._basis @ free).reshape(self._mass.shape))
            if self._opportunity and offsets.max(axis=1).min() < self._INDIFFERENT:
                return offsets, False
            if width == widths[-1]:
                excess = self._excess(offsets)
                patience = self._PATIENCE if excess < least else patience - 1
                if excess < least:
                    least, best = excess, offsets
                if excess <= 0 or patience == 0 or not self._opportunity:
                    break
            self._correct(offsets)
        return best, True

    def offsets(self, multipliers: Doubles) -> Doubles:
        """Offsets that multipliers stand for, both of shape (n_groups, n_classes)."""
        shift = multipliers * self._slopes()
        return np.log(np.maximum(1 - shift, self._LEAST_FACTOR)) if self._opportunity else -shift

    def dual(self, multipliers: Doubles) -> float:
        """Value of the dual: no classifier within the budget has a higher accuracy under the probabilities."""
        shift = multipliers * self._slopes()
        bound = sum(
            w @ (p - shift[a] * (p if self._opportunity else 1.0)).max(axis=1)
            for a, (p, w, _) in enumerate(self._groups)
        )
        return float(bound + self._max_gap / 2 * self._norm(np.abs(multipliers).sum(axis=0)))

    def _norm(self, sums: Doubles) -> float:
        """Dual norm of the sums over groups of the multipliers' absolute values, (n_classes,)."""
        if self._aggregate == "max":
            return float(sums.sum())
        return float(np.sqrt(self._n_compared * np.square(sums).sum()))

    def rates(self, offsets: Doubles) -> tuple[Doubles, Doubles]:
        """Rates of prediction (n_groups, n_classes), measured and under the probabilities; NaN if not compared."""
        measured, expected = np.full((2, *self._mass.shape), np.nan)
        for a, (p, w, y) in enumerate(self._groups):
            chosen = _aligned(p, offsets[a], self._opportunity).argmax(axis=1)
            for k in np.flatnonzero(self._counts[a]):
                hit = chosen == k
                if self._opportunity:
                    measured[a, k] = w[hit & (y == k)].sum() / w[y == k].sum()
                    expected[a, k] = min(w[hit] @ p[hit, k] / self._mass[a, k], 1.0) if self._counted[a, k] else np.nan
                else:
                    measured[a, k] = expected[a, k] = w[hit].sum() / w.sum()
        return measured, expected

    def _slopes(self) -> Doubles:
        """Change of a probability (of its share, for equal opportunity) with the multiplier."""
        return np.where(self._counted, self._correction / self._mass, 0.0)

    def _minimise(self, free: Doubles, width: float) -> Doubles:
        """Minimise the dual smoothed to a width, over free multipliers (the last group's balance the others)."""
        slope, shape, basis = self._slopes(), self._mass.shape, self._basis
        corner = (width * self._mass) ** 2

        def value(free: Doubles) -> tuple[float, Doubles, Curvature]:
            multipliers = (basis @ free).reshape(shape)
            length = np.sqrt(multipliers**2 + corner)
            sums = np.where(self._counted, length, 0).sum(axis=0)
            norm = self._norm(sums)
            # The derivative of the penalty by the length of a multiplier.
            pull = np.full(shape[1], self._max_gap / 2)
            if self._aggregate == "rms":
                pull *= self._n_compared * sums / norm
            total = self._max_gap / 2 * norm
            signs = multipliers / length
            gradient = pull * signs
            blocks = []
            for a, (p, w, _) in enumerate(self._groups):
                z = p * ((1 - multipliers[a] * slope[a]) / width) if self._opportunity else p / width
                if not self._opportunity:
                    z -= multipliers[a] * slope[a] / width
                top = z.max(axis=1)
                # Few classes of a row are near its largest one; the others' shares are 0 but for rounding.
                row, k = np.nonzero(z > top[:, None] - self._NEGLIGIBLE)
                chosen = np.exp(z[row, k] - top[row])
                mass = np.bincount(row, chosen, len(p))
                total += width * (w @ (top + np.log(mass)))
                gain = p[row, k] * slope[a, k] if self._opportunity else slope[a, k]
                chosen *= gain / mass[row]
                weighted = chosen * w[row]
                gradient[a] -= np.bincount(k, weighted, shape[1])
                first = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(p)))])
                crossed = csr_array((weighted, k, first), p.shape).T @ csr_array((chosen, k, first), p.shape)
                curvature = np.diag(np.bincount(k, weighted * gain, shape[1])) - crossed.toarray()
                blocks.append(curvature / width + np.diag(pull * corner[a] / length[a] ** 3))
            bend = None
            if self._aggregate == "rms":
                # Second derivatives of the norm by the sums: a diagonal less the square of a vector.
                steep = self._max_gap / 2 * self._n_compared / norm
                bend = Bend(signs, steep, sums * np.sqrt(steep * self._n_compared) / norm)
            return total, basis.T @ gradient.ravel(), Curvature(blocks, bend)

        evaluate = _remember(value)

        def hessian(free: Doubles) -> Doubles:
            return np.asarray(dense.T @ evaluate(free)[2].dense() @ dense)

        def hessian_product(free: Doubles, direction: Doubles) -> Doubles:
            return np.asarray(basis.T @ evaluate(free)[2].product((basis @ direction).reshape(shape)).ravel())

        options: dict[str, Any] = {"jac": True, "options": {"gtol": 1e-5, "maxiter": 100}}
        if basis.shape[1] <= self._MAX_DENSE:
            dense = basis.toarray()
            found = minimize(lambda free: evaluate(free)[:2], free, method="trust-exact", hess=hessian, **options)
        else:
            found = minimize(
                lambda free: evaluate(free)[:2], free, method="trust-ncg", hessp=hessian_product, **options
            )
        return np.asarray(found.x)

    def _correct(self, offsets: Doubles) -> None:
        """Move the factors half of the way, in logarithms, to what these offsets show them to be."""
        measured, expected = self.rates(offsets)
        half = 0.5 / np.maximum(self._counts, 1)  # a rate of 0 is not exactly that
        shown = (self._shrunk(measured, expected) + half) / (expected + half)
        self._correction = np.where(self._counted, np.sqrt(self._correction * shown), 1.0)

    def _shrunk(self, measured: Doubles, expected: Doubles) -> Doubles:
        share = self._counts / np.where(self._counts > 0, self._counts + self._shrinkage, 1)
        return share * measured + (1 - share) * expected

    def _excess(self, offsets: Doubles) -> float:
        """By how much the gap exceeds the budget, but for the jump that the rate of a cell makes at a row."""
        rates = np.where(self._counted, self._shrunk(*self.rates(offsets)), np.nan)[:, self._counted.any(axis=0)]
        if not rates.size:
            return 0.0
        jump = np.where(self._counted, 1 / np.maximum(self._counts, 1), 0)[:, self._counted.any(axis=0)].max(axis=0)
        gaps = np.nanmax(rates, axis=0) - np.nanmin(rates, axis=0) - jump
        if self._aggregate == "rms":
            return float(np.sqrt(np.square(np.maximum(gaps, 0)).mean()) - self._max_gap)
        return float(gaps.max() - self._max_gap)


def _zero_sum_basis(counted: npt.NDArray[np.bool_]) -> csr_array:
    """Basis of the arrays (n_groups, n_classes), raveled, that vanish outside `counted` and sum to 0 over groups."""
    columns, (n_groups, n_classes) = [], counted.shape
    for k in range(n_classes):
        *others, last = np.flatnonzero(counted[:, k]).tolist() or [0]
        columns += [(a * n_classes + k, last * n_classes + k) for a in others]
    rows = np.array(columns, dtype=np.intp).ravel()
    signs = np.tile([1.0, -1.0], len(columns))
    return csr_array((signs, (rows, np.repeat(np.arange(len(columns)), 2))), shape=(n_groups * n_classes, len(columns)))


def _remember(function: Callable[[Doubles], tuple[float, Doubles, Curvature]]) -> Any:
    """Keep the last value: the minimiser asks for gradient and Hessian one after the other."""
    last: dict[bytes, tuple[float, Doubles, Curvature]] = {}

    def remembered(x: Doubles) -> tuple[float, Doubles, Curvature]:
        key = x.tobytes()
        if key not in last:
            last.clear()
            last[key] = function(x)
        return last[key]

    return remembered


def _aligned(proba: Doubles, offsets: Doubles, opportunity: bool) -> Doubles:
    """Probabilities after offsets (n_classes,) or (n, n_classes)."""
    if not opportunity:
        return _onto_simplex(proba + offsets)
    weighted = proba * np.exp(offsets - offsets.max(axis=-1, keepdims=True))
    return np.asarray(weighted / weighted.sum(axis=-1, keepdims=True))


def _onto_simplex(points: Doubles) -> Doubles:
    """Nearest probabilities to points (n, n_classes), by sorting (Held, Wolfe and Crowder 1974)."""
    falling = -np.sort(-points, axis=1)
    excess = (np.cumsum(falling, axis=1) - 1) / np.arange(1, points.shape[1] + 1)
    last = (falling > excess).sum(axis=1) - 1
    return np.asarray(np.maximum(points - excess[np.arange(len(points)), last][:, None], 0))


def _differences(rates: Doubles) -> Doubles:
    """Absolute differences of each two groups' rates (n_groups, n_classes), (n_classes, n_groups, n_groups)."""
    return np.abs(rates.T[:, :, None] - rates.T[:, None, :])
