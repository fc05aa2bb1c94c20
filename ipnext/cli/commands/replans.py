"""Plans and replans on the command line: `replan`, and what `get` and `describe` show of them."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from ipnext.cli.command import Timeout, Wait
from ipnext.cli.output import Form, Output, age, number, rows, say, write
from ipnext.cli.session import client_of
from ipnext.model.api.resources import MovesView, PlanSummary, ReplanView
from ipnext.model.lifecycle.replans.moves import MoverAction, ReplanProgress
from ipnext.model.lifecycle.replans.replan import Replan
from ipnext.model.planning.plan import PlanDiff

MOST_LINES = 40
"""Lines of a difference that a table shows."""


class MoveRequest(StrEnum):
    """What may be asked of the moves of replans."""

    STATUS = "status"
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"


STEERS: Mapping[MoveRequest, MoverAction] = {
    MoveRequest.PAUSE: "pause",
    MoveRequest.RESUME: "resume",
    MoveRequest.CANCEL: "cancel",
}


def replan(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    context: typer.Context,
    action: Annotated[
        MoveRequest | None,
        typer.Argument(help="Of the moves: show them, pause them, go on, or end the replan. Without: a new replan."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compute and store a plan, show what it would change; move nothing.")
    ] = False,
    max_moves: Annotated[
        int | None, typer.Option("--max-moves", min=0, help="Replicas started at most; else the platform's setting.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why it is paused or cancelled.", show_default=False)] = "",
    wait: Wait = False,
    timeout: Timeout = 600.0,
    output: Output = Form.TABLE,
) -> None:
    """Plan the whole fleet again and move what the new plan moves. A dry run is always waited for."""
    client = client_of(context)
    if action is MoveRequest.STATUS:
        status = client.moves()
        write(status, output, lambda: moves_tables(status))
        return
    if action is not None:
        progress = client.steer_replan(STEERS[action], reason=reason)
        write(progress, output, lambda: progress_tables(progress) if progress.total else moves_tables(client.moves()))
        return
    found = client.replan(dry_run=dry_run, max_moves=max_moves)
    if not (wait or dry_run):
        say(f"{replan_line(found)}; follow it with `ipnext get replans`")
        write(found, output, lambda: replans_table([found]))
        return
    found = client.wait_replan(found.id, timeout, on_update=lambda now: say(replan_line(now)))
    tables: list[Table | str] = [replans_table([found])]
    if dry_run and found.plan_id is not None:
        tables += diff_tables(client.plan_diff(found.plan_id))
    write(found, output, lambda: tables)


def replan_line(found: Replan) -> str:
    """`replan 3f2a (manual): planning`."""
    told = f": {found.message}" if found.message else ""
    return f"replan {found.id} ({found.trigger}) is {found.state.value.replace('_', ' ')}{told}"


def replans_table(replans: Iterable[ReplanView]) -> Table:
    """One line for each replan."""
    heads = ("replan", "trigger", "state", "plan", "moves", "models", "moved", "age", "message")
    lines = (
        (
            found.id,
            found.trigger + (" (dry run)" if found.dry_run else ""),
            found.state.value,
            found.plan_id or "",
            found.moves,
            _some(found.models, found.progress.total if found.progress else len(found.models)),
            _format_progress(found.progress),
            age(found.created_at),
            found.message,
        )
        for found in replans
    )
    return rows("", heads, lines)


def replan_tables(found: ReplanView) -> Iterable[Table | str]:
    """All of one replan: what asked for it, and how far it is with its models."""
    yield replan_line(found)
    if found.plan_id is not None:
        yield f"plan {found.plan_id}, {found.moves} replicas started"
    if found.run_url is not None:
        yield found.run_url
    if found.progress is not None:
        yield from progress_tables(found.progress)


def progress_tables(progress: ReplanProgress) -> Iterable[Table | str]:
    """How far a replan is with its models, and which ones did not come through."""
    lines = (
        ("moved", f"{progress.moved} of {progress.total} ({progress.percent:.0f} %), {progress.per_minute:g} a minute"),
        ("moving now", f"{progress.busy}: {_some(progress.moving_models, progress.busy)}"),
        ("held (frozen or paused)", f"{progress.held}: {_some(progress.held_models, progress.held)}"),
        ("waiting", progress.waiting),
        ("paused", progress.paused or "no"),
    )
    yield rows("\nmodels", ("", ""), lines)
    if progress.failed:
        failed = ((trouble.model, trouble.message) for trouble in progress.troubles)
        more = progress.failed - len(progress.troubles)
        yield rows(
            "\ndid not come through" + (f" (the newest; {more} more)" if more > 0 else ""), ("model", "why"), failed
        )


def moves_tables(found: MovesView) -> Iterable[Table | str]:
    """Tabulate the pause in force, and the replan that moves models now."""
    if found.pause is None:
        yield "moves go on"
    else:
        yield (
            f"moves are paused since {age(found.pause.paused_at)}: {found.pause.reason}; `ipnext replan resume` ends it"
        )
    yield f"{found.replans_waiting} replans wait"
    if found.replan is not None:
        yield from replan_tables(found.replan)


def plans_table(plans: Iterable[PlanSummary]) -> Table:
    """One line for each plan, replans that found none among them; a star marks the one adopted last."""
    heads = (
        "plan",
        "in force",
        "of",
        "outcome",
        "$/h",
        "gap",
        "unmet/s",
        "moves",
        "solve s",
        "trigger",
        "age",
        "message",
    )
    return rows("", heads, (_plan_line(plan) for plan in plans))


def plan_tables(plan: PlanSummary, change: PlanDiff | None) -> Iterable[Table | str]:
    """All of one plan: where it comes from, how good it is, what it took, what it changes."""
    force = ", in force" if plan.in_force else ""
    yield f"plan {plan.id}: {plan.outcome.replace('_', ' ')}{force}, of {_scope(plan)}, {age(plan.created_at)} old"
    yield f"asked by {plan.trigger}; made from {plan.based_on or 'no plan'}"
    if plan.message:
        yield f"{plan.reason.value}: {plan.message}"
    if plan.outcome == "failed":
        return
    yield rows("\nquality", ("figure", "value"), _quality(plan))
    yield rows("\nsearch", ("figure", "value"), _search(plan))
    if change is None:
        yield "\nonly this line is kept of so old a plan"
    else:
        yield from diff_tables(change)


def diff_tables(change: PlanDiff) -> Iterable[Table | str]:
    """Tabulate the changes of a plan against the plan before it."""
    yield (
        f"\n{change.moves} replicas started; {number(change.cost_per_hour_before)} -> "
        f"{number(change.cost_per_hour_after)} $/h"
    )
    if change.empty:
        yield "nothing changes"
        return
    counts = [(c.model, c.part, c.region, c.hardware, c.before, c.after) for c in change.replicas]
    yield rows("\nreplicas", ("model", "part", "region", "hardware", "before", "after"), counts[:MOST_LINES])
    shares = [(c.model, c.origin, c.to, f"{c.before:.1%}", f"{c.after:.1%}") for c in change.traffic]
    yield rows("\ntraffic", ("model", "users in", "served in", "before", "after"), shares[:MOST_LINES])
    more = max(0, len(counts) - MOST_LINES) + max(0, len(shares) - MOST_LINES)
    if more:
        yield f"and {more} lines more; all of them with -o json"


def _plan_line(plan: PlanSummary) -> tuple[object, ...]:
    found = plan.outcome != "failed"
    return (
        plan.id,
        "*" if plan.in_force else "",
        _scope(plan),
        plan.outcome.replace("_", " "),
        number(plan.cost_per_hour) if found else "-",
        f"{plan.gap:.2%}" if found else "-",
        number(plan.unmet_qps) if found else "-",
        plan.moves if found else "-",
        "-" if plan.wall_seconds is None else f"{plan.wall_seconds:.1f}",
        plan.trigger,
        age(plan.created_at),
        plan.message if found else f"{plan.reason.value}: {plan.message}",
    )


def _scope(plan: PlanSummary) -> str:
    return plan.scope or "the fleet"


def _quality(plan: PlanSummary) -> Iterable[tuple[str, str]]:
    yield "status", plan.status
    yield "objective, $/h", number(plan.objective)
    yield "bound, $/h", number(plan.bound)
    yield "the bound covers", plan.bound_covers
    yield "gap", f"{plan.gap:.2%}"
    yield "cost of the whole fleet, $/h", number(plan.cost_per_hour)
    yield "unmet demand of the whole fleet, requests or tokens/s", number(plan.unmet_qps)
    yield "replicas started", str(plan.moves)


def _search(plan: PlanSummary) -> Iterable[tuple[str, str]]:
    yield "method", plan.method
    yield "seconds", "-" if plan.wall_seconds is None else f"{plan.wall_seconds:.2f}"
    yield "CPU seconds", "-" if plan.cpu_seconds is None else f"{plan.cpu_seconds:.2f}"
    yield "most memory", "-" if plan.peak_memory_bytes is None else f"{plan.peak_memory_bytes / 2**20:.0f} MiB"
    yield "SHA-256 of the problem", plan.input_digest


def _format_progress(progress: ReplanProgress | None) -> str:
    if progress is None:
        return ""
    failed = f", {progress.failed} failed" if progress.failed else ""
    paused = ", paused" if progress.paused else ""
    return f"{progress.moved}/{progress.total}{failed}{paused}"


def _some(models: Sequence[str], count: int) -> str:
    """Name the first three of `count` models."""
    more = count - len(models[:3])
    return ",".join(models[:3]) + (f" and {more} more" if more > 0 else "")
