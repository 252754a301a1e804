"""The steering report: what it measures is right, says what is a model's word, and reads in every form."""

from __future__ import annotations

import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.stats import binom
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks import problems
from fairsteer import FairSteeringTransformer, IdealPosteriorClassifier, SubgroupMoments, metrics, nearest_ideal
from fairsteer.report import _likeness, measured_gaps, steering_report

QUICK: dict[str, Any] = {"n_resamples": 50}

GAPS = ("demographic_parity", "equal_opportunity", "equalized_odds")


def _sampled(ideal_or_data: Any, counts: Any, rng: Any, *, covariance: Any) -> Any:
    """Rows of every subgroup, with their classes and groups."""
    K, G, d = ideal_or_data.means.shape
    parts, y, group = [], [], []
    for k in range(K):
        for a in range(G):
            S = ideal_or_data.covariances[a] if covariance == "tied" else ideal_or_data.covariances[k, a]
            S = np.diag(S) if S.ndim == 1 else S
            root = np.linalg.cholesky(S)
            parts.append(ideal_or_data.means[k, a] + rng.standard_normal((counts[k, a], d)) @ root.T)
            y += [k] * counts[k, a]
            group += [a] * counts[k, a]
    return np.concatenate(parts), np.array(y), np.array(group)


def _predictions(K: int = 2, G: int = 2, n: int = 600, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    y, group = rng.integers(0, K, n), rng.integers(0, G, n)
    wrong = rng.random(n) < 0.2 + 0.2 * group / G
    return y, np.where(wrong, rng.integers(0, K, n), y), group


# ---- measured gaps


@pytest.mark.parametrize("interval", ["exact", "bootstrap"])
@pytest.mark.parametrize(("K", "G"), [(2, 2), (2, 4), (3, 3)])
def test_measured_gaps_are_those_of_the_metrics_and_lie_in_their_intervals(K: Any, G: Any, interval: Any) -> None:
    y, predicted, group = _predictions(K, G)
    found = measured_gaps(y, predicted, sensitive_features=group, interval=interval, **QUICK)
    for name, gap in metrics.gaps(y, predicted, sensitive_features=group).items():
        measured = getattr(found, name)
        assert measured.value == pytest.approx(gap.value)
        assert 0 <= measured.lower <= measured.value <= measured.upper <= 1
        assert measured.lower < measured.upper
    assert found.accuracy.value == pytest.approx(np.mean(y == predicted))
    assert found.by_class.value.max() == pytest.approx(found.equalized_odds.value)
    np.testing.assert_allclose(found.by_subgroup.value.max(axis=1), found.by_class.value)


def test_weights_count_as_in_the_metrics_and_equal_weights_change_nothing() -> None:
    y, predicted, group = _predictions()
    weight = np.random.default_rng(1).random(len(y))
    found = measured_gaps(y, predicted, sensitive_features=group, sample_weight=weight)
    expected = metrics.equalized_odds_difference(y, predicted, sensitive_features=group, sample_weight=weight)
    assert found.equalized_odds.value == pytest.approx(expected)
    one = measured_gaps(y, predicted, sensitive_features=group)
    seven = measured_gaps(y, predicted, sensitive_features=group, sample_weight=np.full(len(y), 7.0))
    assert one.equalized_odds == pytest.approx(seven.equalized_odds)
    assert (found.rows < one.rows).all()


def test_rates_have_clopper_pearson_intervals() -> None:
    y_pred = np.repeat([1, 0], [7, 13])
    found = measured_gaps(np.ones(20, int), y_pred, sensitive_features=np.zeros(20), labels=[0, 1])
    lower, upper = found.rates.lower[1, 0, 1], found.rates.upper[1, 0, 1]
    assert binom.sf(6, 20, lower) == pytest.approx(0.025)
    assert binom.cdf(7, 20, upper) == pytest.approx(0.025)


@pytest.mark.parametrize("interval", ["exact", "bootstrap"])
def test_intervals_hold_the_true_gap(interval: Any) -> None:
    rng = np.random.default_rng(0)
    rate = np.array([[0.3, 0.3, 0.3], [0.8, 0.7, 0.6]])  # of predicting 1, by class and group
    truth = {"equal_opportunity": 0.2, "equalized_odds": 0.2, "demographic_parity": 0.1}
    held = dict.fromkeys(truth, 0)
    n_trials = 60
    for _ in range(n_trials):
        y, group = np.repeat([0, 1, 0, 1, 0, 1], 80), np.repeat([0, 1, 2], 160)
        predicted = (rng.random(480) < rate[y, group]).astype(int)
        found = measured_gaps(
            y, predicted, sensitive_features=group, interval=interval, confidence_level=0.9, n_resamples=100
        )
        for name, gap in truth.items():
            held[name] += getattr(found, name).lower <= gap <= getattr(found, name).upper
    for count in held.values():
        # A level of 0.9, less three standard errors.
        assert count >= n_trials * 0.9 - 3 * np.sqrt(n_trials * 0.09)


def test_what_cannot_be_compared_is_nan_and_one_group_has_no_gap() -> None:
    found = measured_gaps([0, 0, 1, 1], [0, 1, 1, 0], sensitive_features=["a", "a", "b", "b"])
    assert np.isnan(found.equal_opportunity.value)
    assert np.isnan(found.by_subgroup.value).all()
    alone = measured_gaps([0, 1], [0, 0], sensitive_features=["a", "a"])
    assert alone.equalized_odds.value == alone.equalized_odds.upper == 0


def test_rates_of_few_rows_can_be_left_out() -> None:
    y, predicted, group = _predictions()
    y, predicted, group = np.append(y, [1, 0]), np.append(predicted, [0, 1]), np.append(group, [2, 2])
    assert measured_gaps(y, predicted, sensitive_features=group).equalized_odds.value > 0.7
    found = measured_gaps(y, predicted, sensitive_features=group, min_rows=5)
    kept = measured_gaps(y[:-2], predicted[:-2], sensitive_features=group[:-2])
    assert found.equalized_odds == pytest.approx(kept.equalized_odds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": "normal"}, "interval must be 'exact' or 'bootstrap', not 'normal'"),
        ({"confidence_level": 1.0}, r"confidence_level must be in \(0, 1\), got 1.0"),
        ({"n_resamples": 0}, "n_resamples must be at least 1, got 0"),
        ({"sensitive_features": [0]}, "sensitive_features has 1 rows and y_true has 4"),
    ],
)
def test_measured_gaps_refuse_with_a_sentence(arguments: Any, message: Any) -> None:
    with pytest.raises(ValueError, match=message):
        measured_gaps([0, 1, 0, 1], [0, 1, 1, 1], **{"sensitive_features": [0, 0, 1, 1], **arguments})


