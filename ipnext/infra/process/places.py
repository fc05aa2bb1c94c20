"""Addresses of a region's processes: Unix sockets, in a directory for each process, or loopback ports."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ipnext.components.caller_proof import keep_proof
from ipnext.components.host_directories import LETTERS, name_host_directory
from ipnext.components.private_files import let_group_enter, make_own_directory
from ipnext.components.sockets import LONGEST_NAME, LONGEST_PATH, is_socket_url, socket_url
from ipnext.infra.process.ports import LOOPBACK, PortBook, release

KEY_FILE: Final = "places.key"
"""File in the agent's directory with the key of the names of hosts' directories."""


class ProcessAddresses:
    """Chooses an address for each process by its name, which keeps it over restarts."""

    def __init__(self, directory: Path, ports: PortBook, *, group: int | None = None) -> None:
        """`directory` is the agent's.

        Its sockets are in `run` below it, or in a temporary directory if that path is too long. `group` is the group of
        hosts that run as another user, which call each other.
        """
        self._group = group
        self._key_file = directory / KEY_FILE
        self._run = run_directory(directory)
        self._ports = ports

    def choose(self, name: str, command: Sequence[str], *, sockets: str | None = None, model: str | None = None) -> str:
        """Return the URL for a process of this command: Unix sockets unless the command names only the field `port`.

        `sockets` names the directory, if not `name`; `model` is that of a host, which hosts of the same model may call.
        Conflict if the directory belongs to another user. OSError.
        """
        text = " ".join(command)
        if "{port}" in text and "{sockets}" not in text:
            return f"http://{LOOPBACK}:{self._ports.port(name)}"
        make_own_directory(self._run, otherwise="give the agent a --state with a shorter path")
        if self._group is not None:
            let_group_enter(self._run, self._group)
        if model is None:
            return socket_url(self._run / sha256((sockets or name).encode()).hexdigest()[:LETTERS])
        return socket_url(self._run / name_host_directory(keep_proof(self._key_file), model=model, host=name))

    def adopt(self, name: str, url: str) -> None:
        """Keep the address of a running process."""
        if not is_socket_url(url):
            self._ports.adopt(name, urlsplit(url).port or 0)

    def forget(self, name: str, url: str) -> None:
        """Release the address of `name`; its process has ended."""
        self._ports.forget(name)
        if is_socket_url(url):
            self.release(url)

    def close(self) -> None:
        """Remove the sockets' directory; all processes that listened there must have ended."""
        shutil.rmtree(self._run, ignore_errors=True)

    def release(self, url: str) -> None:
        """Release one of several addresses of a name."""
        if is_socket_url(url):
            shutil.rmtree(url.removeprefix("unix://"), ignore_errors=True)
        else:
            release(urlsplit(url).port or 0)


def run_directory(directory: Path) -> Path:
    """Return the sockets' directory for an agent's state directory. The next agent gets the same one."""
    run = directory / "run"
    if len(bytes(run)) + 1 + LETTERS + LONGEST_NAME <= LONGEST_PATH:
        return run
    name = sha256(bytes(directory)).hexdigest()[:LETTERS]
    return Path(tempfile.gettempdir()) / f"ipnext-run-{os.geteuid()}-{name}"


def address_fields(url: str) -> Mapping[str, str]:
    """Return the fields `port` and `sockets` of a command, one of them from the URL."""
    if is_socket_url(url):
        return {"sockets": url.removeprefix("unix://"), "port": ""}
    return {"port": str(urlsplit(url).port or 0), "sockets": ""}
