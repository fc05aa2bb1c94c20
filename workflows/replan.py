"""Workflow `replan`: plans the fleet anew, adopts the plan where it is worth it, and asks each changed model to move.

There is one at a time, under one id: whoever wants a replan records it in the store and signals this workflow, which is
started where it does not run. Replans that are recorded when it begins to plan share one plan; those that come later
wait for the next. So two replans never race. While models move, a replan that is asked for does not wait for all of
them: no further model is asked to move, and the next plan says who still has to.

Workflow `scheduled_replan`: what the schedule starts. It asks for a replan and ends.
"""

import asyncio
from collections.abc import Sequence

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle import (
        ChangeState,
        Done,
        MoveInput,
        ReplanComputed,
        ReplanInput,
        ReplanResult,
        ScheduledReplan,
    )
    from ipnext.model.moving import MoverAsked, MoverState, ReplanProgress
    from ipnext.model.status import Reason
    from workflows import policies
    from workflows.failing import explained, to_the_end
    from workflows.mover import Mover
    from workflows.policies import perform

STAGE = SearchAttributeKey.for_keyword(names.STAGE_ATTRIBUTE)

STOPPED = "stopped by hand"


@workflow.defn(name=names.REPLAN_WORKFLOW, failure_exception_types=policies.BUGS, versioning_behavior=policies.ENTITY)
class ReplanWorkflow:
    """One replan after the other, while any are asked for. The plan in force stays where nothing better is found."""

    @workflow.init
    def __init__(self, input: ReplanInput) -> None:  # noqa: A002 - Temporal passes it by place
        self._input = input
        self._moved = input.moved
        self._asked = input.asked
        self._troubles = list(input.troubles)
        self._mover: Mover | None = None
        self._pause = input.paused
        self._cancel = input.mover.cancelled if input.mover else ""

    @workflow.signal(name=names.REPLAN_ASKED)
    def asked(self) -> None:
        """A replan was recorded."""
        self._asked = True

    @workflow.update(name=names.PAUSE_REPLAN)
    def pause(self, asked: MoverAsked) -> ReplanProgress:
        """Ask no further model to move; those under way go on."""
        self._pause = asked.reason or "by hand"
        return self._steered()

    @workflow.update(name=names.RESUME_REPLAN)
    def resume(self, asked: MoverAsked) -> ReplanProgress:
        """Go on asking."""
        del asked
        self._pause = ""
        return self._steered()

    @workflow.update(name=names.CANCEL_REPLAN)
    def cancel(self, asked: MoverAsked) -> ReplanProgress:
        """Ask no further model at all: the replan ends, and the next one says who still has to move."""
        self._cancel = f"stopped ({asked.reason or 'by hand'})"
        return self._steered()

    @workflow.query(name=names.REPLAN_PROGRESS)
    def progress(self) -> ReplanProgress:
        """How far it is with its models."""
        return self._mover.progress() if self._mover else ReplanProgress(total=0, paused=self._pause)

    @workflow.run
    async def run(self, input: ReplanInput) -> ReplanResult:  # noqa: A002
        """Compute, adopt, move, and once more where another one waits. Continues as new where the history is long."""
        computed = input.computed or await self._compute()
        if not computed.plan_id:
            self._show("idle", computed)
            self._once_more(self._asked)
            return _result(computed, computed.message)
        result = await self._carried_out(computed)
        waiting = await to_the_end(perform(policies.FINISH_REPLAN, result, f"record: {_outcome(result)}"))
        self._show(_outcome(result), computed, result.message)
        self._once_more(waiting.waiting > 0 or self._asked)
        return result

    def _once_more(self, wanted: bool) -> None:
        """Begin anew where a replan waits. One that is recorded after the last look has sent its signal after it."""
        if wanted and workflow.cancellation_reason() is None:
            workflow.continue_as_new(ReplanInput(wait=self._input.wait, paused=self._pause))

    async def _compute(self) -> ReplanComputed:
        self._asked = False
        self._show("planning", None)
        plan_id = names.replan_plan_id(workflow.info().run_id)
        try:
            return await perform(policies.REPLAN_FLEET, self._input, "plan the whole fleet")
        except ActivityError as error:
            message = STOPPED if is_cancelled_exception(error) else explained(error).message
            return ReplanComputed(plan_id=plan_id, adopted=False, reason=Reason.PLANNER_FAILED, message=message)

    async def _carried_out(self, computed: ReplanComputed) -> ReplanResult:
        """Bring the models to where the plan in force has them, as far as nothing comes between."""
        try:
            left = await (self._move_by_turns(computed) if computed.window else self._move_all(computed))
        except (ActivityError, asyncio.CancelledError) as error:
            if not is_cancelled_exception(error):
                raise
            left = STOPPED
        told = [text for text in (computed.message, left, *self._troubles) if text]
        result = _result(computed, "; ".join(told))
        return result.model_copy(update={"progress": self._mover.progress()}) if self._mover else result

    async def _move_by_turns(self, computed: ReplanComputed) -> str:
        """Turn by turn until all have moved, another replan waits, or it is cancelled. Returns what is left, in words."""
        state = self._input.mover or MoverState(waiting=computed.models)
        self._mover = mover = Mover(computed.plan_id, computed.window, state, wait=self._input.wait)
        self._steered()
        while not mover.finished:
            if self._asked and await self._another_waits():
                await self._let_turns_end(mover)
                return "; ".join(text for text in (self._stays(len(mover.state.waiting)), mover.left()) if text)
            await mover.turn()
            self._show("paused" if mover.state.paused else "moving", computed)
            if mover.idle:
                await workflow.wait_condition(lambda: self._asked or not mover.idle)
            if _history_is_long():
                self._continue(computed)
        return mover.left()

    async def _let_turns_end(self, mover: Mover) -> None:
        """Give moves under way some time, but none where a disaster's repair waits; what goes on longer is no longer watched, and goes on."""
        until = workflow.now() + policies.RUNNING_MOVES_PATIENCE
        mover.pause("another replan waits")
        while mover.busy and not mover.repair_waits and workflow.now() < until:
            await mover.turn(asking=False)

    def _steered(self) -> ReplanProgress:
        """What was asked by hand reaches the mover, now or when it begins."""
        if self._mover is None:
            return self.progress()
        if self._cancel:
            self._mover.cancel(self._cancel)
        elif self._pause:
            self._mover.pause(self._pause)
        else:
            self._mover.resume()
        return self._mover.progress()

    async def _move_all(self, computed: ReplanComputed) -> str:
        """A window over the models in their order. Returns why some are left, or nothing.

        No new one starts once continue-as-new is suggested, or another replan waits.
        """
        window: list[asyncio.Task[None]] = []
        while self._moved < len(computed.models) or window:
            if self._asked and await self._another_waits():
                await self._let_finish(window)
                return self._left(computed)
            while (
                self._moved < len(computed.models) and len(window) < policies.RUNNING_MOVES and not _history_is_long()
            ):
                window.append(asyncio.create_task(self._move(computed, computed.models[self._moved])))
                self._moved += 1
                self._show("moving", computed)
            if not window:
                self._continue(computed)
            await self._news_of(window)
            ended, window = [t for t in window if t.done()], [t for t in window if not t.done()]
            for task in ended:
                task.result()
        return ""

    async def _news_of(self, window: Sequence[asyncio.Task[None]]) -> None:
        """Wait until a move has ended or a replan is asked for."""
        await workflow.wait_condition(lambda: self._asked or any(task.done() for task in window))

    async def _another_waits(self) -> bool:
        """Whether a replan waits that this run has not taken; the signal alone may tell of one that it has."""
        self._asked = False
        found = await perform(policies.WAITING_REPLANS, self._input, "does another replan wait?")
        return found.waiting > 0

    async def _let_finish(self, window: Sequence[asyncio.Task[None]]) -> None:
        """Give moves under way some time; what goes on longer is no longer watched, and goes on."""
        if not window:
            return
        _, unfinished = await workflow.wait(window, timeout=policies.RUNNING_MOVES_PATIENCE.total_seconds())
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)

    def _left(self, computed: ReplanComputed) -> str:
        return self._stays(len(computed.models) - self._moved)

    @staticmethod
    def _stays(left: int) -> str:
        return f"another replan waits: {left} models move by what it finds" if left else ""

    def _continue(self, computed: ReplanComputed) -> None:
        workflow.continue_as_new(
            self._input.model_copy(
                update={
                    "computed": computed,
                    "moved": self._moved,
                    "asked": self._asked,
                    "troubles": tuple(self._troubles),
                    "mover": self._mover.state if self._mover else None,
                    "paused": self._pause,
                }
            )
        )

    async def _move(self, computed: ReplanComputed, model: str) -> None:
        move = MoveInput(model=model, plan_id=computed.plan_id, wait=self._input.wait)
        try:
            moved = await perform(policies.MOVE_MODEL, move, f"move {model}")
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            self._troubles.append(f"{model}: {explained(error).message}")
            return
        if moved.state.final and moved.state is not ChangeState.DONE:
            self._troubles.append(f"{model} {moved.state}: {moved.message}")

    def _show(self, stage: str, computed: ReplanComputed | None, message: str = "") -> None:
        workflow.upsert_search_attributes([STAGE.value_set(stage)])
        subject = f"Replan ({computed.trigger})" if computed and computed.trigger else "Replan"
        progress = f": {self._moved} of {len(computed.models)} models asked to move" if computed else ""
        if self._mover is not None:
            progress = f"\n\n{self._mover.table()}"
        reason = f" (**{computed.reason}**)" if computed and computed.reason is not Reason.SUCCEEDED else ""
        workflow.set_current_details(f"{subject}, {stage}{reason}{progress}" + (f"\n\n{message}" if message else ""))


@workflow.defn(
    name=names.SCHEDULED_REPLAN_WORKFLOW, failure_exception_types=policies.BUGS, versioning_behavior=policies.ONE_RUN
)
class ScheduledReplanWorkflow:
    """Asks for a replan. What comes of it shows the workflow `replan`."""

    @workflow.run
    async def run(self, asked: ScheduledReplan) -> Done:
        """Ask and end."""
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
        models=computed.models,
        reason=computed.reason,
        message=message,
        dry_run=computed.dry_run,
    )
