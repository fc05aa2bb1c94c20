"""Refuses requests to other hosts, and from pages of other origins, before any other component reads them."""

from starlette.types import ASGIApp, Receive, Scope, Send

from ipnext.api.errors import answer, error_body
from ipnext.errors import InvalidInput, IPnextError
from ipnext.network.allowed_hosts import AllowedHosts, joined_headers


class SourceCheck:
    """ASGI middleware of the API."""

    def __init__(self, app: ASGIApp, allowed: AllowedHosts) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 400, 403 or 421, or pass the request on."""
        if scope["type"] in {"http", "websocket"}:
            try:
                self._check(scope)
            except IPnextError as error:
                await answer(error_body(error), error.http_status)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in pairs if name == "host"]
        if len(hosts) != 1 and (hosts or scope.get("http_version") != "1.0"):
            msg = f"Host: a request has exactly one, got {len(hosts)}"
            raise InvalidInput(msg, field="Host")
        for host in hosts:
            self._allowed.check_host(host)
        self._allowed.check_source(scope.get("method", "GET"), "".join(hosts), joined_headers(pairs))
