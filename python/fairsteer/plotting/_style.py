"""What every display shares: axes, colours, markers, names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fairsteer._utils.types import Doubles
from fairsteer.metrics._intervals import Measured

# Okabe and Ito's colours, and lighter shades of the dark ones for dark grounds.
_ON_LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


_ON_DARK = ("#56B4E9", "#E69F00", "#2FC99A", "#E8A3CB", "#F0E442", "#FF8F57")


MARKERS = ("o", "D", "s", "^", "v", "P", "X", "*")


LINES = ("-", "--", ":", "-.")


# Characters of a label that a picture has room for.
_LONGEST = 30


#: How labels of users are set: dollars are dollars, and neither mathematics nor commands of TeX.
AS_IT_IS: dict[str, Any] = {"parse_math": False, "usetex": False}


# ---- shared


def import_pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        msg = 'Drawing needs matplotlib: pip install "fairsteer[report]".'
        raise ImportError(msg) from error
    return plt


def new_axes(ax: Any, height: float | None = None) -> tuple[Any, Any]:
    if ax is not None:
        return ax.figure, ax
    size = None if height is None else (6.4, max(height, 2.4))
    figure, ax = import_pyplot().subplots(figsize=size, layout="constrained")
    return figure, ax


def palette(ax: Any) -> tuple[str, ...]:
    """Colours that show on the ground of the axes."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(ax.get_facecolor())
    return _ON_LIGHT if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else _ON_DARK


def theme_colour(what: str) -> Any:
    return import_pyplot().rcParams[what]


def draw_legend(ax: Any, entries: Sequence[tuple[Any, str]]) -> None:
    """Name artists above the axes, where it covers nothing."""
    if not entries:
        return
    handles = [handle for handle, _ in entries]
    labels = [shorten(label, _LONGEST) for _, label in entries]
    columns = next(column_counts(labels))
    # matplotlib leaves out entries whose label is empty or begins with an underscore, so texts come afterwards.
    legend = ax.legend(
        handles,
        ["x"] * len(labels),
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        frameon=False,
        borderaxespad=0.3,
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set(text=label, **AS_IT_IS)


def name_rows(ax: Any, places: Any, labels: Sequence[str]) -> None:
    """Write labels at the rows of a picture."""
    ax.set_yticks(places, [shorten(label, _LONGEST) for label in labels], **AS_IT_IS)


def shorten(text: str, most: int) -> str:
    """Text of at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def column_counts(labels: Sequence[str]) -> Iterator[int]:
    """As many columns as the width has room for."""
    for n in range(min(len(labels), 4), 0, -1):
        widest = sum(max(len(text) for text in labels[j::n]) + 9 for j in range(n))
        if widest <= 60 or n == 1:
            yield n


def error_bars(measured: Sequence[Measured]) -> tuple[Doubles, Doubles]:
    """Values, and distances to the ends of their intervals, (2, n)."""
    value, lower, upper = np.array([tuple(m) for m in measured], dtype=np.float64).T
    return value, np.maximum([value - lower, upper - value], 0)
