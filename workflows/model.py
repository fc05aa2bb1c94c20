"""Workflow `model`: the one long-lived entity of a model. It orders the model's changes and executes them one by one.

A newer change supersedes waiting ones (workflows/entity/change_queue.py has the rules). The entity survives all
failures of its children: a failed one is recorded, once all that it moved is reverted, and the next one runs. It can be
paused: the running change stops at its next step, nothing further begins, but rollbacks, retirements and repairs pass.

The store is the source of truth. An entity that begins (the first one, or after one that was terminated) reads the open
changes from it, and awaits the runs that exist. If its history has grown long, it continues as new, also while a run is
in progress. If its history does not replay, it ends, and another one begins.
"""

import asyncio
from contextlib import suppress

from temporalio import workflow
from temporalio.common import SearchAttributeKey, WorkflowIDReusePolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.messages import (
        ChangeAccepted,
        ChangeKind,
        ChangeState,
        LifecycleInput,
        LifecycleResult,
        ModelEntityInput,
        ModelEntityState,
        QueuedChange,
        RecordInput,
        StageInput,
        StopAsked,
        ToldHold,
    )
    from ipnext.model.lifecycle.status import Reason
    from ipnext.model.lifecycle.takeover import ChangeAsked, ChangeEnded, TakeOver
    from workflows import policies
    from workflows.entity.control import ROLLS_OUT, of_generation
    from workflows.entity.open_changes import OpenChangeReader
    from workflows.errors import STOPPED_OUTSIDE, FailureReason, explain_error, make_stopped, name_preempting
    from workflows.policies import perform
    from workflows.stages.retirement import release
    from workflows.stages.takeover import wait_reverted

MODEL = SearchAttributeKey.for_keyword(names.MODEL_ATTRIBUTE)
STAGE = SearchAttributeKey.for_keyword(names.STAGE_ATTRIBUTE)

GONE = FailureReason(Reason.INTERNAL_ERROR, "its run was ended from outside")
"""Cause of failure of a change whose run was started by another entity, and is gone without a record."""


