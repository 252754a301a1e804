"""Pictures of steering, by scikit-learn's conventions: ``from_estimator``, ``from_predictions``, ``plot(ax=…)``.

They need matplotlib (``pip install "fairsteer[report]"``), take text and grounds from its style, dark ones too, and
tell groups apart by colours that the colour-blind can, and by shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import gaussian_kde
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.utils import check_consistent_length, column_or_1d

from fairsteer._utils.estimators import asked_method
from fairsteer._utils.labels import label_text
from fairsteer._utils.types import Doubles
from fairsteer._utils.weights import check_sample_weight
from fairsteer.groups import GroupEncoder
from fairsteer.plotting._style import AS_IT_IS, LINES, draw_legend, new_axes, palette, theme_colour
from fairsteer.report._held_out import group_params
from fairsteer.score_alignment._scores import class_scores
from fairsteer.transformer import FairSteeringTransformer


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
    >>> from fairsteer import FairSteeringTransformer
    >>> from fairsteer.datasets import make_biased_groups
    >>> from fairsteer.plotting import GroupScoreDisplay
    >>> X, y, group = make_biased_groups(500, random_state=0)
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
            classes = np.asarray(estimator.classes_)
            if len(classes) != 2:
                msg = f"A score needs two classes, not {len(classes)}. Draw TPRDisplay, or the steering's discriminant."
                raise ValueError(msg)
            params = group_params(estimator, asked_method(estimator), sensitive_features)
            scores = class_scores(estimator, X, classes, params).values
            return cls.from_predictions(
                scores,
                sensitive_features=sensitive_features,
                sample_weight=sample_weight,
                score_name=f"score of class {label_text(classes[1])}",
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
        self.figure_, self.ax_ = new_axes(ax)
        self.lines_ = {}
        colours = palette(self.ax_)
        everything = np.concatenate(list(self.scores.values()))
        everything = everything[np.isfinite(everything)]
        low, high = np.quantile(everything, [0.001, 0.999])
        margin = 0.1 * (high - low) or 1.0
        grid = np.linspace(low - margin, high + margin, 400)
        tallest = 0.0
        for (when, values), sign in zip(self.scores.items(), (1, -1), strict=False):
            for a, label in enumerate(self.group_labels):
                density = sign * self._density(values, a, grid)
                colour, style = colours[a % len(colours)], LINES[a // 3 % len(LINES)]
                if len(self.group_labels) <= 3:  # of more, the shades would add up to one
                    self.ax_.fill_between(grid, density, color=colour, alpha=0.15, linewidth=0)
                (self.lines_[when, label],) = self.ax_.plot(
                    grid, density, style, color=colour, label=label_text(label) if sign == 1 else None
                )
                tallest = max(tallest, float(np.abs(density).max(initial=0.0)))
        tallest = tallest or 1.0
        if len(self.scores) == 2:
            self.ax_.axhline(0, color=theme_colour("axes.edgecolor"), linewidth=0.8)
            for when, y, align in zip(self.scores, (1.12, -1.12), ("top", "bottom"), strict=True):
                self.ax_.text(
                    0.02,
                    y * tallest,
                    label_text(when),
                    transform=self.ax_.get_yaxis_transform(),
                    va=align,
                    style="italic",
                    **AS_IT_IS,
                )
        self.ax_.set(
            ylabel="density",
            yticks=[],
            xlim=(grid[0], grid[-1]),
            ylim=(-1.15 * tallest if len(self.scores) == 2 else 0, 1.15 * tallest),
        )
        self.ax_.set_xlabel(self.score_name, **AS_IT_IS)
        first = next(iter(self.scores))
        draw_legend(self.ax_, [(self.lines_[first, label], label_text(label)) for label in self.group_labels])
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


def _discriminant(rows: npt.NDArray[Any], classes: npt.NDArray[Any]) -> Doubles:
    """Score of the direction that tells classes apart best; the larger the label, the larger the score on average."""
    rows = np.asarray(rows, dtype=np.float64)
    if len(np.unique(classes)) < 2:
        msg = "There is one class and one group: no direction tells anything apart."
        raise ValueError(msg)
    scores = LinearDiscriminantAnalysis(n_components=1, solver="svd").fit(rows, classes).transform(rows)[:, 0]
    last = classes == np.unique(classes)[-1]
    return np.asarray(scores if scores[last].mean() >= scores[~last].mean() else -scores)
