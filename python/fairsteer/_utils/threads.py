"""How many threads the core may run, and BLAS kept to one thread inside each of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import joblib
from threadpoolctl import ThreadpoolController

_lock = threading.Lock()


_running = 0  # threads that the core runs now, in all calls of this process together


_n_allowed = 1  # threads that it may run


_limit: Any = None  # what gives BLAS its threads back; set while threads run


@cache
def _blas() -> Any:
    # Looking the libraries up takes milliseconds; SciPy's, which the core calls, is loaded by now and stays.
    return ThreadpoolController().select(user_api="blas")


@cache
def _cpu_count() -> int:
    return int(joblib.cpu_count())  # reads files: what a container allows stays as it is


def _allowed() -> int:
    """Give the least of the limits: of BLAS (``threadpoolctl``, environment), OpenMP, affinity and container."""
    limits = [_cpu_count(), *(int(library.num_threads) for library in _blas().lib_controllers)]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    requested = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if requested.isdigit():
        limits.append(int(requested))
    return max(1, min(limits))


@contextmanager
def own_threads() -> Iterator[int]:
    """Give the number of threads to run in the block, in which BLAS has one.

    Calls at the same time, from threads of the caller's, share what is allowed: each gets at least one thread.
    """
    global _running, _limit, _n_allowed
    with _lock:
        if _running == 0:
            _n_allowed = _allowed()
            _limit = _blas().limit(limits=1)
            # Where another thread of the process controls BLAS, this one cannot: then BLAS has the threads.
            if any(library.num_threads > 1 for library in _blas().lib_controllers):
                _n_allowed = 1
        n_threads = max(1, _n_allowed - _running)
        _running += n_threads
    try:
        yield n_threads
    finally:
        with _lock:
            _running -= n_threads
            if _running == 0:
                _limit.restore_original_limits()
                _limit = None
