"""Rest: once all faults have ended, every region has its desired state."""

from typing import Any

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from tests.workflows.simulation.journal import UNDER_WAY
from tests.workflows.simulation.runs import reconciliation

from .report import Report, Violated


def check_rest(world: Any, report: Report, model: str) -> None:
    """What every region has is what the store wants, and users are answered by the generation that serves."""
    record = world.journal.records[model]
    if any(moving.state in UNDER_WAY for moving in record.transitions):
        raise Violated("rest transition", f"a transition of {model} is open for ever")
    _check_parts(model, record)
    for region in world.infra.regions.values():
        sent = {s.generation for s in region.routes.get(model, (0, ()))[1] if s.fraction > 0}
        if sent - {record.serving}:
            told = f"{region.name} sends {model} to generation {sorted(sent)}; generation {record.serving} serves"
            report.breach("rest supply" if _waits_for_supply(record) else "rest generation", told)
        if told := reconciliation.describe_difference(world, region.name, model):
            raise Violated("rest region", f"{region.name} is not as the store wants it: {told}")


def _check_parts(model: str, record: Any) -> None:
    """What runs, and what supply is kept for, are the parts of the generation that serves."""
    if record.serving is None or (record.changes and _waits_for_supply(record)):
        return
    parts = set(record.generations[record.serving].parts)
    running = {key.part for key, found in record.deployments.items() if found.replicas}
    placed = {row.part for row in record.placement.replicas if row.count} if record.placement else set()
    for found, what in ((running, "runs"), (placed, "is placed")):
        if found - parts:
            told = f"{', '.join(sorted(found - parts))} of {model} {what}; generation {record.serving} has {parts}"
            raise Violated("rest parts", told)


def _waits_for_supply(record: Any) -> bool:
    """Whether the last change is a repair that the planner refused.

    The surge is not there, and the dip would be too large.
    """
    last = record.changes[-1]
    return last.kind is ChangeKind.REPAIR and last.state is ChangeState.REFUSED and last.message.startswith("supply: ")
