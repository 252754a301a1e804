"""Predictions that are not what the truth is (probabilities, other spellings or codes) have no gap, not even 0."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score

from fairsteer import metrics
from fairsteer.report import measured_gaps
from fairsteer.scoring import budget_scorer, fairness_scorer

MEASURES: list[Any] = [
    metrics.demographic_parity_difference,
    metrics.equal_opportunity_difference,
    metrics.equalized_odds_difference,
    metrics.tpr_gap_rms,
    metrics.group_metrics,
    metrics.gaps,
    measured_gaps,
]
TRUE = np.tile([0, 1, 1, 0, 1], 20)
PRED = np.where(np.random.default_rng(0).random(100) < 0.3, 1 - TRUE, TRUE)
GROUP = np.tile(["a", "a", "b", "b"], 25)
WORDS = np.array(["No", "Yes"])
#: Containers of one column, as people hand it over.
CONTAINERS = {
    "list": list,
    "numpy": np.asarray,
    "object": lambda column: np.array(list(column), dtype=object),
    "column vector": lambda column: np.asarray(column)[:, None],
    "pandas": pd.Series,
    "pandas categorical": pd.Categorical,
    "polars": lambda column: pl.Series(list(column)),
    "pyarrow": lambda column: pa.array(list(column)),
    "pyarrow chunks": lambda column: pa.chunked_array([list(column[:7]), list(column[7:])]),
    "pyarrow dictionary": lambda column: pa.array(list(column)).dictionary_encode(),
}


def refused(true: Any, pred: Any, message: Any, **arguments: Any) -> None:
    for measure in MEASURES:
        with pytest.raises(ValueError, match=message):
            measure(true, pred, sensitive_features=GROUP, **arguments)


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_every_container_gives_one_gap(container: Any) -> None:
    expected = metrics.equal_opportunity_difference(TRUE, PRED, sensitive_features=GROUP)
    assert expected > 0.03
    for true, pred in ((TRUE, PRED), (WORDS[TRUE], WORDS[PRED])):
        assert metrics.equal_opportunity_difference(container(true), container(pred), sensitive_features=GROUP) == (
            expected
        )


def test_booleans_integers_and_floats_are_one_label() -> None:
    expected = metrics.equalized_odds_difference(TRUE, PRED, sensitive_features=GROUP)
    for pred in (PRED.astype(bool), PRED.astype(np.float32), PRED.astype(object), PRED.astype(np.int8)):
        assert metrics.equalized_odds_difference(TRUE, pred, sensitive_features=GROUP) == expected
        assert metrics.equalized_odds_difference(pred, TRUE, sensitive_features=GROUP) == (
            metrics.equalized_odds_difference(PRED, TRUE, sensitive_features=GROUP)
        )


@pytest.mark.parametrize("container", [list, np.float32, np.float16, pl.Series, pa.array, pd.Series])
def test_probabilities_and_scores_are_no_predictions(container: Any) -> None:
    probability = np.linspace(0, 1, 100)
    refused(TRUE, container(probability), "y_pred is continuous: 98 distinct fractions.*not probabilities")
    refused(container(probability), TRUE, "y_true is continuous")
    refused(WORDS[TRUE], container(probability), "y_pred is continuous")


@pytest.mark.parametrize(
    ("true", "pred", "message"),
    [
        (WORDS[TRUE], np.char.lower(WORDS[PRED]), "'No' and 'no' look like two spellings of one class"),
        (WORDS[TRUE], np.char.add(WORDS[PRED], " "), "'No' and 'No ' look like two spellings"),
        (WORDS[TRUE], np.where(PRED == 1, "yes", "No"), "'Yes' and 'yes' look like two spellings"),
        (WORDS[TRUE], np.where(PRED == 1, "Ja", "Nein"), "No predicted label is a true one"),
        (TRUE, np.where(PRED == 1, 5, -3), "No predicted label is a true one"),
        (2 * TRUE - 1, PRED, "two codings of the classes: 0 is never true, and -1 is never predicted"),
        (TRUE + 1, PRED, "two codings of the classes: 0 is never true, and 2 is never predicted"),
        (np.arange(100) % 3, np.arange(100) % 3 + 1, "two codings of the classes"),
        (TRUE, PRED.astype(str), "integers 0, 1; y_pred has the strings '0', '1'"),
        (TRUE.astype(str), PRED.astype(bool), "strings '0', '1'; y_pred has the booleans False, True"),
        (TRUE, np.column_stack([1 - PRED, PRED]), "one label per row"),
        (TRUE * 0, PRED * 0, "All true and predicted labels are 0: with one label nothing says"),
        (WORDS[TRUE * 0], WORDS[PRED * 0], "All true and predicted labels are 'No'"),
    ],
)
def test_other_spellings_and_codes_are_refused(true: Any, pred: Any, message: Any) -> None:
    refused(true, pred, message)
    refused(pd.Series(list(true)), pred.tolist(), message if "shape" not in message else "")


def test_named_classes_say_what_is_meant() -> None:
    some = {"sensitive_features": GROUP}
    refused(WORDS[TRUE], np.char.lower(WORDS[PRED]), "y_pred holds 'no', 'yes', but labels names", labels=WORDS)
    assert metrics.demographic_parity_difference(TRUE * 0, TRUE * 0, **some, labels=[0, 1]) == 0.0
    assert np.isnan(metrics.equal_opportunity_difference(TRUE * 0, TRUE * 0, **some, labels=[0, 1]))
    assert metrics.equal_opportunity_difference(TRUE * 0, PRED * 0, **some, pos_label=0) == 0.0
    three = metrics.equalized_odds_difference(TRUE + 1, PRED, **some, labels=[0, 1, 2])
    assert three > 0


@pytest.mark.parametrize(
    "missing",
    [
        [None, *TRUE[1:].tolist()],
        [float("nan"), *["x"] * 99],
        [pd.NA, *TRUE[1:].tolist()],
        np.where(np.arange(100) == 3, np.nan, TRUE),
        np.ma.masked_array(TRUE, np.arange(100) == 5),
        pd.Series([None, *["x"] * 99], dtype="string"),
        pd.Series([None, *TRUE[1:].tolist()], dtype="Int64"),
        pd.Categorical([None, *["x"] * 99]),
        pl.Series([None, *["x"] * 99]),
        pl.Series([None, *TRUE[1:].tolist()]),
        pa.array([None, *["x"] * 99]),
        pa.array([None, *TRUE[1:].tolist()]),
        np.array([np.datetime64("NaT"), *[np.datetime64("2020-01-01")] * 99]),
    ],
    ids=lambda column: f"{type(column).__module__.partition('.')[0]}-{getattr(column, 'dtype', '')}",
)
def test_a_missing_label_is_no_class(missing: Any) -> None:
    refused(missing, ["x"] * 100, "y_true has 1 missing labels")
    refused(["x"] * 100, missing, "y_pred has 1 missing labels")


@pytest.fixture(scope="module")
def data() -> Any:
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 2, (2, 600))
    X = rng.normal(size=(600, 3)) + np.outer(y, [1, 1, 0]) + np.outer(group, [0, 2, 1])
    return X, y, group


@pytest.mark.parametrize("metric", [metric.__name__ for metric in MEASURES[:4]])
def test_scorers_refuse_what_metrics_refuse(data: Any, metric: Any) -> None:
    X, y, group = data
    scorer = fairness_scorer(metric)
    model = LogisticRegression().fit(X, WORDS[y])
    assert scorer(model, X, WORDS[y], sensitive_features=group) < -0.05
    with pytest.raises(ValueError, match="y_pred is continuous"):
        scorer(LinearRegression().fit(X, y), X, y, sensitive_features=group)
    for response in ("predict_proba", "decision_function"):
        with pytest.raises(ValueError, match="y_pred is continuous"):
            fairness_scorer(metric, response_method=response)(model, X, WORDS[y], sensitive_features=group)
    for y_true in (np.char.lower(WORDS[y]), y):
        with pytest.raises(ValueError, match=r"two spellings|mix labels"):
            scorer(model, X, y_true, sensitive_features=group)
        with pytest.raises(ValueError, match=r"two spellings|mix labels"):
            budget_scorer("accuracy", scorer, max_gap=0.1)(model, X, y_true, sensitive_features=group)


@pytest.mark.parametrize("metric", ["zero_one_loss_difference", "accuracy_score_difference"])
def test_metrics_of_fairlearn_are_guarded_too(data: Any, metric: Any) -> None:
    pytest.importorskip("fairlearn")
    X, y, group = data
    model = LogisticRegression().fit(X, WORDS[y])
    with pytest.raises(ValueError, match="two spellings"):
        fairness_scorer(metric)(model, X, np.char.lower(WORDS[y]), sensitive_features=group)


def test_a_class_that_only_a_fold_holds_is_scored(data: Any) -> None:
    X, y, group = data
    model = LogisticRegression().fit(X, y)
    y = np.where(np.arange(600) == 7, 2, y)
    gap = fairness_scorer("equalized_odds_difference")(model, X, y, sensitive_features=group)
    assert gap == -metrics.equalized_odds_difference(y, model.predict(X), sensitive_features=group, labels=[0, 1, 2])


def test_a_search_does_not_choose_the_regression_for_its_gap(data: Any) -> None:
    X, y, group = data
    table = np.column_stack([X, group])
    scorer = fairness_scorer("equal_opportunity_difference", sensitive_columns=[3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn says that scores are NaN
        scores = cross_val_score(LinearRegression(), table, y, scoring=scorer, cv=3)
        search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, scoring=scorer, cv=3).fit(table, y)
    assert np.isnan(scores).all()
    assert search.best_score_ < 0
