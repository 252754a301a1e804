"""Rates of every group at every threshold, before and after: the numbers behind the slider of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fairsteer._utils.types import Codes, Doubles
from fairsteer.metrics._intervals import clopper_pearson
from fairsteer.metrics._rates import effective_rows, safe_ratio
from fairsteer.report._tables import Table

#: Thresholds at which the rates are counted: hundredths.
THRESHOLDS: tuple[float, ...] = tuple(i / 100 for i in range(101))

#: Groups whose rates are counted, the largest.
MOST_GROUPS = 12

#: Rates by name, with the classes of the rows that they are counted among: of both, the positive, the negative.
RATES: dict[str, tuple[int, ...]] = {"selected": (0, 1), "true_positive": (1,), "false_positive": (0,)}


def threshold_table(
    positive: npt.NDArray[np.bool_],
    codes: Codes,
    weight: Doubles,
    groups: Sequence[Any],
    scores: dict[str, Doubles],
    *,
    min_rows: int,
    confidence_level: float,
) -> Table:
    """Count what is predicted positive above every threshold.

    Parameters
    ----------
    positive : ndarray of shape (n_rows,)
        Whether rows are of the positive class.
    codes : ndarray of shape (n_rows,)
        Groups, as positions in `groups`.
    weight : ndarray of shape (n_rows,)
        Weights.
    groups : sequence of labels
        The groups.
    scores : dict of str to ndarray of shape (n_rows,)
        Probability of the positive class, ``"before"`` and ``"after"``.
    min_rows : int
        A rate from fewer rows takes no part in a gap.
    confidence_level : float
        Of the exact interval of every rate by itself.

    Returns
    -------
    dict of str to list
        A line for every threshold and group, then one for the group None: accuracy among all rows, and the largest
        difference of each rate between groups.
    """
    edges = np.array(THRESHOLDS)
    G, T = len(groups), len(edges)
    shown = sorted(np.argsort(-np.bincount(codes, weight, G), kind="stable")[:MOST_GROUPS].tolist())
    cell = codes * 2 + positive
    of_cells, squares = (np.bincount(cell, w, 2 * G).reshape(G, 2) for w in (weight, weight**2))
    table: Table = {
        "threshold": [t for t in THRESHOLDS for _ in (*shown, None)],
        "group": [*(groups[a] for a in shown), None] * T,
    }
    for when, score in scores.items():
        # A row is above the thresholds that lie below its score, and is counted at the last of them.
        above = np.searchsorted(edges, score, side="left")
        counts = np.bincount(above * 2 * G + cell, weight, (T + 1) * 2 * G).reshape(T + 1, G, 2)
        hits = np.cumsum(counts[::-1], axis=0)[::-1][1:]
        right = hits[:, :, 1].sum(axis=1) + (of_cells[:, 0] - hits[:, :, 0]).sum(axis=1)
        table[f"accuracy_{when}"] = [
            x for one in right / weight.sum() for x in (*[float("nan")] * len(shown), float(one))
        ]
        for name, classes in RATES.items():
            among = list(classes)
            total, behind = of_cells[:, among].sum(axis=1), squares[:, among].sum(axis=1)
            rows = effective_rows(total, behind)
            rates = np.clip(safe_ratio(hits[:, :, among].sum(axis=2), total), 0, 1)
            lower, upper = clopper_pearson(rates, np.broadcast_to(rows, rates.shape), 1 - confidence_level)
            gap = _spread(rates[:, rows >= min_rows])
            for suffix, values in (("", rates), ("_lower", lower), ("_upper", upper)):
                ends = gap if suffix == "" else np.full(T, np.nan)
                lines = np.column_stack([values[:, shown], ends])
                table[f"{name}_{when}{suffix}"] = [float(x) for x in lines.ravel()]
    return table


def _spread(rates: Doubles) -> Doubles:
    """Largest difference between two groups, (n_thresholds,); NaN where fewer than two have a rate."""
    known = rates[:, np.isfinite(rates).all(axis=0)]
    if known.shape[1] < 2:
        return np.full(len(rates), np.nan)
    spread: Doubles = known.max(axis=1) - known.min(axis=1)
    return spread


def decides_at_half(table: Table, gaps: Table) -> bool:
    """Whether the accuracies at .5 are those of what the classifiers predict by themselves."""
    i = THRESHOLDS.index(0.5)
    n = len(table["group"]) // len(THRESHOLDS)
    at = gaps["measure"].index("accuracy")
    return all(abs(table[f"accuracy_{when}"][(i + 1) * n - 1] - gaps[when][at]) < 1e-9 for when in ("before", "after"))
