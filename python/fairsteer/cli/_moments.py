"""The jobs of ``fairsteer moments`` and ``fairsteer merge``: sites that share sums instead of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairsteer._utils.labels import label_text
from fairsteer.moments import SubgroupMoments
from fairsteer.moments._coordinates import Coordinates
from fairsteer.streams import Reduction, RowBatch
from fairsteer.transformer._streaming import RowReader

from . import UsageError, count
from ._fitting import Problem, library_problems, memory_of, quoting_warnings, read_problem, steering_of
from ._large import LargeTable
from ._options import Maps, Rows, Settings
from ._printing import Reporter, fit_values
from ._question import group_named
from ._saved import load_saved, write_saved
from ._steer import write_map
from ._streams import Checkpoint
from ._table import NumericColumn, TableDescription
from ._writing import as_path, check_outputs, is_standard_output, is_stream, writing

__all__ = ["merge_files", "moments_file"]

# Bytes that the sums of all pairs of features may take, three a subgroup.
_MOST_BYTES = 2**30
# Times that one site's spread of a feature may be another's before somebody should look at the units.
_UNITS = 30.0


class _Noise(NamedTuple):
    """What noise is to promise, and what everybody may know of the rows."""

    epsilon: float
    delta: float
    clip: float
    like: SubgroupMoments
    """Its classes, groups and scale are taken; those of the rows would tell of them."""


class _Sums(Reduction[SubgroupMoments]):
    """Moments of the features as they are, or of clipped ones in a scale that is known."""

    def __init__(self, reader: RowReader, groups: list[Any], noise: _Noise | None = None) -> None:
        self._reader, self._groups, self._noise = reader, groups, noise

    def start(self) -> SubgroupMoments:
        names = self._reader.names
        if self._noise is not None:
            return SubgroupMoments(
                len(names),
                classes=self._reader.classes,
                groups=self._groups,
                covariance="full",
                feature_names=names,
                coordinates=(False, *_standard(self._noise.like)),
                clip=self._noise.clip,
            )
        return SubgroupMoments(
            len(names),
            classes=self._reader.classes,
            groups=self._groups,
            covariance="full",
            feature_names=names,
            rescalable=True,
        )

    def add(self, state: SubgroupMoments, batch: RowBatch) -> SubgroupMoments:
        rows, y, groups, weight = self._reader.read(batch)
        if self._noise is not None:
            rows = rows * state.coordinates.scale + state.coordinates.shift
        return state.update(rows, y, groups, weight)

    def merge(self, first: SubgroupMoments, second: SubgroupMoments) -> SubgroupMoments:
        return first.merge(second)


def moments_file(
    rows: Rows,
    *,
    out: Path,
    like: Path | None,
    noise: tuple[float | None, float | None, float | None],
    resume: bool,
    checkpoint_every: float,
    force: bool,
    as_json: bool = False,
) -> None:
    """Write the moments of a table.

    Parameters
    ----------
    rows : Rows
        The table, and what its columns are.
    out : Path
        Where to write.
    like : Path or None
        Moments or a map whose columns are encoded as these are to be.
    noise : tuple of float or None
        Epsilon, delta and the length to which rows are clipped, or nothing of it.
    resume : bool
        Whether the run that was interrupted is continued.
    checkpoint_every : float
        Seconds between checkpoints of a table that is read in pieces; with noise there are none.
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
    if out.suffix != ".safetensors" and not is_stream(out):
        raise UsageError(f"the moments {out} must end in .safetensors, which is their format.")
    check_outputs([("--out", out)], sources=[rows.file, *([like] if like else [])], force=force)
    memory = memory_of(rows, out, resume=resume)
    known = None if like is None else _description(like)
    private = _noise(noise, like)
    if private is not None and resume:
        raise UsageError(
            "--resume continues from sums on the disk, and with noise none are kept there: leave it out, and the rows "
            "are read again from the first."
        )
    settings = Settings(**vars(rows))
    problem = read_problem(settings, report, steers_all=False, part=True, like=known, memory=memory)
    n_features = len(problem.encoder.encoded_names)
    n_bytes = 3 * 8 * problem.question.counts.size * n_features**2
    if n_bytes > _MOST_BYTES:
        raise UsageError(
            f"the moments of {count(n_features, 'feature')} in {count(problem.question.counts.size, 'subgroup')} would "
            f"take {n_bytes / 2**30:.1f} GiB; --drop columns, or add up SubgroupMoments in Python."
        )
    checkpoint = problem.checkpoint(out, seconds=checkpoint_every, resume=resume)
    if private is not None:  # sums without noise are never on the disk
        checkpoint = None
    moments = _moments(problem, report, checkpoint, private)
    extra = {**problem.description.to_json(), "filled": _missing(problem), "source": problem.table.name}
    if private is not None and known is not None:
        try:
            with library_problems():
                moments = moments.privatize(private.epsilon, private.delta)
        except ImportError as error:
            raise UsageError(str(error)) from error
        extra = {**known.to_json(), "filled": {}, "source": problem.table.name}
    with writing(out) as output:
        write_saved(moments, extra, output.file, "the moments")
        output.commit()
    if checkpoint is not None:
        checkpoint.remove()
    report.say(moments.subgroup_table() + "\n")
    report.wrote(
        f"the moments of {count(round(float(moments.weights.sum())), 'row')} and {count(n_features, 'feature')}",
        out,
        ". No row is in it; "
        + (
            "subgroups of few rows tell much of them."
            if private is None
            else "whether any one row is behind it is hidden with "
            f"epsilon={private.epsilon:g}, delta={private.delta:g}. Every further file of the same rows adds to both."
        ),
    )
    report.result("moments", **subgroups_of(moments))


