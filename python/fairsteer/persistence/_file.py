"""The container: safetensors and a JSON header, with a version and a checksum.

Reading and writing it is the library's. What is our own is what it has no notion of: one header for all, a checksum
against accidents, and arrays that are taken only under the shape and type that the header's labels ask for, so that
nothing is allocated on a header's word.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairsteer._utils.types import PathLike

if TYPE_CHECKING:
    from types import ModuleType

#: Version of the file format; a file of another version is refused.
FORMAT_VERSION = 3

# One entry of metadata, checksum and JSON: safetensors would write several in an order that changes from run to run.
KEY = "fairsteer"

# What a message repeats of a file's contents.
_MOST_CHARACTERS = 200


class Tensors:
    """The arrays of a file, each taken under the dtype and shape it must have."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = arrays

    def take(
        self, name: str, shape: tuple[int | None, ...], dtypes: Sequence[str] = ("float64",), *, nan: bool = False
    ) -> NDArray[Any]:
        """Return a copy of an array; raise ValueError if it is absent or not what it must be."""
        array = self._arrays.get(name)
        if array is None:
            msg = f"the array {name} is absent"
            raise ValueError(msg)
        fits = len(shape) == array.ndim and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
        if not fits or array.dtype.name not in dtypes:
            msg = f"the array {name} has shape {array.shape} and dtype {array.dtype}, not {shape} and {dtypes[0]}"
            raise ValueError(msg)
        if not (np.isfinite(array) | (nan & np.isnan(array))).all():
            msg = f"the array {name} is not finite"
            raise ValueError(msg)
        return np.array(array)


def write_header(header: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Bytes of a file."""
    safetensors = import_safetensors()
    try:
        text = json.dumps(header)
    except (TypeError, ValueError) as error:
        msg = f"extra must hold values that json can write: {error}."
        raise ValueError(msg) from error
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    content: bytes = safetensors.numpy.save(arrays, metadata={KEY: checksum(text, arrays) + text})
    return content


def read_container(path: PathLike) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and arrays of a file, their integrity checked."""
    safetensors = import_safetensors()
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in (file.keys() if KEY in metadata else ())}
    except FileNotFoundError:
        raise
    except OSError as error:
        msg = f"{path} is no file that can be read: {error}."
        raise OSError(msg) from error
    except Exception as error:  # safetensors raises an exception class of its own, TypeError for unknown dtypes, …
        raise damaged_file(path, ValueError("it is no safetensors file, or cut short")) from error
    if KEY not in metadata:
        raise damaged_file(path, ValueError("it is a safetensors file of something else"))
    stored, text = metadata[KEY][:8], metadata[KEY][8:]
    try:
        header = json.loads(text)
        version = header["format_version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged_file(path, ValueError("its header cannot be read")) from error
    if type(version) is not int or version != FORMAT_VERSION:
        found = f"format version {version!r}" if type(version) in (int, float) else "no format version"
        msg = (
            f"{path} has {found[:_MOST_CHARACTERS]}, and this fairsteer reads version {FORMAT_VERSION}; use the "
            "fairsteer that wrote it, or save it anew."
        )
        raise ValueError(msg)
    if stored != checksum(text, tensors):
        raise damaged_file(path, ValueError("its checksum does not agree"))
    return header, tensors


def checksum(text: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    """CRC-32 of the header's text and of all arrays, against accidents (not against forgery)."""
    value = zlib.crc32(text.encode())
    for name in sorted(tensors):
        value = zlib.crc32(np.ascontiguousarray(tensors[name]).data, zlib.crc32(name.encode(), value))
    return f"{value:08x}"


def import_safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        msg = "Saving and loading need safetensors: pip install safetensors brings it (so does fairsteer[cli])."
        raise ImportError(msg) from error
    return safetensors


def damaged_file(path: PathLike, error: Exception) -> ValueError:
    reason = str(error).rstrip(".")
    if len(reason) > _MOST_CHARACTERS:
        reason = f"{reason[:_MOST_CHARACTERS]}…"
    return ValueError(f"{path} is damaged or no saved map of fairsteer: {reason}.")
