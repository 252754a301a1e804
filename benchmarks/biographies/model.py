"""Occupations by a causal language model: linear probes of its layers, and what it says itself.

*Probes*: states of each layer, as they are where a hook would steer them; every method takes the features at one scale,
and so does the probe, which is trained on steered rows. Five folds; the gap is that of all rows, each predicted by
what was fitted to the others. Gender known; in the layers whose unsteered probe is the most accurate, one for each
pool, inferred or withheld as well, with another probe, and with diagonal maps.

*Aligned*: the more accurate of those two layers, its scores aligned besides. What is measured are two
halves, each by the other, and gaps within a half: the alignment of a fold makes up for the chance of the others.

*By the model itself*: the likelihood of every occupation's name after the text and a question, with the states of one
layer steered by a hook, at the tokens whose states in the other folds the maps are fitted to: the last one, where the
model is about to answer (maps of the last token), or those of the text but the first (maps of their mean). Nothing is
trained after steering. All tokens of a name count; in the last layer, whose states are the answer, the first one, which
all names have different and which needs no run of the model but its head. The likelihoods of a text's names are taken
as shares, relative to the mean share of a name over the texts without steering, since some names are likelier than
others after any text; labels take no part in it.
"""

from __future__ import annotations

import copy
import inspect
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks import smollm
from benchmarks.biographies import methods as bios
from benchmarks.biographies import report, states
from benchmarks.biographies.methods import FOLDS, LDA, LR, ORIGINAL, Biographies, Codes, Floats, Gender, Line, Method
from fairsteer.baselines import CovarianceMatchingTransformer, LeaceTransformer, MeanMatchingTransformer
from fairsteer.torch import SteeringModule, steering_hooks
from fairsteer.transformer import FairSteeringTransformer

MEAN, COVARIANCE, LEACE = "mean matching", "covariance matching", "LEACE"
TRANSLATIONS, DIAGONAL, AFFINE = "ideal, translations", "ideal, diagonal", "ideal, affine"
#: Of features at one scale. Chosen among .0003 to .03 by the accuracy of the unsteered states, in all layers alike.
C = 0.003
#: Layers and pools that are steered where the model answers itself, of the first so many rows' first so many folds.
ITSELF = ((14, "last"), (22, "last"), (14, "mean"))
ASKED, FOLDS_ASKED = 800, 2
BATCH = 32
BY_ITSELF = "SmolLM2 by itself"
LAYERS, ALIGNED = "layers", "aligned"
LAST_LAYER = f"{BY_ITSELF}, last layer"


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
    f"Biographies of the occupations with {states.MIN_ROWS} of either gender or more, cut to {states.MAX_TOKENS}",
    "tokens; probes are measured in five folds.",
    "*Mean*: over the tokens; *last*: where the model is about to name the occupation. *Aligned*: two halves, each",
    "measured by the other. *By itself*: likelihood of the names, no classifier is trained.",
    "",
)


def methods(unknown_group: str = "infer") -> list[Method]:
    """Methods, all of which take the columns at one scale: as they are, a few are hundreds of times the others."""
    scale: dict[str, Any] = {"feature_transform": StandardScaler(), "unknown_group": unknown_group}
    return [
        Method(ORIGINAL),
        Method(MEAN, MeanMatchingTransformer(**scale)),
        Method(COVARIANCE, CovarianceMatchingTransformer(**scale)),
        Method(LEACE, LeaceTransformer()),  # the same in any scale
        Method(TRANSLATIONS, FairSteeringTransformer(map_type="translation", **scale), ours=True),
        Method(DIAGONAL, FairSteeringTransformer(map_type="affine", covariance="diagonal", **scale), ours=True),
        Method(AFFINE, FairSteeringTransformer(map_type="affine", **scale), ours=True),
    ]


def probes() -> dict[str, Any]:
    """Linear classifiers by name."""
    return {
        LR: make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)),
        LDA: make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")),
    }


def layer_data(rows: pd.DataFrame, all_states: Floats) -> dict[tuple[int, str], Biographies]:
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


# ---- probes


