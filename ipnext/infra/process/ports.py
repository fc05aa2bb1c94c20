"""Picks free loopback ports and remembers them by name, so that a restart finds the same ones.

Some seconds pass before a process listens on a picked port. So that two platforms that start at the same time never
pick the same one, the picking process locks it (a file in the temporary directory) until it ends or releases the port.
"""

import fcntl
import json
import os
import secrets
import socket
import tempfile
from collections.abc import Collection
from pathlib import Path

from ipnext.components.private_files import make_own_directory
from ipnext.infra.process.atomic_file import replace_file

LOOPBACK = "127.0.0.1"
LOWEST_PORT = 20_000
HIGHEST_PORT = 32_000


class PortBook:
    """Ports by name, in a JSON file. A name keeps its port as long as no other process listens there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ports: dict[str, int] = _read(path)

    def port(self, name: str) -> int:
        """Return the port of `name`: the remembered one if it is free, else a new one."""
        remembered = self._ports.get(name)
        if remembered is not None and is_free(remembered) and reserve(remembered):
            return remembered
        taken = set(self._ports.values())
        port = free_port(beside=taken)
        self.remember(name, port)
        return port

    def remember(self, name: str, port: int) -> None:
        """Remember a port that was chosen elsewhere."""
        if self._ports.get(name) != port:
            self._ports[name] = port
            self._write()

    def adopt(self, name: str, port: int) -> None:
        """Reserve the port of a running process."""
        reserve(port)
        self.remember(name, port)

    def recall(self, name: str) -> int | None:
        """Return the remembered port, free or not."""
        return self._ports.get(name)

    def forget(self, name: str) -> None:
        """Release the port of `name`."""
        port = self._ports.pop(name, None)
        if port is not None:
            release(port)
            self._write()

    def _write(self) -> None:
        replace_file(self._path, json.dumps(self._ports, indent=1, sort_keys=True).encode())


def is_free(port: int) -> bool:
    """Return whether no process listens on this loopback port. Connections that are still closing do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


_RESERVED: dict[int, int] = {}
"""Port -> descriptor of the locked file, for all ports that this process has reserved."""


def reserve(port: int) -> bool:
    """Reserve this port against other processes of IPnext. False if one of them has reserved it.

    The lock ends with `release`, or with the process however that ends.
    """
    if port in _RESERVED:
        return True
    directory = Path(tempfile.gettempdir()) / f"ipnext-ports-{os.geteuid()}"
    make_own_directory(directory, otherwise="set TMPDIR to a directory of your own")
    descriptor = os.open(directory / str(port), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    _RESERVED[port] = descriptor
    return True


def release(port: int) -> None:
    """Release a reserved port; do nothing if it is not reserved."""
    descriptor = _RESERVED.pop(port, None)
    if descriptor is not None:
        os.close(descriptor)


def free_port(*, beside: Collection[int] = ()) -> int:
    """Return a free port, reserved until this process ends, that is not in `beside`."""
    return next(port for port in iter(_any_free_port, 0) if port not in beside and reserve(port))


def _any_free_port() -> int:
    """Return a free port below the kernel's range for outgoing connections."""
    while True:
        port = LOWEST_PORT + secrets.randbelow(HIGHEST_PORT - LOWEST_PORT)
        if is_free(port):
            return port


def _read(path: Path) -> dict[str, int]:
    try:
        return {str(name): int(port) for name, port in json.loads(path.read_bytes()).items()}
    except (FileNotFoundError, ValueError, AttributeError):
        return {}
