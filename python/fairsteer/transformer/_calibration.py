"""Group probabilities that held-out rows agree with: Gaussian ones are too sure of themselves in many dimensions."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from fairsteer._utils.calibration import VectorScaling
from fairsteer._utils.types import Codes, Doubles, Floats
from fairsteer.moments import SubgroupMoments
from fairsteer.transformer._maps import row_chunks
from fairsteer.transformer._reading import Batch

Hashes = npt.NDArray[np.uint64]


N_FOLDS = 5


#: Distinct rows that the calibration looks at; more would cost time and change nothing.
MAX_ROWS = 10_000


def group_log_proba(model: SubgroupMoments, rows: Floats) -> Doubles:
    """Log-probabilities of the groups of rows in the coordinates of a model, (n, n_groups), up to a constant a row."""
    log_proba = np.empty((len(rows), model.n_groups))
    covariances = model._positive_definite()[0]
    for chunk in row_chunks(len(rows), model.weights.size):
        log_proba[chunk] = np.logaddexp.reduce(model._log_joint(rows[chunk].astype(np.float64), covariances), axis=1)
    return log_proba


def group_proba(model: SubgroupMoments, rows: Floats, calibration: VectorScaling | None) -> Doubles:
    """Probabilities of the groups of rows in the coordinates of a model, (n, n_groups), calibrated."""
    if model.n_groups == 1:
        return np.ones((len(rows), 1))
    log_proba = group_log_proba(model, rows)
    if calibration is not None:
        log_proba = calibration.apply(log_proba)
    proba: Doubles = softmax(log_proba, axis=1)
    return proba


def calibrate_groups(transformer: Any, rows: Floats, batch: Batch) -> VectorScaling | None:
    """Compare the groups' probabilities with the groups of rows that were held out; None where nobody will ask.

    Parameters
    ----------
    transformer : GroupMapTransformer
        Its moments are known.
    rows : ndarray of shape (n, d)
        Rows of the fit in the coordinates of the model.
    batch : Batch
        The same rows as they were given, with their codes.
    """
    if transformer.unknown_group == "error" or len(transformer.groups_) == 1:
        return None
    folds, sample = held_out_folds(batch.rows, batch.y_codes * len(batch.groups) + batch.group_codes)
    kept = transformer.moments_.covariance
    factors = transformer._class_factors(batch) if kept == "tied" else None
    parts = []
    for fold in range(N_FOLDS):
        part = batch._replace(y_codes=np.where(folds == fold, batch.y_codes, -1))
        parts.append(transformer._batch_moments(rows, part, factors, covariance=kept))
    log_proba = np.empty((len(sample), len(transformer.groups_)))
    for fold in range(N_FOLDS):
        rest = functools.reduce(SubgroupMoments.merge, (part for i, part in enumerate(parts) if i != fold))
        y_codes = np.where(folds == fold, -1, batch.y_codes)
        model = transformer._borrowed(transformer._shrunk(rest, rows, y_codes, batch.group_codes))
        held_out = np.flatnonzero(folds[sample] == fold)
        log_proba[held_out] = group_log_proba(model, rows[sample[held_out]])
    weight = np.ones(len(sample)) if batch.sample_weight is None else batch.sample_weight[sample]
    return VectorScaling.fit(log_proba, transformer._group_of_label[batch.group_codes[sample]], weight)


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
    hashes = row_hashes(rows)
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


def row_hashes(rows: Floats) -> Hashes:
    """64 bits from the values of every row, the same in every floating-point type that holds them."""
    factors = mix(np.arange(1, rows.shape[1] + 1, dtype=np.uint64)) | np.uint64(1)
    hashes = np.empty(len(rows), dtype=np.uint64)
    for chunk in row_chunks(len(rows)):
        bits = (rows[chunk].astype(np.float64, order="C") + 0.0).view(np.uint64)  # -0.0 + 0.0 is 0.0
        hashes[chunk] = mix(((bits ^ (bits >> np.uint64(32))) * factors).sum(axis=1, dtype=np.uint64))
    return hashes


def mix(x: Hashes) -> Hashes:
    """Finish as SplitMix64 does (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
