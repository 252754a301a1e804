"""Call every function of the compiled core with random arguments, many of them wrong.

A call may succeed or raise what it documents; it may neither crash nor return a number that is not finite. Calls run in
processes of their own, so that a crash is counted and its seed is known:

    python tests/_core/fuzz_core.py --calls 30000
    python tests/_core/fuzz_core.py --seed 1234     # one call again, in this process
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fairsteer import _core

core: Any = _core  # for calls that its types forbid

#: Calls of one process, and seconds after which it is ended.
BATCH = 500
LONGEST = 900

EXPECTED = (ValueError, TypeError, MemoryError, OverflowError)  # numpy.linalg.LinAlgError is a ValueError

EXTREMES = [np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, 1e-310, 1e-160, 1e-30, 1e30, 1e160, 1.7e308, -1.0]
KINDS = ["tied", "full", "diagonal"]


def known(kind: str, sums: Any) -> Any:
    """What sums say: those of a cell of weight 0, or of a group of such cells, are not read."""
    weight, weight_square, mean, scatter, cubic, quartic = sums
    seen = ~(weight == 0)
    behind = seen.any(axis=0) if kind == "tied" else seen
    return weight, weight_square[seen], mean[seen], scatter[behind], cubic[seen], quartic[seen]


class Arguments:
    """Random arguments, of which some are spoilt."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.spoilt = self.chance(0.5)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def size(self, *usual: int) -> int:
        return int(self.pick(usual))

    def scale(self) -> float:
        return float(self.pick([1.0, 1.0, 1.0, 1e-150, 1e-30, 1e-10, 1e9, 1e20, 1e150]))

    def values(self, shape: Any, *, positive: bool = False, dtype: Any = np.float64) -> Any:
        """Numbers of one size, or of all sizes, some of them extreme."""
        array = self.rng.normal(size=shape)
        if positive:
            array = np.abs(array)
        if self.chance(0.2):
            array *= 10.0 ** self.rng.integers(-12, 12, size=array.shape[-1:] or None)
        with np.errstate(all="ignore"):
            array = (array * self.scale()).astype(dtype)
            if self.spoilt and self.chance(0.2) and array.size:
                for _ in range(self.rng.integers(1, 4)):
                    array.flat[self.rng.integers(array.size)] = self.pick(EXTREMES)
        return array

    def codes(self, n: int, n_codes: int) -> Any:
        codes = self.rng.integers(-1 if self.chance(0.3) else 0, max(n_codes, 1), size=n)
        if self.chance(0.2):
            codes = np.full(n, max(n_codes - 1, 0))
        if self.spoilt and self.chance(0.1) and n:
            codes[self.rng.integers(n)] = self.pick([n_codes, 2**62, -(2**63), 2**31])
        return codes.astype(np.int64)

    def covariances(self, shape: Any) -> Any:
        """Positive definite, singular or worse."""
        d = shape[-1]
        root = self.values((*shape[:-2], d, self.size(2 * d + 1, 2 * d + 1, max(d, 1), 1)))
        with np.errstate(all="ignore"):
            matrices = root @ np.swapaxes(root, -1, -2)
        if self.spoilt and self.chance(0.1):
            matrices = self.values(matrices.shape)
        return np.ascontiguousarray(matrices)

    def laid_out(self, array: Any) -> Any:
        """The same rows in some layout."""
        layout = self.pick(["C", "C", "C", "F", "strided", "negative", "record", "broadcast", "locked"])
        if layout == "F":
            return np.asfortranarray(array)
        if layout == "negative":
            return np.ascontiguousarray(array[::-1])[::-1]
        if layout == "strided":
            base = np.zeros((2 * array.shape[0], *array.shape[1:]), array.dtype)
            base[::2] = array
            return base[::2]
        if layout == "record":
            base = np.zeros(array.shape, dtype=[("flag", "u1"), ("value", array.dtype)])
            base["value"] = array
            return base["value"]
        if layout == "broadcast" and len(array):
            return np.broadcast_to(array[0], array.shape)
        if layout == "locked":
            array.flags.writeable = False
        return array

    def wrong(self, array: Any) -> Any:
        """Now and then another shape, type, order or address."""
        if not (self.spoilt and self.chance(0.08)) or not isinstance(array, np.ndarray):
            return array
        how = self.pick(["shape", "axis", "type", "order", "address", "none", "text", "swapped", "empty"])
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if how == "shape":
                return np.ascontiguousarray(array[..., :-1]) if array.ndim else array
            if how == "axis":
                return array[None]
            if how == "type":
                return array.astype(self.pick([np.float32, np.int32, np.complex128, object, np.longdouble, bool]))
            if how == "order":
                return np.asfortranarray(array)
            if how == "address":
                space = np.zeros(array.nbytes + 1, dtype=np.uint8)
                moved = space[1:].view(array.dtype).reshape(array.shape) if array.nbytes else array
                moved[...] = array
                return moved
            if how == "swapped":
                return array.astype(array.dtype.newbyteorder())
            if how == "empty":
                return array[:0]
        return None if how == "none" else "text"

    def threads(self) -> int:
        return int(self.pick([1, 1, 2, 5, 0, -1]))

    def sums(self, kind: str, K: int, G: int, d: int, *, filled: bool) -> Any:
        scatter = {"tied": (G, d, d), "full": (K, G, d, d), "diagonal": (K, G, d)}[kind]
        quartic = (K, G, d) if kind == "diagonal" else (K, G)
        shapes = [(K, G), (K, G), (K, G, d), scatter, (K, G, d), quartic]
        arrays = [np.zeros(shape) for shape in shapes]
        if filled:
            n = self.size(1, 5, 60)
            rows = self.rng.normal(size=(n, d))
            y, a = self.rng.integers(K, size=n), self.rng.integers(G, size=n)
            _core.update_moments(kind, tuple(arrays), rows, y, a)
        if self.spoilt and self.chance(0.15):
            spoilt = self.pick(arrays)
            if spoilt.size:
                spoilt.flat[self.rng.integers(spoilt.size)] = self.pick(EXTREMES)
            if kind != "diagonal":  # symmetric all the same, as the core expects
                arrays[3] = np.tril(arrays[3]) + np.swapaxes(np.tril(arrays[3], -1), -1, -2)
        return tuple(arrays)

    # ---- functions

    def lay_out(self) -> None:
        n, d = self.size(0, 1, 15, 16, 17, 300), self.size(0, 1, 3, 8, 16, 33, 70)
        dtype = self.pick([np.float32, np.float64])
        table = self.values((d, n), dtype=dtype)
        out = np.full((n, d), np.nan, dtype=dtype)
        into, columns = self.wrong(out), [self.wrong(column) for column in table]
        core.lay_out(columns, into)
        np.testing.assert_array_equal(into, np.stack(columns, axis=1) if d else out)

    def update_moments(self) -> None:
        kind = self.pick(KINDS)
        K, G, d = self.size(1, 2, 3, 7), self.size(1, 2, 5), self.size(1, 2, 3, 8, 65, 90)
        n = self.size(0, 1, 2, 30, 300, 5000 if self.chance(0.05) else 40)
        sums = self.sums(kind, K, G, d, filled=self.chance(0.3))
        before = [array.copy() for array in sums]
        given = tuple(self.wrong(array) for array in sums)
        X = self.laid_out(self.values((n, d), dtype=self.pick([np.float64, np.float32, np.float16])))
        weights = self.values(n, positive=True) if self.chance(0.4) else None
        arguments = [given, X, self.codes(n, K), self.codes(n, G), weights]
        arguments[1:] = [self.wrong(argument) for argument in arguments[1:]]
        try:
            core.update_moments(self.name(kind), *arguments, self.threads())
        except EXPECTED:
            if all(one is other for one, other in zip(given, sums, strict=True)):
                for array, old in zip(known(kind, sums), known(kind, before), strict=True):
                    assert np.array_equal(array, old, equal_nan=True), "a refused update changed the sums"
            raise
        weight, _, mean, scatter, *_ = known(kind, given)
        assert np.isfinite(weight).all(), "weights"
        assert np.isfinite(mean).all(), "means"
        variances = scatter if kind == "diagonal" else np.diagonal(scatter, axis1=-2, axis2=-1)
        assert np.isfinite(variances).all(), "variances"

    def merge_moments(self) -> None:
        kind = self.pick(KINDS)
        d = self.size(1, 2, 5, 70)
        K, G, L, H = (self.size(1, 2, 3) for _ in range(4))
        into = self.sums(kind, K, G, d, filled=self.chance(0.5))
        other = into if self.chance(0.05) else self.sums(kind, L, H, d, filled=self.chance(0.8))
        if self.chance(0.3):  # any cells at all
            cells = self.rng.integers(-1, K * G + 1, size=L * H)
        else:  # classes to classes, groups to groups
            k, a = self.rng.permutation(max(K, L))[:L], self.rng.permutation(max(G, H))[:H]
            cells = (k[:, None] * G + a).ravel()
        _core.merge_moments(
            self.name(kind),
            tuple(map(self.wrong, into)),
            tuple(map(self.wrong, other)),
            self.wrong(cells.astype(np.int64)),
        )
        weight, _, mean, *_ = known(kind, into)
        assert np.isfinite(weight).all(), "weights"
        assert np.isfinite(mean).all(), "means"

    def nearest_ideal(self) -> None:
        kind = self.pick(KINDS)
        K, G, d = self.size(1, 2, 3, 4), self.size(1, 2, 3), self.size(1, 2, 3, 5, 12)
        weights = self.rng.integers(0 if self.chance(0.4) else 1, 50, size=(K, G)).astype(float)
        if self.chance(0.2):
            weights = self.values((K, G), positive=True)
        scale = self.scale()
        means = self.rng.normal(size=(K, G, d)) * self.pick([1.0, 0.0, 1e3, 1e-6]) * scale
        with np.errstate(all="ignore"):
            if kind == "diagonal":
                covariances = np.exp(self.rng.normal(size=(K, G, d)) * self.pick([0.0, 1.0, 20.0])) * scale**2
            else:
                shape = (G, d, d) if kind == "tied" else (K, G, d, d)
                root = self.rng.normal(size=(*shape[:-1], 2 * d + 1))
                covariances = root @ np.swapaxes(root, -1, -2) * scale**2
                if self.chance(0.1):
                    covariances[..., :, 0] = covariances[..., 0, :] = 0
            if self.chance(0.1):
                covariances = np.broadcast_to(covariances[:1], covariances.shape).copy()
            if self.spoilt and self.chance(0.1):
                covariances = self.covariances(covariances.shape) if kind != "diagonal" else self.values((K, G, d))
            if self.spoilt and self.chance(0.1):
                means = self.values((K, G, d))
        found = _core.nearest_ideal(
            self.name(kind),
            self.wrong(weights),
            self.wrong(np.ascontiguousarray(means)),
            self.wrong(np.ascontiguousarray(covariances)),
            self.pick(["all_subgroups", "affirmative", "all_subgroups" if not self.spoilt else "neither"]),
            int(self.rng.integers(0, G)) if not self.spoilt else int(self.pick([0, -1, G, 2**40])),
            self.pick(["affine", "affine", "symmetric", "affine" if not self.spoilt else "round"]),
            int(self.pick([1, 5, 200, 2**62, 0 if self.spoilt else 20, -1 if self.spoilt else 20])),
            float(self.pick([1e-6, 1e-6, 0.0, 1e-2, np.nan if self.spoilt else 1e-3])),
            float(self.pick([0.3, 0.3, 0.0, np.nan if self.spoilt else 0.1])),
        )
        for name, value in found.items():
            assert np.isfinite(value).all(), name
        assert found["kl_divergence"] >= 0, "kl_divergence"
        assert abs(found["class_prior"].sum() - 1) < 1e-9, "class_prior"

    def nearest_ideal_posterior(self) -> None:
        G, S = self.size(1, 2, 3), self.size(2, 5, 5, 20, 1 if self.spoilt else 9)
        T = self.size(S, S, S, 2, 20)
        source, target = (np.sort(self.rng.normal(size=n) * self.pick([0.1, 1.0, 5.0])) for n in (S, T))
        laws = self.rng.random((G, S)) * (self.rng.random((G, S)) < self.pick([1.0, 1.0, 0.6]))
        with np.errstate(all="ignore"):
            laws = laws / laws.sum(axis=1, keepdims=True)
        shares = self.rng.random(G) + 0.01
        if self.spoilt and self.chance(0.2):
            laws, shares = self.values((G, S), positive=self.chance(0.5)), self.values(G, positive=self.chance(0.5))
        if self.spoilt and self.chance(0.2):
            source, target = self.values(S), self.values(T)
        with np.errstate(all="ignore"):
            shares = shares / shares.sum() if self.chance(0.9) else shares
        found = _core.nearest_ideal_posterior(
            self.wrong(source),
            self.wrong(target),
            self.wrong(laws),
            self.wrong(shares),
            self.pick(["all_subgroups", "affirmative", "all_subgroups" if not self.spoilt else "neither"]),
            int(self.rng.integers(0, G)) if not self.spoilt else int(self.pick([0, -1, G, 2**40])),
            self.chance(0.5),
            int(self.pick([1, 5, 50, 0 if self.spoilt else 20])),
            float(self.pick([1e-8, 1e-6, 1e-2, np.nan if self.spoilt else 1e-3])),
        )
        assert np.isfinite(found["kl_divergence"]), "kl_divergence"
        assert np.isfinite(found["group_divergence"]).all(), "group_divergence"
        assert abs(found["target_law"].sum() - 1) < 1e-6, "target_law"
        assert ((found["posterior"] >= 0) & (found["posterior"] <= 1)).all(), "posterior"

    def nearest_ideal_cells(self) -> None:
        G, S, T = self.size(1, 2, 3), self.size(1, 2, 5, 20), self.size(1, 2, 5, 20)
        laws = self.rng.random((G, S)) * (self.rng.random((G, S)) < self.pick([1.0, 1.0, 0.6]))
        shares, common = self.rng.random(G) + 0.01, self.rng.random(T)
        with np.errstate(all="ignore"):
            laws, shares, common = (part / part.sum(axis=-1, keepdims=True) for part in (laws, shares, common))
        cost = self.rng.random((G, S, T)) * self.pick([0.1, 1.0, 10.0])
        if self.spoilt and self.chance(0.3):
            cost, laws = self.values((G, S, T), positive=self.chance(0.5)), self.values((G, S), positive=True)
        found = _core.nearest_ideal_cells(
            self.wrong(cost),
            self.wrong(laws),
            self.wrong(shares),
            self.wrong(common) if self.chance(0.3) else None,
            self.chance(0.5),
            int(self.pick([1, 5, 50, 0 if self.spoilt else 20])),
            float(self.pick([1e-8, 1e-6, 1e-2, np.nan if self.spoilt else 1e-3])),
        )
        assert np.isfinite(found["kl_divergence"]), "kl_divergence"
        assert np.isfinite(found["plan"]).all(), "plan"
        assert abs(found["target_law"].sum() - 1) < 1e-6, "target_law"

    def floor_spectra(self) -> None:
        n, d = self.size(0, 1, 3), self.size(0, 1, 2, 5, 40)
        matrices = self.wrong(self.covariances((n, d, d)))
        ranks = _core.floor_spectra(
            matrices, self.wrong(self.values(d, positive=True)), float(self.pick([1e-8, 0.0, 1.0, *EXTREMES]))
        )
        assert ((ranks >= 0) & (ranks <= d)).all(), "ranks"

    def transport_map(self) -> None:
        d = self.size(0, 1, 2, 5, 40)
        found = _core.transport_map(self.wrong(self.covariances((d, d))), self.wrong(self.covariances((d, d))))
        assert np.isfinite(found).all(), "map"

    def invert(self) -> None:
        n, d = self.size(0, 1, 3), self.size(0, 1, 2, 5, 40)
        found = _core.invert(self.wrong(self.values((n, d, d))), self.threads())
        assert np.isfinite(found).all(), "inverse"

    def map_covariances(self) -> None:
        K, G, d = self.size(0, 1, 3), self.size(0, 1, 2), self.size(0, 1, 2, 5, 40)
        maps, covariances = self.values((G, d, d)), self.covariances((K, d, d))
        found = _core.map_covariances(self.wrong(maps), self.wrong(covariances), self.threads())
        assert np.isfinite(found).all(), "covariances"

    def apply_maps(self) -> None:
        G, d, n = self.size(1, 2, 5), self.size(0, 1, 2, 3, 8, 70), self.size(0, 1, 3, 40, 300)
        dtype = self.pick([np.float64, np.float32, np.float16])
        single = np.float64 if dtype == np.float64 else np.float32
        kind = self.pick(["dense", "diagonal", "translation"])
        A = {"dense": (G, d, d), "diagonal": (G, d), "translation": None}[kind]
        X = self.laid_out(self.values((n, d), dtype=dtype))
        out = np.full((n, d), 7, dtype)
        codes = self.codes(n, G)
        arguments = [
            X,
            codes,
            None if A is None else self.values(A, dtype=single),
            None if A is None else self.values((G, d), dtype=single),
            self.values((G, d), dtype=single),
            out if not (self.spoilt and self.chance(0.05)) else X,
        ]
        arguments = [self.wrong(argument) for argument in arguments]
        with np.errstate(all="ignore"):
            core.apply_maps(*arguments, self.threads())
        if arguments[5] is out and arguments[1] is codes:
            assert (out[codes < 0] == 7).all(), "rows with a negative code were written"

    def name(self, kind: str) -> str:
        return self.pick(["spherical", "", "tied", "full", "diagonal"]) if self.spoilt and self.chance(0.03) else kind


