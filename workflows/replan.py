"""Workflow `replan`: plans the fleet again, adopts the plan if it is worth it, and starts a move of each changed model.

There is one at a time, under one id: a caller that needs a replan records it in the store and signals this workflow,
which is started if it does not run. Replans that are recorded when it begins to plan share one plan; later ones wait
for the next. So two replans never race. While models move, a requested replan does not wait for all of them: no further
move is started, and the next plan lists the models that still have to move.

Workflow `scheduled_replan`: started by the schedule. It requests a replan and ends.
"""

import asyncio
import contextlib

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.changes.lifecycle_run import Done
    from ipnext.model.lifecycle.replans.moves import MoverAsked, MoverState, ReplanProgress
    from ipnext.model.lifecycle.replans.replan import ReplanComputed, ReplanInput, ReplanResult, ScheduledReplan
    from ipnext.model.lifecycle.status import Reason
    from workflows import policies
    from workflows.errors import explain_error, raise_if_cancelled, to_the_end
    from workflows.policies import perform
    from workflows.stages.move_window import Mover

STAGE = SearchAttributeKey.for_keyword(names.STAGE_ATTRIBUTE)

STOPPED = "stopped by hand"


@workflow.defn(
    name=names.REPLAN_WORKFLOW, failure_exception_types=policies.BEGUN_AGAIN, versioning_behavior=policies.ENTITY
)
class ReplanWorkflow:
    """Runs one replan after the other while any are requested. The plan in force stays if no better one is found."""

    @workflow.init
    def __init__(self, input: ReplanInput) -> None:  # noqa: A002 - Temporal passes it by place
        self._input = input
        self._asked = input.asked
        self._steered_meanwhile = False
        self._mover: Mover | None = None
        self._cancel = input.mover.cancelled if input.mover else ""

    @workflow.signal(name=names.REPLAN_ASKED)
    def note_replan(self) -> None:
        """Note that a replan was recorded."""
        self._asked = True

    @workflow.signal(name=names.MOVES_STEERED)
    def note_steering(self) -> None:
        """Note that moves were paused or resumed: the store has their state."""
        self._steered_meanwhile = True

    @workflow.update(name=names.CANCEL_REPLAN)
    def cancel(self, asked: MoverAsked) -> ReplanProgress:
        """Start no further move at all: the replan ends, and the next one lists the models that still have to move."""
        self._cancel = f"stopped ({asked.reason or 'by hand'})"
        if self._mover is not None:
            self._mover.cancel(self._cancel)
        return self.progress()

    @workflow.query(name=names.REPLAN_PROGRESS)
    def progress(self) -> ReplanProgress:
        """Return the progress of its models."""
        return self._mover.progress() if self._mover else ReplanProgress(total=0)

    @workflow.run
    async def run(self, input: ReplanInput) -> ReplanResult:  # noqa: A002
        """Compute, adopt and move; repeat if another replan waits. Continues as new if the history is long."""
        computed = input.computed or await self._compute()
        if not computed.plan_id:
            self._show("idle", computed)
            self._once_more(self._asked)
            return _result(computed, computed.message)
        result = await self._carry_out(computed)
        waiting = await to_the_end(perform(policies.FINISH_REPLAN, result, f"record: {_outcome(result)}"))
        self._show(_outcome(result), computed, result.message)
        self._once_more(waiting.waiting > 0 or self._asked)
        return result

    def _once_more(self, wanted: bool) -> None:
        """Continue as new if a replan waits. One that is recorded after the last check has sent its signal after it."""
        if wanted and workflow.cancellation_reason() is None:
            workflow.continue_as_new(ReplanInput(wait=self._input.wait))

    async def _compute(self) -> ReplanComputed:
        self._asked = False
        self._show("planning", None)
        plan_id = names.replan_plan_id(workflow.info().run_id)
        try:
            return await perform(policies.REPLAN_FLEET, self._input, "plan the whole fleet")
        except ActivityError as error:
            message = STOPPED if is_cancelled_exception(error) else explain_error(error).message
            return ReplanComputed(plan_id=plan_id, adopted=False, reason=Reason.PLANNER_FAILED, message=message)

    async def _carry_out(self, computed: ReplanComputed) -> ReplanResult:
        """Move the models to their placements in the plan in force, until an event interrupts."""
        try:
            left = await self._move_by_turns(computed)
        except (ActivityError, asyncio.CancelledError) as error:
            if not is_cancelled_exception(error):
                raise
            left = STOPPED
        told = [text for text in (computed.message, left) if text]
        result = _result(computed, "; ".join(told))
        return result.model_copy(update={"progress": self._mover.progress()}) if self._mover else result

    async def _move_by_turns(self, computed: ReplanComputed) -> str:
        """Take turns until all have moved, another replan waits, or it is cancelled. Return the rest in words."""
        state = self._input.mover or MoverState(progress=ReplanProgress(total=computed.total, waiting=computed.total))
        self._mover = mover = Mover(computed.plan_id, computed.window, state, wait=self._input.wait)
        if self._cancel:
            mover.cancel(self._cancel)
        while not mover.is_finished:
            if self._asked and await self._another_waits():
                await self._await_turns(mover)
                return "; ".join(
                    text for text in (self._stays(mover.progress().waiting), mover.describe_left()) if text
                )
            self._steered_meanwhile = False
            await mover.turn()
            self._show("paused" if mover.progress().paused else "moving", computed)
            if mover.idle:
                await self._pause_over(mover)
            if _history_is_long():
                self._continue(computed)
        return mover.describe_left()

    async def _pause_over(self, mover: Mover) -> None:
        """Wait until moves are paused or resumed, or the pause has to be checked again."""
        raise_if_cancelled()
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self._asked or self._steered_meanwhile or not mover.idle,
                timeout=policies.PAUSE_LOOK,
                timeout_summary="until the pause of the moves is looked at again",
            )

    async def _await_turns(self, mover: Mover) -> None:
        """Give moves in progress some time, but none if a disaster's repair waits.

        Later ones continue without being watched.
        """
        until = workflow.now() + policies.RUNNING_MOVES_PATIENCE
        while mover.busy and not mover.repair_waits and workflow.now() < until:
            await mover.turn(asking=False)

    async def _another_waits(self) -> bool:
        """Check whether a replan waits that this run has not claimed.

        The signal alone may be that of one that it has.
        """
        self._asked = False
        found = await perform(policies.WAITING_REPLANS, self._input, "does another replan wait?")
        return found.waiting > 0

    @staticmethod
    def _stays(left: int) -> str:
        return f"another replan waits: {left} models move by what it finds" if left else ""

    def _continue(self, computed: ReplanComputed) -> None:
        workflow.continue_as_new(
            self._input.model_copy(
                update={
                    "computed": computed,
                    "asked": self._asked,
                    "mover": self._mover.state if self._mover else None,
                }
            )
        )

    def _show(self, stage: str, computed: ReplanComputed | None, message: str = "") -> None:
        workflow.upsert_search_attributes([STAGE.value_set(stage)])
        subject = f"Replan ({computed.trigger})" if computed and computed.trigger else "Replan"
        progress = f"\n\n{self._mover.table()}" if self._mover is not None else ""
        reason = f" (**{computed.reason}**)" if computed and computed.reason is not Reason.SUCCEEDED else ""
        workflow.set_current_details(f"{subject}, {stage}{reason}{progress}" + (f"\n\n{message}" if message else ""))


@workflow.defn(
    name=names.SCHEDULED_REPLAN_WORKFLOW, failure_exception_types=policies.BUGS, versioning_behavior=policies.ONE_RUN
)
class ScheduledReplanWorkflow:
    """Requests a replan. Workflow `replan` shows its result."""

    @workflow.run
    async def run(self, asked: ScheduledReplan) -> Done:
        """Request a replan and end."""
        return await perform(policies.ASK_REPLAN, asked, f"ask for a replan ({asked.trigger})")


def _history_is_long() -> bool:
    return workflow.info().is_continue_as_new_suggested()


def _outcome(result: ReplanResult) -> str:
    if result.adopted:
        return "adopted"
    if result.reason is not Reason.SUCCEEDED:
        return "failed"
    return "dry run" if result.dry_run else "kept"


def _result(computed: ReplanComputed, message: str) -> ReplanResult:
    return ReplanResult(
        plan_id=computed.plan_id,
        adopted=computed.adopted,
        moves=computed.moves,
        reason=computed.reason,
        message=message,
        dry_run=computed.dry_run,
    )
