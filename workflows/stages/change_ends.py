"""Ends of changes whose run the entity can't await as its child, or that could not record their end."""

import asyncio
from contextlib import suppress

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from ipnext.model.lifecycle.changes.change import ChangeState, QueuedChange
    from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult, RecordInput, StageInput
    from ipnext.model.lifecycle.changes.takeover import ChangeAsked, TakenOver, TakeOver
    from ipnext.model.lifecycle.status import Reason
    from workflows import policies
    from workflows.entity.runs import ChangeRuns
    from workflows.entity.state import EntityState
    from workflows.entity.superseded_marks import SupersededMarks
    from workflows.errors import STOPPED_OUTSIDE, FailureReason, explain_error, make_stopped, name_preempting
    from workflows.policies import perform
    from workflows.stages.retirement import release
    from workflows.stages.takeover import wait_reverted

GONE = FailureReason(Reason.INTERNAL_ERROR, "its run was ended from outside")
"""Cause of failure of a change whose run was started by another entity, and is gone without a record."""


class ChangeEnds:
    """Waits for the ends of followed runs, and records those that left no record."""

    def __init__(self, state: EntityState, runs: ChangeRuns, marks: SupersededMarks) -> None:
        self._state, self._runs, self._marks = state, runs, marks
        self.reported = ""
        """The change that last reported its end."""

    async def follow(self, change: QueuedChange) -> LifecycleResult | None:
        """Wait for the end of a run that an earlier entity started. None if the change has never begun."""
        looks = 0
        while True:
            asked = ChangeAsked(model=self._state.model, change_id=change.id)
            seen = await perform(policies.LOOK_AT_CHANGE, asked, f"see how {change.id} stands")
            if seen.state.final:
                generation = seen.generation or change.generation
                return LifecycleResult(
                    state=seen.state, generation=generation, reason=seen.reason, message=seen.message
                )
            if not seen.runs:
                return await self.record_gone(change) if seen.state is ChangeState.RUNNING else None
            if not looks:
                await self._runs.follow(change)
                if change.id not in self._state.stop_reasons:
                    await self._runs.signal_all()
            soon = looks < policies.FOLLOWED_LOOKS_SOON
            looks += 1
            with suppress(asyncio.TimeoutError):
                await workflow.wait_condition(
                    lambda: self.reported == change.id,
                    timeout=policies.FOLLOWED_LOOK_SOON if soon else policies.FOLLOWED_LOOK,
                    timeout_summary=f"{change.id} runs",
                )
            self.reported = ""

    async def record_gone(self, change: QueuedChange) -> LifecycleResult:
        """Record the end of a followed run that left no record: as stopped if it was asked to end, else as failed."""
        return await self.record_failure(change, None if change.id in self._state.stop_reasons else GONE)

    async def record_failure(self, change: QueuedChange, why: FailureReason | None) -> LifecycleResult:
        """Record the end of a run that could not do so itself (a bug, terminated, cancelled before it began).

        All that it moved is reverted by then. `why` is None for a run that was cancelled.
        """
        told = self._state.stop_reasons.get(change.id)
        reason, message = why or FailureReason(Reason.SUPERSEDED, told or STOPPED_OUTSIDE)
        asked = TakeOver(model=self._state.model, change=change, reason=reason, message=message)
        taken = await wait_reverted(asked)
        if taken.withdrawn:
            await release(StageInput(model=self._state.model, change_id=change.id, kind=change.kind, generation=0))
        result = name_preempting(_result_of(change, taken, why, told), told)
        record = RecordInput(
            model=self._state.model,
            change_id=change.id,
            kind=change.kind,
            generation=taken.generation or change.generation,
            result=result,
            run_id=self._runs.run_id(change),
            revision=taken.revision,
        )
        try:
            await perform(policies.FINISH_CHANGE, record, f"record the failure of {change.id}")
        except ActivityError as again:
            workflow.logger.error(
                "change %s failed and could not be recorded: %s", change.id, explain_error(again).message
            )
            self._marks.give_up()
        return result


def _result_of(change: QueuedChange, taken: TakenOver, why: FailureReason | None, told: str | None) -> LifecycleResult:
    """Return the result of a run that another one reverted; `told` is the reason why it was cancelled."""
    reason, message = why or FailureReason(Reason.SUPERSEDED, told or STOPPED_OUTSIDE)
    generation = taken.generation or change.generation
    if taken.withdrawn:
        message = f"{message}, after its routes were removed: it was completed"
        return LifecycleResult(state=ChangeState.DONE, message=message)
    if taken.done:
        message = f"{message}, after its traffic had moved"
        return LifecycleResult(state=ChangeState.DONE, generation=generation, message=message)
    if why is None:
        result = make_stopped(generation, told, moving=taken.moved)
        return result.model_copy(update={"message": "; ".join(filter(None, (result.message, taken.undone)))})
    state = ChangeState.ROLLED_BACK if taken.moved else ChangeState.REFUSED
    message = f"{message}; {taken.undone}" if taken.undone else message
    return LifecycleResult(state=state, generation=generation, reason=reason, message=message)
