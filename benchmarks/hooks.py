"""``python -m benchmarks.hooks``: steering inside torch models, what it costs and whether it does the same.

``overhead``: time of a forward pass with hooks, relative to the same model without. ``tokens``: time per generated
token of SmolLM2 with a cache: plain, hooked, folded into weights, eager and compiled, and whether folding gives the
same. ``memory``: peak of `collect_activations` for 2, 8 and 32 batches. ``text``: biographies as text through the
sentence encoder with a hook, compared with steering the stored embeddings and hidden states in NumPy; exits with status
1 where they differ by more than rounding.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import threadpoolctl
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import fairsteer
from benchmarks import encoder, smollm, timing
from benchmarks.datasets import add_data_option
from fairsteer import FairSteeringTransformer
from fairsteer.concepts import ConceptSteering
from fairsteer.metrics import tpr_gap_rms
from fairsteer.torch import ConceptSteeringModule, SteeringModule, collect_activations, fold_into, steering_hooks

BATCHES = (2, 8, 32)
#: Largest relative error of rounding to float16, and half the distance of its numbers next to zero.
HALF_UNIT, HALF_TINY = 2.0**-11, 2.0**-25
#: What single precision may add through six layers, relative to the largest value of a vector.
FLOAT_TOLERANCE = 1e-5


def environment() -> None:
    fairsteer.show_versions()
    blas = {
        f"{library['internal_api']} {library['num_threads']} threads" for library in threadpoolctl.threadpool_info()
    }
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads; BLAS: {', '.join(sorted(blas))}\n")


# ---- overhead


def _maps(d: int, n_moving: int) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    rng = np.random.default_rng(0)
    still = (np.eye(d), np.zeros(d))
    moving = {g: (np.eye(d) + 0.01 * rng.normal(size=(d, d)), 0.01 * rng.normal(size=d)) for g in "ab"[:n_moving]}
    return {"a": still, "b": still, **moving}


def overhead(budget: float) -> None:
    """Two groups, one of which stays (affirmative) or both of which move; groups of sequences in equal numbers."""
    torch.manual_seed(0)
    minilm, _ = encoder.load()
    config = LlamaConfig(
        vocab_size=1024, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048
    )
    llama = LlamaForCausalLM(config).eval()
    n_new = 8

    def generate(model: Any, inputs: dict[str, Tensor]) -> Any:
        return model.generate(
            **inputs, max_new_tokens=n_new, min_new_tokens=n_new, do_sample=False, pad_token_id=0, eos_token_id=None
        )

    def forward(model: Any, inputs: dict[str, Tensor]) -> Any:
        return model(**inputs)

    tasks = [
        (
            "MiniLM, 8 x 64 tokens",
            minilm,
            forward,
            encoder.random_ids(8, 64, 30000),
            "transformer.encoder.layer",
            384,
        ),
        ("causal LM, 8 x 64 tokens", llama, forward, encoder.random_ids(8, 64, 1024), "model.layers", 512),
        (f"causal LM, {n_new} tokens for 8", llama, generate, encoder.random_ids(8, 16, 1024), "model.layers", 512),
    ]
    print("maps: how many of the two groups move; flops: products with the maps over those with the layers' weights;")
    print("CPU: the same overhead by the processor's clock, which other processes disturb less\n")
    print(
        f"{'':<28} {'layers':>6} {'maps':>4} {'without':>10} {'hooked':>10} {'overhead':>9} {'CPU':>7} {'a layer':>7} "
        f"{'flops':>6} {'rounds':>6}"
    )
    for name, model, run, inputs, layers, d in tasks:
        groups = ["a", "b"] * (len(inputs["input_ids"]) // 2)
        n_layers = sum(1 for _ in model.get_submodule(layers))
        weights = sum(parameter.numel() for parameter in model.get_submodule(layers).parameters())
        for pattern, n_hooked in ((f"{layers}.{n_layers // 2}", 1), (f"{layers}.*", n_layers)):
            for n_moving in (1, 2):
                hooked = copy.deepcopy(model)
                with torch.no_grad(), ExitStack() as stack:
                    source = SteeringModule(_maps(d, n_moving))
                    stack.enter_context(steering_hooks(hooked, {pattern: source}, sensitive_features=groups))
                    sides = [Side(partial(run, which, inputs)) for which in (model, hooked)]
                    for side in sides:
                        side()
                    (plain, steered), rounds = timing.alternated(sides, budget=budget)
                extra = sides[1].median() / sides[0].median() - 1
                print(
                    f"{name:<28} {n_hooked:>6} {n_moving:>4} {timing.duration(plain):>10} "
                    f"{timing.duration(steered):>10} {steered / plain - 1:>9.1%} {extra:>7.1%} "
                    f"{extra / n_hooked:>7.1%} {n_hooked * d * d * n_moving / 2 / weights:>6.1%} {rounds:>6}",
                    flush=True,
                )


class Side:
    """A run that counts its seconds of the processor."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run, self._seconds = run, list[float]()

    def __call__(self) -> None:
        start = time.process_time()
        self._run()
        self._seconds.append(time.process_time() - start)

    def median(self) -> float:
        return statistics.median(self._seconds[1:])  # the first is no round


