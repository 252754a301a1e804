"""Monotone maps: distributions that agree, values that occur, tails, inverses, chance, order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fairsteer.transformer._monotone import MAX_VALUES, MonotoneMaps, _knots


def fitted(X: Any, y: Any, group: Any, *, classes: Any = (0.5, 0.5), weight: Any = None, **more: Any) -> Any:
    shares = np.bincount(group, weight) / (len(group) if weight is None else np.sum(weight))
    return MonotoneMaps.fit(X, y, group, weight, class_weights=np.array(classes, float), group_shares=shares, **more)


def integers(n: int = 4000, seed: int = 0) -> tuple[Any, Any, Any]:
    """A count with a larger mean in group 1, a flag, a number; classes differ, and so do the groups' shares of them."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, n)
    y = (rng.random(n) < np.where(group == 1, 0.7, 0.3)).astype(int)
    count = rng.poisson(3 + 2 * y + 3 * group)
    return np.column_stack([count, rng.random(n) < 0.3, rng.permutation(n)]).astype(float), y, group


def distance(values: Any, y: Any, group: Any, classes: Any) -> float:
    """Largest difference of the groups' distribution functions, the classes weighted alike in both."""
    grid, steps = np.unique(values), []
    for a in (0, 1):
        parts = [(values[(group == a) & (y == k)][:, None] <= grid).mean(axis=0) for k in range(len(classes))]
        steps.append(np.dot(classes, parts))
    return float(np.abs(steps[0] - steps[1]).max())


def test_groups_have_one_distribution_when_classes_weigh_alike() -> None:
    X, y, group = integers()
    U, moved = fitted(X, y, group).apply(X, group)
    assert moved.all()
    assert distance(X[:, 0], y, group, (0.5, 0.5)) > 0.4
    assert distance(U[:, 0], y, group, (0.5, 0.5)) < 0.02
    # The mean is that of the average of the groups' quantile functions, but for rounding, which prefers no direction.
    means = [[X[(y == k) & (group == a), 0].mean() for k in (0, 1)] for a in (0, 1)]
    after = [[U[(y == k) & (group == a), 0].mean() for k in (0, 1)] for a in (0, 1)]
    np.testing.assert_allclose(np.mean(after, axis=1), np.mean(means), atol=0.05)


def test_base_rates_alone_move_nothing() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, 20_000)
    y = (rng.random(20_000) < np.where(group == 1, 0.7, 0.2)).astype(int)
    X = rng.poisson(2 + 6 * y)[:, None].astype(float)
    raw, standardised = (fitted(X, labels, group, classes=c) for labels, c in ((0 * y, (1.0,)), (y, (0.45, 0.55))))
    assert np.abs(standardised.apply(X, group)[0] - X).mean() < 0.02
    assert np.abs(raw.apply(X, group)[0] - X).mean() > 1


def test_one_class_alone_can_count() -> None:
    X, y, group = integers()
    U, _ = fitted(X, y, group, classes=(0, 1)).apply(X, group)
    assert distance(U[:, 0], y, group, (0, 1)) < 0.02 < 0.3 < distance(X[:, 0], y, group, (0, 1))


def test_integers_stay_on_values_that_occur_and_flags_stay() -> None:
    X, y, group = integers()
    maps = fitted(X, y, group, min_distinct=3)
    U, _ = maps.apply(X, group)
    assert maps.discrete.tolist() == [True, True, False]
    assert set(np.unique(U[:, 0])) <= set(np.unique(X[:, 0]))
    np.testing.assert_array_equal(U[:, 1], X[:, 1])
    # Between values and beyond them integers stay integers.
    some = fitted(X[X[:, 0] % 2 == 0], y[X[:, 0] % 2 == 0], group[X[:, 0] % 2 == 0])
    odd = np.column_stack([np.arange(-5, 60), np.zeros(65), np.arange(65)])
    out, _ = some.apply(odd, np.ones(65, dtype=int))
    np.testing.assert_array_equal(out[:, 0] % 1, 0)


@pytest.mark.parametrize("kind", ["integers", "normal"])
def test_maps_never_decrease_and_tails_move_as_the_last_value(kind: Any) -> None:
    rng = np.random.default_rng(0)
    X, y, group = integers()
    if kind == "normal":
        X = rng.normal(size=(4000, 1)) * np.where(group == 1, 2, 1)[:, None] + group[:, None]
    maps = fitted(X, y, group)
    grid = np.linspace(X[:, 0].min() - 5, X[:, 0].max() + 5, 3001)
    for a in (0, 1):
        out, _ = maps.apply(np.column_stack([grid] * X.shape[1]), np.full(3001, a))
        assert (np.diff(out[:, 0]) >= -1e-12).all()
        np.testing.assert_allclose(np.diff(out[[0, 1, -2, -1], 0])[[0, 2]], np.diff(grid)[0])


