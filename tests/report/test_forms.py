"""The forms of a report: labels are text in all of them, nothing is lost where there is little room."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html import escape, unescape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.linear_model import LogisticRegression

from fairsteer import FairSteeringTransformer, ScoreAligner
from fairsteer._utils.labels import label_text
from fairsteer.report import steering_report
from fairsteer.report._text import _blocks
from fairsteer.report._view import View

QUICK: dict[str, Any] = {"n_resamples": 30, "cv": 3, "min_rows": 5}

#: Labels as they occur in files, and how they are shown.
HOSTILE = {
    "[unknown]": "[unknown]",
    "[/x]": "[/x]",
    "[f] women": "[f] women",
    "$x_1$": "$x_1$",
    "_other": "_other",
    ":female_sign:": ":female_sign:",
    '<b>&"': '<b>&"',
    "two\nlines": r"two\nlines",
    "\x1b[31mred": r"\x1b[31mred",
    "\u202eevil": r"\u202eevil",
    " padded": "' padded'",
    "日本語": "日本語",
    "\udcff": r"\udcff",
}


def _report(make_data: Any, labels: Any, *, n_classes: int = 2, **params: Any) -> Any:
    X, y, group = make_data(n=200 * len(labels), n_features=2, n_classes=n_classes, n_groups=len(labels), seed=3)
    group = np.array(labels, dtype=object)[group]
    steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    return steering_report(steer, X, y, sensitive_features=group, **QUICK, **params)


def _in_rich(report: Any, width: Any) -> Any:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(report)
    return console.export_text()


@pytest.fixture(scope="module")
def hostile(make_data: Any) -> Any:
    return _report(make_data, list(HOSTILE))


@pytest.fixture(scope="module")
def many_classes(make_data: Any) -> Any:
    X, y, group = make_data(n=6000, n_features=3, n_classes=20, n_groups=3, seed=4)
    classes = np.array([f"occupation {k}" for k in range(20)])[y]
    group = np.array(["women", "men", "non-binary"])[group]
    steer = FairSteeringTransformer(intervention="affirmative").fit(X, classes, sensitive_features=group)
    return steering_report(steer, X, classes, sensitive_features=group, **QUICK)


@pytest.mark.parametrize(
    ("label", "shown"), [*HOSTILE.items(), ("", "''"), (("a", 1.5), "a, 1.5"), (np.str_("b"), "b")]
)
def test_labels_are_one_line_of_text_that_prints(label: Any, shown: Any) -> None:
    assert label_text(label) == shown
    assert label_text(label).isprintable()


def test_labels_are_text_in_every_form(hostile: Any) -> None:
    plain, rich, page = str(hostile), _in_rich(hostile, 100), hostile.to_html()
    body = unescape(re.sub(r"<[^>]*>", "", page.partition("</style>")[2].partition("</style>")[2]))
    groups = hostile.tables["groups"]["group"]
    for label, shown in HOSTILE.items():
        assert label in groups
        for text in (plain, rich, body):
            assert shown in text
    assert "\x1b[31mred" not in rich
    assert "<b>" not in page
    page.encode("utf-8")
    plain.encode("utf-8")


def test_words_of_our_own_print_on_every_terminal(make_data: Any) -> None:
    report = _report(make_data, ["a", "b", "c"])
    str(report).encode("ascii")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(width=80, file=stream).print(report)
    stream.flush()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("which", ["hostile", "many_classes"])
def test_tables_fit_the_width_and_keep_every_class_group_and_number(
    width: Any, which: Any, request: pytest.FixtureRequest
) -> None:
    report = request.getfixturevalue(which)
    plain, rich = report.to_text(width), _in_rich(report, width)
    assert max(map(len, plain.splitlines())) <= width
    assert max(len(line.rstrip()) for line in rich.splitlines()) <= width
    numbers = re.compile(r"\d\.\d{3}")
    wide = sorted(numbers.findall(report.to_text(400)))
    for text in (plain, rich):
        assert sorted(numbers.findall(text)) == wide
        lines = [line.split() for line in text.splitlines()]
        for heading in ("class", "group", "rows", "share"):
            assert any(heading in line for line in lines), heading


def test_the_chart_and_the_table_of_many_classes_have_the_worst_one(many_classes: Any) -> None:
    certificate = many_classes.to_frame("certificate")
    of_class = certificate[certificate["group"].isna() & certificate["class"].notna()]
    worst = of_class["class"].iloc[int(of_class["measured"].to_numpy().argmax())]
    found = re.search(r"<svg[^>]*Certified and measured gaps.*?</svg>", many_classes.to_html(), re.DOTALL)
    assert found is not None
    chart = found.group()
    assert f"class {worst}<" in chart
    table = str(many_classes).partition("Certificate and")[2].partition("What models can read")[0]
    assert worst in table
    assert re.search(r"\(\d+ more\)", table)


def test_one_group_has_no_gap_but_a_page(make_data: Any) -> None:
    X, y, _ = make_data(n=200)
    group = np.zeros(len(y))
    report = steering_report(
        FairSteeringTransformer().fit(X, y, sensitive_features=group), X, y, sensitive_features=group, **QUICK
    )
    assert "There is one group, so nothing is steered." in report.findings
    for text in (report.to_html(), report._repr_html_(), str(report), _in_rich(report, 60)):
        assert "nan" not in text.lower()
        assert "gap stayed" not in text


@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
@pytest.mark.parametrize("rows", ["zero", "constant", "one feature", "a constant feature"])
def test_rows_without_spread_are_reported(make_data: Any, rows: Any, covariance: Any) -> None:
    X, y, group = make_data(n=200, n_features=2)
    X = {
        "zero": np.zeros_like(X),
        "constant": np.full_like(X, 0.1),
        "one feature": X[:, :1],
        "a constant feature": np.column_stack([X, np.ones(len(X))]),
    }[rows]
    steer = FairSteeringTransformer(covariance=covariance).fit(X, y, sensitive_features=group)
    report = steering_report(steer, X, y, sensitive_features=group, **QUICK)
    for text in (report.to_html(), str(report), _in_rich(report, 60)):
        assert not re.search(r"\bnan\b|\binf\b", text)


def test_one_class_is_nothing_to_predict(make_data: Any) -> None:
    X, _, group = make_data(n=200)
    y = np.array(["only"] * len(X))
    steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    report = steering_report(steer, X, y, sensitive_features=group, **QUICK)
    assert report.findings[0] == "All rows are of class only: there is nothing to predict."
    assert "gaps" not in report.tables
    assert "recognised" not in str(report)
    assert "<svg" in report.to_html()


def test_repr_is_one_line(hostile: Any) -> None:
    assert repr(hostile).startswith(f"<SteeringReport: {hostile.n_rows} rows, accuracy 0.")
    assert "\n" not in repr(hostile)
    assert len(repr(hostile)) < 250


def test_every_form_says_what_it_is_about(make_data: Any, tmp_path: Path) -> None:
    context = {"File": "jobs & co.csv", "Rows without a class": 7}
    report = _report(make_data, ["a", "b"], context=context)
    page = report.to_html(tmp_path / "page.html", title="Audit of <jobs>")
    assert "<title>Audit of &lt;jobs&gt;</title>" in page
    assert "<dt>File</dt><dd>jobs &amp; co.csv</dd>" in page
    assert "<dt>Rows without a class</dt><dd>7</dd>" in page
    assert "<dt>Positive class</dt><dd>1</dd>" in page
    assert re.search(rf"Made with fairsteer {re.escape(version('fairsteer'))} on \d{{4}}-\d\d-\d\d\.", page)
    for text in (str(report), _in_rich(report, 80)):
        assert re.search(r"File:? +jobs & co\.csv", text)
        assert re.search(r"Rows without a class:? +7", text)
        assert re.search(r"Positive class:? +1", text)


def test_the_first_finding_says_of_every_gap_whether_it_grew(make_data: Any) -> None:
    report = _report(make_data, ["a", "b"])
    gaps = report.to_frame("gaps").set_index("measure")
    verdict = report.findings[0]
    assert verdict.count(";") == len(gaps) - 1
    for measure, line in gaps.iterrows():
        word = {True: "grew", False: "shrank"}[bool(line["after"] > line["before"])]
        if measure == "accuracy":
            word = {"grew": "rose", "shrank": "fell"}[word]
        chance = " (within chance)" if line["change_lower"] <= 0 <= line["change_upper"] else ""
        expected = f"{measure.replace('_', ' ')}{' gap' * (measure != 'accuracy')} {word} from {line['before']:.3f} to "
        assert f"{expected}{line['after']:.3f}{chance}" in verdict


def test_a_gap_that_grows_is_said_to_grow(make_data: Any) -> None:
    X, y, group = make_data(n=2000, n_features=2, seed=1)
    model = LogisticRegression()
    report = steering_report(
        model.fit(X, y), X, y, sensitive_features=group, before=ScoreAligner(model), cv=3, n_resamples=100
    )
    before, after = (
        report.to_frame("gaps").set_index("measure").loc["equal_opportunity", w] for w in ("before", "after")
    )
    assert after > before + 0.1
    assert f"he equal opportunity gap grew from {before:.3f} to {after:.3f};" in report.findings[0]


def test_bounds_from_fewer_rows_than_features_are_said_to_be_worth_little(make_data: Any) -> None:
    X, y, group = make_data(n=60, n_features=50)
    with pytest.warns(UserWarning, match="fewer rows than the 50 features"):
        steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    report = steering_report(steer, X, y, sensitive_features=group, **QUICK)
    assert any(re.search(r"of 50 features comes from \d+ rows: .* say next to nothing", x) for x in report.findings)


def test_rows_that_move_far_are_named() -> None:
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 2, (2, 400))
    X = rng.normal(size=(400, 2)) + 8.0 * group[:, None] + y[:, None]
    labels = np.array(["near", "far"])[group]
    steer = FairSteeringTransformer(intervention="affirmative", reference_group="near")
    report = steering_report(steer.fit(X, y, sensitive_features=labels), X, y, sensitive_features=labels, **QUICK)
    assert any(text.startswith("Rows of far move by up to ") for text in report.findings)


def test_names_of_features_are_text(make_data: Any) -> None:
    X, y, group = make_data(n=300, n_features=3)
    table = pd.DataFrame(X, columns=["[/f]", "<f>", "$f$"])
    steer = FairSteeringTransformer().fit(table, y, sensitive_features=group)
    report = steering_report(steer, table, y, sensitive_features=group, **QUICK)
    for name in table.columns.astype(str):
        assert name in _in_rich(report, 80)
        assert name in unescape(report.to_html())
    assert "<f>" not in report.to_html()


def test_the_style_breaks_no_words_and_is_a_file_of_the_package() -> None:
    from importlib.resources import files

    style = files("fairsteer.report").joinpath("style.css").read_text(encoding="utf-8")
    assert "anywhere" not in style
    assert "break-all" not in style


def test_words_of_names_stay_whole_where_one_number_has_room_beside_them() -> None:
    header, numeric = ["read by", "groups", "before", "after"], [False, False, True, True]
    view = View("", "", header, numeric, [["linear models", "African-American and Caucasian", "0.261", "0.132"]], 0)
    for width in (32, 40, 80):
        lines = [line for block in _blocks(view, width, gap=2) for line in block.lines()]
        assert max(map(len, lines)) <= width
        for word in ("linear", "models", "African-American", "Caucasian"):
            assert any(word in line.split() for line in lines), (width, word)


def test_the_page_is_not_told_twice_nor_of_what_does_not_move(hostile: Any) -> None:
    assert hostile.verdict
    gaps, *others = hostile.findings
    assert gaps not in hostile.to_html()
    assert all(escape(text) in hostile.to_html() for text in others)
    still: dict[str, list[Any]] = {name: [] for name in ("feature", "group", "mean_shift", "scale", "displacement")}
    for moved in (0.2, 0.0):
        for name, value in zip(still, (f"moved by {moved}", "a", moved, 1.0, moved), strict=True):
            still[name].append(value)
    tables = {**hostile.tables, "features": still}
    page = replace(hostile, tables=tables).to_html()
    assert "moved by 0.2" in page
    assert "moved by 0.0" not in page
    assert "1 more are in the report" in page
