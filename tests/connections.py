"""Connections of an event loop that is about to be closed: their garbage would fail a later test."""

import asyncio
from typing import Any

import anyio
import httpx2
from httpcore2 import AnyIOBackend, AsyncNetworkStream
from httpcore2._backends.anyio import AnyIOStream

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


class _Stream(AnyIOStream):
    """One that its owner gives up while it is in a TLS handshake is closed: httpcore2 does so after errors alone."""

    async def start_tls(self, *given: Any, **more: Any) -> AsyncNetworkStream:
        try:
            return await super().start_tls(*given, **more)
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise


class _Backend(AnyIOBackend):
    async def connect_tcp(self, *given: Any, **more: Any) -> AsyncNetworkStream:
        stream = await super().connect_tcp(*given, **more)
        assert isinstance(stream, AnyIOStream)
        return _Stream(stream._stream)


def close_handshakes(client: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """Let a client close a connection whose handshake is cancelled. Return the client."""
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx2.AsyncHTTPTransport):
            transport._pool._network_backend = _Backend()
    return client
