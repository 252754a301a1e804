"""``python -m benchmarks.generation``: a language model steered towards a concept, as far for women as for men?

SmolLM2-135M-Instruct, sentiment and formality. Directions are fitted to hidden states of sentences that show the
concept or its opposite, told of women and of men; a hook adds them in one layer to every token.

``shift``: by how much steering raises the log-odds that the next word is one of the concept's, not one of its
opposite's: what the model would say, without the chance of sampling. ``ratio``: women's over men's. ``judge``: what a
classifier on a sentence encoder's embeddings makes of sampled continuations, in log-odds. ``perplexity`` of these by
the model as it is, without steering; ``distinct``: distinct pairs of words over all pairs. Intervals: 1,000 bootstrap
samples of the pairs of prompts, 95 %.

"Equalised by the output" has the directions of `ConceptSteering`, each group's multiplied so that the shift is the same
on prompts that no other number here is from.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from torch import Tensor, nn

from benchmarks import encoder, prompts, smollm
from benchmarks.prompts import Concept
from fairsteer.baselines import LeaceTransformer
from fairsteer.concepts import ConceptSteering
from fairsteer.torch import SteeringModule, steering_hooks

Doubles = NDArray[np.float64]

OUTPUT = Path(__file__).parent / "results" / "generation"
#: Blocks that come before the hook, and the strengths, in deviations of the probes' scores.
LAYER = 15
STRENGTHS = (4.0, 8.0, 16.0)
BATCH = 40
NEW_TOKENS, TEMPERATURE = 20, 0.8
NONE, ONE, OURS, EQUALISED = "nothing", "one direction", "ConceptSteering", "ConceptSteering, equalised by the output"
SAMPLED = (ONE, "difference in means", OURS, EQUALISED)


class Push(nn.Module):
    """A direction for each group, after a map of all states where there is one."""

    directions: Tensor

    def __init__(self, directions: Doubles, before: SteeringModule | None = None) -> None:
        super().__init__()
        self.before, self.strength = before, 1.0
        self.register_buffer("directions", torch.tensor(directions, dtype=torch.float32))

    def forward(self, hidden: Tensor, *, sensitive_features: Any) -> Tensor:
        states = hidden if self.before is None else self.before(hidden)
        push = self.strength * self.directions[sensitive_features]
        return (states.float() + push[:, None]).to(hidden.dtype)

    def scaled(self, factors: Doubles) -> Push:
        return Push(self.directions.numpy() * factors[:, None], self.before)


class Speaker(NamedTuple):
    """The model, and what is asked of it."""

    model: Any
    tokenizer: Any

    def batches(self, texts: Sequence[str], groups: Sequence[int]) -> Iterator[tuple[NDArray[Any], Any, Tensor]]:
        """Positions, inputs and groups of texts of like length."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            made = self.tokenizer([texts[i] for i in rows], return_tensors="pt", padding=True)
            inputs = {name: made[name] for name in ("input_ids", "attention_mask")}
            yield rows, inputs, torch.tensor([groups[i] for i in rows])

    def hooked(self, push: Push | None, groups: Tensor, strength: float) -> Any:
        layers = {} if push is None else {f"model.layers.{LAYER - 1}": push}
        return steering_hooks(
            self.model, layers, sensitive_features=groups, strength=None if push is None else strength
        )

    def states(self, texts: Sequence[str]) -> Doubles:
        """Mean states of the layer over the tokens after the first, where attention is parked."""
        found: list[Tensor] = []
        out = np.empty((len(texts), self.model.config.hidden_size))
        layer = self.model.model.layers[LAYER - 1]
        hook = layer.register_forward_hook(lambda _m, _a, o: found.append(o if isinstance(o, Tensor) else o[0]))
        try:
            for rows, inputs, _ in self.batches(texts, [0] * len(texts)):
                found.clear()
                with torch.inference_mode():
                    self.model.model(**inputs)
                mask = inputs["attention_mask"].float()
                mask[torch.arange(len(mask)), mask.argmax(1)] = 0
                out[rows] = ((found[0].float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()
        finally:
            hook.remove()
        return out

    def log_odds(
        self,
        texts: Sequence[str],
        groups: Sequence[int],
        words: tuple[list[int], list[int]],
        push: Push | None,
        s: float,
    ) -> Doubles:
        """Log-odds of the concept's words against the opposite's as the next one."""
        out = np.empty(len(texts))
        for rows, inputs, of_rows in self.batches(texts, groups):
            with torch.inference_mode(), self.hooked(push, of_rows, s):
                scores = self.model(**inputs, logits_to_keep=1).logits[:, -1].double()
            sums = [torch.logsumexp(scores[:, ids], 1) for ids in words]
            out[rows] = (sums[1] - sums[0]).numpy()
        return out

    def sampled(
        self, texts: Sequence[str], groups: Sequence[int], push: Push | None, s: float
    ) -> tuple[list[str], Doubles]:
        """Continuations, and the mean negative log-likelihood of their tokens without steering."""
        said, loss = [""] * len(texts), np.empty(len(texts))
        torch.manual_seed(0)
        for rows, inputs, of_rows in self.batches(texts, groups):
            with torch.inference_mode():
                with self.hooked(push, of_rows, s):
                    tokens = self.model.generate(
                        **inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=True,
                        temperature=TEMPERATURE, pad_token_id=self.tokenizer.pad_token_id,
                    )  # fmt: skip
                mask = nn.functional.pad(inputs["attention_mask"], (0, NEW_TOKENS), value=1)
                scores = self.model(tokens, attention_mask=mask, logits_to_keep=NEW_TOKENS + 1).logits[:, :-1].float()
                new = tokens[:, -NEW_TOKENS:]
                losses = nn.functional.cross_entropy(scores.transpose(1, 2), new, reduction="none")
            loss[rows] = losses.double().mean(1).numpy()
            for i, text in zip(rows, self.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                said[i] = text
        return said, loss


def pushes(states: Doubles, shown: NDArray[Any], group: NDArray[Any]) -> dict[str, Push]:
    """What each method adds; all of the same mean length."""
    one = ConceptSteering().fit(states, shown, sensitive_features=np.zeros_like(group)).directions_[1, 0]
    length = np.linalg.norm(one)
    ours = ConceptSteering().fit(states, shown, sensitive_features=group).directions_[1]

    def difference(rows: Doubles, chosen: NDArray[Any]) -> Doubles:
        found: Doubles = rows[chosen & (shown == 1)].mean(axis=0) - rows[chosen & (shown == 0)].mean(axis=0)
        return found * (length / np.linalg.norm(found))

    everyone = np.ones(len(states), dtype=bool)
    erase = LeaceTransformer().fit(states, shown, sensitive_features=group)
    erased = np.asarray(erase.transform(states))
    of_group = np.stack([difference(states, group == a) for a in (0, 1)])
    return {
        ONE: Push(np.stack([one, one])),
        "difference in means": Push(np.stack([difference(states, everyone)] * 2)),
        "difference in means of each group": Push(of_group),
        "LEACE, difference in means": Push(np.stack([difference(erased, everyone)] * 2), SteeringModule(erase)),
        OURS: Push(ours),
    }


class Judge:
    """Log-odds of a concept, by a logistic regression on embeddings of the told ends."""

    def __init__(self, concept: Concept, embed: Any) -> None:
        ends = [*concept.without, *concept.shown]
        told = [f"{pronoun} {end}" for end in ends for pronoun in ("She", "He")]
        shown = np.repeat([0, 1], [2 * len(concept.without), 2 * len(concept.shown)])
        self._embed, rows = embed, embed(told)
        model = LogisticRegression(C=10.0)
        of_end = np.repeat(np.arange(len(ends)), 2)
        self.accuracy = float((cross_val_predict(model, rows, shown, groups=of_end, cv=GroupKFold(6)) == shown).mean())
        self._model = model.fit(rows, shown)

    def __call__(self, texts: Sequence[str]) -> Doubles:
        return np.asarray(self._model.decision_function(self._embed(list(texts))))


def embedder() -> Any:
    """Embeddings of texts by the sentence encoder."""
    model, tokenizer = encoder.load()

    def embed(texts: list[str]) -> Doubles:
        out = np.empty((len(texts), 384))
        for rows, inputs in encoder.encoded(tokenizer, [text.strip() or "." for text in texts], 64):
            with torch.inference_mode():
                out[rows] = model(**inputs).numpy()
        return out

    return embed


def interval(pairs: Doubles, statistic: Any, draws: int = 1000) -> tuple[float, float, float]:
    """Statistic of rows (n, …), and its bootstrap interval."""
    rng = np.random.default_rng(0)
    samples = [statistic(pairs[rng.integers(len(pairs), size=len(pairs))]) for _ in range(draws)]
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(statistic(pairs)), float(low), float(high)


def ratio(pairs: Doubles) -> float:
    women, men = pairs.mean(axis=0)
    return float(women / men)


def distinct(texts: Sequence[str]) -> float:
    found = [pair for text in texts for pair in zip(text.split()[:-1], text.split()[1:], strict=True)]
    return len(set(found)) / max(1, len(found))


def words_of(tokenizer: Any, concept: Concept) -> tuple[list[int], list[int]]:
    """Tokens of the words, as they stand after the prompts."""
    before = "" if concept.prompts[0].endswith('"') else " "
    ids = [[tokenizer(before + word).input_ids for word in words] for words in (concept.words_without, concept.words)]
    assert all(len(one) == 1 for words in ids for one in words), "every word must be one token"
    return [one[0] for one in ids[0]], [one[0] for one in ids[1]]


def equalised(push: Push, shift: Any, steps: int = 2) -> Push:
    """Multiply a push so that the shift is the same for both groups: the mean of what it is as it is."""
    factors, now = np.ones(2), push
    target = None
    for _ in range(steps):
        found = shift(now)
        target = found.mean() if target is None else target
        factors = factors * target / found
        now = push.scaled(factors)
    return now


def run_concept(
    speaker: Speaker,
    concept: Concept,
    n_pairs: int,
    n_sampled: int,
    strengths: Sequence[float],
    cache: Path | None,
    embed: Any,
) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(0)
    told = prompts.told(concept)
    shown, group = np.array([k for _, k, _ in told]), np.array([a for *_, a in told])
    found = pushes(_kept(cache, concept, lambda: speaker.states([text for text, *_ in told])), shown, group)
    pairs = prompts.prompts(concept)
    order = rng.permutation(len(pairs))
    measured, tuned = ([pairs[i] for i in order[at]] for at in (slice(n_pairs), slice(-n_pairs // 2, None)))
    words = words_of(speaker.tokenizer, concept)
    judge = Judge(concept, embed)

    def odds(of: Sequence[tuple[str, str]], push: Push | None = None, s: float = 0.0) -> Doubles:
        flat = [text for pair in of for text in pair]
        return speaker.log_odds(flat, [0, 1] * len(of), words, push, s).reshape(-1, 2)

    plain, plain_tuned = odds(measured), odds(tuned)
    few = measured[:n_sampled]

    def sampled(push: Push | None, s: float) -> dict[str, Any]:
        flat = [text for pair in few for text in pair]
        said, loss = speaker.sampled(flat, [0, 1] * len(few), push, s)
        out = {"perplexity": float(np.exp(loss.mean())), "distinct": distinct(said), "example": said[0].strip()}
        return out | {"judge": judge(said).reshape(-1, 2), "judge accuracy": judge.accuracy}

    before = sampled(None, 0.0)
    base = before.pop("judge")
    head = {"concept": concept.name, "pairs": len(measured)}
    yield {**head, "method": NONE, "strength": 0.0, **before, "log-odds, women": plain[:, 0].mean(),
           "log-odds, men": plain[:, 1].mean()}  # fmt: skip
    for s in strengths:
        found[EQUALISED] = equalised(found[OURS], lambda push, s=s: (odds(tuned, push, s) - plain_tuned).mean(axis=0))
        first = (ONE, OURS, EQUALISED)
        for name in (*first, *(name for name in found if name not in first)):
            push = found[name]
            shift = odds(measured, push, s) - plain
            row = {**head, "method": name, "strength": s}
            row["shift, women"], row["shift, men"] = shift.mean(axis=0)
            row["ratio"], row["ratio, low"], row["ratio, high"] = interval(shift, ratio)
            if name in SAMPLED:
                extra = sampled(push, s)
                moved = extra.pop("judge") - base
                for a, who in enumerate(prompts.GROUPS):
                    key = f"judge, {who}"
                    row[key], row[f"{key}, low"], row[f"{key}, high"] = interval(moved[:, a], lambda v: float(v.mean()))
                row |= extra
            yield row


def _kept(cache: Path | None, concept: Concept, make: Callable[[], Doubles]) -> Doubles:
    """States that are made once, where there is a folder to keep them."""
    if cache is None:
        return make()
    file = cache / f"told-{concept.name}.npy"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        np.save(file, make())
    found: Doubles = np.load(file)
    return found


def write(folder: Path, table: pd.DataFrame, command: str) -> None:
    """The table, in which what was measured before stays where it was not measured again, and the page."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "results.csv").exists():
        before = pd.read_csv(folder / "results.csv")
        again = set(zip(table["concept"], table["strength"], strict=True))
        stays = [key not in again for key in zip(before["concept"], before["strength"], strict=True)]
        table = pd.concat([before[stays], table]).sort_values(["concept", "strength"], kind="stable")
    table.to_csv(folder / "results.csv", index=False, float_format="%.4f", lineterminator="\n")
    text = [
        "# A language model steered towards a concept, for women and men",
        "",
        f"    {command}",
        "",
        "Written by this command; what to make of it is in",
        "[docs/language-models.md](../../../docs/language-models.md).",
        *((__doc__ or "").partition("\n\n")[2].replace("``", "*").strip().splitlines()),
        "",
    ]
    for concept, own in table.groupby("concept", sort=False):
        text += [f"## {concept}", ""]
        text += [f"Accuracy of the judge on ends that it was not fitted to: {own['judge accuracy'].max():.2f}.", ""]
        text += [
            "| strength | method | shift, women | men | ratio | judge, women | men | perplexity | distinct |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for _, row in own.iterrows():
            text.append("| " + " | ".join(_cells(row)) + " |")
        text.append("")
    if table["strength"].nunique() > 1:
        picture(table, folder / "fluency.png")
        text += ["![Concept shift against perplexity](fluency.png)", ""]
    (folder / "README.md").write_text("\n".join(text))


def _cells(row: pd.Series) -> list[str]:
    def number(key: str, digits: int = 2) -> str:
        value = row.get(key, np.nan)
        if pd.isna(value):
            return ""
        low, high = row.get(f"{key}, low", np.nan), row.get(f"{key}, high", np.nan)
        between = "" if pd.isna(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
        return f"{value:.{digits}f}{between}"

    head = [f"{row['strength']:g}" if row["strength"] else "", row["method"]]
    keys = ("shift, women", "shift, men", "ratio", "judge, women", "judge, men")
    return [*head, *map(number, keys), number("perplexity", 1), number("distinct", 3)]


def picture(table: pd.DataFrame, path: Path) -> None:
    """Shift of women and of men over the perplexity, a panel for each concept."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(table["concept"]))
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.4), squeeze=False)
    colours = dict(zip(SAMPLED, ("#999999", "#E69F00", "#56B4E9", "#0072B2"), strict=True))
    for name, ax in zip(names, axes[0], strict=True):
        own = table[(table["concept"] == name) & table["perplexity"].notna()]
        start = own[own["method"] == NONE].iloc[0]
        for method, colour in colours.items():
            line = own[own["method"] == method].sort_values("strength")
            x = [start["perplexity"], *line["perplexity"]]
            for who, style in zip(prompts.GROUPS, ("-o", "--s"), strict=True):
                ax.plot(x, [0, *line[f"shift, {who}"]], style, color=colour, markersize=4, linewidth=1,
                        label=method if who == "women" else None)  # fmt: skip
        ax.set_title(f"{name} (women: full lines, men: dashed)", fontsize=8)
        ax.set_xlabel("perplexity without steering")
    axes[0][0].set_ylabel("concept shift, log-odds")
    axes[0][0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--pairs", type=int, default=120, metavar="N", help="pairs of prompts (default: 120)")
    parser.add_argument("--sampled", type=int, default=40, metavar="N", help="of them are continued (default: 40)")
    parser.add_argument("--concept", choices=[concept.name for concept in prompts.CONCEPTS], help="only this one")
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS, metavar="S", help="(default: 4 8 16)")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep the states of told sentences here")
    parser.add_argument("--dtype", default="bfloat16", help="of the model (default: bfloat16)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FOLDER")
    arguments = parser.parse_args()
    start = time.perf_counter()
    speaker = Speaker(*smollm.load(getattr(torch, arguments.dtype)))
    embed = embedder()
    command = f"python -m benchmarks.generation --pairs {arguments.pairs} --sampled {arguments.sampled}"
    rows: list[dict[str, Any]] = []
    for concept in prompts.CONCEPTS:
        if arguments.concept not in (None, concept.name):
            continue
        settings = arguments.pairs, arguments.sampled, arguments.strengths, arguments.cache
        for row in run_concept(speaker, concept, *settings, embed):
            rows.append(row)
            ratio_text = f"{row['ratio']:.3f}" if "ratio" in row else ""
            seconds = time.perf_counter() - start
            shown = [f"{row[key]:.2f}" for key in ("shift, women", "shift, men", "perplexity") if key in row]
            what = f"{seconds:5.0f} s {row['concept']} {row['strength']:g} {row['method']} {ratio_text}"
            print(what, *shown, row.get("example", ""), file=sys.stderr, flush=True)
            write(arguments.output, pd.DataFrame(rows), command)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{time.perf_counter() - start:.0f} s in all, a peak of {memory:.2f} GiB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
