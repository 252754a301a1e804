"""What is done to the rows: methods, classifiers, pools, alignments, and the measures of their predictions."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline

from benchmarks import datasets
from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, ScoreAligner
from fairsteer.baselines import CovarianceMatchingTransformer, LeaceTransformer, MeanMatchingTransformer

Floats = NDArray[np.float32]
Codes = NDArray[np.int64]
Gender = Literal["known", "inferred", "withheld"]
Key = tuple[str, Gender]  # rule, and what it is told of the gender

FOLDS = 5
TEST = FOLDS  # the fold of rows that are only tested
# Of whitened features, for every method.
C = 0.01
# RMS gaps that the alignment may leave on training rows. The smallest is taken whose accuracy there is within the
# allowance of the unchanged classifier's: a point, less what chance does to a difference on the test rows.
BUDGETS = (0.015, 0.03, 0.06, 0.1)
ALLOWANCE = 0.0075
SLOW_ITERATIONS = 3

ORIGINAL, WEIGHTS = "original", "condition-3 weights"
LR, LDA, POOLED = "LR", "LDA", "LR and LDA"


@dataclass(frozen=True)
class Biographies:
    """Rows, their fold (`TEST`: never trained on) and the folds that predictions are measured on."""

    name: str
    X: Floats
    y: Codes
    group: Codes
    fold: Codes
    measured: tuple[int, ...]
    classes: list[str]
    groups: list[str]


def split_for_test(rows: datasets.Rows, is_test: NDArray[np.bool_], name: str) -> Biographies:
    """Folds of the training rows; the test rows are measured."""
    fold = np.full(len(rows.y), TEST, dtype=np.int64)
    train = np.flatnonzero(~is_test)
    fold[train] = folds(rows.y[train], rows.group[train])
    return Biographies(name, rows.X, rows.y, rows.group, fold, (TEST,), rows.classes, rows.groups)


def cross_validated(rows: datasets.Rows, name: str) -> Biographies:
    """Folds of all rows, each measured once."""
    fold = folds(rows.y, rows.group)
    return Biographies(name, rows.X, rows.y, rows.group, fold, tuple(range(FOLDS)), rows.classes, rows.groups)


def folds(y: Codes, group: Codes, n: int = FOLDS) -> Codes:
    """Fold of every row, such that each class of each group is in all alike."""
    fold = np.empty(len(y), dtype=np.int64)
    splitter = StratifiedKFold(n, shuffle=True, random_state=0)
    for i, (_, tested) in enumerate(splitter.split(y, y * (group.max() + 1) + group)):
        fold[tested] = i
    return fold


# ---- methods


@dataclass(frozen=True)
class Method:
    """A change of features, or of weights, and whether it is this package's own."""

    name: str
    transformer: Any = None
    weighted: bool = False
    ours: bool = False
    # Minutes to fit: fitted once to all training rows, not again without each fold, and left out by default.
    slow: bool = False

    @property
    def needs_gender(self) -> bool:
        return self.transformer is not None and not isinstance(_inner(self.transformer), LeaceTransformer)


def methods() -> list[Method]:
    steer = FairSteeringTransformer(map_type="affine", unknown_group="infer")
    match = CovarianceMatchingTransformer(unknown_group="infer")
    # So few iterations that a fit of 28 classes takes minutes.
    symmetric = clone(steer).set_params(map_type="symmetric", max_iter=SLOW_ITERATIONS)
    full = clone(steer).set_params(covariance="full", pooling=0.5, max_iter=SLOW_ITERATIONS)
    symmetric_full = clone(full).set_params(map_type="symmetric")

    def affirmative(transformer: Any) -> Any:
        return clone(transformer).set_params(intervention="affirmative")

    return [
        Method(ORIGINAL),
        Method("mean matching", MeanMatchingTransformer(unknown_group="infer")),
        Method("covariance matching, to men", clone(match).set_params(reference_group=1)),
        Method("covariance matching, barycentre", match),
        Method("LEACE", LeaceTransformer()),
        Method(WEIGHTS, weighted=True, ours=True),
        Method("tied", steer, ours=True),
        Method("tied, own shares", clone(steer).set_params(standardize=False), ours=True),
        Method("tied, affirmative", affirmative(steer), ours=True),
        Method("tied, condition-3 weights", steer, weighted=True, ours=True),
        Method("tied, symmetric", symmetric, ours=True, slow=True),
        Method("tied, symmetric, affirmative", affirmative(symmetric), ours=True, slow=True),
        Method("pooled full", full, ours=True, slow=True),
        Method("pooled full, affirmative", affirmative(full), ours=True, slow=True),
        Method("pooled full, symmetric", symmetric_full, ours=True, slow=True),
        Method("pooled full, symmetric, affirmative", affirmative(symmetric_full), ours=True, slow=True),
    ]


