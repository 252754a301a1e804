"""A large table as the library reads rows: encoded piece by piece, with a bar, and from the last checkpoint on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairsteer import persistence
from fairsteer._utils.labels import sorted_labels
from fairsteer.moments import SubgroupMoments
from fairsteer.streams import Reduction, RowBatch, Stream
from fairsteer.transformer._streaming import Counting

from . import UsageError
from ._large import LargeTable
from ._printing import Reporter
from ._reading import Table
from ._table import TableEncoder

__all__ = ["Checkpoint", "TableRows", "usable_rows"]

_State = TypeVar("_State")


class Checkpoint:
    """Moments of the rows that have been read so far, in a file beside the output.

    It is written every `seconds`, replaced whole, and removed when the output is complete. With `resume` the sums go
    on where it ends: the same rows in the same pieces, so the result is the same to the bit. It is refused if the table
    or the options are others than when it was written.

    Parameters
    ----------
    output : Path
        What the run is to write.
    inputs : dict
        What the moments depend on, as `json` can write it.
    seconds : float
        How often it is written.
    resume : bool
        Whether one that is there is used.
    """

    def __init__(self, output: Path, inputs: dict[str, Any], *, seconds: float, resume: bool) -> None:
        output = output.resolve()
        self.path = output.with_name(f".fairsteer-{hashlib.sha256(output.name.encode()).hexdigest()[:12]}.checkpoint")
        self._seconds, self._output = seconds, output
        self._mark = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()
        self._last = time.monotonic()
        if not resume:
            self.remove()

    @staticmethod
    def memory_of(output: Path) -> int | None:
        """Memory of the run that a checkpoint is left of, whose pieces a run that resumes it must read."""
        found = Checkpoint._read(Checkpoint(output, {}, seconds=0, resume=True).path)
        return None if found is None else int(found[1]["memory"])

    @staticmethod
    def _read(path: Path) -> tuple[SubgroupMoments, dict[str, Any]] | None:
        if not path.exists():
            return None
        try:
            return persistence.load(path), persistence.read_extra(path) or {}
        except (ValueError, OSError) as error:
            raise UsageError(f"the checkpoint {path} cannot be read; remove it, or leave out --resume.") from error

    def load(self) -> tuple[SubgroupMoments, int] | None:
        """Moments and the number of pieces that are in them; None if there is no checkpoint."""
        found = self._read(self.path)
        if found is None:
            return None
        moments, extra = found
        if extra.get("mark") != self._mark:
            raise UsageError(
                f"the run that was interrupted read another table or had other options than this one, so it cannot be "
                f"resumed to {self._output.name}; leave out --resume."
            )
        return moments, int(extra["pieces"])

    def save(self, moments: SubgroupMoments, pieces: int, memory: int) -> None:
        """Write the moments, if it is time."""
        if time.monotonic() - self._last < self._seconds or not moments.weights.any():
            return
        persistence.save(moments, self.path, extra={"mark": self._mark, "pieces": pieces, "memory": memory})
        self._last = time.monotonic()

    def remove(self) -> None:
        """Remove the file, which is of no more use."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


class TableRows(Stream):
    """Rows of a large table with a class and a group.

    Parameters
    ----------
    table : LargeTable
        The table.
    n_rows : int
        Its rows.
    encoder : TableEncoder
        Its features.
    target : str
        Column of the classes.
    sensitive : sequence of str
        Columns of the groups.
    classes : list
        Classes of some of the rows: others have the type that these have.
    parts : list of list
        Labels of every sensitive column, likewise.
    report : Reporter
        Where progress is shown.
    checkpoint : Checkpoint, default=None
        Where moments are kept as they grow.
    """

    def __init__(
        self,
        table: LargeTable,
        n_rows: int,
        encoder: TableEncoder,
        *,
        target: str,
        sensitive: Sequence[str],
        classes: list[Any],
        parts: list[list[Any]],
        report: Reporter,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self._table, self._n_rows, self._encoder, self._report = table, n_rows, encoder, report
        self._target, self._sensitive, self._classes, self._parts = target, list(sensitive), classes, parts
        self._checkpoint = checkpoint
        self.column_names = encoder.encoded_names
        self.n_columns, self.positions = len(self.column_names), []
        self.has_classes = self.has_groups = True

    def labels(self) -> tuple[list[Any], list[Any]]:
        """Classes and groups of all rows, sorted."""
        counts = self.reduce(Counting(True, True))
        classes, groups = (sorted_labels(dict.fromkeys(key[i] for key in counts.cells)) for i in (0, 1))
        return classes, groups

    def head(self) -> Any:
        return self._encoder.encode(self._table.head)

    def batches(self, *, features: bool = True) -> Iterator[RowBatch]:
        return (batch for _, batch in self._read(features=features))

    def _read(self, *, features: bool, skip: int = 0) -> Iterator[tuple[int, RowBatch]]:
        """Give the batches with the numbers of rows that were read for them."""
        names = [self._target, *self._sensitive]
        if features:
            names += [column.name for column in self._encoder.columns]
        # As many numbers a row in every pass, so that the pieces of all are the same.
        for i, piece in enumerate(self._table.pieces(names, n_numbers=self.n_columns if features else 1)):
            if i < skip:
                yield len(piece), RowBatch(None)
                continue
            yield (
                len(piece),
                labelled(
                    piece,
                    self._encoder if features else None,
                    target=self._target,
                    sensitive=self._sensitive,
                    classes=self._classes,
                    parts=self._parts,
                ),
            )

    def reduce(self, reduction: Reduction[_State]) -> _State:
        state, skip = reduction.start(), 0
        checkpoint = self._checkpoint if isinstance(state, SubgroupMoments) else None
        if checkpoint is not None and (found := checkpoint.load()) is not None:
            moments, skip = found
            state = reduction.merge(state, cast("_State", moments))
        what = "moments" if isinstance(state, SubgroupMoments) else "classes and groups"
        what = what if isinstance(state, SubgroupMoments) or not reduction.features else "features"
        with self._report.rows(what, self._n_rows) as advance:
            for i, (n_rows, batch) in enumerate(self._read(features=reduction.features, skip=skip)):
                if i >= skip:
                    if batch.y is not None and len(batch.y):
                        state = reduction.add(state, batch)
                    if checkpoint is not None and isinstance(state, SubgroupMoments):
                        checkpoint.save(state, i + 1, self._table.memory)
                advance(n_rows)
        return state


def usable_rows(piece: Table, target: str, sensitive: Sequence[str], parts: list[list[Any]]) -> NDArray[np.bool_]:
    """Rows of a piece that have a class and a group."""
    usable = ~piece.column(target).is_missing
    for j, name in enumerate(sensitive):
        usable &= pd.notna(piece.column(name).labels(parts[j]))
    return usable


def labelled(
    piece: Table,
    encoder: TableEncoder | None,
    *,
    target: str,
    sensitive: Sequence[str],
    classes: list[Any],
    parts: list[list[Any]],
) -> RowBatch:
    """Read the rows of a piece that have a class and a group."""
    usable = usable_rows(piece, target, sensitive, parts)
    rows = piece if usable.all() else piece.where(usable)
    y = np.array(rows.column(target).labels(classes).tolist())
    groups = pd.DataFrame({name: rows.column(name).labels(parts[j]) for j, name in enumerate(sensitive)}, dtype=object)
    return RowBatch(None if encoder is None else encoder.encode(rows), y, groups)