FUNCTIONS = [
    "update_moments",
    "merge_moments",
    "nearest_ideal",
    "nearest_ideal_posterior",
    "nearest_ideal_cells",
    "floor_spectra",
    "transport_map",
    "apply_maps",
    "invert",
    "map_covariances",
]


def call(seed: int) -> str:
    """Make one call; tell how it ended."""
    arguments = Arguments(seed)
    function = FUNCTIONS[seed % len(FUNCTIONS)]
    try:
        getattr(arguments, function)()
    except EXPECTED:
        return f"{function}: refused"
    return f"{function}: accepted"


def run_batch(first: int, count: int, report: Path) -> None:
    ends: Counter[str] = Counter()
    for seed in range(first, first + count):
        report.write_text(str(seed))
        ends[call(seed)] += 1
    report.write_text("\n".join(f"{n} {end}" for end, n in ends.items()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=6000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first call")
    parser.add_argument("--seed", type=int, help="make this call alone, in this process")
    parser.add_argument("--batch", nargs=3, metavar=("FIRST", "COUNT", "REPORT"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.batch:
        run_batch(int(options.batch[0]), int(options.batch[1]), Path(options.batch[2]))
        return 0
    if options.seed is not None:
        sys.stdout.write(call(options.seed) + "\n")
        return 0
    ends: Counter[str] = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        first, last = options.first, options.first + options.calls
        while first < last:
            count = min(BATCH, last - first)
            command = [sys.executable, __file__, "--batch", str(first), str(count), str(report)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST)
                code, said = done.returncode, done.stderr.strip()[-2000:]
            except subprocess.TimeoutExpired:
                code, said = -1, f"no answer within {LONGEST} s"
            text = report.read_text()
            if code == 0:
                for line in text.splitlines():
                    n, _, end = line.partition(" ")
                    ends[end] += int(n)
                first += count
            else:  # on with the call after
                failures.append((int(text), code, said))
                first = int(text) + 1
    for end, times in sorted(ends.items()):
        sys.stdout.write(f"{end} {times}\n")
    for seed, code, said in failures:
        sys.stdout.write(f"seed {seed} ended with {code}:\n{said}\n")
    sys.stdout.write(f"{options.calls} calls, {len(failures)} failures\n")
    return min(len(failures), 1)


if __name__ == "__main__":
    sys.exit(main())
