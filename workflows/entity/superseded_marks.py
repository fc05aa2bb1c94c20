"""Marks of superseded changes: they record in the store which changes of the model will not run.

If that fails, the entity later looks again at the open changes.
"""

import asyncio
from contextlib import suppress

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from ipnext.model.lifecycle.changes.entity import SupersededInput
    from workflows import policies
    from workflows.entity.state import EntityState
    from workflows.errors import explain_error
    from workflows.policies import perform


class SupersededMarks:
    """Marks superseded changes, and schedules another look at what could not be recorded."""

    def __init__(self, state: EntityState) -> None:
        self._state = state
        self._pausing: asyncio.Task[None] | None = None
        self._marking = asyncio.Lock()
        self._marker: asyncio.Task[None] | None = None
        self._marks = 0

    @property
    def are_wanted(self) -> bool:
        """True if changes wait for their mark and nothing marks them yet."""
        return bool(self._state.superseded) and (self._marker is None or self._marker.done())

    @property
    def will_look(self) -> bool:
        """True if another look is due, now or later."""
        return self._state.looks_again or not (self._pausing is None or self._pausing.done())

    def begin(self) -> None:
        """Mark what is superseded meanwhile: at once as a rule, once a minute if there are very many."""
        self._marker = asyncio.create_task(self._mark())

    def give_up(self) -> None:
        """Look again later, with all that could not be written by then."""
        if self._pausing is None or self._pausing.done():
            self._pausing = asyncio.create_task(self._schedule_look())

    async def record(self) -> None:
        """Record all in one activity.

        If that fails, the store still has them as waiting, and they are recorded later.
        """
        async with self._marking:
            found = self._state.superseded
            if not found:
                return
            self._marks += 1
            record = SupersededInput(model=self._state.model, superseded=found)
            newest = found[-1]
            try:
                await perform(policies.MARK_SUPERSEDED, record, f"{len(found)} superseded, {newest.change_id} last")
            except ActivityError as error:
                workflow.logger.error("%d could not be marked superseded: %s", len(found), explain_error(error).message)
                self._state.unmarked += found
                self.give_up()
            self._state.superseded = self._state.superseded[len(found) :]

    async def _mark(self) -> None:
        """Mark superseded changes, also those that are superseded before the first ones are marked.

        If the entity's loop began the next marks instead, their place among the commands would depend on whether the
        SDK merges the workflow task of the last mark's end, which has no commands, with the next one
        (https://github.com/temporalio/sdk-rust/issues/1146). For the same reason the wait ends as soon as no change is
        left to mark: otherwise the timer would cause such a task.
        """
        while self._state.superseded:
            if self._marks >= policies.MARKS_SOON:
                with suppress(asyncio.TimeoutError):
                    await workflow.wait_condition(
                        lambda: not self._state.superseded,
                        timeout=policies.MARK_EVERY,
                        timeout_summary="collect what is superseded",
                    )
            await self.record()

    async def _schedule_look(self) -> None:
        await workflow.sleep(policies.LOOK_AGAIN, summary="look again at what could not be recorded")
        self._state.looks_again = True
