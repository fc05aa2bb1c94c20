"""How a router ends: the next one takes over, what is under way is finished."""

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
"""An agent that follows this router has started the next one by then, or will not."""
FOLLOWED_SECONDS: Final = 3.0
"""An agent asks for the state every half second."""
LATE_SECONDS: Final = 0.3
"""From its release on, for what a gateway sent just before it pointed to the next one."""
REPLACED_SECONDS: Final = 1
"""Where no agent follows, the next router is there by then, as a rule; a gateway tries some times more."""


class GracefulShutdown:
    """Begins with the signal to end, or with the agent's word that nothing is sent here any more."""

    def __init__(self, *, region: str) -> None:
        self.draining = False
        """Whether it is about to end: the agent starts the next one."""
        self.closed = False
        """Whether it takes nothing new."""
        self._region = region
        self._state_polled_at = float("-inf")
        self._released = asyncio.Event()

    def note_state_poll(self) -> None:
        """An agent asks for the router's state: it follows this router."""
        self._state_polled_at = time.monotonic()

    def release(self) -> None:
        """The agent says that nothing is sent here any more."""
        self.draining = True
        self._released.set()

    async def drain(self, drains: Callable[[], Iterable[float]]) -> None:
        """Returns once nothing is under way, or every model with requests under way has had its drain.

        `drains`: for how many seconds those of each such model may go on. Where an agent follows this router, all is answered as before until the
        agent says that requests go to the next one: to a port that nobody listens at a gateway would come back some times, and give up.
        """
        self.draining = True
        followed = time.monotonic() - self._state_polled_at < FOLLOWED_SECONDS
        if followed and not self._released.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._released.wait(), RELEASE_SECONDS)
                await asyncio.sleep(LATE_SECONDS)
        self.closed, began = True, time.monotonic()
        while any(time.monotonic() - began < seconds for seconds in drains()):  # noqa: ASYNC110  # asked once, at the end
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    def refusal(self, root: str) -> Response:
        """The answer to a request below this first step of its path, of which nothing was looked at: the gateway asks the next router."""
        error = Unavailable("this router is about to end and takes nothing new; try again")
        response = openai_error(error) if root in ROOTS else error_response(error)
        headers = {**response.headers, REFUSED_HEADER: str(REPLACED_SECONDS), REGION_HEADER: self._region}
        return Response(response.status, response.body, headers)
