"""``python -m benchmarks.projection``: the nearest ideal distribution with full covariances, beside generic solvers.

Four sections, all by default:

* ``symmetric``: the convex program, beside cvxpy with Clarabel and with SCS; and the biographies at full width.
* ``affine``: two classes, beside SciPy's L-BFGS-B from the same starts.
* ``classes``: many classes, beside the starts, *symmetric* and L-BFGS-B.
* ``conditioning``: covariances that are singular, or nearly.

Divergences are those of the moved group, ``sum_k p[k] KL[k]`` in nats, where one group is moved: the weights, the same
for all solvers, are left out. Exits with status 1 when a claim fails; the claims are named where they are checked.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

import fairsteer
from benchmarks import datasets, problems, reference, rivals, timing
from benchmarks.timing import duration
from fairsteer import IdealDistribution, SubgroupMoments, nearest_ideal

CANONICAL, MOVED = 0, 1
MEGABYTE = 2**20

failures: list[str] = []


def check(holds: bool, claim: str) -> None:
    if not holds:
        failures.append(claim)


def as_moments(data: reference.Moments) -> SubgroupMoments:
    return SubgroupMoments.from_statistics(data.weights, data.means, data.covariances)


def as_data(moments: SubgroupMoments) -> reference.Moments:
    return reference.Moments(moments.weights, moments.means, moments.covariances, "full")


def affirmative(moments: SubgroupMoments, **options: Any) -> IdealDistribution:
    """The nearest ideal distribution that leaves the first group as it is."""
    reference_group = moments.groups.tolist()[CANONICAL]
    return nearest_ideal(moments, intervention="affirmative", reference_group=reference_group, **options)


def of_moved_group(ideal: IdealDistribution) -> float:
    return float(ideal.class_prior @ ideal.subgroup_divergence[:, MOVED])


# ---- one run in a process of its own, for what takes minutes


@dataclass(frozen=True)
class Solved:
    """What a run in a process of its own sends back."""

    divergence: float
    of_moved: float
    path: list[float]
    n_iter: int
    warning: str
    seconds: float
    peak: int
    inverse_linear: Any


def _solve(moments: SubgroupMoments, options: dict[str, Any]) -> Solved:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        answers: list[IdealDistribution] = []
        start = time.perf_counter()
        peak = timing.extra_peak_memory(lambda: answers.append(nearest_ideal(moments, **options)))
        seconds = time.perf_counter() - start
    ideal = answers[0]
    return Solved(
        ideal.kl_divergence,
        of_moved_group(ideal),
        ideal.objective_path.tolist(),
        ideal.n_iter,
        "; ".join(str(w.message) for w in caught),
        seconds,
        peak,
        ideal.inverse_linear,
    )


class Worker:
    """A process that solves what may take too long; it is ended when it does, which a thread could not be."""

    def __init__(self) -> None:
        self._pool: Any = None

    def call(self, function: Callable[..., Any], *arguments: Any, limit: float) -> Any:
        """What the function returns; None after ``limit`` seconds."""
        if self._pool is None:
            self._pool = multiprocessing.get_context("spawn").Pool(1)
            warm = as_moments(problems.statistics(2, 2, 8, covariance="full"))
            self._pool.apply(_solve, (warm, {"covariance": "full"}))
        try:
            return self._pool.apply_async(function, arguments).get(limit)
        except multiprocessing.TimeoutError:
            self._pool.terminate()
            self._pool = None
            return None


WORKER = Worker()


def solve_apart(moments: SubgroupMoments, limit: float, **options: Any) -> Solved | None:
    solved: Solved | None = WORKER.call(_solve, moments, options, limit=limit)
    return solved


def describe(name: str, solved: Solved | None, limit: float) -> None:
    if solved is None:
        print(f"  {name:<28} not finished in {limit:.0f} s", flush=True)
        return
    path = ", ".join(f"{value:.5g}" for value in solved.path[:6])
    if len(solved.path) > 6:
        path += f", ... {solved.path[-1]:.6g}"
    print(
        f"  {name:<28} KL {solved.divergence:.6g}, {duration(solved.seconds)}, peak {solved.peak / MEGABYTE:.0f} MB, "
        f"rounds {solved.n_iter}, path: {path}" + (f"\n    {solved.warning}" if solved.warning else ""),
        flush=True,
    )


# ---- symmetric

# The loosest tolerances at which the rivals come within 1e-7 of the optimum.
CONIC = {
    "CLARABEL": {"tol_gap_abs": 1e-6, "tol_gap_rel": 1e-6, "tol_feas": 1e-6},
    "SCS": {"eps_abs": 1e-5, "eps_rel": 1e-5, "max_iters": 100_000},
}


def symmetric(arguments: argparse.Namespace) -> None:
    print(
        "cvxpy's time: problem.solve() once the program has been compiled (cvxpy keeps that), and what the solver\n"
        "itself reports. 'first' is the first problem.solve(), with the compilation. Building the quadratic form and\n"
        "its coordinates is not counted. Ours: all of nearest_ideal.\n"
    )
    print(
        f"{'d':>4} {'solver':<9} {'difference':>10} {'ours':>9} {'first':>9} {'solve()':>9} {'solver':>9}"
        f" {'ratio of solve()':>16} {'of solver':>9} {'memory':>8} {'ours':>8} {'rounds':>6}"
    )
    for solver, options in CONIC.items():  # loads and compiles what the first call would pay for
        data = problems.statistics(2, 2, 4, covariance="full")
        rivals.ConicSymmetric(rivals.group_problem(data, CANONICAL, MOVED)).solve(solver, **options)
    for d in (8, 16, 32):
        data = problems.statistics(2, 2, d, covariance="full", seed=d, difference=1.0)
        moments, problem = as_moments(data), rivals.group_problem(data, CANONICAL, MOVED)

        def ours(moments: SubgroupMoments = moments) -> IdealDistribution:
            return affirmative(moments, map_type="symmetric", covariance="full", tol=1e-9)

        for solver, options in CONIC.items():
            program = rivals.ConicSymmetric(problem)
            start = time.perf_counter()
            program.solve(solver, **options)
            first = time.perf_counter() - start

            def theirs(
                program: rivals.ConicSymmetric = program, solver: str = solver, options: dict[str, Any] = options
            ) -> float:
                return program.solve(solver, **options)

            own, other = timing.measured([ours, theirs], budget=arguments.budget)
            inside = float(np.median(program.solver_seconds))
            difference = of_moved_group(own.answer) - other.answer
            print(
                f"{d:>4} {solver:<9} {difference:>10.1e} {duration(own.seconds):>9} {duration(first):>9}"
                f" {duration(other.seconds):>9} {duration(inside):>9} {other.seconds / own.seconds:>15.0f}x"
                f" {inside / own.seconds:>8.0f}x {other.peak / MEGABYTE:>5.1f} MB {own.peak / MEGABYTE:>5.1f} MB"
                f" {own.rounds:>6}",
                flush=True,
            )
            check(abs(difference) <= 1e-7, f"symmetric, d = {d}: objective of {solver} to 1e-7")
        gap = rivals.symmetric_gap(problem, own.answer.inverse_linear[MOVED])
        print(f"{'':>4} above the optimum by at most {gap:.1e} nats (Newton decrement)")
    if arguments.data is None:
        return
    two = datasets.largest_occupations(arguments.data, 2)
    rows = datasets.biographies(arguments.data, two)
    moments = rows.moments(rows.transformed(np.ones(len(rows.y), dtype=bool))).shrink("ledoit_wolf")
    print(f"\n{rows.name} by {' and '.join(rows.groups)}, {len(rows.y):,} rows, d = {moments.n_features}:")
    solved = solve_apart(
        moments,
        arguments.limit,
        intervention="affirmative",
        reference_group=rows.groups[CANONICAL],
        map_type="symmetric",
        covariance="full",
    )
    describe("affirmative", solved, arguments.limit)
    if solved is not None:
        problem = rivals.group_problem(as_data(moments), CANONICAL, MOVED)
        gap = rivals.symmetric_gap(problem, solved.inverse_linear[MOVED])
        print(f"{'':<31}the moved group's {solved.of_moved:.6g}, above the optimum by at most {gap:.1e} nats")
    describe(
        "all subgroups",
        solve_apart(moments, arguments.limit, map_type="symmetric", covariance="full"),
        arguments.limit,
    )


# ---- affine, two classes

# Corrections that L-BFGS-B keeps: of 5, 10, 20 and 50, the one that is fastest at 50 to 200 features.
LBFGS_MEMORY = 5
LBFGS_ITERATIONS = 2000


def two_class_problems(arguments: argparse.Namespace) -> Iterator[tuple[str, reference.Moments]]:
    for d in (20, 50, 100, 200, *((384, 768) if arguments.large else ())):
        yield "synthetic", problems.statistics(2, 2, d, covariance="full", seed=d, difference=1.0)
    if arguments.data is None:
        return
    two = datasets.largest_occupations(arguments.data, 2)
    for leading in (50, 100, 200, *((None,) if arguments.large else ())):
        rows = datasets.biographies(arguments.data, two, leading)
        Z = rows.transformed(np.ones(len(rows.y), dtype=bool))
        yield "biographies", as_data(rows.moments(Z).shrink("ledoit_wolf"))


def affine(arguments: argparse.Namespace) -> None:
    print(
        f"L-BFGS-B: {LBFGS_ITERATIONS:,} iterations, {LBFGS_MEMORY} corrections, in coordinates where all four\n"
        "matrices are diagonal and both families white on average (one LU factorisation and elementwise work an\n"
        "evaluation), from each start; the best end counts. Neither its coordinates nor its starts are counted in its\n"
        "time; ours is all of nearest_ideal. 'to 1 %': until L-BFGS-B's value was within 1 % of ours. 'above': ours\n"
        "above L-BFGS-B's, relative.\n"
    )
    print(
        f"{'data':<12} {'d':>4} {'ours':>9} {'L-BFGS':>9} {'above':>8} {'start':<9} {'its':>5} {'ours':>9}"
        f" {'L-BFGS':>9} {'ratio':>7} {'to 1 %':>9} {'ratio':>7} {'memory':>8} {'ours':>8}  other starts"
    )
    affirmative(as_moments(problems.statistics(2, 2, 8, covariance="full")), covariance="full")
    for name, data in two_class_problems(arguments):
        moments, problem = as_moments(data), rivals.group_problem(data, CANONICAL, MOVED)
        objective = rivals.Diagonalised(problem)
        beginnings = {start: objective.coordinates(make()) for start, make in rivals.starts(problem).items()}
        if problem.d > 200:  # minutes each; below, it is the pairing that wins
            beginnings = {"pairing": beginnings["pairing"]}

        def ours(moments: SubgroupMoments = moments) -> IdealDistribution:
            return affirmative(moments, covariance="full")

        def descent(start: Any, objective: rivals.Diagonalised = objective) -> rivals.Descent:
            return rivals.lbfgs(objective, start, max_iter=LBFGS_ITERATIONS, memory=LBFGS_MEMORY)

        ends = {start: descent(x) for start, x in beginnings.items()}
        best = min(ends, key=lambda start: ends[start].value)
        own, other = timing.measured([ours, partial(descent, beginnings[best])], budget=arguments.budget)
        value, theirs = of_moved_group(own.answer), other.answer
        near = theirs.seconds_to(1.01 * value)
        others = ", ".join(f"{start} {end.value:.5f}" for start, end in ends.items() if start != best)
        print(
            f"{name:<12} {problem.d:>4} {value:>9.5f} {problem.divergence(theirs.B):>9.5f}"
            f" {value / theirs.value - 1:>8.2%} {best:<9} {theirs.n_iter:>5} {duration(own.seconds):>9}"
            f" {duration(other.seconds):>9} {other.seconds / own.seconds:>6.1f}x"
            + (f" {duration(near):>9} {near / own.seconds:>6.2f}x" if near is not None else f" {'never':>9} {'':>7}")
            + f" {other.peak / MEGABYTE:>5.1f} MB {own.peak / MEGABYTE:>5.1f} MB  {others}",
            flush=True,
        )
        check(value <= 1.01 * theirs.value, f"affine, {name}, d = {problem.d}: not above L-BFGS by more than 1 %")


# ---- affine, many classes


def class_problems(arguments: argparse.Namespace) -> Iterator[tuple[str, SubgroupMoments]]:
    if arguments.data is None:
        for K in (5, 10):
            yield f"synthetic, {K} classes", as_moments(problems.statistics(K, 2, 64, covariance="full", seed=K))
        return
    for n_classes, leading in ((5, 64), (10, 64), (28, 64), *(((28, None),) if arguments.large else ())):
        chosen = datasets.largest_occupations(arguments.data, n_classes)
        rows = datasets.biographies(arguments.data, chosen, leading)
        Z = rows.transformed(np.ones(len(rows.y), dtype=bool))
        yield f"biographies, {n_classes} classes", rows.moments(Z).shrink("ledoit_wolf")


def classes(arguments: argparse.Namespace) -> None:
    print(
        "'from tied': with the maps of the tied model (for all subgroups, class-conditionals and priors fitted to\n"
        "them). L-BFGS-B in white coordinates, from the tied start.\n"
    )
    for name, moments in class_problems(arguments):
        data = as_data(moments)
        print(f"{name}, d = {moments.n_features}, smallest cell {moments.weights.min():.0f} rows")
        for intervention in ("affirmative", "all_subgroups"):
            options: dict[str, Any] = {"intervention": intervention}
            if intervention == "affirmative":
                options["reference_group"] = moments.groups.tolist()[CANONICAL]
            print(f" {intervention}")
            tied = nearest_ideal(moments, **options)
            ends = {
                alignment: solve_apart(moments, arguments.limit, alignment=alignment, covariance="full", **options)
                for alignment in ("symmetric", "affine")
            }
            for alignment, solved in ends.items():
                describe(alignment, solved, arguments.limit)
            own = ends["affine"]
            if intervention == "affirmative":
                problem = rivals.group_problem(data, CANONICAL, MOVED)
                from_tied = problem.divergence(tied.inverse_linear[MOVED])
                print(f"  from tied, moved group       KL {from_tied:.6g}")
                value = np.nan if own is None else own.of_moved
                other = ends["symmetric"].of_moved if ends["symmetric"] else np.inf
                descend(problem, tied.inverse_linear[MOVED], value, own)
            else:
                from_tied = reference.divergence_with_maps(data, tied.inverse_linear, tied.inverse_offset)
                print(f"  from tied                    KL {from_tied:.6g}")
                value = np.nan if own is None else own.divergence
                other = ends["symmetric"].divergence if ends["symmetric"] else np.inf
            check(value < from_tied, f"{name}, {intervention}: affine below the tied start")
            check(value < other, f"{name}, {intervention}: affine below symmetric")


def descend(problem: reference.GroupProblem, start: Any, value: float, own: Solved | None) -> None:
    objective = rivals.Whitened(problem)
    begin = time.perf_counter()
    end = rivals.lbfgs(objective, objective.coordinates(start), max_iter=LBFGS_ITERATIONS, memory=LBFGS_MEMORY)
    seconds = time.perf_counter() - begin
    text = f"  L-BFGS-B, moved group        KL {end.value:.6g}, {duration(seconds)}, {end.n_iter} iterations"
    if own is not None:
        near = end.seconds_to(1.01 * value)
        text += f"; ours {value:.6g}, {value / end.value - 1:+.2%}; it is within 1 % of ours after " + (
            "never" if near is None else duration(near)
        )
    print(text, flush=True)


# ---- conditioning


def rows_of(rng: np.random.Generator, n: int, d: int) -> tuple[Any, Any, Any]:
    y, a = rng.integers(2, size=n), rng.integers(2, size=n)
    X = rng.standard_normal((n, d)) + 0.5 * rng.standard_normal((2, 2, d))[y, a]
    return X * (1 + 0.5 * a[:, None] * rng.random(d)), y, a


def hard_cases() -> Iterator[tuple[str, SubgroupMoments]]:
    d, n = 12, 2000
    rng = np.random.default_rng(0)
    X, y, a = rows_of(rng, n, d)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    duplicated = X.copy()
    duplicated[:, 1] = duplicated[:, 0] + 1e-7 * rng.standard_normal(n)
    twice, constant = X.copy(), X.copy()
    twice[:, 1] = twice[:, 0]
    constant[:, 0] = 3.0
    cases = {
        "condition number 1e12, rotated": (X * np.geomspace(1, 1e-6, d)) @ rotation,
        "units from 1 to 1e-6": X * np.geomspace(1, 1e-6, d),
        "units from 1e6 to 1e-6": X * np.geomspace(1e6, 1e-6, d),
        "two columns equal but for 1e-7": duplicated,
        "two columns equal": twice,
        "a constant column": constant,
        "mean 1e8 standard deviations": X + 1e8,
    }
    for name, table in cases.items():
        yield name, full_moments(table, y, a)
    yield "10 rows a subgroup, 12 features", full_moments(*rows_of(rng, 40, d))
    wide, y, a = rows_of(rng, 120, 100)
    yield "30 rows a subgroup, 100 features", full_moments(wide, y, a)
    y, a = y.copy(), a.copy()
    y[(y == 1) & (a == 1)] = 0
    y[0], a[0] = 1, 1
    yield "one row in a subgroup", full_moments(wide[:, :12], y, a)


def full_moments(X: Any, y: Any, a: Any) -> SubgroupMoments:
    return SubgroupMoments(X.shape[1], classes=range(2), groups=range(2), covariance="full").update(X, y, a)


def outcome(moments: SubgroupMoments, options: dict[str, Any]) -> tuple[str, str]:
    """What came out in a few words, and what was said about it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.perf_counter()
        try:
            ideal = nearest_ideal(moments, covariance="full", **options)
        except (ValueError, np.linalg.LinAlgError) as error:
            return type(error).__name__, str(error)
        seconds = time.perf_counter() - start
        finite = all(np.isfinite(v).all() for v in (ideal.linear, ideal.offset, ideal.covariances, ideal.kl_divergence))
    if not finite:
        return "not finite", ""
    state = "converged" if ideal.converged else "not converged"
    return f"{state}, {ideal.kl_divergence:.4g}, {duration(seconds)}", "; ".join(str(w.message) for w in caught)


