"""Tables and a picture of what `python -m benchmarks.bias` measured, and the rule by which they are read.

The rule, and the methods, were written down before the run, after a trial on single draws of three data sets:

* The unbiased distribution is ideal, so that the most accurate decisions are the fair ones: accuracy against the truth
  is what counts, gaps come second. The gaps that chance makes are those of unbiased rows.
* What is read is the middle level of a bias, the classifier being logistic regression, averaged over data sets.
  Standard errors are over repeats (draws of rows, groups and biases), the data sets being what they are.
* What a bias costs: accuracy of the classifier on unbiased rows, in training and in use, less that on biased ones.
  Where that is within two standard errors of 0 there is nothing to recover, and no share is given.
* Some sixty methods are tried. One *recovers* something if it gains more than three standard errors over doing nothing,
  and *harms* if it loses as much. The best is the one with the highest accuracy; its equals, those within a standard
  error of the paired difference.
* The best is given among methods that are told groups at most, and among those that are told which group is not biased.
  Where none of a kind recovers anything, the answer is: do nothing.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.bias import rounds
from benchmarks.bias.biases import BIASES, NO_BIAS
from benchmarks.bias.measures import MEASURES
from benchmarks.bias.methods import BOOSTING, LOGISTIC, METHODS, NAMED, NOTHING, is_tried

BIASED = [bias for bias in BIASES if bias != NO_BIAS]
DRAW = ["data", "repeat"]
SETTING = ["bias", "level", "classifier", "method"]
AWARE = "group as a feature"
TELLING, CLEAR = 3, 2  # standard errors: of a gain; of a loss


def pooled(values: Any) -> tuple[Any, Any]:
    """Mean over data sets of means over repeats, and its standard error over repeats; rows are indexed by both.

    Of a series two numbers, of a table a series for each of the two.
    """
    by_data = values.groupby(level="data")
    mean = by_data.mean()
    error = np.sqrt((by_data.var(ddof=1) / by_data.count()).sum(skipna=False)) / mean.count()
    return mean.mean(), error


def recovered(gain: Any, loss: Any) -> tuple[Any, Any]:
    """Share of a loss that a gain makes good, of means; nan where the loss is not clear."""
    lost, error = pooled(loss)
    lost = lost / (lost > CLEAR * error)  # inf where it is not clear
    share = (pooled(gain)[0] / lost).where(np.isfinite(lost))
    return share, pooled(gain - share * loss)[1] / lost


def _by_draw(lines: pd.DataFrame, measure: str = "accuracy") -> Any:
    """Columns: bias, level, classifier and method, sorted; rows: data sets and repeats."""
    return lines.pivot_table(index=DRAW, columns=SETTING, values=measure)


def _of_nothing(accuracy: Any, *, unbiased: bool) -> Any:
    """In the place of every method what doing nothing has in its setting, or on unbiased rows."""
    settings = [
        ((NO_BIAS, 0.0) if unbiased else (bias, level)) + (classifier, NOTHING)
        for bias, level, classifier, _ in accuracy.columns
    ]
    nothing = accuracy[settings].set_axis(accuracy.columns, axis=1)
    return nothing.where(accuracy.notna())


def summary(lines: pd.DataFrame) -> Any:
    """Estimates of every setting and method, indexed by bias, level, classifier and method."""
    accuracy = _by_draw(lines)
    gain = accuracy - (nothing := _of_nothing(accuracy, unbiased=False))
    loss = _of_nothing(accuracy, unbiased=True) - nothing
    estimates = {measure: pooled(_by_draw(lines, measure)) for measure in MEASURES}
    estimates |= {"gain": pooled(gain), "lost": pooled(loss), "recovered": recovered(gain, loss)}
    found = {"draws": accuracy.count()}
    for name, (mean, error) in estimates.items():
        found |= {name: mean, f"{name}_error": error}
    return pd.DataFrame(found)


def best(lines: pd.DataFrame, bias: str, told: Iterable[str]) -> tuple[str, list[str]] | None:
    """By the rule: of the methods that are told this much, the most accurate that recovers something; its equals.

    Compared are methods with as many draws as half of them have, in the draws that all of these have.
    """
    accuracy = _by_draw(lines)[(bias, BIASES[bias].shown, LOGISTIC)]
    draws = accuracy.count()
    accuracy = accuracy.loc[:, draws >= draws.median()].dropna()
    gain, error = pooled(accuracy.sub(accuracy[NOTHING], axis=0))
    of = [name for name in accuracy if METHODS[name].told in told and gain[name] > TELLING * error[name]]
    if not of:
        return None
    first = str(gain[of].idxmax())
    behind, error = pooled(accuracy[of].rsub(accuracy[first], axis=0))
    return first, [name for name in of if name != first and behind[name] <= error[name]]


# ---- Markdown


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _with_error(value: float, error: float, form: str) -> str:
    """A draw alone has no error."""
    return f"{value:{form}}" + ("" if np.isnan(error) else f" ± {error:{form.lstrip('+')}}")


def _points(line: Any, name: str, sign: str = "") -> str:
    return _with_error(100 * line[name], 100 * line[f"{name}_error"], f"{sign}.2f")


def _share(line: Any) -> str:
    if np.isnan(line["recovered"]):
        return "–"
    return f"{100 * line['recovered']:.0f} ± {100 * line['recovered_error']:.0f}"


def _gap(line: Any, name: str = "tpr_gap") -> str:
    return _with_error(line[name], line[f"{name}_error"], ".3f")


def _matrix(found: Any, classifier: str, cell: Any, biases: Sequence[str]) -> list[str]:
    rows = []
    for method in METHODS:
        keys = [(bias, BIASES[bias].shown, classifier, method) for bias in biases]
        if any(key in found.index for key in keys):
            rows.append([method, *(cell(found.loc[key]) if key in found.index else "" for key in keys)])
    return _table(["method", *biases], rows)


def _in_short(lines: pd.DataFrame, found: Any) -> list[str]:
    rows = []
    for bias in BIASED:
        of = found.loc[(bias, BIASES[bias].shown, LOGISTIC)]
        cells = [
            bias,
            *(_points(of.loc[NOTHING], "lost"), _gap(of.loc[NOTHING])),
            *(f"{100 * (of.loc[AWARE, 'lost'] - of.loc[AWARE, 'gain']):.2f}", _gap(of.loc[AWARE])),
        ]
        for told in (("", "group"), ("", "group", "reference")):
            answer = best(lines, bias, told)
            if answer is None:
                cells.append("do nothing")
                continue
            first, equals = answer
            others = f"; as good: {', '.join(equals[:3])}" + (f" and {len(equals) - 3} more" if len(equals) > 3 else "")
            cells.append(f"**{first}** ({_share(of.loc[first])} %{others if equals else ''})")
        rows.append(cells)
    head = (
        *("bias", "points lost", "gap", "lost with the group as a feature", "gap"),
        *("best, told the groups at most", "best, told the unbiased group"),
    )
    return _table(head, rows)


def _by_level(found: Any, bias: str) -> list[str]:
    levels = BIASES[bias].levels
    text = ["", f"### {bias}", "", BIASES[bias].words, ""]
    nothing = [found.loc[(bias, level, LOGISTIC, NOTHING)] for level in levels]
    head = ["method", *(f"{level:g}" for level in levels)]
    rows = [["*points lost*", *(_points(line, "lost") for line in nothing)]]
    for method in NAMED:
        cells = [method]
        for level in levels:
            key = (bias, level, LOGISTIC, method)
            line = found.loc[key] if key in found.index else None
            cells.append("" if line is None else f"{100 * line['gain']:+.2f}; {line['tpr_gap']:.3f}")
        rows.append(cells)
    return text + _table(head, rows)


def _by_data(lines: pd.DataFrame, bias: str, methods: Sequence[str], cell: Any) -> list[str]:
    """A setting in every data set by itself, and all together."""
    some = lines[lines["bias"].isin([bias, NO_BIAS]) & lines["level"].isin([BIASES[bias].shown, 0.0])]
    parts = {str(name): summary(part) for name, part in some.groupby("data", sort=False)} | {"all": summary(some)}
    rows = []
    for method in methods:
        key = (bias, BIASES[bias].shown, LOGISTIC, method)
        rows.append([method, *(cell(part.loc[key]) for part in parts.values())])
    return _table(["method", *parts], rows)


AFFINE = (
    "steering, affine",
    "steering, affine, full covariances",
    "steering, affine, affirmative",
    "covariance matching",
    "a classifier for each group",
    "score alignment, EO",
    "reweighing",
)
FOR_LABELS = (
    NOTHING,
    "group as a feature",
    "repaired rows",
    "repaired rows, affirmative",
    "repaired rows, labels alone, affirmative",
    "repaired rows, weights alone, affirmative",
    "ideal posterior, labels alone, affirmative",
    "reweighing",
    "reweighing, group as a feature",
    "ThresholdOptimizer, EO",
    "ThresholdOptimizer, EO, group as a feature",
    "ThresholdOptimizer, DP",
    "ThresholdOptimizer, DP, group as a feature",
    "ExponentiatedGradient, EO",
    "ExponentiatedGradient, DP",
    "score alignment, EO",
    "score alignment, EO, group as a feature",
    "score alignment, DP",
    "score alignment, DP, group as a feature",
)


def write(folder: Path, lines: pd.DataFrame) -> None:
    lines = lines.assign(**{name: pd.to_numeric(lines[name]) for name in ("level", *MEASURES)})
    tried = [
        is_tried(str(method), str(bias), float(level), str(classifier))
        for bias, level, classifier, method in zip(*(lines[name] for name in SETTING), strict=True)
    ]
    lines = lines[tried]
    found = summary(lines)
    found.reset_index().to_csv(folder / "results.csv", index=False, float_format="%.4f", lineterminator="\n")
    n_repeats: Any = lines.groupby("data")["repeat"].nunique()
    refused = lines[lines["accuracy"].isna()]
    text = [
        "# Bias in, bias out",
        "",
        "    python -m benchmarks.bias",
        "",
        f"{_versions()}.",
        f"{len(n_repeats)} data sets ({', '.join(n_repeats.index)}), {_range(n_repeats)} repeats each.",
        "Groups are drawn at random; a bias is put into the rows of group 1; all methods learn from the same biased",
        "rows, and are judged on true labels of other rows, whose features are as the group delivers them.",
        "*Recovered*: share of the accuracy lost to the bias, in percent ± standard error (–: no loss that is clear).",
        "EO: equal opportunity; DP: demographic parity; affirmative: told that group 0 is not biased. Ideal posteriors",
        "are those of one classifier for all, which sees the group; *of each group's own*: and its products with all",
        'features, which is about what `posterior="by_group"` is for a linear model.',
        "[results.csv](results.csv) has all levels, classifiers and methods. "
        + (f"{len(refused)} of {len(lines)} fits were refused by the method." if len(refused) else ""),
        "",
        "![Share of the loss recovered, and gaps](bias.png)",
        "",
        "## How it is read",
        "",
        *_rule(),
        "",
        "## In short",
        "",
        *_in_short(lines, found),
        "",
        "## Recovered, logistic regression",
        "",
        *_matrix(found, LOGISTIC, _share, BIASED),
        "",
        "## True-positive gaps, logistic regression",
        "",
        *_matrix(found, LOGISTIC, _gap, list(BIASES)),
        "",
        "## Accuracy gained over nothing where nothing is biased, in points",
        "",
        *_table(
            ["method", LOGISTIC, BOOSTING],
            [
                [method, *(_points(found.loc[key], "gain", "+") if key in found.index else "" for key in keys)]
                for method in METHODS
                if method != NOTHING
                for keys in [[(NO_BIAS, 0.0, classifier, method) for classifier in (LOGISTIC, BOOSTING)]]
            ],
        ),
        "",
        "## Points of accuracy gained over nothing, gradient boosting",
        "",
        "Fewer draws, and no errors where a data set has one alone. Points lost: "
        + "; ".join(f"{b} {_points(found.loc[(b, BIASES[b].shown, BOOSTING, NOTHING)], 'lost')}" for b in BIASED)
        + ".",
        "",
        *_matrix(found, BOOSTING, lambda line: _points(line, "gain", "+"), BIASED),
        "",
        "## True-positive gaps, gradient boosting",
        "",
        *_matrix(found, BOOSTING, _gap, list(BIASES)),
        "",
        "## Measurement of continuous features, by data set",
        "",
        "Recovered. The features of biographies are continuous; the numbers of the tables are mostly integers.",
        "",
        *_by_data(lines, "measurement, numbers", AFFINE, _share),
        "",
        f"## {BIASES['label, by amount'].shown:.0%} of one group's positives flipped, by data set",
        "",
        "Accuracy in percent, and true-positive gap, on true labels.",
        "",
        *_by_data(lines, "label, by amount", FOR_LABELS, lambda line: f"{_points(line, 'accuracy')}; {_gap(line)}"),
        "",
        "## By level",
        "",
        "Logistic regression: points of accuracy gained over nothing, and true-positive gap. Of weak and strong levels",
        "there are fewer draws (`draws` in the csv file), and no errors where a data set has one alone.",
    ]
    for bias in BIASED:
        text += _by_level(found, bias)
    (folder / "README.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    picture(found, folder / "bias.png")


def _rule() -> list[str]:
    assert __doc__
    return __doc__.partition("\n\n")[2].strip().splitlines()


def _versions() -> str:
    packages = ("fairsteer", "numpy", "scipy", "scikit-learn", "fairlearn")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return f"Python {platform.python_version()}, {', '.join(versions)}"


def _range(counts: pd.Series[int]) -> str:
    return str(counts.min()) if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"


# ---- pictures


def picture(found: Any, path: Path) -> None:
    """Methods by biases at the middle level: what is recovered, and the gap that is left."""
    from matplotlib.figure import Figure

    keys = {bias: (bias, BIASES[bias].shown, LOGISTIC) for bias in BIASED}
    values = {
        name: np.array([[found[name].get((*keys[bias], method), np.nan) for bias in BIASED] for method in NAMED])
        for name in ("recovered", "tpr_gap")
    }
    lost = [100 * found.loc[(*keys[bias], NOTHING), "lost"] for bias in BIASED]
    figure = Figure(figsize=(9.5, 14), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    shares = 100 * values["recovered"]
    upper.imshow(np.clip(shares, -100, 100), cmap="RdBu", vmin=-100, vmax=100, aspect="auto")
    lower.imshow(np.clip(values["tpr_gap"], 0, 0.25), cmap="Oranges", vmin=0, vmax=0.25, aspect="auto")
    for ax, cells, form, dark in (
        (upper, shares, "{:.0f}", 60),
        (lower, values["tpr_gap"], "{:.2f}", 0.17),
    ):
        for (i, j), value in np.ndenumerate(cells):
            if not np.isnan(value):
                colour = "w" if abs(value) > dark else "k"
                ax.text(j, i, form.format(value), ha="center", va="center", fontsize=9, color=colour)
        ax.set_yticks(range(len(NAMED)), NAMED)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    points = [
        f"{bias.replace(', ', chr(10), 1)}\n({points:.1f} lost)" for bias, points in zip(BIASED, lost, strict=True)
    ]
    upper.set_xticks(range(len(BIASED)), points)
    lower.set_xticks(range(len(BIASED)), [bias.replace(", ", "\n", 1) for bias in BIASED])
    for ax in (upper, lower):
        ax.tick_params(axis="x", labelsize=6.8)
    upper.set_title("accuracy recovered, in percent of the points lost", loc="left")
    lower.set_title("gap of true-positive rates, on true labels", loc="left")
    figure.savefig(path, dpi=110)


# ---- rounds


def _rounds_summary(lines: pd.DataFrame) -> Any:
    """Estimates of every round; indexed by drift, policy and round (0: the mean of all)."""
    numbers = lines.assign(**{name: pd.to_numeric(lines[name]) for name in ("drift", "round", *MEASURES)})
    numbers = pd.concat([numbers.assign(round=0), numbers], ignore_index=True)
    found = {}
    for name in MEASURES:
        by_draw = numbers.pivot_table(index=DRAW, columns=["drift", "policy", "round"], values=name)
        found[name], found[f"{name}_error"] = pooled(by_draw)
    return pd.DataFrame(found)


def write_rounds(folder: Path, lines: pd.DataFrame) -> None:
    found = _rounds_summary(lines)
    found.reset_index().to_csv(folder / "results.csv", index=False, float_format="%.4f", lineterminator="\n")
    n_repeats = lines.groupby("data")["repeat"].nunique()
    policies = [rounds.UNBIASED, *rounds.POLICIES]
    assert rounds.__doc__
    text = [
        "# Decisions in rounds",
        "",
        "    python -m benchmarks.bias rounds",
        "",
        f"{_versions()}.",
        f"{len(n_repeats)} data sets ({', '.join(n_repeats.index)}), {_range(n_repeats)} repeats each,",
        "400 rows a round; mean ± standard error over repeats. Affine maps to group 0; logistic regression.",
        "[results.csv](results.csv) has every round.",
        "",
        *rounds.__doc__.partition("\n\n")[2].strip().splitlines(),
        "",
        "![Accuracy and gaps by round](rounds.png)",
    ]
    for drift, words in ((0, "Without drift"), (1, "With drift of group 1")):
        text += ["", f"## {words}", "", "Accuracy in percent; gap of true-positive rates.", ""]
        rows = []
        for policy in policies:
            of = {t: found.loc[(drift, policy, t)] for t in (1, 5, rounds.ROUNDS, 0)}
            rows.append([policy, *(f"{_points(line, 'accuracy')}; {_gap(line)}" for line in of.values())])
        text += _table(["policy", "round 1", "round 5", f"round {rounds.ROUNDS}", "all rounds"], rows)
    (folder / "README.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    rounds_picture(found, folder / "rounds.png")


_COLOURS = {
    rounds.UNBIASED: ("0.6", "-"),
    "nothing": ("k", "-"),
    "alignment": ("C4", "-"),
    "steering": ("C0", "-"),
    "steering, forgetting": ("C0", ":"),
    "steering by parity": ("C2", "-"),
    "steering by parity, forgetting": ("C2", ":"),
    "repair": ("C1", "-"),
    "repair, forgetting": ("C1", ":"),
}


def rounds_picture(found: Any, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    at = np.arange(1, rounds.ROUNDS + 1)
    for drift in (0, 1):
        for ax, name, scale in ((axes[0, drift], "accuracy", 100), (axes[1, drift], "tpr_gap", 1)):
            for policy, (colour, style) in _COLOURS.items():
                of = found.loc[(drift, policy)].loc[at]
                ax.plot(at, scale * of[name], style, color=colour, lw=2, label=policy)
            ax.grid(alpha=0.3)
            ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set(title="group 1 is measured differently", ylabel="accuracy, percent")
    axes[0, 1].set(title="… and drifts further away every round")
    axes[1, 0].set(xlabel="round", ylabel="gap of true-positive rates")
    axes[1, 1].set(xlabel="round")
    axes[0, 0].set_xticks(at)
    axes[1, 0].set_ylim(bottom=0)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=100)
