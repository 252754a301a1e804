"""Moments of subgroups: equal to the two-pass reference in every layout, mergeable, weighted, shrunk as in sklearn."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import covariance as sk

from benchmarks import problems, reference
from fairsteer.moments import SubgroupMoments

KINDS = ["tied", "full", "diagonal"]
K, G, D = 3, 2, 5


@functools.cache
def sample(n_rows: int = 400, n_features: Any = D, seed: int = 0) -> tuple[Any, Any, Any]:
    return problems.rows(n_rows, K, G, n_features, seed=seed)


def accumulate(
    X: Any, y: Any, a: Any, covariance: Any = "tied", sample_weight: Any = None, n_classes: Any = K, n_groups: Any = G
) -> Any:
    moments = SubgroupMoments(X.shape[1], classes=range(n_classes), groups=range(n_groups), covariance=covariance)
    return moments.update(X, y, a, sample_weight=sample_weight)


def assert_same(actual: Any, expected: Any, *, rtol: float = 1e-10, atol: float = 1e-10) -> None:
    np.testing.assert_allclose(actual.weights, expected.weights, rtol=rtol)
    np.testing.assert_allclose(actual.means, expected.means, rtol=rtol, atol=atol)
    np.testing.assert_allclose(actual.covariances, expected.covariances, rtol=rtol, atol=atol)


def relaid(X: Any, layout: Any, tmp_path: Path) -> Any:
    """The values of X, laid out otherwise."""
    n, d = X.shape
    if layout == "C":
        return np.ascontiguousarray(X)
    if layout == "F":
        return np.asfortranarray(X)
    if layout == "strided":
        base = np.full((2 * n, 3 * d), np.nan, dtype=X.dtype)
        base[::2, ::3] = X
        return base[::2, ::3]
    if layout == "strided columns first":
        base = np.full((3 * d, 2 * n), np.nan, dtype=X.dtype)
        base[::3, ::2] = X.T
        return base[::3, ::2].T
    if layout == "negative strides":
        return np.ascontiguousarray(X[::-1, ::-1])[::-1, ::-1]
    if layout == "read-only":
        copy = X.copy()
        copy.setflags(write=False)
        return copy
    X.tofile(tmp_path / "rows")
    return np.memmap(tmp_path / "rows", dtype=X.dtype, mode="r", shape=X.shape)


LAYOUTS = ["C", "F", "strided", "strided columns first", "negative strides", "read-only", "memmap"]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_dtype_gives_the_reference(layout: Any, dtype: Any, tmp_path: Path) -> None:
    X, y, a = sample()
    X = relaid(X.astype(dtype), layout, tmp_path)
    tolerance = 1e-10 if dtype == "float64" else 1e-5
    for kind in KINDS:
        expected = reference.moments(X, y, a, K, G, covariance=kind)
        assert_same(accumulate(X, y, a, kind), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_one_feature_one_row_and_one_wide_block(kind: Any) -> None:
    for n, d in [(1, 1), (1, 4), (7, 1), (3000, 2), (40, 300)]:
        X, y, a = problems.rows(n, K, G, d, seed=n)
        assert_same(accumulate(X, y, a, kind), reference.moments(X, y, a, K, G, covariance=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_at_all(kind: Any) -> None:
    moments = accumulate(np.empty((0, D)), np.empty(0, np.intp), np.empty(0, np.intp), kind)
    assert moments.weights.shape == (K, G)
    assert not moments.weights.any()
    assert not moments.means.any()
    assert not moments.covariances.any()


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8"])
def test_codes_of_any_integer_type(dtype: Any) -> None:
    X, y, a = sample()
    expected = reference.moments(X, y, a, K, G)
    assert_same(accumulate(X, y.astype(dtype), a.astype(dtype)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_negative_code_leaves_the_row_out(kind: Any) -> None:
    X, y, a = sample()
    y, a = y.copy(), a.copy()
    y[::7] = -1
    a[::5] = -2
    keep = (y >= 0) & (a >= 0)
    expected = reference.moments(X[keep], y[keep], a[keep], K, G, covariance=kind)
    assert_same(accumulate(X, y, a, kind), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_integer_weights_equal_repetition(kind: Any) -> None:
    X, y, a = sample()
    count = np.random.default_rng(1).integers(0, 4, len(X))
    repeated = accumulate(np.repeat(X, count, axis=0), np.repeat(y, count), np.repeat(a, count), kind)
    weighted = accumulate(X, y, a, kind, sample_weight=count.astype(float))
    assert_same(weighted, repeated)


@pytest.mark.parametrize("method", ["ledoit_wolf", "oas"])
@pytest.mark.parametrize("kind", KINDS)
def test_shrinkage_under_integer_weights_equals_repetition(kind: Any, method: Any) -> None:
    X, y, a = problems.rows(60, K, G, D, seed=3)
    count = np.random.default_rng(1).integers(1, 4, len(X))
    repeated = accumulate(np.repeat(X, count, axis=0), np.repeat(y, count), np.repeat(a, count), kind)
    weighted = accumulate(X, y, a, kind, sample_weight=count.astype(float))
    assert_same(weighted.shrink(method), repeated.shrink(method))


@pytest.mark.parametrize("kind", KINDS)
def test_zero_weight_equals_removal(kind: Any) -> None:
    X, y, a = sample()
    X = X.copy()
    weight = np.random.default_rng(2).uniform(0.1, 2, len(X))
    weight[::3] = 0
    X[::3] *= 1e6
    keep = weight > 0
    kept = accumulate(X[keep], y[keep], a[keep], kind, sample_weight=weight[keep])
    both = accumulate(X, y, a, kind, sample_weight=weight)
    assert_same(both, kept)
    assert_same(both.shrink("ledoit_wolf"), kept.shrink("ledoit_wolf"))


@pytest.mark.parametrize("n_features", [D, 80])  # short rows are added one by one, long ones several at a time
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_frequencies_in_means_and_covariances(kind: Any, n_features: Any) -> None:
    X, y, a = sample(n_features=n_features)
    weight = np.random.default_rng(2).uniform(0.1, 2, len(X))
    expected = reference.moments(X, y, a, K, G, sample_weight=weight, covariance=kind)
    assert_same(accumulate(X, y, a, kind, sample_weight=weight), expected)
    scaled = accumulate(X, y, a, kind, sample_weight=3.5 * weight)
    expected.weights *= 3.5
    assert_same(scaled, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_within_1e_5_of_float64(kind: Any) -> None:
    X, y, a = sample(3000, 24)
    X = X * 10.0 ** np.linspace(-2, 2, 24) + 30
    double = accumulate(X, y, a, kind)
    single = accumulate(X.astype(np.float32), y, a, kind)
    spread = X.std(axis=0)
    np.testing.assert_allclose(single.means / spread, double.means / spread, rtol=1e-5, atol=1e-5)
    scale = spread**2 if kind == "diagonal" else np.outer(spread, spread)
    difference = np.abs(single.covariances - double.covariances) / scale
    # The rows themselves were rounded by 1e-7 of their size.
    assert difference.max() < 1e-5 * max(1.0, np.abs(X / spread).max())


@pytest.mark.parametrize("kind", KINDS)
def test_an_offset_of_1e8_costs_no_digits(kind: Any) -> None:
    X, y, a = sample()
    X = X + 1e8
    exact = reference.moments(X - 1e8, y, a, K, G, covariance=kind)
    moments = accumulate(X[:150], y[:150], a[:150], kind)
    moments = moments.update(X[150:], y[150:], a[150:])
    np.testing.assert_allclose(moments.covariances, exact.covariances, rtol=1e-7, atol=1e-7)
    # A mean can be no better than the spacing of floats at 1e8, which is 1.5e-8.
    np.testing.assert_allclose(moments.means - 1e8, exact.means, atol=1e-7)
    near = accumulate(X - 1e8, y, a, kind).shrink("ledoit_wolf")
    # Merging two batches leaves the tied intensity with an error of relative size 1/n.
    np.testing.assert_allclose(moments.shrink("ledoit_wolf").covariances, near.covariances, rtol=2e-3, atol=2e-3)
    once = accumulate(X, y, a, kind).shrink("ledoit_wolf")
    np.testing.assert_allclose(once.covariances, near.covariances, rtol=1e-6, atol=1e-6)


# ---
# Merging
# ---
def fold(parts: Any, shape: Any) -> Any:
    if shape == "left":
        return functools.reduce(lambda one, two: one.merge(two), parts)
    if shape == "right":
        return functools.reduce(lambda one, two: two.merge(one), reversed(parts))
    return parts[0].merge(parts[1]).merge(parts[2].merge(parts[3]))


@pytest.mark.parametrize("shape", ["left", "right", "balanced"])
@pytest.mark.parametrize("kind", KINDS)
def test_merging_in_any_order_and_shape_equals_one_pass(kind: Any, shape: Any) -> None:
    X, y, a = sample()
    weight = np.random.default_rng(2).uniform(0.1, 2, len(X))
    bounds = [0, 3, 90, 91, 400]
    parts = [accumulate(X[i:j], y[i:j], a[i:j], kind, sample_weight=weight[i:j]) for i, j in itertools.pairwise(bounds)]
    whole = accumulate(X, y, a, kind, sample_weight=weight)
    for order in itertools.permutations(range(4)):
        assert_same(fold([parts[i] for i in order], shape), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_update_equals_merge_and_merge_changes_neither_side(kind: Any) -> None:
    X, y, a = sample()
    left, right = (
        accumulate(X[:100], y[:100], a[:100], kind),
        accumulate(X[100:], y[100:], a[100:], kind),
    )
    before = left.covariances.copy(), right.covariances.copy()
    merged = left.merge(right)
    np.testing.assert_array_equal(left.covariances, before[0])
    np.testing.assert_array_equal(right.covariances, before[1])
    assert_same(left.update(X[100:], y[100:], a[100:]), merged)


@pytest.mark.parametrize("method", ["ledoit_wolf", "oas"])
@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_shrinkage_of_merged_moments_equals_that_of_one_pass(kind: Any, method: Any) -> None:
    X, y, a = problems.rows(90, K, G, D, seed=3)
    parts = [accumulate(X[i::3], y[i::3], a[i::3], kind) for i in range(3)]
    merged = parts[2].merge(parts[0]).merge(parts[1])
    assert_same(merged.shrink(method), accumulate(X, y, a, kind).shrink(method))


def test_tied_ledoit_wolf_of_many_merged_batches_stays_near_that_of_one_pass() -> None:
    X, y, a = problems.rows(2000, K, G, 20, seed=3)
    whole = accumulate(X, y, a)
    parts = [accumulate(X[i::10], y[i::10], a[i::10]) for i in range(10)]
    merged = functools.reduce(lambda one, two: one.merge(two), parts)
    raw = whole.covariances
    full_step = np.linalg.norm(whole.shrink("ledoit_wolf").covariances - raw)
    error = merged.shrink("ledoit_wolf").covariances - whole.shrink("ledoit_wolf").covariances
    assert np.linalg.norm(error) < 0.02 * full_step


@pytest.mark.parametrize("kind", KINDS)
def test_merging_unites_labels(kind: Any) -> None:
    X, y, a = sample()
    classes, groups = np.array(["no", "yes", "maybe"]), [("f", 1), ("m", 2)]

    def part(rows: Any, class_codes: Any, group_codes: Any) -> Any:
        moments = SubgroupMoments(
            D,
            classes=[classes[k] for k in class_codes],
            groups=[groups[g] for g in group_codes],
            covariance=kind,
        )
        to_class = np.array([class_codes.index(k) if k in class_codes else -1 for k in range(K)])
        to_group = np.array([group_codes.index(g) if g in group_codes else -1 for g in range(G)])
        return moments.update(X[rows], to_class[y[rows]], to_group[a[rows]])

    first = part((y < 2) & (a == 0), [1, 0], [0])
    second = part((y > 0) & (a == 1), [1, 2], [1])
    merged = first.merge(second)
    assert sorted(merged.classes) == sorted(classes)
    assert sorted(merged.groups) == sorted(groups)
    seen = ((y < 2) & (a == 0)) | ((y > 0) & (a == 1))
    expected = reference.moments(X[seen], y[seen], a[seen], K, G, covariance=kind)
    klass = [list(merged.classes).index(label) for label in classes]
    group = [list(merged.groups).index(label) for label in groups]
    np.testing.assert_allclose(merged.weights[np.ix_(klass, group)], expected.weights)
    np.testing.assert_allclose(merged.means[np.ix_(klass, group)], expected.means, atol=1e-10)
    own = merged.covariances[group] if kind == "tied" else merged.covariances[np.ix_(klass, group)]
    np.testing.assert_allclose(own, expected.covariances, atol=1e-10)


def test_merging_needs_the_same_features_and_model() -> None:
    X, y, a = sample()
    with pytest.raises(ValueError, match=r"tied.*full|full.*tied"):
        accumulate(X, y, a, "tied").merge(accumulate(X, y, a, "full"))
    with pytest.raises(ValueError, match=r"5.*4|4.*5"):
        accumulate(X, y, a).merge(accumulate(X[:, :4], y, a))


# ---
# Shrinkage
# ---
ESTIMATORS = {"ledoit_wolf": sk.ledoit_wolf, "oas": sk.oas}


@pytest.mark.parametrize("method", list(ESTIMATORS))
@pytest.mark.parametrize(("n", "d"), [(12, 5), (6, 20), (300, 3), (40, 1)])
def test_shrinkage_of_one_cell_equals_sklearn(method: Any, n: Any, d: Any) -> None:
    X = np.random.default_rng(n).standard_normal((n, d)) * np.linspace(1, 3, d) + 5
    zeros = np.zeros(n, np.intp)
    expected, _ = ESTIMATORS[method](X)
    for kind in ["tied", "full"]:
        shrunk = accumulate(X, zeros, zeros, kind, n_classes=1, n_groups=1).shrink(method)
        np.testing.assert_allclose(np.squeeze(shrunk.covariances), np.squeeze(expected), rtol=1e-9)


@pytest.mark.parametrize("method", list(ESTIMATORS))
def test_shrinkage_of_full_cells_equals_sklearn_cell_by_cell(method: Any) -> None:
    X, y, a = problems.rows(90, K, G, D, seed=3)
    shrunk = accumulate(X, y, a, "full").shrink(method)
    for k, g in itertools.product(range(K), range(G)):
        expected, _ = ESTIMATORS[method](X[(y == k) & (a == g)])
        np.testing.assert_allclose(shrunk.covariances[k, g], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", list(ESTIMATORS))
def test_shrinkage_of_tied_groups_equals_sklearn_on_centred_rows(method: Any) -> None:
    X, y, a = problems.rows(90, K, G, D, seed=3)
    moments = accumulate(X, y, a, "tied")
    shrunk = moments.shrink(method)
    for g in range(G):
        centred = (X - moments.means[y, a])[a == g]
        expected, _ = ESTIMATORS[method](centred, assume_centered=True)
        np.testing.assert_allclose(shrunk.covariances[g], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [0.3, 5.0])
@pytest.mark.parametrize("method", list(ESTIMATORS))
@pytest.mark.parametrize("kind", ["tied", "full"])
def test_shrinkage_with_fractional_weights_equals_the_reference(kind: Any, method: Any, scale: Any) -> None:
    X, y, a = problems.rows(90, K, G, D, seed=3)
    weight = scale * np.random.default_rng(5).uniform(0.2, 1, len(X))
    moments = accumulate(X, y, a, kind, sample_weight=weight)
    intensity = reference.shrinkage_intensities(X, y, a, K, G, method, sample_weight=weight, covariance=kind)
    expected = reference.shrunk(moments.covariances, intensity)
    np.testing.assert_allclose(moments.shrink(method).covariances, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("intensity", [0, 0.0, 0.25, 1, 1.0])
def test_constant_shrinkage(intensity: Any) -> None:
    X, y, a = sample()
    for kind in ["tied", "full"]:
        moments = accumulate(X, y, a, kind)
        expected = sk.shrunk_covariance(moments.covariances, intensity)
        np.testing.assert_allclose(moments.shrink(intensity).covariances, expected, atol=1e-12)
    moments = accumulate(X, y, a, "diagonal")
    average = moments.covariances.mean(axis=-1, keepdims=True)
    expected = (1 - intensity) * moments.covariances + intensity * average
    np.testing.assert_allclose(moments.shrink(intensity).covariances, expected, atol=1e-12)


@pytest.mark.parametrize("method", list(ESTIMATORS))
def test_diagonal_shrinkage_draws_variances_together_and_keeps_their_sum(method: Any) -> None:
    X, y, a = problems.rows(60, K, G, D, seed=3)
    moments = accumulate(X, y, a, "diagonal")
    shrunk = moments.shrink(method).covariances
    np.testing.assert_allclose(shrunk.sum(axis=-1), moments.covariances.sum(axis=-1))
    assert (np.ptp(shrunk, axis=-1) < np.ptp(moments.covariances, axis=-1)).all()
    assert (shrunk > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_shrink_none_changes_nothing_and_shrink_never_changes_its_object(kind: Any) -> None:
    X, y, a = sample()
    moments = accumulate(X, y, a, kind)
    before = moments.covariances.copy()
    np.testing.assert_array_equal(moments.shrink(None).covariances, before)
    moments.shrink("oas")
    moments.shrink(0.5)
    np.testing.assert_array_equal(moments.covariances, before)


@pytest.mark.parametrize("estimator", [sk.EmpiricalCovariance(), sk.ShrunkCovariance(shrinkage=0.3), sk.LedoitWolf()])
def test_an_sklearn_covariance_estimator(estimator: Any) -> None:
    X, y, a = problems.rows(90, K, G, D, seed=3)
    moments = accumulate(X, y, a, "full")
    shrunk = moments.shrink(estimator, X=X, y_codes=y, group_codes=a)
    for k, g in itertools.product(range(K), range(G)):
        expected = estimator.fit(X[(y == k) & (a == g)]).covariance_
        np.testing.assert_allclose(shrunk.covariances[k, g], expected, rtol=1e-9, atol=1e-12)
    moments = accumulate(X, y, a, "tied")
    shrunk = moments.shrink(estimator, X=X, y_codes=y, group_codes=a)
    for g in range(G):
        expected = estimator.fit((X - moments.means[y, a])[a == g]).covariance_
        np.testing.assert_allclose(shrunk.covariances[g], expected, rtol=1e-9, atol=1e-12)


def test_an_estimator_needs_the_rows() -> None:
    X, y, a = sample()
    with pytest.raises(ValueError, match="rows"):
        accumulate(X, y, a).shrink(sk.LedoitWolf())


@pytest.mark.parametrize("shrinkage", [-0.1, 1.5, "ledoit-wolf", float("nan"), object()])
def test_shrinkage_outside_the_contract_is_refused(shrinkage: Any) -> None:
    X, y, a = sample()
    with pytest.raises((ValueError, TypeError), match="shrinkage"):
        accumulate(X, y, a).shrink(shrinkage)


# ---
# Statistics in, densities out
# ---
@pytest.mark.parametrize("kind", KINDS)
def test_from_statistics_holds_what_it_was_given(kind: Any) -> None:
    data = problems.statistics(K, G, D, covariance=kind, seed=1)
    moments = SubgroupMoments.from_statistics(
        data.weights,
        data.means,
        data.covariances,
        classes=["a", "b", "c"],
        groups=[("x", 0), ("y", 1)],
    )
    assert moments.covariance == kind
    assert moments.n_features == D
    assert list(moments.classes) == ["a", "b", "c"]
    assert list(moments.groups) == [("x", 0), ("y", 1)]
    assert_same(moments, data, rtol=1e-14, atol=1e-15)
    kept = data.means.copy()
    data.means += 1
    np.testing.assert_array_equal(moments.means, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_from_statistics_labels_default_to_positions(kind: Any) -> None:
    data = problems.statistics(K, G, D, covariance=kind, seed=1)
    moments = SubgroupMoments.from_statistics(data.weights, data.means, data.covariances)
    assert list(moments.classes) == [0, 1, 2]
    assert list(moments.groups) == [0, 1]


def test_symmetry_tells_ambiguous_shapes_apart() -> None:
    # (K, G, d) = (2, 2, 2) variances and (G, d, d) = (2, 2, 2) matrices look alike but for symmetry.
    matrices = np.array([[[1.0, 0.5], [0.5, 1.0]], [[2.0, 0.1], [0.1, 3.0]]])
    moments = SubgroupMoments.from_statistics(np.ones((2, 2)), np.zeros((2, 2, 2)), matrices)
    assert moments.covariance == "tied"
    variances = np.array([[[1.0, 0.5], [0.7, 1.0]], [[2.0, 0.1], [0.3, 3.0]]])
    moments = SubgroupMoments.from_statistics(np.ones((2, 2)), np.zeros((2, 2, 2)), variances)
    assert moments.covariance == "diagonal"
    # Variances that happen to be symmetric, or too small to be told apart: who knows the model says it.
    for alike in (matrices, np.array([[[1e-8, 2e-8], [3e-8, 1e-8]]] * 2)):
        given: dict[str, Any] = {"covariance": "diagonal"}
        moments = SubgroupMoments.from_statistics(np.ones((2, 2)), np.zeros((2, 2, 2)), alike, **given)
        assert moments.covariance == "diagonal"
        np.testing.assert_allclose(moments.covariances, alike)


@pytest.mark.parametrize("kind", KINDS)
def test_log_joint_is_log_weight_plus_log_density(kind: Any) -> None:
    data = problems.statistics(K, G, D, covariance=kind, seed=1)
    data.weights[1, 1] = 0
    moments = SubgroupMoments.from_statistics(data.weights, data.means, data.covariances)
    X = np.random.default_rng(0).standard_normal((7, D))
    actual = moments.log_joint(X)
    assert actual.shape == (7, K, G)
    q = data.weights / data.weights.sum()
    for k, g in itertools.product(range(K), range(G)):
        if q[k, g] == 0:
            assert np.all(actual[:, k, g] == -np.inf)
            continue
        cov = reference.cell_covariance(data.covariances, kind, k, g)
        expected = np.log(q[k, g]) + reference.gaussian_log_density(X, data.means[k, g], cov)
        np.testing.assert_allclose(actual[:, k, g], expected, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_cells_are_zeros(kind: Any) -> None:
    X, y, a = sample()
    keep = ~((y == 1) & (a == 0))
    moments = accumulate(X[keep], y[keep], a[keep], kind)
    assert moments.weights[1, 0] == 0
    assert not moments.means[1, 0].any()
    if kind != "tied":
        assert not moments.covariances[1, 0].any()
    expected = reference.moments(X[keep], y[keep], a[keep], K, G, covariance=kind)
    assert_same(moments, expected)
    for method in ["ledoit_wolf", "oas", 0.5]:
        assert np.isfinite(moments.shrink(method).covariances).all()


def test_effective_rank_counts_the_directions_that_were_seen() -> None:
    X, y, a = sample(400, 6)
    X = X.copy()
    X[:, 3] = 2.0
    X[:, 5] = X[:, 0] - X[:, 1]
    rank = np.asarray(accumulate(X, y, a, "tied").effective_rank)
    assert (rank == 4).all()


def test_subgroup_table_names_every_label_and_weight() -> None:
    data = problems.statistics(K, G, D, seed=1)
    weights = np.array([[1200, 0], [3, 45], [678, 9]], float)
    moments = SubgroupMoments.from_statistics(
        weights, data.means, data.covariances, classes=["low", "mid", "high"], groups=["her", "him"]
    )
    table = moments.subgroup_table()
    for text in ["low", "mid", "high", "her", "him", "1200", "3", "45", "678", "9", "0"]:
        assert text in table
    lines = [line for line in table.splitlines() if "low" in line]
    assert len(lines) == 1
    assert "1200" in lines[0]


# ---
# Refusals
# ---
def test_update_refuses_what_does_not_fit() -> None:
    X, y, a = sample()
    moments = SubgroupMoments(D, classes=range(K), groups=range(G))
    with pytest.raises(ValueError, match=r"4.*5|5.*4"):
        moments.update(X[:, :4], y, a)
    with pytest.raises(ValueError, match=r"399|400"):
        moments.update(X, y[:-1], a)
    with pytest.raises(ValueError, match=r"399|400"):
        moments.update(X, y, a[:-1])
    with pytest.raises(ValueError, match=r"399|400"):
        moments.update(X, y, a, sample_weight=np.ones(399))
    with pytest.raises(ValueError, match=r"7.*3|3.*7"):
        moments.update(X, np.where(np.arange(400) == 9, 7, y), a)
    with pytest.raises(ValueError, match=r"2"):
        moments.update(X, y, np.where(np.arange(400) == 9, G, a))
    with pytest.raises((ValueError, TypeError), match="integer"):
        moments.update(X, y + 0.5, a)
    with pytest.raises(ValueError, match="negative"):
        moments.update(X, y, a, sample_weight=np.where(np.arange(400) == 9, -1.0, 1.0))
    with pytest.raises(ValueError, match=r"(?i)nan|finite"):
        moments.update(X, y, a, sample_weight=np.where(np.arange(400) == 9, np.nan, 1.0))
    assert not moments.weights.any()


def test_from_statistics_refuses_what_does_not_fit() -> None:
    data = problems.statistics(K, G, D, covariance="full", seed=1)
    make: Any = SubgroupMoments.from_statistics
    with pytest.raises(ValueError, match="weights"):
        make(-data.weights, data.means, data.covariances)
    with pytest.raises(ValueError, match="weights"):
        make(data.weights * np.nan, data.means, data.covariances)
    with pytest.raises(ValueError, match="weights"):
        make(data.weights[0], data.means, data.covariances)
    with pytest.raises(ValueError, match="means"):
        make(data.weights, data.means[:2], data.covariances)
    with pytest.raises(ValueError, match="covariances"):
        make(data.weights, data.means, data.covariances[..., :4])
    with pytest.raises(ValueError, match="classes"):
        make(data.weights, data.means, data.covariances, classes=["a", "b"])
    with pytest.raises(ValueError, match="groups"):
        make(data.weights, data.means, data.covariances, groups=["a", "a"])
    with pytest.raises(ValueError, match=r"covariances must have shape .* \(tied\), not"):
        make(data.weights, data.means, data.covariances, covariance="tied")
    with pytest.raises(
        ValueError, match="covariance must be one of 'tied', 'full', 'diagonal' or None, not 'spherical'"
    ):
        make(data.weights, data.means, data.covariances, covariance="spherical")
    lopsided = data.covariances.copy()
    lopsided[0, 0, 0, 1] += 1
    with pytest.raises(ValueError, match="symmetric"):
        make(data.weights, data.means, lopsided)


def test_the_accumulator_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="covariance"):
        accumulate(*sample(), "spherical")
    with pytest.raises(ValueError, match="n_features"):
        SubgroupMoments(0, classes=[0, 1], groups=[0])
    with pytest.raises(ValueError, match="classes"):
        SubgroupMoments(D, classes=[0, 0], groups=[0])
