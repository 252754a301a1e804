"""The one engine of held-out predictions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fairsteer._utils.estimators import weight_params
from fairsteer._utils.folds import rows_of, stratified_splits
from fairsteer._utils.input import check_classes, few, warn_caller
from fairsteer._utils.types import Codes, Doubles, Floats
from fairsteer._utils.weights import check_sample_weight
from fairsteer.metrics._intervals import MeasuredGaps, PredictedRows
from fairsteer.moments import SubgroupMoments
from fairsteer.transformer import FairSteeringTransformer


def cross_validated(
    transformer: FairSteeringTransformer,
    X: Any,
    y: Any,
    *,
    sensitive_features: Any = None,
    sample_weight: Any = None,
    estimator: Any = None,
    strengths: Sequence[float],
    pos_label: Any = None,
    cv: Any = 5,
    min_rows: int = 30,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> list[MeasuredGaps]:
    """Measure a classifier behind a transformer at several strengths, all on the same held-out rows.

    Parameters
    ----------
    transformer : FairSteeringTransformer
        Clones of it are fitted on the training rows of every fold.
    X, y, sensitive_features, sample_weight, estimator, pos_label, cv, min_rows, confidence, n_resamples, seed
        As for `steering_report`.
    strengths : sequence of float in [0, 1]
        Strengths.

    Returns
    -------
    list of MeasuredGaps
        One for each strength, with bootstrap intervals.
    """
    fitted = clone(transformer).fit(X, y, sensitive_features=sensitive_features, sample_weight=sample_weight)
    rows = read_rows(fitted, X, y, sensitive_features, sample_weight)
    found = []
    for strength in strengths:
        fitted.set_params(strength=strength)
        trials = run_trials(fitted, rows, cv, estimator, same_rows=True)
        predicted = against_rest(predicted_rows(fitted, rows, trials), pos_label)
        found.append(predicted.measure(1, confidence, "bootstrap", min_rows, n_resamples, seed))
    return found


# ---- the rows


class Rows(NamedTuple):
    """Rows with a known group and a positive weight."""

    X: Any
    sensitive_features: Any
    values: Floats
    """Features without the sensitive columns."""
    y: npt.NDArray[Any] | None
    y_codes: Codes
    """Positions in the transformer's classes."""
    labels: Any
    codes: Codes
    """Positions in the transformer's groups."""
    weight: Doubles
    weighted: bool


def read_rows(
    transformer: FairSteeringTransformer, X: Any, y: Any, sensitive_features: Any, sample_weight: Any
) -> Rows:
    values, labels = transformer._read_rows(X, sensitive_features, reset=False)
    if labels is None and transformer._encoder is not None:
        transformer._known_codes(None, values, "steering_report")  # raises: groups are needed
    codes = transformer._training_codes(labels, len(values))
    weight = check_sample_weight(sample_weight, values)
    weighted = weight is not None and bool(np.ptp(weight) > 0)
    weight = np.ones(len(values)) if weight is None else weight
    if y is not None:
        y = check_classes(y, values)
    kept = (codes >= 0) & (weight > 0)
    if (codes < 0).any():
        warn_caller(f"{(codes < 0).sum()} of {len(codes)} rows have a missing or unknown group and are left out.")
    if not kept.any():
        msg = f"No row is left: of {len(codes)}, all have a missing or unknown group or sample_weight zero."
        raise ValueError(msg)
    if y is not None:
        y = y[kept]
    elif not transformer._class_blind:
        transformer._class_codes(None, values)  # raises: y is needed
    (X,) = rows_of((X,), kept)
    if sensitive_features is not None:
        (sensitive_features,) = rows_of((sensitive_features,), kept)
    values, labels = transformer._read_rows(X, sensitive_features, reset=False)
    y_codes = np.zeros(len(values), np.intp) if transformer._class_blind else transformer._class_codes(y, values)
    return Rows(X, sensitive_features, values, y, y_codes, labels, codes[kept], weight[kept], weighted)


