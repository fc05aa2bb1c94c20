"""What the store and Temporal say when a run is over, as plain data for the history."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from ipnext import names
from ipnext.store.records import ModelRecord
from ipnext.store.repository import Repository
from ipnext.store.store import Store
from ipnext.temporal import connect
from tests.nemesis.checks.spans import Span

ALL = 10_000
MOVES = frozenset({"ensure_capacity", "shift_traffic"})


def store_dump(state: Path) -> dict[str, Any]:
    """Changes, generations and reports of every model, and the replans."""
    store = Store.open(f"sqlite:///{state / 'ipnext.db'}")
    try:
        with store.read() as repository:
            models = {record.name: _model(repository, record) for record in repository.models()}
            replans = [
                {"id": r.id, "state": r.state.value, "final": r.state.final} for r in repository.replans(limit=1000)
            ]
            return {"models": models, "replans": replans}
    finally:
        store.close()


def _model(repository: Repository, record: ModelRecord) -> dict[str, Any]:
    model = record.name
    generations = repository.generations(model)
    reports = {g.number: repository.report(model, g.number) for g in generations}
    return {
        "serving": record.serving_generation,
        "retired": record.retired,
        "held": [str(deployment.key) for deployment in repository.deployments(model)],
        "changes": [
            {
                "id": change.id,
                "model": change.model,
                "kind": change.kind.value,
                "sequence": change.sequence,
                "generation": change.generation,
                "state": change.state.value,
                "message": change.message,
                "created": change.created_at.timestamp(),
                "finished": change.finished_at.timestamp() if change.finished_at else None,
            }
            for change in repository.changes(model, limit=1000)
        ],
        "generations": {str(g.number): dict(g.snapshots) for g in generations},
        "digests": {f"{s.part}/{s.number}": s.digest for s in repository.snapshots(model)},
        "validated": [number for number, report in reports.items() if report is not None and report.refusal is None],
    }


async def temporal_dump(address: str, looked_at: Sequence[Span] = ()) -> list[dict[str, Any]]:
    """Every run that Temporal knows, with its status, stage and times (seconds since 1970).

    Transitions that overlap one of the spans also tell their steps: those that add capacity or move traffic.
    """
    client = await connect(address=address)
    found = []
    async for run in client.list_workflows(page_size=ALL):
        stage = run.search_attributes.get(names.STAGE_ATTRIBUTE)
        status = run.status.name if run.status else "UNKNOWN"
        told = {
            "id": run.id,
            "run": run.run_id,
            "type": run.workflow_type,
            "status": status,
            "stage": stage[0] if stage else None,
        }
        begun, closed = run.start_time.timestamp(), run.close_time.timestamp() if run.close_time else None
        told |= {"begun": begun, "closed": closed, "events": run.history_length}
        if run.workflow_type == names.TRANSITION_WORKFLOW and _overlaps(looked_at, begun, closed):
            handle = client.get_workflow_handle(run.id, run_id=run.run_id)
            told["steps"] = [step async for step in _steps(handle.fetch_history_events())]
        found.append(told)
    return found


def _overlaps(spans: Sequence[Span], begun: float, closed: float | None) -> bool:
    return any(begun < span.end and (closed is None or closed > span.begin) for span in spans)


async def _steps(events: AsyncIterator[HistoryEvent]) -> AsyncIterator[list[Any]]:
    """When each step that adds or moves was scheduled: activity, seconds since 1970, whether it leads back."""
    async for event in events:
        scheduled = event.activity_task_scheduled_event_attributes
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED and scheduled.activity_type.name in MOVES:
            wave = json.loads(scheduled.input.payloads[0].data)
            yield [scheduled.activity_type.name, event.event_time.ToMicroseconds() / 1e6, bool(wave.get("back"))]