def _noise(noise: tuple[float | None, float | None, float | None], like: Path | None) -> _Noise | None:
    epsilon, delta, clip = noise
    if epsilon is None and delta is None and clip is None:
        return None
    if epsilon is None or delta is None or clip is None:
        raise UsageError("noise takes all three: --epsilon, --delta and --clip.")
    if like is None:
        raise UsageError(
            "noise needs --like: moments or a map of rows that need no hiding. Categories, medians, scale, classes and "
            "groups are taken from there, for those of this table would tell of its rows."
        )
    if not 0 < epsilon < np.inf or not 0 < delta < 1 or not 0 < clip < np.inf:
        raise UsageError(
            f"--epsilon and --clip must be positive and --delta between 0 and 1, not {epsilon:g}, {clip:g} and "
            f"{delta:g}."
        )
    value = load_saved(like, "file")[0]
    moments = getattr(value, "moments_", value)
    if isinstance(moments.coordinates, Coordinates):  # those of a map that was standardised, or have noise themselves
        moments = _in_units(moments, moments.coordinates)
    return _Noise(epsilon, delta, clip, moments)


def _in_units(moments: SubgroupMoments, coordinates: Coordinates) -> SubgroupMoments:
    """Give moments of the features as they are, for their scale alone."""
    inverse = 1 / coordinates.scale
    return SubgroupMoments.from_statistics(
        moments.weights,
        (moments.means - coordinates.shift) * inverse,
        moments.covariances * (inverse if moments.covariance == "diagonal" else np.outer(inverse, inverse)),
        classes=moments.classes,
        groups=moments.groups,
        covariance=moments.covariance,
    )


def _moments(
    problem: Problem, report: Reporter, checkpoint: Checkpoint | None, noise: _Noise | None
) -> SubgroupMoments:
    with library_problems(), quoting_warnings(report.note):
        if not isinstance(problem.source, LargeTable):
            classes, labels = _labels(noise, problem.question.classes, problem.question.labels)
            sums = _Sums(_reader(problem, classes, labels), labels, noise)
            batch = RowBatch(problem.features, problem.question.y, problem.groups)
            return sums.add(sums.start(), batch)
        stream = problem.stream(report, checkpoint)
        classes, labels = _labels(noise, *stream.labels())
        return stream.reduce(_Sums(_reader(problem, classes, labels), labels, noise))


def _labels(noise: _Noise | None, classes: list[Any], labels: list[Any]) -> tuple[list[Any], list[Any]]:
    """Classes and groups of the sums: those that are known where there is noise, which the table's must be among."""
    if noise is None:
        return classes, labels
    known = noise.like.classes.tolist(), noise.like.groups.tolist()
    for what, there, found in zip(("class", "group"), known, (classes, labels), strict=True):
        if others := [label for label in found if label not in there]:
            raise UsageError(
                f"the {what} {label_text(others[0])} is none of those of --like, which is where the labels come from "
                "if there is noise."
            )
    return known


