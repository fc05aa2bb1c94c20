"""The platform under test: `ipnext dev` in a directory of its own, and its processes by role.

`python -m tests.nemesis.stack ARGUMENTS` is `ipnext dev` whose supervisor waits half a second at most before a restart:
a run kills one process many times, and the ten seconds that a crash loop gets would only make it long.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil

from ipnext.components.settings import ComponentSettings
from ipnext.dev import children
from ipnext.infra.process.parent_death import tether
from ipnext.infra.settings import HOST_COMMAND, ROUTER_COMMAND
from tests.processes import command_line
from tests.waiting import PATIENCE_SECONDS, until

ROOT = Path(__file__).parents[2]
ROLES: Mapping[str, tuple[str, ...]] = {
    "worker": ("workflows.worker",),
    "workers": ("workflows.worker",),
    "api": (" ipnext.api",),
    "temporal": ("temporal", "server start-dev"),
    "agent": ("ipnext.infra.agent", "--region"),
    "supervisor": ("ipnext.infra.supervisor_process", "--state"),
    "envoy": ("envoy", "--config-path"),
    "router": ("serving.router", "--port"),
    "host": ("serving.host", "--port"),
}
CONTROL_PLANE = ("worker", "api", "temporal")
EVERY_ONE = frozenset({"workers"})
"""Roles whose processes are struck together."""
WORKERS = 2
TCP = {
    f"IPNEXT_AGENT_{name}_COMMAND": json.dumps(
        [word.replace("sockets}", "port}").replace("--sockets", "--port") for word in words]
    )
    for name, words in (("HOST", HOST_COMMAND), ("ROUTER", ROUTER_COMMAND))
}
"""Hosts and routers on ports, whose packets the kernel can swallow; Unix sockets have none."""


class Stack:
    """`ipnext dev` as a process.

    `pinned` are the places where a worker may be told to kill itself, as ACTIVITY:POINT.
    """

    def __init__(self, state: Path, pinned: tuple[str, ...] = ()) -> None:
        self.state = state
        state.mkdir(parents=True, exist_ok=True)
        self.log = state / "dev.log"
        self._pinned = pinned
        self._struck = state / "struck"
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoints: Mapping[str, Any] = {}

    def start(self) -> None:
        """Start it and wait until all is ready."""
        for place in self._pinned:
            self._file(place).touch()
        faults = {"IPNEXT_FAULT": ",".join(self._pinned), "IPNEXT_FAULT_ONCE": str(self._struck)}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nemesis.stack", "--state", str(self.state), "--free-ports"],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=tether(),  # noqa: PLW1509 - no other thread forks here
                env={
                    **os.environ,
                    "IPNEXT_REPLAN_DELAY_SECONDS": "1",
                    "IPNEXT_DEV_WORKERS": str(WORKERS),
                    "IPNEXT_ARTIFACT_ROOTS": json.dumps([str(self.state.parent / "snapshots")]),  # of the sources
                    **TCP,
                    **(faults if self._pinned else {}),
                },
            )
        ready = self.state / "endpoints.json"
        until(lambda: self._alive() and ready.exists(), why=lambda: self.log.read_text()[-3000:])
        self.endpoints = json.loads(ready.read_text())

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(PATIENCE_SECONDS)

    def arm(self, place: str) -> None:
        """Let the worker kill itself the next time it comes to a place."""
        self._file(place).unlink()

    def struck(self, place: str) -> bool:
        """Whether it has, since the place was armed."""
        return self._file(place).exists()

    def disarm(self, place: str) -> None:
        """Let it be."""
        self._file(place).touch()

    def processes(self) -> list[psutil.Process]:
        """Everything below `ipnext dev`, itself included."""
        assert self._process is not None
        try:
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def found(self, role: str, region: str | None = None) -> list[psutil.Process]:
        """The living processes of a role, of one region where one is given, oldest first."""
        words = (*ROLES[role], region or "")
        lines = [(process, command_line(process)) for process in self.processes()]
        return [process for process, line in lines if all(word in line for word in words)]

    def names(self, role: str) -> list[str]:
        """Names that `ipnext dev` gives to the processes of a role of the control plane."""
        return [f"worker-{number}" for number in range(1, WORKERS + 1)] if role == "worker" else [role]

    def process_of(self, name: str) -> psutil.Process | None:
        """The process of a name, once it is ready; None if there is none."""
        if not name.startswith("worker"):
            return next(iter(self.found(name)), None)
        try:
            return psutil.Process(int((self.state / f"{name}.ready").read_text()))
        except (OSError, ValueError, psutil.NoSuchProcess):
            return None

    @property
    def agents(self) -> Mapping[str, str]:
        """Region -> URL of its agent."""
        ports = json.loads((self.state / "ports.json").read_text())
        return {n.split()[1]: f"https://127.0.0.1:{p}" for n, p in ports.items() if n.startswith("agent ")}

    @property
    def components(self) -> ComponentSettings:
        """What the control plane proves itself to the agents with."""
        place = self.state / "certificates" / "control-plane"
        names = {"certificate": "certificate", "key": "key", "ca": "ca"}
        return ComponentSettings(**{f"component_{name}_file": place / f"{file}.pem" for name, file in names.items()})

    def ports(self, link: str, region: str | None = None) -> list[int]:
        """The ports of a link: temporal, api, agent, router or hosts."""
        if region is None:
            return [json.loads((self.state / "ports.json").read_text())[link]]
        if link == "agent":
            return [json.loads((self.state / "ports.json").read_text())[f"agent {region}"]]
        book = json.loads((self.state / "regions" / region / "ports.json").read_text())
        if link == "router":
            return [book["router"]]
        return [port for name, port in book.items() if name not in {"router", "gateway"}]

    def control_ready(self) -> bool:
        """Whether API and Temporal answer and every worker lives and serves its queues."""
        try:
            answer = httpx.get(self.endpoints["api"] + "/readyz", timeout=2, trust_env=False)
            pids = {int(file.read_text()) for file in self.state.glob("worker-*.ready")}
        except (httpx.HTTPError, OSError, ValueError):
            return False
        up = answer.status_code == 200 and answer.json()["temporal"] == "ok"
        workers = {process.pid for process in self.found("worker")}
        return up and len(workers) == WORKERS and workers <= pids

    def _file(self, place: str) -> Path:
        name = place.replace(":", ".")
        return self._struck.with_name(f"struck.{name}") if len(self._pinned) > 1 else self._struck

    def _alive(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-3000:]
        return True


if __name__ == "__main__":
    from ipnext.dev.__main__ import main
    from tests.nemesis.builds import start_children_as_marked

    children.LONGEST_BACKOFF_SECONDS = 0.5
    start_children_as_marked(Path(sys.argv[sys.argv.index("--state") + 1]))
    sys.exit(main())
