"""``python -m benchmarks.pronouns``: which pronoun a language model expects after an occupation, steered or not.

SmolLM2-135M-Instruct reads "The nurse said that" and says how likely "she" and "he" are as the next word. Maps are
fitted to the states of such beginnings where a sentence before them tells the pronoun ("She is a nurse."): class is the
occupation, group the pronoun. They steer beginnings that tell nothing, with other verbs, by a group that is inferred
from the state, at every token; LEACE needs no group.

``log-ratio``: logarithm of the likelihoods' ratio, mean of its absolute value over the beginnings; ``spread``: its
standard deviation over the occupations, which a bias common to all leaves out; ``she``: share of beginnings where "she"
is the likelier. ``neutral text``: change of the mean negative log-likelihood of a token of biographies that nothing was
fitted to, every token steered. Intervals: 1,000 bootstrap samples of the occupations, for neutral text of the
biographies, 95 %.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import datasets, smollm
from benchmarks.prompts import OCCUPATIONS, PRONOUN_FRAMES
from fairsteer.baselines import CovarianceMatchingTransformer, LeaceTransformer, MeanMatchingTransformer
from fairsteer.torch import SteeringModule, steering_hooks
from fairsteer.transformer import FairSteeringTransformer

Doubles = NDArray[np.float64]

OUTPUT = Path(__file__).parent / "results" / "pronouns"
LAYERS = (10, 15, 20, 25)
PRONOUNS = ("She", "He")
BATCH, MAX_TOKENS = 64, 64
COLUMNS = ("log-ratio", "spread", "she", "neutral text")


def beginnings(frames: Sequence[str], before: str = "") -> list[str]:
    """Beginnings for every occupation and frame, in this order."""
    out = []
    for occupation in OCCUPATIONS:
        article = "an" if occupation[0] in "aeiou" else "a"
        start = f"{before} is {article} {occupation}. " if before else ""
        out += [start + frame.format(occupation) for frame in frames]
    return out


def batches(tokenizer: Any, texts: Sequence[str], size: int) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    order = np.argsort([len(text) for text in texts], kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        made = tokenizer(
            [texts[i] for i in rows], return_tensors="pt", padding=True, truncation=True, max_length=MAX_TOKENS
        )
        yield rows, {name: made[name] for name in ("input_ids", "attention_mask")}


def last_states(model: Any, tokenizer: Any, texts: Sequence[str], layers: Sequence[int]) -> Doubles:
    """States of the last token, (layers, texts, d)."""
    out = np.empty((len(layers), len(texts), model.config.hidden_size))
    for rows, inputs in batches(tokenizer, texts, BATCH):
        with torch.inference_mode():
            # The last of these has gone through the norm after the last layer, which is none of those asked for.
            found = model.model(**inputs, output_hidden_states=True).hidden_states
        for i, layer in enumerate(layers):
            out[i, rows] = found[layer][:, -1].double().numpy()
    return out


def log_ratios(model: Any, tokenizer: Any, texts: Sequence[str]) -> Doubles:
    """Log-likelihood of "she" less that of "he"."""
    she, he = (tokenizer(f" {word.lower()}").input_ids[0] for word in PRONOUNS)
    out = np.empty(len(texts))
    for rows, inputs in batches(tokenizer, texts, BATCH):
        with torch.inference_mode():
            scores = model(**inputs, logits_to_keep=1).logits[:, -1].double()
        out[rows] = (scores[:, she] - scores[:, he]).numpy()
    return out


def losses(model: Any, tokenizer: Any, texts: Sequence[str]) -> Doubles:
    """Negative log-likelihood of every text, a sum over its tokens."""
    out = np.empty(len(texts))
    for rows, inputs in batches(tokenizer, texts, 16):
        mask = inputs["attention_mask"]
        targets = inputs["input_ids"].masked_fill(mask == 0, -100)[:, 1:]
        with torch.inference_mode():
            scores = model(**inputs).logits[:, :-1].float()
        loss = nn.functional.cross_entropy(scores.transpose(1, 2), targets, reduction="none", ignore_index=-100)
        loss = torch.where(mask[:, :-1] == 0, 0, loss)  # the first token follows padding
        out[rows] = loss.double().sum(1).numpy()
    return out


def changes() -> dict[str, Any]:
    return {
        "mean matching": MeanMatchingTransformer(unknown_group="infer"),
        "covariance matching": CovarianceMatchingTransformer(unknown_group="infer"),
        "LEACE": LeaceTransformer(),
        "ours, affine": FairSteeringTransformer(map_type="affine", unknown_group="infer"),
        "ours, translations": FairSteeringTransformer(map_type="translation", unknown_group="infer"),
    }


def measured(ratios: Doubles, draws: int = 1000) -> dict[str, float]:
    """Measures of log-ratios (occupations, frames), with intervals."""
    rng = np.random.default_rng(0)
    n = len(ratios)

    def of(own: Doubles) -> list[float]:
        return [float(np.abs(own).mean()), float(own.mean(axis=1).std()), float((own > 0).mean())]

    values = of(ratios)
    low, high = np.percentile([of(ratios[rng.integers(n, size=n)]) for _ in range(draws)], [2.5, 97.5], axis=0)
    out: dict[str, float] = {}
    for i, name in enumerate(COLUMNS[:3]):
        out |= {name: values[i], f"{name}, low": float(low[i]), f"{name}, high": float(high[i])}
    return out


def change_of_text(after: Doubles, before: Doubles, draws: int = 1000) -> dict[str, float]:
    rng = np.random.default_rng(0)
    n = len(before)

    def of(rows: Any) -> float:
        return float(after[rows].sum() / before[rows].sum() - 1)

    low, high = np.percentile([of(rng.integers(n, size=n)) for _ in range(draws)], [2.5, 97.5])
    return {"neutral text": of(slice(None)), "neutral text, low": float(low), "neutral text, high": float(high)}


def run(folder: Path, n_texts: int, dtype: torch.dtype, layers: Sequence[int]) -> Iterator[dict[str, Any]]:
    model, tokenizer = smollm.load(dtype)
    fitted_to, tested = PRONOUN_FRAMES[: len(PRONOUN_FRAMES) // 2], PRONOUN_FRAMES[len(PRONOUN_FRAMES) // 2 :]
    told = [beginnings(fitted_to, before) for before in PRONOUNS]
    states = last_states(model, tokenizer, [*told[0], *told[1]], layers)
    occupation = np.tile(np.repeat(np.arange(len(OCCUPATIONS)), len(fitted_to)), 2)
    pronoun = np.repeat(PRONOUNS, len(told[0]))
    new = beginnings(tested)
    table = pd.read_parquet(folder / "biographies" / "texts.parquet", columns=["text"])
    texts = table["text"].sample(n_texts, random_state=1).tolist()
    plain = losses(model, tokenizer, texts)
    shape = (len(OCCUPATIONS), len(tested))
    yield {"layer": 0, "method": "nothing", **measured(log_ratios(model, tokenizer, new).reshape(shape))}
    for i, layer in enumerate(layers):
        for name, change in changes().items():
            module = SteeringModule(change.fit(states[i], occupation, sensitive_features=pronoun))
            with steering_hooks(model, {f"model.layers.{layer - 1}": module}):
                found = measured(log_ratios(model, tokenizer, new).reshape(shape))
                found |= change_of_text(losses(model, tokenizer, texts), plain)
            yield {"layer": layer, "method": name, **found}


def write(folder: Path, table: pd.DataFrame, n_texts: int, seconds: float, memory: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "results.csv", index=False, float_format="%.5f", lineterminator="\n")
    text = [
        "# Pronouns after occupations",
        "",
        f"    python -m benchmarks.pronouns --texts {n_texts}",
        "",
        "Written by this command; what to make of it is in",
        "[docs/language-models.md](../../../docs/language-models.md).",
        f"{seconds:.0f} s on a shared machine, one thread, a peak of {memory:.2f} GiB.",
        "",
        *(__doc__ or "").partition("\n\n")[2].replace("``", "*").strip().splitlines(),
        "",
        f"{len(OCCUPATIONS)} occupations, {len(PRONOUN_FRAMES) // 2} verbs to fit to and as many others to",
        f"measure, {n_texts} biographies.",
        "",
        "| layer | method | log-ratio | spread | she | neutral text |",
        "|---|---|---|---|---|---|",
    ]
    for _, row in table.iterrows():
        cells = [str(row["layer"] or ""), row["method"]]
        for name in COLUMNS:
            value, low, high = (row.get(key, np.nan) for key in (name, f"{name}, low", f"{name}, high"))
            kind = "+.1%" if name == "neutral text" else ".0%" if name == "she" else ".2f"
            cells.append("" if pd.isna(value) else f"{value:{kind}} [{low:{kind}}, {high:{kind}}]")
        text.append("| " + " | ".join(cells) + " |")
    (folder / "README.md").write_text("\n".join([*text, ""]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pronouns", description="Pronouns after occupations.")
    datasets.add_data_option(parser)
    parser.add_argument("--texts", type=int, default=100, metavar="N", help="biographies (default: 100)")
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS, metavar="N", help="steered, one at a time")
    parser.add_argument("--dtype", default="bfloat16", help="of the model (default: bfloat16)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("this needs real data: name their folder by --data or the variable FAIRSTEER_DATA")
    start = time.perf_counter()
    rows = []
    for row in run(arguments.data, arguments.texts, getattr(torch, arguments.dtype), arguments.layers):
        rows.append(row)
        shown = [f"{row[name]:.3f}" for name in COLUMNS if name in row]
        print(f"{time.perf_counter() - start:.0f} s", row["layer"], row["method"], *shown, file=sys.stderr, flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    write(arguments.output, pd.DataFrame(rows), arguments.texts, time.perf_counter() - start, memory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
