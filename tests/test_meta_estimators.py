"""scikit-learn's meta-estimators and tools with groups in X and beside it: they work, or which error there is.

*Works* means that the result is that of the same tool with an estimator that cannot lose its groups: every row of its
`X` carries its number, by which the groups are looked up and passed to the steering explicitly, at fit and afterwards.
The tables of docs/searches.md are built from the outcomes here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import sklearn
import sklearn.experimental.enable_halving_search_cv  # brings HalvingGridSearchCV
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    StratifiedKFold,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion, Pipeline

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier
from fairsteer.metrics import demographic_parity_difference
from fairsteer.scoring import fairness_scorer

PAGE = Path(__file__).parents[1] / "docs" / "searches.md"
VERSION = tuple(map(int, sklearn.__version__.split(".")[:2]))

ERRORS = {
    "G": (ValueError, "No groups are given, but it was fitted on the groups"),
    "K": (TypeError, "got an unexpected keyword argument 'sensitive_features'"),
    "P": (ValueError, "Pipeline.fit does not accept the sensitive_features parameter"),
    "R": (ValueError, "is only supported if enable_metadata_routing=True"),
    "Y": (ValueError, "Unknown label type: continuous"),
}


class Row(NamedTuple):
    """One tool: what it does with groups in columns, beside X with routing on, and beside X with routing off."""

    run: Callable[..., Any]
    columns: str = "works"
    beside: str = "works"
    off: str = "R"


# ---- the tools; `groups` is {} or {"sensitive_features": …}


def _fit_and_ask(estimator: Any, X: Any, y: Any, groups: Any, method: str = "predict_proba") -> Any:
    return getattr(estimator.fit(X, y, **groups), method)(X, **groups)


def _search(kind: Any, **options: Any) -> Callable[..., Any]:
    def run(model: Any, X: Any, y: Any, groups: Any, scoring: Any) -> Any:
        search = kind(model.estimator, {model.strength: [0, 1]}, cv=3, scoring=scoring, error_score="raise", **options)
        search.fit(X, y, **groups)
        best = search.best_estimator_.predict_proba(X, **groups)
        return [*search.cv_results_["mean_test_score"], *best.ravel()]

    return run


def _cross_validation(function: Any, pick: Callable[[Any], Any], **more: Any) -> Callable[..., Any]:
    def run(model: Any, X: Any, y: Any, groups: Any, scoring: Any) -> Any:
        options = {"cv": StratifiedKFold(3), "scoring": scoring, "error_score": "raise", "params": groups or None}
        return pick(function(model.estimator, X, y, **options, **more))

    return run


SCORED = {
    "GridSearchCV": _search(GridSearchCV),
    "HalvingGridSearchCV": _search(HalvingGridSearchCV, random_state=0),
    "RandomizedSearchCV": _search(RandomizedSearchCV, n_iter=2, random_state=0),
    "cross_validate": _cross_validation(cross_validate, lambda result: result["test_score"]),
    "cross_val_score": _cross_validation(cross_val_score, lambda result: result),
    "learning_curve": _cross_validation(learning_curve, lambda result: result[2].ravel(), train_sizes=[0.4, 1.0]),
}

# Outcomes with groups beside X and routing on, by where the scorer comes from.
SCORINGS = {"fairsteer.scoring": "works", "none": "works ≥ 1.8", "accuracy": "G", "make_scorer": "G"}


def _calibrated(model: Any, X: Any, y: Any, groups: Any) -> Any:
    return CalibratedClassifierCV(model.estimator, cv=3).fit(X, y, **groups).predict_proba(X)


def _stacked(model: Any, X: Any, y: Any, groups: Any) -> Any:
    return StackingClassifier([("model", model.estimator)], cv=3).fit(X, y, **groups).predict_proba(X)


def _voted(model: Any, X: Any, y: Any, groups: Any) -> Any:
    return _fit_and_ask(VotingClassifier([("model", model.estimator)], voting="soft"), X, y, groups)


def _importance(model: Any, X: Any, y: Any, groups: Any) -> Any:
    fitted = clone(model.estimator).fit(X, y, **groups)
    # The columns of the features only; it has no argument for groups.
    return permutation_importance(fitted, X, y, n_repeats=2, random_state=0).importances[:3]


def _union(kind: Any) -> Callable[..., Any]:
    def run(model: Any, X: Any, y: Any, groups: Any) -> Any:
        steps = [("steer", model.steer)] if kind is FeatureUnion else [("steer", model.steer, slice(0, X.shape[1]))]
        return _fit_and_ask(Pipeline([("union", kind(steps)), ("last", LogisticRegression())]), X, y, groups)

    return run


def _regression(model: Any, X: Any, y: Any, groups: Any, **options: Any) -> Any:
    steps = Pipeline([("steer", model.steer), ("last", Ridge())])
    return _fit_and_ask(TransformedTargetRegressor(steps, **options), X, y, groups, "predict")


TOOLS = {
    "Pipeline": Row(
        lambda model, X, y, groups: _fit_and_ask(
            Pipeline([("before", "passthrough"), ("model", clone(model.estimator))]), X, y, groups
        ),
        off="P",
    ),
    "ColumnTransformer": Row(_union(ColumnTransformer), off="P"),
    "FeatureUnion": Row(_union(FeatureUnion), off="P"),
    "TransformedTargetRegressor, discrete y": Row(_regression, off="P"),
    "TransformedTargetRegressor, continuous y": Row(
        lambda model, X, y, groups: _regression(model, X, y, groups, func=np.log1p, inverse_func=np.expm1),
        columns="Y",
        beside="Y",
        off="P",
    ),
    "cross_val_predict": Row(
        lambda model, X, y, groups: cross_val_predict(model.estimator, X, y, cv=3, params=groups or None),
        beside="G",
        off="P",
    ),
    "CalibratedClassifierCV": Row(_calibrated, beside="G", off="P"),
    "TunedThresholdClassifierCV": Row(
        lambda model, X, y, groups: TunedThresholdClassifierCV(model.estimator, cv=3).fit(X, y, **groups).predict(X),
        beside="G",
    ),
    "FixedThresholdClassifier": Row(
        lambda model, X, y, groups: _fit_and_ask(FixedThresholdClassifier(model.estimator), X, y, groups), beside="K"
    ),
    "StackingClassifier": Row(_stacked, beside="G"),
    "VotingClassifier": Row(_voted, beside="K"),
    "BaggingClassifier": Row(
        lambda model, X, y, groups: _fit_and_ask(BaggingClassifier(model.estimator, 3, random_state=0), X, y, groups),
        beside="works ≥ 1.9",
    ),
    "OneVsRestClassifier": Row(
        lambda model, X, y, groups: _fit_and_ask(OneVsRestClassifier(model.estimator), X, y, groups), beside="K"
    ),
    "permutation_importance": Row(_importance, beside="G", off="P"),
}
OF_A_TRANSFORMER = ("ColumnTransformer", "FeatureUnion", "TransformedTargetRegressor")


# ---- the estimators


class Model(NamedTuple):
    estimator: Any
    strength: str
    steer: Any


class Numbered(BaseEstimator):
    """The last column of X is the number of the row, under which `groups` has its group."""

    def __init__(self, groups: Any = None, strength: float = 1.0) -> None:
        self.groups = groups
        self.strength = strength

    def _explicit(self, X: Any) -> tuple[Any, dict[str, Any]]:
        return X[:, :-1], {"sensitive_features": self.groups[X[:, -1].astype(int)]}


class NumberedSteering(TransformerMixin, Numbered):
    options: ClassVar[dict[str, Any]] = {}

    def fit(self, X: Any, y: Any = None) -> NumberedSteering:
        rows, groups = self._explicit(X)
        self.steer_ = FairSteeringTransformer(strength=self.strength, **self.options).fit(rows, y, **groups)
        return self

    def transform(self, X: Any) -> Any:
        rows, groups = self._explicit(X)
        return self.steer_.transform(rows, **groups)


class WithheldSteering(NumberedSteering):
    """Groups are known at fit, and inferred from the features afterwards."""

    options: ClassVar[dict[str, Any]] = {"unknown_group": "infer"}

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        self.fit(X, y)
        return super().transform(X)

    def transform(self, X: Any) -> Any:
        return self.steer_.transform(X[:, :-1])


class NumberedClassifier(ClassifierMixin, Numbered):
    def fit(self, X: Any, y: Any) -> NumberedClassifier:
        rows, groups = self._explicit(X)
        self.model_ = IdealDistributionClassifier(steering=FairSteeringTransformer(strength=self.strength)).fit(
            rows, y, **groups
        )
        self.classes_ = self.model_.classes_
        return self

    def _ask(self, method: str, X: Any) -> Any:
        rows, groups = self._explicit(X)
        return getattr(self.model_, method)(rows, **groups)

    def predict(self, X: Any) -> Any:
        return self._ask("predict", X)

    def predict_proba(self, X: Any) -> Any:
        return self._ask("predict_proba", X)

    def decision_function(self, X: Any) -> Any:
        return self._ask("decision_function", X)


def pipeline(steer: Any) -> Model:
    return Model(Pipeline([("steer", steer), ("last", LogisticRegression())]), "steer__strength", steer)


def steered(kind: str, **parameters: Any) -> Model:
    steer = FairSteeringTransformer(**parameters)
    if kind == "pipeline":
        return pipeline(steer)
    return Model(IdealDistributionClassifier(steering=steer), "steering__strength", steer)


def numbered(kind: str, groups: Any) -> Model:
    if kind == "pipeline":
        return pipeline(NumberedSteering(groups))
    return Model(NumberedClassifier(groups), "strength", NumberedSteering(groups))


class Ways(NamedTuple):
    """The same rows with their groups in the last column, beside X, and by number."""

    columns: Any
    beside: Any
    number: Any
    y: Any
    group: Any


@pytest.fixture(scope="module")
def ways(make_data: Any) -> Ways:
    data = make_data(n=300)
    group = np.array([3, 7])[data.group]
    return Ways(
        np.column_stack([data.X, group]),
        data.X,
        np.column_stack([data.X, np.arange(len(data.y))]),
        data.y,
        group,
    )


def _check(outcome: str, run: Callable[[], Any], expected: Callable[[], Any]) -> None:
    word, _, since = outcome.partition(" ≥ ")
    if word == "works" and tuple(map(int, (since or "1.6").split("."))) <= VERSION:
        np.testing.assert_allclose(run(), expected(), atol=1e-10)
        return
    errors = [ERRORS["G"], ERRORS["K"]] if word == "works" else [ERRORS[word]]  # before `since`: one of these
    with pytest.raises((ValueError, TypeError)) as caught:
        run()
    assert any(type(caught.value) is error and text in str(caught.value) for error, text in errors), caught.value


# ---- the outcomes


@pytest.mark.slow
@pytest.mark.parametrize("way", ["columns", "beside", "off"])
@pytest.mark.parametrize(
    ("tool", "kind"),
    [
        (tool, kind)
        for tool in TOOLS
        for kind in ("pipeline", "classifier")
        if kind == "pipeline" or not tool.startswith(OF_A_TRANSFORMER)
    ],
)
def test_tools(ways: Ways, tool: str, kind: str, way: str) -> None:
    row = TOOLS[tool]
    outcome = getattr(row, way)
    if kind == "classifier" and tool != "Pipeline":
        # With routing off its fit gets the groups from scikit-learn, which then forgets them.
        outcome = outcome.replace("P", "G")

    def run() -> Any:
        if way == "columns":
            return row.run(steered(kind, sensitive_columns=[3]), ways.columns, ways.y, {})
        with sklearn.config_context(enable_metadata_routing=way == "beside"):
            return row.run(steered(kind), ways.beside, ways.y, {"sensitive_features": ways.group})

    def expected() -> Any:
        return row.run(numbered(kind, ways.group), ways.number, ways.y, {})

    _check(outcome, run, expected)


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("way", ["columns", "beside", "off"])
@pytest.mark.parametrize("kind", ["pipeline", "classifier"])
@pytest.mark.parametrize("tool", SCORED)
def test_tools_that_score(ways: Ways, tool: str, kind: str, way: str, scoring: str) -> None:
    outcome = {"columns": "works", "beside": SCORINGS[scoring], "off": "P" if kind == "pipeline" else "G"}[way]
    if outcome == "works ≥ 1.8" and kind == "classifier":
        outcome = "works"  # only the score of a pipeline forgot groups

    def scorer(columns: Any) -> Any:
        return {
            "fairsteer.scoring": fairness_scorer("demographic_parity_difference", sensitive_columns=columns),
            "none": None,
            "accuracy": "accuracy",
            "make_scorer": make_scorer(accuracy_score),
        }[scoring]

    def run() -> Any:
        if way == "columns":
            model = steered(kind, sensitive_columns=[3])
            return SCORED[tool](model, ways.columns, ways.y, {}, scorer([3]))
        with sklearn.config_context(enable_metadata_routing=way == "beside"):
            groups = {"sensitive_features": ways.group}
            return SCORED[tool](steered(kind), ways.beside, ways.y, groups, scorer(None))

    def expected() -> Any:
        def gap(estimator: Any, X: Any, y: Any) -> float:
            group = ways.group[X[:, -1].astype(int)]
            return -demographic_parity_difference(y, estimator.predict(X), sensitive_features=group)

        explicit = gap if scoring == "fairsteer.scoring" else "accuracy"
        return SCORED[tool](numbered(kind, ways.group), ways.number, ways.y, {}, explicit)

    if way == "off" and scoring == "fairsteer.scoring" and kind == "classifier":
        with pytest.raises(ValueError, match="got no groups"):
            run()
    else:
        _check(outcome, run, expected)


@pytest.mark.slow
@pytest.mark.parametrize("tool", [name for name, row in TOOLS.items() if row.beside == "G"])
def test_what_forgets_the_groups_works_where_they_may_be_inferred(ways: Ways, tool: str) -> None:
    def run() -> Any:
        with sklearn.config_context(enable_metadata_routing=True):
            model = steered("pipeline", unknown_group="infer")
            return TOOLS[tool].run(model, ways.beside, ways.y, {"sensitive_features": ways.group})

    def expected() -> Any:
        return TOOLS[tool].run(pipeline(WithheldSteering(ways.group)), ways.number, ways.y, {})

    # Stacking passes the groups on, but to the final estimator as well.
    _check("K" if tool == "StackingClassifier" else "works", run, expected)


# ---- the page


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(outcome: str) -> str:
    word, _, since = outcome.partition(" ≥ ")
    return f"works from scikit-learn {since}" if since else word


def _tool(name: str) -> str:
    name, _, note = name.partition(", ")
    return f"`{name}`, {note}" if note else f"`{name}`"


def test_the_page_shows_these_outcomes() -> None:
    ways = ["`sensitive_columns`", "`sensitive_features=`, routing on", "routing off"]
    scorers = {"fairsteer.scoring": "`fairsteer.scoring`", "none": "none", "accuracy": '`"accuracy"`'}
    scorers["make_scorer"] = "`make_scorer(…)`"
    scored = [[scorers[name], "works", _cell(outcome), "P"] for name, outcome in SCORINGS.items()]
    others = [[_tool(name), *map(_cell, row[1:])] for name, row in TOOLS.items()]
    page = PAGE.read_text(encoding="utf-8")
    assert _table(["scorer", *ways], scored) in page
    assert _table(["tool", *ways], others) in page
    words = re.sub(r"\s+", " ", page)
    assert ", ".join(f"`{name}`" for name in SCORED) in words
    for letter, (kind, text) in ERRORS.items():
        assert f"* **{letter}**: `{kind.__name__}: " in words
        assert text in words
