"""The one reader of rows and groups: validated once, encoded once."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fairsteer._utils.arrays import some_rows
from fairsteer._utils.columns import column_positions, select_columns
from fairsteer._utils.estimators import check_columns
from fairsteer._utils.input import (
    brief,
    check_classes,
    check_elsewhere,
    check_rows,
    check_table,
    coded_classes,
    few,
    in_numpy,
    unknown_group_message,
)
from fairsteer._utils.types import Codes, Doubles, Floats
from fairsteer._utils.weights import check_sample_weight
from fairsteer.groups import MISSING, GroupedRows, GroupEncoder, known_codes, renumber


class Batch(NamedTuple):
    """Rows that take part in a fit: none has a missing group or weight zero."""

    rows: Floats
    y_codes: Codes
    group_codes: Codes
    sample_weight: Doubles | None
    classes: npt.NDArray[Any]
    groups: npt.NDArray[Any]
    encoder: GroupEncoder | None
    class_blind: bool

    @property
    def y(self) -> npt.NDArray[Any]:
        """Class labels of the rows."""
        labels: npt.NDArray[Any] = self.classes[self.y_codes]
        return labels

    def take(self, positions: Codes) -> Batch:
        """Take some of the rows, with those classes and groups alone that are among them."""
        present_classes, y_codes = renumber(self.y_codes[positions], len(self.classes))
        present_groups, group_codes = renumber(self.group_codes[positions], len(self.groups))
        return self._replace(
            rows=self.rows[positions],
            y_codes=y_codes,
            group_codes=group_codes,
            sample_weight=None if self.sample_weight is None else self.sample_weight[positions],
            classes=self.classes[present_classes],
            groups=self.groups[present_groups],
            encoder=copy.copy(self.encoder),
        )


class Reading(NamedTuple):
    """All rows that were given to a fit."""

    rows: Floats
    y: npt.NDArray[Any] | None
    """Class labels; None if none were given."""
    sample_weight: Doubles | None
    grouped: GroupedRows

    def batch(self) -> Batch:
        """Leave out rows that do not take part in the fit."""
        rows, codes, weight = self.rows, self.grouped.codes, self.sample_weight
        y = np.zeros(len(rows), dtype=np.intp) if self.y is None else self.y
        if not self.grouped.kept.all():
            kept = self.grouped.kept
            rows = some_rows(rows, np.flatnonzero(kept))
            y, codes, weight = y[kept], codes[kept], None if weight is None else weight[kept]
        classes, y_codes = np.unique(y, return_inverse=True)
        groups, encoder = self.grouped.groups, self.grouped.encoder
        return Batch(rows, y_codes, codes, weight, classes, groups, encoder, self.y is None)

    def codes_in(self, groups: npt.NDArray[Any], *, infer: bool) -> Codes:
        """Positions of the rows' groups in those of the fit; negative where unknown, which `infer` must allow."""
        labels = self.grouped.labels.tolist()
        table = {label: a for a, label in enumerate(groups.tolist())}
        positions = np.array([*(table.get(label, MISSING) for label in labels), MISSING], dtype=np.intp)
        codes: Codes = positions[self.grouped.label_codes]
        if not infer and (codes < 0).any():
            counts = np.bincount(self.grouped.label_codes % len(positions), minlength=len(positions))
            unknown = {label: n for label, n in zip([*labels, None], counts.tolist(), strict=True) if n}
            for label in table:
                unknown.pop(label, None)
            raise ValueError(unknown_group_message(codes, unknown, groups, _ways_out("transform")))
        return codes


