"""The end of a host's loads: reported by the host if it supports that, else observed at the next probe."""

import asyncio
from contextlib import suppress

from ipnext.errors import Unavailable
from ipnext.infra.control import Control
from ipnext.infra.process.wakeup import Wakeup
from ipnext.model.deployment.host_control import HostState


def tells(state: HostState | None) -> bool:
    """Return whether a host loads, and reports the end of a load."""
    return state is not None and bool(state.loading) and state.revision > 0


async def rest(pulse: Wakeup, seconds: float, state: HostState | None, control: Control, url: str) -> None:
    """Return at the next strike or when the host at `url` has ended a load, at the latest after `seconds`."""
    if state is None or not tells(state):
        await pulse.wait(seconds)
        return
    following = asyncio.create_task(_strike_at_the_end(pulse, control, url, state.revision))
    try:
        await pulse.wait(seconds)
    finally:
        following.cancel()


async def _strike_at_the_end(pulse: Wakeup, control: Control, url: str, revision: int) -> None:
    with suppress(Unavailable):
        await control.load_ended(url, revision)
        pulse.strike()
