"""What to compare steering with: transformers that match groups, or erase them, without looking at classes.

Parameters and attributes that they share with :class:`~fairsteer.FairSteeringTransformer` mean the same as there, and
`fit` takes a `y` only to ignore it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.validation import check_is_fitted

from fairsteer import _core
from fairsteer._utils.types import CovarianceModel, Doubles, Floats, UnknownGroup
from fairsteer.ideal import reference_code
from fairsteer.moments import SubgroupMoments
from fairsteer.moments._standardizing import class_factors
from fairsteer.transformer._base import GroupMapTransformer
from fairsteer.transformer._reading import Batch, Reading

# Of standardised features, a direction with less than this share of the largest variance is rounding error.
_RANK_CUTOFF = 1e-12


# Of a group with fewer rows than features, the variance in other directions as a share of the features' variances.
_DEFICIENT_FLOOR = 1e-4


# A correlation with the groups that is smaller than this is rounding error too.
_NO_CORRELATION = 1e-8


# The barycentre is found when a step moves its points by less than this share of their spread, root mean squares.
_BARYCENTRE_TOLERANCE = 1e-6


_BARYCENTRE_MAX_ITER = 100


class GroupMaps(NamedTuple):
    """Maps at full strength, one a group or one for all."""

    linear: Doubles
    """Matrices, (n_maps, d, d), or scales of the features, (n_maps, d)."""
    offset: Doubles
    """Shifts, (n_maps, d)."""


class _ClassBlindTransformer(GroupMapTransformer):
    """What the baselines share: one Gaussian a group, and maps that follow from these."""

    def _read(
        self, X: Any, y: Any, sensitive_features: Any, sample_weight: Any, *, reset: bool, stays: bool = False
    ) -> Reading:
        return super()._read(X, None, sensitive_features, sample_weight, reset=reset, stays=stays)

    def _classes_count(self) -> bool:
        return False


class _MatchingTransformer(_ClassBlindTransformer):
    """A map for each group, to a reference group or to what lies between all groups."""

    _parameter_constraints = {
        name: GroupMapTransformer._parameter_constraints[name]
        for name in (
            "reference_group",
            "shrinkage",
            "feature_transform",
            "strength",
            "sensitive_columns",
            "unknown_group",
            "standardize",
        )
    }

    def __init__(
        self,
        *,
        reference_group: Hashable = None,
        shrinkage: Any = "ledoit_wolf",
        feature_transform: Any = None,
        strength: float = 1.0,
        sensitive_columns: Any = None,
        unknown_group: UnknownGroup = "error",
        standardize: bool = False,
    ) -> None:
        self.reference_group = reference_group
        self.shrinkage = shrinkage
        self.feature_transform = feature_transform
        self.strength = strength
        self.sensitive_columns = sensitive_columns
        self.unknown_group = unknown_group
        self.standardize = standardize

    def _read(
        self, X: Any, y: Any, sensitive_features: Any, sample_weight: Any, *, reset: bool, stays: bool = False
    ) -> Reading:
        if not self.standardize:
            return super()._read(X, y, sensitive_features, sample_weight, reset=reset, stays=stays)
        if y is None:
            msg = "standardize=True gives the classes the same weights in every group, and needs them: pass y."
            raise ValueError(msg)
        return GroupMapTransformer._read(self, X, y, sensitive_features, sample_weight, reset=reset, stays=stays)

    def _needs_all_rows(self) -> str | None:
        if not self.standardize:
            return None
        return "standardize=True needs the counts of all rows, so partial_fit cannot use it. Leave it out, or call fit."

    def _counted(self, batch: Batch) -> Batch:
        """Rows of one class, with weights under which the classes' shares are the same in every group."""
        if not self.standardize:
            return batch
        G = len(batch.groups)
        cell = batch.y_codes * G + batch.group_codes
        weight = np.ones(len(cell)) if batch.sample_weight is None else batch.sample_weight
        counts = np.bincount(cell, weight, len(batch.classes) * G).astype(np.float64).reshape(-1, G)
        return batch._replace(
            y_codes=np.zeros_like(batch.y_codes),
            sample_weight=weight * class_factors(counts)[batch.y_codes, batch.group_codes],
            classes=np.zeros(1, dtype=np.intp),
            class_blind=True,
        )

    def _reference(self) -> int | None:
        """Position of the group that stays: the only one, the one asked for, or none."""
        if self.reference_group is None:
            return 0 if len(self.groups_) == 1 else None
        return reference_code(self.moments_, self.reference_group)


