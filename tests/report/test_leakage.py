"""What models read of the group before and after: the same as `group_leakage` measures, in every form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fairsteer import FairSteeringTransformer
from fairsteer.metrics import group_leakage
from fairsteer.report import steering_report
from fairsteer.report._leakage import MovedRows, _thinned, leakage_findings

QUICK: dict[str, Any] = {"n_resamples": 20}


def integers(n: int = 1200) -> Any:
    """Integer columns: an affine map of one group makes values that the other does not have."""
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 2, (2, n))
    X = rng.poisson(5 + y[:, None] + group[:, None], (n, 2)).astype(float)
    return X, np.array(["no", "yes"])[y], np.array(["f", "m"])[group]


@pytest.fixture(scope="module")
def made_worse() -> Any:
    X, y, group = integers()
    steer = FairSteeringTransformer(map_type="affine").fit(X, y, sensitive_features=group)
    return steering_report(steer, X, y, sensitive_features=group, leakage="trees", **QUICK), X, y, group


def test_trees_read_the_group_out_of_integers_that_were_steered_and_the_report_says_so(made_worse: Any) -> None:
    report = made_worse[0]
    table = report.to_frame("leakage")
    trees = table[table["family"] == "trees"]
    assert (trees["after_lower"] > 0.9).all()
    assert (trees["before_upper"] < 0.6).all()
    assert (trees["auc_after"] > 0.99).all()
    linear = table[table["family"] == "linear models"]
    assert (linear["after"] < linear["before"]).all()
    sentences = [text for text in report.findings if text.startswith("Steering made f and m easier to tell apart")]
    assert len(sentences) == 1
    assert "by trees among rows of class" in sentences[0]
    for text in (str(report), report.to_html()):
        assert "What models can read of the group" in text
        assert "linear models" in text


def test_before_is_what_the_metric_measures_on_the_rows(made_worse: Any) -> None:
    report, X, y, group = made_worse
    found = group_leakage(X, y, sensitive_features=group)
    table = report.to_frame("leakage")
    linear = table[table["family"] == "linear models"]
    np.testing.assert_allclose(linear["before"], found.advantage.value)
    np.testing.assert_allclose(linear["before_lower"], found.advantage.lower)
    np.testing.assert_allclose(linear["auc_before"], found.auc)
    assert list(zip(linear["class"], linear["group"], linear["other"], strict=True)) == found.pairs


def test_after_is_measured_on_rows_that_the_maps_have_not_seen() -> None:
    X, y, group = integers(600)
    some = np.arange(600) < 400
    steer = FairSteeringTransformer(map_type="affine").fit(X[some], y[some], sensitive_features=group[some])
    rest = (X[~some], y[~some])
    report = steering_report(steer, *rest, sensitive_features=group[~some], min_rows=5, **QUICK)
    moved = steer.transform(rest[0], sensitive_features=group[~some])
    found = group_leakage(moved, rest[1], sensitive_features=group[~some])
    np.testing.assert_allclose(report.tables["leakage"]["after"], found.advantage.value)


def test_it_can_be_left_out_and_trees_are_asked_for() -> None:
    X, y, group = integers(300)
    steer = FairSteeringTransformer(map_type="translation").fit(X, y, sensitive_features=group)
    asked: Any
    for asked, families in (("none", set()), ("linear", {"linear models"})):
        report = steering_report(steer, X, y, sensitive_features=group, leakage=asked, **QUICK)
        assert set(report.tables.get("leakage", {"family": []})["family"]) == families
    unknown: Any = "boosting"
    with pytest.raises(ValueError, match="leakage must be one of 'none', 'linear', 'trees', not 'boosting'"):
        steering_report(steer, X, y, sensitive_features=group, leakage=unknown)


def test_without_classes_and_with_one_group() -> None:
    X, y, group = integers(300)
    blind = FairSteeringTransformer(map_type="affine").fit(X, sensitive_features=group)
    table = steering_report(blind, X, sensitive_features=group).tables["leakage"]
    assert table["class"] == [None]
    alone = FairSteeringTransformer().fit(X, y, sensitive_features=np.zeros(300))
    assert "leakage" not in steering_report(alone, X, y, sensitive_features=np.zeros(300), **QUICK).tables


def test_many_rows_are_thinned_evenly_in_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairsteer.report._leakage.MOST_ROWS_OF_LEAKAGE", 100)
    y, codes = np.repeat([0, 1], [900, 100]), np.tile([0, 1], 500)
    X = np.arange(1000.0)[:, None]
    few = _thinned(MovedRows(X, X, y, codes, np.ones(1000)))
    assert len(few.codes) == len(np.unique(few.before)) == 100
    assert np.bincount(few.y_codes * 2 + few.codes).tolist() == [45, 45, 5, 5]


def test_what_grew_by_chance_is_no_finding() -> None:
    table: dict[str, list[Any]] = {"family": ["trees"], "class": [1], "group": ["a"], "other": ["b"]}
    table |= {"before": [0.1], "before_lower": [0.0], "before_upper": [0.2]}
    assert leakage_findings(table | {"after": [0.25], "after_lower": [0.15], "after_upper": [0.35]}) == []
    (text,) = leakage_findings(table | {"after": [0.5], "after_lower": [0.4], "after_upper": [0.6]})
    assert text.startswith("Steering made a and b easier to tell apart by trees among rows of class 1: the balanced")
    assert "grew from 0.100 to 0.500" in text