def scores(
    method: Method,
    data: Biographies,
    train: NDArray[Any],
    test: NDArray[Any],
    *,
    rules: Sequence[str] = (LDA,),
    all_genders: bool = False,
) -> dict[bios.Key, NDArray[np.float64]]:
    """Log-probabilities of the classes for some rows, by what is fitted to others: by probe and gender.

    Where the gender is needed it is known; with `all_genders` also inferred and withheld.
    """
    X, group = data.X[test], data.group[test]
    rows = data.X[train]
    told: dict[Gender, Floats] = {"withheld": X}
    if method.transformer is not None:
        change = clone(method.transformer).fit(rows, data.y[train], sensitive_features=data.group[train])
        rows = change.transform(rows, sensitive_features=data.group[train])
        if not method.needs_gender:
            told = {"withheld": change.transform(X)}
        elif all_genders:
            told["known"], told["inferred"] = change.transform(X, sensitive_features=group), change.transform(X)
        else:
            told = {"known": change.transform(X, sensitive_features=group)}
    found: dict[bios.Key, NDArray[np.float64]] = {}
    for rule in rules:
        probe = probes()[rule].fit(rows, data.y[train])
        for gender, own in told.items():
            found[rule, gender] = probe.predict_log_proba(own)
    return found


def unaligned(data: Biographies, chosen: Sequence[Method], *, in_full: bool = False) -> Iterator[Line]:
    """Predictions of every fold by what is fitted to the others; in full by both probes and for all genders."""
    rules = (LR, LDA) if in_full else (LDA,)
    for method in chosen:
        found: dict[bios.Key, Codes] = {}
        for j in data.measured:
            train, test = data.fold != j, data.fold == j
            for key, values in scores(method, data, train, test, rules=rules, all_genders=in_full).items():
                found.setdefault(key, np.full(len(data.y), -1))[test] = values.argmax(axis=1)
        for (rule, gender), predicted in found.items():
            yield Line(method.name, rule, gender, False, method.ours, predicted, float("nan"))


def halves(data: Biographies) -> Biographies:
    """The same rows in two folds."""
    return replace(data, fold=bios.folds(data.y, data.group, 2), measured=(0, 1))


def aligned(data: Biographies, chosen: Sequence[Method]) -> Iterator[Line]:
    """Predictions of every fold with and without alignment, which is fitted to out-of-fold scores of the other rows.

    The first method changes nothing: its accuracy is what the alignment of every method is allowed to cost.
    """
    least: dict[int, float] = {}
    for method in chosen:
        yield from aligned_by(method, data, least)


def aligned_by(method: Method, data: Biographies, least: dict[int, float]) -> Iterator[Line]:
    """Lines of one method; `least` accuracy of each fold's training rows, which the first method sets."""
    found: dict[tuple[Gender, bool], Codes] = {}
    budgets = []
    known: Gender = "known" if method.needs_gender else "withheld"
    guessed: Gender = "inferred" if method.needs_gender else "withheld"
    for j in data.measured:
        train, test = np.flatnonzero(data.fold != j), np.flatnonzero(data.fold == j)
        answers = scores(method, data, train, test, all_genders=True)
        for (_, gender), values in answers.items():
            _keep(found, (gender, False), test, values.argmax(axis=1), len(data.y))
        inner, own = bios.folds(data.y[train], data.group[train]), np.empty((len(train), len(data.classes)))
        for i in range(FOLDS):
            own[inner == i] = scores(method, data, train[inner != i], train[inner == i])[LDA, known]
        right = float((own.argmax(axis=1) == data.y[train]).mean())
        allowed = least.setdefault(j, right - bios.ALLOWANCE)
        aligner = bios.aligner_within(np.exp(own), data.y[train], data.group[train], allowed)
        budgets.append(aligner.max_gap_)
        of_known, of_guessed = np.exp(answers[LDA, known]), np.exp(answers[LDA, guessed])
        predicted = bios.aligned_classes(aligner, of_known, np.eye(2)[data.group[test]])
        _keep(found, ("known", True), test, predicted, len(data.y))
        predicted = bios.aligned_classes(aligner, of_guessed, _gender_proba(data, train, test))
        _keep(found, ("inferred", True), test, predicted, len(data.y))
    for (gender, is_aligned), predicted in found.items():
        budget = float(np.mean(budgets)) if is_aligned else float("nan")
        yield Line(method.name, LDA, gender, is_aligned, method.ours, predicted, budget)


def _keep(found: dict[Any, Codes], key: Any, rows: NDArray[Any], codes: Codes, n: int) -> None:
    found.setdefault(key, np.full(n, -1))[rows] = codes


def _gender_proba(data: Biographies, train: NDArray[Any], test: NDArray[Any]) -> NDArray[np.float64]:
    steer = FairSteeringTransformer(feature_transform=StandardScaler(), map_type="translation", unknown_group="infer")
    steer.fit(data.X[train], data.y[train], sensitive_features=data.group[train])
    return steer.predict_group_proba(data.X[test])


