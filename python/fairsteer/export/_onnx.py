"""Fitted maps in the forms that other programs run: ONNX graphs, and the affine maps of steering servers.

Neither form keeps what the transformer was fitted from; :mod:`fairsteer.persistence` does. Reading either back runs no
code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from fairsteer._utils.estimators import asked_method
from fairsteer._utils.files import write_file
from fairsteer._utils.labels import label_from_json, label_to_json
from fairsteer._utils.types import PathLike
from fairsteer.classifier import IdealDistributionClassifier
from fairsteer.export._maps import group_codes, group_steps
from fairsteer.export._onnx_graph import Posterior, build_model
from fairsteer.export._onnx_scores import build_score_model
from fairsteer.score_alignment import Alignment, ScoreAligner
from fairsteer.transformer._base import GroupMapTransformer
from fairsteer.transformer._coordinates import SimpleCoordinates

if TYPE_CHECKING:
    from types import ModuleType

#: What has a graph.
Exportable = GroupMapTransformer | ScoreAligner | Alignment | IdealDistributionClassifier

#: Entry of a file's metadata.
_KEY = "fairsteer"


#: What one protobuf message may hold, which an ONNX file is.
_ONNX_LIMIT = 2**31 - 1


def export_onnx(transformer: Exportable, path: PathLike) -> None:
    """Write a fitted transformer or score alignment as an ONNX graph.

    The graph has standard operators of opset 18 only. That of a *transformer* does what ``transform`` does: its inputs
    are ``X`` (n, d), float32, the features without
    sensitive columns, and ``group`` (n,), int64, positions in ``groups_`` (`read_onnx_codes` reads which label has
    which); its output is ``Y`` (n, d), float32. There is no input ``group`` where one map moves all rows:
    :class:`~fairsteer.baselines.LeaceTransformer`, and a transformer fitted without groups.

    That of a *score alignment* does what ``predict_proba`` does with the scores of the classifier, which is exported by
    whoever made it: its inputs are ``score``, the classifier's probabilities (n, n_classes), or (n,) what its
    ``decision_function`` says if it has no ``predict_proba``, and ``group`` (n,); its output is ``probability``
    (n, n_classes). All but the groups is float64.

    Parameters
    ----------
    transformer : transformer, ScoreAligner, its ``alignment_``, or IdealDistributionClassifier
        Fitted. Of a :class:`~fairsteer.FairSteeringTransformer` or a transformer of :mod:`fairsteer.baselines` the
        present strength is written, and a `feature_transform` that is a standard, min-max, max-abs or robust scaler is
        folded into the maps; ``"log"`` becomes operators. Of a :class:`~fairsteer.ScoreAligner`, or a classifier with a
        `score_alignment`, the maps of its scores.
    path : path-like
        File to create or replace, usually ``*.onnx``.

    Raises
    ------
    ImportError
        If onnx is not installed.
    TypeError
        If the estimator is no such one.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If the `feature_transform` is another one, there is one class and nothing to align, a label cannot be written
        as JSON, or the maps take more than the 2 GiB that an ONNX file may hold.
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
      not finite or, under ``feature_transform="log"``, not positive; so does a row of scores that are not finite;
    * an alignment gives NaN for a negative code, or the average of what the groups would get under a ScoreAligner's
      ``unknown_group="average"``.

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
    if isinstance(transformer, (ScoreAligner, Alignment)) or getattr(transformer, "_alignment", None) is not None:
        model, codes, description = _score_model(onnx, transformer)
    else:
        model, codes, description = _row_model(onnx, transformer)
    entry = model.metadata_props.add()
    entry.key = _KEY
    entry.value = json.dumps({"codes": [[label_to_json(label), code] for label, code in codes.items()], **description})
    onnx.checker.check_model(model, full_check=True)
    write_file(Path(path), model.SerializeToString())


def _row_model(onnx: ModuleType, transformer: Any) -> tuple[Any, Mapping[Any, int], dict[str, Any]]:
    """Graph of a transformer, codes of its groups, and what else is to be known."""
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
    return model, codes, {"features": [str(name) for name in transformer.get_feature_names_out()]}


def _score_model(onnx: ModuleType, estimator: Any) -> tuple[Any, Mapping[Any, int], dict[str, Any]]:
    """Graph of a score alignment, codes of its groups, and what else is to be known."""
    average = None
    if isinstance(estimator, IdealDistributionClassifier):
        classes, maps, codes = estimator.classes_, estimator._alignment, dict(group_codes(estimator.steering_))
        steered = estimator.estimator_
        asked = "predict_proba" if steered is None else asked_method(steered)
    else:
        alignment = estimator
        if isinstance(estimator, ScoreAligner):
            check_is_fitted(estimator, "alignment_")
            alignment = estimator.alignment_
            average = alignment.shares if estimator.unknown_group == "average" else None
        classes, maps, asked = alignment.classes, alignment.maps, alignment.response_method
        codes = {label: code for code, label in enumerate(alignment.groups.tolist())}
    if maps is None:
        msg = f"{type(estimator).__name__} knows one class, {classes.tolist()[0]!r}: there are no scores."
        raise ValueError(msg)
    model = build_score_model(
        onnx,
        maps,
        n_classes=len(classes),
        by_proba=asked == "predict_proba",
        average=average,
        n_groups=len(set(codes.values())),
    )
    return model, codes, {"classes": [label_to_json(label) for label in classes.tolist()], "score": asked}


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
