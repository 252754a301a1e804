"""Benchmarks of a language model: the prompts, the measures, and a small model through every step."""

from __future__ import annotations

import importlib
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

if TYPE_CHECKING:
    import torch
    import transformers
else:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
from fairsteer.baselines import LeaceTransformer

prompts: Any = importlib.import_module("benchmarks.prompts")
generation = importlib.import_module("benchmarks.generation")
pronouns = importlib.import_module("benchmarks.pronouns")

GENDERED = (
    r"\b(woman|man|girl|boy|mother|father|sister|brother|aunt|uncle|grandmother|grandfather|daughter|son|wife|husband"
    r"|she|he)\b"
)


def neutral(text: str) -> str:
    return re.sub(GENDERED, "_", text, flags=re.IGNORECASE)


@pytest.mark.parametrize("concept", prompts.CONCEPTS, ids=["sentiment", "formality"])
def test_prompts_differ_in_the_group_alone(concept: Any) -> None:
    pairs = prompts.prompts(concept)
    assert len({women for women, _ in pairs}) == len(pairs) >= 400
    for women, men in pairs:
        assert women != men
        assert neutral(women) == neutral(men)
    told = prompts.told(concept)
    assert {(k, a) for _, k, a in told} == {(k, a) for k in (0, 1) for a in (0, 1)}
    by_group = [[neutral(text) for text, _, a in told if a == group] for group in (0, 1)]
    assert by_group[0] == by_group[1]
    for _, k, _ in told:
        assert k in (0, 1)
    ends = {text for text, *_ in told}
    assert not any(prompt in text for prompt in pairs[0] for text in ends)


def test_measures() -> None:
    pairs = np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 4.0]])
    value, low, high = generation.interval(pairs, generation.ratio)
    assert value == pytest.approx(6 / 8)
    assert low < value < high
    assert generation.distinct(["a b a b", "a b c"]) == pytest.approx(3 / 5)
    ratios = np.array([[1.0, -1.0], [3.0, 1.0]])
    found = pronouns.measured(ratios, np.stack([ratios + 1, ratios - 1]))
    assert found["told"] == pytest.approx(2.0)
    assert found["log-ratio"] == pytest.approx(1.5)
    assert found["spread"] == pytest.approx(1.0)
    assert found["she"] == pytest.approx(0.75)
    text = pronouns.change_of_text(np.array([2.0, 4.0]), np.array([2.0, 3.0]))
    assert text["neutral text"] == pytest.approx(0.2)


class Words:
    """A tokenizer that numbers words as they come."""

    pad_token_id = 0

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, texts: Any, *, return_tensors: str | None = None, **_: Any) -> Any:
        rows = [texts] if isinstance(texts, str) else texts
        ids = [[1 + self.known.setdefault(word, len(self.known)) for word in text.split()] for text in rows]
        if return_tensors is None:
            return transformers.BatchEncoding({"input_ids": ids[0] if isinstance(texts, str) else ids})
        length = max(map(len, ids))
        tokens = torch.tensor([[0] * (length - len(own)) + own for own in ids])
        return transformers.BatchEncoding({"input_ids": tokens, "attention_mask": (tokens > 0).long()})

    def batch_decode(self, tokens: Any, **_: Any) -> list[str]:
        return [" ".join(map(str, row.tolist())) for row in tokens]


def tokens(speaker: Any, text: str) -> Any:
    return torch.tensor([speaker.tokenizer(text)["input_ids"]])


@pytest.fixture(scope="module")
def speaker() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=400, hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.4, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return generation.Speaker(transformers.LlamaForCausalLM(config).eval(), Words())


def test_the_model_is_asked_under_the_push(speaker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "LAYER", 1)
    texts, groups, words = ["a b c d", "e f", "g h i"], [0, 1, 1], ([3, 4], [5])
    push = generation.Push(np.stack([np.full(12, 0.7), np.full(12, -0.4)]))
    read = speaker.read(texts, groups)
    found = speaker.log_odds(read, words, push, 2.0)
    for i, text in enumerate(texts):
        ids = tokens(speaker, text)

        def steer(_m: Any, _a: Any, out: Any, a: int = groups[i]) -> Any:
            return out + 2.0 * push.directions[a]

        hook = speaker.model.model.layers[0].register_forward_hook(steer)
        with torch.no_grad():
            scores = speaker.model(ids).logits[0, -1].double()
        hook.remove()
        expected = scores[5] - torch.logsumexp(scores[[3, 4]], 0)
        assert found[i] == pytest.approx(float(expected), abs=1e-5)
    plain = speaker.log_odds(read, words, None, 0.0)
    np.testing.assert_allclose(speaker.log_odds(read, words, push, 0.0), plain, atol=1e-6)
    assert np.abs(found - plain).min() > 0.01