class OnBlock(TransformerMixin, BaseEstimator):
    """A transformer of some columns, the others staying: what a hook in one layer does to several layers' features."""

    def __init__(self, transformer: Any, columns: slice) -> None:
        self.transformer = transformer
        self.columns = columns

    def fit(self, X: Any, y: Any = None, *, sensitive_features: Any = None) -> OnBlock:
        self.transformer_ = clone(self.transformer).fit(X[:, self.columns], y, sensitive_features=sensitive_features)
        return self

    def transform(self, X: Any, *, sensitive_features: Any = None) -> Any:
        changed = X.copy()
        changed[:, self.columns] = self.transformer_.transform(
            X[:, self.columns], sensitive_features=sensitive_features
        )
        return changed


def _inner(transformer: Any) -> Any:
    return transformer.transformer if isinstance(transformer, OnBlock) else transformer


def condition_3_weights(y: Codes, group: Codes) -> NDArray[np.float64]:
    """Weights under which class and group are independent: P(y) P(a) / P(y, a)."""
    joint = np.zeros((y.max() + 1, group.max() + 1))
    np.add.at(joint, (y, group), 1 / len(y))
    weights: NDArray[np.float64] = (np.outer(joint.sum(axis=1), joint.sum(axis=0)) / joint)[y, group]
    return weights


class Trained:
    """Classifiers of one method, trained on some rows: log-probabilities of the classes, by rule and gender."""

    def __init__(self, method: Method, fitted: Any, X: Floats, y: Codes, group: Codes) -> None:
        self._needs_gender = method.needs_gender
        self._steering = isinstance(fitted, IdealDistributionClassifier)
        self._transformer = fitted.steering_ if self._steering else fitted
        rows = self._changed(X, group)
        # With covariance 1 a few dozen iterations do; columns that do not vary are left out.
        variances = np.linalg.eigvalsh(np.cov(rows.T, dtype=np.float64))
        whiten = PCA(int((variances > 1e-6 * variances[-1]).sum()), whiten=True, svd_solver="covariance_eigh")
        self._logistic = make_pipeline(whiten, LogisticRegression(C=C, max_iter=1000))
        weight = condition_3_weights(y, group) if method.weighted else None
        self._logistic.fit(rows, y, logisticregression__sample_weight=weight)
        self._bayes: Any = None
        if not method.weighted:
            # With one group nothing is steered: the Bayes rule of the fitted Gaussians, which is LDA.
            one = np.zeros_like(group)
            self._bayes = (
                fitted if self._steering else IdealDistributionClassifier().fit(rows, y, sensitive_features=one)
            )

    def _changed(self, X: Floats, group: Codes | None) -> Floats:
        if self._transformer is None:
            return X
        return np.asarray(self._transformer.transform(X, sensitive_features=group), dtype=np.float32)

    def log_proba(self, X: Floats, group: Codes) -> dict[Key, Floats]:
        """For each rule and for what it is told of the gender."""
        found: dict[Key, Floats] = {}
        told: dict[Gender, Codes | None] = {"known": group, "inferred": None}
        if not self._needs_gender:
            told = {"withheld": None}
        for gender, labels in told.items():
            rows = self._changed(X, labels)
            found[LR, gender] = self._logistic.predict_log_proba(rows)
            if self._steering and self._bayes is not None:
                found[LDA, gender] = self._bayes.predict_log_proba(X, sensitive_features=labels)
            elif self._bayes is not None:
                found[LDA, gender] = self._bayes.predict_log_proba(rows, sensitive_features=np.zeros_like(group))
        if self._needs_gender:
            found[LR, "withheld"] = self._logistic.predict_log_proba(X)
        return {key: values.astype(np.float32) for key, values in found.items()}


