"""``python -m benchmarks.command_line``: time and memory of ``steer``, ``audit`` and ``apply`` on a large csv table.

The table is written once, with a seed, and kept where ``--folder`` says: a target, two sensitive columns, an
identifier, eighteen columns of numbers (some whole, some with gaps) and eight of text (of 3 to 40 categories, some with
gaps), 132 features in all. Every command is a process of its own; seconds are those that processors spend and those
that pass, and the peak is that of its resident set, interpreter and libraries included.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import fairsteer

_NUMBERS, _TEXTS = 18, (3, 4, 5, 8, 12, 16, 24, 40)
_PIECE = 50_000
_QUESTION = ("--target", "hired", "--sensitive", "sex,region")


class Costs(NamedTuple):
    """What a command took."""

    processors: float
    """Seconds."""
    passed: float
    """Seconds."""
    peak: int
    """Bytes of the resident set."""


def write_table(path: Path, n_rows: int) -> None:
    """Write rows of thirty columns, unless they are there."""
    import pyarrow as pa
    from pyarrow import csv

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    pull, shift = rng.normal(size=(2, _NUMBERS))
    spread = np.exp(0.3 * rng.normal(size=_NUMBERS))
    part = path.with_suffix(".part")
    writer = None
    for start in range(0, n_rows, _PIECE):
        n = min(_PIECE, n_rows - start)
        sex, region = rng.integers(0, 2, n), rng.choice(4, n, p=[0.5, 0.25, 0.15, 0.1])
        hired = rng.random(n) < 0.3 + 0.2 * sex + 0.05 * region
        numbers = rng.normal(size=(n, _NUMBERS)) * np.where(sex[:, None] == 1, spread, 1)
        numbers += 0.4 * hired[:, None] * pull + 0.5 * sex[:, None] * shift + 0.1 * region[:, None] * shift[::-1]
        columns: dict[str, pa.Array] = {"id": pa.array([f"p{i:07d}" for i in range(start, start + n)])}
        for j, column in enumerate(numbers.T):
            if j < 6:  # whole numbers, with many ties
                columns[f"count_{j}"] = pa.array(np.maximum(0, np.rint(10 + 4 * column)).astype(np.int64))
            else:
                missing = rng.random(n) < (0.05 if j >= 15 else 0)
                columns[f"amount_{j}"] = pa.array(np.round(column * 10.0 ** (j % 4), 4), mask=missing)
        for j, n_categories in enumerate(_TEXTS):
            tilt = np.exp(-np.arange(n_categories) / n_categories * (1 + sex[:, None] + hired[:, None]))
            drawn = (np.cumsum(tilt, axis=1) < rng.random((n, 1)) * tilt.sum(axis=1, keepdims=True)).sum(axis=1)
            names = pa.array([f"kind {j} no. {k}" for k in range(n_categories)])
            missing = rng.random(n) < (0.02 if j >= 6 else 0)
            columns[f"text_{j}"] = names.take(pa.array(drawn, mask=missing))
        columns["region"] = pa.array(["north", "south", "east", "west"]).take(pa.array(region))
        columns["sex"] = pa.array(["F", "M"]).take(pa.array(sex))
        columns["hired"] = pa.array(["no", "yes"]).take(pa.array(hired.astype(np.int64)))
        table = pa.table(columns)
        writer = writer or csv.CSVWriter(part, table.schema, write_options=csv.WriteOptions(quoting_style="needed"))
        writer.write_table(table)
    if writer is not None:
        writer.close()
    part.replace(path)


def costs_of(*arguments: str) -> Costs:
    """Run a command in a process of its own, and say what it took."""
    start = time.perf_counter()
    program = [sys.executable, "-m", "fairsteer.cli", *arguments]
    pid = os.posix_spawn(
        sys.executable, program, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    )
    _, status, used = os.wait4(pid, 0)
    if status:
        msg = f"fairsteer {' '.join(arguments)} ended with status {status}"
        raise RuntimeError(msg)
    unit = 1 if sys.platform == "darwin" else 1024
    return Costs(used.ru_utime + used.ru_stime, time.perf_counter() - start, used.ru_maxrss * unit)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.command_line", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the table is, or is to be written")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--memory", action="append", help="as of the commands; repeatable; by default theirs")
    parser.add_argument("--only", action="append", choices=("steer", "audit", "apply"), help="repeatable")
    arguments = parser.parse_args()
    fairsteer.show_versions()
    folder = arguments.folder
    table = folder / f"people-{arguments.rows}.csv"
    write_table(table, arguments.rows)
    out, model, page = (str(folder / name) for name in ("steered.csv", "map.safetensors", "report.html"))
    commands = {
        "steer": ["steer", str(table), *_QUESTION, "--out", out, "--map", model, "--force"],
        "audit": ["audit", str(table), *_QUESTION, "--html", page, "--force"],
        "apply": ["apply", model, str(table), "--out", out, "--force"],
    }
    print(f"\n{arguments.rows:,} rows x 30 columns, {table.stat().st_size / 2**20:.0f} MiB of csv\n")
    print("| command | `--memory` | seconds of processors | seconds | peak MiB |\n|---|---|---|---|---|")
    for memory in arguments.memory or [None]:
        for name in arguments.only or commands:
            given = [] if memory is None else ["--memory", memory]
            costs = costs_of(*commands[name], *given)
            print(
                f"| `{name}` | {memory or 'default'} | {costs.processors:.1f} | {costs.passed:.1f} "
                f"| {costs.peak / 2**20:.0f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
