"""``python -m benchmarks.synthetic``: one feature, known distributions, exact figures as Markdown tables.

Subgroups are Gaussian, or log-normal, with known parameters. Rates are values of distribution functions between the
roots of the classifier's score, divergences are integrals: nothing is sampled. The estimators are fitted to two points
a subgroup, mean plus and minus standard deviation, which have exactly its moments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import expit, logsumexp

from benchmarks.reference import Array
from fairsteer import FairSteeringTransformer
from fairsteer.baselines import CovarianceMatchingTransformer, MeanMatchingTransformer

Score = Callable[[Array], Array]


@dataclass(frozen=True)
class Problem:
    """Two classes (rows) in two groups (columns); the first group is the reference."""

    name: str
    weights: Array
    means: Array
    deviations: Array

    def two_points(self) -> dict[str, Array]:
        """Rows, classes, groups and weights with the moments of the subgroups."""
        sign, y, a = (axis.ravel() for axis in np.meshgrid([-1, 1], [0, 1], range(self.weights.shape[1])))
        X = self.means[y, a] + sign * self.deviations[y, a]
        return {"X": X[:, None], "y": y, "sensitive_features": a, "sample_weight": self.weights[y, a] / 2}


PROBLEMS = [
    Problem(
        "other base rates and means, equal variances",
        weights=np.array([[0.30, 0.28], [0.30, 0.12]]),
        means=np.array([[0.0, -0.5], [2.0, 1.0]]),
        deviations=np.ones((2, 2)),
    ),
    Problem(
        "other base rates, means and variances",
        weights=np.array([[0.20, 0.35], [0.30, 0.15]]),
        means=np.array([[0.0, 0.2], [2.0, 1.2]]),
        deviations=np.array([[1.0, 0.8], [0.8, 1.2]]),
    ),
    Problem(
        "ideal already: one family in other units, equal base rates",
        weights=np.array([[0.36, 0.24], [0.24, 0.16]]),
        means=np.array([[0.0, -1.0], [2.0, 2.0]]),
        deviations=np.array([[1.0, 1.5], [0.8, 1.2]]),
    ),
]


@dataclass(frozen=True)
class Family:
    """Normal distributions of a feature, or of its logarithm."""

    name: str
    cell: Callable[[float, float], Any]
    to_rows: Callable[[Array], Array]
    from_rows: Callable[[Array], Array]
    feature_transform: str | None


NORMAL = Family("normal", stats.norm, np.asarray, np.asarray, None)
LOG_NORMAL = Family("log-normal", lambda mean, sd: stats.lognorm(s=sd, scale=np.exp(mean)), np.exp, np.log, "log")


@dataclass(frozen=True)
class Distribution:
    """Weights of the subgroups, and a frozen SciPy distribution for each."""

    weights: Array
    cells: list[list[Any]]

    @classmethod
    def of(cls, family: Family, weights: Array, means: Array, deviations: Array) -> Distribution:
        pairs = [zip(*row, strict=True) for row in zip(means, deviations, strict=True)]
        return cls(weights, [[family.cell(mean, sd) for mean, sd in row] for row in pairs])

    def log_joint(self, x: Array) -> Array:
        """log q[k, a] + log p[k, a](x), of shape (K, G, n)."""
        density = np.array([[cell.logpdf(x) for cell in row] for row in self.cells])
        return np.asarray(np.log(self.weights)[:, :, None] + density)

    def score_of_group(self, a: int) -> Score:
        """Log-odds of class 1 given the feature and the group."""

        def score(x: Array) -> Array:
            joint = self.log_joint(x)[:, a]
            return np.asarray(joint[1] - joint[0])

        return score

    def score_of_all(self, x: Array) -> Array:
        """Log-odds of class 1 given the feature alone."""
        joint = logsumexp(self.log_joint(x), axis=1)
        return np.asarray(joint[1] - joint[0])

    def grid(self) -> Array:
        """Points close together wherever any subgroup has mass worth a decimal place of double precision."""
        levels = expit(np.linspace(-34, 34, 4001))
        return np.unique([cell.ppf(levels) for row in self.cells for cell in row])

    def accepted(self, scores: list[Score]) -> Array:
        """P(score of the group > 0) in every subgroup, of shape (K, G)."""
        grid = self.grid()
        rates = np.empty_like(self.weights)
        for a, score in enumerate(scores):
            edges, positive = sign_pattern(score, grid)
            for k, row in enumerate(self.cells):
                rates[k, a] = np.diff(row[a].cdf(edges))[positive].sum()
        return rates

    def divergence_from(self, other: Distribution) -> float:
        """KL(self || other) in nats, by quadrature over the quantiles of every subgroup."""
        total = float(np.sum(self.weights * np.log(self.weights / other.weights)))
        for (k, a), weight in np.ndenumerate(self.weights):
            own, from_own = self.cells[k][a], other.cells[k][a]

            def difference(t: float, own: Any = own, from_own: Any = from_own) -> float:
                x = own.ppf(stats.norm.cdf(t))
                return float((own.logpdf(x) - from_own.logpdf(x)) * stats.norm.pdf(t))

            total += weight * quad(difference, -8, 8, epsabs=1e-12, limit=200)[0]
        return total


def sign_pattern(score: Score, grid: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Edges of the intervals on which a score keeps its sign, and on which of them it is positive."""
    values = score(grid)
    crossings = np.flatnonzero(np.diff(np.sign(values)) != 0)
    roots = [brentq(lambda x: score(np.array([x]))[0], grid[i], grid[i + 1], xtol=1e-14) for i in crossings]
    return np.array([-np.inf, *roots, np.inf]), values[[0, *(crossings + 1)]] > 0


