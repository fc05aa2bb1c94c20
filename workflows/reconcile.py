"""Workflow `reconcile`: compares every region with the store in passes, and records repairs of models that drifted.

One runs for the platform. A schedule starts it again within a minute if it was terminated. Each pass is
level-triggered: it compares the current states, so that a change missed by an earlier run need not be remembered.
"""

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.changes.lifecycle_run import Done
    from ipnext.model.lifecycle.regions.reconciliation import (
        FreshnessJudged,
        ReconcileInput,
        RegionAsked,
        RegionReconciled,
        RepairsRecorded,
    )
    from workflows import policies
    from workflows.errors import explain_error, raise_if_cancelled
    from workflows.policies import perform

PASSES = 200
"""Passes of one run; then it continues as new."""


@workflow.defn(
    name=names.RECONCILE_WORKFLOW, failure_exception_types=policies.BEGUN_AGAIN, versioning_behavior=policies.ENTITY
)
class ReconcileWorkflow:
    """The platform's reconciler."""

    @workflow.init
    def __init__(self, input: ReconcileInput) -> None:  # noqa: A002 - Temporal passes it by place
        self._regions = input.regions

    @workflow.run
    async def run(self, input: ReconcileInput) -> None:  # noqa: A002 - Temporal passes it by place
        """Run passes forever, `every_seconds` apart."""
        for _ in range(PASSES):
            await self._pass()
            raise_if_cancelled()
            await workflow.sleep(timedelta(seconds=input.every_seconds), summary="until the next pass")
            if workflow.info().is_continue_as_new_suggested():
                break
        workflow.continue_as_new(input.model_copy(update={"regions": self._regions}))

    async def _pass(self) -> None:
        """Run one pass. If a region could not be compared, the next pass compares it.

        If repairs could not be recorded, the regions of the pass before are compared.
        """
        try:
            recorded = await perform(policies.RECORD_REPAIRS, Done(), "which models drifted?")
        except ActivityError as error:
            workflow.logger.warning("repairs could not be recorded: %s", explain_error(error).message)
            recorded = RepairsRecorded(regions=self._regions)
        self._regions = recorded.regions
        comparing = asyncio.gather(*(self._compare_region(region) for region in recorded.regions))
        found, judged = await asyncio.gather(comparing, self._judge_freshness())
        workflow.set_current_details(_details(recorded, found, judged))

    async def _judge_freshness(self) -> FreshnessJudged:
        try:
            return await perform(policies.JUDGE_FRESHNESS, Done(), "are the snapshots fresh?")
        except ActivityError as error:
            workflow.logger.warning("freshness could not be judged: %s", explain_error(error).message)
            return FreshnessJudged()

    async def _compare_region(self, region: str) -> RegionReconciled:
        try:
            return await perform(policies.RECONCILE_REGION, RegionAsked(region=region), f"compare {region}")
        except ActivityError as error:
            workflow.logger.warning("%s could not be compared: %s", region, explain_error(error).message)
            return RegionReconciled(region=region, reachable=False)


def _details(recorded: RepairsRecorded, found: list[RegionReconciled], judged: FreshnessJudged) -> str:
    """Describe the last pass for the Web UI."""
    rows = "\n".join(f"| {seen.region} | {_state(seen)} |" for seen in found)
    named = f" ({', '.join(recorded.models)})" if recorded.models else ""
    failed = {
        **recorded.failed,
        **judged.failed,
        **{model: message for seen in found for model, message in seen.failed.items()},
    }
    told = "".join(f"\n- {model}: {message}" for model, message in sorted(failed.items()))
    left = f"\n\nNot done, and tried again:{told}" if told else ""
    fresh = f"\n\n{judged.breaches} of {judged.parts} parts breach their freshness" if judged.parts else ""
    return f"{recorded.repairs} repairs recorded{named}\n\n| region | |\n|---|---|\n{rows}{fresh}{left}"


def _state(seen: RegionReconciled) -> str:
    if not seen.reachable:
        return "does not answer"
    if seen.skipped:
        return seen.skipped
    if seen.in_sync:
        return "in sync"
    told = f"{seen.applied} replica sets, {seen.routed} route tables told again"
    return f"{told}; {seen.deleted} replica sets, {seen.unrouted} routes removed"
