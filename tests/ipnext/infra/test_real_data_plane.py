"""Real agent, Envoy, router and torch hosts: a model of two parts is rolled out and answered."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from activities.transition.gate.live import judge_live, read_figures
from ipnext.artifacts.stores.locations import open_store
from ipnext.artifacts.upload import ingest_directory
from ipnext.infra.process.places import run_directory
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.gate.live import JudgedRound, LiveLatencySpec, TimedReplica, TimingRound
from ipnext.model.registry.registry import GraphNode, PartGraph
from serving.engines.torch.program import WEIGHTS_FILE
from serving.export import export_model
from tests.own_user import needs_root, nobody, open_directory, with_open_python
from tests.waiting import PATIENCE_SECONDS, until

GRAPH = PartGraph(
    nodes=(
        GraphNode(name="first", part="first", inputs={"x": "request.x"}),
        GraphNode(name="second", part="second", inputs={"x": "first.output"}),
    ),
    outputs={"score": "second.output"},
)


class Scale(nn.Module):
    """Multiplies by a constant, so that an answer tells which snapshots made it."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)))

    def forward(self, x):
        return x * self.factor


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(f"file://{tmp_path_factory.mktemp('store')}/artifacts")


@pytest.fixture(scope="module")
def publish(store, tmp_path_factory):
    """Export and ingest a part; the snapshot as a deployment names it."""
    root = tmp_path_factory.mktemp("snapshots")

    @functools.cache
    def publish(part, number, factor):
        directory = root / f"{part}-{number}-{factor}"
        export_model(Scale(factor), {"x": torch.zeros(2, 3)}, directory)
        source = ingest_directory(store, directory)
        return AssignedSnapshot(snapshot=number, digest=source.manifest.digest, uri=source.uri, generations=(number,))

    return publish


@pytest.fixture(scope="module")
def region(tmp_path_factory, running_agent, store):
    """A real agent for tests with a model of their own each, which leave it running."""
    agent = running_agent("eu", tmp_path_factory.mktemp("region"), artifacts=store.uri, real=True)
    try:
        yield agent.start()
    finally:
        agent.close()


def deployment(part, *holds, replicas=1, model="scaled"):
    key = DeploymentKey(model=model, part=part, region="eu", hardware="cpu")
    return Deployment(key=key, replicas=replicas, engine="torch", units=1, qps=100, holds=holds)


def table(revision, generation, served, model="scaled"):
    return RouteTable(
        model=model,
        region="eu",
        revision=revision,
        shares=(RouteShare(to="eu", generation=generation, fraction=1.0),),
        served=tuple(ServedGeneration(generation=n, graph=GRAPH, snapshots={"first": n, "second": n}) for n in served),
    )


CLIENTS = 3
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}]}


def serving_agent(new_agent, publish, store, **settings):
    """A real agent that answers as generation 1."""
    agent = new_agent(artifacts=store.uri, real=True, **settings).start()
    serve(agent, publish)
    return agent


def serve(agent, publish, *, replicas=1, model="scaled"):
    """Return once the agent answers as generation 1."""
    for part in ("first", "second"):
        agent.infra.apply(deployment(part, publish(part, 1, 2), replicas=replicas, model=model))
    for part in ("first", "second"):
        agent.await_ready(deployment(part, model=model).key, 1, replicas=replicas)
    agent.infra.route(table(1, 1, served=[1], model=model))


def ask(agent, model="scaled", **headers):
    return agent.client.post(f"{agent.gateway}/v2/models/{model}/infer", json=BODY, headers=headers)


def test_a_second_generation_takes_over_from_the_first(region, publish):
    agent = region
    parts = {"first": {1: publish("first", 1, 2), 2: publish("first", 2, 3)}}
    parts["second"] = {1: publish("second", 1, 10), 2: publish("second", 2, 100)}
    for part, snapshots in parts.items():
        agent.infra.apply(deployment(part, snapshots[1]))
    for part in parts:
        agent.await_ready(deployment(part).key, 1)
    agent.infra.route(table(1, 1, served=[1]))
    answer = ask(agent)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [20.0, 40.0, 60.0]
    assert answer.headers["x-ipnext-snapshots"] == "first=1,second=1"

    for part, snapshots in parts.items():
        agent.infra.apply(deployment(part, snapshots[1], snapshots[2]))
    for part in parts:
        agent.await_ready(deployment(part).key, 2)
    agent.infra.route(table(2, 2, served=[1, 2]))
    answer = ask(agent)
    assert answer.json()["outputs"][0]["data"] == [300.0, 600.0, 900.0]
    assert (answer.headers["x-ipnext-generation"], answer.headers["x-ipnext-region"]) == ("2", "eu")
    assert ask(agent, **{"x-ipnext-generation": "1"}).json()["model_version"] == "1"
    found = [count for count in agent.infra.observe("eu").traffic if count.model == "scaled"]
    traffic = {count.generation: count.requests for count in found}
    assert traffic == {1: 2, 2: 1}


