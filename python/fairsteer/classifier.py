"""The scikit-learn classifier: the Bayes rule of the ideal distribution, or any classifier on steered rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone
from sklearn.utils import check_array, get_tags, indexable
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from fairsteer._utils.estimators import (
    GroupAwareClassifierMixin,
    available_if,
    class_scores,
    fit_context,
    weight_params,
)
from fairsteer._utils.input import check_classes
from fairsteer._utils.weights import check_sample_weight
from fairsteer.score_alignment._cells import Alignment, Constraint
from fairsteer.score_alignment._cross_fitting import (
    aligned_proba,
    class_decision,
    cross_fitted_alignment,
    log_zero_allowed,
)
from fairsteer.transformer import FairSteeringTransformer
from fairsteer.transformer._maps import row_chunks

_Self = TypeVar("_Self", bound="IdealDistributionClassifier")


def _has(method: str) -> Callable[[IdealDistributionClassifier], bool]:
    """Whether the classifier has a method: always its own and with aligned scores, else where `estimator` has it."""

    def check(classifier: IdealDistributionClassifier) -> bool:
        estimator = getattr(classifier, "estimator_", classifier.estimator)
        return estimator is None or hasattr(estimator, method) or classifier.score_alignment is not None

    return check


class IdealDistributionClassifier(MetaEstimatorMixin, GroupAwareClassifierMixin, BaseEstimator):
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
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns of `X`, where it had string names.

    See Also
    --------
    FairSteeringTransformer : The steering alone, for pipelines.
    ScoreAligner : The alignment alone, for any classifier.

    Notes
    -----
    With ``estimator=None`` and a strength ``s`` between 0 and 1, class probabilities are
    proportional to ``p_fitted ** (1 - s) * p_ideal ** s``. At strength 0 this is the Bayes
    classifier of the fitted Gaussians within each group: linear discriminant analysis with tied,
    quadratic with full covariances. The weights for an `estimator` likewise go from 1 to the ideal
    ones as the strength goes from 0 to 1. Predictions are deterministic.

    Examples
    --------
    >>> import numpy as np
    >>> from fairsteer import IdealDistributionClassifier
    >>> rng = np.random.default_rng(0)
    >>> y, group = rng.integers(0, 2, (2, 1000))
    >>> X = rng.normal(size=(1000, 3)) + np.outer(y, [1, 1, 0]) + np.outer(group, [0, 2, 1])
    >>> classifier = IdealDistributionClassifier().fit(X, y, sensitive_features=group)
    >>> predicted = classifier.predict(X, sensitive_features=group)
    >>> rate = [predicted[(group == a) & (y == 1)].mean() for a in (0, 1)]
    >>> bool(abs(rate[0] - rate[1]) < 0.1)
    True
    """

    _alignment: Alignment | None

    _parameter_constraints = {
        "estimator": [HasMethods(["fit", "predict"]), None],
        "steering": [FairSteeringTransformer, None],
        "cost_matrix": ["array-like", None],
        "score_alignment": [StrOptions({"equal_opportunity", "demographic_parity"}), None],
        "cv": ["cv_object"],
    }

    def __init__(
        self,
        estimator: Any = None,
        steering: FairSteeringTransformer | None = None,
        *,
        cost_matrix: Any = None,
        score_alignment: Constraint | None = None,
        cv: Any = 5,
    ) -> None:
        self.estimator = estimator
        self.steering = steering
        self.cost_matrix = cost_matrix
        self.score_alignment = score_alignment
        self.cv = cv

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
        IdealDistributionClassifier
            The classifier itself.
        """
        nested = any(name.startswith("steering__") for name in params)
        if nested and params.get("steering", self.steering) is None:
            params = {**params, "steering": FairSteeringTransformer()}
        super().set_params(**params)
        return self

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self: _Self, X: Any, y: Any, *, sensitive_features: Any = None, sample_weight: Any = None) -> _Self:
        """Fit the steering, and the estimator on steered rows if there is one.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, with the sensitive columns if the steering has `sensitive_columns`.
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
        validate_data(self, X, y, skip_check_array=True)
        steering = FairSteeringTransformer() if self.steering is None else self.steering
        self.steering_ = clone(steering).fit(X, y, sensitive_features=sensitive_features, sample_weight=sample_weight)
        self.classes_ = self.steering_.classes_
        self.cost_matrix_ = self._check_cost_matrix()
        self.estimator_ = None
        if self.estimator is not None:
            rows, labels, weight = self.steering_._training_rows(X, y, sensitive_features, sample_weight)
            self.estimator_ = clone(self.estimator)
            self.estimator_.fit(rows, labels, **_ideal_weight_params(self.estimator_, weight))
        self._alignment = None
        if self.score_alignment is not None and len(self.classes_) > 1:
            self._alignment = self._fit_alignment(self.score_alignment, X, y, sensitive_features, sample_weight)
        return self

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
        check_is_fitted(self, "steering_")
        if self.cost_matrix_ is not None:
            proba = self.predict_proba(X, sensitive_features=sensitive_features)
            return self._labels((proba @ self.cost_matrix_).argmin(axis=1))
        if self._alignment is not None:
            return self._labels(self._aligned_proba(self._alignment, X, sensitive_features).argmax(axis=1))
        if self.estimator_ is not None:
            return self._ask_estimator("predict", X, sensitive_features)
        return self._labels(self._log_posterior(X, sensitive_features).argmax(axis=1))

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
        check_is_fitted(self, "steering_")
        if self._alignment is not None:
            return self._aligned_proba(self._alignment, X, sensitive_features)
        if self.estimator_ is not None:
            return self._ask_estimator("predict_proba", X, sensitive_features)
        return np.exp(self._log_posterior(X, sensitive_features))

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
        check_is_fitted(self, "steering_")
        if self.estimator_ is not None or self._alignment is not None:
            return log_zero_allowed(self.predict_proba(X, sensitive_features=sensitive_features))
        return self._log_posterior(X, sensitive_features)

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
        check_is_fitted(self, "steering_")
        if self._alignment is not None:
            return class_decision(self._aligned_proba(self._alignment, X, sensitive_features))
        if self.estimator_ is not None:
            return self._ask_estimator("decision_function", X, sensitive_features)
        log_posterior = self._log_posterior(X, sensitive_features)
        if len(self.classes_) == 2:
            return log_posterior[:, 1] - log_posterior[:, 0]
        return log_posterior

    def _labels(self, codes: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        labels: npt.NDArray[Any] = self.classes_[codes]
        return labels

    def _ask_estimator(self, method: str, X: Any, sensitive_features: Any) -> npt.NDArray[Any]:
        rows = self.steering_._steered(X, sensitive_features)
        answer: npt.NDArray[Any] = getattr(self.estimator_, method)(rows)
        return answer

    def _log_posterior(self, X: Any, sensitive_features: Any) -> npt.NDArray[np.float64]:
        """Log-probabilities of the classes, (n_samples, n_classes)."""
        steering = self.steering_
        rows, codes = steering._model_rows(X, sensitive_features)
        strength = steering._strength()
        shrunk, ideal, _ = steering._fitted()
        to_frame = steering._group_maps(1.0)
        result = np.zeros((len(rows), len(self.classes_)))
        for chunk in row_chunks(len(rows)):
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
        self, constraint: Constraint, X: Any, y: Any, sensitive_features: Any, sample_weight: Any
    ) -> Alignment:
        """Align the scores of this classifier trained without the rows that it scores."""
        steering = self.steering_
        rows, labels = steering._read_rows(X, sensitive_features, reset=False)
        y = check_classes(y, rows)
        weight = check_sample_weight(sample_weight, rows)
        (X,) = indexable(X)
        alignment, _ = cross_fitted_alignment(
            clone(self).set_params(score_alignment=None),
            X,
            y,
            y_codes=np.searchsorted(self.classes_, y),
            group_codes=steering._training_codes(labels, len(rows)),
            weight=np.ones(len(rows)) if weight is None else weight,
            classes=self.classes_,
            groups=steering.groups_,
            fit_params=_given(sensitive_features=sensitive_features, sample_weight=weight),
            predict_params=_given(sensitive_features=sensitive_features),
            cv=self.cv,
            constraint=constraint,
        )
        return alignment

    def _aligned_proba(self, alignment: Alignment, X: Any, sensitive_features: Any) -> npt.NDArray[np.float64]:
        steering = self.steering_
        plain = copy.copy(self)
        plain.score_alignment = plain._alignment = None
        scores = class_scores(plain, X, self.classes_, {"sensitive_features": sensitive_features})
        rows, codes = steering._model_rows(X, sensitive_features)
        return aligned_proba(alignment, scores, codes, steering._group_proba(rows[codes < 0]))

    def _check_cost_matrix(self) -> npt.NDArray[np.float64] | None:
        if self.cost_matrix is None:
            return None
        if self.score_alignment is not None and len(self.classes_) > 2:
            msg = (
                f"score_alignment with {len(self.classes_)} classes aligns the most probable class, not the one with "
                "the least expected cost: leave out cost_matrix, or score_alignment."
            )
            raise ValueError(msg)
        if not _has("predict_proba")(self):
            msg = (
                f"cost_matrix needs the probabilities of classes, but {self.estimator!r} has no "
                "predict_proba. Wrap it in sklearn.calibration.CalibratedClassifierCV."
            )
            raise ValueError(msg)
        costs: npt.NDArray[np.float64] = check_array(self.cost_matrix, dtype=np.float64, input_name="cost_matrix")
        n_classes = len(self.classes_)
        if costs.shape != (n_classes, n_classes):
            msg = (
                f"cost_matrix has shape {costs.shape}, but there are {n_classes} classes "
                f"({self.classes_}): it must have shape {(n_classes, n_classes)}, with the cost of "
                "predicting class j where class i is true in row i, column j."
            )
            raise ValueError(msg)
        return costs


def _given(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _ideal_weight_params(estimator: Any, weight: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Keywords that hand sample weights to an estimator's ``fit``."""
    if np.ptp(weight) <= 1e-9 * weight.max():  # equal but for rounding
        return {}
    params = weight_params(estimator, weight)
    if params is not None:
        return params
    msg = (
        f"{estimator!r} takes no sample_weight in fit, but must be trained under weights that make "
        "classes and groups independent. Use a classifier that takes them, such as "
        "LogisticRegression or HistGradientBoostingClassifier."
    )
    raise ValueError(msg)
