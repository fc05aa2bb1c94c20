"""Workflow `replan`: plans the fleet anew, adopts the plan where it is worth it, and asks each changed model to move.

Started by the schedule or by hand. The models move through their own entities, a few at a time.
"""

import asyncio

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle import ChangeState, MoveInput, ReplanComputed, ReplanInput, ReplanResult
    from ipnext.model.status import Reason
    from workflows import policies
    from workflows.failing import explained
    from workflows.policies import perform

STAGE = SearchAttributeKey.for_keyword(names.STAGE_ATTRIBUTE)


@workflow.defn(name=names.REPLAN_WORKFLOW, failure_exception_types=policies.BUGS)
class ReplanWorkflow:
    """One replan. The plan in force stays where nothing better is found."""

    @workflow.init
    def __init__(self, input: ReplanInput) -> None:  # noqa: A002 - Temporal passes it by place
        self._input = input
        self._moved = input.moved
        self._troubles: list[str] = []

    @workflow.run
    async def run(self, input: ReplanInput) -> ReplanResult:  # noqa: A002
        """Compute, adopt, move. Continues as new between moves when the history has grown long."""
        computed = input.computed or await self._compute()
        if not computed.adopted:
            return _result(computed, computed.reason, computed.message)
        await self._move_all(computed)
        if self._moved < len(computed.models):
            workflow.continue_as_new(input.model_copy(update={"computed": computed, "moved": self._moved}))
        self._show("done", computed)
        return _result(computed, computed.reason, "; ".join(self._troubles) or computed.message)

    async def _compute(self) -> ReplanComputed:
        self._show("planning", None)
        try:
            return await perform(policies.REPLAN_FLEET, self._input, f"plan the whole fleet ({self._input.trigger})")
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            return ReplanComputed(
                plan_id="", adopted=False, reason=Reason.PLANNER_FAILED, message=explained(error).message
            )

    async def _move_all(self, computed: ReplanComputed) -> None:
        """A window over the models in their order; no new one starts once continue-as-new is suggested."""
        window: list[asyncio.Task[None]] = []
        while self._moved < len(computed.models) or window:
            while (
                self._moved < len(computed.models) and len(window) < policies.RUNNING_MOVES and not _history_is_long()
            ):
                window.append(asyncio.create_task(self._move(computed, computed.models[self._moved])))
                self._moved += 1
                self._show("moving", computed)
            if not window:
                return
            done, window = await workflow.wait(window, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

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

    def _show(self, stage: str, computed: ReplanComputed | None) -> None:
        workflow.upsert_search_attributes([STAGE.value_set(stage)])
        progress = f": {self._moved} of {len(computed.models)} models" if computed else ""
        workflow.set_current_details(f"Replan ({self._input.trigger}), {stage}{progress}")


def _history_is_long() -> bool:
    return workflow.info().is_continue_as_new_suggested()


def _result(computed: ReplanComputed, reason: Reason, message: str) -> ReplanResult:
    return ReplanResult(
        plan_id=computed.plan_id,
        adopted=computed.adopted,
        moves=computed.moves,
        models=computed.models,
        reason=reason,
        message=message,
    )
