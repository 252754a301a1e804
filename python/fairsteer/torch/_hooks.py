"""Steer the hidden states of torch models, and gather what is needed to fit the steering.

`SteeringModule` is steering as a module of your own, and `ConceptSteeringModule` one that adds a concept's directions;
`steering_hooks` steers inside a model as it is, whether from Hugging Face or plain torch; `collect_activations` turns
activations into moments, batch by batch, without keeping them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fairsteer._utils.input import few
from fairsteer._utils.types import CovarianceModel
from fairsteer.moments import SubgroupMoments
from fairsteer.torch._collecting import Collector, Pool
from fairsteer.torch._concepts import ConceptSteeringModule
from fairsteer.torch._groups import with_axes
from fairsteer.torch._layers import Calls, hidden_of, matching_layers, with_hidden
from fairsteer.torch._module import SteeringModule
from fairsteer.torch._source import Source

#: Modules that know their groups: these are looked up once, when they are set, and unknown ones refused then.
_KnowsGroups = SteeringModule | ConceptSteeringModule


class SteeringHandle:
    """What `steering_hooks` gives: settings of the steering that may change from batch to batch.

    Attributes
    ----------
    layers : list of str
        Qualified names of the layers that are steered.
    sensitive_features : labels or integer tensor
        Groups of the next batches.
    token_mask : Tensor of shape (batch, tokens) or None
        Tokens to steer in the next batches.
    strength : float or None
        As given; None leaves each module its own.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, Source | nn.Module]) -> None:
        self._modules: dict[str, nn.Module] = {}
        self._targets: dict[str, nn.Module] = {}
        made: dict[tuple[int, torch.device, torch.dtype], SteeringModule] = {}
        asked: dict[nn.Module, str] = {}
        for pattern, source in layers.items():
            for name, layer in matching_layers(model, pattern).items():
                if layer in asked:
                    msg = f"The layer {name!r} is named twice, by {asked[layer]!r} and by {pattern!r}; name it once."
                    raise ValueError(msg)
                asked[layer] = pattern
                self._targets[name] = layer
                if isinstance(source, nn.Module):
                    self._modules[name] = source
                    continue
                device, dtype = _place(layer, model)
                key = id(source), device, dtype
                if key not in made:
                    made[key] = SteeringModule(source, dtype=dtype, device=device)
                self._modules[name] = made[key]
        self._own = set(made.values())
        self._strength: float | None = None
        self._strengths_before: dict[Any, Any] = {}
        self._calls = Calls(model, self._targets)
        self._codes: dict[str, Any] = {}
        self._ran = dict.fromkeys(self._targets, False)

    @property
    def layers(self) -> list[str]:
        """Qualified names of the layers that are steered."""
        return list(self._targets)

    @property
    def sensitive_features(self) -> Any:
        """Groups of the next batches."""
        return self._groups

    @sensitive_features.setter
    def sensitive_features(self, groups: Any) -> None:
        codes = {
            name: module._codes(groups) if groups is not None and isinstance(module, _KnowsGroups) else groups
            for name, module in self._modules.items()
        }
        self._groups, self._codes = groups, codes

    @property
    def token_mask(self) -> Tensor | None:
        """Tokens to steer in the next batches."""
        return self._calls.token_mask

    @token_mask.setter
    def token_mask(self, token_mask: Any) -> None:
        mask = None if token_mask is None else torch.as_tensor(token_mask)
        if mask is not None and mask.ndim != 2:
            msg = f"token_mask must have shape (batch, tokens), not {tuple(mask.shape)}."
            raise ValueError(msg)
        self._calls.token_mask = None if mask is None else mask.bool()

    @property
    def strength(self) -> float | None:
        """Strength of all steering modules; None leaves each its own."""
        return self._strength

    @strength.setter
    def strength(self, strength: float | None) -> None:
        if strength is not None:
            without = [name for name, module in self._modules.items() if not hasattr(module, "strength")]
            if without:
                msg = f"strength={strength!r} has no meaning for the module at {without[0]!r}: it has no `strength`."
                raise ValueError(msg)
        for module, before in self._strengths_before.items():
            module.strength = before
        self._strength, self._strengths_before = None, {}
        if strength is None:
            return
        modules: set[Any] = set(self._modules.values())
        self._strengths_before = {module: module.strength for module in modules}
        try:
            for module in modules:
                module.strength = strength
        except ValueError:
            self.strength = None  # one module may take what another refuses
            raise
        self._strength = strength

    def _register(self, stack: ExitStack) -> None:
        self._calls.register(stack)
        for name, layer in self._targets.items():
            # First of all hooks, so that whoever records outputs records what the next layer sees.
            stack.callback(layer.register_forward_hook(self._hook(name), prepend=True).remove)

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        module = self._modules[name]

        def hook(layer: nn.Module, args: Any, output: Any) -> Any:
            self._ran[name] = True
            hidden = hidden_of(output, name)
            mask = self._calls.mask(name, hidden)
            steered = self._steer(module, hidden, self._codes[name], mask)
            return output if steered is hidden else with_hidden(output, steered)

        return hook

    def _steer(self, module: nn.Module, hidden: Tensor, groups: Any, mask: Tensor | None) -> Tensor:
        if isinstance(module, _KnowsGroups):
            if isinstance(module, SteeringModule) and module in self._own and module.offset.device != hidden.device:
                module.to(hidden.device)  # a model may be spread over devices in ways its parameters do not show
            codes: Any = module._codes(None) if self._groups is None else groups  # they may be set after the hooks are
            if codes is not None:
                codes = codes.to(hidden.device)
            return module._steer(hidden, codes, mask)
        given = groups.to(hidden.device) if isinstance(groups, Tensor) else groups
        steered: Tensor = module(hidden, sensitive_features=given)
        if steered.shape != hidden.shape or steered.dtype != hidden.dtype:
            msg = (
                f"{type(module).__name__} returned {steered.dtype} of shape {tuple(steered.shape)} for hidden states "
                f"{hidden.dtype} of shape {tuple(hidden.shape)}; both must stay."
            )
            raise ValueError(msg)
        if mask is None:
            return steered
        return torch.where(with_axes(mask, hidden.ndim), steered, hidden)

    def _idle(self) -> list[str]:
        return [name for name, ran in self._ran.items() if not ran]


