"""Classifiers before and after steering on the same held-out rows: the numbers behind the table of ``steer``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from fairsteer.classifier import IdealDistributionClassifier
from fairsteer.metrics._intervals import Measured, MeasuredGaps
from fairsteer.report._held_out import (
    HeldOut,
    Method,
    Prepare,
    codes_in,
    default_classifier,
    predict_held_out,
    read_rows,
)
from fairsteer.report._tables import movement_table
from fairsteer.transformer import FairSteeringTransformer

from ._options import Alignment

__all__ = ["Comparison", "Contest", "compare"]

_LEVEL, _RESAMPLES, _SEED = 0.95, 1000, 0

# By the gap that is to be closed.
_NEAREST_ALIGNMENT: dict[str, Alignment] = {"demographic_parity": "demographic_parity"}

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Classifiers on the same held-out rows.

    Attributes
    ----------
    n_rows, n_folds : int
        Rows that were held out in one of the folds, and folds.
    min_rows : int
        A rate of a group that has fewer rows to compute it from takes no part in the gaps.
    pos_label : label
        The positive class; None if every class counts.
    scores : dict of str to MeasuredGaps
        What was measured of each classifier: ``"before"`` and ``"steered"``, logistic regression on the features as
        they are and on the steered features; ``"Bayes"``, the Bayes rule of the ideal distribution, if the constraint
        is that; ``"aligned"``, the last of these with aligned scores, unless there are too few rows for it and nobody
        asked.
    change : dict of str to Measured
        From ``"before"`` to ``"steered"``.
    rows : ndarray of shape (n_classes, n_groups)
        Rows of every class and group.
    displacement : list of (label, float)
        How far the rows of every group move, in standard deviations: root mean square over rows and features.
    alignment : {"equal_opportunity", "demographic_parity"}
        What the aligned scores have in common.
    criterion : {"equalized_odds", "equal_opportunity", "demographic_parity"}
        The gap that was to be closed.
    confidence_level : float
        Level of the intervals.
    """

    n_rows: int
    n_folds: int
    min_rows: int
    pos_label: Any
    scores: dict[str, MeasuredGaps]
    change: dict[str, Measured]
    rows: Doubles
    displacement: list[tuple[Any, float]]
    alignment: Alignment
    criterion: str
    confidence_level: float = _LEVEL

    @property
    def choice(self) -> str:
        """Name of the classifier to take: of those within a standard error of the smallest gap the most accurate.

        Ties go to the one that comes first, which changes less.
        """
        gaps = {name: scores.measures[self.criterion] for name, scores in self.scores.items()}
        known = {name: gap for name, gap in gaps.items() if not np.isnan(gap.value)}
        if not known:
            return "before"
        least = min(known.values(), key=lambda gap: float(gap.value))
        error = (least.upper - least.lower) / (2 * norm.ppf((1 + self.confidence_level) / 2))
        as_good = [name for name, gap in known.items() if gap.value <= least.value + error]
        return max(as_good, key=lambda name: float(self.scores[name].measures["accuracy"].value))

    @property
    def groups(self) -> list[Any]:
        """Group labels."""
        groups: list[Any] = self.scores["before"].groups.tolist()
        return groups

    @property
    def small(self) -> list[Any]:
        """Groups with too few rows of some class for the gaps."""
        return [label for label, least in zip(self.groups, self.rows.min(axis=0), strict=True) if least < self.min_rows]

    def group_rates(self, which: str) -> dict[str, Doubles]:
        """Rates of every group: how often the positive class is predicted and recognised, or the accuracy."""
        rates = np.nan_to_num(self.scores[which].rates.value)
        with np.errstate(invalid="ignore"):
            if self.pos_label is None:
                right = np.einsum("kak,ka->a", rates, self.rows)
                return {"accuracy": right / self.rows.sum(axis=0)}
            selected = (rates[:, :, -1] * self.rows).sum(axis=0) / self.rows.sum(axis=0)
            return {"selected": selected, "TPR": self.scores[which].rates.value[-1, :, -1]}


