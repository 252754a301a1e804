"""Rows and groups are validated once and encoded once."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils import validation

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, ScoreAligner
from fairsteer.baselines import CovarianceMatchingTransformer, LeaceTransformer, MeanMatchingTransformer
from fairsteer.groups import GroupEncoder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count validations of rows that fairsteer asks for, and readings of group labels."""
    counted = {"rows": 0, "groups": 0}

    def watch(function: Any, kind: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            if sys._getframe(1).f_globals["__name__"].startswith("fairsteer"):
                counted[kind] += 1
            return function(*args, **kwargs)

        return called

    for module in [module for name, module in sys.modules.items() if name.startswith("fairsteer")]:
        for name in ("validate_data", "check_array"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, watch(getattr(validation, name), "rows"))
    for name in ("_learn", "encode", "unknown_counts"):
        monkeypatch.setattr(GroupEncoder, name, watch(getattr(GroupEncoder, name), "groups"))
    return counted


@pytest.mark.parametrize("columns", [None, 3], ids=["beside", "columns"])
@pytest.mark.parametrize("estimator", [None, LogisticRegression(), RidgeClassifier()], ids=str)
@pytest.mark.parametrize("score_alignment", [None, "equal_opportunity"], ids=str)
def test_classifiers_read_once(data: Any, calls: Any, columns: Any, estimator: Any, score_alignment: Any) -> None:
    X = data.X if columns is None else np.column_stack([data.X, data.group])
    labels = {"sensitive_features": data.group} if columns is None else {}
    steering = FairSteeringTransformer(sensitive_columns=columns)
    classifier = IdealDistributionClassifier(estimator, steering, score_alignment=score_alignment)
    classifier.fit(X, data.y, **labels)
    assert calls == {"rows": 1, "groups": 1}
    for method in ("predict", "predict_proba", "decision_function"):
        if hasattr(classifier, method):
            calls.update(rows=0, groups=0)
            getattr(classifier, method)(X, **labels)
            assert calls == {"rows": 1, "groups": 1}, method


def test_transformers_read_once(data: Any, calls: Any) -> None:
    steer = FairSteeringTransformer(unknown_group="infer")
    for method in ("fit", "fit_transform", "partial_fit"):
        calls.update(rows=0, groups=0)
        getattr(steer, method)(data.X, data.y, sensitive_features=data.group)
        assert calls == {"rows": 1, "groups": 1}, method
    for method in ("transform", "inverse_transform"):
        calls.update(rows=0, groups=0)
        getattr(steer, method)(data.X, sensitive_features=data.group)
        assert calls == {"rows": 1, "groups": 1}, method
    calls.update(rows=0, groups=0)
    ScoreAligner(LogisticRegression()).fit(data.X, data.y, sensitive_features=data.group)
    assert calls["rows"] <= 1
    assert calls["groups"] == 1


def test_aligned_fits_in_parallel_are_the_same(data: Any) -> None:
    labels = {"sensitive_features": data.group}
    one, two = (
        IdealDistributionClassifier(score_alignment="equal_opportunity", n_jobs=n_jobs).fit(data.X, data.y, **labels)
        for n_jobs in (None, 2)
    )
    assert np.array_equal(one.predict_proba(data.X, **labels), two.predict_proba(data.X, **labels))


# ---- looking does not compute


def test_looking_does_not_project(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairsteer.transformer import _steering

    steer = FairSteeringTransformer().partial_fit(data.X, data.y, sensitive_features=data.group)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a projection")

    monkeypatch.setattr(_steering, "nearest_ideal", refuse)
    repr(steer), dir(steer), steer._repr_html_()
    names = ("ideal_", "maps_", "kl_divergence_", "certificate_", "n_iter_", "objective_path_")
    assert not any(hasattr(steer, name) for name in names)
    with pytest.raises(AttributeError, match=r"call partial_fit\(\) without rows"):
        _ = steer.maps_
    monkeypatch.undo()
    assert all(hasattr(steer.partial_fit(), name) for name in names)
    steer.partial_fit(data.X, data.y, sensitive_features=data.group)
    assert not any(hasattr(steer, name) for name in names)


def test_looking_does_not_raise_where_the_projection_would(data: Any) -> None:
    steer = FairSteeringTransformer(intervention="affirmative", reference_group="nobody")
    steer.partial_fit(data.X, data.y, sensitive_features=data.group)
    assert not hasattr(steer, "ideal_")
    assert "nobody" in repr(steer)
    assert dir(steer)
    assert steer._repr_html_()


@pytest.mark.parametrize(
    "transformer", [FairSteeringTransformer(), MeanMatchingTransformer(), LeaceTransformer()], ids=str
)
def test_fitted_attributes_are_values(data: Any, transformer: Any) -> None:
    transformer.fit(data.X, data.y, sensitive_features=data.group)
    assert list(transformer.maps_) == transformer.groups_.tolist()
    if isinstance(transformer, FairSteeringTransformer):
        assert vars(transformer)["kl_divergence_"] == transformer.ideal_.kl_divergence
        assert isinstance(vars(transformer)["n_iter_"], int)


# ---- rows


@pytest.mark.parametrize(
    "X", [np.zeros(5), np.array(1.0), "abc", None, [1.0, 2.0], [[1, 2], [1]], np.zeros((2, 2, 2))], ids=str
)
def test_rows_without_columns_are_refused(X: Any) -> None:
    with pytest.raises(ValueError, match=r"X must have two dimensions.*Reshape your data"):
        FairSteeringTransformer(sensitive_columns=0).fit(X, [0, 1])


@pytest.mark.parametrize("columns", [None, "g"], ids=["beside", "columns"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "1 NaN .* in column 'b'"),
        (np.inf, "1 infinite value .* in column 'b'"),
        ("1.8e308", "1 infinite value .* in column 'b'"),
        ("x", "text, such as 'x', in column 'b'"),
    ],
    ids=str,
)
def test_bad_values_are_named_by_their_column(data: Any, columns: Any, value: Any, message: str) -> None:
    table = pd.DataFrame(data.X, columns=list("abc"), dtype=object)
    table.loc[3, "b"] = value
    labels = {"sensitive_features": data.group}
    if columns is not None:
        table.insert(0, "g", data.group)
        labels = {}
    with pytest.raises(ValueError, match=message):
        FairSteeringTransformer(sensitive_columns=columns).fit(table, data.y, **labels)


def test_bad_values_of_arrays_are_named_by_their_place(data: Any) -> None:
    X = np.column_stack([data.group, data.X]).astype(float)
    X[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"1 NaN .* in column 2"):
        FairSteeringTransformer(sensitive_columns=0).fit(X, data.y)


def test_features_too_large_to_be_squared_are_named(data: Any) -> None:
    table = pd.DataFrame(data.X, columns=list("abc"))
    table.loc[3, "b"] = 1e200
    with pytest.raises(ValueError, match=r"The feature 'b' is too large to be squared: it reaches 1e\+200"):
        FairSteeringTransformer().fit(table, data.y, sensitive_features=data.group)


def test_masked_rows_are_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="3 masked values"):
        FairSteeringTransformer().fit(
            np.ma.array(data.X, mask=np.eye(600, 3, dtype=bool)), data.y, sensitive_features=data.group
        )


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f8"])
def test_fields_of_records_are_read_wherever_they_lie(data: Any, dtype: str) -> None:
    records = np.zeros(600, dtype=[("letter", "S1"), ("x", dtype, (3,))])
    records["x"] = data.X
    plain = np.array(records["x"])
    steer, expected = (
        FairSteeringTransformer().fit(X, data.y, sensitive_features=data.group) for X in (records["x"], plain)
    )
    steered = steer.transform(records["x"], sensitive_features=data.group)
    assert np.array_equal(steered, expected.transform(plain, sensitive_features=data.group))


