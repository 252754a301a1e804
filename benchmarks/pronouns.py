"""``python -m benchmarks.pronouns``: which pronoun a language model expects after an occupation, steered or not.

SmolLM2-135M-Instruct reads "The nurse said that" and says how likely "she" and "he" are as the next word. What is
predicted is the pronoun, and what it must not depend on is the occupation: the *group* of a beginning is its
occupation, which the text names, and its *class* the pronoun that the rest of the sentence suggests (whether after its
verb the log-ratio, over all occupations, is in the upper half). Maps are fitted to the states of the last token of
beginnings with half of the verbs, and steer every token of beginnings with the others.

"Two features": the states steered in two directions alone, the one by which the head of the model tells "she" from
"he", and the one in which states that expect the one differ from those that expect the other; what is at right angles
to these stays. "Unseen occupations": groups are quarters of the occupations by what the model
expects of them, fitted to one half of the occupations and inferred from the state for the other, and the other way
round. "Pronoun that is told": group is the pronoun in a sentence before ("She is a nurse."), which LEACE erases, or
whose difference in means is projected away.

``log-ratio``: logarithm of the likelihoods' ratio, mean of its absolute value over the beginnings; ``spread``: its
standard deviation over the occupations, which a bias common to all leaves out; ``she``: share of beginnings where "she"
is the likelier; ``told``: by how much a sentence before that tells the pronoun moves the log-ratio, which is to stay.
``neutral text``: change of the mean negative log-likelihood of a token of biographies that nothing was fitted to, of
people of eight of the occupations, every token steered as their occupation. Intervals: 1,000 bootstrap samples of the
occupations, for neutral text of the biographies, 95 %.
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
from torch import Tensor, nn

from benchmarks import datasets, smollm
from benchmarks.prompts import OCCUPATIONS, PRONOUN_FRAMES
from fairsteer.baselines import LeaceTransformer, MeanMatchingTransformer
from fairsteer.ideal import MapType
from fairsteer.torch import SteeringModule, steering_hooks
from fairsteer.transformer import FairSteeringTransformer

Doubles = NDArray[np.float64]

OUTPUT = Path(__file__).parent / "results" / "pronouns"
#: Blocks below the hook. At the first one everything is measured, at the others the mean and ours.
LAYERS = (29, 25, 20)
PRONOUNS = ("She", "He")
BATCH, MAX_TOKENS = 64, 64
COLUMNS = ("log-ratio", "spread", "she", "told", "neutral text")
FITTED_TO, TESTED = PRONOUN_FRAMES[: len(PRONOUN_FRAMES) // 2], PRONOUN_FRAMES[len(PRONOUN_FRAMES) // 2 :]
#: Verbs with which a pronoun is told to measure what it does.
N_TOLD = 2
#: Occupations of biographies, as the beginnings call them.
BIOGRAPHIES = {
    "dancer": "dancer", "engineer": "engineer", "lawyer": "lawyer", "musician": "musician", "painter": "painter",
    "physician": "doctor", "professor": "professor", "writer": "writer",
}  # fmt: skip


def beginnings(frames: Sequence[str], before: str = "") -> list[str]:
    """Beginnings for every occupation and frame, in this order."""
    out = []
    for occupation in OCCUPATIONS:
        article = "an" if occupation[0] in "aeiou" else "a"
        start = f"{before} is {article} {occupation}. " if before else ""
        out += [start + frame.format(occupation) for frame in frames]
    return out


class Batch(NamedTuple):
    """Texts of like length after the blocks below the hooks."""

    rows: NDArray[Any]
    ids: Tensor
    mask: Tensor
    states: dict[int, Tensor]


class Reader:
    """The model, which reads texts up to some blocks once, and on from there as often as they are steered."""

    def __init__(self, dtype: torch.dtype, layers: Sequence[int]) -> None:
        self.model, self.tokenizer = smollm.load(dtype)
        self.model.requires_grad_(requires_grad=False)
        self.layers = layers
        self.she, self.he = (self.tokenizer(f" {word.lower()}").input_ids[0] for word in PRONOUNS)

    def read(self, texts: Sequence[str], size: int = BATCH) -> list[Batch]:
        order = np.argsort([len(text) for text in texts], kind="stable")
        out = []
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            made = self.tokenizer(
                [texts[i] for i in rows], return_tensors="pt", padding=True, truncation=True, max_length=MAX_TOKENS
            )
            inputs = {name: made[name] for name in ("input_ids", "attention_mask")}
            with torch.inference_mode():
                found = self.model.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
            states = {layer: found[layer].clone() for layer in self.layers}
            out.append(Batch(rows, inputs["input_ids"], inputs["attention_mask"], states))
        return out

    def states(self, batch: Batch, layer: int, how: nn.Module | None, groups: Any) -> Tensor:
        """States that the head reads."""
        states, mask = batch.states[layer], batch.mask
        with (
            torch.inference_mode(),
            smollm.above(self.model, layer) as entrance,
            steering_hooks(self.model, {} if how is None else {entrance: how}, sensitive_features=groups),
        ):
            found = self.model.model(inputs_embeds=states, attention_mask=mask, use_cache=False)
        out: Tensor = found.last_hidden_state
        return out

    def log_ratios(self, texts: Sequence[Batch], layer: int, how: nn.Module | None, groups: NDArray[Any]) -> Doubles:
        """Log-likelihood of "she" less that of "he"."""
        she, he = self.model.lm_head.weight[[self.she, self.he]].double()
        out = np.empty(len(groups))
        for batch in texts:
            last = self.states(batch, layer, how, groups[batch.rows])[:, -1].double()
            out[batch.rows] = (last @ (she - he)).numpy()
        return out

    def losses(self, texts: Sequence[Batch], layer: int, how: nn.Module | None, groups: NDArray[Any]) -> Doubles:
        """Negative log-likelihood of every text, a sum over its tokens."""
        out = np.empty(len(groups))
        for batch in texts:
            found = self.states(batch, layer, how, groups[batch.rows])[:, :-1]
            loss = torch.zeros(len(batch.rows), dtype=torch.float64)
            # One text after the other: scores of all would be a gigabyte.
            for i, (own, ids, mask) in enumerate(zip(found, batch.ids[:, 1:], batch.mask[:, :-1] > 0, strict=True)):
                with torch.inference_mode():
                    scores = self.model.lm_head(own[mask]).float()  # the first token follows padding
                loss[i] = -scores.log_softmax(1).gather(1, ids[mask, None]).double().sum()
            out[batch.rows] = loss.numpy()
        return out

    def readout(self) -> Doubles:
        """Direction in which the head, after the last normalisation, takes states for "she" and not for "he"."""
        weights = self.model.lm_head.weight.double()
        direction: Doubles = ((weights[self.she] - weights[self.he]) * self.model.model.norm.weight.double()).numpy()
        return direction


def last_states(texts: Sequence[Batch], layer: int) -> Doubles:
    out = np.concatenate([batch.states[layer][:, -1].double().numpy() for batch in texts])
    return out[np.argsort(np.concatenate([batch.rows for batch in texts]))]


class Within(nn.Module):
    """Steering in a few directions: coordinates are steered, and what is at right angles to the directions stays."""

    basis: Tensor

    def __init__(self, basis: Doubles, steering: Any) -> None:
        super().__init__()
        self.register_buffer("basis", torch.tensor(basis, dtype=torch.float32))
        self.steering = SteeringModule(steering)

    def forward(self, hidden: Tensor, *, sensitive_features: Any) -> Tensor:
        coordinates = hidden.float() @ self.basis
        moved = self.steering(coordinates, sensitive_features=sensitive_features) - coordinates
        return (hidden.float() + moved @ self.basis.T).to(hidden.dtype)


class ForAll(nn.Module):
    """One map, whatever the group."""

    def __init__(self, A: Doubles, b: Doubles) -> None:
        super().__init__()
        self.only = SteeringModule({0: (A, b)})

    def forward(self, hidden: Tensor, *, sensitive_features: Any) -> Tensor:
        moved: Tensor = self.only(hidden, sensitive_features=np.zeros_like(sensitive_features))
        return moved


class ByHalf(nn.Module):
    """Of two steerings the one that was not fitted to the occupation; both infer their groups."""

    def __init__(self, halves: Sequence[Within]) -> None:
        super().__init__()
        self.halves = nn.ModuleList(halves)

    def forward(self, hidden: Tensor, *, sensitive_features: Any) -> Tensor:
        odd = torch.as_tensor(np.asarray(sensitive_features) % 2 == 1)
        first, second = (half(hidden, sensitive_features=None) for half in self.halves)
        return torch.where(odd[:, None, None], first, second)


class Fitted(NamedTuple):
    """What maps are fitted to."""

    states: Doubles
    """Of beginnings that tell nothing, (occupations x verbs, d)."""
    log_ratios: Doubles
    told: Doubles
    """Of beginnings before which "She" and then "He" were told, (2 x occupations x verbs, d)."""
    readout: Doubles

    @property
    def occupations(self) -> NDArray[Any]:
        return np.repeat(np.arange(len(OCCUPATIONS)), len(FITTED_TO))

    @property
    def suggested(self) -> NDArray[Any]:
        """Whether the verb of a beginning goes with "she" more than most do."""
        of_verb = self.log_ratios.reshape(-1, len(FITTED_TO)).mean(axis=0)
        return np.tile(of_verb > np.median(of_verb), len(OCCUPATIONS))


def _subspace(fitted: Fitted) -> Doubles:
    """Orthonormal directions: that of the head, and the covariance with the log-ratio."""
    centred = fitted.states - fitted.states.mean(axis=0)
    along = centred.T @ (fitted.log_ratios - fitted.log_ratios.mean())
    return np.linalg.qr(
        np.column_stack([fitted.readout / np.linalg.norm(fitted.readout), along / np.linalg.norm(along)])
    )[0]


def _unseen(fitted: Fitted, basis: Doubles) -> ByHalf:
    """For odd occupations what even ones say of their quarters, and the other way round."""
    leans = fitted.log_ratios.reshape(-1, len(FITTED_TO)).mean(axis=1)
    occupation = fitted.occupations
    halves = []
    for half in (0, 1):
        own = occupation % 2 == half
        edges = np.quantile(leans[half::2], [0.25, 0.5, 0.75])
        quarter = np.searchsorted(edges, leans[occupation[own]])
        steer = FairSteeringTransformer(map_type="translation", unknown_group="infer")
        steer.fit(fitted.states[own] @ basis, fitted.suggested[own], sensitive_features=quarter)
        halves.append(Within(basis, steer))
    return ByHalf(halves)


def steerings(fitted: Fitted) -> dict[str, Callable[[], nn.Module]]:
    occupation, suggested, basis = fitted.occupations, fitted.suggested, _subspace(fitted)
    pronoun = np.repeat(PRONOUNS, len(fitted.told) // 2)

    def within(map_type: MapType) -> nn.Module:
        steer = FairSteeringTransformer(map_type=map_type, standardize=True)
        return Within(basis, steer.fit(fitted.states @ basis, suggested, sensitive_features=occupation))

    def leace(rows: Doubles, groups: NDArray[Any]) -> nn.Module:
        return ForAll(*next(iter(LeaceTransformer().fit(rows, sensitive_features=groups).maps_.values())))

    def projected() -> nn.Module:
        difference = fitted.told[pronoun == PRONOUNS[0]].mean(axis=0) - fitted.told[pronoun == PRONOUNS[1]].mean(axis=0)
        one = difference / np.linalg.norm(difference)
        return ForAll(np.eye(len(one)) - np.outer(one, one), one * (one @ fitted.states.mean(axis=0)))

    matching = MeanMatchingTransformer()
    return {
        "mean matching of the occupations": lambda: SteeringModule(
            matching.fit(fitted.states, suggested, sensitive_features=occupation)
        ),
        "ideal, two features, translations": lambda: within("translation"),
        "LEACE of the pronoun that is expected": lambda: leace(fitted.states, fitted.log_ratios > 0),
        "direction of the pronoun that is told, projected away": projected,
        "ideal, two features, unseen occupations": lambda: _unseen(fitted, basis),
        "LEACE of the pronoun that is told": lambda: leace(fitted.told, pronoun),
        "ideal, two features, affine": lambda: within("affine"),
    }


AT_EVERY_LAYER = ("mean matching of the occupations", "ideal, two features, translations")


def measured(ratios: Doubles, told: Doubles, draws: int = 1000) -> dict[str, float]:
    """Measures of log-ratios (occupations, frames), and (2, occupations, frames) of told ones, with intervals."""
    rng = np.random.default_rng(0)
    n = len(ratios)

    def of(rows: Any) -> list[float]:
        own, (she, he) = ratios[rows], told[:, rows]
        values = np.abs(own).mean(), own.mean(axis=1).std(), (own > 0).mean(), (she - he).mean()
        return [float(value) for value in values]

    values = of(slice(None))
    low, high = np.percentile([of(rng.integers(n, size=n)) for _ in range(draws)], [2.5, 97.5], axis=0)
    out: dict[str, float] = {}
    for i, name in enumerate(COLUMNS[:4]):
        out |= {name: values[i], f"{name}, low": float(low[i]), f"{name}, high": float(high[i])}
    return out


def change_of_text(after: Doubles, before: Doubles, draws: int = 1000) -> dict[str, float]:
    rng = np.random.default_rng(0)
    n = len(before)

    def of(rows: Any) -> float:
        return float(after[rows].sum() / before[rows].sum() - 1)

    low, high = np.percentile([of(rng.integers(n, size=n)) for _ in range(draws)], [2.5, 97.5])
    return {"neutral text": of(slice(None)), "neutral text, low": float(low), "neutral text, high": float(high)}


def biographies(folder: Path, n_texts: int) -> tuple[list[str], NDArray[Any]]:
    """Texts of people of the occupations, as many of each as there are, and the occupations' numbers."""
    table = pd.read_parquet(folder / "biographies" / "texts.parquet", columns=["text", "label"])
    table["label"] = table["label"].astype(str)
    chosen = table[table["label"].isin(list(BIOGRAPHIES))].groupby("label").sample(
        max(1, n_texts // len(BIOGRAPHIES)), random_state=1
    )  # fmt: skip
    return chosen["text"].tolist(), chosen["label"].map(lambda o: OCCUPATIONS.index(BIOGRAPHIES[o])).to_numpy()


class Texts(NamedTuple):
    """All that is read, up to the blocks below the hooks."""

    states: dict[int, Doubles]
    """Last states of beginnings that are fitted to, by layer."""
    log_ratios: Doubles
    told: dict[int, Doubles]
    new: list[Batch]
    told_new: list[Batch]
    biographies: list[Batch]
    of_biography: NDArray[Any]


def read_all(reader: Reader, folder: Path, n_texts: int) -> Texts:
    known = reader.read(beginnings(FITTED_TO))
    told = reader.read([text for who in PRONOUNS for text in beginnings(FITTED_TO, who)])
    texts, of_biography = biographies(folder, n_texts)
    return Texts(
        {layer: last_states(known, layer) for layer in reader.layers},
        reader.log_ratios(known, reader.layers[0], None, np.repeat(np.arange(len(OCCUPATIONS)), len(FITTED_TO))),
        {layer: last_states(told, layer) for layer in reader.layers},
        reader.read(beginnings(TESTED)),
        reader.read([text for who in PRONOUNS for text in beginnings(TESTED[:N_TOLD], who)]),
        reader.read(texts, 16),
        of_biography,
    )


def _kept(cache: Path | None, make: Callable[[], Texts]) -> Texts:
    """What is read once, where there is a folder to keep it."""
    if cache is None:
        return make()
    file = cache / "pronouns.pt"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(make(), file)
    found: Texts = torch.load(file, weights_only=False)  # of our own making
    return found


def run(
    folder: Path, n_texts: int, dtype: torch.dtype, layers: Sequence[int], cache: Path | None = None
) -> Iterator[dict[str, Any]]:
    reader = Reader(dtype, layers)
    texts = _kept(cache, lambda: read_all(reader, folder, n_texts))
    n = len(OCCUPATIONS)
    of_new, of_told = np.repeat(np.arange(n), len(TESTED)), np.tile(np.repeat(np.arange(n), N_TOLD), 2)

    def ratios(layer: int, how: nn.Module | None) -> dict[str, float]:
        own = reader.log_ratios(texts.new, layer, how, of_new).reshape(n, -1)
        return measured(own, reader.log_ratios(texts.told_new, layer, how, of_told).reshape(2, n, -1))

    first = layers[0]
    plain = reader.losses(texts.biographies, first, None, texts.of_biography)
    yield {"layer": 0, "method": "nothing", **ratios(first, None)}
    for layer in layers:
        fitted = Fitted(texts.states[layer], texts.log_ratios, texts.told[layer], reader.readout())
        for name, make in steerings(fitted).items():
            if layer != first and name not in AT_EVERY_LAYER:
                continue
            how = make()
            after = reader.losses(texts.biographies, layer, how, texts.of_biography)
            yield {"layer": layer, "method": name, **ratios(layer, how), **change_of_text(after, plain)}


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
        f"{seconds:.0f} s of the processor, one thread, a peak of {memory:.2f} GiB.",
        "",
        *(__doc__ or "").partition("\n\n")[2].replace("``", "*").strip().splitlines(),
        "",
        f"{len(OCCUPATIONS)} occupations, {len(FITTED_TO)} verbs to fit to and as many others to",
        f"measure, {n_texts} biographies of at most {MAX_TOKENS} tokens.",
        "",
        "| layer | method | log-ratio | spread | she | told | neutral text |",
        "|---|---|---|---|---|---|---|",
    ]
    for _, row in table.iterrows():
        cells = [str(row["layer"] or ""), row["method"]]
        for name in COLUMNS:
            value, low, high = (row.get(key, np.nan) for key in (name, f"{name}, low", f"{name}, high"))
            kind = "+.2%" if name == "neutral text" else ".0%" if name == "she" else ".2f"
            cells.append("" if pd.isna(value) else f"{value:{kind}} [{low:{kind}}, {high:{kind}}]")
        text.append("| " + " | ".join(cells) + " |")
    (folder / "README.md").write_text("\n".join([*text, ""]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pronouns", description="Pronouns after occupations.")
    datasets.add_data_option(parser)
    parser.add_argument("--texts", type=int, default=96, metavar="N", help="biographies (default: 96)")
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS, metavar="N", help="steered, one at a time")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep the states below the hooks here")
    parser.add_argument("--dtype", default="bfloat16", help="of the model (default: bfloat16)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("this needs real data: name their folder by --data or the variable FAIRSTEER_DATA")
    rows = []
    settings = arguments.data, arguments.texts, getattr(torch, arguments.dtype), arguments.layers, arguments.cache
    for row in run(*settings):
        rows.append(row)
        shown = [f"{row[name]:.3f}" for name in COLUMNS if name in row]
        seconds = time.process_time()
        print(f"{seconds:.0f} s", row["layer"], row["method"], *shown, file=sys.stderr, flush=True)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        write(arguments.output, pd.DataFrame(rows), arguments.texts, seconds, memory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
