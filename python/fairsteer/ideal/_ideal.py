"""The nearest ideal distribution, on which every cost-sensitive Bayes classifier is exactly fair."""

from __future__ import annotations

import copy
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning

from fairsteer import _core
from fairsteer._utils.html import cells_svg, certificate_facts, facts_html
from fairsteer._utils.input import brief, few
from fairsteer._utils.labels import label_text
from fairsteer._utils.threads import own_threads
from fairsteer.ideal._certificate import Certificate, SubgroupGaussians, cell_certificate
from fairsteer.ideal._restricted import in_common_frame, solve_restricted
from fairsteer.moments._density import Family, log_densities, relative_log_densities

if TYPE_CHECKING:
    from fairsteer._utils.types import CovarianceModel
    from fairsteer.moments import SubgroupMoments

FloatArray = NDArray[np.float64]


AffineMap = tuple[FloatArray, FloatArray]


Intervention = Literal["all_subgroups", "affirmative"]


MapType = Literal["affine", "symmetric", "diagonal", "translation"]


# Below this part of its share in the data a group has as good as left the ideal distribution.
_VANISHING = 0.01

# Subgroups that a notebook lists.
_LISTED = 40

# Log-densities below minus this have lost digits to the distance of their rows.
_FAR = 1e10

# What the core counts iterations in.
_MOST_ITERATIONS = 2**62


def _read_only(array: FloatArray) -> FloatArray:
    array.flags.writeable = False
    return array


def _gaussian_kl(mean: FloatArray, covariance: FloatArray, from_mean: FloatArray, from_covariance: FloatArray) -> float:
    """KL(N(mean, covariance) || N(from_mean, from_covariance)) in nats."""
    factor = cholesky(from_covariance, lower=True)
    scaled = solve_triangular(factor, cholesky(covariance, lower=True), lower=True)
    residual = solve_triangular(factor, mean - from_mean, lower=True)
    return float(0.5 * (np.sum(scaled**2) + residual @ residual - len(mean)) - np.log(np.diag(scaled)).sum())


