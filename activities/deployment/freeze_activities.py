"""Freezes: check whether a change has to wait for one to end, and record that it does."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from temporalio import activity

from activities.planning.drift import record_repair
from activities.state.drained_fleet import leaves_loss
from ipnext.freezes.calendar import FreezeCalendar
from ipnext.freezes.evaluation import ChangeScope, frozen
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.change_stages import FREEZE, end_stage, hold_stage
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.freeze import FreezeAnswer, Frozen, Override
from ipnext.store.operations.change_scope import find_touched
from ipnext.store.operations.refused_routes import refuse_further_users
from ipnext.store.repository import Repository
from ipnext.store.store import Store

_SHOWS_CONDITIONS = frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY})
"""Kinds of changes whose wait is shown in the model's conditions: a move and a retirement leave `Ready` as it is."""


class FreezeActivities:
    """Freeze activities, on the store and the clock."""

    def __init__(self, store: Store, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._store = store
        self._clock = clock

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.freeze_of,)

    @activity.defn(name="freeze_of", no_thread_cancel_exception=True)
    def freeze_of(self, stage: StageInput) -> FreezeAnswer:
        """Decide whether the change has to wait now, and until when. The answer is stored before it is returned.

        If it changes anything, it is computed and stored in one unit of work: so a concurrent edit of a freeze either
        is visible here, or sees the waiting change and signals its run.
        """
        with self._store.read() as unit:
            change = unit.change(stage.change_id)
            bound = _bound(unit, change, self._clock())
        if bound is None and change.reason is not Reason.FROZEN:
            return FreezeAnswer()
        with self._store.begin(stage.model) as unit:
            change = unit.change(stage.change_id)
            bound = _bound(unit, change, self._clock())
            given = unit.freeze_override(change.id) if bound is not None else None
            if bound is None or given is not None:
                return FreezeAnswer(message=_release(unit, change, stage, bound, given))
            _hold(unit, change, stage, bound)
        return FreezeAnswer(frozen=bound, message=bound.message)


def _bound(unit: Repository, change: Change, at: datetime) -> Frozen | None:
    """Return the freezes that bind the change now.

    A move away from a lost region passes all: its users may have nothing else.
    """
    if leaves_loss(unit, change):
        return None
    calendars = [FreezeCalendar(record.manifest) for record in unit.freezes()]
    if not calendars:
        return None
    return frozen(calendars, ChangeScope(change.model, *find_touched(unit, change.model), change.kind.value), at)


def _hold(unit: Repository, change: Change, stage: StageInput, bound: Frozen) -> None:
    """Record that the change waits, with its reason, and set the conditions.

    The repair that the change would have made pointless is recorded, too.
    """
    if change.reason is Reason.FROZEN and change.message == bound.message:
        return
    unit.update_change(change.id, state=ChangeState.RUNNING, reason=Reason.FROZEN, message=bound.message)
    unit.note_stages(change.model, change.id, lambda stages, at: hold_stage(stages, FREEZE, at))
    unit.add_event(change.model, "Frozen", f"{change.kind} {change.id} is {bound.message}", run_id=change.run_id)
    record_repair(unit, change.model)
    if change.kind in _SHOWS_CONDITIONS:
        unit.set_condition(change.model, ConditionType.PLANNED, "Unknown", Reason.FROZEN, bound.message)
        told = f"{change.kind} of generation {stage.generation} is {bound.message}"
        unit.set_condition(
            change.model, ConditionType.UP_TO_DATE, "False", Reason.FROZEN, told + _serving(unit, change)
        )
        refuse_further_users(unit, unit.model(change.model), Reason.FROZEN)


def _release(unit: Repository, change: Change, stage: StageInput, bound: Frozen | None, given: Override | None) -> str:
    """Record that the change continues: reset the waiting state, and report why it passes."""
    why = "no freeze binds it any more"
    if bound is not None and given is not None:
        names = ", ".join(each.name for each in bound.freezes)
        why = f"it passes {names}: overridden by {given.who}: {given.reason}"
    unit.note_stages(change.model, change.id, lambda stages, at: end_stage(stages, FREEZE, at))
    unit.add_event(change.model, "Thawed", f"{change.kind} {change.id} goes on: {why}", run_id=change.run_id)
    if change.reason is not Reason.FROZEN:
        return why
    unit.update_change(change.id, state=ChangeState.RUNNING, reason=Reason.PROGRESSING, message="")
    if change.kind in _SHOWS_CONDITIONS:
        generation = f"generation {stage.generation}"
        unit.set_condition(change.model, ConditionType.PLANNED, "Unknown", Reason.PENDING, generation)
        told = f"{change.kind} of {generation} is under way{_serving(unit, change)}"
        unit.set_condition(change.model, ConditionType.UP_TO_DATE, "False", Reason.PROGRESSING, told)
    return why


def _serving(unit: Repository, change: Change) -> str:
    serving = unit.model(change.model).serving_generation
    return f"; generation {serving} serves" if serving else ""
