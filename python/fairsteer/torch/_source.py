"""What a torch module for steering is made from: transformers, ideal distributions and plain maps, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairsteer._utils.fields import Fields
from fairsteer._utils.labels import label_array, labels_to_json
from fairsteer._utils.types import Doubles, UnknownGroup
from fairsteer.groups import GroupEncoder
from fairsteer.ideal import IdealDistribution
from fairsteer.moments import SubgroupMoments
from fairsteer.transformer._base import GroupMapTransformer
from fairsteer.transformer._coordinates import SimpleCoordinates

#: A fitted transformer, an ideal distribution, or group label to ``(A, b)``.
Source = GroupMapTransformer | IdealDistribution | Mapping[Any, tuple[Any, Any]]


class Settings(NamedTuple):
    """All of a module that is no array: it goes into the state as JSON."""

    groups: NDArray[Any]
    """Labels of the maps, in their order."""
    labels: NDArray[Any] | None
    """Labels that rows may carry, in the order of an encoder; None for a transformer that was fitted without groups."""
    positions: list[int]
    """Map of each of these labels: several share one where small groups were merged."""
    column_names: list[str] | None
    moving: list[int]
    """Maps that are anything but the identity."""
    one_for_all: bool
    """Whether the only map is that of every row, whatever its group (LEACE)."""
    unknown_group: str
    calibration: tuple[float, list[float]] | None
    """Slope and offsets of the groups' log-probabilities."""
    log: bool
    """Whether the maps are of logarithms."""

    def encoder(self) -> GroupEncoder | None:
        if self.labels is None:
            return None
        encoder = GroupEncoder()
        encoder.groups_, encoder.column_names_ = self.labels, self.column_names
        first = self.labels.tolist()[0]
        encoder.n_columns_ = len(first) if isinstance(first, tuple) else 1
        return encoder

    def to_json(self) -> dict[str, Any]:
        return {
            **self._asdict(),
            "groups": labels_to_json(self.groups),
            "labels": None if self.labels is None else labels_to_json(self.labels),
            "calibration": None if self.calibration is None else self.calibration[1],
            "calibration_slope": None if self.calibration is None else self.calibration[0],
        }

    @classmethod
    def from_json(cls, block: Fields, n_maps: int) -> Settings:
        """Read what `to_json` wrote, for so many maps."""
        groups = block.labels("groups")
        one_for_all = block.flag("one_for_all")
        if len(groups) != n_maps and not (one_for_all and n_maps == 1):
            msg = f"it has {n_maps} maps for {len(groups)} groups"
            raise ValueError(msg)
        labels, positions, column_names = None, block.positions("positions", len(groups), distinct=False), None
        if "labels" in block:
            labels = block.labels("labels")
            n_columns = len(labels[0]) if isinstance(labels[0], tuple) else 1
            column_names = block.names("column_names", n_columns)
        if len(positions) != (1 if labels is None else len(labels)):
            msg = f"it has {len(positions)} positions for its labels"
            raise ValueError(msg)
        calibration = None
        if "calibration" in block:
            slope, offsets = block.number("calibration_slope", 0), block.numbers("calibration", -np.inf)
            if len(offsets) != len(groups):
                raise ValueError("its calibration is of other groups")
            calibration = slope, offsets
        return cls(
            groups=groups,
            labels=labels,
            positions=positions,
            column_names=column_names,
            moving=block.positions("moving", n_maps),
            one_for_all=one_for_all,
            unknown_group=block.text("unknown_group", get_args(UnknownGroup)),
            calibration=calibration,
            log=block.flag("log"),
        )


