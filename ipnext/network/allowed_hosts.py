"""Host names and origins that a listener accepts: API, agents, routers, hosts and gateways check the same ones.

A page in a browser can have its name resolve to a loopback address (DNS rebinding) and would then have the same origin
as a listener there. Its requests still have its name in `Host`, and its origin in `Origin`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from ipnext.errors import ForeignOrigin, InvalidInput, MisdirectedRequest

_OCTET: Final = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_LOOPBACK: Final = rf"127\.{_OCTET}\.{_OCTET}\.{_OCTET}|\[::1\]|localhost"
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,252}[a-z0-9])?|\[[0-9a-f:.]{2,45}\]", re.IGNORECASE)
_ORIGIN: Final = re.compile(r"https?://([a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(:[0-9]{1,5})?", re.IGNORECASE)
_PORT: Final = "(:[0-9]*)?"
LOOPBACK_AUTHORITY: Final = f"(?i)({_LOOPBACK}){_PORT}"
"""Matches a whole `Host` that is a loopback address or localhost; Envoy accepts no larger one (100 instructions of
RE2)."""
_KNOWN: Final = 1024
"""Most accepted values of `Host` that are cached."""
_ALLOWED: Final = "a loopback address, localhost, a name of IPNEXT_ALLOWED_HOSTS"


@dataclass(frozen=True)
class AllowedHosts:
    """Names in addition to 127.0.0.0/8, [::1] and localhost, without a port: any port is allowed.

    Origins as `https://ui.example.com`. InvalidInput if a name or an origin has another form.
    """

    names: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    _known: set[str] = field(default_factory=set, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in self.names:
            if not _NAME.fullmatch(name):
                msg = (
                    f"allowed_hosts: {name!r} is no host name; allowed: names and addresses without a port, "
                    "IPv6 in brackets"
                )
                raise InvalidInput(msg, field="allowed_hosts", value=name)
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                msg = f"allowed_origins: {origin!r} is no origin; allowed: http://HOST[:PORT] and https://HOST[:PORT]"
                raise InvalidInput(msg, field="allowed_origins", value=origin)

    @cached_property
    def _authority(self) -> re.Pattern[str]:
        names = "".join(f"|{re.escape(name)}" for name in self.names)
        return re.compile(f"({_LOOPBACK}{names}){_PORT}", re.IGNORECASE | re.ASCII)

    @cached_property
    def _origins(self) -> frozenset[str]:
        return frozenset(origin.lower() for origin in self.origins)

    def check_host(self, host: str) -> None:
        """Raise MisdirectedRequest unless the value of `Host` names this machine or a configured name."""
        if host in self._known:
            return
        if not self._authority.fullmatch(host):
            msg = f"Host: {host[:100]!r} is not served here; allowed: {_ALLOWED}"
            raise MisdirectedRequest(msg, field="Host", value=host[:100])
        if len(self._known) < _KNOWN:
            self._known.add(host)

    def check_source(self, method: str, host: str, headers: Mapping[str, str]) -> None:
        """Raise ForeignOrigin if the request comes from a page of another origin.

        `headers` by lower-case names; `host` must be checked. A link that a user follows (a GET that opens a document)
        is not refused: the linking page does not see the answer.
        """
        origin = headers.get("origin")
        if origin is not None:
            if origin.lower() not in self._origins and not _same(origin, host):
                msg = (
                    f"Origin: {origin[:100]!r} is another origin than {host}; allowed: its own, IPNEXT_ALLOWED_ORIGINS"
                )
                raise ForeignOrigin(msg, field="Origin", value=origin[:100])
        elif headers.get("sec-fetch-site", "").lower() == "cross-site" and not opens_document(method, headers):
            msg = "Sec-Fetch-Site: 'cross-site': a page of another site asks; allowed: same-origin, none"
            raise ForeignOrigin(msg, field="Sec-Fetch-Site", value="cross-site")


def joined_headers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers by lower-case names. Values of one name are joined, so that none hides another from a check."""
    found: dict[str, str] = {}
    for name, value in pairs:
        key = name.lower()
        found[key] = f"{found[key]}, {value}" if key in found else value
    return found


def _same(origin: str, host: str) -> bool:
    scheme, separator, authority = origin.lower().partition("://")
    return bool(separator) and scheme in {"http", "https"} and authority == host.lower()


def opens_document(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether the user of a browser opens a page, so that no other page sees the answer.

    `headers` by lower-case names.
    """
    return (
        method == "GET"
        and headers.get("sec-fetch-mode", "").lower() == "navigate"
        and headers.get("sec-fetch-dest", "").lower() == "document"
    )
