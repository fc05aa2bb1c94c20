"""Stored logins: the entry of a login in the credentials file, its renewal, and its end."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from ipnext.errors import Forbidden, Unauthenticated, Unavailable
from ipnext.login.credentials import (
    StoredCredential,
    changing,
    credentials_file,
    find_credential,
    find_entry,
    forget_credential,
    origin_of,
    write_entries,
)
from ipnext.login.device_flow import DeviceLogin, Tokens
from ipnext.login.identity_provider import ProviderClient, make_printable

BEFORE_END_SECONDS: Final = 60.0
"""A token is renewed this long before it expires, in seconds, or in the last quarter of its life if that is shorter."""

Clock = Callable[[], float]


class LoginTerms(NamedTuple):
    """What an API names for logins. The API gets tokens that are valid wherever tokens for this audience are."""

    issuer: str
    client_id: str
    audience: str

    def lines(self) -> Iterator[str]:
        """Yield a line for each, to be shown."""
        for name, value in zip(_TERMS, self, strict=True):
            yield f"  {name:17}  {make_printable(value)}"


_TERMS: Final = ("identity provider", "client", "audience")


def known_terms(url: str, file: Path | None = None) -> LoginTerms | None:
    """Return the terms of the stored login at an API; None if there is none."""
    entry = find_entry(url, file)
    found = [None if entry is None else entry.get(name) for name in LoginTerms._fields]
    return LoginTerms(*map(str, found)) if all(isinstance(value, str) for value in found) else None


def check_terms(named: LoginTerms, known: LoginTerms, *, api: str, since: str, remedy: str) -> None:
    """Raise Forbidden if the API at `api` names other terms than the known ones, with each that differs.

    Another platform that took over the address, or its administrator, could have tokens for an audience of its choice.
    """
    changes = [
        f"{name} {make_printable(now)!r}, {since} {make_printable(before)!r}"
        for name, now, before in zip(_TERMS, named, known, strict=True)
        if now != before
    ]
    if changes:
        msg = f"{api} names other terms for a login: {'; '.join(changes)}. {remedy}"
        raise Forbidden(msg, policy="login-terms")


@contextmanager
def login_at(issuer: str, client_id: str) -> Iterator[DeviceLogin]:
    """Open the device flow at a provider. InvalidInput if the issuer is neither https nor loopback."""
    provider = ProviderClient(issuer)
    try:
        yield DeviceLogin(provider, client_id)
    finally:
        provider.close()


def entry_of(terms: LoginTerms, tokens: Tokens, *, clock: Clock = time.time) -> Mapping[str, Any]:
    """Return the stored entry of a login."""
    ends = clock() + tokens.lasts_seconds
    return {
        "credential": tokens.access,
        "refresh_token": tokens.refresh,
        "expires_at": ends,
        "renew_at": ends - min(BEFORE_END_SECONDS, tokens.lasts_seconds / 4),
        **terms._asdict(),
    }


def current_credential(url: str, file: Path | None = None, *, clock: Clock = time.time) -> StoredCredential | None:
    """Return the credential for an API, renewed if it is about to expire; None if there is none.

    Unauthenticated if the login has ended; Unavailable if the provider does not answer and the token has expired.
    """
    entry = find_entry(url, file)
    if entry is None or not _is_ending(entry, clock()):
        return find_credential(url, file)
    with changing(credentials_file(file)) as entries:
        found = entries.get(origin_of(url))
        if not isinstance(found, Mapping):
            return None
        if _is_ending(found, clock()):  # no other process has renewed it since
            write_entries(credentials_file(file), entries)  # or fail, while the refresh token is unused
            found = _renew_login(found, clock)
            entries[origin_of(url)] = dict(found)
        return StoredCredential(str(found["credential"]), is_of_platform=False)


def end_login(url: str, file: Path | None = None) -> tuple[bool, str]:
    """Delete the stored entry for an API, and revoke its refresh token.

    Return whether there was one, and a message for the user: what became of the token, or of the key of `ipnext dev`.
    """
    entry = forget_credential(url, file)
    if entry is None:
        return False, ""
    if not _can_renew(entry):
        return True, _key_of_platform(entry, url, file)
    revoked = _revoke(entry)
    return True, revoked or _key_of_platform(entry, url, file)


def _key_of_platform(forgotten: Mapping[str, Any], url: str, file: Path | None) -> str:
    """Return how the key of `ipnext dev` is used now that an entry is deleted; empty if there is none."""
    key_file = forgotten.get("key_file")
    if isinstance(key_file, str):
        return f"the key of `ipnext dev` is still in {key_file}; `ipnext login --key < {key_file}` uses it again"
    found = find_credential(url, file)
    return "the key of `ipnext dev` is used again" if found is not None and found.is_of_platform else ""


def _revoke(entry: Mapping[str, Any]) -> str:
    """Revoke the refresh token of an entry. Return why that was not possible, or an empty text."""
    try:
        with login_at(str(entry["issuer"]), str(entry["client_id"])) as login:
            revoked = login.revoke(str(entry["refresh_token"]))
    except Unavailable as error:
        return f"the refresh token was not revoked: {error.message}"
    return "" if revoked else "the identity provider offers no revocation; the refresh token ends by itself"


def _renew_login(entry: Mapping[str, Any], clock: Clock) -> Mapping[str, Any]:
    terms = LoginTerms(*(str(entry.get(name)) for name in LoginTerms._fields))
    try:
        if not _can_renew(entry):
            msg = (
                f"the login at {terms.issuer} has ended, and the provider gave no refresh token; "
                "`ipnext login` logs in again"
            )
            raise Unauthenticated(msg)  # noqa: TRY301 - ends like a refusal
        with login_at(terms.issuer, terms.client_id) as login:
            return entry_of(terms, login.renew(str(entry["refresh_token"])), clock=clock)
    except (Unauthenticated, Unavailable):
        if clock() < entry["expires_at"]:
            return entry
        raise


def _is_ending(entry: Mapping[str, Any], now: float) -> bool:
    renew_at = entry.get("renew_at")
    return isinstance(renew_at, int | float) and now >= renew_at


def _can_renew(entry: Mapping[str, Any]) -> bool:
    return all(isinstance(entry.get(name), str) for name in ("refresh_token", *LoginTerms._fields))
