"""The one engine of held-out predictions: every row is predicted by fits that did not see it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn import get_config
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import validate_data

from fairsteer._utils.columns import column_positions, select_columns
from fairsteer._utils.estimators import takes_parameter, unfrozen, weight_params
from fairsteer._utils.folds import rows_of, stratified_splits
from fairsteer._utils.input import ROW_CHECKS, check_classes, in_numpy, warn_caller
from fairsteer._utils.types import Codes, Doubles, Floats
from fairsteer._utils.weights import check_sample_weight
from fairsteer.classifier import IdealDistributionClassifier, IdealDistributionClassifierCV
from fairsteer.groups import UNSEEN, GroupEncoder
from fairsteer.metrics._intervals import MeasuredGaps, PredictedRows
from fairsteer.metrics._rates import encode_classes
from fairsteer.transformer import FairSteeringTransformer

Prepare = Callable[[npt.NDArray[np.bool_]], Any]


class Method(NamedTuple):
    """A way to predict rows: steer them, then classify them.

    A bare classifier in place of a method is fitted on the rows with all their columns, and gets the groups as
    `sensitive_features` where its ``fit`` and ``predict`` take them.
    """

    steering: Any
    """FairSteeringTransformer, fitted or not: a clone is fitted for every fold, once for all methods with this very
    object. In a FrozenEstimator it is used as it is. None: rows are not steered, only their sensitive columns left
    out."""
    classifier: Any = None
    """Classifier of the rows, a clone of which is fitted for every fold. None: the Bayes rule of the ideal
    distribution."""
    strength: float | None = None
    """Strength of the steering; None: its own."""


class AsGiven(NamedTuple):
    """A classifier of the rows as they were given, whatever features are made for the other methods."""

    classifier: Any


@cache
def default_classifier() -> Any:
    """Classifier to judge a steering by where the user names none; always the same, so that a fold fits it once."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))


def predict_held_out(
    methods: Mapping[Any, Any],
    X: Any,
    y: Any,
    *,
    sensitive_features: Any = None,
    sample_weight: Any = None,
    cv: Any = 5,
    prepare: Prepare | None = None,
    advance: Callable[[int], None] = lambda _: None,
    optional: Collection[Any] = (),
    keep: bool = True,
) -> HeldOut:
    """Predict every row by fits on the other folds, by several methods on the same folds.

    Parameters
    ----------
    methods : mapping
        Name to `Method`, to a tuple of its fields, or to a classifier.
    X : array-like or dataframe of shape (n_samples, n_features)
        Rows.
    y : array-like of shape (n_samples,)
        Class labels.
    sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
        Groups; None where a method names `sensitive_columns` of `X`. Rows without one are left out, with a warning.
    sample_weight : array-like of shape (n_samples,), default=None
        Non-negative weights of the rows, in the fits and in what is measured.
    cv : int, cross-validation generator or iterable, default=5
        Splits; an integer: so many folds, stratified by class and group, without shuffling.
    prepare : callable, default=None
        Called for every fold with the rows that may be learnt from, a mask of shape (n_samples,); returns the features
        of all rows. None: `X`.
    advance : callable, default
        Called with 1 after every fold.
    optional : collection
        Names of methods that are left out if some fold has too few rows for them.
    keep : bool, default=True
        Whether `HeldOut.trials` have what was fitted, and the features of every fold.

    Returns
    -------
    HeldOut
        The predictions by method, and the rows that have one from every method.

    Raises
    ------
    ValueError
        If no row is left, no fold has a row to test, or `y` or the groups do not match `X`.
    """
    methods = {name: _as_method(method) for name, method in methods.items()}
    rows = read_rows(methods, X, y, sensitive_features, sample_weight)
    return run_methods(methods, rows, cv, prepare, advance, optional=optional, keep=keep)


def _as_method(method: Any) -> Any:
    return Method(*method) if isinstance(method, tuple) else method


