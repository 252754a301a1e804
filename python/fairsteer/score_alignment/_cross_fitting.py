"""Alignment fitted on scores of rows that the classifier was not trained on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.parallel import Parallel, delayed

from fairsteer._utils.folds import check_fold_classes, rows_of, stratified_splits
from fairsteer._utils.input import few, warn_caller
from fairsteer._utils.types import Codes, Doubles
from fairsteer.score_alignment._cells import Aggregate, Cells, Constraint, Maps
from fairsteer.score_alignment._monotone import MonotoneAlignment
from fairsteer.score_alignment._offsets import OffsetAlignment
from fairsteer.score_alignment._scores import Scores, class_scores


def align(
    scores: Scores,
    cells: Cells,
    max_gap: float,
    shrinkage: float,
    aggregate: Aggregate = "max",
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
    shrinkage : float
        With more than two classes, how many rows the classifier's own probabilities count for in a cell.
    aggregate : {"max", "rms"}
        With more than two classes, whether `max_gap` bounds the largest gap or the root mean square over classes.
    calibrate : bool
        With more than two classes, whether the probabilities are calibrated for each group first.
    """
    if scores.values.ndim == 1:
        return MonotoneAlignment.fit(scores, cells, max_gap)
    return OffsetAlignment.fit(scores, cells, max_gap, shrinkage, aggregate, calibrate)


def cross_fitted_alignment(
    estimator: Any,
    X: Any,
    y: npt.NDArray[Any],
    *,
    y_codes: Codes,
    group_codes: Codes,
    weight: Doubles,
    classes: npt.NDArray[Any],
    groups: npt.NDArray[Any],
    fit_params: Mapping[str, Any],
    predict_params: Mapping[str, Any],
    cv: Any,
    constraint: Constraint,
    max_gap: float = 0.0,
    aggregate: Aggregate = "max",
    calibrate: bool = False,
    shrinkage: float = 10.0,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> tuple[Maps, Cells]:
    """Fit maps on out-of-fold scores of a classifier.

    Parameters
    ----------
    estimator : classifier
        It is cloned, unless it is a FrozenEstimator.
    X, y, y_codes, group_codes, weight : of n_samples rows each
        Rows; those with a negative code or weight zero take no part.
    classes, groups : ndarray
        Labels of the codes.
    fit_params, predict_params : mapping
        Keywords for the classifier, each of n_samples rows.
    cv, constraint, max_gap, aggregate, calibrate, shrinkage, n_jobs, verbose
        As for ScoreAligner.

    Returns
    -------
    maps : Maps
        Fitted.
    cells : Cells
        The rows that they were fitted on.
    """
    kept = (group_codes >= 0) & (weight > 0)
    splits = stratified_splits(cv, X, y_codes, group_codes, kept, frozen=isinstance(estimator, FrozenEstimator))
    found = Parallel(n_jobs=n_jobs, verbose=verbose)(
        delayed(_score_fold)(estimator, X, y, train, test, classes, fit_params, predict_params)
        for train, test in splits
    )
    tested = np.zeros(len(y), dtype=np.intp)
    for test, _ in found:
        tested[test] += 1
    if (tested > 1).any():
        msg = f"cv={cv!r} tests {(tested > 1).sum()} of {len(y)} rows more than once; the test rows must not overlap."
        raise ValueError(msg)
    use = tested == 1
    # Weights of mean 1, unless they stand for repeated rows, so that their scale does not count for rows.
    weight = weight * max(1.0, weight[use].sum() / np.square(weight[use]).sum())
    cells = Cells(y_codes[use], group_codes[use], weight[use], len(classes), len(groups), constraint)
    _check_cells(cells, classes, groups)
    maps = align(Scores.joined(len(y), found).take(use), cells, max_gap, shrinkage, aggregate, calibrate)
    if maps.budget > max_gap + 1 / np.sqrt(cells.totals[cells.totals > 0].min()):  # about two standard errors
        warn_caller(
            f"Gaps of {'up to' if aggregate == 'max' else 'about'} {maps.budget:.2g} stay between the groups' "
            "true-positive rates: the classes of one "
            f"group are told apart better, and to come down to max_gap={max_gap:g} its predictions would have to be "
            "made worse at random. Better features for the other group are the way out."
        )
    return maps, cells


def _score_fold(
    estimator: Any,
    X: Any,
    y: npt.NDArray[Any],
    train: Codes | None,
    test: Codes,
    classes: npt.NDArray[Any],
    fit_params: Mapping[str, Any],
    predict_params: Mapping[str, Any],
) -> tuple[Codes, Scores]:
    """Scores of the test rows by a clone that is trained on others (None: on none)."""
    model = clone(estimator)
    if train is not None:
        rows, labels, *values = rows_of((X, y, *fit_params.values()), train)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the fit on all rows has said what there is to say
            model.fit(rows, labels, **dict(zip(fit_params, values, strict=True)))
        check_fold_classes(model, labels, classes)
    rows, *values = rows_of((X, *predict_params.values()), test)
    return test, class_scores(model, rows, classes, dict(zip(predict_params, values, strict=True)), test)


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
