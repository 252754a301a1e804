"""Csv files as another reader takes them, whatever is in them and in whichever dialect."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fairsteer.cli._columns import Reading
from fairsteer.cli._reading import Dialect, Table
from fairsteer.cli._writing import _CsvWriter

_NUMBERS = [0.0, -0.0, 1e300, 1.5, 5e-324, -1 / 3, 1e-5]
_TEXTS = ["a", None, 'q"uote', "a,b;c\td|e", "line\nbreak", "return\rhere", "é"]


def columns() -> dict[str, Any]:
    """Columns of two parts each, as they are read in pieces."""
    kinds = {
        "text": pa.array(_TEXTS),
        "large": pa.array(_TEXTS, pa.large_string()),
        "category": pa.array(_TEXTS).dictionary_encode(),
        "whole": pa.array([1, 2, None, 4, 5, 6, 2**62]),
        "day": pa.array([0, None, 3, 4, 5, 6, 7], pa.date32()),
    }
    return {name: pa.chunked_array([values[:3], values[3:]]) for name, values in kinds.items()}


def expected(name: str, values: Any) -> list[str]:
    if name == "day":
        return ["" if day is None else day.isoformat() for day in values.to_pylist()]
    return ["" if value is None else str(value) for value in values.to_pylist()]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize(("separator", "decimal"), [(",", "."), (";", ","), ("\t", ","), ("|", ".")])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_is_read_back_by_another_reader(encoding: str, separator: str, decimal: str, newline: str) -> None:
    dialect = Dialect(separator=separator, decimal=decimal, encoding=encoding, newline=newline)
    data = pa.table(columns())
    table = Table("rows", data, data.column_names, dialect, Reading())
    file = io.BytesIO()
    writer = _CsvWriter(file, table, ["x"], {"p": pa.float64()}, table.names, dialect, gzipped=False)
    features, chances = np.array(_NUMBERS)[:, None], [0.25] * 7
    for start, stop in ((0, 7), (2, 2), (2, 5)):  # the second one has no rows
        piece = replace(table, data=data.slice(start, stop - start), _columns={})
        writer.write(features[start:stop], [pa.array(chances[start:stop], pa.float64())], piece)
    none = pa.table({name: pa.chunked_array([], data[name].type) for name in table.names})
    writer.write(features[:0], [pa.array([], pa.float64())], replace(table, data=none, _columns={}))
    writer.close()
    text = file.getvalue().decode(encoding)
    header, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    assert header == ["x", "p", *table.names]
    order = [*range(7), *range(2, 5)]
    assert [float(row[0].replace(decimal, ".")) for row in rows] == [_NUMBERS[i] for i in order]
    assert [np.signbit(float(row[0].replace(decimal, "."))) for row in rows[:2]] == [False, True]
    assert {row[1] for row in rows} == {f"0{decimal}25"}
    for j, name in enumerate(table.names, 2):
        texts = expected(name, data[name])
        assert [row[j] for row in rows] == [texts[i] for i in order]


@pytest.mark.parametrize("repeats", [1, 500])
def test_repeated_numbers_are_written_as_others_are(repeats: int) -> None:
    numbers = np.array([0.0, -0.0, 0.1, 1e22, 0.1] * repeats)
    data = pa.table({"k": ["", None, "a", "b", "c"] * repeats})
    table = Table("rows", data, [], Dialect(), Reading())
    file = io.BytesIO()
    writer = _CsvWriter(file, table, ["x"], {}, [], Dialect(), gzipped=False)
    writer.write(numbers[:, None], [], table)
    _, *lines = file.getvalue().decode().splitlines()
    assert [repr(float(line)) for line in lines] == [repr(number) for number in numbers.tolist()]


def test_empty_values_of_one_column_are_rows() -> None:
    data = pa.table({"k": ["a", None, ""]})
    table = Table("rows", data, ["k"], Dialect(), Reading())
    file = io.BytesIO()
    _CsvWriter(file, table, [], {}, ["k"], Dialect(), gzipped=False).write(np.zeros((3, 0)), [], table)
    assert list(csv.reader(io.StringIO(file.getvalue().decode()))) == [["k"], ["a"], [""], [""]]
