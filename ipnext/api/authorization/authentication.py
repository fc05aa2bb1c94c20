"""Authentication of every request.

`Authentication` is middleware: it answers 401 to a request without a valid credential before its body is read.
"""

import dataclasses
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

import anyio
from starlette.types import ASGIApp, Receive, Scope, Send

from ipnext.access.acting import RequestAuthority, Trail
from ipnext.access.acting import acting as acting_as
from ipnext.api.authorization.access import Access
from ipnext.api.authorization.audit_entries import Recorder, operation_of
from ipnext.api.authorization.credentials import check_own_page, headers_by_name, read_bearer, read_cookie
from ipnext.api.errors import answer, error_body, headers_of
from ipnext.errors import IPnextError, Unauthenticated
from ipnext.model.access.rights import Principal

PUBLIC: Final = frozenset(
    {
        *("/", "/docs", "/openapi.json", "/healthz", "/readyz"),
        *("/v1/sessions", "/v1/tickets/current", "/v1/login", "/v1/proof", "/v1/webhooks/mlflow"),
    }
)
"""Paths that need no credential: the page's shell, the schema, probes, the login and the look at a ticket, which bring
their own, the options of logins, the proof that a client requests before it sends its key, and signed webhooks."""
PUBLIC_FOLDER: Final = "/web/"
LOCAL: Final = Principal(kind="local", id="local", name="anybody", grants=())
"""Every caller, if authentication is off."""


class Authentication:
    """ASGI middleware: authenticates the caller, or answers 401 before any of the body is read."""

    def __init__(self, app: ASGIApp, access: Access, recorder: Recorder) -> None:
        self._app = app
        self._access = access
        self._recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass the request on with its principal in `scope["state"]`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client, trail = scope.get("client"), Trail(lambda: operation_of(scope))
        acting = RequestAuthority(LOCAL, client[0] if client else "", trail=trail)
        try:
            headers = headers_by_name(scope)
            acting = dataclasses.replace(acting, said=read_claimed_user(headers))
            acting = dataclasses.replace(acting, principal=await self._principal(scope, headers))
            acting = dataclasses.replace(acting, authority=self._access if self._access.required else None)
        except IPnextError as error:
            await self._recorder.refused_credential(acting, error)
            await answer(error_body(error), error.http_status, headers_of(error))(scope, receive, send)
            return
        scope.setdefault("state", {})["acting"] = acting
        with acting_as(acting):
            await self._app(scope, receive, self._recorder.recording(scope, send))

    async def _principal(self, scope: Scope, headers: Mapping[str, str]) -> Principal:
        if not self._access.required or is_public(scope["path"]):
            return LOCAL
        credential, kinds = read_bearer(headers), ("key",)
        if credential is None:
            credential, kinds = read_cookie(scope, headers), ("session",)
            if credential is not None:
                check_own_page(scope["method"], headers)
        if credential is None:
            msg = (
                "this needs a credential: `Authorization: Bearer KEY`; the CLI and SDK take IPNEXT_API_KEY or what "
                "`ipnext login` and `ipnext dev` wrote down"
            )
            raise Unauthenticated(msg)
        found = self._access.recall(credential, kinds)
        if found is not None:
            return found
        return await anyio.to_thread.run_sync(lambda: self._access.prove(credential, kinds=kinds))


def is_public(path: str) -> bool:
    """Return whether a path needs no credential."""
    return path in PUBLIC or path.startswith(PUBLIC_FOLDER)


def read_claimed_user(headers: Mapping[str, str]) -> str:
    """Return the user that the caller claims to act for; not authenticated."""
    said = unquote(headers.get("x-ipnext-user", "")[:400])
    return "".join(letter for letter in said if letter.isprintable()).strip()[:100]