# ---- groups


@pytest.mark.parametrize("labels", [[True, False, 9], [1, 0, 9], ["a", 1, None], [0.5, 1, True]], ids=str)
def test_groups_that_were_fitted_are_known(data: Any, labels: list[Any]) -> None:
    groups = [labels[i % 3] for i in range(600)]
    steer = FairSteeringTransformer(unknown_group="infer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of missing groups
        moved = steer.fit_transform(data.X, data.y, sensitive_features=groups)
    assert np.array_equal(moved, steer.transform(data.X, sensitive_features=groups))
    objects = np.empty(600, dtype=object)
    objects[:] = groups
    assert np.array_equal(moved, steer.transform(data.X, sensitive_features=objects))


@pytest.mark.parametrize("unknown_group", ["infer", "infer_hard"])
@pytest.mark.parametrize("transformer", [FairSteeringTransformer(), CovarianceMatchingTransformer()], ids=str)
def test_unknown_groups_are_inferred_after_one_group(data: Any, transformer: Any, unknown_group: Any) -> None:
    one = np.zeros(600, dtype=int)
    transformer.set_params(unknown_group=unknown_group).fit(data.X, data.y, sensitive_features=one)
    for labels in (None, one + 1, [None] * 600):
        assert np.array_equal(transformer.transform(data.X, sensitive_features=labels), data.X)
    assert np.array_equal(transformer.predict_group_proba(data.X), np.ones((600, 1)))


@pytest.mark.parametrize("unknown_group", ["error", "infer", "infer_hard"])
def test_groups_of_another_type_are_never_inferred(data: Any, unknown_group: Any) -> None:
    steer = FairSteeringTransformer(unknown_group=unknown_group)
    steer.fit(data.X, data.y, sensitive_features=data.group)
    with pytest.raises(ValueError, match="integers 0, 1; given are the strings '0', '1'"):
        steer.transform(data.X, sensitive_features=np.sort(data.group).astype(str))


def test_fit_transform_says_which_groups_are_unknown(data: Any) -> None:
    groups = data.group.astype(object)
    groups[:7] = None
    weight = np.ones(600)
    groups[7:10], weight[7:10] = 5, 0
    steer = FairSteeringTransformer()
    with (
        pytest.warns(UserWarning, match="7 of 600 rows have a missing group"),
        pytest.raises(ValueError, match=r"10 of 600 rows .*: 5 \(3 rows\), missing \(7 rows\)"),
    ):
        steer.fit_transform(data.X, data.y, sensitive_features=groups, sample_weight=weight)


@pytest.mark.parametrize(
    "transformer", [FairSteeringTransformer(), LeaceTransformer(), MeanMatchingTransformer()], ids=str
)
@pytest.mark.filterwarnings("ignore:The features")
def test_an_identifier_as_the_group_is_noticed(data: Any, transformer: Any) -> None:
    with pytest.warns(UserWarning, match="600 groups with 1 rows each on average, 600 with a single row") as caught:
        transformer.fit(data.X, sensitive_features=np.arange(600))
    advice = str(caught[0].message)
    assert ("small_subgroups" in advice) == hasattr(transformer, "intervention")
    with pytest.warns(UserWarning, match="200 groups with 3 rows each on average, 0 with a single row"):
        transformer.fit(data.X, sensitive_features=np.arange(600) // 3)


# ---- estimators inside


def test_a_frozen_scaler_of_a_table_is_used_in_silence(data: Any) -> None:
    table = pd.DataFrame(data.X, columns=list("abc"))
    labels = {"sensitive_features": data.group}
    expected = FairSteeringTransformer(feature_transform=StandardScaler()).fit_transform(table, data.y, **labels)
    for scaler in (StandardScaler(), make_pipeline(MinMaxScaler(), StandardScaler())):
        frozen = FrozenEstimator(scaler.fit(table))
        steer = FairSteeringTransformer(feature_transform=frozen)
        for X in (table, data.X):
            moved = steer.fit(X, data.y, **labels).transform(X, **labels)
            np.testing.assert_allclose(steer.inverse_transform(moved, **labels), data.X, atol=1e-9)
            np.testing.assert_allclose(moved, expected, atol=1e-6)
        exchanged = table[["b", "a", "c"]]
        with pytest.raises(ValueError, match="'a', 'b', 'c', but the features are 'b', 'a', 'c'"):
            steer.fit(exchanged, data.y, **labels)
        assert hasattr(scaler, "feature_names_in_")


def test_shrinkage_must_give_covariances(data: Any) -> None:
    steer = FairSteeringTransformer(shrinkage=StandardScaler())
    with pytest.raises(ValueError, match=r"StandardScaler\(\) must give covariance_, of shape \(3, 3\).*it gives none"):
        steer.fit(data.X, data.y, sensitive_features=data.group)


def test_parameters_of_the_default_steering_can_be_set(data: Any) -> None:
    classifier: Any = IdealDistributionClassifier().set_params(steering__strength=0.5)
    assert classifier.steering.strength == 0.5
    classifier.set_params(steering=None, steering__shrinkage="oas")
    assert classifier.steering.strength == 1.0
    assert classifier.steering.shrinkage == "oas"
    fitted = IdealDistributionClassifier(LogisticRegression()).fit(data.X, data.y, sensitive_features=data.group)
    assert isinstance(fitted.estimator_, LogisticRegression)


def test_tags_are_those_of_what_is_inside() -> None:
    class Binary(LogisticRegression):
        def __sklearn_tags__(self) -> Any:
            tags = super().__sklearn_tags__()
            tags.classifier_tags.multi_class = False
            return tags

    assert IdealDistributionClassifier().__sklearn_tags__().classifier_tags.multi_class
    assert not IdealDistributionClassifier(Binary()).__sklearn_tags__().classifier_tags.multi_class
    log = FairSteeringTransformer(feature_transform="log")
    assert log.__sklearn_tags__().input_tags.positive_only
    assert IdealDistributionClassifier(steering=log).__sklearn_tags__().input_tags.positive_only
    assert not FairSteeringTransformer(feature_transform=StandardScaler()).__sklearn_tags__().input_tags.positive_only
    assert not hasattr(FairSteeringTransformer(shrinkage=LedoitWolf()), "partial_fit")


@pytest.mark.parametrize("reference_group", [[1, 2], {}, np.zeros(2)], ids=str)
def test_a_reference_group_is_a_label(data: Any, reference_group: Any) -> None:
    steer = FairSteeringTransformer(intervention="affirmative", reference_group=reference_group)
    with pytest.raises(ValueError, match="'reference_group' parameter"):
        steer.fit(data.X, data.y, sensitive_features=data.group)


def test_parameters_of_no_estimator_cannot_be_set() -> None:
    with pytest.raises(ValueError, match="estimator__C cannot be set: there is no estimator"):
        IdealDistributionClassifier().set_params(estimator__C=2.0)
    classifier = IdealDistributionClassifier().set_params(estimator=LogisticRegression(), estimator__C=2.0)
    assert classifier.estimator.C == 2.0
