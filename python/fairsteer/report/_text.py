"""A report as text, and as tables of a terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from fairsteer.report._view import View, facts, views

if TYPE_CHECKING:
    from fairsteer.report._report import SteeringReport

_WIDTH = 80


def as_text(report: SteeringReport) -> str:
    """Plain text, at most 80 columns but for long names."""
    parts = ["Steering report", "==============="]
    for label, value in facts(report):
        parts.append(textwrap.fill(f"{label}: {value}", _WIDTH, subsequent_indent="  ", break_on_hyphens=False))
    parts += [textwrap.fill(f"* {text}", _WIDTH, subsequent_indent="  ") for text in report.findings]
    for view in views(report):
        parts += ["", view.title, "-" * len(view.title), *_lines(view)]
        if view.hidden:
            parts.append(f"({view.hidden} more)")
        parts.append(textwrap.fill(view.note, _WIDTH))
    return "\n".join(parts)


def _lines(view: View) -> list[str]:
    grid = [[cell.split("\n") for cell in row] for row in [view.header, *view.rows]]
    widths = [max(len(line) for row in grid for line in row[j]) for j in range(len(view.header))]
    lines = []
    for row in grid:
        for i in range(max(map(len, row))):
            texts = [cell[i] if i < len(cell) else "" for cell in row]
            aligned = [
                text.rjust(width) if right else text.ljust(width)
                for text, width, right in zip(texts, widths, view.numeric, strict=True)
            ]
            lines.append("  ".join(aligned).rstrip())
    return lines


def as_rich(report: SteeringReport) -> Any:
    """Make tables and paragraphs for a rich console."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    head = Table(box=None, show_header=False, pad_edge=False)
    head.add_column(style="bold", vertical="top")
    head.add_column(overflow="fold")
    for label, value in facts(report):
        head.add_row(Text(label), Text(value))
    parts += [head, Text()]
    parts += [Text(f"• {text}", style="bold") for text in report.findings]
    for view in views(report):
        table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
        for heading, right in zip(view.header, view.numeric, strict=True):
            table.add_column(
                Text(heading), justify="right" if right else "left", no_wrap=right, overflow="fold", vertical="top"
            )
        for row in view.rows:
            table.add_row(*(_dimmed(cell) for cell in row))
        parts += [Text(), Text(view.title, style="bold underline"), table]
        if view.hidden:
            parts.append(Text(f"({view.hidden} more)"))
        parts.append(Text(view.note, style="dim"))
    return Group(*parts)


def _dimmed(cell: str) -> Any:
    """Show a value with its interval below it, dimmed."""
    from rich.text import Text

    value, _, interval = cell.partition("\n")
    return Text(value) + (Text(f"\n{interval}", style="dim") if interval else Text())
