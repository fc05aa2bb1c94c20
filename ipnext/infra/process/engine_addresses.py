"""Addresses of engines that a host may report: the router connects to them, and the host may have been taken over."""

import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ipnext.components.sockets import SCHEME, SUFFIX, is_socket_url
from ipnext.infra.process.ports import HIGHEST_PORT, LOOPBACK, LOWEST_PORT
from ipnext.model.deployment.host_control import HostState

ENGINE_SOCKETS = "e"
"""Directory of the engines' sockets in that of their host."""


@dataclass(frozen=True, slots=True)
class EngineAddresses:
    """Where the engines of one kind of host listen. Neither: its hosts answer by themselves."""

    sockets: bool = False
    """Whether it is on sockets in the directory of their host."""
    ports: bool = False
    """Whether it is on loopback ports."""

    def refusal(self, state: HostState, *, host: str) -> str | None:
        """Return which address the host at this URL may not report, and why; None if it may report all."""
        for held in (*state.ready, *state.loading):
            if held.url is not None and (why := self._why_not(held.url, host)) is not None:
                return f"the host reports an engine at {held.url[:200]!r}, {why}"
        return None

    def _why_not(self, url: str, host: str) -> str | None:
        if is_socket_url(url):
            if not self.sockets or not is_socket_url(host):
                return f"but its engines have no sockets; allowed: {self._describe_allowed(host)}"
            return _why_foreign(Path(url.removeprefix(SCHEME)), _own_directory(host), self._describe_allowed(host))
        if not self.ports or not _is_engine_port(url):
            return f"which is not its own; allowed: {self._describe_allowed(host)}"
        return None

    def _describe_allowed(self, host: str) -> str:
        places = [f"{host}/{ENGINE_SOCKETS}/NAME/NAME{SUFFIX}"] if self.sockets and is_socket_url(host) else []
        places += [f"http://{LOOPBACK}:{LOWEST_PORT}-{HIGHEST_PORT - 1}"] if self.ports else []
        return " and ".join(places) or "none"


def _own_directory(host: str) -> Path:
    return Path(host.removeprefix(SCHEME)) / ENGINE_SOCKETS


def _why_foreign(path: Path, own: Path, allowed: str) -> str | None:
    """Return why a socket is not one of an engine with a directory in `own`."""
    if path.suffix != SUFFIX or path.parent.parent != own or ".." in path.parts:
        return f"which is not its own; allowed: {allowed}"
    if not (_is(stat.S_ISDIR, own) and _is(stat.S_ISDIR, path.parent) and _is(stat.S_ISSOCK, path)):
        return "which leads elsewhere: it is a link, or no socket"
    return None


def _is(kind: Callable[[int], bool], path: Path) -> bool:
    """Return whether a path is of this kind and no link, or does not exist: its engine has just ended."""
    try:
        return kind(path.lstat().st_mode)
    except OSError:
        return True


def _is_engine_port(url: str) -> bool:
    """Return whether a URL is that of a loopback port for engines, and no more."""
    try:
        port = urlsplit(url).port
    except ValueError:
        return False
    return port is not None and LOWEST_PORT <= port < HIGHEST_PORT and url == f"http://{LOOPBACK}:{port}"
