"""A report as a plain document: facts, findings, and tables as they are shown, for the forms to set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from fairsteer._utils.labels import label_text
from fairsteer.metrics._rates import CRITERIA
from fairsteer.report._choice import Choice
from fairsteer.report._tables import Table, criterion_text

# Rows in which leakage is looked for: of more, evenly spaced ones of every class and group.
MOST_ROWS_OF_LEAKAGE = 10_000

# Bars that a figure has room for.
_MOST_BARS = 12

# Movement, in standard deviations, that is shown as 0.
_STILL = 0.0005


class Figure(NamedTuple):
    """Numbers to draw beside a table: a label a line, and in every series a value and its interval a line."""

    kind: Literal["gaps", "bounds", "shifts"]
    title: str
    labels: list[str]
    series: dict[str, list[tuple[float, float, float]]]


class View(NamedTuple):
    """A table as it is shown; a cell may have two lines, a value and what is said of it."""

    title: str
    note: str
    header: list[str]
    numeric: list[bool]
    """Whether a column holds numbers; those before the first such column name the row."""
    rows: list[list[str]]
    hidden: int
    """Rows that are left out."""
    figure: Figure | None = None
    lead: str = ""
    """What the table comes to, said above it."""

    @property
    def n_keys(self) -> int:
        """Number of columns that name the row."""
        return self.numeric.index(True)


class Document(NamedTuple):
    """All that a form of the report needs to know."""

    facts: list[tuple[str, str]]
    verdict: str
    """What it comes to, in one paragraph; "" where nothing was measured."""
    findings: list[str]
    views: list[View]


class Setting(NamedTuple):
    """What the notes under the tables say of how numbers came about."""

    confidence_level: float
    min_rows: int
    pos_label: Any
    n_features: int
    accuracy_bound: float
    """Of the certificate; NaN without one."""
    gaussians: str
    """Whose Gaussians it speaks of; "" without one."""
    choice: Choice | None
    """What is said of the candidates, where there are any."""


def make_views(tables: Mapping[str, Table], setting: Setting, most: int) -> list[View]:
    """Make the tables of a report in the order in which they are shown, none longer than `most` rows."""
    builders = {
        "gaps": _gaps,
        "choice": _choice,
        "certificate": _certificate,
        "posterior": _posterior,
        "leakage": _leakage,
        "divergence": _divergence,
        "groups": _groups,
        "subgroups": _subgroups,
        "features": _features,
    }
    return [build(tables, setting, most) for name, build in builders.items() if name in tables]


# ---- the tables


def _gaps(tables: Mapping[str, Table], setting: Setting, most: int) -> View:
    table = tables["gaps"]
    one_group = len(tables["groups"]["group"]) == 1  # and no gap
    lines = [i for i, measure in enumerate(table["measure"]) if not one_group or measure not in CRITERIA]
    rows = [
        [
            criterion_text(table["measure"][i]),
            *(_with_interval(table, column, i) for column in ("before", "after")),
            _with_interval(table, "change", i, signed=True),
        ]
        for i in lines
    ]
    note = (
        f"Measured on held-out rows; below: {_level(setting)} bootstrap intervals. A gap is the largest difference "
        "between two groups; 0 is fair."
    )
    if setting.min_rows > 1:
        note += f" A rate from fewer than {setting.min_rows} rows takes no part, here and in the certificate."
    if setting.pos_label is not None:
        note += f" Positive class: {label_text(setting.pos_label)}."
    gaps = [i for i in lines if table["measure"][i] in CRITERIA]
    figure = Figure(
        "gaps",
        "Gaps before and after, with intervals",
        [criterion_text(table["measure"][i]) for i in gaps],
        {when: [_triple(table, when, i) for i in gaps] for when in ("before", "after")},
    )
    return View(
        "What the classifier gains",
        note,
        ["", "before", "after", "change"],
        [False, True, True, True],
        rows,
        0,
        figure if gaps else None,
    )


def _choice(tables: Mapping[str, Table], setting: Setting, most: int) -> View:
    table, choice = tables["choice"], setting.choice
    assert choice is not None
    lines = range(len(table["candidate"]))
    # Of many candidates the one that was taken, the first, which does nothing, and those with the smallest gaps.
    first = sorted(lines, key=lambda i: (not table["taken"][i], i != 0, _or_one(table[choice.criterion][i])))[:most]
    measures = ["accuracy", *CRITERIA]
    rows = [
        [
            f"{label_text(table['candidate'][i])}{' (taken)' if table['taken'][i] else ''}",
            *(_with_interval(table, measure, i) for measure in measures),
        ]
        for i in sorted(first)
    ]
    header = ["candidate", *(criterion_text(measure).removesuffix(" gap").replace(" ", "\n") for measure in measures)]
    note = f"Accuracy and gaps on the same held-out rows; below: {_level(setting)} intervals. {choice.legend}"
    numeric = [False, *[True] * len(measures)]
    return View("The choice", note, header, numeric, rows, len(lines) - len(rows), lead=choice.advice)


def _certificate(tables: Mapping[str, Table], setting: Setting, most: int) -> View:
    table = tables["certificate"]
    measured = not all(math.isnan(x) for x in table["measured"])
    of_model = not all(math.isnan(x) for x in table["model"])
    lines = range(len(table["class"]))
    # Of two groups each is compared with the other: one line says it.
    more_groups = len(tables["groups"]["group"]) > 2
    by_group = more_groups and len(lines) <= most
    shown = [i for i in lines if by_group or table["group"][i] is None]
    left_out = len(shown)
    shown = _worst(table, shown, most)
    left_out -= len(shown)
    rows = []
    for i in shown:
        label, group = table["class"][i], table["group"][i]
        line = ["all" if label is None else label_text(label)]
        if by_group:
            line.append("any two" if group is None else f"{label_text(group)} and another")
        line.append(number(table["certificate"][i]))
        if of_model:
            line.append(number(table["model"][i]))
        if measured:
            line += [_with_interval(table, "measured", i), table["verdict"][i]]
        rows.append(line)
    header, numeric = ["class", "groups", "certificate:\nat most"], [False, False, True]
    if not by_group:
        header, numeric = header[::2], numeric[::2]
    note = (
        "Largest difference between two groups in how often a class is predicted, among the rows of one class. "
        "Certificate: a bound for fully steered rows whose classes in groups are Gaussians of their own means and "
        "covariances"
    )
    note += " (here the model's, as no others are known). " if setting.gaussians == "model" else ". "
    if of_model:
        header, numeric = [*header, "model:\nat most"], [*numeric, True]
        note += "Model: the same for the Gaussians as the model has them. "
    if measured:
        header, numeric = [*header, "measured", "verdict"], [*numeric, True, True]
        note += (
            f"Measured: the classifier on held-out steered rows, with an exact {_level(setting)} interval; where it "
            "lies above the certificate, this is contradicted. "
        )
    if left_out:
        note += f"Of the classes those with the largest {'measured gap' if measured else 'bound'} are shown. "
    note += (
        "By the certificate, accuracy on the fitted and on the ideal distribution differs by at most "
        f"{number(setting.accuracy_bound)}."
    )
    alone = _worst(table, [i for i in lines if table["group"][i] is None], _MOST_BARS)
    figure = Figure(
        "bounds",
        "Certified and measured gaps",
        ["all classes" if table["class"][i] is None else f"class {label_text(table['class'][i])}" for i in alone],
        {
            "certificate": [(table["certificate"][i], math.nan, math.nan) for i in alone],
            "measured": [_triple(table, "measured", i) for i in alone],
        },
    )
    hidden = len(lines) - len(shown) if by_group or more_groups else left_out
    some = len(tables["groups"]["group"]) > 1
    return View(*("Certificate and measurement", note, header, numeric, rows, hidden), figure if some else None)


def _worst(table: Table, lines: Sequence[int], most: int) -> list[int]:
    """Lines in their order; if there are too many, the last, of all classes, and those with the largest gaps."""
    if len(lines) <= most:
        return list(lines)

    def size(i: int) -> tuple[float, float]:
        value, bound = table["measured"][i], table["certificate"][i]
        return (-1.0 if math.isnan(value) else value, bound)

    return [*sorted(sorted(lines[:-1], key=size, reverse=True)[: most - 1]), lines[-1]]


def _leakage(tables: Mapping[str, Table], setting: Setting, most: int) -> View:
    table = tables["leakage"]
    by_family = [
        [i for i, one in enumerate(table["family"]) if one == family] for family in dict.fromkeys(table["family"])
    ]
    # Of every family the pairs of groups and classes of which most is read after steering.
    room = max(1, most // len(by_family))
    shown = [i for lines in by_family for i in sorted(lines, key=lambda i: -table["after"][i])[:room]]
    by_class = any(label is not None for label in table["class"])
    rows = []
    for i in shown:
        line = [table["family"][i]]
        if by_class:
            line.append(label_text(table["class"][i]))
        line += [
            f"{label_text(table['group'][i])} and {label_text(table['other'][i])}",
            *(_with_interval(table, when, i) for when in ("before", "after")),
            *(f"{table[f'auc_{when}'][i]:.2f}" for when in ("before", "after")),
        ]
        rows.append(line)
    note = (
        "How well models of a family tell two groups apart among rows of one class, held out: balanced advantage, "
        f"with exact {_level(setting)} intervals that hold for all pairs of the family at once, and area under the "
        "curve. 0, and .5: not at all. A model of the family can have a gap of that size on these rows. At most "
        f"{MOST_ROWS_OF_LEAKAGE:,} rows are looked at, evenly spaced in every class and group; subgroups of few rows "
        "are left out."
    )
    keys = ["read by", "class", "groups"] if by_class else ["read by", "groups"]
    header = [*keys, "before", "after", "AUC\nbefore", "AUC\nafter"]
    return View(
        *("What models can read of the group", note, header, [*[False] * len(keys), *[True] * 4], rows),
        len(table["family"]) - len(rows),
    )


def _divergence(tables: Mapping[str, Table], setting: Setting, most: int) -> View:
    table = tables["divergence"]
    rows = [[f"rows {what}", nats(b), nats(a)] for what, b, a in zip(*table.values(), strict=True)]
    note = (
        "KL divergence, in nats, of the nearest distribution whose classes look the same in every group (fitted "
        "Gaussians). 0: the features tell nothing of the group that the class does not. What few held-out rows add by "
        "chance is in both numbers (-: fewer than two rows per feature in some group)."
    )
    return View("How unlike the groups are", note, ["", "before", "after"], [False, True, True], rows, 0)


def _groups(tables: Mapping[str, Table], setting: Setting, most: int) -> View:
    table = tables["groups"]
    columns = [
        ("rows", [str(n) for n in table["rows"]]),
        ("share", [number(share) for share in table["share"]]),
    ]
    note = "Share: of all rows, by weight."
    order = list(range(len(table["group"])))
    if "displacement" in table:
        columns += [
            ("moved by", [number(x) for x in table["displacement"]]),
            ("effective\nrank", [f"{rank} of {setting.n_features}" for rank in table["effective_rank"]]),
        ]
        note += (
            " Moved by: root mean square over rows and features, in standard deviations of the feature in the group. "
            "Effective rank: directions in which the group varies."
        )
        if len(order) > most:
            order = sorted(order, key=lambda i: -_or_zero(table["displacement"][i]))
            note += " The groups that move most are shown."
    elif len(order) > most:
        order = sorted(order, key=lambda i: -table["rows"][i])
        note += " The largest are shown."
    rows = [[label_text(table["group"][i]), *(column[i] for _, column in columns)] for i in order[:most]]
    header = ["group", *(heading for heading, _ in columns)]
    return View("Groups", note, header, [False, *[True] * len(columns)], rows, max(len(order) - most, 0))


def _subgroups(tables: Mapping[str, Table], setting: Setting, most: int) -> View:
    table = tables["subgroups"]
    recognised, steered = "recognised_after" in table, "ideal_share" in table
    order = list(range(len(table["rows"])))
    if len(order) > most:
        order = sorted(order, key=lambda i: table["rows"][i])[:most]
    header = ["class", "group", "rows", "share"]
    note = "Share: of all rows"
    if steered:
        header += ["ideal\nshare", "KL"]
        note += ", and in the ideal distribution. KL: divergence from the ideal, in nats (model)"
    if recognised:
        header += ["recognised\nbefore", "recognised\nafter"]
        note += (
            f". Recognised: how often rows of the class are predicted it, held out; below: exact {_level(setting)} "
            "intervals"
        )
    rows = []
    for i in order:
        line = [
            label_text(table["class"][i]),
            label_text(table["group"][i]),
            str(table["rows"][i]),
            number(table["share"][i]),
        ]
        if steered:
            line += [number(table["ideal_share"][i]), nats(table["kl_divergence"][i])]
        if recognised:
            line += [_with_interval(table, f"recognised_{when}", i) for when in ("before", "after")]
        rows.append(line)
    hidden = len(table["rows"]) - len(rows)
    note += ". The smallest are shown." if hidden else "."
    return View("Classes in groups", note, header, [False, False, *[True] * (len(header) - 2)], rows, hidden)


def _posterior(tables: Mapping[str, Table], setting: Setting, most: int) -> View:
    table = tables["posterior"]
    keys = [(label_text(label), label_text(group)) for label, group in zip(table["class"], table["group"], strict=True)]
    rows = [[*key, *(_with_interval(table, when, i) for when in ("before", "after"))] for i, key in enumerate(keys)]
    note = (
        "Probability of the class, out of fold and calibrated by group: median, and below it the range of the middle "
        "80 % of the group's rows. After: on the nearest ideal distribution, where it is the same in every group."
    )
    drawn = range(min(len(rows), _MOST_BARS))
    figure = Figure(
        "gaps",
        "Probability of the class: median and middle 80 % of rows",
        [f"class {keys[i][0]}, group {keys[i][1]}" for i in drawn],
        {when: [_triple(table, when, i) for i in drawn] for when in ("before", "after")},
    )
    header, hidden = ["class", "group", "before", "after"], max(0, len(rows) - most)
    return View(
        "The posterior, and what it becomes", note, header, [False, False, True, True], rows[:most], hidden, figure
    )


def _features(tables: Mapping[str, Table], setting: Setting, most: int) -> View:
    table = tables["features"]
    lines = [*zip(*table.values(), strict=True)]
    lines = [line for line in lines if not line[-1] < _STILL] or lines  # if nothing moves, all show that
    rows = [
        [
            label_text(feature),
            label_text(group),
            "-" if math.isnan(shift) else f"{shift:+.2f}",
            "-" if math.isnan(scale) else f"{scale:.2f}",
            number(moved),
        ]
        for feature, group, shift, scale, moved in lines[:most]
    ]
    note = (
        "Shift of the mean and root mean square movement in standard deviations of the feature in the group; spread: "
        "its standard deviation after steering, relative to before. What moves most comes first, what does not move is "
        "left out."
    )
    header = ["feature", "group", "shift", "spread", "moved by"]
    hidden = len(table["feature"]) - len(rows)
    drawn = [i for i in range(min(len(rows), _MOST_BARS)) if not math.isnan(lines[i][2])]
    figure = Figure(
        "shifts",
        "Shift of the mean, in standard deviations",
        [f"{label_text(lines[i][0])}, {label_text(lines[i][1])}" for i in drawn],
        {"after": [(lines[i][2], math.nan, math.nan) for i in drawn]},
    )
    return View("What moved", note, header, [False, False, True, True, True], rows, hidden, figure if drawn else None)


# ---- words


def number(value: float) -> str:
    """Three decimals; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def nats(value: float) -> str:
    """Three decimals, or three digits of large numbers."""
    if math.isnan(value):
        return "-"
    return f"{abs(value) if abs(value) < 0.0005 else value:.3f}" if value < 100 else f"{value:.3g}"


def interval(lower: float, upper: float, *, signed: bool = False) -> str:
    """Interval in brackets; nothing for NaN."""
    if math.isnan(lower):
        return ""
    sign = "+" if signed else ""
    return f"[{lower:{sign}.3f}, {upper:{sign}.3f}]"


def _triple(table: Table, column: str, i: int) -> tuple[float, float, float]:
    return table[column][i], table[f"{column}_lower"][i], table[f"{column}_upper"][i]


def _with_interval(table: Table, column: str, i: int, *, signed: bool = False) -> str:
    value, lower, upper = _triple(table, column, i)
    if math.isnan(value):
        return "-"
    text = f"{value:+.3f}" if signed else number(value)
    return f"{text}\n{interval(lower, upper, signed=signed)}"


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _or_one(value: float) -> float:
    return 1.0 if math.isnan(value) else value


def _level(setting: Setting) -> str:
    return f"{100 * setting.confidence_level:g} %"
