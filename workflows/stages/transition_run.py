"""The transition of a change in its lifecycle run: started, controlled, awaited, and reverted if its run is gone.

`workflows.lifecycle` is the run itself; `workflows.transition` executes the waves.
"""

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes, WorkflowIDReusePolicy
from temporalio.exceptions import ChildWorkflowError, FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.changes.controls import ControlAsked, Hold, NewerWaits
    from ipnext.model.lifecycle.changes.lifecycle_run import ChangeBegun, LifecycleInput, StageInput
    from ipnext.model.lifecycle.changes.takeover import ChangeEnded, TakeOver
    from ipnext.model.lifecycle.changes.transition_run import TransitionInput, TransitionPlanned, TransitionResult
    from workflows.entity.change_queue import PASSES_PAUSE
    from workflows.errors import FailureReason, explain_error, stop_reason, to_the_end
    from workflows.policies import URGENT_KINDS, priority_of
    from workflows.stages.takeover import wait_reverted

MODEL = SearchAttributeKey.for_keyword(names.MODEL_ATTRIBUTE)
OWNER = SearchAttributeKey.for_keyword(names.OWNER_ATTRIBUTE)
REGIONS = SearchAttributeKey.for_keyword_list(names.REGIONS_ATTRIBUTE)
KIND = SearchAttributeKey.for_keyword(names.KIND_ATTRIBUTE)

Walk = workflow.ChildWorkflowHandle[TransitionInput, TransitionResult]


class TransitionRun:
    """The part of workflow `lifecycle` that has a transition as its child."""

    def __init__(self, input: LifecycleInput) -> None:  # noqa: A002 - as the workflow names it
        self._input = input
        self._held = input.held
        self._urgent = input.change.kind in URGENT_KINDS
        """True if its steps pass those of others."""
        self._newer: NewerWaits | None = None
        self._child: Walk | None = None
        self._lasting: TypedSearchAttributes | None = None
        """Search attributes that stay the same while the change runs."""
        self._reports = False
        """True if an entity that did not start this run follows it."""

    async def _report(self) -> None:
        """Report the end to the entity, if it requested that."""
        if not self._reports:
            return
        entity = workflow.get_external_workflow_handle(names.model_workflow_id(self._input.model))
        try:
            await entity.signal(names.CHANGE_ENDED, ChangeEnded(change_id=self._input.change.id))
        except FailureError:
            workflow.logger.info("the entity has gone")

    async def _pass_on(self, signal: str, argument: Hold | NewerWaits) -> None:
        """Send a signal to the transition, if it runs."""
        if self._child is None or self._child.done():
            return
        try:
            await self._child.signal(signal, argument)
        except FailureError:
            workflow.logger.info("the transition ended before it heard of %s", signal)

    async def _walk(self, stage: StageInput, planned: TransitionPlanned) -> TransitionResult:
        """Run the transition. If this run is terminated by hand, the transition reverts; it never stops half-way."""
        held = None if self._input.change.kind in PASSES_PAUSE else self._held
        start = workflow.start_child_workflow(
            names.TRANSITION_WORKFLOW,
            TransitionInput(
                transition_id=planned.transition_id,
                model=stage.model,
                generation=stage.generation,
                waves=planned.waves,
                deadline_seconds=planned.deadline_seconds,
                change_id=stage.change_id,
                approval=planned.approval,
                manual_deadline_seconds=planned.manual_deadline_seconds,
                on_newer=planned.on_newer,
                gates=planned.gates,
                back=planned.back,
                held=held,
                fence=planned.fence,
                urgent=self._urgent,
                times_replicas=planned.times_replicas,
            ),
            result_type=TransitionResult,
            id=names.transition_workflow_id(planned.transition_id),
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            task_timeout=workflow.info().task_timeout,
            priority=priority_of(urgent=self._urgent),
            parent_close_policy=workflow.ParentClosePolicy.REQUEST_CANCEL,
            search_attributes=self._lasting,
            static_summary=f"{stage.model}: {planned.waves} waves to generation {stage.generation}",
        )
        # If a stop arrives while the child starts, it must not leave the child behind: the run ends when its transition
        # has ended.
        self._child = child = await to_the_end(start)
        if (why := stop_reason()) is not None:
            child.cancel(why)
        try:
            return await self._follow_child(held)
        except ChildWorkflowError as error:
            if is_cancelled_exception(error):
                raise
            return await to_the_end(self._revert(explain_error(error)))

    async def _revert(self, why: FailureReason) -> TransitionResult:
        """Revert a transition whose run was terminated, or failed by a bug."""
        asked = TakeOver(model=self._input.model, change=self._input.change, reason=why.reason, message=why.message)
        taken = await wait_reverted(asked)
        if taken.done:
            return TransitionResult(done=True, waves_done=0, message=why.message)
        message = f"{why.message}; {taken.undone}" if taken.undone else why.message
        return TransitionResult(done=False, waves_done=0, reason=why.reason, message=message, undone=taken.undone)

    async def _follow_child(self, held: ControlAsked | None) -> TransitionResult:
        """Send the transition the signals that arrived while it started, and wait for its end."""
        child = self._child
        if child is None:
            msg = "the transition was not started"
            raise ValueError(msg)
        if self._held != held:
            await self._pass_on(
                names.HOLD_CHANGES, Hold(held=self._held is not None, asked=self._held or ControlAsked())
            )
        if self._newer is not None:
            await self._pass_on(names.NEWER_WAITS, self._newer)
        try:
            return await asyncio.shield(child)
        except asyncio.CancelledError:
            child.cancel(stop_reason())  # by itself the SDK passes no reason on
            return await child


def lasting_attributes(input: LifecycleInput, begun: ChangeBegun) -> TypedSearchAttributes:  # noqa: A002 - its name in the workflow
    """Return search attributes that stay the same for the whole run and its transition."""
    pairs: list[SearchAttributePair[Any]] = [
        SearchAttributePair(MODEL, input.model),
        SearchAttributePair(KIND, input.change.kind.value),
    ]
    if begun.owner:
        pairs.append(SearchAttributePair(OWNER, begun.owner))
    if begun.regions:
        pairs.append(SearchAttributePair(REGIONS, begun.regions))
    return TypedSearchAttributes(pairs)
