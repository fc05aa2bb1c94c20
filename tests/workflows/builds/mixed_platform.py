"""A whole platform of real processes, each of this or of the next build.

API, workers, and regions with agent, router and hosts.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import httpx
import psutil

from ipnext.devfile import read_devfile
from ipnext.infra.process.ports import free_port
from ipnext.login.credentials import note_credential
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import ReplicaPhase
from ipnext.model.wire import decode
from ipnext.platform.admin import create_admin_key
from tests.forked_programs import Fork, ForkServer, start_interpreter
from tests.processes import command_line
from tests.waiting import PATIENCE_SECONDS, until

Build = Literal["this", "next"]
THIS = Path(sys.executable)
API, AGENT_PROGRAM = "ipnext.api", "ipnext.infra.agent"
AGENT, FORK_SERVER = "agent-", "ipnext.infra.process.fork_server_process"
PATIENT = {f"IPNEXT_AGENT_{name}_SECONDS": "600" for name in ("UNANSWERED", "HUNG", "GATEWAY_HUNG", "CONFIRM")}
"""A process that gets no processor for a while is not taken for one that hangs."""


class MixedRegion:
    """One region: what its agent and its processes are."""

    def __init__(self, name: str, root: Path, pythons: Mapping[Build, Path], **environment: str) -> None:
        """`environment`: of its agent, beyond that of the platform."""
        self.name = name
        self.state = root / name
        self.agent_port, self.gateway_port = free_port(), free_port()
        self.agent, self.gateway = (f"http://127.0.0.1:{port}" for port in (self.agent_port, self.gateway_port))
        self.environment = environment
        self._pythons = pythons

    def answers(self) -> RegionState | None:
        """The region as its agent sees it, once its gateway answers."""
        with suppress(httpx.TransportError):
            answer = httpx.get(f"{self.agent}/state", trust_env=False, timeout=60)
            return decode(RegionState, answer.content) if answers(f"{self.gateway}/v2/health/live") else None
        return None

    @property
    def observed(self) -> RegionState:
        """The region as its agent sees it."""
        state = self.answers()
        assert state is not None
        return state

    def serving(self) -> int:
        """Replicas that answer for a generation."""
        return len([one for one in self.observed.replicas if one.phase is ReplicaPhase.RUNNING and one.ready])

    def processes(self, word: str) -> list[psutil.Process]:
        """Those below the supervisor with this word in their command line."""
        found = json.loads((self.state / "supervisor.json").read_text())
        family = psutil.Process(found["pid"]).children(recursive=True)
        return [process for process in family if word in (line := command_line(process)) and FORK_SERVER not in line]

    def builds_of(self, word: str) -> set[Build]:
        """The builds that processes with this word in their command line are of."""
        return {self.built(process) for process in self.processes(word)}

    def built(self, process: psutil.Process) -> Build:
        """The build that a process is of."""
        return "next" if str(self._pythons["next"]) in command_line(process) else "this"

    def forked(self, process: psutil.Process) -> bool:
        """Whether a process was forked: its command line is then one text, its title."""
        return b"\0" not in Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0")

    def fork_servers(self) -> int:
        """How many fork servers have been ready, one after the other."""
        return (self.state / "logs" / "supervisor.log").read_text().count("fork server ready")


class MixedPlatform:
    """Processes by name. What listens is started again on the same port, as either build."""

    def __init__(
        self, root: Path, pythons: Mapping[Build, Path], temporal_address: str, regions: Sequence[MixedRegion]
    ) -> None:
        self.root = root
        self.regions = {region.name: region for region in regions}
        self._pythons = pythons
        self.url = f"sqlite:///{root}/ipnext.db"
        self._api = free_port()
        self._running: dict[str, subprocess.Popen[bytes] | Fork] = {}
        self._forks = ForkServer((API, AGENT_PROGRAM))
        """Of this build's APIs and agents: an interpreter for each takes seconds of processor time."""
        self.api = f"http://127.0.0.1:{self._api}"
        self._artifacts = f"file://{root}/artifacts"
        self._peers = root / "peers.json"
        self._peers.write_text(json.dumps({region.name: region.gateway for region in regions}))
        self._environment = {
            **os.environ,
            **PATIENT,
            **read_devfile().worker_settings(),
            "IPNEXT_DATABASE_URL": self.url,
            "IPNEXT_ARTIFACTS_URI": self._artifacts,
            "IPNEXT_API_PORT": str(self._api),
            "IPNEXT_AGENTS": json.dumps({region.name: region.agent for region in regions}),
            "IPNEXT_COMPONENT_AUTHENTICATION": "none",
            # Hosts of the next build note what they wrote: tests/workflows/builds/next_build.py.
            "IPNEXT_AGENT_HOST_WRITABLE": json.dumps([str(pythons["next"].parents[1] / "channels")]),
            "IPNEXT_PLANNER_EXECUTOR": "threads",
            "IPNEXT_RECONCILE_EVERY_SECONDS": "5",
            "TEMPORAL_ADDRESS": temporal_address,
            "OMP_NUM_THREADS": "1",
        }

    def run(self, build: Build, *command: str) -> None:
        """Run a program to its end."""
        subprocess.run([self._pythons[build], *command], env=self._environment, check=True)

    def note_administrator(self) -> None:
        """Let clients of this process ask as an administrator. After the tables are there."""
        key = create_admin_key(self.url, "admin", created_by="a test").key
        note_credential(self.api, {"credential": key}, Path(os.environ["IPNEXT_CREDENTIALS_FILE"]))

    def start(self, name: str, build: Build) -> None:
        """Start `api`, `agent-REGION` or a worker, which `name` begins with; `ready` waits for it."""
        assert name not in self._running
        ready = self.root / f"{name}.ready"
        ready.unlink(missing_ok=True)
        more, environment = [], {}
        module = {"api": API}.get(name, "workflows.worker")
        if name.startswith(AGENT):
            region = self.regions[name.removeprefix(AGENT)]
            module, environment = AGENT_PROGRAM, region.environment
            more = ["--region", region.name, "--state", str(region.state), "--port", str(region.agent_port)]
            more += ["--gateway-port", str(region.gateway_port), "--artifacts", self._artifacts]
            more += ["--peers", str(self._peers), "--owner", str(os.getpid())]
        environment = {**self._environment, **environment, "IPNEXT_WORKER_READY_FILE": str(ready)}
        with (self.root / f"{name}-{build}.log").open("ab") as log:
            if build == "this" and module in {API, AGENT_PROGRAM}:
                self._running[name] = self._forks.spawn_in(module, more, environment, log)
            else:
                command = [str(self._pythons[build]), "-m", module, *more]
                self._running[name] = start_interpreter(command, environment, log)

    def ready(self, name: str) -> None:
        """Return once it serves."""

        def serves() -> bool:
            if name.startswith(AGENT):
                return self.regions[name.removeprefix(AGENT)].answers() is not None
            return answers(f"{self.api}/readyz") if name == "api" else (self.root / f"{name}.ready").exists()

        def found() -> bool:
            assert self._running[name].poll() is None, self.logs()
            return serves()

        until(found, why=self.logs)

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a process, and wait for its end."""
        process = self._running.pop(name)
        process.send_signal(number)
        process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        """End all processes, agents in order: they end their regions."""
        agents = [name for name in self._running if name.startswith(AGENT)]
        for name in agents:
            self._running[name].send_signal(signal.SIGTERM)
        for name in agents:
            self._running.pop(name).wait(PATIENCE_SECONDS)
        for name in tuple(self._running):
            with contextlib.suppress(ProcessLookupError):
                self.end(name, signal.SIGKILL)
        self._forks.close()

    def logs(self) -> str:
        """What all processes wrote, the last of each."""
        return "\n".join(f"== {file.name}\n{file.read_text()[-3000:]}" for file in self._log_files())

    def every_line(self) -> str:
        """The same in full."""
        return "".join(file.read_text() for file in self._log_files())

    def _log_files(self) -> list[Path]:
        regions = (file for region in self.regions.values() for file in (region.state / "logs").glob("*.log"))
        return [*self.root.glob("*.log"), *regions]


def answers(url: str) -> bool:
    """Whether there is a good answer."""
    with suppress(httpx.TransportError):
        return httpx.get(url, trust_env=False, timeout=60).status_code == 200
    return False
