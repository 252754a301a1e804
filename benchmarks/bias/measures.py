"""Accuracy and gaps of decisions against true labels."""

from __future__ import annotations

import numpy as np

from benchmarks.bias.biases import Codes, Floats

MEASURES = ("accuracy", "accuracy_1", "tpr_gap", "larger_gap", "selection_gap")


def measured(y: Codes, decided: Floats, group: Codes) -> dict[str, float]:
    """Of groups 0 and 1; `decided`: probabilities of deciding for class 1, and a rate is the expected one."""
    right = np.where(y == 1, decided, 1 - decided)
    tpr, fpr = (_gap(decided[y == k], group[y == k]) for k in (1, 0))
    values = right.mean(), right[group == 1].mean(), tpr, max(tpr, fpr), _gap(decided, group)
    return {name: float(value) for name, value in zip(MEASURES, values, strict=True)}


def _gap(decided: Floats, group: Codes) -> float:
    return float(abs(decided[group == 0].mean() - decided[group == 1].mean()))