class HeldOut(NamedTuple):
    """Predictions of held-out rows."""

    y_true: npt.NDArray[Any]
    """Classes of the rows that were tested, (n_tested,)."""
    y_pred: dict[Any, npt.NDArray[Any]]
    """Classes predicted by every method, (n_tested,) each."""
    proba: dict[Any, Doubles]
    """Probabilities of the classes, (n_tested, n_classes) each, of the methods that were asked for them and know."""
    tested: npt.NDArray[np.intp]
    """Positions of these rows among those given; a row of a group that a training fold lacks is not tested."""
    places: npt.NDArray[np.intp]
    """Their positions among the rows that take part."""
    codes: Codes
    """Their groups, as positions in `groups`."""
    groups: npt.NDArray[Any]
    weight: Doubles
    classes: npt.NDArray[Any]
    """All classes of the rows that take part."""
    trials: list[Trial]

    def rows(self, *names: Any, pos_label: Any = None) -> PredictedRows:
        """Give what some methods predicted as codes of classes and groups; classifiers in the order of `names`."""
        known = self.classes
        for name in names:
            if not np.isin(self.y_pred[name], known).all():
                encode_classes(self.y_true, self.y_pred[name], None, None)  # raises where they are spelt otherwise
                known = np.unique(np.concatenate([known, self.y_pred[name]]))
        coded = [encode_classes(self.y_true, self.y_pred[name], known, pos_label) for name in names]
        classes, true, _ = coded[0]
        pred = np.array([codes for _, _, codes in coded])
        return PredictedRows(true, pred, self.codes, self.weight, classes, self.groups)


class Trial(NamedTuple):
    """One fold."""

    test: npt.NDArray[np.intp]
    """Positions among the rows that take part."""
    fitted: dict[Any, Any]
    """What was fitted without them: the steering of a method, or a classifier; nothing where it was not kept."""
    values: Floats | None
    """Features of all rows, as a steering sees them; None where they were not kept."""


def measure_strengths(
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
    confidence_level: float = 0.95,
    n_resamples: int = 1000,
    random_state: int = 0,
) -> list[MeasuredGaps]:
    """Measure a classifier behind a transformer at several strengths, all on the same held-out rows.

    Parameters
    ----------
    transformer : FairSteeringTransformer
        A clone of it is fitted on the training rows of every fold, once for all strengths.
    X, y, sensitive_features, sample_weight, estimator, pos_label, cv, min_rows, confidence_level, n_resamples, \
    random_state
        As for `steering_report`.
    strengths : sequence of float in [0, 1]
        Strengths.

    Returns
    -------
    list of MeasuredGaps
        One for each strength, with bootstrap intervals.
    """
    classifier = default_classifier() if estimator is None else estimator
    methods = {strength: Method(transformer, classifier, strength) for strength in strengths}
    found = predict_held_out(
        methods, X, y, sensitive_features=sensitive_features, sample_weight=sample_weight, cv=cv
    ).rows(*methods, pos_label=pos_label)
    return [
        found.measure(i, confidence_level, "bootstrap", min_rows, n_resamples, random_state)
        for i in range(len(methods))
    ]


# ---- the rows


class Rows(NamedTuple):
    """Rows with a known group and a positive weight."""

    X: Any
    sensitive_features: Any
    values: Floats | None
    """Features without the sensitive columns; None where no method asks for them."""
    y: npt.NDArray[Any] | None
    codes: Codes
    """Groups, as positions in `groups`."""
    groups: npt.NDArray[Any]
    weight: Doubles
    weighted: bool
    kept: npt.NDArray[np.bool_]
    """Which of the rows that were given these are."""
    given: Any
    """The rows as they were given, where `X` was made from them."""


