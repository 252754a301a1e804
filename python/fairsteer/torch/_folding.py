"""Steering as other weights of a layer: nothing is left to do at run time, for one group."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fairsteer.torch._concepts import ConceptSteeringModule
from fairsteer.torch._module import SteeringModule
from fairsteer.torch._source import Source


class _Map(NamedTuple):
    """A map ``x -> A x + b`` in double precision, on the processor."""

    A: Tensor
    """(d, d), or what each feature is multiplied by, (d,)."""
    b: Tensor

    @property
    def is_shift(self) -> bool:
        """Whether features are only shifted."""
        one = torch.eye(len(self.A), dtype=self.A.dtype) if self.A.ndim == 2 else torch.ones_like(self.A)
        same: bool = torch.equal(self.A, one)
        return same


class FoldedSteering:
    """What `fold_into` gives: the way back.

    As a context, it is taken when the context ends.
    """

    def __init__(self, module: nn.Module, before: dict[str, nn.Parameter | None]) -> None:
        self._module, self._before = module, before

    def undo(self) -> None:
        """Give the layer the parameters that it had."""
        for name, parameter in self._before.items():
            setattr(self._module, name, parameter)
        self._before = {}

    def __enter__(self) -> FoldedSteering:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()


def fold_into(
    module: nn.Module,
    source: Source | SteeringModule | ConceptSteeringModule,
    *,
    sensitive_features: Any = None,
    side: str = "output",
    strength: float | None = None,
) -> FoldedSteering:
    """Fold the steering of one group into the weights of a layer.

    The model then does without hooks what it did with them, at no cost, and can be compiled, quantised, saved and
    served like any other; but for one group: serve a copy for each.

    Parameters
    ----------
    module : Module
        A layer: ``nn.Linear`` (or transformers' ``Conv1D``, of GPT-2), ``nn.Embedding`` or ``nn.LayerNorm``. Its
        parameters are replaced by new ones, so that layers which share them (tied embeddings) are left alone; a bias
        is added where there is none and one is needed.
    source : as for `SteeringModule`, a SteeringModule or a ConceptSteeringModule
        What steers: an affine map for each group, or a concept's direction.
    sensitive_features : label, default=None
        The group that is served. May be left out if there is one map for all.
    side : {"output", "input"}, default="output"
        What is steered: what the layer gives, or what it takes, if the layer is linear: that folds the steering of the
        output of one layer into the next.
    strength : float, default=None
        Part of the way, or of a concept how far. None: that of the source.

    Returns
    -------
    FoldedSteering
        With `undo`; may be used as a context.

    Raises
    ------
    TypeError
        If the layer is of another kind, or quantised, or the source is none.
    ValueError
        If the map is none that the layer can take (an embedding or LayerNorm as `side="input"`, a matrix into
        LayerNorm, logarithms), the numbers of features differ, or the group is not known.

    See Also
    --------
    steering_hooks : The same without changing the layer, for several groups at a time.

    Notes
    -----
    Folded weights are computed in double precision and rounded to the type of the layer. All tokens are steered,
    padding too, which no other token sees.

    **Residual streams.** What a transformer block gives is the sum of its input and of its parts, so that no layer
    holds a matrix that could take an affine map of it. A shift of it, such as a concept's direction, is the same as a
    shift of the last part: fold it into that part's last linear layer (``model.layers.5.mlp.down_proj`` of Llama, Qwen
    and Mistral, ``transformer.h.5.mlp.c_proj`` of GPT-2), if nothing but the sum follows it (Gemma 2 normalises in
    between). An affine map of what the last normalisation gives goes into the head, with ``side="input"``.

    Examples
    --------
    >>> import torch
    >>> from fairsteer.torch import fold_into
    >>> layer = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.ones_(layer.weight)
    >>> maps = {"f": ([[2.0]], [1.0]), "m": ([[1.0]], [0.0])}
    >>> with torch.no_grad(), fold_into(layer, maps, sensitive_features="f"):
    ...     print(layer(torch.ones(1, 1)))
    tensor([[3.]])
    >>> layer.bias is None
    True
    """
    if side not in ("output", "input"):
        msg = f"side must be 'output' or 'input', not {side!r}."
        raise ValueError(msg)
    kind = _kind(module)
    mapped = _map_of(source, sensitive_features, strength)
    weight: Tensor = module.weight
    bias: Tensor | None = getattr(module, "bias", None)
    if kind == "LayerNorm" and (not isinstance(weight, Tensor) or weight.ndim != 1):
        msg = "A LayerNorm needs weights of one axis to fold anything into."
        raise ValueError(msg)
    W = weight.detach().cpu().double()
    W = W.T if kind in ("Conv1D", "Embedding") else W  # (out, in); of LayerNorm (out,)
    c = None if bias is None else bias.detach().cpu().double()
    _check(kind, side, mapped, len(W) if side == "output" else W.shape[-1])
    if side == "output":
        W, c = _scaled(mapped.A, W, kind), _plus(None if c is None else _times(mapped.A, c), mapped.b)
    else:
        W, c = (W * mapped.A if mapped.A.ndim == 1 else W @ mapped.A), _plus(c, W @ mapped.b)
    if kind == "Embedding":
        W, c = W + c[:, None] if c is not None else W, None
    W = W.T if kind in ("Conv1D", "Embedding") else W
    before = {"weight": module.weight}
    module.weight = _parameter(W, weight)
    if kind != "Embedding":
        before["bias"] = bias
        module.bias = None if c is None or (bias is None and not c.any()) else _parameter(c, weight)
    return FoldedSteering(module, before)


def _kind(module: nn.Module) -> str:
    for name, known in (("Linear", nn.Linear), ("Embedding", nn.Embedding), ("LayerNorm", nn.LayerNorm)):
        # Quantised layers are subclasses whose weights are no numbers.
        weight = module.weight if isinstance(module, known) else None
        if isinstance(weight, Tensor) and weight.is_floating_point():
            return name
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return "Conv1D"
    msg = (
        "Steering is folded into Linear, Conv1D (of transformers), Embedding and LayerNorm layers that have weights, "
        f"as floating-point numbers, not into {type(module).__name__}. Name a layer inside it, or use steering_hooks."
    )
    raise TypeError(msg)


def _map_of(source: Any, group: Any, strength: float | None) -> _Map:
    """Find the map of one group."""
    if isinstance(source, ConceptSteeringModule):
        code = int(_one(source._codes(group)))
        amount = source._amounts(source.strength if strength is None else strength)[code]
        shift = amount * source.directions[code].detach().cpu().double()
        return _Map(torch.ones_like(shift), shift)
    module = source
    if not isinstance(source, SteeringModule):
        module = SteeringModule(source, dtype=torch.float64, device="cpu")
    if module._settings.log:
        msg = "feature_transform='log' makes no affine maps of the features, so that no layer can take them."
        raise ValueError(msg)
    codes = module._codes(group)
    code = 0 if codes is None else int(_one(codes))
    if code < 0:
        msg = "Steering is folded in for one group that is known: pass its label as sensitive_features=…."
        raise ValueError(msg)
    amount = module.strength if strength is None else strength
    if not 0 <= amount <= 1:
        msg = f"strength must be in [0, 1], got {strength!r}."
        raise ValueError(msg)
    displacement = amount * module.displacement[code].detach().cpu().double()
    # Steps start at the centre.
    centre = module._centre.points[code].cpu().double()
    offset = amount * module.offset[code].detach().cpu().double()
    if displacement.ndim == 1:
        return _Map(1 + displacement, offset - displacement * centre)
    return _Map(torch.eye(len(displacement)).double() + displacement, offset - displacement @ centre)


def _one(codes: Tensor) -> Tensor:
    if codes.numel() != 1:
        msg = f"Weights can hold the steering of one group, not of {codes.numel()}: pass one label."
        raise ValueError(msg)
    return codes.reshape(())


def _check(kind: str, side: str, mapped: _Map, n_features: int) -> None:
    if side == "input" and kind not in ("Linear", "Conv1D"):
        msg = f"What goes into {kind} cannot be steered by its weights, only what comes out of it: side='output'."
        raise ValueError(msg)
    if kind == "LayerNorm" and mapped.A.ndim == 2 and not mapped.is_shift:
        msg = (
            "LayerNorm scales and shifts each feature for itself, and the map mixes them. Fold it into the linear "
            "layer that follows, side='input', or fit with map_type='diagonal' or 'translation'."
        )
        raise ValueError(msg)
    if len(mapped.b) != n_features:
        msg = f"The maps are of {len(mapped.b)} features, the {side} of the layer has {n_features}."
        raise ValueError(msg)


def _scaled(A: Tensor, W: Tensor, kind: str) -> Tensor:
    """Weights (out, in), or (out,) of LayerNorm, whose output is mapped."""
    if kind == "LayerNorm":
        return W if A.ndim == 2 else A * W
    return A[:, None] * W if A.ndim == 1 else A @ W


def _times(A: Tensor, c: Tensor) -> Tensor:
    return A * c if A.ndim == 1 else A @ c


def _plus(c: Tensor | None, b: Tensor) -> Tensor:
    return b if c is None else c + b


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like.dtype).to(like.device).contiguous(), requires_grad=like.requires_grad)