# ---- by the model itself


class Way(NamedTuple):
    """A way of steering the model: by whom, in which layer, at the last token or those of the text, and by what."""

    name: str
    layer: int
    pool: str
    gender: Gender

    @property
    def label(self) -> str:
        """As in the tables."""
        where = {"last": "last token", "mean": "text"}
        return f"{self.name}, layer {self.layer}, {where[self.pool]}" if self.layer else self.name


UNSTEERED = Way(ORIGINAL, 0, "last", "withheld")


class Names:
    """Names as a tree of tokens: of what begins alike, what is read once."""

    def __init__(self, names: Sequence[Sequence[int]]) -> None:
        #: Tokens that are read, and for each, as for the token before all of them, which others it sees.
        self.tokens: list[int] = []
        sees: list[list[int]] = [[0]]
        place: dict[tuple[int, ...], int] = {(): 0}
        #: For each name, where each of its tokens is foretold, and the token.
        self.steps: list[list[tuple[int, int]]] = []
        for name in names:
            path = tuple(name)
            self.steps.append([])
            for n, token in enumerate(path):
                at = place[path[:n]]
                self.steps[-1].append((at, token))
                if n + 1 < len(path) and path[: n + 1] not in place:
                    self.tokens.append(token)
                    place[path[: n + 1]] = len(self.tokens)
                    sees.append([*sees[at], len(self.tokens)])
        n = len(sees)
        self.mask = torch.zeros(n, n, dtype=torch.bool)
        for at, seen in enumerate(sees):
            self.mask[at, seen] = True
        self.depth = torch.tensor([len(seen) - 1 for seen in sees])

    def log_likelihoods(self, log_proba: Tensor) -> Tensor:
        """Of the names (rows, names), from what each token of the tree foretells (rows, tokens + 1, vocabulary)."""
        return torch.stack([sum(log_proba[:, at, token] for at, token in steps) for steps in self.steps], dim=1)


class ZeroShot:
    """Log-likelihoods of the occupations' names after texts, with states of a layer steered."""

    def __init__(self, rows: pd.DataFrame, names: Sequence[str], dtype: torch.dtype) -> None:
        self._model, tokenizer = smollm.load(dtype)
        parameters = inspect.signature(self._model.forward).parameters
        self._cache = "cache" if "cache" in parameters else "past_key_values"  # before transformers 5.24
        self._padding = tokenizer.pad_token_id
        self._ids, self._n_question = states.prompts(tokenizer, rows["text"].tolist())
        self._names = Names([tokenizer(" " + name.replace("_", " ")).input_ids for name in names])
        # Logits of half precision are too coarse to choose by.
        self._norm = copy.deepcopy(self._model.model.norm).float()
        self._head = self._model.lm_head.weight.detach().float()

    def scores(
        self, rows: list[int], steered: dict[Way, tuple[SteeringModule | None, Any]]
    ) -> dict[Way, NDArray[np.float64]]:
        """Scores (rows, names) for each way of steering: the module, and the groups of all rows.

        The tokens before the last one are the same for all ways that steer the last one, and run once.
        """
        names = self._names
        found = {way: np.empty((len(rows), len(names.steps))) for way in steered}
        order = sorted(range(len(rows)), key=lambda i: len(self._ids[rows[i]]))
        for start in range(0, len(order), BATCH):
            own = order[start : start + BATCH]
            batch = states.padded([self._ids[rows[i]] for i in own], self._padding)
            ids, mask = batch["input_ids"], batch["attention_mask"]
            n, n_before = len(own), ids.shape[1] - 1
            tail = torch.cat([ids[:, -1:], torch.tensor(names.tokens, dtype=ids.dtype).expand(n, -1)], dim=1)
            sees = torch.cat(
                [mask[:, None, :-1].bool().expand(-1, tail.shape[1], -1), names.mask.expand(n, -1, -1)], dim=2
            )
            answering = torch.zeros(n, n_before + tail.shape[1], dtype=torch.bool)
            where = {"last": answering, "mean": answering.clone()}
            where["last"][:, n_before] = True
            where["mean"][:, : n_before + 1] = states.text_tokens(mask, self._n_question)
            before = None
            with torch.inference_mode():
                for way, (module, groups) in steered.items():
                    layers = {} if module is None else {f"model.layers.{way.layer - 1}": module}
                    of_rows = None if groups is None else [groups[rows[i]] for i in own]
                    with steering_hooks(self._model, layers, sensitive_features=of_rows, token_mask=where[way.pool]):
                        cache = before if way.pool == "last" else None
                        if cache is None:
                            cache = self._model.model(ids[:, :-1], attention_mask=mask[:, :-1], use_cache=True)[
                                self._cache
                            ]
                        if way.pool == "last":
                            before = cache
                        hidden = self._model.model(
                            tail,
                            attention_mask=sees[:, None],
                            position_ids=(n_before + names.depth).expand(n, -1),
                            **{self._cache: cache},
                        ).last_hidden_state
                    log_proba = (hidden.float() @ self._head.T).log_softmax(-1)
                    found[way][own] = names.log_likelihoods(log_proba).double().numpy()
                    cache.crop(-tail.shape[1])
        return found

    def of_last_layer(self, states: Floats) -> NDArray[np.float64]:
        """Logits (rows, names) of the names' first tokens, from the last layer's states (rows, d) of the last token."""
        first = [steps[0][1] for steps in self._names.steps]
        with torch.inference_mode():
            normed = self._norm(torch.as_tensor(states))
            logits: NDArray[np.float64] = (normed @ self._head[first].T).double().numpy()
        return logits


