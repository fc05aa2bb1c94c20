"""How a router asks hosts: one attempt of one request, all of it on one generation."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from ipnext.errors import DeadlineExceeded, InvalidInput, IPnextError
from ipnext.model.registry import Signature
from serving.balancing import EndpointLoads
from serving.frames import Frame, bytes_frame, tensor_frame
from serving.graph import Tensors
from serving.host_connection import ConnectionLost, HostConnection, Pieces, connect
from serving.protocol import Body
from serving.router_table import GenerationRoute

_HUNG_SECONDS: Final = 1.0
"""A host that a request waited for so long in vain, up to its deadline, is passed over for a moment."""
_SIGNATURE_SECONDS: Final = 5.0
_ELSEWHERE: Final = frozenset({409, 503})
"""Statuses of a host that cannot answer now while another may."""


class TryElsewhere(Exception):  # not an error yet: the request is tried again
    """A host did not answer, or not for this generation; the whole request may be tried again on other hosts."""


class HostClient:
    """Calls parts on hosts. Keeps one connection to each."""

    def __init__(self, loads: EndpointLoads, clock: Callable[[], float]) -> None:
        self._loads = loads
        self._clock = clock
        self._connections: dict[str, HostConnection] = {}
        self._connecting: dict[str, asyncio.Task[HostConnection]] = {}

    async def infer(
        self, route: GenerationRoute, part: str, inputs: Tensors, *, deadline: float, tried: set[str]
    ) -> Tensors:
        """A part's outputs from one host of the generation, with the proof checked. `deadline` is a time of the clock.

        TryElsewhere where a host fails to answer for the generation; its url is then in `tried`. InvalidInput,
        DeadlineExceeded or IPnextError as the host judged.
        """
        header = self._header("infer", route, part, deadline)
        return (await self._asked(route, part, Pieces(tensor_frame, header, inputs), tried)).tensors()

    async def relay(
        self,
        route: GenerationRoute,
        part: str,
        body: tuple[Body, int | None],
        *,
        deadline: float,
        tried: set[str],
    ) -> Frame:
        """The answer to the V2 body of a request, as the host wrote it; errors as `infer`.

        `body` is its bytes and the length of its JSON header, if binary data follows. The frame's header has the
        answer's `header_length` and whether all its numbers are `finite`.
        """
        content, header_length = body
        header = self._header("v2", route, part, deadline)
        header |= {"header_length": header_length, "outputs": list(route.plan.outputs)}
        return await self._asked(route, part, Pieces(bytes_frame, header, content), tried)

    async def walk(
        self,
        route: GenerationRoute,
        body: tuple[Body, int | None],
        *,
        deadline: float,
        tried: set[str],
    ) -> Frame:
        """The answer to the V2 body of a request, whose graph a host of the route's `walker` walks; as `relay`."""
        content, header_length = body
        part = str(route.walker)
        header = self._header("walk", route, part, deadline) | {"header_length": header_length}
        url = self._loads.choose(route.endpoints[part], tried=tried)
        with self._loads.calling(url):
            answer = await self._send(url, Pieces(bytes_frame, header, content), tried, route)
        if answer.header["status"] != 200:
            raise _judged(part, url, answer.header, tried)
        if answer.header["snapshots"] != route.snapshots:
            tried.add(url)
            msg = f"{url} answered with {answer.header['snapshots']}, generation {route.generation} needs {route.snapshots}"
            raise TryElsewhere(msg)
        return answer

    async def signature(self, route: GenerationRoute, part: str) -> Signature:
        """The tensors that a part takes and gives, as one of its hosts says. TryElsewhere, IPnextError."""
        tried: set[str] = set()
        url = self._loads.choose(route.endpoints[part], tried=tried)
        header = self._header("signature", route, part, self._clock() + _SIGNATURE_SECONDS)
        try:
            async with asyncio.timeout(_SIGNATURE_SECONDS):
                answer = await self._send(url, Pieces(bytes_frame, header, b""), tried)
        except TimeoutError as error:
            msg = f"{url} did not answer in {_SIGNATURE_SECONDS:g} s"
            raise TryElsewhere(msg) from error
        if answer.header["status"] != 200:
            raise _judged(part, url, answer.header, tried)
        return Signature.model_validate(answer.header["signature"])

    def close(self) -> None:
        """End all connections."""
        for connection in self._connections.values():
            connection.close()

    def forget(self, urls: frozenset[str]) -> None:
        """End the connections to hosts that are not among `urls`, once nothing is under way on them."""
        for url in tuple(self._connections):
            if url not in urls and not self._loads.busy(url):
                self._connections.pop(url).close()

    def _header(self, op: str, route: GenerationRoute, part: str, deadline: float) -> dict[str, Any]:
        left = max(1, int((deadline - self._clock()) * 1000))
        return {"op": op, "model": route.model, "part": part, "generation": route.generation, "deadline_ms": left}

    async def _asked(self, route: GenerationRoute, part: str, pieces: Pieces, tried: set[str]) -> Frame:
        url = self._loads.choose(route.endpoints[part], tried=tried)
        with self._loads.calling(url):
            answer = await self._send(url, pieces, tried)
        if answer.header["status"] != 200:
            raise _judged(part, url, answer.header, tried)
        _check_proof(route, part, url, answer.header, tried)
        return answer

    async def _send(self, url: str, pieces: Pieces, tried: set[str], route: GenerationRoute | None = None) -> Frame:
        began = self._clock()
        try:
            connection = self._connections.get(url)
            if connection is None or not connection.open:
                connection = await self._connected(url)
            if route is not None:
                pieces = pieces.naming(connection.told(route))
            return await connection.call(pieces)
        except asyncio.CancelledError:
            if self._clock() - began > _HUNG_SECONDS:
                self._loads.note_failure(url)
            raise
        except ConnectionLost as error:
            self._loads.note_failure(url)
            tried.add(url)
            msg = f"{url} did not answer"
            raise TryElsewhere(msg) from error

    async def _connected(self, url: str) -> HostConnection:
        """One attempt to connect serves all who wait for it; who leaves meanwhile does not end it for the others."""
        attempt = self._connecting.get(url)
        if attempt is None:
            attempt = asyncio.create_task(connect(url))
            self._connecting[url] = attempt
            attempt.add_done_callback(lambda done: self._note_connected(url, done))
        return await asyncio.shield(attempt)

    def _note_connected(self, url: str, done: asyncio.Task[HostConnection]) -> None:
        del self._connecting[url]
        if not done.cancelled() and done.exception() is None:
            self._connections[url] = done.result()


def _judged(part: str, url: str, answer: Mapping[str, Any], tried: set[str]) -> Exception:
    """What a host's refusal means for the request."""
    status, message = answer["status"], f"part {part!r}: {answer.get('error')}"
    if status in _ELSEWHERE:
        tried.add(url)
        return TryElsewhere(message)
    if status == 504:
        return DeadlineExceeded(message)
    return InvalidInput(message) if 400 <= status < 500 else IPnextError(message)


def _check_proof(route: GenerationRoute, part: str, url: str, answer: Mapping[str, Any], tried: set[str]) -> None:
    """The host must have used the snapshot that the generation names, or the answer would be a mixed one."""
    expected = route.snapshots.get(part)
    if answer.get("snapshot") != expected:
        tried.add(url)
        msg = f"{url} answered with {part}={answer.get('snapshot')}, generation {route.generation} needs {part}={expected}"
        raise TryElsewhere(msg)
