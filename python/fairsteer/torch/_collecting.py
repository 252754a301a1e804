"""Moments that grow while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairsteer._utils.input import check_classes, few, warn_caller
from fairsteer._utils.labels import is_missing, label_array
from fairsteer._utils.types import CovarianceModel
from fairsteer.groups import MISSING, UNSEEN, GroupEncoder
from fairsteer.moments import SubgroupMoments
from fairsteer.torch._layers import Calls, hidden_of

#: Pooled rows (batch, d) of hidden states (batch, tokens, d) and a mask (batch, tokens).
Pool = Callable[[Tensor, Tensor], Tensor]


#: Rows that are gathered for an update of moments, or as many as there are features: no more than the moments take.
_MIN_ROWS = 256


class Collector:
    """Hooks that update one `SubgroupMoments` a layer with every batch."""

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, nn.Module],
        pool: Pool | str | None,
        covariance: CovarianceModel,
        subgroup_counts: Mapping[tuple[Any, Any], float] | None = None,
    ) -> None:
        self._model, self._targets, self._pool, self._covariance = model, targets, pool, covariance
        self._calls = Calls(model, targets)
        self._moments: dict[str, SubgroupMoments] = {}
        self._buffers: dict[str, _Buffer] = {}
        self._encoder = GroupEncoder()
        # Labels to numbers, in order of appearance.
        self._classes: dict[Any, int] = {}
        self._groups: dict[Any, int] = {}
        self._subgroup_counts = None if subgroup_counts is None else self._expected(subgroup_counts)
        self._y_codes: NDArray[np.intp] | None = None
        self._group_codes: NDArray[np.intp] | None = None
        self._given: tuple[bool, bool] | None = None
        self._n_batches = self._n_sequences = self._n_missing = 0
        self._seen: set[str] = set()

    def _expected(self, subgroup_counts: Any) -> NDArray[np.float64]:
        """Take classes and groups from the subgroups; their counts (K, G), as the moments take them."""
        pairs = isinstance(subgroup_counts, Mapping) and all(
            isinstance(c, tuple) and len(c) == 2 for c in subgroup_counts
        )
        if not pairs:
            msg = "subgroup_counts must be a mapping of pairs (class, group) to numbers, as Counter(zip(y, groups)) is."
            raise ValueError(msg)
        # Rows of a missing group are left out of the moments.
        subgroup_counts = {
            (y, group): n
            for (y, group), n in subgroup_counts.items()
            if not any(map(is_missing, group if isinstance(group, tuple) else (group,)))
        }
        if not subgroup_counts:
            msg = "subgroup_counts has no subgroup."
            raise ValueError(msg)
        known = [dict.fromkeys(labels, 0) for labels in zip(*subgroup_counts, strict=True)]
        self._classes, self._groups = ({label: i for i, label in enumerate(_in_order(one).tolist())} for one in known)
        counts = np.zeros((len(self._classes), len(self._groups)))
        for (y, group), n in subgroup_counts.items():
            counts[self._classes[y], self._groups[group]] = n
        # Refuses what the moments would refuse, before the model runs.
        SubgroupMoments(
            1, classes=self._classes, groups=self._groups, covariance=self._covariance, subgroup_counts=counts
        )
        return counts

    def register(self, stack: ExitStack) -> None:
        self._calls.register(stack)
        for name, layer in self._targets.items():
            stack.callback(layer.register_forward_hook(self._hook(name)).remove)

    def run(self, inputs: Any, y: Any, groups: Any, token_mask: Any = None) -> None:
        given = (y is not None, groups is not None)
        if self._given not in (None, given):
            msg = (
                f"Batch {self._n_batches} comes {_with(given)}, the batches before it came {_with(self._given)}; all "
                "must come alike."
            )
            raise ValueError(msg)
        self._given = given
        if self._subgroup_counts is not None and not all(given):
            msg = f"subgroup_counts is of classes and groups, but the batches come {_with(given)}."
            raise ValueError(msg)
        self._read_labels(y, groups)
        self._calls.token_mask = None if token_mask is None else torch.as_tensor(token_mask).bool()
        self._seen.clear()
        if isinstance(inputs, Mapping):
            self._model(**inputs)
        elif isinstance(inputs, (tuple, list)):
            self._model(*inputs)
        else:
            self._model(inputs)
        idle = [name for name in self._targets if name not in self._seen]
        if idle:
            msg = f"Nothing to collect: batch {self._n_batches} did not run the layers {few(map(repr, idle))}."
            raise ValueError(msg)
        self._n_batches += 1

    def result(self) -> dict[str, SubgroupMoments]:
        if not self._n_batches:
            msg = "There are no batches to collect activations from."
            raise ValueError(msg)
        if self._n_missing:
            warn_caller(
                f"{self._n_missing} of {self._n_sequences} sequences have a missing group and are left out of the "
                "moments."
            )
        for name in self._targets:
            self._flush(name)
        return {name: self._moments[name] for name in self._targets}

    def _read_labels(self, y: Any, groups: Any) -> None:
        """Give numbers to the classes and groups of the sequences, in order of appearance; -1 to a missing group."""
        y = y.cpu().numpy() if isinstance(y, Tensor) else y
        groups = groups.cpu().numpy() if isinstance(groups, Tensor) else groups
        self._y_codes = self._group_codes = None
        if y is None:
            self._classes = {0: 0}
        else:
            labels, inverse = np.unique(check_classes(y, y), return_inverse=True)
            self._y_codes = self._numbers("class", self._classes, labels)[inverse]
        if groups is None:
            self._groups = {0: 0}
        else:
            # A batch in which all groups are missing teaches the encoder nothing, which it would refuse.
            codes = self._encoder.encode(groups) if self._n_batches else None
            if codes is None or (codes == UNSEEN).any():
                codes = self._encoder.partial_fit_encode(groups)
            self._group_codes = np.where(
                codes < 0, -1, self._numbers("group", self._groups, self._encoder.groups_)[codes]
            )
            self._n_sequences += len(codes)
            self._n_missing += int((codes == MISSING).sum())

    def _numbers(self, what: str, known: dict[Any, int], labels: NDArray[Any]) -> NDArray[np.intp]:
        if self._subgroup_counts is not None:
            new = [label for label in labels.tolist() if label not in known]
            if new:
                msg = (
                    f"Batch {self._n_batches} has the {what} {new[0]!r}, which subgroup_counts does not have (it has "
                    f"{few(map(repr, known))})."
                )
                raise ValueError(msg)
        return np.array([known.setdefault(label, len(known)) for label in labels.tolist()], dtype=np.intp)

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, args: Any, output: Any) -> None:
            if name in self._seen:
                msg = (
                    f"The layer {name!r} was run twice in batch {self._n_batches}: its activations at different depths "
                    "would be mixed. Collect from layers that run once in a forward pass."
                )
                raise ValueError(msg)
            self._seen.add(name)
            hidden = hidden_of(output, name).detach()
            rows, sequences = self._rows(name, hidden, self._calls.mask(name, hidden))
            self._update(name, rows, sequences, len(hidden))

        return hook

    def _rows(self, name: str, hidden: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows and the sequence that each belongs to."""
        if hidden.ndim == 2:
            return hidden, torch.arange(len(hidden))
        if hidden.ndim != 3:
            shape = tuple(hidden.shape)
            msg = f"Hidden states of {name!r} must have shape (batch, tokens, d) or (batch, d), not {shape}."
            raise ValueError(msg)
        if mask is None:
            mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if self._pool is None:
            return hidden[mask], mask.nonzero()[:, 0]
        kept = mask.any(1)  # a sequence without tokens has no mean
        if callable(self._pool):
            pooled = self._pool(hidden, mask)
            if pooled.ndim != 2 or len(pooled) != len(hidden):
                msg = (
                    f"pool returned shape {tuple(pooled.shape)} for hidden states of shape {tuple(hidden.shape)}; one "
                    "row a sequence is needed."
                )
                raise ValueError(msg)
        else:
            wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
            # Padding may hold anything, and zero times infinity is not zero.
            total = torch.where(mask.unsqueeze(-1), wide, 0).sum(1)
            pooled = total / mask.sum(1, keepdim=True).clamp(min=1)
        return pooled[kept], kept.nonzero()[:, 0]

    def _update(self, name: str, rows: Tensor, sequences: Tensor, n_sequences: int) -> None:
        for what, codes in (("classes", self._y_codes), ("groups", self._group_codes)):
            if codes is not None and len(codes) != n_sequences:
                msg = f"Batch {self._n_batches} has {n_sequences} sequences, but {len(codes)} {what}."
                raise ValueError(msg)
        if not torch.isfinite(rows).all():
            msg = f"The activations of {name!r} in batch {self._n_batches} hold NaN or infinite values."
            raise ValueError(msg)
        of_row = sequences.cpu().numpy()
        zeros = np.zeros(len(of_row), dtype=np.intp)
        y_codes = zeros if self._y_codes is None else self._y_codes[of_row]
        group_codes = zeros if self._group_codes is None else self._group_codes[of_row]
        buffer = self._buffers.get(name)
        if buffer is None or not buffer.takes(rows):
            self._flush(name)
            buffer = self._buffers[name] = _Buffer(rows)
        start = 0
        while start < len(rows):
            start += buffer.fill(rows[start:], y_codes[start:], group_codes[start:])
            if buffer.is_full():
                self._flush(name)

    def _flush(self, name: str) -> None:
        """Add the rows that have gathered to the moments of a layer."""
        buffer = self._buffers.get(name)
        if buffer is None:
            return
        rows, y_codes, group_codes = buffer.take()
        moments = self._moments.get(name)
        if moments is None or moments.n_classes < len(self._classes) or moments.n_groups < len(self._groups):
            classes, groups = _in_order(self._classes), _in_order(self._groups)
            more = SubgroupMoments(
                rows.shape[1],
                classes=classes,
                groups=groups,
                covariance=self._covariance,
                subgroup_counts=self._subgroup_counts,
            )
            moments = more if moments is None else moments.merge(more)
        y_codes = _positions(self._classes, moments.classes)[y_codes]
        group_codes = np.where(group_codes < 0, -1, _positions(self._groups, moments.groups)[group_codes])
        self._moments[name] = moments.update(rows, y_codes, group_codes)


