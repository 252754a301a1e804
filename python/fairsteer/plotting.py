"""Pictures of steering, by scikit-learn's conventions: ``from_estimator``, ``from_predictions``, ``plot(ax=…)``.

They need matplotlib (``pip install "fairsteer[report]"``), take text and grounds from its style, dark ones too, and
tell groups apart by colours that the colour-blind can, and by shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import gaussian_kde
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.utils import check_consistent_length, column_or_1d

from fairsteer._input import check_sample_weight
from fairsteer._measured import GAPS, Measured, MeasuredGaps, measured_gaps
from fairsteer.groups import GroupEncoder
from fairsteer.ideal import Certificate
from fairsteer.report import SteeringReport, cross_validated, steering_report
from fairsteer.score_alignment import _takes, class_scores
from fairsteer.transformer import FairSteeringTransformer

__all__ = ["CertificateDisplay", "GroupScoreDisplay", "TPRDisplay", "TradeOffDisplay"]

Doubles = npt.NDArray[np.float64]

# Okabe and Ito's colours, and lighter shades of the dark ones for dark grounds.
_ON_LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_ON_DARK = ("#56B4E9", "#E69F00", "#2FC99A", "#E8A3CB", "#F0E442", "#FF8F57")
_MARKERS = ("o", "D", "s", "^", "v", "P", "X", "*")
_LINES = ("-", "--", ":", "-.")


class GroupScoreDisplay:
    """Densities of scores by group, before steering above the line and after it below.

    Use `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    scores : dict of str to ndarray of shape (n_samples,)
        One or two entries, such as ``"before"`` and ``"after"``.
    groups : ndarray of shape (n_samples,)
        Position of every row's group among `group_labels`.
    group_labels : sequence
        Labels of the groups.
    sample_weight : ndarray of shape (n_samples,), default=None
        Weights of the rows.
    score_name : str, default="score"
        What the scores are, for the axis.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes of the plot.
    figure_ : matplotlib Figure
        Figure of the plot.
    lines_ : dict of (str, label) to matplotlib Line2D
        Outline of every density, by entry of `scores` and group.

    Examples
    --------
    >>> import numpy as np
    >>> from fairsteer import FairSteeringTransformer
    >>> from fairsteer.plotting import GroupScoreDisplay
    >>> rng = np.random.default_rng(0)
    >>> y, group = rng.integers(0, 2, (2, 500))
    >>> X = rng.normal(size=(500, 2)) + np.outer(y, [1, 1]) + np.outer(group, [0, 2])
    >>> steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    >>> display = GroupScoreDisplay.from_estimator(steer, X, y, sensitive_features=group)
    >>> len(display.lines_)
    4
    """

    ax_: Any
    figure_: Any
    lines_: dict[Any, Any]

    def __init__(
        self,
        scores: Mapping[str, npt.ArrayLike],
        groups: npt.ArrayLike,
        group_labels: Sequence[Any],
        *,
        sample_weight: npt.ArrayLike | None = None,
        score_name: str = "score",
    ) -> None:
        self.scores = {when: np.asarray(values, dtype=np.float64) for when, values in scores.items()}
        if not 1 <= len(self.scores) <= 2:
            msg = f"scores must have one or two entries, not {len(self.scores)}."
            raise ValueError(msg)
        self.groups = np.asarray(groups)
        self.group_labels = list(group_labels)
        self.sample_weight = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        self.score_name = score_name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        sensitive_features: Any = None,
        sample_weight: Any = None,
        ax: Any = None,
    ) -> GroupScoreDisplay:
        """Draw the leading discriminant before and after a transformer, or the scores of a classifier.

        Parameters
        ----------
        estimator : FairSteeringTransformer or classifier
            Fitted. For a transformer the scores are those of the direction that tells the classes of `y` apart best
            (without `y`, the groups), on the rows as they are and on the steered rows. A classifier has two classes.
        X : array-like or dataframe of shape (n_samples, n_features)
            Rows.
        y : array-like of shape (n_samples,), default=None
            Class labels, for a transformer.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels, unless the transformer has `sensitive_columns`.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows in the densities.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        GroupScoreDisplay
            The display, drawn.
        """
        if not isinstance(estimator, FairSteeringTransformer):
            params = {"sensitive_features": sensitive_features}
            asked = getattr(estimator, "predict_proba", None) or estimator.decision_function
            classes = np.asarray(estimator.classes_)
            if len(classes) != 2:
                msg = f"A score needs two classes, not {len(classes)}. Draw TPRDisplay, or the steering's discriminant."
                raise ValueError(msg)
            scores = class_scores(estimator, X, classes, params if _takes(asked, "sensitive_features") else {})
            return cls.from_predictions(
                scores,
                sensitive_features=sensitive_features,
                sample_weight=sample_weight,
                score_name=f"score of class {classes[1]}",
                ax=ax,
            )
        values, labels = estimator._read_rows(X, sensitive_features, reset=False)
        encoder = GroupEncoder().fit(labels)
        told = encoder.encode(labels) if y is None else column_or_1d(y)
        steered = estimator._steered(X, sensitive_features)
        display = cls(
            {when: _discriminant(rows, told) for when, rows in (("before", values), ("after", steered))},
            encoder.encode(labels),
            encoder.groups_.tolist(),
            sample_weight=check_sample_weight(sample_weight, values),
            score_name="leading discriminant (standard deviations within classes)",
        )
        return display.plot(ax=ax)

    @classmethod
    def from_predictions(
        cls,
        y_score: npt.ArrayLike,
        steered_score: npt.ArrayLike | None = None,
        *,
        sensitive_features: Any,
        sample_weight: npt.ArrayLike | None = None,
        score_name: str = "score",
        ax: Any = None,
    ) -> GroupScoreDisplay:
        """Draw the densities of scores.

        Parameters
        ----------
        y_score : array-like of shape (n_samples,)
            Scores; if there are others after steering, those before.
        steered_score : array-like of shape (n_samples,), default=None
            Scores of the same rows after steering.
        sensitive_features : array-like of shape (n_samples,) or (n_samples, n_columns)
            Groups.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights.
        score_name : str, default="score"
            What the scores are, for the axis.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        GroupScoreDisplay
            The display, drawn.
        """
        scores = {"before": column_or_1d(y_score)}
        if steered_score is None:
            scores = {"": scores["before"]}
        else:
            scores["after"] = column_or_1d(steered_score)
        encoder = GroupEncoder().fit(sensitive_features)
        groups = encoder.encode(sensitive_features)
        check_consistent_length(groups, *scores.values())
        display = cls(
            scores,
            groups,
            encoder.groups_.tolist(),
            sample_weight=check_sample_weight(sample_weight, groups),
            score_name=score_name,
        )
        return display.plot(ax=ax)

    def plot(self, ax: Any = None) -> GroupScoreDisplay:
        """Draw the densities.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        GroupScoreDisplay
            The display itself.
        """
        self.figure_, self.ax_ = _axes(ax)
        self.lines_ = {}
        colours = _palette(self.ax_)
        everything = np.concatenate(list(self.scores.values()))
        everything = everything[np.isfinite(everything)]
        low, high = np.quantile(everything, [0.001, 0.999])
        margin = 0.1 * (high - low) or 1.0
        grid = np.linspace(low - margin, high + margin, 400)
        tallest = 0.0
        for (when, values), sign in zip(self.scores.items(), (1, -1), strict=False):
            for a, label in enumerate(self.group_labels):
                density = sign * self._density(values, a, grid)
                colour, style = colours[a % len(colours)], _LINES[a // 3 % len(_LINES)]
                if len(self.group_labels) <= 3:  # of more, the shades would add up to one
                    self.ax_.fill_between(grid, density, color=colour, alpha=0.15, linewidth=0)
                (self.lines_[when, label],) = self.ax_.plot(
                    grid, density, style, color=colour, label=_name(label) if sign == 1 else None
                )
                tallest = max(tallest, float(np.abs(density).max(initial=0.0)))
        tallest = tallest or 1.0
        if len(self.scores) == 2:
            self.ax_.axhline(0, color=_ink("axes.edgecolor"), linewidth=0.8)
            for when, y, align in zip(self.scores, (1.12, -1.12), ("top", "bottom"), strict=True):
                self.ax_.text(
                    0.02, y * tallest, when, transform=self.ax_.get_yaxis_transform(), va=align, style="italic"
                )
        self.ax_.set(
            xlabel=self.score_name,
            ylabel="density",
            yticks=[],
            xlim=(grid[0], grid[-1]),
            ylim=(-1.15 * tallest if len(self.scores) == 2 else 0, 1.15 * tallest),
        )
        _legend(self.ax_)
        return self

    def _density(self, values: Doubles, group: int, grid: Doubles) -> Doubles:
        """Kernel estimate; a group of one score only has none."""
        rows = (self.groups == group) & np.isfinite(values)
        if self.sample_weight is not None:
            rows &= self.sample_weight > 0
        if rows.sum() < 2 or np.ptp(values[rows]) <= 1e-12 * np.abs(values[rows]).max():
            return np.zeros_like(grid)
        weights = None if self.sample_weight is None else self.sample_weight[rows]
        return np.asarray(gaussian_kde(values[rows], weights=weights)(grid))


class TradeOffDisplay:
    """Accuracy against a gap along `strength`, on held-out rows.

    Use `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    strengths : sequence of float
        Strengths of the steering, ascending.
    accuracy, gap : sequence of Measured
        What was measured at each.
    gap_name : str
        Name of the gap, for the axis.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Of the plot.
    line_ : matplotlib Line2D
        Path from the weakest to the strongest steering.
    errorbar_ : matplotlib ErrorbarContainer
        Intervals.
    texts_ : list of matplotlib Annotation
        Strengths that have room for a label.
    """

    ax_: Any
    figure_: Any
    line_: Any
    errorbar_: Any
    texts_: list[Any]

    def __init__(
        self, strengths: Sequence[float], accuracy: Sequence[Measured], gap: Sequence[Measured], *, gap_name: str
    ) -> None:
        self.strengths = list(strengths)
        self.accuracy = list(accuracy)
        self.gap = list(gap)
        self.gap_name = gap_name

    @classmethod
    def from_estimator(
        cls,
        transformer: FairSteeringTransformer,
        X: Any,
        y: Any,
        *,
        sensitive_features: Any = None,
        sample_weight: Any = None,
        estimator: Any = None,
        strengths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        gap: str = "equal_opportunity",
        cv: Any = 5,
        ax: Any = None,
        **params: Any,
    ) -> TradeOffDisplay:
        """Cross-validate a classifier behind a transformer of several strengths, and draw.

        Parameters
        ----------
        transformer : FairSteeringTransformer
            Fitted on these rows or not; clones of it are fitted on the training rows of every fold.
        X, y, sensitive_features, sample_weight, estimator, cv
            As for :func:`fairsteer.report.steering_report`.
        strengths : sequence of float in [0, 1]
            Strengths to compare.
        gap : {"demographic_parity", "equal_opportunity", "equalized_odds"}, default="equal_opportunity"
            Which gap.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.
        **params
            `pos_label`, `min_rows`, `confidence`, `n_resamples` and `seed` of :func:`~fairsteer.report.measured_gaps`.

        Returns
        -------
        TradeOffDisplay
            The display, drawn.
        """
        _check_gap(gap)
        strengths = sorted(set(strengths))
        found = cross_validated(
            transformer,
            X,
            y,
            sensitive_features=sensitive_features,
            sample_weight=sample_weight,
            estimator=estimator,
            strengths=strengths,
            cv=cv,
            **params,
        )
        display = cls(strengths, [m.accuracy for m in found], [getattr(m, gap) for m in found], gap_name=_gap_name(gap))
        return display.plot(ax=ax)

    @classmethod
    def from_predictions(
        cls,
        y_true: npt.ArrayLike,
        y_preds: Mapping[float, npt.ArrayLike],
        *,
        sensitive_features: Any,
        gap: str = "equal_opportunity",
        ax: Any = None,
        **params: Any,
    ) -> TradeOffDisplay:
        """Draw from predictions for held-out rows.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            True labels.
        y_preds : mapping of float to array-like of shape (n_samples,)
            Predictions of each strength.
        sensitive_features : array-like of shape (n_samples,) or (n_samples, n_columns)
            Groups.
        gap : {"demographic_parity", "equal_opportunity", "equalized_odds"}, default="equal_opportunity"
            Which gap.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.
        **params
            Further parameters of :func:`~fairsteer.report.measured_gaps`.

        Returns
        -------
        TradeOffDisplay
            The display, drawn.
        """
        _check_gap(gap)
        strengths = sorted(y_preds)
        params = {"interval": "bootstrap", **params}
        found = [measured_gaps(y_true, y_preds[s], sensitive_features=sensitive_features, **params) for s in strengths]
        display = cls(strengths, [m.accuracy for m in found], [getattr(m, gap) for m in found], gap_name=_gap_name(gap))
        return display.plot(ax=ax)

    def plot(self, ax: Any = None) -> TradeOffDisplay:
        """Draw the path.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        TradeOffDisplay
            The display itself.
        """
        self.figure_, self.ax_ = _axes(ax)
        colour = _palette(self.ax_)[0]
        x, x_error = _bars(self.gap)
        y, y_error = _bars(self.accuracy)
        self.errorbar_ = self.ax_.errorbar(x, y, xerr=x_error, yerr=y_error, fmt="none", ecolor=colour, alpha=0.35)
        (self.line_,) = self.ax_.plot(x, y, "o-", color=colour)
        self.ax_.set(xlabel=f"{self.gap_name} gap", ylabel="accuracy")
        self.ax_.margins(0.1)
        self.ax_.set_xlim(left=min(0.0, self.ax_.get_xlim()[0]))
        self.texts_ = []
        self._label(x, y)
        return self

    def _label(self, x: Doubles, y: Doubles) -> None:
        """Write strengths beside points, the ends first, where no label is near."""
        from matplotlib.patheffects import withStroke

        halo = [withStroke(linewidth=3, foreground=self.ax_.get_facecolor())]
        places = self.ax_.transAxes.inverted().transform(self.ax_.transData.transform(np.column_stack([x, y])))
        taken: list[Any] = []
        last = len(x) - 1
        for i in dict.fromkeys([last, 0, *range(1, last)]):
            if any(abs(places[i] - other) @ [1, 2] < 0.2 for other in taken):
                continue
            taken.append(places[i])
            word = "strength " if i in (0, last) else ""
            left = places[i][0] > 0.7
            self.texts_.append(
                self.ax_.annotate(
                    f"{word}{self.strengths[i]:g}",
                    (x[i], y[i]),
                    xytext=(-8 if left else 8, 8),
                    textcoords="offset points",
                    ha="right" if left else "left",
                    path_effects=halo,
                )
            )


class TPRDisplay:
    """How often rows of each class are recognised in each group, class by class.

    Use `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    measured : MeasuredGaps
        Rates of all subgroups.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Of the plot.
    points_ : dict of label to matplotlib Line2D
        Rates of every group.
    bars_ : matplotlib LineCollection
        From the smallest to the largest rate of every class.
    classes_ : list
        Classes from bottom to top: the largest gap is on top.
    """

    ax_: Any
    figure_: Any
    points_: dict[Any, Any]
    bars_: Any
    classes_: list[Any]

    def __init__(self, measured: MeasuredGaps) -> None:
        self.measured = measured

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        sensitive_features: Any,
        sample_weight: Any = None,
        ax: Any = None,
        **params: Any,
    ) -> TPRDisplay:
        """Predict and draw.

        Parameters
        ----------
        estimator : classifier
            Fitted, on other rows. It gets the groups if its ``predict`` takes them.
        X, y : array-like
            Held-out rows and their classes.
        sensitive_features : array-like of shape (n_samples,) or (n_samples, n_columns)
            Groups.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.
        **params
            As for `from_predictions`.

        Returns
        -------
        TPRDisplay
            The display, drawn.
        """
        asked = {"sensitive_features": sensitive_features}
        predicted = estimator.predict(X, **(asked if _takes(estimator.predict, "sensitive_features") else {}))
        return cls.from_predictions(
            y, predicted, sensitive_features=sensitive_features, sample_weight=sample_weight, ax=ax, **params
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: npt.ArrayLike,
        y_pred: npt.ArrayLike,
        *,
        sensitive_features: Any,
        sample_weight: npt.ArrayLike | None = None,
        ax: Any = None,
        intervals: bool = True,
        **params: Any,
    ) -> TPRDisplay:
        """Draw the rates of predictions.

        Parameters
        ----------
        y_true, y_pred : array-like of shape (n_samples,)
            True and predicted labels.
        sensitive_features : array-like of shape (n_samples,) or (n_samples, n_columns)
            Groups.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.
        intervals : bool, default=True
            Whether to draw the Clopper-Pearson interval of every rate.
        **params
            `labels` and `confidence` of :func:`~fairsteer.report.measured_gaps`.

        Returns
        -------
        TPRDisplay
            The display, drawn.
        """
        found = measured_gaps(
            y_true, y_pred, sensitive_features=sensitive_features, sample_weight=sample_weight, **params
        )
        return cls(found).plot(ax=ax, intervals=intervals)

    def plot(self, ax: Any = None, *, intervals: bool = True) -> TPRDisplay:
        """Draw the rates.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure, higher the more classes there are.
        intervals : bool, default=True
            Whether to draw the interval of every rate.

        Returns
        -------
        TPRDisplay
            The display itself.
        """
        rates, lower, upper = (np.diagonal(part, axis1=0, axis2=2).T for part in self.measured.rates)  # (K, G)
        K, G = rates.shape
        self.figure_, self.ax_ = _axes(ax, height=1.5 + K * (0.26 if G <= 2 else 0.13 * G))
        colours = _palette(self.ax_)
        known = np.isfinite(rates)
        smallest = np.where(known, rates, np.inf).min(axis=1)
        largest = np.where(known, rates, -np.inf).max(axis=1)
        gap = np.where(known.any(axis=1), largest - smallest, -1)
        order = np.argsort(gap, kind="stable")
        self.classes_ = [self.measured.classes.tolist()[k] for k in order]
        rows = np.arange(K)
        drawn = known.any(axis=1)[order]
        self.bars_ = self.ax_.hlines(
            rows[drawn],
            smallest[order][drawn],
            largest[order][drawn],
            color=_ink("axes.edgecolor"),
            alpha=0.4,
            linewidth=2,
            zorder=1,
        )
        self.points_ = {}
        # Groups lie beside one another, so that none hides another; of two, only the intervals do.
        spread = 0.5 / G if G <= 2 else 0.7 / G
        for a, label in enumerate(self.measured.groups.tolist()):
            colour, marker = colours[a % len(colours)], _MARKERS[a % len(_MARKERS)]
            places = rows - (a - (G - 1) / 2) * spread
            if intervals:
                self.ax_.hlines(
                    places, lower[order, a], upper[order, a], color=colour, alpha=0.5, linewidth=1, zorder=2
                )
            (self.points_[label],) = self.ax_.plot(
                rates[order, a],
                rows if G <= 2 else places,
                marker,
                color=colour,
                label=_name(label),
                markersize=6,
                zorder=3,
            )
        self.ax_.set(
            yticks=rows,
            yticklabels=[_name(label) for label in self.classes_],
            ylim=(-0.6, K - 0.4),
            xlim=(-0.02, 1.02),
            xlabel="true-positive rate",
        )
        _legend(self.ax_)
        return self


class CertificateDisplay:
    """Bounds of the model beside measured gaps, class by class.

    Use `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    labels : sequence of str
        What is bounded, from top to bottom.
    model : sequence of float
        Bounds for the fitted Gaussians.
    measured : sequence of Measured
        Gaps on held-out rows, with intervals.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Of the plot.
    bars_ : matplotlib BarContainer
        Bounds.
    errorbar_ : matplotlib ErrorbarContainer
        Measured gaps with intervals.
    """

    ax_: Any
    figure_: Any
    bars_: Any
    errorbar_: Any

    def __init__(self, labels: Sequence[str], model: Sequence[float], measured: Sequence[Measured]) -> None:
        self.labels = list(labels)
        self.model = list(model)
        self.measured = list(measured)

    @classmethod
    def from_estimator(
        cls,
        transformer: FairSteeringTransformer | SteeringReport,
        X: Any = None,
        y: Any = None,
        *,
        ax: Any = None,
        **params: Any,
    ) -> CertificateDisplay:
        """Measure by cross-validation and draw.

        Parameters
        ----------
        transformer : FairSteeringTransformer or SteeringReport
            Fitted; or a report, which holds all that is needed.
        X, y : array-like
            As for :func:`fairsteer.report.steering_report`.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.
        **params
            Further parameters of :func:`fairsteer.report.steering_report`.

        Returns
        -------
        CertificateDisplay
            The display, drawn.
        """
        report = (
            transformer if isinstance(transformer, SteeringReport) else steering_report(transformer, X, y, **params)
        )
        table = report.tables["certificate"]
        lines = [i for i, group in enumerate(table["group"]) if group is None]
        ends = ("measured", "measured_lower", "measured_upper")
        display = cls(
            ["all classes" if table["class"][i] is None else _name(table["class"][i]) for i in lines],
            [table["model"][i] for i in lines],
            [Measured(*(table[end][i] for end in ends)) for i in lines],
        )
        return display.plot(ax=ax)

    @classmethod
    def from_predictions(
        cls,
        certificate: Certificate,
        y_true: npt.ArrayLike,
        y_pred: npt.ArrayLike,
        *,
        sensitive_features: Any,
        ax: Any = None,
        **params: Any,
    ) -> CertificateDisplay:
        """Measure predictions for held-out rows and draw.

        Parameters
        ----------
        certificate : Certificate
            Of the steering, whose classes are the sorted labels.
        y_true, y_pred : array-like of shape (n_samples,)
            True and predicted labels; the classifier was trained on steered rows, without these.
        sensitive_features : array-like of shape (n_samples,) or (n_samples, n_columns)
            Groups.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.
        **params
            Further parameters of :func:`~fairsteer.report.measured_gaps`.

        Returns
        -------
        CertificateDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the number of classes is not that of the certificate.
        """
        found = measured_gaps(y_true, y_pred, sensitive_features=sensitive_features, **params)
        bounds = [float(x) for x in certificate.equal_opportunity]
        if len(found.classes) != len(bounds):
            msg = f"The labels have {len(found.classes)} classes, the certificate {len(bounds)}."
            raise ValueError(msg)
        measured = [Measured(*(float(part[k]) for part in found.by_class)) for k in range(len(bounds))]
        display = cls(
            [*map(_name, found.classes.tolist()), "all classes"],
            [*bounds, certificate.equalized_odds],
            [*measured, found.equalized_odds],
        )
        return display.plot(ax=ax)

    def plot(self, ax: Any = None) -> CertificateDisplay:
        """Draw bounds and measurement.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure, higher the more classes there are.

        Returns
        -------
        CertificateDisplay
            The display itself.
        """
        n = len(self.labels)
        self.figure_, self.ax_ = _axes(ax, height=1.6 + 0.36 * n)
        colours = _palette(self.ax_)
        rows = np.arange(n)[::-1]
        ink = _ink("axes.edgecolor")
        self.bars_ = self.ax_.barh(
            rows, self.model, height=0.55, color=ink, alpha=0.22, edgecolor=ink, label="model: at most"
        )
        value, error = _bars(self.measured)
        self.errorbar_ = self.ax_.errorbar(
            value, rows, xerr=error, fmt="D", color=colours[1], capsize=3, label="measured on held-out rows"
        )
        self.ax_.set(
            yticks=rows,
            yticklabels=self.labels,
            ylim=(-0.6, n - 0.4),
            xlabel="largest difference between two groups in a prediction rate",
        )
        self.ax_.set_xlim(left=0)
        _legend(self.ax_)
        return self


# ---- shared


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        msg = 'Drawing needs matplotlib: pip install "fairsteer[report]".'
        raise ImportError(msg) from error
    return plt


def _axes(ax: Any, height: float | None = None) -> tuple[Any, Any]:
    if ax is not None:
        return ax.figure, ax
    size = None if height is None else (6.4, max(height, 2.4))
    figure, ax = _pyplot().subplots(figsize=size, layout="constrained")
    return figure, ax


def _palette(ax: Any) -> tuple[str, ...]:
    """Colours that show on the ground of the axes."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(ax.get_facecolor())
    return _ON_LIGHT if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else _ON_DARK


