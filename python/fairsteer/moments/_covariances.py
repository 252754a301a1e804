"""The models of covariances: what their arrays look like, and what is done to one covariance.

A model says whether classes have covariances of their own (`by_class`), and whether a covariance is a matrix or a
variance for each feature (`_Matrices`, `_Variances`). Another one is another class here, and a kernel in the core.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from fairsteer import _core
from fairsteer._utils.types import Codes, CovarianceModel, Doubles

# Eigenvalues of a covariance are lifted to this share of the features' variances: below it they are rounding
# error, and a map that trusted them would stretch rounding error to the size of the data.
_RELATIVE_FLOOR = 1e-8


class Covariances(ABC):
    """Model of covariances, of `d` features in `K` classes and `G` groups.

    Covariances are arrays of shape (G, …) or, by class, (K, G, …), where … is the shape of one: (d, d) or (d,).
    """

    by_class: ClassVar[bool]
    """Whether classes have covariances of their own, rather than one a group about the means of its classes."""
    matrices: ClassVar[bool]
    """Whether covariances between features are kept."""

    def shape(self, K: int, G: int, d: int) -> tuple[int, ...]:
        """Shape of the covariances, and of the scatters that they are made of."""
        return (K, G, *self._item(d)) if self.by_class else (G, *self._item(d))

    def in_cells(self, of_cells: Doubles) -> Doubles:
        """Add sums of subgroups, (K, G, …), up to those behind every covariance."""
        sums: Doubles = of_cells if self.by_class else of_cells.sum(axis=0)
        return sums

    def of_cell(self, covariances: Doubles, k: int, a: int) -> Doubles:
        """Covariance of a subgroup."""
        own: Doubles = covariances[k, a] if self.by_class else covariances[a]
        return own

    def of_group(self, covariances: Doubles, a: int, classes: NDArray[np.bool_]) -> Doubles:
        """Covariances of some classes of a group; one for all, if they share it."""
        own: Doubles = covariances[classes, a] if self.by_class else covariances[a]
        return own

    def take_groups(self, covariances: Doubles, groups: list[int]) -> Doubles:
        """Covariances of some groups."""
        some: Doubles = covariances[:, groups] if self.by_class else covariances[groups]
        return some

    def within(self, covariances: Doubles, of_class: Doubles) -> Doubles:
        """Covariance of every group, (G, …), averaged over classes with weights (K, G) that sum to one."""
        return np.einsum("ka,ka...->a...", of_class, covariances) if self.by_class else covariances

    def scaled_by(self, factors: Doubles, covariances: Doubles) -> Doubles:
        """Factors, one a covariance, in a shape that multiplies them."""
        return factors.reshape(factors.shape + (1,) * (covariances.ndim - factors.ndim))

    def cells(self, K: int, G: int) -> list[tuple[int, ...]]:
        """List the indices of the covariances."""
        return list(np.ndindex((K, G) if self.by_class else (G,)))

    @abstractmethod
    def _item(self, d: int) -> tuple[int, ...]: ...

    @abstractmethod
    def quartic_shape(self, K: int, G: int, d: int) -> tuple[int, ...]:
        """Shape of the sums of fourth powers."""

    @abstractmethod
    def gaussian_quartics(self, covariances: Doubles, weights: Doubles) -> Doubles:
        """Find the sums of fourth powers that Gaussians would have."""

    @abstractmethod
    def variances(self, covariances: Doubles) -> Doubles:
        """Variances of the features, (…, d)."""

    @abstractmethod
    def checked(self, covariances: Doubles) -> Doubles:
        """Covariances that somebody passed, symmetric; ValueError if they are not."""

    @abstractmethod
    def of_matrix(self, matrix: Doubles) -> Doubles:
        """One covariance matrix as the model keeps it."""

    @abstractmethod
    def outer(self, vectors: Doubles) -> Doubles:
        """Covariances that vectors (…, d) stand for."""

    @abstractmethod
    def intensity(self, shrinkage: str, covariances: Doubles, fourth: Doubles, n: Doubles) -> Doubles:
        """Intensity by formula; `fourth` are means of fourth powers, and `n` the rows behind each covariance."""

    @abstractmethod
    def shrunk(self, covariances: Doubles, intensity: Doubles) -> Doubles:
        """Convex combination with the multiple of the identity of the same trace."""

    @abstractmethod
    def floored(self, covariances: Doubles, scale: Doubles) -> tuple[Doubles, NDArray[np.int64]]:
        """Lift spectra to a share of the features' scales, and count what is above it."""