@dataclass(frozen=True)
class IdealDistribution:
    """The ideal distribution D~ nearest to a distribution D, and the maps that lead to it.

    Returned by `nearest_ideal`; arrays are read-only.

    Attributes
    ----------
    classes, groups : ndarray
        Labels of the classes and groups.
    intervention, map_type, covariance : str
        As asked for.
    reference_group : object
        Label of the group that was left alone; None unless "affirmative".
    class_prior : ndarray of shape (n_classes,)
        P(y) on the ideal distribution, the same in every group.
    group_prior : ndarray of shape (n_groups,)
        P(a) on the ideal distribution.
    means : ndarray of shape (n_classes, n_groups, n_features)
        Subgroup means of the ideal distribution.
    canonical_means : ndarray of shape (n_classes, n_features)
        Class means in the common frame, into which `maps` lead.
    canonical_covariances : ndarray of shape (d, d), (n_classes, d, d) or (n_classes, d)
        Class covariances in the common frame for "tied", "full" and "diagonal".
    kl_divergence : float
        KL(D~ || D) in nats.
    subgroup_divergence : ndarray of shape (n_classes, n_groups)
        KL divergence of every subgroup in nats; 0 where no row was seen.
    maps : dict
        Group label to ``(A, b)``: rows of that group go to ``A @ x + b`` in the common frame, whatever their class.
    inverse_maps : dict
        Group label to ``(B, m)`` with ``x = B @ u + m``.
    objective_path : ndarray
        KL divergence at the start and after every iteration, never increasing: a round of the alternation for
        "all_subgroups", and for "affirmative" a step of the groups' own descents (a closed form needs none, and
        leaves one value).
    n_iter : int
        Iterations that were needed, at least 1.
    converged : bool
        Whether they ended because of `tol`, and maps that are equally near came to move points least.
    subgroups : SubgroupGaussians or None
        Gaussians of the subgroups, where more is known of them than the model says: `certificate` is about these.
    known_certificate : Certificate or None
        What `certificate` gives, where it was found before.
    """

    classes: NDArray[Any]
    groups: NDArray[Any]
    intervention: str
    reference_group: Any
    map_type: str
    covariance: CovarianceModel
    class_prior: FloatArray
    group_prior: FloatArray
    canonical_means: FloatArray
    canonical_covariances: FloatArray
    kl_divergence: float
    subgroup_divergence: FloatArray
    objective_path: FloatArray
    n_iter: int
    converged: bool
    source_weights: FloatArray
    source_means: FloatArray
    source_covariances: FloatArray
    linear: FloatArray
    offset: FloatArray
    subgroups: SubgroupGaussians | None = None
    known_certificate: Certificate | None = None

    def __post_init__(self) -> None:
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                _read_only(value)

    def __repr__(self) -> str:
        K, G, d = self.source_means.shape
        reference = "" if self.reference_group is None else f", reference_group={brief(self.reference_group)}"
        return (
            f"IdealDistribution({K} classes x {G} groups, {d} features, intervention={self.intervention!r}{reference}, "
            f"map_type={self.map_type!r}, covariance={self.covariance!r}, kl_divergence={self.kl_divergence:.4g}, "
            f"n_iter={self.n_iter}, converged={self.converged})"
        )

    def _repr_html_(self) -> str:
        numbers = (self.source_weights, self.weights, self.subgroup_divergence)
        cells = [
            (label_text(label), label_text(group), *(f"{x[k, a]:.3g}" for x in numbers))
            for k, label in enumerate(self.classes.tolist())
            for a, group in enumerate(self.groups.tolist())
        ]
        rows = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in cell)}</tr>" for cell in cells[:_LISTED])
        rest = f"<p>and {len(cells) - _LISTED} more subgroups</p>" if len(cells) > _LISTED else ""
        head = "".join(f"<th>{name}</th>" for name in ("class", "group", "share", "ideal share", "divergence (nats)"))
        title = "Divergence of every subgroup from the ideal one, in nats"
        picture = cells_svg(title, self.classes.tolist(), self.groups.tolist(), self.subgroup_divergence)
        facts = [
            ("KL divergence", f"{self.kl_divergence:.4g} nats"),
            ("maps", self.map_type),
            *self._certificate_facts(),
        ]
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{rest}"
        return f"<p>{escape(repr(self))}</p>{facts_html(facts)}{picture}{table}"

    @property
    def found_certificate(self) -> Certificate | None:
        """The certificate, if it has been found already."""
        return vars(self).get("certificate", self.known_certificate)

    def _certificate_facts(self) -> list[tuple[str, str]]:
        """Say what the certificate bounds, if it has been found."""
        certificate = self.found_certificate
        return [] if certificate is None else certificate_facts(certificate.equalized_odds, certificate.accuracy)

    @cached_property
    def weights(self) -> FloatArray:
        """Probability of every subgroup on the ideal distribution, (n_classes, n_groups): class times group prior."""
        return _read_only(np.outer(self.class_prior, self.group_prior))

    @cached_property
    def sample_weight(self) -> FloatArray:
        """What turns rows of D into rows of D~, (n_classes, n_groups): the ratio of weights; 0 for an empty cell."""
        seen = self.source_weights > 0
        return _read_only(np.divide(self.weights, self.source_weights, out=np.zeros_like(self.weights), where=seen))

    @cached_property
    def maps(self) -> dict[Any, AffineMap]:
        """Group label to (A, b), label-free, into the common frame."""
        return self._by_group(self.linear, self.offset)

    def _by_group(self, linear: FloatArray, offset: FloatArray) -> dict[Any, AffineMap]:
        return {g: (self._matrix(linear[a]), offset[a]) for a, g in enumerate(self.groups.tolist())}

    @staticmethod
    def _matrix(linear: FloatArray) -> FloatArray:
        return linear if linear.ndim == 2 else _read_only(np.diag(linear))

    @cached_property
    def inverse_linear(self) -> FloatArray:
        """Linear parts of `inverse_maps`, in the shape of `linear`."""
        if self.linear.ndim == 2:
            return _read_only(1 / self.linear)
        # In units of the features' own spread, which may differ by powers of ten.
        C = self.canonical_covariances
        scale = np.sqrt(np.atleast_2d(np.diagonal(C, axis1=-2, axis2=-1)).mean(axis=0))
        with own_threads() as n_threads:
            inverse = _core.invert(np.ascontiguousarray(self.linear / scale[:, None] * scale), n_threads)
        inverse *= scale[:, None]
        inverse /= scale
        return _read_only(inverse)

    @cached_property
    def inverse_offset(self) -> FloatArray:
        """Shifts of `inverse_maps`, (n_groups, n_features)."""
        if self.linear.ndim == 2:
            return _read_only(-self.inverse_linear * self.offset)
        return _read_only(-np.einsum("aij,aj->ai", self.inverse_linear, self.offset))

    @cached_property
    def inverse_maps(self) -> dict[Any, AffineMap]:
        """Group label to (B, m), from the common frame back."""
        return self._by_group(self.inverse_linear, self.inverse_offset)

    @cached_property
    def means(self) -> FloatArray:
        """Subgroup means of the ideal distribution, (n_classes, n_groups, n_features)."""
        if self.linear.ndim == 2:
            return _read_only(self.canonical_means[:, None] * self.inverse_linear + self.inverse_offset)
        return _read_only(
            np.swapaxes(self.canonical_means @ np.swapaxes(self.inverse_linear, 1, 2), 0, 1) + self.inverse_offset
        )

    @cached_property
    def covariances(self) -> FloatArray:
        """Subgroup covariances of the ideal distribution, in the shape that the moments have."""
        B, C = self.inverse_linear, self.canonical_covariances
        if self.covariance == "diagonal":
            return _read_only(B[None] ** 2 * C[:, None])
        if B.ndim == 2:
            squares = B[:, :, None] * B[:, None, :]
            return _read_only(squares * C if self.covariance == "tied" else squares[None] * C[:, None])
        with own_threads() as n_threads:
            families = np.ascontiguousarray(C if self.covariance == "full" else C[None])
            covariances = _core.map_covariances(np.ascontiguousarray(B), families, n_threads)
        return _read_only(covariances if self.covariance == "full" else covariances[0])

    @cached_property
    def subgroup_maps(self) -> dict[tuple[Any, Any], AffineMap]:
        """(class, group) to (A, b): the optimal-transport map of a subgroup to its ideal, for labelled rows.

        Subgroups without rows have none.
        """
        maps: dict[tuple[Any, Any], AffineMap] = {}
        for a, group in enumerate(self.groups.tolist()):
            for k, label in enumerate(self.classes.tolist()):
                if self.source_weights[k, a] > 0:
                    A, b = self._subgroup_map(k, a)
                    maps[label, group] = self._matrix(A), b
        return maps

    def _subgroup_map(self, k: int, a: int) -> AffineMap:
        """Map of one subgroup; its linear part (d, d) or, for "diagonal", the scales (d,)."""
        d = self.means.shape[2]
        diagonal = self.covariance == "diagonal"
        if self.intervention == "affirmative" and self.groups.tolist()[a] == self.reference_group:
            return _read_only(np.ones(d) if diagonal else np.eye(d)), _read_only(np.zeros(d))
        if diagonal:
            A = np.sqrt(self.covariances[k, a] / self.source_covariances[k, a])
            return _read_only(A), _read_only(self.means[k, a] - A * self.source_means[k, a])
        A = self._transports[a] if self.covariance == "tied" else self._transports[k, a]
        return _read_only(A), _read_only(self.means[k, a] - A @ self.source_means[k, a])

    @cached_property
    def _transports(self) -> dict[Any, FloatArray]:
        """Optimal-transport matrices by group when tied, else by class and group."""
        if self.covariance == "tied":
            cells: list[Any] = list(range(len(self.groups)))
        else:
            cells = [(int(k), int(a)) for k, a in np.argwhere(self.source_weights > 0)]
        return {cell: self._transport(self.source_covariances[cell], self.covariances[cell]) for cell in cells}

    @staticmethod
    def _transport(source: FloatArray, target: FloatArray) -> FloatArray:
        return _core.transport_map(np.ascontiguousarray(source), np.ascontiguousarray((target + target.T) / 2))

    @cached_property
    def model_certificate(self) -> Certificate:
        """What the divergence promises of the Gaussians of the model, `subgroup_divergence` and `kl_divergence`."""
        own = self.covariance == "full" or (self.covariance == "tied" and len(self.classes) == 1)
        return Certificate.of_divergences(self.subgroup_divergence, self.kl_divergence, "subgroups" if own else "model")

    @cached_property
    def certificate(self) -> Certificate:
        """What the maps promise of the Gaussians of the subgroups themselves; `model_certificate` if these are unknown.

        Found when first asked for, in a time that grows with the number of subgroups and the third power of that of
        the features.
        """
        if self.known_certificate is not None:
            return self.known_certificate
        if self.subgroups is None:
            return self.model_certificate
        return self.certify(self.subgroups)

    def certify(self, subgroups: SubgroupGaussians) -> Certificate:
        """Certify the maps against Gaussians of the subgroups.

        Parameters
        ----------
        subgroups : SubgroupGaussians
            Of these classes and groups.

        Returns
        -------
        certificate : Certificate
            What the maps promise of these.
        """
        return cell_certificate(
            subgroups,
            classes=self.classes.tolist(),
            linear=self.linear,
            offset=self.offset,
            model_means=self.source_means,
            model_covariances=self.source_covariances[None] if self.covariance == "tied" else self.source_covariances,
            class_prior=self.class_prior,
            group_prior=self.group_prior,
            reference=self.reference,
            unseen_divergence=self.subgroup_divergence,
        )

    @property
    def reference(self) -> int | None:
        """Position of the reference group; None unless "affirmative"."""
        return self.groups.tolist().index(self.reference_group) if self.intervention == "affirmative" else None

    def divergence_from(self, moments: SubgroupMoments) -> float:
        """KL(D~ || D') for other moments D' than those the ideal distribution was fitted to.

        A map that fits the noise of few rows has a small `kl_divergence` and a large divergence from the moments of
        rows that it has not seen.

        Parameters
        ----------
        moments : SubgroupMoments
            Moments of the same features, with these classes and groups (matched by label), of any covariance model,
            taken as they are.

        Returns
        -------
        divergence : float
            In nats. As in `nearest_ideal`, a subgroup without rows takes the weight of independence and adds nothing
            else.

        Raises
        ------
        ValueError
            When a class, a group or the number of features differs.
        """
        K, _, d = self.means.shape
        if moments.n_features != d:
            msg = f"The moments have {moments.n_features} features, the ideal distribution {d}."
            raise ValueError(msg)
        positions = []
        for name, own, other in (("class", self.classes, moments.classes), ("group", self.groups, moments.groups)):
            index = {label: i for i, label in enumerate(other.tolist())}
            missing = [label for label in own.tolist() if label not in index]
            if missing or len(other) != len(own):
                msg = (
                    f"The moments must have the {name} labels {few(map(repr, own.tolist()))}, not "
                    f"{few(map(repr, other.tolist()))}."
                )
                raise ValueError(msg)
            positions.append([index[label] for label in own.tolist()])
        cells = np.ix_(*positions)
        source = moments._positive_definite()[0]
        source = np.broadcast_to(source, (K, *source.shape)) if moments.covariance == "tied" else source
        source, weights, means = source[cells], moments.weights[cells], moments.means[cells]
        q = weights / weights.sum()
        q = np.where(q > 0, q, q.sum(axis=1, keepdims=True) * q.sum(axis=0))
        q /= q.sum()
        total = float(np.sum(self.weights * np.log(self.weights / q)))
        for k, a in np.argwhere(weights > 0):
            target = self.covariances[a] if self.covariance == "tied" else self.covariances[k, a]
            own, other = (np.diag(S) if S.ndim == 1 else S for S in (target, source[k, a]))
            total += self.weights[k, a] * _gaussian_kl(self.means[k, a], own, means[k, a], other)
        return total

    def log_posterior(self, U: ArrayLike) -> FloatArray:
        """Log P(y | u) of rows in the common frame, the same for every group.

        Parameters
        ----------
        U : array-like of shape (n_samples, n_features)
            Rows that `maps` have led into the common frame.

        Returns
        -------
        log_posterior : ndarray of shape (n_samples, n_classes)
            In nats; every row's exponentials sum to one.
        """
        rows = np.asarray(U, dtype=np.float64)
        with np.errstate(divide="ignore"):
            log_prior = np.log(self.class_prior)
        family = Family(self.canonical_means, self.canonical_covariances, self.covariance)
        out = log_prior + log_densities(rows, family)
        # Far away, what classes with one covariance differ by is lost beside their distances.
        least = -_FAR if self.covariance == "tied" else -np.finfo(np.float64).max
        far = ~(out[:, self.class_prior > 0] >= least).all(axis=1)
        if far.any():
            out[far] = log_prior + relative_log_densities(rows[far], [family])[0]
        out -= out.max(axis=1, keepdims=True)
        out -= logsumexp(out, axis=1, keepdims=True)
        return out


