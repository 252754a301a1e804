"""Noise on moments: of the size that the promise needs, on sums that one row moves as little as the promise assumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from fairsteer import FairSteeringTransformer, SubgroupMoments, persistence
from fairsteer.moments import _privacy

D, CLIP = 3, 2.5


def _rows(n: int = 4000, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    y, a = rng.integers(0, 2, (2, n))
    return rng.normal(size=(n, D)) + 0.3 * y[:, None] + 0.4 * a[:, None], y, a


def _moments(covariance: Any = "full", clip: float | None = CLIP) -> SubgroupMoments:
    return SubgroupMoments(D, classes=[0, 1], groups=["f", "m"], covariance=covariance, clip=clip)


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Record what would get noise, and give it none."""
    seen: dict[str, Any] = {}

    def without(vector: Any, sensitivity: float, epsilon: float, delta: float) -> Any:
        seen.update(vector=vector, sensitivity=sensitivity)
        return vector

    monkeypatch.setattr(_privacy, "_with_noise", without)
    return seen


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
def test_one_row_moves_the_sums_by_no_more_than_is_assumed(noise: Any, covariance: Any, dtype: Any) -> None:
    X, y, a = _rows(200)
    rng = np.random.default_rng(1)
    for length in (0.0, 0.5, CLIP, 40.0):
        row = rng.normal(size=D)
        more = np.vstack([X, length * row / np.linalg.norm(row)]).astype(dtype)
        vectors = []
        for n in (200, 201):
            codes = np.append(y, 1)[:n], np.append(a, 0)[:n]
            _moments(covariance).update(more[:n], *codes).privatize(1.0, 1e-6)
            vectors.append(noise["vector"])
        # Products in single precision are rounded, which is not the row's doing.
        assert np.linalg.norm(vectors[1] - vectors[0]) <= noise["sensitivity"] + (1e-9 if dtype == np.float64 else 1e-4)
        if length == 40.0:
            assert np.linalg.norm(vectors[1] - vectors[0]) > (1.7 if covariance != "diagonal" else 1.4)


@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
def test_without_noise_the_moments_of_clipped_rows_come_out(noise: Any, covariance: Any) -> None:
    X, y, a = _rows()
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    expected = _moments(covariance, None).update(X * np.minimum(1, CLIP * (1 - 1e-6) / lengths), y, a)
    found = _moments(covariance).update(X, y, a).privatize(1.0, 1e-6)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-12)
    np.testing.assert_allclose(found.means, expected.means, rtol=1e-9)
    np.testing.assert_allclose(found.covariances, expected.covariances, atol=1e-9)


def test_the_noise_has_the_size_that_the_accountant_asks_for() -> None:
    pytest.importorskip("opendp", reason="opendp is not installed")
    zeros = np.zeros(4000)
    epsilon, delta = 1.0, 1e-6
    found = _privacy._with_noise(zeros, np.sqrt(3), epsilon, delta)

    def excess(scale: float) -> float:
        """Balle and Wang (2018): the least delta of Gaussian noise, less the one that is promised."""
        half, far = np.sqrt(3) / (2 * scale), epsilon * scale / np.sqrt(3)
        return float(norm.cdf(half - far) - np.exp(epsilon) * norm.cdf(-half - far) - delta)

    least = brentq(excess, 0.1, 100)
    assert 1 - 0.05 < np.std(found) / least < 1.15  # OpenDP's bound goes by way of concentrated privacy
    again = _privacy._with_noise(zeros, np.sqrt(3), 4 * epsilon, delta)
    assert 3 < np.std(found) / np.std(again) < 4.5


@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
def test_moments_with_noise_are_moments(covariance: Any, tmp_path: Path) -> None:
    pytest.importorskip("opendp", reason="opendp is not installed")
    X, y, a = _rows()
    plain = _moments(covariance).update(X, y, a)
    found = plain.privatize(epsilon=2.0, delta=1e-6)
    assert plain.privacy is None
    assert found.privacy == (2.0, 1e-6, CLIP)
    assert (found.weights != plain.weights).any()
    np.testing.assert_allclose(found.weights, plain.weights, atol=60)
    np.testing.assert_allclose(found.means, plain.means, atol=0.2)
    # Nothing that depends on rows comes along, fourth moments least of all.
    gaussian = SubgroupMoments.from_statistics(found.weights, found.means, found.covariances, covariance=covariance)
    np.testing.assert_allclose(found._quartics, gaussian._quartics, rtol=1e-12)
    assert not found._cubics.any()
    persistence.save(found, tmp_path / "m.safetensors")
    again = persistence.load(tmp_path / "m.safetensors")
    assert (again.privacy, again.clip) == (found.privacy, CLIP)
    fitted = FairSteeringTransformer(map_type="affine", covariance=covariance, standardize=covariance == "full")
    assert np.isfinite(fitted.fit_moments(found).transform(X[:5], sensitive_features=["f"] * 5)).all()


