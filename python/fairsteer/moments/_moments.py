"""Weight, mean and covariance of every subgroup (class x group): one pass, mergeable."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairsteer import _core
from fairsteer._utils.arrays import check_floats, has_double, lies_elsewhere, to_numpy
from fairsteer._utils.html import cells_svg, facts_html
from fairsteer._utils.input import brief, few, with_whole_strides
from fairsteer._utils.labels import check_labels, positions_within, union_of_labels
from fairsteer._utils.threads import own_threads
from fairsteer._utils.types import Codes, CovarianceModel, Doubles
from fairsteer._utils.weights import rows_behind
from fairsteer.moments._borrowing import borrowed_sums
from fairsteer.moments._coordinates import Coordinates, check_same_features, check_same_kinds, checked_names
from fairsteer.moments._covariances import Covariances, covariance_model, matching_model
from fairsteer.moments._density import Family, log_densities, relative_log_densities
from fairsteer.moments._device import BadRowError, DeviceSums
from fairsteer.moments._mixed import add_cells, add_rows
from fairsteer.moments._privacy import Privacy, checked_clip, clipped, described, merged_privacy, privatized
from fairsteer.moments._shrinkage import FORMULAS, formula_intensity, shrunk_covariances
from fairsteer.moments._standardizing import class_factors, common_factors, small_columns
from fairsteer.moments._table import LISTED_CELLS, weight_table

# What is accumulated, in the core's order.
SUMS = ("weights", "_weight_squares", "means", "_scatters", "_cubics", "_quartics")


class _Sum:
    """Array of sums, to which those of rows on a device are added when somebody looks at it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, moments: SubgroupMoments, owner: type) -> Doubles:
        moments._settle()
        found: Doubles = vars(moments)[self._name]
        return found

    def __set__(self, moments: SubgroupMoments, sums: Doubles) -> None:
        vars(moments)[self._name] = sums


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
    subgroup_counts : array-like of shape (n_classes, n_groups), default=None
        With "tied", weight of the rows that every subgroup will have, known beforehand: the classes then have the same
        weights in the covariance of every group (standardised pooling, see `tie`). Only ratios matter.
    feature_names : array-like of str of shape (n_features,), default=None
        Names of the features; moments with other names are not merged with these.
    coordinates : tuple (log, scale, shift) or transformer, default=None
        Coordinates in which rows are added up, if they are not the features themselves: ``scale * x + shift``, with
        arrays of shape (n_features,), of the features or, if `log`, of their logarithms; or the transformer that leads
        to them. It is compared when moments are merged, and changes nothing about `update`.
    rescalable : bool, default=False
        With "full", whether mixed third and fourth moments of all pairs of features are kept, so that `rescaled` can
        choose the scale of the features later: for sites that do not know what scale the rows of all will have. Takes
        three times the memory and more than three times as long.
    clip : float, default=None
        Length, in the coordinates in which rows are added up, to which longer rows are shortened: what `privatize`
        needs. Choose it without looking at the rows; sample weights must then not exceed 1.

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
    feature_names : tuple of str or None
        As given.
    coordinates : tuple, transformer or None
        As given.
    clip : float or None
        As given.
    privacy : tuple (epsilon, delta, clip) or None
        What `privatize` has promised of every row that is in them.

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

    weights = _Sum()
    _weight_squares = _Sum()
    means = _Sum()
    _scatters = _Sum()
    # Third and fourth moments, for the Ledoit-Wolf intensity.
    _cubics = _Sum()
    _quartics = _Sum()

    # Sums of rows that lie on a device, and beside them what the rows weigh there where those are of weighted rows.
    _there: DeviceSums | None = None
    _weights_there: tuple[Doubles, ...] = ()

    def __init__(
        self,
        n_features: int,
        *,
        classes: Iterable[Any],
        groups: Iterable[Any],
        covariance: CovarianceModel = "tied",
        subgroup_counts: ArrayLike | None = None,
        feature_names: Iterable[str] | None = None,
        coordinates: Any = None,
        rescalable: bool = False,
        clip: float | None = None,
    ) -> None:
        model = covariance_model(covariance)
        if n_features < 1:
            msg = f"n_features must be at least 1, not {n_features}."
            raise ValueError(msg)
        self.n_features = int(n_features)
        self.classes = check_labels(classes, "classes")
        self.groups = check_labels(groups, "groups")
        self.covariance: CovarianceModel = covariance
        self.feature_names = checked_names(feature_names, self.n_features)
        self.coordinates = Coordinates(*coordinates) if type(coordinates) is tuple else coordinates
        self.clip = checked_clip(clip)
        self.privacy: Privacy | None = None
        if self.clip is not None and (rescalable or subgroup_counts is not None):
            what = "rescalable=True: its third and fourth moments get no noise"
            if not rescalable:
                what = "subgroup_counts: they give rows weights that nothing bounds; use covariance='full', and tie it"
            msg = f"clip does not go with {what}."
            raise ValueError(msg)
        self._shrunk: Doubles | None = None
        self._pooling = 0.0
        K, G, d = len(self.classes), len(self.groups), self.n_features
        self.weights, self._weight_squares = np.zeros((K, G)), np.zeros((K, G))
        self.means, self._cubics = np.zeros((K, G, d)), np.zeros((K, G, d))
        self._scatters = np.zeros(model.shape(K, G, d))
        self._quartics = np.zeros(model.quartic_shape(K, G, d))
        # Mixed third and fourth moments of the cells, where the scale of the features is to be chosen later.
        self._mixed: tuple[Doubles, Doubles] | None = None
        if rescalable:
            if covariance != "full":
                msg = f"rescalable moments need covariance='full', not {covariance!r}."
                raise ValueError(msg)
            self._mixed = (np.zeros((K, G, d, d)), np.zeros((K, G, d, d)))
        # With which weights, relative to their own, rows enter the scatter of their group, and the sums of those.
        self._factors: Doubles | None = None
        self._scatter_sums: tuple[Doubles, Doubles] | None = None
        if subgroup_counts is not None:
            if model.by_class:
                msg = (
                    f"subgroup_counts is for covariance='tied': with {covariance!r} subgroups have scatters of their "
                    "own."
                )
                raise ValueError(msg)
            counts = np.asarray(subgroup_counts, dtype=np.float64)
            if counts.shape != (K, G) or not np.isfinite(counts).all() or (counts < 0).any():
                msg = f"subgroup_counts must be finite, not negative and of shape ({K}, {G}), got shape {counts.shape}."
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
        covariance: CovarianceModel | None = None,
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
        covariance : {"tied", "full", "diagonal"}, default=None
            Which model the covariances are of; None: the one whose shape they have. Where there are as many classes as
            groups and features, the tied and the diagonal one have the same, and symmetry decides.

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
        covariance = matching_model(Sigma, K, G, d, covariance)
        model = covariance_model(covariance)
        for name, array in (("weights", w), ("means", mu), ("covariances", Sigma)):
            if not np.isfinite(array).all():
                msg = f"{name} must be finite."
                raise ValueError(msg)
        if (w < 0).any():
            msg = f"weights must not be negative; the smallest is {w.min()}."
            raise ValueError(msg)
        variances = model.variances(Sigma)
        if (variances < 0).any():
            msg = f"variances must not be negative; the smallest is {variances.min()}."
            raise ValueError(msg)
        Sigma = model.checked(Sigma)
        moments = cls(
            d,
            classes=np.arange(K) if classes is None else classes,
            groups=np.arange(G) if groups is None else groups,
            covariance=covariance,
        )
        for name, labels, n in (("classes", moments.classes, K), ("groups", moments.groups, G)):
            if len(labels) != n:
                msg = f"{name} must hold {n} labels, not {len(labels)}."
                raise ValueError(msg)
        moments.weights[:] = w
        moments._weight_squares[:] = w  # as if every row had weight one
        moments.means[w > 0] = mu[w > 0]
        moments._scatters[:] = Sigma * moments._scatter_weights()
        # Ledoit and Wolf's intensity needs fourth moments: those of a Gaussian.
        moments._quartics[:] = model.gaussian_quartics(Sigma, w)
        return moments

    @property
    def model(self) -> Covariances:
        """What the covariances look like."""
        return covariance_model(self.covariance)

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
        own: tuple[Doubles, ...] = tuple(getattr(self, name) for name in SUMS)
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

    def _scatter_weights(self) -> Doubles:
        """Weight sum behind every scatter, shaped to broadcast against them."""
        return self.model.scaled_by(self.model.in_cells(self._pooled(self._sums()[0])), self._scatters)

    def _pooled(self, sums: Doubles, power: int = 1) -> Doubles:
        """Replace part of the sums of every subgroup (first two axes) by those of its group."""
        if self._pooling == 0:
            return sums
        of_group = sums if self._factors is None else self.model.scaled_by(self._factors**power, sums) * sums
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
            precision. Must be finite. Arrays of other libraries too (torch, CuPy, JAX, …; bfloat16 counts as float32):
            rows on a device are added up there, and their sums come back once, when they are looked at.
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
            When shapes do not agree, a code is too large, or a weight is negative or not finite; when a row is not
            finite, or too large to be squared. The accumulator is then what it was, and so it is after Ctrl-C.
        MemoryError
            When the sums do not fit into what is free on the device of the rows.

        Notes
        -----
        On a device products of single precision are never rounded to TensorFloat-32 or half precision, whatever the
        settings. A device without double precision, and `rescalable` moments, have their rows copied to the processor.
        """
        if self._regularised:
            msg = "These moments are pooled or shrunk and accept no more rows; update the ones they were made from."
            raise ValueError(msg)
        if self.privacy is not None:
            msg = (
                f"These moments have noise ({described(self.privacy)}), which would not hide rows that are added now. "
                "Add them to moments of their own, privatize those, and merge both."
            )
            raise ValueError(msg)
        if lies_elsewhere(X) and self._mixed is None and has_double(X):
            return self._update_there(X, to_numpy(y_codes), to_numpy(group_codes), to_numpy(sample_weight))
        rows: NDArray[Any] = np.asarray(to_numpy(X))
        if rows.dtype not in (np.float16, np.float32, np.float64) or not rows.dtype.isnative:
            rows = rows.astype(np.float64)
        rows = with_whole_strides(rows)
        y, a, weights = self._codes_and_weights(
            len(rows), to_numpy(y_codes), to_numpy(group_codes), to_numpy(sample_weight)
        )
        if self.clip is not None and rows.ndim == 2:
            rows = clipped(rows, self.clip)
        self._make_writable()
        if self._mixed is not None:
            mixed = tuple(np.array(sums) for sums in self._mixed)
            add_rows((mixed[0], mixed[1]), (self.weights, self.means, self._scatters), rows, y, a, weights)
        of_cells, weights = self._weighted(y, a, weights)
        try:
            with own_threads() as n_threads:
                _core.update_moments(self.covariance, self._sums(), rows, y, a, weights, n_threads)
        except _core.NumericalError as error:
            what, k, g = error.args
            where = f"group {self.groups.tolist()[g]!r}"
            if k >= 0:
                where = f"class {self.classes.tolist()[k]!r}, {where}"
            msg = f"{what} ({where})."
            raise ValueError(msg) from error
        for sums, added in zip((self.weights, self._weight_squares), of_cells, strict=False):
            sums += added
        if self._mixed is not None:
            self._mixed = (mixed[0], mixed[1])
        return self

    def _codes_and_weights(
        self, n_rows: int, y_codes: ArrayLike, group_codes: ArrayLike, sample_weight: ArrayLike | None
    ) -> tuple[Codes, Codes, Doubles | None]:
        y = self._codes(y_codes, self.n_classes, "y_codes", n_rows)
        a = self._codes(group_codes, self.n_groups, "group_codes", n_rows)
        if sample_weight is None:
            return y, a, None
        weights: Doubles = np.ascontiguousarray(sample_weight, dtype=np.float64)
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            msg = "sample_weight must be finite and not negative."
            raise ValueError(msg)
        if self.clip is not None and weights.max(initial=0) > 1:
            msg = f"sample_weight must not exceed 1 where rows are clipped, but the largest is {weights.max():g}."
            raise ValueError(msg)
        return y, a, weights

    def _make_writable(self) -> None:
        """Copy memory that came read-only, mapped from a file or shared between processes."""
        for name in SUMS:
            setattr(self, name, _writable(getattr(self, name)))
        if self._scatter_sums is not None:
            self._scatter_sums = (_writable(self._scatter_sums[0]), _writable(self._scatter_sums[1]))

    def _weighted(self, y: Codes, a: Codes, weights: Doubles | None) -> tuple[tuple[Doubles, ...], Doubles | None]:
        """Give what rows weigh by cell, if it is not what they weigh in the scatters, and what they weigh there."""
        if self._factors is None or self._scatter_sums is None:
            return (), weights
        counted = (y >= 0) & (a >= 0)
        own = np.ones(len(y)) if weights is None else weights
        cell = y[counted] * self.n_groups + a[counted]
        lost = cell[self._factors.ravel()[cell] == 0]
        if lost.size:
            k, g = divmod(int(lost[0]), self.n_groups)
            msg = (
                f"There is a row of class {self.classes.tolist()[k]!r} in group {self.groups.tolist()[g]!r}, for "
                "which subgroup_counts has 0."
            )
            raise ValueError(msg)
        shape = self._factors.shape
        of_cells = tuple(
            np.bincount(cell, w[counted], self._factors.size).astype(np.float64).reshape(shape) for w in (own, own**2)
        )
        return of_cells, np.where(counted, own * self._factors[y, a], 0.0)

    # ---- rows on a device

    def _update_there(self, X: Any, y_codes: Any, group_codes: Any, sample_weight: Any) -> SubgroupMoments:
        """Add rows where they lie; their sums come back when somebody looks at them."""
        X = check_floats(X)
        if X.shape[1] != self.n_features:
            msg = f"X has {X.shape[1]} features, but the moments are of {self.n_features}."
            raise ValueError(msg)
        y, a, weights = self._codes_and_weights(int(X.shape[0]), y_codes, group_codes, sample_weight)
        of_cells, weights = self._weighted(y, a, weights)
        if self.clip is not None:
            X = clipped(X, self.clip)
        if self._there is not None and not self._there.serves(X):
            self._settle()
        if self._there is None:
            self._there = DeviceSums(X, self.covariance, self.n_classes, self.n_groups)
            self._weights_there = tuple(map(np.zeros_like, of_cells))
        try:
            self._there.add(X, np.where((y >= 0) & (a >= 0), y * self.n_groups + a, -1), weights)
        except BadRowError as error:
            k, g = self.classes.tolist()[y[error.args[0]]], self.groups.tolist()[a[error.args[0]]]
            msg = f"Row {error.args[0]} is not finite, or too large to be squared (class {k!r}, group {g!r})."
            raise ValueError(msg) from error
        for sums, added in zip(self._weights_there, of_cells, strict=True):
            sums += added
        return self

    def _settle(self) -> None:
        """Bring the sums of rows on a device back, and add them to the others."""
        there, self._there = self._there, None
        if there is None:
            return
        self._make_writable()
        _core.merge_moments(self.covariance, self._sums(), there.home(), np.arange(there.weights.size))
        for sums, added in zip((self.weights, self._weight_squares), self._weights_there, strict=False):
            sums += added

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        return self.__dict__

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
            When the features, their order, their coordinates, the covariance model or the kinds of labels (text,
            numbers) differ, or one of the two is shrunk.

        Notes
        -----
        Exact, but for the Ledoit-Wolf intensity of the tied model, which keeps one scatter a group: there a term of
        relative size 1/n uses the group's scatter for that of its classes.
        """
        check_same_kinds("classes", self.classes, other.classes)
        check_same_kinds("groups", self.groups, other.groups)
        return self._united(other)

    def _united(self, other: SubgroupMoments) -> SubgroupMoments:
        """Merge moments whose labels may be of different kinds."""
        if self.covariance != other.covariance:
            msg = (
                f"Moments with covariance={other.covariance!r} cannot be merged with those with "
                f"covariance={self.covariance!r}; accumulate both with the same."
            )
            raise ValueError(msg)
        names, coordinates = check_same_features(self, other)
        if self._regularised or other._regularised:
            msg = "Pooled or shrunk moments cannot be merged; merge the ones they were made from first."
            raise ValueError(msg)
        merged = SubgroupMoments(
            self.n_features,
            classes=union_of_labels(self.classes, other.classes),
            groups=union_of_labels(self.groups, other.groups),
            covariance=self.covariance,
            feature_names=names,
            coordinates=coordinates,
            rescalable=self._mixed is not None and other._mixed is not None,
        )
        places = [
            np.ix_(positions_within(part.classes, merged.classes), positions_within(part.groups, merged.groups))
            for part in (self, other)
        ]
        merged.clip, merged.privacy = merged_privacy(self, other)
        if self._factors is not None or other._factors is not None:
            merged._weigh_classes_alike(common_factors(self, other, places, merged.weights.shape))
        for part, (k, a) in zip((self, other), places, strict=True):
            cells = np.ascontiguousarray((k * merged.n_groups + a).ravel())
            if merged._mixed is not None and part._mixed is not None:
                sums, of_part = ((one.weights, one.means, one._scatters) for one in (merged, part))
                add_cells(merged._mixed, sums, part._mixed, of_part, (k, a))
            _core.merge_moments(self.covariance, merged._sums(), tuple(map(_writable, part._sums())), cells)
            if merged._factors is not None:
                merged.weights[k, a] += part.weights
                merged._weight_squares[k, a] += part._weight_squares
        return merged

    def privatize(self, epsilon: float, delta: float) -> SubgroupMoments:
        """Add Gaussian noise, so that little can be told from the moments of any single row.

        Parameters
        ----------
        epsilon : float
            Positive: with or without any one row, no outcome is more than ``exp(epsilon)`` times as likely, but for
            outcomes of probability `delta`.
        delta : float in (0, 1)
            Much less than one over the number of rows.

        Returns
        -------
        moments : SubgroupMoments
            New ones, with noise in the counts, means and covariances, and `privacy`. Covariances are the nearest
            positive semi-definite ones; subgroups of less than one row after the noise are empty.

        Raises
        ------
        ImportError
            If opendp is not installed.
        ValueError
            If rows were not clipped, there is noise already, or the moments are pooled or shrunk.

        Notes
        -----
        **What is hidden** is whether a row is there, and all of it: its features, class and group; one row a person.
        The size of the noise and the noise itself are OpenDP's. Counts, sums of rows over `clip`, and sums of products
        over its square are one vector, of which a row moves at most sqrt(3); third and fourth moments are not released
        (Ledoit-Wolf takes those of Gaussians).

        **What is not hidden**: the labels of classes and groups, the names of features, their coordinates and `clip`,
        which therefore must not be taken from the rows. The noise has a size of its own, whatever the number of rows,
        so that small subgroups drown in it.

        **Sums**: merged moments of disjoint rows promise the weaker of both promises (`a + b`). Noise on the same rows
        twice promises less: their epsilons and deltas add up, which is for whoever publishes them to count. Moments
        that are merged with some without noise have no `privacy`; what was promised of the rows with noise still holds.

        Examples
        --------
        >>> from fairsteer import SubgroupMoments
        >>> from fairsteer.datasets import make_biased_groups
        >>> moments = SubgroupMoments(3, classes=[0, 1], groups=["f", "m"], covariance="full", clip=3.0)
        >>> moments = moments.update(*make_biased_groups(10000, 3, random_state=0))
        >>> released = moments.privatize(epsilon=1.0, delta=1e-6)
        >>> released.privacy
        Privacy(epsilon=1.0, delta=1e-06, clip=3.0)
        >>> bool(abs(released.weights.sum() - 10000) < 200)
        True
        """
        return privatized(self, epsilon, delta)

    def __add__(self, other: Any) -> SubgroupMoments:
        """Moments of the union of two data sets, see `merge`."""
        return self.merge(other) if isinstance(other, SubgroupMoments) else NotImplemented

    def __radd__(self, other: Any) -> SubgroupMoments:
        """Let ``sum`` begin, which it does with 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def _empty(
        self,
        *,
        classes: Iterable[Any] | None = None,
        groups: Iterable[Any] | None = None,
        covariance: CovarianceModel | None = None,
    ) -> SubgroupMoments:
        """Moments of no rows, of the same features."""
        empty = SubgroupMoments(
            self.n_features,
            classes=self.classes if classes is None else classes,
            groups=self.groups if groups is None else groups,
            covariance=covariance or self.covariance,
            feature_names=self.feature_names,
            coordinates=self.coordinates,
            clip=self.clip,
        )
        empty.privacy = self.privacy
        return empty

    @property
    def _regularised(self) -> bool:
        return self._pooling > 0 or self._shrunk is not None

    def _replace_covariances(self, covariances: Doubles | None, pooling: float | None = None) -> SubgroupMoments:
        self._settle()
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

    def small_groups(self, min_subgroup_size: float) -> list[Any]:
        """Find groups to merge so that no subgroup is left with few rows.

        Parameters
        ----------
        min_subgroup_size : float
            Rows (see `sizes`) that every class should have in every group.

        Returns
        -------
        labels : list
            The groups that have fewer in some class. Where these together have too few as well, the next smallest
            groups join them. Every group, if nothing less will do; empty, if nothing is small.
        """
        labels = self.groups.tolist()
        return [labels[a] for a in small_columns(self.weights, self._weight_squares, min_subgroup_size)]

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
        place = {label: a for a, label in enumerate(self.groups.tolist())}
        merging = dict.fromkeys(labels)
        unknown = [label for label in merging if label not in place]
        if unknown or into in place:
            reason = f"{into!r} is a group already" if into in place else f"{unknown[0]!r} is no group"
            msg = f"Groups cannot be merged: {reason}."
            raise ValueError(msg)
        if self._regularised:
            msg = "Pooled or shrunk moments cannot be merged; merge the ones they were made from first."
            raise ValueError(msg)
        one = self._empty(groups=[into])
        if self._factors is not None:
            some = self._factors[:, [place[label] for label in merging]]
            joint = some.max(axis=1, keepdims=True, initial=0.0)
            if not np.allclose(some, np.where(some > 0, joint, 0.0), rtol=1e-9):
                msg = "Standardised moments can be merged if their subgroup_counts were those of the groups as merged."
                raise ValueError(msg)
            one._weigh_classes_alike(joint)
        for label in merging:
            part = self._of_groups([place[label]])
            _core.merge_moments(self.covariance, one._sums(), part._sums(), np.arange(self.n_classes))
            if self._factors is not None:
                one.weights += part.weights
                one._weight_squares += part._weight_squares
        kept = [a for label, a in place.items() if label not in merging]
        return self._of_groups(kept)._united(one) if kept else one

    def _of_groups(self, positions: list[int]) -> SubgroupMoments:
        part = self._empty(groups=self.groups[positions])
        if self._factors is not None:
            part._weigh_classes_alike(self._factors[:, positions])
            part.weights[:], part._weight_squares[:] = self.weights[:, positions], self._weight_squares[:, positions]
        for to, array in zip(part._sums(), self._sums(), strict=True):
            to[...] = self.model.take_groups(array, positions) if array is self._scatters else array[:, positions]
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
        if not self.model.by_class:
            msg = "Tied moments keep no covariance of single classes; accumulate with covariance='full'."
            raise ValueError(msg)
        part = self._empty(classes=self.classes[kept])
        for to, array in zip(part._sums(), self._sums(), strict=True):
            to[...] = array[kept]
        part._pooling, part._factors = self._pooling, None if self._factors is None else self._factors[kept]
        part._shrunk = None if self._shrunk is None else self._shrunk[kept]
        return part

    def borrow(self, min_subgroup_size: float, *, standardize: bool = False) -> SubgroupMoments:
        """Fill small subgroups up with rows that the other subgroups suggest.

        A subgroup of n < `min_subgroup_size` rows gets the mean and covariance of its n rows together with
        ``min_subgroup_size - n`` rows of a borrowed Gaussian. Its mean is what the class and the group add to one
        another, fitted to all subgroups by weighted least squares (two-way analysis of variance without interaction);
        its covariance is that of the group, averaged over classes by weight. Where a whole group has n <
        `min_subgroup_size` rows, what it adds is shrunk by ``n / min_subgroup_size``, and its covariance is filled up
        by that of all groups in the same way.

        Parameters
        ----------
        min_subgroup_size : float
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
            When `min_subgroup_size` is negative.
        """
        if not min_subgroup_size >= 0:
            msg = f"min_subgroup_size must not be negative, not {min_subgroup_size}."
            raise ValueError(msg)
        if not min_subgroup_size or not (self.sizes < min_subgroup_size).any():
            return self
        weights, means, covariances = borrowed_sums(self, min_subgroup_size, standardize)
        moments = self._replace_covariances(covariances)
        moments.weights, moments.means = weights, means
        return moments

    def tie(self, *, standardize: bool = False) -> SubgroupMoments:
        """Pool the covariances of the classes of every group.

        Parameters
        ----------
        standardize : bool, default=False
            Whether the classes have the same weights in every group, those that they have in all rows, instead of
            their weights in the group. Else groups whose classes are distributed alike have different covariances
            wherever classes differ in spread and groups in base rates. Moments that are tied already must have been
            given `subgroup_counts` for that.

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
        if not self.model.by_class:
            if standardize and self._factors is None and self.n_classes > 1:
                msg = (
                    "Tied moments keep no scatter of single classes: to standardise them, accumulate with "
                    "SubgroupMoments(..., subgroup_counts=...), or with covariance='full'."
                )
                raise ValueError(msg)
            return self
        if not self.model.matrices:
            msg = "Diagonal moments keep no covariance between features; use covariance='diagonal'."
            raise ValueError(msg)
        return self._tied(class_factors(self.weights) if standardize else None)

    def _tied(self, factors: Doubles | None) -> SubgroupMoments:
        """Pool the covariances of the classes, whose rows count with these weights (K, G) relative to their own."""
        tied = self._empty(covariance="tied")
        tied.weights[:], tied._weight_squares[:] = self.weights, self._weight_squares
        tied.means[:], tied._cubics[:], tied._quartics[:] = self.means, self._cubics, self._quartics
        standardize = factors is not None
        factors = np.ones_like(self.weights) if factors is None else factors
        for of_class, scatters in zip(factors, self._scatters, strict=True):  # there may be gigabytes of them
            tied._scatters += of_class[:, None, None] * scatters
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

    @property
    def rescalable(self) -> bool:
        """Whether `rescaled` can change the scale of the features."""
        return self._mixed is not None

    def rescaled(self, scale: ArrayLike, shift: ArrayLike = 0.0) -> SubgroupMoments:
        """Moments of the same rows in other units.

        Parameters
        ----------
        scale : array-like of shape (n_features,)
            Factors of the features, finite and not zero.
        shift : array-like of shape (n_features,), default=0
            What is added afterwards.

        Returns
        -------
        moments : SubgroupMoments
            Those of ``scale * x + shift``, up to rounding.

        Raises
        ------
        ValueError
            When the moments are not `rescalable`, or pooled or shrunk, or a scale is zero or not finite.
        """
        if self._mixed is None:
            msg = (
                "The scale of these moments is fixed: their fourth moments are sums over features. Accumulate with "
                "SubgroupMoments(…, covariance='full', rescalable=True)."
            )
            raise ValueError(msg)
        if self._regularised:
            msg = "Pooled or shrunk moments cannot be rescaled; rescale the ones they were made from."
            raise ValueError(msg)
        d = self.n_features
        s, t = (np.broadcast_to(np.asarray(one, dtype=np.float64), (d,)) for one in (scale, shift))
        if not (np.isfinite(s).all() and np.isfinite(t).all() and (s != 0).all()):
            msg = "scale must be finite and not zero, and shift finite."
            raise ValueError(msg)
        moments = self._empty()
        thirds, fourths = (
            self._mixed[0] * np.outer(s**2, s),
            self._mixed[1] * np.outer(s**2, s**2),
        )
        moments._mixed = thirds, fourths
        moments.weights[:], moments._weight_squares[:] = self.weights, self._weight_squares
        moments.means[self.weights > 0] = s * self.means[self.weights > 0] + t
        moments._scatters[:] = self._scatters * np.outer(s, s)
        moments._cubics[:], moments._quartics[:] = thirds.sum(axis=2), fourths.sum(axis=(2, 3))
        before = self.coordinates
        if before is None:
            moments.coordinates = Coordinates(False, np.array(s), np.array(t))
        elif isinstance(before, Coordinates):
            moments.coordinates = Coordinates(before.log, s * before.scale, s * before.shift + t)
        else:
            moments.coordinates = (before, s, t)
        return moments

    def diagonal(self) -> SubgroupMoments:
        """Moments of the same rows that keep no covariance between features.

        Returns
        -------
        moments : SubgroupMoments
            With ``covariance="diagonal"``; `self` when it has that already.

        Raises
        ------
        ValueError
            When the moments are not `rescalable`, and so do not know the fourth powers of single features; or pooled
            or shrunk.
        """
        if self.covariance == "diagonal":
            return self
        if self._mixed is None or self._regularised:
            msg = (
                "These moments do not know the fourth powers of single features. Accumulate with "
                "SubgroupMoments(…, covariance='diagonal'), or with covariance='full' and rescalable=True."
            )
            raise ValueError(msg)
        moments = self._empty(covariance="diagonal")
        moments.weights[:], moments._weight_squares[:], moments.means[:] = (
            self.weights,
            self._weight_squares,
            self.means,
        )
        for to, matrices in (
            (moments._scatters, self._scatters),
            (moments._cubics, self._mixed[0]),
            (moments._quartics, self._mixed[1]),
        ):
            to[:] = np.diagonal(matrices, axis1=-2, axis2=-1)
        return moments

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
        if shrinkage not in FORMULAS:
            msg = f"shrinkage must be 'ledoit_wolf' or 'oas' to have an intensity, not {brief(shrinkage)}."
            raise ValueError(msg)
        return formula_intensity(self, shrinkage)

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
        return self._replace_covariances(shrunk_covariances(self, shrinkage, X, y_codes, group_codes))

    def _feature_scale(self) -> Doubles:
        """Measure every feature: its standard deviation over all rows, between subgroups too; 1 if constant."""
        total = self.weights.sum()
        mean = np.einsum("ka,kaj->j", self.weights, self.means) / total
        between = np.einsum("ka,kaj->j", self.weights, (self.means - mean) ** 2) / total
        variances = self.model.variances(self.covariances).reshape(-1, self.n_features)
        within = np.einsum("c,cj->j", self.model.in_cells(self.weights).ravel(), variances) / total
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
        return self.model.floored(covariances, self._feature_scale())

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
            ``log q[k, a] + log N(x; mean[k, a], covariance[k, a])`` in nats, -inf for a subgroup without rows. For rows
            so far away that this is beyond the range of double, up to a constant of the row, which keeps it finite.
        """
        return self._log_joint(np.asarray(X, dtype=np.float64), self._positive_definite()[0])

    def _log_joint(self, rows: Doubles, covariances: Doubles) -> Doubles:
        """Evaluate `log_joint`, with positive definite covariances."""
        K, G, _ = self.means.shape
        out = np.full((len(rows), K, G), -np.inf)
        far = np.zeros(len(rows), dtype=bool)
        families: list[Family] = []
        cells: list[tuple[Any, int, Doubles]] = []
        for a in range(G):
            seen = self.weights[:, a] > 0
            if not seen.any():
                continue
            of_group = self.model.of_group(covariances, a, seen)
            families.append(Family(self.means[seen, a], of_group, self.covariance))
            cells.append((seen, a, np.log(self.weights[seen, a] / self.weights.sum())))
            out[:, seen, a] = cells[-1][2] + log_densities(rows, families[-1])
            far |= ~np.isfinite(out[:, seen, a]).all(axis=1)
        if far.any():
            relative = relative_log_densities(rows[far], families)
            for (seen, a, log_weights), values in zip(cells, relative, strict=True):
                out[np.ix_(np.flatnonzero(far), np.flatnonzero(seen), np.array([a]))] = (log_weights + values)[
                    ..., None
                ]
        return out

    def subgroup_table(self, most: int | None = LISTED_CELLS) -> str:
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
        return weight_table(self, most)

    def __repr__(self) -> str:
        return (
            f"SubgroupMoments({self.n_classes} classes x {self.n_groups} groups, {self.n_features} features, "
            f"covariance={self.covariance!r}, weight={self.weights.sum():.6g})"
        )

    def _repr_html_(self) -> str:
        facts = [
            ("features", f"{self.n_features:,}"),
            ("weight of rows", f"{self.weights.sum():.6g}"),
            ("covariance", self.covariance),
        ]
        title, labels = "Weight of every class in every group", (self.classes.tolist(), self.groups.tolist())
        return f"<p>SubgroupMoments</p>{facts_html(facts)}{cells_svg(title, *labels, self.weights, '.6g')}"


def _writable(array: Doubles) -> Doubles:
    return array if array.flags.writeable else np.array(array)
