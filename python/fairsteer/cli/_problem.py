"""A table as a question: which rows have a class and a group, and what is refused before anything is fitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairsteer.groups import GroupEncoder

from ._errors import UsageError
from ._report import name_group
from ._texts import INFERRED

__all__ = ["Problem", "read_problem"]

Tell = Callable[[str], None]
_MAX_CLASSES = 100
_MAX_GROUPS = 100


@dataclass(frozen=True)
class Problem:
    """A table with its classes and groups.

    Attributes
    ----------
    frame : DataFrame
        All rows.
    groups : DataFrame
        The sensitive columns, all rows.
    usable : ndarray of shape (n_rows,), dtype bool
        Rows with a class and a group: those that are fitted on.
    y : ndarray of shape (n_usable,)
        Classes of the usable rows.
    cells : ndarray of shape (n_usable,), dtype intp
        Number of the (group, class) cell of every usable row; those of a group are neighbours.
    labels : list
        The groups, sorted.
    """

    frame: pd.DataFrame
    groups: pd.DataFrame
    usable: NDArray[np.bool_]
    y: NDArray[Any]
    cells: NDArray[np.intp]
    labels: list[Any]

    def small_cells(self, least: int) -> list[str]:
        """Describe the cells with fewer than `least` usable rows."""
        classes = np.unique(self.y).tolist()
        counts = np.bincount(self.cells, minlength=len(self.labels) * len(classes)).reshape(-1, len(classes))
        return [
            f"{classes[k]} in {name_group(self.labels[a])} ({counts[a, k]})" for a, k in np.argwhere(counts < least)
        ]

    def class_named(self, text: str | None) -> Any:
        """Class whose text is `text`; None for None."""
        classes: list[Any] = np.unique(self.y).tolist()
        return _find(text, classes, "--positive", "class")

    def group_named(self, text: str | None) -> Any:
        """Group whose text is `text`, the parts of an intersection joined by commas; None for None."""
        return _find(text, self.labels, "--reference-group", "group")


def read_problem(
    frame: pd.DataFrame,
    *,
    target: str,
    sensitive: Sequence[str],
    others: Sequence[str],
    unknown_group: str,
    tell: Tell,
) -> Problem:
    """Check the columns that were named and find the rows to fit on.

    Parameters
    ----------
    frame : DataFrame
        The whole table.
    target : str
        Column of the classes.
    sensitive : sequence of str
        Columns of the groups.
    others : sequence of str
        Further columns the user named, to be dropped or kept.
    unknown_group : {"infer", "infer_hard"}
        How rows without a group will be steered.
    tell : callable
        Receives one sentence for everything the user should know.

    Returns
    -------
    Problem

    Raises
    ------
    UsageError
        For columns that are absent or named twice, a target that is no class, a group that is too
        small.
    """
    _check_columns(frame, target, sensitive, others)
    groups = frame[list(sensitive)]
    has_class = frame[target].notna().to_numpy()
    has_group = groups.notna().all(axis=1).to_numpy()
    usable = has_class & has_group
    if not usable.any():
        raise UsageError(f"no row has both a value of {target!r} and of {_quoted(sensitive)}.")
    y = _classes(frame.loc[usable, target], target)
    encoder, codes = _encode_groups(groups[usable], sensitive)
    _tell_missing(has_class, has_group, target, sensitive, unknown_group, tell)
    return Problem(
        frame=frame,
        groups=groups,
        usable=usable,
        y=y,
        cells=codes * len(np.unique(y)) + np.unique(y, return_inverse=True)[1],
        labels=encoder.groups_.tolist(),
    )


def _check_columns(frame: pd.DataFrame, target: str, sensitive: Sequence[str], others: Sequence[str]) -> None:
    named = [target, *sensitive, *others]
    absent = [name for name in named if name not in frame.columns]
    if absent:
        raise UsageError(f"there is no column {absent[0]!r}; the columns are {', '.join(map(str, frame.columns))}.")
    if target in sensitive:
        raise UsageError(f"{target!r} cannot be the target and a sensitive column at once.")
    twice = [name for name in named if named.count(name) > 1]
    if twice:
        raise UsageError(f"column {twice[0]!r} is named twice among --target, --sensitive, --drop and --keep.")


def _tell_missing(
    has_class: NDArray[np.bool_],
    has_group: NDArray[np.bool_],
    target: str,
    sensitive: Sequence[str],
    unknown_group: str,
    tell: Tell,
) -> None:
    if not has_class.all():
        tell(
            f"{int((~has_class).sum())} rows have no {target!r}: left out of the fit and the "
            "table, steered in the output."
        )
    if not has_group.all():
        tell(
            f"{int((~has_group).sum())} rows have no {_quoted(sensitive)}: left out of the fit and the table; in the "
            f"output they are {INFERRED[unknown_group]}."
        )


def _classes(column: pd.Series[Any], target: str) -> NDArray[Any]:
    y = np.array(column.tolist())
    n_classes = column.nunique()
    if y.dtype.kind == "f" and (y % 1 != 0).any():
        raise UsageError(
            f"the target {target!r} is a continuous number ({n_classes} values); give a column of classes."
        )
    if y.dtype.kind not in "biufU" or len({isinstance(value, str) for value in column}) > 1:
        raise UsageError(f"the target {target!r} must hold text or whole numbers, one class per value.")
    if n_classes > _MAX_CLASSES:
        raise UsageError(f"the target {target!r} has {n_classes} values, more than {_MAX_CLASSES}: it is not a class.")
    if n_classes < 2:
        raise UsageError(f"the target {target!r} has the one value {y[0].item()!r}; there is nothing to predict.")
    labels, counts = np.unique(y, return_counts=True)
    if counts.min() < 2:
        label = labels[int(np.argmin(counts))].item()
        raise UsageError(f"the class {label!r} of {target!r} has one row; at least 2 are needed, to fit and to score.")
    return y


def _encode_groups(groups: pd.DataFrame, sensitive: Sequence[str]) -> tuple[GroupEncoder, NDArray[np.intp]]:
    name = _quoted(sensitive)
    try:
        encoder = GroupEncoder().fit(groups)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    codes = encoder.encode(groups)
    if len(encoder.groups_) > _MAX_GROUPS:
        raise UsageError(
            f"{name} has {len(encoder.groups_)} groups, more than {_MAX_GROUPS}; join values into fewer groups first."
        )
    if len(encoder.groups_) < 2:
        raise UsageError(f"{name} has the one group {name_group(encoder.groups_[0])!r}; there is nothing to steer.")
    counts = np.bincount(codes)
    if counts.min() < 2:
        label = encoder.groups_[int(np.argmin(counts))]
        raise UsageError(
            f"the group {name_group(label)!r} of {name} has one row; at least 2 are needed: join "
            "it with another group "
            "or remove it."
        )
    return encoder, codes


def _find(text: str | None, labels: list[Any], option: str, what: str) -> Any:
    if text is None:
        return None
    wanted = ",".join(part.strip() for part in text.split(","))
    for label in labels:
        if name_group(label) == text or name_group(label).replace(", ", ",") == wanted:
            return label
    known = "; ".join(name_group(label) for label in labels)
    raise UsageError(f"{option} {text!r} is no {what}; there are: {known}.")


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(repr(name) for name in names)
