"""One rule for labels, wherever they are met: by value, never as text, and missing ones are no labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression

import fairsteer.groups
from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, ScoreAligner, metrics
from fairsteer._utils.input import _distinct
from fairsteer._utils.labels import described, distinct_labels, kind_of, sorted_labels
from fairsteer.report import measured_gaps
from fairsteer.scoring import fairness_scorer

N = 300
rng = np.random.default_rng(0)
CLASSES, GROUPS = rng.integers(0, 2, N), rng.integers(0, 3, N)
X = rng.normal(size=(N, 3)) + np.outer(CLASSES, [1.5, 0, 0]) + np.outer(GROUPS, [0, 0.5, 1])

#: Fit on some group labels, answer for others.
USES: dict[str, Callable[[Any, Any], Any]] = {
    "transformer": lambda fit, new: (
        FairSteeringTransformer().fit(X, CLASSES, sensitive_features=fit).transform(X, sensitive_features=new)
    ),
    "aligner": lambda fit, new: (
        ScoreAligner(LogisticRegression(), cv=3)
        .fit(X, CLASSES, sensitive_features=fit)
        .predict_proba(X, sensitive_features=new)
    ),
    "classifier": lambda fit, new: (
        IdealDistributionClassifier().fit(X, CLASSES, sensitive_features=fit).predict_proba(X, sensitive_features=new)
    ),
    "alignment": lambda fit, new: (
        ScoreAligner(LogisticRegression(), cv=3)
        .fit(X, CLASSES, sensitive_features=fit)
        .alignment_.predict_proba(LogisticRegression().fit(X, CLASSES).predict_proba(X), sensitive_features=new)
    ),
}
every_use = pytest.mark.parametrize("use", USES.values(), ids=USES)


def take(labels: list[Any]) -> list[Any]:
    return [labels[code] for code in GROUPS]


@every_use
@pytest.mark.parametrize(
    ("fitted", "others"),
    [
        ([False, True, 9], [[0, 1, 9], [0.0, 1.0, 9.0], [False, 1, 9.0]]),
        ([0, 1, 2], [[0.0, 1.0, 2.0], [False, True, 2], [np.int8(0), np.uint16(1), np.float32(2)]]),
        (["a", "b", "1"], [[np.str_("a"), np.str_("b"), np.str_("1")]]),
    ],
)
def test_equal_labels_are_one_whatever_their_type(use: Any, fitted: list[Any], others: list[list[Any]]) -> None:
    expected = use(take(fitted), take(fitted))
    for other in others:
        for container in (
            list,
            lambda column: pd.Series(column, dtype=object),
            lambda column: np.array(column, object),
        ):
            np.testing.assert_array_equal(use(take(fitted), container(take(other))), expected)
            np.testing.assert_array_equal(use(container(take(fitted)), take(other)), expected)


@every_use
@pytest.mark.parametrize(
    ("fitted", "other", "message"),
    [
        ([1, 2, 3], ["1", "2", "3"], r"integers 1, 2, 3; given are the strings '1', '2', '3'"),
        (["1", "2", "3"], [1, 2, 3], r"strings '1', '2', '3'; given are the integers 1, 2, 3"),
        (["a", "b", "c"], [b"a", b"b", b"c"], r"strings 'a', 'b', 'c'; given are the bytes b'a'"),
    ],
)
def test_labels_that_look_alike_are_told_apart_by_their_types(use: Any, fitted: Any, other: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        use(take(fitted), take(other))


MISSING = {
    "list with None": [None, *CLASSES[1:].tolist()],
    "list with NaN": [float("nan"), *np.array(["no", "yes"])[CLASSES[1:]].tolist()],
    "list with NA": [pd.NA, *CLASSES[1:].tolist()],
    "numpy": np.where(np.arange(N) == 0, np.nan, CLASSES),
    "masked": np.ma.masked_array(CLASSES, np.arange(N) == 0),
    "pandas text": pd.Series(["yes", None, *["no"] * (N - 2)], dtype="string"),
    "pandas integers": pd.Series([1, None, *[0] * (N - 2)], dtype="Int64"),
    "pandas categories": pd.Series(["yes", None, *["no"] * (N - 2)], dtype="category"),
    "polars text": pl.Series(["yes", None, *["no"] * (N - 2)]),
    "polars integers": pl.Series([1, None, *[0] * (N - 2)]),
    "pyarrow text": pa.array(["yes", None, *["no"] * (N - 2)]),
    "pyarrow integers": pa.chunked_array([[1, None], [0] * (N - 2)]),
}


@pytest.mark.parametrize("y", MISSING.values(), ids=MISSING)
def test_a_missing_class_is_refused_in_one_sentence(y: Any) -> None:
    fits: list[Callable[[], Any]] = [
        lambda: ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=GROUPS),
        lambda: FairSteeringTransformer().fit(X, y, sensitive_features=GROUPS),
        lambda: IdealDistributionClassifier().fit(X, y, sensitive_features=GROUPS),
        lambda: metrics.equal_opportunity_difference(y, y, sensitive_features=GROUPS),
        lambda: measured_gaps(y, y, sensitive_features=GROUPS),
    ]
    for fit in fits:
        with pytest.raises(ValueError, match="has 1 missing labels"):
            fit()


def test_scorers_read_groups_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LogisticRegression().fit(X, CLASSES)
    calls: Any = []
    factorise = fairsteer.groups._factorise
    monkeypatch.setattr(fairsteer.groups, "_factorise", lambda column: calls.append(1) or factorise(column))
    for metric in ("equal_opportunity_difference", "tpr_gap_rms"):
        calls.clear()
        fairness_scorer(metric)(model, X, CLASSES, sensitive_features=GROUPS)
        assert len(calls) == 1


def test_kinds_and_order() -> None:
    assert [kind_of(label) for label in (True, 1, 1.5, np.int8(1), "a", np.str_("a"), b"a", (1, 2))] == (
        ["number"] * 4 + ["str"] * 2 + ["bytes", "tuple"]
    )
    assert sorted_labels({3, 1, 2}) == [1, 2, 3]
    assert sorted_labels(["b", 1, "a"]) == [1, "a", "b"]
    assert described([True, 1, "1"]) == "booleans True and the integers 1 and the strings '1'"
    for labels in (np.array([3, 1, 3]), np.array(["b", "a", "b"]), np.array(["b", 1, "b"], dtype=object)):
        found, codes = distinct_labels(labels)
        assert [found[code] for code in codes] == labels.tolist()
        assert len(found) == 2


@pytest.mark.parametrize(
    "values",
    [
        np.array([-128, 127, 0], np.int8),
        np.array([3, 250, 3], np.uint8),
        np.array([2**63 + 5, 2**63 + 1, 2**63 + 5], np.uint64),
        np.array([2**64 - 1, 2**64 - 2], np.uint64),
        np.array([-(2**63), 2**63 - 1]),
        np.array([2**63 - 1, 2**63 - 3]),
        np.array([5, 5000, 5]),
        np.array([], int),
    ],
)
def test_whole_numbers_are_counted_as_they_are_sorted(values: Any) -> None:
    found, positions = _distinct(values)
    expected = np.unique(values, return_inverse=True)
    assert found.dtype == expected[0].dtype
    np.testing.assert_array_equal(found, expected[0])
    np.testing.assert_array_equal(positions, expected[1])