def read_rows(
    estimator: Any, X: Any, sensitive_features: Any, *, reset: bool, stays: bool = False
) -> tuple[Floats, Any]:
    """Read and validate features, and the group labels beside them (None: there are none).

    Parameters
    ----------
    estimator : estimator
        It has `sensitive_columns`; with `reset` it gets ``n_features_in_``, ``feature_names_in_`` and
        ``_sensitive_positions``, without it `X` must match these.
    X : array-like or dataframe of shape (n_samples, n_features)
        Rows, with the sensitive columns if there are any.
    sensitive_features : array-like or dataframe
        Group labels, if they are no columns of `X`.
    reset : bool
        Whether this is a first fit.
    stays : bool, default=False
        Whether rows that lie on a device are left there, if there is nothing to do about them but to add them up.

    Returns
    -------
    rows : ndarray
        Features without the sensitive columns, finite.
    labels : array-like or None
        Group labels.
    """
    if stays and estimator.sensitive_columns is None and estimator.feature_transform is None:
        check_columns(estimator, X, reset=reset)
        if reset:
            estimator._sensitive_positions = []
        return check_elsewhere(X, estimator._feature_names()), sensitive_features
    X = in_numpy(X)
    if estimator.sensitive_columns is None:
        if reset:
            estimator._sensitive_positions = []
        return check_rows(X, estimator, reset=reset), sensitive_features
    if sensitive_features is not None:
        msg = (
            f"Groups are given twice, by sensitive_columns={brief(estimator.sensitive_columns)} and by "
            "sensitive_features. Leave one out."
        )
        raise ValueError(msg)
    X = check_table(X, estimator)
    names = check_columns(estimator, X, reset=reset)
    if reset:
        estimator._sensitive_positions = column_positions(
            estimator.sensitive_columns, X, names, estimator.n_features_in_
        )
    positions = estimator._sensitive_positions
    rest = [j for j in range(estimator.n_features_in_) if j not in set(positions)]
    rows = check_rows(select_columns(X, rest), estimator, of_columns=np.array(rest) if names is None else names[rest])
    return rows, select_columns(X, positions)


def read_fit(
    transformer: Any, X: Any, y: Any, sensitive_features: Any, sample_weight: Any, *, reset: bool, stays: bool = False
) -> Reading:
    """Read what is to be fitted to; without `reset` the groups are added to those that the transformer knows."""
    rows, labels = read_rows(transformer, X, sensitive_features, reset=reset, stays=stays)
    encoder = None if reset else transformer._encoder
    if not reset:
        _check_as_before("groups", labels is not None, encoder is not None)
        if getattr(transformer, "constraint", None) != "demographic_parity":  # for which classes do not count
            _check_as_before("class labels", y is not None, not transformer._class_blind)
    y = None if y is None else check_classes(y, rows)
    weight = check_sample_weight(sample_weight, rows)
    return Reading(rows, y, weight, GroupedRows.read(labels, rows, weight, encoder=encoder))


def _check_as_before(what: str, now: bool, before: bool) -> None:
    if now != before:
        words = {True: "with", False: "without"}
        msg = f"This batch comes {words[now]} {what}, the batches before it came {words[before]}."
        raise ValueError(msg)


def read_codes(
    labels: Any, rows: Any, encoder: GroupEncoder | None, *, method: str = "transform", infer: bool = False
) -> Codes:
    """Positions in the groups of a fit; negative for a group to be inferred, which `infer` must allow.

    Parameters
    ----------
    labels : array-like, dataframe or None
        Group labels.
    rows : array-like
        As many rows as there must be labels.
    encoder : GroupEncoder or None
        That of the fit; None if there were no groups.
    method : str, default="transform"
        What the groups are read for: nothing but ``transform`` can infer them.
    infer : bool, default=False
        Whether rows may have no known group.

    Returns
    -------
    ndarray of shape (n_samples,), dtype intp
        Positions in the encoder's ``groups_``.
    """
    if encoder is None and labels is not None:
        msg = (
            "sensitive_features are given, but the steering was fitted without groups. Fit it again with "
            "sensitive_features=… or sensitive_columns=…."
        )
        raise ValueError(msg)
    return known_codes(encoder, labels, rows, _ways_out(method), infer=infer)


def _ways_out(method: str) -> str:
    if method != "transform":
        return f"pass sensitive_features=… with a known group in every row: {method} cannot infer any"
    return (
        "pass sensitive_features=… with a known group in every row, fit with sensitive_columns=… to take the groups "
        "from columns of X, or fit with unknown_group='infer' to weight the groups by their probability given the "
        "features"
    )


def class_codes(y: Any, rows: Any, classes: npt.NDArray[Any]) -> Codes:
    """Positions of the rows' class labels among those of a fit; ValueError if there is another."""
    labels, inverse = coded_classes(y, rows)
    table = {label: k for k, label in enumerate(classes.tolist())}
    unknown = [label for label in labels.tolist() if label not in table]
    if unknown:
        msg = (
            f"y holds the class labels {few(map(repr, unknown))}, which were not there at fit. Known "
            f"classes: {few(map(repr, table))}."
        )
        raise ValueError(msg)
    return np.array([table[label] for label in labels.tolist()], dtype=np.intp)[inverse]