def test_noise_beyond_the_rows_leaves_covariances(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(_privacy, "_with_noise", lambda vector, *_: vector + rng.normal(scale=30, size=vector.shape))
    X, y, a = _rows(60)
    for covariance in ("tied", "full", "diagonal"):
        found = _moments(covariance).update(X, y, a).privatize(0.1, 1e-6)
        values = found.covariances if covariance == "diagonal" else np.linalg.eigvalsh(found.covariances)
        assert values.min() >= -1e-9 * max(1.0, values.max())
        assert ((found.weights == 0) | (found.weights >= 1)).all()
        assert np.linalg.norm(found.means, axis=2).max() <= CLIP * (1 + 1e-12)


def test_sums_of_disjoint_rows_promise_the_weaker_of_both(noise: Any) -> None:
    X, y, a = _rows()
    first = _moments().update(X[:2000], y[:2000], a[:2000]).privatize(1.0, 1e-7)
    second = _moments().update(X[2000:], y[2000:], a[2000:]).privatize(3.0, 1e-8)
    both = first + second
    assert both.privacy == (3.0, 1e-7, CLIP)
    assert both.tie().privacy == both.merge_groups(["f", "m"], "all").privacy == both.privacy
    np.testing.assert_allclose(both.weights.sum(), 4000)
    plain = _moments().update(X, y, a)
    assert (first + plain).privacy is None
    assert (first + _moments()).privacy == first.privacy


def test_what_would_break_the_promise_is_refused(noise: Any) -> None:
    X, y, a = _rows(100)
    released = _moments().update(X, y, a).privatize(1.0, 1e-6)
    with pytest.raises(ValueError, match="would not hide rows that are added now"):
        released.update(X, y, a)
    with pytest.raises(ValueError, match="have their noise already"):
        released.privatize(1.0, 1e-6)
    with pytest.raises(ValueError, match=r"SubgroupMoments\(…, clip=…\)"):
        _moments(clip=None).update(X, y, a).privatize(1.0, 1e-6)
    with pytest.raises(ValueError, match=r"sample_weight must not exceed 1 .* the largest is 2"):
        _moments().update(X, y, a, np.full(100, 2.0))
    with pytest.raises(ValueError, match=r"clipped to different lengths, 2\.5 and 3\.0"):
        released.merge(_moments(clip=3.0).update(X, y, a))
    with pytest.raises(ValueError, match="privatize the moments before they are pooled or shrunk"):
        _moments().update(X, y, a).shrink(0.1).privatize(1.0, 1e-6)
    for epsilon, delta in ((0.0, 1e-6), (np.inf, 1e-6), (np.nan, 1e-6), (1.0, 0.0), (1.0, 1.0)):
        with pytest.raises(ValueError, match="epsilon must be positive and delta between 0 and 1"):
            _moments().update(X, y, a).privatize(epsilon, delta)
    for clip in (0.0, -1.0, np.nan, True):
        with pytest.raises(ValueError, match="clip must be a positive number"):
            _moments(clip=clip)
    with pytest.raises(ValueError, match="does not go with rescalable"):
        SubgroupMoments(D, classes=[0], groups=[0], covariance="full", rescalable=True, clip=1.0)
    with pytest.raises(ValueError, match="does not go with subgroup_counts"):
        SubgroupMoments(D, classes=[0], groups=[0, 1], subgroup_counts=[[1, 2]], clip=1.0)
    X[3] = np.inf
    with pytest.raises(ValueError, match="finite"):
        _moments().update(X, y, a)


def test_rows_on_a_device_are_clipped_there() -> None:
    strict = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")
    X, y, a = _rows()
    expected = _moments().update(X, y, a)
    found = _moments().update(strict.asarray(X, device=strict.Device("device1")), y, a)
    np.testing.assert_allclose(found.covariances, expected.covariances, rtol=1e-10)
