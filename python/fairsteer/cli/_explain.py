"""The job of ``fairsteer explain``: how one row of a table moves, in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from fairsteer.report import RowExplanation, explain_row
from fairsteer.report._explanation import plain
from fairsteer.report._text import fitting_table

from . import UsageError
from ._apply import load_map
from ._columns import label_parts, label_text
from ._fitting import check_has, library_problems, read_problem, reading_of
from ._large import AnyTable, open_table
from ._options import Alignment, Settings, parse_memory
from ._printing import Reporter
from ._question import quoted
from ._reading import Table
from ._table import TableDescription

__all__ = ["explain_file"]

# Features that the table shows; the object for machines has all.
_MOST_FEATURES = 20


def explain_file(
    settings: Settings,
    given: list[str],
    *,
    row: int,
    model: Path | None,
    align: Alignment | None,
    as_json: bool = False,
) -> None:
    """Say how one row of a table moves.

    Parameters
    ----------
    settings : Settings
        The table, and without a map what is fitted to it.
    given : list of str
        Options of a fit that were given.
    row : int
        Number of the row, from 1, the header not counted.
    model : Path or None
        A map that ``fairsteer steer --map`` wrote.
    align : {"equal_opportunity", "demographic_parity"} or None
        Whether scores are aligned too.
    as_json : bool, default=False
        Whether one JSON object is printed instead of text.

    Raises
    ------
    UsageError
        For any input the user can put right.
    """
    report = Reporter(as_json=as_json)
    fitted: Any
    if model is not None:
        if str(model) == str(settings.file) == "-":
            raise UsageError("--map and FILE are both standard input; name a file for one.")
        own = [name for name in given if name not in ("separator", "decimal", "encoding", "na_values", "memory")]
        if own or align is not None:
            option = "align" if not own else own[0].replace("_", "-")
            raise UsageError(f"--{option} belongs to a fit, and {model} is fitted already.")
        fitted, description = load_map(model)
        reading = description.reading(reading_of(settings))
        source = open_table(settings.file, reading, report.note, parse_memory(settings.memory))
        check_has(source, [*(column.name for column in description.encoder.columns), *description.sensitive])
    else:
        for option in ("target", "sensitive"):
            if option not in given:
                raise UsageError(f"--{option} is needed to fit a map, as for steer; or give --map, a map that is.")
        problem = read_problem(settings, report, steers_all=False)
        fitted, description, source = problem.fit(report, align), problem.description, problem.source
    found = _explained(fitted, description, _row_of(source, row), row)
    report.say(f"Row {row:,} of {source.name}. {found.sentences[0]}")
    for sentence in found.sentences[1:]:
        report.say(sentence)
    report.say()
    lines = list(zip(*found.features.values(), strict=True))
    report.say(
        fitting_table(
            ["feature", "before", "after", "change", "share"],
            [False, True, True, True, True],
            [
                [label_text(name), plain(before), plain(after), f"{change:+.2f}", f"{100 * share:.0f} %"]
                for name, before, after, change, share in lines[:_MOST_FEATURES]
            ],
        )
    )
    if len(lines) > _MOST_FEATURES:
        report.say(f"({len(lines) - _MOST_FEATURES} more features move less)")
    report.say()
    header = list(found.groups)
    report.say(
        fitting_table(
            ["in group", "moved by", *(name.replace(" of ", "\nof ") for name in header[3:])],
            [False, *[True] * (len(header) - 2)],
            [
                [label_text(group) + (" (its own)" if own else ""), *(f"{number:.3f}" for number in numbers)]
                for group, own, *numbers in zip(*found.groups.values(), strict=True)
            ],
        )
    )
    report.result(
        "explain",
        row=row,
        group=found.group,
        strength=found.strength,
        moved_by=found.moved_by,
        before={label_text(label): p for label, p in found.before.items()},
        features=found.features,
        groups=found.groups,
        sentences=found.sentences,
    )


def _row_of(source: AnyTable, number: int) -> Table:
    """Give one row of a table as a table."""
    seen = 0
    for piece in source.pieces():
        if number <= seen + len(piece):
            return replace(piece, data=piece.data.slice(number - seen - 1, 1), _columns={})
        seen += len(piece)
    raise UsageError(f"there is no row {number:,}: {source.name} has {seen:,} (the header does not count).")


def _explained(fitted: Any, description: TableDescription, row: Table, number: int) -> RowExplanation:
    names = list(description.sensitive)
    steering = getattr(fitted, "steering_", fitted)
    parts = label_parts(steering.moments_.groups.tolist(), len(names))
    groups = pd.DataFrame({name: row.column(name).labels(parts[j]) for j, name in enumerate(names)}, dtype=object)
    if groups.isna().any(axis=None) and steering.unknown_group == "error":
        raise UsageError(f"row {number:,} has no {quoted(names)}; --unknown-group infer, at the fit, infers it.")
    with library_problems():
        return explain_row(fitted, description.encoder.encode(row), sensitive_features=groups)
