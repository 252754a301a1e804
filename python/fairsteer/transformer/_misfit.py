"""Whether the Gaussians of the subgroups bear out what the model promises."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from fairsteer._utils.input import warn_caller
from fairsteer._utils.types import Doubles
from fairsteer.ideal import IdealDistribution

# The two certificates disagree where that of the subgroups allows more than this times the gap that the model allows:
# the bound grows as the root of the divergence, so the subgroups are then more than four times as far from an ideal
# distribution as the model has them, which no error of rounding or of few rows makes of a model that fits.
_FACTOR = 2.0

# A gap that is larger by less than this is hardly to be seen in a few hundred rows, and no news.
_WORTH_A_WORD = 0.1

# A certificate takes (number of subgroups) d^3 operations, a dozen times. Up to so many a fit has the time for it.
_AT_ONCE = 1e8

# Directions in which a fit looks where there is no time for all.
_MOST_DIRECTIONS = 32


def warn_of_misfit(ideal: IdealDistribution, ways_out: Sequence[str]) -> None:
    """Warn if the subgroups' own Gaussians allow far larger gaps than those of the model, and what to use instead.

    Of many features only the directions in which the classes differ are looked at, by which linear classifiers tell
    them apart: what gaps are allowed there, are allowed.
    """
    cells, promised = ideal.cells, ideal.model_certificate.equalized_odds
    if cells is None:
        return
    K, G, d = ideal.source_means.shape
    if K * G * d**3 <= _AT_ONCE:
        found, least = ideal.certificate, ""
    else:
        directions = _discriminants(ideal)
        if not len(directions):
            return
        found, least = ideal._certify(cells, directions), "at least "
    allowed = found.equalized_odds
    if not allowed > max(_FACTOR * promised, promised + _WORTH_A_WORD):
        return
    k = int(found.equal_opportunity.argmax())
    first, second = sorted(np.argsort(-found.total_variation[k], kind="stable")[:2].tolist())
    groups = ideal.groups.tolist()
    warn_caller(
        f"The certificate of the model bounds the gap between groups by {promised:.2g}, but the Gaussians of the "
        f"subgroups themselves allow {least}{allowed:.2g} (class {ideal.classes.tolist()[k]!r}, groups "
        f"{groups[first]!r} and {groups[second]!r}), for they are not what the model makes of them: "
        f"{'use ' + ' or '.join(ways_out) + ', or ' if ways_out else ''}trust only gaps measured on held-out rows "
        "(fairsteer.report.steering_report)."
    )


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
    kept = (sizes > 1e-6 * max(sizes.max(initial=0.0), 1e-6))[:_MOST_DIRECTIONS]
    directions: Doubles = solve_triangular(root.T, axes[:, :_MOST_DIRECTIONS][:, kept], lower=False).T
    return directions
