"""Affine maps of rows, one for each code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fairsteer import _core
from fairsteer._utils.threads import own_threads
from fairsteer._utils.types import Codes, Doubles, Floats

# The core maps so few rows of a group without BLAS, so that nothing has to be arranged with its threads.
_FEW_ROWS = 4


@dataclass(frozen=True, eq=False)
class AffineMaps:
    """Maps ``x -> A[c] @ x + b[c]`` of rows with code ``c``, between identity and full strength."""

    A: Doubles
    """Matrices, (n_codes, d, d)."""
    b: Doubles
    """Shifts, (n_codes, d)."""
    moves: npt.NDArray[np.bool_]
    """Whether a map is anything but the identity, (n_codes,)."""

    @classmethod
    def at_strength(cls, linear: Doubles, offset: Doubles, strength: float) -> AffineMaps:
        """Fold the strength into maps: ``A_s = (1 - s) I + s A``, ``b_s = s b``."""
        eye = np.eye(offset.shape[1])
        A, b = (linear, offset) if strength == 1 else ((1 - strength) * eye + strength * linear, strength * offset)
        return cls(A, b, np.array([(eye != M).any() or v.any() for M, v in zip(A, b, strict=True)], dtype=bool))

    def in_precision_of(self, rows: Floats) -> tuple[Floats, Floats]:
        """Matrices and shifts as the core takes them: double for double rows, else single."""
        return (self.A, self.b) if rows.dtype == np.float64 else self._single

    @cached_property
    def _single(self) -> tuple[Floats, Floats]:
        return self.A.astype(np.float32), self.b.astype(np.float32)

    def inverse(self, labels: Sequence[Any]) -> AffineMaps:
        """Invert every map; `labels` name them in the error that a singular one raises."""
        # Partial strength can cancel a reflection; what is left is rounding of the parts, so compare with those.
        parts = 1 + np.linalg.norm(self.A - np.eye(self.A.shape[1]), ord=2, axis=(1, 2))
        smallest = np.linalg.svd(self.A, compute_uv=False)[:, -1]
        singular = np.flatnonzero(smallest <= self.A.shape[1] * np.finfo(np.float64).eps * parts)
        if singular.size:
            msg = (
                f"The map of group {labels[singular[0]]!r} is singular at this strength (smallest singular value "
                f"{smallest[singular[0]]:.1e}), so its rows cannot be recovered. Another strength has an inverse."
            )
            raise ValueError(msg)
        A = np.asarray(np.linalg.inv(self.A), dtype=np.float64)
        return AffineMaps(A, -np.einsum("cij,cj->ci", A, self.b), self.moves)

    def apply(
        self, rows: Floats, codes: Codes, proba: Callable[[Doubles], Doubles] | None = None
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Map rows.

        Parameters
        ----------
        rows : ndarray of shape (n, d)
            Rows in any floating-point type and memory layout.
        codes : ndarray of shape (n,)
            Map of each row; a negative code asks for the combination of all maps, weighted by `proba`.
        proba : callable, default=None
            Gives weights (m, n_codes) for rows (m, d); needed if there are negative codes.

        Returns
        -------
        mapped : ndarray of shape (n, d)
            New C-contiguous array of the type of `rows`; rows that do not move are the same bit for bit.
        moved : ndarray of shape (n,)
            Whether a row was mapped by anything but the identity.
        """
        mixed = codes < 0
        moved = np.where(mixed, self.moves.any(), self.moves[np.maximum(codes, 0)])
        mapped = np.empty(rows.shape, rows.dtype) if moved.all() else np.array(rows, order="C")
        single = moved & ~mixed
        if single.any():
            A, b = self.in_precision_of(rows)
            with own_threads() if len(rows) > _FEW_ROWS else nullcontext(1) as n_threads:
                _core.apply_maps(rows, np.where(single, codes, -1), A, b, mapped, n_threads)
        if proba is not None:
            positions = np.flatnonzero(moved & mixed)
            for chunk in row_chunks(len(positions)):
                some = rows[positions[chunk]].astype(np.float64)
                weight = proba(some)
                mapped[positions[chunk]] = sum(
                    weight[:, [c]] * (some @ A.T + b) for c, (A, b) in enumerate(zip(self.A, self.b, strict=True))
                )
        return mapped, moved


class FoldedMaps:
    """The maps of a fit, folded once for the strength at which they are used.

    They are folded again after a copy or a pickle: that takes less than to carry them along.
    """

    def __init__(self, linear: Doubles, offset: Doubles) -> None:
        self._linear, self._offset = linear, offset
        self._folded: tuple[float, AffineMaps] | None = None

    def __call__(self, strength: float) -> AffineMaps:
        """Give the maps at a strength in [0, 1]."""
        folded = self._folded
        if folded is None or folded[0] != strength:
            folded = self._folded = strength, AffineMaps.at_strength(self._linear, self._offset, strength)
        return folded[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_folded": None}


def row_chunks(n_rows: int) -> Iterator[slice]:
    """Slices of rows for work that takes several times the memory of its rows."""
    return (slice(start, start + 4096) for start in range(0, n_rows, 4096))
