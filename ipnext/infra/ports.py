"""Picks free loopback ports and remembers them by name, so that a restart finds the same ones."""

import json
import secrets
import socket
from pathlib import Path

from ipnext.infra.atomic_file import replace_file

LOOPBACK = "127.0.0.1"
LOWEST_PORT = 20_000
HIGHEST_PORT = 32_000


class PortBook:
    """Ports by name, kept in a JSON file. A name keeps its port for as long as nobody else listens there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ports: dict[str, int] = _read(path)

    def port(self, name: str) -> int:
        """The port of `name`: the remembered one where it is free, else a new one."""
        remembered = self._ports.get(name)
        if remembered is not None and is_free(remembered):
            return remembered
        taken = set(self._ports.values())
        port = next(port for port in iter(_any_free_port, 0) if port not in taken)
        self.remember(name, port)
        return port

    def remember(self, name: str, port: int) -> None:
        """Note a port that was chosen elsewhere."""
        if self._ports.get(name) != port:
            self._ports[name] = port
            self._write()

    def known(self, name: str) -> int | None:
        """The remembered port, free or not."""
        return self._ports.get(name)

    def forget(self, name: str) -> None:
        """Give the port of `name` back."""
        if self._ports.pop(name, None) is not None:
            self._write()

    def _write(self) -> None:
        replace_file(self._path, json.dumps(self._ports, indent=1, sort_keys=True).encode())


def is_free(port: int) -> bool:
    """Whether nobody listens on this loopback port. Connections that are still closing do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _any_free_port() -> int:
    """A free port below the range from which the kernel takes ports for outgoing connections."""
    while True:
        port = LOWEST_PORT + secrets.randbelow(HIGHEST_PORT - LOWEST_PORT)
        if is_free(port):
            return port


def _read(path: Path) -> dict[str, int]:
    try:
        return {str(name): int(port) for name, port in json.loads(path.read_bytes()).items()}
    except (FileNotFoundError, ValueError, AttributeError):
        return {}
