"""What nearness to an ideal distribution promises, of the model and of the Gaussians of the subgroups themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fairsteer._utils.types import Doubles

if TYPE_CHECKING:
    from fairsteer.ideal._ideal import IdealDistribution
    from fairsteer.moments import SubgroupMoments


@dataclass(frozen=True)
class Certificate:
    """What nearness to an ideal distribution promises about the distribution itself.

    Bounds for every classifier that is exactly fair on the ideal distribution when it is used on the fitted one
    (Pinsker 1964; Bretagnolle and Huber 1979). They are statements about Gaussians, not about data.

    Attributes
    ----------
    total_variation : ndarray of shape (n_classes, n_groups)
        Bound on the total variation between a subgroup and its ideal, in [0, 1].
    equal_opportunity : ndarray of shape (n_classes,)
        For every class, a bound on the difference of prediction rates between any two groups given that class,
        in [0, 1].
    accuracy : float
        Bound on the difference of the error rates on the two distributions, in [0, 1].
    gaussians : {"subgroups", "model"}
        Which Gaussians the bounds speak of: of every subgroup (cell of class and group) its own mean and covariance;
        or those of the model, which may be wrong about the subgroups where it ties their covariances or takes the
        features as uncorrelated.
    """

    total_variation: Doubles
    equal_opportunity: Doubles
    accuracy: float
    gaussians: Literal["subgroups", "model"] = "model"

    def __repr__(self) -> str:
        return (
            f"Certificate(equalized_odds={self.equalized_odds:.3g}, accuracy={self.accuracy:.3g}, "
            f"gaussians={self.gaussians!r})"
        )

    @classmethod
    def of_divergences(
        cls, subgroup_divergence: Doubles, kl_divergence: float, gaussians: Literal["subgroups", "model"]
    ) -> Certificate:
        """Bounds that divergences put on gaps and accuracy.

        Parameters
        ----------
        subgroup_divergence : ndarray of shape (n_classes, n_groups)
            KL divergence of every subgroup of the ideal distribution from its Gaussian, in nats.
        kl_divergence : float
            That of all, with the shares of the subgroups, in nats.
        gaussians : {"subgroups", "model"}
            Whose Gaussians these are.
        """
        return cls.of_bounds(
            total_variation_bound(subgroup_divergence), float(total_variation_bound(kl_divergence)), gaussians
        )

    @classmethod
    def of_bounds(
        cls, total_variation: Doubles, accuracy: float, gaussians: Literal["subgroups", "model"]
    ) -> Certificate:
        """Bounds on gaps that follow from those on the total variation of every subgroup; see the attributes."""
        bound = np.array(total_variation)
        # The two largest of a class, whichever groups they belong to; a single group has no gap.
        gaps = np.minimum(np.sort(bound, axis=1)[:, -2:].sum(axis=1) * (bound.shape[1] > 1), 1.0)
        bound.flags.writeable = gaps.flags.writeable = False
        return cls(bound, gaps, accuracy, gaussians)

    @classmethod
    def of_nothing(cls, shape: tuple[int, ...], gaussians: Literal["subgroups", "model"]) -> Certificate:
        """Bounds of 1, which hold whatever is the case, for (n_classes, n_groups) subgroups."""
        return cls.of_bounds(np.ones(shape), 1.0, gaussians)

    @property
    def equalized_odds(self) -> float:
        """Largest of the bounds over the classes."""
        return float(self.equal_opportunity.max())


def total_variation_bound(kl: Any) -> Any:
    """min(sqrt(KL/2), sqrt(1 - exp(-KL))): theory of Pinsker, and of Bretagnolle and Huber."""
    kl = np.maximum(kl, 0.0)
    return np.minimum(np.sqrt(kl / 2), np.sqrt(-np.expm1(-kl)))


@dataclass(frozen=True)
class SubgroupGaussians:
    """Gaussians of the subgroups themselves, whatever the model makes of them.

    Attributes
    ----------
    moments : SubgroupMoments
        Full moments.
    intensity : ndarray of shape (n_classes, n_groups) or None
        How far covariances are shrunk to the multiple of the identity of the same trace: as far as those of the model
        are. None: not at all.
    chance : float
        How much of what the moments differ from the model by chance is not believed, in expectations of what chance
        does: 1 for moments of rows; 0 for those that are taken as they are.
    """

    moments: SubgroupMoments
    intensity: Doubles | None = None
    chance: float = 0.0

    def of_class(self, k: int, scale: Doubles) -> Doubles:
        """Shrunk covariances of a class, (n_groups, d, d), with their spectra lifted to a share of a scale."""
        moments = self.moments.of_classes([self.moments.classes.tolist()[k]])  # one by one: there may be gigabytes
        covariances: Doubles = moments.model.floored(np.ascontiguousarray(moments.covariances), scale)[0]
        if self.intensity is not None:
            covariances = moments.model.shrunk(covariances, self.intensity[k : k + 1])
        own: Doubles = covariances[0]
        return own


def cell_certificate(
    cells: SubgroupGaussians,
    *,
    classes: list[Any],
    linear: Doubles,
    offset: Doubles,
    model_means: Doubles,
    model_covariances: Doubles,
    class_prior: Doubles,
    group_prior: Doubles,
    reference: int | None,
    unseen_divergence: Doubles | None = None,
) -> Certificate:
    """Certify maps against the Gaussians of the subgroups.

    Classifiers that see mapped rows alone are exactly fair on every distribution whose classes the maps make alike in
    all groups, with whatever covariances. So the bounds follow from the nearest such distribution: of each class the
    Gaussian nearest to its mapped cells, or that of the reference group.

    Parameters
    ----------
    cells : SubgroupGaussians
        Of all groups, and of `classes` at least.
    classes : list
        Labels of the classes that are certified.
    linear, offset : ndarray of shape (n_groups, d, d) or (n_groups, d), and (n_groups, d)
        Maps of the groups into a common frame.
    model_means, model_covariances : ndarray
        What estimated means and covariances are drawn to, see Notes: of shape (n_classes, n_groups, d); and (n_classes,
        n_groups, d, d), (n_classes, n_groups, d) for variances, or (1, n_groups, d, d) where classes share them.
    class_prior, group_prior : ndarray of shape (n_classes,), (n_groups,)
        Of the ideal distribution.
    reference : int or None
        Group whose classes the others are to be like; None: their average.
    unseen_divergence : ndarray of shape (n_classes, n_groups), default=None
        Divergences of cells without rows; None: 0.

    Notes
    -----
    The squared error of a Gaussian's covariance S from n rows is (tr S^2 + (tr S)^2) / n. The share that it explains of
    the squared distance from the model's covariance, both in units of the latter, is the part of the way by which the
    covariance is drawn to the model's: the intensity of Ledoit and Wolf (2004) for that target. The error is the mean
    of what it would be for the covariance as estimated, and for the model's, d (d + 1) / n. So a cell of few rows says
    little, with fewer rows than features too, and one of many says all. Means are drawn to those of the model in the
    same way.
    """
    moments = cells.moments
    place = {label: k for k, label in enumerate(moments.classes.tolist())}
    kept = [place[label] for label in classes]
    weights, sizes, means = moments.weights[kept], moments.sizes[kept], moments.means[kept]
    K, G, _ = means.shape
    mapped = _Mapped(linear, offset)
    shared = len(model_covariances) == 1
    target = mapped.covariances(model_covariances[0]) if shared and cells.chance else None
    scale = moments._feature_scale()
    divergence = np.zeros((K, G)) if unseen_divergence is None else np.array(unseen_divergence)
    for k in range(K):
        seen = np.flatnonzero(weights[k] > 0)
        if not seen.size:
            continue
        m = mapped.means(means[k])[seen]
        S = mapped.covariances(cells.of_class(kept[k], scale))[seen]
        if cells.chance:
            T = mapped.covariances(model_covariances[k]) if target is None else target
            m, S = _without_chance(m, S, mapped.means(model_means[k])[seen], T[seen], sizes[k, seen] / cells.chance)
        held = None if reference is None or reference not in seen else int(np.flatnonzero(seen == reference)[0])
        share = group_prior[seen]
        share = share / share.sum() if share.any() else np.full(len(seen), 1 / len(seen))
        divergence[k, seen] = _from_nearest(m, S, share, held)
    q = np.where(weights > 0, weights, weights.sum(axis=1, keepdims=True) * weights.sum(axis=0) / weights.sum())
    ideal = np.outer(class_prior, group_prior)
    some = ideal > 0
    total = float(np.sum(ideal[some] * (np.log(ideal[some] / (q / q.sum())[some]) + divergence[some])))
    return Certificate.of_divergences(divergence, total, "subgroups")


def moved_certificate(moved: SubgroupGaussians, ideal: IdealDistribution, *, standardize: bool) -> Certificate:
    """Certify maps against the Gaussians of rows as they are after the maps.

    Parameters
    ----------
    moved : SubgroupGaussians
        Of mapped rows, or of some directions of these: the bounds are for classifiers that see no more of the rows.
        They are drawn to one covariance a group.
    ideal : IdealDistribution
        What shares the subgroups have on the ideal distribution, and which group the others are to be like.
    standardize : bool
        Whether the classes weigh alike in the covariance of every group.
    """
    moments = moved.moments
    counted = moments.of_classes(ideal.classes.tolist())
    still = np.ones((moments.n_groups, moments.n_features))
    return cell_certificate(
        moved,
        classes=ideal.classes.tolist(),
        linear=still,
        offset=np.zeros_like(still),
        model_means=counted.means,
        model_covariances=counted.tie(standardize=standardize)._positive_definite()[0][None],
        class_prior=ideal.class_prior,
        group_prior=ideal.group_prior,
        reference=ideal.reference,
    )


class _Mapped:
    """Gaussians of groups in a common frame."""

    def __init__(self, linear: Doubles, offset: Doubles) -> None:
        self.linear, self.offset = linear, offset

    def means(self, means: Doubles) -> Doubles:
        if self.linear.ndim == 2:
            return np.asarray(self.linear * means + self.offset)
        return np.asarray(np.einsum("aij,aj->ai", self.linear, means) + self.offset)

    def covariances(self, covariances: Doubles) -> Doubles:
        """Of every group one, (G, d, d) or variances (G, d)."""
        if covariances.ndim == 2:
            covariances = covariances[:, :, None] * np.eye(covariances.shape[1])
        if self.linear.ndim == 2:
            scaled: Doubles = self.linear[:, :, None] * covariances * self.linear[:, None, :]
            return scaled
        S: Doubles = self.linear @ covariances @ np.swapaxes(self.linear, 1, 2)
        return (S + np.swapaxes(S, 1, 2)) / 2


def _without_chance(m: Doubles, S: Doubles, mu: Doubles, T: Doubles, n: Doubles) -> tuple[Doubles, Doubles]:
    """Draw means (G, d) and covariances (G, d, d) to those of the model as far as chance explains that they differ."""
    d = S.shape[-1]
    unit = np.sqrt(np.diagonal(T, axis1=1, axis2=2).mean(axis=0))
    unit[unit == 0] = 1.0
    try:
        inverse = np.linalg.inv(T / np.outer(unit, unit))
    except np.linalg.LinAlgError:  # singular but for rounding: chance cannot be told from anything else
        return m, S
    W = inverse @ (S / np.outer(unit, unit))  # similar to the covariance in units of T
    trace, square = np.trace(W, axis1=1, axis2=2), np.einsum("aij,aji->a", W, W)
    distance = np.maximum(square - 2 * trace + d, 0.0)
    part = _explained((square + trace**2 + d * (d + 1)) / (2 * n), distance)
    apart = (m - mu) / unit
    of_mean = _explained((trace + d) / (2 * n), np.einsum("ai,aij,aj->a", apart, inverse, apart))[:, None]
    return (1 - of_mean) * m + of_mean * mu, (1 - part[:, None, None]) * S + part[:, None, None] * T


def _explained(error: Doubles, distance: Doubles) -> Doubles:
    """Share of squared distances that errors explain."""
    share: Doubles = np.divide(error, distance, out=np.ones_like(distance), where=distance > error)
    return share


def _from_nearest(means: Doubles, covariances: Doubles, share: Doubles, held: int | None) -> Doubles:
    """Divergence, from each of some Gaussians, of the one nearest to all or of the one that is held; nats."""
    d = means.shape[1]
    # In units of the features' own spread, which may differ by powers of ten.
    unit = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2).mean(axis=0))
    m, S = (means - share @ means) / unit, covariances / np.outer(unit, unit)
    try:
        log_det = 2 * np.log(np.diagonal(np.linalg.cholesky(S), axis1=1, axis2=2)).sum(axis=1)
        P = np.linalg.inv(S)
        if held is None:
            C = np.linalg.inv(np.tensordot(share, P, axes=1))
            C = (C + C.T) / 2
            nu = C @ np.einsum("a,aij,aj->i", share, P, m)
        else:
            C, nu = S[held], m[held]
        own = 2 * np.log(np.diag(np.linalg.cholesky(C))).sum()
    except np.linalg.LinAlgError:  # singular but for rounding: nothing is promised
        return np.full(len(m), np.inf)
    trace = np.einsum("aij,ij->a", P, C)
    distance = np.einsum("ai,aij,aj->a", m - nu, P, m - nu)
    kl: Doubles = np.maximum((trace + distance - d + log_det - own) / 2, 0.0)
    if held is not None:
        kl[held] = 0.0
    return kl