# ---- the certificate against measurement


@pytest.mark.slow
def test_the_certificate_is_never_violated_by_a_thousand_random_threshold_classifiers() -> None:
    rng = np.random.default_rng(0)
    violations, tightest = [], np.inf
    covariances: tuple[Any, ...] = ("tied", "full", "diagonal", "tied", "full")
    for seed, covariance in enumerate(covariances):
        data = problems.statistics(2, 3, 3, covariance=covariance, seed=seed, difference=0.3, degrees=40)
        moments = SubgroupMoments.from_statistics(data.weights, data.means, data.covariances)
        ideal = nearest_ideal(moments, covariance=covariance)
        X, y, group = _sampled(data, np.full((2, 3), 1000), rng, covariance=covariance)
        frame = np.empty_like(X)
        for a, (A, b) in ideal.maps.items():
            frame[group == a] = X[group == a] @ A.T + b
        for _ in range(200):
            # A random direction of the common frame and a random threshold: exactly fair on the ideal distribution.
            score = frame @ rng.standard_normal(3)
            predicted = (score > np.quantile(score, rng.uniform(0.05, 0.95))).astype(int)
            found = measured_gaps(y, predicted, sensitive_features=group, confidence_level=1 - 1e-4)
            for k in range(2):
                violations.append(found.by_class.lower[k] > ideal.certificate.equal_opportunity[k])
                tightest = min(tightest, ideal.certificate.equal_opportunity[k] - found.by_class.value[k])
            cells = ideal.certificate.total_variation
            pairs = [cells[:, a] + np.delete(cells, a, axis=1).max(axis=1) for a in range(3)]
            violations.append((found.by_subgroup.lower > np.transpose(pairs)).any())
    assert not any(violations)
    assert tightest < 0.1  # the bounds are near enough to fail if they were smaller


