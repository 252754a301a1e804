"""What the benchmark of quality computes itself: methods by formula, expectations, and the search."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from benchmarks import fairness_methods as fm
from benchmarks.fairness_methods import Table
from benchmarks.quality import methods as quality
from fairsteer import FairSteeringTransformer, IdealDistributionClassifierCV, ScoreAligner, metrics


@pytest.fixture(scope="module")
def table() -> Table:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 3, 1500)
    y = (rng.random(1500) < np.array([0.3, 0.5, 0.6])[group]).astype(np.int64)
    X = rng.normal(size=(1500, 4)) + np.outer(y, [1, 0.5, 0, 0]) + np.outer(group, [0, 1, 0.5, 0])
    X[:, 3] = X[:, 3] > 0
    return Table(X, y, group, n_numeric=3)


@pytest.fixture(scope="module")
def scores(table: Table) -> fm.Floats:
    return np.asarray(LogisticRegression().fit(table.X, table.y).predict_proba(table.X)[:, 1])


def test_alignment_of_out_of_fold_scores_is_the_score_aligner(table: Table) -> None:
    folds = quality.folds_of(table)
    model = fm.classified(fm.unchanged, LogisticRegression())
    (all_rows,) = model(table, table)
    ours = fm.aligned("equal_opportunity")(fm.out_of_fold(model, table, folds), table, all_rows, table)
    aligner = ScoreAligner(LogisticRegression(), cv=folds).fit(table.X, table.y, sensitive_features=table.group)
    np.testing.assert_array_equal(ours, aligner.predict(table.X, sensitive_features=table.group))


def test_reweighing_makes_class_and_group_independent(table: Table) -> None:
    weight = fm.reweighed(table)[0].weight
    assert weight is not None
    joint = np.zeros((2, 3))
    np.add.at(joint, (table.y, table.group), weight)
    joint /= joint.sum()
    np.testing.assert_allclose(joint, np.outer(joint.sum(axis=1), joint.sum(axis=0)), atol=1e-12)


@pytest.mark.parametrize("constraint", ["equal_opportunity", "demographic_parity"])
def test_linear_post_equalises_the_rates_of_the_posteriors_to_a_row(
    table: Table, scores: fm.Floats, constraint: fm.Parity
) -> None:
    decided = fm.linear_post(constraint)(scores, table, scores, table)
    mass = scores if constraint == "equal_opportunity" else np.ones(len(scores))
    rates = [np.average(decided[table.group == a], weights=mass[table.group == a]) for a in range(3)]
    largest_row = max(mass[table.group == a].max() / mass[table.group == a].sum() for a in range(3))
    assert 0 < min(rates) < 1
    assert np.ptp(rates) <= 2 * largest_row


def test_linear_post_is_the_most_accurate_under_its_constraint(table: Table, scores: fm.Floats) -> None:
    decided = fm.linear_post("demographic_parity")(scores, table, scores, table)
    shares = [np.sort(scores[table.group == a])[::-1] for a in range(3)]
    # For equal rates the best decisions accept the largest posteriors of each group: try every common rate.
    best = max(sum((2 * s[: int(rate * len(s))] - 1).sum() for s in shares) for rate in np.linspace(0, 1, 401))
    assert ((2 * scores - 1) * decided).sum() >= best - 3


def test_a_randomised_rule_is_measured_by_its_expected_rates(table: Table) -> None:
    rng = np.random.default_rng(1)
    positive = rng.random(len(table.y))
    expected = quality.measured(table, positive)
    drawn = (rng.random((4000, len(positive))) < positive).mean(axis=0)
    rates = [drawn[(table.y == 1) & (table.group == a)].mean() for a in range(3)]
    assert expected["equal_opportunity"] == pytest.approx(np.ptp(rates), abs=0.005)
    accuracy = np.where(table.y == 1, drawn, 1 - drawn).mean()
    assert expected["accuracy"] == pytest.approx(accuracy, abs=0.005)


def test_a_deterministic_rule_is_measured_as_its_predictions(table: Table, scores: fm.Floats) -> None:
    decided = (scores >= 0.5).astype(float)
    found = quality.measured(table, decided)
    for name in quality.MEASURES[2:]:
        gap = getattr(metrics, f"{name}_difference")(table.y, decided.astype(int), sensitive_features=table.group)
        assert found[name] == pytest.approx(gap, abs=1e-12)


def test_steering_numeric_columns_leaves_the_others(table: Table) -> None:
    steered, again = fm.on_numeric_columns(fm.transformed(FairSteeringTransformer()))(table, table.part(slice(50)))
    np.testing.assert_array_equal(steered.X[:, 3], table.X[:, 3])
    assert np.abs(steered.X[:, :3] - table.X[:, :3]).max() > 0.1
    np.testing.assert_allclose(again.X, steered.X[:50])


def test_correlation_remover_leaves_no_linear_trace_of_the_groups(table: Table) -> None:
    (removed,) = fm.correlation_removed(table)
    assert removed.X.shape == table.X.shape
    means = [removed.X[table.group == a].mean(axis=0) for a in range(3)]
    np.testing.assert_allclose(means, np.broadcast_to(means[0], (3, 4)), atol=1e-10)


def test_the_search_is_measured_and_put_into_words(table: Table) -> None:
    measured = quality.searched(table, table.part(slice(500)), quality.LOGISTIC, LogisticRegression())
    search = IdealDistributionClassifierCV(LogisticRegression()).fit(table.X, table.y, sensitive_features=table.group)
    accuracy = search.score(table.X[:500], table.y[:500], sensitive_features=table.group[:500])
    assert measured["accuracy"] == pytest.approx(accuracy)
    assert float(measured["seconds"]) >= 0
    words = [quality.in_words(params) for params in search.cv_results_["params"]]
    assert len(set(words)) == len(words) == 32
    assert measured["chosen"] == words[search.best_index_]
    assert words[:3] == ["nothing", "nothing + alignment", "translation, EO"]
