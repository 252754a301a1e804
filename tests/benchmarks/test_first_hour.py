"""The README's ways, on rows that stand for a table."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pandas as pd
import pytest

from benchmarks.first_hour import (
    CLASSIFIERS,
    THRESHOLDS,
    best_at_equal_rates,
    encoded,
    measured,
    table_of,
    ways,
)
from fairsteer.datasets import make_biased_groups


@pytest.mark.slow
def test_ways_of_the_readme_are_measured_on_rows_that_no_fit_has_seen() -> None:
    rows, hired, sex = make_biased_groups(1200, 2, classes=["no", "yes"], groups=["f", "m"], random_state=0)
    table = pd.DataFrame(rows, columns=["test", "years"]).assign(town=np.where(rows[:, 1] > 0, "A", "B"), sex=sex)
    features = encoded(table, "sex")
    assert {"town_A", "town_B", "sex"} <= set(features.columns)
    assert "chosen by the rows" in ways(CLASSIFIERS["boosting"], "sex")
    make = partial(ways, CLASSIFIERS["logistic regression"], "sex", search=False)
    found = [measured(features, pd.Series(hired), "sex", make, seed) for seed in (0, 1)]
    before, thresholds, aligned, both = (np.mean([one[name] for one in found], axis=0) for name in found[0])
    assert list(found[0])[1] == THRESHOLDS
    assert abs(thresholds[1]) < 0.01
    assert thresholds[0] > max(aligned[0], both[0]) - 0.01
    assert before[1] < -0.1
    assert max(abs(aligned[1]), abs(both[1])) < 0.06
    assert min(aligned[0], both[0]) > before[0] - 0.03
    lines = table_of(found, found).splitlines()
    assert len(lines) == 6
    assert lines[2].startswith(f"| before | {before[0]:.4f} | 0.00 ± 0.00 | {before[1]:+.3f}")
    loss = table_of(found, [{"before": (one["before"][0] + 0.01, 0.0)} for one in found]).splitlines()[2]
    assert loss.endswith("| 1.00 ± 0.00 |")


def test_the_best_thresholds_at_equal_rates_are_those_of_a_search() -> None:
    rng = np.random.default_rng(0)
    group, positive = np.repeat(["f", "m"], 50), np.tile(np.arange(50) < 20, 2)
    scores = rng.normal(size=100) + positive * np.where(group == "f", 1.0, 2.0)
    found = []
    for pair in itertools.product(np.append(scores[group == "f"], np.inf), np.append(scores[group == "m"], np.inf)):
        predicted = scores >= np.where(group == "f", *pair)
        first, second = (predicted[positive & (group == label)].sum() for label in ("f", "m"))
        if first == second:
            found.append(np.mean(predicted == positive))
    assert best_at_equal_rates(scores, positive, group) == (max(found), 0.0)
