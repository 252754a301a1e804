"""The commands and their options. A command imports its job when it is called, so that help costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ._options import (
    FILE_HELP,
    REQUIRED,
    Alignment,
    Json,
    Leakage,
    Maps,
    Reads,
    Rows,
    Settings,
    UnknownGroup,
    expand,
)

__all__ = ["app"]

# Ten lines.
_WHAT_THERE_IS = """\
fairsteer moves features of sensitive groups, so that classifiers treat the groups alike.

  demo              a first look, on data that comes with scikit-learn
  audit, explain    what steering a table would do: a report; one row, in words
  steer, apply      the steered table and the map; new rows, steered with that map
  moments, merge    sums of rows for sites that may not share the rows; one map from them
  export            a map as ONNX, or as plain matrices
  versions          what a bug report needs

Try: fairsteer demo. Options with an example: fairsteer steer --help. For machines: --json."""

app = typer.Typer(
    help="Steer features of sensitive groups to the nearest distribution on which Bayes classifiers are exactly fair.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_OUT_HELP = "Write the steered rows to this .csv, .tsv or .parquet file; - is standard output."
_Force = Annotated[bool, typer.Option("--force", "-f", help="Replace files that exist.")]

_Resume = Annotated[
    bool, typer.Option("--resume", help="Continue from the last checkpoint of a run that was interrupted.")
]
_Every = Annotated[
    float,
    typer.Option(help="Seconds between checkpoints, of tables read in pieces.", min=0, metavar="SECONDS"),
]


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"fairsteer {version('fairsteer')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def fairsteer(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Say what there is, where nothing is asked for."""
    if context.invoked_subcommand is None:
        typer.echo(_WHAT_THERE_IS)


@app.command(short_help="A first look, on data that scikit-learn brings.", epilog="Example: fairsteer demo")
def demo(json: Json = False) -> None:
    """Steer scikit-learn's diabetes data (nothing to download) and print a table before and after."""
    from ._demo import demo as run

    run(as_json=json)


@app.command(
    short_help="The table before and after; the steered rows; the map for rows to come.",
    help="Print a table before and after on held-out rows; with --out, write the steered rows.\n\n"
    "Categorical columns become 0/1 columns named column=value, missing numbers the column's median. Columns that give "
    "the target away must be left out with --drop: nothing else can know them.",
    epilog="Example: fairsteer steer people.csv --target hired --sensitive sex --keep id --out steered.csv "
    "--model map.safetensors",
)
@expand(Settings, REQUIRED)
def steer(
    settings: Settings,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help=_OUT_HELP),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Write the map to this .safetensors file.")] = None,
    resume: _Resume = False,
    checkpoint_every: _Every = 30.0,
    align: Annotated[
        Alignment | None,
        typer.Option(
            help="Align the scores of the Bayes rule between groups as well: it joins the table, its probabilities and "
            "predictions join --out, and the classifier joins the map in --model."
        ),
    ] = None,
    force: _Force = False,
    json: Json = False,
) -> None:
    """Run the job."""
    from ._steer import steer_file

    steer_file(
        settings,
        out=out,
        model=model,
        align=align,
        resume=resume,
        checkpoint_every=checkpoint_every,
        force=force,
        as_json=json,
    )


@app.command(
    short_help="A report of what steering would do, to read or to pass on.",
    help="Report what steering the file would do: gaps before and after on held-out rows with intervals, the model's "
    "bounds beside them, and what moves; with --html, as a page to pass on. Columns are read as by steer, and the "
    "numbers are the same.",
    epilog="Example: fairsteer audit people.csv --target hired --sensitive sex,age_group --html report.html",
)
@expand(Settings, REQUIRED)
def audit(
    settings: Settings,
    html: Annotated[
        Path | None, typer.Option(help="Write the report to this .html file; - is standard output.")
    ] = None,
    align: Annotated[
        Alignment | None,
        typer.Option(
            help="Report on the Bayes rule with scores aligned between groups, instead of steered rows alone."
        ),
    ] = None,
    leakage: Annotated[
        Leakage,
        typer.Option(
            help="What tries to read the group out of the rows, before and after: nothing, linear models, or also "
            "boosted trees, which take longer."
        ),
    ] = "linear",
    confidence: Annotated[float, typer.Option(help="Level of the intervals.", min=0, max=1, metavar="P")] = 0.95,
    force: _Force = False,
    json: Json = False,
) -> None:
    """Run the job."""
    from ._audit import audit_file

    audit_file(settings, html=html, align=align, leakage=leakage, confidence=confidence, force=force, as_json=json)


