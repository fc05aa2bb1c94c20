"""Queries of an entity to the store and to Temporal when it begins, or when a run that moved its model is gone."""

from collections.abc import Callable, Sequence
from typing import Any

from temporalio import activity

from activities.planning.problem import units_in_use
from activities.runtime.fence import still_ours
from activities.state.drained_fleet import leaves_loss
from activities.transition.admission import way_back
from ipnext import names
from ipnext.errors import NotFound
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState, QueuedChange
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.changes.takeover import (
    ChangeAsked,
    ChangeSeen,
    MayPass,
    ModelAsked,
    OpenChange,
    OpenChanges,
    TakenOver,
    TakeOver,
)
from ipnext.model.lifecycle.changes.transition_run import Revert, TransitionInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.transition import TransitionState
from ipnext.store.records import TransitionRecord
from ipnext.store.repository import Repository
from ipnext.store.store import Store

IsOpen = Callable[[str], bool]
"""True if the workflow with this id runs in Temporal now. Raises Unavailable."""


class TakeoverActivities:
    """Activities of a takeover. Need the store, and a function that asks Temporal whether a workflow runs."""

    def __init__(self, store: Store, is_open: IsOpen) -> None:
        self._store = store
        self._is_open = is_open

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.open_changes, self.look_at_change, self.may_pass, self.take_over)

    @activity.defn(name="open_changes", no_thread_cancel_exception=True)
    def open_changes(self, asked: ModelAsked) -> OpenChanges:
        """Find the changes requested of a model before its entity began; none for a model that was never applied."""
        with self._store.read() as repository:
            try:
                record = repository.model(asked.model)
            except NotFound:
                return OpenChanges()
            changes, held = repository.open_changes(asked.model), repository.pause(asked.model)
            moving = {change.id for change in changes if _moves(repository, change)}
            leaving = {change.id for change in changes if leaves_loss(repository, change)}
        begun = {change.id for change in changes if self._has_begun(change)}
        found = tuple(
            OpenChange(
                change=_make_queued(change),
                begun=change.id in begun,
                moves=change.id in moving,
                passes=change.id in begun & leaving,
            )
            for change in changes
        )
        return OpenChanges(
            changes=found, held=held, serving_generation=record.serving_generation, retired=record.retired
        )

    @activity.defn(name="look_at_change", no_thread_cancel_exception=True)
    def look_at_change(self, asked: ChangeAsked) -> ChangeSeen:
        """Report the state of a change.

        Temporal is queried first: a run that ends meanwhile has recorded its end by then.
        """
        runs = self._is_open(names.lifecycle_workflow_id(asked.model, asked.change_id))
        with self._store.read() as repository:
            change = repository.change(asked.change_id)
        return ChangeSeen(
            state=change.state,
            generation=change.generation,
            reason=change.reason or Reason.SUCCEEDED,
            message=change.message,
            runs=runs,
        )

    @activity.defn(name="may_pass", no_thread_cancel_exception=True)
    def may_pass(self, asked: ChangeAsked) -> MayPass:
        """Decide whether a waiting change may run now, before older ones.

        A repair may, and a move away from a lost region; a rollback if it meets only a retirement that waits for a
        freeze. None may while another change moves the model: the store would refuse it until that has ended. A repair
        waits behind such a move and behind a rollback, as both may do what it would.
        """
        with self._store.read() as repository:
            change = repository.change(asked.change_id)
            if change.state.final or repository.is_moved(asked.model):
                return MayPass()
            if change.kind is ChangeKind.REPAIR:
                return MayPass(
                    passes=not any(_goes_before(repository, other) for other in _list_running(repository, change))
                )
            if change.kind is ChangeKind.ROLLBACK:
                found = _list_running(repository, change)
                return MayPass(passes=all(map(_is_frozen_retirement, found)))
            return MayPass(passes=leaves_loss(repository, change))

    @activity.defn(name="take_over", no_thread_cancel_exception=True)
    def take_over(self, asked: TakeOver) -> TakenOver:
        """Take over the transition of a change whose run is gone, so that it can be reverted.

        A transition that moved nothing yet is closed. Earlier runs write nothing more (`activities.runtime.fence`).
        A retirement is not reverted: once the store has no routes of the model, it is completed.
        Raises Unavailable if another takeover came first.
        """
        with self._store.read() as repository:
            before = repository.find_transition(asked.change.id)
            withdrawn = _is_withdrawn(repository, asked)
        if self._is_open(names.transition_workflow_id(asked.change.id)):
            return TakenOver(waits=True)
        if before is None or before.state is TransitionState.REFUSED:
            return TakenOver(withdrawn=withdrawn)
        with self._store.begin(asked.model) as repository:
            still_ours()
            now = repository.transition(before.id)
            if now.state is TransitionState.PLANNED:
                repository.take_over_transition(now.id, fence=before.fence)
                repository.close_transition(now.id, done=False, message=asked.message)
                return TakenOver()
            if not now.is_open:
                return _summarize_end(now)
            taken = repository.take_over_transition(now.id, fence=before.fence)
            repository.add_event(asked.model, "TakenOver", f"{asked.change.kind} {asked.change.id}: {asked.message}")
            return _summarize_end(taken).model_copy(update={"transition": _reverting(repository, asked, taken)})

    def _has_begun(self, change: Change) -> bool:
        begun = change.state is ChangeState.RUNNING
        return begun or self._is_open(names.lifecycle_workflow_id(change.model, change.id))


