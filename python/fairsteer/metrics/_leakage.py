"""How much of the group any model of a family can still read out of the features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fairsteer._utils.estimators import weight_params
from fairsteer._utils.folds import rows_of
from fairsteer._utils.input import check_classes, few, warn_caller
from fairsteer._utils.types import Codes, Doubles
from fairsteer._utils.weights import check_sample_weight
from fairsteer.groups import GroupEncoder
from fairsteer.metrics._intervals import Measured, clopper_pearson

#: What a family is told by: its name, or a classifier.
FAMILIES: dict[str, Any] = {
    "linear": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    "boosting": HistGradientBoostingClassifier(random_state=0),
}


@dataclass(frozen=True, repr=False)
class GroupLeakage:
    """How well classifiers of a family tell the groups apart among rows of one class; see `group_leakage`.

    Attributes
    ----------
    pairs : list of tuple
        ``(class, group, other group)`` of every comparison, of which both subgroups have rows enough.
    advantage : Measured of ndarrays of shape (n_pairs,)
        Balanced advantage in [-1, 1]: how much oftener the classifier says *group* of a held-out row of *group* than of
        one of *other group*. 0 is a coin, 1 tells all rows; less than 0 is chance.
    auc : ndarray of shape (n_pairs,)
        Area under the ROC curve of the same scores; 1/2 is a coin.
    rows : ndarray of shape (n_pairs, 2)
        Rows behind each; with weights, their effective number (Kish).
    family : str
        The classifier, as given.
    confidence_level : float
        Probability with which the intervals hold, all of them at once.
    """

    pairs: list[tuple[Any, Any, Any]]
    advantage: Measured
    auc: Doubles
    rows: Doubles
    family: str
    confidence_level: float

    @property
    def largest(self) -> Measured:
        """Largest advantage over classes and pairs, and its interval; NaN where nothing could be compared."""
        values, lower, upper = self.advantage
        if not len(values):
            return Measured(np.nan, np.nan, np.nan)
        return Measured(float(values.max()), float(lower.max()), float(upper.max()))

    @property
    def largest_auc(self) -> float:
        """Area under the curve where it is largest; NaN where nothing could be compared."""
        return float(self.auc.max()) if len(self.auc) else float("nan")

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns of a table, one row a comparison; what ``pandas.DataFrame`` takes.

        Returns
        -------
        dict of str to list
            Columns ``class``, ``group``, ``other``, ``advantage``, ``lower``, ``upper``, ``auc``.
        """
        names = ("class", "group", "other")
        columns: dict[str, list[Any]] = {name: [pair[i] for pair in self.pairs] for i, name in enumerate(names)}
        for name, values in zip(("advantage", "lower", "upper"), self.advantage, strict=True):
            columns[name] = values.tolist()
        return columns | {"auc": self.auc.tolist()}

    def __repr__(self) -> str:
        value, lower, upper = self.largest
        return (
            f"GroupLeakage({self.family}: largest advantage {value:.3f} [{lower:.3f}, {upper:.3f}], "
            f"AUC {self.largest_auc:.3f}, {len(self.pairs)} comparisons)"
        )