def read_rows(
    methods: Mapping[Any, Any], X: Any, y: Any, sensitive_features: Any, sample_weight: Any, *, known: Any = None
) -> Rows:
    """Read rows for some methods; those whose group is missing, or unknown to the transformer `known`, are left out."""
    reader = known
    if reader is None:
        steerings = [unfrozen(m.steering) for m in methods.values() if isinstance(m, Method) and m.steering]
        reader = clone(steerings[0]) if steerings else None
    values: Floats | None = None
    if reader is not None:
        values, labels = reader._read_rows(X, sensitive_features, reset=known is None)
    else:
        labels = sensitive_features
        columns = next((c for m in methods.values() if (c := named_columns(m)) is not None), None)
        if labels is None and columns is not None:
            labels = columns_of(X, columns)
        if any(isinstance(m, Method) for m in methods.values()):
            values = check_array(in_numpy(X), **ROW_CHECKS)
    n_rows = len(X) if isinstance(X, list) else X.shape[0]
    encoder = GroupEncoder() if known is None else known._encoder
    if known is not None and (labels is None) != (encoder is None):
        known._known_codes(labels, values, "steering_report")  # raises: groups are needed, or there are none
    codes = np.zeros(n_rows, dtype=np.intp)
    groups = np.array([0])
    if labels is not None:
        codes = encoder.partial_fit_encode(labels) if known is None else encoder.encode(labels)
        check_consistent_length(X, codes)
        groups = encoder.groups_
    weight = check_sample_weight(sample_weight, codes)
    weighted = weight is not None and bool(np.ptp(weight) > 0)
    weight = np.ones(n_rows) if weight is None else weight
    if y is not None:
        y = check_classes(y, codes)
    kept = (codes >= 0) & (weight > 0)
    if (codes < 0).any():
        warn_caller(f"{(codes < 0).sum()} of {n_rows} rows have a missing or unknown group and are left out.")
    if not kept.any():
        msg = f"No row is left: of {n_rows}, all have a missing or unknown group or sample_weight zero."
        raise ValueError(msg)
    X, sensitive_features, values, y = (take_rows(table, kept) for table in (X, sensitive_features, values, y))
    return Rows(X, sensitive_features, values, y, codes[kept], groups, weight[kept], weighted, kept, X)


def named_columns(method: Any) -> Any:
    """Columns of `X` that hold the groups, if a classifier, or the steering within it, names them."""
    estimator = unfrozen(method.steering if isinstance(method, Method) else method)
    parts = (estimator, getattr(estimator, "steering", None))
    return next((named for part in parts if (named := getattr(part, "sensitive_columns", None)) is not None), None)


def columns_of(X: Any, columns: Any) -> Any:
    names, n_columns = names_and_number(X)
    return select_columns(X, column_positions(columns, X, names, n_columns))


def names_and_number(X: Any) -> tuple[Any, int]:
    """Names of the columns of a table, where it has any, and their number."""
    reader: Any = BaseEstimator()
    validate_data(reader, X, skip_check_array=True)
    return getattr(reader, "feature_names_in_", None), reader.n_features_in_


def take_rows(table: Any, rows: npt.NDArray[Any]) -> Any:
    return None if table is None else rows_of((table,), rows)[0]


def fitted_steering(estimator: Any) -> FairSteeringTransformer | None:
    """Find the steering that an estimator is, or has."""
    if isinstance(estimator, IdealDistributionClassifierCV):
        estimator = estimator.best_estimator_
    if isinstance(estimator, IdealDistributionClassifier):
        steering: FairSteeringTransformer = estimator.steering_
        return steering
    return estimator if isinstance(estimator, FairSteeringTransformer) else None


# ---- the folds


def run_methods(
    methods: Mapping[Any, Any],
    rows: Rows,
    cv: Any = 5,
    prepare: Prepare | None = None,
    advance: Callable[[int], None] = lambda _: None,
    *,
    predict: bool = True,
    optional: Collection[Any] = (),
    probable: Collection[Any] = (),
    keep: bool = True,
) -> HeldOut:
    """Fit and predict, fold by fold; without anything to predict only steerings are fitted.

    Methods named in `optional` are left out if a fold refuses them; those in `probable` give probabilities too. What
    was fitted, and the features of every fold, is kept for who asks afterwards, unless `keep` is False.
    """
    methods = dict(methods)
    y_codes = np.zeros(len(rows.codes), dtype=np.intp)
    if rows.y is not None:
        y_codes = np.unique(rows.y, return_inverse=True)[1]
    place = np.cumsum(rows.kept) - 1  # among those that take part
    all_y, all_codes = np.zeros((2, len(rows.kept)), dtype=np.intp)
    all_y[rows.kept], all_codes[rows.kept] = y_codes, rows.codes
    trials: list[Trial] = []
    found: dict[Any, list[npt.NDArray[Any]]] = {name: [] for name in methods}
    proba: dict[Any, list[Doubles | None]] = {name: [] for name in probable}
    for train, test in stratified_splits(cv, rows.kept, all_y, all_codes, rows.kept, frozen=False):
        if train is None or not len(train) or not len(test):
            continue
        fold = _Fold(rows, place[train], place[test], prepare)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the fit on all rows has said what there is to say
            for name, method in tuple(methods.items()):
                if predict and rows.y is not None:
                    try:
                        found[name].append(fold.predict(method))
                    except ValueError:
                        if name not in optional:
                            raise
                        del methods[name], found[name]
                        continue
                    if name in proba:
                        proba[name].append(fold.proba(method))
                elif isinstance(method, Method) and method.steering is not None:
                    fold.fitted_steering(method)
            fitted: dict[Any, Any] = {}
            values = None
            if keep:
                fitted = {name: fold.fitted(method) for name, method in methods.items()}
                steering = next((s for s in map(fitted_steering, fitted.values()) if s is not None), None)
                values = rows.values if steering is None else fold.read_values(steering)
        trials.append(Trial(fold.test, fitted, values))
        advance(1)
    if not trials:
        msg = f"cv={cv!r} leaves no row of a known group to test."
        raise ValueError(msg)
    # Of rows that are tested twice the last prediction counts.
    order = np.concatenate([trial.test for trial in trials])
    tested, last = np.unique(order[::-1], return_index=True)
    pick = len(order) - 1 - last
    return HeldOut(
        y_true=np.empty(0) if rows.y is None else rows.y[tested],
        y_pred={name: np.concatenate(pieces)[pick] for name, pieces in found.items() if pieces},
        proba={
            name: np.concatenate(known)[pick]
            for name, pieces in proba.items()
            if len(known := [piece for piece in pieces if piece is not None]) == len(trials)
        },
        tested=np.flatnonzero(rows.kept)[tested],
        places=tested,
        codes=rows.codes[tested],
        groups=rows.groups,
        weight=rows.weight[tested],
        classes=np.empty(0) if rows.y is None else np.unique(rows.y),
        trials=trials,
    )


