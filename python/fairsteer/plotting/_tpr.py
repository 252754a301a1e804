"""True-positive rates by class and group."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fairsteer._utils.labels import label_text
from fairsteer.metrics._intervals import MeasuredGaps, measured_gaps
from fairsteer.plotting._style import MARKERS, draw_legend, name_rows, new_axes, palette, theme_colour
from fairsteer.report._held_out import group_params


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
        predicted = estimator.predict(X, **group_params(estimator, "predict", sensitive_features))
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
            `labels` and `confidence_level` of :func:`~fairsteer.report.measured_gaps`.

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
        self.figure_, self.ax_ = new_axes(ax, height=1.5 + K * (0.26 if G <= 2 else 0.13 * G))
        colours = palette(self.ax_)
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
            color=theme_colour("axes.edgecolor"),
            alpha=0.4,
            linewidth=2,
            zorder=1,
        )
        self.points_ = {}
        # Groups lie beside one another, so that none hides another; of two, only the intervals do.
        spread = 0.5 / G if G <= 2 else 0.7 / G
        for a, label in enumerate(self.measured.groups.tolist()):
            colour, marker = colours[a % len(colours)], MARKERS[a % len(MARKERS)]
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
                label=label_text(label),
                markersize=6,
                zorder=3,
            )
        name_rows(self.ax_, rows, [label_text(label) for label in self.classes_])
        self.ax_.set(
            ylim=(-0.6, K - 0.4),
            xlim=(-0.02, 1.02),
            xlabel="true-positive rate",
        )
        draw_legend(self.ax_, [(points, label_text(label)) for label, points in self.points_.items()])
        return self
