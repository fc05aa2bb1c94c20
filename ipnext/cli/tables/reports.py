"""How validation reports are shown."""

import json
from collections.abc import Iterator

from rich.table import Table

from ipnext.cli.output import rows
from ipnext.model.lifecycle.checks import CheckOutcome, CheckResult, ValidationReport


def report_tables(report: ValidationReport) -> Iterator[Table | str]:
    """One line for each result, and the evidence of those that have some."""
    yield f"validation of generation {report.generation} of {report.model}: {_outcome(report)}"
    heads = ("check", "subject", "outcome", "seconds", "source", "message")
    yield rows("", heads, map(_line, report.checks))
    for result in report.checks:
        if result.evidence:
            yield f"{result.check}, {result.subject}: {json.dumps(result.evidence)}"


def _outcome(report: ValidationReport) -> str:
    if report.refusals:
        return f"refused by {', '.join(report.refusals)}"
    failed = dict.fromkeys(result.check for result in report.checks if not result.passed)
    if failed:
        return f"without a result of {', '.join(failed)}"
    open_ = dict.fromkeys(each.check for each in report.checks if each.outcome is CheckOutcome.NOT_JUDGED)
    return f"passed, without a verdict of {', '.join(open_)}" if open_ else "passed"


def _line(result: CheckResult) -> tuple[str, ...]:
    seconds = f"{result.duration_seconds:.3f}" + (" (cached)" if result.cached else "")
    outcome = result.outcome.value if result.passed else f"{result.outcome} ({result.reason})"
    return (result.check, result.subject, outcome, seconds, result.source, result.message)
