"""End of a host: its last requests."""

import asyncio
import time
from contextlib import suppress

from ipnext.errors import Unavailable
from ipnext.infra.control import Control
from ipnext.infra.settings import AgentSettings


async def finish(control: Control, url: str, *, drain_seconds: float, settings: AgentSettings) -> None:
    """Drain a host: it takes no new requests.

    Return once it has answered those under way, or when its drain time is over.
    """
    with suppress(Unavailable):  # a host that is down has nothing to finish
        await control.drain(url)
        deadline = time.monotonic() + drain_seconds
        while time.monotonic() < deadline:
            if (await control.host_state(url)).in_flight == 0:
                return
            await asyncio.sleep(settings.poll_seconds)
