"""Controls of an entity by users, and signals to its running change.

The part of workflow `model` that handles requests. Pause and resume concern the model's whole queue of changes, an
abort concerns the running change. A run receives pauses and newer changes as signals. A run that waits while another
one passes it is controlled as the running one: the user who pauses or aborts means it, and the wait may end at any
moment.
"""

import asyncio
from contextlib import suppress
from typing import Any

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ActivityError, ApplicationError, FailureError

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.controls import ControlAction, ControlAnswer, ControlAsked, Hold, HoldNote, NewerWaits
    from ipnext.model.lifecycle.messages import (
        ChangeKind,
        LifecycleInput,
        LifecycleResult,
        ModelEntityInput,
        QueuedChange,
    )
    from ipnext.model.lifecycle.status import Reason
    from workflows import policies
    from workflows.entity.change_queue import PASSES_PAUSE, URGENT, next_of, overtakes, stops
    from workflows.errors import describe_preemption, explain_error
    from workflows.policies import perform

STAGE = SearchAttributeKey.for_keyword(names.STAGE_ATTRIBUTE)

Child = workflow.ChildWorkflowHandle[LifecycleInput, LifecycleResult]

ROLLS_OUT = frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY})
"""Kinds of changes that may supersede a run of these kinds."""


class ModelControl:
    """One model's queue, its running change, and the pause that blocks them."""

    def __init__(self, input: ModelEntityInput) -> None:  # noqa: A002 - as the workflow names it
        self._model = input.model
        self._queue = input.queue
        self._serving = input.serving_generation
        self._running: QueuedChange | None = None
        self._passed = tuple(change for change in input.begun[1:] if change.id in input.passed_ids)[::-1]
        """The changes whose runs wait while the running one passes them. Each of them passes the ones before it."""
        self._children: dict[str, Child] = {}
        """Change -> its run, if this run of the entity started it."""
        self._follows = set[str]()
        """Changes whose run an earlier entity started."""
        self._passing = input.passing
        """Changes that run although the model is paused, or an older change waits."""
        self._stops = {stop.change_id: stop.reason for stop in input.stops}
        """Change -> the reason why its run was cancelled: a run that had not begun can't record it."""
        self._held = input.held
        self._told_hold = {told.change_id: told.held for told in input.told_hold}
        """Change -> the pause that its run knows of, None: none. A run that is not in here has to be told."""
        self._turned = input.turned
        """Number of runs in a row that a newer one superseded."""
        self._untold: QueuedChange | None = None
        """A newer change to report to the running one."""
        self._told_newer = input.told_newer
        """True if the running change knows that a newer one waits: once is enough."""
        self._rebuilt = input.rebuilt
        self._heard_of_hold = False
        """True if a pause or a resumption came before the store was read."""
        self._asked = 0
        """Updates to this run of the entity."""
        self._shown = ""
        self._stopping: asyncio.Task[None] | None = None

    @workflow.update(name=names.PAUSE_CHANGES)
    async def pause_changes(self, asked: ControlAsked) -> ControlAnswer:
        """Begin nothing further; the running change stops at its next step.

        If paused again, the newer reason counts.
        """
        self._asked += 1
        self._held, self._heard_of_hold = asked, True
        self._show()
        await self._signal_holds()
        await self._note(f"paused {asked.text}", asked)
        return self._answer(ControlAction.PAUSE, f"paused {asked.text}")

    @workflow.update(name=names.RESUME_CHANGES)
    async def resume_changes(self, asked: ControlAsked) -> ControlAnswer:
        """Resume the changes. An entity that has just begun reads first whether the model is paused."""
        self._asked += 1
        await workflow.wait_condition(lambda: self._rebuilt)
        self._check_held()
        self._held = None
        self._show()
        await self._signal_holds()
        await self._note(f"resumed {asked.text}", None)
        return self._answer(ControlAction.RESUME, f"resumed {asked.text}")

    @resume_changes.validator
    def _check_resume(self, asked: ControlAsked) -> None:  # noqa: ARG002 - the update's signature
        if self._rebuilt:
            self._check_held()

    def _check_held(self) -> None:
        if self._held is None:
            msg = f"{self._model} is not paused"
            raise ApplicationError(msg, type="Conflict", non_retryable=True)

    @workflow.update(name=names.ABORT_RUN)
    async def abort_run(self, asked: ControlAsked) -> ControlAnswer:
        """Stop the running change and revert its moves.

        An entity that has just begun first determines the running change. If the running change passes another one,
        that one is stopped: the other is there only to mend. A retirement that waits for a freeze can be stopped; if
        the freeze ends first, it completes.
        """
        self._asked += 1
        if self._takes_up:
            await workflow.wait_condition(lambda: not self._takes_up)
            self._check_running(asked)
        meant = self._meant(asked)
        if meant is None or not self._reaches(meant):
            msg = f"nothing of {self._model} runs: there is nothing to abort"
            raise ApplicationError(msg, type="Conflict", non_retryable=True)
        self._stop(meant, f"{names.ABORTED}{asked.text}")
        message = f"{meant.kind} {meant.id} is aborted {asked.text}"
        return self._answer(ControlAction.ABORT, message).model_copy(update={"change_id": meant.id})

    @abort_run.validator
    def _check_abort(self, asked: ControlAsked) -> None:
        if not self._takes_up:
            self._check_running(asked)

    def _check_running(self, asked: ControlAsked) -> None:
        """Refuse to abort a rollback (a publish moves forward instead), or a retirement that waits for nothing.

        It always completes.
        """
        meant = self._meant(asked)
        if meant is None or (meant.kind in URGENT and meant.id != asked.waiting):
            what = "nothing" if meant is None else f"a {meant.kind}"
            msg = f"{what} of {self._model} runs: there is nothing to abort"
            raise ApplicationError(msg, type="Conflict", non_retryable=True)

    def _meant(self, asked: ControlAsked) -> QueuedChange | None:
        """Return the change that an abort means: the first passed one that can be aborted, else the running one."""
        passed = (change for change in self._passed if change.kind not in URGENT or change.id == asked.waiting)
        return next(passed, self._running)

    @property
    def _takes_up(self) -> bool:
        """True if this run of the entity has yet to follow the run that an earlier entity started."""
        return not self._rebuilt

    def _next(self) -> QueuedChange | None:
        return next_of(self._queue, held=self._held is not None, passing=self._passing)

    def _answer(self, action: ControlAction, message: str) -> ControlAnswer:
        change_id = self._running.id if self._running else None
        return ControlAnswer(model=self._model, action=action, change_id=change_id, message=message)

    @property
    def _reachable(self) -> bool:
        """True if there is a run to signal and to stop."""
        return self._running is not None and self._reaches(self._running)

    def _reaches(self, change: QueuedChange) -> bool:
        """Check whether the change has a run: one that this run of the entity started, or follows."""
        return change.id in self._children or change.id in self._follows

    def _passes_pause(self, change: QueuedChange) -> bool:
        return change.kind in PASSES_PAUSE or change.id in self._passing

    async def _note(self, message: str, pause: ControlAsked | None) -> None:
        held, reason = pause is not None, Reason.PAUSED
        note = HoldNote(model=self._model, held=held, reason=reason, message=message, event=message, pause=pause)
        try:
            await perform(policies.NOTE_HOLD, note, f"record: {message}")
        except ActivityError as error:
            workflow.logger.error("%s could not be recorded: %s", message, explain_error(error).message)

    def _note_newer(self, change: QueuedChange) -> None:
        """Remember a newer change that may supersede the running one, to signal it to the run."""
        running = self._running
        if running is None or not self._reachable or self._told_newer or not {running.kind, change.kind} <= ROLLS_OUT:
            return
        if change.sequence > running.sequence and overtakes(change, running):
            self._untold = change

    async def _signal_newer(self) -> None:
        newer, self._untold = self._untold, None
        if newer is not None:
            self._told_newer = True
            told = NewerWaits(change_id=newer.id, may_turn=self._turned < policies.MOST_TURNS)
            await self._signal_running(names.NEWER_WAITS, told)

    async def _signal_running(self, signal: str, argument: Hold | NewerWaits) -> None:
        """Signal the run, if there is one that may be paused or superseded."""
        if self._running is not None:
            await self._signal(self._running, signal, argument)

    async def _signal_holds(self) -> None:
        """Tell the run, and those that it passes, whether the model is paused."""
        for change in (*self._passed, self._running):
            if change is not None:
                await self._signal_hold(change)

    async def _signal_hold(self, change: QueuedChange) -> None:
        """Tell a run whether the model is paused, unless that is what it knows."""
        if not self._reaches(change) or self._told_hold.get(change.id, ...) == self._held:
            return
        self._told_hold[change.id] = self._held
        hold = Hold(held=self._held is not None, asked=self._held or ControlAsked())
        await self._signal(change, names.HOLD_CHANGES, hold)

    async def _follow(self, change: QueuedChange) -> None:
        """Have the run of an earlier entity report its end, and tell it of a pause that it missed."""
        if self._reaches(change):
            return
        self._follows.add(change.id)
        with suppress(FailureError):  # it has ended: the next check finds that
            await self._run_of(change).signal(names.REPORT_END)
        await self._signal_hold(change)

    async def _signal(self, change: QueuedChange, signal: str, argument: Hold | NewerWaits) -> None:
        if not self._reaches(change) or self._passes_pause(change):
            return
        try:
            await (self._children.get(change.id) or self._run_of(change)).signal(signal, argument)
        except FailureError:
            workflow.logger.info("the run ended before it heard of %s", signal)

    def _stop_running_for(self, change: QueuedChange) -> None:
        """Stop the run for a change that preempts it, and those that it passes."""
        for running in (self._running, *self._passed):
            self._stop_for(change, running)

    def _stop_for(self, change: QueuedChange, running: QueuedChange | None) -> None:
        if running is not None and self._reaches(running) and stops(change, running):
            self._stop(running, describe_preemption(change.kind, change.id))

    def _stop(self, running: QueuedChange, why: str) -> None:
        self._stops.setdefault(running.id, why)  # a run goes by the first cancellation
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
        return workflow.get_external_workflow_handle(names.lifecycle_workflow_id(self._model, change.id))

    def _show(self) -> None:
        """Show the state in the Web UI."""
        running = self._running
        doing = f"{running.kind}{of_generation(running.generation)} (`{running.id}`)" if running else "nothing to do"
        waiting = "".join(
            f"\n- {change.kind}{of_generation(change.generation)} (`{change.id}`)" for change in self._queue
        )
        doing = f"paused {self._held.text}; {doing}" if self._held else doing
        serving = f"\n\nServing: generation {self._serving}" if self._serving else ""
        workflow.set_current_details(
            f"**{self._model}**: {doing}" + (f"\n\nWaiting:{waiting}" if waiting else "") + serving
        )
        idle = "paused" if self._held else "idle"
        shown = running.kind.value if running else idle
        if shown != self._shown:
            self._shown = shown
            workflow.upsert_search_attributes([STAGE.value_set(shown)])


def of_generation(generation: int | None) -> str:
    """Return ` of generation 3`, or an empty text."""
    return f" of generation {generation}" if generation is not None else ""
