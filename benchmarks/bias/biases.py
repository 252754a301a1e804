"""Rows with a group that nothing depends on, and what a bias makes of the rows of group 1.

The group is drawn at random, so that the unbiased distribution is ideal by construction: the most accurate classifier
has no gap, and whatever accuracy is lost, is lost to the bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks import datasets
from benchmarks.datasets import Rows

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: Rows of a class of group 1 that a small group keeps at least, of rows to train on and to judge on: every fold of the
#: training rows has to see every class of every group.
FEWEST = 12


class Sample(NamedTuple):
    """Features as the groups deliver them (numbers first), labels as they are seen, the true ones, groups 0 and 1."""

    X: Floats
    seen: Codes
    y: Codes
    group: Codes
    n_numeric: int

    def take(self, rows: Any) -> Sample:
        return Sample(self.X[rows], self.seen[rows], self.y[rows], self.group[rows], self.n_numeric)

    @property
    def positives(self) -> Mask:
        """Those of group 1."""
        return np.asarray((self.group == 1) & (self.y == 1))


Made = tuple[Sample, Mask]  # the rows, and which of them can be seen in training


def _all_seen(sample: Sample) -> Made:
    return sample, np.ones(len(sample.y), dtype=bool)


def unbiased(sample: Sample, level: float, rng: np.random.Generator) -> Made:
    return _all_seen(sample)


class Distortion:
    """An affine map of standardised features: scales between 2^-s and 2^s, mixing, and shifts of s."""

    def __init__(self, n_columns: int, rng: np.random.Generator) -> None:
        self.log_scale = rng.uniform(-1, 1, n_columns)
        self.mixing = 0.3 * rng.normal(size=(n_columns, n_columns)) / np.sqrt(n_columns)
        self.shift = rng.normal(size=n_columns)

    def __call__(self, Z: Floats, strength: float) -> Floats:
        A = np.diag(2 ** (strength * self.log_scale)) + min(strength, 1.0) * self.mixing
        return np.asarray(Z @ A.T + strength * self.shift)


def _distorted(sample: Sample, columns: slice, strength: float, rng: np.random.Generator) -> Made:
    scaler = StandardScaler().fit(sample.X[:, columns])
    one = sample.group == 1
    Z = scaler.transform(sample.X[one, columns])
    X = sample.X.copy()
    X[one, columns] = scaler.inverse_transform(Distortion(Z.shape[1], rng)(Z, strength))
    return _all_seen(sample._replace(X=X))


def measured_numbers(sample: Sample, level: float, rng: np.random.Generator) -> Made:
    return _distorted(sample, slice(sample.n_numeric), level, rng)


def measured_all(sample: Sample, level: float, rng: np.random.Generator) -> Made:
    return _distorted(sample, slice(None), level, rng)


def noise(sample: Sample, level: float, rng: np.random.Generator) -> Made:
    X, one = sample.X.copy(), sample.group == 1
    columns = np.arange(0, sample.n_numeric, 2)
    spread = X[:, columns].std(axis=0)
    X[np.ix_(one, columns)] += level * spread * rng.normal(size=(int(one.sum()), len(columns)))
    return _all_seen(sample._replace(X=X))


def _flip(sample: Sample, probability: Floats, rng: np.random.Generator) -> Made:
    flipped = sample.positives & (rng.random(len(sample.y)) < probability)
    return _all_seen(sample._replace(seen=np.where(flipped, 0, sample.seen)))


def labels_by_amount(sample: Sample, level: float, rng: np.random.Generator) -> Made:
    return _flip(sample, np.full(len(sample.y), level), rng)


def labels_by_score(sample: Sample, level: float, rng: np.random.Generator) -> Made:
    """Probability of a flip: linear in the rank of the score among the group's positives, 2 level at the lowest."""
    model = LogisticRegression(solver="newton-cholesky").fit(sample.X, sample.y)
    score = model.decision_function(sample.X)[sample.positives]
    rank = score.argsort().argsort()
    probability = np.zeros(len(sample.y))
    probability[sample.positives] = 2 * level * (1 - (rank + 0.5) / len(rank))
    return _flip(sample, probability, rng)


def selection(sample: Sample, level: float, rng: np.random.Generator) -> Made:
    lost = sample.positives & (rng.random(len(sample.y)) < level)
    return sample, ~lost


def prior_shift(sample: Sample, level: float, rng: np.random.Generator) -> Made:
    negatives = (sample.group == 1) & (sample.y == 0)
    lost = negatives & (rng.random(len(sample.y)) >= np.exp(-level))
    return sample, ~lost