def group_leakage(
    X: Any,
    y: ArrayLike | None = None,
    *,
    sensitive_features: Any,
    estimator: Any = "linear",
    cv: int = 5,
    sample_weight: ArrayLike | None = None,
    n_jobs: int | None = None,
    confidence_level: float = 0.95,
) -> GroupLeakage:
    """Measure how well classifiers of a family tell the groups apart among rows of one class.

    Whatever a classifier of the family does with the features, its rate of predicting a class cannot differ between
    two groups, among rows of one true class, by more than the family can tell these rows apart [1]_. The measured
    advantage is a *lower* bound of that: some classifier of the family reaches it. So a large value says that an
    unfair model is possible on these rows, and a value near 0, with a narrow interval, that this family found none.

    Parameters
    ----------
    X : array-like or dataframe of shape (n_samples, n_features)
        Features, without the group: those that a downstream model gets.
    y : array-like of shape (n_samples,), default=None
        Class labels. None: all rows are of one class, so that the difference bounds demographic parity.
    sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
        Groups; several columns mean their intersections. Rows without a group are left out with a warning.
    estimator : {"linear", "boosting"} or classifier, default="linear"
        The family: logistic regression on standardised features, histogram gradient boosting, or any scikit-learn
        classifier with ``predict_proba``, which is cloned. It sees the groups with equal weight if its ``fit`` takes
        `sample_weight`; else its probabilities are divided by the groups' shares.
    cv : int, default=5
        Folds, at least 2: every row is judged by a classifier that has not seen it.
    sample_weight : array-like of shape (n_samples,), default=None
        Non-negative weights.
    n_jobs : int, default=None
        Classifiers that are fitted at a time, as for :class:`joblib.Parallel`.
    confidence_level : float in (0, 1), default=0.95
        Of the intervals, which hold for all comparisons at once.

    Returns
    -------
    GroupLeakage
        Advantage, interval and AUC of every class and pair of groups.

    Raises
    ------
    ValueError
        If lengths differ, `y` is continuous or has missing labels, or a parameter is out of range.

    Warns
    -----
    UserWarning
        If a subgroup has fewer than ``2 * cv`` rows and is left out.

    Notes
    -----
    For each class one classifier of the groups is fitted a fold, with the groups' weights made equal; two groups are
    compared by which of the two it finds likelier. The rates of either group have Clopper-Pearson intervals at a level
    divided by the number of rates (Bonferroni).

    References
    ----------
    .. [1] Lopez-Paz, Oquab. "Revisiting Classifier Two-Sample Tests". ICLR 2017. arXiv:1610.06545.

    Examples
    --------
    >>> from fairsteer.datasets import make_biased_groups
    >>> from fairsteer.metrics import group_leakage
    >>> X, y, group = make_biased_groups(2000, groups=["a", "b"], shift=3.5, random_state=0)
    >>> found = group_leakage(X, y, sensitive_features=group)
    >>> bool(found.largest.lower > 0.8), found.pairs
    (True, [(0, 'a', 'b'), (1, 'a', 'b')])
    """
    model, family = _model(estimator)
    if cv < 2:
        msg = f"cv must be a whole number of folds, at least 2, not {cv!r}."
        raise ValueError(msg)
    if not 0 < confidence_level < 1:
        msg = f"confidence_level must be between 0 and 1, not {confidence_level!r}."
        raise ValueError(msg)
    encoder = GroupEncoder().fit(sensitive_features)
    codes = encoder.encode(sensitive_features)
    if (n_rows := X.shape[0] if hasattr(X, "shape") else len(X)) != len(codes):
        msg = f"sensitive_features has {len(codes)} rows and X has {n_rows}; they must be the same rows."
        raise ValueError(msg)
    labels = np.zeros(len(codes), dtype=np.intp) if y is None else check_classes(y, codes)
    weight = check_sample_weight(sample_weight, codes)
    weight = np.ones(len(codes)) if weight is None else weight
    if n_unknown := int((codes < 0).sum()):
        warn_caller(f"{n_unknown} of {len(codes)} rows have no group and are left out of the measurement.")
    classes, y_codes = np.unique(labels, return_inverse=True)
    kept = (codes >= 0) & (weight > 0)
    tasks: list[Task] = []
    left_out: list[str] = []
    for k, label in enumerate(classes.tolist()):
        of_class = kept & (y_codes == k)
        counts = np.bincount(codes[of_class], minlength=len(encoder.groups_))
        enough = np.flatnonzero(counts >= 2 * cv)
        few_rows = np.flatnonzero((counts > 0) & (counts < 2 * cv))
        left_out += [f"class {label!r}, group {encoder.groups_.tolist()[a]!r} ({counts[a]} rows)" for a in few_rows]
        if len(enough) >= 2:
            rows = np.flatnonzero(of_class & np.isin(codes, enough))
            splits = StratifiedKFold(cv, shuffle=True, random_state=0).split(rows, codes[rows])
            tasks.append(Task(label, enough, [(X, rows[train], rows[test]) for train, test in splits]))
    if left_out:
        warn_caller(f"Subgroups of fewer than {2 * cv} rows are left out of the measurement: {few(left_out)}.")
    return told_apart(tasks, model, family, codes, weight, encoder.groups_.tolist(), n_jobs, confidence_level)


class Task(NamedTuple):
    """Rows of one class, whose groups are to be told apart."""

    label: Any
    present: npt.NDArray[np.intp]
    """Codes of the groups that are compared; every one is among the rows to learn from in every fold."""
    folds: list[tuple[Any, npt.NDArray[np.intp], npt.NDArray[np.intp]]]
    """Features of all rows, positions of those to learn from, and of those to judge."""


