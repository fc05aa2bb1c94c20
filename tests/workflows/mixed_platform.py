"""A whole platform of real processes, each of this or of the next build: API, workers, and a region with its agent, router and hosts."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self

import httpx
import psutil

from ipnext.client import Client
from ipnext.devfile import read_devfile
from ipnext.errors import IPnextError, Unavailable
from ipnext.infra.ports import free_port
from ipnext.infra.tether import tether
from ipnext.model.deployment import RegionState
from ipnext.model.lifecycle import ChangeState
from ipnext.model.wire import decode
from tests.processes import command_line
from tests.waiting import PATIENCE_SECONDS, until
from tests.workflows.next_build import ADDED

Build = Literal["this", "next"]
REGION = "us-east"
FORK_SERVER = "ipnext.infra.fork_server_process"
PAUSE_SECONDS = 0.5
"""Between two publishes: the processors are for the components too."""
ASK_SECONDS = 0.05
"""The same between two predictions of a client."""
PATIENT = {f"IPNEXT_AGENT_{name}_SECONDS": "600" for name in ("UNANSWERED", "HUNG", "GATEWAY_HUNG", "CONFIRM")}
"""A process that gets no processor for a while is not taken for one that hangs."""


class MixedPlatform:
    """Processes by name. What listens is started again on the same port, as either build."""

    def __init__(self, root: Path, pythons: Mapping[Build, Path], temporal_address: str) -> None:
        self.root = root
        self.pythons = pythons
        self.state = root / REGION
        self.url = f"sqlite:///{root}/ipnext.db"
        self._api, self._agent, self._gateway = free_port(), free_port(), free_port()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.gateway = f"http://127.0.0.1:{self._gateway}"
        self.api = f"http://127.0.0.1:{self._api}"
        self._artifacts = f"file://{root}/artifacts"
        self._environment = {
            **os.environ,
            **PATIENT,
            **read_devfile().worker_settings(),
            "IPNEXT_DATABASE_URL": self.url,
            "IPNEXT_ARTIFACTS_URI": self._artifacts,
            "IPNEXT_API_PORT": str(self._api),
            "IPNEXT_AGENTS": json.dumps({REGION: f"http://127.0.0.1:{self._agent}"}),
            "IPNEXT_PLANNER_EXECUTOR": "threads",
            "IPNEXT_RECONCILE_EVERY_SECONDS": "1",
            "IPNEXT_AGENT_IDLE_POLL_SECONDS": "0.2",
            "TEMPORAL_ADDRESS": temporal_address,
            "OMP_NUM_THREADS": "1",
        }

    def run(self, build: Build, *command: str) -> None:
        """Run a program to its end."""
        subprocess.run([self.pythons[build], *command], env=self._environment, check=True)

    def start(self, name: str, build: Build) -> None:
        """Start `api`, `agent` or a worker, which `name` begins with; `ready` waits for it."""
        assert name not in self._running
        module = {"api": "ipnext.api", "agent": "ipnext.infra.agent"}.get(name, "workflows.worker")
        region = ("--region", REGION, "--state", str(self.state), "--port", str(self._agent))
        more = (
            *region,
            "--gateway-port",
            str(self._gateway),
            "--artifacts",
            self._artifacts,
            "--owner",
            str(os.getpid()),
        )
        command = [str(self.pythons[build]), "-m", module, *(more if name == "agent" else ())]
        ready = self.root / f"{name}.ready"
        ready.unlink(missing_ok=True)
        with (self.root / f"{name}-{build}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                env={**self._environment, "IPNEXT_WORKER_READY_FILE": str(ready)},
                stdout=log,
                stderr=log,
                preexec_fn=tether(),  # noqa: PLW1509 - no other thread forks here
            )

    def ready(self, name: str) -> None:
        """Return once it serves."""
        looks = {"api": lambda: self._answers(f"{self.api}/readyz"), "agent": self.region_answers}
        look = looks.get(name, (self.root / f"{name}.ready").exists)

        def found() -> bool:
            assert self._running[name].poll() is None, self.logs()
            return bool(look())

        until(found, why=self.logs)

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a process, and wait for its end."""
        process = self._running.pop(name)
        process.send_signal(number)
        process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        """End all processes, the agent in order: it ends the region."""
        for name in sorted(self._running, key=lambda name: name != "agent"):
            with contextlib.suppress(ProcessLookupError):
                self.end(name, signal.SIGTERM if name == "agent" else signal.SIGKILL)

    def logs(self) -> str:
        """What all processes wrote, the last of each."""
        files = (*self.root.glob("*.log"), *(self.state / "logs").glob("*.log"))
        return "\n".join(f"== {file.name}\n{file.read_text()[-3000:]}" for file in files)

    def every_line(self) -> str:
        """The same in full."""
        return "".join(file.read_text() for file in (*self.root.glob("*.log"), *(self.state / "logs").glob("*.log")))

    def region_answers(self) -> RegionState | None:
        """The region as its agent sees it, once its gateway answers."""
        with suppress(httpx.TransportError):
            answer = httpx.get(f"http://127.0.0.1:{self._agent}/state", trust_env=False, timeout=60)
            return decode(RegionState, answer.content) if self._answers(f"{self.gateway}/v2/health/live") else None
        return None

    @property
    def region(self) -> RegionState:
        """The region as its agent sees it."""
        state = self.region_answers()
        assert state is not None
        return state

    def processes(self, word: str) -> list[psutil.Process]:
        """Those below the supervisor with this word in their command line."""
        found = json.loads((self.state / "supervisor.json").read_text())
        family = psutil.Process(found["pid"]).children(recursive=True)
        return [process for process in family if word in (line := command_line(process)) and FORK_SERVER not in line]

    def built(self, process: psutil.Process) -> Build:
        """The build that a process is of."""
        return "next" if str(self.pythons["next"]) in command_line(process) else "this"

    def forked(self, process: psutil.Process) -> bool:
        """Whether a process was forked: its command line is then one text, its title."""
        return b"\0" not in Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0")

    def fork_servers(self) -> int:
        """How many fork servers have been ready, one after the other."""
        return (self.state / "logs" / "supervisor.log").read_text().count("fork server ready")

    @staticmethod
    def _answers(url: str) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(url, trust_env=False, timeout=60).status_code == 200
        return False


