"""A steering report as one HTML page: no network, no scripts, light and dark, readable on a telephone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from fairsteer.report._view import facts, name, views

if TYPE_CHECKING:
    from fairsteer.report._report import SteeringReport

_MOST_ROWS = 60


_MOST_BARS = 12


# Okabe and Ito's colours, lighter ones on dark ground; shapes tell the same.
_STYLE = """
.fairsteer-report { color-scheme: light dark; --ink: #1b1f24; --ground: #ffffff; --soft: #57606a; --line: #d0d7de;
  --panel: #f6f8fa; --before: #0072b2; --after: #b84a00; --model: #8c959f;
  color: var(--ink); background: var(--ground); font: 16px/1.5 system-ui, sans-serif; max-width: 60rem;
  margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { .fairsteer-report { --ink: #e6edf3; --ground: #0d1117; --soft: #9ea7b3;
  --line: #30363d; --panel: #161b22; --before: #56b4e9; --after: #f0a830; --model: #6e7681; } }
.fairsteer-report h1 { font-size: 1.5rem; margin: 0 0 1rem; }
.fairsteer-report h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.fairsteer-report p { margin: .5rem 0; }
.fairsteer-report .note { color: var(--soft); font-size: .875rem; }
.fairsteer-report ul.findings { background: var(--panel); border-left: 4px solid var(--after); margin: 1rem 0;
  padding: .75rem 1rem .75rem 2rem; }
.fairsteer-report dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0; }
.fairsteer-report dt { color: var(--soft); }
.fairsteer-report dd { margin: 0; }
.fairsteer-report .scroll { overflow-x: auto; }
.fairsteer-report table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal;
  color: inherit; background: none; }
.fairsteer-report th, .fairsteer-report td { padding: .35rem .75rem; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top; font-weight: normal; background: none; white-space: nowrap; }
.fairsteer-report thead th { color: var(--soft); vertical-align: bottom; }
.fairsteer-report .number { text-align: right; }
.fairsteer-report small { color: var(--soft); font-size: .8125rem; display: block; }
.fairsteer-report figure { margin: .5rem 0 1rem; }
.fairsteer-report svg { width: 100%; max-width: 34rem; height: auto; display: block; }
.fairsteer-report svg text { fill: var(--ink); font: 13px system-ui, sans-serif; paint-order: stroke;
  stroke: var(--ground); stroke-width: 5px; stroke-linejoin: round; }
.fairsteer-report svg .soft { fill: var(--soft); font-size: 12px; }
.fairsteer-report svg .grid { stroke: var(--line); stroke-width: 1; }
.fairsteer-report svg .zero { stroke: var(--soft); stroke-width: 1; }
.fairsteer-report svg .before { stroke: var(--before); fill: var(--ground); stroke-width: 2; }
.fairsteer-report svg .after { stroke: var(--after); fill: var(--after); stroke-width: 2; }
.fairsteer-report svg .model { fill: var(--model); fill-opacity: .35; stroke: var(--model); }
@media (max-width: 32rem) { .fairsteer-report th[scope] { white-space: normal; }
  .fairsteer-report th, .fairsteer-report td { padding: .35rem .4rem; }
  .fairsteer-report dl { grid-template-columns: 1fr; gap: 0; }
  .fairsteer-report dd { margin-bottom: .5rem; } }
@media print { .fairsteer-report .scroll { overflow: visible; } }
"""


def page(report: SteeringReport) -> str:
    """Whole HTML document."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<title>Steering report</title>\n'
        "<style>html { background: #ffffff; } body { margin: 0; } "
        "@media (prefers-color-scheme: dark) { html { background: #0d1117; } }</style>\n</head>\n<body>\n"
        f"{fragment(report)}\n</body>\n</html>\n"
    )


def fragment(report: SteeringReport) -> str:
    """Style and content, for a notebook."""
    listed = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in facts(report))
    findings = "".join(f"<li>{escape(text)}</li>" for text in report.findings)
    figures = _figures(report)
    parts = [
        f"<style>{_STYLE}</style>",
        '<main class="fairsteer-report">',
        "<h1>Steering report</h1>",
        f"<dl>{listed}</dl>",
        f'<ul class="findings">{findings}</ul>' if findings else "",
    ]
    for view in views(report, _MOST_ROWS):
        parts += ["<section>", f"<h2>{escape(view.title)}</h2>", figures.get(view.title, "")]
        heads = "".join(
            f'<th scope="col"{_align(right)}>{_lines(text)}</th>'
            for text, right in zip(view.header, view.numeric, strict=True)
        )
        body = "".join(
            "<tr>"
            + "".join(
                (f'<th scope="row">{_lines(cell)}</th>' if j == 0 else f"<td{_align(right)}>{_value(cell)}</td>")
                for j, (cell, right) in enumerate(zip(row, view.numeric, strict=True))
            )
            + "</tr>\n"
            for row in view.rows
        )
        label = escape(view.title, quote=True)
        parts.append(
            f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>'
            f"<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>"
        )
        if view.hidden:
            parts.append(f'<p class="note">{view.hidden} more are in the report\'s tables.</p>')
        parts += [f'<p class="note">{escape(view.note)}</p>', "</section>"]
    parts.append("</main>")
    return "\n".join(part for part in parts if part)


