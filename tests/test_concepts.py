"""Concept steering: the group's own probe moves by the same amount in every group, whoever measures it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from benchmarks import concepts
from fairsteer.concepts import ConceptSteering, measured_shifts


def _gaussians(n: Any, d: Any, *, scales: Any = (1.0, 3.0), signals: Any = (2.0, 1.2), seed: int = 0) -> Any:
    """Two groups of one covariance each, in which a concept shifts the mean; and each group's Bayes direction."""
    rng = np.random.default_rng(seed)
    y, group = rng.integers(2, size=(2, n))
    factors = np.stack([s * np.linalg.qr(rng.normal(size=(d, d)))[0] * rng.uniform(0.7, 1.4, d) for s in scales])
    white = rng.normal(size=(2, d))
    white *= np.array(signals)[:, None] / np.linalg.norm(white, axis=1, keepdims=True)
    shifts = np.einsum("aij,aj->ai", factors, white)
    X = (
        np.einsum("nij,nj->ni", factors[group], rng.normal(size=(n, d)))
        + y[:, None] * shifts[group]
        + 5 * group[:, None]
    )
    # Of length one in the score's own deviation, so that w @ v is the shift in deviations.
    bayes = np.stack(
        [np.linalg.solve(L @ L.T, s) / np.linalg.norm(u) for L, s, u in zip(factors, shifts, white, strict=True)]
    )
    return X, y, group, bayes


@pytest.fixture(scope="module")
def gaussians() -> Any:
    return _gaussians(3000, 6)


@pytest.fixture(scope="module")
def fitted(gaussians: Any) -> Any:
    X, y, group, _ = gaussians
    return ConceptSteering(n_probes=20, C=100.0).fit(X, y, sensitive_features=np.array(["f", "m"])[group])


# ---- what is equal


@pytest.mark.parametrize("covariance", ["diagonal", "tied"])
@pytest.mark.parametrize("towards_ideal", [0.0, 1.0])
def test_shift_is_one_deviation_of_the_bayes_score_in_every_group(
    gaussians: Any, covariance: Any, towards_ideal: Any
) -> None:
    X, y, group, bayes = gaussians
    steering = ConceptSteering(n_probes=20, C=100.0, covariance=covariance, towards_ideal=towards_ideal)
    steering.fit(X, y, sensitive_features=group)
    shifts = [bayes[a] @ steering.direction(a) for a in (0, 1)]
    np.testing.assert_allclose(shifts, 1.0, atol=0.06)
    # The scales of the groups differ threefold, so the pushes do.
    assert 2 < np.linalg.norm(steering.direction(1)) / np.linalg.norm(steering.direction(0)) < 4.5


def test_own_directions_are_the_bayes_directions(gaussians: Any) -> None:
    X, y, group, bayes = gaussians
    steering = ConceptSteering(n_probes=20, C=100.0, towards_ideal=0.0).fit(X, y, sensitive_features=group)
    for a in (0, 1):
        direction = steering.direction(a)
        cosine = direction @ bayes[a] / np.linalg.norm(direction) / np.linalg.norm(bayes[a])
        assert cosine > 0.98


@pytest.mark.slow
def test_shift_stays_equal_where_probes_are_mostly_noise() -> None:
    """Half a group's signal, few rows and many features: uncorrected, the noisier group would be pushed too far."""
    ratios, uncorrected = [], []
    for seed in range(6):
        X, y, group, bayes = _gaussians(1600, 60, scales=(1.0, 1.0), signals=(3.0, 1.2), seed=seed)
        steering = ConceptSteering(n_probes=16, towards_ideal=0.0).fit(X, y, sensitive_features=group)
        shifts = [bayes[a] @ steering.direction(a) for a in (0, 1)]
        ratios.append(shifts[1] / shifts[0])
        # By a mean probe's own deviation on the rows it was fitted to.
        means = steering.probe_moments_.means[1]
        naive = [
            np.sqrt(np.mean([np.var(X[(group == a) & (y == k)] @ means[a]) for k in (0, 1)])) / np.sum(means[a] ** 2)
            for a in (0, 1)
        ]
        uncorrected.append(bayes[1] @ means[1] * naive[1] / (bayes[0] @ means[0] * naive[0]))
    assert abs(np.mean(ratios) - 1) < 0.08
    assert abs(np.mean(uncorrected) - 1) > 2 * abs(np.mean(ratios) - 1)


