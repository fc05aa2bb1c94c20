"""Workflow `transition`: walks the waves of one model's transition, and walks back where one of them fails.

In each wave: capacity up and ready, traffic over, hold, gate, old capacity down. Child of `lifecycle`; the waves lie in
the store, so the history holds an index only.
"""

import asyncio
from collections.abc import Awaitable
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle import TransitionInput, TransitionResult, WaveInput, WaveResult
    from ipnext.model.status import Reason
    from workflows import policies
    from workflows.failing import explained, to_the_end
    from workflows.policies import perform


@workflow.defn(name=names.TRANSITION_WORKFLOW, failure_exception_types=policies.BUGS)
class TransitionWorkflow:
    """One transition of one model."""

    @workflow.init
    def __init__(self, input: TransitionInput) -> None:  # noqa: A002 - Temporal passes it by place
        self._input = input
        self._index = 0
        self._released = True

    @workflow.run
    async def run(self, input: TransitionInput) -> TransitionResult:  # noqa: A002
        """Walk all waves, or some and then back. Cancelling it is a way to ask for the way back."""
        for index in range(input.waves):
            self._index = index
            wave = await self._outcome(self._walk(index))
            if not wave.ok:
                return await to_the_end(self._walk_back(wave))
        self._show("done: all traffic is where it shall be")
        return TransitionResult(done=True, waves_done=input.waves, message=self._unreleased())

    async def _walk(self, index: int) -> WaveResult:
        wave = self._wave(index)
        place = f"wave {index + 1} of {self._input.waves}"
        self._show(f"{place}: adding capacity")
        result = await perform(
            self._limited(policies.ENSURE_CAPACITY), wave, f"{place}: add capacity, wait until ready"
        )
        if not result.ok:
            return result
        self._show(f"{place}: moving traffic")
        shifted = await perform(self._limited(policies.SHIFT_TRAFFIC), wave, f"{place}: move traffic")
        await self._hold(shifted.hold_seconds, place)
        wave = wave.model_copy(update={"baseline": shifted.baseline})
        result = await perform(self._limited(policies.CHECK_GATE), wave, f"{place}: check the answers")
        return await self._release(wave, place) if result.ok else result

    async def _hold(self, seconds: float, place: str) -> None:
        if seconds > 0:
            self._show(f"{place}: holding {seconds:g} s")
            await workflow.sleep(timedelta(seconds=seconds), summary=f"{place}: hold and watch")

    async def _release(self, wave: WaveInput, place: str) -> WaveResult:
        """After the last wave all traffic is right: capacity that can't be freed is told, and fails nothing."""
        self._show(f"{place}: releasing capacity")
        step = self._limited(policies.RELEASE_CAPACITY)
        try:
            return await perform(step, wave, f"{place}: release capacity")
        except ActivityError as error:
            if wave.index + 1 < self._input.waves or is_cancelled_exception(error):
                raise
            self._released = False
            return WaveResult(ok=True, message=explained(error).message)

    async def _outcome(self, walk: Awaitable[WaveResult]) -> WaveResult:
        """A wave's result, whatever ended it."""
        try:
            result = await walk
        except ActivityError as error:
            if is_cancelled_exception(error):
                return _stopped()
            reason, message = explained(error)
            return WaveResult(ok=False, reason=reason, message=message)
        except asyncio.CancelledError:
            return _stopped()
        if result.ok and workflow.cancellation_reason() is not None and self._index + 1 < self._input.waves:
            return _stopped()
        return result

    async def _walk_back(self, failed: WaveResult) -> TransitionResult:
        """Origin's capacity, origin's traffic, then what was added is released. Each as far as it can be done."""
        why = f"{failed.reason}: {failed.message}"
        wave = self._wave(self._index).model_copy(
            update={"back": True, "reason": failed.reason, "message": failed.message}
        )
        left: list[str] = []
        for step, what in (
            (policies.ENSURE_CAPACITY, "bring back the former capacity"),
            (policies.SHIFT_TRAFFIC, "send the traffic back"),
            (policies.RELEASE_CAPACITY, "release what was added"),
        ):
            self._show(f"going back ({why}): {what}")
            try:
                result = await perform(self._limited(step), wave, f"way back: {what}")
                left += [] if result.ok else [f"{what}: {result.message}"]
            except ActivityError as error:
                left.append(f"{what}: {explained(error).message}")
        self._show(f"went back ({why})")
        message = failed.message + (f"; not all of the way back is done: {'; '.join(left)}" if left else "")
        return TransitionResult(done=False, waves_done=self._index, reason=failed.reason, message=message)

    def _wave(self, index: int) -> WaveInput:
        return WaveInput(
            transition_id=self._input.transition_id,
            model=self._input.model,
            generation=self._input.generation,
            index=index,
            deadline_seconds=self._input.deadline_seconds,
        )

    def _limited(self, step: policies.Step[WaveResult]) -> policies.Step[WaveResult]:
        return step.within(self._input.deadline_seconds)

    def _unreleased(self) -> str:
        return "" if self._released else "former capacity could not be released everywhere; the next change does it"

    def _show(self, text: str) -> None:
        workflow.set_current_details(f"**{self._input.model}** generation {self._input.generation}: {text}")


def _stopped() -> WaveResult:
    reason = workflow.cancellation_reason() or "it was cancelled"
    return WaveResult(ok=False, reason=Reason.ROLLED_BACK, message=f"stopped: {reason}")
