"""The whole platform as real processes, driven as a user drives it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from typer.testing import CliRunner, Result

from ipnext.artifacts.signing import write_key_pair
from ipnext.cli import app
from ipnext.client import Client
from ipnext.infra.process.parent_death import tether
from tests.genai.support.hosts import mock_command
from tests.lasting import Lasting
from tests.marked_parts import export_pair
from tests.processes import command_line
from tests.waiting import PATIENCE_SECONDS, until

MANIFEST = """
apiVersion: ipnext/v1
kind: Model
metadata: {name: pair, owner: tests}
spec:
  parts:
    - {name: first, hardware: [{kind: cpu, units: 1, qps: 100}]}
    - {name: second, hardware: [{kind: cpu, units: 1, qps: 100}]}
  graph:
    nodes:
      - {name: first, part: first, inputs: {x: request.x}}
      - {name: second, part: second, inputs: {x: first.output}}
    outputs: {sum: second.sum, marks: second.marks}
  demand: [{region: us-east, qps: 50}, {region: eu-west, qps: 50}]
  latencyToleranceMs: 120
  rollout: {canary: 0.5, maxStep: 0.5, deadlineSeconds: 180}
"""


NATIVE_KEY = "native.pem"
"""The private key whose libraries the platform `bare` runs, beside its state directory."""

FIRST_VARIABLE = {"OMP_NUM_THREADS": "1"}
"""`ipnext dev` sets it; the command line of a process is found in front of the first variable of its environment."""

NO_HOSTS = {"IPNEXT_AGENT_FORK_SERVER": '["serving.router"]'}
"""For a platform or agent without torch hosts: its fork servers import no torch, in seconds of processor time each."""

ONE_REGION = """
apiVersion: ipnext/v1
kind: Fleet
spec:
  regions: [us-east]
  rttMs: [[1]]
  hardware: [cpu]
  supply:
    - {region: us-east, hardware: cpu, units: 8, unitCost: 0.05}
"""


def ipnext(*words: str, api: str = "http://127.0.0.1") -> Result:
    """`ipnext ...` in this process, for tests of what it says: an interpreter takes a second, five with torch.

    Other tests of each file, and the tour of the README, start `ipnext` as a person does.
    """
    return CliRunner().invoke(app, words, env={"IPNEXT_API_URL": api})


class Running:
    """`ipnext dev` on a state directory."""

    def __init__(self, state: Path, *arguments: str, **environment: str) -> None:
        self.state = state
        state.mkdir(parents=True, exist_ok=True)
        self.log = state / "dev.log"
        self._arguments = arguments or ("--free-ports",)
        self._environment = environment
        self.process: subprocess.Popen[bytes] | None = None
        self.endpoints: Mapping[str, Any] = {}

    def start(self) -> "Running":
        (self.state / "endpoints.json").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ipnext.cli", "dev", "--state", str(self.state), *self._arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=tether(),  # noqa: PLW1509 - no other thread forks here
                env={
                    **FIRST_VARIABLE,
                    **os.environ,
                    **FIRST_VARIABLE,
                    "IPNEXT_REPLAN_DELAY_SECONDS": "1",
                    **self._environment,
                },
            )
        until(self._ready, why=lambda: self.log.read_text()[-3000:])
        self.endpoints = json.loads((self.state / "endpoints.json").read_text())
        return self

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        return (self.state / "endpoints.json").exists()

    @cached_property
    def client(self) -> Client:
        return Client(self.endpoints["api"])

    def family(self) -> list[psutil.Process]:
        """Every process below `ipnext dev`."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, *words: str) -> psutil.Process:
        """The one process whose command line holds all words."""
        found = self.found(*words)
        assert len(found) == 1, found
        return found[0]

    def found(self, *words: str) -> list[psutil.Process]:
        """The living processes whose command line holds all words."""
        return [p for p in self.family() if all(word in command_line(p) for word in words)]

    def answers(self) -> bool:
        """Whether the API answers and reaches everything it needs."""
        try:
            return httpx.get(self.endpoints["api"] + "/readyz", timeout=60, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        if "client" in self.__dict__:
            self.client.close()
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def ask(self, region: str, x: float = 1.0, generation: int | None = None) -> httpx.Response:
        """One prediction of the model `pair`."""
        headers = {"x-ipnext-generation": str(generation)} if generation else {}
        body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [x]}]}
        url = f"{self.endpoints['gateways'][region]}/v2/models/pair/infer"
        return httpx.post(url, json=body, headers=headers, timeout=60, trust_env=False)


def small_options(state: Path, *, workers: int = 1) -> tuple[str, ...]:
    """Return options of `ipnext dev` for one region and few workers: for tests of what is the same in each.

    A further region takes as much processor time for its start as API and worker together.
    """
    fleet = state / "fleet.yaml"
    state.mkdir(parents=True, exist_ok=True)
    fleet.write_text(ONE_REGION)
    return ("--free-ports", "--workers", str(workers), "--fleet", str(fleet))


@pytest.fixture
def pair_manifest() -> str:
    return MANIFEST


@pytest.fixture
def make_snapshots(tmp_path: Path) -> Callable[[float], Mapping[str, Path]]:
    return lambda mark: export_pair(tmp_path / f"mark-{mark}", mark)


@contextmanager
def running_pair(root: Path) -> Iterator[Running]:
    """A platform on which generation 1 of `pair` serves with mark 1."""
    running = Running(root / "platform").start()
    try:
        client = running.client
        client.apply(MANIFEST)
        change = client.publish("pair", export_pair(root / "first", 1.0))
        done = client.wait_change(change.id, timeout_seconds=PATIENCE_SECONDS)
        assert done.state == "done", done
        yield running
    finally:
        running.stop()


@contextmanager
def running_bare(root: Path) -> Iterator[Running]:
    """A platform of one worker, without models.

    Its generative engines are mocks that tell their checkpoint, go over in 0.3 s and hand prompts over. Its operator
    lets libraries run that its own key signed.
    """
    command = mock_command(name="llm", checkpoint="{directory}", itl_ms=10, reload_ms=300, connector="nixl")
    allowed = root / "native.pub.pem"
    write_key_pair(root / NATIVE_KEY, allowed)
    variables = {"IPNEXT_VLLM_COMMAND": command, "IPNEXT_NATIVE_LIBRARY_KEYS_FILE": str(allowed)}
    running = Running(root / "platform", "--free-ports", "--workers", "1", **variables).start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, lasting: Lasting, platforms: None) -> Running:
    """With the model `pair`, as the file before left it: at first, generation 1 serves with mark 1."""
    return lasting.get("pair", lambda: running_pair(tmp_path_factory.mktemp("pair")))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, lasting: Lasting, platforms: None) -> Running:
    """For models of many names: whoever publishes one deletes it."""
    return lasting.get("bare", lambda: running_bare(tmp_path_factory.mktemp("bare")))


@pytest.fixture
def new_platform(tmp_path: Path, platforms: None) -> Iterator[Callable[..., Running]]:
    """Starts platforms that end with the test."""
    started: list[Running] = []

    def start(state: Path, *arguments: str, **environment: str) -> Running:
        running = Running(state, *arguments, **environment)
        started.append(running)
        return running.start()

    yield start
    for running in started:
        running.stop()
