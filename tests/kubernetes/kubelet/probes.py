"""Probes and hooks: HTTP requests, connections and commands that tell how a container is."""

import asyncio
import contextlib
import functools
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx2

from tests.connections import close_handshakes
from tests.kubernetes.kubelet.processes.container import Container
from tests.kubernetes.server.errors import Json

Teller = Callable[[str | None], Awaitable[None] | None]
"""Gets an outcome: None, or an error."""


@dataclass(frozen=True)
class Surroundings:
    """Where a container runs, as its probes and hooks see it."""

    address: str
    container: Json
    run: Container

    def port(self, value: int | str) -> int:
        """Return a port that may be named."""
        if isinstance(value, int):
            return value
        named = {each.get("name"): each["containerPort"] for each in self.container.get("ports") or ()}
        return int(named.get(value, value))


async def handled(handler: Json, at: Surroundings, seconds: float) -> str | None:
    """Carry a probe or a hook out. Return why it failed, None if it did not."""
    with contextlib.suppress(TimeoutError):
        return await asyncio.wait_for(_outcome(handler, at), seconds)
    return f"no answer within {seconds:g} s"


async def _outcome(handler: Json, at: Surroundings) -> str | None:
    if "httpGet" in handler:
        return await _get(handler["httpGet"], at)
    if "tcpSocket" in handler:
        return await _connect(handler["tcpSocket"], at)
    if "exec" in handler:
        return await _execute(handler["exec"]["command"], at)
    if "sleep" in handler:
        await asyncio.sleep(handler["sleep"]["seconds"])
        return None
    return "the node double has no such handler"


async def _get(handler: Json, at: Surroundings) -> str | None:
    scheme = handler.get("scheme", "HTTP").lower()
    place = f"{handler.get('host') or at.address}:{at.port(handler['port'])}"
    url = f"{scheme}://{place}/{handler.get('path', '').lstrip('/')}"
    headers = {each["name"]: each["value"] for each in handler.get("httpHeaders") or ()}
    try:
        async with close_handshakes(httpx2.AsyncClient(trust_env=False, verify=_trusting(), timeout=None)) as client:
            answer = await client.get(url, headers=headers)
    except httpx2.HTTPError as error:
        return str(error) or type(error).__name__
    return None if 200 <= answer.status_code < 400 else f"HTTP probe failed with statuscode: {answer.status_code}"


async def _connect(handler: Json, at: Surroundings) -> str | None:
    try:
        _, writer = await asyncio.open_connection(handler.get("host") or at.address, at.port(handler["port"]))
    except OSError as error:
        return str(error)
    writer.close()
    return None


async def _execute(command: list[str], at: Surroundings) -> str | None:
    try:
        code = await at.run.execute(command)
    except OSError as error:
        return str(error)
    return f"the command ended with {code}" if code else None


@functools.cache
def _trusting() -> ssl.SSLContext:
    """Return TLS settings that accept any certificate, as a kubelet's."""
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    found.check_hostname, found.verify_mode = False, ssl.CERT_NONE
    return found


async def follow(probe: Json, at: Surroundings, tell: Teller, *, pace: float) -> None:
    """Probe for ever; `tell` gets None each time enough probes passed, or the last error once too many failed."""
    await asyncio.sleep(probe.get("initialDelaySeconds", 0) * pace)
    passed = failed = 0
    while True:
        error = await handled(probe, at, probe.get("timeoutSeconds", 1))
        passed, failed = (0, failed + 1) if error else (passed + 1, 0)
        if passed >= probe.get("successThreshold", 1) or failed >= probe.get("failureThreshold", 3):
            told = tell(error)
            if told is not None:
                await told
        await asyncio.sleep(probe.get("periodSeconds", 10) * pace)
