"""A report as one HTML page: no network, light, dark and on paper, readable on a telephone and without its script."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib.resources import files

from fairsteer.report._view import Document, Figure, View

_STYLE, _SCRIPT = (
    files("fairsteer.report").joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "explore.js")
)

# Nothing is loaded, whatever a label may look like.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(document: Document, title: str, made: str, explored: str) -> str:
    """Whole HTML document; `made` says below by what and when it was made, `explored` is a section of its own."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
        "<style>html { background: #ffffff; } body { margin: 0; } "
        "@media screen and (prefers-color-scheme: dark) { html { background: #0d1117; } } "
        "@media print { html { font-size: 10pt; } }</style>\n</head>\n<body>\n"
        f"<main>\n{fragment(document, title, explored)}\n</main>\n"
        f'<footer class="fairsteer-report"><p class="note">{escape(made)}</p></footer>\n'
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def fragment(document: Document, title: str, explored: str = "") -> str:
    """Style and content, for a notebook; `explored` comes after the first table."""
    listed = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in document.facts)
    findings = "".join(f"<li>{escape(text)}</li>" for text in document.findings)
    parts = [
        f"<style>{_STYLE}</style>",
        '<div class="fairsteer-report">',
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict">{escape(document.verdict)}</p>' if document.verdict else "",
        f"<dl>{listed}</dl>",
        f'<ul class="findings">{findings}</ul>' if findings else "",
        *map(_section, document.views[:1]),
        explored,
        *map(_section, document.views[1:]),
        "</div>",
    ]
    return "\n".join(part for part in parts if part)


