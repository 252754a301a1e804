"""The groups' laws of the posterior, before and after, and the maps between them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.utils.validation import check_is_fitted

from fairsteer._utils.labels import label_text
from fairsteer.ideal import IdealPosterior
from fairsteer.plotting._style import LINES, draw_legend, import_pyplot, palette, theme_colour
from fairsteer.posterior_classifier import IdealPosteriorClassifier


class IdealPosteriorDisplay:
    """Laws of the posterior by group, as they are and on the nearest ideal distribution, and the maps ``h_a``.

    Use `from_estimator` to make one.

    Parameters
    ----------
    ideal : IdealPosterior
        What is drawn.

    Attributes
    ----------
    axes_ : ndarray of 2 matplotlib Axes
        Distribution functions, and maps.
    figure_ : matplotlib Figure
        Figure of the plot.
    lines_ : dict of (str, label) to matplotlib Line2D
        Lines, by ``"before"``, ``"after"`` and ``"map"`` and group.

    Examples
    --------
    >>> import numpy as np
    >>> from fairsteer import nearest_ideal_posterior
    >>> from fairsteer.plotting import IdealPosteriorDisplay
    >>> group = np.repeat([0, 1], 500)
    >>> posterior = np.random.default_rng(0).beta(2 + group, 2)
    >>> display = IdealPosteriorDisplay(nearest_ideal_posterior(posterior, group)).plot()
    >>> len(display.lines_)
    6
    """

    axes_: Any
    figure_: Any
    lines_: dict[tuple[str, Any], Any]

    def __init__(self, ideal: IdealPosterior) -> None:
        self.ideal = ideal

    @classmethod
    def from_estimator(cls, classifier: IdealPosteriorClassifier, *, axes: Any = None) -> IdealPosteriorDisplay:
        """Draw what a classifier has found.

        Parameters
        ----------
        classifier : IdealPosteriorClassifier
            Fitted, with two classes.
        axes : sequence of 2 matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        IdealPosteriorDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there is one class, and no ideal distribution.
        """
        check_is_fitted(classifier, "estimator_")
        if classifier.ideal_ is None:
            msg = "The classifier knows one class, whose posterior has nothing to draw."
            raise ValueError(msg)
        return cls(classifier.ideal_).plot(axes=axes)

    def plot(self, *, axes: Any = None) -> IdealPosteriorDisplay:
        """Draw.

        Parameters
        ----------
        axes : sequence of 2 matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        IdealPosteriorDisplay
            The display itself.
        """
        if axes is None:
            _, axes = import_pyplot().subplots(1, 2, figsize=(9.6, 4.4), layout="constrained")
        self.axes_ = np.asarray(axes)
        laws, maps = self.axes_
        self.figure_ = laws.figure
        self.lines_ = {}
        ideal, colours = self.ideal, palette(laws)
        after_laws = ideal.ideal_laws
        for a, group in enumerate(ideal.groups.tolist()):
            style = {"color": colours[a % len(colours)]}
            own = ideal.laws[a] > 0
            s, t = expit(ideal.logits[own]), expit(ideal.ideal_logits[a, own])
            before = laws.step(s, np.cumsum(ideal.laws[a, own]), where="post", linestyle=":", **style)
            after = laws.step(t, np.cumsum(after_laws[a, own]), where="post", linestyle=LINES[a % 2], **style)
            line = maps.plot(s, t, linestyle=LINES[a % len(LINES)], **style)
            for what, artists in (("before", before), ("after", after), ("map", line)):
                self.lines_[what, group] = artists[0]
        maps.plot([0, 1], [0, 1], color=theme_colour("axes.edgecolor"), linewidth=0.8, zorder=0)
        laws.set(xlim=(0, 1), ylim=(0, 1), xlabel="posterior", ylabel="share of the group below (dotted: before)")
        maps.set(xlim=(0, 1), ylim=(0, 1), xlabel="posterior", ylabel="ideal posterior")
        draw_legend(maps, [(self.lines_["map", group], label_text(group)) for group in ideal.groups.tolist()])
        return self