def test_ideal_directions_are_as_certain_in_every_group(fitted: Any) -> None:
    ideal = fitted.ideal_
    length = np.linalg.norm((ideal.means[1] - ideal.means[0]) / np.sqrt(ideal.covariances[1]), axis=1)
    np.testing.assert_allclose(length[1], length[0], rtol=1e-9)
    own = fitted.probe_moments_
    spread = np.linalg.norm((own.means[1] - own.means[0]) / np.sqrt(own.covariances[1]), axis=1)
    assert abs(spread[1] / spread[0] - 1) > 0.05


def test_the_group_that_tells_the_concept_best_is_the_reference(gaussians: Any, fitted: Any) -> None:
    X, y, group, _ = gaussians
    assert fitted.ideal_.reference_group == "f"
    assert fitted.separation_[1, 0] > fitted.separation_[1, 1] + 0.4
    np.testing.assert_allclose(fitted.separation_[1], [2.0, 1.2], atol=0.15)
    # Its directions point where they did.
    own = ConceptSteering(n_probes=20, C=100.0, towards_ideal=0.0).fit(X, y, sensitive_features=group)
    np.testing.assert_allclose(fitted.direction("f"), own.direction(0), rtol=1e-9)
    named = ConceptSteering(n_probes=20, C=100.0, reference_group=1).fit(X, y, sensitive_features=group)
    np.testing.assert_allclose(named.direction(1), own.direction(1), rtol=1e-9)
    assert not np.allclose(named.direction(0), own.direction(0), rtol=1e-3)


def test_two_classes_pull_in_opposite_directions(fitted: Any) -> None:
    np.testing.assert_allclose(fitted.directions_[0], -fitted.directions_[1], rtol=1e-6)


def test_several_classes_have_a_direction_each() -> None:
    rng = np.random.default_rng(0)
    y, group = rng.integers(3, size=3000), rng.integers(2, size=3000)
    X = (1 + group)[:, None] * (rng.normal(size=(3000, 5)) + 2 * np.eye(5)[y])
    labels = np.array(["cook", "nurse", "poet"])[y]
    steering = ConceptSteering(n_probes=12, C=100.0).fit(X, labels, sensitive_features=group)
    for k, label in enumerate(["cook", "nurse", "poet"]):
        for a in (0, 1):
            direction = steering.direction(a, label)
            assert direction.argmax() == k
            assert 0.5 < np.linalg.norm(direction) / (1 + a) < 2
    with pytest.raises(ValueError, match="one of the classes 'cook', 'nurse', 'poet'"):
        steering.direction(0)
    with pytest.raises(ValueError, match="got 'pilot'"):
        steering.direction(0, "pilot")


# ---- how rows move


def test_steer_adds_the_directions_of_the_groups(gaussians: Any, fitted: Any) -> None:
    X, _, group, _ = gaussians
    labels = np.array(["f", "m"])[group]
    steered = fitted.steer(X, sensitive_features=labels, strength=-1.5)
    expected = X - 1.5 * np.stack([fitted.direction("f"), fitted.direction("m")])[group]
    np.testing.assert_allclose(steered, expected, rtol=1e-12)
    np.testing.assert_array_equal(fitted.steer(X, sensitive_features=labels, strength=0.0), X)
    back = fitted.steer(fitted.steer(X, sensitive_features=labels), sensitive_features=labels, concept=0)
    np.testing.assert_allclose(back, X, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, "bfloat16"])
def test_half_precision_comes_back_as_it_came(gaussians: Any, fitted: Any, dtype: Any) -> None:
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    X, y, group, _ = gaussians
    narrow = X.astype(dtype)
    labels = np.array(["f", "m"])[group]
    steered = fitted.steer(narrow, sensitive_features=labels)
    assert steered.dtype == narrow.dtype
    np.testing.assert_allclose(
        steered.astype(float), fitted.steer(narrow.astype(float), sensitive_features=labels), rtol=8e-3, atol=1e-2
    )
    again = ConceptSteering(n_probes=20, C=100.0).fit(narrow, y, sensitive_features=labels)
    np.testing.assert_allclose(again.direction("f"), fitted.direction("f"), atol=0.15)


def test_directions_follow_the_unit_and_ignore_the_origin(gaussians: Any) -> None:
    X, y, group, _ = gaussians
    a, b = (ConceptSteering(n_probes=8).fit(rows, y, sensitive_features=group) for rows in (X, 1000 * X + 1e4))
    np.testing.assert_allclose(b.directions_, 1000 * a.directions_, rtol=1e-3)


def test_the_same_seed_gives_the_same_directions(gaussians: Any) -> None:
    X, y, group, _ = gaussians
    first, second, other = (
        ConceptSteering(n_probes=4, random_state=seed).fit(X, y, sensitive_features=group).directions_
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, other, rtol=1e-6)


