"""What the machine can do at all: products, decompositions and memory, at the size and dtype of a case."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.linalg import blas

from benchmarks.speed.contest import Contender

_KINDS = {"float32": "s", "float64": "d"}


def syrk(X: NDArray[Any]) -> Contender:
    """X^T X in one call over all rows, one triangle; the rows are read where they lie."""
    routine = getattr(blas, _KINDS[X.dtype.name] + "syrk")
    out = np.zeros((X.shape[1], X.shape[1]), X.dtype, order="F")

    def run() -> Any:
        # The transposed view is in Fortran order: nothing is copied.
        return routine(1.0, X.T, beta=0.0, c=out, lower=1, overwrite_c=1)

    return Contender(f"one {_KINDS[X.dtype.name]}syrk", "limit", run)


def gemm(X: NDArray[Any], A: NDArray[Any], *, allocate: bool) -> Contender:
    """X A^T in one call, into memory that is there already or is taken anew, as by a function that returns rows."""
    routine = getattr(blas, _KINDS[X.dtype.name] + "gemm")
    matrix = np.ascontiguousarray(A, X.dtype)
    out = np.zeros_like(X)

    def run() -> Any:
        target = np.empty_like(X) if allocate else out
        return routine(1.0, matrix.T, X.T, beta=0.0, c=target.T, trans_a=1, overwrite_c=1)

    return Contender(f"one {_KINDS[X.dtype.name]}gemm, {'new' if allocate else 'its own'} output", "limit", run)


def eigh(S: NDArray[np.float64]) -> Contender:
    """One symmetric eigen-decomposition, divide and conquer."""

    def run() -> Any:
        return linalg.eigh(np.array(S, order="F"), driver="evd", overwrite_a=True, check_finite=False)

    return Contender("one eigen-decomposition", "limit", run)


def memory(arrays: list[NDArray[Any]], threads: int) -> list[Contender]:
    """Reading the case's input once, and copying it, with as many threads: bandwidth at the size of the case."""
    pool = ThreadPoolExecutor(threads)
    flat = [np.ascontiguousarray(a).ravel() for a in arrays]
    parts = [part for a in flat for part in np.array_split(a, threads)]
    copies = [np.zeros_like(part) for part in parts]
    moved = float(sum(a.nbytes for a in flat))

    def in_threads(work: Callable[..., Any], *parts: Any) -> Callable[[], Any]:
        if threads == 1:
            return lambda: [work(*some) for some in zip(*parts, strict=True)]
        return lambda: list(pool.map(work, *parts))

    # NumPy's fastest reduction: it keeps up with memory, where a sum of float32 does not.
    read = in_threads(np.max, parts)
    copy = in_threads(np.copyto, copies, parts)
    return [
        Contender("reading the input once", "limit", read, work=moved),
        Contender("copying the input once", "limit", copy, work=2 * moved),
    ]
