"""What the benchmark of quality compares: ways to change features, weights, training or scores, under one interface.

A *preprocessing* changes tables, a *model* is trained on one table and scores others, a *rule* turns scores into the
probability that the positive class is predicted: 0 or 1 unless the method is randomised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.frozen import FrozenEstimator

from fairsteer import IdealDistributionClassifier, ScoreAligner

Floats = NDArray[np.float64]
Parity = Literal["equal_opportunity", "demographic_parity"]


@dataclass(frozen=True)
class Table:
    """Features, numbers first and one-hot columns after them, classes 0 and 1, group codes and weights."""

    X: Floats
    y: NDArray[np.int64]
    group: NDArray[np.int64]
    n_numeric: int
    weight: Floats | None = None

    def part(self, rows: Any) -> Table:
        weight = None if self.weight is None else self.weight[rows]
        return Table(self.X[rows], self.y[rows], self.group[rows], self.n_numeric, weight)


Preprocessing = Callable[..., list[Table]]  # train, *others -> the same tables, changed
Model = Callable[..., list[Floats]]  # train, *others -> P(Y = 1) of the others' rows
Rule = Callable[[Floats, Table, Floats, Table], Floats]  # scores and rows to fit to, scores and rows to decide


# ---- preprocessing


def unchanged(*tables: Table) -> list[Table]:
    return list(tables)


def transformed(transformer: Any) -> Preprocessing:
    """By a transformer of fairsteer's, fitted to the first table."""

    def change(train: Table, *others: Table) -> list[Table]:
        fitted = clone(transformer).fit(train.X, train.y, sensitive_features=train.group)
        return [replace(t, X=fitted.transform(t.X, sensitive_features=t.group)) for t in (train, *others)]

    return change


def on_numeric_columns(preprocessing: Preprocessing) -> Preprocessing:
    """What ColumnTransformer(…, remainder="passthrough") does: one-hot columns stay."""

    def change(*tables: Table) -> list[Table]:
        numbers = preprocessing(*(replace(t, X=t.X[:, : t.n_numeric]) for t in tables))
        return [
            replace(t, X=np.hstack([n.X, t.X[:, t.n_numeric :]]), weight=n.weight)
            for t, n in zip(tables, numbers, strict=True)
        ]

    return change


def with_group(*tables: Table) -> list[Table]:
    """The group as a feature, one-hot."""
    return [replace(t, X=np.hstack([t.X, _one_hot(t.group, tables[0])])) for t in tables]


def correlation_removed(train: Table, *others: Table) -> list[Table]:
    from fairlearn.preprocessing import CorrelationRemover

    n_columns = train.X.shape[1]
    joined = with_group(train, *others)
    sensitive = list(range(n_columns, joined[0].X.shape[1]))
    remover = CorrelationRemover(sensitive_feature_ids=sensitive).fit(joined[0].X)
    return [replace(t, X=np.asarray(remover.transform(t.X))) for t in joined]


def transported(train: Table, *others: Table) -> list[Table]:
    """POT's Gaussian transport of each group to the largest, from ridged covariances: some columns are constant."""
    from ot.da import LinearTransport

    largest = int(np.bincount(train.group).argmax())
    tables = [replace(t, X=t.X.copy()) for t in (train, *others)]
    for a in np.unique(train.group):
        if a == largest:
            continue
        transport = LinearTransport(reg=1e-3)
        transport.fit(Xs=train.X[train.group == a], Xt=train.X[train.group == largest])
        for before, after in zip((train, *others), tables, strict=True):
            after.X[before.group == a] = transport.transform(Xs=before.X[before.group == a])
    return tables


def reweighed(train: Table, *others: Table) -> list[Table]:
    """Weights under which class and group are independent: P(y) P(a) / P(y, a) (Kamiran and Calders 2012)."""
    joint = np.zeros((2, train.group.max() + 1))
    np.add.at(joint, (train.y, train.group), 1 / len(train.y))
    weights = np.outer(joint.sum(axis=1), joint.sum(axis=0)) / joint
    return [replace(train, weight=weights[train.y, train.group]), *others]


def _one_hot(group: NDArray[np.int64], train: Table) -> Floats:
    return np.eye(train.group.max() + 1)[group][:, 1:]


# ---- models


def classified(preprocessing: Preprocessing, classifier: Any) -> Model:
    def model(train: Table, *others: Table) -> list[Floats]:
        changed, *new = preprocessing(train, *others)
        fitted = clone(classifier).fit(changed.X, changed.y, sample_weight=changed.weight)
        return [fitted.predict_proba(t.X)[:, 1] for t in new]

    return model


