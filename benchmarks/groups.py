"""``python -m benchmarks.groups``: intersections of groups, and groups that are not known when rows are classified.

``acs``: income above 50,000 dollars in the American Community Survey, groups race x sex; fitted to the validation part,
measured on the test part.

``biographies``: occupation by sentence embeddings of biographies. The gender of training rows is known, that of test
rows is used for the measurement alone, except where it says "known". Three folds, so that every row is a test row once.
Matching takes the mean and covariance of the smaller group to those of the larger, whatever the class (Singh et al.
2024); "by MLP" asks a neural network on the embeddings for the gender, "soft" and "hard" the steering's own
distributions. "LR" is logistic regression on steered rows, "Bayes" the Bayes rule of the ideal distribution.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fairsteer
from benchmarks import datasets
from benchmarks.timing import extra_peak_memory
from fairsteer import FairSteeringTransformer, IdealDistributionClassifier
from fairsteer.metrics import gaps, group_metrics, tpr_gap_rms

# Rows that a rate is computed from for a group to take part in the comparison.
MIN_ROWS = 100
FOLDS = 3


def row(name: str, *values: Any, width: int = 44) -> None:
    print(f"{name:<{width}}", *(f"{v:>10.3f}" if isinstance(v, float) else f"{v:>10}" for v in values), flush=True)


# ---- intersections


def acs(folder: Path) -> None:
    table = pd.read_parquet(folder / "tabular" / "acs_income.parquet")
    numbers = ["age", "education", "hours_per_week"]
    # Occupation by its leading digits; relationship is left out, which names the sex (wife, husband).
    categories = table[["class_of_worker", "marital_status"]].assign(occupation=table["occupation_code"] // 500)
    features = pd.concat([table[numbers], pd.get_dummies(categories.astype("category"), drop_first=True)], axis=1)
    X = features.to_numpy(np.float64)
    y = table["income_gt_50k"].to_numpy()
    groups = table[["race", "sex"]]
    train = (table["part"] == "validation").to_numpy()
    print(f"{len(y):,} rows, {X.shape[1]} features; {train.sum():,} to fit, {(~train).sum():,} to measure\n")

    cutoff: list[tuple[str, dict[str, Any]]] = [
        ("as they are", {}),
        *((f"{how}, 500 rows", {"min_subgroup_size": 500, "small_subgroups": how}) for how in ("pool", "merge")),
    ]
    named = {name: FairSteeringTransformer(feature_transform=StandardScaler(), **more) for name, more in cutoff}
    row("fit of the steering, transform", "groups", "fit s", "MB", "transf. s", "KL nats")
    for name, steer in named.items():
        start = time.perf_counter()
        memory = extra_peak_memory(partial(steer.fit, X[train], y[train], sensitive_features=groups[train]))
        fitted = time.perf_counter()
        steer.transform(X[~train], sensitive_features=groups[~train])
        moved = time.perf_counter() - fitted
        row(f"small subgroups {name}", len(steer.groups_), fitted - start, memory // 2**20, moved, steer.kl_divergence_)
    print(f"\nRows by class and group (the fitting part):\n{named['as they are'].moments_.subgroup_table()}\n")

    def measure(name: str, predicted: NDArray[Any]) -> None:
        found = gaps(y[~train], predicted, sensitive_features=groups[~train], min_rows=MIN_ROWS)
        table = group_metrics(y[~train], predicted, sensitive_features=groups[~train])
        opportunity, parity = found["equal_opportunity"], found["demographic_parity"]
        row(
            name,
            float((predicted == y[~train]).mean()),
            float(table["accuracy"].min()),
            parity.value,
            opportunity.value,
            opportunity.noise,
        )

    row("largest gap between two groups", "accuracy", "worst acc.", "dem. par.", "equal opp.", "noise")
    scaled = make_pipeline(StandardScaler(), LogisticRegression())
    measure("logistic regression", scaled.fit(X[train], y[train]).predict(X[~train]))
    for name, steer in named.items():
        for rule, estimator in (("logistic regression", scaled), ("Bayes rule of the ideal", None)):
            start = time.perf_counter()
            classifier = IdealDistributionClassifier(estimator, steer)
            classifier.fit(X[train], y[train], sensitive_features=groups[train])
            measure(f"{name}: {rule}", classifier.predict(X[~train], sensitive_features=groups[~train]))


# ---- groups that are not known


def biographies(folder: Path) -> None:
    rows = datasets.biographies(folder)
    X, y, group = rows.X, rows.y, np.array(rows.groups)[rows.group]
    predicted: dict[str, NDArray[Any]] = {}
    probabilities: dict[str, NDArray[np.float64]] = {}
    guessed: dict[str, NDArray[Any]] = {}

    def keep(store: dict[str, NDArray[Any]], name: str, test: NDArray[Any], values: NDArray[Any]) -> None:
        store.setdefault(name, np.empty((len(y), *values.shape[1:]), dtype=values.dtype))[test] = values

    def classifier() -> LogisticRegression:
        return LogisticRegression(C=10, max_iter=1000)

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(X, rows.y * len(rows.groups) + rows.group)
    for train, test in folds:
        known = {"sensitive_features": group[train]}
        guess = MLPClassifier(early_stopping=True, random_state=0).fit(X[train], group[train])
        by_mlp = guess.predict(X[test])
        keep(probabilities, "MLP", test, guess.predict_proba(X[test]))
        keep(predicted, "no steering: LR", test, classifier().fit(X[train], y[train]).predict(X[test]))

        matching = FairSteeringTransformer(intervention="affirmative").fit(X[train], **known)
        model = classifier().fit(matching.transform(X[train], **known), y[train])
        for name, labels in (("known", group[test]), ("by MLP", by_mlp)):
            steered = matching.transform(X[test], sensitive_features=labels)
            keep(predicted, f"matching, {name}: LR", test, model.predict(steered))

        for intervention in ("affirmative", "all_subgroups"):
            steering = FairSteeringTransformer(intervention=intervention, unknown_group="infer")
            for rule, estimator in (("LR", classifier()), ("Bayes", None)):
                ideal = IdealDistributionClassifier(estimator, steering).fit(X[train], y[train], **known)
                for name, how, labels in (
                    ("known", "infer", group[test]),
                    ("soft", "infer", None),
                    ("hard", "infer_hard", None),
                    ("by MLP", "infer", by_mlp),
                ):
                    ideal.steering_.set_params(unknown_group=how)
                    labels = ideal.predict(X[test], sensitive_features=labels)
                    keep(predicted, f"steering, {intervention}, {name}: {rule}", test, labels)
        calibrated = ideal.steering_
        keep(probabilities, "fitted Gaussians, calibrated", test, calibrated.predict_group_proba(X[test]))
        plain = FairSteeringTransformer().fit(X[train], y[train], **known)
        keep(probabilities, "fitted Gaussians", test, plain.predict_group_proba(X[test]))

    print(f"{len(y):,} biographies, {len(rows.classes)} occupations, {FOLDS} folds\n")
    row("probability of the gender", "log loss", "ECE", "accuracy")
    for name, proba in probabilities.items():
        guessed[name] = proba.argmax(axis=1)
        row(
            name,
            log_loss(rows.group, proba),
            calibration_error(proba, rows.group),
            float((guessed[name] == rows.group).mean()),
        )
    print()
    row("steering, gender at test time: classifier", "accuracy", "RMS gap", "floor")
    for name, labels in predicted.items():
        gap = tpr_gap_rms(y, labels, sensitive_features=rows.group)
        row(name, float((labels == y).mean()), gap, floor(y, labels, rows.group))


def calibration_error(proba: NDArray[np.float64], truth: NDArray[np.int64], bins: int = 15) -> float:
    """Expected calibration error of the second class, over bins of equal width."""
    p, is_second = proba[:, 1], truth == 1
    which = np.minimum((p * bins).astype(int), bins - 1)
    difference = np.bincount(which, p - is_second, minlength=bins)
    return float(np.abs(difference).sum() / len(p))


def floor(y: NDArray[Any], predicted: NDArray[Any], group: NDArray[Any]) -> float:
    """RMS gap between two groups that there would be by chance, without a true gap."""
    K = int(y.max()) + 1
    n = np.array([np.bincount(y[group == a], minlength=K) for a in (0, 1)])
    p = np.bincount(y[predicted == y], minlength=K) / n.sum(axis=0)
    return float(np.sqrt(np.mean(p * (1 - p) * (1 / n[0] + 1 / n[1]))))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.groups", description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=["acs", "biographies"])
    datasets.add_data_option(parser)
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("this needs real data: name their folder by --data or the variable FAIRSTEER_DATA")
    fairsteer.show_versions()
    print()
    warnings.simplefilter("ignore", UserWarning)  # standardised one-hot columns are no news here
    start = time.perf_counter()
    {"acs": acs, "biographies": biographies}[arguments.which](arguments.data)
    print(f"\n{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