def ways(
    layer: int, pool: str, own: Biographies, train: NDArray[Any], *, few: bool = False
) -> dict[Way, tuple[Any, Any]]:
    """Ways of steering a layer, each with what is fitted to some rows, and the groups of all rows if they are told.

    `few`: those that a run of the model takes time for.
    """
    found: dict[Way, tuple[Any, Any]] = {}
    for method in methods():
        if method.name in (ORIGINAL, DIAGONAL) or (few and method.name == COVARIANCE):
            continue
        change = clone(method.transformer).fit(own.X[train], own.y[train], sensitive_features=own.group[train])
        if not method.needs_gender:
            found[Way(method.name, layer, pool, "withheld")] = change, None
            continue
        found[Way(method.name, layer, pool, "known")] = change, own.group.tolist()
        # A text's tokens do not tell the gender one by one.
        if pool == "last" and (method.ours or not few):
            found[Way(method.name, layer, pool, "inferred")] = change, None
    return found


def zero_shot(
    rows: pd.DataFrame, data: dict[tuple[int, str], Biographies], names: list[str], cache: Path, dtype: torch.dtype
) -> Iterator[Line]:
    """Predictions by the model itself, steered in each of some layers; scores of a fold are kept in the cache.

    `names`: those of the classes, and others that could be chosen but are none of the rows'.
    """
    first = next(iter(data.values()))
    asked = (np.arange(len(first.y)) < ASKED) & (first.fold < FOLDS_ASKED)
    model: ZeroShot | None = None
    raw: dict[Way, NDArray[np.float64]] = {}
    start, shape = time.perf_counter(), (len(first.y), len(names))
    digest = states.digest(rows["text"], dtype, names)
    for j in range(FOLDS_ASKED):
        train, test = first.fold != j, np.flatnonzero(asked & (first.fold == j))
        for (layer, pool), own in ({(0, "last"): first} | data).items():
            file = cache / f"itself-{j}-{layer}-{pool}-{len(test)}-{digest}.npz"
            if not file.exists():
                model = model or ZeroShot(rows, names, dtype)
                steered: dict[Way, tuple[SteeringModule | None, Any]] = {UNSTEERED: (None, None)}
                if layer:
                    found = ways(layer, pool, own, train, few=True)
                    steered = {way: (SteeringModule(change), groups) for way, (change, groups) in found.items()}
                scores: dict[str, Any] = {
                    f"{way.name}|{way.gender}": values for way, values in model.scores(test.tolist(), steered).items()
                }
                np.savez(file, **scores)
                seconds = time.perf_counter() - start
                print(f"zero-shot: fold {j + 1}, layer {layer}, {seconds:.0f} s", file=sys.stderr, flush=True)
            with np.load(file) as kept:
                for key, values in kept.items():
                    name, gender = key.split("|")
                    raw.setdefault(Way(name, layer, pool, gender), np.full(shape, np.nan))[test] = values
    yield from _chosen(first, raw, asked)


