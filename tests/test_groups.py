from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from fairsteer import groups
from fairsteer._utils.columns import select_columns
from fairsteer._utils.labels import is_missing
from fairsteer.groups import MISSING, UNSEEN, GroupEncoder

STRINGS = ["b", "a", "b", "c"]
INTEGERS = [2, 1, 2, 3]

CONTAINERS = {
    "list": list,
    "tuple": tuple,
    "str or int array": np.array,
    "object array": lambda labels: np.array(labels, dtype=object),
    "column": lambda labels: np.array(labels)[:, None],
    "Series": pd.Series,
    "Index": pd.Index,
    "category": lambda labels: pd.Series(labels).astype("category"),
    "pandas nullable": lambda labels: pd.Series(labels).convert_dtypes(),
    "pandas pyarrow": lambda labels: pd.Series(labels).convert_dtypes(dtype_backend="pyarrow"),
    "DataFrame": lambda labels: pd.DataFrame({"group": labels}),
    "polars Series": pl.Series,
    "polars DataFrame": lambda labels: pl.DataFrame({"group": labels}),
    "pyarrow Array": pa.array,
    "pyarrow ChunkedArray": lambda labels: pa.chunked_array([labels[:1], labels[1:]]),
    "pyarrow dictionary": lambda labels: pa.array(labels).dictionary_encode(),
    "pyarrow Table": lambda labels: pa.table({"group": labels}),
}


@pytest.mark.parametrize("labels", [STRINGS, INTEGERS, [True, False, True, True]])
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_labels_and_codes(container: str, labels: list[Any]) -> None:
    plain = GroupEncoder().fit(labels)
    encoder = GroupEncoder().fit(CONTAINERS[container](labels))
    assert encoder.groups_.tolist() == sorted(set(labels))
    assert encoder.groups_.dtype == plain.groups_.dtype == np.array(labels).dtype
    assert encoder.encode(labels).tolist() == [sorted(set(labels)).index(label) for label in labels]
    assert encoder.encode(CONTAINERS[container](labels)).dtype == np.intp


@pytest.mark.parametrize("container", [pl.Series(STRINGS).cast(pl.Categorical), np.array(STRINGS, dtype="O")])
def test_labels_of_strings_are_strings(container: object) -> None:
    assert GroupEncoder().fit(container).groups_.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    "labels",
    [
        pa.DictionaryArray.from_arrays(pa.array([0, 2], pa.int8()), ["a", "unused", "b"]),
        pa.chunked_array([pa.array(["a", "unused", "b"]).dictionary_encode()]).take(pa.array([2, 0])),
        pa.array(["unused", "a", "b"]).dictionary_encode().slice(1),
        pd.Categorical(["a", "b"], categories=["a", "unused", "b"]),
        pl.Series(["a", "unused", "b"], dtype=pl.Categorical).filter(pl.Series([True, False, True])),
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_categories_without_rows_are_no_groups(labels: object) -> None:
    assert GroupEncoder().fit(labels).groups_.tolist() == ["a", "b"]
    encoder = GroupEncoder()
    assert sorted(encoder.partial_fit_encode(labels).tolist()) == [0, 1]
    assert encoder.groups_.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    "labels",
    [
        ["a", None, "b"],
        ["a", np.nan, "b"],
        ["a", pd.NA, "b"],
        ["a", pd.NaT, "b"],
        np.array(["a", float("nan"), "b"], dtype=object),
        pd.Series(["a", None, "b"], dtype="string"),
        pd.Series(["a", None, "b"], dtype="category"),
        pl.Series(["a", None, "b"]),
        pa.array(["a", None, "b"]),
        pa.array(["a", None, "b"]).dictionary_encode(),
    ],
)
def test_missing_labels_have_no_group(labels: object) -> None:
    encoder = GroupEncoder().fit(labels)
    assert encoder.groups_.tolist() == ["a", "b"]
    assert encoder.encode(labels).tolist() == [0, MISSING, 1]
    assert encoder.unknown_counts(labels) == {None: 1}


@pytest.mark.parametrize(
    "labels",
    [
        pd.Series([1, None, 2], dtype="Int64"),
        pd.Series([1, np.nan, 2]),
        pl.Series([1, None, 2]),
        pa.array([1, None, 2]),
    ],
)
def test_missing_integers(labels: object) -> None:
    encoder = GroupEncoder().fit(labels)
    assert encoder.groups_.tolist() == [1, 2]
    assert encoder.encode(labels).tolist() == [0, MISSING, 1]
    assert encoder.encode([2, 1]).tolist() == [1, 0]


