"""What steering did to rows, how sure that is, and what it leaves."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from fairsteer._input import Codes, Floats, check_classes, check_sample_weight, few, warn_caller, weight_params
from fairsteer._maps import AffineMaps
from fairsteer._measured import GAPS, Measured, MeasuredGaps, PredictedRows, measured_gaps
from fairsteer.ideal import Certificate, IdealDistribution
from fairsteer.moments import SubgroupMoments
from fairsteer.score_alignment import _rows_of, _splits
from fairsteer.transformer import FairSteeringTransformer

__all__ = ["Measured", "MeasuredGaps", "SteeringReport", "measured_gaps", "steering_report"]

Doubles = npt.NDArray[np.float64]
Table = dict[str, list[Any]]

_NOTHING = Measured(float("nan"), float("nan"), float("nan"))

# Below this share of a group's spread its rows count as hardly moved.
_STILL = 0.05


@dataclass(frozen=True)
class SteeringReport:
    """What steering did to rows; returned by `steering_report`.

    ``print(report)`` shows it as text, rich and Jupyter as tables, and `to_html` as a page of its own.

    Attributes
    ----------
    tables : dict of str to dict
        The numbers, column by column, as `to_frame` gives them:

        * ``"divergence"``: how far the groups are from being alike before and after, in nats, on the rows of the fit
          and on rows held out from it (NaN if a group has fewer than two rows a feature there);
        * ``"gaps"``: accuracy and gaps of the classifier before and after, and the change, with bootstrap intervals;
        * ``"certificate"``: bounds of the model beside the measured gaps, with exact intervals: of every class and
          group against the other groups, of every class between any two groups (group None), and of all (class None);
        * ``"groups"``: rows, displacement (root mean square over rows and features, in standard deviations of the
          feature in the group) and effective rank;
        * ``"cells"``: every class in every group: rows, share, ideal share, divergence from the ideal in nats, and how
          often its rows are recognised before and after, with exact intervals;
        * ``"features"``: for every feature and group the shift of the mean in standard deviations, the ratio of the
          standard deviations, and the displacement; the largest displacement first.
    findings : list of str
        What a reader should know first, in sentences.
    steering, classifier : str
        The transformer, and the classifier of the gaps ("" without one).
    positive : label
        The positive class of the gaps; None if every class counts.
    n_rows, n_features, n_folds : int
        Rows that took part, features, and folds.
    same_rows : bool
        Whether the rows are those of the fit. If so, held-out rows come from cross-validation of the whole procedure;
        if not, the fitted maps are judged on the given rows.
    strength : float
        Strength at which rows moved.
    kl_divergence : float
        KL divergence of the nearest ideal distribution from the fitted one, in nats.
    certificate : Certificate
        Bounds for the fitted Gaussians.
    nearly_identity : bool
        Whether no group moves by more than a twentieth of its spread.
    min_rows : int
        Rates from fewer rows take no part in a gap.
    confidence : float
        Level of all intervals.
    before, after : MeasuredGaps or None
        What was measured on held-out rows, with exact intervals; None without `y`.
    """

    tables: dict[str, Table]
    findings: list[str]
    steering: str
    classifier: str
    positive: Any
    n_rows: int
    n_features: int
    n_folds: int
    same_rows: bool
    strength: float
    kl_divergence: float
    certificate: Certificate
    nearly_identity: bool
    min_rows: int
    confidence: float
    before: MeasuredGaps | None
    after: MeasuredGaps | None

    def to_frame(self, table: str = "gaps") -> Any:
        """Give one of `tables` as a pandas DataFrame.

        Parameters
        ----------
        table : str, default="gaps"
            Name of the table.

        Returns
        -------
        DataFrame
            Numbers as they are, not rounded.

        Raises
        ------
        ValueError
            If there is no such table.
        """
        import pandas as pd

        if table not in self.tables:
            msg = f"There is no table {table!r}; there are {few(map(repr, self.tables))}."
            raise ValueError(msg)
        # As objects, labels beside None (all classes) stay what they are.
        columns = self.tables[table]
        return pd.DataFrame({name: pd.Series(x, dtype=object if None in x else None) for name, x in columns.items()})

    def to_html(self, path: str | Path | None = None) -> str:
        """Give the report as one HTML page that needs nothing else: no network, no scripts, light and dark.

        Parameters
        ----------
        path : str or Path, optional
            File to write it to.

        Returns
        -------
        str
            The page.
        """
        from fairsteer._report_html import page

        text = page(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def _repr_html_(self) -> str:
        from fairsteer._report_html import fragment

        return fragment(self)

    def __str__(self) -> str:
        from fairsteer._report_text import as_text

        return as_text(self)

    def __rich__(self) -> Any:
        from fairsteer._report_text import as_rich

        return as_rich(self)


def steering_report(
    transformer: FairSteeringTransformer,
    X: Any,
    y: Any = None,
    *,
    sensitive_features: Any = None,
    sample_weight: Any = None,
    estimator: Any = None,
    pos_label: Any = None,
    cv: Any = 5,
    min_rows: int = 30,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> SteeringReport:
    """Report what a fitted transformer does to rows, and what a classifier gains by it.

    Parameters
    ----------
    transformer : FairSteeringTransformer
        Fitted.
    X : array-like or dataframe of shape (n_samples, n_features)
        The rows of the fit, or others. For the rows of the fit everything that is called held-out comes from
        cross-validation: transformer and classifier are fitted again without the rows that they are judged on. For
        other rows the transformer is judged as it is, and only the classifier is cross-validated.
    y : array-like of shape (n_samples,), default=None
        Class labels. None, after a fit without: no classifier, no gaps.
    sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
        Group labels, unless the transformer has `sensitive_columns`. Rows of groups that are missing or unknown are
        left out, with a warning.
    sample_weight : array-like of shape (n_samples,), default=None
        Non-negative weights, used for everything.
    estimator : classifier, default=None
        Clones of it are trained on the rows as they are and on the steered rows; neither see the sensitive columns.
        None: logistic regression on standardised features.
    pos_label : label, default=None
        The positive class of the gaps; by default the larger of two, and with more every class counts.
    cv : int, cross-validation generator or iterable, default=5
        Splits; an integer: so many folds, stratified by class and group, without shuffling.
    min_rows : int, default=30
        A rate that a group has fewer rows to compute from takes no part in a gap.
    confidence : float in (0, 1), default=0.95
        Level of each interval.
    n_resamples : int, default=1000
        Resamples of the bootstrap.
    seed : int, default=0
        Seed of the bootstrap. Nothing else is random.

    Returns
    -------
    SteeringReport
        Prints as text; see there for the tables.

    Raises
    ------
    ValueError
        If no row is left, `X` or the labels do not match the fit, or a parameter is out of range.
    TypeError
        If the transformer is of another kind.
    sklearn.exceptions.NotFittedError
        If the transformer is not fitted.

    Notes
    -----
    *Divergence.* A map of groups cannot bring a distribution nearer to the ideal ones, which follow the map. What it
    does change is how alike the groups are to a classifier that does not know them. So the divergence before and
    after is that of the nearest distribution whose classes look the same in every group, with the shares of classes
    and groups of the ideal one. After affine steering in full, on the rows of the fit, it equals `kl_divergence_`.

    *Certificate.* Bounds speak of the fitted Gaussians and of classifiers that see fully steered rows; measured gaps
    speak of rows. Only the second are evidence about data.

    Examples
    --------
    >>> import numpy as np
    >>> from fairsteer import FairSteeringTransformer
    >>> from fairsteer.report import steering_report
    >>> rng = np.random.default_rng(0)
    >>> y, group = rng.integers(0, 2, (2, 1000))
    >>> X = rng.normal(size=(1000, 3)) + np.outer(y, [1, 1, 0]) + np.outer(group, [0, 2, 1])
    >>> steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    >>> report = steering_report(steer, X, y, sensitive_features=group)
    >>> gaps = report.to_frame("gaps").set_index("measure")
    >>> bool(gaps.loc["demographic_parity", "after"] < 0.1 < gaps.loc["demographic_parity", "before"])
    True
    >>> report.nearly_identity
    False
    """
    _check_kind(transformer)
    check_is_fitted(transformer, "moments_")
    rows = _read(transformer, X, y, sensitive_features, sample_weight)
    classifier = "logistic regression on standardised features"
    if estimator is not None:
        classifier = " ".join(repr(estimator).split())
    same_rows = _are_of_the_fit(transformer, rows)
    trials = _trials(transformer, rows, cv, estimator, same_rows=same_rows)
    displacement, features = _movement(transformer, rows)
    nearly_identity = bool(np.nanmax(displacement, initial=0.0) < _STILL)
    tables = {"divergence": _divergence_table(transformer, rows, trials, same_rows=same_rows)}
    before = after = positive = None
    if rows.y is not None:
        predicted = _predicted(transformer, rows, trials)
        before, after = (predicted.measure(c, confidence, "exact", min_rows, n_resamples, seed) for c in (0, 1))
        judged = _against_rest(predicted, pos_label)
        if len(judged.classes) == 2:
            positive = predicted.classes.tolist()[-1] if pos_label is None else pos_label
        tables["gaps"] = _gap_table(judged, confidence, min_rows, n_resamples, seed)
    tables["certificate"] = _certificate_table(transformer, after)
    tables["groups"] = _group_table(transformer, rows, displacement)
    tables["cells"] = _cell_table(transformer, rows, before, after)
    tables["features"] = features
    return SteeringReport(
        tables=tables,
        findings=_findings(transformer, tables, displacement, nearly_identity=nearly_identity),
        steering=" ".join(repr(transformer).split()),
        classifier="" if rows.y is None else classifier,
        positive=positive,
        n_rows=len(rows.codes),
        n_features=rows.values.shape[1],
        n_folds=len(trials),
        same_rows=same_rows,
        strength=float(transformer.strength),
        kl_divergence=transformer.kl_divergence_,
        certificate=transformer.certificate_,
        nearly_identity=nearly_identity,
        min_rows=min_rows,
        confidence=confidence,
        before=before,
        after=after,
    )


def cross_validated(
    transformer: FairSteeringTransformer,
    X: Any,
    y: Any,
    *,
    sensitive_features: Any = None,
    sample_weight: Any = None,
    estimator: Any = None,
    strengths: Sequence[float],
    pos_label: Any = None,
    cv: Any = 5,
    min_rows: int = 30,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> list[MeasuredGaps]:
    """Measure a classifier behind a transformer at several strengths, all on the same held-out rows.

    Parameters
    ----------
    transformer : FairSteeringTransformer
        Clones of it are fitted on the training rows of every fold.
    X, y, sensitive_features, sample_weight, estimator, pos_label, cv, min_rows, confidence, n_resamples, seed
        As for `steering_report`.
    strengths : sequence of float in [0, 1]
        Strengths.

    Returns
    -------
    list of MeasuredGaps
        One for each strength, with bootstrap intervals.
    """
    fitted = clone(transformer).fit(X, y, sensitive_features=sensitive_features, sample_weight=sample_weight)
    rows = _read(fitted, X, y, sensitive_features, sample_weight)
    found = []
    for strength in strengths:
        fitted.set_params(strength=strength)
        trials = _trials(fitted, rows, cv, estimator, same_rows=True)
        predicted = _against_rest(_predicted(fitted, rows, trials), pos_label)
        found.append(predicted.measure(1, confidence, "bootstrap", min_rows, n_resamples, seed))
    return found


def _check_kind(transformer: Any) -> None:
    if not isinstance(transformer, FairSteeringTransformer):
        msg = f"steering_report takes a FairSteeringTransformer, not {type(transformer).__name__}."
        raise TypeError(msg)


# ---- the rows


class _Rows(NamedTuple):
    """Rows with a known group and a positive weight."""

    X: Any
    sensitive_features: Any
    values: Floats
    """Features without the sensitive columns."""
    y: npt.NDArray[Any] | None
    y_codes: Codes
    """Positions in the transformer's classes."""
    labels: Any
    codes: Codes
    """Positions in the transformer's groups."""
    weight: Doubles
    weighted: bool


