"""The rows that gaps are measured on: all of a table, or as many as say it well enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ._reading import Table
from ._table import TableEncoder

__all__ = ["MeasuredRows", "evenly_spaced", "most_measured"]

# Numbers that the classifiers of every fold are fitted to: rows times features times classes.
_MOST_NUMBERS = 12_000_000
# Fewer rows leave rates too uncertain, and more make them no more certain than anybody asks.
_FEWEST, _MOST = 10_000, 100_000
# Rows of a class in a group that are kept where it has them, whatever its share of all.
_LEAST_OF_A_CELL = 200


@dataclass(frozen=True)
class MeasuredRows:
    """Rows that are predicted by fits that did not see them.

    Attributes
    ----------
    table : Table
        The rows, with a class and a group each.
    features : DataFrame of float64
        Their features.
    y : ndarray of shape (n_rows,)
        Their classes.
    groups : DataFrame of object
        Their groups.
    encoder : TableEncoder
        What the features were made by.
    """

    table: Table
    features: pd.DataFrame
    y: NDArray[np.generic]
    groups: pd.DataFrame
    encoder: TableEncoder

    def prepare(self, may_learn: NDArray[np.bool_]) -> pd.DataFrame:
        """Features, gaps filled with the medians of some of the rows, as a fold needs them."""
        encoder = self.encoder.refitted(self.table, may_learn)
        # Without gaps there is nothing to learn: all folds have the same features, in the same memory.
        return self.features if encoder is self.encoder else encoder.encode(self.table)


def most_measured(n_features: int, n_classes: int) -> int:
    """Rows that gaps are measured on if nobody says how many."""
    return max(_FEWEST, min(_MOST, _MOST_NUMBERS // (n_features * n_classes)))


def evenly_spaced(cells: NDArray[np.intp], most: int) -> NDArray[np.bool_]:
    """Choose about `most` rows, evenly spaced within every cell; a small one keeps up to 200 of its rows, and any one.

    Parameters
    ----------
    cells : ndarray of shape (n_rows,)
        Code of the class and group of every row.
    most : int
        How many rows.

    Returns
    -------
    ndarray of shape (n_rows,), dtype bool
        All rows, if they are no more.
    """
    n_rows = len(cells)
    if n_rows <= most:
        return np.ones(n_rows, dtype=bool)
    chosen = np.zeros(n_rows, dtype=bool)
    sizes = np.bincount(cells)
    least = max(1, min(_LEAST_OF_A_CELL, most // np.count_nonzero(sizes)))
    order = np.argsort(cells, kind="stable")
    ends = np.cumsum(sizes)
    for end, size in zip(ends.tolist(), sizes.tolist(), strict=True):
        n = min(size, max(least, round(size * most / n_rows)))
        chosen[order[end - size + np.arange(n) * size // max(n, 1)]] = True
    return chosen
