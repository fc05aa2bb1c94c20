"""Loopback ports of the embedded platform: the configured ones, remembered with the state directory."""

import json
import socket
from collections.abc import Mapping
from pathlib import Path

from ipnext.errors import Conflict

HOST = "127.0.0.1"


class PortInUse(Conflict):
    """A port that the platform needs is taken."""

    code = "PortInUse"


def is_free(port: int) -> bool:
    """True where a server could listen on the port of the loopback interface now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def choose(wanted: Mapping[str, int | None], *, remembered: Path, free_ports: bool) -> Mapping[str, int]:
    """One port for each name, written to `remembered` so that a second start listens where the first did.

    `wanted` has the configured port, or None for an internal one. A configured port that is taken raises PortInUse
    that names all such, unless `free_ports` lets another one stand in.
    """
    former: Mapping[str, int] = json.loads(remembered.read_text()) if remembered.exists() else {}
    chosen: dict[str, int] = {}
    taken: list[str] = []
    for name, configured in wanted.items():
        port = former.get(name) or configured
        if port is not None and port not in chosen.values() and is_free(port):
            chosen[name] = port
        elif port is None or free_ports or configured is None:
            chosen[name] = free_port()
        else:
            taken.append(f"{port} ({name})")
    if taken:
        msg = (
            f"ports in use: {', '.join(taken)}; end the program that listens there, choose others in temporal-dev.yaml, "
            "or pass --free-ports to take free ones"
        )
        raise PortInUse(msg)
    remembered.write_text(json.dumps(chosen, indent=2))
    return chosen
