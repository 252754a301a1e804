"""``python -m benchmarks.engines``: fits on Dask beside a fit in memory, and the cost model beside what is measured.

With ``--dask`` rows go through a ``LocalCluster`` of two worker processes with a thread each; the time of a fit there,
data being on the workers, is compared with that of one process with one thread. Rows are those of ACS income, race and
sex being the groups, where FAIRSTEER_DATA has them, else synthetic ones of the same shape.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from threadpoolctl import threadpool_limits

import fairsteer
from benchmarks import datasets
from benchmarks.beyond_memory import distance
from fairsteer import FairSteeringTransformer, SubgroupMoments, nearest_ideal

Rows = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]


def synthetic(n_rows: int, n_features: int, n_classes: int, n_groups: int, dtype: Any = np.float64) -> Rows:
    """Rows of Gaussian subgroups."""
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, n_classes, n_rows), rng.integers(0, n_groups, n_rows)
    rows = rng.standard_normal((n_rows, n_features), dtype=np.float32).astype(dtype)
    rows += rng.normal(size=(n_classes, n_features)).astype(dtype)[y]
    rows += 0.3 * rng.normal(size=(n_groups, n_features)).astype(dtype)[group]
    return rows, y, group


def best(job: Callable[[], Any], repeats: int = 3, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of the quickest of some runs."""
    seconds = []
    for _ in range(repeats):
        start = clock()
        job()
        seconds.append(clock() - start)
    return min(seconds)


# ---- the cost model, as docs/scale.md has it


class Rates(NamedTuple):
    """What a machine does in one thread."""

    product: float
    """Seconds a product of two features of a row."""
    number: float
    """Seconds a number of a row: to read it, centre it and lay it out."""
    byte: float
    """Seconds a byte of moments that are merged."""


def predicted(rates: Rates, n: int, d: int, cells: int, workers: int) -> float:
    """Seconds of the moments of a fit on every worker, and of the merges."""
    adding = n / workers * (rates.product * d * d + rates.number * d)
    return adding + (workers - 1) * rates.byte * 8 * cells * d * d


def measured(rows: Rows, n_cells: tuple[int, int], workers: int) -> float:
    """Seconds that the parts of `workers` take one after another, over their number, and those of the merges."""
    X, y, group = rows
    n_classes, n_groups = n_cells

    def add(part: slice) -> SubgroupMoments:
        moments = SubgroupMoments(X.shape[1], classes=range(n_classes), groups=range(n_groups), covariance="full")
        for start in range(part.start, part.stop, 40_000):
            some = slice(start, min(start + 40_000, part.stop))
            moments.update(X[some], y[some], group[some])
        return moments

    ends = np.linspace(0, len(X), workers + 1).astype(int)
    parts = [slice(int(a), int(b)) for a, b in pairwise(ends)]
    # In one thread, by the processor's clock: other processes do not count.
    adding = best(lambda: add(parts[0]), 5, time.process_time)
    states = [add(part) for part in parts]
    merging = (
        best(lambda: [states[0].merge(other) for other in states[1:]], 5, time.process_time) if workers > 1 else 0.0
    )
    return adding + merging


def find_rates() -> Rates:
    """Measure the rates on small runs."""
    n, sizes = 60_000, (64, 128, 256)
    seconds = [measured(synthetic(n, d, 8, 2), (8, 2), 1) / n for d in sizes]
    powers = np.array([[d * d, d] for d in sizes], dtype=float)
    # Relative errors count alike.
    product, number = np.linalg.lstsq(powers / np.array(seconds)[:, None], np.ones(len(sizes)), rcond=None)[0]
    small = synthetic(20_000, 256, 8, 2)
    half = (small[0][:10_000], small[1][:10_000], small[2][:10_000])
    two = measured(small, (8, 2), 2) - measured(half, (8, 2), 1)
    return Rates(float(product), float(max(number, 0.0)), max(two, 1e-6) / (8 * 16 * 256**2))


