"""Rows of groups that differ in ways one chooses, and the data that scikit-learn brings: for trials and examples."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn import datasets as sklearn_datasets
from sklearn.utils import Bunch, check_random_state

from ._utils.types import Doubles

__all__ = ["load_diabetes", "make_biased_groups"]

_Labels: TypeAlias = int | Sequence[Any]


def make_biased_groups(
    n_samples: int = 1000,
    n_features: int = 4,
    *,
    classes: _Labels = 2,
    groups: _Labels = 2,
    class_sep: float = 2.0,
    shift: float = 1.5,
    spread: float = 1.0,
    rotation: float = 0.0,
    base_rates: npt.ArrayLike | None = None,
    group_shares: npt.ArrayLike | None = None,
    label_bias: float | npt.ArrayLike = 0.0,
    random_state: Any = None,
    return_X_y: bool = True,
) -> Any:
    r"""Rows of Gaussian classes that look different in every group.

    A row of class ``k`` is first drawn from ``N(ν[k], I)``, the same in all groups. Group ``a`` of ``G`` then shows it
    in coordinates of its own: with ``t = a / (G - 1)``, which is 0 for the first group and 1 for the last,

    .. math:: x = s^t \, R(t \theta) \, z + t \, \delta \, u, \qquad z \sim N(\nu_k, I),

    where ``s`` is `spread`, ``R`` the rotation of the first two features by the angle ``t θ`` of `rotation`, ``δ`` is
    `shift` and ``u`` the diagonal ``(1, …, 1) / √d``. So the groups are one family seen in different coordinates: where
    `base_rates` agree, one affine map a group leads to an ideal distribution, and no accuracy need be lost.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of rows.
    n_features : int, default=4
        Number of features ``d``: at least one less than there are classes, and two if there is a `rotation`.
    classes, groups : int or sequence of labels, default=2
        How many there are, labelled from 0 on, or their labels.
    class_sep : float, default=2.0
        Distance between the means ``ν`` of any two classes, in standard deviations.
    shift : float, default=1.5
        How far the last group is moved, in standard deviations of the first.
    spread : float > 0, default=1.0
        Standard deviations of the last group over those of the first.
    rotation : float, default=0.0
        Angle in degrees between the class means of the last and of the first group.
    base_rates : array-like of shape (n_groups,) or (n_groups, n_classes), default=None
        How frequent the last class is in each group, or all classes are. None: all equally.
    group_shares : array-like of shape (n_groups,), default=None
        How frequent the groups are. None: all equally.
    label_bias : float in [0, 1] or array-like of shape (n_groups,), default=0.0
        Probability that a row of the last class is labelled as the first class: in the last group, or in each group.
        The features do not know of it.
    random_state : int, RandomState instance or None, default=None
        Seed of the rows.
    return_X_y : bool, default=True
        Whether a tuple is returned, or everything that is known of the rows.

    Returns
    -------
    X : ndarray of shape (n_samples, n_features)
        Rows, in double precision.
    y : ndarray of shape (n_samples,)
        Their classes, with label bias.
    sensitive_features : ndarray of shape (n_samples,)
        Their groups.
    bunch : :class:`~sklearn.utils.Bunch`
        Instead of the tuple if `return_X_y` is False, with these and

        * ``y_unbiased``, the classes without label bias;
        * ``weights`` (n_classes, n_groups), ``means`` (n_classes, n_groups, n_features) and ``covariances`` (n_groups,
          n_features, n_features) of the subgroups that rows are drawn from, without label bias;
        * ``classes`` and ``groups``, the labels.

    Raises
    ------
    ValueError
        If a number is out of its range, or shapes do not fit.

    See Also
    --------
    sklearn.datasets.make_classification : Rows of classes, without groups.

    Examples
    --------
    >>> from fairsteer.datasets import make_biased_groups
    >>> X, y, sex = make_biased_groups(600, groups=["female", "male"], base_rates=[0.3, 0.5], random_state=0)
    >>> X.shape, y.mean().round(2), (sex == "female").mean().round(2)
    ((600, 4), np.float64(0.39), np.float64(0.5))

    The distribution itself, for those who need no rows:

    >>> from fairsteer import SubgroupMoments, nearest_ideal
    >>> known = make_biased_groups(10, spread=2.0, random_state=0, return_X_y=False)
    >>> moments = SubgroupMoments.from_statistics(known.weights, known.means, known.covariances)
    >>> nearest_ideal(moments).kl_divergence < 1e-9
    True
    """
    n_samples, n_features = _count(n_samples, "n_samples"), _count(n_features, "n_features")
    class_labels, group_labels = _labels(classes, "classes"), _labels(groups, "groups")
    n_classes, n_groups = len(class_labels), len(group_labels)
    for name, value in (("class_sep", class_sep), ("shift", shift), ("spread", spread), ("rotation", rotation)):
        _check_number(value, name, positive=name == "spread")
    if n_features < (needed := max(n_classes - 1, 2 if rotation else 1)):
        msg = (
            f"n_features must be at least {needed} with {n_classes} classes and rotation={rotation}, not {n_features}."
        )
        raise ValueError(msg)
    rates = _base_rates(base_rates, n_groups, n_classes)
    shares = _shares(group_shares, n_groups)
    flipped = _label_bias(label_bias, n_groups)

    degree = np.arange(n_groups) / max(n_groups - 1, 1)
    linear = np.stack([spread**t * _rotation(n_features, np.deg2rad(t * rotation)) for t in degree])
    offset = np.outer(degree, np.full(n_features, shift / np.sqrt(n_features)))
    centres = class_sep * _simplex(n_classes, n_features)

    rng = check_random_state(random_state)
    group_codes = rng.choice(n_groups, n_samples, p=shares)
    y_codes = (rng.random_sample(n_samples)[:, None] > np.cumsum(rates, axis=1)[group_codes, :-1]).sum(axis=1)
    rows = centres[y_codes] + rng.standard_normal((n_samples, n_features))
    X = np.einsum("nij,nj->ni", linear[group_codes], rows) + offset[group_codes]
    biased = np.where((y_codes == n_classes - 1) & (rng.random_sample(n_samples) < flipped[group_codes]), 0, y_codes)
    y, sensitive_features = class_labels[biased], group_labels[group_codes]
    if return_X_y:
        return X, y, sensitive_features
    return Bunch(
        X=X, y=y, sensitive_features=sensitive_features, y_unbiased=class_labels[y_codes], classes=class_labels,
        groups=group_labels, weights=(shares[:, None] * rates).T,
        means=np.einsum("aij,kj->kai", linear, centres) + offset, covariances=linear @ linear.transpose(0, 2, 1),
    )  # fmt: skip


def load_diabetes(*, return_X_y: bool = False, as_frame: bool = False) -> Any:
    """scikit-learn's diabetes data, with a class to predict and the sex of the patients as the group.

    442 patients, nine measurements in their own units (:func:`sklearn.datasets.load_diabetes`). The class is whether
    the disease has progressed after a year by more than in half of the patients. Sex, coded 1 and 2 in the data, is no
    feature.

    Parameters
    ----------
    return_X_y : bool, default=False
        Whether ``(data, target, sensitive_features)`` is returned instead of a bunch.
    as_frame : bool, default=False
        Whether they are a data frame and two series of pandas, which has to be installed.

    Returns
    -------
    :class:`~sklearn.utils.Bunch`
        ``data`` (442, 9), ``target`` (442,) of 0 and 1, ``sensitive_features`` (442,) of 1 and 2, ``feature_names``,
        ``target_names`` (``"slow"`` and ``"fast"``) and ``DESCR``.

    Examples
    --------
    >>> from fairsteer.datasets import load_diabetes
    >>> X, y, sex = load_diabetes(return_X_y=True)
    >>> X.shape, [float(y[sex == code].mean().round(2)) for code in (1, 2)]
    ((442, 9), [0.5, 0.5])
    """
    known = sklearn_datasets.load_diabetes(as_frame=as_frame, scaled=False)
    at = known.feature_names.index("sex")
    names = [name for name in known.feature_names if name != "sex"]
    if as_frame:
        data, sex = known.data[names], known.data["sex"].astype(int)
        target = (known.target > known.target.median()).astype(int)
    else:
        data, sex = np.delete(known.data, at, axis=1), known.data[:, at].astype(int)
        target = (known.target > np.median(known.target)).astype(int)
    if return_X_y:
        return data, target, sex
    return Bunch(
        data=data, target=target, sensitive_features=sex, feature_names=names, target_names=np.array(["slow", "fast"]),
        DESCR=known.DESCR,
    )  # fmt: skip


def _count(value: Any, name: str) -> int:
    if not isinstance(value, Integral) or value < 1:
        msg = f"{name} must be a whole number of at least 1, not {value!r}."
        raise ValueError(msg)
    return int(value)


def _check_number(value: Any, name: str, *, positive: bool) -> None:
    if not isinstance(value, Real) or not np.isfinite(float(value)) or (positive and float(value) <= 0):
        msg = f"{name} must be a finite number{' above 0' if positive else ''}, not {value!r}."
        raise ValueError(msg)


def _labels(given: _Labels, name: str) -> npt.NDArray[Any]:
    labels = np.arange(_count(given, name)) if isinstance(given, Integral) else np.asarray(given)
    if labels.ndim != 1 or not len(labels) or len(np.unique(labels)) < len(labels):
        msg = f"{name} must be a number of labels or different labels in one dimension, not {given!r}."
        raise ValueError(msg)
    return labels


def _shares(given: npt.ArrayLike | None, n_groups: int) -> Doubles:
    shares: Doubles = np.ones(n_groups) if given is None else np.asarray(given, float)
    if shares.shape != (n_groups,) or not (np.isfinite(shares) & (shares >= 0)).all() or shares.sum() <= 0:
        msg = f"group_shares must be {n_groups} numbers of at least 0, not all 0, not {given!r}."
        raise ValueError(msg)
    return shares / float(shares.sum())


def _base_rates(given: npt.ArrayLike | None, n_groups: int, n_classes: int) -> Doubles:
    """Shares of the classes in each group, of shape (n_groups, n_classes)."""
    if given is None:
        return np.full((n_groups, n_classes), 1 / n_classes)
    rates = np.asarray(given, float)
    if rates.shape == (n_groups,) and n_classes > 1:
        others = np.repeat((1 - rates)[:, None] / (n_classes - 1), n_classes - 1, axis=1)
        rates = np.column_stack([others, rates])
    fits = rates.shape == (n_groups, n_classes) and (rates >= 0).all()
    if not fits or not np.allclose(rates.sum(axis=1), 1, atol=1e-8):
        msg = (
            f"base_rates must be in [0, 1], one for each of {n_groups} groups, or of shape ({n_groups}, {n_classes}) "
            f"with rows that sum to 1, not {given!r}."
        )
        raise ValueError(msg)
    return rates


def _label_bias(given: float | npt.ArrayLike, n_groups: int) -> Doubles:
    bias: Doubles = np.asarray(given, float)
    if bias.ndim == 0:
        bias = np.where(np.arange(n_groups) == n_groups - 1, bias, 0.0)
    if bias.shape != (n_groups,) or not ((bias >= 0) & (bias <= 1)).all():
        msg = f"label_bias must be in [0, 1], one number or one for each of {n_groups} groups, not {given!r}."
        raise ValueError(msg)
    return bias


def _simplex(n_points: int, n_features: int) -> Doubles:
    """Points at distance 1 of one another, about the origin: the vertices of a regular simplex."""
    corners = np.eye(n_points) - 1 / n_points
    # An orthonormal basis of their span, by a rule: the Helmert contrasts.
    helmert = np.tril(np.ones((n_points - 1, n_points)), 0)
    helmert[np.arange(n_points - 1), np.arange(1, n_points)] = -np.arange(1, n_points)
    helmert /= np.sqrt((helmert**2).sum(axis=1, keepdims=True))
    points = np.zeros((n_points, n_features))
    points[:, : n_points - 1] = -corners @ helmert.T / np.sqrt(2)
    return points


def _rotation(n_features: int, angle: float) -> Doubles:
    rotation = np.eye(n_features)
    if angle:
        cos, sin = np.cos(angle), np.sin(angle)
        rotation[:2, :2] = [[cos, -sin], [sin, cos]]
    return rotation
