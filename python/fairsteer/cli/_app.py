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

  demo                   a first look, on data that comes with scikit-learn
  audit, explain         what steering a table would do: a report; one row, in words
  steer, apply           the steered table and the map; new rows, steered with that map
  moments, merge         sums of rows for sites that may not share rows; one map of them
  activations, generate  moments of a language model; what it writes before and after
  export, versions       a map as ONNX, or as matrices; what a bug report needs

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
    "--map map.safetensors",
)
@expand(Settings, REQUIRED)
def steer(
    settings: Settings,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help=_OUT_HELP),
    ] = None,
    model: Annotated[Path | None, typer.Option("--map", help="Write the map to this .safetensors file.")] = None,
    resume: _Resume = False,
    checkpoint_every: _Every = 30.0,
    align: Annotated[
        Alignment | None,
        typer.Option(
            help="Align the scores of the Bayes rule between groups as well: it joins the table, its probabilities and "
            "predictions join --out, and the classifier joins the map in --map."
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
    confidence_level: Annotated[float, typer.Option(help="Level of the intervals.", min=0, max=1, metavar="P")] = 0.95,
    force: _Force = False,
    json: Json = False,
) -> None:
    """Run the job."""
    from ._audit import audit_file

    audit_file(
        settings, html=html, align=align, leakage=leakage, confidence_level=confidence_level, force=force, as_json=json
    )


@app.command(
    short_help="How one row moves, which features carry it, and how it would move in another group.",
    help="Say in words how one row of a table moves, which features carry it, and what would happen to a row of the "
    "same features in another group. The map is that of --map, or is fitted to FILE with the options of steer.",
    epilog="Example: fairsteer explain people.csv --row 17 --target hired --sensitive sex",
)
@expand(Settings, ("file",))
def explain(
    settings: Settings,
    context: typer.Context,
    row: Annotated[int, typer.Option(help="Number of the row; the first below the header is 1.", min=1, metavar="N")],
    model: Annotated[
        Path | None, typer.Option("--map", help="A map written by steer --map, instead of a fit.", metavar="MAP")
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
    model: Annotated[Path, typer.Argument(metavar="MAP", help="A map written by steer --map; - is standard input.")],
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
    epsilon: Annotated[
        float | None,
        typer.Option(
            help="Add Gaussian noise, with this epsilon for every row; needs --delta, --clip and --like. No sums "
            "without noise are kept on the disk then, so that a run cannot be resumed."
        ),
    ] = None,
    delta: Annotated[float | None, typer.Option(help="The delta of the noise, far below one over the rows.")] = None,
    clip: Annotated[
        float | None,
        typer.Option(help="Length of the longest row that is left as it is, in standard deviations of --like."),
    ] = None,
    resume: _Resume = False,
    checkpoint_every: _Every = 30.0,
    force: _Force = False,
    json: Json = False,
) -> None:
    """Run the job."""
    from ._moments import moments_file

    moments_file(
        rows,
        out=out,
        like=like,
        noise=(epsilon, delta, clip),
        resume=resume,
        checkpoint_every=checkpoint_every,
        force=force,
        as_json=json,
    )


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
    "FILE is a map that steer --map or fairsteer.persistence.save wrote, or a table to fit with the options of "
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


_MODEL_HELP = "A folder as transformers' save_pretrained writes it, or a .gguf file. Nothing is downloaded."
_Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Type of the weights; auto is that of the file. Moments are in double precision."),
]
_Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, mps.", metavar="DEVICE")]


@app.command(
    short_help="Moments of a language model's hidden states, from a table of texts.",
    help="Run a language model over a column of texts and write the moments of its hidden states: weight, mean and "
    "covariance of every class in every group. generate steers by them; in Python, "
    "FairSteeringTransformer().fit_moments and nearest_ideal do. Texts are read in pieces, and no text and no state is "
    "kept. Needs torch and transformers.",
    epilog="Example: fairsteer activations --model SmolLM2 --texts bios.csv --text text --target occupation "
    "--sensitive gender --layers 10,20 --out m.safetensors",
)
@expand(Reads)
def activations(
    reads: Reads,
    model: Annotated[Path, typer.Option(help=_MODEL_HELP, metavar="PATH")],
    texts: Annotated[Path, typer.Option(help=FILE_HELP.partition(";")[0] + ".", metavar="FILE")],
    text: Annotated[str, typer.Option(help="Column of the texts.", metavar="COLUMN")],
    layers: Annotated[
        list[str],
        typer.Option(
            help="Layers by name, by pattern (model.layers.*) or by number from 0; repeatable, or a,b.",
            metavar="LAYERS",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Write the moments to this .safetensors file; of several layers, m-LAYER.safetensors."
        ),
    ],
    target: Annotated[str | None, typer.Option(help="Column of the classes.", metavar="COLUMN")] = None,
    sensitive: Annotated[
        list[str] | None,
        typer.Option(help="Column of the groups; again, or a,b, for intersections.", metavar="COLUMN"),
    ] = None,
    pool: Annotated[
        Literal["mean", "last", "tokens"],
        typer.Option(help="What is a row: the mean of a text's tokens, the last one, or every one."),
    ] = "mean",
    covariance: Annotated[
        Literal["tied", "full", "diagonal"],
        typer.Option(help="One covariance per group, per class and group, or diagonal ones."),
    ] = "tied",
    max_tokens: Annotated[int, typer.Option(help="Tokens that a text is cut to.", min=1, metavar="N")] = 128,
    batch_size: Annotated[int, typer.Option(help="Texts that are read at once.", min=1, metavar="N")] = 16,
    dtype: _Dtype = "auto",
    device: _Device = "cpu",
    resume: _Resume = False,
    checkpoint_every: _Every = 30.0,
    force: _Force = False,
    json: Json = False,
) -> None:
    """Run the job."""
    from ._activations import TextColumns, activations_file

    groups = [part for one in sensitive or [] for part in one.split(",") if part]
    activations_file(
        reads,
        model=model,
        texts=texts,
        columns=TextColumns(text, target, groups),
        layers=layers,
        out=out,
        pool=pool,
        covariance=covariance,
        max_tokens=max_tokens,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        resume=resume,
        checkpoint_every=checkpoint_every,
        force=force,
        as_json=json,
    )


@app.command(
    short_help="What a language model writes before and after steering.",
    help="Continue a prompt as the model is, and with its hidden states steered, the texts beside each other. Needs "
    "torch and transformers.",
    epilog="Example: fairsteer generate --model SmolLM2 --map m.safetensors --prompt 'The nurse said that'",
)
def generate(
    model: Annotated[Path, typer.Option(help=_MODEL_HELP, metavar="PATH")],
    steering: Annotated[
        Path,
        typer.Option(
            "--map", help="Moments of activations, a map, or a ConceptSteering that was saved.", metavar="FILE"
        ),
    ],
    prompt: Annotated[list[str], typer.Option(help="Beginning of a text; repeatable.", metavar="TEXT")],
    group: Annotated[
        list[str] | None,
        typer.Option(help="Steer as for this group; repeatable. By default all, or the first three.", metavar="LABEL"),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(help="Layer to steer, by name, pattern or number; by default what FILE says.", metavar="LAYER"),
    ] = None,
    concept: Annotated[
        str | None, typer.Option(help="Of a ConceptSteering: the class to steer towards.", metavar="LABEL")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="0 changes nothing; 1 is the whole map, or one deviation.", metavar="S")
    ] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write.", min=1, metavar="N")] = 40,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token each time.", min=0, metavar="T")
    ] = 0.0,
    random_state: Annotated[int, typer.Option(help="Of the sampling, before and after.", metavar="N")] = 0,
    dtype: _Dtype = "auto",
    device: _Device = "cpu",
    json: Json = False,
) -> None:
    """Run the job."""
    from ._generate import generate_text

    generate_text(
        model=model,
        steering=steering,
        prompts=prompt,
        groups=group or [],
        layer=layer,
        concept=concept,
        strength=strength,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        random_state=random_state,
        dtype=dtype,
        device=device,
        as_json=json,
    )


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