def _read(transformer: FairSteeringTransformer, X: Any, y: Any, sensitive_features: Any, sample_weight: Any) -> _Rows:
    values, labels = transformer._read_rows(X, sensitive_features, reset=False)
    if labels is None and transformer._encoder is not None:
        transformer._known_codes(None, values, "steering_report")  # raises: groups are needed
    codes = transformer._training_codes(labels, len(values))
    weight = check_sample_weight(sample_weight, values)
    weighted = weight is not None and bool(np.ptp(weight) > 0)
    weight = np.ones(len(values)) if weight is None else weight
    if y is not None:
        y = check_classes(y, values)
    kept = (codes >= 0) & (weight > 0)
    if (codes < 0).any():
        warn_caller(f"{(codes < 0).sum()} of {len(codes)} rows have a missing or unknown group and are left out.")
    if not kept.any():
        msg = f"No row is left: of {len(codes)}, all have a missing or unknown group or sample_weight zero."
        raise ValueError(msg)
    if y is not None:
        y = y[kept]
    elif not transformer._class_blind:
        transformer._class_codes(None, values)  # raises: y is needed
    (X,) = _rows_of((X,), kept)
    if sensitive_features is not None:
        (sensitive_features,) = _rows_of((sensitive_features,), kept)
    values, labels = transformer._read_rows(X, sensitive_features, reset=False)
    y_codes = np.zeros(len(values), np.intp) if transformer._class_blind else transformer._class_codes(y, values)
    return _Rows(X, sensitive_features, values, y, y_codes, labels, codes[kept], weight[kept], weighted)


