"""An HTTP client for TCP ports and Unix sockets alike."""

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp

from ipnext.components.caller_proof import proof_file, read_proof
from ipnext.components.sockets import is_socket_url, split_url
from ipnext.names import PROOF_HEADER


class HttpSessions:
    """An aiohttp session for each Unix socket, and one for all TCP ports. Close it in the loop that it was created in."""

    def __init__(self) -> None:
        self._tcp = aiohttp.ClientSession(trust_env=False)
        self._sockets: dict[str, aiohttp.ClientSession] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def request(self, method: str, url: str, **more: Any) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Make a request as with `aiohttp.ClientSession`; `url` may also be `unix://PATH.sock/...`, which gets this caller's proof."""
        if not is_socket_url(url):
            return self._tcp.request(method, url, **more)
        path, rest = split_url(url)
        proof = read_proof(proof_file(Path(path)))
        headers = {**(more.pop("headers", None) or {}), **({} if proof is None else {PROOF_HEADER: proof})}
        return self._socket(path).request(method, f"http://localhost{rest}", headers=headers, **more)

    def get(self, url: str, **more: Any) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Make a GET request as with `aiohttp.ClientSession`."""
        return self.request("GET", url, **more)

    def post(self, url: str, **more: Any) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Make a POST request as with `aiohttp.ClientSession`."""
        return self.request("POST", url, **more)

    async def aclose(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(one.close() for one in (self._tcp, *self._sockets.values())), *self._ending)

    def _socket(self, path: str) -> aiohttp.ClientSession:
        session = self._sockets.get(path)
        if session is None:
            self._forget_gone()
            session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(path), trust_env=False)
            self._sockets[path] = session
        return session

    def _forget_gone(self) -> None:
        """Close the sessions of missing sockets; a process that listens there again gets another session."""
        for path in [path for path in self._sockets if not Path(path).exists()]:
            task = asyncio.create_task(self._sockets.pop(path).close(), name="close a session")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
