"""Temporal's UI behind the login of the API.

`python -m ipnext.dev.temporal_ui`, a reverse proxy that `ipnext dev` starts.

The UI of Temporal's development server requires no credential and accepts any `Host`, so a page whose name resolves to
this machine could use it. It therefore listens on a random loopback address and port, which no page can find, and users
reach it through this proxy: it checks `Host` and origin like every listener, and asks the API whether the browser's
session may use the UI.
"""

import argparse
import html
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, NamedTuple

from ipnext.process.garbage_collection import collect_after_imports

with collect_after_imports():
    import httpx
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, Response, StreamingResponse
    from starlette.types import Receive, Scope, Send

    from ipnext.api.authorization.credentials import check_own_page
    from ipnext.api.requests.origins import SourceCheck
    from ipnext.client.errors import error_of
    from ipnext.components.private_files import keep_new_files_private
    from ipnext.errors import EXIT_OK, IPnextError, Unauthenticated
    from ipnext.model.access.rights import KEPT_SECONDS
    from ipnext.network.allowed_hosts import AllowedHosts, opens_document
    from ipnext.network.bounded_server import BoundedServer, bounded_config
    from ipnext.network.connections import ConnectionLimits, room_for_connections
    from ipnext.process.end import end_process

ASK: Final = "/v1/temporal-ui"
ANSWER_SECONDS: Final = 120.0
"""Longest silence of the UI: it waits for new events of a run."""
ASK_SECONDS: Final = 10.0
KEPT_ANSWERS: Final = 256
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_KEPT_BACK: Final = _HOP_BY_HOP | {"host", "authorization", "cookie", "origin", "referer"}
"""Request headers that belong to the proxy, or that authenticate to the API."""
_SESSION: Final = "ipnext_session_"
_PROTECTIONS: Final = (
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


class _Answer(NamedTuple):
    """The API's answer about a credential."""

    status: int
    message: str
    good_until: float


class UiProxy:
    """ASGI application: passes on the requests that the API authorises."""

    def __init__(self, upstream: str, api: str) -> None:
        """`upstream` is the URL of the UI, `api` that of the API, whose session a browser brings."""
        self._upstream, self._api = httpx.URL(upstream), httpx.URL(api)
        self._cookie = f"{_SESSION}{self._api.port}"
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=ASK_SECONDS),
            trust_env=False,
            follow_redirects=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # one browser's cookies go to no other
        )
        self._answers: OrderedDict[tuple[str, str], _Answer] = OrderedDict()

    async def close(self) -> None:
        """End the connections."""
        await self._client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it to the UI."""
        request = Request(scope, receive)
        try:
            response = await self._refusal(request) or await self._pass_on(request)
        except httpx.InvalidURL as error:
            response = _page(400, f"the path can't be read: {error}")
        except httpx.TransportError as error:
            response = _page(502, f"Temporal's UI, or the API that says who may use it, does not answer: {error!r}")
        await response(scope, receive, send)

    async def _refusal(self, request: Request) -> Response | None:
        """Return the answer that replaces the UI's; None if the request may pass."""
        try:
            if "authorization" not in request.headers and not opens_document(request.method, request.headers):
                check_own_page(request.method, request.headers)
        except Unauthenticated as error:
            return _page(403, error.message)
        found = await self._ask(request)
        if found.status == httpx.codes.OK:
            return None
        if found.status == httpx.codes.UNAUTHORIZED:
            own = self._api.copy_with(port=request.scope["server"][1])
            page, here = (html.escape(str(url)) for url in (self._api, own))
            log_in = (
                f'log in at <a href="{page}/">{page}</a> (<code>ipnext page --open</code>), '
                f'then open <a href="{here}/">{here}</a>'
            )
            return _page(401, "Temporal's UI is for administrators of the platform:", log_in)
        return _page(found.status, found.message)

    async def _ask(self, request: Request) -> _Answer:
        """Return the API's answer about the request's credential, cached as long as in the API itself."""
        cookie, bearer = request.cookies.get(self._cookie, ""), request.headers.get("authorization", "")
        known = self._answers.get((cookie, bearer))
        if known is not None and time.monotonic() < known.good_until:
            return known
        headers = ({"cookie": f"{self._cookie}={cookie}"} if cookie else {}) | (
            {"authorization": bearer} if bearer else {}
        )
        answer = await self._client.get(self._api.join(ASK), headers=headers, timeout=ASK_SECONDS)
        message = "" if answer.is_success else error_of(answer, str(self._api)).message
        found = _Answer(answer.status_code, message, time.monotonic() + KEPT_SECONDS)
        self._answers[cookie, bearer] = found
        while len(self._answers) > KEPT_ANSWERS:
            self._answers.popitem(last=False)
        return found

    async def _pass_on(self, request: Request) -> Response:
        target = self._upstream.copy_with(raw_path=_raw_path(request.scope))
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        sent = self._client.build_request(
            request.method,
            target,
            headers=_headers_for(request),
            content=request.stream() if has_body else None,
        )
        answer = await self._client.send(sent, stream=True)
        response = StreamingResponse(_content_of(answer), status_code=answer.status_code)
        kept = [(name.lower(), value) for name, value in answer.headers.raw]
        ours = {name for name, _ in _PROTECTIONS}
        response.raw_headers = [
            *((name, value) for name, value in kept if name.decode() not in _HOP_BY_HOP and name not in ours),
            *_PROTECTIONS,
        ]
        return response