def test_groups_may_be_intersections_and_missing(gaussians: Any) -> None:
    X, y, group, _ = gaussians
    table = pd.DataFrame({"sex": group, "old": np.arange(len(X)) % 2 == 0})
    steering = ConceptSteering(n_probes=4).fit(X, y, sensitive_features=table)
    assert steering.groups_.tolist() == [(0, False), (0, True), (1, False), (1, True)]
    assert steering.steer(X, sensitive_features=table).shape == X.shape
    labels = np.array(["f", "m"], dtype=object)[group]
    labels[:7] = None
    with pytest.warns(UserWarning, match="7 of 3000 rows have a missing group"):
        left_out = ConceptSteering(n_probes=4).fit(X, y, sensitive_features=labels)
    rest = ConceptSteering(n_probes=4).fit(X[7:], y[7:], sensitive_features=labels[7:])
    np.testing.assert_array_equal(left_out.directions_, rest.directions_)


def test_one_group_has_a_direction_too(gaussians: Any) -> None:
    X, y, group, bayes = gaussians
    own = group == 0
    steering = ConceptSteering(n_probes=12, C=100.0).fit(X[own], y[own], sensitive_features=group[own])
    assert abs(bayes[0] @ steering.direction(0) - 1) < 0.06


def test_parameters_are_those_of_an_estimator() -> None:
    steering = ConceptSteering(n_probes=6, towards_ideal=0.5)
    assert clone(steering).get_params() == steering.get_params()
    with pytest.raises(NotFittedError):
        steering.direction(0)


# ---- what is refused


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"n_probes": 3}, "'n_probes' parameter"),
        ({"probe_share": 1.0}, "'probe_share' parameter"),
        ({"towards_ideal": 1.5}, "'towards_ideal' parameter"),
        ({"covariance": "full"}, "'covariance' parameter"),
        ({"reference_group": "x"}, "reference_group='x' is none of the groups 0, 1"),
    ],
    ids=str,
)
def test_parameters_out_of_range(gaussians: Any, params: Any, words: Any) -> None:
    X, y, group, _ = gaussians
    with pytest.raises(ValueError, match=words):
        ConceptSteering(**params).fit(X, y, sensitive_features=group)


def test_rows_that_make_no_probe(gaussians: Any) -> None:
    X, y, group, _ = gaussians
    with pytest.raises(ValueError, match="one label 1"):
        ConceptSteering().fit(X[y == 1], y[y == 1], sensitive_features=group[y == 1])
    few = np.flatnonzero((y == 1) & (group == 1))[5:]
    with pytest.raises(ValueError, match="Class 1 has 5 rows in group 1, and probes need at least 6"):
        ConceptSteering().fit(np.delete(X, few, 0), np.delete(y, few), sensitive_features=np.delete(group, few))
    with pytest.raises(ValueError, match="found no direction"):
        ConceptSteering().fit(np.ones_like(X), y, sensitive_features=group)
    with pytest.raises(ValueError, match="NaN"):
        ConceptSteering().fit(np.where(X > 1, np.nan, X), y, sensitive_features=group)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ConceptSteering().fit(X, y, sensitive_features=group[:-1])
    with pytest.raises(ValueError, match="continuous"):
        ConceptSteering().fit(X, X[:, 0], sensitive_features=group)


def test_six_rows_of_every_class_and_group_are_enough(gaussians: Any) -> None:
    X, y, group, _ = gaussians
    kept = np.concatenate([np.flatnonzero((y == k) & (group == a))[:6] for k in (0, 1) for a in (0, 1)])
    steering = ConceptSteering(n_probes=8).fit(100 * y[kept, None] + X[kept], y[kept], sensitive_features=group[kept])
    assert np.isfinite(steering.directions_).all()


def test_a_concept_that_is_not_there_is_refused(gaussians: Any) -> None:
    X, _, group, _ = gaussians
    y = np.random.default_rng(5).integers(2, size=len(X))
    with pytest.raises(ValueError, match="do not confirm"):
        ConceptSteering(n_probes=8, towards_ideal=0.0, random_state=0).fit(X, y, sensitive_features=group)


