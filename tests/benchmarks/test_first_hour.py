"""The README's ways, on rows that stand for a table."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest

from benchmarks.first_hour import CLASSIFIERS, encoded, measured, table_of, ways
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
    before, aligned, both = (np.mean([one[name] for one in found], axis=0) for name in found[0])
    assert before[1] < -0.1
    assert max(abs(aligned[1]), abs(both[1])) < 0.06
    assert min(aligned[0], both[0]) > before[0] - 0.03
    lines = table_of(found).splitlines()
    assert len(lines) == 5
    assert lines[2].startswith(f"| before | {before[0]:.4f} | 0.00 ± 0.00 | {before[1]:+.3f}")
