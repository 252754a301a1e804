"""Weight, mean and covariance of every subgroup (class x group): one pass, mergeable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone

from fairsteer import _core
from fairsteer._utils.input import brief, few, with_whole_strides
from fairsteer._utils.labels import check_labels, positions_within, union_of_labels
from fairsteer._utils.threads import own_threads
from fairsteer._utils.types import Codes, CovarianceModel, Doubles
from fairsteer._utils.weights import rows_behind
from fairsteer.moments._borrowing import additive_means, broadcast_factors
from fairsteer.moments._density import log_densities

# Eigenvalues of a covariance are lifted to this share of the features' variances: below it they are rounding
# error, and a map that trusted them would stretch rounding error to the size of the data.
_RELATIVE_FLOOR = 1e-8


# What is accumulated, in the core's order.
SUMS = ("weights", "_weight_squares", "means", "_scatters", "_cubics", "_quartics")


# Cells that a table in a message lists.
_LISTED_CELLS = 40


def scatter_shape(covariance: str, K: int, G: int, d: int) -> tuple[int, ...]:
    """Shape of the covariances under each model."""
    return {"tied": (G, d, d), "full": (K, G, d, d), "diagonal": (K, G, d)}[covariance]


class SubgroupMoments:
    """Weight, mean and covariance of every subgroup (class k, group a) of the data.

    The sums are accumulated in double precision about each subgroup's own mean, whatever the dtype and the layout
    of the rows, and two accumulators merge into that of the union (Chan, Golub and LeVeque 1979): fitting is one
    pass that can be streamed and distributed.

    Parameters
    ----------
    n_features : int
        Number of features d, at least 1.
    classes : array-like of shape (n_classes,)
        Distinct class labels; `y_codes` index into them.
    groups : array-like of shape (n_groups,)
        Distinct group labels; `group_codes` index into them. Tuples name intersections.
    covariance : {"tied", "full", "diagonal"}, default="tied"
        One covariance a group, about the means of its classes; one a subgroup; or one variance a feature and
        subgroup.
    cell_counts : array-like of shape (n_classes, n_groups), default=None
        With "tied", weight of the rows that every subgroup will have, known beforehand: the classes then have the same
        weights in the covariance of every group (standardised pooling, see `tie`). Only ratios matter.

    Attributes
    ----------
    weights : ndarray of shape (n_classes, n_groups)
        Sum of the sample weights; 0 where no row was seen.
    means : ndarray of shape (n_classes, n_groups, n_features)
        Weighted means; zeros where no row was seen.
    covariances : ndarray of shape (n_groups, d, d), (n_classes, n_groups, d, d) or (n_classes, n_groups, d)
        For "tied", "full" and "diagonal". Maximum-likelihood estimates: the denominator is the weight sum, not one
        less.
    classes, groups : ndarray
        The labels.

    See Also
    --------
    fairsteer.nearest_ideal : The nearest ideal distribution of such moments.

    Notes
    -----
    Sample weights count as repetitions of rows, so an integer weight equals that many copies and a weight of zero
    equals removal.

    Examples
    --------
    >>> import numpy as np
    >>> from fairsteer import SubgroupMoments
    >>> X = np.array([[0.0], [2.0], [4.0], [8.0]])
    >>> moments = SubgroupMoments(1, classes=["no", "yes"], groups=["F", "M"], covariance="full")
    >>> moments = moments.update(X, y_codes=[0, 0, 1, 1], group_codes=[0, 0, 0, 1])
    >>> moments.weights
    array([[2., 0.],
           [1., 1.]])
    >>> moments.means[0, 0], moments.covariances[0, 0]
    (array([1.]), array([[1.]]))
    """

    def __init__(
        self,
        n_features: int,
        *,
        classes: Iterable[Any],
        groups: Iterable[Any],
        covariance: CovarianceModel = "tied",
        cell_counts: ArrayLike | None = None,
    ) -> None:
        if covariance not in ("tied", "full", "diagonal"):
            msg = f"covariance must be 'tied', 'full' or 'diagonal', not {covariance!r}."
            raise ValueError(msg)
        if n_features < 1:
            msg = f"n_features must be at least 1, not {n_features}."
            raise ValueError(msg)
        self.n_features = int(n_features)
        self.classes = check_labels(classes, "classes")
        self.groups = check_labels(groups, "groups")
        self.covariance: CovarianceModel = covariance
        self._shrunk: Doubles | None = None
        self._pooling = 0.0
        K, G, d = len(self.classes), len(self.groups), self.n_features
        diagonal = covariance == "diagonal"
        self.weights: Doubles = np.zeros((K, G))
        self._weight_squares: Doubles = np.zeros((K, G))
        self.means: Doubles = np.zeros((K, G, d))
        self._scatters: Doubles = np.zeros(scatter_shape(covariance, K, G, d))
        # Third and fourth moments, for the Ledoit-Wolf intensity.
        self._cubics: Doubles = np.zeros((K, G, d))
        self._quartics: Doubles = np.zeros((K, G, d) if diagonal else (K, G))
        # With which weights, relative to their own, rows enter the scatter of their group, and the sums of those.
        self._factors: Doubles | None = None
        self._scatter_sums: tuple[Doubles, Doubles] | None = None
        if cell_counts is not None:
            if covariance != "tied":
                msg = f"cell_counts is for covariance='tied': with {covariance!r} subgroups have scatters of their own."
                raise ValueError(msg)
            counts = np.asarray(cell_counts, dtype=np.float64)
            if counts.shape != (K, G) or not np.isfinite(counts).all() or (counts < 0).any():
                msg = f"cell_counts must be finite, not negative and of shape ({K}, {G}), got shape {counts.shape}."
                raise ValueError(msg)
            self._weigh_classes_alike(class_factors(counts))

    @classmethod
    def from_statistics(
        cls,
        weights: ArrayLike,
        means: ArrayLike,
        covariances: ArrayLike,
        *,
        classes: Iterable[Any] | None = None,
        groups: Iterable[Any] | None = None,
    ) -> SubgroupMoments:
        """Moments of someone who has statistics and no rows.

        Parameters
        ----------
        weights : array-like of shape (n_classes, n_groups)
            Non-negative weight of every subgroup; only ratios matter to the projection, sizes to shrinkage.
        means : array-like of shape (n_classes, n_groups, d)
            Means; those of a subgroup of weight 0 are ignored.
        covariances : array-like
            Of shape (n_groups, d, d) for the tied model, (n_classes, n_groups, d, d) for the full, and
            (n_classes, n_groups, d) variances for the diagonal one. Symmetric, positive semi-definite.
        classes, groups : array-like, default=None
            Labels; 0, 1, ... when not given.

        Returns
        -------
        moments : SubgroupMoments
            They merge with others and accept rows. Ledoit-Wolf, which needs fourth moments, takes those of a
            Gaussian.

        Raises
        ------
        ValueError
            When shapes do not agree, or a number is not finite, or a weight or variance is negative.
        """
        w: Doubles = np.array(weights, dtype=np.float64, order="C")
        mu: Doubles = np.array(means, dtype=np.float64, order="C")
        Sigma: Doubles = np.array(covariances, dtype=np.float64, order="C")
        if w.ndim != 2 or 0 in w.shape:
            msg = f"weights must have shape (n_classes, n_groups), not {w.shape}."
            raise ValueError(msg)
        K, G = w.shape
        if mu.ndim != 3 or mu.shape[:2] != (K, G) or mu.shape[2] == 0:
            msg = f"means must have shape ({K}, {G}, n_features) to go with the weights, not {mu.shape}."
            raise ValueError(msg)
        d = mu.shape[2]
        shapes = {name: scatter_shape(name, K, G, d) for name in ("tied", "full", "diagonal")}
        matching = [name for name, shape in shapes.items() if Sigma.shape == shape]
        if not matching:
            msg = (
                f"covariances must have shape {shapes['tied']} (tied), {shapes['full']} (full) or "
                f"{shapes['diagonal']} (diagonal), not {Sigma.shape}."
            )
            raise ValueError(msg)
        # (G, d, d) and (K, G, d) coincide when K = G = d: symmetry tells.
        covariance = matching[0]
        if len(matching) > 1 and not np.allclose(Sigma, np.swapaxes(Sigma, -1, -2)):
            covariance = "diagonal"
        for name, array in (("weights", w), ("means", mu), ("covariances", Sigma)):
            if not np.isfinite(array).all():
                msg = f"{name} must be finite."
                raise ValueError(msg)
        if (w < 0).any():
            msg = f"weights must not be negative; the smallest is {w.min()}."
            raise ValueError(msg)
        variances = Sigma if covariance == "diagonal" else np.diagonal(Sigma, axis1=-2, axis2=-1)
        if (variances < 0).any():
            msg = f"variances must not be negative; the smallest is {variances.min()}."
            raise ValueError(msg)
        if covariance != "diagonal":
            transposed = np.swapaxes(Sigma, -1, -2)
            if not np.allclose(Sigma, transposed, rtol=1e-8, atol=1e-12 * variances.max(initial=0)):
                msg = "covariances must be symmetric."
                raise ValueError(msg)
            Sigma = (Sigma + transposed) / 2
        moments = cls(
            d,
            classes=np.arange(K) if classes is None else classes,
            groups=np.arange(G) if groups is None else groups,
            covariance=cast("CovarianceModel", covariance),
        )
        for name, labels, n in (("classes", moments.classes, K), ("groups", moments.groups, G)):
            if len(labels) != n:
                msg = f"{name} must hold {n} labels, not {len(labels)}."
                raise ValueError(msg)
        moments.weights[:] = w
        moments._weight_squares[:] = w  # as if every row had weight one
        moments.means[w > 0] = mu[w > 0]
        moments._scatters[:] = Sigma * moments._scatter_weights()
        # Fourth moments of a Gaussian: E|y|^4 = tr(S)^2 + 2 tr(S^2), feature by feature 3 var^2.
        if covariance == "diagonal":
            moments._quartics[:] = 3 * w[..., None] * Sigma**2
        else:
            trace = np.trace(Sigma, axis1=-2, axis2=-1)
            fourth = trace**2 + 2 * (Sigma**2).sum(axis=(-2, -1))
            moments._quartics[:] = w * fourth
        return moments

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return len(self.groups)

    def _sums(self) -> tuple[Doubles, ...]:
        """Give the sums as the core takes them: of rows weighted by the factors where there are factors."""
        own = tuple(getattr(self, name) for name in SUMS)
        return own if self._scatter_sums is None else (*self._scatter_sums, *own[2:])

    def _weigh_classes_alike(self, factors: Doubles) -> None:
        """Let the rows of a cell enter the scatter of their group with these weights (K, G) relative to their own."""
        self._factors = factors
        self._scatter_sums = (self.weights * factors, self._weight_squares * factors**2)

    @property
    def standardized(self) -> bool:
        """Whether the classes have the same weights in the covariance of every group, see `tie`."""
        return self._factors is not None

    @property
    def sizes(self) -> Doubles:
        """Number of rows behind every subgroup, (n_classes, n_groups).

        The weight sum, as for repeated rows, or the effective sample size (sum w)^2 / sum w^2 where that is larger,
        so that weights normalised to a small sum do not count as few rows.
        """
        return rows_behind(self.weights, self._weight_squares)

    @property
    def group_sizes(self) -> Doubles:
        """Number of rows behind every group, (n_groups,); counted as in `sizes`."""
        weights, squares = self._sums()[:2]
        return rows_behind(weights.sum(axis=0), squares.sum(axis=0))

    def is_finite(self) -> bool:
        """Whether no sum is NaN or infinite: rows were finite, and not too large to be squared."""
        return all(bool(np.isfinite(sums).all()) for sums in self._sums()[:4])

    def _scatter_weights(self) -> Doubles:
        """Weight sum behind every scatter, shaped to broadcast against them."""
        weights = self._sums()[0].sum(axis=0) if self.covariance == "tied" else self._pooled(self.weights)
        return weights.reshape(weights.shape + (1,) * (self._scatters.ndim - weights.ndim))

    def _pooled(self, sums: Doubles, power: int = 1) -> Doubles:
        """Replace part of the sums of every subgroup (first two axes) by those of its group."""
        if self._pooling == 0:
            return sums
        of_group = sums if self._factors is None else broadcast_factors(self._factors**power, sums) * sums
        pooled: Doubles = (1 - self._pooling) * sums + self._pooling * of_group.sum(axis=0)
        return pooled

    @property
    def covariances(self) -> Doubles:
        """Covariances; the denominator is the weight sum (maximum likelihood)."""
        if self._shrunk is not None:
            return self._shrunk
        weights = self._scatter_weights()
        covariances: Doubles = self._pooled(self._scatters) / np.where(weights > 0, weights, 1.0)
        return covariances

    def update(
        self, X: ArrayLike, y_codes: ArrayLike, group_codes: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> SubgroupMoments:
        """Add rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            float16, float32 and float64 are read where they lie, in any layout; anything else is converted to
            float64. float16 and float32 products are formed in float32 within blocks and summed in double
            precision. Must be finite (not checked here).
        y_codes, group_codes : array-like of shape (n_samples,)
            Integer codes into `classes` and `groups`; a negative one leaves the row out.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative, finite.

        Returns
        -------
        self : SubgroupMoments
            The accumulator, changed in place.

        Raises
        ------
        ValueError
            When shapes do not agree, a code is too large, or a weight is negative or not finite.
        """
        if self._regularised:
            msg = "These moments are pooled or shrunk and accept no more rows; update the ones they were made from."
            raise ValueError(msg)
        X = np.asarray(X)
        if X.dtype not in (np.float16, np.float32, np.float64) or not X.dtype.isnative:
            X = X.astype(np.float64)
        X = with_whole_strides(X)
        y = self._codes(y_codes, self.n_classes, "y_codes", len(X))
        a = self._codes(group_codes, self.n_groups, "group_codes", len(X))
        weights = None
        if sample_weight is not None:
            weights = np.ascontiguousarray(sample_weight, dtype=np.float64)
            if not (np.isfinite(weights).all() and (weights >= 0).all()):
                msg = "sample_weight must be finite and not negative."
                raise ValueError(msg)
        for name in SUMS:  # memory that came read-only, mapped from a file or shared between processes, is copied
            vars(self)[name] = _writable(vars(self)[name])
        if self._factors is not None and self._scatter_sums is not None:
            counted = (y >= 0) & (a >= 0)
            own = np.ones(len(y)) if weights is None else weights
            cell = y[counted] * self.n_groups + a[counted]
            for sums, power in ((self.weights, 1), (self._weight_squares, 2)):
                sums += np.bincount(cell, own[counted] ** power, sums.size).reshape(sums.shape)
            weights = np.where(counted, own * self._factors[y, a], 0.0)
            if (self._factors.ravel()[cell] == 0).any():
                k, g = divmod(int(cell[self._factors.ravel()[cell] == 0][0]), self.n_groups)
                msg = (
                    f"There is a row of class {self.classes.tolist()[k]!r} in group {self.groups.tolist()[g]!r}, for "
                    "which cell_counts has 0."
                )
                raise ValueError(msg)
            self._scatter_sums = (_writable(self._scatter_sums[0]), _writable(self._scatter_sums[1]))
        with own_threads() as n_threads:
            _core.update_moments(self.covariance, self._sums(), X, y, a, weights, n_threads)
        return self

    @staticmethod
    def _codes(codes: ArrayLike, n: int, name: str, n_rows: int) -> Codes:
        array = np.asarray(codes)
        if array.shape != (n_rows,):
            msg = f"{name} must have shape ({n_rows},) to go with X, not {array.shape}."
            raise ValueError(msg)
        if n_rows and not np.issubdtype(array.dtype, np.integer):
            msg = f"{name} must be integers, not {array.dtype}."
            raise ValueError(msg)
        if n_rows and array.max() >= n:
            msg = f"{name} must be below {n}, but the largest is {array.max()}."
            raise ValueError(msg)
        return np.ascontiguousarray(array, dtype=np.int64)

    def merge(self, other: SubgroupMoments) -> SubgroupMoments:
        """Moments of the union of two data sets.

        Parameters
        ----------
        other : SubgroupMoments
            Of the same features and covariance model. Classes and groups are matched by label; new ones are added.

        Returns
        -------
        moments : SubgroupMoments
            A new object; its classes and groups are sorted where their labels can be.

        Raises
        ------
        ValueError
            When the number of features or the covariance model differs, or one of the two is shrunk.

        Notes
        -----
        Exact, but for the Ledoit-Wolf intensity of the tied model, which keeps one scatter a group: there a term of
        relative size 1/n uses the group's scatter for that of its classes.
        """
        if self.n_features != other.n_features or self.covariance != other.covariance:
            msg = (
                f"Moments of {other.n_features} features with covariance={other.covariance!r} cannot be merged "
                f"with those of {self.n_features} features with covariance={self.covariance!r}."
            )
            raise ValueError(msg)
        if self._regularised or other._regularised:
            msg = "Pooled or shrunk moments cannot be merged; merge the ones they were made from first."
            raise ValueError(msg)
        merged = SubgroupMoments(
            self.n_features,
            classes=union_of_labels(self.classes, other.classes),
            groups=union_of_labels(self.groups, other.groups),
            covariance=self.covariance,
        )
        places = [
            np.ix_(positions_within(part.classes, merged.classes), positions_within(part.groups, merged.groups))
            for part in (self, other)
        ]
        if self._factors is not None or other._factors is not None:
            merged._weigh_classes_alike(_common_factors(self, other, places, merged.weights.shape))
        for part, (k, a) in zip((self, other), places, strict=True):
            cells = np.ascontiguousarray((k * merged.n_groups + a).ravel())
            _core.merge_moments(self.covariance, merged._sums(), tuple(map(_writable, part._sums())), cells)
            if merged._factors is not None:
                merged.weights[k, a] += part.weights
                merged._weight_squares[k, a] += part._weight_squares
        return merged

    def __add__(self, other: Any) -> SubgroupMoments:
        """Moments of the union of two data sets, see `merge`."""
        return self.merge(other) if isinstance(other, SubgroupMoments) else NotImplemented

    def __radd__(self, other: Any) -> SubgroupMoments:
        """Let ``sum`` begin, which it does with 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    @property
    def _regularised(self) -> bool:
        return self._pooling > 0 or self._shrunk is not None

    def _replace_covariances(self, covariances: Doubles | None, pooling: float | None = None) -> SubgroupMoments:
        copy = object.__new__(SubgroupMoments)
        copy.__dict__.update(self.__dict__)
        copy._shrunk = covariances
        if pooling is not None:
            copy._pooling = pooling
        return copy

    def pool(self, amount: float, *, standardize: bool = False) -> SubgroupMoments:
        """Let the classes of a group share their covariances: regularised discriminant analysis.

        Between one covariance a subgroup and one a group [1]_: with the weight sum n, the scatter S of a subgroup and
        those of its group, ``((1 - amount) S + amount S_group) / ((1 - amount) n + amount n_group)``, so that a small
        subgroup borrows more than a large one.

        Parameters
        ----------
        amount : float in [0, 1]
            0 leaves the covariances as they are, 1 makes them those of the group.
        standardize : bool, default=False
            Whether the classes have the same weights in the covariance of every group, see `tie`.

        Returns
        -------
        moments : SubgroupMoments
            A new object. Shrink it afterwards: the intensity then counts the rows that were borrowed.

        Raises
        ------
        ValueError
            When the moments are not of the full model, or shrunk already, or `amount` is outside [0, 1].

        References
        ----------
        .. [1] Friedman. "Regularized Discriminant Analysis". Journal of the American Statistical Association 84, 1989.
        """
        if self.covariance != "full" or self._shrunk is not None:
            what = "shrunk" if self._shrunk is not None else self.covariance
            msg = f"Only full moments that are not shrunk can be pooled, not {what} ones."
            raise ValueError(msg)
        if not 0 <= amount <= 1:
            msg = f"amount must lie in [0, 1], not {amount}."
            raise ValueError(msg)
        moments = self._replace_covariances(None, float(amount))
        moments._factors = class_factors(self.weights) if standardize else None
        return moments

    def small_groups(self, min_size: float) -> list[Any]:
        """Find groups to merge so that no subgroup is left with few rows.

        Parameters
        ----------
        min_size : float
            Rows (see `sizes`) that every class should have in every group.

        Returns
        -------
        labels : list
            The groups that have fewer in some class. Where these together have too few as well, the next smallest
            groups join them. Every group, if nothing less will do; empty, if nothing is small.
        """
        groups = self.groups.tolist()
        return [groups[a] for a in small_columns(self.weights, self._weight_squares, min_size)]

    def merge_groups(self, labels: Iterable[Any], into: Any) -> SubgroupMoments:
        """Take several groups as one.

        Parameters
        ----------
        labels : iterable
            Labels of groups.
        into : label
            Label of the group that they become; it must be new.

        Returns
        -------
        moments : SubgroupMoments
            A new object, as if the rows of these groups had carried the label `into` (but for the Ledoit-Wolf
            intensity of the tied model, see `merge`).

        Raises
        ------
        ValueError
            When a label is not among the groups or `into` is already, or the moments are pooled or shrunk.
        """
        labels, groups = list(labels), self.groups.tolist()
        unknown = [label for label in labels if label not in groups]
        if unknown or into in groups:
            reason = f"{into!r} is a group already" if into in groups else f"{unknown[0]!r} is no group"
            msg = f"Groups cannot be merged: {reason}."
            raise ValueError(msg)
        if self._regularised:
            msg = "Pooled or shrunk moments cannot be merged; merge the ones they were made from first."
            raise ValueError(msg)
        one = SubgroupMoments(self.n_features, classes=self.classes, groups=[into], covariance=self.covariance)
        positions = [groups.index(label) for label in labels]
        if self._factors is not None:
            some = self._factors[:, positions]
            joint = some.max(axis=1, keepdims=True)
            if not np.allclose(some, np.where(some > 0, joint, 0.0), rtol=1e-9):
                msg = "Standardised moments can be merged if their cell_counts were those of the groups as merged."
                raise ValueError(msg)
            one._weigh_classes_alike(joint)
        for position in positions:
            part = self._of_groups([position])
            _core.merge_moments(self.covariance, one._sums(), part._sums(), np.arange(self.n_classes))
            if self._factors is not None:
                one.weights += part.weights
                one._weight_squares += part._weight_squares
        kept = [a for a, label in enumerate(groups) if label not in labels]
        return self._of_groups(kept).merge(one) if kept else one

    def _of_groups(self, positions: list[int]) -> SubgroupMoments:
        part = SubgroupMoments(
            self.n_features, classes=self.classes, groups=self.groups[positions], covariance=self.covariance
        )
        if self._factors is not None:
            part._weigh_classes_alike(self._factors[:, positions])
            part.weights[:], part._weight_squares[:] = self.weights[:, positions], self._weight_squares[:, positions]
        for to, array in zip(part._sums(), self._sums(), strict=True):
            to[...] = array[positions] if array is self._scatters and self.covariance == "tied" else array[:, positions]
        return part

    def of_classes(self, labels: Iterable[Any]) -> SubgroupMoments:
        """Keep some of the classes.

        Parameters
        ----------
        labels : iterable
            Labels of the classes to keep.

        Returns
        -------
        moments : SubgroupMoments
            A new object with these classes, in their present order; `self` if that is all of them.

        Raises
        ------
        ValueError
            When a label is no class, or the moments are tied: their covariances are of all classes.
        """
        labels, classes = list(labels), self.classes.tolist()
        unknown = [label for label in labels if label not in classes]
        if unknown or not labels:
            what = f"{unknown[0]!r} is no class" if unknown else "no class is asked for"
            msg = f"{what}; the classes are {few(map(repr, classes))}."
            raise ValueError(msg)
        kept = [k for k, label in enumerate(classes) if label in labels]
        if len(kept) == len(classes):
            return self
        if self.covariance == "tied":
            msg = "Tied moments keep no covariance of single classes; accumulate with covariance='full'."
            raise ValueError(msg)
        part = SubgroupMoments(
            self.n_features, classes=self.classes[kept], groups=self.groups, covariance=self.covariance
        )
        for to, array in zip(part._sums(), self._sums(), strict=True):
            to[...] = array[kept]
        part._pooling, part._factors = self._pooling, None if self._factors is None else self._factors[kept]
        part._shrunk = None if self._shrunk is None else self._shrunk[kept]
        return part

    def borrow(self, min_size: float, *, standardize: bool = False) -> SubgroupMoments:
        """Fill small subgroups up with rows that the other subgroups suggest.

        A subgroup of n < `min_size` rows gets the mean and covariance of its n rows together with ``min_size - n`` rows
        of a borrowed Gaussian. Its mean is what the class and the group add to one another, fitted to all subgroups by
        weighted least squares (two-way analysis of variance without interaction); its covariance is that of the group,
        averaged over classes by weight. Where a whole group has n < `min_size` rows, what it adds is shrunk by
        ``n / min_size``, and its covariance is filled up by that of all groups in the same way.

        Parameters
        ----------
        min_size : float
            Rows (see `sizes`) from which on a subgroup stands for itself.
        standardize : bool, default=False
            Whether the classes have the same weights in the covariance of every group, see `tie`.

        Returns
        -------
        moments : SubgroupMoments
            A new object; shrink the moments before, not afterwards. Weights stay, but for an empty subgroup, which
            takes the weight that it would have if class and group were independent.

        Raises
        ------
        ValueError
            When `min_size` is negative.
        """
        if not min_size >= 0:
            msg = f"min_size must not be negative, not {min_size}."
            raise ValueError(msg)
        own, of_group = (
            np.minimum(n / min_size, 1.0) if min_size else np.ones_like(n) for n in (self.sizes, self.group_sizes)
        )
        if not (own < 1).any():
            return self
        weights, means, covariances = self.weights, self.means, self.covariances
        group_weights = weights.sum(axis=0)
        shares = weights * class_factors(weights) if standardize else weights
        of_class = np.divide(shares, group_weights, out=np.zeros_like(weights), where=group_weights > 0)
        class_means, offsets = additive_means(weights, means)
        offsets *= of_group[:, None]
        borrowed = class_means[:, None] + offsets
        difference = means - borrowed
        within = covariances if self.covariance == "tied" else np.einsum("ka,ka...->a...", of_class, covariances)
        overall = np.tensordot(group_weights / group_weights.sum(), within, axes=1)
        fill = broadcast_factors(of_group, within)
        within = fill * within + (1 - fill) * overall
        # Two sets of rows with different means vary about their common mean.
        spread = own * (1 - own)
        if self.covariance == "tied":
            filled = within + np.einsum("ka,kai,kaj->aij", of_class * spread, difference, difference, optimize=True)
        else:
            fill, shape = broadcast_factors(own, covariances), "kaj,kaj->kaj" if self.covariance == "diagonal" else None
            between = np.einsum(shape or "kai,kaj->kaij", difference, difference)
            filled = fill * covariances + (1 - fill) * within + broadcast_factors(spread, covariances) * between
        moments = self._replace_covariances(filled)
        moments.means = own[..., None] * means + (1 - own[..., None]) * borrowed
        independent = np.outer(weights.sum(axis=1), group_weights) / weights.sum()
        moments.weights = np.where(weights > 0, weights, independent)
        return moments

    def tie(self, *, standardize: bool = False) -> SubgroupMoments:
        """Pool the covariances of the classes of every group.

        Parameters
        ----------
        standardize : bool, default=False
            Whether the classes have the same weights in every group, those that they have in all rows, instead of
            their weights in the group. Else groups whose classes are distributed alike have different covariances
            wherever classes differ in spread and groups in base rates. Moments that are tied already must have been
            given `cell_counts` for that.

        Returns
        -------
        moments : SubgroupMoments
            With one covariance a group; `self` when it has that already.

        Raises
        ------
        ValueError
            For the diagonal model, which keeps no covariance between features; for tied moments that were not
            standardised as they were accumulated.
        """
        if self.covariance == "tied":
            if standardize and self._factors is None and self.n_classes > 1:
                msg = (
                    "Tied moments keep no scatter of single classes: to standardise them, accumulate with "
                    "SubgroupMoments(..., cell_counts=...), or with covariance='full'."
                )
                raise ValueError(msg)
            return self
        if self.covariance == "diagonal":
            msg = "Diagonal moments keep no covariance between features; use covariance='diagonal'."
            raise ValueError(msg)
        tied = SubgroupMoments(self.n_features, classes=self.classes, groups=self.groups, covariance="tied")
        tied.weights[:], tied._weight_squares[:] = self.weights, self._weight_squares
        tied.means[:], tied._cubics[:], tied._quartics[:] = self.means, self._cubics, self._quartics
        factors = class_factors(self.weights) if standardize else np.ones_like(self.weights)
        tied._scatters[:] = (factors[..., None, None] * self._scatters).sum(axis=0)
        if standardize:
            tied._weigh_classes_alike(factors)
            tied._cubics *= factors[..., None]
            tied._quartics *= factors
        if self._shrunk is None:  # pooling moves scatter within a group, whose sum it leaves
            return tied
        weights = self.weights * factors
        totals = weights.sum(axis=0)[:, None, None]
        pooled = (self._shrunk * weights[..., None, None]).sum(axis=0)
        return tied._replace_covariances(np.divide(pooled, totals, out=np.zeros_like(pooled), where=totals > 0))

    def shrinkage_intensity(self, shrinkage: str) -> Doubles:
        """Intensity in [0, 1] that "ledoit_wolf" or "oas" gives every covariance.

        Parameters
        ----------
        shrinkage : {"ledoit_wolf", "oas"}
            Ledoit and Wolf (2004), from fourth moments; or the oracle-approximating estimator of Chen et al. (2010),
            for Gaussian data, as scikit-learn computes them.

        Returns
        -------
        intensity : ndarray of shape (n_groups,) or (n_classes, n_groups)
            For the tied model one a group. The diagonal model shrinks variances towards their average over
            features, with the intensity that minimises the same expected loss within diagonal matrices.

        Notes
        -----
        Rows are counted as in `sizes`.
        """
        covariances = self.covariances
        if self.covariance == "tied":
            weights, squares = (sums.sum(axis=0) for sums in self._sums()[:2])
            quartics = self._quartics.sum(axis=0)
        else:
            weights, quartics = map(self._pooled, (self.weights, self._quartics))
            squares = self._pooled(self._weight_squares, power=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            n = rows_behind(weights, squares)
            if self.covariance == "diagonal":
                fourth = quartics / weights[..., None]
                error = ((fourth - covariances**2) if shrinkage == "ledoit_wolf" else 2 * covariances**2).sum(
                    axis=-1
                ) / n
                distance = ((covariances - covariances.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
                intensity = error / distance
            else:
                d = self.n_features
                trace = np.trace(covariances, axis1=-2, axis2=-1)
                square = (covariances**2).sum(axis=(-2, -1))
                if shrinkage == "ledoit_wolf":
                    # Lemma 3.3 and section 3.3 of Ledoit and Wolf (2004).
                    intensity = ((quartics / weights - square) / n) / (square - trace**2 / d)
                else:
                    # Eq. 23 of Chen et al. (2010), with the mean squares that scikit-learn takes.
                    alpha, mu2 = square / d**2, (trace / d) ** 2
                    intensity = (alpha + mu2) / ((n + 1) * (alpha - mu2 / d))
        # 0/0: nothing to shrink (one feature, or a multiple of the identity already).
        clipped: Doubles = np.clip(np.nan_to_num(intensity, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
        return clipped

    def shrink(
        self,
        shrinkage: Any,
        *,
        X: ArrayLike | None = None,
        y_codes: ArrayLike | None = None,
        group_codes: ArrayLike | None = None,
    ) -> SubgroupMoments:
        """Regularised covariances.

        Parameters
        ----------
        shrinkage : {"ledoit_wolf", "oas"}, float in [0, 1], None or a scikit-learn covariance estimator
            Convex combination of every covariance with the multiple of the identity of the same trace: intensity
            by formula, or given; None leaves them as they are. An estimator (with `fit` and `covariance_`) is
            cloned and fitted to the rows of every covariance, about their subgroup means, unweighted.
        X : array-like of shape (n_samples, n_features), default=None
            The rows, for an estimator.
        y_codes, group_codes : array-like of shape (n_samples,), default=None
            Their codes, for an estimator.

        Returns
        -------
        moments : SubgroupMoments
            A new object with the regularised covariances.

        Raises
        ------
        ValueError
            When `shrinkage` is none of these, or an estimator is given without rows.
        """
        if shrinkage is None:
            return self
        if isinstance(shrinkage, str):
            if shrinkage not in ("ledoit_wolf", "oas"):
                msg = f"shrinkage must be 'ledoit_wolf', 'oas', a float, None or an estimator, not {shrinkage!r}."
                raise ValueError(msg)
            return self._replace_covariances(self._towards_identity(self.shrinkage_intensity(shrinkage)))
        if isinstance(shrinkage, (int, float, np.integer, np.floating)) and not isinstance(shrinkage, bool):
            if not 0 <= shrinkage <= 1:
                msg = f"shrinkage must lie in [0, 1], not {shrinkage}."
                raise ValueError(msg)
            n = self.weights.sum(axis=0) if self.covariance == "tied" else self.weights
            return self._replace_covariances(self._towards_identity(np.full(n.shape, float(shrinkage))))
        if not hasattr(shrinkage, "fit"):
            msg = f"shrinkage must be 'ledoit_wolf', 'oas', a float, None or an estimator, not {shrinkage!r}."
            raise ValueError(msg)
        if X is None or y_codes is None or group_codes is None:
            msg = f"shrinkage={shrinkage!r} is fitted to rows: pass X, y_codes and group_codes."
            raise ValueError(msg)
        return self._replace_covariances(
            self._fit_estimator(
                shrinkage, np.asarray(X, dtype=np.float64), np.asarray(y_codes), np.asarray(group_codes)
            )
        )

    def _towards_identity(self, intensity: Doubles) -> Doubles:
        covariances = self.covariances
        if self.covariance == "diagonal":
            average = covariances.mean(axis=-1, keepdims=True)
            pulled: Doubles = (1 - intensity[..., None]) * covariances + intensity[..., None] * average
            return pulled
        d = self.n_features
        average = np.trace(covariances, axis1=-2, axis2=-1) / d
        shrunk = (1 - intensity[..., None, None]) * covariances
        diagonal = np.arange(d)
        shrunk[..., diagonal, diagonal] += (intensity * average)[..., None]
        return shrunk

    def _fit_estimator(self, estimator: Any, X: Doubles, y_codes: NDArray[Any], group_codes: NDArray[Any]) -> Doubles:
        covariances = np.zeros_like(self._scatters)
        seen = (y_codes >= 0) & (group_codes >= 0)
        for cell in np.ndindex(covariances.shape[: 1 if self.covariance == "tied" else 2]):
            rows = seen & (group_codes == cell[-1])
            if len(cell) == 2:
                rows &= y_codes == cell[0]
            if not rows.any():
                continue
            centred = X[rows] - self.means[y_codes[rows], group_codes[rows]]
            fitted = np.asarray(getattr(clone(estimator).fit(centred), "covariance_", None))
            if fitted.shape != (self.n_features, self.n_features):
                found = "none" if fitted.ndim == 0 else f"one of shape {fitted.shape}"
                msg = (
                    f"shrinkage={brief(estimator)} must give covariance_, of shape "
                    f"{(self.n_features, self.n_features)}, once it is fitted; it gives {found}. Use a covariance "
                    "estimator, such as sklearn.covariance.LedoitWolf()."
                )
                raise ValueError(msg)
            covariances[cell] = np.diag(fitted) if self.covariance == "diagonal" else fitted
        return covariances

    def _feature_scale(self) -> Doubles:
        """Measure every feature: its standard deviation over all rows, between subgroups too; 1 if constant."""
        total = self.weights.sum()
        mean = np.einsum("ka,kaj->j", self.weights, self.means) / total
        between = np.einsum("ka,kaj->j", self.weights, (self.means - mean) ** 2) / total
        covariances = self.covariances
        if self.covariance == "tied":
            within = np.einsum("a,ajj->j", self.weights.sum(axis=0), covariances) / total
        elif self.covariance == "full":
            within = np.einsum("ka,kajj->j", self.weights, covariances) / total
        else:
            within = np.einsum("ka,kaj->j", self.weights, covariances) / total
        variance = within + between
        # A constant column of large numbers has a variance of rounding errors.
        noise = (4 * np.finfo(np.float64).eps * np.abs(mean)) ** 2
        scale: Doubles = np.where(variance > noise, np.sqrt(variance), np.maximum(np.sqrt(noise), 1.0))
        return scale

    def _positive_definite(self) -> tuple[Doubles, NDArray[np.int64]]:
        """Covariances with their spectra lifted to the relative floor, and their effective ranks."""
        covariances = np.ascontiguousarray(self.covariances)
        bad = ~np.isfinite(self.means).all(axis=2)
        if bad.any() or not np.isfinite(covariances).all():
            where = "covariances"
            if bad.any():
                k, a = np.argwhere(bad)[0]
                where = f"mean of class {self.classes.tolist()[k]!r}, group {self.groups.tolist()[a]!r}"
            msg = (
                f"The moments hold NaN or infinite values ({where}): a row was not finite, or too large to be squared."
            )
            raise ValueError(msg)
        scale = self._feature_scale()
        d = self.n_features
        if self.covariance == "diagonal":
            floor = _RELATIVE_FLOOR * scale**2
            ranks = (covariances > floor).sum(axis=-1)
            return np.maximum(covariances, floor), ranks
        matrices = covariances.reshape(-1, d, d)
        ranks = np.empty(len(matrices), dtype=np.int64)
        lifted: Doubles | None = None  # made when something changes: there may be gigabytes of them
        for i, matrix in enumerate(matrices):
            floored = np.array(matrix[None])
            ranks[i] = _core.floor_spectra(floored, scale, _RELATIVE_FLOOR)[0]
            if not np.array_equal(floored[0], matrix):
                lifted = np.array(matrices) if lifted is None else lifted
                lifted[i] = floored[0]
        result = matrices if lifted is None else lifted
        return result.reshape(covariances.shape), ranks.reshape(covariances.shape[:-2])

    @property
    def effective_rank(self) -> NDArray[np.int64]:
        """Number of directions of every covariance that vary, (n_groups,) when tied, else (n_classes, n_groups)."""
        return self._positive_definite()[1]

    def log_joint(self, X: ArrayLike) -> Doubles:
        """Log of the joint density of rows, classes and groups under the fitted Gaussians.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, finite.

        Returns
        -------
        log_joint : ndarray of shape (n_samples, n_classes, n_groups)
            ``log q[k, a] + log N(x; mean[k, a], covariance[k, a])`` in nats, -inf for a subgroup without rows.
        """
        rows = np.asarray(X, dtype=np.float64)
        K, G, _ = self.means.shape
        covariances, _ = self._positive_definite()
        out = np.full((len(rows), K, G), -np.inf)
        for a in range(G):
            seen = self.weights[:, a] > 0
            if not seen.any():
                continue
            of_group = covariances[a] if self.covariance == "tied" else covariances[seen, a]
            log_weights = np.log(self.weights[seen, a] / self.weights.sum())
            out[:, seen, a] = log_weights + log_densities(rows, self.means[seen, a], of_group, self.covariance)
        return out

    def cell_table(self, most: int | None = _LISTED_CELLS) -> str:
        """Weights of subgroups as text.

        Parameters
        ----------
        most : int or None, default=40
            Up to this number of subgroups the table has a line a class and a column a group, or the other way round
            if there are more groups than classes. Of more subgroups it lists this many, the smallest first. None:
            the whole table, whatever its size.

        Returns
        -------
        table : str
            Lines of equal length.
        """
        classes, groups = ([str(label) for label in labels.tolist()] for labels in (self.classes, self.groups))
        rest = 0
        if most is not None and self.weights.size > most:
            smallest = np.argsort(self.weights, axis=None, kind="stable")[:most].tolist()
            cells = [divmod(cell, self.n_groups) for cell in smallest]
            lines = [
                ["class", "group", "weight"],
                *([classes[k], groups[a], f"{self.weights[k, a]:.6g}"] for k, a in cells),
            ]
            rest = self.weights.size - most
        elif self.n_groups > self.n_classes:
            lines = [["group \\ class", *classes], *_labelled(groups, self.weights.T)]
        else:
            lines = [["class \\ group", *groups], *_labelled(classes, self.weights)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(map(str.rjust, line, widths)) for line in lines]
        if rest:
            text.append(f"and {rest} larger ones".rjust(len(text[0])))
        return "\n".join(text)

    def __repr__(self) -> str:
        return (
            f"SubgroupMoments({self.n_classes} classes x {self.n_groups} groups, {self.n_features} features, "
            f"covariance={self.covariance!r}, weight={self.weights.sum():.6g})"
        )


def small_columns(weights: Doubles, squares: Doubles, min_size: float) -> list[int]:
    """Positions of the groups that `SubgroupMoments.small_groups` names, from sums of weights and of their squares."""
    smallest = rows_behind(weights, squares).min(axis=0)
    order = np.argsort(smallest, kind="stable")
    n = int((smallest < min_size).sum())
    while 0 < n < weights.shape[1]:
        some = order[:n]
        if rows_behind(weights[:, some].sum(axis=1), squares[:, some].sum(axis=1)).min() >= min_size:
            break
        n += 1
    return sorted(order[:n].tolist())


def class_factors(counts: Doubles) -> Doubles:
    """Weights of the cells (K, G), relative to their own, with which every group has the classes' shares of all rows.

    The weight of a group stays. A class that a group has no row of is left out there; cells without rows have 0.
    """
    shares = np.where(counts > 0, counts.sum(axis=1, keepdims=True), 0.0)
    totals = shares.sum(axis=0)
    shares = np.divide(shares, totals, out=np.zeros_like(shares), where=totals > 0)
    factors: Doubles = np.divide(shares * counts.sum(axis=0), counts, out=np.zeros_like(shares), where=counts > 0)
    return factors


def _common_factors(
    first: SubgroupMoments, second: SubgroupMoments, places: Sequence[Any], shape: tuple[int, ...]
) -> Doubles:
    """Factors of the union of two standardised moments, which must agree where both have rows."""
    tables = np.zeros((2, *shape))
    for table, part, place in zip(tables, (first, second), places, strict=True):
        table[place] = np.zeros_like(part.weights) if part._factors is None else part._factors
    both = (tables > 0).all(axis=0)
    plain = [part for part in (first, second) if part._factors is None and part.weights.any()]
    if plain or not np.allclose(tables[0][both], tables[1][both], rtol=1e-9):
        msg = (
            "Moments in which the classes weigh alike in every group can be merged if their weights are the same: give "
            "the cell_counts of all rows to both, or accumulate with covariance='full' and tie the result."
        )
        raise ValueError(msg)
    return np.asarray(tables.max(axis=0))


def _writable(array: Doubles) -> Doubles:
    return array if array.flags.writeable else np.array(array)


def _labelled(labels: list[str], weights: Doubles) -> list[list[str]]:
    return [[label, *(f"{weight:.6g}" for weight in row)] for label, row in zip(labels, weights, strict=True)]
