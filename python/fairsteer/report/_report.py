"""What steering did to rows, how sure that is, and what it leaves."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.base import MetaEstimatorMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from fairsteer._utils.estimators import unfrozen
from fairsteer._utils.files import write_file
from fairsteer._utils.input import few
from fairsteer._utils.labels import label_array, label_text
from fairsteer._utils.types import Codes
from fairsteer.classifier import IdealDistributionClassifier, IdealDistributionClassifierCV, IdealPosteriorClassifier
from fairsteer.ideal import Certificate
from fairsteer.metrics._intervals import MeasuredGaps, PredictedRows
from fairsteer.moments import SubgroupMoments
from fairsteer.report._choice import Choice, choice_of_search
from fairsteer.report._explorer import explorer
from fairsteer.report._held_out import (
    AsGiven,
    HeldOut,
    Method,
    Prepare,
    Rows,
    codes_in,
    default_classifier,
    fitted_steering,
    names_and_number,
    read_rows,
    run_methods,
    take_rows,
)
from fairsteer.report._html import fragment, page
from fairsteer.report._leakage import JudgedRows, Leakage, check_leakage, evenly, leakage_findings, leakage_table
from fairsteer.report._likeness import divergence_table
from fairsteer.report._tables import (
    STILL,
    Table,
    certificate_table,
    find_sentences,
    gap_table,
    group_table,
    movement_columns,
    movement_table,
    posterior_table,
    subgroup_table,
)
from fairsteer.report._text import as_rich, as_text
from fairsteer.report._thresholds import decides_at_half, threshold_table
from fairsteer.report._verdict import plain_verdict
from fairsteer.report._view import Document, Setting, make_views, nats
from fairsteer.transformer import FairSteeringTransformer

# Rows of a table that are shown, in text and on a page.
_MOST_LINES = 12


_MOST_ON_A_PAGE = 60

# Folds in which models read the group out of rows that the steering has not seen.
_FOLDS_OF_OTHER_ROWS = 5


@dataclass(frozen=True, repr=False)
class SteeringReport:
    """What steering did to rows; returned by `steering_report`.

    ``print(report)`` shows it as text, rich and Jupyter as tables, and `to_html` as a page of its own.

    Attributes
    ----------
    tables : dict of str to dict
        The numbers, column by column, as `to_frame` gives them. Of a classifier without a steering inside there are
        the tables ``"gaps"``, ``"groups"`` and ``"subgroups"``, without the columns that speak of a steering:

        * ``"divergence"``: how far the groups are from being alike before and after, in nats, on the rows of the fit
          and on rows held out from it (NaN if a group has fewer than two rows per feature there);
        * ``"gaps"``: accuracy and gaps of the classifier before and after, and the change, with bootstrap intervals;
        * ``"certificate"``: bounds of the certificate and of the model alone (NaN with monotone maps, which follow no
          model) beside the measured gaps, with exact intervals, and the verdict: ``"contradicted"`` where the interval
          lies above the certificate, else ``"consistent"`` (``""`` where nothing was measured, or rows are steered in
          part). Of every class and group against the other groups, of every class between any two groups (group None),
          and of all (class None);
        * ``"leakage"``, unless it was not asked for: for every family of models, class and pair of groups how well
          these are told apart before and after, see :func:`fairsteer.metrics.group_leakage`;
        * ``"groups"``: rows, displacement (root mean square over rows and features, in standard deviations of the
          feature in the group) and effective rank;
        * ``"subgroups"``: every class in every group: rows, share, ideal share, divergence from the ideal in nats, and
          how often its rows are recognised before and after, with exact intervals;
        * ``"choice"``, of an :class:`~fairsteer.IdealDistributionClassifierCV`: accuracy and gaps of its candidates,
          out of fold, with intervals from their standard errors, and which was ``taken``;
        * ``"posterior"``, of an :class:`~fairsteer.IdealPosteriorClassifier`: median and tenths of the posterior of
          every class in every group (of two classes the second), as it is and on the ideal distribution;
        * ``"thresholds"``, of two classes whose probabilities both classifiers give: at every hundredth, for each of
          the twelve largest groups, the share of held-out rows whose probability of the positive class is above it
          (``selected``), among the rows of that class (``true_positive``) and of the other (``false_positive``), each
          with an exact interval of its own; for group None the accuracy, and the largest difference of each rate;
        * ``"features"``: for every feature and group the shift of the mean in standard deviations, the ratio of the
          standard deviations, and the displacement; the largest displacement first.
    findings : list of str
        What a reader should know first, in sentences; the first says of every gap whether it grew.
    steering, classifier, compared_with : str
        The transformer ("" without one), and what predicted after and before ("" without `y`).
    pos_label : label
        The positive class of the gaps; None if every class counts.
    n_rows, n_left_out, n_features, n_folds : int
        Rows that took part, and those that did not as their group is not known or their weight is 0; features; folds.
    same_rows : bool
        Whether the rows are those of the fit. If so, held-out rows come from cross-validation of the whole procedure;
        if not, what is fitted is judged on the given rows.
    strength : float or None
        Strength at which rows moved.
    kl_divergence : float or None
        KL divergence of the nearest ideal distribution from the fitted one, in nats.
    certificate, model_certificate : Certificate or None
        Bounds for the Gaussians of the subgroups, and for those of the model alone.
    nearly_identity : bool
        Whether no group moves by more than a twentieth of its spread.
    min_rows : int
        Rates from fewer rows take no part in a gap.
    confidence_level : float
        Level of all intervals.
    before, after : MeasuredGaps or None
        What was measured on held-out rows, with exact intervals; None without `y`.
    choice : Choice or None
        What is said of the table ``"choice"``: ``advice``, which candidate to take and why, the ``criterion`` and the
        ``legend``; None without that table.
    context : mapping of str to object
        What the reader should know beside what the report knows itself, such as the file and the names of its columns:
        shown above all else, in every form.
    """

    tables: dict[str, Table]
    findings: list[str]
    steering: str
    classifier: str
    compared_with: str
    pos_label: Any
    n_rows: int
    n_left_out: int
    n_features: int
    n_folds: int
    same_rows: bool
    strength: float | None
    kl_divergence: float | None
    certificate: Certificate | None
    model_certificate: Certificate | None
    nearly_identity: bool
    min_rows: int
    confidence_level: float
    before: MeasuredGaps | None
    after: MeasuredGaps | None
    choice: Choice | None = None
    context: Mapping[str, Any] = field(default_factory=dict)

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

    def to_html(self, path: str | Path | None = None, *, title: str = "Steering report") -> str:
        """Give the report as one HTML page that needs nothing else, and no network: light, dark and on paper.

        Tables sort, marks tell their numbers, and of two classes a threshold can be moved; without scripts, and on
        paper, the page says the same. It says below with which version of the package and on which day it was made.

        Parameters
        ----------
        path : str or Path, default=None
            File to write it to.
        title : str, default="Steering report"
            Title of the page.

        Returns
        -------
        str
            The page.
        """
        made = f"Made with fairsteer {version('fairsteer')} on {dt.datetime.now().astimezone():%Y-%m-%d}."
        explored = ""
        if "thresholds" in self.tables:
            explored = explorer(
                self.tables["thresholds"],
                self.pos_label,
                f"{100 * self.confidence_level:g} %",
                decides=decides_at_half(self.tables["thresholds"], self.tables["gaps"]),
                n_groups=len(self.tables["groups"]["group"]),
            )
        text = page(self._document(_MOST_ON_A_PAGE), title, made, explored)
        if path is not None:
            write_file(path, text)
        return text

    def to_text(self, width: int = 80) -> str:
        """Give the report as plain text, as ``print(report)`` shows it.

        Parameters
        ----------
        width : int, default=80
            Columns that there are; tables that are wider are split.

        Returns
        -------
        str
            The text.
        """
        return as_text(self._document(_MOST_LINES), width)

    def _repr_html_(self) -> str:
        return fragment(self._document(_MOST_ON_A_PAGE), "Steering report")

    def __str__(self) -> str:
        return self.to_text()

    def __rich__(self) -> Any:
        return as_rich(self._document(_MOST_LINES))

    def __repr__(self) -> str:
        gaps = ""
        if "gaps" in self.tables:
            table = self.tables["gaps"]
            gaps = "".join(
                f", {name} {before:.3f} -> {after:.3f}"
                for name, before, after in zip(table["measure"], table["before"], table["after"], strict=True)
            )
        return f"<SteeringReport: {self.n_rows} rows{gaps}>"

    def _document(self, most: int) -> Document:
        setting = Setting(
            self.confidence_level,
            self.min_rows,
            self.pos_label,
            self.n_features,
            float("nan") if self.certificate is None else self.certificate.accuracy,
            "" if self.certificate is None else self.certificate.gaussians,
            self.choice,
        )
        findings = self.findings[1:] if self.verdict else self.findings  # the first says the same of the gaps
        return Document(self._facts(), self.verdict, findings, make_views(self.tables, setting, most))

    @property
    def verdict(self) -> str:
        """What the report comes to, in one paragraph of plain words; "" where no gaps were measured."""
        return plain_verdict(self.tables, self.pos_label, self.n_rows, self.min_rows)

    def _facts(self) -> list[tuple[str, str]]:
        facts = [(label_text(name), label_text(value)) for name, value in self.context.items()]
        if self.steering:
            facts.append(("Steering", self.steering))
        if self.classifier:
            facts += [("Before", self.compared_with), ("After", self.classifier)]
        rows = f"{self.n_rows:,}"
        if self.steering:
            rows += f" ({'the rows' if self.same_rows else 'rows other than those'} of the fit)"
        rows += f", {self.n_features} features"
        if self.n_left_out:
            rows += f"; {self.n_left_out:,} more are left out: no known group, or weight 0"
        facts.append(("Rows", rows))
        if self.classifier:
            counts = "every class counts" if self.pos_label is None else label_text(self.pos_label)
            facts.append(("Positive class", counts))
            what = "all that is fitted" if self.same_rows else "what is not fitted yet"
            facts.append(("Held-out rows", f"{self.n_folds}-fold cross-validation of {what}"))
        if self.kl_divergence is not None:
            facts.append(("Nearest ideal distribution", f"{nats(self.kl_divergence)} nats from the fitted one (model)"))
        return facts


def steering_report(
    after: Any,
    X: Any,
    y: Any = None,
    *,
    sensitive_features: Any = None,
    sample_weight: Any = None,
    before: Any = None,
    estimator: Any = None,
    pos_label: Any = None,
    cv: Any = 5,
    prepare: Prepare | None = None,
    min_rows: int = 30,
    confidence_level: float = 0.95,
    n_resamples: int = 1000,
    random_state: int = 0,
    leakage: Leakage = "linear",
    context: Mapping[str, Any] | None = None,
) -> SteeringReport:
    """Report what steering, or any fair classifier, does to rows and gaps, beside a classifier without it.

    Parameters
    ----------
    after : FairSteeringTransformer, classifier or pipeline
        What to report on, fitted. Of a transformer, a pipeline that has one, or an
        :class:`~fairsteer.IdealDistributionClassifier` (or one chosen by
        :class:`~fairsteer.IdealDistributionClassifierCV`, which chooses anew in every fold) the report says how rows
        move and what the model promises; of any other classifier, such as a :class:`~fairsteer.ScoreAligner`, what it
        predicts.
    X : array-like or dataframe of shape (n_samples, n_features)
        The rows of the fit, or others. For the rows of the fit everything that is called held-out comes from
        cross-validation: all that learns is fitted again without the rows that it is judged on. On other rows what is
        fitted is judged as it is. Which of the two it is, the moments of a steering tell; a classifier without one is
        fitted again, unless it is in a :class:`~sklearn.frozen.FrozenEstimator`.
    y : array-like of shape (n_samples,), default=None
        Class labels. None, for a transformer that was fitted without: no classifier, no gaps.
    sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
        Group labels, unless `after` has `sensitive_columns`. Rows of groups that are missing or unknown are left out,
        with a warning.
    sample_weight : array-like of shape (n_samples,), default=None
        Non-negative weights, used for everything.
    before : classifier, default=None
        What to compare with, fitted or not: a clone is fitted, unless it is in a FrozenEstimator. It gets the rows as
        they are, and the groups if its methods take them. None: `estimator` on the rows as they are without sensitive
        columns; of a pipeline with a transformer the steps behind it; of a meta-estimator, such as a ScoreAligner, the
        classifier that it wraps.
    estimator : classifier, default=None
        For a transformer: clones of it are trained on the rows as they are and on the steered rows; neither see the
        sensitive columns. None: logistic regression on standardised features, or what an IdealDistributionClassifier
        trains.
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
    leakage : {"none", "linear", "trees"}, default="linear"
        Which models try to read the group out of held-out rows, before and after steering, among rows of one class:
        linear ones, or also boosted trees, which take seconds a fit. Of more than 10,000 rows as many are looked at,
        evenly spaced in every class and group.
    context : mapping of str to object, default=None
        What readers should know of the rows, such as the file and the names of its columns; shown above all else.

    Returns
    -------
    SteeringReport
        Prints as text; see there for the tables.

    Raises
    ------
    ValueError
        If no row is left, `X` or the labels do not match the fit, there is nothing to compare with, or a parameter is
        out of range.
    TypeError
        If `after` neither steers nor predicts.
    sklearn.exceptions.NotFittedError
        If `after` is not fitted.

    Notes
    -----
    *Divergence.* A map of groups cannot bring a distribution nearer to the ideal ones, which follow the map. What it
    does change is how alike the groups are to a classifier that does not know them. So the divergence before and
    after is that of the nearest distribution whose classes look the same in every group, with the shares of classes
    and groups of the ideal one. After affine steering in full, on the rows of the fit, it equals `kl_divergence_`.

    *Certificate.* Bounds speak of Gaussians and of classifiers that see fully steered rows; measured gaps speak of
    rows. Only the second are evidence about data.

    Examples
    --------
    >>> from fairsteer import FairSteeringTransformer
    >>> from fairsteer.datasets import make_biased_groups
    >>> from fairsteer.report import steering_report
    >>> X, y, group = make_biased_groups(random_state=0)
    >>> steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    >>> report = steering_report(steer, X, y, sensitive_features=group)
    >>> gaps = report.to_frame("gaps").set_index("measure")
    >>> bool(gaps.loc["demographic_parity", "after"] < 0.1 < gaps.loc["demographic_parity", "before"])
    True
    >>> report.nearly_identity
    False
    """
    return report_beside(
        {},
        after,
        X,
        y,
        sensitive_features=sensitive_features,
        sample_weight=sample_weight,
        before=before,
        estimator=estimator,
        pos_label=pos_label,
        cv=cv,
        prepare=prepare,
        min_rows=min_rows,
        confidence_level=confidence_level,
        n_resamples=n_resamples,
        random_state=random_state,
        leakage=leakage,
        context=context,
    )[0]


def report_beside(
    others: Mapping[str, Any],
    after: Any,
    X: Any,
    y: Any,
    *,
    sensitive_features: Any = None,
    sample_weight: Any = None,
    before: Any = None,
    estimator: Any = None,
    pos_label: Any = None,
    cv: Any = 5,
    prepare: Prepare | None = None,
    min_rows: int = 30,
    confidence_level: float = 0.95,
    n_resamples: int = 1000,
    random_state: int = 0,
    leakage: Leakage = "linear",
    context: Mapping[str, Any] | None = None,
    advance: Callable[[int], None] = lambda _: None,
    optional: Collection[str] = (),
) -> tuple[SteeringReport, HeldOut]:
    """Report as `steering_report` does, and predict the same held-out rows by other methods, in the same fits.

    Parameters
    ----------
    others : mapping of str to Method or classifier
        Methods that were not made for the report. What they have in common with its own is fitted once a fold.
    after, X, y, sensitive_features, sample_weight, before, estimator, pos_label, cv, prepare, min_rows, \
    confidence_level, n_resamples, random_state, leakage, context
        As for `steering_report`.
    advance : callable
        Called with 1 after every fold.
    optional : collection of str
        Methods of `others` that are left out if some fold has too few rows for them.

    Returns
    -------
    report : SteeringReport
        The report.
    held_out : HeldOut
        What the others predict.
    """
    check_leakage(leakage)
    subject = _Subject.of(after)
    steering = subject.steering
    seen = X if subject.front is None else subject.front.transform(X)
    rows = read_rows({"after": after}, seen, y, sensitive_features, sample_weight, known=steering)
    if subject.front is not None:
        rows = rows._replace(given=take_rows(X, rows.kept))
        prepare = _refitted(subject.front, X, y)
    classes = [] if rows.y is None else np.unique(rows.y).tolist()
    if pos_label is not None and rows.y is not None and pos_label not in classes:
        msg = f"pos_label={pos_label!r} is no class; there are {few(map(repr, classes))}."
        raise ValueError(msg)
    if steering is None:
        blind, same_rows, y_codes = False, True, _codes_to_predict(rows, classes)
    else:
        blind = steering._class_blind
        y_codes = steering._class_codes(None if blind else rows.y, rows.codes)
        same_rows = not subject.frozen and _are_of_the_fit(steering, rows, y_codes)
    methods, words = _methods(subject, before, estimator, same_rows=same_rows)
    held_out = run_methods(
        {**methods, **{("beside", name): method for name, method in others.items()}},
        rows,
        cv,
        prepare if same_rows else None,
        advance,
        predict=len(classes) > 1,
        optional=[("beside", name) for name in optional],
        probable=methods if len(classes) == 2 else (),
    )

    def measure(predicted: PredictedRows) -> list[MeasuredGaps]:
        return [predicted.measure(c, confidence_level, "exact", min_rows, n_resamples, random_state) for c in (0, 1)]

    groups = rows.groups.tolist() if steering is None else steering.groups_.tolist()
    codes = rows.codes if steering is None else codes_in(steering, rows)
    tables: dict[str, Table] = {}
    measured: list[MeasuredGaps] = []
    of_groups: list[MeasuredGaps] = []  # of the groups of the steering, to which small ones may be one
    positive = None
    if held_out.y_pred:
        predicted = held_out.rows("before", "after")
        measured = of_groups = measure(predicted)
        if groups != rows.groups.tolist():
            of_groups = measure(predicted._replace(group=codes[held_out.places], groups=label_array(groups)))
        judged = held_out.rows("before", "after", pos_label=pos_label)
        if len(judged.classes) == 2:
            positive = classes[-1] if pos_label is None else pos_label
        tables["gaps"] = gap_table(judged, confidence_level, min_rows, n_resamples, random_state)
        if len(held_out.proba) == 2:
            place = classes.index(positive)
            tables["thresholds"] = threshold_table(
                held_out.y_true == positive,
                held_out.codes,
                held_out.weight,
                held_out.groups.tolist(),
                {when: held_out.proba[when][:, place] for when in ("before", "after")},
                min_rows=min_rows,
                confidence_level=confidence_level,
            )
    nearly_identity = False
    tables["groups"] = group_table(groups, codes, rows.weight)
    tables["subgroups"] = subgroup_table(
        *(classes if steering is None else steering.classes_.tolist(), groups, y_codes, codes, rows.weight),
        ideal=None if steering is None else steering.ideal_,
        measured=[] if blind else of_groups,
    )
    if steering is not None:
        assert rows.values is not None
        tables["certificate"] = certificate_table(steering, of_groups[1] if of_groups else None)
        parts: list[tuple[Any, Any, npt.NDArray[np.intp]]] = [(steering, rows.values, np.arange(len(codes)))]
        if same_rows:
            parts = [(fitted_steering(trial.fitted["after"]), trial.values, trial.test) for trial in held_out.trials]
        tables["divergence"] = divergence_table(steering, rows, parts)
        if len(groups) > 1 and leakage != "none":
            labels = [None] if blind else steering.classes_.tolist()
            judged_rows = _judged_rows(steering, rows, y_codes, parts)
            if (read := leakage_table(judged_rows, labels, groups, leakage, confidence_level)) is not None:
                tables["leakage"] = read
        moved = steering._move(rows.values, codes, steering._group_maps(steering._strength()))
        displacement, tables["features"] = movement_table(steering, rows.values, moved, codes, rows.weight)
        nearly_identity = bool(np.nanmax(displacement, initial=0.0) < STILL)
        tables["groups"] |= movement_columns(steering, displacement)
    last = subject.estimator[-1] if isinstance(subject.estimator, Pipeline) else subject.estimator
    if isinstance(last, IdealPosteriorClassifier) and last.ideal_ is not None:
        tables["posterior"] = posterior_table(last.ideal_, last.classes_.tolist())
    findings = find_sentences(tables, steering)
    if "leakage" in tables:
        findings += leakage_findings(tables["leakage"])
    if len(classes) == 1:
        findings.insert(0, f"All rows are of class {label_text(classes[0])}: there is nothing to predict.")
    choice = None
    if isinstance(subject.estimator, IdealDistributionClassifierCV):
        tables["choice"], choice = choice_of_search(subject.estimator, confidence_level)
    report = SteeringReport(
        tables=tables,
        choice=choice,
        findings=findings,
        steering="" if steering is None else _one_line(steering),
        classifier=words["after"] if measured else "",
        compared_with=words["before"] if measured else "",
        pos_label=positive,
        n_rows=len(codes),
        n_left_out=int((~rows.kept).sum()),
        n_features=names_and_number(rows.X)[1] if rows.values is None else rows.values.shape[1],
        n_folds=len(held_out.trials),
        same_rows=same_rows,
        strength=None if steering is None else float(steering.strength),
        kl_divergence=None if steering is None else steering.kl_divergence_,
        certificate=None if steering is None else steering.certificate_,
        model_certificate=None if steering is None else steering.model_certificate_,
        nearly_identity=nearly_identity,
        min_rows=min_rows,
        confidence_level=confidence_level,
        before=measured[0] if measured else None,
        after=measured[1] if measured else None,
        context=dict(context or {}),
    )
    beside = {name: held_out.y_pred[key] for name in others if (key := ("beside", name)) in held_out.y_pred}
    return report, held_out._replace(y_pred=beside)


def _judged_rows(
    steering: FairSteeringTransformer, rows: Rows, y_codes: Codes, parts: list[tuple[Any, Any, npt.NDArray[np.intp]]]
) -> JudgedRows:
    """Rows before and after the steering of every fold; of one steering that has seen none, in folds of their own."""
    codes = codes_in(steering, rows)
    places = np.flatnonzero(codes >= 0)
    for fitted, _, _ in parts:
        places = places[codes_in(fitted, rows)[places] >= 0]
    places = places[evenly(y_codes[places], codes[places])]
    y_codes, codes = y_codes[places], codes[places]
    folds = []
    for fitted, values, some in parts:
        before = values[places]
        after = fitted._move(before, codes_in(fitted, rows)[places], fitted._group_maps(fitted._strength()))
        folds.append((before.astype(np.float64), after.astype(np.float64), np.isin(places, some)))
    if len(folds) == 1:
        (before, after, _) = folds[0]
        order = np.lexsort((np.arange(len(places)), codes, y_codes))
        fold_of = np.empty(len(places), dtype=np.intp)
        fold_of[order] = np.arange(len(places)) % _FOLDS_OF_OTHER_ROWS
        folds = [(before, after, fold_of == fold) for fold in range(_FOLDS_OF_OTHER_ROWS)]
    return JudgedRows(y_codes, codes, rows.weight[places], folds)


# ---- what is reported


class _Subject(NamedTuple):
    """What is reported on, taken apart."""

    estimator: Any
    """Not in a FrozenEstimator."""
    frozen: bool
    steering: FairSteeringTransformer | None
    front: Any
    """Fitted steps of a pipeline before the steering, or None."""
    back: Any
    """Fitted steps after it, or None."""

    @classmethod
    def of(cls, after: Any) -> _Subject:
        """Find the steering in an estimator that is fitted."""
        estimator = unfrozen(after)
        frozen = estimator is not after
        if not isinstance(estimator, FairSteeringTransformer) and not hasattr(estimator, "predict"):
            inside = isinstance(estimator, Pipeline) and isinstance(estimator[-1], FairSteeringTransformer)
            if not inside:
                msg = (
                    "steering_report takes a fitted FairSteeringTransformer or classifier, not "
                    f"{type(estimator).__name__}, which has no predict."
                )
                raise TypeError(msg)
        check_is_fitted(estimator, "moments_" if isinstance(estimator, FairSteeringTransformer) else None)
        steps = [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
        for i, step in enumerate(steps):
            if (steering := fitted_steering(step)) is None:
                continue
            front, back = (None, None) if len(steps) == 1 else (estimator[:i], estimator[i + 1 :])
            return cls(step, frozen, steering, front if i else None, back if i + 1 < len(steps) else None)
        return cls(estimator, frozen, None, None, None)


def _refitted(front: Any, X: Any, y: Any) -> Prepare:
    """Make features by the first steps of a pipeline, fitted on some of the rows."""

    def prepare(may_learn: npt.NDArray[np.bool_]) -> Any:
        return clone(front).fit(take_rows(X, may_learn), take_rows(y, may_learn)).transform(X)

    return prepare


def _codes_to_predict(rows: Rows, classes: list[Any]) -> Codes:
    """Classes of rows for a report on a classifier, which has to have something to tell."""
    if rows.y is None:
        msg = "y is needed: a report on a classifier compares what it predicts with the classes of the rows."
        raise ValueError(msg)
    if rows.sensitive_features is None and len(rows.groups) == 1:
        msg = "No groups are given, and a report is about the gaps between them. Pass sensitive_features=…."
        raise ValueError(msg)
    if len(classes) < 2:
        msg = f"y holds the one class {classes[0]!r}: there is nothing to predict."
        raise ValueError(msg)
    return np.searchsorted(classes, rows.y)


def _methods(
    subject: _Subject, before: Any, estimator: Any, *, same_rows: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Choose what predicts before and after, with words for it."""
    what, back = subject.estimator, subject.back
    if estimator is not None and not (isinstance(what, FairSteeringTransformer) and back is None):
        msg = "estimator is the classifier behind a transformer; what is reported on has one of its own. Pass before=…."
        raise ValueError(msg)
    if isinstance(what, FairSteeringTransformer):
        model = next(x for x in (estimator, back, default_classifier()) if x is not None)
        fitted = not same_rows and back is not None
        after = Method(what if same_rows else FrozenEstimator(what), FrozenEstimator(model) if fitted else model)
        plain: Any = Method(None, model)
        words = {"before": f"{_words(model)}, on rows as they are", "after": f"{_words(model)}, on steered rows"}
    elif isinstance(what, (IdealDistributionClassifier, IdealDistributionClassifierCV)):
        after = what if same_rows else FrozenEstimator(what)
        plain = Method(None, default_classifier() if what.estimator is None else what.estimator)
        words = {"before": f"{_words(plain.classifier)}, on rows as they are", "after": _words(what)}
    else:
        after = FrozenEstimator(what) if subject.frozen else what
        plain = _wrapped(what, frozen=subject.frozen)
        words = {"before": _words(unfrozen(plain)), "after": _words(what)}
    if before is not None:
        words["before"] = _words(unfrozen(before))
        plain = AsGiven(before) if subject.front is not None else before
    if plain is None:
        msg = f"Pass before=…, a classifier to compare {type(what).__name__} with."
        raise ValueError(msg)
    return {"after": after, "before": plain}, words


def _wrapped(classifier: Any, *, frozen: bool) -> Any:
    """Give the classifier that a meta-estimator wraps, behind the same first steps of a pipeline; None of others."""
    last = classifier[-1] if isinstance(classifier, Pipeline) else classifier
    inner = getattr(last, "estimator_" if frozen else "estimator", None)
    if inner is None or not isinstance(last, MetaEstimatorMixin):
        return None
    if isinstance(classifier, Pipeline):
        inner = Pipeline([*classifier.steps[:-1], ("classifier", inner)])
    return FrozenEstimator(inner) if frozen else inner


def _words(model: Any) -> str:
    return "logistic regression on standardised features" if _is_default(model) else _one_line(model)


def _is_default(model: Any) -> bool:
    return repr(model) == repr(default_classifier())


def _one_line(estimator: Any) -> str:
    return label_text(" ".join(repr(estimator).split()))


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
