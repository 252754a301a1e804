"""Subgroups with few rows: refused, filled up from others, or merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from benchmarks import problems
from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, SubgroupMoments
from fairsteer._utils.types import CovarianceModel

# What a subgroup borrows is not what it is.
pytestmark = pytest.mark.filterwarnings("ignore:The certificate of the model")

MODELS: list[CovarianceModel] = ["tied", "full", "diagonal"]


def unbalanced(
    n: int = 900, n_groups: int = 6, seed: int = 0
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Rows of three classes; the last groups are ever smaller, the last one has no row of class 2."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    a = np.minimum(rng.geometric(0.5, n) - 1, n_groups - 1)
    keep = ~((a == n_groups - 1) & (y == 2))
    y, a = y[keep], a[keep]
    X = rng.normal(size=(len(y), 3)) * (1 + 0.2 * a[:, None]) + np.outer(y, [1, 0, 1]) + np.outer(a, [0, 1, 1])
    return X, y, a


def moments_of(X: Any, y: Any, a: Any, covariance: CovarianceModel, weight: Any = None, n_groups: int = 6) -> Any:
    moments = SubgroupMoments(X.shape[1], classes=range(3), groups=range(n_groups), covariance=covariance)
    return moments.update(X, y, a, weight)


# ---- sizes


def test_sizes_count_rows_by_weight_or_effectively() -> None:
    X, y, a = unbalanced()
    counts = np.zeros((3, 6))
    np.add.at(counts, (y, a), 1)
    np.testing.assert_array_equal(moments_of(X, y, a, "tied").sizes, counts)
    np.testing.assert_allclose(moments_of(X, y, a, "tied", np.full(len(y), 3)).sizes, 3 * counts)
    np.testing.assert_allclose(moments_of(X, y, a, "tied", np.full(len(y), 1e-6)).sizes, counts)


# ---- tables


def test_tables_have_their_long_side_down_and_long_ones_list_the_smallest() -> None:
    X, y, a = unbalanced()
    moments = moments_of(X, y, a, "diagonal")
    lines = moments.subgroup_table().splitlines()
    assert lines[0].split() == ["group", "\\", "class", "0", "1", "2"]
    assert len(lines) == 7
    assert len({len(line) for line in lines}) == 1
    listed = moments.subgroup_table(most=4).splitlines()
    assert listed[0].split() == ["class", "group", "weight"]
    assert listed[1].split() == ["2", "5", "0"]
    assert listed[-1].strip() == "and 14 larger ones"
    weights = [float(line.split()[-1]) for line in listed[1:-1]]
    assert weights == np.sort(moments.weights, axis=None)[:4].tolist()

    many = SubgroupMoments(1, classes=range(2), groups=range(300))
    assert len(many.subgroup_table().splitlines()) == 42
    assert len(many.subgroup_table(most=None).splitlines()) == 301


# ---- borrowing


@pytest.mark.parametrize("covariance", MODELS)
def test_additive_means_are_borrowed_exactly(covariance: CovarianceModel) -> None:
    data = problems.statistics(4, 5, 3, covariance=covariance, seed=1)
    rng = np.random.default_rng(0)
    weights = rng.integers(50, 900, (4, 5)).astype(float)
    means = rng.normal(size=(4, 1, 3)) + rng.normal(size=(1, 5, 3))
    weights[1, 2] = weights[3, 0] = 0
    known = np.where(weights[..., None] > 0, means, 0)
    filled = SubgroupMoments.from_statistics(weights, known, data.covariances).borrow(40)
    np.testing.assert_allclose(filled.means, means, atol=1e-10)
    independent = np.outer(weights.sum(axis=1), weights.sum(axis=0)) / weights.sum()
    np.testing.assert_allclose(filled.weights, np.where(weights > 0, weights, independent))


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_small_subgroup_is_filled_up_with_borrowed_rows(covariance: CovarianceModel) -> None:
    moments = moments_of(*unbalanced(), covariance, n_groups=6)
    size, m = moments.sizes, 40.0
    filled = moments.borrow(m)
    weights = moments.weights
    within = np.einsum("ka,ka...->a...", weights / weights.sum(axis=0), moments.covariances)
    for k, a in np.argwhere(size >= m):
        np.testing.assert_array_equal(filled.means[k, a], moments.means[k, a])
        np.testing.assert_allclose(filled.covariances[k, a], moments.covariances[k, a], rtol=1e-14)
    # Subgroup (2, 3) is small, its group is not: rows of what is borrowed, merged by Chan's formula.
    assert 0 < size[2, 3] < m < size[:, 3].sum()
    n = size[2, 3]
    borrowed = (filled.means[2, 3] - n / m * moments.means[2, 3]) / (1 - n / m)
    own, rest = (
        SubgroupMoments.from_statistics([[w]], [[mean]], np.asarray([[S]]))
        for w, mean, S in (
            (n, moments.means[2, 3], moments.covariances[2, 3]),
            (m - n, borrowed, within[3]),
        )
    )
    np.testing.assert_allclose(filled.covariances[2, 3], own.merge(rest).covariances[0, 0], rtol=1e-10)


@pytest.mark.parametrize("covariance", MODELS)
def test_borrowing_is_continuous_in_the_number_of_rows(covariance: CovarianceModel) -> None:
    moments = moments_of(*unbalanced(), covariance)
    assert moments.borrow(0) is moments
    assert moments.borrow(1e-9) is not moments  # there is an empty subgroup
    for k, a in np.argwhere(moments.sizes > 0):
        n = moments.sizes[k, a]
        before, after = moments.borrow(n * (1 - 1e-9)), moments.borrow(n * (1 + 1e-9))
        np.testing.assert_allclose(before.means, after.means, atol=1e-6)
        np.testing.assert_allclose(before.covariances, after.covariances, atol=1e-6)


@pytest.mark.parametrize("covariance", MODELS)
def test_borrowing_helps_where_rows_are_few(covariance: CovarianceModel) -> None:
    # True subgroups share a covariance and have additive means.
    rng = np.random.default_rng(0)
    classes, groups = rng.normal(size=(3, 4)), rng.normal(size=(6, 4))
    truth = classes[:, None] + groups
    error = np.zeros(2)
    for _ in range(20):
        y, a = rng.integers(0, 3, 600), np.minimum(rng.geometric(0.5, 600) - 1, 5)
        X = rng.normal(size=(600, 4)) + truth[y, a]
        moments = moments_of(X, y, a, covariance)
        for i, estimate in enumerate((moments, moments.borrow(40))):
            error[i] += ((estimate.means - truth) ** 2).sum()
    assert error[1] < 0.7 * error[0]


# ---- merging


@pytest.mark.parametrize("covariance", MODELS)
def test_merged_groups_are_the_group_of_their_rows(covariance: CovarianceModel) -> None:
    X, y, a = unbalanced()
    merged = moments_of(X, y, a, covariance).merge_groups([3, 1, 5], "rest")
    relabelled = np.select([np.isin(a, [1, 3, 5]), a == 0, a == 2], [3, 0, 1], 2)
    expected = moments_of(X, y, relabelled, covariance, n_groups=4)
    assert merged.groups.tolist() == [0, 2, 4, "rest"]
    for one, two in zip(merged._sums()[:4], expected._sums()[:4], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-10)
    if covariance != "tied":  # tied moments keep no covariance of a class, so a term is approximate
        one, two = (part.shrinkage_intensity("ledoit_wolf") for part in (merged, expected))
        np.testing.assert_allclose(one, two, rtol=1e-9)
    with pytest.raises(ValueError, match="7 is no group"):
        merged.merge_groups([7], "x")
    with pytest.raises(ValueError, match="'rest' is a group already"):
        merged.merge_groups([0], "rest")
    with pytest.raises(ValueError, match="cannot be merged"):
        merged.shrink(0.1).merge_groups([0], "x")


def test_groups_merge_until_no_subgroup_is_small() -> None:
    def small(weights: list[list[float]], least: float) -> list[Any]:
        K, G = np.shape(weights)
        return SubgroupMoments.from_statistics(weights, np.zeros((K, G, 1)), np.ones((G, 1, 1))).small_groups(least)

    weights = [[90.0, 80.0, 3.0, 2.0], [50.0, 9.0, 30.0, 4.0]]
    assert small(weights, 2) == []
    assert small(weights, 3) == [2, 3]
    assert small(weights, 5) == [2, 3]
    assert small(weights, 6) == [1, 2, 3]  # 3 + 2 rows of class 0 are not enough
    assert small(weights, 1000) == [0, 1, 2, 3]


# ---- the transformer


def steering(**parameters: Any) -> FairSteeringTransformer:
    return FairSteeringTransformer(**parameters)


@pytest.mark.parametrize("covariance", MODELS)
def test_small_subgroups_are_refused_with_the_table_and_the_ways_out(covariance: Any) -> None:
    X, y, a = unbalanced()
    with pytest.raises(
        ValueError, match=r"subgroups have fewer than min_subgroup_size=5 rows.*'pool'.*'merge'"
    ) as caught:
        steering(covariance=covariance, min_subgroup_size=5).fit(X, y, sensitive_features=a)
    assert SubgroupMoments.subgroup_table(moments_of(X, y, a, "tied")) in str(caught.value)
    few = (a < 2).nonzero()
    steering(covariance=covariance, min_subgroup_size=5).fit(X[few], y[few], sensitive_features=a[few])


@pytest.mark.parametrize("covariance", MODELS)
def test_pooled_subgroups_are_projected_with_what_they_borrow(covariance: Any) -> None:
    X, y, a = unbalanced()
    steer = steering(covariance=covariance, min_subgroup_size=30, small_subgroups="pool").fit(
        X, y, sensitive_features=a
    )
    model = moments_of(X, y, a, covariance).shrink("ledoit_wolf").borrow(30)
    np.testing.assert_allclose(steer.ideal_.source_means, model.means)
    np.testing.assert_allclose(steer.ideal_.source_weights, model.weights / model.weights.sum())
    # The empty subgroup has a place in the ideal, so that new rows of it can be steered.
    steer.steer(X[:1], [2], sensitive_features=[5])
    with pytest.warns(UserWarning, match="No row of the subgroups"):
        plain = steering(covariance=covariance).fit(X, y, sensitive_features=a)
    with pytest.raises(ValueError, match="Class 2 had no rows in group 5"):
        plain.steer(X[:1], [2], sensitive_features=[5])


@pytest.mark.parametrize("labels", [list("abcdef"), list(range(6)), [(i, "x") for i in range(6)]])
@pytest.mark.parametrize("covariance", MODELS)
def test_merged_groups_steer_as_one(covariance: Any, labels: list[Any]) -> None:
    X, y, a = unbalanced()
    of_row = [list(labels[code]) if isinstance(labels[0], tuple) else labels[code] for code in a]
    steer = steering(covariance=covariance, min_subgroup_size=30, small_subgroups="merge", unknown_group="infer")
    steer.fit(X, y, sensitive_features=of_row)
    joint = ("(small groups)",) * 2 if isinstance(labels[0], tuple) else "(small groups)"
    kept = [label for label in steer.groups_.tolist() if label != joint]
    assert kept == labels[: len(kept)]
    assert len(kept) >= 2
    assert set(steer.maps_) == {*kept, joint}
    assert steer.moments_.groups.tolist() == labels  # of every label, for the table and for more batches

    joined = np.minimum(a, len(kept))
    other = steering(covariance=covariance, unknown_group="infer").fit(X, y, sensitive_features=joined)
    names = ["weights", "means", *(["covariances"] if covariance != "tied" else [])]
    for name in names:
        one, two = (getattr(part._fitted().model, name) for part in (steer, other))
        order = [steer.groups_.tolist().index(label) for label in [*kept, joint]]
        np.testing.assert_allclose(one[:, order], two, rtol=1e-9, atol=1e-12)
    steered = steer.transform(X, sensitive_features=of_row)
    A, b = steer.maps_[joint]
    small = joined == len(kept)
    np.testing.assert_allclose(steered[small], X[small] @ A.T + b, atol=1e-9)
    np.testing.assert_allclose(steer.inverse_transform(steered, sensitive_features=of_row), X, atol=1e-8)
    assert steer.predict_group_proba(X).shape == (len(X), len(kept) + 1)
    steer.steer(X, y, sensitive_features=of_row)
    weight = steer.ideal_sample_weight(y, sensitive_features=of_row)
    np.testing.assert_allclose(weight, other.ideal_sample_weight(y, sensitive_features=joined), rtol=1e-2)


def test_a_label_that_looks_like_the_merged_one_stays_apart() -> None:
    X, y, a = unbalanced()
    labels = np.array(["(small groups)", "b", "c", "d", "e", "f"])[a]
    steer = steering(min_subgroup_size=30, small_subgroups="merge").fit(X, y, sensitive_features=labels)
    assert "(small groups)" in steer.groups_
    assert "(small groups)'" in steer.groups_
    assert steer.groups_[steer._group_of_label[0]] == "(small groups)"


@pytest.mark.parametrize("small_subgroups", ["pool", "merge"])
@pytest.mark.parametrize("covariance", MODELS)
def test_batches_with_small_subgroups_equal_one_fit(covariance: Any, small_subgroups: str) -> None:
    X, y, a = unbalanced()
    parameters = {
        "covariance": covariance,
        "min_subgroup_size": 30,
        "small_subgroups": small_subgroups,
        "shrinkage": 0.1,
    }
    once = steering(**parameters).fit(X, y, sensitive_features=a)
    batches = steering(**parameters)
    for part in np.array_split(np.arange(len(y)), 5):
        batches.partial_fit(X[part], y[part], sensitive_features=a[part])
    assert batches.groups_.tolist() == once.groups_.tolist()
    assert batches.partial_fit().kl_divergence_ == pytest.approx(once.kl_divergence_, rel=1e-6)


def test_batches_are_too_small_only_when_they_are_used() -> None:
    X, y, a = unbalanced()
    big = a < 2
    batches = steering(min_subgroup_size=20)
    batches.partial_fit(X[big][:30], y[big][:30], sensitive_features=a[big][:30])
    with pytest.raises(ValueError, match="fewer than min_subgroup_size=20"):
        batches.transform(X[big], sensitive_features=a[big])
    batches.partial_fit(X[big][30:], y[big][30:], sensitive_features=a[big][30:])
    batches.transform(X[big], sensitive_features=a[big])


def test_what_cannot_be_merged_is_refused() -> None:
    X, y, a = unbalanced()
    with pytest.raises(ValueError, match=r"leaves one group.*all 6 groups have to merge"):
        steering(min_subgroup_size=10**6, small_subgroups="merge").fit(X, y, sensitive_features=a)
    affirmative = steering(min_subgroup_size=30, small_subgroups="merge", intervention="affirmative", reference_group=5)
    with pytest.raises(ValueError, match="reference_group=5 is too small to stay"):
        affirmative.fit(X, y, sensitive_features=a)


@pytest.mark.parametrize("small_subgroups", ["pool", "merge"])
@pytest.mark.parametrize("covariance", MODELS)
@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas", 0.2, None])
def test_weights_are_repetitions_and_zeros_removals(covariance: Any, small_subgroups: str, shrinkage: Any) -> None:
    X, y, a = unbalanced()
    weight = np.random.default_rng(1).integers(0, 4, len(y))
    parameters = {
        "covariance": covariance,
        "min_subgroup_size": 50,
        "small_subgroups": small_subgroups,
        "unknown_group": "infer",
        "shrinkage": shrinkage,
    }
    weighted = steering(**parameters).fit(X, y, sensitive_features=a, sample_weight=weight)
    X2, y2, a2 = (np.repeat(part, weight, axis=0) for part in (X, y, a))
    order = np.random.default_rng(2).permutation(len(y2))
    repeated = steering(**parameters).fit(X2[order], y2[order], sensitive_features=a2[order])
    assert weighted.groups_.tolist() == repeated.groups_.tolist()
    for name in ("weights", "means", "covariances"):
        one, two = (getattr(steer._fitted().model, name) for steer in (weighted, repeated))
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(weighted.predict_group_proba(X), repeated.predict_group_proba(X), atol=1e-6)
    assert weighted.kl_divergence_ == pytest.approx(repeated.kl_divergence_, rel=1e-3)


@pytest.mark.parametrize("small_subgroups", ["pool", "merge"])
def test_the_classifier_takes_small_subgroups(small_subgroups: str) -> None:
    X, y, a = unbalanced()
    classifier = IdealDistributionClassifier(steering=steering(min_subgroup_size=30, small_subgroups=small_subgroups))
    classifier.fit(X, y, sensitive_features=a)
    assert classifier.score(X, y, sensitive_features=a) > 0.4


def test_a_hundred_intersections_of_a_census(real_data: Path) -> None:
    columns = ["age", "education", "hours_per_week", "income_gt_50k", "race", "sex"]
    table = pd.read_parquet(real_data / "tabular" / "acs_income.parquet", columns=columns)
    X, y = table[columns[:3]].to_numpy(np.float32), table["income_gt_50k"].to_numpy()
    groups = table[["race", "sex"]].assign(age=pd.cut(table["age"], [0, 25, 35, 45, 55, 65, 120]))
    steer = steering(map_type="affine", min_subgroup_size=50, small_subgroups="merge")
    steer.fit(X, y, sensitive_features=groups)
    assert len(steer.moments_.groups) == 108
    assert len(steer.groups_) == 68
    sizes = steer._fitted().model.weights
    assert sizes.sum() == len(y)
    assert sizes.min() >= 50
    steered = steer.transform(X, sensitive_features=groups)
    rare = (table["race"] == "Alaska Native").to_numpy()
    A, b = steer.maps_[("(small groups)",) * 3]
    np.testing.assert_allclose(steered[rare], X[rare] @ A.T + b, rtol=1e-4, atol=1e-3)
