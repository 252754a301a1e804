"""``python -m benchmarks.first_hour``: the README's ways to equal recognition rates, on COMPAS and Adult.

A half of the rows trains, the other measures, and another half each time; nothing is tuned. Printed for every way:
accuracy, what it loses against doing nothing with the same classifier, the gap with its sign (first group less second),
which goes to 0 over many halves, and without, which does not: the halves alone make a gap. Then what equal rates cost
at least, by thresholds on the scores of doing nothing that are chosen on the rows that measure them, and what every way
loses against doing nothing with the first classifier.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
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

#: Equal rates by thresholds that know the rows that measure them.
THRESHOLDS = "best of all thresholds"

_KINDS = (".2f", "+.3f", ".3f", ".2f")


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
        if name == "before":
            found[THRESHOLDS] = best_at_equal_rates(model.predict_proba(test)[:, 1], positive, group)
    return found


def best_at_equal_rates(
    scores: npt.NDArray[Any], positive: npt.NDArray[Any], group: npt.NDArray[Any]
) -> tuple[float, float]:
    """Largest accuracy of all thresholds that recognise as many of two groups, up to equal scores; and the gap."""
    wanted = np.linspace(0, 1, 2001)
    right, rates = np.zeros(len(wanted)), []
    for label in np.unique(group):
        of_positive, of_negative = (np.sort(scores[(group == label) & (positive == kind)]) for kind in (True, False))
        n = len(of_positive)
        thresholds = np.append(of_positive, np.inf)[n - np.rint(wanted * n).astype(np.intp)]
        recognised = n - np.searchsorted(of_positive, thresholds)
        right += recognised + np.searchsorted(of_negative, thresholds)
        rates.append(recognised / n)
    best = right.argmax()
    return float(right[best] / len(scores)), float(rates[0][best] - rates[1][best])


def table_of(found: list[dict[str, tuple[float, float]]], first: list[dict[str, tuple[float, float]]]) -> str:
    """Lines of Markdown: means over halves, with standard errors; `first` is of the first classifier."""
    lines = ["| | accuracy | lost, points | gap | size of gap | lost against the first |", "|---|---|---|---|---|---|"]
    before, of_first = (np.array([one["before"][0] for one in of]) for of in (found, first))
    for name in found[0]:
        accuracy, gap = np.array([one[name] for one in found]).T
        columns = (100 * (before - accuracy), gap, np.abs(gap), 100 * (of_first - accuracy))
        means = [float(x.mean()) for x in columns]
        errors = [float(np.std(x, ddof=1) / np.sqrt(len(x))) for x in columns]
        told = [f"{x:{kind}} ± {e:{kind[-3:]}}" for x, e, kind in zip(means, errors, _KINDS, strict=True)]
        lines.append(f"| {name} | {accuracy.mean():.4f} | {' | '.join(told)} |")
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
            first: list[dict[str, tuple[float, float]]] = []
            for of, classifier in CLASSIFIERS.items():
                make = partial(ways, classifier, sensitive, search=not options.quick)
                found = [measured(rows, y, sensitive, make, seed) for seed in range(options.splits)]
                first = first or found
                print(f"\n**{name}, {of}**, {options.splits} halves\n\n{table_of(found, first)}", flush=True)


if __name__ == "__main__":
    main()
