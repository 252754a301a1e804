"""What valid data may bring to the core: results are finite, follow from the data alone, and can be interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from fairsteer import FairSteeringTransformer, MeanMatchingTransformer, SubgroupMoments, _core, nearest_ideal

KINDS: Any = ["tied", "full", "diagonal"]


def fitted(X: Any, y: Any, g: Any, **params: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FairSteeringTransformer(**params).fit(X, y, sensitive_features=g)


def random_rows(seed: Any, n: int = 500, d: int = 4, K: int = 2, G: int = 3) -> Any:
    rng = np.random.default_rng(seed)
    y, g = rng.integers(K, size=n), rng.integers(G, size=n)
    mixing = rng.normal(size=(G, d, d)) / np.sqrt(d) + np.eye(d)
    return np.einsum("nij,nj->ni", mixing[g], rng.normal(size=(n, d))) + rng.normal(size=(K, G, d))[y, g], y, g


# ---
# Vanishing classes, units, numbers at the ends of the range
# ---
@pytest.mark.parametrize(
    ("d", "shift", "kind", "rare"), [(20, 10, "full", 30), (4, 60, "full", 30), (20, 20, "tied", 30)]
)
def test_a_rare_class_and_a_group_that_has_it_alone(d: Any, shift: Any, kind: Any, rare: Any) -> None:
    rng = np.random.default_rng(0)
    u = rng.choice([-1.0, 1.0], size=d)
    parts = [(0, 0, 900, 0), (0, 1, 900, 0.3), (1, 0, 900, 1), (1, 1, 900, 1.3)]
    parts += [(2, 0, rare, u * shift), (2, 1, rare, -u * shift * rng.random(d)), (2, 2, rare, 0)]
    X = np.vstack([rng.normal(size=(n, d)) + mean for _, _, n, mean in parts])
    y, g = (np.repeat([part[i] for part in parts], [part[2] for part in parts]) for i in (0, 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steer = FairSteeringTransformer(covariance=kind).fit(X, y, sensitive_features=g)
    vanishes = steer.ideal_.class_prior[2] < 0.01 * (y == 2).mean()
    assert any("all but leaves out class 2" in str(warning.message) for warning in caught) == vanishes
    assert np.isfinite(steer.transform(X, sensitive_features=g)).all()
    assert np.isfinite(steer.kl_divergence_)
    assert steer.ideal_.class_prior.sum() == pytest.approx(1)


@pytest.mark.parametrize("unit", [1e-9, 1e9])
@pytest.mark.parametrize("seed", [2, 5, 31])
def test_units_change_nothing_but_units(seed: Any, unit: Any) -> None:
    rng = np.random.default_rng(seed)
    K, G, d, n = 2, 4, 3, 3000
    means = rng.normal(size=(K, G, d)) * 20 * 10 ** rng.uniform(-1, 1, size=(K, 1, 1))
    sd = np.exp(rng.normal(size=(K, G, d)))
    y, g = rng.integers(0, K, n), rng.integers(0, G, n)
    X = means[y, g] + sd[y, g] * rng.normal(size=(n, d))
    plain, scaled = (fitted(X * s, y, g, covariance="diagonal", shrinkage=None) for s in (1.0, unit))
    assert scaled.kl_divergence_ == pytest.approx(plain.kl_divergence_, rel=1e-6)
    out = scaled.transform(X * unit, sensitive_features=g) / unit
    np.testing.assert_allclose(out, plain.transform(X, sensitive_features=g), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("d", [5, 80])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e18, 1e25])
def test_single_precision_rows_of_any_size_have_the_moments_of_double_ones(d: Any, scale: Any) -> None:
    rng = np.random.default_rng(0)
    n = 1000
    y, g = rng.integers(0, 2, n), rng.integers(0, 2, n)
    X = ((rng.normal(size=(n, d)) + g[:, None]) * scale).astype(np.float32)
    for kind in KINDS:
        for weight in (None, np.full(n, 1e-90), np.full(n, 1e100)):
            own, exact = (
                SubgroupMoments(d, classes=[0, 1], groups=[0, 1], covariance=kind).update(rows, y, g, weight)
                for rows in (X, X.astype(np.float64))
            )
            np.testing.assert_allclose(own.covariances / scale**2, exact.covariances / scale**2, rtol=1e-5, atol=1e-5)
            own.update(X[:50], y[:50], g[:50])  # onto what is there


def test_constant_columns_of_single_precision_rows_have_no_variance() -> None:
    X = np.ones((300, 3), np.float32)
    X[:, 1] = np.arange(300) % 7
    moments = SubgroupMoments(3, classes=[0], groups=[0]).update(X, np.zeros(300, int), np.zeros(300, int))
    np.testing.assert_array_equal(moments.covariances[0][[0, 2]], 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_that_are_not_finite_are_refused_and_change_nothing(kind: Any, dtype: Any) -> None:
    X, y, g = random_rows(1, n=60)
    moments = SubgroupMoments(4, classes=[0, 1], groups=["a", "b", "c"], covariance=kind).update(X, y, g)
    before = [array.copy() for array in moments._sums()]
    for value in (np.nan, np.inf):
        bad = X.astype(dtype)
        bad[7, 2] = value
        with pytest.raises(ValueError, match=rf"class {y[7]}, group {'abc'[g[7]]!r}"):
            moments.update(bad, y, g)
    for array, old in zip(moments._sums(), before, strict=True):
        np.testing.assert_array_equal(array, old)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_far_away_have_probabilities(kind: Any) -> None:
    X, y, g = random_rows(2)
    X[:, 0] *= 1e-150
    steer = fitted(X, y, g, covariance=kind, unknown_group="infer", shrinkage=None)
    far = X[:6].copy()
    far[:, 1] = [1e10, -1e10, 1e100, 1e160, -1e160, 1e300]
    proba = steer.predict_group_proba(far)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert np.isfinite(steer.transform(far)).all()
    posterior = np.exp(steer.ideal_.log_posterior(far))
    np.testing.assert_allclose(posterior.sum(axis=1), 1)


# ---
# The accumulator's arguments
# ---
def sums(kind: Any, K: Any, G: Any, d: Any) -> Any:
    scatter = {"tied": (G, d, d), "full": (K, G, d, d), "diagonal": (K, G, d)}[kind]
    quartic = (K, G, d) if kind == "diagonal" else (K, G)
    return tuple(np.zeros(shape) for shape in [(K, G), (K, G), (K, G, d), scatter, (K, G, d), quartic])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [np.nan, -3.0, np.inf])
def test_sums_with_weights_that_are_none_are_refused(kind: Any, weight: Any) -> None:
    good, bad = sums(kind, 2, 1, 100), sums(kind, 2, 1, 100)
    bad[0][0, 0] = weight
    for into, other in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match=r"weight\[0\] must be finite and not negative"):
            _core.merge_moments(kind, into, other, np.arange(2))
    with pytest.raises(ValueError, match=r"weight\[0\] must be finite and not negative"):
        _core.update_moments(kind, bad, np.ones((5, 100)), np.ones(5, np.int64), np.zeros(5, np.int64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("d", [3, 70])
def test_what_a_cell_without_rows_holds_is_not_read(kind: Any, dtype: Any, d: Any) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(900, d)).astype(dtype)
    y, g = rng.integers(0, 2, size=900), rng.integers(0, 3, size=900)
    first = g < 2  # the third group comes later, the third class never
    clean, used = sums(kind, 3, 3, d), sums(kind, 3, 3, d)
    for array in used[2:]:
        array[...] = np.nan
    for rows in (first, ~first):
        for into in (clean, used):
            _core.update_moments(kind, into, X[rows], y[rows], g[rows])
        merged = sums(kind, 3, 3, d)
        merged[3][...] = np.nan
        _core.merge_moments(kind, merged, used, np.arange(9))
        seen = clean[0] > 0
        behind = seen.any(axis=0) if kind == "tied" else seen
        for i, (array, expected) in enumerate(zip(used, clean, strict=True)):
            which = behind if i == 3 else seen
            np.testing.assert_array_equal(array[which], expected[which])
            if i < 4:
                np.testing.assert_allclose(merged[i][which], expected[which], rtol=1e-12)
    before = [array.copy() for array in used]
    bad = X.copy()
    bad[5, 1] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        _core.update_moments(kind, used, bad, y, g)
    np.testing.assert_array_equal(used[0], before[0])
    for array, old, which in zip(used[1:], before[1:], [seen, seen, behind, seen, seen], strict=True):
        np.testing.assert_array_equal(array[which], old[which])


def test_cells_that_would_lose_rows_are_refused() -> None:
    two = sums("tied", 2, 1, 3)
    with pytest.raises(ValueError, match=r"cells\[1\] must lie in group 0"):
        _core.merge_moments("tied", sums("tied", 1, 2, 3), two, np.array([0, 1]))
    with pytest.raises(ValueError, match=r"cells\[1\] must differ"):
        _core.merge_moments("tied", sums("tied", 1, 1, 3), two, np.array([0, 0]))
    with pytest.raises(ValueError, match="must not share memory"):
        _core.merge_moments("tied", two, two, np.arange(2))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_fields_of_records_are_rows_as_any(dtype: Any) -> None:
    X, y, g = random_rows(3)
    table = np.zeros(len(X), dtype=[("flag", "u1"), ("x", dtype, (4,))])
    table["x"] = X
    assert not table["x"].flags.aligned or table["x"].strides[0] % table["x"].itemsize
    moments = [
        SubgroupMoments(4, classes=[0, 1], groups=range(3)).update(rows, y, g) for rows in (table["x"], X.astype(dtype))
    ]
    np.testing.assert_array_equal(moments[0].covariances, moments[1].covariances)
    steer = fitted(X, y, g)
    np.testing.assert_array_equal(
        steer.transform(table["x"], sensitive_features=g), steer.transform(X.astype(dtype), sensitive_features=g)
    )


# ---
# Data decide, and names do not
# ---
@pytest.mark.parametrize("seed", range(4))
def test_one_class_does_not_mirror_features(seed: Any) -> None:
    rng = np.random.default_rng(seed)
    g = np.repeat([0, 1], [60, 20])
    y = np.where(g == 1, 1, np.arange(80) % 3)  # group 1 has class 1 only
    X = rng.normal(size=(80, 10)) + y[:, None]
    p = rng.permutation(80)
    one, other = fitted(X, y, g, covariance="diagonal"), fitted(X[p], y[p], g[p], covariance="diagonal")
    assert (np.diag(one.maps_[1][0]) > 0).all()
    np.testing.assert_allclose(other.maps_[1][0], one.maps_[1][0], rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("params", [{}, {"map_type": "symmetric"}, {"shrinkage": None}])
@pytest.mark.parametrize(("K", "G", "d"), [(2, 2, 4), (2, 4, 5), (3, 3, 2), (1, 3, 4)])
@pytest.mark.parametrize("balanced", [False, True])
def test_new_names_and_orders_give_the_same_rows(kind: Any, params: Any, K: Any, G: Any, d: Any, balanced: Any) -> None:
    X, y, g = random_rows(K + G + d, d=d, K=K, G=G, n=240)
    if balanced:
        y, g = np.arange(240) % K, np.arange(240) // K % G
    rng = np.random.default_rng(1)
    expected = fitted(X, y, g, covariance=kind, **params).transform(X, sensitive_features=g)
    tolerance = {"rtol": 0, "atol": 1e-5 * X.std(axis=0).max()}
    groups, classes, rows, features = (rng.permutation(n) for n in (G, K, len(X), d))
    relabelled = fitted(X, classes[y], groups[g], covariance=kind, **params)
    np.testing.assert_allclose(relabelled.transform(X, sensitive_features=groups[g]), expected, **tolerance)
    shuffled = fitted(X[rows], y[rows], g[rows], covariance=kind, **params)
    np.testing.assert_allclose(shuffled.transform(X, sensitive_features=g), expected, **tolerance)
    moved = fitted(X[:, features], y, g, covariance=kind, **params)
    out = moved.transform(X[:, features], sensitive_features=g)
    np.testing.assert_allclose(out, expected[:, features], **tolerance)
    if kind != "diagonal":
        Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
        turned = fitted(X @ Q.T, y, g, covariance=kind, **params).transform(X @ Q.T, sensitive_features=g)
        np.testing.assert_allclose(turned @ Q, expected, **tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_names_do_not_matter_where_groups_lack_classes(kind: Any) -> None:
    rng = np.random.default_rng(6)
    K, G, d = 3, 4, 3
    weights = rng.integers(10, 60, (K, G)).astype(float)
    weights[0, 1] = weights[2, 3] = weights[1, 3] = 0
    means = rng.normal(size=(K, G, d))
    root = rng.normal(size=(K, G, d, 2 * d))
    covariances = np.einsum("kaij,kalj->kail", root, root)
    if kind == "tied":
        covariances = covariances[0]
    if kind == "diagonal":
        covariances = np.diagonal(covariances, axis1=2, axis2=3)
    classes, groups = rng.permutation(K), rng.permutation(G)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k, a in ((np.arange(K), np.arange(G)), (classes, groups)):
            some = covariances[a] if kind == "tied" else covariances[np.ix_(k, a)]
            moments = SubgroupMoments.from_statistics(
                weights[np.ix_(k, a)], means[np.ix_(k, a)], some, classes=k, groups=a
            )
            found.append(nearest_ideal(moments, covariance=kind))
    for label, (A, b) in found[0].maps.items():
        np.testing.assert_allclose(found[1].maps[label][0], A, atol=1e-6)
        np.testing.assert_allclose(found[1].maps[label][1], b, atol=1e-6)


def test_the_barycentre_of_few_rows_does_not_depend_on_their_order() -> None:
    rng = np.random.default_rng(0)
    G, d = 3, 20
    n = 15 * G
    g = np.arange(n) % G
    X, Z = rng.normal(size=(n, d)) + g[:, None] * 0.5, rng.normal(size=(50, d))
    p = rng.permutation(n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, other = (
            FairSteeringTransformer(shrinkage=None).fit(X[i], sensitive_features=g[i]) for i in (np.arange(n), p)
        )
    codes = np.arange(50) % G
    np.testing.assert_allclose(
        other.transform(Z, sensitive_features=codes), one.transform(Z, sensitive_features=codes), atol=2e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("params", [{}, {"map_type": "symmetric"}, {"intervention": "affirmative"}])
def test_full_covariances_have_the_same_bits_on_any_number_of_threads(params: Any) -> None:
    X, y, g = random_rows(7, n=3000, d=60, K=2, G=2)
    out = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads):
            out.append(fitted(X, y, g, covariance="full", max_iter=20, **params).transform(X, sensitive_features=g))
    np.testing.assert_array_equal(out[0], out[1])


# ---
# Maps of every kind
# ---
def test_maps_that_scale_or_shift_features_take_no_matrices() -> None:
    rng = np.random.default_rng(0)
    d = 1500
    X = rng.normal(size=(400, d)) * np.exp(rng.normal(size=d))
    y, g = rng.integers(2, size=400), rng.integers(2, size=400)
    diagonal = fitted(X, y, g, covariance="diagonal")
    assert diagonal.ideal_.linear.shape == (2, d)
    shift = MeanMatchingTransformer().fit(X, sensitive_features=g)
    for steer in (diagonal, shift):
        out = steer.transform(X, sensitive_features=g)
        A, b = steer.maps_[0]
        np.testing.assert_allclose(out[g == 0], X[g == 0] * np.diag(A) + b, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(steer.inverse_transform(out, sensitive_features=g), X, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unknown", [False, True])
def test_large_means_cost_single_precision_rows_one_unit_in_the_last_place(kind: Any, unknown: Any) -> None:
    rng = np.random.default_rng(0)
    n, d, offset = 500, 8, 1e6
    y, g = rng.integers(0, 2, n), rng.integers(0, 2, n)
    X = (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / 2 + g[:, None] + y[:, None] + offset).astype(np.float32)
    steer = fitted(X, y, g, covariance=kind, unknown_group="infer")
    groups = None if unknown else g
    exact = steer.transform(X.astype(np.float64), sensitive_features=groups)
    error = np.abs(steer.transform(X, sensitive_features=groups).astype(np.float64) - exact)
    assert error.max() <= 1.01 * np.spacing(np.float32(offset))


# ---
# Ctrl-C and time
# ---
def hard_moments(kind: Any) -> Any:
    rng = np.random.default_rng(0)
    K, G, d = {"tied": (20, 20, 40), "full": (3, 3, 60), "diagonal": (20, 30, 2000)}[kind]
    root = rng.normal(size=(K, G, d, 8)) if kind != "full" else rng.normal(size=(K, G, d, 2 * d))
    covariances: Any = np.einsum("kaij,kalj->kail", root, root) + np.eye(d) if kind != "diagonal" else None
    if kind == "tied":
        covariances = covariances[0]
    if kind == "diagonal":
        covariances = np.exp(rng.normal(size=(K, G, d)))
    return SubgroupMoments.from_statistics(rng.uniform(1, 2, (K, G)), rng.normal(size=(K, G, d)), covariances)


def interrupted(call: Any, after: Any) -> Any:
    """Seconds from the signal to the exception; None where the call was over before."""
    sent = []

    def send() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(after, send)
    timer.start()
    over = False
    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # as an error it would leave with the signal still to come
                call()
            over = True
        finally:
            timer.cancel()
            timer.join(timeout=120)
            time.sleep(0.01)  # here rather than in another test
    except KeyboardInterrupt:
        return None if over else time.perf_counter() - sent[0]
    return None


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a process of one's own")
@pytest.mark.parametrize(("kind", "map_type"), [("tied", "affine"), ("full", "affine"), ("full", "symmetric")])
def test_every_solve_can_be_interrupted(kind: Any, map_type: Any) -> None:
    moments = hard_moments(kind)
    took = interrupted(
        lambda: nearest_ideal(moments, covariance=kind, map_type=map_type, tol=0, max_iter=10**9), after=0.3
    )
    assert took is None or took < 5  # a second where the machine is not shared


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a process of one's own")
def test_an_interrupted_update_leaves_the_moments_as_they_were() -> None:
    rng = np.random.default_rng(0)
    n, d = 40_000, 600
    X = rng.normal(size=(n, d)).astype(np.float32)
    codes = rng.integers(2, size=n)
    moments = SubgroupMoments(d, classes=[0, 1], groups=[0, 1]).update(X[:900], codes[:900], codes[:900])
    before = [array.copy() for array in moments._sums()]
    if interrupted(lambda: moments.update(X, codes, codes), after=0.1) is None:
        pytest.skip("the update was over before the signal came")
    for array, old in zip(moments._sums(), before, strict=True):
        np.testing.assert_array_equal(array, old)


@pytest.mark.parametrize("kind", ["tied", "full", "diagonal"])
def test_time_ends_a_solve_with_the_nearest_so_far(kind: Any) -> None:
    moments = hard_moments(kind)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("error", ConvergenceWarning)
        with pytest.raises(ConvergenceWarning, match=r"max_time=0\.2"):
            nearest_ideal(moments, covariance=kind, tol=0, max_iter=10**9, max_time=0.2)
        warnings.simplefilter("ignore")
        ideal = nearest_ideal(moments, covariance=kind, tol=0, max_iter=10**9, max_time=0.2)
    assert time.perf_counter() - start < 20  # twice a fifth of a second where the machine is not shared
    assert not ideal.converged
    assert np.isfinite(ideal.linear).all()


def test_rounds_end_the_search_for_the_maps_that_move_points_least() -> None:
    rng = np.random.default_rng(0)
    K, G, d = 2, 20, 6
    roots = rng.normal(size=(G, d, 2 * d)) * np.geomspace(1, 2, d)[:, None]
    moments = SubgroupMoments.from_statistics(
        rng.uniform(1, 2, (K, G)), rng.normal(size=(K, G, d)), roots @ roots.mT / d, covariance="tied"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ideal = nearest_ideal(moments, covariance="tied", max_iter=1000)
    assert ideal.converged
    enough = ideal.n_iter + 1  # for the divergence; isometries and frame take more rounds
    with pytest.warns(ConvergenceWarning, match=r"some that move points less \(max_iter"):
        cut = nearest_ideal(moments, covariance="tied", max_iter=enough)
    assert not cut.converged
    assert cut.kl_divergence == ideal.kl_divergence
    with pytest.warns(ConvergenceWarning):
        short = nearest_ideal(moments, covariance="tied", max_iter=1)

    def displacement(ideal: Any) -> float:
        linear, offset = ideal.linear - np.eye(d), ideal.offset
        shift = np.einsum("aij,kaj->kai", linear, moments.means) + offset
        spread = np.einsum("aij,ajl,ail->a", linear, moments.covariances, linear)
        weights = moments.weights / moments.weights.sum()
        return float((weights * ((shift**2).sum(axis=2) + spread)).sum())

    assert displacement(ideal) < displacement(cut) < displacement(short)


@pytest.mark.parametrize("max_time", [0, -1.0, np.nan])
def test_a_time_that_is_none_is_refused(max_time: Any) -> None:
    moments = hard_moments("full")
    with pytest.raises(ValueError, match="max_time must be positive"):
        nearest_ideal(moments, covariance="full", max_time=max_time)


# ---
# Anything at all
# ---
def test_every_function_of_the_core_is_fuzzed() -> None:
    script = (Path(__file__).parent / "fuzz_core.py").read_text(encoding="utf-8")
    exported = {name for name in dir(_core) if not name.startswith("_") and name.islower()} - {"build_info"}
    assert all(f"def {name}(self)" in script for name in exported)


@pytest.mark.slow
def test_random_calls_neither_crash_nor_return_what_is_not_finite() -> None:
    calls = os.environ.get("FAIRSTEER_FUZZ_CALLS", "1200")
    script = Path(__file__).parent / "fuzz_core.py"
    done = subprocess.run(
        [sys.executable, script, "--calls", calls], capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("0 failures")
