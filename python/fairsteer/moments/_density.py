"""Log-densities of rows under Gaussians."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from fairsteer._utils.types import CovarianceModel, Doubles

# Rows whose log-densities are evaluated at a time.
_CHUNK = 8192

# Logs of squared distances that agree to this are equal: what is left is rounding.
_EQUAL = 1e-12

# Squared distances, and what is added to them, are kept below this.
_MOST = 1e305


class Family(NamedTuple):
    """Gaussians of several classes."""

    means: Doubles
    """(K, d)"""
    covariances: Doubles
    """(d, d), (K, d, d) or (K, d) for the model "tied", "full" and "diagonal"; positive definite."""
    covariance: CovarianceModel

    def centred(self) -> tuple[Doubles, Doubles]:
        """Centre among the means, so that a common offset costs no digits, and the means relative to it."""
        centre = self.means.mean(axis=0)
        return centre, self.means - centre

    def factors(self) -> tuple[Doubles, Doubles]:
        """Cholesky factors of the covariances (standard deviations when diagonal), and constants of the densities."""
        K, d = self.means.shape
        if self.covariance == "diagonal":
            factors, log_dets = np.sqrt(self.covariances), np.log(self.covariances).sum(axis=1)
        else:
            factors = np.linalg.cholesky(self.covariances.reshape(-1, d, d))
            log_dets = np.broadcast_to(2 * np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1), K)
        return factors, log_dets + d * np.log(2 * np.pi)


def log_densities(rows: Doubles, family: Family) -> Doubles:
    """Log-densities of rows under the Gaussians of several classes.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Points.
    family : Family
        The Gaussians.

    Returns
    -------
    log_densities : ndarray of shape (n, K)
        In nats; -inf, or NaN, where a squared distance is too large for a double.
    """
    out = np.empty((len(rows), len(family.means)))
    centre, relative = family.centred()
    factors, constant = family.factors()
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK] - centre
            if family.covariance == "tied":
                white = _whitened(factors[0], chunk)
                white_means = _whitened(factors[0], relative)
            for k, mean in enumerate(relative):
                if family.covariance == "tied":
                    residual = white - white_means[:, [k]]
                else:
                    residual = _whitened(factors[k], chunk - mean)
                distance = np.einsum("jn,jn->n", residual, residual)
                out[start : start + _CHUNK, k] = -0.5 * (distance + constant[k])
    return out


def relative_log_densities(rows: Doubles, families: list[Family]) -> list[Doubles]:
    """Log-densities of rows at any finite distance, up to a constant of each row.

    For rows whose squared distances are too large for a double: they are compared as logarithms.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Points.
    families : list of Family
        Gaussians that are compared with one another.

    Returns
    -------
    log_densities : list of ndarrays of shape (n, K)
        For each family, finite, in nats.
    """
    squares, rests = [], []  # logs of squared distances, and what else tells the classes apart
    with np.errstate(over="ignore"):
        for family in families:
            centre, relative = family.centred()
            factors, constant = family.factors()
            rest = np.tile(constant, (len(rows), 1))
            if family.covariance == "tied":
                log_square, direction, log_norm = _log_square(factors[0], rows, centre)
                white_means = _whitened(factors[0], relative)
                # |w - m|^2 = |w|^2 - 2 w.m + |m|^2, of which the first is the same for all classes.
                cross = (direction.T @ white_means) * np.exp(np.minimum(log_norm, np.log(_MOST)))[:, None]
                rest += np.square(white_means).sum(axis=0) - 2 * np.clip(cross, -_MOST, _MOST)
                square = np.repeat(log_square[:, None], len(relative), axis=1)
            else:
                square = np.stack(
                    [_log_square(factor, rows, mean)[0] for factor, mean in zip(factors, family.means, strict=True)], 1
                )
            squares.append(square)
            rests.append(np.clip(rest, -_MOST, _MOST))
        least = np.min([square.min(axis=1) for square in squares], axis=0)[:, None]
        out = []
        for square, rest in zip(squares, rests, strict=True):
            more = square - least
            farther = np.exp(np.minimum(least, np.log(_MOST))) * np.expm1(np.where(more > _EQUAL, more, 0.0))
            out.append(-0.5 * (np.minimum(farther, _MOST) + rest))
        # Near 0, so that what is added to them, and their differences, keep their digits.
        most = np.max([values.max(axis=1) for values in out], axis=0)[:, None]
        return [values - most for values in out]


def _whitened(factor: Doubles, rows: Doubles) -> Doubles:
    """Inverse factor times rows, (d, n)."""
    if factor.ndim == 1:
        return (rows / factor).T
    return np.asarray(solve_triangular(factor, rows.T, lower=True))


def _log_square(factor: Doubles, rows: Doubles, centre: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Find logs of rows' squared whitened distances from a point, directions (d, n), and logs of the distances."""
    half = rows / 2 - centre / 2  # the difference itself may be too large
    size = np.abs(half).max(axis=1)
    white = _whitened(factor, half / np.where(size > 0, size, 1.0)[:, None])
    largest = np.abs(white).max(axis=0)
    direction = white / np.where(largest > 0, largest, 1.0)
    norm = np.sqrt(np.square(direction).sum(axis=0))
    direction /= np.where(norm > 0, norm, 1.0)
    tiny = np.finfo(np.float64).tiny
    log_norm = sum(np.log(np.maximum(part, tiny)) for part in (2 * size, largest, norm))
    return 2 * log_norm, direction, log_norm
