"""Connections of an event loop that is about to be closed: their garbage would fail a later test."""

import asyncio

LAST_TURNS = 100
LAST_TURN_SECONDS = 0.002


async def end_connections(*, patient_turns: int) -> None:
    """Let the loop close what the other ends have closed, for some turns; abort what is left after those."""
    loop = asyncio.get_running_loop()
    for turn in range(LAST_TURNS):
        left = [each for each in transports(loop) if each.get_extra_info("socket").fileno() != -1]
        if not left:
            return
        if turn >= patient_turns:
            for each in left:
                each.abort()
        await asyncio.sleep(LAST_TURN_SECONDS)


def transports(loop: asyncio.AbstractEventLoop) -> list[asyncio.Transport]:
    """Of connections, also of closed ones."""
    return [each for each in getattr(loop, "_transports", {}).values() if each.get_extra_info("socket") is not None]
