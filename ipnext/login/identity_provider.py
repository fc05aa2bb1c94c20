"""Addresses and documents of an OpenID Connect provider.

Imported by the API, which verifies tokens, and by the client, which gets them. Over https only, except on loopback;
redirects are not followed; documents are limited in size and time.
"""

import ipaddress
import json
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httpx

from ipnext.errors import InvalidInput, Unavailable

DISCOVERY: Final = "/.well-known/openid-configuration"
LARGEST_BYTES: Final = 256 * 1024
"""Largest document that is read, in bytes."""
ANSWER_SECONDS: Final = 5.0
"""Longest wait for a whole document, in seconds."""
LONGEST_URL: Final = 2048


class ProviderRefused(Exception):
    """An OAuth error of the provider; `error` is its code, such as `invalid_grant`. Callers add the remedy."""

    def __init__(self, message: str, *, error: str) -> None:
        super().__init__(message)
        self.error = error


class Endpoints(NamedTuple):
    """Addresses in a provider's discovery document. None: the provider does not offer it."""

    issuer: str
    jwks: str
    token: str | None = None
    device_authorization: str | None = None
    revocation: str | None = None


class ProviderClient:
    """HTTP client of a provider. Safe to use from several threads; close it."""

    def __init__(self, issuer: str, *, transport: httpx.BaseTransport | None = None) -> None:
        """`issuer` is exactly the one in tokens. InvalidInput if the address is neither https nor loopback."""
        self.issuer = check_issuer(issuer)
        self._http = httpx.Client(
            timeout=ANSWER_SECONDS,
            follow_redirects=False,
            limits=httpx.Limits(max_keepalive_connections=0),  # minutes pass between two requests
            transport=transport,
            trust_env=not is_loopback(issuer),
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def discover(self) -> Endpoints:
        """Read the discovery document. Unavailable, also if it is of another issuer."""
        url = self.issuer.rstrip("/") + DISCOVERY
        found = self.read(url)
        if found.get("issuer") != self.issuer:
            msg = (
                f"{url} is the document of another issuer than {self.issuer}; "
                "IPNEXT_OIDC_ISSUER has to be its `issuer`, letter by letter"
            )
            raise Unavailable(msg)
        try:
            return Endpoints(
                self.issuer,
                check_address(str(found.get("jwks_uri", "")), "jwks_uri"),
                *(
                    check_address(str(found[name]), name) if found.get(name) is not None else None
                    for name in ("token_endpoint", "device_authorization_endpoint", "revocation_endpoint")
                ),
            )
        except InvalidInput as error:
            msg = f"{url} can't be used: {error}"
            raise Unavailable(msg) from error

    def read(self, url: str) -> Mapping[str, Any]:
        """Read a JSON object. Raises Unavailable."""
        status, found = self._ask("GET", url, None)
        if status != 200:
            msg = f"the identity provider answered {status} at {url}"
            raise Unavailable(msg)
        return found

    def post(self, url: str, form: Mapping[str, str]) -> Mapping[str, Any]:
        """Send a form, and return the JSON object of the answer. ProviderRefused for an OAuth error; Unavailable."""
        status, found = self._ask("POST", url, form)
        if status == 200:
            return found
        error = found.get("error")
        if 400 <= status < 500 and isinstance(error, str):
            about = found.get("error_description")
            msg = f"the identity provider refused: {make_printable(error)}" + (
                f" ({make_printable(str(about))})" if about else ""
            )
            raise ProviderRefused(msg, error=error)
        msg = f"the identity provider answered {status} at {url}"
        raise Unavailable(msg)

    def _ask(self, method: str, url: str, form: Mapping[str, str] | None) -> tuple[int, Mapping[str, Any]]:
        deadline = time.monotonic() + ANSWER_SECONDS
        try:
            with self._http.stream(method, check_address(url, "url"), data=form) as answer:
                if answer.is_redirect:
                    msg = f"the identity provider redirects {url} elsewhere, which is not followed"
                    raise Unavailable(msg)
                content = _content(answer, deadline)
        except httpx.HTTPError as error:
            msg = f"the identity provider does not answer at {url}: {str(error) or type(error).__name__}"
            raise Unavailable(msg) from error
        return answer.status_code, _object(content, url, is_needed=answer.status_code == 200 and method == "GET")


def check_issuer(issuer: str) -> str:
    """Return the issuer. InvalidInput if its address is neither https nor loopback, or has a query or fragment."""
    parts = urlsplit(check_address(issuer, "oidc_issuer (IPNEXT_OIDC_ISSUER)"))
    if parts.query or parts.fragment:
        msg = f"oidc_issuer (IPNEXT_OIDC_ISSUER): {issuer!r} has a query or a fragment, which no issuer has"
        raise InvalidInput(msg, field="oidc_issuer", value=issuer)
    return issuer


def check_address(url: str, field: str) -> str:
    """Return an address of the provider. InvalidInput unless it is https, or http of loopback."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    is_right = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(url))
    has_host = bool(parts.hostname) and parts.username is None and parts.password is None
    if not is_right or not has_host or len(url) > LONGEST_URL or not (url.isascii() and url.isprintable()):
        msg = (
            f"{field}: {url[:200]!r} can't be used; allowed: https://HOST/..., and http:// for loopback addresses only"
        )
        raise InvalidInput(msg, field=field, value=url[:200], allowed=("https://HOST/...",))
    return url


def is_loopback(url: str) -> bool:
    """Return whether an address is of this machine: `localhost` or a loopback IP address."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_printable(text: str) -> str:
    """Return a provider's text in printable form: one line without control characters, at most 300 characters."""
    return "".join(letter for letter in text if letter.isprintable())[:300]


def _content(answer: httpx.Response, deadline: float) -> bytes:
    content = bytearray()
    for chunk in answer.iter_raw():  # not decompressed: the limit counts the stored bytes
        content += chunk
        if len(content) > LARGEST_BYTES or time.monotonic() > deadline:
            msg = (
                f"the identity provider's answer at {answer.url} is larger than {LARGEST_BYTES} bytes, "
                f"or takes longer than {ANSWER_SECONDS:g} s"
            )
            raise Unavailable(msg)
    return bytes(content)


def _object(content: bytes, url: str, *, is_needed: bool) -> Mapping[str, Any]:
    try:
        found = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        if not is_needed:
            return {}
        msg = f"the identity provider's answer at {url} is not JSON"
        raise Unavailable(msg) from error
    if isinstance(found, dict):
        return found
    if not is_needed:
        return {}
    msg = f"the identity provider's answer at {url} is not a JSON object"
    raise Unavailable(msg)