@dataclass(frozen=True)
class Contest:
    """Classifiers that are to be compared.

    Attributes
    ----------
    steering : FairSteeringTransformer
        Fitted on the rows.
    methods : dict of str to Method or classifier
        The classifiers by name.
    optional : tuple of str
        Those that are left out where folds have too few rows for them.
    alignment, criterion : str
        As those of `Comparison`.
    """

    steering: FairSteeringTransformer
    methods: dict[str, Any]
    optional: tuple[str, ...]
    alignment: Alignment
    criterion: str

    @classmethod
    def of(
        cls,
        fitted: FairSteeringTransformer | IdealDistributionClassifier,
        alignment: Alignment | None = None,
        *,
        aligns: bool = True,
    ) -> Contest:
        """Say what is compared with a steering.

        Parameters
        ----------
        fitted : FairSteeringTransformer or IdealDistributionClassifier
            The steering, or the Bayes rule with aligned scores that holds it.
        alignment : {"equal_opportunity", "demographic_parity"}, optional
            What aligned scores are to have in common. By default what the steering's `constraint` says, else equal
            opportunity.
        aligns : bool, default=True
            Whether scores are aligned though nobody asked.
        """
        model = default_classifier()
        steering = fitted if isinstance(fitted, FairSteeringTransformer) else fitted.steering_
        methods: dict[str, Any] = {"before": Method(None, model), "steered": Method(steering, model)}
        has_rule = steering.constraint == "ideal"  # else there is no ideal distribution of all classes
        if has_rule:
            methods["Bayes"] = Method(steering)
        criterion = alignment or {"ideal": "equalized_odds"}.get(steering.constraint, steering.constraint)
        # Scores are aligned on folds of folds, and some class or group may have too few rows for these.
        optional = ("aligned",) if alignment is None else ()
        if isinstance(fitted, IdealDistributionClassifier):
            methods["aligned"] = fitted
        elif alignment is not None or aligns:
            nearest = alignment or _NEAREST_ALIGNMENT.get(criterion, "equal_opportunity")
            rule = None if has_rule else model
            methods["aligned"] = IdealDistributionClassifier(rule, steering, score_alignment=nearest)
        alignment = alignment or _NEAREST_ALIGNMENT.get(criterion, "equal_opportunity")
        return cls(steering, methods, optional, alignment, criterion)

    def result(
        self,
        held_out: HeldOut,
        X: Any,
        y: NDArray[Any],
        groups: Any,
        *,
        pos_label: Any,
        min_rows: int,
        confidence_level: float = _LEVEL,
    ) -> Comparison:
        """Measure what was predicted.

        Parameters
        ----------
        held_out : HeldOut
            Predictions of `methods`.
        X, y, groups, pos_label, min_rows
            As for `compare`.
        confidence_level : float, default=0.95
            Level of the intervals.
        """
        names = [name for name in self.methods if name in held_out.y_pred]
        predicted = held_out.rows(*names, pos_label=pos_label)
        binary = len(predicted.classes) == 2
        if binary and pos_label is None:
            pos_label = predicted.classes.tolist()[-1]
        how: tuple[Any, ...] = (confidence_level, "bootstrap", min_rows, _RESAMPLES, _SEED)
        return Comparison(
            n_rows=len(predicted.true),
            n_folds=len(held_out.trials),
            min_rows=min_rows,
            pos_label=pos_label if binary else None,
            scores={name: predicted.measure(c, *how) for c, name in enumerate(names)},
            change=predicted.changes(confidence_level, min_rows, _RESAMPLES, _SEED),
            rows=predicted.sizes().T,
            displacement=_displacement(self.steering, X, y, groups),
            alignment=self.alignment,
            criterion=self.criterion,
            confidence_level=confidence_level,
        )


def compare(
    steering: FairSteeringTransformer,
    X: Any,
    y: NDArray[Any],
    groups: Any,
    *,
    pos_label: Any,
    folds: int,
    min_rows: int,
    alignment: Alignment | None = None,
    aligns: bool = True,
    prepare: Prepare | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Predict every row by classifiers fitted on the rows of the other folds.

    Steering, folds, classifiers and gaps are those of `fairsteer.report.steering_report`.

    Parameters
    ----------
    steering : FairSteeringTransformer
        Fitted on the rows.
    X : DataFrame of shape (n_rows, n_features)
        Features.
    y : ndarray of shape (n_rows,)
        Classes.
    groups : DataFrame of shape (n_rows, n_columns)
        Groups.
    pos_label : label or None
        Positive class; None: the larger of two.
    folds : int
        Folds.
    min_rows : int
        Rows that a rate needs to take part in a gap.
    alignment, aligns
        As for `Contest.of`.
    prepare : callable, optional
        Features of all rows, from the rows that a fold may learn from.
    advance : callable
        Called with 1 after every fold.

    Returns
    -------
    Comparison
    """
    contest = Contest.of(steering, alignment, aligns=aligns)
    held_out = predict_held_out(
        contest.methods,
        X,
        y,
        sensitive_features=groups,
        cv=folds,
        prepare=prepare,
        advance=advance,
        optional=contest.optional,
        keep=False,
    )
    return contest.result(held_out, X, y, groups, pos_label=pos_label, min_rows=min_rows)


def _displacement(steering: FairSteeringTransformer, X: Any, y: NDArray[Any], groups: Any) -> list[tuple[Any, float]]:
    rows = read_rows({}, X, y, groups, None, known=steering)
    assert rows.values is not None
    codes = codes_in(steering, rows)
    moved = steering._move(rows.values, codes, steering._group_maps(steering._strength()))
    per_group, _ = movement_table(steering, rows.values, moved, codes, rows.weight)
    return list(zip(steering.groups_.tolist(), per_group.tolist(), strict=True))