class FixedType(nn.Module):
    """A module whose tensors move between devices, and never between types."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        def move(tensor: Tensor) -> Tensor:
            probe = fn(tensor.new_empty(0))
            return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(probe.device)

        apply: Any = super()._apply  # which has no types
        apply(move, recurse)
        return self


class Centre(FixedType):
    """Points amid the vectors of every map: exact ones, so that all types subtract the same.

    Parameters
    ----------
    points : Tensor of shape (n_maps, d)
        In the coordinates of the maps.
    log : bool
        Whether these are logarithms: vectors are then divided by what has them.
    """

    points: Tensor
    """Single precision; for logarithms what vectors are multiplied by."""

    def __init__(self, points: Tensor, log: bool) -> None:
        super().__init__()
        self.log = log
        self.register_buffer("points", ((-points).exp() if log else points).float())

    def forward(self, hidden: Tensor, a: int) -> Tensor:
        """Coordinates of vectors relative to the point of a map, in their own type."""
        point = self.points[a]
        wide = hidden.to(torch.promote_types(hidden.dtype, point.dtype))
        return ((wide * point).log() if self.log else wide - point).to(hidden.dtype)


class GroupPosterior(FixedType):
    """Log-probabilities of groups under the fitted Gaussians, in double precision whatever type the module moves to."""

    # One factor a covariance, the root of its inverse; each serves one class or, tied, all of them.
    whitening: Tensor
    """(n_factors, d, d), or the diagonals (n_factors, d)."""
    means: Tensor
    """Whitened, relative to `centre`; (n_factors, n_served, d)."""
    log_weight: Tensor
    """(n_factors, n_served), with the log-determinant."""
    centre: Tensor

    def __init__(self, buffers: Mapping[str, Tensor], prefix: str = "") -> None:
        super().__init__()
        for name in ("whitening", "means", "log_weight", "centre"):
            self.register_buffer(name, buffers[prefix + name].clone())

    @classmethod
    def of(cls, model: SubgroupMoments, scale: Doubles, shift: Doubles) -> GroupPosterior:
        """Posterior of `model`, which knows features as ``scale * x + shift``, for features ``x``."""
        covariances = model._positive_definite()[0]
        K, G, d = model.means.shape
        weights = model.weights / model.weights.sum()
        # Relative to a point among the means, so that a common offset costs no digits.
        centre = np.einsum("ka,kaj->j", weights, model.means)
        means = model.means - centre
        with np.errstate(divide="ignore"):
            log_weight = np.log(weights)
        if model.covariance == "tied":
            means, log_weight = np.swapaxes(means, 0, 1), log_weight.T
        else:
            means, log_weight = means.reshape(K * G, 1, d), log_weight.reshape(K * G, 1)
        if model.covariance == "diagonal":
            whitening = 1 / np.sqrt(covariances.reshape(-1, d))
            log_det = np.log(whitening).sum(axis=1)
            means = means * whitening[:, None]
        else:
            whitening = np.linalg.inv(np.linalg.cholesky(covariances.reshape(-1, d, d)))
            log_det = np.log(np.diagonal(whitening, axis1=1, axis2=2)).sum(axis=1)
            means = means @ np.swapaxes(whitening, 1, 2)
        arrays = {
            "whitening": whitening * scale,
            "means": means,
            "log_weight": log_weight + log_det[:, None],
            "centre": (centre - shift) / scale,
        }
        return cls({name: torch.tensor(array) for name, array in arrays.items()})

    def forward(self, x: Tensor, n_groups: int) -> Tensor:
        """Log-probabilities (..., n_groups) of vectors (..., d), both double, up to a constant a vector."""
        x = x - self.centre
        scores = []
        for W, means, log_weight in zip(self.whitening, self.means, self.log_weight, strict=True):
            white = x * W if W.ndim == 1 else x @ W.T
            distances = torch.stack([(white - mean).square().sum(-1) for mean in means], -1)
            scores.append(torch.logsumexp(log_weight - distances / 2, -1))
        # Factors are in the order of (class, group), or one a group.
        joint = torch.stack(scores, -1).reshape(*x.shape[:-1], len(scores) // n_groups, n_groups)
        return torch.logsumexp(joint, -2)


class Parts(NamedTuple):
    """What vectors ``x`` are moved by: steps ``displacement[a] (x - centre[a]) + offset[a]``."""

    displacement: Doubles
    """Matrices, (n_maps, d, d), or what each feature is multiplied by, (n_maps, d)."""
    centre: Doubles
    offset: Doubles
    settings: Settings
    posterior: GroupPosterior | None = None


def read_source(source: Any) -> Parts:
    """Read what a module can be made from."""
    if isinstance(source, GroupMapTransformer):
        return _read_transformer(source)
    if isinstance(source, IdealDistribution):
        displacement, offset = _displacement(source.linear), source.offset.copy()
        settings = _plain_settings(source.groups, displacement, offset)
        plain = SimpleCoordinates.of(None, offset.shape[1])
        assert plain is not None
        centre = plain.centres(source.source_weights, source.source_means, len(offset))
        return Parts(displacement, centre, _at(centre, displacement, offset), settings)
    if isinstance(source, Mapping) and source:
        linear, offset = _stacked(source)
        displacement = _displacement(linear)
        settings = _plain_settings(label_array(source), displacement, offset)
        return Parts(displacement, np.zeros_like(offset), offset, settings)
    msg = (
        "A SteeringModule is made from a fitted transformer of fairsteer, an IdealDistribution, or a mapping of group "
        f"labels to (A, b), not from {type(source).__name__}: {source!r}."
    )
    raise TypeError(msg)


def _at(centre: Doubles, displacement: Doubles, offset: Doubles) -> Doubles:
    """Take steps from the centres that are given from the origin."""
    if displacement.ndim == 2:
        return offset + displacement * centre
    steps: Doubles = offset + np.einsum("aij,aj->ai", displacement, centre)
    return steps


def _plain_settings(groups: NDArray[Any], displacement: Doubles, offset: Doubles) -> Settings:
    """Give settings to maps that come without a transformer."""
    encoder = GroupEncoder()
    codes = encoder.partial_fit_encode(groups.tolist())
    if len(encoder.groups_) < len(groups):
        msg = f"Every map needs a group label of its own, none of them missing: {groups.tolist()}."
        raise ValueError(msg)
    return Settings(
        groups=groups,
        labels=encoder.groups_,
        positions=np.argsort(codes).tolist(),
        column_names=None,
        moving=_moving(displacement, offset),
        one_for_all=False,
        unknown_group="error",
        calibration=None,
        log=False,
    )


def _read_transformer(transformer: GroupMapTransformer) -> Parts:
    transformer._affine_maps("a torch module")
    model, maps, _ = transformer._fitted()
    coordinates = SimpleCoordinates.of(transformer.feature_transform_, maps.linear.shape[-1])
    if coordinates is None:
        msg = (
            f"feature_transform={transformer.feature_transform_!r} is no part of a torch module. The way out: "
            "feature_transform=None, 'log', or a StandardScaler, RobustScaler, MaxAbsScaler or MinMaxScaler that does "
            "not clip, which become part of the maps; or steer in NumPy, by transform."
        )
        raise ValueError(msg)
    displacement, offset = _displacement(maps.linear), maps.offset.copy()
    moving = _moving(displacement, offset)
    coordinates.fold(displacement, offset)
    centre = coordinates.centres(model.weights, model.means, len(offset))
    encoder = transformer._encoder
    calibration = transformer.group_calibration_
    settings = Settings(
        groups=transformer.groups_,
        labels=None if encoder is None else encoder.groups_,
        positions=transformer._group_of_label.tolist(),
        column_names=None if encoder is None else encoder.column_names_,
        moving=moving,
        one_for_all=transformer.one_map,
        unknown_group=transformer.unknown_group,
        calibration=None if calibration is None else (calibration.slope, calibration.offsets.tolist()),
        log=coordinates.log,
    )
    posterior = None
    if transformer.unknown_group != "error" and encoder is not None:
        posterior = GroupPosterior.of(model, coordinates.scale, coordinates.shift)
    return Parts(displacement, centre, _at(centre, displacement, offset), settings, posterior)


def _displacement(linear: Doubles) -> Doubles:
    """Subtract the identity from matrices or scales, in one copy and no more: they may be large."""
    displacement = np.array(linear)
    if linear.ndim == 2:
        displacement -= 1
        return displacement
    diagonal = np.arange(linear.shape[-1])
    displacement[:, diagonal, diagonal] -= 1
    return displacement


def _moving(displacement: Doubles, offset: Doubles) -> list[int]:
    turned = displacement.any(axis=tuple(range(1, displacement.ndim)))
    moves: list[int] = np.flatnonzero(turned | offset.any(axis=1)).tolist()
    return moves


def _stacked(maps: Mapping[Any, tuple[Any, Any]]) -> tuple[Doubles, Doubles]:
    linear: list[Doubles] = []
    offset: list[Doubles] = []
    for label, (A, b) in maps.items():
        A, b = map(_doubles, (A, b))
        d = len(linear[0]) if linear else len(b) if b.ndim else 0
        if A.shape != (d, d) or b.shape != (d,) or d == 0:
            msg = (
                f"The map of group {label!r} must be a matrix (d, d) and a vector (d,), of the same d for all groups; "
                f"it has shapes {A.shape} and {b.shape}."
            )
            raise ValueError(msg)
        if not (np.isfinite(A).all() and np.isfinite(b).all()):
            msg = f"The map of group {label!r} holds NaN or infinite values."
            raise ValueError(msg)
        linear.append(A)
        offset.append(b)
    return np.stack(linear), np.stack(offset)


def _doubles(array: Any) -> Doubles:
    if isinstance(array, Tensor):
        array = array.detach().cpu().double().numpy()
    return np.asarray(array, dtype=np.float64)
