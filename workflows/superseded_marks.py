"""Marks of superseded changes: the part of workflow `model` that records in the store which changes will not run."""

import asyncio
from contextlib import suppress

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from ipnext.model.lifecycle import ModelEntityInput, SupersededInput
    from workflows import policies
    from workflows.errors import explained
    from workflows.model_passing import Passing
    from workflows.policies import perform


class Marked(Passing):
    """The part of an entity that marks superseded changes."""

    def __init__(self, input: ModelEntityInput) -> None:  # noqa: A002 - as the workflow names it
        super().__init__(input)
        self._superseded = input.superseded
        """Changes still to be marked."""
        self._marking = asyncio.Lock()
        self._marker: asyncio.Task[None] | None = None
        self._marks = 0

    @property
    def _marks_wanted(self) -> bool:
        return bool(self._superseded) and (self._marker is None or self._marker.done())

    async def _mark(self) -> None:
        """Mark superseded changes: at once as a rule, once a minute if there are very many.

        The wait ends as soon as no change is left to mark: a timer that fires in vain makes a workflow task without
        commands.
        """
        if self._marks >= policies.MARKS_SOON:
            with suppress(asyncio.TimeoutError):
                await workflow.wait_condition(
                    lambda: not self._superseded,
                    timeout=policies.MARK_EVERY,
                    timeout_summary="collect what is superseded",
                )
        await self._record_superseded()

    async def _record_superseded(self) -> None:
        """Record all in one activity. If one can't be marked, that is logged: the store then still has it as waiting."""
        async with self._marking:
            found = self._superseded
            if not found:
                return
            self._marks += 1
            record = SupersededInput(model=self._model, superseded=found)
            newest = found[-1]
            try:
                await perform(policies.MARK_SUPERSEDED, record, f"{len(found)} superseded, {newest.change_id} last")
            except ActivityError as error:
                workflow.logger.error("%d could not be marked superseded: %s", len(found), explained(error).message)
            self._superseded = self._superseded[len(found) :]
