"""Workflow `lifecycle`: executes one change of one model through its stages. Child of the model's entity.

The order of the stages is data: `DEFAULT_STAGES` of the kind of change, or that of `begin_change`'s answer, which may
have stages of other distributions (`workflows.stages.plugged`). It is decided once, so that a run keeps it.

    optimization  only if the manifest has a pipeline or a split
    planning      of a rollback: only if the generation was split into other parts than those in place; a generation
                  that has served is not validated again
    transition    of a move: to the plan that the change names
    withdrawal    removal from the gateways, then the end of all replicas

The stage `freeze` waits while a freeze calendar blocks such changes of the model, before any supply is taken. Whatever
the outcome, the end is recorded: the serving generation, the reason, and the state of the change.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import SearchAttributeKey, SearchAttributeUpdate
from temporalio.exceptions import ActivityError, ChildWorkflowError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
    from ipnext.model.lifecycle.changes.controls import Hold, NewerWaits
    from ipnext.model.lifecycle.changes.lifecycle_run import (
        ChangeBegun,
        LifecycleInput,
        LifecycleResult,
        ProgressInput,
        RecordInput,
        StageInput,
    )
    from ipnext.model.lifecycle.changes.stage_order import ComposedStage
    from ipnext.model.lifecycle.changes.transition_run import TransitionPlanned
    from ipnext.model.lifecycle.preparation import PreparationResult
    from ipnext.model.lifecycle.stages import DEFAULT_STAGES, OPTIONAL_STAGES, StageJudged
    from ipnext.model.lifecycle.status import Reason
    from ipnext.model.manifest.freeze import Frozen
    from ipnext.model.value import Value
    from workflows import policies
    from workflows.attempts import Interruption, PatienceOver, within_patience
    from workflows.entity.change_queue import PASSES_PAUSE, WAITS
    from workflows.errors import (
        explain_error,
        make_stopped,
        name_preempting,
        raise_if_cancelled,
        stop_reason,
        to_the_end,
    )
    from workflows.policies import perform
    from workflows.stages.freeze_wait import Thaw
    from workflows.stages.plugged import Superseded, record_lacking, run_stage
    from workflows.stages.preparation import is_done, prepare
    from workflows.stages.retirement import release
    from workflows.stages.shadow import run_shadow
    from workflows.stages.transition_run import TransitionRun, lasting_attributes

A = TypeVar("A", bound=Value)

MODEL = SearchAttributeKey.for_keyword(names.MODEL_ATTRIBUTE)
STAGE = SearchAttributeKey.for_keyword(names.STAGE_ATTRIBUTE)
GENERATION = SearchAttributeKey.for_int(names.GENERATION_ATTRIBUTE)

Stage = Callable[[StageInput], Awaitable[LifecycleResult | None]]
"""Executes a stage. None if the next one follows; a result ends the run."""

COMPLETED = frozenset({"transition", "withdrawal"})
"""Stages whose success ends the change as done although it was cancelled during them."""


@workflow.defn(
    name=names.LIFECYCLE_WORKFLOW,
    failure_exception_types=policies.BUGS,
    versioning_behavior=policies.ONE_RUN,
)
class LifecycleWorkflow(TransitionRun):
    """One change of one model."""

    @workflow.init
    def __init__(self, input: LifecycleInput) -> None:  # noqa: A002 - Temporal passes it by place
        super().__init__(input)
        self._plan_id = input.change.plan_id
        self._note = ""
        self._cuts = False
        self._places = False
        self._moving = False
        self._patience: float | None = None
        self._told_lasting = False
        self._shown = ""
        """The stage that the Web UI shows."""
        self._thaw = Thaw(lambda: self._newer is not None, lambda: self._urgent)
        self._prepared = PreparationResult()
        self._carriers: Mapping[str, Stage] = {
            "metadata": self._resolve,
            "validation": self._validate,
            "optimization": self._optimize,
            "freeze": self._freeze,
            "planning": self._place,
            "transition": self._move,
            "withdrawal": self._withdraw,
        }

    @workflow.run
    async def run(self, input: LifecycleInput) -> LifecycleResult:  # noqa: A002
        """Execute the change; its result states how it ended. Cancellation ends it in order."""
        self._enter("begin", None)
        begun = await self._begin()
        if isinstance(begun, ChangeBegun) and begun.final is not None:
            return LifecycleResult(
                state=begun.final, generation=begun.generation, message="ended before", retired=begun.retired
            )
        if isinstance(begun, LifecycleResult):
            result, begun = begun, ChangeBegun()
        else:
            self._patience = begun.supply_patience_seconds
            self._urgent = self._urgent or begun.urgent
            self._lasting = lasting_attributes(input, begun)
            result = await self._outcome(begun)
        result = name_preempting(result, stop_reason())
        self._enter("deployment", begun.generation)
        await to_the_end(perform(policies.FINISH_CHANGE, self._record(begun, result), f"record: {result.state}"))
        self._enter(result.state.value, begun.generation)
        await to_the_end(workflow.wait_condition(workflow.all_handlers_finished))
        await to_the_end(self._report())
        return result

    @workflow.signal(name=names.FREEZE_CHANGED)
    def freeze_changed(self) -> None:
        """Check again if the run waits for a freeze: one was lifted, changed or overridden."""
        self._thaw.freezes_changed()

    @workflow.signal(name=names.HOLD_CHANGES)
    async def hold_changes(self, hold: Hold) -> None:
        """Pause or resume the run."""
        self._held = hold.asked if hold.held else None
        await self._pass_on(names.HOLD_CHANGES, hold)

    @workflow.signal(name=names.NEWER_WAITS)
    async def newer_waits(self, newer: NewerWaits) -> None:
        """Note a newer publish or apply of the model that is queued behind this run."""
        self._newer = newer
        await self._pass_on(names.NEWER_WAITS, newer)

    @workflow.signal(name=names.REPORT_END)
    def report_end(self) -> None:
        """Note that an entity follows this run, but did not start it: it needs a report of the end."""
        self._reports = True

    async def _perform(self, step: policies.ActivityStep[A], stage: StageInput, summary: str) -> A:
        return await perform(step.passing(urgent=self._urgent), stage, summary)

    async def _begin(self) -> ChangeBegun | LifecycleResult:
        """Begin the change, or explain why it can't begin (a rollback to a generation that never served)."""
        try:
            return await perform(policies.BEGIN_CHANGE, self._progress(), f"begin {self._input.change.kind}")
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            reason, message = explain_error(error)
            reason = Reason.TRANSITION_REFUSED if reason is Reason.INTERNAL_ERROR else reason
            return LifecycleResult(state=ChangeState.REFUSED, reason=reason, message=message)

    async def _outcome(self, begun: ChangeBegun) -> LifecycleResult:
        """Return the result of the stages, whatever ends them."""
        try:
            return await self._carry_out(begun)
        except (ActivityError, ChildWorkflowError) as error:
            if is_cancelled_exception(error):
                return self._make_stopped(begun)
            reason, message = explain_error(error)
            return self._make_result(begun.generation, reason, message)
        except asyncio.CancelledError:
            return self._make_stopped(begun)

    async def _carry_out(self, begun: ChangeBegun) -> LifecycleResult:
        kind = self._input.change.kind
        if begun.generation is None and kind is not ChangeKind.RETIRE:
            message = "nothing is published yet: there is nothing to do"
            return LifecycleResult(state=ChangeState.DONE, reason=Reason.NOT_PUBLISHED, message=message)
        stages = begun.stages or tuple(ComposedStage(name=name) for name in DEFAULT_STAGES[kind])
        if (refused := await self._refuse_order(begun, stages)) is not None:
            return refused
        self._prepared = await self._prepare(self._stage(begun), stages)
        for index, each in enumerate(stages):
            if each.call is not None or each.name in OPTIONAL_STAGES:
                result = await self._inserted(begun, each, before=stages[:index])
            else:
                result = await self._built_in(begun, each.name)
            if result is not None:
                return result
            if workflow.cancellation_reason() is not None and each.name not in COMPLETED:
                return self._make_stopped(begun)
        generation = None if kind is ChangeKind.RETIRE else begun.generation
        return LifecycleResult(state=ChangeState.DONE, generation=generation, message=self._note)

    async def _refuse_order(self, begun: ChangeBegun, stages: Sequence[ComposedStage]) -> LifecycleResult | None:
        """Refuse a change whose order can't be carried out, before its first stage; None if it can."""
        if begun.misfit:
            return self._make_result(begun.generation, Reason.STAGE_FAILED, begun.misfit)
        lacking = next((each for each in stages if each.lacking), None)
        if lacking is None:
            return None
        judged = await record_lacking(self._stage(begun), lacking)
        return self._make_result(begun.generation, judged.reason, judged.message)

    async def _built_in(self, begun: ChangeBegun, name: str) -> LifecycleResult | None:
        if not self._applies(name):
            return None
        if not is_done(self._prepared, name):
            if name == "planning" and (stop := await self._unheld(begun)) is not None:
                return stop
            self._enter(name, begun.generation)
        return await self._carriers[name](self._stage(begun))

    async def _inserted(
        self, begun: ChangeBegun, inserted: ComposedStage, *, before: Sequence[ComposedStage]
    ) -> LifecycleResult | None:
        """Run a stage that an entry has inserted.

        It may take long: a freeze that began in that time is waited for.
        """
        if (stop := await self._unheld(begun)) is not None:
            return stop
        self._enter(inserted.name, begun.generation)
        try:
            judged = await self._judge(self._stage(begun), inserted)
        except Superseded:
            return self._make_superseded(begun, self._newer) if self._newer is not None else None
        if not judged.passed:
            return self._make_result(begun.generation, judged.reason, judged.message)
        if any(each.name == "freeze" for each in before):
            return await self._wait_thaw(self._stage(begun))
        return None

    async def _judge(self, stage: StageInput, inserted: ComposedStage) -> StageJudged:
        if inserted.call is not None:
            return await run_stage(stage, inserted.name, inserted.call, lambda: self._gives_way)
        patience = self._supply_seconds
        return await run_shadow(stage, inserted.settings, lambda: self._gives_way, patience_seconds=patience)

    @property
    def _supply_seconds(self) -> float:
        """Longest wait for supply."""
        return policies.SUPPLY_PATIENCE.total_seconds() if self._patience is None else self._patience

    @property
    def _gives_way(self) -> bool:
        """True if a newer publish or apply ends a stage that runs: a few times in a row, so that one finally serves."""
        return self._newer is not None and self._newer.may_turn

    async def _prepare(self, stage: StageInput, stages: Sequence[ComposedStage]) -> PreparationResult:
        """Run the short stages in one activity, up to the first one that an entry has inserted.

        A run that is paused, or retires the model, stops before the stages that wait.
        """
        held = self._held is not None and stage.kind not in PASSES_PAUSE
        ends = {"withdrawal", *OPTIONAL_STAGES, *(["planning"] if held else [])}
        self._enter("preparation", stage.generation or None)
        short = takewhile(lambda each: each.call is None and each.name not in ends, stages)
        return await prepare(stage, tuple(each.name for each in short), urgent=self._urgent)

    def _applies(self, stage: str) -> bool:
        """Check whether the run executes a stage, by the answer of `resolve_snapshots`."""
        if stage == "optimization":
            return self._cuts
        return stage != "planning" or self._places or self._input.change.kind is not ChangeKind.ROLLBACK

    async def _resolve(self, stage: StageInput) -> LifecycleResult | None:
        """Resolve the snapshots; the answer decides which stages follow."""
        resolved = self._prepared.resolved or await self._perform(
            policies.RESOLVE_SNAPSHOTS, stage, f"find the snapshots of generation {stage.generation}"
        )
        self._cuts, self._places, self._note = resolved.cuts, resolved.places, resolved.note
        return None

    async def _validate(self, stage: StageInput) -> LifecycleResult | None:
        report = self._prepared.validated or await perform(
            policies.VALIDATE_GENERATION, stage, f"validate generation {stage.generation}"
        )
        refused = report.refusal
        if refused is None:
            return None
        message = f"{refused.check} of {refused.subject}: {refused.message}"
        return self._make_result(stage.generation, refused.reason, message)

    async def _optimize(self, stage: StageInput) -> LifecycleResult | None:
        optimized = await perform(policies.OPTIMIZE_GENERATION, stage, f"optimize generation {stage.generation}")
        return self._make_result(stage.generation, optimized.reason, optimized.summary) if optimized.refused else None

    async def _freeze(self, stage: StageInput) -> LifecycleResult | None:
        return None if is_done(self._prepared, "freeze") else await self._wait_thaw(stage)

    async def _wait_thaw(self, stage: StageInput) -> LifecycleResult | None:
        if await self._thaw.done(stage, lambda frozen: self._show_frozen(stage, frozen)) or self._newer is None:
            return None
        return self._make_superseded(ChangeBegun(generation=stage.generation), self._newer)

    async def _place(self, stage: StageInput) -> LifecycleResult | None:
        planned = self._prepared.planned or await self._perform(
            policies.PLACE_MODEL, stage, f"place {stage.model} on the fleet"
        )
        if not planned.feasible:
            return self._make_result(stage.generation, planned.reason, planned.message)
        self._plan_id = planned.plan_id
        self._tell(planned.message)
        return None

    async def _move(self, stage: StageInput) -> LifecycleResult | None:
        planned = self._prepared.transition or await self._plan_waves(stage)
        if isinstance(planned, LifecycleResult):
            return planned
        if planned.refused is not None:
            return self._make_result(stage.generation, Reason.TRANSITION_REFUSED, planned.refused)
        if (why := stop_reason()) is not None:
            raise asyncio.CancelledError(why)  # cancelled while the waves were planned, which has succeeded
        self._tell(planned.price)
        self._moving = True
        moved = await self._walk(stage, planned)
        if not moved.done:
            why = stop_reason()
            if not why:
                ended = self._make_result(stage.generation, moved.reason, moved.message)
                return ended.model_copy(update={"unanswered": moved.unanswered})
            aborted = why.startswith(names.ABORTED)
            told = why if aborted else f"stopped: {why}"
            message = f"{told}; {moved.undone}" if moved.undone else told
            return self._make_result(stage.generation, Reason.ABORTED if aborted else moved.reason, message)
        self._tell(moved.message)
        return None

    async def _plan_waves(self, stage: StageInput) -> TransitionPlanned | LifecycleResult:
        """Plan the waves. If supply was not free in time, the run is refused with the message of the last attempt.

        Between two attempts a newer change ends the wait, and a pause and a freeze extend it. Their time does not
        count.
        """
        summary = f"plan the way to generation {stage.generation}"
        step = policies.PLAN_TRANSITION.passing(urgent=self._urgent)
        interruption = Interruption(lambda: bool(self._newer or self._held), lambda: self._stop_of_wait(stage))
        try:
            return await within_patience(step, stage, summary, seconds=self._supply_seconds, interruption=interruption)
        except PatienceOver as over:
            return TransitionPlanned(transition_id=stage.change_id, waves=0, refused=f"not in time: {over}")

    async def _stop_of_wait(self, stage: StageInput) -> LifecycleResult | None:
        """Return the end of a run that waits for supply if a newer change came.

        Otherwise wait for the end of pauses and freezes.
        """
        begun = ChangeBegun(generation=stage.generation)
        if self._newer is not None:
            return self._make_superseded(begun, self._newer)
        if stage.kind not in WAITS:
            return None
        stop = await self._unheld(begun) or await self._wait_thaw(stage)
        if self._shown != "transition":
            self._enter("transition", stage.generation)
        return stop

    async def _unheld(self, begun: ChangeBegun) -> LifecycleResult | None:
        """Continue at once, or when the pause is over.

        The run has no supply yet, so it may wait long; a newer change ends it. A freeze that began meanwhile blocks it
        as well.
        """
        while self._held is not None and self._input.change.kind not in PASSES_PAUSE:
            self._enter("paused", begun.generation)
            raise_if_cancelled()
            await workflow.wait_condition(lambda: self._held is None or self._newer is not None)
            if self._newer is not None:
                return self._make_superseded(begun, self._newer)
            self._enter("freeze", begun.generation)
            if (stop := await self._wait_thaw(self._stage(begun))) is not None:
                return stop
        return None

    def _make_superseded(self, begun: ChangeBegun, newer: NewerWaits) -> LifecycleResult:
        """Return the result of a run that only waited and was superseded."""
        message = f"gave way to {newer.change_id}, which is newer"
        state, reason = ChangeState.SUPERSEDED, Reason.SUPERSEDED
        return LifecycleResult(state=state, generation=begun.generation, reason=reason, message=message)

    def _tell(self, message: str) -> None:
        """Add to the message of the run's end."""
        self._note = "; ".join(text for text in (self._note, message) if text)

    async def _withdraw(self, stage: StageInput) -> LifecycleResult | None:
        """Withdraw the model everywhere; an unreachable region is retried until it answers."""
        await to_the_end(perform(policies.WITHDRAW_MODEL, stage, f"take {stage.model} out of every gateway"))
        await to_the_end(release(stage))
        return None

    def _make_result(self, generation: int | None, reason: Reason, message: str) -> LifecycleResult:
        """Return a result: refused before any traffic moved, rolled back after."""
        state = ChangeState.ROLLED_BACK if self._moving else ChangeState.REFUSED
        return LifecycleResult(state=state, generation=generation, reason=reason, message=message)

    def _make_stopped(self, begun: ChangeBegun) -> LifecycleResult:
        return make_stopped(begun.generation, stop_reason(), moving=self._moving)

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

    def _show_frozen(self, stage: StageInput, frozen: Frozen) -> None:
        """Show the wait in the Web UI."""
        self._shown = "frozen"
        workflow.upsert_search_attributes([STAGE.value_set(self._shown)])
        change = self._input.change
        passes = f"`ipnext override {change.id} --reason TEXT` lets it pass"
        workflow.set_current_details(f"**{stage.model}**: {change.kind} is **{frozen.message}**\n\n{passes}")

    def _enter(self, stage: str, generation: int | None) -> None:
        """Show the current stage: search attributes and the text in the Web UI."""
        self._shown = stage
        updates: list[SearchAttributeUpdate[Any]] = [MODEL.value_set(self._input.model), STAGE.value_set(stage)]
        if generation is not None:
            updates.append(GENERATION.value_set(generation))
        if self._lasting is not None and not self._told_lasting:
            self._told_lasting = True
            updates += [pair.key.value_set(pair.value) for pair in self._lasting]
        workflow.upsert_search_attributes(updates)
        change = self._input.change
        subject = f" of generation {generation}" if generation is not None else ""
        workflow.set_current_details(
            f"**{self._input.model}**: {change.kind}{subject}: {stage}\n\nChange `{change.id}`"
        )
