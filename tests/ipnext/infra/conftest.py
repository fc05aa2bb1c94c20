"""Real agents on this machine: real Envoy, stand-ins for host and router that speak the same control contract."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.errors import Unavailable
from ipnext.infra.local_agents import LocalProcessInfrastructure
from ipnext.infra.process.ports import PortBook
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import GraphNode, PartGraph
from tests.forked_programs import ForkServer
from tests.ipnext.infra.kubernetes.region import running_cluster
from tests.waiting import PATIENCE_SECONDS, until

HERE = Path(__file__).parent
FORK_SERVER = "ipnext.infra.process.fork_server_process"
STAND_INS = {
    "IPNEXT_AGENT_HOST_COMMAND": json.dumps(
        [
            *("{python}", str(HERE / "stand_in_host.py"), "--port", "{port}", "--region", "{region}", "--id", "{id}"),
            *("--artifacts", "{artifacts}", "--cache", "{cache}"),
        ]
    ),
    "IPNEXT_AGENT_ROUTER_COMMAND": json.dumps(
        ["{python}", str(HERE / "stand_in_router.py"), "--port", "{port}", "--region", "{region}", "--table", "{table}"]
    ),
    "IPNEXT_AGENT_IDLE_POLL_SECONDS": "0.2",
    "IPNEXT_AGENT_POLL_SECONDS": "0.03",
    "IPNEXT_AGENT_SETTLE_SECONDS": "0.1",
}


POD_STAND_IN = json.dumps(
    [
        *("{python}", str(HERE / "stand_in_host.py"), "--sockets", "{sockets}", "--region", "{region}"),
        *("--id", "{id}", "--artifacts", "{artifacts}", "--cache", "{cache}"),
    ]
)
"""Host of a pod, behind its proxy."""
OPEN = {"IPNEXT_COMPONENT_AUTHENTICATION": "none"}
"""What certificates do has tests of its own (test_agent_certificates.py)."""
AGENT = "ipnext.infra.agent"
FORKS = ForkServer((AGENT,))
"""Of the agents with stand-ins: an interpreter of its own takes a third of the processor time of such an agent."""
PATIENT = {f"IPNEXT_AGENT_{name}_SECONDS": "60" for name in ("UNANSWERED", "GATEWAY_HUNG", "CONFIRM")}
"""A process that gets no processor for a while is not taken for one that hangs."""


class PatientInfrastructure(LocalProcessInfrastructure):
    """Nor is an agent."""

    def _call(self, *asked, **more):
        return super()._call(*asked, **more | {"seconds": PATIENCE_SECONDS})


class Builder:
    """Deployments and route tables of one model with few words."""

    def __init__(self, model, region="eu", parts=("dense",)):
        self.model = model
        self.region = region
        self.parts = parts

    def key(self, part="dense", hardware="cpu"):
        return DeploymentKey(model=self.model, part=part, region=self.region, hardware=hardware)

    def deployment(self, holds, *, replicas=1, part="dense", digest="d", **settings):
        """`holds` maps a snapshot number to its generations."""
        return Deployment(
            key=self.key(part),
            replicas=replicas,
            engine="torch",
            units=1,
            qps=100,
            settings=settings,
            holds=tuple(
                AssignedSnapshot(
                    snapshot=number, digest=f"{digest}{number}", uri=f"file:///s/{number}", generations=held
                )
                for number, held in holds.items()
            ),
        )

    def table(self, revision, shares, *, served=None):
        """`shares` maps a generation, or (region, generation), to its fraction."""
        pairs = {(k if isinstance(k, tuple) else (self.region, k)): fraction for k, fraction in shares.items()}
        here = sorted({number for region, number in pairs if region == self.region}) if served is None else served
        return RouteTable(
            model=self.model,
            region=self.region,
            revision=revision,
            shares=tuple(RouteShare(to=to, generation=number, fraction=f) for (to, number), f in pairs.items()),
            served=tuple(self.served(number) for number in here),
        )

    def served(self, generation):
        nodes = tuple(GraphNode(name=part, part=part, inputs={"x": "request.x"}) for part in self.parts)
        graph = PartGraph(nodes=nodes, outputs={"y": f"{self.parts[-1]}.y"})
        return ServedGeneration(generation=generation, graph=graph, snapshots=dict.fromkeys(self.parts, generation))


class RunningAgent:
    """An agent process and what a client sees of it."""

    def __init__(
        self,
        region,
        directory,
        *,
        peers=None,
        environment=None,
        artifacts="file:///nowhere",
        real=False,
        owner=None,
        certificates=None,
        launcher=(),
    ):
        self.launcher = launcher
        self.forked = not (real or launcher)
        self.region = region
        self.state = directory / region
        self.state.mkdir(parents=True, exist_ok=True)
        self.port = PortBook(directory / f"{region}-test-ports.json").port("agent")
        self.peers = peers
        self.artifacts = artifacts
        self.owner = owner
        self.environment = os.environ | PATIENT | OPEN | ({} if real else STAND_INS) | (environment or {})
        self.url = f"http://127.0.0.1:{self.port}"
        components = self.peer_port = None
        if certificates is not None:
            self.url, components = f"https://127.0.0.1:{self.port}", certificates.control_plane()
            self.environment |= certificates.environment(region)
            self.peer_port = PortBook(directory / f"{region}-test-peer-ports.json").port("peers")
        self.infra = PatientInfrastructure({region: self.url}, timeout_seconds=PATIENCE_SECONDS, components=components)
        self.client = httpx.Client(trust_env=False, timeout=60)
        self.process = None

    def start(self):
        self.launch()
        until(lambda: self.get("/v2/health/live") == 200, why=lambda: f"gateway of {self.region} answers")
        return self

    def launch(self):
        """Start it; return once it answers."""
        given = ["--region", self.region, "--state", str(self.state), "--port", str(self.port)]
        given += ["--gateway-port", "0", "--artifacts", self.artifacts]
        if self.peer_port:
            given += ["--peer-port", str(self.peer_port)]
        if self.peers:
            given += ["--peers", str(self.peers)]
        if self.owner:
            given += ["--owner", str(self.owner)]
        with (self.state / "agent.log").open("ab") as log:
            if self.forked:
                self.process = FORKS.spawn_in(AGENT, given, self.environment, log)
            else:
                command = [*self.launcher, sys.executable, "-m", AGENT, *given]
                self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        until(self.reachable, why=lambda: f"agent {self.region} answers")

    def reachable(self):
        if self.process.poll() is not None:
            raise AssertionError((self.state / "agent.log").read_text())
        with suppress(Unavailable):
            return self.infra.observe(self.region)
        return None

    @property
    def gateway(self):
        return self.infra.observe(self.region).gateway_url

    @property
    def peer_url(self):
        return self.infra.observe(self.region).peer_url

    def get(self, path):
        with suppress(httpx.TransportError):
            return self.client.get(self.gateway + path).status_code
        return None

    def infer(self, model, *, generation=None, version=None, until=None):
        headers = {"x-ipnext-generation": str(generation)} if generation is not None else {}
        path = f"/v2/models/{model}" + (f"/versions/{version}" if version is not None else "") + "/infer"
        return self.client.post(self.gateway + path, json={"until": until and str(until)}, headers=headers)

    def replicas(self, key):
        return [replica for replica in self.infra.observe(self.region).replicas if replica.key == key]

    def await_ready(self, key, generation, replicas=1):
        until(
            lambda: sum(generation in replica.ready for replica in self.replicas(key)) == replicas,
            why=lambda: f"{replicas} replicas of {key} ready for generation {generation}: {self.replicas(key)}",
        )

    def serve(self, builder, holds, shares, *, replicas=1, revision=1):
        """Every part of a model deployed, ready and routed."""
        for part in builder.parts:
            self.infra.apply(builder.deployment(holds, replicas=replicas, part=part))
        for part in builder.parts:
            for generation in {number for held in holds.values() for number in held}:
                self.await_ready(builder.key(part), generation, replicas)
        self.infra.route(builder.table(revision, shares))

    def await_followed(self):
        """Returns once the stand-in router has read the table as it is now.

        Before that it sends where the former one says.
        """
        command = self.child("stand_in_router").cmdline()
        state = f"http://127.0.0.1:{command[command.index('--port') + 1]}/control/state"
        wanted = json.loads((self.state / "router.json").read_text())["revision"]
        until(
            lambda: self.client.get(state).json()["revision"] >= wanted,
            why=lambda: f"the router follows table {wanted}",
        )

    @property
    def supervisor(self):
        """The parent of all that the agent started."""
        pid = json.loads((self.state / "supervisor.json").read_text())["pid"]
        return psutil.Process(pid)

    def children(self):
        """All processes of the region but the agent."""
        return [self.supervisor, *self.supervisor.children(recursive=True)]

    def child(self, word):
        """The child whose command line has this word, once it runs.

        The fork server names what it can become, and runs none of it.
        """
        return until(lambda: next(iter(self._with(word)), None), why=lambda: f"a child with {word}")

    def _with(self, word):
        found = []
        for child in self.children():
            with suppress(psutil.NoSuchProcess):
                words = child.cmdline()
                if FORK_SERVER in words and word not in FORK_SERVER:
                    continue
                if any(word in part for part in words):
                    found.append(child)
        return found

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENCE_SECONDS)

    def kill(self):
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)

    def close(self):
        self.end()
        with suppress(psutil.NoSuchProcess, FileNotFoundError):  # of an agent that was killed
            if "ipnext.infra.supervisor_process" in self.supervisor.cmdline():
                self.supervisor.kill()
        self.infra.close()
        self.client.close()


PAUSE_SECONDS = 0.01
"""Of each client between an answer and its next request: the processors are for what a test waits for, too."""


class Load:
    """Clients that ask all the time, and what they were answered: a count of (status, generation)."""

    def __init__(self, agent, model, clients=3, body=None):
        self.body = body or {}
        self.url = f"{agent.gateway}/v2/models/{model}/infer"
        self.answers = Counter()
        self.bad = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        until(lambda: self.answers.total() > 20, why=lambda: f"the load runs: {self.answers}")
        return self

    def __exit__(self, *_):
        seen = self.answers.total()
        until(lambda: self.answers.total() > seen + 20, why=lambda: f"the load goes on: {self.answers}")
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self):
        with httpx.Client(trust_env=False, timeout=60) as client:
            while not self._ended.is_set():
                try:
                    answer = client.post(self.url, json=self.body)
                except httpx.TransportError as error:
                    self.answers[type(error).__name__, None] += 1
                    self.bad.append(repr(error))
                    continue
                self.answers[answer.status_code, answer.headers.get("x-ipnext-generation")] += 1
                if answer.status_code != 200:
                    self.bad.append(answer.text)
                self._ended.wait(PAUSE_SECONDS)


@pytest.fixture(scope="package", autouse=True)
def _agents_forked():
    """Ends the process that agents are forks of, if there was one."""
    yield
    FORKS.close()


@pytest.fixture(scope="session")
def builder():
    return Builder


@pytest.fixture(scope="session")
def running_agent(subprocesses):
    return RunningAgent


@pytest.fixture(scope="module")
def agent_with_host(tmp_path_factory, running_agent, builder):
    """An agent with Envoy, a router and a host as they are by default; the host has no snapshot."""
    store = FileArtifactStore(tmp_path_factory.mktemp("store"))
    agent = running_agent("eu", tmp_path_factory.mktemp("a"), artifacts=store.uri, real=True)
    try:
        agent.start()
        agent.infra.apply(builder("ranker").deployment({1: (1,)}))
        agent.child("serving.host")
        yield agent
    finally:
        agent.close()


@pytest.fixture(scope="session")
def load():
    return Load


@pytest.fixture(scope="package")
def session_agent(tmp_path_factory, subprocesses):
    """One agent for all tests that leave it running; each test takes a model of its own."""
    agent = RunningAgent("eu", tmp_path_factory.mktemp("shared"))
    try:
        yield agent.start()
    finally:
        agent.close()


@pytest.fixture
def shared_agent(session_agent):
    """The package's agent; the hosts that the test started end with it ("weighted" serves a whole module)."""
    yield session_agent
    _end_hosts(session_agent)


def _end_hosts(agent):
    for key in {replica.key for replica in agent.infra.observe("eu").replicas}:
        if key.model != "weighted":
            agent.infra.delete(key)


@pytest.fixture(scope="module")
def module_pod_agent(tmp_path_factory, subprocesses, listeners):
    """One agent whose hosts are pods, for all tests of a module that leave it running."""
    directory = tmp_path_factory.mktemp("pods")
    with running_cluster(directory, "eu") as cluster:
        environment = {**cluster.environment(), "IPNEXT_AGENT_HOST_COMMAND": POD_STAND_IN}
        agent = RunningAgent("eu", directory, certificates=cluster.certificates, environment=environment)
        try:
            yield agent.start()
        finally:
            agent.close()


@pytest.fixture
def shared_pod_agent(module_pod_agent):
    """The same; the hosts that the test started end with it."""
    yield module_pod_agent
    _end_hosts(module_pod_agent)


@pytest.fixture
def new_agent(tmp_path, subprocesses):
    """Makes agents that end with the test."""
    made = []

    def make(region="eu", **more):
        made.append(RunningAgent(region, tmp_path, **more))
        return made[-1]

    yield make
    for agent in made:
        agent.close()