def test_gaps_on_an_ideal_distribution_are_zero_within_sampling_error_for_five_costs() -> None:
    rng = np.random.default_rng(0)
    costs = np.array([[[0, 1], [c, 0]] for c in (0.25, 0.5, 1, 2, 4)])
    data = problems.statistics(2, 3, 3, covariance="full", seed=3, separation=0.7)
    rows = []
    for name in ("ideal", "data"):
        ideal = nearest_ideal(
            SubgroupMoments.from_statistics(data.weights, data.means, data.covariances), covariance="full"
        )
        owner, weights = (ideal, ideal.weights) if name == "ideal" else (data, data.weights / data.weights.sum())
        X, y, group = _sampled(owner, rng.multinomial(60_000, weights.ravel()).reshape(2, 3), rng, covariance="full")
        frame = np.empty_like(X)
        for a, (A, b) in ideal.maps.items():
            frame[group == a] = X[group == a] @ A.T + b
        posterior = np.exp(ideal.log_posterior(frame))
        for cost in costs:
            predicted = (posterior @ cost).argmin(axis=1)
            found = measured_gaps(y, predicted, sensitive_features=group, confidence_level=0.999)
            rows.append((name, *(getattr(found, gap).lower for gap in GAPS), found.equalized_odds.upper))
    for name, *lower, upper in rows:
        if name == "ideal":
            assert lower == [0, 0, 0]
            assert upper < 0.06
    # The same measurement shows the gaps of the data.
    assert max(max(lower) for name, *lower, _ in rows if name == "data") > 0.05


# ---- the report


@pytest.fixture(scope="module")
def fitted(make_data: Any) -> Any:
    X, y, group = make_data(n=900, n_features=4, n_classes=2, n_groups=3, seed=1)
    X = pd.DataFrame(X, columns=["height", "weight", "age", "pay"])
    y, group = np.array(["no", "yes"])[y], np.array(["a", "b", "c"])[group]
    return FairSteeringTransformer().fit(X, y, sensitive_features=group), X, y, group


@pytest.fixture(scope="module")
def reported(fitted: Any) -> Any:
    steer, X, y, group = fitted
    return steering_report(steer, X, y, sensitive_features=group, **QUICK)


def test_divergence_after_full_steering_is_that_of_the_nearest_ideal(fitted: Any, reported: Any) -> None:
    table = reported.tables["divergence"]
    assert table["after"][0] == pytest.approx(fitted[0].kl_divergence_, rel=1e-6)
    assert table["before"][0] > table["after"][0]
    assert table["before"][1] > table["after"][1] > table["after"][0]


@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
def test_divergence_before_is_a_minimum(make_data: Any, covariance: Any) -> None:
    X, y, group = make_data()
    steer = FairSteeringTransformer(covariance=covariance).fit(X, y, sensitive_features=group)
    fitted, ideal, _ = steer._fitted()
    alike = _likeness._alike(ideal, fitted)
    best = alike.divergence_from(fitted)
    rng = np.random.default_rng(0)
    for _ in range(20):
        means = alike.canonical_means + 0.05 * rng.standard_normal(alike.canonical_means.shape)
        covariances = alike.canonical_covariances * rng.uniform(0.95, 1.05)
        worse = dataclasses.replace(alike, canonical_means=means, canonical_covariances=covariances)
        assert worse.divergence_from(fitted) > best


