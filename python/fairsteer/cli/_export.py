"""The job of ``fairsteer export``: a map for programs that know nothing of fairsteer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairsteer.export import export_affine, export_onnx

from . import UsageError, count
from ._columns import label_text
from ._fitting import library_problems, read_problem
from ._options import Settings
from ._printing import Reporter
from ._reading import format_of
from ._saved import load_saved
from ._writing import as_path, check_output, is_standard_output, is_stream

__all__ = ["export_map"]


def export_map(settings: Settings, given: list[str], *, to: str, out: Path, force: bool, as_json: bool = False) -> None:
    """Export a saved map, or the map of a table.

    Parameters
    ----------
    settings : Settings
        The file is the map, or the table to fit.
    given : list of str
        Options of a fit that were given.
    to : {"onnx", "affine"}
        What the map is written as.
    out : Path
        The .onnx file, or a folder that is new or empty.
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
    if to == "onnx":
        if out.suffix != ".onnx" and not is_stream(out):
            raise UsageError(f"{out} must end in .onnx, which is its format.")
        check_output(out, sources=[settings.file], force=force)
    steering = _steering(settings, given, report)
    try:
        if to == "onnx":
            export_onnx(steering, out)
        else:
            export_affine(steering, out)
    except (ImportError, OSError, TypeError, ValueError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UsageError(f"the map cannot be exported: {' '.join(str(error).split())}") from error
    groups, d = steering.groups_.tolist(), len(steering.get_feature_names_out())
    codes = "; ".join(f"{code} {label_text(label)}" for code, label in enumerate(groups))
    report.wrote(f"the maps of {count(len(groups), 'group')} and {count(d, 'feature')}", out, f". Groups: {codes}.")
    report.result("export", form=to, groups=groups, features=steering.get_feature_names_out())


def _steering(settings: Settings, given: list[str], report: Reporter) -> Any:
    piped_table = str(settings.file) == "-" and not {"target", "sensitive"}.isdisjoint(given)
    if format_of(settings.file) is not None or piped_table:
        for option in ("target", "sensitive"):
            if option not in given:
                raise UsageError(
                    f"{settings.file} is a table, whose map has yet to be fitted: --{option} is needed, as for steer."
                )
        problem = read_problem(settings, report, steers_all=settings.unknown_group not in (None, "error"))
        return problem.fit(report)
    saved, _ = load_saved(settings.file, "map")
    steering = getattr(saved, "steering_", saved)  # a classifier moves rows by its steering; its rule is no map
    changed = {"unknown_group": settings.unknown_group, "strength": settings.strength}
    changed = {name: value for name, value in changed.items() if name in given}
    others = [name for name in given if name not in changed]
    if others:
        raise UsageError(f"--{others[0].replace('_', '-')} belongs to a fit, and {settings.file} is fitted already.")
    with library_problems():
        return steering.set_params(**changed) if changed else steering
