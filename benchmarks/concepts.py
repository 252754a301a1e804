"""``python -m benchmarks.concepts``: does a concept shift equally in both genders, as probes of other rows see it?

Hidden states of a sentence encoder (a middle layer of MiniLM, 384 features) for Wikipedia biographies. Concept: an
occupation against all others, for those with 100 biographies of either gender. Half of the rows of every occupation and
gender are fitted to. A judge is a logistic regression on other rows: one for each gender, fitted to as many rows of the
occupation and of the others, and one that the genders share. Its shift is counted in standard deviations of its score
within classes, on the rows that the steering was fitted to, which the judge has not seen.

``shift``: by a gender's own judge, mean over the occupations. ``ratio``: women's over men's, geometric mean over the
occupations, with a 95 % interval; ``free of noise``: the judges' deviation is replaced by the root of the covariance
of two judges' scores, which have no noise in common. ``uneven``: mean over the occupations of the ratio's distance from
1, as a factor. ``shared judge``: its ratio. ``reach``: share of the rows without the occupation that the gender's own
judge takes for it after two pushes.

Intervals: bootstrap over the judges' rows and over the random divisions of rows into fitted ones and judges'.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

import fairsteer
from benchmarks import datasets
from fairsteer.concepts import ConceptSteering

Doubles = NDArray[np.float64]
Codes = NDArray[np.int64]

#: The columns of the middle layer among the three that are stored side by side.
LAYER = slice(384, 768)
MIN_ROWS = 100


class Judgement(NamedTuple):
    """What judges see of the directions, for each bootstrap sample: arrays of shape (samples, methods, genders)."""

    own: Doubles
    """Shift by the gender's own judges, in their deviations."""
    product: Doubles
    """The same shift in the units of the states, by judges of length one."""
    shared_variance: Doubles
    """Covariance of two judges' scores, (samples, 1, genders)."""
    shared: Doubles
    """Shift by the judge that the genders share, in its deviations."""
    reach: Doubles


def directions(H: Doubles, shown: Codes, group: Codes, n_probes: int) -> dict[str, Doubles]:
    """Directions by method, (genders, d)."""
    own = ConceptSteering(n_probes=n_probes, towards_ideal=0.0).fit(H, shown, sensitive_features=group)
    ideal = ConceptSteering(n_probes=n_probes).fit(H, shown, sensitive_features=group)
    common = ConceptSteering(n_probes=n_probes).fit(H, shown, sensitive_features=np.zeros_like(group)).directions_[1, 0]
    means = own.probe_moments_.means[1]
    length = np.linalg.norm(own.directions_[1], axis=1)
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    return {
        "one direction for both": np.stack([common, common]),
        "one each, of equal length": unit * np.exp(np.log(length).mean()),
        "ConceptSteering(towards_ideal=0)": own.directions_[1],
        "ConceptSteering()": ideal.directions_[1],
    }


def judge(H: Doubles, shown: Codes, rng: np.random.Generator, cells: dict[int, Codes], n_rows: Codes) -> Doubles:
    """Direction of length one of a probe fitted to a bootstrap sample of rows without and with the concept."""
    drawn = np.concatenate([rng.choice(cells[k], n_rows[k]) for k in (0, 1)])
    X = H[drawn] - H[drawn].mean(axis=0)
    X /= np.sqrt(np.square(X).mean())
    weights = LogisticRegression(class_weight="balanced", max_iter=1000).fit(X, shown[drawn]).coef_[0]
    return np.asarray(weights / np.linalg.norm(weights))


def judged(
    H: Doubles, shown: Codes, group: Codes, part: Codes, steered: Doubles, samples: int, rng: np.random.Generator
) -> Judgement:
    """Let judges of parts 1 and 2 see the directions that were fitted to part 0, (methods, genders, d)."""
    M = len(steered)
    own, product, shared, reach = np.empty((4, samples, M, 2))
    covariance = np.empty((samples, 1, 2))
    cells = {
        (p, a): {k: np.flatnonzero((part == p) & (shown == k) & (group == a)) for k in (0, 1)}
        for p in (0, 1, 2)
        for a in (0, 1)
    }
    n_rows = np.array([min(len(cells[p, a][k]) for p in (1, 2) for a in (0, 1)) for k in (0, 1)])
    both = {p: {k: np.concatenate([cells[p, a][k] for a in (0, 1)]) for k in (0, 1)} for p in (1, 2)}
    for b in range(samples):
        common = judge(H, shown, rng, both[1 + b % 2], n_rows)
        scores = [H[cells[0, a][k]] @ common for a in (0, 1) for k in (0, 1)]
        shared[b] = steered @ common / np.sqrt(np.mean([np.var(s) for s in scores]))
        for a in (0, 1):
            judges = np.stack([judge(H, shown, rng, cells[p, a], n_rows) for p in (1, 2)])
            scores = [H[cells[0, a][k]] @ judges.T for k in (0, 1)]
            within = np.mean([np.cov(s.T) for s in scores], axis=0)
            covariance[b, 0, a] = within[0, 1]
            pushes = steered[:, a] @ judges.T
            product[b, :, a] = pushes.mean(axis=1)
            own[b, :, a] = (pushes / np.sqrt(np.diag(within))).mean(axis=1)
            threshold = (scores[0].mean(axis=0) + scores[1].mean(axis=0)) / 2
            beyond = scores[0][None] + 2 * pushes[:, None] > threshold
            reach[b, :, a] = beyond.mean(axis=(1, 2))
    return Judgement(own, product, covariance, shared, reach)


