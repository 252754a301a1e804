"""The one place that touches scikit-learn's private doors: what an estimator takes, answers and requests."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from sklearn import get_config
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score
from sklearn.pipeline import Pipeline
from sklearn.utils import metaestimators
from sklearn.utils._param_validation import HasMethods as HasMethods
from sklearn.utils._param_validation import Interval as Interval
from sklearn.utils._param_validation import StrOptions as StrOptions
from sklearn.utils.validation import _check_feature_names, _check_n_features, has_fit_parameter

_Method = TypeVar("_Method", bound=Callable[..., Any])


def fit_context(*, prefer_skip_nested_validation: bool) -> Callable[[_Method], _Method]:
    """Check parameters before a method runs, as scikit-learn does; type checkers see the method's own signature."""
    decorator: Callable[[_Method], _Method] = _fit_context(prefer_skip_nested_validation=prefer_skip_nested_validation)
    return decorator


def available_if(check: Callable[[Any], bool]) -> Callable[[_Method], _Method]:
    """Offer a method where `check` says so, as scikit-learn does; type checkers see its own signature."""
    decorator: Callable[[_Method], _Method] = metaestimators.available_if(check)
    return decorator


def check_columns(estimator: Any, X: Any, *, reset: bool) -> npt.NDArray[Any] | None:
    """Learn the number and the names of columns, or compare them with those of ``fit``; give the names if there are."""
    _check_feature_names(estimator, X, reset=reset)
    _check_n_features(estimator, X, reset=reset)
    names: npt.NDArray[Any] | None = getattr(estimator, "feature_names_in_", None)
    return names


class FoundHTMLMixin:
    """Below scikit-learn's diagram, notebooks show what a fitted estimator has found; nothing is computed for it."""

    def _found_html(self) -> str:
        """Show what is known; "" before a fit."""
        return ""

    def _repr_html_inner(self) -> str:
        return str(super()._repr_html_inner()) + self._found_html()  # type: ignore[misc]  # of BaseEstimator, beside it

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        bundle: dict[str, str] = super()._repr_mimebundle_(**kwargs)  # type: ignore[misc]  # of BaseEstimator, too
        if "text/html" in bundle:
            bundle["text/html"] += self._found_html()
        return bundle


class GroupAwareClassifierMixin(ClassifierMixin):
    """Requests for `sensitive_features` that nobody has to set, and a ``score`` that takes them."""

    __metadata_request__fit = {"sensitive_features": True}
    __metadata_request__predict = {"sensitive_features": True}
    __metadata_request__predict_proba = {"sensitive_features": True}
    __metadata_request__predict_log_proba = {"sensitive_features": True}
    __metadata_request__decision_function = {"sensitive_features": True}
    __metadata_request__score = {"sensitive_features": True}

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
        predictor: Any = self
        predicted = predictor.predict(X, sensitive_features=sensitive_features)
        return float(accuracy_score(y, predicted, sample_weight=sample_weight))


def check_parameters(estimator: Any) -> None:
    """Check the values of an estimator's parameters, as its ``fit`` would."""
    estimator._validate_params()


def weight_params(estimator: Any, weight: npt.NDArray[np.float64]) -> dict[str, Any] | None:
    """Keywords that hand sample weights to an estimator's ``fit``; None if it takes none."""
    if has_fit_parameter(estimator, "sample_weight"):
        return {"sample_weight": weight}
    if isinstance(estimator, Pipeline):
        # With metadata routing on, the pipeline's own requests say which step takes them.
        if get_config()["enable_metadata_routing"]:
            return {"sample_weight": weight}
        name, last = estimator.steps[-1]
        if has_fit_parameter(last, "sample_weight"):
            return {f"{name}__sample_weight": weight}
    return None


def asked_method(estimator: Any) -> str:
    return "predict_proba" if hasattr(estimator, "predict_proba") else "decision_function"


def takes_parameter(method: Any, name: str) -> bool:
    return name in inspect.signature(method).parameters


def unfrozen(estimator: Any) -> Any:
    """Classifier that answers for a FrozenEstimator, which has no requests for metadata of its own."""
    return estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator
