"""Tables and a picture of the biographies benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.biographies import methods as bios
from benchmarks.biographies.methods import Biographies, Line

# Chosen before any test row was measured, by cross-validation on the training rows.
OURS = "tied: LR and LDA, known, aligned"
TOLERANCE = 0.01
SHOWN = ("original: LR, withheld", "covariance matching, barycentre: LR, known", "tied: LR, known", OURS)
COLUMNS = ("data", "method", "rule", "gender", "aligned", "ours", "budget")


def add(folder: Path, data: Biographies, lines: list[Line], *, by_occupation: bool = True) -> None:
    """Replace the lines of a run in the tables of the folder, of which one may tell the gaps by occupation."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.isin(data.fold, data.measured)
    y, group = data.y[rows], data.group[rows]
    predicted = np.stack([line.predicted[rows] for line in lines])
    found = bios.measured(y, group, data.fold[rows], predicted)
    original = 0  # the first line is what the others are held to
    rival = best_baseline(lines, found, original)
    share = np.array([np.mean(group[y == k] == 0) for k in range(len(data.classes))])
    table, by_class = [], []
    for i, line in enumerate(lines):
        entry: dict[str, Any] = {c: getattr(line, c, data.name) for c in COLUMNS}
        for measure in bios.MEASURES:
            entry[measure] = found.values[measure][i]
            entry[f"{measure}, low"], entry[f"{measure}, high"] = found.interval(measure, i)
        for name, other in (("original", original), ("best baseline", rival)):
            for measure in ("accuracy", "RMS gap"):
                difference = found.difference(measure, i, other)
                for suffix, value in zip(("", ", low", ", high"), difference, strict=True):
                    entry[f"{measure} - {name}{suffix}"] = value
        gap = bios.gaps_by_class(y, group, line.predicted[rows], len(data.classes))
        entry["correlation with share of women"] = np.corrcoef(gap, share)[0, 1]
        entry["best baseline"] = lines[rival].name
        table.append(entry)
        if by_occupation and line.name in SHOWN and len(data.measured) == 1:
            by_class += [
                {"data": data.name, "line": line.name, "occupation": name, "share of women": s, "gap": g}
                for name, s, g in zip(data.classes, share, gap, strict=True)
            ]
    _replace(folder / "results.csv", data.name, pd.DataFrame(table))
    if by_class:
        _replace(folder / "occupations.csv", data.name, pd.DataFrame(by_class))


def best_baseline(lines: list[Line], found: bios.Measured, original: int) -> int:
    """The smallest RMS gap of other methods, aligned or not, at an accuracy within a point of the original's.

    It is looked for on the measured rows themselves, to the baselines' advantage.
    """
    accuracy, gap = found.values["accuracy"], found.values["RMS gap"]
    allowed = [i for i, line in enumerate(lines) if not line.ours and accuracy[i] >= accuracy[original] - TOLERANCE]
    return min(allowed, key=lambda i: gap[i])


def _replace(path: Path, name: str, own: pd.DataFrame) -> None:
    if path.exists():
        others = pd.read_csv(path)
        own = pd.concat([others[others["data"] != name], own])
    own.to_csv(path, index=False, float_format="%.5f", lineterminator="\n")


#: The beginning of the page.
HEAD = (
    "# Occupations from biographies",
    "",
    "    python -m benchmarks.biographies --slow",
    "    python -m benchmarks.biographies --cross-validate",
    "",
    "Written by these commands; what to make of it is in [docs/biographies.md](../../../docs/biographies.md).",
    "Every number with its interval is in [results.csv](results.csv), gaps by occupation are in",
    "[occupations.csv](occupations.csv).",
    "",
    "28 occupations, gender female or male.",
)