def _section(view: View) -> str:
    heads = "".join(
        f'<th scope="col" class="{_kind(right)}">{_lines(text)}</th>'
        for text, right in zip(view.header, view.numeric, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            (
                f'<th scope="row" class="name">{_lines(cell)}</th>'
                if j == 0
                else f'<td class="{_kind(right)}">{_value(cell)}</td>'
            )
            for j, (cell, right) in enumerate(zip(row, view.numeric, strict=True))
        )
        + "</tr>\n"
        for row in view.rows
    )
    table = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(view.title)}"><table class="sorts">'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )
    parts = [
        "<section>",
        f"<h2>{escape(view.title)}</h2>",
        f"<p>{escape(view.lead)}</p>" if view.lead else "",
        "" if view.figure is None else _DRAWINGS[view.figure.kind](view.figure),
        table,
        f'<p class="note">{view.hidden} more are in the report\'s tables.</p>' if view.hidden else "",
        f'<p class="note">{escape(view.note)}</p>',
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _kind(right: bool) -> str:
    return "number" if right else "name"


def _lines(text: str) -> str:
    return "<br>".join(escape(line) for line in text.split("\n"))


def _value(cell: str) -> str:
    value, _, below = cell.partition("\n")
    return escape(value) + (f"<small>{escape(below)}</small>" if below else "")


# ---- figures, drawn for a width of 400 so that text stays readable on a narrow screen

_WIDTH, _LEFT, _RIGHT = 400.0, 8.0, 392.0


_LABEL = _LEFT + 10  # right of the line at the axis's left end


_ROW = 44.0


# What is smaller is drawn as 0.
_TINY = 1e-6


def _draw_gaps(figure: Figure) -> str:
    axis = _Axis(0.0, _largest(part[2] for series in figure.series.values() for part in series))
    parts, top = _legend([("before", "before"), ("after", "after")]), 40.0
    for i, label in enumerate(figure.labels):
        parts.append(_text(_LABEL, top, label))
        for when, y in (("before", top + 12), ("after", top + 23)):
            parts.append(_point(axis, *figure.series[when][i], y, when, f"{label}, {when}"))
        top += _ROW
    return _svg(axis, parts, top, figure.title)


def _draw_bounds(figure: Figure) -> str:
    bounds, measured = figure.series["certificate"], figure.series["measured"]
    axis = _Axis(0.0, _largest([*(value for value, _, _ in bounds), *(upper for _, _, upper in measured)]))
    parts, top = _legend([("model", "certificate: the gap is at most"), ("after", "measured")]), 40.0
    for i, label in enumerate(figure.labels):
        parts.append(_text(_LABEL, top, label))
        start, end = axis.at(0.0), axis.at(bounds[i][0])
        bar = f'<rect class="model" x="{start:.1f}" y="{top + 7:.1f}" width="{max(end - start, 0.5):.1f}" height="20"/>'
        parts.append(_telling(f"{label}, certificate: at most {bounds[i][0]:.3f}", bar))
        parts.append(_point(axis, *measured[i], top + 17, "after", f"{label}, measured"))
        top += _ROW
    return _svg(axis, parts, top, figure.title)


def _draw_shifts(figure: Figure) -> str:
    shifts = [value for value, _, _ in figure.series["after"]]
    most = _largest(map(abs, shifts))
    axis = _Axis(-most, most)
    parts, top = [_text(_LABEL, 14, figure.title, "soft")], 40.0
    for label, shift in zip(figure.labels, shifts, strict=True):
        parts.append(_text(_LABEL, top, label))
        zero, end = axis.at(0.0), axis.at(shift)
        line = f'<line class="after" x1="{zero:.1f}" x2="{end:.1f}" y1="{top + 11:.1f}" y2="{top + 11:.1f}"/>'
        dot = f'<circle class="after" cx="{end:.1f}" cy="{top + 11:.1f}" r="4"/>'
        parts.append(_telling(f"{label}: {shift:+.2f}", line + dot))
        top += 34
    return _svg(axis, parts, top, figure.title)


_DRAWINGS: dict[str, Callable[[Figure], str]] = {
    "gaps": _draw_gaps,
    "bounds": _draw_bounds,
    "shifts": _draw_shifts,
}


def _largest(values: Iterable[float]) -> float:
    """Largest of the numbers that are known; 1 if all are 0, so that the axis has a length."""
    return max((x for x in values if math.isfinite(x) and x > _TINY), default=1.0)


class _Axis:
    """From values to places on a line that ends at round numbers."""

    def __init__(self, low: float, high: float) -> None:
        span = high - low
        step = 10.0 ** math.floor(math.log10(span / 4))
        self.step = next(step * factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
        self.low = math.floor(low / self.step + 1e-9) * self.step
        self.high = math.ceil(high / self.step - 1e-9) * self.step

    def at(self, value: float) -> float:
        """Place of a value."""
        return _LEFT + 6 + (value - self.low) / (self.high - self.low) * (_RIGHT - _LEFT - 22)

    @property
    def ticks(self) -> list[float]:
        """Round numbers."""
        count = round((self.high - self.low) / self.step)
        return [self.low + i * self.step for i in range(count + 1)]


def _svg(axis: _Axis, parts: Sequence[str], bottom: float, title: str) -> str:
    base = bottom - 8
    grid = []
    for tick in axis.ticks:
        x = axis.at(tick)
        kind = "zero" if abs(tick) < axis.step / 2 else "grid"
        grid.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="26" y2="{base:.1f}"/>')
        grid.append(f'<text class="soft" x="{x:.1f}" y="{base + 16:.1f}" text-anchor="middle">{tick:.3g}</text>')
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH:g} {base + 24:.0f}" role="img" aria-label="{escape(title)}; the table '
        f'below has the numbers">{"".join(grid)}{"".join(parts)}</svg></figure>'
    )


def _legend(entries: Sequence[tuple[str, str]]) -> list[str]:
    parts, x = [], _LEFT + 6
    for kind, text in entries:
        if kind == "model":
            parts.append(f'<rect class="model" x="{x - 6:.1f}" y="4" width="18" height="11"/>')
        else:
            parts.append(_mark(x, 10, kind))
        parts.append(_text(x + (18 if kind == "model" else 10), 14, text, "soft"))
        x += 40 + 7 * len(text)
    return parts


def _point(axis: _Axis, value: float, lower: float, upper: float, y: float, kind: str, said: str) -> str:
    if math.isnan(value):
        return ""
    start, end = axis.at(lower), axis.at(upper)
    whisker = f'<line class="{kind}" x1="{start:.1f}" x2="{end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return _telling(f"{said}: {value:.3f} [{lower:.3f}, {upper:.3f}]", whisker + _mark(axis.at(value), y, kind))


def _telling(text: str, mark: str) -> str:
    """Give a mark that says its numbers to who points at it."""
    return f'<g data-tip="{escape(text)}">{mark}</g>'


def _mark(x: float, y: float, kind: str) -> str:
    if kind == "before":
        return f'<circle class="before" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    return f'<path class="after" d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"/>'


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    # SVG text does not wrap; the table has the whole label.
    short = text if len(text) <= 52 else text[:51] + "…"
    return f'<text{f" class={chr(34)}{kind}{chr(34)}" if kind else ""} x="{x:.1f}" y="{y:.1f}">{escape(short)}</text>'
