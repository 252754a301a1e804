"""The job of ``fairsteer audit``: a steering report of a file, in the terminal and as an HTML page."""

from __future__ import annotations

from pathlib import Path

from fairsteer.report import steering_report

from . import UsageError, count
from ._comparison import compare
from ._fitting import library_problems, quoting_warnings, read_problem
from ._options import Alignment, Leakage, Settings
from ._printing import Reporter
from ._writing import as_path, check_outputs, is_standard_output, is_stream, writing

__all__ = ["audit_file"]


def audit_file(
    settings: Settings,
    *,
    html: Path | None,
    align: Alignment | None,
    leakage: Leakage,
    confidence: float,
    force: bool,
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
    confidence : float
        Level of the intervals, in (0, 1).
    force : bool
        Whether a file that exists may be replaced.

    Raises
    ------
    UsageError
        For any input the user can put right; nothing has been written then.
    """
    if not 0 < confidence < 1:
        raise UsageError(f"--confidence must be a number between 0 and 1, not {confidence:g}.")
    html = as_path(html)
    report = Reporter(to_stderr=is_standard_output(html))
    if html is not None and html.suffix.lower() not in (".html", ".htm") and not is_stream(html):
        raise UsageError(f"{html} must end in .html, which is its format.")
    check_outputs([("--html", html)], sources=[settings.file], force=force)
    problem = read_problem(settings, report, steers_all=False)
    settings = problem.settings
    left_out = int((~problem.question.usable).sum())
    fitted = problem.fit(report, align)
    with library_problems(), quoting_warnings(lambda _: None), report.busy("cross-validation"):
        result = steering_report(
            fitted,
            problem.features,
            problem.question.y,
            sensitive_features=problem.groups,
            pos_label=problem.positive,
            cv=settings.folds,
            prepare=problem.prepare,
            min_rows=settings.min_rows,
            confidence_level=confidence,
            leakage=leakage,
            context={
                "File": f"{problem.table.name}, {count(len(problem.table), 'row')}; {left_out:,} lack class or group",
                "Target": settings.target,
                "Sensitive": ", ".join(settings.sensitive),
            },
        )
        choice = compare(
            getattr(fitted, "steering_", fitted),
            problem.features,
            problem.question.y,
            problem.groups,
            positive=problem.positive,
            folds=settings.folds,
            min_rows=settings.min_rows,
            alignment=align,
            prepare=problem.prepare,
        )
    report.say(result)
    report.say()
    report.choice(choice)
    if html is not None:
        with writing(html) as output:
            output.file.write(
                result.to_html(title=f"Steering report: {problem.table.name}").encode("utf-8", "backslashreplace")
            )
            output.commit()
        report.say(f"\nWrote the report to {'standard output' if is_standard_output(html) else html.name}.")