class Slow(nn.Module):
    """As `Scale`, with arithmetic that takes several times as long as all else of a request."""

    def __init__(self):
        super().__init__()
        self.heavy = nn.Parameter(torch.full((750, 750), 1e-9))

    def forward(self, x):
        return x + (self.heavy @ self.heavy @ self.heavy).sum()


def test_a_slow_generation_is_found_by_its_live_replica_before_any_request_reaches_it(region, store, publish, tmp_path):
    export_model(Slow(), {"x": torch.zeros(2, 3)}, tmp_path / "slow")
    source = ingest_directory(store, tmp_path / "slow")
    slow = AssignedSnapshot(snapshot=2, digest=source.manifest.digest, uri=source.uri, generations=(2,))
    key = deployment("first", model="timed").key
    region.infra.apply(deployment("first", publish("first", 1, 2), slow, model="timed"))
    for generation in (1, 2):
        region.await_ready(key, generation)
    replica = region.replicas(key)[0].id

    def judge(new, serving):
        asked = TimingRound(
            model="timed",
            part="first",
            new=TimedReplica(id=replica, generation=new),
            serving=TimedReplica(id=replica, generation=serving),
            bodies=(json.dumps(BODY),),
            requests=16,
            concurrency=2,
            seconds=20,
            share=1,
        )
        times = region.infra.time_replicas("eu", asked)
        figures = {"new": read_figures(times.new, 2), "serving": read_figures(times.serving, 2)}
        return JudgedRound(part="first", region="eu", hardware="cpu", **figures)

    limits = LiveLatencySpec.model_validate({"maxP50Ratio": 1.5, "minThroughputRatio": 0.7})
    refused = judge_live(limits, [judge(2, 1) for _ in range(3)])
    assert refused.outcome == "refused", refused.message
    assert refused.message.startswith("p50 ")
    assert "; throughput " in refused.message
    assert judge_live(limits, [judge(1, 2) for _ in range(3)]).outcome == "passed"
    assert not [count for count in region.infra.observe("eu").traffic if count.model == "timed"]


def test_a_snapshot_whose_bytes_changed_is_reported_by_its_code(region, publish, store):
    held = publish("first", 1, 5)
    manifest = store.manifest(held.uri)
    weights = next(file.sha256 for file in manifest.files if file.path == WEIGHTS_FILE)
    [blob] = Path(store.uri.removeprefix("file://")).glob(f"blobs/**/{weights}")
    blob.chmod(0o644)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(bytes(content))
    spoiled = deployment("first", held, model="spoiled")
    region.infra.apply(spoiled)
    until(lambda: [r for r in region.replicas(spoiled.key) if r.failures], why=lambda: region.replicas(spoiled.key))
    replica = region.replicas(spoiled.key)[0]
    assert replica.failures[0].code == "ArtifactDigestMismatch"
    assert replica.ready == ()


def test_hosts_and_router_that_are_killed_under_load_come_back_by_themselves(region, publish, load):
    """A host costs no request; the router costs those that it has, and Envoy waits for it with the others."""
    model = "killed"
    serve(region, publish, replicas=2, model=model)
    with load(region, model, body=BODY) as clients:
        for part in ("first", "second"):
            key = deployment(part, model=model).key
            os.kill(region.replicas(key)[0].pid, signal.SIGKILL)
            region.await_ready(key, 1, replicas=1)
            region.await_ready(key, 1, replicas=2)
    assert set(clients.answers) == {(200, "1")}, clients.bad[:3]
    with load(region, model, body=BODY) as clients:
        router = region.child("serving.router")
        router.kill()
        router.wait(PATIENCE_SECONDS)
    assert clients.answers.pop((200, "1")) > 20
    assert clients.answers.total() <= 3 * CLIENTS, clients.bad[:3]
    assert ask(region, model).json()["outputs"][0]["data"] == [4.0, 8.0, 12.0], "the next router is there"


