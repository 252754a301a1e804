"""The nearest ideal distribution without a family: of more than two classes, on cells of the simplex."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.optimize import linprog
from scipy.special import log_softmax, softmax, xlogy
from sklearn.cluster import KMeans
from sklearn.utils import check_consistent_length

from fairsteer import _core
from fairsteer._utils.types import Codes, Doubles
from fairsteer.ideal._ideal import Intervention
from fairsteer.ideal._posterior_parts import (
    VANISHING,
    ClassLaws,
    IdealOfRows,
    Mode,
    Solution,
    clipped_proba,
    fields_of,
    laws_and_prior,
    reference_of,
    weights_alone,
)

#: Cells of the simplex, of few groups and of many: a step of the solver costs their number cubed for each group.
_N_CELLS = (128, 48)

#: Decimals by which posteriors are told apart: a classifier's answer changes in its last digits with a row's place.
_DIGITS = 9

#: Rows that a cell should have in a group.
_ROWS_OF_A_CELL = 10

#: Rows that cells are chosen by.
_SAMPLE = 20_000

#: Rows whose cells are found at once.
_CHUNK = 8_192

#: Rounds in which ideal posteriors move, the duality gap in them, and the part of the divergence that one must gain.
_MOVES = 8
_LOOSE = 1e-4
_GAIN = 1e-3

#: Part of the duality gap asked for to which plans are found, which are less exact than their cost.
_EXACT = 1e-3

#: Duality gap of a linear program, in nats.
_LINEAR_GAP = 1e-9

#: Mass below which an ideal posterior is none.
_NO_MASS = 1e-9


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class IdealPosteriorCells(IdealOfRows):
    """The ideal distribution nearest to one of more than two classes that is known through its posterior.

    Returned by `nearest_ideal_posterior`. Rows of a group whose posteriors are alike, in one cell of the simplex, count
    as one. On the ideal distribution of these the posterior takes the values `targets`, with the same probabilities in
    every group: `plans` say which part of a cell gets which of them.

    Attributes
    ----------
    centers : ndarray of shape (n_cells, n_classes)
        Posteriors that the cells lie about: a row belongs to the one from which it diverges least.
    cell_posteriors : ndarray of shape (n_groups, n_cells, n_classes)
        Mean posterior of a group's rows in a cell.
    ideal_posteriors : ndarray of shape (n_groups, n_cells, n_classes)
        Mean ideal posterior of a group's rows in a cell.
    targets : ndarray of shape (n_targets, n_classes)
        Ideal posteriors; none with ``mode="weights"``, which leads to no ideal distribution.
    target_law : ndarray of shape (n_targets,)
        Their probabilities, the same in every group.
    plans : ndarray of shape (n_groups, n_cells, n_targets)
        Probabilities of cell and ideal posterior in every group of the ideal distribution; sums over cells are
        `target_law`.
    groups, intervention, mode, reference_group, laws, log_weights, source_group_prior, group_prior : object
        As explained in :class:`~fairsteer.ideal.IdealOfRows`; places are the cells.
    kl_divergence, group_divergence, dual_gap, n_iter, converged : object
        Likewise; `dual_gap` is that for these cells, targets and shares.
    """

    centers: Doubles
    cell_posteriors: Doubles
    ideal_posteriors: Doubles
    targets: Doubles
    target_law: Doubles
    plans: Doubles

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return int(self.centers.shape[1])

    @property
    def h(self) -> dict[Any, tuple[Doubles, Doubles]]:
        """Group label to the posteriors of the cells that occur in the group, and the ideal ones that they become."""
        maps = {}
        for a, group in enumerate(self.groups.tolist()):
            own = self.laws[a] > 0
            maps[group] = self.cell_posteriors[a, own], self.ideal_posteriors[a, own]
        return maps

    def ideal_posterior(self, posterior: ArrayLike, group_codes: ArrayLike) -> Doubles:
        """Ideal posterior ``h_a(s)`` of rows: the probabilities of the classes on the ideal distribution.

        Parameters
        ----------
        posterior : array-like of shape (n_samples, n_classes)
            P(class | row, group), every row of sum 1.
        group_codes : array-like of shape (n_samples,)
            Positions in `groups`.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Within a cell all log-odds change by as much as those of the cell's mean.
        """
        proba, codes, cell = self._placed(posterior, group_codes)
        change = np.log(self.ideal_posteriors[codes, cell]) - np.log(self.cell_posteriors[codes, cell])
        return np.asarray(softmax(np.log(proba) + change, axis=1))

    def _log_weights_of(self, posterior: ArrayLike, codes: Codes) -> Doubles:
        _, _, cell = self._placed(posterior, codes)
        return np.asarray(self.log_weights[codes, cell])

    def class_laws(self, k: int) -> dict[Any, ClassLaws]:
        """Group label to the laws of P(class `k`) in the group, as they are and on the ideal distribution."""
        laws, ideal = {}, self.ideal_laws
        for a, group in enumerate(self.groups.tolist()):
            own = self.laws[a] > 0
            t, mass = self.ideal_posteriors[a, own, k], ideal[a, own]
            if len(self.targets):
                t, mass = self.targets[:, k], self.plans[a].sum(axis=0)
            laws[group] = ClassLaws(self.cell_posteriors[a, own, k], self.laws[a, own], t, mass)
        return laws

    def _placed(self, posterior: ArrayLike, group_codes: ArrayLike) -> tuple[Doubles, Codes, Codes]:
        """Posteriors, groups and cells of rows; only cells that occur in the group of a row."""
        proba, codes = clipped_proba(posterior), np.asarray(group_codes, dtype=np.intp)
        check_consistent_length(proba, codes)
        if proba.shape[1] != self.n_classes:
            msg = f"posterior has {proba.shape[1]} columns, and there are {self.n_classes} classes."
            raise ValueError(msg)
        cell = np.empty(len(codes), dtype=np.intp)
        for a, law in enumerate(self.laws):
            rows, own = np.flatnonzero(codes == a), np.flatnonzero(law > 0)
            cell[rows] = own[_nearest(proba[rows], self.centers[own])]
        return proba, codes, cell

    def _joints(self) -> tuple[Doubles, Doubles]:
        """Probabilities of class, group and, flat, cell and ideal posterior; on the ideal distribution and as it is."""
        K, G = self.n_classes, len(self.groups)
        own = self.cell_posteriors * (self.laws * self.source_group_prior[:, None])[:, :, None]
        if not len(self.targets):
            ideal = self.ideal_posteriors * (self.ideal_laws * self.group_prior[:, None])[:, :, None]
            return np.moveaxis(ideal, 2, 0), np.moveaxis(own, 2, 0)
        mass = self.plans.sum(axis=2, keepdims=True)
        parts = np.divide(self.plans, mass, out=np.zeros_like(self.plans), where=mass > 0)
        ideal = np.einsum("a,act,tk->kact", self.group_prior, self.plans, self.targets)
        own = np.einsum("ack,act->kact", own, parts)
        return ideal.reshape(K, G, -1), own.reshape(K, G, -1)


def nearest_ideal_cells(
    proba: Doubles,
    codes: Codes,
    weight: Doubles,
    groups: NDArray[Any],
    intervention: Intervention,
    mode: Mode,
    reference_group: Any,
    max_iter: int,
    tol: float,
) -> IdealPosteriorCells:
    """Nearest ideal distribution of rows with valid posteriors, (n_samples, n_classes)."""
    centers, posteriors, totals = _cells(proba, codes, weight, len(groups))
    laws, prior = laws_and_prior(totals)
    reference = reference_of(reference_group, groups, prior) if intervention == "affirmative" else -1
    if mode == "weights":
        solution = _weights_alone(posteriors, laws, prior, reference)
    elif len(groups) == 1:
        solution = _unchanged(posteriors, laws, prior)
    else:
        solution = _by_plans(posteriors, laws, prior, centers, mode, reference, max_iter, tol)
    return IdealPosteriorCells(
        centers=centers,
        cell_posteriors=posteriors,
        **fields_of(solution, laws, prior, groups, intervention, mode, reference),
    )


# ---- cells


def _cells(proba: Doubles, codes: Codes, weight: Doubles, n_groups: int) -> tuple[Doubles, Doubles, Doubles]:
    """Centres, (C, K); mean posteriors of every group in the cells, (G, C, K), and their weights, (G, C)."""
    most = int(np.clip(_N_CELLS[0] * np.sqrt(4 / n_groups), _N_CELLS[1], _N_CELLS[0]))
    centers = _centers(proba, codes, weight, n_groups, most)
    n_cells, K = centers.shape
    cell = codes * n_cells + _nearest(proba, centers)
    totals: Doubles = np.bincount(cell, weight, n_groups * n_cells).astype(np.float64).reshape(n_groups, n_cells)
    sums = np.stack([np.bincount(cell, weight * proba[:, k], n_groups * n_cells) for k in range(K)], axis=1)
    occurs = totals.any(axis=0)
    totals, centers = totals[:, occurs], centers[occurs]
    sums = sums.reshape(n_groups, n_cells, K)[:, occurs]
    posteriors = np.divide(
        sums, totals[:, :, None], out=np.broadcast_to(centers, sums.shape).copy(), where=totals[:, :, None] > 0
    )
    return centers, posteriors / posteriors.sum(axis=2, keepdims=True), totals


def _centers(proba: Doubles, codes: Codes, weight: Doubles, n_groups: int, most: int) -> Doubles:
    """Posteriors that cells lie about: those that occur, or about as many as rows allow, denser where rows are."""
    rounded = np.round(proba, _DIGITS)
    order = np.lexsort(rounded.T)  # so that the order of rows does not matter
    first = np.append(True, (np.diff(rounded[order], axis=0) != 0).any(axis=1))
    if first.sum() <= most:
        return np.asarray(proba[order[first]])
    n_cells = int(np.clip(len(proba) // (_ROWS_OF_A_CELL * n_groups), proba.shape[1], most))
    rows = order[np.linspace(0, len(order) - 1, min(len(order), _SAMPLE)).astype(np.intp)]
    of_group = np.bincount(codes[rows], weight[rows], n_groups)
    importance = weight[rows] / of_group[codes[rows]]  # all groups count alike
    # Squared distances of square roots are divergences, but for factors and higher orders.
    roots = np.sqrt(proba[rows])
    found = KMeans(n_cells, n_init=1, max_iter=30, random_state=0).fit(roots, sample_weight=importance)
    centers: Doubles = np.square(found.cluster_centers_)
    return np.unique(centers / centers.sum(axis=1, keepdims=True), axis=0)


def _nearest(proba: Doubles, centers: Doubles) -> Codes:
    """Position of the centre from which each row diverges least, the first of several."""
    logs = np.log(centers).T
    found = np.empty(len(proba), dtype=np.intp)
    for start in range(0, len(proba), _CHUNK):
        part = slice(start, start + _CHUNK)
        found[part] = (proba[part] @ logs).argmax(axis=1)
    return found


# ---- programs


def _ideal(posteriors: Doubles, targets: Doubles, law: Doubles, plans: Doubles) -> dict[str, Doubles]:
    return {"ideal_posteriors": posteriors, "targets": targets, "target_law": law, "plans": plans}


def _unchanged(posteriors: Doubles, laws: Doubles, prior: Doubles) -> Solution:
    """One group is ideal as it is."""
    return Solution(
        np.zeros(laws.shape), _ideal(posteriors, posteriors[0].copy(), laws[0].copy(), np.diag(laws[0])[None]), prior,
        np.zeros(1),
    )  # fmt: skip


def _weights_alone(posteriors: Doubles, laws: Doubles, prior: Doubles, reference: int) -> Solution:
    """Class and group independent, at the least divergence; rows of a class and group keep what they follow."""
    own = np.einsum("ac,ack->ka", laws, posteriors)
    classes, shares, n_iter = weights_alone(own, prior, reference)
    weight = (classes[:, None] / own).T[:, None, :]  # (G, 1, K)
    joint = posteriors * weight
    total = joint.sum(axis=2)
    K = len(own)
    divergence = np.asarray(xlogy(classes[:, None], classes[:, None] / own).sum(axis=0))
    return Solution(
        np.log(total), _ideal(joint / total[:, :, None], np.empty((0, K)), np.empty(0), np.empty((*laws.shape, 0))),
        shares, np.maximum(divergence, 0), n_iter=n_iter,
    )  # fmt: skip


def _by_plans(
    posteriors: Doubles,
    laws: Doubles,
    prior: Doubles,
    centers: Doubles,
    mode: Mode,
    reference: int,
    max_iter: int,
    tol: float,
) -> Solution:
    """Plans from the cells of every group to common ideal posteriors, which move to where they cost least."""
    common = None
    targets = centers
    if reference >= 0:
        reached = laws[reference] > 0
        targets, common = posteriors[reference, reached], np.ascontiguousarray(laws[reference, reached])
    free = mode == "joint" and reference < 0

    def solve(tol: float) -> dict[str, Any] | None:
        costs, of_rows = costs_of(posteriors, targets), np.ascontiguousarray(laws)
        if mode == "labels":
            return _labels_alone(costs, of_rows, prior, common)
        try:
            found = _core.nearest_ideal_cells(costs, of_rows, prior, common, free, max_iter, _EXACT * tol)
        except _core.NumericalError:
            return None
        found["converged"] = found["converged"] or found["gap"] <= tol
        return found

    n_iter, before = 0, np.inf
    for _ in range(_MOVES if reference < 0 else 0):
        found = solve(_LOOSE)
        if found is None or (free and (not found["converged"] or (found["shares"] < VANISHING * prior).any())):
            if not free:
                break
            free = False
            continue
        n_iter += found["n_iter"]
        if found["kl_divergence"] > (1 - _GAIN) * before:
            break
        before = found["kl_divergence"]
        targets = _moved(found["plan"], found["shares"], posteriors)
    found = solve(tol)
    if free and (found is None or not found["converged"] or (found["shares"] < VANISHING * prior).any()):
        free = False
        found = solve(tol)
    if found is None:
        msg = (
            "No ideal distribution was found: the groups' posteriors are too far apart. Look at their calibration, or "
            "use mode='labels' or mode='weights'."
        )
        raise ValueError(msg)
    plans = found["plan"]
    mass = plans.sum(axis=2, keepdims=True)
    ideal = np.divide(plans @ targets, mass, out=posteriors.copy(), where=mass > 0)
    if reference >= 0:
        ideal[reference] = posteriors[reference]
    law = plans.sum(axis=1)
    target_law = found["target_law"] if common is not None else found["shares"] @ law / law.sum(axis=1).mean()
    return Solution(
        found["log_ratio"],
        _ideal(ideal / ideal.sum(axis=2, keepdims=True), targets, target_law / target_law.sum(), plans),
        found["shares"], np.maximum(found["group_divergence"], 0), found["gap"], n_iter + found["n_iter"],
        found["converged"], mode == "joint" and reference < 0 and not free,
    )  # fmt: skip


def _labels_alone(costs: Doubles, laws: Doubles, prior: Doubles, common: Doubles | None) -> dict[str, Any]:
    """Plans that keep the cells' probabilities, of least expected cost: a linear program for each given common law."""
    G, C, T = costs.shape
    sums = sparse.vstack([sparse.kron(sparse.eye(C), np.ones((1, T))), sparse.kron(np.ones((1, C)), sparse.eye(T))])
    if common is not None:
        of_groups = [_linear(cost.ravel(), sums, np.append(law, common)) for cost, law in zip(costs, laws, strict=True)]
        plans = np.stack([found.x.reshape(C, T) for found in of_groups])
        gap = float(prior @ [_gap(found, np.append(law, common)) for found, law in zip(of_groups, laws, strict=True)])
        n_iter = sum(found.nit for found in of_groups)
    else:
        minus_common = -sparse.vstack([sparse.csr_matrix((C, T)), sparse.eye(T)])
        equations = sparse.hstack([sparse.kron(sparse.eye(G), sums), sparse.vstack([minus_common] * G)])
        right = np.concatenate([np.append(law, np.zeros(T)) for law in laws])
        found = _linear(np.append((prior[:, None, None] * costs).ravel(), np.zeros(T)), equations, right)
        plans, gap, n_iter = found.x[:-T].reshape(G, C, T), _gap(found, right), found.nit
    spent = np.einsum("act,act->a", plans, costs)
    return {
        "plan": plans,
        "shares": prior,
        "log_ratio": np.zeros(laws.shape),
        "group_divergence": spent,
        "kl_divergence": float(prior @ spent),
        "target_law": plans.sum(axis=1).mean(axis=0),
        "gap": gap,
        "n_iter": int(n_iter),
        "converged": gap < _LINEAR_GAP,
    }


