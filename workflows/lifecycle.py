"""Workflow `lifecycle`: carries one change of one model through its stages. Child of the model's entity.

    publish   metadata, validation, optimization where the manifest has it split, planning, transition
    rollback  metadata, transition (what has served before is not validated again); planning between them where the
              generation was cut into other parts than those in place
    apply     the same
    move      transition (to the plan that the change names)
    retire    out of the gateways, then all replicas end

Then, whatever came of it, the end is recorded: what serves, why, and how the change ended.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from temporalio import workflow
from temporalio.common import SearchAttributeKey, SearchAttributeUpdate, WorkflowIDReusePolicy
from temporalio.exceptions import ActivityError, ChildWorkflowError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle import (
        ChangeBegun,
        ChangeKind,
        ChangeState,
        LifecycleInput,
        LifecycleResult,
        ProgressInput,
        RecordInput,
        StageInput,
        TransitionInput,
        TransitionPlanned,
        TransitionResult,
    )
    from ipnext.model.status import Reason
    from workflows import policies
    from workflows.failing import explained, to_the_end
    from workflows.policies import perform

MODEL = SearchAttributeKey.for_keyword(names.MODEL_ATTRIBUTE)
STAGE = SearchAttributeKey.for_keyword(names.STAGE_ATTRIBUTE)
GENERATION = SearchAttributeKey.for_int(names.GENERATION_ATTRIBUTE)

Stage = Callable[[StageInput], Awaitable[LifecycleResult | None]]
"""Carries a stage out. None: go on with the next one; a result ends the run."""


@workflow.defn(name=names.LIFECYCLE_WORKFLOW, failure_exception_types=policies.BUGS)
class LifecycleWorkflow:
    """One change of one model."""

    @workflow.init
    def __init__(self, input: LifecycleInput) -> None:  # noqa: A002 - Temporal passes it by place
        self._input = input
        self._plan_id = input.change.plan_id
        self._note = ""
        self._cuts = False
        self._places = False
        self._moving = False

    @workflow.run
    async def run(self, input: LifecycleInput) -> LifecycleResult:  # noqa: A002, ARG002
        """Carry the change out; its result says how it ended. Cancelling it ends it in order."""
        self._enter("begin", None)
        begun = await self._begin()
        if isinstance(begun, ChangeBegun) and begun.final is not None:
            return LifecycleResult(state=begun.final, generation=begun.generation, message="ended before")
        if isinstance(begun, LifecycleResult):
            result, begun = begun, ChangeBegun()
        else:
            result = await self._outcome(begun)
        self._enter("deployment", begun.generation)
        await to_the_end(perform(policies.FINISH_CHANGE, self._record(begun, result), f"record: {result.state}"))
        self._enter(result.state.value, begun.generation)
        return result

    async def _begin(self) -> ChangeBegun | LifecycleResult:
        """What the run works on, or why it can't begin (a rollback to what never served)."""
        try:
            return await perform(policies.BEGIN_CHANGE, self._progress(), f"begin {self._input.change.kind}")
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            reason, message = explained(error)
            reason = Reason.TRANSITION_REFUSED if reason is Reason.INTERNAL_ERROR else reason
            return LifecycleResult(state=ChangeState.REFUSED, reason=reason, message=message)

    async def _outcome(self, begun: ChangeBegun) -> LifecycleResult:
        """How the stages end, whatever ends them."""
        try:
            return await self._carry_out(begun)
        except (ActivityError, ChildWorkflowError) as error:
            if is_cancelled_exception(error):
                return self._stopped(begun)
            reason, message = explained(error)
            return self._ended(begun.generation, reason, message)
        except asyncio.CancelledError:
            return self._stopped(begun)

    async def _carry_out(self, begun: ChangeBegun) -> LifecycleResult:
        kind = self._input.change.kind
        if begun.generation is None and kind is not ChangeKind.RETIRE:
            message = "nothing is published yet: there is nothing to do"
            return LifecycleResult(state=ChangeState.DONE, reason=Reason.NOT_PUBLISHED, message=message)
        for name, carry_out in self._stages(kind):
            if not self._applies(name):
                continue
            self._enter(name, begun.generation)
            result = await carry_out(self._stage(begun))
            if result is not None:
                return result
            if workflow.cancellation_reason() is not None and name != "transition":
                return self._stopped(begun)
        generation = None if kind is ChangeKind.RETIRE else begun.generation
        return LifecycleResult(state=ChangeState.DONE, generation=generation, message=self._note)

    def _stages(self, kind: ChangeKind) -> tuple[tuple[str, Stage], ...]:
        metadata, validation = ("metadata", self._resolve), ("validation", self._validate)
        optimization = ("optimization", self._optimize)
        planning, transition = ("planning", self._place), ("transition", self._move)
        return {
            ChangeKind.PUBLISH: (metadata, validation, optimization, planning, transition),
            ChangeKind.ROLLBACK: (metadata, planning, transition),
            ChangeKind.APPLY: (metadata, validation, optimization, planning, transition),
            ChangeKind.MOVE: (transition,),
            ChangeKind.RETIRE: (("withdrawal", self._withdraw),),
        }[kind]

    def _applies(self, stage: str) -> bool:
        """Whether the run goes through a stage; `resolve_snapshots` told."""
        if stage == "optimization":
            return self._cuts
        return stage != "planning" or self._places or self._input.change.kind is not ChangeKind.ROLLBACK

    async def _resolve(self, stage: StageInput) -> LifecycleResult | None:
        """Its answer decides which stages follow: in runs that were recorded before it told, it says no to both."""
        resolved = await perform(
            policies.RESOLVE_SNAPSHOTS, stage, f"find the snapshots of generation {stage.generation}"
        )
        self._cuts, self._places, self._note = resolved.cuts, resolved.places, resolved.note
        return None

    async def _validate(self, stage: StageInput) -> LifecycleResult | None:
        report = await perform(policies.VALIDATE_GENERATION, stage, f"validate generation {stage.generation}")
        refused = report.refused
        if refused is None:
            return None
        message = f"{refused.check} of {refused.subject}: {refused.message}"
        return self._ended(stage.generation, refused.reason, message)

    async def _optimize(self, stage: StageInput) -> LifecycleResult | None:
        optimized = await perform(policies.OPTIMIZE_GENERATION, stage, f"cut generation {stage.generation} into parts")
        return self._ended(stage.generation, optimized.reason, optimized.summary) if optimized.refused else None

    async def _place(self, stage: StageInput) -> LifecycleResult | None:
        planned = await perform(policies.PLACE_MODEL, stage, f"place {stage.model} on the fleet")
        if not planned.feasible:
            return self._ended(stage.generation, planned.reason, planned.message)
        self._plan_id = planned.plan_id
        self._tell(planned.message)
        return None

    async def _move(self, stage: StageInput) -> LifecycleResult | None:
        planned = await perform(policies.PLAN_TRANSITION, stage, f"plan the way to generation {stage.generation}")
        if planned.refused is not None:
            return self._ended(stage.generation, Reason.TRANSITION_REFUSED, planned.refused)
        self._moving = True
        moved = await self._walk(stage, planned)
        if not moved.done:
            why = workflow.cancellation_reason()
            return self._ended(stage.generation, moved.reason, f"stopped: {why}" if why else moved.message)
        self._tell(moved.message)
        return None

    def _tell(self, message: str) -> None:
        """Add to what the end of the run tells."""
        self._note = "; ".join(text for text in (self._note, message) if text)

    async def _walk(self, stage: StageInput, planned: TransitionPlanned) -> TransitionResult:
        """The transition goes its way back where this run is terminated by hand; it never stops half way."""
        result: TransitionResult = await workflow.execute_child_workflow(
            names.TRANSITION_WORKFLOW,
            TransitionInput(
                transition_id=planned.transition_id,
                model=stage.model,
                generation=stage.generation,
                waves=planned.waves,
                deadline_seconds=planned.deadline_seconds,
                change_id=stage.change_id,
            ),
            result_type=TransitionResult,
            id=names.transition_workflow_id(planned.transition_id),
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            parent_close_policy=workflow.ParentClosePolicy.REQUEST_CANCEL,
            static_summary=f"{stage.model}: {planned.waves} waves to generation {stage.generation}",
        )
        return result

    async def _withdraw(self, stage: StageInput) -> LifecycleResult | None:
        """Ends only when all is gone: a region that can't be reached is asked again until it can."""
        await to_the_end(perform(policies.WITHDRAW_MODEL, stage, f"take {stage.model} out of every gateway"))
        await to_the_end(perform(policies.RELEASE_MODEL, stage, f"end the replicas of {stage.model}"))
        return None

    def _ended(self, generation: int | None, reason: Reason, message: str) -> LifecycleResult:
        """Refused before any traffic moved, rolled back after."""
        state = ChangeState.ROLLED_BACK if self._moving else ChangeState.REFUSED
        return LifecycleResult(state=state, generation=generation, reason=reason, message=message)

    def _stopped(self, begun: ChangeBegun) -> LifecycleResult:
        why = workflow.cancellation_reason() or "it was cancelled"
        state = ChangeState.ROLLED_BACK if self._moving else ChangeState.SUPERSEDED
        reason = Reason.ROLLED_BACK if self._moving else Reason.SUPERSEDED
        return LifecycleResult(state=state, generation=begun.generation, reason=reason, message=f"stopped: {why}")

    def _progress(self) -> ProgressInput:
        change = self._input.change
        return ProgressInput(
            model=self._input.model,
            change_id=change.id,
            stage="begin",
            run_id=workflow.info().run_id,
            generation=change.generation,
        )

    def _stage(self, begun: ChangeBegun) -> StageInput:
        change = self._input.change
        return StageInput(
            model=self._input.model,
            change_id=change.id,
            kind=change.kind,
            generation=begun.generation or 0,
            plan_id=self._plan_id,
        )

    def _record(self, begun: ChangeBegun, result: LifecycleResult) -> RecordInput:
        change = self._input.change
        return RecordInput(
            model=self._input.model,
            change_id=change.id,
            kind=change.kind,
            generation=begun.generation,
            result=result,
            run_id=workflow.info().run_id,
            plan_id=self._plan_id,
            revision=begun.revision,
        )

    def _enter(self, stage: str, generation: int | None) -> None:
        """Show where the run stands: search attributes and the text in the Web UI."""
        updates: list[SearchAttributeUpdate[Any]] = [MODEL.value_set(self._input.model), STAGE.value_set(stage)]
        if generation is not None:
            updates.append(GENERATION.value_set(generation))
        workflow.upsert_search_attributes(updates)
        change = self._input.change
        subject = f" of generation {generation}" if generation is not None else ""
        workflow.set_current_details(
            f"**{self._input.model}**: {change.kind}{subject}: {stage}\n\nChange `{change.id}`"
        )