def figures(distribution: Distribution, scores: list[Score]) -> dict[str, float]:
    """Error and gaps of the classifier that accepts where the score of the group is positive."""
    rates, weights = distribution.accepted(scores), distribution.weights
    selected = (weights * rates).sum(axis=0) / weights.sum(axis=0)
    return {
        "error": float((weights[0] * rates[0] + weights[1] * (1 - rates[1])).sum()),
        "DP gap": float(np.ptp(selected)),
        "EO gap": float(np.ptp(rates[1])),
        "EOdds gap": float(np.ptp(rates, axis=1).max()),
    }


def steering(
    problem: Problem, family: Family, intervention: Literal["all_subgroups", "affirmative"]
) -> FairSteeringTransformer:
    points = problem.two_points()
    points["X"] = family.to_rows(points["X"])
    steer = FairSteeringTransformer(
        intervention=intervention,
        reference_group=0 if intervention == "affirmative" else None,
        covariance="full",
        shrinkage=None,
        feature_transform=family.feature_transform,
        tol=1e-12,
    )
    return steer.fit(**points)


def original(problem: Problem, family: Family) -> Distribution:
    return Distribution.of(family, problem.weights, problem.means, problem.deviations)


def moved(problem: Problem, family: Family, maps: dict[Any, tuple[Array, Array]]) -> Distribution:
    """Distribution of the original rows after one affine map a group, in the family's coordinates."""
    A, b = (np.array([np.ravel(part)[0] for part in parts]) for parts in zip(*maps.values(), strict=True))
    return Distribution.of(family, problem.weights, problem.means * A + b, problem.deviations * np.abs(A))


def on_each_distribution(problem: Problem, family: Family) -> dict[str, dict[str, float]]:
    """The Bayes classifier that knows the group, on every distribution."""
    start = original(problem, family)
    distributions = {"original": start}
    match = MeanMatchingTransformer(reference_group=0, shrinkage=None).fit(**problem.two_points())
    distributions["mean matching"] = moved(problem, family, match.maps_)
    for intervention in ("affirmative", "all_subgroups"):
        ideal = steering(problem, family, intervention).ideal_
        deviations = np.sqrt(ideal.covariances[..., 0, 0])
        name = f"nearest ideal, {intervention.replace('_', ' ')}"
        distributions[name] = Distribution.of(family, ideal.weights, ideal.means[..., 0], deviations)
    return {
        name: {
            "KL (nats)": distribution.divergence_from(start),
            **figures(distribution, [distribution.score_of_group(a) for a in range(problem.weights.shape[1])]),
        }
        for name, distribution in distributions.items()
    }


