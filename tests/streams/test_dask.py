"""Dask collections: the maps of all rows, whatever the blocks and the scheduler, and lazy rows that keep their form."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fairsteer import FairSteeringTransformer
from fairsteer.streams import DaskRows, Reduction, RowBatch

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
    with dask.config.set(scheduler=scheduler):
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


class _KillsItsWorkerOnce(Reduction[float]):
    """Adds up a column, and kills the worker in the middle of it, unless that has happened already."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def start(self) -> float:
        return 0.0

    def add(self, state: float, batch: RowBatch) -> float:
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return state + float(batch.X["a"].sum())
        os.kill(os.getpid(), signal.SIGKILL)
        return state

    def merge(self, first: float, second: float) -> float:
        return first + second


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what distributed says of a worker that is gone
def test_cluster_and_a_worker_that_is_killed(rows: Any, expected: Any, tmp_path: Path) -> None:
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
        total = DaskRows(frame[NAMES]).reduce(_KillsItsWorkerOnce(tmp_path / "killed"))
        assert (tmp_path / "killed").exists()
        assert total == pytest.approx(X["a"].sum(), rel=1e-12)
        assert distance(expected, _new().fit(frame, "y", sensitive_features="sex")) < 1e-10
