"""Monotone maps of single features, one for each feature and group, onto values that occur."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fairsteer._utils.types import Codes, Doubles, Floats
from fairsteer._utils.weights import rows_behind
from fairsteer.transformer._calibration import Hashes, mix, row_hashes
from fairsteer.transformer._maps import row_chunks

#: Values of a feature that are kept one by one; of a feature with more, as many quantiles.
MAX_VALUES = 1000

# Mean of the Kolmogorov distribution, sqrt(pi / 2) log 2: how far apart two equal distributions look, times the root
# of the number of rows.
_CHANCE = 0.868731

# Rows that share a value of a feature of many values, so that it is a step of the distribution functions.
_ROWS_OF_A_STEP = 5

# Rows of one value are sent to several if no more than this share of them are equal in all other features as well.
_EQUAL_ROWS = 1 / 8

# Levels of distribution functions that are closer than this are one.
_ROUNDING = 1e-12


class Distribution(NamedTuple):
    """Distribution function of a feature: a step at values that repeat, linear between the others."""

    values: Doubles
    """Ascending, (n,)."""
    lower: Doubles
    """Level below each value, (n,); 0 at values below all that occur."""
    upper: Doubles
    """Level at each value, (n,); 1 at values above all that occur."""
    spread: npt.NDArray[np.bool_]
    """Whether rows of the value stand at different heights of its step, (n,); else all at half of it."""

    def quantile(self, level: Doubles, *, discrete: bool) -> Doubles:
        """Values at these levels; of a discrete distribution one that occurs."""
        if discrete:
            at = np.searchsorted(self.upper, level - _ROUNDING)
            return np.asarray(self.values[np.minimum(at, len(self.values) - 1)])
        knots = np.column_stack([self.lower, self.upper]).ravel()
        return np.interp(level, knots, np.repeat(self.values, 2))

    def transported(self, x: Doubles, target: Distribution, share: Doubles, *, discrete: bool) -> Doubles:
        """Take values to those of the same level in another distribution.

        Never decreasing, whatever the `share` in (0, 1] of a step's height at which a row stands.
        """
        values, lower, upper, spread = self
        at = np.clip(np.searchsorted(values, x, side="right") - 1, 0, len(values) - 1)
        own = x == values[at]
        following = np.minimum(at + 1, len(values) - 1)
        within = lower[at] + np.where(spread[at], share, 0.5) * (upper[at] - lower[at])
        if discrete:
            # What lies between two values, or beyond the last, moves as far as its neighbour, but not past the next.
            level = np.where(own, within, np.where(x < values[0], lower[0], upper[at]))
            found = target.quantile(level, discrete=True)
            lowest = target.quantile(np.minimum(lower[following] + 2 * _ROUNDING, upper[following]), discrete=True)
            shifted = x + (found - values[at])
            between = (x > values[0]) & (x < values[-1])
            return np.where(own, found, np.where(between, np.minimum(shifted, np.maximum(lowest, found)), shifted))
        gaps = np.where(following > at, values[following] - values[at], 1.0)
        level = np.where(own, within, upper[at] + (x - values[at]) / gaps * (lower[following] - upper[at]))
        found = target.quantile(level, discrete=False)
        first, last = int(np.searchsorted(upper, 0.0, side="right")), int(np.searchsorted(lower, 1.0)) - 1
        for end, level_of_end, outside in (
            (values[first], lower[first], x < values[first]),
            (values[last], upper[last], x > values[last]),
        ):
            shift = target.quantile(np.array([level_of_end]), discrete=False)[0] - end
            found = np.where(outside, x + shift, found)
        return found


@dataclass(frozen=True, eq=False)
class MonotoneMaps:
    """One non-decreasing map for each feature and group, from the group's distribution to the common one.

    A feature whose values repeat is mapped from value to value: what was an integer stays one, and no value arises in
    one group that the others cannot have. Where rows of one value have to become several, so that the groups'
    distributions agree, each goes to one of them by its own bits, unless these are the same for most: equal rows stay
    equal, and nothing is random. A feature of many values is interpolated.
    """

    values: Doubles
    """Values of the features in ascending order, one feature after the other, (n_values,)."""
    starts: npt.NDArray[np.intp]
    """Where the values of each feature begin, and their end, (d + 1,)."""
    lower: Doubles
    """Level of the groups' distribution functions below each value, (n_groups, n_values)."""
    upper: Doubles
    """The same at each value, (n_groups, n_values)."""
    spread: npt.NDArray[np.bool_]
    """Whether rows of a value may become several, (n_values,)."""
    common_values: Doubles
    """Values of the common distribution of each feature, ascending, (n_common,)."""
    common_starts: npt.NDArray[np.intp]
    """Where they begin, and their end, (d + 1,)."""
    common_lower: Doubles
    """Levels below them, (n_common,)."""
    common_upper: Doubles
    """Levels at them, (n_common,)."""
    discrete: npt.NDArray[np.bool_]
    """Whether a feature's values are all that occur, (d,)."""
    moving: npt.NDArray[np.bool_]
    """Which features of a group move, (n_groups, d)."""
    strength: float = 1.0
    inverted: bool = False
    """Whether the way leads from the common distribution to the groups'."""

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
        min_distinct: int = 2,
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
        min_distinct : int, default=2
            Features of fewer values stay.
        """
        K, G = len(class_weights), len(group_shares)
        weight = np.ones(len(rows)) if weight is None else weight
        cell = codes * K + y_codes
        totals, squares = (np.bincount(cell, w, G * K).astype(np.float64).reshape(G, K) for w in (weight, weight**2))
        # A class that a group has no row of does not count there.
        shares = np.where(totals > 0, class_weights if standardize else totals * (class_weights > 0), 0.0)
        shares = shares / shares.sum(axis=1, keepdims=True)
        per_row = weight * np.divide(shares, totals, out=np.zeros_like(shares), where=totals > 0).ravel()[cell]
        counted = np.flatnonzero(per_row > 0)
        # Variance of a standardised distribution function, but for the factor F (1 - F).
        behind = rows_behind(totals, squares)
        noise = np.sum(np.divide(shares**2, behind, out=np.zeros_like(shares), where=totals > 0), axis=1)
        noise = (1 - 2 * group_shares) * noise + group_shares**2 @ noise

        n_rows = float(rows_behind(totals.sum(), squares.sum()))
        groups, per_row = codes[counted], per_row[counted]
        _, first, distinct = np.unique(_hashes(rows)[counted], return_index=True, return_inverse=True)
        of_distinct = np.bincount(distinct, per_row * group_shares[groups])
        own, spread, targets, discrete, moving = [], [], [], [], []
        for column in rows.T:
            x = column[counted].astype(np.float64)
            found, inverse, n_distinct = _knots(x, per_row)
            repeats = n_distinct <= min(MAX_VALUES, n_rows / 2)
            stays = n_distinct < min_distinct
            at = groups * len(found) + inverse
            table = np.bincount(at, per_row, G * len(found)).reshape(G, -1)
            common = group_shares @ table
            # A difference that chance alone would make is none: the positive part of James and Stein's factor.
            apart = np.abs(np.cumsum(table - common, axis=1)).max(axis=1)
            chance = _CHANCE**2 * np.maximum(noise, 0)
            kept = np.clip(1 - np.divide(chance, apart**2, out=np.ones(G), where=apart > 0), 0, 1)[:, None]
            steps, masses = table, common
            if not repeats:
                exact = x == found[inverse]
                steps = np.bincount(at[exact], per_row[exact], G * len(found)).reshape(G, -1)
                masses = group_shares @ steps
                steps = np.where(masses * n_rows >= _ROWS_OF_A_STEP, steps, 0.0)
            heaviest = np.zeros(len(found))
            np.maximum.at(heaviest, inverse[first], of_distinct)
            spread.append(heaviest <= _EQUAL_ROWS * masses)
            table, steps = (kept * part + (1 - kept) * (group_shares @ part) for part in (table, steps))
            distributions = [
                _distribution(found, *parts, spread[-1], discrete=repeats) for parts in zip(table, steps, strict=True)
            ]
            moves = (kept[:, 0] > 0) | (reference is not None)
            if reference is not None:
                moves[reference] = False
                targets.append(_occurring(distributions[reference], discrete=repeats))
            else:
                targets.append(_average(distributions, group_shares, discrete=repeats))
            own.append(distributions)
            discrete.append(repeats)
            moving.append(moves & (len(found) > 1) & (not stays))
        return cls(
            np.concatenate([parts[0].values for parts in own]),
            np.cumsum([0, *(len(parts[0].values) for parts in own)]),
            np.concatenate([np.stack([part.lower for part in parts]) for parts in own], axis=1),
            np.concatenate([np.stack([part.upper for part in parts]) for parts in own], axis=1),
            np.concatenate(spread),
            np.concatenate([target.values for target in targets]),
            np.cumsum([0, *(len(target.values) for target in targets)]),
            np.concatenate([target.lower for target in targets]),
            np.concatenate([target.upper for target in targets]),
            np.array(discrete),
            np.column_stack(moving),
        )

    @property
    def moves(self) -> npt.NDArray[np.bool_]:
        """Whether a group moves at all, (n_groups,)."""
        return np.asarray(self.moving.any(axis=1) & (self.strength > 0))

    def __call__(self, strength: float) -> MonotoneMaps:
        """Go that part of the way."""
        return replace(self, strength=strength)

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
                    share[:, [a]] * self._group(some_rows, a) for a in range(len(self.moving))
                )
        return mapped, moved

    def _distributions(self, a: int) -> Iterator[tuple[int, Distribution, Distribution]]:
        for j in np.flatnonzero(self.moving[a]):
            of = slice(self.starts[j], self.starts[j + 1])
            common = slice(self.common_starts[j], self.common_starts[j + 1])
            yield (
                int(j),
                Distribution(self.values[of], self.lower[a, of], self.upper[a, of], self.spread[of]),
                Distribution(
                    self.common_values[common],
                    self.common_lower[common],
                    self.common_upper[common],
                    np.zeros(common.stop - common.start, dtype=bool),
                ),
            )

    def _group(self, rows: Floats, a: int) -> Doubles:
        out = rows.astype(np.float64)
        hashes = _hashes(rows)
        for j, own, common in self._distributions(a):
            discrete = bool(self.discrete[j])
            source, target = (common, own) if self.inverted else (own, common)
            out[:, j] = source.transported(out[:, j], target, _uniform(hashes, j), discrete=discrete)
        if self.strength < 1:
            out = (1 - self.strength) * rows + self.strength * out
        return out

    def inverse(self, labels: Sequence[Any]) -> MonotoneMaps:
        """Undo the maps; of several values that became one, the one in the middle is taken.

        Raises
        ------
        ValueError
            At a partial strength, at which values are between those that the distributions know.
        """
        del labels  # every map has an inverse of this kind
        if 0 < self.strength < 1:
            msg = f"Monotone maps have an inverse at strength 0 and 1, not at {self.strength:g}."
            raise ValueError(msg)
        return replace(self, inverted=not self.inverted)


def _hashes(rows: Floats) -> Hashes:
    """Bits of rows, the same in single and in double precision."""
    with np.errstate(over="ignore"):
        return row_hashes(rows.astype(np.float32))


def _uniform(hashes: Hashes, j: int) -> Doubles:
    """Numbers in (0, 1], for every feature others."""
    bits = mix(hashes + np.uint64((j + 1) * 0x9E3779B97F4A7C15 % 2**64))
    return ((bits >> np.uint64(11)).astype(np.float64) + 1) / 2**53


def _knots(column: Doubles, weight: Doubles) -> tuple[Doubles, npt.NDArray[np.intp], int]:
    """Values that occur, the position of every row's, and how many there are.

    Of more than `MAX_VALUES` those at even steps of the weight are taken; a row's is the nearest below or at it.
    """
    low, high = column.min(), column.max()
    if high - low < MAX_VALUES:  # whole numbers of a small range need not be sorted
        place = (column - low).astype(np.intp)
        if (place + low == column).all():
            there = np.bincount(place) > 0
            return low + np.flatnonzero(there), (np.cumsum(there) - 1)[place], int(np.count_nonzero(there))
    order = np.argsort(column, kind="stable")
    ascending = column[order]
    rises = np.concatenate([[False], ascending[1:] > ascending[:-1]])
    inverse = np.empty(len(column), dtype=np.intp)
    n_distinct = 1 + int(np.count_nonzero(rises))
    if n_distinct <= MAX_VALUES:
        found, places = ascending[rises | (np.arange(len(rises)) == 0)], np.cumsum(rises)
    else:
        levels = np.cumsum(weight[order]) / weight.sum()
        at = np.searchsorted(levels, np.linspace(0, 1, MAX_VALUES)[1:-1])
        found = np.unique([ascending[0], *ascending[np.minimum(at, len(order) - 1)], ascending[-1]])
        places = np.searchsorted(found, ascending, side="right") - 1
    inverse[order] = places
    return found, inverse, n_distinct


def _distribution(
    values: Doubles, table: Doubles, steps: Doubles, spread: npt.NDArray[np.bool_], *, discrete: bool
) -> Distribution:
    """Of a group: `table` has the weights at the values and up to the next one, `steps` those at the values alone."""
    levels = np.cumsum(table)
    levels, steps, table = levels / levels[-1], steps / levels[-1], table / levels[-1]
    below = np.concatenate([[0.0], levels[:-1]])
    if discrete:
        return Distribution(values, below, levels, spread)
    # What is no step is in the middle of its weight.
    lower = np.where(steps > 0, below, below + table / 2)
    upper = np.where(steps > 0, np.minimum(below + steps, 1.0), lower)
    some = np.flatnonzero(table > 0)
    knots = np.repeat(values[some], 2), np.column_stack([lower[some], upper[some]]).ravel()
    between = np.interp(values, *knots)
    between[: some[0]], between[some[-1] + 1 :] = 0.0, 1.0
    there = table > 0
    return Distribution(values, np.where(there, lower, between), np.where(there, upper, between), spread)


def _average(distributions: Sequence[Distribution], shares: Doubles, *, discrete: bool) -> Distribution:
    """Average the quantile functions."""
    levels = np.unique(np.concatenate([np.concatenate([part.lower, part.upper]) for part in distributions]))
    levels = levels[np.concatenate([[True], np.diff(levels) > _ROUNDING])]
    values = distributions[0].values
    if len(values) == 1:
        return distributions[0]
    if discrete:
        ends = levels[1:]
        quantiles = np.stack([part.quantile((levels[:-1] + ends) / 2, discrete=True) for part in distributions])
        average = shares @ quantiles
        at = np.clip(np.searchsorted(values, average), 1, len(values) - 1)
        low, high = values[at - 1], values[at]
        # An average between two values is taken to both, so that it stays the average.
        # An average between two values is taken to both, so that it stays the average: to the nearer one alone, the
        # groups' shares would decide by a hair which group moves.
        share = np.clip((average - low) / (high - low), 0, 1)
        share = np.where(np.abs(share - np.round(share)) < _ROUNDING, np.round(share), share)
        cut = ends - share * (ends - levels[:-1])
        table = np.zeros(len(values))
        np.add.at(table, at - 1, cut - levels[:-1])
        np.add.at(table, at, ends - cut)
        return _occurring(_distribution(values, table, table, distributions[0].spread, discrete=True), discrete=True)
    if len(levels) > 4 * MAX_VALUES:
        levels = np.concatenate([levels[[0]], np.linspace(levels[0], levels[-1], 2 * MAX_VALUES)[1:-1], levels[[-1]]])
    average = shares @ np.stack([part.quantile(levels, discrete=False) for part in distributions])
    average = np.maximum.accumulate(average)
    found, first = np.unique(average, return_index=True)
    last = np.append(first[1:], len(average)) - 1
    return Distribution(found, levels[first], levels[last], np.zeros(len(found), dtype=bool))


def _occurring(distribution: Distribution, *, discrete: bool) -> Distribution:
    """Without the values that do not occur."""
    values, lower, upper, spread = distribution
    there = upper - lower > _ROUNDING if discrete else (upper > 0) & (lower < 1)
    return Distribution(values[there], lower[there], upper[there], spread[there])
