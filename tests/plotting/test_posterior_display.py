"""The picture of the ideal posterior draws the laws and maps that were found."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

mpl.use("Agg")

import matplotlib.pyplot as plt

from fairsteer import IdealPosteriorClassifier
from fairsteer.plotting import IdealPosteriorDisplay


def fitted(n_classes: int = 2) -> Any:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 3, 900)
    y = rng.integers(0, n_classes, 900)
    X = rng.normal(size=(900, 2)) + np.outer(y, [1, 1]) + np.outer(group, [1, 0])
    labels = np.array(["a", "_b", "$c"])[group]
    return IdealPosteriorClassifier(LogisticRegression(), cv=2).fit(X, y, sensitive_features=labels)


def test_maps_and_laws_are_those_that_were_found() -> None:
    model = fitted()
    display = IdealPosteriorDisplay.from_estimator(model)
    assert set(display.lines_) == {(what, g) for what in ("before", "after", "map") for g in model.groups_.tolist()}
    for group, (s, t) in model.h_.items():
        np.testing.assert_allclose(display.lines_["map", group].get_data(), (s, t))
        assert display.lines_["after", group].get_ydata()[-1] == pytest.approx(1)
    after = [display.lines_["after", g] for g in model.groups_.tolist()]
    at = np.linspace(0.2, 0.8, 7)
    curves = [np.interp(at, line.get_xdata(), line.get_ydata()) for line in after]
    assert np.ptp(curves, axis=0).max() < 0.03
    plt.close("all")


def test_many_classes_are_drawn_class_by_class() -> None:
    model = fitted(3)
    display = IdealPosteriorDisplay.from_estimator(model)
    assert display.axes_.shape == (3, 2)
    groups = model.groups_.tolist()
    assert set(display.lines_) == {
        (what, g, k) for what in ("before", "after", "map") for g in groups for k in range(3)
    }
    for k in range(3):
        for group in groups:
            own, ideal = model.h_[group]
            np.testing.assert_allclose(display.lines_["map", group, k].get_data(), (own[:, k], ideal[:, k]))
        after = [display.lines_["after", group, k].get_data() for group in groups]
        for line in after[1:]:  # one law, but for the last digits
            np.testing.assert_allclose(line, after[0], atol=1e-7)
    plt.close("all")


def test_given_axes_are_drawn_on() -> None:
    figure, axes = plt.subplots(2)
    display = IdealPosteriorDisplay.from_estimator(fitted(), axes=axes)
    assert display.figure_ is figure
    plt.close("all")


def test_one_class_has_nothing_to_draw() -> None:
    model = fitted()
    model.ideal_ = None
    with pytest.raises(ValueError, match="one class"):
        IdealPosteriorDisplay.from_estimator(model)
