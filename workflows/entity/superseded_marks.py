"""Marks of superseded changes: the part of workflow `model` that records in the store which changes will not run.

If that fails, the entity later looks again at the open changes (`workflows.entity.open_changes`).
"""

import asyncio
from contextlib import suppress

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from ipnext.model.lifecycle.messages import ModelEntityInput, SupersededChange, SupersededInput
    from workflows import policies
    from workflows.entity.passing import ModelPassing
    from workflows.errors import explain_error
    from workflows.policies import perform


class SupersededMarks(ModelPassing):
    """The part of an entity that marks superseded changes."""

    def __init__(self, input: ModelEntityInput) -> None:  # noqa: A002 - as the workflow names it
        super().__init__(input)
        self._superseded = input.superseded
        """Changes still to be marked."""
        self._unmarked: tuple[SupersededChange, ...] = ()
        """Changes that could not be marked; the next look at the store tries again."""
        self._looks_again = input.looks_again
        """True if the store may have open changes that this entity lost."""
        self._pausing: asyncio.Task[None] | None = None
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

    def _give_up(self) -> None:
        """Look again later, with all that could not be written by then."""
        if self._pausing is None or self._pausing.done():
            self._pausing = asyncio.create_task(self._schedule_look())

    async def _schedule_look(self) -> None:
        await workflow.sleep(policies.LOOK_AGAIN, summary="look again at what could not be recorded")
        self._looks_again = True

    @property
    def _will_look(self) -> bool:
        """True if another look is due, now or later."""
        return self._looks_again or not (self._pausing is None or self._pausing.done())

    async def _record_superseded(self) -> None:
        """Record all in one activity.

        If that fails, the store still has them as waiting, and they are recorded later.
        """
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
                workflow.logger.error("%d could not be marked superseded: %s", len(found), explain_error(error).message)
                self._unmarked += found
                self._give_up()
            self._superseded = self._superseded[len(found) :]
