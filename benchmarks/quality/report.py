"""Tables and pictures of the benchmark of quality, from the lines that it wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.quality import methods as q

ACCURACY, GAPS = "accuracy", {"demographic_parity": "DP", "equal_opportunity": "EO", "equalized_odds": "odds"}
TITLES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"} | {k: f"{v} gap" for k, v in GAPS.items()}
EO, DP = "equal_opportunity", "demographic_parity"
RIVAL_TRANSFORMERS = ("mean matching", "covariance matching", "LEACE", "CorrelationRemover", "LinearTransport")

# Okabe and Ito's colours, which colour-blind people tell apart; families differ in their markers as well.
FAMILIES = {
    "before": ("#000000", "s", ("nothing",)),
    "features": (
        "#56B4E9",
        "^",
        ("mean matching", "covariance matching", "LEACE", "CorrelationRemover", "LinearTransport"),
    ),
    "training, scores": (
        "#D55E00",
        "D",
        ("reweighing", *q.OPTIMIZERS, "ExponentiatedGradient, EO", "LinearPost, EO"),
    ),
    "fairsteer": (
        "#009E73",
        "o",
        (q.TIED, q.PAPER, q.QUANTILE, q.WEIGHTED, q.NOTHING + q.ALIGNMENT, q.SEARCH),
    ),
}


def write(folder: Path, results: Path, record: Path) -> None:
    lines, about = pd.read_csv(results, keep_default_na=False), json.loads(record.read_text())
    for column, order in {"classifier": list(q.CLASSIFIERS), "data": list(about["data"])}.items():
        lines = lines.iloc[np.argsort(lines[column].map(order.index), kind="stable")]
    text = "\n".join([*_header(lines, about), *_optimizer(lines), *_dominance(lines), *_choices(lines), *_all(lines)])
    (folder / "README.md").write_text(text + "\n")
    for data, own in lines.groupby("data", sort=False):
        picture(own, str(data), folder / _file(str(data)))


def _file(data: str) -> str:
    return f"{data.replace(', ', '-').replace(' ', '-')}.png"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows), ""]


def mean_and_error(values: Any) -> tuple[float, float]:
    """Mean over the splits and its standard error."""
    values = np.asarray(values, dtype=float)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _shown(values: Any, sign: bool = False) -> str:
    mean, error = mean_and_error(values)
    return f"{mean:{'+' if sign else ''}.3f} ± {error:.3f}"


def _by_split(lines: pd.DataFrame) -> Iterator[tuple[tuple[str, str], dict[str, pd.DataFrame]]]:
    """For each data set and classifier the lines of each method, a row a split."""
    for (data, classifier), own in lines.groupby(["data", "classifier"], sort=False):
        yield (
            (str(data), str(classifier)),
            {str(m): table.set_index("split").sort_index() for m, table in own.groupby("method", sort=False)},
        )


def _header(lines: pd.DataFrame, about: dict[str, Any]) -> list[str]:
    splits = lines.groupby("data", sort=False)["split"].nunique()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    rows = [
        [
            name, f"{d['rows']:,}", f"{d['train']:,}", f"{d['test']:,}", str(splits[name]),
            f"{d['features']} ({d['numeric']})", ", ".join(d["groups"]), str(d["smallest cell of the test rows"]),
        ]
        for name, d in about["data"].items()
    ]  # fmt: skip
    return [
        "# Quality on real tables",
        "",
        f"    {about['command']}",
        "",
        f"{versions}; {about['machine']}; threads: {about['threads']}.",
        *_of_search(about),
        "Written by the command; what to make of it is in [docs/quality.md](../../../docs/quality.md). Every number of",
        "every split: [results.csv](results.csv).",
        *_table(
            ["data", "rows", "train", "test", "splits", "features (numbers)", "groups", "smallest test cell"], rows
        ),
        "Mean ± standard error over random splits, stratified by class and group, the same for all methods. Splits of",
        "one table overlap, so the errors do not tell how another sample of people would differ. DP, EO, odds: gaps of",
        "demographic parity, equal opportunity (true-positive rates) and equalized odds, the largest over pairs of",
        "groups. † predicts at random; measured in exact expectation. ExponentiatedGradient is left out for gradient",
        "boosting, for its time, and so is part of what is aligned.",
        "",
    ]


def _of_search(about: dict[str, Any]) -> list[str]:
    """Say which lines are of a run of their own."""
    if "search" not in about:
        return []
    own = about["search"]
    versions = ", ".join(f"{name} {version}" for name, version in own["versions"].items())
    return [
        "",
        f"`{own['command']}` has replaced the lines of nothing, ThresholdOptimizer for EO and the search: {versions}.",
        "",
    ]


def _on_common_splits(of: dict[str, pd.DataFrame], *methods: str) -> tuple[pd.DataFrame, ...]:
    splits = sorted(set.intersection(*(set(of[method].index) for method in methods)))
    return tuple(of[method].loc[splits] for method in methods)


def short_of(ours: pd.DataFrame, theirs: pd.DataFrame, *, paired: bool) -> list[str]:
    """In what ours is worse by more than a standard error of the difference of the means."""
    worse = {"accuracy": theirs[ACCURACY] - ours[ACCURACY], "gap": ours[EO] - theirs[EO]}
    measure = {"accuracy": ACCURACY, "gap": EO}
    failed = []
    for name, by_split in worse.items():
        mean, error = mean_and_error(by_split)
        if not paired:
            error = float(np.hypot(mean_and_error(ours[measure[name]])[1], mean_and_error(theirs[measure[name]])[1]))
        if mean > error:
            failed.append(name)
    return failed


def _optimizer(lines: pd.DataFrame) -> list[str]:
    text = [
        "## Equal opportunity: beside fairlearn's ThresholdOptimizer",
        "",
        "*Holds*: accuracy not lower, and EO gap not larger, by more than one standard error of the difference.",
        "*Paired*: the error of the differences of the same splits; else that of two independent means. Even two equal",
        "methods fail a comparison of two measures about three times in ten.",
    ]
    counts = []
    for optimizer in q.OPTIMIZERS:
        for method in (q.SEARCH, q.NOTHING + q.ALIGNMENT):
            pairs = [_on_common_splits(of, method, optimizer) for _, of in _by_split(lines) if method in of]
            held = [[not short_of(*pair, paired=paired) for paired in (True, False)] for pair in pairs]
            if held:
                paired, unpaired = np.sum(held, axis=0)
                counts.append([method, optimizer, f"{paired} of {len(held)}", f"{unpaired} of {len(held)}"])
    text += _table(["ours", "theirs", "holds, paired", "holds, unpaired"], counts)
    for rival in (*q.OPTIMIZERS, q.NOTHING):
        rows = []
        for (data, classifier), of in _by_split(lines):
            ours, theirs = _on_common_splits(of, q.SEARCH, rival)
            failed = [short_of(ours, theirs, paired=paired) for paired in (True, False)]
            if rival == q.NOTHING:  # accuracy is what a smaller gap costs
                failed = [[name for name in names if name == "gap"] for names in failed]
            rows.append(
                [
                    data,
                    classifier,
                    f"{_shown(ours[ACCURACY])}, {_shown(ours[EO])}",
                    f"{_shown(theirs[ACCURACY])}, {_shown(theirs[EO])}",
                    _shown(ours[ACCURACY] - theirs[ACCURACY], sign=True),
                    _shown(ours[EO] - theirs[EO], sign=True),
                    *(f"**no: {' and '.join(names)}**" if names else "yes" for names in failed),
                ]
            )
        text += [f"### {q.SEARCH}, and {rival}{'†' if rival in q.OPTIMIZERS else ''}"]
        if rival == q.NOTHING:
            text += ["", "*Holds*: the gap is not larger by more than one standard error of the difference."]
        text += _table(
            [
                *("data", "classifier", "ours: accuracy, EO gap", "theirs: accuracy, EO gap"),
                *("accuracy, ours - theirs", "EO gap, ours - theirs", "holds, paired", "holds, unpaired"),
            ],
            rows,
        )
    return text


def dominates(rival: pd.DataFrame, ours: pd.DataFrame) -> bool:
    """Whether a rival is at least as good in the mean accuracy, EO gap and DP gap, and better in one."""
    advantage = [rival[ACCURACY].mean() - ours[ACCURACY].mean(), *(ours[m].mean() - rival[m].mean() for m in (EO, DP))]
    return min(advantage) >= 0 and max(advantage) > 0


def _dominance(lines: pd.DataFrame) -> list[str]:
    text = [
        "## Transformers alone",
        "",
        "Each followed by the classifier, without weights or alignment: by whom ours is dominated (mean accuracy, EO",
        "gap and DP gap all no better, one worse), and whom it dominates.",
    ]
    ours = (q.TIED, "tied, affirmative", "tied, symmetric", "full", q.PAPER, q.NUMERIC, q.QUANTILE)
    for classifier in q.CLASSIFIERS:
        rows = []
        for name in ours:
            cells, free = [], 0
            for (_, kind), of in _by_split(lines):
                if kind != classifier or name not in of:
                    continue
                rivals = [r for r in RIVAL_TRANSFORMERS if r in of]
                above = [r for r in rivals if dominates(of[r], of[name])]
                below = [r for r in rivals if dominates(of[name], of[r])]
                free += not above
                parts = [f"**by {', '.join(above)}**" if above else "not dominated"]
                cells.append("; ".join([*parts, *([f"dominates {', '.join(below)}"] if below else [])]))
            rows.append([name, f"{free} of {len(cells)}", *cells])
        names = [data for (data, kind), _ in _by_split(lines) if kind == classifier]
        text += ["", f"**{classifier}**", *_table(["ours", "not dominated", *names], rows)]
    return text


def _choices(lines: pd.DataFrame) -> list[str]:
    text = ["## What cross-validation chose, and the time of the search", ""]
    rows = []
    for (data, classifier), of in _by_split(lines):
        counts = [
            ", ".join(f"{name} ({n})" for name, n in of[m]["chosen"].value_counts().items())
            for m in (q.NOTHING, q.SEARCH)
        ]
        seconds = of[q.SEARCH]["seconds"].astype(float)
        rows.append([data, classifier, *counts, f"{seconds.median():.0f} s"])
    return [*text, *_table(["data", "classifier", "hyperparameters", q.SEARCH, "median of a fit"], rows)]


def _all(lines: pd.DataFrame) -> list[str]:
    text = ["## All methods", ""]
    for (data, classifier), of in _by_split(lines):
        text += [f"### {data}: {classifier}"]
        if classifier == q.LOGISTIC:
            text += ["", f"![accuracy against the equal-opportunity gap]({_file(data)})", ""]
            text += ["ThresholdOptimizer, ExponentiatedGradient and LinearPost are those for equal opportunity here."]
        rows = [
            [f"{name}{'†' if name.startswith(q.RANDOMISED) else ''}", *(_shown(own[m]) for m in q.MEASURES)]
            for name, own in of.items()
        ]
        text += _table(["method", *(TITLES[m] for m in q.MEASURES)], rows)
    return text


def picture(lines: pd.DataFrame, data: str, path: Path) -> None:
    """Accuracy against the equal-opportunity gap; labels stand in a column of their own, a line to each point."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    kinds = [kind for kind in q.CLASSIFIERS if (lines["classifier"] == kind).any()]
    figure, panels = plt.subplots(1, len(kinds), figsize=(8.6 * len(kinds), 5.6), squeeze=False)
    for panel, kind in zip(panels[0], kinds, strict=True):
        _draw(panel, dict(_by_split(lines))[data, kind])
        panel.set_title(f"{data}: {kind}", loc="left")
    figure.subplots_adjust(left=0.05, right=0.85, wspace=0.68, bottom=0.1, top=0.93)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw(panel: Any, of: dict[str, pd.DataFrame]) -> None:
    points = []
    for color, marker, names in FAMILIES.values():
        for name in names:
            if name not in of:
                continue
            (x, x_error), (y, y_error) = mean_and_error(of[name][EO]), mean_and_error(of[name][ACCURACY])
            emphasis = name == q.SEARCH
            panel.errorbar(
                x, y, xerr=x_error, yerr=y_error, fmt=marker, color=color, markersize=9 if emphasis else 6,
                markeredgecolor="black" if emphasis else color, elinewidth=0.9, capsize=2, zorder=3 + emphasis,
            )  # fmt: skip
            points.append((y, x, name, color, emphasis))
    panel.set_xlim(left=0)
    panel.set_xlabel("equal-opportunity gap (smaller is better)")
    panel.set_ylabel("accuracy")
    panel.grid(color="0.92")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    low, high = panel.get_ylim()
    points.sort()
    heights = np.linspace(0.02, 0.98, len(points))
    for (y, x, name, color, emphasis), height in zip(points, heights, strict=True):
        short = name.replace(", EO", "").replace(" numeric columns,", "")
        label = f"{short}{' †' if name.startswith(q.RANDOMISED) else ''}"
        panel.annotate(
            label, xy=(x, y), xytext=(1.03, height), textcoords="axes fraction", va="center", fontsize=9, color="black",
            fontweight="bold" if emphasis else "normal", annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "relpos": (0, 0.5), "color": color, "alpha": 0.45, "linewidth": 0.8, "shrinkA": 1,
                "shrinkB": 3,
            },
        )  # fmt: skip
    panel.set_ylim(low, high)
