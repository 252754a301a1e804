"""A report as text, and as tables of a terminal, in the width that there is."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fairsteer.report._view import Document, View

_WIDTH = 80


def as_text(document: Document, width: int = _WIDTH) -> str:
    """Plain text of at most `width` columns."""
    parts = ["Steering report", "==============="]
    parts += [_filled(f"{label}: {value}", width, "  ") for label, value in document.facts]
    if document.verdict:
        parts += ["", _filled(document.verdict, width)]
    if document.findings:
        parts.append("")
    parts += [_filled(f"* {text}", width, "  ") for text in document.findings]
    for view in document.views:
        title = _filled(view.title, width)
        parts += ["", title, "-" * max(map(len, title.split("\n")))]
        if view.lead:
            parts += [_filled(view.lead, width), ""]
        for n, block in enumerate(_blocks(view, width, gap=2)):
            parts += [""] * bool(n)
            parts += block.lines()
        if view.hidden:
            parts.append(f"({view.hidden} more)")
        parts.append(_filled(view.note, width))
    return "\n".join(parts)


def as_rich(document: Document) -> Any:
    """Make tables and paragraphs for a rich console, of the width that it has."""
    return _RichDocument(document)


def fitting_table(header: Sequence[str], numeric: Sequence[bool], rows: Sequence[Sequence[str]]) -> Any:
    """Make a table for a rich console, in parts where it is too wide; columns that are not numeric name the rows."""
    return _RichTable(View("", "", list(header), list(numeric), [list(row) for row in rows], 0))


def _filled(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False)


# ---- tables that fit


class _Block(NamedTuple):
    """Some columns of a table, with the cells folded to their widths."""

    widths: list[int]
    numeric: list[bool]
    grid: list[list[list[str]]]
    """Lines of every cell; the first row is the header."""
    gap: int

    def lines(self) -> list[str]:
        out = []
        for row in self.grid:
            for i in range(max(map(len, row))):
                texts = [cell[i] if i < len(cell) else "" for cell in row]
                padded = [
                    " " * (width - display_width(text)) + text if right else text + " " * (width - display_width(text))
                    for text, width, right in zip(texts, self.widths, self.numeric, strict=True)
                ]
                out.append((" " * self.gap).join(padded).rstrip())
        return out


def _blocks(view: View, width: int, gap: int) -> Iterator[_Block]:
    """Split a table that is too wide: columns of numbers go below, with the names of the rows again."""
    table = [[cell.split("\n") for cell in row] for row in [view.header, *view.rows]]
    n_keys = view.n_keys
    keys = range(n_keys)
    widths = [max(display_width(line) for row in table for line in row[j]) for j in range(len(view.header))]
    # Names are folded where they would take more than half of the width from the numbers, words as long as one number
    # has room beside them.
    numbers = sum(widths[n_keys:]) + gap * (len(widths) - n_keys - 1)
    words = [max(display_width(word) for row in table for line in row[j] for word in [*line.split(), ""]) for j in keys]
    beside_one = width - gap * n_keys - max(widths[n_keys:])
    half = width - gap * n_keys - max(max(widths[n_keys:]), min(numbers, width // 2))
    room = max(half, min(sum(words), beside_one), 4 * n_keys)
    while sum(widths[:n_keys]) > room:
        longest = max(keys, key=lambda j: (widths[j] > words[j], widths[j]))  # words stay whole as long as they can
        widths[longest] -= 1
    for row in table:
        for j in keys:
            row[j] = [piece for line in row[j] for piece in _folded(line, widths[j])]
    left = sum(widths[:n_keys]) + gap * (n_keys - 1)
    columns: list[int] = []
    taken = left
    for j in range(n_keys, len(widths)):
        if columns and taken + gap + widths[j] > width:
            yield _block(view, table, widths, [*keys, *columns], gap)
            columns, taken = [], left
        columns.append(j)
        taken += gap + widths[j]
    yield _block(view, table, widths, [*keys, *columns], gap)


def _block(view: View, table: list[list[list[str]]], widths: list[int], columns: list[int], gap: int) -> _Block:
    return _Block(
        [widths[j] for j in columns],
        [view.numeric[j] for j in columns],
        [[row[j] for j in columns] for row in table],
        gap,
    )


def _folded(line: str, width: int) -> list[str]:
    """Lines of at most `width` columns; words are broken only where one is longer than that."""
    if display_width(line) <= width:
        return [line]
    found, current = [], ""
    for word in line.split(" "):
        joined = f"{current} {word}" if current else word
        if display_width(joined) <= width:
            current = joined
            continue
        if current:
            found.append(current)
        current = ""
        for c in word:
            if display_width(current + c) > width:
                found.append(current)
                current = ""
            current += c
    return [*found, current]


def display_width(text: str) -> int:
    """Columns of a terminal that text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


# ---- rich


class _RichDocument:
    def __init__(self, document: Document) -> None:
        self.document = document

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table
        from rich.text import Text

        head = Table(box=None, show_header=False, pad_edge=False)
        head.add_column(style="bold", vertical="top", max_width=max(options.max_width // 3, 8))
        head.add_column(overflow="fold")
        for label, value in self.document.facts:
            head.add_row(Text(label), Text(value))
        yield head
        yield Text()
        if self.document.verdict:
            yield Text(self.document.verdict)
        if self.document.findings:
            yield Text()
            findings = Table.grid(padding=(0, 1, 0, 0))
            for text in self.document.findings:
                findings.add_row(Text("*", style="bold"), Text(text, style="bold"))
            yield findings
        for view in self.document.views:
            yield Text()
            yield Text(view.title, style="bold underline")
            if view.lead:
                yield Text(view.lead)
            yield _RichTable(view)
            if view.hidden:
                yield Text(f"({view.hidden} more)")
            yield Text(view.note, style="dim")


class _RichTable:
    def __init__(self, view: View) -> None:
        self.view = view

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        for n, block in enumerate(_blocks(self.view, options.max_width, gap=3)):
            if n:
                yield Text()
            table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
            header, *rows = block.grid
            for lines, width, right in zip(header, block.widths, block.numeric, strict=True):
                table.add_column(
                    Text("\n".join(lines)), justify="right" if right else "left", no_wrap=True, min_width=width
                )
            for row in rows:
                table.add_row(*(_cell(lines, below=right) for lines, right in zip(row, block.numeric, strict=True)))
            yield table


def _cell(lines: list[str], *, below: bool) -> Any:
    """Show a value with what is below it dimmed."""
    from rich.text import Text

    if not below:
        return Text("\n".join(lines))
    value, *rest = lines
    return Text(value) + Text("".join(f"\n{line}" for line in rest), style="dim")
