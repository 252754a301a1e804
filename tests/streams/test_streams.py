"""Fits to rows that come in batches agree with fits to all rows, whatever the batches come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import MinMaxScaler, PowerTransformer, RobustScaler, StandardScaler

from benchmarks import timing
from fairsteer import FairSteeringTransformer, MeanMatchingTransformer, SubgroupMoments
from fairsteer.streams import ArrowRows, BatchRows
from fairsteer.transformer import _streaming

pa = pytest.importorskip("pyarrow")
dataset = pytest.importorskip("pyarrow.dataset")
parquet = pytest.importorskip("pyarrow.parquet")

N, D = 1500, 4
NAMES = ["a", "b", "c", "d"]


@pytest.fixture
def rows() -> tuple[pd.DataFrame, Any, Any]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, N)
    group = np.array(["f", "m", "x"])[rng.integers(0, 3, N)]
    X = np.exp(rng.normal(size=(N, D)) * 0.3) * [1, 2, 3, 4] + y[:, None] * 0.2 + (group == "f")[:, None]
    return pd.DataFrame(X, columns=NAMES), y, group


def distance(first: Any, second: Any) -> float:
    return max(
        float(np.abs(one - other).max())
        for label in first.maps_
        for one, other in zip(first.maps_[label], second.maps_[label], strict=True)
    )


def of_table(rows: Any, *, weight: Any = None) -> Any:
    X, y, group = rows
    frame = X.assign(y=y, sex=group)
    return pa.Table.from_pandas(frame if weight is None else frame.assign(w=weight))


@pytest.mark.parametrize(
    "parameters",
    [
        {"standardize": False},
        {"standardize": True},
        {"feature_transform": StandardScaler(), "standardize": True},
        {"feature_transform": MinMaxScaler()},
        {"feature_transform": "log"},
        {"covariance": "diagonal"},
        {"constraint": "demographic_parity"},
        {"constraint": "equal_opportunity", "pos_label": [1, 2], "standardize": True},
        {"map_type": "diagonal", "small_subgroups": "merge", "min_subgroup_size": 150, "shrinkage": None},
    ],
    ids=str,
)
def test_dataset_is_fitted_as_its_rows_are(rows: Any, parameters: dict[str, Any]) -> None:
    X, y, group = rows
    steer = FairSteeringTransformer(**{"map_type": "affine", "standardize": False, **parameters})
    expected = steer.fit(X, y, sensitive_features=group).maps_
    stream = ArrowRows(of_table(rows), y="y", sensitive_features="sex", batch_bytes=4000)
    assert sum(1 for _ in stream.batches()) > 5
    steer.fit(stream)
    for label, maps in expected.items():
        for one, other in zip(maps, steer.maps_[label], strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-8, atol=1e-8)
    assert steer.feature_names_in_.tolist() == NAMES


def test_weights_and_missing_groups(rows: Any) -> None:
    X, y, group = rows
    weight = np.random.default_rng(1).random(N)
    weight[::10] = 0
    labels = np.where(np.arange(N) % 7 == 0, None, group)
    steer = FairSteeringTransformer(map_type="affine", standardize=True, feature_transform=StandardScaler())
    with pytest.warns(UserWarning, match=r"215 of 1500 rows have a missing group"):
        expected = clone(steer).fit(X, y, sensitive_features=labels, sample_weight=weight)
    table = of_table((X, y, labels), weight=weight)
    with pytest.warns(UserWarning, match=r"215 of 1500 rows have a missing group"):
        steer.fit(ArrowRows(table, y="y", sensitive_features="sex", sample_weight="w", batch_bytes=4000))
    assert distance(expected, steer) < 1e-10


def test_dataset_of_files_partitions_and_row_groups(rows: Any, tmp_path: Path) -> None:
    X, y, group = rows
    table = of_table(rows).append_column("year", pa.array(np.arange(N) % 3 + 2000))
    dataset.write_dataset(
        table, tmp_path / "parts", format="parquet", partitioning=["year"], partitioning_flavor="hive"
    )
    parquet.write_table(table, tmp_path / "one.parquet", row_group_size=100)
    dataset.write_dataset(table, tmp_path / "csv", format="csv")
    kept = np.arange(N) % 3 != 1
    expected = FairSteeringTransformer(map_type="affine").fit(X[kept], y[kept], sensitive_features=group[kept])
    condition = dataset.field("year") != 2001
    for source in (
        dataset.dataset(tmp_path / "parts", partitioning="hive"),
        dataset.dataset(tmp_path / "one.parquet"),
        dataset.dataset(tmp_path / "csv", format="csv"),
    ):
        stream = ArrowRows(source, columns=NAMES, y="y", sensitive_features=["sex"], filter=condition)
        assert distance(expected, FairSteeringTransformer(map_type="affine").fit(stream)) < 1e-9


def test_names_of_columns_are_arguments_of_fit_and_transform(rows: Any) -> None:
    X, y, group = rows
    steer = FairSteeringTransformer(map_type="affine")
    source = dataset.dataset(of_table(rows))
    expected = FairSteeringTransformer(map_type="affine").fit(X, y, sensitive_features=group)
    steer.fit(source, "y", sensitive_features="sex")
    assert distance(expected, steer) < 1e-9
    steered = np.concatenate(list(steer.transform(source, sensitive_features="sex")))
    np.testing.assert_allclose(steered, expected.transform(X, sensitive_features=group), rtol=1e-8)
    inside = FairSteeringTransformer(map_type="affine", sensitive_columns="sex")
    assert distance(expected, inside.fit(source, "y")) < 1e-9
    np.testing.assert_allclose(
        np.concatenate(list(inside.transform(dataset.dataset(of_table(rows).drop(["y"]))))), steered
    )


@pytest.mark.parametrize("kind", ["fixed", "list"])
def test_columns_of_vectors_are_features(rows: Any, kind: str) -> None:
    X, y, group = rows
    single = X.to_numpy().astype(np.float32)
    values = pa.array(single.ravel())
    vectors = (
        pa.FixedSizeListArray.from_arrays(values, D)
        if kind == "fixed"
        else pa.ListArray.from_arrays(pa.array(np.arange(N + 1, dtype=np.int32) * D), values)
    )
    table = pa.table({"embedding": vectors, "y": y, "sex": group})
    steer = FairSteeringTransformer(map_type="affine").fit(dataset.dataset(table), "y", sensitive_features="sex")
    assert steer.feature_names_in_.tolist() == [f"embedding[{j}]" for j in range(D)]
    expected = FairSteeringTransformer(map_type="affine").fit(single, y, sensitive_features=group)
    assert distance(expected, steer) < 1e-5
    broken = pa.table({"embedding": pa.array([[1.0, 2.0], [3.0]] * 4), "y": [0, 1] * 4, "sex": ["f", "m"] * 4})
    with pytest.raises(ValueError, match="not all of length 2"):
        FairSteeringTransformer(map_type="affine").fit(dataset.dataset(broken), "y", sensitive_features="sex")


def test_functions_and_iterators_of_batches(rows: Any) -> None:
    X, y, group = rows
    table = X.to_numpy()

    def batches() -> Any:
        return ((table[i : i + 200], y[i : i + 200], group[i : i + 200]) for i in range(0, N, 200))

    expected = FairSteeringTransformer(map_type="affine").fit(table, y, sensitive_features=group)
    assert distance(expected, FairSteeringTransformer(map_type="affine").fit(batches)) < 1e-9
    assert distance(expected, FairSteeringTransformer(map_type="affine").fit(BatchRows(batches))) < 1e-9
    once = FairSteeringTransformer(map_type="affine", standardize=True, shrinkage=None)
    of_all = FairSteeringTransformer(map_type="affine", standardize=True, shrinkage=None)
    of_all.fit(table, y, sensitive_features=group)
    assert distance(of_all, once.fit(batches())) < 1e-9
    assert distance(of_all, once.fit(batches())) < 1e-9  # fit forgets what was before
    assert once.map_type_ == "affine"
    added = FairSteeringTransformer(map_type="affine", standardize=True, shrinkage=None).partial_fit(batches)
    assert distance(of_all, added.partial_fit()) < 1e-9
    steered = np.concatenate(list(expected.transform({"X": b[0], "sensitive_features": b[2]} for b in batches())))
    np.testing.assert_array_equal(steered, expected.transform(table, sensitive_features=group))
    exhausted = batches()
    list(exhausted)
    with pytest.raises(ValueError, match="gives no batch"):
        FairSteeringTransformer(map_type="affine").fit(exhausted)
    with pytest.raises(ValueError, match="y is given beside a stream"):
        FairSteeringTransformer(map_type="affine").fit(batches, y)


def test_mapped_array_is_not_copied(rows: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 150_000
    mapped = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, (n, 32))
    mapped[:] = rng.standard_normal((n, 32), dtype=np.float32)
    y, group = rng.integers(0, 2, (2, n))
    again = np.load(tmp_path / "rows.npy", mmap_mode="r")
    steer = FairSteeringTransformer(map_type="affine", feature_transform=StandardScaler()).fit(
        again, y, sensitive_features=group
    )
    expected = FairSteeringTransformer(map_type="affine", feature_transform=StandardScaler()).fit(
        np.array(again), y, sensitive_features=group
    )
    assert distance(expected, steer) < 1e-5
    assert steer.moments_.covariance == "full"  # what a fit in batches keeps


@pytest.mark.parametrize("map_type", ["monotone", "auto"])
def test_quantiles_are_those_of_all_rows_while_they_are_few(rows: Any, map_type: Any) -> None:
    X, y, group = rows
    table = np.round(X.to_numpy())
    frame = pd.DataFrame(table, columns=NAMES)
    expected = FairSteeringTransformer(map_type=map_type, standardize=True).fit(frame, y, sensitive_features=group)
    stream = ArrowRows(of_table((frame, y, group)), y="y", sensitive_features="sex", batch_bytes=20_000)
    steer = FairSteeringTransformer(map_type=map_type, standardize=True).fit(stream)
    assert steer.map_type_ == expected.map_type_ == "monotone"
    np.testing.assert_array_equal(
        steer.transform(frame, sensitive_features=group), expected.transform(frame, sensitive_features=group)
    )


def test_sample_keeps_small_cells_and_stands_for_all(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, group = rows
    monkeypatch.setattr("fairsteer.transformer._streaming.MOST_SAMPLED", 300)
    labels = np.where(np.arange(N) < 10, "few", group)
    stream = ArrowRows(of_table((X, y, labels)), y="y", sensitive_features="sex", batch_bytes=8000)
    steer = FairSteeringTransformer(map_type="monotone", standardize=True).fit(stream)
    whole = FairSteeringTransformer(map_type="monotone", standardize=True).fit(X, y, sensitive_features=labels)
    few = labels == "few"
    spread = X.to_numpy().std(axis=0)
    moved, expected = (one.transform(X, sensitive_features=labels) for one in (steer, whole))
    assert (np.abs(moved - expected).mean(axis=0) < 0.15 * spread).all()
    assert np.isfinite(moved[few]).all()


def test_probabilities_of_groups_are_calibrated_on_the_sample(rows: Any) -> None:
    X, y, group = rows
    parameters: dict[str, Any] = {"map_type": "affine", "unknown_group": "infer", "standardize": True}
    expected = FairSteeringTransformer(**parameters).fit(X, y, sensitive_features=group)
    stream = ArrowRows(of_table(rows), y="y", sensitive_features="sex", batch_bytes=8000)
    steer = FairSteeringTransformer(**parameters).fit(stream)
    np.testing.assert_allclose(steer.predict_group_proba(X), expected.predict_group_proba(X), atol=1e-9)


def test_fitted_transform_beforehand_and_what_a_stream_cannot_do(rows: Any) -> None:
    X, y, group = rows
    frozen = FrozenEstimator(PowerTransformer().fit(X.to_numpy()))
    expected = FairSteeringTransformer(map_type="affine", feature_transform=frozen).fit(
        X.to_numpy(), y, sensitive_features=group
    )
    stream = BatchRows(lambda: [(X.to_numpy(), y, group)])
    assert distance(expected, FairSteeringTransformer(map_type="affine", feature_transform=frozen).fit(stream)) < 1e-9
    for transform in (RobustScaler(), PowerTransformer()):
        with pytest.raises(ValueError, match="needs all rows at once, which a stream has not"):
            FairSteeringTransformer(map_type="affine", feature_transform=transform).fit(stream)
    matched = MeanMatchingTransformer().fit(X.to_numpy(), y, sensitive_features=group)
    assert distance(matched, MeanMatchingTransformer().fit(stream)) < 1e-10


def test_wrong_columns_are_named(rows: Any) -> None:
    table = of_table(rows)
    with pytest.raises(ValueError, match=r"no column 'z'; it has 'a', 'b'"):
        ArrowRows(table, y="z")
    with pytest.raises(ValueError, match=r"The column 'sex' holds .*string.* is no feature"):
        FairSteeringTransformer(map_type="affine").fit(dataset.dataset(table), sensitive_features="y")
    with pytest.raises(ValueError, match="y must name a column of the dataset"):
        FairSteeringTransformer(map_type="affine").fit(dataset.dataset(table), rows[1], sensitive_features="sex")
    holes = table.set_column(0, "a", pa.array([None, *rows[0]["a"][1:]]))
    with pytest.raises(ValueError, match=r"1 NaN \(missing values\) in column 'a'"):
        FairSteeringTransformer(map_type="affine").fit(dataset.dataset(holes), "y", sensitive_features="sex")


def test_sites_that_share_moments(rows: Any) -> None:
    X, y, group = rows
    sites: list[SubgroupMoments] = []
    for third in range(3):
        some = slice(third * N // 3, (third + 1) * N // 3)
        moments = SubgroupMoments(
            D, classes=[0, 1, 2], groups=["f", "m", "x"], covariance="full", feature_names=NAMES, rescalable=True
        )
        codes = np.searchsorted(["f", "m", "x"], group[some])
        sites.append(moments.update(X[some], y[some], codes))
    scaler = StandardScaler().fit(X)
    total: Any = sum(sites)
    steer = FairSteeringTransformer(map_type="affine", standardize=True, feature_transform=StandardScaler())
    expected = clone(steer).fit(X, y, sensitive_features=group)
    steer.fit_moments(total.rescaled(1 / scaler.scale_, -scaler.mean_ / scaler.scale_))
    assert distance(expected, steer) < 1e-12
    np.testing.assert_allclose(
        steer.transform(X, sensitive_features=group), expected.transform(X, sensitive_features=group), rtol=1e-10
    )
    with pytest.raises(ValueError, match=r"of the features as they are, and feature_transform=StandardScaler"):
        steer.fit_moments(total)
    with pytest.raises(ValueError, match="needs all rows at once, which moments have not"):
        FairSteeringTransformer(map_type="monotone").fit_moments(total)
    with pytest.raises(ValueError, match="covariance='full'"):
        FairSteeringTransformer(map_type="affine", covariance="full").fit_moments(total.tie())


def test_single_precision_rows_give_the_same_bits_as_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairsteer.streams._stream.BLOCK_BYTES", 4096)
    monkeypatch.setattr("fairsteer.streams._stream.block_rows.__defaults__", (4096,))
    rng = np.random.default_rng(0)
    y, sex = rng.integers(0, 2, (2, 3000))
    X = (rng.normal(size=(3000, 4)) + y[:, None] + 2 * sex[:, None]).astype(np.float32)
    table = pa.table({**{name: X[:, j] for j, name in enumerate("abcd")}, "y": y, "sex": sex})
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=700)
    rows = ArrowRows(dataset.dataset(tmp_path / "rows.parquet"), y="y", sensitive_features="sex")
    assert len(list(rows.batches())) > 5
    streamed = FairSteeringTransformer(map_type="affine").fit(rows)
    memory = FairSteeringTransformer(map_type="affine").fit(X, y, sensitive_features=sex)
    for label, (A, b) in memory.maps_.items():
        np.testing.assert_array_equal(streamed.maps_[label][0], A)
        np.testing.assert_array_equal(streamed.maps_[label][1], b)


def test_large_row_groups_are_decoded_piece_by_piece(tmp_path: Path) -> None:
    n = 2_000_000
    table = pa.table({name: np.random.default_rng(0).random(n) for name in "ab"})
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=n, use_dictionary=False, compression="none")
    pieces = ArrowRows(dataset.dataset(tmp_path / "rows.parquet"))._record_batches(["a", "b"], 1000)
    del table
    before = pa.total_allocated_bytes()
    next(pieces)
    assert pa.total_allocated_bytes() - before < 8 * n  # one column of the row group


def test_error_of_rows_that_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = np.array([[40_000.0, 900.0], [20_000.0, 0.0]])
    assert _streaming.sampling_error(sizes, 3) == (60_900, 0.0)
    monkeypatch.setattr(_streaming, "MOST_SAMPLED", 3000)
    n_sampled, error = _streaming.sampling_error(sizes, 3)
    assert 2990 <= n_sampled <= 3000  # 900 of them all rows of their cell, 1050 each of the others
    assert error == pytest.approx(np.sqrt(np.log(4 / 0.05) / 2100), rel=1e-3)
    # Of random samples no more than one in twenty is farther away, in any of the two cells.
    rng = np.random.default_rng(0)
    scores = [np.sort(rng.normal(size=int(n))) for n in (40_000, 20_000)]
    far = 0
    for _ in range(200):
        apart = []
        for whole in scores:
            some = np.sort(rng.choice(whole, 1050, replace=False))
            levels = np.searchsorted(whole, some, side="right") / len(whole)
            apart.append(np.abs(levels - np.arange(1, 1051) / 1050).max())
        far += max(apart) > error
    assert far <= 20


# ---- what is read


@pytest.mark.parametrize("stored", ["string", "large_string", "dictionary<values=string, indices=int32>"])
def test_texts_of_files_come_as_dictionaries_and_mean_the_same(stored: str, tmp_path: Path, rows: Any) -> None:
    X, y, group = rows
    kind = pa.dictionary(pa.int32(), pa.string()) if "dict" in stored else getattr(pa, stored)()
    sex = pa.array([None if i % 50 == 0 else label for i, label in enumerate(group)]).cast(kind)
    hired = pa.array(np.array(["no", "yes", "maybe"])[y]).cast(kind)
    table = pa.table({**{name: X[name] for name in NAMES}, "hired": hired, "sex": sex})
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=400)
    stream = ArrowRows(dataset.dataset(tmp_path), y="hired", sensitive_features="sex", batch_bytes=8000)
    for features in (True, False):
        for batch in stream.batches(features=features):
            assert pa.types.is_dictionary(batch.y.type)
            assert pa.types.is_dictionary(batch.sensitive_features.column("sex").type)
    with pytest.warns(UserWarning, match="30 of 1500 rows have a missing group"):
        streamed = FairSteeringTransformer(map_type="affine").fit(stream)
    kept = np.arange(N) % 50 != 0
    labels = np.array(["no", "yes", "maybe"])[y]
    memory = FairSteeringTransformer(map_type="affine").fit(X[kept], labels[kept], sensitive_features=group[kept])
    assert streamed.classes_.tolist() == ["maybe", "no", "yes"]
    assert distance(streamed, memory) < 1e-10


def test_files_with_and_without_a_column_of_texts_are_one_table(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"a": [1.0, 2.0], "sex": ["f", "m"]}), tmp_path / "0.parquet")
    parquet.write_table(pa.table({"a": [3.0]}), tmp_path / "1.parquet")
    parquet.write_table(pa.table({"a": [4.0], "sex": pa.array(["f"], pa.large_string())}), tmp_path / "2.parquet")
    for kind in (pa.string(), pa.large_string()):
        files = dataset.dataset(tmp_path, schema=pa.schema({"sex": kind, "a": pa.float64()}))
        (batch,) = ArrowRows(files, sensitive_features="sex").batches()
        assert batch.sensitive_features.column("sex").to_pylist() == ["f", "m", None, "f"]
        np.testing.assert_array_equal(batch.X, [[1.0], [2.0], [3.0], [4.0]])
        (batch,) = ArrowRows(files, sensitive_features="sex").batches(features=False)
        assert batch.sensitive_features.column("sex").to_pylist() == ["f", "m", None, "f"]


def test_files_may_say_different_things_of_nulls(tmp_path: Path) -> None:
    for number, nullable in enumerate((False, True, False)):
        kinds = {"a": pa.float64(), "sex": pa.string()}
        fields = [pa.field(name, kind, nullable, {"number": str(number)}) for name, kind in kinds.items()]
        part = pa.table([[float(number)] * 2, ["f", "m"]], schema=pa.schema(fields, {"number": str(number)}))
        parquet.write_table(part, tmp_path / f"{number}.parquet")
    (batch,) = ArrowRows(dataset.dataset(tmp_path), sensitive_features="sex").batches()
    np.testing.assert_array_equal(batch.X[:, 0], [0, 0, 1, 1, 2, 2])
    assert batch.sensitive_features.column("sex").to_pylist() == ["f", "m"] * 3


def test_features_of_every_kind_of_number_are_what_pandas_makes_of_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 500
    table = pa.table({
        "half": pa.array(rng.normal(size=n).astype(np.float16)),
        "missing": pa.array([None if i % 7 == 0 else float(i) for i in range(n)]),
        "integer": pa.array([None if i % 11 == 0 else i for i in range(n)], pa.int32()),
        "flag": pa.array(rng.random(n) > 0.5),
        "money": pa.array(range(n)).cast(pa.decimal128(21, 2)),
        "long": pa.array(rng.integers(-(2**62), 2**62, n)),
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=90)
    for columns in (table.column_names, ["half"], ["long", "half"]):
        stream = ArrowRows(dataset.dataset(tmp_path), columns=columns, batch_bytes=4000)
        found = [np.array(batch.X) for batch in stream.batches()]
        assert {part.dtype for part in found} == {np.dtype(np.float32 if columns == ["half"] else np.float64)}
        expected = table.select(columns).to_pandas().astype(np.float64)
        np.testing.assert_array_equal(np.concatenate(found), expected.to_numpy())


def test_columns_may_begin_at_any_address() -> None:
    numbers = np.arange(100.0)
    buffer = pa.py_buffer(bytes(4) + numbers.tobytes()).slice(4)
    table = pa.table({"a": pa.Array.from_buffers(pa.float64(), 100, [None, buffer]), "b": numbers})
    (batch,) = ArrowRows(dataset.dataset(table)).batches()
    np.testing.assert_array_equal(batch.X, np.column_stack([numbers, numbers]))


def test_row_groups_that_were_chosen_are_the_ones_that_are_read(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"a": np.arange(100.0)}), tmp_path / "rows.parquet", row_group_size=10)
    whole = dataset.dataset(tmp_path / "rows.parquet")
    some = next(whole.get_fragments()).subset(row_group_ids=[2, 5])
    chosen = dataset.FileSystemDataset([some], whole.schema, whole.format, filesystem=some.filesystem)
    for _ in range(2):  # the footer is forgotten in between, the choice is not
        found = np.concatenate([np.array(batch.X) for batch in ArrowRows(chosen).batches()])
        np.testing.assert_array_equal(found[:, 0], [*range(20, 30), *range(50, 60)])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc that tells the peak of memory")
@pytest.mark.skipif(int(pa.__version__.split(".")[0]) < 20, reason="datasets of this pyarrow forget no footer")
def test_footers_of_files_do_not_pile_up(tmp_path: Path) -> None:
    table = pa.table({f"x{j}": np.arange(60.0) for j in range(100)})
    for number in range(15):
        parquet.write_table(table, tmp_path / f"{number}.parquet", row_group_size=3)
    files = dataset.dataset(tmp_path)
    rows = ArrowRows(dataset.dataset(tmp_path / "0.parquet"))
    assert sum(part.num_rows for part in rows.tables(["x0"], 1)) == 60
    rows = ArrowRows(files)
    grown = timing.extra_peak_memory(lambda: [part.num_rows for part in rows.tables(["x0"], 1)])
    assert grown < 15 * 2**20  # one is about 2 MiB, all of them thirty