def test_the_word_nan_is_a_label() -> None:
    assert GroupEncoder().fit(["nan", "None", "", "a"]).groups_.tolist() == ["", "None", "a", "nan"]


def test_labels_match_by_value_and_are_never_turned_into_strings() -> None:
    encoder = GroupEncoder().fit([0, 1])
    assert encoder.encode([1.0, True, np.float32(0), Decimal(1), 2]).tolist() == [1, 1, 0, 1, UNSEEN]
    assert encoder.unknown_counts([1.0, 3, 3, None]) == {3: 2, None: 1}

    mixed = GroupEncoder().fit([1, "1", "a"])
    assert sorted(map(repr, mixed.groups_)) == ["'1'", "'a'", "1"]
    codes = mixed.encode(["1", 1])
    assert mixed.groups_[codes].tolist() == ["1", 1]


# How the groups 0 and 1 may be written. Those of one kind equal one another; those of different kinds never meet in
# silence. A missing value comes last in each, where the type has one.
TYPES: dict[str, tuple[str, Any]] = {
    "int": ("number", [0, 1]),
    "int8": ("number", np.array([0, 1], dtype=np.int8)),
    "uint64": ("number", np.array([0, 1], dtype=np.uint64)),
    "float": ("number", [0.0, 1.0]),
    "float32": ("number", np.array([0, 1, np.nan], dtype=np.float32)),
    "float from Int64 with NA": ("number", pd.Series([0, 1, np.nan])),
    "bool": ("number", [False, True]),
    "numpy bool": ("number", np.array([False, True])),
    "Int64": ("number", pd.Series([0, 1, None], dtype="Int64")),
    "boolean": ("number", pd.Series([False, True, None], dtype="boolean")),
    "category of int": ("number", pd.Series([0, 1, None]).astype("category")),
    "category of bool": ("number", pd.Series([False, True]).astype("category")),
    "polars Float32": ("number", pl.Series([0, 1, None, float("nan")], dtype=pl.Float32)),
    "polars Int8": ("number", pl.Series([0, 1, None], dtype=pl.Int8)),
    "polars Boolean": ("number", pl.Series([False, True, None])),
    "pyarrow int": ("number", pa.array([0, 1, None])),
    "pyarrow bool": ("number", pa.array([False, True, None])),
    "pyarrow decimal": ("number", pa.array([0, 1, None], pa.decimal128(5, 2))),
    "pyarrow dictionary of int": ("number", pa.array([0, 1, None]).dictionary_encode()),
    "str": ("string", ["0", "1"]),
    "numpy str": ("string", np.array(["0", "1"])),
    "object array of numpy.str_": ("string", np.array([np.str_("0"), np.str_("1")], dtype=object)),
    "pandas string": ("string", pd.Series(["0", "1", None], dtype="string")),
    "category of str": ("string", pd.Series(["0", "1", None]).astype("category")),
    "polars String": ("string", pl.Series(["0", "1", None])),
    "polars Categorical": ("string", pl.Series(["0", "1", None]).cast(pl.Categorical)),
    "polars Enum": ("string", pl.Series(["0", "1", None]).cast(pl.Enum(["0", "1", "2"]))),
    "pyarrow string": ("string", pa.array(["0", "1", None])),
    "pyarrow dictionary of str": ("string", pa.array(["0", "1", None]).dictionary_encode()),
    "bytes": ("bytes", [b"0", b"1"]),
    "numpy bytes": ("bytes", np.array([b"0", b"1"])),
    "pyarrow binary": ("bytes", pa.array([b"0", b"1", None])),
    "words": ("string", ["no", "yes"]),
}


