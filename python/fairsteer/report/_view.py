"""A steering report as text, and the rows and words of its tables for the other forms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fairsteer.report._report import SteeringReport

_MOST_ROWS = 12


class View(NamedTuple):
    """A table as it is shown; a cell may have two lines, a value and its interval."""

    title: str
    note: str
    header: list[str]
    numeric: list[bool]
    rows: list[list[str]]
    hidden: int
    """Rows that are left out."""


def views(report: SteeringReport, most: int = _MOST_ROWS) -> list[View]:
    """Tables of a report in the order they are shown, none longer than `most` rows."""
    builders = (_gaps, _certificate, _divergence, _groups, _cells, _features)
    return [view for build in builders if (view := build(report, most)) is not None]


def facts(report: SteeringReport) -> list[tuple[str, str]]:
    """Name and value of what the report is about."""
    rows = "the rows of the fit" if report.same_rows else "rows other than those of the fit"
    found = [
        *report.context.items(),
        ("Steering", report.steering),
        ("Rows", f"{report.n_rows} ({rows}), {report.n_features} features"),
        ("Nearest ideal distribution", f"{nats(report.kl_divergence)} nats from the fitted one (model)"),
    ]
    if report.classifier:
        what = "steering and classifier" if report.same_rows else "classifier, steering as fitted"
        found.append(("Classifier", f"{report.classifier}, {report.n_folds}-fold cross-validation of {what}"))
    return found


# ---- the tables


def _gaps(report: SteeringReport, most: int) -> View | None:
    if "gaps" not in report.tables:
        return None
    table = report.tables["gaps"]
    rows = [
        [
            measure.replace("_", " ") + (" gap" if measure != "accuracy" else ""),
            *(_with_interval(table, column, i) for column in ("before", "after")),
            _with_interval(table, "change", i, signed=True),
        ]
        for i, measure in enumerate(table["measure"])
    ]
    note = (
        f"Measured on held-out rows: the classifier on rows as they are (before) and on steered rows (after). Below: "
        f"{_level(report)} bootstrap intervals. A gap is the largest difference between two groups; 0 is fair."
    )
    if report.min_rows > 1:
        note += f" A rate from fewer than {report.min_rows} rows takes no part, here and in the certificate."
    if report.positive is not None:
        note += f" Positive class: {name(report.positive)}."
    return View(
        "What the classifier gains", note, ["", "before", "after", "change"], [False, True, True, True], rows, 0
    )


def _certificate(report: SteeringReport, most: int) -> View:
    table = report.tables["certificate"]
    measured = not all(math.isnan(x) for x in table["measured"])
    lines = range(len(table["class"]))
    # Of two groups each is compared with the other: one line says it.
    by_group = len(report.tables["groups"]["group"]) > 2 and len(lines) <= most
    shown = [i for i in lines if by_group or table["group"][i] is None]
    if len(shown) > most:
        shown = [*shown[: most - 1], shown[-1]]
    rows = []
    for i in shown:
        label, group = table["class"][i], table["group"][i]
        line = ["all" if label is None else name(label)]
        if by_group:
            line.append("any two" if group is None else f"{name(group)} and another")
        line.append(f"≤ {number(table['model'][i])}")
        if measured:
            line += [number(table["measured"][i]), interval(table["measured_lower"][i], table["measured_upper"][i])]
        rows.append(line)
    header, numeric = ["class", "groups", "model: bound"], [False, False, True]
    if not by_group:
        header, numeric = header[::2], numeric[::2]
    note = (
        "Largest difference between two groups in how often a class is predicted, among the rows of one class. Model: "
        "a bound for fully steered rows that follow the fitted Gaussians. "
    )
    if measured:
        header, numeric = [*header, "measured", "interval"], [*numeric, True, True]
        note += f"Measured: the classifier on held-out steered rows, with an exact {_level(report)} interval. "
    accuracy = number(report.certificate.accuracy)
    note += f"By the model, accuracy on the fitted and on the ideal distribution differs by at most {accuracy}."
    hidden = len(lines) - len(shown) if by_group or len(report.tables["groups"]["group"]) > 2 else 0
    return View("Certificate: the model and the measurement", note, header, numeric, rows, hidden)


def _divergence(report: SteeringReport, most: int) -> View:
    table = report.tables["divergence"]
    rows = [[f"rows {what}", nats(b), nats(a)] for what, b, a in zip(*table.values(), strict=True)]
    note = (
        "KL divergence, in nats, of the nearest distribution whose classes look the same in every group (fitted "
        "Gaussians). 0: the features tell nothing of the group that the class does not. What few held-out rows add by "
        "chance is in both numbers (-: fewer than two rows a feature in some group)."
    )
    return View("How unlike the groups are", note, ["", "before", "after"], [False, True, True], rows, 0)


def _groups(report: SteeringReport, most: int) -> View:
    table = report.tables["groups"]
    rows = [
        [name(group), str(n), number(share), number(moved), f"{rank} of {report.n_features}"]
        for group, n, share, moved, rank in zip(*table.values(), strict=True)
    ]
    note = (
        "Displacement: root mean square over rows and features, in standard deviations of the feature in the group. "
        "Effective rank: directions in which the group varies."
    )
    header = ["group", "rows", "share", "displacement", "effective rank"]
    return View("Groups", note, header, [False, True, True, True, True], *_first(rows, most))


def _cells(report: SteeringReport, most: int) -> View:
    table = report.tables["cells"]
    recognised = "recognised_after" in table
    order = list(range(len(table["rows"])))
    if len(order) > most:
        order = sorted(order, key=lambda i: table["rows"][i])[:most]
    rows = []
    for i in order:
        line = [
            name(table["class"][i]),
            name(table["group"][i]),
            str(table["rows"][i]),
            f"{number(table['share'][i])}\n→ {number(table['ideal_share'][i])}",
            nats(table["kl_divergence"][i]),
        ]
        if recognised:
            line += [_with_interval(table, f"recognised_{when}", i) for when in ("before", "after")]
        rows.append(line)
    header = ["class", "group", "rows", "share", "KL"]
    note = "Share: of all rows, and in the ideal distribution. KL: divergence from the ideal, in nats (model). "
    if recognised:
        header += ["recognised\nbefore", "recognised\nafter"]
        note += (
            "Recognised: how often rows of the class are predicted it, held out; below: exact "
            f"{_level(report)} intervals. "
        )
    hidden = len(table["rows"]) - len(rows)
    if hidden:
        note += "The smallest are shown."
    return View("Classes in groups", note.rstrip(), header, [False, False, *[True] * (len(header) - 2)], rows, hidden)


def _features(report: SteeringReport, most: int) -> View:
    table = report.tables["features"]
    rows = [
        [feature, name(group), f"{shift:+.2f}", "-" if math.isnan(scale) else f"× {scale:.2f}", number(moved)]
        for feature, group, shift, scale, moved in zip(*(x[:most] for x in table.values()), strict=True)
    ]
    note = (
        "Shift of the mean and root mean square displacement in standard deviations of the feature in the group; "
        "spread: its standard deviation after steering, relative to before. Largest displacement first."
    )
    header = ["feature", "group", "shift", "spread", "displacement"]
    hidden = len(table["feature"]) - len(rows)
    return View("What moved", note, header, [False, False, True, True, True], rows, hidden)


# ---- words


def name(label: Any) -> str:
    """Text of a label; the parts of an intersection are joined by commas."""
    return ", ".join(map(str, label)) if isinstance(label, tuple) else str(label)


def number(value: float) -> str:
    """Three decimals; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def nats(value: float) -> str:
    """Three decimals, or three digits of large numbers."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞"
    return f"{value:.3f}" if value < 100 else f"{value:.3g}"


def interval(lower: float, upper: float, *, signed: bool = False) -> str:
    """Interval in brackets; nothing for NaN."""
    if math.isnan(lower):
        return ""
    sign = "+" if signed else ""
    return f"[{lower:{sign}.3f}, {upper:{sign}.3f}]"


def _with_interval(table: dict[str, list[Any]], column: str, i: int, *, signed: bool = False) -> str:
    value = table[column][i]
    if math.isnan(value):
        return "-"
    text = f"{value:+.3f}" if signed else number(value)
    return f"{text}\n{interval(table[f'{column}_lower'][i], table[f'{column}_upper'][i], signed=signed)}"


def _first(rows: list[list[str]], most: int) -> tuple[list[list[str]], int]:
    return rows[:most], max(len(rows) - most, 0)


def _level(report: SteeringReport) -> str:
    return f"{100 * report.confidence_level:g} %"
