"""Workflow `nightly_retrain`: new data, training, publish, the canary's judgement, promotion or abort."""

from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from nightly_retrain.orders import Night, Order, Outcome, Verdict

RETRY = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1), maximum_attempts=20)


@workflow.defn(name="nightly_retrain")
class NightlyRetrain:
    """One night of one model. Each step may be repeated; the change's id is the day's."""

    @workflow.run
    async def run(self, order: Order) -> Outcome:
        """Bring the newest day's data to serving."""
        day: str | None = await self._step("find_data", order, str | None)
        if day is None:
            return Outcome(None, "nothing_new")
        night = Night(order, day)
        await self._step("train", night, None, limit=timedelta(hours=6))
        await self._step("publish", night, None, limit=timedelta(hours=1))
        state = await self._step("await_canary", night, str, limit=timedelta(hours=12))
        if state == "waits":
            verdict: Verdict = await self._step("judge_canary", night, Verdict, limit=timedelta(hours=12))
            await self._step("promote" if verdict.promote else "abort", (night, verdict.reason), None)
        outcome: Outcome = await self._step("await_end", night, Outcome, limit=timedelta(hours=12))
        return outcome

    async def _step(self, name: str, given: Any, answer: Any, limit: timedelta = timedelta(minutes=5)) -> Any:
        return await workflow.execute_activity(
            name,
            args=given if isinstance(given, tuple) else [given],
            result_type=answer,
            start_to_close_timeout=limit,
            heartbeat_timeout=timedelta(minutes=2),
            retry_policy=RETRY,
        )
