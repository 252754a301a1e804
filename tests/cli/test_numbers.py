"""What is printed: one engine for all commands, checked against metrics; a verdict; nothing that nobody asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler

from fairsteer import FairSteeringTransformer, metrics
from fairsteer.cli._comparison import compare
from fairsteer.transformer._calibration import held_out_folds

N_ROWS = 300
GAPS = ("demographic parity gap", "equal opportunity gap", "equalized odds gap")


@pytest.fixture
def table() -> Any:
    """Gaps in the numbers and a rare category, so that folds are prepared differently; groups sorted, as files are."""
    rng = np.random.default_rng(3)
    y, group = rng.integers(0, 2, (2, N_ROWS))
    frame = pd.DataFrame(
        {
            "age": 40 + 5 * y + 3 * group + rng.normal(0, 9, N_ROWS),
            "pay": 3000.0 + rng.integers(0, 900, N_ROWS) * (1 + group),
            "town": rng.choice(["a", "b", "c"], N_ROWS, p=[0.6, 0.39, 0.01]),
            "sex": np.array(["f", "m"])[group],
            "hired": y,
        }
    )
    frame.loc[:30, "age"] = np.nan
    return frame.sort_values(["sex", "hired"])


def _values(printed: Any) -> Any:
    """Name of a line of the first table and its numbers: accuracy and gaps before, steered, and the change."""
    rows = {}
    for name in ("accuracy", *GAPS):
        found = re.search(rf"^{name}\s+(.*)$", printed, flags=re.MULTILINE)
        assert found is not None
        rows[name] = found[1].split()[:3]
    return rows


def _in_words(printed: str, *, scale: float) -> dict[str, list[float]]:
    """What the sentences say of accuracy and gaps before and steered, by the names in the table."""
    text, rows = " ".join(printed.split()), {}
    for name in ("accuracy", *GAPS):
        found = re.search(
            rf"{name} (?:goes |grew |shrank |rose |fell )?(?:from|stays at|stayed at) (\d+\.\d+)(?: points| %)?"
            rf"(?: to (\d+\.\d+))?",
            text,
            flags=re.IGNORECASE,
        )
        assert found is not None, name
        rows[name] = [float(found[1]) * scale, float(found[2] or found[1]) * scale]
    return rows


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--folds", "3", "--strength", "0.5"),
        ("--covariance", "full", "--pooling", "0.5", "--min-rows", "1"),
        ("--pos-label", "0", "--map-type", "symmetric"),
        ("--min-subgroup-size", "5", "--small-subgroups", "merge", "--keep", "town"),
    ],
)
def test_steer_and_audit_print_the_same_numbers(
    run: Callable[..., tuple[int, str, str]], file: Any, options: Any
) -> None:
    arguments = (file, "--target", "hired", "--sensitive", "sex", "--folds", "2", *options)
    _, steered, _ = run("steer", *arguments)
    _, audited, _ = run("audit", *arguments)
    assert _values(steered) == _values(audited)
    for text, scale in ((steered, 1), (audited, 0.01)):
        for name, told in _in_words(text, scale=scale).items():
            assert told == pytest.approx([float(number) for number in _values(text)[name][:2]], abs=0.00101)


def test_numbers_are_those_of_the_metrics_on_the_same_predictions(table: Any) -> None:
    table = table.dropna()
    X, y, groups = table[["age", "pay"]], table["hired"].to_numpy(), table[["sex"]]
    steering = FairSteeringTransformer(feature_transform=StandardScaler()).fit(X, y, sensitive_features=groups)
    result = compare(steering, X, y, groups, pos_label=None, folds=4, min_rows=1)
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline

    cells = [f"{a}{k}" for a, k in zip(table["sex"], y, strict=True)]
    predicted = {name: np.full(len(y), -1) for name in ("before", "steered")}
    for train, test in StratifiedKFold(4).split(X, cells):
        fitted = FairSteeringTransformer(feature_transform=StandardScaler())
        fitted.fit(X.iloc[train], y[train], sensitive_features=groups.iloc[train])
        moved = fitted.transform(X, sensitive_features=groups)
        for name, values in (("before", X.to_numpy()), ("steered", np.asarray(moved))):
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(values[train], y[train])
            predicted[name][test] = model.predict(values[test])
    for name, pred in predicted.items():
        found = result.scores[name]
        for gap in ("demographic_parity", "equal_opportunity", "equalized_odds"):
            expected = getattr(metrics, f"{gap}_difference")(y, pred, sensitive_features=table["sex"])
            assert getattr(found, gap).value == pytest.approx(expected, abs=1e-12)
        assert found.accuracy.value == pytest.approx(np.mean(pred == y), abs=1e-12)
        rates = metrics.group_metrics(y, pred, sensitive_features=table["sex"])
        np.testing.assert_allclose(result.group_rates(name)["selected"], rates["selection_rate"], atol=1e-12)
        np.testing.assert_allclose(result.group_rates(name)["TPR"], rates["true_positive_rate"], atol=1e-12)


@pytest.mark.slow
def test_the_positive_class_is_named(run: Callable[..., tuple[int, str, str]], table: Any, file: Any) -> None:
    table.assign(hired=np.where(table["hired"] == 1, 1, 2)).to_csv(file, index=False)
    arguments = (file, "--target", "hired", "--sensitive", "sex", "--folds", "2")
    assert "Positive class: 2 (by default the larger label" in " ".join(run("steer", *arguments)[1].split())
    assert "Positive class: 1" in " ".join(run("steer", *arguments, "--pos-label", "1")[1].split())
    assert re.search(r"Positive class +2\b", run("audit", *arguments)[1])


# ---- nothing that nobody asked for


@pytest.mark.slow
def test_groups_are_inferred_only_where_somebody_needs_it(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated = []

    def counted(*arguments: Any) -> Any:
        calibrated.append(1)
        return held_out_folds(*arguments)

    monkeypatch.setattr("fairsteer.transformer._calibration.held_out_folds", counted)
    arguments = (file, "--target", "hired", "--sensitive", "sex", "--folds", "2")
    for command in (("steer", "--map", tmp_path / "map.safetensors"), ("audit",)):
        assert run(command[0], *arguments, *command[1:])[0] == 0
    assert not calibrated
    table.loc[table.index[:3], "sex"] = None
    table.to_csv(file, index=False)
    assert run("steer", *arguments)[0] == 0
    assert not calibrated
    assert run("steer", *arguments, "--out", tmp_path / "out.csv")[0] == 0
    assert calibrated


def test_every_fit_is_made_once(
    run: Callable[..., tuple[int, str, str]], file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = []
    fit = FairSteeringTransformer.fit

    def counted(self: Any, X: Any, *arguments: Any, **options: Any) -> Any:
        fits.append(len(X))
        return fit(self, X, *arguments, **options)

    monkeypatch.setattr(FairSteeringTransformer, "fit", counted)
    arguments = (file, "--target", "hired", "--sensitive", "sex", "--folds", "3")
    for command in ("steer", "audit"):  # whose report and choice are of the same fits
        fits.clear()
        assert run(command, *arguments)[0] == 0
        assert sorted(fits) == [N_ROWS * 2 // 3] * 3 + [N_ROWS]


# ---- notes of what makes the numbers doubtful


@pytest.mark.slow
def test_fewer_rows_than_features(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 50)).round(3)).add_prefix("x")
    frame = frame.assign(sex=["f", "m", "m"] * 20, hired=rng.integers(0, 2, 60))
    frame.to_csv(tmp_path / "rows.csv", index=False)
    arguments = (tmp_path / "rows.csv", "--target", "hired", "--sensitive", "sex", "--folds", "2")
    for command in ("steer", "audit"):
        notes = run(command, *arguments)[2]
        assert (
            "There are fewer rows than the 50 features in the group 'f' (20), 'm' (40): covariances are mostly" in notes
        )
        assert "--covariance diagonal" in notes
        assert "fewer rows" not in run(command, *arguments, "--covariance", "diagonal")[2]


def test_rows_that_move_far(run: Callable[..., tuple[int, str, str]], table: Any, file: Any) -> None:
    table["age"] += np.where(table["sex"] == "f", 500, 0)
    table["pay"] += np.where(table["sex"] == "f", 50_000, 0)
    table.drop(columns="town").to_csv(file, index=False)
    arguments = (file, "--target", "hired", "--sensitive", "sex")
    notes = run("steer", *arguments)[2]
    assert "steering moves rows by more than 2 standard deviations" in notes
    assert "--strength moves them less" in notes
    assert "standard deviations: steered rows may lie" in " ".join(run("audit", *arguments)[1].split())


@pytest.mark.slow
def test_aligned_scores_are_measured_alike_by_steer_and_audit(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any, tmp_path: Path
) -> None:
    table.drop(columns="town").to_csv(file, index=False)
    arguments = (file, "--target", "hired", "--sensitive", "sex", "--align", "equal_opportunity")
    _, steered, _ = run("steer", *arguments)
    code, audited, err = run("audit", *arguments, "--html", tmp_path / "report.html")
    assert code == 0, err
    chosen = json.loads(run("audit", *arguments, "--json")[1])["classifiers"]["aligned"]
    for name in ("accuracy", *GAPS):
        (aligned,), (again,) = (
            re.findall(rf"^{name}\s+(.*)$", text, flags=re.MULTILINE) for text in (steered, audited)
        )
        measured = chosen[name.removesuffix(" gap").replace(" ", "_")]["value"]
        assert again.split()[1] == aligned.split()[-1] == f"{measured:.3f}"
    assert "score_alignment=" in "".join(audited.split())


def test_messages_of_the_library_name_options(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """One class is absent from a group, so the library warns, and speaks of its own parameters elsewhere."""
    from fairsteer.cli._fitting import _as_options

    text = "Use intervention='affirmative', or covariance='tied', strength=0.5; cv=5 stays."
    expected = "Use --intervention affirmative, or --covariance tied, --strength 0.5; cv=5 stays."
    assert _as_options(text) == expected
    frame = pd.DataFrame({"age": np.arange(40.0) % 7, "sex": ["f"] * 8 + ["m"] * 32, "hired": [1] * 8 + [0, 1] * 16})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    _, _, err = run("steer", tmp_path / "rows.csv", "--target", "hired", "--sensitive", "sex", "--folds", "2")
    (note,) = [line for line in err.splitlines() if "No row of the subgroups" in line]
    assert "Subgroups:" not in note


def test_control_characters_in_labels_are_written_out(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any
) -> None:
    table["sex"] = table["sex"].map({"f": "f\x1b[31m", "m": "m\x07"})
    table.to_csv(file, index=False)
    _, out, _ = run("steer", file, "--target", "hired", "--sensitive", "sex")
    assert r"f\x1b[31m" in out
    assert "\x1b" not in out


def test_the_last_line_says_which_classifier_to_take(run: Callable[..., tuple[int, str, str]]) -> None:
    rng = np.random.default_rng(0)
    group, y = rng.integers(0, 2, (2, 900))
    X = pd.DataFrame({"a": rng.normal(size=900) + 1.5 * y + 2 * group, "b": rng.normal(size=900)})
    steering = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    how: dict[str, Any] = {"pos_label": None, "folds": 3, "min_rows": 1}
    result = compare(steering, X, y, pd.DataFrame({"sex": group}), **how)
    assert list(result.scores) == ["before", "steered", "Bayes", "aligned"]
    assert (result.criterion, result.alignment) == ("equalized_odds", "equal_opportunity")
    gaps = {name: scores.equalized_odds for name, scores in result.scores.items()}
    accuracy = {name: float(scores.measures["accuracy"].value) for name, scores in result.scores.items()}
    least = min(gaps.values(), key=lambda gap: gap.value)
    as_good = [name for name, gap in gaps.items() if gap.value - least.value <= (least.upper - least.lower) / 3.92]
    assert result.choice == max(as_good, key=lambda name: accuracy[name]) != "before"
    # Where groups are alike nothing has to be done, unless it costs nothing.
    fair = pd.DataFrame({"a": rng.normal(size=900) + 1.5 * y, "b": rng.normal(size=900)})
    steering = FairSteeringTransformer(constraint="demographic_parity").fit(fair, y, sensitive_features=group)
    result = compare(steering, fair, y, pd.DataFrame({"sex": group}), **how)
    assert (result.criterion, result.alignment) == ("demographic_parity", "demographic_parity")
    assert list(result.scores) == ["before", "steered", "aligned"]  # there is no ideal distribution of all classes
    least = min(s.demographic_parity.value for s in result.scores.values())
    assert result.scores[result.choice].demographic_parity.value < least + 0.05
    code, printed, _ = run("demo")
    assert code == 0
    assert re.search(r"For the equalized odds gap take (steered|Bayes|aligned) \(", " ".join(printed.split()))


@pytest.mark.parametrize("constraint", ["equal_opportunity", "demographic_parity"])
def test_one_criterion_alone_with_classes_of_any_type(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any, constraint: Any
) -> None:
    table["hired"] = np.where(table["hired"] == 1, "yes", "no")
    table.to_csv(file, index=False)
    for command in ("steer", "audit"):
        arguments = ("--target", "hired", "--sensitive", "sex", "--constraint", constraint, "--pos-label", "yes")
        code, printed, err = run(command, file, *arguments)
        assert code == 0, err
        assert "Bayes" not in printed
        assert re.search(r"before +steered" if command == "steer" else r"\nsteered( \(taken\))? ", printed)
