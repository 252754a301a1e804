"""What the benchmark of biographies computes itself: measures, intervals, pools; and that no test label leaks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from benchmarks import datasets
from benchmarks.biographies import methods as bios
from benchmarks.biographies import report
from benchmarks.biographies.methods import TEST, Biographies, Method
from fairsteer import FairSteeringTransformer, ScoreAligner
from fairsteer.baselines import LeaceTransformer
from fairsteer.metrics import tpr_gap_rms

# Gaps that offsets cannot close are no news of few rows.
pytestmark = pytest.mark.filterwarnings("ignore:Gaps of:UserWarning")
LABELS = np.repeat(np.arange(4), [40, 60, 90, 200]), np.concatenate([np.arange(n) % 3 > 0 for n in (40, 60, 90, 200)])


@pytest.fixture(scope="module")
def data() -> Biographies:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, 900)
    y = (rng.integers(0, 3, 900) + (group == 1) * (rng.random(900) < 0.2)) % 3
    X = (rng.normal(size=(900, 4)) + np.eye(3, 4)[y] * 1.5 + np.outer(group, [0.5, 0, 0, 1])).astype(np.float32)
    rows = datasets.Rows("rows", X, y, group.astype(np.int64), None, list("abc"), ["female", "male"])
    return bios.split_for_test(rows, rng.random(900) < 0.3, "rows")


METHODS = [
    Method(bios.ORIGINAL),
    Method("LEACE", LeaceTransformer()),
    Method(bios.WEIGHTS, weighted=True, ours=True),
    Method("tied", FairSteeringTransformer(unknown_group="infer"), ours=True),
]


@pytest.fixture(scope="module")
def lines(data: Biographies) -> list[bios.Line]:
    return list(bios.predictions(data, METHODS))


def drawn(
    rates: npt.NDArray[Any], seed: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Labels, groups, folds and predictions that are right at given rates of class and group."""
    rng = np.random.default_rng(seed)
    y, group = LABELS[0], LABELS[1].astype(np.int64)
    right = rng.random(len(y)) < rates[y, group]
    return y, group, np.zeros(len(y), dtype=np.int64), np.where(right, y, (y + 1) % 4)[None]


@pytest.mark.slow
def test_measures_agree_with_the_packages_own(lines: list[bios.Line], data: Biographies) -> None:
    test = data.fold == TEST
    y, group = data.y[test], data.group[test]
    found = bios.measured(y, group, data.fold[test], np.stack([line.predicted[test] for line in lines]), n_samples=2)
    for i, line in enumerate(lines):
        predicted = line.predicted[test]
        gap = tpr_gap_rms(y, predicted, sensitive_features=group)
        assert found.values["RMS gap"][i] == pytest.approx(gap)
        assert found.values["accuracy"][i] == pytest.approx(np.mean(predicted == y))
        by_class = bios.gaps_by_class(y, group, predicted, 3)
        assert np.sqrt(np.mean(by_class**2)) == pytest.approx(gap)


def test_the_floor_is_the_gap_without_a_true_difference() -> None:
    rates = np.repeat([[0.5], [0.7], [0.9], [0.6]], 2, axis=1)
    found = [bios.measured(*drawn(rates, seed), n_samples=1).values for seed in range(1500)]
    squares = np.array([values["RMS gap"][0] ** 2 for values in found])
    floors = np.array([values["floor"][0] ** 2 for values in found])
    assert abs(squares.mean() - floors.mean()) < 4 * squares.std() / np.sqrt(1500) + 0.02 * floors.mean()


@pytest.mark.slow
def test_the_true_gap_is_estimated_without_bias_and_covered_by_its_interval() -> None:
    rates = np.array([[0.5, 0.8], [0.9, 0.6], [0.7, 0.9], [0.6, 0.6]])
    truth = float(np.sqrt(np.mean(np.ptp(rates, axis=1) ** 2)))
    accuracy = float(rates[LABELS[0], LABELS[1].astype(int)].mean())
    squares, covered = [], []
    for seed in range(150):
        found = bios.measured(*drawn(rates, seed), n_samples=200, seed=seed)
        squares.append(found.values["true gap"][0] ** 2)
        intervals = [found.interval("true gap", 0), found.interval("accuracy", 0)]
        covered.append([low <= value <= high for (low, high), value in zip(intervals, (truth, accuracy), strict=True)])
    assert np.mean(squares) == pytest.approx(truth**2, abs=4 * np.std(squares) / np.sqrt(150))
    # 95 %, less four standard errors of 150 trials, and what the squares of few rows are off.
    assert (np.mean(covered, axis=0) > 0.86).all()