def small_group(sample: Sample, level: float, rng: np.random.Generator) -> Made:
    """Rows are in no order: those that stay are evenly spaced, so that training has its share of them."""
    sample, visible = measured_numbers(sample, 1.0, rng)
    n_others = int((sample.group == 0).sum())
    share = level / (1 - level) * n_others / (sample.group == 1).sum()
    for k in (0, 1):
        cell = np.flatnonzero((sample.group == 1) & (sample.y == k))
        kept = np.linspace(0, len(cell) - 1, max(FEWEST, round(share * len(cell)))).round().astype(np.int64)
        visible[np.delete(cell, kept)] = False
    return sample, visible


def together(sample: Sample, level: float, rng: np.random.Generator) -> Made:
    sample, _ = noise(sample, level / 2, rng)
    sample, _ = measured_all(sample, level, rng)
    sample, _ = labels_by_amount(sample, 0.3 * level, rng)
    return selection(sample, 0.3 * level, rng)


@dataclass(frozen=True)
class Bias:
    """What happens to rows of group 1, at levels from weak to strong; the second is the one that tables show."""

    make: Callable[[Sample, float, np.random.Generator], Made]
    levels: tuple[float, ...]
    words: str

    @property
    def shown(self) -> float:
        return self.levels[len(self.levels) // 2]


NO_BIAS = "none"
BIASES = {
    NO_BIAS: Bias(unbiased, (0.0,), "Nothing happens: what a method costs where there is nothing to mend."),
    "measurement, numbers": Bias(
        measured_numbers,
        (0.5, 1.0, 2.0),
        "The numeric features of group 1 by another affine map, in training and in use: scales between 2^-s and 2^s, "
        "mixing of features, shifts of s standard deviations (s: the level).",
    ),
    "measurement, all columns": Bias(
        measured_all, (0.5, 1.0, 2.0), "The same of all features, one-hot columns and integers among them."
    ),
    "noise": Bias(
        noise,
        (0.5, 1.0, 2.0),
        "Noise in every other numeric feature of group 1, of so many of its standard deviations, in training and in "
        "use.",
    ),
    "label, by amount": Bias(
        labels_by_amount, (0.1, 0.3, 0.5), "This share of group 1's positives is seen as negative, whatever they are."
    ),
    "label, by score": Bias(
        labels_by_score,
        (0.1, 0.3, 0.5),
        "This share of group 1's positives is seen as negative, those of low scores more often: a higher bar.",
    ),
    "selection": Bias(selection, (0.3, 0.6, 0.9), "This share of group 1's positives is not there in training."),
    "prior shift": Bias(
        prior_shift,
        (0.5, 1.0, 2.0),
        "Negatives of group 1 are not there in training, so that its log-odds are higher by so much.",
    ),
    "small group": Bias(
        small_group,
        (0.05, 0.02, 0.01),
        "Measurement of the numeric features at level 1, and group 1 is this share of the training rows "
        "(at least five of a class).",
    ),
    "together": Bias(
        together,
        (0.5, 1.0, 1.5),
        "Noise of half the level, measurement of all features at the level, .3 of the level of the positives flipped, "
        "and as many of them not there.",
    ),
}

OCCUPATIONS = ["actor", "writer"]


def data_sets(folder: Path) -> dict[str, Callable[[], Rows]]:
    return {
        "adult": lambda: datasets.adult(folder, "sex"),
        "compas": lambda: datasets.compas(folder),
        "law school": lambda: datasets.law_school(folder),
        "acs income": lambda: datasets.acs_income(folder, "sex"),
        "biographies": lambda: datasets.biographies(folder, OCCUPATIONS, leading=32),
    }


def features_of(rows: Rows) -> tuple[Floats, int]:
    """All features, and how many of them are numbers; numbers have mean 0 and variance 1."""
    Z = rows.transformed(np.ones(len(rows.y), dtype=bool))
    n_numeric = rows.n_numeric if hasattr(rows.features, "transformers") else Z.shape[1]
    Z[:, :n_numeric] = StandardScaler().fit_transform(Z[:, :n_numeric])
    return Z, n_numeric


def drawn(Z: Floats, y: Codes, n_numeric: int, n_rows: int, repeat: int) -> Sample:
    """So many rows, and a group for each, at random."""
    rng = np.random.default_rng(repeat)
    rows = rng.permutation(len(y))[:n_rows]
    return Sample(Z[rows], y[rows], y[rows], rng.integers(0, 2, len(rows)), n_numeric)
