"""What a person says to a model's rollout: pause, resume, approve, promote, abort. Each is answered once the run has heard it."""

import asyncio

from fastapi import APIRouter

from ipnext.api.platform import ModelName, Platform, Rooms, User
from ipnext.errors import Conflict
from ipnext.model.controls import ControlAction, ControlAnswer, ControlAsked, ControlRequest
from ipnext.model.lifecycle import ChangeState

router = APIRouter(prefix="/v1/models", tags=["controls"])

_OF_A_RUN = frozenset({ControlAction.APPROVE, ControlAction.PROMOTE})
"""What the run of one change decides; the others concern the model's whole line of changes."""


@router.post("/{name}/pause", summary="Pause a model's changes")
async def pause(name: ModelName, request: ControlRequest, rooms: Rooms, user: User) -> ControlAnswer:
    """The run that is under way stops at its next step, and no further change begins. Rollbacks and retirements pass."""
    return await _said(rooms, name, ControlAction.PAUSE, ControlAsked(by=user, reason=request.reason))


@router.post("/{name}/resume", summary="Resume a model's changes")
async def resume(name: ModelName, request: ControlRequest, rooms: Rooms, user: User) -> ControlAnswer:
    """Go on where it was paused. 409 where nothing is paused."""
    return await _said(rooms, name, ControlAction.RESUME, ControlAsked(by=user, reason=request.reason))


@router.post("/{name}/approve", summary="Approve a wave")
async def approve(name: ModelName, request: ControlRequest, rooms: Rooms, user: User) -> ControlAnswer:
    """Let the wave go on that waits for an approval (`rollout.approval`). 409 where none waits."""
    return await _said(rooms, name, ControlAction.APPROVE, ControlAsked(by=user, reason=request.reason))


@router.post("/{name}/promote", summary="Promote a run")
async def promote(name: ModelName, request: ControlRequest, rooms: Rooms, user: User) -> ControlAnswer:
    """Wait for no hold and no approval any more; gates and capacity are kept. 409 where no run moves traffic."""
    return await _said(rooms, name, ControlAction.PROMOTE, ControlAsked(by=user, reason=request.reason))


@router.post("/{name}/abort", summary="Abort a run")
async def abort(name: ModelName, request: ControlRequest, rooms: Rooms, user: User) -> ControlAnswer:
    """Stop the run that is under way; what it moved goes back. 409 where none runs, or it is a rollback or retirement."""
    return await _said(rooms, name, ControlAction.ABORT, ControlAsked(by=user, reason=request.reason))


_NOTED_BY_THE_MODEL = frozenset({ControlAction.PAUSE, ControlAction.RESUME})
"""Its entity writes the event, beside the condition."""


async def _said(rooms: Platform, model: str, action: ControlAction, asked: ControlAsked) -> ControlAnswer:
    change_id = await asyncio.to_thread(_running, rooms, model)
    if change_id is None and action in _OF_A_RUN:
        msg = f"no change of {model!r} runs: there is nothing to {action.value}"
        raise Conflict(msg)
    answer = await rooms.lifecycle.control(model, action, asked, change_id=change_id)
    if action not in _NOTED_BY_THE_MODEL:
        await asyncio.to_thread(_note, rooms, model, answer.message)
    return answer


def _note(rooms: Platform, model: str, message: str) -> None:
    """An event: who said it, and why."""
    with rooms.store.begin(model) as unit:
        unit.add_event(model, "Control", message)


def _running(rooms: Platform, model: str) -> str | None:
    """The change that runs. NotFound for an unknown model."""
    with rooms.store.read() as unit:
        running = (change.id for change in unit.changes(model) if change.state is ChangeState.RUNNING)
        return next(running, None)