@workflow.defn(
    name=names.MODEL_WORKFLOW, failure_exception_types=policies.OTHER_HISTORY, versioning_behavior=policies.ENTITY
)
class ModelWorkflow(OpenChangeReader):
    """The entity of one model. Ends when its model is retired; another submission starts it again."""

    @workflow.init
    def __init__(self, input: ModelEntityInput) -> None:  # noqa: A002 - Temporal passes it by place
        super().__init__(input)
        self._handled = 0
        self._retired = input.retired
        self._reported = ""
        """The change that last reported its end."""

    @workflow.run
    async def run(self, input: ModelEntityInput) -> None:  # noqa: A002
        """Execute changes forever; continue as new, with all that is in progress, when the history has grown long."""
        workflow.upsert_search_attributes([MODEL.value_set(input.model)])
        self._show()
        if not self._rebuilt:
            await self._rebuild()
        while self._open:
            await self._work()
            await workflow.wait_condition(workflow.all_handlers_finished)

    @workflow.update(name=names.SUBMIT_CHANGE)
    def submit_change(self, change: QueuedChange) -> ChangeAccepted:
        """Queue a change. If its id is known already, return the same answer and queue nothing."""
        self._asked += 1
        known = change.id in self._recent or any(change.id == other.id for other in self._at_work)
        if not known and all(waiting.id != change.id for waiting in self._queue):
            self._enqueue(change)
            self._retired = False
            self._stop_running_for(change)
            self._note_newer(change)
            self._show()
        else:
            self._weigh_again(change)
        waiting_before = [waiting for waiting in self._queue if waiting.sequence < change.sequence]
        return ChangeAccepted(
            change_id=change.id,
            position=0 if known else len(waiting_before) + (self._running is not None),
            lifecycle_workflow_id=names.lifecycle_workflow_id(self._model, change.id),
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
        self._reported = ended.change_id

    @workflow.query(name=names.MODEL_STATE)
    def model_state(self) -> ModelEntityState:
        """Return the running change and the waiting ones."""
        return ModelEntityState(
            model=self._model, running=self._running, queue=self._queue, handled=self._handled, held=self._held
        )

    @property
    def _open(self) -> bool:
        return not self._retired or bool(self._queue or self._superseded or self._unmarked or self._begun)

    @property
    def _long(self) -> bool:
        """True if this run of the entity should continue as new."""
        info = workflow.info()
        events = info.get_current_history_length()
        full = self._asked >= policies.MOST_UPDATES or events >= policies.MOST_EVENTS
        return full or info.is_continue_as_new_suggested()

    @property
    def _is_look_due(self) -> bool:
        """True if a look is due while a change runs that does not pass another one."""
        return self._looks_again and not self._passed

    @property
    def _goes_behind(self) -> bool:
        """True if nothing would run next but a repair, which a failover goes before."""
        following = self._next()
        return following is None or following.kind is ChangeKind.REPAIR

    @property
    def _takes_up(self) -> bool:
        return not self._long and (
            not self._rebuilt or (bool(self._begun) and not self._handled and not self._reachable)
        )

    @property
    def _at_work(self) -> tuple[QueuedChange, ...]:
        """The running change, and the begun ones that are settled after it."""
        running = () if self._running is None else (self._running,)
        return (*running, *(change for change in self._begun if change not in running))

    async def _work(self) -> None:
        """Execute the waiting changes, until nothing is left of a model that is retired."""
        while self._open:
            await workflow.wait_condition(
                lambda: (
                    bool(self._superseded or self._begun or self._unweighed_change or self._looks_again)
                    or self._next() is not None
                    or self._long
                )
            )
            if self._looks_again:
                await self._look()
            await self._record_superseded()
            if not self._begun and self._goes_behind and (waiting := self._unweighed_change) is not None:
                await self._may_pass(waiting)
            for passed in self._passed:  # by a run that an earlier run of the entity began
                await self._follow(passed)
            if (change := self._begun[0] if self._begun else self._next()) is not None:
                await self._carry_out_next(change)
            self._passed = tuple(passed for passed in self._passed if passed in self._begun[1:])
            if self._long:
                await self._renew()

    async def _renew(self) -> None:
        await workflow.wait_condition(workflow.all_handlers_finished)
        workflow.continue_as_new(self._build_input())

    async def _carry_out_next(self, change: QueuedChange) -> None:
        self._queue = tuple(waiting for waiting in self._queue if waiting.id != change.id)
        begun = change in self._begun
        self._begun = (change, *(other for other in self._begun if other != change))
        self._running = change
        self._show()
        run = asyncio.create_task(self._carry_out(change, begun=begun))
        while not run.done():
            await workflow.wait_condition(
                lambda: (
                    run.done()
                    or self._marks_wanted
                    or self._untold is not None
                    or self._unweighed_change is not None
                    or self._is_look_due
                    or self._long
                )
            )
            if self._long and not run.done():
                await self._renew()
            if self._is_look_due and (lost := await self._look()) is not None and not run.done():
                await self._run_passing(lost, run)
            if self._marks_wanted:
                self._marker = asyncio.create_task(self._mark())
            await self._signal_newer()
            waiting = None if run.done() else self._unweighed_change
            if waiting is not None and await self._may_pass(waiting):
                await self._run_passing(waiting, run)
        result = await run
        self._note_end(change, result)
        await self._record_superseded()

    async def _run_passing(self, change: QueuedChange, run: asyncio.Task[LifecycleResult]) -> None:
        """Carry out a change while the running one waits; then go on with that one, and tell it what it missed."""
        passed, before, told_newer = self._running, self._passed, self._told_newer
        if passed is None:
            return
        self._passed, self._told_newer = (*before, passed), False
        await self._carry_out_next(change)
        self._passed, self._running, self._told_newer = before, passed, told_newer
        if not run.done():
            await self._signal_all()
        self._show()

    def _note_end(self, change: QueuedChange, result: LifecycleResult) -> None:
        if not self._passed:  # one that passes a run leaves the count of those before that run
            gave_way = change.kind in ROLLS_OUT and result.reason is Reason.SUPERSEDED
            self._turned = self._turned + 1 if gave_way else 0
        self._running, self._untold, self._told_newer = None, None, False
        self._children.pop(change.id, None)
        self._told_hold.pop(change.id, None)
        self._stops.pop(change.id, None)
        self._follows.discard(change.id)
        self._passing = tuple(other for other in self._passing if other != change.id)
        self._begun = tuple(other for other in self._begun if other.id != change.id)
        self._handled += 1
        if result.state is ChangeState.DONE:
            self._serving = result.generation or self._serving
            self._retired = change.kind is ChangeKind.RETIRE
        self._show()

    async def _carry_out(self, change: QueuedChange, *, begun: bool) -> LifecycleResult:
        """Run the change's lifecycle to its end, or follow the run that exists. The entity survives every outcome."""
        if begun and (result := await self._follow_change(change)) is not None:
            return result
        held = None if self._passes_pause(change) else self._held
        try:
            self._children[change.id] = await workflow.start_child_workflow(
                names.LIFECYCLE_WORKFLOW,
                LifecycleInput(model=self._model, change=change, held=held),
                result_type=LifecycleResult,
                id=names.lifecycle_workflow_id(self._model, change.id),
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                task_timeout=workflow.info().task_timeout,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                priority=policies.priority_of(urgent=change.kind in policies.URGENT_KINDS),
                static_summary=f"{self._model}: {change.kind}" + of_generation(change.generation),
            )
            self._told_hold[change.id] = held
            await self._signal_all()
            return await self._children[change.id]
        except WorkflowAlreadyStartedError:
            return await self._follow_change(change) or await self._record_gone(change)
        except ChildWorkflowError as error:
            why = None if is_cancelled_exception(error) else explain_error(error)
            return await self._record_failure(change, why)
        except asyncio.CancelledError:
            if workflow.cancellation_reason() is not None:
                raise
            return await self._record_failure(change, None)

    async def _signal_all(self) -> None:
        """Send the run its missed signals: changes that preempt or supersede it, and a pause or its end."""
        for waiting in self._queue:
            self._stop_running_for(waiting)
            self._note_newer(waiting)
        if self._running is not None:
            await self._signal_hold(self._running)

    async def _signal_missed(self, change: QueuedChange) -> None:
        """Send a followed run its missed signals, unless it was told to end."""
        if change.id not in self._stops:
            await self._signal_all()

    async def _follow_change(self, change: QueuedChange) -> LifecycleResult | None:
        """Wait for the end of a run that an earlier entity started. None if the change has never begun."""
        looks = 0
        while True:
            asked = ChangeAsked(model=self._model, change_id=change.id)
            seen = await perform(policies.LOOK_AT_CHANGE, asked, f"see how {change.id} stands")
            if seen.state.final:
                generation = seen.generation or change.generation
                return LifecycleResult(
                    state=seen.state, generation=generation, reason=seen.reason, message=seen.message
                )
            if not seen.runs:
                return await self._record_gone(change) if seen.state is ChangeState.RUNNING else None
            if not looks:
                await self._follow(change)
                await self._signal_missed(change)
            soon = looks < policies.FOLLOWED_LOOKS_SOON
            looks += 1
            with suppress(asyncio.TimeoutError):
                await workflow.wait_condition(
                    lambda: self._reported == change.id,
                    timeout=policies.FOLLOWED_LOOK_SOON if soon else policies.FOLLOWED_LOOK,
                    timeout_summary=f"{change.id} runs",
                )
            self._reported = ""

    async def _record_gone(self, change: QueuedChange) -> LifecycleResult:
        """Record the end of a followed run that left no record: as stopped if it was asked to end, else as failed."""
        return await self._record_failure(change, None if change.id in self._stops else GONE)

    async def _record_failure(self, change: QueuedChange, why: FailureReason | None) -> LifecycleResult:
        """Record the end of a run that could not do so itself (a bug, terminated, cancelled before it began).

        All that it moved is reverted by then. `why` is None for a run that was cancelled.
        """
        told = self._stops.get(change.id)
        reason, message = why or FailureReason(Reason.SUPERSEDED, told or STOPPED_OUTSIDE)
        asked = TakeOver(model=self._model, change=change, reason=reason, message=message)
        taken = await wait_reverted(asked)
        generation = taken.generation or change.generation
        if taken.withdrawn:
            await release(StageInput(model=self._model, change_id=change.id, kind=change.kind, generation=0))
            message = f"{message}, after its routes were removed: it was completed"
            result = LifecycleResult(state=ChangeState.DONE, message=message)
        elif taken.done:
            message = f"{message}, after its traffic had moved"
            result = LifecycleResult(state=ChangeState.DONE, generation=generation, message=message)
        elif why is None:
            result = make_stopped(generation, told, moving=taken.moved)
            result = result.model_copy(update={"message": "; ".join(filter(None, (result.message, taken.undone)))})
        else:
            state = ChangeState.ROLLED_BACK if taken.moved else ChangeState.REFUSED
            message = f"{message}; {taken.undone}" if taken.undone else message
            result = LifecycleResult(state=state, generation=generation, reason=reason, message=message)
        result = name_preempting(result, told)
        record = RecordInput(
            model=self._model,
            change_id=change.id,
            kind=change.kind,
            generation=generation,
            result=result,
            run_id=(child.first_execution_run_id or "") if (child := self._children.get(change.id)) else "",
            revision=taken.revision,
        )
        try:
            await perform(policies.FINISH_CHANGE, record, f"record the failure of {change.id}")
        except ActivityError as again:
            workflow.logger.error(
                "change %s failed and could not be recorded: %s", change.id, explain_error(again).message
            )
            self._give_up()
        return result

    def _build_input(self) -> ModelEntityInput:
        return ModelEntityInput(
            model=self._model,
            queue=self._queue,
            recent=self._recent,
            serving_generation=self._serving,
            held=self._held,
            turned=self._turned,
            rebuilt=True,
            begun=self._begun,
            superseded=(*self._unmarked, *self._superseded),
            told_newer=self._told_newer,
            stops=tuple(StopAsked(change_id=change, reason=why) for change, why in self._stops.items()),
            retired=self._retired,
            passing=tuple(sorted(self._tracked_ids.intersection(self._passing))),
            told_hold=tuple(ToldHold(change_id=told, held=held) for told, held in self._told_hold.items()),
            passed_ids=tuple(passed.id for passed in self._passed),
            looks_again=self._will_look,
        )
