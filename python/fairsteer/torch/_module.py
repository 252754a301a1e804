"""The torch module that moves hidden states by the maps of their groups."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fairsteer._utils.fields import Fields
from fairsteer._utils.input import few
from fairsteer.torch._groups import GroupPositions, with_axes
from fairsteer.torch._source import Centre, GroupPosterior, Settings, Source, read_source
from fairsteer.transformer._base import GroupMapTransformer

_WAYS_OUT = (
    "pass sensitive_features=… with a known group for every row, token or sequence, or make the module from a "
    "transformer that was fitted with unknown_group='infer'"
)


class SteeringModule(nn.Module):
    """Move hidden states by the affine maps of their groups.

    Does in torch, inside a model and on its device, what ``transform`` of the transformers does to NumPy arrays: a
    vector ``x`` of group ``a`` goes to ``x + strength * ((A[a] - I) x + b[a])``.

    Parameters
    ----------
    source : fitted transformer, IdealDistribution or mapping
        A :class:`~fairsteer.FairSteeringTransformer` or a transformer of :mod:`fairsteer.baselines`, with its strength
        and its rule for unknown groups; an :class:`~fairsteer.IdealDistribution` such as
        :func:`~fairsteer.nearest_ideal` returns; or group labels to ``(A, b)``, of shapes (d, d) and (d,), like
        ``maps_`` and ``maps`` of these. Scalers as `feature_transform` (standard, min-max without clipping, max-abs,
        robust) are folded into the maps; ``"log"`` is kept.
    strength : float in [0, 1], default=None
        Part of the way that vectors move. None: that of the transformer, else 1.
    dtype : torch.dtype, default=None
        Of the maps. None: ``torch.get_default_dtype()``, which is float32 unless set.
    device : torch.device, default=None
        Where the maps are. None: torch's default.

    Attributes
    ----------
    displacement : Tensor of shape (n_maps, d, d) or (n_maps, d)
        ``A - I`` of every map at full strength, or its diagonal where maps scale each feature for itself; a buffer.
    offset : Tensor of shape (n_maps, d)
        Step of every map at full strength from its centre, a point amid the group's rows (the origin, if the module is
        made from plain maps); a buffer.
    groups : list
        Labels of the maps, in their order.
    strength : float
        May be set at any time.

    See Also
    --------
    fairsteer.torch.steering_hooks : Steers inside a model that is not yours to change.

    Notes
    -----
    **Precision.** The maps are made in double precision and rounded once, to `dtype`. They are kept as displacements,
    relative to a point amid the group's rows, so that rounding them costs digits of the step that a vector takes and
    none of where it starts, however far from the origin that is. A vector is moved in the wider of its own type and the
    module's, and rounded once, to its own: with the module in float32, half-precision vectors come back as near as
    their type allows. ``module.half()`` and ``module.to(torch.bfloat16)`` make the product itself one in half
    precision, which is faster on accelerators and errs by one rounding of the step more.
    What ``unknown_group="infer"`` needs stays in double precision wherever the module moves.

    **What comes back untouched.** Vectors whose map is the identity (the reference group), and all vectors at strength
    0, come back bit for bit; under ``feature_transform="log"`` they must be positive all the same.

    **torch.compile.** Unlike eager calls, which raise, a compiled call cannot look at values: where it meets a group
    that is not known, or logarithms of what is not positive, the vectors become NaN.

    **State.** The state holds labels and settings too, as JSON in a tensor of bytes: ``torch.load`` with
    ``weights_only=True`` reads it, and :meth:`from_state_dict` rebuilds the module.

    Examples
    --------
    >>> import torch
    >>> from fairsteer.torch import SteeringModule
    >>> module = SteeringModule({"f": ([[2.0]], [1.0]), "m": ([[1.0]], [0.0])})
    >>> module(torch.tensor([[1.0], [1.0]]), sensitive_features=["f", "m"])
    tensor([[3.],
            [1.]])
    >>> module.strength = 0.5
    >>> module(torch.tensor([[1.0], [1.0]]), sensitive_features="f")
    tensor([[2.],
            [2.]])
    """

    displacement: Tensor
    offset: Tensor
    _centre: Centre
    _positions: GroupPositions | None

    def __init__(
        self,
        source: Source,
        *,
        strength: float | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        displacement, centre, offset, settings, posterior = read_source(source)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self.register_buffer("displacement", torch.tensor(displacement, dtype=dtype, device=device))
        self.register_buffer("offset", torch.tensor(offset, dtype=dtype, device=device))
        self._centre = Centre(torch.tensor(centre, device=self.offset.device), settings.log)
        self._posterior = None if posterior is None else posterior.to(self.displacement.device)
        own = source._strength() if isinstance(source, GroupMapTransformer) else 1.0
        self.strength = own if strength is None else strength
        self._set(settings)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> SteeringModule:
        """Rebuild a module from its state alone.

        Parameters
        ----------
        state : mapping
            What ``state_dict()`` returned, or ``torch.load(path, weights_only=True)`` of it.

        Returns
        -------
        SteeringModule
            In the type and on the device of the tensors in `state`.

        Raises
        ------
        ValueError
            If it is no such state.
        """
        missing = [name for name in ("displacement", "offset", "_centre.points", "_extra_state") if name not in state]
        if missing:
            msg = f"This is no state of a SteeringModule: it has no {few(map(repr, missing))}, only {few(state)}."
            raise ValueError(msg)
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        for name in ("displacement", "offset"):
            module.register_buffer(name, torch.empty_like(state[name]))
        module._centre = Centre(torch.empty_like(state["_centre.points"]), log=False)  # the state says what it is
        own = {name: value for name, value in state.items() if name.startswith("_posterior.")}
        module._posterior = GroupPosterior(own, prefix="_posterior.") if own else None
        module.load_state_dict(state)
        return module

    def _set(self, settings: Settings) -> None:
        self._settings = settings
        self._centre.log = settings.log
        encoder = settings.encoder()
        self._positions = None
        if encoder is not None:
            self._positions = GroupPositions(
                encoder,
                self.groups,
                settings.positions,
                ways_out=_WAYS_OUT,
                unknown=settings.unknown_group != "error",
                device=self.displacement.device,
            )

    @property
    def groups(self) -> list[Any]:
        """Labels of the maps, in their order."""
        labels: list[Any] = self._settings.groups.tolist()
        return labels

    @property
    def strength(self) -> float:
        """Part of the way that vectors move, in [0, 1]."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if not 0 <= value <= 1:
            msg = f"strength must be in [0, 1], got {value!r}."
            raise ValueError(msg)
        self._strength = float(value)

    def forward(self, hidden: Tensor, *, sensitive_features: Any = None) -> Tensor:
        """Steer vectors.

        Parameters
        ----------
        hidden : Tensor of shape (..., d)
            Vectors in any floating-point type: rows, tokens of a batch of sequences, or anything else in the last axis.
        sensitive_features : labels or integer tensor, default=None
            Groups of shape ``hidden.shape[:-1]`` or the leading part of it: one a sequence for hidden states of shape
            (batch, tokens, d), or one a token; a single label stands for all. Lists, arrays, columns and tables hold
            labels (several columns in the last axis mean their intersections). A tensor of integers holds labels too
            where these are numbers; otherwise it holds positions in `groups` of the module, negative for unknown. May
            be left out if there is only one map, or if the transformer was fitted to infer groups.

        Returns
        -------
        Tensor of shape (..., d)
            Steered vectors, in the type of `hidden`.

        Raises
        ------
        ValueError
            If a group is missing or unknown and is not to be inferred; if shapes do not agree; if a
            ``feature_transform="log"`` meets a value that is not positive.
        """
        return self._steer(hidden, self._codes(sensitive_features))

    def extra_repr(self) -> str:
        n_maps, d = self.offset.shape
        return f"{n_maps} maps of {d} features, groups={few(map(repr, self.groups))}, strength={self.strength}"

    # ---- groups

    def _codes(self, groups: Any) -> Tensor | None:
        """Map of every vector: positions, negative where it is to be inferred; None for the only one."""
        if self._settings.one_for_all:
            return None
        if self._positions is not None:
            codes: Tensor = self._positions(groups)
            return codes
        if groups is not None:
            msg = "Groups are given, but the steering was fitted without groups. Fit it with sensitive_features=…."
            raise ValueError(msg)
        return None

    # ---- moving

    def _steer(self, hidden: Tensor, codes: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """Move vectors by their codes, except where a mask of the shape of some leading axes is False."""
        d = self.offset.shape[1]
        if not hidden.is_floating_point() or hidden.ndim == 0 or hidden.shape[-1] != d:
            msg = (
                f"The maps are of {d} features, so hidden states must be floating-point numbers of shape (..., {d}), "
                f"not {hidden.dtype} of shape {tuple(hidden.shape)}."
            )
            raise ValueError(msg)
        if codes is None:
            codes = torch.tensor(0, device=self.offset.device)
        if codes.shape != hidden.shape[:-1][: codes.ndim]:
            msg = (
                f"Groups of shape {tuple(codes.shape)} do not go with hidden states of shape {tuple(hidden.shape)}: "
                "one a sequence or one a token is needed, batch first. If the model repeats sequences (beams, several "
                "samples of each), repeat their groups likewise, each in a row."
            )
            raise ValueError(msg)
        if not torch.compiler.is_compiling():
            if self._settings.log:
                _check_positive(hidden if mask is None else hidden[mask])
            return hidden if self.strength == 0 else self._steer_some(hidden, codes, mask)
        steered = self._steer_all(hidden, codes)
        return steered if mask is None else torch.where(with_axes(mask, hidden.ndim), steered, hidden)

    def _steer_some(self, hidden: Tensor, codes: Tensor, mask: Tensor | None) -> Tensor:
        """Move the vectors of one group after the other, and no others."""
        present = torch.unique(codes).tolist()
        moving = [code for code in present if code < 0 or code in self._settings.moving]
        if not moving:
            return hidden
        if mask is not None and mask.all():
            mask = None
        if mask is None and len(present) == 1:
            return self._of_code(hidden, moving[0])
        out = hidden.clone()
        for code in moving:
            mine = codes == code
            if mask is not None:
                n_axes = max(mine.ndim, mask.ndim)
                mine = with_axes(mine, n_axes) & with_axes(mask, n_axes)
            out[mine] = self._of_code(hidden[mine], code)
        return out

    def _steer_all(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Move every vector by every map and choose: nothing depends on values, so that a compiler can follow."""
        codes = with_axes(codes, hidden.ndim)
        known = codes < len(self.offset)
        if self._settings.unknown_group == "error":
            known = known & (codes >= 0)
        if self._settings.log:
            known = known & ((hidden > 0) & (hidden < torch.inf)).all(-1, keepdim=True)
        out = hidden
        if self.strength != 0:
            out = self._choose(hidden, codes)
            if self._settings.unknown_group != "error":
                out = torch.where(codes < 0, self._of_code(hidden, -1), out)
        return torch.where(known, out, torch.nan)

    def _choose(self, hidden: Tensor, codes: Tensor) -> Tensor:
        out = hidden
        for a in self._settings.moving:
            out = torch.where(codes == a, self._moved(hidden, a), out)
        return out

    def _of_code(self, hidden: Tensor, code: int) -> Tensor:
        if code >= 0:
            return self._moved(hidden, code)
        proba = self._group_proba(hidden)
        if self._settings.unknown_group == "infer":
            return self._moved(hidden, proba)
        likeliest = proba.argmax(-1)
        if torch.compiler.is_compiling():
            return self._choose(hidden, likeliest.unsqueeze(-1))
        return self._steer_some(hidden, likeliest, None)

    def _group_proba(self, hidden: Tensor) -> Tensor:
        posterior: Any = self._posterior
        log_proba = posterior(self._coordinates(hidden.double()), len(self.offset))
        if self._settings.calibration is not None:
            slope, offsets = self._settings.calibration
            log_proba = slope * log_proba + torch.tensor(offsets, dtype=log_proba.dtype, device=log_proba.device)
        return torch.softmax(log_proba, -1)

    def _moved(self, hidden: Tensor, by: int | Tensor) -> Tensor:
        """Move vectors by one map, or by all with weights (..., n_maps)."""
        dtype = torch.promote_types(hidden.dtype, self.displacement.dtype)
        if self._settings.log:
            dtype = torch.promote_types(dtype, torch.float32)  # a logarithm's error is a relative one of its argument
        start = hidden.to(dtype)
        if isinstance(by, int):
            step = self._step(start, by)
        else:
            parts = [by[..., [a]].to(dtype) * self._step(start, a) for a in self._settings.moving]
            step = torch.stack(parts).sum(0) if parts else torch.zeros_like(start)
        if self._settings.log:
            return (start * (self.strength * step).exp()).to(hidden.dtype)
        return torch.add(start, step, alpha=self.strength).to(hidden.dtype)

    def _step(self, start: Tensor, a: int) -> Tensor:
        centred = self._centre(start, a)
        displacement, offset = self.displacement[a].to(centred.dtype), self.offset[a].to(centred.dtype)
        if displacement.ndim == 1:
            return centred * displacement + offset
        return functional.linear(centred, displacement, offset)

    def _coordinates(self, hidden: Tensor) -> Tensor:
        return hidden.log() if self._settings.log else hidden

    # ---- state

    def get_extra_state(self) -> Tensor:
        """Labels and settings, as JSON in a tensor of bytes."""
        block = {**self._settings.to_json(), "strength": self.strength}
        return torch.frombuffer(bytearray(json.dumps(block).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Take labels and settings from a state."""
        try:
            block = Fields(json.loads(bytes(state.tolist())), "state")
            strength = block.number("strength", 0, 1)
            settings = Settings.from_json(block, len(self.offset))
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            msg = f"This is no state of a SteeringModule: {str(error)[:200]}."
            raise ValueError(msg) from error
        self.strength = strength
        self._set(settings)


def _check_positive(hidden: Tensor) -> None:
    if not (hidden > 0).all():
        msg = (
            f"feature_transform='log' needs positive features, but {int((~(hidden > 0)).sum())} of {hidden.numel()} "
            f"values are not (smallest {float(hidden.min()):g})."
        )
        raise ValueError(msg)
