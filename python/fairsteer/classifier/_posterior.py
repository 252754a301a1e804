"""Any classifier, its posterior mapped to that of the nearest ideal distribution."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from numbers import Integral
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, softmax
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_array, indexable
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted, validate_data

from fairsteer._utils.calibration import VectorScaling
from fairsteer._utils.estimators import HasMethods, Interval, StrOptions, asked_method, fit_context
from fairsteer._utils.folds import rows_of, stratified_splits
from fairsteer._utils.html import facts_html
from fairsteer._utils.input import brief, check_classes, few, num_rows, warn_caller
from fairsteer._utils.labels import label_array, label_text
from fairsteer._utils.types import Codes, Doubles
from fairsteer._utils.weights import check_sample_weight, rows_behind
from fairsteer.groups import GroupedRows, joint_label
from fairsteer.ideal import (
    MOST_CLASSES,
    IdealOfRows,
    Intervention,
    Mode,
    PosteriorCertificate,
    nearest_ideal_posterior,
)
from fairsteer.moments._standardizing import small_columns
from fairsteer.score_alignment._cross_fitting import refitted_scores, rows_tested_once
from fairsteer.score_alignment._scores import Scores, class_scores
from fairsteer.score_alignment._wrapping import WrappingClassifier, class_codes_of


class RepairedRows(NamedTuple):
    """Rows of the ideal distribution: features as they were, under weights and soft labels."""

    X: Any
    """Rows, in the container they came in."""
    proba: Doubles
    """Soft labels: probabilities of the classes, (n_rows, n_classes)."""
    sample_weight: Doubles
    """(n_rows,)."""
    classes: npt.NDArray[Any]
    """Labels of the classes."""

    def expanded(self) -> tuple[Any, npt.NDArray[Any], Doubles]:
        """Give every row once with each class, weighted by its soft label, as any scikit-learn classifier takes them.

        Returns
        -------
        X : of n_classes * n_rows rows, or fewer where a soft label is 0
            The rows, one class after the other.
        y : ndarray
            Hard labels.
        sample_weight : ndarray
            Weights; those of a row sum to its own.
        """
        n = len(self.sample_weight)
        weight = (self.proba * self.sample_weight[:, None]).T.ravel()
        rows = np.flatnonzero(weight > 0)
        (X,) = rows_of((self.X,), rows % n)
        return X, self.classes[rows // n], weight[rows]


class _Asking(NamedTuple):
    """Rows that classifiers are trained and asked on."""

    X: Any
    y: npt.NDArray[Any]
    y_codes: Codes
    codes: Codes
    weight: Doubles
    to_fit: Mapping[str, Any]
    to_ask: Mapping[str, Any]


PosteriorKind = Literal["auto", "pooled", "by_group"]


class IdealPosteriorClassifier(WrappingClassifier):
    """Any classifier, made fair by the nearest ideal distribution, whatever its features follow.

    The classifier is trained, on all rows and on those of each group; its out-of-fold scores are calibrated by group;
    and the distribution is sought that is nearest to the data (in KL divergence) and on which the posterior has the
    same law in every group, so that every cost-sensitive Bayes classifier is exactly fair. It leaves features alone: a
    row's posterior ``s`` becomes ``h_a(s)``, with two classes one rising function for each group. ``predict_proba``
    answers that, and `repair` gives weights and soft labels under which any other model learns it.

    Parameters
    ----------
    estimator : classifier
        Classifier to train; clones are fitted. It has ``predict_proba`` or, with two classes, ``decision_function``.
        One that is fitted already is wrapped in :class:`sklearn.frozen.FrozenEstimator`; the rows given to ``fit`` must
        then be others than those it was trained on.
    intervention : {"all_subgroups", "affirmative"}, default="all_subgroups"
        Whether every group may change, or all but a reference group, whose posteriors are kept.
    mode : {"joint", "labels", "weights"}, default="joint"
        What may change: weights and labels; labels alone; or weights alone, which makes class and group
        independent, as reweighing does, and equalises base rates, not posteriors.
    reference_group : object, default=None
        Label of the reference group of "affirmative"; None: the one with the most weight.
    posterior : {"auto", "pooled", "by_group"}, default="auto"
        Whose posterior of a group is taken: that of the classifier trained on all rows, or of one trained on the
        group's. What the posterior does not know of a group, such as that its features mean something else there, the
        ideal distribution cannot mend. "auto": the one whose calibrated out-of-fold log loss in the group is smaller.
        A group that lacks a class in a training fold, and a frozen classifier, have the pooled one alone.
    cost_matrix : array-like of shape (n_classes, n_classes), default=None
        Cost of predicting class ``j`` (column) where class ``i`` (row) is true, in the order of ``classes_``. None:
        1 for every error.
    cv : int, cross-validation generator or iterable, default=5
        Splits whose test rows give the out-of-fold scores. An integer: so many folds, stratified by class and group.
        Every row must be tested at most once.
    sensitive_columns : str, int, list of these, slice, mask, callable or None, default=None
        Columns of `X` that hold the groups. The `estimator` gets them too. None: groups come as `sensitive_features`.
    min_subgroup_size : int, default=0
        Rows that every class should have in every group; weights count as the rows they are worth.
    small_subgroups : {"error", "merge"}, default="error"
        What happens to groups with fewer: a ValueError that lists them; or they are one group, joined by the next
        smallest ones until it has enough.
    unknown_group : {"error", "average"}, default="error"
        What happens to a row whose group is missing, was not there at ``fit``, or is not given at all: a
        ValueError, or the average of what each group would get, weighted by their shares.
    n_jobs : int, default=None
        Folds that are fitted at once, in processes; None is 1 unless in a ``joblib.parallel_config``, -1 as many as
        there are cores.
    verbose : int, default=0
        How much is printed of the progress over the folds, as by :class:`joblib.Parallel`.

    Attributes
    ----------
    estimator_ : classifier
        The fitted classifier.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    groups_ : ndarray of shape (n_groups,)
        Group labels, tuples if there are several sensitive columns; ``[0]`` if fitted without groups. Small groups
        that are merged are one, "(small groups)".
    group_estimators_ : dict
        Group label to the classifier trained on the group's rows, where the posterior is taken from that.
    calibration_ : dict
        Group label to the :class:`VectorScaling` of its scores.
    ideal_ : IdealPosterior, IdealPosteriorCells or None
        The ideal distribution, of two classes or of more; None where there is one class.
    h_ : dict
        Group label to the group's posteriors and the ideal ones that they become, two arrays: of the second class, or
        with more than two classes of all, a column each.
    kl_divergence_ : float
        KL divergence of the ideal distribution from the data, in nats.
    subgroup_divergence_ : ndarray of shape (n_classes, n_groups)
        The same of the rows of each class and group.
    certificate_ : PosteriorCertificate
        Bounds on the gaps and the loss of accuracy of fair classifiers on these rows.
    calibration_error_ : ndarray of shape (n_groups,)
        How far the calibrated out-of-fold posterior is from the rates of the classes: mean absolute difference over
        ten bins of equal weight, half the sum over classes. The certificate holds up to this uncertainty.
    cost_matrix_ : ndarray of shape (n_classes, n_classes) or None
        The validated `cost_matrix`.
    n_features_in_ : int
        Number of columns of `X` at ``fit``, sensitive ones included.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns of `X`, where it had string names.

    See Also
    --------
    IdealDistributionClassifier : The Gaussian way, for more than ten classes too.
    ScoreAligner : Equal rates, instead of an ideal distribution.
    fairsteer.ideal.nearest_ideal_posterior : The same of posteriors that are known already.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from fairsteer import IdealPosteriorClassifier
    >>> from fairsteer.datasets import make_biased_groups
    >>> X, y, group = make_biased_groups(2000, random_state=0)
    >>> classifier = IdealPosteriorClassifier(LogisticRegression()).fit(X, y, sensitive_features=group)
    >>> proba = classifier.predict_proba(X, sensitive_features=group)[:, 1]
    >>> bool(abs(proba[group == 0].mean() - proba[group == 1].mean()) < 0.03)
    True
    >>> repaired = classifier.repair(X, y, sensitive_features=group)
    >>> rows, labels, weight = repaired.expanded()
    >>> rows.shape, labels.shape, weight.shape
    ((4000, 4), (4000,), (4000,))
    """

    _fitted_to_scores: ClassVar[str] = "the ideal distribution"

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "estimator": [HasMethods(["fit", "predict_proba"]), HasMethods(["fit", "decision_function"])],
        "intervention": [StrOptions({"all_subgroups", "affirmative"})],
        "mode": [StrOptions({"joint", "labels", "weights"})],
        "reference_group": "no_validation",
        "posterior": [StrOptions({"auto", "pooled", "by_group"})],
        "cost_matrix": ["array-like", None],
        "cv": ["cv_object"],
        "sensitive_columns": [str, Integral, slice, "array-like", callable, None],
        "min_subgroup_size": [Interval(Integral, 0, None, closed="left")],
        "small_subgroups": [StrOptions({"error", "merge"})],
        "unknown_group": [StrOptions({"error", "average"})],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        intervention: Intervention = "all_subgroups",
        mode: Mode = "joint",
        reference_group: Any = None,
        posterior: PosteriorKind = "auto",
        cost_matrix: Any = None,
        cv: Any = 5,
        sensitive_columns: Any = None,
        min_subgroup_size: int = 0,
        small_subgroups: Literal["error", "merge"] = "error",
        unknown_group: str = "error",
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.estimator = estimator
        self.intervention = intervention
        self.mode = mode
        self.reference_group = reference_group
        self.posterior = posterior
        self.cost_matrix = cost_matrix
        self.cv = cv
        self.sensitive_columns = sensitive_columns
        self.min_subgroup_size = min_subgroup_size
        self.small_subgroups = small_subgroups
        self.unknown_group = unknown_group
        self.n_jobs = n_jobs
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=False)
    def fit(
        self, X: Any, y: Any, *, sensitive_features: Any = None, sample_weight: Any = None
    ) -> IdealPosteriorClassifier:
        """Train the classifier, and find the ideal distribution of its out-of-fold posteriors.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, as the `estimator` takes them, with the sensitive columns if there are `sensitive_columns`.
        y : array-like of shape (n_samples,)
            Class labels, of at most ten classes.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels. Rows where one is missing are left out, with a warning. The `estimator` gets them too if its
            ``fit`` takes them.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights.

        Returns
        -------
        IdealPosteriorClassifier
            The classifier itself.

        Raises
        ------
        ValueError
            If there are more than ten classes; if groups are given twice or are no discrete labels, a class has too few
            rows in a group and ``small_subgroups="error"``, no rows are left, a training fold lacks a class, a row is
            tested twice, or `cost_matrix` has the wrong shape.
        """
        validate_data(self, X, y, skip_check_array=True)
        (X,) = indexable(X)
        labels = self._labels_of(X, sensitive_features, reset=True)
        y = check_classes(y, X)
        weight = check_sample_weight(sample_weight, X)
        grouped = GroupedRows.read(labels, X, weight, purpose="there is nothing to make ideal: all rows form one group")
        weight = np.ones(len(y)) if weight is None else weight
        self._encoder, kept = grouped.encoder, grouped.kept
        self._check_classes(np.unique(y[kept]))
        to_fit, to_ask = self._of_estimator(sensitive_features, None if sample_weight is None else weight)
        self.estimator_ = self._trained(X, y, kept, to_fit)
        self.classes_ = np.asarray(getattr(self.estimator_, "classes_", np.unique(y[kept])))
        self._check_classes(self.classes_)
        self.cost_matrix_ = self._check_cost_matrix()
        y_codes = class_codes_of(y, kept, self.classes_)
        all_codes = self._merged(grouped, y_codes, weight)
        self._shares = np.bincount(all_codes[kept], weight[kept]) / weight[kept].sum()
        self.ideal_: IdealOfRows | None = None
        self.group_estimators_: dict[Any, Any] = {}
        if len(self.classes_) == 1:
            return self
        every = range(len(self.groups_))
        asking = _Asking(X, y, y_codes, all_codes, weight, to_fit, to_ask)
        folds = self._folds(asking)
        own = self._with_own(asking, folds)
        scores, use = self._held_out_scores(asking, folds, own)
        codes, y_codes, weight = all_codes[use], y_codes[use], weight[use]
        without = np.setdiff1d(np.arange(len(self.groups_)), codes)
        if without.size:
            msg = (
                f"There is no out-of-fold row of the groups {few(map(repr, self.groups_[without].tolist()))}, whose "
                "posterior is then not known. Lower cv, or leave these groups out."
            )
            raise ValueError(msg)
        self._scalings, pooled = [], []
        for a in every:
            rows = codes == a
            fits = [_calibrated_fit(one[use][rows], y_codes[rows], weight[rows]) for one in scores]
            known = [a not in own, a in own] if self.posterior == "by_group" else [True, a in own]
            losses = [loss if there else np.inf for (_, loss), there in zip(fits, known, strict=True)]
            pooled.append(losses[0] <= losses[1])
            self._scalings.append(fits[0 if pooled[a] else 1][0])
        chosen = np.where(np.array(pooled)[all_codes, None], _rows(scores[0]), _rows(scores[1]))[use]
        for a, label in enumerate(self.groups_.tolist()):
            if not pooled[a]:
                self.group_estimators_[label] = self._trained(X, y, kept & (all_codes == a), to_fit)
        self.calibration_ = dict(zip(self.groups_.tolist(), self._scalings, strict=True))
        posterior = self._calibrated(chosen, codes)
        self.calibration_error_ = np.array(
            [_calibration_error(*(part[codes == a] for part in (posterior, y_codes, weight))) for a in every]
        )
        reference = self.reference_group
        if reference is not None and reference not in self.groups_.tolist():
            msg = f"reference_group={reference!r} is not among the groups {few(map(repr, self.groups_.tolist()))}."
            raise ValueError(msg)
        position = None if reference is None else self.groups_.tolist().index(reference)
        self.ideal_ = nearest_ideal_posterior(
            posterior, codes, weight, intervention=self.intervention, mode=self.mode, reference_group=position
        ).with_groups(self.groups_)
        if not self.ideal_.converged:
            warn_caller(
                f"The ideal distribution is known to {self.ideal_.dual_gap:.2g} nats only: a step of the solver failed."
            )
        return self

    @property
    def h_(self) -> dict[Any, tuple[Doubles, Doubles]]:
        """Group label to the group's posteriors and the ideal ones that they become."""
        return self._ideal().h

    @property
    def kl_divergence_(self) -> float:
        """KL divergence of the ideal distribution from the data, in nats."""
        return self._ideal().kl_divergence

    @property
    def subgroup_divergence_(self) -> Doubles:
        """KL divergence of the rows of each class and group, in nats, (2, n_groups)."""
        return self._ideal().subgroup_divergence

    @property
    def certificate_(self) -> PosteriorCertificate:
        """Bounds on gaps and accuracy for these rows."""
        return self._ideal().certificate

    def repair(self, X: Any, y: Any, *, sensitive_features: Any = None, sample_weight: Any = None) -> RepairedRows:
        """Weights and soft labels that turn rows into rows of the ideal distribution, for training any model.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, those of ``fit`` or others.
        y : array-like of shape (n_samples,)
            Their classes. A row's posterior is that of the `estimator` trained on the other rows, in folds as at
            ``fit``, so that no row is repaired by a model that has seen its label.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels, unless there are `sensitive_columns`; all must be known.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows.

        Returns
        -------
        RepairedRows
            The rows that are in a test fold, with soft labels and weights; its ``expanded()`` has every row once
            with each class. With ``mode="weights"`` labels stay what they are.

        Raises
        ------
        ValueError
            As ``fit``; if a group or class was not there at ``fit``.
        """
        ideal = self._ideal()
        validate_data(self, X, reset=False, skip_check_array=True)
        (X,) = indexable(X)
        y = check_classes(y, X)
        weight = check_sample_weight(sample_weight, X)
        weight = np.ones(len(y)) if weight is None else weight
        codes = self._codes(self._labels_of(X, sensitive_features, reset=False), X)
        kept = (codes >= 0) & (weight > 0)
        y_codes = class_codes_of(y, np.ones(len(y), dtype=bool), self.classes_)
        to_fit, to_ask = self._of_estimator(sensitive_features, None if sample_weight is None else weight)
        asking = _Asking(X, y, y_codes, np.where(kept, codes, -1), weight, to_fit, to_ask)
        own = [a for a, label in enumerate(self.groups_.tolist()) if label in self.group_estimators_]
        (pooled, of_group), use = self._held_out_scores(asking, self._folds(asking), own)
        a = codes[use]
        posterior = self._calibrated(np.where(np.isin(a, own)[:, None], _rows(of_group)[use], _rows(pooled)[use]), a)
        rows, labels = rows_of((X, y_codes), use)
        if self.mode == "weights":
            proba = np.eye(len(self.classes_))[labels]
            factor = ideal.ideal_class_rates[labels] / ideal.class_rates[labels, a]
            factor = factor * (ideal.group_prior / ideal.source_group_prior)[a]
        else:
            proba = _ideal_proba(ideal, posterior, a)
            factor = ideal.sample_weight(posterior, a)
        return RepairedRows(rows, proba, weight[use] * factor, self.classes_)

    # ---- scores and posteriors

    def _of_estimator(self, sensitive_features: Any, weight: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keywords for fitting the classifier and for asking it."""
        metadata = {} if sensitive_features is None else {"sensitive_features": sensitive_features}
        given = {} if weight is None else {"sample_weight": weight}
        to_fit = self._passed_on("fit", "fit", metadata | given)
        return to_fit, self._passed_on("fit", asked_method(self.estimator), metadata)

    def _found_html(self) -> str:
        if getattr(self, "ideal_", None) is None:
            return ""
        assert self.ideal_ is not None
        labels = self.groups_.tolist()
        errors = few([f"{label_text(g)} {error:.3g}" for g, error in zip(labels, self.calibration_error_, strict=True)])
        own = few([label_text(label) for label in self.group_estimators_]) or "none"
        facts = [("calibration error", errors), ("posterior by a classifier of their own", own)]
        return self.ideal_._repr_html_() + facts_html(facts)

    def _ideal(self) -> IdealOfRows:
        check_is_fitted(self, "estimator_")
        if self.ideal_ is None:
            msg = f"There is one class, {self.classes_.tolist()[0]!r}, and no ideal distribution of its posterior."
            raise AttributeError(msg)
        return self.ideal_

    def _trained(self, X: Any, y: npt.NDArray[Any], rows: npt.NDArray[np.bool_], to_fit: Mapping[str, Any]) -> Any:
        """Clone of the classifier, fitted to some rows."""
        values = dict(zip(to_fit, rows_of(to_fit.values(), rows), strict=True))
        return clone(self.estimator).fit(*rows_of((X, y), rows), **values)

    def _merged(self, grouped: GroupedRows, y_codes: Codes, weight: Doubles) -> Codes:
        """Codes of the groups once small ones are merged, those of rows left out negative."""
        labels, kept, K = grouped.groups.tolist(), grouped.kept, len(self.classes_)
        cells = y_codes[kept] * len(labels) + grouped.codes[kept]
        counts, squares = (
            np.bincount(cells, values[kept], K * len(labels)).astype(np.float64).reshape(K, -1)
            for values in (weight, weight**2)
        )
        self._group_of_label = np.arange(len(labels))
        self.groups_ = grouped.groups
        sizes = rows_behind(counts, squares)
        if self.min_subgroup_size and (sizes < self.min_subgroup_size).any():
            if self.small_subgroups == "error":
                raise ValueError(self._too_small(sizes, labels, "make small groups one by small_subgroups='merge', or"))
            small = small_columns(counts, squares, self.min_subgroup_size)
            if len(small) == len(labels) > 1:
                raise ValueError(self._too_small(sizes, labels, "all groups would have to merge into one:"))
            if self.reference_group in [labels[a] for a in small]:
                msg = (
                    f"reference_group={brief(self.reference_group)} is too small to stay: it is merged with others, as "
                    f"a class has fewer than min_subgroup_size={self.min_subgroup_size} rows in it. Name another."
                )
                raise ValueError(msg)
            left = [a for a in range(len(labels)) if a not in small]
            self._group_of_label[left] = np.arange(len(left))
            self._group_of_label[small] = len(left)
            self.groups_ = label_array([*(labels[a] for a in left), joint_label(labels)])
        return np.where(kept, self._group_of_label[np.where(kept, grouped.codes, 0)], -1)

    def _too_small(self, sizes: Doubles, labels: list[Any], way_out: str) -> str:
        cells = [
            f"group {labels[a]!r} has {sizes[k, a]:.4g} of class {self.classes_.tolist()[k]!r}"
            for k, a in np.argwhere(sizes < self.min_subgroup_size)
        ]
        return (
            f"{len(cells)} of {sizes.size} subgroups have fewer than min_subgroup_size={self.min_subgroup_size} rows "
            f"({few(cells)}); {way_out} lower min_subgroup_size."
        )

    def _codes(self, labels: Any, X: Any) -> Codes:
        codes = super()._codes(labels, X)
        return np.where(codes >= 0, self._group_of_label[np.maximum(codes, 0)], codes)

    def _folds(self, asking: _Asking) -> list[tuple[Codes | None, Codes]]:
        frozen = isinstance(self.estimator, FrozenEstimator)
        kept = (asking.codes >= 0) & (asking.weight > 0)
        return list(stratified_splits(self.cv, asking.X, asking.y_codes, asking.codes, kept, frozen=frozen))

    def _with_own(self, asking: _Asking, folds: list[tuple[Codes | None, Codes]]) -> list[int]:
        """List groups that may have a classifier of their own: every class is there in every training fold."""
        groups = range(len(self.groups_))
        if self.posterior == "pooled" or len(groups) == 1:
            return []
        found = []
        for a in groups:
            of_group = [asking.y_codes[train[asking.codes[train] == a]] for train, _ in folds if train is not None]
            if of_group and all(len(np.unique(labels)) == len(self.classes_) for labels in of_group):
                found.append(a)
        return found

    def _held_out_scores(
        self, asking: _Asking, folds: list[tuple[Codes | None, Codes]], own: list[int]
    ) -> tuple[tuple[Doubles, Doubles], npt.NDArray[np.bool_]]:
        """Scores of rows by clones that were fitted without them, and which rows these are.

        Scores are of all rows, once by clones that were fitted to all groups and once to the row's group; NaN where
        there is none.
        """
        ask = refitted_scores(self.estimator, asking.X, asking.y, self.classes_, asking.to_fit, asking.to_ask)
        tasks = [(-1, train, test) for train, test in folds]
        for a in own:
            for train, test in folds:
                of_group = test[asking.codes[test] == a]
                if train is not None and of_group.size:
                    tasks.append((a, train[asking.codes[train] == a], of_group))
        found = Parallel(n_jobs=self.n_jobs, verbose=self.verbose)(
            delayed(_silently)(ask, train, test) for _, train, test in tasks
        )
        use = rows_tested_once([test for _, test in folds], len(asking.y), self.cv)
        parts: tuple[list[Any], list[Any]] = ([], [])
        for (a, _, test), scores in zip(tasks, found, strict=True):
            parts[a >= 0].append((test, scores))
        pooled = Scores.joined(len(asking.y), parts[0]).values
        return (
            pooled,
            Scores.joined(len(asking.y), parts[1]).values if parts[1] else np.full_like(pooled, np.nan),
        ), use

    def _calibrated(self, scores: Doubles, codes: Codes) -> Doubles:
        """Posterior of the classes in the groups of the rows."""
        posterior = np.empty((len(scores), len(self.classes_)))
        for a, scaling in enumerate(self._scalings):
            rows = codes == a
            posterior[rows] = softmax(scaling.apply(_log_proba(scores[rows])), axis=1)
        return posterior

    def _decided(self, proba: Doubles) -> Codes:
        return super()._decided(proba) if self.cost_matrix_ is None else (proba @ self.cost_matrix_).argmin(axis=1)

    def _proba(self, caller: str, X: Any, sensitive_features: Any) -> Doubles:
        check_is_fitted(self, "estimator_")
        metadata = {} if sensitive_features is None else {"sensitive_features": sensitive_features}
        if self.ideal_ is None:
            validate_data(self, X, reset=False, skip_check_array=True)
            return np.ones((num_rows(X), 1))
        # First, since the classifier knows best what is wrong with rows that it cannot take.
        passed = self._passed_on(caller, asked_method(self.estimator_), metadata)
        scores = class_scores(self.estimator_, X, self.classes_, passed).values
        validate_data(self, X, reset=False, skip_check_array=True)
        codes = self._codes(self._labels_of(X, sensitive_features, reset=False), X)
        (X,) = indexable(X)
        result = np.zeros((len(codes), len(self.classes_)))
        for a, label in enumerate(self.groups_.tolist()):
            rows = np.flatnonzero((codes == a) | (codes < 0))
            if not rows.size:
                continue
            of_rows = scores[rows]
            if label in self.group_estimators_:
                some, *values = rows_of((X, *passed.values()), rows)
                given = dict(zip(passed, values, strict=True))
                of_rows = class_scores(self.group_estimators_[label], some, self.classes_, given, rows).values
            as_if = np.full(len(rows), a)
            t = _ideal_proba(self.ideal_, self._calibrated(of_rows, as_if), as_if)
            result[rows] += np.where(codes[rows] < 0, self._shares[a], 1.0)[:, None] * t
        return result

    def _check_classes(self, classes: npt.NDArray[Any]) -> None:
        if len(classes) > MOST_CLASSES:
            msg = (
                f"{type(self).__name__} knows the ideal distribution of {MOST_CLASSES} classes at most, and y holds "
                f"{len(classes)} ({few(map(repr, classes.tolist()))}). IdealDistributionClassifier, which models the "
                "features as Gaussian, takes any number."
            )
            raise ValueError(msg)

    def _check_cost_matrix(self) -> Doubles | None:
        if self.cost_matrix is None:
            return None
        costs: Doubles = check_array(self.cost_matrix, dtype=np.float64, input_name="cost_matrix")
        n_classes = len(self.classes_)
        if costs.shape != (n_classes, n_classes):
            msg = (
                f"cost_matrix has shape {costs.shape}, but there are {n_classes} classes "
                f"({few(map(repr, self.classes_.tolist()))}): it must have shape {(n_classes, n_classes)}, with the "
                "cost of predicting class j where class i is true in row i, column j."
            )
            raise ValueError(msg)
        return costs


def _silently(ask: Any, train: Codes | None, test: Codes) -> Scores:
    with warnings.catch_warnings():
        if train is not None:
            warnings.simplefilter("ignore", UserWarning)  # the fit on all rows has said what there is to say
        scores: Scores = ask(train, test)
        return scores


def _rows(scores: Doubles) -> Doubles:
    """Scores, a row each."""
    return scores if scores.ndim == 2 else scores[:, None]


def _log_proba(scores: Doubles) -> Doubles:
    """Log-probabilities of the classes, from them or, where there are two, from the log-odds of the second."""
    scores = _rows(scores)
    if scores.shape[1] == 1:
        return -np.logaddexp(0, np.column_stack([scores, -scores]))
    return np.log(np.maximum(scores, np.finfo(np.float64).tiny))


def _calibrated_fit(scores: Doubles, y: Codes, weight: Doubles) -> tuple[VectorScaling, float]:
    """Calibration of a group's scores, and its mean log loss; infinite where there are none."""
    if np.isnan(scores).any():
        return VectorScaling(1.0, np.zeros(1)), np.inf
    log_proba = _log_proba(scores)
    scaling = VectorScaling.fit(log_proba, y, weight)
    truth = log_softmax(scaling.apply(log_proba), axis=1)[np.arange(len(y)), y]
    return scaling, float(-np.average(truth, weights=weight))


def _ideal_proba(ideal: IdealOfRows, posterior: Doubles, codes: Codes) -> Doubles:
    """Ideal posterior of the classes, of two as of more."""
    t = ideal.ideal_posterior(posterior, codes)
    return t if t.ndim == 2 else np.column_stack([1 - t, t])


def _calibration_error(posterior: Doubles, y: Codes, weight: Doubles) -> float:
    total = 0.0
    for k, of_class in enumerate(posterior.T):
        order = np.argsort(of_class, kind="stable")
        place = np.cumsum(weight[order]) / weight.sum()
        bins = np.minimum((10 * place).astype(int), 9)
        difference = np.bincount(bins, weight[order] * ((y == k)[order] - of_class[order]))
        total += float(np.abs(difference).sum() / weight.sum())
    return total / 2
