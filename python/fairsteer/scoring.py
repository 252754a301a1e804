"""Scorers that carry the groups of rows to the predictions and to the metric.

scikit-learn's own scorers (``scoring="accuracy"``, :func:`~sklearn.metrics.make_scorer`) never hand metadata to
``predict``. A model that was fitted with groups beside `X` is then asked for predictions without them. The scorers here
do, in every tool that takes ``scoring=``, one at a time or in a dictionary:

* :func:`fairness_scorer`: a gap between groups, or how the worst group fares;
* :func:`performance_scorer`: any scorer of scikit-learn's;
* :func:`budget_scorer`: the best performance among those within a fairness budget, as one number;
* :func:`best_within_budget`: the same for ``refit=`` of a search with several scorers, exact in the mean over folds.

The groups are columns of `X` (``sensitive_columns=``) or come beside it as ``sensitive_features=``, which needs
``sklearn.set_config(enable_metadata_routing=True)`` and no ``set_score_request``. Without either there is an error.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import issparse
from sklearn import config_context
from sklearn.base import BaseEstimator, is_classifier
from sklearn.metrics import get_scorer, make_scorer
from sklearn.utils.metadata_routing import UNUSED, get_routing_for_object
from sklearn.utils.validation import validate_data

from fairsteer import metrics
from fairsteer._utils.columns import column_positions, select_columns
from fairsteer._utils.input import check_classes, few
from fairsteer._utils.labels import label_array
from fairsteer.groups import GroupEncoder
from fairsteer.metrics._gaps import MEASURES
from fairsteer.metrics._rates import read_predictions

# fairlearn names a derived metric by what it takes over the groups.
_GREATER_IS_BETTER = {"_difference": False, "_ratio": True, "_group_min": True, "_group_max": False, "_gap_rms": False}


_RESPONSE_METHODS = {
    "log_loss_group_max": "predict_proba",
    "roc_auc_score_group_min": ("decision_function", "predict_proba"),
}


# What a gap over the budget by 1 costs: a difference of one in a million outweighs any accuracy.
_PENALTY = 1e6


class _GroupScorer(BaseEstimator, ABC):
    """What the scorers share: they request the groups of scikit-learn by default."""

    # The estimator is no metadata, though an argument of `score` that scikit-learn does not know.
    __metadata_request__score: ClassVar[dict[str, Any]] = {"estimator": UNUSED, "sensitive_features": True}

    @abstractmethod
    def score(
        self, estimator: Any, X: Any, y: Any, *, sensitive_features: Any = None, sample_weight: Any = None
    ) -> float:
        """Score a fitted estimator."""

    def __call__(self, estimator: Any, X: Any, y: Any, **metadata: Any) -> float:
        return self.score(estimator, X, y, **metadata)

    def _accept_sample_weight(self) -> bool:
        # Asked of every scorer in a dictionary when weights are passed while metadata routing is off.
        return True


class _PerformanceScorer(_GroupScorer):
    def __init__(self, scoring: Any) -> None:
        self.scoring = scoring

    def score(
        self, estimator: Any, X: Any, y: Any, *, sensitive_features: Any = None, sample_weight: Any = None
    ) -> float:
        # A search predicts by its best estimator, but takes no groups itself.
        estimator = getattr(estimator, "best_estimator_", estimator)
        if sensitive_features is not None:
            estimator = _Informed(estimator, sensitive_features)
        weight = {} if sample_weight is None else {"sample_weight": sample_weight}
        return float(get_scorer(self.scoring)(estimator, X, y, **weight))


class _FairnessScorer(_GroupScorer):
    def __init__(
        self, metric: Any, *, greater_is_better: bool, response_method: Any, sensitive_columns: Any, metric_params: Any
    ) -> None:
        self.metric = metric
        self.greater_is_better = greater_is_better
        self.response_method = response_method
        self.sensitive_columns = sensitive_columns
        self.metric_params = metric_params

    def score(
        self, estimator: Any, X: Any, y: Any, *, sensitive_features: Any = None, sample_weight: Any = None
    ) -> float:
        groups = self._groups(X, sensitive_features)
        scorer = make_scorer(
            partial(self._measure, getattr(estimator, "classes_", None), is_classifier(estimator)),
            greater_is_better=self.greater_is_better,
            response_method=self.response_method,
            **{**self.metric_params, "sensitive_features": groups},
        )
        return _PerformanceScorer(scorer).score(
            estimator, X, y, sensitive_features=sensitive_features, sample_weight=sample_weight
        )

    def _measure(self, classes: Any, classifies: bool, y_true: Any, y_pred: Any, **params: Any) -> float:
        """Compute the metric, of predictions that are what the truth is, in rows of several groups."""
        params = dict(params)
        groups = params.pop("sensitive_features")
        own = _own_metric(self.metric)
        weight = params.pop("sample_weight", None)
        labels = params.pop("labels", None) if own else None
        if labels is None and np.ndim(classes) == 1 and np.ndim(y_true) < 2:
            labels = _all_classes(classes, y_true)
        one_label = np.ndim(y_true) < 2  # several of them are a metric's own business
        if own or (classifies and one_label and self.response_method == "predict"):
            pos_label = params.pop("pos_label", None) if own else None
            tally = read_predictions(y_true, y_pred, groups, weight, pos_label, labels).tally()
            self._check_several(tally.groups.tolist())
            if own:
                if params:
                    msg = f"{own} has no parameter {few(map(repr, params))}."
                    raise TypeError(msg)
                return MEASURES[own](tally)
        else:
            self._check_several(GroupEncoder().fit(groups).groups_.tolist())
        weights = {} if weight is None else {"sample_weight": weight}
        return float(_find_metric(self.metric)(y_true, y_pred, sensitive_features=groups, **params, **weights))

    def _check_several(self, present: list[Any]) -> None:
        if len(present) < 2:
            msg = (
                f"The scorer of {_name(self.metric)!r} has nothing to compare: the only group among these rows is "
                f"{present[0]!r}. Split so that every fold has rows of several groups, for example by StratifiedKFold "
                "on the groups."
            )
            raise ValueError(msg)

    def _groups(self, X: Any, sensitive_features: Any) -> Any:
        name = _name(self.metric)
        if self.sensitive_columns is None and sensitive_features is None:
            msg = (
                f"The scorer of {name!r} got no groups. The way out: name the columns of X that hold them, "
                f"fairness_scorer({name!r}, sensitive_columns=…); or pass sensitive_features=… beside X after "
                "sklearn.set_config(enable_metadata_routing=True), as it is or in params={'sensitive_features': …}."
            )
            raise ValueError(msg)
        if self.sensitive_columns is not None and sensitive_features is not None:
            msg = (
                f"The scorer of {name!r} is given groups twice, by sensitive_columns={self.sensitive_columns!r} and by "
                "sensitive_features. Leave one out."
            )
            raise ValueError(msg)
        groups = sensitive_features
        if groups is None:
            probe = BaseEstimator()
            validate_data(probe, X, skip_check_array=True)
            names = getattr(probe, "feature_names_in_", None)
            positions = column_positions(self.sensitive_columns, X, names, probe.n_features_in_)
            groups = X.tocsr()[:, positions].toarray() if issparse(X) else select_columns(X, positions)
        return groups


class _BudgetScorer(_GroupScorer):
    def __init__(self, performance: _GroupScorer, gap: _FairnessScorer, *, max_gap: float) -> None:
        self.performance = performance
        self.gap = gap
        self.max_gap = max_gap

    def score(
        self, estimator: Any, X: Any, y: Any, *, sensitive_features: Any = None, sample_weight: Any = None
    ) -> float:
        metadata = {"sensitive_features": sensitive_features, "sample_weight": sample_weight}
        gap = -self.gap(estimator, X, y, **metadata)
        # NumPy's maximum, unlike Python's, keeps the NaN of a gap that cannot be computed.
        over = float(np.maximum(gap - self.max_gap, 0.0))
        return self.performance(estimator, X, y, **metadata) - _PENALTY * over


class _Informed:
    """A fitted estimator whose predictions are made with the groups, for scorers that know of none."""

    def __init__(self, estimator: Any, sensitive_features: Any) -> None:
        self._estimator = estimator
        self._sensitive_features = sensitive_features

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._estimator, name)
        if name not in {"predict", "predict_proba", "predict_log_proba", "decision_function"}:
            return attribute

        @wraps(attribute)
        def respond(X: Any) -> Any:
            # Scorers may also be called by hand, with routing off: a pipeline passes groups on only with it.
            with config_context(enable_metadata_routing=True):
                consumed = get_routing_for_object(self._estimator).consumes(name, {"sensitive_features"})
                return attribute(X, **({"sensitive_features": self._sensitive_features} if consumed else {}))

        return respond


def fairness_scorer(
    metric: str | Callable[..., float],
    *,
    greater_is_better: bool | None = None,
    response_method: Any = None,
    sensitive_columns: Any = None,
    **metric_params: Any,
) -> _FairnessScorer:
    """Scorer of a metric that compares groups.

    Parameters
    ----------
    metric : str or callable
        A gap of :mod:`fairsteer.metrics`, for any number of classes: ``"demographic_parity_difference"``,
        ``"equal_opportunity_difference"``, ``"equalized_odds_difference"``, ``"tpr_gap_rms"``. Or any metric of
        :mod:`fairlearn.metrics` that takes `sensitive_features`, such as ``"accuracy_score_group_min"`` (accuracy of
        the worst group), ``"zero_one_loss_difference"``, ``"equalized_odds_ratio"``. Or a function ``metric(y_true,
        y_pred, *, sensitive_features, **metric_params)``, which gets the groups as they came: a table where they are
        columns of `X`.
    greater_is_better : bool, default=None
        Whether the metric is to be large. Otherwise the score is the metric times -1, as everywhere in
        scikit-learn. None: by the end of the metric's name, ``_difference``, ``_group_max`` and ``_gap_rms`` are to be
        small, ``_ratio`` and ``_group_min`` large.
    response_method : str or tuple of str, default=None
        What the metric is computed from, as in :func:`~sklearn.metrics.make_scorer`. None: ``"predict"``, except
        for fairlearn's ``"roc_auc_score_group_min"`` and ``"log_loss_group_max"``.
    sensitive_columns : str, int, list of these, slice, mask, callable or None, default=None
        Columns of the `X` to be scored that hold the groups, as in
        :class:`~fairsteer.FairSteeringTransformer`. It is given here and not taken from a fitted transformer, since
        other steps may have moved the columns on the way there. None: the groups come beside `X`, as
        `sensitive_features`.
    **metric_params
        Further arguments of the metric, such as ``pos_label``.

    Returns
    -------
    scorer
        Called as ``scorer(estimator, X, y, sensitive_features=None, sample_weight=None)``. With metadata routing it
        requests `sensitive_features`; weights after ``scorer.set_score_request(sample_weight=True)``.

    Raises
    ------
    ValueError
        If no metric has that name, or `greater_is_better` cannot be told from it. The scorer: if it gets no groups, or
        twice, or rows of a single group.
    ImportError
        If the metric would be fairlearn's, which is not installed.

    See Also
    --------
    performance_scorer : Scorer without groups in the metric, for estimators that predict with them.
    budget_scorer : Performance under a bound on the gap.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn.pipeline import make_pipeline
    >>> from fairsteer import FairSteeringTransformer
    >>> from fairsteer.datasets import make_biased_groups
    >>> from fairsteer.scoring import fairness_scorer
    >>> X, y, group = make_biased_groups(random_state=0)
    >>> X = np.column_stack([X, group])
    >>> pipe = make_pipeline(FairSteeringTransformer(sensitive_columns=[-1]), LogisticRegression())
    >>> scorer = fairness_scorer("equal_opportunity_difference", sensitive_columns=[-1])
    >>> bool((cross_val_score(pipe, X, y, scoring=scorer) > -0.25).all())
    True
    """
    name = _name(metric)
    if _own_metric(metric) is None:
        _find_metric(metric)
    if reserved := {"sensitive_features", "sample_weight"} & metric_params.keys():
        msg = f"{sorted(reserved)} belong to the rows that are scored: pass them there, not to fairness_scorer."
        raise ValueError(msg)
    if greater_is_better is None:
        by_name = [greater for end, greater in _GREATER_IS_BETTER.items() if name.endswith(end)]
        if not by_name:
            msg = f"The name {name!r} does not tell whether the metric is to be large: pass greater_is_better=…."
            raise ValueError(msg)
        greater_is_better = by_name[0]
    return _FairnessScorer(
        metric,
        greater_is_better=greater_is_better,
        response_method=response_method or _RESPONSE_METHODS.get(name, "predict"),
        sensitive_columns=sensitive_columns,
        metric_params=metric_params,
    )


def performance_scorer(scoring: str | Callable[..., float]) -> _GroupScorer:
    """Scorer of scikit-learn's whose predictions are made with the groups.

    It is needed for estimators that take `sensitive_features` beside `X` when they predict; the metric itself does not
    see the groups. For other estimators, and with groups in columns of `X`, it equals `scoring`.

    Parameters
    ----------
    scoring : str or callable
        Name of a scorer of scikit-learn (:func:`~sklearn.metrics.get_scorer_names`), or a scorer ``scoring(estimator,
        X, y)``.

    Returns
    -------
    scorer
        Called as ``scorer(estimator, X, y, sensitive_features=None, sample_weight=None)``. With metadata routing it
        requests `sensitive_features`; weights after ``scorer.set_score_request(sample_weight=True)``.

    Raises
    ------
    ValueError
        If scikit-learn knows no scorer of that name.

    Examples
    --------
    >>> import sklearn
    >>> from sklearn.model_selection import cross_validate
    >>> from fairsteer import IdealDistributionClassifier
    >>> from fairsteer.datasets import make_biased_groups
    >>> from fairsteer.scoring import fairness_scorer, performance_scorer
    >>> X, y, group = make_biased_groups(random_state=0)
    >>> scoring = {"auc": performance_scorer("roc_auc"), "gap": fairness_scorer("equalized_odds_difference")}
    >>> with sklearn.config_context(enable_metadata_routing=True):
    ...     params = {"sensitive_features": group}
    ...     scores = cross_validate(IdealDistributionClassifier(), X, y, scoring=scoring, params=params)
    >>> bool((scores["test_auc"] > 0.8).all())
    True
    """
    if isinstance(scoring, _GroupScorer):
        return scoring
    get_scorer(scoring)  # raises for an unknown name
    return _PerformanceScorer(scoring)


def budget_scorer(
    performance: str | Callable[..., float],
    gap: str | Callable[..., float],
    *,
    max_gap: float,
    sensitive_columns: Any = None,
) -> _BudgetScorer:
    """Scorer of performance under a fairness budget.

    The score is ``performance - 1e6 * max(0, gap - max_gap)``: the performance itself within the budget, and far below
    it otherwise. In one fold the order is that of two questions: the candidate closest to the budget wins, and among
    those within it, or equally far, the one that performs best. In the mean over folds it is the same with the *mean
    excess* over the budget, so a candidate within the budget in every fold beats all that are not. That is stricter
    than a budget for the mean gap, which no average of numbers can express; for that see
    :func:`best_within_budget`.

    Parameters
    ----------
    performance : str or callable
        Name of a scorer of scikit-learn, such as ``"accuracy"`` or ``"roc_auc"``, or a scorer.
    gap : str, callable or scorer
        A metric for :func:`fairness_scorer` that is to be small, or such a scorer.
    max_gap : float
        The budget, at least 0.
    sensitive_columns : str, int, list of these, slice, mask, callable or None, default=None
        Columns of `X` that hold the groups, as in :func:`fairness_scorer`.

    Returns
    -------
    scorer
        Called as ``scorer(estimator, X, y, sensitive_features=None, sample_weight=None)``. NaN if the gap is NaN.

    Raises
    ------
    ValueError
        As from :func:`fairness_scorer`; if `max_gap` is negative; if the metric is to be large, like a ratio.

    Notes
    -----
    Performances are thought to differ by less than some hundreds, as accuracies and areas under curves do; two
    candidates whose gaps differ by ``1e-6`` outside the budget are told apart by the gap.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import make_pipeline
    >>> from fairsteer import FairSteeringTransformer
    >>> from fairsteer.datasets import make_biased_groups
    >>> from fairsteer.scoring import budget_scorer
    >>> X, y, group = make_biased_groups(random_state=0)
    >>> X = np.column_stack([X, group])
    >>> pipe = make_pipeline(FairSteeringTransformer(sensitive_columns=[-1]), LogisticRegression())
    >>> scorer = budget_scorer("accuracy", "demographic_parity_difference", max_gap=0.2, sensitive_columns=[-1])
    >>> search = GridSearchCV(pipe, {"fairsteeringtransformer__strength": [0, 1]}, scoring=scorer).fit(X, y)
    >>> search.best_params_
    {'fairsteeringtransformer__strength': 1}
    """
    if not isinstance(gap, _FairnessScorer):
        gap = fairness_scorer(gap, sensitive_columns=sensitive_columns)
    elif sensitive_columns is not None:
        msg = "gap is a scorer: give sensitive_columns to fairness_scorer, which made it."
        raise ValueError(msg)
    if gap.greater_is_better:
        msg = f"The budget bounds a metric from above, but {_name(gap.metric)!r} is to be large. Take a difference."
        raise ValueError(msg)
    _check_max_gap(max_gap)
    return _BudgetScorer(performance_scorer(performance), gap, max_gap=max_gap)


def best_within_budget(performance: str, gap: str, *, max_gap: float) -> Callable[[Mapping[str, Any]], int]:
    """Choice of the best candidate of a search under a fairness budget, for its ``refit=``.

    Among the candidates whose mean gap over the folds is at most `max_gap` the one with the best mean performance;
    if there is none, the one with the smallest mean gap.

    Parameters
    ----------
    performance, gap : str
        Keys of the two scorers in ``scoring=`` of the search. The one of the gap comes from
        :func:`fairness_scorer`.
    max_gap : float
        The budget, at least 0.

    Returns
    -------
    callable
        From ``cv_results_`` to ``best_index_``. A candidate with a NaN is never chosen.

    Raises
    ------
    ValueError
        If `max_gap` is negative. The callable: if a key is not there, if the gap's scores are positive (they are minus
        the gaps), or if every candidate has a NaN.

    Examples
    --------
    >>> from fairsteer.scoring import best_within_budget
    >>> choose = best_within_budget("accuracy", "gap", max_gap=0.05)
    >>> choose({"mean_test_accuracy": [0.9, 0.8, 0.7], "mean_test_gap": [-0.2, -0.05, -0.01]})
    1
    """
    _check_max_gap(max_gap)
    return partial(_best_within_budget, performance=performance, gap=gap, max_gap=max_gap)


def _best_within_budget(results: Mapping[str, Any], *, performance: str, gap: str, max_gap: float) -> int:
    means = {}
    for key in (performance, gap):
        if f"mean_test_{key}" not in results:
            have = [name.removeprefix("mean_test_") for name in results if name.startswith("mean_test_")]
            msg = (
                f"There is no scorer {key!r}, only {few(map(repr, have))}: name two keys of a dictionary scoring={{…}}."
            )
            raise ValueError(msg)
        means[key] = np.asarray(results[f"mean_test_{key}"], dtype=np.float64)
    if (means[gap] > 0).any():
        msg = (
            f"mean_test_{gap} has positive scores, up to {np.nanmax(means[gap]):g}. The score of a gap is minus the "
            "gap: take a scorer from fairness_scorer."
        )
        raise ValueError(msg)
    known = np.flatnonzero(np.isfinite(means[performance]) & np.isfinite(means[gap]))
    if known.size == 0:
        msg = f"None of the {len(means[gap])} candidates has a mean {performance!r} and a mean {gap!r} that are finite."
        raise ValueError(msg)
    over = np.maximum(-means[gap][known] - max_gap, 0)
    return int(known[np.lexsort([-means[performance][known], over])[0]])


def _check_max_gap(max_gap: float) -> None:
    if not max_gap >= 0:
        msg = f"max_gap must be at least 0, got {max_gap!r}."
        raise ValueError(msg)


def _all_classes(classes: Any, y_true: Any) -> Any:
    """Classes that an estimator knows, and others of the rows, where some are known; None where none are."""
    # A fold may lack some of three classes; two are compared by another rule. Or it has a class that training lacked.
    known, true = np.asarray(classes), check_classes(y_true, y_true, "y_true")
    labels = dict.fromkeys([*known.tolist(), *np.unique(true).tolist()])
    return label_array(labels) if len(labels) < len(known) + len(np.unique(true)) else None


def _name(metric: Any) -> str:
    return metric if isinstance(metric, str) else getattr(metric, "__name__", repr(metric))


def _own_metric(metric: Any) -> str | None:
    """Name of a metric of this package's, None of any other."""
    return next((name for name in MEASURES if metric == name or metric is getattr(metrics, name, None)), None)


def _find_metric(metric: str | Callable[..., float]) -> Callable[..., float]:
    """Find a metric that is not this package's."""
    if callable(metric):
        return metric
    try:
        import fairlearn.metrics
    except ImportError as error:
        msg = (
            f"{metric!r} is not a gap of fairsteer.metrics ({few(map(repr, MEASURES))}), and fairlearn is not "
            "installed: pip install 'fairsteer[report]'."
        )
        raise ImportError(msg) from error
    of_groups = {
        name: candidate
        for name, candidate in vars(fairlearn.metrics).items()
        if name.endswith(tuple(_GREATER_IS_BETTER)) and "sensitive_features" in inspect.signature(candidate).parameters
    }
    if metric not in of_groups:
        names = few(map(repr, [*MEASURES, *sorted(set(of_groups) - set(MEASURES))]), 50)
        msg = f"Neither fairsteer.metrics nor fairlearn.metrics compares groups by {metric!r}. There are {names}."
        raise ValueError(msg)
    found: Callable[..., float] = of_groups[metric]
    return found
