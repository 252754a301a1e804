"""Constraints, map types and standardised classes of the transformer, with everything that they combine with."""

from __future__ import annotations

import itertools
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fairsteer import (
    CovarianceMatchingTransformer,
    FairSteeringTransformer,
    IdealDistributionClassifier,
    MeanMatchingTransformer,
    nearest_ideal,
    persistence,
)
from fairsteer.export import export_affine, export_onnx
from fairsteer.report import steering_report
from fairsteer.transformer import _base

MAP_TYPES = ["affine", "symmetric", "diagonal", "translation", "monotone"]
CONSTRAINTS = ["ideal", "equal_opportunity", "demographic_parity"]


def table(n: int = 1500, seed: int = 0) -> tuple[pd.DataFrame, Any, Any]:
    """Counts, hours and a flag, in three groups whose base rates and features differ."""
    rng = np.random.default_rng(seed)
    group = rng.choice(["a", "b", "c"], n, p=[0.5, 0.3, 0.2])
    shift = pd.Series(group).map({"a": 0.0, "b": 1.5, "c": 3.0}).to_numpy()
    y = np.where(rng.random(n) < 0.25 + 0.15 * (shift > 0), "yes", "no")
    frame = pd.DataFrame(
        {
            "count": rng.poisson(3 + 2 * (y == "yes") + shift).astype(float),
            "hours": np.round(rng.normal(38 + 4 * (y == "yes") + shift, 5)),
            "flag": (rng.random(n) < 0.3 + 0.1 * (y == "yes")).astype(float),
        }
    )
    return frame, y, group


@pytest.mark.parametrize(
    ("map_type", "constraint", "intervention", "standardize"),
    list(itertools.product(MAP_TYPES, CONSTRAINTS, ["all_subgroups", "affirmative"], [False, True])),
)
def test_every_combination_moves_rows_and_what_is_to_agree_agrees(
    map_type: Any, constraint: Any, intervention: Any, standardize: Any
) -> None:
    X, y, group = table()
    steer = FairSteeringTransformer(
        map_type=map_type, constraint=constraint, intervention=intervention, standardize=standardize, shrinkage=None
    ).fit(X, y, sensitive_features=group)
    U = steer.transform(X, sensitive_features=group)
    assert np.isfinite(U).all()
    assert steer.map_type_ == map_type
    if intervention == "affirmative":
        np.testing.assert_array_equal(U[group == "a"], X[group == "a"])

    def apart(rows: Any) -> float:
        """Largest difference of the groups' means, over what counts, in standard deviations."""
        rows = np.asarray(rows)
        some = {"ideal": [y == "yes", y == "no"], "equal_opportunity": [y == "yes"], "demographic_parity": [y == y]}
        weights = {"ideal": [np.mean(y == "yes"), np.mean(y == "no")]}.get(constraint, [1.0])
        means = [
            sum(w * rows[part & (group == a)].mean(axis=0) for w, part in zip(weights, some[constraint], strict=True))
            for a in "abc"
        ]
        return float((np.ptp(means, axis=0) / rows.std(axis=0)).max())

    assert apart(U) < (0.25 if map_type == "monotone" else 0.12)
    assert apart(X) > 0.6


def test_equal_opportunity_matches_the_favourable_class_alone() -> None:
    X, y, group = table()
    options: dict[str, Any] = {"map_type": "affine", "constraint": "equal_opportunity", "shrinkage": None}
    steer = FairSteeringTransformer(**options).fit(X, y, sensitive_features=group)
    U = steer.transform(X, sensitive_features=group)
    means = [U[(y == "yes") & (group == a)].mean(axis=0) for a in "abc"]
    spreads = [np.cov(U[(y == "yes") & (group == a)].T) for a in "abc"]
    np.testing.assert_allclose(means[1:], [means[0]] * 2, atol=1e-8)
    np.testing.assert_allclose(spreads[1:], [spreads[0]] * 2, rtol=0.02)  # n against n - 1
    assert steer.kl_divergence_ < 1e-9
    assert steer.ideal_.classes.tolist() == ["yes"]
    other = FairSteeringTransformer(pos_label="no", **options)
    V = other.fit(X, y, sensitive_features=group).transform(X, sensitive_features=group)
    assert not np.allclose(U, V)
    both = FairSteeringTransformer(pos_label=["no", "yes"], **options)
    plain = FairSteeringTransformer(map_type="affine", shrinkage=None)
    np.testing.assert_allclose(
        both.fit(X, y, sensitive_features=group).transform(X, sensitive_features=group),
        plain.fit(X, y, sensitive_features=group).transform(X, sensitive_features=group),
    )


