"""Labels, rows and columns as users pass them."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, ScoreAligner
from fairsteer._utils.columns import column_positions, split_columns
from fairsteer._utils.input import brief, check_classes, coded_classes, did_you_mean
from fairsteer.concepts import ConceptSteering
from fairsteer.groups import GroupEncoder

MISSING = {
    "list with None": [None, "a", "b", "a"],
    "list with NaN": [float("nan"), "a", "b", "a"],
    "list with pd.NA": [pd.NA, "a", "b", "a"],
    "list with NaT": [pd.NaT, "a", "b", "a"],
    "numbers with None": [None, 1, 0, 1],
    "floats": np.array([np.nan, 1.0, 0.0, 1.0]),
    "objects": np.array([None, "a", "b", "a"], dtype=object),
    "masked": np.ma.array([0, 1, 0, 1], mask=[True, False, False, False]),
    "pandas": pd.Series([None, "a", "b", "a"]),
    "pandas string": pd.Series([None, "a", "b", "a"], dtype="string"),
    "pandas category": pd.Series([None, "a", "b", "a"], dtype="category"),
    "pandas Int64": pd.Series([None, 1, 0, 1], dtype="Int64"),
    "pandas boolean": pd.Series([None, True, False, True], dtype="boolean"),
    "pandas arrow": pd.Series([None, "a", "b", "a"], dtype="string[pyarrow]"),
    "pandas array": pd.array([None, 1, 0, 1], dtype="Int64"),
    "polars": pl.Series([None, "a", "b", "a"]),
    "polars numbers": pl.Series([None, 1, 0, 1]),
    "pyarrow": pa.array([None, "a", "b", "a"]),
    "pyarrow chunks": pa.chunked_array([[None, "a"], ["b", "a"]]),
    "pyarrow dictionary": pa.array([None, "a", "b", "a"]).dictionary_encode(),
    "pyarrow table": pa.table({"y": [None, "a", "b", "a"]}),
}


@pytest.mark.parametrize("y", MISSING.values(), ids=MISSING)
def test_missing_classes_are_counted_in_any_container(y: Any) -> None:
    with pytest.raises(ValueError, match=r"^y has 1 missing labels among 4; leave those rows out first\.$"):
        check_classes(y, np.zeros((4, 1)))


@pytest.mark.parametrize(
    "estimator",
    [
        FairSteeringTransformer(),
        IdealDistributionClassifier(),
        IdealDistributionClassifier(score_alignment="equal_opportunity"),
        ScoreAligner(IdealDistributionClassifier()),
        ConceptSteering(n_probes=4),
    ],
    ids=str,
)
@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA], ids=str)
def test_every_estimator_says_the_same_of_missing_classes(estimator: Any, missing: Any) -> None:
    y, group = ["yes", "no"] * 20, ["f", "f", "m", "m"] * 10
    y[3] = missing
    X = np.random.default_rng(0).normal(size=(40, 2))
    with pytest.raises(ValueError, match="y has 1 missing labels among 40"):
        estimator.fit(X, y, sensitive_features=group)


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([Decimal(1), Decimal(0)], np.array([1, 0])),
        (pa.array([Decimal(1), Decimal(0)]), np.array([1, 0])),
        (pd.Series([Decimal(1), Decimal(0)]), np.array([1, 0])),
        ([Fraction(2), 3], np.array([2, 3])),
        ([True, False], np.array([True, False])),
        (np.array([True, False], dtype=object), np.array([True, False])),
        ([True, 9], np.array([1, 9])),
        ([np.int8(3), 2.0], np.array([3, 2])),
        (np.array([1, 0], dtype=object), np.array([1, 0])),
        ((("a",), ("b",)), np.array(["a", "b"])),
        (pl.Series(["a", "b"]), np.array(["a", "b"])),
        (pd.Series(["a", "b"], dtype="category"), np.array(["a", "b"])),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:A column-vector")
def test_classes_keep_their_values(y: Any, expected: npt.NDArray[Any]) -> None:
    found = check_classes(y, [0, 0])
    assert found.tolist() == expected.tolist()
    assert {type(label) for label in found.tolist()} == {type(label) for label in expected.tolist()}


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["a", 1], "mixes numbers and other labels, such as 1 and 'a'"),
        ([Decimal("0.5"), Decimal(1)], "continuous"),
        ([0.3, 1], "continuous"),
        ([np.inf, 1.0], "infinity"),
    ],
    ids=str,
)
def test_labels_that_are_no_classes_are_refused(y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_classes(y, [0, 0])


@pytest.mark.parametrize(
    ("columns", "asked", "suggested"),
    [([" sex", "age"], "sex", " sex"), (["Sex", "age"], "sex", "Sex"), (["gender", "age"], "gendre", "gender")],
)
def test_the_nearest_column_is_suggested(columns: list[str], asked: str, suggested: str) -> None:
    table = pd.DataFrame(np.zeros((2, 2)), columns=columns)
    with pytest.raises(ValueError, match=rf"names '{asked}'.*Did you mean '{suggested}'\?"):
        column_positions(asked, table, np.array(columns, dtype=object), 2)
    assert did_you_mean("income", columns) == ""


def test_long_values_are_cut_in_messages() -> None:
    assert brief("short") == "'short'"
    text = brief({f"column {j}": j for j in range(700)})
    assert len(text) == 80
    assert text.startswith("{'column 0': 0")
    with pytest.raises(ValueError, match="given twice") as error:
        FairSteeringTransformer(sensitive_columns=[f"c{j}" for j in range(770)]).fit(
            np.zeros((2, 2)), sensitive_features=[0, 1]
        )
    assert len(str(error.value)) < 200


def test_records_are_columns() -> None:
    records = np.array([("f", 1), ("m", 2)], dtype=[("sex", "U1"), ("old", "i4")])
    columns, names = split_columns(records)
    assert [column.tolist() for column in columns] == [["f", "m"], [1, 2]]
    assert names == ["sex", "old"]


@pytest.mark.parametrize("rows", [[[1, 2], [1]], [[1, 2], 1], [(1, 2), (1, 2, 3)], [["f"], ["m", "x"]]], ids=str)
def test_ragged_groups_are_refused(rows: Any) -> None:
    with pytest.raises(ValueError, match="same number of labels, but there are rows of"):
        split_columns(rows)


def test_a_missing_row_is_missing_in_every_column() -> None:
    columns, _ = split_columns([("f", 1), None, ("m", 2)])
    assert [column.tolist() for column in columns] == [["f", None, "m"], [1, None, 2]]


def test_masked_groups_are_missing() -> None:
    (column,), _ = split_columns(np.ma.array([1, 2, 3], mask=[False, True, False]))
    assert column.tolist() == [1, None, 3]


@pytest.mark.parametrize(
    "numbers",
    [
        np.array([-128, 127, 3, 3], np.int8),
        np.array([0, 255, 3, 3], np.uint8),
        np.array([2**64 - 1, 2**64 - 3, 2**64 - 3], np.uint64),
        np.array([-(2**63), -(2**63) + 5, -(2**63)], np.int64),
        np.array([5, 2**40, 5], np.int64),  # too far apart to be counted
        np.array([5, 2**63, 2**63 + 1, 5], np.uint64),  # as floating ones two would be the same
    ],
    ids=str,
)
def test_classes_of_a_column_of_integers_are_those_of_the_array(numbers: Any) -> None:
    labels, codes = coded_classes(pa.chunked_array([numbers[:2], numbers[2:]]), numbers)
    expected, expected_codes = np.unique(numbers, return_inverse=True)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(codes, expected_codes)


def dictionary(indices: Sequence[int | None], values: Sequence[str | None], kind: Any) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(indices, kind), values)


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.uint32(), pa.uint64()], ids=str)
def test_parts_of_a_column_may_have_dictionaries_of_their_own(kind: Any) -> None:
    first = dictionary([0, 1, 1], ["f", "m"], kind)
    many = [f"{i:03}" for i in range(120)]
    for other in (
        dictionary([1, 0], ["m", "x"], kind),
        dictionary([0, 2], ["m", None, "x"], kind),  # a null that no row has
        dictionary([0, 1, 2], ["m", "m", "unused"], kind),
        dictionary(list(range(120)), many, kind),
    ):
        column = pa.chunked_array([first, other, dictionary([0, 119], many[::-1], kind)])
        labels, codes = coded_classes(column, column)
        assert labels.tolist() == sorted(set(column.to_pylist()))
        assert labels[codes].tolist() == column.to_pylist()
        encoder = GroupEncoder().fit(column)
        assert encoder.groups_[encoder.encode(column)].tolist() == column.to_pylist()


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.uint32(), pa.uint64()], ids=str)
def test_a_null_is_missing_wherever_it_stands(kind: Any) -> None:
    whole = dictionary([0, 1], ["f", "m"], kind)
    for part in (dictionary([None, 0], ["f", "m"], kind), dictionary([1, 0], ["f", None], kind)):
        for column in (pa.chunked_array([part, part]), pa.chunked_array([part, whole])):
            with pytest.raises(ValueError, match="missing labels"):
                coded_classes(column, column)
            known = pa.chunked_array([whole, *column.chunks])
            assert GroupEncoder().fit(known).encode(known).tolist()[:4] == [0, 1, -1, 0]


def test_classes_may_be_a_table_of_one_column() -> None:
    table = pa.table({"y": ["no", "yes", "no"]})
    labels, codes = coded_classes(table, table)
    assert labels[codes].tolist() == ["no", "yes", "no"]
    with pytest.raises(ValueError, match="1d array"):
        coded_classes(table.append_column("z", table["y"]), table)