def test_rows_that_cannot_be_steered(gaussians: Any, fitted: Any) -> None:
    X, _, group, _ = gaussians
    labels = np.array(["f", "m"])[group]
    with pytest.raises(ValueError, match="'x' is none of the groups 'f', 'm'"):
        fitted.direction("x")
    with pytest.raises(ValueError, match=r"1 of 2 rows have a group that is missing or was not there at fit: 'x'"):
        fitted.steer(X[:2], sensitive_features=["f", "x"])
    with pytest.raises(ValueError, match="has 2 features, but the directions have 6"):
        fitted.steer(X[:, :2], sensitive_features=labels)
    with pytest.raises(ValueError, match="strength must be a finite number"):
        fitted.steer(X, sensitive_features=labels, strength=np.inf)


# ---- a real encoder


def test_judges_on_other_rows_of_a_real_encoder_see_the_same_shift(real_data: Path) -> None:
    """Singers of Wikipedia in a middle layer of MiniLM: probes of rows that the steering has never seen."""
    folder = real_data / "biographies"
    table = pd.read_parquet(folder / "labels.parquet")
    table = table[table["wide"]]
    states = np.load(folder / "hidden_states.f16.npy", mmap_mode="r")[:, 384:768]
    y, group = (table["label"] == "singer").to_numpy().astype(int), table["group"].astype(str).to_numpy()
    rng = np.random.default_rng(0)
    part = rng.integers(3, size=len(y))  # one to fit, two that judge
    # Every fourth row that shows no concept is enough, and quick.
    part[(y == 0) & (rng.random(len(y)) < 0.75)] = -1
    fit = part == 0
    steering = ConceptSteering(n_probes=12).fit(states[fit], y[fit], sensitive_features=group[fit])
    shifts = []
    for label in ("female", "male"):
        own = group == label
        judges = [
            LogisticRegression(class_weight="balanced", max_iter=1000).fit(
                states[own & (part == p)], y[own & (part == p)]
            )
            for p in (1, 2)
        ]
        first, second = (judge.coef_[0] for judge in judges)
        scores = states[own & fit].astype(np.float64) @ np.stack([first, second]).T
        within = np.mean([np.cov(scores[y[own & fit] == k].T)[0, 1] for k in (0, 1)])
        shifts.append((first + second) / 2 @ steering.direction(label) / np.sqrt(within))
    assert min(shifts) > 0.6
    assert 0.6 < shifts[0] / shifts[1] < 1.6


def test_the_benchmark_sees_what_is_equal_and_what_is_not() -> None:
    X, y, group, _ = _gaussians(1600, 5)
    names, seen = concepts.run(X, {"concept": y}, group, divisions=2, samples=6, n_probes=8)
    assert names[0] == "one direction for both"
    ratios = {name: np.exp(log_ratios[0, 0]) for name, log_ratios in concepts.summary(seen, draws=20).items()}
    # The second group's states are three times as large, so that a push of one length is a third of their deviation.
    one, of_equal_length, own, ideal = ratios["own"]
    assert one > 1.5
    assert of_equal_length > 2
    np.testing.assert_allclose([own, ideal], 1, atol=0.1)
    np.testing.assert_allclose(ratios["free of noise"][2:], 1, atol=0.1)
    np.testing.assert_allclose(ratios["shared"][0], 1)
    assert abs(ratios["shared"][2] - 1) > 0.2
    # Two pushes do not carry as many rows past a threshold where classes are 2 deviations apart as where they are 1.2.
    reach = seen.reach[..., 2, :].mean(axis=(0, 1, 2))
    np.testing.assert_allclose(reach, norm.cdf([2 - 2.0 / 2, 2 - 1.2 / 2]), atol=0.03)


# ---- torch


@pytest.fixture
def module(fitted: Any) -> Any:
    pytest.importorskip("torch")
    from fairsteer.torch import ConceptSteeringModule

    return ConceptSteeringModule(fitted, strength=2.0)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_module_does_what_steer_does(gaussians: Any, fitted: Any, dtype: Any) -> None:
    torch = pytest.importorskip("torch")
    from fairsteer.torch import ConceptSteeringModule

    X, _, group, _ = gaussians
    labels = np.array(["f", "m"])[group[:50]]
    module = ConceptSteeringModule(fitted, strength=2.0, dtype=torch.float64)
    hidden = torch.tensor(X[:50], dtype=getattr(torch, dtype))
    steered = module(hidden, sensitive_features=labels)
    expected = torch.tensor(fitted.steer(hidden.double().numpy(), sensitive_features=labels, strength=2.0))
    torch.testing.assert_close(steered, expected.to(hidden.dtype))
    assert torch.equal(steered, module(hidden, sensitive_features=torch.tensor(group[:50])))


