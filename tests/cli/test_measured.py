"""Rows that gaps are measured on: a bounded number of them, spaced evenly, and none of a small group left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fairsteer.cli._measured import evenly_spaced, most_measured
from fairsteer.cli._options import parse_memory

Run = Callable[..., tuple[int, str, str]]
_ROLES = ("--target", "ill", "--sensitive", "sex")


def test_cells_keep_their_shares_and_small_ones_their_rows() -> None:
    rng = np.random.default_rng(0)
    cells = rng.permutation(np.repeat([0, 1, 2, 4], [60_000, 30_000, 9_950, 50]))
    chosen = evenly_spaced(cells, 10_000)
    np.testing.assert_array_equal(np.bincount(cells[chosen]), [6000, 3000, 995, 0, 50])
    steps = np.diff(np.flatnonzero(chosen[cells == 0]))
    assert set(steps.tolist()) == {10}
    assert evenly_spaced(cells, 100_000).all()
    # Of many cells none takes more than its share of what there is.
    assert 900 <= np.count_nonzero(evenly_spaced(np.arange(50_000) % 500, 1000)) <= 1000
    # Of more cells than rows none is left out.
    np.testing.assert_array_equal(np.bincount(np.arange(5000)[evenly_spaced(np.arange(5000) % 500, 100)] % 500), 1)


@pytest.mark.parametrize(
    ("n_features", "n_classes", "rows"), [(10, 2, 100_000), (100, 2, 60_000), (132, 2, 45_454), (256, 28, 10_000)]
)
def test_more_features_and_classes_are_measured_on_fewer_rows(n_features: int, n_classes: int, rows: int) -> None:
    assert most_measured(n_features, n_classes) == rows


def test_memory_is_bounded_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_memory(None) <= 2**30
    monkeypatch.setattr("fairsteer.cli._options._free_memory", lambda: 2**28)
    assert parse_memory(None) == 2**27
    monkeypatch.setattr("fairsteer.cli._options._free_memory", lambda: 2**40)
    assert parse_memory(None) == 2**30


@pytest.mark.parametrize("command", ["steer", "audit"])
def test_rows_too_few_for_folds_are_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(300, 2)), columns=["a", "b"])
    table["sex"], table["ill"] = rng.choice(["f", "m"], 300), rng.choice(["no", "yes"], 300)
    table.to_csv("rows.csv", index=False)
    for n in ("1", "6"):
        code, _, err = run(command, "rows.csv", *_ROLES, "--measured-rows", n)
        assert code == 2
        assert "fewer than the 5 folds, though there are 1" in " ".join(err.split())
        assert "--measured-rows takes more" in " ".join(err.split())


def test_map_is_of_all_rows_and_gaps_of_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y, group = rng.integers(2, size=3000), rng.choice(3, 3000, p=[0.6, 0.395, 0.005])
    table = pd.DataFrame(rng.normal(size=(3000, 2)) + y[:, None] + group[:, None], columns=["a", "b"])
    table.loc[::7, "b"] = np.nan  # so that folds fill gaps of their own
    table["sex"], table["ill"] = np.array(["f", "m", "x"])[group], np.array(["no", "yes"])[y]
    table.to_csv("rows.csv", index=False)
    found = {}
    for name, options in {"all": (), "some": ("--measured-rows", "600")}.items():
        code, out, err = run("steer", "rows.csv", *_ROLES, *options, "--map", f"{name}.safetensors", "--json")
        assert code == 0, err
        found[name] = json.loads(out)
        code, page, err = run("audit", "rows.csv", *_ROLES, *options, "--leakage", "none")
        assert code == 0, err
        assert ("gaps measured on" in " ".join(page.split())) == (name == "some")
    assert Path("all.safetensors").read_bytes() == Path("some.safetensors").read_bytes()
    assert found["all"]["n_rows"] == 3000
    assert 600 <= found["some"]["n_rows"] < 700
    assert any("of 3,000 rows, evenly spaced in every class and group" in note for note in found["some"]["notes"])
    assert not any("gaps are measured" in note for note in found["all"]["notes"])
    sizes = {one["group"]: one["rows"] for one in found["some"]["groups"]}
    assert sizes["x"] == np.count_nonzero(group == 2)  # none of the few is left out
