"""Users' controls of a model's rollout: pause, resume, approve, promote, abort.

Each is answered once the run has accepted it.
"""

import asyncio
from uuid import uuid4

from fastapi import APIRouter

from ipnext.api.authorization.audit_entries import record_asked
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import IdempotencyKey, ModelName, PlatformAdapters, Rooms, User
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.errors import Conflict
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAnswer, ControlAsked, ControlRequest
from ipnext.model.lifecycle.status import Reason
from ipnext.store.repository import Repository

router = APIRouter(prefix="/v1/models", tags=["controls"], route_class=GuardedRoute)

_OF_A_RUN = frozenset({ControlAction.APPROVE, ControlAction.PROMOTE})
"""Decisions of the run of one change; the others concern the model's whole line of changes."""


@router.post("/{name}/pause", dependencies=[may("models.steer")], summary="Pause a model's changes")
async def pause(
    name: ModelName, request: ControlRequest, rooms: Rooms, user: User, key: IdempotencyKey = ""
) -> ControlAnswer:
    """Stop the running change at its next step, and let no further change begin. Rollbacks and retirements pass."""
    return await _said(rooms, name, ControlAction.PAUSE, ControlAsked(by=user, reason=request.reason), key)


@router.post("/{name}/resume", dependencies=[may("models.steer")], summary="Resume a model's changes")
async def resume(
    name: ModelName, request: ControlRequest, rooms: Rooms, user: User, key: IdempotencyKey = ""
) -> ControlAnswer:
    """Go on where it was paused. 409 if nothing is paused."""
    return await _said(rooms, name, ControlAction.RESUME, ControlAsked(by=user, reason=request.reason), key)


@router.post("/{name}/approve", dependencies=[may("models.steer")], summary="Approve a wave")
async def approve(
    name: ModelName, request: ControlRequest, rooms: Rooms, user: User, key: IdempotencyKey = ""
) -> ControlAnswer:
    """Let the wave go on that waits for an approval (`rollout.approval`). 409 if none waits."""
    return await _said(rooms, name, ControlAction.APPROVE, ControlAsked(by=user, reason=request.reason), key)


@router.post("/{name}/promote", dependencies=[may("models.steer")], summary="Promote a run")
async def promote(
    name: ModelName, request: ControlRequest, rooms: Rooms, user: User, key: IdempotencyKey = ""
) -> ControlAnswer:
    """Wait for no hold and no approval any more; gates and capacity are kept. 409 if no run moves traffic."""
    return await _said(rooms, name, ControlAction.PROMOTE, ControlAsked(by=user, reason=request.reason), key)


@router.post("/{name}/abort", dependencies=[may("models.steer")], summary="Abort a run")
async def abort(
    name: ModelName, request: ControlRequest, rooms: Rooms, user: User, key: IdempotencyKey = ""
) -> ControlAnswer:
    """Stop the run that is under way; what it moved goes back. 409 if none runs, or it is a rollback or a retirement.

    A retirement that waits for a freeze has moved nothing, and is aborted.
    """
    waiting = await asyncio.to_thread(_frozen_retirement, rooms, name)
    asked = ControlAsked(by=user, reason=request.reason, waiting=waiting)
    return await _said(rooms, name, ControlAction.ABORT, asked, key)


_NOTED_BY_THE_MODEL = frozenset({ControlAction.PAUSE, ControlAction.RESUME})
"""The model's entity writes the event, in addition to the condition."""


async def _said(
    rooms: PlatformAdapters, model: str, action: ControlAction, asked: ControlAsked, key: str
) -> ControlAnswer:
    change_id = await asyncio.to_thread(_running, rooms, model, action)
    if change_id is None and action in _OF_A_RUN:
        msg = f"no change of {model!r} runs: there is nothing to {action.value}"
        raise Conflict(msg)
    note = {"after": {"action": action.value}, "reason": asked.reason, "change_id": change_id}
    await asyncio.to_thread(record_asked, rooms.store, **note)
    update_id = f"{action.value}/{key or uuid4().hex}"
    answer = await rooms.lifecycle.control(model, action, asked, change_id=change_id, update_id=update_id)
    if action not in _NOTED_BY_THE_MODEL:
        await asyncio.to_thread(_note, rooms, model, answer.message, key)
    return answer


NOTES_LOOKED_AT = 50
"""Newest events of a model among which the event of a repeated request is searched."""


def _note(rooms: PlatformAdapters, model: str, message: str, key: str) -> None:
    """Add an event with the user and the reason; one for all requests of one key."""
    with rooms.store.begin(model) as unit:
        detail = {"idempotencyKey": key} if key else None
        known = unit.events(model, limit=NOTES_LOOKED_AT) if key else ()
        if all(event.detail != detail for event in known):
            unit.add_event(model, "Control", message, detail=detail)


def _running(rooms: PlatformAdapters, model: str, action: ControlAction) -> str | None:
    """Return the change that the action concerns, the oldest running one.

    For a decision of a run the one that moves the model. Two run if a repair passes a change that waits. NotFound if
    the model is unknown.
    """
    with rooms.store.read() as unit:
        running = [change.id for change in reversed(unit.changes(model)) if change.state is ChangeState.RUNNING]
        moving = running if action in _OF_A_RUN else []
        found = (change_id for change_id in moving if _moves(unit, change_id))
        return next(found, running[0] if running else None)


def _frozen_retirement(rooms: PlatformAdapters, model: str) -> str:
    """Return the retirement of the model that waits for a freeze; empty if there is none.

    NotFound if the model is unknown.
    """
    with rooms.store.read() as unit:
        changes = unit.changes(model)
    found = (c.id for c in changes if c.kind is ChangeKind.RETIRE and c.state is ChangeState.RUNNING)
    frozen = {change.id for change in changes if change.reason is Reason.FROZEN}
    return next((change_id for change_id in found if change_id in frozen), "")


def _moves(unit: Repository, change_id: str) -> bool:
    record = unit.find_transition(change_id)
    return record is not None and record.is_open