def _list_running(repository: Repository, change: Change) -> Sequence[Change]:
    """Return the other changes of the model that run."""
    found = repository.open_changes(change.model)
    return [other for other in found if other.id != change.id and other.state is ChangeState.RUNNING]


def _is_frozen_retirement(change: Change) -> bool:
    return change.kind is ChangeKind.RETIRE and change.reason is Reason.FROZEN


def _goes_before(repository: Repository, change: Change) -> bool:
    """Check whether repairs wait behind a change: a rollback, or a move away from a lost region."""
    return change.kind is ChangeKind.ROLLBACK or leaves_loss(repository, change)


def _is_withdrawn(repository: Repository, asked: TakeOver) -> bool:
    """Check whether a retirement runs and has removed the model's routes."""
    retires = asked.change.kind is ChangeKind.RETIRE and asked.model in repository.retiring_models()
    return retires and not repository.routes(asked.model)


def _moves(repository: Repository, change: Change) -> bool:
    record = repository.find_transition(change.id)
    return record is not None and record.state is not TransitionState.REFUSED


def _summarize_end(record: TransitionRecord) -> TakenOver:
    done = record.state is TransitionState.DONE
    return TakenOver(moved=True, done=done, generation=record.generation, revision=record.revision)


def _reverting(repository: Repository, asked: TakeOver, record: TransitionRecord) -> TransitionInput:
    """Build the input of the run that reverts, from the wave that was in progress."""
    change, waves = asked.change, len(record.transition.waves)
    before, in_use = repository.state_before(record.id), units_in_use(repository, but=asked.model)
    stage = StageInput(
        model=asked.model,
        change_id=change.id,
        kind=change.kind,
        generation=record.generation,
        plan_id=change.plan_id,
    )
    return TransitionInput(
        transition_id=record.id,
        model=asked.model,
        generation=record.generation,
        waves=waves,
        deadline_seconds=repository.model(asked.model).in_force.spec.rollout.deadline_seconds,
        change_id=change.id,
        back=way_back(repository, stage, record.transition, in_use, before),
        fence=record.fence,
        revert=Revert(index=min(record.waves_done, waves - 1), reason=asked.reason, message=asked.message),
    )


def _make_queued(change: Change) -> QueuedChange:
    return QueuedChange(
        id=change.id, kind=change.kind, sequence=change.sequence, generation=change.generation, plan_id=change.plan_id
    )
