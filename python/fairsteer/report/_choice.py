"""Candidates to choose from, in one table, and which of them to take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

from fairsteer.classifier import IdealDistributionClassifierCV
from fairsteer.classifier._choice import CRITERION_OF
from fairsteer.metrics._intervals import Measured
from fairsteer.metrics._rates import CRITERIA
from fairsteer.report._tables import Table, as_columns, criterion_text

_MEASURES = ("accuracy", *CRITERIA)


class Choice(NamedTuple):
    """What is said of a table of candidates.

    Attributes
    ----------
    criterion : str
        The gap that was to be closed.
    advice : str
        Which candidate to take, and why.
    legend : str
        What the candidates are.
    """

    criterion: str
    advice: str
    legend: str


def choice_table(candidates: Mapping[str, Mapping[str, Measured]], taken: str) -> Table:
    """Table of what was measured of every candidate.

    Parameters
    ----------
    candidates : mapping of str to mapping of str to Measured
        Accuracy and gaps by name, of every candidate by name.
    taken : str
        Name of the one to take.

    Returns
    -------
    dict of str to list
        A line for each candidate.
    """
    table: Table = {"candidate": list(candidates), "taken": [name == taken for name in candidates]}
    for measure in _MEASURES:
        table |= as_columns(measure, [measures[measure] for measures in candidates.values()])
    return table


def choice_of_search(search: IdealDistributionClassifierCV, confidence_level: float) -> tuple[Table, Choice]:
    """Give what a search chose from, intervals made of standard errors, and why it took what it took."""
    results = search.cv_results_
    radius = norm.ppf((1 + confidence_level) / 2)
    names = [_name(params) for params in results["params"]]
    names = [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]
    candidates = {}
    for i, name in enumerate(names):
        candidates[name] = {
            measure: _around(results[column][i], radius * results[f"{column}_std_err"][i])
            for measure in _MEASURES
            for column in (measure if measure == "accuracy" else f"{measure}_difference",)
        }
    taken, criterion = names[search.best_index_], CRITERION_OF[search.constraint]
    gap, first = criterion_text(criterion), candidates[names[0]]
    allowed = "that chance explains" if search.max_gap is None else f"of at most {search.max_gap:g}"
    within = int(np.sum(results["within_max_gap"]))
    why = (
        f"the simplest of the {within} with a {gap} {allowed} (or, where there is none, about the smallest) that is "
        "about as accurate as the best of these"
    )
    best = candidates[taken]
    against = (
        ""
        if taken == names[0]
        else f", against {first[criterion].value:.3f} and {first['accuracy'].value:.3f} of {names[0]}"
    )
    advice = (
        f"Of {len(names)} candidates “{taken}” was taken: {why}. Its {gap} is {best[criterion].value:.3f} at an "
        f"accuracy of {best['accuracy'].value:.3f}{against}, out of fold."
    )
    legend = "Chosen by these numbers, the one that was taken looks slightly better than it is."
    return choice_table(candidates, taken), Choice(criterion, advice, legend)


def _around(value: float, radius: float) -> Measured:
    return Measured(float(value), float(max(value - radius, 0)), float(min(value + radius, 1)))


def _name(params: Mapping[str, Any]) -> str:
    """Parameters in few words."""
    if params.get("steering__strength") == 0:
        parts = ["no steering"]
    else:
        parts = [
            f"{name.removeprefix('steering__')} {value}"
            for name, value in params.items()
            if name != "score_alignment" and not (name == "steering__strength" and value == 1)
        ]
    if params.get("score_alignment") is not None:
        parts.append(f"scores aligned for {str(params['score_alignment']).replace('_', ' ')}")
    return ", ".join(parts) or "the defaults"