def test_folds_are_compared_within_themselves() -> None:
    """Opposite gaps in two folds do not cancel."""
    y, group = np.zeros(80, dtype=np.int64), np.arange(80) % 2
    fold = (np.arange(80) >= 40).astype(np.int64)
    found = bios.measured(y, group, fold, np.where(group == fold, 0, 1)[None], n_samples=2)
    assert found.values["RMS gap"][0] == pytest.approx(1)
    assert found.values["accuracy"][0] == pytest.approx(0.5)


def test_a_difference_is_paired() -> None:
    rates = np.full((4, 2), 0.7)
    y, group, fold, predicted = drawn(rates, 0)
    other = predicted.copy()
    other[0, :5] = (y[:5] + 1) % 4
    found = bios.measured(y, group, fold, np.vstack([predicted, predicted, other]), n_samples=100)
    assert found.difference("RMS gap", 0, 1) == (0, 0, 0)
    _, low, high = found.difference("accuracy", 0, 2)
    own_low, own_high = found.interval("accuracy", 0)
    assert high - low < (own_high - own_low) / 3


def test_every_method_is_there_with_and_without_alignment(lines: list[bios.Line]) -> None:
    names = [line.name for line in lines]
    assert len(set(names)) == len(names)
    assert {report.SHOWN[0], report.OURS} <= set(names)
    for expected in (
        "original: LR and LDA, withheld",
        "original: LR, known, aligned",
        "LEACE: LR and LDA, inferred, aligned",
        "condition-3 weights: LR, withheld",
        "tied: LDA, known, aligned",
        "tied: LR, withheld",
        "tied: LR and LDA, inferred",
    ):
        assert expected in names


@pytest.mark.filterwarnings("ignore:The divergence did not converge:UserWarning")
def test_slow_maps_are_fitted_once_for_all_folds(data: Biographies, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    fit = FairSteeringTransformer._fit_maps

    def counted(self: FairSteeringTransformer, model: Any) -> Any:
        fits.append(0)
        return fit(self, model)

    monkeypatch.setattr(FairSteeringTransformer, "_fit_maps", counted)
    slow = [method for method in bios.methods() if method.slow]
    assert len(slow) == 6
    scores = bios.Scores(slow[0], data)
    assert np.isfinite(scores.of(TEST)[bios.LR, "known"]).all()
    once = len(fits)
    fits.clear()
    again = bios.Scores(replace(slow[0], slow=False), data)
    assert np.isfinite(again.of(TEST)[bios.LR, "known"]).all()
    assert len(fits) == (bios.FOLDS + 1) * once


@pytest.mark.slow
def test_labels_of_test_rows_change_no_prediction(data: Biographies, lines: list[bios.Line]) -> None:
    test = np.flatnonzero(data.fold == TEST)
    y = data.y.copy()
    y[test] = np.random.default_rng(1).permutation(y[test])
    assert (y != data.y).any()
    for before, after in zip(lines, bios.predictions(replace(data, y=y), METHODS), strict=True):
        assert before.name == after.name
        np.testing.assert_array_equal(before.predicted, after.predicted)


@pytest.mark.slow
def test_labels_of_a_measured_fold_change_no_prediction_of_it(data: Biographies) -> None:
    rows = datasets.Rows("rows", data.X, data.y, data.group, None, data.classes, data.groups)
    folds = bios.cross_validated(rows, "rows")
    own = np.flatnonzero(folds.fold == 1)
    y = folds.y.copy()
    y[own] = np.random.default_rng(1).permutation(y[own])
    chosen = METHODS[:2]
    changed = 0
    for before, after in zip(
        bios.predictions(folds, chosen), bios.predictions(replace(folds, y=y), chosen), strict=True
    ):
        assert (before.predicted >= 0).all()
        np.testing.assert_array_equal(before.predicted[own], after.predicted[own])
        changed += int((before.predicted != after.predicted).sum())
    assert changed > 0  # of the other folds, which are trained on these labels


@pytest.mark.slow
def test_genders_of_test_rows_count_only_where_they_are_known(data: Biographies, lines: list[bios.Line]) -> None:
    test = data.fold == TEST
    group = np.where(test, 1 - data.group, data.group)
    differs = {}
    for before, after in zip(lines, bios.predictions(replace(data, group=group), METHODS), strict=True):
        differs[before.name] = bool((before.predicted != after.predicted).any())
        assert before.gender == "known" or not differs[before.name]
    assert differs[report.OURS]


def test_pools_are_likelier_than_their_members() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 2000)
    X = rng.normal(size=(2000, 2)) + np.eye(3, 2)[y]
    members = [
        LogisticRegression().fit(X[:, [i]], y).predict_log_proba(X[:, [i]]).astype(np.float32) * sharp
        for i, sharp in enumerate((1.0, 3.0))
    ]
    rows = np.ones(2000, dtype=bool)

    def likelihood(log_proba: npt.NDArray[Any]) -> float:
        np.testing.assert_allclose(np.exp(log_proba).sum(axis=1), 1, rtol=1e-4)
        return float(log_proba[np.arange(2000), y].mean())

    one, both = bios.pooled(members[1:], y, rows), bios.pooled(members, y, rows)
    np.testing.assert_array_equal(one.argmax(axis=1), members[1].argmax(axis=1))
    assert likelihood(both) > likelihood(one) + 0.05
    # The temperature undoes what made the second one too sure.
    np.testing.assert_allclose(np.diff(one), np.diff(members[1] / 3), atol=0.05)