def test_demographic_parity_does_not_look_at_classes() -> None:
    X, y, group = table()
    with_classes = FairSteeringTransformer(constraint="demographic_parity").fit(X, y, sensitive_features=group)
    without = FairSteeringTransformer().fit(X, sensitive_features=group)
    np.testing.assert_array_equal(
        with_classes.transform(X, sensitive_features=group), without.transform(X, sensitive_features=group)
    )
    np.testing.assert_array_equal(with_classes.ideal_sample_weight(y, sensitive_features=group), 1)


@pytest.mark.parametrize("constraint", ["ideal", "equal_opportunity"])
@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
def test_batches_give_what_all_rows_give(covariance: Any, constraint: Any) -> None:
    X, y, group = table()
    options: dict[str, Any] = {"map_type": "affine", "covariance": covariance, "constraint": constraint}
    whole = FairSteeringTransformer(**options, shrinkage="oas").fit(X, y, sensitive_features=group)
    stream = FairSteeringTransformer(**options, shrinkage="oas")
    for part in (slice(0, 400), slice(400, 401), slice(401, None)):
        stream.partial_fit(X[part], y[part], sensitive_features=group[part])
    np.testing.assert_allclose(
        stream.transform(X, sensitive_features=group), whole.transform(X, sensitive_features=group), rtol=1e-6
    )


def test_a_fit_takes_more_rows_unless_they_would_change_what_it_cannot_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, y, group = table(300)
    chosen = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    assert chosen.map_type_ == "monotone"
    with pytest.raises(ValueError, match="fit has chosen map_type='monotone'"):
        chosen.partial_fit(X, y, sensitive_features=group)
    assert not hasattr(FairSteeringTransformer(map_type="monotone"), "partial_fit")
    half = FairSteeringTransformer(map_type="affine").fit(X[:200], y[:200], sensitive_features=group[:200])
    half.partial_fit(X[200:], y[200:], sensitive_features=group[200:])
    whole = FairSteeringTransformer(map_type="affine").fit(X, y, sensitive_features=group)
    np.testing.assert_allclose(half.moments_.covariances, whole.moments_.covariances, rtol=1e-9)
    # With many features the cells are not kept apart: the classes have been weighted by the counts of the fit's rows.
    monkeypatch.setattr(_base, "_MEMORY_OF_CELLS_IN_A_FIT", 100)
    tied = FairSteeringTransformer(map_type="affine").fit(X, y, sensitive_features=group)
    assert tied.moments_.covariance == "tied"
    np.testing.assert_allclose(tied.moments_.covariances, whole.moments_.tie(standardize=True).covariances)
    with pytest.raises(ValueError, match="Start with partial_fit, or set standardize=False"):
        tied.partial_fit(X, y, sensitive_features=group)


def test_standardised_maps_leave_base_rates_alone() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, 40_000)
    y = (rng.random(40_000) < np.where(group == 1, 0.7, 0.2)).astype(int)
    X = rng.normal(size=(40_000, 3)) * np.where(y == 1, 2, 1)[:, None] + y[:, None]
    moved = {}
    for standardize in (False, True):
        with nullcontext() if standardize else pytest.warns(UserWarning, match="use standardize=True or"):
            steer = FairSteeringTransformer(standardize=standardize).fit(X, y, sensitive_features=group)
        moved[standardize] = np.abs(steer.transform(X, sensitive_features=group) - X).mean()
    assert moved[True] < 0.05 < 0.15 < moved[False]
    for kind in (MeanMatchingTransformer, CovarianceMatchingTransformer):
        steps = [
            np.abs(kind(standardize=s).fit(X, y, sensitive_features=group).transform(X, sensitive_features=group) - X)
            for s in (True, False)
        ]
        assert steps[0].mean() < 0.05 < 0.15 < steps[1].mean()
    with pytest.raises(ValueError, match="pass y"):
        MeanMatchingTransformer(standardize=True).fit(X, sensitive_features=group)
    assert not hasattr(MeanMatchingTransformer(standardize=True), "partial_fit")


