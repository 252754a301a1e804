"""Pickles of arrays, read by the standard library's `pickle.Unpickler` without its powers.

`pickle.load` imports and calls whatever a file asks for. Here every name that a file may ask for stands for a recorder
that checks its arguments, any other name ends the reading, and the opcodes are looked at beforehand: how many there
are, that they are those of plain values, and that no number among them makes the unpickler allocate.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

#: A dictionary of two arrays takes about 60.
_MAX_OPCODES = 1000

_MAX_DIMENSIONS = 2

#: Opcodes of plain values. None of them takes a value off the stack but to put it into another: the opcodes that do
#: (DUP, POP) are never written, and serve to hide what a name in the memo stands for.
_PLAIN = {
    *("PROTO", "FRAME", "STOP", "MARK", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
}
_TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}


class _RefusedError(ValueError):
    """Something is asked for that arrays do not need."""


class _DType:
    """A floating-point type; its state brings the byte order."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        if type(state) is not tuple or state[:1] != (3,) or state[1:2] not in (("<",), (">",)):
            _refuse("a type of unknown description")
        if state[2:5] != (None, None, None):
            _refuse("a type made of other types")
        self.order = state[1]


class _Array:
    """What becomes an array once all is read: its numbers are still those bytes of the file."""

    numbers: bytes | bytearray | None = None
    dtype: _DType
    shape: tuple[int, ...]
    order: str

    def __setstate__(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5 or state[0] != 1 or type(state[3]) is not bool:
            _refuse("an array of unknown description")
        _, shape, dtype, fortran, numbers = state
        self._set(numbers, dtype, shape, "F" if fortran else "C")

    def _set(self, numbers: Any, dtype: Any, shape: Any, order: Any) -> None:
        if type(dtype) is not _DType or type(numbers) not in (bytes, bytearray):
            _refuse("an array of objects")
        if type(shape) is not tuple or len(shape) > _MAX_DIMENSIONS or not all(type(n) is int for n in shape):
            _refuse("an array of unknown shape")
        if order not in ("C", "F"):
            _refuse("an array of unknown layout")
        self.numbers, self.dtype, self.shape, self.order = numbers, dtype, shape, order

    def made(self) -> NDArray[np.floating[Any]]:
        """Make the array, in the machine's byte order."""
        if self.numbers is None:
            raise ValueError("it is damaged (an array has no numbers)")
        dtype = np.dtype(self.dtype.order + self.dtype.code)
        size = 1
        for n in self.shape:
            size *= n if 0 <= n <= len(self.numbers) else -1
        if size < 0 or len(self.numbers) != size * dtype.itemsize:
            msg = f"it is damaged (an array of another shape comes with {len(self.numbers)} bytes)"
            raise ValueError(msg)
        flat = np.frombuffer(self.numbers, dtype).astype(dtype.newbyteorder("="))
        return flat.reshape(self.shape, order="F" if self.order == "F" else "C")


class _Name:
    """A name that a file may ask for: it is called as a file would, and has no state to be changed."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return _refuse("a call of numpy.ndarray") if self._call is None else self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        _refuse("a state for a function")


def _reconstruct(*arguments: Any) -> _Array:
    if arguments != (_NDARRAY, (0,), b"b"):
        _refuse("an array of unknown kind")
    return _Array()


def _frombuffer(*arguments: Any) -> _Array:
    array = _Array()
    if len(arguments) != 4:
        _refuse("an array of unknown description")
    array._set(*arguments)
    return array


def _dtype(*arguments: Any) -> _DType:
    if arguments[1:] != (False, True) or type(arguments[0]) is not str or not re.fullmatch("f[248]", arguments[0]):
        _refuse("numbers that are no floating-point ones")
    return _DType(arguments[0])


_NDARRAY = _Name()
_NAMES = {"numpy.ndarray": _NDARRAY, "numpy.dtype": _Name(_dtype)}
for _package in ("numpy._core", "numpy.core"):  # the first since NumPy 2
    _NAMES[f"{_package}.multiarray._reconstruct"] = _Name(_reconstruct)
    _NAMES[f"{_package}.numeric._frombuffer"] = _Name(_frombuffer)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _NAMES.get(f"{module}.{name}")
        return known if known is not None else _refuse(f"{module}.{name}"[:80])

    def persistent_load(self, pid: Any) -> NoReturn:
        _refuse("an object outside the file")


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
        A pickle of protocol 3, 4 or 5.

    Returns
    -------
    dict of str to ndarray
        The arrays, bit for bit, in the machine's byte order. They take no more memory than `content`.

    Raises
    ------
    ValueError
        If it is no pickle, or is made of anything else but a dictionary of arrays of floating-point numbers with one or
        two dimensions.
    """
    try:
        _check_opcodes(content)
        value = _Unpickler(io.BytesIO(content)).load()
    except _RefusedError:
        raise
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError) as error:
        msg = f"it is damaged ({str(error)[:100]})"  # some of them repeat what they did not understand
        raise ValueError(msg) from error
    except (ArithmeticError, MemoryError, RecursionError) as error:
        raise ValueError("it is damaged") from error
    if type(value) is not dict or not all(type(k) is str and type(v) is _Array for k, v in value.items()):
        raise ValueError("it holds something else than a dictionary of arrays")
    if sum(len(array.numbers or b"") for array in value.values()) > len(content):
        raise ValueError("it makes several arrays of the same bytes")
    return {name: array.made() for name, array in value.items()}


def _check_opcodes(content: bytes) -> None:
    """Raise ValueError for opcodes that arrays do not need, and for more of them than arrays need."""
    memo: dict[int, str] = {}
    last = ""
    argument: Any
    for n, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        name = opcode.name
        if name not in _PLAIN:
            _refuse(f"the opcode {name}")
        if n == _MAX_OPCODES:
            _refuse(f"more than {_MAX_OPCODES} opcodes")
        if name in _PUTS:
            position = len(memo) if name == "MEMOIZE" else argument
            if not 0 <= position <= _MAX_OPCODES:  # the unpickler makes room for as many
                _refuse("a place far away in its memory")
            memo[position] = last
        elif name in _GETS:
            # Tuples of tuples that are used twice, and so on, are hashed in exponential time.
            if memo.get(argument, "TUPLE") in _TUPLES:
                _refuse("one tuple in two places")
            last = memo[argument]
        else:
            last = name


def _refuse(what: str) -> NoReturn:
    msg = f"it asks for {what!r}, and all that is read here are arrays of numbers; nothing was run"
    raise _RefusedError(msg)
