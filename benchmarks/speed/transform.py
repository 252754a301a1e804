"""Affine maps of rows: fairsteer, NumPy, POT; and the latency of a single row beside scikit-learn's PCA."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from benchmarks import problems, reference
from benchmarks.speed import limits
from benchmarks.speed.contest import Case, Contender, Contest, relative
from fairsteer import FairSteeringTransformer
from fairsteer.transformer._maps import AffineMaps

# Of float64 products of the same numbers.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

# Rows whose answers are checked.
CHECKED = 2000


def fitted(n_features: int, n_groups: int, dtype: str) -> FairSteeringTransformer:
    """A transformer fitted to few rows: how many they were does not matter to what follows."""
    n_rows = max(1000, 3 * n_features) * n_groups
    X, y, a = problems.rows_of_cells(n_rows, 2, n_groups, n_features, dtype=dtype, seed=1)
    return FairSteeringTransformer().fit(X, y, sensitive_features=a)


def random_maps(n_groups: int, d: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    return np.eye(d) + rng.standard_normal((n_groups, d, d)) / d, rng.standard_normal((n_groups, d))


def pot(A: NDArray[np.float64], b: NDArray[np.float64], dtype: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """POT's own transform with this map."""
    from ot.da import LinearTransport

    rows = np.random.default_rng(0).standard_normal((4, 2)).astype(dtype)
    transport = LinearTransport().fit(Xs=rows, Xt=rows)
    transport.A_, transport.B_ = np.ascontiguousarray(A.T, dtype), b.astype(dtype)[None]
    return functools.partial(_transported, transport)


def _transported(transport: Any, rows: NDArray[Any]) -> NDArray[Any]:
    moved: NDArray[Any] = transport.transform(Xs=rows)
    return moved


def contest(case: Case, threads: int) -> Contest:
    """``variant``: "transformer" has the whole of ``transform``, "maps" the maps alone, with random ones."""
    d, G, dtype = case.n_features, case.n_cells // 2, case.dtype
    X, _, codes = problems.rows_of_cells(case.n_rows, 1, G, d, dtype=dtype)
    steer = fitted(d, G, dtype) if case.variant == "transformer" else None
    if steer is not None:
        A, b = (np.array(part) for part in zip(*steer.maps_.values(), strict=True))
    else:
        A, b = random_maps(G, d)
    maps = AffineMaps.at_strength(A, b, 1.0)
    checked = X[:CHECKED].astype(np.float64)
    truth = np.empty_like(checked)
    for g in range(G):
        rows = codes[:CHECKED] == g
        truth[rows] = checked[rows] @ A[g].T + b[g]

    def error(answer: Any) -> float:
        return relative(answer[:CHECKED], truth)

    tolerance = TOLERANCE[dtype]
    moves = [pot(A[g], b[g], dtype) for g in range(G)]

    def by_pot() -> NDArray[Any]:
        out = np.empty_like(X)
        for g in range(G):
            rows = codes == g
            out[rows] = moves[g](X[rows])
        return out

    low, shift = A.astype(dtype), b.astype(dtype)

    def by_numpy() -> NDArray[Any]:
        out = np.empty_like(X)
        for g in range(G):
            rows = np.flatnonzero(codes == g)
            moved = X[rows] @ low[g].T
            moved += shift[g]
            out[rows] = moved
        return out

    contenders = [Contender("fairsteer, maps alone", "ours", lambda: maps.apply(X, codes)[0], error, tolerance)]
    if steer is not None:
        whole = functools.partial(steer.transform, X, sensitive_features=codes)
        contenders.insert(0, Contender("fairsteer, transform", "ours", whole, error, tolerance))
    contenders += [
        Contender("NumPy reference", "same", lambda: reference.apply_maps(X, codes, A, b), error, tolerance),
        Contender("NumPy, maps in the rows' dtype", "same", by_numpy, error, tolerance),
        Contender("POT LinearTransport per group", "same", by_pot, error, tolerance),
        limits.gemm(X, A[0], allocate=False),
        limits.gemm(X, A[0], allocate=True),
    ]
    return Contest(contenders + limits.memory([X], threads), X.nbytes)


def latency(case: Case, threads: int) -> Contest:
    """One row at a time, groups as an array of one integer."""
    d, dtype = case.n_features, case.dtype
    steer = fitted(d, 2, dtype)
    X, _, codes = problems.rows_of_cells(case.n_rows, 1, 2, d, dtype=dtype)
    row, code = X[:1], codes[:1]
    A, b = steer.maps_[int(code[0])]
    pca = PCA(n_components=d, svd_solver="covariance_eigh").fit(X)
    centred, components = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64), pca.components_.astype(np.float64)
    truth, projected = row.astype(np.float64) @ A.T + b, centred[:1] @ components.T
    linear, offset = (np.array(part) for part in zip(*steer.maps_.values(), strict=True))
    maps = AffineMaps.at_strength(linear, offset, 1.0)
    matrix, shift = A.astype(dtype), b.astype(dtype)
    tolerance = TOLERANCE[dtype]

    def contender(name: str, kind: Any, run: Callable[[], Any], oracle: NDArray[np.float64]) -> Contender:
        # The sums of one row cancel more than the largest of many.
        return Contender(name, kind, run, lambda answer: relative(answer, oracle), 10 * tolerance, calls=100)

    return Contest(
        [
            contender("fairsteer, transform", "ours", lambda: steer.transform(row, sensitive_features=code), truth),
            contender("fairsteer, maps alone", "ours", lambda: maps.apply(row, code)[0], truth),
            contender("scikit-learn PCA.transform", "peer", lambda: pca.transform(row), projected),
            Contender("one row times the matrix", "limit", lambda: row @ matrix.T + shift, calls=100),
        ]
    )
