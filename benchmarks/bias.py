"""Bias in, bias out: train on rows that are biased in one group, judge on labels that are not.

Real rows of Adult with a group that is drawn at random, so that it is independent of features and class: the unbiased
distribution is ideal by construction, and what each bias costs is known. One bias at a time, in group 1.

    python -m benchmarks.bias --data FOLDER [--rows 12000] [--repeats 3] [--output benchmarks/results/bias]
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from benchmarks import datasets
from fairsteer import FairSteeringTransformer, IdealPosteriorClassifier, ScoreAligner
from fairsteer.baselines import CovarianceMatchingTransformer, LeaceTransformer, MeanMatchingTransformer

Array = NDArray[Any]


class Sample(NamedTuple):
    """Rows of one draw: features as the group delivers them, labels as they are seen, and the true ones."""

    X: Array
    seen: Array
    y: Array
    group: Array

    def take(self, rows: Array) -> Sample:
        return Sample(*(part[rows] for part in self))


Bias = Callable[[Sample, np.random.Generator], tuple[Sample, Array]]


def measurement(sample: Sample, rng: np.random.Generator) -> tuple[Sample, Array]:
    """Group 1's features by another affine map: scales between 1/2 and 2, shifts, and mixing of neighbours."""
    d = sample.X.shape[1]
    A = np.diag(2 ** rng.uniform(-1, 1, d)) + 0.3 * rng.normal(size=(d, d)) / np.sqrt(d)
    X = sample.X.copy()
    one = sample.group == 1
    X[one] = X[one] @ A.T + rng.normal(size=d)
    return sample._replace(X=X), np.ones(len(X), dtype=bool)


def noise(sample: Sample, rng: np.random.Generator) -> tuple[Sample, Array]:
    """Noise as large as the features themselves in every other feature of group 1."""
    X = sample.X.copy()
    one = sample.group == 1
    X[one, ::2] += rng.normal(size=X[one, ::2].shape)
    return sample._replace(X=X), np.ones(len(X), dtype=bool)


def labels(sample: Sample, rng: np.random.Generator) -> tuple[Sample, Array]:
    """30 % of group 1's positives are seen as negatives."""
    flipped = (sample.group == 1) & (sample.y == 1) & (rng.random(len(sample.y)) < 0.3)
    return sample._replace(seen=np.where(flipped, 0, sample.y)), np.ones(len(flipped), dtype=bool)


def selection(sample: Sample, rng: np.random.Generator) -> tuple[Sample, Array]:
    """Of group 1's positives 60 % are not seen."""
    lost = (sample.group == 1) & (sample.y == 1) & (rng.random(len(sample.y)) < 0.6)
    return sample, ~lost


def small(sample: Sample, rng: np.random.Generator) -> tuple[Sample, Array]:
    """Measurement bias, and 3 % of group 1's rows seen."""
    sample, _ = measurement(sample, rng)
    return sample, (sample.group == 0) | (rng.random(len(sample.y)) < 0.03)


BIASES: dict[str, Bias] = {
    "measurement": measurement, "noise": noise, "label": labels, "selection": selection, "small group": small,
}  # fmt: skip


def _logistic() -> LogisticRegression:
    return LogisticRegression(max_iter=500)


def _with_group(X: Array, group: Array) -> Array:
    return np.column_stack([X, group])


def _nothing(train: Sample, test: Sample) -> Array:
    return np.asarray(_logistic().fit(train.X, train.seen).predict(test.X))


def _group_as_feature(train: Sample, test: Sample) -> Array:
    model = _logistic().fit(_with_group(train.X, train.group), train.seen)
    return np.asarray(model.predict(_with_group(test.X, test.group)))


def _transformed(transformer: Any) -> Callable[[Sample, Sample], Array]:
    def method(train: Sample, test: Sample) -> Array:
        fitted = transformer().fit(train.X, train.seen, sensitive_features=train.group)
        X, X_test = (fitted.transform(part.X, sensitive_features=part.group) for part in (train, test))
        return np.asarray(_logistic().fit(X, train.seen).predict(X_test))

    return method


def _aligned(train: Sample, test: Sample) -> Array:
    model = ScoreAligner(_logistic()).fit(train.X, train.seen, sensitive_features=train.group)
    return np.asarray(model.predict(test.X, sensitive_features=test.group))


def _posterior(intervention: Any, mode: Any) -> Callable[[Sample, Sample], Array]:
    def method(train: Sample, test: Sample) -> Array:
        model = IdealPosteriorClassifier(_logistic(), intervention=intervention, mode=mode, reference_group=0)
        if intervention == "all_subgroups":
            model.set_params(reference_group=None)
        model.fit(_with_group(train.X, train.group), train.seen, sensitive_features=train.group)
        return np.asarray(model.predict(_with_group(test.X, test.group), sensitive_features=test.group))

    return method


def _repaired(estimator: Callable[[], Any], mode: Any = "joint") -> Callable[[Sample, Sample], Array]:
    def method(train: Sample, test: Sample) -> Array:
        X = _with_group(train.X, train.group)
        model = IdealPosteriorClassifier(_logistic(), mode=mode).fit(X, train.seen, sensitive_features=train.group)
        rows, seen, weight = model.repair(X, train.seen, sensitive_features=train.group).expanded()
        learnt = estimator().fit(rows, seen, sample_weight=weight)
        return np.asarray(learnt.predict(_with_group(test.X, test.group)))

    return method


