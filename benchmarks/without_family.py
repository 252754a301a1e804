"""The ideal posterior measured: against a conic solver and the Gaussian optimum, by samples, in time and memory.

    python -m benchmarks.without_family [--problems 20] [--output benchmarks/results/without_family]

Times are CPU seconds of this process. The conic solver is Clarabel through cvxpy (``pip install cvxpy``), whose time is
counted with and without what cvxpy does before it.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from benchmarks import posterior as reference
from fairsteer import IdealPosteriorClassifier, SubgroupMoments, _core, nearest_ideal, nearest_ideal_posterior

Array = NDArray[Any]


def problem(seed: int, n_groups: int, n: int = 40) -> tuple[Array, Array, Array]:
    """Grid of log-odds, rough laws of the groups, shares."""
    rng = np.random.default_rng(seed)
    logits = np.linspace(-5, 5, n)
    laws = np.stack([np.exp(-((logits - rng.normal()) ** 2) / 2 / rng.uniform(0.5, 3)) for _ in range(n_groups)])
    laws *= rng.uniform(0.2, 1, laws.shape)
    return logits, laws / laws.sum(axis=1, keepdims=True), rng.dirichlet(np.full(n_groups, 3.0))


def conic(laws: Array, s: Array, shares: Array) -> tuple[float, float]:
    """Optimum and CPU seconds of a conic solver."""
    import cvxpy as cp

    cost = reference.costs_of(s, s)
    plans = [cp.Variable(cost.shape, nonneg=True) for _ in laws]
    target = cp.Variable(len(s))
    value = sum(
        w * (cp.sum(cp.rel_entr(cp.sum(plan, axis=1), law)) + cp.sum(cp.multiply(plan, cost)))
        for w, plan, law in zip(shares, plans, laws, strict=True)
    )
    constraints = [cp.sum(plan, axis=0) == target for plan in plans] + [cp.sum(target) == 1]
    program = cp.Problem(cp.Minimize(value), constraints)
    start = time.process_time()
    program.solve(solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    return float(program.value), time.process_time() - start


def ours(logits: Array, laws: Array, shares: Array) -> dict[str, Any]:
    """Optimum of the core, shares as they are."""
    return _core.nearest_ideal_posterior(logits, logits, laws, shares, "all_subgroups", 0, False, 100, 1e-9)


def fastest(solve: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """Answer, and least CPU seconds of some calls."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        answer = solve()
        seconds.append(time.process_time() - start)
    return answer, min(seconds)


def against_the_conic_solver(n_problems: int) -> list[str]:
    """One line a problem, and the extremes."""
    lines = ["| problem | groups | difference, nats | conic, ms | ours, ms | ratio |", "|---|---|---|---|---|---|"]
    ratios: dict[int, list[float]] = {2: [], 3: [], 4: []}
    worst = 0.0
    for seed in range(n_problems):
        n_groups = 2 + seed % 3
        logits, laws, shares = problem(seed, n_groups)
        optimum, seconds = conic(laws, expit(logits), shares)
        found, fast = fastest(partial(ours, logits, laws, shares), 5)
        difference = found["kl_divergence"] - optimum
        worst = max(worst, abs(difference))
        ratios[n_groups].append(seconds / fast)
        times = f"{1e3 * seconds:.0f} | {1e3 * fast:.2f} | {seconds / fast:.0f}"
        lines.append(f"| {seed} | {n_groups} | {difference:+.1e} | {times} |")
    lines += ["", f"Largest difference {worst:.1e} nats. Ratios: "]
    lines[-1] += "; ".join(f"{G} groups {min(of):.0f} to {max(of):.0f}" for G, of in ratios.items() if of) + "."
    return lines


def against_the_gaussian_optimum() -> list[str]:
    """Divergence of both on Gaussian data of one feature, two classes and two groups."""
    lines = ["| problem | Gaussian optimum, nats | without a family |", "|---|---|---|"]
    for seed in range(6):
        rng = np.random.default_rng(seed)
        means = rng.normal(size=(2, 2, 1)) + 1.5 * np.array([0, 1])[:, None, None]
        covariances = rng.uniform(0.5, 1.5, (2, 2, 1, 1))
        q = rng.dirichlet(np.full(4, 5.0)).reshape(2, 2)
        moments = SubgroupMoments.from_statistics(q, means, covariances)
        gaussian = nearest_ideal(moments, covariance="full", map_type="affine").kl_divergence
        x = np.linspace(-12, 14, 40_001)
        density = q[..., None] * np.exp(-((x - means) ** 2) / 2 / covariances[..., 0]) / np.sqrt(covariances[..., 0])
        s = np.clip((density[1] / density.sum(axis=0)).ravel(), 0, 1)
        ideal = nearest_ideal_posterior(s, np.repeat([0, 1], len(x)), density.sum(axis=0).ravel())
        lines.append(f"| {seed} | {gaussian:.4f} | {ideal.kl_divergence:.4f} |")
    return lines


