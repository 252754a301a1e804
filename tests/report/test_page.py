"""The page as people use it: in a browser, headless, with a mouse, with keys, and by who cannot see it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from fairsteer import FairSteeringTransformer, IdealDistributionClassifierCV
from fairsteer.report import steering_report

QUICK: dict[str, Any] = {"cv": 3, "n_resamples": 100, "leakage": "none"}


@pytest.fixture(scope="module")
def report(make_data: Any) -> Any:
    X, y, group = make_data(n=900, n_features=3, n_groups=3, seed=5)
    label = np.array(["no", "yes"])[y]
    names = np.array(["<b>one", "two", "three"])[group]
    steer = FairSteeringTransformer().fit(X, label, sensitive_features=names)
    return steering_report(steer, X, label, sensitive_features=names, **QUICK)


# ---- the numbers


def test_rates_at_thresholds_are_counted_and_their_intervals_exact() -> None:
    from scipy.stats import binomtest

    from fairsteer.report._thresholds import THRESHOLDS, threshold_table

    rng = np.random.default_rng(0)
    n = 60
    positive, codes = rng.random(n) < 0.5, rng.integers(0, 2, n)
    scores = {when: np.round(rng.random(n), 2) for when in ("before", "after")}  # so that some lie on a threshold
    table = threshold_table(positive, codes, np.ones(n), ["a", "b"], scores, min_rows=0, confidence_level=0.9)
    for t in (0, 1, 37, 50, 99, 100):
        for when, score in scores.items():
            above = score > THRESHOLDS[t]
            of_rows = {"selected": positive | True, "true_positive": positive, "false_positive": ~positive}
            for name, among in of_rows.items():
                rates = []
                for a in (0, 1):
                    rows = among & (codes == a)
                    found = binomtest(int(above[rows].sum()), int(rows.sum())).proportion_ci(0.9, "exact")
                    i = 3 * t + a
                    rates.append(above[rows].mean())
                    assert table[f"{name}_{when}"][i] == pytest.approx(rates[-1])
                    assert table[f"{name}_{when}_lower"][i] == pytest.approx(found.low)
                    assert table[f"{name}_{when}_upper"][i] == pytest.approx(found.high)
                assert table[f"{name}_{when}"][3 * t + 2] == pytest.approx(abs(rates[0] - rates[1]))
            assert table[f"accuracy_{when}"][3 * t + 2] == pytest.approx((above == positive).mean())


def test_at_one_half_the_rates_are_those_of_the_classifier(report: Any) -> None:
    thresholds, cells = report.to_frame("thresholds"), report.to_frame("subgroups")
    half = thresholds[(thresholds["threshold"] == 0.5) & thresholds["group"].notna()].set_index("group")
    of_yes = cells[cells["class"] == "yes"].set_index("group")
    for when in ("before", "after"):
        for suffix in ("", "_lower", "_upper"):
            np.testing.assert_allclose(
                half[f"true_positive_{when}{suffix}"], of_yes[f"recognised_{when}{suffix}"], rtol=1e-9
            )


def test_without_probabilities_or_with_more_classes_there_is_no_threshold(make_data: Any) -> None:
    X, y, group = make_data(n=300)
    steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    found = steering_report(steer, X, y, sensitive_features=group, estimator=LinearSVC(), **QUICK)
    assert "thresholds" not in found.tables
    assert "<input" not in found.to_html()
    X, y, group = make_data(n=300, n_classes=3)
    steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    assert "thresholds" not in steering_report(steer, X, y, sensitive_features=group, **QUICK).tables


@pytest.mark.slow
def test_what_a_search_chose_from_is_in_every_form(make_data: Any) -> None:
    X, y, group = make_data(n=400)
    search = IdealDistributionClassifierCV(
        LogisticRegression(), candidates={"steering__strength": [0.0, 1.0], "score_alignment": [None]}, cv=3
    ).fit(X, y, sensitive_features=group)
    found = steering_report(search, X, y, sensitive_features=group, **QUICK)
    choice = found.to_frame("choice").set_index("candidate")
    assert choice.index.tolist() == ["no steering", "the defaults"]
    assert choice["taken"].tolist() == [i == search.best_index_ for i in range(2)]
    np.testing.assert_allclose(choice["accuracy"], search.cv_results_["accuracy"])
    assert found.choice is not None
    for text in (found.to_html(), found.to_text(100).replace("\n", " ")):
        assert "The choice" in text
        assert found.choice.advice[:40] in text


def test_the_verdict_is_first_and_has_the_numbers(report: Any) -> None:
    gaps = report.to_frame("gaps").set_index("measure")
    before, after = (100 * gaps.loc["equal_opportunity", when] for when in ("before", "after"))
    assert f"The equal opportunity gap goes from {before:.1f} points to {after:.1f} points" in report.verdict
    page = report.to_html()
    assert page.index('<p class="verdict">') < page.index("<dl>")
    assert report.verdict[:60] in " ".join(str(report).split())


# ---- the page as a text


class _Loads(HTMLParser):
    """Everything that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "action")]


