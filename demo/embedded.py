"""The platform that the demo runs on: `ipnext dev` as a process of its own."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ipnext.errors import Unavailable
from ipnext.infra.process.parent_death import tether


class Embedded:
    """Starts `ipnext dev` on enter, ends it on exit. `endpoints` is its endpoints.json.

    `options` are further ones of that command.
    """

    def __init__(
        self, state: Path, *, options: Sequence[str] = (), on_wait: Callable[[str], None] = lambda _: None
    ) -> None:
        self.state = state
        self._options = options
        self.endpoints: Mapping[str, Any] = {}
        self.log = state / "dev.log"
        self._on_wait = on_wait
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.state.mkdir(parents=True, exist_ok=True)
        (self.state / "endpoints.json").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "ipnext.dev", "--state", str(self.state), "--free-ports", *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=tether(),  # noqa: PLW1509 - no other thread runs yet in this process
            )
        try:
            self._wait(limit_seconds=120)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """SIGTERM and wait: `ipnext dev` ends everything it started, once answers under way are finished."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()

    def _wait(self, *, limit_seconds: float) -> None:
        ready, deadline = self.state / "endpoints.json", time.monotonic() + limit_seconds
        while not ready.exists():
            ended = self._process.poll() if self._process else 1
            if ended is not None or time.monotonic() > deadline:
                end = "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])
                msg = f"the platform did not start (exit status {ended}); the end of {self.log}:\n{end}"
                raise Unavailable(msg)
            self._on_wait(self._last_line())
            time.sleep(0.1)
        self.endpoints = json.loads(ready.read_text())

    def _last_line(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return lines[-1][:100] if lines else ""
