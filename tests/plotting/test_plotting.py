"""The pictures: what they draw is what was measured, in every style, and no label covers another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, ScoreAligner
from fairsteer._utils.labels import label_text
from fairsteer.plotting import CertificateDisplay, GroupScoreDisplay, TPRDisplay, TradeOffDisplay, _style
from fairsteer.report import Measured, measured_gaps, steering_report


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[Any]:
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fitted(make_data: Any) -> Any:
    X, y, group = make_data(n=600, n_features=3, n_groups=2, seed=2)
    y, group = np.array(["no", "yes"])[y], np.array(["a", "b"])[group]
    return FairSteeringTransformer().fit(X, y, sensitive_features=group), X, y, group


def _predictions(K: Any, G: Any, n: int = 1500) -> Any:
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, K, n), rng.integers(0, G, n)
    wrong = rng.random(n) < 0.1 + 0.5 * rng.random((K, G))[y, group]
    names = np.array([f"class number {k}" for k in range(K)])
    return names[y], names[np.where(wrong, rng.integers(0, K, n), y)], np.array([f"group {a}" for a in range(G)])[group]


def _draw_all(fitted: Any) -> Any:
    steer, X, y, group = fitted
    displays = [
        GroupScoreDisplay.from_estimator(steer, X, y, sensitive_features=group),
        GroupScoreDisplay.from_estimator(LogisticRegression().fit(X, y), X, sensitive_features=group),
        TradeOffDisplay.from_estimator(
            steer, X, y, sensitive_features=group, n_resamples=20, cv=2, strengths=[0, 0.2, 0.25, 0.9, 1]
        ),
        CertificateDisplay.from_estimator(steer, X, y, sensitive_features=group, n_resamples=20, cv=2),
    ]
    for K, G in ((2, 2), (20, 2), (4, 5)):
        y, predicted, group = _predictions(K, G)
        displays.append(TPRDisplay.from_predictions(y, predicted, sensitive_features=group))
    return displays


def _texts(ax: Any) -> Any:
    legend = ax.get_legend()
    ticks = []
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        ticks += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [
        text
        for text in [*ax.texts, *ticks, ax.xaxis.label, ax.yaxis.label]
        + ([] if legend is None else list(legend.get_texts()))
        if text.get_text() and text.get_visible()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("style", ["default", "dark_background", "Solarize_Light2"])
def test_no_text_covers_another_or_vanishes_in_the_ground(fitted: Any, style: Any) -> None:
    with plt.style.context(style):
        for display in _draw_all(fitted):
            display.figure_.canvas.draw()
            renderer = display.figure_.canvas.get_renderer()
            texts = _texts(display.ax_)
            boxes = [(text.get_text(), text.get_window_extent(renderer).padded(-1)) for text in texts]
            for (name, one), (other, two) in itertools.combinations(boxes, 2):
                assert not one.overlaps(two), (type(display).__name__, name, other)
            figure = display.figure_.bbox
            for name, box in boxes:
                assert figure.x0 <= box.x0, name
                assert box.x1 <= figure.x1, name
            ground = np.array(to_rgb(display.figure_.get_facecolor()))
            for text in texts:
                assert np.abs(np.array(to_rgb(text.get_color())) - ground).max() > 0.2


@pytest.mark.parametrize(("style", "palette"), [("default", _style._ON_LIGHT), ("dark_background", _style._ON_DARK)])
def test_colours_stand_out_from_the_ground(style: Any, palette: Any) -> None:
    """Contrast as the Web Content Accessibility Guidelines define it; 1.9 is that of the paper's lightest colour."""

    def luminance(colour: Any) -> Any:
        c = np.array(to_rgb(colour))
        return np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    with plt.style.context(style):
        _, ax = plt.subplots()
        assert _style.palette(ax) == palette
        ground = luminance(ax.get_facecolor())
    for colour in palette:
        low, high = sorted([ground, luminance(colour)])
        assert (high + 0.05) / (low + 0.05) > 1.9


def test_densities_lie_on_both_sides_of_the_line_and_integrate_to_one(fitted: Any) -> None:
    steer, X, y, group = fitted
    display = GroupScoreDisplay.from_estimator(steer, X, y, sensitive_features=group)
    assert set(display.lines_) == set(itertools.product(["before", "after"], ["a", "b"]))
    for (when, _), line in display.lines_.items():
        x, density = line.get_data()
        assert np.trapezoid(density, x) == pytest.approx(1 if when == "before" else -1, abs=0.02)
    assert {text.get_text() for text in display.ax_.texts} == {"before", "after"}
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == ["a", "b"]


def test_the_discriminant_is_that_of_the_classes_and_steering_closes_the_distance_of_the_groups() -> None:
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 2, (2, 2000))
    X = rng.normal(size=(2000, 2)) + np.outer(y, [2, 0]) + np.outer(group, [3, 0])
    steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    display = GroupScoreDisplay.from_estimator(steer, X, y, sensitive_features=group)
    before, after = (display.scores[when] for when in ("before", "after"))
    for scores in (before, after):
        assert scores[y == 1].mean() > scores[y == 0].mean()
    distance = [abs(np.subtract(*(s[group == a].mean() for a in (0, 1)))) for s in (before, after)]
    assert distance[0] > 1
    assert distance[1] < 0.1
    class_blind = FairSteeringTransformer().fit(X, sensitive_features=group)
    assert GroupScoreDisplay.from_estimator(class_blind, X, sensitive_features=group).lines_


