"""What the transformers share: rows and groups in, one affine map a group, rows out."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Hashable, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin, clone
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from fairsteer._utils.arrays import lies_elsewhere, to_numpy
from fairsteer._utils.estimators import FoundHTMLMixin, HasMethods, Interval, StrOptions, available_if, fit_context
from fairsteer._utils.html import cells_svg, facts_html
from fairsteer._utils.input import (
    as_given,
    brief,
    check_rows,
    few,
    in_numpy,
    num_rows,
    warn_caller,
)
from fairsteer._utils.types import Codes, CovarianceModel, Doubles, Floats, SmallSubgroups, UnknownGroup
from fairsteer.groups import GroupEncoder, joint_label
from fairsteer.moments import SubgroupMoments
from fairsteer.moments._standardizing import class_factors, joint_factors, small_columns
from fairsteer.streams import DeviceRows, Stream, block_rows, open_stream
from fairsteer.streams._batches import as_batch
from fairsteer.transformer._calibration import calibrate_groups, group_proba
from fairsteer.transformer._coordinates import coordinates_of, fit_coordinates, needs_all_rows, to_coordinates
from fairsteer.transformer._device import steer_there
from fairsteer.transformer._maps import AffineMaps, FoldedMaps, as_matrices
from fairsteer.transformer._monotone import MonotoneMaps
from fairsteer.transformer._reading import Batch, Reading, class_codes, read_codes, read_fit, read_rows
from fairsteer.transformer._streaming import Steering, adopt_moments, fit_stream

_Self = TypeVar("_Self", bound="GroupMapTransformer")

# Bytes that the scatters of the cells may take to be kept apart, for what needs them: more batches, certificates, some
# classes alone. A stream cannot be standardised without them; a fit can, by the counts of its rows, in less time.
_MEMORY_OF_CELLS_IN_A_STREAM = 2**30
_MEMORY_OF_CELLS_IN_A_FIT = 2**26


def _size_of_cells(batch: Batch) -> int:
    """Bytes of the scatters of all cells."""
    d: int = batch.rows.shape[1]
    return 8 * len(batch.classes) * len(batch.groups) * d**2


def _takes_batches(transformer: GroupMapTransformer) -> bool:
    """Whether there is a ``partial_fit``; the reason why not is the cause of the AttributeError."""
    if hasattr(transformer.shrinkage, "fit"):
        msg = (
            f"shrinkage={brief(transformer.shrinkage)} needs all rows at once, so partial_fit cannot use it. Use "
            "'ledoit_wolf', 'oas', a number in [0, 1] or None, or call fit."
        )
        raise AttributeError(msg)
    if needs_all_rows(transformer.feature_transform):
        msg = (
            f"feature_transform={brief(transformer.feature_transform)} would be fitted on the first batch only. Fit it "
            "beforehand and pass it as feature_transform=sklearn.frozen.FrozenEstimator(fitted), use 'log' or None, or "
            "call fit with all rows."
        )
        raise AttributeError(msg)
    if (reason := transformer._needs_all_rows()) is not None:
        raise AttributeError(reason)
    return True


class Solution(NamedTuple):
    """What a fit comes to."""

    model: SubgroupMoments
    maps: Any
    """`linear`, of shape (n_groups, d, d) or, feature by feature, (n_groups, d), and `offset`, of shape (n_groups, d);
    or one map for all groups."""
    folded: FoldedMaps | MonotoneMaps

    @classmethod
    def of(cls, model: SubgroupMoments, maps: Any) -> Solution:
        """Solution with the maps of `_fit_maps`."""
        weights = model.weights / model.weights.sum()
        if len(maps.offset) == model.n_groups:
            centre = np.einsum("ka,kaj->aj", weights / weights.sum(axis=0), model.means)
        else:
            centre = np.einsum("ka,kaj->j", weights, model.means)[None]
        return cls(model, maps, FoldedMaps(maps.linear, maps.offset, centre))


class GroupMapTransformer(OneToOneFeatureMixin, TransformerMixin, FoundHTMLMixin, BaseEstimator, metaclass=ABCMeta):
    """Transformer that models the subgroups of its rows as Gaussians and moves rows by their groups.

    `_fit_maps` says by what maps. A subclass takes as parameters those of the attributes below that it wants; the
    others keep these values, under which they have no effect.
    """

    reference_group: Hashable = None
    covariance: CovarianceModel = "tied"
    shrinkage: Any = None
    pooling: float = 0.0
    feature_transform: Any = None
    strength: float = 1.0
    sensitive_columns: Any = None
    unknown_group: UnknownGroup = "error"
    min_subgroup_size: int = 0
    small_subgroups: SmallSubgroups = "error"
    standardize: bool = False

    _parameter_constraints = {
        "reference_group": [Hashable, None],
        "covariance": [StrOptions(set(get_args(CovarianceModel)))],
        "shrinkage": [
            StrOptions({"ledoit_wolf", "oas"}),
            Interval(Real, 0, 1, closed="both"),
            HasMethods("fit"),
            None,
        ],
        "pooling": [Interval(Real, 0, 1, closed="both")],
        "feature_transform": [
            StrOptions({"log"}),
            HasMethods(["fit", "transform", "inverse_transform"]),
            None,
        ],
        "strength": [Interval(Real, 0, 1, closed="both")],
        "sensitive_columns": [str, Integral, slice, "array-like", callable, None],
        "unknown_group": [StrOptions(set(get_args(UnknownGroup)))],
        "min_subgroup_size": [Interval(Integral, 0, None, closed="left")],
        "small_subgroups": [StrOptions(set(get_args(SmallSubgroups)))],
        "standardize": ["boolean"],
    }

    #: Whether one map serves all rows, whatever their groups.
    one_map: ClassVar[bool] = False
    #: Attributes that are known once the maps are: after ``fit``, and after the first use that follows ``partial_fit``.
    _of_maps: ClassVar[tuple[str, ...]] = ()

    _class_blind: bool
    _encoder: GroupEncoder | None
    _sensitive_positions: list[int]
    _small_groups: list[Any]
    _group_of_label: Codes
    _solution: Solution | None

    # Requested by default, so that nobody has to call set_fit_request and its siblings.
    __metadata_request__fit = {"sensitive_features": True}
    __metadata_request__partial_fit = {"sensitive_features": True}
    __metadata_request__transform = {"sensitive_features": True}
    __metadata_request__inverse_transform = {"sensitive_features": True}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32", "float16"]
        tags.input_tags.positive_only = (
            self.feature_transform == "log"
            if isinstance(self.feature_transform, str)
            else (
                hasattr(self.feature_transform, "__sklearn_tags__")
                and get_tags(self.feature_transform).input_tags.positive_only
            )
        )
        return tags

    # ---- fitting

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self: _Self, X: Any, y: Any = None, *, sensitive_features: Any = None, sample_weight: Any = None) -> _Self:
        """Fit the subgroups' distributions, and the maps that follow from them.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, with the sensitive columns if there are `sensitive_columns`.
        y : array-like of shape (n_samples,), default=None
            Class labels. None: one class, which matches the groups' means and covariances. The
            transformers of :mod:`fairsteer.baselines` do not look at them.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels. Rows where one is missing are left out, with a warning. Without any
            groups the transformer is the identity.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; an integer weight equals as many repetitions, zero leaves the row
            out.

        Returns
        -------
        self
            The transformer itself.

        Raises
        ------
        ValueError
            If `X` holds NaN or infinite values, `y` is continuous, groups are given twice or are
            not discrete labels, a group has no rows, or no rows are left; or if a subgroup has fewer
            than `min_subgroup_size` rows and ``small_subgroups="error"``, or every group would have to merge.
        """
        stream = self._opened(X, y, sensitive_features, sample_weight)
        if stream is not None:
            fit_stream(self, stream)
            return self
        if hasattr(X, "__next__"):
            return self._fit_once(X, y, sensitive_features, sample_weight)
        return self._fit_batch(self._read(X, y, sensitive_features, sample_weight, reset=True).batch())

    def _fit_once(self: _Self, batches: Any, *given: Any) -> _Self:
        """Fit to batches that can be read once only, as ``partial_fit`` does."""
        if any(one is not None for one in given):
            msg = "y, sensitive_features and sample_weight belong into the batches of an iterator; leave them out."
            raise ValueError(msg)
        for name in ("moments_", "_solution"):
            self.__dict__.pop(name, None)
        self._add_batches(batches)
        if not hasattr(self, "moments_"):
            msg = "The iterator gives no batch of rows; if it has been read already, make it anew."
            raise ValueError(msg)
        self._fitted()
        return self

    def _add_batches(self, batches: Any) -> None:
        for made in batches:
            batch = as_batch(made)
            if num_rows(batch.X):
                self.partial_fit(
                    batch.X,
                    batch.y,
                    sensitive_features=batch.sensitive_features,
                    sample_weight=batch.sample_weight,
                )

    def fit_moments(self: _Self, moments: SubgroupMoments) -> _Self:
        """Fit to the moments of rows that are elsewhere, such as the sum of those of several sites.

        Parameters
        ----------
        moments : SubgroupMoments
            Moments of all rows, in the coordinates of `feature_transform`: of the features as they are (None), of
            their logarithms (``"log"``), or of features that were shifted and scaled (a StandardScaler, which takes
            shift and scale from the moments). With ``covariance="tied"`` those of the full model serve as well, and
            `standardize` needs them.

        Returns
        -------
        self
            The transformer itself.

        Raises
        ------
        ValueError
            If the moments do not fit the parameters, or `map_type` or `shrinkage` needs rows.

        Examples
        --------
        >>> from fairsteer import FairSteeringTransformer, SubgroupMoments
        >>> from fairsteer.datasets import make_biased_groups
        >>> sites = []
        >>> for seed in range(3):
        ...     moments = SubgroupMoments(2, classes=[0, 1], groups=["f", "m"], covariance="full")
        ...     sites.append(moments.update(*make_biased_groups(100, 2, random_state=seed)))
        >>> steer = FairSteeringTransformer(map_type="affine").fit_moments(sum(sites))
        >>> steer.transform([[0.0, 0.0]], sensitive_features=["f"]).shape
        (1, 2)
        """
        self._validate_params()
        adopt_moments(self, moments)
        return self

    def _opened(self, X: Any, y: Any, sensitive_features: Any, sample_weight: Any) -> Stream | None:
        return open_stream(X, y, sensitive_features, sample_weight)

    def _fit_batch(self: _Self, batch: Batch, *, infers: bool = True, moments: SubgroupMoments | None = None) -> _Self:
        """Fit to rows that have been read.

        Without `infers` nothing is learnt that only unknown groups need. `moments` are those of the rows where they are
        known already, as `_moments_without` gives them.
        """
        weighted = batch.sample_weight is not None and np.ptp(batch.sample_weight) > 0
        if weighted and hasattr(self.shrinkage, "fit"):
            msg = (
                f"shrinkage={brief(self.shrinkage)} cannot take sample_weight. Use 'ledoit_wolf', 'oas', a number in "
                "[0, 1] or None, or leave sample_weight out."
            )
            raise ValueError(msg)
        batch = self._counted(batch)
        self.feature_transform_ = self._fit_coordinates(batch)
        rows = self._to_model(batch.rows)
        cells = None
        if moments is None:
            moments, cells = self._moments_of_fit(rows, batch, final=infers)
        self._set_moments(moments, batch)
        shrunk = self._shrunk(self.moments_, rows, batch.y_codes, batch.group_codes)
        self._set_solution(self._solve(shrunk, rows, batch, cells, final=infers))
        self.group_calibration_ = calibrate_groups(self, rows, batch) if infers else None
        return self

    def _alike(self: _Self, **params: Any) -> _Self:
        """Clone, with other parameters, that need not read the rows again which this one has read."""
        other: _Self = clone(self).set_params(**params)
        for name in ("n_features_in_", "feature_names_in_", "_sensitive_positions"):
            if hasattr(self, name):
                setattr(other, name, getattr(self, name))
        return other

    def _fit_alike(self: _Self, batch: Batch, moments: SubgroupMoments | None = None) -> _Self:
        """Fit a clone to some of the rows that this one has read; it is for rows of known groups only."""
        return self._alike()._fit_batch(batch, infers=False, moments=moments)

    def _moments_without(self, batch: Batch, parts: Sequence[Codes]) -> list[SubgroupMoments] | None:
        """Moments of all rows but those of one part, for every part, each part's own being computed once.

        Parameters
        ----------
        batch : Batch
            Rows that this transformer has read.
        parts : sequence of ndarray
            Positions of the rows of every part; no row is in two.

        Returns
        -------
        list of SubgroupMoments or None
            With the covariances of the subgroups, from which the others follow. None where moments are not all that
            a fit needs, `shrinkage` or `feature_transform` being fitted to rows, or would take more than a gigabyte.
        """
        batch = self._counted(batch)
        kept: CovarianceModel = "diagonal" if self.covariance == "diagonal" else "full"
        numbers = len(batch.classes) * len(batch.groups) * batch.rows.shape[1] ** (1 if kept == "diagonal" else 2)
        if hasattr(self.shrinkage, "fit") or needs_all_rows(self.feature_transform):
            return None
        if 16 * numbers * (len(parts) + 1) > _MEMORY_OF_CELLS_IN_A_STREAM:  # parts, and merged
            return None
        fitted = self._alike()
        fitted.feature_transform_ = fitted._fit_coordinates(batch)
        rows = fitted._to_model(batch.rows)

        def moments(some: Codes) -> SubgroupMoments:
            part = batch._replace(
                y_codes=batch.y_codes[some],
                group_codes=batch.group_codes[some],
                sample_weight=None if batch.sample_weight is None else batch.sample_weight[some],
            )
            return fitted._batch_moments(rows[some], part, covariance=kept)

        in_part = np.zeros(len(rows), dtype=bool)
        for part in parts:
            in_part[part] = True
        of_parts = [moments(part) for part in parts]
        rest = moments(np.flatnonzero(~in_part))
        # From both ends, so that every part is merged a few times only.
        before, after = (
            [rest],
            [SubgroupMoments(rows.shape[1], classes=batch.classes, groups=batch.groups, covariance=kept)],
        )
        for own in of_parts[:-1]:
            before.append(before[-1].merge(own))
        for own in of_parts[:0:-1]:
            after.append(after[-1].merge(own))
        return [first.merge(second) for first, second in zip(before, reversed(after), strict=True)]

    @available_if(_takes_batches)
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self: _Self, X: Any = None, y: Any = None, *, sensitive_features: Any = None, sample_weight: Any = None
    ) -> _Self:
        """Add a batch of rows to the fitted distributions.

        Batches give the same result as one ``fit`` on all rows, in any order; new classes and
        groups may appear in any batch. (With ``shrinkage="ledoit_wolf"`` and tied covariances the
        intensity of the shrinkage is the same up to a term of relative size 1/n.) The maps are found
        when rows are next transformed, or when this is called without rows; until then there are no
        attributes that follow from them (`maps_`, …).

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features), default=None
            Rows. None: there are no more, find the maps.
        y : array-like of shape (n_samples,), default=None
            Class labels; in all batches or in none.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels; in all batches or in none.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights.

        Returns
        -------
        self
            The transformer itself.

        Raises
        ------
        ValueError
            As for ``fit``.
        AttributeError
            If `shrinkage` or `feature_transform` is an estimator that needs all rows at once: there is no
            ``partial_fit`` then.
        """
        if X is None and y is None and sensitive_features is None and sample_weight is None:
            self._fitted()
            return self
        there = lies_elsewhere(X)
        stream = None if there else open_stream(X, y, sensitive_features, sample_weight, mapped=False)
        if stream is not None or hasattr(X, "__next__"):
            self._add_batches(X if stream is None else stream.batches())
            return self
        first = not hasattr(self, "moments_")
        reading = self._read(X, y, sensitive_features, sample_weight, reset=first, stays=there)
        batch = self._counted(reading.batch())
        if first:
            self.feature_transform_ = self._fit_coordinates(batch)
        elif self._solution is not None and isinstance(self._solution.folded, MonotoneMaps):
            msg = (
                "fit has chosen map_type='monotone', which needs all rows at once. To add rows, start with "
                "partial_fit, or name another map_type."
            )
            raise ValueError(msg)
        elif self.moments_.standardized:
            msg = (
                "fit has given the classes the same weights in every group by the counts of its rows, which more rows "
                "would change. Start with partial_fit, or set standardize=False."
            )
            raise ValueError(msg)
        moments = self._batch_moments(self._to_model(batch.rows), batch, covariance=self._kept_in_a_stream(batch))
        self._set_moments(moments if first else self.moments_.merge(moments), batch)
        self._set_solution(None)
        self.group_calibration_ = None
        return self

    @fit_context(prefer_skip_nested_validation=True)
    def fit_transform(self, X: Any, y: Any = None, *, sensitive_features: Any = None, sample_weight: Any = None) -> Any:
        """Fit, then transform the same rows: equal to ``fit(…).transform(…)``.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows.
        y : array-like of shape (n_samples,), default=None
            Class labels.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels. Rows where one is missing are left out of the fit and transformed as
            `unknown_group` says.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights.

        Returns
        -------
        ndarray or dataframe of shape (n_samples, n_features_out)
            Steered rows.
        """
        if (stream := self._opened(X, y, sensitive_features, sample_weight)) is not None:
            fit_stream(self, stream)
            if isinstance(stream, DeviceRows):
                return self._transform(X, sensitive_features)
            return self._transform_stream(stream)
        reading = self._read(X, y, sensitive_features, sample_weight, reset=True)
        self._fit_batch(reading.batch())
        codes = self._resolved(reading.rows, self._codes_of(reading))
        return as_given(self._move(reading.rows, codes, self._group_maps(self._strength())), X)

    def _read(
        self, X: Any, y: Any, sensitive_features: Any, sample_weight: Any, *, reset: bool, stays: bool = False
    ) -> Reading:
        return read_fit(self, X, y, sensitive_features, sample_weight, reset=reset, stays=stays)

    def _codes_of(self, reading: Reading) -> Codes:
        """Find the groups of all rows that were read for the fit, as `_known_codes` would."""
        if self._encoder is None or self.one_map:
            return np.zeros(len(reading.rows), dtype=np.intp)
        codes = reading.codes_in(self.moments_.groups, infer=self.unknown_group != "error")
        return np.where(codes < 0, codes, self._group_of_label[codes])

    def _fit_coordinates(self, batch: Batch) -> Any:
        return fit_coordinates(
            self.feature_transform,
            batch.rows,
            self._feature_names(),
            batch.sample_weight,
            named=hasattr(self, "feature_names_in_"),
        )

    def _needs_all_rows(self) -> str | None:
        """Why the maps cannot follow from moments, if they cannot."""
        return None

    def _counted(self, batch: Batch) -> Batch:
        """Rows with those classes that count."""
        return batch

    def _class_factors(self, batch: Batch) -> Doubles | None:
        """Weights of the cells, relative to their own, with which the classes weigh alike in every group."""
        K, G = len(batch.classes), len(batch.groups)
        counts: Doubles
        squares: Doubles
        cell = batch.y_codes * G + batch.group_codes
        weight = np.ones(len(cell)) if batch.sample_weight is None else batch.sample_weight
        counts, squares = (np.bincount(cell, w, K * G).astype(np.float64).reshape(K, G) for w in (weight, weight**2))
        return self._factors_of(counts, squares)

    def _factors_of(self, counts: Doubles, squares: Doubles) -> Doubles | None:
        """Weights of the cells as in `_class_factors`, from their weight sums and sums of squares, (K, G)."""
        K, G = counts.shape
        if not self.standardize or self.covariance != "tied" or K == 1:
            return None
        if self.small_subgroups == "merge":
            small = small_columns(counts, squares, self.min_subgroup_size)
            if 0 < len(small) < G:
                return joint_factors(counts, small)
        return class_factors(counts)

    def _kept_of_all_rows(self, n_classes: int, n_groups: int, n_features: int) -> CovarianceModel:
        """Say what a fit in several passes accumulates: scatters of the cells, which merge exactly, if they fit."""
        if self.covariance != "tied":
            return self.covariance
        return "full" if 8 * n_classes * n_groups * n_features**2 <= _MEMORY_OF_CELLS_IN_A_STREAM else "tied"

    def _classes_count(self) -> bool:
        """Whether class labels make a difference."""
        return True

    def _refuses_streams(self) -> str | None:
        """Why a fit in several passes cannot be, if it cannot."""
        return self._needs_all_rows()

    def _needs_sample(self, stream: Stream) -> bool:
        """Whether a fit to a stream needs rows besides its moments."""
        del stream
        return self.unknown_group != "error" and len(self.groups_) > 1

    def _calibrated(self, sample: Batch | None) -> Any:
        """Calibrate the probabilities of groups on the rows that stand for all of a stream."""
        if sample is None:
            return None
        return calibrate_groups(self, self._to_model(sample.rows), sample)

    def _moments_of_fit(
        self, rows: Floats, batch: Batch, *, final: bool
    ) -> tuple[SubgroupMoments, SubgroupMoments | None]:
        """Moments of all rows, and full ones where a `final` fit asks for them beside its model."""
        del final
        kept = self._kept(self._cells_are_few(batch))
        factors = self._class_factors(batch) if kept == "tied" else None
        return self._batch_moments(rows, batch, factors, covariance=kept), None

    def _kept(self, few: bool) -> CovarianceModel:
        """Say what is accumulated: scatters of the cells where they are needed and take little memory."""
        if self.covariance != "tied" or not self.standardize:
            return self.covariance
        return "full" if few else "tied"

    @staticmethod
    def _cells_are_few(batch: Batch) -> bool:
        """Whether a fit keeps the scatters of all cells where it could do without."""
        return _size_of_cells(batch) <= _MEMORY_OF_CELLS_IN_A_FIT

    def _kept_in_a_stream(self, batch: Batch) -> CovarianceModel:
        if hasattr(self, "moments_"):
            return self.moments_.covariance
        return self._kept(_size_of_cells(batch) <= _MEMORY_OF_CELLS_IN_A_STREAM)

    def _batch_moments(
        self, rows: Floats, batch: Batch, factors: Doubles | None = None, covariance: CovarianceModel | None = None
    ) -> SubgroupMoments:
        moments = SubgroupMoments(
            rows.shape[1],
            classes=batch.classes,
            groups=batch.groups,
            covariance=covariance or self.covariance,
            feature_names=self._names_of_moments(rows.shape[1]),
            coordinates=coordinates_of(self.feature_transform_, rows.shape[1]),
        )
        if factors is not None:
            moments._weigh_classes_alike(factors)
        # Single-precision rows in the blocks in which a stream reads them, so that both give the same sums.
        whole = lies_elsewhere(rows) or rows.dtype == np.float64
        n_rows = num_rows(rows) if whole else block_rows(rows.shape[1], rows.dtype.itemsize)
        try:
            for start in range(0, num_rows(rows), max(1, n_rows)):
                some = slice(start, start + n_rows)
                weight = None if batch.sample_weight is None else batch.sample_weight[some]
                moments.update(rows[some, :], batch.y_codes[some], batch.group_codes[some], weight)
            return moments
        except ValueError as error:  # that names the subgroup
            sizes, names = np.abs(to_numpy(rows)).max(axis=0), self._feature_names()
            j = int(sizes.argmax())
            name = repr(names[j]) if len(names) == len(sizes) else f"number {j}"
            msg = (
                f"The feature {name} is too large to be squared: it reaches {sizes[j]:.3g}. Scale it, or leave it out."
            )
            raise ValueError(msg) from error

    def _names_of_moments(self, n_features: int) -> list[str] | None:
        """Names of the features, where they had some and a transform has not made others of them."""
        if not hasattr(self, "feature_names_in_"):
            return None
        names = self._feature_names()
        return names if len(names) == n_features else None

    def _set_moments(self, moments: SubgroupMoments, batch: Batch) -> None:
        self.moments_ = moments
        self.classes_ = moments.classes
        self._class_blind = batch.class_blind
        self._encoder = batch.encoder
        if self._encoder is not None:
            self._encoder.groups_ = moments.groups
        self._merge_labels()

    def _merge_labels(self) -> None:
        """Choose the groups that merge, and number what is left."""
        moments, merging = self.moments_, self.small_subgroups == "merge"
        self._small_groups = moments.small_groups(self.min_subgroup_size) if merging else []
        self.groups_ = self._merged(moments).groups
        table = {label: code for code, label in enumerate(self.groups_.tolist())}
        joint = table.get(joint_label(moments.groups.tolist()))
        self._group_of_label = np.array([table.get(label, joint) for label in moments.groups.tolist()], dtype=np.intp)

    def _merged(self, moments: SubgroupMoments) -> SubgroupMoments:
        if not self._small_groups:
            return moments
        return moments.merge_groups(self._small_groups, joint_label(moments.groups.tolist()))

    def _shrunk(self, moments: SubgroupMoments, rows: Any = None, y_codes: Any = None, codes: Any = None) -> Any:
        """Merge, pool and shrink moments; an estimator as `shrinkage` needs the rows and their codes."""
        moments = self._unshrunk(moments)
        codes = None if codes is None else self._group_of_label[codes]
        return moments.shrink(self.shrinkage, X=rows, y_codes=y_codes, group_codes=codes)

    def _unshrunk(self, moments: SubgroupMoments) -> SubgroupMoments:
        """Merge and pool moments."""
        moments = self._merged(moments)
        if self.covariance == "tied":
            # Of a stream the covariances of cells; or what the classes' shares in each group have made them.
            moments = moments.tie(standardize=self.standardize) if moments.covariance == "full" else moments
        if self.pooling > 0:
            if self.covariance != "full":
                msg = f"pooling={self.pooling} needs covariance='full', not {self.covariance!r}; leave it at 0."
                raise ValueError(msg)
            if hasattr(self.shrinkage, "fit"):
                msg = (
                    f"shrinkage={brief(self.shrinkage)} fits every subgroup alone; leave pooling at 0, not "
                    f"{self.pooling}."
                )
                raise ValueError(msg)
            moments = moments.pool(self.pooling, standardize=self.standardize)
        return moments

    def _borrowed(self, shrunk: SubgroupMoments) -> SubgroupMoments:
        if self.small_subgroups != "pool":
            return shrunk
        return shrunk.borrow(self.min_subgroup_size, standardize=self.standardize)

    def _solve(
        self,
        shrunk: SubgroupMoments,
        rows: Any = None,
        batch: Batch | None = None,
        cells: SubgroupMoments | None = None,
        *,
        final: bool = True,
        sample: Batch | None = None,
    ) -> Solution:
        """Model of the subgroups, and the maps that follow from it.

        A fit has the rows, and may have full moments; that to a stream has those rows that stand for all, if need be.
        """
        del cells, final, sample
        self._check_sizes()
        _warn_of_identifier(self.moments_, can_join="small_subgroups" in self.get_params(deep=False))
        if isinstance(self.shrinkage, str) and self._uses_covariances():
            way_out = "Lower shrinkage, or leave such features out."
            if self.feature_transform is None:
                way_out = "Bring the features to one scale, for example by feature_transform=StandardScaler()."
            _warn_if_swamped(self._merged(self.moments_), shrunk, self._feature_names(), way_out)
        model = self._borrowed(shrunk)
        return Solution.of(model, self._fit_maps(self._model_of_maps(model, rows, batch)))

    def _model_of_maps(self, model: SubgroupMoments, rows: Any, batch: Batch | None) -> SubgroupMoments:
        """Those moments of the model that the maps follow from."""
        del rows, batch
        return model

    def _uses_covariances(self) -> bool:
        """Whether the covariances make a difference to how rows move."""
        return True

    @abstractmethod
    def _fit_maps(self, model: SubgroupMoments) -> Any:
        """Find the maps at full strength.

        The result has `linear`, of shape (n_groups, d, d) or (n_groups, d), and `offset`, of shape (n_groups, d); or
        one map for all groups.
        """

    def _check_sizes(self) -> None:
        """Refuse small subgroups if there is nothing to be done about them."""
        moments = self.moments_
        small = moments.sizes < self.min_subgroup_size
        if self.small_subgroups == "error" and small.any():
            msg = (
                f"{small.sum()} of {small.size} subgroups have fewer than min_subgroup_size={self.min_subgroup_size} "
                "rows. Ways out: let them borrow from other subgroups by small_subgroups='pool', make small groups one "
                f"by small_subgroups='merge', or lower min_subgroup_size.\n{moments.subgroup_table()}"
            )
            raise ValueError(msg)
        if len(self._small_groups) == moments.n_groups > 1:
            msg = (
                f"small_subgroups='merge' leaves one group and nothing to steer: for every class to have "
                f"min_subgroup_size={self.min_subgroup_size} rows, all {moments.n_groups} groups have to merge. Lower "
                f"min_subgroup_size, or let small subgroups borrow by small_subgroups='pool'.\n"
                f"{moments.subgroup_table()}"
            )
            raise ValueError(msg)
        if self.reference_group in self._small_groups:
            msg = (
                f"reference_group={brief(self.reference_group)} is too small to stay: it is merged with others, as a "
                f"class has fewer than min_subgroup_size={self.min_subgroup_size} rows in it. Name another, or use "
                f"small_subgroups='pool'.\n{moments.subgroup_table()}"
            )
            raise ValueError(msg)

    def _fitted(self) -> Solution:
        """Model of the subgroups, and what holds the maps."""
        check_is_fitted(self, "moments_")
        if self._solution is None:  # rows have come by partial_fit since
            solution = self._solve(self._shrunk(self.moments_))
            self._set_solution(solution)
            return solution
        return self._solution

    def _found_html(self) -> str:
        """Show the rows behind the maps, and what is known of these; maps that are not found yet stay so."""
        if "moments_" not in vars(self):
            return ""
        moments = self.moments_
        labels = moments.classes.tolist(), moments.groups.tolist()
        facts = [
            ("fitted to", f"rows of weight {moments.weights.sum():.6g} with {moments.n_features:,} features"),
            *self._found_facts(),
        ]
        if self._solution is None:
            facts.append(("maps", "not found yet: rows have come by partial_fit"))
        return facts_html(facts) + cells_svg("Weight of every class in every group", *labels, moments.weights, ".6g")

    def _found_facts(self) -> list[tuple[str, str]]:
        """Say what is known of the maps besides."""
        return []

    def _set_solution(self, solution: Solution | None) -> None:
        self._solution = solution
        for name in self._of_maps:
            self.__dict__.pop(name, None)
        if solution is not None:
            self.__dict__.update(self._attributes_of(solution))

    def _attributes_of(self, solution: Solution) -> dict[str, Any]:
        """Fitted attributes that follow from the maps."""
        return {}

    @property
    def maps_(self) -> dict[Any, tuple[Doubles, Doubles]]:
        """Map ``(A, b)`` of each group at full strength."""
        check_is_fitted(self, "moments_")
        if self._solution is None:
            raise AttributeError("maps_")  # to be explained by __getattr__
        if isinstance(self._solution.folded, MonotoneMaps):
            raise AttributeError("maps_")
        linear, offset = as_matrices(self._solution.maps.linear), self._solution.maps.offset
        of_group = enumerate(self.groups_.tolist())
        return {group: (linear[a % len(linear)], offset[a % len(linear)]) for a, group in of_group}

    if not TYPE_CHECKING:  # with it, type checkers would believe in any attribute

        def __getattr__(self, name: str) -> Any:
            if name == "maps_" and isinstance(getattr(self.__dict__.get("_solution"), "folded", None), MonotoneMaps):
                msg = "Monotone maps are no matrices, so there is no maps_; map_type='diagonal' gives matrices."
                raise AttributeError(msg)
            if name in ("maps_", *type(self)._of_maps) and "moments_" in self.__dict__:
                msg = (
                    f"There is no {name} yet: rows have come by partial_fit, and maps are found when rows are next "
                    "transformed. To find them now, call partial_fit() without rows."
                )
                raise AttributeError(msg)
            return object.__getattribute__(self, name)  # raises what it raised before

    # ---- moving rows

    def transform(self, X: Any, *, sensitive_features: Any = None) -> Any:
        """Steer rows by their groups.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, in the columns of ``fit``.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels, unless there are `sensitive_columns`. May be left out where `unknown_group`
            says to infer them.

        Returns
        -------
        ndarray or dataframe of shape (n_samples, n_features_out)
            Steered rows without the sensitive columns, in the floating-point type of `X`. Rows
            that do not move (the reference group; all at strength 0) are bit for bit those of `X`.

        Raises
        ------
        ValueError
            If the transformer was fitted with groups and none are given, or a row's group is
            missing or was not there at ``fit``, unless `unknown_group` says to infer it; if a label is
            of another type than at ``fit`` (a string among numbers, say); if it was fitted without
            groups and groups are given; if `X` does not match ``fit``.
        """
        check_is_fitted(self, "moments_")
        if lies_elsewhere(X):
            return self._transform(X, sensitive_features)
        names = None if not hasattr(self, "feature_names_in_") else list(self.feature_names_in_)
        stream = open_stream(X, None, sensitive_features, columns=names, mapped=False)
        if stream is not None or hasattr(X, "__next__"):
            return self._transform_stream(stream if stream is not None else X)
        return self._transform(X, sensitive_features)

    def _transform_stream(self, stream: Any) -> Any:
        """Steer rows batch by batch, as they are asked for."""
        if getattr(self, "_sklearn_output_config", {}).get("transform", "default") != "default":
            msg = "set_output is for rows in memory; a stream is steered in the containers of its batches."
            raise ValueError(msg)
        self._fitted()
        if not isinstance(stream, Stream):
            return (self._transform(*one[:1], one[2]) for one in map(as_batch, stream))
        if stream.n_columns != self.n_features_in_:
            msg = f"X has {stream.n_columns} columns, and the fit had {self.n_features_in_}."
            raise ValueError(msg)
        if self._sensitive_positions and not stream.positions:
            stream.split(self._sensitive_positions)
        names = list(self._feature_names()) if hasattr(self, "feature_names_in_") else None
        return stream.map(Steering(self, names))

    def inverse_transform(self, X: Any, *, sensitive_features: Any = None) -> Any:
        """Undo ``transform`` at the present strength.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features_out)
            Steered rows, without sensitive columns.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels; needed whenever there were groups at ``fit``.

        Returns
        -------
        ndarray of shape (n_samples, n_features_out)
            Rows as they were before ``transform``.

        Raises
        ------
        ValueError
            If a row's group is not known, or the map of a group cannot be inverted at this
            strength.
        """
        check_is_fitted(self, "moments_")
        rows = check_rows(in_numpy(X), self)
        names = self._feature_names()
        if rows.shape[1] != len(names):
            msg = (
                f"X has {rows.shape[1]} features, but inverse_transform of "
                f"{type(self).__name__} is expecting {len(names)} features as input."
            )
            raise ValueError(msg)
        codes = self._known_codes(sensitive_features, rows, "inverse_transform")
        maps = self._group_maps(self._strength()).inverse(self.groups_.tolist())
        return as_given(self._move(rows, codes, maps), X)

    def predict_group_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Probability of each group given a row's features.

        Under the fitted distributions, and calibrated on rows that were held out from them if
        `unknown_group` was not ``"error"`` at ``fit`` (see `group_calibration_`).

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, in the columns of ``fit``; sensitive columns are not looked at.

        Returns
        -------
        ndarray of shape (n_samples, n_groups), dtype float64
            Probabilities, in the order of ``groups_``; rows sum to 1.
        """
        check_is_fitted(self, "moments_")
        rows, _ = self._read_rows(X, None, reset=False)
        return self._group_proba(self._to_model(rows))

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[Any]:
        """Names of the output features: those of the input without the sensitive columns.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the input features where they had none at ``fit``.

        Returns
        -------
        ndarray of str objects, of shape (n_features_out,)
            Feature names.
        """
        names = super().get_feature_names_out(input_features)
        return np.delete(names, self._sensitive_positions)

    def _transform(self, X: Any, sensitive_features: Any) -> Any:
        if lies_elsewhere(X):
            return steer_there(self, X, sensitive_features)
        return as_given(self._steered(X, sensitive_features), X)

    def _steered(self, X: Any, sensitive_features: Any) -> Floats:
        """Steered rows as a plain array, whatever `set_output` says."""
        rows, codes = self._read_rows_and_codes(X, sensitive_features)
        return self._move(rows, codes, self._group_maps(self._strength()))

    def _move(self, rows: Floats, codes: Codes, maps: AffineMaps | MonotoneMaps) -> Floats:
        """Map rows in the coordinates of the model; negative codes are weighted by their posterior."""
        if isinstance(maps, MonotoneMaps):  # onto values that occur, to the bit
            return maps.apply(rows, codes, lambda some: self._group_proba(self._to_model(some)))[0]
        mapped, moved = maps.apply(self._to_model(rows), codes, self._group_proba)
        if self.feature_transform_ is None:
            return mapped
        # Going there and back would already change the bits of rows that do not move.
        out = np.array(rows, order="C")
        if moved.any():
            out[moved] = self.feature_transform_.inverse_transform(mapped[moved])
        return out

    def _to_model(self, rows: Floats) -> Floats:
        if self.feature_transform_ is None:
            return rows
        return to_coordinates(self.feature_transform_, rows, self._feature_names())

    def _group_maps(self, strength: float) -> AffineMaps | MonotoneMaps:
        return self._fitted().folded(strength)

    def _affine_maps(self, what: str) -> AffineMaps:
        """Give the maps at the present strength to what can only do with matrices."""
        maps = self._group_maps(self._strength())
        if isinstance(maps, MonotoneMaps):
            msg = (
                f"map_type='monotone' moves features by tables, which {what} cannot take: fit with map_type='diagonal' "
                "or 'translation', or another that has matrices."
            )
            raise ValueError(msg)
        return maps

    def _group_proba(self, rows: Floats) -> Doubles:
        return group_proba(self._fitted().model, rows, self.group_calibration_)

    def _strength(self) -> float:
        # Checked here as well as in fit, since it may be set in between.
        if not 0 <= self.strength <= 1:
            msg = f"strength must be in [0, 1], got {brief(self.strength)}."
            raise ValueError(msg)
        return self.strength

    # ---- reading input

    def _read_rows(self, X: Any, sensitive_features: Any, *, reset: bool) -> tuple[Floats, Any]:
        """Features, and the group labels beside them."""
        return read_rows(self, X, sensitive_features, reset=reset)

    def _read_rows_and_codes(self, X: Any, sensitive_features: Any) -> tuple[Floats, Codes]:
        """Features and groups; a negative code stands for a group to be inferred."""
        rows, labels = self._read_rows(X, sensitive_features, reset=False)
        codes = self._known_codes(labels, rows, "transform", infer=self.unknown_group != "error")
        return rows, self._resolved(rows, codes)

    def _resolved(self, rows: Floats, codes: Codes) -> Codes:
        """Codes in which the likeliest group stands for unknown ones, if `unknown_group` says so."""
        unknown = codes < 0
        if self.unknown_group != "infer_hard" or not unknown.any():
            return codes
        resolved = codes.copy()
        resolved[unknown] = self._group_proba(self._to_model(rows[unknown])).argmax(axis=1)
        return resolved

    def _known_codes(self, labels: Any, rows: Any, method: str, *, infer: bool = False) -> Codes:
        """Positions in `groups_`; negative for a group to be inferred."""
        if self.one_map:
            return np.zeros(num_rows(rows), dtype=np.intp)
        codes = read_codes(labels, rows, self._encoder, method=method, infer=infer)
        return codes if self._encoder is None else np.where(codes < 0, codes, self._group_of_label[codes])

    def _encode(self, encoder: GroupEncoder, labels: Any) -> Codes:
        """Positions in `groups_`; negative for labels that are missing or new."""
        codes = encoder.encode(labels)
        return np.where(codes < 0, codes, self._group_of_label[np.maximum(codes, 0)])

    def _training_codes(self, labels: Any, n_rows: int) -> Codes:
        """Give the groups of the rows of ``fit``, negative for those that were left out."""
        return np.zeros(n_rows, dtype=np.intp) if self._encoder is None else self._encode(self._encoder, labels)

    def _class_codes(self, y: Any, rows: Any) -> Codes:
        """Positions in `classes_`."""
        if y is None:
            if not self._class_blind:
                msg = f"y is needed: the steering was fitted on the classes {few(map(repr, self.classes_.tolist()))}."
                raise ValueError(msg)
            return np.zeros(len(rows), dtype=np.intp)
        return class_codes(y, rows, self.classes_)

    def _feature_names(self) -> list[str]:
        """Names of the features for messages: ``x0``, ``x1``, … where the input had none."""
        return list(self.get_feature_names_out())


