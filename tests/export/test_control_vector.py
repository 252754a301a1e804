"""Control vectors: what llama.cpp's loader asks of the file, read back by the gguf package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairsteer import FairSteeringTransformer
from fairsteer.concepts import ConceptSteering
from fairsteer.export import export_control_vector, read_control_vector

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

D = 6


@pytest.fixture(scope="module")
def concept() -> ConceptSteering:
    rng = np.random.default_rng(0)
    shown, group = rng.integers(0, 2, (2, 400))
    hidden = rng.normal(size=(400, D)) + np.outer(shown, np.arange(D)) / 2 + group[:, None]
    return ConceptSteering(n_probes=8).fit(hidden, shown, sensitive_features=np.array(["f", "m"])[group])


def _shifting(**parameters: Any) -> Any:
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 2, (2, 400))
    X = rng.normal(size=(400, D)) + group[:, None] + y[:, None]
    transformer = FairSteeringTransformer(map_type="translation", **parameters)
    return X, group, transformer.fit(X, y, sensitive_features=group)


def test_the_file_is_what_the_loader_asks_for(concept: ConceptSteering, tmp_path: Path) -> None:
    path = tmp_path / "f.gguf"
    export_control_vector({3: concept, 1: np.arange(D)}, path, sensitive_features="f", strength=2.0, model_type="qwen2")
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "qwen2"
    assert fields["controlvector.layer_count"] == 3
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.3"]
    assert {(tensor.tensor_type, tuple(tensor.shape)) for tensor in reader.tensors} == {
        (gguf.GGMLQuantizationType.F32, (D,))
    }
    found = read_control_vector(path)
    assert list(found) == [1, 3]
    np.testing.assert_array_equal(found[1], 2 * np.arange(D, dtype=np.float32))
    np.testing.assert_array_equal(found[3], (2 * concept.direction("f")).astype(np.float32))


@pytest.mark.parametrize("strength", [None, 0.25])
def test_transformers_that_shift_are_written_as_their_shifts(tmp_path: Path, strength: float | None) -> None:
    from sklearn.preprocessing import StandardScaler

    X, group, transformer = _shifting(strength=0.5, feature_transform=StandardScaler())
    export_control_vector({7: transformer}, tmp_path / "v.gguf", sensitive_features=1, strength=strength)
    shift = read_control_vector(tmp_path / "v.gguf")[7]
    rows = X[group == 1]
    transformer.set_params(strength=0.5 if strength is None else strength)
    steered = transformer.transform(rows, sensitive_features=[1] * len(rows))
    np.testing.assert_allclose(rows + shift, steered, atol=1e-6)


def test_what_is_no_shift_is_refused(concept: ConceptSteering, tmp_path: Path) -> None:
    X, group, transformer = _shifting()
    affine = FairSteeringTransformer(map_type="affine").fit(X, group, sensitive_features=group[::-1])
    path = tmp_path / "v.gguf"
    vector = np.ones(D)
    refused: tuple[tuple[Any, dict[str, Any], type[Exception], str], ...] = (
        ({}, {}, ValueError, "no layers"),
        ({0: vector}, {}, ValueError, "no place for block 0"),
        ({"5": vector}, {}, ValueError, "from 1 on, not '5'"),
        ({True: vector}, {}, ValueError, "from 1 on, not True"),
        ({1: vector, 2: vector[1:]}, {}, ValueError, "5, 6 features"),
        ({1: np.append(vector, np.nan)}, {}, ValueError, "1 of 7 numbers of a shift are not finite"),
        ({1: np.eye(D)}, {}, TypeError, "or a vector, not by"),
        ({1: concept}, {}, ValueError, "one file serves one group"),
        ({1: concept}, {"sensitive_features": "x"}, ValueError, "'x' is none of the groups 'f', 'm'"),
        ({1: transformer}, {"sensitive_features": 7}, ValueError, "one of the groups 0, 1, not 7"),
        ({1: affine}, {"sensitive_features": 1}, ValueError, "map_type='translation', or export the maps"),
        ({1: transformer.set_params(strength=0)}, {"sensitive_features": 1, "strength": 1.0}, ValueError, "strength 0"),
    )
    for layers, keywords, error, message in refused:
        with pytest.raises(error, match=message):
            export_control_vector(layers, path, **keywords)
        assert not path.exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    export_control_vector({1: np.ones(D)}, path)
    content = path.read_bytes()
    for damaged in (b"", b"GGUF", content[:60], content[:-16]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read as a control vector"):
            read_control_vector(path)
    for architecture, name, values in (
        ("llama", "direction.1", np.ones(D, np.float32)),
        ("controlvector", "direction.0", np.ones(D, np.float32)),
        ("controlvector", "weight.1", np.ones(D, np.float32)),
        ("controlvector", "direction.1", np.ones((D, D), np.float32)),
        ("controlvector", "direction.1", np.full(D, np.nan, np.float32)),
    ):
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(ValueError, match="cannot be read as a control vector"):
            read_control_vector(path)
    with pytest.raises(FileNotFoundError):
        read_control_vector(tmp_path / "none.gguf")