def by_samples() -> list[str]:
    """Largest gaps of five random cost matrices on 100,000 rows drawn from the repaired distribution."""
    lines = [
        "| posterior of | classes | largest gap before | after | in errors of the fitted rows |",
        "|---|---|---|---|---|",
    ]
    for n_classes in (2, 3, 10):
        rng = np.random.default_rng(0)
        group = rng.integers(0, 2, 6000)
        y = np.where(rng.random(6000) < 0.2 * group, 0, rng.integers(0, n_classes, 6000))
        X = rng.normal(size=(6000, n_classes)) + 1.5 * np.eye(n_classes)[y]
        X[:, 0] += 0.6 * group
        boosting = HistGradientBoostingClassifier(max_iter=30, max_leaf_nodes=8, random_state=0)
        for name, estimator in (("logistic regression", LogisticRegression()), ("boosting", boosting)):
            model = IdealPosteriorClassifier(estimator, cv=3).fit(X, y, sensitive_features=group)
            repaired = model.repair(X, y, sensitive_features=group)
            drawn = rng.choice(6000, 100_000, p=repaired.sample_weight / repaired.sample_weight.sum())
            raw = model.estimator_.predict_proba(X)
            before, after, errors = 0.0, 0.0, 0.0
            for _ in range(5):
                costs = rng.random((n_classes, n_classes)) * (1 - np.eye(n_classes))
                before = max(before, _gap((raw @ costs).argmin(axis=1), group, n_classes)[0])
                gap, error = _gap((repaired.proba[drawn] @ costs).argmin(axis=1), group[drawn], n_classes, 3000)
                after, errors = max(after, gap), max(errors, error)
            lines.append(f"| {name} | {n_classes} | {before:.3f} | {after:.4f} | {errors:.1f} |")
    return lines


def _gap(predicted: Array, group: Array, n_classes: int, behind: int = 3000) -> tuple[float, float]:
    """Largest difference of a class's rate between the groups, and in standard errors of so many rows a group."""
    rates = np.array([[(predicted[group == a] == k).mean() for a in (0, 1)] for k in range(n_classes)])
    gaps, p = np.abs(rates[:, 0] - rates[:, 1]), rates.mean(axis=1)
    return float(gaps.max()), float((gaps / np.sqrt(np.maximum(2 * p * (1 - p) / behind, 1e-12))).max())


def time_and_memory() -> list[str]:
    """CPU seconds, and memory beyond the posteriors, of fits to posteriors that are known."""
    lines = ["| rows | groups | classes | CPU, s | memory, bytes a row beyond 1 MiB |", "|---|---|---|---|---|"]
    for n, n_groups, n_classes in ((200_000, 2, 2), (200_000, 2, 3), (200_000, 2, 10), (20_000, 8, 2), (20_000, 16, 2)):
        rng = np.random.default_rng(0)
        group = rng.integers(0, n_groups, n)
        x = rng.normal(size=(n, n_classes))
        x[:, 0] += 0.5 * (group % 4)
        s = softmax(x, axis=1)
        given = s[:, 1].copy() if n_classes == 2 else s
        _, seconds = fastest(partial(nearest_ideal_posterior, given, group), 2)
        tracemalloc.start()
        nearest_ideal_posterior(given, group)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        lines.append(f"| {n:,} | {n_groups} | {n_classes} | {seconds:.2f} | {max(0, peak - 2**20) / n:.0f} |")
    lines += ["", "| points of a rough grid | groups | CPU, ms |", "|---|---|---|"]
    for n, n_groups in ((150, 2), (150, 4), (400, 2), (400, 3), (400, 4)):
        slowest = max(fastest(partial(ours, *problem(k, n_groups, n)), 1)[1] for k in range(4))
        lines.append(f"| {n} | {n_groups} | {1e3 * slowest:.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=20, help="problems for the conic solver (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/without_family"), metavar="FOLDER")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", "Solution may be inaccurate")
    parts = [
        "# The ideal posterior, measured",
        "`python -m benchmarks.without_family` writes this page. CPU time, one thread.",
        "## Against a conic solver, grids of 40",
        "\n".join(against_the_conic_solver(given.problems)),
        "## Against the Gaussian optimum",
        "\n".join(against_the_gaussian_optimum()),
        "## Samples of the repaired distribution, five cost matrices",
        "\n".join(by_samples()),
        "## Time and memory",
        "\n".join(time_and_memory()),
    ]
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
