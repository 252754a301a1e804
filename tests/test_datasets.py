"""Rows that are drawn have the distribution that was asked for, and what is out of range is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets as sklearn_datasets

from fairsteer import SubgroupMoments, nearest_ideal
from fairsteer.datasets import load_diabetes, make_biased_groups


def test_rows_have_the_distribution_that_is_said() -> None:
    known = make_biased_groups(
        60_000, 3, classes=["a", "b", "c"], groups=["f", "m", "x"], shift=2.0, spread=1.5, rotation=60.0,
        base_rates=[[0.2, 0.3, 0.5], [0.6, 0.2, 0.2], [0.1, 0.8, 0.1]], group_shares=[3, 2, 1], random_state=0,
        return_X_y=False,
    )  # fmt: skip
    for k, label in enumerate(known.classes):
        for a, group in enumerate(known.groups):
            own = known.X[(known.y == label) & (known.sensitive_features == group)]
            assert len(own) / len(known.X) == pytest.approx(known.weights[k, a], abs=0.006)
            np.testing.assert_allclose(own.mean(axis=0), known.means[k, a], atol=0.15)
            np.testing.assert_allclose(np.cov(own.T), known.covariances[a], atol=0.2)
    assert known.weights.sum() == pytest.approx(1)
    np.testing.assert_array_equal(known.y, known.y_unbiased)


@pytest.mark.parametrize("n_classes", [1, 2, 3, 5])
def test_classes_are_as_far_apart_as_asked(n_classes: int) -> None:
    means = make_biased_groups(5, 4, classes=n_classes, class_sep=3.0, random_state=0, return_X_y=False).means[:, 0]
    apart = np.linalg.norm(means[:, None] - means, axis=2)
    np.testing.assert_allclose(apart[~np.eye(n_classes, dtype=bool)], 3.0)
    np.testing.assert_allclose(means.mean(axis=0), 0, atol=1e-12)


def test_groups_differ_by_shift_spread_and_angle() -> None:
    one = make_biased_groups(5, 4, shift=1.5, spread=2.0, rotation=90.0, random_state=0, return_X_y=False)
    centre = one.means.mean(axis=0)
    assert np.linalg.norm(centre[1] - centre[0]) == pytest.approx(1.5)
    np.testing.assert_allclose(one.covariances, [np.eye(4), 4 * np.eye(4)], atol=1e-12)
    first, last = one.means[1] - one.means[0]
    assert first @ last == pytest.approx(0, abs=1e-12)
    assert np.linalg.norm(last) == pytest.approx(4.0)


def test_one_affine_map_a_group_makes_it_ideal() -> None:
    known = make_biased_groups(5, 3, groups=3, spread=0.5, rotation=45.0, random_state=0, return_X_y=False)
    moments = SubgroupMoments.from_statistics(known.weights, known.means, known.covariances)
    assert nearest_ideal(moments).kl_divergence == pytest.approx(0, abs=1e-9)


def test_label_bias_relabels_the_last_class_of_the_last_group_alone() -> None:
    known = make_biased_groups(20_000, groups=["f", "m"], label_bias=0.3, random_state=0, return_X_y=False)
    changed = known.y != known.y_unbiased
    at_risk = (known.y_unbiased == 1) & (known.sensitive_features == "m")
    assert not changed[~at_risk].any()
    assert changed[at_risk].mean() == pytest.approx(0.3, abs=0.02)
    fair = make_biased_groups(20_000, groups=["f", "m"], random_state=0)
    np.testing.assert_array_equal(known.X, fair[0])
    each = make_biased_groups(20_000, label_bias=[0.2, 0.0], random_state=0, return_X_y=False)
    assert set(each.sensitive_features[each.y != each.y_unbiased]) == {0}


def test_a_seed_fixes_the_rows() -> None:
    for one, same in zip(*(make_biased_groups(50, random_state=seed) for seed in (3, 3)), strict=True):
        np.testing.assert_array_equal(one, same)
    assert (make_biased_groups(50, random_state=3)[0] != make_biased_groups(50, random_state=4)[0]).any()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n_samples": 0}, "n_samples must be a whole number"),
        ({"n_features": 2.5}, "n_features must be a whole number"),
        ({"classes": 6}, "n_features must be at least 5 with 6 classes"),
        ({"n_features": 1, "rotation": 10.0}, "n_features must be at least 2"),
        ({"groups": ["a", "a"]}, "groups must be a number of labels or different labels"),
        ({"classes": []}, "classes must be"),
        ({"spread": 0.0}, "spread must be a finite number above 0"),
        ({"shift": np.nan}, "shift must be a finite number"),
        ({"base_rates": [0.2, 1.2]}, "base_rates must be"),
        ({"base_rates": [0.2]}, "base_rates must be"),
        ({"base_rates": [[0.2, 0.2], [0.5, 0.5]]}, "rows that sum to 1"),
        ({"group_shares": [1, -1]}, "group_shares must be 2 numbers"),
        ({"label_bias": 1.5}, "label_bias must be"),
        ({"label_bias": [0.1, 0.1, 0.1]}, "label_bias must be"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused_by_name(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_biased_groups(**wrong)


def test_diabetes_are_the_rows_of_scikit_learn() -> None:
    plain = sklearn_datasets.load_diabetes(scaled=False)
    loaded, framed = load_diabetes(), load_diabetes(as_frame=True)
    assert loaded.data.shape == (442, 9)
    assert "sex" not in loaded.feature_names
    assert isinstance(framed.data, pd.DataFrame)
    np.testing.assert_array_equal(framed.data.to_numpy(), loaded.data)
    np.testing.assert_array_equal(loaded.sensitive_features, plain.data[:, 1])
    np.testing.assert_array_equal(loaded.target, plain.target > np.median(plain.target))
    np.testing.assert_array_equal(framed.sensitive_features, loaded.sensitive_features)
    parts = (loaded.data, loaded.target, loaded.sensitive_features)
    for one, other in zip(load_diabetes(return_X_y=True), parts, strict=True):
        np.testing.assert_array_equal(one, other)
