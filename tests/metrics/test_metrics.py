"""The gaps equal fairlearn's on binary input, mean what they say for K classes, and refuse what they cannot compare."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairsteer import metrics

DIFFERENCES = [
    metrics.demographic_parity_difference,
    metrics.equal_opportunity_difference,
    metrics.equalized_odds_difference,
]


def _random_labels(seed: Any, *, n: int = 400, n_classes: int = 2, n_groups: int = 3) -> Any:
    rng = np.random.default_rng(seed)
    groups = rng.choice([f"g{a}" for a in range(n_groups)], size=n)
    y_true = rng.integers(n_classes, size=n)
    y_pred = np.where(rng.random(n) < 0.6, y_true, rng.integers(n_classes, size=n))
    return y_true, y_pred, groups, rng.exponential(size=n)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda f: f.__name__)
def test_equals_fairlearn_on_two_classes(difference: Any, weighted: Any) -> None:
    fairlearn = pytest.importorskip("fairlearn.metrics")
    for seed in range(5):
        y_true, y_pred, groups, weight = _random_labels(seed)
        arguments = {"sensitive_features": groups, "sample_weight": weight if weighted else None}
        expected = getattr(fairlearn, difference.__name__)(y_true, y_pred, **arguments)
        assert difference(y_true, y_pred, **arguments) == pytest.approx(expected, abs=1e-12)


def test_equals_fairlearn_on_intersections() -> None:
    fairlearn = pytest.importorskip("fairlearn.metrics")
    y_true, y_pred, groups, _ = _random_labels(7)
    both = pd.DataFrame({"a": groups, "b": np.arange(len(groups)) % 2})
    for difference in DIFFERENCES:
        expected = getattr(fairlearn, difference.__name__)(y_true, y_pred, sensitive_features=both)
        assert difference(y_true, y_pred, sensitive_features=both) == pytest.approx(expected, abs=1e-12)


def test_group_metrics_equals_fairlearn_metric_frame() -> None:
    fairlearn = pytest.importorskip("fairlearn.metrics")
    y_true, y_pred, groups, _ = _random_labels(3)
    table = metrics.group_metrics(y_true, y_pred, sensitive_features=groups)
    names = ["count", "selection_rate", "true_positive_rate", "false_positive_rate"]
    frame = fairlearn.MetricFrame(
        metrics={name: getattr(fairlearn, name) for name in names},
        y_true=y_true,
        y_pred=y_pred,
        sensitive_features=groups,
    )
    np.testing.assert_array_equal(table["group"], frame.by_group.index)
    for name in names:
        np.testing.assert_allclose(table[name], frame.by_group[name].to_numpy(dtype=float), atol=1e-12)
    assert list(pd.DataFrame(table)["accuracy"]) == pytest.approx(
        [(y_true == y_pred)[groups == g].mean() for g in table["group"]]
    )


def _by_hand(y_true: Any, y_pred: Any, groups: Any, *, given: Any) -> Any:
    """Largest gap over (true class or nothing, predicted class) by plain loops."""
    gaps = []
    for k in given:
        for c in np.unique(y_true):
            rows = slice(None) if k is None else y_true == k
            rates = [(y_pred[rows] == c)[groups[rows] == g].mean() for g in np.unique(groups)]
            gaps.append(((k, c), max(rates) - min(rates)))
    return dict(gaps)


def test_many_classes_take_the_largest_gap_over_classes() -> None:
    y_true, y_pred, groups, _ = _random_labels(11, n=3000, n_classes=4)
    classes = np.unique(y_true)
    parity = _by_hand(y_true, y_pred, groups, given=[None])
    odds = _by_hand(y_true, y_pred, groups, given=classes)
    assert metrics.demographic_parity_difference(y_true, y_pred, sensitive_features=groups) == pytest.approx(
        max(parity.values())
    )
    assert metrics.equal_opportunity_difference(y_true, y_pred, sensitive_features=groups) == pytest.approx(
        max(odds[k, k] for k in classes)
    )
    assert metrics.equalized_odds_difference(y_true, y_pred, sensitive_features=groups) == pytest.approx(
        max(odds.values())
    )


def test_root_mean_square_over_classes_by_hand() -> None:
    y_true, y_pred, groups, weight = _random_labels(11, n=3000, n_classes=4)
    odds = _by_hand(y_true, y_pred, groups, given=np.unique(y_true))
    by_class = np.array([odds[k, k] for k in np.unique(y_true)])
    rms = metrics.tpr_gap_rms(y_true, y_pred, sensitive_features=groups)
    assert rms == pytest.approx(np.sqrt(np.mean(by_class**2)))
    assert by_class.min() < rms < metrics.equal_opportunity_difference(y_true, y_pred, sensitive_features=groups)
    repeats = np.ceil(weight).astype(int)
    rows = np.repeat(np.arange(3000), repeats)
    assert metrics.tpr_gap_rms(y_true, y_pred, sensitive_features=groups, sample_weight=repeats) == pytest.approx(
        metrics.tpr_gap_rms(y_true[rows], y_pred[rows], sensitive_features=groups[rows])
    )


def test_root_mean_square_counts_both_of_two_classes_or_the_one_asked_for() -> None:
    arguments = {"sensitive_features": ["a", "a", "b", "b"]}
    y_true, y_pred = [0, 1, 0, 1], [0, 1, 0, 0]
    assert metrics.tpr_gap_rms(y_true, y_pred, **arguments) == pytest.approx(np.sqrt((0 + 1) / 2))
    assert metrics.tpr_gap_rms(y_true, y_pred, **arguments, pos_label=1) == 1.0
    assert metrics.tpr_gap_rms(y_true, y_pred, **arguments, pos_label=0) == 0.0


def test_root_mean_square_leaves_out_classes_that_cannot_be_compared() -> None:
    groups = ["a", "a", "b", "b"]
    assert metrics.tpr_gap_rms([0, 1, 1, 1], [0, 1, 1, 0], sensitive_features=groups) == 0.5  # class 0 only in a
    assert np.isnan(metrics.tpr_gap_rms([0, 0, 1, 1], [0, 1, 1, 0], sensitive_features=groups))
    assert metrics.tpr_gap_rms([0, 1], [1, 0], sensitive_features=["a", "a"]) == 0.0


def test_classes_that_do_not_occur_still_set_the_rule() -> None:
    y_true, y_pred, groups = [0, 1, 0, 1], [0, 1, 1, 1], ["a", "a", "b", "b"]
    arguments: dict[str, Any] = {"sensitive_features": groups}
    assert metrics.equal_opportunity_difference(y_true, y_pred, **arguments) == 0.0  # of two classes, the positive one
    assert metrics.equal_opportunity_difference(y_true, y_pred, **arguments, labels=[0, 1, 2]) == 1.0
    for difference in DIFFERENCES:
        assert difference(y_true, y_pred, **arguments, labels=[1, 0]) == difference(y_true, y_pred, **arguments)
    with pytest.raises(ValueError, match="pos_label=2 is neither"):
        metrics.demographic_parity_difference(y_true, y_pred, **arguments, pos_label=2)
    assert metrics.demographic_parity_difference(y_true, y_pred, **arguments, pos_label=2, labels=[0, 1, 2]) == 0.0
    table = metrics.group_metrics(y_true, y_pred, **arguments, labels=[0, 1, 2])
    np.testing.assert_array_equal(table["classes"], [0, 1, 2])
    with pytest.raises(ValueError, match=r"mix labels of different types.* labels has the strings '0', '1'"):
        metrics.equalized_odds_difference(y_true, y_pred, **arguments, labels=["0", "1"])


def test_pos_label_with_many_classes_is_one_against_the_rest() -> None:
    y_true, y_pred, groups, _ = _random_labels(5, n_classes=4)
    for difference in DIFFERENCES:
        folded = difference(y_true == 2, y_pred == 2, sensitive_features=groups)
        assert difference(y_true, y_pred, sensitive_features=groups, pos_label=2) == folded


def test_positive_class_is_the_larger_label_unless_told() -> None:
    y_true = np.array(["no", "no", "yes", "yes", "no", "no", "yes", "yes"])
    y_pred = np.array(["no", "no", "yes", "no", "no", "yes", "yes", "no"])
    groups = np.repeat(["a", "b"], 4)
    assert metrics.equal_opportunity_difference(y_true, y_pred, sensitive_features=groups) == 0.0
    assert metrics.equal_opportunity_difference(y_true, y_pred, sensitive_features=groups, pos_label="no") == 0.5


def test_many_classes_table_has_a_column_per_class() -> None:
    y_true, y_pred, groups, weight = _random_labels(2, n_classes=3)
    table = metrics.group_metrics(y_true, y_pred, sensitive_features=groups, sample_weight=weight)
    np.testing.assert_array_equal(table["classes"], [0, 1, 2])
    assert table["true_positive_rate"].shape == (3, 3)
    np.testing.assert_allclose(table["selection_rate"].sum(axis=1), 1.0)
    np.testing.assert_allclose(table["weight"].sum(), weight.sum())


def test_a_group_without_rows_of_a_class_is_left_out_of_that_class() -> None:
    y_true = [1, 1, 1, 1, 0, 0]
    y_pred = [1, 0, 1, 1, 1, 0]
    groups = ["a", "a", "b", "b", "c", "c"]  # c has no positive row
    assert metrics.equal_opportunity_difference(y_true, y_pred, sensitive_features=groups) == 0.5
    table = metrics.group_metrics(y_true, y_pred, sensitive_features=groups)
    assert np.isnan(table["true_positive_rate"][2])
    assert np.isnan(table["false_positive_rate"][0])


def test_rows_of_weight_zero_count_as_absent() -> None:
    arguments = {"sensitive_features": ["a", "a", "b", "b"]}
    assert metrics.equal_opportunity_difference([1, 1, 1, 1], [1, 1, 0, 0], **arguments) == 1.0
    assert np.isnan(
        metrics.equal_opportunity_difference([1, 1, 1, 1], [1, 1, 0, 0], sample_weight=[1, 1, 0, 0], **arguments)
    )


def test_nothing_to_compare_is_nan_and_one_group_is_zero() -> None:
    for difference in DIFFERENCES:
        assert difference([0, 1], [1, 1], sensitive_features=["a", "a"]) == 0.0
    assert np.isnan(metrics.equal_opportunity_difference([0, 1], [0, 1], sensitive_features=["a", "b"]))


def test_rows_without_a_group_are_left_out_with_a_warning() -> None:
    y_true, y_pred, groups, _ = _random_labels(1)
    some = groups.astype(object)
    some[:10] = None
    expected = metrics.equalized_odds_difference(y_true[10:], y_pred[10:], sensitive_features=groups[10:])
    with pytest.warns(UserWarning, match="10 of 400 rows have no group"):
        assert metrics.equalized_odds_difference(y_true, y_pred, sensitive_features=some) == expected


def test_containers_and_label_types_agree() -> None:
    y_true, y_pred, groups, _ = _random_labels(4)
    expected = metrics.equalized_odds_difference(y_true, y_pred, sensitive_features=groups)
    text = np.array(["n", "y"])
    for convert in (list, pd.Series, lambda v: pd.Series(v).astype("category")):
        got = metrics.equalized_odds_difference(
            convert(text[y_true]), convert(text[y_pred]), sensitive_features=convert(groups)
        )
        assert got == expected
    assert metrics.equalized_odds_difference(y_true == 1, y_pred, sensitive_features=groups) == expected


def test_noise_is_the_spread_of_a_gap_that_is_not_there() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b"], [300, 100])
    y_true = np.ones(400, dtype=int)
    y_true[0] = 0
    signed = []
    for _ in range(800):
        y_pred = (rng.random(400) < 0.3).astype(int)
        signed.append(y_pred[groups == "a"].mean() - y_pred[groups == "b"].mean())
    gap = metrics.gaps(y_true, y_pred, sensitive_features=groups)["demographic_parity"]
    assert gap.value == pytest.approx(abs(signed[-1]))
    assert gap.noise == pytest.approx(np.std(signed), rel=0.15)


def test_rates_from_few_rows_can_be_left_out() -> None:
    y_true = np.ones(30, dtype=int)
    groups = np.repeat(["a", "b", "c"], [14, 14, 2])
    y_pred = np.concatenate([np.ones(14), np.ones(7), np.zeros(7), np.zeros(2)]).astype(int)
    arguments: dict[str, Any] = {"sensitive_features": groups}
    assert metrics.gaps(y_true, y_pred, **arguments)["equal_opportunity"].value == 1.0
    assert metrics.gaps(y_true, y_pred, **arguments, min_rows=3)["equal_opportunity"].value == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y_pred": [0, 1, 1]}, "y_true has 4 rows and y_pred has 3"),
        ({"sensitive_features": ["a", "b"]}, "sensitive_features has 2 rows and y_true has 4"),
        ({"y_true": [0, 1, np.nan, 1]}, "y_true has 1 missing labels"),
        ({"y_true": ["x", None, pd.NA, "y"], "y_pred": ["x"] * 4}, "y_true has 2 missing labels"),
        ({"y_pred": ["0", "1", "0", "1"]}, "mix labels of different types"),
        ({"y_pred": np.array(["0", "1", "0", "1"], dtype=object)}, "mix labels of different types"),
        (
            {"y_true": np.zeros((4, 2))},
            r"y_true must hold one label per row, not an array of shape \(4, 2\)",
        ),
        ({"y_true": [], "y_pred": [], "sensitive_features": []}, "y_true is empty"),
        ({"sample_weight": [1, 1, -1, -2]}, "2 of 4 values are"),
        ({"sample_weight": [1, 1, 1, np.inf]}, "sample_weight contains infinity"),
        ({"sample_weight": [1.0]}, "inconsistent numbers of samples"),
        (
            {"pos_label": "yes"},
            r"pos_label='yes' is neither in y_true nor in y_pred; the labels are \[0, 1\]",
        ),
        ({"sensitive_features": [None] * 4}, "No row has a group"),
    ],
)
def test_refuses_with_a_sentence(arguments: Any, message: Any) -> None:
    valid = {
        "y_true": [0, 1, 0, 1],
        "y_pred": [0, 1, 1, 1],
        "sensitive_features": ["a", "a", "b", "b"],
    }
    arguments = valid | arguments
    measures: list[Any] = [*DIFFERENCES, metrics.tpr_gap_rms, metrics.group_metrics]
    for difference in measures:
        with pytest.raises(ValueError, match=message):
            difference(
                arguments["y_true"],
                arguments["y_pred"],
                **{k: v for k, v in arguments.items() if k[0] == "s" or k == "pos_label"},
            )
