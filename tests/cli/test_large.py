"""Tables larger than the memory they may take: the same maps and rows as of a table in memory."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairsteer import persistence
from fairsteer.cli import UsageError, _fitting, _large, _streams
from fairsteer.cli._columns import Reading
from fairsteer.cli._options import parse_memory

Run = Callable[..., tuple[int, str, str]]
_ROLES = (
    "--target",
    "ill",
    "--sensitive",
    "sex",
    "--drop",
    "id",
    "--map-type",
    "affine",
    "--standardize",
    "--folds",
    "2",
)
N = 6000


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Rows with gaps, categories, and three rows without class or group; read in pieces of a few hundred rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_large, "_SMALLEST_PIECE", 2**14)
    monkeypatch.setattr(_large, "_PARQUET_FACTOR", 40)
    monkeypatch.setattr(_fitting, "_FEWEST_SAMPLED", 500)
    monkeypatch.setattr(_fitting, "_MOST_SAMPLED", 800)
    rng = np.random.default_rng(0)
    y, group = rng.integers(2, size=N), rng.integers(3, size=N)
    frame = pd.DataFrame(rng.normal(size=(N, 3)) * [1, 200, 3] + y[:, None] + group[:, None], columns=list("abc"))
    frame["colour"] = np.array(["red", "green", "blue", "grey"])[rng.choice(4, size=N, p=[0.4, 0.3, 0.2, 0.1])]
    frame["id"] = np.arange(N)
    frame["sex"], frame["ill"] = np.array(["f", "m", "x"])[group], np.array(["no", "yes"])[y]
    frame.loc[::9, "a"] = np.nan
    frame.loc[[4321, 4322], "sex"] = None
    frame.loc[4400, "ill"] = None
    return frame


def write(table: pd.DataFrame, kind: str) -> str:
    if kind == "parquet":
        table.to_parquet("rows.parquet", index=False, row_group_size=700)
        return "rows.parquet"
    if kind == "folder of parquet":
        Path("folder").mkdir()
        for i in range(3):
            table.iloc[i * 2000 : (i + 1) * 2000].to_parquet(f"folder/{i}.parquet")
        return "folder"
    if kind == "folder of csv":
        Path("folder").mkdir()
        for i in range(3):
            table.iloc[i * 2000 : (i + 1) * 2000].to_csv(f"folder/{i}.csv", index=False)
        Path("folder/_notes.txt").write_text("no table")
        return "folder"
    if kind == "gzip":
        with gzip.open("rows.csv.gz", "wt") as file:
            table.to_csv(file, index=False)
        return "rows.csv.gz"
    if kind == "utf-16":
        table.to_csv("rows.csv", index=False, sep=";", decimal=",", encoding="utf-16")
        return "rows.csv"
    table.to_csv("rows.csv", index=False)
    return "rows.csv"


def distance(first: str, second: str) -> float:
    one, other = persistence.load(first), persistence.load(second)
    return max(
        float(np.abs(a - b).max())
        for label in one.maps_
        for a, b in zip(one.maps_[label], other.maps_[label], strict=True)
    )


@pytest.mark.parametrize("kind", ["csv", "parquet", "folder of parquet", "folder of csv", "gzip", "utf-16"])
def test_steer_and_apply_as_in_memory(table: pd.DataFrame, run: Run, kind: str) -> None:
    table.to_csv("memory.csv", index=False)
    code, _, err = run("steer", "memory.csv", *_ROLES, "--map", "a.safetensors", "--out", "a.csv", "--memory", "1G")
    assert code == 0, err
    file = write(table, kind)
    code, _, err = run("steer", file, *_ROLES, "--map", "b.safetensors", "--out", "b.csv", "--memory", "1M")
    assert code == 0, err
    assert "6,000 rows, more than 1 MiB of memory hold" in err
    assert "evenly spaced" in err
    assert distance("a.safetensors", "b.safetensors") < 1e-9
    encoding: dict[str, Any] = {"sep": ";", "decimal": ",", "encoding": "utf-16"} if kind == "utf-16" else {}
    expected, got = pd.read_csv("a.csv"), pd.read_csv("b.csv", **encoding)
    known = table["sex"].notna()  # groups of others are inferred, with probabilities calibrated on a sample
    pd.testing.assert_frame_equal(got[known], expected[known], check_exact=False, rtol=1e-8, atol=1e-8)
    assert run("apply", "b.safetensors", file, "--out", "c.csv", "--memory", "1M")[0] == 0
    assert Path("c.csv").read_bytes() == Path("b.csv").read_bytes()


def test_a_row_may_be_longer_than_others(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow reads blocks, and a row must not lie in three of them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    text = np.full(300, "x" * 40_000, dtype=object)
    text[150] = "y" * 600_000
    sex, ill = rng.choice(["f", "m"], 300), rng.integers(2, size=300)
    table = pd.DataFrame({"a": rng.normal(size=300), "text": text, "sex": sex, "ill": ill})
    table.to_csv("rows.csv", index=False)
    roles = ("--target", "ill", "--sensitive", "sex", "--drop", "text")
    code, _, err = run("moments", "rows.csv", *roles, "--memory", "10M", "--out", "m.safetensors")
    assert code == 0, err


def test_categories_and_medians_are_those_of_all_rows(table: pd.DataFrame, run: Run) -> None:
    table.loc[5:7, "colour"] = "rare"
    table.to_csv("rows.csv", index=False)
    run("steer", "rows.csv", *_ROLES, "--map", "a.safetensors", "--memory", "1G")
    run("steer", "rows.csv", *_ROLES, "--map", "b.safetensors", "--memory", "1M")
    first, second = ((persistence.read_extra(f"{name}.safetensors") or {})["columns"] for name in "ab")
    assert len(first) == len(second)
    for column, same in zip(first, second, strict=True):
        # Those of columns without gaps in the sample serve gaps of rows to come, and are the sample's.
        assert column == same or (column["kind"] == "numeric" and column["name"] in "bc")


def test_audit_measures_the_sample(table: pd.DataFrame, run: Run) -> None:
    code, out, err = run("audit", write(table, "csv"), *_ROLES, "--memory", "1M")
    assert code == 0, err
    assert "6,000 rows" in err
    assert "gap" in out


def test_aligned_scores_of_a_large_table(table: pd.DataFrame, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(table, "csv")
    options = (*_ROLES, "--align", "equal_opportunity")
    for name, memory in (("a", "1G"), ("b", "1M")):
        code, _, err = run("steer", file, *options, "--map", f"{name}.safetensors", "--memory", memory)
        assert code == 0, err
    # All rows fit into the sample, so the folds and the scores are those of a fit in memory.
    features = table.loc[table["sex"].notna() & table["ill"].notna()]
    one, other = persistence.load("a.safetensors"), persistence.load("b.safetensors")
    names = one.steering_.feature_names_in_
    rows = pd.DataFrame(np.random.default_rng(1).normal(size=(50, len(names))) * 2, columns=names)
    sex = features["sex"].to_numpy()[:50]
    expected = one.predict_proba(rows, sensitive_features=sex)
    np.testing.assert_allclose(other.predict_proba(rows, sensitive_features=sex), expected, atol=1e-8)
    features.to_csv("known.csv", index=False)  # aligned scores need the group
    for name, memory in (("a", "1G"), ("b", "1M")):
        code, _, err = run("apply", f"{name}.safetensors", "known.csv", "--out", f"{name}.csv", "--memory", memory)
        assert code == 0, err
    pd.testing.assert_frame_equal(pd.read_csv("a.csv"), pd.read_csv("b.csv"), check_exact=False, atol=1e-8)
    code, _, err = run("audit", file, *options, "--memory", "1M")
    assert code == 0, err
    # Of more rows than the sample holds, some stand for all.
    monkeypatch.setattr("fairsteer.transformer._streaming.MOST_SAMPLED", 1500)
    code, _, err = run("steer", file, *options, "--map", "e.safetensors", "--memory", "1M")
    assert code == 0, err
    assert "of 5,997 rows, evenly spaced in every class and group" in err
    assert "of that of all its rows" in err
    sampled = persistence.load("e.safetensors")
    for label, maps in one.steering_.maps_.items():  # the steering is that of all rows
        for found, whole in zip(sampled.steering_.maps_[label], maps, strict=True):
            np.testing.assert_allclose(found, whole, atol=1e-9)
    some = sampled.predict_proba(rows, sensitive_features=sex)
    assert np.abs(some - expected).max() > 1e-6
    assert (some.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9


def test_what_a_large_table_cannot_have_is_said(table: pd.DataFrame, run: Run) -> None:
    file = write(table, "csv")
    lines = Path(file).read_text().splitlines()
    lines[4000] += ",7"
    Path("broken.csv").write_text("\n".join(lines) + "\n")
    code, _, err = run("steer", "broken.csv", *_ROLES, "--memory", "1M", "--out", "out.csv")
    assert code == 2
    assert "has 8 values and the header has 7 names" in err
    assert not Path("out.csv").exists()


def test_folders_of_two_kinds_and_of_two_tables_are_refused(table: pd.DataFrame, run: Run) -> None:
    folder = write(table, "folder of csv")
    table[["a"]].to_csv("folder/9.csv", index=False)
    code, _, err = run("steer", folder, *_ROLES)
    assert code == 2
    assert "9.csv in folder has other columns than 0.csv" in err
    table.to_parquet("folder/9.parquet")
    code, _, err = run("steer", folder, *_ROLES)
    assert code == 2
    assert "has csv and parquet files" in err


def test_names_of_folders_are_a_column(table: pd.DataFrame, run: Run) -> None:
    import pyarrow as pa
    from pyarrow import dataset

    dataset.write_dataset(
        pa.Table.from_pandas(table.dropna(subset="sex"), preserve_index=False), "parts", format="parquet",
        partitioning=["sex"], partitioning_flavor="hive",
    )  # fmt: skip
    code, _, err = run("steer", "parts", *_ROLES, "--map", "m.safetensors", "--memory", "1M")
    assert code == 0, err
    assert persistence.load("m.safetensors").groups_.tolist() == ["f", "m", "x"]


@pytest.mark.parametrize("out", ["out.csv", "out.parquet"])
def test_files_of_a_folder_may_have_nulls_where_others_say_that_they_have_none(
    table: pd.DataFrame, run: Run, out: str
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    whole = pa.Table.from_pandas(table.dropna(), preserve_index=False)
    with_nulls = pa.Table.from_pandas(table, preserve_index=False)
    Path("parts").mkdir()
    strict = whole.cast(pa.schema([field.with_nullable(False) for field in whole.schema], whole.schema.metadata))
    parquet.write_table(strict, "parts/0.parquet")
    parquet.write_table(with_nulls, "parts/1.parquet")
    code, _, err = run("steer", "parts", *_ROLES, "--out", out, "--memory", "1M")
    assert code == 0, err
    found = pd.read_parquet(out) if out.endswith("parquet") else pd.read_csv(out)
    assert found["sex"].isna().sum() == 2
    assert len(found) == len(whole) + N


class _Stop(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("command", ["steer", "moments"])
def test_resumed_run_ends_with_the_same_bytes(
    table: pd.DataFrame, run: Run, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(table, "csv")
    roles = _ROLES if command == "steer" else _ROLES[:6]
    option = "--map" if command == "steer" else "--out"
    arguments = (command, file, *roles, "--checkpoint-every", "0", option, "m.safetensors")
    before = set(Path().iterdir())
    assert run(*arguments, "--memory", "1M")[0] == 0
    assert set(Path().iterdir()) - before == {Path("m.safetensors")}
    whole = Path("m.safetensors").read_bytes()
    Path("m.safetensors").unlink()
    save = _streams.Checkpoint.save

    def stop(self: Any, moments: Any, pieces: int, memory: int) -> None:
        save(self, moments, pieces, memory)
        if pieces == 5:
            raise _Stop

    monkeypatch.setattr(_streams.Checkpoint, "save", stop)
    with pytest.raises(_Stop):
        run(*arguments, "--memory", "1M")
    [checkpoint] = set(Path().iterdir()) - before
    assert checkpoint.suffix == ".checkpoint"
    monkeypatch.setattr(_streams.Checkpoint, "save", save)
    code, _, err = run(*arguments, "--resume", "--memory", "1M", "--drop", "b")
    assert code == 2
    assert "had other options than this one" in err
    code, _, err = run(*arguments, "--resume")  # in pieces of the run that was interrupted
    assert code == 0, err
    assert Path("m.safetensors").read_bytes() == whole
    assert set(Path().iterdir()) - before == {Path("m.safetensors")}


def test_run_that_is_not_resumed_removes_the_checkpoint(table: pd.DataFrame, run: Run) -> None:
    checkpoint = _streams.Checkpoint(Path("m.safetensors"), {}, seconds=0, resume=True)
    checkpoint.path.write_text("of another run")
    code, _, err = run(
        "moments", write(table, "csv"), *_ROLES[:6], "--memory", "1M", "--out", "m.safetensors", "--resume"
    )
    assert code == 2
    assert "cannot be read; remove it" in err
    assert run("moments", "rows.csv", *_ROLES[:6], "--memory", "1M", "--out", "m.safetensors")[0] == 0
    assert not checkpoint.path.exists()


def test_sample_is_evenly_spaced(table: pd.DataFrame) -> None:
    source = _large.open_table(Path(write(table, "csv")), Reading(), lambda _: None, 2**20)
    assert isinstance(source, _large.LargeTable)
    sample, n_rows = source.sample(800)
    assert n_rows == N
    assert np.unique(np.diff(sample.column("id").numbers())).tolist() == [8.0]
    assert len(source.sample(N)[0]) == N


def test_distinct_rows_are_counted(table: pd.DataFrame) -> None:
    source = _large.open_table(Path(write(table, "parquet")), Reading(), lambda _: None, 2**17)
    assert isinstance(source, _large.LargeTable)
    distinct, counts = _large.distinct_rows(source, ["sex"])
    found = dict(zip(distinct.column("sex").labels().tolist(), counts.tolist(), strict=True))
    assert found == {None: 2, **table["sex"].value_counts().to_dict()}


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("2M", 2**21), ("1.5 GiB", 3 * 2**29), ("4gb", 2**32), ("5000000", 5_000_000)]
)
def test_sizes_of_memory(text: str, n_bytes: int) -> None:
    assert parse_memory(text) == n_bytes
    assert parse_memory(None) > 2**20
    for wrong in ("", "5", "many", "-3G"):
        with pytest.raises(UsageError, match="--memory must be a size of at least 1M"):
            parse_memory(wrong)


def test_median_of_many_rows_lies_in_the_bracket() -> None:
    rng = np.random.default_rng(0)
    for values in (
        rng.normal(size=20_001),
        rng.integers(0, 5, 20_000).astype(float),
        np.r_[np.zeros(900), np.ones(900)],
    ):
        bracket = _fitting.Bracket.of(values[::20])
        for part in np.array_split(np.r_[values, np.nan], 7):
            bracket.add(part)
        assert bracket.median() == np.median(values)
