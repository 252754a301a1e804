"""Alignment fitted on scores of rows that the classifier was not trained on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.utils.parallel import Parallel, delayed

from fairsteer._utils.folds import check_fold_classes, rows_of, stratified_splits
from fairsteer._utils.input import few, warn_caller
from fairsteer._utils.types import Codes, Doubles
from fairsteer.score_alignment._cells import Agg, Cells, Constraint, Maps
from fairsteer.score_alignment._monotone import MonotoneAlignment
from fairsteer.score_alignment._offsets import OffsetAlignment
from fairsteer.score_alignment._scores import Scores, class_scores

HeldOutScores = Callable[[Codes | None, Codes], Scores]

#: Rows that a classifier's own probabilities count for in a cell, with more than two classes.
PRIOR_ROWS = 10.0


def align(
    scores: Scores,
    cells: Cells,
    max_gap: float = 0.0,
    prior_rows: float = PRIOR_ROWS,
    agg: Agg = "max",
    calibrate: bool = False,
) -> Maps:
    """Fit the maps for the number of classes.

    Parameters
    ----------
    scores : Scores
        Out-of-fold scores.
    cells : Cells
        The same rows.
    max_gap : float
        Gap to leave between groups, in [0, 1].
    prior_rows : float
        With more than two classes, how many rows the classifier's own probabilities count for in a cell.
    agg : {"max", "rms"}
        With more than two classes, whether `max_gap` bounds the largest gap or the root mean square over classes.
    calibrate : bool
        With more than two classes, whether the probabilities are calibrated for each group first.
    """
    if scores.values.ndim == 1:
        return MonotoneAlignment.fit(scores, cells, max_gap)
    return OffsetAlignment.fit(scores, cells, max_gap, prior_rows, agg, calibrate)


def refitted_scores(
    estimator: Any,
    X: Any,
    y: npt.NDArray[Any],
    classes: npt.NDArray[Any],
    fit_params: Mapping[str, Any],
    predict_params: Mapping[str, Any],
) -> HeldOutScores:
    """Scores of rows by clones of a classifier that are fitted without them; a FrozenEstimator is used as it is.

    Parameters
    ----------
    estimator : classifier
        It is cloned, unless it is a FrozenEstimator.
    X, y : of n_samples rows each
        Rows and their classes.
    classes : ndarray
        Labels that every training fold must hold.
    fit_params, predict_params : mapping
        Keywords for the classifier, each of n_samples rows.
    """

    def scores(train: Codes | None, test: Codes) -> Scores:
        model = clone(estimator)
        if train is not None:
            rows, labels, *values = rows_of((X, y, *fit_params.values()), train)
            model.fit(rows, labels, **dict(zip(fit_params, values, strict=True)))
            check_fold_classes(labels, classes)
        rows, *values = rows_of((X, *predict_params.values()), test)
        return class_scores(model, rows, classes, dict(zip(predict_params, values, strict=True)), test)

    return scores


def cross_fitted_alignment(
    held_out_scores: HeldOutScores,
    X: Any,
    *,
    y_codes: Codes,
    group_codes: Codes,
    weight: Doubles,
    classes: npt.NDArray[Any],
    groups: npt.NDArray[Any],
    cv: Any,
    constraint: Constraint,
    frozen: bool = False,
    max_gap: float = 0.0,
    agg: Agg = "max",
    calibrate: bool = False,
    prior_rows: float = PRIOR_ROWS,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> tuple[Maps, Cells, Scores]:
    """Fit maps on out-of-fold scores of a classifier.

    Parameters
    ----------
    held_out_scores : callable
        Gives the scores of rows to test by a classifier that is fitted to rows to train on, both as positions.
    X, y_codes, group_codes, weight : of n_samples rows each
        Rows; those with a negative code or weight zero take no part.
    classes, groups : ndarray
        Labels of the codes.
    frozen : bool, default=False
        Whether there is no training, and all rows are tested at once.
    cv, constraint, max_gap, agg, calibrate, prior_rows
        As for ScoreAligner.
    n_jobs, verbose
        Folds at the same time, and what joblib tells of them.

    Returns
    -------
    maps : Maps
        Fitted.
    cells : Cells
        The rows that they were fitted on.
    scores : Scores
        The scores of these.
    """
    kept = (group_codes >= 0) & (weight > 0)
    folds = list(stratified_splits(cv, X, y_codes, group_codes, kept, frozen=frozen))
    found = Parallel(n_jobs=n_jobs, verbose=verbose)(
        delayed(_silently)(held_out_scores, train, test, silent=train is not None) for train, test in folds
    )
    tests = [test for _, test in folds]
    use = rows_tested_once(tests, len(y_codes), cv)
    scores = Scores.joined(len(y_codes), list(zip(tests, found, strict=True)))
    cells = Cells.of_rows(
        y_codes[use], group_codes[use], weight[use], n_classes=len(classes), n_groups=len(groups), constraint=constraint
    )
    scores = scores.take(use)
    maps = alignment_of_rows(
        scores, cells, classes, groups, max_gap=max_gap, prior_rows=prior_rows, agg=agg,
        calibrate=calibrate,
    )  # fmt: skip
    return maps, cells, scores


def rows_tested_once(tests: Sequence[Codes], n_rows: int, cv: Any) -> npt.NDArray[np.bool_]:
    """Find the rows that are in a test fold, (n_rows,); none may be in two."""
    tested = np.zeros(n_rows, dtype=np.intp)
    for test in tests:
        tested[test] += 1
    if (tested > 1).any():
        msg = f"cv={cv!r} tests {(tested > 1).sum()} of {n_rows} rows more than once; the test rows must not overlap."
        raise ValueError(msg)
    return np.asarray(tested == 1)


def alignment_of_rows(
    scores: Scores,
    cells: Cells,
    classes: npt.NDArray[Any],
    groups: npt.NDArray[Any],
    *,
    max_gap: float = 0.0,
    prior_rows: float = PRIOR_ROWS,
    agg: Agg = "max",
    calibrate: bool = False,
) -> Maps:
    """Fit maps on out-of-fold scores; say what cannot be aligned, and where gaps have to stay."""
    _check_cells(cells, classes, groups)
    maps = align(scores, cells, max_gap, prior_rows, agg, calibrate)
    if maps.budget > max_gap + 1 / np.sqrt(cells.totals[cells.totals > 0].min()):  # about two standard errors
        warn_caller(
            f"Gaps of {'up to' if agg == 'max' else 'about'} {maps.budget:.2g} stay between the groups' "
            "true-positive rates: the classes of one "
            f"group are told apart better, and to come down to max_gap={max_gap:g} its predictions would have to be "
            "made worse at random. Better features for the other group are the way out."
        )
    return maps


def _silently(held_out_scores: HeldOutScores, train: Codes | None, test: Codes, *, silent: bool) -> Scores:
    with warnings.catch_warnings():
        if silent:
            warnings.simplefilter("ignore", UserWarning)  # the fit on all rows has said what there is to say
        return held_out_scores(train, test)


def _check_cells(cells: Cells, classes: npt.NDArray[Any], groups: npt.NDArray[Any]) -> None:
    """Warn about classes that a group has no rows of, whose rates cannot be made equal."""
    totals = cells.totals
    names = classes[cells.compared].tolist()
    if len(classes) == 2 and not totals.any():
        msg = f"No row of class {names[0]!r} is left to align on."
        raise ValueError(msg)
    if cells.constraint == "equal_opportunity":
        empty = [f"of class {names[k]!r} in group {groups.tolist()[a]!r}" for k, a in np.argwhere(totals == 0)]
    else:
        empty = [f"of group {label!r}" for label in groups[totals[0] == 0].tolist()]
    if empty:
        warn_caller(
            f"There is no out-of-fold row {few(empty)}: the rates there are not known and take no part in the "
            "alignment."
        )