@app.command(
    short_help="How one row moves, which features carry it, and how it would move in another group.",
    help="Say in words how one row of a table moves, which features carry it, and what would happen to a row of the "
    "same features in another group. The map is that of --model, or is fitted to FILE with the options of steer.",
    epilog="Example: fairsteer explain people.csv --row 17 --target hired --sensitive sex",
)
@expand(Settings, ("file",))
def explain(
    settings: Settings,
    context: typer.Context,
    row: Annotated[int, typer.Option(help="Number of the row; the first below the header is 1.", min=1, metavar="N")],
    model: Annotated[
        Path | None, typer.Option(help="A map written by steer --model, instead of a fit.", metavar="MAP")
    ] = None,
    align: Annotated[
        Alignment | None, typer.Option(help="Align the scores of the Bayes rule between groups as well.")
    ] = None,
    json: Json = False,
) -> None:
    """Run the job."""
    from ._explain import explain_file

    explain_file(settings, _given(context), row=row, model=model, align=align, as_json=json)


@app.command(
    help="Steer new rows with a saved map. The target column is not needed.",
    epilog="Example: fairsteer apply map.safetensors new_people.csv --out steered.csv",
)
@expand(Reads)
def apply(
    reads: Reads,
    model: Annotated[Path, typer.Argument(metavar="MAP", help="A map written by steer --model.")],
    file: Annotated[Path, typer.Argument(help=FILE_HELP, metavar="FILE")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help=_OUT_HELP),
    ],
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Copy this column too, byte for byte; repeatable, or a,b.", metavar="COLUMN"),
    ] = None,
    unknown_group: Annotated[
        UnknownGroup | None,
        typer.Option(
            help="Rows of groups the map does not know: refuse, or infer the group. Rows without a group: as steer was "
            "told, unless this is given."
        ),
    ] = None,
    force: _Force = False,
    json: Json = False,
) -> None:
    """Run the job."""
    from ._apply import apply_map

    apply_map(reads, model, file, out=out, keep=keep or [], unknown_group=unknown_group, force=force, as_json=json)


@app.command(
    short_help="Sums of a table's rows, for sites that may not share the rows.",
    help="Write the moments of a table: weight, mean, covariance and fourth moments of every class in every group. "
    "From them merge fits the map of the rows of all sites. No row is in them.",
    epilog="Example: fairsteer moments people.csv --target hired --sensitive sex --out site1.safetensors",
)
@expand(Rows, REQUIRED)
def moments(
    rows: Rows,
    out: Annotated[Path, typer.Option("--out", "-o", help="Write the moments to this .safetensors file.")],
    like: Annotated[
        Path | None,
        typer.Option(help="Encode columns as those of these moments, or of this map.", metavar="FILE"),
    ] = None,
    resume: _Resume = False,
    checkpoint_every: _Every = 30.0,
    force: _Force = False,
    json: Json = False,
) -> None:
    """Run the job."""
    from ._moments import moments_file

    moments_file(rows, out=out, like=like, resume=resume, checkpoint_every=checkpoint_every, force=force, as_json=json)


@app.command(
    short_help="One map from the moments of several tables.",
    help="Fit a map to the sum of moments that moments wrote, as if all rows were in one table.",
    epilog="Example: fairsteer merge site1.safetensors site2.safetensors --out map.safetensors",
)
@expand(Maps)
def merge(
    maps: Maps,
    files: Annotated[list[Path], typer.Argument(help="Moments that moments wrote.", metavar="FILE…")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Write the map to this .safetensors file.")],
    force: _Force = False,
    json: Json = False,
) -> None:
    """Run the job."""
    from ._moments import merge_files

    merge_files(maps, files, out=out, force=force, as_json=json)


@app.command(
    short_help="A map as an ONNX graph or as plain matrices.",
    help="Write a map as an ONNX graph, or as one affine map A_, B_ for each group.\n\n"
    "FILE is a map that steer --model or fairsteer.persistence.save wrote, or a table to fit with the options of "
    "steer. Rows must come as the map takes them: the features without the sensitive columns, categories as the 0/1 "
    "columns of steer.",
    epilog="Example: fairsteer export map.safetensors --to onnx --out map.onnx",
)
@expand(Settings, ("file",))
def export(
    settings: Settings,
    context: typer.Context,
    to: Annotated[
        Literal["onnx", "affine"],
        typer.Option(help="onnx: one file; affine: a folder of files that EasySteer loads."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .onnx file, or a folder that is new or empty.")],
    force: _Force = False,
    json: Json = False,
) -> None:
    """Run the job."""
    from ._export import export_map

    export_map(settings, _given(context), to=to, out=out, force=force, as_json=json)


@app.command(short_help="What a bug report needs.", epilog="Example: fairsteer versions")
def versions(json: Json = False) -> None:
    """Print the versions of fairsteer, of what it runs on, and how it was compiled."""
    if json:
        from fairsteer._utils.versions import version_info

        from ._printing import Reporter

        Reporter(as_json=True).result("versions", **version_info())
        return
    from fairsteer import show_versions

    show_versions()


def _given(context: Any) -> list[str]:
    """Options of a fit that stand on the command line."""
    options = set(Settings.__dataclass_fields__) - {"file"}
    return [
        name for name in context.params if name in options and context.get_parameter_source(name).name == "COMMANDLINE"
    ]