def test_module_takes_groups_of_sequences_and_of_tokens(fitted: Any, module: Any) -> None:
    torch = pytest.importorskip("torch")
    hidden = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    by_sequence = module(hidden, sensitive_features=["m", "f"])
    by_token = module(hidden, sensitive_features=[["m"] * 3, ["f"] * 3])
    assert torch.equal(by_sequence, by_token)
    assert torch.equal(module(hidden, sensitive_features="m")[0], by_sequence[0])
    assert torch.equal(module(hidden, sensitive_features=torch.tensor([1, 0])), by_sequence)
    module.strength = 0.0
    assert module(hidden, sensitive_features="m") is hidden
    module.strength = -1.0
    np.testing.assert_allclose(
        module(hidden, sensitive_features="m") - hidden, np.broadcast_to(-fitted.direction("m"), (2, 3, 6)), atol=1e-5
    )


def test_a_tensor_of_integers_holds_labels_where_these_are_integers(gaussians: Any) -> None:
    torch = pytest.importorskip("torch")
    from fairsteer.torch import ConceptSteeringModule

    X, y, group, _ = gaussians
    steering = ConceptSteering(n_probes=4).fit(X, y, sensitive_features=7 - group)
    module = ConceptSteeringModule(steering)
    hidden = torch.zeros(2, 6)
    assert torch.equal(
        module(hidden, sensitive_features=torch.tensor([7, 6])), module(hidden, sensitive_features=[7, 6])
    )
    with pytest.raises(ValueError, match=r"1 of 2 groups are unknown: 0\. Known groups: 6, 7"):
        module(hidden, sensitive_features=torch.tensor([0, 6]))


