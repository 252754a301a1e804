"""What the command line prints: tables, paragraphs, notes. Labels and names are text, never markup."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fairsteer._utils.labels import label_text
from fairsteer.report._choice import Choice, choice_table
from fairsteer.report._tables import Table, criterion_text, verdict
from fairsteer.report._text import fitting_table
from fairsteer.transformer import FairSteeringTransformer

from . import mute
from ._comparison import Comparison
from ._json import json_text
from ._writing import is_standard_output

__all__ = ["Reporter", "choice_of", "comparison_values", "fit_values"]

_MAX_GROUPS = 12


class _Console(Console):
    """A console that leaves it to its user what a closed pipe means."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Speed(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} rows/s")


class _Left(TimeRemainingColumn):
    """Time left, said to be that."""

    def render(self, task: Task) -> Text:
        return Text.assemble(super().render(task), (" left", "dim"))


class Reporter:
    """Prints results on stdout, and notes and progress on stderr.

    Parameters
    ----------
    to_stderr : bool
        Whether results go to stderr too, since stdout carries a file.
    as_json : bool
        Whether the result is one JSON object, which `result` prints, with the notes in it; text is left out then.
    """

    def __init__(self, *, to_stderr: bool = False, as_json: bool = False) -> None:
        self._out = _Console(stderr=to_stderr, highlight=False, markup=False, emoji=False)
        self._err = _Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._as_json = as_json
        self._notes: list[str] = []
        self._wrote: list[dict[str, str]] = []

    def say(self, text: Any = "") -> None:
        """Print a paragraph of the result, wrapped to the terminal, or a table; not for machines."""
        if not self._as_json:
            _print(self._out, text)

    def result(self, command: str, **values: Any) -> None:
        """Print what a command has found, for machines; every command that prints calls it once, at its end."""
        if self._as_json:
            found = {"command": command, **values, "wrote": self._wrote, "notes": self._notes}
            try:
                self._out.out(json_text(found), highlight=False)
            except BrokenPipeError:
                mute()

    def wrote(self, what: str, target: Path, end: str = ".", start: str = "") -> None:
        """Say that a file has been written."""
        name = "standard output" if is_standard_output(target) else target.name
        self.say(f"{start}Wrote {what} to {name}{end}")
        self._wrote.append({"what": what, "to": "-" if is_standard_output(target) else str(target)})

    def note(self, text: str) -> None:
        """Print something the user should know beside the result; on one line where no terminal wraps it."""
        if self._as_json:
            self._notes.append(text)
        else:
            _print(self._err, f"note: {text}", style="dim", soft_wrap=not self._err.is_terminal)

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Show on a terminal that a long job runs, and since when: of what is one step no end can be told."""
        if not self._err.is_terminal:
            yield
            return
        with Progress(TextColumn("{task.description}"), TimeElapsedColumn(), console=self._err, transient=True) as bar:
            bar.add_task(what, total=None)
            yield

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show on a terminal how far a long job is and how long it will take; yields what advances it."""
        if not self._err.is_terminal:
            yield lambda _: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), _Left())
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda n: bar.advance(task, n)

    @contextmanager
    def rows(self, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Show on a terminal how many rows have been read, how fast, and how long it will take."""
        if not self._err.is_terminal:
            yield lambda _: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} rows"),
            _Speed(),
            _Left(),
        )
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda n: bar.advance(task, n)

    def comparison(self, result: Comparison, steering: FairSteeringTransformer) -> None:
        """Print the table before and after, the verdict, and the fit of all rows below it."""
        self.say(
            f"{result.n_rows:,} rows, each predicted by a fit that did not see it ({result.n_folds}-fold "
            "cross-validation by a fixed rule)\n"
        )
        self.say(_comparison_table(result))
        self.say()
        before, after = (_values(result, which) for which in ("before", "steered"))
        self.say(verdict(before, after, result.change) + "\n")
        self.say(_legend(result) + "\n")
        if result.small:
            self.say(
                f"A rate from fewer than {result.min_rows} rows takes no part in the gaps "
                f"({'; '.join(map(_name, result.small))}).\n"
            )
        self.say(_fit_table(steering))
        self.say()

    def advice(self, result: Comparison) -> None:
        """Print which classifier to take, and why."""
        self.say(_advice(result) + "\n")

    def by_group(self, result: Comparison) -> None:
        """Print the rates of every group, the largest groups first."""
        legend = (
            " (selected: share predicted positive; TPR: true positive rate)" if result.pos_label is not None else ""
        )
        self.say(f"By group{legend}\n")
        self.say(_group_table(result))
        self.say()
        hidden = len(result.groups) - _MAX_GROUPS
        if hidden > 0:
            self.say(f"({hidden} smaller {'group is' if hidden == 1 else 'groups are'} not shown)\n")


def comparison_values(result: Comparison) -> dict[str, Any]:
    """Give what `Reporter.comparison` and `Reporter.by_group` show, for machines."""
    rates = {which: result.group_rates(which) for which in result.scores}
    displacement = dict(result.displacement)
    return {
        "n_rows": result.n_rows,
        "n_folds": result.n_folds,
        "min_rows": result.min_rows,
        "pos_label": result.pos_label,
        "classifiers": {which: scores.measures for which, scores in result.scores.items()},
        "change": result.change,
        "criterion": result.criterion,
        "choice": result.choice,
        "advice": _advice(result),
        "groups": [
            {
                "group": label,
                "rows": result.rows[:, a].sum(),
                "displacement": displacement.get(label),
                "rates": {which: {name: rate[a] for name, rate in rates[which].items()} for which in rates},
            }
            for a, label in enumerate(result.groups)
        ],
    }


def fit_values(steering: FairSteeringTransformer) -> dict[str, Any]:
    """Say for machines what the fit of all rows has found."""
    certificate = steering.certificate_
    return {
        "groups": steering.groups_,
        "classes": steering.classes_,
        "features": steering.get_feature_names_out(),
        "map_type": steering.map_type_,
        "kl_divergence": steering.kl_divergence_,
        "certificate": {
            "equal_opportunity": certificate.equal_opportunity,
            "equalized_odds": certificate.equalized_odds,
            "accuracy": certificate.accuracy,
        },
    }


def _print(console: Console, what: Any, **how: Any) -> None:
    try:
        console.print(what, **how)
    except BrokenPipeError:
        mute()


def _values(result: Comparison, which: str) -> dict[str, float]:
    return {name: float(measured.value) for name, measured in result.scores[which].measures.items()}


def _comparison_table(result: Comparison) -> Any:
    others = [name for name in result.scores if name not in ("before", "steered")]
    rows = []
    for key in result.scores["before"].measures:
        change = result.change[key]
        cells = [_number(_values(result, which)[key]) for which in ("before", "steered")]
        moved = "-" if math.isnan(change.value) else f"{change.value:+.3f}\n[{change.lower:+.3f}, {change.upper:+.3f}]"
        rows.append([criterion_text(key), *cells, moved, *(_number(_values(result, which)[key]) for which in others)])
    header = ["", "before", "steered", "change", *others]
    return fitting_table(header, [False, *[True] * (len(header) - 1)], rows)


def choice_of(result: Comparison) -> tuple[Table, Choice]:
    """Accuracy and gaps of the classifiers that there are to choose from, and which to take, for a report."""
    table = choice_table({name: scores.measures for name, scores in result.scores.items()}, result.choice)
    return table, Choice(result.criterion, _advice(result), _legend(result, change=False))


def _advice(result: Comparison) -> str:
    """Say which classifier to take for the criterion, and why."""
    gap, choice = criterion_text(result.criterion), result.choice
    before, chosen = _values(result, "before"), _values(result, choice)
    if choice == "before":
        return (
            f"Take the classifier before: of those within a standard error of the smallest {gap} it is the most "
            "accurate."
        )
    how = {
        "steered": "any classifier on steered features, --out and --map",
        "Bayes": "the Bayes rule of the steered features, IdealDistributionClassifier in Python",
        "aligned": f"--align {result.alignment}"
        if "Bayes" in result.scores
        else f"score_alignment={result.alignment!r} in Python",
    }
    return (
        f"For the {gap} take {choice} ({how[choice]}): {_number(chosen[result.criterion])} against "
        f"{_number(before[result.criterion])} before, at an accuracy of {_number(chosen['accuracy'])} against "
        f"{_number(before['accuracy'])}; of the classifiers within a standard error of the smallest gap it is the most "
        "accurate."
    )


def _legend(result: Comparison, *, change: bool = True) -> str:
    text = (
        "Before and steered: logistic regression on the features as they are and on the steered ones"
        + ("; the change with a 95 % bootstrap interval: one that holds 0 shows nothing" if change else "")
        + "."
        + (" Bayes: the Bayes rule of the ideal distribution." if "Bayes" in result.scores else "")
    )
    if "aligned" in result.scores:
        criterion = criterion_text(result.alignment).removesuffix(" gap")
        text += f" Aligned: the same, its scores aligned between the groups for {criterion}."
    else:
        text += " There are too few rows to align scores as well."
    if result.pos_label is not None:
        text += f" Positive class: {_name(result.pos_label)} (by default the larger label; --pos-label names it)."
    return text


def _fit_table(steering: FairSteeringTransformer) -> Any:
    certificate = steering.certificate_
    odds = np.asarray(certificate.equal_opportunity)
    rows = [
        ["KL divergence of the nearest ideal distribution", f"{steering.kl_divergence_:.3f} nats"],
        ["certificate: equal opportunity gap at most", _number(odds[-1] if len(odds) == 2 else odds.max())],
        ["certificate: equalized odds gap at most", _number(odds.max())],
        ["certificate: accuracy changes by at most", _number(certificate.accuracy)],
    ]
    return fitting_table(["fitted model", ""], [False, True], rows)


def _group_table(result: Comparison) -> Any:
    rates = {which: result.group_rates(which) for which in result.scores}
    names = list(rates["before"])
    header = ["group", "rows", *(f"{name}\n{which}" for name in names for which in rates)]
    rows = []
    sizes = result.rows.sum(axis=0)
    for a in np.argsort(-sizes, kind="stable")[:_MAX_GROUPS]:
        cells = [_number(rates[which][name][a]) for name in names for which in rates]
        rows.append([_name(result.groups[a]), f"{sizes[a]:,.0f}", *cells])
    return fitting_table(header, [False, *[True] * (len(header) - 1)], rows)


def _name(label: Any) -> str:
    """Text of a label on one line; what a terminal would obey instead of print is written out."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in label_text(label))


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
