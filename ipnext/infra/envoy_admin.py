"""Envoy's admin endpoint, on a Unix socket that only this user may open: `POST /quitquitquit` ends a gateway."""

import shutil
import tempfile
from pathlib import Path
from typing import Final

import aiohttp

from ipnext.infra.control import Control

_LONGEST_PATH: Final = 100
"""Bytes; the kernel takes 107."""


class AdminSocket:
    """Where Envoy listens, and calls to it. If `directory` has too long a path, the socket is in a temporary one."""

    def __init__(self, directory: Path, *, probe_seconds: float) -> None:
        self._temporary: Path | None = None
        self._directory = directory
        self._probe_seconds = probe_seconds
        self._session: aiohttp.ClientSession | None = None

    @property
    def path(self) -> Path:
        """The path of the socket."""
        return (self._temporary or self._directory) / "admin.sock"

    def make_place(self) -> None:
        """Make the directory, for this user alone, and remove the socket of an Envoy that has ended."""
        if self._temporary is None and len(bytes(self._directory)) > _LONGEST_PATH - len("/admin.sock"):
            self._temporary = Path(tempfile.mkdtemp(prefix="ipnext-envoy-"))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.parent.chmod(0o700)
        self.path.unlink(missing_ok=True)

    def adopt(self, path: Path) -> None:
        """Call the Envoy that listens there already: a former agent has started it."""
        if path.parent != self._directory:
            self._temporary = path.parent

    async def call(self, method: str, path: str) -> bytes:
        """Make one call; return the body of a good answer. Unavailable."""
        if self._session is None:
            connector = aiohttp.UnixConnector(str(self.path))
            self._session = aiohttp.ClientSession(connector=connector, trust_env=False)
        control = Control(self._session, probe_seconds=self._probe_seconds)
        return await control.call(method, f"http://localhost/{path}")

    async def close(self) -> None:
        """Close the connections, and remove a temporary directory."""
        if self._session is not None:
            await self._session.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
