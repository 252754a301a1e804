"""What the saved map must know of the table it was fitted on, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairsteer._utils.labels import label_from_json, label_to_json

from ._errors import UsageError
from ._tabular import CategoricalColumn, Column, NumericColumn, TableEncoder

__all__ = ["TableDescription"]


@dataclass(frozen=True)
class TableDescription:
    """The preprocessing that ``fairsteer apply`` repeats on new rows.

    Attributes
    ----------
    encoder : TableEncoder
        Feature columns.
    target : str
        Column of the classes, passed through where the new table has it.
    sensitive : tuple of str
        Columns of the groups.
    keep : tuple of str
        Further columns passed through where the new table has them.
    """

    encoder: TableEncoder
    target: str
    sensitive: tuple[str, ...]
    keep: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Values that `json` can write, labels tagged with their types."""
        return {
            "target": self.target,
            "sensitive": list(self.sensitive),
            "keep": list(self.keep),
            "columns": [_column_to_json(column) for column in self.encoder.columns],
        }

    @classmethod
    def from_json(cls, block: Mapping[str, Any] | None, path: Any) -> TableDescription:
        """Read what `to_json` wrote.

        Parameters
        ----------
        block : mapping or None
            The extra block of the map's header.
        path : path-like
            The map, for the message.

        Returns
        -------
        TableDescription

        Raises
        ------
        UsageError
            If the map was not written by ``fairsteer steer``.
        """
        if block is None or "columns" not in block:
            raise UsageError(
                f"{path} holds a map but not the table it was fitted on; load it in Python with "
                "fairsteer.persistence.load."
            )
        try:
            return cls(
                encoder=TableEncoder(tuple(_column_from_json(column) for column in block["columns"])),
                target=str(block["target"]),
                sensitive=_names(block["sensitive"]),
                keep=_names(block["keep"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path} is damaged: its description of the table cannot be read.") from error


def _names(values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)


def _column_to_json(column: Column) -> dict[str, Any]:
    if isinstance(column, NumericColumn):
        return {"kind": "numeric", "name": column.name, "fill": column.fill.hex()}
    categories = [label_to_json(value) for value in column.categories]
    return {
        "kind": "categorical",
        "name": column.name,
        "categories": categories,
        "missing": column.missing,
    }


def _column_from_json(block: Mapping[str, Any]) -> Column:
    if block["kind"] == "numeric":
        return NumericColumn(str(block["name"]), float.fromhex(block["fill"]))
    categories = tuple(label_from_json(value) for value in block["categories"])
    return CategoricalColumn(str(block["name"]), categories, bool(block["missing"]))
