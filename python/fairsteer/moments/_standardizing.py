"""Classes that weigh alike in every group, so that a difference of base rates is no difference of the groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fairsteer._utils.types import Doubles
from fairsteer._utils.weights import rows_behind

if TYPE_CHECKING:
    from fairsteer.moments._moments import SubgroupMoments


def class_factors(counts: Doubles) -> Doubles:
    """Weights of the cells (K, G), relative to their own, with which every group has the classes' shares of all rows.

    The weight of a group stays. A class that a group has no row of is left out there; cells without rows have 0.
    """
    shares = np.where(counts > 0, counts.sum(axis=1, keepdims=True), 0.0)
    totals = shares.sum(axis=0)
    shares = np.divide(shares, totals, out=np.zeros_like(shares), where=totals > 0)
    factors: Doubles = np.divide(shares * counts.sum(axis=0), counts, out=np.zeros_like(shares), where=counts > 0)
    return factors


def joint_factors(counts: Doubles, joined: Sequence[int]) -> Doubles:
    """Factors of cells (K, G) if some of the groups count as one."""
    rest = [a for a in range(counts.shape[1]) if a not in set(joined)]
    found = class_factors(np.column_stack([counts[:, rest], counts[:, list(joined)].sum(axis=1)]))
    factors = np.empty_like(counts)
    factors[:, rest], factors[:, list(joined)] = found[:, :-1], found[:, -1:]
    return factors


def common_factors(
    first: SubgroupMoments, second: SubgroupMoments, places: Sequence[Any], shape: tuple[int, ...]
) -> Doubles:
    """Factors of the union of two standardised moments, which must agree where both have rows."""
    tables = np.zeros((2, *shape))
    for table, part, place in zip(tables, (first, second), places, strict=True):
        table[place] = np.zeros_like(part.weights) if part._factors is None else part._factors
    both = (tables > 0).all(axis=0)
    plain = any(part._factors is None and part.weights.any() for part in (first, second))
    if plain or not np.allclose(tables[0][both], tables[1][both], rtol=1e-9):
        msg = (
            "Moments in which the classes weigh alike in every group can be merged if their weights are the same: give "
            "the subgroup_counts of all rows to both, or accumulate with covariance='full' and tie the result."
        )
        raise ValueError(msg)
    return np.asarray(tables.max(axis=0))


def small_columns(weights: Doubles, squares: Doubles, min_subgroup_size: float) -> list[int]:
    """Positions of the groups that `SubgroupMoments.small_groups` names, from sums of weights and of their squares."""
    smallest = rows_behind(weights, squares).min(axis=0)
    order = np.argsort(smallest, kind="stable")
    n = int((smallest < min_subgroup_size).sum())
    if n:
        joined = rows_behind(*(of_cells[:, order].cumsum(axis=1) for of_cells in (weights, squares))).min(axis=0)
        enough = np.flatnonzero(joined[n - 1 :] >= min_subgroup_size)
        n = n + int(enough[0]) if enough.size else weights.shape[1]
    return sorted(order[:n].tolist())
