"""Exported maps do what transform does, no code passes for another group's, and reading a file back runs nothing."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, ScoreAligner, persistence
from fairsteer.baselines import CovarianceMatchingTransformer, LeaceTransformer, MeanMatchingTransformer
from fairsteer.concepts import ConceptSteering
from fairsteer.export import export_affine, export_onnx, read_affine, read_affine_file, read_onnx_codes
from fairsteer.export._array_pickle import dumps, loads

NAMES = np.array(["a", "b", "c"])


@pytest.fixture(scope="module")
def rows(make_data: Any) -> Any:
    """Positive float32 rows of three groups, far enough from the origin that scalers have something to do."""
    X, y, group = make_data(n=400, n_features=5, n_classes=3, n_groups=3)
    return np.exp(0.2 * X + 1).astype(np.float32), y, NAMES[group]


@pytest.fixture
def run_onnx(tmp_path: Path) -> Any:
    """Export a transformer and run the graph; returns the output for rows and codes."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    path = tmp_path / "map.onnx"

    def run(transformer: Any, X: Any, codes: Any = None) -> Any:
        export_onnx(transformer, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        inputs = {"X": X} if codes is None else {"X": X, "group": np.asarray(codes, dtype=np.int64)}
        (output,) = session.run(["Y"], inputs)
        return output

    found: Any = run
    found.path = path
    return found


def _codes(labels: Any) -> Any:
    return np.searchsorted(NAMES, labels)


def _assert_close(found: Any, expected: Any) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# ---- ONNX

PARAMS = [
    {},
    {"intervention": "affirmative", "reference_group": "b", "strength": 0.3},
    {"covariance": "full", "map_type": "symmetric"},
    {"covariance": "diagonal"},
    {"feature_transform": "log"},
    {"feature_transform": StandardScaler()},
    {"feature_transform": StandardScaler(with_mean=False)},
    {"feature_transform": StandardScaler(with_std=False)},
    {"feature_transform": MinMaxScaler((-1, 2)), "strength": 0.5},
    {"feature_transform": MaxAbsScaler()},
    {"feature_transform": RobustScaler(quantile_range=(10, 90))},
    {"feature_transform": RobustScaler(with_centering=False, with_scaling=False)},
]


@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_graph_does_what_transform_does(rows: Any, run_onnx: Any, params: Any) -> None:
    X, y, group = rows
    steer = FairSteeringTransformer(**params).fit(X, y, sensitive_features=group)
    _assert_close(run_onnx(steer, X, _codes(group)), steer.transform(X, sensitive_features=group))


@pytest.mark.parametrize("kind", [MeanMatchingTransformer, CovarianceMatchingTransformer])
def test_baselines_can_be_exported(rows: Any, run_onnx: Any, kind: Any) -> None:
    X, y, group = rows
    matching = kind().fit(X, y, sensitive_features=group)
    _assert_close(run_onnx(matching, X, _codes(group)), matching.transform(X, sensitive_features=group))


def test_a_frozen_scaler_is_folded_in(rows: Any, run_onnx: Any) -> None:
    X, y, group = rows
    scaler = FrozenEstimator(StandardScaler().fit(X))
    steer = FairSteeringTransformer(feature_transform=scaler).partial_fit(X, y, sensitive_features=group)
    _assert_close(run_onnx(steer, X, _codes(group)), steer.transform(X, sensitive_features=group))


def test_where_one_map_moves_all_rows_the_graph_takes_no_groups(rows: Any, run_onnx: Any) -> None:
    X, y, group = rows
    leace = LeaceTransformer().fit(X, sensitive_features=group)
    _assert_close(run_onnx(leace, X), leace.transform(X))
    assert read_onnx_codes(run_onnx.path) == {}
    with pytest.warns(UserWarning, match="nothing is being steered"):
        alone = FairSteeringTransformer().fit(X, y)
    np.testing.assert_array_equal(run_onnx(alone, X), X)


@pytest.mark.parametrize("transform", [None, StandardScaler(), "log"], ids=str)
def test_reference_group_keeps_its_bits(rows: Any, run_onnx: Any, transform: Any) -> None:
    X, y, group = rows
    steer = FairSteeringTransformer(
        intervention="affirmative", reference_group="b", feature_transform=transform, unknown_group="infer"
    ).fit(X, y, sensitive_features=group)
    output = run_onnx(steer, X, _codes(group))
    np.testing.assert_array_equal(output[group == "b"], X[group == "b"])
    assert (output[group != "b"] != X[group != "b"]).any(axis=1).all()


@pytest.mark.parametrize("unknown_group", ["error", "infer", "infer_hard"])
@pytest.mark.parametrize("covariance", ["tied", "full", "diagonal"])
def test_codes_that_are_no_groups_are_inferred_or_become_nan(
    rows: Any, run_onnx: Any, unknown_group: Any, covariance: Any
) -> None:
    X, y, group = rows
    steer = FairSteeringTransformer(covariance=covariance, unknown_group=unknown_group)
    steer.fit(X, y, sensitive_features=group)
    codes, labels = _codes(group).copy(), group.astype(object)
    codes[::3], labels[::3] = -1, None
    codes[1], codes[2], codes[4] = 3, 2**40, -2  # the first two are no groups' codes, the third says "unseen"
    labels[4] = "unseen"
    output = run_onnx(steer, X, codes)
    assert np.isnan(output[[1, 2]]).all()
    inferred = codes < 0
    rest = np.setdiff1d(np.arange(len(X)), [1, 2])
    if unknown_group == "error":
        assert np.isnan(output[inferred]).all()
        rest = np.setdiff1d(rest, np.flatnonzero(inferred))
    else:
        assert steer.group_calibration_ is not None
    _assert_close(
        output[rest], steer.transform(X, sensitive_features=labels if unknown_group != "error" else group)[rest]
    )


@pytest.mark.parametrize("transform", [StandardScaler(), "log"], ids=str)
def test_groups_are_inferred_in_the_coordinates_of_the_model(rows: Any, run_onnx: Any, transform: Any) -> None:
    X, y, group = rows
    steer = FairSteeringTransformer(feature_transform=transform, unknown_group="infer")
    steer.fit(X, y, sensitive_features=group)
    _assert_close(run_onnx(steer, X, np.full(len(X), -1)), steer.transform(X))


@pytest.mark.parametrize("unknown_group", ["error", "infer", "infer_hard"])
def test_an_empty_batch_comes_out_empty(rows: Any, run_onnx: Any, unknown_group: Any) -> None:
    X, y, group = rows
    steer = FairSteeringTransformer(unknown_group=unknown_group).fit(X, y, sensitive_features=group)
    assert run_onnx(steer, X[:0], _codes(group[:0])).shape == (0, 5)


def test_inference_knows_subgroups_without_rows_and_no_calibration(rows: Any, run_onnx: Any) -> None:
    X, y, group = rows
    seen = (y != 0) | (group != "a")
    steer = FairSteeringTransformer(unknown_group="infer")
    steer.partial_fit(X[seen], y[seen], sensitive_features=group[seen])
    with pytest.warns(UserWarning, match="No row of the subgroups"):
        expected = steer.transform(X)
    _assert_close(run_onnx(steer, X, np.full(len(X), -1)), expected)


STAYS = [{}, {"intervention": "affirmative", "reference_group": "b"}, {"strength": 0.0}]


@pytest.mark.parametrize("params", STAYS, ids=str)
@pytest.mark.parametrize("unknown_group", ["error", "infer", "infer_hard"])
@pytest.mark.parametrize("transform", [None, "log", StandardScaler(), FrozenEstimator(StandardScaler())], ids=str)
def test_a_row_that_transform_refuses_is_nan_whatever_its_group(
    rows: Any, run_onnx: Any, transform: Any, unknown_group: Any, params: Any
) -> None:
    X, y, group = rows
    if isinstance(transform, FrozenEstimator):
        transform.estimator.fit(X)
    steer = FairSteeringTransformer(feature_transform=transform, unknown_group=unknown_group, **params)
    steer.fit(X, y, sensitive_features=group)
    wrong = [np.nan, np.inf, -np.inf, *([0.0, -0.0, -1.0] if transform == "log" else [])]
    broken, n = np.tile(X[:12], (len(wrong), 1)), 12 * len(wrong)
    broken[np.arange(n), np.arange(n) % 5] = np.repeat(wrong, 12)
    codes = _codes(np.tile(NAMES, n // 3))
    for i in range(n):
        with pytest.raises(ValueError, match=r"NaN|infinity|needs positive"):
            steer.transform(broken[[i]], sensitive_features=[NAMES[codes[i]]])
    assert np.isnan(run_onnx(steer, broken, codes)).all()
    assert np.isnan(run_onnx(steer, broken, np.full(n, -1))).all()
    mixed, codes = np.concatenate([broken, X]), np.concatenate([codes, _codes(group)])
    output = run_onnx(steer, mixed, codes)
    assert np.isnan(output[:n]).all()
    _assert_close(output[n:], steer.transform(X, sensitive_features=group))


def test_one_map_for_all_refuses_rows_too(rows: Any, run_onnx: Any) -> None:
    X, y, group = rows
    with pytest.warns(UserWarning, match="nothing is being steered"):
        alone = FairSteeringTransformer(feature_transform="log").fit(X, y)
    leace = LeaceTransformer().fit(X, sensitive_features=group)
    for transformer, value in ((alone, 0.0), (alone, np.nan), (leace, np.nan), (leace, np.inf)):
        broken = X[:4].copy()
        broken[1, 2] = value
        output = run_onnx(transformer, broken)
        assert np.isnan(output[1]).all()
        assert np.isfinite(output[[0, 2, 3]]).all()


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"strength": 0.4},
        {"unknown_group": "infer"},
        {"feature_transform": StandardScaler()},
        {"feature_transform": MinMaxScaler()},
    ],
    ids=str,
)
def test_large_means_cost_one_rounding(make_data: Any, run_onnx: Any, params: Any, offset: Any) -> None:
    X, y, group = make_data(n=500, n_features=8, n_classes=2, n_groups=3)
    X = (X + offset * np.array([1, -1, 2, 0.5, 1, 1, 0, 3])).astype(np.float32)
    steer = FairSteeringTransformer(**params).fit(X, y, sensitive_features=NAMES[group])
    exact = steer.transform(X.astype(np.float64), sensitive_features=NAMES[group])
    unit = np.spacing(np.abs(exact).astype(np.float32)) + 1e-6
    assert (np.abs(run_onnx(steer, X, group) - exact) / unit).max() < 1
    if "unknown_group" in params:
        exact = steer.transform(X.astype(np.float64))
        assert (np.abs(run_onnx(steer, X, np.full(len(X), -1)) - exact) / unit).max() < 1


