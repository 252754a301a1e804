"""Fitted maps in the forms that other programs run: ONNX graphs, and the affine maps of steering servers.

Neither form keeps what the transformer was fitted from; :mod:`fairsteer.persistence` does. Reading either back runs no
code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from fairsteer import _array_pickle
from fairsteer._coordinates import SimpleCoordinates
from fairsteer._group_map_transformer import GroupMapTransformer
from fairsteer._json_labels import label_from_json, label_to_json
from fairsteer._maps import AffineMaps
from fairsteer._onnx_graph import Posterior, build_model
from fairsteer.baselines import LeaceTransformer

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["export_affine", "export_onnx", "read_affine", "read_affine_file", "read_onnx_codes"]

_PathLike = str | os.PathLike[str]
_Doubles = npt.NDArray[np.float64]

#: Entry of an ONNX file's metadata, and name of the list of a folder's files.
_KEY, _INDEX = "fairsteer", "groups.json"

#: What one protobuf message may hold, which an ONNX file is.
_ONNX_LIMIT = 2**31 - 1


def export_onnx(transformer: GroupMapTransformer, path: _PathLike) -> None:
    """Write a fitted transformer as an ONNX graph that does what ``transform`` does.

    The graph has standard operators of opset 18 only. Its inputs are ``X`` (n, d), float32, the features without
    sensitive columns, and ``group`` (n,), int64, positions in ``groups_`` (`read_onnx_codes` reads which label has
    which); its output is ``Y`` (n, d), float32. There is no input ``group`` where one map moves all rows:
    :class:`~fairsteer.baselines.LeaceTransformer`, and a transformer fitted without groups.

    Parameters
    ----------
    transformer : FairSteeringTransformer or transformer of :mod:`fairsteer.baselines`
        Fitted. Its present strength is written, and a `feature_transform` that is a standard, min-max, max-abs or
        robust scaler is folded into the maps; ``"log"`` becomes operators.
    path : path-like
        File to create or replace, usually ``*.onnx``.

    Raises
    ------
    ImportError
        If onnx is not installed.
    TypeError
        If the estimator is no such transformer.
    sklearn.exceptions.NotFittedError
        If the transformer is not fitted.
    ValueError
        If the `feature_transform` is another one, a label cannot be written as JSON, or the maps take more than the
        2 GiB that an ONNX file may hold.
    OSError
        If the file cannot be written.

    See Also
    --------
    fairsteer.persistence.save : Keeps the whole transformer.

    Notes
    -----
    Rows of the reference group, and all rows that do not move, come out bit for bit. No code passes for another one:

    * a code of ``n_groups`` or more gives a row of NaN;
    * so does a negative one under ``unknown_group="error"``;
    * under ``"infer"`` and ``"infer_hard"`` a negative code stands for an unknown group, which the graph infers from
      the features like ``transform`` (in double precision; such graphs run where MatMul takes doubles);
    * under ``feature_transform="log"`` a row that holds a number that is not positive becomes NaN.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from fairsteer import FairSteeringTransformer
    >>> from fairsteer.export import export_onnx, read_onnx_codes
    >>> X = np.arange(16.0).reshape(8, 2) ** 1.5
    >>> steer = FairSteeringTransformer().fit(X, [0, 0, 1, 1] * 2, sensitive_features=["a", "b"] * 4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_onnx(steer, Path(folder) / "map.onnx")
    ...     read_onnx_codes(Path(folder) / "map.onnx")
    {'a': 0, 'b': 1}
    """
    onnx = _onnx()
    maps, coordinates = _group_maps(transformer)
    by_group = transformer._encoder is not None and not isinstance(transformer, LeaceTransformer)
    size = maps.A.size * np.dtype(np.float32).itemsize
    if size > _ONNX_LIMIT:
        msg = (
            f"The {len(maps.A)} maps of {maps.b.shape[1]} features take {size / 2**30:.1f} GiB, and an ONNX file may "
            "hold 2. export_affine writes one file for each group."
        )
        raise ValueError(msg)
    model = build_model(
        onnx,
        maps,
        by_group=by_group,
        logarithmic=coordinates.log,
        posterior=_posterior(transformer, coordinates) if by_group else None,
    )
    codes = _codes(transformer) if by_group else {}
    entry = model.metadata_props.add()
    entry.key = _KEY
    entry.value = json.dumps(
        {
            "codes": [[label_to_json(label), code] for label, code in codes.items()],
            "features": [str(name) for name in transformer.get_feature_names_out()],
        }
    )
    onnx.checker.check_model(model, full_check=True)
    _write(Path(path), model.SerializeToString())


def read_onnx_codes(path: _PathLike) -> dict[Any, int]:
    """Read which code stands for which group in a file that `export_onnx` wrote.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    dict
        Code of every group label; empty if the graph takes no groups. Groups that were merged share a code.

    Raises
    ------
    ImportError
        If onnx is not installed.
    ValueError
        If `export_onnx` did not write the file.
    OSError
        If the file cannot be read.
    """
    onnx = _onnx()
    content = Path(path).read_bytes()
    try:
        model = onnx.load_model_from_string(content)
        block = json.loads({entry.key: entry.value for entry in model.metadata_props}[_KEY])
        return {label_from_json(label): int(code) for label, code in block["codes"]}
    except Exception as error:  # protobuf's DecodeError is no ValueError
        msg = f"{path} is no ONNX file of fairsteer's: {error!r}."
        raise ValueError(msg) from error


def export_affine(transformer: GroupMapTransformer, folder: _PathLike) -> None:
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
    maps, coordinates = _group_maps(transformer)
    if coordinates.log:
        msg = (
            "feature_transform='log' makes the maps affine in the logarithms of the features only, which the A_/B_ "
            "form cannot say. export_onnx can."
        )
        raise ValueError(msg)
    labels: dict[int, list[Any]] = {}
    for label, code in _codes(transformer).items():
        labels.setdefault(code, []).append(label_to_json(label))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        msg = f"{target} is not empty; name a new folder for the {len(labels)} maps."
        raise FileExistsError(msg)
    for code in labels:
        position = min(code, len(maps.A) - 1)  # one map for all groups stands in all files
        arrays = {"A_": maps.A[position], "B_": maps.b[position]}
        _write(target / f"group-{code}.pkl", _array_pickle.dumps(arrays))
    files = {f"group-{code}.pkl": of_group for code, of_group in sorted(labels.items())}
    _write(target / _INDEX, json.dumps({"files": files}, indent=1).encode())


def read_affine(folder: _PathLike) -> dict[Any, tuple[_Doubles, _Doubles]]:
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
        files = {str(name): [label_from_json(label) for label in labels] for name, labels in listed.items()}
        if any(name != Path(name).name for name in files):
            raise ValueError("it names files of another folder")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        msg = f"{index} is damaged: {error}."
        raise ValueError(msg) from error
    return {g: read_affine_file(Path(folder) / name) for name, labels in files.items() for g in labels}


def read_affine_file(path: _PathLike) -> tuple[_Doubles, _Doubles]:
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


# ---- what is exported


def _group_maps(transformer: Any) -> tuple[AffineMaps, SimpleCoordinates]:
    """Fold strength and any scaler into the maps; beside them, the coordinates of the model."""
    if not isinstance(transformer, GroupMapTransformer):
        way_out = (
            " Export its steering_, which moves rows; the rule that classifies them is no map."
            if hasattr(transformer, "steering_")
            else ""
        )
        msg = f"{type(transformer).__name__} is no transformer that moves rows by affine maps of their groups.{way_out}"
        raise TypeError(msg)
    check_is_fitted(transformer, "moments_")
    maps = transformer._group_maps(transformer._strength())
    fitted = transformer.feature_transform_
    coordinates = SimpleCoordinates.of(fitted, maps.b.shape[1])
    if coordinates is None:
        msg = (
            f"feature_transform={fitted!r} is no affine map of the features, so the steering cannot be exported. "
            "None, 'log' and a StandardScaler, MinMaxScaler, MaxAbsScaler or RobustScaler without clipping can; "
            "or export the steering alone, fitted on transformed features, and run the transform beside it."
        )
        raise ValueError(msg)
    A, b = maps.A.copy(), maps.b - coordinates.shift
    coordinates.fold(A, b)
    # What does not move stays exactly the identity.
    A[~maps.moves], b[~maps.moves] = np.eye(maps.b.shape[1]), 0.0
    return AffineMaps(A, b, maps.moves), coordinates


def _posterior(transformer: GroupMapTransformer, coordinates: SimpleCoordinates) -> Posterior | None:
    if transformer.unknown_group == "error":
        return None
    model = transformer._fitted().model
    calibration = transformer.group_calibration_
    return Posterior(
        model=model,
        scale=coordinates.scale,
        shift=coordinates.shift,
        slope=1.0 if calibration is None else calibration.slope,
        offsets=np.zeros(model.n_groups) if calibration is None else calibration.offsets,
        hard=transformer.unknown_group == "infer_hard",
    )


def _codes(transformer: GroupMapTransformer) -> Mapping[Any, int]:
    """Code of every label that rows may have; those of merged groups share one."""
    labels = transformer.moments_.groups.tolist()
    return dict(zip(labels, transformer._group_of_label.tolist(), strict=True))


def _write(path: Path, content: bytes) -> None:
    """Write a file that is replaced only when the new one is complete."""
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _onnx() -> ModuleType:
    try:
        import onnx
    except ImportError as error:
        msg = 'This needs onnx: pip install "fairsteer[onnx]" brings it.'
        raise ImportError(msg) from error
    module: ModuleType = onnx
    return module