def test_it_is_one_file_and_names_no_other(report: Any) -> None:
    page = report.to_html()
    loads = _Loads()
    loads.feed(page)
    assert loads.found == []
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
    assert len(page) < 250_000


def test_a_notebook_gets_no_script(report: Any) -> None:
    assert "<script" not in report._repr_html_()
    assert "<main" not in report._repr_html_()


# ---- the page in a browser


@pytest.fixture(scope="module")
def seen(report: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process of its own saw when it used the page; a browser that hangs is ended with it."""
    if find_spec("playwright") is None:
        pytest.skip("drives a browser with playwright, which is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None or sys.platform == "win32":
        pytest.skip("there is no Chromium to drive")
    file = tmp_path_factory.mktemp("report") / "page.html"
    report.to_html(file)
    command = [sys.executable, str(Path(__file__).with_name("drive_page.py")), str(file), chromium]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            out, _ = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=10)
            raise
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(out)
    return found


def _expected(report: Any, rate: str, t: int) -> list[list[str]]:
    """Lines of the table at a threshold, from the numbers of Python."""
    n = len(report.tables["groups"]["group"]) + 1
    table = report.tables["thresholds"]
    lines = []
    for i in range(t * n, t * n + n - 1):
        cells = [
            f"{table[f'{rate}_{when}'][i]:.3f}[{table[f'{rate}_{when}_lower'][i]:.3f}, "
            f"{table[f'{rate}_{when}_upper'][i]:.3f}]"
            for when in ("before", "after")
        ]
        lines.append([table["group"][i], *cells])
    last = t * n + n - 1
    for name, column in (("largest difference", rate), ("accuracy, all groups", "accuracy")):
        lines.append([name, *(f"{table[f'{column}_{when}'][last]:.3f}" for when in ("before", "after"))])
    return lines


@pytest.mark.slow
def test_the_page_runs_without_a_word_and_without_the_network(seen: dict[str, Any]) -> None:
    assert seen["wrong"] == []


@pytest.mark.slow
def test_the_slider_moves_and_shows_the_numbers_of_python(seen: dict[str, Any], report: Any) -> None:
    for t, lines in seen["lines"].items():
        assert lines == _expected(report, "true_positive", int(t))
    assert seen["value said"] == "threshold 0.43"
    expected = _expected(report, "false_positive", 66)
    assert seen["other rate"] == expected
    assert f"{expected[-2][1]} before, {expected[-2][2]} after; accuracy {expected[-1][1]} before" in seen["status"]


@pytest.mark.slow
def test_marks_tell_their_numbers_and_move(seen: dict[str, Any], report: Any) -> None:
    assert seen["marks"] == 2 * len(report.tables["groups"]["group"])
    label, first, _ = _expected(report, "true_positive", 50)[0]
    assert seen["tip"] == f"{label}, before: {first.replace('[', ' [')}"
    assert seen["moved"]
    assert not seen["tip after Escape"]


@pytest.mark.slow
def test_tables_sort_with_mouse_and_keys(seen: dict[str, Any], report: Any) -> None:
    rows = report.tables["subgroups"]["rows"]
    as_it_was, descending, ascending = ([int(text) for text in order] for order in seen["orders"])
    assert as_it_was == rows
    assert descending == sorted(rows, reverse=True)
    assert ascending == sorted(rows)
    assert seen["aria-sort"] == "ascending"
    assert seen["groups"] == sorted(seen["groups"])


@pytest.mark.slow
def test_nothing_is_wider_than_the_window(seen: dict[str, Any]) -> None:
    assert all(wide <= int(width) for width, wide in seen["widths"].items())


@pytest.mark.slow
def test_on_paper_controls_are_gone_and_the_ground_is_white(seen: dict[str, Any]) -> None:
    white, black = "rgb(255, 255, 255)", "rgb(0, 0, 0)"
    assert seen["printed"] == {"controls": False, "table": True, "ground": white, "ink": black}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(seen: dict[str, Any], scheme: str) -> None:
    if seen[f"barriers, {scheme}"] is None:
        pytest.skip("looks for barriers with axe-core, which comes with axe-playwright-python and is not installed")
    assert seen[f"barriers, {scheme}"] == []
