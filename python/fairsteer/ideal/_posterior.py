"""The nearest ideal distribution without a family: of two classes, in the space of the posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, rel_entr, xlogy
from sklearn.utils import check_array, check_consistent_length

from fairsteer import _core
from fairsteer._utils.input import brief, few
from fairsteer._utils.types import Codes, Doubles
from fairsteer._utils.weights import check_sample_weight
from fairsteer.groups import GroupedRows
from fairsteer.ideal._cells import IdealPosteriorCells, nearest_ideal_cells
from fairsteer.ideal._ideal import Intervention
from fairsteer.ideal._posterior_parts import (
    MOST_LOGIT,
    VANISHING,
    ClassLaws,
    IdealOfRows,
    Mode,
    Solution,
    check_proba,
    clipped_proba,
    fields_of,
    laws_and_prior,
    reference_of,
    weights_alone,
)

#: Points of the grid of posteriors, where rows have more different ones; fewer where no solution is found on so many.
_N_POINTS = (400, 200, 100, 50)

#: Points that are nearer together, in log-odds, are one.
_CLOSEST = 1e-6

#: Distance in log-odds of ideal posteriors that are looked at, between few posteriors.
_TARGET_SPACING = 0.02

#: Half the width of a grid of one posterior.
_HALF_WIDTH = 0.5


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class IdealPosterior(IdealOfRows):
    """The ideal distribution nearest to one that is known through its posterior, P(second class | row, group).

    Returned by `nearest_ideal_posterior`. On it the posterior has the same law in every group.

    Attributes
    ----------
    logits : ndarray of shape (n_points,)
        Log-odds of the posteriors that occur, ascending.
    ideal_logits : ndarray of shape (n_groups, n_points)
        Log-odds of the ideal posteriors, rising.
    groups, intervention, mode, reference_group, laws, log_weights, source_group_prior, group_prior : object
        As explained in :class:`~fairsteer.ideal.IdealOfRows`; places are the points `logits`.
    kl_divergence, group_divergence, dual_gap, n_iter, converged : object
        Likewise.
    """

    logits: Doubles
    ideal_logits: Doubles

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return 2

    @property
    def h(self) -> dict[Any, tuple[Doubles, Doubles]]:
        """Group label to the posteriors that occur in the group, and the ideal ones that they become."""
        maps = {}
        for a, group in enumerate(self.groups.tolist()):
            own = self._own(a)
            maps[group] = expit(self.logits[own]), expit(self.ideal_logits[a, own])
        return maps

    def ideal_posterior(self, posterior: ArrayLike, group_codes: ArrayLike) -> Doubles:
        """Ideal posterior ``h_a(s)`` of rows: what P(second class) is on the ideal distribution.

        Parameters
        ----------
        posterior : array-like of shape (n_samples,) or (n_samples, 2)
            P(second class | row, group), in [0, 1], or both probabilities.
        group_codes : array-like of shape (n_samples,)
            Positions in `groups`.

        Returns
        -------
        ndarray of shape (n_samples,)
            Rising with the posterior within a group. Beyond the posteriors that the group had, log-odds change by as
            much as at the last of them.
        """
        return np.asarray(expit(self._interpolated(posterior, group_codes, self.ideal_logits, slope=1.0)))

    def _log_weights_of(self, posterior: ArrayLike, codes: Codes) -> Doubles:
        return self._interpolated(posterior, codes, self.log_weights, slope=0.0)

    def class_laws(self, k: int) -> dict[Any, ClassLaws]:
        """Group label to the laws of P(class `k`) in the group, as they are and on the ideal distribution."""
        laws, ideal = {}, self.ideal_laws
        for a, group in enumerate(self.groups.tolist()):
            own = self._own(a)
            s, t = expit(self.logits[own]), expit(self.ideal_logits[a, own])
            laws[group] = ClassLaws(s if k else 1 - s, self.laws[a, own], t if k else 1 - t, ideal[a, own])
        return laws

    def _own(self, a: int) -> NDArray[np.bool_]:
        """Points that occur in a group."""
        return np.asarray(self.laws[a] > 0)

    def _interpolated(self, posterior: ArrayLike, group_codes: ArrayLike, values: Doubles, *, slope: float) -> Doubles:
        logits = clipped_logits(posterior)
        codes = np.asarray(group_codes, dtype=np.intp)
        check_consistent_length(logits, codes)
        result = np.empty(len(logits))
        for a in range(len(self.groups)):
            rows, own = codes == a, self._own(a)
            grid, x = self.logits[own], logits[rows]
            beyond = x - np.clip(x, grid[0], grid[-1])
            result[rows] = np.interp(x, grid, values[a, own]) + slope * beyond
        return result

    def _joints(self) -> tuple[Doubles, Doubles]:
        ideal, own = (
            np.stack([law * prior[:, None] * (1 - proba), law * prior[:, None] * proba])
            for law, prior, proba in (
                (self.ideal_laws, self.group_prior, expit(self.ideal_logits)),
                (self.laws, self.source_group_prior, expit(self.logits)),
            )
        )
        return ideal, own


def nearest_ideal_posterior(
    posterior: ArrayLike,
    sensitive_features: Any,
    sample_weight: Any = None,
    *,
    intervention: Intervention = "all_subgroups",
    mode: Mode = "joint",
    reference_group: Any = None,
    max_iter: int = 100,
    tol: float = 1e-9,
) -> IdealPosterior | IdealPosteriorCells:
    """Nearest ideal distribution of rows, whatever their features follow.

    A distribution is ideal when every cost-sensitive Bayes classifier on it is exactly fair, which is so when its
    posterior has the same law in every group. The nearest one in KL divergence depends on a row through its own
    posterior alone: it weights the row and gives it a soft label, and leaves its features as they are.

    Parameters
    ----------
    posterior : array-like of shape (n_samples,) or (n_samples, n_classes)
        P(second class | row, group) of every row, in [0, 1], or a column for each of 2 to 10 classes: calibrated, and
        of rows that it was not fitted to.
    sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
        Groups.
    sample_weight : array-like of shape (n_samples,), default=None
        Non-negative weights.
    intervention : {"all_subgroups", "affirmative"}, default="all_subgroups"
        Whether every group may change, or one, the reference, keeps its law.
    mode : {"joint", "labels", "weights"}, default="joint"
        What may change: weights and labels; labels alone, rows keeping their weights; or weights alone, so that class
        and group become independent, as by reweighing (which equalises base rates, and is no ideal distribution).
    reference_group : object, default=None
        Label of the reference; None: the group with the most weight.
    max_iter : int, default=100
        Most steps of a solve.
    tol : float, default=1e-9
        Largest duality gap, in nats.

    Returns
    -------
    IdealPosterior or IdealPosteriorCells
        The ideal distribution, of two classes or of more.

    Raises
    ------
    ValueError
        If a posterior is no probability, there are more than 10 classes, groups are no discrete labels, or no row is
        left.

    Notes
    -----
    Rows with more than 400 different posteriors are put on a grid of so many log-odds, denser where rows are, each
    row split among its two neighbours so that its posterior stays what it is. Everything after that costs time and
    memory by the grid, not by rows. Posteriors beyond log-odds of 16 (1e-7 from 0 or 1) are moved there. Where groups
    are so far apart that the nearest ideal distribution would leave one out, they keep their shares, with a warning.

    More than two classes have no order, and the plans between posteriors and ideal ones no such form. Rows are put into
    at most 128 cells of the simplex (k-means on square roots of probabilities; fewer for more than 4 groups), and keep
    the mean posterior of their group in the cell. For given ideal posteriors the program is convex, and solved to the
    gap; the ideal posteriors begin at the centres of the cells and move to the geometric mean of what leads to them, as
    long as the divergence falls by a thousandth. Where they end is a local optimum.

    Examples
    --------
    >>> import numpy as np
    >>> from fairsteer.ideal import nearest_ideal_posterior
    >>> rng = np.random.default_rng(0)
    >>> group = rng.integers(0, 2, 5000)
    >>> posterior = rng.beta(2 + group, 2)
    >>> ideal = nearest_ideal_posterior(posterior, group)
    >>> t, weight = ideal.ideal_posterior(posterior, group), ideal.sample_weight(posterior, group)
    >>> mean = [float(np.average(t[group == a], weights=weight[group == a])) for a in (0, 1)]
    >>> bool(abs(mean[0] - mean[1]) < 0.01)
    True
    """
    for name, value, known in (("intervention", intervention, get_args(Intervention)), ("mode", mode, get_args(Mode))):
        if value not in known:
            msg = f"{name} must be one of {few(map(repr, known))}, not {brief(value)}."
            raise ValueError(msg)
    of_classes = np.ndim(posterior) == 2 and np.shape(posterior)[1] != 2
    values = clipped_proba(posterior) if of_classes else clipped_logits(posterior)
    weight = check_sample_weight(sample_weight, values)
    grouped = GroupedRows.read(sensitive_features, values, weight, purpose="there is nothing to make ideal")
    kept = grouped.kept
    weight = np.ones(len(values)) if weight is None else weight
    nearest: Any = nearest_ideal_cells if of_classes else _nearest
    ideal: IdealPosterior | IdealPosteriorCells = nearest(
        values[kept], grouped.codes[kept], weight[kept], grouped.groups, intervention, mode, reference_group,
        max_iter, tol,
    )  # fmt: skip
    return ideal


def _nearest(
    logits: Doubles,
    codes: Codes,
    weight: Doubles,
    groups: NDArray[Any],
    intervention: Intervention,
    mode: Mode,
    reference_group: Any,
    max_iter: int,
    tol: float,
) -> IdealPosterior:
    solution: Solution | None = None
    for n_points in _N_POINTS:
        points, totals = on_grid(logits, codes, weight, len(groups), n_points)
        laws, prior = laws_and_prior(totals)
        reference = reference_of(reference_group, groups, prior) if intervention == "affirmative" else -1
        if mode == "labels":
            solution = _labels_alone(points, laws, prior, reference)
        elif mode == "weights":
            solution = _weights_alone(points, laws, prior, reference)
        else:
            solution = _joint(points, laws, prior, intervention, reference, max_iter, tol, n_points)
        if solution is not None and solution.converged:
            break
    if solution is None:
        msg = (
            "No ideal distribution was found: the groups' posteriors are too far apart. Look at their calibration, or "
            "use mode='labels', which is known in closed form."
        )
        raise ValueError(msg)
    return IdealPosterior(logits=points, **fields_of(solution, laws, prior, groups, intervention, mode, reference))


def clipped_logits(posterior: ArrayLike) -> Doubles:
    """Log-odds of probabilities of the second class, (n,), or of both, (n, 2); those of no probability refused."""
    if np.ndim(posterior) == 2:
        proba = clipped_proba(posterior)
        if proba.shape[1] != 2:
            msg = f"posterior has {proba.shape[1]} columns, and there are 2 classes."
            raise ValueError(msg)
        return np.asarray(np.clip(np.log(proba[:, 1] / proba[:, 0]), -MOST_LOGIT, MOST_LOGIT))
    proba = check_array(posterior, ensure_2d=False, dtype=np.float64, input_name="posterior")
    if proba.ndim != 1:
        msg = (
            "posterior must have one dimension, P(second class) of every row, or two, a column a class; got shape "
            f"{proba.shape}."
        )
        raise ValueError(msg)
    check_proba(proba)
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(logit(proba), -MOST_LOGIT, MOST_LOGIT))


def on_grid(logits: Doubles, codes: Codes, weight: Doubles, n_groups: int, n_points: int) -> tuple[Doubles, Doubles]:
    """Points of a grid of log-odds, and the weight of every group on them, (n_groups, n_points)."""
    points, place = np.unique(logits, return_inverse=True)
    if len(points) <= n_points:
        if len(points) == 1:
            points = points[0] + _HALF_WIDTH * np.array([-1.0, 0.0, 1.0])
            place = np.ones_like(place)
        cells = codes * len(points) + place
        return points, _totals(cells, weight, n_groups * len(points)).reshape(n_groups, -1)
    points = _spread_points(points, _totals(codes * len(points) + place, weight, n_groups * len(points)), n_points)
    place = np.clip(np.searchsorted(points, logits, side="right") - 1, 0, len(points) - 2)
    proba, at = expit(points), expit(logits)
    # Measured from the nearer end of [0, 1], where differences keep their digits.
    upper = np.clip((at - proba[place]) / (proba[place + 1] - proba[place]), 0, 1)
    totals = np.zeros(n_groups * len(points))
    for step, part in ((0, 1 - upper), (1, upper)):
        totals += np.bincount(codes * len(points) + place + step, weight * part, len(totals))
    return points, totals.reshape(n_groups, -1)


def _totals(cells: Codes, weight: Doubles, n_cells: int) -> Doubles:
    return np.bincount(cells, weight, n_cells).astype(np.float64, copy=False)


def _spread_points(points: Doubles, totals: Doubles, n_points: int) -> Doubles:
    """Points of a grid: half of them equally spaced, half where rows are, all groups counting alike."""
    of_group = totals.reshape(-1, len(points))
    rows = np.cumsum((of_group / of_group.sum(axis=1, keepdims=True)).mean(axis=0))
    level = (rows + (points - points[0]) / (points[-1] - points[0])) / (rows[-1] + 1)
    grid = np.interp(np.linspace(level[0], 1, n_points), level, points)
    return np.asarray(grid[np.append(True, np.diff(grid) > _CLOSEST)])


def _joint(
    points: Doubles,
    laws: Doubles,
    prior: Doubles,
    intervention: Intervention,
    reference: int,
    max_iter: int,
    tol: float,
    n_points: int,
) -> Solution | None:
    """Solve on a grid of about so many points; None if no finite solution is found."""
    target = points
    if intervention == "all_subgroups" and len(points) < n_points:
        # Between few posteriors ideal ones may lie anywhere.
        width = points[-1] - points[0]
        n_targets = int(np.clip(width / _TARGET_SPACING, 16, n_points // 2))
        target = np.unique(np.append(points, np.linspace(points[0], points[-1], n_targets)))
        target = target[np.append(True, np.diff(target) > _CLOSEST)]

    def solve(free_shares: bool) -> dict[str, Any] | None:
        try:
            return _core.nearest_ideal_posterior(
                points, np.ascontiguousarray(target), np.ascontiguousarray(laws), prior, intervention, reference,
                free_shares, max_iter, tol,
            )  # fmt: skip
        except _core.NumericalError:
            return None

    every = intervention == "all_subgroups"
    found, shares_kept = solve(every), False
    if every and (found is None or not found["converged"] or (found["shares"] < VANISHING * prior).any()):
        found, shares_kept = solve(False), True
    if found is None:
        return None
    ideal = logit(np.clip(found["posterior"], expit(-MOST_LOGIT), expit(MOST_LOGIT)))
    weights, divergence = found["log_ratio"], found["group_divergence"]
    if every:
        # Given the weights, the best ideal posteriors are known in closed form, and need no grid.
        ideal_laws = laws * np.exp(weights)
        ideal_laws /= ideal_laws.sum(axis=1, keepdims=True)
        labels = _labels_alone(points, ideal_laws, found["shares"], -1)
        ideal = labels.ideal["ideal_logits"]
        divergence = np.maximum(rel_entr(ideal_laws, laws).sum(axis=1), 0) + labels.group_divergence
    return Solution(
        weights,
        {"ideal_logits": ideal},
        found["shares"],
        divergence,
        found["gap"],
        found["n_iter"],
        found["converged"],
        shares_kept,
    )


def _labels_alone(points: Doubles, laws: Doubles, prior: Doubles, reference: int) -> Solution:
    """Quantile average of the groups' log-odds, in closed form: monotone couplings of the laws as they are."""
    ends = np.cumsum(laws, axis=1)
    ends[:, -1] = 1.0
    cuts = np.unique(np.append(0.0, ends))
    length, middle = np.diff(cuts), (cuts[1:] + cuts[:-1]) / 2
    at = np.stack([np.minimum(np.searchsorted(end, middle), len(points) - 1) for end in ends])
    own = points[at]
    common = own[reference] if reference >= 0 else prior @ own
    t = expit(common)
    spent = length * (t * (common - own) + np.logaddexp(0, own) - np.logaddexp(0, common))
    ideal = np.empty(laws.shape)
    for a, place in enumerate(at):
        mass = np.bincount(place, length, len(points))
        mean = np.bincount(place, length * t, len(points))
        occurs = mass > 0
        ideal[a] = np.interp(points, points[occurs], logit(mean[occurs] / mass[occurs]))
    if reference >= 0:
        ideal[reference] = points
    return Solution(np.zeros(laws.shape), {"ideal_logits": ideal}, prior, np.maximum(spent.sum(axis=1), 0))


def _weights_alone(points: Doubles, laws: Doubles, prior: Doubles, reference: int) -> Solution:
    """Class and group independent, at the least divergence; rows of a class and group keep what they follow."""
    positive = laws @ expit(points)
    own = np.stack([1 - positive, positive])  # (2, G)
    classes, shares, n_iter = weights_alone(own, prior, reference)
    weight = classes[:, None] / own
    s = expit(points)
    total = weight[1][:, None] * s + weight[0][:, None] * (1 - s)
    ideal = points + np.log(weight[1] / weight[0])[:, None]
    divergence = np.asarray(xlogy(classes[:, None], weight).sum(axis=0))
    return Solution(np.log(total), {"ideal_logits": ideal}, shares, np.maximum(divergence, 0), n_iter=n_iter)
