"""Steering where models are served: prompts and tokens after them, compiled steps, weights that hold it."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fairsteer import FairSteeringTransformer
from fairsteer.concepts import ConceptSteering

if TYPE_CHECKING:
    import torch
    from torch import nn
else:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    nn = torch.nn
steering = importlib.import_module("fairsteer.torch")
fold_into, steering_hooks = steering.fold_into, steering.steering_hooks
ConceptSteeringModule, SteeringModule = steering.ConceptSteeringModule, steering.SteeringModule

D = 8
GROUPS = ["f", "m", "f"]
IDS = torch.randint(2, 40, (3, 5), generator=torch.Generator().manual_seed(1))
LENGTHS = [3, 5, 4]


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(params=["llama", "gpt2"])
def model(transformers: Any, request: pytest.FixtureRequest) -> Any:
    """A causal language model of random weights, its middle block, and the last linear layer of that."""
    torch.manual_seed(0)
    shared = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "initializer_range": 0.3}
    if request.param == "llama":
        config = transformers.LlamaConfig(
            hidden_size=D, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, **shared
        )
        return transformers.LlamaForCausalLM(config).eval(), "model.layers.1", "mlp.down_proj"
    config = transformers.GPT2Config(n_embd=D, n_layer=3, n_head=2, n_positions=32, **shared)
    return transformers.GPT2LMHeadModel(config).eval(), "transformer.h.1", "mlp.c_proj"


def _maps(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return {g: (np.eye(D) + 0.3 * rng.normal(size=(D, D)), rng.normal(size=D)) for g in "fm"}


@pytest.fixture(scope="module")
def concept() -> ConceptSteering:
    rng = np.random.default_rng(0)
    shown, group = rng.integers(0, 2, (2, 400))
    hidden = rng.normal(size=(400, D)) + np.outer(shown, np.arange(D)) / 3 + group[:, None]
    return ConceptSteering(n_probes=8).fit(hidden, shown, sensitive_features=np.array(["f", "m"])[group])


# ---- prompt and steps


def _padded(side: str) -> Any:
    """Prompts of three lengths, and the mask of what is no padding."""
    mask = torch.stack([(torch.arange(5) < n) if side == "right" else (torch.arange(5) >= 5 - n) for n in LENGTHS])
    own = torch.zeros_like(IDS)
    for i, n in enumerate(LENGTHS):
        own[i, mask[i]] = IDS[i, :n]
    return own, mask.long()


def _given(network: Any, cache: Any) -> dict[str, Any]:
    """Hand over a cache by the name that the version of transformers has for it."""
    return {"cache" if "cache" in inspect.signature(network.forward).parameters else "past_key_values": cache}


def _positions(mask: Any) -> Any:
    return (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_padded_batch_of_several_groups_is_steered_as_each_sequence_alone(
    transformers: Any, model: Any, side: str, dtype: Any
) -> None:
    network, name, _ = model
    network = network.to(dtype)
    ids, mask = _padded(side)
    steps = torch.randint(2, 40, (3, 3), generator=torch.Generator().manual_seed(2))
    with steering_hooks(network, {name: _maps()}, sensitive_features=GROUPS) as handle:
        cache, found = _given(network, transformers.DynamicCache(config=network.config)), []
        network(input_ids=ids, attention_mask=mask, position_ids=_positions(mask), **cache)
        for t in range(steps.shape[1]):
            mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], 1)
            step = network(
                input_ids=steps[:, [t]],
                attention_mask=mask,
                position_ids=_positions(mask)[:, -1:],
                **cache,
            )
            found.append(step.logits[:, -1])
        for i, n in enumerate(LENGTHS):
            handle.sensitive_features = GROUPS[i]
            alone = network(input_ids=torch.cat([IDS[i, :n], steps[i]])[None]).logits[0]
            tolerance = 1e-4 if dtype == torch.float32 else 0.15
            torch.testing.assert_close(torch.stack(found)[:, i], alone[-3:], rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_samples_of_several_groups_are_steered_by_their_own(model: Any) -> None:
    network, name, _ = model
    ids, mask = _padded("left")
    keywords = {"max_new_tokens": 4, "do_sample": True, "num_return_sequences": 2, "output_scores": True}
    with steering_hooks(network, {name: _maps()}, sensitive_features=np.repeat(GROUPS, 2)) as handle:
        torch.manual_seed(0)
        output = network.generate(input_ids=ids, attention_mask=mask, return_dict_in_generate=True, top_k=0, **keywords)
        for row, sequence in enumerate(output.sequences):
            handle.sensitive_features = GROUPS[row // 2]
            scores = network(input_ids=sequence[5 - LENGTHS[row // 2] :][None]).logits[0, -5:-1]
            torch.testing.assert_close(torch.stack(output.scores)[:, row], scores, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "given"), [("static", True), ("dynamic", False)])
def test_compiled_steps_are_compiled_once(transformers: Any, kind: str, given: bool) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=D, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    network = transformers.LlamaForCausalLM(config).eval().model
    layers = {"layers.0": SteeringModule(_maps())}
    ids, mask = _padded("left")
    full = torch.cat([mask, torch.ones(3, 9, dtype=torch.long)], 1)

    def run(network: Any) -> tuple[Any, list[int]]:
        cache = transformers.StaticCache(config=config, max_cache_len=16) if kind == "static" else (
            transformers.DynamicCache(config=config)
        )  # fmt: skip
        forward = getattr(network, "_orig_mod", network)
        hidden, graphs, taken = [], [], ids
        for t in range(5):
            output = network(
                input_ids=taken,
                attention_mask=full[:, : 5 + t],
                position_ids=_positions(full)[:, : 5 + t][:, -taken.shape[1] :],
                **_given(forward, cache),
            )
            hidden.append(output.last_hidden_state[:, -1])
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
            taken = IDS[:, [t % 5]]
            if t == 3:
                handle.sensitive_features = ["m", "f", "m"]  # compiles nothing anew
        handle.sensitive_features = GROUPS
        return torch.stack(hidden), graphs

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        with steering_hooks(network, layers, sensitive_features=GROUPS) as handle:
            handle.token_mask = mask if given else None
            found, graphs = run(torch.compile(network, backend="eager"))
            expected, _ = run(network)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert not torch._dynamo.utils.counters["graph_break"]
        # The prompt, the first step, and once more for any number of tokens before a step.
        assert graphs[2] <= 3
        assert len(set(graphs[2:])) == 1
    finally:
        torch._dynamo.reset()


# ---- folded into weights


def _single(group: str, form: str, concept: Any) -> Any:
    """A source, and how it is given its group."""
    if form == "concept":
        return ConceptSteeringModule(concept, strength=1.5)
    if form == "module":
        return SteeringModule(_maps(), strength=0.7)
    return _maps()


@torch.no_grad()
@pytest.mark.parametrize("form", ["maps", "module", "concept"])
@pytest.mark.parametrize("layer", ["Linear", "Linear without bias", "Conv1D", "Embedding"])
def test_folded_outputs_are_hooked_outputs(transformers: Any, concept: Any, layer: str, form: str) -> None:
    torch.manual_seed(0)
    made = {
        "Linear": lambda: nn.Linear(5, D),
        "Linear without bias": lambda: nn.Linear(5, D, bias=False),
        "Conv1D": lambda: transformers.pytorch_utils.Conv1D(D, 5),
        "Embedding": lambda: nn.Embedding(7, D),
    }[layer]()
    model = nn.Sequential(made)
    inputs = torch.arange(7) if layer == "Embedding" else torch.randn(7, 5)
    plain, names = model(inputs), dict(made.named_parameters())
    source = _single("m", form, concept)
    with steering_hooks(model, {"0": source}, sensitive_features="m"):
        hooked = model(inputs)
    with fold_into(made, source, sensitive_features="m"):
        torch.testing.assert_close(model(inputs), hooked, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(hooked, plain, atol=0.1)
    assert torch.equal(model(inputs), plain)
    assert all(dict(made.named_parameters())[name] is parameter for name, parameter in names.items())


@torch.no_grad()
@pytest.mark.parametrize("layer", ["Linear", "Conv1D"])
def test_folded_inputs_are_hooked_outputs_of_the_layer_before(transformers: Any, layer: str) -> None:
    torch.manual_seed(0)
    head = nn.Linear(D, 4, bias=False) if layer == "Linear" else transformers.pytorch_utils.Conv1D(4, D)
    model = nn.Sequential(nn.LayerNorm(D), head)
    inputs = torch.randn(7, D)
    with steering_hooks(model, {"0": _maps()}, sensitive_features="f"):
        hooked = model(inputs)
    folded = fold_into(head, _maps(), sensitive_features="f", side="input")
    torch.testing.assert_close(model(inputs), hooked, rtol=1e-5, atol=1e-5)
    folded.undo()
    folded.undo()  # which changes nothing


@torch.no_grad()
def test_layer_norm_takes_maps_of_single_features(make_data: Any) -> None:
    X, y, group = make_data(n_features=D, n_classes=2, n_groups=2)
    model, inputs = nn.Sequential(nn.LayerNorm(D)), torch.randn(7, D)
    for map_type in ("diagonal", "translation"):
        transformer = FairSteeringTransformer(map_type=map_type, strength=0.5, intervention="affirmative")
        transformer.set_params(reference_group=0).fit(X + 3, y, sensitive_features=group)
        with steering_hooks(model, {"0": transformer}, sensitive_features=1):
            hooked = model(inputs)
        with fold_into(model[0], transformer, sensitive_features=1):
            torch.testing.assert_close(model(inputs), hooked, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_concept_in_the_residual_stream_is_a_bias_of_its_last_part(model: Any, concept: Any) -> None:
    network, name, last = model
    source = ConceptSteeringModule(concept, strength=2.0)
    with steering_hooks(network, {name: source}, sensitive_features="f"):
        hooked = network(input_ids=IDS).logits
        tokens = network.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, do_sample=False)
    with fold_into(network.get_submodule(f"{name}.{last}"), source, sensitive_features="f"):
        torch.testing.assert_close(network(input_ids=IDS).logits, hooked, rtol=1e-5, atol=1e-5)
        folded = network.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, do_sample=False)
    assert torch.equal(folded, tokens)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_what_folding_changes_is_rounding(model: Any, concept: Any, dtype: Any, relative: float) -> None:
    """In double precision nothing else is left; single precision rounds in another order."""
    network, name, last = model
    network = copy.deepcopy(network).to(dtype)
    source = ConceptSteeringModule(concept, strength=2.0, dtype=dtype)
    with steering_hooks(network, {name: source}, sensitive_features="f"):
        hooked = network(input_ids=IDS).logits
    with fold_into(network.get_submodule(f"{name}.{last}"), source, sensitive_features="f"):
        folded = network(input_ids=IDS).logits
    assert float((folded - hooked).abs().max() / hooked.abs().max()) < relative


@torch.no_grad()
def test_tied_embeddings_are_left_alone(transformers: Any) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=D, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        tie_word_embeddings=True,
    )  # fmt: skip
    network = transformers.LlamaForCausalLM(config).eval()
    before = network.model.embed_tokens.weight.clone()
    with steering_hooks(network, {"model.norm": _maps()}, sensitive_features="m"):
        hooked = network(input_ids=IDS).logits
    with fold_into(network.lm_head, _maps(), sensitive_features="m", side="input"):
        torch.testing.assert_close(network(input_ids=IDS).logits, hooked, rtol=1e-5, atol=1e-5)
        assert torch.equal(network.model.embed_tokens.weight, before)
    assert network.lm_head.weight is network.model.embed_tokens.weight


def test_layers_keep_their_type_and_whether_they_learn() -> None:
    layer = nn.Linear(5, D, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    fold_into(layer, _maps(), sensitive_features="m")
    assert {(p.dtype, p.requires_grad) for p in layer.parameters()} == {(torch.bfloat16, False)}
    assert len(list(layer.parameters())) == 2


def test_what_cannot_be_folded_is_refused(make_data: Any) -> None:
    X, y, group = make_data(n_features=D, n_classes=2, n_groups=2)
    logs = FairSteeringTransformer(map_type="affine", feature_transform="log").fit(
        np.exp(X / 4), y, sensitive_features=group
    )
    unknown = FairSteeringTransformer(map_type="affine", unknown_group="infer").fit(X, y, sensitive_features=group)
    maps = _maps()
    for layer, arguments, error, message in (
        (nn.ReLU(), (maps,), TypeError, "not into ReLU"),
        (nn.LayerNorm(D, elementwise_affine=False), (maps,), TypeError, "not into LayerNorm"),
        (nn.LayerNorm(D), (maps,), ValueError, "the map mixes them"),
        (nn.Linear(D, 5), (maps,), ValueError, "maps are of 8 features, the output of the layer has 5"),
        (nn.Linear(5, D), (maps, "x"), ValueError, "'x'"),
        (nn.Linear(5, D), (maps, None), ValueError, "No groups are given"),
        (nn.Linear(5, D), (maps, ["f", "m"]), ValueError, "one group, not of 2"),
        (nn.Linear(5, D), (unknown, None), ValueError, "one group that is known"),
        (nn.Linear(5, D), (logs, 0), ValueError, "logarithms|log"),
        (nn.Linear(5, D), (3,), TypeError, "SteeringModule is made from"),
    ):
        source, label = (*arguments, "f")[:2]
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        with pytest.raises(error, match=message):
            fold_into(layer, source, sensitive_features=label)
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    with pytest.raises(ValueError, match="cannot be steered by its weights"):
        fold_into(nn.Embedding(3, D), maps, sensitive_features="f", side="input")
    with pytest.raises(ValueError, match="side must be"):
        fold_into(nn.Linear(D, D), maps, sensitive_features="f", side="both")
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\]"):
        fold_into(nn.Linear(5, D), maps, sensitive_features="f", strength=2.0)


@torch.no_grad()
def test_a_folded_model_is_saved_and_loaded_like_any_other(transformers: Any, concept: Any, tmp_path: Path) -> None:
    """Where the configuration has the bias: servers build their layers from it."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=D, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, mlp_bias=True,
    )  # fmt: skip
    network = transformers.LlamaForCausalLM(config).eval()
    source = ConceptSteeringModule(concept, strength=2.0)
    with steering_hooks(network, {"model.layers.1": source}, sensitive_features="f"):
        hooked = network(input_ids=IDS).logits
    fold_into(network.model.layers[1].mlp.down_proj, source, sensitive_features="f")
    network.save_pretrained(tmp_path)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(input_ids=IDS).logits, hooked, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("equalized", [False, True])
