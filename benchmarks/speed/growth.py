"""How time grows: every size is a contender of one contest, and the exponent is the slope in logarithms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import problems
from benchmarks.speed.contest import Case, Contender, Contest, Measurement
from benchmarks.speed.transform import random_maps
from fairsteer import SubgroupMoments, nearest_ideal
from fairsteer.transformer._maps import AffineMaps

N_GROUPS = 2

# What grows, and through which sizes: from where the leading term leads, to where a run takes a second or two.
SIZES: dict[str, Sequence[int]] = {
    "moments in n": (50_000, 100_000, 200_000, 400_000),
    "moments in d": (192, 384, 768, 1536),
    "moments in cells": (4, 14, 56, 200, 400),
    "transform in n": (50_000, 100_000, 200_000, 400_000),
    "transform in d": (192, 384, 768, 1536),
    "transform in cells": (4, 14, 56, 200),
    "projection in d": (512, 768, 1152, 1728),
    "projection in groups": (250, 500, 1000, 2000),
}


class Exponent(NamedTuple):
    """Slope of log time over log size, its standard error, and the largest residual as a factor."""

    slope: float
    standard_error: float
    residual: float


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> Exponent:
    x, t = np.log(np.asarray(sizes, dtype=float)), np.log(np.asarray(seconds, dtype=float))
    centred = x - x.mean()
    slope = float(centred @ t / (centred @ centred))
    residuals = t - t.mean() - slope * centred
    spread = float(residuals @ residuals) / max(1, len(x) - 2)
    return Exponent(slope, float(np.sqrt(spread / (centred @ centred))), float(np.exp(np.abs(residuals).max())))


def exponent_of(measurement: Measurement) -> Exponent:
    return exponent(SIZES[measurement.case.variant], [result.median for result in measurement.results])


def contest(case: Case, threads: int) -> Contest:
    """``variant`` is a key of ``SIZES``; the case's own sizes are those that do not grow."""
    operation, _, quantity = case.variant.partition(" in ")
    make = {"moments": moments, "transform": transform, "projection": projection}[operation]
    name = {"n": "n_rows", "d": "n_features", "cells": "n_cells", "groups": "n_groups"}[quantity]
    sizes = SIZES[case.variant]
    fixed = {"n_rows": case.n_rows, "n_features": case.n_features, "n_cells": case.n_cells}
    return Contest([Contender(f"{size:,}", "ours", make(**{**fixed, name: size})) for size in sizes])


def moments(n_rows: int, n_features: int, n_cells: int) -> Callable[[], Any]:
    K = n_cells // 2
    X, y, a = problems.rows_of_cells(n_rows, K, N_GROUPS, n_features)
    labels: dict[str, Any] = {"classes": range(K), "groups": range(N_GROUPS)}
    return lambda: SubgroupMoments(n_features, **labels).update(X, y, a).covariances


def transform(n_rows: int, n_features: int, n_cells: int) -> Callable[[], Any]:
    G = n_cells // 2
    X, _, codes = problems.rows_of_cells(n_rows, 1, G, n_features)
    maps = AffineMaps.at_strength(*random_maps(G, n_features), 1.0)
    return lambda: maps.apply(X, codes)


def projection(n_rows: int, n_features: int, n_cells: int, n_groups: int = N_GROUPS) -> Callable[[], Any]:
    data = problems.statistics(n_cells // N_GROUPS, n_groups, n_features)
    moments = SubgroupMoments.from_statistics(data.weights, data.means, data.covariances)
    return lambda: nearest_ideal(moments).maps
