"""Connections to the other hosts of a model, for a confined host, which opens no socket: its keeper makes them."""

import socket
from pathlib import Path
from typing import Final

from ipnext.components.caller_proof import proof_file, read_proof
from ipnext.components.host_directories import is_of_same_model
from ipnext.components.identity import Component
from ipnext.components.sockets import is_socket_url, socket_path
from ipnext.errors import Forbidden

CONNECT_SECONDS: Final = 0.5
"""Time limit of the kernel's part; a listener with room accepts at once."""


def reach_host(own: Path, url: str) -> tuple[socket.socket, str]:
    """Connect to the socket for routers of another host; return it and the proof of its callers.

    `own` is the directory of the host that asks. Forbidden for any place but that of a host of the same model in the
    same region: the host that asks may have been taken over. OSError.
    """
    run = own.parent
    path = Path(socket_path(url, Component.ROUTER)) if is_socket_url(url) else None
    if path is None or path != run / path.parent.name / f"{Component.ROUTER}.sock" or ".." in path.parts:
        msg = f"{url[:200]!r} is no host of this region; allowed: unix://{run}/HOST"
        raise Forbidden(msg, policy="components")
    if not is_of_same_model(own.name, path.parent.name):
        msg = f"{url[:200]!r} is no host of this model; allowed: those whose directories begin as {own.name!r}"
        raise Forbidden(msg, policy="components")
    link = socket.socket(socket.AF_UNIX)
    try:
        link.settimeout(CONNECT_SECONDS)
        link.connect(str(path))
        proof = read_proof(proof_file(path))
    except BaseException:
        link.close()
        raise
    return link, proof or ""
