"""Steering and alignment chosen by cross-validation."""

from __future__ import annotations

import copy
import warnings
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.utils import get_tags, indexable
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted

from fairsteer._utils.estimators import (
    HasMethods,
    Interval,
    StrOptions,
    check_parameters,
    fit_context,
    weight_params,
)
from fairsteer._utils.folds import check_fold_classes, stratified_splits
from fairsteer._utils.html import facts_html
from fairsteer._utils.input import warn_caller
from fairsteer._utils.types import Codes, Doubles
from fairsteer.classifier._candidates import (
    ALIGNMENT,
    STRENGTH,
    Maps,
    default_candidates,
    listed_candidates,
    shared_fits,
    table_of_params,
)
from fairsteer.classifier._choice import CRITERION_OF, Choice, Constraint, Gap, HeldOutRows, choose
from fairsteer.classifier._classifier import IdealDistributionClassifier, SteeredClassifier
from fairsteer.groups import MISSING
from fairsteer.metrics._intervals import MeasuredGaps, PredictedRows
from fairsteer.metrics._rates import CRITERIA
from fairsteer.moments import SubgroupMoments
from fairsteer.score_alignment._alignment import aligned_proba
from fairsteer.score_alignment._cells import Cells
from fairsteer.score_alignment._cells import Constraint as Aligned
from fairsteer.score_alignment._cross_fitting import align, alignment_of_rows, rows_tested_once
from fairsteer.score_alignment._scores import Scores
from fairsteer.transformer import FairSteeringTransformer
from fairsteer.transformer._reading import Batch, Reading, class_codes


