from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.covariance import OAS
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from fairsteer import FairSteeringTransformer, persistence
from fairsteer.baselines import CovarianceMatchingTransformer, LeaceTransformer, MeanMatchingTransformer

MATCHING = [
    MeanMatchingTransformer(),
    MeanMatchingTransformer(reference_group=1),
    CovarianceMatchingTransformer(),
    CovarianceMatchingTransformer(reference_group=1),
]
BASELINES = [*MATCHING, LeaceTransformer()]


def fitted(transformer: Any, data: Any, **more: Any) -> Any:
    return clone(transformer).fit(data.X, sensitive_features=data.group, **more)


def group_means(rows: npt.NDArray[Any], group: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.array([rows[group == a].mean(axis=0) for a in np.unique(group)])


def group_covariances(rows: npt.NDArray[Any], group: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.array([np.cov(rows[group == a].T, bias=True) for a in np.unique(group)])


@pytest.fixture
def three_groups(make_data: Any) -> Any:
    return make_data(n=900, n_features=4, n_groups=3, seed=3)


# ---- mean matching


def test_mean_matching_adds_the_difference_from_the_reference(three_groups: Any) -> None:
    X, _, group = three_groups
    moved = fitted(MeanMatchingTransformer(reference_group=2), three_groups).transform(X, sensitive_features=group)
    means = group_means(X, group)
    np.testing.assert_allclose(moved, X + (means[2] - means)[group], atol=1e-12)


def test_without_a_reference_all_means_become_the_overall_mean(three_groups: Any) -> None:
    X, _, group = three_groups
    moved = fitted(MeanMatchingTransformer(), three_groups).transform(X, sensitive_features=group)
    np.testing.assert_allclose(group_means(moved, group), np.tile(X.mean(axis=0), (3, 1)), atol=1e-12)
    np.testing.assert_allclose(group_covariances(moved, group), group_covariances(X, group), atol=1e-12)


# ---- covariance matching


@pytest.mark.parametrize("reference_group", [None, 2])
def test_covariance_matching_equalises_means_and_covariances(three_groups: Any, reference_group: Any) -> None:
    X, _, group = three_groups
    match = CovarianceMatchingTransformer(reference_group=reference_group, shrinkage=None)
    moved = match.fit_transform(X, sensitive_features=group)
    means, covariances = group_means(moved, group), group_covariances(moved, group)
    np.testing.assert_allclose(means, np.broadcast_to(means[2], means.shape), atol=1e-12)
    np.testing.assert_allclose(covariances, np.broadcast_to(covariances[2], covariances.shape), atol=1e-12)
    if reference_group is not None:
        np.testing.assert_allclose(covariances[2], group_covariances(X, group)[2], atol=1e-12)


def test_to_a_reference_it_is_affirmative_steering_without_classes(three_groups: Any) -> None:
    match = fitted(CovarianceMatchingTransformer(reference_group=1), three_groups)
    steer = FairSteeringTransformer(intervention="affirmative", reference_group=1)
    steer.fit(three_groups.X, sensitive_features=three_groups.group)
    for group, (A, b) in steer.maps_.items():
        np.testing.assert_allclose(match.maps_[group][0], A, atol=1e-12)
        np.testing.assert_allclose(match.maps_[group][1], b, atol=1e-12)


def test_in_one_dimension_the_barycentre_averages_standard_deviations(make_data: Any) -> None:
    X, _, group = make_data(n_features=1, n_groups=3)
    moved = CovarianceMatchingTransformer(shrinkage=None).fit_transform(X, sensitive_features=group)
    shares = np.bincount(group) / len(group)
    expected = shares @ np.array([X[group == a].std() for a in range(3)])
    np.testing.assert_allclose([moved[group == a].std() for a in range(3)], expected, rtol=1e-12)


def test_the_barycentre_moves_rows_less_than_any_other_common_distribution(three_groups: Any) -> None:
    X, _, group = three_groups
    match = CovarianceMatchingTransformer(shrinkage=None).fit(X, sensitive_features=group)
    moved = match.transform(X, sensitive_features=group)
    least = ((moved - X) ** 2).sum()
    rng = np.random.default_rng(0)
    # Rows whose groups agree still agree after one more map for all of them.
    for size in (1e-3, 1e-2, 1e-1):
        for _ in range(20):
            other = moved + size * (moved @ rng.normal(size=(4, 4)) + rng.normal(size=4))
            assert ((other - X) ** 2).sum() > least
    for reference_group in range(3):
        match = CovarianceMatchingTransformer(reference_group=reference_group, shrinkage=None)
        assert ((match.fit_transform(X, sensitive_features=group) - X) ** 2).sum() > least


def test_features_that_shrinkage_would_hide_are_warned_of(three_groups: Any) -> None:
    X = three_groups.X * [1e5, 1, 1, 1]
    with pytest.warns(UserWarning, match=r"x1, x2, x3 vary so much less.*StandardScaler"):
        CovarianceMatchingTransformer().fit(X, sensitive_features=three_groups.group)


def test_mean_matching_warns_of_them_only_where_it_infers_groups(three_groups: Any) -> None:
    X = three_groups.X * [1e5, 1, 1, 1]
    MeanMatchingTransformer().fit(X, sensitive_features=three_groups.group)
    with pytest.warns(UserWarning, match=r"x1, x2, x3 vary so much less"):
        MeanMatchingTransformer(unknown_group="infer").fit(X, sensitive_features=three_groups.group)


# ---- LEACE


def cross_covariance(rows: npt.NDArray[Any], group: npt.NDArray[Any]) -> npt.NDArray[Any]:
    one_hot = (group[:, None] == np.unique(group)).astype(float)
    centred = rows - rows.mean(axis=0)
    return np.asarray(centred.T @ (one_hot - one_hot.mean(axis=0)) / len(rows))


def collinear(X: npt.NDArray[Any], group: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Add a sum of columns, a constant, and a copy that differs from its original in one group by little."""
    return np.column_stack([X, X[:, 0] + X[:, 1], np.full(len(X), 7.0), X[:, 2] + 1e-3 * (group == 1)])


@pytest.mark.parametrize("n_groups", [2, 3, 5])
@pytest.mark.parametrize("case", ["plain", "n < d", "collinear", "scales", "offset"])
def test_after_leace_features_and_groups_are_uncorrelated(make_data: Any, case: str, n_groups: int) -> None:
    n, d = (40, 60) if case == "n < d" else (600, 6)
    X, _, group = make_data(n=n, n_features=d, n_groups=n_groups)
    X = {
        "collinear": collinear(X, group),
        "scales": X * np.logspace(-6, 6, d),
        "offset": X + 1e4,
    }.get(case, X)
    erased = LeaceTransformer().fit(X, sensitive_features=group).transform(X)
    before, after = cross_covariance(X, group), cross_covariance(erased, group)
    scale = X.std(axis=0) + 1e-300
    assert np.abs(before / scale[:, None]).max() > 0.05
    np.testing.assert_allclose(after / scale[:, None], 0, atol=1e-9)
    assert (erased.var(axis=0) <= X.var(axis=0) * (1 + 1e-9) + 1e-20).all()


def test_after_leace_logistic_regression_finds_no_group(three_groups: Any) -> None:
    X, _, group = three_groups
    erased = fitted(LeaceTransformer(), three_groups).transform(X)
    probe = LogisticRegression(C=1e6, tol=1e-9, max_iter=1000)
    assert probe.fit(X, group).score(X, group) > 0.5
    proba = probe.fit(erased, group).predict_proba(erased)
    np.testing.assert_allclose(proba, np.tile(np.bincount(group) / len(group), (len(X), 1)), atol=1e-6)


@pytest.mark.parametrize("n_groups", [2, 3])
def test_leace_changes_the_features_least_in_every_quadratic_norm(make_data: Any, n_groups: int) -> None:
    X, _, group = make_data(n_features=4, n_groups=n_groups)
    A, b = fitted(LeaceTransformer(), make_data(n_features=4, n_groups=n_groups)).maps_[0]
    np.testing.assert_allclose(A @ X.mean(axis=0) + b, X.mean(axis=0), atol=1e-12)
    root = np.linalg.cholesky(np.cov(X.T, bias=True))
    rng = np.random.default_rng(0)
    for norm in (np.eye(4), rng.normal(size=(4, 4))):
        free = cp.Variable((4, 4))
        cost = cp.sum_squares(norm @ (free - np.eye(4)) @ root)
        # The sum of the one-hot columns is constant: the last of them adds no condition.
        problem = cp.Problem(cp.Minimize(cost), [free @ cross_covariance(X, group)[:, :-1] == 0])
        problem.solve(solver=cp.CLARABEL)
        assert problem.status == cp.OPTIMAL
        assert ((norm @ (A - np.eye(4)) @ root) ** 2).sum() == pytest.approx(problem.value, rel=1e-6)
        np.testing.assert_allclose(A, free.value, atol=1e-5)


def test_leace_does_not_depend_on_the_coordinates(three_groups: Any) -> None:
    mix = np.random.default_rng(0).normal(size=(4, 4)) * np.array([[1], [1e3], [1], [1e-3]])
    X, _, group = three_groups
    plain = fitted(LeaceTransformer(), three_groups).transform(X)
    mixed = LeaceTransformer().fit(X @ mix.T + 5, sensitive_features=group).transform(X @ mix.T + 5)
    np.testing.assert_allclose(mixed, plain @ mix.T + 5, rtol=1e-7, atol=1e-7)


def test_leace_leaves_directions_alone_in_which_no_row_varied_but_by_rounding() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, 200)
    low = rng.normal(size=(200, 3)) + np.outer(group, [1, 0, 0])
    X = (low @ rng.normal(size=(3, 8))).astype(np.float32)
    A, _ = LeaceTransformer().fit(X, sensitive_features=group).maps_[0]
    scale = X.std(axis=0)
    rest = scale[:, None] * np.linalg.svd((X - X.mean(axis=0)) / scale)[2][3:].T
    np.testing.assert_allclose(A @ rest, rest, atol=1e-5)


def test_leace_needs_no_groups_at_transform(data: Any) -> None:
    leace = fitted(LeaceTransformer(), data)
    erased = leace.transform(data.X)
    for labels in (data.group, ["never seen"] * len(data.X), [None] * len(data.X)):
        assert np.array_equal(leace.transform(data.X, sensitive_features=labels), erased)
    assert all(np.array_equal(A, leace.maps_[0][0]) for A, _ in leace.maps_.values())


def test_leace_is_undone_below_full_strength_only(data: Any) -> None:
    leace = fitted(LeaceTransformer(strength=0.9), data)
    np.testing.assert_allclose(leace.inverse_transform(leace.transform(data.X)), data.X, atol=1e-12)
    with pytest.raises(ValueError, match="At strength=1 LEACE erases"):
        leace.set_params(strength=1).inverse_transform(data.X)


def test_leace_keeps_rows_of_groups_that_do_not_differ() -> None:
    X = np.random.default_rng(0).normal(size=(50, 3))
    twice, group = np.vstack([X, X]), np.repeat([0, 1], 50)
    leace = LeaceTransformer().fit(twice, sensitive_features=group)
    assert np.array_equal(leace.transform(X), X)
    assert np.array_equal(leace.inverse_transform(X), X)


# ---- what all share


@pytest.mark.parametrize("transformer", [MATCHING[1], MATCHING[3]])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_rows_of_the_reference_group_come_back_bit_for_bit(data: Any, transformer: Any, dtype: type[Any]) -> None:
    X = data.X.astype(dtype)
    moved = clone(transformer).fit_transform(X, sensitive_features=data.group)
    assert moved[data.group == 1].tobytes() == X[data.group == 1].tobytes()
    assert np.abs(moved - X)[data.group == 0].max() > 0.1


@pytest.mark.parametrize("transformer", BASELINES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_floating_types_are_kept(data: Any, transformer: Any, dtype: type[Any]) -> None:
    expected = fitted(transformer, data).transform(data.X, sensitive_features=data.group)
    moved = clone(transformer).fit_transform(data.X.astype(dtype), sensitive_features=data.group)
    assert moved.dtype == dtype
    np.testing.assert_allclose(moved, expected, atol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("transformer", BASELINES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_fewer_rows_than_features_are_enough(make_data: Any, transformer: Any, dtype: type[Any]) -> None:
    X, _, group = make_data(n=30, n_features=80)
    X[:, 3], X[:, 4] = 2.0, X[:, 5]
    X = X.astype(dtype)
    moved = clone(transformer).fit_transform(X, sensitive_features=group)
    means = group_means(moved, group)
    np.testing.assert_allclose(means[0], means[1], atol=1e-12 if dtype is np.float64 else 1e-5)
    new = make_data(n=500, n_features=80).X.astype(dtype)
    out = clone(transformer).fit(X, sensitive_features=group).transform(new, sensitive_features=np.arange(500) % 2)
    assert np.abs(out).max() < 100


@pytest.mark.parametrize("transformer", BASELINES)
def test_a_weight_is_a_number_of_repetitions(data: Any, transformer: Any) -> None:
    weight = np.random.default_rng(1).integers(0, 4, len(data.X))
    weighted = fitted(transformer, data, sample_weight=weight).transform(data.X, sensitive_features=data.group)
    repeated = clone(transformer).fit(
        np.repeat(data.X, weight, axis=0), sensitive_features=np.repeat(data.group, weight)
    )
    np.testing.assert_allclose(repeated.transform(data.X, sensitive_features=data.group), weighted, atol=1e-10)
    unweighted = fitted(transformer, data).transform(data.X, sensitive_features=data.group)
    assert np.abs(weighted - unweighted).max() > 1e-3


@pytest.mark.parametrize("transformer", BASELINES)
def test_batches_give_what_all_rows_give(three_groups: Any, transformer: Any) -> None:
    X, _, group = three_groups
    order = np.argsort(group, kind="stable")[::-1]  # new groups in later batches
    streamed = clone(transformer).set_params(
        **({} if "shrinkage" not in transformer.get_params() else {"shrinkage": "oas"})
    )
    whole = clone(streamed).fit(X, sensitive_features=group)
    for batch in np.array_split(order, 4):
        streamed.partial_fit(X[batch], sensitive_features=group[batch])
    np.testing.assert_allclose(
        streamed.transform(X, sensitive_features=group), whole.transform(X, sensitive_features=group), atol=1e-10
    )


@pytest.mark.parametrize("transformer", MATCHING)
def test_rows_move_in_the_coordinates_of_the_feature_transform(data: Any, transformer: Any) -> None:
    X = np.exp(data.X / 4)
    moved = clone(transformer).set_params(feature_transform="log").fit_transform(X, sensitive_features=data.group)
    expected = clone(transformer).fit_transform(np.log(X), sensitive_features=data.group)
    np.testing.assert_allclose(moved, np.exp(expected), rtol=1e-12)


@pytest.mark.parametrize("transformer", BASELINES)
def test_classes_are_not_looked_at(data: Any, transformer: Any) -> None:
    moved = clone(transformer).fit_transform(data.X, data.X[:, 0], sensitive_features=data.group)
    expected = fitted(transformer, data).transform(data.X, sensitive_features=data.group)
    assert np.array_equal(moved, expected)


@pytest.mark.parametrize("transformer", BASELINES)
def test_they_offer_nothing_that_needs_an_ideal_distribution(data: Any, transformer: Any) -> None:
    names = ("steer", "ideal_sample_weight", "ideal_", "kl_divergence_", "certificate_", "n_iter_", "objective_path_")
    assert all(hasattr(fitted(FairSteeringTransformer(), data), name) for name in names)
    assert not any(hasattr(fitted(transformer, data), name) for name in names)


@pytest.mark.parametrize("transformer", BASELINES)
def test_strength_moves_rows_part_of_the_way_without_a_new_fit(data: Any, transformer: Any) -> None:
    baseline = fitted(transformer, data)
    full = baseline.transform(data.X, sensitive_features=data.group)
    baseline.set_params(strength=0.3)
    part = baseline.transform(data.X, sensitive_features=data.group)
    np.testing.assert_allclose(part, 0.7 * data.X + 0.3 * full, atol=1e-12)
    back = baseline.inverse_transform(part, sensitive_features=data.group)
    np.testing.assert_allclose(back, data.X, atol=1e-12)


@pytest.mark.parametrize(
    "transformer", [clone(t).set_params(reference_group=None) for t in MATCHING[::2]] + BASELINES[4:]
)
def test_without_groups_nothing_moves_and_a_warning_says_so(data: Any, transformer: Any) -> None:
    with pytest.warns(UserWarning, match="nothing is being steered"):
        baseline = clone(transformer).fit(data.X)
    assert np.array_equal(baseline.transform(data.X), data.X)


@pytest.mark.parametrize("transformer", MATCHING)
def test_unknown_groups_are_refused_or_weighted_by_their_probability(data: Any, transformer: Any) -> None:
    baseline = fitted(transformer, data)
    labels = np.where(np.arange(len(data.X)) < 5, 9, data.group)
    with pytest.raises(ValueError, match=r"5 of 600 rows have a group.*not there at fit: 9"):
        baseline.transform(data.X, sensitive_features=labels)
    baseline.set_params(unknown_group="infer")
    moved = baseline.transform(data.X, sensitive_features=labels)
    proba = baseline.predict_group_proba(data.X[:5])
    expected = sum(proba[:, [a]] * (data.X[:5] @ A.T + b) for a, (A, b) in baseline.maps_.items())
    np.testing.assert_allclose(moved[:5], expected, atol=1e-12)
    np.testing.assert_allclose(moved[5:], baseline.transform(data.X[5:], sensitive_features=data.group[5:]))
    moved = baseline.set_params(unknown_group="infer_hard").transform(data.X, sensitive_features=labels)
    likeliest = np.concatenate([proba.argmax(axis=1), data.group[5:]])
    np.testing.assert_allclose(moved, baseline.transform(data.X, sensitive_features=likeliest))


@pytest.mark.parametrize("transformer", BASELINES)
def test_rows_without_a_group_are_left_out_of_the_fit(data: Any, transformer: Any) -> None:
    labels = data.group.astype(object)
    labels[:7] = None
    with pytest.warns(UserWarning, match="7 of 600 rows have a missing group"):
        partial = clone(transformer).fit(data.X, sensitive_features=labels)
    expected = clone(transformer).fit(data.X[7:], sensitive_features=data.group[7:])
    for group, (A, b) in expected.maps_.items():
        np.testing.assert_allclose(partial.maps_[group][0], A, atol=1e-14)
        np.testing.assert_allclose(partial.maps_[group][1], b, atol=1e-14)


@pytest.mark.parametrize("transformer", MATCHING[1::2])
def test_a_reference_group_that_is_not_there_is_refused(data: Any, transformer: Any) -> None:
    with pytest.raises(ValueError, match=r"reference_group='x' is not among the groups 0, 1"):
        fitted(clone(transformer).set_params(reference_group="x"), data)


@pytest.mark.parametrize("transformer", BASELINES)
def test_sensitive_columns_are_used_and_left_out(data: Any, transformer: Any) -> None:
    frame = pd.DataFrame(data.X, columns=["a", "b", "c"]).assign(group=data.group)[["a", "group", "b", "c"]]
    baseline = clone(transformer).set_params(sensitive_columns="group").set_output(transform="pandas")
    moved = baseline.fit_transform(frame)
    assert moved.columns.tolist() == baseline.get_feature_names_out().tolist() == ["a", "b", "c"]
    expected = fitted(transformer, data).transform(data.X, sensitive_features=data.group)
    np.testing.assert_allclose(moved, expected, atol=1e-12)


@pytest.mark.parametrize("transformer", BASELINES)
def test_groups_are_routed_through_pipelines_without_a_request(data: Any, transformer: Any) -> None:
    with sklearn.config_context(enable_metadata_routing=True):
        pipe = make_pipeline(clone(transformer), LogisticRegression())
        name = pipe.steps[0][0]
        search = GridSearchCV(pipe, {f"{name}__strength": [0, 1]}, cv=3, error_score="raise")
        search.fit(data.X, data.y, sensitive_features=data.group)
        assert search.score(data.X, data.y, sensitive_features=data.group) > 0.5


def test_an_estimator_can_shrink_all_rows_but_not_batches(data: Any) -> None:
    match = CovarianceMatchingTransformer(shrinkage=OAS())
    moved = match.fit_transform(data.X, sensitive_features=data.group)
    expected = CovarianceMatchingTransformer(shrinkage="oas").fit_transform(data.X, sensitive_features=data.group)
    np.testing.assert_allclose(moved, expected, atol=1e-10)
    assert not hasattr(clone(match), "partial_fit")


@pytest.mark.parametrize("transformer", BASELINES)
def test_pickles_move_rows_as_before(data: Any, transformer: Any) -> None:
    baseline = fitted(transformer, data)
    again = pickle.loads(pickle.dumps(baseline))
    moved = again.transform(data.X, sensitive_features=data.group)
    assert np.array_equal(moved, baseline.transform(data.X, sensitive_features=data.group))


@pytest.mark.parametrize("transformer", BASELINES)
def test_saved_and_loaded_they_move_rows_as_before(data: Any, transformer: Any, tmp_path: Path) -> None:
    baseline = fitted(clone(transformer).set_params(strength=0.7), data)
    persistence.save(baseline, tmp_path / "map.safetensors")
    again = persistence.load(tmp_path / "map.safetensors")
    assert type(again) is type(baseline)
    assert again.get_params() == baseline.get_params()
    moved = again.transform(data.X, sensitive_features=data.group)
    assert np.array_equal(moved, baseline.transform(data.X, sensitive_features=data.group))
    more = [steer.partial_fit(data.X, sensitive_features=1 - data.group) for steer in (baseline, again)]
    first, second = (steer.transform(data.X, sensitive_features=data.group) for steer in more)
    np.testing.assert_allclose(first, second, atol=1e-12)


@pytest.mark.parametrize("n_groups", [2, 3])
@pytest.mark.parametrize("reference_group", [None, 0])
def test_fewer_rows_than_features_are_matched_whatever_their_order(n_groups: int, reference_group: Any) -> None:
    rng = np.random.default_rng(0)
    group = np.arange(30) % n_groups
    X = rng.normal(size=(30, 40)) * (1 + group[:, None])
    fresh, of_fresh = rng.normal(size=(20, 40)), np.arange(20) % n_groups
    match = CovarianceMatchingTransformer(shrinkage=None, reference_group=reference_group)
    once = match.fit(X, sensitive_features=group).transform(fresh, sensitive_features=of_fresh)
    order = rng.permutation(30)
    again = match.fit(X[order], sensitive_features=group[order]).transform(fresh, sensitive_features=of_fresh)
    np.testing.assert_allclose(again, once, atol=1e-5)


def test_a_barycentre_does_not_depend_on_the_labels_of_groups_of_one_size() -> None:
    rng = np.random.default_rng(0)
    group = np.arange(90) % 3
    X = rng.normal(size=(90, 3)) @ rng.normal(size=(3, 3)) * (1 + group[:, None])
    match = CovarianceMatchingTransformer()
    once = match.fit_transform(X, sensitive_features=group)
    np.testing.assert_allclose(match.fit_transform(X, sensitive_features=2 - group), once, atol=1e-12)
