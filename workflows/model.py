"""Workflow `model`: the one long-lived entity of a model. It orders the model's changes and executes them one by one.

A newer change supersedes waiting ones (`workflows.entity.change_queue` has the rules). The entity survives all
failures of its children: a failed one is recorded, once all that it moved is reverted, and the next one runs. It can be
paused: the running change stops at its next step, nothing further begins, but rollbacks, retirements and repairs pass.

The store is the source of truth. An entity that begins (the first one, or after one that was terminated) reads the open
changes from it, and awaits the runs that exist. If its history has grown long, it continues as new, also while a run is
in progress. If its history does not replay, it ends, and another one begins.
"""

import asyncio

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.changes.change import ChangeKind, QueuedChange
    from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAnswer, ControlAsked, HoldNote
    from ipnext.model.lifecycle.changes.entity import ChangeAccepted, ModelEntityInput, ModelEntityState
    from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult
    from ipnext.model.lifecycle.changes.takeover import ChangeAsked, ChangeEnded, ModelAsked, OpenChanges
    from ipnext.model.lifecycle.status import Reason
    from workflows import policies
    from workflows.entity.runs import ChangeRuns
    from workflows.entity.state import EntityState
    from workflows.entity.superseded_marks import SupersededMarks
    from workflows.errors import explain_error
    from workflows.policies import perform
    from workflows.stages.change_ends import ChangeEnds

MODEL = SearchAttributeKey.for_keyword(names.MODEL_ATTRIBUTE)
STAGE = SearchAttributeKey.for_keyword(names.STAGE_ATTRIBUTE)


