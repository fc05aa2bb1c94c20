"""The condition `Progressing`: the change under way with its step, or the reason that blocks it. Pure."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from ipnext.model.lifecycle.changes.change import Change, ChangeState
from ipnext.model.lifecycle.failure_cause import STEPS
from ipnext.model.lifecycle.status import Condition, ConditionType, Reason


def progress_of(
    conditions: Iterable[Condition], changes: Sequence[Change], *, since: datetime
) -> tuple[Condition, ...]:
    """Return `Progressing` of a model with these recorded conditions and changes, newest first.

    Empty before the first change. False while the oldest open change is blocked (a pause, an approval, a freeze), with
    reason and message. Else true: with reason `Progressing` and the step if a change runs, or the reason of the step's
    failure while it is tried again, `Pending` if one waits, `Succeeded` if none is open. `since` is the condition's
    time if none was recorded and no change is newer; while a change is open, the condition is as old as the change at
    most, and after its end as its end.
    """
    found = {condition.type: condition for condition in conditions}
    recorded = found.get(ConditionType.PROGRESSING)
    if recorded is not None and recorded.status != "True":
        return (recorded,)
    if recorded is None and not changes:
        return ()
    at = since if recorded is None else recorded.last_transition_time
    under_way = next((change for change in reversed(changes) if not change.state.final), None)
    if under_way is None:
        ended = (change.finished_at for change in changes if change.finished_at is not None)
        return (_progressing(Reason.SUCCEEDED, "no change is open", max((at, *ended))),)
    at = max(at, under_way.created_at)
    told = f"{under_way.kind} {under_way.id}" + (
        f" of generation {under_way.generation}" if under_way.generation else ""
    )
    if under_way.state is not ChangeState.RUNNING:
        return (_progressing(Reason.PENDING, f"{told} waits for its turn", at),)
    if under_way.reason is Reason.FROZEN:
        held = _progressing(Reason.FROZEN, f"{told} is {under_way.message}", at)
        return (held.model_copy(update={"status": "False"}),)
    reason, step = Reason.PROGRESSING, _step(found.values())
    if under_way.is_retried:
        reason, step = under_way.reason or reason, f"step: {under_way.message}"
    return (_progressing(reason, f"{told}, {step}", at),)


def _step(conditions: Iterable[Condition]) -> str:
    """Return the first step whose condition is not true, with its message.

    The steps of a move leave conditions unchanged.
    """
    found = {condition.type: condition for condition in conditions}
    kind = next((kind for kind in STEPS if kind in found and found[kind].status != "True"), None)
    if kind is None:
        return "step: move capacity and traffic"
    message = found[kind].message
    return f"step: {STEPS[kind]}" + (f": {message}" if message else "")


def _progressing(reason: Reason, message: str, at: datetime) -> Condition:
    return Condition(
        type=ConditionType.PROGRESSING, status="True", reason=reason, message=message, last_transition_time=at
    )