@pytest.mark.parametrize("fork_server", [pytest.param(None, id="forked"), pytest.param("[]", id="started slowly")])
def test_a_router_that_is_told_to_end_under_load_costs_no_request(new_agent, publish, store, load, fork_server):
    """It answers until they go to the next one; and where the agent ends there is none to wait for."""
    environment = {} if fork_server is None else {"IPNEXT_AGENT_FORK_SERVER": fork_server}
    agent = serving_agent(new_agent, publish, store, environment=environment)
    with load(agent, "scaled", body=BODY) as clients:
        router = agent.child("serving.router")
        router.terminate()
        router.wait(PATIENCE_SECONDS)
    assert set(clients.answers) == {(200, "1")}, clients.bad[:3]
    assert ask(agent).json()["outputs"][0]["data"] == [4.0, 8.0, 12.0]
    places = (
        agent.state,
        run_directory(agent.state),
    )  # apart if the path of the state directory is too long for sockets
    proofs = {file: file.read_text() for place in places for file in place.glob("**/gateway.proof")}
    assert (len(proofs) > 1, len(set(proofs.values()))) == (True, 1), "Envoy may send the former one to the next router"
    agent.end()
    assert "killed after its grace time" not in (agent.state / "agent.log").read_text(), (
        "no router waits for a next one"
    )


TRIES = """
import os, sys
os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[2]))
for mode, path in (("rb", sys.argv[3]), ("rb", sys.argv[4]), ("wb", sys.argv[5])):
    try:
        open(path, mode).close()
        print("done")
    except OSError as error:
        print(type(error).__name__)
"""


@pytest.fixture(scope="module")
def root_agent(running_agent, publish, store):
    """An agent that runs as root and whose hosts can have a user of their own; the last of its tests ends it.

    It comes with the words before a command that starts such hosts.
    """
    with open_directory() as place:
        (place / "eu").mkdir(mode=0o700)
        launcher = with_open_python(place / "kept")
        made = []

        def make(**more):
            made.append(running_agent("eu", place, launcher=launcher, **more))
            return made[-1]

        try:
            yield serving_agent(make, publish, store)
        finally:
            for agent in made:
                agent.close()


def hosts_of(agent):
    found = []
    for process in agent.children():
        try:
            command = process.cmdline()
        except psutil.NoSuchProcess:
            continue
        if "serving.host" in command and "ipnext.infra.process.fork_server_process" not in command:
            found.append(process)
    return found


def status_of(process):
    """What the kernel says of a process."""
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


@needs_root
def test_hosts_of_an_agent_of_root_have_a_user_of_their_own_and_answer(root_agent):
    assert ask(root_agent).json()["outputs"][0]["data"] == [4.0, 8.0, 12.0]
    hosts = hosts_of(root_agent)
    assert len(hosts) == 2
    for host in hosts:
        assert ({*host.uids()}, {*host.gids()}) == ({nobody().uid}, {nobody().gid})
        status = status_of(host)
        assert {status[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        assert "0" not in status["Groups"].split()


@needs_root
def test_hosts_that_stay_root_have_its_rights_over_files_alone(new_agent, publish, store):
    agent = serving_agent(new_agent, publish, store, environment={"IPNEXT_AGENT_HOST_USER": "root"})
    assert ask(agent).status_code == 200
    for host in hosts_of(agent):
        status = status_of(host)
        assert status["Uid"].split()[0] == "0"
        assert {int(status[name], 16) & ~0b110 for name in ("CapEff", "CapPrm", "CapBnd")} == {0}


@needs_root
def test_the_user_of_hosts_reads_the_cache_and_neither_writes_it_nor_reads_what_is_the_agents(root_agent):
    snapshot = next(path for path in (root_agent.state / "cache").iterdir() if not path.name.startswith("."))
    paths = [snapshot / "snapshot.json", root_agent.state / "router.json", snapshot / "made"]
    words = [str(nobody().gid), str(nobody().uid), *map(str, paths)]
    command = [*root_agent.launcher, sys.executable, "-I", "-c", TRIES, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["done", "PermissionError", "PermissionError"]


@needs_root
def test_a_host_of_a_user_of_its_own_ends_with_its_agents_supervisor(root_agent):
    hosts = hosts_of(root_agent)
    root_agent.kill()
    root_agent.supervisor.kill()
    until(lambda: not any(host.is_running() and host.status() != psutil.STATUS_ZOMBIE for host in hosts))
