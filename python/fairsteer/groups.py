"""Labels of sensitive groups to integer codes: the one place that knows what a column of labels may look like."""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Iterable
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_consistent_length

from fairsteer._utils.columns import split_columns
from fairsteer._utils.input import brief, few, num_rows, unknown_group_message, warn_caller
from fairsteer._utils.labels import described, encoded_labels, is_missing, kind_of, label_array, sorted_labels

#: Code of a row whose label is missing (``None``, ``NaN``, ``pd.NA``, ``NaT``) in at least one column.
MISSING = -1


#: Code of a row whose label was not there at ``fit``.
UNSEEN = -2


# With more distinct fractional values than this a float column is a measurement, not a label.
_MAX_FRACTIONAL_LABELS = 20


class GroupEncoder:
    """Turn the labels of sensitive groups into integer codes.

    Labels are compared by value and never turned into strings: ``1``, ``1.0`` and ``True`` are one label, ``"1"`` is
    another. Several columns stand for their intersections, whose labels are tuples. A row with a missing value
    (``None``, ``NaN``, ``pd.NA``, ``NaT``) in any column has no group.

    A label that was not there at ``fit`` is unseen where it could have been there, and an error where it could not,
    because no label of its column was of its kind: a string among numbers, say. Booleans are a kind of their own, but
    0 and 1 equal them: where every number was 0 or 1, booleans may come, and 0 and 1 where there were booleans. A
    fraction in half or single precision is read as the shortest decimal number that it stands for, so that 0.1 is the
    same label in every precision.

    Attributes
    ----------
    groups_ : ndarray of shape (n_groups,)
        The labels in sorted order; position ``c`` holds the label of code ``c``. One column of strings, integers,
        floats or booleans gives an array of that type, anything else an object array (of tuples where there are
        several columns).
    column_names_ : list of str or None
        Names of the columns at ``fit`` where the input had any.
    n_columns_ : int
        Number of columns at ``fit``.

    Examples
    --------
    >>> from fairsteer.groups import GroupEncoder
    >>> encoder = GroupEncoder().fit(["f", "m", None, "m"])
    >>> encoder.groups_
    array(['f', 'm'], dtype='<U1')
    >>> encoder.encode(["m", "f", "x", None])
    array([ 1,  0, -2, -1])

    >>> encoder = GroupEncoder().fit([["f", 0], ["m", 1], ["m", 0]])
    >>> encoder.groups_.tolist()
    [('f', 0), ('m', 0), ('m', 1)]
    """

    def __repr__(self) -> str:
        groups = self.groups_.tolist() if hasattr(self, "groups_") else []
        return f"GroupEncoder({len(groups)} groups{': ' if groups else ''}{few(map(brief, groups), 5)})"

    groups_: npt.NDArray[Any]
    column_names_: list[str] | None
    n_columns_: int

    def fit(self, sensitive_features: Any) -> GroupEncoder:
        """Learn the labels, forgetting any from before.

        Parameters
        ----------
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Discrete labels: a list, a NumPy array, or a pandas, polars or pyarrow column or table.

        Returns
        -------
        GroupEncoder
            The encoder itself.

        Raises
        ------
        ValueError
            If there is no label at all, or a column holds dates, durations or a continuous
            measurement (more than 20 distinct fractional values).
        TypeError
            If a label cannot be hashed.
        """
        self._learn(sensitive_features, known=[])
        return self

    def partial_fit(self, sensitive_features: Any) -> GroupEncoder:
        """Add the labels of another batch to those known already.

        Parameters
        ----------
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Discrete labels, in as many columns as before.

        Returns
        -------
        GroupEncoder
            The encoder itself. Codes may change, since ``groups_`` stays in sorted order.

        Raises
        ------
        ValueError, TypeError
            As for ``fit`` and ``encode``.
        """
        self.partial_fit_encode(sensitive_features)
        return self

    def partial_fit_encode(self, sensitive_features: Any) -> npt.NDArray[np.intp]:
        """``partial_fit``, then ``encode`` of the same rows, reading them once.

        Parameters
        ----------
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Discrete labels, in as many columns as before.

        Returns
        -------
        ndarray of shape (n_samples,), dtype intp
            As from ``encode``.

        Raises
        ------
        ValueError, TypeError
            As for ``fit`` and ``encode``.
        """
        return self._learn(sensitive_features, known=self.groups_.tolist() if hasattr(self, "groups_") else [])

    def _learn(self, sensitive_features: Any, known: list[Any]) -> npt.NDArray[np.intp]:
        columns, names = split_columns(sensitive_features)
        if known:
            self._check_columns(columns, names)
        factors = [_factorise(column) for column in columns]
        for j, (labels, _) in enumerate(factors):
            _check_discrete(labels, f" {names[j]!r}" if names else "")
        if known:
            self._check_kinds(factors)
        labels, codes = _intersect(factors)
        present = [label for label in labels if label is not None]
        if not present:
            msg = f"No row has a group: sensitive_features is missing in all of its {len(codes)} rows."
            raise ValueError(msg)
        self.groups_ = label_array(sorted_labels(list(dict.fromkeys([*known, *present]))))
        if not known:
            self.n_columns_, self.column_names_ = len(columns), names
        return self._codes_of(labels)[codes]

    def encode(self, sensitive_features: Any) -> npt.NDArray[np.intp]:
        """Code of every row.

        Parameters
        ----------
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Labels in as many columns as at ``fit``.

        Returns
        -------
        ndarray of shape (n_samples,), dtype intp
            Positions in ``groups_``; ``-1`` for a missing label, ``-2`` for one that was not there at ``fit``.

        Raises
        ------
        ValueError
            If the number of columns, or the names of several columns or their order, differ from ``fit``; or if a
            column holds labels of a kind that it did not hold then.
        """
        labels, codes = self._factorise_like_fit(sensitive_features)
        return self._codes_of(labels)[codes]

    def _codes_of(self, labels: list[Any]) -> npt.NDArray[np.intp]:
        table = {label: code for code, label in enumerate(self.groups_.tolist())}
        table[None] = MISSING
        return np.array([table.get(label, UNSEEN) for label in labels], dtype=np.intp)

    def unknown_counts(self, sensitive_features: Any) -> dict[Any, int]:
        """Rows by label among those that ``encode`` finds missing or unseen.

        Parameters
        ----------
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Labels in as many columns as at ``fit``.

        Returns
        -------
        dict
            Number of rows of each label that was not there at ``fit``; the key ``None`` counts missing labels.
        """
        labels, codes = self._factorise_like_fit(sensitive_features)
        known = set(self.groups_.tolist())
        counts: dict[Any, int] = {}
        for label, count in zip(labels, np.bincount(codes, minlength=len(labels)).tolist(), strict=True):
            if count and label not in known:
                counts[label] = counts.get(label, 0) + count
        return counts

    def _factorise_like_fit(self, sensitive_features: Any) -> tuple[list[Any], npt.NDArray[np.intp]]:
        columns, names = split_columns(sensitive_features)
        self._check_columns(columns, names)
        factors = [_factorise(column) for column in columns]
        self._check_kinds(factors)
        return _intersect(factors)

    def _check_columns(self, columns: list[Any], names: list[str] | None) -> None:
        fitted = f"{self.n_columns_}"
        if self.column_names_ is not None:
            fitted += f" ({few(map(repr, self.column_names_))})"
        if len(columns) != self.n_columns_:
            msg = f"sensitive_features has {len(columns)} column(s), but the groups were fitted on {fitted}."
            raise ValueError(msg)
        # The name of a single column says nothing that its values do not; two exchanged columns would go unnoticed.
        if len(columns) > 1 and names and self.column_names_ and names != self.column_names_:
            msg = (
                f"The columns of sensitive_features are {few(map(repr, names))}, but the groups were fitted on "
                f"{few(map(repr, self.column_names_))}. Pass the same columns in the same order."
            )
            raise ValueError(msg)

    def _check_kinds(self, factors: list[tuple[list[Any], npt.NDArray[np.intp]]]) -> None:
        """Raise ValueError for labels that no label of their column at fit could have equalled."""
        groups = self.groups_.tolist()
        for j, (labels, _) in enumerate(factors):
            fitted = groups if self.n_columns_ == 1 else list(dict.fromkeys(group[j] for group in groups))
            kinds = {_kind(label) for label in fitted}
            if "number" in kinds and all(map(_is_bit, filter(_is_number, fitted))):
                kinds.add("boolean")
            foreign = [label for label in labels if label is not None and not _may_be(label, kinds)]
            if not set(foreign) <= set(fitted):  # what equals a label is that label
                column = f" {self.column_names_[j]!r}" if self.column_names_ else f" {j}" if len(factors) > 1 else ""
                msg = (
                    f"The labels of the sensitive feature{column} are of another type than at fit: the groups are the "
                    f"{described(fitted)}; given are the {described(foreign)}. Convert one to the type of the "
                    "other, or make labels missing (None) that are not known."
                )
                raise ValueError(msg)


