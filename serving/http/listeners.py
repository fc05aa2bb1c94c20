"""Listeners of host and router: a loopback port for any caller, or Unix sockets with one kind of caller each."""

import argparse
import asyncio
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ipnext.components.authorisation import authorise
from ipnext.components.caller_proof import check_proof
from ipnext.components.identity import Component
from ipnext.components.private_files import let_group_enter
from ipnext.components.sockets import bind_socket, check_peer, keep_caller_proof, socket_url
from ipnext.errors import Forbidden


@dataclass(frozen=True)
class SocketGuard:
    """Admits the callers of one Unix socket to their routes."""

    listener: Component
    caller: Component
    proof: str

    def check_connection(self, transport: asyncio.BaseTransport) -> None:
        """Raise Forbidden if the connection is from another user of the machine."""
        connection = transport.get_extra_info("socket")
        if connection is None:
            msg = "the connection has no socket, so that its user is not known"
            raise Forbidden(msg, policy="components")
        check_peer(connection)

    def check(self, path: str, proof: str | None) -> None:
        """Raise Forbidden if the caller does not prove itself, or the path is not for it."""
        check_proof(self.proof, proof)
        authorise(self.listener, self.caller, path)


@dataclass(frozen=True)
class Listener:
    """A bound socket, and the guard of its connections. If None, any caller may use any route."""

    socket: socket.socket
    guard: SocketGuard | None = None

    @property
    def address(self) -> str:
        """Port or path, for a log."""
        name = self.socket.getsockname()
        return name if isinstance(name, str) else str(name[1])


def share_sockets(bound: Sequence[Listener], caller: Component, *, group: int) -> None:
    """Let the processes of a group call as `caller`, and as no other. Ports stay unchanged."""
    for listener in bound:
        if listener.guard is not None:
            path = Path(listener.address)
            let_group_enter(path.parent, group)
            if listener.guard.caller is caller:
                os.chown(path, -1, group)
                path.chmod(0o660)


def listen(port: int) -> socket.socket:
    """Return a listening socket on 127.0.0.1; port 0 takes a free one."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener


def add_listener(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `listeners`."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--port", type=int, help="port on 127.0.0.1, where any process of the machine may call")
    where.add_argument(
        "--sockets", type=Path, metavar="DIR", help="directory for Unix sockets, one for each kind of caller"
    )


def listeners(arguments: argparse.Namespace, component: Component, callers: Sequence[Component]) -> Sequence[Listener]:
    """Bind the listeners of the command line. OSError."""
    if arguments.sockets is None:
        return (Listener(listen(arguments.port)),)
    directory: Path = arguments.sockets
    return tuple(_listen_guarded(directory, component, caller) for caller in callers)


def _listen_guarded(directory: Path, component: Component, caller: Component) -> Listener:
    proof = keep_caller_proof(socket_url(directory), caller)
    return Listener(bind_socket(directory, caller), SocketGuard(component, caller, proof))
