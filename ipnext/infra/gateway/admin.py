"""Envoy's admin endpoint, on a Unix socket that only this user may open, with a proof in each call's path.

Envoy asks no caller for a proof, but compares whole paths with those that it may answer. It does not answer other
paths, such as `/quitquitquit`, which ends a gateway.
"""

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ipnext.components.caller_proof import keep_proof
from ipnext.components.http_sessions import HttpSessions
from ipnext.components.sockets import LONGEST_PATH, SCHEME
from ipnext.errors import Unavailable
from ipnext.infra.control import Control
from ipnext.infra.envoy.openai_config import Json

PROOF_FILE: Final = "admin.proof"
CALLS: Final = ("stats", "healthcheck/fail", "drain_listeners")


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

    @property
    def call_matchers(self) -> Sequence[Json]:
        """The calls that Envoy answers, as matchers of paths."""
        mark = re.escape(f"?{self._mark}")
        words = "|".join(CALLS)
        return [{"safe_regex": {"regex": f"/({words}){mark}(&.*)?"}}]

    @property
    def _mark(self) -> str:
        return f"proof={keep_proof(self._directory / PROOF_FILE)}"

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

    async def call(self, method: str, name: str, query: str = "") -> bytes:
        """Make one of CALLS; return the body of a good answer. Raises Unavailable."""
        if self._session is None:
            self._session = HttpSessions()
        control = Control(self._session, probe_seconds=self._probe_seconds)
        more = f"&{query}" if query else ""
        mark = self._mark
        try:
            return await control.call(method, f"{SCHEME}{self.path}/{name}?{mark}{more}")
        except Unavailable as error:  # its text gets into logs and answers
            raise Unavailable(error.message.replace(mark, "proof=...")) from None

    async def close(self) -> None:
        """Close the connections, and remove a temporary directory."""
        if self._session is not None:
            await self._session.aclose()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