# ---- tokens

N_PROMPT = 24
#: Blocks of the network whose steps are compiled.
N_COMPILED = 4


def _steps(network: Any, ids: Tensor, n_new: int, step: Any = None) -> tuple[float, Tensor]:
    """Seconds of the processor for a token, greedily and with a cache, after the prompt; and the last logits.

    `step`: the compiled network, which runs all but the prompt.
    """
    name = "cache" if "cache" in inspect.signature(network.forward).parameters else "past_key_values"
    cache = {name: DynamicCache(config=network.config)}
    mask = torch.ones(len(ids), ids.shape[1] + n_new, dtype=torch.long)
    logits = network(input_ids=ids, attention_mask=mask[:, : ids.shape[1]], **cache).logits
    step = network if step is None else step
    start = time.process_time()
    for t in range(n_new):
        token = logits[:, -1:].argmax(-1)
        logits = step(input_ids=token, attention_mask=mask[:, : ids.shape[1] + t + 1], **cache).logits
    return (time.process_time() - start) / n_new, logits[:, -1]


def _concept(d: int, dtype: torch.dtype = torch.float32) -> ConceptSteeringModule:
    rng = np.random.default_rng(0)
    shown, group = rng.integers(0, 2, (2, 400))
    hidden = rng.normal(size=(400, d)) + np.outer(shown, rng.normal(size=d)) / 3
    steering = ConceptSteering(n_probes=8).fit(hidden, shown, sensitive_features=np.array(["a", "b"])[group])
    return ConceptSteeringModule(steering, dtype=dtype)


def _sides(network: Any, groups: list[str]) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """Ways to steer a network, by what is in force while a context lasts."""
    d, middle = network.config.hidden_size, network.config.num_hidden_layers // 2
    concept, affine = _concept(d), SteeringModule(_maps(d, 2))
    part = network.get_submodule(f"model.layers.{middle}.mlp.down_proj")

    def hooked(source: nn.Module, where: str) -> AbstractContextManager[Any]:
        return steering_hooks(network, {f"model.layers.{where}": source}, sensitive_features=groups)

    return {
        "plain": nullcontext,
        "concept, folded into one bias": lambda: fold_into(part, concept, sensitive_features="a"),
        "concept, hook on one block": partial(hooked, concept, str(middle)),
        "concept, hooks on all blocks": partial(hooked, concept, "*"),
        "affine maps, hook on one block": partial(hooked, affine, str(middle)),
        "affine maps, hooks on all blocks": partial(hooked, affine, "*"),
    }


def tokens(sequences: list[int], n_new: int, n_rounds: int, compiled: bool) -> None:
    """One block or all of them; one sequence, or several of two groups."""
    network, _ = smollm.load()
    network.generation_config.pad_token_id = 0
    d, n_layers = network.config.hidden_size, network.config.num_hidden_layers
    rng = np.random.default_rng(0)
    print(f"SmolLM2-135M, float32, {n_layers} blocks of {d} features; {N_PROMPT} tokens of prompt, {n_new} new ones")
    if not compiled:
        _folded_and_hooked(network, torch.tensor(rng.integers(100, 40000, (1, N_PROMPT))))
    for n in sequences:
        ids = torch.tensor(rng.integers(100, 40000, (n, N_PROMPT)))
        groups = (["a", "b"] * n)[:n]
        if compiled:
            _compiled_tokens(network, ids, groups, n_new, n_rounds)
            continue
        seconds: dict[str, list[float]] = {}
        sides = _sides(network, groups)
        for _ in range(n_rounds):
            for name, context in sides.items():
                with torch.no_grad(), context():
                    seconds.setdefault(name, []).append(_steps(network, ids, n_new)[0])
        _tell(f"eager, sequences: {n}, groups: {len(set(groups))}", seconds)


