"""Whether the Gaussians of the subgroups bear out what the model promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular
from scipy.stats import chi2

from fairsteer._utils.input import warn_caller
from fairsteer._utils.types import Codes, Doubles, Floats
from fairsteer.ideal import IdealDistribution, SubgroupGaussians
from fairsteer.ideal._certificate import moved_certificate
from fairsteer.moments import SubgroupMoments

# The two certificates disagree where that of the subgroups allows more than this times the gap that the model allows:
# the bound grows as the root of the divergence, so the subgroups are then more than four times as far from an ideal
# distribution as the model has them.
_FACTOR = 2.0

# A gap that is larger by less than this is hardly to be seen in a few hundred rows, and no news.
_WORTH_A_WORD = 0.1

# Of fits to rows of the model itself no more than this share warns.
_FALSE_ALARMS = 0.01

# A certificate takes (number of subgroups) d^3 operations, a dozen times. Up to so many a fit has the time for it.
_AT_ONCE = 1e8

# Where there is no time for all, a fit looks at so many directions and rows.
_MOST_DIRECTIONS = 32
_MOST_ROWS = 20_000


class ModelRows(NamedTuple):
    """Rows of a fit, in the coordinates of the model."""

    rows: Floats
    y_codes: Codes
    group_codes: Codes
    sample_weight: Doubles | None
    classes: npt.NDArray[Any]


def cells_at_once(n_classes: int, n_groups: int, n_features: int) -> bool:
    """Whether a fit has the time to certify its maps against the Gaussians of the subgroups."""
    return n_classes * n_groups * n_features**3 <= _AT_ONCE


def contradicts(allowed: float, promised: float) -> bool:
    """Whether the gap that the subgroups' own Gaussians allow is far larger than the model promises."""
    return allowed > max(_FACTOR * promised, promised + _WORTH_A_WORD)


def warn_of_misfit(
    ideal: IdealDistribution, known: SubgroupMoments | ModelRows, *, standardize: bool, ways_out: Sequence[str]
) -> None:
    """Warn if the subgroups' own Gaussians allow far larger gaps than those of the model, and what to use instead.

    Of many features only the directions in which the classes differ are looked at, by which linear classifiers tell
    them apart: what gaps are allowed there, are allowed. From rows, of more than 20,000 every second, third, …
    """
    promised = ideal.model_certificate.equalized_odds
    K, G, d = ideal.source_means.shape
    certified = ideal.subgroups is not None and cells_at_once(K, G, d)
    if ideal.subgroups is not None and certified:
        found = ideal.certify(replace(ideal.subgroups, chance=_most_by_chance(K * G, d)))
    else:
        directions = _discriminants(ideal)
        if not len(directions):
            return
        moved = _along(ideal, known, directions)
        cells = SubgroupGaussians(moved, chance=_most_by_chance(K * G, len(directions)))
        found = moved_certificate(cells, ideal, standardize=standardize)
    if not contradicts(found.equalized_odds, promised):
        return
    if certified:
        found = ideal.certificate
    k = int(found.equal_opportunity.argmax())
    first, second = sorted(np.argsort(-found.total_variation[k], kind="stable")[:2].tolist())
    groups = ideal.groups.tolist()
    warn_caller(
        f"The certificate of the model bounds the gap between groups by {promised:.2g}, but the Gaussians of the "
        f"subgroups themselves allow {'' if certified else 'at least '}{found.equalized_odds:.2g} (class "
        f"{ideal.classes.tolist()[k]!r}, groups {groups[first]!r} and {groups[second]!r}), for they are not what the "
        f"model makes of them: {'use ' + ' or '.join(ways_out) + ', or ' if ways_out else ''}trust only gaps measured "
        "on held-out rows (fairsteer.report.steering_report)."
    )


def _most_by_chance(n_cells: int, m: int) -> float:
    """How often its expectation the squared error of a covariance of m directions is at most, in all cells."""
    freedom = m * (m + 1) / 2
    return float(chi2.ppf(1 - _FALSE_ALARMS / n_cells, freedom)) / freedom


def _discriminants(ideal: IdealDistribution) -> Doubles:
    """Directions of the common frame in which the classes differ, the foremost first, (m, d)."""
    C = ideal.canonical_covariances
    if ideal.covariance == "diagonal":
        C = np.diag(ideal.class_prior @ C)
    elif ideal.covariance == "full":
        C = np.tensordot(ideal.class_prior, C, axes=1)
    centred = ideal.canonical_means - ideal.class_prior @ ideal.canonical_means
    root = cholesky(C, lower=True)
    whitened = solve_triangular(root, (np.sqrt(ideal.class_prior)[:, None] * centred).T, lower=True)
    axes, sizes, _ = np.linalg.svd(whitened, full_matrices=False)
    axes = axes[:, sizes > 1e-6 * max(sizes.max(initial=0.0), 1e-6)][:, :_MOST_DIRECTIONS]
    directions: Doubles = solve_triangular(root.T, axes, lower=False).T
    return directions


def _along(ideal: IdealDistribution, known: SubgroupMoments | ModelRows, directions: Doubles) -> SubgroupMoments:
    """Full moments of mapped rows in some directions of the common frame."""
    linear = directions * ideal.linear[:, None] if ideal.linear.ndim == 2 else directions @ ideal.linear
    offset = ideal.offset @ directions.T
    moved = SubgroupMoments(len(directions), classes=known.classes, groups=ideal.groups, covariance="full")
    if isinstance(known, SubgroupMoments):
        moved.weights[:], moved._weight_squares[:] = known.weights, known._weight_squares
        for k, label in enumerate(known.classes.tolist()):
            one = known.of_classes([label])
            moved.means[k] = np.einsum("aij,aj->ai", linear, one.means[0]) + offset
            moved._scatters[k] = linear @ one._scatters[0] @ np.swapaxes(linear, 1, 2)
        return moved
    step = max(1, -(-len(known.rows) // _MOST_ROWS))
    numbers, y_codes, codes = (part[::step] for part in known[:3])
    weight = None if known.sample_weight is None else known.sample_weight[::step]
    precision = np.result_type(numbers.dtype, np.float32)  # the numbers are known no better
    for a in range(len(ideal.groups)):
        own = np.flatnonzero(codes == a)
        u = numbers[own].astype(precision, copy=False) @ linear[a].T.astype(precision) + offset[a]
        moved.update(u, y_codes[own], codes[own], None if weight is None else weight[own])
    return moved
