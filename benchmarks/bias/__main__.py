"""``python -m benchmarks.bias``: train on rows that are biased in one group, judge on labels that are not.

``python -m benchmarks.bias rounds`` measures decisions in rounds (`benchmarks.bias.rounds`).

Rows of five data sets get a group at random, so that nothing depends on it; then one bias after the other is put into
the rows of group 1, weak to strong. Every method is fitted to the same biased rows, and its decisions about other rows,
whose features are as the group delivers them, are compared with their true labels. Randomised decisions are measured in
expectation.

What is done is kept in ``--cache``, a file for each data set and repeat, so that a run goes on where it ended, and
``--minutes`` ends one. Writes ``README.md``, ``results.csv`` and a picture to ``--output``.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import datasets
from benchmarks.bias import report, rounds
from benchmarks.bias.biases import BIASES, Codes, Floats, Sample, data_sets, drawn, features_of
from benchmarks.bias.measures import MEASURES, measured
from benchmarks.bias.methods import CLASSIFIERS, METHODS, Problem, is_tried
from benchmarks.fairness_methods import Table

RESULTS = Path(__file__).parents[1] / "results"
OUTPUT = {"table": RESULTS / "bias", "rounds": RESULTS / "rounds"}
CACHE = Path("build") / "bias"
KEY = ("bias", "level", "classifier", "method")


def problem_of(train: Sample, test: Sample, classifier: Any) -> Problem:
    """What a method gets to see: labels as they are seen, and none of the rows to decide about."""
    hidden = np.zeros(len(test.y), dtype=np.int64)
    return Problem(
        Table(train.X, train.seen, train.group, train.n_numeric),
        Table(test.X, hidden, test.group, test.n_numeric),
        classifier,
    )


def lines(sample: Sample, n_train: int, repeat: int, missing: list[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """A line for each of the missing settings; a method that refuses the rows leaves no numbers."""
    training = np.arange(len(sample.y)) < n_train
    of_setting: dict[tuple[str, str, str], list[str]] = {}
    for bias, level, classifier, method in missing:
        of_setting.setdefault((bias, level, classifier), []).append(method)
    for (bias, level, classifier), methods in of_setting.items():
        biased, visible = BIASES[bias].make(sample, float(level), np.random.default_rng([repeat, 1]))
        train, test = biased.take(training & visible), biased.take(~training)
        problem = problem_of(train, test, CLASSIFIERS[classifier])
        for method in methods:
            start = time.perf_counter()
            try:
                found = measured(test.y, METHODS[method].decide(problem), test.group)
            except ValueError as error:
                print(f"{bias} {level}, {classifier}, {method}: {error}", file=sys.stderr)
                found = dict.fromkeys(MEASURES, float("nan"))
            key = dict(zip(KEY, (bias, level, classifier, method), strict=True))
            yield key | found | {"seconds": time.perf_counter() - start}


def wanted(arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    return [
        (bias, str(level), classifier, method)
        for bias, about in BIASES.items()
        if _chosen(bias, arguments.only)
        for level in ((about.shown,) if arguments.shown else about.levels)
        for classifier in CLASSIFIERS
        if _chosen(classifier, arguments.classifiers)
        for method in METHODS
        if _chosen(method, arguments.methods) and is_tried(method, bias, level, classifier)
    ]


def _chosen(name: str, among: list[str] | None) -> bool:
    return among is None or name in among


def run(arguments: argparse.Namespace) -> bool:
    """Do what is missing in the cache; whether all was done in the minutes there were."""
    arguments.cache.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * arguments.minutes
    features = Features(arguments.data)
    # All data sets of a repeat before the next repeat: a run that is cut off has as many of each.
    for repeat in arguments.repeats:
        for name in data_sets(arguments.data):
            path = arguments.cache / f"{name.replace(' ', '-')}-{repeat}.csv"
            asked = wanted(arguments)
            before = _read(path)
            if arguments.again:
                before = [one for one in before if tuple(one[k] for k in KEY) not in set(asked)]
            done = {tuple(one[k] for k in KEY) for one in before}
            missing = [one for one in asked if one not in done]
            if not missing:
                continue
            if time.monotonic() > ends:
                return False
            sample = features.drawn(name, arguments.rows + arguments.judged, repeat)
            found = list(before)
            for line in lines(sample, arguments.rows, repeat, missing):
                found.append(_rounded(line))
                if time.monotonic() > ends:
                    break
            _write(path, found)
            print(f"{name}, repeat {repeat}: {len(found)} of {len(before) + len(missing)}", file=sys.stderr, flush=True)
    return True


def run_rounds(arguments: argparse.Namespace) -> bool:
    """The same of the rounds, a file at a time."""
    folder = arguments.cache / "rounds"
    folder.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * arguments.minutes
    features = Features(arguments.data)
    for repeat in arguments.repeats:
        for name in data_sets(arguments.data):
            path = folder / f"{name.replace(' ', '-')}-{repeat}.csv"
            if path.exists() and not arguments.again:
                continue
            if time.monotonic() > ends:
                return False
            n_rows = arguments.rows_of_a_round
            sample = features.drawn(name, (rounds.ROUNDS + 1) * n_rows + arguments.judged, repeat)
            found = []
            for drift in (False, True):
                world = rounds.World(sample, n_rows, drift=drift, rng=np.random.default_rng([repeat, 2]))
                for policy, played in rounds.played(world):
                    for t, measures in enumerate(played, start=1):
                        found.append({"drift": int(drift), "policy": policy, "round": t} | _rounded(measures))
            _write(path, found)
            print(f"rounds, {name}, repeat {repeat}", file=sys.stderr, flush=True)
    return True


class Features:
    """Features of the data sets, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, tuple[Floats, int, Codes]] = {}

    def drawn(self, name: str, n_rows: int, repeat: int) -> Sample:
        if name not in self.made:
            rows = data_sets(self.folder)[name]()
            self.made[name] = (*features_of(rows), rows.y)
        Z, n_numeric, y = self.made[name]
        return drawn(Z, y, n_numeric, n_rows, repeat)


