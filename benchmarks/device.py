"""``python -m benchmarks.device``: moments of rows on a device, as a share of the rate at which it multiplies matrices.

Rows are drawn on the device and added up there, as `collect_activations` does with hidden states; beside it the product
of two matrices of the size of a block, in single precision without TensorFloat-32, and the same rows added up by the
processor. Runs on a GPU where torch finds one, else on the processor, on which `--device cpu` measures the same code at
a smaller size.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
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
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))


def batches(n_rows: int, d: int, step: int, dtype: torch.dtype, device: torch.device) -> Any:
    """Yield rows of 56 cells of uneven sizes, drawn where they are needed."""
    rng = np.random.default_rng(0)
    random = torch.Generator(device).manual_seed(0)
    shares = rng.dirichlet(np.ones(N_CLASSES * N_GROUPS))
    for begin in range(0, n_rows, step):
        n = min(step, n_rows - begin)
        cell = rng.choice(len(shares), n, p=shares)
        rows = torch.randn((n, d), generator=random, device=device).to(dtype)
        yield rows, cell // N_GROUPS, cell % N_GROUPS


def moments_there(parts: list[Any], d: int) -> DeviceSums:
    sums = DeviceSums(parts[0][0], "tied", N_CLASSES, N_GROUPS)
    for rows, y, group in parts:
        sums.add(rows, y * N_GROUPS + group, None)
    return sums


def moments_here(parts: list[Any], d: int) -> SubgroupMoments:
    moments = SubgroupMoments(d, classes=range(N_CLASSES), groups=range(N_GROUPS))
    for rows, y, group in parts:
        moments.update(rows, y, group)
    return moments


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--batch-rows", type=int, default=65_536)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
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

    def whole(of: Callable[[list[Any], int], Any]) -> tuple[float, Any]:
        # A batch at a time, so that rows that fit into no memory can be measured.
        taken, found = 0.0, None
        for part in batches(n, d, arguments.batch_rows, dtype, device):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            if found is None:
                found = of([part], d)
            elif isinstance(found, DeviceSums):
                found.add(part[0], part[1] * N_GROUPS + part[2], None)
            else:
                found.update(*part)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken += time.perf_counter() - start
        return taken, found

    whole(moments_there) if device.type == "cuda" else None  # what is compiled and allocated on first use
    there, sums = whole(moments_there)
    start = time.perf_counter()
    home = sums.home()
    back = time.perf_counter() - start
    flops = 2 * n * d * d
    print(
        f"{'moments where the rows lie':<60} {flops / there / 1e12:>8.3f} TFlop/s, {timing.duration(there)}, "
        f"{n / there:,.0f} rows/s: {flops / there / rate:.0%} of the product's rate"
    )
    print(f"{'their way back, once':<60} {timing.duration(back):>8}")
    here, moments = whole(moments_here) if device.type == "cpu" else _by_the_processor(arguments, dtype, device)
    print(
        f"{'moments by the processor' + (' (rows brought to it)' if device.type != 'cpu' else ''):<60} "
        f"{flops / here / 1e12:>8.3f} TFlop/s, {timing.duration(here)}: {here / there:.2f} times as long"
    )
    if moments is not None:
        scatters = moments._scatters
        apart = np.abs(home[3] - scatters).max() / np.abs(scatters).max()
        print(f"{'largest difference of the scatters, relative':<60} {apart:>8.1e}")


def _by_the_processor(arguments: Any, dtype: torch.dtype, device: torch.device) -> tuple[float, None]:
    """Time of a few batches, brought to the processor, as that of all of them."""
    step = min(arguments.batch_rows, arguments.rows)
    part = next(batches(step, arguments.features, step, dtype, device))
    moments = SubgroupMoments(arguments.features, classes=range(N_CLASSES), groups=range(N_GROUPS))
    start = time.perf_counter()
    moments.update(part[0].float().cpu().numpy(), part[1], part[2])
    return (time.perf_counter() - start) * arguments.rows / step, None


if __name__ == "__main__":
    main()
