"""Moments of rows that lie on a device, added up there: written for any library of the array API standard.

As in the core: exact means of the subgroups first, then products of the centred rows, block by block in the rows' own
precision (single at least) and summed in double precision, then one merge (Chan, Golub and LeVeque 1979) with what is
there already. Nothing but codes goes to the device, and nothing but a flag comes back from it, until `home`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fairsteer._utils.arrays import device_of, exact_products, free_memory, namespace, to_numpy
from fairsteer._utils.types import Codes, CovarianceModel, Doubles
from fairsteer.moments._covariances import covariance_model

# Rows of a block, whose products are summed in single precision: more would cost digits, fewer time where adding their
# matrix to the sum is no small part of forming it.
_FEW, _MANY = 256, 1024
# Features from which on that is so.
_WIDE = 1024
# Distances from the mean between which squares, and the sums of a block, keep their digits in single precision.
_SMALLEST, _LARGEST = 1e-15, 1e15
# What can be squared in double precision.
_MOST = 1e150


class BadRowError(ValueError):
    """A row is not finite, or too large to be squared; the argument is its position."""


class _Block(NamedTuple):
    """Rows of one scatter, sorted by cell."""

    rows: Any
    """Positions in the array, on the device."""
    weights: Any
    """On the device, in double precision; None for ones."""
    local: Any
    """Cell of each row among those of the block, on the device."""
    first: int
    """Which of the cells of the batch is the block's first."""
    n_cells: int
    scatter: int


