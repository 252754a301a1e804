"""Accuracy against a gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fairsteer._utils.types import Doubles
from fairsteer.metrics._intervals import Measured, measured_gaps
from fairsteer.metrics._rates import CRITERIA
from fairsteer.plotting._style import error_bars, new_axes, palette
from fairsteer.report._held_out import measure_strengths
from fairsteer.transformer import FairSteeringTransformer


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
        gap : str, default="equal_opportunity"
            Which gap: a name in :func:`fairsteer.metrics.gaps`.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.
        **params
            `pos_label`, `min_rows`, `confidence_level`, `n_resamples` and `random_state` of
            :func:`~fairsteer.report.measured_gaps`.

        Returns
        -------
        TradeOffDisplay
            The display, drawn.
        """
        check_gap(gap)
        strengths = sorted(set(strengths))
        found = measure_strengths(
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
        display = cls(strengths, [m.accuracy for m in found], [getattr(m, gap) for m in found], gap_name=gap_name(gap))
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
        gap : str, default="equal_opportunity"
            Which gap: a name in :func:`fairsteer.metrics.gaps`.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.
        **params
            Further parameters of :func:`~fairsteer.report.measured_gaps`.

        Returns
        -------
        TradeOffDisplay
            The display, drawn.
        """
        check_gap(gap)
        strengths = sorted(y_preds)
        params = {"interval": "bootstrap", **params}
        found = [measured_gaps(y_true, y_preds[s], sensitive_features=sensitive_features, **params) for s in strengths]
        display = cls(strengths, [m.accuracy for m in found], [getattr(m, gap) for m in found], gap_name=gap_name(gap))
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
        self.figure_, self.ax_ = new_axes(ax)
        colour = palette(self.ax_)[0]
        x, x_error = error_bars(self.gap)
        y, y_error = error_bars(self.accuracy)
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


def check_gap(gap: str) -> None:
    if gap not in CRITERIA:
        msg = f"gap must be one of {', '.join(map(repr, CRITERIA))}, not {gap!r}."
        raise ValueError(msg)


def gap_name(gap: str) -> str:
    return gap.replace("_", " ")
