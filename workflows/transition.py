"""Workflow `transition`: executes the waves of one model's transition, and reverts if one of them fails.

In each wave: capacity is added and ready, traffic moves, bake time with checks, gate, an approval if the manifest
requires one, then the old capacity is released. Child of `lifecycle`; the waves are in the store, so the history has an
index only.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.changes.controls import (
        ControlAction,
        ControlAnswer,
        ControlAsked,
        Hold,
        HoldNote,
        NewerWaits,
    )
    from ipnext.model.lifecycle.changes.transition_run import (
        Revert,
        TransitionInput,
        TransitionResult,
        WaveInput,
        WaveResult,
    )
    from ipnext.model.lifecycle.status import Reason
    from workflows import policies
    from workflows.attempts import longest_after, within_deadline
    from workflows.errors import STOPPED_OUTSIDE, explain_error, fence_lost, stop_reason, to_the_end
    from workflows.policies import perform


@workflow.defn(
    name=names.TRANSITION_WORKFLOW,
    failure_exception_types=policies.BUGS,
    versioning_behavior=policies.ONE_RUN,
)
class TransitionWorkflow:
    """One transition of one model.

    Each wait for a user is bounded: a run without an answer is reverted. Bounds count the time in which workers work.
    """

    @workflow.init
    def __init__(self, input: TransitionInput) -> None:  # noqa: A002 - Temporal passes it by place
        self._input = input
        self._index = 0
        self._held = input.held
        self._newer: NewerWaits | None = None
        self._promoted = False
        self._asks = False
        """True if a wave waits for an approval."""
        self._approved = False
        self._walking: asyncio.Task[WaveResult] | None = None
        self._back = False
        self._turning = False
        """True if a newer change supersedes the run."""
        self._released = True

    @workflow.run
    async def run(self, input: TransitionInput) -> TransitionResult:  # noqa: A002
        """Execute all waves, or some and then revert. A cancellation requests a revert."""
        if input.revert is not None:
            return await self._revert(input.revert)
        for index in range(input.waves):
            self._index = index
            wave = await self._outcome(self._walk(index))
            if not wave.ok:
                self._back = True
                result = await to_the_end(self._revert_waves(wave))
                await to_the_end(workflow.wait_condition(workflow.all_handlers_finished))
                return result
        self._show("done: all traffic is at its target")
        await to_the_end(workflow.wait_condition(workflow.all_handlers_finished))
        return TransitionResult(done=True, waves_done=input.waves, message=self._describe_unreleased())

    # controls: pauses, approvals, a promotion, newer publishes

    @workflow.signal(name=names.HOLD_CHANGES)
    def hold_changes(self, hold: Hold) -> None:
        """Pause or resume the model."""
        self._held = hold.asked if hold.held else None

    @workflow.signal(name=names.NEWER_WAITS)
    def newer_waits(self, newer: NewerWaits) -> None:
        """Note a queued newer publish.

        It ends a wait for an approval; with `onNewer: turn` it ends all waves but the last.
        """
        self._newer = newer
        turns = self._input.on_newer == "turn" and newer.may_turn and self._index + 1 < self._input.waves
        if turns and self._walking is not None and not self._back:
            self._turning = True
            self._walking.cancel()

    @workflow.update(name=names.APPROVE_WAVE)
    def approve_wave(self, asked: ControlAsked) -> ControlAnswer:
        """Let the waiting wave continue."""
        self._approved = True
        return self._answer(ControlAction.APPROVE, f"{self._place} is approved {asked.text}")

    @approve_wave.validator
    def _check_approval(self, asked: ControlAsked) -> None:  # noqa: ARG002 - the update's signature
        if not self._asks or self._approved:
            msg = f"{self._place} of {self._input.model} waits for no approval"
            raise ApplicationError(msg, type="Conflict", non_retryable=True)

    @workflow.update(name=names.PROMOTE_RUN)
    def promote_run(self, asked: ControlAsked) -> ControlAnswer:
        """Skip all bake times and approvals from now on; gates and capacity are kept."""
        self._promoted = True
        return self._answer(ControlAction.PROMOTE, f"promoted at {self._place} {asked.text}")

    @promote_run.validator
    def _check_promotion(self, asked: ControlAsked) -> None:  # noqa: ARG002
        if self._back:
            msg = f"the run of {self._input.model} is on its way back; it can't be promoted"
            raise ApplicationError(msg, type="Conflict", non_retryable=True)

    # the waves

    async def _revert(self, revert: Revert) -> TransitionResult:
        """Revert only: the run that executed the waves is gone."""
        self._index, self._back = revert.index, True
        failed = WaveResult(ok=False, reason=revert.reason, message=revert.message)
        result = await to_the_end(self._revert_waves(failed))
        await to_the_end(workflow.wait_condition(workflow.all_handlers_finished))
        return result

    async def _walk(self, index: int) -> WaveResult:
        wave, place = self._wave(index), self._place
        if (stop := await self._unheld()) is not None:
            return stop
        self._show(f"{place}: adding capacity")
        result = await self._run_step(policies.ENSURE_CAPACITY, wave, f"{place}: add capacity, wait until ready")
        if not result.ok:
            return result
        if (stop := await self._unheld()) is not None:
            return stop
        if index == 0 and self._input.times_replicas and (stop := await self._time_replicas(wave)) is not None:
            return stop
        self._show(f"{place}: moving traffic")
        shifted = await self._run_step(policies.SHIFT_TRAFFIC, wave, f"{place}: move traffic")
        if not shifted.ok:
            return shifted
        wave = wave.model_copy(update={"baseline": shifted.baseline, "window": shifted.window})
        result = await self._watch_answers(wave, shifted.hold_seconds)
        if result.ok and self._needs_approval():
            result = await self._approval(wave)
        return await self._release(wave) if result.ok else result

    async def _time_replicas(self, wave: WaveInput) -> WaveResult | None:
        """Compare live replicas of both generations; None if traffic may move.

        Each call makes one round, and the history has the rounds so far: a killed worker repeats one round. Between
        calls that found a replica not ready the run sleeps (`within_deadline`), so that no slot is held.
        """
        self._show(f"{self._place}: timing live replicas")
        while True:
            result = await self._run_step(policies.TIME_REPLICAS, wave, f"{self._place}: time live replicas")
            if result.again_seconds <= 0:
                return await self._unheld() if result.ok else result
            if self._stopping:
                raise asyncio.CancelledError
            wave = wave.model_copy(update={"rounds": result.rounds, "waited_before": result.waited_seconds})

    async def _watch_answers(self, wave: WaveInput, hold_seconds: float) -> WaveResult:
        """Wait for the bake time, check the answers meanwhile, and judge them at the end.

        A bad canary is reverted before it ends.
        """
        left = hold_seconds
        if left >= policies.SHORTEST_WATCHED_SECONDS:
            every = max(policies.GATE_EVERY_SECONDS, hold_seconds / policies.MOST_LOOKS)
            while left > every and not self._promoted:
                await self._hold(every)
                left -= every
                result = await self._look(wave, early=True)
                if not result.ok:
                    return result
        if not self._promoted:
            await self._hold(left)
        return await self._judge_wave(wave)

    async def _judge_wave(self, wave: WaveInput) -> WaveResult:
        """Return the gate's verdict. If it has too few answers it is evaluated again, within the run's deadline.

        The pauses between evaluations count: while no worker works, no answers are waited for.
        """
        waited = 0.0
        while True:
            result = await self._look(wave, waited=waited)
            if result.again_seconds <= 0:
                return result
            if waited >= self._input.deadline_seconds:
                return result
            self._show(f"{self._place}: {result.message}; looking again")
            pause = longest_after(waited, result.again_seconds)
            await self._until(lambda: False, pause, f"{self._place}: wait for answers")
            waited += pause

    async def _release(self, wave: WaveInput) -> WaveResult:
        """Release capacity.

        After the last wave all traffic has moved: a failed release is reported, and fails nothing.
        """
        self._show(f"{self._place}: releasing capacity")
        try:
            return await self._run_step(policies.RELEASE_CAPACITY, wave, f"{self._place}: release capacity")
        except ActivityError as error:
            if wave.index + 1 < self._input.waves or is_cancelled_exception(error):
                raise
            self._released = False
            return WaveResult(ok=True, message=explain_error(error).message)

    async def _outcome(self, walk: Coroutine[Any, Any, WaveResult]) -> WaveResult:
        """Return a wave's result, whatever ended it."""
        self._walking = asyncio.create_task(walk)
        try:
            result = await self._walking
        except ActivityError as error:
            if is_cancelled_exception(error) or workflow.cancellation_reason() is not None:
                return self._make_stopped()
            reason, message = explain_error(error)
            return WaveResult(ok=False, reason=reason, message=message)
        except asyncio.CancelledError:
            return self._make_stopped()
        if result.ok and workflow.cancellation_reason() is not None and self._index + 1 < self._input.waves:
            return self._make_stopped()
        return result

    async def _revert_waves(self, failed: WaveResult) -> TransitionResult:
        """Revert in one step, or wave by wave if the supply does not fit all of it at once."""
        why = f"{failed.reason}: {failed.message}"
        by_waves = self._input.back == "by_waves"
        left: list[str] = []
        for index in range(self._index, -1, -1) if by_waves else (self._index,):
            wave = self._wave(index).model_copy(
                update={"back": True, "by_waves": by_waves, "reason": failed.reason, "message": failed.message}
            )
            left += await self._undone(wave, why)
        self._show(f"went back ({why})")
        undone = f"not all of the way back was done then: {'; '.join(left)}" if left else ""
        message = f"{failed.message}; {undone}" if undone else failed.message
        return TransitionResult(
            done=False,
            waves_done=self._index,
            reason=failed.reason,
            message=message,
            undone=undone,
            unanswered=failed.unanswered,
        )

    async def _undone(self, wave: WaveInput, why: str) -> list[str]:
        """Restore capacity, then traffic, then release the additions, each as far as possible. Return the failures."""
        left: list[str] = []
        for step, what in (
            (policies.ENSURE_CAPACITY, "bring back the former capacity"),
            (policies.SHIFT_TRAFFIC, "send the traffic back"),
            (policies.RELEASE_CAPACITY, "release what was added"),
        ):
            self._show(f"going back ({why}): {what}")
            try:
                result = await self._run_step(step, wave, f"way back: {what}")
                left += [] if result.ok else [f"{what}: {result.message}"]
            except ActivityError as error:
                if (lost := fence_lost(error)) is not None:
                    raise lost from error
                left.append(f"{what}: {explain_error(error).message}")
        return left

    # steps and waits

    async def _hold(self, seconds: float) -> None:
        if seconds <= 0:
            return
        self._show(f"{self._place}: holding {seconds:g} s")
        await self._until(lambda: self._promoted, seconds, f"{self._place}: hold and watch")

    async def _look(self, wave: WaveInput, *, early: bool = False, waited: float = 0.0) -> WaveResult:
        asked = wave.model_copy(update={"early": early, "watched_seconds": waited})
        return await self._run_step(policies.CHECK_GATE, asked, f"{self._place}: check the answers")

    async def _run_step(self, step: policies.ActivityStep[WaveResult], wave: WaveInput, summary: str) -> WaveResult:
        """Run a step within the wave's deadline. A revert, and an urgent run, pass the waits of others."""
        passing = step.passing(urgent=self._back or self._input.urgent)
        return await within_deadline(passing, wave, summary, stopping=lambda: self._stopping and not self._back)

    def _needs_approval(self) -> bool:
        if self._promoted or self._input.approval == "none" or self._index + 1 == self._input.waves:
            return False
        gates = self._input.gates
        canary = (gates[self._index] if self._index < len(gates) else "step") == "canary"
        return canary or self._input.approval == "each"

    async def _approval(self, wave: WaveInput) -> WaveResult:
        """Wait for an approval; check the answers meanwhile.

        If none comes in time, or a newer publish does, the run is reverted.
        """
        message = (
            f"generation {self._input.generation}, {self._place}: waits for an approval (`ipnext approve "
            f"{self._input.model}`)"
        )
        self._asks, self._approved = True, False
        await self._note(held=True, message=message)
        self._show(f"{self._place}: waits for an approval")
        try:
            result = await self._person(wave)
        finally:
            self._asks = False
        if result.ok:
            await self._note(held=False, message=f"{self._place}: {result.message}")
        return result

    async def _person(self, wave: WaveInput) -> WaveResult:
        """Return the result of the wait for an approval."""
        for seconds in self._pauses():
            await self._until(
                lambda: self._approved or self._promoted or self._newer is not None,
                seconds,
                f"{self._place}: wait for an approval",
            )
            if self._approved or self._promoted:
                return WaveResult(ok=True, message="approved")
            if self._newer is not None:
                return self._gives_way()
            result = await self._look(wave, early=True)
            if not result.ok:
                return result
        limit = self._input.manual_deadline_seconds
        message = f"nobody approved {self._place} within {limit:g} s"
        return WaveResult(ok=False, reason=Reason.DEADLINE_EXCEEDED, message=message, unanswered=True)

    async def _unheld(self) -> WaveResult | None:
        """Continue at once, or when the pause is over.

        If the run was stopped, or is paused for too long, return its failure.
        """
        if self._stopping:
            return self._make_stopped()
        held = self._held
        if held is None:
            return None
        self._show(f"{self._place}: paused {held.text}")
        for seconds in self._pauses():
            if await self._until(lambda: self._held is None, seconds, f"{self._place}: paused"):
                return None
        message = f"paused for more than {self._input.manual_deadline_seconds:g} s {held.text}"
        return WaveResult(ok=False, reason=Reason.DEADLINE_EXCEEDED, message=message, unanswered=True)

    def _pauses(self) -> Iterator[float]:
        """Yield the pieces of the longest wait for a person.

        Without a worker no request is handled, so of such a time at most one piece counts.
        """
        left = self._input.manual_deadline_seconds
        every = max(policies.GATE_EVERY_SECONDS, left / policies.MOST_WAIT_LOOKS)
        while left > 0:
            yield min(every, left)
            left -= every

    async def _until(self, met: Callable[[], bool], seconds: float, summary: str) -> bool:
        """Wait for a condition, at most `seconds`; False if that was too short.

        A run that is stopping does not wait.
        """
        if self._stopping:
            raise asyncio.CancelledError  # cancelled during an activity, which has succeeded
        try:
            await workflow.wait_condition(met, timeout=timedelta(seconds=seconds), timeout_summary=summary)
        except TimeoutError:
            return False
        return True

    async def _note(self, *, held: bool, message: str = "") -> None:
        reason = Reason.AWAITING_APPROVAL
        note = HoldNote(model=self._input.model, held=held, reason=reason, message=message, event=message)
        try:
            await perform(policies.NOTE_HOLD, note, f"record: {message or 'nothing holds it back'}")
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            workflow.logger.error("a hold of %s could not be recorded: %s", note.model, explain_error(error).message)

    @property
    def _stopping(self) -> bool:
        """True if the run was cancelled, or a newer change supersedes it; it never becomes false again."""
        return self._turning or workflow.cancellation_reason() is not None

    @property
    def _place(self) -> str:
        return f"wave {self._index + 1} of {self._input.waves}"

    def _make_stopped(self) -> WaveResult:
        if workflow.cancellation_reason() is None and self._newer is not None:
            return self._gives_way()
        reason = stop_reason() or STOPPED_OUTSIDE
        return WaveResult(ok=False, reason=Reason.ROLLED_BACK, message=f"stopped: {reason}")

    def _gives_way(self) -> WaveResult:
        newer = self._newer.change_id if self._newer is not None else "a newer change"
        return WaveResult(ok=False, reason=Reason.SUPERSEDED, message=f"gave way to {newer}, which is newer")

    def _answer(self, action: ControlAction, message: str) -> ControlAnswer:
        self._show(message)
        return ControlAnswer(model=self._input.model, action=action, change_id=self._input.change_id, message=message)

    def _show(self, text: str) -> None:
        workflow.set_current_details(f"**{self._input.model}** generation {self._input.generation}: {text}")

    def _wave(self, index: int) -> WaveInput:
        return WaveInput(
            transition_id=self._input.transition_id,
            model=self._input.model,
            generation=self._input.generation,
            index=index,
            deadline_seconds=self._input.deadline_seconds,
            fence=self._input.fence,
        )

    def _describe_unreleased(self) -> str:
        return "" if self._released else "former capacity could not be released everywhere; the next change does it"
