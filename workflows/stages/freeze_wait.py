"""Wait of a change's run for a freeze to end: it sleeps between two checks, and a signal wakes it."""

from collections.abc import Callable
from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
    from ipnext.model.manifest.freeze import Frozen
    from workflows import policies
    from workflows.errors import raise_if_cancelled
    from workflows.policies import perform


class Thaw:
    """Waits until no freeze blocks a change any more, or `newer`: a newer change waits behind it."""

    def __init__(self, newer: Callable[[], bool], urgent: Callable[[], bool]) -> None:
        self._newer = newer
        self._urgent = urgent
        self._look_again = False

    def freezes_changed(self) -> None:
        """Check again: a freeze was lifted, changed or overridden."""
        self._look_again = True

    async def done(self, stage: StageInput, show: Callable[[Frozen], None]) -> bool:
        """Return True once the change may continue; False if it is frozen and the newer change supersedes it.

        Windows that begin during the wait extend it. Cancellation ends the wait.
        """
        while True:
            self._look_again = False
            step = policies.FREEZE_OF.passing(urgent=self._urgent())
            answer = await perform(step, stage, f"does a freeze hold {stage.model} back?")
            if answer.frozen is None:
                return True
            if self._newer():
                return False
            show(answer.frozen)
            await self._sleep(answer.frozen)

    async def _sleep(self, frozen: Frozen) -> None:
        raise_if_cancelled()
        try:
            await workflow.wait_condition(
                lambda: self._look_again or self._newer(),
                timeout=pause_before(frozen.until - workflow.now()),
                timeout_summary=frozen.message[:200],
            )
        except TimeoutError:
            return


def pause_before(left: timedelta) -> timedelta:
    """Return the time to sleep if `left` of the freeze remains: to its end, but not too long without a check."""
    return max(timedelta(seconds=1), min(left, max(policies.FREEZE_LOOKS_EVERY, left / policies.FREEZE_LOOKS)))
