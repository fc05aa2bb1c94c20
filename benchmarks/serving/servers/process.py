"""A server as a process of its own with all that it starts: started, awaited, its CPU time read, ended."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

from ipnext.infra.process.parent_death import tether

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class ServerProcess:
    """Its output goes to `log`. Ends with this process at the latest."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        log: Path,
        environment: Mapping[str, str],
        folder: Path,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.port = port
        self.log = log
        self._processes: dict[int, psutil.Process] = {}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **ONE_THREAD, **environment},
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=tether(),  # noqa: PLW1509 - started from the main thread, before others
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def wait(self, answers: Callable[[], bool], *, seconds: float = 60.0) -> Self:
        """Return once `answers` is true. RuntimeError with the log's end if the process ends or takes longer."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(OSError, httpx.TransportError):
                if answers():
                    self.look_again()
                    return self
            ended = self._process.poll()
            if ended is not None or time.monotonic() > deadline:
                lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
                msg = f"no answer (exit status {ended}): {(lines or ['its log is empty'])[-1][-300:]}"
                raise RuntimeError(msg)
            time.sleep(0.05)

    def cpu_seconds(self) -> float:
        """User and system time of the process and of those it had started when last looked at."""
        spent = 0.0
        for process in self._processes.values():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                spent += times.user + times.system
        return spent

    def end(self) -> None:
        """SIGTERM, and after three seconds SIGKILL to whatever of it is left."""
        self.look_again()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(list(self._processes.values()), timeout=3)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(10)

    def look_again(self) -> None:
        """Count the processes that it has started since, too."""
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self._process.pid)
            self._processes |= {process.pid: process for process in (own, *own.children(recursive=True))}
