"""Pickles of arrays, read as data: the opcodes are interpreted here, and nothing that a file names is called.

`pickle.load` imports and calls whatever a file asks for. The few opcodes that a dictionary of arrays is made of need no
such thing, and any other opcode or name ends the reading.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

_RECONSTRUCT = ("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct")


# Opcodes that put their argument on the stack.
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}


class _Name(str):
    """A global name, which stays a name."""


@dataclass
class _DType:
    """A floating-point type; BUILD brings its byte order."""

    code: str
    order: str = "|"


@dataclass
class _Array:
    """What numpy's `_reconstruct` would return; BUILD brings shape, type and numbers."""

    array: NDArray[np.floating[Any]] | None = None


def dumps(arrays: Mapping[str, NDArray[np.floating[Any]]]) -> bytes:
    """Pickle a dictionary of arrays.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Arrays of floating-point numbers.

    Returns
    -------
    bytes
        A pickle of protocol 4.
    """
    return pickle.dumps({name: np.ascontiguousarray(array) for name, array in arrays.items()}, protocol=4)


def loads(content: bytes) -> dict[str, NDArray[np.floating[Any]]]:
    """Read a pickled dictionary of arrays without running anything.

    Parameters
    ----------
    content : bytes
        A pickle of protocol 3 or 4.

    Returns
    -------
    dict of str to ndarray
        The arrays, bit for bit, in the machine's byte order.

    Raises
    ------
    ValueError
        If it is no pickle, or is made of anything else but a dictionary of arrays of floating-point numbers.
    """
    try:
        value = _interpret(content)
    except (IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        msg = f"it is damaged ({error})"
        raise ValueError(msg) from error
    if not isinstance(value, dict) or not all(isinstance(entry, _Array) for entry in value.values()):
        msg = "it holds something else than a dictionary of arrays"
        raise ValueError(msg)
    if any(entry.array is None for entry in value.values()):
        msg = "it is damaged (an array has no numbers)"
        raise ValueError(msg)
    return {name: entry.array for name, entry in value.items()}


def _interpret(content: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def take(n: int | None = None) -> list[Any]:
        """Remove the last `n` values from the stack, or those since the last mark."""
        start = marks.pop() if n is None else len(stack) - n
        if start < (marks[-1] if marks else 0):
            raise IndexError("values are missing")
        taken = stack[start:]
        del stack[start:]
        return taken

    opcode: Any
    argument: Any
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name in _VALUES:
            stack.append(argument)
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "NONE":
            stack.append(None)
        elif name in ("NEWTRUE", "NEWFALSE"):
            stack.append(name == "NEWTRUE")
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            n = None if name == "TUPLE" else 0 if name == "EMPTY_TUPLE" else int(name[-1])
            stack.append(tuple(take(n)))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("SETITEM", "SETITEMS"):
            items = take(2 if name == "SETITEM" else None)
            _set_items(stack[-1], items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            module, attribute = argument.split(" ") if name == "GLOBAL" else take(2)
            stack.append(_known(f"{module}.{attribute}"))
        elif name == "REDUCE":
            stack.append(_reduce(*take(2)))
        elif name == "BUILD":
            (state,) = take(1)
            _build(stack[-1], state)
        elif name == "STOP":
            (value,) = stack
            return value
        else:
            _refuse(f"the opcode {name}")
    raise IndexError("it has no end")


def _known(path: str) -> _Name:
    if path not in (*_RECONSTRUCT, "numpy.ndarray", "numpy.dtype"):
        _refuse(path)
    return _Name(path)


def _reduce(function: Any, arguments: Any) -> _Array | _DType:
    """Stand in for the two calls that an array needs."""
    if type(function) is _Name and function in _RECONSTRUCT and arguments == ("numpy.ndarray", (0,), b"b"):
        return _Array()
    if type(function) is _Name and function == "numpy.dtype" and arguments[1:] == (False, True):
        if not re.fullmatch("f[248]", arguments[0]):
            _refuse(f"numbers of type {arguments[0]!r}")
        return _DType(arguments[0])
    return _refuse(f"a call of {function!r}")


def _build(target: Any, state: Any) -> None:
    if isinstance(target, _DType):
        if state[0] != 3 or state[1] not in ("<", ">") or state[2:5] != (None, None, None):
            _refuse(f"a type with the description {state!r}")
        target.order = state[1]
        return
    if not isinstance(target, _Array):
        _refuse(f"a state for {target!r}")
    version, shape, kind, fortran, numbers = state
    if version != 1 or not isinstance(kind, _DType) or type(numbers) is not bytes:
        _refuse("an array of objects")
    dtype = np.dtype(kind.order.replace("|", "=") + kind.code)
    if len(numbers) != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
        msg = f"it is damaged (an array of shape {shape} comes with {len(numbers)} bytes)"
        raise ValueError(msg)
    flat = np.frombuffer(numbers, dtype).astype(dtype.newbyteorder("="))
    target.array = flat.reshape(shape, order="F" if fortran else "C")


def _set_items(target: Any, items: list[Any]) -> None:
    keys = items[::2]
    if type(target) is not dict or not all(type(key) is str for key in keys):
        _refuse("a dictionary without names")
    target.update(zip(keys, items[1::2], strict=True))


def _refuse(what: str) -> NoReturn:
    msg = f"it asks for {what}, and all that is read here are arrays of numbers; nothing was run"
    raise ValueError(msg)