@dataclass
class _Answer:
    """A fitted classifier, and what it is asked about."""

    model: Any
    X: Any
    params: dict[str, Any]
    y_pred: npt.NDArray[Any] | None = None


class _Fold:
    """Rows to fit on and to predict; every fit is made once."""

    def __init__(
        self, rows: Rows, train: npt.NDArray[np.intp], test: npt.NDArray[np.intp], prepare: Prepare | None
    ) -> None:
        self.rows, self.train, self.test = rows, train, test
        self.X, self.values = rows.X, rows.values
        if prepare is not None:
            may_learn = np.zeros(len(rows.kept), dtype=bool)
            may_learn[np.flatnonzero(rows.kept)[train]] = True
            self.X = take_rows(prepare(may_learn), rows.kept)
            self.values = None
        self._steerings: dict[int, Any] = {}
        self._classifiers: dict[int, Any] = {}
        self._answers: dict[tuple[Any, ...], _Answer] = {}
        self._steered: dict[tuple[int, float], tuple[Floats, Floats]] = {}

    def fitted(self, method: Any) -> Any:
        """Give what was fitted for a method: its steering, or the classifier itself."""
        if isinstance(method, Method):
            return None if method.steering is None else self.fitted_steering(method)
        return self._classifiers.get(id(method))

    def fitted_steering(self, method: Method) -> Any:
        """Clone of the steering of a method, fitted on the training rows."""
        if isinstance(method.steering, FrozenEstimator):
            return method.steering.estimator
        key = id(method.steering)
        if key not in self._steerings:
            # All rows have a group: how others would be inferred need not be learnt.
            steering = clone(method.steering).set_params(unknown_group="error")
            self._steerings[key] = steering.fit(
                take_rows(self.X, self.train),
                None if getattr(method.steering, "_class_blind", False) else take_rows(self.rows.y, self.train),
                sensitive_features=take_rows(self.rows.sensitive_features, self.train),
                sample_weight=self.rows.weight[self.train] if self.rows.weighted else None,
            )
        return self._steerings[key]

    def predict(self, method: Any) -> npt.NDArray[Any]:
        """Classes of the rows to test; of methods that are made of the same objects they are found once."""
        answer = self._answer(method)
        if answer.y_pred is None:
            answer.y_pred = np.asarray(answer.model.predict(answer.X, **answer.params))
        return answer.y_pred

    def proba(self, method: Any) -> Doubles | None:
        """Probabilities of all classes; None where the classifier has none, or does not know all classes."""
        answer = self._answer(method)
        known = getattr(answer.model, "classes_", None)
        if self.rows.y is None or known is None or not hasattr(answer.model, "predict_proba"):
            return None
        if not np.array_equal(known, np.unique(self.rows.y)):
            return None
        return np.asarray(answer.model.predict_proba(answer.X, **answer.params), dtype=np.float64)

    def _answer(self, method: Any) -> _Answer:
        key: tuple[Any, ...] = (id(method),)
        if isinstance(method, Method):
            key = (id(method.steering), id(method.classifier), method.strength)
        if key not in self._answers:
            self._answers[key] = self._fitted_to_answer(method)
        return self._answers[key]

    def _fitted_to_answer(self, method: Any) -> _Answer:
        if not isinstance(method, Method):
            return self._answer_by_itself(method)
        if method.classifier is None:
            rule = IdealDistributionClassifier.of_steering(self.fitted_steering(method), method.strength)
            labels = take_rows(self.rows.sensitive_features, self.test)
            return _Answer(rule, take_rows(self.X, self.test), {"sensitive_features": labels})
        model, (train, test) = clone(method.classifier), self._moved(method)
        weight = (weight_params(model, self.rows.weight[self.train]) if self.rows.weighted else None) or {}
        return _Answer(model.fit(train, take_rows(self.rows.y, self.train), **weight), test, {})

    def _moved(self, method: Method) -> tuple[Floats, Floats]:
        """Features of the rows to fit on and to predict, steered."""
        steering = None if method.steering is None else self.fitted_steering(method)
        values = self.read_values(steering)
        if steering is None:
            return values[self.train], values[self.test]
        strength = steering._strength() if method.strength is None else method.strength
        key = id(steering), strength
        if key not in self._steered:
            codes, maps = codes_in(steering, self.rows), steering._group_maps(strength)
            train, test = (steering._move(values[some], codes[some], maps) for some in (self.train, self.test))
            self._steered[key] = train, test
        return self._steered[key]

    def read_values(self, steering: Any) -> Floats:
        """Features without sensitive columns; only those that were prepared for the fold are yet to be read."""
        if self.values is None:
            reader = next(iter(self._steerings.values()), steering)
            if reader is None:
                self.values = check_array(in_numpy(self.X), **ROW_CHECKS)
            else:
                self.values = reader._read_rows(self.X, self.rows.sensitive_features, reset=False)[0]
        return self.values

    def _answer_by_itself(self, method: Any) -> _Answer:
        rows, key = self.rows, id(method)
        X, classifier = (rows.given, method.classifier) if isinstance(method, AsGiven) else (self.X, method)
        labels = [take_rows(rows.sensitive_features, some) for some in (self.train, self.test)]
        if key not in self._classifiers and not isinstance(classifier, FrozenEstimator):
            model = clone(classifier)
            params = group_params(model, "fit", labels[0])
            if rows.weighted:
                params |= weight_params(model, rows.weight[self.train]) or {}
            self._classifiers[key] = model.fit(take_rows(X, self.train), take_rows(rows.y, self.train), **params)
        model = self._classifiers.setdefault(key, unfrozen(classifier))
        return _Answer(model, take_rows(X, self.test), group_params(model, "predict", labels[1]))


