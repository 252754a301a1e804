"""From rows to fitted maps: fairsteer beside the methods that people use for the same purpose."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis

from benchmarks import problems, reference
from benchmarks.speed.contest import Case, Contender, Contest, relative
from fairsteer import FairSteeringTransformer

N_GROUPS = 2

# fairsteer: of the divergence, which stops at 1e-6 of it. Peers: of their own maps from the same rows in float64.
TOLERANCE = 1e-5
TOLERANCE_OF_PEERS = 0.1

# What POT adds to the covariances' diagonals (its default is 1e-8, too little for float32).
REGULARISATION = 1e-5


def contest(case: Case, threads: int) -> Contest:
    import torch

    torch.set_num_threads(threads)
    K = case.n_classes
    X, y, a = problems.rows_of_cells(case.n_rows, K, N_GROUPS, case.n_features, dtype=case.dtype)

    def ours() -> FairSteeringTransformer:
        return FairSteeringTransformer().fit(X, y, sensitive_features=a)

    @functools.cache
    def truth() -> tuple[reference.Moments, float]:
        plain = reference.moments(X, y, a, K, N_GROUPS)
        intensities = reference.shrinkage_intensities(X, y, a, K, N_GROUPS, "ledoit_wolf")
        data = replace(plain, covariances=reference.shrunk(plain.covariances, intensities))
        return data, reference.nearest_ideal(data, tol=1e-10, reduce=True).kl_divergence

    def error(steer: FairSteeringTransformer) -> float:
        ideal, (data, divergence) = steer.ideal_, truth()
        by_definition, _ = reference.divergence(ideal.weights, ideal.means, ideal.covariances, data)
        return max(abs(value / divergence - 1) for value in (ideal.kl_divergence, by_definition))

    contenders = [Contender("fairsteer", "ours", ours, error, TOLERANCE)]
    peers: list[tuple[str, Callable[[NDArray[Any]], Callable[[], Any]]]] = [
        ("POT LinearTransport", lambda rows: pot(rows, a)),
        ("POT ot.gaussian", lambda rows: pot_gaussian(rows, a)),
        ("concept-erasure LEACE", lambda rows: leace(rows, a)),
        ("concept-erasure Quadratic", lambda rows: quadratic(rows, a)),
        ("scikit-learn QDA", lambda rows: qda(rows, y)),
    ]
    for name, prepared in peers:

        def own_error(answer: Any, prepared: Any = prepared) -> float:
            return relative(np.asarray(answer), np.asarray(prepared(X.astype(np.float64))()))

        contenders.append(Contender(name, "peer", prepared(X), own_error, TOLERANCE_OF_PEERS))
    return Contest(contenders, N_GROUPS * X.shape[1] ** 2 * 8)


# ---- peers: input prepared as each likes it best, outside the clock; each run returns its maps


def pot(X: NDArray[Any], a: NDArray[Any]) -> Callable[[], Any]:
    """The optimal-transport map between the groups; rows come apart by group already."""
    from ot.da import LinearTransport

    source, target = X[a == 0], X[a == 1]
    return lambda: LinearTransport(reg=REGULARISATION).fit(Xs=source, Xt=target).A_


def pot_gaussian(X: NDArray[Any], a: NDArray[Any]) -> Callable[[], Any]:
    """The function behind `LinearTransport`, without the inverse map."""
    from ot.gaussian import empirical_bures_wasserstein_mapping

    source, target = X[a == 0], X[a == 1]
    return lambda: empirical_bures_wasserstein_mapping(source, target, reg=REGULARISATION)[0]


def leace(X: NDArray[Any], a: NDArray[Any]) -> Callable[[], Any]:
    """Erases linear information on the group; one column says which of the two it is. Shrinks, as we do.

    Without the constraint on the trace, which costs products and may cost a decomposition.
    """
    import torch
    from concept_erasure import LeaceFitter

    x, z = torch.from_numpy(X), torch.from_numpy(a.astype(X.dtype))[:, None]

    def run() -> Any:
        eraser = LeaceFitter.fit(x, z, constrain_cov_trace=False).eraser
        return eraser.proj_left @ eraser.proj_right

    return run


def quadratic(X: NDArray[Any], a: NDArray[Any]) -> Callable[[], Any]:
    """Optimal transport of the groups to their barycentre."""
    import torch
    from concept_erasure import QuadraticFitter

    x, z = torch.from_numpy(X), torch.from_numpy(a)
    return lambda: QuadraticFitter.fit(x, z).eraser.ot_maps


def qda(X: NDArray[Any], y: NDArray[Any]) -> Callable[[], Any]:
    """Mean and covariance of two classes, decomposed; by eigenvalues, which is faster than its default here."""

    def run() -> Any:
        fitted = QuadraticDiscriminantAnalysis(solver="eigen").fit(X, y)
        parts = zip(fitted.rotations_, fitted.scalings_, strict=True)
        return np.array([(rotation * scaling) @ rotation.T for rotation, scaling in parts])

    return run
