"""Benchmarks of a language model: the prompts, the measures, and a small model through every step."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch
    import transformers
else:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
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


def test_a_push_is_scaled_until_the_output_moves_alike() -> None:
    push = generation.Push(np.array([[1.0, 0.0], [2.0, 0.0]]))

    def shift(now: Any) -> Any:
        length = now.directions[:, 0].numpy().astype(float)
        return np.tanh(length * [0.3, 0.4])  # curved, as the output is

    before = shift(push)
    assert before[1] / before[0] > 1.5
    after = shift(generation.equalised(push, shift, steps=4))
    assert abs(after[1] / after[0] - 1) < 0.02
    assert abs(after.mean() / before.mean() - 1) < 0.02


def test_measures() -> None:
    pairs = np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 4.0]])
    value, low, high = generation.interval(pairs, generation.ratio)
    assert value == pytest.approx(6 / 8)
    assert low < value < high
    assert generation.distinct(["a b a b", "a b c"]) == pytest.approx(3 / 5)
    ratios = np.array([[1.0, -1.0], [3.0, 1.0]])
    found = pronouns.measured(ratios)
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

    def __call__(self, texts: Any, **how: Any) -> Any:
        rows = [texts] if isinstance(texts, str) else texts
        ids = [[1 + self.known.setdefault(word, len(self.known)) for word in text.split()] for text in rows]
        if isinstance(texts, str):
            return transformers.BatchEncoding({"input_ids": ids[0]})
        length = max(map(len, ids))
        tokens = torch.tensor([[0] * (length - len(own)) + own for own in ids])
        return transformers.BatchEncoding({"input_ids": tokens, "attention_mask": (tokens > 0).long()})

    def batch_decode(self, tokens: Any, **_: Any) -> list[str]:
        return [" ".join(map(str, row.tolist())) for row in tokens]


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
    found = speaker.log_odds(texts, groups, words, push, 2.0)
    for i, text in enumerate(texts):
        ids = speaker.tokenizer([text])["input_ids"]

        def steer(_m: Any, _a: Any, out: Any, a: int = groups[i]) -> Any:
            return out + 2.0 * push.directions[a]

        hook = speaker.model.model.layers[0].register_forward_hook(steer)
        with torch.no_grad():
            scores = speaker.model(ids).logits[0, -1].double()
        hook.remove()
        expected = scores[5] - torch.logsumexp(scores[[3, 4]], 0)
        assert found[i] == pytest.approx(float(expected), abs=1e-5)
    plain = speaker.log_odds(texts, groups, words, None, 0.0)
    np.testing.assert_allclose(speaker.log_odds(texts, groups, words, push, 0.0), plain, atol=1e-6)
    assert np.abs(found - plain).min() > 0.01


def test_perplexity_is_that_of_the_model_without_steering(speaker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "LAYER", 1)
    push = generation.Push(np.ones((2, 12)))
    said, loss = speaker.sampled(["a b c", "d e"], [0, 1], push, 3.0)
    for text, start, own in zip(said, ["a b c", "d e"], loss, strict=True):
        new = torch.tensor([int(word) for word in text.split()])
        assert len(new) == generation.NEW_TOKENS
        ids = torch.cat([speaker.tokenizer([start])["input_ids"][0], new])
        with torch.no_grad():
            scores = speaker.model(ids[None]).logits[0].log_softmax(-1)
        expected = -scores[len(ids) - len(new) - 1 : -1].gather(1, new[:, None]).mean()
        assert own == pytest.approx(float(expected), abs=1e-4)


def test_neutral_text_is_weighed_token_by_token(speaker: Any) -> None:
    texts = ["a b c d", "e f"]
    found = pronouns.losses(speaker.model, speaker.tokenizer, texts)
    for text, own in zip(texts, found, strict=True):
        ids = speaker.tokenizer([text])["input_ids"][0]
        with torch.no_grad():
            scores = speaker.model(ids[None]).logits[0].log_softmax(-1)
        assert own == pytest.approx(float(-scores[:-1].gather(1, ids[1:, None]).sum()), abs=1e-4)
