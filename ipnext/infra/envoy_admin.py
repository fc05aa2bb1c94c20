"""Envoy's admin endpoint, on a Unix socket that only this user may open: `POST /quitquitquit` ends a gateway."""

import shutil
import tempfile
from pathlib import Path

from ipnext.components.http_sessions import HttpSessions
from ipnext.components.sockets import LONGEST_PATH, SCHEME
from ipnext.infra.control import Control


class AdminSocket:
    """The admin socket and calls to it. If the path of `directory` is too long, the socket is in a temporary one."""

    def __init__(self, directory: Path, *, probe_seconds: float) -> None:
        self._temporary: Path | None = None
        self._directory = directory
        self._probe_seconds = probe_seconds
        self._session: HttpSessions | None = None

    @property
    def path(self) -> Path:
        """The path of the socket."""
        return (self._temporary or self._directory) / "admin.sock"

    def make_place(self) -> None:
        """Make the directory, for this user alone, and remove the socket of an Envoy that has ended."""
        if self._temporary is None and len(bytes(self._directory)) > LONGEST_PATH - len("/admin.sock"):
            self._temporary = Path(tempfile.mkdtemp(prefix="ipnext-envoy-"))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.parent.chmod(0o700)
        self.path.unlink(missing_ok=True)

    def adopt(self, path: Path) -> None:
        """Use the socket of a running Envoy that a former agent has started."""
        if path.parent != self._directory:
            self._temporary = path.parent

    async def call(self, method: str, path: str) -> bytes:
        """Make one call; return the body of a good answer. Raises Unavailable."""
        if self._session is None:
            self._session = HttpSessions()
        control = Control(self._session, probe_seconds=self._probe_seconds)
        return await control.call(method, f"{SCHEME}{self.path}/{path}")

    async def close(self) -> None:
        """Close the connections, and remove a temporary directory."""
        if self._session is not None:
            await self._session.aclose()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
