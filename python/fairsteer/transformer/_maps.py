"""Affine maps of rows, one for each code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fairsteer import _core
from fairsteer._utils.threads import own_threads
from fairsteer._utils.types import Codes, Doubles, Floats

# The core maps so few rows of a group without BLAS, so that nothing has to be arranged with its threads.
_FEW_ROWS = 4


def as_matrices(linear: Doubles) -> Doubles:
    """Linear parts of maps as matrices (n, d, d), if they are scales of features (n, d)."""
    if linear.ndim == 3:
        return linear
    matrices = np.zeros((*linear.shape, linear.shape[1]))
    diagonal = np.arange(linear.shape[1])
    matrices[:, diagonal, diagonal] = linear
    return matrices


@dataclass(frozen=True, eq=False)
class AffineMaps:
    """Maps ``x -> A[c] @ x + b[c]`` of rows with code ``c``, between identity and full strength.

    A map that scales every feature for itself costs no more than that, and one that shifts rows nothing but the shift.
    """

    A: Doubles
    """Matrices, (n_codes, d, d), or scales of the features, (n_codes, d)."""
    b: Doubles
    """Shifts, (n_codes, d)."""
    moves: npt.NDArray[np.bool_]
    """Whether a map is anything but the identity, (n_codes,)."""
    centre: Doubles
    """Points near the rows of each code, (n_codes, d): a large mean then costs the product no digits."""

    @classmethod
    def at_strength(
        cls, linear: Doubles, offset: Doubles, strength: float, centre: Doubles | None = None
    ) -> AffineMaps:
        """Fold the strength into maps: ``A_s = (1 - s) I + s A``, ``b_s = s b``."""
        one = np.eye(offset.shape[1]) if linear.ndim == 3 else np.ones(offset.shape[1])
        A, b = (linear, offset) if strength == 1 else ((1 - strength) * one + strength * linear, strength * offset)
        moves = np.array([(one != M).any() or v.any() for M, v in zip(A, b, strict=True)], dtype=bool)
        return cls(A, b, moves, np.zeros_like(b) if centre is None else centre)

    @property
    def matrices(self) -> Doubles:
        """Matrices of all maps, (n_codes, d, d)."""
        return as_matrices(self.A)

    @cached_property
    def shifts(self) -> bool:
        """Whether no map does more than to shift rows."""
        return self.A.ndim == 2 and bool((self.A == 1).all())

    @cached_property
    def image(self) -> Doubles:
        """Where the maps lead `centre`, (n_codes, d)."""
        return self._scaled(self.centre) + self.b

    def _scaled(self, points: Doubles) -> Doubles:
        """Linear part of each map, of one point a code."""
        return self.A * points if self.A.ndim == 2 else np.einsum("cij,cj->ci", self.A, points)

    def in_precision_of(self, rows: Floats) -> tuple[Floats | None, Floats | None, Floats]:
        """Linear parts, centres and their images as the core takes them: double for double rows, else single."""
        if rows.dtype != np.float64:
            return self._single
        return (None, None, self.b) if self.shifts else (self.A, self.centre, self.image)

    @cached_property
    def _single(self) -> tuple[Floats | None, Floats | None, Floats]:
        if self.shifts:
            return None, None, self.b.astype(np.float32)
        # Relative to a centre that single precision holds exactly.
        centre = self.centre.astype(np.float32)
        image = self._scaled(centre.astype(np.float64)) + self.b
        return self.A.astype(np.float32), centre, image.astype(np.float32)

    def of(self, rows: Doubles, code: int) -> Doubles:
        """Map double-precision rows (m, d) by one map."""
        relative = rows - self.centre[code]
        moved: Doubles = relative * self.A[code] if self.A.ndim == 2 else relative @ self.A[code].T
        moved += self.image[code]
        return moved

    def inverse(self, labels: Sequence[Any]) -> AffineMaps:
        """Invert every map; `labels` name them in the error that a singular one raises."""
        # Partial strength can cancel a reflection; what is left is rounding of the parts, so compare with those.
        d = self.A.shape[1]
        if self.A.ndim == 2:
            parts = 1 + np.abs(self.A - 1).max(axis=1)
            smallest = np.abs(self.A).min(axis=1)
        else:
            parts = 1 + np.linalg.norm(self.A - np.eye(d), ord=2, axis=(1, 2))
            smallest = np.linalg.svd(self.A, compute_uv=False)[:, -1]
        singular = np.flatnonzero(smallest <= d * np.finfo(np.float64).eps * parts)
        if singular.size:
            msg = (
                f"The map of group {labels[singular[0]]!r} is singular at this strength (smallest singular value "
                f"{smallest[singular[0]]:.1e}), so its rows cannot be recovered. Another strength has an inverse."
            )
            raise ValueError(msg)
        with own_threads() as n_threads:
            A = 1 / self.A if self.A.ndim == 2 else _core.invert(np.ascontiguousarray(self.A), n_threads)
        back = AffineMaps(A, np.zeros_like(self.b), self.moves, self.image)
        return replace(back, b=self.centre - back._scaled(self.image))

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
            A, centre, image = self.in_precision_of(rows)
            with own_threads() if len(rows) > _FEW_ROWS else nullcontext(1) as n_threads:
                _core.apply_maps(rows, np.where(single, codes, -1), A, centre, image, mapped, n_threads)
        if proba is not None:
            positions = np.flatnonzero(moved & mixed)
            for chunk in row_chunks(len(positions)):
                some = rows[positions[chunk]].astype(np.float64)
                weight = proba(some)
                mapped[positions[chunk]] = sum(weight[:, [c]] * self.of(some, c) for c in range(len(self.b)))
        return mapped, moved


class FoldedMaps:
    """The maps of a fit, folded once for the strength at which they are used.

    They are folded again after a copy or a pickle: that takes less than to carry them along.
    """

    def __init__(self, linear: Doubles, offset: Doubles, centre: Doubles) -> None:
        self._linear, self._offset, self._centre = linear, offset, centre
        self._folded: tuple[float, AffineMaps] | None = None

    def __call__(self, strength: float) -> AffineMaps:
        """Give the maps at a strength in [0, 1]."""
        folded = self._folded
        if folded is None or folded[0] != strength:
            folded = self._folded = strength, AffineMaps.at_strength(self._linear, self._offset, strength, self._centre)
        return folded[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_folded": None}


def row_chunks(n_rows: int, n_columns: int = 1) -> Iterator[slice]:
    """Slices of rows for work that takes several times the memory of its rows, or makes many columns of them."""
    step = max(1, min(4096, 2**24 // n_columns))
    return (slice(start, start + step) for start in range(0, n_rows, step))
