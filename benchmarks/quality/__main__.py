"""``python -m benchmarks.quality``: accuracy and gaps between groups on real tables, steering beside other methods.

``python -m benchmarks.quality cv`` measures IdealDistributionClassifierCV alone, beside nothing and fairlearn's
ThresholdOptimizer, and replaces the lines of these.

Every split draws rows of each data set (at most ``--rows``), stratified by class and group, trains on 70 % and measures
on the rest; all methods see the same splits. Hyperparameters of the classifiers come from five folds of the training
rows. Randomised predictions are measured in exact expectation: a gap is that of the
expected rates.

Writes ``results.csv`` (a line for each data set, split, classifier and method, as they are done; ``--resume`` goes on),
``run.json``, ``README.md`` and a picture for each data set to ``--output``.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import datasets
from benchmarks.quality import report
from benchmarks.quality.methods import CLASSIFIERS, MEASURES, SEARCH, compared_with_search, data_sets, evaluate, split

FIELDS = ("data", "split", "classifier", "method", *MEASURES, "chosen", "seconds")
OUTPUT = Path(__file__).parents[1] / "results" / "quality"


def description(arguments: argparse.Namespace) -> dict[str, Any]:
    packages = ("fairsteer", "numpy", "scipy", "scikit-learn", "fairlearn", "POT", "matplotlib")
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    return {
        "command": f"python -m benchmarks.quality{' cv' * (arguments.what == 'cv')} --splits {arguments.splits} "
        f"--rows {arguments.rows}",
        "versions": {"python": platform.python_version()}
        | {p: importlib.metadata.version(p) if p.lower() in installed else "not installed" for p in packages},
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": os.environ.get("OMP_NUM_THREADS", f"all of {os.cpu_count()}"),
        "data": {},
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", nargs="?", choices=("all", "cv"), default="all", help="all methods, or the search alone"
    )
    datasets.add_data_option(parser)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--rows", type=int, default=20_000, help="rows of a data set that a split draws, at most")
    parser.add_argument("--only", metavar="NAME", help="data sets whose name contains it")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FOLDER")
    parser.add_argument("--resume", action="store_true", help="keep the lines that are there, do the others")
    parser.add_argument("--report", action="store_true", help="only write tables and pictures of the lines there are")
    arguments = parser.parse_args()
    results, record = arguments.output / "results.csv", arguments.output / "run.json"
    if not arguments.report:
        if arguments.data is None:
            parser.error("--data: the folder of the data sets; or set FAIRSTEER_DATA")
        if importlib.util.find_spec("ot") is None:
            print("POT is not installed: LinearTransport is left out (pip install pot).", file=sys.stderr)
        run(arguments, results, record)
    report.write(arguments.output, results, record)
    return 0


def run(arguments: argparse.Namespace, results: Path, record: Path) -> None:
    arguments.output.mkdir(parents=True, exist_ok=True)
    alone = arguments.what == "cv"
    lines: list[dict[str, Any]] = []
    about = description(arguments)
    if (arguments.resume or alone) and results.exists():
        with results.open(newline="") as file:
            lines = list(csv.DictReader(file, restval=""))
        before = json.loads(record.read_text())
        about = {**before, "search": about} if alone else {**about, "data": before["data"]}
    done = {
        (one["data"], int(one["split"]), one["classifier"])
        for one in lines
        if arguments.resume and (not alone or one["method"] == SEARCH)
    }
    chosen = {name: load() for name, load in data_sets(arguments.data).items() if (arguments.only or "") in name}
    told: Counter[str] = Counter()
    # All data sets of a split before the next split: a run that is cut off has as many of each.
    for seed in range(arguments.splits):
        for name, rows in chosen.items():
            missing = [kind for kind in CLASSIFIERS if (name, seed, kind) not in done]
            if not missing:
                continue
            start = time.perf_counter()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                train, test = split(rows, seed, arguments.rows)
                compare = compared_with_search if alone else evaluate
                new = [
                    {
                        "data": name,
                        "split": str(seed),
                        **{k: f"{v:.5f}" if k in MEASURES else v for k, v in one.items()},
                    }
                    for kind in missing
                    for one in compare(train, test, kind)
                ]
            told.update(f"{w.category.__name__}: {str(w.message)[:100]}" for w in caught)
            replaced = {key_of(one) for one in new}
            lines = [*(one for one in lines if key_of(one) not in replaced), *new]
            with results.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(lines)
            about["data"][name] = {
                "rows": len(rows.y),
                "train": len(train.y),
                "test": len(test.y),
                "features": train.X.shape[1],
                "numeric": train.n_numeric,
                "groups": rows.groups,
                "smallest cell of the test rows": int(np.bincount(test.y * len(rows.groups) + test.group).min()),
            }
            record.write_text(json.dumps(about, indent=2) + "\n")
            print(f"{name}, split {seed}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    for message, times in told.most_common():
        print(f"{times} x {message}", file=sys.stderr)


def key_of(line: dict[str, Any]) -> tuple[str, ...]:
    return tuple(line[name] for name in ("data", "split", "classifier", "method"))


if __name__ == "__main__":
    sys.exit(main())