def nearest_ideal(
    moments: SubgroupMoments,
    *,
    intervention: Intervention = "all_subgroups",
    reference_group: Any = None,
    map_type: MapType = "affine",
    covariance: CovarianceModel = "tied",
    max_iter: int = 200,
    tol: float = 1e-6,
    max_time: float | None = None,
) -> IdealDistribution:
    """Project a distribution onto the ideal ones: the nearest in Kullback-Leibler divergence.

    A distribution is ideal when every cost-sensitive Bayes-optimal classifier on it is exactly fair: demographic
    parity, equal opportunity and equalized odds hold with gap 0 [1]_. Among Gaussians that is so when the groups
    are one family of class-conditionals seen through one invertible affine map each, with class and group
    independent.

    Parameters
    ----------
    moments : SubgroupMoments
        Weight, mean and covariance of every subgroup, taken as they are (call `SubgroupMoments.shrink` first).
        Directions in which a group does not vary are lifted to a relative floor.
    intervention : {"all_subgroups", "affirmative"}, default="all_subgroups"
        Whether every group may move, or all but the reference group.
    reference_group : object, default=None
        With "affirmative", the label of the group that is left alone; None takes the one of the largest weight.
    map_type : {"affine", "symmetric", "diagonal", "translation"}, default="affine"
        The nearest of all ideal distributions; the nearest reached by symmetric maps, the convex program of Theorem
        4.1 in [1]_ (with the heaviest class as its class i); by maps that scale and shift every feature for itself; or
        by shifts alone. The fewer ways a map has to move, the less it can do where rows are not Gaussian.
    covariance : {"tied", "full", "diagonal"}, default="tied"
        The model. "tied" pools the covariances of full moments; "full" and "diagonal" need moments of that kind.
        "diagonal" maps every feature for itself.
    max_iter : int, default=200
        Most rounds of the alternation ("all_subgroups"), and most iterations of a descent within one: Newton steps, or
        tens of quasi-Newton steps. With tied covariances and more than two groups, also most rounds in which maps that
        are equally near come to move points less.
    tol : float, default=1e-6
        Stop when the divergence is estimated to be this near to its limit, in nats, relative to max(1, KL).

    max_time : float, default=None
        Seconds after which the nearest distribution so far is returned; None: no limit. One factorisation is always
        finished.

    Returns
    -------
    ideal : IdealDistribution
        Frozen.

    Raises
    ------
    ValueError
        When a group has no row at all, or shares no class with the reference group; when the reference group is
        not among the groups; when the moments do not fit `covariance`.
    numpy.linalg.LinAlgError
        When a factorisation fails.

    Warns
    -----
    UserWarning
        When a subgroup is empty in a group that has others: those decide, and it takes the weight of independence.
    sklearn.exceptions.ConvergenceWarning
        When `max_iter` iterations, or `max_time` seconds, did not suffice: for the divergence, or for the least
        displacement.

    Notes
    -----
    The result follows from the numbers alone: other labels or another order of the classes and groups change nothing.
    Where several maps are equally near, points move as little as possible: directions that tell the classes nothing
    take the isometry, and features of "diagonal" the sign, of least displacement. Of optima that are equally near, the
    one found from the heaviest group is taken; among groups of equal weight, that whose mean is nearest to the mean of
    all rows, then that which varies least.

    It may be interrupted (Ctrl-C) between the steps of a solve.

    References
    ----------
    .. [1] Sharma, Deshpande, Bhattacharyya, Shah. "On Optimal Steering to Achieve Exact Fairness". NeurIPS 2025.
       arXiv:2509.15759.

    Examples
    --------
    >>> from fairsteer import SubgroupMoments, nearest_ideal
    >>> moments = SubgroupMoments.from_statistics(
    ...     weights=[[3, 1], [2, 4]],
    ...     means=[[[0.0], [1.0]], [[2.0], [4.0]]],
    ...     covariances=[[[1.0]], [[4.0]]],
    ...     groups=["F", "M"],
    ... )
    >>> ideal = nearest_ideal(moments, intervention="affirmative", reference_group="F")
    >>> round(ideal.kl_divergence, 3)
    0.201
    >>> ideal.maps["F"]
    (array([[1.]]), array([0.]))
    """
    start = time.perf_counter()
    for name, value, choices in (
        ("intervention", intervention, ("all_subgroups", "affirmative")),
        ("map_type", map_type, get_args(MapType)),
        ("covariance", covariance, ("tied", "full", "diagonal")),
    ):
        if value not in choices:
            msg = f"{name} must be one of {choices}, not {value!r}."
            raise ValueError(msg)
    if max_iter < 1:
        msg = f"max_iter must be at least 1, not {max_iter}."
        raise ValueError(msg)
    if not tol >= 0:
        msg = f"tol must not be negative, not {tol}."
        raise ValueError(msg)
    if max_time is not None and not max_time > 0:
        msg = f"max_time must be positive or None, not {max_time}."
        raise ValueError(msg)
    subgroups = None
    if covariance == "tied":
        if moments.covariance == "full" and moments.n_classes > 1:
            subgroups = SubgroupGaussians(copy.deepcopy(moments))
        moments = moments.tie()
    elif moments.covariance != covariance:
        msg = (
            f"covariance={covariance!r} needs moments of that kind, not {moments.covariance!r}; accumulate them with "
            f"SubgroupMoments(..., covariance={covariance!r})."
        )
        raise ValueError(msg)

    weights = moments.weights
    empty_groups = [label for label, w in zip(moments.groups.tolist(), weights.sum(axis=0), strict=True) if w == 0]
    if empty_groups:
        msg = f"group {empty_groups[0]!r} has no row of any class; drop it. Subgroups:\n{moments.subgroup_table()}"
        raise ValueError(msg)
    reference = -1
    if intervention == "affirmative":
        reference = reference_code(moments, reference_group)
    elif reference_group is not None:
        msg = (
            f"reference_group={reference_group!r} is read with intervention='affirmative' only; "
            "pass that, or leave it out."
        )
        raise ValueError(msg)
    # A class that nobody belongs to has no part in the problem.
    present = weights.sum(axis=1) > 0
    weights, means = weights[present], moments.means[present]
    covariances, _ = moments._positive_definite()
    if covariance != "tied":
        covariances = covariances[present]
    if moments.n_groups == 1:
        reference = 0  # one group is ideal as it is
    elif (weights == 0).any():
        _warn_of_empty_subgroups(moments)
    held = reference if reference >= 0 else None
    # With covariances of their own, subgroups make many small problems: one thread of BLAS serves these best, and bits
    # do not depend on how many there are.
    with own_threads() if covariance == "full" else nullcontext():
        try:
            left = None if max_time is None else max(0.0, max_time - (time.perf_counter() - start))
            if map_type == "translation" or (map_type == "diagonal" and covariance != "diagonal"):
                result = _nearest_restricted(
                    weights, means, covariances, covariance, map_type, held, max_iter, tol, left
                )
            else:
                result = _core.nearest_ideal(
                    covariance,
                    np.ascontiguousarray(weights),
                    np.ascontiguousarray(means),
                    np.ascontiguousarray(covariances),
                    "affirmative" if moments.n_groups == 1 else intervention,
                    reference,
                    "symmetric" if map_type == "diagonal" else map_type,
                    min(max_iter, _MOST_ITERATIONS),
                    tol,
                    np.inf if left is None else left,
                )
        except _core.NumericalError as error:
            raise np.linalg.LinAlgError(_numerical_message(error, moments, present)) from error
        except ValueError as error:
            msg = f"{error}. Subgroups:\n{moments.subgroup_table()}"
            raise ValueError(msg) from error
    if not result["converged"]:
        path = result["objective_path"]
        fell = f"from {path[-2]:.6g} to " if len(path) > 1 else "to "
        limits = f"max_iter={max_iter}, tol={tol:g}" + ("" if max_time is None else f", max_time={max_time:g}")
        more = f"Raise max_iter{'' if max_time is None else ' or max_time'}"
        what = (
            f"The divergence did not converge: it fell {fell}{path[-1]:.6g} nats in the last of "
            f"{result['n_iter']} iterations ({limits}). {more}; if"
            if result["moves_least"]
            else "The maps did not come to rest: as near to an ideal distribution as these, there are some that move "
            f"points less ({limits}). {more}; if"
        )
        warnings.warn(
            f"{what} features differ much in scale, or covariances are nearly singular, standardise and shrink first.",
            ConvergenceWarning,
            stacklevel=2,
        )
    shares = weights / weights.sum()
    for what, prior, share, labels in (
        ("group", result["group_prior"], shares.sum(axis=0), moments.groups),
        ("class", result["class_prior"], shares.sum(axis=1), moments.classes[present]),
    ):
        _warn_of_vanishing(what, prior, share, labels.tolist(), covariance)
    return IdealDistribution(
        classes=moments.classes[present],
        groups=moments.groups.copy(),
        intervention=intervention,
        reference_group=moments.groups.tolist()[reference] if intervention == "affirmative" else None,
        map_type=map_type,
        covariance=covariance,
        class_prior=result["class_prior"],
        group_prior=result["group_prior"],
        canonical_means=result["canonical_means"],
        canonical_covariances=(
            result["canonical_covariances"][0] if covariance == "tied" else result["canonical_covariances"]
        ),
        kl_divergence=float(result["kl_divergence"]),
        subgroup_divergence=result["cell_divergence"],
        objective_path=np.asarray(result["objective_path"]),
        n_iter=int(result["n_iter"]),
        converged=bool(result["converged"]),
        source_weights=weights / weights.sum(),
        source_means=np.array(means),
        source_covariances=covariances,
        linear=result["linear"],
        offset=result["offset"],
        subgroups=subgroups,
    )


