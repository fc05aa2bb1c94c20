"""Loopback ports of the embedded platform: the configured ones, remembered with the state directory."""

from collections.abc import Mapping
from pathlib import Path

from ipnext.errors import Conflict
from ipnext.infra.process.ports import PortBook, is_free, reserve


class PortInUse(Conflict):
    """A port that the platform needs is taken."""

    code = "PortInUse"


def choose(wanted: Mapping[str, int | None], *, remembered: Path, free_ports: bool) -> Mapping[str, int]:
    """Choose one port for each name, written to `remembered` so that the next start uses the same ones.

    `wanted` has the configured port, or None for an internal one. Taken configured ports raise PortInUse, which names
    all of them, unless `free_ports` allows replacing them.
    """
    book = PortBook(remembered)
    ports = {name: book.recall(name) or configured for name, configured in wanted.items()}
    taken = {name: port for name, port in ports.items() if port is not None and not _take(port)}
    public = [f"{port} ({name})" for name, port in taken.items() if wanted[name] is not None]
    if public and not free_ports:
        msg = (
            f"ports in use: {', '.join(public)}; end the program that listens there, choose other ports in "
            "temporal-dev.yaml, or pass --free-ports to take free ones"
        )
        raise PortInUse(msg)
    for name, port in ports.items():
        if port is not None:
            book.remember(name, port)
    return {name: book.port(name) for name in wanted}


def _take(port: int) -> bool:
    """Reserve the port for this process; False if a process listens there or another platform has reserved it."""
    return is_free(port) and reserve(port)