def _are_of_the_fit(transformer: FairSteeringTransformer, rows: _Rows) -> bool:
    """Whether rows have the very moments of the fit."""
    fitted = transformer.moments_
    moments = SubgroupMoments(
        fitted.n_features, classes=fitted.classes, groups=fitted.groups, covariance=fitted.covariance
    )
    codes = rows.codes if transformer._encoder is None else transformer._encoder.encode(rows.labels)
    moments.update(transformer._to_model(rows.values), rows.y_codes, codes, rows.weight)
    scale = np.sqrt(np.abs(fitted.means).max(axis=(0, 1)) ** 2 + fitted._feature_scale() ** 2)
    return bool(
        np.allclose(moments.weights, fitted.weights, rtol=1e-9)
        and (np.abs(moments.means - fitted.means) <= 1e-9 * scale).all()
    )


# ---- held-out rows


class _Trial(NamedTuple):
    """Rows that were held out, and what was fitted without them."""

    test: npt.NDArray[np.intp]
    steering: FairSteeringTransformer
    pred: list[npt.NDArray[Any]]
    """Classes predicted before and after steering; empty without `y`."""


def _trials(
    transformer: FairSteeringTransformer, rows: _Rows, cv: Any, estimator: Any, *, same_rows: bool
) -> list[_Trial]:
    if estimator is None:
        estimator = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    strata = rows.y_codes if rows.y is None else np.unique(rows.y, return_inverse=True)[1]
    everything = np.ones(len(rows.codes), dtype=bool)
    trials = []
    for train, test in _splits(cv, rows.values, strata, rows.codes, everything, frozen=False):
        if train is None or len(test) == 0:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the fit on all rows has said what there is to say
            steering = _fit_again(transformer, rows, train) if same_rows else transformer
            pred = []
            if rows.y is not None:
                steered = [
                    steering._steered(_some(rows.X, part), _some(rows.sensitive_features, part))
                    for part in (train, test)
                ]
                for X_train, X_test in ((rows.values[train], rows.values[test]), steered):
                    model = clone(estimator)
                    weight = (weight_params(model, rows.weight[train]) if rows.weighted else None) or {}
                    pred.append(np.asarray(model.fit(X_train, rows.y[train], **weight).predict(X_test)))
        trials.append(_Trial(test, steering, pred))
    if not trials:
        msg = f"cv={cv!r} leaves no row of a known group to test."
        raise ValueError(msg)
    return trials