def _nearest_restricted(
    weights: FloatArray,
    means: FloatArray,
    covariances: FloatArray,
    covariance: CovarianceModel,
    map_type: MapType,
    held: int | None,
    max_iter: int,
    tol: float,
    max_time: float | None,
) -> dict[str, Any]:
    """Solve without mixing of features; what the core's `nearest_ideal` answers."""
    S = covariances[None] if covariance == "tied" else covariances
    # In units of the features' own spread, which may differ by powers of ten.
    variances = S if covariance == "diagonal" else np.diagonal(S, axis1=-2, axis2=-1)
    known = weights.sum(axis=0, keepdims=True) > 0 if covariance == "tied" else weights > 0
    unit = np.sqrt(variances[known].mean(axis=0))
    square = unit**2 if covariance == "diagonal" else np.outer(unit, unit)
    means, S, scales = means / unit, S / square, map_type == "diagonal"
    found = solve_restricted(
        weights, means, S, scales=scales, reference=held, max_iter=max_iter, tol=tol, max_time=max_time
    )
    linear, offset, canonical_means, canonical = in_common_frame(found, weights, means, S, scales=scales, held=held)
    offset, canonical_means, canonical = offset * unit, canonical_means * unit, canonical * square
    if held is not None:
        linear[held], offset[held] = 1.0, 0.0  # exactly, so that its rows keep their bits
    return {
        "class_prior": found.class_prior,
        "group_prior": found.group_prior,
        "canonical_means": canonical_means,
        "canonical_covariances": canonical,
        "kl_divergence": float(found.path[-1]),
        "cell_divergence": found.subgroup_divergence,
        "objective_path": found.path,
        "n_iter": max(len(found.path) - 1, 1),
        "converged": found.converged,
        "moves_least": True,
        "linear": linear,
        "offset": offset,
    }


