"""What notebooks show of an object: facts, and a small picture of its subgroups. Made of what is known already."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from fairsteer._utils.labels import label_text
from fairsteer._utils.types import Doubles

# Classes and groups that a picture has room for, and letters of a label.
_MOST_CLASSES, _MOST_GROUPS, _MOST_LETTERS = 8, 10, 14
_CELL, _LEFT, _TOP = 56, 108, 22


def facts_html(facts: Sequence[tuple[str, str]]) -> str:
    """Lines of a name and what it is."""
    lines = "".join(
        f'<tr><th scope="row" style="text-align:left;font-weight:normal;opacity:.75">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(text)}</td></tr>'
        for name, text in facts
    )
    return f"<table>{lines}</table>"


def cells_svg(title: str, classes: Sequence[Any], groups: Sequence[Any], values: Doubles, form: str = ".3g") -> str:
    """Draw a square for every class in every group, as large as its number, which stands below it.

    Parameters
    ----------
    title : str
        What the numbers are.
    classes, groups : sequence of labels
        A line each, a column each.
    values : ndarray of shape (n_classes, n_groups)
        Non-negative numbers.
    form : str, default=".3g"
        How they are written.

    Returns
    -------
    str
        The picture in the colour of the text around it; "" of no class or group.
    """
    rows, columns = classes[:_MOST_CLASSES], groups[:_MOST_GROUPS]
    if not len(rows) or not len(columns):
        return ""
    shown = values[: len(rows), : len(columns)]
    largest = max((float(x) for x in shown.ravel() if math.isfinite(x)), default=0.0) or 1.0
    parts = []
    for a, group in enumerate(columns):
        x = _LEFT + (a + 0.5) * _CELL
        parts.append(f'<text x="{x:g}" y="14" text-anchor="middle">{escape(_short(group, 8))}</text>')
    for k, label in enumerate(rows):
        y = _TOP + k * _CELL
        parts.append(f'<text x="0" y="{y + 24:g}">{escape(_short(label, _MOST_LETTERS))}</text>')
        for a in range(len(columns)):
            value, x = float(shown[k, a]), _LEFT + (a + 0.5) * _CELL
            side = 30 * math.sqrt(max(value, 0.0) / largest) if math.isfinite(value) else 0.0
            parts.append(
                f'<rect x="{x - side / 2:.1f}" y="{y + 18 - side / 2:.1f}" width="{side:.1f}" height="{side:.1f}" '
                'fill="#0072b2" fill-opacity=".75"/>'
                f'<text x="{x:g}" y="{y + 48:g}" text-anchor="middle" font-size="11">{value:{form}}</text>'
            )
    hidden = len(classes) > len(rows) or len(groups) > len(columns)
    more = f"; {len(classes)} classes and {len(groups)} groups in all" if hidden else ""
    width, height = _LEFT + len(columns) * _CELL, _TOP + len(rows) * _CELL
    return (
        f'<figure style="margin:.5em 0"><figcaption>{escape(title + more)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" style="max-width:100%" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="12" fill="currentColor">'
        f"{''.join(parts)}</svg></figure>"
    )


def _short(label: Any, most: int) -> str:
    text = label_text(label)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def certificate_facts(gap: float, accuracy: float) -> list[tuple[str, str]]:
    """Write what a certificate bounds."""
    return [
        ("certificate", f"a gap between groups of at most {gap:.3g}"),
        ("", f"accuracy that differs from the ideal one by at most {accuracy:.3g}"),
    ]
