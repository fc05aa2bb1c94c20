"""The router's client of hosts: one attempt of one request, every part from a snapshot that its generation allows."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from ipnext.components.client_contexts import ClientContexts
from ipnext.model.registry.registry import Signature
from ipnext.model.wire import decode_plain
from serving.graph import Tensors
from serving.http.limits import AnswerBudget
from serving.protocol.frames import Frame, bytes_frame, tensor_frame
from serving.protocol.v2 import Body
from serving.routing.host_call import CallState, CallTarget, HostCall, RetryOnOtherHost, classify_refusal
from serving.routing.host_connection import ConnectionLost, HostConnection, Pieces, Reach, connect
from serving.routing.load_balancer import HostLoadBalancer
from serving.routing.sync_policy import CandidateTiers, HostCandidate, of_snapshot
from serving.routing.table import GenerationRoute

_SIGNATURE_SECONDS: Final = 5.0
_RENEWAL_PAUSE_SECONDS: Final = 1.0
"""Time between two attempts to replace a connection, so that calls do not cost a TLS handshake each meanwhile."""


class HostClient:
    """Calls parts on hosts. Keeps one connection to each, and reconnects to lost ones."""

    def __init__(
        self,
        loads: HostLoadBalancer,
        clock: Callable[[], float],
        *,
        reach: Reach | None = None,
        answers: AnswerBudget | None = None,
        mirrors: bool = False,
        contexts: ClientContexts | None = None,
    ) -> None:
        """`reach` connects to Unix sockets; if None, this process does. `answers` bounds the answers of all hosts.

        `contexts` has the certificate for hosts at https://; connections made with a former one are replaced.

        `mirrors`: its requests are mirrored ones, which hosts that execute their graph keep apart from those of
        clients.
        """
        self._mirrors = mirrors
        self._reach = reach
        self._answers = answers or AnswerBudget()
        self._contexts = contexts
        self._loads = loads
        self._clock = clock
        self._connections: dict[str, HostConnection] = {}
        self._connecting: dict[str, asyncio.Task[HostConnection]] = {}
        self._seeking: dict[str, asyncio.Task[None]] = {}
        self._renewing: dict[str, asyncio.Task[None]] = {}
        self._known: frozenset[str] | None = None
        self._closed = False

    async def infer(self, route: GenerationRoute, part: str, inputs: Tensors, attempt: CallState) -> Tensors:
        """Return a part's outputs from one host of the generation, with the proof checked and recorded in `attempt`.

        RetryOnOtherHost if a host fails to answer for the generation; `attempt.tried` then contains its URL.
        InvalidInput, DeadlineExceeded or IPnextError as reported by the host.
        """
        return (await self.begin(route, part, inputs, attempt).response()).tensors()

    def begin(self, route: GenerationRoute, part: str, inputs: Tensors, attempt: CallState) -> HostCall:
        """Begin a call; otherwise as `infer`. If there is a connection, the call is sent before this returns."""
        candidate = self._choose_host(route, part, attempt)
        header = self._header("infer", route.model, part, candidate.generation, attempt.deadline)
        return self._call(route, part, candidate, Pieces(tensor_frame, header, inputs), attempt)

    async def relay(
        self, route: GenerationRoute, part: str, body: tuple[Body, int | None], attempt: CallState
    ) -> Frame:
        """Return the host's answer to the V2 body of a request, unchanged; errors as `infer`.

        `body` is its bytes and the length of its JSON header, if binary data follows. The frame's header has the
        answer's `header_length`, whether all its numbers are `finite`, and, if the answer was sampled, its `sketches`.
        """
        content, header_length = body
        candidate = self._choose_host(route, part, attempt)
        header = self._header("v2", route.model, part, candidate.generation, attempt.deadline)
        header |= {"chosen": route.generation, "header_length": header_length, "outputs": list(route.plan.outputs)}
        header["sketch"] = attempt.sampled
        answer = await self._call(route, part, candidate, Pieces(bytes_frame, header, content), attempt).response()
        _check_length(answer, candidate, attempt)
        return answer

    async def walk(self, route: GenerationRoute, body: tuple[Body, int | None], attempt: CallState) -> Frame:
        """Let a host of the route's `executing_part` execute the graph of a V2 request, and return its answer.

        See `relay`.
        """
        content, header_length = body
        part = str(route.executing_part)
        candidate = self._loads.choose(self._allowed_candidates(route, part, attempt), tried=attempt.tried)
        header = self._header("walk", route.model, part, candidate.generation, attempt.deadline)
        header |= {"header_length": header_length, "sketch": attempt.sampled, "mirrored": self._mirrors}
        pieces = Pieces(bytes_frame, header, content)
        answer = await self._call(route, part, candidate, pieces, attempt, walk=True).response()
        proved = answer.header["snapshots"]
        if not route.is_proved(proved):
            attempt.tried.add(candidate.url)
            msg = f"{candidate.url} answered with {proved}, needed is {dict(route.snapshots)}"
            raise RetryOnOtherHost(msg)
        attempt.used.update(proved)
        _check_length(answer, candidate, attempt)
        return answer

    async def signature(self, route: GenerationRoute, part: str) -> Signature:
        """Return the input and output tensors of a part, as reported by one of its hosts.

        RetryOnOtherHost, IPnextError.
        """
        candidate = self._loads.choose(route.candidates[part])
        url = candidate.url
        deadline = self._clock() + _SIGNATURE_SECONDS
        header = self._header("signature", route.model, part, candidate.generation, deadline)
        try:
            async with asyncio.timeout(_SIGNATURE_SECONDS):
                connection = self.connection(url) or await self.reach(url)
                answer = await connection.call(Pieces(bytes_frame, header, b""))
        except (TimeoutError, ConnectionLost) as error:
            msg = f"{url} did not answer"
            raise RetryOnOtherHost(msg) from error
        if answer.header["status"] != 200:
            raise classify_refusal(part, url, answer.header, set())
        return decode_plain(Signature, answer.header["signature"])

    def close(self) -> None:
        """Close all connections, those that are being made as soon as they are; no further one is made."""
        self._closed = True
        for task in (*self._seeking.values(), *self._renewing.values()):
            task.cancel()
        for connection in self._connections.values():
            connection.close()

    def forget(self, urls: frozenset[str]) -> None:
        """Close the connections to hosts that are not among `urls`, unless calls are in flight on them."""
        self._known = urls
        for url in tuple(self._connections):
            if url not in urls and not self._loads.busy(url):
                self._connections.pop(url).close()
        self._loads.forget(urls)

    def _header(self, op: str, model: str, part: str, generation: int, deadline: float) -> dict[str, Any]:
        left = max(1, int((deadline - self._clock()) * 1000))
        return {"op": op, "model": model, "part": part, "generation": generation, "deadline_ms": left}

    def _choose_host(self, route: GenerationRoute, part: str, attempt: CallState) -> HostCandidate:
        """Choose a host. A part that the graph calls twice uses one snapshot for both calls."""
        tiers = self._allowed_candidates(route, part, attempt) if attempt.only else route.candidates[part]
        snapshot = attempt.used.get(part)
        if snapshot is not None:
            tiers = of_snapshot(tiers, snapshot)
        candidate = self._loads.choose(tiers, tried=attempt.tried)
        attempt.used[part] = candidate.snapshot
        return candidate

    def _allowed_candidates(self, route: GenerationRoute, part: str, attempt: CallState) -> CandidateTiers:
        """Return the candidates of a part; only one host's if no other may be called.

        RetryOnOtherHost if that one is not ready.
        """
        tiers = route.candidates[part]
        if part not in attempt.only:
            return tiers
        url = attempt.only[part]
        tiers = tuple(tuple(candidate for candidate in tier if candidate.url == url) for tier in tiers)
        if not any(tiers):
            msg = f"{url} is not ready"
            raise RetryOnOtherHost(msg)
        return tiers

    def _call(
        self,
        route: GenerationRoute,
        part: str,
        candidate: HostCandidate,
        pieces: Pieces,
        attempt: CallState,
        *,
        walk: bool = False,
    ) -> HostCall:
        return HostCall(CallTarget(route, part, candidate, pieces, attempt, walk), self._loads, self._clock, self)

    def connection(self, url: str) -> HostConnection | None:
        """Return the open connection to a host; None if there is none."""
        connection = self._connections.get(url)
        if connection is None or not connection.open:
            return None
        if connection.context is not None and self._contexts is not None:
            self._renew(url, is_due=connection.context is not self._contexts.current())
        return connection

    def _renew(self, url: str, *, is_due: bool) -> None:
        if is_due and url not in self._renewing and not self._closed:
            self._renewing[url] = asyncio.create_task(self._replace(url), name=f"renew the connection to {url}")
            self._renewing[url].add_done_callback(lambda _: self._renewing.pop(url))

    async def _replace(self, url: str) -> None:
        """Connect with the new certificate. The former connection ends with its last answer."""
        try:
            made = await self._connect(url)
        except ConnectionLost:  # the former one serves on, and a call after the pause tries again
            await asyncio.sleep(_RENEWAL_PAUSE_SECONDS)
            return
        if self._closed or url not in self._connections:
            made.close()
        else:
            self._keep(url, made)

    def _keep(self, url: str, made: HostConnection) -> None:
        """Use a connection for all further calls. The former one, if any, ends with its last answer."""
        former = self._connections.get(url)
        self._connections[url] = made
        if former is not None:
            former.retire()

    async def _connect(self, url: str) -> HostConnection:
        return await connect(url, reach=self._reach, answers=self._answers, contexts=self._contexts)

    async def reach(self, url: str) -> HostConnection:
        """Return the open connection to a host, or connect. ConnectionLost.

        Concurrent callers share one attempt; if one of them is cancelled, the attempt goes on for the others.
        """
        if self._closed:
            raise ConnectionLost
        if (connection := self.connection(url)) is not None:
            self._loads.note_found(url)  # a call may report the loss of a former connection late
            return connection
        attempt = self._connecting.get(url)
        if attempt is None:
            attempt = asyncio.create_task(self._connect(url))
            self._connecting[url] = attempt
            attempt.add_done_callback(lambda done: self._note_connected(url, done))
        return await asyncio.shield(attempt)

    def _note_connected(self, url: str, done: asyncio.Task[HostConnection]) -> None:
        del self._connecting[url]
        if done.cancelled():
            return
        if self._closed:
            if done.exception() is None:
                done.result().close()
            return
        if done.exception() is None:
            self._keep(url, done.result())
            self._loads.note_found(url)
        else:
            self.note_lost(url)

    def note_lost(self, url: str) -> None:
        """Record that a connection ended or failed, and start reconnecting."""
        self._loads.note_lost(url)
        if url not in self._seeking and not self._closed:
            self._seeking[url] = asyncio.create_task(self._seek(url))
            self._seeking[url].add_done_callback(lambda _: self._seeking.pop(url))

    async def _seek(self, url: str) -> None:
        """Reconnect to a lost host until it is back, so that no request has to try it."""
        while (seconds := self._loads.seconds_until_sought(url)) is not None:
            await asyncio.sleep(seconds)
            if self._known is not None and url not in self._known:
                self._loads.forget(self._known)
                return
            with suppress(ConnectionLost):
                await self.reach(url)


def _check_length(answer: Frame, candidate: HostCandidate, attempt: CallState) -> None:
    """Raise RetryOnOtherHost unless the answer's `header_length` is the length of its JSON.

    It becomes a header for the client.
    """
    length = answer.header["header_length"]
    if length is not None and (type(length) is not int or not 0 < length <= answer.body.size):
        attempt.tried.add(candidate.url)
        msg = (
            f"{candidate.url}: header_length of its answer is {str(length)[:40]!r}, "
            f"must be null or from 1 to the answer's {answer.body.size} bytes"
        )
        raise RetryOnOtherHost(msg)