class IdealDistributionClassifierCV(SteeredClassifier):
    """Classifier whose steering, and whether its scores are aligned, is chosen by cross-validation.

    Every candidate is an :class:`~fairsteer.IdealDistributionClassifier`. Its accuracy and its gap between groups
    are measured on out-of-fold predictions of the rows of ``fit``; the most accurate whose gap is small enough sets the
    standard, the simplest that is about as accurate is taken and fitted to all rows. Doing nothing is a candidate too.

    Parameters
    ----------
    estimator : classifier, default=None
        Classifier to train on the steered rows. None: the Bayes classifier of the ideal distribution.
    steering : FairSteeringTransformer, default=None
        What the steering of all candidates has in common, such as `sensitive_columns`, `unknown_group` or
        `min_subgroup_size`. None: ``FairSteeringTransformer()``.
    constraint : {"equal_opportunity", "demographic_parity", "ideal"}, default="equal_opportunity"
        The gap that is meant. Of two classes: in how often rows of the second class are recognised; in how often it is
        predicted; in how often it is predicted among the rows of either class (equalized odds). Of more classes: the
        largest over all of them. Under equal opportunity the classes that `pos_label` of the steering names count.
    max_gap : float in [0, 1], default=None
        Largest out-of-fold gap between two groups that a candidate may have. None: one that chance explains (see
        Notes). Where no candidate has so small a gap, those within one standard error of the smallest gap count.
    candidates : dict or list of dict, default=None
        Grid of parameters of :class:`~fairsteer.IdealDistributionClassifier` (``score_alignment``, ``steering__…``,
        ``estimator__…``), each with a list of values, as the `param_grid` of
        :class:`~sklearn.model_selection.GridSearchCV`; **the simplest first**. None: the grid in the Notes.
    cv : int, cross-validation generator or iterable, default=5
        Splits; an integer: so many folds, stratified by class and group, without shuffling. No row may be tested
        twice.
    n_jobs : int, default=None
        Fits at the same time; -1: as many as there are processors. The result does not depend on it.
    verbose : int, default=0
        How much joblib tells of these fits.

    Attributes
    ----------
    best_estimator_ : IdealDistributionClassifier
        The candidate that was taken, fitted to all rows. It can be saved, exported and reported on by itself.
    best_params_ : dict
        Its parameters.
    best_index_ : int
        Its place in `cv_results_`.
    cv_results_ : dict of arrays
        A line for each candidate, which ``pandas.DataFrame`` takes: ``params`` and ``param_…`` as in GridSearchCV;
        ``accuracy``, ``gap``, ``demographic_parity_difference``, ``equal_opportunity_difference``,
        ``equalized_odds_difference``, each with its ``…_std_err``; ``gap_p_value``, the probability of differences as
        large if groups were treated alike; ``within_max_gap``, whether the gap allows it to be taken; ``loss`` and
        ``loss_std_err``, the accuracy lost on the same rows against the most accurate that may be taken. NaN where a
        candidate could not be fitted.
    fairness_ : MeasuredGaps
        Rates, gaps and accuracy of the out-of-fold predictions of what was taken, with exact intervals
        (:func:`~fairsteer.report.measured_gaps`). Having been chosen by them, it looks slightly better than it is.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    n_features_in_ : int
        Number of columns of `X` at ``fit``, sensitive ones included.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns of `X`, where it had string names.

    See Also
    --------
    IdealDistributionClassifier : One candidate.
    fairsteer.scoring.best_within_budget : The same choice for any search of scikit-learn's.

    Notes
    -----
    *Chance.* Each rate that the criterion compares has the chi-squared test of equal rates in all groups, and the
    smallest p-value is corrected for their number (Šidák). A gap is within chance if the p-value is at least 0.317, the
    probability of a deviation beyond one standard error: with two groups and one rate, if the gap is no larger than the
    standard error that it would have if rates were equal. With weights rows count as for :class:`SubgroupMoments`.

    *About as accurate.* Of the candidates within `max_gap` the first one is taken whose accuracy is within one standard
    error of the best of them; the error is that of the difference on the same rows.

    *Default grid.* Nothing (strength 0); the alignment of scores alone; each of the maps ``"translation"``,
    ``"diagonal"``, ``"monotone"``, ``"symmetric"``, ``"affine"``, in the order of how much they can do, for the
    `constraint` at strengths 1 and 0.5 and for ``"ideal"``; then the same followed by the alignment. That is 32
    candidates and 16 classifiers a fold, 22 and 11 for ``constraint="ideal"`` or without an `estimator`, whose Bayes
    rule is that of the ideal distribution. With more than 256 features: translation, diagonal and affine maps at full
    strength. Left out is what the `estimator` cannot do: the ideal distribution if it takes no weights, the alignment
    if it has no scores; and monotone maps if small subgroups borrow from others.

    *Cost.* A classifier is trained once for each fold and steering, with and without alignment. Moments are accumulated
    once for each fold, and those of its training rows are merged from the others. The alignment of a fold's
    scores is fitted to the other folds' out-of-fold scores.

    A candidate that cannot be fitted, in a fold say whose training rows lack a subgroup, is left out with a warning.
    Nothing is random unless the `estimator` is.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from fairsteer import IdealDistributionClassifierCV
    >>> from fairsteer.datasets import make_biased_groups
    >>> X, y, group = make_biased_groups(2000, random_state=0)
    >>> grid = {"score_alignment": [None, "equal_opportunity"], "steering__strength": [0, 1]}
    >>> search = IdealDistributionClassifierCV(LogisticRegression(), candidates=grid)
    >>> search.fit(X, y, sensitive_features=group).best_params_
    {'score_alignment': None, 'steering__strength': 1}
    >>> bool(search.fairness_.equal_opportunity.value < 0.05)
    True
    """

    _parameter_constraints = {
        "estimator": [HasMethods(["fit", "predict"]), None],
        "steering": [FairSteeringTransformer, None],
        "constraint": [StrOptions(set(CRITERION_OF))],
        "max_gap": [Interval(Real, 0, 1, closed="both"), None],
        "candidates": [dict, list, tuple, None],
        "cv": ["cv_object"],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    best_estimator_: IdealDistributionClassifier
    best_params_: dict[str, Any]
    best_index_: int
    cv_results_: dict[str, Any]
    fairness_: MeasuredGaps

    def __init__(
        self,
        estimator: Any = None,
        steering: FairSteeringTransformer | None = None,
        *,
        constraint: Constraint = "equal_opportunity",
        max_gap: float | None = None,
        candidates: Any = None,
        cv: Any = 5,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.estimator = estimator
        self.steering = steering
        self.constraint = constraint
        self.max_gap = max_gap
        self.candidates = candidates
        self.cv = cv
        self.n_jobs = n_jobs
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=False)
    def fit(
        self, X: Any, y: Any, *, sensitive_features: Any = None, sample_weight: Any = None
    ) -> IdealDistributionClassifierCV:
        """Measure all candidates out of fold, choose one, and fit it.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, with the sensitive columns if the steering has `sensitive_columns`.
        y : array-like of shape (n_samples,)
            Class labels.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels. Rows where one is missing are left out, with a warning.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights, in the fits and in what is measured; an integer weight equals as many repetitions.

        Returns
        -------
        IdealDistributionClassifierCV
            The classifier itself.

        Raises
        ------
        ValueError
            As the steering raises; if `candidates` have parameters or values that are not theirs; if a training fold
            lacks a class or a row is tested twice; if no candidate could be fitted, as the first one raises.
        """
        if y is None:
            msg = f"{type(self).__name__} requires y to be passed, but the target y is None."
            raise ValueError(msg)
        steering = FairSteeringTransformer() if self.steering is None else clone(self.steering)
        reading = steering._read(X, y, sensitive_features, sample_weight, reset=True)
        batch = reading.batch()
        model = IdealDistributionClassifier(
            self.estimator, steering, cv=self.cv, n_jobs=self.n_jobs, verbose=self.verbose
        )
        candidates = self._listed(model, batch)
        codes, groups = _groups_of(steering, batch)
        folds = self._folds(X, reading, batch, codes)
        rows = _Rows(batch, steering, codes, groups, folds, self.cv)

        parallel = Parallel(n_jobs=self.n_jobs, verbose=self.verbose)
        answers = rows.held_out(model, candidates, parallel)
        predicted = rows.predicted(candidates, answers, parallel)
        failed = [i for i, answer in enumerate(answers) if answer.error is not None]
        if len(failed) == len(candidates):
            raise ValueError(answers[0].error)
        if failed:
            warn_caller(
                f"{len(failed)} of {len(candidates)} candidates cannot be fitted and are left out. The first is "
                f"{candidates[failed[0]]}: {answers[failed[0]].error}"
            )
        tested = rows.tested
        favourable = self._favourable(steering, batch)
        gaps = [_unknown if p is None else tested.gap(p, CRITERION_OF[self.constraint], favourable) for p in predicted]
        choice = choose(tested, predicted, gaps, self.max_gap)
        if np.isnan(gaps[choice.index].value):
            warn_caller(
                f"The gap of constraint={self.constraint!r} is not known: no two groups have out-of-fold rows that it "
                "compares. The choice is by accuracy alone."
            )
        self.cv_results_ = _results(candidates, tested, predicted, gaps, choice)
        self.best_index_, self.best_params_ = choice.index, dict(candidates[choice.index])
        best = predicted[choice.index]
        assert best is not None
        self.fairness_ = PredictedRows(
            tested.y_codes, best[None], tested.group_codes, tested.weight, batch.classes, groups
        ).measure(0, 0.95, "exact", 1, 1, 0)
        self.best_estimator_ = rows.refitted(model, self.best_params_, answers[choice.index].scores)
        self.classes_ = self.best_estimator_.classes_
        self._set_columns_of(steering)
        return self

    def _listed(self, model: IdealDistributionClassifier, batch: Batch) -> list[dict[str, Any]]:
        """Check the candidates; the default ones are those that the classifier and the rows allow."""
        if self.candidates is not None:
            candidates = listed_candidates(self.candidates)
        elif len(batch.classes) == 1 or len(batch.groups) == 1:
            candidates = [{STRENGTH: 0.0}]  # any steering is the identity
        else:
            estimator, steering = self.estimator, model.steering
            assert steering is not None
            scores = estimator is None or hasattr(estimator, "predict_proba")
            candidates = default_candidates(
                self.constraint,
                n_features=batch.rows.shape[1],
                bayes=estimator is None,
                takes_weight=estimator is None or weight_params(estimator, np.ones(1)) is not None,
                has_scores=scores or (len(batch.classes) == 2 and hasattr(estimator, "decision_function")),
                lends=steering.small_subgroups == "pool" and steering.min_subgroup_size > 0,
            )
        for params in candidates:
            candidate: IdealDistributionClassifier = clone(model).set_params(**params)
            check_parameters(candidate)
            check_parameters(candidate.steering)
        return candidates

    def _favourable(self, steering: FairSteeringTransformer, batch: Batch) -> list[int] | None:
        """Classes whose recall counts, where the steering names them."""
        if self.constraint != "equal_opportunity" or steering.pos_label is None:
            return None
        named = steering._alike(constraint="equal_opportunity")
        named.classes_ = batch.classes
        labels = named._favourable()
        return [k for k, label in enumerate(batch.classes.tolist()) if label in labels]

    def _folds(self, X: Any, reading: Reading, batch: Batch, codes: Codes) -> list[tuple[Codes, Codes]]:
        """Rows to train on and to test, as positions in the batch."""
        kept = reading.grouped.kept
        y_of_all, codes_of_all = np.full((2, len(kept)), MISSING)
        y_of_all[kept], codes_of_all[kept] = batch.y_codes, codes
        place = np.cumsum(kept) - 1
        folds = [
            (place[train], place[test])
            for train, test in stratified_splits(self.cv, indexable(X)[0], y_of_all, codes_of_all, kept, frozen=False)
            if train is not None and len(test)
        ]
        if not folds:
            msg = f"cv={self.cv!r} leaves no row to test whose group is among the rows to train on."
            raise ValueError(msg)
        for train, _ in folds:
            check_fold_classes(batch.classes[np.unique(batch.y_codes[train])], batch.classes)
        return folds

    def _found_html(self) -> str:
        if not hasattr(self, "best_estimator_"):
            return ""
        measured = ", ".join(f"{name.replace('_', ' ')} {x.value:.3f}" for name, x in self.fairness_.measures.items())
        chosen = ", ".join(f"{name}={value!r}" for name, value in self.best_params_.items())
        facts = [
            ("chosen of", f"{len(self.cv_results_['params'])} candidates"),
            ("parameters", chosen or "the defaults"),
            ("out of fold", measured),
        ]
        best, steering = self.best_estimator_, self.best_estimator_.steering_
        certificate = vars(steering)["ideal_"].found_certificate
        certified = steering.constraint == "ideal" and steering.strength == 1 and best._alignment is None
        if certificate is not None and certified:
            facts.append(("the certificate", self.fairness_.equalized_odds.verdict(certificate.equalized_odds)))
        return facts_html(facts) + str(steering._found_html())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = copy.copy(get_tags(IdealDistributionClassifier(self.estimator, self.steering)).input_tags)
        return tags

    def _judge(self) -> IdealDistributionClassifier:
        check_is_fitted(self, "best_estimator_")
        return self.best_estimator_

    def _offers(self, method: str) -> bool:
        """Ask what was chosen, or, before that, the candidates that are not aligned."""
        if hasattr(self, "best_estimator_"):
            return hasattr(self.best_estimator_, method)
        return self.estimator is None or hasattr(self.estimator, method)


# ---- out-of-fold predictions


_unknown = Gap(float("nan"), float("nan"), float("nan"))


class _Answer(NamedTuple):
    """What was held out says of a candidate, or why there is nothing to say."""

    predicted: Codes | None
    """Classes without alignment, (n_rows,)."""
    scores: Scores | None
    """Scores before the alignment, of candidates that have one."""
    error: str | None = None


class _FoldAnswer(NamedTuple):
    predicted: Codes
    scores: Scores | None


class _Rows:
    """Rows of a fit, their groups, and the folds in which they are held out."""

    def __init__(
        self,
        batch: Batch,
        steering: FairSteeringTransformer,
        codes: Codes,
        groups: npt.NDArray[Any],
        folds: list[tuple[Codes, Codes]],
        cv: Any,
    ) -> None:
        self.batch, self.steering, self.codes, self.groups, self.folds = batch, steering, codes, groups, folds
        n = len(batch.y_codes)
        self.use = np.flatnonzero(rows_tested_once([test for _, test in folds], n, cv))
        self.weight: Doubles = np.ones(n) if batch.sample_weight is None else batch.sample_weight

    @property
    def tested(self) -> HeldOutRows:
        use = self.use
        return HeldOutRows(
            self.batch.y_codes[use], self.codes[use], self.weight[use], len(self.batch.classes), len(self.groups)
        )

    def held_out(
        self, model: IdealDistributionClassifier, candidates: list[dict[str, Any]], parallel: Any
    ) -> list[_Answer]:
        """Train every classifier once a fold, and ask it about the rows that it has not seen."""
        plan = shared_fits(candidates)
        aligned = [params.get(ALIGNMENT) is not None for params in candidates]
        wanted = [[(t.params, any(aligned[i] for i in t.candidates)) for t in maps.trainings] for maps in plan]
        steerings = [self.steering._alike(**_inner(maps.params)) for maps in plan]
        moments = self._moments(plan, steerings)
        found = parallel(
            delayed(_fold_answers)(model, steering, self.batch, train, test, merged[j], trainings)
            for j, (train, test) in enumerate(self.folds)
            for steering, merged, trainings in zip(steerings, moments, wanted, strict=True)
        )
        answers: list[_Answer] = [_Answer(None, None)] * len(candidates)
        for m, maps in enumerate(plan):
            for t, training in enumerate(maps.trainings):
                joined = self._joined([of_fold[t] for of_fold in found[m :: len(plan)]])
                for i in training.candidates:
                    answers[i] = joined
        return answers

    def _moments(
        self, plan: list[Maps], steerings: list[FairSteeringTransformer]
    ) -> list[list[SubgroupMoments | None]]:
        """Moments of the training rows of every fold, for every steering; None: to be accumulated from the rows."""
        nothing: list[SubgroupMoments | None] = [None] * len(self.folds)
        left_out = []
        for train, _ in self.folds:
            rest = np.ones(len(self.codes), dtype=bool)
            rest[train] = False
            left_out.append(np.flatnonzero(rest))
        if np.bincount(np.concatenate(left_out)).max() > 1:  # training rows are not those of the other folds
            return [nothing] * len(plan)
        known: dict[Any, list[SubgroupMoments | None]] = {}
        result = []
        for m, (maps, steering) in enumerate(zip(plan, steerings, strict=True)):
            own = {"steering__feature_transform", "steering__shrinkage"} & maps.params.keys()
            key = (steering.constraint == "demographic_parity", steering.covariance == "diagonal", m if own else -1)
            if key not in known:
                merged = steering._moments_without(self.batch, left_out)
                known[key] = nothing if merged is None else list(merged)
            result.append(known[key])
        return result

    def _joined(self, folds: list[_FoldAnswer | str]) -> _Answer:
        error = next((answer for answer in folds if isinstance(answer, str)), None)
        if error is not None:
            return _Answer(None, None, error)
        parts = [answer for answer in folds if not isinstance(answer, str)]
        n = len(self.codes)
        predicted = np.full(n, MISSING)
        scores = []
        for (_, test), answer in zip(self.folds, parts, strict=True):
            predicted[test] = answer.predicted
            if answer.scores is not None:
                scores.append((test, answer.scores))
        return _Answer(predicted, Scores.joined(n, scores) if scores else None)

    def predicted(self, candidates: list[dict[str, Any]], answers: list[_Answer], parallel: Any) -> list[Codes | None]:
        """Classes of the tested rows by every candidate; by an alignment that is fitted to the other folds' scores."""
        predicted = [None if a.predicted is None else a.predicted[self.use] for a in answers]
        constraints = [params.get(ALIGNMENT) for params in candidates]
        to_align = [i for i, a in enumerate(answers) if a.scores is not None and constraints[i] is not None]
        decided = parallel(delayed(self._aligned)(answers[i].scores, constraints[i]) for i in to_align)
        for i, classes in zip(to_align, decided, strict=True):
            if isinstance(classes, str):
                answers[i] = _Answer(None, None, classes)
            predicted[i] = None if isinstance(classes, str) else classes[self.use]
        return predicted

    def _aligned(self, scores: Scores, constraint: Aligned) -> Codes | str:
        predicted = np.full(len(self.codes), MISSING)
        try:
            for _, test in self.folds:
                others = np.setdiff1d(self.use, test)
                if not len(others):
                    return "an alignment needs out-of-fold scores of other rows: let cv have two folds or more."
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # the fit on all rows says what there is to say
                    maps = align(scores.take(others), self._cells(others, self.codes, len(self.groups), constraint))
                proba = aligned_proba(maps, scores.take(test), self.codes[test], np.zeros(len(self.groups)))
                predicted[test] = proba.argmax(axis=1)
        except ValueError as error:
            return str(error)
        return predicted

    def _cells(self, rows: Codes, codes: Codes, n_groups: int, constraint: Aligned) -> Cells:
        return Cells.of_rows(
            self.batch.y_codes[rows], codes[rows], self.weight[rows],
            n_classes=len(self.batch.classes), n_groups=n_groups, constraint=constraint,
        )  # fmt: skip

    def refitted(
        self, model: IdealDistributionClassifier, params: dict[str, Any], scores: Scores | None
    ) -> IdealDistributionClassifier:
        """Fit a candidate to all rows, its alignment to the scores out of fold."""
        best: IdealDistributionClassifier = clone(model).set_params(**params)
        steering = self.steering._alike(**_inner(params))
        with warnings.catch_warnings():
            if steering.strength == 0 and best.estimator is not None:
                warnings.simplefilter("ignore", UserWarning)  # of maps that move nothing
            steering._fit_batch(self.batch)
        best._fit_batch(steering, self.batch)
        best._set_columns_of(steering)
        if best.score_alignment is not None and scores is not None and len(best.classes_) > 1:
            codes = steering._group_of_label[self.batch.group_codes] if self.batch.encoder else self.codes
            cells = self._cells(self.use, codes, len(steering.groups_), best.score_alignment)
            best._alignment = alignment_of_rows(scores.take(self.use), cells, best.classes_, steering.groups_)
        return best


def _inner(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of the steering."""
    head = "steering__"
    return {name.removeprefix(head): value for name, value in params.items() if name.startswith(head)}


def _groups_of(steering: FairSteeringTransformer, batch: Batch) -> tuple[Codes, npt.NDArray[Any]]:
    """Find the groups of rows, small ones merged if that is what the steering does."""
    counted = steering._alike()
    counts = SubgroupMoments(1, classes=batch.classes, groups=batch.groups, covariance="diagonal")
    counts.update(np.zeros((len(batch.y_codes), 1)), batch.y_codes, batch.group_codes, batch.sample_weight)
    counted._set_moments(counts, batch._replace(encoder=copy.copy(batch.encoder)))
    return counted._group_of_label[batch.group_codes], counted.groups_


def _fold_answers(
    model: IdealDistributionClassifier,
    steering: FairSteeringTransformer,
    batch: Batch,
    train: Codes,
    test: Codes,
    moments: SubgroupMoments | None,
    trainings: list[tuple[dict[str, Any], bool]],
) -> list[_FoldAnswer | str]:
    """Fit maps to the training rows of a fold, train classifiers on what they make of them, and ask these."""
    some = batch.take(train)
    if len(some.classes) < len(batch.classes) or len(some.groups) < len(batch.groups):
        moments = None  # it has cells that these rows know nothing of
    answers: list[_FoldAnswer | str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the fit on all rows says what there is to say
        try:
            fitted = steering._fit_alike(some, moments)
        except ValueError as error:
            return [str(error)] * len(trainings)
        for params, scored in trainings:
            candidate: IdealDistributionClassifier = clone(model).set_params(**{**params, ALIGNMENT: None})
            assert candidate.steering is not None
            moved = copy.copy(fitted).set_params(strength=candidate.steering.strength)
            try:
                candidate._fit_batch(moved, some)
                rows, codes = batch.rows[test], candidate._codes_of_labels(batch, test)
                predicted = class_codes(candidate._predict(rows, codes), rows, batch.classes)
                scores = candidate._scores(rows, codes) if scored else None
            except ValueError as error:
                answers.append(str(error))
            else:
                answers.append(_FoldAnswer(predicted, scores))
    return answers


def _results(
    candidates: list[dict[str, Any]],
    tested: HeldOutRows,
    predicted: list[Codes | None],
    gaps: list[Gap],
    choice: Choice,
) -> dict[str, Any]:
    table = table_of_params(candidates)
    nan = float("nan")
    table["accuracy"], table["accuracy_std_err"] = np.array(
        [(nan, nan) if classes is None else tested.accuracy(classes) for classes in predicted]
    ).T
    table["gap"], table["gap_std_err"], table["gap_p_value"] = np.array(gaps, dtype=np.float64).T
    for name in CRITERIA:
        of_criterion = [_unknown if classes is None else tested.gap(classes, name) for classes in predicted]
        columns = np.array(of_criterion, dtype=np.float64).T
        table[f"{name}_difference"], table[f"{name}_difference_std_err"] = columns[:2]
    table["within_max_gap"] = choice.within
    table["loss"], table["loss_std_err"] = choice.loss, choice.loss_std_err
    return table