def test_a_normal_feature_moves_as_its_quantiles_do() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 20_000)
    X = (rng.normal(size=40_000) * np.where(group == 1, 3, 1) + 2 * group)[:, None]
    maps = fitted(X, 0 * group, group, classes=(1.0,))
    assert len(maps.values) <= MAX_VALUES
    U, _ = maps.apply(X, group)
    inner = np.abs(X[:, 0] - 2 * group) < 2 * np.where(group == 1, 3, 1)
    expected = (X[:, 0] - 2 * group) / np.where(group == 1, 3, 1) * 2 + 1  # the average of both normals' quantiles
    assert np.abs(U[:, 0] - expected)[inner].max() < 0.15


def test_the_reference_stays_and_the_others_take_its_distribution() -> None:
    X, y, group = integers()
    maps = fitted(X, y, group, reference=0)
    U, moved = maps.apply(X, group)
    np.testing.assert_array_equal(U[group == 0], X[group == 0])
    np.testing.assert_array_equal(moved, group == 1)
    assert distance(U[:, 0], y, group, (0.5, 0.5)) < 0.02


def test_flags_move_where_asked_by_the_rows_own_bits() -> None:
    X, y, group = integers()
    X[:, 1] = np.random.default_rng(1).random(len(X)) < np.where(group == 1, 0.6, 0.2)
    shares = np.bincount(group) / len(group)
    expected = shares @ [np.mean([X[(y == k) & (group == a), 1].mean() for k in (0, 1)]) for a in (0, 1)]
    maps = fitted(X, y, group)
    U, _ = maps.apply(X, group)
    for a in (0, 1):
        rate = np.mean([U[(y == k) & (group == a), 1].mean() for k in (0, 1)])
        assert rate == pytest.approx(expected, abs=0.03)
    # Each row goes its way whatever the others are, and so do rows that are equal.
    again, _ = maps.apply(np.repeat(X[:50], 3, axis=0), np.repeat(group[:50], 3))
    np.testing.assert_array_equal(again, np.repeat(U[:50], 3, axis=0))
    # Where rows of one group are sent does not depend on where those of another are.
    np.testing.assert_array_less(U[group == 1, 1], X[group == 1, 1] + 0.5)
    np.testing.assert_array_less(X[group == 0, 1], U[group == 0, 1] + 0.5)


def test_features_of_few_values_stay_unless_asked() -> None:
    X, y, group = integers()
    X[:, 1] = group
    for fewest, stays in ((2, False), (3, True)):
        U, _ = fitted(X, y, group, min_distinct=fewest).apply(X, group)
        assert (U[:, 1] == X[:, 1]).all() == stays
        assert (U[:, 0] != X[:, 0]).any()


def test_many_values_of_few_rows_count_though_no_quantile_meets_them() -> None:
    rng = np.random.default_rng(0)
    group, x = rng.integers(0, 2, 200_000), np.zeros(200_000)
    some = rng.random(len(x)) < 0.01
    x[some] = rng.normal(size=some.sum()) + 5 * group[some]
    assert len(np.unique(x)) > MAX_VALUES > 50 > len(_knots(x, np.ones(len(x)))[0])
    assert fitted(x[:, None], 0 * group, group, classes=(1.0,), min_distinct=50).moving.any()


