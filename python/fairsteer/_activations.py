"""Moments that grow while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairsteer._input import check_classes, few, warn_caller
from fairsteer._torch_layers import Calls, hidden_of
from fairsteer.groups import MISSING, UNSEEN, GroupEncoder
from fairsteer.moments import CovarianceModel, SubgroupMoments

#: Pooled rows (batch, d) of hidden states (batch, tokens, d) and a mask (batch, tokens).
Pool = Callable[[Tensor, Tensor], Tensor]


class Collector:
    """Hooks that update one `SubgroupMoments` a layer with every batch."""

    def __init__(
        self, model: nn.Module, targets: Mapping[str, nn.Module], pool: Pool | str | None, covariance: CovarianceModel
    ) -> None:
        self._model, self._targets, self._pool, self._covariance = model, targets, pool, covariance
        self._calls = Calls(model, targets)
        self._moments: dict[str, SubgroupMoments] = {}
        self._encoder = GroupEncoder()
        self._given: tuple[bool, bool] | None = None
        self._n_batches = self._n_sequences = self._n_missing = 0
        self._seen: set[str] = set()

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
        self._labels = self._read_labels(y, groups)
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
        return {name: self._moments[name] for name in self._targets}

    def _read_labels(
        self, y: Any, groups: Any
    ) -> tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[np.intp] | None]:
        """Classes, groups and codes of the groups of the sequences; None for what is not given."""
        y = y.cpu().numpy() if isinstance(y, Tensor) else y
        groups = groups.cpu().numpy() if isinstance(groups, Tensor) else groups
        classes = None if y is None else check_classes(y, y)
        if groups is None:
            return classes, None, None
        # A batch in which all groups are missing teaches the encoder nothing, which it would refuse.
        codes = self._encoder.encode(groups) if self._n_batches else None
        if codes is None or (codes == UNSEEN).any():
            codes = self._encoder.partial_fit_encode(groups)
        self._n_sequences += len(codes)
        self._n_missing += int((codes == MISSING).sum())
        return classes, self._encoder.groups_, codes

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
        classes, groups, codes = self._labels
        of_row = sequences.cpu().numpy()
        y = np.zeros(n_sequences, dtype=np.intp) if classes is None else classes
        a = np.zeros(n_sequences, dtype=np.intp) if codes is None else codes
        for what, labels in (("classes", y), ("groups", a)):
            if len(labels) != n_sequences:
                msg = f"Batch {self._n_batches} has {n_sequences} sequences, but {len(labels)} {what}."
                raise ValueError(msg)
        if not torch.isfinite(rows).all():
            msg = f"The activations of {name!r} in batch {self._n_batches} hold NaN or infinite values."
            raise ValueError(msg)
        class_labels, y_codes = np.unique(y, return_inverse=True)
        group_labels = np.zeros(1, dtype=np.intp) if groups is None else groups
        moments = self._moments.get(name)
        if moments is None or not _knows(moments, class_labels, group_labels):
            more = SubgroupMoments(
                rows.shape[1], classes=class_labels, groups=group_labels, covariance=self._covariance
            )
            moments = more if moments is None else moments.merge(more)
        to_class, to_group = _positions(class_labels, moments.classes), _positions(group_labels, moments.groups)
        group_codes = np.where(a < 0, -1, to_group[np.maximum(a, 0)])
        rows = rows.float() if rows.dtype == torch.bfloat16 else rows
        self._moments[name] = moments.update(rows.cpu().numpy(), to_class[y_codes][of_row], group_codes[of_row])


def _with(given: tuple[bool, bool] | None) -> str:
    y, groups = given or (False, False)
    return f"{'with' if y else 'without'} classes and {'with' if groups else 'without'} groups"


def _knows(moments: SubgroupMoments, classes: NDArray[Any], groups: NDArray[Any]) -> bool:
    return set(classes.tolist()) <= set(moments.classes.tolist()) and set(groups.tolist()) <= set(
        moments.groups.tolist()
    )


def _positions(labels: NDArray[Any], within: NDArray[Any]) -> NDArray[np.intp]:
    index = {label: i for i, label in enumerate(within.tolist())}
    return np.array([index[label] for label in labels.tolist()], dtype=np.intp)
