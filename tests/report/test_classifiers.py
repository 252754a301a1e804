"""Reports on classifiers: what is compared is what fits by hand give, and rows are read once."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from fairsteer import (
    FairSteeringTransformer,
    IdealDistributionClassifier,
    IdealDistributionClassifierCV,
    ScoreAligner,
    metrics,
)
from fairsteer.groups import GroupEncoder
from fairsteer.report import steering_report

QUICK: dict[str, Any] = {"n_resamples": 20}


@pytest.fixture(scope="module")
def rows(make_data: Any) -> Any:
    X, y, group = make_data(n=900, n_features=3, n_groups=3, seed=1)
    X = pd.DataFrame(X, columns=["age", "pay", "hours"])
    return X, np.array(["no", "yes"])[y], np.array(["a", "b", "c"])[group]


def _held_out(model: Any, X: Any, y: Any, group: Any, *, fit_params: Any = None, **predict_params: Any) -> Any:
    predicted = np.empty_like(y)
    for train, test in StratifiedKFold(5).split(X, np.char.add(y, group)):
        fitted = clone(model).fit(X.iloc[train], y[train], **{k: v[train] for k, v in (fit_params or {}).items()})
        predicted[test] = fitted.predict(X.iloc[test], **{k: v[test] for k, v in predict_params.items()})
    return predicted


def _check_gaps(report: Any, when: Any, y: Any, predicted: Any, group: Any) -> None:
    table = report.to_frame("gaps").set_index("measure")[when]
    assert table["accuracy"] == pytest.approx(np.mean(predicted == y))
    for name, gap in metrics.gaps(y, predicted, sensitive_features=group).items():
        assert table[name] == pytest.approx(gap.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        ScoreAligner(LogisticRegression()),
        IdealDistributionClassifier(),
        IdealDistributionClassifier(LogisticRegression()),
        IdealDistributionClassifier(LogisticRegression(), FairSteeringTransformer(unknown_group="infer")),
        IdealDistributionClassifierCV(
            LogisticRegression(),
            FairSteeringTransformer(constraint="equal_opportunity"),
            candidates={"steering__map_type": ["translation", "diagonal"]},
            cv=2,
        ),
    ],
    ids=["aligner", "bayes", "trained", "inferring", "search"],
)
def test_a_classifier_that_knows_groups_is_compared_with_one_that_does_not(rows: Any, model: Any) -> None:
    X, y, group = rows
    groups = {"sensitive_features": group}
    report: Any = steering_report(clone(model).fit(X, y, **groups), X, y, **groups, **QUICK)
    _check_gaps(report, "after", y, _held_out(model, X, y, group, fit_params=groups, **groups), group)
    plain = model.estimator or make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    _check_gaps(report, "before", y, _held_out(plain, X, y, group), group)
    steers = not isinstance(model, ScoreAligner)
    assert ("certificate" in report.tables) == steers
    assert (report.kl_divergence is not None) == steers
    assert np.isfinite(report.to_frame("subgroups")["recognised_after"]).all()
    for text in (str(report), report.to_html()):
        assert ("What moved" in text) == steers
        assert "Classes in groups" in text


@pytest.mark.slow
def test_any_classifier_is_compared_with_any_other(rows: Any) -> None:
    X, y, group = rows
    tree, other = DecisionTreeClassifier(max_depth=3, random_state=0), ScoreAligner(LogisticRegression())
    report: Any = steering_report(tree.fit(X, y), X, y, sensitive_features=group, before=other, **QUICK)
    _check_gaps(report, "after", y, _held_out(tree, X, y, group), group)
    groups = {"sensitive_features": group}
    _check_gaps(report, "before", y, _held_out(other, X, y, group, fit_params=groups, **groups), group)
    assert report.classifier == "DecisionTreeClassifier(max_depth=3, random_state=0)"
    assert report.compared_with == "ScoreAligner(estimator=LogisticRegression())"


def test_a_meta_estimator_is_compared_with_what_it_wraps(rows: Any) -> None:
    X, y, group = rows
    inner = DecisionTreeClassifier(max_depth=3, random_state=0)
    report: Any = steering_report(CalibratedClassifierCV(inner).fit(X, y), X, y, sensitive_features=group, **QUICK)
    _check_gaps(report, "before", y, _held_out(inner, X, y, group), group)


@pytest.mark.slow
def test_a_pipeline_is_compared_with_itself_without_steering(rows: Any) -> None:
    X, y, group = rows
    table = X.assign(sex=group)
    scale = make_column_transformer(
        (StandardScaler(), ["age", "pay"]), remainder="passthrough", verbose_feature_names_out=False
    ).set_output(transform="pandas")
    pipe = make_pipeline(scale, FairSteeringTransformer(sensitive_columns="sex"), LogisticRegression()).fit(table, y)
    report: Any = steering_report(pipe, table, y, **QUICK)
    assert report.same_rows
    _check_gaps(report, "after", y, _held_out(pipe, table, y, group), group)
    plain = make_pipeline(clone(scale), LogisticRegression())
    _check_gaps(report, "before", y, _held_out(plain, X, y, group), group)
    assert report.kl_divergence == pipe[1].kl_divergence_
    # A classifier to compare with gets the table as it was given.
    own = make_pipeline(
        make_column_transformer((OneHotEncoder(), ["sex"]), remainder="passthrough"), LogisticRegression(max_iter=500)
    )
    report = steering_report(pipe, table, y, before=own, **QUICK)
    _check_gaps(report, "before", y, _held_out(own, table, y, group), group)


def test_a_pipeline_with_the_classifier_last_gets_the_groups_beside(rows: Any) -> None:
    X, y, group = rows
    pipe = make_pipeline(StandardScaler(), IdealDistributionClassifier())
    pipe.fit(X, y, idealdistributionclassifier__sensitive_features=group)
    report: Any = steering_report(pipe, X, y, sensitive_features=group, **QUICK)
    of_fit = {"idealdistributionclassifier__sensitive_features": group}
    expected = _held_out(pipe, X, y, group, fit_params=of_fit, sensitive_features=group)
    _check_gaps(report, "after", y, expected, group)
    assert report.kl_divergence == pipe[-1].steering_.kl_divergence_


def test_on_other_rows_what_is_fitted_is_judged_as_it_is(rows: Any) -> None:
    X, y, group = rows
    half = np.arange(len(y)) % 2 == 0
    for model in (
        IdealDistributionClassifier(LogisticRegression()).fit(X[half], y[half], sensitive_features=group[half]),
        FrozenEstimator(ScoreAligner(LogisticRegression()).fit(X[half], y[half], sensitive_features=group[half])),
    ):
        report: Any = steering_report(model, X[~half], y[~half], sensitive_features=group[~half], **QUICK)
        own: Any = model if isinstance(model, IdealDistributionClassifier) else getattr(model, "estimator", model)
        predicted = own.predict(X[~half], sensitive_features=group[~half])
        _check_gaps(report, "after", y[~half], predicted, group[~half])
    plain = model.estimator.estimator_.predict(X[~half])
    _check_gaps(report, "before", y[~half], plain, group[~half])


def test_gaps_are_between_the_groups_given_also_where_small_ones_steer_as_one(make_data: Any) -> None:
    X, y, group = make_data(n=600, n_features=2, n_groups=4, seed=2)
    keep = (group < 2) | (np.arange(600) < 120)
    X, y, group = X[keep], y[keep], group[keep]
    steer = FairSteeringTransformer(min_subgroup_size=30, small_subgroups="merge").fit(X, y, sensitive_features=group)
    assert len(steer.groups_) == 3
    report: Any = steering_report(steer, X, y, sensitive_features=group, min_rows=1, **QUICK)
    assert report.after.groups.tolist() == [0, 1, 2, 3]
    assert len(report.tables["groups"]["group"]) == 3
    assert np.isfinite(report.tables["certificate"]["measured"]).all()


def test_refusals_name_the_way_out(rows: Any) -> None:
    X, y, group = rows
    tree = DecisionTreeClassifier().fit(X, y)
    aligner = ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=group)
    steer = IdealDistributionClassifier().fit(X, y, sensitive_features=group)
    groups = {"sensitive_features": group}
    with pytest.raises(ValueError, match=r"Pass before=…, a classifier to compare DecisionTreeClassifier with"):
        steering_report(tree, X, y, **groups)
    with pytest.raises(ValueError, match=r"No groups are given, .* Pass sensitive_features"):
        steering_report(aligner, X, y)
    with pytest.raises(ValueError, match="y is needed"):
        steering_report(aligner, X, **groups)
    with pytest.raises(ValueError, match="y holds the one class 'yes'"):
        steering_report(aligner, X[y == "yes"], y[y == "yes"], sensitive_features=group[y == "yes"])
    with pytest.raises(ValueError, match=r"has one of its own\. Pass before=…"):
        steering_report(steer, X, y, estimator=LogisticRegression(), **groups)
    with pytest.raises(NotFittedError):
        steering_report(IdealDistributionClassifier(), X, y, **groups)
    with pytest.raises(TypeError, match="takes a fitted FairSteeringTransformer or classifier, not StandardScaler"):
        steering_report(StandardScaler().fit(X), X, y, **groups)


def test_a_report_of_five_folds_reads_rows_at_most_eight_times(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, group = rows
    steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    calls: Counter[str] = Counter()

    def counted(name: Any, function: Any) -> Any:
        def call(*args: Any, **params: Any) -> Any:
            calls[name] += 1
            return function(*args, **params)

        return call

    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "fairsteer"]:
        for name in ("validate_data", "check_array"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, counted("rows", getattr(module, name)))
    for name in ("fit", "partial_fit_encode", "encode"):
        monkeypatch.setattr(GroupEncoder, name, counted("groups", getattr(GroupEncoder, name)))
    for params in ({}, {"unknown_group": "infer"}):
        calls.clear()
        steering_report(steer.set_params(**params), X, y, sensitive_features=group, cv=5, leakage="none", **QUICK)
        assert 6 <= calls["rows"] <= 8
        assert calls["groups"] <= 8