class Load:
    """Clients that ask for predictions all the time, and what they were answered."""

    def __init__(self, platform: MixedPlatform, model: str, clients: int = 2) -> None:
        self.answers: Counter[int | str] = Counter()
        self.generations: Counter[int] = Counter()
        self.bad: list[str] = []
        self._url = f"{platform.gateway}/v2/models/{model}/infer"
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.more(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    def more(self, count: int) -> None:
        """Wait for so many more answers."""
        seen = self.answers.total()
        until(lambda: self.answers.total() >= seen + count, why=lambda: f"{self.answers} {self.bad[:3]}")

    def _ask(self) -> None:
        body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [2.0]}]}
        with httpx.Client(trust_env=False, timeout=60) as client:
            while not self._ended.is_set():
                try:
                    answer = client.post(self._url, json=body)
                except httpx.TransportError as error:
                    self._note(type(error).__name__, repr(error))
                    continue
                self._note(answer.status_code, answer.text)
                if answer.status_code == 200:
                    self._check(answer.json())
                    self.generations[int(answer.headers["x-ipnext-generation"])] += 1
                time.sleep(ASK_SECONDS)

    def _note(self, status: int | str, told: str) -> None:
        self.answers[status] += 1
        if status != 200:
            self.bad.append(f"{status}: {told[:300]}")

    def _check(self, answer: Mapping[str, Any]) -> None:
        first, second = next(out["data"] for out in answer["outputs"] if out["name"] == "marks")
        if first != second:
            self.bad.append(f"parts of two generations: {first} {second}")


class Publisher:
    """Publishes all the time, one change after the other; an API that does not answer is asked again with the same id."""

    def __init__(self, platform: MixedPlatform, model: str, snapshots: tuple[Mapping[str, Path], ...]) -> None:
        self.taken: list[str] = []
        """Changes that the API has acknowledged."""
        self.ended: dict[str, ChangeState] = {}
        self.failures: list[BaseException] = []
        self._platform = platform
        self._model = model
        self._snapshots = snapshots
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._publish_all)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(PATIENCE_SECONDS)

    def one_more(self) -> None:
        """Wait for the end of a publish that begins from now on."""
        begun = len(self.taken)

        def found() -> bool:
            assert not self.failures, (self.failures, self._platform.logs())
            return any(change in self.ended for change in self.taken[begun + 1 :])

        until(found, why=lambda: f"{self.taken} {self.ended}\n{self._platform.logs()}")

    def _publish_all(self) -> None:
        try:
            with _client(self._platform.api) as client:
                while not self._stopped.is_set():
                    self._publish(client, len(self.taken))
        except (IPnextError, AssertionError) as error:
            self.failures.append(error)

    def _publish(self, client: Client, number: int) -> None:
        change_id, snapshots = f"{self._model}-{number}", self._snapshots[number % len(self._snapshots)]
        again(lambda: client.publish(self._model, snapshots, change_id=change_id))
        self.taken.append(change_id)
        end = again(lambda: client.wait_change(change_id, PATIENCE_SECONDS))
        self.ended[change_id] = end.state
        assert end.state is ChangeState.DONE, end
        self._stopped.wait(PAUSE_SECONDS)


def again(call: Any) -> Any:
    """The first answer of the API: it may be away between two builds."""

    def asked() -> Any:
        with suppress(Unavailable):
            return call()

    return until(asked, every_seconds=0.1)


@contextmanager
def _client(url: str) -> Iterator[Client]:
    client = Client(url)
    yield client
    client.close()


def tells_the_field(url: str) -> bool:
    """Whether an answer has the next build's field."""
    return ADDED in httpx.get(url, trust_env=False, timeout=60).text


THIS = Path(sys.executable)
