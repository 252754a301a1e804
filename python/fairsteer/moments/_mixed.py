"""Mixed third and fourth moments, with which the scale of features can be chosen after rows were added up.

Ledoit and Wolf's intensity needs the sum of fourth powers of the lengths of rows, in the scale in which covariances are
shrunk. Of features whose scale is not known yet, such as those of one site of several, the sums of
``z[j]**2 * z[k]`` and ``z[j]**2 * z[k]**2`` are kept for every pair of features, about the mean of the subgroup.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fairsteer._utils.types import Codes, Doubles

# Rows whose squares are formed at once.
_ROWS = 4096


class Mixed(NamedTuple):
    """Sums over the rows of a subgroup about its mean."""

    weight: float
    mean: Doubles
    """(d,)"""
    scatter: Doubles
    """Of ``z[j] * z[k]``, (d, d)."""
    thirds: Doubles
    """Of ``z[j]**2 * z[k]``, (d, d)."""
    fourths: Doubles
    """Of ``z[j]**2 * z[k]**2``, (d, d)."""

    @classmethod
    def of_rows(cls, rows: Doubles, weights: Doubles) -> Mixed:
        """Add up weighted rows (m, d)."""
        d = rows.shape[1]
        weight = float(weights.sum())
        if weight == 0:
            return cls(0.0, np.zeros(d), *(np.zeros((d, d)) for _ in range(3)))
        mean = weights @ rows / weight
        mean += weights @ (rows - mean) / weight
        scatter, thirds, fourths = (np.zeros((d, d)) for _ in range(3))
        for start in range(0, len(rows), _ROWS):
            z = rows[start : start + _ROWS] - mean
            squares = z * z
            weighted = weights[start : start + _ROWS, None] * squares
            scatter += (weights[start : start + _ROWS, None] * z).T @ z
            thirds += weighted.T @ z
            fourths += weighted.T @ squares
        return cls(weight, mean, scatter, thirds, fourths)

    def about(self, mean: Doubles) -> Mixed:
        """Move the sums to another point, as if it were the mean."""
        shift = self.mean - mean
        square = shift**2
        variances = np.diag(self.scatter)
        w = self.weight
        # (z + s)_j^2 (z + s)_k and (z + s)_j^2 (z + s)_k^2, expanded; sums of z are zero.
        thirds = self.thirds + np.outer(variances, shift) + 2 * shift[:, None] * self.scatter
        thirds += w * np.outer(square, shift)
        fourths = self.fourths + 2 * self.thirds * shift + 2 * self.thirds.T * shift[:, None]
        fourths += np.outer(variances, square) + np.outer(square, variances)
        fourths += 4 * np.outer(shift, shift) * self.scatter + w * np.outer(square, square)
        return Mixed(w, mean, self.scatter + w * np.outer(shift, shift), thirds, fourths)

    def merged(self, other: Mixed) -> Mixed:
        """Add up the rows of both."""
        weight = self.weight + other.weight
        if other.weight == 0 or weight == 0:
            return self
        if self.weight == 0:
            return other
        mean = self.mean + (other.weight / weight) * (other.mean - self.mean)
        first, second = self.about(mean), other.about(mean)
        return Mixed(weight, mean, *(one + two for one, two in zip(first[2:], second[2:], strict=True)))


def add_rows(
    mixed: tuple[Doubles, Doubles],
    sums: tuple[Doubles, Doubles, Doubles],
    X: NDArray[Any],
    y: Codes,
    a: Codes,
    weights: Doubles | None,
) -> None:
    """Add rows to the mixed sums (K, G, d, d) of all cells, in place.

    Parameters
    ----------
    mixed : tuple of ndarray
        Third and fourth sums.
    sums : tuple of ndarray
        Weights, means and scatters of the cells before these rows.
    X, y, a, weights
        The rows, as `SubgroupMoments.update` has them.
    """
    n_groups = mixed[0].shape[1]
    cell = np.where((y >= 0) & (a >= 0), y * n_groups + a, -1)
    for code in np.unique(cell[cell >= 0]).tolist():
        place = divmod(code, n_groups)
        rows = np.flatnonzero(cell == code)
        of_rows = np.ones(len(rows)) if weights is None else weights[rows]
        before = _of_cell(mixed, sums, place)
        after = before.merged(Mixed.of_rows(np.asarray(X[rows], dtype=np.float64), of_rows))
        mixed[0][place], mixed[1][place] = after.thirds, after.fourths


def add_cells(
    mixed: tuple[Doubles, Doubles],
    sums: tuple[Doubles, Doubles, Doubles],
    other: tuple[Doubles, Doubles],
    of_other: tuple[Doubles, Doubles, Doubles],
    places: Any,
) -> None:
    """Add the mixed sums of other moments to those of the cells that `places` (from `np.ix_`) names, in place."""
    classes, groups = (index.ravel().tolist() for index in places)
    for k, to_k in enumerate(classes):
        for a, to_a in enumerate(groups):
            after = _of_cell(mixed, sums, (to_k, to_a)).merged(_of_cell(other, of_other, (k, a)))
            mixed[0][to_k, to_a], mixed[1][to_k, to_a] = after.thirds, after.fourths


def _of_cell(mixed: tuple[Doubles, Doubles], sums: tuple[Doubles, Doubles, Doubles], place: Any) -> Mixed:
    return Mixed(float(sums[0][place]), *(array[place] for array in (*sums[1:], *mixed)))
