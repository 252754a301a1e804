"""``python -m benchmarks.generalisation``: how far ideal distributions are from rows that they were not fitted to.

The nearest ideal distribution is fitted to one random half of a data set, with one covariance a group ("tied"), one a
subgroup ("full") and pooled ones between, all with Ledoit-Wolf shrinkage. Two divergences from the other half follow,
whose moments are full and shrunk likewise, so that a row of a table compares all models with the same distribution:

* of the ideal distribution itself (`IdealDistribution.divergence_from`);
* of the maps alone: the nearest ideal distribution with these maps and the other half's class and group shares, its
  class-conditionals fitted to the other half. It tells what `transform`, which uses nothing but the maps, owes to the
  model.

"chosen" takes the pooling, tied and full included, whose ideal distribution is nearest to left-out rows within the
fitting half (cross-validation).

One group is left as it is ("affirmative"), unless asked otherwise: under all subgroups the priors move as well, to the
groups and classes that are easy to fit, and models would be compared on different mixtures.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold, train_test_split

import fairsteer
from benchmarks import datasets, reference
from benchmarks.datasets import Rows
from fairsteer import IdealDistribution, SubgroupMoments, nearest_ideal

TIED, FULL = 1.0, 0.0
POOLING = (0.9, 0.75, 0.5, 0.25, 0.1, 0.03, 0.01)
SHRINKAGE = "ledoit_wolf"
FOLDS = 3


@dataclass
class Scores:
    """Divergences in nats, one a random half, by model."""

    fitted: dict[Any, list[float]] = field(default_factory=dict)
    held_out: dict[Any, list[float]] = field(default_factory=dict)
    maps: dict[Any, list[float]] = field(default_factory=dict)
    noise: list[float] = field(default_factory=list)
    chosen: list[float] = field(default_factory=list)
    seconds: float = 0.0
    not_converged: int = 0


def model(moments: SubgroupMoments, pooling: float) -> SubgroupMoments:
    """Pooled and shrunk; pooling 1 is the tied model, which needs no search."""
    return (moments.tie() if pooling == TIED else moments.pool(pooling)).shrink(SHRINKAGE)


def fit(moments: SubgroupMoments, pooling: float, options: dict[str, Any], scores: Scores) -> IdealDistribution:
    chosen = model(moments, pooling)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        ideal = nearest_ideal(chosen, covariance=chosen.covariance, **options)
    scores.not_converged += any(issubclass(w.category, ConvergenceWarning) for w in caught)
    return ideal


def as_data(moments: SubgroupMoments) -> reference.Moments:
    return reference.Moments(moments.weights, moments.means, moments.covariances, "full")


def maps_alone(ideal: IdealDistribution, moments: SubgroupMoments) -> float:
    """Divergence of the nearest ideal distribution that has these maps and the moments' own shares."""
    return reference.divergence_with_maps(
        as_data(moments), ideal.inverse_linear, ideal.inverse_offset, fit_priors=False
    )


def own_divergence(moments: SubgroupMoments, other: SubgroupMoments) -> float:
    """KL between two estimates of one distribution: what noise alone amounts to."""
    weights = moments.weights / moments.weights.sum()
    return reference.divergence(weights, moments.means, moments.covariances, as_data(other))[0]


def best_pooling(
    rows: Rows, Z: NDArray[np.float64], half: NDArray[np.intp], options: dict[str, Any], scores: Scores
) -> float:
    cell = rows.y * len(rows.groups) + rows.group
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(half, cell[half])
    parts = []
    for _, part in folds:
        inside = np.zeros(len(Z), dtype=bool)
        inside[half[part]] = True
        parts.append(rows.moments(Z, inside))
    total = dict.fromkeys((TIED, *POOLING, FULL), 0.0)
    for left_out in range(FOLDS):
        first, *others = (part for i, part in enumerate(parts) if i != left_out)
        for other in others:
            first = first.merge(other)
        target = model(parts[left_out], FULL)
        for pooling in total:
            total[pooling] += fit(first, pooling, options, scores).divergence_from(target)
    return min(total, key=lambda pooling: total[pooling])