class DeviceSums:
    """What rows on one device add up to; of the same meaning as the sums of `SubgroupMoments`.

    Parameters
    ----------
    like : array
        Rows, which say library and device.
    covariance : {"tied", "full", "diagonal"}
        Covariance model.
    n_classes, n_groups : int
        Numbers of classes and groups.

    Raises
    ------
    MemoryError
        If the sums do not fit into what is free on the device.
    """

    def __init__(self, like: Any, covariance: CovarianceModel, n_classes: int, n_groups: int) -> None:
        self._xp, self._device = namespace(like), device_of(like)
        self._shape, self._d = (n_classes, n_groups), int(like.shape[1])
        self._model, self._tied = covariance_model(covariance), covariance == "tied"
        n_cells = n_classes * n_groups
        self._n_scatters = (n_groups if self._tied else n_cells) if self._model.matrices else 0
        _check_memory(like, self._n_scatters, n_groups, self._tied)
        self.weights, self.weight_squares = np.zeros(n_cells), np.zeros(n_cells)
        d, wide = self._d, not self._model.matrices
        self._means, self._cubics = self._zeros(n_cells, d), self._zeros(n_cells, d)
        self._quartics = self._zeros(n_cells, d if wide else 1)
        self._squares = self._zeros(n_cells, d) if wide else None
        self._scatters = [self._zeros(d, d) for _ in range(self._n_scatters)]

    def serves(self, X: Any) -> bool:
        """Whether rows lie where the sums do."""
        return namespace(X) is self._xp and device_of(X) == self._device

    def _zeros(self, *shape: int) -> Any:
        return self._xp.zeros(shape, dtype=self._xp.float64, device=self._device)

    def _sent(self, array: NDArray[Any]) -> Any:
        return self._xp.asarray(np.ascontiguousarray(array), device=self._device)

    # ---- adding rows

    def add(self, X: Any, cell: Codes, weights: Doubles | None) -> None:
        """Add rows.

        Parameters
        ----------
        X : array of shape (n, d)
            Floating-point rows on the device.
        cell : ndarray of shape (n,)
            Subgroup of each row, ``class * n_groups + group``; a negative one leaves the row out.
        weights : ndarray of shape (n,) or None
            Weights of the rows.

        Raises
        ------
        BadRowError
            If a row is not finite, or too large to be squared; nothing has been added then.
        """
        kept = np.flatnonzero(cell >= 0 if weights is None else (cell >= 0) & (weights > 0))
        if not kept.size:
            return
        scatter = cell % self._shape[1] if self._tied else cell
        order = kept[np.lexsort((cell[kept], scatter[kept]))]
        starts = np.flatnonzero(np.r_[True, np.diff(cell[order]) != 0])
        cells = cell[order][starts]
        run = np.repeat(np.arange(len(cells)), np.diff(np.r_[starts, len(order)]))
        w = np.ones(len(order)) if weights is None else weights[order]
        n2, squares = (np.bincount(run, power).astype(np.float64) for power in (w, w**2))
        bounds = np.r_[0, np.flatnonzero(np.diff(scatter[order])) + 1 if self._model.matrices else [], len(order)]
        step = _MANY if self._d >= _WIDE else _FEW
        blocks = [
            self._block(order[b:e], None if weights is None else w[b:e], run[b:e], int(scatter[order[b]]))
            for first, last in zip(bounds[:-1].astype(int), bounds[1:].astype(int), strict=True)
            for b, e in ((at, min(at + step, last)) for at in range(first, last, step))
        ]
        with exact_products(X):
            means = self._means_of(X, blocks, n2, order)
            if self._model.matrices:
                self._add_matrices(X, blocks, cells, n2, means, ordinary=_ordinary(w))
            else:
                self._add_variances(X, blocks, cells, n2, means)
        self.weights[cells] += n2
        self.weight_squares[cells] += squares

    def _block(self, rows: Codes, w: Doubles | None, run: Codes, scatter: int) -> _Block:
        weights = None if w is None else self._sent(w)
        first = int(run[0])
        return _Block(self._sent(rows), weights, self._sent(run - first), first, int(run[-1]) - first + 1, scatter)

    def _membership(self, block: _Block, dtype: Any) -> Any:
        """Whether each row is of each cell of a block, (n_cells, rows), as numbers."""
        xp = self._xp
        each = xp.arange(block.n_cells, dtype=block.local.dtype, device=self._device)
        return xp.astype(each[:, None] == block.local[None, :], dtype)

    def _gathered(self, blocks: list[_Block], parts: list[Any], n_runs: int) -> Any:
        """Add parts (n_cells of a block, …) of all blocks up to the cells of the batch."""
        owner = np.concatenate([np.arange(block.first, block.first + block.n_cells) for block in blocks])
        table = self._sent((np.arange(n_runs)[:, None] == owner).astype(np.float64))
        return table @ self._xp.concat(parts, axis=0)

    def _means_of(self, X: Any, blocks: list[_Block], n2: Doubles, order: Codes) -> Any:
        xp, parts = self._xp, []
        largest = self._zeros(1)
        for block in blocks:
            rows = xp.astype(xp.take(X, block.rows, axis=0), xp.float64)
            largest = xp.maximum(largest, xp.max(xp.abs(rows)))
            member = self._membership(block, xp.float64)
            parts.append((member if block.weights is None else member * block.weights[None, :]) @ rows)
        means = self._gathered(blocks, parts, len(n2)) / self._sent(n2)[:, None]
        if not (bool(xp.all(xp.isfinite(means))) and float(largest[0]) < _MOST):
            self._raise_for(X, order)
        return means

    def _raise_for(self, X: Any, order: Codes) -> None:
        xp = self._xp
        for begin in range(0, len(order), _MANY):
            rows = xp.take(X, self._sent(order[begin : begin + _MANY]), axis=0)
            fine = xp.all(xp.abs(xp.astype(rows, xp.float64)) < _MOST, axis=1)
            if not bool(xp.all(fine)):
                raise BadRowError(int(order[begin + int(xp.argmin(xp.astype(fine, xp.int8)))]))

    def _centred(self, X: Any, block: _Block, means: Any, dtype: Any) -> Any:
        """Rows about the means of their cells, in two steps: these are rounded to the type of the rows as well."""
        xp = self._xp
        at = block.local + block.first
        rounded = xp.astype(means, dtype)
        rest = xp.astype(means - xp.astype(rounded, xp.float64), dtype)
        rows = xp.astype(xp.take(X, block.rows, axis=0), dtype) - xp.take(rounded, at, axis=0)
        return rows - xp.take(rest, at, axis=0)

    # ---- matrices

    def _add_matrices(
        self, X: Any, blocks: list[_Block], cells: Codes, n2: Doubles, means: Any, *, ordinary: bool
    ) -> None:
        xp = self._xp
        single = X.dtype != xp.float64 and ordinary
        scatters, cubics, others = dict[int, Any](), list[Any](), list[Any]()
        for scatter in dict.fromkeys(block.scatter for block in blocks):
            own = [block for block in blocks if block.scatter == scatter]
            found = self._products(X, own, means, xp.float32 if single else xp.float64)
            if found is None:
                found = self._products(X, own, means, xp.float64)
            assert found is not None
            scatters[scatter] = found[0]
            cubics += found[1]
            others += found[2]
        cubic, both = (self._gathered(blocks, parts, len(n2)) for parts in (cubics, others))
        self._merge_matrices(cells, n2, means, scatters, cubic, both[:, :1], both[:, 1:])

    def _products(
        self, X: Any, blocks: list[_Block], means: Any, dtype: Any
    ) -> tuple[Any, list[Any], list[Any]] | None:
        """Scatter of some blocks, third powers, and squares beside fourth powers; None beyond the range of `dtype`."""
        xp, cubics, others = self._xp, [], []
        total = self._zeros(self._d, self._d)
        reach = xp.zeros((self._d,), dtype=dtype, device=self._device)
        for block in blocks:
            y = self._centred(X, block, means, dtype)
            reach = xp.maximum(reach, xp.max(xp.abs(y), axis=0))
            root = None if block.weights is None else xp.sqrt(block.weights)
            y = y if root is None else y * xp.astype(root, dtype)[:, None]
            total += y.T @ y
            norm = xp.sum(y * y, axis=1, dtype=xp.float64)
            factor = norm if root is None else norm / root
            largest = xp.max(factor)
            largest = xp.where(largest > 0, largest, xp.ones_like(largest))
            member = self._membership(block, dtype)
            cubic = (member * xp.astype(factor / largest, dtype)[None, :]) @ y
            cubics.append(xp.astype(cubic, xp.float64) * largest)
            powers = xp.stack([norm, norm * norm if block.weights is None else norm * norm / block.weights], axis=1)
            others.append(xp.astype(member, xp.float64) @ powers)
        if dtype != xp.float64:
            inside = (reach == 0) | ((reach > _SMALLEST) & (reach < _LARGEST))
            if not bool(xp.all(inside)):
                return None
        return total, cubics, others

    def _merge_matrices(
        self, cells: Codes, n2: Doubles, means: Any, scatters: dict[int, Any], cubic: Any, trace: Any, quartic: Any
    ) -> None:
        xp = self._xp
        merge = _Merge(self, cells, n2, means)
        old_cubic, old_quartic = (xp.take(table, merge.at, axis=0) for table in (self._cubics, self._quartics))
        joined = dict[int, Any]()
        moved = [xp.zeros_like(means), xp.zeros_like(means)]
        old_trace = np.zeros(len(cells))
        scatter_of = cells % self._shape[1] if self._tied else cells
        total = self.weights.reshape(self._shape).sum(axis=0) if self._tied else self.weights
        share = np.divide(merge.n1, total[scatter_of], out=np.zeros_like(n2), where=merge.n1 > 0)
        added = np.bincount(scatter_of, n2, self._n_scatters)[scatter_of]
        for s, new in scatters.items():
            old = self._scatters[s]
            mine = self._sent((scatter_of == s).astype(np.float64))[:, None]
            difference = merge.spread * mine
            joined[s] = old + new + difference.T @ difference
            moved[0] = moved[0] + (merge.old_shift * mine) @ old
            moved[1] = moved[1] + (merge.new_shift * mine) @ new
            if (share[scatter_of == s] > 0).any():
                old_trace[scatter_of == s] = float(xp.sum(xp.linalg.diagonal(old)))
        share_, old_trace_ = self._sent(share)[:, None], self._sent(share * old_trace)[:, None]
        sides = (
            (merge.n1_, old_trace_, share_ * moved[0], merge.old_shift, old_cubic, old_quartic),
            (merge.n2_, trace, self._sent(n2 / added)[:, None] * moved[1], merge.new_shift, cubic, quartic),
        )
        shifted = [_shift_matrix_model(xp, *side) for side in sides]
        for s, scatter in joined.items():
            self._scatters[s] = scatter
        self._means = merge.put(self._means, merge.mean)
        self._cubics = merge.put(self._cubics, shifted[0][0] + shifted[1][0])
        quartics = shifted[0][1] + shifted[1][1]
        self._quartics = merge.put(self._quartics, xp.where(quartics < 0, xp.zeros_like(quartics), quartics))

    # ---- variances

    def _add_variances(self, X: Any, blocks: list[_Block], cells: Codes, n2: Doubles, means: Any) -> None:
        xp, d = self._xp, self._d
        parts = []
        for block in blocks:
            y = self._centred(X, block, means, xp.float64)
            member = self._membership(block, xp.float64)
            member = member if block.weights is None else member * block.weights[None, :]
            parts.append(member @ xp.concat([y * y, y * y * y, y * y * y * y], axis=1))
        powers = self._gathered(blocks, parts, len(n2))
        new = [powers[:, i * d : (i + 1) * d] for i in range(3)]
        merge = _Merge(self, cells, n2, means)
        old = [xp.take(table, merge.at, axis=0) for table in (self._squares, self._cubics, self._quartics)]
        sides = ((merge.n1_, merge.old_shift, old), (merge.n2_, merge.new_shift, new))
        cubic, quartic = xp.zeros_like(means), xp.zeros_like(means)
        for n, delta, (variance, third, fourth) in sides:
            square = delta * delta
            cubic = cubic + third + 3 * variance * delta + n * square * delta
            quartic = quartic + fourth + 4 * third * delta + 6 * variance * square + n * square * square
        self._squares = merge.put(self._squares, old[0] + new[0] + merge.spread * merge.spread)
        self._means = merge.put(self._means, merge.mean)
        self._cubics, self._quartics = merge.put(self._cubics, cubic), merge.put(self._quartics, quartic)

    # ---- the way back

    def home(self) -> tuple[Doubles, ...]:
        """Copy the sums to NumPy arrays, in the order and the shapes of the core's."""
        K, G = self._shape
        means, cubics, quartics = (
            np.array(to_numpy(table), dtype=np.float64) for table in (self._means, self._cubics, self._quartics)
        )
        if self._model.matrices:
            scatters = np.empty(self._model.shape(K, G, self._d))
            for own, there in zip(scatters.reshape(-1, self._d, self._d), self._scatters, strict=True):
                own[...] = to_numpy(there)
                own += own.T.copy()  # products round the two triangles as they like
                own /= 2
        else:
            scatters = np.array(to_numpy(self._squares), dtype=np.float64).reshape(K, G, self._d)
        return (
            self.weights.reshape(K, G),
            self.weight_squares.reshape(K, G),
            means.reshape(K, G, self._d),
            scatters,
            cubics.reshape(K, G, self._d),
            quartics.reshape(self._model.quartic_shape(K, G, self._d)),
        )


