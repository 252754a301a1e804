"""The job of ``fairsteer activations``: moments of a model's hidden states, from a table of texts."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fairsteer import persistence
from fairsteer.moments import SubgroupMoments

from . import UsageError, count
from ._fitting import library_problems, quoting_warnings, reading_of
from ._language import LanguageModel, load_model
from ._large import AnyTable, distinct_rows, open_table
from ._moments import subgroups_of
from ._options import Reads, parse_memory
from ._printing import Reporter
from ._reading import Table
from ._writing import as_path, check_outputs, is_stream

__all__ = ["TextColumns", "activations_file"]

Pool = Literal["mean", "last", "tokens"]

#: Batches whose moments are added up before they join those of all: where a run may be interrupted.
_BATCHES = 16


@dataclass(frozen=True)
class TextColumns:
    """Columns of a table of texts.

    Attributes
    ----------
    text : str
        What the model reads.
    target : str or None
        Classes; None: one class.
    sensitive : sequence of str
        Groups; none: one group.
    """

    text: str
    target: str | None
    sensitive: Sequence[str]

    @property
    def labels(self) -> list[str]:
        """Columns of classes and groups."""
        return [*([] if self.target is None else [self.target]), *self.sensitive]

    def check(self, table: AnyTable) -> None:
        """Refuse columns that the table does not have."""
        for option, name in (
            ("--text", self.text),
            ("--target", self.target),
            *(("--sensitive", s) for s in self.sensitive),
        ):
            if name is not None and name not in table.names:
                listed = ", ".join(map(repr, table.names[:10]))
                raise UsageError(f"{option} {name!r} is no column of {table.name}; there are {listed}.")


def activations_file(
    reads: Reads,
    *,
    model: Path,
    texts: Path,
    columns: TextColumns,
    layers: Sequence[str],
    out: Path,
    pool: Pool,
    covariance: Any,
    max_tokens: int,
    batch_size: int,
    dtype: str,
    device: str,
    resume: bool,
    checkpoint_every: float,
    force: bool,
    as_json: bool = False,
) -> None:
    """Write the moments of hidden states.

    Parameters
    ----------
    reads : Reads
        How the table is read.
    model, texts, out : Path
        The model, the table of texts, and where to write. With several layers, `out` is the beginning of their names.
    columns : TextColumns
        What the columns of the table are.
    layers : sequence of str
        Names, patterns or numbers.
    pool : {"mean", "last", "tokens"}
        What is a row: the mean of a text's tokens, the last one, or every one.
    covariance : {"tied", "full", "diagonal"}
        Covariance model of the moments.
    max_tokens, batch_size : int
        Tokens that a text is cut to, and texts that are read at once.
    dtype, device : str
        Type of the weights and where the model runs.
    resume : bool
        Whether a run that was interrupted is continued.
    checkpoint_every : float
        Seconds between checkpoints.
    force : bool
        Whether files that exist may be replaced.
    as_json : bool
        Whether one JSON object is printed instead of text.

    Raises
    ------
    UsageError
        For any input the user can put right; nothing has been written then.
    """
    report = Reporter(as_json=as_json)
    out = as_path(out) or out
    if out.suffix != ".safetensors" or is_stream(out):
        raise UsageError(f"the moments {out} must end in .safetensors, which is their format.")
    if str(texts) == "-":
        raise UsageError("--texts is read more than once, so it cannot be standard input; name a file.")
    table = open_table(texts, reading_of(reads), report.note, parse_memory(reads.memory))
    columns.check(table)
    with report.busy("loading the model"):
        loaded = load_model(model, dtype=dtype, device=device, generates=False, command="activations")
    names = loaded.layers(part for one in layers for part in one.split(",") if part)
    if not names:
        raise UsageError("--layers names no layer.")
    files = {name: out if len(names) == 1 else out.with_name(f"{out.stem}-{name}.safetensors") for name in names}
    check_outputs([("--out", file) for file in files.values()], sources=[texts], force=force)
    settings = {
        "model": str(model.resolve()), "texts": str(texts.resolve()), "size": _size(texts), "layers": names,
        "columns": [columns.text, *columns.labels], "pool": pool, "covariance": covariance,
        "max_tokens": max_tokens, "batch_size": batch_size, "dtype": dtype,
    }  # fmt: skip
    checkpoint = _Checkpoint(out, settings, seconds=checkpoint_every)
    if not resume:
        checkpoint.remove()
    with library_problems(), quoting_warnings(report.note):
        job = _Job(loaded, table, columns, names, pool, covariance, max_tokens, batch_size)
        moments = job.run(report, checkpoint)
    extra = {"model": model.name, "pool": pool, "max_tokens": max_tokens, "source": table.name}
    for name, file in files.items():
        persistence.save(moments[name], file, extra={**extra, "layer": name})
    checkpoint.remove()
    any_layer = moments[names[0]]
    report.say(any_layer.subgroup_table() + "\n")
    what = {"mean": "mean of a text's tokens", "last": "last token of a text", "tokens": "token"}[pool]
    listed = ", ".join(f"{file.name} ({name})" for name, file in files.items())
    report.say(
        f"Wrote the moments of {count(any_layer.n_features, 'feature')}, a row for each {what}: {listed}. No text is "
        "in them; subgroups of few texts tell much of them."
    )
    report.result("activations", files={name: str(file) for name, file in files.items()}, **subgroups_of(any_layer))


def _size(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


@dataclass(frozen=True)
class _Job:
    loaded: LanguageModel
    table: AnyTable
    columns: TextColumns
    layers: list[str]
    pool: Pool
    covariance: Any
    max_tokens: int
    batch_size: int

    def run(self, report: Reporter, checkpoint: _Checkpoint) -> dict[str, SubgroupMoments]:
        from fairsteer.torch import collect_activations

        known, n_rows = self._labels()
        moments, done = checkpoint.load(self.layers)
        pool: Any = {"mean": "mean", "last": _last_token, "tokens": None}[self.pool]
        left_out = 0
        with report.rows("texts", n_rows) as advance:
            for i, (batches, n_read, n_missing) in enumerate(self._chunks(known)):
                left_out += n_missing
                if i >= done and batches:
                    found = collect_activations(
                        self.loaded.model,
                        ((self.loaded.inputs(texts, self.max_tokens), y, groups) for texts, y, groups in batches),
                        self.layers,
                        pool=pool,
                        covariance=self.covariance,
                    )
                    moments = {
                        name: moments[name].merge(own) if name in moments else own for name, own in found.items()
                    }
                    checkpoint.save(moments, i + 1)
                advance(n_read)
        if not moments:
            raise UsageError(f"no row of {self.table.name} has a text, a class and a group.")
        if left_out:
            report.note(f"{count(left_out, 'row')} without a text, a class or a group took no part.")
        return moments

    def _labels(self) -> tuple[dict[str, list[Any]], int]:
        """Labels of every column of them, and the number of rows."""
        if not self.columns.labels:
            return {}, sum(len(piece) for piece in self.table.pieces([self.columns.text]))
        distinct, counts = distinct_rows(self.table, self.columns.labels)
        known = {}
        for name in self.columns.labels:
            labels = distinct.column(name).labels()
            known[name] = list(dict.fromkeys(label for label in labels.tolist() if label is not None))
            if not known[name]:
                raise UsageError(f"column {name!r} of {self.table.name} is empty.")
        return known, int(counts.sum())

    def _chunks(self, known: dict[str, list[Any]]) -> Iterator[tuple[list[tuple[list[str], Any, Any]], int, int]]:
        """Give so many batches at a time, of how many rows they were made, and how many were left out."""
        size = _BATCHES * self.batch_size
        for piece in self.table.pieces([self.columns.text, *self.columns.labels]):
            for start in range(0, len(piece), size):
                yield self._batches(piece.take(None, slice(start, min(start + size, len(piece)))), known)

    def _batches(self, piece: Table, known: dict[str, list[Any]]) -> tuple[list[tuple[list[str], Any, Any]], int, int]:
        column = piece.column(self.columns.text)
        usable = ~column.is_missing
        labels = {name: piece.column(name).labels(values) for name, values in known.items()}
        for values in labels.values():
            usable &= np.array([value is not None for value in values.tolist()])
        rows = np.flatnonzero(usable)
        texts = [str(text) for text in column.values.to_pylist()] if len(rows) else []
        rows = np.array(sorted(rows.tolist(), key=lambda i: len(texts[i])), dtype=np.intp)
        batches = []
        for start in range(0, len(rows), self.batch_size):
            own = rows[start : start + self.batch_size]
            y = None if self.columns.target is None else labels[self.columns.target][own].tolist()
            parts = [labels[name][own].tolist() for name in self.columns.sensitive]
            groups: Any = None
            if parts:
                groups = parts[0] if len(parts) == 1 else [list(group) for group in zip(*parts, strict=True)]
            batches.append(([texts[i] for i in own], y, groups))
        return batches, len(piece), len(piece) - len(rows)


def _last_token(hidden: Any, mask: Any) -> Any:
    import torch

    last = mask.shape[1] - 1 - mask.long().flip(1).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


class _Checkpoint:
    """Moments of all layers as they grow, in a folder beside the output.

    A step is complete when the file that names it is there, which is replaced whole; what an interrupted one left is
    overwritten by the next.
    """

    def __init__(self, output: Path, settings: dict[str, Any], *, seconds: float) -> None:
        output = output.resolve()
        self.folder = output.with_name(
            f".fairsteer-{hashlib.sha256(output.name.encode()).hexdigest()[:12]}.activations"
        )
        self._output, self._seconds, self._last = output, seconds, time.monotonic()
        self._mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    @property
    def _index(self) -> Path:
        return self.folder / "step.json"

    def _file(self, step: int, i: int) -> Path:
        return self.folder / f"{step}-{i}.safetensors"

    def load(self, layers: list[str]) -> tuple[dict[str, SubgroupMoments], int]:
        """Moments by layer, and the number of chunks that are in them."""
        if not self._index.exists():
            return {}, 0
        try:
            step = json.loads(self._index.read_text(encoding="utf-8"))
            moments = {name: persistence.load(self._file(step["chunks"], i)) for i, name in enumerate(layers)}
            mark, chunks = step["mark"], int(step["chunks"])
        except (KeyError, TypeError, ValueError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                mark, chunks, moments = "", 0, {}
            else:
                raise UsageError(f"the checkpoint {self.folder} cannot be read; leave out --resume.") from error
        if mark != self._mark:
            raise UsageError(
                "the run that was interrupted had another table, model or options than this one, so it cannot be "
                f"resumed to {self._output.name}; leave out --resume."
            )
        return moments, chunks

    def save(self, moments: dict[str, SubgroupMoments], chunks: int) -> None:
        """Write the moments, if it is time."""
        if time.monotonic() - self._last < self._seconds:
            return
        self.folder.mkdir(exist_ok=True)
        for i, own in enumerate(moments.values()):
            persistence.save(own, self._file(chunks, i))
        partial = self._index.with_suffix(".partial")
        partial.write_text(json.dumps({"mark": self._mark, "chunks": chunks}), encoding="utf-8")
        partial.replace(self._index)
        for file in self.folder.glob("*.safetensors"):
            if not file.name.startswith(f"{chunks}-"):
                file.unlink(missing_ok=True)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Remove what is of no more use."""
        with suppress(OSError):
            for file in self.folder.iterdir():
                file.unlink(missing_ok=True)
            self.folder.rmdir()
