"""The stage `shadow` in a change's run: looks at the comparison from time to time, until it is judged.

The run waits by timers, so no slot of a worker is held; each look does what is lacking (`activities.stages.shadow`).
The end of the change ends the shadow in any case.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
    from ipnext.model.lifecycle.checks import BUILT_IN
    from ipnext.model.lifecycle.shadow import ShadowAsked, ShadowSeen
    from ipnext.model.lifecycle.stages import SHADOW, StageAnswer, StageEnded, StageJudged
    from workflows import policies
    from workflows.errors import raise_if_cancelled
    from workflows.policies import perform
    from workflows.stages.plugged import Superseded


WAITED_SHARE = 0.01
"""Of the wait for supply so far: the shortest pause before the next look. So a wait of a year has some thousand looks,
which the history of a run holds."""


async def run_shadow(
    stage: StageInput, settings: Mapping[str, Any], superseded: Callable[[], bool], *, patience_seconds: float
) -> StageJudged:
    """Run the stage and return its result, which is recorded. The shadow has ended by then.

    Raises:
        Superseded: `superseded` became true before it was judged.
        asyncio.CancelledError: the run was cancelled.
    """
    asked, began = ShadowAsked(**dict(stage), settings=settings), workflow.now()
    seen = await _until_judged(asked, superseded, patience_seconds)
    await perform(policies.END_SHADOW, asked, "end the shadow")
    passed = seen.state in {"passed", "skipped"} or (not seen.is_final and seen.passes)
    ended = StageEnded(
        **dict(stage),
        name=SHADOW,
        source=BUILT_IN,
        answer=StageAnswer(passed=passed, message=seen.message, evidence=seen.evidence).model_dump(mode="json"),
        duration_seconds=(workflow.now() - began).total_seconds(),
    )
    return await perform(policies.RECORD_STAGE, ended, f"stage {SHADOW}: record its verdict")


async def _until_judged(asked: ShadowAsked, superseded: Callable[[], bool], patience_seconds: float) -> ShadowSeen:
    """Look until there is a verdict, or until the shadow was in one state for too long."""
    state, since = "", workflow.now()
    while True:
        seen = await perform(policies.KEEP_SHADOW, asked, f"shadow of generation {asked.generation}: {state or 'plan'}")
        if seen.is_final:
            return seen
        if seen.state != state:
            state, since = seen.state, workflow.now()
        limit = patience_seconds if seen.limit_seconds is None else seen.limit_seconds
        waited = (workflow.now() - since).total_seconds()
        left = limit - waited
        if left <= 0:
            return seen.model_copy(update={"message": f"no verdict within {limit:g} s: {seen.message}"})
        raise_if_cancelled()
        if seen.again_seconds:
            with suppress(asyncio.TimeoutError):
                await workflow.wait_condition(
                    superseded,
                    timeout=min(pause_before_look(seen, waited), left),
                    timeout_summary=f"shadow of generation {asked.generation}: {state}",
                )
        if superseded():
            raise Superseded


def pause_before_look(seen: ShadowSeen, waited: float) -> float:
    """Return the seconds until the next look. Waits for supply have no length of their own, so their pauses grow."""
    return max(seen.again_seconds, WAITED_SHARE * waited) if seen.state == "waiting" else seen.again_seconds
