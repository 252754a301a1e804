"""How one row moves, which features carry it, and how it would move in another group."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from fairsteer._utils.estimators import unfrozen
from fairsteer._utils.input import few
from fairsteer._utils.labels import label_text
from fairsteer._utils.types import Codes, Doubles, Floats
from fairsteer.classifier import IdealDistributionClassifier
from fairsteer.report._held_out import fitted_steering
from fairsteer.report._tables import Table
from fairsteer.transformer import FairSteeringTransformer

# Features and groups that are named in words; the tables have all.
_MOST_NAMED = 3
# Below this many standard deviations a row stays where it is.
_NOTHING = 5e-4


@dataclass(frozen=True, repr=False)
class RowExplanation:
    """How one row moves; returned by `explain_row`.

    ``print(explanation)`` says it in words.

    Attributes
    ----------
    group : label or None
        Group of the row; None if it is not known.
    strength : float
        Strength of the steering.
    moved_by : float
        Root mean square over features, in standard deviations of the feature in the group.
    features : dict of str to list
        ``feature``, its value ``before`` and ``after``, the ``change`` in standard deviations of the feature in the
        group, and its ``share`` of the squared movement; what carries most comes first.
    groups : dict of str to list
        What would happen to a row of the same features in every ``group``: ``moved_by``, and under the names
        ``probability of …`` of every class what the classifier gives it; ``own`` marks the group it is of.
    before : dict
        Probability of every class before steering, by label; empty without a classifier.
    sentences : list of str
        All that in words.
    """

    group: Any
    strength: float
    moved_by: float
    features: Table
    groups: Table
    before: dict[Any, float]
    sentences: list[str]

    def __str__(self) -> str:
        return "\n".join(self.sentences)

    def __repr__(self) -> str:
        group = "group not known" if self.group is None else f"group {label_text(self.group)}"
        return f"<RowExplanation: {group}, moves by {self.moved_by:.3f} standard deviations>"

    def to_frame(self, table: str = "features") -> Any:
        """Give one of the tables as a pandas DataFrame.

        Parameters
        ----------
        table : {"features", "groups"}, default="features"
            Which.

        Returns
        -------
        DataFrame
            Numbers as they are, not rounded.
        """
        import pandas as pd

        tables = {"features": self.features, "groups": self.groups}
        if table not in tables:
            msg = f"There is no table {table!r}; there are 'features' and 'groups'."
            raise ValueError(msg)
        return pd.DataFrame({name: pd.Series(x) for name, x in tables[table].items()})


def explain_row(fitted: Any, X: Any, *, sensitive_features: Any = None, row: int = 0) -> RowExplanation:
    """Explain how a fitted steering moves one row.

    Parameters
    ----------
    fitted : FairSteeringTransformer, IdealDistributionClassifier or IdealDistributionClassifierCV
        Fitted. A classifier says as well what it makes of the row; for a transformer whose `constraint` is ``"ideal"``
        the Bayes rule of the ideal distribution does.
    X : array-like or dataframe of shape (n_samples, n_features)
        Rows, in the columns of ``fit``.
    sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
        Their groups, unless the steering has `sensitive_columns`.
    row : int, default=0
        Position of the row in `X`; negative ones count from the end.

    Returns
    -------
    RowExplanation
        In words and as tables.

    Raises
    ------
    TypeError
        If `fitted` does not steer, or `row` is no integer.
    IndexError
        If there is no such row.
    sklearn.exceptions.NotFittedError
        If it is not fitted.

    Notes
    -----
    "In another group" exchanges the map and nothing else: what more would differ if the row were of that group is not
    known, and the sentences say so.

    Examples
    --------
    >>> from fairsteer import FairSteeringTransformer
    >>> from fairsteer.datasets import make_biased_groups
    >>> from fairsteer.report import explain_row
    >>> X, y, group = make_biased_groups(1000, 2, random_state=0)
    >>> steer = FairSteeringTransformer(map_type="translation").fit(X, y, sensitive_features=group)
    >>> explanation = explain_row(steer, X, sensitive_features=group, row=3)
    >>> explanation.features["feature"][0]
    'x1'
    """
    estimator = unfrozen(fitted)
    check_is_fitted(estimator)
    steering = fitted_steering(estimator)
    if steering is None:
        msg = f"explain_row takes what steers, such as a FairSteeringTransformer, not {type(estimator).__name__}."
        raise TypeError(msg)
    row = operator.index(row)  # raises for what is none
    rows, codes = steering._read_rows_and_codes(X, sensitive_features)
    if not -len(rows) <= row < len(rows):
        msg = f"row={row} is none of the {len(rows)} rows of X."
        raise IndexError(msg)
    place = row % len(rows)
    return _explain(steering, _rule_of(estimator, steering), rows[place : place + 1], codes[place : place + 1])


def _rule_of(estimator: Any, steering: FairSteeringTransformer) -> IdealDistributionClassifier | None:
    """Classifier that says what becomes of a row; None if there is none with probabilities."""
    rule = getattr(estimator, "best_estimator_", estimator)
    if isinstance(rule, FairSteeringTransformer):
        rule = IdealDistributionClassifier.of_steering(steering) if steering.constraint == "ideal" else None
    return rule if rule is not None and hasattr(rule, "predict_proba") else None


def _explain(
    steering: FairSteeringTransformer, rule: IdealDistributionClassifier | None, row: Floats, code: Codes
) -> RowExplanation:
    groups, strength = steering.groups_.tolist(), steering._strength()
    maps = steering._group_maps(strength)
    own = int(code[0])
    # The row in every group, and first as it is.
    places = np.array([own, *range(len(groups))], dtype=np.intp)
    before = np.repeat(row, len(places), axis=0)
    after = steering._move(before, places, maps)
    unit = _spread(steering, before.shape[1])[places]
    change = (after.astype(np.float64) - before) / unit
    moved = np.sqrt(np.nanmean(np.where(np.isfinite(change), change**2, np.nan), axis=1))
    moved = np.nan_to_num(moved)
    proba = None if rule is None else rule._proba(before, places)
    classes = [] if rule is None else rule.classes_.tolist()
    now = {}
    if proba is not None and rule is not None and rule.estimator_ is None and rule._alignment is None:
        plain = IdealDistributionClassifier.of_steering(steering, 0.0)._proba(row, code)
        now = dict(zip(classes, map(float, plain[0]), strict=True))
    squared = np.nan_to_num(change[0] ** 2)
    share = squared / squared.sum() if squared.sum() > 0 else np.zeros(len(squared))
    order = np.argsort(-squared, kind="stable")
    names = [str(name) for name in steering._feature_names()]
    features: Table = {
        "feature": [names[j] for j in order],
        "before": [float(row[0, j]) for j in order],
        "after": [float(after[0, j]) for j in order],
        "change": [float(change[0, j]) for j in order],
        "share": [float(share[j]) for j in order],
    }
    of_groups: Table = {
        "group": groups,
        "own": [a == own for a in range(len(groups))],
        "moved_by": [float(x) for x in moved[1:]],
    }
    if proba is not None:
        for k, label in enumerate(classes):
            of_groups[f"probability of {label_text(label)}"] = [float(p) for p in proba[1:, k]]
    group = groups[own] if own >= 0 else None
    sentences = [
        *_movement(group, strength, float(moved[0]), features),
        *_classification(classes, now, None if proba is None else proba[0]),
        *_elsewhere(of_groups, after[1:], names, change[1:], classes, proba),
    ]
    return RowExplanation(group, strength, float(moved[0]), features, of_groups, now, sentences)


def _spread(steering: FairSteeringTransformer, d: int) -> Doubles:
    """Give the standard deviation of every feature in every group, and last of an unknown one: (n_groups + 1, d).

    From the fitted moments, in the units of the features; 1 where these are not the features of the moments.
    """
    model = steering._fitted().model
    if model.n_features != d:
        return np.ones((len(steering.groups_) + 1, d))
    K, G = model.weights.shape
    share = model.weights / model.weights.sum(axis=0)
    variance = np.broadcast_to(model.model.variances(model.covariances), (K, G, d))
    mean = np.einsum("ka,kaj->aj", share, model.means)
    total = np.einsum("ka,kaj->aj", share, variance + (model.means - mean) ** 2)
    spread = np.sqrt(np.vstack([total, np.average(total, axis=0, weights=model.weights.sum(axis=0))]))
    # Of coordinates that are a scaling: a step of one unit there.
    unit: Doubles = spread
    if steering.feature_transform_ is not None:
        zero, one = (steering.feature_transform_.inverse_transform(x) for x in (np.zeros((1, d)), np.eye(d)))
        unit = spread * np.abs(np.diagonal(np.asarray(one) - np.asarray(zero)))
    return np.where(unit > 0, unit, np.nan)


# ---- in words


def _movement(group: Any, strength: float, moved: float, features: Table) -> list[str]:
    who = "The group of the row is not known" if group is None else f"The row is of group {label_text(group)}"
    how = "" if strength == 1 else f", at strength {strength:g},"
    if moved < _NOTHING:
        return [f"{who}. Steering{how} leaves it where it is."]
    found = [f"{who}. Steering{how} moves it by {moved:.2f} standard deviations, root mean square over its features."]
    parts = list(zip(*features.values(), strict=True))
    carried = [
        f"{label_text(name)} from {plain(before)} to {plain(after)} ({change:+.2f} standard deviations, "
        f"{100 * share:.0f} % of the movement)"
        for name, before, after, change, share in parts[:_MOST_NAMED]
        if share >= 0.005
    ]
    rest = len(parts) - len(carried)
    others = 100 * sum(share for *_, share in parts[len(carried) :])
    more = f" The other {rest} features carry {others:.0f} %." if rest > 1 else ""
    return [*found, f"What carries it: {few(carried, _MOST_NAMED)}.{more}"]


def _classification(classes: Sequence[Any], before: dict[Any, float], proba: Doubles | None) -> list[str]:
    if proba is None:
        return []
    k = len(classes) - 1 if len(classes) == 2 else int(proba.argmax())
    label = label_text(classes[k])
    if before:
        was = before[classes[k]]
        return [
            f"The Bayes rule gives class {label} the probability {was:.3f} before steering and {proba[k]:.3f} after."
        ]
    return [f"The classifier gives class {label} the probability {proba[k]:.3f} after steering."]


def _elsewhere(
    table: Table, after: Floats, names: Sequence[str], change: Doubles, classes: Sequence[Any], proba: Doubles | None
) -> list[str]:
    others = [a for a, own in enumerate(table["own"]) if not own]
    if not others:
        return []
    found = []
    for a in others[:_MOST_NAMED]:
        text = f"With the same features in group {label_text(table['group'][a])} it would "
        if table["moved_by"][a] < _NOTHING:
            text += "stay where it is"
        else:
            j = int(np.nan_to_num(np.abs(change[a])).argmax())
            text += (
                f"move by {table['moved_by'][a]:.2f} standard deviations, most in {label_text(names[j])}, to "
                f"{plain(float(after[a, j]))}"
            )
        if proba is not None:
            k = len(classes) - 1 if len(classes) == 2 else int(proba[0].argmax())
            text += f"; class {label_text(classes[k])} would have the probability {proba[a + 1, k]:.3f}"
        found.append(f"{text}.")
    if len(others) > _MOST_NAMED:
        found.append(f"{len(others) - _MOST_NAMED} more groups are in the table.")
    found.append("Only the map is exchanged there: what more would differ for a row of another group is not known.")
    return found


def plain(value: float) -> str:
    """Write a number with four digits, large ones with commas between the thousands."""
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.4g}"
    places = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