def _compiled_tokens(network: Any, ids: Tensor, groups: list[str], n_new: int, n_rounds: int) -> None:
    """Compiled steps of the first blocks: a copy for each way, which shares the weights and stays steered.

    All blocks would take a quarter of an hour to compile.
    """
    # Copies run the same code, which torch would otherwise take for the same whether hooked or not.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    torch._dynamo.reset()
    stats = torch._dynamo.utils.counters["stats"]
    short = copy.copy(network.config)
    short.num_hidden_layers = N_COMPILED
    first = type(network)(short).eval()
    first.model.embed_tokens, first.model.norm, first.lm_head = (
        network.model.embed_tokens, network.model.norm, network.lm_head
    )  # fmt: skip
    first.model.layers = network.model.layers[:N_COMPILED]
    seconds: dict[str, list[float]] = {}
    with torch.no_grad(), ExitStack() as stack:
        steps = {}
        for name in _sides(first, groups):
            own = copy.deepcopy(first, {id(weights): weights for weights in first.parameters()})
            stack.enter_context(_sides(own, groups)[name]())
            step, start = torch.compile(own, dynamic=True), time.process_time()
            found, expected = _steps(own, ids, 3, step)[1], _steps(own, ids, 3)[1]
            error = float((found - expected).abs().max() / expected.abs().max())
            print(f"  {name}: compiled in {time.process_time() - start:.0f} s, {error:.0e} from eager", flush=True)
            steps[name] = own, step
        before = stats["unique_graphs"]
        for _ in range(n_rounds):
            for name, (own, step) in steps.items():
                seconds.setdefault(name, []).append(_steps(own, ids, n_new, step)[0])
        again = stats["unique_graphs"] - before
    what = f"compiled, {N_COMPILED} blocks, sequences: {len(ids)}, groups: {len(set(groups))}"
    _tell(f"{what}; {again} graphs compiled in {n_rounds * n_new * len(steps)} steps", seconds)


def _folded_and_hooked(network: Any, ids: Tensor) -> None:
    """How far logits of folded weights are from those of the hook, in single and in double precision."""
    middle = network.config.num_hidden_layers // 2
    for dtype in (torch.float32, torch.float64):
        own = network if dtype == torch.float32 else copy.deepcopy(network).to(dtype)
        concept = _concept(network.config.hidden_size, dtype)
        with torch.no_grad():
            with steering_hooks(own, {f"model.layers.{middle}": concept}, sensitive_features="a"):
                expected = _steps(own, ids, 8)[1]
            with fold_into(own.get_submodule(f"model.layers.{middle}.mlp.down_proj"), concept, sensitive_features="a"):
                found = _steps(own, ids, 8)[1]
        apart, size = float((found - expected).abs().max()), float(expected.abs().max())
        print(
            f"logits after 8 tokens in {dtype}, folded against hooked: {apart:.1e} apart at most, of {size:.1f}: "
            f"{apart / size:.1e}, the unit of rounding being {torch.finfo(dtype).eps / 2:.1e}",
            flush=True,
        )


def _tell(what: str, seconds: dict[str, list[float]]) -> None:
    print(f"\n{what}")
    for name, taken in seconds.items():
        # Each round against the plain run beside it: a busy machine slows both.
        ratio = statistics.median(one / other for one, other in zip(taken, seconds["plain"], strict=True))
        print(
            f"  {name:<34} {timing.duration(statistics.median(taken)):>10} a token "
            f"{'' if name == 'plain' else f'{ratio - 1:>+7.1%}'}  (least {timing.duration(min(taken))}, "
            f"{min(taken) / min(seconds['plain']) - 1:+.1%})",
            flush=True,
        )


# ---- memory


def memory() -> None:
    command = [sys.executable, "-m", "benchmarks.hooks", "peaks"]
    environ = {**os.environ, **timing.MEMORY_ENVIRONMENT}
    result = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"the subprocess that measures memory failed:\n{result.stderr}")
    print("collect_activations of MiniLM's six layers, tokens of batches of 16 x 64, two classes and two groups")
    print(f"memory: {timing.memory_method()}")
    for n, peak, kept in json.loads(result.stdout):
        print(f"{n:>4} batches: peak {peak / 2**20:7.1f} MB; keeping the activations would take {kept / 2**20:7.1f} MB")