@contextmanager
def steering_hooks(
    model: nn.Module,
    layers: Mapping[str, Source | nn.Module],
    *,
    sensitive_features: Any = None,
    token_mask: Any = None,
    strength: float | None = None,
) -> Iterator[SteeringHandle]:
    """Steer the hidden states of a model while the context lasts.

    The output of every named layer is steered before the next layer sees it, in any forward pass of `model`: under
    ``torch.no_grad``, in training, in ``generate`` with or without a cache. The hooks are removed when the context
    ends, whatever ends it.

    Parameters
    ----------
    model : Module
        Any torch model. Forward passes may go through it or through a part of it.
    layers : mapping of str to source or Module
        For each layer, by qualified name (``"encoder.layer.3"``, as in ``model.named_modules()``) or by pattern, what
        steers its output. In a pattern ``*``, ``?`` and ``[…]`` stand for parts of one name between dots:
        ``"encoder.layer.[2-4]"``, ``"*.layers.*"``. A value is anything that a `SteeringModule` is made from, a
        `SteeringModule`, or any other module, such as a `ConceptSteeringModule`, which is called as
        ``module(hidden, sensitive_features=…)`` with the groups as given here, and returns steered states in the shape
        and type of `hidden`.
    sensitive_features : labels or integer tensor, default=None
        Groups of the batch, as for :meth:`SteeringModule.forward`: one a sequence, one a token, or one for all.
    token_mask : array-like or Tensor of shape (batch, tokens), default=None
        True (nonzero) for tokens to steer; the others come through bit for bit. Tokens after the last column, such as
        generated ones, are steered. None: what is not padding, by the `attention_mask` that the model, or the part of
        it around the layer, is called with; without one, all tokens. Outputs without an axis of tokens are steered
        whole.
    strength : float, default=None
        Sets the `strength` of all steering modules while the context lasts.

    Yields
    ------
    SteeringHandle
        Its `sensitive_features`, `token_mask` and `strength` may be set between batches.

    Raises
    ------
    ValueError
        If a name or pattern matches no layer, two match the same, or groups are unknown; during a forward pass, if
        groups or masks do not go with the shapes, or an attention mask shows no padding (one of four dimensions, say).
    TypeError
        If a value is nothing to steer with; during a forward pass, if a layer's output holds no hidden states.

    Warns
    -----
    UserWarning
        At the end, if a layer was never run as a hooked one.

    Notes
    -----
    The hidden states of a layer are its output, the first entry of a tuple, or `last_hidden_state` of a
    ``ModelOutput`` or dictionary; other entries stay. Shape (batch, tokens, d) or (batch, d), batch first.

    ``torch.compile`` inlines the hooks that are there when a model is first run. Compile and run inside the context,
    and set ``handle.sensitive_features`` between batches, which compiles nothing anew. A model that was compiled and
    run before stays unsteered (the warning at the end says so), unless
    ``torch._dynamo.config.skip_nnmodule_hook_guards`` was False then.

    Examples
    --------
    >>> import torch
    >>> from fairsteer.torch import steering_hooks
    >>> model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Flatten(0))
    >>> maps = {"f": ([[2.0]], [1.0]), "m": ([[1.0]], [0.0])}
    >>> with steering_hooks(model, {"0": maps}, sensitive_features=["f", "m"]) as steering:
    ...     print(model(torch.ones(2, 1)))
    ...     steering.sensitive_features = "m"
    ...     print(model(torch.ones(2, 1)))
    tensor([3., 1.])
    tensor([1., 1.])
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps
    handle = SteeringHandle(model, layers)
    handle.sensitive_features, handle.token_mask = sensitive_features, token_mask
    with ExitStack() as stack:
        stack.callback(setattr, handle, "strength", None)
        handle.strength = strength
        handle._register(stack)
        yield handle
    if handle._idle():
        warnings.warn(
            f"No hidden state of {few(map(repr, handle._idle()))} was steered: the layer was not run while its hook "
            "was there. If the model was compiled, run it for the first time inside the context.",
            UserWarning,
            stacklevel=3,
        )


def _place(layer: nn.Module, model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device of a layer, and a type for maps that is no narrower than single precision."""
    for part in (layer, model):
        for parameter in part.parameters():
            if parameter.is_floating_point():
                return parameter.device, torch.promote_types(parameter.dtype, torch.float32)
    return torch.get_default_device(), torch.float32