class _Buffer:
    """Rows that wait for others on their device, since every update of moments takes as long as many rows."""

    def __init__(self, like: Tensor) -> None:
        capacity = max(like.shape[1], _MIN_ROWS)
        self.rows = like.new_empty((capacity, like.shape[1]))
        self._codes, self._n = np.empty((2, capacity), np.intp), 0

    def takes(self, rows: Tensor) -> bool:
        """Whether rows are of the type of the others, and lie where they do."""
        return (rows.dtype, rows.device) == (self.rows.dtype, self.rows.device)

    def fill(self, rows: Tensor, y_codes: NDArray[np.intp], group_codes: NDArray[np.intp]) -> int:
        """Copy as many rows as there is room for, and say how many."""
        n = min(len(rows), len(self.rows) - self._n)
        room = slice(self._n, self._n + n)
        self.rows[room], self._codes[0, room], self._codes[1, room] = rows[:n], y_codes[:n], group_codes[:n]
        self._n += n
        return n

    def is_full(self) -> bool:
        return self._n == len(self.rows)

    def take(self) -> tuple[Tensor, NDArray[np.intp], NDArray[np.intp]]:
        """Rows and codes, to be used before the next `fill`."""
        n, self._n = self._n, 0
        return self.rows[:n], self._codes[0, :n], self._codes[1, :n]


def _with(given: tuple[bool, bool] | None) -> str:
    y, groups = given or (False, False)
    return f"{'with' if y else 'without'} classes and {'with' if groups else 'without'} groups"


def _in_order(labels: Mapping[Any, int]) -> NDArray[Any]:
    """Labels sorted, where they can be."""
    try:
        return label_array(sorted(labels))
    except TypeError:
        return label_array(labels)


def _positions(labels: Mapping[Any, int], within: NDArray[Any]) -> NDArray[np.intp]:
    index = {label: i for i, label in enumerate(within.tolist())}
    return np.array([index[label] for label in labels], dtype=np.intp)
