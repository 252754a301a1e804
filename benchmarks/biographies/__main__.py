"""``python -m benchmarks.biographies``: occupation by embeddings of biographies, and how well it works for each gender.

Every method changes features or weights; a linear classifier follows: logistic regression ("LR"), linear discriminant
analysis ("LDA"; after steering that is the Bayes rule of the ideal distribution) or both, pooled. Then, in lines of its
own, comes the alignment of their scores. All are trained and aligned on training rows alone. The label of a test row is
used to score its prediction, and for nothing else; its gender only where it says "known".

Measured on the test rows of the data (9,016), or with ``--cross-validate`` on all rows, by nested cross-validation.
Writes ``results.csv``, ``occupations.csv``, ``README.md`` and pictures to ``--output``.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

from benchmarks import datasets
from benchmarks.biographies import report
from benchmarks.biographies.methods import ORIGINAL, predictions, runs, sample

OUTPUT = Path(__file__).parents[1] / "results" / "biographies"
MODEL_OUTPUT = OUTPUT.with_name("language_model")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.biographies", description=__doc__.splitlines()[0])
    datasets.add_data_option(parser)
    parser.add_argument(
        "--cross-validate", action="store_true", help="measure all rows of the embeddings, in five folds"
    )
    parser.add_argument("--slow", action="store_true", help="also maps that take minutes: symmetric, pooled-full")
    parser.add_argument(
        "--rows", type=int, metavar="N", help="about N rows instead of all; with --model N instead of 4,864"
    )
    parser.add_argument("--only", metavar="NAME", help="the run of this name: embeddings, layer 4, …")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="besides the original only these: tied, LEACE, …")
    parser.add_argument(
        "--model", choices=["smollm2"], help="hidden states of this language model instead of the embeddings"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="with --model: where its states are kept, and found again"
    )
    parser.add_argument("--dtype", default="bfloat16", help="with --model: its type (default: bfloat16)")
    parser.add_argument("--output", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("this needs real data: name their folder by --data or the variable FAIRSTEER_DATA")
    warnings.filterwarnings("ignore", "Gaps of", UserWarning)  # the budget reached is in the tables
    # Shares matter to weights, which are not taken here: the maps may well move one gender alone.
    warnings.filterwarnings("ignore", "The nearest ideal distribution all but leaves out", UserWarning)
    warnings.filterwarnings("ignore", "The divergence did not converge", UserWarning)  # of the slow maps
    if arguments.model is not None:
        return _of_model(arguments)
    output = arguments.output or OUTPUT
    for data, chosen in runs(arguments.data, arguments.cross_validate, arguments.slow):
        if arguments.only and arguments.only != data.name:
            continue
        if arguments.methods:
            chosen = [method for method in chosen if method.name in (ORIGINAL, *arguments.methods)]
        start = time.perf_counter()
        rows = data if arguments.rows is None else sample(data, arguments.rows)
        report.add(output, rows, list(predictions(rows, chosen)))
        print(f"{data.name}: {time.perf_counter() - start:.0f} s in all", file=sys.stderr, flush=True)
    report.write(output)
    return 0


def _of_model(arguments: argparse.Namespace) -> int:
    import torch

    from benchmarks.biographies import model, states

    start = time.perf_counter()
    output = arguments.output or MODEL_OUTPUT
    with tempfile.TemporaryDirectory() as folder:
        cache = arguments.cache or Path(folder)
        for data, lines in model.run(
            arguments.data, cache, getattr(torch, arguments.dtype), arguments.only, arguments.rows or states.ROWS
        ):
            report.add(output, data, lines, by_occupation=False)
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds, cpu = time.perf_counter() - start, used.ru_utime + used.ru_stime
    print(f"{seconds:.0f} s in all ({cpu:.0f} s of CPU), a peak of {used.ru_maxrss / 2**20:.2f} GiB", file=sys.stderr)
    model.write(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
