"""The one engine of held-out predictions: they are those of fits by hand, and nothing is fitted twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, ScoreAligner
from fairsteer.report._held_out import Method, default_classifier, predict_held_out


@pytest.fixture(scope="module")
def data(make_data: Any) -> Any:
    X, y, group = make_data(n=600, n_features=3, n_classes=2, n_groups=3, seed=1)
    return X, np.array(["no", "yes"])[y], np.array(["a", "b", "c"])[group]


def _splits(y: Any, group: Any) -> Any:
    return list(StratifiedKFold(5).split(y, np.char.add(y, group)))


def test_every_method_predicts_as_fits_by_hand_do(data: Any) -> None:
    X, y, group = data
    steer = FairSteeringTransformer()
    model = LogisticRegression()
    methods = {
        "before": Method(None, model),
        "after": Method(steer, model),
        "half": Method(steer, model, 0.5),
        "bayes": Method(steer),
        "aligned": ScoreAligner(model),
        "own": model,
    }
    found = predict_held_out(methods, X, y, sensitive_features=group)
    expected = {name: np.empty_like(y) for name in methods}
    for train, test in _splits(y, group):
        again = clone(steer).fit(X[train], y[train], sensitive_features=group[train])
        for name, strength in (("before", 0), ("after", 1), ("half", 0.5)):
            rows = again.set_params(strength=strength).transform(X, sensitive_features=group)
            expected[name][test] = clone(model).fit(rows[train], y[train]).predict(rows[test])
        bayes = IdealDistributionClassifier(steering=steer).fit(X[train], y[train], sensitive_features=group[train])
        expected["bayes"][test] = bayes.predict(X[test], sensitive_features=group[test])
        aligned = ScoreAligner(model).fit(X[train], y[train], sensitive_features=group[train])
        expected["aligned"][test] = aligned.predict(X[test], sensitive_features=group[test])
        expected["own"][test] = clone(model).fit(X[train], y[train]).predict(X[test])
    np.testing.assert_array_equal(found.y_true, y)
    for name, labels in expected.items():
        np.testing.assert_array_equal(found.y_pred[name], labels, err_msg=name)


def test_groups_in_a_column_are_no_feature_and_give_the_same_predictions(data: Any) -> None:
    X, y, group = data
    table = pd.DataFrame(X, columns=["x", "y", "z"]).assign(group=group)
    beside, inside = FairSteeringTransformer(), FairSteeringTransformer(sensitive_columns="group")
    model = default_classifier()
    one = predict_held_out({0: (beside, model), 1: (None, model)}, X, y, sensitive_features=group)
    two = predict_held_out({0: (inside, model), 1: (None, model)}, table, y)
    for name in (0, 1):
        np.testing.assert_array_equal(one.y_pred[name], two.y_pred[name])
    assert two.groups.tolist() == ["a", "b", "c"]


def test_a_steering_is_fitted_once_a_fold_for_all_its_methods(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, group = data
    fits: Any = []
    fit = FairSteeringTransformer.fit
    monkeypatch.setattr(FairSteeringTransformer, "fit", lambda self, *a, **k: fits.append(1) or fit(self, *a, **k))
    steer, model = FairSteeringTransformer(), LogisticRegression()
    methods = {s: Method(steer, model, s) for s in (0.0, 0.25, 0.5, 1.0)} | {"bayes": Method(steer)}
    predict_held_out(methods, X, y, sensitive_features=group, cv=4)
    assert len(fits) == 4


def test_what_is_frozen_is_used_as_it_is(data: Any) -> None:
    X, y, group = data
    half = np.arange(len(y)) % 2 == 0
    model = LogisticRegression().fit(X[half], y[half])
    steer = FairSteeringTransformer().fit(X[half], y[half], sensitive_features=group[half])
    methods = {"model": FrozenEstimator(model), "steer": Method(FrozenEstimator(steer), LogisticRegression())}
    found = predict_held_out(methods, X[~half], y[~half], sensitive_features=group[~half])
    np.testing.assert_array_equal(found.y_pred["model"], model.predict(X[~half]))
    assert all(trial.fitted["steer"] is steer for trial in found.trials)


def test_features_that_learn_are_made_from_the_training_rows(data: Any) -> None:
    X, y, group = data
    seen = []

    def prepare(may_learn: Any) -> Any:
        seen.append(may_learn)
        return StandardScaler().fit(X[may_learn]).transform(X)

    steer = FairSteeringTransformer()
    found = predict_held_out(
        {"after": Method(steer, LogisticRegression())}, X, y, sensitive_features=group, prepare=prepare
    )
    for (train, test), mask in zip(_splits(y, group), seen, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(mask), train)
        rows = StandardScaler().fit(X[train]).transform(X)
        again = clone(steer).fit(rows[train], y[train], sensitive_features=group[train])
        rows = again.transform(rows, sensitive_features=group)
        expected = LogisticRegression().fit(rows[train], y[train]).predict(rows[test])
        np.testing.assert_array_equal(found.y_pred["after"][test], expected)


def test_rows_without_a_group_are_left_out_and_splits_speak_of_the_rows_given(data: Any) -> None:
    X, y, group = data
    labels = group.astype(object)
    labels[:7] = None
    splits = [(np.arange(0, len(y), 2), np.arange(1, len(y), 2)), (np.arange(1, len(y), 2), np.arange(0, len(y), 2))]
    with pytest.warns(UserWarning, match="7 of 600 rows have a missing or unknown group and are left out"):
        found = predict_held_out({0: LogisticRegression()}, X, y, sensitive_features=labels, cv=splits)
    np.testing.assert_array_equal(found.tested, np.arange(7, len(y)))
    np.testing.assert_array_equal(found.y_true, y[7:])
    for train, test in splits:
        train, test = train[train >= 7], test[test >= 7]
        expected = LogisticRegression().fit(X[train], y[train]).predict(X[test])
        np.testing.assert_array_equal(found.y_pred[0][test - 7], expected)


def test_pipelines_hand_the_groups_to_their_last_step(data: Any) -> None:
    X, y, group = data
    pipe = make_pipeline(StandardScaler(), IdealDistributionClassifier())
    found = predict_held_out({0: pipe}, X, y, sensitive_features=group, cv=2)
    for train, test in StratifiedKFold(2).split(y, np.char.add(y, group)):
        again = clone(pipe).fit(X[train], y[train], idealdistributionclassifier__sensitive_features=group[train])
        np.testing.assert_array_equal(found.y_pred[0][test], again.predict(X[test], sensitive_features=group[test]))


def test_weights_go_to_the_fits_and_rows_of_weight_zero_are_left_out(data: Any) -> None:
    X, y, group = data
    weight = np.random.default_rng(0).integers(0, 3, len(y)).astype(float)
    found = predict_held_out({0: LogisticRegression()}, X, y, sensitive_features=group, sample_weight=weight, cv=3)
    np.testing.assert_array_equal(found.tested, np.flatnonzero(weight))
    kept = weight > 0
    for trial in found.trials:
        train = np.setdiff1d(np.arange(kept.sum()), trial.test)
        model = LogisticRegression().fit(X[kept][train], y[kept][train], sample_weight=weight[kept][train])
        np.testing.assert_array_equal(found.y_pred[0][trial.test], model.predict(X[kept][trial.test]))


def test_groups_may_be_a_column_that_a_classifier_names(data: Any) -> None:
    X, y, group = data
    codes = np.unique(group, return_inverse=True)[1]
    table = np.column_stack([X, codes])
    model = ScoreAligner(LogisticRegression(), sensitive_columns=[-1])
    found = predict_held_out({"aligned": model}, table, y, cv=2)
    assert found.groups.tolist() == [0, 1, 2]
    for train, test in StratifiedKFold(2).split(y, np.char.add(y, group)):
        np.testing.assert_array_equal(
            found.y_pred["aligned"][test], clone(model).fit(table[train], y[train]).predict(table[test])
        )


def test_with_metadata_routing_a_pipeline_steers_in_the_middle(data: Any) -> None:
    X, y, group = data
    pipe = make_pipeline(StandardScaler(), FairSteeringTransformer(), LogisticRegression())
    with config_context(enable_metadata_routing=True):
        found = predict_held_out({0: pipe}, X, y, sensitive_features=group, cv=2)
        for train, test in StratifiedKFold(2).split(y, np.char.add(y, group)):
            again = clone(pipe).fit(X[train], y[train], sensitive_features=group[train])
            np.testing.assert_array_equal(found.y_pred[0][test], again.predict(X[test], sensitive_features=group[test]))


def test_labels_that_only_a_frozen_classifier_knows_are_classes_and_other_spellings_are_refused(data: Any) -> None:
    X, y, group = data
    third = np.where(X[:, 0] > np.quantile(X[:, 0], 0.8), "maybe", y)
    model = FrozenEstimator(LogisticRegression().fit(X, third))
    rows = predict_held_out({"frozen": model}, X, y, sensitive_features=group).rows("frozen")
    assert rows.classes.tolist() == ["maybe", "no", "yes"]
    loud = FrozenEstimator(LogisticRegression().fit(X, np.char.upper(y)))
    with pytest.raises(ValueError, match="two spellings of one class"):
        predict_held_out({"loud": loud}, X, y, sensitive_features=group).rows("loud")


def test_splits_that_test_nothing_and_rows_that_are_all_left_out_are_refused(data: Any) -> None:
    X, y, group = data
    with pytest.raises(ValueError, match="leaves no row of a known group to test"):
        predict_held_out({0: LogisticRegression()}, X, y, sensitive_features=group, cv=[(np.arange(600), np.arange(0))])
    with pytest.raises(ValueError, match="No row is left: of 600"):
        predict_held_out({0: LogisticRegression()}, X, y, sensitive_features=group, sample_weight=np.zeros(600))
