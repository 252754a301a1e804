"""Scores of any classifier, aligned between groups on rows that it was not trained on."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import indexable
from sklearn.utils.validation import check_is_fitted, validate_data

from fairsteer._utils.estimators import HasMethods, Interval, StrOptions, asked_method, fit_context
from fairsteer._utils.folds import rows_of
from fairsteer._utils.input import check_classes
from fairsteer._utils.types import Doubles
from fairsteer._utils.weights import check_sample_weight
from fairsteer.groups import GroupedRows
from fairsteer.score_alignment._alignment import Alignment, GapBand, aligned_proba
from fairsteer.score_alignment._cells import Agg, Constraint
from fairsteer.score_alignment._cross_fitting import cross_fitted_alignment, refitted_scores
from fairsteer.score_alignment._scores import class_scores
from fairsteer.score_alignment._wrapping import WrappingClassifier, class_codes_of


class ScoreAligner(WrappingClassifier):
    """Any classifier, its scores aligned so that groups are predicted each class at equal rates.

    The classifier is trained, and its scores are mapped by group: so that the groups' true-positive
    rates are equal (equal opportunity), or the shares of rows that they get a class predicted for
    (demographic parity). The maps are fitted on out-of-fold scores. Nothing is random; a row's group
    is needed when predicting, its class is not.

    Parameters
    ----------
    estimator : classifier
        Classifier to train and to align; a clone is fitted. It has ``predict_proba`` or, with two
        classes, ``decision_function``. One that is fitted already is wrapped in
        :class:`sklearn.frozen.FrozenEstimator`: the rows given to ``fit`` must then be others than
        those it was trained on.
    constraint : {"equal_opportunity", "demographic_parity"}, default="equal_opportunity"
        What is made equal between groups. With two classes it concerns the second of ``classes_``,
        at every threshold; with more, every class, where the most probable one is predicted.
    max_gap : float in [0, 1], default=0.0
        Gap between any two groups that may stay on the out-of-fold rows; the larger, the less
        scores change.
    agg : {"max", "rms"}, default="max"
        With more than two classes, what `max_gap` bounds: the largest gap of the classes, or the root
        mean square of the gaps (:func:`fairsteer.metrics.tpr_gap_rms`). For the same root mean square
        ``"rms"`` costs less accuracy: it leaves gaps where they are expensive to close.
    calibrate : bool, default=False
        With more than two classes, whether each group's probabilities are calibrated first, by a slope
        and an offset for each class of their logarithms [3]_, on the out-of-fold rows. The alignment
        loses less accuracy the better the probabilities are, so use it for a classifier that is too
        sure, or does not know the groups. Predictions then change also where no gap has to be closed.
    prior_rows : float >= 0, default=10.0
        With more than two classes and equal opportunity: for how many rows the classifier's own
        probabilities count when the true-positive rate of a class in a group is estimated. At 0 the
        rates of the out-of-fold rows are made equal, however few there are.
    cv : int, cross-validation generator or iterable, default=5
        Splits whose test rows give the out-of-fold scores. An integer: so many folds, stratified by
        class and group. Every row must be tested at most once.
    sensitive_columns : str, int, list of these, slice, mask, callable or None, default=None
        Columns of `X` that hold the groups, as for :class:`~fairsteer.FairSteeringTransformer`. The
        `estimator` gets them too. None: groups come as `sensitive_features`.
    unknown_group : {"error", "average"}, default="error"
        What happens to a row whose group is missing, was not there at ``fit``, or is not given at
        all: a ValueError, or the average of what each group would get, weighted by their shares.
    n_jobs : int, default=None
        Folds that are fitted at once, in processes; None is 1 unless in a ``joblib.parallel_config``,
        -1 as many as there are cores.
    verbose : int, default=0
        How much is printed of the progress over the folds, as by :class:`joblib.Parallel`.

    Attributes
    ----------
    estimator_ : classifier
        The fitted classifier.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    groups_ : ndarray of shape (n_groups,)
        Group labels, tuples if there are several sensitive columns; ``[0]`` if fitted without groups.
    max_gap_ : float
        Gap that is kept: `max_gap`, or the smallest that is reached without randomised predictions.
    alignment_ : Alignment
        The maps of the groups, apart from the classifier: from its scores to aligned probabilities.
    n_features_in_ : int
        Number of columns of `X` at ``fit``, sensitive ones included.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns of `X`, where it had string names.

    See Also
    --------
    IdealDistributionClassifier : Steers features first; its `score_alignment` is this one.

    Notes
    -----
    *Two classes.* The score ``s`` (log-odds, or the decision function) of group ``a`` becomes
    ``Q(F_a(s))``: ``F_a`` is the smoothed distribution function of the group's scores among the rows
    of the second class (demographic parity: among all its rows), ``Q`` the average of the groups'
    quantile functions, weighted by their shares. A map common to all groups, centred isotonic
    regression [2]_ of the class on the mapped score, then gives probabilities. So the rates are equal
    at *every* threshold, and the threshold 0.5 is the most accurate one on the out-of-fold rows, but
    for smoothing. With ``max_gap > 0`` scores go part of the way to ``Q(F_a(s))``.

    *More classes.* Of all classifiers whose rates differ by no more than `max_gap`, randomised ones
    included, the most accurate one under the given probabilities adds an offset for each class and
    group: to log-probabilities for equal opportunity, to probabilities for demographic parity. The
    offsets are the multipliers of a linear program [1]_. Probabilities are those with the offsets,
    scaled to sum to 1 (demographic parity: the nearest probabilities to them). Equal true-positive
    rates may be out of reach: where the classes of one group are told apart better, only randomised
    predictions could bring its rates down. The gap is then the smallest that offsets reach, with a
    warning if it is more than chance.

    Without `sensitive_features` and `sensitive_columns` there is one group, and nothing to align.

    *Scores.* They must be finite, one a row (or one a row and class). A row of zeros from ``predict_proba``,
    which scikit-learn's one-vs-rest gives where every binary classifier says no, says nothing: it counts as
    equal probabilities of all classes. Scores that differ by rounding only, as those of equal rows do by
    their place in a batch, are one score: equal rows of a group get equal predictions.

    References
    ----------
    .. [1] Xian, Zhao. "A Unified Post-Processing Framework for Group Fairness in Classification".
       arXiv:2405.04025.
    .. [2] Oron, Flournoy. "Centered Isotonic Regression: Point and Interval Estimation for
       Dose-Response Studies". Statistics in Biopharmaceutical Research 9 (2017).
    .. [3] Guo, Pleiss, Sun, Weinberger. "On Calibration of Modern Neural Networks". ICML 2017.
       arXiv:1706.04599.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from fairsteer import ScoreAligner
    >>> from fairsteer.datasets import make_biased_groups
    >>> X, y, group = make_biased_groups(2000, random_state=0)
    >>> aligner = ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=group)
    >>> predicted = aligner.predict(X, sensitive_features=group)
    >>> rate = [predicted[(group == a) & (y == 1)].mean() for a in (0, 1)]
    >>> bool(abs(rate[0] - rate[1]) < 0.02)
    True
    """

    alignment_: Alignment

    _parameter_constraints = {
        "estimator": [HasMethods(["fit", "predict_proba"]), HasMethods(["fit", "decision_function"])],
        "constraint": [StrOptions({"equal_opportunity", "demographic_parity"})],
        "max_gap": [Interval(Real, 0, 1, closed="both")],
        "agg": [StrOptions({"max", "rms"})],
        "calibrate": ["boolean"],
        "prior_rows": [Interval(Real, 0, None, closed="left")],
        "cv": ["cv_object"],
        "sensitive_columns": [str, Integral, slice, "array-like", callable, None],
        "unknown_group": [StrOptions({"error", "average"})],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        constraint: Constraint = "equal_opportunity",
        max_gap: float = 0.0,
        agg: Agg = "max",
        calibrate: bool = False,
        prior_rows: float = 10.0,
        cv: Any = 5,
        sensitive_columns: Any = None,
        unknown_group: str = "error",
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.estimator = estimator
        self.constraint = constraint
        self.max_gap = max_gap
        self.agg = agg
        self.calibrate = calibrate
        self.prior_rows = prior_rows
        self.cv = cv
        self.sensitive_columns = sensitive_columns
        self.unknown_group = unknown_group
        self.n_jobs = n_jobs
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any, *, sensitive_features: Any = None, sample_weight: Any = None) -> ScoreAligner:
        """Train the classifier, and fit the alignment on its out-of-fold scores.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, as the `estimator` takes them, with the sensitive columns if there are
            `sensitive_columns`.
        y : array-like of shape (n_samples,)
            Class labels.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels. Rows where one is missing are left out, with a warning. The `estimator` gets
            them too if its ``fit`` takes them.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; an integer weight equals as many repetitions, zero leaves the row
            out.

        Returns
        -------
        ScoreAligner
            The aligner itself.

        Raises
        ------
        ValueError
            If `y` is continuous or holds a class that a frozen `estimator` does not know, groups are
            given twice or are not discrete labels, no rows are left, a training fold lacks a class, a
            row is tested twice, or the `estimator` has no ``predict_proba`` for more than two classes.
        """
        validate_data(self, X, y, skip_check_array=True)
        (X,) = indexable(X)
        labels = self._labels_of(X, sensitive_features, reset=True)
        y = check_classes(y, X)
        weight = check_sample_weight(sample_weight, X)
        grouped = GroupedRows.read(labels, X, weight, purpose="nothing is being aligned: all rows form one group")
        weight = np.ones(len(y)) if weight is None else weight
        self._encoder, self.groups_, kept, codes = grouped.encoder, grouped.groups, grouped.kept, grouped.codes

        metadata = {} if sensitive_features is None else {"sensitive_features": sensitive_features}
        to_fit = self._passed_on("fit", "fit", metadata | ({} if sample_weight is None else {"sample_weight": weight}))
        to_ask = self._passed_on("fit", asked_method(self.estimator), metadata)
        self.estimator_ = clone(self.estimator)
        self.estimator_.fit(*rows_of((X, y), kept), **dict(zip(to_fit, rows_of(to_fit.values(), kept), strict=True)))
        self.classes_ = np.asarray(getattr(self.estimator_, "classes_", np.unique(y[kept])))
        y_codes = class_codes_of(y, kept, self.classes_)
        shares = np.bincount(codes[kept], weight[kept]) / weight[kept].sum()
        maps, rows, rates = None, np.zeros((0, len(self.groups_))), np.zeros((2, 0, len(self.groups_)))
        if len(self.classes_) > 1:
            maps, cells, scores = cross_fitted_alignment(
                refitted_scores(self.estimator, X, y, self.classes_, to_fit, to_ask),
                X,
                frozen=isinstance(self.estimator, FrozenEstimator),
                y_codes=y_codes,
                group_codes=codes,
                weight=weight,
                classes=self.classes_,
                groups=self.groups_,
                cv=self.cv,
                constraint=self.constraint,
                max_gap=self.max_gap,
                agg=self.agg,
                calibrate=self.calibrate,
                prior_rows=self.prior_rows,
                n_jobs=self.n_jobs,
                verbose=self.verbose,
            )
            rows = cells.effective_rows
            aligned = aligned_proba(maps, scores, cells.group_codes, shares)
            rates = np.stack([cells.rates(predicted) for predicted in (scores.classes(), aligned.argmax(axis=1))])
        asked = asked_method(self.estimator_)
        self.alignment_ = Alignment(self.classes_, self.groups_, shares, self.constraint, asked, maps, rows, rates)
        self.max_gap_ = self.max_gap if maps is None else maps.budget
        return self

    def gap_band(self, confidence_level: float = 0.95) -> GapBand:
        """Bound the gaps between groups on fresh rows, whatever the distribution of the scores.

        Parameters
        ----------
        confidence_level : float in (0, 1), default=0.95
            Probability, over the rows of the alignment, that all bounds hold at once.

        Returns
        -------
        GapBand
            Gaps measured on the rows of the alignment, and bounds for fresh rows.

        Notes
        -----
        The rate of a class in a group is that of fresh rows of the group, and of the class for equal
        opportunity. With two classes the bound holds at every threshold at once, with more for the
        most probable class. It is the measured gap plus one radius for each of the two groups; with
        ``n`` rows in a cell and ``m`` cells,

        * two classes: ``sqrt(log(2 m / (1 - confidence_level)) / (2 n))``, the Dvoretzky-Kiefer-Wolfowitz
          inequality with Massart's constant: rows above a threshold of any monotone map of a score are
          the rows above a threshold of the score itself, so the bound also covers that the maps were
          fitted on the very rows, their smoothing included;
        * ``K > 2`` classes: ``sqrt(log((K - 1) (n + 1) m / (1 - confidence_level)) / (2 n))``, the same inequality
          in ``K - 1`` dimensions (Naaman 2021): where a class is predicted, whatever the offsets, the
          ``K - 1`` differences of (log-)probabilities all exceed thresholds.

        It holds for fresh rows whose scores are distributed as those of the alignment. With a frozen
        classifier these are any fresh rows from the same source. With cross-fitting it is exact for
        the classifiers of the folds and approximate for ``estimator_``, which was trained on all rows. With
        unequal weights it is approximate too: ``n`` is then the effective number of rows.
        """
        check_is_fitted(self, "estimator_")
        return self.alignment_.gap_band(confidence_level)

    def _found_html(self) -> str:
        return self.alignment_._repr_html_() if "alignment_" in vars(self) else ""

    def _proba(self, caller: str, X: Any, sensitive_features: Any) -> Doubles:
        check_is_fitted(self, "estimator_")
        metadata = {} if sensitive_features is None else {"sensitive_features": sensitive_features}
        # First, since the classifier knows best what is wrong with rows that it cannot take.
        passed = self._passed_on(caller, asked_method(self.estimator_), metadata)
        scores = class_scores(self.estimator_, X, self.classes_, passed)
        validate_data(self, X, reset=False, skip_check_array=True)
        codes = self._codes(self._labels_of(X, sensitive_features, reset=False), X)
        return self.alignment_.proba(scores, codes)
