from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from fairsteer.cli import main


class Data(NamedTuple):
    """Rows with their classes and groups."""

    X: npt.NDArray[Any]
    y: npt.NDArray[Any]
    group: npt.NDArray[Any]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many processes as cores; none of their own for tests of named files, which end before processes have begun."""
    return 0 if any(".py" in argument for argument in config.args) else joblib.cpu_count()


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread() -> Iterator[None]:
    """The matrices of the tests are small: threads would only wait for one another."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def make_data() -> Callable[..., Data]:
    """Sampler of Gaussian subgroups: every class in every group, no two groups alike."""

    def sample(n: int = 600, n_features: int = 3, n_classes: int = 2, n_groups: int = 2, seed: int = 0) -> Data:
        rng = np.random.default_rng(seed)
        y = rng.integers(0, n_classes, n)
        # Classes are not equally frequent in the groups, so the ideal has other weights.
        group = (rng.integers(0, n_groups, n) + (y == 0) * (rng.random(n) < 0.3)) % n_groups
        means = rng.normal(size=(n_classes, n_groups, n_features))
        scales = np.eye(n_features) + 0.4 * rng.normal(size=(n_groups, n_features, n_features))
        X = np.einsum("nij,nj->ni", scales[group], rng.normal(size=(n, n_features)))
        return Data(X + 1.5 * means[y, group], y, group)

    return sample


@pytest.fixture(scope="session")
def data(make_data: Callable[..., Data]) -> Data:
    """Two classes in two groups, 600 rows of three features."""
    return make_data()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets."""
    folder = os.environ.get("FAIRSTEER_DATA")
    if folder is None:
        pytest.skip("reads data sets that are not part of the project: name their folder in FAIRSTEER_DATA")
    return Path(folder)


# ---- the command line


@pytest.fixture
def file(table: pd.DataFrame, tmp_path: Path) -> Path:
    """The table of the module's own fixture, as CSV."""
    path = tmp_path / "rows.csv"
    table.to_csv(path, index=False)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in an 80-column terminal; returns exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, printed.out, printed.err

    return run
