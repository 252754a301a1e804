"""Moments with noise: what they tell of a single row is bounded.

Rows are clipped to a length, so that one row more or less changes every sum by a bounded amount: a count by 1, the sum
of the rows by the length, that of their products by its square. In units of these bounds all sums together are one
vector, of which one row moves no more than sqrt(3), and get Gaussian noise of one size. OpenDP says which size, and
draws the noise in a way that the rounding of floating-point numbers does not betray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fairsteer._utils.arrays import is_foreign, namespace
from fairsteer._utils.types import Doubles

if TYPE_CHECKING:
    from fairsteer.moments._moments import SubgroupMoments

# What clipped rows stay below their bound, for their rounding to single precision.
_ROUNDING = 1e-6
# Rows whose lengths are found at once.
_ROWS = 4096
# Numbers that get their noise at a time: they pass through lists.
_AT_ONCE = 2**16


class Privacy(NamedTuple):
    """What is promised of moments with noise: (epsilon, delta)-differential privacy of every single row."""

    epsilon: float
    delta: float
    clip: float
    """Length to which rows were clipped, in the coordinates of the moments."""


def checked_clip(clip: Any) -> float | None:
    """Length to which rows are clipped; None: they are not."""
    if clip is None:
        return None
    if isinstance(clip, bool) or not np.isfinite(clip) or not clip > 0:
        msg = f"clip must be a positive number, the length of the longest row that is left as it is, not {clip!r}."
        raise ValueError(msg)
    return float(clip)


def clipped(X: Any, clip: float) -> Any:
    """Shorten rows that are longer than `clip`; in the library and the type of `X`."""
    if is_foreign(X):
        xp = namespace(X)
        bound = clip * (1 - _ROUNDING)
        n_rows = int(X.shape[0])
        ends = [(at, min(at + _ROWS, n_rows)) for at in range(0, max(1, n_rows), _ROWS)]
        norms = xp.concat([_norms(xp, X[begin:end, :]) for begin, end in ends], axis=0)
        factors = bound / xp.maximum(norms, xp.full_like(norms, bound))
        dtype = xp.float64 if X.dtype == xp.float64 else xp.float32  # shorter types would round beyond the bound
        return xp.astype(X, dtype) * xp.astype(factors, dtype)[:, None]
    bound = clip * (1 - _ROUNDING)
    parts = (X[at : at + _ROWS].astype(np.float64) for at in range(0, len(X), _ROWS))
    norms = np.concatenate([np.zeros(0), *(np.sqrt(np.einsum("ij,ij->i", part, part)) for part in parts)])
    long = norms > bound
    if not long.any():
        return X
    short = X.astype(np.float64 if X.dtype == np.float64 else np.float32)  # shorter types would round beyond the bound
    with np.errstate(invalid="ignore"):  # of infinite rows, which are refused when they are added up
        short[long] *= (bound / norms[long])[:, None].astype(short.dtype)
    return short


def _norms(xp: Any, rows: Any) -> Any:
    wide = xp.astype(rows, xp.float64)
    return xp.sqrt(xp.sum(wide * wide, axis=1))


def privatized(moments: SubgroupMoments, epsilon: float, delta: float) -> SubgroupMoments:
    """Add noise, see `SubgroupMoments.privatize`."""
    clip = moments.clip
    if moments.privacy is not None:
        msg = f"These moments have their noise already ({described(moments.privacy)}); more would promise nothing new."
        raise ValueError(msg)
    if clip is None:
        msg = (
            "Noise hides a row whose length is bounded: accumulate with SubgroupMoments(…, clip=…), the length to "
            "which longer rows are shortened, chosen without looking at the rows."
        )
        raise ValueError(msg)
    if not 0 < epsilon < np.inf or not 0 < delta < 1:
        msg = f"epsilon must be positive and delta between 0 and 1, not {epsilon!r} and {delta!r}."
        raise ValueError(msg)
    if moments._regularised:
        msg = "Noise goes into sums of rows: privatize the moments before they are pooled or shrunk."
        raise ValueError(msg)
    counts, sums, seconds = _noisy(moments, clip, epsilon, delta)
    # From here on nothing but what everybody may know is used.
    counts = np.where(counts >= 1, counts, 0.0)
    means = np.divide(sums, counts[..., None], out=np.zeros_like(sums), where=counts[..., None] > 0)
    means *= np.minimum(1, clip / np.maximum(np.linalg.norm(means, axis=2, keepdims=True), clip))
    model = moments.model
    outer = _second_moments(moments, counts, means)
    of_covariances = model.scaled_by(model.in_cells(counts), seconds)
    covariances = np.divide(seconds - outer, of_covariances, out=np.zeros_like(seconds), where=of_covariances > 0)
    released = type(moments).from_statistics(
        counts,
        means,
        _positive(covariances, matrices=model.matrices),
        classes=moments.classes,
        groups=moments.groups,
        covariance=moments.covariance,
    )
    released.feature_names, released.coordinates, released.clip = moments.feature_names, moments.coordinates, clip
    released.privacy = Privacy(float(epsilon), float(delta), clip)
    return released


def _noisy(moments: SubgroupMoments, clip: float, epsilon: float, delta: float) -> tuple[Doubles, Doubles, Doubles]:
    """Give counts, sums of rows and sums of their products, with noise."""
    model, weights, d = moments.model, moments.weights, moments.n_features
    sums = weights[..., None] * moments.means
    seconds = moments._scatters + _second_moments(moments, weights, moments.means)
    parts = [weights, sums / clip]
    if model.matrices:
        upper = np.triu_indices(d)
        # A product of two features stands in two places: so weighted, the vector is as long as the row is, squared.
        twice = np.where(upper[0] == upper[1], 1.0, np.sqrt(2))
        parts.append(seconds[..., upper[0], upper[1]] / clip**2 * twice)
    else:
        parts.append(seconds / clip**2)
    vector = np.concatenate([part.ravel() for part in parts])
    noisy = _with_noise(vector, float(np.sqrt(3)), epsilon, delta)
    ends = np.cumsum([part.size for part in parts])[:-1]
    counts, sums, found = (part.reshape(old.shape) for part, old in zip(np.split(noisy, ends), parts, strict=True))
    if not model.matrices:
        return counts, sums * clip, found * clip**2
    seconds = np.empty_like(seconds)
    seconds[..., upper[0], upper[1]] = seconds[..., upper[1], upper[0]] = found / twice * clip**2
    return counts, sums * clip, seconds


def _second_moments(moments: SubgroupMoments, weights: Doubles, means: Doubles) -> Doubles:
    """Add up the products that rows at the means would have, as the model keeps them."""
    outer = moments.model.outer(means)
    return moments.model.in_cells(moments.model.scaled_by(weights, outer) * outer)


def _with_noise(vector: Doubles, sensitivity: float, epsilon: float, delta: float) -> Doubles:
    """Add the noise that OpenDP's accountant asks for."""
    try:
        import opendp.prelude as dp
    except ImportError as error:
        msg = "Noise on moments needs opendp. Install it with: pip install 'fairsteer[private]'."
        raise ImportError(msg) from error
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.l2_distance(T=float)

    def of_scale(scale: float) -> Any:
        noise = dp.m.make_gaussian(*space, scale=scale)
        return dp.c.make_fix_delta(dp.c.make_zCDP_to_approxDP(noise), delta=delta)

    scale = dp.binary_search_param(of_scale, d_in=sensitivity, d_out=(epsilon, delta), T=float)
    noise = dp.m.make_gaussian(*space, scale=scale)
    # Parts of one vector, whose noise is drawn for each number alone.
    parts = [noise(vector[at : at + _AT_ONCE].tolist()) for at in range(0, len(vector), _AT_ONCE)]
    return np.concatenate([np.asarray(part, dtype=np.float64) for part in parts])