def test_auto_is_monotone_for_tables_and_affine_for_what_is_continuous() -> None:
    X, y, group = table()
    steer = FairSteeringTransformer(map_type="auto", standardize=True)
    assert steer.fit(X, y, sensitive_features=group).map_type_ == "monotone"
    E = np.random.default_rng(0).normal(size=(len(y), 20))
    assert steer.fit(E, y, sensitive_features=group).map_type_ == "affine"
    assert (
        steer.fit(np.repeat(E, 2, axis=0), np.repeat(y, 2), sensitive_features=np.repeat(group, 2)).map_type_
        == "affine"
    )
    pool = FairSteeringTransformer(map_type="auto", small_subgroups="pool", min_subgroup_size=30)
    assert pool.fit(X, y, sensitive_features=group).map_type_ == "diagonal"
    with pytest.raises(ValueError, match="lends Gaussians"):
        pool.set_params(map_type="monotone").fit(X, y, sensitive_features=group)


@pytest.mark.parametrize(("map_type", "constraint"), list(itertools.product([*MAP_TYPES, "auto"], CONSTRAINTS)))
def test_saved_maps_do_what_the_fitted_ones_do(map_type: Any, constraint: Any, tmp_path: Path) -> None:
    X, y, group = table()
    steer = FairSteeringTransformer(
        map_type=map_type, constraint=constraint, standardize=True, strength=0.5, unknown_group="infer"
    ).fit(X, y, sensitive_features=group)
    persistence.save(steer, tmp_path / "map.safetensors")
    again = persistence.load(tmp_path / "map.safetensors")
    unknown = np.where(np.arange(len(y)) % 5 == 0, None, group)
    for groups in (group, unknown):
        np.testing.assert_array_equal(
            again.transform(X, sensitive_features=groups), steer.transform(X, sensitive_features=groups)
        )
    assert again.map_type_ == steer.map_type_
    assert again.kl_divergence_ == steer.kl_divergence_


def test_monotone_maps_refuse_what_they_cannot_do(tmp_path: Path) -> None:
    X, y, group = table()
    steer = FairSteeringTransformer(map_type="monotone").fit(X, y, sensitive_features=group)
    with pytest.raises(AttributeError, match="Monotone maps are no matrices"):
        _ = steer.maps_
    for write in (export_affine, export_onnx):
        for transformer in (steer, FairSteeringTransformer().fit(X, y, sensitive_features=group)):  # which chooses it
            with pytest.raises(ValueError, match="map_type='monotone' moves features by tables"):
                write(transformer, tmp_path / "map")
    U = steer.transform(X, sensitive_features=group)
    assert set(np.unique(U[:, 2])) == {0.0, 1.0}
    assert (U[:, :2] % 1 == 0).all()
    back = steer.inverse_transform(U, sensitive_features=group)
    # A value that went to several comes back as one that may have become each.
    assert (back % 1 == 0).all()
    again = steer.transform(pd.DataFrame(back, columns=X.columns), sensitive_features=group)
    assert np.mean(again == U) > 0.95
    assert np.abs(again - U).max() <= 1


def test_steer_and_weights_say_what_they_are_for() -> None:
    X, y, group = table()
    steer = FairSteeringTransformer(constraint="equal_opportunity").fit(X, y, sensitive_features=group)
    with pytest.raises(ValueError, match="the distribution stays what it is: use transform"):
        steer.steer(X, y, sensitive_features=group)
    np.testing.assert_array_equal(steer.ideal_sample_weight(y, sensitive_features=group), 1)
    with pytest.raises(ValueError, match="must name classes; the classes are 'no', 'yes'"):
        clone(steer).set_params(pos_label="maybe").fit(X, y, sensitive_features=group)
    some = (group != "c") | (y == "no")
    with pytest.raises(ValueError, match="'c' has no row of class 'yes'"):
        clone(steer).fit(X[some], y[some], sensitive_features=group[some])


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("map_type", ["monotone", "translation"])
def test_classifiers_and_reports_take_every_steering(map_type: Any, constraint: Any) -> None:
    X, y, group = table(600)
    steering = FairSteeringTransformer(map_type=map_type, constraint=constraint, feature_transform=StandardScaler())
    classifier = IdealDistributionClassifier(LogisticRegression(), steering).fit(X, y, sensitive_features=group)
    assert classifier.classes_.tolist() == ["no", "yes"]
    assert set(classifier.predict(X, sensitive_features=group)) == {"no", "yes"}
    bayes = IdealDistributionClassifier(steering=steering)
    if constraint == "ideal":
        assert np.isfinite(bayes.fit(X, y, sensitive_features=group).predict_proba(X, sensitive_features=group)).all()
    else:
        with pytest.raises(ValueError, match="pass an estimator"):
            bayes.fit(X, y, sensitive_features=group)
    fitted = clone(steering).fit(X, y, sensitive_features=group)
    report = steering_report(fitted, X, y, sensitive_features=group, cv=3)
    assert len(report.tables["gaps"]["measure"]) >= 4
    assert "<svg" in report.to_html()


