"""Language models in a folder or a file: loaded, their layers found, texts made into batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, cast

from . import UsageError, count

__all__ = ["LanguageModel", "load_model"]

_HOW = 'pip install "fairsteer[torch]" transformers'


class LanguageModel(NamedTuple):
    """A model, and what makes tokens of texts.

    Attributes
    ----------
    model : torch.nn.Module
        In evaluation mode.
    tokenizer : PreTrainedTokenizerBase
        It pads on the left, so that the last token is the last column.
    """

    model: Any
    tokenizer: Any

    def layers(self, asked: Iterable[str]) -> list[str]:
        """Names of layers; a number is a block of the stack, from 0, and below 0 from its end."""
        from torch import nn

        modules = dict(self.model.named_modules())
        stacks = {name: len(module) for name, module in modules.items() if isinstance(module, nn.ModuleList)}
        stack = max(stacks, key=lambda name: stacks[name], default="")
        found: dict[str, None] = {}
        for text in asked:
            if text.removeprefix("-").isdecimal():
                n, number = stacks.get(stack, 0), int(text)
                if not -n <= number < n:
                    raise UsageError(
                        f"--layers {text} is no block of the model, which has {count(n, 'block')}, from 0."
                    )
                found[f"{stack}.{number % n}"] = None
                continue
            parts = text.split(".")
            named = [
                name
                for name in modules
                if name and len(own := name.split(".")) == len(parts) and all(map(fnmatchcase, own, parts))
            ]
            if not named:
                near = f"{stack}.0" if stack else next(name for name in modules if name)
                raise UsageError(
                    f"--layers {text!r} is no layer of the model; names are such as {near!r}, with * and ? for parts "
                    "of them, and a number is a block of the stack."
                )
            found.update(dict.fromkeys(named))
        return list(found)

    def inputs(self, texts: list[str], max_tokens: int | None = None) -> Mapping[str, Any]:
        """Tokens of texts, padded, with their mask."""
        cut = {} if max_tokens is None else {"truncation": True, "max_length": max_tokens}
        made = self.tokenizer(texts, return_tensors="pt", padding=True, **cut)
        inputs = {name: made[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        if "logits_to_keep" in signature(self.model.forward).parameters:
            inputs["logits_to_keep"] = 1  # of all tokens they would take more memory than the model
        return inputs


def load_model(path: Path, *, dtype: str, device: str, generates: bool, command: str) -> LanguageModel:
    """Load a model that is on this machine; nothing is downloaded, and no code that comes with it is run.

    Parameters
    ----------
    path : Path
        A folder as ``save_pretrained`` writes it, or a .gguf file.
    dtype : str
        Type of the weights as torch names it; ``auto`` is that of the file.
    device : str
        Where it runs.
    generates : bool
        Whether it must be able to generate text.
    command : str
        Who asks, for messages.

    Returns
    -------
    LanguageModel

    Raises
    ------
    UsageError
        If a package, the folder or a part of it is missing, or the model cannot be read.
    """
    for package in ("torch", "transformers", *(("gguf", "accelerate") if path.suffix == ".gguf" else ())):
        if find_spec(package) is None:
            how = _HOW if package in ("torch", "transformers") else f"pip install {package}"
            raise UsageError(f"fairsteer {command} needs {package}: {how} brings it.")
    if not path.exists():
        raise UsageError(f"there is no model {path}: --model is a folder with config.json, or a .gguf file.")
    if path.is_file() and path.suffix != ".gguf":
        raise UsageError(f"the model {path} is neither a folder with config.json nor a .gguf file.")
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder, where = path, cast("dict[str, Any]", {"local_files_only": True})
    if path.is_file():
        folder, where = path.parent, {**where, "gguf_file": path.name}
    try:
        config = AutoConfig.from_pretrained(folder, **where)
        speaks = type(config) in AutoModelForCausalLM._model_mapping
        if generates and not speaks:
            raise UsageError(f"the model {path} is a {config.model_type}, which generates no text.")
        kind = AutoModelForCausalLM if speaks else AutoModel
        model = kind.from_pretrained(folder, dtype=dtype if dtype == "auto" else getattr(torch, dtype), **where)
        tokenizer = AutoTokenizer.from_pretrained(folder, **where)
        model.to(device)
    except UsageError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"the model {path} cannot be loaded: {lines[0].rstrip('.')}.") from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return LanguageModel(model.eval(), tokenizer)
