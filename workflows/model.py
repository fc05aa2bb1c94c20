"""Workflow `model`: the one long-lived entity of a model. It orders the model's changes and carries them out one by one.

A waiting change that a newer one makes pointless is superseded (workflows/ordering.py says when). The entity survives
whatever its children do: a failed one is recorded and the next one runs. It can be paused: what runs stops at its next
step, nothing further begins, and rollbacks and retirements pass.
"""

import asyncio

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
    from ipnext.model.controls import ControlAsked, Hold
    from ipnext.model.lifecycle import (
        ChangeAccepted,
        ChangeKind,
        ChangeState,
        LifecycleInput,
        LifecycleResult,
        ModelEntityInput,
        ModelEntityState,
        QueuedChange,
        RecordInput,
        SupersededInput,
    )
    from ipnext.model.status import Reason
    from workflows import policies
    from workflows.failing import explained, stopped
    from workflows.held import ROLLS_OUT, Held, of_generation
    from workflows.ordering import URGENT, Superseded, enqueue
    from workflows.policies import perform

MODEL = SearchAttributeKey.for_keyword(names.MODEL_ATTRIBUTE)
STAGE = SearchAttributeKey.for_keyword(names.STAGE_ATTRIBUTE)

REMEMBERED = 500
"""Ids of handled changes that are remembered, so that one submitted again is not run again."""