def test_the_model_is_that_of_the_moments() -> None:
    X, y, group = table()
    steer = FairSteeringTransformer(map_type="diagonal", standardize=True, shrinkage=None)
    steer.fit(X, y, sensitive_features=group)
    full = FairSteeringTransformer(covariance="full", shrinkage=None).fit(X, y, sensitive_features=group).moments_
    expected = nearest_ideal(full.tie(standardize=True), map_type="diagonal")
    np.testing.assert_allclose(steer.ideal_.linear, expected.linear)
    np.testing.assert_allclose(steer.moments_.weights, full.weights)


# ---- weights of training rows with monotone maps


def flags_of_one_thing(n: int, seed: int) -> tuple[Any, Any, Any]:
    """Sixty flags of one thing, which goes with the class in group 1 alone, and an age."""
    rng = np.random.default_rng(seed)
    group = (rng.random(n) < 0.7).astype(int)
    y = (rng.random(n) < np.where(group == 1, 0.35, 0.2)).astype(int)
    thing = rng.random(n) < np.where(group == 1, 0.2 + 0.6 * y, 0.4)
    flags = thing[:, None] & (rng.random((n, 60)) < 0.95)
    return np.column_stack([rng.normal(38 + 4 * y + 2 * group, 10).round(), flags]).astype(float), y, group


def test_weights_with_monotone_maps_leave_every_group_its_share() -> None:
    X, y, group = flags_of_one_thing(3000, 0)
    steer = FairSteeringTransformer(feature_transform=StandardScaler()).fit(X, y, sensitive_features=group)
    assert steer.map_type_ == "monotone"
    # The Gaussian model gives the group up, since to move it would cost more: its own matter.
    assert steer.ideal_.group_prior[0] < 0.01 * (group == 0).mean()
    weight = steer.ideal_sample_weight(y, sensitive_features=group)
    table = np.zeros((2, 2))
    np.add.at(table, (y, group), weight / weight.sum())
    expected = np.outer([(y == k).mean() for k in (0, 1)], [(group == a).mean() for a in (0, 1)])
    np.testing.assert_allclose(table, expected, atol=1e-12)

    # The classifiers of folds, to whose scores an alignment is fitted, are trained as the one of all rows is.
    fold = np.arange(len(y)) % 5 > 0
    part = steer._alike().fit(X[fold], y[fold], sensitive_features=group[fold])
    of_fold = part.ideal_sample_weight(y, sensitive_features=group)
    np.testing.assert_allclose(of_fold, weight, rtol=0.1)


def test_the_reference_group_of_monotone_maps_keeps_its_weights() -> None:
    X, y, group = flags_of_one_thing(3000, 0)
    steer = FairSteeringTransformer(intervention="affirmative", reference_group=0, map_type="monotone")
    weight = steer.fit(X, y, sensitive_features=group).ideal_sample_weight(y, sensitive_features=group)
    np.testing.assert_allclose(weight[group == 0], 1)
    np.testing.assert_allclose(weight[group == 1].mean(), 1)


def test_only_maps_of_a_model_warn_that_their_weights_silence_a_group() -> None:
    X, y, group = flags_of_one_thing(3000, 0)
    for kind in ("diagonal", "monotone"):
        steer = FairSteeringTransformer(map_type=kind, feature_transform=StandardScaler())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            steer.fit(X, y, sensitive_features=group)
        assert any("silence the group" in str(one.message) for one in caught) == (kind == "diagonal")
