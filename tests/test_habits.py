"""What people do with estimators: frames in and out, names, copies, pickles, small and degenerate data, slips."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.validation import check_is_fitted

from fairsteer import (
    FairSteeringTransformer,
    IdealDistributionClassifier,
    IdealDistributionClassifierCV,
    ScoreAligner,
    metrics,
)
from fairsteer.baselines import CovarianceMatchingTransformer, LeaceTransformer, MeanMatchingTransformer

N = 120
rng = np.random.default_rng(0)
Y, GROUP = rng.integers(0, 2, (2, N))
X = rng.normal(size=(N, 3)) + np.outer(Y, [1, 0, 0.5]) + np.outer(GROUP, [0, 1, -0.5])
FRAME = pd.DataFrame(X, columns=["a", "b", "c"], index=[f"row {i}" for i in range(N)])
WITH_SEX = FRAME.assign(sex=GROUP + 1)  # a number, as the aligner's classifier gets it too

TRANSFORMERS: dict[str, Any] = {
    "steering": FairSteeringTransformer,
    "mean matching": MeanMatchingTransformer,
    "covariance matching": CovarianceMatchingTransformer,
    "LEACE": LeaceTransformer,
}
CLASSIFIERS: dict[str, Callable[..., Any]] = {
    "classifier": lambda sensitive_columns=None: IdealDistributionClassifier(
        steering=FairSteeringTransformer(sensitive_columns=sensitive_columns)
    ),
    "search": lambda sensitive_columns=None: IdealDistributionClassifierCV(
        LogisticRegression(),
        FairSteeringTransformer(map_type="diagonal", sensitive_columns=sensitive_columns),
        candidates={"steering__strength": [0.5, 1], "score_alignment": [None, "equal_opportunity"]},
        cv=3,
    ),
    "aligner": lambda sensitive_columns=None: ScoreAligner(
        LogisticRegression(), cv=3, sensitive_columns=sensitive_columns
    ),
}
ESTIMATORS = TRANSFORMERS | CLASSIFIERS

every_estimator = pytest.mark.parametrize("name", ESTIMATORS)
every_transformer = pytest.mark.parametrize("name", TRANSFORMERS)
every_classifier = pytest.mark.parametrize("name", CLASSIFIERS)


def fitted(name: str, rows: Any = X, y: Any = Y, group: Any = GROUP) -> Any:
    return ESTIMATORS[name]().fit(rows, y, sensitive_features=group)


def answer(model: Any, rows: Any = X, **groups: Any) -> Any:
    return (model.transform if hasattr(model, "transform") else model.predict_proba)(rows, **groups)


# ---- frames


@every_transformer
def test_a_frame_comes_back_as_a_frame_with_index_and_names(name: str) -> None:
    moved = fitted(name, FRAME).set_output(transform="pandas").transform(FRAME, sensitive_features=GROUP)
    assert isinstance(moved, pd.DataFrame)
    assert moved.index.equals(FRAME.index)
    assert moved.columns.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(moved, fitted(name).transform(X, sensitive_features=GROUP))


@every_transformer
def test_polars_comes_back_as_polars(name: str) -> None:
    table = pl.from_pandas(WITH_SEX)
    model = TRANSFORMERS[name](sensitive_columns=["sex"]).set_output(transform="polars")
    moved = model.fit_transform(table, Y)
    assert isinstance(moved, pl.DataFrame)
    assert moved.columns == model.get_feature_names_out().tolist() == ["a", "b", "c"]


@every_estimator
def test_the_sensitive_column_may_be_named_counted_or_anywhere(name: str) -> None:
    make = ESTIMATORS[name]
    expected = answer(make(sensitive_columns="sex").fit(WITH_SEX, Y), WITH_SEX)
    for columns in (["sex"], [3], [-1], 3):
        np.testing.assert_array_equal(answer(make(sensitive_columns=columns).fit(WITH_SEX, Y), WITH_SEX), expected)
    first = WITH_SEX[["sex", "a", "b", "c"]]
    for frame in (first, pl.from_pandas(first), pa.table(dict(first.items())), first.to_numpy()):
        columns = [0] if isinstance(frame, np.ndarray) else ["sex"]
        np.testing.assert_allclose(answer(make(sensitive_columns=columns).fit(frame, Y), frame), expected, rtol=1e-12)


@every_estimator
def test_columns_are_those_of_fit(name: str) -> None:
    model = fitted(name, FRAME)
    with pytest.raises(ValueError, match="feature names should match"):
        answer(model, FRAME[["b", "a", "c"]], sensitive_features=GROUP)
    with pytest.raises(ValueError, match="feature names should match"):
        answer(model, FRAME.rename(columns={"c": "d"}), sensitive_features=GROUP)
    with pytest.raises(ValueError, match="2 features"):
        answer(fitted(name), X[:, :2], sensitive_features=GROUP)


@every_estimator
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["Sex"], "'Sex'"),
        ([9], "9"),
        ([], "none of the 4 columns"),
        (["a", "b", "c", "sex"], "no feature is left"),
    ],
)
def test_a_sensitive_column_that_is_not_there_is_named(name: str, columns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ESTIMATORS[name](sensitive_columns=columns).fit(WITH_SEX, Y)


@every_estimator
def test_groups_are_given_once(name: str) -> None:
    with pytest.raises(ValueError, match="twice"):
        ESTIMATORS[name](sensitive_columns=["sex"]).fit(WITH_SEX, Y, sensitive_features=GROUP)


def test_other_columns_are_prepared_behind_the_steering() -> None:
    """The usual table: numbers, words and the group, in one pipeline."""
    table = WITH_SEX.assign(job=np.array(["x", "y", "z"])[np.arange(N) % 3])
    numbers = make_pipeline(
        FairSteeringTransformer(sensitive_columns=["sex"]).set_output(transform="pandas"), StandardScaler()
    )
    prepare = make_column_transformer((numbers, ["a", "b", "c", "sex"]), (OneHotEncoder(), ["job"]))
    pipe = make_pipeline(prepare, LogisticRegression()).fit(table, Y)
    assert prepare.fit_transform(table, Y).shape == (N, 6)
    assert pipe.score(table, Y) > 0.6


# ---- the life of an estimator


@every_estimator
def test_what_is_not_fitted_says_so(name: str) -> None:
    model = ESTIMATORS[name]()
    with pytest.raises(NotFittedError, match=type(model).__name__):
        answer(model, X, sensitive_features=GROUP)
    with pytest.raises(NotFittedError):
        check_is_fitted(model)
    check_is_fitted(model.fit(X, Y, sensitive_features=GROUP))


@every_estimator
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_answer_alike(name: str, protocol: int) -> None:
    model = fitted(name, FRAME, group=WITH_SEX["sex"])
    copy = pickle.loads(pickle.dumps(model, protocol))
    groups = {"sensitive_features": WITH_SEX["sex"]}
    np.testing.assert_array_equal(answer(copy, FRAME, **groups), answer(model, FRAME, **groups))


@every_estimator
def test_a_file_of_joblib_mapped_to_memory_answers_alike(name: str, tmp_path: Any) -> None:
    model = fitted(name)
    joblib.dump(model, tmp_path / "model.joblib")
    copy = joblib.load(tmp_path / "model.joblib", mmap_mode="r")
    np.testing.assert_array_equal(answer(copy, X, sensitive_features=GROUP), answer(model, X, sensitive_features=GROUP))


@every_estimator
def test_a_clone_knows_nothing_and_a_fit_changes_no_parameter(name: str) -> None:
    model = ESTIMATORS[name]()
    before = repr(model.get_params())
    model.fit(X, Y, sensitive_features=GROUP)
    assert repr(model.get_params()) == before
    assert not [attribute for attribute in vars(clone(model)) if attribute.endswith("_")]


# ---- small and degenerate data


@every_estimator
def test_one_group_is_left_as_it_is(name: str) -> None:
    one = np.zeros(N, dtype=int)
    model = fitted(name, group=one)
    found = answer(model, X, sensitive_features=one)
    if name in TRANSFORMERS:
        np.testing.assert_allclose(found, X, atol=1e-12)
    else:
        np.testing.assert_allclose(found.sum(axis=1), 1)


@pytest.mark.filterwarnings("ignore:There are fewer rows than the 200 features")
@every_estimator
def test_more_features_than_rows(name: str) -> None:
    wide = np.random.default_rng(1).normal(size=(N, 200))
    assert np.isfinite(answer(fitted(name, wide), wide, sensitive_features=GROUP)).all()


@pytest.mark.filterwarnings("ignore:The features .* vary so much less than others")
@every_estimator
@pytest.mark.parametrize(
    "rows",
    [
        np.column_stack([X, np.ones(N)]),
        np.column_stack([X, X[:, 0]]),
        np.column_stack([X, X @ [1.0, -2.0, 0.5]]),
        np.zeros((N, 3)),
        X * [1e-8, 1, 1e8],
        np.repeat(X[:2], N // 2, axis=0),
        X[:, :1],
    ],
    ids=["constant", "twice", "sum of others", "all zero", "other units", "two points", "one feature"],
)
def test_degenerate_rows_give_finite_answers(name: str, rows: npt.NDArray[Any]) -> None:
    assert np.isfinite(answer(fitted(name, rows), rows, sensitive_features=GROUP)).all()


@every_transformer
def test_a_column_that_never_varies_stays(name: str) -> None:
    rows = np.column_stack([X, np.full(N, 7.0)])
    moved = answer(fitted(name, rows), rows, sensitive_features=GROUP)
    np.testing.assert_allclose(moved[:, 3], 7, rtol=1e-9)


@every_estimator
def test_a_group_of_one_row_is_told(name: str) -> None:
    group = np.append(GROUP[:-1], 2)
    if name == "steering" or name in CLASSIFIERS:
        with pytest.warns(UserWarning, match=r"\b2\b"):
            model = fitted(name, group=group)
    else:
        model = fitted(name, group=group)
    assert np.isfinite(answer(model, X, sensitive_features=group)).all()


@every_classifier
def test_three_classes_in_three_groups(name: str) -> None:
    y, group = np.arange(N) % 3, (np.arange(N) // 3) % 3
    rows = X + np.outer(y == 2, [0, 2, 0])
    model = fitted(name, rows, y, group)
    proba = model.predict_proba(rows, sensitive_features=group)
    assert proba.shape == (N, 3)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_array_equal(model.predict(rows, sensitive_features=group), proba.argmax(axis=1))


# ---- slips


@every_estimator
def test_groups_that_nobody_had_are_counted_and_named(name: str) -> None:
    if name == "LEACE":
        pytest.skip("it moves all groups alike")
    with pytest.raises(ValueError, match=rf"{(GROUP == 1).sum()} of {N} rows .*'x'|another type"):
        answer(fitted(name), X, sensitive_features=np.where(GROUP == 1, "x", "0"))
    with pytest.raises(ValueError, match=rf"{(GROUP == 1).sum()} of {N} rows .*\b7\b.*Known groups: 0, 1"):
        answer(fitted(name), X, sensitive_features=np.where(GROUP == 1, 7, 0))
    with pytest.raises(ValueError, match="No groups are given"):
        answer(fitted(name))


@every_estimator
def test_groups_are_a_keyword(name: str) -> None:
    with pytest.raises(TypeError, match="positional"):
        ESTIMATORS[name]().fit(X, Y, None, GROUP)


@every_classifier
def test_classes_are_needed(name: str) -> None:
    with pytest.raises(ValueError, match="requires y to be passed"):
        ESTIMATORS[name]().fit(X, None, sensitive_features=GROUP)
    # Where streams may bring classes along, `y` has a default.
    with pytest.raises((TypeError, ValueError), match=r"'y'|requires y to be passed"):
        ESTIMATORS[name]().fit(X, sensitive_features=GROUP)


@pytest.mark.parametrize("name", ["steering", *CLASSIFIERS])
def test_classes_in_a_column_are_read_with_the_usual_warning(name: str) -> None:
    with pytest.warns(DataConversionWarning, match="column-vector"):
        model = fitted(name, y=Y[:, None])
    np.testing.assert_array_equal(
        answer(model, X, sensitive_features=GROUP), answer(fitted(name), X, sensitive_features=GROUP)
    )


@pytest.mark.parametrize("name", ["steering", *CLASSIFIERS])
@pytest.mark.parametrize("y", [X[:, 0], np.column_stack([Y, Y]), "no"], ids=["continuous", "two columns", "a word"])
def test_what_is_no_class_is_refused(name: str, y: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        fitted(name, y=y)


@every_estimator
@pytest.mark.parametrize(
    "group",
    [
        X[:, 0],
        pd.date_range("2020", periods=N),
        "sex",
        [["a"], ["a", "b"]] * (N // 2),
        [{"a": 1}] * N,
        np.zeros((N, 2, 2)),
    ],
    ids=["continuous", "dates", "a word", "ragged", "dictionaries", "3-D"],
)
def test_what_is_no_group_is_refused_in_a_sentence(name: str, group: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        fitted(name, group=group)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("metric", ["demographic_parity_difference", "equal_opportunity_difference", "tpr_gap_rms"])
def test_one_group_has_no_gap_and_no_groups_are_an_error(metric: str) -> None:
    of = getattr(metrics, metric)
    assert of(Y, 1 - Y, sensitive_features=np.zeros(N)) == 0
    with pytest.raises((TypeError, ValueError)):
        of(Y, Y)
    with pytest.raises((TypeError, ValueError)):
        of(Y, Y, sensitive_features=None)
    with pytest.raises(ValueError, match="7"):
        of(Y, Y, sensitive_features=GROUP, pos_label=7)
