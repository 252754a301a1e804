"""The routines of BLAS and LAPACK that the core finds in SciPy: checked when it is imported.

What the core computes with them is compared with its definition in tests/cpp/test_linalg.cpp.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest

from fairsteer import _core

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
            "fake.__pyx_capi__['dsyrk'] = real.__pyx_capi__['ssyrk']",
            "scipy.linalg.cython_blas.dsyrk has the signature",
        ),
        (
            "fake.__pyx_capi__['dsyrk'] = real.__pyx_capi__['dgemm']",
            "scipy.linalg.cython_blas.dsyrk has the signature",
        ),
        ("fake._blas_int_size = lambda: 8", "has 64-bit integers (ILP64)"),
        ("del fake.__pyx_capi__", "scipy.linalg.cython_blas publishes no routines"),
        ("fake.__pyx_capi__['dgemm'] = 1", "scipy.linalg.cython_blas.dgemm is not a capsule"),
    ],
    ids=["missing", "64-bit", "other type", "other routine", "ILP64", "no capsules", "no capsule"],
)
def test_another_blas_is_refused_with_a_way_out(change: Any, found: Any) -> None:
    script = textwrap.dedent(_IMPORT_WITH).format(change=change)
    command = [sys.executable, "-c", script, _core.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert found in done.stdout
    assert "pip install --force-reinstall --only-binary=scipy scipy" in done.stdout
