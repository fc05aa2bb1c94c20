"""Requests that another region answers.

Sent to its gateway through this region's, their answers streamed to the client. A router has no certificates for other
machines. Its gateway has, and takes such requests on a Unix socket.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Final

from ipnext.components.caller_proof import proof_file, read_proof
from ipnext.components.identity import Component
from ipnext.components.sockets import is_socket_url, socket_path
from ipnext.errors import DeadlineExceeded, Unavailable
from ipnext.names import (
    FORWARDED_HEADER,
    INNER_HEADERS,
    PROOF_HEADER,
    UPSTREAM_HEADER,
    upstream_name,
)
from serving.http.limits import AnswerBudget
from serving.http.messages import Answer, Request, Response, StreamedAnswer, seconds_left
from serving.openai.answer_headers import from_region
from serving.openai.engines.connection import EngineConnectionPool
from serving.openai.engines.load_balancer import EngineLoads
from serving.openai.engines.response import EngineAnswer, EngineLost
from serving.openai.weighted_choice import ForwardedRequest
from serving.routing.table import TableFollower

CONNECTION_HEADERS: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "transfer-encoding", "te", "trailer", "upgrade"),
        *("content-length", "expect"),
    }
)
"""Headers of one connection, which the next one has of its own."""
_NOT_SENT: Final = CONNECTION_HEADERS | (frozenset(INNER_HEADERS) - {FORWARDED_HEADER})


class Egress:
    """Sends requests to other regions.

    They count as in flight for the limit of the model, and for no gate: the other region counts them.
    """

    def __init__(
        self,
        follower: TableFollower,
        loads: EngineLoads,
        *,
        admitted: Callable[[str], AbstractContextManager[Any]],
        answers: AnswerBudget,
        silent_seconds: float,
    ) -> None:
        """`admitted` counts a request of a model; Full. `loads` has the requests that a router finishes before it ends.

        `answers` limits the bytes of answers that the router keeps, those of engines included.
        """
        self._follower = follower
        self._loads = loads
        self._admitted = admitted
        self._answers = answers
        self._silent_seconds = silent_seconds
        self._pool: tuple[str, EngineConnectionPool] | None = None

    async def answer(self, forwarded: ForwardedRequest, path: str) -> Answer:
        """Return the other region's answer once it has begun.

        Raises:
            Full: the model has too many requests in flight.
            Unavailable: there is no gateway to send it through, or it gives no answer.
            DeadlineExceeded: no answer has begun within the deadline.
        """
        url = self._follower.routes.egress
        if not url:
            msg = (
                f"region {forwarded.region} answers for model {forwarded.model}, "
                "and this region's gateway does not send requests there; try again"
            )
            raise Unavailable(msg)
        with ExitStack() as held:
            held.enter_context(self._admitted(forwarded.model))
            held.enter_context(self._loads.calling(url))
            answer = await self._begin(url, forwarded, path)
            ended = held.pop_all()
        headers = from_region(answer.headers)
        whole = answer.take_complete()
        if whole is not None:
            ended.close()
            headers.pop("content-length", None)
            return Response(answer.status, whole, headers)
        answer.on_end = lambda _: ended.close()
        answer.watch(self._silent_seconds)
        return StreamedAnswer(answer.status, headers, answer)

    def close(self) -> None:
        """Close the idle connections, and the others after their answers."""
        if self._pool is not None:
            self._pool[1].left = True
            self._pool[1].close()

    async def _begin(self, url: str, forwarded: ForwardedRequest, path: str) -> EngineAnswer:
        request = forwarded.request
        seconds = seconds_left(request, default=self._silent_seconds)
        headers = sent_headers(url, forwarded.region, request)
        try:
            async with asyncio.timeout(seconds):
                return await self._pool_of(url).ask("POST", path, headers, request.content)
        except EngineLost as error:
            msg = f"this region's gateway gives no answer of region {forwarded.region} ({error}); try again"
            raise Unavailable(msg) from error
        except TimeoutError as error:
            msg = f"no answer of region {forwarded.region} has begun within the deadline of {seconds * 1000:.0f} ms"
            raise DeadlineExceeded(msg) from error

    def _pool_of(self, url: str) -> EngineConnectionPool:
        if self._pool is None or self._pool[0] != url:
            self.close()
            self._pool = url, EngineConnectionPool(url, self._answers)
        return self._pool[1]


def sent_headers(url: str, region: str, request: Request) -> Mapping[str, str]:
    """Return the headers for the gateway at `url`: the client's, with its credential, and what was chosen."""
    headers = {name: value for name, value in request.headers.items() if name not in _NOT_SENT}
    proof = read_proof(proof_file(Path(socket_path(url, Component.ROUTER)))) if is_socket_url(url) else None
    return {**headers, UPSTREAM_HEADER: upstream_name(region), PROOF_HEADER: proof or ""}
