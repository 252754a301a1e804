"""``python -m benchmarks.device``: moments of rows on a device, as a share of the rate at which it multiplies matrices.

Rows are drawn on the device and added up there, as `collect_activations` does with hidden states; beside it the product
of two matrices of the size of a block, in single precision without TensorFloat-32, and the same rows added up by the
processor. Runs on a GPU where torch finds one, else on the processor, on which `--device cpu` measures the same code at
a smaller size.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import fairsteer
from benchmarks import timing
from fairsteer import SubgroupMoments
from fairsteer.moments._device import DeviceSums

N_CLASSES, N_GROUPS = 28, 2


def seconds(run: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Median time of a run, the device's work included; the first one, which warms up, does not count."""
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        wait(device)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))


def batches(n_rows: int, d: int, step: int, dtype: torch.dtype, device: torch.device) -> Iterator[Any]:
    """Yield rows of 56 cells of uneven sizes, drawn where they are needed."""
    rng = np.random.default_rng(0)
    random = torch.Generator(device).manual_seed(0)
    shares = rng.dirichlet(np.ones(N_CLASSES * N_GROUPS))
    for begin in range(0, n_rows, step):
        n = min(step, n_rows - begin)
        cell = rng.choice(len(shares), n, p=shares)
        rows = torch.randn((n, d), generator=random, device=device).to(dtype)
        yield rows, cell // N_GROUPS, cell % N_GROUPS


class There:
    """Moments where the rows lie."""

    def __init__(self, d: int) -> None:
        self._sums: DeviceSums | None = None

    def add(self, rows: torch.Tensor, y: Any, group: Any) -> None:
        if self._sums is None:
            self._sums = DeviceSums(rows, "tied", N_CLASSES, N_GROUPS)
        self._sums.add(rows, y * N_GROUPS + group, None)

    def scatters(self) -> Any:
        assert self._sums is not None
        return self._sums.home()[3]


class Here:
    """Moments by the processor, to which rows are brought."""

    def __init__(self, d: int) -> None:
        self._moments = SubgroupMoments(d, classes=range(N_CLASSES), groups=range(N_GROUPS))

    def add(self, rows: torch.Tensor, y: Any, group: Any) -> None:
        self._moments.update(rows.float().cpu().numpy(), y, group)

    def scatters(self) -> Any:
        return self._moments._scatters


def added(moments: There | Here, parts: Iterator[Any], device: torch.device) -> float:
    """Seconds of adding rows up, a batch at a time, so that rows that fit into no memory can be measured."""
    taken = 0.0
    for part in parts:
        wait(device)
        start = time.perf_counter()
        moments.add(*part)
        wait(device)
        taken += time.perf_counter() - start
    return taken


def wait(device: torch.device) -> None:
    """Let the device end what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--batch-rows", type=int, default=65_536)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processor-rows", type=int, default=65_536, help="rows that the processor adds up too")
    parser.add_argument("--rounds", type=int, default=3, help="tens of products, of which the median counts")
    arguments = parser.parse_args()
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    n, d = arguments.rows, arguments.features
    fairsteer.show_versions()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"\ntorch {torch.__version__} on {device} ({name})")
    print(f"{n:,} rows x {d} {arguments.dtype}, {N_CLASSES} x {N_GROUPS} cells, tied\n")

    block = torch.randn((1024, d), device=device)
    torch.set_float32_matmul_precision("highest")
    product = seconds(lambda: block.T @ block, device, 10 * arguments.rounds)
    rate = 2 * 1024 * d * d / product
    print(f"{'product of a block, (d, 1024) x (1024, d), float32':<60} {rate / 1e12:>8.3f} TFlop/s")

    def rows(most: int) -> Iterator[Any]:
        return batches(min(most, n), d, arguments.batch_rows, dtype, device)

    added(There(d), rows(arguments.batch_rows), device)  # what is compiled and allocated on first use
    there, here = There(d), Here(d)
    taken = added(there, rows(n), device)
    start = time.perf_counter()
    there.scatters()
    back = time.perf_counter() - start
    flops = 2 * n * d * d
    print(
        f"{'moments where the rows lie':<60} {flops / taken / 1e12:>8.3f} TFlop/s, {timing.duration(taken)}, "
        f"{n / taken:,.0f} rows/s: {flops / taken / rate:.0%} of the product's rate"
    )
    print(f"{'their way back, once':<60} {timing.duration(back):>8}")
    # Of many rows, some stand for all: the processor takes its time.
    some = min(n, arguments.processor_rows)
    by_processor = added(here, rows(some), device)
    name = f"{some:,} rows by the processor, brought to it"
    print(
        f"{name:<60} {2 * some * d * d / by_processor / 1e12:>8.3f} TFlop/s, {timing.duration(by_processor)}: "
        f"{by_processor / some / (taken / n):.2f} times as long a row"
    )
    again = There(d)
    added(again, rows(some), device)
    apart = np.abs(again.scatters() - here.scatters()).max() / np.abs(here.scatters()).max()
    print(f"{'largest difference of the scatters of these, relative':<60} {apart:>8.1e}")


if __name__ == "__main__":
    main()
