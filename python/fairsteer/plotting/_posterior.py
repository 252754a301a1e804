"""The groups' laws of the posterior, before and after, and the maps between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from fairsteer._utils.labels import label_text
from fairsteer._utils.types import Doubles
from fairsteer.classifier import IdealPosteriorClassifier
from fairsteer.ideal import IdealOfRows, IdealPosterior
from fairsteer.plotting._style import LINES, MARKERS, draw_legend, import_pyplot, palette, theme_colour


class IdealPosteriorDisplay:
    """Laws of the posterior by group, as they are and on the nearest ideal distribution, and the maps ``h_a``.

    Use `from_estimator` to make one.

    Parameters
    ----------
    ideal : IdealPosterior or IdealPosteriorCells
        What is drawn: of two classes the second's posterior, of more every class's.
    classes : sequence of labels, default=None
        Names of the classes; None: their positions.

    Attributes
    ----------
    axes_ : ndarray of 2 matplotlib Axes, or of shape (n_classes, 2)
        Distribution functions, and maps.
    figure_ : matplotlib Figure
        Figure of the plot.
    lines_ : dict of (str, label) to matplotlib Line2D
        Lines, by ``"before"``, ``"after"`` and ``"map"`` and group, and class if there are more than two.

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
    lines_: dict[Any, Any]

    def __init__(self, ideal: IdealOfRows, *, classes: Sequence[Any] | None = None) -> None:
        self.ideal = ideal
        self.classes = classes

    @classmethod
    def from_estimator(cls, classifier: IdealPosteriorClassifier, *, axes: Any = None) -> IdealPosteriorDisplay:
        """Draw what a classifier has found.

        Parameters
        ----------
        classifier : IdealPosteriorClassifier
            Fitted, with two classes or more.
        axes : sequence of 2 matplotlib Axes, or of shape (n_classes, 2) if there are more than 2, default=None
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
        return cls(classifier.ideal_, classes=classifier.classes_.tolist()).plot(axes=axes)

    def plot(self, *, axes: Any = None) -> IdealPosteriorDisplay:
        """Draw.

        Parameters
        ----------
        axes : sequence of 2 matplotlib Axes, or of shape (n_classes, 2) if there are more than 2, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        IdealPosteriorDisplay
            The display itself.
        """
        ideal, n_classes = self.ideal, len(self.ideal.class_rates)
        shown = [1] if n_classes == 2 else list(range(n_classes))
        if axes is None:
            size = (9.6, 1 + 3.4 * len(shown))
            _, axes = import_pyplot().subplots(len(shown), 2, figsize=size, layout="constrained")
        self.axes_ = np.asarray(axes)
        pairs = self.axes_.reshape(len(shown), 2)
        self.figure_ = pairs[0, 0].figure
        self.lines_ = {}
        for k, (laws, maps) in zip(shown, pairs, strict=True):
            self._draw(k, laws, maps, "posterior" if n_classes == 2 else f"posterior of class {self._text(k)}")
        lines = [(self.lines_[self._key("map", group, shown[0])], label_text(group)) for group in ideal.groups.tolist()]
        draw_legend(pairs[0, 1], lines)
        return self

    def _draw(self, k: int, laws: Any, maps: Any, what: str) -> None:
        """Laws of a class's posterior, and what it becomes: a rising function of two classes, else a point a cell."""
        ideal, colours = self.ideal, palette(laws)
        for a, (group, of_class) in enumerate(ideal.class_laws(k).items()):
            style = {"color": colours[a % len(colours)]}
            before = laws.step(*_distribution(*of_class[:2]), where="post", linestyle=":", **style)
            after = laws.step(*_distribution(*of_class[2:]), where="post", linestyle=LINES[a % 2], **style)
            if isinstance(ideal, IdealPosterior):
                line = maps.plot(*ideal.h[group], linestyle=LINES[a % len(LINES)], **style)
            else:
                own, becomes = ideal.h[group]
                line = maps.plot(own[:, k], becomes[:, k], MARKERS[a % len(MARKERS)], markersize=4, alpha=0.7, **style)
            for name, artists in (("before", before), ("after", after), ("map", line)):
                self.lines_[self._key(name, group, k)] = artists[0]
        maps.plot([0, 1], [0, 1], color=theme_colour("axes.edgecolor"), linewidth=0.8, zorder=0)
        laws.set(xlim=(0, 1), ylim=(0, 1), xlabel=what, ylabel="share of the group below (dotted: before)")
        maps.set(xlim=(0, 1), ylim=(0, 1), xlabel=what, ylabel="ideal posterior")

    def _key(self, what: str, group: Any, k: int) -> Any:
        return (what, group) if isinstance(self.ideal, IdealPosterior) else (what, group, self._label(k))

    def _label(self, k: int) -> Any:
        return k if self.classes is None else self.classes[k]

    def _text(self, k: int) -> str:
        return label_text(self._label(k))


def _distribution(values: Doubles, mass: Doubles) -> tuple[Doubles, Doubles]:
    """Points of a distribution function."""
    order = np.argsort(values, kind="stable")
    return values[order], np.cumsum(mass[order]) / mass.sum()