class MeanMatchingTransformer(_MatchingTransformer):
    """Shift the groups so that their means agree.

    Rows of group ``a`` go to ``x + (target - mean[a])``: the optimal-transport map between groups
    that differ in their means alone.

    Parameters
    ----------
    reference_group : label, default=None
        The group whose mean is the target and whose rows come back untouched. None: every group
        moves, to the mean of all rows, which is the shift of least total squared length.
    shrinkage : {"ledoit_wolf", "oas"}, float in [0, 1], None or estimator, default="ledoit_wolf"
        How the groups' covariances are regularised. The shift does not use them; only the groups'
        probabilities do, under ``unknown_group="infer"``.
    feature_transform, strength, sensitive_columns, unknown_group
        As for :class:`~fairsteer.FairSteeringTransformer`.
    standardize : bool, default=False
        Whether the classes, which ``fit`` then needs, weigh alike in every group, so that different base rates are no
        difference of the groups.

    Attributes
    ----------
    groups_, maps_, group_calibration_, feature_transform_, n_features_in_, feature_names_in_
        As for :class:`~fairsteer.FairSteeringTransformer`.
    moments_ : SubgroupMoments
        Weights, means and covariances of the groups, in one class, before shrinkage.

    See Also
    --------
    CovarianceMatchingTransformer : Matches the covariances too.
    fairsteer.FairSteeringTransformer : Looks at the classes as well.

    Examples
    --------
    >>> from fairsteer.baselines import MeanMatchingTransformer
    >>> X, group = [[0.0], [2.0], [5.0], [9.0]], ["a", "a", "b", "b"]
    >>> match = MeanMatchingTransformer(reference_group="a")
    >>> match.fit_transform(X, sensitive_features=group).ravel()
    array([ 0.,  2., -1.,  3.])
    """

    def _fit_maps(self, model: SubgroupMoments) -> GroupMaps:
        weights, means = _shares(model), model.means[0]
        reference = self._reference()
        target = weights @ means if reference is None else means[reference]
        return GroupMaps(np.ones_like(means), target - means)

    def _uses_covariances(self) -> bool:
        return self.unknown_group != "error"


