"""The biases are what they are said to be, and the table says what was measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import bias


def sample(n: int = 4000) -> Any:
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 2, (2, n))
    return bias.Sample(rng.normal(size=(n, 4)) + y[:, None], y, y, group)


@pytest.mark.parametrize("name", bias.BIASES)
def test_only_group_1_is_biased_and_the_truth_stays(name: str) -> None:
    clean = sample()
    biased, visible = bias.BIASES[name](clean, np.random.default_rng(1))
    zero = clean.group == 0
    np.testing.assert_array_equal(biased.X[zero], clean.X[zero])
    np.testing.assert_array_equal(biased.seen[zero], clean.seen[zero])
    np.testing.assert_array_equal(biased.y, clean.y)
    assert visible[zero].all()
    changed = (biased.X != clean.X).any() or (biased.seen != clean.seen).any() or not visible.all()
    assert changed


def test_labels_and_selection_take_the_share_that_is_said() -> None:
    clean = sample(20_000)
    positive = (clean.group == 1) & (clean.y == 1)
    flipped, _ = bias.labels(clean, np.random.default_rng(1))
    assert abs((flipped.seen[positive] == 0).mean() - 0.3) < 0.03
    _, visible = bias.selection(clean, np.random.default_rng(1))
    assert abs(visible[positive].mean() - 0.4) < 0.03


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", bias.METHODS)
def test_every_method_predicts(name: str) -> None:
    clean = sample(800)
    half = np.arange(800) < 400
    predicted = bias.METHODS[name](clean.take(half), clean.take(~half))
    assert bias._score(predicted, clean.take(~half))["accuracy"] > 0.6


def test_the_table_says_what_was_recovered() -> None:
    found: list[dict[str, Any]] = [
        {"bias": b, "method": m, "repeat": 0, "unbiased": 0.8, "accuracy": 0.7 if m == "nothing" else 0.75}
        | {"tpr_gap": 0.1, "selection_gap": 0.2}
        for b in bias.BIASES
        for m in bias.METHODS
    ]
    lines = bias.tables(found).splitlines()
    assert sum(line.endswith("| 50% |") for line in lines) == len(bias.BIASES) * (len(bias.METHODS) - 1)
    assert sum(line.endswith("| 0% |") for line in lines) == len(bias.BIASES)
