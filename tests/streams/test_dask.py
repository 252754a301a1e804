"""Dask collections: the maps of all rows, whatever the blocks and the scheduler, and lazy rows that keep their form."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fairsteer import FairSteeringTransformer, ScoreAligner

dask = pytest.importorskip("dask", reason="needs dask")
array = pytest.importorskip("dask.array", reason="needs dask[array]")
dataframe = pytest.importorskip("dask.dataframe", reason="needs dask[dataframe]")

N, NAMES = 1200, ["a", "b", "c"]


@pytest.fixture
def rows() -> tuple[pd.DataFrame, Any, Any]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, N)
    group = np.array(["f", "m"])[rng.integers(0, 2, N)]
    X = rng.normal(size=(N, 3)) * [1, 2, 30] + y[:, None] + (group == "f")[:, None] * [1, 0, 5]
    return pd.DataFrame(X, columns=NAMES, index=np.arange(N) * 3), y, group


@pytest.fixture
def expected(rows: Any) -> FairSteeringTransformer:
    X, y, group = rows
    return _new().fit(X, y, sensitive_features=group)


def _new(**parameters: Any) -> FairSteeringTransformer:
    return FairSteeringTransformer(
        map_type="affine", standardize=True, feature_transform=StandardScaler(), **parameters
    )


def distance(first: Any, second: Any) -> float:
    return max(
        float(np.abs(one - other).max())
        for label in first.maps_
        for one, other in zip(first.maps_[label], second.maps_[label], strict=True)
    )


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_schedulers(rows: Any, expected: Any, scheduler: str) -> None:
    X, y, group = rows
    frame = dataframe.from_pandas(X.assign(y=y, sex=group), npartitions=7)
    # One pool for the passes of a fit: by itself dask would start one for each.
    with (
        ProcessPoolExecutor(2, get_context("spawn")) as pool,
        dask.config.set(scheduler=scheduler, pool=pool if scheduler == "processes" else None),
    ):
        steer = _new().fit(frame, "y", sensitive_features="sex")
    assert distance(expected, steer) < 1e-10


def test_arrays_of_any_chunks(rows: Any, expected: Any) -> None:
    X, y, group = rows
    chunked = array.from_array(X.to_numpy(), chunks=((500, 0, 1, 699), (2, 1)))
    for labels, groups in (
        (array.from_array(y, chunks=333), array.from_array(group.astype(object), chunks=77)),
        (y, group),
        (y.tolist(), pd.Series(group)),
    ):
        assert distance(expected, _new().fit(chunked, labels, sensitive_features=groups)) < 1e-10
    steered = expected.transform(chunked, sensitive_features=group)
    assert steered.chunks[0] == (500, 0, 1, 699)
    assert isinstance(steered, array.Array)
    np.testing.assert_allclose(steered.compute(), expected.transform(X, sensitive_features=group), rtol=1e-9)


def test_unknown_chunk_sizes(rows: Any, expected: Any) -> None:
    X, y, group = rows
    frame = dataframe.from_pandas(X.assign(y=y, sex=group), npartitions=4)
    values, labels = frame[NAMES].values, frame["y"].values
    assert np.isnan(values.chunks[0]).all()
    assert distance(expected, _new().fit(values, labels, sensitive_features=frame["sex"])) < 1e-10
    assert distance(expected, _new().fit(values, y, sensitive_features=group)) < 1e-10
    steered = expected.transform(values, sensitive_features=frame["sex"])
    np.testing.assert_allclose(steered.compute(), expected.transform(X, sensitive_features=group), rtol=1e-9)
    with pytest.raises(ValueError, match=r"y has 2 blocks of rows, and X has 4"):
        _new().fit(values, array.from_array(y, chunks=600), sensitive_features=frame["sex"])


def test_uneven_and_empty_partitions_with_missing_cells(rows: Any, expected: Any) -> None:
    X, y, group = rows
    frame = X.assign(y=y, sex=group).sort_values(["sex", "y"])
    parts = [frame.iloc[:0], frame.iloc[:1], frame.iloc[1:700], frame.iloc[700:700], frame.iloc[700:]]
    lazy = dataframe.from_delayed([dask.delayed(part) for part in parts], meta=frame.iloc[:0])
    steer = _new().fit(lazy, "y", sensitive_features="sex")
    assert distance(expected, steer) < 1e-10
    steered = steer.transform(lazy[NAMES], sensitive_features=lazy["sex"]).compute()
    assert len(steered) == N


def test_transform_is_lazy_and_keeps_index_columns_and_divisions(rows: Any, expected: Any) -> None:
    X, _, group = rows
    frame = dataframe.from_pandas(X, npartitions=3)
    sex = dataframe.from_pandas(pd.Series(group, index=X.index), npartitions=3)
    steered = expected.transform(frame, sensitive_features=sex)
    assert isinstance(steered, dataframe.DataFrame)
    assert steered.divisions == frame.divisions
    assert list(steered.columns) == NAMES
    pd.testing.assert_frame_equal(steered._meta, frame._meta)
    result = steered.compute()
    pd.testing.assert_index_equal(result.index, X.index)
    np.testing.assert_allclose(result, expected.transform(X, sensitive_features=group), rtol=1e-9)


def test_groups_in_columns_and_a_pipeline(rows: Any, expected: Any) -> None:
    X, y, group = rows
    frame = dataframe.from_pandas(X.assign(sex=group), npartitions=5)
    labels = dataframe.from_pandas(pd.Series(y, index=X.index), npartitions=5)
    steer = _new(sensitive_columns=["sex"]).fit(frame, labels)
    assert distance(expected, steer) < 1e-10
    steered = make_pipeline(steer).transform(frame).compute()
    np.testing.assert_allclose(steered, expected.transform(X, sensitive_features=group), rtol=1e-9)
    np.testing.assert_allclose(_new(sensitive_columns="sex").fit_transform(frame, labels).compute(), steered, rtol=1e-9)


def test_weights(rows: Any) -> None:
    X, y, group = rows
    weight = np.random.default_rng(1).random(N)
    alone = _new().fit(X, y, sensitive_features=group, sample_weight=weight)
    frame = dataframe.from_pandas(X.assign(y=y, sex=group, w=weight), npartitions=5)
    assert distance(alone, _new().fit(frame, "y", sensitive_features="sex", sample_weight="w")) < 1e-10


def _rows_or_death(rows: pd.DataFrame, folder: Path, number: int) -> pd.DataFrame:
    """Give rows; the worker that asks for them when so many blocks have been read is killed, once."""
    n_read = len(list(folder.iterdir()))
    (folder / f"{n_read}-{os.getpid()}").touch()
    if n_read >= number:
        with suppress(FileExistsError):
            (folder / "killed").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
    return rows


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what distributed says of a worker that is gone
def test_cluster_whose_worker_is_killed_while_moments_are_added_up(rows: Any, expected: Any, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="needs distributed")
    X, y, group = rows
    frame = dataframe.from_pandas(X.assign(y=y, sex=group), npartitions=6)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "30s"}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=tmp_path
        ) as cluster,
        distributed.Client(cluster),
    ):
        assert distance(expected, _new().fit(frame, "y", sensitive_features="sex")) < 1e-10
        # A fit reads four blocks in three passes: for the counts, the scaler and, from the ninth block, the moments.
        folder = tmp_path / "read"
        folder.mkdir()
        parts = [
            dask.delayed(_rows_or_death, pure=False)(X.assign(y=y, sex=group)[i : i + 300], folder, 9)
            for i in range(0, N, 300)
        ]
        mortal = dataframe.from_delayed(parts, meta=frame._meta, verify_meta=False)
        steer = _new().fit(mortal, "y", sensitive_features="sex")
        assert (folder / "killed").exists()
        assert len(list(folder.iterdir())) > 13
        assert distance(expected, steer) < 1e-10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_folds_on_workers_of_joblib(rows: Any, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="needs distributed")
    X, y, group = rows
    aligner = ScoreAligner(LogisticRegression(), n_jobs=2)
    alone = aligner.fit(X, y, sensitive_features=group).predict_proba(X, sensitive_features=group)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, local_directory=tmp_path
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        aligner.fit(X, y, sensitive_features=group)
    np.testing.assert_allclose(aligner.predict_proba(X, sensitive_features=group), alone, rtol=1e-12)


def test_pipeline_of_a_blockwise_transformer_and_classifier(rows: Any, expected: Any) -> None:
    """What dask-ml's estimators do: fit to collections and hand lazy ones on; `Incremental` takes their blocks."""
    X, y, group = rows
    frame = dataframe.from_pandas(X.assign(sex=(group == "m").astype(float)), npartitions=5)
    labels = dataframe.from_pandas(pd.Series(y, index=X.index), npartitions=5)
    steer = _new(sensitive_columns=["sex"])
    model = make_pipeline(_Halved(), steer, _Incremental(SGDClassifier(random_state=0))).fit(frame, labels)
    halved = X / 2
    own = _new().fit(halved, y, sensitive_features=(group == "m").astype(float))
    assert distance(own, model[1]) < 1e-10
    predicted = model.predict(frame)
    assert isinstance(predicted, dataframe.Series)
    assert (predicted.compute() == y).mean() > 0.6


class _Halved(TransformerMixin, BaseEstimator):
    """A transformer of blocks."""

    def fit(self, X: Any, y: Any = None) -> _Halved:
        del X, y
        return self

    def transform(self, X: Any) -> Any:
        return X.assign(**{name: X[name] / 2 for name in NAMES})


class _Incremental(ClassifierMixin, BaseEstimator):
    """A classifier that is trained block by block, as `dask_ml.wrappers.Incremental`."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def fit(self, X: Any, y: Any) -> _Incremental:
        for rows, labels in zip(X.to_delayed(), y.to_delayed(), strict=True):
            self.estimator.partial_fit(*dask.compute(rows, labels), classes=[0, 1])
        self.classes_ = self.estimator.classes_
        return self

    def predict(self, X: Any) -> Any:
        return X.map_partitions(self._predicted, meta=("y", int))

    def _predicted(self, rows: pd.DataFrame) -> pd.Series[int]:
        return pd.Series(self.estimator.predict(rows), index=rows.index)
