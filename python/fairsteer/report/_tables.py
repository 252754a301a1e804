"""The numbers of a report, table by table, and what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairsteer._utils.input import few
from fairsteer._utils.labels import label_text
from fairsteer._utils.types import Codes, Doubles, Floats
from fairsteer.ideal import IdealDistribution, IdealOfRows
from fairsteer.metrics._intervals import Measured, MeasuredGaps, PredictedRows
from fairsteer.metrics._rates import CRITERIA
from fairsteer.transformer import FairSteeringTransformer

Table = dict[str, list[Any]]


# Below this share of a group's spread its rows count as hardly moved.
STILL = 0.05


# Above so many standard deviations rows leave the region that the data cover.
_FAR = 2.0


_NOTHING = Measured(float("nan"), float("nan"), float("nan"))


# ---- what moved


def movement_table(
    transformer: FairSteeringTransformer, values: Floats, moved: Floats, codes: Codes, weight: Doubles
) -> tuple[Doubles, Table]:
    """Displacement of every group, and of every feature in it, in standard deviations."""
    n_groups, d = len(transformer.groups_), values.shape[1]
    size = np.zeros((n_groups, d))  # root mean squared
    shift, spread = np.zeros((n_groups, d)), np.zeros((n_groups, d))
    after = np.zeros((n_groups, d))
    # Relative to the largest, so that no square overflows.
    magnitude = np.abs(values).max(axis=0).astype(np.float64)
    unit = np.where(magnitude > 0, magnitude, 1.0)
    for a in range(n_groups):
        of_group = np.flatnonzero(codes == a)
        if of_group.size == 0:
            size[a] = shift[a] = spread[a] = after[a] = np.nan
            continue
        x, u = (array[of_group].astype(np.float64) / unit for array in (values, moved))
        w = weight[of_group]
        size[a] = np.sqrt(np.average((u - x) ** 2, axis=0, weights=w))
        shift[a] = np.average(u - x, axis=0, weights=w)
        spread[a], after[a] = (
            np.sqrt(np.average((z - np.average(z, axis=0, weights=w)) ** 2, axis=0, weights=w)) for z in (x, u)
        )
    overall = (values.astype(np.float64) / unit).std(axis=0)
    constant = spread <= 1e-10
    unit = np.where(constant, np.where(overall > 1e-10, overall, np.nan), spread)
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
    measures = ["accuracy", *CRITERIA]
    table: Table = {"measure": measures}
    for when, source in (("before", before.measures), ("after", after.measures), ("change", change)):
        table |= as_columns(when, [source[name] for name in measures])
    return table


def as_columns(name: str, measured: list[Measured]) -> Table:
    return {
        name: [m.value for m in measured],
        f"{name}_lower": [m.lower for m in measured],
        f"{name}_upper": [m.upper for m in measured],
    }


def posterior_table(ideal: IdealOfRows, classes: list[Any]) -> Table:
    """Median and tenths of the posterior of every class in every group, and of the ideal one: of two classes one."""
    columns: Table = {"class": [], "group": []}
    columns |= {f"{when}{end}": [] for when in ("before", "after") for end in ("", "_lower", "_upper")}
    for k, label in enumerate(classes):
        if len(classes) == 2 and k == 0:
            continue
        for group, laws in ideal.class_laws(k).items():
            columns["class"].append(label)
            columns["group"].append(group)
            for when, values, mass in (("before", *laws[:2]), ("after", *laws[2:])):
                order = np.argsort(values, kind="stable")
                level = np.cumsum(mass[order]) / mass.sum()
                for end, at in (("", 0.5), ("_lower", 0.1), ("_upper", 0.9)):
                    place = min(int(np.searchsorted(level, at)), len(order) - 1)
                    columns[f"{when}{end}"].append(float(values[order][place]))
    return columns


def certificate_table(transformer: FairSteeringTransformer, after: MeasuredGaps | None) -> Table:
    """Bounds beside what was measured: of every subgroup against the others, of every class, and of all."""
    certificate, groups = transformer.certificate_, transformer.groups_.tolist()
    of_model = transformer.model_certificate_
    known = transformer.map_type_ != "monotone"  # which follows no model
    lines: list[tuple[Any, Any, float, float, Measured]] = []
    if transformer._class_blind:
        # One class: what is bounded given the class is bounded altogether.
        bound, by_model = (float(c.equal_opportunity[0]) for c in (certificate, of_model))
        lines.append((None, None, bound, by_model, _NOTHING if after is None else after.demographic_parity))
        return _certificate_columns(lines, transformer.strength, known=known)
    of_cells, model_cells = (
        np.minimum(1, c.total_variation + _largest_of_other_groups(c.total_variation)) for c in (certificate, of_model)
    )
    position = {} if after is None else {label: k for k, label in enumerate(after.classes.tolist())}
    for k, label in enumerate(transformer.ideal_.classes.tolist()):
        at = position.get(label)
        for a, group in enumerate(groups):
            found = _NOTHING if after is None or at is None else Measured(*(float(x[at, a]) for x in after.by_subgroup))
            lines.append((label, group, float(of_cells[k, a]), float(model_cells[k, a]), found))
        found = _NOTHING if after is None or at is None else Measured(*(float(x[at]) for x in after.by_class))
        bound, by_model = (float(c.equal_opportunity[k]) for c in (certificate, of_model))
        lines.append((label, None, bound, by_model, found))
    overall = _NOTHING if after is None else after.equalized_odds
    lines.append((None, None, certificate.equalized_odds, of_model.equalized_odds, overall))
    return _certificate_columns(lines, transformer.strength, known=known)


def _certificate_columns(
    lines: list[tuple[Any, Any, float, float, Measured]], strength: float, *, known: bool
) -> Table:
    labels, of_groups, bounds, of_model, measured = (list(column) for column in zip(*lines, strict=True))
    verdicts = [found.verdict(bound) if strength == 1 else "" for bound, found in zip(bounds, measured, strict=True)]
    return {
        "class": labels,
        "group": of_groups,
        "certificate": bounds,
        "model": of_model if known else [float("nan")] * len(lines),
        **as_columns("measured", measured),
        "verdict": verdicts,
    }


def group_table(groups: list[Any], codes: Codes, weight: Doubles) -> Table:
    """Rows of every group."""
    shares = np.bincount(codes, weight, len(groups)) / weight.sum()
    return {
        "group": groups,
        "rows": [int(n) for n in np.bincount(codes, minlength=len(groups))],
        "share": [float(x) for x in shares],
    }


def movement_columns(transformer: FairSteeringTransformer, displacement: Doubles) -> Table:
    """How far the groups move, and in how many directions they vary."""
    ranks = transformer._unshrunk(transformer.moments_).effective_rank
    return {
        "displacement": [float(x) for x in displacement],
        "effective_rank": [int(r) for r in (ranks if ranks.ndim == 1 else ranks.min(axis=0))],
    }


def subgroup_table(
    classes: list[Any],
    groups: list[Any],
    y_codes: Codes,
    codes: Codes,
    weight: Doubles,
    *,
    ideal: IdealDistribution | None,
    measured: Sequence[MeasuredGaps] = (),
) -> Table:
    """Every class in every group; `measured` before and after, of these groups."""
    cell = y_codes * len(groups) + codes
    n_cells = len(classes) * len(groups)
    counts, sums = np.bincount(cell, minlength=n_cells), np.bincount(cell, weight, n_cells) / weight.sum()
    cells = [(label, group) for label in classes for group in groups]
    table: Table = {
        "class": [label for label, _ in cells],
        "group": [group for _, group in cells],
        "rows": [int(n) for n in counts],
        "share": [float(x) for x in sums],
    }
    if ideal is not None:
        known = {label: k for k, label in enumerate(ideal.classes.tolist())}
        place = {group: a for a, group in enumerate(groups)}
        for name, of_ideal in (("ideal_share", ideal.weights), ("kl_divergence", ideal.subgroup_divergence)):
            table[name] = [
                float(of_ideal[known[label], place[group]]) if label in known else float("nan")
                for label, group in cells
            ]
    for when, source in zip(("before", "after"), measured, strict=False):
        at = {label: k for k, label in enumerate(source.classes.tolist())}
        place = {group: a for a, group in enumerate(source.groups.tolist())}
        rates = [
            Measured(*(float(x[at[label], place[group], at[label]]) for x in source.rates))
            if label in at and group in place
            else _NOTHING
            for label, group in cells
        ]
        table |= as_columns(f"recognised_{when}", rates)
    return table


def _largest_of_other_groups(values: Doubles) -> Doubles:
    if values.shape[1] == 1:
        return -values
    return np.column_stack([np.delete(values, a, axis=1).max(axis=1) for a in range(values.shape[1])])


# ---- findings


def find_sentences(tables: Mapping[str, Table], transformer: FairSteeringTransformer | None) -> list[str]:
    """Say what to know first: how gaps changed, and what makes the numbers say less than they seem to."""
    findings = []
    if "gaps" in tables:
        gaps = tables["gaps"]
        before, after = (dict(zip(gaps["measure"], gaps[when], strict=True)) for when in ("before", "after"))
        parts = zip(gaps["change"], gaps["change_lower"], gaps["change_upper"], strict=True)
        change = dict(zip(gaps["measure"], map(Measured._make, parts), strict=True))
        findings.append(verdict(before, after, change, one_group=len(tables["groups"]["group"]) == 1))
    if transformer is not None:
        findings += [_movement_finding(tables["groups"], transformer)]
        findings += [_certificate_finding(tables["certificate"], transformer)]
    return [text for text in findings if text]


def verdict(
    before: Mapping[str, float], after: Mapping[str, float], change: Mapping[str, Measured], *, one_group: bool = False
) -> str:
    """Say in one sentence of every gap whether it grew, those that did first, and whether that is more than chance.

    Parameters
    ----------
    before, after : mapping of str to float
        Accuracy and gaps.
    change : mapping of str to Measured
        What lies between them, with intervals.
    one_group : bool, default=False
        Whether there is one group, and so no gap.

    Returns
    -------
    str
        A sentence.
    """
    parts: dict[str, list[str]] = {"grew": [], "shrank": [], "stayed": []}
    for name in () if one_group else CRITERIA:
        way, clause = _clause(
            f"the {criterion_text(name)}", before[name], after[name], change[name], ("grew", "shrank")
        )
        parts[way].append(clause)
    _, accuracy = _clause("accuracy", before["accuracy"], after["accuracy"], change["accuracy"], ("rose", "fell"))
    sentence = "; ".join([*parts["grew"], *parts["shrank"], *parts["stayed"], accuracy])
    return f"{sentence[0].upper()}{sentence[1:]}."


def _clause(what: str, before: float, after: float, change: Measured, words: tuple[str, str]) -> tuple[str, str]:
    if math.isnan(before) or math.isnan(after):
        return "stayed", f"{what} is not known"
    if f"{before:.3f}" == f"{after:.3f}":
        return "stayed", f"{what} stayed at {after:.3f}"
    chance = " (within chance)" if change.lower <= 0 <= change.upper else ""
    word = words[after < before]
    return word, f"{what} {word} from {before:.3f} to {after:.3f}{chance}"


def criterion_text(measure: str) -> str:
    """Name of a gap, or of accuracy, in words."""
    text = measure.replace("_", " ")
    return f"{text} gap" if measure in CRITERIA else text


def _movement_finding(groups: Table, transformer: FairSteeringTransformer) -> str:
    if len(transformer.groups_) == 1:
        return "There is one group, so nothing is steered."
    farthest = float(np.nanmax(np.array(groups["displacement"]), initial=0.0))
    if farthest < STILL:
        return (
            f"The map is nearly the identity: no group moves by more than {farthest:.2g} of its spread. Gaps that "
            "remain do not come from means and covariances that differ, as the model has them."
        )
    if farthest > _FAR:
        far = [label_text(group) for group, x in zip(groups["group"], groups["displacement"], strict=True) if x > _FAR]
        return (
            f"Rows of {few(far, 5)} move by up to {farthest:.1f} standard deviations: steered rows may lie where there "
            "are no rows to learn from. Lower strength, or look at the features that move most."
        )
    return ""


def _certificate_finding(certificate: Table, transformer: FairSteeringTransformer) -> str:
    moments = transformer._merged(transformer.moments_)
    behind = moments.sizes if transformer.covariance == "full" else moments.sizes.sum(axis=0)
    fewest, d = float(behind[behind > 0].min(initial=np.inf)), moments.n_features
    if moments.covariance != "diagonal" and fewest < d:
        return (
            f"Some covariance of {d} features comes from {fewest:.0f} rows: the fitted Gaussians, and with them the "
            "certificate, say next to nothing of other rows. What counts is what was measured."
        )
    if transformer.strength < 1:
        return (
            f"The certificate is for fully steered rows. At strength {transformer.strength:g} it says nothing of "
            "the measured gaps."
        )
    contradicted = [*zip(*(certificate[name] for name in ("class", "group", "verdict")), strict=True)]
    broken = [
        "all classes" if label is None else f"class {label_text(label)}"
        for label, group, what in contradicted
        if group is None and what == "contradicted"
    ]
    if broken:
        return (
            f"The measured gap contradicts the certificate for {few(broken, 5)}, by more than chance: the rows do not "
            "follow the Gaussians that it speaks of."
        )
    if all(bound >= 1 for bound in certificate["certificate"]):
        return "The certificate says nothing here: all bounds are 1."
    lower, of_model = certificate["measured_lower"][-1], certificate["model"][-1]
    if lower > of_model:
        return (
            f"The model alone would have promised a gap of at most {of_model:.3f}, which the measured one contradicts; "
            "the certificate, of the subgroups' own Gaussians, stands."
        )
    return ""