def cost_model() -> int:
    """Compare six runs with the model whose rates come from smaller ones."""
    rates = find_rates()
    print(
        f"\nrates: {2e-9 / rates.product:.1f} GFLOP/s of products, {1e-9 / max(rates.number, 1e-12):.2f} G numbers/s, "
        f"{1e-9 / rates.byte:.2f} GB/s of merges\n"
    )
    print(f"{'rows':>9} {'d':>5} {'subgroups':>9} {'workers':>8} {'predicted':>10} {'measured':>9} {'ratio':>6}")
    worst = 0.0
    for n, d, cells, workers in (
        (120_000, 128, (8, 2), 1),
        (120_000, 128, (8, 2), 2),
        (240_000, 128, (8, 2), 1),
        (120_000, 256, (8, 2), 1),
        (120_000, 256, (8, 2), 2),
        (120_000, 128, (16, 2), 1),
    ):
        rows = synthetic(n, d, *cells)
        told = predicted(rates, n, d, cells[0] * cells[1], workers)
        found = measured(rows, cells, workers)
        worst = max(worst, abs(told / found - 1))
        print(f"{n:>9,} {d:>5} {cells[0] * cells[1]:>9} {workers:>8} {told:>9.3f}s {found:>8.3f}s {told / found:>6.2f}")
    print(f"\nlargest deviation: {worst:.0%}")
    hours = predicted(rates, 10**9, 4096, 56, 1) / 3600
    print(f"10^9 rows x 4096, one thread like this: {hours:,.0f} h; a hundred: {hours / 100:,.1f} h")
    return int(worst > 0.25)


def past_the_limit() -> None:
    """What models cost that need less: the divergence that remains of a problem of many features."""
    rows = synthetic(60_000, 96, 4, 2)
    X, y, group = rows
    X = X @ np.linalg.qr(np.random.default_rng(1).normal(size=(96, 96)))[0]
    X[group == 1] *= np.linspace(0.7, 1.4, 96)
    moments = SubgroupMoments(96, classes=range(4), groups=range(2), covariance="full").update(X, y, group)
    whole = nearest_ideal(moments.tie(standardize=True), intervention="affirmative", reference_group=0)
    before = _between(moments, np.eye(96)[None].repeat(2, 0), np.zeros((2, 96)))
    print("\ndistance of the groups' class means and spreads that is left, as a share of what it was:")
    for name, linear, offset in (
        ("affine", whole.linear, whole.offset),
        *((kind, *_maps(moments, kind)) for kind in ("diagonal", "translation")),
        ("blocks of 24 features", *_blocks(moments, 24)),
        ("24 random directions", *_subspace(moments, 24)),
    ):
        print(f"  {name:<24} {_between(moments, linear, offset) / before:.3f}")