def _rounded(line: dict[str, Any]) -> dict[str, Any]:
    return {key: f"{value:.5f}" if isinstance(value, float) else value for key, value in line.items()}


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, found: list[dict[str, Any]]) -> None:
    new = path.with_suffix(".new")
    with new.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    new.replace(path)


def collected(cache: Path) -> pd.DataFrame:
    """All lines of the cache, with their data set and repeat."""
    parts = []
    for path in sorted(cache.glob("*.csv")):
        name, _, repeat = path.stem.rpartition("-")
        parts.append(pd.read_csv(path, keep_default_na=False).assign(data=name.replace("-", " "), repeat=int(repeat)))
    return pd.concat(parts, ignore_index=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bias", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=tuple(OUTPUT), default="table")
    datasets.add_data_option(parser)
    parser.add_argument("--rows", type=int, default=3000, help="rows to train on (%(default)s)")
    parser.add_argument("--rows-of-a-round", type=int, default=400, metavar="ROWS", help="rounds: (%(default)s)")
    parser.add_argument("--judged", type=int, default=4000, help="rows to judge on, at most (%(default)s)")
    parser.add_argument("--repeats", type=int, nargs="+", default=list(range(5)), metavar="SEED")
    parser.add_argument("--only", nargs="+", choices=list(BIASES), help="these biases")
    parser.add_argument("--classifiers", nargs="+", choices=list(CLASSIFIERS), help="these classifiers")
    parser.add_argument("--shown", action="store_true", help="the middle level of every bias alone")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="these methods")
    parser.add_argument("--again", action="store_true", help="do again what was done")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after so long; call again to go on")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="FOLDER")
    parser.add_argument("--output", type=Path, metavar="FOLDER")
    parser.add_argument("--report", action="store_true", help="only write tables and pictures of what is there")
    arguments = parser.parse_args()
    if not arguments.report and arguments.data is None:
        parser.error("real rows are needed: --data FOLDER, or FAIRSTEER_DATA")
    output = arguments.output or OUTPUT[arguments.what]
    output.mkdir(parents=True, exist_ok=True)
    of_rounds = arguments.what == "rounds"
    if not arguments.report:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of small cells and slow convergence, by the hundred
            done = run_rounds(arguments) if of_rounds else run(arguments)
        if not done:
            print("Not done yet: call again to go on.", file=sys.stderr)
            return 0
    if of_rounds:
        report.write_rounds(output, collected(arguments.cache / "rounds"))
    else:
        report.write(output, collected(arguments.cache))
    return 0


if __name__ == "__main__":
    sys.exit(main())