def _reader(problem: Problem, classes: list[Any], labels: list[Any]) -> RowReader:
    from fairsteer._utils.labels import label_array
    from fairsteer.groups import GroupEncoder

    encoder = GroupEncoder().fit(problem.groups)
    encoder.groups_ = label_array(labels)
    return RowReader(problem.encoder.encoded_names, np.array(classes), encoder, False)


def _missing(problem: Problem) -> dict[str, bool]:
    """Columns of numbers whose gaps were filled."""
    found = problem.encoder.gaps(problem.table).missing
    whole = len(problem.table) == problem.n_rows
    return {
        column.name: bool(found[column.name]) or not whole
        for column in problem.encoder.columns
        if isinstance(column, NumericColumn)
    }


def _description(path: Path) -> TableDescription:
    return TableDescription.from_json(load_saved(path, "file")[1] or None, path)


# ---- merging


def merge_files(maps: Maps, files: Sequence[Path], *, out: Path, force: bool, as_json: bool = False) -> None:
    """Fit a map to the moments of several tables.

    Parameters
    ----------
    maps : Maps
        What is fitted.
    files : sequence of Path
        What ``fairsteer moments`` wrote.
    out : Path
        Where to write the map.
    force : bool
        Whether a file that exists may be replaced.
    as_json : bool, default=False
        Whether one JSON object is printed instead of text.

    Raises
    ------
    UsageError
        If the moments do not belong together, with what must agree; nothing has been written then.
    """
    out = as_path(out) or out
    report = Reporter(to_stderr=is_standard_output(out), as_json=as_json)
    if out.suffix != ".safetensors" and not is_stream(out):
        raise UsageError(f"the map {out} must end in .safetensors, which is its format.")
    check_outputs([("--out", out)], sources=files, force=force)
    loaded = [(path, *load_saved(path, "file")) for path in files]
    descriptions = []
    for path, moments, extra in loaded:
        if not isinstance(moments, SubgroupMoments):
            raise UsageError(f"{path} holds a {type(moments).__name__}, not moments that fairsteer moments wrote.")
        descriptions.append(TableDescription.from_json(extra or None, path))
    for (path, _, extra), description in zip(loaded[1:], descriptions[1:], strict=True):
        _check_alike(files[0], descriptions[0], loaded[0][2], path, description, extra)
    total: SubgroupMoments = loaded[0][1]
    with library_problems():
        for _, moments, _ in loaded[1:]:
            total = total.merge(moments)
    _tell_units(loaded, report)
    with library_problems(), quoting_warnings(report.note), report.busy("fitting"):
        reference = group_named(maps.reference_group, total.groups.tolist())
        steering = steering_of(maps, reference, maps.min_subgroup_size)
        scaled = total.rescaled(*_standard(total)) if total.rescalable else total
        steering.fit_moments(scaled)
    kept = [name for name in descriptions[0].keep if all(name in one.keep for one in descriptions)]
    with writing(out) as output:
        write_map(steering, replace(descriptions[0], keep=tuple(kept)), output.file)
        output.commit()
    report.say(total.subgroup_table() + "\n")
    report.say(
        f"KL divergence of the nearest ideal distribution: {steering.kl_divergence_:.4g} nats "
        f"({steering.map_type_} maps).\n"
    )
    report.wrote(f"the map of {count(len(steering.groups_), 'group')}", out, f", from {count(len(files), 'file')}.")
    report.result("merge", **subgroups_of(total), fit=fit_values(steering))


def subgroups_of(moments: SubgroupMoments) -> dict[str, Any]:
    """Rows of every subgroup, for machines."""
    labels = [(label, group) for label in moments.classes.tolist() for group in moments.groups.tolist()]
    return {
        "features": moments.feature_names,
        "subgroups": [
            {"class": label, "group": group, "rows": float(n)}
            for (label, group), n in zip(labels, moments.weights.ravel(), strict=True)
        ],
    }


