"""Before and after on held-out rows: the numbers behind the command line's table."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fairsteer.classifier import IdealDistributionClassifier
from fairsteer.groups import GroupEncoder
from fairsteer.metrics import Gap, gaps, group_metrics
from fairsteer.transformer import FairSteeringTransformer

__all__ = ["Comparison", "Score", "cross_validate", "deal_folds", "quoting_warnings"]


@dataclass(frozen=True)
class Score:
    """How one classifier does on rows it was not fitted on.

    Attributes
    ----------
    accuracy : float
        Share of rows predicted right.
    gaps : dict of str to Gap
        The three gaps, by name.
    groups : dict of str to ndarray
        The table of `fairsteer.metrics.group_metrics`.
    """

    accuracy: float
    gaps: dict[str, Gap]
    groups: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Comparison:
    """Three classifiers on the same held-out rows.

    Attributes
    ----------
    n_rows, n_folds : int
        Rows, every one of which was held out in one of the folds.
    min_rows : int
        A rate of a group that has fewer rows to compute it from takes no part in the gaps.
    small : list of labels
        Groups of which that is true for some class.
    before, after, bayes : Score
        Logistic regression on the features as they are; the same on the steered features; the Bayes rule of the
        ideal distribution.
    """

    n_rows: int
    n_folds: int
    min_rows: int
    small: list[Any]
    before: Score
    after: Score
    bayes: Score


def deal_folds(cells: NDArray[np.intp], n_folds: int) -> NDArray[np.intp]:
    """Assign rows to folds by a fixed rule, as cards are dealt: cell after cell, in the order of the rows.

    No random number is drawn, and every cell is spread over the folds as evenly as it can be.

    Parameters
    ----------
    cells : ndarray of shape (n_rows,), dtype intp
        Cell (group and class) of every row; the cells of a group have neighbouring numbers.
    n_folds : int
        Number of folds, at least 2.

    Returns
    -------
    ndarray of shape (n_rows,), dtype intp
        Fold of every row.
    """
    folds = np.empty(len(cells), dtype=np.intp)
    folds[np.argsort(cells, kind="stable")] = np.arange(len(cells)) % n_folds
    return folds


def cross_validate(
    encode: Callable[[NDArray[np.bool_]], pd.DataFrame],
    y: NDArray[Any],
    groups: pd.DataFrame,
    folds: NDArray[np.intp],
    steering: FairSteeringTransformer,
    *,
    pos_label: Any = None,
    min_rows: int = 30,
    advance: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Predict every row by classifiers fitted on the rows of the other folds.

    Parameters
    ----------
    encode : callable
        Given the rows to learn from (a mask of shape (n_rows,)), returns the numeric features of all rows.
    y : ndarray of shape (n_rows,)
        Classes.
    groups : DataFrame of shape (n_rows, n_columns)
        Sensitive columns without missing values.
    folds : ndarray of shape (n_rows,), dtype intp
        Fold in which a row is held out.
    steering : FairSteeringTransformer
        Refitted for every fold.
    pos_label : label, optional
        The positive class of the gaps.
    min_rows : int, default=30
        A rate of a group that has fewer rows to compute it from takes no part in the gaps.
    advance : callable, optional
        Called with 1 after every fold.

    Returns
    -------
    Comparison
    """
    predicted = {name: np.empty_like(y) for name in ("before", "after", "bayes")}
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        features = encode(train)
        split = _Split(features[train], y[train], groups[train], features[test], groups[test])
        predicted["before"][test] = split.before()
        predicted["after"][test] = split.after(steering)
        predicted["bayes"][test] = split.bayes(steering)
        advance(1)
    scores = {name: _score(y, guess, groups, pos_label, min_rows) for name, guess in predicted.items()}
    return Comparison(len(y), len(np.unique(folds)), min_rows, _small(y, groups, min_rows), **scores)


@dataclass(frozen=True)
class _Split:
    """Rows to fit on and rows to predict."""

    X: pd.DataFrame
    y: NDArray[Any]
    groups: pd.DataFrame
    X_test: pd.DataFrame
    groups_test: pd.DataFrame

    def before(self) -> NDArray[Any]:
        return np.asarray(_logistic_regression().fit(self.X, self.y).predict(self.X_test))

    def after(self, steering: FairSteeringTransformer) -> NDArray[Any]:
        steering.fit(self.X, self.y, sensitive_features=self.groups)
        steered = steering.transform(self.X, sensitive_features=self.groups)
        classifier = _logistic_regression().fit(steered, self.y)
        return np.asarray(classifier.predict(steering.transform(self.X_test, sensitive_features=self.groups_test)))

    def bayes(self, steering: FairSteeringTransformer) -> NDArray[Any]:
        classifier = IdealDistributionClassifier(steering=steering).fit(self.X, self.y, sensitive_features=self.groups)
        return np.asarray(classifier.predict(self.X_test, sensitive_features=self.groups_test))


@contextmanager
def quoting_warnings(tell: Callable[[str], None]) -> Iterator[None]:
    """Hand every warning raised inside the block to `tell`, each text once.

    Parameters
    ----------
    tell : callable
        Receives the text of a warning, on one line.

    Yields
    ------
    None
    """
    seen: set[str] = set()

    def quote(message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if text not in seen:
            seen.add(text)
            tell(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = quote
        yield


def _logistic_regression() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))


def _small(y: NDArray[Any], groups: pd.DataFrame, min_rows: int) -> list[Any]:
    """List the groups with fewer than `min_rows` rows of some class."""
    encoder = GroupEncoder().fit(groups)
    classes, y_codes = np.unique(y, return_inverse=True)
    cells = encoder.encode(groups) * len(classes) + y_codes
    counts = np.bincount(cells, minlength=len(encoder.groups_) * len(classes)).reshape(-1, len(classes))
    return [label for label, row in zip(encoder.groups_.tolist(), counts, strict=True) if row.min() < min_rows]


def _score(y: NDArray[Any], predicted: NDArray[Any], groups: pd.DataFrame, pos_label: Any, min_rows: int) -> Score:
    return Score(
        accuracy=float(np.mean(predicted == y)),
        gaps=gaps(y, predicted, sensitive_features=groups, pos_label=pos_label, min_rows=min_rows),
        groups=group_metrics(y, predicted, sensitive_features=groups, pos_label=pos_label),
    )