def is_identifier(moments: SubgroupMoments) -> bool:
    """Tell groups that are no groups, for most of them have a row or a few."""
    rows = moments.group_sizes
    return len(rows) > 2 and bool((rows <= 1).mean() > 0.5 or (len(rows) >= 20 and rows.mean() < 5))


def _warn_of_identifier(moments: SubgroupMoments, *, can_join: bool) -> None:
    """Warn of groups that are no groups: with a row each, all rows would move to one point."""
    rows = moments.group_sizes
    alone = int((rows <= 1).sum())
    if is_identifier(moments):
        join = ", or join small ones by small_subgroups='merge' and min_subgroup_size=…" if can_join else ""
        warn_caller(
            f"There are {len(rows)} groups with {rows.mean():.3g} rows each on average, {alone} with a single row "
            f"(such as {moments.groups.tolist()[int(rows.argmin())]!r}): is that an identifier of rows? A group of "
            f"few rows loses all that tells its rows apart. Use groups of many rows{join}."
        )


def _warn_if_swamped(raw: SubgroupMoments, shrunk: SubgroupMoments, names: list[str], way_out: str) -> None:
    """Warn where shrinking towards the mean variance drowns features of small scale."""
    before, after = (moments.model.variances(moments.covariances) for moments in (raw, shrunk))
    # What is left of a constant column after rounding is no variance.
    means = np.abs(raw.means).max(axis=(0, 1))
    varies = before > (1e-10 * means) ** 2
    largest = np.where(varies, before, 0).max(axis=-1, keepdims=True)
    swamped = varies & (after > 2 * before) & (largest > 1e3 * before)
    features = np.flatnonzero(swamped.reshape(-1, swamped.shape[-1]).any(axis=0))
    if features.size:
        # A feature transform may change the number of features.
        same = len(names) == raw.n_features
        listed = few((names[j] if same else f"number {j}" for j in features), 3)
        warn_caller(
            f"The features {listed} vary so much less than others that shrinkage more than "
            f"doubles their variance and hides them. {way_out}"
        )
