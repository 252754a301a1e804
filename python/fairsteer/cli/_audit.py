"""The job of ``fairsteer audit``: a steering report of a file, in the terminal and as an HTML page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fairsteer.report._report import report_beside

from . import UsageError, count
from ._comparison import Contest
from ._fitting import Problem, affords_alignment, library_problems, measured_rows, quoting_warnings, read_problem
from ._options import Alignment, Leakage, Settings
from ._printing import Reporter, choice_of, comparison_values, fit_values
from ._writing import as_path, check_outputs, is_standard_output, is_stream, writing

__all__ = ["audit_file"]


def audit_file(
    settings: Settings,
    *,
    html: Path | None,
    align: Alignment | None,
    leakage: Leakage,
    confidence_level: float,
    force: bool,
    as_json: bool = False,
) -> None:
    """Print the steering report of a file, and write it as HTML.

    Parameters
    ----------
    settings : Settings
        What to fit.
    html : Path or None
        Where to write the page.
    align : {"equal_opportunity", "demographic_parity"} or None
        Whether to report on the Bayes rule with aligned scores, instead of a classifier of steered rows.
    leakage : {"none", "linear", "trees"}
        Which models try to read the group out of the rows.
    confidence_level : float
        Level of the intervals, in (0, 1).
    force : bool
        Whether a file that exists may be replaced.
    as_json : bool, default=False
        Whether one JSON object is printed instead of text.

    Raises
    ------
    UsageError
        For any input the user can put right; nothing has been written then.
    """
    if not 0 < confidence_level < 1:
        raise UsageError(f"--confidence-level must be a number between 0 and 1, not {confidence_level:g}.")
    html = as_path(html)
    report = Reporter(to_stderr=is_standard_output(html), as_json=as_json)
    if html is not None and html.suffix.lower() not in (".html", ".htm") and not is_stream(html):
        raise UsageError(f"{html} must end in .html, which is its format.")
    check_outputs([("--html", html)], sources=[settings.file], force=force)
    problem = read_problem(settings, report, steers_all=False)
    settings = problem.settings
    fitted = problem.fit(report, align)
    measured = measured_rows(problem, report)
    contest = Contest.of(fitted, align, aligns=align is not None or affords_alignment(problem, report))
    with (
        library_problems(),
        quoting_warnings(lambda _: None),
        report.progress("cross-validation", settings.folds + 2) as advance,  # and what is made of it
    ):
        result, held_out = report_beside(
            contest.methods,
            fitted,
            measured.features,
            measured.y,
            sensitive_features=measured.groups,
            pos_label=problem.pos_label,
            cv=settings.folds,
            prepare=measured.prepare,
            min_rows=settings.min_rows,
            confidence_level=confidence_level,
            leakage=leakage,
            advance=advance,
            optional=contest.optional,
            context={
                "File": _file(problem),
                "Target": settings.target,
                "Sensitive": ", ".join(settings.sensitive),
            },
        )
        comparison = contest.result(
            held_out,
            measured.features,
            measured.y,
            measured.groups,
            pos_label=problem.pos_label,
            min_rows=settings.min_rows,
            confidence_level=confidence_level,
        )
        advance(2)
    table, choice = choice_of(comparison)
    result = replace(result, tables={**result.tables, "choice": table}, choice=choice)
    report.say(result)
    if html is not None:
        report.say()
        with writing(html) as output:
            output.file.write(
                result.to_html(title=f"Steering report: {problem.table.name}").encode("utf-8", "backslashreplace")
            )
            output.commit()
        report.wrote("the report", html)
    report.result(
        "audit",
        findings=result.findings,
        **comparison_values(comparison),
        fit=fit_values(contest.steering),
        tables=result.tables,
    )


def _file(problem: Problem) -> str:
    """Say what was read, and how much of it gaps were measured on."""
    parts = [f"{problem.table.name}, {count(problem.n_rows, 'row')}"]
    if len(problem.table) == problem.n_rows:
        parts.append(f"{int((~problem.question.usable).sum()):,} lack class or group")
    if len(problem.measured.y) < len(problem.usable) or len(problem.table) < problem.n_rows:
        parts.append(f"gaps measured on {len(problem.measured.y):,}")
    return "; ".join(parts)