@pytest.mark.parametrize(
    "transformer",
    [
        MeanMatchingTransformer(),
        FairSteeringTransformer(
            covariance="diagonal", feature_transform=StandardScaler(), intervention="affirmative", reference_group="b"
        ),
    ],
    ids=["shifts", "scales"],
)
def test_maps_that_scale_each_feature_alone_take_no_matrices(make_data: Any, run_onnx: Any, transformer: Any) -> None:
    X, y, group = make_data(n=200, n_features=3, n_groups=3)
    X = np.tile(X, (1, 400)).astype(np.float32)
    transformer.fit(X, y, sensitive_features=NAMES[group])
    _assert_close(run_onnx(transformer, X, group), transformer.transform(X, sensitive_features=NAMES[group]))
    assert run_onnx.path.stat().st_size < 100_000  # a matrix of 1200 features takes 5.8 MB


def test_groups_near_one_another_share_their_centre(make_data: Any, run_onnx: Any) -> None:
    onnx = pytest.importorskip("onnx")
    X, y, group = make_data(n_groups=3)
    for spread, n_centres in ((0, 1), (1e4, 3)):
        steer = FairSteeringTransformer().fit(X + spread * group[:, None], y, sensitive_features=NAMES[group])
        export_onnx(steer, run_onnx.path)
        nodes = [node.op_type for node in onnx.load(run_onnx.path).graph.node]
        assert (nodes.count("Sub"), nodes.count("Gemm")) == (n_centres, 3)


