"""Replans around the planning itself: requests by the schedule, and the record of their end."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from temporalio import activity

from activities.planning.replan import find_plan
from ipnext import names
from ipnext.model.lifecycle.changes.lifecycle_run import Done
from ipnext.model.lifecycle.replans.replan import (
    ReplanInput,
    ReplanResult,
    ReplanState,
    ReplansWaiting,
    ScheduledReplan,
)
from ipnext.model.lifecycle.status import Reason
from ipnext.store.records import PlanEntry
from ipnext.store.repository import Repository
from ipnext.store.store import Store

Wake = Callable[[], None]
"""Wakes the replan workflow. Raises Unavailable."""


class ReplanActivities:
    """Replan activities, on the store and a function that wakes the replan workflow."""

    def __init__(self, store: Store, wake: Wake) -> None:
        self._store = store
        self._wake = wake

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.ask_replan, self.waiting_replans, self.finish_replan)

    @activity.defn(name="ask_replan", no_thread_cancel_exception=True)
    def ask_replan(self, asked: ScheduledReplan) -> Done:
        """Record a replan, once for each run, and wake the workflow that executes it."""
        replan_id = asked.id or names.scheduled_replan_id(asked.trigger, activity.info().workflow_run_id or "")
        with self._store.begin() as repository:
            replan = repository.add_replan(replan_id, asked.trigger)
        if replan.state is ReplanState.RECORDED:
            self._wake()
            with self._store.begin() as repository:
                repository.queue_replans([replan_id])
        return Done(note=f"replan {replan_id} is asked for")

    @activity.defn(name="waiting_replans", no_thread_cancel_exception=True)
    def waiting_replans(self, replan: ReplanInput) -> ReplansWaiting:
        """Count the replans that wait for a run; the one that runs is not among them."""
        del replan
        with self._store.read() as repository:
            return ReplansWaiting(waiting=repository.waiting_replans())

    @activity.defn(name="finish_replan", no_thread_cancel_exception=True)
    def finish_replan(self, result: ReplanResult) -> ReplansWaiting:
        """Record the end of a replan, and return the number of waiting ones. One that has ended stays as it is."""
        state = _state_of(result)
        with self._store.begin(result.plan_id) as repository:
            if state is ReplanState.FAILED and result.plan_id and find_plan(repository, result.plan_id) is None:
                _write_failure(repository, result)
            repository.update_replans(
                result.plan_id,
                state=state,
                reason=result.reason,
                message=result.message,
                moves=result.moves,
            )
            if result.progress is not None:
                repository.note_progress(result.plan_id, result.progress)
            return ReplansWaiting(waiting=repository.waiting_replans())


def _state_of(result: ReplanResult) -> ReplanState:
    if result.adopted:
        return ReplanState.ADOPTED
    if result.reason is not Reason.SUCCEEDED:
        return ReplanState.FAILED
    return ReplanState.DRY_RUN if result.dry_run else ReplanState.KEPT


def _write_failure(repository: Repository, result: ReplanResult) -> None:
    """Record the failure of a run that ended before the planner could report anything."""
    entry = PlanEntry(
        id=result.plan_id,
        trigger="replan",
        outcome="failed",
        reason=result.reason,
        message=f"{result.message}; the plan in force stays",
        based_on=repository.plan_in_force_id(),
        created_at=datetime.now(UTC),
    )
    repository.save_failure(entry)
    repository.add_event(None, "ReplanFailed", f"{result.reason}: {entry.message}")