def test_the_alignment_takes_the_smallest_budget_that_is_accurate_enough(data: Biographies) -> None:
    proba = LogisticRegression().fit(data.X, data.y).predict_proba(data.X)
    budgets = [bios.aligner_within(proba, data.y, data.group, least).max_gap for least in (0.0, 1.0)]
    assert budgets[0] == bios.BUDGETS[0]
    accuracy = {
        b: np.mean(
            ScoreAligner(
                FrozenEstimator(bios.GivenProbabilities(3)), max_gap=b, agg="rms", calibrate=True
            )
            .fit(proba, data.y, sensitive_features=data.group)
            .predict(proba, sensitive_features=data.group)
            == data.y
        )
        for b in bios.BUDGETS
    }  # fmt: skip
    assert accuracy[budgets[1]] == max(accuracy.values())


def test_condition_3_weights_make_class_and_group_independent(data: Biographies) -> None:
    joint = np.zeros((3, 2))
    np.add.at(joint, (data.y, data.group), bios.condition_3_weights(data.y, data.group))
    joint /= joint.sum()
    np.testing.assert_allclose(joint, np.outer(joint.sum(axis=1), joint.sum(axis=0)), atol=1e-12)


def test_a_block_is_steered_as_it_would_be_alone(data: Biographies) -> None:
    known = {"sensitive_features": data.group}
    whole = bios.OnBlock(FairSteeringTransformer(), slice(1, 3)).fit(data.X, data.y, **known)
    steered = whole.transform(data.X, **known)
    alone = FairSteeringTransformer().fit(data.X[:, 1:3], data.y, **known).transform(data.X[:, 1:3], **known)
    np.testing.assert_array_equal(steered[:, 1:3], alone)
    np.testing.assert_array_equal(steered[:, [0, 3]], data.X[:, [0, 3]])


@pytest.mark.slow
def test_tables_and_picture_are_written(data: Biographies, lines: list[bios.Line], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for _ in range(2):  # a second run replaces the first
        report.add(tmp_path, replace(data, name="embeddings"), lines)
    report.write(tmp_path)
    assert len(pd.read_csv(tmp_path / "results.csv")) == len(lines)
    assert report.OURS in (tmp_path / "README.md").read_text()
    assert (tmp_path / "occupations.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The features:UserWarning")  # few rows are shrunk much
def test_a_few_real_biographies(real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data, _ = next(bios.runs(real_data, cross_validate=False, slow=False))
    few = bios.sample(data, 700)
    assert len(few.y) < 2000
    lines = list(bios.predictions(few, [METHODS[0], METHODS[3]]))
    report.add(tmp_path, few, lines)
    table = pd.read_csv(tmp_path / "results.csv")
    assert table["accuracy"].between(0.2, 0.9).all()
    assert (table["RMS gap, low"] <= table["RMS gap, high"]).all()