def test_displacement_and_shift_are_those_of_the_rows(fitted: Any, reported: Any) -> None:
    steer, X, _, group = fitted
    rows, moved = X.to_numpy(), steer.transform(X, sensitive_features=group)
    of_group = group == "b"
    spread = rows[of_group].std(axis=0)
    expected = np.sqrt(np.mean(((moved - rows)[of_group] / spread) ** 2))
    groups = reported.to_frame("groups").set_index("group")
    assert groups.loc["b", "displacement"] == pytest.approx(expected)
    features = reported.to_frame("features").set_index(["feature", "group"])
    line = features.loc["age", "b"]
    assert line["mean_shift"] == pytest.approx((moved[of_group, 2].mean() - rows[of_group, 2].mean()) / spread[2])
    assert line["scale"] == pytest.approx(moved[of_group, 2].std() / spread[2])
    assert features["displacement"].is_monotonic_decreasing


def test_gaps_are_those_of_classifiers_that_did_not_see_the_rows(fitted: Any, reported: Any) -> None:
    steer, X, y, group = fitted
    # The same five folds by hand: rows of a cell are dealt in their order.
    from sklearn.base import clone
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline

    predicted = {"before": np.empty_like(y), "after": np.empty_like(y)}
    cells = np.unique(y, return_inverse=True)[1] * 4 + np.unique(group, return_inverse=True)[1]
    for train, test in StratifiedKFold(5).split(X, cells):
        again = clone(steer).fit(X.iloc[train], y[train], sensitive_features=group[train])
        steered = again.transform(X, sensitive_features=group)
        for when, rows in (("before", X.to_numpy()), ("after", steered)):
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(rows[train], y[train])
            predicted[when][test] = model.predict(rows[test])
    table = reported.to_frame("gaps").set_index("measure")
    for when, labels in predicted.items():
        for name, gap in metrics.gaps(y, labels, sensitive_features=group).items():
            assert table.loc[name, when] == pytest.approx(gap.value)
    np.testing.assert_allclose(table["change"], table["after"] - table["before"])
    assert ((table["change_lower"] <= table["change"]) & (table["change"] <= table["change_upper"])).all()


def test_model_and_measurement_stand_side_by_side(fitted: Any, reported: Any) -> None:
    table = reported.to_frame("certificate")
    certificate = fitted[0].certificate_
    model = fitted[0].model_certificate_
    overall = table[table["class"].isna()]
    assert overall["certificate"].item() == pytest.approx(certificate.equalized_odds)
    assert overall["model"].item() == pytest.approx(model.equalized_odds)
    assert overall["measured"].item() == pytest.approx(reported.after.equalized_odds.value)
    classes = table[table["group"].isna() & table["class"].notna()]
    np.testing.assert_allclose(classes["certificate"], certificate.equal_opportunity)
    np.testing.assert_allclose(classes["model"], model.equal_opportunity)
    contradicted = table["measured_lower"] > table["certificate"]
    assert (table["verdict"] == np.where(contradicted, "contradicted", "consistent")).all()
    np.testing.assert_allclose(classes["measured"], reported.after.by_class.value)
    assert len(table) == 2 * (3 + 1) + 1
    for text in (str(reported), reported.to_html()):
        assert "model:" in text
        assert "measured" in text


def test_the_report_is_the_same_every_time(fitted: Any, reported: Any) -> None:
    steer, X, y, group = fitted
    again = steering_report(steer, X, y, sensitive_features=group, **QUICK)
    assert str(again) == str(reported)
    assert again.to_html() == reported.to_html()


def test_other_rows_are_judged_by_the_maps_as_they_are(fitted: Any, make_data: Any) -> None:
    steer = fitted[0]
    X, y, group = make_data(n=600, n_features=4, n_classes=2, n_groups=3, seed=1)
    X = pd.DataFrame(X, columns=fitted[1].columns)
    found: Any = steering_report(
        steer, X, np.array(["no", "yes"])[y], sensitive_features=np.array(["a", "b", "c"])[group], **QUICK
    )
    assert not found.same_rows
    assert found.kl_divergence == steer.kl_divergence_
    assert found.tables["divergence"]["after"][0] == pytest.approx(steer.kl_divergence_, rel=1e-6)
    assert "rows other than those of the fit" in str(found)