def _linear(costs: Doubles, equations: Any, right: Doubles) -> Any:
    found = linprog(costs, A_eq=equations.tocsr(), b_eq=right, method="highs")
    if found.x is None:
        msg = f"The linear program of mode='labels' has no solution: {found.message}"
        raise ValueError(msg)
    return found


def _gap(found: Any, right: Doubles) -> float:
    return max(0.0, float(found.fun - found.eqlin.marginals @ right))


def costs_of(posteriors: Doubles, targets: Doubles) -> Doubles:
    """kl(target || posterior) in nats of every group's cells, (G, C, T)."""
    entropy = xlogy(targets, targets).sum(axis=1)
    costs: Doubles = np.maximum(entropy - np.log(posteriors) @ targets.T, 0)
    return np.ascontiguousarray(costs)


def _moved(plans: Doubles, shares: Doubles, posteriors: Doubles) -> Doubles:
    """Ideal posteriors that cost least under the plans: geometric means of what leads to them."""
    mass = np.einsum("a,act->t", shares, plans)
    logs = np.einsum("a,act,ack->tk", shares, plans, np.log(posteriors))
    kept = mass > _NO_MASS * mass.sum()
    return np.asarray(np.exp(log_softmax(logs[kept] / mass[kept, None], axis=1)))
