"""What models can still read of the group in steered rows, beside what they could read before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from fairsteer._utils.labels import label_text
from fairsteer._utils.types import Codes, Doubles
from fairsteer.metrics._leakage import FAMILIES, GroupLeakage, Task, told_apart
from fairsteer.report._tables import Table
from fairsteer.report._view import MOST_ROWS_OF_LEAKAGE

Leakage = Literal["none", "linear", "trees"]

# Families of models by what is asked for, and what `group_leakage` calls them.
_FAMILIES: dict[str, dict[str, str]] = {
    "none": {},
    "linear": {"linear models": "linear"},
    "trees": {"linear models": "linear", "trees": "boosting"},
}


# Rows that a class must have in a group, to learn from and to judge, in every fold.
_FEWEST = 2


class JudgedRows(NamedTuple):
    """Rows that are told apart, and what each fold has made of all of them."""

    y_codes: Codes
    codes: Codes
    weight: Doubles
    folds: list[tuple[Doubles, Doubles, npt.NDArray[np.bool_]]]
    """As they are, as they are after the steering of the fold, and which it has not seen."""


def check_leakage(leakage: str) -> None:
    """Refuse what is none of the families."""
    if leakage not in _FAMILIES:
        msg = f"leakage must be one of {', '.join(map(repr, get_args(Leakage)))}, not {leakage!r}."
        raise ValueError(msg)


def evenly(y_codes: Codes, codes: Codes) -> npt.NDArray[np.intp]:
    """Choose rows to look at: all, or of more than 10,000 evenly spaced ones of every class and group."""
    n = len(codes)
    if n <= MOST_ROWS_OF_LEAKAGE:
        return np.arange(n)
    order = np.lexsort((np.arange(n), codes, y_codes))
    chosen: npt.NDArray[np.intp] = np.sort(order[np.linspace(0, n - 1, MOST_ROWS_OF_LEAKAGE).astype(np.intp)])
    return chosen


def leakage_table(
    rows: JudgedRows, classes: Sequence[Any], groups: Sequence[Any], leakage: str, confidence_level: float
) -> Table | None:
    """Table of what models of some families read before and after; None if there is nothing to compare.

    As any model that is trained on steered rows, they learn from rows that a fold's steering has seen, and are judged
    on others.
    """
    table: Table = {}
    for family, name in _FAMILIES[leakage].items():
        before, after = (
            told_apart(
                *(_tasks(rows, classes, when), FAMILIES[name], family, rows.codes, rows.weight, groups),
                n_jobs=None,
                confidence_level=confidence_level,
            )
            for when in (0, 1)
        )
        part: Table = {
            "family": [family] * len(after.pairs),
            **{what: [pair[i] for pair in after.pairs] for i, what in enumerate(("class", "group", "other"))},
        }
        for when, found in (("before", before), ("after", after)):
            part |= _columns(when, found)
        for column, values in part.items():
            table.setdefault(column, []).extend(values)
    return table if table and table["family"] else None


def _tasks(rows: JudgedRows, classes: Sequence[Any], when: int) -> list[Task]:
    tasks = []
    for k, label in enumerate(classes):
        of_class = rows.y_codes == k
        fewest = np.min(
            [
                [np.bincount(rows.codes[of_class & part], minlength=rows.codes.max() + 1) for part in (seen, ~seen)]
                for *_, unseen in rows.folds
                for seen in (~unseen,)
            ],
            axis=0,
        )
        present = np.flatnonzero((fewest >= _FEWEST).all(axis=0))
        if len(present) < 2:
            continue
        compared = of_class & np.isin(rows.codes, present)
        tasks.append(
            Task(
                label,
                present,
                [
                    (fold[when], np.flatnonzero(compared & ~fold[2]), np.flatnonzero(compared & fold[2]))
                    for fold in rows.folds
                ],
            )
        )
    return tasks


def _columns(when: str, found: GroupLeakage) -> Table:
    names = (when, f"{when}_lower", f"{when}_upper", f"auc_{when}")
    columns: dict[str, Doubles] = dict(zip(names, (*found.advantage, found.auc), strict=True))
    return {name: values.tolist() for name, values in columns.items()}


def leakage_findings(table: Table) -> list[str]:
    """Say where steering made the groups easier to tell apart, by more than chance."""
    found = []
    for family in dict.fromkeys(table["family"]):
        grew = [
            i
            for i, one in enumerate(table["family"])
            if one == family and table["after_lower"][i] > table["before_upper"][i]
        ]
        if not grew:
            continue
        i = max(grew, key=lambda i: table["after"][i] - table["before"][i])
        among = "" if table["class"][i] is None else f" among rows of class {label_text(table['class'][i])}"
        pair = f"{label_text(table['group'][i])} and {label_text(table['other'][i])}"
        before, after = table["before"][i], table["after"][i]
        found.append(
            f"Steering made {pair} easier to tell apart by {family}{among}: the balanced advantage grew from "
            f"{before:.3f} to {after:.3f}, so such a model can be less fair on steered rows than on rows as they are."
        )
    return found
