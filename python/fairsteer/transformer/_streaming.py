"""Fits to rows that come in batches: what is added up over them, in which order, and how maps follow from that.

A first pass looks at classes, groups and weights alone and counts the cells. A second looks at the features where
something has to be known of all rows beforehand: the shift and scale of a `feature_transform`, and the rows that stand
for all of them where moments do not say enough. The last adds up the moments.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler, MinMaxScaler, StandardScaler

from fairsteer._utils.arrays import lies_elsewhere, some_rows, to_numpy
from fairsteer._utils.columns import column_positions
from fairsteer._utils.input import (
    as_given,
    brief,
    check_elsewhere,
    check_rows,
    coded_classes,
    in_numpy,
    num_rows,
    warn_caller,
)
from fairsteer._utils.labels import label_array, sorted_labels
from fairsteer._utils.types import Codes, CovarianceModel, Doubles, Floats
from fairsteer._utils.weights import check_sample_weight
from fairsteer.groups import GroupEncoder
from fairsteer.moments import SubgroupMoments
from fairsteer.moments._coordinates import Coordinates
from fairsteer.streams import Reduction, RowBatch, Stream
from fairsteer.transformer._coordinates import SimpleCoordinates, coordinates_of, needs_all_rows, to_coordinates
from fairsteer.transformer._device import steer_there
from fairsteer.transformer._reading import Batch, class_codes

if TYPE_CHECKING:
    from fairsteer.transformer._base import GroupMapTransformer

#: Rows that stand for all of them where quantiles or held-out rows are needed.
MOST_SAMPLED = 2**17
# Bytes that these rows may take.
_MOST_SAMPLED_BYTES = 2**28

# Transformers whose parameters follow from sums, or from the smallest and largest values.
_FROM_SUMS = (StandardScaler,)
_FROM_RANGES = (MinMaxScaler, MaxAbsScaler)


# ---- counting


@dataclass
class Counts:
    """Rows, weights and squares of weights by class and group, and how groups are read."""

    cells: dict[tuple[Any, Any], Doubles] = field(default_factory=dict)
    encoder: GroupEncoder | None = None
    n_rows: int = 0
    n_missing: int = 0
    y_dtype: Any = None


@dataclass
class Counting(Reduction[Counts]):
    """Count the cells; the features are not looked at."""

    features = False
    has_classes: bool
    has_groups: bool

    def start(self) -> Counts:
        return Counts()

    def add(self, state: Counts, batch: RowBatch) -> Counts:
        y, groups, weight = batch.y, batch.sensitive_features, batch.sample_weight
        n_rows = num_rows(next(one for one in (y, groups, weight, batch.X) if one is not None))
        if n_rows == 0:
            return state
        rows = np.empty((n_rows, 0))
        state.n_rows += n_rows
        group_codes, labels = np.zeros(n_rows, dtype=np.intp), [0]
        if self.has_groups:
            if groups is None:
                raise ValueError("A batch has no groups, and the first one has.")
            encoder = GroupEncoder() if state.encoder is None else copy.copy(state.encoder)
            group_codes = encoder.partial_fit_encode(groups)
            labels = encoder.groups_.tolist()
            state.encoder = encoder
            state.n_missing += int((group_codes < 0).sum())
        classes, y_codes = [0], np.zeros(n_rows, dtype=np.intp)
        if self.has_classes:
            if y is None:
                raise ValueError("A batch has no class labels, and the first one has.")
            found, y_codes = coded_classes(y, rows)
            state.y_dtype = found.dtype if state.y_dtype is None else np.result_type(found.dtype, state.y_dtype)
            classes = found.tolist()
        weights = check_sample_weight(weight, rows)
        kept = group_codes >= 0 if weights is None else (group_codes >= 0) & (weights > 0)
        cell = y_codes * len(labels) + group_codes
        if not kept.all():
            cell, weights = cell[kept], None if weights is None else weights[kept]
        size = len(classes) * len(labels)
        counted = np.bincount(cell, minlength=size).astype(np.float64)
        of_weights = [counted] * 2 if weights is None else [np.bincount(cell, w, size) for w in (weights, weights**2)]
        sums = np.stack([counted, *of_weights], axis=1)
        for position in np.flatnonzero(sums[:, 0]).tolist():
            key = classes[position // len(labels)], labels[position % len(labels)]
            state.cells[key] = state.cells.get(key, 0.0) + sums[position]
        return state

    def merge(self, first: Counts, second: Counts) -> Counts:
        cells = dict(first.cells)
        for key, sums in second.cells.items():
            cells[key] = cells.get(key, 0.0) + sums
        encoder = first.encoder or second.encoder
        if first.encoder is not None and second.encoder is not None:
            encoder = copy.copy(first.encoder)
            encoder.encode(_as_columns(second.encoder))  # raises for labels of another kind
            labels = dict.fromkeys([*first.encoder.groups_.tolist(), *second.encoder.groups_.tolist()])
            encoder.groups_ = label_array(sorted_labels(labels))
        dtypes = [one.y_dtype for one in (first, second) if one.y_dtype is not None]
        return Counts(
            cells,
            encoder,
            first.n_rows + second.n_rows,
            first.n_missing + second.n_missing,
            np.result_type(*dtypes) if dtypes else None,
        )


def _as_columns(encoder: GroupEncoder) -> Any:
    """Give the groups of an encoder as it was given them."""
    labels = encoder.groups_.tolist()
    if encoder.n_columns_ == 1:
        return label_array(labels)
    columns = np.empty((len(labels), encoder.n_columns_), dtype=object)
    for i, label in enumerate(labels):
        columns[i] = label
    return columns


# ---- reading features


@dataclass
class RowReader:
    """Reads the rows of a batch that take part in a fit: what every pass over features has in common."""

    names: list[str]
    classes: npt.NDArray[Any]
    encoder: GroupEncoder | None
    class_blind: bool

    def read(self, batch: RowBatch, *, stays: bool = False) -> tuple[Floats, Codes, Codes, Doubles | None]:
        """Features, codes of class and group (negative for rows that take no part), and weights.

        Rows that lie on a device stay there if asked to.
        """
        rows: Any = batch.X
        if stays and lies_elsewhere(rows):
            rows = check_elsewhere(rows, self.names)
        else:
            rows = check_rows(in_numpy(rows), None, of_columns=np.array(self.names, dtype=object))
        if rows.shape[1] != len(self.names):
            msg = f"A batch has {rows.shape[1]} features, and the first one has {len(self.names)}."
            raise ValueError(msg)
        weight = check_sample_weight(batch.sample_weight, rows)
        n_rows = num_rows(rows)
        y = np.zeros(n_rows, dtype=np.intp)
        if not self.class_blind:
            y = class_codes(batch.y, rows, self.classes)
        groups = np.zeros(n_rows, dtype=np.intp)
        if self.encoder is not None:
            groups = self.encoder.encode(batch.sensitive_features)
            if len(groups) != n_rows:
                msg = f"A batch has {n_rows} rows and {len(groups)} groups."
                raise ValueError(msg)
        left_out = groups < 0 if weight is None else (groups < 0) | (weight <= 0)
        if not left_out.any():
            return rows, y, groups, weight
        return rows, np.where(left_out, -1, y), np.maximum(groups, 0), weight


@dataclass
class Ranges(Reduction[Any]):
    """Moments and ranges of every feature over all rows: what scalers are made of."""

    reader: RowReader

    def start(self) -> Any:
        d = len(self.reader.names)
        moments = SubgroupMoments(d, classes=[0], groups=[0], covariance="diagonal")
        return [moments, np.full(d, np.inf), np.full(d, -np.inf), 0]

    def add(self, state: Any, batch: RowBatch) -> Any:
        rows, y, _, weight = self.reader.read(batch)
        kept = y >= 0
        if kept.any():
            codes = np.where(kept, 0, -1)
            # In double precision: coordinates are to be those of all rows at once.
            state[0].update(rows.astype(np.float64), codes, np.zeros(len(rows), dtype=np.intp), weight)
            some = rows if kept.all() else rows[kept]
            state[1] = np.minimum(state[1], some.min(axis=0))
            state[2] = np.maximum(state[2], some.max(axis=0))
            state[3] += int(kept.sum())
        return state

    def merge(self, first: Any, second: Any) -> Any:
        return [
            first[0].merge(second[0]),
            np.minimum(first[1], second[1]),
            np.maximum(first[2], second[2]),
            first[3] + second[3],
        ]


@dataclass
class Sampling(Reduction[Any]):
    """Rows of every cell, evenly spaced; a cell of few rows keeps all of them."""

    reader: RowReader
    keep_every: Doubles
    """Rows of a cell for one that is kept, (n_classes, n_groups)."""

    def start(self) -> Any:
        return [np.zeros(self.keep_every.shape, dtype=np.int64), []]

    def add(self, state: Any, batch: RowBatch) -> Any:
        rows, y, groups, weight = self.reader.read(batch, stays=True)
        n_groups = self.keep_every.shape[1]
        cell = np.where(y < 0, -1, y * n_groups + groups)
        positions = []
        for c in np.unique(cell[cell >= 0]).tolist():
            of_cell = np.flatnonzero(cell == c)
            step, seen = self.keep_every.flat[c], state[0].flat[c]
            # The row at which a multiple of the step is passed.
            ordinal = seen + np.arange(len(of_cell))
            positions.append(of_cell[np.floor((ordinal + 1) / step) > np.floor(ordinal / step)])
            state[0].flat[c] += len(of_cell)
        kept = np.sort(np.concatenate(positions)) if positions else np.zeros(0, dtype=np.intp)
        if len(kept):
            weights = np.ones(len(kept)) if weight is None else weight[kept]
            state[1].append((np.ascontiguousarray(to_numpy(some_rows(rows, kept))), y[kept], groups[kept], weights))
        return state

    def merge(self, first: Any, second: Any) -> Any:
        return [first[0] + second[0], [*first[1], *second[1]]]


@dataclass
class Accumulating(Reduction[SubgroupMoments]):
    """Moments of all cells in the coordinates of the model."""

    reader: RowReader
    groups: npt.NDArray[Any]
    n_features: int
    feature_transform: Any
    covariance: CovarianceModel
    factors: Doubles | None
    feature_names: list[str] | None

    def start(self) -> SubgroupMoments:
        moments = SubgroupMoments(
            self.n_features,
            classes=self.reader.classes,
            groups=self.groups,
            covariance=self.covariance,
            feature_names=self.feature_names,
            coordinates=coordinates_of(self.feature_transform, self.n_features),
        )
        if self.factors is not None:
            moments._weigh_classes_alike(self.factors)
        return moments

    def add(self, state: SubgroupMoments, batch: RowBatch) -> SubgroupMoments:
        rows, y, groups, weight = self.reader.read(batch, stays=self.feature_transform is None)
        if self.feature_transform is None:
            return state.update(rows, y, groups, weight)
        return state.update(to_coordinates(self.feature_transform, rows, self.reader.names), y, groups, weight)

    def merge(self, first: SubgroupMoments, second: SubgroupMoments) -> SubgroupMoments:
        return first.merge(second)


# ---- the fit


def fit_stream(transformer: GroupMapTransformer, stream: Stream) -> None:
    """Fit a transformer to a stream.

    Parameters
    ----------
    transformer : GroupMapTransformer
        What is fitted.
    stream : Stream
        Rows.

    Raises
    ------
    ValueError
        As ``fit`` does, and for what cannot be fitted to a stream.
    """
    _check_streamable(transformer)
    counts_classes = stream.has_classes and transformer._classes_count()
    _learn_columns(transformer, stream)
    counts = stream.reduce(Counting(counts_classes, stream.has_groups))
    if not counts.cells:
        msg = (
            f"No row is left to fit: {counts.n_missing} of {counts.n_rows} have a missing group, the others have "
            "sample_weight zero."
        )
        raise ValueError(msg)
    if not stream.has_groups:
        warn_caller(
            "No groups were given, so nothing is being steered: all rows form one group and keep their features. Pass "
            "sensitive_features=… or name sensitive_columns=…."
        )
    if counts.n_missing:
        warn_caller(f"{counts.n_missing} of {counts.n_rows} rows have a missing group and are left out of the fit.")
    classes, groups, table = _cells(counts)
    encoder = counts.encoder
    if encoder is not None:
        encoder.groups_ = groups
    names = transformer._feature_names()
    reader = RowReader(names, classes, encoder, not counts_classes)
    transformer.feature_transform_ = _stream_coordinates(transformer, stream, reader)
    n_features = _n_coordinates(transformer.feature_transform_, len(names))
    sizes, weights, squares = table
    covariance = transformer._kept_of_all_rows(len(classes), len(groups), n_features)
    factors = transformer._factors_of(weights, squares) if covariance == "tied" else None
    empty = Batch(
        np.empty((0, len(names))),
        np.zeros(0, dtype=np.intp),
        np.zeros(0, dtype=np.intp),
        None,
        classes,
        groups,
        encoder,
        not counts_classes,
    )
    moments = stream.reduce(
        Accumulating(
            reader,
            groups,
            n_features,
            transformer.feature_transform_,
            covariance,
            factors,
            transformer._names_of_moments(n_features),
        )
    )
    transformer._set_moments(moments, empty)
    sample = None
    if transformer._needs_sample(stream):
        sample = _sample(stream, reader, sizes, empty)
    transformer._set_solution(transformer._solve(transformer._shrunk(moments), sample=sample))
    transformer.group_calibration_ = transformer._calibrated(sample)


def _check_streamable(transformer: GroupMapTransformer) -> None:
    if hasattr(transformer.shrinkage, "fit"):
        msg = (
            f"shrinkage={brief(transformer.shrinkage)} needs all rows at once, which a stream has not. Use "
            "'ledoit_wolf', 'oas', a number in [0, 1] or None."
        )
        raise ValueError(msg)
    if reason := transformer._refuses_streams():
        raise ValueError(reason.replace("partial_fit cannot", "a stream cannot"))


def _learn_columns(transformer: GroupMapTransformer, stream: Stream) -> None:
    if transformer.sensitive_columns is not None:
        if stream.has_groups and not stream.positions:
            msg = (
                f"Groups are given twice, by sensitive_columns={brief(transformer.sensitive_columns)} and by the "
                "stream or sensitive_features. Leave one out."
            )
            raise ValueError(msg)
        names = None if stream.column_names is None else np.array(stream.column_names, dtype=object)
        stream.split(column_positions(transformer.sensitive_columns, stream.head(), names, stream.n_columns))
    transformer._sensitive_positions = list(stream.positions)
    transformer.n_features_in_ = stream.n_columns
    transformer.__dict__.pop("feature_names_in_", None)
    if stream.column_names is not None:
        transformer.feature_names_in_ = np.array(stream.column_names, dtype=object)


def _cells(counts: Counts) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Doubles]:
    """Classes and groups in their order, and rows, weights and squares of weights of the cells, (3, K, G)."""
    labels = sorted_labels(dict.fromkeys(label for label, _ in counts.cells))
    classes = np.array(labels) if counts.y_dtype is None or counts.y_dtype.kind == "O" else np.array(
        labels, dtype=counts.y_dtype
    )  # fmt: skip
    groups = label_array(sorted_labels(dict.fromkeys(group for _, group in counts.cells)))
    table = np.zeros((3, len(classes), len(groups)))
    k_of, a_of = ({label: i for i, label in enumerate(one.tolist())} for one in (classes, groups))
    for (label, group), sums in counts.cells.items():
        table[:, k_of[label], a_of[group]] = sums
    return classes, groups, table


def _stream_coordinates(transformer: GroupMapTransformer, stream: Stream, reader: RowReader) -> Any:
    """Fit the `feature_transform` of a stream."""
    given: Any = transformer.feature_transform
    if not needs_all_rows(given):
        some = np.ones((1, len(reader.names)))
        if isinstance(given, str) or given is None or isinstance(given, FrozenEstimator):
            empty = Batch(some, *(np.zeros(1, dtype=np.intp),) * 2, None, reader.classes, np.zeros(1), None, True)
            return transformer._fit_coordinates(empty)
        return clone(given).fit(some)
    if type(given) not in (*_FROM_SUMS, *_FROM_RANGES):
        msg = (
            f"feature_transform={brief(given)} needs all rows at once, which a stream has not. Fit it beforehand to "
            "rows that fit into memory and pass it as sklearn.frozen.FrozenEstimator(fitted), or use StandardScaler(), "
            "'log' or None."
        )
        raise ValueError(msg)
    moments, low, high, n_rows = stream.reduce(Ranges(reader))
    fitted: Any = clone(given)
    if isinstance(given, _FROM_RANGES):
        return fitted.fit(np.stack([low, high]))
    return standard_scaler(fitted, moments.means[0, 0], moments.covariances[0, 0], n_rows)


def standard_scaler(scaler: Any, mean: Doubles, variance: Doubles, n_rows: int) -> Any:
    """Fit a StandardScaler from the moments of the rows instead of the rows."""
    spread = np.sqrt(variance)
    scaler.fit(np.stack([mean - spread, mean + spread]))
    if scaler.mean_ is not None:
        scaler.mean_ = np.array(mean)
    if scaler.scale_ is not None:
        # What scikit-learn takes for constant: nothing but the rounding errors of the sum.
        eps = np.finfo(np.float64).eps
        constant = variance <= n_rows * eps * variance + (n_rows * mean * eps) ** 2
        scaler.var_, scaler.scale_ = np.array(variance), np.where(constant, 1.0, spread)
    scaler.n_samples_seen_ = n_rows
    return scaler


def _n_coordinates(fitted: Any, n_features: int) -> int:
    if fitted is None:
        return n_features
    return int(np.shape(fitted.transform(np.ones((1, n_features))))[1])


def sample_rows(transformer: GroupMapTransformer, stream: Stream) -> Batch:
    """Give rows that stand for all of a stream to which a transformer has been fitted.

    Parameters
    ----------
    transformer : GroupMapTransformer
        Fitted.
    stream : Stream
        Rows.

    Returns
    -------
    Batch
        At most 131,072 rows, evenly spaced within every subgroup, weighted by how many each stands for.
    """
    counts = stream.reduce(Counting(True, stream.has_groups))
    classes, groups, table = _cells(counts)
    encoder = transformer._encoder
    names = transformer._feature_names()
    codes = np.zeros(0, dtype=np.intp)
    empty = Batch(np.empty((0, len(names))), codes, codes, None, classes, groups, encoder, False)
    return _sample(stream, RowReader(names, classes, encoder, False), table[0], empty)


def _sample(stream: Stream, reader: RowReader, sizes: Doubles, empty: Batch) -> Batch:
    """Rows that stand for all of them, weighted by how many they stand for."""
    keep_every = _keep_every(sizes, len(reader.names))
    seen, parts = stream.reduce(Sampling(reader, keep_every))
    rows, y, groups, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
    cell = y * sizes.shape[1] + groups
    kept = np.bincount(cell, minlength=sizes.size)
    stands_for = np.divide(seen.ravel(), kept, out=np.zeros(sizes.size), where=kept > 0)
    weight = weights * stands_for[cell]
    plain = bool((weight == 1).all())
    return empty._replace(rows=rows, y_codes=y, group_codes=groups, sample_weight=None if plain else weight)


def _keep_every(sizes: Doubles, n_features: int) -> Doubles:
    """Rows of every cell for one that stands for them."""
    most = max(1, min(MOST_SAMPLED, _MOST_SAMPLED_BYTES // (8 * max(1, n_features))))
    if sizes.sum() <= most:
        return np.ones_like(sizes)
    # What small cells leave of their share is for the larger ones.
    least = most / max(1, int((sizes > 0).sum()))
    return np.maximum(1.0, sizes / _fair_share(sizes, most, least))


def sampling_error(sizes: Doubles, n_features: int, confidence_level: float = 0.95) -> tuple[int, float]:
    """How well the rows that stand for all of a stream say how a score is distributed in every subgroup.

    Parameters
    ----------
    sizes : ndarray of shape (n_classes, n_groups)
        Rows of every subgroup.
    n_features : int
        Numbers of a row.
    confidence_level : float, default=0.95
        Of the bound.

    Returns
    -------
    n_sampled : int
        Rows that stand for all.
    error : float
        What the share of a subgroup's rows above a threshold differs by, at most, from that among all of its rows, at
        every threshold and in every subgroup at once: the inequality of Dvoretzky, Kiefer, Wolfowitz and Massart, for a
        random sample. Subgroups whose rows are all among them have none.
    """
    sampled = np.floor(sizes / _keep_every(sizes, n_features))
    parts = sampled[(sampled > 0) & (sampled < sizes)]
    error = 0.0
    if len(parts):
        error = min(1.0, float(np.sqrt(np.log(2 * len(parts) / (1 - confidence_level)) / (2 * parts.min()))))
    return int(sampled.sum()), error


def _fair_share(sizes: Doubles, most: int, share: float) -> float:
    """Rows a cell may have so that all together have as many as allowed."""
    for _ in range(64):
        small = sizes[sizes <= share].sum()
        large = int((sizes > share).sum())
        if large == 0 or (new := (most - small) / large) <= share * (1 + 1e-9):
            break
        share = new
    return share


def steer_batch(transformer: GroupMapTransformer, batch: RowBatch, names: list[str] | None) -> Any:
    """Steer a batch, in the container it came in where it has an index, else as an array."""
    X = batch.X
    if lies_elsewhere(X):
        return steer_there(transformer, X, batch.sensitive_features)
    if hasattr(X, "iloc") and len(X) == 0:
        return X.astype({name: dtype for name, dtype in X.dtypes.items() if dtype.kind == "f"}).astype(
            {name: np.float64 for name, dtype in X.dtypes.items() if dtype.kind != "f"}
        )
    rows = check_rows(in_numpy(X), None, of_columns=None if names is None else np.array(names, dtype=object)) \
        if num_rows(X) else np.empty((0, len(transformer._feature_names())), np.asarray(X).dtype)  # fmt: skip
    if rows.shape[1] != len(transformer._feature_names()):
        msg = f"X has {rows.shape[1]} features, but {len(transformer._feature_names())} are expected."
        raise ValueError(msg)
    if len(rows) == 0:
        return rows
    codes = transformer._known_codes(
        batch.sensitive_features, rows, "transform", infer=transformer.unknown_group != "error"
    )
    codes = transformer._resolved(rows, codes)
    steered = as_given(transformer._move(rows, codes, transformer._group_maps(transformer._strength())), X)
    if hasattr(X, "iloc"):
        return type(X)(steered, index=X.index, columns=X.columns)
    return steered


@dataclass
class Steering:
    """What is applied to every batch: a transformer, which can be pickled."""

    transformer: GroupMapTransformer
    names: list[str] | None

    def __call__(self, batch: RowBatch) -> Any:
        return steer_batch(self.transformer, batch, self.names)


# ---- fits to moments


def adopt_moments(transformer: GroupMapTransformer, moments: SubgroupMoments) -> None:
    """Fit a transformer to moments of rows that are elsewhere."""
    if transformer.sensitive_columns is not None:
        msg = "Moments have no sensitive columns: leave sensitive_columns at None, and pass sensitive_features=…."
        raise ValueError(msg)
    _check_streamable(transformer)
    if transformer.covariance == "diagonal" and moments.rescalable:
        moments = moments.diagonal()
    fits = {"tied": ("tied", "full"), "full": ("full",), "diagonal": ("diagonal",)}[transformer.covariance]
    if moments.covariance not in fits:
        msg = (
            f"The moments have covariance={moments.covariance!r}, and covariance={transformer.covariance!r} needs "
            f"{' or '.join(map(repr, fits))} ones."
        )
        raise ValueError(msg)
    if not transformer._classes_count():
        moments = _of_one_class(moments)
    if transformer.standardize and transformer.covariance == "tied" and not moments.standardized:
        moments.tie(standardize=True)  # raises where the moments keep too little for it
    if reason := transformer._needs_all_rows():
        raise ValueError(reason.replace("partial_fit has", "moments have"))
    transformer.feature_transform_ = _coordinates_from(transformer.feature_transform, moments)
    transformer.n_features_in_ = moments.n_features
    transformer._sensitive_positions = []
    transformer.__dict__.pop("feature_names_in_", None)
    if moments.feature_names is not None:
        transformer.feature_names_in_ = np.array(moments.feature_names, dtype=object)
    encoder = GroupEncoder()
    labels = moments.groups.tolist()
    encoder.groups_ = moments.groups
    encoder.n_columns_ = len(labels[0]) if isinstance(labels[0], tuple) else 1
    encoder.column_names_ = None
    nothing = np.zeros(0, dtype=np.intp)
    batch = Batch(
        np.empty((0, moments.n_features)),
        nothing,
        nothing,
        None,
        moments.classes,
        moments.groups,
        encoder,
        moments.n_classes == 1,
    )
    transformer._set_moments(moments, batch)
    transformer._set_solution(None)
    transformer.group_calibration_ = None
    transformer._fitted()


def _of_one_class(moments: SubgroupMoments) -> SubgroupMoments:
    if moments.n_classes == 1:
        return moments
    total: Any = 0
    for label in moments.classes.tolist():
        part = moments.of_classes([label])
        relabelled = part._empty(classes=[0])
        for to, array in zip(relabelled._sums(), part._sums(), strict=True):
            to[...] = array
        total = total + relabelled
    result: SubgroupMoments = total
    return result


def _coordinates_from(feature_transform: Any, moments: SubgroupMoments) -> Any:
    """Fit a `feature_transform` so that it leads to the coordinates of moments."""
    found, d = moments.coordinates, moments.n_features
    way_out = "pass the feature_transform that they were added up with"
    if isinstance(feature_transform, FrozenEstimator):
        given = coordinates_of(feature_transform, d)
        same = moments._empty()
        same.coordinates = given
        moments._empty().merge(same)  # raises where they differ
        return feature_transform
    if found is None:
        if feature_transform is None:
            return None
        msg = (
            f"The moments are of the features as they are, and feature_transform={brief(feature_transform)}; {way_out}."
        )
        raise ValueError(msg)
    if isinstance(found, Coordinates):
        if found.log and isinstance(feature_transform, str):
            return FunctionTransformer(np.log, np.exp, check_inverse=False).fit(np.ones((1, d)))
        if not found.log and type(feature_transform) is StandardScaler:
            scaler: Any = clone(feature_transform)
            mean, scale = -found.shift / found.scale, 1 / found.scale
            n_rows = max(1, int(moments.sizes.sum()))
            scaler = standard_scaler(scaler, mean, scale**2, n_rows)
            if scaler.scale_ is not None:
                scaler.scale_ = np.array(scale)
            expected = SimpleCoordinates.of(scaler, d)
            if expected is not None and np.allclose(expected.scale, found.scale, rtol=1e-12):
                return scaler
    what = "logarithms" if getattr(found, "log", False) else "shifted and scaled features"
    needed = "'log'" if getattr(found, "log", False) else "StandardScaler()"
    msg = (
        f"The moments are of {what}, and feature_transform={brief(feature_transform)}; {way_out}: "
        f"feature_transform={needed}."
    )
    raise ValueError(msg)
