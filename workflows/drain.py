"""Workflow `drain/REGION`: takes a region out of service, or restores it. The requests are in the store.

One runs for each region. A changed request is written into the store and signalled; the run reads it and follows: a
planned drain that becomes a disaster, a drain that is undone while it runs. It ends once the region is drained, refused
or restored; the next request starts it again.
"""

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.regions.drain import DrainInput, DrainSeen, DrainState, status_of
    from workflows import policies
    from workflows.errors import explain_error, raise_if_cancelled
    from workflows.policies import ActivityStep, perform

STAGE = SearchAttributeKey.for_keyword(names.STAGE_ATTRIBUTE)

ASKED = frozenset({DrainState.RECORDED, DrainState.CHECKING})
ENDED = frozenset({DrainState.DRAINED, DrainState.REFUSED, DrainState.RETURNED})


@workflow.defn(
    name=names.DRAIN_WORKFLOW, failure_exception_types=policies.BEGUN_AGAIN, versioning_behavior=policies.ENTITY
)
class DrainWorkflow:
    """Drain and restoration of one region."""

    @workflow.init
    def __init__(self, input: DrainInput) -> None:  # noqa: A002 - Temporal passes it by place
        self._region = input.region
        self._news = False
        self._seen = DrainSeen(state=DrainState.RECORDED)
        self._looks = 0

    @workflow.signal(name=names.DRAIN_CHANGED)
    def note_change(self) -> None:
        """Note a new request for this region."""
        self._news = True

    @workflow.query(name=names.DRAIN_PROGRESS)
    def progress(self) -> DrainSeen:
        """Return the state of the drain at its last check."""
        return self._seen

    @workflow.run
    async def run(self, input: DrainInput) -> DrainSeen:  # noqa: A002
        """Follow the requests until nothing is left to do. Continues as new if it takes long."""
        while True:
            self._news = False
            known = await self._try(policies.LOOK_AT_DRAIN, input, f"look at {input.region}")
            if known:
                await self._do_next(input)
            if known and self._seen.state in ENDED and not self._news:
                return self._seen
            if not known or self._seen.state not in ENDED:
                await self._wait()
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(input)

    async def _do_next(self, asked: DrainInput) -> None:
        """Run the one step that the state requires, if any."""
        seen = self._seen
        if seen.state is DrainState.RETURNING:
            await self._try(policies.RETURN_REGION, asked, f"bring {asked.region} back")
        elif seen.disaster and (seen.state in ASKED or (seen.state is DrainState.DRAINING and seen.misrouted)):
            await self._try(policies.ROUTE_AROUND, asked, f"send the traffic around {asked.region}")
        elif seen.state in ASKED:
            await self._try(policies.CHECK_DRAIN, asked, f"can the others carry {asked.region}?")

    async def _try(self, step: ActivityStep[DrainSeen], asked: DrainInput, summary: str) -> bool:
        """Perform a step. False if it failed: the state in the store counts, so the next look tries it again."""
        try:
            self._show(await perform(step, asked, summary))
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            why = explain_error(error).message
            workflow.logger.warning("%s failed and is tried again: %s", step.name, why)
            self._show(self._seen.model_copy(update={"message": f"{step.name} failed and is tried again: {why}"}))
            return False
        return True

    async def _wait(self) -> None:
        """Wait for a request, or until the next check is due: soon at first, seldom later."""
        raise_if_cancelled()
        self._looks += 1
        pause = policies.DRAIN_LOOK if self._looks <= policies.DRAIN_LOOKS_SOON else policies.DRAIN_LOOK_LATER
        try:
            await workflow.wait_condition(
                lambda: self._news, timeout=pause, timeout_summary=f"until {self._region} is looked at again"
            )
        except TimeoutError:
            return

    def _show(self, seen: DrainSeen) -> None:
        self._seen = seen
        workflow.upsert_search_attributes([STAGE.value_set(seen.state.value)])
        status = status_of(seen.state, lost=seen.disaster and not seen.state.over)
        left = (
            f"\n\n| left | |\n|---|---|\n| models | {seen.models_left} |\n| replicas | {seen.replicas_left} |\n"
            f"| traffic, requests or tokens/s | {seen.traffic_left_qps:g} |"
        )
        told = f"\n\n{seen.message}" if seen.message else ""
        workflow.set_current_details(f"**{self._region}**: {status}{told}{left}")
