"""The convex program that makes rates equal at the least change of scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.optimize import minimize
from scipy.sparse import csr_array

from fairsteer._utils.types import Doubles
from fairsteer.score_alignment._cells import Agg, Cells, Constraint
from fairsteer.score_alignment._scores import without_rounding


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
        self,
        proba: Doubles,
        cells: Cells,
        max_gap: float,
        prior_rows: float,
        agg: Agg = "max",
        epsilon: float = float(np.finfo(np.float64).eps),
    ) -> None:
        self._cells, self._max_gap, self._prior_rows, self._agg = cells, max_gap, prior_rows, agg
        self._epsilon = epsilon
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
        self._basis = zero_sum_basis(counted)
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
        if self._agg == "max":
            return float(sums.sum())
        return float(np.sqrt(self._n_compared * np.square(sums).sum()))

    def rates(self, offsets: Doubles) -> tuple[Doubles, Doubles]:
        """Rates of prediction (n_groups, n_classes), measured and under the probabilities; NaN if not compared."""
        measured, expected = np.full((2, *self._mass.shape), np.nan)
        for a, (p, w, y) in enumerate(self._groups):
            chosen = without_rounding(_aligned(p, offsets[a], self._opportunity), self._epsilon).argmax(axis=1)
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
            if self._agg == "rms":
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
            if self._agg == "rms":
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
        share = self._counts / np.where(self._counts > 0, self._counts + self._prior_rows, 1)
        return share * measured + (1 - share) * expected

    def _excess(self, offsets: Doubles) -> float:
        """By how much the gap exceeds the budget, but for the jump that the rate of a cell makes at a row."""
        rates = np.where(self._counted, self._shrunk(*self.rates(offsets)), np.nan)[:, self._counted.any(axis=0)]
        if not rates.size:
            return 0.0
        jump = np.where(self._counted, 1 / np.maximum(self._counts, 1), 0)[:, self._counted.any(axis=0)].max(axis=0)
        gaps = np.nanmax(rates, axis=0) - np.nanmin(rates, axis=0) - jump
        if self._agg == "rms":
            return float(np.sqrt(np.square(np.maximum(gaps, 0)).mean()) - self._max_gap)
        return float(gaps.max() - self._max_gap)


def zero_sum_basis(counted: npt.NDArray[np.bool_]) -> csr_array:
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
