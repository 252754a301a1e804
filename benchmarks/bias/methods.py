"""What is compared: every method is given biased training rows, and features and groups of the rows to decide about.

Decisions are probabilities of deciding for the positive class, 0 or 1 unless a method is randomised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from benchmarks import fairness_methods as fm
from benchmarks.bias.biases import BIASES
from benchmarks.fairness_methods import Floats, Table
from benchmarks.quality.methods import folds_of
from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, IdealPosteriorClassifier
from fairsteer.baselines import CovarianceMatchingTransformer, LeaceTransformer, MeanMatchingTransformer

LOGISTIC, BOOSTING = "logistic regression", "gradient boosting"
CLASSIFIERS: dict[str, Any] = {
    LOGISTIC: LogisticRegression(solver="newton-cholesky"),
    BOOSTING: HistGradientBoostingClassifier(
        max_iter=40, max_leaf_nodes=15, max_bins=63, early_stopping=False, random_state=0
    ),
}
NOTHING = "nothing"


@dataclass(frozen=True)
class Problem:
    """Rows to train on, rows to decide about, whose labels are hidden, and the classifier."""

    train: Table
    test: Table
    classifier: Any

    @cached_property
    def blind(self) -> tuple[Floats, Floats]:
        """Out-of-fold scores of the training rows, and scores of the others; the classifier does not see groups."""
        return self._scores(fm.classified(fm.unchanged, self.classifier))

    @cached_property
    def aware(self) -> tuple[Floats, Floats]:
        return self._scores(fm.classified(fm.with_group, self.classifier))

    def _scores(self, model: fm.Model) -> tuple[Floats, Floats]:
        (new,) = model(self.train, self.test)
        return fm.out_of_fold(model, self.train, folds_of(self.train)), new


Decide = Callable[[Problem], Floats]
Told = Literal["", "group", "reference"]
Mode = Literal["joint", "labels", "weights"]
MapType = Literal["translation", "diagonal", "symmetric", "affine", "monotone"]
Constraint = Literal["ideal", "equal_opportunity", "demographic_parity"]


@dataclass(frozen=True)
class Method:
    """A way to decide, what it is told when it decides (nothing, the group; and which group is not biased), cost."""

    decide: Decide
    told: Told
    trees: bool = False  # whether boosting is tried, too
    costly: bool = False  # at the shown level only


def _model(model_of: Callable[[Any], fm.Model]) -> Decide:
    def decide(problem: Problem) -> Floats:
        (scores,) = model_of(problem.classifier)(problem.train, problem.test)
        return np.asarray(scores >= 0.5, dtype=np.float64)

    return decide


def _changed(*changes: fm.Preprocessing) -> Decide:
    """The classifier on changed rows."""

    def change(*tables: Table) -> list[Table]:
        found = list(tables)
        for one in changes:
            found = one(*found)
        return found

    return _model(lambda classifier: fm.classified(change, classifier))


def _own_scores(kind: Literal["blind", "aware"], rule: fm.Rule) -> Decide:
    def decide(problem: Problem) -> Floats:
        out_of_fold, new = getattr(problem, kind)
        return rule(out_of_fold, problem.train, new, problem.test)

    return decide


def _of_each_group(problem: Problem) -> Floats:
    decided = np.empty(len(problem.test.y))
    for a in (0, 1):
        train, test = (table.part(table.group == a) for table in (problem.train, problem.test))
        decided[problem.test.group == a] = clone(problem.classifier).fit(train.X, train.y).predict(test.X)
    return decided


def _reduced(constraint: str) -> Decide:
    """What the randomised classifier predicts in expectation."""

    def decide(problem: Problem) -> Floats:
        (probability,) = fm.exponentiated_gradient(problem.classifier, constraint)(problem.train, problem.test)
        return probability

    return decide


def with_products(*tables: Table) -> list[Table]:
    """The group as a feature, and its products with all others: a linear model of each group in one."""
    return [replace(t, X=np.column_stack([t.X, t.group, t.X * t.group[:, None]])) for t in tables]


def _posterior(problem: Problem, features: fm.Preprocessing, mode: Mode, told: Told) -> tuple[Any, Table, Table]:
    train, test = features(problem.train, problem.test)
    affirmative: Any = {"intervention": "affirmative", "reference_group": 0} if told == "reference" else {}
    # One posterior for all groups, of a classifier that sees them: what it knows of each is said by the features.
    model = IdealPosteriorClassifier(clone(problem.classifier), mode=mode, posterior="pooled", **affirmative)
    return model.fit(train.X, train.y, sensitive_features=train.group), train, test


def _ideal_posterior(told: Told, mode: Mode = "joint", features: fm.Preprocessing = fm.with_group) -> Decide:
    def decide(problem: Problem) -> Floats:
        model, _, test = _posterior(problem, features, mode, told)
        return np.asarray(model.predict(test.X, sensitive_features=test.group), dtype=np.float64)

    return decide


def repaired(problem: Problem, told: Told, mode: Mode = "joint", features: fm.Preprocessing = fm.with_group) -> Any:
    """The classifier on the rows of the ideal distribution, features as they were."""
    model, train, _ = _posterior(problem, features, mode, told)
    rows, labels, weight = model.repair(train.X, train.y, sensitive_features=train.group).expanded()
    return clone(problem.classifier).fit(rows, labels, sample_weight=weight)


def _repaired(told: Told, mode: Mode = "joint", features: fm.Preprocessing = fm.with_group) -> Decide:
    def decide(problem: Problem) -> Floats:
        (test,) = features(problem.test)
        return np.asarray(repaired(problem, told, mode, features).predict(test.X), dtype=np.float64)

    return decide


def _steered_then_posterior(problem: Problem) -> Floats:
    train, test = fm.transformed(AFFIRMATIVE["affine"])(problem.train, problem.test)
    return _ideal_posterior("reference")(replace(problem, train=train, test=test))


def _ideal_distribution(steering: Any, *, bayes: bool) -> Decide:
    """Bayes rule of the nearest ideal Gaussian, or the classifier on steered rows under its weights."""

    def decide(problem: Problem) -> Floats:
        train, test = problem.train, problem.test
        model = IdealDistributionClassifier(None if bayes else clone(problem.classifier), clone(steering))
        model.fit(train.X, train.y, sensitive_features=train.group)
        return np.asarray(model.predict(test.X, sensitive_features=test.group), dtype=np.float64)

    return decide


MAP_TYPES: tuple[MapType, ...] = ("translation", "diagonal", "symmetric", "affine", "monotone")
CONSTRAINTS: dict[str, Constraint] = {"": "ideal", ", EO": "equal_opportunity", ", DP": "demographic_parity"}
STEERINGS = {
    f"steering, {map_type}{suffix}": FairSteeringTransformer(map_type=map_type, constraint=constraint)
    for map_type in MAP_TYPES
    for suffix, constraint in CONSTRAINTS.items()
}
AFFIRMATIVE = {
    map_type: FairSteeringTransformer(map_type=map_type, intervention="affirmative", reference_group=0)
    for map_type in MAP_TYPES
}
#: What is told beside the rows, and how methods are called that are told it.
KNOWN: dict[Told, str] = {"group": "", "reference": ", affirmative"}
ALONE: tuple[Mode, ...] = ("labels", "weights")
FOR_TREES = {"steering, diagonal", "steering, affine", "steering, monotone"}


def _methods() -> Iterator[tuple[str, Method]]:
    yield NOTHING, Method(_changed(fm.unchanged), "", trees=True)
    yield "group as a feature", Method(_changed(fm.with_group), "group", trees=True)
    yield "a classifier for each group", Method(_of_each_group, "group", trees=True)
    yield "reweighing", Method(_changed(fm.reweighed), "", trees=True)
    yield "reweighing, group as a feature", Method(_changed(fm.reweighed, fm.with_group), "group", trees=True)
    baselines: dict[str, Any] = {
        "mean matching": MeanMatchingTransformer(),
        "covariance matching": CovarianceMatchingTransformer(),
        "LEACE": LeaceTransformer(),
    }
    for name, transformer in baselines.items():
        yield name, Method(_changed(fm.transformed(transformer)), "group", trees=True)
    for suffix, constraint, parity in (
        (", EO", "true_positive_rate_parity", "TruePositiveRateParity"),
        (", DP", "demographic_parity", "DemographicParity"),
    ):
        optimizer = fm.threshold_optimizer(constraint)
        yield f"ThresholdOptimizer{suffix}", Method(_own_scores("blind", optimizer), "group", trees=True)
        yield (
            f"ThresholdOptimizer{suffix}, group as a feature",
            Method(_own_scores("aware", optimizer), "group", trees=True),
        )
        yield f"ExponentiatedGradient{suffix}", Method(_reduced(parity), "", costly=True)
    for suffix, aligned in (
        (", EO", fm.aligned("equal_opportunity")),
        (", DP", fm.aligned("demographic_parity")),
    ):
        yield f"score alignment{suffix}", Method(_own_scores("blind", aligned), "group", trees=True)
        yield (
            f"score alignment{suffix}, group as a feature",
            Method(_own_scores("aware", aligned), "group", trees=True),
        )
    yield "steering, the default", Method(_changed(fm.transformed(FairSteeringTransformer())), "group")
    for name, steering in STEERINGS.items():
        yield name, Method(_changed(fm.transformed(steering)), "group", trees=name in FOR_TREES)
    full = FairSteeringTransformer(map_type="affine", covariance="full")
    yield "steering, affine, full covariances", Method(_changed(fm.transformed(full)), "group")
    for map_type, steering in AFFIRMATIVE.items():
        name = f"steering, {map_type}, affirmative"
        yield name, Method(_changed(fm.transformed(steering)), "reference", trees=map_type == "affine")
    for told, suffix in KNOWN.items():
        steering = AFFIRMATIVE["affine"] if suffix else STEERINGS["steering, affine"]
        yield (
            f"steering, affine{suffix}, ideal weights",
            Method(_ideal_distribution(steering, bayes=False), told, trees=bool(suffix)),
        )
        yield f"Bayes rule of the ideal Gaussian{suffix}", Method(_ideal_distribution(steering, bayes=True), told)
    own = " of each group's own"
    for told, suffix in KNOWN.items():
        yield f"ideal posterior{suffix}", Method(_ideal_posterior(told), told, trees=True)
        yield f"ideal posterior{own}{suffix}", Method(_ideal_posterior(told, features=with_products), told)
        yield f"repaired rows{suffix}", Method(_repaired(told), told, trees=True)
        yield f"repaired rows{own}{suffix}", Method(_repaired(told, features=with_products), told)
        for mode in ALONE:
            yield f"ideal posterior, {mode} alone{suffix}", Method(_ideal_posterior(told, mode), told)
            yield f"repaired rows, {mode} alone{suffix}", Method(_repaired(told, mode), told, trees=bool(suffix))
    yield "affine affirmative, then ideal posterior", Method(_steered_then_posterior, "reference")


METHODS = dict(_methods())

#: What is tried at every level, and what the picture shows; the others are tried at the shown level.
NAMED = (
    NOTHING,
    "group as a feature",
    "a classifier for each group",
    "reweighing",
    "reweighing, group as a feature",
    "mean matching",
    "covariance matching",
    "LEACE",
    "ThresholdOptimizer, EO",
    "ThresholdOptimizer, DP",
    "ExponentiatedGradient, EO",
    "score alignment, EO",
    "score alignment, EO, group as a feature",
    "score alignment, DP",
    "steering, the default",
    "steering, translation",
    "steering, diagonal",
    "steering, affine",
    "steering, affine, DP",
    "steering, affine, affirmative",
    "ideal posterior",
    "ideal posterior, affirmative",
    "ideal posterior, labels alone, affirmative",
    "repaired rows",
    "repaired rows, affirmative",
    "repaired rows, labels alone, affirmative",
    "repaired rows, weights alone, affirmative",
    "affine affirmative, then ideal posterior",
)


def is_tried(method: str, bias: str, level: float, classifier: str) -> bool:
    """Boosting, costly methods, and those that are not named: at the shown level alone."""
    how = METHODS[method]
    if level != BIASES[bias].shown:
        return classifier == LOGISTIC and method in NAMED and not how.costly
    return classifier == LOGISTIC or how.trees