class Scores:
    """Log-probabilities of all rows for a fold to be measured, from classifiers that saw neither it nor the row."""

    def __init__(self, method: Method, data: Biographies) -> None:
        self._method, self._data = method, data
        self._kept: dict[tuple[int, int], dict[Key, Floats]] = {}
        self._maps: dict[int, Any] = {}

    def of(self, measured: int) -> dict[Key, Floats]:
        data = self._data
        scores: dict[Key, Floats] = {}
        for i in np.unique(data.fold).tolist():
            rows = data.fold == i
            for key, values in self._answer(i, measured).items():
                if key not in scores:
                    scores[key] = np.full((len(data.y), len(data.classes)), np.nan, dtype=np.float32)
                scores[key][rows] = values
        return scores

    def _answer(self, i: int, measured: int) -> dict[Key, Floats]:
        """Scores of fold `i` by what was trained without it and without the fold to be measured."""
        if (i, measured) not in self._kept:
            data, left_out = self._data, sorted({i, measured})
            rows = ~np.isin(data.fold, left_out)
            trained = Trained(
                self._method, self._fitted_for(rows, measured), data.X[rows], data.y[rows], data.group[rows]
            )
            for one in left_out:
                # What was trained without i and j scores both: i when j is measured, j when i is.
                other = left_out[0] if one == left_out[-1] else left_out[-1]
                # A slow map has seen the labels of i.
                if other == measured or (other in data.measured and not self._method.slow):
                    tested = data.fold == one
                    self._kept[one, other] = trained.log_proba(data.X[tested], data.group[tested])
        return self._kept.pop((i, measured))

    def _fitted_for(self, rows: NDArray[np.bool_], measured: int) -> Any:
        data = self._data
        if self._method.slow:
            if measured not in self._maps:
                self._maps[measured] = fitted_to(self._method, data, data.fold != measured)
            return self._maps[measured]
        return fitted_to(self._method, data, rows)


def fitted_to(method: Method, data: Biographies, rows: NDArray[np.bool_]) -> Any:
    """What a method changes features by, fitted to some rows; None for one that changes none."""
    if method.transformer is None:
        return None
    change = clone(method.transformer)
    if isinstance(change, FairSteeringTransformer):
        change = IdealDistributionClassifier(steering=change)
    return change.fit(data.X[rows], data.y[rows], sensitive_features=data.group[rows])


# ---- from scores to predictions


def pooled(members: list[Floats], y: Codes, fitted_to: NDArray[np.bool_]) -> Floats:
    """Log-linear pool ``log p = Σ_m t_m log p_m + const``, its weights by the log-likelihood of some rows.

    Of one member it is temperature scaling.
    """
    truth = y[fitted_to]
    own = [m[fitted_to] for m in members]
    given = np.stack([m[np.arange(len(truth)), truth] for m in own])

    def loss(t: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        p = log_softmax(sum(np.float32(v) * m for v, m in zip(t, own, strict=True)), axis=1)
        value = -float(p[np.arange(len(truth)), truth].mean(dtype=np.float64))
        np.exp(p, out=p)
        slopes = [
            np.einsum("ij,ij->", p, m, dtype=np.float64) / len(truth) - g.mean()
            for m, g in zip(own, given, strict=True)
        ]
        return value, np.array(slopes)

    start = np.full(len(members), 1 / len(members))
    weights = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(members)).x
    total: Floats = log_softmax(sum(np.float32(v) * m for v, m in zip(weights, members, strict=True)), axis=1)
    return total


