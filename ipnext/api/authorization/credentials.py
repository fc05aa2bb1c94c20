"""Credentials of a request: its `Authorization` header, or the cookie of the page's session."""

from collections.abc import Mapping

from fastapi import Request
from starlette.types import Scope

from ipnext.api.requests.guarded_route import SAFE_METHODS
from ipnext.errors import Unauthenticated


def bearer_of(request: Request) -> str | None:
    """Return the credential of a request's `Authorization`; None without one.

    Unauthenticated if the scheme is not Bearer.
    """
    return read_bearer(headers_by_name(request.scope))


def headers_by_name(scope: Scope) -> Mapping[str, str]:
    """Return headers by name. Unauthenticated if there are two credentials: it would be ambiguous which one counts."""
    if sum(name.lower() == b"authorization" for name, _ in scope["headers"]) > 1:
        msg = "Authorization: a request has at most one"
        raise Unauthenticated(msg)
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def read_bearer(headers: Mapping[str, str]) -> str | None:
    """Return the credential of `Authorization`. Unauthenticated if the scheme is not Bearer."""
    given = headers.get("authorization")
    if given is None:
        return None
    scheme, _, credential = given.partition(" ")
    if scheme.lower() != "bearer" or not credential.strip():
        msg = "Authorization: the scheme is Bearer, followed by an API key or a token"
        raise Unauthenticated(msg)
    return credential.strip()


def cookie_name(scope: Scope) -> str:
    """Return the name of the session's cookie.

    It contains the port, because browsers send a host's cookies to each of its ports.
    """
    server = scope.get("server")
    return f"ipnext_session_{server[1] if server else 0}"


def session_of(scope: Scope) -> str | None:
    """Return the session's cookie of a request."""
    return read_cookie(scope, headers_by_name(scope))


def read_cookie(scope: Scope, headers: Mapping[str, str]) -> str | None:
    """Return the session's cookie. Cookies of other programs on this host are ignored."""
    wanted = cookie_name(scope)
    for pair in headers.get("cookie", "").split(";"):
        name, _, value = pair.partition("=")
        if name.strip() == wanted:
            return value.strip()
    return None


def check_own_page(method: str, headers: Mapping[str, str]) -> None:
    """Refuse a cookie that the API's own page does not send.

    Browsers also send it for pages on other ports of this host. The `Origin` was checked before. `none`: the user typed
    the address. Raises Unauthenticated.
    """
    site = headers.get("sec-fetch-site")
    if site not in {None, "same-origin", "none"}:
        msg = f"a page of another origin asks (Sec-Fetch-Site: {site}); a session is for the page of the API"
        raise Unauthenticated(msg)
    if method not in SAFE_METHODS and "origin" not in headers and site != "same-origin":
        lacks = "neither Origin nor Sec-Fetch-Site" if site is None else f"no Origin, and Sec-Fetch-Site is {site!r}"
        msg = f"a page's request that changes something names its origin; this one has {lacks}"
        raise Unauthenticated(msg)
