"""What notebooks show: diagrams of scikit-learn, and below them what was found. Looking computes nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from sklearn import config_context
from sklearn.linear_model import LogisticRegression

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, IdealDistributionClassifierCV
from fairsteer.baselines import MeanMatchingTransformer
from fairsteer.ideal import IdealDistribution, nearest_ideal
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
    for model in (FairSteeringTransformer(), IdealDistributionClassifier(), IdealDistributionClassifierCV()):
        assert "<figure" not in model._repr_html_()


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
