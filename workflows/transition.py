"""Workflow `transition`: executes the waves of one model's transition, and reverts if one of them fails.

In each wave: capacity is added and ready, traffic moves, bake time with checks, gate, an approval if the manifest
requires one, then the old capacity is released. Child of `lifecycle`; the waves are in the store, so the history has an
index only.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.messages import Revert, TransitionInput, TransitionResult, WaveInput, WaveResult
    from workflows import policies
    from workflows.attempts import longest_after
    from workflows.errors import explain_error, fence_lost, to_the_end
    from workflows.stages.transition_control import TransitionControl


@workflow.defn(
    name=names.TRANSITION_WORKFLOW,
    failure_exception_types=policies.BUGS,
    versioning_behavior=policies.ONE_RUN,
)
class TransitionWorkflow(TransitionControl):
    """One transition of one model."""

    @workflow.init
    def __init__(self, input: TransitionInput) -> None:  # noqa: A002 - Temporal passes it by place
        super().__init__(input)
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
        self._show("done: all traffic is where it shall be")
        await to_the_end(workflow.wait_condition(workflow.all_handlers_finished))
        return TransitionResult(done=True, waves_done=input.waves, message=self._describe_unreleased())

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
        self._show(f"{place}: moving traffic")
        shifted = await self._run_step(policies.SHIFT_TRAFFIC, wave, f"{place}: move traffic")
        if not shifted.ok:
            return shifted
        wave = wave.model_copy(update={"baseline": shifted.baseline, "window": shifted.window})
        result = await self._watch_answers(wave, shifted.hold_seconds)
        if result.ok and self._needs_approval():
            result = await self._approval(wave)
        return await self._release(wave) if result.ok else result

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
