"""What proves the client to the API: given, of the environment, or written down for the API's address."""

from collections.abc import Generator
from urllib.parse import urlsplit

import httpx

from ipnext.client_login import current_credential
from ipnext.credentials import origin_of
from ipnext.errors import InvalidInput
from ipnext.loopback import is_loopback
from ipnext.settings import ClientSettings


class Credential(httpx.Auth):
    """Adds `Authorization` to requests to the API's own address.

    What is written down in a file is read for each request: a platform that starts again writes another key. A token of an
    identity provider is renewed before it ends.
    """

    def __init__(self, url: str, *, given: str | None, settings: ClientSettings) -> None:
        """InvalidInput for a key that a header can't carry; the message does not repeat it."""
        self._url = url
        self._file = settings.credentials_file
        named = settings.api_key.get_secret_value() if settings.api_key is not None else None
        if named is not None and not named.strip() and given is None:
            msg = "api_key (IPNEXT_API_KEY): is set and empty; unset it to use what was written down, or give it a key"
            raise InvalidInput(msg, field="api_key")
        self._given = given or named
        self._insecure = settings.insecure_transport
        if self._given is not None and not (
            self._given.isascii() and self._given.isprintable() and " " not in self._given
        ):
            msg = "api_key (IPNEXT_API_KEY): has characters that no key or token has; copy it again"
            raise InvalidInput(msg, field="api_key")

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send a request with the credential, if there is one. Unauthenticated for a login that has ended; Unavailable."""
        if origin_of(str(request.url)) == origin_of(self._url):
            found = self.find()
            if found is not None:
                self.check_private(self._url, "api_url (IPNEXT_API_URL)")
                request.headers["Authorization"] = f"Bearer {found}"
        yield request

    def find(self) -> str | None:
        """The key or token, or None. Unauthenticated for a login that has ended; Unavailable."""
        return self._given or current_credential(self._url, self._file)

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


class GatewayCredential(httpx.Auth):
    """Adds the credential for the API to a request to a gateway that the API named, if the gateway asks for one."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send a request; once more, with the credential, if the answer is 401 and there is one."""
        answer = yield request
        found = self._credential.find() if answer.status_code == 401 else None
        if found is not None:
            self._credential.check_private(str(request.url), "gateway")
            request.headers["Authorization"] = f"Bearer {found}"
            yield request