class _Matrices(Covariances):
    matrices = True

    def _item(self, d: int) -> tuple[int, ...]:
        return d, d

    def quartic_shape(self, K: int, G: int, d: int) -> tuple[int, ...]:
        return K, G

    def gaussian_quartics(self, covariances: Doubles, weights: Doubles) -> Doubles:
        # E|y|^4 = tr(S)^2 + 2 tr(S^2)
        trace = np.trace(covariances, axis1=-2, axis2=-1)
        fourth: Doubles = weights * (trace**2 + 2 * (covariances**2).sum(axis=(-2, -1)))
        return fourth

    def variances(self, covariances: Doubles) -> Doubles:
        return np.diagonal(covariances, axis1=-2, axis2=-1)

    def checked(self, covariances: Doubles) -> Doubles:
        transposed = np.swapaxes(covariances, -1, -2)
        largest = self.variances(covariances).max(initial=0)
        if not np.allclose(covariances, transposed, rtol=1e-8, atol=1e-12 * largest):
            msg = "covariances must be symmetric."
            raise ValueError(msg)
        symmetric: Doubles = (covariances + transposed) / 2
        return symmetric

    def of_matrix(self, matrix: Doubles) -> Doubles:
        return matrix

    def outer(self, vectors: Doubles) -> Doubles:
        products: Doubles = vectors[..., :, None] * vectors[..., None, :]
        return products

    def intensity(self, shrinkage: str, covariances: Doubles, fourth: Doubles, n: Doubles) -> Doubles:
        d = covariances.shape[-1]
        trace = np.trace(covariances, axis1=-2, axis2=-1)
        square: Doubles = (covariances**2).sum(axis=(-2, -1))
        if shrinkage == "ledoit_wolf":
            # Lemma 3.3 and section 3.3 of Ledoit and Wolf (2004).
            of_ledoit_wolf: Doubles = ((fourth - square) / n) / (square - trace**2 / d)
            return of_ledoit_wolf
        # Eq. 23 of Chen et al. (2010), with the mean squares that scikit-learn takes.
        alpha, mu2 = square / d**2, (trace / d) ** 2
        of_oas: Doubles = (alpha + mu2) / ((n + 1) * (alpha - mu2 / d))
        return of_oas

    def shrunk(self, covariances: Doubles, intensity: Doubles) -> Doubles:
        d = covariances.shape[-1]
        average = np.trace(covariances, axis1=-2, axis2=-1) / d
        shrunk: Doubles = (1 - intensity[..., None, None]) * covariances
        diagonal = np.arange(d)
        shrunk[..., diagonal, diagonal] += (intensity * average)[..., None]
        return shrunk

    def floored(self, covariances: Doubles, scale: Doubles) -> tuple[Doubles, NDArray[np.int64]]:
        matrices = covariances.reshape(-1, *covariances.shape[-2:])
        ranks = np.empty(len(matrices), dtype=np.int64)
        lifted: Doubles | None = None  # made when something changes: there may be gigabytes of them
        for i, matrix in enumerate(matrices):
            one = np.array(matrix[None])
            ranks[i] = _core.floor_spectra(one, scale, _RELATIVE_FLOOR)[0]
            if not np.array_equal(one[0], matrix):
                lifted = np.array(matrices) if lifted is None else lifted
                lifted[i] = one[0]
        result = matrices if lifted is None else lifted
        return result.reshape(covariances.shape), ranks.reshape(covariances.shape[:-2])