def _fit_again(transformer: FairSteeringTransformer, rows: _Rows, train: npt.NDArray[np.intp]) -> Any:
    y = None if transformer._class_blind else _some(rows.y, train)
    return clone(transformer).fit(
        _some(rows.X, train),
        y,
        sensitive_features=_some(rows.sensitive_features, train),
        sample_weight=rows.weight[train] if rows.weighted else None,
    )


def _some(table: Any, rows: npt.NDArray[Any]) -> Any:
    return None if table is None else _rows_of((table,), rows)[0]


def _predicted(transformer: FairSteeringTransformer, rows: _Rows, trials: list[_Trial]) -> PredictedRows:
    """Predictions for the rows that were held out; of those tested twice, the last."""
    classes, true = transformer.classes_, rows.y_codes
    if transformer._class_blind:
        classes, true = np.unique(np.asarray(rows.y), return_inverse=True)
    position = {label: k for k, label in enumerate(classes.tolist())}
    pred = np.full((2, len(true)), -1, dtype=np.intp)
    for trial in trials:
        for c, labels in enumerate(trial.pred):
            pred[c, trial.test] = [position[label] for label in labels.tolist()]
    kept = (pred >= 0).all(axis=0)
    return PredictedRows(true[kept], pred[:, kept], rows.codes[kept], rows.weight[kept], classes, transformer.groups_)


