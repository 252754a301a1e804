"""The same rows and groups in any container: the same maps, and never the wrong column."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.compose import make_column_selector

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, persistence

FRAMES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "pandas": pd.DataFrame,
    "pandas nullable": lambda columns: pd.DataFrame(columns).convert_dtypes(),
    "pandas pyarrow": lambda columns: pd.DataFrame(columns).convert_dtypes(dtype_backend="pyarrow"),
    "polars": pl.DataFrame,
    "pyarrow": pa.table,
}

# Ways to write the groups f and m, and 0 and 1.
COLUMNS: dict[str, Callable[[Any], Any]] = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "object array": lambda labels: np.array(labels, dtype=object),
    "Series": pd.Series,
    "category": lambda labels: pd.Series(labels).astype("category"),
    "ordered category": lambda labels: pd.Series(pd.Categorical(labels, ordered=True)),
    "unused category": lambda labels: pd.Series(pd.Categorical(labels, [*dict.fromkeys(labels), labels[0] * 7])),
    "nullable": lambda labels: pd.Series(labels).convert_dtypes(),
    "pandas pyarrow": lambda labels: pd.Series(labels).convert_dtypes(dtype_backend="pyarrow"),
    "Categorical": pd.Categorical,
    "Index": pd.Index,
    "shuffled index": lambda labels: pd.Series(labels, index=np.arange(len(labels))[::-1]),
    "polars": pl.Series,
    "pyarrow": pa.array,
    "pyarrow chunks": lambda labels: pa.chunked_array([labels[:100], labels[100:]]),
    "pyarrow dictionary": lambda labels: pa.array(labels).dictionary_encode(),
    # Each chunk numbers its labels in its own order.
    "pyarrow dictionary chunks": lambda labels: pa.chunked_array(
        [pa.array(labels[:9]).dictionary_encode(), pa.array(labels[9:]).dictionary_encode()]
    ),
}
TEXT_COLUMNS: dict[str, Callable[[Any], Any]] = {
    **COLUMNS,
    "string dtype": lambda labels: pd.Series(labels, dtype="string"),
    "numpy.str_": lambda labels: np.array([np.str_(label) for label in labels], dtype=object),
    "polars Categorical": lambda labels: pl.Series(labels).cast(pl.Categorical),
    "polars Enum": lambda labels: pl.Series(labels).cast(pl.Enum(["m", "x", "f"])),
    "pyarrow large string": lambda labels: pa.array(labels, pa.large_string()),
    "pyarrow string view": lambda labels: pa.array(labels, pa.string_view()),
}


def assert_same_maps(one: FairSteeringTransformer, two: FairSteeringTransformer) -> None:
    assert one.groups_.tolist() == two.groups_.tolist()
    assert one.groups_.dtype.kind == two.groups_.dtype.kind
    for label in two.groups_.tolist():
        for ours, theirs in zip(one.maps_[label], two.maps_[label], strict=True):
            assert ours.tobytes() == theirs.tobytes()


@pytest.fixture(scope="module")
def columns(data: Any) -> dict[str, Any]:
    a, b, c = data.X.T
    return {"a": a, "sex": np.array(["f", "m"])[data.group].tolist(), "b": b, "c": c}


# ---- groups beside X


@pytest.mark.parametrize("container", TEXT_COLUMNS)
@pytest.mark.parametrize("kind", ["text", "integers", "booleans"])
def test_groups_in_any_container_give_the_same_maps(data: Any, container: str, kind: str) -> None:
    if kind != "text" and container not in COLUMNS:
        container = "list"
    labels = {"text": np.array(["f", "m"])[data.group], "integers": data.group, "booleans": data.group == 1}[kind]
    given = TEXT_COLUMNS[container](labels.tolist())
    plain = FairSteeringTransformer().fit(data.X, data.y, sensitive_features=labels)
    steer = FairSteeringTransformer().fit(data.X, data.y, sensitive_features=given)
    assert_same_maps(steer, plain)
    np.testing.assert_array_equal(
        plain.transform(data.X, sensitive_features=given), steer.transform(data.X, sensitive_features=labels)
    )


@pytest.mark.parametrize("frame", FRAMES)
def test_tables_of_groups_give_the_same_maps(data: Any, frame: str) -> None:
    sex, old = np.array(["f", "m"])[data.group], data.X[:, 0] > 0
    table = FRAMES[frame]({"sex": sex.tolist(), "old": old.tolist()})
    rows = list(zip(sex.tolist(), old.tolist(), strict=True))
    plain = FairSteeringTransformer().fit(data.X, data.y, sensitive_features=[list(row) for row in rows])
    steer = FairSteeringTransformer().fit(data.X, data.y, sensitive_features=table)
    assert_same_maps(steer, plain)
    assert steer.groups_.tolist() == [("f", False), ("f", True), ("m", False), ("m", True)]
    exchanged = FRAMES[frame]({"old": old.tolist(), "sex": sex.tolist()})
    with pytest.raises(ValueError, match=r"columns of sensitive_features are 'old', 'sex', .* 'sex', 'old'"):
        steer.transform(data.X, sensitive_features=exchanged)
    with pytest.raises(ValueError, match="another type than at fit"):
        plain.transform(data.X, sensitive_features=exchanged)


# ---- groups in columns of X


@pytest.mark.parametrize("frame", FRAMES)
def test_frames_give_the_same_maps(data: Any, columns: dict[Any, Any], frame: str) -> None:
    X = FRAMES[frame](columns)
    plain = FairSteeringTransformer().fit(data.X, data.y, sensitive_features=columns["sex"])
    steer = FairSteeringTransformer(sensitive_columns="sex").fit(X, data.y)
    assert_same_maps(steer, plain)
    assert steer.feature_names_in_.tolist() == ["a", "sex", "b", "c"]
    np.testing.assert_array_equal(steer.transform(X), plain.transform(data.X, sensitive_features=columns["sex"]))
    for other in FRAMES.values():  # any frame is as good as that of fit
        np.testing.assert_array_equal(steer.transform(other(columns)), steer.transform(X))
    features = FRAMES[frame]({name: column for name, column in columns.items() if name != "sex"})
    beside = FairSteeringTransformer().fit(features, data.y, sensitive_features=columns["sex"])
    assert_same_maps(beside, plain)


@pytest.mark.parametrize("rows", [lambda array: array, lambda array: array.tolist()])
def test_arrays_and_lists_give_the_same_maps(data: Any, columns: dict[Any, Any], rows: Callable[..., Any]) -> None:
    array = np.array([columns[name] for name in columns], dtype=object).T
    plain = FairSteeringTransformer().fit(data.X, data.y, sensitive_features=columns["sex"])
    steer = FairSteeringTransformer(sensitive_columns=1).fit(rows(array), data.y)
    assert_same_maps(steer, plain)
    coded = np.column_stack([data.X, data.group])
    assert_same_maps(
        FairSteeringTransformer(sensitive_columns=[-1]).fit(coded, data.y),
        FairSteeringTransformer().fit(data.X, data.y, sensitive_features=data.group.astype(float)),
    )


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("beside", [False, True])
def test_columns_in_another_order_raise_the_error_of_scikit_learn(
    data: Any, columns: dict[Any, Any], frame: str, beside: bool
) -> None:
    names = [name for name in columns if not (beside and name == "sex")]
    groups = {"sensitive_features": columns["sex"]} if beside else {}
    steer = FairSteeringTransformer(sensitive_columns=None if beside else "sex")
    classifier = IdealDistributionClassifier(steering=clone(steer))
    X, exchanged = (FRAMES[frame]({name: columns[name] for name in order}) for order in (names, names[::-1]))
    steer.fit(X, data.y, **groups)
    classifier.fit(X, data.y, **groups)
    for method in (steer.transform, classifier.predict, classifier.predict_proba):
        with pytest.raises(ValueError, match="Feature names must be in the same order as they were in fit"):
            method(exchanged, **groups)
    with pytest.raises(ValueError, match="Feature names seen at fit time, yet now missing"):
        steer.transform(FRAMES[frame]({name: columns[name] for name in names[1:]}), **groups)


@pytest.mark.parametrize("container", ["pandas", "polars"])
@pytest.mark.parametrize("frame", FRAMES)
def test_output_in_any_frame(data: Any, columns: dict[Any, Any], frame: str, container: str) -> None:
    X = FRAMES[frame](columns)
    steer = FairSteeringTransformer(sensitive_columns="sex")
    plain = steer.fit_transform(X, data.y)
    steered = steer.set_output(transform=container).transform(X)
    frames: dict[str, Any] = {"pandas": pd.DataFrame, "polars": pl.DataFrame}
    assert type(steered) is frames[container]
    assert list(steered.columns) == ["a", "b", "c"]
    np.testing.assert_array_equal(steered.to_numpy(), plain)


# ---- naming the columns


def text_columns(X: Any) -> list[str]:
    return [name for name, dtype in zip(X.columns, X.dtypes, strict=True) if dtype == pl.String]


WAYS: dict[str, Any] = {
    "name": "sex",
    "names": ["sex"],
    "position": 1,
    "numpy position": np.int64(1),
    "from the end": -3,
    "array": np.array([1]),
    "slice": slice(1, 2),
    "mask": [False, True, False, False],
    "numpy mask": np.array([False, True, False, False]),
    "twice": ["sex", 1],
    "selector": make_column_selector(dtype_exclude=float),
    "pattern": make_column_selector("^s"),
    "function to a mask": lambda X: np.array(X.columns) == "sex",
    "function to a slice": lambda X: slice(-3, -2),
    "function to a name": lambda X: "sex",
}


@pytest.mark.parametrize("way", WAYS)
def test_columns_are_named_as_for_a_column_transformer(
    data: Any, columns: dict[Any, Any], way: str, tmp_path: Any
) -> None:
    X = pd.DataFrame(columns)
    plain = FairSteeringTransformer(sensitive_columns="sex").fit(X, data.y)
    steer = FairSteeringTransformer(sensitive_columns=WAYS[way]).fit(X, data.y)
    assert_same_maps(steer, plain)
    assert steer.get_feature_names_out().tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(steer.transform(X), plain.transform(X))
    persistence.save(steer, tmp_path / "map")
    loaded = persistence.load(tmp_path / "map")
    np.testing.assert_array_equal(loaded.transform(X), plain.transform(X))
    kept = isinstance(WAYS[way], (str, int, np.integer))
    assert loaded.sensitive_columns == (WAYS[way] if kept else ["sex"])
    assert_same_maps(clone(loaded).fit(X, data.y), plain)


def test_functions_see_the_frame_as_it_comes_and_only_at_fit(data: Any, columns: dict[Any, Any]) -> None:
    seen = []

    def select(X: Any) -> list[str]:
        seen.append(type(X))
        return text_columns(X)

    X = pl.DataFrame(columns)
    steer = FairSteeringTransformer(sensitive_columns=select).fit(X, data.y)
    steer.transform(X)
    steer.predict_group_proba(X)
    assert seen == [pl.DataFrame]
    half = len(data.y) // 2
    batches = FairSteeringTransformer(sensitive_columns=select)
    batches.partial_fit(X[:half], data.y[:half]).partial_fit(X[half:], data.y[half:])
    assert seen == [pl.DataFrame] * 2
    assert batches.groups_.tolist() == ["f", "m"]


def test_a_function_of_an_array(data: Any) -> None:
    X = np.column_stack([data.X, data.group])
    few = FairSteeringTransformer(sensitive_columns=lambda X: [len(np.unique(column)) < 5 for column in X.T])
    assert few.fit(X, data.y).groups_.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ([], "selects none of the 4 columns"),
        ([False] * 4, "selects none of the 4 columns"),
        (make_column_selector("^x"), r"make_column_selector.* selects none of the 4 columns"),
        ([True] * 4, "names all 4 columns"),
        ([True, False], "is a mask of 2 columns, but X has 4"),
        (["sex", 1.5], "it holds 1.5"),
        (["sex", True], "it holds True"),
        ([["sex"]], r"it holds \['sex'\]"),
        (lambda X: ["gender"], r"sensitive_columns=<function .* names 'gender', but X has the columns 'a', 'sex'"),
        (4, "names column 4, but X has 4 columns"),
        (-5, "names column -5, but X has 4 columns"),
        (True, "is a mask of 1 columns"),
    ],
)
def test_columns_that_cannot_be_found_are_named(data: Any, columns: dict[Any, Any], way: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FairSteeringTransformer(sensitive_columns=way).fit(pd.DataFrame(columns), data.y)