def past_the_limit_on_biographies(folder: Path | None) -> None:
    """What the same models cost on embeddings of biographies: held-out accuracy and gaps of 28 occupations."""
    if folder is None:
        print("\n(no biographies: name the folder of the data sets)")
        return
    rows = datasets.biographies(folder)
    X, y, group = np.asarray(rows.X, dtype=np.float64), rows.y, rows.group
    train = np.random.default_rng(0).random(len(y)) < 0.5
    scale = X[train].std(axis=0)
    X = ((X - X[train].mean(axis=0))[:, scale > 0]) / scale[scale > 0]
    d = X.shape[1]
    moments = SubgroupMoments(d, classes=range(y.max() + 1), groups=range(2), covariance="full")
    moments.update(X[train], y[train], group[train])
    whole = nearest_ideal(moments.tie(standardize=True), intervention="affirmative", reference_group=0)
    same = np.eye(d)[None].repeat(2, 0), np.zeros((2, d))
    before = _between(moments, *same)
    print(f"\n{len(y):,} biographies x {d}, half of them held out; linear discriminant analysis")
    print(f"{'maps':<24} {'left':>6} {'accuracy':>9} {'RMS TPR gap':>12}")
    for name, linear, offset in (
        ("none", *same),
        ("affine", whole.linear, whole.offset),
        (f"blocks of {d // 8} features", *_blocks(moments, d // 8)),
        *((kind, *_maps(moments, kind)) for kind in ("diagonal", "translation")),
        (f"{d // 8} random directions", *_subspace(moments, d // 8)),
    ):
        steered = np.empty_like(X)
        for a in range(2):
            steered[group == a] = X[group == a] @ linear[a].T + offset[a]
        rule = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.01).fit(steered[train], y[train])
        right = rule.predict(steered[~train]) == y[~train]
        cells, n_cells = group[~train] * len(moments.classes) + y[~train], 2 * len(moments.classes)
        rates = (np.bincount(cells, right, n_cells) / np.bincount(cells, minlength=n_cells)).reshape(2, -1)
        gap = np.sqrt(np.mean((rates[0] - rates[1]) ** 2))
        left = _between(moments, linear, offset) / before
        print(f"{name:<24} {left:>6.2f} {right.mean():>9.4f} {gap:>12.3f}", flush=True)


def _maps(moments: SubgroupMoments, map_type: Any) -> Rows | Any:
    found = nearest_ideal(
        moments.tie(standardize=True), map_type=map_type, intervention="affirmative", reference_group=0
    )
    return np.stack([np.diag(one) if one.ndim == 1 else one for one in found.linear]), found.offset


def _part(moments: SubgroupMoments, basis: npt.NDArray[Any]) -> SubgroupMoments:
    """Moments of rows times a basis (d, m)."""
    return SubgroupMoments.from_statistics(
        moments.weights, moments.means @ basis, basis.T @ moments.covariances @ basis, covariance="full"
    )


def _blocks(moments: SubgroupMoments, size: int) -> Any:
    d, G = moments.n_features, moments.n_groups
    linear, offset = np.zeros((G, d, d)), np.zeros((G, d))
    for start in range(0, d, size):
        block = slice(start, start + size)
        part = _part(moments, np.eye(d)[:, block]).tie(standardize=True)
        found = nearest_ideal(part, intervention="affirmative", reference_group=0)
        linear[:, block, block], offset[:, block] = found.linear, found.offset
    return linear, offset


def _subspace(moments: SubgroupMoments, size: int) -> Any:
    d = moments.n_features
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(d, size)))[0]
    part = _part(moments, basis).tie(standardize=True)
    found = nearest_ideal(part, intervention="affirmative", reference_group=0)
    rest = np.eye(d) - basis @ basis.T
    return rest + basis @ found.linear @ basis.T, found.offset @ basis.T


def _between(moments: SubgroupMoments, linear: npt.NDArray[Any], offset: npt.NDArray[Any]) -> float:
    """Distance of two groups after maps, of class means and of covariances, in units of the first one's spread."""
    means = np.einsum("aij,kaj->kai", linear, moments.means) + offset
    covariances = linear @ moments.covariances @ np.swapaxes(linear, 1, 2)
    spread = np.sqrt(np.trace(covariances[:, 0].mean(axis=0)))
    of_means = np.linalg.norm(means[:, 0] - means[:, 1], axis=1).mean() / spread
    of_spreads = np.linalg.norm(covariances[:, 0] - covariances[:, 1], axis=(1, 2)).mean() / spread**2
    return float(np.hypot(of_means, of_spreads))


# ---- Dask


def on_dask(folder: Path | None) -> int:
    """Fit on two worker processes and in one, and compare times and maps."""
    import dask.array as da
    from dask.distributed import Client, LocalCluster, wait

    X, y, group = _acs(folder) or synthetic(665_800, 10, 2, 18)
    steer = FairSteeringTransformer(map_type="affine", standardize=True)
    with threadpool_limits(1):
        alone = best(lambda: steer.fit(X, y, sensitive_features=group))
        alone_cpu = best(lambda: steer.fit(X, y, sensitive_features=group), clock=time.process_time)
    expected = steer.fit(X, y, sensitive_features=group)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        parts = [da.from_array(one, chunks=(100_000, *one.shape[1:])) for one in (X, y, group)]
        rows, labels, groups = client.persist(parts)
        wait([rows, labels, groups])
        fitted = FairSteeringTransformer(map_type="affine", standardize=True)
        seconds = best(lambda: fitted.fit(rows, labels, sensitive_features=groups))

        def processors() -> float:
            return time.process_time() + float(sum(client.run(time.process_time).values()))

        cpu = best(lambda: fitted.fit(rows, labels, sensitive_features=groups), clock=processors)
        print(f"\n{len(X):,} rows x {X.shape[1]}, {len(np.unique(y))} x {len(np.unique(group))} subgroups")
        print(f"one process {alone:.2f} s, Dask with two workers {seconds:.2f} s: {seconds / alone:.2f} times as long")
        print(f"of processors {alone_cpu:.2f} and {cpu:.2f} s: {cpu / alone_cpu:.2f} times as much")
        off = distance(expected, fitted)
        print(f"maps differ by {off:.1e}")
    return int(off > 1e-10)


def _acs(folder: Path | None) -> Rows | None:
    """ACS income, with race and sex as the groups and neither among the features."""
    if folder is None:
        return None
    rows = datasets.acs_income(folder, "sex")
    names = ["class_of_worker", "marital_status", "occupation", "relationship", "born_in_the_us"]
    features = datasets._features(["age", "education", "hours_per_week"], [], names, min_frequency=0.01)
    X = np.asarray(features.fit_transform(rows.X), dtype=np.float64)
    group = rows.X["race"].astype(str) + ", " + rows.X["sex"].astype(str)
    return X, rows.y, group.to_numpy(dtype=str)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__.splitlines()[0])
    parser.add_argument("--dask", action="store_true", help="two worker processes beside one process")
    parser.add_argument("--limit", action="store_true", help="only what models cost that need less than a full one")
    datasets.add_data_option(parser)
    arguments = parser.parse_args()
    fairsteer.show_versions()
    if arguments.dask:
        return on_dask(arguments.data)
    past_the_limit()
    past_the_limit_on_biographies(arguments.data)
    if arguments.limit:
        return 0
    return cost_model()


if __name__ == "__main__":
    sys.exit(main())
