"""Columns of a table as numbers: which columns are features, how they are encoded, what fills their gaps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ._errors import UsageError

__all__ = ["CategoricalColumn", "NumericColumn", "TableEncoder"]

Tell = Callable[[str], None]
_MISSING_SUFFIX = "(missing)"


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

    def encode(self, column: pd.Series[Any], out: NDArray[np.float64]) -> None:
        """Write the numbers of `column` into `out` of shape (n_rows, 1)."""
        values = _as_numbers(column)
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

    def encode(self, column: pd.Series[Any], out: NDArray[np.float64]) -> None:
        """Write the 0/1 columns of `column` into `out` of shape (n_rows, n_encoded)."""
        codes = self.codes(column)
        rows = np.flatnonzero(codes >= 0)
        out[rows, codes[rows]] = 1.0
        if self.missing:
            out[:, -1] = column.isna().to_numpy()

    def codes(self, column: pd.Series[Any]) -> NDArray[np.intp]:
        """Position of every value among the categories, -1 where it has none."""
        return np.asarray(pd.Index(list(self.categories), dtype=object).get_indexer(column.astype(object)))


Column = NumericColumn | CategoricalColumn


@dataclass(frozen=True)
class TableEncoder:
    """Turns the feature columns of a table into float64 numbers.

    Attributes
    ----------
    columns : tuple of NumericColumn or CategoricalColumn
        The features, in the order of the table.
    """

    columns: tuple[Column, ...]

    @classmethod
    def fit(
        cls,
        frame: pd.DataFrame,
        *,
        exclude: Iterable[str],
        max_categories: int,
        tell: Tell = lambda _: None,
    ) -> TableEncoder:
        """Decide how every column is encoded.

        Parameters
        ----------
        frame : DataFrame
            Rows to learn medians and categories from.
        exclude : iterable of str
            Columns that are no features.
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
            If no feature is left, or a column holds dates, lists or infinite values.
        """
        left_out = set(exclude)
        names = [name for name in frame.columns if name not in left_out]
        if not names:
            raise UsageError("no feature column is left beside the target, the sensitive and the dropped columns.")
        encoder = cls(tuple(_describe(frame[name], max_categories, tell) for name in names))
        doubles = pd.Index(encoder.encoded_names)
        if doubles.has_duplicates:
            name = doubles[doubles.duplicated()][0]
            raise UsageError(f"two encoded columns would both be named {name!r}; rename a column of the table.")
        return encoder

    @property
    def encoded_names(self) -> list[str]:
        """Names of the numeric columns, in order."""
        return [name for column in self.columns for name in column.encoded_names]

    @property
    def text_columns(self) -> list[str]:
        """Columns whose categories are all text, to be read as text from a csv file too."""
        return [
            column.name
            for column in self.columns
            if isinstance(column, CategoricalColumn) and all(isinstance(value, str) for value in column.categories)
        ]

    def encode(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Encode rows.

        Parameters
        ----------
        frame : DataFrame
            Rows with at least the columns of the fit.

        Returns
        -------
        DataFrame of float64
            One column per encoded name, with the index of `frame` and without missing values.

        Raises
        ------
        UsageError
            If a numeric column holds text or infinite values.
        """
        values = np.zeros((len(frame), len(self.encoded_names)))
        start = 0
        for column in self.columns:
            stop = start + len(column.encoded_names)
            column.encode(frame[column.name], values[:, start:stop])
            start = stop
        return pd.DataFrame(values, columns=self.encoded_names, index=frame.index)

    def tell_gaps(self, frame: pd.DataFrame, tell: Tell) -> None:
        """Say how many missing values `frame` has, and what they become.

        Parameters
        ----------
        frame : DataFrame
            Rows that are about to be encoded.
        tell : callable
            Receives at most three sentences.
        """
        numeric = [c for c in self.columns if isinstance(c, NumericColumn)]
        categorical = [c for c in self.columns if isinstance(c, CategoricalColumn)]
        _tell_counts(
            tell,
            {c.name: int(frame[c.name].isna().sum()) for c in numeric},
            "missing values in numeric columns, filled with the column's median",
        )
        _tell_counts(
            tell,
            {c.name: int(frame[c.name].isna().sum()) for c in categorical if c.missing},
            "missing values in categorical columns, a category of their own",
        )
        _tell_counts(
            tell,
            {c.name: int(frame[c.name].isna().sum()) for c in categorical if not c.missing},
            "missing values in categorical columns that had none at the fit: 0 in every one of their 0/1 columns",
        )

    def tell_unseen(self, frame: pd.DataFrame, tell: Tell) -> None:
        """Say how many values have no 0/1 column because their category was not there at the fit, or rare.

        Parameters
        ----------
        frame : DataFrame
            Rows that are about to be encoded.
        tell : callable
            Receives at most one sentence.
        """
        categorical = [c for c in self.columns if isinstance(c, CategoricalColumn)]
        _tell_counts(
            tell,
            {c.name: int(((c.codes(frame[c.name]) < 0) & frame[c.name].notna()).sum()) for c in categorical},
            "values of categories without a 0/1 column of their own (rare or not seen at the fit): 0 in all of them",
        )