def test_values_of_many_rows_among_many_values_are_spread() -> None:
    """As an income is that most do not have: trees find no value that one group alone has."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, 8000)
    income = np.where(rng.random(8000) < np.where(group == 1, 0.7, 0.4), 0, np.exp(rng.normal(size=8000)))
    X = np.column_stack([income, rng.normal(size=8000)])
    maps = fitted(X, 0 * group, group, classes=(1.0,))
    assert not maps.discrete.any()
    U, _ = maps.apply(X, group)
    assert distance(X[:, 0], 0 * group, group, (1.0,)) > 0.25
    assert distance(U[:, 0], 0 * group, group, (1.0,)) < 0.03
    # Alone, most rows are the same: they stay where their middle is, which is no income here.
    alone, _ = fitted(X[:, :1], 0 * group, group, classes=(1.0,)).apply(X[:, :1], group)
    assert (alone[income == 0] == 0).all()


def test_what_chance_makes_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    still = 0
    for _ in range(50):
        group, X = rng.integers(0, 2, 60), rng.integers(0, 8, (60, 1)).astype(float)
        still += not fitted(X, 0 * group, group, classes=(1.0,)).moves.any()
    assert still > 25
    group = rng.integers(0, 2, 60)
    assert fitted(rng.integers(0, 8, (60, 1)) + 6.0 * group[:, None], 0 * group, group, classes=(1.0,)).moves.all()


def test_weights_are_repetitions_and_the_order_of_rows_is_nothing() -> None:
    X, y, group = integers(300)
    weight = np.random.default_rng(1).integers(1, 4, 300).astype(float)
    repeated = [np.repeat(part, weight.astype(int), axis=0) for part in (X, y, group)]
    by_weight, by_rows = fitted(X, y, group, weight=weight), fitted(*repeated)
    for name in ("values", "lower", "upper", "common_values", "common_lower", "common_upper", "moving"):
        np.testing.assert_allclose(getattr(by_weight, name), getattr(by_rows, name), atol=1e-12)
    order = np.random.default_rng(2).permutation(300)
    shuffled = fitted(X[order], y[order], group[order], weight=weight[order])
    for name in ("common_values", "common_upper"):
        np.testing.assert_allclose(getattr(shuffled, name), getattr(by_weight, name), atol=1e-12)


def test_names_of_groups_are_nothing() -> None:
    X, y, group = integers()
    one, other = fitted(X, y, group).apply(X, group)[0], fitted(X, y, 1 - group).apply(X, 1 - group)[0]
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_keep_their_type(dtype: Any) -> None:
    X, y, group = integers(400)
    out, _ = fitted(X.astype(dtype), y, group).apply(X.astype(dtype), group)
    assert out.dtype == dtype
    expected, _ = fitted(X, y, group).apply(X, group)
    np.testing.assert_array_equal(out[:, :2], expected[:, :2])
    np.testing.assert_allclose(out[:, 2], expected[:, 2], rtol=2 * np.finfo(dtype).eps)


def test_the_inverse_brings_back_what_no_other_value_became() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 3000)
    X = (rng.normal(size=6000) + group)[:, None]
    maps = fitted(X, 0 * group, group, classes=(1.0,))
    U, _ = maps.apply(X, group)
    back, _ = maps.inverse(["a", "b"]).apply(U, group)
    np.testing.assert_allclose(back, X, atol=1e-8)
    X, y, group = integers()
    maps = fitted(X, y, group)
    U, _ = maps.apply(X, group)
    back, _ = maps.inverse(["a", "b"]).apply(U, group)
    assert set(np.unique(back[:, 0])) <= set(np.unique(X[:, 0]))
    assert np.abs(back - X)[:, 0].max() <= 2
    assert (back == X)[:, 0].mean() > 0.7
    np.testing.assert_allclose(back[:, 2], X[:, 2], atol=1e-8)
    with pytest.raises(ValueError, match=r"strength 0 and 1, not at 0\.5"):
        maps(0.5).inverse(["a", "b"])


def test_strength_goes_part_of_the_way_and_inferred_groups_are_weighted() -> None:
    X, y, group = integers(400)
    maps = fitted(X, y, group)
    full, _ = maps.apply(X, group)
    half, _ = maps(0.5).apply(X, group)
    np.testing.assert_allclose(half, (X + full) / 2)
    none, moved = maps(0.0).apply(X, group)
    np.testing.assert_array_equal(none, X)
    assert not moved.any()
    mixed, _ = maps.apply(X, np.full(400, -1), lambda rows: np.tile([0.25, 0.75], (len(rows), 1)))
    one, other = (maps.apply(X, np.full(400, a))[0] for a in (0, 1))
    np.testing.assert_allclose(mixed, 0.25 * one + 0.75 * other)


def test_a_column_of_one_value_and_a_class_that_a_group_lacks() -> None:
    X, y, group = integers(400)
    X[:, 1] = 7.0
    some = (y == 1) | (group == 0)
    maps = fitted(X[some], y[some], group[some])
    U, _ = maps.apply(X, group)
    np.testing.assert_array_equal(U[:, 1], 7.0)
    assert np.isfinite(U).all()


@pytest.mark.parametrize(
    "column",
    [
        np.array([3.0, 1.0, 3.0, 2.0]),
        np.array([0.5, 2.5, 1.5, 0.5]),
        np.array([0.1, 0.3, 0.2, 0.1]),
        np.array([7.0]),
        np.array([-1e300, 1e300, 0.0]),
        np.round(np.random.default_rng(0).normal(size=5000), 2),
    ],
)
def test_values_that_occur(column: Any) -> None:
    found, inverse, n_distinct = _knots(column, np.ones(len(column)))
    expected = np.unique(column, return_inverse=True)
    assert n_distinct == len(found) <= MAX_VALUES
    np.testing.assert_array_equal(found, expected[0])
    np.testing.assert_array_equal(inverse, expected[1])


def test_quantiles_of_many_values() -> None:
    rng = np.random.default_rng(0)
    column, weight = rng.permutation(20_000) / 3, rng.integers(1, 4, 20_000).astype(float)
    found, inverse, n_distinct = _knots(column, weight)
    assert n_distinct == 20_000
    assert len(found) == MAX_VALUES
    assert np.isin(found, column).all()
    np.testing.assert_array_equal(inverse, np.searchsorted(found, column, side="right") - 1)
    between = np.bincount(inverse, weight) / weight.sum()
    assert between.max() < 2 / MAX_VALUES
