"""``python -m benchmarks.interruption``: kill ``steer``, ``moments``, ``apply`` and ``merge`` at random moments.

After every kill the output must be the old one or the whole new one; the next run must end with the bytes of a run that
nobody disturbed (``steer`` and ``moments`` with ``--resume``, from the last checkpoint), and leave nothing else in the
folder. Runs are forked from one process that has imported everything, so that kills meet the work and not the imports.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from fairsteer import cli
from fairsteer.cli import _app, _apply, _audit, _moments, _steer

_IMPORTED = (_app, _apply, _audit, _moments, _steer)
_TABLE = ("--target", "hired", "--sensitive", "sex", "--memory", "1M")


def write_table(path: Path, n_rows: int) -> None:
    """Write rows of eight features that differ between two groups and two classes."""
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 2, (2, n_rows))
    table = pd.DataFrame(rng.normal(size=(n_rows, 8)) + y[:, None] + group[:, None], columns=list("abcdefgh"))
    table["sex"], table["hired"] = np.array(["f", "m"])[group], np.array(["no", "yes"])[y]
    table.to_csv(path, index=False)


def start(*arguments: str) -> int:
    """Run a command in a process of its own; give its number."""
    pid = os.fork()
    if pid:
        return pid
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        try:
            cli.main(arguments)
        except SystemExit as ended:
            os._exit(int(ended.code or 0))
    os._exit(1)


def run(*arguments: str) -> None:
    """Run a command to its end."""
    _, status = os.waitpid(start(*arguments), 0)
    if status:
        msg = f"fairsteer {' '.join(arguments)} ended with status {status}"
        raise RuntimeError(msg)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interruption", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rows", type=int, default=20_000)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        write_table(Path("rows.csv"), arguments.rows)
        run("steer", "rows.csv", *_TABLE, "--map", "map.safetensors")
        for name in ("one", "two"):
            run("moments", "rows.csv", *_TABLE, "--out", f"{name}.safetensors")
        jobs = {
            "steer": (["steer", "rows.csv", *_TABLE, "--checkpoint-every", "0", "--map", "out.safetensors"], True),
            "moments": (["moments", "rows.csv", *_TABLE, "--checkpoint-every", "0", "--out", "out.safetensors"], True),
            "merge": (["merge", "one.safetensors", "two.safetensors", "--out", "out.safetensors"], False),
            "apply": (["apply", "map.safetensors", "rows.csv", "--memory", "1M", "--out", "out.csv"], False),
        }
        inputs = set(folder.iterdir())
        whole, seconds = {}, {}
        for job, (command, _) in jobs.items():
            began = time.perf_counter()
            run(*command)
            seconds[job] = time.perf_counter() - began
            whole[job] = (folder / command[-1]).read_bytes()
            (folder / command[-1]).unlink()
        counts = dict.fromkeys(("old", "new", "partial", "litter", "other bytes", "resumed", "died"), 0)
        for i in range(arguments.kills):
            job = list(jobs)[i % len(jobs)]
            command, resumes = jobs[job]
            out = folder / command[-1]
            out.write_bytes(b"old")
            pid = start(*command, "--force")
            time.sleep(rng.uniform(0, 1.05 * seconds[job]))
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            counts["died"] += int(os.WIFSIGNALED(status))
            found = out.read_bytes()
            counts["old" if found == b"old" else "new" if found == whole[job] else "partial"] += 1
            counts["resumed"] += bool(resumes and list(folder.glob("*.checkpoint")))
            run(*command, "--force", *(["--resume"] if resumes else []))
            counts["other bytes"] += out.read_bytes() != whole[job]
            out.unlink()
            counts["litter"] += len(set(folder.iterdir()) - inputs)
        os.chdir("/")
    print(f"{arguments.kills} kills of {', '.join(f'{job} ({s:.1f} s)' for job, s in seconds.items())}")
    for what, n in counts.items():
        print(f"  {what:<12} {n}")
    return int(bool(counts["partial"] or counts["litter"] or counts["other bytes"]))


if __name__ == "__main__":
    sys.exit(main())
