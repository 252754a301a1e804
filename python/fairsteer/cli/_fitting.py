"""From a file and settings to numbers, groups and a transformer: what every command that fits begins with."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from fairsteer._utils.labels import label_text
from fairsteer.classifier import IdealDistributionClassifier
from fairsteer.transformer import FairSteeringTransformer
from fairsteer.transformer._streaming import sampling_error

from . import UsageError, count
from ._columns import Reading, label_parts
from ._large import AnyTable, LargeTable, distinct_rows, open_table
from ._measured import MeasuredRows, evenly_spaced, most_measured
from ._options import Alignment, Maps, Reads, Settings, UnknownGroup, check_separator, parse_memory, parse_shrinkage
from ._printing import Reporter
from ._question import Question, check_columns, read_question
from ._reading import Table
from ._streams import Checkpoint, TableRows, usable_rows
from ._table import CategoricalColumn, FeatureColumn, NumericColumn, TableDescription, TableEncoder
from ._writing import is_stream

__all__ = [
    "INFERRED",
    "Problem",
    "affords_alignment",
    "library_problems",
    "listed",
    "measured_rows",
    "quoting_warnings",
    "read_problem",
    "reading_of",
    "tell_of_fit",
]

# How rows without a known group are steered, by `unknown_group`.
INFERRED = {
    "infer": "steered by the maps of all groups, weighted by how likely each group is for the row",
    "infer_hard": "steered by the map of the group that is likeliest for the row",
}
# Rows that describe a table larger than the memory it may take: their number, and the part of it that they may take.
_FEWEST_SAMPLED, _MOST_SAMPLED, _SAMPLE_SHARE = 1000, 100_000, 16
# Moments that are in memory while folds of folds are fitted: those of all rows, of the fold, of the fold within it.
_MOMENTS_OF_ALIGNMENT = 6
_FAR = 2.0  # standard deviations of a feature in a group


@dataclass(frozen=True)
class Problem:
    """A file made ready for a fit.

    Attributes
    ----------
    settings : Settings
        With the columns that are meant, one by one.
    source : Table or LargeTable
        The file.
    table, usable : Table
        The file, or of one that is larger than the memory it may take evenly spaced rows; and those of these rows with
        a class and a group.
    n_rows : int
        Rows of the file.
    question : Question
        Its classes and groups.
    encoder : TableEncoder
        Its features.
    steering : FairSteeringTransformer
        Not fitted.
    """

    settings: Settings
    source: AnyTable
    n_rows: int
    table: Table
    usable: Table
    question: Question
    encoder: TableEncoder
    steering: FairSteeringTransformer

    @cached_property
    def features(self) -> pd.DataFrame:
        """Features of the usable rows, as float64."""
        return self.encoder.encode(self.usable)

    @cached_property
    def measured(self) -> MeasuredRows:
        """Rows that gaps are measured on."""
        question, groups = self.question, self.groups
        most = self.settings.measured_rows
        if most is None:
            most = most_measured(len(self.encoder.encoded_names), len(question.classes))
        chosen = evenly_spaced(question.cells, most)
        if chosen.all():
            return MeasuredRows(self.usable, self.features, question.y, groups, self.encoder)
        table = self.usable.where(chosen)
        if isinstance(self.source, Table):
            features = self.features[chosen].reset_index(drop=True)
        else:  # nobody needs those of the others
            features = self.encoder.encode(table)
        return MeasuredRows(table, features, question.y[chosen], groups[chosen].reset_index(drop=True), self.encoder)

    @property
    def groups(self) -> pd.DataFrame:
        """Groups of the usable rows."""
        return self.question.known_groups

    @property
    def pos_label(self) -> Any:
        """The positive class that was named; None for the default."""
        return self.question.class_named(self.settings.pos_label)

    @property
    def carried(self) -> list[str]:
        """Columns that pass through to the output."""
        keep = [*self.settings.keep, *self.encoder.identifiers]
        return [*self.settings.sensitive, self.settings.target, *keep]

    @property
    def description(self) -> TableDescription:
        """What a saved map must know of the file."""
        return TableDescription(
            encoder=self.encoder,
            target=self.settings.target,
            sensitive=tuple(self.settings.sensitive),
            keep=(*self.settings.keep, *self.encoder.identifiers),
            na_values=tuple(listed(self.settings.na_values)),
            strict_na=self.settings.strict_na,
        )

    def fit(
        self, report: Reporter, align: Alignment | None = None, checkpoint: Checkpoint | None = None
    ) -> FairSteeringTransformer | IdealDistributionClassifier:
        """Fit the transformer, or with `align` the Bayes rule with aligned scores, quoting warnings."""
        fitted: FairSteeringTransformer | IdealDistributionClassifier = self.steering
        if align is not None:
            fitted = IdealDistributionClassifier(steering=self.steering, score_alignment=align)
        with library_problems(), quoting_warnings(report.note):
            if isinstance(self.source, LargeTable):
                fitted.fit(self.stream(report, checkpoint))
                if isinstance(fitted, IdealDistributionClassifier):
                    _tell_of_sample(fitted, report)
                return fitted
            with report.busy("fitting"):
                fitted.fit(self.features, self.question.y, sensitive_features=self.groups)
        return fitted

    def checkpoint(self, output: Path | None, *, seconds: float, resume: bool) -> Checkpoint | None:
        """Say where the moments are kept while a large table is read; nowhere for others, and for pipes."""
        if not isinstance(self.source, LargeTable) or output is None or is_stream(output):
            return None
        files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in self.source.files]
        # The memory says what the pieces are, and these what is rounded.
        inputs = {"files": files, "memory": self.source.memory, "columns": self.description.to_json()}
        return Checkpoint(output, inputs, seconds=seconds, resume=resume)

    def stream(self, report: Reporter, checkpoint: Checkpoint | None = None) -> TableRows:
        """Give all usable rows of a large table as the library reads them."""
        assert isinstance(self.source, LargeTable)
        parts = label_parts(self.question.labels, len(self.settings.sensitive))
        return TableRows(
            self.source,
            self.n_rows,
            self.encoder,
            target=self.settings.target,
            sensitive=self.settings.sensitive,
            classes=self.question.classes,
            parts=parts,
            report=report,
            checkpoint=checkpoint,
        )


def read_problem(
    settings: Settings,
    report: Reporter,
    *,
    steers_all: bool,
    part: bool = False,
    like: TableDescription | None = None,
    memory: int | None = None,
) -> Problem:
    """Read a file and decide what is fitted.

    Parameters
    ----------
    settings : Settings
        What the user said.
    report : Reporter
        Where notes go.
    steers_all : bool
        Whether all rows of the file will be steered, those without a group too.
    part : bool, default=False
        Whether the rows of other files will be added.
    like : TableDescription, default=None
        How the columns of another file were encoded, so that these are encoded alike.
    memory : int, default=None
        Bytes that the file may take; None: as the settings say.

    Returns
    -------
    Problem

    Raises
    ------
    UsageError
        For any input the user can put right.
    """
    memory = parse_memory(settings.memory) if memory is None else memory
    reading = reading_of(settings) if like is None else like.reading(reading_of(settings))
    with report.busy(f"reading {settings.file.name}"):
        source = open_table(settings.file, reading, report.note, memory)
    settings = replace(
        settings,
        sensitive=_columns(settings.sensitive, source.names),
        drop=_columns(settings.drop, source.names),
        keep=_columns(settings.keep, source.names),
        categorical=_columns(settings.categorical, source.names),
    )
    roles = {
        "--target": [settings.target],
        "--sensitive": settings.sensitive,
        "--drop": settings.drop,
        "--keep": settings.keep,
        "--categorical": settings.categorical,
    }
    check_columns(source, roles)
    if like is not None:
        check_has(source, [column.name for column in like.encoder.columns])
    table, n_rows = _rows_in_memory(source, report, memory)
    of_all = table if isinstance(source, Table) else distinct_rows(source, settings.sensitive)[0]
    incomplete = bool(np.any([of_all.column(name).is_missing for name in settings.sensitive]))
    unknown_group: UnknownGroup = settings.unknown_group or ("infer" if incomplete and steers_all else "error")
    if incomplete and steers_all and unknown_group == "error":
        raise UsageError(
            f"some rows have no {' and '.join(map(repr, settings.sensitive))}, and --unknown-group error refuses them; "
            "infer steers them by the likeliest groups."
        )
    question = read_question(
        table,
        target=settings.target,
        sensitive=settings.sensitive,
        inferred=INFERRED[unknown_group] if steers_all and unknown_group != "error" else "",
        tell=report.note,
        part=part,
    )
    steering = _steering(settings, question, unknown_group)
    question.class_named(settings.pos_label)  # refuses what is none
    usable = table if question.usable.all() else table.where(question.usable)
    if like is not None:
        encoder = like.encoder
    else:
        with report.busy("looking at columns"):
            encoder = TableEncoder.fit(
                usable,
                exclude=[settings.target, *settings.sensitive, *settings.drop, *settings.keep],
                categorical=settings.categorical,
                max_categories=settings.max_categories,
                tell=report.note,
            )
        if isinstance(source, LargeTable) and len(table) < n_rows:
            encoder = _of_all_rows(source, encoder, usable, question, settings, report)
    encoder.tell_gaps(encoder.gaps(table), report.note, unseen=like is not None)
    encoder.tell_leaks(usable, question.y, report.note)
    return Problem(settings, source, n_rows, table, usable, question, encoder, steering)


def _tell_of_sample(fitted: IdealDistributionClassifier, report: Reporter) -> None:
    """Say on how many rows scores were aligned, and what that may cost."""
    moments = fitted.steering_.moments_
    n_sampled, error = sampling_error(moments.sizes, moments.n_features)
    if error:
        report.note(
            f"scores are aligned on {n_sampled:,} of {moments.sizes.sum():,.0f} rows, evenly spaced in every class and "
            f"group: in each, the share of rows above any score is within {error:.2g} of that of all its rows (with "
            "95 % confidence for all of them, as of a random sample)."
        )


def _of_all_rows(
    source: LargeTable, encoder: TableEncoder, sample: Table, question: Question, settings: Settings, report: Reporter
) -> TableEncoder:
    """Categories of all rows instead of those of some, and the medians of all where some have gaps.

    A median lies between two quantiles of the sample, nearly always: of a pass over all rows it takes the number of
    values below the lower one, and those between the two.
    """
    found: list[FeatureColumn] = list(encoder.columns)
    counts: dict[int, Counter[Any]] = {}
    missing: dict[int, bool] = {}
    brackets: dict[int, Bracket] = {}
    for i, described in enumerate(found):
        column = sample.column(described.name)
        if isinstance(described, CategoricalColumn):
            counts[i], missing[i] = Counter(), False
        elif column.is_missing.any():
            values = column.numbers()
            brackets[i] = Bracket.of(values[~np.isnan(values)])
    if not counts and not brackets:
        return encoder
    parts = label_parts(question.labels, len(settings.sensitive))
    names = [settings.target, *settings.sensitive, *(found[i].name for i in (*counts, *brackets))]
    with report.rows("categories and medians", None) as advance:
        for piece in source.pieces(names, n_numbers=len(names)):
            advance(len(piece))
            usable = usable_rows(piece, settings.target, settings.sensitive, parts)
            rows = piece if usable.all() else piece.where(usable)
            for i in counts:
                column = rows.column(found[i].name)
                missing[i] |= bool(column.is_missing.any())
                known = found[i]
                assert isinstance(known, CategoricalColumn)
                kept = column.labels(known.categories)[~column.is_missing]
                counts[i].update(kept.tolist())
            for i, bracket in brackets.items():
                bracket.add(rows.column(found[i].name).numbers())
    for i, of_column in counts.items():
        # The most frequent first, as they are of a table in memory; those of the sample before others as frequent.
        order = [value for value, _ in of_column.most_common(settings.max_categories)]
        found[i] = CategoricalColumn(found[i].name, tuple(order), missing[i])
    for i, bracket in brackets.items():
        found[i] = NumericColumn(found[i].name, bracket.median())
    return TableEncoder(tuple(found), encoder.identifiers)


@dataclass
class Bracket:
    """Values between two numbers, and how many lie below and above: what the median of many rows takes.

    Attributes
    ----------
    low, high : float
        Quantiles of some of the values.
    guess : float
        Their median, for when the median of all lies outside.
    """

    low: float
    high: float
    guess: float
    below: int = 0
    above: int = 0
    between: list[NDArray[np.float64]] = field(default_factory=list)

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Bracket:
        """Bracket that holds the median of many values if these are some of them, nearly surely."""
        margin = 2.5 / np.sqrt(len(values))  # five standard deviations of the rank of a median
        low, median, high = np.quantile(values, [max(0.0, 0.5 - margin), 0.5, min(1.0, 0.5 + margin)])
        return cls(float(low), float(high), float(median))

    def add(self, values: NDArray[np.float64]) -> None:
        """Add values, NaN where they are missing."""
        self.below += int((values < self.low).sum())
        self.above += int((values > self.high).sum())
        self.between.append(values[(values >= self.low) & (values <= self.high)])

    def median(self) -> float:
        """Give the median of all values; where it lies outside, that of the first ones."""
        between = np.sort(np.concatenate(self.between)) if self.between else np.zeros(0)
        n = self.below + len(between) + self.above
        places = [(n - 1) // 2 - self.below, n // 2 - self.below]
        if n == 0 or places[0] < 0 or places[1] >= len(between):
            return self.guess
        return float(np.mean(between[places]))


def _rows_in_memory(source: AnyTable, report: Reporter, memory: int) -> tuple[Table, int]:
    """Give a table that fits into memory, or evenly spaced rows of one that does not; and the number of all rows."""
    if isinstance(source, Table):
        return source, len(source)
    most = max(_FEWEST_SAMPLED, min(_MOST_SAMPLED, memory // (_SAMPLE_SHARE * 8 * len(source.names))))
    with report.busy("looking at rows"):
        table, n_rows = source.sample(most)
    if len(table) < n_rows:
        report.note(
            f"{source.name} has {count(n_rows, 'row')}, more than {shown_bytes(memory)} of memory hold (--memory). "
            f"{len(table):,} of them, evenly spaced, say what columns are and serve to measure gaps; the map is that "
            "of all rows."
        )
    return table, n_rows


def measured_rows(problem: Problem, report: Reporter) -> MeasuredRows:
    """Give the rows that gaps are measured on, and say so if these are some of those that there are."""
    with report.busy("choosing rows"):
        measured = problem.measured
    if len(measured.y) < len(problem.usable):
        report.note(
            f"gaps are measured on {len(measured.y):,} of {len(problem.usable):,} rows, evenly spaced in every class "
            "and group (--measured-rows)."
        )
        _check_enough(problem, measured)
    return measured


def _check_enough(problem: Problem, measured: MeasuredRows) -> None:
    """Refuse fewer rows of a class than there are folds, where the table has more."""
    labels, counts = np.unique(measured.y, return_counts=True)
    rarest = int(np.argmin(counts))
    folds, n_rows = problem.settings.folds, int((problem.question.y == labels[rarest]).sum())
    if counts[rarest] < min(folds, n_rows):
        raise UsageError(
            f"of the {len(measured.y):,} rows that gaps are measured on {counts[rarest]} are of class "
            f"{labels.tolist()[rarest]!r}, fewer than the {folds} folds, though there are {n_rows:,}: --measured-rows "
            "takes more of them."
        )


def affords_alignment(problem: Problem, report: Reporter) -> bool:
    """Whether scores may be aligned though nobody asked; it is said if their folds would take too much memory."""
    if isinstance(problem.source, Table):
        return True
    needed = _MOMENTS_OF_ALIGNMENT * 8 * problem.question.counts.size * len(problem.encoder.encoded_names) ** 2
    if problem.settings.covariance == "diagonal" or needed <= problem.source.memory:
        return True
    report.note(
        f"the table has no aligned scores: the moments of their folds take {shown_bytes(needed)}, more than "
        f"{shown_bytes(problem.source.memory)} (--memory). --align shows them all the same."
    )
    return False


def shown_bytes(n: int) -> str:
    """Write a size in its unit."""
    for unit in ("KiB", "MiB"):
        n_units = n / 2**10
        if n_units < 1024:
            return f"{n_units:.3g} {unit}"
        n //= 2**10
    return f"{n / 2**10:.3g} GiB"


def check_has(source: AnyTable, needed: Iterable[str]) -> None:
    """Refuse a table without columns that a map or moments need."""
    absent = [name for name in needed if name not in source.names]
    if absent:
        listing = ", ".join(map(repr, absent[:10])) + (" and so on" if len(absent) > 10 else "")
        raise UsageError(f"{source.name} lacks {count(len(absent), 'column')} that the map needs: {listing}.")


def memory_of(reads: Reads, output: Path | None, *, resume: bool) -> int:
    """Bytes that a table may take; those of the run that is resumed, unless others are given."""
    if resume and output is None:
        raise UsageError("--resume continues a run that writes a file; name it.")
    if resume and output is not None and reads.memory is None and not is_stream(output):
        return Checkpoint.memory_of(output) or parse_memory(None)
    return parse_memory(reads.memory)


def reading_of(reads: Reads) -> Reading:
    """Gather what the options say of reading files."""
    return Reading(
        separator=check_separator(reads.separator),
        decimal=reads.decimal,
        encoding=reads.encoding,
        na_values=tuple(listed(reads.na_values)),
        strict_na=reads.strict_na,
    )


def listed(values: Iterable[str]) -> list[str]:
    """Values of a repeatable option, each of which may be several joined by commas."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def tell_of_fit(displacement: Iterable[tuple[Any, float]], tell: Callable[[str], None]) -> None:
    """Say which groups move far.

    Parameters
    ----------
    displacement : iterable of (label, float)
        Of every group, in standard deviations.
    tell : callable
        Receives at most one sentence.
    """
    far = [f"{label_text(label)} ({moved:.1f})" for label, moved in displacement if moved > _FAR]
    if far:
        tell(
            f"steering moves rows by more than {_FAR:g} standard deviations, root mean square over features: "
            f"{'; '.join(far[:5])}{'; …' if len(far) > 5 else ''}. So far away the fitted Gaussians say little; "
            "--strength moves them less."
        )