def divided(shown: Codes, group: Codes, rng: np.random.Generator) -> Codes:
    """Part of every row: 0 for half of them, 1 and 2 for the judges' quarters."""
    part = np.empty(len(shown), dtype=np.int64)
    for cell in (np.flatnonzero((shown == k) & (group == a)) for k in (0, 1) for a in (0, 1)):
        part[rng.permutation(cell)] = np.array([0, 1, 0, 2])[np.arange(len(cell)) % 4]
    return part


def log_ratio(shifts: Doubles) -> Doubles:
    """Logarithm of women's shift over men's; genders are the last axis, women first."""
    return np.log(shifts[..., 0]) - np.log(shifts[..., 1])


def run(
    H: Doubles, concepts: dict[str, Codes], group: Codes, *, divisions: int, samples: int, n_probes: int, seed: int = 0
) -> tuple[list[str], Judgement]:
    """Judge all concepts under all divisions: arrays of shape (concepts, divisions, samples, methods, genders)."""
    rng = np.random.default_rng(seed)
    judgements, names = [], []
    for shown in concepts.values():
        of_concept = []
        for _ in range(divisions):
            part = divided(shown, group, rng)
            fit = part == 0
            found = directions(H[fit], shown[fit], group[fit], n_probes)
            names = list(found)
            of_concept.append(judged(H, shown, group, part, np.stack(list(found.values())), samples, rng))
        judgements.append(Judgement(*(np.stack(field) for field in zip(*of_concept, strict=True))))
    return names, Judgement(*(np.stack(field) for field in zip(*judgements, strict=True)))


def summary(seen: Judgement, draws: int = 1000, seed: int = 0) -> dict[str, Doubles]:
    """Log-ratios by own judges, free of noise and by the shared judge, (1 + draws, concepts, methods).

    The first of the draws is the estimate from all divisions and samples, the others are bootstrap ones.
    """
    rng = np.random.default_rng(seed)
    C, R, B = seen.own.shape[:3]
    out: dict[str, list[Doubles]] = {"own": [], "free of noise": [], "shared": []}
    for draw in range(1 + draws):
        # Of every division a single sample of judges, as there would be in one experiment.
        at = (np.arange(C)[:, None], rng.integers(R, size=(C, R)), rng.integers(B, size=(C, R)))
        own, product, variance, shared = (
            field.mean(axis=(1, 2)) if draw == 0 else field[at].mean(axis=1) for field in seen[:4]
        )
        out["own"].append(log_ratio(own))
        out["shared"].append(log_ratio(shared))
        out["free of noise"].append(log_ratio(product) - log_ratio(variance) / 2)
    return {name: np.stack(values) for name, values in out.items()}


def interval(draws: Doubles) -> str:
    low, high = np.exp(np.percentile(draws, [2.5, 97.5]))
    return f"[{low:.2f}, {high:.2f}]"


def report(names: list[str], seen: Judgement) -> None:
    ratios = summary(seen)
    print(
        f"{'':<34}{'shift':^14}{'ratio':^20}{'free of noise':^20}{'uneven':>8}{'shared judge':^20}{'reach':^14}\n"
        f"{'':<34}{'women':>7}{'men':>7}{'':<68}{'women':>7}{'men':>7}"
    )
    for m, name in enumerate(names):
        women, men = seen.own[..., m, :].mean(axis=(0, 1, 2))
        cells = [
            f"{np.exp(of[0, :, m].mean()):>6.2f} {interval(of[1:, :, m].mean(axis=1)):<13}"
            for of in (ratios["own"], ratios["free of noise"], ratios["shared"])
        ]
        uneven = np.exp(np.abs(ratios["own"][0, :, m]).mean())
        reach = seen.reach[..., m, :].mean(axis=(0, 1, 2))
        print(
            f"{name:<34}{women:>7.2f}{men:>7.2f}{cells[0]}{cells[1]}{uneven:>8.2f}{cells[2]}"
            f"{reach[0]:>7.2f}{reach[1]:>7.2f}"
        )


def read(folder: Path) -> tuple[Doubles, dict[str, Codes], Codes]:
    """Hidden states, occupations with enough rows of either gender, and genders (0 women, 1 men)."""
    table = pd.read_parquet(folder / "biographies" / "labels.parquet")
    table = table[table["wide"]]
    states = np.load(folder / "biographies" / "hidden_states.f16.npy", mmap_mode="r")[:, LAYER].astype(np.float64)
    counts = pd.crosstab(table["label"].astype(str), table["group"].astype(str)).min(axis=1)
    names = counts[counts >= MIN_ROWS].index
    group = (table["group"] == "male").to_numpy().astype(np.int64)
    return states, {name: (table["label"] == name).to_numpy().astype(np.int64) for name in names}, group


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.concepts", description=__doc__.splitlines()[0])
    parser.add_argument("--divisions", type=int, default=6, help="random divisions of the rows (default: 6)")
    parser.add_argument("--samples", type=int, default=20, help="bootstrap samples of judges for each (default: 20)")
    parser.add_argument("--probes", type=int, default=20, help="probes for each gender (default: 20)")
    datasets.add_data_option(parser)
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("this needs real data: name their folder by --data or the variable FAIRSTEER_DATA")
    fairsteer.show_versions()
    start = time.perf_counter()
    H, concepts, group = read(arguments.data)
    print(f"\n{len(H):,} biographies, {H.shape[1]} features, {(group == 0).sum():,} of women; {', '.join(concepts)}\n")
    names, seen = run(
        H,
        concepts,
        group,
        divisions=arguments.divisions,
        samples=arguments.samples,
        n_probes=arguments.probes,
    )
    report(names, seen)
    print(f"\n{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