def _standard(moments: SubgroupMoments) -> tuple[Any, Any]:
    """Scale and shift that a StandardScaler would find on the rows."""
    total = moments.weights.sum()
    mean = np.einsum("ka,kaj->j", moments.weights, moments.means) / total
    spread = np.einsum("ka,kaj->j", moments.weights, (moments.means - mean) ** 2) / total
    within = moments.model.variances(moments.covariances)
    weights = moments.model.in_cells(moments.weights)
    variance = spread + np.tensordot(weights, within, axes=weights.ndim) / total
    eps = np.finfo(np.float64).eps
    constant = variance <= total * eps * variance + (total * mean * eps) ** 2
    scale = 1 / np.where(constant, 1.0, np.sqrt(variance))
    return scale, -mean * scale


def _check_alike(
    first_path: Path,
    first: TableDescription,
    first_extra: dict[str, Any],
    path: Path,
    other: TableDescription,
    extra: dict[str, Any],
) -> None:
    """Refuse moments of tables that were read or encoded in different ways."""
    ways_out = f"Write {path.name} again with --like {first_path.name}, which encodes its columns in the same way."
    if first.target != other.target:
        raise UsageError(
            f"{path.name} is of the target {other.target!r}, {first_path.name} of {first.target!r}; name the column of "
            "the classes alike."
        )
    if first.sensitive != other.sensitive:
        raise UsageError(
            f"{path.name} is of groups by {', '.join(other.sensitive)}, {first_path.name} by "
            f"{', '.join(first.sensitive)}; give --sensitive the same columns, in the same order."
        )
    names, others = ([column.name for column in one.encoder.columns] for one in (first, other))
    if set(names) != set(others):
        lacks = [name for name in names if name not in others]
        has = [name for name in others if name not in names]
        parts = [f"lacks {', '.join(map(repr, lacks[:5]))}"] * bool(lacks)
        parts += [f"has {', '.join(map(repr, has[:5]))} besides"] * bool(has)
        raise UsageError(
            f"{path.name} is of other features than {first_path.name}: it {' and '.join(parts)}. The features must be "
            "the same; --drop leaves columns out."
        )
    if names != others:
        raise UsageError(
            f"the features of {path.name} are in another order than those of {first_path.name} ({others[0]!r} first "
            f"instead of {names[0]!r}, say). {ways_out}"
            if names[0] != others[0]
            else f"the features of {path.name} are in another order than those of {first_path.name}. {ways_out}"
        )
    filled = {
        name for one in (first_extra, extra) for name, was in (one.get("filled") or {}).items() if was is not False
    }
    for column, same in zip(first.encoder.columns, other.encoder.columns, strict=True):
        if isinstance(column, NumericColumn) and isinstance(same, NumericColumn):
            if column.fill != same.fill and column.name in filled:
                raise UsageError(
                    f"missing values of {column.name!r} became {same.fill:g} in {path.name} and {column.fill:g} in "
                    f"{first_path.name}. {ways_out}"
                )
        elif column != same:
            what = f"the column {column.name!r} is encoded differently in {path.name} and {first_path.name}"
            if isinstance(column, NumericColumn) or isinstance(same, NumericColumn):
                raise UsageError(f"{what}: numbers in one, categories in the other. {ways_out}")
            found = [one.categories for one in (column, same)]
            listed = ["; ".join(map(label_text, one[:5])) + ("; …" if len(one) > 5 else "") for one in found]
            raise UsageError(f"{what}: its categories are {listed[1]} and {listed[0]}. {ways_out}")


def _tell_units(loaded: Sequence[tuple[Path, SubgroupMoments, Any]], report: Reporter) -> None:
    """Say which features spread so differently in two files that their units may differ."""
    spreads = np.array([1 / _standard(moments)[0] for _, moments, _ in loaded])
    largest, smallest = spreads.max(axis=0), spreads.min(axis=0)
    names = loaded[0][1].feature_names
    for j in np.flatnonzero(largest > _UNITS * smallest)[:3].tolist():
        high, low = loaded[int(spreads[:, j].argmax())][0], loaded[int(spreads[:, j].argmin())][0]
        report.note(
            f"{'feature ' + str(j) if names is None else repr(names[j])} has standard deviation {largest[j]:.3g} in "
            f"{high.name} and {smallest[j]:.3g} in {low.name}: is it in the same unit in both?"
        )
