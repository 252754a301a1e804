"""The part of the page that a threshold moves: the state at which it starts, and the numbers of all others."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from fairsteer._utils.labels import label_text
from fairsteer.report._tables import Table
from fairsteer.report._thresholds import RATES, THRESHOLDS

#: Where the slider stands at first, and the rate that is shown.
START, FIRST_RATE = 50, "true_positive"

_WHEN = ("before", "after")


def explorer(table: Table, positive: Any, level: str, *, decides: bool, n_groups: int) -> str:
    """Section of a page; `table` is that of the thresholds.

    Parameters
    ----------
    table : dict of str to list
        As `threshold_table` makes it.
    positive : label
        The positive class.
    level : str
        Level of the intervals, as text.
    decides : bool
        Whether at .5 the classifiers predict what they predict by themselves.
    n_groups : int
        Number of all groups.
    """
    n = len(table["group"]) // len(THRESHOLDS)
    groups = [label_text(group) for group in table["group"][: n - 1]]
    data = _numbers(table, groups, label_text(positive))
    lines = range(START * n, (START + 1) * n)
    body = "".join(
        _row(label, [_cell(table, f"{FIRST_RATE}_{when}", i) for when in _WHEN])
        for label, i in zip(groups, lines, strict=False)
    )
    last = lines[-1]
    body += _row("largest difference", [_cell(table, f"{FIRST_RATE}_{when}", last) for when in _WHEN])
    body += _row("accuracy, all groups", [_cell(table, f"accuracy_{when}", last) for when in _WHEN])
    choices = "".join(
        f'<label><input type="radio" name="rate" value="{name}"{" checked" if name == FIRST_RATE else ""}> '
        f"{escape(data['names'][name])}</label>"
        for name in RATES
    )
    notes = [
        f"Held-out rows; below: exact {level} intervals, each of one rate.",
        "At 0.50 the classifiers predict what they predict by themselves."
        if decides
        else "By themselves the classifiers do not decide at 0.50.",
        f"Of {n_groups} groups the {len(groups)} largest are shown." if n_groups > len(groups) else "",
        "A rate from too few rows takes no part in the largest difference.",
    ]
    note = " ".join(text for text in notes if text)
    # In a script, nothing may look like its end.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return f"""<section class="explorer">
<h2>At every threshold</h2>
<p>A row is predicted {escape(label_text(positive))} where its probability is above the threshold. How often, in every
group?</p>
<div class="controls" hidden>
<fieldset><legend>Rate</legend>{choices}</fieldset>
<div class="threshold"><label for="fairsteer-threshold">Threshold</label>
<span class="value" aria-hidden="true">{THRESHOLDS[START]:.2f}</span>
<input id="fairsteer-threshold" type="range" min="0" max="{len(THRESHOLDS) - 1}" value="{START}" step="1"></div>
</div>
<p class="status" role="status" hidden></p>
<div class="figures" hidden>
<figure><svg class="groups" viewBox="0 0 400 100" role="img" aria-label="Rate of every group at the threshold, with
intervals; the table below has the numbers"></svg></figure>
<figure><svg class="gaps" viewBox="0 0 400 144" role="img" aria-label="Largest difference between groups at every
threshold, before and after"></svg></figure>
</div>
<div class="scroll" tabindex="0" role="region" aria-label="Rates at the threshold"><table><thead><tr>
<th scope="col" class="name">group</th><th scope="col" class="number">before</th>
<th scope="col" class="number">after</th></tr></thead><tbody>{body}</tbody></table></div>
<p class="note">{escape(note)}</p>
<script type="application/json">{text}</script>
</section>"""


def _numbers(table: Table, groups: list[str], positive: str) -> dict[str, Any]:
    n = len(groups) + 1
    last = range(n - 1, len(table["group"]), n)
    names = {
        "selected": f"predicted {positive}, of all rows",
        "true_positive": f"predicted {positive}, of the rows of class {positive}",
        "false_positive": f"predicted {positive}, of the other rows",
    }
    rates: dict[str, Any] = {}
    for name in RATES:
        of_groups, gap = {}, {}
        for when in _WHEN:
            columns = [_thousandths(table[f"{name}_{when}{end}"]) for end in ("", "_lower", "_upper")]
            triples = list(zip(*columns, strict=True))
            of_groups[when] = [triples[i - n + 1 : i] for i in last]
            gap[when] = [columns[0][i] for i in last]
        rates[name] = {"rates": of_groups, "gap": gap}
    accuracy = {when: [_thousandths(table[f"accuracy_{when}"])[i] for i in last] for when in _WHEN}
    return {"groups": groups, "names": names, "rates": rates, "accuracy": accuracy}


def _thousandths(values: Sequence[float]) -> list[int | None]:
    """Numbers as they are shown, so that the page says what Python says."""
    return [None if math.isnan(x) else round(1000 * float(f"{x:.3f}")) for x in values]


def _cell(table: Table, column: str, i: int) -> str:
    value = table[column][i]
    if math.isnan(value):
        return "-"
    lower = table.get(f"{column}_lower", [math.nan] * (i + 1))[i]
    if math.isnan(lower):
        return f"{value:.3f}"
    return f"{value:.3f}<small>[{lower:.3f}, {table[f'{column}_upper'][i]:.3f}]</small>"


def _row(label: str, cells: Sequence[str]) -> str:
    numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    return f'<tr><th scope="row" class="name">{escape(label)}</th>{numbers}</tr>'
