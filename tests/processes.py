"""What processes under test run, and whether they have ended: each may end while one looks."""

import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpcore
import httpx
import psutil

from ipnext.components.caller_proof import proof_file, read_proof
from ipnext.names import PROOF_HEADER


def command_line(process: psutil.Process) -> str:
    """Empty of one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def runs(process: psutil.Process) -> bool:
    """Whether it runs still; one that has ended but was not waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stopped(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Stop them, so that none ends unless it is killed, and return those that had not ended by then."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
            found.append(process)
    return found


def gone(processes: Iterable[psutil.Process]) -> bool:
    """Whether none of them runs any more."""
    return not any(runs(process) for process in processes)


def accepts(path: Path) -> bool:
    """Whether someone listens on a Unix socket: its file is there a moment before that."""
    with socket.socket(socket.AF_UNIX) as one:
        return one.connect_ex(str(path)) == 0


class _Probing(httpcore.SyncBackend):
    """Connects only where someone listens: httpcore leaves a Unix socket open whose connection was refused."""

    def connect_unix_socket(self, path: str, *arguments: Any, **options: Any) -> httpcore.NetworkStream:
        if not accepts(Path(path)):
            msg = f"nobody listens on {path}"
            raise httpcore.ConnectError(msg)
        return super().connect_unix_socket(path, *arguments, **options)


class _Proving(httpx.HTTPTransport):
    """Proves itself as the callers of a socket do, if that asks for a proof."""

    def __init__(self, path: str) -> None:
        super().__init__(uds=path)
        self._proof = proof_file(Path(path))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        proof = read_proof(self._proof)
        if proof is not None:
            request.headers.setdefault(PROOF_HEADER, proof)
        return super().handle_request(request)


def unix_transport(path: str) -> httpx.HTTPTransport:
    """For a client of a server on a Unix socket, with the proof of its callers."""
    transport = _Proving(path)
    transport._pool._network_backend = _Probing()
    return transport


def client_of(process: psutil.Process, *, caller: str = "agent") -> httpx.Client:
    """A client of a router, host or engine, by its command line: at its port, or at its socket for such a caller."""
    words = process.cmdline()
    if "--port" in words:
        base = f"http://127.0.0.1:{words[words.index('--port') + 1]}"
        return httpx.Client(base_url=base, trust_env=False, timeout=120)
    path = (
        words[words.index("--uds") + 1] if "--uds" in words else f"{words[words.index('--sockets') + 1]}/{caller}.sock"
    )
    return httpx.Client(base_url="http://localhost", transport=unix_transport(path), timeout=120)


def get_from(process: psutil.Process, path: str, *, caller: str = "agent") -> httpx.Response:
    """What it answers."""
    with client_of(process, caller=caller) as client:
        return client.get(path)
