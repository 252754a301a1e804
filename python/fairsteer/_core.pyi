"""Types of the C++ core. Arrays are checked, never converted: exact dtype, C order unless said."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Arrays that cross the border, named as in cpp/bindings/arrays.hpp.
DoubleArray = NDArray[np.float64]
CodeArray = NDArray[np.int64]
RowArray = NDArray[np.float16] | NDArray[np.float32] | NDArray[np.float64]  # any strides, read-only allowed

class NumericalError(np.linalg.LinAlgError): ...

def build_info() -> dict[str, str]: ...
def lay_out(columns: Sequence[NDArray[Any]], out: NDArray[Any]) -> None: ...
def update_moments(
    covariance: str,
    sums: tuple[DoubleArray, ...],
    X: NDArray[Any],
    classes: CodeArray,
    groups: CodeArray,
    weights: DoubleArray | None = None,
    n_threads: int = 1,
) -> None: ...
def merge_moments(
    covariance: str, sums: tuple[DoubleArray, ...], other: tuple[DoubleArray, ...], cells: CodeArray
) -> None: ...
def nearest_ideal(
    covariance: str,
    weights: DoubleArray,
    means: DoubleArray,
    covariances: DoubleArray,
    intervention: str,
    reference: int,
    alignment: str,
    max_iter: int,
    tol: float,
    max_time: float = ...,
) -> dict[str, Any]: ...
def floor_spectra(covariances: DoubleArray, scale: DoubleArray, floor: float) -> NDArray[np.int64]: ...
def invert(matrices: DoubleArray, n_threads: int = 1) -> DoubleArray: ...
def map_covariances(maps: DoubleArray, covariances: DoubleArray, n_threads: int = 1) -> DoubleArray: ...
def transport_map(source: DoubleArray, target: DoubleArray) -> DoubleArray: ...
def apply_maps(
    X: NDArray[Any],
    codes: CodeArray,
    A: NDArray[Any] | None,
    c: NDArray[Any] | None,
    b: NDArray[Any],
    out: NDArray[Any],
    n_threads: int = 1,
) -> None: ...
def nearest_ideal_posterior(
    source: DoubleArray,
    target: DoubleArray,
    laws: DoubleArray,
    shares: DoubleArray,
    intervention: str,
    reference: int,
    free_shares: bool,
    max_iter: int,
    tol: float,
) -> dict[str, Any]: ...
def nearest_ideal_cells(
    cost: DoubleArray,
    laws: DoubleArray,
    shares: DoubleArray,
    common: DoubleArray | None,
    free_shares: bool,
    max_iter: int,
    tol: float,
) -> dict[str, Any]: ...
