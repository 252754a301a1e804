"""The affine maps of steering servers: one matrix and one offset a group, as arrays or files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fairsteer._utils.files import write_file
from fairsteer._utils.labels import label_from_json, label_to_json
from fairsteer._utils.types import Doubles, PathLike
from fairsteer.export import _array_pickle
from fairsteer.export._maps import group_codes, group_maps
from fairsteer.transformer._base import GroupMapTransformer

#: Name of the list of a folder's files.
_INDEX = "groups.json"


def export_affine(transformer: GroupMapTransformer, folder: PathLike) -> None:
    """Write every group's affine map to a file of its own, in the form that vLLM-based steering servers load.

    Each file is a pickled dictionary with the matrix ``A_`` (d, d) and the shift ``B_`` (d,), float64, by which a row
    ``x`` goes to ``A_ @ x + B_``; a batch of rows to ``X @ A_.T + B_``. EasySteer [1]_ reads it with
    ``easysteer.vectors.from_linear_transport`` and runs it as its algorithm ``"linear"``, in this orientation. (Rows on
    the left, ``X @ A_ + B_``, is what POT's ``LinearTransport`` means by the same names.) A server steers a request by
    one file, so it is the request that says which group it belongs to.

    Parameters
    ----------
    transformer : FairSteeringTransformer or transformer of :mod:`fairsteer.baselines`
        Fitted. Its present strength is written (leave the server's own scale at 1: it multiplies the result), and a
        `feature_transform` that is a standard, min-max, max-abs or robust scaler is folded into the maps.
    folder : path-like
        Folder to create, or an empty one. It gets ``group-0.pkl``, ``group-1.pkl``, ... and ``groups.json``, which
        says whose they are.

    Raises
    ------
    FileExistsError
        If the folder is not empty: maps of two transformers must not mix.
    TypeError
        If the estimator is no such transformer.
    sklearn.exceptions.NotFittedError
        If the transformer is not fitted.
    ValueError
        If the `feature_transform` is another one, or a label cannot be written as JSON.
    OSError
        If the files cannot be written.

    See Also
    --------
    read_affine : The way back.

    References
    ----------
    .. [1] Xu, Mei, Yan, Zhou, Zhang, Lu, Zhuang, Shen. "EasySteer: A Unified Framework for High-Performance and
       Extensible LLM Steering". 2025. arXiv:2509.25175.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from fairsteer import FairSteeringTransformer
    >>> from fairsteer.export import export_affine, read_affine
    >>> X = np.arange(16.0).reshape(8, 2) ** 1.5
    >>> steer = FairSteeringTransformer().fit(X, [0, 0, 1, 1] * 2, sensitive_features=["a", "b"] * 4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_affine(steer, folder)
    ...     A, b = read_affine(folder)["a"]
    >>> bool((A == steer.maps_["a"][0]).all() and (b == steer.maps_["a"][1]).all())
    True
    """
    maps, coordinates = group_maps(transformer)
    if coordinates.log:
        msg = (
            "feature_transform='log' makes the maps affine in the logarithms of the features only, which the A_/B_ "
            "form cannot say. export_onnx can."
        )
        raise ValueError(msg)
    labels: dict[int, list[Any]] = {}
    for label, code in group_codes(transformer).items():
        labels.setdefault(code, []).append(label_to_json(label))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        msg = f"{target} is not empty; name a new folder for the {len(labels)} maps."
        raise FileExistsError(msg)
    for code in labels:
        position = min(code, len(maps.A) - 1)  # one map for all groups stands in all files
        arrays = {"A_": maps.A[position], "B_": maps.b[position]}
        write_file(target / f"group-{code}.pkl", _array_pickle.dumps(arrays))
    files = {f"group-{code}.pkl": of_group for code, of_group in sorted(labels.items())}
    write_file(target / _INDEX, json.dumps({"files": files}, indent=1).encode())


def read_affine(folder: PathLike) -> dict[Any, tuple[Doubles, Doubles]]:
    """Read the maps that `export_affine` wrote, without running anything that is in the files.

    Parameters
    ----------
    folder : path-like
        The folder.

    Returns
    -------
    dict
        For each group label ``(A, b)``, of shapes (d, d) and (d,), bit for bit: ``x -> A @ x + b``.

    Raises
    ------
    ValueError
        If a file is damaged or holds anything else.
    OSError
        If a file cannot be read.
    """
    index = Path(folder) / _INDEX
    content = index.read_bytes()
    try:
        listed = json.loads(content)["files"]
        files = {name: [label_from_json(label) for label in labels] for name, labels in listed.items()}
        if any(name != Path(name).name for name in files):
            raise ValueError("it names files of another folder")
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        msg = f"{index} is damaged: {str(error)[:100]}."
        raise ValueError(msg) from error
    return {g: read_affine_file(Path(folder) / name) for name, labels in files.items() for g in labels}


def read_affine_file(path: PathLike) -> tuple[Doubles, Doubles]:
    """Read one map in the ``A_``/``B_`` form, without running anything that is in the file.

    Parameters
    ----------
    path : path-like
        A pickled dictionary of NumPy arrays, ``A_`` and optionally ``B_``.

    Returns
    -------
    A : ndarray of shape (d, d)
        The matrix.
    b : ndarray of shape (d,)
        The shift; zeros if the file has none.

    Raises
    ------
    ValueError
        If the file is damaged, asks for anything to be imported or called that arrays do not need, or its arrays do not
        make an affine map.
    OSError
        If the file cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        arrays = _array_pickle.loads(content)
    except ValueError as error:
        msg = f"{path} cannot be read as a map: {error}."
        raise ValueError(msg) from error
    A, b = arrays.get("A_"), arrays.get("B_")
    if A is None or A.ndim != 2 or A.shape[0] != A.shape[1] or (b is not None and b.shape != A.shape[:1]):
        shapes = {name: array.shape for name, array in arrays.items()}
        msg = f"{path} must hold A_ of shape (d, d) and B_ of shape (d,), not {shapes}."
        raise ValueError(msg)
    return A.astype(np.float64), np.zeros(len(A)) if b is None else b.astype(np.float64)
