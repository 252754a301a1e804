"""``fairsteer export``: a saved map for programs that know nothing of fairsteer."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from fairsteer import persistence
from fairsteer.export import export_affine, export_onnx

from ._errors import UsageError
from ._files import check_target_folder
from ._report import Reporter, name_group

__all__ = ["EXPORT_HELP", "export"]

EXPORT_HELP = (
    "Write a saved map as an ONNX graph, or as one affine map A_, B_ for each group.\n\n"
    "Any map that fairsteer.persistence.save wrote will do. Rows must come as the map takes them: the features without "
    "the sensitive columns, categories as the 0/1 columns of steer."
)


class Form(str, Enum):
    """What the map is written as."""

    onnx = "onnx"
    affine = "affine"


def export(
    model: Annotated[Path, typer.Argument(metavar="MAP", help="A map written by steer --model or persistence.save.")],
    to: Annotated[Form, typer.Option(help="onnx: one file; affine: a folder of files that EasySteer loads.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .onnx file, or a folder that is new or empty.")],
) -> None:
    """Check the paths, export and say what was written."""
    report = Reporter()
    if to is Form.onnx:
        _check_onnx(out, model)
    steering = _load(model)
    try:
        if to is Form.onnx:
            export_onnx(steering, out)
        else:
            export_affine(steering, out)
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise UsageError(f"the map cannot be exported: {error}") from error
    groups, d = steering.groups_.tolist(), len(steering.get_feature_names_out())
    codes = "; ".join(f"{code} {name_group(label)}" for code, label in enumerate(groups))
    report.say(f"Wrote the maps of {len(groups)} groups and {d} features to {out.name}. Groups: {codes}.")


def _check_onnx(out: Path, model: Path) -> None:
    if out.suffix != ".onnx":
        raise UsageError(f"{out} must end in .onnx, which is its format.")
    check_target_folder(out)
    if out.exists() and model.exists() and out.samefile(model):
        raise UsageError(f"{out} is the map itself; name another file.")


def _load(path: Path) -> Any:
    try:
        saved = persistence.load(path)
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    return getattr(saved, "steering_", saved)  # a classifier moves rows by its steering; its rule is no map
