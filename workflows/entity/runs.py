"""Lifecycle runs of a model's changes, as its entity sees them: started, followed, signaled, stopped.

A run receives pauses and newer changes as signals. A run that waits while another one passes it is controlled as the
running one: the user who pauses or aborts means it, and the wait may end at any moment.
"""

import asyncio
from contextlib import suppress
from typing import Any

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import FailureError

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.changes.change import QueuedChange
    from ipnext.model.lifecycle.changes.controls import ControlAsked, Hold, NewerWaits
    from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleInput, LifecycleResult
    from workflows import policies
    from workflows.entity.change_queue import stops
    from workflows.entity.state import EntityState, of_generation
    from workflows.errors import describe_preemption

Child = workflow.ChildWorkflowHandle[LifecycleInput, LifecycleResult]


class ChangeRuns:
    """The runs of one model's changes: this run of the entity started them, or follows those of an earlier one."""

    def __init__(self, state: EntityState) -> None:
        self._state = state
        self._children: dict[str, Child] = {}
        """Change -> its run, if this run of the entity started it."""
        self._stopping: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None

    async def start(self, change: QueuedChange) -> Child:
        """Start the change's run; raises WorkflowAlreadyStartedError if there was one."""
        state = self._state
        held = None if state.passes_pause(change) else state.held
        child = self._children[change.id] = await workflow.start_child_workflow(
            names.LIFECYCLE_WORKFLOW,
            LifecycleInput(model=state.model, change=change, held=held),
            result_type=LifecycleResult,
            id=names.lifecycle_workflow_id(state.model, change.id),
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            task_timeout=workflow.info().task_timeout,
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            priority=policies.priority_of(urgent=change.kind in policies.URGENT_KINDS),
            static_summary=f"{state.model}: {change.kind}" + of_generation(change.generation),
        )
        state.reachable.add(change.id)
        state.told_hold[change.id] = held
        return child

    async def follow(self, change: QueuedChange) -> None:
        """Have the run of an earlier entity report its end, and tell it of a pause that it missed."""
        if self._state.reaches(change):
            return
        self._state.reachable.add(change.id)
        with suppress(FailureError):  # it has ended: the next check finds that
            await self._run_of(change).signal(names.REPORT_END)
        await self._signal_hold(change)

    def forget(self, change: QueuedChange) -> None:
        """Drop the run of a change that has ended."""
        self._children.pop(change.id, None)

    def run_id(self, change: QueuedChange) -> str:
        """Return the id of a run that this run of the entity started, or an empty text."""
        child = self._children.get(change.id)
        return (child.first_execution_run_id or "") if child is not None else ""

    # signals

    async def signal_all(self) -> None:
        """Send the run its missed signals: changes that preempt or supersede it, and a pause or its end."""
        for waiting in self._state.queue:
            self.stop_for(waiting)
            self._state.note_newer(waiting)
        if self._state.running is not None:
            await self._signal_hold(self._state.running)

    async def signal_newer(self) -> None:
        """Tell the run of a newer change that may supersede it."""
        newer, self._state.newer = self._state.newer, None
        if newer is not None:
            self._state.told_newer = True
            told = NewerWaits(change_id=newer.id, may_turn=self._state.turned < policies.MOST_TURNS)
            if self._state.running is not None:
                await self._signal(self._state.running, names.NEWER_WAITS, told)

    async def signal_holds(self) -> None:
        """Tell the run, and those that it passes, whether the model is paused."""
        for change in (*self._state.passed, self._state.running):
            if change is not None:
                await self._signal_hold(change)

    async def _signal_hold(self, change: QueuedChange) -> None:
        """Tell a run whether the model is paused, unless that is what it knows."""
        state = self._state
        if not state.reaches(change) or state.told_hold.get(change.id, ...) == state.held:
            return
        state.told_hold[change.id] = state.held
        hold = Hold(held=state.held is not None, asked=state.held or ControlAsked())
        await self._signal(change, names.HOLD_CHANGES, hold)

    async def _signal(self, change: QueuedChange, signal: str, argument: Hold | NewerWaits) -> None:
        """Signal the run, if there is one that may be paused or superseded."""
        if not self._state.reaches(change) or self._state.passes_pause(change):
            return
        try:
            await (self._children.get(change.id) or self._run_of(change)).signal(signal, argument)
        except FailureError:
            workflow.logger.info("the run ended before it heard of %s", signal)

    def wake(self, change: QueuedChange) -> None:
        """Let a run that waits for a freeze check whether it still has to."""
        if self._state.reaches(change):
            self._waking = asyncio.create_task(self._wake(change))

    async def _wake(self, change: QueuedChange) -> None:
        try:
            await (self._children.get(change.id) or self._run_of(change)).signal(names.FREEZE_CHANGED)
        except FailureError:
            workflow.logger.info("the run of %s ended before it was woken", change.id)

    # cancellations

    def stop_for(self, change: QueuedChange) -> None:
        """Stop the run for a change that preempts it, and those that it passes."""
        for running in (self._state.running, *self._state.passed):
            if running is not None and self._state.reaches(running) and stops(change, running):
                self.stop(running, describe_preemption(change.kind, change.id))

    def stop(self, running: QueuedChange, why: str) -> None:
        """Cancel a run."""
        self._state.stop_reasons.setdefault(running.id, why)  # a run goes by the first cancellation
        if (child := self._children.get(running.id)) is not None:
            child.cancel(why)
        else:
            self._stopping = asyncio.create_task(self._stop_followed(running, why))

    async def _stop_followed(self, running: QueuedChange, why: str) -> None:
        try:
            await self._run_of(running).cancel(reason=why)
        except FailureError:
            workflow.logger.info("the run of %s ended before it could be stopped", running.id)

    def _run_of(self, change: QueuedChange) -> workflow.ExternalWorkflowHandle[Any]:
        return workflow.get_external_workflow_handle(names.lifecycle_workflow_id(self._state.model, change.id))
