"""Occupations by a causal language model: linear probes of its layers, and what it says itself.

*Probes*: states of each layer, five folds; methods as for the embeddings, without alignment; gender known, inferred or
withheld. The best layer, by the accuracy of the original alone, is then measured with alignment, nested.

*By the model itself*: the likelihood of every occupation's name after the text and a question, by the name's first
token, with the states of one layer steered by a hook where the model is about to answer. Nothing is trained after
steering. The maps are fitted to other folds' states. Likelihoods of a name are relative to its mean over the texts,
since some names are likelier than others after any text; labels take no part in it.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from benchmarks import smollm
from benchmarks.biographies import methods as bios
from benchmarks.biographies import report, states
from benchmarks.biographies.methods import FOLDS, Biographies, Line, Method
from fairsteer.baselines import CovarianceMatchingTransformer, LeaceTransformer, MeanMatchingTransformer
from fairsteer.torch import SteeringModule, steering_hooks
from fairsteer.transformer import FairSteeringTransformer

#: Methods of the curve over layers.
CURVE = (bios.ORIGINAL, "mean matching", "covariance matching, barycentre", "LEACE", "tied")
#: Those that are measured with alignment, in the layer that is best before.
ALIGNED = (bios.ORIGINAL, "mean matching", "LEACE", "tied", "tied, translations")
#: Layers that are steered where the model answers itself.
ITSELF = (15, 25)
BATCH = 32
BY_ITSELF = "SmolLM2 by itself"
#: The beginning of the page.
HEAD = (
    "# Occupations by SmolLM2-135M-Instruct",
    "",
    "    python -m benchmarks.biographies --model smollm2",
    "",
    "Written by this command; what to make of it is in",
    "[docs/language-models.md](../../../docs/language-models.md). Every number with its interval is in",
    "[results.csv](results.csv).",
    "",
    f"Occupations with {states.MIN_ROWS} biographies of either gender or more, at most {states.MAX_ROWS} of each",
    f"drawn at random, cut to {states.MAX_TOKENS} tokens; five folds. *Mean*: over the tokens; *last*: where the",
    "model is about to name the occupation. *By itself*: likelihood of the names, no classifier is trained.",
    "",
)


def transformers() -> dict[str, Method]:
    """Methods by name, with maps that only translate besides."""
    found = {method.name: method for method in bios.methods()}
    moved = FairSteeringTransformer(map_type="translation", unknown_group="infer")
    found["tied, translations"] = Method("tied, translations", moved, ours=True)
    return found


def layer_data(rows: pd.DataFrame, all_states: NDArray[np.float32]) -> dict[tuple[int, str], Biographies]:
    """Rows of every layer and pool, all with the same folds."""
    y, group, names = states.coded(rows)
    fold = bios.folds(y, group)
    found = {}
    for i, layer in enumerate(states.LAYERS):
        for j, pool in enumerate(states.POOLS):
            X = np.ascontiguousarray(all_states[:, i, j])
            name = f"SmolLM2, layer {layer}, {pool}"
            found[layer, pool] = Biographies(name, X, y, group, fold, tuple(range(FOLDS)), names, ["female", "male"])
    return found


def scaled(X: NDArray[np.float32]) -> NDArray[np.float32]:
    """Columns of mean 0 and deviation 1: as they are, a few are hundreds of times as large as the others."""
    wide = X.astype(np.float64)
    return np.asarray((wide - wide.mean(axis=0)) / wide.std(axis=0), dtype=np.float32)


def unaligned(data: Biographies, chosen: list[Method]) -> Iterator[Line]:
    """Predictions of every fold by classifiers of the others."""
    for method in chosen:
        found: dict[bios.Key, NDArray[np.int64]] = {}
        for j in data.measured:
            train, test = data.fold != j, data.fold == j
            fitted = bios.fitted_to(method, data, train)
            trained = bios.Trained(method, fitted, data.X[train], data.y[train], data.group[train])
            for key, values in trained.log_proba(data.X[test], data.group[test]).items():
                found.setdefault(key, np.full(len(data.y), -1))[test] = values.argmax(axis=1)
        for (rule, gender), predicted in found.items():
            yield Line(method.name, rule, gender, False, method.ours, predicted, float("nan"))


# ---- by the model itself


class Way(NamedTuple):
    """A way of steering the model."""

    name: str
    layer: int
    gender: bios.Gender


UNSTEERED = Way(bios.ORIGINAL, 0, "withheld")


class ZeroShot:
    """Log-likelihoods of the occupations' names after texts, with states of the last token steered."""

    def __init__(self, rows: pd.DataFrame, names: list[str], dtype: torch.dtype) -> None:
        self._model, tokenizer = smollm.load(dtype)
        parameters = inspect.signature(self._model.forward).parameters
        self._cache = "cache" if "cache" in parameters else "past_key_values"  # before transformers 5.24
        self._padding = tokenizer.pad_token_id
        self._ids, _ = states.prompts(tokenizer, rows["text"].tolist())
        self._names = [tokenizer(" " + name.replace("_", " ")).input_ids[0] for name in names]
        assert len(set(self._names)) == len(names), "names must begin with different tokens"

    def scores(
        self, rows: list[int], steered: dict[Way, tuple[str, SteeringModule | None, Any]]
    ) -> dict[Way, NDArray[np.float64]]:
        """Scores (rows, names) for each way of steering: the layer, the module and the groups of all rows.

        The tokens before the last one are the same for all ways, and run once.
        """
        found = {way: np.empty((len(rows), len(self._names))) for way in steered}
        order = sorted(range(len(rows)), key=lambda i: len(self._ids[rows[i]]))
        for start in range(0, len(order), BATCH):
            own = order[start : start + BATCH]
            batch = states.padded([self._ids[rows[i]] for i in own], self._padding)
            ids, mask = batch["input_ids"], batch["attention_mask"]
            with torch.inference_mode():
                output = self._model.model(ids[:, :-1], attention_mask=mask[:, :-1], use_cache=True)
                cache = output[self._cache]
                for way, (layer, module, groups) in steered.items():
                    layers = {} if module is None else {layer: module}
                    of_rows = None if groups is None else [groups[rows[i]] for i in own]
                    with steering_hooks(self._model, layers, sensitive_features=of_rows):
                        scores = self._model(ids[:, -1:], attention_mask=mask, **{self._cache: cache}).logits[:, -1]
                    found[way][own] = scores.double().log_softmax(-1)[:, self._names].numpy()
                    cache.crop(-1)
        return found


