"""Pipelines, grids and cross-validation: groups in columns of X, and groups routed beside it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier

GRID = {
    "fairsteeringtransformer__strength": [0, 0.5, 1],
    "fairsteeringtransformer__intervention": ["all_subgroups", "affirmative"],
    "logisticregression__C": [0.01, 1],
}


@pytest.fixture(scope="module")
def frame(data: Any) -> pd.DataFrame:
    return pd.DataFrame(data.X, columns=["a", "b", "c"]).assign(sex=np.array(["f", "m"])[data.group])


def pipeline(**parameters: Any) -> Any:
    return make_pipeline(FairSteeringTransformer(**parameters), StandardScaler(), LogisticRegression())


@pytest.mark.slow
def test_grids_with_columns_and_with_routing_agree(data: Any, frame: pd.DataFrame) -> None:
    by_column = GridSearchCV(pipeline(sensitive_columns=["sex"]), GRID, cv=3).fit(frame, data.y)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = GridSearchCV(pipeline(), GRID, cv=3).fit(data.X, data.y, sensitive_features=data.group)
        assert routed.score(data.X, data.y, sensitive_features=data.group) == by_column.score(frame, data.y)
    assert by_column.best_params_ == routed.best_params_
    assert by_column.best_score_ == routed.best_score_
    scores = by_column.cv_results_["mean_test_score"]
    np.testing.assert_array_equal(scores, routed.cv_results_["mean_test_score"])
    assert len(set(scores)) > 3  # the parameters make a difference
    np.testing.assert_array_equal(by_column.predict(frame), by_column.best_estimator_.predict(frame))


def test_grid_over_the_classifier(data: Any, frame: pd.DataFrame) -> None:
    grid = {
        "steering__strength": [0, 1],
        "steering__covariance": ["tied", "full"],
        "cost_matrix": [None, [[0, 1], [3, 0]]],
    }
    column = IdealDistributionClassifier(steering=FairSteeringTransformer(sensitive_columns="sex"))
    by_column = GridSearchCV(column, grid, cv=3).fit(frame, data.y)
    beside = IdealDistributionClassifier(steering=FairSteeringTransformer())
    with sklearn.config_context(enable_metadata_routing=True):
        routed = GridSearchCV(beside, grid, cv=3).fit(data.X, data.y, sensitive_features=data.group)
    np.testing.assert_allclose(by_column.cv_results_["mean_test_score"], routed.cv_results_["mean_test_score"])


def test_strength_zero_in_a_pipeline_is_no_steering(data: Any, frame: pd.DataFrame) -> None:
    steered = pipeline(sensitive_columns="sex", strength=0).fit(frame, data.y)
    plain = make_pipeline(StandardScaler(), LogisticRegression()).fit(data.X, data.y)
    np.testing.assert_array_equal(steered.predict_proba(frame), plain.predict_proba(data.X))


def test_cross_validation_never_sees_the_test_fold(data: Any, frame: pd.DataFrame) -> None:
    scores = cross_val_score(pipeline(sensitive_columns="sex"), frame, data.y, cv=3)
    by_hand = []
    for train, test in sklearn.model_selection.StratifiedKFold(3).split(frame, data.y):
        steer = FairSteeringTransformer().fit(data.X[train], data.y[train], sensitive_features=data.group[train])
        parts = [steer.transform(data.X[i], sensitive_features=data.group[i]) for i in (train, test)]
        model = make_pipeline(StandardScaler(), LogisticRegression()).fit(parts[0], data.y[train])
        by_hand.append(model.score(parts[1], data.y[test]))
    np.testing.assert_allclose(scores, by_hand)


@pytest.mark.parametrize("estimator", [pipeline(), IdealDistributionClassifier()])
def test_cross_validation_routes_groups_and_weights(data: Any, estimator: Any) -> None:
    weight = np.random.default_rng(0).integers(1, 3, len(data.y))
    with sklearn.config_context(enable_metadata_routing=True):
        if hasattr(estimator, "steps"):
            estimator[0].set_fit_request(sample_weight=True)
            estimator[-1].set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
            estimator[1].set_fit_request(sample_weight=False)
        else:
            estimator.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        result = cross_validate(
            estimator, data.X, data.y, cv=3, params={"sensitive_features": data.group, "sample_weight": weight}
        )
    assert (result["test_score"] > 0.5).all()


def test_what_routing_forgets_is_an_error_and_not_a_guess(data: Any) -> None:
    # scikit-learn hands the groups to fit but not to predict; with columns of X this cannot happen.
    with (
        sklearn.config_context(enable_metadata_routing=True),
        pytest.raises(ValueError, match="No groups are given"),
    ):
        cross_val_predict(pipeline(), data.X, data.y, cv=3, params={"sensitive_features": data.group})


def test_without_routing_scikit_learn_itself_refuses(data: Any) -> None:
    with pytest.raises(ValueError, match=r"[Mm]etadata routing|stepname"):
        pipeline().fit(data.X, data.y, sensitive_features=data.group)
    # The old way of naming the step still reaches fit_transform.
    fitted = pipeline().fit(data.X, data.y, fairsteeringtransformer__sensitive_features=data.group)
    with pytest.raises(ValueError, match="No groups are given"):
        fitted.predict(data.X)


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_frames_go_through_a_pipeline(data: Any, frame: pd.DataFrame, container: str) -> None:
    X = frame if container == "pandas" else pl.from_pandas(frame)
    steps = make_pipeline(FairSteeringTransformer(sensitive_columns="sex"), StandardScaler())
    steps.set_output(transform=container)
    steered = steps.fit_transform(X, data.y)
    assert type(steered) is type(X)
    assert list(steered.columns) == ["a", "b", "c"]
    assert steps.get_feature_names_out().tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(steered, steps.transform(X))


def test_a_fitted_search_survives_pickling(data: Any, frame: pd.DataFrame) -> None:
    search = GridSearchCV(pipeline(sensitive_columns="sex"), {"fairsteeringtransformer__strength": [0, 1]}, cv=3)
    thawed = pickle.loads(pickle.dumps(search.fit(frame, data.y)))
    np.testing.assert_array_equal(thawed.predict_proba(frame), search.predict_proba(frame))


def test_census_data_as_they_come(real_data: Path) -> None:
    adult = pd.read_parquet(real_data / "tabular" / "adult.parquet")
    features = ["age", "education_num", "hours_per_week"]
    X, y = adult[[*features, "sex", "race"]], adult["income"].astype(str)  # both columns are categories
    steer = FairSteeringTransformer(
        map_type="affine", sensitive_columns=["sex", "race"], feature_transform=StandardScaler()
    )
    model = make_pipeline(steer, StandardScaler(), LogisticRegression())
    train = adult["split"] == "train"
    assert model.fit(X[train], y[train]).score(X[~train], y[~train]) > 0.75
    assert len(steer.groups_) == 10
    assert steer.groups_[0] == ("Female", "Amer-Indian-Eskimo")
    steered = steer.set_output(transform="pandas").transform(X)
    assert list(steered.columns) == features
    assert np.isfinite(steered).all(axis=None)
    np.testing.assert_allclose(
        steer.inverse_transform(steered, sensitive_features=X[["sex", "race"]]), X[features], atol=1e-8
    )
