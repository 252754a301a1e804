"""Weights of subgroups as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fairsteer._utils.types import Doubles

if TYPE_CHECKING:
    from fairsteer.moments._moments import SubgroupMoments

# Cells that a table in a message lists.
LISTED_CELLS = 40


def weight_table(moments: SubgroupMoments, most: int | None) -> str:
    """Lay out the weights, see `SubgroupMoments.subgroup_table`."""
    classes, groups = ([str(label) for label in labels.tolist()] for labels in (moments.classes, moments.groups))
    weights = moments.weights
    rest = 0
    if most is not None and weights.size > most:
        smallest = np.argsort(weights, axis=None, kind="stable")[:most].tolist()
        cells = [divmod(cell, moments.n_groups) for cell in smallest]
        lines = [
            ["class", "group", "weight"],
            *([classes[k], groups[a], f"{weights[k, a]:.6g}"] for k, a in cells),
        ]
        rest = weights.size - most
    elif moments.n_groups > moments.n_classes:
        lines = [["group \\ class", *classes], *_labelled(groups, weights.T)]
    else:
        lines = [["class \\ group", *groups], *_labelled(classes, weights)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.rjust, line, widths)) for line in lines]
    if rest:
        text.append(f"and {rest} larger ones".rjust(len(text[0])))
    return "\n".join(text)


def _labelled(labels: list[str], weights: Doubles) -> list[list[str]]:
    return [[label, *(f"{weight:.6g}" for weight in row)] for label, row in zip(labels, weights, strict=True)]
