"""``python -m benchmarks.beyond_memory``: fits to a folder ten times as large as the memory that they may take.

Rows are synthetic, float32, of 28 classes and 2 groups; the folder is written once, and kept where ``--folder`` says.
For every job a process of its own is started. Its peak is how far the resident set grows beyond what it is after a fit
to a folder of a hundred rows: the interpreter, libraries and what they keep for themselves are no memory of the rows.
Files are in the page cache for all. ``scan`` is pyarrow's of the whole folder with its threads and settings, ``read``
reads as a fit does, which takes less of both, and ``update`` adds up rows that are in memory. Seconds are given as they
pass and as processors spend them: where others use the machine too, the latter compare better.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

import fairsteer
from benchmarks import timing
from fairsteer import FairSteeringTransformer, SubgroupMoments
from fairsteer.streams import block_rows

_CLASSES = 28
_ROWS_OF_A_FILE = 100_000


def write_folder(folder: Path, n_rows: int, n_features: int) -> None:
    """Write parquet files of about a hundred thousand rows, unless they are there."""
    import pyarrow as pa
    from pyarrow import parquet

    if folder.is_dir() and sum(parquet.read_metadata(file).num_rows for file in folder.glob("*.parquet")) == n_rows:
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    means = rng.normal(size=(_CLASSES, n_features)).astype(np.float32)
    shift = 0.3 * rng.normal(size=n_features).astype(np.float32)
    for number, start in enumerate(range(0, n_rows, _ROWS_OF_A_FILE)):
        n = min(_ROWS_OF_A_FILE, n_rows - start)
        y, group = rng.integers(0, _CLASSES, n), rng.integers(0, 2, n)
        rows = rng.standard_normal((n, n_features), dtype=np.float32)
        rows *= np.where(group == 1, np.float32(1.3), np.float32(1))[:, None]
        rows += means[y] + group[:, None].astype(np.float32) * shift
        columns: dict[str, Any] = {f"x{j}": column for j, column in enumerate(np.asfortranarray(rows).T)}
        columns |= {"occupation": y.astype(np.int16), "sex": np.array(["f", "m"])[group]}
        path = folder / f"{number:05d}.parquet"
        parquet.write_table(
            pa.table(columns), path, row_group_size=10_000, use_dictionary=["occupation", "sex"], compression="none"
        )


def costs_of(job: Any) -> tuple[float, float, int]:
    """Seconds that pass, seconds of processors, and growth of the resident set."""
    start, processors = time.perf_counter(), time.process_time()
    growth = timing.extra_peak_memory(job)
    return time.perf_counter() - start, time.process_time() - processors, growth


def read_alone(folder: Path) -> int:
    """Scan a folder as pyarrow does, and do nothing with it."""
    from pyarrow import dataset

    found = dataset.dataset(str(folder), format="parquet")
    return sum(batch.num_rows for batch in found.to_batches(batch_size=10_000))


def read_in_pieces(folder: Path, budget: int) -> int:
    """Read a folder as a fit does, and do nothing with it."""
    from pyarrow import dataset

    from fairsteer.streams import ArrowRows

    found = dataset.dataset(str(folder), format="parquet")
    rows, names = ArrowRows(found, columns=[], batch_bytes=budget // 3), found.schema.names
    return sum(table.num_rows for table in rows.tables(names, len(names)))


def fit(folder: Path, budget: int) -> FairSteeringTransformer:
    """Fit to the folder, in batches of a third of the memory: half as much is read ahead."""
    from pyarrow import dataset

    from fairsteer.streams import ArrowRows

    rows = ArrowRows(
        dataset.dataset(str(folder), format="parquet"),
        y="occupation",
        sensitive_features="sex",
        batch_bytes=budget // 3,
    )
    return FairSteeringTransformer(map_type="affine", standardize=True).fit(rows)


def warm_up() -> None:
    """Import and call once what a fit needs, which is no memory of its rows."""
    with tempfile.TemporaryDirectory() as name:
        write_folder(Path(name), 100, 2)
        with warnings.catch_warnings(action="ignore"):  # of subgroups of a row or two
            fit(Path(name), 2**20)
        read_alone(Path(name))


def syrk_seconds(n_rows: int, n_features: int) -> float:
    """Seconds that BLAS takes for the products of all rows, in single precision."""
    from scipy.linalg.blas import ssyrk

    some = np.asfortranarray(np.random.default_rng(0).standard_normal((n_features, 20_000), dtype=np.float32))
    with threadpool_limits(1):
        best = min(_timed(lambda: ssyrk(1.0, some)) for _ in range(8))
    return float(best * n_rows / some.shape[1])


def update_seconds(n_rows: int, n_features: int) -> float:
    """Seconds that an accumulator with rows takes for all rows, a block that is in memory at a time; in one thread."""
    rng = np.random.default_rng(0)
    moments = SubgroupMoments(n_features, classes=range(_CLASSES), groups=range(2), covariance="full")
    n = block_rows(n_features, 4)
    rows = rng.standard_normal((n, n_features), dtype=np.float32)
    y, group = rng.integers(0, _CLASSES, n), rng.integers(0, 2, n)
    with threadpool_limits(1):
        moments.update(rows, y, group)
        best = min(_timed(lambda: moments.update(rows, y, group)) for _ in range(8))
    return float(best * n_rows / n)


def _timed(job: Any) -> float:
    start = time.process_time()  # in one thread
    job()
    return time.process_time() - start


def in_memory(folder: Path) -> FairSteeringTransformer:
    """Fit to all rows at once."""
    from pyarrow import parquet

    table = parquet.read_table(folder)
    y, group = table.column("occupation").to_numpy(), table.column("sex").to_numpy()
    names = [name for name in table.column_names if name.startswith("x")]
    rows: npt.NDArray[np.float32] = np.empty((len(y), len(names)), np.float32, order="F")
    for j, name in enumerate(names):
        rows[:, j] = table.column(name).to_numpy()
    del table
    return FairSteeringTransformer(map_type="affine", standardize=True).fit(rows, y, sensitive_features=group)


def distance(first: FairSteeringTransformer, second: FairSteeringTransformer) -> float:
    """Largest difference of the maps' numbers, relative to the largest number."""
    worst = 0.0
    for label, (A, b) in first.maps_.items():
        for one, other in zip((A, b), second.maps_[label], strict=True):
            worst = max(worst, float(np.abs(one - other).max() / max(1.0, np.abs(one).max())))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beyond_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the rows are, or are to be written")
    parser.add_argument("--memory", type=int, default=100, help="MiB that a fit may take besides its moments")
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--compare", action="store_true", help="fit in memory as well, which takes the folder's size")
    parser.add_argument("--job", choices=("scan", "read", "fit"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    budget, d = arguments.memory * 2**20, arguments.features
    n_rows = 10 * budget // (4 * d) // 10_000 * 10_000
    folder = arguments.folder / f"{n_rows}x{d}"
    if arguments.job:
        warm_up()
        jobs = {
            "scan": lambda: read_alone(folder),
            "read": lambda: read_in_pieces(folder, budget),
            "fit": lambda: fit(folder, budget),
        }
        print(json.dumps(costs_of(jobs[arguments.job])))
        return 0
    fairsteer.show_versions()
    write_folder(folder, n_rows, d)
    size = sum(file.stat().st_size for file in folder.iterdir())
    moments = 8 * _CLASSES * 2 * (d * d + 2 * d)
    print(f"\n{n_rows:,} rows x {d} of float32, {size / 2**20:.0f} MiB; budget {arguments.memory} MiB")
    results = {}
    for name in ("scan", "read", "fit"):
        command = [sys.executable, "-m", "benchmarks.beyond_memory", *sys.argv[1:], "--job", name]
        runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3)]
        seconds, processors, peak = (pick(run[i] for run in runs) for i, pick in enumerate((min, min, max)))
        results[name] = (seconds, processors, peak)
        print(
            f"{name:<10} {seconds:6.2f} s ({processors:.2f} s of processors)   {n_rows / seconds:>10,.0f} rows/s   "
            f"peak {peak / 2**20:.0f} MiB"
        )
    bound, update = syrk_seconds(n_rows, d), update_seconds(n_rows, d)
    print(
        f"of ssyrk's rows a second, in one thread: update {bound / update:.2f} ({update:.2f} s against {bound:.2f} s)"
    )
    for what, i in (("seconds", 0), ("seconds of processors", 1)):
        spent = results["fit"][i]
        print(
            f"rows a second of a fit, by {what}: {results['scan'][i] / spent:.2f} of pyarrow's scan, "
            f"{results['read'][i] / spent:.2f} of reading in pieces, {bound / spent:.2f} of ssyrk in one thread"
        )
    within = results["fit"][2] <= budget + moments
    print(f"peak {'within' if within else 'NOT within'} the budget and the moments ({moments / 2**20:.0f} MiB)")
    if arguments.compare:
        apart = distance(fit(folder, budget), in_memory(folder))
        print(f"maps from the folder and in memory differ by {apart:.1e}{'' if apart else ': not by a bit'}")
    return int(not within)


if __name__ == "__main__":
    sys.exit(main())
