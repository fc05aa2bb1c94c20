"""Graceful shutdown of a router: the next one takes over, requests in flight are finished."""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from ipnext.errors import Unavailable
from ipnext.names import REFUSED_HEADER, REGION_HEADER
from serving.http.messages import Response, error_response
from serving.openai.errors import openai_error
from serving.openai.routes import ROOTS

DRAIN_POLL_SECONDS: Final = 0.02
RELEASE_SECONDS: Final = 10.0
"""Time within which the agent of this router starts the next one, if it does at all."""
FOLLOWED_SECONDS: Final = 3.0
"""A state request within this time shows that an agent follows the router; agents send one every half second."""
LATE_SECONDS: Final = 0.3
"""Time after the release for requests that a gateway sent just before it switched to the next router."""
REPLACED_SECONDS: Final = 1
"""Retry delay in refusals. Without an agent, the next router usually listens by then; a gateway retries a few times
more."""


class GracefulShutdown:
    """State of the shutdown.

    It begins with the termination signal, or when the agent reports that the router gets no more requests.
    """

    def __init__(self, *, region: str) -> None:
        self.draining = False
        """Whether the router is about to end: the agent starts the next one."""
        self.closed = False
        """Whether the router refuses new requests."""
        self._region = region
        self._state_polled_at = float("-inf")
        self._released = asyncio.Event()

    def note_state_poll(self) -> None:
        """Record that an agent requested the router's state, so it follows this router."""
        self._state_polled_at = time.monotonic()

    def release(self) -> None:
        """Record the agent's report that gateways send no more requests here."""
        self.draining = True
        self._released.set()

    async def drain(self, drains: Callable[[], Iterable[float]]) -> None:
        """Return once nothing is in flight, or every model with requests in flight has used up its drain time.

        `drains` returns the drain seconds of each such model. If an agent follows this router, requests are answered as
        before until the agent reports that they go to the next one: a gateway would retry a port without a listener a
        few times, then give up.
        """
        self.draining = True
        followed = time.monotonic() - self._state_polled_at < FOLLOWED_SECONDS
        if followed and not self._released.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._released.wait(), RELEASE_SECONDS)
                await asyncio.sleep(LATE_SECONDS)
        self.closed, began = True, time.monotonic()
        while any(time.monotonic() - began < seconds for seconds in drains()):  # noqa: ASYNC110  # polled once, at the end
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    def refusal(self, root: str) -> Response:
        """Return the refusal of an unread request below this first step of its path.

        The gateway retries on the next router.
        """
        error = Unavailable("this router is about to end and takes nothing new; try again")
        response = openai_error(error) if root in ROOTS else error_response(error)
        headers = {**response.headers, REFUSED_HEADER: str(REPLACED_SECONDS), REGION_HEADER: self._region}
        return Response(response.status, response.body, headers)
