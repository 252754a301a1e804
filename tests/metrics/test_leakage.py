"""What classifiers can still read of the group: known separations, weights, containers, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from fairsteer.metrics import group_leakage


def rows(shift: Any, n: int = 4000, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    y, group = rng.integers(0, 2, n), rng.choice(["a", "b"], n, p=[0.7, 0.3])
    return rng.normal(size=(n, 3)) + np.asarray(shift)[y][:, None] * (group == "b")[:, None], y, group


def test_the_advantage_of_two_gaussians_is_their_total_variation() -> None:
    shift = np.array([0.5, 1.5])  # in each of three features
    X, y, group = rows(shift)
    found = group_leakage(X, y, sensitive_features=group)
    expected = 2 * norm.cdf(np.sqrt(3) * shift / 2) - 1
    assert found.pairs == [(0, "a", "b"), (1, "a", "b")]
    assert (found.advantage.lower < expected).all()
    assert (expected < found.advantage.upper).all()
    np.testing.assert_allclose(found.auc, norm.cdf(np.sqrt(3) * shift / np.sqrt(2)), atol=0.03)
    assert found.largest.value == found.advantage.value[1]


@pytest.mark.slow
def test_groups_that_are_alike_leak_nothing() -> None:
    X, y, group = rows([0.0, 0.0])
    for estimator in ("linear", "boosting"):
        found = group_leakage(X, y, sensitive_features=group, estimator=estimator)
        assert (found.advantage.lower <= 0).all()
        assert found.largest.value < 0.08


def test_no_classifier_of_the_family_has_a_larger_gap() -> None:
    X, y, group = rows([0.8, 0.3])
    found = group_leakage(X, y, sensitive_features=group, estimator=LinearDiscriminantAnalysis())
    rng = np.random.default_rng(1)
    for direction in rng.normal(size=(200, 3)):
        called = X @ direction > rng.normal()
        gap = abs(called[(y == 0) & (group == "a")].mean() - called[(y == 0) & (group == "b")].mean())
        assert gap < found.advantage.upper[0]


def test_trees_see_what_lines_do_not() -> None:
    rng = np.random.default_rng(0)
    group = rng.choice(["a", "b"], 3000)
    X = np.where((group == "a")[:, None], rng.integers(0, 5, (3000, 2)), rng.integers(0, 5, (3000, 2)) + 0.0)
    X = X + np.where(group == "b", 0.01, 0.0)[:, None] * rng.choice([-1, 1], (3000, 2))  # off the integers
    linear, boosting = (group_leakage(X, sensitive_features=group, estimator=e) for e in ("linear", "boosting"))
    assert linear.largest.value < 0.1
    assert boosting.largest.lower > 0.9


def test_integer_weights_are_repetitions_for_the_rates() -> None:
    X, y, group = rows([0.5, 0.5], n=600)
    weight = np.where(group == "a", 3.0, 1.0)
    by_weight = group_leakage(X, y, sensitive_features=group, sample_weight=weight, estimator=GaussianNB())
    plain = group_leakage(X, y, sensitive_features=group, estimator=GaussianNB())
    np.testing.assert_allclose(by_weight.advantage.value, plain.advantage.value)  # the same for all rows of a group
    np.testing.assert_allclose(by_weight.rows, plain.rows)


def test_several_groups_are_compared_pair_by_pair_and_small_ones_left_out() -> None:
    rng = np.random.default_rng(0)
    group = rng.choice([1, 2, 3], 900)
    X = rng.normal(size=(900, 2)) + np.where(group == 3, 2.0, 0.0)[:, None]
    group[:4] = 4
    with pytest.warns(UserWarning, match=r"fewer than 10 rows .*group 4 \(4 rows\)"):
        found = group_leakage(pd.DataFrame(X, columns=["u", "v"]), sensitive_features=pd.Series(group))
    table = pd.DataFrame(found.to_dict())
    assert table[["class", "group", "other"]].to_numpy().tolist() == [[0, 1, 2], [0, 1, 3], [0, 2, 3]]
    assert table["advantage"].between(table["lower"], table["upper"]).all()
    assert table["advantage"][0] < 0.15 < 0.7 < table["advantage"][1:].min()
    assert "\n" not in repr(found)
    assert "3 comparisons" in repr(found)


def test_the_same_rows_give_the_same_numbers() -> None:
    X, y, group = rows([0.5, 0.5], n=400)
    first, second = (
        group_leakage(X, y, sensitive_features=group, estimator="boosting", n_jobs=jobs, cv=3) for jobs in (None, 2)
    )
    np.testing.assert_array_equal(first.advantage.value, second.advantage.value)


def test_rows_without_a_group_are_left_out() -> None:
    X, y, group = rows([0.5, 0.5], n=400)
    some = np.array(group, dtype=object)
    some[:10] = None
    with pytest.warns(UserWarning, match="10 of 400 rows have no group"):
        found = group_leakage(X, y, sensitive_features=some)
    rest = group_leakage(X[10:], y[10:], sensitive_features=group[10:])
    np.testing.assert_array_equal(found.advantage.value, rest.advantage.value)


def test_one_group_leaks_nothing_that_could_be_compared() -> None:
    found = group_leakage(np.ones((30, 1)), sensitive_features=["a"] * 30)
    assert found.pairs == []
    assert np.isnan(found.largest.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimator": "forest"}, "'linear' or 'boosting' or a classifier, not 'forest'"),
        ({"estimator": SVC()}, "no predict_proba"),
        ({"estimator": KNeighborsClassifier}, "instance"),
        ({"cv": 1}, "at least 2, not 1"),
        ({"confidence_level": 1.0}, "between 0 and 1, not 1.0"),
        ({"sample_weight": np.full(60, -1.0)}, "must not be negative"),
        ({"y": np.linspace(0, 1, 60)}, "continuous"),
        ({"sensitive_features": ["a", "b"] * 20}, "40 rows and X has 60"),
    ],
)
def test_refuses_with_a_sentence(change: Any, message: Any) -> None:
    arguments: dict[str, Any] = {"y": np.repeat([0, 1], 30), "sensitive_features": ["a", "b"] * 30, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        group_leakage(np.random.default_rng(0).normal(size=(60, 2)), arguments.pop("y"), **arguments)
