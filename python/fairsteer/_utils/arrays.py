"""Arrays of other libraries than NumPy: where they lie, how they become NumPy's, and products as exact as theirs are.

They are torch's tensors and whatever follows the array API standard and exchanges memory by DLPack. Work on them goes
through the one namespace that `array_api_compat` makes of all these libraries.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

# DLPack's numbers of memory that the processor reads: its own, and what is pinned for a GPU.
_HOST = (1, 3)


def is_foreign(X: Any) -> bool:
    """Tell an array of another library than NumPy, in whatever memory."""
    if isinstance(X, (np.ndarray, np.generic)) or not (hasattr(X, "__dlpack__") and hasattr(X, "ndim")):
        return False
    return type(X).__module__.partition(".")[0] != "pyarrow"


def lies_elsewhere(X: Any) -> bool:
    """Tell an array whose numbers the processor cannot read where they are."""
    if not is_foreign(X):
        return False
    # Libraries without devices to speak of name some all the same, which DLPack cannot tell apart.
    named = str(getattr(X, "device", "cpu")).lower()
    return int(X.__dlpack_device__()[0]) not in _HOST or "cpu" not in named


def namespace(X: Any) -> Any:
    """Functions of the array API standard for an array.

    Raises
    ------
    ImportError
        If `array_api_compat` is not installed.
    TypeError
        If the library follows no such standard.
    """
    try:
        import array_api_compat
    except ImportError as error:
        home = type(X).__module__.partition(".")[0]
        msg = f"Arrays of {home} are read through the package array-api-compat: pip install array-api-compat."
        raise ImportError(msg) from error
    return array_api_compat.array_namespace(X)


def device_of(X: Any) -> Any:
    """Device that an array lies on."""
    import array_api_compat

    return array_api_compat.device(X)


def to_numpy(X: Any) -> Any:
    """Copy an array of another library to NumPy, or view it where that can be; leave anything else.

    Types that NumPy lacks (bfloat16) become float32.
    """
    if not is_foreign(X):
        return X
    X = X.detach() if hasattr(X, "detach") else X
    if "bfloat16" in str(X.dtype):
        xp = namespace(X)
        X = xp.astype(X, xp.float32)
    if lies_elsewhere(X):
        X = _brought(X)
    return np.asarray(X)


def _brought(X: Any) -> Any:
    import array_api_compat

    if array_api_compat.is_jax_array(X):
        return X  # which `numpy.asarray` copies
    try:
        return array_api_compat.to_device(X, "cpu")
    except ValueError:  # from a library that has a name of its own for it
        return array_api_compat.to_device(X, namespace(X).__array_namespace_info__().default_device())


def some_rows(X: Any, positions: Any) -> Any:
    """Take some rows of an array, where it lies."""
    positions = np.asarray(positions, dtype=np.intp)
    if not is_foreign(X):
        return X[positions]
    xp = namespace(X)
    return xp.take(X, xp.asarray(positions, device=device_of(X)), axis=0)


def like(array: NDArray[Any], X: Any) -> Any:
    """Bring a NumPy array to where `X` lies, in its library and type."""
    xp = namespace(X)
    return xp.asarray(array, dtype=X.dtype, device=device_of(X), copy=True)


def has_double(X: Any) -> bool:
    """Whether the device of an array computes in double precision."""
    info = namespace(X).__array_namespace_info__()
    return "float64" in info.dtypes(device=device_of(X), kind="real floating")


def check_floats(X: Any, name: str = "X") -> Any:
    """Rows of another library: two axes, real numbers, of which integers become double precision."""
    xp = namespace(X)
    if X.ndim != 2:
        msg = f"{name} must have two dimensions, rows and columns, got an array of shape {tuple(X.shape)}."
        raise ValueError(msg)
    if xp.isdtype(X.dtype, "complex floating"):
        msg = f"{name} must hold real numbers, not {X.dtype}."
        raise ValueError(msg)
    X = X.detach() if hasattr(X, "detach") else X
    return X if xp.isdtype(X.dtype, "real floating") else xp.astype(X, xp.float64)


def free_memory(X: Any) -> int | None:
    """Bytes that are free on the device of an array; None where nobody says."""
    import array_api_compat

    if array_api_compat.is_torch_array(X) and X.is_cuda:
        torch = sys.modules["torch"]  # of which it is
        reserved = torch.cuda.memory_reserved(X.device) - torch.cuda.memory_allocated(X.device)
        return int(torch.cuda.mem_get_info(X.device)[0]) + int(reserved)
    return None


@contextmanager
def exact_products(X: Any) -> Iterator[None]:
    """Let products of single precision be that: no TensorFloat-32, no automatic casts, no gradients, no warnings."""
    import array_api_compat

    with ExitStack() as stack:
        stack.enter_context(np.errstate(all="ignore"))  # of libraries that are NumPy inside
        if array_api_compat.is_torch_array(X):
            torch = sys.modules["torch"]  # of which it is
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.autocast(X.device.type, enabled=False))
            for settings in (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)):
                name = "fp32_precision" if hasattr(settings, "fp32_precision") else "allow_tf32"
                if hasattr(settings, name):
                    stack.callback(setattr, settings, name, getattr(settings, name))
                    setattr(settings, name, "ieee" if name == "fp32_precision" else False)
        elif array_api_compat.is_jax_array(X):
            stack.enter_context(sys.modules["jax"].default_matmul_precision("highest"))
        yield