def test_perplexity_is_that_of_the_model_without_steering(speaker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In expectation over what the steered model may say after what it said."""
    monkeypatch.setattr(generation, "LAYER", 1)
    push = generation.Push(np.ones((2, 12)))
    said, loss = speaker.sampled(["a b c", "d e"], [0, 1], push, 3.0)
    for text, start, own in zip(said, ["a b c", "d e"], loss, strict=True):
        new = torch.tensor([int(word) for word in text.split()])
        assert len(new) == generation.NEW_TOKENS
        ids = torch.cat([tokens(speaker, start)[0], new])
        hook = speaker.model.model.layers[0].register_forward_hook(lambda _m, _a, out: out + 3.0)
        with torch.no_grad():
            steered = speaker.model(ids[None]).logits[0]
            hook.remove()
            plain = speaker.model(ids[None]).logits[0].log_softmax(-1)
        likely = (steered / generation.TEMPERATURE).softmax(-1)
        expected = -(likely * plain).sum(-1)[len(ids) - len(new) - 1 : -1].mean()
        assert own == pytest.approx(float(expected), abs=1e-4)


def test_pushes_of_every_method_steer(speaker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "LAYER", 1)
    rng = np.random.default_rng(0)
    shown, group = rng.integers(0, 2, (2, 200))
    states = rng.normal(size=(200, 12)) + np.outer(shown, np.arange(12) / 4) + group[:, None]
    found, ours = generation.pushes(states, shown, group)
    length = np.linalg.norm(ours.directions_[1], axis=1).mean()
    read = speaker.read(["a b c d", "e f"], [0, 1])
    plain = speaker.log_odds(read, ([3], [5]), None, 0.0)
    for push in found.values():
        np.testing.assert_allclose(np.linalg.norm(push.directions.numpy(), axis=1), length, rtol=1e-5)
        assert np.abs(speaker.log_odds(read, ([3], [5]), push, 2.0) - plain).min() > 1e-3


@pytest.fixture
def reader(speaker: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(pronouns.smollm, "load", lambda _dtype: speaker)
    return pronouns.Reader(torch.float32, [1])


def test_neutral_text_is_weighed_token_by_token(speaker: Any, reader: Any) -> None:
    texts = ["a b c d", "e f"]
    found = reader.losses(reader.read(texts), 1, None, np.zeros(2, dtype=int))
    for text, own in zip(texts, found, strict=True):
        ids = tokens(speaker, text)[0]
        with torch.no_grad():
            scores = speaker.model(ids[None]).logits[0].log_softmax(-1)
        assert own == pytest.approx(float(-scores[:-1].gather(1, ids[1:, None]).sum()), abs=1e-4)


def test_steering_in_two_features_evens_the_occupations(
    speaker: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From text to the table, with a model of two blocks, on the verbs that it was fitted to."""
    monkeypatch.setattr(pronouns, "TESTED", pronouns.FITTED_TO)
    monkeypatch.setattr(pronouns.smollm, "load", lambda _dtype: speaker)
    monkeypatch.setattr(pronouns, "OCCUPATIONS", tuple(f"job{i}" for i in range(12)))
    monkeypatch.setattr(pronouns, "BIOGRAPHIES", {"nurse": "job1", "judge": "job4"})
    (tmp_path / "biographies").mkdir()
    pd.DataFrame({"text": ["a b c d", "e f g"] * 4, "label": ["nurse", "judge"] * 4}).to_parquet(
        tmp_path / "biographies" / "texts.parquet"
    )
    rows = pd.DataFrame(pronouns.run(tmp_path, 4, torch.float32, [1], tmp_path)).set_index("method")
    again = pd.DataFrame(pronouns.run(tmp_path, 4, torch.float32, [1], tmp_path)).set_index("method")
    pd.testing.assert_frame_equal(rows, again)
    before = rows.loc["nothing"]
    assert rows.loc["ideal, two features, translations", "spread"] < 0.95 * before["spread"]
    assert len(rows) == 8
    assert rows[["log-ratio", "spread", "told"]].notna().all(axis=None)
    pronouns.write(tmp_path / "out", rows.reset_index(), 4, 1.0, 1.0)
    assert "| 1 | ideal, two features, translations |" in (tmp_path / "out" / "README.md").read_text()


# ---- biographies


@pytest.fixture
def biographies(speaker: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Rows of two occupations, and the small model in the place of the large one."""
    states = importlib.import_module("benchmarks.biographies.states")
    monkeypatch.setattr(states, "LAYERS", (1, 2))
    monkeypatch.setattr(states, "QUESTION", " known as")
    monkeypatch.setattr(states, "PIECE", 7)
    monkeypatch.setattr(states, "BATCH", 3)
    monkeypatch.setattr(states.smollm, "load", lambda _dtype: speaker)
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{j}" for j in rng.integers(40, size=rng.integers(3, 9))) for _ in range(20)]
    return pd.DataFrame(
        {"text": texts, "label": ["nurse", "pilot"] * 10, "group": np.repeat(["female", "male"], 10)}
    ), states


def test_states_are_kept_piece_by_piece(biographies: Any, speaker: Any, tmp_path: Path) -> None:
    rows, states = biographies
    assert states.extract(rows, tmp_path, dtype=torch.float32, minutes=0) == 3
    assert not list(tmp_path.glob("*"))
    assert states.extract(rows, tmp_path, dtype=torch.float32) == 0
    assert len(list(tmp_path.glob("*.npy"))) == 3
    found = states.read(rows, tmp_path, torch.float32)
    assert found.shape == (20, 2, 2, 12)
    for i, text in enumerate(rows["text"]):
        ids = tokens(speaker, text + " known as")
        with torch.no_grad():
            hidden: list[Any] = []
            hook = speaker.model.model.layers[1].register_forward_hook(
                lambda _m, _a, out, into=hidden: into.append(out if isinstance(out, torch.Tensor) else out[0])
            )
            speaker.model(ids)
            hook.remove()
        np.testing.assert_allclose(found[i, 1, 0], hidden[0][0, 1:-2].mean(0), atol=1e-4)
        np.testing.assert_allclose(found[i, 1, 1], hidden[0][0, -1], atol=1e-4)


def test_other_texts_types_and_settings_are_other_files(
    biographies: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, states = biographies
    states.extract(rows, tmp_path, dtype=torch.float32)
    assert states.extract(rows.iloc[:14], tmp_path, dtype=torch.float32, minutes=0) == 0  # the same beginning
    assert states.extract(rows, tmp_path, dtype=torch.bfloat16, minutes=0) == 3
    assert states.extract(rows.iloc[::-1], tmp_path, dtype=torch.float32, minutes=0) == 3
    monkeypatch.setattr(states, "MAX_TOKENS", 5)
    assert states.extract(rows, tmp_path, dtype=torch.float32, minutes=0) == 3


def test_the_model_answers_itself_as_if_every_way_and_name_were_run_alone(biographies: Any, speaker: Any) -> None:
    rows, _ = biographies
    model = importlib.import_module("benchmarks.biographies.model")
    steered = importlib.import_module("fairsteer.torch").SteeringModule(
        {"female": (0.5 * np.eye(12), np.ones(12)), "male": (np.eye(12), np.full(12, -1.0))}
    )
    groups = rows["group"].tolist()
    last, text = model.Way("ours", 1, "last", "known"), model.Way("ours", 1, "mean", "known")
    ways = {last: (steered, groups), model.UNSTEERED: (None, None), text: (steered, groups)}
    chosen, names = [3, 15, 8, 0, 12], ["nurse", "ball_player", "pilot", "ball_game_player", "ball"]
    zero_shot = model.ZeroShot(rows, names, torch.float32)
    found = zero_shot.scores(chosen, ways)
    for at, i in enumerate(chosen):
        text_ids = tokens(speaker, rows["text"][i] + " known as")[0]
        n = len(text_ids)
        for way, (module, _) in ways.items():
            of_text = slice(1, n - 2) if way == text else slice(n - 1, n)

            def steer(_m: Any, _a: Any, out: Any, module: Any, where: slice, group: str) -> Any:
                moved = out.clone()
                moved[:, where] = module(out[:, where], sensitive_features=[group])
                return moved

            for k, name in enumerate(names):
                words = tokens(speaker, name.replace("_", " "))[0]
                hook = None
                if module is not None:
                    hook = speaker.model.model.layers[0].register_forward_hook(
                        partial(steer, module=module, where=of_text, group=groups[i])
                    )
                with torch.no_grad():
                    logits = speaker.model(torch.cat([text_ids, words])[None]).logits[0].double()
                if hook is not None:
                    hook.remove()
                scores = logits.log_softmax(-1)
                expected = sum(scores[n - 1 + step, word] for step, word in enumerate(words))
                assert found[way][at, k] == pytest.approx(float(expected), abs=1e-4)
    first, second, third = found.values()
    assert min(np.abs(first - second).max(), np.abs(second - third).max(), np.abs(first - third).max()) > 0.1


def test_the_last_layer_needs_no_run_of_the_model(biographies: Any, speaker: Any, tmp_path: Path) -> None:
    rows, states = biographies
    model = importlib.import_module("benchmarks.biographies.model")
    states.extract(rows, tmp_path, dtype=torch.float32)
    zero_shot = model.ZeroShot(rows, ["nurse", "pilot_light"], torch.float32)
    found = zero_shot.of_last_layer(states.read(rows, tmp_path, torch.float32)[:, -1, states.POOLS.index("last")])
    words = [speaker.tokenizer(name)["input_ids"][0] for name in ("nurse", "pilot")]
    for i, text in enumerate(rows["text"]):
        with torch.no_grad():
            expected = speaker.model(tokens(speaker, text + " known as")).logits[0, -1, words]
        np.testing.assert_allclose(found[i], expected, atol=1e-4)


def test_probes_are_measured_on_rows_that_nothing_was_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    model = importlib.import_module("benchmarks.biographies.model")
    bios = importlib.import_module("benchmarks.biographies.methods")
    rng = np.random.default_rng(0)
    n = 240
    y, group = np.arange(n) % 2, np.arange(n) // 2 % 2
    X = (np.array([0.0, 1.5])[y] + np.array([0.0, 2.5])[group])[:, None] * [1.0, 100.0]
    X += rng.normal(size=(n, 2)) * [1.0, 100.0]
    data = bios.Biographies("made", X, y, group, bios.folds(y, group), tuple(range(5)), ["a", "b"], ["f", "m"])
    chosen = [method for method in model.methods() if method.name in (bios.ORIGINAL, model.TRANSLATIONS, model.LEACE)]
    lines = model.held_to_the_best(data, list(model.unaligned(data, chosen, in_full=True)))
    assert lines[0].method == bios.ORIGINAL
    accuracy = {(line.method, line.gender): float((line.predicted == y).mean()) for line in lines if line.rule == "LDA"}
    assert accuracy[model.TRANSLATIONS, "known"] > accuracy[bios.ORIGINAL, "withheld"] + 0.05
    assert set(accuracy) == {
        (bios.ORIGINAL, "withheld"),
        (model.LEACE, "withheld"),
        (model.TRANSLATIONS, "known"),
        (model.TRANSLATIONS, "inferred"),
        (model.TRANSLATIONS, "withheld"),
    }
    fitted: list[set[int]] = []

    class Recorder(LeaceTransformer):
        def fit(self, X: Any, y: Any = None, *, sensitive_features: Any = None, sample_weight: Any = None) -> Any:
            fitted.append(set(X[:, 0].tolist()))
            return super().fit(X, y, sensitive_features=sensitive_features, sample_weight=sample_weight)

    in_halves = model.halves(data)
    recorded = [bios.Method(bios.ORIGINAL), bios.Method(model.LEACE, Recorder())]
    lines = list(model.aligned(in_halves, recorded))
    assert len(fitted) == 2 * (1 + 5)
    for j in (0, 1):
        tested = set(X[in_halves.fold == j, 0].tolist())
        assert all(not tested & rows for rows in fitted[6 * j : 6 * j + 6])
    assert {(line.gender, line.aligned) for line in lines} == {
        ("withheld", False), ("known", True), ("inferred", True)
    }  # fmt: skip
    assert all((line.predicted >= 0).all() for line in lines)


@pytest.mark.slow
def test_the_page_compares_our_best_with_the_best_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = importlib.import_module("benchmarks.biographies.model")
    bios = importlib.import_module("benchmarks.biographies.methods")
    monkeypatch.setattr(model.states, "LAYERS", (1,))
    monkeypatch.setattr(model.states, "POOLS", ("last",))
    n = 400
    y, turn = np.arange(n) % 2, np.arange(n) // 2
    group = np.where(y == 0, turn % 2, turn % 4 > 0).astype(np.int64)
    fold, draw = np.zeros(n, dtype=np.int64), np.random.default_rng(0).random(n)
    data = bios.Biographies("SmolLM2, layer 1, last", np.zeros((n, 1)), y, group, fold, (0,), ["a", "b"], ["f", "m"])

    def line(method: str, right: Any, *, ours: bool = False) -> Any:
        gender = "withheld" if method == bios.ORIGINAL else "known"
        return bios.Line(method, "LDA", gender, False, ours, np.where(draw < right, y, 1 - y), float("nan"))

    lines = [
        line(bios.ORIGINAL, 0.75),
        line(bios.ORIGINAL, np.where(group == 1, 0.95, 0.65)),
        line(model.MEAN, np.where(group == 1, 0.93, 0.75)),
        line(model.TRANSLATIONS, 0.85, ours=True),
        line(model.AFFINE, 0.5, ours=True),
    ]
    model.report.add(tmp_path, data, model.held_to_the_best(data, lines), by_occupation=False)
    model.write(tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert (tmp_path / "layers.png").stat().st_size > 10_000
    (row,) = (text for text in page.splitlines() if "ours is smaller" in text)
    assert f"| {model.MEAN}: LDA, known |" in row
    assert f"| {model.TRANSLATIONS}: LDA, known |" in row  # the affine maps lose too much
