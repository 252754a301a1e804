"""What notebooks show: diagrams of scikit-learn, and below them what was found. Looking computes nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from sklearn import config_context
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from fairsteer import (
    FairSteeringTransformer,
    IdealDistributionClassifier,
    IdealDistributionClassifierCV,
    IdealPosteriorClassifier,
    ScoreAligner,
)
from fairsteer.baselines import MeanMatchingTransformer
from fairsteer.datasets import make_biased_groups
from fairsteer.ideal import IdealDistribution, IdealOfRows, nearest_ideal
from fairsteer.moments import SubgroupMoments

#: Labels that mean something in HTML.
GROUPS = np.array(["<b>one", "two & three"])


@pytest.fixture(scope="module")
def rows(make_data: Any) -> Any:
    X, y, group = make_data(n=300)
    return X, y, GROUPS[group]


def _fitted(rows: Any, what: str) -> Any:
    X, y, group = rows
    made: dict[str, Any] = {
        "steering": FairSteeringTransformer(),
        "baseline": MeanMatchingTransformer(),
        "classifier": IdealDistributionClassifier(),
        "search": IdealDistributionClassifierCV(
            LogisticRegression(), candidates={"steering__strength": [0.0, 1.0]}, cv=2
        ),
    }
    return made[what].fit(X, y, sensitive_features=group)


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


@pytest.mark.parametrize("what", ["steering", "baseline", "classifier", "search"])
def test_a_fitted_estimator_shows_its_cells_below_the_diagram(rows: Any, what: str) -> None:
    model = _fitted(rows, what)
    page = model._repr_html_()
    assert model._repr_mimebundle_()["text/html"].count("<figure") == 1
    assert "Weight of every class in every group" in page
    assert "&lt;b&gt;one" in page
    assert "<b>one" not in page.partition("<figure")[2]
    _, y, group = rows
    of_cells = group if what == "baseline" else np.array([f"{k} {g}" for k, g in zip(y, group, strict=True)])
    counts = np.unique(of_cells, return_counts=True)[1]
    assert all(f">{n}</text>" in page for n in counts)
    if what in ("steering", "classifier"):
        steering = getattr(model, "steering_", model)
        assert f"{steering.kl_divergence_:.4g} nats away" in page
    with config_context(display="text"):
        assert "text/html" not in model._repr_mimebundle_()


def test_nothing_is_shown_before_a_fit() -> None:
    wrapping = (ScoreAligner(LogisticRegression()), IdealPosteriorClassifier(LogisticRegression()))
    for model in (*wrapping, FairSteeringTransformer(), IdealDistributionClassifier(), IdealDistributionClassifierCV()):
        assert "<figure" not in model._repr_html_()


def test_aligned_scores_show_the_rates_of_the_groups_before_and_after(make_data: Any) -> None:
    X, y, group = make_data(n=600, n_features=2, n_classes=2, n_groups=3)
    frozen = FrozenEstimator(LogisticRegression().fit(X, y))
    aligner = ScoreAligner(frozen).fit(X, y, sensitive_features=group)
    asked = (frozen.predict(X), aligner.predict(X, sensitive_features=group))
    rates = [[np.mean(one[(group == a) & (y == 1)]) for a in aligner.groups_] for one in asked]
    np.testing.assert_allclose(aligner.alignment_.rates[:, 0], rates, atol=1e-12)
    page = aligner._repr_html_()
    assert all(f">{rate:.3g}</text>" in page for rate in np.ravel(rates))
    assert f"{np.ptp(rates[0]):.3f} before, {np.ptp(rates[1]):.3f} after" in page


def test_of_several_classes_the_gap_of_each_is_shown(make_data: Any) -> None:
    X, y, group = make_data(n=900, n_features=2, n_classes=3, n_groups=2)
    aligner = ScoreAligner(LogisticRegression(), constraint="demographic_parity").fit(X, y, sensitive_features=group)
    before, after = np.ptp(aligner.alignment_.rates, axis=2)
    page = aligner._repr_html_()
    assert all(f">{gap:.3g}</text>" in page for gap in (*before, *after))
    assert f"{before.max():.3f} before, {after.max():.3f} after" in page
    one = ScoreAligner(LogisticRegression()).fit(X, y, sensitive_features=np.zeros(len(y)))  # nothing to align
    assert "0.000 before, 0.000 after" in one._repr_html_()


@pytest.mark.parametrize("n_classes", [2, 3])
def test_ideal_posteriors_show_how_far_away_they_are(
    make_data: Any, monkeypatch: pytest.MonkeyPatch, n_classes: int
) -> None:
    X, y, group = make_data(n=600, n_features=2, n_classes=n_classes, n_groups=2)
    model = IdealPosteriorClassifier(LogisticRegression(), cv=2).fit(X, y, sensitive_features=GROUPS[group])
    monkeypatch.setattr(IdealOfRows, "_within_subgroups", lambda *_: pytest.fail("computed"))
    monkeypatch.setattr(type(model.ideal_), "_joints", lambda *_: pytest.fail("computed"))
    assert model.ideal_ is not None
    page = model._found_html()  # scikit-learn's own part asks for every attribute
    assert f"{model.kl_divergence_:.4g} nats away" in page
    assert all(f">{x:.3g}</text>" in page for x in model.ideal_.group_divergence)
    assert f"two &amp; three {model.calibration_error_[1]:.3g}" in page


def test_a_classifier_shows_what_is_known_of_its_gap(rows: Any) -> None:
    X, y, group = rows
    assert "not measured by fit" in _fitted(rows, "classifier")._repr_html_()
    aligned = IdealDistributionClassifier(score_alignment="equal_opportunity", cv=2)
    aligned.fit(X, y, sensitive_features=group)
    page = aligned._repr_html_()
    assert aligned._alignment is not None
    assert f"largest gap at any threshold, on the rows out of fold: {aligned._alignment.measured.max():.3f}" in page


def test_certificates_are_compared_with_the_model_and_with_the_rows() -> None:
    X, y, group = make_biased_groups(2000, 2, random_state=0)
    steer = FairSteeringTransformer(map_type="affine").fit(X, y, sensitive_features=group)
    assert "verdict" not in steer._found_html()
    bound = steer.certificate_.equalized_odds
    assert f"promises a gap of at most {steer.model_certificate_.equalized_odds:.3g}" in steer._repr_html_()
    assert f"a gap between groups of at most {bound:.3g}" in steer._repr_html_()
    assert "the model is borne out" in steer._repr_html_()
    X[:, 0] += 3 * (y == 1) * (group == 1) * X[:, 1]  # and covariances are not tied any more
    with pytest.warns(UserWarning, match="certificate of the model"):
        steer.fit(X, y, sensitive_features=group)
    assert "the subgroups contradict the model" in steer._repr_html_()
    search = IdealDistributionClassifierCV(LogisticRegression(), candidates={"steering__strength": [1]}, cv=2)
    with pytest.warns(UserWarning, match="certificate of the model"):
        search.fit(X, y, sensitive_features=group)
    measured, allowed = search.fairness_.equalized_odds, search.best_estimator_.steering_.certificate_.equalized_odds
    assert measured.verdict(allowed) == ("contradicted" if measured.lower > allowed else "consistent")
    assert measured.verdict(measured.lower - 1e-9) == "contradicted"
    assert f">{measured.verdict(allowed)}</td>" in search._repr_html_()


def test_looking_at_a_stream_projects_nothing(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, group = rows
    steer = FairSteeringTransformer(map_type="affine").partial_fit(X, y, sensitive_features=group)
    monkeypatch.setattr(FairSteeringTransformer, "_solve", lambda *_: pytest.fail("projected"))
    assert "not found yet: rows have come by partial_fit" in steer._repr_html_()
    assert "Weight of every class" in steer._repr_html_()


def test_looking_finds_no_certificate(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, group = rows
    moments = SubgroupMoments(X.shape[1], classes=[0, 1], groups=sorted(GROUPS))
    moments.update(X, y, np.unique(group, return_inverse=True)[1])
    ideal = nearest_ideal(moments)
    for name in ("certify", "model_certificate"):
        monkeypatch.setattr(IdealDistribution, name, property(lambda *_: pytest.fail("certified")))
    assert "certificate" not in ideal._repr_html_()
    monkeypatch.undo()
    certificate = ideal.certificate
    assert f"a gap between groups of at most {certificate.equalized_odds:.3g}" in ideal._repr_html_()
    assert f"{ideal.kl_divergence:.4g} nats" in ideal._repr_html_()
    assert "300" in moments._repr_html_()


def test_pictures_have_words_and_fit_many_cells() -> None:
    moments = SubgroupMoments(2, classes=range(30), groups=[f"a group with a long name {a}" for a in range(40)])
    page = moments._repr_html_()
    pictures = [attrs for tag, attrs in _Tags(page).seen if tag == "svg"]
    assert [(one["role"], one["aria-label"]) for one in pictures] == [("img", "Weight of every class in every group")]
    assert "30 classes and 40 groups in all" in page
    assert len(re.findall("<rect", page)) == 80
    assert "nan" not in page