def told_apart(
    tasks: Sequence[Task],
    model: Any,
    family: str,
    codes: Codes,
    weight: Doubles,
    names: Sequence[Any],
    n_jobs: int | None,
    confidence_level: float,
) -> GroupLeakage:
    """Measure how well a model tells groups apart that it has not seen, see `group_leakage`."""
    jobs = [
        delayed(_held_out)(model, X, codes, weight, train, test, task.present)
        for task in tasks
        for X, train, test in task.folds
    ]
    answers = iter(Parallel(n_jobs=n_jobs)(jobs))
    pairs: list[tuple[Any, Any, Any]] = []
    found: list[tuple[float, float, float, float, float]] = []
    for task in tasks:
        part = [next(answers) for _ in task.folds]
        rows, proba = np.concatenate([f[0] for f in part]), np.concatenate([f[1] for f in part])
        present = task.present
        for i, j in combinations(range(len(present)), 2):
            pairs.append((task.label, names[present[i]], names[present[j]]))
            found.append(_compare(proba[:, i], proba[:, j], codes[rows], weight[rows], present[i], present[j]))
    numbers = np.array(found).reshape(-1, 5)
    rates, sizes = numbers[:, :2], numbers[:, 2:4]
    lower, upper = clopper_pearson(rates, sizes, (1 - confidence_level) / max(rates.size, 1))
    advantage = Measured(
        rates[:, 0] - rates[:, 1],
        np.maximum(lower[:, 0] - upper[:, 1], -1.0),
        np.minimum(upper[:, 0] - lower[:, 1], 1.0),
    )
    return GroupLeakage(pairs, advantage, numbers[:, 4], sizes, family, confidence_level)


def _model(estimator: Any) -> tuple[Any, str]:
    if isinstance(estimator, str):
        if estimator not in FAMILIES:
            msg = f"estimator must be {' or '.join(map(repr, FAMILIES))} or a classifier, not {estimator!r}."
            raise ValueError(msg)
        return FAMILIES[estimator], estimator
    if not (hasattr(estimator, "fit") and hasattr(estimator, "predict_proba")):
        msg = f"estimator={estimator!r} has no predict_proba, by which the groups of a row are compared."
        raise ValueError(msg)
    return estimator, " ".join(repr(estimator).split())


def _held_out(
    model: Any,
    X: Any,
    codes: Codes,
    weight: Doubles,
    train: npt.NDArray[np.intp],
    test: npt.NDArray[np.intp],
    present: Sequence[int],
) -> tuple[npt.NDArray[np.intp], Doubles]:
    """Rows of a fold and how likely each group present is, all else equal, by a classifier that did not see them."""
    totals = np.bincount(codes[train], weight[train])
    balanced = weight[train] / totals[codes[train]]
    balanced *= len(train) / balanced.sum()
    (seen,), (unseen,) = rows_of([X], train), rows_of([X], test)
    fitted = clone(model)
    params = weight_params(fitted, balanced)
    fitted.fit(seen, codes[train], **(params or {}))
    answer = np.asarray(fitted.predict_proba(unseen), dtype=np.float64)
    if not np.isfinite(answer).all():
        msg = f"predict_proba of {model!r} is not finite for {int((~np.isfinite(answer)).any(axis=1).sum())} rows."
        raise ValueError(msg)
    order = [fitted.classes_.tolist().index(int(a)) for a in present]
    likelihood = answer[:, order]
    if params is None:  # it has seen the groups with the weights that they have
        likelihood = likelihood / np.bincount(codes[train])[list(present)]
    return test, likelihood


def _compare(
    first: Doubles, second: Doubles, codes: Codes, weight: Doubles, a: int, b: int
) -> tuple[float, float, float, float, float]:
    """How often rows of a and of b are taken for a, the rows behind each, and the area under the curve."""
    of_a, of_b = codes == a, codes == b
    score = first - second
    # A tie is a coin.
    called = np.where(score > 0, 1.0, np.where(score < 0, 0.0, 0.5))
    rates = [float(np.average(called[some], weights=weight[some])) for some in (of_a, of_b)]
    sizes = [float(weight[some].sum() ** 2 / (weight[some] ** 2).sum()) for some in (of_a, of_b)]
    both = of_a | of_b
    auc = float(roc_auc_score(of_a[both], score[both], sample_weight=weight[both]))
    return rates[0], rates[1], sizes[0], sizes[1], auc