def _positive(covariances: Doubles, *, matrices: bool) -> Doubles:
    """Nearest covariances that are positive semi-definite: noise can make variances negative."""
    if not matrices:
        return np.maximum(covariances, 0)
    values, vectors = np.linalg.eigh(covariances)
    projected = (vectors * np.maximum(values, 0)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    half: Doubles = (projected + np.swapaxes(projected, -1, -2)) / 2
    return half


def merged_privacy(first: Any, second: Any) -> tuple[float | None, Privacy | None]:
    """Give the clip and the promise of the union of two moments, of rows that no two of them share."""
    if first.clip != second.clip and first.weights.any() and second.weights.any():
        msg = (
            f"The rows of the moments are clipped to different lengths, {first.clip} and {second.clip} (None: not at "
            "all); their covariances are of different things. Clip the rows of both alike."
        )
        raise ValueError(msg)
    clip = first.clip if first.clip is not None else second.clip
    # Moments of no rows promise what the others do.
    promises = [one.privacy for one in (first, second) if one.weights.any() or one.privacy is not None]
    if not promises or None in promises:
        return clip, None
    return clip, Privacy(*(max(numbers) for numbers in zip(*promises, strict=True)))


def described(privacy: Privacy) -> str:
    """Say a promise in words."""
    return f"epsilon={privacy.epsilon:g}, delta={privacy.delta:g}, rows clipped to length {privacy.clip:g}"