def proxy_app(upstream: str, api: str) -> Starlette:
    """Return the application behind the checks of every listener of the platform."""
    proxy = UiProxy(upstream, api)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await proxy.close()

    app = Starlette(middleware=[Middleware(SourceCheck, allowed=AllowedHosts())], lifespan=lifespan)
    app.mount("/", proxy)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Exit status 0, or that of the error that prevented the start."""
    keep_new_files_private()
    parser = argparse.ArgumentParser(prog="python -m ipnext.dev.temporal_ui", description="Temporal's UI with a login.")
    parser.add_argument("--host", default="127.0.0.1", help="loopback address to listen on")
    parser.add_argument("--port", type=int, required=True, help="port to listen on")
    parser.add_argument("--upstream", required=True, help="URL of the UI of Temporal's development server")
    parser.add_argument("--api", required=True, help="URL of the API that says who may use it")
    given = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn ends in order, then passes the signal on
        signal.signal(number, _end_in_order)
    app = proxy_app(given.upstream, given.api)
    try:
        most = room_for_connections(None, field="connections", variable="IPNEXT_API_CONNECTIONS")
        limits = ConnectionLimits(connections=most, per_source=most)
        BoundedServer(bounded_config(app, host=given.host, port=given.port, keep_alive_seconds=5), limits).run()
    except IPnextError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    return EXIT_OK


def _end_in_order(_number: int, _frame: object) -> None:
    """Do nothing: the server has ended, and main returns."""


def _headers_for(request: Request) -> list[tuple[str, str]]:
    """Return the headers for the UI: no credential of the API, and no name of this listener."""
    found = [(name, value) for name, value in request.headers.items() if name not in _KEPT_BACK]
    if "accept-encoding" not in request.headers:
        found.append(("accept-encoding", "identity"))
    cookies = "; ".join(f"{name}={value}" for name, value in request.cookies.items() if not name.startswith(_SESSION))
    return [*found, ("cookie", cookies)] if cookies else found


def _raw_path(scope: Scope) -> bytes:
    """Return path and query unchanged."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope["query_string"]
    return path + b"?" + query if query else path


async def _content_of(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the body as the UI sent it, compressed or not."""
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


def _page(status: int, message: str, more: str = "") -> Response:
    """Return a page that explains why the UI is not available. `more` is HTML."""
    text = f"<!doctype html><title>IPnext</title><p>{html.escape(message)} {more}</p>"
    return HTMLResponse(text, status, {name.decode(): value.decode() for name, value in _PROTECTIONS})


if __name__ == "__main__":
    end_process(main())
