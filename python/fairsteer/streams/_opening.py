"""Which stream it is that an argument of ``fit`` or ``transform`` stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fairsteer._utils.arrays import lies_elsewhere
from fairsteer.streams._arrow import ArrowRows
from fairsteer.streams._batches import ArrayRows, BatchRows
from fairsteer.streams._dask import DaskRows
from fairsteer.streams._device import DeviceRows
from fairsteer.streams._stream import Stream

# A mapped array of fewer bytes is read as any other.
_SMALL = 2**24


def open_stream(
    X: Any,
    y: Any = None,
    sensitive_features: Any = None,
    sample_weight: Any = None,
    *,
    columns: Sequence[str] | None = None,
    mapped: bool = True,
) -> Stream | None:
    """Stream that `X` stands for; None if it is rows that are in memory.

    Parameters
    ----------
    X : Stream, dask collection, pyarrow dataset, array on a device, callable or array-like
        What may be a stream. A callable makes batches, see `BatchRows`.
    y, sensitive_features, sample_weight : optional
        Of a dataset the names of columns; of Dask collections others, or names of columns.
    columns : sequence of str, default=None
        Columns of a dataset or Dask DataFrame that are features; by default all that have no other role.
    mapped : bool, default=True
        Whether a large `numpy.memmap` is to be a stream.

    Returns
    -------
    Stream or None

    Raises
    ------
    ValueError
        If groups or classes are given beside a stream that has its own.
    """
    if isinstance(X, Stream) or (callable(X) and not hasattr(X, "__array__") and not hasattr(X, "shape")):
        others = {"y": y, "sensitive_features": sensitive_features, "sample_weight": sample_weight}
        if given := [name for name, value in others.items() if value is not None]:
            msg = f"{given[0]} is given beside a stream, whose batches bring their own; leave it out."
            raise ValueError(msg)
        return X if isinstance(X, Stream) else BatchRows(X)
    home = type(X).__module__.partition(".")[0]
    if home == "pyarrow" and hasattr(X, "scanner"):
        for name, value in (("y", y), ("sample_weight", sample_weight)):
            if value is not None and not isinstance(value, str):
                msg = f"{name} must name a column of the dataset, not be {type(value).__name__}."
                raise ValueError(msg)
        return ArrowRows(X, columns=columns, y=y, sensitive_features=sensitive_features, sample_weight=sample_weight)
    if home.startswith("dask"):
        return DaskRows(X, y, sensitive_features, sample_weight, columns=columns)
    if lies_elsewhere(X):
        return DeviceRows(X, y, sensitive_features, sample_weight)
    if mapped and isinstance(X, np.memmap) and X.ndim == 2 and X.nbytes > _SMALL and X.dtype.kind == "f":
        return ArrayRows(X, y, sensitive_features, sample_weight)
    return None