class _Merge:
    """What the means of some cells have to do with those of as many new rows."""

    def __init__(self, sums: DeviceSums, cells: Codes, n2: Doubles, means: Any) -> None:
        self._sums, self._cells = sums, cells
        xp, sent = sums._xp, sums._sent
        self.n1, both = sums.weights[cells], sums.weights[cells] + n2
        self.at = sent(cells)
        self.n1_, self.n2_ = (sent(n)[:, None] for n in (self.n1, n2))
        old = xp.take(sums._means, self.at, axis=0)
        difference = (means - old) * sent((self.n1 > 0).astype(np.float64))[:, None]
        self.old_shift = -sent(n2 / both)[:, None] * difference
        self.new_shift = sent(self.n1 / both)[:, None] * difference
        self.spread = sent(np.sqrt(self.n1 / both * n2))[:, None] * difference
        self.mean = means - self.new_shift

    def put(self, table: Any, rows: Any) -> Any:
        """Replace the rows of the cells in a table of all: without writing into it, which some libraries refuse."""
        index = np.arange(len(self._sums.weights))
        index[self._cells] = len(index) + np.arange(len(self._cells))
        xp = self._sums._xp
        return xp.take(xp.concat([table, rows], axis=0), self._sums._sent(index), axis=0)


def _shift_matrix_model(
    xp: Any, n: Any, trace: Any, moved: Any, delta: Any, cubic: Any, quartic: Any
) -> tuple[Any, Any]:
    """Third and fourth moments about another point, as in the core."""
    square = xp.sum(delta * delta, axis=1, keepdims=True)
    quartic = quartic + 4 * xp.sum(delta * moved, axis=1, keepdims=True)
    quartic = quartic + 4 * xp.sum(cubic * delta, axis=1, keepdims=True) + 2 * trace * square + n * square * square
    return cubic + trace * delta + 2 * moved + n * square * delta, quartic


def _ordinary(weights: Doubles) -> bool:
    """Whether single precision holds the weights, and what they multiply."""
    return bool(weights.min() > _SMALLEST and weights.max() < _LARGEST)


def _check_memory(like: Any, n_scatters: int, n_groups: int, tied: bool) -> None:
    free, of_one = free_memory(like), 8 * int(like.shape[1]) ** 2
    # Those of the rows before, of the new ones, and both together while one replaces the other.
    needed = 3 * n_scatters * of_one
    if free is not None and needed > free:
        tie = "" if tied else f"covariance='tied' ({3 * n_groups * of_one / 2**30:.1f} GiB), "
        msg = (
            f"The sums of {n_scatters} covariances of {like.shape[1]} features take {needed / 2**30:.1f} GiB on "
            f"{device_of(like)}, where {free / 2**30:.1f} GiB are free. The way out: {tie}covariance='diagonal', fewer "
            "features, or rows in the memory of the processor."
        )
        raise MemoryError(msg)
