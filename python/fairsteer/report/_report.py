"""What steering did to rows, how sure that is, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from fairsteer._utils.input import few
from fairsteer._utils.types import Codes
from fairsteer.ideal import Certificate
from fairsteer.metrics._intervals import MeasuredGaps
from fairsteer.moments import SubgroupMoments
from fairsteer.report._held_out import Method, Prepare, Rows, codes_in, default_classifier, read_rows, run_methods
from fairsteer.report._likeness import divergence_table
from fairsteer.report._tables import (
    SteeredRows,
    Table,
    cell_table,
    certificate_table,
    find_sentences,
    gap_table,
    group_table,
    movement_table,
)
from fairsteer.transformer import FairSteeringTransformer

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
    confidence_level : float
        Level of all intervals.
    before, after : MeasuredGaps or None
        What was measured on held-out rows, with exact intervals; None without `y`.
    context : dict of str to str
        What the rows are, shown first; `dataclasses.replace` sets it.
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
    confidence_level: float
    before: MeasuredGaps | None
    after: MeasuredGaps | None
    context: dict[str, str] = field(default_factory=dict)

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
        from fairsteer.report._html import page

        text = page(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def _repr_html_(self) -> str:
        from fairsteer.report._html import fragment

        return fragment(self)

    def __str__(self) -> str:
        from fairsteer.report._text import as_text

        return as_text(self)

    def __rich__(self) -> Any:
        from fairsteer.report._text import as_rich

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
    prepare: Prepare | None = None,
    min_rows: int = 30,
    confidence_level: float = 0.95,
    n_resamples: int = 1000,
    random_state: int = 0,
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
    prepare : callable, default=None
        How features are made that learn from rows, such as filled gaps and 0/1 columns of categories: called for every
        fold with the rows that may be learnt from, a mask of shape (n_samples,), it returns the features of all rows.
        `X` are then those made from all rows. None: nothing in `X` was learnt.
    min_rows : int, default=30
        A rate that a group has fewer rows to compute from takes no part in a gap.
    confidence_level : float in (0, 1), default=0.95
        Level of each interval.
    n_resamples : int, default=1000
        Resamples of the bootstrap.
    random_state : int, default=0
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
    rows = read_rows({}, X, y, sensitive_features, sample_weight, known=transformer)
    y_codes = transformer._class_codes(None if transformer._class_blind else rows.y, rows.codes)
    classifier = "logistic regression on standardised features"
    if estimator is not None:
        classifier = " ".join(repr(estimator).split())
    same_rows = _are_of_the_fit(transformer, rows, y_codes)
    steering = transformer if same_rows else FrozenEstimator(transformer)
    model = default_classifier() if estimator is None else estimator
    held_out = run_methods(
        {"after": Method(steering, model), "before": Method(None, model)}, rows, cv, prepare if same_rows else None
    )
    assert rows.values is not None
    codes = codes_in(transformer, rows)
    moved = transformer._move(rows.values, codes, transformer._group_maps(transformer._strength()))
    steered = SteeredRows(rows.values, moved, y_codes, codes, rows.weight)
    displacement, features = movement_table(transformer, steered)
    nearly_identity = bool(np.nanmax(displacement, initial=0.0) < _STILL)
    tables = {"divergence": divergence_table(transformer, rows, held_out.trials, same_rows=same_rows)}
    before = after = positive = None
    if rows.y is not None:
        predicted = held_out.rows("before", "after")
        before, after = (
            predicted.measure(c, confidence_level, "exact", min_rows, n_resamples, random_state) for c in (0, 1)
        )
        judged = held_out.rows("before", "after", pos_label=pos_label)
        if len(judged.classes) == 2:
            positive = predicted.classes.tolist()[-1] if pos_label is None else pos_label
        tables["gaps"] = gap_table(judged, confidence_level, min_rows, n_resamples, random_state)
    tables["certificate"] = certificate_table(transformer, after)
    tables["groups"] = group_table(transformer, steered, displacement)
    tables["cells"] = cell_table(transformer, steered, before, after)
    tables["features"] = features
    return SteeringReport(
        tables=tables,
        findings=find_sentences(transformer, tables, displacement, nearly_identity=nearly_identity),
        steering=" ".join(repr(transformer).split()),
        classifier="" if rows.y is None else classifier,
        positive=positive,
        n_rows=len(rows.codes),
        n_features=rows.values.shape[1],
        n_folds=len(held_out.trials),
        same_rows=same_rows,
        strength=float(transformer.strength),
        kl_divergence=transformer.kl_divergence_,
        certificate=transformer.certificate_,
        nearly_identity=nearly_identity,
        min_rows=min_rows,
        confidence_level=confidence_level,
        before=before,
        after=after,
    )


def _are_of_the_fit(transformer: FairSteeringTransformer, rows: Rows, y_codes: Codes) -> bool:
    """Whether rows have the very moments of the fit."""
    fitted = transformer.moments_
    moments = SubgroupMoments(
        fitted.n_features, classes=fitted.classes, groups=fitted.groups, covariance=fitted.covariance
    )
    assert rows.values is not None
    moments.update(transformer._to_model(rows.values), y_codes, rows.codes, rows.weight)
    scale = np.sqrt(np.abs(fitted.means).max(axis=(0, 1)) ** 2 + fitted._feature_scale() ** 2)
    return bool(
        np.allclose(moments.weights, fitted.weights, rtol=1e-9)
        and (np.abs(moments.means - fitted.means) <= 1e-9 * scale).all()
    )


def _check_kind(transformer: Any) -> None:
    if not isinstance(transformer, FairSteeringTransformer):
        msg = f"steering_report takes a FairSteeringTransformer, not {type(transformer).__name__}."
        raise TypeError(msg)
