"""Held-out rows to calibrate group probabilities on: Gaussian ones are too sure of themselves in many dimensions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fairsteer._utils.types import Codes, Floats
from fairsteer.transformer._maps import row_chunks

Hashes = npt.NDArray[np.uint64]


N_FOLDS = 5


#: Distinct rows that the calibration looks at; more would cost time and change nothing.
MAX_ROWS = 10_000


def held_out_folds(rows: Floats, cells: Codes) -> tuple[Codes, Codes]:
    """Divide rows by their contents, so that neither their order nor their repetition matters.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Rows.
    cells : ndarray of shape (n,)
        Codes of subgroups, each of which is spread over the folds.

    Returns
    -------
    folds : ndarray of shape (n,)
        From 0 to ``N_FOLDS - 1``; equal rows of a subgroup share one.
    sample : ndarray of shape (m,)
        Positions of all copies of at most `MAX_ROWS` distinct rows, to evaluate.
    """
    hashes = _row_hashes(rows)
    order = np.lexsort((hashes, cells))
    hash_changes, cell_changes = np.diff(hashes[order]) != 0, np.diff(cells[order]) != 0
    rank = np.cumsum(np.append(0, hash_changes | cell_changes))
    first = np.append(True, cell_changes)
    folds = np.empty(len(rows), dtype=np.intp)
    folds[order] = (rank - rank[first][np.cumsum(first) - 1] + cells[order]) % N_FOLDS
    distinct = np.sort(hashes)
    distinct = distinct[np.append(True, np.diff(distinct) != 0)]
    if len(distinct) <= MAX_ROWS:
        return folds, np.arange(len(rows))
    return folds, np.flatnonzero(hashes < distinct[MAX_ROWS])


def _row_hashes(rows: Floats) -> Hashes:
    """64 bits from the values of every row, the same in every floating-point type that holds them."""
    factors = _mix(np.arange(1, rows.shape[1] + 1, dtype=np.uint64)) | np.uint64(1)
    hashes = np.empty(len(rows), dtype=np.uint64)
    for chunk in row_chunks(len(rows)):
        bits = (rows[chunk].astype(np.float64, order="C") + 0.0).view(np.uint64)  # -0.0 + 0.0 is 0.0
        hashes[chunk] = _mix(((bits ^ (bits >> np.uint64(32))) * factors).sum(axis=1, dtype=np.uint64))
    return hashes


def _mix(x: Hashes) -> Hashes:
    """Finish as SplitMix64 does (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
