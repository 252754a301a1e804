"""Finding layers of a torch model, and reading what they are called with and what they return."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fairsteer._utils.input import few

_HIDDEN = "last_hidden_state"


def matching_layers(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """Layers of a name or pattern, whose wildcards do not cross dots; raise ValueError if there are none."""
    named = dict(model.named_modules(remove_duplicate=False))
    if pattern in named:
        return {pattern: named[pattern]}
    parts = pattern.split(".")
    found = {
        name: layer
        for name, layer in named.items()
        if name and len(own := name.split(".")) == len(parts) and all(map(fnmatchcase, own, parts))
    }
    if found:
        return found
    names = [name for name in named if name]
    near = [name for name in names if name.endswith(f".{pattern}")]
    near += difflib.get_close_matches(pattern, names, n=5, cutoff=0.3)
    listed = few(map(repr, dict.fromkeys(near or names)))
    msg = f"No layer of {type(model).__name__} is called {pattern!r}. Names near it: {listed}."
    raise ValueError(msg)


def hidden_of(output: Any, name: str) -> Tensor:
    """Hidden states in the output of a layer: itself, the first of a tuple, or ``last_hidden_state``."""
    hidden = output
    if isinstance(output, Mapping):
        hidden = output.get(_HIDDEN)
    elif isinstance(output, (tuple, list)) and output:
        hidden = output[0]
    if isinstance(hidden, Tensor):
        return hidden
    if isinstance(output, Mapping):
        what = f"a {type(output).__name__} with {few(map(repr, output))}"
    else:
        what = f"{type(output).__name__} whose first entry is {type(hidden).__name__}"
    msg = (
        f"The output of {name!r} holds no hidden states: it is {what}. A tensor, a tuple that begins with one, or "
        f"{_HIDDEN!r} is needed; name a layer inside it."
    )
    raise TypeError(msg)


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """Put other hidden states into a copy of the output of a layer."""
    if isinstance(output, Tensor):
        return hidden
    if isinstance(output, Mapping):
        return type(output)(**{**output, _HIDDEN: hidden})
    if hasattr(output, "_make"):
        return output._make([hidden, *output[1:]])
    return type(output)([hidden, *output[1:]])


class _Call(NamedTuple):
    """What a module around a layer is called with, as far as it tells tokens from padding."""

    has_mask: bool
    mask: Any
    past: int | Tensor | None
    """Tokens in the cache before the call, of caches of fixed size as a tensor; None without a cache."""


class Calls:
    """Watch the modules around layers, for the masks that they are called with.

    The innermost module that has an `attention_mask` decides: so a decoder's own counts and not the encoder's, and a
    model inside a pipeline may be the only one to have any.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str]) -> None:
        self.token_mask: Tensor | None = None
        modules = dict(model.named_modules(remove_duplicate=False))
        self._around = {name: _ancestors(name) for name in layers}
        self._watched = {name: modules[name] for names in self._around.values() for name in names}
        self._running: dict[str, _Call] = {}

    def register(self, stack: ExitStack) -> None:
        for name, module in self._watched.items():
            parameters = list(inspect.signature(module.forward).parameters)
            before = module.register_forward_pre_hook(self._before(name, parameters), with_kwargs=True)
            stack.callback(before.remove)
            after = module.register_forward_hook(self._after(name), always_call=True)
            stack.callback(after.remove)

    def _before(self, name: str, parameters: list[str]) -> Callable[[nn.Module, Any, Any], None]:
        position = parameters.index("attention_mask") if "attention_mask" in parameters else None

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            has_mask, mask = "attention_mask" in kwargs, kwargs.get("attention_mask")
            if position is not None and position < len(args):
                has_mask, mask = True, args[position]
            past = None
            if self.token_mask is not None:
                caches = [value for value in (*args, *kwargs.values()) if hasattr(value, "get_seq_length")]
                past = caches[0].get_seq_length() if caches else None
                past = past.clone() if isinstance(past, Tensor) else past  # the cache counts on during the call
            self._running[name] = _Call(has_mask, mask, past)

        return before

    def _after(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def after(module: nn.Module, args: Any, output: Any) -> None:
            self._running.pop(name, None)

        return after

    def mask(self, name: str, hidden: Tensor) -> Tensor | None:
        """Mask (batch, tokens) of hidden states (batch, tokens, …), for the layer that returns them; None for all."""
        if hidden.ndim < 3:
            return None
        calls = [self._running[around] for around in self._around[name] if around in self._running]
        n_tokens = hidden.shape[1]
        if self.token_mask is not None:
            mask = self._given(self.token_mask.to(hidden.device), calls, n_tokens)
        else:
            found = self._attention(calls, n_tokens)
            if found is None:
                return None
            mask = found[:, -n_tokens:].to(hidden.device) != 0
        if mask.shape != hidden.shape[:2]:
            msg = (
                f"A mask of shape {tuple(mask.shape)} does not go with hidden states of {name!r}, of shape "
                f"{tuple(hidden.shape)}: (batch, tokens) must agree."
            )
            raise ValueError(msg)
        return mask

    @staticmethod
    def _attention(calls: list[_Call], n_tokens: int) -> Tensor | None:
        unread = None
        for call in calls:
            if not call.has_mask:
                continue
            if call.mask is None:
                return None
            if isinstance(call.mask, Tensor) and call.mask.ndim == 2 and call.mask.shape[1] >= n_tokens:
                return call.mask
            unread = call.mask
        if unread is not None:
            what = f"of shape {tuple(unread.shape)}" if isinstance(unread, Tensor) else f"({type(unread).__name__})"
            msg = (
                f"The attention mask {what} does not say which of {n_tokens} tokens are padding. The way out: pass "
                "token_mask=… of shape (batch, tokens)."
            )
            raise ValueError(msg)
        return None

    @staticmethod
    def _given(token_mask: Tensor, calls: list[_Call], n_tokens: int) -> Tensor:
        """Columns of a token mask that belong to the tokens of this pass; later tokens count."""
        n_given = token_mask.shape[1]
        starts: list[int | Tensor] = [call.past for call in calls if call.past is not None]
        starts += [
            call.mask.shape[1] - n_tokens for call in calls if isinstance(call.mask, Tensor) and call.mask.ndim == 2
        ]
        # Without a cache a pass holds every token from the first one on.
        if not starts and n_tokens < n_given:
            msg = (
                f"token_mask has {n_given} tokens, this forward pass {n_tokens}, and neither a cache nor an attention "
                "mask says which of them these are. Pass an attention_mask of all tokens so far to the model."
            )
            raise ValueError(msg)
        # By positions instead of a slice: those of a cache of fixed size are known to the device alone.
        columns = (starts[0] if starts else 0) + torch.arange(n_tokens, device=token_mask.device)
        return token_mask[:, columns.clamp(max=n_given - 1)] | (columns >= n_given)


def _ancestors(name: str) -> list[str]:
    """Names of the modules around a layer, innermost first; the model itself is around its own output."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts) - 1, -1, -1)]
