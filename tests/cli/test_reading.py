"""Files as strangers write them: read as they are meant, or refused; kept columns come back byte for byte."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fairsteer.cli import UsageError
from fairsteer.cli._columns import Column, Reading

N_ROWS = 200


@pytest.fixture
def table() -> Any:
    """Two features, and columns that nobody may touch."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, N_ROWS)
    return pd.DataFrame(
        {
            "id": [str(2**53 + 1 + i) if i != 7 else "" for i in range(N_ROWS)],
            "zip": [f"{i:05d}" for i in range(N_ROWS)],
            "phone": [f"+49{i}" for i in range(N_ROWS)],
            "code": [f"{i}E5" for i in range(N_ROWS)],
            "country": rng.choice(["NA", "DE", "null"], N_ROWS),
            "text": [('say "hi", you', " x ", "a\nb", "")[i % 4] for i in range(N_ROWS)],
            "sex": rng.choice(["f", "m"], N_ROWS),
            "hired": y,
            "age": (40 + 5 * y + rng.normal(0, 9, N_ROWS)).round(1),
            "pay": 3000 + rng.integers(0, 900, N_ROWS),
        }
    )


KEPT = ["id", "zip", "phone", "code", "country", "text"]
CARRIED = ["sex", "hired", *KEPT]


