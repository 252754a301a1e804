"""``fairsteer explain``: one row, in words and numbers, from a fit or a saved map."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler

from fairsteer.transformer import FairSteeringTransformer

N_ROWS = 300


@pytest.fixture
def table() -> Any:
    rng = np.random.default_rng(1)
    y, group = rng.integers(2, size=(2, N_ROWS))
    return pd.DataFrame(
        {
            "height": rng.normal(size=N_ROWS) + y + 2 * group,
            "income": 1e4 * (3 + y + rng.normal(size=N_ROWS)),
            "sex": np.array(["f", "m"])[group],
            "ill": np.array(["no", "yes"])[y],
        }
    )


def _explain(file: Any, *options: Any) -> Any:
    return ["explain", file, "--target", "ill", "--sensitive", "sex", *options]


def test_the_row_moves_as_the_transformer_moves_it_and_in_the_other_group_as_its_map_does(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any
) -> None:
    code, out, err = run(*_explain(file, "--row", 17, "--json"))
    assert (code, err) == (0, "")
    found = json.loads(out)
    X = table[["height", "income"]]
    steer = FairSteeringTransformer(feature_transform=StandardScaler())
    steer.fit(X, table["ill"], sensitive_features=table["sex"])
    row, own = X.iloc[[16]], table["sex"][16]
    assert (found["row"], found["group"]) == (17, own)
    by_name = dict(zip(found["features"]["feature"], found["features"]["after"], strict=True))
    moved = np.asarray(steer.transform(row, sensitive_features=[own]))[0]
    np.testing.assert_allclose([by_name[name] for name in X.columns], moved, rtol=1e-12)
    spread = table.loc[table["sex"] == own, "height"].std()
    at = found["features"]["feature"].index("height")
    assert found["features"]["change"][at] == pytest.approx((moved[0] - row["height"].iloc[0]) / spread, rel=0.1)
    assert sum(found["features"]["share"]) == pytest.approx(1)
    assert found["features"]["feature"][0] == "height"
    other = found["groups"]["group"].index({"f": "m", "m": "f"}[own])
    elsewhere = np.asarray(steer.transform(row, sensitive_features=[found["groups"]["group"][other]]))[0]
    assert f"to {elsewhere[0]:.2f}"[:6] in " ".join(found["sentences"])
    assert found["groups"]["own"] == [group == own for group in found["groups"]["group"]]


def test_it_says_so_in_words_that_fit(run: Callable[..., tuple[int, str, str]], file: Any) -> None:
    code, out, _ = run(*_explain(file, "--row", 1))
    text = " ".join(out.split())
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    for words in (
        "Row 1 of rows.csv.",
        "What carries it: height from",
        "With the same features in group",
        "not known.",
    ):
        assert words in text


def test_a_saved_map_explains_new_rows_as_the_fit_did(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any
) -> None:
    model, new = file.with_name("map.safetensors"), file.with_name("new.csv")
    assert run("steer", *_explain(file)[1:], "--map", model)[0] == 0
    table.drop(columns="ill").to_csv(new, index=False)
    code, out, err = run("explain", new, "--map", model, "--row", 5, "--json")
    assert code == 0, err
    assert json.loads(out)["features"] == json.loads(run(*_explain(file, "--row", 5, "--json"))[1])["features"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--row", "301"), "there is no row 301: rows.csv has 300"),
        (("--row", "0"), "--row must be x>=1"),
        ((), "--row"),
    ],
)
def test_rows_that_are_not_there(
    run: Callable[..., tuple[int, str, str]], file: Any, options: Any, message: str
) -> None:
    code, _, err = run(*_explain(file, *options))
    assert code == 2
    assert message.split(" must")[0] in err


def test_options_of_a_fit_and_a_saved_map_exclude_each_other(
    run: Callable[..., tuple[int, str, str]], file: Any
) -> None:
    model = file.with_name("map.safetensors")
    run("steer", *_explain(file)[1:], "--map", model)
    code, _, err = run(*_explain(file, "--row", 1, "--map", model))
    assert code == 2
    assert "--target belongs to a fit" in err
    code, _, err = run("explain", file, "--row", 1)
    assert code == 2
    assert "--target is needed" in err


def test_a_row_without_a_group(run: Callable[..., tuple[int, str, str]], table: Any, file: Any) -> None:
    table.loc[3, "sex"] = None
    table.to_csv(file, index=False)
    code, _, err = run(*_explain(file, "--row", 4))
    assert code == 2
    assert "row 4 has no 'sex'; --unknown-group infer" in err
    code, out, _ = run(*_explain(file, "--row", 4, "--unknown-group", "infer"))
    assert code == 0
    assert "The group of the row is not known." in out
