"""Labels of classes and groups: distinct, in order, with their types, also as JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairsteer._utils.types import Codes


def label_to_json(label: Any) -> Any:
    """Tag a label with its type.

    Parameters
    ----------
    label : int, float, str, bool, None, NumPy scalar of these, or tuple
        A label.

    Returns
    -------
    dict or None
        What `json` can write and `label_from_json` reads; None for None.

    Raises
    ------
    ValueError
        If the label has another type.
    """
    if label is None:
        return None
    if isinstance(label, np.generic) and label.dtype.kind in "biufU":
        return {"numpy": label.dtype.str, "value": label_to_json(label.item())}
    if type(label) is float:
        return {"float": label.hex()}
    if type(label) in (bool, int, str):
        return {type(label).__name__: label}
    if type(label) is tuple:
        return {"tuple": [label_to_json(part) for part in label]}
    msg = (
        f"The label {label!r} of type {type(label).__name__} cannot be saved; integers, floats, text, booleans and "
        "tuples of these can."
    )
    raise ValueError(msg)


def label_from_json(tagged: Any) -> Any:
    """Read what `label_to_json` wrote.

    Parameters
    ----------
    tagged : dict or None
        A tagged label.

    Returns
    -------
    label
        Equal to the one that was tagged, and of its type.

    Raises
    ------
    ValueError
        If it is no tagged label.
    """
    match tagged:
        case None:
            return None
        case {"bool": bool(value)} | {"int": int(value)} | {"str": str(value)}:
            return value
        case {"float": str(value)}:
            return float.fromhex(value)
        case {"tuple": list(parts)}:
            return tuple(label_from_json(part) for part in parts)
        case {"numpy": str(dtype), "value": value} if np.dtype(dtype).kind in "biufU":
            return np.dtype(dtype).type(label_from_json(value))
    msg = f"{tagged!r} is no label"
    raise ValueError(msg)


def labels_to_json(labels: NDArray[Any]) -> dict[str, Any]:
    """Labels and the dtype of their array."""
    if labels.dtype.kind not in "biufUO":
        msg = f"Labels of dtype {labels.dtype} cannot be saved; integers, floats, text and booleans can."
        raise ValueError(msg)
    dtype = "object" if labels.dtype.kind == "O" else labels.dtype.str
    return {"dtype": dtype, "labels": [label_to_json(label) for label in labels.tolist()]}


def labels_from_json(block: Mapping[str, Any]) -> NDArray[Any]:
    labels = [label_from_json(label) for label in block["labels"]]
    dtype = np.dtype(block["dtype"])
    if dtype.kind not in "biufUO":
        msg = f"labels have dtype {dtype}"
        raise ValueError(msg)
    array = np.empty(len(labels), dtype=dtype)
    array[:] = labels
    return array


def is_missing(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, (str, list, tuple, np.ndarray)):
        return False
    try:
        return bool(value != value)  # NaN and NaT are the values that do not equal themselves
    except TypeError:
        return True  # pd.NA, whose comparison with anything is neither true nor false


def count_missing(labels: Any) -> int:
    """Count the missing values (``None``, ``NaN``, ``pd.NA``, ``NaT``, masked) of a one-dimensional array."""
    masked = int(np.ma.getmaskarray(labels).sum()) if np.ma.isMaskedArray(labels) else 0
    if masked:
        return masked + count_missing(labels.compressed())
    if labels.dtype.kind in "fc":
        return int(np.isnan(labels).sum())
    if labels.dtype.kind in "mM":
        return int(np.isnat(labels).sum())
    return sum(map(is_missing, labels.tolist())) if labels.dtype.kind == "O" else 0


def label_array(labels: Iterable[Any]) -> NDArray[Any]:
    """Labels as a one-dimensional array that keeps their types: an object array unless all are of one type."""
    listed = list(labels)
    if len({type(label) for label in listed}) == 1 and isinstance(listed[0], (bool, int, float, str, np.generic)):
        return np.asarray(listed)
    array = np.empty(len(listed), dtype=object)
    array[:] = listed
    return array


def check_labels(labels: Iterable[Any], name: str) -> NDArray[Any]:
    """Check labels: at least one, all distinct."""
    array = labels if isinstance(labels, np.ndarray) and labels.ndim == 1 else label_array(labels)
    if len(array) == 0:
        msg = f"{name} must hold at least one label."
        raise ValueError(msg)
    if len(set(array.tolist())) != len(array):
        msg = f"{name} must be distinct, but some label occurs twice: {array.tolist()}."
        raise ValueError(msg)
    return array


def union_of_labels(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Distinct labels of both, sorted if they can be, else in order of appearance."""
    labels = list(dict.fromkeys([*first.tolist(), *second.tolist()]))
    # Labels of different types have no order.
    with contextlib.suppress(TypeError):
        labels.sort()
    return label_array(labels)


def positions_within(labels: NDArray[Any], within: NDArray[Any]) -> Codes:
    index = {label: i for i, label in enumerate(within.tolist())}
    return np.array([index[label] for label in labels.tolist()], dtype=np.int64)