def steerings() -> dict[str, Any]:
    """What is fitted to the states of a layer."""
    return {
        "mean matching": MeanMatchingTransformer(unknown_group="infer"),
        "covariance matching": CovarianceMatchingTransformer(unknown_group="infer"),
        "LEACE": LeaceTransformer(),
        "tied": FairSteeringTransformer(map_type="affine", unknown_group="infer"),
        "tied, translations": FairSteeringTransformer(map_type="translation", unknown_group="infer"),
    }


def zero_shot(rows: pd.DataFrame, data: dict[int, Biographies], cache: Path, dtype: torch.dtype) -> Iterator[Line]:
    """Predictions by the model itself, steered in each of some layers; scores of a fold are kept in the cache."""
    first = next(iter(data.values()))
    model: ZeroShot | None = None
    raw: dict[Way, NDArray[np.float64]] = {}
    start, shape = time.perf_counter(), (len(first.y), len(first.classes))
    for j in first.measured:
        train, test = first.fold != j, np.flatnonzero(first.fold == j)
        file = cache / f"itself-{j}.npz"
        if file.exists():
            with np.load(file) as kept:
                for key, scores in kept.items():
                    name, layer, gender = key.split("|")
                    raw.setdefault(Way(name, int(layer), gender), np.full(shape, np.nan))[test] = scores
            continue
        model = model or ZeroShot(rows, first.classes, dtype)
        ways: dict[Way, tuple[str, SteeringModule | None, Any]] = {UNSTEERED: ("", None, None)}
        for layer, own in data.items():
            for name, change in steerings().items():
                fitted = change.fit(own.X[train], own.y[train], sensitive_features=own.group[train])
                at, module = f"model.layers.{layer - 1}", SteeringModule(fitted)
                if name == "LEACE":
                    ways[Way(name, layer, "withheld")] = at, module, None
                    continue
                ways[Way(name, layer, "known")] = at, module, own.group.tolist()
                if name.startswith("tied"):
                    ways[Way(name, layer, "inferred")] = at, module, None
        found = model.scores(test.tolist(), ways)
        of_way: dict[str, Any] = {"|".join(map(str, way)): scores for way, scores in found.items()}
        np.savez(file, **of_way)
        for way, scores in found.items():
            raw.setdefault(way, np.full(shape, np.nan))[test] = scores
        seconds = time.perf_counter() - start
        print(f"zero-shot: fold {j + 1} of {FOLDS}, {seconds:.0f} s", file=sys.stderr, flush=True)
    asked = np.isin(first.fold, first.measured)
    # Without steering, so that what steering does to the mean is not taken back.
    usual = np.log(np.exp(log_softmax(raw[UNSTEERED][asked], axis=1)).mean(axis=0))
    for way, scores in raw.items():
        shares = log_softmax(scores, axis=1)
        predicted = np.full(len(first.y), -1)
        predicted[asked] = (shares[asked] - usual).argmax(axis=1)
        label = f"{way.name}, layer {way.layer}" if way.layer else way.name
        ours = way.name.startswith("tied")
        yield Line(label, "by the model itself", way.gender, False, ours, predicted, float("nan"))


