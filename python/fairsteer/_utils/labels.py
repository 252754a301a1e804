"""Labels of classes and groups: distinct, in order, with their types, also as JSON.

One rule holds for labels wherever they are met, at ``fit``, at ``predict``, in metrics and in files: they are compared
by value, as Python does, and never turned into text. So ``1``, ``1.0`` and ``True`` are one label and ``"1"`` is
another; labels of two kinds (numbers, text, bytes, tuples, …) are never equal, and messages name the kinds. ``None``,
``NaN``, ``pd.NA``, ``NaT`` and masked values are no labels but missing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from itertools import islice
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairsteer._utils.types import Codes

# Types of NumPy that a file may name, and the plain types that their values have. The width of text is not among what
# is believed: it would be allocated.
_DTYPES = re.compile(r"[<>|=][biuf][1248]|[<>]U\d{1,9}")
_WHOLE = {"text": np.dtype(np.str_), "object": np.dtype(object)}
_PLAIN = {"b": bool, "i": int, "u": int, "f": float, "U": str}


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
    if isinstance(label, np.generic) and _DTYPES.fullmatch(label.dtype.str):
        return {"numpy": label.dtype.str, "value": label_to_json(label.item())}
    if type(label) is float:
        return {"float": label.hex()}
    if type(label) in (bool, int, str):
        return {type(label).__name__: label}
    if type(label) is tuple and label:
        return {"tuple": [label_to_json(part) for part in label]}
    msg = (
        f"The label {label!r} of type {type(label).__name__} cannot be saved; integers, floats, text, booleans and "
        "tuples of these that are not empty can."
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
        case {"bool": bool(value)} | {"str": str(value)}:
            return value
        case {"int": int(value)} if type(value) is int:
            return value
        case {"float": str(value)}:
            return float.fromhex(value)
        case {"tuple": [_, *_] as parts}:
            return tuple(label_from_json(part) for part in parts)
        case {"numpy": str(dtype), "value": value} if _DTYPES.fullmatch(dtype):
            kind = np.str_ if "U" in dtype else np.dtype(dtype).type  # the width is the text's own
            plain = label_from_json(value)
            if type(plain) is _PLAIN[np.dtype(kind).kind]:
                return kind(plain)
    raise ValueError("what should be a label is none")


def labels_to_json(labels: NDArray[Any]) -> dict[str, Any]:
    """Labels and the dtype of their array."""
    dtype = _stored_dtype(labels.dtype)
    if dtype is None:
        msg = f"Labels of dtype {labels.dtype} cannot be saved; integers, floats, text and booleans can."
        raise ValueError(msg)
    return {"dtype": dtype, "labels": [label_to_json(label) for label in labels.tolist()]}


def labels_from_json(block: Any) -> NDArray[Any]:
    match block:
        case {"dtype": str(dtype), "labels": list(tagged)} if dtype in _WHOLE or _DTYPES.fullmatch(dtype):
            labels = [label_from_json(label) for label in tagged]
        case _:
            raise ValueError("what should be labels is none")
    kind = _WHOLE.get(dtype) or np.dtype(dtype)
    if kind.kind != "O" and any(type(label) is not _PLAIN[kind.kind] for label in labels):
        msg = f"labels of type {dtype[:10]} are of another"
        raise ValueError(msg)
    if kind.kind == "U":
        return np.array(labels, dtype=np.str_)
    array = np.empty(len(labels), dtype=kind)
    array[:] = labels
    return array


def _stored_dtype(dtype: np.dtype[Any]) -> str | None:
    if dtype.kind in "UO":
        return {"U": "text", "O": "object"}[dtype.kind]  # how wide text is says the text
    return dtype.str if _DTYPES.fullmatch(dtype.str) else None


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


def distinct_labels(labels: NDArray[Any]) -> tuple[list[Any], Codes]:
    """Distinct labels of a one-dimensional array without missing ones, and the position of each row's among them."""
    if labels.dtype.kind != "O":
        found, codes = np.unique(labels, return_inverse=True)
        return found.tolist(), codes
    rows = labels.tolist()
    positions = {label: i for i, label in enumerate(dict.fromkeys(rows))}
    return list(positions), np.fromiter(map(positions.__getitem__, rows), dtype=np.intp, count=len(rows))


def encoded_labels(column: Any) -> tuple[Codes, Any]:
    """Distinct values of a pyarrow column, and the position of every row's among them.

    Parameters
    ----------
    column : pyarrow.Array or pyarrow.ChunkedArray
        Labels. The parts of a column of dictionaries may have different ones.

    Returns
    -------
    positions : ndarray of shape (n_rows,)
        Positions; -1 where a label is null.
    values : pyarrow.Array
        Values, of which some may not occur, be null or, in a dictionary that came so, equal others.
    """
    from pyarrow import ArrowInvalid

    encoded = column.dictionary_encode()
    if hasattr(encoded, "unify_dictionaries"):
        try:
            encoded = encoded.unify_dictionaries()
        except ArrowInvalid:  # some dictionary holds a null, or all together more values than its indices can count
            encoded = encoded.cast(encoded.type.value_type).dictionary_encode().unify_dictionaries()
        encoded = encoded.combine_chunks()
    positions = encoded.indices.cast("int64").fill_null(-1)  # which those without a sign cannot be
    return positions.to_numpy(zero_copy_only=False), encoded.dictionary


def kind_of(label: Any) -> str:
    """Kind of a label; labels of two kinds are never equal. A boolean is the number 0 or 1."""
    if isinstance(label, (Number, np.number, np.bool_)):
        return "number"
    return next((kind.__name__ for kind in (str, bytes, tuple) if isinstance(label, kind)), type(label).__qualname__)


def described(labels: list[Any], most: int = 5) -> str:
    """Labels by type, for messages: ``integers 0, 1 and the strings 'a'``."""
    names = {bool: "booleans", int: "integers", float: "floats", str: "strings", bytes: "bytes", tuple: "tuples"}
    by_type: dict[str, list[Any]] = {}
    for label in labels:
        by_type.setdefault(names.get(type(label), f"{type(label).__name__} values"), []).append(label)
    parts = []
    for name, some in by_type.items():
        rest = f" and {len(some) - most} more" if len(some) > most else ""
        parts.append(f"{name} {', '.join(map(repr, islice(some, most)))}{rest}")
    return " and the ".join(parts)


def sorted_labels(labels: Iterable[Any]) -> list[Any]:
    """Labels in their order; of several types, in one that does not depend on the order of the rows."""
    labels = list(labels)
    try:
        return sorted(labels)
    except TypeError:
        return sorted(labels, key=lambda label: (type(label).__name__, repr(label)))


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
    times: dict[Any, int] = {}
    for label in array.tolist():
        times[label] = times.get(label, 0) + 1
    if len(times) != len(array):
        twice, n = max(times.items(), key=lambda item: item[1])
        msg = f"{name} must be distinct, but the label {twice!r} occurs {n} times."
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


def label_text(label: Any) -> str:
    """Text of a label for people: one line without control characters, never empty.

    The parts of an intersection are joined by commas. What does not print, and would move a terminal's cursor or turn
    the reading direction around, is escaped; text that ends in blanks is quoted.
    """
    if isinstance(label, tuple):
        return ", ".join(map(label_text, label))
    text = str(label)
    if text != text.strip() or not text:
        text = repr(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
