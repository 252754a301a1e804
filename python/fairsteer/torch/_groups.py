"""Groups of hidden states, given by label or in a tensor, as positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairsteer._utils.input import few, unknown_group_message
from fairsteer.groups import GroupEncoder


class GroupPositions(nn.Module):
    """Position of every group among maps or directions, as a tensor on the module's device.

    Parameters
    ----------
    encoder : GroupEncoder
        Knows the labels that may be given.
    groups : list
        Labels of the positions, which a tensor may hold.
    positions : list of int
        Position of each label of the encoder: several share one where small groups were merged.
    ways_out : str
        What to do about an unknown group.
    unknown : bool
        Whether an unknown group is -1 instead of an error.
    device : torch.device or None
        Where the positions are.
    """

    _values: Tensor | None
    _positions: Tensor

    def __init__(
        self,
        encoder: GroupEncoder,
        groups: list[Any],
        positions: list[int],
        *,
        ways_out: str,
        unknown: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self._encoder, self._groups, self._ways_out, self._unknown = encoder, groups, ways_out, unknown
        # Labels that are whole numbers can be looked up by a tensor of them.
        labels = encoder.groups_.tolist()
        whole = [int(label) for label in labels if isinstance(label, (bool, int, float)) and _is_int64(label)]
        values = torch.tensor(whole, device=device) if len(whole) == len(labels) else None
        self.register_buffer("_values", values, persistent=False)
        self.register_buffer("_positions", torch.tensor(positions, dtype=torch.long, device=device), persistent=False)

    def forward(self, groups: Any) -> Tensor:
        """Look up groups; in a compiled call, those of a tensor that are none come out of range."""
        if groups is None:
            if self._unknown:
                return torch.tensor(-1, device=self._positions.device)
            msg = (
                f"No groups are given, but the module moves vectors by the groups "
                f"{few(map(repr, self._encoder.groups_.tolist()))}. The way out: {self._ways_out}."
            )
            raise ValueError(msg)
        if isinstance(groups, Tensor):
            if not groups.is_floating_point() and not groups.is_complex():
                return self._of_tensor(groups.to(self._positions.device, torch.long))
            groups = groups.detach().cpu().numpy()
        return self._of_labels(groups)

    def _of_tensor(self, groups: Tensor) -> Tensor:
        found = groups
        if self._values is not None:
            same = groups.unsqueeze(-1) == self._values
            found = torch.where(same.any(-1), self._positions[same.long().argmax(-1)], -1)
        if not torch.compiler.is_compiling():
            wrong = found >= len(self._groups)
            if not self._unknown:
                wrong = wrong | (found < 0)
            if wrong.any():
                raise ValueError(self._message(groups, wrong))
        return found

    def _message(self, groups: Tensor, wrong: Tensor) -> str:
        count, values = f"{int(wrong.sum())} of {wrong.numel()}", few(map(str, torch.unique(groups[wrong]).tolist()))
        if self._values is not None:
            known = few(map(repr, self._values.tolist()))
            return f"{count} groups are unknown: {values}. Known groups: {known}. The way out: {self._ways_out}."
        return (
            f"A tensor of integers gives groups by their positions in {few(map(repr, self._groups))}, so by 0 to "
            f"{len(self._groups) - 1}, but {count} are {values}. The way out: {self._ways_out}; or pass labels as a "
            "list or array."
        )

    def _of_labels(self, groups: Any) -> Tensor:
        n_columns = self._encoder.n_columns_
        shape = None
        if isinstance(groups, (Sequence, np.ndarray)) or np.isscalar(groups):
            array: Any = groups if isinstance(groups, np.ndarray) else np.asarray(groups, dtype=object)
            shape = array.shape if n_columns == 1 else array.shape[:-1]
            if n_columns > 1 and array.shape[-1:] != (n_columns,):
                msg = f"Groups are intersections of {n_columns} labels, but groups has shape {array.shape}."
                raise ValueError(msg)
            groups = array.reshape(-1) if n_columns == 1 else array.reshape(-1, n_columns)
        codes = self._encoder.encode(groups)
        if not self._unknown and (codes < 0).any():
            counts = self._encoder.unknown_counts(groups)
            raise ValueError(unknown_group_message(codes, counts, self._encoder.groups_, self._ways_out))
        places = torch.tensor(codes, device=self._positions.device)
        found = torch.where(places < 0, -1, self._positions[places.clamp(min=0)])
        return found if shape is None else found.reshape(shape)


def with_axes(tensor: Tensor, n_axes: int) -> Tensor:
    """Append axes of length one, to broadcast along what follows the leading ones."""
    return tensor.reshape(tensor.shape + (1,) * (n_axes - tensor.ndim))


def _is_int64(value: float) -> bool:
    return -(2.0**63) < value < 2.0**63 and value == int(value)
