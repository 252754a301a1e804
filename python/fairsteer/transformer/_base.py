"""What the transformers share: rows and groups in, one affine map a group, rows out."""

from __future__ import annotations

import copy
import functools
from abc import ABCMeta, abstractmethod
from collections.abc import Hashable
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from scipy.special import softmax
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_array, check_consistent_length, get_tags
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from fairsteer._utils.columns import column_positions, select_columns
from fairsteer._utils.estimators import available_if, fit_context
from fairsteer._utils.input import (
    ROW_CHECKS,
    brief,
    check_classes,
    few,
    is_bfloat16,
    unknown_group_message,
    warn_caller,
    widen_bfloat16,
)
from fairsteer._utils.types import Codes, CovarianceModel, Floats
from fairsteer._utils.weights import check_sample_weight
from fairsteer.groups import MISSING, GroupEncoder, renumber
from fairsteer.moments import SubgroupMoments
from fairsteer.transformer._calibration import N_FOLDS, GroupCalibration, held_out_folds
from fairsteer.transformer._coordinates import fit_coordinates, needs_all_rows, to_coordinates
from fairsteer.transformer._maps import AffineMaps, FoldedMaps, row_chunks
from fairsteer.transformer._reading import Batch, check_as_before

_Self = TypeVar("_Self", bound="GroupMapTransformer")


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
    return True


class Solution(NamedTuple):
    """What a fit comes to."""

    model: SubgroupMoments
    maps: Any
    """`linear`, of shape (n_groups, d, d), and `offset`, of shape (n_groups, d), or one map for all groups."""
    folded: FoldedMaps

    @classmethod
    def of(cls, model: SubgroupMoments, maps: Any) -> Solution:
        """Solution with the maps of `_fit_maps`."""
        return cls(model, maps, FoldedMaps(maps.linear, maps.offset))


