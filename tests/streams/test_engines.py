"""Ray and Spark, where they are installed: what docs/scale.md says to write there, word for word."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairsteer import FairSteeringTransformer, SubgroupMoments

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # what the engines say of themselves
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="engines are started where processes can be listed"),
]
_PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


def blocks() -> list[str]:
    """Pieces of Python on the page."""
    if not _PAGE.is_file():
        pytest.skip("the documentation does not lie beside the tests")
    return re.findall(r"```py(?:thon)?\n(.*?)```", _PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    hired, sex = rng.integers(0, 2, (2, 900))
    table = pd.DataFrame(rng.normal(size=(900, 2)) + hired[:, None] + 2 * sex[:, None], columns=["a", "b"])
    table = table.assign(hired=hired, sex=sex)
    Path("people").mkdir()
    for i, rows in enumerate(
        (slice(0, 100), slice(100, 101), slice(101, 900))
    ):  # gzip is read without a native library
        table[rows].to_parquet(f"people/{i}.parquet", index=False, compression="gzip")
    return table


def run(engine: str, **names: Any) -> SubgroupMoments:
    """Run the page's code for an engine; its functions are pickled by value, as those of a notebook."""
    space: dict[str, Any] = {"__name__": "__main__", "reduce": reduce, "SubgroupMoments": SubgroupMoments, **names}
    found = blocks()
    [function] = [block for block in found if "def moments_of" in block]
    exec(function[: function.index("\n\nparts =")], space)
    [code] = [block for block in found if re.search(rf"\b{engine}\.read", block)]
    exec(code, space)
    total = space["total"]
    assert isinstance(total, SubgroupMoments)
    return total


def check(total: SubgroupMoments, table: pd.DataFrame) -> None:
    X, y, group = table[["a", "b"]].to_numpy(), table["hired"].to_numpy(), table["sex"].to_numpy()
    assert total.weights.sum() == len(table)
    expected = FairSteeringTransformer(map_type="affine").fit(X, y, sensitive_features=group)
    found = FairSteeringTransformer(map_type="affine").fit_moments(total)
    for label, (A, b) in expected.maps_.items():
        np.testing.assert_allclose(found.maps_[label][0], A, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found.maps_[label][1], b, rtol=1e-10, atol=1e-10)


@pytest.fixture
def ray_engine() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="needs ray")
    pytest.importorskip("ray.data", reason="needs ray[data]")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.timeout(180)
def test_ray(people: pd.DataFrame, ray_engine: Any) -> None:
    del ray_engine
    check(run("ray.data"), people)


@pytest.fixture
def spark_engine() -> Iterator[Any]:
    sql = pytest.importorskip("pyspark.sql", reason="needs pyspark")
    if shutil.which("java") is None:
        pytest.skip("Spark needs java")
    session = (
        sql.SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    yield session
    with suppress(Exception):
        session.stop()


@pytest.mark.timeout(180)
def test_spark(people: pd.DataFrame, spark_engine: Any) -> None:
    check(run("spark", spark=spark_engine), people)