def conditioning(arguments: argparse.Namespace) -> None:
    limit = min(60.0, arguments.limit)
    columns: dict[str, dict[str, Any]] = {
        "affirmative symmetric": {"intervention": "affirmative", "map_type": "symmetric"},
        "affirmative affine": {"intervention": "affirmative"},
        "all subgroups symmetric": {"map_type": "symmetric"},
        "all subgroups affine": {},
    }
    notes: dict[str, int] = {}
    for title, shrinkage in (("as they are", None), ("Ledoit-Wolf", "ledoit_wolf")):
        print(f"\n| moments {title} | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
        for name, moments in hard_cases():
            cells = []
            for column, options in columns.items():
                said = WORKER.call(outcome, moments.shrink(shrinkage), options, limit=limit)
                text, note = said or (f"not finished in {limit:.0f} s", "")
                check(said is not None, f"conditioning, {name}, {column}, moments {title}: ends")
                check(text != "not finite", f"conditioning, {name}, {column}, moments {title}: finite, or an error")
                check(
                    bool(note) or not text.startswith("not converged"),
                    f"conditioning, {name}, {column}, moments {title}: says why it did not converge",
                )
                if note:
                    text += f" [{notes.setdefault(note, len(notes) + 1)}]"
                cells.append(text)
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for note, number in notes.items():
        print(f"\n[{number}] {note}")


SECTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "symmetric": symmetric,
    "affine": affine,
    "classes": classes,
    "conditioning": conditioning,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.projection", description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    datasets.add_data_option(parser)
    parser.add_argument("--large", action="store_true", help="adds 384 and 768 features (many minutes)")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for the timed rounds of a case")
    parser.add_argument("--limit", type=float, default=1800.0, help="most seconds for a fit on the biographies")
    arguments = parser.parse_args()
    unknown = set(arguments.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no section is called {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    fairsteer.show_versions()
    for package in ("cvxpy", "clarabel", "scs"):  # only `symmetric` needs them
        with suppress(importlib.metadata.PackageNotFoundError):
            print(f"  {package} {importlib.metadata.version(package)}")
    print(f"\nmemory: {timing.memory_method()}\ntime: median of alternated runs after a first one; 0 rounds: the first")
    for name in arguments.sections or SECTIONS:
        print(f"\n## {name}\n")
        SECTIONS[name](arguments)
    if failures:
        print("\nFailed:", *failures, sep="\n  ", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
