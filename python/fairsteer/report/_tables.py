"""The numbers of a report, table by table, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fairsteer._utils.input import few
from fairsteer._utils.types import Codes, Doubles, Floats
from fairsteer.metrics._intervals import GAPS, Measured, MeasuredGaps, PredictedRows
from fairsteer.transformer import FairSteeringTransformer

Table = dict[str, list[Any]]


class SteeredRows(NamedTuple):
    """Rows as they are and as a transformer moves them, with its codes of classes and groups."""

    values: Floats
    moved: Floats
    y_codes: Codes
    codes: Codes
    weight: Doubles


_NOTHING = Measured(float("nan"), float("nan"), float("nan"))


# ---- what moved


def movement_table(transformer: FairSteeringTransformer, rows: SteeredRows) -> tuple[Doubles, Table]:
    """Displacement of every group, and of every feature in it, in standard deviations."""
    n_groups, d = len(transformer.groups_), rows.values.shape[1]
    size = np.zeros((n_groups, d))  # root mean squared
    shift, spread = np.zeros((n_groups, d)), np.zeros((n_groups, d))
    after = np.zeros((n_groups, d))
    for a in range(n_groups):
        of_group = np.flatnonzero(rows.codes == a)
        if of_group.size == 0:
            size[a] = shift[a] = spread[a] = after[a] = np.nan
            continue
        x, u, w = (array[of_group].astype(np.float64) for array in (rows.values, rows.moved, rows.weight))
        size[a] = np.sqrt(np.average((u - x) ** 2, axis=0, weights=w))
        shift[a] = np.average(u - x, axis=0, weights=w)
        spread[a], after[a] = (
            np.sqrt(np.average((z - np.average(z, axis=0, weights=w)) ** 2, axis=0, weights=w)) for z in (x, u)
        )
    values = rows.values.astype(np.float64)
    overall, magnitude = values.std(axis=0), np.abs(values).max(axis=0)
    constant = spread <= 1e-10 * magnitude
    unit = np.where(constant, np.where(overall > 1e-10 * magnitude, overall, np.nan), spread)
    with np.errstate(invalid="ignore"):
        displacement, mean_shift = size / unit, shift / unit
        scale = np.where(constant, np.nan, after / unit)
    # A feature that is constant in all rows has no unit; it cannot move.
    known = np.isfinite(displacement)
    per_group = np.sqrt(
        np.divide(
            np.where(known, displacement**2, 0).sum(axis=1),
            known.sum(axis=1),
            where=known.any(axis=1),
            out=np.full(n_groups, np.nan),
        )
    )
    order = np.argsort(-np.nan_to_num(displacement), axis=None, kind="stable")
    names, groups = transformer._feature_names(), transformer.groups_.tolist()
    pairs = [divmod(int(cell), d) for cell in order]
    return per_group, {
        "feature": [str(names[j]) for _, j in pairs],
        "group": [groups[a] for a, _ in pairs],
        "mean_shift": [float(mean_shift[a, j]) for a, j in pairs],
        "scale": [float(scale[a, j]) for a, j in pairs],
        "displacement": [float(displacement[a, j]) for a, j in pairs],
    }


# ---- tables


def gap_table(
    predicted: PredictedRows, confidence_level: float, min_rows: int, n_resamples: int, random_state: int
) -> Table:
    before, after = (
        predicted.measure(c, confidence_level, "bootstrap", min_rows, n_resamples, random_state) for c in (0, 1)
    )
    change = predicted.changes(confidence_level, min_rows, n_resamples, random_state)
    measures = ["accuracy", *GAPS]
    table: Table = {"measure": measures}
    for when, source in (("before", vars(before)), ("after", vars(after)), ("change", change)):
        table |= as_columns(when, [source[name] for name in measures])
    return table


def as_columns(name: str, measured: list[Measured]) -> Table:
    return {
        name: [m.value for m in measured],
        f"{name}_lower": [m.lower for m in measured],
        f"{name}_upper": [m.upper for m in measured],
    }


def certificate_table(transformer: FairSteeringTransformer, after: MeasuredGaps | None) -> Table:
    """Bounds of the model beside what was measured: of every subgroup against the others, every class, and all."""
    certificate, groups = transformer.certificate_, transformer.groups_.tolist()
    if transformer._class_blind:
        # One class: what is bounded given the class is bounded altogether.
        model, measured = (
            [float(certificate.equal_opportunity[0])],
            [_NOTHING if after is None else after.demographic_parity],
        )
        return {"class": [None], "group": [None], "model": model, **as_columns("measured", measured)}
    bounds = certificate.total_variation
    of_cells = np.minimum(1, bounds + _largest_of_other_groups(bounds))
    position = {} if after is None else {label: k for k, label in enumerate(after.classes.tolist())}
    lines: list[tuple[Any, Any, float, Measured]] = []
    for k, label in enumerate(transformer.ideal_.classes.tolist()):
        at = position.get(label)
        for a, group in enumerate(groups):
            found = _NOTHING if after is None else Measured(*(float(x[at, a]) for x in after.by_cell))
            lines.append((label, group, float(of_cells[k, a]), found))
        found = _NOTHING if after is None else Measured(*(float(x[at]) for x in after.by_class))
        lines.append((label, None, float(certificate.equal_opportunity[k]), found))
    lines.append((None, None, certificate.equalized_odds, _NOTHING if after is None else after.equalized_odds))
    labels, of_groups, model, measured = (list(column) for column in zip(*lines, strict=True))
    return {"class": labels, "group": of_groups, "model": model, **as_columns("measured", measured)}


def group_table(transformer: FairSteeringTransformer, rows: SteeredRows, displacement: Doubles) -> Table:
    moments, groups = transformer._merged(transformer.moments_), transformer.groups_.tolist()
    ranks = moments.effective_rank
    counts = np.bincount(rows.codes, minlength=len(groups))
    shares = np.bincount(rows.codes, rows.weight, len(groups)) / rows.weight.sum()
    return {
        "group": groups,
        "rows": [int(n) for n in counts],
        "share": [float(x) for x in shares],
        "displacement": [float(x) for x in displacement],
        "effective_rank": [int(r) for r in (ranks if ranks.ndim == 1 else ranks.min(axis=0))],
    }


def cell_table(
    transformer: FairSteeringTransformer, rows: SteeredRows, before: MeasuredGaps | None, after: MeasuredGaps | None
) -> Table:
    """Every class in every group."""
    ideal = transformer.ideal_
    classes, groups = transformer.classes_.tolist(), transformer.groups_.tolist()
    known = {label: k for k, label in enumerate(ideal.classes.tolist())}
    shape = len(classes), len(groups)
    cell = rows.y_codes * len(groups) + rows.codes
    counts = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    shares = np.bincount(cell, rows.weight, shape[0] * shape[1]).reshape(shape) / rows.weight.sum()
    table: Table = {name: [] for name in ("class", "group", "rows", "share", "ideal_share", "kl_divergence")}
    recognised: dict[str, list[Measured]] = {"recognised_before": [], "recognised_after": []}
    for k, label in enumerate(classes):
        for a, group in enumerate(groups):
            seen = known.get(label)
            table["class"].append(label)
            table["group"].append(group)
            table["rows"].append(int(counts[k, a]))
            table["share"].append(float(shares[k, a]))
            for name, of_ideal in (("ideal_share", ideal.weights), ("kl_divergence", ideal.cell_divergence)):
                table[name].append(float("nan") if seen is None else float(of_ideal[seen, a]))
            if before is None or after is None or transformer._class_blind:
                continue
            for when, source in (("before", before), ("after", after)):
                recognised[f"recognised_{when}"].append(Measured(*(float(x[k, a, k]) for x in source.rates)))
    for name, column in recognised.items():
        if column:
            table |= as_columns(name, column)
    return table


def _largest_of_other_groups(values: Doubles) -> Doubles:
    if values.shape[1] == 1:
        return -values
    return np.column_stack([np.delete(values, a, axis=1).max(axis=1) for a in range(values.shape[1])])


# ---- findings


def find_sentences(
    transformer: FairSteeringTransformer, tables: Mapping[str, Table], displacement: Doubles, *, nearly_identity: bool
) -> list[str]:
    findings = []
    farthest = float(np.nanmax(displacement, initial=0.0))
    if len(transformer.groups_) == 1:
        findings.append("There is one group, so nothing is steered.")
    elif nearly_identity:
        findings.append(
            f"The map is nearly the identity: no group moves by more than {farthest:.2g} of its spread. Gaps that "
            "remain do not come from means and covariances that differ."
        )
    if "gaps" in tables:
        findings += _gap_findings(tables["gaps"])
    certificate = tables["certificate"]
    if transformer.strength < 1:
        findings.append(
            f"The model's bounds are for fully steered rows. At strength {transformer.strength:g} they say nothing of "
            "the measured gaps."
        )
    else:
        broken = [
            "all classes" if label is None else f"class {label}"
            for label, group, bound, lower in zip(
                *(certificate[column] for column in ("class", "group", "model", "measured_lower")), strict=True
            )
            if group is None and lower > bound
        ]
        if broken:
            findings.append(
                f"The measured gap exceeds the model's bound for {few(broken, 5)}, by more than chance: the rows do "
                "not follow the fitted Gaussians."
            )
        elif all(bound >= 1 for bound in certificate["model"]):
            findings.append("The model's bounds say nothing here: all are 1.")
    return findings


def _gap_findings(gaps: Table) -> list[str]:
    """Say which changes are more than chance."""
    down, up = [], []
    for name, lower, upper in zip(gaps["measure"][1:], gaps["change_lower"][1:], gaps["change_upper"][1:], strict=True):
        if upper < 0:
            down.append(name.replace("_", " "))
        elif lower > 0:
            up.append(name.replace("_", " "))
    findings = []
    if down:
        findings.append(f"Steering lowers the gap in {_listed(down)}, by more than chance.")
    if up:
        findings.append(f"Steering raises the gap in {_listed(up)}, by more than chance.")
    if not down and not up:
        findings.append("No gap of the classifier changes by more than chance.")
    if gaps["change_upper"][0] < 0:
        findings.append("Accuracy falls, by more than chance.")
    elif gaps["change_lower"][0] > 0:
        findings.append("Accuracy rises, by more than chance.")
    return findings


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