def test_module_refuses_what_it_does_not_know(module: Any) -> None:
    torch = pytest.importorskip("torch")
    hidden = torch.zeros(2, 3, 6)
    for groups, words in (
        (["f", "x"], "'x'"),
        (torch.tensor([0, 2]), "positions in 'f', 'm', so by 0 to 1, but 1 of 2 are 2"),
        (torch.tensor([0, -1]), "positions in 'f', 'm', so by 0 to 1, but 1 of 2 are -1"),
        (torch.tensor([0.0, 0.5]), "of another type than at fit"),
        (None, "No groups are given, .* 'f', 'm'"),
        (["f", "m", "m"], r"Groups of shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            module(hidden, sensitive_features=groups)
    with pytest.raises(ValueError, match="directions of 6 features"):
        module(hidden[..., :4], sensitive_features=["f", "m"])
    with pytest.raises(ValueError, match=r"torch.int64 .*: floating-point numbers are needed"):
        module(hidden.long(), sensitive_features=["f", "m"])
    with pytest.raises(ValueError, match="strength must be a finite number, got inf"):
        module.strength = float("inf")


def test_module_is_differentiable_and_compiles(module: Any) -> None:
    torch = pytest.importorskip("torch")
    hidden = torch.zeros(2, 3, 6, requires_grad=True)
    module(hidden, sensitive_features=["f", "m"]).sum().backward()
    assert torch.equal(hidden.grad, torch.ones_like(hidden))
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    codes = torch.tensor([1, 0])
    assert torch.equal(compiled(hidden, sensitive_features=codes), module(hidden, sensitive_features=codes))
    assert torch.isnan(compiled(hidden, sensitive_features=torch.tensor([1, -1]))[1]).all()


@pytest.fixture(scope="module")
def language_model() -> Any:
    """A small causal model with random weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=3, n_head=2, n_embd=16, vocab_size=50, n_positions=40, bos_token_id=1, eos_token_id=None, pad_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def _generate(model: Any, **options: Any) -> Any:
    torch = pytest.importorskip("torch")
    prompts = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with torch.no_grad():
        return model.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=12, do_sample=False, **options
        )


def test_generation_with_a_cache_runs_through_it(language_model: Any) -> None:
    torch = pytest.importorskip("torch")
    from fairsteer.torch import ConceptSteeringModule

    rng = np.random.default_rng(0)
    y, group = rng.integers(2, size=(2, 400))
    X = rng.normal(size=(400, 16)) + 2 * np.outer(y, np.eye(16)[0])
    steering = ConceptSteering(n_probes=4).fit(X, y, sensitive_features=np.array(["f", "m"])[group])
    module = ConceptSteeringModule(steering, strength=8.0)
    seen = []

    def hook(layer: Any, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        seen.append(hidden.shape[1])
        steered = module(hidden, sensitive_features=["f", "m"])
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    plain = _generate(language_model)
    handle = language_model.transformer.h[1].register_forward_hook(hook)
    try:
        cached = _generate(language_model, use_cache=True)
        assert seen == [4] + [1] * 11  # the prompt once, then token by token
        seen.clear()
        whole = _generate(language_model, use_cache=False)
        assert seen == list(range(4, 16))
    finally:
        handle.remove()
    assert torch.equal(cached, whole)
    assert not torch.equal(cached, plain)
    assert torch.equal(_generate(language_model), plain)


def test_steering_hooks_take_the_module(language_model: Any) -> None:
    torch = pytest.importorskip("torch")
    from fairsteer.torch import ConceptSteeringModule, steering_hooks

    rng = np.random.default_rng(0)
    y, group = rng.integers(2, size=(2, 400))
    X = rng.normal(size=(400, 16)) + 2 * np.outer(y, np.eye(16)[0])
    module = ConceptSteeringModule(ConceptSteering(n_probes=4).fit(X, y, sensitive_features=group), strength=8.0)
    plain = _generate(language_model)
    with steering_hooks(language_model, {"transformer.h.1": module}, sensitive_features=[0, 1]):
        cached, whole = (_generate(language_model, use_cache=cache) for cache in (True, False))
    assert torch.equal(cached, whole)
    assert not torch.equal(cached, plain)


def test_hooks_set_groups_tokens_and_strength_of_the_module(fitted: Any, module: Any) -> None:
    torch = pytest.importorskip("torch")
    from fairsteer.torch import SteeringModule, steering_hooks

    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    hidden = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    push = torch.tensor(np.stack([fitted.direction("m"), fitted.direction("f")]), dtype=torch.float32)[:, None]
    mask = torch.tensor([[True, False, True], [False, True, True]])
    with steering_hooks(
        model, {"0": module}, sensitive_features=["m", "f"], token_mask=mask, strength=-3.0
    ) as steering:
        torch.testing.assert_close(model(hidden), hidden - 3 * push * mask[..., None])
        assert torch.equal(model(hidden)[~mask], hidden[~mask])
        steering.strength, steering.token_mask, steering.sensitive_features = 0.5, None, torch.tensor([1, 0])
        torch.testing.assert_close(model(hidden), hidden + 0.5 * push)
        steering.strength = None
        torch.testing.assert_close(model(hidden), hidden + 2 * push)
        with pytest.raises(ValueError, match="'x'"):
            steering.sensitive_features = ["m", "x"]
        torch.testing.assert_close(model(hidden), hidden + 2 * push)
        steering.sensitive_features = None
        with pytest.raises(ValueError, match="No groups are given"):
            model(hidden)
    assert module.strength == 2.0
    maps = SteeringModule({"f": (2 * np.eye(6), np.ones(6)), "m": (np.eye(6), np.zeros(6))}, strength=0.25)
    # A strength that one of two modules refuses changes neither.
    for layers in ({"0": module, "1": maps}, {"0": maps, "1": module}):
        with steering_hooks(model, layers, sensitive_features="f", strength=1.0) as steering:
            with pytest.raises(ValueError, match=r"strength must be in \[0, 1\], got 4.0"):
                steering.strength = 4.0
            assert (steering.strength, module.strength, maps.strength) == (None, 2.0, 0.25)
            model(hidden)


def test_probes_in_parallel_are_the_same() -> None:
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 2, (2, 200))
    X = rng.normal(size=(200, 4)) + 2 * np.outer(y, [1, 0, 0, 0])
    one, two = (
        ConceptSteering(n_probes=4, n_jobs=n_jobs).fit(X, y, sensitive_features=group).directions_
        for n_jobs in (None, 2)
    )
    np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match="sensitive_features must hold the groups"):
        ConceptSteering(n_probes=4).fit(X, y, sensitive_features=None)


# ---- equal in what was measured


_STRENGTHS = np.array([2.0, 4.0, 8.0])
#: What a saturating model makes of the strengths, in two groups.
_SHIFTS = np.stack([np.tanh(_STRENGTHS / 8), 1.5 * np.tanh(_STRENGTHS / 10)], axis=1)


def _fitted_again(gaussians: Any, **params: Any) -> Any:
    X, y, group, _ = gaussians
    return ConceptSteering(n_probes=4, **params).fit(X, y, sensitive_features=np.array(["f", "m"])[group])


def test_equalized_strengths_shift_every_group_by_the_mean(gaussians: Any) -> None:
    steering = _fitted_again(gaussians).equalize(_STRENGTHS, _SHIFTS)
    for m, strength in enumerate(_STRENGTHS[:2]):
        own = steering.group_strengths(strength)
        common = _SHIFTS[m].mean()
        # The functions' own inverses, which the interpolation does not know.
        np.testing.assert_allclose(own, [8 * np.arctanh(common), 10 * np.arctanh(common / 1.5)], rtol=0.02)
        assert own[0] > strength > own[1]
    np.testing.assert_array_equal(steering.group_strengths(0.0), [0.0, 0.0])


def test_equalize_is_exact_for_shifts_in_proportion(gaussians: Any) -> None:
    steering = _fitted_again(gaussians).equalize([1.0, -2.0, 3.0], {"m": [2.0, -4.0, 6.0], "f": [1.0, -2.0, 3.0]})
    for strength in (-1.0, 0.5, 1.0, 1.7):
        np.testing.assert_allclose(steering.group_strengths(strength), [1.5 * strength, 0.75 * strength], atol=1e-9)
    alike = _fitted_again(gaussians).equalize(_STRENGTHS, np.repeat(_SHIFTS[:, :1], 2, axis=1))
    for strength in (*_STRENGTHS, 5.1):
        np.testing.assert_allclose(alike.group_strengths(strength), strength, rtol=1e-9)


def test_rounding_at_the_ends_of_what_was_measured_is_no_error() -> None:
    """Curves and means of equal shifts miss what was measured by their last digits."""
    rng = np.random.default_rng(0)
    for _ in range(1000):
        n, n_groups = rng.integers(1, 5, 2)
        strengths, own = np.cumsum(rng.uniform(0.1, 3, (2, n)), axis=1)
        alike, groups = np.repeat(own[:, None], n_groups, axis=1), list(range(n_groups))
        for sign, unit in ((1, 1), (-1, 1), (1, 1e300)):
            measured = measured_shifts(sign * strengths, sign * unit * alike, groups)
            end = sign * strengths[-1]
            # Where a curve ends flat, last digits of shifts are half as many of the strength.
            np.testing.assert_allclose(measured.equalizing(end, groups), end, rtol=1e-6)


def test_shifts_are_named_by_the_groups_or_in_their_order(gaussians: Any) -> None:
    expected = _fitted_again(gaussians).equalize(_STRENGTHS, _SHIFTS).group_strengths(3.0)
    frame = pd.DataFrame({"m": _SHIFTS[:, 1], "f": _SHIFTS[:, 0]})
    zero = np.vstack([_SHIFTS[::-1], np.zeros(2)])
    for strengths, shifts in (
        (_STRENGTHS.tolist(), frame),
        (_STRENGTHS, {"m": _SHIFTS[:, 1].tolist(), "f": _SHIFTS[:, 0]}),
        ([*_STRENGTHS[::-1], 0.0], zero),
    ):
        found = _fitted_again(gaussians).equalize(strengths, shifts).group_strengths(3.0)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_equalized_strengths_steer_rows_and_other_concepts_stay(gaussians: Any) -> None:
    X, _, group, _ = gaussians
    labels = np.array(["f", "m"])[group]
    plain = _fitted_again(gaussians)
    steering = _fitted_again(gaussians).equalize(_STRENGTHS, _SHIFTS)
    own = steering.group_strengths(3.0)
    moved = steering.steer(X, sensitive_features=labels, strength=3.0)
    np.testing.assert_allclose(moved - X, own[group, None] * plain.directions_[1, group], atol=1e-10)
    np.testing.assert_array_equal(steering.group_strengths(3.0, concept=0), [3.0, 3.0])
    assert not steering.fit(X, group % 2 ^ (X[:, 0] > 0), sensitive_features=labels).equalized_


def test_the_module_is_equalized_as_it_was_when_it_was_made(gaussians: Any) -> None:
    torch = pytest.importorskip("torch")
    from fairsteer.torch import ConceptSteeringModule, fold_into

    steering = _fitted_again(gaussians)
    before = ConceptSteeringModule(steering, strength=3.0)
    module = ConceptSteeringModule(steering.equalize(_STRENGTHS, _SHIFTS), strength=3.0, dtype=torch.float64)
    rows = np.zeros((2, 6))
    expected = steering.steer(rows, sensitive_features=["m", "f"], strength=3.0)
    moved = module(torch.tensor(rows), sensitive_features=["m", "f"])
    np.testing.assert_allclose(moved, expected, rtol=1e-12)
    before.strength = 2.5
    assert before.group_strengths.tolist() == [2.5, 2.5]
    module.strength = 4.0
    np.testing.assert_allclose(module.group_strengths, steering.group_strengths(4.0))
    with pytest.raises(ValueError, match="from 0 to 8, and 9 is not among these"):
        module.strength = 9.0
    assert module.strength == 4.0
    layer = torch.nn.Linear(3, 6, dtype=torch.float64)
    inputs = torch.ones(1, 3, dtype=torch.float64)
    plain = layer(inputs)
    with fold_into(layer, module, sensitive_features="m", strength=3.0):
        np.testing.assert_allclose((layer(inputs) - plain).detach()[0], expected[0], rtol=1e-9)


def test_the_module_keeps_no_moments(gaussians: Any) -> None:
    """These are as large as the square of the features; a copy of a model has no use for them."""
    pytest.importorskip("torch")
    from fairsteer.torch import ConceptSteeringModule

    sizes = []
    for covariance in ("diagonal", "tied"):
        steering = _fitted_again(gaussians, covariance=covariance).equalize(_STRENGTHS, _SHIFTS)
        sizes.append(len(pickle.dumps(ConceptSteeringModule(steering))))
    assert sizes[0] == sizes[1]
    assert sizes[0] < len(pickle.dumps(steering)) / 2


def test_half_precision_keeps_the_groups_own_strengths_apart(gaussians: Any) -> None:
    torch = pytest.importorskip("torch")
    from fairsteer.torch import ConceptSteeringModule

    steering = _fitted_again(gaussians).equalize([8.0], {"f": [8.0], "m": [8.01]})
    own = steering.group_strengths(5.99)
    for module in (
        ConceptSteeringModule(steering, strength=5.99, dtype=torch.bfloat16),
        ConceptSteeringModule(steering, strength=5.99).bfloat16(),
        ConceptSteeringModule(steering, strength=5.99).half().bfloat16(),
    ):
        np.testing.assert_allclose(module.group_strengths.double(), own, rtol=1e-6)
        moved = module(torch.zeros(2, 6, dtype=torch.bfloat16), sensitive_features=["f", "m"])
        expected = (module.directions.double() * torch.tensor(own)[:, None]).bfloat16()
        assert torch.equal(moved, expected)
    assert module.double().group_strengths.tolist() == own.tolist()


def test_shifts_that_cannot_be_equalized(gaussians: Any) -> None:
    steering = _fitted_again(gaussians)
    for strengths, shifts, words in (
        (_STRENGTHS, _SHIFTS[:2], r"shapes are \(3,\) and \(2, 2\)"),
        (_STRENGTHS, _SHIFTS[:, :1], r"a column for each of 2 groups; their shapes are \(3,\) and \(3, 1\)"),
        ([], np.zeros((0, 2)), "strengths must have one axis"),
        (2.0, _SHIFTS[:1], "strengths must have one axis"),
        (_STRENGTHS, {"f": [1, 2, 3]}, "groups 'f', but the directions are of 'f', 'm'"),
        (_STRENGTHS, {"f": [1, 2, 3], "m": [1, 2]}, "one number of every group for each of the strengths"),
        ([0.0], np.zeros((1, 2)), "strengths has 0 alone, at which nothing shifts"),
        ([2, 4, np.inf], _SHIFTS, "finite"),
        (_STRENGTHS, _SHIFTS * np.nan, "finite"),
        ([2, 4, 4], _SHIFTS, "strength 4 was measured twice"),
        ([0, 4, 8], _SHIFTS, "At strength 0 nothing shifts, but that of group 'm' is 0.296"),
        (_STRENGTHS, [[1, 1], [2, 2], [3, 1.5]], "group 'm' must rise .* from 2 at 4 to 1.5 at 8"),
        ([2.0], [[1.0, -0.1]], "group 'm' must rise .* from 0 at 0 to -0.1 at 2"),
    ):
        with pytest.raises(ValueError, match=words):
            steering.equalize(strengths, shifts)
    assert steering.equalized_ == {}
    with pytest.raises(ValueError, match="concept must be one of the classes"):
        steering.equalize(_STRENGTHS, _SHIFTS, concept="other")
    steering.equalize(_STRENGTHS, _SHIFTS * [1, 3])
    with pytest.raises(ValueError, match=r"At strength 8 the groups shift .* group 'f' does not reach that: .* at 8"):
        steering.group_strengths(8.0)
    with pytest.raises(ValueError, match="from 0 to 8, and -1 is not among these"):
        steering.group_strengths(-1.0)
    with pytest.raises(ValueError, match="finite number, got nan"):
        steering.group_strengths(float("nan"))
    with pytest.raises(NotFittedError):
        ConceptSteering().equalize(_STRENGTHS, _SHIFTS)