def write(folder: Path, head: Sequence[str] = HEAD) -> None:
    """The page and the picture, from the tables of the folder."""
    table = pd.read_csv(folder / "results.csv")
    text = [
        *head,
        "*RMS gap*: root mean square over occupations of the difference in how",
        "often women and men of an occupation are recognised; *floor*: what it would be by chance alone, with no true",
        "difference; *true gap*: its estimate without that part, 0 if below the floor. Brackets: 95 % bootstrap",
        "intervals, rows drawn within fold, occupation and gender; differences are paired. *Correlation*: of the",
        "occupations' gaps with their shares of women. **Bold**: accuracy within a point of the original. Gender",
        "*withheld*: not used for test rows. *Budget*: the RMS gap that the alignment left on training rows.",
        "",
    ]
    for name, own in table.groupby("data", sort=False):
        text += [f"## {name}", "", *_summary(own), *_lines(own)]
    if (folder / "occupations.csv").exists():
        picture(pd.read_csv(folder / "occupations.csv"), folder / "occupations.png")
        text += ["## Gaps by occupation", "", "![Gaps by occupation and share of women](occupations.png)", ""]
    (folder / "README.md").write_text("\n".join(text))


def _summary(own: pd.DataFrame) -> list[str]:
    ours = own[_names(own) == OURS]
    if ours.empty:
        return []
    line = ours.iloc[0]
    sentence = (
        "The best baseline within a point of the original's accuracy, looked for on the measured rows: "
        f"*{line['best baseline']}*. Ours, chosen on training rows: *{OURS}*; its RMS gap less the baseline's "
        f"{_difference(line, 'RMS gap - best baseline')}, accuracy {_difference(line, 'accuracy - best baseline')}."
    )
    return [sentence, ""]


def _names(own: pd.DataFrame) -> pd.Series:
    end = np.where(own["aligned"], ", aligned", "")
    return own["method"] + ": " + own["rule"] + ", " + own["gender"] + end


def _difference(line: pd.Series, column: str) -> str:
    return f"{line[column]:+.3f} [{line[f'{column}, low']:+.3f}, {line[f'{column}, high']:+.3f}]"


def _lines(own: pd.DataFrame) -> list[str]:
    head = (
        "method",
        "classifier",
        "gender",
        "aligned (budget)",
        "accuracy",
        "balanced",
        "RMS gap",
        "floor",
        "true gap",
        "RMS gap - original",
        "accuracy - original",
        "RMS gap - best baseline",
        "correlation",
    )
    text = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for _, line in own.iterrows():
        within = line["accuracy - original"] >= -TOLERANCE
        cells = [
            f"{line['method']}{' ◆' if line['ours'] else ''}",
            line["rule"],
            line["gender"],
            f"yes ({line['budget']:.2g})" if line["aligned"] else "",
            f"**{line['accuracy']:.4f}**" if within else f"{line['accuracy']:.4f}",
            f"{line['balanced accuracy']:.3f}",
            _value(line, "RMS gap"),
            f"{line['floor']:.3f}",
            _value(line, "true gap"),
            _difference(line, "RMS gap - original"),
            _difference(line, "accuracy - original"),
            _difference(line, "RMS gap - best baseline"),
            f"{line['correlation with share of women']:+.2f}",
        ]
        text.append(f"| {' | '.join(cells)} |")
    return [*text, "", "◆ fairsteer's own way of changing features or weights.", ""]


def _value(line: pd.Series, measure: str) -> str:
    return f"{line[measure]:.3f} [{line[f'{measure}, low']:.3f}, {line[f'{measure}, high']:.3f}]"


def picture(table: pd.DataFrame, path: Path) -> None:
    """Gap of each occupation over its share of women, a panel for each line."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    table = table[table["data"] == "embeddings"]
    names = [name for name in SHOWN if (table["line"] == name).any()]
    figure, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 3.6), sharey=True, squeeze=False)
    for name, ax in zip(names, axes[0], strict=True):
        own = table[table["line"] == name]
        ax.axhline(0, color="0.7", linewidth=1)
        ax.scatter(own["share of women"], own["gap"], s=14, color="#0072B2")
        for _, line in own[own["gap"].abs() > 0.2].iterrows():
            ax.annotate(line["occupation"].replace("_", " "), (line["share of women"], line["gap"]), fontsize=6)
        correlation = np.corrcoef(own["share of women"], own["gap"])[0, 1]
        root = np.sqrt(np.mean(own["gap"] ** 2))
        ax.set_title(f"{name}\ncorrelation {correlation:.2f}, RMS {root:.3f}", fontsize=8)
        ax.set_xlabel("share of women")
    axes[0][0].set_ylabel("recall of women less that of men")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