def _against_rest(predicted: PredictedRows, pos_label: Any) -> PredictedRows:
    if pos_label is None:
        return predicted
    classes = predicted.classes.tolist()
    if pos_label not in classes:
        msg = f"pos_label={pos_label!r} is no class; there are {few(map(repr, classes))}."
        raise ValueError(msg)
    k = classes.index(pos_label)
    return predicted._replace(
        true=(predicted.true == k).astype(np.intp),
        pred=(predicted.pred == k).astype(np.intp),
        classes=np.array([False, True]),
    )


# ---- how far the groups are from being alike


def _divergence_table(
    transformer: FairSteeringTransformer, rows: _Rows, trials: list[_Trial], *, same_rows: bool
) -> Table:
    fitted = transformer._fitted().model
    parts = [(trial.steering, trial.test) for trial in trials]
    if not same_rows:
        parts = [(transformer, np.arange(len(rows.codes)))]
    held_out = [[len(some), *_unlikeness(steering, _moments(steering, rows, some))] for steering, some in parts]
    n, before, after = np.array(held_out).T
    return {
        "rows": ["of the fit", "held out"],
        "before": [_unlikeness(transformer, fitted)[0], float(np.average(before, weights=n))],
        "after": [_unlikeness(transformer, fitted)[1], float(np.average(after, weights=n))],
    }


def _moments(steering: FairSteeringTransformer, rows: _Rows, some: npt.NDArray[np.intp]) -> SubgroupMoments | None:
    """Moments of some rows in the coordinates and with the regularisation of a transformer.

    None if there are fewer than two rows a feature behind a covariance: too few to compare it with another.
    """
    codes = np.zeros(len(some), dtype=np.intp)
    labels = steering._read_rows(_some(rows.X, some), _some(rows.sensitive_features, some), reset=False)[1]
    if steering._encoder is not None:
        codes = steering._encode(steering._encoder, labels)
    y_codes = np.zeros(len(some), dtype=np.intp)
    if not steering._class_blind:
        position = {label: k for k, label in enumerate(steering.classes_.tolist())}
        y_codes = np.array([position.get(label, -1) for label in _some(rows.y, some).tolist()], dtype=np.intp)
    values = steering._to_model(rows.values[some])
    moments = SubgroupMoments(
        values.shape[1], classes=steering.classes_, groups=steering.groups_, covariance=steering.covariance
    )
    moments.update(values, y_codes, codes, rows.weight[some])
    behind = moments.sizes.sum(axis=0) if moments.covariance == "tied" else moments.sizes[moments.weights > 0]
    if behind.min(initial=np.inf) < 2 * (1 if moments.covariance == "diagonal" else moments.n_features):
        return None
    if steering.pooling > 0:
        moments = moments.pool(steering.pooling)
    return moments.shrink(steering.shrinkage, X=values, y_codes=y_codes, group_codes=codes)


def _unlikeness(steering: FairSteeringTransformer, moments: SubgroupMoments | None) -> list[float]:
    """Divergence of the distribution, alike in all groups, that is nearest to the fit, from moments of rows.

    Of rows as they are, and as they are after steering.
    """
    fitted, ideal, _ = steering._fitted()
    if moments is None:
        return [float("nan"), float("nan")]
    found = []
    for strength in (0.0, steering._strength()):
        maps = steering._group_maps(strength)
        alike = _alike(ideal, _moved(fitted, maps))
        try:
            with np.errstate(divide="ignore", invalid="ignore"):
                found.append(float(alike.divergence_from(_moved(moments, maps))))
        except np.linalg.LinAlgError:
            found.append(float("nan"))
    return found


