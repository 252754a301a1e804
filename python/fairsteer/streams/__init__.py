"""Rows that do not fit into memory, or lie on several machines: read batch by batch, as often as a fit needs them."""

from __future__ import annotations

from fairsteer.streams._arrow import ArrowRows
from fairsteer.streams._batches import ArrayRows, BatchRows
from fairsteer.streams._dask import DaskRows
from fairsteer.streams._device import DeviceRows
from fairsteer.streams._opening import open_stream
from fairsteer.streams._stream import Reduction, RowBatch, Stream, block_rows

__all__ = [
    "ArrayRows",
    "ArrowRows",
    "BatchRows",
    "DaskRows",
    "DeviceRows",
    "Reduction",
    "RowBatch",
    "Stream",
    "block_rows",
    "open_stream",
]
