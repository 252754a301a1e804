"""Saved maps on other people's files: groups are what they were at the fit, however they are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairsteer import IdealDistributionClassifier, persistence

N_ROWS = 200


@pytest.fixture
def table() -> Any:
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 2, (2, N_ROWS))
    return pd.DataFrame(
        {
            "age": 40 + 5 * y + 3 * group + rng.normal(0, 9, N_ROWS),
            "pay": 3000 + rng.integers(0, 900, N_ROWS) * (1 + group),
            "sex": np.array(["f", "m"])[group],
            "hired": y,
        }
    )


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def write(frame: Any, name: Any) -> Any:
        if name.endswith("csv"):
            frame.to_csv(name, index=False)
        else:
            frame.to_parquet(name)
        return name

    return write


@pytest.fixture
def steer(run: Callable[..., tuple[int, str, str]]) -> Any:
    def steer(file: Any, *options: Any, sensitive: str = "sex") -> None:
        arguments = ["steer", file, "--target", "hired", "--sensitive", sensitive, "--folds", 2, "--force"]
        code, _, err = run(*arguments, "--map", "map.safetensors", *options)
        assert code == 0, err

    return steer


@pytest.fixture
def apply(run: Callable[..., tuple[int, str, str]]) -> Any:
    def apply(file: Any, *options: Any, out: str = "out.csv") -> Any:
        code, _, err = run("apply", "map.safetensors", file, "--out", out, "--force", *options)
        return code, " ".join(err.split())

    return apply


KINDS: dict[str, Callable[[Any], Any]] = {
    "integers": lambda sex: sex.map({"f": 1, "m": 2}),
    "floats": lambda sex: sex.map({"f": 1.0, "m": 2.0}),
    "text": lambda sex: sex.map({"f": "1", "m": "2"}),
    "a category": lambda sex: sex.map({"f": 1, "m": 2}).astype("category"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fitted", ["rows.csv", "rows.parquet"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_group_is_the_same_however_the_file_writes_it(
    write: Any, steer: Any, apply: Any, table: Any, fitted: Any, kind: Any
) -> None:
    steer(write(table.assign(sex=KINDS[kind](table["sex"])), fitted), "--out", "expected.csv")
    expected = pd.read_csv("expected.csv")[["age", "pay"]]
    for new, change in KINDS.items():
        for name in ("new.csv", "new.parquet"):
            code, err = apply(write(table.assign(sex=change(table["sex"])), name))
            assert (code, err) == (0, ""), (new, name)
            np.testing.assert_allclose(pd.read_csv("out.csv")[["age", "pay"]], expected, rtol=1e-12)


def test_truths_are_the_same_in_csv_and_parquet(write: Any, steer: Any, apply: Any, table: Any) -> None:
    table["sex"] = table["sex"] == "f"
    steer(write(table, "rows.parquet"))
    assert apply(write(table, "new.csv")) == (0, "")
    mixed = table["sex"].astype(str).where(np.arange(N_ROWS) % 5 > 0, "9")
    steer(write(table.assign(sex=mixed), "rows.csv"))
    assert apply(write(table.assign(sex=mixed), "new.csv")) == (0, "")
    assert apply(write(table.assign(sex="9"), "new.csv")) == (0, "")


@pytest.mark.parametrize("name", ["new.csv", "new.parquet"])
def test_groups_of_another_type_are_refused_even_if_groups_may_be_inferred(
    write: Any, steer: Any, apply: Any, table: Any, name: Any
) -> None:
    numbers = table.assign(sex=table["sex"].map({"f": 1, "m": 2}))
    for fitted, new, words in ((table, numbers, "numbers"), (numbers, table, "text")):
        steer(write(fitted, "rows.csv"))
        for options in ((), ("--unknown-group", "infer"), ("--unknown-group", "infer_hard")):
            code, err = apply(write(new, name), *options)
            assert code == 2
            assert f"in 'sex' are {words}, and the map was fitted on" in err


def test_new_and_missing_groups(write: Any, steer: Any, apply: Any, table: Any) -> None:
    steer(write(table, "rows.csv"))
    new = table.assign(sex=["x", None, None, *table["sex"][3:]])
    code, err = apply(write(new, "new.csv"))
    assert code == 2
    assert "the map does not know the group x of 'sex' (it knows f; m); --unknown-group infer" in err
    code, err = apply(write(new.tail(-1), "new.csv"))
    assert code == 2
    assert "2 rows of new.csv have no 'sex'; --unknown-group infer" in err
    code, notes = apply(write(new, "new.csv"), "--unknown-group", "infer")
    assert code == 0
    assert "2 rows without 'sex' and 1 group that the map does not know (x): steered by the maps of all" in notes
    assert "the map was fitted without --unknown-group infer" in notes
    steer("rows.csv", "--unknown-group", "infer")
    code, notes = apply("new.csv", "--unknown-group", "infer")
    assert code == 0
    assert "fitted without" not in notes


def test_intersections_and_columns_that_are_kept(write: Any, steer: Any, apply: Any, table: Any) -> None:
    table["old"] = np.arange(N_ROWS) % 2
    table["id"] = [f"{i:04d}" for i in range(N_ROWS)]
    steer(write(table, "rows.csv"), "--keep", "id", "--out", "expected.csv", sensitive="sex,old")
    assert apply(write(table.drop(columns="hired").assign(more="007"), "new.csv"), "--keep", "more") == (0, "")
    found, expected = (pd.read_csv(name, dtype=str) for name in ("out.csv", "expected.csv"))
    assert found.columns.tolist() == ["age", "pay", "sex", "old", "id", "more"]
    pd.testing.assert_frame_equal(found[["age", "pay", "id"]], expected[["age", "pay", "id"]])
    assert set(found["more"]) == {"007"}
    code, err = apply("new.csv", "--keep", "les")
    assert code == 2
    assert "there is no column 'les' for --keep" in err


def test_missing_values_are_read_as_at_the_fit(write: Any, steer: Any, apply: Any, table: Any) -> None:
    table["x"] = ["?", *np.arange(N_ROWS - 1).astype(str)]
    table["y"] = ["NA", "b"] * (N_ROWS // 2)
    steer(write(table, "rows.csv"), "--na-values", "?", "--strict-na", "--out", "expected.csv")
    code, _ = apply("rows.csv")
    assert code == 0
    pd.testing.assert_frame_equal(pd.read_csv("out.csv"), pd.read_csv("expected.csv"))
    assert "y=NA" in pd.read_csv("out.csv").columns


# ---- aligned scores


@pytest.mark.slow
@pytest.mark.parametrize("align", ["equal_opportunity", "demographic_parity"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_align_adds_the_classifier_to_table_output_and_map(
    run: Callable[..., tuple[int, str, str]], write: Any, apply: Any, table: Any, align: Any, n_classes: Any
) -> None:
    names = np.array(["no", "yes", "perhaps"])
    table["hired"] = names[(table["hired"] + np.arange(N_ROWS) % (n_classes - 1)).to_numpy() % n_classes]
    arguments = ["steer", write(table, "rows.csv"), "--target", "hired", "--sensitive", "sex", "--folds", 2]
    code, printed, err = run(*arguments, "--align", align, "--out", "out.csv", "--map", "map.safetensors")
    assert code == 0, err
    assert "aligned" in printed
    assert "Wrote the map and the aligned classifier of 2 groups to map.safetensors." in printed

    classifier = persistence.load("map.safetensors")
    assert isinstance(classifier, IdealDistributionClassifier)
    assert classifier.score_alignment == align
    proba = classifier.predict_proba(table[["age", "pay"]], sensitive_features=table["sex"])
    predicted = classifier.predict(table[["age", "pay"]], sensitive_features=table["sex"])
    written = pd.read_csv("out.csv")
    classes = sorted(set(table["hired"]))
    shown = classes[-1:] if n_classes == 2 else classes
    columns = [f"P(hired={label})" for label in shown]
    assert written.columns.tolist() == ["age", "pay", *columns, "predicted hired", "sex", "hired"]
    np.testing.assert_allclose(written[columns], proba[:, [classes.index(label) for label in shown]], rtol=1e-12)
    assert written["predicted hired"].tolist() == predicted.tolist()

    assert apply(write(table.drop(columns="hired"), "new.csv"), out="again.csv")[0] == 0
    pd.testing.assert_frame_equal(pd.read_csv("again.csv"), written.drop(columns="hired"))
    code, printed, _ = run("export", "map.safetensors", "--to", "affine", "--out", "maps")
    assert code == 0


def test_align_measures_what_a_classifier_fitted_without_the_rows_predicts(
    run: Callable[..., tuple[int, str, str]], write: Any, table: Any
) -> None:
    from sklearn.preprocessing import StandardScaler

    from fairsteer import FairSteeringTransformer, metrics
    from fairsteer._utils.folds import stratified_splits
    from fairsteer.cli._comparison import compare

    X, y, groups = table[["age", "pay"]], table["hired"].to_numpy(), table[["sex"]]
    steering = FairSteeringTransformer(feature_transform=StandardScaler()).fit(X, y, sensitive_features=groups)
    how: dict[str, Any] = {"pos_label": None, "folds": 4, "min_rows": 1}
    result = compare(steering, X, y, groups, alignment="equal_opportunity", **how)
    predicted = np.full(N_ROWS, -1)
    codes = np.unique(table["sex"], return_inverse=True)[1]
    for train, test in stratified_splits(4, X, y, codes, np.ones(N_ROWS, bool), frozen=False):
        classifier = IdealDistributionClassifier(
            steering=FairSteeringTransformer(feature_transform=StandardScaler()), score_alignment="equal_opportunity"
        ).fit(X.iloc[train], y[train], sensitive_features=groups.iloc[train])
        predicted[test] = classifier.predict(X.iloc[test], sensitive_features=groups.iloc[test])
    gap = metrics.equal_opportunity_difference(y, predicted, sensitive_features=table["sex"])
    assert result.scores["aligned"].equal_opportunity.value == pytest.approx(gap, abs=1e-12)
