"""The scikit-learn classifier: the Bayes rule of the ideal distribution, or any classifier on steered rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context, clone
from sklearn.metrics import accuracy_score
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from fairsteer._maps import row_chunks
from fairsteer.transformer import FairSteeringTransformer

__all__ = ["IdealDistributionClassifier"]


def _has(method: str) -> Callable[[IdealDistributionClassifier], bool]:
    """Whether the classifier has a method: always its own, else where `estimator` has it."""

    def check(classifier: IdealDistributionClassifier) -> bool:
        estimator = getattr(classifier, "estimator_", classifier.estimator)
        return estimator is None or hasattr(estimator, method)

    return check


class IdealDistributionClassifier(ClassifierMixin, BaseEstimator):
    """Classifier of the nearest ideal distribution.

    Features are steered to the nearest ideal distribution (see
    :class:`~fairsteer.FairSteeringTransformer`), on which the Bayes classifier is exactly fair for
    any costs; then they are classified, by that very Bayes classifier or by a given one.

    Parameters
    ----------
    steering : FairSteeringTransformer, default=None
        How features are steered; a clone is fitted. None: ``FairSteeringTransformer()``.
    estimator : classifier, default=None
        Classifier to train on the steered rows, under weights that make classes and groups
        independent. None: the Bayes classifier of the ideal distribution.
    cost_matrix : array-like of shape (n_classes, n_classes), default=None
        Cost of predicting class ``j`` (column) where class ``i`` (row) is true, in the order of
        ``classes_``; predictions minimise the expected cost. None: 1 for every error, or the
        `estimator`'s own rule.

    Attributes
    ----------
    steering_ : FairSteeringTransformer
        The fitted steering. A new strength takes effect without a new fit:
        ``classifier.steering_.set_params(strength=0.5)``.
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

    __metadata_request__fit = {"sensitive_features": True}
    __metadata_request__predict = {"sensitive_features": True}
    __metadata_request__predict_proba = {"sensitive_features": True}
    __metadata_request__predict_log_proba = {"sensitive_features": True}
    __metadata_request__decision_function = {"sensitive_features": True}
    __metadata_request__score = {"sensitive_features": True}

    _parameter_constraints = {
        "steering": [FairSteeringTransformer, None],
        "estimator": [HasMethods(["fit", "predict"]), None],
        "cost_matrix": ["array-like", None],
    }

    def __init__(
        self,
        steering: FairSteeringTransformer | None = None,
        estimator: Any = None,
        *,
        cost_matrix: Any = None,
    ) -> None:
        self.steering = steering
        self.estimator = estimator
        self.cost_matrix = cost_matrix

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(
        self, X: Any, y: Any, *, sensitive_features: Any = None, sample_weight: Any = None
    ) -> IdealDistributionClassifier:
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
            ``predict_proba`` for a `cost_matrix`, or cannot take the weights it needs.
        """
        validate_data(self, X, y, skip_check_array=True)
        steering = FairSteeringTransformer() if self.steering is None else self.steering
        self.steering_ = clone(steering).fit(X, y, sensitive_features=sensitive_features, sample_weight=sample_weight)
        self.classes_ = self.steering_.classes_
        self.cost_matrix_ = self._check_cost_matrix()
        self.estimator_ = None
        if self.estimator is not None:
            rows, y, weight = self.steering_._training_rows(X, y, sensitive_features, sample_weight)
            self.estimator_ = clone(self.estimator)
            self.estimator_.fit(rows, y, **_weight_params(self.estimator_, weight))
        return self

    def predict(self, X: Any, *, sensitive_features: Any = None) -> npt.NDArray[Any]:
        """Class with the least expected cost.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, in the columns of ``fit``.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels, unless the steering has `sensitive_columns`. May be left out if it has
            ``unknown_group="infer"``.

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
        if self.estimator_ is not None:
            with np.errstate(divide="ignore"):  # log 0 = -inf is the right answer
                log_proba: npt.NDArray[Any] = np.log(self._ask_estimator("predict_proba", X, sensitive_features))
                return log_proba
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
            `estimator`'s own scores if there is one.
        """
        check_is_fitted(self, "steering_")
        if self.estimator_ is not None:
            return self._ask_estimator("decision_function", X, sensitive_features)
        log_posterior = self._log_posterior(X, sensitive_features)
        if len(self.classes_) == 2:
            return log_posterior[:, 1] - log_posterior[:, 0]
        return log_posterior

    def score(self, X: Any, y: Any, sample_weight: Any = None, *, sensitive_features: Any = None) -> float:
        """Accuracy of the predictions.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, in the columns of ``fit``.
        y : array-like of shape (n_samples,)
            True class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels, as for ``predict``.

        Returns
        -------
        float
            Weighted share of rows whose class is predicted, in [0, 1].
        """
        predicted = self.predict(X, sensitive_features=sensitive_features)
        return float(accuracy_score(y, predicted, sample_weight=sample_weight))

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
        shrunk, ideal = steering._fitted()
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
                own[a < 0] = logsumexp(joint[a < 0], axis=2)
                out += (1 - strength) * (own - logsumexp(own, axis=1, keepdims=True))
            out -= logsumexp(out, axis=1, keepdims=True)
        return result

    def _check_cost_matrix(self) -> npt.NDArray[np.float64] | None:
        if self.cost_matrix is None:
            return None
        if self.estimator is not None and not hasattr(self.estimator, "predict_proba"):
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


def _weight_params(estimator: Any, weight: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Keywords that hand sample weights to an estimator's ``fit``."""
    if np.ptp(weight) <= 1e-9 * weight.max():  # equal but for rounding
        return {}
    if has_fit_parameter(estimator, "sample_weight"):
        return {"sample_weight": weight}
    if isinstance(estimator, Pipeline):
        # With metadata routing on, the pipeline's own requests say which step takes them.
        if get_config()["enable_metadata_routing"]:
            return {"sample_weight": weight}
        name, last = estimator.steps[-1]
        if has_fit_parameter(last, "sample_weight"):
            return {f"{name}__sample_weight": weight}
    msg = (
        f"{estimator!r} takes no sample_weight in fit, but must be trained under weights that make "
        "classes and groups independent. Use a classifier that takes them, such as "
        "LogisticRegression or HistGradientBoostingClassifier."
    )
    raise ValueError(msg)