def in_use(problem: Problem, family: Family) -> dict[str, dict[str, float]]:
    """One classifier for all groups on the original distribution, after one map a group."""
    n_groups = problem.weights.shape[1]
    identity = {a: (np.ones(1), np.zeros(1)) for a in range(n_groups)}
    table = {}
    candidates = {"nothing": identity}
    for name, matching in (("mean", MeanMatchingTransformer), ("covariance", CovarianceMatchingTransformer)):
        match = matching(reference_group=0, shrinkage=None).fit(**problem.two_points())
        candidates[f"{name} matching"] = match.maps_
    for name, maps in candidates.items():
        distribution = moved(problem, family, maps)
        table[name] = figures(distribution, n_groups * [distribution.score_of_all])
    for intervention in ("affirmative", "all_subgroups"):
        steer = steering(problem, family, intervention)
        ideal = steer.ideal_

        def score(x: Array, ideal: Any = ideal) -> Array:
            posterior = ideal.log_posterior(family.from_rows(x)[:, None])
            return np.asarray(posterior[:, 1] - posterior[:, 0])

        name = f"steering, {intervention.replace('_', ' ')}"
        table[name] = figures(moved(problem, family, steer.maps_), n_groups * [score])
    return table


def markdown(table: dict[str, dict[str, float]], first: str) -> str:
    columns = list(next(iter(table.values())))
    lines = [f"| {first} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, values in table.items():
        # Adding 0 turns the -0 of rounding into 0.
        lines.append(f"| {name} | {' | '.join(f'{round(value, 4) + 0.0:.4f}' for value in values.values())} |")
    return "\n".join(lines)


def largest_difference(first: dict[str, dict[str, float]], second: dict[str, dict[str, float]]) -> float:
    return max(abs(first[name][column] - second[name][column]) for name in first for column in first[name])


def main() -> None:
    print("# One feature, two classes, two groups\n")
    print("KL is the divergence from the original distribution. DP: demographic parity; EO: equal opportunity, the gap")
    print("of the true-positive rates; EOdds: the larger gap of true- and false-positive rates. All figures are exact.")
    for number, problem in enumerate(PROBLEMS, 1):
        print(f"\n## {number}. {problem.name[0].upper()}{problem.name[1:]}\n")
        print("| class, group | probability | mean | standard deviation |\n|---|---:|---:|---:|")
        for (k, a), weight in np.ndenumerate(problem.weights):
            print(f"| {k}, {'ab'[a]} | {weight:.2f} | {problem.means[k, a]:g} | {problem.deviations[k, a]:g} |")
        print("\nThe Bayes classifier of each distribution, which knows the group:\n")
        distributions, deployed = on_each_distribution(problem, NORMAL), in_use(problem, NORMAL)
        print(markdown(distributions, "distribution"))
        print("\nThe original rows after one map a group that does not know their class, and one classifier for all")
        print("groups (Bayes-optimal for the matched rows; that of the ideal distribution after steering):\n")
        print(markdown(deployed, "map"))
        difference = max(
            largest_difference(distributions, on_each_distribution(problem, LOG_NORMAL)),
            largest_difference(deployed, in_use(problem, LOG_NORMAL)),
        )
        print("\nThe same parameters for the logarithm of a log-normal feature, steered with")
        print('`feature_transform="log"` (and matched as logarithms): no figure differs by more than')
        print(f"{difference:.1e}.")


if __name__ == "__main__":
    main()
