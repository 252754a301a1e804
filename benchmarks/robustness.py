"""``python -m benchmarks.robustness``: which maps hold on real rows, over data sets, draws of columns, classifiers.

The rule by which the default was chosen, written down before this run but after trials on the same tables, so that it
is no blind one (docs/quality.md says what was tried): the smallest larger gap, averaged over
problems and over logistic regression and gradient boosting, at no more than .003 of mean accuracy lost, the constraint
being the ideal of all criteria; what is within a standard error of it is as good, and of that the map that moves less
is taken.

A problem is a data set with some of its columns (the first draw takes all, the others half of them at random). Rows are
split into folds; every method is fitted on the other folds, and all folds' held-out predictions are measured together:
accuracy, the gap of true-positive rates, the larger of that and of the gap of false-positive rates. A method makes a
problem *worse* when its larger gap is more than .02 above that of doing nothing. What linear models and trees can still
read of the group (`group_leakage`) is measured on held-out rows of the first draw.

Writes ``results.csv`` (a line for each problem, classifier and method), ``README.md`` and a picture to ``--output``.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import datasets
from benchmarks import fairness_methods as fm
from benchmarks.datasets import Rows
from benchmarks.fairness_methods import Table
from fairsteer import (
    CovarianceMatchingTransformer,
    FairSteeringTransformer,
    LeaceTransformer,
    MeanMatchingTransformer,
)
from fairsteer.metrics import group_leakage

OUTPUT = Path(__file__).parent / "results" / "robustness"
FOLDS = 4
NOTHING, DEFAULT = "none", "the default"
CLASSIFIERS: dict[str, Any] = {
    "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    "gradient boosting": HistGradientBoostingClassifier(max_iter=60, random_state=0),
    "nearest neighbours": make_pipeline(StandardScaler(), KNeighborsClassifier(25)),
}
MEASURES = ("accuracy", "tpr_gap", "larger_gap")
FIELDS = ("data", "draw", "classifier", "method", *MEASURES, "leakage_linear", "leakage_trees", "seconds")

SETS: dict[str, Callable[[Path], Rows]] = {
    "adult, sex": datasets.adult_in_full,
    "compas, race": datasets.compas_two_races,
    "german credit, sex": datasets.german_credit,
    "law school, race": datasets.law_school,
    "acs income, sex": lambda folder: datasets.acs_income(folder, "sex"),
}


def methods() -> dict[str, fm.Preprocessing]:
    steer = FairSteeringTransformer
    found: dict[str, Any] = {DEFAULT: steer()}
    for constraint in ("ideal", "equal_opportunity", "demographic_parity"):
        for map_type in ("translation", "diagonal", "symmetric", "affine", "monotone"):
            found[f"{map_type}, {constraint}"] = steer(map_type=map_type, constraint=constraint)
    found["monotone, ideal, flags too"] = steer(map_type="monotone", min_distinct=2)
    found["affine, ideal, own shares"] = steer(map_type="affine", standardize=False)
    found["affine, ideal, full"] = steer(map_type="affine", covariance="full")
    found["symmetric, ideal, full, affirmative"] = steer(
        map_type="symmetric", covariance="full", intervention="affirmative"
    )
    scaled = {"feature_transform": StandardScaler()}
    found |= {
        "mean matching": MeanMatchingTransformer(),
        "mean matching, standardised": MeanMatchingTransformer(standardize=True),
        "covariance matching": CovarianceMatchingTransformer(**scaled),
        "covariance matching, standardised": CovarianceMatchingTransformer(standardize=True, **scaled),
        "LEACE": LeaceTransformer(),
    }
    return (
        {NOTHING: fm.unchanged}
        | {name: fm.transformed(transformer) for name, transformer in found.items()}
        | {"CorrelationRemover": fm.correlation_removed}
    )


def draws(rows: Rows, n: int, rng: np.random.Generator) -> Iterator[Any]:
    """Make transformers of all columns, then of half of them."""
    parts = rows.features.transformers
    columns = [(i, column) for i, (_, _, some) in enumerate(parts) for column in some]
    yield rows.features
    for _ in range(n - 1):
        chosen = [columns[j] for j in sorted(rng.choice(len(columns), max(2, len(columns) // 2), replace=False))]
        yield make_column_transformer(
            *((parts[i][1], [c for own, c in chosen if own == i]) for i in sorted({own for own, _ in chosen}))
        )


def problems(rows: Rows, n_draws: int, most: int) -> Iterator[list[tuple[Table, Table]]]:
    """Folds of every draw: tables to fit to, and tables that are held out."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(rows.y))[:most]
    y, group = rows.y[chosen], rows.group[chosen]
    for features in draws(rows, n_draws, rng):
        folds = []
        splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        for train, test in splitter.split(chosen, y * (group.max() + 1) + group):
            fitted = features.fit(rows.X.iloc[chosen[train]])
            X = np.asarray(fitted.transform(rows.X.iloc[chosen]), dtype=np.float64)
            X = X[:, np.ptp(X[train], axis=0) > 0]
            before, after = (Table(X[part], y[part], group[part], 0) for part in (train, test))
            folds.append((before, after))
        yield folds


