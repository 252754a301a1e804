"""Monotone maps of single features, one for each feature and group, onto values that occur."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fairsteer._utils.types import Codes, Doubles, Floats
from fairsteer._utils.weights import rows_behind
from fairsteer.transformer._maps import row_chunks

#: Values of a feature that are kept one by one; of a feature with more, as many quantiles.
MAX_VALUES = 1000

# Mean of the Kolmogorov distribution, sqrt(pi / 2) log 2: how far apart two equal distributions look, times the root
# of the number of rows.
_CHANCE = 0.868731


@dataclass(frozen=True, eq=False)
class MonotoneMaps:
    """One non-decreasing map for each feature and group, as a table of values and what becomes of them.

    A feature whose values repeat is mapped from value to value: what was an integer stays one, and no value arises in
    one group that the others cannot have. What lies between two values, or beyond the last, moves by as much as its
    neighbour, but not past the other neighbour's image. A feature of many values is interpolated.
    """

    values: Doubles
    """Values of the features in ascending order, one feature after the other, (n_values,)."""
    starts: npt.NDArray[np.intp]
    """Where the values of each feature begin, and their end, (d + 1,)."""
    images: Doubles
    """What becomes of the values, by group, (n_groups, n_values)."""
    discrete: npt.NDArray[np.bool_]
    """Whether a feature's values are all that occur, (d,)."""
    strength: float = 1.0

    @classmethod
    def fit(
        cls,
        rows: Floats,
        y_codes: Codes,
        codes: Codes,
        weight: Doubles | None,
        *,
        class_weights: Doubles,
        group_shares: Doubles,
        standardize: bool = True,
        reference: int | None = None,
    ) -> MonotoneMaps:
        """Match the groups' distributions, feature by feature.

        Parameters
        ----------
        rows : ndarray of shape (n, d)
            Rows.
        y_codes, codes : ndarray of shape (n,)
            Classes and groups.
        weight : ndarray of shape (n,) or None
            Weights.
        class_weights : ndarray of shape (n_classes,)
            Weights, the same in every group, with which the classes make up a group's distribution; 0 for one that
            does not count.
        group_shares : ndarray of shape (n_groups,)
            Weights of the groups in the common distribution; they sum to 1.
        standardize : bool, default=True
            Whether the classes weigh alike in every group; else as they do in the group, those that count.
        reference : int, default=None
            Group whose distribution is the common one. None: the average of the groups' quantile functions.
        """
        K, G = len(class_weights), len(group_shares)
        weight = np.ones(len(rows)) if weight is None else weight
        cell = codes * K + y_codes
        totals, squares = (np.bincount(cell, w, G * K).astype(np.float64).reshape(G, K) for w in (weight, weight**2))
        # A class that a group has no row of does not count there.
        shares = np.where(totals > 0, class_weights if standardize else totals * (class_weights > 0), 0.0)
        shares = shares / shares.sum(axis=1, keepdims=True)
        per_row = weight * np.divide(shares, totals, out=np.zeros_like(shares), where=totals > 0).ravel()[cell]
        counted = per_row > 0
        # Variance of a standardised distribution function, but for the factor F (1 - F).
        behind = rows_behind(totals, squares)
        noise = np.sum(np.divide(shares**2, behind, out=np.zeros_like(shares), where=totals > 0), axis=1)
        noise = (1 - 2 * group_shares) * noise + group_shares**2 @ noise

        n_rows = float(rows_behind(totals.sum(), squares.sum()))
        values, images, discrete, starts = [], [], [], [0]
        for j in range(rows.shape[1]):
            column = rows[:, j].astype(np.float64)
            found, inverse = np.unique(column[counted], return_inverse=True)
            repeats = len(found) <= min(MAX_VALUES, n_rows / 2)
            if len(found) > MAX_VALUES:
                found, inverse = _quantiles(column[counted], per_row[counted])
            table = np.zeros((G, len(found)))
            np.add.at(table, (codes[counted], inverse), per_row[counted])
            values.append(found)
            images.append(_match(found, table, group_shares, noise, reference, snap=repeats))
            discrete.append(repeats)
            starts.append(starts[-1] + len(found))
        return cls(np.concatenate(values), np.array(starts), np.concatenate(images, axis=1), np.array(discrete))

    @property
    def moves(self) -> npt.NDArray[np.bool_]:
        """Whether a group moves at all, (n_groups,)."""
        return np.asarray((self.images != self.values).any(axis=1)) & (self.strength > 0)

    def __call__(self, strength: float) -> MonotoneMaps:
        """Go that part of the way."""
        return MonotoneMaps(self.values, self.starts, self.images, self.discrete, strength)

    def apply(
        self, rows: Floats, codes: Codes, proba: Callable[[Doubles], Doubles] | None = None
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Map rows; the contract of :meth:`AffineMaps.apply`."""
        moves = self.moves
        mixed = codes < 0
        moved = np.where(mixed, moves.any(), moves[codes])
        mapped = np.array(rows, order="C")
        for a in np.flatnonzero(moves):
            some = np.flatnonzero(codes == a)
            mapped[some] = self._group(rows[some], int(a))
        if proba is not None:
            positions = np.flatnonzero(moved & mixed)
            for chunk in row_chunks(len(positions)):
                some_rows = rows[positions[chunk]].astype(np.float64)
                share = proba(some_rows)
                mapped[positions[chunk]] = sum(
                    share[:, [a]] * self._group(some_rows, a) for a in range(len(self.images))
                )
        return mapped, moved

    def _group(self, rows: Floats, a: int) -> Doubles:
        out = rows.astype(np.float64)
        for j, (start, end) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            values, images = self.values[start:end], self.images[a, start:end]
            if (values != images).any():
                out[:, j] = _evaluate(out[:, j], values, images, snap=bool(self.discrete[j]))
        if self.strength < 1:
            out = (1 - self.strength) * rows + self.strength * out
        return out

    def inverse(self, labels: Sequence[Any]) -> MonotoneMaps:
        """Undo the maps; of several values that became one, the one that moved least is taken.

        Raises
        ------
        ValueError
            At a partial strength, at which the tables are no longer tables.
        """
        del labels  # every map has an inverse of this kind
        if 0 < self.strength < 1:
            msg = f"Monotone maps have an inverse at strength 0 and 1, not at {self.strength:g}."
            raise ValueError(msg)
        if self.strength == 0:
            return self
        values, images, starts = [], [], [0]
        for start, end in zip(self.starts, self.starts[1:], strict=False):
            own = self.values[start:end]
            every = np.unique(np.concatenate([own, self.images[:, start:end].ravel()]))
            values.append(every)
            images.append(np.stack([_undo(every, own, image) for image in self.images[:, start:end]]))
            starts.append(starts[-1] + len(every))
        return MonotoneMaps(np.concatenate(values), np.array(starts), np.concatenate(images, axis=1), self.discrete)


def _quantiles(column: Doubles, weight: Doubles) -> tuple[Doubles, npt.NDArray[np.intp]]:
    """Values that occur, at even steps of the weight; and for every row the nearest of them below or at it."""
    order = np.argsort(column, kind="stable")
    levels = np.cumsum(weight[order]) / weight.sum()
    at = np.searchsorted(levels, np.linspace(0, 1, MAX_VALUES)[1:-1])
    ends = [column[order[0]], *column[order[np.minimum(at, len(order) - 1)]], column[order[-1]]]
    found = np.unique(ends)
    return found, np.searchsorted(found, column, side="right") - 1


def _match(
    values: Doubles, table: Doubles, group_shares: Doubles, noise: Doubles, reference: int | None, *, snap: bool
) -> Doubles:
    """Images of the values in every group; `table` has the groups' distributions."""
    common = group_shares @ table
    # A difference that chance alone would make is no difference: the positive part of James and Stein's factor.
    apart = np.abs(np.cumsum(table - common, axis=1)).max(axis=1)
    chance = _CHANCE * np.sqrt(np.maximum(noise, 0))
    kept = np.clip(1 - np.divide(chance**2, apart**2, out=np.ones_like(apart), where=apart > 0), 0, 1)[:, None]
    table = kept * table + (1 - kept) * common
    middle = np.cumsum(table, axis=1) - table / 2
    levels = np.unique(middle)
    quantiles = np.stack([_quantile(levels, own, mass, values) for own, mass in zip(middle, table, strict=True)])
    target = quantiles[reference] if reference is not None else group_shares @ quantiles
    images = np.empty_like(table)
    for a, own in enumerate(middle):
        if a == reference or not kept[a]:
            images[a] = values if a == reference or reference is None else np.interp(own, levels, target)
        else:
            images[a] = np.interp(own, levels, target)
        if snap:
            images[a] = _nearest(images[a], values)
    return np.maximum.accumulate(images, axis=1)


def _quantile(levels: Doubles, middle: Doubles, mass: Doubles, values: Doubles) -> Doubles:
    """Quantile function through the middle of every step, of the values that have any mass."""
    some = mass > 0
    return np.interp(levels, middle[some], values[some])


def _nearest(x: Doubles, values: Doubles) -> Doubles:
    """Nearest of the values; between two that are as near, the one that leaves the value where it was."""
    upper = np.clip(np.searchsorted(values, x), 1, max(len(values) - 1, 1))
    if len(values) == 1:
        return np.full_like(x, values[0])
    low, high = values[upper - 1], values[upper]
    below, above = x - low, high - x
    tie = np.abs(below - above) <= 1e-9 * (high - low)
    closer = np.where(np.abs(low - values) <= np.abs(high - values), low, high)
    return np.where(tie, closer, np.where(below < above, low, high))


def _evaluate(x: Doubles, values: Doubles, images: Doubles, *, snap: bool) -> Doubles:
    at = np.clip(np.searchsorted(values, x, side="right") - 1, 0, len(values) - 1)
    shifted = x + (images[at] - values[at])
    if snap:
        following = images[np.minimum(at + 1, len(values) - 1)]
        between = np.where((x > values[0]) & (x < values[-1]), np.minimum(shifted, following), shifted)
        return np.where(x == values[at], images[at], between)
    inside = np.interp(x, values, images)
    return np.where((x < values[0]) | (x > values[-1]), shifted, inside)


def _undo(every: Doubles, values: Doubles, images: Doubles) -> Doubles:
    """For each value, where it came from: interpolated between images, of those that became one the nearest."""
    distinct = np.unique(images)
    sources = np.array(
        [values[images == image][np.abs(values[images == image] - image).argmin()] for image in distinct]
    )
    inside = np.interp(every, distinct, sources)
    low, high = every < distinct[0], every > distinct[-1]
    return np.asarray(
        np.where(low, every + sources[0] - distinct[0], np.where(high, every + sources[-1] - distinct[-1], inside))
    )
