"""Logins by the OAuth 2.0 device authorization grant (RFC 8628), with renewal and revocation (RFC 7009).

The CLI and the SDK use it as a public client, which has an id and no secret.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ipnext.errors import DeadlineExceeded, Unauthenticated, Unavailable
from ipnext.login.identity_provider import Endpoints, ProviderClient, ProviderRefused, make_printable

DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
INTERVAL_SECONDS: Final = 5.0
"""Interval of polls unless the provider sets another; added at each `slow_down` (RFC 8628, 3.5)."""
LEAST_INTERVAL_SECONDS: Final = 1.0
LONGEST_INTERVAL_SECONDS: Final = 60.0
LONGEST_WAIT_SECONDS: Final = 1800.0
LIFETIME_SECONDS: Final = 300.0
"""Lifetime of a token if the provider names none."""


class DeviceCode(NamedTuple):
    """Address and code for the user, and the client's polling parameters. Times in seconds."""

    device_code: str
    user_code: str
    address: str
    complete_address: str | None
    lasts_seconds: float
    interval_seconds: float


class Tokens(NamedTuple):
    """Tokens of a login. `lasts_seconds` counts from now."""

    access: str
    refresh: str | None
    lasts_seconds: float


class DeviceLogin:
    """Gets, renews and revokes tokens of one provider for one public client."""

    def __init__(
        self,
        provider: ProviderClient,
        client_id: str,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._provider, self._client_id = provider, client_id
        self._sleep, self._clock = sleep, clock

    def begin(self, scopes: Sequence[str], audience: str) -> DeviceCode:
        """Request a code that the user enters. Unavailable, also if the provider lacks this flow; Unauthenticated."""
        address = self._endpoints().device_authorization
        if address is None:
            msg = (
                f"the identity provider {self._provider.issuer} offers no device authorization; "
                "`ipnext login --key` takes a key or token"
            )
            raise Unavailable(msg)
        form = {"client_id": self._client_id, "scope": " ".join(scopes), "audience": audience}
        try:
            return _device_code(self._provider.post(address, form))
        except ProviderRefused as error:
            msg = f"{error}; is client {self._client_id!r} a public client with the device flow?"
            raise Unauthenticated(msg) from error

    def wait(self, code: DeviceCode) -> Tokens:
        """Poll until the user has agreed. Unauthenticated if they refused; DeadlineExceeded if the code has expired."""
        address, interval = self._token_address(), code.interval_seconds
        deadline = self._clock() + code.lasts_seconds
        form = {"grant_type": DEVICE_GRANT, "device_code": code.device_code, "client_id": self._client_id}
        while self._clock() < deadline:
            self._sleep(interval)
            try:
                return _tokens(self._provider.post(address, form))
            except Unavailable:
                interval = min(2 * interval, LONGEST_INTERVAL_SECONDS)
            except ProviderRefused as error:
                if error.error == "slow_down":
                    interval += INTERVAL_SECONDS
                elif error.error == "expired_token":
                    break
                elif error.error != "authorization_pending":
                    raise Unauthenticated(str(error)) from error
        msg = "the code was not entered in time; `ipnext login` gives another one"
        raise DeadlineExceeded(msg)

    def renew(self, refresh: str) -> Tokens:
        """Get a new token for a refresh token. The result has the next refresh token. Unauthenticated; Unavailable."""
        form = {"grant_type": "refresh_token", "refresh_token": refresh, "client_id": self._client_id}
        try:
            found = _tokens(self._provider.post(self._token_address(), form))
        except ProviderRefused as error:
            msg = f"the login at {self._provider.issuer} has ended ({error}); `ipnext login` logs in again"
            raise Unauthenticated(msg) from error
        return found if found.refresh is not None else found._replace(refresh=refresh)

    def revoke(self, refresh: str) -> bool:
        """Revoke a refresh token at the provider. False if the provider has no revocation. Raises Unavailable."""
        address = self._endpoints().revocation
        if address is None:
            return False
        form = {"token": refresh, "token_type_hint": "refresh_token", "client_id": self._client_id}
        try:
            self._provider.post(address, form)
        except ProviderRefused as error:
            raise Unavailable(str(error)) from error
        return True

    def _endpoints(self) -> Endpoints:
        return self._provider.discover()

    def _token_address(self) -> str:
        address = self._endpoints().token
        if address is None:
            msg = f"the identity provider {self._provider.issuer} names no token endpoint"
            raise Unavailable(msg)
        return address


def _device_code(found: Mapping[str, Any]) -> DeviceCode:
    complete = found.get("verification_uri_complete")
    return DeviceCode(
        _text(found, "device_code"),
        make_printable(_text(found, "user_code")),
        _address(_text(found, "verification_uri")),
        None if complete is None else _address(str(complete)),
        min(_seconds(found.get("expires_in"), LONGEST_WAIT_SECONDS), LONGEST_WAIT_SECONDS),
        min(max(_seconds(found.get("interval"), INTERVAL_SECONDS), LEAST_INTERVAL_SECONDS), LONGEST_INTERVAL_SECONDS),
    )


def _tokens(found: Mapping[str, Any]) -> Tokens:
    access = _text(found, "access_token")
    refresh = found.get("refresh_token")
    if str(found.get("token_type", "")).lower() != "bearer" or not (access.isascii() and access.isprintable()):
        msg = "the identity provider gave a token that is no bearer token"
        raise Unavailable(msg)
    return Tokens(
        access, refresh if isinstance(refresh, str) else None, _seconds(found.get("expires_in"), LIFETIME_SECONDS)
    )


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    if isinstance(value, str) and value:
        return value
    msg = f"the identity provider's answer lacks {name!r}"
    raise Unavailable(msg)


def _address(text: str) -> str:
    """Return an address that may be printed and opened: http or https, no control characters."""
    if text.startswith(("https://", "http://")) and text.isascii() and text.isprintable() and " " not in text:
        return text
    msg = "the identity provider names an address to open that is neither https:// nor http://"
    raise Unavailable(msg)


def _seconds(value: Any, default: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(min(max(value, 0), 10**9)) if is_number else default
