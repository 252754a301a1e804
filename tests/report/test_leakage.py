"""What models read of the group before and after: the same as `group_leakage` measures, in every form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fairsteer import FairSteeringTransformer
from fairsteer.metrics import group_leakage
from fairsteer.report import steering_report
from fairsteer.report._leakage import evenly, leakage_findings

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
    assert (trees["after_lower"] > trees["before_upper"] + 0.2).all()
    assert (trees["auc_after"] > 0.85).all()
    linear = table[table["family"] == "linear models"]
    assert (linear["after"] < linear["before"]).all()
    sentences = [text for text in report.findings if text.startswith("Steering made f and m easier to tell apart")]
    assert len(sentences) == 1
    assert "by trees among rows of class" in sentences[0]
    for text in (str(report), report.to_html()):
        assert "What models can read of the group" in text
        assert "linear models" in text


def test_advantages_are_those_of_the_same_folds_by_hand(made_worse: Any) -> None:
    """A model learns from rows that a fold's maps have seen, and is judged on those that they have not."""
    report, X, y, group = made_worse
    cells = np.unique(y, return_inverse=True)[1] * 2 + np.unique(group, return_inverse=True)[1]
    said = {when: np.empty(len(y), dtype=object) for when in ("before", "after")}
    for train, test in StratifiedKFold(5).split(X, cells):
        steer = FairSteeringTransformer(map_type="affine").fit(X[train], y[train], sensitive_features=group[train])
        for when, rows in (("before", X), ("after", steer.transform(X, sensitive_features=group))):
            for label in ("no", "yes"):
                some, others = train[y[train] == label], test[y[test] == label]
                model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
                said[when][others] = model.fit(rows[some], group[some]).predict(rows[others])
    table = report.to_frame("leakage")
    linear = table[table["family"] == "linear models"].set_index("class")
    for when, answers in said.items():
        for label in ("no", "yes"):
            f, m = (answers[(y == label) & (group == name)] == "f" for name in ("f", "m"))
            assert linear.loc[label, when] == pytest.approx(f.mean() - m.mean(), abs=0.01)


def test_of_other_rows_the_maps_have_seen_none() -> None:
    X, y, group = integers(1500)
    some = np.arange(1500) < 500
    steer = FairSteeringTransformer(map_type="affine").fit(X[some], y[some], sensitive_features=group[some])
    report = steering_report(steer, X[~some], y[~some], sensitive_features=group[~some], **QUICK)
    moved = steer.transform(X[~some], sensitive_features=group[~some])
    found = group_leakage(moved, y[~some], sensitive_features=group[~some])
    np.testing.assert_allclose(report.tables["leakage"]["after"], found.advantage.value, atol=0.1)  # in other folds


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
    few = evenly(y, codes)
    assert len(np.unique(few)) == 100
    assert np.bincount(y[few] * 2 + codes[few]).tolist() == [45, 45, 5, 5]


def test_what_grew_by_chance_is_no_finding() -> None:
    table: dict[str, list[Any]] = {"family": ["trees"], "class": [1], "group": ["a"], "other": ["b"]}
    table |= {"before": [0.1], "before_lower": [0.0], "before_upper": [0.2]}
    assert leakage_findings(table | {"after": [0.25], "after_lower": [0.15], "after_upper": [0.35]}) == []
    (text,) = leakage_findings(table | {"after": [0.5], "after_lower": [0.4], "after_upper": [0.6]})
    assert text.startswith("Steering made a and b easier to tell apart by trees among rows of class 1: the balanced")
    assert "grew from 0.100 to 0.500" in text