def reference_code(moments: SubgroupMoments, reference_group: Any) -> int:
    """Position of the reference group: the one asked for, else the heaviest."""
    if reference_group is None:
        return _heaviest(moments)
    groups = moments.groups.tolist()
    if reference_group not in groups:
        msg = f"reference_group={brief(reference_group)} is not among the groups {few(map(repr, groups))}."
        raise ValueError(msg)
    position: int = groups.index(reference_group)
    return position


def _heaviest(moments: SubgroupMoments) -> int:
    """Group of the largest weight; of several, the one whose mean is nearest to that of all rows."""
    weights = moments.weights.sum(axis=0)
    heaviest = np.flatnonzero(weights >= weights.max() * (1 - 1e-9))
    if len(heaviest) == 1:
        return int(heaviest[0])
    shares = weights / weights.sum()
    means = np.einsum("ka,kaj->aj", moments.weights / np.where(weights > 0, weights, 1.0), moments.means)
    distances = np.linalg.norm((means - shares @ means)[heaviest], axis=1)
    return int(heaviest[distances.argmin()])


def _warn_of_empty_subgroups(moments: SubgroupMoments) -> None:
    empty = [
        f"({moments.classes.tolist()[k]!r}, {moments.groups.tolist()[a]!r})"
        for k, a in np.argwhere(moments.weights == 0)
        if moments.weights[k].any()
    ]
    listed = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    warnings.warn(
        f"No row of the subgroups (class, group) {listed}: the other classes decide the maps of these groups. "
        f"Subgroups:\n{moments.subgroup_table()}",
        UserWarning,
        stacklevel=3,
    )


