"""Sites that share moments: one map of all rows, and a sentence where the moments do not belong together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairsteer import FairSteeringTransformer, persistence

Run = Callable[..., tuple[int, str, str]]
_ROLES = ("--target", "ill", "--sensitive", "sex")
N = 900


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y, group = rng.integers(2, size=N), rng.integers(3, size=N)
    frame = pd.DataFrame(rng.normal(size=(N, 3)) * [1, 200, 3] + y[:, None] + group[:, None], columns=list("abc"))
    frame["sex"], frame["ill"] = np.array(["f", "m", "x"])[group], np.array(["no", "yes"])[y]
    return frame


def sites(table: pd.DataFrame, run: Run, *options: str) -> list[str]:
    files = []
    for i in range(3):
        table.iloc[i * N // 3 : (i + 1) * N // 3].to_csv(f"site{i}.csv", index=False)
        files.append(f"m{i}.safetensors")
        code, _, err = run("moments", f"site{i}.csv", *_ROLES, "--out", files[-1], "--force", *options)
        assert code == 0, err
    return files


def distance(first: str, second: str) -> float:
    one, other = persistence.load(first), persistence.load(second)
    return max(
        float(np.abs(a - b).max())
        for label in one.maps_
        for a, b in zip(one.maps_[label], other.maps_[label], strict=True)
    )


@pytest.mark.parametrize(
    "options",
    [
        ("--map-type", "affine", "--standardize"),
        ("--map-type", "translation", "--own-shares"),
        ("--map-type", "affine", "--covariance", "diagonal"),
        ("--map-type", "affine", "--constraint", "equal_opportunity"),
        ("--map-type", "affine", "--intervention", "affirmative", "--reference-group", "m"),
    ],
    ids=" ".join,
)
def test_merged_map_is_that_of_all_rows(table: pd.DataFrame, run: Run, options: tuple[str, ...]) -> None:
    files = sites(table, run)
    table.to_csv("all.csv", index=False)
    code, out, err = run("merge", *files, "--out", "map.safetensors", *options)
    assert code == 0, err
    assert "from 3 files" in " ".join(out.split())
    code, _, err = run("steer", "all.csv", *_ROLES, "--map", "all.safetensors", *options)
    assert code == 0, err
    assert distance("map.safetensors", "all.safetensors") < 1e-11
    for name in ("map", "all"):
        assert run("apply", f"{name}.safetensors", "all.csv", "--out", f"steered-{name}.csv")[0] == 0
    first, second = (pd.read_csv(f"steered-{name}.csv") for name in ("map", "all"))
    pd.testing.assert_frame_equal(first, second, check_exact=False, rtol=1e-9, atol=1e-9)


def test_a_site_may_lack_classes_and_groups(table: pd.DataFrame, run: Run) -> None:
    table = table.sort_values("sex", ignore_index=True)  # the first site has no group but one
    table.loc[: N // 3, "sex"] = "f"
    files = sites(table, run)
    assert persistence.load(files[0]).groups.tolist() == ["f"]
    assert run("merge", *files, "--out", "map.safetensors", "--map-type", "affine", "--standardize")[0] == 0
    table.to_csv("all.csv", index=False)
    run("steer", "all.csv", *_ROLES, "--map", "all.safetensors", "--map-type", "affine", "--standardize")
    assert distance("map.safetensors", "all.safetensors") < 1e-11


def test_moments_are_merged_in_python_as_well(table: pd.DataFrame, run: Run) -> None:
    files = sites(table, run)
    total: Any = sum(persistence.load(file) for file in files)
    assert total.weights.sum() == N
    assert total.feature_names == ("a", "b", "c")
    X = table[["a", "b", "c"]]
    expected = FairSteeringTransformer(map_type="affine", shrinkage=None).fit(
        X, table["ill"], sensitive_features=table["sex"]
    )
    merged = FairSteeringTransformer(map_type="affine", shrinkage=None).fit_moments(total)
    first, second = (one.transform(X, sensitive_features=table["sex"]) for one in (merged, expected))
    np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-10)


def test_columns_are_encoded_alike_on_request(table: pd.DataFrame, run: Run) -> None:
    rng = np.random.default_rng(1)
    table.insert(0, "colour", np.array(["red", "green", "blue"])[rng.integers(3, size=N)])
    table.loc[::9, "a"] = np.nan
    files = sites(table, run)
    code, _, err = run("merge", *files, "--out", "map.safetensors")
    assert code == 2
    assert "--like m0.safetensors" in err
    Path("m0.safetensors").rename("first.safetensors")
    again = sites(table, run, "--like", "first.safetensors")
    code, _, err = run("merge", *again, "--out", "map.safetensors")
    assert code == 0, err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.rename(columns={"a": "z"}), "it lacks 'a' and has 'z' besides"),
        (lambda t: t[["b", "a", "c", "sex", "ill"]], "are in another order"),
        (lambda t: t.rename(columns={"ill": "sick"}), "is of the target 'sick'"),
        (lambda t: t.rename(columns={"sex": "gender"}), "is of groups by gender"),
        (lambda t: t.assign(sex=(t["sex"] == "f").astype(int)), "which are never equal"),
        (lambda t: t.assign(a=np.where(t["a"] > 0, "high", "low")), "numbers in one, categories in the other"),
    ],
)
def test_what_must_agree_is_said(table: pd.DataFrame, run: Run, change: Any, message: str) -> None:
    files = sites(table, run)
    other = change(table.iloc[:300])
    other.to_csv("other.csv", index=False)
    roles = [
        "--target", "sick" if "sick" in other else "ill", "--sensitive", "gender" if "gender" in other else "sex"
    ]  # fmt: skip
    assert run("moments", "other.csv", *roles, "--out", "other.safetensors")[0] == 0
    code, _, err = run("merge", files[0], "other.safetensors", "--out", "map.safetensors")
    assert code == 2
    assert message in err
    assert not Path("map.safetensors").exists()


def test_units_that_differ_are_noted(table: pd.DataFrame, run: Run) -> None:
    files = sites(table, run)
    table.iloc[:300].assign(b=table["b"] / 1000).to_csv("metres.csv", index=False)
    run("moments", "metres.csv", *_ROLES, "--out", "metres.safetensors")
    _, _, err = run("merge", files[1], "metres.safetensors", "--out", "map.safetensors")
    assert "is it in the same unit in both?" in err
    assert "'b' has standard deviation" in err


def test_other_files_and_options_are_refused(table: pd.DataFrame, run: Run) -> None:
    files = sites(table, run)
    run("merge", *files, "--out", "map.safetensors")
    for arguments, message in (
        (("merge", "map.safetensors", "--out", "new.safetensors"), "not moments that fairsteer moments wrote"),
        (("merge", "absent.safetensors", "--out", "new.safetensors"), "there is no file absent.safetensors"),
        (("merge", *files, "--out", "map.safetensors"), "exists; --force replaces it"),
        (("merge", *files, "--out", "map.txt"), "must end in .safetensors"),
        (("merge", *files, "--out", "new.safetensors", "--map-type", "monotone"), "needs all rows at once"),
        (("moments", "site0.csv", *_ROLES, "--out", "m.txt"), "must end in .safetensors"),
        (
            ("moments", "site0.csv", *_ROLES, "--out", "m.safetensors", "--memory", "12 apples"),
            "--memory must be a size",
        ),
        (("apply", files[0], "site0.csv", "--out", "o.csv"), "holds a SubgroupMoments, not a map"),
    ):
        code, _, err = run(*arguments)
        assert code == 2, err
        assert message in " ".join(err.split())


_NOISE = ("--epsilon", "20", "--delta", "1e-6", "--clip", "6", "--like", "public.safetensors")


def test_sites_with_noise_make_a_map_near_that_without(table: pd.DataFrame, run: Run) -> None:
    pytest.importorskip("opendp", reason="opendp is not installed")
    table.iloc[::9].to_csv("public.csv", index=False)
    assert run("moments", "public.csv", *_ROLES, "--out", "public.safetensors")[0] == 0
    public = persistence.load("public.safetensors")
    files = []
    for i in range(2):
        table.iloc[i::2].to_csv(f"site{i}.csv", index=False)
        files.append(f"p{i}.safetensors")
        code, out, err = run("moments", f"site{i}.csv", *_ROLES, "--out", files[-1], *_NOISE)
        assert code == 0, err
        assert "hidden with epsilon=20, delta=1e-06" in out
        found = persistence.load(files[-1])
        assert found.privacy == (20.0, 1e-6, 6.0)
        np.testing.assert_array_equal(found.classes, public.classes)
        # What the file says of the columns is what the public one says, gaps and all.
        described = [persistence.read_extra(path) or {} for path in (files[-1], "public.safetensors")]
        assert described[0]["columns"] == described[1]["columns"]
        assert described[0]["filled"] == {}
    code, _, err = run("merge", *files, "--out", "private.safetensors", "--map-type", "translation")
    assert code == 0, err
    table.to_csv("all.csv", index=False)
    run("moments", "all.csv", *_ROLES, "--out", "all.safetensors")
    run("merge", "all.safetensors", "--out", "plain.safetensors", "--map-type", "translation")
    rows = table[list("abc")]
    groups = table["sex"]
    steered = [
        persistence.load(name).transform(rows, sensitive_features=groups)
        for name in ("private.safetensors", "plain.safetensors")
    ]
    spread = rows.std().to_numpy()
    assert np.abs((steered[0] - steered[1]) / spread).max() < 0.3
    assert np.abs((steered[1] - rows) / spread).to_numpy().max() > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (_NOISE[:4], "takes all three"),
        (_NOISE[:6], "noise needs --like"),
        ((*_NOISE[:1], "0", *_NOISE[2:]), "must be positive"),
        ((*_NOISE[:3], "1", *_NOISE[4:]), "--delta between 0 and 1"),
        (_NOISE, "the group x is none of those of --like"),
        ((*_NOISE, "--resume"), "with noise none are kept there"),
    ],
)
def test_noise_that_would_promise_nothing_is_refused(
    table: pd.DataFrame, run: Run, options: tuple[str, ...], message: str
) -> None:
    table[table["sex"] != "x"].to_csv("public.csv", index=False)
    run("moments", "public.csv", *_ROLES, "--out", "public.safetensors")
    table.to_csv("site.csv", index=False)
    code, _, err = run("moments", "site.csv", *_ROLES, "--out", "m.safetensors", *options)
    assert code != 0
    assert message in " ".join(err.split())
    assert not Path("m.safetensors").exists()


def test_sums_without_noise_are_never_on_the_disk(
    table: pd.DataFrame, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opendp", reason="opendp is not installed")
    table.to_csv("public.csv", index=False)
    run("moments", "public.csv", *_ROLES, "--out", "public.safetensors")
    pd.concat([table] * 20).to_csv("site.csv", index=False)
    saved: list[Any] = []
    monkeypatch.setattr("fairsteer.cli._streams.Checkpoint.save", lambda *_: saved.append(_))
    options = (*_ROLES, "--memory", "1M", "--checkpoint-every", "0", "--out", "m.safetensors", "--force")
    assert run("moments", "site.csv", *options)[0] == 0
    assert saved
    saved.clear()
    code, _, err = run("moments", "site.csv", *options, *_NOISE)
    assert code == 0, err
    assert "read in pieces" in err or "evenly spaced" in err
    assert not saved