def test_scores_of_a_classifier_that_takes_groups(fitted: Any) -> None:
    steer, X, y, group = fitted
    model = IdealDistributionClassifier(steering=steer).fit(X, y, sensitive_features=group)
    display = GroupScoreDisplay.from_estimator(model, X, sensitive_features=group)
    np.testing.assert_allclose(display.scores[""], model.decision_function(X, sensitive_features=group))
    assert display.ax_.get_xlabel() == "score of class yes"
    with pytest.raises(ValueError, match="A score needs two classes, not 3"):
        GroupScoreDisplay.from_estimator(
            LogisticRegression().fit(X, np.arange(len(X)) % 3), X, sensitive_features=group
        )


def test_a_group_with_one_score_has_no_density_but_its_place_in_the_legend() -> None:
    display = GroupScoreDisplay.from_predictions(
        np.r_[np.zeros(5), np.arange(20.0)], sensitive_features=["a"] * 5 + ["b"] * 20, sample_weight=np.ones(25)
    )
    assert not display.lines_["", "a"].get_ydata().any()
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == ["a", "b"]


def test_trade_off_is_what_cross_validation_measures(fitted: Any) -> None:
    steer, X, y, group = fitted
    display = TradeOffDisplay.from_estimator(
        steer, X, y, sensitive_features=group, strengths=[1, 0], gap="demographic_parity", n_resamples=20
    )
    gaps = steering_report(steer, X, y, sensitive_features=group, n_resamples=20).to_frame().set_index("measure")
    x, accuracy = display.line_.get_data()
    np.testing.assert_allclose(x, gaps.loc["demographic_parity", ["before", "after"]].astype(float))
    np.testing.assert_allclose(accuracy, gaps.loc["accuracy", ["before", "after"]].astype(float))
    assert display.strengths == [0, 1]
    assert display.ax_.get_xlabel() == "demographic parity gap"
    assert steer.strength == 1


def test_trade_off_from_predictions_labels_both_ends() -> None:
    y, predicted, group = _predictions(2, 2)
    display = TradeOffDisplay.from_predictions(
        y, {1.0: y, 0.0: predicted}, sensitive_features=group, n_resamples=20, pos_label="class number 0"
    )
    np.testing.assert_allclose(display.line_.get_data()[1], [np.mean(y == predicted), 1])
    assert {text.get_text() for text in display.texts_} == {"strength 0", "strength 1"}
    with pytest.raises(ValueError, match=r"gap must be one of .*, not 'odds'"):
        TradeOffDisplay.from_predictions(y, {0.0: y}, sensitive_features=group, gap="odds")


@pytest.mark.parametrize("G", [2, 4])
def test_rates_are_those_measured_and_the_largest_gap_is_on_top(G: Any) -> None:
    y, predicted, group = _predictions(6, G)
    display = TPRDisplay.from_predictions(y, predicted, sensitive_features=group)
    found = measured_gaps(y, predicted, sensitive_features=group)
    rates = np.diagonal(found.rates.value, axis1=0, axis2=2).T
    order = [found.classes.tolist().index(label) for label in display.classes_]
    for a, label in enumerate(found.groups.tolist()):
        np.testing.assert_allclose(display.points_[label].get_xdata(), rates[order, a])
    assert np.all(np.diff(np.ptp(rates[order], axis=1)) >= 0)
    assert [text.get_text() for text in display.ax_.get_yticklabels()] == display.classes_
    ends = [segment[:, 0].tolist() for segment in display.bars_.get_segments()]
    np.testing.assert_allclose(ends, np.column_stack([rates[order].min(axis=1), rates[order].max(axis=1)]))
    markers = {points.get_marker() for points in display.points_.values()}
    assert len(markers) == G  # shapes tell groups apart where colours cannot


def test_a_class_that_a_group_lacks_has_no_point_there(fitted: Any) -> None:
    _, X, y, _ = fitted
    group = np.where(y == "no", "a", np.arange(len(y)) % 2).astype(str)
    model = LogisticRegression().fit(X, y)
    display = TPRDisplay.from_estimator(model, X, y, sensitive_features=group, intervals=False)
    absent = display.points_["0"].get_xdata()[display.classes_.index("no")]
    assert np.isnan(absent)