def _describe(column: pd.Series[Any], max_categories: int, tell: Tell) -> Column:
    name, dtype = str(column.name), column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _categorical(column, max_categories, tell)
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype):
        return _numeric(column, tell)
    if pd.api.types.is_object_dtype(dtype) or pd.api.types.is_string_dtype(dtype):
        content = pd.api.types.infer_dtype(column, skipna=True)
        if content in ("integer", "floating", "mixed-integer-float", "decimal", "boolean"):
            return _numeric(column, tell)
        if content in ("string", "empty", "mixed-integer", "mixed"):
            return _categorical(column, max_categories, tell)
        raise UsageError(
            f"column {name!r} holds {content} values, which are no features; leave it out with --drop {name}."
        )
    raise UsageError(
        f"column {name!r} has type {dtype}, which is neither numeric nor categorical; leave it out with --drop {name}."
    )


def _numeric(column: pd.Series[Any], tell: Tell) -> NumericColumn:
    values = _as_numbers(column)
    if np.isnan(values).all():
        tell(f"column {column.name!r} has no value at all; it is filled with 0.")
        return NumericColumn(str(column.name), 0.0)
    return NumericColumn(str(column.name), float(np.nanmedian(values)))


def _categorical(column: pd.Series[Any], max_categories: int, tell: Tell) -> CategoricalColumn:
    strange = {kind for kind in map(type, column.dropna().tolist()) if not issubclass(kind, (str, int, float))}
    if strange:
        raise UsageError(
            f"column {column.name!r} holds values of type {strange.pop().__name__}, which are no categories; "
            f"leave it out with --drop {column.name}."
        )
    counts = column.astype(object).value_counts(sort=False)  # in order of appearance
    kept = counts.sort_values(ascending=False, kind="stable").iloc[:max_categories]
    if len(kept) < len(counts):
        tell(
            f"column {column.name!r} has {len(counts)} categories; the {max_categories} most "
            "frequent get a 0/1 column, "
            f"the others ({int(counts.sum() - kept.sum())} rows) are 0 in all of them "
            "(--max-categories changes this)."
        )
    return CategoricalColumn(str(column.name), tuple(kept.index.tolist()), bool(column.isna().any()))


def _as_numbers(column: pd.Series[Any]) -> NDArray[np.float64]:
    try:
        values = pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        raise UsageError(f"column {column.name!r} must be numeric but holds other values.") from None
    n_infinite = int(np.isinf(values).sum())
    if n_infinite:
        raise UsageError(f"column {column.name!r} has {n_infinite} infinite values; replace them or --drop it.")
    return np.asarray(values)


def _tell_counts(tell: Tell, counts: dict[str, int], what: str) -> None:
    found = [(name, count) for name, count in counts.items() if count]
    if found:
        listed = ", ".join(f"{name} {count}" for name, count in found[:5])
        more = f" and {len(found) - 5} more columns" if len(found) > 5 else ""
        tell(f"{sum(count for _, count in found)} {what} ({listed}{more}).")
