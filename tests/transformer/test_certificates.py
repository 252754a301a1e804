"""The certificate of a fit is about the subgroups' own Gaussians, and the fit says where the model promises more."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis

from fairsteer import FairSteeringTransformer, SubgroupMoments, persistence
from fairsteer.ideal import SubgroupGaussians
from fairsteer.report import measured_gaps, steering_report
from fairsteer.transformer import _misfit

AFFINE: dict[str, Any] = {"map_type": "affine", "standardize": True}


def reversed_spreads(n: int = 4000, d: int = 2, seed: int = 0) -> Any:
    """Class 0 is the narrow one in group 0 and the wide one in group 1."""
    rng = np.random.default_rng(seed)
    y, group = rng.integers(0, 2, (2, n))
    return rng.normal(size=(n, d)) * np.where(y == group, 1, 3)[:, None] + y[:, None], y, group


def shared_spreads(n: int = 4000, d: int = 2, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    y, group = rng.integers(0, 2, (2, n))
    return rng.normal(size=(n, d)) + y[:, None] + group[:, None] * np.arange(d), y, group


def test_a_misfit_is_told_from_a_fit_by_a_warning_with_numbers_and_a_way_out() -> None:
    X, y, group = reversed_spreads()
    with pytest.warns(UserWarning, match="The certificate of the model") as caught:
        steer = FairSteeringTransformer(**AFFINE).fit(X, y, sensitive_features=group)
    (message,) = (str(one.message) for one in caught)
    assert steer.model_certificate_.equalized_odds < 0.05
    assert steer.certificate_.equalized_odds > 0.6
    numbers = (steer.model_certificate_.equalized_odds, steer.certificate_.equalized_odds)
    assert f"by {numbers[0]:.2g}, but" in message
    assert f"themselves allow {numbers[1]:.2g} (class" in message
    assert "groups 0 and 1" in message
    assert "use covariance='full'" in message
    # What a classifier does with such rows.
    steered = steer.transform(X, sensitive_features=group)
    half = np.arange(len(y)) < len(y) // 2
    predicted = QuadraticDiscriminantAnalysis().fit(steered[half], y[half]).predict(steered[~half])
    gap = measured_gaps(y[~half], predicted, sensitive_features=group[~half]).equalized_odds
    assert numbers[0] < gap.lower < gap.upper < numbers[1]


@pytest.mark.parametrize(
    "params",
    [
        {**AFFINE},
        {**AFFINE, "covariance": "full"},
        {"covariance": "diagonal", "map_type": "diagonal"},
        {"map_type": "translation"},
        {"map_type": "monotone", "min_distinct": 2},
        {**AFFINE, "intervention": "affirmative"},
        {**AFFINE, "constraint": "equal_opportunity"},
        {**AFFINE, "shrinkage": None},
        {**AFFINE, "shrinkage": "oas"},
        {**AFFINE, "shrinkage": 0.2},
    ],
    ids=str,
)
def test_a_model_that_fits_gives_no_warning_and_the_certificate_of_its_cells(params: Any) -> None:
    X, y, group = shared_spreads()
    if params.get("map_type") == "monotone":
        params = {"map_type": "monotone"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steer = FairSteeringTransformer(**params).fit(X, y, sensitive_features=group)
    assert steer.certificate_.gaussians == "subgroups"
    if params["map_type"] == "affine":
        assert steer.certificate_.equalized_odds < 0.15
        assert steer.certificate_.equalized_odds == pytest.approx(steer.model_certificate_.equalized_odds, abs=0.1)
    assert steer.ideal_.certificate.equalized_odds == steer.certificate_.equalized_odds


@pytest.mark.parametrize("n", [40, 120, 400])
@pytest.mark.parametrize("d", [2, 15])
def test_few_rows_raise_no_false_alarm(n: int, d: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(10):
            X, y, group = shared_spreads(n, d, seed)
            FairSteeringTransformer(**AFFINE).fit(X, y, sensitive_features=group)


@pytest.mark.filterwarnings("ignore:The certificate of the model")
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("covariance", ["tied", "full"])
def test_the_certificate_is_that_of_full_moments_of_the_rows(covariance: Any, standardize: bool) -> None:
    X, y, group = reversed_spreads(600)
    steer = FairSteeringTransformer(map_type="affine", standardize=standardize, covariance=covariance, shrinkage=None)
    steer.fit(X, y, sensitive_features=group)
    moments = SubgroupMoments(2, classes=[0, 1], groups=[0, 1], covariance="full").update(X, y, group)
    expected = steer.ideal_.certify(SubgroupGaussians(moments, chance=1.0))
    np.testing.assert_allclose(steer.certificate_.total_variation, expected.total_variation, atol=1e-9)


@pytest.mark.filterwarnings("ignore:The certificate of the model")
def test_batches_weights_and_order_give_the_same_certificate() -> None:
    X, y, group = reversed_spreads(900)
    weight = np.random.default_rng(0).integers(0, 3, 900)
    whole = FairSteeringTransformer(**AFFINE).fit(X, y, sensitive_features=group, sample_weight=weight)
    parts = FairSteeringTransformer(**AFFINE)
    for some in np.array_split(np.random.default_rng(1).permutation(900), 3):
        parts.partial_fit(X[some], y[some], sensitive_features=group[some], sample_weight=weight[some])
    parts.partial_fit()
    rows = np.repeat(np.arange(900), weight)
    copies = FairSteeringTransformer(**AFFINE).fit(X[rows], y[rows], sensitive_features=group[rows])
    for other in (parts, copies):
        np.testing.assert_allclose(other.certificate_.total_variation, whole.certificate_.total_variation, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The certificate of the model")
def test_what_is_not_known_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, group = reversed_spreads(600)
    by_estimator = FairSteeringTransformer(**AFFINE, shrinkage=LedoitWolf()).fit(X, y, sensitive_features=group)
    assert by_estimator.certificate_.gaussians == "model"
    monkeypatch.setattr("fairsteer.transformer._base._MEMORY_OF_CELLS_IN_A_FIT", 100)
    with pytest.warns(UserWarning, match="themselves allow at least"):
        large = FairSteeringTransformer(**AFFINE).fit(X, y, sensitive_features=group)
    assert large.certificate_.gaussians == "model"
    assert large.certificate_.equalized_odds == large.model_certificate_.equalized_odds


def test_of_many_features_the_directions_of_the_classes_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_misfit, "_AT_ONCE", 0.0)
    monkeypatch.setattr(_misfit, "_MOST_ROWS", 1000)
    for kept in (True, False):
        if not kept:
            monkeypatch.setattr("fairsteer.transformer._base._MEMORY_OF_CELLS_IN_A_FIT", 100)
        X, y, group = reversed_spreads(3000, 5)
        with pytest.warns(UserWarning, match="themselves allow at least") as caught:
            FairSteeringTransformer(**AFFINE).fit(X.astype(np.float32), y, sensitive_features=group)
        least = float(str(caught[0].message).partition("at least ")[2].split()[0])
        # Along one direction, two Gaussians of variances 1 and 9: the total variation is .56.
        assert 0.5 < least <= 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            X, y, group = shared_spreads(3000, 5)
            FairSteeringTransformer(**AFFINE).fit(X, y, sensitive_features=group)


def test_monotone_maps_are_certified_by_the_rows_that_they_make() -> None:
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 2, (2, 3000))
    X = np.round(rng.normal(size=(3000, 2)) * (1 + group[:, None]) + y[:, None], 1)
    steer = FairSteeringTransformer(map_type="monotone").fit(X, y, sensitive_features=group)
    moved = steer.transform(X, sensitive_features=group)
    moments = SubgroupMoments(2, classes=[0, 1], groups=[0, 1], covariance="full").update(moved, y, group)
    largest = 0.0
    for k in (0, 1):  # no direction tells the Gaussians of steered rows apart by more than is certified
        S, m = moments.covariances[k], moments.means[k]
        for _ in range(50):
            w = rng.normal(size=2)
            scale, shift = np.sqrt(np.einsum("i,aij,j->a", w, S, w)), m @ w
            grid = np.linspace(-10, 10, 4001)
            density = np.exp(-((grid[:, None] - shift) ** 2) / (2 * scale**2)) / scale / np.sqrt(2 * np.pi)
            apart = 0.5 * np.abs(density[:, 0] - density[:, 1]).sum() * (grid[1] - grid[0])
            largest = max(largest, apart - steer.certificate_.equal_opportunity[k])
    assert largest <= 0.05  # what chance makes of the covariances
    assert steer.certificate_.gaussians == "subgroups"
    assert steer.certificate_.equalized_odds < 0.5
    assert steer.model_certificate_.equalized_odds == 1  # no model says what becomes of the rows


@pytest.mark.filterwarnings("ignore:The certificate of the model")
@pytest.mark.parametrize("map_type", ["affine", "monotone"])
def test_certificates_are_kept_in_files_and_pickles(tmp_path: Any, map_type: Any) -> None:
    X, y, group = reversed_spreads(500)
    steer = FairSteeringTransformer(map_type=map_type).fit(X, y, sensitive_features=group)
    persistence.save(steer, tmp_path / "map.safetensors")
    for other in (persistence.load(tmp_path / "map.safetensors"), pickle.loads(pickle.dumps(steer))):
        for name in ("certificate_", "model_certificate_"):
            kept, given = getattr(other, name), getattr(steer, name)
            np.testing.assert_array_equal(kept.total_variation, given.total_variation)
            assert (kept.accuracy, kept.gaussians) == (given.accuracy, given.gaussians)
    assert steer.certificate_.equalized_odds > 0.6 or map_type == "monotone"


@pytest.mark.filterwarnings("ignore:The certificate of the model")
def test_the_report_shows_certificate_model_measurement_and_verdict() -> None:
    X, y, group = reversed_spreads(3000)
    steer = FairSteeringTransformer(**AFFINE).fit(X, y, sensitive_features=group)
    report = steering_report(
        steer, X, y, sensitive_features=group, estimator=QuadraticDiscriminantAnalysis(), n_resamples=20
    )
    table = report.to_frame("certificate").iloc[-1]
    assert report.model_certificate is not None
    assert table["model"] < table["measured_lower"] < table["measured_upper"] < table["certificate"]
    assert table["verdict"] == "consistent"
    assert report.model_certificate.equalized_odds == table["model"]
    assert any("The model alone would have promised" in text for text in report.findings)
    for text in (str(report), report.to_html()):
        for word in ("certificate:", "model:", "measured", "verdict", "consistent"):
            assert word in text


class InTheMiddle(ClassifierMixin, BaseEstimator):
    """Predicts 1 near the origin."""

    def fit(self, X: Any, y: Any) -> InTheMiddle:
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: Any) -> Any:
        return (np.abs(X[:, 0]) < 0.5).astype(int)


def test_a_certificate_that_rows_contradict_is_called_contradicted() -> None:
    """Of the same mean and variance are one hump in one group, and two in the other."""
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 2, (2, 6000))
    two = rng.choice([-1.0, 1.0], 6000) + 0.1 * rng.normal(size=6000)
    X = np.where(group == 1, two, rng.normal(size=6000))[:, None]
    steer = FairSteeringTransformer(**AFFINE).fit(X, y, sensitive_features=group)
    report = steering_report(steer, X, y, sensitive_features=group, estimator=InTheMiddle(), n_resamples=20)
    assert steer.certificate_.equalized_odds < 0.1
    assert report.to_frame("certificate")["verdict"].iloc[-1] == "contradicted"
    assert any("contradicts the certificate for" in text for text in report.findings)
    assert "contradicted" in str(report)
    half = steering_report(
        steer.set_params(strength=0.5), X, y, sensitive_features=group, estimator=InTheMiddle(), n_resamples=20
    )
    assert set(half.tables["certificate"]["verdict"]) == {""}  # of rows that move in part nothing is promised