def peaks() -> None:
    """The subprocess: peaks to stdout."""
    model, _ = encoder.load()
    labels = np.arange(16) % 2, np.repeat(["a", "b"], 8)

    def run(n: int) -> None:
        batches = ((encoder.random_ids(16, 64, 30000, seed), *labels) for seed in range(n))
        collect_activations(model, batches, "transformer.encoder.layer.*", pool=None)

    run(1)  # what loads on first use
    tokens = int(encoder.random_ids(16, 64, 30000)["attention_mask"].sum())
    measured = [(n, timing.extra_peak_memory(partial(run, n)), n * 6 * tokens * 384 * 4) for n in BATCHES]
    json.dump(measured, sys.stdout)


# ---- from text


class Classifier(nn.Module):
    """Token ids to classes, by way of embeddings: the sentence encoder with a logistic regression on top."""

    def __init__(self, model: nn.Module, regression: LogisticRegression) -> None:
        super().__init__()
        self.encoder, self.head = model, nn.Linear(*regression.coef_.shape[::-1])
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor(regression.coef_))
            self.head.bias.copy_(torch.tensor(regression.intercept_))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.encoder(input_ids, attention_mask))


class Comparison:
    """Prints differences as shares of what rounding explains, and remembers whether all are explained."""

    def __init__(self) -> None:
        self.agrees = True
        print(f"  {'largest difference':<66} {'absolute':>9} {'of bound':>9}")

    def __call__(self, what: str, difference: npt.NDArray[Any], bound: npt.NDArray[Any]) -> None:
        share = float((np.abs(difference) / bound).max())
        self.agrees &= bool(share <= 1)
        print(f"  {what:<66} {np.abs(difference).max():>9.1e} {share:>9.1%}", flush=True)


