"""The benchmark of speed: rivals that are said to compute the same do, and what is read from the clock is right."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks import problems, reference, rivals, timing
from benchmarks.speed import claims, limits, plans, report
from benchmarks.speed.contest import Case, Contender, Contest, Measurement, Result, race
from benchmarks.speed.growth import SIZES, exponent
from benchmarks.speed.projection import in_class_span
from benchmarks.speed.worker import contest_of, measure

TINY = {
    "moments, tied": Case("moments", 6, 600, 8, variant="tied"),
    "moments, tied, float64": Case("moments", 6, 600, 8, "float64", "tied"),
    "moments, full": Case("moments", 6, 600, 8, variant="full"),
    "moments, diagonal": Case("moments", 6, 600, 8, variant="diagonal"),
    "transform, transformer": Case("transform", 6, 300, 4, variant="transformer"),
    "transform, maps": Case("transform", 6, 300, 10, variant="maps"),
    "latency": Case("latency", 6, 100, 2),
    "projection, affirmative": Case("projection", 8, 0, 8, variant="affirmative"),
    "projection, all_subgroups": Case("projection", 8, 0, 8, variant="all_subgroups"),
    "projection, symmetric": Case("projection", 5, 0, 8, variant="symmetric"),
    "fit": Case("fit", 6, 600, 4),
}
NEEDS = {"transform": ["ot"], "fit": ["ot", "torch", "concept_erasure"], "projection": ["cvxpy"]}


def contest(case: Any) -> Any:
    for module in NEEDS.get(case.operation, []):
        pytest.importorskip(module)
    return contest_of(case, 1)


def measurement(case: Any, **seconds: Any) -> Any:
    results = [Result(name, "ours" if name == "fairsteer" else "same", own) for name, own in seconds.items()]
    return Measurement(case, 1, results)


# ---- answers


@pytest.mark.parametrize("name", TINY)
def test_all_contenders_agree_with_the_oracle(name: Any) -> None:
    checked = 0
    for contender in contest(TINY[name]).contenders:
        answer = contender.run()
        if contender.error is not None:
            assert contender.error(answer) <= min(contender.tolerance, 1e-4), contender.name
            checked += 1
    assert checked >= 2


@pytest.mark.parametrize("model", ["tied", "full", "diagonal"])
def test_a_wrong_covariance_is_an_error_that_is_seen(model: Any) -> None:
    for contender in contest(TINY[f"moments, {model}"]).contenders:
        if contender.error is None:
            continue
        right = contender.run()
        denominator_less_one = right.covariances * (600 / 599)
        wrong = reference.Moments(np.empty(0), right.means, denominator_less_one, model)
        assert contender.error(wrong) > contender.tolerance, contender.name


def test_a_wrong_map_is_an_error_that_is_seen() -> None:
    ours, *_ = contest(TINY["transform, maps"]).contenders
    moved = ours.run()
    moved[7] += 1e-3
    assert ours.error(moved) > ours.tolerance


def test_a_wrong_projection_is_an_error_that_is_seen() -> None:
    ours, other, *_ = contest(TINY["projection, affirmative"]).contenders
    ideal = ours.run()
    assert ours.error(replace(ideal, offset=ideal.offset + 1e-3)) > ours.tolerance
    assert ours.error(replace(ideal, kl_divergence=ideal.kl_divergence * 1.001)) > ours.tolerance
    # Away from the ideal distribution, the divergence by its definition rises.
    assert ours.error(replace(ideal, canonical_means=1.1 * ideal.canonical_means)) > ours.tolerance
    assert other.error(replace(other.run(), kl_divergence=0.0)) > other.tolerance


@pytest.mark.parametrize("options", [{"intervention": "affirmative", "reference": 0}, {}])
def test_the_divergence_is_that_of_the_span_of_the_classes(options: Any) -> None:
    data = problems.statistics(3, 2, 9, seed=4)
    whole = reference.nearest_ideal(data, tol=1e-12, **options)
    small = reference.nearest_ideal(in_class_span(data), tol=1e-12, **options)
    assert small.kl_divergence == pytest.approx(whole.kl_divergence, rel=1e-9)
    np.testing.assert_allclose(small.subgroup_divergence, whole.subgroup_divergence, rtol=1e-6, atol=1e-12)


def test_tied_problem_in_white_coordinates() -> None:
    data = problems.statistics(3, 2, 5, seed=1)
    w = data.weights[:, 0] / data.weights[:, 0].sum()
    problem = reference.GroupProblem(w, data.means[:, 0], data.covariances[0], data.means[:, 1], data.covariances[1])
    objective = rivals.WhitenedTied(problem)
    rng = np.random.default_rng(0)
    Y, direction = np.eye(5) + 0.1 * rng.standard_normal((5, 5)), rng.standard_normal(25)
    value, slope = objective(Y.ravel())
    assert value == pytest.approx(problem.divergence(objective.matrix(Y)))
    step = 1e-6
    rise = objective(Y.ravel() + step * direction)[0] - objective(Y.ravel() - step * direction)[0]
    assert slope @ direction == pytest.approx(rise / (2 * step), rel=1e-6)


# ---- limits


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_limits_do_the_work_that_they_are_named_for(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    X, A = rng.standard_normal((50, 4)).astype(dtype), rng.standard_normal((4, 4))
    np.testing.assert_allclose(np.tril(limits.syrk(X).run()), np.tril(X.T @ X), rtol=1e-4, atol=1e-4)
    for allocate in (False, True):
        product = limits.gemm(X, A, allocate=allocate).run()
        np.testing.assert_allclose(product.T, X @ A.T, rtol=1e-4, atol=1e-4)
    S = A @ A.T
    np.testing.assert_allclose(limits.eigh(S).run()[0], np.linalg.eigvalsh(S), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_is_read_and_copied_whole(threads: Any) -> None:
    rng = np.random.default_rng(0)
    X, codes = rng.standard_normal((101, 3)).astype("float32"), rng.integers(9, size=101)
    read, copied = limits.memory([X, codes], threads)
    assert (read.work, copied.work) == (X.nbytes + codes.nbytes, 2 * (X.nbytes + codes.nbytes))
    assert max(read.run()) == codes.max()
    assert len(copied.run()) == 2 * threads


# ---- the clock


def test_rounds_are_paired_and_take_turns() -> None:
    order = []
    seconds = timing.paired([lambda: order.append("a"), lambda: order.append("b")], budget=10, rounds=3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [len(own) for own in seconds] == [3, 3]


def test_seconds_are_those_of_one_call() -> None:
    contender = Contender("many", "ours", lambda: time.sleep(1e-3), calls=5)
    found = race(Case("latency", 1, seconds=0.02), Contest([contender]), 1)
    assert all(1e-3 <= spent < 4e-3 for spent in found["many"].seconds)


def test_a_slow_rival_runs_once_and_ours_is_repeated() -> None:
    def slow() -> None:
        time.sleep(0.03)

    case = Case("moments", 1, seconds=0.1, rounds=4)
    found = race(case, Contest([Contender("ours", "ours", slow), Contender("slow", "same", slow)]), 1)
    assert len(found["slow"].seconds) == 1
    assert len(found["ours"].seconds) >= 2
    (ratio,) = found.ratios("slow", "ours")
    assert 0.3 < ratio < 3


def test_ratios_are_taken_round_by_round() -> None:
    m = measurement(TINY["fit"], fairsteer=[1.0, 2.0, 4.0], rival=[3.0, 4.0, 4.0])
    assert m.ratios("rival", "fairsteer") == [3.0, 2.0, 1.0]


def test_an_answer_without_a_number_is_wrong() -> None:
    assert Result("x", "same", [1.0], error=np.nan, tolerance=1.0).wrong
    assert Result("x", "same", [1.0], error=2.0, tolerance=1.0).wrong
    assert not Result("x", "same", [1.0], error=1.0, tolerance=1.0).wrong
    assert not Result("x", "limit", [1.0]).wrong


@pytest.mark.slow
def test_a_case_is_measured_in_a_process_with_as_many_threads() -> None:
    case = replace(TINY["moments, diagonal"], seconds=0.01, rounds=2)
    found = measure(case, 1)
    assert found.info["libraries"]
    assert all(line.endswith("1 threads") for line in found.info["libraries"])
    assert found["fairsteer"].peak is not None
    error = found["fairsteer"].error
    assert error is not None
    assert error <= found["fairsteer"].tolerance
    assert Measurement.of_record(json.loads(json.dumps(found.record()))) == found
    page = report.page([found])
    assert "NumPy reference" in page
    assert report.cpu() in page
    assert sys.prefix not in page


# ---- growth


def test_known_exponents_are_found() -> None:
    sizes = np.array([100, 200, 400, 800])
    found = exponent(sizes.tolist(), (3e-6 * sizes**2.5).tolist())
    assert found.slope == pytest.approx(2.5)
    assert found.standard_error == pytest.approx(0, abs=1e-9)
    assert found.residual == pytest.approx(1)


def test_an_exponent_comes_with_its_noise() -> None:
    sizes = np.array([100, 200, 400, 800])
    found = exponent(sizes.tolist(), (sizes * np.array([1.0, 1.2, 0.9, 1.1])).tolist())
    assert 0.8 < found.slope < 1.2
    assert abs(found.slope - 1) < 3 * found.standard_error
    assert 1.05 < found.residual < 1.3


# ---- claims


@pytest.mark.parametrize("case", [case for case, _ in plans.must([2])], ids=Case.title)
def test_every_claim_finds_its_contenders(case: Any) -> None:
    if case.operation == "growth":
        results = [Result(f"{size:,}", "ours", [0.1]) for size in SIZES[case.variant]]
    else:
        cells = min(case.n_cells, 8) if case.operation != "latency" else 2
        small = replace(case, n_features=6, n_rows=min(case.n_rows, 600), n_cells=cells)
        results = [Result(c.name, c.kind, [0.1, 0.1], peak=0) for c in contest(small).contenders]
    found = list(claims.claims([Measurement(case, 2, results)]))
    assert found
    assert {claim.number for claim in found} <= set(range(1, 7))
    assert report.verdicts(found).count("\n") == len(found) + 1


def test_claims_hold_or_do_not() -> None:
    fast = {"fairsteer": [1.0, 1.0], "one eigen-decomposition": [0.3, 0.3]}
    case = plans.PROJECTIONS[0]
    (claim,) = claims.claims([measurement(case, **fast)])
    assert claim.holds
    (claim,) = claims.claims([measurement(case, **{**fast, "fairsteer": [1.3, 1.3]})])
    assert not claim.holds
