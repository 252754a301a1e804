"""Moments of cells: fairsteer, NumPy, and the estimators of scikit-learn that form the same matrices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis

from benchmarks import problems, reference
from benchmarks.reference import Array
from benchmarks.speed import limits
from benchmarks.speed.contest import Case, Contender, Contest, Kind, relative
from fairsteer import SubgroupMoments

N_GROUPS = 2

# Of the float64 answer; fairsteer adds float32 products in float64, the rivals work in the dtype of the rows.
TOLERANCE = {"float32": 1e-5, "float64": 1e-11}
TOLERANCE_OF_RIVALS = {"float32": 1e-3, "float64": 1e-9}

# Beyond this its linear system takes minutes.
LARGEST_FOR_LDA = 2048


class Answer(NamedTuple):
    """Means (K, G, d), and covariances as the model has them."""

    means: Array
    covariances: Array


Codes = NDArray[np.integer[Any]]


def cells_in_order(y: Codes, a: Codes, n_cells: int) -> Iterator[tuple[int, int, NDArray[np.intp]]]:
    """Class, group and row numbers of every cell that has rows; one sort."""
    cell = y * N_GROUPS + a
    order = np.argsort(cell, kind="stable")
    bounds = np.searchsorted(cell[order], np.arange(n_cells + 1))
    for c in range(n_cells):
        if bounds[c + 1] > bounds[c]:
            yield c // N_GROUPS, c % N_GROUPS, order[bounds[c] : bounds[c + 1]]


def collected(
    X: NDArray[Any], y: Codes, a: Codes, n_classes: int, model: str, of_cell: Callable[[NDArray[Any]], tuple[Any, Any]]
) -> Answer:
    """Mean and covariance of every cell by ``of_cell``; the tied model averages the covariances of a group."""
    K, d = n_classes, X.shape[1]
    means = np.zeros((K, N_GROUPS, d))
    covariances = np.zeros((N_GROUPS, d, d) if model == "tied" else (K, N_GROUPS, d, d))
    weights = np.zeros(N_GROUPS)
    for k, g, rows in cells_in_order(y, a, K * N_GROUPS):
        mean, covariance = of_cell(X[rows])
        means[k, g] = mean
        if model == "tied":
            covariance *= len(rows)
            covariances[g] += covariance
            weights[g] += len(rows)
        else:
            covariances[k, g] = covariance
    if model == "tied":
        covariances /= weights[:, None, None]
    return Answer(means, covariances)


def numpy_cov(block: NDArray[Any]) -> tuple[Any, Any]:
    d = block.shape[1]
    return block.mean(axis=0), np.cov(block, rowvar=False, bias=True, dtype=block.dtype).reshape(d, d)


def own_dtype(block: NDArray[Any]) -> tuple[Any, Any]:
    """The reference's two passes in the dtype of the rows; NumPy calls syrk for ``block.T @ block``."""
    mean = block.mean(axis=0)
    block -= mean
    product = block.T @ block
    product /= len(block)
    return mean, product


def ledoit_wolf(block: NDArray[Any]) -> tuple[Any, Any]:
    fitted = LedoitWolf(store_precision=False).fit(block)
    return fitted.location_, fitted.covariance_


def lda(X: NDArray[Any], y: Codes, a: Codes, n_classes: int) -> Answer:
    """A discriminant analysis a group: its covariance is the tied one, its means are those of the classes."""
    means = np.zeros((n_classes, N_GROUPS, X.shape[1]))
    covariances = []
    for g in range(N_GROUPS):
        rows = a == g
        fitted = LinearDiscriminantAnalysis(solver="lsqr").fit(X[rows], y[rows])
        means[fitted.classes_, g] = fitted.means_
        covariances.append(fitted.covariance_)
    return Answer(means, np.array(covariances))


def qda(X: NDArray[Any], y: Codes, a: Codes, n_classes: int) -> Answer:
    """Cells as classes; by eigenvalues, which is several times faster than the default by singular values."""
    fitted = QuadraticDiscriminantAnalysis(solver="eigen", store_covariance=True).fit(X, y * N_GROUPS + a)
    d = X.shape[1]
    means = np.zeros((n_classes * N_GROUPS, d))
    covariances = np.zeros((n_classes * N_GROUPS, d, d))
    means[fitted.classes_], covariances[fitted.classes_] = fitted.means_, fitted.covariance_
    return Answer(means.reshape(n_classes, N_GROUPS, d), covariances.reshape(n_classes, N_GROUPS, d, d))


def worst(answer: Any, truth: reference.Moments) -> float:
    """Error of the worst covariance, or of the means if that is larger."""
    axes = (-1,) if truth.covariance == "diagonal" else (-2, -1)
    return max(relative(answer.covariances, truth.covariances, axes), relative(answer.means, truth.means))


def contest(case: Case, threads: int) -> Contest:
    K, model = case.n_classes, case.variant
    X, y, a = problems.rows_of_cells(case.n_rows, K, N_GROUPS, case.n_features, dtype=case.dtype)

    def update() -> SubgroupMoments:
        labels: dict[str, Any] = {"classes": range(K), "groups": range(N_GROUPS), "covariance": model}
        return SubgroupMoments(case.n_features, **labels).update(X, y, a)

    def ours() -> Answer:
        moments = update()
        return Answer(moments.means, moments.covariances)

    def ours_shrunk() -> Answer:
        moments = update().shrink("ledoit_wolf")
        return Answer(moments.means, moments.covariances)

    def theirs() -> reference.Moments:
        return reference.moments(X, y, a, K, N_GROUPS, covariance=model)

    # Double precision throughout, two passes a cell. Not before it is asked for: the process that measures memory
    # needs none.
    truth = functools.cache(theirs)

    @functools.cache
    def shrunk_truth() -> reference.Moments:
        intensities = reference.shrinkage_intensities(X, y, a, K, N_GROUPS, "ledoit_wolf", covariance=model)
        plain = truth()
        return replace(plain, covariances=reference.shrunk(plain.covariances, intensities))

    contenders: list[Contender] = []

    def add(name: str, run: Callable[[], Any], *, kind: Kind = "same", to: Callable[[], Any] = truth) -> None:
        stated = TOLERANCE if name.startswith("fairsteer") else TOLERANCE_OF_RIVALS
        contenders.append(Contender(name, kind, run, lambda answer: worst(answer, to()), stated[case.dtype]))

    add("fairsteer", ours, kind="ours")
    add("NumPy reference", theirs)
    if model != "diagonal":
        if case.dtype == "float32":
            add("NumPy in float32", lambda: collected(X, y, a, K, model, own_dtype))
        add("numpy.cov per cell", lambda: collected(X, y, a, K, model, numpy_cov))
    if model == "tied" and case.n_features <= LARGEST_FOR_LDA:
        add("scikit-learn LDA per group", lambda: lda(X, y, a, K))
    if model == "full":
        if len(X) > 2 * case.n_cells * case.n_features:  # it refuses covariances that are not of full rank
            add("scikit-learn QDA", lambda: qda(X, y, a, K))
        add("fairsteer, Ledoit-Wolf", ours_shrunk, kind="ours", to=shrunk_truth)
        add("scikit-learn LedoitWolf", lambda: collected(X, y, a, K, model, ledoit_wolf), to=shrunk_truth)
    contenders += [limits.syrk(X), *limits.memory([X, y, a], threads)]
    matrices = {"tied": N_GROUPS, "full": case.n_cells, "diagonal": case.n_cells / case.n_features}[model]
    return Contest(contenders, int(8 * case.n_features * (case.n_cells + matrices * case.n_features)))