def ideal(steering: Any, classifier: Any = None) -> Model:
    """IdealDistributionClassifier: the Bayes rule, or a classifier on steered rows under the ideal weights."""

    def model(train: Table, *others: Table) -> list[Floats]:
        fitted = IdealDistributionClassifier(classifier, steering)
        fitted.fit(train.X, train.y, sensitive_features=train.group)
        return [fitted.predict_proba(t.X, sensitive_features=t.group)[:, 1] for t in others]

    return model


def exponentiated_gradient(classifier: Any, constraint: str) -> Model:
    """The reductions approach; its scores are the probabilities with which its mixture of classifiers predicts 1."""
    from fairlearn import reductions

    def model(train: Table, *others: Table) -> list[Floats]:
        reduction = reductions.ExponentiatedGradient(clone(classifier), getattr(reductions, constraint)())
        reduction.fit(train.X, train.y, sensitive_features=train.group)
        # The exact probabilities; predict draws from them.
        return [np.clip(reduction._pmf_predict(t.X)[:, 1], 0, 1) for t in others]  # weights sum to 1 but for rounding

    return model


def out_of_fold(model: Model, train: Table, folds: list[Any]) -> Floats:
    scores = np.empty(len(train.y))
    for inside, outside in folds:
        (scores[outside],) = model(train.part(inside), train.part(outside))
    return scores


# ---- rules


class GivenScores(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose single feature is P(Y = 1), for post-processing of scores that are there already."""

    def fit(self, X: Any, y: Any) -> GivenScores:
        self.classes_ = np.array([0, 1])
        return self

    def predict_proba(self, X: Any) -> Floats:
        positive = np.asarray(X)[:, 0]
        return np.column_stack([1 - positive, positive])

    def predict(self, X: Any) -> NDArray[np.int64]:
        return (self.predict_proba(X)[:, 1] >= 0.5).astype(np.int64)


def _given(scores: Floats, table: Table) -> GivenScores:
    return GivenScores().fit(scores[:, None], table.y)


def at_half(_scores: Floats, _train: Table, new_scores: Floats, _new: Table) -> Floats:
    return (new_scores >= 0.5).astype(np.float64)


def aligned(constraint: Parity) -> Rule:
    """ScoreAligner on out-of-fold scores; the same as ScoreAligner with these folds, without training again."""

    def rule(scores: Floats, train: Table, new_scores: Floats, new: Table) -> Floats:
        aligner = ScoreAligner(FrozenEstimator(_given(scores, train)), constraint=constraint)
        aligner.fit(scores[:, None], train.y, sensitive_features=train.group)
        return aligner.predict(new_scores[:, None], sensitive_features=new.group).astype(np.float64)

    return rule


def threshold_optimizer(constraint: str) -> Rule:
    """fairlearn's; the probability that its randomised rule predicts 1."""
    from fairlearn.postprocessing import ThresholdOptimizer

    def rule(scores: Floats, train: Table, new_scores: Floats, new: Table) -> Floats:
        optimizer = ThresholdOptimizer(
            estimator=_given(scores, train), constraints=constraint, prefit=True, predict_method="predict_proba"
        )
        optimizer.fit(scores[:, None], train.y, sensitive_features=train.group)
        # The exact probabilities; predict draws from them.
        positive = np.asarray(optimizer._pmf_predict(new_scores[:, None], sensitive_features=new.group))[:, 1]
        return np.asarray(np.clip(positive, 0, 1))

    return rule


def linear_post(constraint: Parity) -> Rule:
    """LinearPost (Xian and Zhao 2024): the multipliers of the linear program on posteriors give a deterministic rule.

    Maximise ``mean((2 r - 1) h)`` over decisions ``h`` in [0, 1] whose rates under the posteriors ``r`` agree:
    ``sum_{i in a} c_i h_i = t`` for each group, ``c = r / sum_a r`` (equal opportunity) or ``1 / n_a``.
    """

    def rule(scores: Floats, train: Table, new_scores: Floats, new: Table) -> Floats:
        n, n_groups = len(scores), int(train.group.max()) + 1
        mass = scores if constraint == "equal_opportunity" else np.ones(n)
        total = np.bincount(train.group, mass)
        equal_rates = csr_array(
            (
                np.concatenate([mass / total[train.group], -np.ones(n_groups)]),
                (
                    np.concatenate([train.group, np.arange(n_groups)]),
                    np.concatenate([np.arange(n), np.full(n_groups, n)]),
                ),
            )
        )
        solution = linprog(
            np.append((1 - 2 * scores) / n, 0), A_eq=equal_rates, b_eq=np.zeros(n_groups), bounds=(0, 1), method="highs"
        )
        multiplier = solution.eqlin.marginals
        new_mass = new_scores if constraint == "equal_opportunity" else np.ones(len(new_scores))
        cost = (1 - 2 * new_scores) / n - multiplier[new.group] * new_mass / total[new.group]
        return np.asarray(cost < 0, dtype=np.float64)

    return rule