class GivenProbabilities(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose features are the probabilities of the classes."""

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes
        self.classes_ = np.arange(n_classes)

    def fit(self, X: Any, y: Any) -> GivenProbabilities:
        return self

    def predict_proba(self, X: Any) -> Any:
        return X


def aligner_within(proba: NDArray[np.float64], y: Codes, group: Codes, least_accuracy: float) -> ScoreAligner:
    """With the smallest budget that is accurate enough on the rows it is fitted to, else the most accurate."""
    best, most = None, -1.0
    given = FrozenEstimator(GivenProbabilities(proba.shape[1]))
    for budget in BUDGETS:
        aligner = ScoreAligner(given, max_gap=budget, agg="rms", calibrate=True)
        aligner.fit(proba, y, sensitive_features=group)
        accuracy = float((aligner.predict(proba, sensitive_features=group) == y).mean())
        if accuracy > most:
            best, most = aligner, accuracy
        if most >= least_accuracy:
            break
    assert best is not None
    return best


@dataclass(frozen=True)
class Line:
    """Predictions of the measured rows by one method; -1 for other rows."""

    method: str
    rule: str
    gender: Gender
    aligned: bool
    ours: bool
    predicted: Codes
    budget: float

    @property
    def name(self) -> str:
        return ", ".join([f"{self.method}: {self.rule}", self.gender, *(["aligned"] if self.aligned else [])])


def predictions(data: Biographies, chosen: list[Method]) -> Iterator[Line]:
    """Predictions of every method for the measured folds. The first method is the one that the others are held to."""
    least_accuracy: dict[int, float] = {}
    gender_proba = {j: _gender_proba(data, j) for j in data.measured}
    for method in chosen:
        start = time.perf_counter()
        scores = Scores(method, data)
        found: dict[tuple[str, Gender, bool], Codes] = {}
        budgets: dict[str, list[float]] = {}
        for j in data.measured:
            train, test = data.fold != j, data.fold == j
            rules = with_pools(scores.of(j), data.y, train)
            if method is chosen[0]:
                right = rules[LR, "withheld"][train].argmax(axis=1) == data.y[train]
                least_accuracy[j] = float(right.mean()) - ALLOWANCE

            for (rule, gender), values in rules.items():
                _keep(found, (rule, gender, False), test, values[test].argmax(axis=1))
            for rule in sorted({rule for rule, _ in rules if method.ours or rule != LDA}):
                # An alignment needs the gender, or probabilities of it, also where the scores do not.
                own: Gender = "known" if method.needs_gender else "withheld"
                proba = _probabilities(rules[rule, own])
                aligner = aligner_within(proba[train], data.y[train], data.group[train], least_accuracy[j])
                budgets.setdefault(rule, []).append(aligner.max_gap_)
                known = np.eye(2)[data.group[test]]
                _keep(found, (rule, "known", True), test, aligned_classes(aligner, proba[test], known))
                guessed = _probabilities(rules[rule, "inferred" if method.needs_gender else own][test])
                predicted = aligned_classes(aligner, guessed, gender_proba[j])
                _keep(found, (rule, "inferred", True), test, predicted)
        for (rule, gender, aligned), predicted in found.items():
            budget = float(np.mean(budgets[rule])) if aligned else float("nan")
            yield Line(method.name, rule, gender, aligned, method.ours, predicted, budget)
        print(f"{data.name}: {method.name}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def _keep(found: dict[tuple[str, Gender, bool], Codes], key: tuple[str, Gender, bool], test: Any, codes: Codes) -> None:
    found.setdefault(key, np.full(len(test), -1))[test] = codes


def _probabilities(log_proba: Floats) -> NDArray[np.float64]:
    proba = np.exp(log_proba.astype(np.float64))
    proba /= proba.sum(axis=1, keepdims=True)
    return proba


def with_pools(scores: dict[Key, Floats], y: Codes, train: NDArray[np.bool_]) -> dict[Key, Floats]:
    """Scores of both rules, and of both pooled."""
    rules = dict(scores)
    for rule, gender in scores:
        if rule == LDA:
            rules[POOLED, gender] = pooled([scores[LR, gender], scores[LDA, gender]], y, train)
    return rules


def aligned_classes(aligner: ScoreAligner, proba: NDArray[np.float64], gender_proba: NDArray[np.float64]) -> Codes:
    """Most probable class after alignment, averaged over the genders (n, 2)."""
    total = np.zeros_like(proba)
    for a in (0, 1):
        of_all = np.full(len(proba), a)
        total += gender_proba[:, [a]] * aligner.predict_proba(proba, sensitive_features=of_all)
    return np.asarray(total.argmax(axis=1))


def _gender_proba(data: Biographies, measured: int) -> NDArray[np.float64]:
    """Of the rows of a fold, by the distributions fitted to the others."""
    train, test = data.fold != measured, data.fold == measured
    steer = FairSteeringTransformer(unknown_group="infer")
    steer.fit(data.X[train], data.y[train], sensitive_features=data.group[train])
    return steer.predict_group_proba(data.X[test])


# ---- measuring


@dataclass(frozen=True)
class Measured:
    """Measures of predictions, each with its value on every bootstrap sample, (n_lines,) and (n_samples, n_lines)."""

    values: dict[str, NDArray[np.float64]]
    samples: dict[str, NDArray[np.float64]]

    def interval(self, measure: str, line: int) -> tuple[float, float]:
        low, high = np.percentile(self.samples[measure][:, line], [2.5, 97.5])
        return float(low), float(high)

    def difference(self, measure: str, line: int, other: int) -> tuple[float, float, float]:
        """From another line's, and its paired interval."""
        low, high = np.percentile(self.samples[measure][:, line] - self.samples[measure][:, other], [2.5, 97.5])
        return float(self.values[measure][line] - self.values[measure][other]), float(low), float(high)


MEASURES = ("accuracy", "balanced accuracy", "RMS gap", "floor", "true gap")


def measured(
    y: Codes, group: Codes, fold: Codes, predicted: NDArray[Any], n_samples: int = 1000, seed: int = 0
) -> Measured:
    """Measure lines of predictions (n_lines, n) on the same rows, and on bootstrap samples of them.

    Rows are drawn within each fold, class and group, the same for all lines. The RMS gap is the root of the mean over
    classes, and over folds, of the squared difference of the groups' true-positive rates *within* a fold: rates taken
    over folds together would look too equal, since the alignment of a fold makes up for the chance of the others. Its
    floor is what it would be without any true difference, and the true gap is its estimate without that part.
    """
    n_classes = int(y.max()) + 1
    cell = (fold * n_classes + y) * 2 + group
    order = np.argsort(cell, kind="stable")
    cells, first, size = np.unique(cell[order], return_index=True, return_counts=True)
    assert (size > 1).all(), "every class needs two rows of each group in every fold"
    assert (cells[::2] % 2 == 0).all()
    assert (cells[1::2] == cells[::2] + 1).all()
    right = (predicted == y)[:, order].astype(np.float64)
    of_class, n = cells // 2 % n_classes, size.astype(np.float64)
    rows_of_class = np.bincount(of_class, n)

    def measure(hits: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        recall = np.stack([hits[:, of_class == k].sum(axis=1) for k in range(n_classes)], axis=1) / rows_of_class
        rate = hits / n
        square = np.mean((rate[:, 1::2] - rate[:, ::2]) ** 2, axis=1)
        inverse = (1 / n[::2] + 1 / n[1::2])[None]
        common = (hits[:, ::2] + hits[:, 1::2]) / (n[::2] + n[1::2])
        variance = rate * (1 - rate) / (n - 1)
        return {
            "accuracy": hits.sum(axis=1) / n.sum(),
            "balanced accuracy": recall.mean(axis=1),
            "square": square,
            "floor": np.sqrt(np.mean(common * (1 - common) * inverse, axis=1)),
            "chance": np.mean(variance[:, ::2] + variance[:, 1::2], axis=1),
        }

    values = measure(np.add.reduceat(right, first, axis=1))
    chance, rng = values["chance"], np.random.default_rng(seed)
    drawn = []
    for _ in range(n_samples):
        # A multinomial draw for each cell, as positions in its rows.
        chosen = (np.repeat(first, size) + np.floor(rng.random(len(y)) * np.repeat(size, size))).astype(np.intp)
        drawn.append(measure(np.add.reduceat(right[:, chosen], first, axis=1)))
    samples = {key: np.stack([d[key] for d in drawn]) for key in ("accuracy", "balanced accuracy", "square", "floor")}

    def root(square: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sqrt(np.maximum(square, 0))

    # Drawing rows adds chance to a squared gap once more.
    square = samples.pop("square") - chance
    samples |= {"RMS gap": root(square), "true gap": root(square - chance)}
    values |= {"RMS gap": root(values["square"]), "true gap": root(values["square"] - chance)}
    return Measured({m: values[m] for m in MEASURES}, {m: samples[m] for m in MEASURES})


def gaps_by_class(y: Codes, group: Codes, predicted: Codes, n_classes: int) -> NDArray[np.float64]:
    """True-positive rate of group 0 less that of group 1, (n_classes,)."""
    right = predicted == y
    return np.array(
        [right[(y == k) & (group == 0)].mean() - right[(y == k) & (group == 1)].mean() for k in range(n_classes)]
    )


# ---- the runs


def embeddings(folder: Path) -> tuple[datasets.Rows, NDArray[np.bool_]]:
    """The sentence embeddings, and which rows are for testing."""
    labels = pd.read_parquet(folder / "biographies" / "labels.parquet", columns=["split"])
    return datasets.biographies(folder), (labels["split"] == "test").to_numpy()


def hidden_states(folder: Path) -> tuple[datasets.Rows, NDArray[np.bool_]]:
    """Mean-pooled hidden states of layers 2, 4 and 6, 384 columns each."""
    rows, is_test = embeddings(folder)
    labels = pd.read_parquet(folder / "biographies" / "labels.parquet", columns=["wide"])
    wide = labels["wide"].to_numpy()
    states = np.load(folder / "biographies" / "hidden_states.f16.npy").astype(np.float32)
    return replace(rows, X=states, y=rows.y[wide], group=rows.group[wide]), is_test[wide]


LAYER_4 = slice(384, 768)
FEWER = (ORIGINAL, "tied", "covariance matching, barycentre", "mean matching", WEIGHTS, "LEACE")


def runs(folder: Path, cross_validate: bool, slow: bool) -> Iterator[tuple[Biographies, list[Method]]]:
    rows, is_test = embeddings(folder)
    named = {m.name: m for m in methods()}
    if cross_validate:
        yield cross_validated(rows, "embeddings, cross-validated"), [named[name] for name in FEWER]
        return
    yield split_for_test(rows, is_test, "embeddings"), [m for m in methods() if slow or not m.slow]
    rows, is_test = hidden_states(folder)
    chosen = [named[name] for name in FEWER]
    layer = replace(rows, X=np.ascontiguousarray(rows.X[:, LAYER_4]))
    yield split_for_test(layer, is_test, "layer 4"), chosen
    # What a hook in layer 4 does to the columns of that layer; the other columns are as they were stored.
    in_layer = [
        replace(m, name=f"{m.name}, layer 4 only", transformer=OnBlock(m.transformer, LAYER_4))
        for m in chosen
        if m.transformer is not None
    ]
    yield split_for_test(rows, is_test, "layers 2, 4 and 6"), chosen + in_layer


def sample(data: Biographies, n: int, seed: int = 0) -> Biographies:
    """About n rows, the same share of each fold, class and group but at least four: for a look whether all runs."""
    rng = np.random.default_rng(seed)
    cell = (data.fold * len(data.classes) + data.y) * 2 + data.group
    order = rng.permutation(len(cell))
    rank = pd.Series(cell[order]).groupby(cell[order]).cumcount().to_numpy()
    size = np.bincount(cell)[cell[order]]
    kept = np.sort(order[rank < np.maximum(4, size * n / len(cell))])
    return replace(data, X=data.X[kept], y=data.y[kept], group=data.group[kept], fold=data.fold[kept])
