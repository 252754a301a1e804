"""The jobs behind the commands, from checked options to printed tables and written files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import StandardScaler

from fairsteer import persistence
from fairsteer.groups import GroupEncoder
from fairsteer.transformer import FairSteeringTransformer

from ._errors import UsageError
from ._evaluate import Comparison, cross_validate, deal_folds, quoting_warnings
from ._files import Replacement, TableWriter, check_output, check_target_folder, read_table
from ._mapfile import TableDescription
from ._problem import Problem, read_problem
from ._report import Reporter, name_group
from ._tabular import TableEncoder
from ._texts import HOW_TO_READ, INFERRED, NOISE, WHERE_NEXT

__all__ = ["SteerOptions", "apply_map", "demo", "steer_file"]

_CELLS_IN_A_PIECE = 4_000_000  # 32 MB of float64
_MIN_PIECE = 1024

_DEMO_FOLDS = 10


@dataclass(frozen=True)
class SteerOptions:
    """Options of ``fairsteer steer``.

    Attributes
    ----------
    file : Path
        Input table.
    target : str
        Column of the classes.
    sensitive : sequence of str
        Columns of the groups.
    drop, keep : sequence of str
        Columns to forget, and columns that are no features but appear in the output.
    out, model : Path or None
        Where to write the steered table and the map.
    overwrite : bool
        Whether `out` may be `file`.
    positive : str or None
        Positive class as text.
    reference_group : str or None
        Reference group as text, the parts of an intersection joined by commas.
    steering : dict
        The other parameters of `FairSteeringTransformer`.
    folds : int
        Number of folds of the cross-validation behind the table.
    min_rows : int
        A rate of a group that has fewer rows to compute it from takes no part in the gaps.
    max_categories : int
        Most 0/1 columns for one categorical column.
    """

    file: Path
    target: str
    sensitive: Sequence[str]
    drop: Sequence[str]
    keep: Sequence[str]
    out: Path | None
    model: Path | None
    overwrite: bool
    positive: str | None
    reference_group: str | None
    steering: dict[str, Any]
    folds: int
    min_rows: int
    max_categories: int

    @property
    def no_features(self) -> list[str]:
        """Columns that the user gave another part than that of a feature."""
        return [self.target, *self.sensitive, *self.drop, *self.keep]


def demo(report: Reporter) -> None:
    """Steer scikit-learn's diabetes data and print what changed.

    Parameters
    ----------
    report : Reporter
        Where to print.
    """
    data = load_diabetes(as_frame=True, scaled=False)
    features, sex = data.data.drop(columns="sex"), data.data[["sex"]].astype(int)
    y = (data.target > data.target.median()).to_numpy().astype(int)
    report.say(
        f"scikit-learn's diabetes data: {len(y)} patients, {features.shape[1]} measurements. "
        "Class: disease progression "
        "after one year above the median. Group: sex (coded 1 and 2), which is not one of the "
        "features.\n"
    )
    steering = FairSteeringTransformer(feature_transform=StandardScaler())
    folds = deal_folds(2 * sex["sex"].to_numpy() + y, _DEMO_FOLDS)
    with quoting_warnings(report.note):
        result = cross_validate(lambda _: features, y, sex, folds, steering)
        steering.fit(features, y, sensitive_features=sex)
    report.comparison(result, steering)
    report.say(HOW_TO_READ)
    report.say(NOISE)
    report.say(WHERE_NEXT)


def steer_file(options: SteerOptions, report: Reporter) -> None:
    """Print the table before and after, then write what was asked for.

    Parameters
    ----------
    options : SteerOptions
        What to do.
    report : Reporter
        Where to print.

    Raises
    ------
    UsageError
        For any input the user can put right; nothing has been written then.
    """
    _check_targets(options)
    frame = read_table(options.file)
    problem = read_problem(
        frame,
        target=options.target,
        sensitive=options.sensitive,
        others=[*options.drop, *options.keep],
        unknown_group=options.steering["unknown_group"],
        tell=report.note,
    )
    steering = _steering(options, problem)
    encoder = _encoder(options, problem.frame[problem.usable], report.note)
    encoder.tell_gaps(frame, report.note)
    with _library_problems():
        with quoting_warnings(lambda _: None):  # what there is to say is said of the fit of all rows
            result = _cross_validate(options, problem, steering, report)
        with quoting_warnings(report.note):
            features = encoder.encode(frame[problem.usable])
            steering.fit(features, problem.y, sensitive_features=problem.groups[problem.usable])
    report.comparison(result, steering)
    report.by_group(result)
    report.say(NOISE)
    if options.out is None and options.model is None:
        report.say("Nothing was written: --out writes the steered table, --model the map for new rows.")
        return
    description = TableDescription(encoder, options.target, tuple(options.sensitive), tuple(options.keep))
    _write(steering, description, frame, options.out, options.model, report)


def apply_map(map_file: Path, file: Path, out: Path, *, overwrite: bool, unknown_group: str, report: Reporter) -> None:
    """Steer the rows of a new table with a saved map.

    Parameters
    ----------
    map_file : Path
        What ``fairsteer steer --model`` wrote.
    file : Path
        New table, with the columns the map was fitted on.
    out : Path
        Where to write the steered rows.
    overwrite : bool
        Whether `out` may be `file`.
    unknown_group : {"error", "infer", "infer_hard"}
        Whether rows of groups that the map does not know are refused or steered by inferred groups. Rows
        without a group are steered the same way, under ``"error"`` as ``fairsteer steer`` was told.
    report : Reporter
        Where to print.

    Raises
    ------
    UsageError
        For any input the user can put right; nothing has been written then.
    """
    check_output(out, sources=[file, map_file], overwrite=overwrite)
    steering, description = _load_map(map_file)
    if unknown_group != "error":
        steering.set_params(unknown_group=unknown_group)
    known = steering.moments_.groups.tolist()  # as they were before small groups merged
    frame = read_table(file, text_columns=_text_columns(description, known))
    needed = [*(column.name for column in description.encoder.columns), *description.sensitive]
    absent = [name for name in needed if name not in frame.columns]
    if absent:
        raise UsageError(f"{file.name} lacks {len(absent)} columns that the map needs: {', '.join(absent)}.")
    groups = frame[list(description.sensitive)]
    _check_groups(groups, known, steering.unknown_group, refuse=unknown_group == "error", report=report)
    description.encoder.tell_gaps(frame, report.note)
    description.encoder.tell_unseen(frame, report.note)
    _write(steering, description, frame, out, None, report)


def _check_targets(options: SteerOptions) -> None:
    """Refuse paths that cannot be written before any work is done."""
    if options.out is not None:
        check_output(options.out, sources=[options.file], overwrite=options.overwrite)
    if options.model is not None:
        if options.model.suffix != ".safetensors":
            raise UsageError(f"the map {options.model} must end in .safetensors, which is its format.")
        check_target_folder(options.model)


def _steering(options: SteerOptions, problem: Problem) -> FairSteeringTransformer:
    reference_group = problem.group_named(options.reference_group)
    if reference_group is not None and options.steering["intervention"] != "affirmative":
        raise UsageError("--reference-group belongs to --intervention affirmative; add it.")
    parameters = {**options.steering, "reference_group": reference_group}
    least = parameters["min_cell_size"]
    if parameters["small_cells"] == "error":
        if small := problem.small_cells(least):
            raise UsageError(
                f"{len(small)} subgroups have fewer than {least} rows: {'; '.join(small[:5])}"
                f"{' ...' if len(small) > 5 else ''}. --small-cells pool lets them borrow from others, "
                "--small-cells merge makes small groups one; or lower --min-cell-size."
            )
        # The folds of the cross-validation have fewer rows, and are not what was asked about.
        parameters["min_cell_size"] = 0
    # Features of all units: without it shrinkage would take kilometres more seriously than children.
    return FairSteeringTransformer(feature_transform=StandardScaler(), **parameters)


def _encoder(options: SteerOptions, frame: pd.DataFrame, tell: Callable[[str], None]) -> TableEncoder:
    return TableEncoder.fit(frame, exclude=options.no_features, max_categories=options.max_categories, tell=tell)


def _cross_validate(
    options: SteerOptions, problem: Problem, steering: FairSteeringTransformer, report: Reporter
) -> Comparison:
    """Encode with what the training rows of every fold know, fit on them, score on the others."""
    frame = problem.frame[problem.usable]
    with report.progress("cross-validation", options.folds) as advance:
        return cross_validate(
            lambda train: _encoder(options, frame[train], lambda _: None).encode(frame),
            problem.y,
            problem.groups[problem.usable],
            deal_folds(problem.cells, options.folds),
            steering,
            pos_label=problem.class_named(options.positive),
            min_rows=options.min_rows,
            advance=advance,
        )


def _write(
    steering: FairSteeringTransformer,
    description: TableDescription,
    frame: pd.DataFrame,
    out: Path | None,
    model: Path | None,
    report: Reporter,
) -> None:
    """Write both files beside their targets first; they take their places only when both are complete."""
    with ExitStack() as stack:
        finished: list[tuple[Replacement, str]] = []
        if model is not None:
            replacement = stack.enter_context(Replacement(model))
            _save_map(steering, description, replacement.path)
            finished.append((replacement, f"the map of {len(steering.groups_)} groups"))
        if out is not None:
            replacement = stack.enter_context(Replacement(out))
            _write_table(steering, description, frame, replacement.path, report)
            finished.append((replacement, f"{len(frame)} steered rows"))
        for replacement, what in finished:
            replacement.commit()
            report.say(f"Wrote {what} to {replacement.target.name}.")


def _save_map(steering: FairSteeringTransformer, description: TableDescription, path: Path) -> None:
    try:
        persistence.save(steering, path, extra=description.to_json())
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(f"the map cannot be saved: {error}") from error


def _load_map(path: Path) -> tuple[FairSteeringTransformer, TableDescription]:
    try:
        steering, description = persistence.load(path), TableDescription.from_json(persistence.read_extra(path), path)
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    if not isinstance(steering, FairSteeringTransformer):
        raise UsageError(f"{path} holds a {type(steering).__name__}, not a map that fairsteer steer wrote.")
    return steering, description


def _write_table(
    steering: FairSteeringTransformer,
    description: TableDescription,
    frame: pd.DataFrame,
    path: Path,
    report: Reporter,
) -> None:
    """Steer and write piece by piece, so that only one piece of the output is in memory."""
    encoder, sensitive = description.encoder, list(description.sensitive)
    carried = [name for name in [*sensitive, description.target, *description.keep] if name in frame.columns]
    n_rows = max(_MIN_PIECE, _CELLS_IN_A_PIECE // max(1, len(encoder.encoded_names)))
    with (
        _library_problems(),
        quoting_warnings(lambda _: None),
        report.progress("steering", len(frame)) as advance,
        TableWriter(path, frame[carried], encoder.encoded_names) as writer,
    ):
        for start in range(0, len(frame), n_rows):
            rows = slice(start, start + n_rows)
            piece = frame.iloc[rows]
            writer.write(_steered(steering, encoder, piece, piece[sensitive]), rows)
            advance(len(piece))


def _steered(
    steering: FairSteeringTransformer,
    encoder: TableEncoder,
    piece: pd.DataFrame,
    groups: pd.DataFrame,
) -> NDArray[np.float64]:
    return np.asarray(steering.transform(encoder.encode(piece), sensitive_features=groups), dtype=np.float64)


def _check_groups(
    groups: pd.DataFrame, known: list[Any], unknown_group: str, *, refuse: bool, report: Reporter
) -> None:
    """Refuse groups the map has never seen unless they are to be inferred; say how many rows have none."""
    n_missing = int(groups.isna().any(axis=1).sum())
    unseen = [] if n_missing == len(groups) else _unseen(groups, known)
    name = " and ".join(groups.columns)
    if unseen and refuse:
        raise UsageError(
            "the map does not know the groups "
            f"{'; '.join(unseen[:5])}{' ...' if len(unseen) > 5 else ''} of {name} (it knows "
            f"{'; '.join(name_group(label) for label in known)}); --unknown-group infer steers "
            "their rows by the likeliest groups."
        )
    if n_missing or unseen:
        what = [f"{n_missing} rows have no {name}"] * bool(n_missing) + [f"{len(unseen)} groups are new"] * bool(unseen)
        report.note(f"{' and '.join(what)}: {INFERRED[unknown_group]}.")


def _unseen(groups: pd.DataFrame, known: list[Any]) -> list[str]:
    labels = GroupEncoder().fit(groups).groups_.tolist()
    return [name_group(label) for label in labels if label not in set(known)]


def _text_columns(description: TableDescription, groups: list[Any]) -> list[str]:
    """Columns that were text at the fit: a csv file must not turn their codes into numbers."""
    parts = [label if isinstance(label, tuple) else (label,) for label in groups]
    return description.encoder.text_columns + [
        name for j, name in enumerate(description.sensitive) if all(isinstance(part[j], str) for part in parts)
    ]


@contextmanager
def _library_problems() -> Iterator[None]:
    """Input that only the estimators can judge: their message is the sentence."""
    try:
        yield
    except (ValueError, np.linalg.LinAlgError) as error:
        raise UsageError(str(error)) from error