def test_groups_far_apart_cost_no_digits_either(make_data: Any, run_onnx: Any) -> None:
    X, y, group = make_data(n=500, n_features=4, n_groups=3)
    X = (X + 1e5 * group[:, None]).astype(np.float32)
    steer = FairSteeringTransformer().fit(X, y, sensitive_features=NAMES[group])
    exact = steer.transform(X.astype(np.float64), sensitive_features=NAMES[group])
    # The step itself is as long as the way between the groups, and is rounded too.
    assert np.abs(run_onnx(steer, X, group) - exact).max() < 2 * np.spacing(np.float32(2e5))


def test_logarithms_of_large_numbers_cost_no_digits(make_data: Any, run_onnx: Any) -> None:
    X, y, group = make_data(n=500, n_features=4, n_groups=3)
    X = np.exp(0.01 * X + 12).astype(np.float32)
    steer = FairSteeringTransformer(feature_transform="log").fit(X, y, sensitive_features=NAMES[group])
    exact = steer.transform(X.astype(np.float64), sensitive_features=NAMES[group])
    np.testing.assert_allclose(run_onnx(steer, X, group), exact, rtol=2e-6)


# ---- score alignment


@pytest.fixture
def run_scores(tmp_path: Path) -> Any:
    """Export an alignment and run the graph; returns the output for scores and codes."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")

    def run(estimator: Any, scores: Any, codes: Any) -> Any:
        export_onnx(estimator, tmp_path / "scores.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "scores.onnx", providers=["CPUExecutionProvider"])
        inputs = {"score": np.asarray(scores, dtype=np.float64), "group": np.asarray(codes, dtype=np.int64)}
        (output,) = session.run(["probability"], inputs)
        return output

    found: Any = run
    found.path = tmp_path / "scores.onnx"
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Gaps of up to:UserWarning")  # three classes whose rates only chance makes equal
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("constraint", ["equal_opportunity", "demographic_parity"])
@pytest.mark.parametrize("params", [{}, {"max_gap": 0.1}, {"calibrate": True}, {"max_gap": 1.0}], ids=str)
def test_scores_become_the_probabilities_of_the_aligner(
    rows: Any, run_scores: Any, n_classes: Any, constraint: Any, params: Any
) -> None:
    X, y, group = rows
    aligner = ScoreAligner(LogisticRegression(), constraint=constraint, **params)
    aligner.fit(X, y % n_classes, sensitive_features=group)
    beyond, groups = np.concatenate([X, 3 * X, -5 * X]), np.tile(group, 3)  # scores that the alignment has not seen
    scores = aligner.estimator_.predict_proba(beyond)
    expected = aligner.predict_proba(beyond, sensitive_features=groups)
    output = run_scores(aligner, scores, _codes(groups))
    assert output.dtype == np.float64
    np.testing.assert_allclose(output, expected, atol=1e-12)
    assert read_onnx_codes(run_scores.path) == {"a": 0, "b": 1, "c": 2}
    for code in (-1, 3, 2**40):
        assert np.isnan(run_scores(aligner, scores[:5], [code] * 5)).all()
    average = run_scores(aligner.set_params(unknown_group="average"), scores, np.full(len(beyond), -1))
    np.testing.assert_allclose(average, aligner.predict_proba(beyond), atol=1e-12)
    scores = scores[:3].copy()
    scores[0, 0], scores[1, 1] = np.nan, np.inf
    output = run_scores(aligner, scores, [0, 1, 2])
    assert np.isnan(output[:2]).all()
    assert np.isfinite(output[2]).all()


def test_decision_functions_become_probabilities(rows: Any, run_scores: Any) -> None:
    X, y, group = rows
    aligner = ScoreAligner(LinearSVC()).fit(X, y > 0, sensitive_features=group)
    scores = aligner.estimator_.decision_function(X)
    output = run_scores(aligner, scores, _codes(group))
    np.testing.assert_allclose(output, aligner.predict_proba(X, sensitive_features=group), atol=1e-12)
    assert run_scores(aligner, scores[:0], []).shape == (0, 2)
    tied = ScoreAligner(DecisionTreeClassifier(max_depth=1)).fit(X, y > 0, sensitive_features=group)
    output = run_scores(tied, tied.estimator_.predict_proba(X), _codes(group))
    np.testing.assert_allclose(output, tied.predict_proba(X, sensitive_features=group), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [None, LogisticRegression()], ids=str)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_an_aligned_classifier_is_exported_by_its_scores(
    rows: Any, run_scores: Any, estimator: Any, n_classes: Any
) -> None:
    X, y, group = rows
    y = y % n_classes
    plain = IdealDistributionClassifier(estimator=estimator).fit(X, y, sensitive_features=group)
    aligned = clone(plain).set_params(score_alignment="equal_opportunity").fit(X, y, sensitive_features=group)
    scores = plain.predict_proba(X, sensitive_features=group)
    output = run_scores(aligned, scores, _codes(group))
    np.testing.assert_allclose(output, aligned.predict_proba(X, sensitive_features=group), atol=1e-12)
    with pytest.raises(TypeError, match=r"steering_.*score_alignment"):
        export_onnx(plain, run_scores.path)


def test_a_loaded_aligner_needs_no_classifier_to_be_exported(rows: Any, run_scores: Any, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    X, y, group = rows
    aligner = ScoreAligner(LogisticRegression()).fit(X, y > 0, sensitive_features=group)
    persistence.save(aligner, tmp_path / "maps.safetensors")
    export_onnx(aligner, tmp_path / "given.onnx")
    export_onnx(aligner.alignment_, tmp_path / "alone.onnx")
    assert (tmp_path / "given.onnx").read_bytes() == (tmp_path / "alone.onnx").read_bytes()
    export_onnx(persistence.load(tmp_path / "maps.safetensors"), tmp_path / "loaded.onnx")
    assert (tmp_path / "given.onnx").read_bytes() == (tmp_path / "loaded.onnx").read_bytes()


def test_one_class_has_no_scores(rows: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    X, _, group = rows
    aligner = ScoreAligner(DummyClassifier()).fit(X, np.zeros(len(X)), sensitive_features=group)
    with pytest.raises(ValueError, match=r"knows one class, 0\.0"):
        export_onnx(aligner, tmp_path / "scores.onnx")
    with pytest.raises(NotFittedError):
        export_onnx(ScoreAligner(DummyClassifier()), tmp_path / "scores.onnx")


def test_labels_and_features_come_with_the_graph(rows: Any, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    X, y, group = rows
    table = pd.DataFrame(X, columns=list("vwxyz")).assign(group=_codes(group) == 1, old=_codes(group) % 2)
    steer = FairSteeringTransformer(sensitive_columns=["group", "old"]).fit(table, y)
    export_onnx(steer, tmp_path / "map.onnx")
    codes = read_onnx_codes(tmp_path / "map.onnx")
    assert list(codes.items()) == [((False, 0), 0), ((True, 1), 1)]
    assert type(next(iter(codes))[0]) is bool
    model = onnx.load(tmp_path / "map.onnx")
    assert json.loads(model.metadata_props[0].value)["features"] == list("vwxyz")
    assert {node.domain for node in model.graph.node} == {""}
    assert "Gemm" in {node.op_type for node in model.graph.node}


def test_merged_groups_share_a_code(rows: Any, run_onnx: Any) -> None:
    X, y, group = rows
    few = np.flatnonzero(group == "c")[20:]
    X, y, group = (np.delete(array, few, axis=0) for array in (X, y, group))
    steer = FairSteeringTransformer(min_subgroup_size=20, small_subgroups="merge", unknown_group="infer")
    steer.fit(X, y, sensitive_features=group)
    assert len(steer.groups_) == 2
    export_onnx(steer, run_onnx.path)
    codes = read_onnx_codes(run_onnx.path)
    assert len(codes) == 3
    assert len(set(codes.values())) == 2
    output = run_onnx(steer, X, [codes[label] for label in group])
    _assert_close(output, steer.transform(X, sensitive_features=group))


@pytest.mark.parametrize(
    ("transform", "words"),
    [(QuantileTransformer(n_quantiles=50), "QuantileTransformer"), (MinMaxScaler(clip=True), r"clip=True")],
    ids=["quantile", "clip"],
)
@pytest.mark.parametrize("write", [export_onnx, export_affine])
def test_transforms_that_are_no_affine_maps_are_refused(
    rows: Any, tmp_path: Path, write: Any, transform: Any, words: Any
) -> None:
    pytest.importorskip("onnx")
    X, y, group = rows
    steer = FairSteeringTransformer(feature_transform=transform).fit(X, y, sensitive_features=group)
    with pytest.raises(ValueError, match=words):
        write(steer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [export_onnx, export_affine])
def test_what_is_no_fitted_transformer_is_refused(rows: Any, tmp_path: Path, write: Any) -> None:
    pytest.importorskip("onnx")
    X, y, group = rows
    with pytest.raises(NotFittedError):
        write(FairSteeringTransformer(), tmp_path / "out")
    classifier = IdealDistributionClassifier().fit(X, y, sensitive_features=group)
    with pytest.raises(TypeError, match="steering_"):
        write(classifier, tmp_path / "out")
    with pytest.raises(TypeError, match="StandardScaler is no transformer"):
        write(StandardScaler().fit(X), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_graph_of_ours_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "map.onnx"
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "other", [], []))
    for content in (b"no graph", b"", empty.SerializeToString()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no ONNX file of fairsteer"):
            read_onnx_codes(path)


def test_without_onnx_a_sentence_says_what_to_install(
    rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y, group = rows
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="pip install"):
        export_onnx(FairSteeringTransformer().fit(X, y, sensitive_features=group), tmp_path / "map.onnx")


# ---- one affine map for each group


@pytest.mark.parametrize("params", [{}, {"strength": 0.3}, {"feature_transform": StandardScaler()}], ids=str)
def test_affine_files_are_read_back_bit_for_bit_and_by_the_server(rows: Any, tmp_path: Path, params: Any) -> None:
    X, y, group = rows
    steer = FairSteeringTransformer(**params).fit(X, y, sensitive_features=group)
    export_affine(steer, tmp_path / "maps")
    maps = read_affine(tmp_path / "maps")
    assert list(maps) == ["a", "b", "c"]
    for code, label in enumerate("abc"):
        own, (A, b) = X[group == label], maps[label]
        # What the server does: unpickle, and multiply rows by the transposed matrix.
        state = pickle.loads((tmp_path / "maps" / f"group-{code}.pkl").read_bytes())
        assert sorted(state) == ["A_", "B_"]
        np.testing.assert_array_equal(A, state["A_"], strict=True)
        np.testing.assert_array_equal(b, state["B_"], strict=True)
        expected = steer.transform(own.astype(np.float64), sensitive_features=[label] * len(own))
        np.testing.assert_allclose(own.astype(np.float64) @ state["A_"].T + state["B_"], expected, rtol=1e-12)
        if not params:
            np.testing.assert_array_equal(A, steer.maps_[label][0])
            np.testing.assert_array_equal(b, steer.maps_[label][1])


def test_reference_group_gets_the_exact_identity(rows: Any, tmp_path: Path) -> None:
    X, y, group = rows
    steer = FairSteeringTransformer(
        intervention="affirmative", reference_group="b", feature_transform=StandardScaler()
    ).fit(X, y, sensitive_features=group)
    export_affine(steer, tmp_path)
    A, b = read_affine(tmp_path)["b"]
    np.testing.assert_array_equal(A, np.eye(5))
    np.testing.assert_array_equal(b, np.zeros(5))


def test_merged_groups_and_one_map_for_all(rows: Any, tmp_path: Path) -> None:
    X, y, group = rows
    leace = LeaceTransformer().fit(X, sensitive_features=group)
    export_affine(leace, tmp_path / "leace")
    for label, (A, b) in read_affine(tmp_path / "leace").items():
        np.testing.assert_array_equal(A, leace.maps_[label][0])
        np.testing.assert_array_equal(b, leace.maps_[label][1])
    few = np.flatnonzero(group == "a")[20:]
    X, y, group = (np.delete(array, few, axis=0) for array in (X, y, group))
    steer = FairSteeringTransformer(min_subgroup_size=20, small_subgroups="merge").fit(X, y, sensitive_features=group)
    export_affine(steer, tmp_path / "merged")
    maps = read_affine(tmp_path / "merged")
    assert sorted(maps) == ["a", "b", "c"]
    for label, (A, b) in maps.items():
        own = X[group == label].astype(np.float64)
        np.testing.assert_allclose(
            own @ A.T + b, steer.transform(own, sensitive_features=[label] * len(own)), rtol=1e-12
        )


def test_logarithms_have_no_affine_form(rows: Any, tmp_path: Path) -> None:
    X, y, group = rows
    steer = FairSteeringTransformer(feature_transform="log").fit(X, y, sensitive_features=group)
    with pytest.raises(ValueError, match="export_onnx can"):
        export_affine(steer, tmp_path)


def test_maps_of_two_transformers_do_not_mix(rows: Any, tmp_path: Path) -> None:
    X, y, group = rows
    steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)
    export_affine(steer, tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match="not empty"):
        export_affine(steer, tmp_path)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_numpys_own_pickles_are_read(protocol: Any, dtype: Any, order: Any) -> None:
    array = np.asarray(np.random.default_rng(0).normal(size=(3, 4)), dtype=dtype, order=order)
    content = pickle.dumps({"A_": array, "again": array, "B_": array[0]}, protocol=protocol)
    if protocol == 2:  # bytes of old pickles are text that a function of theirs encodes
        with pytest.raises(ValueError, match=r"_codecs\.encode"):
            loads(content)
        return
    for name, read in loads(content).items():
        np.testing.assert_array_equal(read, array[0] if name == "B_" else array)
        assert read.dtype.isnative


# ---- files of strangers

MARKER = "executed"


class _Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


class _State:
    """Pickles as an object whose state is set by a method."""

    def __setstate__(self, state: Any) -> None:
        Path(state).touch()

    def __reduce__(self) -> Any:
        return (_State, (), MARKER)


def _array_of(value: Any) -> Any:
    array = np.empty(1, dtype=object)
    array[0] = value
    return array


def _malicious() -> Any:
    touch = f"import pathlib; pathlib.Path({MARKER!r}).touch()"
    arrays = dumps({"A_": np.eye(2), "B_": np.zeros(2)})
    body, end = arrays[:-1], b"."
    module = b"\x8c\x08builtins\x8c\x04exec\x93"
    text = b"\x8c" + bytes([len(touch)]) + touch.encode()
    return {
        "call of exec": pickle.dumps({"A_": _Call(exec, touch)}),
        "exec of protocol 0": f"cbuiltins\nexec\n(V{touch}\ntR.".encode(),
        "inst": f"(S'{touch}'\nibuiltins\nexec\n.".encode(),
        "obj": b"(" + f"cbuiltins\nexec\nV{touch}\no.".encode(),
        "after the arrays": body + b"0" + module + text + b"\x85R" + end,
        "beside the arrays": pickle.dumps({"A_": np.eye(2), "B_": np.zeros(2), "x": _Call(exec, touch)}),
        "array of objects": pickle.dumps({"A_": _array_of(_Call(exec, touch))}),
        "state": pickle.dumps({"A_": _State()}),
        "numpy's own functions": pickle.dumps({"A_": _Call(np.load, MARKER)}),
        "key": pickle.dumps({_Call(exec, touch): np.eye(2)}),
        "name of a name": pickle.dumps({"A_": _Call(getattr, np.ndarray, "tofile")}),
        "persistent id": b"Pexecuted\n.",
        "import alone": b"cantigravity\ngeohash\n.",
    }


@pytest.mark.parametrize("name", _malicious())
def test_malicious_pickle_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "map.pkl"
    path.write_bytes(_malicious()[name])
    opened = []
    monkeypatch.setattr("builtins.exec", lambda *_: opened.append("exec"))
    before = set(sys.modules)
    with pytest.raises(ValueError, match=re.escape(f"{path} cannot be read as a map")):
        read_affine_file(path)
    assert opened == []
    assert list(tmp_path.iterdir()) == [path]
    assert set(sys.modules) == before


@pytest.mark.slow
def test_the_malicious_pickles_would_run(tmp_path: Path) -> None:
    """Otherwise the test above proves nothing."""
    for name in ("call of exec", "exec of protocol 0", "inst", "obj", "after the arrays", "array of objects"):
        program = "import pickle, sys, numpy\ntry: pickle.load(sys.stdin.buffer)\nexcept Exception: pass"
        folder = tmp_path / name
        folder.mkdir()
        subprocess.run([sys.executable, "-c", program], input=_malicious()[name], cwd=folder, check=True)
        assert (folder / MARKER).exists(), name


def test_damaged_pickle_is_refused_wherever_it_is_damaged() -> None:
    content = dumps({"A_": np.eye(2), "B_": np.arange(2.0)})
    for end in range(len(content)):
        with pytest.raises(ValueError, match=r"\w"):
            loads(content[:end])
    rng = np.random.default_rng(0)
    for _ in range(3000):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] = rng.integers(256)
        try:
            arrays = loads(bytes(damaged))
        except ValueError:
            continue
        assert all(type(array) is np.ndarray and array.dtype.kind == "f" for array in arrays.values())


def test_claimed_sizes_allocate_nothing() -> None:
    huge = b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"."
    with pytest.raises(ValueError, match="bytes8"):
        loads(huge)
    content = dumps({"A_": np.eye(2)}).replace(b"K\x02K\x02\x86", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86")
    with pytest.raises(ValueError, match="32 bytes"):
        loads(content)


@pytest.mark.parametrize(
    "arrays",
    [{"B_": np.zeros(2)}, {"A_": np.eye(2), "B_": np.zeros(3)}, {"A_": np.zeros((2, 3))}, {"A_": np.zeros(2)}],
    ids=["no matrix", "other size", "not square", "vector"],
)
def test_arrays_that_make_no_map_are_refused(tmp_path: Path, arrays: Any) -> None:
    path = tmp_path / "map.pkl"
    path.write_bytes(dumps(arrays))
    with pytest.raises(ValueError, match=r"must hold A_ of shape \(d, d\)"):
        read_affine_file(path)


def test_a_shift_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "map.pkl"
    path.write_bytes(dumps({"A_": 2 * np.eye(2, dtype=np.float32)}))
    A, b = read_affine_file(path)
    np.testing.assert_array_equal(A, 2 * np.eye(2), strict=True)
    np.testing.assert_array_equal(b, np.zeros(2), strict=True)


@pytest.mark.parametrize(
    "index", ["no json", "[]", '{"files": {"../group-0.pkl": [{"str": "a"}]}}', '{"files": {"group-0.pkl": [1]}}']
)
def test_damaged_index_is_refused(rows: Any, tmp_path: Path, index: Any) -> None:
    X, y, group = rows
    export_affine(FairSteeringTransformer().fit(X, y, sensitive_features=group), tmp_path)
    (tmp_path / "groups.json").write_text(index, encoding="utf-8")
    with pytest.raises(ValueError, match=r"groups\.json is damaged"):
        read_affine(tmp_path)


# ---- the command line and the page


@pytest.fixture
def map_file(rows: Any, tmp_path: Path) -> Any:
    pytest.importorskip("safetensors")
    X, y, group = rows
    steer = FairSteeringTransformer(feature_transform=StandardScaler()).fit(X, y, sensitive_features=group)
    persistence.save(steer, tmp_path / "map.safetensors")
    return tmp_path / "map.safetensors"


def test_command_writes_the_graph(run: Callable[..., tuple[int, str, str]], map_file: Any, rows: Any) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    X, _, group = rows
    out = map_file.with_suffix(".onnx")
    code, printed, err = run("export", map_file, "--to", "onnx", "-o", out)
    assert (code, err) == (0, "")
    assert " ".join(printed.split()) == "Wrote the maps of 3 groups and 5 features to map.onnx. Groups: 0 a; 1 b; 2 c."
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"X": X, "group": _codes(group)})
    _assert_close(output, persistence.load(map_file).transform(X, sensitive_features=group))


def test_saved_map_exports_the_same_bytes(rows: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("safetensors")
    X, y, group = rows
    steer = FairSteeringTransformer(feature_transform=StandardScaler(), unknown_group="infer")
    steer.fit(X, y, sensitive_features=group)
    persistence.save(steer, tmp_path / "map.safetensors")
    for name, exported in (("given", steer), ("loaded", persistence.load(tmp_path / "map.safetensors"))):
        export_onnx(exported, tmp_path / f"{name}.onnx")
        export_affine(exported, tmp_path / name)
    assert (tmp_path / "given.onnx").read_bytes() == (tmp_path / "loaded.onnx").read_bytes()
    for file in (tmp_path / "given").iterdir():
        assert file.read_bytes() == (tmp_path / "loaded" / file.name).read_bytes()


def test_command_writes_the_files_of_a_server(run: Callable[..., tuple[int, str, str]], map_file: Any) -> None:
    out = map_file.parent / "maps"
    code, printed, err = run("export", map_file, "--to", "affine", "--out", out)
    assert (code, err) == (0, "")
    assert "to maps. Groups: 0 a; 1 b; 2 c." in " ".join(printed.split())
    assert list(read_affine(out)) == ["a", "b", "c"]


def test_command_exports_the_steering_of_a_classifier(
    run: Callable[..., tuple[int, str, str]], rows: Any, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    X, y, group = rows
    classifier = IdealDistributionClassifier().fit(X, y, sensitive_features=group)
    persistence.save(classifier, tmp_path / "rule.safetensors")
    assert run("export", tmp_path / "rule.safetensors", "--to", "affine", "-o", tmp_path / "maps")[0] == 0
    np.testing.assert_array_equal(read_affine(tmp_path / "maps")["a"][0], classifier.steering_.maps_["a"][0])


@pytest.mark.parametrize("form", ["onnx", "affine"])
def test_command_refuses_what_moves_no_rows_by_maps(
    run: Callable[..., tuple[int, str, str]], rows: Any, tmp_path: Path, form: Any
) -> None:
    pytest.importorskip("safetensors")
    X, y, group = rows
    persistence.save(
        ConceptSteering(n_probes=4).fit(X + 3 * np.eye(5)[y], y, sensitive_features=group),
        tmp_path / "concept.safetensors",
    )
    code, _, err = run("export", tmp_path / "concept.safetensors", "--to", form, "-o", tmp_path / f"maps.{form}")
    assert code == 2
    assert "ConceptSteering is no transformer that moves rows by affine maps of their groups" in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.safetensors", "--to", "affine", "-o", "maps"], "none.safetensors"),
        (["map.safetensors", "--to", "onnx", "-o", "map.txt"], "must end in .onnx"),
        (["map.safetensors", "--to", "onnx", "-o", "absent/map.onnx"], "does not exist"),
        (["map.safetensors", "--to", "affine", "-o", "."], "is not empty"),
        (["map.safetensors", "--to", "affine", "-o", "map.safetensors"], "cannot be exported"),
        (["map.safetensors", "--to", "gguf", "-o", "maps"], "--to"),
        (["map.safetensors", "-o", "maps"], "--to"),
        (["text.txt", "--to", "affine", "-o", "maps"], "text.txt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_costs_a_sentence_and_nothing_else(
    run: Callable[..., tuple[int, str, str]], map_file: Any, monkeypatch: pytest.MonkeyPatch, arguments: Any, words: Any
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.chdir(map_file.parent)
    Path("text.txt").write_text("no map", encoding="utf-8")
    before = sorted(map_file.parent.iterdir())
    code, out, err = run("export", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(map_file.parent.iterdir()) == before
