"""The command ``audit``: a steering report of a file, in the terminal and as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fairsteer.report import SteeringReport, steering_report

from ._errors import UsageError
from ._evaluate import quoting_warnings
from ._files import Replacement, check_target_folder, read_table
from ._jobs import SteerOptions, _encoder, _library_problems, _steering
from ._options import Alignment, Columns, Covariance, Intervention, check_range, parse_shrinkage
from ._problem import Problem, read_problem
from ._report import Reporter

__all__ = ["AUDIT_HELP", "audit", "audit_file"]


AUDIT_HELP = (
    "Report what steering the file would do: gaps before and after on held-out rows with intervals, the model's "
    "bounds beside them, and what moves; with --html, as a page to pass on. Columns are read as by steer."
)


def audit(
    file: Annotated[Path, typer.Argument(help="A .csv or .parquet file.")],
    target: Annotated[str, typer.Option(help="Column of the classes.")],
    sensitive: Annotated[Columns, typer.Option(help="Column of the groups; again for intersections.")],
    html: Annotated[Path | None, typer.Option(help="Write the report to this .html file.")] = None,
    drop: Annotated[Columns | None, typer.Option(help="Leave this column out (leaks, ids); repeatable.")] = None,
    positive: Annotated[str | None, typer.Option(help="The positive class; by default the larger label.")] = None,
    intervention: Annotated[
        Intervention, typer.Option(help="Move all groups, or all but the reference group.")
    ] = Intervention.all_subgroups,
    reference_group: Annotated[
        str | None, typer.Option(help="With affirmative: the group left as it is; by default the largest.")
    ] = None,
    alignment: Annotated[Alignment, typer.Option(help="Any affine map, or no rotation.")] = Alignment.affine,
    covariance: Annotated[
        Covariance, typer.Option(help="One covariance per group, per class and group, or diagonal ones.")
    ] = Covariance.tied,
    shrinkage: Annotated[str, typer.Option(help="ledoit_wolf, oas, none or a number in [0, 1].")] = "ledoit_wolf",
    strength: Annotated[float, typer.Option(help="0 leaves rows as they are, 1 steers fully.")] = 1.0,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation.")] = 5,
    min_rows: Annotated[int, typer.Option(help="Rates from fewer rows take no part in the gaps.")] = 30,
    max_categories: Annotated[int, typer.Option(help="Most 0/1 columns per categorical column.")] = 50,
    confidence: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
) -> None:
    """Check the options and run the job."""
    check_range("--strength", strength, 0.0, 1.0)
    if not 0 < confidence < 1:
        raise UsageError(f"--confidence must be a number between 0 and 1, not {confidence:g}.")
    for option, value, least in (
        ("--folds", folds, 2),
        ("--max-categories", max_categories, 1),
        ("--min-rows", min_rows, 1),
    ):
        if value < least:
            raise UsageError(f"{option} must be at least {least}, not {value}.")
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{html} must end in .html, which is its format.")
    options = SteerOptions(
        file=file,
        target=target,
        sensitive=sensitive,
        drop=drop or [],
        keep=[],
        out=None,
        model=None,
        overwrite=False,
        positive=positive,
        reference_group=reference_group,
        steering={
            "intervention": intervention.value,
            "map_type": alignment.value,
            "covariance": covariance.value,
            "shrinkage": parse_shrinkage(shrinkage),
            "min_cell_size": 0,
            "small_cells": "error",
            "strength": strength,
        },
        folds=folds,
        min_rows=min_rows,
        max_categories=max_categories,
    )
    audit_file(options, html, confidence, Reporter())


def audit_file(options: SteerOptions, html: Path | None, confidence: float, report: Reporter) -> None:
    """Print the steering report of a file, and write it as HTML.

    Parameters
    ----------
    options : SteerOptions
        The file, its columns and the steering.
    html : Path or None
        Where to write the page.
    confidence : float
        Level of the intervals, in (0, 1).
    report : Reporter
        Where to print.

    Raises
    ------
    UsageError
        For any input the user can put right; nothing has been written then.
    """
    if html is not None:
        check_target_folder(html)
    frame = read_table(options.file)
    problem = read_problem(
        frame,
        target=options.target,
        sensitive=options.sensitive,
        others=options.drop,
        unknown_group="infer",
        tell=lambda _: None,  # its notes speak of an output
    )
    left_out = int((~problem.usable).sum())
    if left_out:
        report.note(f"{left_out} of {len(frame)} rows lack a value of the target or of a group and are left out.")
    with _library_problems(), report.progress("cross-validation", 1) as advance:
        result = _report(options, problem, confidence, report)
        advance(1)
    Console(highlight=False).print(result)
    if html is not None:
        with Replacement(html) as replacement:
            try:
                result.to_html(replacement.path)
            except OSError as error:
                raise UsageError(f"{html} cannot be written: {error.strerror or error}.") from error
            replacement.commit()
        report.say(f"\nWrote the report to {html.name}.")


def _report(options: SteerOptions, problem: Problem, confidence: float, report: Reporter) -> SteeringReport:
    steering = _steering(options, problem)
    frame, groups = problem.frame[problem.usable], problem.groups[problem.usable]
    encoder = _encoder(options, frame, report.note)
    encoder.tell_gaps(frame, report.note)
    features = encoder.encode(frame)
    with quoting_warnings(report.note):
        steering.fit(features, problem.y, sensitive_features=groups)
        return steering_report(
            steering,
            features,
            problem.y,
            sensitive_features=groups,
            pos_label=problem.class_named(options.positive),
            cv=options.folds,
            min_rows=options.min_rows,
            confidence=confidence,
        )
