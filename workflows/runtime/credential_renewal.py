"""Renews a worker's connection to Temporal when its certificate or API key has changed."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
from temporalio.client import Client
from temporalio.worker import Worker

from ipnext.errors import InvalidInput, Unavailable
from ipnext.temporal_access import TemporalSettings, stamp_of

LOOK_SECONDS: Final = 1.0


class CurrentClient:
    """The client in use."""

    def __init__(self, client: Client, settings: TemporalSettings) -> None:
        self._client = client
        self._settings = settings
        self._stamp = stamp_of(settings)

    def get(self) -> Client:
        """Return the client."""
        return self._client

    async def follow(self, workers: Sequence[Worker], connect: Callable[[], Awaitable[Client]]) -> None:
        """Reconnect after each change of the files, forever. Calls in progress end on the former connection."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                stamp = stamp_of(self._settings)
                if stamp == self._stamp:
                    continue
                client = await connect()
            except (InvalidInput, Unavailable) as error:  # retried; the former connection stays
                structlog.get_logger().warning("temporal_credentials_not_in_use", error=error.message)
                continue
            for worker in workers:
                worker.client = client
            self._client, self._stamp = client, stamp
            structlog.get_logger().info("temporal_credentials_replaced")
