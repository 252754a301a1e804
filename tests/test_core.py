"""The raw extension: every dtype and order gives the same answer, and nothing that would corrupt memory gets in.

Nothing outside the package should call ``fairsteer._core``; the arrays it accepts are exact on purpose.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest

from benchmarks import problems, reference
from fairsteer import _core

N, G, D = 257, 3, 6
TOLERANCE = {"float16": 2e-2, "float32": 1e-5, "float64": 1e-12}


def maps(seed=0):
    rng = np.random.default_rng(seed)
    return np.eye(D) + rng.standard_normal((G, D, D)) / 4, rng.standard_normal((G, D))


def rows(dtype="float64"):
    X, _, codes = problems.rows(N, 1, G, D, seed=1, dtype=dtype)
    return X, codes.astype(np.int64)


def laid_out(X, order):
    if order == "F":
        return np.asfortranarray(X)
    if order == "strided":
        base = np.full((2 * N, 3 * D), np.nan, dtype=X.dtype)
        base[::2, ::3] = X
        return base[::2, ::3]
    if order == "negative":
        return np.ascontiguousarray(X[::-1, ::-1])[::-1, ::-1]
    if order == "one row for all":
        return np.broadcast_to(X[0], X.shape)
    return np.ascontiguousarray(X)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("order", ["C", "F", "strided", "negative", "one row for all"])
@pytest.mark.parametrize("writeable", [True, False])
def test_apply_maps_on_every_dtype_and_order(dtype, order, writeable):
    A, b = maps()
    X, codes = rows(dtype)
    X = laid_out(X, order)
    if not writeable:
        X.flags.writeable = False
    out = np.full(X.shape, np.nan, dtype=dtype)
    _core.apply_maps(X, codes, A, b, out)
    expected = reference.apply_maps(X.astype(np.float64), codes, A, b)
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_rows_with_a_negative_code_are_not_written(dtype):
    A, b = maps()
    X, codes = rows(dtype)
    codes[::4] = -1
    codes[1::4] = -2
    out = np.full(X.shape, 7, dtype=dtype)
    _core.apply_maps(X, codes, A, b, out)
    assert (out[codes < 0] == 7).all()
    assert (out[codes >= 0] != 7).any(axis=1).all()


def test_a_row_does_not_depend_on_the_rows_beside_it():
    A, b = maps()
    for dtype, tolerance in [("float32", 1e-6), ("float64", 1e-14)]:
        X, codes = rows(dtype)
        out, alone = np.zeros_like(X), np.empty_like(X)
        _core.apply_maps(X, codes, A, b, out)
        for i in range(0, N, 16):
            _core.apply_maps(X[i : i + 1], codes[i : i + 1], A, b, alone[i : i + 1])
            np.testing.assert_allclose(alone[i], out[i], rtol=tolerance, atol=tolerance)


def test_no_rows_and_wide_rows():
    A, b = maps()
    out = np.zeros((0, D))
    _core.apply_maps(np.zeros((0, D)), np.empty(0, np.int64), A, b, out)
    rng = np.random.default_rng(0)
    A, b = rng.standard_normal((2, 300, 300)), rng.standard_normal((2, 300))
    X, codes = rng.standard_normal((70, 300)), rng.integers(2, size=70)
    out = np.zeros_like(X)
    _core.apply_maps(X, codes, A, b, out)
    np.testing.assert_allclose(out, reference.apply_maps(X, codes, A, b), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("code", [G, G + 1, 2**40])
def test_a_code_beyond_the_groups_is_refused(code):
    A, b = maps()
    X, codes = rows()
    codes[11] = code
    with pytest.raises(ValueError, match=str(code)):
        _core.apply_maps(X, codes, A, b, np.zeros_like(X))


def refusals():
    A, b = maps()
    X, codes = rows()
    out = np.zeros_like(X)
    yield "X with a column too many", (np.ones((N, D + 1)), codes, A, b, out)
    yield "X with one dimension", (X[0], codes, A, b, out)
    yield "X of integers", (np.ones((N, D), np.int64), codes, A, b, out)
    yield "X in foreign byte order", (X.astype(X.dtype.newbyteorder()), codes, A, b, out)
    yield "X of complex numbers", (X.astype(complex), codes, A, b, out)
    yield "X of objects", (X.astype(object), codes, A, b, out)
    yield "X as a list", (X.tolist(), codes, A, b, out)
    yield "codes too short", (X, codes[:-1], A, b, out)
    yield "codes too long", (X, np.append(codes, 0), A, b, out)
    yield "codes of int32", (X, codes.astype(np.int32), A, b, out)
    yield "codes of floats", (X, codes.astype(float), A, b, out)
    yield "codes with two dimensions", (X, codes[:, None], A, b, out)
    yield "codes strided", (X, np.repeat(codes, 2)[::2], A, b, out)
    yield "A of float32", (X, codes, A.astype(np.float32), b, out)
    yield "A in Fortran order", (X, codes, np.asfortranarray(A), b, out)
    yield "A not square", (X, codes, np.ascontiguousarray(A[:, :, :-1]), b, out)
    yield "A with two dimensions", (X, codes, A[0], b, out)
    yield "b of another length", (X, codes, A, np.ascontiguousarray(b[:, :-1]), out)
    yield "b of fewer groups", (X, codes, A, b[:-1], out)
    yield "out of another dtype", (X, codes, A, b, out.astype(np.float32))
    yield "out of another shape", (X, codes, A, b, out[:-1])
    yield "out in Fortran order", (X, codes, A, b, np.asfortranarray(out))
    locked = out.copy()
    locked.setflags(write=False)
    yield "out read-only", (X, codes, A, b, locked)


@pytest.mark.parametrize("arguments", [pytest.param(a, id=i) for i, a in refusals()])
def test_apply_maps_refuses(arguments):
    with pytest.raises((ValueError, TypeError)):
        _core.apply_maps(*arguments)


def test_the_gil_is_released_and_calls_from_many_threads_agree():
    A, b = maps()
    X, codes = rows()
    X, codes = np.tile(X, (40, 1)), np.tile(codes, 40)
    expected = reference.apply_maps(X, codes, A, b)
    outs = [np.zeros_like(X) for _ in range(8)]
    threads = [threading.Thread(target=_core.apply_maps, args=(X, codes, A, b, out)) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out in outs:
        np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(out, outs[0])


# ---
# The accumulators behind SubgroupMoments: (weights, squares, means, scatters, cubics, quartics)
# ---
def sums(kind, K=2, G=2, d=D):
    scatter = {"tied": (G, d, d), "full": (K, G, d, d), "diagonal": (K, G, d)}[kind]
    quartic = (K, G, d) if kind == "diagonal" else (K, G)
    shapes = [(K, G), (K, G), (K, G, d), scatter, (K, G, d), quartic]
    return tuple(np.zeros(shape) for shape in shapes)


def data():
    X, y, a = problems.rows(N, 2, 2, D, seed=2)
    return X, (y * 2 + a).astype(np.int64), np.random.default_rng(0).uniform(0.1, 2, N)


@pytest.mark.parametrize("kind", ["tied", "full", "diagonal"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("order", ["C", "F", "strided", "negative"])
def test_the_sums_are_the_central_moments(kind, dtype, order):
    X, codes, weights = data()
    X = X.astype(dtype)
    into = sums(kind)
    _core.update_moments(kind, into, laid_out(X, order), codes, weights)
    weight, square, mean, scatter, cubic, quartic = into
    rtol, atol = (1e-10, 1e-9) if dtype == "float64" else (1e-4, 2e-3)
    X = X.astype(np.float64)
    expected_scatter = np.zeros_like(scatter)
    for cell in range(4):
        k, g = divmod(cell, 2)
        rows, w = X[codes == cell], weights[codes == cell]
        y = rows - w @ rows / w.sum()
        assert weight[k, g] == pytest.approx(w.sum())
        assert square[k, g] == pytest.approx((w**2).sum())
        np.testing.assert_allclose(mean[k, g], w @ rows / w.sum(), rtol=rtol, atol=atol)
        if kind == "diagonal":
            expected_scatter[k, g] = w @ y**2
            third, fourth = w @ y**3, w @ y**4
        else:
            norm = np.sum(y**2, axis=1)
            expected_scatter[g if kind == "tied" else (k, g)] += (y * w[:, None]).T @ y
            third, fourth = (w * norm) @ y, w @ norm**2
        np.testing.assert_allclose(cubic[k, g], third, rtol=rtol, atol=atol * N)
        np.testing.assert_allclose(quartic[k, g], fourth, rtol=rtol, atol=atol * N)
    np.testing.assert_allclose(scatter, expected_scatter, rtol=rtol, atol=atol * N)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_merged_sums_equal_those_of_one_pass(kind):
    X, codes, weights = data()
    whole, left, right = sums(kind), sums(kind), sums(kind)
    _core.update_moments(kind, whole, X, codes, weights)
    _core.update_moments(kind, left, X[:90], codes[:90], weights[:90])
    _core.update_moments(kind, right, X[90:], codes[90:], weights[90:])
    _core.merge_moments(kind, left, right, np.arange(4))
    for merged, once in zip(left, whole, strict=True):
        np.testing.assert_allclose(merged, once, rtol=1e-9, atol=1e-9)


def test_sums_refuse_what_does_not_fit():
    X, codes, weights = data()
    good = sums("full")
    bad = {
        "covariance": ("spherical", good, X, codes, weights),
        "number of arrays": ("full", good[:5], X, codes, weights),
        "model": ("tied", good, X, codes, weights),
        "columns": ("full", good, X[:, :-1], codes, weights),
        "codes": ("full", good, X, codes[:-1], weights),
        "code dtype": ("full", good, X, codes.astype(np.int32), weights),
        "code range": ("full", good, X, codes + 1, weights),
        "weights": ("full", good, X, codes, weights[:-1]),
        "weight dtype": ("full", good, X, codes, weights.astype(np.float32)),
        "float32 sums": ("full", tuple(s.astype(np.float32) for s in good), X, codes, weights),
        "X dtype": ("full", good, X.astype(int), codes, weights),
    }
    for name, arguments in bad.items():
        try:
            _core.update_moments(*arguments)
        except (ValueError, TypeError):
            continue
        pytest.fail(f"accepted a wrong {name}")
    locked = sums("full")
    locked[3].setflags(write=False)
    with pytest.raises((ValueError, TypeError), match="read-only"):
        _core.update_moments("full", locked, X, codes, weights)
    assert not any(array.any() for array in good)


def test_merging_sums_refuses_cells_out_of_range():
    left, right = sums("full"), sums("full")
    for cells in [np.arange(1, 5), np.array([-1, 0, 1, 2]), np.arange(3), np.arange(4.0)]:
        with pytest.raises((ValueError, TypeError)):
            _core.merge_moments("full", left, right, cells)
    with pytest.raises(ValueError, match=r"features"):
        _core.merge_moments("full", left, sums("full", d=D + 1), np.arange(4))