def _ink(what: str) -> Any:
    return _pyplot().rcParams[what]


def _legend(ax: Any) -> None:
    """Above the axes, where it covers nothing."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    columns = next(_columns(labels))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, borderaxespad=0.3)


def _columns(labels: Sequence[str]) -> Iterator[int]:
    """As many columns as the width has room for."""
    for n in range(min(len(labels), 4), 0, -1):
        widest = sum(max(len(text) for text in labels[j::n]) + 9 for j in range(n))
        if widest <= 60 or n == 1:
            yield n


def _bars(measured: Sequence[Measured]) -> tuple[Doubles, Doubles]:
    """Values, and distances to the ends of their intervals, (2, n)."""
    value, lower, upper = np.array([tuple(m) for m in measured], dtype=np.float64).T
    return value, np.maximum([value - lower, upper - value], 0)


def _discriminant(rows: npt.NDArray[Any], classes: npt.NDArray[Any]) -> Doubles:
    """Score of the direction that tells classes apart best; the larger the label, the larger the score on average."""
    rows = np.asarray(rows, dtype=np.float64)
    if len(np.unique(classes)) < 2:
        msg = "There is one class and one group: no direction tells anything apart."
        raise ValueError(msg)
    scores = LinearDiscriminantAnalysis(n_components=1, solver="svd").fit(rows, classes).transform(rows)[:, 0]
    last = classes == np.unique(classes)[-1]
    return np.asarray(scores if scores[last].mean() >= scores[~last].mean() else -scores)


def _check_gap(gap: str) -> None:
    if gap not in GAPS:
        msg = f"gap must be one of {GAPS}, not {gap!r}."
        raise ValueError(msg)


def _gap_name(gap: str) -> str:
    return gap.replace("_", " ")


def _name(label: Any) -> str:
    return ", ".join(map(str, label)) if isinstance(label, tuple) else str(label)
