"""Credential of the client for the API: given, from the environment, or stored for the API's address.

A stored API key is sent over http:// only after the listener has proved that it knows the key: the platform may have
ended since, and another program may have its port. A stored token is sent over http:// only to a program of this user
or of root: it proves nothing of the listener.
"""

import os
import time
from collections.abc import Generator
from typing import Final
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from ipnext.access.keys import is_key, parse_key
from ipnext.access.proof import draw_nonce, is_proof
from ipnext.client.errors import error_of
from ipnext.client.login import current_credential
from ipnext.errors import InvalidInput, Unauthenticated
from ipnext.login.credentials import StoredCredential, origin_of
from ipnext.model.access.rights import PlatformProof
from ipnext.model.api.resources import RegionView
from ipnext.model.wire import decode
from ipnext.network.loopback import is_loopback
from ipnext.network.port_owner import listening_users
from ipnext.settings import ClientSettings

PROVED_SECONDS: Final = 5.0
"""Validity of a proof, so that not every request becomes two."""


class Credential(httpx.Auth):
    """Adds `Authorization` to requests to the API's own address.

    A stored credential is read from its file for each request: a restarted platform writes another key. A token of an
    identity provider is renewed before it expires.
    """

    def __init__(self, url: str, *, given: str | None, settings: ClientSettings) -> None:
        """InvalidInput if a header can't carry the key; the message does not repeat it."""
        self._url = url
        self._file = settings.credentials_file
        named = settings.api_key.get_secret_value() if settings.api_key is not None else None
        if named is not None and not named.strip() and given is None:
            msg = "api_key (IPNEXT_API_KEY): is set and empty; unset it to use what was written down, or give it a key"
            raise InvalidInput(msg, field="api_key")
        self._given = given or named
        self._insecure = settings.insecure_transport
        self._proved: tuple[str, float] = ("", 0.0)
        if self._given is not None and not (
            self._given.isascii() and self._given.isprintable() and " " not in self._given
        ):
            msg = "api_key (IPNEXT_API_KEY): has characters that no key or token has; copy it again"
            raise InvalidInput(msg, field="api_key")

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send a request with the credential, if there is one, after the API's proof if that is needed.

        Unauthenticated if the login has ended, or if the listener does not prove itself; Unavailable.
        """
        if origin_of(str(request.url)) == origin_of(self._url):
            written = None if self._given is not None else current_credential(self._url, self._file)
            found = self._given if written is None else written.text
            if found is not None:
                self.check_private(self._url, "api_url (IPNEXT_API_URL)")
                request.url = _resolve_localhost(request.url)
                self.check_listener(request.url, found)
                if written is not None and self._has_to_prove(written):
                    yield from self._proof_of(written, request)
                request.headers["Authorization"] = f"Bearer {found}"
        yield request

    def find(self) -> str | None:
        """Return the key or token, or None. Unauthenticated if the login has ended; Unavailable."""
        if self._given is not None:
            return self._given
        written = current_credential(self._url, self._file)
        return None if written is None else written.text

    def _has_to_prove(self, written: StoredCredential) -> bool:
        """Whether a proof is needed.

        It is needed neither for https:// (the certificate proves it) nor for a token of an identity provider.
        """
        proved, until = self._proved
        is_proved = proved == written.text and time.monotonic() < until
        return urlsplit(self._url).scheme == "http" and is_key(written.text) and not is_proved

    def _proof_of(
        self, written: StoredCredential, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        key, nonce = parse_key(written.text), draw_nonce()
        url = httpx.URL(f"{self._url.rstrip('/')}/v1/proof", params={"key": key.id, "nonce": nonce})
        answer = yield httpx.Request("GET", _resolve_localhost(url), extensions=request.extensions)
        answer.read()
        if answer.status_code in {502, 503, 504}:
            raise error_of(answer, self._url)
        try:
            given = decode(PlatformProof, answer.content)
        except ValidationError:
            given = PlatformProof(port=0, proof="")
        is_there = not written.is_of_platform or given.port == (request.url.port or 80)
        if (
            answer.status_code != 200
            or not is_there
            or not is_proof(given.proof, key.secret, nonce=nonce, port=given.port)
        ):
            msg = (
                f"what listens at {origin_of(self._url)} does not prove that it is the platform whose key was "
                "written down, so the key "
                "was not sent: another program has taken its port, or the key was revoked; "
                "start `ipnext dev` again, or `ipnext login`"
            )
            raise Unauthenticated(msg)
        self._proved = (written.text, time.monotonic() + PROVED_SECONDS)

    def check_private(self, url: str, field: str) -> None:
        """Refuse an address to which a credential would go in clear text. InvalidInput."""
        parts = urlsplit(url)
        if parts.scheme == "https" or self._insecure or is_loopback(parts.hostname or ""):
            return
        msg = (
            f"{field}: a credential would go to {parts.hostname} in clear text; use https://, or allow it by "
            "IPNEXT_INSECURE_TRANSPORT=true"
        )
        raise InvalidInput(msg, field=field.partition(" ")[0], value=url, allowed=("https://",))

    def check_listener(self, url: httpx.URL, found: str) -> None:
        """Refuse to send a stored token in clear text to a program of another user on this machine. Unauthenticated."""
        if self._given is not None or self._insecure or is_key(found) or url.scheme != "http":
            return
        url = _resolve_localhost(url)
        others = (listening_users(url.host, url.port or 80) or frozenset()) - {0, os.getuid()}
        if others:
            msg = (
                f"a program of another user (id {min(others)}) listens at {origin_of(str(url))}, "
                "and the token was not sent: another "
                "program may have taken the port; use https://, or allow it by IPNEXT_INSECURE_TRANSPORT=true"
            )
            raise Unauthenticated(msg)


class GatewayCredential(httpx.Auth):
    """Adds the credential for the API to a request to a region's gateway, if the gateway requires one.

    The operator has to have named the gateway's address. An agent reports one, too, and who takes the agent over could
    report an address of its own, and would be sent keys of operators.
    """

    def __init__(self, credential: Credential, region: RegionView) -> None:
        self._credential, self._region = credential, region

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send a request; once more, with the credential, if the answer is 401 and there is one.

        Unauthenticated if the operator has not named this address.
        """
        answer = yield request
        found = self._credential.find() if answer.status_code == 401 else None
        if found is not None:
            self._check_named(str(request.url))
            self._credential.check_private(str(request.url), "gateway")
            self._credential.check_listener(request.url, found)
            request.headers["Authorization"] = f"Bearer {found}"
            yield request

    def _check_named(self, url: str) -> None:
        region = self._region
        if region.gateway_is_named and origin_of(url) == origin_of(region.gateway_url or ""):
            return
        msg = (
            f"the gateway of {region.region} at {origin_of(url)} requires a credential, and none was sent: "
            "only the region's agent "
            "reports that address. The operator names addresses that credentials may go to: "
            "IPNEXT_GATEWAYS of the API, region -> URL, as JSON"
        )
        raise Unauthenticated(msg)


def _resolve_localhost(url: httpx.URL) -> httpx.URL:
    """Return the address to which a credential goes: `localhost` in clear text is 127.0.0.1.

    It may be `::1` first, with another user's program at the same port. With TLS the certificate proves the listener.
    """
    return url.copy_with(host="127.0.0.1") if (url.scheme, url.host) == ("http", "localhost") else url