def codes_in(steering: Any, rows: Rows) -> Codes:
    """Give the groups of rows as positions in those of a fitted steering; negative for those that it does not know."""
    if steering._encoder is None:
        return np.zeros(len(rows.codes), dtype=np.intp)
    place = dict(zip(steering.moments_.groups.tolist(), steering._group_of_label.tolist(), strict=True))
    return np.array([place.get(label, UNSEEN) for label in rows.groups.tolist()], dtype=np.intp)[rows.codes]


def group_params(estimator: Any, method: str, labels: Any) -> dict[str, Any]:
    """Keywords that hand group labels to a method of an estimator; none where it takes none."""
    estimator = unfrozen(estimator)
    if labels is None:
        return {}
    if takes_parameter(getattr(estimator, method), "sensitive_features"):
        return {"sensitive_features": labels}
    if isinstance(estimator, Pipeline):
        if get_config()["enable_metadata_routing"]:
            return {"sensitive_features": labels} if _takes_groups(estimator) else {}
        if method != "fit":
            return group_params(estimator.steps[-1][1], method, labels)
        return {
            f"{name}__sensitive_features": labels
            for name, step in estimator.steps
            if hasattr(step, "fit") and takes_parameter(step.fit, "sensitive_features")
        }
    return {}


def _takes_groups(pipeline: Pipeline) -> bool:
    return any(takes_parameter(s.fit, "sensitive_features") for _, s in pipeline.steps if hasattr(s, "fit"))