def _moved(moments: SubgroupMoments, maps: AffineMaps) -> SubgroupMoments:
    """Moments of rows after the maps of their groups."""
    means = np.einsum("aij,kaj->kai", maps.A, moments.means) + maps.b
    covariances, _ = moments._positive_definite()
    if moments.covariance == "diagonal":
        covariances = np.diagonal(maps.A, axis1=1, axis2=2) ** 2 * covariances
    else:
        covariances = maps.A @ covariances @ np.swapaxes(maps.A, 1, 2)
        covariances = (covariances + np.swapaxes(covariances, -1, -2)) / 2
    return SubgroupMoments.from_statistics(
        moments.weights, means, covariances, classes=moments.classes, groups=moments.groups
    )


def _alike(ideal: IdealDistribution, moments: SubgroupMoments) -> IdealDistribution:
    """Nearest to the moments of all distributions with the same Gaussian a class in every group.

    With the shares of classes and groups of `ideal`. Its precisions are averages of those of the groups.
    """
    K, G, d = moments.means.shape
    present = [k for k, label in enumerate(moments.classes.tolist()) if label in set(ideal.classes.tolist())]
    weight = ideal.weights * (moments.weights[present] > 0)
    covariances, _ = moments._positive_definite()
    precision: Any
    if moments.covariance == "diagonal":
        precision = 1 / covariances[present]
        total = np.einsum("ka,kaj->kj", weight, precision)
        means = np.einsum("ka,kaj,kaj->kj", weight, precision, moments.means[present]) / total
        common = weight.sum(axis=1, keepdims=True) / total
    else:
        precision = np.linalg.inv(covariances)
        precision = np.broadcast_to(precision, (K, G, d, d))[present]
        total = np.einsum("ka,kaij->kij", weight, precision)
        pulled = np.einsum("ka,kaij,kaj->ki", weight, precision, moments.means[present])
        means = np.linalg.solve(total, pulled[..., None])[..., 0]
        if moments.covariance == "tied":
            common = np.linalg.inv(total.sum(axis=0) / weight.sum())
            common = (common + common.T) / 2
        else:
            common = np.linalg.inv(total / weight.sum(axis=1)[:, None, None])
            common = (common + np.swapaxes(common, 1, 2)) / 2
    still = np.broadcast_to(np.eye(d), (G, d, d)).copy()
    return dataclasses.replace(
        ideal,
        canonical_means=means,
        canonical_covariances=common,
        linear=still,
        offset=np.zeros((G, d)),
    )


# ---- what moved


def _movement(transformer: FairSteeringTransformer, rows: _Rows) -> tuple[Doubles, Table]:
    """Displacement of every group, and of every feature in it, in standard deviations."""
    n_groups, d = len(transformer.groups_), rows.values.shape[1]
    size = np.zeros((n_groups, d))  # root mean squared
    shift, spread = np.zeros((n_groups, d)), np.zeros((n_groups, d))
    after = np.zeros((n_groups, d))
    moved = transformer._steered(rows.X, rows.sensitive_features)
    for a in range(n_groups):
        of_group = np.flatnonzero(rows.codes == a)
        if of_group.size == 0:
            size[a] = shift[a] = spread[a] = after[a] = np.nan
            continue
        x, u, w = (array[of_group].astype(np.float64) for array in (rows.values, moved, rows.weight))
        size[a] = np.sqrt(np.average((u - x) ** 2, axis=0, weights=w))
        shift[a] = np.average(u - x, axis=0, weights=w)
        spread[a], after[a] = (
            np.sqrt(np.average((z - np.average(z, axis=0, weights=w)) ** 2, axis=0, weights=w)) for z in (x, u)
        )
    values = rows.values.astype(np.float64)
    overall, magnitude = values.std(axis=0), np.abs(values).max(axis=0)
    constant = spread <= 1e-10 * magnitude
    unit = np.where(constant, np.where(overall > 1e-10 * magnitude, overall, np.nan), spread)
    with np.errstate(invalid="ignore"):
        displacement, mean_shift = size / unit, shift / unit
        scale = np.where(constant, np.nan, after / unit)
    # A feature that is constant in all rows has no unit; it cannot move.
    known = np.isfinite(displacement)
    per_group = np.sqrt(
        np.divide(
            np.where(known, displacement**2, 0).sum(axis=1),
            known.sum(axis=1),
            where=known.any(axis=1),
            out=np.full(n_groups, np.nan),
        )
    )
    order = np.argsort(-np.nan_to_num(displacement), axis=None, kind="stable")
    names, groups = transformer._feature_names(), transformer.groups_.tolist()
    pairs = [divmod(int(cell), d) for cell in order]
    return per_group, {
        "feature": [str(names[j]) for _, j in pairs],
        "group": [groups[a] for a, _ in pairs],
        "mean_shift": [float(mean_shift[a, j]) for a, j in pairs],
        "scale": [float(scale[a, j]) for a, j in pairs],
        "displacement": [float(displacement[a, j]) for a, j in pairs],
    }


