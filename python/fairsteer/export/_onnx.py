"""Fitted maps in the forms that other programs run: ONNX graphs, and the affine maps of steering servers.

Neither form keeps what the transformer was fitted from; :mod:`fairsteer.persistence` does. Reading either back runs no
code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fairsteer._utils.files import write_file
from fairsteer._utils.labels import label_from_json, label_to_json
from fairsteer._utils.types import PathLike
from fairsteer.export._maps import group_codes, group_steps
from fairsteer.export._onnx_graph import Posterior, build_model
from fairsteer.transformer._base import GroupMapTransformer
from fairsteer.transformer._coordinates import SimpleCoordinates

if TYPE_CHECKING:
    from types import ModuleType

#: Entry of a file's metadata.
_KEY = "fairsteer"


#: What one protobuf message may hold, which an ONNX file is.
_ONNX_LIMIT = 2**31 - 1


def export_onnx(transformer: GroupMapTransformer, path: PathLike) -> None:
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
    Rows of the reference group, and all rows that do not move, come out bit for bit. Features are taken relative to
    their means before the product and move by its result, so that large means cost no digits. No code passes for
    another one:

    * a code of ``n_groups`` or more gives a row of NaN;
    * so does a negative one under ``unknown_group="error"``;
    * under ``"infer"`` and ``"infer_hard"`` a negative code stands for an unknown group, which the graph infers from
      the features like ``transform`` (in double precision; such graphs run where MatMul takes doubles);
    * a row that ``transform`` refuses becomes NaN, whatever its code and the strength: one that holds a number that is
      not finite or, under ``feature_transform="log"``, not positive.

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
    steps, coordinates = group_steps(transformer)
    by_group = transformer._encoder is not None and not transformer.one_map
    size = steps.displacement.size * np.dtype(np.float32).itemsize
    if size > _ONNX_LIMIT:
        msg = (
            f"The {len(steps.offset)} maps of {steps.offset.shape[1]} features take {size / 2**30:.1f} GiB, and an "
            "ONNX file may hold 2. export_affine writes one file for each group."
        )
        raise ValueError(msg)
    model = build_model(
        onnx,
        steps,
        by_group=by_group,
        logarithmic=coordinates.log,
        posterior=_posterior(transformer, coordinates) if by_group else None,
    )
    codes = group_codes(transformer) if by_group else {}
    entry = model.metadata_props.add()
    entry.key = _KEY
    entry.value = json.dumps(
        {
            "codes": [[label_to_json(label), code] for label, code in codes.items()],
            "features": [str(name) for name in transformer.get_feature_names_out()],
        }
    )
    onnx.checker.check_model(model, full_check=True)
    write_file(Path(path), model.SerializeToString())


def read_onnx_codes(path: PathLike) -> dict[Any, int]:
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
        codes = {label_from_json(label): code for label, code in block["codes"]}
        if not all(type(code) is int and 0 <= code < len(codes) for code in codes.values()):
            raise ValueError("a code is none")
    except Exception as error:  # protobuf's DecodeError is no ValueError
        msg = f"{path} is no ONNX file of fairsteer's: {str(error)[:100] or type(error).__name__}."
        raise ValueError(msg) from error
    return codes


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


def _onnx() -> ModuleType:
    try:
        import onnx
    except ImportError as error:
        msg = 'This needs onnx: pip install "fairsteer[onnx]" brings it.'
        raise ImportError(msg) from error
    module: ModuleType = onnx
    return module