METHODS: dict[str, Callable[[Sample, Sample], Array]] = {
    "nothing": _nothing,
    "group as a feature": _group_as_feature,
    "reweighing": _repaired(_logistic, "weights"),
    "mean matching": _transformed(MeanMatchingTransformer),
    "covariance matching": _transformed(CovarianceMatchingTransformer),
    "LEACE": _transformed(LeaceTransformer),
    "steering, translation": _transformed(lambda: FairSteeringTransformer(map_type="translation")),
    "steering, diagonal": _transformed(lambda: FairSteeringTransformer(map_type="diagonal")),
    "steering, affine": _transformed(
        lambda: FairSteeringTransformer(map_type="affine", intervention="affirmative", reference_group=0)
    ),
    "score alignment": _aligned,
    "ideal posterior": _posterior("all_subgroups", "joint"),
    "ideal posterior, affirmative": _posterior("affirmative", "joint"),
    "repaired rows, logistic": _repaired(_logistic),
    "repaired rows, boosting": _repaired(lambda: HistGradientBoostingClassifier(max_iter=50, random_state=0)),
}


def run(folder: Path, n_rows: int, repeats: int) -> list[dict[str, Any]]:
    """Measure every method under every bias."""
    rows = datasets.adult(folder, "sex")
    Z = rows.transformed(np.ones(len(rows.y), dtype=bool))[:, : rows.n_numeric]
    found = []
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        chosen = rng.permutation(len(Z))[: 2 * n_rows]
        clean = Sample(Z[chosen], rows.y[chosen], rows.y[chosen], rng.integers(0, 2, len(chosen)))
        half = np.arange(len(chosen)) < n_rows
        for bias, make in BIASES.items():
            sample, visible = make(clean, np.random.default_rng(100 + repeat))
            train, test = sample.take(half & visible), sample.take(~half)
            truth = _score(_nothing(clean.take(half), clean.take(~half)), test)
            for name, method in METHODS.items():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    scores = _score(method(train, test), test)
                found.append({"bias": bias, "method": name, "repeat": repeat, "unbiased": truth["accuracy"]} | scores)
    return found


def _score(predicted: Array, test: Sample) -> dict[str, float]:
    right, positive = predicted == test.y, test.y == 1
    rates = [predicted[positive & (test.group == a)].mean() for a in (0, 1)]
    selected = [predicted[test.group == a].mean() for a in (0, 1)]
    return {
        "accuracy": float(right.mean()),
        "accuracy of group 1": float(right[test.group == 1].mean()),
        "tpr_gap": float(abs(rates[0] - rates[1])),
        "selection_gap": float(abs(selected[0] - selected[1])),
    }


def tables(found: list[dict[str, Any]]) -> str:
    """One Markdown table a bias: means, and standard errors over the draws."""
    lines = [
        "# Bias in, bias out",
        "",
        "Adult, its numeric features, with a group drawn at random; group 1 is biased in training, and its features",
        "as it delivers them in the test; judged on true labels. `recovered`: share of the accuracy lost to the bias,",
        "against the same classifier trained and tested without bias. Means ± standard errors over draws, accuracy in",
        "percent.",
        "`python -m benchmarks.bias` writes this page.",
    ]
    for bias in BIASES:
        lines += ["", f"## {bias}", "", BIASES[bias].__doc__ or "", ""]
        lines += ["| method | accuracy | true-positive gap | selection gap | recovered |", "|---|---|---|---|---|"]
        base = np.array([one["accuracy"] for one in found if (one["bias"], one["method"]) == (bias, "nothing")])
        for name in METHODS:
            some = [one for one in found if (one["bias"], one["method"]) == (bias, name)]
            cells = [_mean_and_error([one[key] for one in some], 100 if key == "accuracy" else 1) for key in _KEYS]
            lost = np.mean([one["unbiased"] for one in some]) - base.mean()
            share = (np.mean([one["accuracy"] for one in some]) - base.mean()) / lost if lost > _LEAST_LOSS else np.nan
            lines.append(f"| {name} | {' | '.join(cells)} | {'–' if np.isnan(share) else f'{share:.0%}'} |")
    return "\n".join(lines) + "\n"


_KEYS = ("accuracy", "tpr_gap", "selection_gap")

# Accuracy lost to a bias below which shares of it say nothing.
_LEAST_LOSS = 0.002


def _mean_and_error(values: list[float], scale: float) -> str:
    digits = 2 if scale > 1 else 3
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{scale * np.mean(values):.{digits}f} ± {scale * error:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    datasets.add_data_option(parser)
    parser.add_argument("--rows", type=int, default=12_000, help="rows to train on, and to judge on (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="draws of rows, groups and biases (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/bias"), metavar="FOLDER")
    given = parser.parse_args()
    if given.data is None:
        parser.error("real rows are needed: --data FOLDER, or FAIRSTEER_DATA")
    found = run(given.data, given.rows, given.repeats)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "README.md").write_text(tables(found), encoding="utf-8")
    with (given.output / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


if __name__ == "__main__":
    main()
