"""Control calls to hosts, router and Envoy's admin endpoint. All raise Unavailable if there is no good answer."""

from typing import TypeVar

import aiohttp
from pydantic import ValidationError

from ipnext.components.http_sessions import HttpSessions
from ipnext.components.identity import Component
from ipnext.components.sockets import caller_url
from ipnext.errors import Unavailable
from ipnext.model.deployment import HostHolds, HostState, RouterState
from ipnext.model.predictions import KeyUseReport
from ipnext.model.wire import decode

State = TypeVar("State", HostState, RouterState, KeyUseReport)


class Control:
    """Short calls of an agent within one machine, each with the same time limit."""

    def __init__(self, session: HttpSessions, *, probe_seconds: float) -> None:
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=probe_seconds)

    async def host_state(self, url: str) -> HostState:
        """Return the state of a host: its snapshots and requests."""
        return _parsed(HostState, await self.call("GET", f"{_at(url)}/control/state"))

    async def load_ended(self, url: str, revision: int) -> None:
        """Return once a load of the host has ended since this revision of its state; after a second in any case."""
        await self.call("GET", f"{_at(url)}/control/state/after/{revision}")

    async def router_state(self, url: str) -> RouterState:
        """Return the table revision that a router has applied, and its counters."""
        return _parsed(RouterState, await self.call("GET", f"{_at(url)}/control/state"))

    async def key_uses(self, url: str) -> KeyUseReport:
        """Return when a router last saw each API key."""
        return _parsed(KeyUseReport, await self.call("GET", f"{_at(url)}/control/key-uses"))

    async def put_access(self, url: str, content: str) -> None:
        """Send a router an AccessList as JSON."""
        await self.call("PUT", f"{_at(url)}/control/access", content)

    async def withdraw_access(self, url: str, content: str) -> None:
        """Send a router an AccessWithdrawal as JSON."""
        await self.call("PUT", f"{_at(url)}/control/access/withdrawal", content)

    async def put_holds(self, url: str, holds: HostHolds) -> None:
        """Send a host its desired snapshots."""
        await self.call("PUT", f"{_at(url)}/control/holds", holds.model_dump_json())

    async def drain(self, url: str) -> None:
        """Have a host or a router accept no new requests."""
        await self.call("POST", f"{_at(url)}/control/drain")

    async def call(self, method: str, url: str, body: str | None = None) -> bytes:
        """Make one call; return the body of a good answer."""
        headers = {"content-type": "application/json"} if body else None
        try:
            async with self._session.request(method, url, data=body, headers=headers, timeout=self._timeout) as answer:
                content = await answer.read()
                if answer.status >= 400:
                    msg = f"{method} {url} answered {answer.status}: {content[:500].decode(errors='replace')}"
                    raise Unavailable(msg)
                return content
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            msg = f"no answer to {method} {url}: {error!r}"
            raise Unavailable(msg) from error


def _at(url: str) -> str:
    return caller_url(url, Component.AGENT)


def _parsed(kind: type[State], content: bytes) -> State:
    try:
        return decode(kind, content)
    except ValidationError as error:
        msg = f"not a {kind.__name__}: {error}"
        raise Unavailable(msg) from error
