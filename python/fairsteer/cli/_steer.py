"""The job of ``fairsteer steer``: the table before and after, and the files that were asked for."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa

from fairsteer._utils.files import Output
from fairsteer.classifier import IdealDistributionClassifier
from fairsteer.transformer import FairSteeringTransformer

from . import UsageError, count
from ._columns import label_parts, label_text
from ._comparison import compare
from ._fitting import (
    affords_alignment,
    library_problems,
    measured_rows,
    memory_of,
    quoting_warnings,
    read_problem,
    tell_of_fit,
)
from ._large import AnyTable, LargeTable
from ._options import Alignment, Settings
from ._printing import Reporter, comparison_values, fit_values
from ._reading import format_of
from ._saved import write_saved
from ._table import Gaps, TableDescription
from ._writing import as_path, check_outputs, is_standard_output, is_stream, open_writer, writing

__all__ = ["check_table_path", "steer_file", "write_files", "write_map"]

_HOW_TO_READ = (
    "A gap is the largest difference between two groups; 0 is fair, and chance alone makes it larger than 0, the more "
    "so the more groups there are."
)


def steer_file(
    settings: Settings,
    *,
    out: Path | None,
    model: Path | None,
    align: Alignment | None,
    force: bool,
    resume: bool = False,
    checkpoint_every: float = 30.0,
    as_json: bool = False,
) -> None:
    """Print the table before and after, then write what was asked for.

    Parameters
    ----------
    settings : Settings
        What to fit.
    out, model : Path or None
        Where to write the steered rows and the map.
    align : {"equal_opportunity", "demographic_parity"} or None
        Whether scores are aligned too.
    force : bool
        Whether files that exist may be replaced.
    resume : bool, default=False
        Whether the run that was interrupted is continued.
    checkpoint_every : float, default=30
        Seconds between checkpoints of a table that is read in pieces.
    as_json : bool, default=False
        Whether one JSON object is printed instead of text.

    Raises
    ------
    UsageError
        For any input the user can put right; nothing has been written then.
    """
    out, model = as_path(out), as_path(model)
    report = Reporter(to_stderr=is_standard_output(out) or is_standard_output(model), as_json=as_json)
    if out is not None:
        check_table_path(out)
    if model is not None and model.suffix != ".safetensors" and not is_stream(model):
        raise UsageError(f"the map {model} must end in .safetensors, which is its format.")
    check_outputs([("--out", out), ("--map", model)], sources=[settings.file], force=force)
    memory = memory_of(settings, model or out, resume=resume)
    problem = read_problem(settings, report, steers_all=out is not None, memory=memory)
    checkpoint = problem.checkpoint(model or out, seconds=checkpoint_every, resume=resume)
    fitted = problem.fit(report, align, checkpoint)
    steering = fitted if isinstance(fitted, FairSteeringTransformer) else fitted.steering_
    measured = measured_rows(problem, report)
    with (
        library_problems(),
        quoting_warnings(lambda _: None),
        report.progress("cross-validation", settings.folds) as advance,
    ):
        # Of these warnings the fit of all rows has said what there is to say.
        result = compare(
            steering,
            measured.features,
            measured.y,
            measured.groups,
            pos_label=problem.pos_label,
            folds=settings.folds,
            min_rows=settings.min_rows,
            alignment=align,
            aligns=align is not None or affords_alignment(problem, report),
            prepare=measured.prepare,
            advance=advance,
        )
    tell_of_fit(result.displacement, report.note)
    report.comparison(result, steering)
    report.by_group(result)
    report.say(_HOW_TO_READ + "\n")
    report.advice(result)
    if out is None and model is None:
        report.say("Nothing was written: --out writes the steered table, --map the map for new rows.")
    else:
        write_files(fitted, problem.description, problem.source, problem.carried, out, model, report, problem.n_rows)
    if checkpoint is not None:
        checkpoint.remove()
    report.result("steer", **comparison_values(result), fit=fit_values(steering))


def check_table_path(path: Path) -> None:
    """Refuse a name that does not say which format the table is to have; a pipe is csv unless its name says more."""
    if format_of(path) is None and not is_stream(path):
        raise UsageError(f"{path} must end in .csv, .tsv (or either with .gz) or .parquet, which names its format.")


def write_files(
    fitted: FairSteeringTransformer | IdealDistributionClassifier,
    description: TableDescription,
    table: AnyTable,
    carried: list[str],
    out: Path | None,
    model: Path | None,
    report: Reporter,
    total: int | None = None,
) -> int:
    """Write both files; they take their places only when both are complete.

    Parameters
    ----------
    fitted : FairSteeringTransformer or IdealDistributionClassifier
        The map, or the classifier with aligned scores.
    description : TableDescription
        What the map knows of its table.
    table : Table or LargeTable
        Rows to steer.
    carried : list of str
        Columns that pass through.
    out, model : Path or None
        Where to write.
    report : Reporter
        Where to print.
    total : int, default=None
        Number of rows, if it is known.

    Returns
    -------
    int
        Number of rows that were steered.
    """
    n_rows = 0
    with ExitStack() as stack:
        finished: list[tuple[Output, str]] = []
        if model is not None:
            output = stack.enter_context(writing(model))
            write_map(fitted, description, output.file)
            steering: Any = getattr(fitted, "steering_", fitted)
            what = "the map" if isinstance(fitted, FairSteeringTransformer) else "the map and the aligned classifier"
            finished.append((output, f"{what} of {count(len(steering.groups_), 'group')}"))
        if out is not None:
            output = stack.enter_context(writing(out))
            n_rows = _write_table(fitted, description, table, carried, output, report, total)
            finished.append((output, count(n_rows, "steered row")))
        for output, what in finished:
            output.commit()
            report.wrote(what, output.target)
    return n_rows


def write_map(
    fitted: FairSteeringTransformer | IdealDistributionClassifier, description: TableDescription, file: BinaryIO
) -> None:
    """Write a map, with what it knows of its table."""
    write_saved(fitted, description.to_json(), file, "the map")


def _write_table(
    fitted: FairSteeringTransformer | IdealDistributionClassifier,
    description: TableDescription,
    table: AnyTable,
    carried: list[str],
    output: Output,
    report: Reporter,
    total: int | None,
) -> int:
    """Steer and write piece by piece, so that only one piece of the output is in memory; give the number of rows."""
    encoder, sensitive = description.encoder, list(description.sensitive)
    steering: Any = getattr(fitted, "steering_", fitted)
    known = steering.moments_.groups.tolist()  # as they were before small groups merged
    parts = label_parts(known, len(sensitive))
    features = encoder.encoded_names
    more = _score_columns(fitted, description.target)
    large = isinstance(table, LargeTable)
    n_rows, gaps = 0, Gaps()
    head = table.head if isinstance(table, LargeTable) else table
    with library_problems(), quoting_warnings(lambda _: None), report.rows("steering", total) as advance:
        writer = open_writer(output.target, output.file, head, features, more, carried)
        needed = [*(column.name for column in encoder.columns), *sensitive, *writer.carried]
        for piece in table.pieces(list(dict.fromkeys(needed)), n_numbers=len(features)):
            groups = pd.DataFrame(
                {name: piece.column(name).labels(parts[j]) for j, name in enumerate(sensitive)}, dtype=object
            )
            X = encoder.encode(piece)
            steered = np.asarray(steering.transform(X, sensitive_features=groups), dtype=np.float64)
            writer.write(steered, _scores(fitted, X, groups, more), piece)
            n_rows += len(piece)
            if large:
                gaps.add(encoder.gaps(piece))
            advance(len(piece))
        writer.close()
    if large:
        encoder.tell_gaps(gaps, report.note, unseen=True)
    return n_rows


def _score_columns(fitted: Any, target: str) -> dict[str, pa.DataType]:
    """Names and types of the columns that a classifier adds: probabilities, and the class that it predicts."""
    if not isinstance(fitted, IdealDistributionClassifier):
        return {}
    classes = fitted.classes_.tolist()
    shown = classes[-1:] if len(classes) == 2 else classes
    labels = pa.array(classes)
    return {**{f"P({target}={label_text(label)})": pa.float64() for label in shown}, f"predicted {target}": labels.type}


def _scores(fitted: Any, X: pd.DataFrame, groups: pd.DataFrame, more: dict[str, pa.DataType]) -> list[pa.Array]:
    if not more:
        return []
    proba = fitted.predict_proba(X, sensitive_features=groups)
    predicted = fitted.classes_[proba.argmax(axis=1)]
    columns = [pa.array(column) for column in proba.T[len(proba.T) - len(more) + 1 :]]
    return [*columns, pa.array(predicted.tolist(), list(more.values())[-1])]
