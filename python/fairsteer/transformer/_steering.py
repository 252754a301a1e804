"""The scikit-learn transformer: features of sensitive groups to the nearest ideal distribution."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from fairsteer._utils.arrays import to_numpy
from fairsteer._utils.estimators import Interval, StrOptions
from fairsteer._utils.input import as_given, few, num_rows, warn_caller
from fairsteer._utils.types import Codes, CovarianceModel, Doubles, Floats, SmallSubgroups, UnknownGroup
from fairsteer._utils.weights import check_sample_weight
from fairsteer.ideal import Certificate, IdealDistribution, Intervention, nearest_ideal, reference_code
from fairsteer.ideal import MapType as GaussianMapType
from fairsteer.ideal._certificate import SubgroupGaussians, moved_certificate
from fairsteer.moments import SubgroupMoments
from fairsteer.streams import Stream
from fairsteer.transformer._base import GroupMapTransformer, Solution, is_identifier
from fairsteer.transformer._calibration import row_hashes
from fairsteer.transformer._maps import AffineMaps
from fairsteer.transformer._misfit import ModelRows, contradicts, warn_of_misfit
from fairsteer.transformer._monotone import MonotoneMaps
from fairsteer.transformer._reading import Batch

MapType = Literal["auto", "monotone", "affine", "symmetric", "diagonal", "translation"]
Constraint = Literal["ideal", "equal_opportunity", "demographic_parity"]

# Of more features than this nobody looks whether values repeat: these are embeddings, and a look takes time.
_MOST_COLUMNS_OF_A_TABLE = 256


class FairSteeringTransformer(GroupMapTransformer):
    """Steer the features of sensitive groups to the nearest ideal distribution.

    A distribution is *ideal* when every cost-sensitive Bayes classifier on it is exactly fair:
    demographic parity, equal opportunity and equalized odds hold with gap zero, so that fairness
    costs no accuracy. The transformer models each subgroup (class, group) as a Gaussian, finds the
    ideal distribution with the smallest Kullback-Leibler divergence to that model, and moves rows
    by one affine map per group. The map needs a row's group but not its class, so training rows
    and the rows of production are treated alike.

    Parameters
    ----------
    intervention : {"all_subgroups", "affirmative"}, default="all_subgroups"
        Whether every group may move, or one reference group stays exactly as it is.
    reference_group : label, default=None
        The group that stays under ``intervention="affirmative"``. None: the group with the most
        weight.
    constraint : {"ideal", "equal_opportunity", "demographic_parity"}, default="ideal"
        What is to hold: the ideal of every criterion at once; that classes named by `pos_label` are recognised
        equally often in every group, for which their rows alone count; or that predictions are equally frequent in
        every group, for which classes do not count and `y` is not looked at.
    map_type : {"affine", "symmetric", "diagonal", "translation", "monotone", "auto"}, default="auto"
        How rows may move. Four follow from the Gaussian model: ``"affine"`` is the nearest of all ideal
        distributions; ``"symmetric"`` the convex program of Sharma et al. (2025) [1]_, which does not rotate;
        ``"diagonal"`` scales and shifts every feature for itself; ``"translation"`` only shifts. ``"monotone"`` moves
        every feature for itself, by the groups' quantiles, onto values that occur, so that integers and flags stay
        what they are; it takes the features as they come, whatever the `feature_transform`. The fewer ways a map has
        to move, the less harm it can do where rows are not Gaussian. ``"auto"``, which `map_type_` resolves:
        ``"monotone"`` for a table, that is if in at least half of at most 256 features several different rows share
        the smallest or the largest value, else ``"affine"``; after ``partial_fit``, which keeps no rows, always
        ``"affine"``.
    covariance : {"tied", "full", "diagonal"}, default="tied"
        One covariance per group, one per subgroup, or one diagonal per subgroup.
    shrinkage : {"ledoit_wolf", "oas"}, float in [0, 1], None or estimator, default="ledoit_wolf"
        How covariances are regularised. An estimator is a scikit-learn covariance estimator.
    pooling : float in [0, 1], default=0.0
        With ``covariance="full"``, how far the subgroups of a group share their covariances before they
        are shrunk; 1 is one covariance per group. A small subgroup borrows more than a large one.
    feature_transform : None, "log" or transformer, default=None
        Coordinates in which the features are taken as Gaussian: rows are transformed, steered and
        transformed back. ``"log"`` for positive, log-normal features; else any scikit-learn
        transformer with an ``inverse_transform`` that undoes its ``transform``, such as
        :class:`~sklearn.preprocessing.StandardScaler` for features of very different scales. It is
        fitted with the `sample_weight` if its ``fit`` takes one; otherwise a warning says that it is not.
    strength : float in [0, 1], default=1.0
        Part of the way that rows move: ``(1 - strength) * x + strength * T(x)``. Read when rows
        are transformed, so a new value on a fitted transformer needs no new fit.
    sensitive_columns : str, int, list of these, slice, mask, callable or None, default=None
        Columns of `X` that hold the groups, as in
        :class:`~sklearn.compose.ColumnTransformer`: by name or position (negative ones count from the
        end), as a slice of positions, a list of booleans, or a function that is called with `X` at
        ``fit`` and returns any of these, such as :func:`~sklearn.compose.make_column_selector`. They
        are used and left out of the output. Several columns stand for their intersections. None:
        groups come as `sensitive_features`.
    unknown_group : {"error", "infer", "infer_hard"}, default="error"
        What happens to a row whose group is missing, was not there at ``fit``, or is not given at
        all: a ValueError; the combination of the groups' maps weighted by the probabilities of the
        groups given the features (:meth:`predict_group_proba`); or the map of the likeliest group.
    min_subgroup_size : int, default=0
        Rows that every class should have in every group; `small_subgroups` says what happens to
        subgroups with fewer. Weighted rows count by their weight, or by their effective number where
        that is larger (:attr:`SubgroupMoments.sizes`). 0: no subgroup is too small; one without rows
        leaves its group's map to the other classes, with a warning.
    small_subgroups : {"error", "pool", "merge"}, default="error"
        ``"error"`` lists the subgroups in a ValueError. ``"pool"`` fills a subgroup of ``n`` rows up
        with ``min_subgroup_size - n`` rows of what its class in the other groups, and the other classes
        of its group, suggest (:meth:`SubgroupMoments.borrow`). ``"merge"`` makes the groups with
        such a subgroup one group, labelled ``"(small groups)"`` (a tuple of that for intersections),
        joined by the next smallest until no subgroup is too small; their labels still choose the map.
    standardize : bool, default=True
        Whether the classes have the same weights in every group wherever they are averaged within it (tied
        covariances, `pooling`, quantiles). If not, groups that differ in base rates alone are moved, since classes
        differ in spread. A stream of ``partial_fit`` is standardised if the covariances of all subgroups fit into a
        gigabyte (``moments_.covariance == "full"``).
    pos_label : label or list of labels, default=None
        The classes whose rates must agree under ``constraint="equal_opportunity"``. None: the last of two classes;
        all of more.
    min_distinct : int, default=6
        With monotone maps, features of fewer different values stay as they are: flags and short scales, of which whole
        steps would move. 2 moves all, so that of the rows with a flag some lose it, or the other way round.
    max_iter : int, default=200
        Limit on the iterations of the projection.
    tol : float, default=1e-6
        The projection stops when the divergence is this close to its limit by estimate, in nats
        relative to ``max(1, divergence)``.
    max_time : float, default=None
        Seconds after which the projection ends with the nearest distribution so far and a
        ``ConvergenceWarning``; None: no limit.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels; ``[0]`` if fitted without `y`.
    groups_ : ndarray of shape (n_groups,)
        Group labels, tuples if there are several sensitive columns; ``[0]`` if fitted without
        groups. Small groups are merged here if `small_subgroups` says so.
    moments_ : SubgroupMoments
        Weights, means and covariances of the subgroups before shrinkage, pooling and merging;
        ``print(moments_.subgroup_table())`` shows the weights.
    group_calibration_ : VectorScaling or None
        Slope and offsets that turn the groups' log-probabilities under the fitted Gaussians into ones
        that agree with rows held out from these. Fitted by ``fit`` if `unknown_group` is not
        ``"error"``; None, for probabilities as the Gaussians have them, otherwise and after
        ``partial_fit``, which has no rows to hold out.
    ideal_ : IdealDistribution
        The nearest ideal distribution.
    map_type_ : str
        How rows move.
    maps_ : dict
        For each group label the map ``(A, b)`` at full strength, of shapes (n_features,
        n_features) and (n_features,): ``x -> A @ x + b``. With a `feature_transform`, in its
        coordinates.
    kl_divergence_ : float
        Divergence of the ideal distribution from the fitted one, in nats.
    certificate_ : Certificate
        Bounds on the unfairness, and on the change in accuracy, of classifiers of steered rows, for subgroups that are
        Gaussians of their own means and covariances (``certificate_.gaussians == "subgroups"``), whatever `covariance`
        makes of them; with monotone maps, of the rows that these make. Covariances are shrunk as far as those of the
        model, and drawn to these as far as chance explains the difference, so that few rows say little. Where the
        covariances of all subgroups would take more than 64 MB (a gigabyte in a stream), where there are more than
        256 features of ``covariance="diagonal"``, and with an estimator as `shrinkage`, they are not known, and the
        certificate is the model's (``"model"``). Of many features it is found when first asked for.
    model_certificate_ : Certificate
        The same for the Gaussians as the model has them. With monotone maps, of which no model knows, all bounds are 1.
    n_iter_ : int
        Iterations of the projection.
    objective_path_ : ndarray of shape (`n_iter_` + 1,)
        Divergence after every iteration, in nats, never increasing; one value under
        ``intervention="affirmative"``.
    feature_transform_ : transformer or None
        The fitted `feature_transform`.
    n_features_in_ : int
        Number of columns of `X` at ``fit``, sensitive ones included.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns of `X`, where it had string names.

    See Also
    --------
    IdealDistributionClassifier : Bayes classifier of the ideal distribution, or any classifier on
        steered rows.

    Notes
    -----
    By a Gaussian map integers and 0/1 columns end at values that one group alone has. Linear models cannot use that,
    trees can: before them use ``map_type="monotone"`` with ``standardize=True``, or align scores instead
    (:class:`ScoreAligner`). With monotone maps `ideal_` and its divergence are those of the
    Gaussian model with maps of single features; `maps_`, matrices, do not exist.

    ``fit`` warns where the subgroups allow a gap of more than twice what the model does, and of .1 more, beyond what
    chance explains; of many features it looks in the directions in which the classes differ.

    Nothing is random, and every method but ``fit`` and ``partial_fit`` treats rows one by one.
    Statistics are kept in double precision; rows come back in the floating-point type they came
    in (``float64`` for other types).

    References
    ----------
    .. [1] Sharma, Deshpande, Bhattacharyya, Shah. "On Optimal Steering to Achieve Exact
       Fairness". NeurIPS 2025. arXiv:2509.15759.

    Examples
    --------
    >>> import numpy as np
    >>> from fairsteer import FairSteeringTransformer
    >>> from fairsteer.datasets import make_biased_groups
    >>> X, y, group = make_biased_groups(random_state=0)
    >>> steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    >>> U = steer.transform(X, sensitive_features=group)
    >>> gap = np.abs(U[group == 0].mean(axis=0) - U[group == 1].mean(axis=0))
    >>> bool(gap.max() < 0.1)
    True
    """

    _parameter_constraints = {
        **GroupMapTransformer._parameter_constraints,
        "intervention": [StrOptions(set(get_args(Intervention)))],
        "constraint": [StrOptions(set(get_args(Constraint)))],
        "map_type": [StrOptions(set(get_args(MapType)))],
        "pos_label": [object],
        "min_distinct": [Interval(Integral, 2, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_time": [Interval(Real, 0, None, closed="neither"), None],
    }

    _of_maps = (
        *("map_type_", "ideal_", "kl_divergence_", "certificate_", "model_certificate_", "n_iter_", "objective_path_"),
    )

    map_type_: str
    ideal_: IdealDistribution
    kl_divergence_: float
    model_certificate_: Certificate
    n_iter_: int
    objective_path_: Doubles

    def __init__(
        self,
        *,
        intervention: Intervention = "all_subgroups",
        reference_group: Hashable = None,
        constraint: Constraint = "ideal",
        map_type: MapType = "auto",
        covariance: CovarianceModel = "tied",
        shrinkage: Any = "ledoit_wolf",
        pooling: float = 0.0,
        feature_transform: Any = None,
        strength: float = 1.0,
        sensitive_columns: Any = None,
        unknown_group: UnknownGroup = "error",
        min_subgroup_size: int = 0,
        small_subgroups: SmallSubgroups = "error",
        standardize: bool = True,
        pos_label: Any = None,
        min_distinct: int = 6,
        max_iter: int = 200,
        tol: float = 1e-6,
        max_time: float | None = None,
    ) -> None:
        self.intervention = intervention
        self.reference_group = reference_group
        self.constraint = constraint
        self.map_type = map_type
        self.covariance = covariance
        self.shrinkage = shrinkage
        self.pooling = pooling
        self.feature_transform = feature_transform
        self.strength = strength
        self.sensitive_columns = sensitive_columns
        self.unknown_group = unknown_group
        self.min_subgroup_size = min_subgroup_size
        self.small_subgroups = small_subgroups
        self.standardize = standardize
        self.pos_label = pos_label
        self.min_distinct = min_distinct
        self.max_iter = max_iter
        self.tol = tol
        self.max_time = max_time

    def _needs_all_rows(self) -> str | None:
        if self.map_type != "monotone":
            return None
        return "map_type='monotone' needs all rows at once, which partial_fit has not. Use another one, or call fit."

    def _counted(self, batch: Batch) -> Batch:
        if self.constraint != "demographic_parity":
            return batch
        # Classes do not count: all rows are of one.
        return batch._replace(
            y_codes=np.zeros_like(batch.y_codes), classes=np.zeros(1, dtype=np.intp), class_blind=True
        )

    def _class_codes(self, y: Any, rows: Any) -> Codes:
        if self.constraint == "demographic_parity":
            return np.zeros(num_rows(rows), dtype=np.intp)
        return super()._class_codes(y, rows)

    def _favourable(self) -> list[Any]:
        """Classes whose rates must agree."""
        classes: list[Any] = self.classes_.tolist()
        if self.constraint != "equal_opportunity":
            return classes
        if self.pos_label is None:
            return classes[1:] if len(classes) == 2 else classes
        several = isinstance(self.pos_label, (list, tuple, set, frozenset, np.ndarray))
        labels = list(self.pos_label) if several else [self.pos_label]
        unknown = [label for label in labels if label not in classes]
        if unknown or not labels:
            msg = f"pos_label={self.pos_label!r} must name classes; the classes are {few(map(repr, classes))}."
            raise ValueError(msg)
        return [label for label in classes if label in labels]

    def _chosen(self, rows: Any) -> MapType:
        """Resolve ``map_type="auto"``; without rows the moments are all there is."""
        if self.map_type != "auto":
            return self.map_type
        if rows is None or rows.shape[1] > _MOST_COLUMNS_OF_A_TABLE or len(self.groups_) == 1:
            return "affine"
        if np.mean(_ends_repeat(rows)) < 0.5:
            return "affine"
        # Quantiles have nothing to lend to a small subgroup.
        return "diagonal" if self.small_subgroups == "pool" and self.min_subgroup_size > 0 else "monotone"

    def _classes_count(self) -> bool:
        return self.constraint != "demographic_parity"

    def _refuses_streams(self) -> str | None:
        return None  # quantiles are those of rows that stand for all

    def _needs_sample(self, stream: Stream) -> bool:
        if super()._needs_sample(stream) or self.map_type == "monotone":
            return True
        if self.map_type != "auto" or self.moments_.n_features > _MOST_COLUMNS_OF_A_TABLE or len(self.groups_) == 1:
            return False
        first = next(stream.batches())  # which says whether this is a table
        return self._chosen(np.asarray(to_numpy(first.X))) == "monotone"

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
        self._map_type = self._chosen(rows if sample is None else sample.rows)
        quantiles = batch if sample is None else sample
        with warnings.catch_warnings():
            if self._map_type == "monotone" and quantiles is not None:  # its weights leave every group its share
                warnings.filterwarnings("ignore", "The nearest ideal distribution all but leaves out group")
            solution = super()._solve(shrunk, rows, batch)
        if batch is None and self.moments_.covariance == "full":  # of a stream
            cells = self.moments_
        if len(self.groups_) == 1:
            return solution
        if final:
            self._warn_of_few_rows()
        if self._map_type != "monotone" or quantiles is None:
            ideal = solution.maps
            if cells is not None:
                ideal = self._with_cells(ideal, cells)
            if final:
                self._warn_of_misfit(ideal, rows, batch)
            return solution._replace(maps=ideal)
        if self.small_subgroups == "pool" and self.min_subgroup_size > 0:
            msg = (
                "small_subgroups='pool' lends Gaussians to small subgroups, and map_type='monotone' has none: use "
                "small_subgroups='merge', or another map_type."
            )
            raise ValueError(msg)
        favourable = self._favourable()
        counts = np.array([label in favourable for label in self.classes_.tolist()])
        weights = solution.model.weights
        held = reference_code(solution.model, self.reference_group) if self.intervention == "affirmative" else None
        maps = MonotoneMaps.fit(
            quantiles.rows,
            quantiles.y_codes,
            self._group_of_label[quantiles.group_codes],
            quantiles.sample_weight,
            class_weights=np.where(counts, weights.sum(axis=1), 0.0) / weights.sum(),
            group_shares=weights.sum(axis=0) / weights.sum(),
            standardize=self.standardize,
            reference=held,
            min_distinct=self.min_distinct,
        )
        return solution._replace(folded=maps, maps=self._certify_monotone(maps, solution.maps, quantiles, cells))

    def _moments_of_fit(
        self, rows: Floats, batch: Batch, *, final: bool
    ) -> tuple[SubgroupMoments, SubgroupMoments | None]:
        # Where features are taken as uncorrelated they may be many, and their products would take longer than all else.
        many = self.covariance == "diagonal" and rows.shape[1] > _MOST_COLUMNS_OF_A_TABLE
        # What an estimator of covariances would make of the cells nobody knows.
        known = len(batch.groups) > 1 and not hasattr(self.shrinkage, "fit")
        apart = self.covariance == "tied" or (self.covariance == "diagonal" and final)
        if not apart or many or not known or not self._cells_are_few(batch):
            moments, _ = super()._moments_of_fit(rows, batch, final=final)
            return moments, moments if final and known and moments.covariance == "full" else None
        cells = self._batch_moments(rows, batch, covariance="full")
        moments = self._batch_moments(rows, batch) if self.covariance == "diagonal" else cells
        if self.covariance == "tied" and not self.standardize:
            moments = cells.tie()
        return moments, cells if final else None

    def _with_cells(self, ideal: IdealDistribution, cells: SubgroupMoments) -> IdealDistribution:
        """Let the certificate be about the subgroups' own Gaussians, and compare it with that of the model."""
        labels = ideal.classes.tolist()
        moments = self.moments_
        if len(labels) < len(self.classes_):
            moments = (cells if self.covariance == "tied" else moments).of_classes(labels)
        own = self._merged(cells).of_classes(labels)
        intensity = self._intensity(self._unshrunk(moments))
        if intensity is not None:
            intensity = np.broadcast_to(intensity, own.weights.shape)
        return replace(ideal, subgroups=SubgroupGaussians(own, intensity, chance=1.0))

    def _warn_of_few_rows(self) -> None:
        """Warn of groups, or with full covariances of classes in them, that have fewer rows than there are features."""
        moments = self._merged(self.moments_)
        if self.covariance == "diagonal" or self.small_subgroups == "pool" or is_identifier(self.moments_):
            return
        full, d = self.covariance == "full", moments.n_features
        rows = np.where(moments.weights > 0, moments.sizes, np.inf).min(axis=0) if full else moments.sizes.sum(axis=0)
        small = [f"{label!r} ({n:,.0f})" for label, n in zip(moments.groups.tolist(), rows, strict=True) if n < d]
        if small:
            warn_caller(
                f"There are fewer rows than the {d} features in {'a class of ' if full else ''}the group "
                f"{few(small, 5)}: covariances are mostly shrinkage, and the certificate says little. Use fewer "
                "features, or covariance='diagonal', and trust gaps measured on held-out rows only."
            )

    def _warn_of_misfit(self, ideal: IdealDistribution, rows: Any, batch: Batch | None) -> None:
        """Compare the certificate of the model with that of the subgroups' own Gaussians."""
        if ideal.subgroups is not None:
            along: Any = ideal.subgroups.moments
        elif batch is not None and not hasattr(self.shrinkage, "fit"):
            codes = self._group_of_label[batch.group_codes]
            along = ModelRows(rows, batch.y_codes, codes, batch.sample_weight, batch.classes)
        else:
            return
        warn_of_misfit(ideal, along, standardize=self.standardize, ways_out=self._other_models())

    def _other_models(self) -> list[str]:
        """Parameters that bring the model nearer to the subgroups' own Gaussians."""
        found = []
        if self.covariance == "tied" and not self.standardize:
            found.append("standardize=True")
        if self.covariance != "full":
            found.append("covariance='full'")
        if self.pooling > 0:
            found.append("less pooling")
        if self.small_subgroups == "pool" and self.min_subgroup_size > 0:
            found.append("a lower min_subgroup_size")
        return found

    def _intensity(self, moments: SubgroupMoments) -> Doubles | None:
        """How far the covariances of the model are shrunk to a multiple of the identity."""
        if isinstance(self.shrinkage, str):
            return moments.shrinkage_intensity(self.shrinkage)
        return None if self.shrinkage is None else np.array(float(self.shrinkage))

    def _certify_monotone(
        self, maps: MonotoneMaps, ideal: IdealDistribution, batch: Batch, cells: SubgroupMoments | None
    ) -> IdealDistribution:
        """Let the certificate be about the Gaussians of steered rows: no model says what becomes of them."""
        if cells is None:
            return ideal
        codes = self._group_of_label[batch.group_codes]
        moved = SubgroupMoments(batch.rows.shape[1], classes=batch.classes, groups=self.groups_, covariance="full")
        moved.update(maps.apply(batch.rows, codes)[0], batch.y_codes, codes, batch.sample_weight)
        found = moved_certificate(SubgroupGaussians(moved, chance=1.0), ideal, standardize=self.standardize)
        return replace(ideal, known_certificate=found)

    def _uses_covariances(self) -> bool:
        return self._map_type not in ("monotone", "translation") or self.unknown_group != "error"

    def _model_of_maps(self, model: SubgroupMoments, rows: Any, batch: Batch | None) -> SubgroupMoments:
        labels = self._favourable()
        if len(labels) == model.n_classes:
            return model
        model = self._model_of_classes(labels, model, rows, batch)
        missing = np.flatnonzero(model.weights.sum(axis=0) == 0)
        if missing.size:
            msg = (
                f"Group {model.groups.tolist()[missing[0]]!r} has no row of class {few(map(repr, labels))}, whose "
                "rates constraint='equal_opportunity' compares. Leave the group out, or merge small groups by "
                f"min_subgroup_size=1, small_subgroups='merge'.\n{self.moments_.subgroup_table()}"
            )
            raise ValueError(msg)
        return model

    def _model_of_classes(
        self, labels: list[Any], model: SubgroupMoments, rows: Any, batch: Batch | None
    ) -> SubgroupMoments:
        """Model of some of the classes; a tied covariance is of these alone."""
        if model.covariance != "tied":
            return model.of_classes(labels)
        if self.moments_.covariance == "full" and not hasattr(self.shrinkage, "fit"):
            return self._borrowed(self._shrunk(self.moments_.of_classes(labels)))
        if batch is None:
            msg = (
                "constraint='equal_opportunity' needs the covariances of single classes, which a stream keeps if "
                "standardize=True and they fit into a gigabyte. Use fit, or covariance='full'."
            )
            raise ValueError(msg)
        kept = np.array([label in labels for label in batch.classes.tolist()])
        code = np.where(kept, np.cumsum(kept) - 1, -1)
        part = batch._replace(y_codes=code[batch.y_codes], classes=batch.classes[kept])
        chosen = part.y_codes >= 0
        some = part._replace(
            y_codes=part.y_codes[chosen],
            group_codes=part.group_codes[chosen],
            sample_weight=None if part.sample_weight is None else part.sample_weight[chosen],
        )
        moments = self._batch_moments(rows, part, self._class_factors(some))
        return self._borrowed(self._shrunk(moments, rows, part.y_codes, part.group_codes))

    def _fit_maps(self, model: SubgroupMoments) -> IdealDistribution:
        if self._map_type == "auto" or self._map_type == "monotone":
            map_type: GaussianMapType = "diagonal"
        else:
            map_type = self._map_type
        reference = self.reference_group
        if self.intervention == "affirmative" and reference is None:
            # The heaviest of all rows, whichever of them count.
            weights = self._merged(self.moments_).weights.sum(axis=0)
            reference = self.groups_.tolist()[int(weights.argmax())]
        return nearest_ideal(
            model,
            intervention=self.intervention,
            reference_group=reference,
            map_type=map_type,
            covariance=self.covariance,
            max_iter=self.max_iter,
            tol=self.tol,
            max_time=self.max_time,
        )

    def _found_facts(self) -> list[tuple[str, str]]:
        known = vars(self)
        if "map_type_" not in known:
            return []
        facts = [
            ("maps", f"{known['map_type_']}, at strength {self.strength:g}"),
            ("nearest ideal distribution", f"{known['kl_divergence_']:.4g} nats away"),
        ]
        ideal: IdealDistribution = known["ideal_"]
        certificate, promised = ideal.found_certificate, known["model_certificate_"].equalized_odds
        if known["map_type_"] != "monotone":  # which follows no model
            facts.append(("the model alone", f"promises a gap of at most {promised:.3g}"))
            if certificate is not None:
                misfit = contradicts(certificate.equalized_odds, promised)
                facts.append(("verdict", "the subgroups contradict the model" if misfit else "the model is borne out"))
        return facts + ideal._certificate_facts()

    def _attributes_of(self, solution: Solution) -> dict[str, Any]:
        ideal: IdealDistribution = solution.maps
        monotone = isinstance(solution.folded, MonotoneMaps)
        by_model = Certificate.of_nothing(ideal.source_weights.shape, "model") if monotone else ideal.model_certificate
        return {
            "map_type_": "monotone" if monotone else ideal.map_type,
            "ideal_": ideal,
            "kl_divergence_": ideal.kl_divergence,
            "model_certificate_": by_model,
            "n_iter_": ideal.n_iter,
            "objective_path_": ideal.objective_path,
        }

    @property
    def certificate_(self) -> Certificate:
        """Bounds on the unfairness, and on the change in accuracy, of classifiers of steered rows."""
        check_is_fitted(self, "moments_")
        if self._solution is None:
            raise AttributeError("certificate_")  # to be explained by __getattr__
        ideal: IdealDistribution = self._solution.maps
        if isinstance(self._solution.folded, MonotoneMaps) and ideal.known_certificate is None:
            return Certificate.of_nothing(ideal.source_weights.shape, "subgroups")
        return ideal.certificate

    def steer(self, X: Any, y: Any = None, *, sensitive_features: Any = None) -> Any:
        """Move rows by class and group, so that they follow the ideal distribution.

        Each subgroup moves by the optimal-transport map to its part of the ideal distribution, in
        the group's own coordinates. With the weights of :meth:`ideal_sample_weight` the result has
        the means and covariances of the ideal distribution (with monotone maps, which have no part in
        this, with those of ``ideal_.sample_weight``). It serves to prepare training data;
        for rows whose class is not known there is :meth:`transform`.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows, in the columns of ``fit``.
        y : array-like of shape (n_samples,)
            Class labels. May be left out if they were left out at ``fit``.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels, unless there are `sensitive_columns`.

        Returns
        -------
        ndarray of shape (n_samples, n_features_out)
            Steered rows, without sensitive columns.

        Raises
        ------
        ValueError
            If a class or group is not known, or a subgroup had no rows at ``fit``.
        """
        check_is_fitted(self, "moments_")
        if len(self._favourable()) < len(self.classes_):
            msg = (
                "steer moves rows so that all classes follow the ideal distribution. Under "
                "constraint='equal_opportunity' the distribution stays what it is: use transform."
            )
            raise ValueError(msg)
        rows, labels = self._read_rows(X, sensitive_features, reset=False)
        codes = self._known_codes(labels, rows, "steer")
        y_codes = self._class_codes(y, rows)
        self._check_cells(y_codes, codes)
        n_groups = len(self.groups_)
        cells, inverse = np.unique(y_codes * n_groups + codes, return_inverse=True)
        ideal: IdealDistribution = self._fitted().maps
        classes = self.classes_.tolist()
        place = {label: k for k, label in enumerate(ideal.classes.tolist())}
        parts = [(place[classes[c // n_groups]], c % n_groups) for c in cells.tolist()]
        A, b = zip(*(ideal._subgroup_map(k, a) for k, a in parts), strict=True)
        centre = np.stack([ideal.source_means[k, a] for k, a in parts])
        maps = AffineMaps.at_strength(np.stack(A), np.stack(b), self._strength(), centre)
        return as_given(self._move(rows, inverse, maps), X)

    def ideal_sample_weight(
        self, y: Any = None, *, sensitive_features: Any = None, sample_weight: Any = None
    ) -> npt.NDArray[np.float64]:
        """Weights under which classes and groups are independent, as they are in the ideal.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Class labels. May be left out if they were left out at ``fit``.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels; with `sensitive_columns`, those columns.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights to multiply by.

        Returns
        -------
        ndarray of shape (n_samples,), dtype float64
            Ideal over fitted probability of each row's subgroup, times `sample_weight`. With monotone maps and
            ``intervention="all_subgroups"`` classes and groups keep the shares that they have, with which these maps
            average: those of `ideal_` follow from the divergences of the Gaussian model. Under another `constraint`
            than ``"ideal"`` base rates may differ, and the ratio is 1.

        Raises
        ------
        ValueError
            If a class or group is not known, or a subgroup had no rows at ``fit``.
        """
        check_is_fitted(self, "moments_")
        if sensitive_features is None and self._encoder is not None:
            msg = "ideal_sample_weight has no X to take groups from: pass sensitive_features=…."
            raise ValueError(msg)
        if sensitive_features is None and y is None:
            msg = "ideal_sample_weight needs y."
            raise ValueError(msg)
        codes = self._known_codes(sensitive_features, y, "ideal_sample_weight")
        y_codes = self._class_codes(y, codes)
        weight = check_sample_weight(sample_weight, codes)
        ratio = self._weight_ratio(y_codes, codes)
        return ratio if weight is None else ratio * weight

    def _training_rows(self, batch: Batch) -> tuple[Floats, Doubles]:
        """Steer the rows of ``fit``, and weight them.

        The weights go from those of the batch to the ideal ones as the strength goes from 0 to 1.
        """
        codes = batch.group_codes if self._encoder is None else self._group_of_label[batch.group_codes]
        strength = self._strength()
        weight = np.ones(len(codes)) if batch.sample_weight is None else batch.sample_weight
        weight = weight * (1 + strength * (self._weight_ratio(batch.y_codes, codes) - 1))
        return self._move(batch.rows, codes, self._group_maps(strength)), weight

    def _weight_ratio(self, y_codes: Codes, codes: Codes) -> Doubles:
        if self.constraint != "ideal":
            return np.ones(len(codes))  # base rates may differ
        self._check_cells(y_codes, codes)
        solution = self._fitted()
        by_cell: Doubles = solution.maps.sample_weight
        if isinstance(solution.folded, MonotoneMaps) and self.intervention == "all_subgroups":
            # The model's shares fall with exp(-divergence): of many columns it gives up a group that its Gaussians are
            # far from, and the more rows there are, the more so. The maps follow no model, and know no such distance.
            weights = solution.model.weights / solution.model.weights.sum()
            independent = np.outer(weights.sum(axis=1), weights.sum(axis=0))
            by_cell = np.divide(independent, weights, out=np.zeros_like(weights), where=weights > 0)
        ratio: Doubles = by_cell[y_codes, codes]
        return ratio

    def _check_cells(self, y_codes: Codes, codes: Codes) -> None:
        empty = np.flatnonzero(self._fitted().model.weights[y_codes, codes] == 0)
        if empty.size:
            k, a = y_codes[empty[0]], codes[empty[0]]
            msg = (
                f"Class {self.classes_.tolist()[k]!r} had no rows in group "
                f"{self.groups_.tolist()[a]!r} at fit, so nothing is known of it. Leave such rows out, or fit with "
                f"small_subgroups='pool' and min_subgroup_size=1 or more.\n{self.moments_.subgroup_table()}"
            )
            raise ValueError(msg)


# Rows that are looked at before all are.
_A_FEW = 64


def _ends_repeat(rows: Floats) -> npt.NDArray[np.bool_]:
    """Whether the smallest or the largest value of each feature occurs in several different rows."""

    def differ(places: npt.NDArray[np.intp]) -> bool:
        hashes = row_hashes(rows[places])
        return bool((hashes != hashes[0]).any())

    found = np.zeros(rows.shape[1], dtype=bool)
    for ends in (rows.min(axis=0), rows.max(axis=0)):
        at_end = rows == ends
        for j in np.flatnonzero(~found & (at_end.sum(axis=0) > 1)):
            places = np.flatnonzero(at_end[:, j])
            found[j] = differ(places[:_A_FEW]) or differ(places)  # mostly the first few tell
    return found
