"""How stages of changes are shown."""

from collections.abc import Iterable

from rich.table import Table

from ipnext.cli.output import age, rows
from ipnext.model.api.plugins import StageView
from ipnext.model.api.stages import StageProgress
from ipnext.model.lifecycle.checks import CheckResult
from ipnext.model.lifecycle.shadow import ShadowView
from ipnext.model.lifecycle.stages import activity_name
from ipnext.model.value import canonical_json


def stages_table(stages: Iterable[StageView]) -> Table:
    """One line for each stage and each refused plug-in."""
    heads = ("stage", "state", "changes", "may be left out", "limits", "source", "reason")
    return rows("", heads, map(_line, stages))


def stage_results_table(results: Iterable[CheckResult], generation: int) -> Table:
    """One line for each stage of other distributions that a generation went through."""
    lines = (
        (
            result.check.removeprefix(activity_name("")),
            "passed" if result.passed else result.reason.value,
            f"{result.duration_seconds:.1f} s",
            result.message or "-",
            canonical_json(result.evidence) if result.evidence else "-",
        )
        for result in results
    )
    return rows(f"\nstages of generation {generation}", ("stage", "outcome", "took", "message", "evidence"), lines)


def progress_table(stages: Iterable[StageProgress], change: str) -> Table:
    """One line for each stage of a change, in their order."""
    lines = (
        (
            stage.name,
            stage.state.replace("_", " "),
            f"{stage.seconds:.1f} s" if stage.seconds is not None else _since(stage),
            stage.message or "-",
            stage.source,
        )
        for stage in stages
    )
    return rows(f"\nstages of {change}", ("stage", "state", "took", "message", "source"), lines)


def shadow_table(shadow: ShadowView) -> Table:
    """Everything about the shadow of a change that runs."""
    figures = ", ".join(f"{value} {name}" for name, value in shadow.evidence.items())
    lines = (
        ("state", f"{shadow.state}, for {age(shadow.since)}"),
        ("mirrored", f"{shadow.share:.0%} of the requests in {', '.join(shadow.regions)}"),
        ("takes", shadow.takes),
        ("requests", figures or "-"),
        ("verdict so far", shadow.message or "-"),
    )
    return rows(f"\nshadow: generation {shadow.generation}", ("", ""), lines)


def _since(stage: StageProgress) -> str:
    if stage.state != "running" or stage.began_at is None:
        return "-"
    return f"{age(stage.began_at)} so far"


def _line(stage: StageView) -> tuple[str, ...]:
    changes = ", ".join(stage.changes) or "-"
    may_go = "yes" if stage.may_be_left_out else "no"
    return stage.name, stage.state, changes, may_go, _limits(stage), stage.source, stage.reason or "-"


def _limits(stage: StageView) -> str:
    """Return its time limits in seconds, and its attempts."""
    figures = {
        "in all": stage.schedule_to_close_seconds,
        "an attempt": stage.start_to_close_seconds,
        "a heartbeat": stage.heartbeat_seconds,
    }
    told = [f"{seconds:g} s {name}" for name, seconds in figures.items() if seconds is not None]
    return ", ".join([*told, *([f"{stage.attempts} attempts"] if stage.runs == "activity" else [])]) or "-"
