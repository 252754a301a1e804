"""From a file and settings to numbers, groups and a transformer: what every command that fits begins with."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from fairsteer._utils.labels import label_text
from fairsteer.classifier import IdealDistributionClassifier
from fairsteer.transformer import FairSteeringTransformer

from . import UsageError, count
from ._columns import Reading
from ._options import Alignment, Reads, Settings, UnknownGroup, check_separator, parse_shrinkage
from ._printing import Reporter
from ._question import Question, check_columns, read_question
from ._reading import Table, read_table
from ._table import TableDescription, TableEncoder

__all__ = [
    "INFERRED",
    "Problem",
    "library_problems",
    "listed",
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
_FAR = 2.0  # standard deviations of a feature in a group


@dataclass(frozen=True)
class Problem:
    """A file made ready for a fit.

    Attributes
    ----------
    settings : Settings
        With the columns that are meant, one by one.
    table, usable : Table
        The file, and its rows with a class and a group.
    question : Question
        Its classes and groups.
    encoder : TableEncoder
        Its features.
    features : DataFrame of float64
        Features of the usable rows.
    steering : FairSteeringTransformer
        Not fitted.
    """

    settings: Settings
    table: Table
    usable: Table
    question: Question
    encoder: TableEncoder
    features: pd.DataFrame
    steering: FairSteeringTransformer

    @property
    def groups(self) -> pd.DataFrame:
        """Groups of the usable rows."""
        return self.question.known_groups

    @property
    def positive(self) -> Any:
        """The positive class that was named; None for the default."""
        return self.question.class_named(self.settings.positive)

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

    def prepare(self, may_learn: NDArray[np.bool_]) -> pd.DataFrame:
        """Features of the usable rows, gaps filled with the medians of some of them, as a fold needs them."""
        return self.encoder.refitted(self.usable, may_learn).encode(self.usable)

    def fit(
        self, report: Reporter, align: Alignment | None = None
    ) -> FairSteeringTransformer | IdealDistributionClassifier:
        """Fit the transformer, or with `align` the Bayes rule with aligned scores, quoting warnings."""
        fitted: FairSteeringTransformer | IdealDistributionClassifier = self.steering
        if align is not None:
            fitted = IdealDistributionClassifier(steering=self.steering, score_alignment=align)
        with library_problems(), quoting_warnings(report.note), report.busy("fitting"):
            fitted.fit(self.features, self.question.y, sensitive_features=self.groups)
        return fitted


def read_problem(settings: Settings, report: Reporter, *, steers_all: bool) -> Problem:
    """Read a file and decide what is fitted.

    Parameters
    ----------
    settings : Settings
        What the user said.
    report : Reporter
        Where notes go.
    steers_all : bool
        Whether all rows of the file will be steered, those without a group too.

    Returns
    -------
    Problem

    Raises
    ------
    UsageError
        For any input the user can put right.
    """
    table = read_table(settings.file, reading_of(settings), report.note)
    settings = replace(
        settings,
        sensitive=_columns(settings.sensitive, table),
        drop=_columns(settings.drop, table),
        keep=_columns(settings.keep, table),
        categorical=_columns(settings.categorical, table),
    )
    roles = {
        "--target": [settings.target],
        "--sensitive": settings.sensitive,
        "--drop": settings.drop,
        "--keep": settings.keep,
        "--categorical": settings.categorical,
    }
    check_columns(table, roles)
    incomplete = bool(np.any([table.column(name).is_missing for name in settings.sensitive]))
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
    )
    steering = _steering(settings, question, unknown_group)
    question.class_named(settings.positive)  # refuses what is none
    usable = table if question.usable.all() else table.where(question.usable)
    encoder = TableEncoder.fit(
        usable,
        exclude=[settings.target, *settings.sensitive, *settings.drop, *settings.keep],
        categorical=settings.categorical,
        max_categories=settings.max_categories,
        tell=report.note,
    )
    encoder.tell_gaps(table, report.note)
    encoder.tell_leaks(usable, question.y, report.note)
    features = encoder.encode(usable)
    _tell_few_rows(settings, question, features.shape[1], report.note)
    return Problem(settings, table, usable, question, encoder, features, steering)


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
        text = _as_options(str(message).partition("\n")[0].removesuffix(" Cells:"))
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


def _columns(values: Iterable[str], table: Table) -> list[str]:
    """Names that an option was given; one with a comma in it may be several."""
    found: list[str] = []
    for value in values:
        parts = [value] if value in table.names or "," not in value else value.split(",")
        found += [part if part in table.names else part.strip() for part in parts]
    return found


def _steering(settings: Settings, question: Question, unknown_group: UnknownGroup) -> FairSteeringTransformer:
    least, small_cells = settings.min_cell_size, settings.small_cells
    if small_cells == "error":
        if small := question.small_cells(least):
            raise UsageError(
                f"{count(len(small), 'subgroup')} {'has' if len(small) == 1 else 'have'} fewer than {least} rows: "
                f"{'; '.join(small[:5])}{' …' if len(small) > 5 else ''}. --small-cells pool lets them borrow from "
                "others, --small-cells merge makes small groups one; or lower --min-cell-size."
            )
        # The folds of the cross-validation have fewer rows, and are not what was asked about.
        least = 0
    return FairSteeringTransformer(
        # Features of all units: without it shrinkage would take kilometres more seriously than children.
        feature_transform=StandardScaler(),
        intervention=settings.intervention,
        reference_group=question.group_named(settings.reference_group),
        constraint=settings.constraint,
        map_type=settings.map_type,
        standardize=settings.standardize,
        covariance=settings.covariance,
        shrinkage=parse_shrinkage(settings.shrinkage),
        pooling=settings.pooling,
        min_cell_size=least,
        small_cells=small_cells,
        unknown_group=unknown_group,
        strength=settings.strength,
        max_time=settings.max_time,
    )


def _tell_few_rows(settings: Settings, question: Question, n_features: int, tell: Callable[[str], None]) -> None:
    if settings.covariance == "diagonal":
        return
    full = settings.covariance == "full"
    rows = question.counts.min(axis=1) if full else question.counts.sum(axis=1)
    few = [f"{label_text(label)} {n:,}" for label, n in zip(question.labels, rows, strict=True) if n < n_features]
    if few:
        tell(
            f"there are fewer rows than features ({n_features:,}) in {'a class of ' if full else ''}"
            f"{'; '.join(few[:5])}{'; …' if len(few) > 5 else ''}: their covariances are mostly shrinkage, and the "
            "certificate says little; --drop features, or --covariance diagonal."
        )
