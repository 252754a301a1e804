"""Bounds of the model beside measured gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fairsteer._utils.labels import label_text
from fairsteer.ideal import Certificate
from fairsteer.metrics._intervals import Measured, measured_gaps
from fairsteer.plotting._style import draw_legend, error_bars, name_rows, new_axes, palette, theme_colour
from fairsteer.report import SteeringReport, steering_report


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
        transformer: Any,
        X: Any = None,
        y: Any = None,
        *,
        ax: Any = None,
        **params: Any,
    ) -> CertificateDisplay:
        """Measure by cross-validation and draw.

        Parameters
        ----------
        transformer : FairSteeringTransformer, classifier or pipeline with one, or SteeringReport
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

        Raises
        ------
        ValueError
            If there is no steering in what is reported on; as :func:`fairsteer.report.steering_report` raises.
        """
        report = (
            transformer if isinstance(transformer, SteeringReport) else steering_report(transformer, X, y, **params)
        )
        if "certificate" not in report.tables:
            msg = "There is no steering in what the report is about, so there are no bounds to draw."
            raise ValueError(msg)
        table = report.tables["certificate"]
        lines = [i for i, group in enumerate(table["group"]) if group is None]
        ends = ("measured", "measured_lower", "measured_upper")
        display = cls(
            ["all classes" if table["class"][i] is None else label_text(table["class"][i]) for i in lines],
            [table["certificate"][i] for i in lines],
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
            [*map(label_text, found.classes.tolist()), "all classes"],
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
        self.figure_, self.ax_ = new_axes(ax, height=1.6 + 0.36 * n)
        colours = palette(self.ax_)
        rows = np.arange(n)[::-1]
        ink = theme_colour("axes.edgecolor")
        self.bars_ = self.ax_.barh(
            rows, self.model, height=0.55, color=ink, alpha=0.22, edgecolor=ink, label="model: at most"
        )
        value, error = error_bars(self.measured)
        self.errorbar_ = self.ax_.errorbar(
            value, rows, xerr=error, fmt="D", color=colours[1], capsize=3, label="measured on held-out rows"
        )
        name_rows(self.ax_, rows, self.labels)
        self.ax_.set(
            ylim=(-0.6, n - 0.4),
            xlabel="largest difference between two groups in a prediction rate",
        )
        self.ax_.set_xlim(left=0)
        draw_legend(self.ax_, [(artist, artist.get_label()) for artist in (self.bars_, self.errorbar_)])
        return self
