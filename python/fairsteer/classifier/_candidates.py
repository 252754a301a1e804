"""What cross-validation chooses from: the default grid, and which candidates share what is fitted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import ParameterGrid

from fairsteer._utils.input import few
from fairsteer.classifier._choice import Constraint

#: From few to many numbers a group: d, 2 d, a table a feature, d (d + 3) / 2 and d (d + 1).
MAP_TYPES = ("translation", "diagonal", "monotone", "symmetric", "affine")

#: Of more features, which are embeddings rather than tables, fewer maps are tried.
MANY_FEATURES = 256
_OF_MANY_FEATURES = ("translation", "diagonal", "affine")

# With other groups, gaps would be of other groups.
_ABOUT_GROUPS = ("sensitive_columns", "unknown_group", "min_subgroup_size", "small_subgroups")

ALIGNMENT, STRENGTH = "score_alignment", "steering__strength"


def default_candidates(
    constraint: Constraint, *, n_features: int, bayes: bool, takes_weight: bool, has_scores: bool, lends: bool
) -> list[dict[str, Any]]:
    """List candidates, the simplest first.

    Parameters
    ----------
    constraint : {"equal_opportunity", "demographic_parity", "ideal"}
        What gap is meant.
    n_features : int
        Number of features without sensitive columns.
    bayes : bool
        Whether rows are classified by the Bayes rule of the ideal distribution, which needs one.
    takes_weight : bool
        Whether the classifier can be trained under the weights of the ideal distribution.
    has_scores : bool
        Whether the classifier has scores that can be aligned.
    lends : bool
        Whether small subgroups borrow Gaussians, which monotone maps have none of.
    """
    many = n_features > MANY_FEATURES
    kinds: list[tuple[Constraint, float]] = [(constraint, 1.0)]
    if not many:
        kinds.append((constraint, 0.5))
    if constraint != "ideal":
        kinds.append(("ideal", 1.0))
    if bayes:
        kinds = [("ideal", strength) for strength in ((1.0,) if many else (1.0, 0.5))]
    steerings: list[dict[str, Any]] = [
        {"steering__map_type": map_type, "steering__constraint": of_maps, STRENGTH: strength}
        for map_type in (_OF_MANY_FEATURES if many else MAP_TYPES)
        for of_maps, strength in kinds
        if (takes_weight or of_maps != "ideal") and not (lends and map_type == "monotone")
    ]
    nothing: dict[str, Any] = {STRENGTH: 0.0}
    if not has_scores:
        return [nothing, *steerings]
    align = {ALIGNMENT: "demographic_parity" if constraint == "demographic_parity" else "equal_opportunity"}
    alone: list[dict[str, Any]] = [{**steering, ALIGNMENT: None} for steering in [nothing, *steerings]]
    aligned = [{**steering, **align} for steering in [nothing, *steerings]]
    return [alone[0], aligned[0], *alone[1:], *aligned[1:]]


def listed_candidates(candidates: Any) -> list[dict[str, Any]]:
    """Expand a grid as GridSearchCV does; ValueError for parameters that are none of a candidate's."""
    grid: list[dict[str, Any]] = list(ParameterGrid(candidates))
    if not grid:
        msg = "candidates is empty: there is nothing to choose from."
        raise ValueError(msg)
    names = dict.fromkeys(name for params in grid for name in params)
    wrong = [name for name in names if not _may_differ(name)]
    if wrong:
        msg = (
            f"Candidates cannot differ in {few(map(repr, wrong))}: their parameters are score_alignment, estimator, "
            "estimator__… and steering__…, but for those that say which groups there are. Set others of the search "
            "itself or of its steering."
        )
        raise ValueError(msg)
    return grid


def _may_differ(name: str) -> bool:
    head, nested, inner = name.partition("__")
    if head == "steering":
        return bool(nested) and inner not in _ABOUT_GROUPS
    return head == "estimator" or name == ALIGNMENT


class Training(NamedTuple):
    """Candidates that share their trained classifier: they differ in the alignment only."""

    params: dict[str, Any]
    """Parameters but for the alignment."""
    candidates: list[int]


class Maps(NamedTuple):
    """Candidates that share their fitted maps: they differ in strength, classifier and alignment."""

    params: dict[str, Any]
    """Parameters of the steering, but for the strength."""
    trainings: list[Training]


def shared_fits(candidates: list[dict[str, Any]]) -> list[Maps]:
    """Group candidates by what is fitted for them."""
    found: list[Maps] = []
    for i, candidate in enumerate(candidates):
        params = {name: value for name, value in candidate.items() if name != ALIGNMENT}
        of_maps = {name: value for name, value in params.items() if name.startswith("steering") and name != STRENGTH}
        maps = next((one for one in found if _same(one.params, of_maps)), None)
        if maps is None:
            found.append(maps := Maps(of_maps, []))
        training = next((one for one in maps.trainings if _same(one.params, params)), None)
        if training is None:
            maps.trainings.append(training := Training(params, []))
        training.candidates.append(i)
    return found


def _same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return first.keys() == second.keys() and all(_equal(value, second[name]) for name, value in first.items())


def _equal(first: Any, second: Any) -> bool:
    if first is second:
        return True
    if isinstance(first, (str, bool, int, float, type(None))) and isinstance(second, type(first)):
        return bool(first == second)
    return False  # what is more than a value is fitted again


def table_of_params(candidates: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Columns of the parameters, as in GridSearchCV: ``param_…``, masked where a candidate has no such parameter."""
    candidates = list(candidates)
    names = dict.fromkeys(name for params in candidates for name in params)
    table: dict[str, Any] = {"params": [dict(params) for params in candidates]}
    for name in names:
        values = np.empty(len(candidates), dtype=object)
        for i, params in enumerate(candidates):
            values[i] = params.get(name)
        table[f"param_{name}"] = np.ma.MaskedArray(values, mask=[name not in params for params in candidates])
    return table
