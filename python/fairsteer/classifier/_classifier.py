"""The Bayes rule of the ideal distribution, or any classifier on steered rows."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone
from sklearn.utils import check_array, get_tags, indexable
from sklearn.utils.validation import check_is_fitted

from fairsteer._utils.arrays import to_numpy
from fairsteer._utils.estimators import (
    FoundHTMLMixin,
    GroupAwareClassifierMixin,
    HasMethods,
    StrOptions,
    asked_method,
    available_if,
    fit_context,
    weight_params,
)
from fairsteer._utils.folds import check_fold_classes
from fairsteer._utils.html import facts_html
from fairsteer._utils.input import brief, few
from fairsteer._utils.types import Codes, Doubles, Floats
from fairsteer.groups import MISSING
from fairsteer.score_alignment._alignment import aligned_proba, class_decision, log_zero_allowed
from fairsteer.score_alignment._cells import Constraint, Maps
from fairsteer.score_alignment._cross_fitting import cross_fitted_alignment
from fairsteer.score_alignment._scores import Scores, as_scores
from fairsteer.streams import Stream, open_stream
from fairsteer.transformer import FairSteeringTransformer
from fairsteer.transformer._maps import AffineMaps, row_chunks
from fairsteer.transformer._monotone import MonotoneMaps
from fairsteer.transformer._reading import Batch
from fairsteer.transformer._streaming import sample_rows

_Self = TypeVar("_Self", bound="SteeredClassifier")


def _has(method: str) -> Callable[[SteeredClassifier], bool]:
    """Whether a classifier has a method."""
    return lambda classifier: classifier._offers(method)


class SteeredClassifier(MetaEstimatorMixin, GroupAwareClassifierMixin, FoundHTMLMixin, BaseEstimator):
    """What a classifier is that steers rows and hands them to another one, or to the Bayes rule."""

    estimator: Any
    steering: FairSteeringTransformer | None
    classes_: npt.NDArray[Any]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self.steering is not None:
            tags.input_tags.positive_only = get_tags(self.steering).input_tags.positive_only
        if hasattr(self.estimator, "__sklearn_tags__"):
            inner = get_tags(self.estimator)
            tags.non_deterministic = inner.non_deterministic
            if inner.classifier_tags is not None:
                tags.classifier_tags.multi_class = inner.classifier_tags.multi_class
                tags.classifier_tags.poor_score = inner.classifier_tags.poor_score
        return tags

    def set_params(self: _Self, **params: Any) -> _Self:
        """Set parameters, those of the default steering included.

        Parameters
        ----------
        **params : dict
            Values by name; ``steering__…`` and ``estimator__…`` are handed on.

        Returns
        -------
        self
            The classifier itself.
        """
        nested = any(name.startswith("steering__") for name in params)
        if nested and params.get("steering", self.steering) is None:
            params = {**params, "steering": FairSteeringTransformer()}
        of_estimator = [name for name in params if name.startswith("estimator__")]
        if of_estimator and params.get("estimator", self.estimator) is None:
            msg = (
                f"{few(of_estimator)} cannot be set: there is no estimator, but the Bayes classifier of the ideal one."
            )
            raise ValueError(msg)
        super().set_params(**params)
        return self

    def _found_html(self) -> str:
        known = vars(self)
        if "steering_" not in known:
            return ""
        return str(known["steering_"]._found_html()) + facts_html(self._judged())

    def _judged(self) -> list[tuple[str, str]]:
        """Say what rows that were held out say of the gap."""
        maps = vars(self).get("_alignment")
        if maps is None:
            return [("gap on rows", "not measured by fit; see fairsteer.report.measured_gaps")]
        gap = f"{float(np.nanmax(maps.measured)):.3f}" if np.isfinite(maps.measured).any() else "unknown"
        where = "at any threshold, " if len(self.classes_) == 2 else ""
        return [("scores aligned", f"largest gap {where}on the rows out of fold: {gap}")]

    def predict(self, X: Any, *, sensitive_features: Any = None) -> npt.NDArray[Any]:
        """Class with the least expected cost.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, in the columns of ``fit``.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels, unless the steering has `sensitive_columns`. May be left out where its
            `unknown_group` says to infer them.

        Returns
        -------
        ndarray of shape (n_samples,)
            Class labels.

        Raises
        ------
        ValueError
            If groups are needed and not given or not known, or `X` does not match ``fit``.
        """
        judge = self._judge()
        return judge._predict(*judge._read(X, sensitive_features))

    @available_if(_has("predict_proba"))
    def predict_proba(self, X: Any, *, sensitive_features: Any = None) -> npt.NDArray[Any]:
        """Probability of each class.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, in the columns of ``fit``.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels, as for ``predict``.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of ``classes_``; rows sum to 1.
        """
        judge = self._judge()
        return judge._proba(*judge._read(X, sensitive_features))

    @available_if(_has("predict_proba"))
    def predict_log_proba(self, X: Any, *, sensitive_features: Any = None) -> npt.NDArray[Any]:
        """Logarithm of the probability of each class.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, in the columns of ``fit``.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels, as for ``predict``.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Log-probabilities in nats, in the order of ``classes_``.
        """
        judge = self._judge()
        rows, codes = judge._read(X, sensitive_features)
        if judge.estimator_ is not None or judge._alignment is not None:
            return log_zero_allowed(judge._proba(rows, codes))
        return judge._log_posterior(rows, codes)

    @available_if(_has("decision_function"))
    def decision_function(self, X: Any, *, sensitive_features: Any = None) -> npt.NDArray[Any]:
        """Scores of the classes, costs left aside.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, in the columns of ``fit``.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels, as for ``predict``.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            With two classes the log-odds of ``classes_[1]``, else the log-probabilities; the
            `estimator`'s own scores if there is one and no `score_alignment`.
        """
        judge = self._judge()
        rows, codes = judge._read(X, sensitive_features)
        if judge._alignment is not None:
            return class_decision(judge._aligned_proba(judge._alignment, rows, codes))
        if judge.estimator_ is not None:
            return judge._ask_estimator("decision_function", rows, codes)
        log_posterior = judge._log_posterior(rows, codes)
        if len(judge.classes_) == 2:
            return log_posterior[:, 1] - log_posterior[:, 0]
        return log_posterior

    @abstractmethod
    def _judge(self) -> IdealDistributionClassifier:
        """Find the fitted classifier that answers."""

    @abstractmethod
    def _offers(self, method: str) -> bool:
        """Whether there is a method that not every classifier has."""

    def _set_columns_of(self, steering: FairSteeringTransformer) -> None:
        for name in ("n_features_in_", "feature_names_in_"):
            self.__dict__.pop(name, None)
            if hasattr(steering, name):
                setattr(self, name, getattr(steering, name))


class IdealDistributionClassifier(SteeredClassifier):
    """Classifier of the nearest ideal distribution.

    Features are steered to the nearest ideal distribution (see
    :class:`~fairsteer.FairSteeringTransformer`), on which the Bayes classifier is exactly fair for
    any costs; then they are classified, by that very Bayes classifier or by a given one.

    Parameters
    ----------
    estimator : classifier, default=None
        Classifier to train on the steered rows, under weights that make classes and groups
        independent. None: the Bayes classifier of the ideal distribution.
    steering : FairSteeringTransformer, default=None
        How features are steered; a clone is fitted. None: ``FairSteeringTransformer()``, whose
        parameters can be set all the same, ``set_params(steering__strength=0.5)``.
    cost_matrix : array-like of shape (n_classes, n_classes), default=None
        Cost of predicting class ``j`` (column) where class ``i`` (row) is true, in the order of
        ``classes_``; predictions minimise the expected cost. None: 1 for every error, or the
        `estimator`'s own rule.
    score_alignment : {"equal_opportunity", "demographic_parity"}, default=None
        Whether scores are aligned between groups after the steering, as by
        :class:`~fairsteer.ScoreAligner`, which explains it and has more parameters. The rates are
        equal on out-of-fold rows, whether features are Gaussian or not.
    cv : int, cross-validation generator or iterable, default=5
        Splits whose test rows give the out-of-fold scores of a `score_alignment`, as for
        :class:`~fairsteer.ScoreAligner`.
    n_jobs : int, default=None
        Folds of a `score_alignment` that are fitted at the same time; -1: as many as there are processors. The result
        does not depend on it.
    verbose : int, default=0
        How much joblib tells of these fits.

    Attributes
    ----------
    steering_ : FairSteeringTransformer
        The fitted steering. A new strength takes effect without a new fit,
        ``classifier.steering_.set_params(strength=0.5)``, unless there is a `score_alignment`, which
        is fitted to the scores of one strength.
    estimator_ : classifier or None
        The fitted `estimator`.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    cost_matrix_ : ndarray of shape (n_classes, n_classes) or None
        The validated `cost_matrix`.
    n_features_in_ : int
        Number of columns of `X` at ``fit``, sensitive ones included.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns of `X`, where it had string names.

    See Also
    --------
    FairSteeringTransformer : The steering alone, for pipelines.
    IdealDistributionClassifierCV : Chooses the steering, and whether to align, by cross-validation.
    ScoreAligner : The alignment alone, for any classifier.

    Notes
    -----
    With ``estimator=None`` and a strength ``s`` between 0 and 1, class probabilities are
    proportional to ``p_fitted ** (1 - s) * p_ideal ** s``. At strength 0 this is the Bayes
    classifier of the fitted Gaussians within each group: quadratic discriminant analysis with full
    covariances, linear with tied ones (scikit-learn's, which pools classes by their shares in the
    group, with ``standardize=False``). The weights for an `estimator` likewise go from 1 to the ideal
    ones as the strength goes from 0 to 1. Predictions are deterministic.

    Examples
    --------
    >>> from fairsteer import IdealDistributionClassifier
    >>> from fairsteer.datasets import make_biased_groups
    >>> X, y, group = make_biased_groups(random_state=0)
    >>> classifier = IdealDistributionClassifier().fit(X, y, sensitive_features=group)
    >>> predicted = classifier.predict(X, sensitive_features=group)
    >>> rate = [predicted[(group == a) & (y == 1)].mean() for a in (0, 1)]
    >>> bool(abs(rate[0] - rate[1]) < 0.1)
    True
    """

    _alignment: Maps | None

    _parameter_constraints = {
        "estimator": [HasMethods(["fit", "predict"]), None],
        "steering": [FairSteeringTransformer, None],
        "cost_matrix": ["array-like", None],
        "score_alignment": [StrOptions({"equal_opportunity", "demographic_parity"}), None],
        "cv": ["cv_object"],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        estimator: Any = None,
        steering: FairSteeringTransformer | None = None,
        *,
        cost_matrix: Any = None,
        score_alignment: Constraint | None = None,
        cv: Any = 5,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.estimator = estimator
        self.steering = steering
        self.cost_matrix = cost_matrix
        self.score_alignment = score_alignment
        self.cv = cv
        self.n_jobs = n_jobs
        self.verbose = verbose

    @classmethod
    def of_steering(
        cls, steering: FairSteeringTransformer, strength: float | None = None
    ) -> IdealDistributionClassifier:
        """Bayes classifier of a steering that is fitted already.

        Parameters
        ----------
        steering : FairSteeringTransformer
            Fitted with class labels.
        strength : float in [0, 1], default=None
            Strength of its own; None: that of `steering`.

        Returns
        -------
        IdealDistributionClassifier
            Fitted; it shares what `steering` has learnt, but not its parameters.
        """
        check_is_fitted(steering, "moments_")
        classifier = cls(steering=steering)
        classifier.steering_ = copy.copy(steering)
        if strength is not None:
            classifier.steering_.set_params(strength=strength)
        classifier.classes_ = steering.classes_
        classifier.cost_matrix_ = classifier.estimator_ = classifier._alignment = None
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(steering, name):
                setattr(classifier, name, getattr(steering, name))
        return classifier

    @fit_context(prefer_skip_nested_validation=False)
    def fit(
        self, X: Any, y: Any = None, *, sensitive_features: Any = None, sample_weight: Any = None
    ) -> IdealDistributionClassifier:
        """Fit the steering, and the estimator on steered rows if there is one.

        Parameters
        ----------
        X : array-like, dataframe or stream of shape (n_samples, n_features)
            Rows, with the sensitive columns if the steering has `sensitive_columns`. Without an `estimator` also what
            ``FairSteeringTransformer.fit`` reads piece by piece; a `score_alignment` is then fitted to at most
            131,072 rows, evenly spaced within every subgroup.
        y : array-like of shape (n_samples,)
            Class labels.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels. Rows where one is missing are left out, with a warning.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights.

        Returns
        -------
        IdealDistributionClassifier
            The classifier itself.

        Raises
        ------
        ValueError
            As the steering raises; if `cost_matrix` has the wrong shape; if `estimator` has no
            ``predict_proba`` for a `cost_matrix`, or cannot take the weights it needs; if there are
            more than two classes, a `cost_matrix` and a `score_alignment`; as
            :class:`~fairsteer.ScoreAligner` raises.
        """
        X = X if self.estimator is None else to_numpy(X)  # which the estimator reads
        stream = open_stream(X, y, sensitive_features, sample_weight, mapped=self.estimator is None)
        if y is None if stream is None else not stream.has_classes:
            msg = f"{type(self).__name__} requires y to be passed, but the target y is None."
            raise ValueError(msg)
        steering = clone(FairSteeringTransformer() if self.steering is None else self.steering)
        if stream is not None:
            return self._fit_stream(steering, stream)
        reading = steering._read(X, y, sensitive_features, sample_weight, reset=True)
        batch = reading.batch()
        self._fit_batch(steering._fit_batch(batch), batch)
        self._set_columns_of(steering)
        if self.score_alignment is not None and len(self.classes_) > 1:
            self._alignment = self._fit_alignment(
                self.score_alignment, X, batch, reading.grouped.kept, reading.sample_weight
            )
        return self

    def _fit_stream(self, steering: FairSteeringTransformer, stream: Stream) -> IdealDistributionClassifier:
        """Fit the Bayes rule to all rows of a stream, and the alignment to some."""
        if self.estimator is not None:
            msg = (
                f"estimator={brief(self.estimator)} needs all rows at once, which a stream has not. Leave it out, or "
                "fit it yourself to what a FairSteeringTransformer, fitted to the stream, gives for rows that fit into "
                "memory."
            )
            raise ValueError(msg)
        steering.fit(stream)
        batch = sample_rows(steering, stream)
        self._fit_batch(steering, batch)
        self._set_columns_of(steering)
        if self.score_alignment is not None and len(self.classes_) > 1:
            kept = np.ones(len(batch.rows), dtype=bool)
            self._alignment = self._fit_alignment(self.score_alignment, batch.rows, batch, kept, batch.sample_weight)
        return self

    def _fit_batch(self, steering: FairSteeringTransformer, batch: Batch) -> None:
        """Fit all but the alignment, to the rows that the steering has been fitted to."""
        self.steering_, self.classes_ = steering, batch.classes
        if self.estimator is None and steering.constraint != "ideal":
            msg = (
                f"Under constraint={steering.constraint!r} there is no ideal distribution of all classes, whose Bayes "
                "rule this could be: pass an estimator."
            )
            raise ValueError(msg)
        self.cost_matrix_ = self._check_cost_matrix()
        self.estimator_ = self._alignment = None
        if self.estimator is not None:
            rows, weight = steering._training_rows(batch)
            self.estimator_ = clone(self.estimator)
            self.estimator_.fit(rows, batch.y, **_ideal_weight_params(self.estimator_, weight))

    def _judge(self) -> IdealDistributionClassifier:
        check_is_fitted(self, "steering_")
        return self

    def _offers(self, method: str) -> bool:
        """Its own and aligned scores have all methods, else those of `estimator` are there."""
        estimator = getattr(self, "estimator_", self.estimator)
        return estimator is None or hasattr(estimator, method) or self.score_alignment is not None

    def _predict(self, rows: Floats, codes: Codes) -> npt.NDArray[Any]:
        """Classes of rows that have been read."""
        if self.cost_matrix_ is not None:
            return self._labels((self._proba(rows, codes) @ self.cost_matrix_).argmin(axis=1))
        if self._alignment is not None:
            return self._labels(self._aligned_proba(self._alignment, rows, codes).argmax(axis=1))
        if self.estimator_ is not None:
            return self._ask_estimator("predict", rows, codes)
        return self._labels(self._log_posterior(rows, codes).argmax(axis=1))

    def _labels(self, codes: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        labels: npt.NDArray[Any] = self.classes_[codes]
        return labels

    def _read(self, X: Any, sensitive_features: Any) -> tuple[Floats, Codes]:
        return self.steering_._read_rows_and_codes(X, sensitive_features)

    def _ask_estimator(self, method: str, rows: Floats, codes: Codes) -> npt.NDArray[Any]:
        steering = self.steering_
        steered = steering._move(rows, codes, steering._group_maps(steering._strength()))
        answer: npt.NDArray[Any] = getattr(self.estimator_, method)(steered)
        return answer

    def _proba(self, rows: Floats, codes: Codes) -> npt.NDArray[Any]:
        if self._alignment is not None:
            return self._aligned_proba(self._alignment, rows, codes)
        if self.estimator_ is not None:
            return self._ask_estimator("predict_proba", rows, codes)
        return np.exp(self._log_posterior(rows, codes))

    def _log_posterior(self, rows: Floats, codes: Codes) -> Doubles:
        """Log-probabilities of the classes, (n_samples, n_classes)."""
        steering = self.steering_
        rows = steering._to_model(rows)
        strength = steering._strength()
        shrunk, ideal, _ = steering._fitted()
        to_frame = steering._group_maps(1.0)
        if isinstance(to_frame, MonotoneMaps):  # the frame of the ideal distribution is that of its Gaussian model
            to_frame = AffineMaps.at_strength(ideal.linear, ideal.offset, 1.0)
        result = np.zeros((len(rows), len(self.classes_)))
        for chunk in row_chunks(len(rows), shrunk.weights.size):
            x, a, out = rows[chunk].astype(np.float64), codes[chunk], result[chunk]
            # Either is left out rather than given weight 0: a subgroup without rows has log 0.
            if strength > 0:
                frame, _ = to_frame.apply(x, a, steering._group_proba)
                out += strength * ideal.log_posterior(frame)
            if strength < 1:
                joint = shrunk.log_joint(x)
                own = np.take_along_axis(joint, np.maximum(a, 0)[:, None, None], axis=2)[:, :, 0]
                if (a < 0).any():
                    # The fitted P(y | x, a), weighted by the calibrated P(a | x).
                    given_group = joint[a < 0] - logsumexp(joint[a < 0], axis=1, keepdims=True)
                    own[a < 0] = logsumexp(given_group, axis=2, b=steering._group_proba(x[a < 0])[:, None])
                out += (1 - strength) * (own - logsumexp(own, axis=1, keepdims=True))
            out -= logsumexp(out, axis=1, keepdims=True)
        return result

    def _fit_alignment(
        self, constraint: Constraint, X: Any, batch: Batch, kept: npt.NDArray[np.bool_], sample_weight: Doubles | None
    ) -> Maps:
        """Align the scores of this classifier trained without the rows that it scores; those of `batch` are `kept`."""
        steering, n_rows = self.steering_, len(kept)
        y_codes, codes = np.full(n_rows, MISSING), np.full(n_rows, MISSING)
        y_codes[kept] = batch.y_codes
        codes[kept] = batch.group_codes if steering._encoder is None else steering._group_of_label[batch.group_codes]
        place = np.cumsum(kept) - 1  # among the rows of the batch

        def held_out_scores(train: Codes | None, test: Codes) -> Scores:
            some = batch if train is None else batch.take(place[train])
            check_fold_classes(some.classes, self.classes_)
            plain: IdealDistributionClassifier = clone(self).set_params(score_alignment=None, cost_matrix=None)
            plain._fit_batch(steering._fit_alike(some), some)
            return plain._scores(batch.rows[place[test]], plain._codes_of_labels(batch, place[test]), test)

        weight = np.ones(n_rows) if sample_weight is None else sample_weight
        alignment, _, _ = cross_fitted_alignment(
            held_out_scores,
            indexable(X)[0],
            y_codes=y_codes,
            group_codes=codes,
            weight=weight,
            classes=self.classes_,
            groups=steering.groups_,
            cv=self.cv,
            constraint=constraint,
            n_jobs=self.n_jobs,
            verbose=self.verbose,
        )
        return alignment

    def _codes_of_labels(self, batch: Batch, positions: Codes) -> Codes:
        """Find the groups of rows that this fold's steering was fitted without."""
        steering = self.steering_
        if steering._encoder is None:
            return np.zeros(len(positions), dtype=np.intp)
        table = dict(zip(steering.moments_.groups.tolist(), steering._group_of_label.tolist(), strict=True))
        of_label = np.array([table.get(label, MISSING) for label in batch.groups.tolist()], dtype=np.intp)
        codes: Codes = of_label[batch.group_codes[positions]]
        return codes

    def _scores(self, rows: Floats, codes: Codes, positions: Codes | None = None) -> Scores:
        """Score rows as an alignment takes them."""
        asked = "predict_proba" if self.estimator_ is None else asked_method(self.estimator_)
        answer = self._proba(rows, codes) if asked == "predict_proba" else self._ask_estimator(asked, rows, codes)
        return as_scores(
            answer, asked, len(rows), self.classes_, self if self.estimator_ is None else self.estimator_, positions
        )

    def _aligned_proba(self, alignment: Maps, rows: Floats, codes: Codes) -> Doubles:
        plain = copy.copy(self)
        plain.score_alignment = plain._alignment = None
        steering = self.steering_
        return aligned_proba(
            alignment, plain._scores(rows, codes), codes, steering._group_proba(steering._to_model(rows[codes < 0]))
        )

    def _check_cost_matrix(self) -> npt.NDArray[np.float64] | None:
        if self.cost_matrix is None:
            return None
        if self.score_alignment is not None and len(self.classes_) > 2:
            msg = (
                f"score_alignment with {len(self.classes_)} classes aligns the most probable class, not the one with "
                "the least expected cost: leave out cost_matrix, or score_alignment."
            )
            raise ValueError(msg)
        if not self._offers("predict_proba"):
            msg = (
                f"cost_matrix needs the probabilities of classes, but {brief(self.estimator)} has no "
                "predict_proba. Wrap it in sklearn.calibration.CalibratedClassifierCV."
            )
            raise ValueError(msg)
        costs: npt.NDArray[np.float64] = check_array(self.cost_matrix, dtype=np.float64, input_name="cost_matrix")
        n_classes = len(self.classes_)
        if costs.shape != (n_classes, n_classes):
            msg = (
                f"cost_matrix has shape {costs.shape}, but there are {n_classes} classes "
                f"({few(map(repr, self.classes_.tolist()))}): it must have shape {(n_classes, n_classes)}, with the "
                "cost of predicting class j where class i is true in row i, column j."
            )
            raise ValueError(msg)
        return costs


def _ideal_weight_params(estimator: Any, weight: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Keywords that hand sample weights to an estimator's ``fit``."""
    if np.ptp(weight) <= 1e-9 * weight.max():  # equal but for rounding
        return {}
    params = weight_params(estimator, weight)
    if params is not None:
        return params
    msg = (
        f"{brief(estimator)} takes no sample_weight in fit, but must be trained under weights that make "
        "classes and groups independent. Use a classifier that takes them, such as "
        "LogisticRegression or HistGradientBoostingClassifier."
    )
    raise ValueError(msg)