class GroupMapTransformer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator, metaclass=ABCMeta):
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
    unknown_group: Literal["error", "infer", "infer_hard"] = "error"
    min_cell_size: int = 0
    small_cells: Literal["error", "pool", "merge"] = "error"

    _parameter_constraints = {
        "reference_group": [Hashable, None],
        "covariance": [StrOptions({"tied", "full", "diagonal"})],
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
        "unknown_group": [StrOptions({"error", "infer", "infer_hard"})],
        "min_cell_size": [Interval(Integral, 0, None, closed="left")],
        "small_cells": [StrOptions({"error", "pool", "merge"})],
    }

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
            than `min_cell_size` rows and ``small_cells="error"``, or every group would have to merge.
        """
        batch = self._read_batch(X, y, sensitive_features, sample_weight, reset=True)
        weighted = batch.sample_weight is not None and np.ptp(batch.sample_weight) > 0
        if weighted and hasattr(self.shrinkage, "fit"):
            msg = (
                f"shrinkage={self.shrinkage!r} cannot take sample_weight. Use 'ledoit_wolf', 'oas', a number in "
                "[0, 1] or None, or leave sample_weight out."
            )
            raise ValueError(msg)
        self.feature_transform_ = self._fit_coordinates(batch)
        rows = self._to_model(batch.rows)
        self._set_moments(self._batch_moments(rows, batch), batch)
        self._solution = self._solve(self._shrunk(self.moments_, rows, batch.y_codes, batch.group_codes))
        self.group_calibration_ = self._calibrate(rows, batch)
        return self

    @available_if(_takes_batches)
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self: _Self, X: Any, y: Any = None, *, sensitive_features: Any = None, sample_weight: Any = None
    ) -> _Self:
        """Add a batch of rows to the fitted distributions.

        Batches give the same result as one ``fit`` on all rows, in any order; new classes and
        groups may appear in any batch. (With ``shrinkage="ledoit_wolf"`` and tied covariances the
        intensity of the shrinkage is the same up to a term of relative size 1/n.) The maps are found
        when they are next used.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows.
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
        first = not hasattr(self, "moments_")
        batch = self._read_batch(X, y, sensitive_features, sample_weight, reset=first)
        if first:
            self.feature_transform_ = self._fit_coordinates(batch)
        moments = self._batch_moments(self._to_model(batch.rows), batch)
        self._set_moments(moments if first else self.moments_.merge(moments), batch)
        self._solution = self.group_calibration_ = None
        return self

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
        self.fit(X, y, sensitive_features=sensitive_features, sample_weight=sample_weight)
        return self._transform(X, sensitive_features)

    def _read_batch(self, X: Any, y: Any, sensitive_features: Any, sample_weight: Any, *, reset: bool) -> Batch:
        rows, labels = self._read_rows(X, sensitive_features, reset=reset)
        if not reset:
            check_as_before("groups", labels is not None, self._encoder is not None)
            check_as_before("class labels", y is not None, not self._class_blind)
        class_blind = y is None
        y = np.zeros(len(rows), dtype=np.intp) if class_blind else check_classes(y, rows)
        weight = check_sample_weight(sample_weight, rows)

        encoder = None
        codes = np.zeros(len(rows), dtype=np.intp)
        if labels is not None:
            encoder = GroupEncoder() if reset or self._encoder is None else copy.copy(self._encoder)
            codes = encoder.partial_fit_encode(labels)
            check_consistent_length(rows, codes)
        n_missing = int((codes == MISSING).sum())
        if labels is None:
            warn_caller(
                "No groups were given, so nothing is being steered: all rows form one group and keep their features. "
                "Pass sensitive_features=… or name sensitive_columns=…."
            )
        elif n_missing:
            warn_caller(f"{n_missing} of {len(rows)} rows have a missing group and are left out of the fit.")

        if n_missing or (weight is not None and not weight.all()):
            kept = (codes != MISSING) & (weight != 0)
            if not kept.any():
                msg = (
                    f"No row is left to fit: {n_missing} of {len(rows)} have a missing group, the others have "
                    "sample_weight zero."
                )
                raise ValueError(msg)
            rows, y, codes = rows[kept], y[kept], codes[kept]
            weight = None if weight is None else weight[kept]
        classes, y_codes = np.unique(y, return_inverse=True)
        present, codes = renumber(codes, 1 if encoder is None else len(encoder.groups_))
        groups = present if encoder is None else encoder.groups_[present]
        return Batch(rows, y_codes, codes, weight, classes, groups, encoder, class_blind)

    def _fit_coordinates(self, batch: Batch) -> Any:
        return fit_coordinates(self.feature_transform, batch.rows, self._feature_names(), batch.sample_weight)

    def _batch_moments(self, rows: Floats, batch: Batch) -> SubgroupMoments:
        moments = SubgroupMoments(
            rows.shape[1],
            classes=batch.classes,
            groups=batch.groups,
            covariance=self.covariance,
        )
        return moments.update(rows, batch.y_codes, batch.group_codes, batch.sample_weight)

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
        moments, merging = self.moments_, self.small_cells == "merge"
        self._small_groups = moments.small_groups(self.min_cell_size) if merging else []
        self.groups_ = self._merged(moments).groups
        table = {label: code for code, label in enumerate(self.groups_.tolist())}
        joint = table.get(self._joint_label(moments.groups.tolist()))
        self._group_of_label = np.array([table.get(label, joint) for label in moments.groups.tolist()], dtype=np.intp)

    def _merged(self, moments: SubgroupMoments) -> SubgroupMoments:
        if not self._small_groups:
            return moments
        return moments.merge_groups(self._small_groups, self._joint_label(moments.groups.tolist()))

    @staticmethod
    def _joint_label(labels: list[Any]) -> Any:
        name = "(small groups)"
        joint: Any = name
        while (joint := (name,) * len(labels[0]) if isinstance(labels[0], tuple) else name) in labels:
            name += "'"
        return joint

    def _shrunk(self, moments: SubgroupMoments, rows: Any = None, y_codes: Any = None, codes: Any = None) -> Any:
        """Merge, pool and shrink moments; an estimator as `shrinkage` needs the rows and their codes."""
        moments = self._merged(moments)
        if self.pooling > 0:
            if self.covariance != "full":
                msg = f"pooling={self.pooling} needs covariance='full', not {self.covariance!r}; leave it at 0."
                raise ValueError(msg)
            if hasattr(self.shrinkage, "fit"):
                msg = f"shrinkage={self.shrinkage!r} fits every subgroup alone; leave pooling at 0, not {self.pooling}."
                raise ValueError(msg)
            moments = moments.pool(self.pooling)
        codes = None if codes is None else self._group_of_label[codes]
        return moments.shrink(self.shrinkage, X=rows, y_codes=y_codes, group_codes=codes)

    def _borrowed(self, shrunk: SubgroupMoments) -> SubgroupMoments:
        return shrunk.borrow(self.min_cell_size) if self.small_cells == "pool" else shrunk

    def _solve(self, shrunk: SubgroupMoments) -> Solution:
        """Model of the subgroups, and the maps that follow from it."""
        self._check_sizes()
        if isinstance(self.shrinkage, str) and self._uses_covariances():
            way_out = "Lower shrinkage, or leave such features out."
            if self.feature_transform is None:
                way_out = "Bring the features to one scale, for example by feature_transform=StandardScaler()."
            _warn_if_swamped(self._merged(self.moments_), shrunk, self._feature_names(), way_out)
        model = self._borrowed(shrunk)
        return Solution.of(model, self._fit_maps(model))

    def _uses_covariances(self) -> bool:
        """Whether the covariances make a difference to how rows move."""
        return True

    @abstractmethod
    def _fit_maps(self, model: SubgroupMoments) -> Any:
        """Find the maps at full strength.

        The result has `linear`, of shape (n_groups, d, d), and `offset`, of shape (n_groups, d), or one map for all
        groups.
        """

    def _check_sizes(self) -> None:
        """Refuse small subgroups if there is nothing to be done about them."""
        moments = self.moments_
        small = moments.sizes < self.min_cell_size
        if self.small_cells == "error" and small.any():
            msg = (
                f"{small.sum()} of {small.size} subgroups have fewer than min_cell_size={self.min_cell_size} rows. "
                "Ways out: let them borrow from other subgroups by small_cells='pool', make small groups one by "
                f"small_cells='merge', or lower min_cell_size.\n{moments.cell_table()}"
            )
            raise ValueError(msg)
        if len(self._small_groups) == moments.n_groups > 1:
            msg = (
                f"small_cells='merge' leaves one group and nothing to steer: for every class to have "
                f"min_cell_size={self.min_cell_size} rows, all {moments.n_groups} groups have to merge. Lower "
                f"min_cell_size, or let small subgroups borrow by small_cells='pool'.\n{moments.cell_table()}"
            )
            raise ValueError(msg)
        if self.reference_group in self._small_groups:
            msg = (
                f"reference_group={self.reference_group!r} is too small to stay: it is merged with others, as a class "
                f"has fewer than min_cell_size={self.min_cell_size} rows in it. Name another, or use "
                f"small_cells='pool'.\n{moments.cell_table()}"
            )
            raise ValueError(msg)

    def _calibrate(self, rows: Floats, batch: Batch) -> GroupCalibration | None:
        """Compare the groups' probabilities with the groups of rows that were held out."""
        if self.unknown_group == "error" or len(self.groups_) == 1:
            return None
        folds, sample = held_out_folds(batch.rows, batch.y_codes * len(batch.groups) + batch.group_codes)
        parts = []
        for fold in range(N_FOLDS):
            part = batch._replace(y_codes=np.where(folds == fold, batch.y_codes, -1))
            parts.append(self._batch_moments(rows, part))
        log_proba = np.empty((len(sample), len(self.groups_)))
        for fold in range(N_FOLDS):
            rest = functools.reduce(SubgroupMoments.merge, (part for i, part in enumerate(parts) if i != fold))
            y_codes = np.where(folds == fold, -1, batch.y_codes)
            model = self._borrowed(self._shrunk(rest, rows, y_codes, batch.group_codes))
            held_out = np.flatnonzero(folds[sample] == fold)
            for chunk in (held_out[some] for some in row_chunks(len(held_out))):
                log_proba[chunk] = np.logaddexp.reduce(model.log_joint(rows[sample[chunk]].astype(np.float64)), axis=1)
        weight = np.ones(len(sample)) if batch.sample_weight is None else batch.sample_weight[sample]
        return GroupCalibration.fit(log_proba, self._group_of_label[batch.group_codes[sample]], weight)

    def _fitted(self) -> Solution:
        """Model of the subgroups, and what holds the maps."""
        check_is_fitted(self, "moments_")
        if self._solution is None:  # rows have come by partial_fit since
            self._solution = self._solve(self._shrunk(self.moments_))
        return self._solution

    @property
    def maps_(self) -> dict[Any, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
        """Map ``(A, b)`` of each group at full strength."""
        maps = self._fitted().maps
        return {group: (maps.linear[a], maps.offset[a]) for a, group in enumerate(self.groups_.tolist())}

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
        return self._transform(X, sensitive_features)

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
        rows = check_array(widen_bfloat16(X), **ROW_CHECKS, estimator=self)
        names = self._feature_names()
        if rows.shape[1] != len(names):
            msg = (
                f"X has {rows.shape[1]} features, but inverse_transform of "
                f"{type(self).__name__} is expecting {len(names)} features as input."
            )
            raise ValueError(msg)
        codes = self._known_codes(sensitive_features, rows, "inverse_transform")
        maps = self._group_maps(self._strength()).inverse(self.groups_.tolist())
        return self._as_dtype_of(X, self._move(rows, codes, maps))

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
        return self._as_dtype_of(X, self._steered(X, sensitive_features))

    def _steered(self, X: Any, sensitive_features: Any) -> Floats:
        """Steered rows as a plain array, whatever `set_output` says."""
        rows, codes = self._read_rows_and_codes(X, sensitive_features)
        return self._move(rows, codes, self._group_maps(self._strength()))

    def _move(self, rows: Floats, codes: Codes, maps: AffineMaps) -> Floats:
        """Map rows in the coordinates of the model; negative codes are weighted by their posterior."""
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

    def _group_maps(self, strength: float) -> AffineMaps:
        return self._fitted().folded(strength)

    def _group_proba(self, rows: Floats) -> npt.NDArray[np.float64]:
        shrunk = self._fitted().model
        proba = np.empty((len(rows), len(self.groups_)))
        for chunk in row_chunks(len(rows)):
            log_proba = np.logaddexp.reduce(shrunk.log_joint(rows[chunk].astype(np.float64)), axis=1)
            if self.group_calibration_ is not None:
                log_proba = self.group_calibration_.apply(log_proba)
            proba[chunk] = softmax(log_proba, axis=1)
        return proba

    def _strength(self) -> float:
        # Checked here as well as in fit, since it may be set in between.
        if not 0 <= self.strength <= 1:
            msg = f"strength must be in [0, 1], got {self.strength!r}."
            raise ValueError(msg)
        return self.strength

    # ---- reading input

    def _read_rows(self, X: Any, sensitive_features: Any, *, reset: bool) -> tuple[Floats, Any]:
        """Read and validate features, and the group labels beside them (None: there are none)."""
        X = widen_bfloat16(X)
        if self.sensitive_columns is None:
            if reset:
                self._sensitive_positions = []
            return validate_data(self, X, reset=reset, **ROW_CHECKS), sensitive_features
        if sensitive_features is not None:
            msg = (
                f"Groups are given twice, by sensitive_columns={self.sensitive_columns!r} and by "
                "sensitive_features. Leave one out."
            )
            raise ValueError(msg)
        if issparse(X):
            check_array(X, **ROW_CHECKS, estimator=self)  # raises scikit-learn's error
        validate_data(self, X, reset=reset, skip_check_array=True)
        if reset:
            self._sensitive_positions = column_positions(
                self.sensitive_columns,
                X,
                getattr(self, "feature_names_in_", None),
                self.n_features_in_,
            )
        rest = [j for j in range(self.n_features_in_) if j not in self._sensitive_positions]
        labels = select_columns(X, self._sensitive_positions)
        rows = check_array(select_columns(X, rest), **ROW_CHECKS, estimator=self, input_name="X")
        return rows, labels

    def _read_rows_and_codes(self, X: Any, sensitive_features: Any) -> tuple[Floats, Codes]:
        """Features and groups; a negative code stands for a group to be inferred."""
        rows, labels = self._read_rows(X, sensitive_features, reset=False)
        infer = self.unknown_group in ("infer", "infer_hard")
        if labels is None and self._encoder is not None and infer:
            codes = np.full(len(rows), MISSING, dtype=np.intp)
        else:
            codes = self._known_codes(labels, rows, "transform", infer=infer)
        unknown = codes < 0
        if self.unknown_group == "infer_hard" and unknown.any():
            codes[unknown] = self._group_proba(self._to_model(rows[unknown])).argmax(axis=1)
        return rows, codes

    def _encode(self, encoder: GroupEncoder, labels: Any) -> Codes:
        """Positions in `groups_`; negative for labels that are missing or new."""
        codes = encoder.encode(labels)
        return np.where(codes < 0, codes, self._group_of_label[np.maximum(codes, 0)])

    def _training_codes(self, labels: Any, n_rows: int) -> Codes:
        """Give the groups of the rows of ``fit``, negative for those that were left out."""
        return np.zeros(n_rows, dtype=np.intp) if self._encoder is None else self._encode(self._encoder, labels)

    def _known_codes(self, labels: Any, rows: Any, method: str, *, infer: bool = False) -> Codes:
        if self._encoder is None:
            if labels is not None:
                msg = (
                    "sensitive_features are given, but the steering was fitted without groups. Fit "
                    "it again with sensitive_features=… or sensitive_columns=…."
                )
                raise ValueError(msg)
            return np.zeros(len(rows), dtype=np.intp)
        ways_out = (
            "pass sensitive_features=… with a known group in every row, fit with "
            "sensitive_columns=… to take the groups from columns of X, or fit with "
            "unknown_group='infer' to weight the groups by their probability given the features"
        )
        if method != "transform":
            ways_out = f"pass sensitive_features=… with a known group in every row: {method} cannot infer any"
        if labels is None:
            msg = (
                f"No groups are given, but the steering was fitted on the groups "
                f"{few(map(repr, self.moments_.groups.tolist()))} and moves a row by its group. The way out: "
                f"{ways_out}."
            )
            raise ValueError(msg)
        codes = self._encode(self._encoder, labels)
        if rows is not None:
            check_consistent_length(rows, codes)
        if not infer and (codes < 0).any():
            counts = self._encoder.unknown_counts(labels)
            raise ValueError(unknown_group_message(codes, counts, self.moments_.groups, ways_out))
        return codes

    def _feature_names(self) -> list[str]:
        """Names of the features for messages: ``x0``, ``x1``, … where the input had none."""
        return list(self.get_feature_names_out())

    @staticmethod
    def _as_dtype_of(X: Any, rows: Floats) -> Any:
        return rows.astype(X.dtype) if is_bfloat16(X) else rows


def _warn_if_swamped(raw: SubgroupMoments, shrunk: SubgroupMoments, names: list[str], way_out: str) -> None:
    """Warn where shrinking towards the mean variance drowns features of small scale."""
    before, after = _variances(raw), _variances(shrunk)
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


def _variances(moments: SubgroupMoments) -> npt.NDArray[np.float64]:
    covariances = moments.covariances
    if moments.covariance == "diagonal":
        return covariances
    return np.diagonal(covariances, axis1=-2, axis2=-1)