def _warn_of_vanishing(
    what: str, prior: FloatArray, share: FloatArray, labels: list[Any], covariance: CovarianceModel
) -> None:
    """Shares are free in the ideal distribution: a group or class that is far away may be given up for little."""
    less_noise = "covariances that fit less noise, by more shrinkage"
    if covariance == "full":
        less_noise += ", more pooling or covariance='tied'"
    for label, now, before in zip(labels, prior.tolist(), share.tolist(), strict=True):
        if now < _VANISHING * before:
            warnings.warn(
                f"The nearest ideal distribution all but leaves out {what} {label!r}: its share falls from "
                f"{before:.3g} to {now:.2g}, which costs less divergence than to move it. Ideal sample weights would "
                f"silence the {what}. Use intervention='affirmative', which keeps the shares of every group and of the "
                f"reference group's classes, or {less_noise}.",
                UserWarning,
                stacklevel=3,
            )


def _numerical_message(error: Exception, moments: SubgroupMoments, present: NDArray[np.bool_]) -> str:
    what, k, a = error.args
    where = "" if a < 0 else f" of group {moments.groups.tolist()[a]!r}"
    where += "" if k < 0 else f", class {moments.classes[present].tolist()[k]!r}"
    return (
        f"{what}{where}. Bring the features to one scale (the transformer's feature_transform=StandardScaler()), or "
        "shrink the moments (SubgroupMoments.shrink('ledoit_wolf'))."
    )