def last_layer(rows: pd.DataFrame, data: Biographies, names: list[str], dtype: torch.dtype) -> Iterator[Line]:
    """Predictions by the model itself of all rows, steered in the last layer where it answers: from kept states."""
    model, layer = ZeroShot(rows.iloc[:1], names, dtype), states.LAYERS[-1]
    raw = {UNSTEERED: model.of_last_layer(data.X)}
    for j in range(FOLDS):
        test = np.flatnonzero(data.fold == j)
        for way, (change, groups) in ways(layer, "last", data, data.fold != j).items():
            told = {} if groups is None else {"sensitive_features": data.group[test]}
            steered = np.asarray(change.transform(data.X[test], **told), dtype=np.float32)
            raw.setdefault(way, np.empty((len(data.y), len(names))))[test] = model.of_last_layer(steered)
    yield from _chosen(data, raw, np.ones(len(data.y), dtype=bool))


def _chosen(data: Biographies, raw: dict[Way, NDArray[np.float64]], asked: NDArray[np.bool_]) -> Iterator[Line]:
    """Most likely names by the scores of every way, as shares relative to the mean ones without steering."""
    usual = np.log(np.exp(log_softmax(raw[UNSTEERED][asked], axis=1)).mean(axis=0))
    for way, values in raw.items():
        predicted = np.full(len(data.y), -1)
        predicted[asked] = (log_softmax(values[asked], axis=1) - usual).argmax(axis=1)
        yield Line(way.label, "by itself", way.gender, False, way.name.startswith("ideal"), predicted, float("nan"))


# ---- the runs