def test_a_control_vector_is_what_the_hook_adds(concept: Any, model: Any, tmp_path: Path, equalized: bool) -> None:
    """Added to the output of the block with its number, as llama.cpp does."""
    pytest.importorskip("gguf", reason="gguf is not installed")
    export = importlib.import_module("fairsteer.export")
    network, name, _ = model
    if equalized:
        concept = copy.copy(concept).equalize([1.0, 4.0], {"f": [1.0, 3.0], "m": [2.0, 5.0]})
        assert concept.group_strengths(1.5).tolist() != [1.5, 1.5]
    with steering_hooks(network, {name: ConceptSteeringModule(concept, strength=1.5)}, sensitive_features="m"):
        hooked = network(input_ids=IDS).logits
    block = int(name.rpartition(".")[2])
    export.export_control_vector({block: concept}, tmp_path / "m.gguf", sensitive_features="m", strength=1.5)
    vectors = export.read_control_vector(tmp_path / "m.gguf")

    def adding(shift: Any) -> Any:
        def hook(layer: Any, args: Any, output: Any) -> Any:
            return (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift

        return hook

    blocks = network.get_submodule(name.rpartition(".")[0])
    handles = [blocks[n].register_forward_hook(adding(torch.tensor(vector))) for n, vector in vectors.items()]
    found = network(input_ids=IDS).logits
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(found, hooked, rtol=1e-5, atol=1e-5)
