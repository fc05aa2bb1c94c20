"""How a router ends: what comes is handed on to the next one, what is under way is finished."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final

from ipnext.errors import Unavailable
from ipnext.names import REFUSED_HEADER, REGION_HEADER
from serving.http import Response, error_response
from serving.openai.edge import ROOTS
from serving.openai.errors import openai_error

DRAIN_POLL_SECONDS: Final = 0.02
HANDOVER_SECONDS: Final = 10.0
"""An agent that follows this router has started the next one by then, or will not."""
LATE_SECONDS: Final = 0.3
"""From being let go on, for what a gateway sent just before it pointed to the next one."""
REPLACED_SECONDS: Final = 1
"""Where no agent follows, the next router is there by then, as a rule; a gateway tries some times more."""
AT_ONCE: Final = "now"


class Handover:
    """Begins with the signal to end, or with the agent's word that nothing is sent here any more."""

    def __init__(self, *, region: str, followed: Callable[[], bool]) -> None:
        """`followed`: whether an agent asks for the router's state."""
        self.draining = False
        """Whether it has begun: nothing new is taken."""
        self._region = region
        self._followed = followed
        self._let_go: asyncio.Event | None = None
        """Set once requests go to the next one. None where no agent says so."""

    def let_go(self) -> None:
        """The agent says that nothing is sent here any more."""
        self.draining = True
        if self._let_go is not None:
            self._let_go.set()

    def hand_on(self, root: str) -> Response | Awaitable[Response]:
        """The answer to a request below this first step of its path, of which nothing was looked at: the gateway asks the next router."""
        return self._refused(root, str(REPLACED_SECONDS)) if self._let_go is None else self._held(root, self._let_go)

    async def finished(self, drains: Callable[[], Iterable[float]]) -> None:
        """Take nothing new. Returns once nothing is under way, or every model with requests under way has had its drain.

        `drains`: for how many seconds those of each such model may go on.

        An agent that follows this router is waited for first: it says when requests go to the next one. What comes until then is held,
        and goes there at once; to a port that nobody listens at a gateway would come back some times, and give up.
        """
        told, self.draining, began = self.draining, True, time.monotonic()
        if self._followed() and not told:
            self._let_go = asyncio.Event()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._let_go.wait(), HANDOVER_SECONDS)
                await asyncio.sleep(LATE_SECONDS)
            self._let_go.set()
        while any(time.monotonic() - began < seconds for seconds in drains()):  # noqa: ASYNC110  # asked once, at the end
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    async def _held(self, root: str, let_go: asyncio.Event) -> Response:
        await let_go.wait()
        return self._refused(root, AT_ONCE)

    def _refused(self, root: str, when: str) -> Response:
        error = Unavailable("this router is about to end and takes nothing new; try again")
        response = openai_error(error) if root in ROOTS else error_response(error)
        headers = {**response.headers, REFUSED_HEADER: when, REGION_HEADER: self._region}
        return Response(response.status, response.body, headers)
