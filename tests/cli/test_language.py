"""Moments of a language model's hidden states, and texts before and after steering, from the command line."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from fairsteer import persistence
from fairsteer.concepts import ConceptSteering

if TYPE_CHECKING:
    import torch
    import transformers
else:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

Run = Callable[..., tuple[int, str, str]]
WORDS = ["nurse", "pilot", "judge", "she", "he", "the", "said", "saw", "and", "was", "glad", "sad"]
LAYER = "model.layers.1"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model of two layers with random weights, in a folder."""
    folder = tmp_path_factory.mktemp("model")
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.5, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"job": rng.choice(["nurse", "pilot"], 90), "sex": rng.choice(["f", "m"], 90)})
    ends = [" ".join(rng.choice(WORDS, rng.integers(1, 7))) for _ in range(90)]
    pronoun = np.where(table["sex"] == "f", "she", "he")
    table["bio"] = [
        "the " + job + " said " + who + " " + end for job, who, end in zip(table["job"], pronoun, ends, strict=True)
    ]
    table.to_csv("bios.csv", index=False)
    return table


ROLES = ("--texts", "bios.csv", "--text", "bio", "--target", "job", "--sensitive", "sex")


def states(model: Path, table: pd.DataFrame, pool: str, max_tokens: int = 128) -> np.ndarray[Any, Any]:
    """One text at a time, without padding: the definition."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    rows = []
    for text in table["bio"]:
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_tokens)
        with torch.no_grad():
            hidden: list[Any] = []
            hook = loaded.model.layers[1].register_forward_hook(lambda _m, _a, out, into=hidden: into.append(out))
            loaded(input_ids=inputs["input_ids"])
            hook.remove()
        own = hidden[0] if isinstance(hidden[0], torch.Tensor) else hidden[0][0]
        rows.append({"mean": own[0].mean(0), "last": own[0, -1]}[pool].numpy())
    return np.stack(rows).astype(np.float64)


@pytest.mark.parametrize(("pool", "max_tokens"), [("mean", 128), ("last", 128), ("mean", 4)])
def test_moments_are_those_of_the_states_one_by_one(
    model: Path, texts: pd.DataFrame, run: Run, pool: str, max_tokens: int
) -> None:
    code, out, err = run(
        "activations", "--model", model, *ROLES, "--layers", "1", "--pool", pool, "--max-tokens", max_tokens,
        "--covariance", "full", "--out", "m.safetensors",
    )  # fmt: skip
    assert code == 0, err
    assert LAYER in " ".join(out.split())
    moments = persistence.load("m.safetensors")
    rows = states(model, texts, pool, max_tokens)
    assert moments.classes.tolist() == ["nurse", "pilot"]
    assert moments.groups.tolist() == ["f", "m"]
    for k, job in enumerate(moments.classes):
        for a, sex in enumerate(moments.groups):
            own = rows[(texts["job"] == job) & (texts["sex"] == sex)]
            assert moments.weights[k, a] == len(own)
            np.testing.assert_allclose(moments.means[k, a], own.mean(axis=0), atol=1e-5)
            expected = np.cov(own.T, bias=True)
            np.testing.assert_allclose(moments.covariances[k, a], expected, atol=1e-6 * np.abs(expected).max())
    assert (persistence.read_extra("m.safetensors") or {})["layer"] == LAYER


@pytest.mark.slow
def test_what_language_models_md_says_to_type_runs(
    model: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word, with a model that has two layers where the page's has thirty."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "language-models.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (beginnings,) = (block for language, block in blocks if language == "python" and "to_csv" in block)
    exec(compile(beginnings, "language-models.md", "exec"), {})
    typed = "".join(block for language, block in blocks if language == "bash").replace("\\\n", " ").splitlines()
    commands = [words for line in typed if (words := shlex.split(line, comments=True))[0] == "fairsteer"]
    assert len(commands) >= 2
    for command in commands:
        at_hand = {"$MODEL": str(model), "19": "1"}
        code, _, err = run(*(at_hand.get(word, word) for word in command[1:]))
        assert code == 0, (command, err)


def test_every_token_is_a_row_and_classes_may_be_left_out(model: Path, texts: pd.DataFrame, run: Run) -> None:
    code, _, err = run(
        "activations", "--model", model, "--texts", "bios.csv", "--text", "bio", "--layers", "model.layers.*",
        "--pool", "tokens", "--out", "m.safetensors",
    )  # fmt: skip
    assert code == 0, err
    assert sorted(file.name for file in Path().glob("m*")) == [
        "m-model.layers.0.safetensors",
        "m-model.layers.1.safetensors",
    ]
    n_tokens = texts["bio"].str.split().map(len).sum()
    assert persistence.load("m-model.layers.1.safetensors").weights.sum() == n_tokens


def test_rows_without_text_class_or_group_are_left_out_and_groups_may_be_intersections(
    model: Path, texts: pd.DataFrame, run: Run
) -> None:
    texts["age"] = np.where(np.arange(90) % 3 == 0, "old", "young")
    texts.loc[0, "bio"] = texts.loc[1, "job"] = texts.loc[2, "sex"] = None
    texts.to_parquet("bios.parquet")
    code, _, err = run(
        "activations", "--model", model, "--texts", "bios.parquet", *ROLES[2:], "--sensitive", "age", "--layers", "-1",
        "--out", "m.safetensors",
    )  # fmt: skip
    assert code == 0, err
    assert "3 rows without a text, a class or a group took no part" in err
    moments = persistence.load("m.safetensors")
    assert moments.groups.tolist() == [("f", "old"), ("f", "young"), ("m", "old"), ("m", "young")]
    assert moments.weights.sum() == 87


def test_an_interrupted_run_is_resumed_to_the_same_bits(
    model: Path, texts: pd.DataFrame, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (
        "activations", "--model", model, *ROLES, "--layers", "0,1", "--batch-size", "2", "--checkpoint-every", "0"
    )  # fmt: skip
    assert run(*options, "--out", "whole.safetensors")[0] == 0
    collecting = importlib.import_module("fairsteer.torch")
    collect, calls = collecting.collect_activations, []

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return collect(*arguments, **keywords)

    monkeypatch.setattr(collecting, "collect_activations", interrupted)
    assert run(*options, "--out", "part.safetensors")[0] == 130
    assert not list(Path().glob("part*"))
    code, _, err = run(*options[:-4], "--batch-size", "4", "--out", "part.safetensors", "--resume")
    assert code == 2
    assert "model or options than this one" in err
    calls[:] = [1] * 3  # from here on nothing interrupts
    assert run(*options, "--out", "part.safetensors", "--resume")[0] == 0
    assert len(calls) == 3 + 1, "of three chunks two were done"
    for layer in ("model.layers.0", LAYER):
        first, second = (persistence.load(f"{name}-{layer}.safetensors") for name in ("whole", "part"))
        np.testing.assert_array_equal(first.means, second.means)
        np.testing.assert_array_equal(first.covariances, second.covariances)
    assert not [path for path in Path().iterdir() if path.name.startswith(".fairsteer")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "nowhere"}, "there is no model nowhere"),
        ({"--model": "bios.csv"}, "neither a folder with config.json nor a .gguf file"),
        ({"--text": "story"}, "--text 'story' is no column of bios.csv"),
        ({"--layers": "7"}, "--layers 7 is no block of the model, which has 2 blocks"),
        ({"--layers": "layers.x"}, "is no layer of the model; names are such as 'model.layers.0'"),
        ({"--out": "m.csv"}, "must end in .safetensors"),
        ({"--texts": "-"}, "cannot be standard input"),
    ],
    ids=str,
)
def test_bad_input_is_a_sentence(
    model: Path, texts: pd.DataFrame, run: Run, change: dict[str, str], message: str
) -> None:
    options = {
        "--model": str(model),
        **dict(zip(ROLES[::2], ROLES[1::2], strict=True)),
        "--layers": "1",
        "--out": "m.safetensors",
    }
    options |= change
    code, _, err = run("activations", *[part for pair in options.items() for part in pair])
    assert code == 2
    assert message in " ".join(err.split())
    assert not Path("m.safetensors").exists()


def test_without_transformers_a_sentence_says_what_to_install(
    model: Path, texts: pd.DataFrame, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    language = importlib.import_module("fairsteer.cli._language")
    monkeypatch.setattr(language, "find_spec", lambda name: None if name == "transformers" else object())
    for command in (
        ("activations", *ROLES, "--layers", "1", "--out", "m.safetensors"),
        ("generate", "--map", "c.safetensors", "--prompt", "the nurse", "--layer", "1"),
    ):
        rows = np.random.default_rng(0).normal(size=(80, 12)) + 3 * (np.arange(80) % 2)[:, None]
        concept = ConceptSteering(n_probes=4).fit(rows, np.arange(80) % 2, sensitive_features=np.arange(80) // 40)
        persistence.save(concept, "c.safetensors")
        code, _, err = run(command[0], "--model", model, *command[1:])
        assert code == 2
        assert f'{command[0]} needs transformers: pip install "fairsteer[torch]" transformers brings it.' in err


# ---- generating


def by_hand(model: Path, prompt: str, n: int, module: Any = None, group: Any = None) -> str:
    """The likeliest tokens one at a time, without a cache."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    if module is not None:
        loaded.model.layers[1].register_forward_hook(lambda _m, _a, out: module(out, sensitive_features=[group]))
    for _ in range(n):
        with torch.no_grad():
            ids = torch.cat([ids, loaded(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return " ".join(tokenizer.decode(ids[0, start:], skip_special_tokens=True).split())


def test_texts_stand_beside_each_other(
    model: Path, texts: pd.DataFrame, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("activations", "--model", model, *ROLES, "--layers", "1", "--out", "m.safetensors")
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = run(
        "generate", "--model", model, "--map", "m.safetensors", "--prompt", "the nurse said", "--prompt", "she saw the",
        "--max-new-tokens", "6",
    )  # fmt: skip
    assert code == 0, err
    from fairsteer import FairSteeringTransformer

    fitted = FairSteeringTransformer(map_type="affine", standardize=False).fit_moments(
        persistence.load("m.safetensors")
    )
    module = importlib.import_module("fairsteer.torch").SteeringModule(fitted)
    flat = " ".join(out.split())
    for prompt in ("the nurse said", "she saw the"):
        cells = [by_hand(model, prompt, 6), *(by_hand(model, prompt, 6, module, sex) for sex in ("f", "m"))]
        line = " ".join(cells)
        assert f"{prompt} …" in flat
        assert line in flat, (line, out)
    persistence.save(fitted, "map.safetensors")
    code, again, err = run(
        "generate", "--model", model, "--map", "map.safetensors", "--layer", LAYER, "--prompt", "the nurse said",
        "--max-new-tokens", "6", "--group", "m",
    )  # fmt: skip
    assert code == 0, err
    assert "m, steered" in again
    assert "f, steered" not in again
    assert by_hand(model, "the nurse said", 6, module, "m") in " ".join(again.split())


def test_a_concept_steers_and_a_seed_decides(model: Path, texts: pd.DataFrame, run: Run) -> None:
    rng = np.random.default_rng(0)
    shown, group = rng.integers(0, 2, (2, 200))
    rows = rng.normal(size=(200, 12)) + 3 * shown[:, None]
    concept = ConceptSteering(n_probes=4).fit(rows, np.array(["no", "yes"])[shown], sensitive_features=group)
    persistence.save(concept, "c.safetensors")
    options = (
        "generate", "--model", model, "--map", "c.safetensors", "--layer", "1", "--prompt", "the judge",
        "--temperature", "1", "--max-new-tokens", "12",
    )  # fmt: skip
    code, first, err = run(*options, "--strength", "9", "--concept", "yes")
    assert code == 0, err
    assert run(*options, "--strength", "9", "--concept", "yes")[1] == first
    assert run(*options, "--strength", "9", "--concept", "no")[1] != first
    assert run(*options, "--strength", "9", "--concept", "yes", "--random-state", "1")[1] != first
    code, _, err = run(*options, "--concept", "maybe")
    assert code == 2
    assert "--concept 'maybe' is no class; there are: no; yes" in " ".join(err.split())
    code, _, err = run(*options[:5], *options[7:])
    assert code == 2
    assert "name it with --layer" in err
    persistence.save(concept.equalize([20.0], {0: [1.0], 1: [4.0]}), "c.safetensors")
    code, out, err = run(*options, "--strength", "4", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert [text["strength"] for text in told["texts"][0]["steered"]] == pytest.approx([10.0, 2.5])
    assert told["notes"] == ["The concept was equalised: strength 4 is 0 10; 1 2.5."]
    code, _, err = run(*options, "--strength", "30")
    assert code == 2
    assert "30 is not among these" in err


def test_moments_of_tables_are_not_merged_with_those_of_states(model: Path, texts: pd.DataFrame, run: Run) -> None:
    run("activations", "--model", model, *ROLES, "--layers", "1", "--out", "m.safetensors")
    code, _, err = run("merge", "m.safetensors", "--out", "map.safetensors")
    assert code == 2
    assert json.dumps(err)  # a sentence and no traceback
    assert "Traceback" not in err
