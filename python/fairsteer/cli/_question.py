"""A table as a question: which rows have a class and a group, and what is refused before anything is fitted."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairsteer.groups import GroupEncoder

from . import UsageError, count
from ._columns import label_text
from ._reading import Table

__all__ = ["Question", "check_columns", "group_named", "quoted", "read_question"]

Tell = Callable[[str], None]
_MAX_CLASSES = 100
_MAX_GROUPS = 100
_MAX_NAMES = 10


@dataclass(frozen=True)
class Question:
    """A table with its classes and groups.

    Attributes
    ----------
    groups : DataFrame of object
        Labels of the sensitive columns, all rows; None where they are missing.
    usable : ndarray of shape (n_rows,), dtype bool
        Rows with a class and a group: those that are fitted on.
    y : ndarray of shape (n_usable,)
        Classes of the usable rows.
    cells : ndarray of shape (n_usable,)
        Code of the class and group of every usable row.
    counts : ndarray of shape (n_groups, n_classes)
        Usable rows of every group and class.
    classes, labels : list
        The classes and the groups, sorted.
    """

    groups: pd.DataFrame
    usable: NDArray[np.bool_]
    y: NDArray[Any]
    cells: NDArray[np.intp]
    counts: NDArray[np.intp]
    classes: list[Any]
    labels: list[Any]

    @property
    def known_groups(self) -> pd.DataFrame:
        """Groups of the usable rows."""
        return self.groups[self.usable].reset_index(drop=True)

    def small_subgroups(self, least: int) -> list[str]:
        """Describe the cells with fewer than `least` usable rows."""
        return [
            f"{label_text(self.classes[k])} in {label_text(self.labels[a])} ({self.counts[a, k]})"
            for a, k in np.argwhere(self.counts < least)
        ]

    def class_named(self, text: str | None) -> Any:
        """Class that is written as `text`; None for None."""
        return _find(text, self.classes, "--pos-label", "class")

    def group_named(self, text: str | None) -> Any:
        """Group that is written as `text`, the parts of an intersection joined by commas; None for None."""
        return group_named(text, self.labels)


def read_question(
    table: Table, *, target: str, sensitive: Sequence[str], inferred: str, tell: Tell, part: bool = False
) -> Question:
    """Find the rows to fit on, and check that there is something to fit.

    Parameters
    ----------
    table : Table
        The whole table, with the columns that are named.
    target : str
        Column of the classes.
    sensitive : sequence of str
        Columns of the groups.
    inferred : str
        What happens to rows without a group in the output, for a note; empty where nothing is written.
    tell : callable
        Receives one sentence for everything the user should know.
    part : bool, default=False
        Whether other rows will be added, so that one class, one group or one row of either is enough.

    Returns
    -------
    Question

    Raises
    ------
    UsageError
        For a target that is no class, or a group that is too small.
    """
    classes = table.column(target)
    groups = pd.DataFrame({name: table.column(name).labels() for name in sensitive}, dtype=object)
    has_class = ~classes.is_missing
    has_group = groups.notna().all(axis=1).to_numpy()
    usable = has_class & has_group
    if not usable.any():
        raise UsageError(f"no row has both a value of {target!r} and of {quoted(sensitive)}.")
    y = _classes(classes.where(usable).labels(), target, part=part)
    known = groups[usable]
    encoder, codes = _encode_groups(known, sensitive, part=part)
    where = " and the table, steered in the output" if inferred else ""
    words = _missing_words(table, [target, *sensitive])
    if not has_class.all():
        tell(f"{count(int((~has_class).sum()), 'row')} without {target!r}: left out of the fit{where}.")
    if not has_group.all():
        n = int((~has_group).sum())
        where = f" and the table; in the output {'it is' if n == 1 else 'they are'} {inferred}" if inferred else ""
        tell(f"{count(n, 'row')} without {quoted(sensitive)}: left out of the fit{where}.")
    if words:
        tell(f"{words} read as missing; --strict-na reads empty values only as missing.")
    labels, y_codes = np.unique(y, return_inverse=True)
    cells = codes * len(labels) + y_codes
    counts = np.bincount(cells, minlength=len(encoder.groups_) * len(labels))
    return Question(
        groups=groups,
        usable=usable,
        y=y,
        cells=cells,
        counts=counts.reshape(-1, len(labels)),
        classes=labels.tolist(),
        labels=encoder.groups_.tolist(),
    )


def check_columns(table: Any, roles: Mapping[str, Sequence[str]]) -> None:
    """Refuse columns that are absent, or have two roles.

    Parameters
    ----------
    table : Table or LargeTable
        The table.
    roles : mapping of str to sequence of str
        The columns that each option named.

    Raises
    ------
    UsageError
        With the nearest names, for one that is absent.
    """
    for option, names in roles.items():
        for name in names:
            if name not in table.names:
                raise UsageError(f"there is no column {name!r} for {option}; {_names(name, table.names)}")
    taken: dict[str, str] = {}
    for option, names in roles.items():
        for name in names:
            if name in taken:
                both = {taken[name], option}
                if both == {"--target", "--sensitive"}:
                    raise UsageError(f"{name!r} cannot be the target and a sensitive column at once.")
                options = " and ".join(dict.fromkeys([taken[name], option]))
                raise UsageError(f"column {name!r} is named twice, for {options}.")
            taken[name] = option


def quoted(names: Iterable[str]) -> str:
    """Write names with quotes, joined by "and"."""
    return " and ".join(map(repr, names))


def _names(name: str, names: Sequence[str]) -> str:
    """Say which columns there are, or which may be meant."""
    by_key = {known.strip().casefold(): known for known in reversed(names)}
    near = difflib.get_close_matches(name.strip().casefold(), by_key, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(repr(by_key[key]) for key in near)}?"
    if len(names) <= _MAX_NAMES:
        return f"the columns are {', '.join(map(repr, names))}."
    return f"the {len(names):,} columns are {', '.join(map(repr, names[:_MAX_NAMES]))} and so on."


def _missing_words(table: Table, names: Sequence[str]) -> str:
    found = [f"{word!r} in {name} ({n:,})" for name in names for word, n in table.column(name).missing_words().items()]
    return ", ".join(found)


def _classes(labels: NDArray[Any], target: str, *, part: bool) -> NDArray[Any]:
    y = np.array(labels.tolist())
    n_classes = len(set(labels.tolist()))
    if y.dtype.kind == "f" and (y % 1 != 0).any():
        raise UsageError(
            f"the target {target!r} is a continuous number ({count(n_classes, 'value')}); give a column of classes."
        )
    if y.dtype.kind not in "biufU" or len({isinstance(value, str) for value in labels}) > 1:
        raise UsageError(f"the target {target!r} must hold text or whole numbers, one class per value.")
    if n_classes > _MAX_CLASSES:
        raise UsageError(
            f"the target {target!r} has {n_classes:,} values, more than {_MAX_CLASSES}: it is not a class."
        )
    if part:
        return y
    if n_classes < 2:
        raise UsageError(f"the target {target!r} has the one value {labels[0]!r}; there is nothing to predict.")
    values, counts = np.unique(y, return_counts=True)
    if counts.min() < 2:
        label = values[int(np.argmin(counts))].item()
        raise UsageError(f"the class {label!r} of {target!r} has one row; at least 2 are needed, to fit and to score.")
    return y


def _encode_groups(
    groups: pd.DataFrame, sensitive: Sequence[str], *, part: bool
) -> tuple[GroupEncoder, NDArray[np.intp]]:
    name = quoted(sensitive)
    try:
        encoder = GroupEncoder().fit(groups)
        codes = encoder.encode(groups)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    if len(encoder.groups_) > _MAX_GROUPS:
        raise UsageError(
            f"{name} has {len(encoder.groups_):,} groups, more than {_MAX_GROUPS}; join values into fewer groups first."
        )
    if part:
        return encoder, codes
    if len(encoder.groups_) < 2:
        raise UsageError(f"{name} has the one group {label_text(encoder.groups_[0])!r}; there is nothing to steer.")
    counts = np.bincount(codes)
    if counts.min() < 2:
        label = encoder.groups_[int(np.argmin(counts))]
        raise UsageError(
            f"the group {label_text(label)!r} of {name} has one row; at least 2 are needed: join it with another group "
            "or remove it."
        )
    return encoder, codes


def group_named(text: str | None, labels: list[Any]) -> Any:
    """Group that is written as `text`, see `Question.group_named`."""
    return _find(text, labels, "--reference-group", "group")


def label_named(text: str, labels: list[Any], option: str, what: str = "group") -> Any:
    """Label that is written as `text`, of those that there are."""
    return _find(text, labels, option, what)


def _find(text: str | None, labels: list[Any], option: str, what: str) -> Any:
    if text is None:
        return None
    wanted = _key(text)
    exact = [label for label in labels if label_text(label) == text]
    for label in exact or [label for label in labels if _key(label_text(label)) == wanted]:
        return label
    known = "; ".join(label_text(label) for label in labels[:20]) + ("; …" if len(labels) > 20 else "")
    raise UsageError(f"{option} {text!r} is no {what}; there are: {known}.")


def _key(text: str) -> tuple[Any, ...]:
    """Compare parts of an intersection without their spaces, and numbers by their values."""
    return tuple(_number_or_text(part) for part in text.split(","))


def _number_or_text(part: str) -> float | str:
    try:
        return float(part)
    except ValueError:
        return part.strip()