def measured(y: NDArray[Any], predicted: NDArray[Any], group: NDArray[Any]) -> dict[str, float]:
    gaps = []
    for label in (1, 0):
        rates = [predicted[(y == label) & (group == a)].mean() for a in np.unique(group)]
        gaps.append(max(rates) - min(rates))
    return {"accuracy": float((y == predicted).mean()), "tpr_gap": gaps[0], "larger_gap": max(gaps)}


def aligned_predictions(classifier: Any, train: Table, test: Table) -> NDArray[Any]:
    from sklearn.base import clone

    from fairsteer import ScoreAligner

    aligner = ScoreAligner(clone(classifier)).fit(train.X, train.y, sensitive_features=train.group)
    return np.asarray(aligner.predict(test.X, sensitive_features=test.group))


def optimised_predictions(classifier: Any, train: Table, test: Table) -> NDArray[Any]:
    from fairlearn.postprocessing import ThresholdOptimizer
    from sklearn.base import clone

    optimizer = ThresholdOptimizer(
        estimator=clone(classifier), constraints="true_positive_rate_parity", predict_method="predict_proba"
    ).fit(train.X, train.y, sensitive_features=train.group)
    return np.asarray(optimizer.predict(test.X, sensitive_features=test.group, random_state=0))


POST = {"ScoreAligner": aligned_predictions, "ThresholdOptimizer": optimised_predictions}


