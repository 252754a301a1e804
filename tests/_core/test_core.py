"""The raw extension: every dtype and order gives the same answer, and nothing that would corrupt memory gets in.

Nothing outside the package should call ``fairsteer._core``; the arrays it accepts are exact on purpose.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from threadpoolctl import threadpool_limits

from benchmarks import problems, reference, timing
from fairsteer import _core

N, G, D = 257, 3, 6
TOLERANCE = {"float16": 2e-2, "float32": 1e-5, "float64": 1e-12}


def maps(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return np.eye(D) + rng.standard_normal((G, D, D)) / 4, rng.standard_normal((G, D))


def rows(dtype: str = "float64") -> Any:
    X, _, codes = problems.rows(N, 1, G, D, seed=1, dtype=dtype)
    return X, codes.astype(np.int64)


def laid_out(X: Any, order: Any) -> Any:
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


def in_precision_of(X: Any, A: Any, b: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Maps as they go with rows: double for double ones, single for the others."""
    dtype = np.float64 if X.dtype == np.float64 else np.float32
    return A.astype(dtype), np.zeros_like(b, dtype=dtype), b.astype(dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("order", ["C", "F", "strided", "negative", "one row for all"])
@pytest.mark.parametrize("writeable", [True, False])
def test_apply_maps_on_every_dtype_and_order(dtype: Any, order: Any, writeable: Any) -> None:
    A, b = maps()
    X, codes = rows(dtype)
    X = laid_out(X, order)
    if not writeable:
        X.flags.writeable = False
    out = np.full(X.shape, np.nan, dtype=dtype)
    _core.apply_maps(X, codes, *in_precision_of(X, A, b), out)
    expected = reference.apply_maps(X.astype(np.float64), codes, A, b)
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_rows_with_a_negative_code_are_not_written(dtype: Any) -> None:
    A, b = maps()
    X, codes = rows(dtype)
    codes[::4] = -1
    codes[1::4] = -2
    out = np.full(X.shape, 7, dtype=dtype)
    _core.apply_maps(X, codes, *in_precision_of(X, A, b), out)
    assert (out[codes < 0] == 7).all()
    assert (out[codes >= 0] != 7).any(axis=1).all()


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    A, b = maps()
    for dtype, tolerance in [("float32", 1e-6), ("float64", 1e-14)]:
        X, codes = rows(dtype)
        out, alone = np.zeros_like(X), np.empty_like(X)
        own = in_precision_of(X, A, b)
        _core.apply_maps(X, codes, *own, out)
        for i in range(0, N, 16):
            _core.apply_maps(X[i : i + 1], codes[i : i + 1], *own, alone[i : i + 1])
            np.testing.assert_allclose(alone[i], out[i], rtol=tolerance, atol=tolerance)


def test_no_rows_and_wide_rows() -> None:
    A, b = maps()
    out = np.zeros((0, D))
    _core.apply_maps(np.zeros((0, D)), np.empty(0, np.int64), A, np.zeros_like(b), b, out)
    rng = np.random.default_rng(0)
    A, b = rng.standard_normal((2, 300, 300)), rng.standard_normal((2, 300))
    X, codes = rng.standard_normal((70, 300)), rng.integers(2, size=70)
    out = np.zeros_like(X)
    _core.apply_maps(X, codes, A, np.zeros_like(b), b, out)
    np.testing.assert_allclose(out, reference.apply_maps(X, codes, A, b), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("code", [G, G + 1, 2**40])
def test_a_code_beyond_the_groups_is_refused(code: Any) -> None:
    A, b = maps()
    X, codes = rows()
    codes[11] = code
    with pytest.raises(ValueError, match=str(code)):
        _core.apply_maps(X, codes, A, np.zeros_like(b), b, np.zeros_like(X))


def misaligned(array: Any) -> Any:
    """The same numbers one byte off where a processor wants them."""
    space = np.zeros(array.nbytes + 1, dtype=np.uint8)
    shifted = space[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    return shifted


def refusals() -> Iterator[Any]:
    A, b = maps()
    X, codes = rows()
    c, out = np.zeros_like(b), np.zeros_like(X)
    yield "X with a column too many", (np.ones((N, D + 1)), codes, A, c, b, out)
    yield "X with one dimension", (X[0], codes, A, c, b, out)
    yield "X of integers", (np.ones((N, D), np.int64), codes, A, c, b, out)
    yield "X in foreign byte order", (X.astype(X.dtype.newbyteorder()), codes, A, c, b, out)
    yield "X of complex numbers", (X.astype(complex), codes, A, c, b, out)
    yield "X of objects", (X.astype(object), codes, A, c, b, out)
    yield "X as a list", (X.tolist(), codes, A, c, b, out)
    yield "codes too short", (X, codes[:-1], A, c, b, out)
    yield "codes too long", (X, np.append(codes, 0), A, c, b, out)
    yield "codes of int32", (X, codes.astype(np.int32), A, c, b, out)
    yield "codes of floats", (X, codes.astype(float), A, c, b, out)
    yield "codes with two dimensions", (X, codes[:, None], A, c, b, out)
    yield "codes strided", (X, np.repeat(codes, 2)[::2], A, c, b, out)
    yield "A of float32", (X, codes, A.astype(np.float32), c, b, out)
    yield "maps of float64 with rows of float32", (X.astype(np.float32), codes, A, c, b, out.astype(np.float32))
    yield "A in Fortran order", (X, codes, np.asfortranarray(A), c, b, out)
    yield "A not square", (X, codes, np.ascontiguousarray(A[:, :, :-1]), c, b, out)
    yield "A with two dimensions", (X, codes, A[0], c, b, out)
    yield "b of another length", (X, codes, A, c, np.ascontiguousarray(b[:, :-1]), out)
    yield "b of fewer groups", (X, codes, A, c, b[:-1], out)
    yield "out of another dtype", (X, codes, A, c, b, out.astype(np.float32))
    yield "out of another shape", (X, codes, A, c, b, out[:-1])
    yield "out in Fortran order", (X, codes, A, c, b, np.asfortranarray(out))
    yield "c missing", (X, codes, A, None, b, out)
    yield "c of another length", (X, codes, A, np.ascontiguousarray(c[:, :-1]), b, out)
    yield "c of float32", (X, codes, A, c.astype(np.float32), b, out)
    yield "out within X", (X, codes, A, c, b, X)
    yield "codes at odd addresses", (X, misaligned(codes), A, c, b, out)
    yield "A at odd addresses", (X, codes, misaligned(A), c, b, out)
    yield "maps of no features", (X[:, :0], codes, A[:, :0, :0], c[:, :0], b[:, :0], out[:, :0])
    locked = out.copy()
    locked.setflags(write=False)
    yield "out read-only", (X, codes, A, c, b, locked)


@pytest.mark.parametrize("arguments", [pytest.param(a, id=i) for i, a in refusals()])
def test_apply_maps_refuses(arguments: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        _core.apply_maps(*arguments)


def test_the_gil_is_released_and_calls_from_many_threads_agree() -> None:
    A, b = maps()
    X, codes = rows()
    X, codes = np.tile(X, (40, 1)), np.tile(codes, 40)
    expected = reference.apply_maps(X, codes, A, b)
    outs = [np.zeros_like(X) for _ in range(8)]
    threads = [threading.Thread(target=_core.apply_maps, args=(X, codes, A, np.zeros_like(b), b, out)) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    for out in outs:
        np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(out, outs[0])


# ---
# The accumulators behind SubgroupMoments: (weights, squares, means, scatters, cubics, quartics)
# ---
def sums(kind: Any, K: int = 2, G: int = 2, d: Any = D) -> Any:
    scatter = {"tied": (G, d, d), "full": (K, G, d, d), "diagonal": (K, G, d)}[kind]
    quartic = (K, G, d) if kind == "diagonal" else (K, G)
    shapes = [(K, G), (K, G), (K, G, d), scatter, (K, G, d), quartic]
    return tuple(np.zeros(shape) for shape in shapes)


def data() -> Any:
    X, y, a = problems.rows(N, 2, 2, D, seed=2)
    return X, y.astype(np.int64), a.astype(np.int64), np.random.default_rng(0).uniform(0.1, 2, N)


@pytest.mark.parametrize("kind", ["tied", "full", "diagonal"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("order", ["C", "F", "strided", "negative"])
def test_the_sums_are_the_central_moments(kind: Any, dtype: Any, order: Any) -> None:
    X, y, a, weights = data()
    X = X.astype(dtype)
    into = sums(kind)
    _core.update_moments(kind, into, laid_out(X, order), y, a, weights)
    weight, square, mean, scatter, cubic, quartic = into
    rtol, atol = (1e-10, 1e-9) if dtype == "float64" else (1e-4, 2e-3)
    X = X.astype(np.float64)
    expected_scatter = np.zeros_like(scatter)
    for cell in range(4):
        k, g = divmod(cell, 2)
        inside = (y == k) & (a == g)
        rows, w = X[inside], weights[inside]
        residual = rows - w @ rows / w.sum()
        assert weight[k, g] == pytest.approx(w.sum())
        assert square[k, g] == pytest.approx((w**2).sum())
        np.testing.assert_allclose(mean[k, g], w @ rows / w.sum(), rtol=rtol, atol=atol)
        if kind == "diagonal":
            expected_scatter[k, g] = w @ residual**2
            third, fourth = w @ residual**3, w @ residual**4
        else:
            norm = np.sum(residual**2, axis=1)
            expected_scatter[g if kind == "tied" else (k, g)] += (residual * w[:, None]).T @ residual
            third, fourth = (w * norm) @ residual, w @ norm**2
        np.testing.assert_allclose(cubic[k, g], third, rtol=rtol, atol=atol * N)
        np.testing.assert_allclose(quartic[k, g], fourth, rtol=rtol, atol=atol * N)
    np.testing.assert_allclose(scatter, expected_scatter, rtol=rtol, atol=atol * N)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_merged_sums_equal_those_of_one_pass(kind: Any) -> None:
    X, y, a, weights = data()
    whole, left, right = sums(kind), sums(kind), sums(kind)
    _core.update_moments(kind, whole, X, y, a, weights)
    _core.update_moments(kind, left, X[:90], y[:90], a[:90], weights[:90])
    _core.update_moments(kind, right, X[90:], y[90:], a[90:], weights[90:])
    _core.merge_moments(kind, left, right, np.arange(4))
    for merged, once in zip(left, whole, strict=True):
        np.testing.assert_allclose(merged, once, rtol=1e-9, atol=1e-9)


def test_sums_refuse_what_does_not_fit() -> None:
    X, y, a, weights = data()
    good = sums("full")
    bad = {
        "covariance": ("spherical", good, X, y, a, weights),
        "number of arrays": ("full", good[:5], X, y, a, weights),
        "model": ("tied", good, X, y, a, weights),
        "columns": ("full", good, X[:, :-1], y, a, weights),
        "class codes": ("full", good, X, y[:-1], a, weights),
        "group codes": ("full", good, X, y, a[:-1], weights),
        "class code dtype": ("full", good, X, y.astype(np.int32), a, weights),
        "group code dtype": ("full", good, X, y, a.astype(np.int32), weights),
        "class code range": ("full", good, X, y + 1, a, weights),
        "group code range": ("full", good, X, y, a + 1, weights),
        "weights": ("full", good, X, y, a, weights[:-1]),
        "weight dtype": ("full", good, X, y, a, weights.astype(np.float32)),
        "float32 sums": ("full", tuple(s.astype(np.float32) for s in good), X, y, a, weights),
        "X dtype": ("full", good, X.astype(int), y, a, weights),
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
        _core.update_moments("full", locked, X, y, a, weights)
    assert not any(array.any() for array in good)


def test_merging_sums_refuses_cells_out_of_range() -> None:
    left, right = sums("full"), sums("full")
    for cells in [np.arange(1, 5), np.array([-1, 0, 1, 2]), np.arange(3), np.arange(4.0)]:
        with pytest.raises((ValueError, TypeError)):
            _core.merge_moments("full", left, right, cells)
    with pytest.raises(ValueError, match=r"features"):
        _core.merge_moments("full", left, sums("full", d=D + 1), np.arange(4))


@pytest.mark.parametrize("kind", ["tied", "full", "diagonal"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("d", "weighted", "left_out"), [(5, True, False), (30, False, True), (80, True, True)])
def test_sums_and_maps_are_the_same_bits_on_any_number_of_threads(
    kind: Any, dtype: Any, d: Any, weighted: Any, left_out: Any
) -> None:
    X, y, a = problems.rows(20_000, 3, 2, d, seed=5, dtype=dtype)
    y, a = y.astype(np.int64), a.astype(np.int64)
    weights = np.random.default_rng(0).uniform(0.1, 2, len(X)) if weighted else None
    if left_out:
        y[np.random.default_rng(1).random(len(y)) < 0.01] = -1
    with threadpool_limits(1, "blas"):
        one, *others = [sums(kind, K=3, d=d) for _ in range(3)]
        _core.update_moments(kind, one, X, y, a, weights, 1)
        for n_threads, other in zip((2, 5), others, strict=True):
            _core.update_moments(kind, other, X, y, a, weights, n_threads)
            assert all(np.array_equal(x, z) for x, z in zip(one, other, strict=True))
        rng = np.random.default_rng(1)
        A, c, b = in_precision_of(X, rng.standard_normal((2, d, d)), rng.standard_normal((2, d)))
        mapped = [np.empty_like(X) for _ in range(3)]
        for n_threads, out in zip((1, 2, 5), mapped, strict=True):
            _core.apply_maps(X, a, A, c, b, out, n_threads)
            assert np.array_equal(out, mapped[0])


@pytest.mark.parametrize("kind", ["tied", "full", "diagonal"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("d", [3, 8, 16, 30, 65])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_that_are_left_out_might_as_well_not_be_there(kind: Any, dtype: Any, d: Any, weighted: Any) -> None:
    X, y, a = problems.rows(1500, 3, 2, d, seed=6, dtype=dtype)
    y, a = y.astype(np.int64), a.astype(np.int64)
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.1, 2, len(X)) if weighted else None
    y[700:1300][rng.random(600) < 0.3] = -1  # so that some stretches of rows are whole and some are not
    some, those = sums(kind, K=3, d=d), sums(kind, K=3, d=d)
    _core.update_moments(kind, some, X, y, a, weights)
    kept = y >= 0
    _core.update_moments(kind, those, X[kept], y[kept], a[kept], None if weights is None else weights[kept])
    assert some[0].sum() == pytest.approx(kept.sum() if weights is None else weights[kept].sum())
    for one, other in zip(some, those, strict=True):
        np.testing.assert_allclose(one, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * np.abs(other).max())


@pytest.mark.parametrize("d", [1, 7, 60])
def test_inverses_and_mapped_covariances_are_those_of_numpy(d: Any) -> None:
    rng = np.random.default_rng(5)
    maps = rng.standard_normal((4, d, d)) + 3 * np.eye(d)
    roots = rng.standard_normal((3, d, d))
    covariances = roots @ np.swapaxes(roots, 1, 2)
    inverses = _core.invert(maps)
    np.testing.assert_allclose(inverses @ maps, np.broadcast_to(np.eye(d), maps.shape), atol=1e-9)
    mapped = _core.map_covariances(maps, covariances)
    np.testing.assert_allclose(mapped, np.einsum("aij,kjl,aml->kaim", maps, covariances, maps), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(mapped, np.swapaxes(mapped, 2, 3))
    with threadpool_limits(1, "blas"):
        np.testing.assert_array_equal(inverses, _core.invert(maps, 3))
        np.testing.assert_array_equal(mapped, _core.map_covariances(maps, covariances, 3))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_the_inverse_that_is_missing_is_named(value: Any) -> None:
    maps = np.broadcast_to(np.eye(30), (3, 30, 30)).copy()
    maps[1, 4, 4] = value
    with pytest.raises(_core.NumericalError, match="singular or not finite") as caught:
        _core.invert(maps, 2)
    assert caught.value.args[1:] == (-1, 1)


def test_matrices_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="3 dimensions"):
        _core.invert(np.eye(3))
    with pytest.raises(ValueError, match="must have shape"):
        _core.invert(np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="must have shape"):
        _core.map_covariances(np.ones((2, 3, 3)), np.ones((2, 4, 4)))
    with pytest.raises(TypeError):
        _core.invert(np.swapaxes(np.ones((2, 3, 3)), 0, 2))


# ---
# Columns laid out row by row
# ---
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (40, 16), (50, 19)], ids=str)
def test_columns_are_laid_out_row_by_row(shape: tuple[int, int], dtype: Any) -> None:
    expected = np.random.default_rng(0).normal(size=shape).astype(dtype)
    expected.flat[:1] = np.nan
    columns = [np.ascontiguousarray(column) for column in expected.T]
    for column in columns:
        column.setflags(write=False)
    space = np.full((len(expected) + 2, shape[1]), 7, dtype=dtype)
    _core.lay_out(columns, space[1:-1])
    np.testing.assert_array_equal(space[1:-1], expected)
    assert (space[[0, -1]] == 7).all()


def test_columns_and_rows_that_do_not_fit_are_refused() -> None:
    columns = [np.arange(4.0), np.arange(4.0)]
    with pytest.raises(ValueError, match=r"columns must have shape \(3,\), not \(4,\)"):
        _core.lay_out(columns, np.empty((3, 2)))
    with pytest.raises(ValueError, match="a column for each of 2, not 3"):
        _core.lay_out(columns, np.empty((4, 3)))
    with pytest.raises(TypeError, match="dtype of out, float32"):
        _core.lay_out(columns, np.empty((4, 2), dtype=np.float32))
    with pytest.raises(TypeError, match="C-contiguous"):
        _core.lay_out([np.arange(8.0)[::2], np.arange(4.0)], np.empty((4, 2)))
    with pytest.raises(TypeError, match="out must be C-contiguous"):
        _core.lay_out(columns, np.empty((2, 4)).T)
    with pytest.raises(TypeError, match="float32 or float64"):
        _core.lay_out(columns, np.empty((4, 2), dtype=np.int64))
    with pytest.raises(ValueError, match="2 dimensions"):
        _core.lay_out(columns, np.empty(8))
    locked = np.empty((4, 2))
    locked.setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        _core.lay_out(columns, locked)
    both = np.zeros((4, 1))
    with pytest.raises(ValueError, match="must not share memory"):
        _core.lay_out([both[:, 0]], both)


# ---
# Memory
# ---
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc that tells the peak of memory")
@pytest.mark.parametrize("kind", ["tied", "full"])
def test_an_update_takes_no_memory_of_the_size_of_the_sums(kind: Any) -> None:
    d, K = 900, 4
    rng = np.random.default_rng(0)
    shape = (1, d, d) if kind == "tied" else (K, 1, d, d)
    held = tuple(np.zeros(one) for one in [(K, 1), (K, 1), (K, 1, d), shape, (K, 1, d), (K, 1)])
    X, y, a = rng.normal(size=(40, d)), np.arange(40) % K, np.zeros(40, dtype=np.int64)
    _core.update_moments(kind, held, X, y, a)
    taken = [timing.extra_peak_memory(lambda: _core.update_moments(kind, held, X, y, a)) for _ in range(2)]
    # One matrix for the products of the rows; the sums of "full" are four of them.
    assert min(taken) < 2.5 * 8 * d * d
