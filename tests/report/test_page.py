"""The page as people use it: in a browser, headless, with a mouse, with keys, and by who cannot see it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
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
    thresholds, cells = report.to_frame("thresholds"), report.to_frame("cells")
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
def browser() -> Iterator[Any]:
    if find_spec("playwright") is None:
        pytest.skip("drives a browser with playwright, which is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium to drive")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=30_000)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, report: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open the page of the report in a window; errors of its script, and requests, fail the test."""
    file = tmp_path / "page.html"
    report.to_html(file)
    wrong: list[str] = []
    pages = []

    def open_page(width: int = 800, scheme: str = "light") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("request", lambda request: request.url.startswith("file:") or wrong.append(request.url))
        page.goto(file.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert wrong == []


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


def _lines(page: Any) -> list[list[str]]:
    found: list[list[str]] = page.evaluate(
        "[...document.querySelectorAll('.explorer tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    return found


@pytest.mark.slow
def test_the_slider_moves_and_shows_the_numbers_of_python(opened: Callable[..., Any], report: Any) -> None:
    page = opened()
    slider = page.get_by_role("slider", name="Threshold")
    assert _lines(page) == _expected(report, "true_positive", 50)
    slider.focus()
    for _ in range(7):
        page.keyboard.press("ArrowLeft")
    assert _lines(page) == _expected(report, "true_positive", 43)
    assert slider.get_attribute("aria-valuetext") == "threshold 0.43"
    for t in (0, 100, 66):
        slider.fill(str(t))
        assert _lines(page) == _expected(report, "true_positive", t)
    page.get_by_label("of the rows that are not").check()
    assert _lines(page) == _expected(report, "false_positive", 66)
    thresholds = report.tables["thresholds"]
    lines = list(zip(thresholds["threshold"], thresholds["group"], strict=True))
    gap = thresholds["false_positive_after"][lines.index((0.66, None))]
    assert f"{gap:.3f} after; accuracy" in page.get_by_role("status").inner_text()


@pytest.mark.slow
def test_marks_tell_their_numbers_and_move(opened: Callable[..., Any], report: Any) -> None:
    page = opened()
    marks = page.locator("svg.groups [data-tip]")
    assert marks.count() == 2 * len(report.tables["groups"]["group"])
    before = marks.nth(0).bounding_box()
    marks.nth(0).locator("circle").hover()
    tip = page.locator(".tip")
    label, first, _ = _expected(report, "true_positive", 50)[0]
    assert tip.inner_text() == f"{label}, before: {first.replace('[', ' [')}"
    page.get_by_role("slider").fill("90")
    assert page.locator("svg.groups [data-tip]").nth(0).bounding_box() != before
    page.keyboard.press("Escape")
    assert not tip.is_visible()


@pytest.mark.slow
def test_tables_sort_with_mouse_and_keys(opened: Callable[..., Any], report: Any) -> None:
    page = opened()
    section = page.locator("section", has=page.get_by_role("heading", name="Classes in groups"))
    rows = report.tables["cells"]["rows"]

    def shown() -> list[int]:
        return [int(text) for text in section.locator("tbody tr td:nth-child(3)").all_inner_texts()]

    assert shown() == rows
    section.get_by_role("button", name="rows").click()
    assert shown() == sorted(rows, reverse=True)
    page.keyboard.press("Enter")
    assert shown() == sorted(rows)
    assert section.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    section.get_by_role("button", name="group").click()
    groups = section.locator("tbody tr td:nth-child(2)").all_inner_texts()
    assert groups == sorted(groups)


@pytest.mark.slow
def test_nothing_is_wider_than_the_window(opened: Callable[..., Any]) -> None:
    page = opened()
    for width in (320, 400, 800, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_on_paper_controls_are_gone_and_grounds_are_white(opened: Callable[..., Any]) -> None:
    page = opened(scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator(".controls").is_visible()
    assert page.locator(".explorer table").is_visible()
    for element in ("html", ".fairsteer-report >> nth=0"):
        ground = page.locator(element).evaluate("e => getComputedStyle(e).backgroundColor")
        assert ground in ("rgb(255, 255, 255)", "rgba(0, 0, 0, 0)")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened: Callable[..., Any], scheme: str) -> None:
    if find_spec("axe_playwright_python") is None:
        pytest.skip("looks for barriers with axe-core, which comes with axe-playwright-python and is not installed")
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(opened(scheme=scheme)).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []
