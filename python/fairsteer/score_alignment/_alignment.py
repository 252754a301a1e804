"""The fitted alignment, apart from the classifier whose scores it maps: plain data, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fairsteer._utils.html import cells_svg, facts_html
from fairsteer._utils.labels import label_text
from fairsteer._utils.types import Codes, Doubles
from fairsteer.groups import GroupEncoder, known_codes
from fairsteer.score_alignment._cells import Constraint, Maps
from fairsteer.score_alignment._scores import Scores, given_scores, without_rounding


class GapBand(NamedTuple):
    """What is known of the gap between every two groups.

    Attributes
    ----------
    classes : ndarray of shape (n_compared,)
        Classes whose rates are compared: the second of two, else all.
    groups : ndarray of shape (n_groups,)
        Group labels.
    rows : ndarray of shape (n_compared, n_groups)
        Rows behind the rate of each class and group; with weights, the effective number (Kish).
    measured : ndarray of shape (n_compared, n_groups, n_groups)
        Gap of each two groups on the rows of the alignment, in [0, 1]; NaN where there are no rows.
    upper : ndarray of shape (n_compared, n_groups, n_groups)
        Bound on the gap on fresh rows, in [0, 1]; NaN where there are no rows.
    """

    classes: npt.NDArray[Any]
    groups: npt.NDArray[Any]
    rows: Doubles
    measured: Doubles
    upper: Doubles

    def __repr__(self) -> str:
        largest = np.nanmax(self.upper) if np.isfinite(self.upper).any() else float("nan")
        return f"<GapBand of {len(self.classes)} classes and {len(self.groups)} groups: gaps up to {largest:.3f}>"


@dataclass(frozen=True, eq=False, repr=False)
class Alignment:
    """Maps from a classifier's scores and a row's group to aligned probabilities.

    ``ScoreAligner.alignment_`` is one. It knows nothing of the classifier, which may be kept, saved or served in any
    other way.

    Attributes
    ----------
    classes : ndarray of shape (n_classes,)
        Class labels.
    groups : ndarray of shape (n_groups,)
        Group labels, tuples if there are several sensitive columns; ``[0]`` if fitted without groups.
    shares : ndarray of shape (n_groups,)
        Share of each group in the weight of the rows of the fit.
    constraint : {"equal_opportunity", "demographic_parity"}
        What is equal between groups.
    response_method : {"predict_proba", "decision_function"}
        What the scores are answers of.
    maps : MonotoneAlignment, OffsetAlignment or None
        The maps of the groups, for two classes and for more; None for one class.
    rows : ndarray of shape (n_compared, n_groups)
        Rows behind the rate of each class and group; with weights, the effective number (Kish).
    rates : ndarray of shape (2, n_compared, n_groups)
        These rates, before and after alignment, on the rows that it was fitted to: how often the class is predicted;
        NaN where there are no rows.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from fairsteer import ScoreAligner
    >>> from fairsteer.datasets import make_biased_groups
    >>> X, y, group = make_biased_groups(2000, random_state=0)
    >>> aligner = ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=group)
    >>> scores = aligner.estimator_.predict_proba(X)
    >>> proba = aligner.alignment_.predict_proba(scores, sensitive_features=group)
    >>> bool((proba == aligner.predict_proba(X, sensitive_features=group)).all())
    True
    """

    classes: npt.NDArray[Any]
    groups: npt.NDArray[Any]
    shares: Doubles
    constraint: Constraint
    response_method: str
    maps: Maps | None
    rows: Doubles
    rates: Doubles

    def __repr__(self) -> str:
        return (
            f"<Alignment of {len(self.classes)} classes and {len(self.groups)} groups: {self.constraint}, "
            f"max_gap={self.max_gap:.3g}>"
        )

    def _repr_html_(self) -> str:
        if self.maps is None:
            return facts_html([("scores", "of one class: there is nothing to align")])
        opportunity, binary = self.constraint == "equal_opportunity", len(self.classes) == 2
        among = " among its own rows" if opportunity else ""
        groups, when = self.groups.tolist(), ("before", "after")
        if binary:
            label = label_text(self.classes.tolist()[1])
            picture = cells_svg(f"How often {label} is predicted{among}", when, groups, self.rates[:, 0])
        else:
            gaps = [[_spread(rates) for rates in of_classes] for of_classes in self.rates]
            title = f"Largest gap in how often a class is predicted{among}"
            picture = cells_svg(title, when, self.classes.tolist(), np.array(gaps))
        largest = [max((_spread(rates) for rates in of_classes), default=float("nan")) for of_classes in self.rates]
        facts = [
            ("aligned for", self.constraint.replace("_", " ")),
            ("gap that may stay", f"{self.max_gap:.3g}"),
            ("largest gap on the rows of the alignment", f"{largest[0]:.3f} before, {largest[1]:.3f} after"),
        ]
        if binary:
            facts.append(("at any threshold", f"{_spread(self.maps.measured):.3f} after"))
        return facts_html(facts) + picture

    @property
    def max_gap(self) -> float:
        """Gap that is kept on the rows of the fit."""
        return 0.0 if self.maps is None else self.maps.budget

    def predict_proba(
        self, scores: Any, *, sensitive_features: Any = None, unknown_group: str = "error"
    ) -> npt.NDArray[np.float64]:
        """Probability of each class after alignment.

        Parameters
        ----------
        scores : array-like of shape (n_samples, n_classes) or (n_samples,)
            What `response_method` of the classifier gives: probabilities of the classes, or the decision function; of
            two classes also the log-odds of the second.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels.
        unknown_group : {"error", "average"}, default="error"
            What happens to a row whose group is missing or not known, as for `ScoreAligner`.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of ``classes``; rows sum to 1.

        Raises
        ------
        ValueError
            If scores are not finite, or no scores of these classes; if groups are needed and not given or not known.
        """
        given = given_scores(scores, self.classes, self.response_method)
        encoder = None
        if len(self.groups) > 1 or sensitive_features is not None:
            encoder = GroupEncoder()
            first = self.groups.tolist()[0]
            encoder.groups_, encoder.column_names_ = self.groups, None
            encoder.n_columns_ = len(first) if isinstance(first, tuple) else 1
        ways_out = "pass sensitive_features=… with a known group in every row, or unknown_group='average'"
        average = unknown_group == "average"
        codes = known_codes(encoder, sensitive_features, given.values, ways_out, infer=average)
        return self.proba(given, codes)

    def proba(self, scores: Scores, group_codes: Codes, group_proba: Doubles | None = None) -> Doubles:
        """Probabilities from checked scores and codes of groups; negative codes get an average over groups.

        Parameters
        ----------
        scores : Scores
            Of n rows: of two classes log-odds or decision function, else probabilities.
        group_codes : ndarray of shape (n,)
            Positions in ``groups``.
        group_proba : ndarray of shape (n_groups,) or (n_unknown, n_groups), default=None
            Weights of the average; None: ``shares``.
        """
        if self.maps is None:
            return np.ones((len(scores.values), 1))
        return aligned_proba(self.maps, scores, group_codes, self.shares if group_proba is None else group_proba)

    def gap_band(self, confidence_level: float = 0.95) -> GapBand:
        """Bound the gaps between groups on fresh rows, as explained in `ScoreAligner.gap_band`.

        Parameters
        ----------
        confidence_level : float in (0, 1), default=0.95
            Probability, over the rows of the alignment, that all bounds hold at once.

        Returns
        -------
        GapBand
            Gaps measured on the rows of the alignment, and bounds for fresh rows.

        Raises
        ------
        ValueError
            If `confidence_level` is out of range.
        """
        if not 0 < confidence_level < 1:
            msg = f"confidence_level must be in (0, 1), got {confidence_level!r}."
            raise ValueError(msg)
        rows, K = self.rows, len(self.classes)
        measured = np.zeros((0, *[len(self.groups)] * 2)) if self.maps is None else self.maps.measured
        ways = 2.0 if K == 2 else (K - 1) * (rows + 1)
        with np.errstate(divide="ignore"):
            radius = np.sqrt(np.log(ways * max((rows > 0).sum(), 1) / (1 - confidence_level)) / (2 * rows))
        upper = np.minimum(measured + radius[:, :, None] + radius[:, None, :], 1)
        same = np.eye(len(self.groups), dtype=bool)
        upper[:, same] = measured[:, same]
        return GapBand(self.classes[1:] if K == 2 else self.classes[: len(rows)], self.groups, rows, measured, upper)


def _spread(values: Doubles) -> float:
    """Largest less smallest of the values that are known."""
    known = values[np.isfinite(values)]
    return float(np.ptp(known)) if known.size else float("nan")


def aligned_proba(maps: Maps, scores: Scores, codes: Codes, group_proba: Doubles) -> Doubles:
    """Probabilities after alignment; where a code is negative, their average over groups.

    Parameters
    ----------
    maps : Maps
        Fitted.
    scores : Scores
        Of n rows, as from ``class_scores``.
    codes : ndarray of shape (n,)
        Groups.
    group_proba : ndarray of shape (n_groups,) or (n_unknown, n_groups)
        Weights of the average, for rows with a negative code.
    """
    proba = maps.proba(scores.values, np.maximum(codes, 0))
    unknown = codes < 0
    if unknown.any():
        proba[unknown] = 0
        for a in range(group_proba.shape[-1]):
            codes_of_a = np.full(int(unknown.sum()), a, dtype=np.intp)
            proba[unknown] += group_proba[..., [a]] * maps.proba(scores.values[unknown], codes_of_a)
    return without_rounding(proba, scores.epsilon)


def class_decision(proba: Doubles) -> Doubles:
    """Log-odds of the second of two classes, else log-probabilities."""
    log_proba = log_zero_allowed(proba)
    return log_proba[:, 1] - log_proba[:, 0] if proba.shape[1] == 2 else log_proba


def log_zero_allowed(proba: Doubles) -> Doubles:
    """Logarithm of probabilities, -inf of 0."""
    with np.errstate(divide="ignore"):
        return np.log(proba)
