"""Workflow `watch/KIND/UPSTREAM`: polls one upstream system for the sources of all models, and has versions published.

One runs for each system that sources name, so that models of one registry share its requests. A poll records what is
new in the store; this workflow only decides when. It is woken if a source is applied, resumed, pushed to or asked to
poll. It ends once no source is left, and the next one starts it again; one that was terminated is started within a
minute or three intervals.
"""

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import ActivityError, WorkflowAlreadyStartedError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.sources import PickUpInput, PollResult, WatchInput
    from workflows import policies
    from workflows.errors import explain_error, raise_if_cancelled
    from workflows.policies import perform


STARTED_AT_ONCE = 100
"""Pick-ups: the server bounds the commands of one task."""
LEAST_PAUSE = timedelta(seconds=1)
"""After a request: those that come until then are one poll, too."""
LONGEST_SUMMARY = 100
"""Characters of an upstream system's name in a summary: the server takes 400 bytes."""


@workflow.defn(
    name=names.WATCH_WORKFLOW, failure_exception_types=policies.BEGUN_AGAIN, versioning_behavior=policies.ENTITY
)
class WatchWorkflow:
    """The watch of one upstream system."""

    @workflow.init
    def __init__(self, input: WatchInput) -> None:  # noqa: A002 - Temporal passes it by place
        self._input = input
        self._short = input.upstream[:LONGEST_SUMMARY]
        self._woken = False
        self._seen = PollResult()

    @workflow.signal(name=names.SOURCE_WOKEN)
    def wake(self) -> None:
        """Poll soon: a source of this system has changed, or a version was pushed."""
        self._woken = True

    @workflow.query(name=names.WATCH_PROGRESS)
    def progress(self) -> PollResult:
        """Return the result of the last poll."""
        return self._seen

    @workflow.run
    async def run(self, input: WatchInput) -> None:  # noqa: A002 - Temporal passes it by place
        """Poll until no source is left. Continues as new if it takes long."""
        while True:
            self._woken = False
            polled = await self._poll()
            if polled and self._seen.over and not self._woken:
                return
            models = self._seen.models if polled else ()
            for start in range(0, len(models), STARTED_AT_ONCE):
                await asyncio.gather(*map(self._pick_up, models[start : start + STARTED_AT_ONCE]))
            await self._wait(timedelta(seconds=self._seen.next_seconds) if polled else policies.POLL_AGAIN)
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(input)

    async def _poll(self) -> bool:
        """Poll once. False if that failed as a whole, such as without the database."""
        try:
            self._seen = await perform(policies.POLL_SOURCES, self._input, f"poll {self._short}")
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            why = explain_error(error).message
            workflow.logger.warning("%s could not be polled: %s", self._input.upstream, why)
            workflow.set_current_details(f"**{self._input.upstream}** was not polled, and is tried again: {why}")
            return False
        workflow.set_current_details(_details(self._input, self._seen))
        return True

    async def _pick_up(self, model: str) -> None:
        """Start the publication of a model's versions, unless it runs: then it finds them by itself."""
        try:
            child = await workflow.start_child_workflow(
                names.PICK_UP_WORKFLOW,
                PickUpInput(model=model),
                id=names.pick_up_workflow_id(model),
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                static_summary=f"publishes what the sources of {model} found",
            )
        except WorkflowAlreadyStartedError:
            return
        child.add_done_callback(_see)

    async def _wait(self, pause: timedelta) -> None:
        raise_if_cancelled()
        pause *= 1 + policies.POLL_JITTER * workflow.random().random()
        try:
            await workflow.wait_condition(
                lambda: self._woken, timeout=pause, timeout_summary=f"until {self._short} is polled again"
            )
        except TimeoutError:
            return
        await workflow.sleep(LEAST_PAUSE, summary="between two polls that were asked for")


def _see(child: "workflow.ChildWorkflowHandle[Any, Any]") -> None:
    """Take the end of a pick-up: one that was terminated or cancelled is no error of its watch."""
    if not child.cancelled():
        child.exception()


def _details(asked: WatchInput, seen: PollResult) -> str:
    """Describe the last poll for the Web UI."""
    rows = "\n".join(f"| {state.model} | {state.source} | {state.text} |" for state in seen.states)
    more = seen.count - len(seen.states)
    left = f"\n\nand {more} more" if more > 0 else ""
    return f"**{asked.upstream}** ({asked.kind})\n\n| model | source | |\n|---|---|---|\n{rows}{left}"