def _storing(stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Bound on what rounding to float16, after a model in single precision, does to stored values."""
    values = np.abs(stored.astype(np.float64))
    return np.asarray(HALF_UNIT * values + HALF_TINY + FLOAT_TOLERANCE * values.max(axis=1, keepdims=True))


def _through(steer: FairSteeringTransformer, groups: npt.NDArray[Any], rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Bounds of rows after the maps of their groups, which weigh them by absolute values."""
    out = np.empty_like(rows)
    for group, (A, _) in steer.maps_.items():
        out[groups == group] = rows[groups == group] @ np.abs(A).T
    return out


def _in_single(steer: FairSteeringTransformer, groups: npt.NDArray[Any], rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Bound on what the maps in single precision add."""
    wide = np.abs(rows.astype(np.float64))
    return FLOAT_TOLERANCE * (_through(steer, groups, wide) + 1e-3)


def text(folder: Path, n_texts: int, batch_size: int) -> bool:
    """Test rows as text through encoder, hook and classifier; fitted to the stored training rows."""
    model, tokenizer = encoder.load()
    labels = pd.read_parquet(folder / "biographies" / "labels.parquet")
    table = encoder.biographies_with_text(folder)
    # Those with hidden states first.
    table = table[table["split"] == "test"].sort_values("hidden", ascending=False, kind="stable").head(n_texts)
    parts = [
        ("embedding", "embedding", "embeddings.f16.npy", slice(None), np.arange(len(labels))),
        *(
            (f"mean of layer {layer}", f"transformer.encoder.layer.{layer - 1}", "hidden_states.f16.npy", columns, wide)
            for layer, columns in ((2, slice(0, 384)), (4, slice(384, 768)), (6, slice(768, 1152)))
            for wide in [np.flatnonzero(labels["wide"])]
        ),
    ]
    agrees = True
    for name, layer, file, columns, positions in parts:
        stored = np.load(folder / "biographies" / file, mmap_mode="r")[:, columns]
        of_row = labels.iloc[positions]
        train = (of_row["split"] == "train").to_numpy()
        some = table[table["hidden"] >= 0] if "layer" in name else table
        own = stored[some["hidden" if "layer" in name else "embedding"].to_numpy()]
        agrees &= _compare(name, layer, model, tokenizer, stored[train], of_row[train], own, some, batch_size)
    return agrees


def _compare(
    name: str,
    layer: str,
    model: encoder.SentenceEncoder,
    tokenizer: Any,
    train: npt.NDArray[Any],
    train_labels: pd.DataFrame,
    stored: npt.NDArray[Any],
    table: pd.DataFrame,
    batch_size: int,
) -> bool:
    """Steer one part of the model by a hook, and what is stored of it by `transform`."""
    groups, y = table["group"].to_numpy(), table["label"].to_numpy()
    with warnings.catch_warnings():
        # One feature of MiniLM hardly varies, and fit says that shrinkage hides it; here that is all the same.
        warnings.simplefilter("ignore", UserWarning)
        steer = FairSteeringTransformer()
        steer.fit(train, train_labels["label"], sensitive_features=train_labels["group"])
    fitted_to = steer.transform(train, sensitive_features=train_labels["group"])
    regression = LogisticRegression(C=10 if name == "embedding" else 0.01, max_iter=300)
    regression.fit(fitted_to.astype(np.float32), train_labels["label"])
    classifier = Classifier(model, regression)

    print(f"{name}: fitted to {len(train):,} stored rows, {len(stored):,} texts, hook on {layer!r}")
    plain, hooked = np.empty(stored.shape, np.float32), np.empty(stored.shape, np.float32)
    logits = np.empty((len(stored), len(regression.classes_)), np.float32)
    recorded: list[Tensor] = []
    source = SteeringModule(steer)
    for rows, inputs in encoder.encoded(tokenizer, list(table["text"]), batch_size):
        with torch.no_grad(), ExitStack() as stack:
            record = model.get_submodule(layer).register_forward_hook(lambda *args: recorded.append(args[-1]))
            stack.callback(record.remove)
            classifier(**inputs)
            with steering_hooks(classifier, {f"encoder.{layer}": source}, sensitive_features=groups[rows]):
                outputs = classifier(**inputs)
        without, steered = recorded
        recorded.clear()
        if steered.ndim == 3:
            without, steered = (encoder.mean_of_tokens(part, inputs["attention_mask"]) for part in (without, steered))
            outputs = classifier.head(steered)
        plain[rows], hooked[rows], logits[rows] = without, steered, outputs.detach()

    compare = Comparison()
    storing = _storing(stored)
    compare("stored, and computed from the text", plain - stored.astype(np.float64), storing)
    in_numpy = steer.transform(plain.astype(np.float64), sensitive_features=groups)
    single = _in_single(steer, groups, plain)
    compare("steered by the hook, and in NumPy from the same state", hooked - in_numpy, single)
    from_stored = steer.transform(stored.astype(np.float64), sensitive_features=groups)
    bound = single + _through(steer, groups, storing)
    compare("steered by the hook, and in NumPy from what is stored", hooked - from_stored, bound)
    scores = regression.decision_function(from_stored)
    of_scores = bound @ np.abs(regression.coef_).T + FLOAT_TOLERANCE * np.abs(scores).max()
    compare("scores of the classes from the text, and from what is stored", logits - scores, of_scores)
    from_text = regression.classes_[logits.argmax(axis=1)]
    for path, rows in (("the same states", in_numpy), ("what is stored", from_stored)):
        predicted = regression.predict(rows)
        gap = tpr_gap_rms(y, predicted, sensitive_features=groups)
        print(
            f"  classes from NumPy and {path + ':':<17} accuracy {(predicted == y).mean():.4f}, RMS TPR gap {gap:.4f}; "
            f"{(predicted != from_text).sum()} of {len(y)} differ from those by the hook"
        )
    print()
    return compare.agrees


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hooks", description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", help="overhead, tokens, memory, text (default: all)")
    parser.add_argument("--budget", type=float, default=8, help="seconds for the rounds of an overhead")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8], help="how many are generated at a time")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens that are generated and timed")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of generated tokens")
    parser.add_argument("--compiled", action="store_true", help="measure compiled steps instead, which takes minutes")
    parser.add_argument("--texts", type=int, default=1392, help="how many test biographies (all of them)")
    parser.add_argument("--batch-size", type=int, default=32)
    add_data_option(parser)
    arguments = parser.parse_args()
    chosen = arguments.part or ["overhead", "tokens", "memory", "text"]
    if chosen == ["peaks"]:
        peaks()
        return 0
    if unknown := set(chosen) - {"overhead", "tokens", "memory", "text"}:
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    environment()
    if "overhead" in chosen:
        overhead(arguments.budget)
        print()
    if "tokens" in chosen:
        tokens(arguments.sequences, arguments.new_tokens, arguments.rounds, arguments.compiled)
        print()
    if "memory" in chosen:
        memory()
        print()
    if "text" not in chosen:
        return 0
    if arguments.data is None:
        print("text: left out, for there is no --data or FAIRSTEER_DATA")
        return 0
    return int(not text(arguments.data, arguments.texts, arguments.batch_size))


if __name__ == "__main__":
    sys.exit(main())