def _align(right: bool) -> str:
    return ' class="number"' if right else ""


def _lines(text: str) -> str:
    return "<br>".join(escape(line) for line in text.split("\n"))


def _value(cell: str) -> str:
    value, _, below = cell.partition("\n")
    return escape(value) + (f"<small>{escape(below)}</small>" if below else "")


# ---- figures, drawn for a width of 400 so that text stays readable on a narrow screen

_WIDTH, _LEFT, _RIGHT = 400.0, 8.0, 392.0


_LABEL = _LEFT + 10  # right of the line at the axis's left end


_ROW = 44.0


def _figures(report: SteeringReport) -> dict[str, str]:
    figures = {}
    if "gaps" in report.tables:
        figures["What the classifier gains"] = _gap_figure(report.tables["gaps"])
    figures["Certificate: the model and the measurement"] = _certificate_figure(report.tables["certificate"])
    figures["What moved"] = _feature_figure(report.tables["features"])
    return figures


def _gap_figure(table: dict[str, list[Any]]) -> str:
    lines = [i for i, measure in enumerate(table["measure"]) if measure != "accuracy"]
    most = max(
        (x for key in ("before_upper", "after_upper") for i in lines if not math.isnan(x := table[key][i])), default=1
    )
    axis = _Axis(0.0, most)
    parts, top = _legend([("before", "before steering"), ("after", "after")]), 40.0
    for i in lines:
        parts.append(_text(_LABEL, top, f"{table['measure'][i].replace('_', ' ')} gap"))
        for when, y in (("before", top + 12), ("after", top + 23)):
            value, lower, upper = (table[f"{when}{end}"][i] for end in ("", "_lower", "_upper"))
            parts.append(_point(axis, value, lower, upper, y, when))
        top += _ROW
    return _figure(axis, parts, top, "Gaps before and after steering, with intervals")


def _certificate_figure(table: dict[str, list[Any]]) -> str:
    lines = [i for i, group in enumerate(table["group"]) if group is None]
    lines = lines if len(lines) <= _MOST_BARS else [*lines[: _MOST_BARS - 1], lines[-1]]
    known = [x for key in ("model", "measured_upper") for i in lines if not math.isnan(x := table[key][i])]
    axis = _Axis(0.0, max(known))
    parts, top = _legend([("model", "model: the gap is at most"), ("after", "measured")]), 40.0
    for i in lines:
        label = table["class"][i]
        parts.append(_text(_LABEL, top, "all classes" if label is None else f"class {name(label)}"))
        start, end = axis.at(0.0), axis.at(table["model"][i])
        parts.append(
            f'<rect class="model" x="{start:.1f}" y="{top + 7:.1f}" width="{max(end - start, 0.5):.1f}" height="20"/>'
        )
        value, lower, upper = (table[f"measured{end}"][i] for end in ("", "_lower", "_upper"))
        parts.append(_point(axis, value, lower, upper, top + 17, "after"))
        top += _ROW
    return _figure(axis, parts, top, "Bounds of the model and measured gaps")


def _feature_figure(table: dict[str, list[Any]]) -> str:
    lines = [i for i in range(min(len(table["feature"]), _MOST_BARS)) if not math.isnan(table["mean_shift"][i])]
    if not lines:
        return ""
    most = max(abs(table["mean_shift"][i]) for i in lines) or 1.0
    axis = _Axis(-most, most)
    parts, top = [_text(_LABEL, 14, "Shift of the mean, in standard deviations", "soft")], 40.0
    for i in lines:
        parts.append(_text(_LABEL, top, f"{table['feature'][i]}, {name(table['group'][i])}"))
        zero, end = axis.at(0.0), axis.at(table["mean_shift"][i])
        parts.append(f'<line class="after" x1="{zero:.1f}" x2="{end:.1f}" y1="{top + 11:.1f}" y2="{top + 11:.1f}"/>')
        parts.append(f'<circle class="after" cx="{end:.1f}" cy="{top + 11:.1f}" r="4"/>')
        top += 34
    return _figure(axis, parts, top, "Shift of features")


class _Axis:
    """From values to places on a line that ends at round numbers."""

    def __init__(self, low: float, high: float) -> None:
        span = max(high - low, 1e-6)
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


def _figure(axis: _Axis, parts: Sequence[str], bottom: float, title: str) -> str:
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


def _point(axis: _Axis, value: float, lower: float, upper: float, y: float, kind: str) -> str:
    if math.isnan(value):
        return ""
    start, end = axis.at(lower), axis.at(upper)
    whisker = f'<line class="{kind}" x1="{start:.1f}" x2="{end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return whisker + _mark(axis.at(value), y, kind)


def _mark(x: float, y: float, kind: str) -> str:
    if kind == "before":
        return f'<circle class="before" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    return f'<path class="after" d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"/>'


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    # SVG text does not wrap; the table has the whole label.
    short = text if len(text) <= 52 else text[:51] + "…"
    return f'<text{f" class={chr(34)}{kind}{chr(34)}" if kind else ""} x="{x:.1f}" y="{y:.1f}">{escape(short)}</text>'