def evaluate(rows: Rows, n_halves: int, options: dict[str, Any]) -> Scores:
    scores = Scores()
    start = time.perf_counter()
    cell = rows.y * len(rows.groups) + rows.group
    for seed in range(n_halves):
        half, _ = train_test_split(np.arange(len(cell)), test_size=0.5, stratify=cell, random_state=seed)
        inside = np.zeros(len(cell), dtype=bool)
        inside[half] = True
        Z = rows.transformed(inside)
        moments, others = rows.moments(Z, inside), model(rows.moments(Z, ~inside), FULL)
        own = model(moments, FULL)
        for pooling in (TIED, *POOLING, FULL):
            ideal = fit(moments, pooling, options, scores)
            for table, value in (
                (scores.fitted, ideal.divergence_from(own)),
                (scores.held_out, ideal.divergence_from(others)),
                (scores.maps, maps_alone(ideal, others)),
            ):
                table.setdefault(pooling, []).append(value)
        chosen = best_pooling(rows, Z, half, options, scores)
        scores.chosen.append(chosen)
        for table in (scores.fitted, scores.held_out, scores.maps):
            table.setdefault("chosen", []).append(table[chosen][-1])
        scores.noise.append(own_divergence(own, others))
    scores.seconds = time.perf_counter() - start
    return scores


def mean_and_error(values: list[float]) -> str:
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{np.mean(values):.3f} ± {error:.3f}"


def print_table(title: str, results: dict[tuple[str, str], Scores], of: str, pooling: tuple[Any, ...]) -> None:
    names = {TIED: "tied", FULL: "full", "chosen": "chosen"}
    head = ["data", "map_type", *(names.get(p, f"pooled {p:g}" if p != "chosen" else p) for p in pooling)]
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for (data, map_type), scores in results.items():
        table = getattr(scores, of)
        best = min(pooling, key=lambda p: np.mean(table[p]))
        cells = [f"**{mean_and_error(table[p])}**" if p == best else mean_and_error(table[p]) for p in pooling]
        print(f"| {' | '.join([data, map_type, *cells])} |")


def data_sets(arguments: argparse.Namespace) -> dict[str, Rows]:
    folder = arguments.data
    two = datasets.largest_occupations(folder, 2)
    all_sets = [
        datasets.adult(folder, "sex"),
        datasets.adult(folder, "race"),
        datasets.compas(folder),
        datasets.biographies(folder, two, leading=32),
        datasets.biographies(folder, two, leading=128),
        datasets.biographies(folder, leading=32),
    ]
    if arguments.large:
        all_sets += [datasets.biographies(folder, two), datasets.biographies(folder, leading=64)]
    return {rows.name: rows for rows in all_sets if arguments.only is None or arguments.only in rows.name}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generalisation", description=__doc__.splitlines()[0])
    datasets.add_data_option(parser)
    parser.add_argument("--halves", type=int, default=5, help="random halves")
    parser.add_argument("--only", metavar="NAME", help="data sets whose name contains it")
    parser.add_argument("--map_type", choices=["symmetric", "affine"], nargs="+", default=["symmetric", "affine"])
    parser.add_argument("--intervention", choices=["all_subgroups", "affirmative"], default="affirmative")
    parser.add_argument("--large", action="store_true", help="adds the biographies in more dimensions (many minutes)")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("--data: the folder of the data sets; or set FAIRSTEER_DATA")
    chosen = data_sets(arguments)
    if not chosen:
        parser.error(f"--only: no data set has {arguments.only!r} in its name")
    fairsteer.show_versions()

    results: dict[tuple[str, str], Scores] = {}
    print("\n| data | rows | classes | groups | features | rows in the smallest cell |\n|---|---|---|---|---|---|")
    for name, rows in chosen.items():
        cells = np.bincount(rows.y * len(rows.groups) + rows.group)
        d = rows.transformed(np.ones(len(rows.y), dtype=bool)).shape[1]
        print(f"| {name} | {len(rows.y):,} | {len(rows.classes)} | {len(rows.groups)} | {d} | {cells.min()} |")
    for name, rows in chosen.items():
        for map_type in arguments.map_type:
            options = {"map_type": map_type, "intervention": arguments.intervention}
            results[name, map_type] = scores = evaluate(rows, arguments.halves, options)
            picked = ", ".join({TIED: "tied", FULL: "full"}.get(p, f"{p:g}") for p in scores.chosen)
            print(
                f"{name}, {map_type}: {scores.seconds:.1f} s; chosen: {picked}; fits that did not converge: "
                f"{scores.not_converged}; KL(one half || other half), no ideal: {mean_and_error(scores.noise)}",
                file=sys.stderr,
                flush=True,
            )
    pooling = (TIED, *POOLING, FULL, "chosen")
    print(f"\nMean and standard error over {arguments.halves} random halves, in nats; {arguments.intervention}.")
    print_table("Held-out: the ideal distribution from the other half", results, "held_out", pooling)
    print_table("Held-out: the maps alone", results, "maps", pooling)
    print_table("Fitted: the ideal distribution from its own half", results, "fitted", pooling)
    return 0


if __name__ == "__main__":
    sys.exit(main())