# ---- tables


def _gap_table(predicted: PredictedRows, confidence: float, min_rows: int, n_resamples: int, seed: int) -> Table:
    before, after = (predicted.measure(c, confidence, "bootstrap", min_rows, n_resamples, seed) for c in (0, 1))
    change = predicted.changes(confidence, min_rows, n_resamples, seed)
    measures = ["accuracy", *GAPS]
    table: Table = {"measure": measures}
    for when, source in (("before", vars(before)), ("after", vars(after)), ("change", change)):
        table |= _columns(when, [source[name] for name in measures])
    return table


def _columns(name: str, measured: list[Measured]) -> Table:
    return {
        name: [m.value for m in measured],
        f"{name}_lower": [m.lower for m in measured],
        f"{name}_upper": [m.upper for m in measured],
    }


def _certificate_table(transformer: FairSteeringTransformer, after: MeasuredGaps | None) -> Table:
    """Bounds of the model beside what was measured: of every subgroup against the others, every class, and all."""
    certificate, groups = transformer.certificate_, transformer.groups_.tolist()
    if transformer._class_blind:
        # One class: what is bounded given the class is bounded altogether.
        model, measured = (
            [float(certificate.equal_opportunity[0])],
            [_NOTHING if after is None else after.demographic_parity],
        )
        return {"class": [None], "group": [None], "model": model, **_columns("measured", measured)}
    bounds = certificate.total_variation
    of_cells = np.minimum(1, bounds + _largest_of_other_groups(bounds))
    position = {} if after is None else {label: k for k, label in enumerate(after.classes.tolist())}
    lines: list[tuple[Any, Any, float, Measured]] = []
    for k, label in enumerate(transformer.ideal_.classes.tolist()):
        at = position.get(label)
        for a, group in enumerate(groups):
            found = _NOTHING if after is None else Measured(*(float(x[at, a]) for x in after.by_cell))
            lines.append((label, group, float(of_cells[k, a]), found))
        found = _NOTHING if after is None else Measured(*(float(x[at]) for x in after.by_class))
        lines.append((label, None, float(certificate.equal_opportunity[k]), found))
    lines.append((None, None, certificate.equalized_odds, _NOTHING if after is None else after.equalized_odds))
    labels, of_groups, model, measured = (list(column) for column in zip(*lines, strict=True))
    return {"class": labels, "group": of_groups, "model": model, **_columns("measured", measured)}


def _group_table(transformer: FairSteeringTransformer, rows: _Rows, displacement: Doubles) -> Table:
    moments, groups = transformer._merged(transformer.moments_), transformer.groups_.tolist()
    ranks = moments.effective_rank
    counts = np.bincount(rows.codes, minlength=len(groups))
    shares = np.bincount(rows.codes, rows.weight, len(groups)) / rows.weight.sum()
    return {
        "group": groups,
        "rows": [int(n) for n in counts],
        "share": [float(x) for x in shares],
        "displacement": [float(x) for x in displacement],
        "effective_rank": [int(r) for r in (ranks if ranks.ndim == 1 else ranks.min(axis=0))],
    }


