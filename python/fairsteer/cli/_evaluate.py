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
from fairsteer.metrics import Gap, gaps, group_metrics
from fairsteer.transformer import FairSteeringTransformer

__all__ = ["Comparison", "Score", "compare", "hold_out", "quoting_warnings"]


@dataclass(frozen=True)
class Score:
    """How one classifier does on the held-out rows.

    Attributes
    ----------
    accuracy : float
        Share of held-out rows predicted right.
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
    """Three classifiers on the same held-out rows, and the fit they share.

    Attributes
    ----------
    n_train, n_test : int
        Rows fitted on and rows held out.
    before, after, bayes : Score
        Logistic regression on the features as they are; the same on the steered features; the Bayes
        rule of the ideal distribution.
    steering : FairSteeringTransformer
        Fitted on the training rows.
    """

    n_train: int
    n_test: int
    before: Score
    after: Score
    bayes: Score
    steering: FairSteeringTransformer


def hold_out(cells: NDArray[np.intp], test_size: float) -> NDArray[np.bool_]:
    """Pick held-out rows by a fixed rule: evenly spaced within every cell, in file order.

    Row ``r`` of its cell (from 0) is held out when ``floor((r + 1) t) > floor(r t)``, so no random
    number is drawn and every cell gives the share ``t`` of its rows, rounded down.

    Parameters
    ----------
    cells : ndarray of shape (n_rows,), dtype intp
        Cell (class and group) of every row.
    test_size : float in (0, 1)
        Share ``t`` of rows to hold out.

    Returns
    -------
    ndarray of shape (n_rows,), dtype bool
        True where a row is held out.
    """
    order = np.argsort(cells, kind="stable")
    sizes = np.bincount(cells)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(cells), dtype=np.intp)
    rank[order] = np.arange(len(cells)) - np.repeat(starts, sizes)
    return np.asarray(np.floor((rank + 1) * test_size) > np.floor(rank * test_size))


def compare(
    encoded: pd.DataFrame,
    y: NDArray[Any],
    groups: pd.DataFrame,
    held_out: NDArray[np.bool_],
    steering: FairSteeringTransformer,
    *,
    pos_label: Any = None,
) -> Comparison:
    """Fit on the rows that are not held out and score on those that are.

    Parameters
    ----------
    encoded : DataFrame of shape (n_rows, n_features)
        Numeric features without missing values.
    y : ndarray of shape (n_rows,)
        Classes.
    groups : DataFrame of shape (n_rows, n_columns)
        Sensitive columns without missing values.
    held_out : ndarray of shape (n_rows,), dtype bool
        Rows to score on.
    steering : FairSteeringTransformer
        Unfitted; it is fitted in place.
    pos_label : label, optional
        The positive class of the gaps.

    Returns
    -------
    Comparison
    """
    train = ~held_out
    X, X_test, g, g_test = encoded[train], encoded[held_out], groups[train], groups[held_out]

    def score(predict: Callable[[], NDArray[Any]]) -> Score:
        return _score(y[held_out], predict(), g_test, pos_label)

    steering.fit(X, y[train], sensitive_features=g)
    steered = _logistic_regression().fit(steering.transform(X, sensitive_features=g), y[train])
    bayes = IdealDistributionClassifier(steering).fit(X, y[train], sensitive_features=g)
    return Comparison(
        n_train=int(train.sum()),
        n_test=int(held_out.sum()),
        before=score(lambda: _logistic_regression().fit(X, y[train]).predict(X_test)),
        after=score(lambda: steered.predict(steering.transform(X_test, sensitive_features=g_test))),
        bayes=score(lambda: bayes.predict(X_test, sensitive_features=g_test)),
        steering=steering,
    )


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


def _score(y: NDArray[Any], predicted: NDArray[Any], groups: pd.DataFrame, pos_label: Any) -> Score:
    return Score(
        accuracy=float(np.mean(np.asarray(predicted) == y)),
        gaps=gaps(y, predicted, sensitive_features=groups, pos_label=pos_label),
        groups=group_metrics(y, predicted, sensitive_features=groups, pos_label=pos_label),
    )