def test_certificate_draws_bounds_and_measured_gaps(fitted: Any) -> None:
    steer, X, y, group = fitted
    reported: Any = steering_report(steer, X, y, sensitive_features=group, n_resamples=20)
    display = CertificateDisplay.from_estimator(reported)
    assert display.labels == ["no", "yes", "all classes"]
    widths = [bar.get_width() for bar in display.bars_]
    np.testing.assert_allclose(widths[:2], steer.certificate_.equal_opportunity)
    np.testing.assert_allclose(display.errorbar_[0].get_xdata()[:2], reported.after.by_class.value)
    words = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert words == ["model: at most", "measured on held-out rows"]

    predicted = LogisticRegression().fit(X, y).predict(X)
    again = CertificateDisplay.from_predictions(steer.certificate_, y, predicted, sensitive_features=group)
    assert again.labels == display.labels
    with pytest.raises(ValueError, match="The labels have 3 classes, the certificate 2"):
        CertificateDisplay.from_predictions(
            steer.certificate_, np.arange(len(y)) % 3, np.arange(len(y)) % 3, sensitive_features=group
        )


LABELS = ["$x_1$", "$", "_other", "", "[/x]", r"$\frac{", "two\nlines", r"a\$b", "%_{}#"]


@pytest.mark.slow
@pytest.mark.parametrize("output", ["png", "svg", "pdf"])
def test_labels_are_drawn_as_they_are_and_all_have_a_place_in_the_legend(output: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 100 * len(LABELS)
    group = np.array(LABELS, dtype=object)[rng.integers(0, len(LABELS), n)]
    y, predicted = (np.array(LABELS, dtype=object)[rng.integers(0, 3, n)] for _ in range(2))
    shown = sorted(map(label_text, LABELS))
    tpr = TPRDisplay.from_predictions(y, predicted, sensitive_features=group)
    scores = GroupScoreDisplay.from_predictions(rng.random(n), sensitive_features=group, score_name="$s_$")
    model = LogisticRegression().fit(rng.normal(size=(n, 2)), y == "$")
    model.classes_ = np.array(["_a", "$y$"])
    named = GroupScoreDisplay.from_estimator(model, rng.normal(size=(n, 2)), sensitive_features=group)
    certificate = CertificateDisplay(["$c$", "_d"], [0.5, 0.6], [Measured(0.1, 0.0, 0.2)] * 2).plot()
    for display in (tpr, scores, named):
        legend = display.ax_.get_legend().get_texts()
        assert sorted(text.get_text() for text in legend) == shown
    assert named.ax_.get_xlabel() == "score of class $y$"
    assert [text.get_text() for text in tpr.ax_.get_yticklabels()] == [label_text(x) for x in tpr.classes_]
    assert [text.get_text() for text in certificate.ax_.get_yticklabels()] == ["_d", "$c$"][::-1]
    for picture in (tpr, scores, named, certificate):
        picture.figure_.savefig(tmp_path / f"picture.{output}")  # as mathematics some of them would raise
        assert not any(text.get_parse_math() for text in _texts(display.ax_) if "$" in text.get_text())


def test_long_names_leave_room_for_the_picture() -> None:
    group = np.array(["x" * 200, "y" * 200])[np.arange(400) % 2]
    y, predicted = np.array([["a" * 300, "b" * 300]])[0][np.random.default_rng(0).integers(0, 2, (2, 400))]
    display = TPRDisplay.from_predictions(y, predicted, sensitive_features=group)
    display.figure_.canvas.draw()
    assert display.ax_.get_window_extent().width > 0.4 * display.figure_.bbox.width


def test_pipelines_hand_groups_to_a_classifier_that_knows_them(fitted: Any) -> None:
    _, X, y, group = fitted
    pipe = make_pipeline(StandardScaler(), ScoreAligner(LogisticRegression()))
    pipe.fit(X, y, scorealigner__sensitive_features=group)
    tpr = TPRDisplay.from_estimator(pipe, X, y, sensitive_features=group)
    found = measured_gaps(y, pipe.predict(X, sensitive_features=group), sensitive_features=group)
    np.testing.assert_allclose(tpr.measured.rates.value, found.rates.value)
    scores = GroupScoreDisplay.from_estimator(pipe, X, sensitive_features=group).scores[""]
    np.testing.assert_allclose(scores, pipe[1].decision_function(pipe[0].transform(X), sensitive_features=group))


def test_bounds_of_a_classifier_that_steers_and_of_none(fitted: Any) -> None:
    _, X, y, group = fitted
    quick = {"sensitive_features": group, "n_resamples": 20, "cv": 2}
    model = IdealDistributionClassifier().fit(X, y, sensitive_features=group)
    display = CertificateDisplay.from_estimator(model, X, y, **quick)
    np.testing.assert_allclose(display.model[:2], model.steering_.certificate_.equal_opportunity)
    aligner = ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=group)
    with pytest.raises(ValueError, match="There is no steering in what the report is about"):
        CertificateDisplay.from_estimator(aligner, X, y, **quick)


def test_axes_that_are_given_are_drawn_on(fitted: Any) -> None:
    steer, X, y, group = fitted
    figure, axes = plt.subplots(1, 2)
    display = GroupScoreDisplay.from_estimator(steer, X, y, sensitive_features=group, ax=axes[1])
    assert display.ax_ is axes[1]
    assert display.figure_ is figure
    assert not axes[0].lines
    assert display.plot().ax_ is not axes[1]


def test_without_matplotlib_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "fairsteer\[report\]"'):
        TPRDisplay.from_predictions([0, 1, 0, 1], [0, 1, 1, 1], sensitive_features=[0, 0, 1, 1])