def run(
    folder: Path, cache: Path, dtype: torch.dtype, only: str | None = None, n_rows: int = states.ROWS
) -> Iterator[tuple[Biographies, list[Line]]]:
    """All tables, one at a time; `only` one of them by its name, or the `layers`, or `aligned`."""
    rows = states.table(folder, n_rows)
    states.extract(rows, cache, dtype=dtype)
    data = layer_data(rows, states.read(rows, cache, dtype))
    best = {} if only in (LAST_LAYER, BY_ITSELF) else best_layers(data)
    for key, own in data.items():
        if only in (None, LAYERS, own.name):
            start, in_full = time.perf_counter(), key in best
            together = replace(own, fold=np.zeros_like(own.fold), measured=(0,))
            chosen = methods() if in_full else [method for method in methods("error") if method.name != DIAGONAL]
            yield together, held_to_the_best(together, list(unaligned(own, chosen, in_full=in_full)))
            print(f"{own.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    if only in (None, ALIGNED):
        key, start = max(best, key=lambda key: best[key]), time.perf_counter()
        own = replace(halves(data[key]), name=f"{data[key].name}, {ALIGNED}")
        yield (
            own,
            held_to_the_best(own, list(aligned(own, [method for method in methods() if method.name != DIAGONAL]))),
        )
        print(f"{own.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    end = data[states.LAYERS[-1], "last"]
    names = [*end.classes, *(name for name in states.occupations(folder) if name not in end.classes)]
    if only in (None, LAST_LAYER):
        together = replace(end, name=LAST_LAYER, fold=np.zeros_like(end.fold), measured=(0,))
        yield together, list(last_layer(rows, end, names, dtype))
    if only in (None, BY_ITSELF):
        asked = (np.arange(len(end.y)) < ASKED) & (end.fold < FOLDS_ASKED)
        lines = list(zero_shot(rows, {key: data[key] for key in ITSELF}, names, cache, dtype))
        yield replace(end, name=BY_ITSELF, fold=np.where(asked, 0, -1), measured=(0,)), lines


def best_layers(data: dict[tuple[int, str], Biographies]) -> dict[tuple[int, str], float]:
    """Layer of each pool whose probe is the most accurate before anything is steered, and that accuracy."""
    found: dict[tuple[int, str], float] = {}
    for pool in states.POOLS:
        accuracy = {}
        for key, own in data.items():
            if key[1] == pool:
                (line,) = unaligned(own, [Method(ORIGINAL)])
                accuracy[key] = float((line.predicted == own.y).mean())
        key = max(accuracy, key=lambda key: accuracy[key])
        found[key] = accuracy[key]
    return found


def held_to_the_best(data: Biographies, lines: list[Line]) -> list[Line]:
    """Lines with the most accurate one of those that change nothing in front: what the others are held to."""
    rows = np.isin(data.fold, data.measured)
    plain = [line for line in lines if line.method == ORIGINAL and not line.aligned]
    first = max(plain, key=lambda line: float((line.predicted == data.y)[rows].mean()))
    return [first, *(line for line in lines if line is not first)]


# ---- the page


def write(folder: Path) -> None:
    """The page and its picture, from the table of the folder."""
    table = pd.read_csv(folder / "results.csv")
    names = [f"SmolLM2, layer {layer}, {pool}" for layer in states.LAYERS for pool in states.POOLS]
    text = list(HEAD)
    if table["data"].isin(names).any():
        picture(table, folder / "layers.png")
        text += ["![RMS gap and accuracy by layer](layers.png)", ""]
    report.write(folder, [*text, *comparison(table)])


def comparison(table: pd.DataFrame) -> list[str]:
    """Our best beside the best baseline in each table, both at no more than a point of accuracy."""
    text = [
        "Smallest RMS gap within a point of the original's accuracy, of ours and of all other methods, both looked for",
        "on the measured rows. The original is that of the more accurate probe; *noise*: zero is in the paired",
        "interval. Figures are accuracy and RMS gap.",
        "",
        "| data | nothing | others' best | | ours | | ours less theirs, RMS gap | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, own in table.groupby("data", sort=False):
        first, names = own.iloc[0], report._names(own)
        ours = own[own["ours"] & (own["accuracy - original"] >= -report.TOLERANCE)]
        if ours.empty:
            continue
        at = int(ours["RMS gap"].argmin())
        best, rival = ours.iloc[at], own[names == first["best baseline"]].iloc[0]
        low, high = best["RMS gap - best baseline, low"], best["RMS gap - best baseline, high"]
        verdict = "noise" if low <= 0 <= high else "ours is smaller" if high < 0 else "theirs is smaller"
        cells = [
            str(name),
            f"{first['accuracy']:.3f}, {first['RMS gap']:.3f}",
            str(first["best baseline"]),
            f"{rival['accuracy']:.3f}, {rival['RMS gap']:.3f}",
            names[ours.index].iloc[at],
            f"{best['accuracy']:.3f}, {best['RMS gap']:.3f}",
            report._difference(best, "RMS gap - best baseline"),
            verdict,
        ]
        text.append(f"| {' | '.join(cells)} |")
    return [*text, ""]


def picture(table: pd.DataFrame, path: Path) -> None:
    """RMS gap and accuracy over the layers, a column of panels for each pool: by LDA, gender known where it is used."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    measured = set(table["data"])
    pools = [p for p in states.POOLS if any(f"SmolLM2, layer {layer}, {p}" in measured for layer in states.LAYERS)]
    figure, axes = plt.subplots(2, len(pools), figsize=(9, 6.4), sharex=True, sharey="row", squeeze=False)
    colours = dict(
        zip(
            (ORIGINAL, MEAN, COVARIANCE, LEACE, TRANSLATIONS, DIAGONAL, AFFINE),
            ("#000000", "#E69F00", "#999999", "#CC79A7", "#0072B2", "#009E73", "#56B4E9"),
            strict=True,
        )
    )
    for j, pool in enumerate(pools):
        floor: dict[int, float] = {}
        for i, (method, colour) in enumerate(colours.items()):
            points = {}
            for layer in states.LAYERS:
                own = table[(table["data"] == f"SmolLM2, layer {layer}, {pool}") & (table["method"] == method)]
                own = own[(own["rule"] == LDA) & own["gender"].isin(["known", "withheld"])]
                if len(own):
                    points[layer] = own.sort_values("gender").iloc[0]  # known where there is a choice
            at = np.array(sorted(points))
            if method == ORIGINAL:
                floor = {layer: point["floor"] for layer, point in points.items()}
            for k, measure in enumerate(("RMS gap", "accuracy")):
                value = np.array([points[layer][measure] for layer in at])
                ends = np.array([[points[layer][f"{measure}, {end}"] for layer in at] for end in ("low", "high")])
                bars = np.maximum([value - ends[0], ends[1] - value], 0)
                style: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 3, "linewidth": 1}
                axes[k][j].errorbar(at + 0.2 * (i - 3), value, bars, label=method, elinewidth=0.7, **style)
        axes[0][j].plot(
            sorted(floor), [floor[layer] for layer in sorted(floor)], ":", color="0.4", label="chance alone"
        )
        axes[0][j].set_title("mean of the text's tokens" if pool == "mean" else "last token", fontsize=9)
        axes[1][j].set_xlabel("layer")
        axes[1][j].set_xticks(states.LAYERS)
    axes[0][0].set_ylabel("RMS gap between women and men")
    axes[1][0].set_ylabel("accuracy")
    axes[0][0].set_ylim(bottom=0)
    figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="lower center", fontsize=8, ncols=4)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