def lines(folder: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from sklearn.base import clone

    changes = methods()
    for data, load in SETS.items():
        rows = load(folder)
        for draw, folds in enumerate(problems(rows, arguments.draws, arguments.rows)):
            y = np.concatenate([test.y for _, test in folds])
            group = np.concatenate([test.group for _, test in folds])
            for method, change in changes.items():
                began = time.perf_counter()
                steered = [change(train, test) for train, test in folds]
                seconds = time.perf_counter() - began
                leakage: dict[str, float] = {}
                if draw == 0:
                    # Held-out rows of one fold: the map, too, has not seen them.
                    test = steered[0][1]
                    for name, family in (("leakage_linear", "linear"), ("leakage_trees", "boosting")):
                        found = group_leakage(test.X, test.y, sensitive_features=test.group, estimator=family, cv=3)
                        leakage[name] = found.largest_auc
                for classifier in arguments.classifiers:
                    predicted = [
                        clone(CLASSIFIERS[classifier]).fit(train.X, train.y).predict(test.X) for train, test in steered
                    ]
                    numbers = measured(y, np.concatenate(predicted), group)
                    about = {"data": data, "draw": draw, "classifier": classifier, "method": method}
                    yield about | numbers | leakage | {"seconds": seconds}
            for method, predict in POST.items():
                for classifier in arguments.classifiers:
                    began = time.perf_counter()
                    predicted = [predict(CLASSIFIERS[classifier], *fold) for fold in folds]
                    numbers = measured(y, np.concatenate(predicted), group)
                    about = {"data": data, "draw": draw, "classifier": classifier, "method": method}
                    yield about | numbers | {"seconds": time.perf_counter() - began}
            print(f"{data}, draw {draw + 1} of {arguments.draws}", file=sys.stderr, flush=True)


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Means over problems, with the standard error of their differences from doing nothing."""
    key = ["data", "draw", "classifier"]
    before = results[results["method"] == NOTHING].set_index(key)[list(MEASURES)].add_suffix("_before")
    joined = results.join(before, on=key)
    joined["lost"] = joined["accuracy_before"] - joined["accuracy"]
    joined["worse"] = joined["larger_gap"] > joined["larger_gap_before"] + 0.02
    joined["change"] = joined["larger_gap"] - joined["larger_gap_before"]
    found = joined.groupby(["classifier", "method"], sort=False).agg(
        lost=("lost", "mean"),
        lost_error=("lost", "sem"),
        tpr_gap=("tpr_gap", "mean"),
        larger_gap=("larger_gap", "mean"),
        change_error=("change", "sem"),
        worse=("worse", "mean"),
        leakage_linear=("leakage_linear", "mean"),
        leakage_trees=("leakage_trees", "mean"),
        seconds=("seconds", "median"),
    )
    nothing = found.xs(NOTHING, level="method")
    for gap in ("tpr_gap", "larger_gap"):
        of_nothing = nothing[gap].to_dict()
        found[f"{gap}_ratio"] = found[gap] / [of_nothing[name] for name in found.index.get_level_values("classifier")]
    return found.reset_index()


def write(folder: Path, results: pd.DataFrame, command: str) -> None:
    found = summary(results)
    packages = ("fairsteer", "numpy", "scipy", "scikit-learn", "fairlearn")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    n_problems = results.groupby(["data", "draw"]).ngroups
    text = [
        "# Which maps hold on real rows",
        "",
        f"    {command}",
        "",
        f"Python {platform.python_version()}, {versions}; threads: {os.environ.get('OMP_NUM_THREADS', 'all')}.",
        f"{n_problems} problems ({results['data'].nunique()} data sets, draws of their columns), {FOLDS} folds each.",
        "Lost: mean accuracy lost against doing nothing ± standard error over problems. Gaps: means, and as a share",
        "of that of doing nothing. ±: standard error of the change of the larger gap. Worse: share of problems whose",
        "larger gap grew by more than .02. Leakage: mean over data sets of the largest area under the curve with which",
        "a family of classifiers tells the groups apart within a class (.5: a coin). All: [results.csv](results.csv).",
    ]
    head = ("method", "lost", "TPR gap", "larger gap", "±", "worse", "leakage, linear", "leakage, trees")
    for classifier, part in found.groupby("classifier", sort=False):
        text += ["", f"## {classifier!s}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for line in part.sort_values("larger_gap").to_dict("records"):
            cells = [
                str(line["method"]),
                f"{line['lost']:+.4f} ± {line['lost_error']:.4f}",
                *(f"{line[gap]:.3f} ({line[f'{gap}_ratio']:.2f})" for gap in ("tpr_gap", "larger_gap")),
                f"{line['change_error']:.3f}",
                f"{line['worse']:.0%}",
                *(f"{line[f'leakage_{of}']:.2f}".replace("nan", "") for of in ("linear", "trees")),
            ]
            text.append(f"| {' | '.join(cells)} |")
    (folder / "README.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    picture(found, folder / "robustness.png")


#: What the picture shows, from top to bottom.
_SHOWN = {
    "ScoreAligner": "ScoreAligner",
    "ThresholdOptimizer": "ThresholdOptimizer (randomised)",
    DEFAULT: "FairSteeringTransformer()",
    "LEACE": "LEACE",
    "translation, ideal": "translation",
    "mean matching": "mean matching",
    "covariance matching": "covariance matching",
    "affine, ideal": "affine map",
}


def picture(found: pd.DataFrame, path: Path) -> None:
    """What is left of the larger gap, and beside it the points of accuracy that it cost, for each classifier."""
    from matplotlib.figure import Figure

    classifiers = list(found["classifier"].unique())
    figure = Figure(figsize=(3.4 * len(classifiers) + 1.8, 3.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(classifiers), sharey=True))
    for ax, classifier in zip(panels, classifiers, strict=True):
        part = found[found["classifier"] == classifier].set_index("method")
        ax.axvline(1, color="0.6", lw=1, ls=":")
        for height, method in enumerate(name for name in _SHOWN if name in part.index):
            line = part.loc[method]
            color = "#D55E00" if method == DEFAULT else "#0072B2" if method == "ScoreAligner" else "0.45"
            ax.plot([0, line["larger_gap_ratio"]], [height, height], color=color, lw=1.5, alpha=0.5)
            ax.plot(line["larger_gap_ratio"], height, "o", color=color)
            gained = f"{round(-100 * line['lost'], 1) + 0:+.1f}".replace("-", "\N{MINUS SIGN}")
            ax.text(2.3, height, gained, ha="right", va="center")
        ax.text(2.3, -1, "accuracy", ha="right", va="center", color="0.35")
        ax.text(1, -1, "nothing", ha="center", va="center", color="0.35")
        ax.set(title=classifier, xlim=(0, 2.35), ylim=(len(_SHOWN) - 0.5, -1.5), xticks=[0, 0.5, 1, 1.5])
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(_SHOWN)), _SHOWN.values())
    figure.supxlabel("larger of the true- and false-positive gap, as a share of doing nothing", fontsize="medium")
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness", description=__doc__.splitlines()[0])
    datasets.add_data_option(parser)
    parser.add_argument("--draws", type=int, default=7)
    parser.add_argument("--rows", type=int, default=12_000, help="rows of a data set, at most")
    parser.add_argument("--classifiers", nargs="+", choices=list(CLASSIFIERS), default=list(CLASSIFIERS))
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("this benchmark needs real rows: --data or FAIRSTEER_DATA")
    arguments.output.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), (arguments.output / "results.csv").open("w", newline="") as file:
        warnings.simplefilter("ignore")  # of small cells and slow convergence, by the hundred
        writer = csv.DictWriter(file, FIELDS, restval="")
        writer.writeheader()
        for line in lines(arguments.data, arguments):
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()})
            file.flush()
    results = pd.read_csv(arguments.output / "results.csv", keep_default_na=True)
    results["method"] = results["method"].fillna(NOTHING)
    command = f"python -m benchmarks.robustness --draws {arguments.draws} --rows {arguments.rows}"
    if arguments.classifiers != list(CLASSIFIERS):
        command += " --classifiers" + "".join(f" '{name}'" for name in arguments.classifiers)
    write(arguments.output, results, command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
