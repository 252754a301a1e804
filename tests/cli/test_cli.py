"""The command line: what it prints and writes, and that bad input costs a sentence and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler

from fairsteer import persistence
from fairsteer.baselines import MeanMatchingTransformer
from fairsteer.cli import _fitting, _writing
from fairsteer.transformer import FairSteeringTransformer

N_ROWS = 240


@pytest.fixture
def table() -> Any:
    """Rows whose features depend on class and group, with units far apart, a category and a constant."""
    rng = np.random.default_rng(0)
    y, group = rng.integers(2, size=(2, N_ROWS))
    return pd.DataFrame(
        {
            "height": rng.normal(size=N_ROWS) + y + group,
            "income": 1e4 * (3 + y - group + rng.normal(size=N_ROWS)),
            "colour": np.array(["red", "green", "blue"])[rng.integers(3, size=N_ROWS)],
            "one": 1,
            "sex": np.array(["f", "m"])[group],
            "ill": np.array(["no", "yes"])[y],
        }
    )


def _steer(file: Any, *options: Any) -> Any:
    """A run with the fewest folds, since most tests are not about the comparison; an option given again holds."""
    return ["steer", file, "--target", "ill", "--sensitive", "sex", "--folds", 2, *options]


def _one_line(text: Any) -> Any:
    return " ".join(text.split())


# ---- what is printed


@pytest.mark.slow
def test_demo_prints_the_same_table_every_time_within_80_columns(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run("demo")
    assert code == 0
    assert err == ""
    for words in (
        "accuracy",
        "demographic parity gap",
        "equal opportunity gap",
        "equalized odds gap",
        "nats",
        "certificate",
    ):
        assert words in out
    assert max(map(len, out.splitlines())) <= 80
    assert run("demo") == (code, out, err)


def test_steer_without_out_prints_the_table_and_says_that_nothing_was_written(
    run: Callable[..., tuple[int, str, str]], file: Any
) -> None:
    code, out, _ = run(*_steer(file))
    assert code == 0
    assert "each predicted by a fit that did not see it" in " ".join(out.split())
    assert "equalized odds gap" in out
    assert "Nothing was written" in out
    assert max(map(len, out.splitlines())) <= 80
    assert list(file.parent.iterdir()) == [file]


def test_many_classes_and_intersections(run: Callable[..., tuple[int, str, str]], table: Any, tmp_path: Path) -> None:
    table["ill"] = np.arange(N_ROWS) % 3
    table["old"] = np.arange(N_ROWS) % 2 == 0
    table.to_parquet(tmp_path / "rows.parquet")
    code, out, _ = run(*_steer(tmp_path / "rows.parquet", "--sensitive", "old"))
    assert code == 0
    assert "f, True" in out


@pytest.mark.parametrize(
    "options",
    [
        ("--intervention", "affirmative", "--reference-group", "m"),
        ("--map-type", "symmetric", "--covariance", "full"),
        ("--covariance", "diagonal", "--shrinkage", "none", "--max-time", "60"),
        ("--shrinkage", "0.1", "--strength", "0.5", "--folds", "2", "--min-rows", "1"),
        ("--shrinkage", "oas", "--pos-label", "no", "--max-categories", "1"),
    ],
)
def test_every_option_reaches_the_estimator(run: Callable[..., tuple[int, str, str]], file: Any, options: Any) -> None:
    code, _, err = run(*_steer(file, *options))
    assert (code, "Traceback" in err) == (0, False)


@pytest.mark.parametrize("small_subgroups", ["pool", "merge"])
def test_small_subgroups_and_inference_are_those_of_the_estimator(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any, small_subgroups: Any
) -> None:
    table["sex"] = np.where(np.arange(N_ROWS) % 20 < 2, np.array(["x", "y"])[np.arange(N_ROWS) % 2], table["sex"])
    table.loc[30:39, "sex"] = np.nan
    table = table.drop(columns=["colour", "one"])
    table.to_csv(file, index=False)
    model, out, again = (file.with_name(name) for name in ("map.safetensors", "out.csv", "again.csv"))
    options = ("--min-subgroup-size", 20, "--small-subgroups", small_subgroups, "--unknown-group", "infer_hard")
    code, _, err = run(*_steer(file, *options, "--map", model, "--out", out))
    assert code == 0
    assert "10 rows without 'sex'" in _one_line(err)
    assert "by the map of the group that is likeliest" in _one_line(err)

    X, known = table[["height", "income"]], table["sex"].notna()
    steering = FairSteeringTransformer(
        feature_transform=StandardScaler(),
        min_subgroup_size=20,
        small_subgroups=small_subgroups,
        unknown_group="infer_hard",
    )
    steering.fit(X[known], table.loc[known, "ill"], sensitive_features=table.loc[known, "sex"])
    expected = steering.transform(X, sensitive_features=table["sex"])
    np.testing.assert_allclose(pd.read_csv(out)[["height", "income"]], expected, rtol=1e-9, atol=1e-9)

    # The saved map knows the groups by their own labels, though they may be merged.
    code, _, err = run("apply", model, file, "--out", again)
    assert code == 0, err
    assert again.read_bytes() == out.read_bytes()
    assert run("apply", model, file, "--out", again, "--unknown-group", "infer", "--force")[0] == 0
    steering.set_params(unknown_group="infer")
    np.testing.assert_allclose(
        pd.read_csv(again)[["height", "income"]],
        steering.transform(X, sensitive_features=table["sex"]),
        rtol=1e-9,
        atol=1e-9,
    )


def test_min_subgroup_size_is_asked_of_the_whole_file_not_of_its_folds(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any
) -> None:
    least = table.value_counts(["ill", "sex"]).min()
    assert run(*_steer(file, "--min-subgroup-size", least))[0] == 0
    code, _, err = run(*_steer(file, "--min-subgroup-size", least + 1))
    assert code == 2
    assert f"1 subgroup has fewer than {least + 1} rows" in err
    assert f"({least}). --small-subgroups pool" in err


def test_versions(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("versions")
    assert code == 0
    assert "fairsteer" in out


# ---- what is written


@pytest.mark.parametrize("extension", ["csv", "parquet"])
def test_steered_file_holds_encoded_steered_features_and_untouched_labels(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any, extension: Any
) -> None:
    out = file.with_name(f"steered.{extension}")
    assert run(*_steer(file, "--out", out))[0] == 0
    written = pd.read_csv(out) if extension == "csv" else pd.read_parquet(out)
    assert written.columns[-2:].tolist() == ["sex", "ill"]
    features = ["height", "income", "colour=red", "colour=green", "colour=blue", "one"]
    assert set(written.columns) == {*features, "sex", "ill"}
    assert written["sex"].tolist() == table["sex"].tolist()
    assert written["ill"].tolist() == table["ill"].tolist()

    encoded = pd.DataFrame({name: table[name].astype(float) for name in ("height", "income")})
    for name in [c for c in written.columns if c.startswith("colour=")]:
        encoded[name] = (table["colour"] == name.removeprefix("colour=")).astype(float)
    encoded["one"] = 1.0
    steering = FairSteeringTransformer(feature_transform=StandardScaler())
    steering.fit(encoded, table["ill"], sensitive_features=table["sex"])
    expected = steering.transform(encoded, sensitive_features=table["sex"])
    np.testing.assert_allclose(written[list(encoded.columns)], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_output_is_the_same_bytes_every_time_and_in_any_pieces(
    run: Callable[..., tuple[int, str, str]], file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, pieces = (file.with_name(f"{name}.csv") for name in ("first", "second", "pieces"))
    run(*_steer(file, "--out", first))
    run(*_steer(file, "--out", second))
    assert first.read_bytes() == second.read_bytes()
    monkeypatch.setattr("fairsteer.cli._reading.PIECE_BYTES", 1)
    monkeypatch.setattr("fairsteer.cli._reading.FEWEST_ROWS", 7)
    run(*_steer(file, "--out", pieces))
    np.testing.assert_allclose(
        pd.read_csv(pieces).select_dtypes("number"), pd.read_csv(first).select_dtypes("number"), rtol=1e-12, atol=1e-12
    )


def test_index_and_types_survive_in_parquet(
    run: Callable[..., tuple[int, str, str]], table: Any, tmp_path: Path
) -> None:
    table.index = pd.Index([f"row{i}" for i in range(N_ROWS)], name="id")
    table["sex"] = table["sex"].astype("category")
    table["ill"] = (table["ill"] == "yes").astype("int8")
    table.to_parquet(tmp_path / "rows.parquet")
    out = tmp_path / "steered.parquet"
    assert run(*_steer(tmp_path / "rows.parquet", "--out", out))[0] == 0
    written = pd.read_parquet(out)
    pd.testing.assert_index_equal(written.index, table.index, check_names=True)
    assert written["sex"].dtype == "category"
    assert written["ill"].dtype == "int8"


def test_plain_row_numbers_survive_in_pieces(
    run: Callable[..., tuple[int, str, str]], table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairsteer.cli._reading.PIECE_BYTES", 1)
    monkeypatch.setattr("fairsteer.cli._reading.FEWEST_ROWS", 50)
    table.to_parquet(tmp_path / "rows.parquet")
    run(*_steer(tmp_path / "rows.parquet", "--out", tmp_path / "steered.parquet"))
    pd.testing.assert_index_equal(pd.read_parquet(tmp_path / "steered.parquet").index, pd.RangeIndex(N_ROWS))


def test_map_steers_the_same_rows_alike_and_new_rows_without_target(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any
) -> None:
    out, again, model = (file.with_name(name) for name in ("out.parquet", "again.parquet", "map.safetensors"))
    assert run(*_steer(file, "--out", out, "--map", model))[0] == 0
    assert run("apply", model, file, "--out", again)[0] == 0
    pd.testing.assert_frame_equal(pd.read_parquet(out), pd.read_parquet(again), check_exact=True)

    new = file.with_name("new.csv")
    table.drop(columns="ill").tail(5).to_csv(new, index=False)
    code, printed, _ = run("apply", model, new, "--out", again, "-f")
    assert (code, printed) == (0, "Wrote 5 steered rows to again.parquet.\n")
    np.testing.assert_allclose(pd.read_parquet(again)["income"], pd.read_parquet(out)["income"].tail(5), rtol=1e-12)


def test_input_file_may_be_replaced_with_force(run: Callable[..., tuple[int, str, str]], file: Any) -> None:
    assert run(*_steer(file, "--out", file, "--force"))[0] == 0
    assert "colour=red" in pd.read_csv(file).columns


def test_kept_columns_are_copied_and_dropped_ones_forgotten(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any
) -> None:
    table["id"] = [f"p{i}" for i in range(N_ROWS)]
    table["leak"] = (table["ill"] == "yes").astype(int)
    table.to_csv(file, index=False)
    out = file.with_name("out.csv")
    assert run(*_steer(file, "--out", out, "--keep", "id", "--drop", "leak"))[0] == 0
    written = pd.read_csv(out)
    assert written["id"].tolist() == table["id"].tolist()
    assert "leak" not in written.columns


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "target", "sensitive", "drop"),
    [
        ("compas", "two_year_recid", "race", ["days_b_screening_arrest", "decile_score", "score_text", "is_recid"]),
        ("compas", "two_year_recid", "race", []),
        ("adult", "income", "sex", ["split"]),
    ],
    ids=["compas", "compas with leaks", "adult"],
)
def test_real_data(
    run: Callable[..., tuple[int, str, str]],
    real_data: Path,
    tmp_path: Path,
    file: Any,
    target: Any,
    sensitive: Any,
    drop: Any,
) -> None:
    path, out = real_data / "tabular" / f"{file}.parquet", tmp_path / "steered.parquet"
    arguments = ["steer", path, "--target", target, "--sensitive", sensitive, "--folds", 2]
    arguments += [word for name in drop for word in ("--drop", name)]
    code, printed, notes = run(*arguments, "--out", out, "--force")
    assert code == 0
    assert max(map(len, printed.splitlines())) <= 80
    table, written = pd.read_parquet(path), pd.read_parquet(out)
    pd.testing.assert_frame_equal(written[[sensitive, target]], table[[sensitive, target]])
    assert np.isfinite(written.select_dtypes("float")).all(axis=None)
    if file == "compas":  # the other takes longer and says no more
        assert run(*arguments, "--out", out, "--force") == (code, printed, notes)


# ---- gaps in the data


def test_missing_values_are_counted_filled_and_kept(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any
) -> None:
    table.loc[:9, "height"] = np.nan
    table.loc[:4, "colour"] = np.nan
    table.loc[20:22, "ill"] = np.nan
    table.loc[30:31, "sex"] = np.nan
    table.to_csv(file, index=False)
    out = file.with_name("out.parquet")
    code, _, err = run(*_steer(file, "--out", out))
    assert code == 0
    notes = _one_line(err)
    assert "10 missing values in numeric columns, filled with the column's median (height 10)" in notes
    assert "5 missing values in categorical columns, a category of their own (colour 5)" in notes
    assert "3 rows without 'ill': left out of the fit and the table, steered in the output" in notes
    assert "2 rows without 'sex': left out of the fit and the table; in the output they are steered by" in notes
    written = pd.read_parquet(out)
    assert len(written) == N_ROWS
    assert (written["ill"] == "").sum() == 3
    assert (written["sex"] == "").sum() == 2
    assert "colour=(missing)" in written.columns
    assert written.select_dtypes("number").notna().all(axis=None)


def test_new_categories_are_counted_and_new_groups_refused_unless_inferred(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any
) -> None:
    model, out = file.with_name("map.safetensors"), file.with_name("out.csv")
    run(*_steer(file, "--map", model))
    table.loc[0, "colour"] = "violet"
    table.to_csv(file, index=False)
    code, _, err = run("apply", model, file, "--out", out)
    assert code == 0
    assert "(colour 1)" in _one_line(err)

    table.loc[0, "sex"] = "x"
    table.to_csv(file, index=False)
    out.write_text("old")
    code, _, err = run("apply", model, file, "--out", out, "-f")
    assert code == 2
    assert "the map does not know the group x of 'sex' (it knows f; m)" in err
    assert out.read_text() == "old"
    code, _, err = run("apply", model, file, "--out", out, "--unknown-group", "infer", "-f")
    assert code == 0
    assert "1 group that the map does not know (x)" in err
    assert len(pd.read_csv(out)) == N_ROWS


def test_text_codes_stay_text_in_csv(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any, tmp_path: Path
) -> None:
    table["sex"] = table["sex"].map({"f": "01", "m": "02"})
    table["colour"] = table["colour"].map({"red": "7", "green": "8", "blue": "9"})
    table.to_parquet(tmp_path / "rows.parquet")
    table.to_csv(file, index=False)
    model, out = tmp_path / "map.safetensors", tmp_path / "out.csv"
    run(*_steer(tmp_path / "rows.parquet", "--map", model))
    code, _, err = run("apply", model, file, "--out", out)
    assert (code, err) == (0, "")


# ---- refusals

BAD_INPUT = {
    "no such file": (["steer", "none.csv", "--target", "ill", "--sensitive", "sex"], "there is no file none.csv"),
    "a folder without tables": (
        ["steer", "folder.csv", "--target", "ill", "--sensitive", "sex"],
        "the folder folder.csv has no .csv, .tsv or .parquet file",
    ),
    "wrong extension": (["steer", "rows.txt", "--target", "ill", "--sensitive", "sex"], "must end in .csv, .tsv"),
    "unreadable": (["steer", "bad.parquet", "--target", "ill", "--sensitive", "sex"], "cannot be read as parquet"),
    "empty": (["steer", "empty.csv", "--target", "ill", "--sensitive", "sex"], "cannot be read as csv"),
    "header only": (["steer", "header.csv", "--target", "ill", "--sensitive", "sex"], "header.csv has no rows"),
    "not text": (["steer", "bytes.csv", "--target", "ill", "--sensitive", "sex"], "cannot be read as csv"),
    "no target": (["steer", "rows.csv", "--target", "sick", "--sensitive", "sex"], "there is no column 'sick'"),
    "no group": (["steer", "rows.csv", "--target", "ill", "--sensitive", "age"], "there is no column 'age'"),
    "same column": (["steer", "rows.csv", "--target", "ill", "--sensitive", "ill"], "at once"),
    "named twice": (["steer", "rows.csv", "--target", "ill", "--sensitive", "sex", "--drop", "ill"], "named twice"),
    "no features": (
        ["steer", "rows.csv", "--target", "ill", "--sensitive", "sex"]
        + [word for name in ("height", "income", "colour", "one") for word in ("--drop", name)],
        "no feature column is left",
    ),
    "continuous target": (["steer", "rows.csv", "--target", "height", "--sensitive", "sex"], "continuous number"),
    "constant target": (["steer", "rows.csv", "--target", "one", "--sensitive", "sex"], "one value 1"),
    "one group": (["steer", "rows.csv", "--target", "ill", "--sensitive", "one"], "the one group '1'"),
    "continuous group": (["steer", "rows.csv", "--target", "ill", "--sensitive", "height"], "looks continuous"),
    "group of one": (["steer", "lonely.csv", "--target", "ill", "--sensitive", "sex"], "'x' of 'sex' has one row"),
    "class of one": (["steer", "single.csv", "--target", "ill", "--sensitive", "sex"], "'maybe' of 'ill' has one row"),
    "infinite": (["steer", "infinite.csv", "--target", "ill", "--sensitive", "sex"], "'height' has 1 infinite"),
    "dates": (["steer", "dates.parquet", "--target", "ill", "--sensitive", "sex"], "--drop when leaves it out"),
    "unknown class": ([*_steer("rows.csv"), "--pos-label", "maybe"], "there are: no; yes"),
    "unknown reference": (
        [*_steer("rows.csv"), "--intervention", "affirmative", "--reference-group", "x"],
        "there are: f; m",
    ),
    "useless reference": ([*_steer("rows.csv"), "--reference-group", "m"], "--intervention affirmative"),
    "shrinkage": ([*_steer("rows.csv"), "--shrinkage", "much"], "--shrinkage must be"),
    "shrinkage range": ([*_steer("rows.csv"), "--shrinkage", "2"], "--shrinkage must be a number in [0, 1], not 2"),
    "cell size": ([*_steer("rows.csv"), "--min-subgroup-size", "-1"], "--min-subgroup-size must be at least 0, not -1"),
    "small cells": (
        [*_steer("rows.csv"), "--min-subgroup-size", "200"],
        "4 subgroups have fewer than 200 rows: no in f",
    ),
    "no small cells": (
        [*_steer("rows.csv"), "--small-subgroups", "pool"],
        "--small-subgroups pool needs --min-subgroup-size",
    ),
    "no inference": ([*_steer("gaps.csv"), "--unknown-group", "error"], "--unknown-group error refuses them"),
    "strength": ([*_steer("rows.csv"), "--strength", "-1"], "--strength must be at least 0, not -1"),
    "folds": ([*_steer("rows.csv"), "--folds", "1"], "--folds must be at least 2, not 1"),
    "categories": ([*_steer("rows.csv"), "--max-categories", "0"], "--max-categories must be at least 1, not 0"),
    "no time": ([*_steer("rows.csv"), "--max-time", "0"], "--max-time must be a positive number of seconds, not 0"),
    "no such intervention": (
        [*_steer("rows.csv"), "--intervention", "none"],
        "--intervention must be 'all_subgroups' or 'affirmative', not none",
    ),
    "no number": ([*_steer("rows.csv"), "--folds=many"], "--folds must be a valid integer, not many"),
    "no option": (["steer", "rows.csv", "--target", "ill"], "--sensitive"),
    "no command": (["steal"], "steal"),
    "out is input": ([*_steer("rows.csv"), "--out", "rows.csv"], "is the input file itself; --force replaces it"),
    "out is input by a link": (
        [*_steer("rows.csv"), "--out", "link.csv"],
        "is the input file itself; --force replaces it",
    ),
    "out is a folder": ([*_steer("rows.csv"), "--out", "folder.csv"], "is a directory"),
    "out has no folder": ([*_steer("rows.csv"), "--out", "nowhere/out.csv"], "does not exist"),
    "out extension": ([*_steer("rows.csv"), "--out", "out.xlsx"], "must end in .csv, .tsv"),
    "map extension": ([*_steer("rows.csv"), "--map", "map.csv"], "must end in .safetensors"),
    "map has no folder": ([*_steer("rows.csv"), "--map", "nowhere/map.safetensors"], "does not exist"),
    "no map": (["apply", "none.safetensors", "rows.csv", "--out", "out.csv"], "none.safetensors"),
    "no map of the command": (["apply", "mean.safetensors", "rows.csv", "--out", "out.csv"], "not the table it was"),
    "another map": (
        ["apply", "other.safetensors", "rows.csv", "--out", "out.csv"],
        "holds a MeanMatchingTransformer, not a map that fairsteer steer wrote",
    ),
    "no map at all": (["apply", "rows.csv", "rows.csv", "--out", "out.csv"], "rows.csv"),
    "missing columns": (
        ["apply", "map.safetensors", "few.csv", "--out", "out.csv"],
        "lacks 2 columns that the map needs: 'income', 'one'",
    ),
    "text in numbers": (["apply", "map.safetensors", "text.csv", "--out", "out.csv"], "'height' must be numeric"),
    "out exists": ([*_steer("rows.csv"), "--out", "old.csv"], "old.csv exists; --force replaces it"),
    "model exists": (
        [*_steer("rows.csv"), "--map", "mean.safetensors", "--out", "-"],
        "mean.safetensors exists; --force replaces",
    ),
    "two outputs in one": ([*_steer("rows.csv"), "--map", "/dev/stdout", "--out", "-"], "are both /dev/stdout"),
    "a name nearby": (["steer", "rows.csv", "--target", "ill", "--sensitive", "Sex"], "did you mean 'sex'?"),
    "an option nearby": ([*_steer("rows.csv"), "--foldz", "3"], "--folds"),
    "export exists": (["export", "map.safetensors", "--to", "onnx", "--out", "old.onnx"], "old.onnx exists; --force"),
    "export of a table": (
        ["export", "rows.csv", "--to", "onnx", "--out", "a.onnx"],
        "--target is needed, as for steer",
    ),
    "export with an option of a fit": (
        ["export", "map.safetensors", "--to", "onnx", "--out", "a.onnx", "--keep", "one"],
        "--keep belongs to a fit, and map.safetensors is fitted already",
    ),
}


@pytest.fixture
def folder(
    table: Any, file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> Any:
    """A working directory with every file that the refusals need."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "rows.txt").write_text("a")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("height,sex,ill\n")
    (tmp_path / "bytes.csv").write_bytes(bytes(range(256)))
    (tmp_path / "link.csv").symlink_to(file)
    (tmp_path / "old.csv").write_text("old")
    (tmp_path / "old.onnx").write_text("old")
    table.assign(sex=[None, *table["sex"][1:]]).to_csv("gaps.csv", index=False)
    table.assign(sex=["x", *table["sex"][1:]]).to_csv("lonely.csv", index=False)
    table.assign(ill=["maybe", *table["ill"][1:]]).to_csv("single.csv", index=False)
    table.assign(height=[np.inf, *table["height"][1:]]).to_csv("infinite.csv", index=False)
    table.assign(when=pd.Timestamp("2020-01-01")).to_parquet("dates.parquet")
    table.drop(columns=["income", "one"]).to_csv("few.csv", index=False)
    table.assign(height="tall").to_csv("text.csv", index=False)
    persistence.save(
        MeanMatchingTransformer().fit(table[["height"]], sensitive_features=table["sex"]), "mean.safetensors"
    )
    return tmp_path


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_one_sentence_and_exit_code_2(
    run: Callable[..., tuple[int, str, str]], folder: Any, arguments: Any, message: Any
) -> None:
    if {"map.safetensors", "other.safetensors"} & set(arguments):
        assert run(*_steer("rows.csv", "--map", "map.safetensors"))[0] == 0
        extra = persistence.read_extra("map.safetensors")
        persistence.save(persistence.load("mean.safetensors"), "other.safetensors", extra=extra)
    out = folder / "out.csv"
    out.write_text("old")
    before = sorted(folder.iterdir())
    options: tuple[str, ...] = (
        () if "--out" in arguments or arguments[0] != "steer" else ("--out", "out.csv", "--force")
    )
    if arguments[0] == "apply":
        options = ("--force",)
    code, printed, err = run(*arguments, *options)
    assert code == 2, err
    assert printed == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("fairsteer: ")
    assert out.read_text() == "old"
    assert sorted(folder.iterdir()) == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_unwritable_folder_is_refused_before_the_work(
    run: Callable[..., tuple[int, str, str]], file: Any, tmp_path: Path
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    code, _, err = run(*_steer(file, "--out", locked / "out.csv"))
    assert code == 2
    assert "permission denied" in err


def test_failure_while_writing_leaves_the_old_files(
    run: Callable[..., tuple[int, str, str]], file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, model = file.with_name("out.csv"), file.with_name("map.safetensors")
    out.write_text("old rows")
    model.write_text("old map")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_writing._CsvWriter, "write", fail)
    code, _, err = run(*_steer(file, "--out", out, "--map", model, "--force"))
    assert code == 2
    assert "No space left on device" in err
    assert out.read_text() == "old rows"
    assert model.read_text() == "old map"
    assert sorted(file.parent.iterdir()) == sorted([file, out, model])


def test_defect_is_exit_code_1_without_a_traceback(
    run: Callable[..., tuple[int, str, str]], file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FAIRSTEER_TRACEBACK", raising=False)
    monkeypatch.setattr(_fitting, "open_table", lambda *_: 1 / 0)
    code, _, err = run(*_steer(file))
    assert code == 1
    assert "unexpected ZeroDivisionError" in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["typer", "rich", "pandas", "pyarrow"])
def test_missing_extra_is_one_sentence(missing: Any) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None\nfrom fairsteer.cli import main\nmain(['demo'])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == f'fairsteer: the command line needs {missing}: pip install "fairsteer[cli]" brings it.\n'


@pytest.mark.slow
def test_module_runs_as_a_program() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "fairsteer.cli", "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert "demo" in result.stdout