@pytest.fixture
def steer(run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Steer a file in the working directory to another; returns code and notes."""
    monkeypatch.chdir(tmp_path)

    def steer(file: Any, out: Any = "out.csv", *options: Any, keep: Any = KEPT) -> Any:
        kept = ["--keep", ",".join(keep)] if keep else []
        arguments = ["steer", file, "--target", "hired", "--sensitive", "sex", *kept, "--out", out, "--force"]
        code, _, err = run(*arguments, "--folds", 2, *options)
        return code, " ".join(err.split())

    return steer


def _texts(path: Any, **how: Any) -> Any:
    return pd.read_csv(path, dtype=str, keep_default_na=False, **how)


@pytest.mark.parametrize(
    ("written", "read", "said"),
    [
        ({}, {}, ""),
        ({"sep": ";"}, {"sep": ";"}, "separated by semicolons (--separator)"),
        ({"sep": ";", "decimal": ","}, {"sep": ";"}, "semicolons (--separator) and decimal commas (--decimal)"),
        ({"sep": "\t"}, {"sep": "\t"}, "separated by tabs"),
        ({"sep": "|"}, {"sep": "|"}, "separated by vertical bars"),
        ({"encoding": "utf-16"}, {"encoding": "utf-16"}, "UTF-16 text (--encoding)"),
        ({"encoding": "utf-16-le"}, {"encoding": "utf-16-le"}, "UTF-16 text (--encoding)"),
        ({"encoding": "latin-1"}, {"encoding": "latin-1"}, "Latin-1 text (--encoding)"),
        ({"encoding": "cp1252"}, {"encoding": "cp1252"}, "Windows-1252 text"),
        ({"encoding": "utf-8-sig"}, {"encoding": "utf-8-sig"}, ""),
        ({"lineterminator": "\r\n"}, {}, ""),
        ({"lineterminator": "\r"}, {}, ""),
        ({"quoting": csv.QUOTE_ALL}, {}, ""),
        ({"quoting": csv.QUOTE_NONNUMERIC}, {}, ""),
    ],
)
def test_dialects_are_guessed_said_and_kept(steer: Any, table: Any, written: Any, read: Any, said: Any) -> None:
    table["country"] = {"cp1252": "Š", "latin-1": "Österreich"}.get(written.get("encoding"), "日本" if written else "é")
    if written.get("lineterminator") == "\r":  # pandas would not quote the other end of a line
        table["text"] = table["text"].str.replace("\n", " ")
    table.to_csv("rows.csv", index=False, **written)
    code, notes = steer("rows.csv")
    assert code == 0, notes
    assert said in notes
    assert bool(said) == ("is read as" in notes)
    before, after = _texts("rows.csv", **read), _texts("out.csv", **read)
    assert after.columns.tolist() == ["age", "pay", *CARRIED]
    pd.testing.assert_frame_equal(after[CARRIED], before[CARRIED])
    ends = [[Path(name).read_bytes().count(end) for end in (b"\r", b"\n")] for name in ("rows.csv", "out.csv")]
    assert ends[0] == ends[1]


def test_kept_fields_are_the_same_bytes_even_where_quotes_were_not_needed(steer: Any, table: Any) -> None:
    table["text"] = "plain"
    table.to_csv("rows.csv", index=False, quoting=csv.QUOTE_ALL)
    assert steer("rows.csv")[0] == 0
    before, after = (Path(name).read_text(encoding="utf-8").splitlines() for name in ("rows.csv", "out.csv"))
    for line, again in zip(before, after, strict=True):
        id_to_text = line.split(",")[:6]
        assert again.split(",")[-6:] == id_to_text


def test_gzip_is_read_and_written(steer: Any, table: Any) -> None:
    table.to_csv("rows.csv.gz", index=False)
    code, notes = steer("rows.csv.gz", "out.csv.gz")
    assert code == 0
    assert "rows.csv.gz is read as gzip" in notes
    first = Path("out.csv.gz").read_bytes()
    assert steer("rows.csv.gz", "out.csv.gz")[0] == 0
    assert Path("out.csv.gz").read_bytes() == first
    with gzip.open("out.csv.gz", "rt", encoding="utf-8", newline="") as file:
        pd.testing.assert_frame_equal(_texts(file)[CARRIED], _texts("rows.csv.gz")[CARRIED])


@pytest.mark.parametrize(
    ("written", "options"),
    [
        ({"sep": ";"}, ("--separator", ";")),
        ({"sep": "\t"}, ("--separator", "tab")),
        ({"sep": ";", "decimal": ","}, ("--separator", "semicolon", "--decimal", ",")),
        ({"encoding": "latin-1"}, ("--encoding", "latin-1")),
    ],
)
def test_what_the_user_says_is_not_guessed_nor_said(steer: Any, table: Any, written: Any, options: Any) -> None:
    table.assign(country="é").to_csv("rows.csv", index=False, **written)
    code, notes = steer("rows.csv", "out.csv", *options)
    assert (code, notes) == (0, "")


def test_parquet_keeps_types_that_pandas_would_change(steer: Any, table: Any) -> None:
    stored = {
        "id": pa.array([None if i == 7 else 2**53 + 1 + i for i in range(N_ROWS)], pa.int64()),
        "list": pa.array([[i] for i in range(N_ROWS)]),
        "when": pa.array(np.arange(N_ROWS), pa.timestamp("us")),
        **{name: table[name] for name in ("sex", "hired", "age", "pay")},
    }
    pq.write_table(pa.table(stored), "rows.parquet")
    assert steer("rows.parquet", "out.parquet", keep=["id", "list", "when"])[0] == 0
    before, after = pq.read_table("rows.parquet"), pq.read_table("out.parquet")
    assert after.select(["id", "list", "when", "sex", "hired"]).equals(
        before.select(["id", "list", "when", "sex", "hired"])
    )
    assert steer("rows.parquet", "out.csv", "--drop", "list,when", keep=["id"])[0] == 0
    assert _texts("out.csv")["id"].tolist() == ["" if i == 7 else str(2**53 + 1 + i) for i in range(N_ROWS)]


# ---- rows that do not fit


def _rewrite(table: Any, change: Any) -> Any:
    names, *rows = table.to_csv(index=False).splitlines()
    Path("rows.csv").write_text("\n".join([names, *change(rows)]) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [rows[0] + ",", *rows[1:]], "row 1 of rows.csv has 5 values and the header has 4 names"),
        (lambda rows: [*rows[:-1], rows[-1] + ","], f"row {N_ROWS} of rows.csv has 5 values"),
        (lambda rows: [*rows[:9], "f", *rows[10:]], "row 10 of rows.csv has 1 value and the header has 4 names: 'f'"),
        (lambda rows: [row + ",7" for row in rows], "row 1 of rows.csv has 5 values"),
        (lambda rows: [row.replace(".", ",") for row in rows], "Numbers with decimal commas must be quoted"),
        (lambda rows: [*rows[:3], rows[3] + ',"', *rows[4:]], "row 4 of rows.csv"),
    ],
)
def test_rows_of_another_length_are_refused(steer: Any, table: Any, change: Any, message: Any) -> None:
    _rewrite(table[["sex", "hired", "age", "pay"]], change)
    code, err = steer("rows.csv", keep=[])
    assert code == 2
    assert message in err
    assert not Path("out.csv").exists()


def test_a_separator_at_the_end_of_every_row_shifts_nothing(steer: Any, table: Any) -> None:
    plain = table[["sex", "hired", "age", "pay"]]
    plain.to_csv("rows.csv", index=False)
    assert steer("rows.csv", "plain.csv", keep=[])[0] == 0
    _rewrite(plain, lambda rows: [row + "," for row in rows])
    code, notes = steer("rows.csv", keep=[])
    assert code == 0
    assert "every row of rows.csv ends in a separator" in notes
    assert Path("out.csv").read_bytes() == Path("plain.csv").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as csv: it is empty"),
        (b"a,a,sex,hired\n1,2,f,0\n", "more than one column named 'a'"),
        (b"PK\x03\x04rest", "it is a zip archive or a spreadsheet"),
        (b"\x1f\x8b\x08nonsense", "cannot be unpacked as gzip"),
        (b"sex,hired\nf,\x00\n", "NUL characters"),
        (b"sex;hired\n", "has no rows"),
    ],
)
def test_what_is_no_table_is_a_sentence(steer: Any, content: Any, message: Any) -> None:
    Path("rows.csv").write_bytes(content)
    code, err = steer("rows.csv", keep=[])
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--separator", ";;"), "--separator must be one sign"),
        (("--encoding", "nonsense"), "is no encoding that Python knows"),
        (("--encoding", "ascii"), "it is no ascii text, for line 2"),
        (("--decimal", ","), "cannot both be ','"),
        (("--decimal", "x"), "--decimal must be '.' or ',', not x"),
    ],
)
def test_wrong_options_of_reading_are_a_sentence(steer: Any, table: Any, options: Any, message: Any) -> None:
    table["country"] = "é"
    table.to_csv("rows.csv", index=False)
    code, err = steer("rows.csv", "out.csv", *options)
    assert code == 2
    assert message in err


def test_options_of_csv_are_refused_for_parquet(steer: Any, table: Any) -> None:
    table.to_parquet("rows.parquet")
    code, err = steer("rows.parquet", "out.parquet", "--separator", ";")
    assert code == 2
    assert "--separator belongs to csv files, and rows.parquet is parquet" in err


# ---- what a column is


@pytest.fixture
def column(steer: Any, table: Any) -> Any:
    """Steer a table with one more column; returns code, notes and the columns of the output."""

    def column(values: Any, *options: Any, target: Any = None) -> Any:
        plain = table[["sex", "hired", "age", "pay"]].assign(x=values)
        if target is not None:
            plain["hired"] = target
        plain.to_csv("rows.csv", index=False)
        code, notes = steer("rows.csv", "out.csv", *options, keep=[])
        return code, notes, [] if code else _texts("out.csv").columns.tolist()

    return column


RNG = np.random.default_rng(1)
NUMBERS = RNG.normal(size=N_ROWS).round(3).astype(str).tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ["n/a?", *NUMBERS[1:]],
            "199 of 200 values of column 'x' are numbers; not 'n/a?' (1). --na-values 'n/a?' reads it",
        ),
        (
            ["?", "-", *NUMBERS[2:]],
            "198 of 200 values of column 'x' are numbers; not '?' (1), '-' (1). --na-values '?,-'",
        ),
        ([n.replace(".", ",") for n in NUMBERS], "holds numbers with commas, such as"),
        ([f"{i:,}" for i in range(1000, 1000 + N_ROWS)], "remove the commas if they separate thousands"),
        (pd.date_range("2020-01-01", periods=N_ROWS).astype(str), "holds dates, such as '2020-01-01'"),
        (
            pd.date_range("2020-01-01", periods=N_ROWS).strftime("%d.%m.%Y"),
            "--drop x leaves it out, --keep x copies it",
        ),
        (pd.date_range("2020-01-01", periods=N_ROWS).strftime("%d %b %Y %H:%M"), "holds dates"),
        (pd.date_range("2020-01-01", periods=N_ROWS, freq="min").strftime("%H:%M"), "holds dates"),
        (pd.date_range("2020-01-01", periods=N_ROWS, freq="MS").strftime("%Y-%m"), "holds dates"),
        ([f"{i:,}.50" for i in range(1000, 1000 + N_ROWS)], "remove the commas if they separate thousands"),
        ([f"${i % 50}" for i in range(N_ROWS)], "holds numbers with a unit, such as '$0'"),
        ([f"{i % 50} %" for i in range(N_ROWS)], "holds numbers with a unit, such as '0 %'"),
        (["1.8e308", *NUMBERS[1:]], "column 'x' has 1 value beyond the range of double precision (1.8e308)"),
        (["inf", "-inf", *NUMBERS[2:]], "column 'x' has 2 infinite values (inf)"),
        (["inf", *NUMBERS[1:]], "column 'x' has 1 infinite value (inf)"),
    ],
)
def test_what_is_ambiguous_is_refused_with_the_way_out(column: Any, values: Any, message: Any) -> None:
    code, err, _ = column(values)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("values", "options", "columns"),
    [
        (["n/a?", *NUMBERS[1:]], ("--na-values", "n/a?"), ["x"]),
        (["?", "-", *NUMBERS[2:]], ("--na-values", "?,-"), ["x"]),
        (["?", "-", *NUMBERS[2:]], ("--na-values", "?", "--na-values", "-"), ["x"]),
        (["inf", *NUMBERS[1:]], ("--na-values", "inf"), ["x"]),
        (["a", "b"] * 100, (), ["x=a", "x=b"]),
        (["1", "2"] * 100, ("--categorical", "x"), ["x=1", "x=2"]),
        (["true", "False"] * 100, (), ["x"]),
        ([" 1", "2 "] * 100, (), ["x"]),
        (["1e3", ".5", "5.", "+7"] * 50, (), ["x"]),
        (["NA", "b"] * 100, ("--strict-na",), ["x=NA", "x=b"]),
        ([f"{i % 7:03d}" for i in range(N_ROWS)], (), [f"x={i:03d}" for i in range(7)]),
        ([""] * N_ROWS, (), []),
    ],
)
def test_columns_become_what_they_are(column: Any, values: Any, options: Any, columns: Any) -> None:
    code, err, names = column(values, *options)
    assert code == 0, err
    assert names == ["age", "pay", *columns, "sex", "hired"]


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (
            ["a", "?"] * 100,
            "column 'x' has 100 values '?', read as a category of its own; --na-values '?' reads it as missing",
        ),
        (
            ["0", "1", "2", "3+"] * 50,
            "150 of 200 values of column 'x' are numbers; not '3+' (50): all are read as categories",
        ),
        (["NA", "b"] * 100, "100 texts read as missing among categories; --strict-na"),
        (
            [f"p{i}" for i in range(N_ROWS)],
            "looks like an identifier (200 different values in 200 rows): it is no feature",
        ),
        (list(range(N_ROWS)), "column 'x' looks like an identifier (a number of its own in every row): --keep x"),
        ([str(2**60 + i) for i in range(N_ROWS)], "column 'x' looks like an identifier"),
        ([""] * N_ROWS, "column 'x' has no value at all and is left out"),
        ([f"{i % 7:03d}" for i in range(N_ROWS)], "has numbers with leading zeros, which are read as categories"),
    ],
)
def test_what_may_be_meant_otherwise_is_noted(column: Any, values: Any, note: Any) -> None:
    code, notes, _ = column(values)
    assert code == 0, notes
    assert note in notes


def test_an_identifier_is_copied_to_the_output(column: Any) -> None:
    values = [f"p{i}" for i in range(N_ROWS)]
    assert column(values)[2] == ["age", "pay", "sex", "hired", "x"]
    assert _texts("out.csv")["x"].tolist() == values


@pytest.mark.parametrize("kind", ["number", "category", "many classes"])
def test_a_column_that_alone_tells_the_class_is_named(column: Any, table: Any, kind: Any) -> None:
    y = table["hired"].to_numpy()
    if kind == "many classes":
        y = np.arange(N_ROWS) % 3
    x = np.array(["a", "b", "c"])[y] if kind == "category" else 2 * y + RNG.normal(0, 0.1, N_ROWS)
    code, notes, _ = column(x, target=y)
    assert code == 0
    assert "column 'x' alone tells the class in " in notes
    assert "a leak? --drop x leaves it out" in notes
    assert "'age' alone" not in notes


def test_a_rare_class_is_no_leak(column: Any) -> None:
    """Every column tells the class of 99 % of the rows where one class has 99 % of them."""
    y = np.zeros(N_ROWS, int)
    y[:2] = 1
    assert "alone tells" not in column(RNG.choice(["a", "b"], N_ROWS), target=y)[1]


@pytest.mark.parametrize(
    "target", [lambda y: y.astype(float), lambda y: np.where(y == 1, "1.0", "0"), lambda y: y == 1]
)
def test_classes_may_be_written_as_decimals_or_truths(column: Any, table: Any, target: Any) -> None:
    code, err, _ = column("1", target=target(table["hired"].to_numpy()))
    assert code == 0, err


@pytest.mark.parametrize(
    ("values", "columns"),
    [
        (pa.array(["a", "b"] * 100, pa.large_string()), ["x=a", "x=b"]),
        (pa.array(["a", "b"] * 100).dictionary_encode(), ["x=a", "x=b"]),
        (pa.array([Decimal("1.50"), None] * 100), ["x"]),
        (pa.array([2**63 + 1, 5] * 100, pa.uint64()), ["x"]),
        (pa.array(np.arange(N_ROWS, dtype=np.float16) % 7), ["x"]),
        (pa.array([True, None] * 100), ["x"]),
        (pa.array(["1", "2"] * 100), ["x=1", "x=2"]),
        (pa.nulls(N_ROWS), []),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_columns_of_parquet_are_what_their_types_say(steer: Any, table: Any, values: Any, columns: Any) -> None:
    stored = pa.table({**{name: table[name] for name in ("sex", "hired", "age", "pay")}, "x": values})
    pq.write_table(stored, "rows.parquet")
    code, err = steer("rows.parquet", "out.parquet", keep=[])
    assert code == 0, err
    assert pq.read_table("out.parquet").column_names == ["age", "pay", *columns, "sex", "hired"]
    assert steer("rows.parquet", "out.parquet", keep=["x"])[0] == 0
    assert pq.read_table("out.parquet").column("x").equals(stored.column("x"))


def test_categories_that_pandas_stored_as_numbers_are_categories(steer: Any, table: Any) -> None:
    table["x"] = pd.Categorical([3, 1] * 100)
    table[["sex", "hired", "age", "x"]].to_parquet("rows.parquet")
    assert steer("rows.parquet", "out.parquet", keep=[])[0] == 0
    assert pq.read_table("out.parquet").column_names == ["age", "x=3", "x=1", "sex", "hired"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([date(2020, 1, 1)] * N_ROWS), "holds values of type date, which are neither numbers nor categories"),
        (pa.array([b"a", b"b"] * 100), "holds values of type bytes"),
        (pa.array([[1]] * N_ROWS), "holds values of type list"),
        (pa.array([float("inf"), 1.0] * 100), "column 'x' has 100 infinite values (inf)"),
    ],
)
def test_columns_of_parquet_that_are_no_features(steer: Any, table: Any, values: Any, message: Any) -> None:
    stored = pa.table({**{name: table[name] for name in ("sex", "hired", "age")}, "x": values})
    pq.write_table(stored, "rows.parquet")
    code, err = steer("rows.parquet", "out.parquet", keep=[])
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("texts", "options", "missing"),
    [
        (["1", "2", "3.5"], {}, [False, False, False]),
        (["1", "", "nan", "NA"], {}, [False, True, True, True]),
        (["1", " ", " NA "], {}, [False, True, True]),
        (["1", "-9", "2"], {"na_values": ("-9",)}, [False, True, False]),
    ],
)
def test_gaps_among_numbers(texts: list[str], options: dict[str, Any], missing: list[bool]) -> None:
    column = Column("a", pa.chunked_array([texts]), Reading(**options), is_text=True)
    assert not column.strangers
    np.testing.assert_array_equal(column.is_missing, missing)
    np.testing.assert_array_equal(np.isnan(column.numbers()), missing)


def test_a_word_that_is_no_gap_is_no_number() -> None:
    column = Column("a", pa.chunked_array([["1"] * 300 + ["nan", "2"]]), Reading(strict_na=True), is_text=True)
    assert column.strangers == ["nan"]
    assert not column.is_missing.any()
    with pytest.raises(UsageError, match="must be numeric"):
        column.numbers()
