"""The job of ``fairsteer apply``: new rows, steered with a saved map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from fairsteer.classifier import IdealDistributionClassifier
from fairsteer.groups import GroupEncoder
from fairsteer.transformer import FairSteeringTransformer

from . import UsageError, count
from ._columns import label_parts, label_text
from ._fitting import INFERRED, check_has, listed, reading_of
from ._large import AnyTable, distinct_rows, open_table
from ._options import Reads, parse_memory
from ._printing import Reporter
from ._question import check_columns, quoted
from ._reading import Table
from ._saved import load_saved, name_of
from ._steer import check_table_path, write_files
from ._table import TableDescription
from ._writing import as_path, check_outputs, is_standard_output

__all__ = ["apply_map", "load_map"]


def apply_map(
    reads: Reads,
    map_file: Path,
    file: Path,
    *,
    out: Path,
    keep: list[str],
    unknown_group: str | None,
    force: bool,
    as_json: bool = False,
) -> None:
    """Steer the rows of a new table with a saved map.

    Parameters
    ----------
    reads : Reads
        How the table is read.
    map_file : Path
        What ``fairsteer steer --map`` wrote.
    file : Path
        New table, with the columns the map was fitted on.
    out : Path
        Where to write the steered rows.
    keep : list of str
        Columns to copy, besides those that the map names.
    unknown_group : {"error", "infer", "infer_hard"} or None
        What happens to rows of groups that the map does not know, and to rows without a group; None: the first are
        refused, the second are steered as ``fairsteer steer`` was told.
    force : bool
        Whether a file that exists may be replaced.
    as_json : bool, default=False
        Whether one JSON object is printed instead of text.

    Raises
    ------
    UsageError
        For any input the user can put right; nothing has been written then.
    """
    out = as_path(out) or out
    report = Reporter(to_stderr=is_standard_output(out), as_json=as_json)
    check_table_path(out)
    check_outputs([("--out", out)], sources=[file, map_file], force=force)
    if str(map_file) == str(file) == "-":
        raise UsageError("MAP and FILE are both standard input; name a file for one.")
    fitted, description = load_map(map_file)
    steering: Any = getattr(fitted, "steering_", fitted)
    with report.busy(f"reading {file.name}"):
        table = open_table(file, description.reading(reading_of(reads)), report.note, parse_memory(reads.memory))
    check_has(table, [*(column.name for column in description.encoder.columns), *description.sensitive])
    more = listed(keep)
    check_columns(table, {"--keep": more})
    _check_groups(table, description, steering, unknown_group, report)
    if isinstance(table, Table):  # gaps of a large one are counted as it is steered
        description.encoder.tell_gaps(description.encoder.gaps(table), report.note, unseen=True)
    carried = [*description.sensitive, description.target, *description.keep, *more]
    carried = [name for name in dict.fromkeys(carried) if name in table.names]
    n_rows = write_files(fitted, description, table, carried, out, None, report)
    report.result("apply", n_rows=n_rows, groups=steering.groups_, unknown_group=steering.unknown_group)


def load_map(path: Path) -> tuple[FairSteeringTransformer | IdealDistributionClassifier, TableDescription]:
    """Read a map and what it knows of its table.

    Parameters
    ----------
    path : Path
        What ``fairsteer steer --map`` wrote; ``-`` is standard input.

    Returns
    -------
    fitted : FairSteeringTransformer or IdealDistributionClassifier
        The map, or the classifier with aligned scores that holds it.
    description : TableDescription
        The preprocessing.
    """
    fitted, extra = load_saved(path, "map")
    description = TableDescription.from_json(extra or None, name_of(path))
    if not isinstance(fitted, (FairSteeringTransformer, IdealDistributionClassifier)):
        raise UsageError(f"{path} holds a {type(fitted).__name__}, not a map that fairsteer steer wrote.")
    return fitted, description


def _check_groups(
    table: AnyTable, description: TableDescription, steering: Any, unknown_group: str | None, report: Reporter
) -> None:
    """Refuse groups that the map does not know unless they are to be inferred; say how many rows have none."""
    known = steering.moments_.groups.tolist()
    names = list(description.sensitive)
    parts = label_parts(known, len(names))
    distinct, rows = distinct_rows(table, names)
    groups = pd.DataFrame({name: distinct.column(name).labels(parts[j]) for j, name in enumerate(names)}, dtype=object)
    missing = groups.isna().any(axis=1).to_numpy()
    unseen: list[Any] = []
    if not missing.all():
        _check_kinds(groups, parts)
        labels = GroupEncoder().fit(groups).groups_.tolist()
        unseen = [label for label in labels if label not in set(known)]
    if unseen and unknown_group in (None, "error"):
        raise UsageError(
            f"the map does not know the {'group' if len(unseen) == 1 else 'groups'} {_some(unseen)} of {quoted(names)} "
            f"(it knows {_some(known)}); --unknown-group infer steers their rows by the likeliest groups."
        )
    if unknown_group is not None:
        steering.set_params(unknown_group=unknown_group)
    how = steering.unknown_group
    n_missing = int(rows[missing].sum())
    if n_missing and how == "error":
        raise UsageError(
            f"{count(n_missing, 'row')} of {table.name} {'has' if n_missing == 1 else 'have'} no {quoted(names)}; "
            "--unknown-group infer steers them by the likeliest groups."
        )
    if n_missing or unseen:
        what = [f"{count(n_missing, 'row')} without {quoted(names)}"] * bool(n_missing)
        what += [f"{count(len(unseen), 'group')} that the map does not know ({_some(unseen)})"] * bool(unseen)
        report.note(f"{' and '.join(what)}: {INFERRED[how]}.")
        if getattr(steering, "group_calibration_", None) is None:
            report.note(
                "the map was fitted without --unknown-group infer, so the probabilities of the groups are those of the "
                "fitted Gaussians, which are too sure of themselves where features are many."
            )


def _check_kinds(groups: pd.DataFrame, parts: list[list[Any]]) -> None:
    """Refuse a column whose labels are of another type than at the fit: it was written in another way."""
    for (name, column), known in zip(groups.items(), parts, strict=True):
        labels = [label for label in dict.fromkeys(column) if label is not None]
        texts = {isinstance(label, str) for label in known}
        foreign = [label for label in labels if isinstance(label, str) not in texts]
        if foreign:
            raise UsageError(
                f"{_some(foreign)} in {name!r} {'is' if len(foreign) == 1 else 'are'} {_kind(foreign[0])}, and the map "
                f"was fitted on {_kind(known[0])}: {_some(known)}. Write the groups as they were written at the fit."
            )


def _kind(label: Any) -> str:
    return "text" if isinstance(label, str) else "numbers"


def _some(labels: list[Any]) -> str:
    return "; ".join(map(label_text, labels[:5])) + ("; …" if len(labels) > 5 else "")