def are_of_the_fit(transformer: FairSteeringTransformer, rows: Rows) -> bool:
    """Whether rows have the very moments of the fit."""
    fitted = transformer.moments_
    moments = SubgroupMoments(
        fitted.n_features, classes=fitted.classes, groups=fitted.groups, covariance=fitted.covariance
    )
    codes = rows.codes if transformer._encoder is None else transformer._encoder.encode(rows.labels)
    moments.update(transformer._to_model(rows.values), rows.y_codes, codes, rows.weight)
    scale = np.sqrt(np.abs(fitted.means).max(axis=(0, 1)) ** 2 + fitted._feature_scale() ** 2)
    return bool(
        np.allclose(moments.weights, fitted.weights, rtol=1e-9)
        and (np.abs(moments.means - fitted.means) <= 1e-9 * scale).all()
    )


# ---- held-out rows


class Trial(NamedTuple):
    """Rows that were held out, and what was fitted without them."""

    test: npt.NDArray[np.intp]
    steering: FairSteeringTransformer
    pred: list[npt.NDArray[Any]]
    """Classes predicted before and after steering; empty without `y`."""


def run_trials(
    transformer: FairSteeringTransformer, rows: Rows, cv: Any, estimator: Any, *, same_rows: bool
) -> list[Trial]:
    if estimator is None:
        estimator = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    strata = rows.y_codes if rows.y is None else np.unique(rows.y, return_inverse=True)[1]
    everything = np.ones(len(rows.codes), dtype=bool)
    trials = []
    for train, test in stratified_splits(cv, rows.values, strata, rows.codes, everything, frozen=False):
        if train is None or len(test) == 0:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the fit on all rows has said what there is to say
            steering = _fit_again(transformer, rows, train) if same_rows else transformer
            pred = []
            if rows.y is not None:
                steered = [
                    steering._steered(take_rows(rows.X, part), take_rows(rows.sensitive_features, part))
                    for part in (train, test)
                ]
                for X_train, X_test in ((rows.values[train], rows.values[test]), steered):
                    model = clone(estimator)
                    weight = (weight_params(model, rows.weight[train]) if rows.weighted else None) or {}
                    pred.append(np.asarray(model.fit(X_train, rows.y[train], **weight).predict(X_test)))
        trials.append(Trial(test, steering, pred))
    if not trials:
        msg = f"cv={cv!r} leaves no row of a known group to test."
        raise ValueError(msg)
    return trials


def _fit_again(transformer: FairSteeringTransformer, rows: Rows, train: npt.NDArray[np.intp]) -> Any:
    y = None if transformer._class_blind else take_rows(rows.y, train)
    return clone(transformer).fit(
        take_rows(rows.X, train),
        y,
        sensitive_features=take_rows(rows.sensitive_features, train),
        sample_weight=rows.weight[train] if rows.weighted else None,
    )


def take_rows(table: Any, rows: npt.NDArray[Any]) -> Any:
    return None if table is None else rows_of((table,), rows)[0]


def predicted_rows(transformer: FairSteeringTransformer, rows: Rows, trials: list[Trial]) -> PredictedRows:
    """Predictions for the rows that were held out; of those tested twice, the last."""
    classes, true = transformer.classes_, rows.y_codes
    if transformer._class_blind:
        classes, true = np.unique(np.asarray(rows.y), return_inverse=True)
    position = {label: k for k, label in enumerate(classes.tolist())}
    pred = np.full((2, len(true)), -1, dtype=np.intp)
    for trial in trials:
        for c, labels in enumerate(trial.pred):
            pred[c, trial.test] = [position[label] for label in labels.tolist()]
    kept = (pred >= 0).all(axis=0)
    return PredictedRows(true[kept], pred[:, kept], rows.codes[kept], rows.weight[kept], classes, transformer.groups_)


def against_rest(predicted: PredictedRows, pos_label: Any) -> PredictedRows:
    if pos_label is None:
        return predicted
    classes = predicted.classes.tolist()
    if pos_label not in classes:
        msg = f"pos_label={pos_label!r} is no class; there are {few(map(repr, classes))}."
        raise ValueError(msg)
    k = classes.index(pos_label)
    return predicted._replace(
        true=(predicted.true == k).astype(np.intp),
        pred=(predicted.pred == k).astype(np.intp),
        classes=np.array([False, True]),
    )
