"""Values of JSON that a stranger may have written, each taken under the type and the range that it must have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairsteer._utils.labels import check_labels, is_missing, label_from_json, labels_from_json


class Fields:
    """One object of a file's JSON.

    Parameters
    ----------
    block : dict
        What JSON holds.
    name : str
        Of the object, for messages.
    """

    def __init__(self, block: Any, name: str) -> None:
        if type(block) is not dict:
            msg = f"its {name} is no object"
            raise ValueError(msg)
        self._block, self._name = block, name

    def __contains__(self, name: str) -> bool:
        return self._take(name) is not None

    def fields(self, name: str) -> Fields:
        """Object within this one."""
        return Fields(self._take(name), name)

    def text(self, name: str, choices: Iterable[str]) -> Any:
        """Text that is one of several."""
        value = self._take(name)
        if type(value) is not str or value not in tuple(choices):
            raise self._wrong(name, value, f"one of {', '.join(choices)}")
        return value

    def flag(self, name: str) -> bool:
        value = self._take(name)
        if type(value) is not bool:
            raise self._wrong(name, value, "true or false")
        return value

    def integer(self, name: str, low: int = 0) -> int:
        value = self._take(name)
        if type(value) is not int or not low <= value < 2**63:
            raise self._wrong(name, value, f"an integer from {low} on")
        return value

    def number(self, name: str, low: float = -np.inf, high: float = np.inf) -> float:
        """Finite number within bounds."""
        value = self._take(name)
        if type(value) is not float or not np.isfinite(value) or not low <= value <= high:
            raise self._wrong(name, value, f"a number from {low:g} to {high:g}")
        return value

    def numbers(self, name: str, low: float) -> list[float]:
        """Finite numbers, each larger than `low`."""
        value = self._take(name)
        if type(value) is not list or not all(type(x) is float and low < x < np.inf for x in value):
            raise self._wrong(name, value, f"a list of numbers above {low:g}")
        return value

    def positions(self, name: str, n: int, *, distinct: bool = True) -> list[int]:
        """Positions below `n`."""
        value = self._take(name)
        if type(value) is not list or not all(type(x) is int and 0 <= x < n for x in value):
            raise self._wrong(name, value, f"a list of positions below {n}")
        if distinct and len(set(value)) != len(value):
            raise self._wrong(name, value, "a list of distinct positions")
        return value

    def names(self, name: str, n: int) -> list[str] | None:
        """As many texts, or None."""
        value = self._take(name)
        if value is not None and (type(value) is not list or not all(type(x) is str for x in value) or len(value) != n):
            raise self._wrong(name, value, f"a list of {n} names")
        return value

    def texts(self, name: str) -> list[str]:
        value = self._take(name)
        if type(value) is not list or not all(type(x) is str for x in value):
            raise self._wrong(name, value, "a list of texts")
        return value

    def label(self, name: str) -> Any:
        return label_from_json(self._take(name))

    def labels(self, name: str) -> NDArray[Any]:
        """Distinct labels, at least one, none of them missing."""
        labels = check_labels(labels_from_json(self._take(name)), name)
        if any(map(is_missing, labels.tolist())):
            msg = f"one of its {name} is missing"
            raise ValueError(msg)
        return labels

    def params(self, name: str) -> dict[str, Any]:
        """Parameters of an estimator, whose own rules say what they may be."""
        block = self._take(name)
        if type(block) is not dict:
            raise self._wrong(name, block, "an object")
        params = {param: label_from_json(value) for param, value in block.items()}
        if any(isinstance(value, int) and abs(value) >= 2**63 for value in params.values()):
            msg = f"one of its {name} is an integer beyond 64 bits"
            raise ValueError(msg)
        return params

    def _take(self, name: str) -> Any:
        if name not in self._block:
            msg = f"its {self._name} has no {name}"
            raise ValueError(msg)
        return self._block[name]

    def _wrong(self, name: str, value: Any, expected: str) -> ValueError:
        # The value itself might take pages.
        found = repr(value) if isinstance(value, (bool, float, type(None))) else f"of type {type(value).__name__}"
        return ValueError(f"{name} of its {self._name} is {found}, not {expected}")
