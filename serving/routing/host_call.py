"""One call of a part on a host.

It is sent at once; its answer, or the lack of one, is reported to the load balancer.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Protocol

from ipnext.errors import AnswerTooLarge, DeadlineExceeded, HostLost, InvalidInput, IPnextError, QueryOfDeath
from serving.protocol.frames import Frame
from serving.protocol.response_templates import NotFinite
from serving.routing.host_connection import ConnectionLost, HostConnection, Pieces, SentCall
from serving.routing.load_balancer import HostLoadBalancer
from serving.routing.sync_policy import HostCandidate
from serving.routing.table import GenerationRoute

_ABOUT_NOW_SECONDS: Final = 0.02
"""A call that ends this close to its deadline, or after it, counts as ended by the deadline."""
_BROKEN: Final = frozenset({500, 504})
"""Statuses of a host that fails to answer although another may succeed."""
_OF_OTHERS: Final = {kind.code: kind for kind in (HostLost, QueryOfDeath, AnswerTooLarge)}
"""Errors, by code, of a host that called other hosts."""
_ELSEWHERE: Final = frozenset({409, 503})
"""Statuses of a host that cannot answer now although another may."""


class RetryOnOtherHost(Exception):  # not an error yet: the request is retried
    """A host did not answer, or not for this generation; the whole request may be retried on other hosts."""


class HostEnded(Exception):  # not an error yet: that host may answer once it is back
    """A host ended while it processed the request."""

    def __init__(self, part: str, url: str, *, in_company: bool = False) -> None:
        """`in_company`: other requests were lost with it, so that this one need not be the cause."""
        super().__init__(f"part {part!r}: {url} ended")
        self.part = part
        self.url = url
        self.in_company = in_company


_ANY_HOST: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Suspect:
    """A host that failed a request, and is ejected only if others answer the same request."""

    convict: Callable[[], None]
    acquit: Callable[[], None]


@dataclass(slots=True)
class CallState:
    """State of a request across its attempts. `deadline` is a time of the client's clock."""

    deadline: float = 0.0
    tried: set[str] = field(default_factory=set)
    """URLs of hosts that failed to answer, in this attempt or an earlier one."""
    only: Mapping[str, str] = field(default_factory=lambda: _ANY_HOST)
    """Part -> URL of the only host that may be called: it ended while it processed the request."""
    suspects: list["Suspect"] = field(default_factory=list)
    """Hosts that failed the request in its first attempt."""
    used: dict[str, int] = field(default_factory=dict)
    """Part -> the snapshot used for it in this attempt."""
    sampled: bool = False
    """Whether the host of the last node sketches its answer."""
    chosen_by: str | None = None
    """Region of the gateway that chose the generation; None if no gateway did, so that gates ignore the request."""
    non_finite: bool = False
    """Whether its answer holds NaN or infinity, and the request had none."""

    def convict_suspects(self) -> None:
        """Strike the hosts that failed a request which others have answered."""
        while self.suspects:
            self.suspects.pop().convict()

    def acquit_suspects(self) -> None:
        """Forget the failures of hosts: others failed the same request, too."""
        while self.suspects:
            self.suspects.pop().acquit()


@dataclass(frozen=True, slots=True, eq=False)
class CallTarget:
    """A call and its host.

    A graph call (`walk`) that fails or is slow says little about its host: another part may be the cause.
    """

    route: GenerationRoute
    part: str
    candidate: HostCandidate
    pieces: Pieces
    attempt: CallState
    walk: bool


class HostConnections(Protocol):
    """A client's connections to hosts."""

    def connection(self, url: str) -> HostConnection | None:
        """Return the open connection to a host, if any."""

    async def reach(self, url: str) -> HostConnection:
        """Open a connection to a host that has none. ConnectionLost."""

    def note_lost(self, url: str) -> None:
        """Record that a connection has ended."""


