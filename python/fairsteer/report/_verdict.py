"""What a report comes to, in plain words, for somebody who reads one paragraph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fairsteer._utils.labels import label_text
from fairsteer.metrics._rates import CRITERIA
from fairsteer.report._tables import Table, criterion_text


def plain_verdict(tables: Mapping[str, Table], positive: Any, n_rows: int, min_rows: int) -> str:
    """Say in one paragraph whom the classifier recognises before and after, what that cost, and how sure it is.

    Parameters
    ----------
    tables : mapping of str to dict
        Tables of a report.
    positive : label or None
        The positive class; None if every class counts.
    n_rows : int
        Rows that took part.
    min_rows : int
        Rates from fewer rows are not spoken of.
    """
    if "gaps" not in tables or len(tables["groups"]["group"]) == 1:
        return ""
    gaps = tables["gaps"]
    at = {measure: i for i, measure in enumerate(gaps["measure"])}
    parts = [_recognised(tables["subgroups"], positive, min_rows)] if positive is not None else []
    of = "equal_opportunity" if positive is not None else "equalized_odds"
    parts.append(_change(gaps, at[of], f"The {criterion_text(of)}"))
    others = [name for name in CRITERIA if name != of and not math.isnan(gaps["after"][at[name]])]
    if others:
        ends = {name: (_points(gaps["before"][at[name]]), _points(gaps["after"][at[name]])) for name in others}
        first, *rest = (f"the {criterion_text(name)} {{}}from {b} to {a}" for name, (b, a) in ends.items())
        text = " and ".join([first.format("goes "), *(one.format("") for one in rest)])
        parts.append(f"{text[0].upper()}{text[1:]}.")
    parts.append(_change(gaps, at["accuracy"], "Accuracy", unit="%"))
    parts.append(_sureness(gaps, at[of], n_rows))
    return " ".join(part for part in parts if part)


def _recognised(cells: Table, positive: Any, min_rows: int) -> str:
    """Say how often the positive class is recognised in the groups that differ most."""
    if "recognised_after" not in cells:
        return ""
    known = [
        (before, after, label_text(group))
        for label, group, rows, before, after in zip(
            *(cells[name] for name in ("class", "group", "rows", "recognised_before", "recognised_after")), strict=True
        )
        if label == positive and rows >= max(min_rows, 1) and not math.isnan(before + after)
    ]
    if len(known) < 2:
        return ""
    low, high = min(known), max(known)
    name = label_text(positive)
    return (
        f"Of 100 rows of class {name}, the classifier without steering recognises {100 * high[0]:.0f} in group "
        f"{high[2]} and {100 * low[0]:.0f} in group {low[2]}; with it, {100 * high[1]:.0f} and {100 * low[1]:.0f}."
    )


def _change(gaps: Table, i: int, what: str, unit: str = "points") -> str:
    before, after = gaps["before"][i], gaps["after"][i]
    if math.isnan(before) or math.isnan(after):
        return f"{what} is not known: too few rows."
    text = (lambda x: f"{100 * x:.1f} %") if unit == "%" else _points
    if f"{before:.3f}" == f"{after:.3f}":
        return f"{what} stays at {text(after)}."
    lower, upper = gaps["change_lower"][i], gaps["change_upper"][i]
    chance = ", a change that chance alone can make" if lower <= 0 <= upper else ", more than chance makes"
    return f"{what} goes from {text(before)} to {text(after)}{chance}."


def _points(share: float) -> str:
    return "an unknown size" if math.isnan(share) else f"{100 * share:.1f} points"


def _sureness(gaps: Table, i: int, n_rows: int) -> str:
    lower, upper = gaps["after_lower"][i], gaps["after_upper"][i]
    if math.isnan(lower):
        return ""
    return f"On {n_rows:,} rows, what remains lies between {100 * lower:.1f} and {100 * upper:.1f} points."
