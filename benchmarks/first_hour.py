"""``python -m benchmarks.first_hour``: the README's ways to equal recognition rates, on COMPAS and Adult.

A half of the rows trains, the other measures, and another half each time; nothing is tuned. Printed for every way:
accuracy, what it loses against doing nothing with the same classifier, the gap with its sign (first group less second),
which goes to 0 over many halves, and without, which does not: the halves alone make a gap.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.base import ClassifierMixin
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks.datasets import add_data_option
from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, IdealDistributionClassifierCV

CLASSIFIERS = {
    "logistic regression": make_pipeline(StandardScaler(), LogisticRegression()),
    "boosting": HistGradientBoostingClassifier(max_leaf_nodes=8, learning_rate=0.05, random_state=0),
}


def compas(folder: Path) -> tuple[pd.DataFrame, pd.Series, str]:
    """Arrested again within two years, for the two largest races; without COMPAS' own scores."""
    table = pd.read_parquet(folder / "tabular" / "compas.parquet")
    table = table[table["race"].isin(["African-American", "Caucasian"])]
    counts = ["juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count"]
    table = table.assign(race=table["race"].astype(str))
    return table[["sex", "age", *counts, "c_charge_degree", "race"]], table["two_year_recid"], "race"


def adult(folder: Path) -> tuple[pd.DataFrame, pd.Series, str]:
    """Income above 50,000 dollars, from all columns."""
    table = pd.read_parquet(folder / "tabular" / "adult.parquet")
    return table.drop(columns=["income", "split", "fnlwgt"]), table["income"].astype(str), "sex"


def encoded(table: pd.DataFrame, sensitive: str) -> pd.DataFrame:
    """Text as 0/1; the sensitive column stays as it is."""
    text = table.drop(columns=sensitive).select_dtypes(exclude="number").columns
    encode = make_column_transformer(
        (OneHotEncoder(sparse_output=False, handle_unknown="ignore"), text),
        remainder="passthrough",
        verbose_feature_names_out=False,
    )
    rows: pd.DataFrame = encode.set_output(transform="pandas").fit_transform(table)
    return rows


def ways(classifier: ClassifierMixin, sensitive: str, *, search: bool = True) -> dict[str, Any]:
    """What the README tries, with the search over all of it or without."""
    steering = FairSteeringTransformer(sensitive_columns=[sensitive], feature_transform=StandardScaler())
    nothing = {"steering__strength": [0]}
    align: Literal["equal_opportunity"] = "equal_opportunity"
    found: dict[str, Any] = {
        "before": IdealDistributionClassifierCV(classifier, steering, candidates=nothing),
        "scores aligned": IdealDistributionClassifierCV(
            classifier, steering, candidates={**nothing, "score_alignment": [align]}
        ),
        "features steered, scores aligned": IdealDistributionClassifier(classifier, steering, score_alignment=align),
    }
    if search:
        found["chosen by the rows"] = IdealDistributionClassifierCV(classifier, steering)
    return found


def measured(
    rows: pd.DataFrame, y: pd.Series, sensitive: str, made: Callable[[], dict[str, Any]], random_state: int
) -> dict[str, tuple[float, float]]:
    """Accuracy, and recognition rate of the second class in the first group less that in the second, of every way."""
    train, test, y_train, y_test = train_test_split(rows, y, test_size=0.5, random_state=random_state)
    group, positive = test[sensitive].to_numpy(), y_test.to_numpy() == np.unique(y)[1]
    found = {}
    for name, model in made().items():
        right = model.fit(train, y_train).predict(test) == y_test.to_numpy()
        first, second = (right[positive & (group == label)].mean() for label in np.unique(group))
        found[name] = (float(right.mean()), float(first - second))
    return found


def table_of(found: list[dict[str, tuple[float, float]]]) -> str:
    """Lines of Markdown: means over halves, with standard errors."""
    lines = ["| | accuracy | lost, points | gap | size of gap |", "|---|---|---|---|---|"]
    before = np.array([one["before"][0] for one in found])
    for name in found[0]:
        accuracy, gap = np.array([one[name] for one in found]).T
        columns = (100 * (before - accuracy), gap, np.abs(gap))
        errors = [float(np.std(x, ddof=1) / np.sqrt(len(x))) for x in columns]
        (lost, signed, size), (of_lost, of_gap, of_size) = ([float(x.mean()) for x in columns], errors)
        lines.append(
            f"| {name} | {accuracy.mean():.4f} | {lost:.2f} ± {of_lost:.2f} | {signed:+.3f} ± {of_gap:.3f} "
            f"| {size:.3f} ± {of_size:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--splits", type=int, default=20, help="halves (default: 20)")
    parser.add_argument("--quick", action="store_true", help="without the search, which takes most of the time")
    parser.add_argument("--only", choices=["compas", "adult"], help="one table alone")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    for name, load in (("compas", compas), ("adult", adult)):
        if options.only in (None, name):
            table, y, sensitive = load(options.data)
            rows = encoded(table, sensitive)
            for of, classifier in CLASSIFIERS.items():
                make = partial(ways, classifier, sensitive, search=not options.quick)
                found = [measured(rows, y, sensitive, make, seed) for seed in range(options.splits)]
                print(f"\n**{name}, {of}**, {options.splits} halves\n\n{table_of(found)}", flush=True)


if __name__ == "__main__":
    main()
