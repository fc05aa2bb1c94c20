"""How a router asks hosts: one attempt of one request, all of it on one generation."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Final

import aiohttp

from ipnext.errors import DeadlineExceeded, InvalidInput, IPnextError
from ipnext.model.registry import Signature
from ipnext.names import DEADLINE_HEADER, GENERATION_HEADER, SNAPSHOTS_HEADER
from serving.balancing import EndpointLoads
from serving.graph import Tensors
from serving.protocol import HEADER_LENGTH, InferRequest, decode_response, encode_request, parse_header_length
from serving.router_table import GenerationRoute

_IDLE_SECONDS: Final = 60.0
_CONNECT_SECONDS: Final = 1.0
_HUNG_SECONDS: Final = 1.0
"""A host that a request waited for so long in vain, up to its deadline, is passed over for a moment."""
_ELSEWHERE: Final = frozenset({409, 503})
"""Statuses of a host that cannot answer now while another may."""


class TryElsewhere(Exception):  # not an error yet: the request is tried again
    """A host did not answer, or not for this generation; the whole request may be tried again on other hosts."""


def open_session() -> aiohttp.ClientSession:
    """The router's connections to hosts, kept alive. Call inside the event loop; the caller closes it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )


class HostClient:
    """Calls parts on hosts."""

    def __init__(self, session: aiohttp.ClientSession, loads: EndpointLoads, clock: Callable[[], float]) -> None:
        self._session = session
        self._loads = loads
        self._clock = clock

    async def infer(
        self, route: GenerationRoute, part: str, inputs: Tensors, *, deadline: float, tried: set[str]
    ) -> Tensors:
        """A part's outputs from one host of the generation, with the proof checked. `deadline` is a time of the clock.

        TryElsewhere where a host fails to answer for the generation; its url is then in `tried`. InvalidInput,
        DeadlineExceeded or IPnextError as the host judged.
        """
        url = self._loads.choose(route.endpoints[part], tried=tried)
        encoded = encode_request(InferRequest(inputs, binary_output=True))
        headers = {
            **encoded.headers,
            GENERATION_HEADER: str(route.generation),
            DEADLINE_HEADER: str(max(1, int((deadline - self._clock()) * 1000))),
        }
        with self._loads.calling(url):
            status, answer, body = await self._send(
                "POST", url, f"/parts/{route.model}/{part}/infer", headers, encoded.body, tried
            )
        if status != 200:
            raise _judged(part, url, status, body, tried)
        _check_proof(route, part, url, answer, tried)
        return decode_response(body, parse_header_length(answer.get(HEADER_LENGTH))).outputs

    async def signature(self, route: GenerationRoute, part: str) -> Signature:
        """The tensors that a part takes and gives, as one of its hosts says. TryElsewhere, IPnextError."""
        tried: set[str] = set()
        url = self._loads.choose(route.endpoints[part], tried=tried)
        headers = {GENERATION_HEADER: str(route.generation)}
        status, _, body = await self._send("GET", url, f"/parts/{route.model}/{part}", headers, None, tried)
        if status != 200:
            raise _judged(part, url, status, body, tried)
        return Signature.model_validate_json(body)

    async def _send(
        self, method: str, url: str, path: str, headers: Mapping[str, str], body: bytes | None, tried: set[str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        began = self._clock()
        try:
            async with self._session.request(method, url + path, data=body, headers=headers) as response:
                return response.status, response.headers, await response.read()
        except asyncio.CancelledError:
            if self._clock() - began > _HUNG_SECONDS:
                self._loads.note_failure(url)
            raise
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            self._loads.note_failure(url)
            tried.add(url)
            msg = f"{url} did not answer: {type(error).__name__}"
            raise TryElsewhere(msg) from error


def _judged(part: str, url: str, status: int, body: bytes, tried: set[str]) -> Exception:
    """What a host's refusal means for the request."""
    message = f"part {part!r}: {_error_text(body)}"
    if status in _ELSEWHERE:
        tried.add(url)
        return TryElsewhere(message)
    if status == 504:
        return DeadlineExceeded(message)
    return InvalidInput(message) if 400 <= status < 500 else IPnextError(message)


def _check_proof(route: GenerationRoute, part: str, url: str, answer: Mapping[str, str], tried: set[str]) -> None:
    """The host must have used the snapshot that the generation names, or the answer would be a mixed one."""
    expected = f"{part}={route.snapshots.get(part)}"
    if answer.get(SNAPSHOTS_HEADER) != expected:
        tried.add(url)
        msg = f"{url} answered with {answer.get(SNAPSHOTS_HEADER)}, generation {route.generation} needs {expected}"
        raise TryElsewhere(msg)


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