def run(
    folder: Path, cache: Path, dtype: torch.dtype, only: str | None = None, folds: int = FOLDS
) -> Iterator[tuple[Biographies, list[Line]]]:
    """All tables, one at a time; `only` one of them by its name, or `aligned`; its own answers in so many folds."""
    rows = states.table(folder)
    states.extract(rows, cache, dtype=dtype)
    raw = layer_data(rows, states.read(rows, cache))
    data = {key: replace(own, X=scaled(own.X)) for key, own in raw.items()}
    named = transformers()
    chosen = [named[name] for name in (*CURVE, "tied, translations")]
    for own in data.values():
        if only in (None, own.name):
            start = time.perf_counter()
            yield own, list(unaligned(own, chosen))
            print(f"{own.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    if only in (None, "aligned"):
        best = data[best_layer(data)]
        chosen = [named[name] for name in ALIGNED]
        yield replace(best, name=f"{best.name}, aligned"), list(bios.predictions(best, chosen))
    if only in (None, BY_ITSELF):
        steered = {layer: replace(raw[layer, "last"], measured=tuple(range(folds))) for layer in ITSELF}
        yield replace(steered[ITSELF[0]], name=BY_ITSELF), list(zero_shot(rows, steered, cache, dtype))


def best_layer(data: dict[tuple[int, str], Biographies]) -> tuple[int, str]:
    """Layer and pool of the most accurate classifier before anything is steered."""

    def accuracy(own: Biographies) -> float:
        (line,) = (line for line in unaligned(own, [Method(bios.ORIGINAL)]) if line.rule == bios.LR)
        return float((line.predicted == own.y).mean())

    return max(data, key=lambda key: accuracy(data[key]))


# ---- the page


def write(folder: Path) -> None:
    """The page and its picture, from the table of the folder."""
    table = pd.read_csv(folder / "results.csv")
    names = [f"SmolLM2, layer {layer}, {pool}" for layer in states.LAYERS for pool in states.POOLS]
    head = list(HEAD)
    if table["data"].isin(names).any() and table["data"].nunique() > len(states.POOLS):
        picture(table, folder / "layers.png")
        head += ["![RMS gap by layer](layers.png)", ""]
    report.write(folder, head)


def picture(table: pd.DataFrame, path: Path) -> None:
    """RMS gap over the layers, a panel for each pool."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    colours = dict(zip(CURVE, ("#000000", "#E69F00", "#999999", "#CC79A7", "#0072B2"), strict=True))
    for pool, ax in zip(states.POOLS, axes, strict=True):
        floor = {}
        for method, colour in colours.items():
            points = {}
            for layer in states.LAYERS:
                own = table[(table["data"] == f"SmolLM2, layer {layer}, {pool}") & (table["method"] == method)]
                own = own[(own["rule"] == bios.LR) & own["gender"].isin(["known", "withheld"])]
                if len(own):
                    line = own.sort_values("gender").iloc[0]  # known where there is a choice
                    points[layer] = line
                    floor[layer] = line["floor"]
            at = sorted(points)
            gap = np.array([points[layer]["RMS gap"] for layer in at])
            low = np.array([points[layer]["RMS gap, low"] for layer in at])
            high = np.array([points[layer]["RMS gap, high"] for layer in at])
            shift = 0.25 * (list(colours).index(method) - 2)
            bars = np.maximum([gap - low, high - gap], 0)
            ax.errorbar(
                np.array(at) + shift, gap, bars, color=colour, marker="o", markersize=3, linewidth=1, label=method
            )
        ax.plot(sorted(floor), [floor[layer] for layer in sorted(floor)], ":", color="0.5", label="floor")
        ax.set_title(f"{pool} of the tokens" if pool == "mean" else f"{pool} token", fontsize=9)
        ax.set_xlabel("layer")
    axes[0].set_ylabel("RMS gap between women and men")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
