"""Columns of a table as numbers: which of them are features, how they are encoded, what fills their gaps."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairsteer._utils.labels import label_from_json, label_to_json

from . import UsageError, count
from ._columns import Column, Reading, shown
from ._reading import Table

__all__ = ["CategoricalColumn", "FeatureColumn", "Gaps", "NumericColumn", "TableDescription", "TableEncoder"]

Tell = Callable[[str], None]

_MISSING_SUFFIX = "(missing)"
# With fewer distinct numbers a column is as well one of categories, such as 0, 1, 2, 3+.
_FEW = 20
# Fewer rows than this say nothing about what a column is.
_ENOUGH_ROWS = 20
_PLACEHOLDERS = frozenset({"?", "??", "-", "--", ".", "..", "*", "unknown", "Unknown", "UNKNOWN", "missing", "Missing"})
_COMMA = re.compile(r"\s*[+-]?\d+([.,]\d+)*,\d+([.,]\d+)*\s*")
_UNIT = re.compile(r"\s*([^\w\s.,+-]{0,3})\s*[+-]?\d[\d.,]*\s*([^\d\s.,]{0,4})\s*")
_IDENTIFIER = re.compile(r"(?i)(^|_| )(id|key|nr|no|number|uuid|guid|index|row)$|^unnamed: 0$|^$")


@dataclass(frozen=True)
class NumericColumn:
    """A column kept as one number; gaps are filled with the median of the rows it was fitted on.

    Attributes
    ----------
    name : str
        Column of the table.
    fill : float
        What a missing value becomes.
    """

    name: str
    fill: float

    @property
    def encoded_names(self) -> list[str]:
        """Name of the one column it becomes."""
        return [self.name]

    def encode(self, column: Column, out: NDArray[np.float64]) -> None:
        """Write the numbers of `column` into `out` of shape (n_rows, 1)."""
        values = column.numbers()
        out[:, 0] = np.where(np.isnan(values), self.fill, values)


@dataclass(frozen=True)
class CategoricalColumn:
    """A column of categories, one 0/1 column each.

    A value without a column of its own is 0 in all of them.

    Attributes
    ----------
    name : str
        Column of the table.
    categories : tuple of labels
        Values that have a column, most frequent first.
    missing : bool
        Whether a missing value has a column too, because there were some at the fit.
    """

    name: str
    categories: tuple[Any, ...]
    missing: bool

    @property
    def encoded_names(self) -> list[str]:
        """Names ``column=value`` of the columns it becomes."""
        names = [f"{self.name}={value}" for value in self.categories]
        return [*names, f"{self.name}={_MISSING_SUFFIX}"] if self.missing else names

    def encode(self, column: Column, out: NDArray[np.float64]) -> None:
        """Write the 0/1 columns of `column` into `out` of shape (n_rows, n_encoded)."""
        codes = self.codes(column)
        rows = np.flatnonzero(codes >= 0)
        out[rows, codes[rows]] = 1.0
        if self.missing:
            out[:, -1] = column.is_missing

    def codes(self, column: Column) -> NDArray[np.intp]:
        """Position of every value among the categories, -1 where it has none."""
        return column.positions(self.categories)


FeatureColumn = NumericColumn | CategoricalColumn


@dataclass
class Gaps:
    """Values by column that are missing, that are words for that, and whose category has no 0/1 column."""

    missing: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    unseen: Counter[str] = field(default_factory=Counter)

    def add(self, other: Gaps) -> None:
        """Add those of other rows."""
        for own, more in ((self.missing, other.missing), (self.words, other.words), (self.unseen, other.unseen)):
            own.update(more)


@dataclass(frozen=True)
class TableEncoder:
    """Turns the feature columns of a table into float64 numbers.

    Attributes
    ----------
    columns : tuple of NumericColumn or CategoricalColumn
        The features, in the order of the table.
    identifiers : tuple of str
        Columns that are no features because every row has a value of its own.
    """

    columns: tuple[FeatureColumn, ...]
    identifiers: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls,
        table: Table,
        *,
        exclude: Iterable[str],
        categorical: Iterable[str] = (),
        max_categories: int,
        tell: Tell = lambda _: None,
    ) -> TableEncoder:
        """Decide how every column is encoded.

        Parameters
        ----------
        table : Table
            Rows to learn medians and categories from.
        exclude : iterable of str
            Columns that are no features.
        categorical : iterable of str
            Columns whose values are categories even if they are numbers.
        max_categories : int
            Categories of a column beyond this many most frequent ones get no 0/1 column.
        tell : callable
            Receives one sentence for everything the user should know.

        Returns
        -------
        TableEncoder

        Raises
        ------
        UsageError
            If no feature is left, or a column holds dates, lists, infinite values, or numbers and something else.
        """
        left_out, as_categories = set(exclude), set(categorical)
        columns: list[FeatureColumn] = []
        identifiers: list[str] = []
        for name in table.names:
            if name in left_out:
                continue
            column = table.column(name)
            if column.is_missing.all():
                tell(f"column {name!r} has no value at all and is left out.")
            elif name in as_categories:
                columns.append(_categorical(column, max_categories, tell))
            elif (described := _describe(column, max_categories, tell)) is None:
                identifiers.append(name)
            else:
                columns.append(described)
        if not columns:
            raise UsageError("no feature column is left beside the target, the sensitive and the dropped columns.")
        encoder = cls(tuple(columns), tuple(identifiers))
        names = encoder.encoded_names
        doubles = [name for name in names if names.count(name) > 1] if len(set(names)) < len(names) else []
        doubles += [name for name in names if name in left_out]
        if doubles:
            raise UsageError(
                f"two columns of the output would both be named {doubles[0]!r}; rename a column of the table."
            )
        return encoder

    def refitted(self, table: Table, rows: NDArray[np.bool_]) -> TableEncoder:
        """Encode into the same columns, gaps filled with the medians of other rows.

        Parameters
        ----------
        table : Table
            The table.
        rows : ndarray of shape (n_rows,), dtype bool
            Rows to learn from.

        Returns
        -------
        TableEncoder
            This very one, if the table has no gap to fill.
        """
        columns: list[FeatureColumn] = []
        for described in self.columns:
            columns.append(described)
            if isinstance(described, NumericColumn):
                values = table.column(described.name).numbers()
                if (missing := np.isnan(values)).any():
                    present = values[rows & ~missing]
                    columns[-1] = NumericColumn(described.name, float(np.median(present)) if len(present) else 0.0)
        unchanged = all(new is old for new, old in zip(columns, self.columns, strict=True))
        return self if unchanged else TableEncoder(tuple(columns), self.identifiers)

    @property
    def encoded_names(self) -> list[str]:
        """Names of the numeric columns, in order."""
        return [name for column in self.columns for name in column.encoded_names]

    def encode(self, table: Table) -> pd.DataFrame:
        """Encode rows.

        Parameters
        ----------
        table : Table
            Table with at least the columns of the fit.

        Returns
        -------
        DataFrame of float64
            One column per encoded name, without missing values.

        Raises
        ------
        UsageError
            If a numeric column holds text or infinite values.
        """
        columns = [table.column(column.name) for column in self.columns]
        values = np.zeros((len(columns[0].values), len(self.encoded_names)))
        start = 0
        for described, column in zip(self.columns, columns, strict=True):
            stop = start + len(described.encoded_names)
            described.encode(column, values[:, start:stop])
            start = stop
        return pd.DataFrame(values, columns=self.encoded_names, copy=False)

    def gaps(self, table: Table) -> Gaps:
        """Count the missing values of a table, and those whose category has no 0/1 column.

        Parameters
        ----------
        table : Table
            Rows that are about to be encoded, or some of them.

        Returns
        -------
        Gaps
        """
        found = Gaps()
        for described in self.columns:
            column = table.column(described.name)
            n = int(column.is_missing.sum())
            found.missing[described.name] += n
            if isinstance(described, CategoricalColumn):
                found.unseen[described.name] += int(((described.codes(column) < 0) & ~column.is_missing).sum())
                if n:
                    found.words.update({f"{word!r} in {column.name}": m for word, m in column.missing_words().items()})
        return found

    def tell_gaps(self, gaps: Gaps, tell: Tell, *, unseen: bool = False) -> None:
        """Say how many values are missing, and what they become.

        Parameters
        ----------
        gaps : Gaps
            What `gaps` counted.
        tell : callable
            Receives at most five sentences.
        unseen : bool, default=False
            Whether to say as well how many values have no 0/1 column because their category was not there at the fit,
            or rare.
        """
        numeric: dict[str, int] = {}
        known: dict[str, int] = {}
        unknown: dict[str, int] = {}
        for column in self.columns:
            kind = numeric if isinstance(column, NumericColumn) else known if column.missing else unknown
            kind[column.name] = gaps.missing[column.name]
        _tell_counts(tell, numeric, "missing value", "in numeric columns, filled with the column's median")
        _tell_counts(tell, known, "missing value", "in categorical columns, a category of their own")
        _tell_counts(
            tell,
            unknown,
            "missing value",
            "in categorical columns that had none at the fit: 0 in every one of their 0/1 columns",
        )
        _tell_counts(
            tell, gaps.words, "text", "read as missing among categories; --strict-na reads empty values only as missing"
        )
        if unseen:
            _tell_counts(
                tell,
                gaps.unseen,
                "value",
                "of categories without a 0/1 column of their own (rare or not seen at the fit): 0 in all of them",
            )

    def tell_leaks(self, table: Table, y: NDArray[Any], tell: Tell) -> None:
        """Name the columns that alone tell the class in nearly all rows.

        Parameters
        ----------
        table : Table
            Rows with a class.
        y : ndarray of shape (n_rows,)
            Their classes.
        tell : callable
            Receives a sentence for every such column.
        """
        classes, codes = np.unique(y, return_inverse=True)
        n = len(codes)
        wrong_anyway = 1 - np.bincount(codes).max() / n
        for described in self.columns:
            values = _bins(described, table.column(described.name))
            # Bins of few rows would tell every class.
            seen, bins = np.unique(values, return_inverse=True)
            if n < 5 * len(seen):
                continue
            found = np.bincount(bins * len(classes) + codes, minlength=len(seen) * len(classes))
            wrong = 1 - found.reshape(len(seen), -1).max(axis=1).sum() / n
            if wrong <= min(0.03, wrong_anyway / 4):
                tell(
                    f"column {described.name!r} alone tells the class in {_percent(1 - wrong)} of the rows: a leak? "
                    f"--drop {shown(described.name)} leaves it out."
                )


def _percent(share: float) -> str:
    return f"{np.floor(1000 * share) / 10:g} %"


def _bins(described: FeatureColumn, column: Column) -> NDArray[Any]:
    """Values in few bins: categories, few distinct numbers, or up to 64 intervals of as many rows."""
    if isinstance(described, CategoricalColumn):
        return np.where(column.is_missing, -2, described.codes(column))
    values = column.numbers()
    values = np.where(np.isnan(values), described.fill, values)
    distinct = np.unique(values)
    n_bins = max(2, min(64, len(values) // 5))
    if len(distinct) <= n_bins:
        return values
    edges = np.unique(np.quantile(values, np.linspace(0, 1, n_bins + 1)[1:-1]))
    return np.searchsorted(edges, values)


def _describe(column: Column, max_categories: int, tell: Tell) -> FeatureColumn | None:
    """Numbers, categories, or None for an identifier."""
    if column.of_categories:
        return _categorical(column, max_categories, tell)
    if not column.strangers and not column.has_codes:
        return _numeric(column, tell)
    name, quoted, counts = column.name, shown(column.name), column.counts
    ways_out = f"--drop {quoted} leaves it out, --keep {quoted} copies it to the output"
    strange = [value for value in counts if not isinstance(value, (str, int, float))]
    if strange:
        kind = type(strange[0]).__name__
        raise UsageError(
            f"column {name!r} holds values of type {kind}, which are neither numbers nor categories: {ways_out}."
        )
    if column.has_dates:
        raise UsageError(
            f"column {name!r} holds dates, such as {next(iter(counts))!r}, which are neither numbers nor categories: "
            f"{ways_out}."
        )
    total = sum(counts.values())
    if column.strangers:
        _check_mixture(column, total, tell)
    else:
        tell(f"column {name!r} has numbers with leading zeros, which are read as categories.")
    if total >= _ENOUGH_ROWS and len(counts) > 0.9 * total:
        tell(
            f"column {name!r} looks like an identifier ({len(counts):,} different values in {count(total, 'row')}): it "
            f"is no feature and is copied to the output, as with --keep {quoted}; --categorical {quoted} makes it one."
        )
        return None
    return _categorical(column, max_categories, tell)


def _check_mixture(column: Column, total: int, tell: Tell) -> None:
    """Refuse or note a column that holds numbers and something else."""
    name, quoted, counts = column.name, shown(column.name), column.counts
    commas = [value for value in column.strangers if _COMMA.fullmatch(str(value))]
    if 2 * sum(counts[value] for value in commas) >= total:
        raise UsageError(
            f"column {name!r} holds numbers with commas, such as {commas[0]!r}: --decimal , reads them if that is the "
            f"decimal point; remove the commas if they separate thousands; --categorical {quoted} makes categories of "
            "them."
        )
    units = {found.groups() if (found := _UNIT.fullmatch(str(value))) else None for value in column.strangers}
    if len(units) == 1 and not units & {None, ("", "")} and len(counts) > _FEW:
        raise UsageError(
            f"column {name!r} holds numbers with a unit, such as {column.strangers[0]!r}: take it away for numbers; "
            f"--categorical {quoted} makes categories of them, --drop {quoted} leaves the column out."
        )
    if column.has_numbers_as_text:
        tell(f"column {name!r} holds numbers as text, which are read as categories.")
        return
    n_strange = sum(counts[value] for value in column.strangers)
    if 2 * n_strange > total:
        placeholders = [value for value in counts if str(value).strip() in _PLACEHOLDERS]
        for word in placeholders[:1]:
            tell(
                f"column {name!r} has {count(counts[word], 'value')} {word!r}, read as a category of its own; "
                f"--na-values {shown(str(word))} reads it as missing."
            )
        return
    some = column.some_strangers()
    sentence = f"{total - n_strange:,} of {total:,} values of column {name!r} are numbers; not {some}"
    words = ",".join(str(value) for value in column.strangers[:3])
    if len(counts) - len(column.strangers) > _FEW:
        it = "it" if len(column.strangers) == 1 else "them"
        raise UsageError(
            f"{sentence}. --na-values {shown(words)} reads {it} as missing, --categorical {quoted} makes categories of "
            f"all, --drop {quoted} leaves the column out."
        )
    tell(f"{sentence}: all are read as categories (--na-values {shown(words)} makes numbers of the others).")


def _numeric(column: Column, tell: Tell) -> NumericColumn:
    values = column.numbers()
    present = values[~np.isnan(values)]
    if len(present) >= _ENOUGH_ROWS and (present % 1 == 0).all():
        apart = len(column.counts) == len(present)
        in_order = bool((np.diff(present) >= 0).all())
        if apart and (in_order or np.ptp(present) == len(present) - 1 or _IDENTIFIER.search(column.name)):
            tell(
                f"column {column.name!r} looks like an identifier (a number of its own in every row): "
                f"--keep {shown(column.name)} copies it to the output instead of making it a feature."
            )
    return NumericColumn(column.name, float(np.median(present)))


def _categorical(column: Column, max_categories: int, tell: Tell) -> CategoricalColumn:
    labels = column.labels() if not column.is_text else None
    counts = column.counts
    if labels is not None:  # whole decimals and the like become plain numbers
        counts = {}
        for label in labels[~column.is_missing]:
            counts[label] = counts.get(label, 0) + 1
    kept = sorted(counts, key=lambda value: -counts[value])[:max_categories]
    if len(kept) < len(counts):
        others = sum(counts.values()) - sum(counts[value] for value in kept)
        tell(
            f"column {column.name!r} has {len(counts):,} categories; the {max_categories} most frequent get a 0/1 "
            f"column, the others ({count(others, 'row')}) are 0 in all of them (--max-categories changes this)."
        )
    return CategoricalColumn(column.name, tuple(kept), bool(column.is_missing.any()))


def _tell_counts(tell: Tell, counts: Mapping[str, int], noun: str, what: str) -> None:
    found = [(name, n) for name, n in counts.items() if n]
    if found:
        listed = ", ".join(f"{name} {n:,}" for name, n in found[:5])
        more = f" and {count(len(found) - 5, 'more column')}" if len(found) > 5 else ""
        tell(f"{count(sum(n for _, n in found), noun)} {what} ({listed}{more}).")


# ---- what a saved map knows of its table


@dataclass(frozen=True)
class TableDescription:
    """The preprocessing that ``fairsteer apply`` repeats on new rows.

    Attributes
    ----------
    encoder : TableEncoder
        Feature columns.
    target : str
        Column of the classes, passed through where the new table has it.
    sensitive : tuple of str
        Columns of the groups.
    keep : tuple of str
        Further columns passed through where the new table has them.
    na_values : tuple of str
        Texts that meant a missing value, besides the usual ones.
    strict_na : bool
        Whether the usual ones were texts like any other.
    """

    encoder: TableEncoder
    target: str
    sensitive: tuple[str, ...]
    keep: tuple[str, ...]
    na_values: tuple[str, ...] = ()
    strict_na: bool = False

    def to_json(self) -> dict[str, Any]:
        """Values that `json` can write, labels tagged with their types."""
        return {
            "target": self.target,
            "sensitive": list(self.sensitive),
            "keep": list(self.keep),
            "na_values": list(self.na_values),
            "strict_na": self.strict_na,
            "columns": [_column_to_json(column) for column in self.encoder.columns],
        }

    @classmethod
    def from_json(cls, block: Mapping[str, Any] | None, path: Any) -> TableDescription:
        """Read what `to_json` wrote.

        Parameters
        ----------
        block : mapping or None
            The extra block of the map's header.
        path : path-like
            The map, for the message.

        Returns
        -------
        TableDescription

        Raises
        ------
        UsageError
            If the map was not written by ``fairsteer steer``.
        """
        if block is None or "columns" not in block:
            raise UsageError(
                f"{path} holds a map but not the table it was fitted on; load it in Python with "
                "fairsteer.persistence.load."
            )
        try:
            return cls(
                encoder=TableEncoder(tuple(_column_from_json(column) for column in block["columns"])),
                target=_text(block["target"]),
                sensitive=_names(block["sensitive"]),
                keep=_names(block["keep"]),
                na_values=_names(block["na_values"]),
                strict_na=block["strict_na"] is True,
            )
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UsageError(f"{path} is damaged: its description of the table cannot be read.") from error

    def reading(self, reading: Reading) -> Reading:
        """How a new file is read: as the user says, and missing values as at the fit."""
        return Reading(
            separator=reading.separator,
            decimal=reading.decimal,
            encoding=reading.encoding,
            na_values=(*self.na_values, *reading.na_values),
            strict_na=self.strict_na or reading.strict_na,
        )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        msg = f"{value!r} is no text"
        raise TypeError(msg)
    return value


def _names(values: Sequence[Any]) -> tuple[str, ...]:
    if not isinstance(values, list):
        msg = f"{values!r} is no list"
        raise TypeError(msg)
    return tuple(map(_text, values))


def _column_to_json(column: FeatureColumn) -> dict[str, Any]:
    if isinstance(column, NumericColumn):
        return {"kind": "numeric", "name": column.name, "fill": column.fill.hex()}
    categories = [label_to_json(value) for value in column.categories]
    return {"kind": "categorical", "name": column.name, "categories": categories, "missing": column.missing}


def _column_from_json(block: Mapping[str, Any]) -> FeatureColumn:
    name = _text(block["name"])
    if block["kind"] == "numeric":
        fill = float.fromhex(block["fill"])
        if not np.isfinite(fill):
            msg = f"{fill} fills no gap"
            raise ValueError(msg)
        return NumericColumn(name, fill)
    categories = tuple(label_from_json(value) for value in block["categories"])
    return CategoricalColumn(name, categories, bool(block["missing"]))
