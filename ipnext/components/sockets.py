"""Unix sockets between the components of one region on one machine.

A process listens in a private directory, which only its user may enter, on one socket for each kind of caller:
`agent.sock`, `router.sock`, `gateway.sock`. The directory proves the user, a file beside the socket that the caller is
not confined (`ipnext.components.caller_proof`), and the socket identifies the caller. URL: `unix://DIRECTORY`.
"""

import os
import socket
import struct
from pathlib import Path
from typing import Any, Final, Protocol

from ipnext.components.caller_proof import keep_proof, proof_file
from ipnext.components.identity import Component
from ipnext.components.private_files import make_private_directory
from ipnext.errors import Forbidden

SCHEME: Final = "unix://"
SUFFIX: Final = ".sock"
LONGEST_PATH: Final = 100
"""Bytes of a socket's path; the kernel allows 107."""
LONGEST_NAME: Final = len("/gateway.sock")
_CREDENTIALS: Final = struct.Struct("3i")


class _Socket(Protocol):
    def getsockopt(self, level: int, name: int, size: int, /) -> Any: ...


def socket_url(directory: Path) -> str:
    """Return the URL of a process that listens in this directory."""
    return f"{SCHEME}{directory}"


def is_socket_url(url: str) -> bool:
    """Return whether a URL is of Unix sockets."""
    return url.startswith(SCHEME)


def caller_url(url: str, caller: Component) -> str:
    """Return the URL by which `caller` reaches a process.

    That of a TCP port or of a single socket is the same for all.
    """
    if not is_socket_url(url) or url.endswith(SUFFIX):
        return url
    return f"{url}/{caller}{SUFFIX}"


def socket_path(url: str, caller: Component) -> str:
    """Return the path of the socket that `caller` connects to. `url` must be of sockets."""
    return caller_url(url, caller).removeprefix(SCHEME)


def split_url(url: str) -> tuple[str, str]:
    """Return the socket's path and the rest of a URL such as `unix:///run/h1/agent.sock/control/state`."""
    path, found, rest = url.removeprefix(SCHEME).partition(SUFFIX)
    return path + found, rest or "/"


def bind_socket(directory: Path, caller: Component) -> socket.socket:
    """Bind the socket of one kind of caller, in place of a former process's."""
    make_private_directory(directory)
    path = directory / f"{caller}{SUFFIX}"
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound.bind(str(path))
    path.chmod(0o600)
    return bound


def keep_caller_proof(url: str, caller: Component, proof: str | None = None) -> str:
    """Return the proof of one kind of caller at a process; create it if there is none, as `keep_proof` does.

    `url` must be of sockets. OSError.
    """
    path = Path(socket_path(url, caller))
    make_private_directory(path.parent)
    return keep_proof(proof_file(path), proof)


def check_peer(connection: _Socket) -> None:
    """Raise Forbidden unless the process at the other end runs as this process's user, or as root."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(raw)
    if user not in {0, os.geteuid()}:
        msg = f"user {user} may not call this component; allowed: user {os.geteuid()}"
        raise Forbidden(msg, policy="components")