def collect_activations(
    model: nn.Module,
    batches: Iterable[tuple[Any, ...]],
    layers: str | Iterable[str],
    *,
    pool: Literal["mean"] | Pool | None = "mean",
    covariance: CovarianceModel = "tied",
    subgroup_counts: Mapping[tuple[Any, Any], float] | None = None,
) -> dict[str, SubgroupMoments]:
    """Moments of the hidden states of layers, one batch at a time.

    Nothing is kept but the moments, and a few rows until an update of them pays (as many as there are features, at
    least 256), so memory does not grow with the number of batches. Activations stay on the device of their layer, where
    the moments are added up; these come back at the end, and when a batch brings a class or a group for the first time.
    From moments there are two steps to steering: ``nearest_ideal(moments.shrink("ledoit_wolf"))``, and its result given
    to `steering_hooks` or `SteeringModule`.

    Parameters
    ----------
    model : Module
        Run in evaluation mode, without gradients; afterwards in the mode it was in.
    batches : iterable of tuples (inputs, y, groups) or (inputs, y, groups, token_mask)
        `inputs`: a mapping for ``model(**inputs)``, a tuple or list for ``model(*inputs)``, or a tensor. `y`: classes
        of the sequences, or None in all batches: one class. `groups`: labels of the sequences, in one or more columns,
        or None in all batches: one group. Sequences whose group is missing are left out, with a warning. `token_mask`:
        (batch, tokens), tokens that count; without it those of the `attention_mask` that the model is called with.
    layers : str or iterable of str
        Qualified names or patterns, as for `steering_hooks`.
    pool : "mean", None or callable, default="mean"
        What is a row: the mean of a sequence's tokens, every token, or what ``pool(hidden, mask)`` makes of hidden
        states (batch, tokens, d) and a mask (batch, tokens), of shape (batch, d). Outputs of shape (batch, d) are rows
        already.
    covariance : {"tied", "full", "diagonal"}, default="tied"
        Covariance model of the moments.
    subgroup_counts : mapping of (class, group) to number, default=None
        With "tied", rows that the subgroups will have, known beforehand, such as ``Counter(zip(y, groups))``: the
        classes then have the same weights in the covariance of every group, as `FairSteeringTransformer` gives them.
        Only ratios matter. A row of a subgroup that is not in it is an error; a missing group counts for nothing.

    Returns
    -------
    dict of str to SubgroupMoments
        For each qualified name of a layer, moments in double precision, whatever the model computes in.

    Raises
    ------
    ValueError
        If there are no batches; if a pattern matches no layer, or a layer is run never or twice in a forward pass; if
        an activation is not finite; if labels do not go with the batch, or are given in some batches only;
        if `subgroup_counts` is not of the rows that come, or of another model than "tied".

    See Also
    --------
    fairsteer.nearest_ideal : The maps that follow from moments.

    Examples
    --------
    >>> import torch
    >>> from fairsteer import nearest_ideal
    >>> from fairsteer.torch import collect_activations, steering_hooks
    >>> rng = torch.Generator().manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())
    >>> batches = [(torch.randn(50, 2, generator=rng), [0, 1] * 25, ["f"] * 20 + ["m"] * 30) for _ in range(3)]
    >>> moments = collect_activations(model, batches, "0")["0"]
    >>> moments
    SubgroupMoments(2 classes x 2 groups, 2 features, covariance='tied', weight=150)
    >>> ideal = nearest_ideal(moments.shrink("ledoit_wolf"))
    >>> with steering_hooks(model, {"0": ideal}, sensitive_features=batches[0][2]):
    ...     steered = model(batches[0][0])
    """
    model = getattr(model, "_orig_mod", model)
    if pool not in (None, "mean") and not callable(pool):
        msg = f"pool must be 'mean', None or a function of hidden states and mask, not {pool!r}."
        raise ValueError(msg)
    patterns = [layers] if isinstance(layers, str) else list(layers)
    targets = {name: layer for pattern in patterns for name, layer in matching_layers(model, pattern).items()}
    collector = Collector(model, targets, pool, covariance, subgroup_counts)
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), ExitStack() as stack:
            collector.register(stack)
            for batch in batches:
                collector.run(*batch)
    finally:
        for module, training in modes.items():
            module.training = training
    return collector.result()
