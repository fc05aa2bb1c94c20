"""Plans and replans."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Query, Response

from ipnext.api.authorization.audit_entries import record_asked
from ipnext.api.authorization.caller import Visible
from ipnext.api.authorization.endpoint_permission import may, may_read_plan
from ipnext.api.dependencies import After, IdempotencyKey, Limit, RecordId, Rooms, view_page
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.requests.identifiers import client_id
from ipnext.api.services.hidden_fields import is_replan_shown, redact_moves, redact_plan, redact_replan
from ipnext.api.workflow_engine.port import replan_view
from ipnext.errors import NotFound, Unavailable
from ipnext.model.api.resources import (
    ListPage,
    MovesView,
    PlanInForce,
    PlanSummary,
    PlanView,
    ReplanRequest,
    ReplanView,
)
from ipnext.model.lifecycle.replans.moves import MoverAsked, ReplanProgress, SteerRequest
from ipnext.model.planning.plan import PlanDiff
from ipnext.store.records import PlanEntry
from ipnext.store.repository import Repository
from ipnext.store.store import Store

BY_HAND = "by hand"
"""Default reason of a pause."""

MOVES = ("Moves", "")
"""Object of the steering in the audit."""

NOTES_LOOKED_AT = 50
"""Newest events of the fleet among which a repeated request is searched."""

router = APIRouter(prefix="/v1", tags=["plans"], route_class=GuardedRoute)

UNMET = 20
"""Models with unserved demand that the plan in force names, those with the most."""


@router.get("/plans", dependencies=[may("models.list")], summary="List plans")
def list_plans(
    rooms: Rooms,
    visible: Visible,
    limit: Limit = 20,
    fleet_only: Annotated[
        bool, Query(alias="fleetOnly", description="Only plans of the whole fleet, and replans that found none.")
    ] = False,
    after: After = None,
) -> ListPage[PlanSummary]:
    """Newest first, replans that failed among them. `in_force` marks the plan that was adopted last."""
    with rooms.store.read(visible) as unit:
        in_force = unit.plan_in_force_id()
        page = unit.plan_page(after=after, limit=limit, fleet_only=fleet_only)
    return view_page(page.map(lambda entry: redact_plan(plan_summary(entry, in_force), visible)))


@router.get("/plans/{plan_id}", dependencies=[may_read_plan()], summary="Read a plan", response_model=PlanView)
def read_plan(plan_id: RecordId, rooms: Rooms, visible: Visible) -> Response:
    """Read a plan with its problem and its difference to the plan before it.

    404 if only its summary is kept.
    """
    with rooms.store.read() as unit:
        summary = redact_plan(plan_summary(unit.plan_entry(plan_id), unit.plan_in_force_id()), visible)
        found = unit.plan_documents(plan_id)
    head = summary.model_dump_json(by_alias=True).removesuffix("}")
    text = f'{head},"problem":{found.problem},"plan":{found.plan},"diff":{found.diff}}}'
    return Response(text, media_type="application/json")


@router.get("/plans/{plan_id}/summary", dependencies=[may_read_plan()], summary="Read a plan's line")
def read_summary(plan_id: RecordId, rooms: Rooms, visible: Visible) -> PlanSummary:
    """Read a plan without its documents, which may be megabytes."""
    with rooms.store.read() as unit:
        return redact_plan(plan_summary(unit.plan_entry(plan_id), unit.plan_in_force_id()), visible)


@router.get("/plans/{plan_id}/diff", dependencies=[may_read_plan()], summary="Read a plan's difference")
def read_diff(plan_id: RecordId, rooms: Rooms) -> PlanDiff:
    """Read the changes of a plan against the plan before it; 404 if only its summary is kept."""
    with rooms.store.read() as unit:
        return unit.plan_diff(plan_id)


@router.post("/replans", dependencies=[may("replans.ask")], status_code=202, summary="Plan the whole fleet again")
def ask_replan(request: ReplanRequest, rooms: Rooms) -> ReplanView:
    """Record a replan: it is carried out, even while the workflow engine is down. The same `replanId` is one replan.

    Replans that are recorded before one begins to plan share its plan; those that come later get the next.
    """
    replan_id = client_id("replanId", request.replan_id)
    with rooms.store.begin() as unit:
        replan = unit.add_replan(replan_id, request.trigger, dry_run=request.dry_run, max_moves=request.max_moves)
        unit.note_audit(object=("Replan", replan_id), after=request, change_id=replan_id)
    rooms.outbox.wake()
    return replan_view(replan, rooms.lifecycle)


@router.post(
    "/replans/steer",
    dependencies=[may("replans.ask")],
    summary="Pause or resume the moves of replans, or cancel the replan that runs",
)
async def steer_replan(request: SteerRequest, rooms: Rooms, key: IdempotencyKey = "") -> ReplanProgress:
    """Paused, no further model is asked to move; cancelled, the replan ends. Models under way go on in any case.

    A pause is kept in the store: it needs no replan that runs, lasts until it is resumed, and the repair of a lost
    region passes it. Replans that are asked for meanwhile wait for its end, except drains and dry runs. 409 if a replan
    is to be cancelled and none runs.
    """
    if request.action == "cancel":
        await asyncio.to_thread(
            record_asked, rooms.store, object=MOVES, after={"action": "cancel"}, reason=request.reason
        )
        return await rooms.lifecycle.cancel_replan(
            MoverAsked(reason=request.reason), update_id=f"cancel/{key or uuid4().hex}"
        )
    progress = await asyncio.to_thread(_steer_moves, rooms.store, request, key)
    with contextlib.suppress(Unavailable):  # the replan checks the pause itself within some minutes
        await rooms.lifecycle.signal_steering()
    rooms.outbox.wake()
    return progress


def _steer_moves(store: Store, request: SteerRequest, key: str) -> ReplanProgress:
    """Write the pause of the moves, or its end; return the progress of the replan that moves models.

    A repeated request of one key writes nothing: later requests stay in force.
    """
    with store.begin() as unit:
        if not (key and unit.has_fleet_event(_detail(key), limit=NOTES_LOOKED_AT)):
            _steer(unit, request, key)
            unit.note_audit(object=MOVES, after={"action": request.action}, reason=request.reason)
        pause, replan = unit.moves_pause(), unit.replan_under_way()
    found = replan.progress if replan and replan.progress else ReplanProgress(total=0)
    return found.model_copy(update={"paused": pause.reason if pause else ""})


def _steer(unit: Repository, request: SteerRequest, key: str) -> None:
    detail = _detail(key) if key else None
    if request.action == "pause":
        reason = unit.pause_moves(request.reason or BY_HAND).reason
        unit.add_event(None, "MovesPaused", f"moves of replans are paused: {reason}", detail=detail)
    elif unit.resume_moves():
        told = f": {request.reason}" if request.reason else ""
        unit.add_event(None, "MovesResumed", f"moves of replans go on{told}", detail=detail)


def _detail(key: str) -> Mapping[str, str]:
    return {"idempotencyKey": key}


@router.get("/moves", dependencies=[may("fleet.read")], summary="Read how the moves of replans stand")
def read_moves(rooms: Rooms, visible: Visible) -> MovesView:
    """Read the pause in force, the replan that moves models now, and how many replans wait."""
    with rooms.store.read() as unit:
        replan = unit.replan_under_way()
        moves = MovesView(
            pause=unit.moves_pause(),
            replan=replan_view(replan, rooms.lifecycle) if replan else None,
            replans_waiting=unit.replans_open(),
        )
    return redact_moves(moves, visible)


@router.get("/replans", dependencies=[may("fleet.read")], summary="List replans")
def list_replans(rooms: Rooms, visible: Visible, after: After = None, limit: Limit = 20) -> ListPage[ReplanView]:
    """Newest first: who asked, where it stands, what came of it."""
    with rooms.store.read() as unit:
        page = unit.replan_page(after=after, limit=limit)
    found = page.map(lambda replan: redact_replan(replan_view(replan, rooms.lifecycle), visible))
    return ListPage(items=tuple(each for each in found.items if is_replan_shown(each, visible)), next=found.next)


@router.get("/replans/{replan_id}", dependencies=[may("fleet.read")], summary="Follow a replan")
def read_replan(replan_id: RecordId, rooms: Rooms, visible: Visible) -> ReplanView:
    """Where a replan stands, and what came of it once it is done."""
    with rooms.store.read() as unit:
        found = redact_replan(replan_view(unit.replan(replan_id), rooms.lifecycle), visible)
    if not is_replan_shown(found, visible):
        msg = f"replan {replan_id!r} is not known"
        raise NotFound(msg)
    return found


def plan_in_force(unit: Repository) -> PlanInForce | None:
    """Return the plan in force, or None before the first one."""
    entry = unit.plan_in_force()
    if entry is None:
        return None
    unmet = unit.largest_unmet(limit=UNMET)
    tokens = tuple(sorted(unit.models_in_tokens({item.model for item in unmet})))
    summary = plan_summary(entry, entry.id)
    return PlanInForce(summary=summary, unmet=unmet, unmet_models=unit.unmet_models(), tokens=tokens)


def newest_replan(unit: Repository, in_force: PlanInForce | None) -> PlanSummary | None:
    """Return the newest plan of the whole fleet, with any outcome."""
    entry = unit.newest_fleet_plan(outcomes=("adopted", "kept", "failed"))
    return None if entry is None else plan_summary(entry, None if in_force is None else in_force.summary.id)


def plan_summary(entry: PlanEntry, in_force: str | None) -> PlanSummary:
    """Return a plan's summary."""
    use = entry.use
    return PlanSummary(
        **entry.model_dump(exclude={"use"}),
        wall_seconds=use.wall_seconds if use else None,
        cpu_seconds=use.cpu_seconds if use else None,
        peak_memory_bytes=use.peak_memory_bytes if use else None,
        adopted=entry.is_adopted,
        in_force=entry.id == in_force,
    )
