"""Each routine bound in cpp/bindings/scipy_blas.cpp gives the answer of scipy.linalg."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from scipy import linalg

from fairsteer import _core

_blas = _core._blas


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture
def tolerance(dtype):
    return 2e-3 if dtype == np.float32 else 1e-10


@pytest.fixture
def sample(dtype):
    """Fortran-ordered normal arrays: sample(rows, cols)."""
    rng = np.random.default_rng(7)

    def draw(*shape):
        return np.asfortranarray(rng.standard_normal(shape), dtype=dtype)

    return draw


@pytest.fixture(params=[1, 3, 40, 130])
def size(request):
    return request.param


def spd(a):
    return np.asfortranarray(a @ a.T + np.eye(len(a), dtype=a.dtype) * len(a))


def lower(a):
    """The lower triangle holds the matrix; NaN above shows a routine that reads the wrong one."""
    poisoned = np.array(a, order="F")
    poisoned[np.triu_indices(len(a), 1)] = np.nan
    return poisoned


def triangular(a):
    return np.tril(a) + np.eye(len(a), dtype=a.dtype) * len(a)


def agree(actual, expected, dtype, tolerance):
    assert actual.dtype == dtype
    expected = np.asarray(expected).reshape(actual.shape)
    scale = max(float(np.abs(expected).max()), 1.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def test_products(sample, size, dtype, tolerance):
    a, b, x = sample(size, size + 2), sample(size + 2, size + 5), sample(size + 2, 1)
    agree(_blas.gemm(a, b), linalg.blas.get_blas_funcs("gemm", (a, b))(1.0, a, b), dtype, tolerance)
    agree(_blas.gemv(a, x), linalg.blas.get_blas_funcs("gemv", (a, x))(1.0, a, x), dtype, tolerance)


def test_symmetric_products(sample, size, dtype, tolerance):
    a, b, x = spd(sample(size, size)), sample(size, size + 3), sample(size, 1)
    symm, symv = linalg.blas.get_blas_funcs(["symm", "symv"], (a,))
    agree(_blas.symm(lower(a), b), symm(1.0, a, b, lower=1), dtype, tolerance)
    agree(_blas.symv(lower(a), x), symv(1.0, a, x, lower=1), dtype, tolerance)


def test_rank_update(sample, size, dtype, tolerance):
    a = sample(size, size + 4)
    syrk = linalg.blas.get_blas_funcs("syrk", (a,))
    agree(_blas.syrk(a), np.tril(syrk(1.0, a, lower=1)), dtype, tolerance)


def test_triangular_products_and_solves(sample, size, dtype, tolerance):
    a, b, x = triangular(sample(size, size)), sample(size, size + 3), sample(size, 1)
    trmm, trmv = linalg.blas.get_blas_funcs(["trmm", "trmv"], (a,))
    agree(_blas.trmm(lower(a), b), trmm(1.0, a, b, lower=1), dtype, tolerance)
    agree(_blas.trmv(lower(a), x), trmv(a, x[:, 0], lower=1), dtype, tolerance)
    expected = linalg.solve_triangular(a, b, lower=True)
    agree(_blas.trsm(lower(a), b), expected, dtype, tolerance)


def test_cholesky(sample, size, dtype, tolerance):
    a = spd(sample(size, size))
    success, factor = _blas.cholesky(lower(a))
    assert success
    agree(factor, linalg.cholesky(a, lower=True), dtype, tolerance)


def test_cholesky_tells_an_indefinite_matrix(sample):
    a = sample(5, 5)
    success, _ = _blas.cholesky(np.asfortranarray(-spd(a)))
    assert not success


def test_eigh(sample, size, dtype, tolerance):
    a = spd(sample(size, size))
    success, values, vectors = _blas.eigh(lower(a))
    assert success
    agree(values, linalg.eigh(a, eigvals_only=True), dtype, tolerance)
    agree((vectors * values.T) @ vectors.T, a, dtype, tolerance)
    agree(vectors.T @ vectors, np.eye(size), dtype, tolerance)


@pytest.mark.parametrize("routine", ["svd", "divide_and_conquer_svd"])
@pytest.mark.parametrize("extra", [(0, 0), (6, 0), (0, 6)], ids=["square", "tall", "wide"])
def test_svd(sample, size, dtype, tolerance, routine, extra):
    a = sample(size + extra[0], size + extra[1])
    u, values, v = getattr(_blas, routine)(a)
    agree(values, linalg.svdvals(a), dtype, tolerance)
    agree((u * values.T) @ v.T, a, dtype, tolerance)
    agree(u.T @ u, np.eye(size), dtype, tolerance)


@pytest.mark.parametrize("routine", ["lu_solve", "qr_solve", "pivoted_qr_solve"])
def test_solvers(sample, size, dtype, tolerance, routine):
    # An arrow against the diagonal: LU has to exchange rows.
    a = sample(size, size) + np.asfortranarray(np.eye(size, dtype=dtype)[::-1] * size)
    b = sample(size, 3)
    agree(getattr(_blas, routine)(np.asfortranarray(a), b), linalg.solve(a, b), dtype, tolerance)


@pytest.mark.parametrize("routine", ["qr_solve", "pivoted_qr_solve"])
def test_least_squares(sample, dtype, tolerance, routine):
    a, b = sample(30, 12), sample(30, 2)
    agree(getattr(_blas, routine)(a, b), linalg.lstsq(a, b)[0], dtype, tolerance)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_never_look_like_an_answer(sample, value):
    a = spd(sample(40, 40))
    a[5, 2] = a[2, 5] = value
    assert not _blas.cholesky(a)[0]
    assert not _blas.eigh(a)[0]
    assert np.isnan(_blas.svd(a)[1]).all()
    assert np.isnan(_blas.lu_solve(a, sample(40, 1))).any()


def test_a_row_major_decomposition_is_an_error_and_no_answer(sample):
    with pytest.raises(RuntimeError, match="row-major"):
        _blas.row_major_lu(sample(40, 40))


@pytest.mark.parametrize("other", ["C", "int"])
def test_a_wrong_order_or_type_is_refused(sample, other):
    a = sample(4, 5)
    wrong = np.ascontiguousarray(a) if other == "C" else np.asfortranarray(a, dtype=np.int64)
    with pytest.raises(TypeError):
        _blas.syrk(wrong)


# The import of the module in a fresh interpreter whose SciPy publishes other routines.
_IMPORT_WITH = """
    import ctypes, sys, types
    import scipy.linalg
    from importlib.util import module_from_spec, spec_from_file_location

    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

    from scipy.linalg import cython_blas as real
    fake = types.ModuleType(real.__name__)
    fake.__pyx_capi__ = dict(real.__pyx_capi__)
    {change}
    sys.modules[real.__name__] = scipy.linalg.cython_blas = fake
    spec = spec_from_file_location("fairsteer._core", sys.argv[1])
    try:
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("del fake.__pyx_capi__['dgemm']", "scipy.linalg.cython_blas.dgemm is missing"),
        (
            "name = b'void (char *, long *)'; fake.__pyx_capi__['ssyrk'] = new(1, name, None)",
            "scipy.linalg.cython_blas.ssyrk has the signature 'void (char *, long *)'",
        ),
        (
            "fake.__pyx_capi__['dgemv'] = real.__pyx_capi__['sgemv']",
            "scipy.linalg.cython_blas.dgemv has the signature",
        ),
        (
            "fake.__pyx_capi__['dgemv'] = real.__pyx_capi__['dgemm']",
            "scipy.linalg.cython_blas.dgemv has the signature",
        ),
        ("fake._blas_int_size = lambda: 8", "has 64-bit integers (ILP64)"),
        ("del fake.__pyx_capi__", "scipy.linalg.cython_blas publishes no routines"),
        ("fake.__pyx_capi__['dgemm'] = 1", "scipy.linalg.cython_blas.dgemm is not a capsule"),
    ],
    ids=["missing", "64-bit", "other type", "other routine", "ILP64", "no capsules", "no capsule"],
)
def test_another_blas_is_refused_with_a_way_out(change, found):
    script = textwrap.dedent(_IMPORT_WITH).format(change=change)
    done = subprocess.run([sys.executable, "-c", script, _core.__file__], capture_output=True, text=True, check=True)
    assert found in done.stdout
    assert "pip install --force-reinstall --only-binary=scipy scipy" in done.stdout
