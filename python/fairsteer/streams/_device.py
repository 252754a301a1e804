"""Rows that lie on a device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fairsteer._utils.arrays import check_floats, some_rows, to_numpy
from fairsteer._utils.input import num_rows
from fairsteer.streams._stream import RowBatch, Stream


class DeviceRows(Stream):
    """Rows of an array of another library than NumPy, which are not brought to the processor.

    Parameters
    ----------
    X : array of shape (n_samples, n_features)
        A torch tensor or an array of any library that follows the array API standard, on any device.
    y, sensitive_features, sample_weight : array-like, default=None
        As for ``fit``; these are read by the processor, wherever they lie.
    """

    def __init__(self, X: Any, y: Any = None, sensitive_features: Any = None, sample_weight: Any = None) -> None:
        X = check_floats(X)
        self._all = RowBatch(X, to_numpy(y), to_numpy(sensitive_features), to_numpy(sample_weight))
        self.n_columns, self.column_names, self.positions = int(X.shape[1]), None, []
        self.has_classes, self.has_groups = y is not None, sensitive_features is not None
        for name, column in self._all._asdict().items():
            if column is not None and num_rows(column) != X.shape[0]:
                msg = f"{name} has {num_rows(column)} rows, and X has {X.shape[0]}."
                raise ValueError(msg)

    def head(self) -> Any:
        return to_numpy(some_rows(self._all.X, range(min(1000, num_rows(self._all.X)))))

    def split(self, positions: list[int]) -> None:
        msg = (
            f"sensitive_columns names columns {positions} of X, which lies on a device. Leave them out of X, and pass "
            "them as sensitive_features=…."
        )
        raise ValueError(msg)

    def batches(self, *, features: bool = True) -> Iterator[RowBatch]:
        del features
        yield self._all
