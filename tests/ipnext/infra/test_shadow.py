"""A shadow through a real agent, Envoy, router and host: it outlives agent and router, and no client is sent to it."""

import signal

import pytest
import torch
from torch import nn

from ipnext.artifacts.stores.locations import open_store
from ipnext.artifacts.upload import ingest_directory
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable, Shadow
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import GraphNode, PartGraph
from serving.export import export_model
from tests.waiting import until

GRAPH = PartGraph(
    nodes=(GraphNode(name="dense", part="dense", inputs={"x": "request.x"}),), outputs={"score": "dense.output"}
)
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}]}


class Times(nn.Module):
    """What it is given, times a number."""

    def __init__(self, number):
        super().__init__()
        self.register_buffer("number", torch.tensor(float(number)))

    def forward(self, x):
        return x * self.number


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The URI of a store, and its two snapshots: times 2 and times 3."""
    directory = tmp_path_factory.mktemp("times")
    found = open_store(f"file://{directory}/artifacts")
    holds = []
    for number in (1, 2):
        export_model(Times(number + 1), {"x": torch.zeros(2, 3)}, directory / f"model-{number}")
        source = ingest_directory(found, directory / f"model-{number}")
        digest = source.manifest.digest
        holds.append(AssignedSnapshot(snapshot=number, digest=digest, uri=source.uri, generations=(number,)))
    return found.uri, tuple(holds)


def served(generation):
    return ServedGeneration(generation=generation, graph=GRAPH, snapshots={"dense": generation})


class Shadowed:
    """A model that answers as generation 1, with generation 2 as its shadow."""

    def __init__(self, agent, model, holds):
        self.agent, self.model = agent, model
        key = DeploymentKey(model=model, part="dense", region="eu", hardware="cpu")
        agent.infra.apply(Deployment(key=key, replicas=1, engine="torch", units=1, qps=100, holds=holds))
        for generation in (1, 2):
            agent.await_ready(key, generation)
        self.route(1, 1, 1, shadow=Shadow(served=served(2), share=1.0, seed=3))

    @property
    def shadows(self):
        return self.agent.infra.observe("eu", [self.model]).shadows

    def route(self, revision, answering, *generations, shadow=None):
        shares = (RouteShare(to="eu", generation=answering, fraction=1.0),)
        known = tuple(map(served, generations))
        self.agent.infra.route(
            RouteTable(model=self.model, region="eu", revision=revision, shares=shares, served=known, shadow=shadow)
        )

    def ask(self, **headers):
        path = f"{self.agent.gateway}/v2/models/{self.model}/infer"
        return self.agent.client.post(path, json=BODY, headers=headers)

    def compared(self, count):
        """Ask until so many more answers were compared; the comparison."""
        answer = self.ask()
        assert (answer.status_code, answer.json()["outputs"][0]["data"]) == (200, [2.0, 4.0, 6.0])

        def find():
            [found] = self.shadows
            return found if found.compared >= count and not found.under_way else None

        return until(find, why=lambda: f"{count} are compared: {self.shadows}")


@pytest.fixture(scope="module")
def agent(running_agent, store, tmp_path_factory):
    uri, _ = store
    found = running_agent("eu", tmp_path_factory.mktemp("region"), artifacts=uri, real=True)
    try:
        yield found.start()
    finally:
        found.close()


@pytest.fixture
def shadowed(agent, store):
    """Makes a model of the agent's; each test has its own."""
    _, holds = store
    return lambda model: Shadowed(agent, model, holds)


def test_a_shadow_is_reported_and_outlives_its_agent_and_its_router(agent, shadowed):
    click = shadowed("click")
    found = click.compared(1)
    assert (found.key, found.chosen, found.failures) == (("click", 2, 3), 1, {})
    assert sum(found.outputs["score"].absolute.values()) == 1
    state = agent.infra.observe("eu")
    assert state.only({"other"}).shadows == ()
    assert [(count.generation, count.requests) for count in state.only({"click"}).traffic] == [(1, 1)]
    assert click.ask(**{"x-ipnext-generation": "2"}).status_code == 404

    router = agent.child("serving.router")
    agent.kill()
    agent.launch()
    assert click.compared(2).chosen == 2, "the router goes on, and its counts with it"
    assert agent.child("serving.router").pid == router.pid

    router.send_signal(signal.SIGTERM)
    until(lambda: not router.is_running(), why=lambda: "another router has taken over")
    assert click.compared(1).chosen == 1, "the next router follows the same table, and its counts start from zero"


def test_a_shadow_that_is_promoted_answers_clients_and_is_no_shadow_any_more(shadowed):
    model = shadowed("promoted")
    model.compared(1)
    model.route(2, 2, 1, 2)
    assert model.ask().json()["outputs"][0]["data"] == [3.0, 6.0, 9.0]
    assert model.shadows == ()
    model.route(3, 2, 2, shadow=Shadow(served=served(1), share=1.0))
    until(lambda: model.ask() and model.shadows, why=lambda: "the former one is the shadow")
    assert model.ask(**{"x-ipnext-generation": "1"}).status_code == 404
    model.route(4, 2, 2)
    assert model.shadows == ()