def _factorise(column: Any) -> tuple[list[Any], npt.NDArray[np.intp]]:
    """Distinct values of one column and each row's position among them; position 0 stands for missing (None)."""
    # Everything done once a row is a loop in C; Python sees the distinct values only.
    values: Iterable[Any]
    try:
        if hasattr(column, "dictionary_encode"):  # pyarrow
            codes, distinct = encoded_labels(column)
            # A value of a dictionary that no row has is no group.
            occurs = np.bincount(codes + 1, minlength=len(distinct) + 1)[1:] > 0
            values = [value if there else None for value, there in zip(distinct.to_pylist(), occurs, strict=True)]
        elif hasattr(column, "factorize"):  # pandas
            codes, distinct = column.factorize()
            values = distinct.tolist()
        else:
            rows = _plain_values(column)
            table = dict.fromkeys(rows)
            values = list(table)
            table.update(zip(values, range(len(values)), strict=True))
            codes = np.fromiter(map(table.__getitem__, rows), dtype=np.intp, count=len(rows))
        positions: dict[Any, int] = {None: 0}
        of_value = [0 if is_missing(value) else positions.setdefault(_plain(value), len(positions)) for value in values]
    except (TypeError, NotImplementedError) as error:
        # Python cannot hash a list: TypeError. pyarrow has no dictionary of lists or structs: NotImplementedError.
        msg = f"sensitive_features must hold labels that can be hashed: {error}."
        raise TypeError(msg) from error
    of_value.append(0)  # where pandas and pyarrow say -1
    return list(positions), np.array(of_value, dtype=np.intp)[codes]


