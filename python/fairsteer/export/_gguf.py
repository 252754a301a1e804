"""Shifts of the residual stream as control vectors, which llama.cpp loads beside a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairsteer._utils.files import write_file
from fairsteer._utils.input import brief, few
from fairsteer._utils.types import Doubles, PathLike
from fairsteer.concepts import ConceptSteering
from fairsteer.export._maps import group_codes, group_maps
from fairsteer.transformer._base import GroupMapTransformer

_ARCHITECTURE, _DIRECTION = "controlvector", "direction."


def export_control_vector(
    layers: Mapping[int, ConceptSteering | GroupMapTransformer | ArrayLike],
    path: PathLike,
    *,
    sensitive_features: Any = None,
    concept: Any = None,
    strength: float | None = None,
    model_type: str = "llama",
) -> None:
    """Write the shifts of one group's hidden states as a GGUF control vector.

    Parameters
    ----------
    layers : mapping of int to ConceptSteering, transformer or array-like of shape (d,)
        For each block of the model, counted from 0 as in ``model.layers.N``, what shifts its output: a fitted
        `ConceptSteering`, a transformer whose maps only shift (``map_type="translation"``), or a vector. The file
        format has no place for block 0.
    path : path-like
        File to write, ``.gguf``.
    sensitive_features : label, default=None
        The group that is served; may be left out for vectors.
    concept : label, default=None
        Class towards which to move, see `ConceptSteering.direction`.
    strength : float, default=None
        Strength of a concept (1), or part of the way of a transformer (its own). Vectors are written as they are, or
        multiplied by it. llama.cpp's ``--control-vector-scaled`` multiplies once more, which of a concept that was
        equalised at several strengths is no longer equal: write a file for each.
    model_type : str, default="llama"
        Kind of model, as a hint for people; ``config.model_type`` of transformers.

    Raises
    ------
    ImportError
        If gguf is not installed.
    TypeError
        If something has no shift of a hidden state.
    ValueError
        If a block is not counted from 1 on, the numbers of features differ, a vector is not finite, a group is not
        known, or a transformer does more than shift.
    OSError
        If the file cannot be written.

    See Also
    --------
    read_control_vector : The way back.
    fairsteer.torch.fold_into : The same as biases of the model.

    Examples
    --------
    >>> import numpy as np
    >>> from fairsteer.export import export_control_vector, read_control_vector
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "joyful-f.gguf")
    >>> export_control_vector({5: np.array([1.0, 0.0, -2.0])}, path)
    >>> read_control_vector(path)
    {5: array([ 1.,  0., -2.], dtype=float32)}
    """
    gguf = _gguf()
    if not layers:
        msg = "There are no layers to write: pass {block: what shifts it}."
        raise ValueError(msg)
    shifts = {}
    block: Any
    for block, source in sorted(layers.items()):
        if isinstance(block, bool) or not isinstance(block, (int, np.integer)) or block < 1:
            msg = (
                f"Blocks are numbers from 1 on, not {block!r}: control vectors have no place for block 0, the first. "
                "fairsteer.torch.fold_into has."
            )
            raise ValueError(msg)
        shifts[int(block)] = _shift(source, sensitive_features, concept, strength)
    sizes = {len(shift) for shift in shifts.values()}
    if len(sizes) > 1:
        msg = f"The shifts must be of one model's hidden states, but they have {few(map(str, sorted(sizes)))} features."
        raise ValueError(msg)
    with TemporaryDirectory() as folder:
        temporary = Path(folder) / "vector.gguf"
        writer = gguf.GGUFWriter(temporary, _ARCHITECTURE)
        writer.add_string(f"{_ARCHITECTURE}.model_hint", model_type)
        writer.add_uint32(f"{_ARCHITECTURE}.layer_count", max(shifts))
        for block, shift in shifts.items():
            writer.add_tensor(f"{_DIRECTION}{block}", shift)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_file(Path(path), temporary.read_bytes())


def read_control_vector(path: PathLike) -> dict[int, NDArray[np.float32]]:
    """Read a GGUF control vector.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    dict of int to ndarray of shape (d,), dtype float32
        What is added to the output of each block, bit for bit.

    Raises
    ------
    ImportError
        If gguf is not installed.
    ValueError
        If the file is damaged or holds anything else.
    OSError
        If the file cannot be read.
    """
    gguf = _gguf()
    with Path(path).open("rb"):
        pass  # raises what a file that is not there raises
    try:
        reader = gguf.GGUFReader(path)
        architecture = reader.fields["general.architecture"].contents()
        found = {}
        for tensor in reader.tensors:
            name, _, number = tensor.name.rpartition(".")
            if name + "." != _DIRECTION or not number.isdigit() or int(number) < 1:
                raise ValueError(f"it has a tensor {brief(tensor.name)}")
            values = np.array(tensor.data)
            if values.dtype != np.float32 or values.ndim != 1 or not np.isfinite(values).all():
                raise ValueError(f"its tensor {brief(tensor.name)} is no vector of finite single-precision numbers")
            found[int(number)] = values
        if architecture != _ARCHITECTURE or not found:
            raise ValueError(f"it is of the architecture {brief(architecture)}, with {len(found)} directions")
    except (ArithmeticError, IndexError, KeyError, MemoryError, TypeError, ValueError) as error:
        msg = f"{path} cannot be read as a control vector: {str(error)[:200]}."
        raise ValueError(msg) from error
    return dict(sorted(found.items()))


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        msg = "Control vectors need the package gguf. Install it with: pip install 'fairsteer[gguf]'."
        raise ImportError(msg) from error
    return gguf


def _shift(source: Any, group: Any, concept: Any, strength: float | None) -> NDArray[np.float32]:
    shift: Doubles
    if isinstance(source, ConceptSteering):
        if group is None:
            msg = "sensitive_features=… must name the group whose directions are written; one file serves one group."
            raise ValueError(msg)
        direction = source.direction(group, concept)
        amounts = source.group_strengths(1.0 if strength is None else strength, concept)
        shift = amounts[source.groups_.tolist().index(group)] * direction
    elif isinstance(source, GroupMapTransformer):
        shift = _of_transformer(source, group, strength)
    elif isinstance(source, (str, bytes)) or np.ndim(source) != 1:
        msg = (
            f"A block is shifted by a ConceptSteering, a transformer with map_type='translation' or a vector, not by "
            f"{brief(source)}."
        )
        raise TypeError(msg)
    else:
        shift = (1.0 if strength is None else strength) * np.asarray(source, dtype=np.float64)
    if not np.isfinite(shift).all():
        msg = f"{int((~np.isfinite(shift)).sum())} of {len(shift)} numbers of a shift are not finite."
        raise ValueError(msg)
    return shift.astype(np.float32)


def _of_transformer(transformer: GroupMapTransformer, group: Any, strength: float | None) -> Doubles:
    maps, coordinates = group_maps(transformer)
    codes = group_codes(transformer)
    if group not in codes:
        msg = f"sensitive_features must name one of the groups {few(map(repr, codes))}, not {brief(group)}."
        raise ValueError(msg)
    code = min(codes[group], len(maps.A) - 1)
    if coordinates.log or not np.allclose(maps.A[code], np.eye(len(maps.A[code])), rtol=0, atol=1e-12):
        msg = (
            "The maps do more than shift, and a control vector is a shift. Fit with map_type='translation', or export "
            "the maps by export_affine."
        )
        raise ValueError(msg)
    own = transformer._strength()
    if strength is None:
        return np.asarray(maps.b[code])
    if own == 0:
        msg = "The transformer is at strength 0: set its strength to 1 before another one is written."
        raise ValueError(msg)
    return np.asarray(maps.b[code] * (strength / own))
