"""``python -m benchmarks.bias rounds``: a classifier decides, and only the accepted show their labels.

Round 0 is history: all labels are seen, and 30 % of group 1's positives were written down as negatives. In every
later round rows arrive, the classifier of what was seen so far decides, the labels of those that it accepts are seen,
rightly, and all is fitted again. The numeric features of group 1 are measured differently (`Distortion`, strength
1/2), from history on; with drift the distortion grows by a quarter of that in every round. The classifier of every
round is judged on other rows, accepted or not, with true labels and features as the group delivers them in that
round.

To forget is to let a row count half as much with every round that passes. What is steered while forgetting keeps the
map of its own round. Steering by parity needs no labels, and is fitted to all rows that arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from sklearn.base import clone

from benchmarks.bias.biases import Codes, Distortion, Floats, Sample
from benchmarks.bias.measures import measured
from benchmarks.bias.methods import CLASSIFIERS, LOGISTIC
from fairsteer import FairSteeringTransformer, IdealPosteriorClassifier, ScoreAligner

ROUNDS = 10
FLIPPED = 0.3
UNSEEN = -1


class Arrived(NamedTuple):
    """All rows so far: features as they were delivered, labels where they were seen (else -1), groups, rounds."""

    X: Floats
    label: Codes
    group: Codes
    round: Codes

    def and_then(self, more: Arrived) -> Arrived:
        return Arrived(*(np.concatenate(parts) for parts in zip(self, more, strict=True)))

    @property
    def seen(self) -> Arrived:
        """Those whose labels were seen."""
        return Arrived(*(part[self.label != UNSEEN] for part in self))

    def weight(self, *, forget: bool) -> Floats:
        """Half as much for every round that has passed since."""
        age = self.round.max() - self.round
        return np.asarray(0.5**age if forget else np.ones(len(age)))


Decide = Callable[[Floats, Codes], Floats]


class Policy(Protocol):
    """Learns from all that arrived, once a round, and gives the decisions of the next."""

    def fit(self, arrived: Arrived) -> Decide: ...


def _classifier() -> Any:
    return clone(CLASSIFIERS[LOGISTIC])


def _with_group(X: Floats, group: Codes) -> Floats:
    return np.column_stack([X, group])


@dataclass
class Classified:
    """The classifier as it is, group unseen or as a feature."""

    aware: bool = False
    forget: bool = False

    def fit(self, arrived: Arrived) -> Decide:
        seen = arrived.seen
        model = _classifier().fit(self._features(seen.X, seen.group), seen.label, seen.weight(forget=self.forget))
        return lambda X, group: np.asarray(model.predict(self._features(X, group)), dtype=np.float64)

    def _features(self, X: Floats, group: Codes) -> Floats:
        return _with_group(X, group) if self.aware else X


class Aligned:
    """Scores with equal true-positive rates among the rows seen."""

    def fit(self, arrived: Arrived) -> Decide:
        seen = arrived.seen
        model = ScoreAligner(_classifier()).fit(seen.X, seen.label, sensitive_features=seen.group)
        return lambda X, group: np.asarray(model.predict(X, sensitive_features=group), dtype=np.float64)


class Steered:
    """The classifier on steered rows, the maps fitted again every round."""

    def __init__(self, steering: FairSteeringTransformer, *, forget: bool = False, unlabelled: bool = False) -> None:
        self.steering, self.forget, self.unlabelled = steering, forget, unlabelled
        self.maps: list[Any] = []

    def fit(self, arrived: Arrived) -> Decide:
        rows = arrived if self.unlabelled else arrived.seen
        latest = clone(self.steering)
        latest.fit(rows.X, rows.label, sensitive_features=rows.group, sample_weight=rows.weight(forget=self.forget))
        self.maps.append(latest)
        seen = arrived.seen
        Z = latest.transform(seen.X, sensitive_features=seen.group)
        if self.forget:
            for t, steering in enumerate(self.maps):
                own = seen.round == t
                if own.any():
                    Z[own] = steering.transform(seen.X[own], sensitive_features=seen.group[own])
        model = _classifier().fit(Z, seen.label)
        return lambda X, group: np.asarray(
            model.predict(latest.transform(X, sensitive_features=group)), dtype=np.float64
        )


@dataclass
class Repaired:
    """The classifier on repaired rows, group 0 being the reference."""

    forget: bool = False

    def fit(self, arrived: Arrived) -> Decide:
        seen = arrived.seen
        X, weight = _with_group(seen.X, seen.group), seen.weight(forget=self.forget)
        posterior = IdealPosteriorClassifier(
            _classifier(), intervention="affirmative", reference_group=0, posterior="pooled"
        )
        posterior.fit(X, seen.label, sensitive_features=seen.group, sample_weight=weight)
        repaired = posterior.repair(X, seen.label, sensitive_features=seen.group, sample_weight=weight)
        rows, labels, weight = repaired.expanded()
        model = _classifier().fit(rows, labels, weight)
        return lambda X, group: np.asarray(model.predict(_with_group(X, group)), dtype=np.float64)


_AFFINE: Any = {"map_type": "affine", "intervention": "affirmative", "reference_group": 0}
_PARITY: Any = {"constraint": "demographic_parity", **_AFFINE}

POLICIES: dict[str, Callable[[], Policy]] = {
    "nothing": Classified,
    "nothing, forgetting": lambda: Classified(forget=True),
    "group as a feature": lambda: Classified(aware=True),
    "alignment": Aligned,
    "steering": lambda: Steered(FairSteeringTransformer(**_AFFINE)),
    "steering, forgetting": lambda: Steered(FairSteeringTransformer(**_AFFINE), forget=True),
    "steering by parity": lambda: Steered(FairSteeringTransformer(**_PARITY), unlabelled=True),
    "steering by parity, forgetting": lambda: Steered(FairSteeringTransformer(**_PARITY), forget=True, unlabelled=True),
    "repair": Repaired,
    "repair, forgetting": lambda: Repaired(forget=True),
}
#: What is measured beside them: the classifier where nothing is biased, and all labels are seen.
UNBIASED = "no bias, all labels"


class World:
    """Rows of every round and rows to judge on, and what the groups deliver of them."""

    def __init__(self, sample: Sample, n_rows: int, *, drift: bool, rng: np.random.Generator) -> None:
        self.sample, self.n_rows, self.drift = sample, n_rows, drift
        self.distortion = Distortion(sample.n_numeric, rng)
        self.denied = sample.positives & (rng.random(len(sample.y)) < FLIPPED)
        self.judged = sample.take(slice((ROUNDS + 1) * n_rows, None))

    def strength(self, t: int) -> float:
        return 0.5 + 0.125 * t * self.drift

    def delivered(self, rows: Sample, t: int) -> Floats:
        X, one = rows.X.copy(), rows.group == 1
        X[one, : rows.n_numeric] = self.distortion(rows.X[one, : rows.n_numeric], self.strength(t))
        return X

    def arriving(self, t: int) -> tuple[Sample, Arrived]:
        """True rows of a round, and what is delivered of them, no label seen yet."""
        rows = self.sample.take(slice(t * self.n_rows, (t + 1) * self.n_rows))
        unseen = np.full(len(rows.y), UNSEEN)
        return rows, Arrived(self.delivered(rows, t), unseen, rows.group, np.full(len(rows.y), t))

    def history(self) -> Arrived:
        rows, arrived = self.arriving(0)
        return arrived._replace(label=np.where(self.denied[: len(rows.y)], 0, rows.y))


def play(world: World, policy: Policy) -> Iterator[dict[str, float]]:
    """Measures of the decisions of every round, from the first that is decided."""
    arrived = world.history()
    for t in range(1, ROUNDS + 1):
        decide = policy.fit(arrived)
        judged = world.judged
        yield measured(judged.y, decide(world.delivered(judged, t), judged.group), judged.group)
        rows, new = world.arriving(t)
        accepted = decide(new.X, new.group) >= 0.5
        arrived = arrived.and_then(new._replace(label=np.where(accepted, rows.y, UNSEEN)))


def play_unbiased(world: World) -> Iterator[dict[str, float]]:
    """The same without distortion, with true labels in history, and all labels seen."""
    judged = world.judged
    for t in range(1, ROUNDS + 1):
        past = world.sample.take(slice(0, t * world.n_rows))
        model = _classifier().fit(past.X, past.y)
        yield measured(judged.y, np.asarray(model.predict(judged.X), dtype=np.float64), judged.group)


def played(world: World) -> Iterator[tuple[str, Iterator[dict[str, float]]]]:
    """Every policy, and the rounds that it plays."""
    yield UNBIASED, play_unbiased(world)
    for name, policy in POLICIES.items():
        yield name, play(world, policy())