def _plain_values(column: Any) -> list[Any]:
    """Rows of a polars or NumPy column as a list."""
    if hasattr(column, "to_list"):
        if not column.dtype.is_float():
            rows: list[Any] = column.to_list()
            return rows
        column = column.to_numpy()
    if column.dtype.kind not in "biufcUSTO":
        msg = (
            f"sensitive_features must hold discrete labels (strings, integers, booleans), got dtype "
            f"{column.dtype}. Group the values first, for example by pandas.cut."
        )
        raise ValueError(msg)
    if column.dtype.kind in "fc":
        column = np.where(np.isnan(column), None, column)  # every NaN would be another value
    return list(column.tolist())


def _plain(value: Any) -> Any:
    """Plain Python value of a label."""
    if isinstance(value, np.generic) and not isinstance(value, (np.datetime64, np.timedelta64)):
        value = value.item()
    if type(value) is float and not value.is_integer():
        with np.errstate(over="ignore"):
            for narrow in (np.float16, np.float32):
                if narrow(value) == value:
                    return float(str(narrow(value)))
    return value


def _intersect(factors: list[tuple[list[Any], npt.NDArray[np.intp]]]) -> tuple[list[Any], npt.NDArray[np.intp]]:
    """Distinct rows of several factorised columns: tuples, or None where a part is missing."""
    labels, codes = factors[0]
    if len(factors) == 1:
        return labels, codes
    rows: list[tuple[Any, ...]] = [(label,) for label in labels]
    for more, column_codes in factors[1:]:
        if len(column_codes) != len(codes):
            msg = f"The columns of sensitive_features have {len(codes)} and {len(column_codes)} rows."
            raise ValueError(msg)
        # Renumbered at every step, so the product of the numbers of labels cannot overflow.
        pairs, codes = renumber(codes * len(more) + column_codes, len(rows) * len(more))
        rows = [(*rows[pair // len(more)], more[pair % len(more)]) for pair in pairs.tolist()]
    return [None if any(part is None for part in row) else row for row in rows], codes


def renumber(codes: npt.NDArray[np.intp], n_codes: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Give the codes that occur numbers, in their order.

    Parameters
    ----------
    codes : ndarray of shape (n_samples,), dtype intp
        Codes from 0 to ``n_codes - 1``.
    n_codes : int
        How many there may be.

    Returns
    -------
    present : ndarray
        The codes that occur, sorted.
    numbers : ndarray of shape (n_samples,)
        Position in `present` of every code.
    """
    if n_codes > 4 * len(codes) + 1024:
        return np.unique(codes, return_inverse=True)
    seen = np.bincount(codes, minlength=n_codes) > 0  # counting needs no sorting
    return np.flatnonzero(seen), (np.cumsum(seen) - 1)[codes]


def _kind(label: Any) -> str:
    """Kind of a label: numbers, booleans, strings, … Those of two kinds are never equal, but for 0 and 1."""
    return "boolean" if isinstance(label, bool) else kind_of(label)


def _may_be(label: Any, kinds: set[Any]) -> bool:
    return _kind(label) in kinds or ("boolean" in kinds and _is_bit(label))


def _is_number(label: Any) -> bool:
    return isinstance(label, Number)


def _is_bit(label: Any) -> bool:
    return _is_number(label) and label in (0, 1)


def _check_discrete(labels: list[Any], name: str) -> None:
    dates = [
        label for label in labels if isinstance(label, (dt.date, dt.time, dt.timedelta, np.datetime64, np.timedelta64))
    ]
    if dates:
        msg = (
            f"The sensitive feature{name} holds dates, times or durations (such as {dates[0]!r}), not labels. "
            "Group them first, for example by year."
        )
        raise ValueError(msg)
    fractions = [label for label in labels if isinstance(label, float) and not label.is_integer()]
    if len(fractions) > _MAX_FRACTIONAL_LABELS:
        msg = (
            f"The sensitive feature{name} looks continuous: {len(fractions)} distinct fractional values, such as "
            f"{fractions[0]!r}. Groups are discrete; cut it into ranges first, for example by pandas.cut."
        )
        raise ValueError(msg)


class GroupedRows(NamedTuple):
    """Groups of rows that are fitted to: the one place where groups are read for a fit."""

    encoder: GroupEncoder | None
    """None where rows have no groups and are one."""
    groups: npt.NDArray[Any]
    """Labels of the groups that take part; ``[0]`` without groups."""
    codes: npt.NDArray[np.intp]
    """Positions in `groups`, (n_samples,); of rows that do not take part they are negative, or of no meaning."""
    kept: npt.NDArray[np.bool_]
    """Rows that take part: a group is known and the weight is not zero, (n_samples,)."""
    label_codes: npt.NDArray[np.intp]
    """Positions among the `labels`, those of weight zero included; negative where the group is missing."""
    labels: npt.NDArray[Any]

    @classmethod
    def read(
        cls,
        sensitive_features: Any,
        rows: Any,
        weight: npt.NDArray[np.float64] | None,
        *,
        encoder: GroupEncoder | None = None,
        purpose: str = "nothing is being steered: all rows form one group and keep their features",
    ) -> GroupedRows:
        """Read groups, and say which rows are left out.

        Parameters
        ----------
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels; None: there are none.
        rows : array-like of n_samples rows
            Rows that they belong to.
        weight : ndarray of shape (n_samples,) or None
            Weights of the rows.
        encoder : GroupEncoder, default=None
            What knows the groups of batches before this one; it is not changed.
        purpose : str
            What follows if there are no groups.

        Raises
        ------
        ValueError
            As for `GroupEncoder.fit`, and if no row is left.
        """
        n_rows = num_rows(rows)
        codes, labels = np.zeros(n_rows, dtype=np.intp), np.array([0])
        if sensitive_features is None:
            warn_caller(f"No groups were given, so {purpose}. Pass sensitive_features=… or name sensitive_columns=….")
            encoder = None
        else:
            encoder = GroupEncoder() if encoder is None else copy.copy(encoder)
            codes = encoder.partial_fit_encode(sensitive_features)
            check_consistent_length(rows, codes)
            labels = encoder.groups_
        n_missing = int((codes == MISSING).sum())
        if n_missing:
            warn_caller(f"{n_missing} of {n_rows} rows have a missing group and are left out of the fit.")
        kept = codes != MISSING if weight is None else (codes != MISSING) & (weight > 0)
        if not kept.any():
            msg = (
                f"No row is left to fit: {n_missing} of {n_rows} have a missing group, the others have sample_weight "
                "zero."
            )
            raise ValueError(msg)
        present, numbers = renumber(codes[kept], len(labels))
        positions = np.full(n_rows, MISSING, dtype=np.intp)
        positions[kept] = numbers
        if encoder is not None:
            encoder.groups_ = labels[present]
        return cls(encoder, labels[present], positions, kept, codes, labels)


def joint_label(labels: list[Any]) -> Any:
    """Label of the group that small ones are merged into, none of those there are."""
    name = "(small groups)"
    joint: Any = name
    while (joint := (name,) * len(labels[0]) if isinstance(labels[0], tuple) else name) in labels:
        name += "'"
    return joint


def known_codes(
    encoder: GroupEncoder | None, sensitive_features: Any, rows: Any, ways_out: str, *, infer: bool = False
) -> npt.NDArray[np.intp]:
    """Read the groups of rows that are to be treated by their groups.

    Parameters
    ----------
    encoder : GroupEncoder or None
        That of the fit; None if there were no groups: all rows are of one.
    sensitive_features : array-like, dataframe or None
        Group labels; None: all are unknown.
    rows : array-like of n_samples rows
        Rows that they belong to.
    ways_out : str
        What to do about unknown groups, for the message.
    infer : bool, default=False
        Whether unknown groups are allowed.

    Returns
    -------
    ndarray of shape (n_samples,), dtype intp
        Positions in ``encoder.groups_``; ``MISSING`` where the group is missing or was not there at ``fit``.

    Raises
    ------
    ValueError
        As for `GroupEncoder.encode`; if there are other rows; if a group is unknown and that is not allowed.
    """
    n_rows = num_rows(rows)
    if encoder is None:
        return np.zeros(n_rows, dtype=np.intp)
    if sensitive_features is None and infer:
        return np.full(n_rows, MISSING, dtype=np.intp)
    if sensitive_features is None:
        msg = (
            f"No groups are given, but it was fitted on the groups {few(map(repr, encoder.groups_.tolist()))} and "
            f"treats a row by its group. The way out: {ways_out}."
        )
        raise ValueError(msg)
    codes = encoder.encode(sensitive_features)
    check_consistent_length(rows, codes)
    if not infer and (codes < 0).any():
        counts = encoder.unknown_counts(sensitive_features)
        raise ValueError(unknown_group_message(codes, counts, encoder.groups_, ways_out))
    return np.maximum(codes, MISSING)
