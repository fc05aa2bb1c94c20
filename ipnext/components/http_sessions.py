"""An HTTP client for TCP ports and Unix sockets alike, whose answers are bounded in bytes and in time.

All calls of agents to hosts, router and Envoy, and of hosts to their engines, are made here: a process that was taken
over answers whatever it likes.
"""

import asyncio
import json
import ssl
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from ipnext.components.bounded_http import AnswerRefused, BoundedAnswer
from ipnext.components.caller_proof import proof_file, read_proof
from ipnext.components.client_contexts import ClientContexts
from ipnext.components.sockets import is_socket_url, split_url
from ipnext.errors import Unavailable
from ipnext.names import PROOF_HEADER


class HttpSessions:
    """An aiohttp session for each Unix socket, and one for all TCP ports.

    Close it in the loop that it was created in.
    """

    def __init__(self, contexts: ClientContexts | None = None) -> None:
        """`contexts` has the certificate for calls to https://; if None, such a call is Unavailable."""
        self._contexts = contexts
        self._tcp = _session()
        self._sockets: dict[str, aiohttp.ClientSession] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def call(  # noqa: PLR0913 - a request, and its limits
        self,
        method: str,
        url: str,
        *,
        most_bytes: int,
        seconds: float,
        content: str | None = None,
        body: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> BoundedAnswer:
        """Make one call; `seconds` bound all of it, `most_bytes` the body of its answer. No redirect is followed.

        `url` may also be `unix://PATH.sock/...`, which gets this caller's proof. `content` is JSON as text, `body` as
        values; `headers` are sent besides.

        Raises:
            AnswerRefused: the answer is larger, or compressed.
            Unavailable: there is no whole answer in time.
        """
        shown = f"{method} {url}"
        data = json.dumps(body) if body is not None else content
        sent = {"accept-encoding": "identity", **({} if data is None else {"content-type": "application/json"})}
        sent |= headers or {}
        try:
            if is_socket_url(url):
                path, rest = split_url(url)
                proof = read_proof(proof_file(Path(path)))
                sent |= {} if proof is None else {PROOF_HEADER: proof}
                session, url = self._socket(path), f"http://localhost{rest}"
            else:
                session = self._tcp
            limit = aiohttp.ClientTimeout(total=seconds)
            secured = self._secured(url)
            async with session.request(
                method, url, data=data, headers=sent, timeout=limit, allow_redirects=False, ssl=secured
            ) as answer:
                return BoundedAnswer(answer.status, await _whole(answer, most_bytes, shown))
        except TimeoutError as error:
            msg = f"no whole answer to {shown} within {seconds:g} s"
            raise Unavailable(msg) from error
        except (aiohttp.ClientError, OSError) as error:
            msg = f"no answer to {shown}: {error!r}"
            raise Unavailable(msg) from error

    async def aclose(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(one.close() for one in (self._tcp, *self._sockets.values())), *self._ending)

    def _secured(self, url: str) -> ssl.SSLContext | bool:
        """Return the TLS of a call. Unavailable if it needs a certificate that this component lacks."""
        if not url.startswith("https://"):
            return True
        if self._contexts is None:
            msg = f"{url} needs a certificate of this component: IPNEXT_COMPONENT_CERTIFICATE_FILE"
            raise Unavailable(msg)
        return self._contexts.current()

    def _socket(self, path: str) -> aiohttp.ClientSession:
        session = self._sockets.get(path)
        if session is None:
            self._forget_gone()
            session = _session(aiohttp.UnixConnector(path))
            self._sockets[path] = session
        return session

    def _forget_gone(self) -> None:
        """Close the sessions of missing sockets; a process that listens there again gets another session."""
        for path in [path for path in self._sockets if not Path(path).exists()]:
            task = asyncio.create_task(self._sockets.pop(path).close(), name="close a session")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


def _session(connector: aiohttp.BaseConnector | None = None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=connector, trust_env=False, auto_decompress=False)


async def _whole(answer: aiohttp.ClientResponse, most_bytes: int, call: str) -> bytes:
    """Return the body. If it is refused, its connection is closed."""
    packing = answer.headers.get("content-encoding", "identity").strip().lower()
    if packing not in {"", "identity"}:
        answer.close()
        msg = f"the answer to {call} is packed ({packing[:40]!r}), which was not asked for"
        raise AnswerRefused(msg)
    content = bytearray()
    async for piece in answer.content.iter_any():
        content += piece
        if len(content) > most_bytes:
            answer.close()
            msg = f"the answer to {call} is larger than {most_bytes} bytes, the most that is read"
            raise AnswerRefused(msg)
    return bytes(content)