class Tied(_Matrices):
    """One matrix a group, about the means of its classes."""

    by_class = False


class Full(_Matrices):
    """One matrix a subgroup."""

    by_class = True


class Diagonal(Covariances):
    """One variance a feature and subgroup."""

    by_class = True
    matrices = False

    def _item(self, d: int) -> tuple[int, ...]:
        return (d,)

    def quartic_shape(self, K: int, G: int, d: int) -> tuple[int, ...]:
        return K, G, d

    def gaussian_quartics(self, covariances: Doubles, weights: Doubles) -> Doubles:
        fourth: Doubles = 3 * weights[..., None] * covariances**2
        return fourth

    def variances(self, covariances: Doubles) -> Doubles:
        return covariances

    def checked(self, covariances: Doubles) -> Doubles:
        return covariances

    def of_matrix(self, matrix: Doubles) -> Doubles:
        return np.diag(matrix)

    def outer(self, vectors: Doubles) -> Doubles:
        squares: Doubles = vectors**2
        return squares

    def intensity(self, shrinkage: str, covariances: Doubles, fourth: Doubles, n: Doubles) -> Doubles:
        # What minimises the same expected loss within diagonal matrices.
        error = fourth - covariances**2 if shrinkage == "ledoit_wolf" else 2 * covariances**2
        distance = ((covariances - covariances.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
        intensity: Doubles = error.sum(axis=-1) / n / distance
        return intensity

    def shrunk(self, covariances: Doubles, intensity: Doubles) -> Doubles:
        average = covariances.mean(axis=-1, keepdims=True)
        pulled: Doubles = (1 - intensity[..., None]) * covariances + intensity[..., None] * average
        return pulled

    def floored(self, covariances: Doubles, scale: Doubles) -> tuple[Doubles, NDArray[np.int64]]:
        floor = _RELATIVE_FLOOR * scale**2
        ranks: Codes = (covariances > floor).sum(axis=-1)
        return np.maximum(covariances, floor), ranks


_MODELS: dict[str, Covariances] = {"tied": Tied(), "full": Full(), "diagonal": Diagonal()}


def covariance_model(name: str) -> Covariances:
    """Look up a model by its name; ValueError if there is none."""
    if name not in _MODELS:
        *names, last = map(repr, get_args(CovarianceModel))
        msg = f"covariance must be {', '.join(names)} or {last}, not {name!r}."
        raise ValueError(msg)
    return _MODELS[name]


def matching_model(
    covariances: Doubles, K: int, G: int, d: int, asked: CovarianceModel | None = None
) -> CovarianceModel:
    """Name the model that covariances are of, by their shape if none is `asked` for; ValueError if they are of none."""
    names: tuple[CovarianceModel, ...] = get_args(CovarianceModel)
    if asked in names:
        if covariances.shape == (shape := _MODELS[asked].shape(K, G, d)):
            return asked
        msg = f"covariances must have shape {shape} ({asked}), not {covariances.shape}."
        raise ValueError(msg)
    if asked is not None:
        msg = f"covariance must be one of {', '.join(map(repr, names))} or None, not {asked!r}."
        raise ValueError(msg)
    matching = [name for name in names if covariances.shape == _MODELS[name].shape(K, G, d)]
    if not matching:
        *shapes, last = (f"{_MODELS[name].shape(K, G, d)} ({name})" for name in names)
        msg = f"covariances must have shape {', '.join(shapes)} or {last}, not {covariances.shape}."
        raise ValueError(msg)
    if len(matching) > 1 and not np.allclose(covariances, np.swapaxes(covariances, -1, -2)):
        return matching[-1]  # (G, d, d) and (K, G, d) coincide when K = G = d: symmetry tells
    return matching[0]
