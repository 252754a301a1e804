"""Random statistics and rows, the same for the benchmarks and the tests. Every generator is fixed by its seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.reference import Array, Moments

Codes = NDArray[np.intp]


def wishart(rng: np.random.Generator, d: int, degrees: int) -> Array:
    """A covariance scattered about the identity; the more degrees of freedom, the closer."""
    rows = rng.standard_normal((degrees, d))
    return rows.T @ rows / degrees


def statistics(
    n_classes: int,
    n_groups: int,
    n_features: int,
    *,
    covariance: str = "tied",
    seed: int = 0,
    separation: float = 1.0,
    difference: float = 0.5,
    degrees: int | None = None,
) -> Moments:
    """Subgroup statistics of a population whose groups differ in means, covariances and class shares.

    ``separation`` is the spread of the class means, ``difference`` that of a subgroup's mean about
    its class's, both in standard deviations of a feature.
    """
    K, G, d = n_classes, n_groups, n_features
    rng = np.random.default_rng(seed)
    degrees = 2 * d + 2 if degrees is None else degrees
    weights = rng.uniform(50, 400, (K, G))
    means = separation * rng.standard_normal((K, 1, d)) + difference * rng.standard_normal((K, G, d))
    if covariance == "tied":
        return Moments(weights, means, np.array([wishart(rng, d, degrees) for _ in range(G)]), "tied")
    if covariance == "diagonal":
        return Moments(weights, means, rng.gamma(4, 0.25, (K, G, d)), "diagonal")
    cells = np.array([[wishart(rng, d, degrees) for _ in range(G)] for _ in range(K)])
    return Moments(weights, means, cells, "full")


def rows(
    n_rows: int,
    n_classes: int,
    n_groups: int,
    n_features: int,
    *,
    seed: int = 0,
    dtype: str = "float64",
) -> tuple[NDArray[np.floating], Codes, Codes]:
    """Rows with class and group codes; groups differ in mean, scale and orientation."""
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n_rows)
    a = rng.integers(n_groups, size=n_rows)
    mixing = np.eye(n_features) + rng.standard_normal((n_groups, n_features, n_features)) / (3 * np.sqrt(n_features))
    shift = rng.standard_normal((n_classes, n_groups, n_features))
    X = rng.standard_normal((n_rows, n_features))
    for g in range(n_groups):
        X[a == g] = X[a == g] @ mixing[g].T
    X += shift[y, a]
    return X.astype(dtype), y, a


def rows_of_cells(
    n_rows: int, n_classes: int, n_groups: int, n_features: int, *, dtype: str = "float32", seed: int = 0
) -> tuple[NDArray[np.floating], Codes, Codes]:
    """Many rows with class and group codes, formed in their dtype: cells differ in mean, groups in scale.

    Takes little memory beside the rows; features are independent, which no timing depends on.
    """
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n_rows)
    a = rng.integers(n_groups, size=n_rows)
    shift = (1 + rng.standard_normal((n_classes, n_groups, n_features))).astype(dtype)
    scale = rng.uniform(0.5, 2, (n_groups, n_features)).astype(dtype)
    X = np.empty((n_rows, n_features), dtype)
    fill: Any = rng.standard_normal  # whose types know no dtype that varies
    for start in range(0, n_rows, 8192):
        block = slice(start, start + 8192)
        fill(out=X[block], dtype=dtype)
        X[block] *= scale[a[block]]
        X[block] += shift[y[block], a[block]]
    return X, y, a