class HostCall:
    """A call, sent on creation if there is a connection. The caller then awaits `response` or calls `give_up`."""

    __slots__ = ("_began", "_clock", "_connections", "_counted", "_loads", "_sent", "_target")

    def __init__(
        self, target: CallTarget, loads: HostLoadBalancer, clock: Callable[[], float], connections: HostConnections
    ) -> None:
        self._target = target
        self._loads = loads
        self._clock = clock
        self._connections = connections
        self._began = clock()
        url = target.candidate.url
        connection = connections.connection(url)
        self._sent: SentCall | None = None if connection is None else self._send(connection)
        self._counted = loads.calling(url)
        self._counted.__enter__()

    async def response(self) -> Frame:
        """Return the host's answer, with its proof checked. RetryOnOtherHost, HostEnded, and the host's own errors."""
        url = self._target.candidate.url
        try:
            answer = await self._receive(url)
        except asyncio.CancelledError:
            self._strike_if_late()
            raise
        except ConnectionLost as error:
            self._target.attempt.tried.add(url)
            if error.ended:
                raise HostEnded(self._target.part, url, in_company=error.in_company) from error
            msg = f"{url} did not answer"
            raise RetryOnOtherHost(msg) from error
        finally:
            self._counted.__exit__(None, None, None)
        self._judge(answer.header)
        return answer

    def give_up(self) -> None:
        """Stop waiting, and cancel the call on the host."""
        self._strike_if_late()
        self._counted.__exit__(None, None, None)
        if self._sent is not None:
            self._sent.give_up()

    async def _receive(self, url: str) -> Frame:
        if self._sent is None:
            self._sent = self._send(await self._connections.reach(url))
        try:
            return await self._sent.response()
        except ConnectionLost:
            self._connections.note_lost(url)
            raise

    def _send(self, connection: HostConnection) -> SentCall:
        target = self._target
        pieces = target.pieces.naming(connection.register_route(target.route)) if target.walk else target.pieces
        return connection.send(pieces)

    def _strike_if_late(self) -> None:
        target = self._target
        if not target.walk and target.attempt.deadline - self._clock() < _ABOUT_NOW_SECONDS:
            self._loads.note_strike(target.candidate.url, tiers=self._tiers, given=self._clock() - self._began)

    @property
    def _tiers(self) -> Any:
        return self._target.route.candidates[self._target.part]

    def _judge(self, header: Mapping[str, Any]) -> None:
        target, status = self._target, header["status"]
        url, tried = target.candidate.url, target.attempt.tried
        if status == 200:
            self._loads.note_answer(url, self._clock() - self._began, tiers=self._tiers)
            _check_proof(target.part, target.candidate, header, tried)
            return
        if status in _BROKEN and not target.walk:
            self._blame(header)
        raise classify_refusal(target.part, url, header, tried)

    def _blame(self, header: Mapping[str, Any]) -> None:
        """Record a strike, except for failures that the request may cause.

        A request that fails on every host must eject none. RetryOnOtherHost before a host is ejected for a failure: the
        answer of another host to the same request decides.
        """
        target, attempt = self._target, self._target.attempt
        url = target.candidate.url
        if header["status"] == 504:
            self._loads.note_strike(url, tiers=self._tiers, given=self._clock() - self._began)
            return
        if attempt.suspects:
            attempt.acquit_suspects()
        elif header.get("finite") is not False and not self._loads.would_eject(url, tiers=self._tiers):
            self._loads.note_strike(url, tiers=self._tiers)
        elif header.get("finite") is not False and not attempt.tried:
            convict = partial(self._loads.note_strike, url, tiers=self._tiers)
            attempt.suspects.append(Suspect(convict, partial(self._loads.acquit, url)))
            attempt.tried.add(url)
            msg = f"part {target.part!r}: {header.get('error')}"
            raise RetryOnOtherHost(msg)


def classify_refusal(part: str, url: str, answer: Mapping[str, Any], tried: set[str]) -> Exception:
    """Return the error that a host's refusal means for the request."""
    status, message = answer["status"], f"part {part!r}: {answer.get('error')}"
    if answer.get("code") in _OF_OTHERS:
        return _OF_OTHERS[answer["code"]](message)
    if status in _ELSEWHERE:
        tried.add(url)
        return RetryOnOtherHost(message)
    if status == 504:
        return DeadlineExceeded(message)
    if 400 <= status < 500:
        return InvalidInput(message)
    return NotFinite(message) if answer.get("finite") is False else IPnextError(message)


def _check_proof(part: str, candidate: HostCandidate, answer: Mapping[str, Any], tried: set[str]) -> None:
    """Check that the host used the chosen snapshot.

    Otherwise the answer would mix snapshots that the policy does not allow.
    """
    if answer.get("snapshot") != candidate.snapshot:
        tried.add(candidate.url)
        msg = f"{candidate.url} answered with {part}={answer.get('snapshot')}, needed is {part}={candidate.snapshot}"
        raise RetryOnOtherHost(msg)