class CovarianceMatchingTransformer(_MatchingTransformer):
    """Match the means and covariances of the groups by optimal transport.

    Rows of group ``a`` go by the optimal-transport map from ``N(mean[a], covariance[a])`` to the
    target, of all maps that match means and covariances the one that moves rows least: MiMiC [1]_.
    With a reference group it is what
    ``FairSteeringTransformer(intervention="affirmative")`` does when it is fitted without classes.

    Parameters
    ----------
    reference_group : label, default=None
        The group that is the target and whose rows come back untouched. None: every group moves,
        to the Wasserstein barycentre of the groups, which moves rows least in all [2]_.
    shrinkage : {"ledoit_wolf", "oas"}, float in [0, 1], None or estimator, default="ledoit_wolf"
        How the groups' covariances are regularised. An estimator is a scikit-learn covariance
        estimator.
    feature_transform, strength, sensitive_columns, unknown_group
        As for :class:`~fairsteer.FairSteeringTransformer`.
    standardize : bool, default=False
        Whether the classes, which ``fit`` then needs, weigh alike in every group, so that different base rates are no
        difference of the groups.

    Attributes
    ----------
    groups_, maps_, group_calibration_, feature_transform_, n_features_in_, feature_names_in_
        As for :class:`~fairsteer.FairSteeringTransformer`.
    moments_ : SubgroupMoments
        Weights, means and covariances of the groups, in one class, before shrinkage.

    See Also
    --------
    fairsteer.FairSteeringTransformer : Looks at the classes as well.

    Notes
    -----
    How far rows move is measured in the units of the features, so features of very different
    scales should be brought to one scale, for example by ``feature_transform=StandardScaler()``.
    In a direction in which a group does not vary, as with fewer rows than features and no shrinkage, it is taken
    to vary by a hundredth of the features' standard deviation.

    References
    ----------
    .. [1] Singh, Ravfogel, Herzig, Aharoni, Cotterell, Kumaraguru. "Representation Surgery: Theory
       and Practice of Affine Steering". ICML 2024. arXiv:2402.09631.
    .. [2] Álvarez-Esteban, del Barrio, Cuesta-Albertos, Matrán. "A Fixed-Point Approach to
       Barycenters in Wasserstein Space". Journal of Mathematical Analysis and Applications 441, 2016.

    Examples
    --------
    >>> from fairsteer.baselines import CovarianceMatchingTransformer
    >>> X, group = [[1.0], [3.0], [6.0], [10.0]], ["a", "a", "b", "b"]
    >>> match = CovarianceMatchingTransformer(reference_group="a")
    >>> match.fit_transform(X, sensitive_features=group).ravel()
    array([1., 3., 1., 3.])
    """

    def _fit_maps(self, model: SubgroupMoments) -> GroupMaps:
        weights, means, covariances = _shares(model), model.means[0], _well_conditioned(model)
        reference = self._reference()
        if reference is None:
            mean, covariance = weights @ means, _barycentre(weights, covariances)
        else:
            mean, covariance = means[reference], covariances[reference]
        linear = np.stack([_core.transport_map(own, covariance) for own in covariances])
        if reference is not None:
            linear[reference] = np.eye(len(mean))  # exactly, so that its rows keep their bits
        offset = mean - np.einsum("aij,aj->ai", linear, means)
        return GroupMaps(linear, offset)


class LeaceTransformer(_ClassBlindTransformer):
    """Erase all linear information on the groups, and change the features as little as that allows.

    Least-squares concept erasure (LEACE) [1]_: one affine map for all rows, after which every group
    has the same mean, so that no linear classifier or regression finds the groups better than a
    constant does. Of all affine maps that achieve it, this one changes the features least, in every
    quadratic norm at once. It does not need the groups at ``transform``.

    Parameters
    ----------
    strength, sensitive_columns
        As for :class:`~fairsteer.FairSteeringTransformer`.

    Attributes
    ----------
    groups_, n_features_in_, feature_names_in_
        As for :class:`~fairsteer.FairSteeringTransformer`.
    moments_ : SubgroupMoments
        Weights, means and covariances of the groups, in one class.
    maps_ : dict
        For each group label the map ``(A, b)`` at full strength, ``x -> A @ x + b``: the same for all.

    See Also
    --------
    CovarianceMatchingTransformer : Matches means and covariances, and needs the groups.

    Notes
    -----
    With the covariance of the features ``S``, ``W`` the pseudo-inverse of its square root, and ``P`` the
    orthogonal projector on the whitened differences of the groups' means, rows go to
    ``x - W^+ P W (x - mean)`` (Theorem 4.3 of [1]_, with one indicator a group). The result does not
    depend on the scales of the features. Directions with less than 1e-12 of the largest variance
    of the standardised features are taken as not varying, and canonical correlations with the
    groups below 1e-8 as none.

    References
    ----------
    .. [1] Belrose, Schneider-Joseph, Ravfogel, Cotterell, Raff, Biderman. "LEACE: Perfect Linear
       Concept Erasure in Closed Form". NeurIPS 2023. arXiv:2306.03819.

    Examples
    --------
    >>> import numpy as np
    >>> from fairsteer.baselines import LeaceTransformer
    >>> from fairsteer.datasets import make_biased_groups
    >>> X, _, group = make_biased_groups(200, random_state=0)
    >>> U = LeaceTransformer().fit(X, sensitive_features=group).transform(X)
    >>> bool(np.allclose(U[group == 0].mean(axis=0), U[group == 1].mean(axis=0)))
    True
    """

    one_map = True

    _parameter_constraints = {
        name: GroupMapTransformer._parameter_constraints[name] for name in ("strength", "sensitive_columns")
    }

    def __init__(self, *, strength: float = 1.0, sensitive_columns: Any = None) -> None:
        self.strength = strength
        self.sensitive_columns = sensitive_columns

    def inverse_transform(self, X: Any, *, sensitive_features: Any = None) -> Any:
        """Undo ``transform`` at the present strength, which must be below 1.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features_out)
            Erased rows, without sensitive columns.
        sensitive_features : array-like, default=None
            Ignored.

        Returns
        -------
        ndarray of shape (n_samples, n_features_out)
            Rows as they were before ``transform``.

        Raises
        ------
        ValueError
            At strength 1: what is erased cannot be recovered.
        """
        check_is_fitted(self, "moments_")
        if self._strength() == 1 and self._group_maps(1.0).moves.any():
            msg = "At strength=1 LEACE erases what tells the groups apart, and nothing brings it back. Lower strength."
            raise ValueError(msg)
        return super().inverse_transform(X)

    def _batch_moments(
        self, rows: Floats, batch: Batch, factors: Doubles | None = None, covariance: CovarianceModel | None = None
    ) -> SubgroupMoments:
        # Sums of products in float32 would make directions that do not vary look as if they did.
        return super()._batch_moments(rows.astype(np.float64, copy=False), batch, factors, covariance)

    def _fit_maps(self, model: SubgroupMoments) -> GroupMaps:
        weights, means = _shares(model), model.means[0]
        mean, scale = weights @ means, model._feature_scale()
        # One-hot groups divided by their root mean squares: whitened, these are correlations.
        cross = np.sqrt(weights) * ((means - mean) / scale).T
        within = np.einsum("a,aij->ij", weights, model.covariances) / np.outer(scale, scale)
        variances, directions = np.linalg.eigh(within + cross @ cross.T)
        varies = variances > _RANK_CUTOFF * variances[-1]
        root, directions = np.sqrt(variances[varies]), directions[:, varies]
        basis, correlations, _ = np.linalg.svd((directions / root).T @ cross, full_matrices=False)
        basis = basis[:, correlations > _NO_CORRELATION]
        erased = (directions * root) @ basis @ (basis.T @ (directions / root).T)
        erased *= scale[:, None] / scale
        return GroupMaps((np.eye(len(mean)) - erased)[None], (erased @ mean)[None])


