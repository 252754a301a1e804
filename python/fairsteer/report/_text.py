"""A report as text, and as tables of a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fairsteer.report._view import View, facts, views

if TYPE_CHECKING:
    from fairsteer.report._report import SteeringReport

_WIDTH = 80
_LABEL_WIDTH = 14  # that a column of labels keeps in a narrow terminal


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
        table = fitting_table(view.header, view.numeric, view.rows)
        parts += [Text(), Text(view.title, style="bold underline"), table]
        if view.hidden:
            parts.append(Text(f"({view.hidden} more)"))
        parts.append(Text(view.note, style="dim"))
    return Group(*parts)


def fitting_table(header: Sequence[str], numeric: Sequence[bool], rows: Sequence[Sequence[str]]) -> Any:
    """Table that is as wide as the terminal at most: what does not fit stands below it, beside its labels again.

    Parameters
    ----------
    header : sequence of str
        Headings; a heading may have several lines.
    numeric : sequence of bool
        Which columns are numbers: they are aligned to the right and never cut. The columns before the first of them are
        labels.
    rows : sequence of sequence of str
        Cells; a second line is dimmed.

    Returns
    -------
    object
        What a rich console prints.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    n_labels = list(numeric).index(True) if True in numeric else len(header)

    def table(columns: Sequence[int]) -> Table:
        made = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
        for j in columns:
            lines = [line for text in (header[j], *(row[j] for row in rows)) for line in text.split("\n")]
            made.add_column(
                Text(header[j]),
                justify="right" if numeric[j] else "left",
                no_wrap=numeric[j],
                overflow="fold",
                vertical="top",
                min_width=None if numeric[j] else min(max(map(len, lines)), _LABEL_WIDTH),
            )
        for row in rows:
            made.add_row(*(_dimmed(row[j]) for j in columns))
        return made

    class Fitting:
        """Splits the table where it is printed, when the width is known."""

        def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
            left = list(range(n_labels, len(header)))
            while True:
                taken = left[:]
                while len(taken) > 1 and (
                    console.measure(table([*range(n_labels), *taken])).minimum > options.max_width
                ):
                    taken.pop()
                yield table([*range(n_labels), *taken])
                left = left[len(taken) :]
                if not left:
                    return
                yield Text()

    return Fitting()


def _dimmed(cell: str) -> Any:
    """Show a value with its interval below it, dimmed."""
    from rich.text import Text

    value, _, interval = cell.partition("\n")
    return Text(value) + (Text(f"\n{interval}", style="dim") if interval else Text())