def test_a_map_that_is_nearly_the_identity_says_so() -> None:
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 2, (2, 4000))
    X = rng.normal(size=(4000, 2)) + y[:, None]
    steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    found: Any = steering_report(steer, X, y, sensitive_features=group, **QUICK)
    assert found.nearly_identity
    assert "nearly the identity" in str(found)
    assert not steering_report(steer.set_params(strength=0), X, y, sensitive_features=group, **QUICK).tables["groups"][
        "displacement"
    ][0]


def test_at_partial_strength_the_bounds_are_said_not_to_apply(fitted: Any) -> None:
    steer, X, y, group = fitted
    from sklearn.base import clone

    half = clone(steer).set_params(strength=0.5).fit(X, y, sensitive_features=group)
    found: Any = steering_report(half, X, y, sensitive_features=group, **QUICK)
    assert any("At strength 0.5 it says nothing" in text for text in found.findings)
    table = found.tables["divergence"]
    assert half.kl_divergence_ < table["after"][0] < table["before"][0]


def test_without_classes_there_is_no_classifier_and_the_bound_is_on_demographic_parity(make_data: Any) -> None:
    X, y, group = make_data()
    steer = FairSteeringTransformer().fit(X, sensitive_features=group)
    silent = steering_report(steer, X, sensitive_features=group)
    assert silent.before is None
    assert "gaps" not in silent.tables
    assert "measured" not in str(silent)
    found: Any = steering_report(steer, X, y, sensitive_features=group, **QUICK)
    line = found.to_frame("certificate")
    assert line["measured"].item() == pytest.approx(found.after.demographic_parity.value)


def test_sensitive_columns_weights_and_unknown_groups(fitted: Any) -> None:
    _, X, y, group = fitted
    labels = group.astype(object)
    labels[:3] = None
    table = X.assign(group=labels)
    weight = np.random.default_rng(0).integers(0, 3, len(y))
    with pytest.warns(UserWarning, match="missing group"):
        steer = FairSteeringTransformer(sensitive_columns="group").fit(table, y, sample_weight=weight)
    with pytest.warns(UserWarning, match="3 of 900 rows have a missing or unknown group"):
        found: Any = steering_report(steer, table, y, sample_weight=weight, **QUICK)
    assert found.same_rows
    assert found.n_rows == ((weight > 0) & (np.arange(len(y)) >= 3)).sum()
    assert found.n_left_out == len(y) - found.n_rows
    assert f"{found.n_left_out} more are left out" in " ".join(str(found).split())
    assert found.n_features == 4


def test_positive_class_and_own_classifier(fitted: Any) -> None:
    steer, X, y, group = fitted
    found: Any = steering_report(
        steer, X, y, sensitive_features=group, estimator=LogisticRegression(C=0.1), pos_label="no", cv=3, **QUICK
    )
    assert found.pos_label == "no"
    assert "LogisticRegression(C=0.1)" in str(found)
    assert found.n_folds == 3
    gaps = found.to_frame("gaps").set_index("measure")
    assert gaps.loc["equal_opportunity", "after"] == pytest.approx(found.after.by_class.value[0])
    with pytest.raises(ValueError, match=r"pos_label='maybe'.*'no', 'yes'"):
        steering_report(steer, X, y, sensitive_features=group, pos_label="maybe", **QUICK)


def test_many_classes_and_groups_stay_readable(make_data: Any) -> None:
    X, y, group = make_data(n=3000, n_features=3, n_classes=5, n_groups=6)
    steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    found: Any = steering_report(steer, X, y, sensitive_features=group, min_rows=10, **QUICK)
    assert found.pos_label is None
    assert len(found.tables["subgroups"]["class"]) == 30
    text = str(found)
    assert "(18 more)" in text
    assert "The smallest are shown." in text
    assert max(map(len, text.splitlines())) <= 80