@workflow.defn(
    name=names.MODEL_WORKFLOW, failure_exception_types=policies.OTHER_HISTORY, versioning_behavior=policies.ENTITY
)
class ModelWorkflow:
    """The entity of one model. Ends when its model is retired; another submission starts it again.

    `EntityState` decides, this class acts on it: `ChangeRuns` has the runs, `ChangeEnds` the ends that have to be
    found out, `SupersededMarks` records what will not run.
    """

    @workflow.init
    def __init__(self, input: ModelEntityInput) -> None:  # noqa: A002 - Temporal passes it by place
        self._state = EntityState(input)
        self._runs = ChangeRuns(self._state)
        self._marks = SupersededMarks(self._state)
        self._ends = ChangeEnds(self._state, self._runs, self._marks)
        self._shown = ""

    @workflow.run
    async def run(self, input: ModelEntityInput) -> None:  # noqa: A002
        """Execute changes forever; continue as new, with all that is in progress, when the history has grown long."""
        workflow.upsert_search_attributes([MODEL.value_set(input.model)])
        self._show()
        if not self._state.rebuilt:
            self._state.rebuild(await self._open_changes())
            self._show()
        while self._state.is_open or not workflow.all_handlers_finished():
            await self._work()
            await workflow.wait_condition(workflow.all_handlers_finished)

    # submissions

    @workflow.update(name=names.SUBMIT_CHANGE)
    def submit_change(self, change: QueuedChange) -> ChangeAccepted:
        """Queue a change. If its id is known already, return the same answer and queue nothing."""
        state = self._state
        state.updates += 1
        known = state.knows(change)
        if not known and not state.is_queued(change):
            state.enqueue(change)
            state.retired = False
            self._runs.stop_for(change)
            state.note_newer(change)
            self._show()
        elif state.forget_weighing(change):
            self._runs.wake(change)
        waiting_before = [waiting for waiting in state.queue if waiting.sequence < change.sequence]
        return ChangeAccepted(
            change_id=change.id,
            position=0 if known else len(waiting_before) + (state.running is not None),
            lifecycle_workflow_id=names.lifecycle_workflow_id(state.model, change.id),
        )

    @submit_change.validator
    def _check_change(self, change: QueuedChange) -> None:
        """Refuse changes that can never run; a refused one is not added to the history."""
        needs_generation = change.kind in {ChangeKind.PUBLISH, ChangeKind.ROLLBACK}
        if needs_generation and change.generation is None:
            msg = f"change {change.id}: a {change.kind} names its generation"
            raise ApplicationError(msg, type="InvalidInput", non_retryable=True)
        if change.kind is ChangeKind.MOVE and change.plan_id is None:
            msg = f"change {change.id}: a move names its plan"
            raise ApplicationError(msg, type="InvalidInput", non_retryable=True)

    @workflow.signal(name=names.CHANGE_ENDED)
    def change_ended(self, ended: ChangeEnded) -> None:
        """Record that a run of an earlier entity has ended."""
        self._ends.reported = ended.change_id

    @workflow.signal(name=names.LOOK_AGAIN)
    def look_again(self) -> None:
        """Read the open changes again: one of them has no run."""
        self._state.looks_again = True

    @workflow.query(name=names.MODEL_STATE)
    def model_state(self) -> ModelEntityState:
        """Return the running change and the waiting ones."""
        state = self._state
        return ModelEntityState(
            model=state.model, running=state.running, queue=state.queue, handled=state.handled, held=state.held
        )

    # controls: a pause concerns the model's whole queue of changes, an abort concerns the running change

    @workflow.update(name=names.PAUSE_CHANGES)
    async def pause_changes(self, asked: ControlAsked) -> ControlAnswer:
        """Begin nothing further; the running change stops at its next step.

        If paused again, the newer reason counts. An entity that has just begun answers once the run that an earlier one
        started has been told.
        """
        self._state.updates += 1
        self._state.held, self._state.heard_of_hold = asked, True
        self._show()
        await self._runs.signal_holds()
        await self._note(f"paused {asked.text}", asked)
        if self._takes_up:
            await workflow.wait_condition(lambda: not self._takes_up)
            await self._runs.signal_holds()
        return self._state.answer(ControlAction.PAUSE, f"paused {asked.text}")

    @workflow.update(name=names.RESUME_CHANGES)
    async def resume_changes(self, asked: ControlAsked) -> ControlAnswer:
        """Resume the changes. An entity that has just begun reads first whether the model is paused."""
        self._state.updates += 1
        await workflow.wait_condition(lambda: self._state.rebuilt)
        self._state.check_held()
        self._state.held = None
        self._show()
        await self._runs.signal_holds()
        await self._note(f"resumed {asked.text}", None)
        return self._state.answer(ControlAction.RESUME, f"resumed {asked.text}")

    @resume_changes.validator
    def _check_resume(self, asked: ControlAsked) -> None:  # noqa: ARG002 - the update's signature
        if self._state.rebuilt:
            self._state.check_held()

    @workflow.update(name=names.ABORT_RUN)
    async def abort_run(self, asked: ControlAsked) -> ControlAnswer:
        """Stop the running change and revert its moves.

        An entity that has just begun first determines the running change. If the running change passes another one,
        that one is stopped: the other is there only to mend. A retirement that waits for a freeze can be stopped; if
        the freeze ends first, it completes.
        """
        self._state.updates += 1
        if self._takes_up:
            await workflow.wait_condition(lambda: not self._takes_up)
            self._state.check_running(asked)
        meant = self._state.meant(asked)
        if meant is None or not self._state.reaches(meant):
            msg = f"nothing of {self._state.model} runs: there is nothing to abort"
            raise ApplicationError(msg, type="Conflict", non_retryable=True)
        self._runs.stop(meant, f"{names.ABORTED}{asked.text}")
        message = f"{meant.kind} {meant.id} is aborted {asked.text}"
        return self._state.answer(ControlAction.ABORT, message).model_copy(update={"change_id": meant.id})

    @abort_run.validator
    def _check_abort(self, asked: ControlAsked) -> None:
        if not self._takes_up:
            self._state.check_running(asked)

    # changes, one after the other

    @property
    def _long(self) -> bool:
        """True if this run of the entity should continue as new."""
        info = workflow.info()
        events = info.get_current_history_length()
        full = self._state.updates >= policies.MOST_UPDATES or events >= policies.MOST_EVENTS
        return full or info.is_continue_as_new_suggested()

    @property
    def _takes_up(self) -> bool:
        return not self._long and self._state.takes_up

    async def _work(self) -> None:
        """Execute the waiting changes, until nothing is left of a model that is retired."""
        state = self._state
        while state.is_open:
            await workflow.wait_condition(
                lambda: (
                    bool(state.superseded or state.begun or state.unweighed or state.looks_again)
                    or state.next() is not None
                    or self._long
                )
            )
            if state.looks_again:
                await self._look()
            await self._marks.record()
            if not state.begun and state.goes_behind and (waiting := state.unweighed) is not None:
                await self._may_pass(waiting)
            for passed in state.passed:  # by a run that an earlier run of the entity began
                await self._runs.follow(passed)
            if (change := state.begun[0] if state.begun else state.next()) is not None:
                await self._carry_out_next(change)
            state.passed = tuple(passed for passed in state.passed if passed in state.begun[1:])
            if self._long:
                await self._renew()

    async def _renew(self) -> None:
        await workflow.wait_condition(workflow.all_handlers_finished)
        workflow.continue_as_new(self._state.build_input(looks_again=self._marks.will_look))

    async def _carry_out_next(self, change: QueuedChange) -> None:
        state = self._state
        begun = state.begin(change)
        self._show()
        run = asyncio.create_task(self._carry_out(change, begun=begun))
        while not run.done():
            await workflow.wait_condition(
                lambda: (
                    run.done()
                    or self._marks.are_wanted
                    or state.newer is not None
                    or state.unweighed is not None
                    or state.is_look_due
                    or self._long
                )
            )
            if self._long and not run.done():
                await self._renew()
            if state.is_look_due and (lost := await self._look()) is not None and not run.done():
                await self._run_passing(lost, run)
            if self._marks.are_wanted:
                self._marks.begin()
            await self._runs.signal_newer()
            waiting = None if run.done() else state.unweighed
            if waiting is not None and await self._may_pass(waiting):
                await self._run_passing(waiting, run)
        result = await run
        self._note_end(change, result)
        await self._marks.record()

    async def _run_passing(self, change: QueuedChange, run: asyncio.Task[LifecycleResult]) -> None:
        """Carry out a change while the running one waits; then go on with that one, and tell it what it missed."""
        state = self._state
        passed, before, told_newer = state.running, state.passed, state.told_newer
        if passed is None:
            return
        state.passed, state.told_newer = (*before, passed), False
        await self._carry_out_next(change)
        state.passed, state.running, state.told_newer = before, passed, told_newer
        if not run.done():
            await self._runs.signal_all()
        self._show()

    def _note_end(self, change: QueuedChange, result: LifecycleResult) -> None:
        self._state.end(change, result)
        self._runs.forget(change)
        self._show()

    async def _carry_out(self, change: QueuedChange, *, begun: bool) -> LifecycleResult:
        """Run the change's lifecycle to its end, or follow the run that exists. The entity survives every outcome."""
        if begun and (result := await self._ends.follow(change)) is not None:
            return result
        try:
            child = await self._runs.start(change)
            await self._runs.signal_all()
            return await child
        except WorkflowAlreadyStartedError:
            return await self._ends.follow(change) or await self._ends.record_gone(change)
        except ChildWorkflowError as error:
            why = None if is_cancelled_exception(error) else explain_error(error)
            return await self._ends.record_failure(change, why)
        except asyncio.CancelledError:
            if workflow.cancellation_reason() is not None:
                raise
            return await self._ends.record_failure(change, None)

    async def _may_pass(self, change: QueuedChange) -> bool:
        """Ask the store once whether a waiting change may pass; False, too, if what was in the way has changed.

        A failover is a move away from a lost region; it passes the waits of all other changes, those of repairs and
        rollbacks too, and also of a run that itself passes others. A repair passes no emergency. A rollback needs no
        such pass: it stops what it meets. The run that is passed goes on waiting; the store's fence keeps the two from
        moving the model at the same time.
        """
        state = self._state
        running = state.running.id if state.running else None
        state.weighed.add((change.id, running))
        asked = ChangeAsked(model=state.model, change_id=change.id)
        try:
            answer = await perform(policies.MAY_PASS, asked, f"may {change.kind} {change.id} pass?")
        except ActivityError as error:
            workflow.logger.error("whether %s may pass is not known: %s", change.id, explain_error(error).message)
            return False
        if not answer.passes or change not in state.queue:
            return False
        state.passing = (*state.passing, change.id)
        return running == (state.running.id if state.running else None)

    # what the store has

    async def _open_changes(self) -> OpenChanges:
        model = self._state.model
        return await perform(policies.OPEN_CHANGES, ModelAsked(model=model), f"read what is open of {model}")

    async def _look(self) -> QueuedChange | None:
        """Take up the open changes that this entity lost.

        It gave up on one (its end could not be recorded, or it could not be marked as superseded), or the API signaled
        that a change lacks its run. Return the one of them that holds the model's fence, if any.
        """
        self._state.looks_again = False
        known = self._state.tracked_ids
        try:
            found = await self._open_changes()
        except ActivityError as error:
            workflow.logger.error("the open changes could not be read: %s", explain_error(error).message)
            self._marks.give_up()
            return None
        lost = self._state.recover(found, known)
        for item in lost:
            workflow.logger.warning("change %s was lost, and is taken up again", item.change.id)
            if not item.begun:
                self._runs.stop_for(item.change)
                self._state.note_newer(item.change)
        return next((item.change for item in lost if item.begun and item.moves), None)

    async def _note(self, message: str, pause: ControlAsked | None) -> None:
        held, reason = pause is not None, Reason.PAUSED
        note = HoldNote(model=self._state.model, held=held, reason=reason, message=message, event=message, pause=pause)
        try:
            await perform(policies.NOTE_HOLD, note, f"record: {message}")
        except ActivityError as error:
            workflow.logger.error("%s could not be recorded: %s", message, explain_error(error).message)

    def _show(self) -> None:
        """Show the state in the Web UI."""
        workflow.set_current_details(self._state.describe())
        if self._state.stage != self._shown:
            self._shown = self._state.stage
            workflow.upsert_search_attributes([STAGE.value_set(self._shown)])