@pytest.mark.parametrize("fitted", TYPES)
def test_labels_of_two_types_are_equal_or_an_error(fitted: str) -> None:
    """A row of the table: groups written as one type at fit meet the groups in every type that there is."""
    kind, at_fit = TYPES[fitted]
    encoder = GroupEncoder().fit(at_fit)
    same = {given: later for given, (other, later) in TYPES.items() if other == kind}
    unseen = {given for given in same if "words" in (fitted, given) and fitted != given}
    assert {given: encoder.encode(later).tolist() for given, later in same.items()} == {
        given: [*([UNSEEN, UNSEEN] if given in unseen else [0, 1]), MISSING, MISSING][: len(later)]
        for given, later in same.items()
    }
    refusal = r"another type than at fit: the groups are the \w+ .*; given are the \w+"
    for given in TYPES.keys() - same.keys():
        with pytest.raises(ValueError, match=refusal):
            encoder.encode(TYPES[given][1])
        with pytest.raises(ValueError, match=refusal):
            encoder.partial_fit(TYPES[given][1])


@pytest.mark.parametrize(
    ("fitted", "given", "message"),
    [
        ([0, 1], ["0", "1"], "the groups are the integers 0, 1; given are the strings '0', '1'"),
        ([True, False], ["True"], "the groups are the booleans False, True; given are the strings 'True'"),
        ([0.0, 1.5], ["a", 0.0], "the groups are the floats 0.0, 1.5; given are the strings 'a'"),
        ([1, 2], [True, False], "the groups are the integers 1, 2; given are the booleans True, False"),
        ([True, False], [0, 2], "the groups are the booleans False, True; given are the integers 2"),
        (["a"], [b"a"], "the groups are the strings 'a'; given are the bytes b'a'"),
        (list(range(9)), ["x", b"y"], "0, 1, 2, 3, 4 and 4 more; given are the strings 'x' and the bytes b'y'"),
        ([["f", 1]], [["f", "1"]], "feature 1 are .* the integers 1; given are the strings '1'"),
        (pd.DataFrame({"sex": ["f"], "age": [1]}), [[0, 1]], "feature 'sex' are .* the strings 'f'.* integers 0"),
        (["2020"], pd.Series(pd.date_range("2020", periods=1)), "the strings '2020'; given are the Timestamp values"),
        (["2020"], np.array(["2020"], dtype="datetime64[D]").astype(object), "the strings '2020'; given are the date"),
    ],
)
def test_labels_of_another_type_are_named_with_their_types(fitted: Any, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupEncoder().fit(fitted).encode(given)


@pytest.mark.parametrize("precision", [np.float16, np.float32, np.float64])
def test_fractions_are_the_same_label_in_every_precision(precision: type[Any]) -> None:
    labels = np.array([0.1, 0.7, 2.5, 70000.1])
    assert GroupEncoder().fit(labels).encode(labels[:3].astype(precision)).tolist() == [0, 1, 2]
    assert GroupEncoder().fit(labels.astype(np.float32)).encode(labels).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame, pa.table])
def test_several_columns_are_intersections(frame: type[Any]) -> None:
    columns = {"sex": ["f", "m", "m", None, "f"], "age": [1, 2, 1, 1, 1]}
    encoder = GroupEncoder().fit(frame(columns))
    assert encoder.groups_.tolist() == [("f", 1), ("m", 1), ("m", 2)]
    assert encoder.encode(frame(columns)).tolist() == [0, 2, 1, MISSING, 0]
    # Known parts in a combination that nobody had are unseen.
    assert encoder.encode([["f", 2.0], ["f", 1.0]]).tolist() == [UNSEEN, 0]
    assert encoder.unknown_counts([["f", 2], ["x", 1], [None, 1]]) == {("f", 2): 1, ("x", 1): 1, None: 1}
    with pytest.raises(ValueError, match="another type"):
        encoder.encode([["f", "2"]])


def test_intersections_do_not_overflow() -> None:
    columns = np.random.default_rng(0).integers(0, 1000, (2000, 12))  # 10^36 combinations
    encoder = GroupEncoder().fit(columns)
    assert encoder.groups_[encoder.encode(columns)].tolist() == [tuple(row) for row in columns.tolist()]


def test_labels_are_plain_python_values() -> None:
    encoder = GroupEncoder().fit(np.array([np.str_("b"), np.str_("a")], dtype=object))
    assert encoder.groups_.dtype == np.dtype("U1")
    mixed = GroupEncoder().fit(np.array([np.str_("b"), np.int64(3)], dtype=object))
    assert {type(label) for label in mixed.groups_} == {str, int}


