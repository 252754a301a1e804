"""What is compared on a split of the rows: classifiers, steerings, alignments, the search among them; measures."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from benchmarks import datasets
from benchmarks import fairness_methods as fm
from benchmarks.datasets import Rows
from benchmarks.fairness_methods import Floats, Model, Rule, Table
from fairsteer import FairSteeringTransformer, IdealDistributionClassifierCV, metrics
from fairsteer.baselines import CovarianceMatchingTransformer, LeaceTransformer, MeanMatchingTransformer

MEASURES = ("accuracy", "balanced_accuracy", "demographic_parity", "equal_opportunity", "equalized_odds")
FOLDS = 5

LOGISTIC, BOOSTING = "logistic regression", "gradient boosting"
CLASSIFIERS = {
    LOGISTIC: (LogisticRegression(solver="newton-cholesky"), {"C": [0.01, 0.1, 1.0, 10.0]}),
    BOOSTING: (
        HistGradientBoostingClassifier(max_iter=50, max_bins=63, early_stopping=False, random_state=0),
        {"max_leaf_nodes": [5, 20]},
    ),
}

NOTHING = "nothing"
WITH_GROUP = "nothing, group as a feature"
TIED, NUMERIC, QUANTILE = "tied", "tied, numeric columns", "tied, numeric columns, quantile-to-normal"
HALF, WEIGHTED = "tied, half strength", "tied, ideal weights"
PAPER = "full, symmetric, affirmative"
# One-hot columns of rare categories vary little; on one scale, shrinkage treats them like the others.
SCALED = FairSteeringTransformer(feature_transform=StandardScaler())
POOLED = clone(SCALED).set_params(covariance="full", pooling=0.5)
STEERING = {
    TIED: SCALED,
    "tied, affirmative": clone(SCALED).set_params(intervention="affirmative"),
    "tied, symmetric": clone(SCALED).set_params(map_type="symmetric"),
    HALF: clone(SCALED).set_params(strength=0.5),
    "full": POOLED,
    "full, affirmative": clone(POOLED).set_params(intervention="affirmative"),
    "full, symmetric": clone(POOLED).set_params(map_type="symmetric"),
    PAPER: clone(POOLED).set_params(pooling=0.0, map_type="symmetric", intervention="affirmative"),
}
BAYES = {"tied, Bayes rule": SCALED, "full, Bayes rule": POOLED}
# What is aligned afterwards: every transformer for logistic regression, fewer where training takes long.
TRANSFORMERS = {
    LOGISTIC: (*STEERING, NUMERIC, QUANTILE),
    BOOSTING: (TIED, NUMERIC, QUANTILE),
}
ALIGNED = {
    LOGISTIC: (NOTHING, WITH_GROUP, *TRANSFORMERS[LOGISTIC], WEIGHTED, *BAYES),
    BOOSTING: (NOTHING, WITH_GROUP, *TRANSFORMERS[BOOSTING], WEIGHTED),
}
ALIGNMENT = " + alignment"
SEARCH = "IdealDistributionClassifierCV"
OPTIMIZERS = ("ThresholdOptimizer, EO", "ThresholdOptimizer, EO, out-of-fold")
RANDOMISED = ("ThresholdOptimizer", "ExponentiatedGradient")


def data_sets(folder: Path) -> dict[str, Callable[[], Rows]]:
    return {
        "adult, sex": lambda: datasets.adult_in_full(folder),
        "compas, race": lambda: datasets.compas_two_races(folder),
        "german credit, sex": lambda: datasets.german_credit(folder),
        "law school, race": lambda: datasets.law_school(folder),
        "acs income, sex": lambda: datasets.acs_income(folder, "sex"),
        "acs income, race": lambda: datasets.acs_income(folder, "race"),
    }


def split(rows: Rows, seed: int, at_most: int) -> tuple[Table, Table]:
    """Training and test rows; what makes the features is fitted to the training rows."""
    cell = rows.y * len(rows.groups) + rows.group
    chosen = np.arange(len(cell))
    if len(chosen) > at_most:
        chosen, _ = train_test_split(chosen, train_size=at_most, stratify=cell, random_state=seed)
    train, test = train_test_split(chosen, test_size=0.3, stratify=cell[chosen], random_state=seed)
    features = rows.features.fit(rows.X.iloc[train])

    def table(part: Any) -> Table:
        X = np.asarray(features.transform(rows.X.iloc[part]), dtype=np.float64)
        return Table(X, rows.y[part], rows.group[part], rows.n_numeric)

    return table(train), table(test)


def folds_of(train: Table) -> list[Any]:
    cell = train.y * (train.group.max() + 1) + train.group
    return list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(train.X, cell))


def models(kind: str, classifier: Any) -> dict[str, Model]:
    """Everything that is trained and then decides at one half."""
    steer = {name: fm.transformed(steering) for name, steering in STEERING.items()}
    quantile = QuantileTransformer(n_quantiles=200, output_distribution="normal")
    steer[NUMERIC] = fm.on_numeric_columns(steer[TIED])
    steer[QUANTILE] = fm.on_numeric_columns(fm.transformed(FairSteeringTransformer(feature_transform=quantile)))
    changes: dict[str, fm.Preprocessing] = {
        NOTHING: fm.unchanged,
        WITH_GROUP: fm.with_group,
        "mean matching": fm.transformed(MeanMatchingTransformer()),
        "covariance matching": fm.transformed(CovarianceMatchingTransformer(feature_transform=StandardScaler())),
        "LEACE": fm.transformed(LeaceTransformer()),
        "CorrelationRemover": fm.correlation_removed,
        "reweighing": fm.reweighed,
        **steer,
    }
    if importlib.util.find_spec("ot"):
        changes["LinearTransport"] = fm.transported
    trained = {name: fm.classified(change, classifier) for name, change in changes.items()}
    trained[WEIGHTED] = fm.ideal(STEERING[TIED], classifier)
    if kind == LOGISTIC:
        trained |= {name: fm.ideal(steering) for name, steering in BAYES.items()}
    return trained


def reductions(kind: str, classifier: Any) -> dict[str, Model]:
    """ExponentiatedGradient trains dozens of classifiers: only where one takes little."""
    constraints = {"DP": "DemographicParity", "EO": "TruePositiveRateParity", "odds": "EqualizedOdds"}
    if kind != LOGISTIC:
        return {}
    return {
        f"ExponentiatedGradient, {short}": fm.exponentiated_gradient(classifier, name)
        for short, name in constraints.items()
    }


THRESHOLD_OPTIMIZERS = {
    "DP": "demographic_parity", "EO": "true_positive_rate_parity", "odds": "equalized_odds"
}  # fmt: skip


def measured(table: Table, positive: Floats) -> dict[str, float]:
    """Measures of a rule that predicts 1 with these probabilities: each row counts as both predictions, weighted."""
    y, group = np.tile(table.y, 2), np.tile(table.group, 2)
    predicted, weight = np.repeat([1, 0], len(positive)), np.concatenate([positive, 1 - positive])
    gaps = {
        name: getattr(metrics, f"{name}_difference")(y, predicted, sensitive_features=group, sample_weight=weight)
        for name in MEASURES[2:]
    }
    return {
        "accuracy": accuracy_score(y, predicted, sample_weight=weight),
        "balanced_accuracy": balanced_accuracy_score(y, predicted, sample_weight=weight),
        **gaps,
    }


def tuned(train: Table, kind: str, folds: list[Any]) -> tuple[Any, str]:
    """The classifier with the hyperparameters that five folds of the training rows prefer, and these in words."""
    estimator, grid = CLASSIFIERS[kind]
    search = GridSearchCV(estimator, grid, scoring="neg_log_loss", cv=folds, refit=False).fit(train.X, train.y)
    words = ", ".join(f"{name}={value}" for name, value in search.best_params_.items())
    return clone(estimator).set_params(**search.best_params_), words


def line(kind: str, method: str, test: Table, positive: Floats, chosen: str = "") -> dict[str, Any]:
    return {"classifier": kind, "method": method, **measured(test, positive), "chosen": chosen, "seconds": ""}


def searched(train: Table, test: Table, kind: str, classifier: Any) -> dict[str, Any]:
    """Measures of IdealDistributionClassifierCV with all defaults, and the seconds of its fit."""
    search = IdealDistributionClassifierCV(classifier)
    start = time.perf_counter()
    search.fit(train.X, train.y, sensitive_features=train.group)
    seconds = time.perf_counter() - start
    predicted = search.predict(test.X, sensitive_features=test.group).astype(np.float64)
    return {**line(kind, SEARCH, test, predicted, in_words(search.best_params_)), "seconds": f"{seconds:.1f}"}


def in_words(params: dict[str, Any]) -> str:
    """A candidate of the default grid."""
    if not params["steering__strength"]:
        steering = NOTHING
    else:
        short = {"equal_opportunity": "EO", "demographic_parity": "DP"}
        steering = f"{params['steering__map_type']}, {short.get(of := params['steering__constraint'], of)}"
        steering += "" if params["steering__strength"] == 1 else f", {params['steering__strength']:g}"
    return steering + (ALIGNMENT if params.get("score_alignment") else "")


def compared_with_search(train: Table, test: Table, kind: str) -> Iterator[dict[str, Any]]:
    """Measures of the search, of nothing, and of ThresholdOptimizer on scores of the training rows and out of fold."""
    folds = folds_of(train)
    classifier, best = tuned(train, kind, folds)
    model = fm.classified(fm.unchanged, classifier)
    in_sample, new = model(train, train, test)
    yield line(kind, NOTHING, test, (new >= 0.5).astype(np.float64), best)
    rule = fm.threshold_optimizer(THRESHOLD_OPTIMIZERS["EO"])
    for name, scores in zip(OPTIMIZERS, (in_sample, fm.out_of_fold(model, train, folds)), strict=True):
        yield line(kind, name, test, rule(scores, train, new, test))
    yield searched(train, test, kind, classifier)


def evaluate(train: Table, test: Table, kind: str) -> Iterator[dict[str, Any]]:
    """Measures of every method on the test rows."""
    folds = folds_of(train)
    classifier, best = tuned(train, kind, folds)
    trained = models(kind, classifier)

    @cache
    def scores(name: str) -> tuple[Floats, Floats]:
        in_sample, new = trained[name](train, train, test)
        return in_sample, new

    @cache
    def out_of_fold(name: str) -> Floats:
        return fm.out_of_fold(trained[name], train, folds)

    def by_rule(method: str, name: str, rule: Rule) -> dict[str, Any]:
        return line(kind, method, test, rule(out_of_fold(name), train, scores(name)[1], test))

    decided = {name: (scores(name)[1] >= 0.5).astype(np.float64) for name in trained}
    for name, positive in decided.items():
        yield line(kind, name, test, positive, best if name == NOTHING else "")
    for name, reduction in reductions(kind, classifier).items():
        (positive,) = reduction(train, test)
        yield line(kind, name, test, positive)
    in_sample, new = scores(NOTHING)
    for short, constraint in THRESHOLD_OPTIMIZERS.items():
        rule = fm.threshold_optimizer(constraint)
        yield line(kind, f"ThresholdOptimizer, {short}", test, rule(in_sample, train, new, test))
        yield by_rule(f"ThresholdOptimizer, {short}, out-of-fold", NOTHING, rule)
    parities: dict[str, fm.Parity] = {"DP": "demographic_parity", "EO": "equal_opportunity"}
    for short, parity in parities.items():
        yield by_rule(f"LinearPost, {short}", WITH_GROUP, fm.linear_post(parity))
    yield by_rule(f"{NOTHING}{ALIGNMENT}, DP", NOTHING, fm.aligned("demographic_parity"))

    align = fm.aligned("equal_opportunity")
    for name in ALIGNED[kind]:
        yield line(kind, f"{name}{ALIGNMENT}", test, align(out_of_fold(name), train, scores(name)[1], test))
    yield searched(train, test, kind, classifier)