@contextmanager
def library_problems() -> Iterator[None]:
    """Input that only the estimators can judge: their message is the sentence."""
    try:
        yield
    except (ValueError, np.linalg.LinAlgError) as error:
        raise UsageError(_as_options(" ".join(str(error).split()))) from error


@contextmanager
def quoting_warnings(tell: Callable[[str], None]) -> Iterator[None]:
    """Hand every warning raised inside the block to `tell`, each text once, without the table that may follow it."""
    seen: set[str] = set()

    def quote(message: Warning | str, *_: Any, **__: Any) -> None:
        text = _as_options(str(message).partition("\n")[0].removesuffix(" Subgroups:"))
        if text not in seen:
            seen.add(text)
            tell(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = quote
        yield


def _as_options(text: str) -> str:
    """Write the parameters that a message of the library names as the options that they are here."""
    names = "|".join(Settings.__dataclass_fields__)
    return re.sub(
        rf"\b({names})=(?:'(\w+)'|([\w.]+))",
        lambda found: f"--{found[1].replace('_', '-')} {found[2] or found[3]}",
        text,
    )


def _columns(values: Iterable[str], names: Sequence[str]) -> list[str]:
    """Names that an option was given; one with a comma in it may be several."""
    found: list[str] = []
    for value in values:
        parts = [value] if value in names or "," not in value else value.split(",")
        found += [part if part in names else part.strip() for part in parts]
    return found


def _steering(settings: Settings, question: Question, unknown_group: UnknownGroup) -> FairSteeringTransformer:
    least, small_subgroups = settings.min_subgroup_size, settings.small_subgroups
    if small_subgroups == "error":
        if small := question.small_subgroups(least):
            raise UsageError(
                f"{count(len(small), 'subgroup')} {'has' if len(small) == 1 else 'have'} fewer than {least} rows: "
                f"{'; '.join(small[:5])}{' …' if len(small) > 5 else ''}. --small-subgroups pool lets them borrow from "
                "others, --small-subgroups merge makes small groups one; or lower --min-subgroup-size."
            )
        # The folds of the cross-validation have fewer rows, and are not what was asked about.
        least = 0
    return steering_of(settings, question.group_named(settings.reference_group), least, unknown_group)


def steering_of(
    settings: Maps, reference_group: Any, min_subgroup_size: int, unknown_group: UnknownGroup = "error"
) -> FairSteeringTransformer:
    """Make a transformer with the parameters that options name."""
    return FairSteeringTransformer(
        # Features of all units: without it shrinkage would take kilometres more seriously than children.
        feature_transform=StandardScaler(),
        intervention=settings.intervention,
        reference_group=reference_group,
        constraint=settings.constraint,
        map_type=settings.map_type,
        standardize=settings.standardize,
        covariance=settings.covariance,
        shrinkage=parse_shrinkage(settings.shrinkage),
        pooling=settings.pooling,
        min_subgroup_size=min_subgroup_size,
        small_subgroups=settings.small_subgroups,
        unknown_group=unknown_group,
        strength=settings.strength,
        max_time=settings.max_time,
    )
