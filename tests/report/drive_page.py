"""Open a page of a report in headless Chromium, use it, and print as JSON what was seen.

A process of its own, so that the tests can end it when a browser hangs: ``python drive_page.py PAGE CHROMIUM``.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

_LINES = "[...document.querySelectorAll('.explorer tbody tr')].map(row => [...row.cells].map(c => c.textContent))"


def main(path: Path, chromium: str) -> dict[str, Any]:
    """Use the page as people do, with mouse and keys, wide and narrow, light, dark and printed."""
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"], timeout=30_000)
        page = browser.new_page(viewport={"width": 800, "height": 900}, color_scheme="light")
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("request", lambda request: None if request.url.startswith("file:") else wrong.append(request.url))
        page.goto(path.as_uri())
        seen = {
            "barriers, light": _barriers(page),
            **_thresholds(page),
            **_marks(page),
            **_sorting(page),
            "widths": _widths(page),
        }
        page.emulate_media(color_scheme="dark")
        seen["barriers, dark"] = _barriers(page)
        page.emulate_media(media="print", color_scheme="dark")
        seen["printed"] = {
            "controls": page.locator(".controls").is_visible(),
            "table": page.locator(".explorer table").is_visible(),
            "ground": page.locator("html").evaluate("e => getComputedStyle(e).backgroundColor"),
            "ink": page.locator("h1").evaluate("e => getComputedStyle(e).color"),
        }
        browser.close()
    return {**seen, "wrong": wrong}


def _thresholds(page: Page) -> dict[str, Any]:
    slider = page.get_by_role("slider", name="Threshold")
    lines = {"50": page.evaluate(_LINES)}
    slider.focus()
    for _ in range(7):
        page.keyboard.press("ArrowLeft")
    lines["43"], said = page.evaluate(_LINES), slider.get_attribute("aria-valuetext")
    for t in ("0", "100", "66"):
        slider.fill(t)
        lines[t] = page.evaluate(_LINES)
    page.get_by_label("of the other rows").check()
    return {
        "lines": lines,
        "value said": said,
        "other rate": page.evaluate(_LINES),
        "status": page.get_by_role("status").inner_text(),
    }


def _marks(page: Page) -> dict[str, Any]:
    page.locator("input[value=true_positive]").check()
    slider, marks = page.get_by_role("slider"), page.locator("svg.groups [data-tip]")
    slider.fill("50")
    first = page.locator("svg.groups [data-tip]:has(circle)").first
    first.locator("circle").hover()
    tip = page.locator(".tip")
    found = {"marks": marks.count(), "tip": tip.inner_text()}
    before = first.bounding_box()
    slider.fill("90")
    page.keyboard.press("Escape")
    return {**found, "moved": first.bounding_box() != before, "tip after Escape": tip.is_visible()}


def _sorting(page: Page) -> dict[str, Any]:
    section = page.locator("section", has=page.get_by_role("heading", name="Classes in groups"))

    def column(j: int) -> list[str]:
        return section.locator(f"tbody tr td:nth-child({j})").all_inner_texts()

    orders = [column(3)]
    section.get_by_role("button", name="rows").click()
    orders.append(column(3))
    page.keyboard.press("Enter")
    orders.append(column(3))
    sort = section.locator("th[aria-sort]").get_attribute("aria-sort")
    section.get_by_role("button", name="group").click()
    return {"orders": orders, "aria-sort": sort, "groups": column(2)}


def _widths(page: Page) -> dict[str, int]:
    found = {}
    for width in (320, 400, 800, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        found[str(width)] = page.evaluate("document.documentElement.scrollWidth")
    return found


def _barriers(page: Page) -> list[Any] | None:
    """Serious findings of axe-core; None where it is not installed."""
    if find_spec("axe_playwright_python") is None:
        return None
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
