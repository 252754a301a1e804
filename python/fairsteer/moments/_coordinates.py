"""What the numbers of moments are: names of the features, and the coordinates in which rows were added up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from fairsteer._utils.input import few
from fairsteer._utils.labels import described, kind_of
from fairsteer._utils.types import Doubles

# Coordinates are the same if they are up to rounding.
_ROUNDING = 1e-12


class Coordinates(NamedTuple):
    """Coordinates ``scale * x + shift`` of features ``x``, or of their logarithms."""

    log: bool
    """Whether `x` are the logarithms of the features."""
    scale: Doubles
    """Factors, (n_features,)."""
    shift: Doubles
    """What is added, (n_features,)."""


def checked_names(names: Iterable[str] | None, n_features: int) -> tuple[str, ...] | None:
    """Names of features, one each and distinct; None where they have none."""
    if names is None:
        return None
    listed = tuple(map(str, names))
    if len(listed) != n_features:
        msg = f"feature_names must hold {n_features} names, one a feature, not {len(listed)}."
        raise ValueError(msg)
    doubles = [name for i, name in enumerate(listed) if name in listed[:i]] if len(set(listed)) < n_features else []
    if doubles:
        msg = f"feature_names must be distinct, but {doubles[0]!r} occurs more than once."
        raise ValueError(msg)
    return listed


def check_same_features(first: Any, second: Any) -> tuple[tuple[str, ...] | None, Any]:
    """Check that two moments are of the same features in the same coordinates; give their names and coordinates.

    Parameters
    ----------
    first, second : SubgroupMoments
        Two moments. Where one of them has no names of its features, the other's are taken.

    Raises
    ------
    ValueError
        With what differs.
    """
    if first.n_features != second.n_features:
        msg = (
            f"Moments of {first.n_features} and of {second.n_features} features cannot be merged; "
            "both must be of the same features, in the same order."
        )
        raise ValueError(msg)
    _check_same_names(first.feature_names, second.feature_names)
    names = first.feature_names or second.feature_names
    if (difference := _difference(first.coordinates, second.coordinates, names)) is not None:
        msg = (
            f"The moments are in different coordinates: {difference}. Sums of one cannot be added to those of the "
            "other; add up the rows of both in the same coordinates: as they are, or with one feature_transform that "
            "was fitted beforehand (sklearn.frozen.FrozenEstimator)."
        )
        raise ValueError(msg)
    return names, first.coordinates


def check_same_kinds(what: str, first: Any, second: Any) -> None:
    """Check that labels of two moments, of which new ones are added, can be the same at all.

    Parameters
    ----------
    what : str
        What the labels are, for the message.
    first, second : ndarray
        Labels.

    Raises
    ------
    ValueError
        If the labels of one are all of another kind (text, numbers, …) than those of the other, or intersections of
        another number of columns.
    """
    labels, others = first.tolist(), second.tolist()
    if {_kinds(label) for label in labels}.isdisjoint(map(_kinds, others)):
        msg = (
            f"The {what} are the {described(labels)} in one and the {described(others)} in the other, which are never "
            "equal. Encode them in the same way in both."
        )
        raise ValueError(msg)


def _kinds(label: Any) -> tuple[str, ...]:
    return tuple(map(kind_of, label)) if isinstance(label, tuple) else (kind_of(label),)


def _check_same_names(first: tuple[str, ...] | None, second: tuple[str, ...] | None) -> None:
    if first is None or second is None or first == second:
        return
    if set(first) == set(second):
        j = next(j for j, (one, other) in enumerate(zip(first, second, strict=True)) if one != other)
        what = f"in another order: feature {j} is {first[j]!r} in one and {second[j]!r} in the other"
    else:
        lacks = few((repr(name) for name in first if name not in second), 3)
        has = few((repr(name) for name in second if name not in first), 3)
        what = f"of other features: the first has {lacks}, the second {has} instead"
    msg = f"The moments are {what}. They can be merged if the features are the same, in the same order."
    raise ValueError(msg)


def _difference(first: Any, second: Any, names: tuple[str, ...] | None) -> str | None:
    """Say in what two coordinates differ; None if they do not."""
    if first is second:
        return None
    if not all(one is None or isinstance(one, Coordinates) for one in (first, second)):
        return "a feature_transform that is not a shift and a scale can be compared with itself only"
    if getattr(first, "log", False) != getattr(second, "log", False):
        return "one has logarithms of the features, the other the features themselves"
    n_features = len((first or second).scale)
    numbers = [
        (np.ones(n_features), np.zeros(n_features)) if one is None else (one.scale, one.shift)
        for one in (first, second)
    ]
    for what, one, other in zip(("scale", "shift"), *numbers, strict=True):
        apart = np.flatnonzero(~np.isclose(one, other, rtol=_ROUNDING, atol=_ROUNDING))
        if apart.size:
            j = int(apart[0])
            name = f"feature {j}" if names is None else repr(names[j])
            return f"the {what} of {name} is {one[j]:.8g} in one and {other[j]:.8g} in the other"
    return None
