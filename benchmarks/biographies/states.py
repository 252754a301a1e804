"""Hidden states of a causal language model for biographies: of several layers, kept on disk piece by piece.

A text is cut, and what follows it asks for the occupation: ``last`` is the state of the last token, where the model is
about to name it. ``mean`` is the mean over the tokens of the text alone, without the first: causal models park
attention there, in a state that is the same for all texts and hundreds of times as large as any other.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import datasets, smollm

#: Tokens that a text is cut to.
MAX_TOKENS = 48
#: Follows a text. Chosen among five by the model's own accuracy on 104 of the rows.
QUESTION = " In short, this person is known as a"
#: Outputs that are kept, counted from the first layer.
LAYERS = (2, 6, 10, 14, 18, 22, 26, 30)
POOLS = ("mean", "last")
#: Biographies of either gender that an occupation needs.
MIN_ROWS = 28
#: Biographies that are read, of 6,798.
ROWS = 4864
PIECE, BATCH = 256, 32


def occupations(folder: Path) -> list[str]:
    """All occupations that there are texts of."""
    labels = pd.read_parquet(folder / "biographies" / "texts.parquet", columns=["label"])["label"].astype(str)
    return sorted(labels.unique().tolist())


def table(folder: Path, n: int = ROWS) -> pd.DataFrame:
    """Biographies with text, of the occupations with enough of either gender; the first `n` of them.

    They come in turns, at random one of each occupation and gender that has any left: so the first ones are those that
    make gaps certain, for which the rarest count.
    """
    rows = pd.read_parquet(folder / "biographies" / "texts.parquet", columns=["row", "text", "label", "group"])
    rows["label"], rows["group"] = rows["label"].astype(str), rows["group"].astype(str)
    fewest = pd.crosstab(rows["label"], rows["group"]).min(axis=1)
    rows = rows[rows["label"].isin(fewest[fewest >= MIN_ROWS].index)].sample(frac=1, random_state=0)
    turn = rows.groupby(["label", "group"]).cumcount()
    return rows.iloc[np.argsort(turn, kind="stable")[:n]].reset_index(drop=True)


def prompts(tokenizer: Any, texts: list[str]) -> tuple[list[list[int]], int]:
    """Token ids of cut texts with the question after them, and how many of them are the question."""
    question = tokenizer(QUESTION).input_ids
    cut = tokenizer(texts, truncation=True, max_length=MAX_TOKENS).input_ids
    return [[*ids, *question] for ids in cut], len(question)


def padded(ids: list[list[int]], padding: int) -> dict[str, Tensor]:
    """A batch, padded on the left."""
    length = max(map(len, ids))
    tokens = torch.full((len(ids), length), padding)
    for row, own in zip(tokens, ids, strict=True):
        row[length - len(own) :] = torch.tensor(own)
    mask = torch.arange(length) >= torch.tensor([length - len(own) for own in ids])[:, None]
    return {"input_ids": tokens, "attention_mask": mask.long()}


def text_tokens(mask: Tensor, n_question: int) -> Tensor:
    """Which tokens (rows, tokens) are the text's, but for its first."""
    of_text = mask.bool()
    of_text[torch.arange(len(mask)), mask.long().argmax(1)] = False
    of_text[:, -n_question:] = False
    return of_text


def _states(model: Any, batch: dict[str, Tensor], n_question: int) -> Tensor:
    """States (rows, layers, pools, d)."""
    found: list[Tensor] = []
    of_text = text_tokens(batch["attention_mask"], n_question)
    weights = (of_text / of_text.sum(1, keepdim=True)).unsqueeze(-1)

    def keep(_layer: Any, _args: Any, output: Any) -> None:
        hidden = (output if isinstance(output, Tensor) else output[0]).float()
        found.append(torch.stack([(hidden * weights).sum(1), hidden[:, -1]], dim=1))

    hooks = [model.model.layers[layer - 1].register_forward_hook(keep) for layer in LAYERS]
    try:
        with torch.inference_mode():
            model.model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found, dim=1)


def extract(rows: pd.DataFrame, cache: Path, *, dtype: torch.dtype, minutes: float = np.inf) -> int:
    """Write the pieces that the cache lacks, for so many minutes; how many are still missing."""
    cache.mkdir(parents=True, exist_ok=True)
    files = _files(rows, cache, dtype)
    missing = [start for start, file in files.items() if not file.exists()]
    if not missing:
        return 0
    start = time.perf_counter()
    model, tokenizer = smollm.load(dtype)
    ids, n_question = prompts(tokenizer, rows["text"].tolist())
    while missing and time.perf_counter() - start < 60 * minutes:
        first = missing.pop(0)
        piece = range(first, min(first + PIECE, len(rows)))
        order = sorted(piece, key=lambda i: len(ids[i]))
        states = np.empty((len(piece), len(LAYERS), len(POOLS), model.config.hidden_size), np.float32)
        for at in range(0, len(order), BATCH):
            chosen = order[at : at + BATCH]
            batch = padded([ids[i] for i in chosen], tokenizer.pad_token_id)
            states[np.array(chosen) - first] = _states(model, batch, n_question).numpy()
        if not np.isfinite(states).all():
            msg = f"states of rows {first} to {piece[-1]} are not finite"
            raise ValueError(msg)
        partial = files[first].with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, states)
        partial.replace(files[first])
        seconds = time.perf_counter() - start
        print(f"states: {piece[-1] + 1:,} of {len(rows):,} rows, {seconds:.0f} s", file=sys.stderr, flush=True)
    return len(missing)


def digest(texts: Iterable[str], dtype: torch.dtype, *more: Any) -> str:
    """Short name of some texts and of what is done to them."""
    settings = [MAX_TOKENS, QUESTION, LAYERS, POOLS, dtype, *more]
    return hashlib.sha256("\0".join([*map(str, settings), *texts]).encode()).hexdigest()[:12]


def _files(rows: pd.DataFrame, cache: Path, dtype: torch.dtype) -> dict[int, Path]:
    """File of every piece, by its first row; another text or another setting makes another name."""
    texts = rows["text"].tolist()
    return {
        start: cache / f"rows-{start:05d}-{digest(texts[start : start + PIECE], dtype)}.npy"
        for start in range(0, len(rows), PIECE)
    }


def read(rows: pd.DataFrame, cache: Path, dtype: torch.dtype) -> NDArray[np.float32]:
    """States of all rows, (rows, layers, pools, d)."""
    return np.concatenate([np.load(file) for file in _files(rows, cache, dtype).values()])


def coded(rows: pd.DataFrame) -> tuple[datasets.Codes, datasets.Codes, list[str]]:
    """Occupations and genders (0: women) as numbers, and the names of the occupations."""
    y, names = pd.factorize(rows["label"], sort=True)
    return y.astype(np.int64), (rows["group"] == "male").to_numpy().astype(np.int64), [str(name) for name in names]


if __name__ == "__main__":
    sys.exit(extract(table(Path(sys.argv[1])), Path(sys.argv[2]), dtype=torch.bfloat16, minutes=float(sys.argv[3])) > 0)
