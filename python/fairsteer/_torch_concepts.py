"""The torch module that adds a concept's direction to hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairsteer._input import few, unknown_group_message
from fairsteer.concepts import ConceptSteering
from fairsteer.groups import GroupEncoder

__all__ = ["ConceptSteeringModule"]


class ConceptSteeringModule(nn.Module):
    """Add to hidden states the concept's direction of their groups.

    A vector ``x`` of group ``a`` goes to ``x + strength * direction(a)``. It fits wherever a module is called with
    hidden states and groups, such as the values of :func:`fairsteer.torch.steering_hooks`.

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

    Raises
    ------
    ValueError
        If the concept is none of the classes, or there are more than two and none is named.

    Notes
    -----
    A vector is moved in the wider of its own type and that of the directions, and rounded once, to its own; at strength
    0 it comes back bit for bit. A compiled call cannot look at values: where it meets a position that is no group's,
    the vectors become NaN.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from fairsteer._torch_concepts import ConceptSteeringModule
    >>> from fairsteer.concepts import ConceptSteering
    >>> rng = np.random.default_rng(0)
    >>> joyful, group = rng.integers(0, 2, (2, 400))
    >>> hidden = rng.normal(size=(400, 6)) + np.outer(joyful, [2, 0, 0, 0, 0, 0])
    >>> steering = ConceptSteering(n_probes=8).fit(hidden, joyful, np.array(["f", "m"])[group])
    >>> module = ConceptSteeringModule(steering, strength=2.0)
    >>> tokens = torch.zeros(3, 5, 6)
    >>> moved = module(tokens, ["f", "m", "m"])
    >>> bool(torch.allclose(moved[0, 4], 2 * module.directions[0]))
    True
    """

    directions: Tensor
    _label_values: Tensor | None

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
        self.strength = strength
        self._encoder: GroupEncoder = steering._encoder
        # A tensor can hold labels if they are whole numbers, and positions otherwise.
        whole = all(isinstance(label, (bool, int)) for label in self.groups)
        values = torch.tensor([int(label) for label in self.groups], device=device) if whole else None
        self.register_buffer("_label_values", values, persistent=False)

    def forward(self, hidden: Tensor, groups: Any) -> Tensor:
        """Steer vectors.

        Parameters
        ----------
        hidden : Tensor of shape (..., d)
            Vectors in any floating-point type.
        groups : labels or integer tensor
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
        n_groups, d = self.directions.shape
        codes = self._codes(groups)
        if hidden.ndim == 0 or hidden.shape[-1] != d or codes.shape != hidden.shape[:-1][: codes.ndim]:
            msg = (
                f"Groups of shape {tuple(codes.shape)} and directions of {d} features do not go with hidden states of "
                f"shape {tuple(hidden.shape)}: one group a sequence or one a token is needed, batch first."
            )
            raise ValueError(msg)
        if self.strength == 0:
            return hidden
        directions = self.directions[codes.clamp(0, n_groups - 1)]
        wrong = (codes < 0) | (codes >= n_groups)
        if torch.compiler.is_compiling():
            directions = torch.where(wrong.unsqueeze(-1), torch.nan, directions)
        elif wrong.any():
            msg = (
                f"{int(wrong.sum())} of {wrong.numel()} groups are none of {few(map(repr, self.groups))}. A tensor of "
                "integers holds labels where these are integers, otherwise their positions."
            )
            raise ValueError(msg)
        directions = directions.reshape(codes.shape + (1,) * (hidden.ndim - 1 - codes.ndim) + (d,))
        wider = torch.promote_types(hidden.dtype, directions.dtype)
        return torch.add(hidden.to(wider), directions.to(wider), alpha=self.strength).to(hidden.dtype)

    def extra_repr(self) -> str:
        n_groups, d = self.directions.shape
        return f"{n_groups} directions of {d} features, groups={few(map(repr, self.groups))}, strength={self.strength}"

    def _codes(self, groups: Any) -> Tensor:
        """Position of every group; out of range where a tensor holds none's."""
        if isinstance(groups, Tensor):
            numbers = groups.to(self.directions.device, torch.long)
            if self._label_values is None:
                return numbers
            same = numbers.unsqueeze(-1) == self._label_values
            return torch.where(same.any(-1), same.long().argmax(-1), -1)
        n_columns = self._encoder.n_columns_
        shape = None
        if isinstance(groups, (Sequence, np.ndarray)) or np.isscalar(groups):
            array: Any = groups if isinstance(groups, np.ndarray) else np.asarray(groups, dtype=object)
            shape = array.shape if n_columns == 1 else array.shape[:-1]
            groups = array.reshape(-1) if n_columns == 1 else array.reshape(-1, array.shape[-1])
        codes = self._encoder.encode(groups)
        if (codes < 0).any():
            counts = self._encoder.unknown_counts(groups)
            way_out = "name one of the known groups for every row, token or sequence"
            raise ValueError(unknown_group_message(codes, counts, self._encoder.groups_, way_out))
        return torch.tensor(codes if shape is None else codes.reshape(shape), device=self.directions.device)
