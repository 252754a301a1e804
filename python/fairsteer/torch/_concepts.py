"""The torch module that adds a concept's direction to hidden states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fairsteer._utils.input import few
from fairsteer._utils.types import Doubles
from fairsteer.concepts import ConceptSteering, strengths_of_groups
from fairsteer.torch._groups import GroupPositions, with_axes


class ConceptSteeringModule(nn.Module):
    """Add to hidden states the concept's direction of their groups.

    A vector ``x`` of group ``a`` goes to ``x + strength * direction(a)``, with a strength of its group's own if
    :meth:`~fairsteer.concepts.ConceptSteering.equalize` was called. It fits wherever a module is called with hidden
    states and groups, such as the values of :func:`fairsteer.torch.steering_hooks`.

    Parameters
    ----------
    steering : ConceptSteering
        Fitted.
    concept : label, default=None
        The class towards which to move. None: the second of two.
    strength : float, default=1.0
        How far, in standard deviations of the groups' probe scores; negative: away from the concept.
    dtype : torch.dtype, default=None
        Of the directions. None: ``torch.get_default_dtype()``.
    device : torch.device, default=None
        Where they are. None: torch's default.

    Attributes
    ----------
    directions : Tensor of shape (n_groups, d)
        The directions, a buffer.
    groups : list
        Labels of the groups, in their order.
    strength : float
        May be set at any time.
    group_strengths : Tensor of shape (n_groups,)
        What the directions are multiplied by: the strength, unless the concept was equalised. In single precision at
        least, whatever the type of the directions.

    Raises
    ------
    ValueError
        If the concept is none of the classes, there are more than two and none is named, or the strength is not finite
        or none that the equalised concept was measured at.

    Notes
    -----
    A vector is moved in the wider of its own type and that of the directions, and rounded once, to its own; at strength
    0 it comes back bit for bit. A compiled call cannot look at values: where it meets a position that is no group's,
    the vectors become NaN.

    Examples
    --------
    >>> import torch
    >>> from fairsteer.concepts import ConceptSteering
    >>> from fairsteer.datasets import make_biased_groups
    >>> from fairsteer.torch import ConceptSteeringModule
    >>> hidden, joyful, group = make_biased_groups(400, 6, groups=["f", "m"], random_state=0)
    >>> steering = ConceptSteering(n_probes=8).fit(hidden, joyful, sensitive_features=group)
    >>> module = ConceptSteeringModule(steering, strength=2.0)
    >>> tokens = torch.zeros(3, 5, 6)
    >>> moved = module(tokens, sensitive_features=["f", "m", "m"])
    >>> bool(torch.allclose(moved[0, 4], 2 * module.directions[0]))
    True
    """

    directions: Tensor
    group_strengths: Tensor

    def __init__(
        self,
        steering: ConceptSteering,
        concept: Any = None,
        *,
        strength: float = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        directions = steering.directions_[steering._class_position(concept)]
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self.register_buffer("directions", torch.tensor(directions, dtype=dtype, device=device))
        self.groups: list[Any] = steering.groups_.tolist()
        # As it is now: what equalize may say later is of another module.
        self._measured = steering._measured(concept)
        self.strength = strength
        self._positions = GroupPositions(
            steering._encoder,
            self.groups,
            list(range(len(self.groups))),
            ways_out="name a known group for every row, token or sequence",
            device=self.directions.device,
        )

    @property
    def strength(self) -> float:
        """How far, in standard deviations of the groups' probe scores."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        # In single precision at least: half would round away what sets the groups' own strengths apart.
        dtype = torch.promote_types(self.directions.dtype, torch.float32)
        amounts = torch.tensor(self._amounts(value)).to(self.directions.device, dtype)
        self.register_buffer("group_strengths", amounts, persistent=False)
        self._strength = float(value)

    def forward(self, hidden: Tensor, *, sensitive_features: Any) -> Tensor:
        """Steer vectors.

        Parameters
        ----------
        hidden : Tensor of shape (..., d)
            Vectors in any floating-point type.
        sensitive_features : labels or integer tensor
            Groups of shape ``hidden.shape[:-1]`` or the leading part of it: one a sequence, or one a token; a single
            label stands for all. A tensor of integers holds labels where these are integers, otherwise positions in
            `groups` of the module.

        Returns
        -------
        Tensor of shape (..., d)
            Steered vectors, in the type of `hidden`.

        Raises
        ------
        ValueError
            If a group is missing or not known, or shapes do not agree.
        """
        return self._steer(hidden, self._codes(sensitive_features))

    def extra_repr(self) -> str:
        n_groups, d = self.directions.shape
        return f"{n_groups} directions of {d} features, groups={few(map(repr, self.groups))}, strength={self.strength}"

    def _amounts(self, strength: float) -> Doubles:
        """Strengths of the groups at a strength, in double precision."""
        return strengths_of_groups(strength, self.groups, self._measured)

    def _pushes(self) -> Tensor:
        """Find what is added to the vectors of each group, (n_groups, d)."""
        return (self.directions * self.group_strengths[:, None]).to(self.directions.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConceptSteeringModule:
        super()._apply(fn, recurse)
        self.strength = self._strength  # of the new device and type
        return self

    def _codes(self, groups: Any) -> Tensor:
        codes: Tensor = self._positions(groups)
        return codes

    def _steer(self, hidden: Tensor, codes: Tensor, mask: Tensor | None = None) -> Tensor:
        """Move vectors by their codes, except where a mask of the shape of some leading axes is False."""
        n_groups, d = self.directions.shape
        if (
            not hidden.is_floating_point()
            or hidden.shape[-1:] != (d,)
            or codes.shape != hidden.shape[:-1][: codes.ndim]
        ):
            msg = (
                f"Groups of shape {tuple(codes.shape)} and directions of {d} features do not go with hidden states "
                f"{hidden.dtype} of shape {tuple(hidden.shape)}: floating-point numbers are needed, and one group a "
                "sequence or one a token, batch first."
            )
            raise ValueError(msg)
        if self.strength == 0:
            return hidden
        codes = with_axes(codes, hidden.ndim - 1)
        directions = self._pushes()[codes.clamp(0, n_groups - 1)]
        if torch.compiler.is_compiling():
            wrong = (codes < 0) | (codes >= n_groups)
            directions = torch.where(wrong.unsqueeze(-1), torch.nan, directions)
        wider = torch.promote_types(hidden.dtype, directions.dtype)
        steered = (hidden.to(wider) + directions.to(wider)).to(hidden.dtype)
        return steered if mask is None else torch.where(with_axes(mask, hidden.ndim), steered, hidden)
