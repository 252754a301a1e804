"""Rows that lie on a device, steered there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fairsteer._utils.arrays import (
    device_of,
    exact_products,
    has_double,
    like,
    namespace,
    some_rows,
    to_numpy,
)
from fairsteer._utils.input import check_elsewhere
from fairsteer._utils.types import Codes, Doubles
from fairsteer.transformer._coordinates import SimpleCoordinates
from fairsteer.transformer._monotone import MonotoneMaps

if TYPE_CHECKING:
    from fairsteer.transformer._base import GroupMapTransformer

# Rows that are mapped at once.
_ROWS = 2**16


def steer_there(transformer: GroupMapTransformer, X: Any, sensitive_features: Any) -> Any:
    """Steer rows where they lie; those whose group has to be inferred, and by maps that are no matrices, go home."""
    names = transformer._feature_names()
    X = check_elsewhere(X, names)
    codes = transformer._known_codes(sensitive_features, X, "transform", infer=transformer.unknown_group != "error")
    maps = transformer._group_maps(transformer._strength())
    coordinates = SimpleCoordinates.of(transformer.feature_transform_, len(names))
    if isinstance(maps, MonotoneMaps) or coordinates is None or coordinates.log or not has_double(X):
        rows = to_numpy(X)
        return like(transformer._move(rows, transformer._resolved(rows, codes), maps), X)
    parts, positions = list[Any](), list[Codes]()
    unknown = np.flatnonzero(codes < 0)
    if unknown.size and maps.moves.any():
        rows = to_numpy(some_rows(X, unknown))
        resolved = transformer._resolved(rows, codes[unknown])
        parts.append(like(transformer._move(rows, resolved, maps), X))
        positions.append(unknown)
    wide = X.dtype == namespace(X).float64
    with exact_products(X):
        for code in np.flatnonzero(maps.moves).tolist():
            mine = np.flatnonzero(codes == code)
            if not mine.size:
                continue
            A, centre = maps.A[code], maps.centre[code]
            step, point = _folded(A, maps.b[code], centre, coordinates, wide=wide)
            mapped = _Map(X, step, point)
            for begin in range(0, len(mine), _ROWS):
                positions.append(mine[begin : begin + _ROWS])
                parts.append(mapped(X, positions[-1]))
    return _put(X, positions, parts)


def _folded(
    A: Doubles, b: Doubles, centre: Doubles, coordinates: SimpleCoordinates, *, wide: bool
) -> tuple[tuple[Doubles, Doubles], Doubles]:
    """Displacement of a map and what it adds, of features relative to a point that is given last."""
    displacement = (A - (1 if A.ndim == 1 else np.eye(len(A))))[None]
    offset = b[None].copy()
    coordinates.fold(displacement, offset)
    with np.errstate(over="ignore"):
        point = (centre - coordinates.shift) / coordinates.scale
        point = point if wide else point.astype(np.float32).astype(np.float64)
    point = np.where(np.isfinite(point), point, 0)
    moved = displacement[0] * point if A.ndim == 1 else displacement[0] @ point
    return (displacement[0], offset[0] + moved), point


class _Map:
    """A map in the precision of rows, single at least."""

    def __init__(self, X: Any, step: tuple[Doubles, Doubles], point: Doubles) -> None:
        self._xp = xp = namespace(X)
        self._dtype = xp.float64 if X.dtype == xp.float64 else xp.float32
        self._displacement, self._offset, self._point = (
            xp.asarray(np.ascontiguousarray(array.T), dtype=self._dtype, device=device_of(X))
            for array in (*step, point)
        )

    def __call__(self, X: Any, positions: Codes) -> Any:
        xp = self._xp
        index = xp.asarray(positions, device=device_of(X))
        rows = xp.astype(xp.take(X, index, axis=0), self._dtype)
        relative = rows - self._point
        step = relative * self._displacement if self._displacement.ndim == 1 else relative @ self._displacement
        return xp.astype(rows + (step + self._offset), X.dtype)


def _put(X: Any, positions: list[Codes], parts: list[Any]) -> Any:
    """Rows of which some are replaced: not written into, which some libraries refuse."""
    xp, n_rows = namespace(X), int(X.shape[0])
    places = np.concatenate([np.zeros(0, dtype=np.intp), *positions])
    index, begin = np.arange(n_rows), 0
    if len(places) == n_rows:
        index[places] = np.arange(n_rows)
    else:
        parts, begin = [X, *parts], n_rows
        index[places] = begin + np.arange(len(places))
    rows = parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)
    return xp.take(rows, xp.asarray(index, device=device_of(X)), axis=0)
