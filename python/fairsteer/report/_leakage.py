"""What models can still read of the group in steered rows, beside what they could read before."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from fairsteer._utils.labels import label_text
from fairsteer._utils.types import Codes, Doubles
from fairsteer.metrics._leakage import GroupLeakage, group_leakage
from fairsteer.report._tables import Table
from fairsteer.report._view import MOST_ROWS_OF_LEAKAGE

Leakage = Literal["none", "linear", "trees"]

# Families of models by what is asked for, and what `group_leakage` calls them.
_FAMILIES: dict[str, dict[str, str]] = {
    "none": {},
    "linear": {"linear models": "linear"},
    "trees": {"linear models": "linear", "trees": "boosting"},
}


class MovedRows(NamedTuple):
    """Held-out rows as they are and as they are after steering."""

    before: Doubles
    after: Doubles
    y_codes: Codes
    codes: Codes
    weight: Doubles | None


def check_leakage(leakage: str) -> None:
    """Refuse what is none of the families."""
    if leakage not in _FAMILIES:
        msg = f"leakage must be one of {', '.join(map(repr, get_args(Leakage)))}, not {leakage!r}."
        raise ValueError(msg)


def leakage_table(
    rows: MovedRows, classes: Sequence[Any], groups: Sequence[Any], leakage: str, confidence_level: float
) -> Table | None:
    """Table of what models of some families read before and after; None if there is nothing to compare."""
    rows = _thinned(rows)
    table: Table = {}
    for family, estimator in _FAMILIES[leakage].items():
        before, after = (
            _measured(X, rows, estimator, confidence_level, blind=len(classes) < 2) for X in (rows.before, rows.after)
        )
        part: Table = {
            "family": [family] * len(after.pairs),
            "class": [None if len(classes) < 2 else classes[k] for k, _, _ in after.pairs],
            "group": [groups[a] for _, a, _ in after.pairs],
            "other": [groups[b] for _, _, b in after.pairs],
        }
        for when, found in (("before", before), ("after", after)):
            part |= _columns(when, found)
        for name, values in part.items():
            table.setdefault(name, []).extend(values)
    return table if table and table["family"] else None


def _columns(when: str, found: GroupLeakage) -> Table:
    names = (when, f"{when}_lower", f"{when}_upper", f"auc_{when}")
    columns: dict[str, Doubles] = dict(zip(names, (*found.advantage, found.auc), strict=True))
    return {name: values.tolist() for name, values in columns.items()}


def _measured(X: Doubles, rows: MovedRows, estimator: str, level: float, *, blind: bool) -> GroupLeakage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of subgroups that are left out the report tells in its own way
        return group_leakage(
            X,
            None if blind else rows.y_codes,
            sensitive_features=rows.codes,
            estimator=estimator,
            sample_weight=rows.weight,
            confidence_level=level,
        )


def _thinned(rows: MovedRows) -> MovedRows:
    n = len(rows.codes)
    if n <= MOST_ROWS_OF_LEAKAGE:
        return rows
    order = np.lexsort((np.arange(n), rows.codes, rows.y_codes))
    some: npt.NDArray[np.intp] = np.sort(order[np.linspace(0, n - 1, MOST_ROWS_OF_LEAKAGE).astype(np.intp)])
    weight = None if rows.weight is None else rows.weight[some]
    return MovedRows(rows.before[some], rows.after[some], rows.y_codes[some], rows.codes[some], weight)


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
