"""``fairsteer audit``: the report of a file, in the terminal and as a page."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler

import fairsteer
from fairsteer.metrics._rates import CRITERIA
from fairsteer.report import steering_report
from fairsteer.transformer import FairSteeringTransformer


@pytest.fixture
def table() -> Any:
    rng = np.random.default_rng(0)
    y, group = rng.integers(2, size=(2, 400))
    return pd.DataFrame(
        {
            "height": rng.normal(size=400) + y + group,
            "income": 1e4 * (3 + y - group + rng.normal(size=400)),
            "leak": y,
            "sex": np.array(["f", "m"])[group],
            "ill": np.array(["no", "yes"])[y],
        }
    )


def _audit(file: Any, *options: Any) -> Any:
    return ["audit", file, "--target", "ill", "--sensitive", "sex", "--drop", "leak", "--folds", 2, *options]


def test_prints_the_report_of_the_library_and_writes_the_page(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any
) -> None:
    html = file.with_name("report.html")
    code, out, err = run(*_audit(file, "--html", html, "--folds", 5))
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "Wrote the report to report.html." in out

    features = table[["height", "income"]]
    steering = FairSteeringTransformer(feature_transform=StandardScaler())
    steering.fit(features, table["ill"], sensitive_features=table[["sex"]])
    expected = steering_report(steering, features, table["ill"], sensitive_features=table[["sex"]])
    for value in expected.tables["gaps"]["after"]:
        assert f"{value:.3f}" in out
    page = html.read_text(encoding="utf-8")
    assert page.count("<section>") == expected.to_html().count("<section>") + 1  # the choice
    for fact in (
        "rows.csv, 400 rows; 0 lack class or group",
        "<dt>Target</dt><dd>ill</dd>",
        "<dt>Positive class</dt><dd>yes</dd>",
        "<dt>Sensitive</dt><dd>sex</dd>",
        f"Made with fairsteer {fairsteer.__version__} on {date.today().isoformat()}.",
    ):
        assert fact in page


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--folds", "3", "--min-rows", "5", "--pos-label", "no"),
        ("--min-subgroup-size", "60", "--small-subgroups", "merge", "--folds", "5"),
    ],
)
def test_steer_and_audit_print_the_same_accuracy_gaps_and_changes(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any, options: Any
) -> None:
    rng = np.random.default_rng(1)
    # Features that are learnt from rows: filled gaps, categories of which some are rare, a group that is small.
    table["weight"] = np.where(rng.random(400) < 0.2, np.nan, table["height"] + rng.normal(size=400))
    table["town"] = rng.choice(["A", "B", "C", "D"], 400, p=[0.6, 0.3, 0.09, 0.01])
    table.loc[:59, "sex"] = "x"
    table.to_csv(file, index=False)
    numbers = re.compile(r"[-+]?\d\.\d{3}")
    found: dict[str, Any] = {}
    for command in ("steer", "audit"):
        code, out, err = run(command, *_audit(file, *options)[1:])
        assert code == 0, err
        lines = out.splitlines()
        found[command] = {}
        for measure in ("accuracy", *(f"{name.replace('_', ' ')} gap" for name in CRITERIA)):
            line = next(line for line in lines if re.match(rf"{measure} +\d", line))
            found[command][measure] = numbers.findall(line)[:3]
    assert found["steer"] == found["audit"]
    assert all(len(values) == 3 for values in found["steer"].values())


def test_it_ends_with_the_choice_that_steer_names(run: Callable[..., tuple[int, str, str]], file: Any) -> None:
    audited, steered = (run(*_audit(file)), run("steer", *_audit(file)[1:]))
    assert audited[0] == steered[0] == 0
    texts = [" ".join(out.split()) for _, out, _ in (audited, steered)]
    found = [re.search(r"(For the equalized odds gap take|Take the classifier before).*? accurate\.", t) for t in texts]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0][0] == found[1][0]


def test_without_html_nothing_is_written_and_every_run_prints_the_same(
    run: Callable[..., tuple[int, str, str]], file: Any
) -> None:
    first = run(*_audit(file))
    assert first == run(*_audit(file))
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (("--intervention", "affirmative", "--reference-group", "m"), "reference_group='m'"),
        (("--map-type", "symmetric", "--covariance", "full", "--shrinkage", "oas"), "shrinkage='oas'"),
        (("--strength", "0.5", "--pos-label", "no", "--folds", "3"), "Positive class: no."),
        (("--confidence-level", "0.9", "--min-rows", "5", "--max-categories", "3"), "90 % bootstrap"),
    ],
)
def test_options_reach_the_report(
    run: Callable[..., tuple[int, str, str]], file: Any, options: Any, shown: Any
) -> None:
    code, out, _ = run(*_audit(file, *options))
    assert code == 0
    assert shown in "".join(out.split("\n")).replace("  ", "") or shown in " ".join(out.split())


def test_gaps_in_the_data_are_counted_and_left_out(
    run: Callable[..., tuple[int, str, str]], table: Any, file: Any
) -> None:
    table.loc[:2, "ill"] = np.nan
    table.loc[2:4, "sex"] = np.nan
    table.loc[:9, "height"] = np.nan
    table.to_csv(file, index=False)
    code, out, err = run(*_audit(file))
    assert code == 0
    notes = " ".join(err.split())
    assert "3 rows without 'ill': left out of the fit" in notes
    assert "3 rows without 'sex': left out of the fit" in notes
    assert "10 missing values in numeric columns" in notes
    assert "400 rows; 5 lack class or group" in out
    assert "395 (the rows of the fit)" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--html", "report.pdf"), "must end in .html"),
        (("--html", "rows.csv"), "must end in .html"),
        (("--html", "nowhere/report.html"), "does not exist"),
        (("--confidence-level", "1"), "--confidence-level must be a number between 0 and 1, not 1"),
        (("--folds", "1"), "--folds must be at least 2, not 1"),
        (("--strength", "2"), "--strength must be at most 1, not 2"),
        (("--pos-label", "maybe"), "there are: no; yes"),
        (("--drop", "shoe"), "there is no column 'shoe'"),
    ],
)
def test_bad_input_costs_a_sentence(
    run: Callable[..., tuple[int, str, str]], file: Any, options: Any, message: Any
) -> None:
    code, out, err = run(*_audit(file, *options))
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.slow
def test_real_data(run: Callable[..., tuple[int, str, str]], real_data: Path, tmp_path: Path) -> None:
    html = tmp_path / "compas.html"
    leaks = ["days_b_screening_arrest", "decile_score", "score_text", "is_recid", "v_decile_score", "v_score_text"]
    frame = pd.read_parquet(real_data / "tabular" / "compas.parquet")
    arguments = ["audit", real_data / "tabular" / "compas.parquet", "--target", "two_year_recid", "--sensitive", "race"]
    arguments += [word for name in leaks if name in frame for word in ("--drop", name)]
    code, out, _ = run(*arguments, "--html", html)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "6,172 (the rows of the fit)" in out
    assert "equal opportunity gap goes from" in " ".join(out.split())  # the verdict
    assert html.stat().st_size < 150_000
