"""What every stream of rows does: hand out batches, and add something up over them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from fairsteer._utils.columns import select_columns

_State = TypeVar("_State")

#: Bytes of features that are added up at once, unless memory allows fewer.
BLOCK_BYTES = 2**25


def block_rows(n_features: int, itemsize: int, n_bytes: int = BLOCK_BYTES) -> int:
    """Rows that are added up at once.

    Products of single-precision rows are formed in single precision within a block. Where rows in memory and rows that
    are read are added up in the same blocks, counted from the first row, they give the same sums, to the last bit.

    Parameters
    ----------
    n_features, itemsize : int
        Numbers of a row, and bytes of each.
    n_bytes : int, default=2**25
        What a block may take.

    Returns
    -------
    int
        At least 1.
    """
    return max(1, min(n_bytes, BLOCK_BYTES) // max(1, n_features * itemsize))


class RowBatch(NamedTuple):
    """Some rows, as they would be passed to ``partial_fit``; what is not asked for or not there is None."""

    X: Any
    y: Any = None
    sensitive_features: Any = None
    sample_weight: Any = None


class Reduction(ABC, Generic[_State]):
    """Something that is added up over batches, in any order and on any machine: it can be pickled."""

    #: Whether the features are looked at; a stream of columns does not read them otherwise.
    features: bool = True

    @abstractmethod
    def start(self) -> _State:
        """Give the state before any row."""

    @abstractmethod
    def add(self, state: _State, batch: RowBatch) -> _State:
        """Add a batch; the state may be changed in place."""

    @abstractmethod
    def merge(self, first: _State, second: _State) -> _State:
        """Give the state of the rows of both."""


class Stream(ABC):
    """Rows that are read batch by batch, as often as they are asked for.

    Attributes
    ----------
    n_columns : int
        Columns of `X`, sensitive ones included.
    column_names : list of str or None
        Their names.
    positions : list of int
        Which of them are sensitive: batches have them as `sensitive_features`.
    has_classes, has_groups : bool
        Whether batches have `y`, and groups.
    """

    n_columns: int
    column_names: list[str] | None
    positions: list[int]
    has_classes: bool
    has_groups: bool

    @abstractmethod
    def batches(self, *, features: bool = True) -> Iterator[RowBatch]:
        """Read all rows, from the first.

        Parameters
        ----------
        features : bool, default=True
            Whether `X` is needed; without it, batches may have None.

        Yields
        ------
        RowBatch
        """

    @abstractmethod
    def head(self) -> Any:
        """Give some of the rows of `X`, sensitive columns included, for what has to see what they look like."""

    def split(self, positions: list[int]) -> None:
        """Take columns of `X` as the groups."""
        self.positions, self.has_groups = list(positions), True

    def reduce(self, reduction: Reduction[_State]) -> _State:
        """Add something up over all rows.

        Parameters
        ----------
        reduction : Reduction
            What is added up.

        Returns
        -------
        state
            That of `reduction` after all rows.
        """
        state = reduction.start()
        for batch in self.batches(features=reduction.features):
            state = reduction.add(state, batch)
            del batch  # before the next is read
        return state

    def map(self, function: Callable[[RowBatch], Any]) -> Any:
        """Apply a function to every batch, lazily.

        Parameters
        ----------
        function : callable
            From a `RowBatch` to rows.

        Returns
        -------
        iterator or lazy collection
            The results, in order.
        """
        return (function(batch) for batch in self.batches())


def divided(X: Any, sensitive_features: Any, positions: list[int], n_columns: int) -> tuple[Any, Any]:
    """Features and groups of a batch whose sensitive columns may be among those of `X`."""
    if not positions or X is None:
        return X, sensitive_features
    rest = [j for j in range(n_columns) if j not in set(positions)]
    return select_columns(X, rest), select_columns(X, positions)