def test_groups_do_not_depend_on_the_order_of_rows() -> None:
    labels = np.array([3, "b", (1, 2), 2, "a", None, True], dtype=object)
    order = np.random.default_rng(0).permutation(len(labels))
    first, second = GroupEncoder().fit(labels), GroupEncoder().fit(labels[order])
    assert first.groups_.tolist() == second.groups_.tolist()


def test_partial_fit_adds_labels() -> None:
    encoder = GroupEncoder().partial_fit(["b", "d"])
    encoder.partial_fit(["c", None, "a", "b"])
    assert encoder.groups_.tolist() == ["a", "b", "c", "d"]
    encoder.fit(["z"])
    assert encoder.groups_.tolist() == ["z"]
    with pytest.raises(ValueError, match="2 column"):
        encoder.partial_fit([["z", 1]])


def test_columns_must_be_those_of_fit() -> None:
    frame = pd.DataFrame({"sex": [0, 1], "old": [1, 0]})
    encoder = GroupEncoder().fit(frame)
    with pytest.raises(ValueError, match=r"'old', 'sex', but the groups were fitted on 'sex', 'old'"):
        encoder.encode(frame[["old", "sex"]])
    with pytest.raises(ValueError, match=r"1 column.*fitted on 2 \('sex', 'old'\)"):
        encoder.encode(frame["sex"])
    assert encoder.encode(frame.to_numpy()).tolist() == [0, 1]  # without names they are taken in order
    renamed = GroupEncoder().fit(frame[["sex"]]).encode(frame["sex"].rename("gender"))
    assert renamed.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.linspace(0.1, 9, 50), "looks continuous: .* pandas.cut"),
        (pd.DataFrame({"age": np.linspace(0.1, 9, 50)}), "'age' looks continuous"),
        (pd.Series(pd.date_range("2020", periods=3)), "dates.*by year"),
        (pd.Series(pd.date_range("2020", periods=3, tz="UTC")), "dates"),
        (np.array(["2020"], dtype="datetime64[ns]"), "discrete labels .*datetime64"),
        (np.array([np.datetime64("2020", "ns"), None], dtype=object), "dates"),
        (pd.Series([dt.time(3)]), "times"),
        (pd.Series(pd.date_range("2020", periods=3)).astype("category"), "dates"),
        (pl.Series([dt.date(2020, 1, 1)]), "dates"),
        (pa.array([dt.timedelta(3)]), "durations"),
        ("abc", "one or two dimensions"),
        (1, "one or two dimensions"),
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\)"),
        (pd.DataFrame(), "no columns"),
        ([None, np.nan], "missing in all of its 2 rows"),
    ],
)
def test_what_is_no_label_is_refused(labels: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupEncoder().fit(labels)


@pytest.mark.parametrize("labels", [[{"a": 1}], pd.Series([{"a": 1}]), pa.array([{"a": 1}])])
def test_labels_that_cannot_be_hashed_are_refused(labels: Any) -> None:
    with pytest.raises(TypeError, match="hashed"):
        GroupEncoder().fit(labels)


def test_whole_and_few_fractional_floats_are_labels() -> None:
    assert GroupEncoder().fit(np.arange(100.0)).groups_.tolist() == list(range(100))
    assert GroupEncoder().fit([0.5, 1.5, 0.5]).groups_.tolist() == [0.5, 1.5]


def test_work_in_python_grows_with_labels_not_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Mock(wraps=is_missing)
    monkeypatch.setattr(groups, "is_missing", asked)
    labels = np.random.default_rng(0).integers(0, 5, 100_000)
    encoder = GroupEncoder().fit(labels)
    assert np.array_equal(encoder.encode(labels), labels)
    assert asked.call_count == 10
    missing = np.where(labels == 0, np.nan, labels)
    assert np.array_equal(GroupEncoder().fit(missing).encode(pl.Series(missing)), labels - 1)
    assert asked.call_count == 20


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame, pa.table])
def test_select_columns_keeps_the_container(frame: type[Any]) -> None:
    selected = select_columns(frame({"a": [1, 2], "b": ["x", "y"], "c": [3, 4]}), [2, 0])
    assert type(selected) is type(frame({"a": [1]}))
    assert np.asarray(selected).tolist() == [[3, 1], [4, 2]]


def test_select_columns_of_a_list_keeps_its_types() -> None:
    assert select_columns([[1, "a", 2.5], [2, "b", 3.5]], [0, 1]).tolist() == [[1, "a"], [2, "b"]]
