"""Controls of a running transition: pauses, approvals, a promotion, newer publishes; and its waits for a user.

`workflows.transition` executes the waves. Each wait is bounded: a run without an answer is reverted. Bounds count the
time in which workers work.
"""

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.controls import ControlAction, ControlAnswer, ControlAsked, Hold, HoldNote, NewerWaits
    from ipnext.model.lifecycle.messages import TransitionInput, WaveInput, WaveResult
    from ipnext.model.lifecycle.status import Reason
    from workflows import policies
    from workflows.attempts import within_deadline
    from workflows.errors import STOPPED_OUTSIDE, explain_error, stop_reason
    from workflows.policies import perform


class TransitionControl:
    """The part of workflow `transition` that handles requests. The subclass executes the waves."""

    def __init__(self, input: TransitionInput) -> None:  # noqa: A002 - as the workflow names it
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

        While no worker works nobody is heard: of such a time at most one piece counts.
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