def _cell_table(
    transformer: FairSteeringTransformer, rows: _Rows, before: MeasuredGaps | None, after: MeasuredGaps | None
) -> Table:
    """Every class in every group."""
    ideal = transformer.ideal_
    classes, groups = transformer.classes_.tolist(), transformer.groups_.tolist()
    known = {label: k for k, label in enumerate(ideal.classes.tolist())}
    shape = len(classes), len(groups)
    cell = rows.y_codes * len(groups) + rows.codes
    counts = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    shares = np.bincount(cell, rows.weight, shape[0] * shape[1]).reshape(shape) / rows.weight.sum()
    table: Table = {name: [] for name in ("class", "group", "rows", "share", "ideal_share", "kl_divergence")}
    recognised: dict[str, list[Measured]] = {"recognised_before": [], "recognised_after": []}
    for k, label in enumerate(classes):
        for a, group in enumerate(groups):
            seen = known.get(label)
            table["class"].append(label)
            table["group"].append(group)
            table["rows"].append(int(counts[k, a]))
            table["share"].append(float(shares[k, a]))
            for name, of_ideal in (("ideal_share", ideal.weights), ("kl_divergence", ideal.cell_divergence)):
                table[name].append(float("nan") if seen is None else float(of_ideal[seen, a]))
            if before is None or after is None or transformer._class_blind:
                continue
            for when, source in (("before", before), ("after", after)):
                recognised[f"recognised_{when}"].append(Measured(*(float(x[k, a, k]) for x in source.rates)))
    for name, column in recognised.items():
        if column:
            table |= _columns(name, column)
    return table


def _largest_of_other_groups(values: Doubles) -> Doubles:
    if values.shape[1] == 1:
        return -values
    return np.column_stack([np.delete(values, a, axis=1).max(axis=1) for a in range(values.shape[1])])


# ---- findings


def _findings(
    transformer: FairSteeringTransformer, tables: Mapping[str, Table], displacement: Doubles, *, nearly_identity: bool
) -> list[str]:
    findings = []
    farthest = float(np.nanmax(displacement, initial=0.0))
    if len(transformer.groups_) == 1:
        findings.append("There is one group, so nothing is steered.")
    elif nearly_identity:
        findings.append(
            f"The map is nearly the identity: no group moves by more than {farthest:.2g} of its spread. Gaps that "
            "remain do not come from means and covariances that differ."
        )
    if "gaps" in tables:
        findings += _gap_findings(tables["gaps"])
    certificate = tables["certificate"]
    if transformer.strength < 1:
        findings.append(
            f"The model's bounds are for fully steered rows. At strength {transformer.strength:g} they say nothing of "
            "the measured gaps."
        )
    else:
        broken = [
            "all classes" if label is None else f"class {label}"
            for label, group, bound, lower in zip(
                *(certificate[column] for column in ("class", "group", "model", "measured_lower")), strict=True
            )
            if group is None and lower > bound
        ]
        if broken:
            findings.append(
                f"The measured gap exceeds the model's bound for {few(broken, 5)}, by more than chance: the rows do "
                "not follow the fitted Gaussians."
            )
        elif all(bound >= 1 for bound in certificate["model"]):
            findings.append("The model's bounds say nothing here: all are 1.")
    return findings


def _gap_findings(gaps: Table) -> list[str]:
    """Say which changes are more than chance."""
    down, up = [], []
    for name, lower, upper in zip(gaps["measure"][1:], gaps["change_lower"][1:], gaps["change_upper"][1:], strict=True):
        if upper < 0:
            down.append(name.replace("_", " "))
        elif lower > 0:
            up.append(name.replace("_", " "))
    findings = []
    if down:
        findings.append(f"Steering lowers the gap in {_listed(down)}, by more than chance.")
    if up:
        findings.append(f"Steering raises the gap in {_listed(up)}, by more than chance.")
    if not down and not up:
        findings.append("No gap of the classifier changes by more than chance.")
    if gaps["change_upper"][0] < 0:
        findings.append("Accuracy falls, by more than chance.")
    elif gaps["change_lower"][0] > 0:
        findings.append("Accuracy rises, by more than chance.")
    return findings


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
