"""The exact tables of ``benchmarks.synthetic`` against closed forms and what theory says of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.synthetic import (
    LOG_NORMAL,
    NORMAL,
    PROBLEMS,
    Problem,
    in_use,
    largest_difference,
    on_each_distribution,
    steering,
)

GAPS = ("DP gap", "EO gap", "EOdds gap")


def test_rates_of_the_bayes_classifier_are_those_of_the_closed_form() -> None:
    problem = PROBLEMS[0]
    q, mu = problem.weights, problem.means
    # Equal variances of one: accept above the threshold where the log-odds are zero.
    threshold = mu.mean(axis=0) - np.log(q[1] / q[0]) / (mu[1] - mu[0])
    rates = norm.sf(threshold - mu)
    original = on_each_distribution(problem, NORMAL)["original"]
    assert original["error"] == pytest.approx((q[0] * rates[0] + q[1] * (1 - rates[1])).sum(), abs=1e-12)
    assert original["EO gap"] == pytest.approx(np.ptp(rates[1]), abs=1e-12)
    assert original["EOdds gap"] == pytest.approx(np.ptp(rates, axis=1).max(), abs=1e-12)
    assert original["DP gap"] == pytest.approx(np.ptp((q * rates).sum(axis=0) / q.sum(axis=0)), abs=1e-12)


def test_a_classifier_that_accepts_an_interval_is_integrated_over_it() -> None:
    # With equal means and the second class narrower, the Bayes classifier accepts |x| < c.
    problem = Problem("narrow", np.full((2, 2), 0.25), np.zeros((2, 2)), np.array([[2.0, 2.0], [1.0, 1.0]]))
    c = np.sqrt(2 * np.log(2) / (1 - 1 / 4))
    error = (2 * norm.cdf(c / 2) - 1 + 2 * norm.sf(c)) / 2
    assert on_each_distribution(problem, NORMAL)["original"]["error"] == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_ideal_distributions_have_no_gap_and_the_divergence_that_the_estimator_says(problem: Problem) -> None:
    table = on_each_distribution(problem, NORMAL)
    divergence = []
    for intervention in ("affirmative", "all_subgroups"):
        row = table[f"nearest ideal, {intervention.replace('_', ' ')}"]
        assert max(row[gap] for gap in GAPS) < 1e-9
        assert row["KL (nats)"] == pytest.approx(steering(problem, NORMAL, intervention).kl_divergence_, abs=1e-9)
        divergence.append(row["KL (nats)"])
    assert divergence[1] <= divergence[0] + 1e-9


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_shifting_groups_changes_nothing_for_a_classifier_that_knows_them(problem: Problem) -> None:
    table = on_each_distribution(problem, NORMAL)
    for column in ("error", *GAPS):
        assert table["mean matching"][column] == pytest.approx(table["original"][column], abs=1e-9)
    assert table["mean matching"]["KL (nats)"] > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_the_figures_of_log_normal_features_are_those_of_their_logarithms(problem: Problem) -> None:
    for tables in (on_each_distribution, in_use):
        assert largest_difference(tables(problem, NORMAL), tables(problem, LOG_NORMAL)) < 1e-9


def test_maps_undo_the_difference_of_units_where_the_distribution_is_ideal() -> None:
    table = in_use(PROBLEMS[2], NORMAL)
    assert max(table["nothing"][gap] for gap in GAPS) > 0.05
    assert max(table["steering, all subgroups"][gap] for gap in GAPS) < 1e-9
