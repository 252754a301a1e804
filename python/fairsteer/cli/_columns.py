"""One column of a table: which of its values are missing, which are numbers, and what labels it holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from . import UsageError, count

__all__ = ["MISSING_WORDS", "Column", "Reading", "label_parts", "label_text", "shown"]

# What pandas.read_csv takes for missing, and everybody who has used it expects.
MISSING_WORDS = frozenset(
    {
        "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
        "NULL", "NaN", "None", "n/a", "nan", "null",
    }
)  # fmt: skip

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
_DECIMAL = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d+)?")
_TIME = r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?[AaPp][Mm])?(Z| ?[+-]\d{2}:?\d{2})?"
_DAY = (
    r"\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}"
    r"|\d{1,2}[- .]+[A-Za-z]{3,9}[- .,]+\d{2,4}|[A-Za-z]{3,9} \d{1,2},? \d{4}"
)
_DATE = re.compile(rf"({_DAY})([T ,]+{_TIME})?|{_TIME}")
_FIRST = 256  # values
_TRUTH = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Reading:
    """What the user said about how a file is to be read; None and nothing where it is to be guessed.

    Attributes
    ----------
    separator, decimal, encoding : str or None
        Of csv files.
    na_values : tuple of str
        Texts that mean a missing value, besides empty ones and `MISSING_WORDS`.
    strict_na : bool
        Whether `MISSING_WORDS` are texts like any other.
    """

    separator: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    na_values: tuple[str, ...] = ()
    strict_na: bool = False

    @cached_property
    def missing(self) -> frozenset[str]:
        """Texts of csv files that mean a missing value."""
        return frozenset({"", *self.na_values, *(() if self.strict_na else MISSING_WORDS)})


class Column:
    """A column of a file.

    Its distinct values are looked at one by one, its rows by their positions among them.

    Parameters
    ----------
    name : str
        Name.
    values : pyarrow.ChunkedArray
        Text of every value, or the column of a parquet file.
    reading : Reading
        How texts are read.
    is_text : bool
        Whether the file has texts only, so that numbers are texts that look like it.
    of_categories : bool
        Whether the file says that the values are categories.
    """

    def __init__(
        self, name: str, values: pa.ChunkedArray, reading: Reading, *, is_text: bool, of_categories: bool = False
    ) -> None:
        self.name, self.values, self.is_text, self.of_categories = name, values, is_text, of_categories
        self._reading = reading

    def where(self, rows: NDArray[np.bool_]) -> Column:
        """Rows for which a mask holds."""
        values = self.values.filter(pa.array(rows))
        return Column(self.name, values, self._reading, is_text=self.is_text, of_categories=self.of_categories)

    @cached_property
    def _factors(self) -> tuple[list[Any], NDArray[np.intp]]:
        """Distinct values, None for what is missing, and every row's position among them."""
        values = self.values
        if pa.types.is_nested(values.type):
            raise UsageError(
                f"column {self.name!r} holds values of type {values.type}, which are no features and no labels; "
                f"leave it out with --drop {shown(self.name)}."
            )
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        encoded = values.dictionary_encode().unify_dictionaries().combine_chunks()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([], values.type).dictionary_encode()
        distinct = [self._or_none(value) for value in encoded.dictionary.to_pylist()]
        codes = compute.fill_null(encoded.indices, len(distinct)).to_numpy(zero_copy_only=False).astype(np.intp)
        return [*distinct, None], codes

    def _or_none(self, value: Any) -> Any:
        if isinstance(value, str):
            if self.is_text:
                return None if value.strip() in self._reading.missing else value
            return None if value in self._reading.na_values else value
        return None if isinstance(value, float) and value != value else value

    @cached_property
    def _present(self) -> list[Any]:
        return [value for value in self._factors[0] if value is not None]

    @cached_property
    def counts(self) -> dict[Any, int]:
        """Rows of every value that is not missing, in order of appearance."""
        distinct, codes = self._factors
        found = np.bincount(codes, minlength=len(distinct)).tolist()
        return {value: n for value, n in zip(distinct, found, strict=True) if value is not None and n}

    @cached_property
    def is_missing(self) -> NDArray[np.bool_]:
        """Whether the value of a row is missing."""
        if self.is_text and self._floats is not None:  # of many different numbers none is looked at by itself
            return np.isnan(self._floats)
        distinct, codes = self._factors
        return np.asarray([value is None for value in distinct], dtype=bool)[codes]

    def missing_words(self) -> dict[str, int]:
        """Rows of every text that stands for a missing value though it is not empty and nobody said so."""
        if not self.is_text or self._reading.strict_na:
            return {}
        found: dict[str, int] = {}
        counted = compute.value_counts(self.values.filter(pa.array(self.is_missing)))
        for text, n in zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True):
            if text.strip() in MISSING_WORDS and text.strip() not in self._reading.na_values:
                found[text.strip()] = found.get(text.strip(), 0) + n
        return found

    # ---- as numbers

    def as_number(self, value: Any) -> float | None:
        """Give the number that a value stands for; None if it is none."""
        if isinstance(value, str):
            if not self.is_text:
                return None
            text = value.strip()
            if self._reading.decimal == ",":
                text = text.replace(",", ".") if "." not in text else ""
            if _NUMBER.fullmatch(text) or _INFINITE.fullmatch(text):
                return float(text)
            return None
        if isinstance(value, (bool, int, float, Decimal)):
            return float(value)
        return None

    @cached_property
    def _floats(self) -> NDArray[np.float64] | None:
        """Finite numbers of all rows without a look at each, None where that takes one."""
        values, kind = self.values, self.values.type
        if self.is_text:
            known = [text for text in self._reading.missing if self.as_number(text) is not None]  # such as -9
            found = None if known else _cast(values)
            if found is None or not np.isfinite(found).all():  # some gap, or some text
                found = self._floats_beside_gaps()
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            found = _cast(values)
        else:
            return None
        return None if found is None or np.isinf(found).any() else found

    def _floats_beside_gaps(self) -> NDArray[np.float64] | None:
        """Numbers of all rows that are no gap; None where one is a text."""
        for values in (self.values.slice(0, _FIRST), self.values):  # most texts are seen among the first
            trimmed = compute.utf8_trim_whitespace(values)
            missing = compute.is_in(trimmed, pa.array(sorted(self._reading.missing)))
            found = _cast(compute.if_else(missing, pa.scalar(None, pa.string()), values))
            if found is None or (np.isnan(found) & ~missing.to_numpy()).any():  # as the text "nan" is, if it is one
                return None
        return found

    @cached_property
    def _truths(self) -> bool:
        return self.is_text and bool(self._present) and all(text.strip().lower() in _TRUTH for text in self._present)

    @cached_property
    def strangers(self) -> list[Any]:
        """Distinct values that are no numbers, in order of appearance."""
        if self._floats is not None or self._truths:
            return []
        return [value for value in self.counts if self.as_number(value) is None]

    def numbers(self) -> NDArray[np.float64]:
        """Every row as a number, NaN where it is missing; `true` and `false` as 1 and 0.

        Raises
        ------
        UsageError
            If a value is no number, or infinite.
        """
        if self._floats is not None:
            return self._floats
        if self.strangers:
            found = sum(self.counts[value] for value in self.strangers)
            total = sum(self.counts.values())
            raise UsageError(
                f"column {self.name!r} must be numeric, and {count(found, 'value')} of {total:,} "
                f"{'is' if found == 1 else 'are'} not: {self.some_strangers()}. --na-values "
                f"{shown(self.strangers[0])} reads such a value as missing."
            )
        distinct, codes = self._factors
        table: list[float | None]
        if self._truths:
            table = [np.nan if value is None else _TRUTH[value.strip().lower()] for value in distinct]
        else:
            table = [np.nan if value is None else self.as_number(value) for value in distinct]
        found_numbers = np.array(table, dtype=np.float64)
        infinite = [value for value, number in zip(distinct, found_numbers, strict=True) if np.isinf(number)]
        infinite = [value for value in infinite if value in self.counts]
        if infinite:
            n = sum(self.counts[value] for value in infinite)
            if isinstance(infinite[0], float) or _INFINITE.fullmatch(str(infinite[0]).strip()):
                what = f"{count(n, 'infinite value')} ({infinite[0]})"
            else:
                what = f"{count(n, 'value')} beyond the range of double precision ({infinite[0]})"
            raise UsageError(
                f"column {self.name!r} has {what}: --na-values {shown(str(infinite[0]))} reads it as missing, --drop "
                f"{shown(self.name)} leaves the column out."
            )
        result: NDArray[np.float64] = found_numbers[codes]
        return result

    def some_strangers(self) -> str:
        """Quote the commonest values that are no numbers, with their rows."""
        ranked = sorted(self.strangers, key=lambda value: -self.counts[value])
        listed = ", ".join(f"{value!r} ({self.counts[value]:,})" for value in ranked[:3])
        return f"{listed} and {count(len(ranked) - 3, 'other value')}" if len(ranked) > 3 else listed

    @property
    def has_codes(self) -> bool:
        """Whether numbers have leading zeros, as codes do."""
        if not self.is_text:
            return False
        return bool(compute.any(compute.match_substring_regex(self.values, r"^\s*0\d+\s*$")).as_py())

    @property
    def has_numbers_as_text(self) -> bool:
        """Whether a file with types has numbers in a column of text."""
        texts = [] if self.is_text else self._present
        return bool(texts) and all(isinstance(text, str) and _NUMBER.fullmatch(text.strip()) for text in texts)

    @property
    def has_dates(self) -> bool:
        """Whether all values are dates."""
        return bool(self._present) and all(
            _DATE.fullmatch(value.strip()) is not None if isinstance(value, str) else False for value in self._present
        )

    # ---- as labels

    def labels(self, known: Sequence[Any] | None = None) -> NDArray[Any]:
        """Every row as a label, None where it is missing.

        Texts are whole numbers where all of them look like it, numbers where all do, and texts otherwise; leading
        zeros and signs make a text. Numbers of a parquet file are numbers, its texts are texts.

        Parameters
        ----------
        known : sequence of labels, optional
            Labels of a fit. A value that is written like one of them is that one, whatever this file's types are.

        Returns
        -------
        ndarray of object, of shape (n_rows,)

        Raises
        ------
        UsageError
            If the values are dates or the like.
        """
        distinct, codes = self._factors
        table = np.empty(len(distinct), dtype=object)
        table[:] = self._typed(distinct) if known is None else self._like(distinct, known)
        result: NDArray[Any] = table[codes]
        return result

    def positions(self, known: Sequence[Any]) -> NDArray[np.intp]:
        """Position of every row's label among known ones, -1 where it is none of them."""
        distinct, codes = self._factors
        place = {label: k for k, label in enumerate(known)}
        table = [place.get(label, -1) for label in self._like(distinct, known)]
        result: NDArray[np.intp] = np.array(table, dtype=np.intp)[codes]
        return result

    def _typed(self, distinct: Sequence[Any]) -> list[Any]:
        if self.is_text:
            texts = [value.strip() for value in distinct if value is not None]
            if all(_WHOLE.fullmatch(text) for text in texts):
                return [None if value is None else int(value) for value in distinct]
            if self._reading.decimal == ",":
                texts = [text.replace(",", ".") for text in texts]
            if all(_DECIMAL.fullmatch(text) for text in texts):
                return [None if value is None else self.as_number(value) for value in distinct]
            return list(distinct)
        strange = {
            type(value).__name__
            for value in distinct
            if not isinstance(value, (str, bool, int, float, Decimal, type(None)))
        }
        if strange:
            raise UsageError(
                f"column {self.name!r} holds values of type {min(strange)}, which are no labels; give text, whole "
                "numbers or true and false."
            )
        plain = [_plain(value) for value in distinct]
        huge = [value for value in plain if type(value) is int and not -(2**63) <= value < 2**63]
        if huge:
            raise UsageError(f"column {self.name!r} holds {huge[0]}, which is too large for a label; write it as text.")
        return plain

    def _like(self, distinct: Sequence[Any], known: Sequence[Any]) -> list[Any]:
        by_text = {label_text(label): label for label in known}
        by_number = {
            float(label): label
            for label in reversed(known)
            if isinstance(label, (bool, int, float)) or _DECIMAL.fullmatch(label_text(label))
        }
        found: list[Any] = []
        new: list[Any] = []
        for value in distinct:
            text = value.strip() if isinstance(value, str) else label_text(_plain(value))
            if value in by_text:
                found.append(by_text[value])
            elif value is not None and text in by_text:
                found.append(by_text[text])
            elif _DECIMAL.fullmatch(text) and float(text) in by_number:
                found.append(by_number[float(text)])
            else:
                found.append(None)
                if value is not None:
                    new.append(value)
        if not new:
            return found
        # What is new has the type that it would have had at the fit; a code among texts is a text.
        texts = self.is_text and any(isinstance(label, str) for label in known) and len(new) < len(self._present)
        typed = dict(zip(new, new if texts else self._typed(new), strict=True))
        return [
            typed.get(value, label) if label is None else label for value, label in zip(distinct, found, strict=True)
        ]


def _cast(values: pa.ChunkedArray) -> NDArray[np.float64] | None:
    """Values as numbers, NaN where they are null; None where one is none."""
    try:
        return np.asarray(compute.cast(values, pa.float64(), safe=False).to_numpy(), dtype=np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def label_text(label: Any) -> str:
    """Text of a label; the parts of an intersection are joined by commas."""
    return ", ".join(map(str, label)) if isinstance(label, tuple) else str(label)


def shown(text: str) -> str:
    """Text as it is typed in a shell."""
    plain = re.fullmatch(r"[\w@%+=:,./-]+", text) and not text.startswith("-")
    return text if plain else "'" + text.replace("'", "'\\''") + "'"


def label_parts(labels: Sequence[Any], n_columns: int) -> list[list[Any]]:
    """Distinct labels of each sensitive column, from those of the groups."""
    parts = [label if isinstance(label, tuple) else (label,) for label in labels]
    return [list(dict.fromkeys(part[j] for part in parts)) for j in range(n_columns)]


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