def test_text_and_rich_hold_the_same_numbers_within_80_columns(reported: Any) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(reported)
    rich = console.export_text()
    assert max(map(len, rich.splitlines())) <= 80
    assert max(map(len, str(reported).splitlines())) <= 80
    numbers = re.compile(r"\d\.\d{3}")
    assert sorted(numbers.findall(rich)) == sorted(numbers.findall(str(reported)))


class _Page(HTMLParser):
    """Tags that are open at the end, and those that were seen."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[Any] = []
        self.feed(text)

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag: Any) -> None:
        assert self.open.pop() == tag


def test_html_is_one_page_that_needs_nothing_and_knows_dark(reported: Any, tmp_path: Path) -> None:
    text = reported.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text
    page = _Page(text)
    assert page.open == []
    assert not re.search(r"https?:|url\(|@import|src=|<link|<img", text)
    assert "prefers-color-scheme: dark" in text
    tags = [tag for tag, _ in page.seen]
    assert tags.count("svg") == 5  # two of them for the thresholds
    assert tags.count("table") == 8
    for tag, attributes in page.seen:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
        if tag == "th":
            assert attributes["scope"] in ("col", "row")
    sections = re.findall(r"<section>.*?</section>", reported._repr_html_(), re.DOTALL)
    assert len(sections) == 7
    assert all(section in text for section in sections)


def test_html_escapes_labels(fitted: Any) -> None:
    _, X, y, group = fitted
    X = X.rename(columns={"pay": "<b>&pay"})
    group = np.array(["<i>a", "b", "c"])[np.unique(group, return_inverse=True)[1]]
    steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    found: Any = steering_report(steer, X, y, sensitive_features=group, **QUICK)
    text = found.to_html()
    assert "<b>" not in text
    assert "<i>" not in text
    assert "&lt;b&gt;&amp;pay" in text
    assert "[bold]" not in str(found)


def test_too_few_held_out_rows_tell_nothing_of_the_divergence(make_data: Any) -> None:
    X, y, group = make_data(n=60, n_features=8)
    steer = FairSteeringTransformer(shrinkage=LedoitWolf()).fit(X, y, sensitive_features=group)
    table = steering_report(steer, X, y, sensitive_features=group, min_rows=5, **QUICK).tables["divergence"]
    assert np.isfinite(table["after"][0])
    assert np.isnan(table["after"][1])


def test_refusals(fitted: Any, reported: Any) -> None:
    steer, X, y, group = fitted
    with pytest.raises(TypeError, match="takes a fitted FairSteeringTransformer or classifier, not StandardScaler"):
        steering_report(StandardScaler().fit(X), X, y, sensitive_features=group)
    with pytest.raises(ValueError, match="There is no table 'gap'; there are 'gaps', 'thresholds'"):
        reported.to_frame("gap")
    with pytest.raises(ValueError, match="No groups are given"):
        steering_report(steer, X, y)
    with pytest.raises(ValueError, match="y is needed"):
        steering_report(steer, X, sensitive_features=group)
    with pytest.warns(UserWarning, match="unknown"), pytest.raises(ValueError, match="No row is left"):
        steering_report(steer, X, y, sensitive_features=np.full(len(y), "z"))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_posterior_and_what_it_becomes(n_classes: int) -> None:
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, n_classes, 900), rng.integers(0, 2, 900)
    X = rng.normal(size=(900, 3)) + np.eye(3)[y] + np.outer(group, [0.8, 0, 0])
    model = IdealPosteriorClassifier(LogisticRegression(), cv=2).fit(X, y, sensitive_features=group)
    report = steering_report(model, X, y, sensitive_features=group, cv=2, n_resamples=20)
    table = report.tables["posterior"]
    assert table["class"] == ([1, 1] if n_classes == 2 else [0, 0, 1, 1, 2, 2])
    for i in range(0, len(table["class"]), 2):
        for end in ("", "_lower", "_upper"):
            assert abs(table[f"after{end}"][i] - table[f"after{end}"][i + 1]) < 0.02
    assert abs(table["before"][0] - table["before"][1]) > 0.03
    assert "The posterior, and what it becomes" in report.to_text()
    assert "Probability of the class: median" in report.to_html()
