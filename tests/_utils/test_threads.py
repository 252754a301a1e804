"""The core's threads: within every limit, shared between calls at the same time, given back afterwards."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_info, threadpool_limits

from fairsteer import FairSteeringTransformer
from fairsteer._utils.threads import own_threads


def blas_threads() -> Any:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def no_limit_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize("limit", [1, 2])
def test_no_more_threads_than_blas_may_have_and_one_of_blas_in_each(limit: Any) -> None:
    with threadpool_limits(limit, "blas"):
        before = blas_threads()
        with own_threads() as n_threads:
            assert 1 <= n_threads <= min(limit, joblib.cpu_count())
            assert blas_threads() == {1}
        assert blas_threads() == before


def test_threads_are_given_back_after_an_error() -> None:
    with threadpool_limits(2, "blas"):
        before = blas_threads()
        with pytest.raises(ZeroDivisionError), own_threads():
            _ = 1 // 0
        assert blas_threads() == before


def test_calls_at_the_same_time_share_what_is_allowed() -> None:
    with threadpool_limits(2, "blas"):
        before = blas_threads()
        with own_threads() as first, own_threads() as second, own_threads() as third:
            assert (first, second, third) == (min(*before, 2, joblib.cpu_count()), 1, 1)
            assert blas_threads() == {1}
        assert blas_threads() == before


def test_a_thread_that_cannot_limit_blas_leaves_the_threads_to_it() -> None:
    found = []

    def call() -> None:
        with own_threads() as n_threads:
            found.append((n_threads, max(blas_threads())))

    with threadpool_limits(2, "blas"):  # from now on this thread controls BLAS
        for _ in range(2):
            caller = threading.Thread(target=call)
            caller.start()
            caller.join()
    assert len(found) == 2
    assert all(1 in pair for pair in found)


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT"])
def test_the_environment_limits_threads(variable: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    program = "from fairsteer._utils.threads import own_threads\nwith own_threads() as n: print(n)"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "1"


class CountsThreads(FairSteeringTransformer):
    """Scores by the threads that the core may run."""

    def fit(self, X: Any, y: Any = None, *, sensitive_features: Any = None, sample_weight: Any = None) -> Any:
        with own_threads() as n_threads:
            self.n_threads_ = n_threads
        return super().fit(X, y, sensitive_features=sensitive_features, sample_weight=sample_weight)


def most_threads(estimator: Any, X: Any, y: Any) -> Any:
    return -estimator[0].n_threads_


def test_a_search_with_one_job_a_core_runs_one_thread_a_job(data: Any) -> None:
    X = np.column_stack([data.X, data.group])
    pipe = make_pipeline(CountsThreads(sensitive_columns=[-1]))
    n_jobs = joblib.cpu_count()
    search = GridSearchCV(pipe, {"countsthreads__strength": [0.0, 1.0]}, scoring=most_threads, cv=2, n_jobs=n_jobs)
    with threadpool_limits(n_jobs, "blas"):
        search.fit(X, data.y)
    if n_jobs > 1:
        assert (search.cv_results_["mean_test_score"] == -1).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_fit_and_its_rows_do_not_depend_on_the_number_of_threads(dtype: Any, make_data: Any) -> None:
    X, y, group = make_data(5000, n_features=40, n_classes=3)
    X = X.astype(dtype)
    results = []
    for limit in (1, 2):
        with threadpool_limits(limit, "blas"):
            steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)
            results.append((steer.moments_.covariances, steer.transform(X, sensitive_features=group)))
    (one, mapped), (two, mapped_too) = results
    assert np.array_equal(one, two)
    np.testing.assert_allclose(mapped, mapped_too, rtol=1e-4 if dtype == "float32" else 1e-9, atol=1e-5)
