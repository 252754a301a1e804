"""``python -m benchmarks.generation``: a language model steered towards a concept, as far for women as for men?

SmolLM2-135M-Instruct, sentiment and formality. Directions are fitted to hidden states of sentences that show the
concept or its opposite, told of women and of men; a hook adds them after one block to every token.

``shift``: by how much steering raises the log-odds that the next word is one of the concept's, not one of its
opposite's: what the model would say, without the chance of sampling. ``ratio``: women's over men's. ``perplexity``: of
sampled continuations, by the model as it is, without steering; at every token the expectation over what the steered
model might say next, which is less noisy than what it says. ``more``: perplexity over that of what the model says
without steering. ``distinct``: distinct pairs of words over all pairs. ``judge``: what a classifier on a sentence
encoder's embeddings makes of the continuations, in log-odds. Intervals: 1,000 bootstrap samples of the pairs of
prompts, 95 %.

"Equalised by the output" is `ConceptSteering.equalize`: the shifts of each group at five strengths are measured on one
half of the prompts, and all other numbers are of the other half. "Mean matching" and "LEACE" change all states so that
they tell nothing of the gender, on average or in any linear way, and then add the difference in means.
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
from fairsteer.baselines import LeaceTransformer, MeanMatchingTransformer
from fairsteer.concepts import ConceptSteering
from fairsteer.torch import ConceptSteeringModule, SteeringModule, steering_hooks

Doubles = NDArray[np.float64]

OUTPUT = Path(__file__).parent / "results" / "generation"
#: Blocks that come before the hook, and the strengths, in deviations of the probes' scores.
LAYER = 15
STRENGTHS = (3.0, 6.0, 9.0)
#: Shifts are measured, to be equalised, at those, at this part of the least and at this multiple of the largest.
CALIBRATED = (0.5, 1.3)
BATCH = 60
NEW_TOKENS, TEMPERATURE = 16, 0.8
NONE, ONE = "nothing", "one direction, difference in means"
OURS, EQUALISED = "ConceptSteering", "ConceptSteering, equalised by the output"
SAMPLED = (ONE, OURS, EQUALISED)


class Push(nn.Module):
    """A direction for each group, after a map of all states where there is one."""

    directions: Tensor

    def __init__(self, directions: Doubles, before: SteeringModule | None = None) -> None:
        super().__init__()
        self.before, self.strength = before, 1.0
        self.register_buffer("directions", torch.tensor(directions, dtype=torch.float32))

    def forward(self, hidden: Tensor, *, sensitive_features: Any) -> Tensor:
        states = hidden if self.before is None else self.before(hidden, sensitive_features=sensitive_features)
        push = self.strength * self.directions[sensitive_features]
        return (states.float() + push[:, None]).to(hidden.dtype)


Steering = Push | ConceptSteeringModule | None


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

    def states(self, texts: Sequence[str]) -> Doubles:
        """Mean states over the tokens after the first, where attention is parked."""
        out = np.empty((len(texts), self.model.config.hidden_size))
        for rows, inputs, _ in self.batches(texts, [0] * len(texts)):
            found = smollm.states_after(self.model, LAYER, **inputs).float()
            mask = inputs["attention_mask"].float()
            mask[torch.arange(len(mask)), mask.argmax(1)] = 0
            out[rows] = ((found * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()
        return out

    def read(self, texts: Sequence[str], groups: Sequence[int]) -> list[Read]:
        """Read texts up to the block after which they are steered."""
        return [
            Read(rows, smollm.states_after(self.model, LAYER, **inputs), inputs["attention_mask"], of_rows)
            for rows, inputs, of_rows in self.batches(texts, groups)
        ]

    def log_odds(self, read: Sequence[Read], words: tuple[list[int], list[int]], push: Steering, s: float) -> Doubles:
        """Log-odds of the concept's words against the opposite's as the next one."""
        out = np.empty(sum(len(batch.rows) for batch in read))
        head = [self.model.lm_head.weight[ids].double() for ids in words]  # of all words it would take longest
        for batch in read:
            with (
                torch.inference_mode(),
                smollm.above(self.model, LAYER) as entrance,
                steered(self.model, entrance, push, batch.groups, s),
            ):
                found = self.model.model(inputs_embeds=batch.states, attention_mask=batch.mask, use_cache=False)
                last = found.last_hidden_state[:, -1].double()
                without, shown = (torch.logsumexp(last @ weights.T, 1) for weights in head)
            out[batch.rows] = (shown - without).numpy()
        return out

    def sampled(
        self, texts: Sequence[str], groups: Sequence[int], push: Steering, s: float
    ) -> tuple[list[str], Doubles]:
        """Continuations, and the mean negative log-likelihood, without steering, of what is said next."""
        said, loss = [""] * len(texts), np.empty(len(texts))
        torch.manual_seed(0)
        for rows, inputs, of_rows in self.batches(texts, groups):
            with torch.inference_mode():
                with steered(self.model, f"model.layers.{LAYER - 1}", push, of_rows, s):
                    made = self.model.generate(
                        **inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=True, top_k=0,
                        top_p=1.0, temperature=TEMPERATURE, pad_token_id=self.tokenizer.pad_token_id,
                        output_scores=True, return_dict_in_generate=True,
                    )  # fmt: skip
                mask = nn.functional.pad(inputs["attention_mask"], (0, NEW_TOKENS), value=1)
                found = self.model(
                    made.sequences, attention_mask=mask, use_cache=False, logits_to_keep=NEW_TOKENS + 1
                ).logits  # fmt: skip
                total = torch.zeros(len(rows), dtype=torch.float64)
                for t, scores in enumerate(made.scores):  # of the temperature, as they were sampled from
                    plain = found[:, t].float().log_softmax(1).clamp(min=-100)
                    total -= (scores.float().softmax(1) * plain).sum(1).double()
            loss[rows] = (total / NEW_TOKENS).numpy()
            new = made.sequences[:, -NEW_TOKENS:]
            for i, text in zip(rows, self.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                said[i] = text
        return said, loss


class Read(NamedTuple):
    """Texts of like length, read up to a block."""

    rows: NDArray[Any]
    states: Tensor
    mask: Tensor
    groups: Tensor


def steered(model: Any, layer: str, push: Steering, groups: Tensor, strength: float) -> Any:
    layers = {} if push is None else {layer: push}
    return steering_hooks(model, layers, sensitive_features=groups, strength=None if push is None else strength)


def pushes(states: Doubles, shown: NDArray[Any], group: NDArray[Any]) -> tuple[dict[str, Push], ConceptSteering]:
    """What the other methods add, all of the length that ours has on average, and ours."""
    ours = ConceptSteering().fit(states, shown, sensitive_features=group)
    length = np.linalg.norm(ours.directions_[1], axis=1).mean()

    def difference(rows: Doubles) -> Doubles:
        found: Doubles = rows[shown == 1].mean(axis=0) - rows[shown == 0].mean(axis=0)
        return np.stack([found * (length / np.linalg.norm(found))] * 2)

    def after(change: Any) -> Push:
        change.fit(states, shown, sensitive_features=group)
        changed = np.asarray(change.transform(states, sensitive_features=group))
        return Push(difference(changed), SteeringModule(change))

    return {
        ONE: Push(difference(states)),
        "mean matching, difference in means": after(MeanMatchingTransformer()),
        "LEACE, difference in means": after(LeaceTransformer()),
    }, ours


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
    # Half of the subjects, in all their frames, with the concept and without, in both groups.
    told = [row for i, row in enumerate(prompts.told(concept)) if i // 16 % 2 == 0]
    shown, group = np.array([k for _, k, _ in told]), np.array([a for *_, a in told])
    found, ours = pushes(_kept(cache, concept, lambda: speaker.states([text for text, *_ in told])), shown, group)
    pairs = prompts.prompts(concept)
    order = rng.permutation(len(pairs))[: 2 * n_pairs]
    words = words_of(speaker.tokenizer, concept)
    judge = Judge(concept, embed)

    def read(half: NDArray[Any]) -> Callable[[Steering, float], Doubles]:
        flat = [text for i in half for text in pairs[i]]
        texts = speaker.read(flat, [0, 1] * len(half))
        return lambda push, s: speaker.log_odds(texts, words, push, s).reshape(-1, 2)

    of_calibration, of_measured = (read(order[half::2]) for half in (0, 1))
    plain = of_measured(None, 0.0)
    few = [text for i in order[1::2][:n_sampled] for text in pairs[i]]

    def sampled(push: Steering, s: float) -> dict[str, Any]:
        said, loss = speaker.sampled(few, [0, 1] * (len(few) // 2), push, s)
        return {
            "perplexity": float(np.exp(loss.mean())), "distinct": distinct(said), "example": said[0].strip(),
            "judge": judge(said).reshape(-1, 2), "loss": loss.reshape(-1, 2).mean(axis=1),
            "judge accuracy": judge.accuracy,
        }  # fmt: skip

    before = sampled(None, 0.0)
    base, base_loss = before.pop("judge"), before.pop("loss")
    head = {"concept": concept.name, "pairs": len(plain), "sampled": n_sampled}
    yield {**head, "method": NONE, "strength": 0.0, **before, "log-odds, women": plain[:, 0].mean(),
           "log-odds, men": plain[:, 1].mean()}  # fmt: skip
    methods: dict[str, Push | ConceptSteeringModule] = {**found, OURS: ConceptSteeringModule(ours)}
    start = of_calibration(None, 0.0)
    measured = sorted({min(strengths) * CALIBRATED[0], *strengths, max(strengths) * CALIBRATED[1]})
    shifts = [(of_calibration(methods[OURS], s) - start).mean(axis=0) for s in measured]
    methods[EQUALISED] = ConceptSteeringModule(ours.equalize(measured, shifts))
    for s in strengths:
        for name, push in methods.items():
            shift = of_measured(push, s) - plain
            row = {**head, "method": name, "strength": s}
            row["shift, women"], row["shift, men"] = shift.mean(axis=0)
            row["ratio"], row["ratio, low"], row["ratio, high"] = interval(shift, ratio)
            if name == EQUALISED:
                row["strength, women"], row["strength, men"] = ours.group_strengths(s)
            if name in SAMPLED:
                extra = sampled(push, s)
                moved, lost = extra.pop("judge") - base, extra.pop("loss") - base_loss
                for a, who in enumerate(prompts.GROUPS):
                    key = f"judge, {who}"
                    row[key], row[f"{key}, low"], row[f"{key}, high"] = interval(moved[:, a], lambda v: float(v.mean()))
                row["more"], row["more, low"], row["more, high"] = interval(lost, lambda v: float(np.exp(v.mean()) - 1))
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
            "| strength | method | shift, women | men | ratio | perplexity | more | distinct | judge, women | men |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for _, row in own.iterrows():
            text.append("| " + " | ".join(_cells(row)) + " |")
        text.append("")
    if table["strength"].nunique() > 1:
        picture(table, folder / "fluency.png")
        text += ["![Concept shift against perplexity](fluency.png)", ""]
    (folder / "README.md").write_text("\n".join(text))


def _cells(row: pd.Series) -> list[str]:
    def number(key: str, kind: str = ".2f") -> str:
        value = row.get(key, np.nan)
        if pd.isna(value):
            return ""
        low, high = row.get(f"{key}, low", np.nan), row.get(f"{key}, high", np.nan)
        between = "" if pd.isna(low) else f" [{low:{kind}}, {high:{kind}}]"
        return f"{value:{kind}}{between}"

    head = [f"{row['strength']:g}" if row["strength"] else "", row["method"]]
    keys = (("shift, women", ".2f"), ("shift, men", ".2f"), ("ratio", ".3f"), ("perplexity", ".1f"), ("more", "+.0%"),
            ("distinct", ".3f"), ("judge, women", ".2f"), ("judge, men", ".2f"))  # fmt: skip
    return [*head, *(number(key, kind) for key, kind in keys)]


def picture(table: pd.DataFrame, path: Path) -> None:
    """Shift of women and of men over the perplexity, a panel for each concept."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(table["concept"]))
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.4), squeeze=False)
    colours = dict(zip(SAMPLED, ("#999999", "#E69F00", "#0072B2"), strict=True))
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
    parser.add_argument(
        "--pairs", type=int, default=60, metavar="N", help="pairs of prompts, as many to calibrate with"
    )
    parser.add_argument("--sampled", type=int, default=24, metavar="N", help="of them are continued (default: 24)")
    parser.add_argument("--concept", choices=[concept.name for concept in prompts.CONCEPTS], help="only this one")
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS, metavar="S", help="(default: 3 6 9)")
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
