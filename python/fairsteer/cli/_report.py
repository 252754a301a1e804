"""What the command line prints: the table before and after, the fit, the groups, the notes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fairsteer.transformer import FairSteeringTransformer

from ._evaluate import Comparison, Score

__all__ = ["Reporter", "name_group"]

_GAPS = {
    "demographic_parity": "demographic parity gap",
    "equal_opportunity": "equal opportunity gap",
    "equalized_odds": "equalized odds gap",
}
_MAX_GROUPS = 12


class Reporter:
    """Prints results on stdout, and notes and progress on stderr."""

    def __init__(self) -> None:
        self._out = Console(highlight=False)
        self._err = Console(stderr=True, highlight=False)

    def say(self, text: str = "") -> None:
        """Print a paragraph of the result, wrapped to the terminal."""
        self._out.print(text, markup=False)

    def note(self, text: str) -> None:
        """Print something the user should know beside the result."""
        self._err.print(f"note: {text}", markup=False, style="dim")

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Any]:
        """Show a bar on a terminal while a long job runs; yields a callable that advances it by a number of rows."""
        if not self._err.is_terminal:
            yield lambda _: None
            return
        with Progress(console=self._err, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda n_rows: bar.advance(task, n_rows)

    def comparison(self, result: Comparison, steering: FairSteeringTransformer) -> None:
        """Print the table before and after, and the fit of all rows below it."""
        self.say(
            f"{result.n_rows} rows, each predicted by a fit that did not see it ({result.n_folds}-fold "
            "cross-validation by a fixed rule)\n"
        )
        self._show(_comparison_table(result))
        if result.small:
            self.say(
                f"A rate from fewer than {result.min_rows} rows takes no part in the gaps "
                f"({'; '.join(map(name_group, result.small))}).\n"
            )
        self._show(_fit_table(steering))

    def by_group(self, result: Comparison) -> None:
        """Print the rates of every group, the largest groups first."""
        legend = " (selected: share predicted positive; TPR: true positive rate)" if _is_binary(result) else ""
        self.say(f"By group{legend}\n")
        self._show(_group_table(result))
        hidden = len(result.before.groups["group"]) - _MAX_GROUPS
        if hidden > 0:
            self.say(f"({hidden} smaller groups are not shown)\n")

    def _show(self, table: Table) -> None:
        self._out.print(table)
        self._out.print()


def name_group(label: Any) -> str:
    """Text of a group label; the parts of an intersection are joined by commas."""
    return ", ".join(str(part) for part in label) if isinstance(label, tuple) else str(label)


def _comparison_table(result: Comparison) -> Table:
    table = _table(
        "",
        "before:\nlogistic\nregression",
        "steered:\nlogistic\nregression",
        "steered:\nBayes rule of\nthe ideal",
        "noise",
    )
    scores = (result.before, result.after, result.bayes)
    worst = max(s.accuracy * (1 - s.accuracy) for s in scores)
    table.add_row("accuracy", *(_number(s.accuracy) for s in scores), _number(math.sqrt(worst / result.n_rows)))
    for key, name in _GAPS.items():
        noise = max(s.gaps[key].noise for s in scores)
        table.add_row(name, *(_number(s.gaps[key].value) for s in scores), _number(noise))
    return table


def _fit_table(steering: FairSteeringTransformer) -> Table:
    certificate = steering.certificate_
    odds = np.asarray(certificate.equal_opportunity)
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, show_header=False)
    table.add_row("KL divergence of the nearest ideal distribution", f"{steering.kl_divergence_:.3f} nats")
    table.add_row("certificate: equal opportunity gap at most", _number(odds[-1] if len(odds) == 2 else odds.max()))
    table.add_row("certificate: equalized odds gap at most", _number(odds.max()))
    table.add_row("certificate: accuracy changes by at most", _number(certificate.accuracy))
    return table


def _group_table(result: Comparison) -> Table:
    rates = (
        {"selection_rate": "selected", "true_positive_rate": "TPR"} if _is_binary(result) else {"accuracy": "accuracy"}
    )
    headings = [
        f"{what}\n{when}"
        for name in rates.values()
        for what, when in ((name, "before"), ("", "steered"), ("", "Bayes"))
    ]
    table = _table("group", "rows", *headings)
    counts = result.before.groups["count"]
    for g in np.argsort(-counts, kind="stable")[:_MAX_GROUPS]:
        cells = [_group_rate(score, rate, g) for rate in rates for score in (result.before, result.after, result.bayes)]
        table.add_row(name_group(result.before.groups["group"][g]), str(counts[g]), *cells)
    return table


def _table(first: str, *headings: str) -> Table:
    """Make a table of one text column and right-aligned numbers."""
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    table.add_column(first, overflow="fold", vertical="bottom")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _is_binary(result: Comparison) -> bool:
    return "classes" not in result.before.groups


def _group_rate(score: Score, rate: str, group: int) -> str:
    return _number(score.groups[rate][group])


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
