"""What ideal posteriors of two classes and of more have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import rel_entr
from sklearn.utils import check_array

from fairsteer._utils.html import cells_svg, facts_html
from fairsteer._utils.input import brief, few, warn_caller
from fairsteer._utils.labels import label_text
from fairsteer._utils.types import Codes, Doubles

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


_Ideal = TypeVar("_Ideal", bound="IdealOfRows")


@dataclass(frozen=True, eq=False, kw_only=True)
class IdealOfRows(ABC):
    """An ideal distribution that keeps the rows it is nearest to, weights them, and gives them soft labels.

    Both depend on a row through its group and its posterior alone. What :class:`~fairsteer.IdealPosterior`, of two
    classes, and :class:`~fairsteer.ideal.IdealPosteriorCells`, of more, have in common. *Places* are the points or the
    cells that posteriors are put on.

    Attributes
    ----------
    groups : ndarray of shape (n_groups,)
        Labels of the groups.
    intervention, mode : str
        As asked for.
    reference_group : object
        Label of the group whose law is kept; None unless "affirmative".
    laws : ndarray of shape (n_groups, n_places)
        Probabilities of the places in every group.
    log_weights : ndarray of shape (n_groups, n_places)
        Logarithm of what rows of a group are weighted by, the share of the group apart.
    source_group_prior, group_prior : ndarray of shape (n_groups,)
        Shares of the groups, and those on the ideal distribution.
    kl_divergence : float
        Of the ideal distribution from the given one, in nats.
    group_divergence : ndarray of shape (n_groups,)
        The same within every group.
    dual_gap : float
        Duality gap in nats: how far `kl_divergence` can be above the optimum for these places and shares.
    n_iter : int
        Steps that were needed.
    converged : bool
        Whether `dual_gap` is within the tolerance.
    """

    groups: NDArray[Any]
    intervention: str
    mode: str
    reference_group: Any
    laws: Doubles
    log_weights: Doubles
    source_group_prior: Doubles
    group_prior: Doubles
    kl_divergence: float
    group_divergence: Doubles
    dual_gap: float
    n_iter: int
    converged: bool

    def __post_init__(self) -> None:
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.n_classes} classes, {len(self.groups)} groups, "
            f"intervention={self.intervention!r}, mode={self.mode!r}, kl_divergence={self.kl_divergence:.4g}, "
            f"converged={self.converged})"
        )

    def _repr_html_(self) -> str:
        shares = zip(self.groups.tolist(), self.source_group_prior, self.group_prior, strict=True)
        exactness = f"{self.dual_gap:.1g} nats" if self.converged else f"{self.dual_gap:.2g} nats only"
        facts = [
            ("nearest ideal distribution", f"{self.kl_divergence:.4g} nats away, known to {exactness}"),
            ("what changes", {"joint": "weights and labels"}.get(self.mode, self.mode)),
            ("shares of the groups", few([f"{label_text(g)} {old:.3g} → {new:.3g}" for g, old, new in shares])),
        ]
        title = "Divergence of every group's rows from the ideal ones"
        picture = cells_svg(title, ["nats"], self.groups.tolist(), self.group_divergence[None])
        return f"<p>{escape(repr(self))}</p>{facts_html(facts)}{picture}"

    @property
    @abstractmethod
    def n_classes(self) -> int:
        """Number of classes."""

    @property
    @abstractmethod
    def h(self) -> dict[Any, tuple[Doubles, Doubles]]:
        """Group label to the posteriors that occur in the group, and the ideal ones that they become."""

    @abstractmethod
    def ideal_posterior(self, posterior: ArrayLike, group_codes: ArrayLike) -> Doubles:
        """Ideal posterior of rows."""

    @abstractmethod
    def class_laws(self, k: int) -> dict[Any, ClassLaws]:
        """Group label to the laws of P(class `k`) in the group, as they are and on the ideal distribution."""

    @abstractmethod
    def _joints(self) -> tuple[Doubles, Doubles]:
        """Probabilities of class, group and posterior, on the ideal distribution and as they are."""

    @abstractmethod
    def _log_weights_of(self, posterior: ArrayLike, codes: Codes) -> Doubles:
        """Logarithm of the weights of rows within their groups."""

    def with_groups(self: _Ideal, groups: NDArray[Any]) -> _Ideal:
        """Give the groups other labels, in the same order."""
        reference = self.reference_group
        if reference is not None:
            reference = groups.tolist()[self.groups.tolist().index(reference)]
        return replace(self, groups=groups.copy(), reference_group=reference)

    @property
    def class_rates(self) -> Doubles:
        """P(class) in every group, (n_classes, n_groups)."""
        return np.asarray(self._joints()[1].sum(axis=2) / self.source_group_prior)

    @property
    def ideal_class_rates(self) -> Doubles:
        """P(class) on the ideal distribution, the same in every group, (n_classes,)."""
        return np.asarray(self._joints()[0].sum(axis=(1, 2)))

    @property
    def ideal_laws(self) -> Doubles:
        """Probabilities of the places on the ideal distribution, (n_groups, n_places)."""
        laws = self.laws * np.exp(self.log_weights)
        return np.asarray(laws / laws.sum(axis=1, keepdims=True))

    @property
    def subgroup_divergence(self) -> Doubles:
        """KL divergence in nats of the rows of each class and group on the ideal one, (n_classes, n_groups)."""
        ideal, own = self._within_subgroups()
        return np.asarray(np.maximum(rel_entr(ideal, own).sum(axis=2), 0))

    @property
    def certificate(self) -> PosteriorCertificate:
        """Bounds on gaps and accuracy, in total variation; none with mode="weights", which leads to no ideal one."""
        if self.mode == "weights":
            msg = (
                "mode='weights' makes classes and groups independent, and no ideal distribution: nothing is certified."
            )
            raise AttributeError(msg)
        ideal, own = self._within_subgroups()
        bound = np.abs(ideal - own).sum(axis=2) / 2
        gaps = np.sort(bound, axis=1)[:, -2:].sum(axis=1) * (bound.shape[1] > 1)
        ideal, own = self._joints()
        accuracy = float(np.abs(ideal - own).sum() / 2)
        return PosteriorCertificate(bound, np.minimum(gaps, 1.0), min(accuracy, 1.0))

    def sample_weight(self, posterior: ArrayLike, group_codes: ArrayLike) -> Doubles:
        """Weights that turn rows into rows of the ideal distribution, under its soft labels.

        Parameters
        ----------
        posterior : array-like of shape (n_samples, n_classes)
            P(class | row, group), every row of sum 1; of two classes also P(second class | row, group) alone, of shape
            (n_samples,).
        group_codes : array-like of shape (n_samples,)
            Positions in `groups`.

        Returns
        -------
        ndarray of shape (n_samples,)
            Positive, of mean about 1.
        """
        codes = np.asarray(group_codes, dtype=np.intp)
        within = np.exp(self._log_weights_of(posterior, codes))
        return np.asarray(within * (self.group_prior / self.source_group_prior)[codes])

    def _within_subgroups(self) -> tuple[Doubles, Doubles]:
        """Laws of the posterior within class and group, on the ideal distribution and on the given one."""
        ideal, own = (joint / joint.sum(axis=2, keepdims=True) for joint in self._joints())
        return ideal, own


class Solution(NamedTuple):
    """What a program finds."""

    log_weights: Doubles
    ideal: dict[str, Doubles]
    """Ideal posteriors, by the names of the attributes that hold them."""
    group_prior: Doubles
    group_divergence: Doubles
    dual_gap: float = 0.0
    n_iter: int = 1
    converged: bool = True
    shares_kept: bool = False


def laws_and_prior(totals: Doubles) -> tuple[Doubles, Doubles]:
    """Probabilities of the places in every group, and shares of the groups, from weights of shape (G, n_places)."""
    share = totals.sum(axis=1)
    laws, prior = totals / share[:, None], share / share.sum()
    return laws / laws.sum(axis=1, keepdims=True), prior / prior.sum()


def fields_of(
    solution: Solution,
    laws: Doubles,
    prior: Doubles,
    groups: NDArray[Any],
    intervention: str,
    mode: str,
    reference: int,
) -> dict[str, Any]:
    """Fields of an ideal distribution, but for where its places are; with a warning where groups kept their shares."""
    within = float(solution.group_prior @ solution.group_divergence)
    if solution.shares_kept:
        warn_caller(
            "The groups' posteriors are so far apart that the nearest ideal distribution would leave a group out; the "
            f"groups keep their shares, at a divergence of {within:.3g} nats."
        )
    return {
        "groups": groups.copy(),
        "intervention": intervention,
        "mode": mode,
        "reference_group": groups.tolist()[reference] if reference >= 0 else None,
        "laws": laws,
        "log_weights": solution.log_weights,
        **solution.ideal,
        "source_group_prior": prior,
        "group_prior": solution.group_prior,
        "kl_divergence": float(max(within + rel_entr(solution.group_prior, prior).sum(), 0.0)),
        "group_divergence": solution.group_divergence,
        "dual_gap": solution.dual_gap,
        "n_iter": solution.n_iter,
        "converged": solution.converged,
    }


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
