"""What ideal posteriors of two classes and of more have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import rel_entr
from sklearn.utils import check_array

from fairsteer._utils.input import brief, few, warn_caller
from fairsteer._utils.types import Doubles

Mode = Literal["joint", "labels", "weights"]

#: Log-odds: posteriors nearer to 0 or 1 count as this near, since what no sample can tell apart costs no nats.
MOST_LOGIT = 16.0

#: Below this part of its share a group as good as leaves the ideal distribution.
VANISHING = 0.01

#: Classes that cells of the simplex can tell apart.
MOST_CLASSES = 10

#: How far sums of probabilities may be from 1.
_SLACK = 1e-6


@dataclass(frozen=True)
class PosteriorCertificate:
    """What nearness to an ideal distribution promises about the rows it was found for; no family in it.

    Bounds for every classifier that is exactly fair on the ideal distribution when it is used on the rows, in total
    variation between the rows and their ideal. They hold for the posterior that was given: where that is wrong by some
    mean absolute error in a cell, the bounds there grow by no more than that over the share of its class.

    Attributes
    ----------
    total_variation : ndarray of shape (n_classes, n_groups)
        Between the rows of a class and a group, and their ideal, in [0, 1].
    equal_opportunity : ndarray of shape (n_classes,)
        For every class, a bound on the difference of prediction rates between any two groups given that class.
    accuracy : float
        Bound on the difference of the error rates on the rows and on their ideal.
    """

    total_variation: Doubles
    equal_opportunity: Doubles
    accuracy: float

    def __repr__(self) -> str:
        return f"PosteriorCertificate(equalized_odds={self.equalized_odds:.3g}, accuracy={self.accuracy:.3g})"

    @property
    def equalized_odds(self) -> float:
        """Largest of the bounds of the classes."""
        return float(self.equal_opportunity.max())


class ClassLaws(NamedTuple):
    """Probabilities of a class that occur in a group, and how often, before and on the ideal distribution."""

    posterior: Doubles
    probability: Doubles
    ideal_posterior: Doubles
    ideal_probability: Doubles


def certificate_of(mode: str, ideal: Doubles, own: Doubles) -> PosteriorCertificate:
    """Bounds by joint probabilities of class, group and posterior, on the ideal distribution and as they are."""
    if mode == "weights":
        msg = "mode='weights' makes classes and groups independent, and no ideal distribution: nothing is certified."
        raise AttributeError(msg)
    cells = [joint / joint.sum(axis=2, keepdims=True) for joint in (ideal, own)]
    bound = np.abs(cells[0] - cells[1]).sum(axis=2) / 2
    gaps = np.sort(bound, axis=1)[:, -2:].sum(axis=1) * (bound.shape[1] > 1)
    accuracy = float(np.abs(ideal - own).sum() / 2)
    return PosteriorCertificate(bound, np.minimum(gaps, 1.0), min(accuracy, 1.0))


def check_proba(proba: Doubles) -> None:
    """Refuse what is no probability."""
    bad = (proba < 0) | (proba > 1)
    if bad.any():
        msg = f"{bad.sum()} of {bad.size} posteriors are no probabilities, in [0, 1], such as {proba[bad][0]:g}."
        raise ValueError(msg)


def clipped_proba(posterior: ArrayLike) -> Doubles:
    """Probabilities of several classes, of sum 1, none of them 0; what is no distribution is refused."""
    proba: Doubles = check_array(posterior, dtype=np.float64, input_name="posterior")
    K = proba.shape[1]
    if K < 2:
        msg = "posterior has one column: there must be one for each of two or more classes."
        raise ValueError(msg)
    if K > MOST_CLASSES:
        msg = (
            f"posterior has {K} classes, and without a family the ideal distribution is known of {MOST_CLASSES} at "
            "most. The Gaussian way, IdealDistributionClassifier (or FairSteeringTransformer), takes any number."
        )
        raise ValueError(msg)
    check_proba(proba)
    total = proba.sum(axis=1)
    bad = np.abs(total - 1) > _SLACK
    if bad.any():
        msg = (
            f"{bad.sum()} of {len(bad)} rows of posterior do not sum to 1, the first of them row "
            f"{int(np.flatnonzero(bad)[0])}, to {total[bad][0]:g}."
        )
        raise ValueError(msg)
    proba = np.maximum(proba, np.exp(-MOST_LOGIT))
    return np.asarray(proba / proba.sum(axis=1, keepdims=True))


def reference_of(reference_group: Any, groups: NDArray[Any], prior: Doubles) -> int:
    """Position of the reference group."""
    if reference_group is None:
        return int(prior.argmax())
    labels = groups.tolist()
    if reference_group not in labels:
        msg = f"reference_group={brief(reference_group)} is not among the groups {few(map(repr, labels))}."
        raise ValueError(msg)
    return int(labels.index(reference_group))


def warn_of_kept_shares(divergence: float) -> None:
    """Say that no group was left out, though that would be nearest."""
    warn_caller(
        "The groups' posteriors are so far apart that the nearest ideal distribution would leave a group out; the "
        f"groups keep their shares, at a divergence of {divergence:.3g} nats."
    )


def weights_alone(own: Doubles, prior: Doubles, reference: int) -> tuple[Doubles, Doubles, int]:
    """Class shares, group shares and rounds of the nearest distribution with class and group independent.

    `own` holds P(class | group), (K, G), none of them 0; `reference` is negative unless a group keeps its own.
    """
    shares = prior
    if reference >= 0:
        return own[:, reference], shares, 1
    n_iter, moved = 0, np.inf
    classes = own[:, 0]
    while moved > 1e-14 and n_iter < 1000:
        n_iter += 1
        log_classes = np.log(own) @ shares
        classes = np.exp(log_classes - np.logaddexp.reduce(log_classes))
        log_shares = np.log(prior) - rel_entr(classes[:, None], own).sum(axis=0)
        after = np.exp(log_shares - np.logaddexp.reduce(log_shares))
        moved, shares = np.abs(after - shares).max(), after
    return classes, shares, n_iter
