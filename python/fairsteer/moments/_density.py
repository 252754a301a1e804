"""Log-densities of rows under Gaussians."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular

from fairsteer._utils.types import CovarianceModel, Doubles

# Rows whose log-densities are evaluated at a time.
_CHUNK = 8192


def log_densities(rows: Doubles, means: Doubles, covariances: Doubles, covariance: CovarianceModel) -> Doubles:
    """Log-densities of rows under the Gaussians of several classes.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Points.
    means : ndarray of shape (K, d)
        Class means.
    covariances : ndarray of shape (d, d), (K, d, d) or (K, d)
        For the model "tied", "full" and "diagonal"; positive definite.
    covariance : {"tied", "full", "diagonal"}
        The model.

    Returns
    -------
    log_densities : ndarray of shape (n, K)
        In nats.
    """
    n, d = rows.shape
    out = np.empty((n, len(means)))
    # Rows relative to a point among the means, so that a common offset costs no digits.
    centre = means.mean(axis=0)
    relative = means - centre
    if covariance == "diagonal":
        factors, log_dets = np.sqrt(covariances), np.log(covariances).sum(axis=1)
    else:
        factors = np.linalg.cholesky(covariances.reshape(-1, d, d))
        log_dets = np.broadcast_to(2 * np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1), len(means))
    for start in range(0, n, _CHUNK):
        chunk = rows[start : start + _CHUNK] - centre
        if covariance == "tied":
            white = solve_triangular(factors[0], chunk.T, lower=True)
            white_means = solve_triangular(factors[0], relative.T, lower=True)
        for k, mean in enumerate(relative):
            if covariance == "diagonal":
                residual = ((chunk - mean) / factors[k]).T
            elif covariance == "full":
                residual = solve_triangular(factors[k], (chunk - mean).T, lower=True)
            else:
                residual = white - white_means[:, [k]]
            distance = np.einsum("jn,jn->n", residual, residual)
            out[start : start + _CHUNK, k] = -0.5 * (distance + log_dets[k] + d * np.log(2 * np.pi))
    return out
