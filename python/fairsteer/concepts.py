"""Concept steering: add a concept's direction to hidden states, equally strong in every group."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.utils import check_random_state
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted

from fairsteer._utils.estimators import Interval, StrOptions, fit_context
from fairsteer._utils.input import as_given, brief, check_classes, check_rows, few, in_numpy
from fairsteer._utils.types import Codes, Doubles, Floats
from fairsteer.groups import GroupedRows, GroupEncoder, known_codes
from fairsteer.ideal import IdealDistribution, nearest_ideal
from fairsteer.moments import SubgroupMoments

__all__ = ["ConceptSteering", "MeasuredShifts"]

#: Rows that a class needs in every group: in either half, one for a probe, and two that it has not seen.
_MIN_ROWS = 6

_Self = TypeVar("_Self", bound="ConceptSteering")


class MeasuredShifts(NamedTuple):
    """How far a concept shifted in every group when it was steered, as measured by whatever is to be equal.

    Attributes
    ----------
    strengths : ndarray of shape (n_strengths,)
        Strengths, rising, 0 among them.
    shifts : ndarray of shape (n_strengths, n_groups)
        Shifts, rising in every group, 0 at strength 0, in the unit that they were measured in.
    """

    strengths: Doubles
    shifts: Doubles

    def equalizing(self, strength: float, groups: Sequence[Any]) -> Doubles:
        """Find the strengths at which all groups shift by what they shift on average at one.

        Parameters
        ----------
        strength : float
            Within the measured ones.
        groups : sequence of labels
            For messages.

        Returns
        -------
        ndarray of shape (n_groups,)
            Strengths; between the measured ones, shifts follow a monotone cubic.

        Raises
        ------
        ValueError
            If the strength is beyond those that were measured, or a group does not reach the common shift.
        """
        if strength == 0:
            return np.zeros(len(groups))
        # In units of the largest, so that differences of large shifts are finite.
        unit = np.abs(self.shifts).max()
        curves = [PchipInterpolator(self.strengths, own) for own in (self.shifts / unit).T]
        low, high = self.strengths[[0, -1]]
        if not low <= strength <= high:
            msg = (
                f"Shifts were measured at strengths from {low:g} to {high:g}, and {strength:g} is not among these: "
                "measure further and call equalize with all of it."
            )
            raise ValueError(msg)
        common = float(np.mean([curve(strength) for curve in curves]))
        for a, own in enumerate(self.shifts.T):
            end = 0 if common < 0 else -1
            # A mean of equal shifts may exceed them by rounding.
            if abs(common) > abs(own[end] / unit) * (1 + 1e-12):
                msg = (
                    f"At strength {strength:g} the groups shift by {common * unit:.4g} on average, and group "
                    f"{brief(groups[a])} does not reach that: it shifts by {own[end]:.4g} at {self.strengths[end]:g}, "
                    "the furthest strength that was measured. Measure further, or steer less."
                )
                raise ValueError(msg)
        # Between what the curves themselves give at their ends, which rounding sets apart from what was measured.
        targets = [np.clip(common, curve(low), curve(high)) for curve in curves]
        return np.array(
            [brentq(lambda s, c=c, t=t: c(s) - t, low, high, xtol=1e-12) for c, t in zip(curves, targets, strict=True)]
        )


def measured_shifts(strengths: Any, shifts: Any, groups: Sequence[Any]) -> MeasuredShifts:
    """Read what was measured, and put 0 and its shift where they belong."""
    at = np.asarray(strengths, dtype=np.float64)
    if isinstance(shifts, Mapping) or hasattr(shifts, "columns"):
        named = {label: np.asarray(shifts[label], dtype=np.float64) for label in getattr(shifts, "columns", shifts)}
        if set(named) != set(groups):
            msg = (
                f"shifts are of the groups {few(map(repr, named))}, but the directions are of {few(map(repr, groups))}."
            )
            raise ValueError(msg)
        if any(own.shape != at.shape for own in named.values()):
            msg = f"shifts must hold one number of every group for each of the strengths {few(map(str, at.ravel()))}."
            raise ValueError(msg)
        values = np.column_stack([named[label] for label in groups])
    else:
        values = np.asarray(shifts, dtype=np.float64)
    if at.ndim != 1 or not len(at) or values.shape != (len(at), len(groups)):
        msg = (
            f"strengths must have one axis and shifts a row for each of them and a column for each of {len(groups)} "
            f"groups; their shapes are {at.shape} and {values.shape}."
        )
        raise ValueError(msg)
    if not (np.isfinite(at).all() and np.isfinite(values).all()):
        msg = "strengths and shifts must be finite numbers."
        raise ValueError(msg)
    if not (at == 0).any():
        at, values = np.append(at, 0.0), np.vstack([values, np.zeros(len(groups))])
    order = np.argsort(at)
    at, values = at[order], values[order]
    if len(at) == 1:
        msg = "strengths has 0 alone, at which nothing shifts: measure at one or more others."
        raise ValueError(msg)
    if (twice := np.flatnonzero(np.diff(at) == 0)).size:
        msg = f"strength {at[twice[0]]:g} was measured twice; give the mean of its shifts."
        raise ValueError(msg)
    if (moved := values[at == 0][0]).any():
        a = int(np.abs(moved).argmax())
        msg = f"At strength 0 nothing shifts, but that of group {brief(groups[a])} is {moved[a]:.4g}."
        raise ValueError(msg)
    falling = np.argwhere(np.diff(values, axis=0) <= 0)
    if len(falling):
        m, a = falling[0]
        msg = (
            f"The shift of group {brief(groups[a])} must rise with the strength, but goes from {values[m, a]:.4g} at "
            f"{at[m]:g} to {values[m + 1, a]:.4g} at {at[m + 1]:g}. Measure it on more prompts, or leave out strengths "
            "at which it no longer rises."
        )
        raise ValueError(msg)
    return MeasuredShifts(at, values)


def strengths_of_groups(strength: float, groups: Sequence[Any], measured: MeasuredShifts | None) -> Doubles:
    """Strengths of the groups at one: the same, or those at which they shift alike."""
    if not np.isfinite(strength):
        msg = f"strength must be a finite number, got {brief(strength)}."
        raise ValueError(msg)
    if measured is None:
        return np.full(len(groups), float(strength))
    return measured.equalizing(float(strength), groups)


class ConceptSteering(BaseEstimator):
    """Directions in which hidden states move towards a concept, by the same amount in every group.

    A linear probe tells by a direction whether a hidden state shows a concept (is about a nurse, is joyful). The
    direction depends on the rows that the probe was fitted to, so many probes on resampled rows make a Gaussian of
    directions, a Gaussian concept subspace [1]_, here one for each group. The nearest ideal distribution to these
    Gaussians [2]_ gives each group a direction that is as certain, relative to its spread, as those of the others. Then
    every direction is scaled: added once, it moves the group's rows by one standard deviation of the score that the
    group's average probe gives them.

    Parameters
    ----------
    n_probes : int, default=50
        Resamples for each group, at least 4; half of them are drawn from either half of the rows.
    probe_share : float in (0, 1), default=0.5
        Rows of a resample, as a share of the rows that the smallest group has of a class in half the data. All probes
        see as many rows of each class, whatever the group, so that a small group is not taken for an uncertain one.
    C : float, default=1.0
        Inverse strength of the probes' L2 penalty, for activations divided by their common standard deviation.
    reference_group : label, default=None
        The group that keeps its own directions; the ideal distribution is the affirmative one. None: the group in which
        the concept is told best (the largest mean of ``separation_``).
    covariance : {"diagonal", "tied"}, default="diagonal"
        Spread of the directions: a variance for each feature, as in [1]_, or one covariance for each group, shrunk by
        Ledoit and Wolf's method.
    towards_ideal : float in [0, 1], default=1.0
        Part of the way from the groups' own mean directions, at 0, to the ideal ones, at 1.
    random_state : int, RandomState instance or None, default=0
        Decides the halves and the resamples; None: others each time.
    n_jobs : int, default=None
        Probes that are fitted at the same time; -1: as many as there are processors. The result does not depend on it.
    verbose : int, default=0
        How much joblib tells of the fits.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels of the concept.
    groups_ : ndarray of shape (n_groups,)
        Group labels, tuples for intersections.
    directions_ : ndarray of shape (n_classes, n_groups, n_features)
        Calibrated directions towards each class, to be added to hidden states; :meth:`direction` looks one up.
    probe_moments_ : SubgroupMoments
        Means and covariances of the probes' unit-length directions, by class and group.
    ideal_ : IdealDistribution
        The nearest ideal distribution to these. With two classes, whose directions are opposite, its means are as many
        spreads long in every group.
    separation_ : ndarray of shape (n_classes, n_groups)
        Distance of the class from the others in the mean probe's score, in standard deviations within classes, on rows
        that the probes were not fitted to.
    equalized_ : dict
        Measured shifts by class, of what :meth:`equalize` made equal; empty at first.
    n_features_in_ : int
        Number of columns of the activations.

    Notes
    -----
    What is equal after steering is the shift of the score of each group's own probe, in standard deviations of that
    score within the classes. Not equal, in general: the shift of a probe that the groups share, the length of the
    pushes, the share of rows that end beyond a threshold (groups start at different places), and what the layers above
    make of it, unless that is measured and :meth:`equalize` called. The scale alone makes the shifts equal, at any
    `towards_ideal`; the ideal distribution decides the directions.

    The probe that measures is the average one over all samples of so many rows. One probe, or the mean of some, is that
    plus noise, which is larger where the concept is harder to tell; the noise adds to the deviation of its score and
    makes shifts look smaller. Half of the rows measure what the probes of the other half say: the two have noise of
    their own, so that products of the two are free of it, the shift ``w1 @ v2`` as well as the squared deviation, which
    is the covariance within classes of the scores of ``w1`` and ``w2``, on rows that neither was fitted to.

    References
    ----------
    .. [1] Zhao, Zhao, Shen, Payani, Yang, Du. "Beyond Single Concept Vector: Modeling Concept Subspace in LLMs with
       Gaussian Distribution". ICLR 2025. arXiv:2410.00153.
    .. [2] Sharma, Deshpande, Bhattacharyya, Shah. "On Optimal Steering to Achieve Exact Fairness". NeurIPS 2025.
       arXiv:2509.15759.

    Examples
    --------
    >>> import numpy as np
    >>> from fairsteer.concepts import ConceptSteering
    >>> from fairsteer.datasets import make_biased_groups
    >>> hidden, joyful, group = make_biased_groups(800, 6, shift=0, spread=3, random_state=0)
    >>> steering = ConceptSteering(n_probes=20).fit(hidden, joyful, sensitive_features=group)
    >>> length = {g: float(np.linalg.norm(steering.direction(g))) for g in (0, 1)}
    >>> 2.5 < length[1] / length[0] < 3.5
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_probes": [Interval(Integral, 4, None, closed="left")],
        "probe_share": [Interval(Real, 0, 1, closed="neither")],
        "C": [Interval(Real, 0, None, closed="neither")],
        "reference_group": [Hashable, None],
        "covariance": [StrOptions({"diagonal", "tied"})],
        "towards_ideal": [Interval(Real, 0, 1, closed="both")],
        "random_state": ["random_state"],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    _encoder: GroupEncoder

    # Requested by default, so that nobody has to call set_fit_request.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"sensitive_features": True}

    def __init__(
        self,
        *,
        n_probes: int = 50,
        probe_share: float = 0.5,
        C: float = 1.0,
        reference_group: Hashable = None,
        covariance: Literal["diagonal", "tied"] = "diagonal",
        towards_ideal: float = 1.0,
        random_state: Any = 0,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_probes = n_probes
        self.probe_share = probe_share
        self.C = C
        self.reference_group = reference_group
        self.covariance = covariance
        self.towards_ideal = towards_ideal
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self: _Self, X: Any, y: Any, *, sensitive_features: Any) -> _Self:
        """Fit probes to resampled rows, and the directions that follow from them.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Hidden states, in any floating-point type.
        y : array-like of shape (n_samples,)
            Class labels: whether the concept is there, or which of several is.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels. Rows where one is missing are left out, with a warning.

        Returns
        -------
        self
            The estimator itself.

        Raises
        ------
        ValueError
            If `X` holds NaN or infinite values, there is one class only, a class has fewer than 6 rows in a
            group, the reference group is not known, or probes of other rows do not confirm a direction.
        """
        rows: Floats = check_rows(in_numpy(X), self)
        labels = check_classes(y, rows)
        if sensitive_features is None or (grouped := GroupedRows.read(sensitive_features, rows, None)).encoder is None:
            msg = "sensitive_features must hold the groups of the rows, got None."
            raise ValueError(msg)
        rows, labels, codes = rows[grouped.kept], labels[grouped.kept], grouped.codes[grouped.kept]
        self.classes_, y_codes = np.unique(labels, return_inverse=True)
        self.groups_, self._encoder = grouped.groups, grouped.encoder
        self.n_features_in_ = rows.shape[1]
        if len(self.classes_) < 2:
            msg = f"y has the one label {self.classes_.tolist()[0]!r}; probes need rows with and without it."
            raise ValueError(msg)
        known = self.groups_.tolist()
        if self.reference_group is not None and self.reference_group not in known:
            msg = f"reference_group={brief(self.reference_group)} is none of the groups {few(map(repr, known))}."
            raise ValueError(msg)
        random_state = check_random_state(self.random_state)
        half = self._deal_halves(rows, y_codes, codes, random_state)
        probes = [self._fit_probes(rows, y_codes, codes, half == h, random_state) for h in (0, 1)]
        self._calibrate(rows, y_codes, codes, half, probes)
        self.equalized_: dict[Any, MeasuredShifts] = {}
        return self

    def equalize(self: _Self, strengths: Any, shifts: Any, *, concept: Any = None) -> _Self:
        """Let every group shift by the same amount in what was measured, such as what a model says.

        Directions are scaled to shift the probes of their layer alike; the layers above may make more of it in one
        group than in another. Steer at a few strengths, measure by how much the concept shifts in each group, and from
        then on strength ``s`` is, in each group, the one at which its shift is what the groups' is on average at ``s``.
        All that steers by this object keeps to that: :meth:`steer`, torch modules and hooks, folded weights, control
        vectors and saved files.

        Parameters
        ----------
        strengths : array-like of shape (n_strengths,)
            Strengths that were measured, without :meth:`equalize`. At 0 the shift is 0, which need not be given.
        shifts : array-like of shape (n_strengths, n_groups), dataframe or mapping
            How far the concept shifted at each of them, in any unit. Columns in the order of ``groups_``, or named by
            the groups.
        concept : label, default=None
            As for :meth:`direction`. Others are left as they are.

        Returns
        -------
        self
            The estimator itself.

        Raises
        ------
        ValueError
            If numbers are missing, not finite or of other shapes, a group is not there, a strength stands twice, or a
            group's shift does not rise with the strength.

        See Also
        --------
        group_strengths : What comes of it.

        Notes
        -----
        Measure on other prompts than those that are to show that it works. Strengths beyond those measured are an
        error.

        Examples
        --------
        >>> import numpy as np
        >>> from fairsteer.concepts import ConceptSteering
        >>> rng = np.random.default_rng(0)
        >>> joyful, who = rng.integers(0, 2, 400), rng.choice(["f", "m"], 400)
        >>> hidden = rng.normal(size=(400, 6)) + np.outer(joyful, [2, 0, 0, 0, 0, 0])
        >>> steering = ConceptSteering(n_probes=8).fit(hidden, joyful, sensitive_features=who)
        >>> steering = steering.equalize([4.0, 8.0], {"f": [1.0, 2.0], "m": [0.6, 1.2]})
        >>> print(steering.group_strengths(4.0).round(2))  # both by 0.8
        [3.2  5.33]
        """
        k = self._class_position(concept)
        measured = measured_shifts(strengths, shifts, self.groups_.tolist())
        self.equalized_ = {**self.equalized_, self.classes_.tolist()[k]: measured}
        return self

    def group_strengths(self, strength: float = 1.0, concept: Any = None) -> Doubles:
        """Strengths of the groups, which differ after :meth:`equalize`.

        Parameters
        ----------
        strength : float, default=1.0
            What is asked for.
        concept : label, default=None
            As for :meth:`direction`.

        Returns
        -------
        ndarray of shape (n_groups,)
            What the directions are multiplied by.

        Raises
        ------
        ValueError
            If the strength is not finite, or shifts were not measured so far, or as for :meth:`direction`.
        """
        return strengths_of_groups(strength, self.groups_.tolist(), self._measured(concept))

    def direction(self, group: Any, concept: Any = None) -> Doubles:
        """Look up the direction of a group.

        Parameters
        ----------
        group : label
            One of ``groups_``.
        concept : label, default=None
            One of ``classes_``, towards which to move. None: the second of two.

        Returns
        -------
        ndarray of shape (n_features,)
            Added once, it moves a row by one standard deviation of the group's probe score within its classes.

        Raises
        ------
        ValueError
            If the group or the concept is not known, or there are more than two classes and none is named.
        """
        k = self._class_position(concept)
        groups = self.groups_.tolist()
        if group not in groups:
            msg = f"{brief(group)} is none of the groups {few(map(repr, groups))}."
            raise ValueError(msg)
        direction: Doubles = self.directions_[k, groups.index(group)].copy()
        return direction

    def steer(self, X: Any, *, sensitive_features: Any, strength: float = 1.0, concept: Any = None) -> Any:
        """Add ``strength`` times their groups' directions to rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Hidden states.
        sensitive_features : array-like or dataframe of shape (n_samples,) or (n_samples, n_columns)
            Group labels.
        strength : float, default=1.0
            How far, in standard deviations of the probe score; negative: away from the concept. After :meth:`equalize`,
            what the groups' own strengths follow from.
        concept : label, default=None
            As for :meth:`direction`.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Steered rows in the floating-point type of `X`.

        Raises
        ------
        ValueError
            If a group is missing or not known, or as for :meth:`group_strengths`.
        """
        k = self._class_position(concept)
        rows: Floats = check_rows(in_numpy(X), self)
        if rows.shape[1] != self.n_features_in_:
            msg = f"X has {rows.shape[1]} features, but the directions have {self.n_features_in_}."
            raise ValueError(msg)
        amounts = self.group_strengths(strength, concept)
        codes = known_codes(self._encoder, sensitive_features, rows, "name one of the known groups in every row")
        return as_given((rows + (amounts[:, None] * self.directions_[k])[codes]).astype(rows.dtype), X)

    def _measured(self, concept: Any) -> MeasuredShifts | None:
        """Find what was measured of a concept."""
        return self.equalized_.get(self.classes_.tolist()[self._class_position(concept)])

    def _class_position(self, concept: Any) -> int:
        check_is_fitted(self, "directions_")
        classes = self.classes_.tolist()
        if concept is None and len(classes) == 2:
            return 1
        if concept not in classes:
            msg = f"concept must be one of the classes {few(map(repr, classes))}, got {brief(concept)}."
            raise ValueError(msg)
        position: int = classes.index(concept)
        return position

    # ---- probes

    def _deal_halves(self, rows: Floats, y: Codes, codes: Codes, random_state: np.random.RandomState) -> Codes:
        """Half (0 or 1) of every row, such that each class of each group is in both."""
        counts = np.zeros((len(self.classes_), len(self.groups_)), dtype=np.intp)
        np.add.at(counts, (y, codes), 1)
        if (counts < _MIN_ROWS).any():
            k, a = np.argwhere(counts < _MIN_ROWS)[0]
            msg = (
                f"Class {self.classes_.tolist()[k]!r} has {counts[k, a]} rows in group {self.groups_.tolist()[a]!r}, "
                f"and probes need at least {_MIN_ROWS} of every class in every group. Leave such groups or classes "
                "out, or join them with others."
            )
            raise ValueError(msg)
        in_half = (counts // 2).min(axis=1)
        self._rows_per_class = np.clip((self.probe_share * in_half).astype(np.intp), 1, in_half - 2)
        half = np.empty(len(rows), dtype=np.intp)
        for cell in self._cells(y, codes, np.ones(len(rows), dtype=bool)).values():
            half[random_state.permutation(cell)] = np.arange(len(cell)) % 2
        return half

    def _cells(self, y: Codes, codes: Codes, kept: npt.NDArray[np.bool_]) -> dict[tuple[int, int], Codes]:
        """Positions of the rows of every class and group, among the kept ones."""
        return {
            (k, a): np.flatnonzero(kept & (y == k) & (codes == a))
            for k in range(len(self.classes_))
            for a in range(len(self.groups_))
        }

    def _fit_probes(
        self, rows: Floats, y: Codes, codes: Codes, kept: npt.NDArray[np.bool_], random_state: np.random.RandomState
    ) -> tuple[Doubles, npt.NDArray[np.bool_]]:
        """Fit probes: their unit-length directions, (n_probes / 2, n_classes, n_groups, d), and the rows they saw."""
        K, G, d = len(self.classes_), len(self.groups_), rows.shape[1]
        cells = self._cells(y, codes, kept)
        n_draws = (self.n_probes + 1) // 2
        seen = np.zeros((n_draws, len(rows)), dtype=bool)
        draws = []  # all before any fit, so that their order does not depend on who fits
        for draw in range(n_draws):
            for a in range(G):
                drawn = np.concatenate(
                    [random_state.choice(cells[k, a], n, replace=False) for k, n in enumerate(self._rows_per_class)]
                )
                seen[draw, drawn] = True
                draws.append((drawn, a))
        fits = (delayed(self._probes_of)(rows[drawn], y[drawn], a) for drawn, a in draws)
        directions = np.stack(Parallel(n_jobs=self.n_jobs, verbose=self.verbose)(fits))
        return directions.reshape(n_draws, G, K, d).swapaxes(1, 2), seen

    def _probes_of(self, rows: Floats, y: Codes, a: int) -> Doubles:
        """Directions of one resample of a group towards every class, (n_classes, d)."""
        K = len(self.classes_)
        X = rows.astype(np.float64)
        X -= X.mean(axis=0)
        scale = np.sqrt(np.square(X).mean())
        directions = np.empty((K, X.shape[1]))
        for k in range(1 if K == 2 else 0, K):
            directions[k] = self._probe(X / (scale or 1.0), y == k, k, a)
        if K == 2:
            directions[0] = -directions[1]
        return directions

    def _probe(self, X: Doubles, shown: npt.NDArray[np.bool_], k: int, a: int) -> Doubles:
        probe = LogisticRegression(C=self.C, class_weight="balanced", max_iter=1000).fit(X, shown)
        weights: Doubles = probe.coef_[0]
        length = np.linalg.norm(weights)
        if length == 0:
            msg = (
                f"A probe for class {self.classes_.tolist()[k]!r} in group {self.groups_.tolist()[a]!r} found no "
                "direction: its rows do not differ."
            )
            raise ValueError(msg)
        return weights / length

    # ---- directions

    def _calibrate(
        self, rows: Floats, y: Codes, codes: Codes, half: Codes, probes: Sequence[tuple[Doubles, npt.NDArray[np.bool_]]]
    ) -> None:
        """Set the directions, scaled by what the probes of the other half see of them."""
        means = [directions.mean(axis=0) for directions, _ in probes]
        self.separation_, squared = np.zeros((2, *means[0].shape[:2]))
        for h, (directions, seen) in enumerate(probes):
            cells = self._cells(y, codes, half == h)
            self.separation_ += self._separation(rows, cells, means[1 - h]) / 2
            squared += self._shared_variance(rows, cells, directions, seen, means[1 - h]) / 2
        reference = self.reference_group
        if reference is None:
            reference = self.groups_.tolist()[int(self.separation_.mean(axis=0).argmax())]
        every = np.concatenate([directions for directions, _ in probes])
        self.probe_moments_, self.ideal_, steered = self._steered_means(every, reference)
        shift = np.zeros_like(squared)
        for h, (directions, _) in enumerate(probes):
            shift += np.einsum("kad,kad->ka", means[1 - h], self._steered_means(directions, reference)[2]) / 2
        if (squared <= 0).any() or (shift <= 0).any():
            k, a = np.argwhere((squared <= 0) | (shift <= 0))[0]
            msg = (
                f"The probes of one half of the rows do not confirm those of the other for class "
                f"{self.classes_.tolist()[k]!r} in group {self.groups_.tolist()[a]!r}: their direction is noise. More "
                "rows, a smaller C or a smaller towards_ideal may help."
            )
            raise ValueError(msg)
        self.directions_ = steered * (np.sqrt(squared) / shift)[:, :, None]

    def _steered_means(self, probes: Doubles, reference: Any) -> tuple[SubgroupMoments, IdealDistribution, Doubles]:
        """Moments of directions, the nearest ideal distribution, and the means on the way to its own."""
        n_draws, K, G, d = probes.shape
        moments = SubgroupMoments(d, classes=self.classes_, groups=self.groups_, covariance=self.covariance)
        y_codes, group_codes = (codes.ravel() for codes in np.broadcast_arrays(*np.ogrid[:K, :G]))
        moments.update(probes.reshape(-1, d), np.tile(y_codes, n_draws), np.tile(group_codes, n_draws))
        ideal = nearest_ideal(
            moments.shrink("ledoit_wolf"),
            intervention="affirmative",
            reference_group=reference,
            covariance=self.covariance,
        )
        return moments, ideal, (1 - self.towards_ideal) * moments.means + self.towards_ideal * ideal.means

    def _separation(self, rows: Floats, cells: Mapping[tuple[int, int], Codes], probes: Doubles) -> Doubles:
        """Distance between the classes in the probes' scores, in deviations within them, (n_classes, n_groups)."""
        K, G = probes.shape[:2]
        means, variances = np.empty((2, K, G, K))
        for (j, a), cell in cells.items():
            scores = rows[cell].astype(np.float64) @ probes[:, a].T
            means[:, a, j], variances[:, a, j] = scores.mean(axis=0), scores.var(axis=0)
        from_others = np.eye(K) - (1 - np.eye(K)) / (K - 1)
        gap: Doubles = np.einsum("kaj,kj->ka", means, from_others) / np.sqrt(variances.mean(axis=2))
        return gap

    def _shared_variance(
        self,
        rows: Floats,
        cells: Mapping[tuple[int, int], Codes],
        directions: Doubles,
        seen: npt.NDArray[np.bool_],
        others: Doubles,
    ) -> Doubles:
        """Covariance within classes of probes' scores with those of the other half's mean probe, (n_classes, n_groups).

        On the rows that the probes were not fitted to.
        """
        K, G = others.shape[:2]
        total = np.zeros((K, G))
        for (_, a), cell in cells.items():
            own = rows[cell].astype(np.float64)
            held_out = ~seen[:, cell]
            count = held_out.sum(axis=1)
            # (draws, K, n) and (K, n), without what all rows share, which would cost digits.
            own -= own.mean(axis=0)
            scores = np.einsum("mkd,nd->mkn", directions[:, :, a], own, optimize=True)
            theirs = others[:, a] @ own.T
            mean = np.einsum("mkn,mn->mk", scores, held_out) / count[:, None]
            their_mean = np.einsum("kn,mn->mk", theirs, held_out) / count[:, None]
            product = np.einsum("mkn,kn,mn->mk", scores, theirs, held_out, optimize=True) / count[:, None]
            covariance = (product - mean * their_mean) * (count / (count - 1))[:, None]
            total[:, a] += covariance.mean(axis=0) / K
        return total
