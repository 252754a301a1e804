"""The commands and their options; every job is in `_jobs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._audit import AUDIT_HELP, audit
from ._errors import UsageError
from ._export import EXPORT_HELP, export
from ._jobs import SteerOptions, apply_map, steer_file
from ._jobs import demo as run_demo
from ._options import (
    Alignment,
    Columns,
    Covariance,
    Inference,
    Intervention,
    SmallCells,
    UnknownGroup,
    check_range,
    parse_shrinkage,
)
from ._report import Reporter

__all__ = ["app"]

app = typer.Typer(
    help="Steer features of sensitive groups to the nearest distribution on which Bayes classifiers are exactly fair.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Allow --out to be the input file.")]


@app.command()
def demo() -> None:
    """Steer scikit-learn's diabetes data (nothing to download) and print a table before and after."""
    run_demo(Reporter())


@app.command(
    help="Print a table before and after on held-out rows; with --out, write the steered rows.\n\n"
    "Categorical columns become 0/1 columns named column=value, missing numbers the column's median. Columns that give "
    "the target away must be left out with --drop: nothing else can know them."
)
def steer(
    file: Annotated[Path, typer.Argument(help="A .csv or .parquet file.")],
    target: Annotated[str, typer.Option(help="Column of the classes.")],
    sensitive: Annotated[Columns, typer.Option(help="Column of the groups; again for intersections.")],
    out: Annotated[Path | None, typer.Option(help="Write the steered rows to this .csv or .parquet file.")] = None,
    model: Annotated[Path | None, typer.Option(help="Write the map to this .safetensors file.")] = None,
    drop: Annotated[Columns | None, typer.Option(help="Leave this column out (leaks, splits); repeatable.")] = None,
    keep: Annotated[Columns | None, typer.Option(help="Not a feature, but copied to --out (ids); repeatable.")] = None,
    positive: Annotated[str | None, typer.Option(help="The positive class; by default the larger label.")] = None,
    intervention: Annotated[
        Intervention, typer.Option(help="Move all groups, or all but the reference group.")
    ] = Intervention.all_subgroups,
    reference_group: Annotated[
        str | None,
        typer.Option(help="With affirmative: the group left as it is; by default the largest."),
    ] = None,
    alignment: Annotated[Alignment, typer.Option(help="Any affine map, or no rotation.")] = Alignment.affine,
    covariance: Annotated[
        Covariance,
        typer.Option(help="One covariance per group, per class and group, or diagonal ones."),
    ] = Covariance.tied,
    shrinkage: Annotated[str, typer.Option(help="ledoit_wolf, oas, none or a number in [0, 1].")] = "ledoit_wolf",
    pooling: Annotated[
        float, typer.Option(help="With full: how far the classes of a group share their covariances.")
    ] = 0.0,
    min_cell_size: Annotated[int, typer.Option(help="Rows that every class should have in every group.")] = 0,
    small_cells: Annotated[
        SmallCells, typer.Option(help="With fewer: refuse, borrow from other subgroups, or join small groups.")
    ] = SmallCells.error,
    unknown_group: Annotated[
        Inference, typer.Option(help="Rows without a group: all groups' maps by probability, or the likeliest group's.")
    ] = Inference.infer,
    strength: Annotated[float, typer.Option(help="0 leaves rows as they are, 1 steers fully.")] = 1.0,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation behind the table.")] = 5,
    min_rows: Annotated[int, typer.Option(help="Rates from fewer rows take no part in the gaps.")] = 30,
    max_categories: Annotated[int, typer.Option(help="Most 0/1 columns per categorical column.")] = 50,
    overwrite: _Overwrite = False,
) -> None:
    """Check the options and run the job."""
    check_range("--strength", strength, 0.0, 1.0)
    check_range("--pooling", pooling, 0.0, 1.0)
    if pooling > 0 and covariance is not Covariance.full:
        raise UsageError(f"--pooling needs --covariance full, not {covariance.value}.")
    if small_cells is not SmallCells.error and min_cell_size == 0:
        raise UsageError(
            f"--small-cells {small_cells.value} needs --min-cell-size, the rows below which a cell is small."
        )
    for option, value, least in (
        ("--folds", folds, 2),
        ("--max-categories", max_categories, 1),
        ("--min-rows", min_rows, 1),
        ("--min-cell-size", min_cell_size, 0),
    ):
        if value < least:
            raise UsageError(f"{option} must be at least {least}, not {value}.")
    parameters = {
        "intervention": intervention.value,
        "map_type": alignment.value,
        "covariance": covariance.value,
        "shrinkage": parse_shrinkage(shrinkage),
        "pooling": pooling,
        "min_cell_size": min_cell_size,
        "small_cells": small_cells.value,
        "unknown_group": unknown_group.value,
        "strength": strength,
    }
    options = SteerOptions(
        file=file,
        target=target,
        sensitive=sensitive,
        drop=drop or [],
        keep=keep or [],
        out=out,
        model=model,
        overwrite=overwrite,
        positive=positive,
        reference_group=reference_group,
        steering=parameters,
        folds=folds,
        min_rows=min_rows,
        max_categories=max_categories,
    )
    steer_file(options, Reporter())


@app.command()
def apply(
    model: Annotated[Path, typer.Argument(metavar="MAP", help="A map written by steer --model.")],
    file: Annotated[Path, typer.Argument(help="A .csv or .parquet file with the columns of the fit.")],
    out: Annotated[Path, typer.Option(help="Write the steered rows to this .csv or .parquet file.")],
    unknown_group: Annotated[
        UnknownGroup,
        typer.Option(help="Rows of groups the map does not know: refuse, or infer the group."),
    ] = UnknownGroup.error,
    overwrite: _Overwrite = False,
) -> None:
    """Steer new rows with a saved map. The target column is not needed."""
    apply_map(model, file, out, overwrite=overwrite, unknown_group=unknown_group.value, report=Reporter())


@app.command()
def versions() -> None:
    """Print the versions of fairsteer, of what it runs on, and how it was compiled."""
    from fairsteer import show_versions

    show_versions()


app.command(help=AUDIT_HELP)(audit)
app.command(help=EXPORT_HELP)(export)
