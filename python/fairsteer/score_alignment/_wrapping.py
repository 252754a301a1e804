"""What classifiers that wrap another one, and treat its scores by group, have in common."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from sklearn import get_config
from sklearn.base import BaseEstimator, MetaEstimatorMixin
from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing

from fairsteer._utils.columns import column_positions, select_columns
from fairsteer._utils.estimators import (
    FoundHTMLMixin,
    GroupAwareClassifierMixin,
    asked_method,
    takes_parameter,
    unfrozen,
    weight_params,
)
from fairsteer._utils.input import brief, few, warn_caller
from fairsteer._utils.types import Codes, Doubles
from fairsteer.groups import GroupEncoder, known_codes
from fairsteer.score_alignment._alignment import class_decision, log_zero_allowed


class WrappingClassifier(MetaEstimatorMixin, GroupAwareClassifierMixin, FoundHTMLMixin, BaseEstimator):
    """Reads groups, in columns or beside them, and hands on to `estimator` what is its own."""

    #: What is fitted to the scores of `estimator`, for messages.
    _fitted_to_scores: ClassVar[str] = "the alignment"

    _encoder: GroupEncoder | None
    _sensitive_positions: list[int]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        wrapped = get_tags(self.estimator)
        # The rows go to the classifier as they are: it says what they may be.
        tags.input_tags = copy.copy(wrapped.input_tags)
        if wrapped.classifier_tags is not None:
            tags.classifier_tags = copy.copy(wrapped.classifier_tags)
            tags.classifier_tags.multi_label = False
        tags.non_deterministic = wrapped.non_deterministic
        return tags

    def get_metadata_routing(self) -> MetadataRouter:
        """Metadata that it uses itself and passes on to the classifier.

        Returns
        -------
        MetadataRouter
            As scikit-learn's user guide describes.
        """
        asked = asked_method(getattr(self, "estimator_", self.estimator))
        mapping = MethodMapping().add(caller="fit", callee="fit").add(caller="fit", callee=asked)
        for caller in ("predict", "predict_proba", "predict_log_proba", "decision_function", "score"):
            mapping.add(caller=caller, callee=asked)
        router = MetadataRouter(owner=type(self).__name__).add_self_request(self)
        return router.add(estimator=unfrozen(self.estimator), method_mapping=mapping)

    def predict(self, X: Any, *, sensitive_features: Any = None) -> npt.NDArray[Any]:
        """Most probable class, or that of the least expected cost where there are costs.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, in the columns of ``fit``.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels, unless there are `sensitive_columns`. May be left out with ``unknown_group="average"``.

        Returns
        -------
        ndarray of shape (n_samples,)
            Class labels.

        Raises
        ------
        ValueError
            If groups are needed and not given or not known, or `X` does not match ``fit``.
        """
        codes = self._decided(self._proba("predict", X, sensitive_features))
        labels: npt.NDArray[Any] = self.classes_[codes]
        return labels

    def predict_proba(self, X: Any, *, sensitive_features: Any = None) -> Doubles:
        """Probability of each class, by the score of a row and its group.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, in the columns of ``fit``.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels, as for ``predict``.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of ``classes_``; rows sum to 1. Within a group and with two classes they rise
            with the classifier's score.
        """
        return self._proba("predict_proba", X, sensitive_features)

    def predict_log_proba(self, X: Any, *, sensitive_features: Any = None) -> Doubles:
        """Logarithm of what ``predict_proba`` gives.

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
        return log_zero_allowed(self._proba("predict_log_proba", X, sensitive_features))

    def decision_function(self, X: Any, *, sensitive_features: Any = None) -> Doubles:
        """Scores of the classes, by what ``predict_proba`` gives.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, in the columns of ``fit``.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels, as for ``predict``.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            With two classes the log-odds of ``classes_[1]``, else the log-probabilities.
        """
        return class_decision(self._proba("decision_function", X, sensitive_features))

    @abstractmethod
    def _proba(self, caller: str, X: Any, sensitive_features: Any) -> Doubles:
        """Probabilities of the classes, for a method."""

    def _decided(self, proba: Doubles) -> Codes:
        """Classes that are predicted at given probabilities."""
        codes: Codes = proba.argmax(axis=1)
        return codes

    def _labels_of(self, X: Any, sensitive_features: Any, *, reset: bool) -> Any:
        """Group labels, from columns of `X` or beside it; None where there are none."""
        if self.sensitive_columns is None:
            return sensitive_features
        if sensitive_features is not None:
            msg = (
                f"Groups are given twice, by sensitive_columns={self.sensitive_columns!r} and by "
                "sensitive_features. Leave one out."
            )
            raise ValueError(msg)
        if issparse(X):
            msg = "sensitive_columns cannot be taken from a sparse X. Pass the groups as sensitive_features=…."
            raise TypeError(msg)
        if reset:
            names = getattr(self, "feature_names_in_", None)
            self._sensitive_positions = column_positions(self.sensitive_columns, X, names, self.n_features_in_)
        return select_columns(X, self._sensitive_positions)

    def _codes(self, labels: Any, X: Any) -> Codes:
        """Positions in ``groups_``; negative for rows that get the average."""
        if self._encoder is None and labels is not None:
            msg = "sensitive_features are given, but it was fitted without groups. Fit it again with them."
            raise ValueError(msg)
        ways_out = (
            "pass sensitive_features=… with a known group in every row, fit with sensitive_columns=… to take the "
            "groups from columns of X, or set unknown_group='average' to average over the groups"
        )
        return known_codes(self._encoder, labels, X, ways_out, infer=self.unknown_group == "average")

    def _passed_on(self, caller: str, callee: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Keywords for a method of the classifier."""
        if get_config()["enable_metadata_routing"]:
            return dict(process_routing(self, caller, **metadata).estimator[callee])
        estimator = self.estimator if callee == "fit" else getattr(self, "estimator_", self.estimator)
        if callee == "fit" and isinstance(estimator, FrozenEstimator):
            return {}
        passed: dict[str, Any] = {}
        if "sensitive_features" in metadata and takes_parameter(getattr(estimator, callee), "sensitive_features"):
            passed["sensitive_features"] = metadata["sensitive_features"]
        if "sample_weight" in metadata:
            named = weight_params(estimator, metadata["sample_weight"])
            if named is None:
                warn_caller(
                    f"{brief(estimator)} takes no sample_weight in fit: the weights are used for "
                    f"{self._fitted_to_scores} only."
                )
            passed |= named or {}
        return passed


def class_codes_of(y: npt.NDArray[Any], kept: npt.NDArray[np.bool_], classes: npt.NDArray[Any]) -> Codes:
    """Positions of labels among the classes of a fitted classifier; -1 for rows left out that it does not know."""
    codes = np.full(len(y), -1, dtype=np.intp)
    for k, label in enumerate(classes.tolist()):
        codes[y == label] = k
    unknown = np.unique(y[kept & (codes < 0)]).tolist()
    if unknown:
        msg = (
            f"y holds the classes {few(map(repr, unknown))}, which the fitted classifier does not know. Its classes: "
            f"{few(map(repr, classes.tolist()))}."
        )
        raise ValueError(msg)
    return codes