def _shares(moments: SubgroupMoments) -> Doubles:
    """Share of the weight that each group has."""
    shares: Doubles = moments.weights[0] / moments.weights.sum()
    return shares


def _well_conditioned(model: SubgroupMoments) -> Doubles:
    """Covariances, in which a group that does not vary in every direction varies a little in each.

    Rounding decides how the null directions of two groups are mapped to one another; with deviations of so small a
    share of the features' it would be seen.
    """
    covariances, ranks = model._positive_definite()
    deficient = ranks < model.n_features
    if deficient.any():
        covariances = np.array(covariances)
        lifted = np.ascontiguousarray(covariances[deficient])
        _core.floor_spectra(lifted, model._feature_scale(), _DEFICIENT_FLOOR)
        covariances[deficient] = lifted
    return covariances


def _barycentre(weights: Doubles, covariances: Doubles) -> Doubles:
    """Covariance of the Wasserstein barycentre of centred Gaussians.

    The fixed-point iteration of Álvarez-Esteban et al. (2016): the average of the maps to the groups moves every
    candidate closer, and one of two groups to the barycentre in one step. The groups match at any candidate; only how
    far rows move depends on it.
    """
    # Where several groups are the heaviest, none of them is the first.
    covariance: Doubles = covariances[weights == weights.max()].mean(axis=0)
    for _ in range(_BARYCENTRE_MAX_ITER):
        average = np.einsum("a,aij->ij", weights, [_core.transport_map(covariance, own) for own in covariances])
        step = average - np.eye(len(average))
        moved = np.sum(step @ covariance * step)
        covariance = average @ covariance @ average
        covariance = (covariance + covariance.T) / 2
        if moved <= _BARYCENTRE_TOLERANCE**2 * np.trace(covariance):
            break
    return covariance
