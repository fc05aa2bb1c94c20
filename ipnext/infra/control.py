"""Control calls to hosts, router and Envoy's admin endpoint. All raise Unavailable if there is no good answer."""

from typing import Final, TypeVar

from pydantic import ValidationError

from ipnext.components.http_sessions import HttpSessions
from ipnext.components.identity import Component
from ipnext.components.sockets import caller_url
from ipnext.errors import Unavailable
from ipnext.model.access.predictions import KeyUseReport
from ipnext.model.deployment.host_control import HostHolds, HostState
from ipnext.model.deployment.router_table import RouterState
from ipnext.model.wire import decode
from ipnext.names import GENERATION_HEADER

State = TypeVar("State", HostState, RouterState, KeyUseReport)

HOST_BYTES: Final = 4 * 2**20
"""The most that is read of a host's answer: the states of some thousand snapshots."""
ROUTER_BYTES: Final = 64 * 2**20
"""The same of a router's, which has counts of all generations of the region, and of Envoy's."""


class Control:
    """Short calls of an agent within one machine, each with the same time limit, and a limit of its answer's bytes."""

    def __init__(self, session: HttpSessions, *, probe_seconds: float) -> None:
        self._session = session
        self._seconds = probe_seconds

    async def host_state(self, url: str) -> HostState:
        """Return the state of a host: its snapshots and requests."""
        return _decode_state(HostState, await self._call_host("GET", f"{_at(url)}/control/state"))

    async def load_ended(self, url: str, revision: int) -> None:
        """Return once a load of the host has ended since this revision of its state; after a second in any case."""
        await self._call_host("GET", f"{_at(url)}/control/state/after/{revision}")

    async def router_state(self, url: str) -> RouterState:
        """Return the table revision that a router has applied, and its counters."""
        return _decode_state(RouterState, await self.call("GET", f"{_at(url)}/control/state"))

    async def key_uses(self, url: str) -> KeyUseReport:
        """Return when a router last saw each API key."""
        return _decode_state(KeyUseReport, await self.call("GET", f"{_at(url)}/control/key-uses"))

    async def put_access(self, url: str, content: str) -> None:
        """Send a router an AccessList as JSON."""
        await self.call("PUT", f"{_at(url)}/control/access", content)

    async def withdraw_access(self, url: str, content: str) -> None:
        """Send a router an AccessWithdrawal as JSON."""
        await self.call("PUT", f"{_at(url)}/control/access/withdrawal", content)

    async def put_holds(self, url: str, holds: HostHolds) -> None:
        """Send a host its desired snapshots."""
        await self._call_host("PUT", f"{_at(url)}/control/holds", holds.model_dump_json())

    async def infer(self, url: str, model: str, part: str, generation: int, body: str, *, seconds: float) -> None:
        """Send a host one prediction as V2 JSON, and discard its answer. Unavailable if that is no good one."""
        headers = {GENERATION_HEADER: str(generation)}
        path = f"{_at(url)}/parts/{model}/{part}/infer"
        answer = await self._session.call(
            "POST", path, content=body, headers=headers, most_bytes=HOST_BYTES, seconds=seconds
        )
        if answer.status >= 400:
            msg = f"the host answered {answer.status}: {answer.content[:300].decode(errors='replace')}"
            raise Unavailable(msg)

    async def drain(self, url: str) -> None:
        """Have a host or a router accept no new requests."""
        await self.call("POST", f"{_at(url)}/control/drain")

    async def _call_host(self, method: str, url: str, body: str | None = None) -> bytes:
        return await self.call(method, url, body, most_bytes=HOST_BYTES)

    async def call(self, method: str, url: str, body: str | None = None, *, most_bytes: int = ROUTER_BYTES) -> bytes:
        """Make one call; return the body of a good answer. AnswerRefused if it has more than `most_bytes`."""
        answer = await self._session.call(method, url, content=body, most_bytes=most_bytes, seconds=self._seconds)
        if answer.status >= 400:
            msg = f"{method} {url} answered {answer.status}: {answer.content[:500].decode(errors='replace')}"
            raise Unavailable(msg)
        return answer.content


def _at(url: str) -> str:
    return caller_url(url, Component.AGENT)


def _decode_state(kind: type[State], content: bytes) -> State:
    try:
        return decode(kind, content)
    except ValidationError as error:
        msg = f"not a {kind.__name__}: {error}"
        raise Unavailable(msg) from error
