"""Plans and replans."""

from typing import Annotated

from fastapi import APIRouter, Query

from ipnext.api.platform import Limit, RecordId, Rooms
from ipnext.model.lifecycle import ReplanInput
from ipnext.model.plan import PlanDiff
from ipnext.model.resource import PlanInForce, PlanSummary, PlanView, ReplanRequest, ReplanStatus, RunStarted
from ipnext.store.records import PlanRecord
from ipnext.store.repository import Repository

router = APIRouter(prefix="/v1", tags=["plans"])


@router.get("/plans", summary="List plans")
def list_plans(rooms: Rooms, limit: Limit = 20) -> list[PlanSummary]:
    """Newest first. `in_force` marks the plan that placements follow."""
    with rooms.store.read() as unit:
        in_force = _in_force(unit)
        return [plan_summary(record, in_force) for record in unit.plans(limit=limit)]


@router.get("/plans/{plan_id}", summary="Read a plan")
def read_plan(plan_id: RecordId, rooms: Rooms) -> PlanView:
    """A plan with the problem it answers and its difference to the plan before it."""
    with rooms.store.read() as unit:
        record = unit.plan(plan_id)
        return PlanView(**dict(record), in_force=record.id == _in_force(unit))


@router.get("/plans/{plan_id}/diff", summary="Read a plan's difference")
def read_diff(plan_id: RecordId, rooms: Rooms) -> PlanDiff:
    """What the plan changes against the plan before it."""
    with rooms.store.read() as unit:
        return unit.plan(plan_id).diff


@router.post("/replan", status_code=202, summary="Plan the whole fleet again")
async def replan(request: ReplanRequest, rooms: Rooms) -> RunStarted:
    """Start a replan run. 503 while the workflow engine is down: nothing is recorded, ask again."""
    return await rooms.lifecycle.start_replan(ReplanInput(trigger=request.trigger))


@router.get("/replan", summary="Follow a replan run")
async def replan_status(
    rooms: Rooms,
    workflow_id: Annotated[str, Query(alias="workflowId", min_length=1, max_length=200)],
    run_id: Annotated[str, Query(alias="runId", min_length=1, max_length=100)],
) -> ReplanStatus:
    """Where a replan stands, and its result once it is done."""
    return await rooms.lifecycle.replan_status(workflow_id, run_id)


def plan_in_force(unit: Repository) -> PlanInForce | None:
    """The plan in force, or none before the first one."""
    record = unit.plan_in_force()
    return None if record is None else PlanInForce(summary=plan_summary(record, record.id), unmet=record.plan.unmet)


def plan_summary(record: PlanRecord, in_force: str | None) -> PlanSummary:
    """A plan in one line."""
    return PlanSummary(
        id=record.id,
        trigger=record.trigger,
        status=record.plan.status,
        cost_per_hour=record.plan.cost_per_hour,
        gap=record.plan.gap,
        unmet_qps=sum(unmet.qps for unmet in record.plan.unmet),
        moves=record.diff.moves,
        adopted=record.adopted,
        in_force=record.id == in_force,
        message=record.message,
        created_at=record.created_at,
    )


def _in_force(unit: Repository) -> str | None:
    record = unit.plan_in_force()
    return None if record is None else record.id