@workflow.defn(name=names.MODEL_WORKFLOW, versioning_behavior=policies.ENTITY)
class ModelWorkflow(Held):
    """The entity of one model. Ends when its model is retired; another submission starts it again."""

    @workflow.init
    def __init__(self, input: ModelEntityInput) -> None:  # noqa: A002 - Temporal passes it by place
        super().__init__(input)
        self._recent = input.recent
        self._superseded: tuple[Superseded, ...] = ()
        self._handled = 0
        self._retired = False

    @workflow.run
    async def run(self, input: ModelEntityInput) -> None:  # noqa: A002
        """Carry out changes for ever; continue as new, with the queue, when the history has grown long."""
        workflow.upsert_search_attributes([MODEL.value_set(input.model)])
        self._show()
        while not self._retired or self._queue or self._superseded:
            await workflow.wait_condition(lambda: bool(self._superseded) or self._next() is not None)
            await self._record_superseded()
            if (change := self._next()) is not None:
                await self._carry_out_next(change)
            if workflow.info().is_continue_as_new_suggested():
                await workflow.wait_condition(workflow.all_handlers_finished)
                workflow.continue_as_new(self._carried(), task_timeout=names.TASK_TIMEOUT)
        await workflow.wait_condition(workflow.all_handlers_finished)

    @workflow.update(name=names.SUBMIT_CHANGE)
    def submit_change(self, change: QueuedChange) -> ChangeAccepted:
        """Queue a change. The same id again answers the same and queues nothing."""
        known = change.id in self._recent or (self._running is not None and self._running.id == change.id)
        if not known and all(waiting.id != change.id for waiting in self._queue):
            self._recent = (*self._recent, change.id)[-REMEMBERED:]
            self._queue, gone = enqueue(self._queue, change)
            self._superseded += gone
            self._retired = False
            self._stop_running_for(change)
            self._tell_running_of(change)
            self._show()
        waiting_before = [waiting for waiting in self._queue if waiting.sequence < change.sequence]
        return ChangeAccepted(
            change_id=change.id,
            position=0 if known else len(waiting_before) + (self._running is not None),
            lifecycle_workflow_id=names.lifecycle_workflow_id(self._model, change.id),
        )

    @submit_change.validator
    def _check_change(self, change: QueuedChange) -> None:
        """Refuse what can never run; nothing of it enters the history."""
        needs_generation = change.kind in {ChangeKind.PUBLISH, ChangeKind.ROLLBACK}
        if needs_generation and change.generation is None:
            msg = f"change {change.id}: a {change.kind} names its generation"
            raise ApplicationError(msg, type="InvalidInput", non_retryable=True)
        if change.kind is ChangeKind.MOVE and change.plan_id is None:
            msg = f"change {change.id}: a move names its plan"
            raise ApplicationError(msg, type="InvalidInput", non_retryable=True)

    @workflow.query(name=names.MODEL_STATE)
    def model_state(self) -> ModelEntityState:
        """What runs and what waits."""
        return ModelEntityState(
            model=self._model, running=self._running, queue=self._queue, handled=self._handled, held=self._held
        )

    async def _carry_out_next(self, change: QueuedChange) -> None:
        self._queue = tuple(waiting for waiting in self._queue if waiting.id != change.id)
        self._running = change
        self._show()
        run = asyncio.create_task(self._carry_out(change))
        while not run.done():
            await workflow.wait_condition(lambda: run.done() or bool(self._superseded) or self._untold is not None)
            await self._record_superseded()
            await self._tell_newer()
        result = await run
        gave_way = change.kind in ROLLS_OUT and result.reason is Reason.SUPERSEDED
        self._turned = self._turned + 1 if gave_way else 0
        self._running, self._child, self._untold = None, None, None
        self._handled += 1
        if result.state is ChangeState.DONE:
            self._serving = result.generation or self._serving
            self._retired = change.kind is ChangeKind.RETIRE
        self._show()

    async def _carry_out(self, change: QueuedChange) -> LifecycleResult:
        """Run the change's lifecycle to its end. Whatever it does, the entity goes on."""
        held = None if change.kind in URGENT else self._held
        try:
            self._child = await workflow.start_child_workflow(
                names.LIFECYCLE_WORKFLOW,
                LifecycleInput(model=self._model, change=change, held=held),
                result_type=LifecycleResult,
                id=names.lifecycle_workflow_id(self._model, change.id),
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                task_timeout=names.TASK_TIMEOUT,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                static_summary=f"{self._model}: {change.kind}" + of_generation(change.generation),
            )
            for waiting in self._queue:
                self._stop_running_for(waiting)
                self._tell_running_of(waiting)
            if self._held != held and change.kind not in URGENT:
                asked = self._held or ControlAsked()
                await self._signal_running(names.HOLD_CHANGES, Hold(held=self._held is not None, asked=asked))
            return await self._child
        except WorkflowAlreadyStartedError:
            return LifecycleResult(state=ChangeState.SUPERSEDED, message="a run of this change exists already")
        except ChildWorkflowError as error:
            return await self._record_failure(change, error)
        except asyncio.CancelledError as error:
            if workflow.cancellation_reason() is not None:
                raise
            return await self._record_failure(change, error)

    async def _record_failure(self, change: QueuedChange, error: BaseException) -> LifecycleResult:
        """A run that could not record its own end (a bug, terminated, told to end before it began): the entity does it."""
        if isinstance(error, ChildWorkflowError) and not is_cancelled_exception(error):
            reason, message = explained(error)
            result = LifecycleResult(
                state=ChangeState.ROLLED_BACK, generation=change.generation, reason=reason, message=message
            )
        else:
            meant, why = self._told_to_end or (None, None)
            result = stopped(change.generation, why if meant == change.id else None, moving=False)
        record = RecordInput(
            model=self._model,
            change_id=change.id,
            kind=change.kind,
            generation=change.generation,
            result=result,
            run_id=self._child.first_execution_run_id or "" if self._child else "",
        )
        try:
            await perform(policies.FINISH_CHANGE, record, f"record the failure of {change.id}")
        except ActivityError as again:
            workflow.logger.error("change %s failed and could not be recorded: %s", change.id, explained(again).message)
        return result

    async def _record_superseded(self) -> None:
        while self._superseded:
            (change, by), self._superseded = self._superseded[0], self._superseded[1:]
            record = SupersededInput(model=self._model, change_ids=(change.id,), by=by.id)
            try:
                await perform(policies.MARK_SUPERSEDED, record, f"{change.kind} {change.id} is superseded by {by.id}")
            except ActivityError as error:
                workflow.logger.error("%s could not be marked superseded: %s", change.id, explained(error).message)

    def _carried(self) -> ModelEntityInput:
        return ModelEntityInput(
            model=self._model,
            queue=self._queue,
            recent=self._recent,
            serving_generation=self._serving,
            held=self._held,
            turned=self._turned,
        )
