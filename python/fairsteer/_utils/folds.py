"""Folds of cross-validation in which every subgroup takes part."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing

from fairsteer._utils.input import few
from fairsteer._utils.types import Codes


def rows_of(tables: Any, rows: npt.NDArray[Any]) -> list[Any]:
    """Rows, given by mask or positions, of tables in any container; the tables themselves if it is all of them."""
    if rows.dtype == bool:
        if rows.all():
            return list(tables)
        rows = np.flatnonzero(rows)
    # A pandas array, unlike a Series, is unknown to scikit-learn.
    arrays = [hasattr(table, "factorize") and not hasattr(table, "iloc") for table in tables]
    return [
        table.take(rows) if array else _safe_indexing(table, rows) for table, array in zip(tables, arrays, strict=True)
    ]


def stratified_splits(
    cv: Any, X: Any, y_codes: Codes, group_codes: Codes, kept: npt.NDArray[np.bool_], *, frozen: bool
) -> Iterator[tuple[npt.NDArray[np.intp] | None, npt.NDArray[np.intp]]]:
    """Rows to train on (None: there is no training) and to test, those left out excluded."""
    if frozen:
        yield None, np.flatnonzero(kept)
        return
    strata = y_codes * (group_codes.max() + 2) + group_codes
    splitter = check_cv(cv, strata, classifier=True)
    # Strata with too few rows for every fold are joined to those of their class.
    _, stratum, count = np.unique(strata, return_inverse=True, return_counts=True)
    rare = count[stratum] < getattr(splitter, "n_splits", 0)
    strata = np.where(rare, y_codes * (group_codes.max() + 2) - 1, strata)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        splits = list(splitter.split(X, strata))
    for train, test in splits:
        train, test = np.asarray(train), np.asarray(test)
        train, test = train[kept[train]], test[kept[test]]
        # A classifier that takes groups could not score rows of a group that it was trained without.
        yield train, test[np.isin(group_codes[test], group_codes[train])]


def check_fold_classes(labels: Any, classes: npt.NDArray[Any]) -> None:
    """Check that every class is among the labels of a training fold."""
    missing = sorted(set(classes.tolist()) - set(np.unique(labels).tolist()), key=repr)
    if missing:
        msg = (
            f"A training fold has no rows of class {few(map(repr, missing))}: cross-fitting needs every class in every "
            "training fold. Lower cv, leave rare classes out, or fit the classifier yourself, wrap it in "
            "sklearn.frozen.FrozenEstimator and align it on held-out rows."
        )
        raise ValueError(msg)
