"""Predictions that need a credential, through a real agent, Envoy, router and host; and what clients may steer."""

import json
import re
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from ipnext.access.keys import draw_key
from ipnext.artifacts.stores.locations import open_store
from ipnext.artifacts.upload import ingest_directory
from ipnext.model.access.predictions import AccessList, AccessSpec, CallerKey, ModelAccess
from ipnext.model.access.rights import Grant, Role
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import GraphNode, PartGraph
from ipnext.names import CLIENT_HEADERS, INNER_HEADERS
from serving.export import export_model
from tests.e2e.conftest import NO_HOSTS
from tests.waiting import until

ROOT = Path(__file__).parents[3]
GRAPH = PartGraph(
    nodes=(GraphNode(name="dense", part="dense", inputs={"x": "request.x"}),), outputs={"score": "dense.output"}
)
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}]}
SAID = "a client said so"


class Double(nn.Module):
    """Twice what it is given."""

    def forward(self, x):
        return x * 2


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    directory = tmp_path_factory.mktemp("double")
    store = open_store(f"file://{directory}/artifacts")
    export_model(Double(), {"x": torch.zeros(2, 3)}, directory / "model")
    source = ingest_directory(store, directory / "model")
    held = AssignedSnapshot(snapshot=1, digest=source.manifest.digest, uri=source.uri, generations=(1,))
    return store.uri, held


class Guarded:
    """A region with a model `secret` of owner `ads`, and the list that its agent was sent last."""

    def __init__(self, agent, held, region="eu"):
        self.agent, self.held, self.region = agent, held, region
        self.revision = 0
        self.key, self.foreign = draw_key(), draw_key()

    def serve(self, *, to=None, revision=1, access="authenticated"):
        key = DeploymentKey(model="secret", part="dense", region=self.region, hardware="cpu")
        served = (ServedGeneration(generation=1, graph=GRAPH, snapshots={"dense": 1}),)
        if to is None:
            self.agent.infra.apply(
                Deployment(key=key, replicas=1, engine="torch", units=1, qps=100, holds=(self.held,))
            )
            self.agent.await_ready(key, 1)
        self.agent.infra.route(
            RouteTable(
                model="secret",
                region=self.region,
                revision=revision,
                shares=(RouteShare(to=to or self.region, generation=1, fraction=1.0),),
                served=served if to is None else (),
                access=access,
            )
        )

    def allow(self, *keys, policies="", **access):
        """Put a list in force with these keys; `self.foreign` is always in it. The list that then is in force."""
        self.revision += 1
        spec = AccessSpec.model_validate({"predictions": "authenticated"} | access)
        owners = {self.foreign: "search"}
        return self.agent.infra.put_access(
            self.region,
            AccessList(
                revision=self.revision,
                policies=policies,
                models=(ModelAccess(model="secret", owner="ads", access=spec),),
                keys=tuple(
                    CallerKey(
                        id=key.id,
                        name="app",
                        digest=key.digest,
                        grants=(Grant(role=Role.CALLER, owner=owners.get(key, "ads")),),
                    )
                    for key in (*keys, self.foreign)
                ),
            ),
        )

    def ask(self, key=None, *, path="/v2/models/secret/infer", **headers):
        given = {} if key is None else {"authorization": f"Bearer {key.text}"}
        return self.agent.client.post(self.agent.gateway + path, json=BODY, headers=given | headers)

    def await_status(self, status, key=None):
        return until(
            lambda: (found := self.ask(key)).status_code == status and found,
            why=lambda: f"{status} is answered, not {self.ask(key).text}",
        )


@contextmanager
def guarding(running_agent, directory, snapshot, **more):
    """A region of its own that serves the model."""
    uri, held = snapshot
    agent = running_agent("eu", directory, artifacts=uri, real=True, **more)
    try:
        found = Guarded(agent.start(), held)
        found.serve()
        yield found
    finally:
        agent.close()


@pytest.fixture(scope="module")
def guarded(running_agent, tmp_path_factory, snapshot):
    """At first without a list; each test puts its own in force."""
    with guarding(running_agent, tmp_path_factory.mktemp("guarded"), snapshot) as found:
        yield found


@pytest.fixture(scope="module")
def hasty(running_agent, tmp_path_factory, snapshot):
    """The same, but its list is out of date once the router has refused a newer one for half a second."""
    stale = {"IPNEXT_AGENT_ACCESS_STALE_SECONDS": "0.5"}
    with guarding(running_agent, tmp_path_factory.mktemp("hasty"), snapshot, environment=stale) as found:
        yield found


def test_a_key_lets_in_and_its_revocation_keeps_out_whatever_is_started_again(guarded):
    agent = guarded.agent
    assert guarded.ask().status_code == 401
    assert guarded.ask(guarded.key).status_code == 503, "there is no list yet, so nobody is let in"
    guarded.allow(guarded.key)
    answer = guarded.await_status(200, guarded.key)
    assert answer.json()["outputs"][0]["data"] == [2.0, 4.0, 6.0]
    refused = guarded.ask()
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer realm="ipnext"')
    assert list(refused.json()) == ["error"]
    assert guarded.ask(guarded.foreign).status_code == 404
    assert guarded.ask(guarded.foreign).text.replace("secret", "absent") == (
        guarded.ask(guarded.foreign, path="/v2/models/absent/infer").text
    )

    traffic = agent.infra.observe("eu").traffic
    assert [(count.requests, count.errors) for count in traffic if count.generation == 1] == [(1, 0)], (
        "gates see no refusal"
    )
    assert agent.infra.key_uses("eu").uses.keys() == {guarded.key.id, guarded.foreign.id}, "also of who is refused"

    guarded.allow()
    guarded.await_status(401, guarded.key)
    guarded.allow(guarded.key)
    guarded.await_status(200, guarded.key)

    agent.kill()
    router = agent.child("serving.router")
    agent.launch()
    router.send_signal(signal.SIGKILL)
    until(
        lambda: agent.infra.access_revision("eu").revision == guarded.revision,
        why=lambda: "the agent has its list again",
    )
    guarded.await_status(200, guarded.key)
    assert guarded.ask().status_code == 401
    assert guarded.ask(guarded.foreign).status_code == 404

    secret = guarded.key.text.split(".")[1].encode()
    files = [file for file in agent.state.rglob("*") if file.is_file() and "cache" not in file.parts]
    assert [file for file in files if secret in file.read_bytes()] == []
    assert any(guarded.key.digest.encode() in file.read_bytes() for file in files), "the search would have found it"


def test_a_revocation_is_in_force_although_the_disk_of_the_region_is_full(guarded):
    """Files that can't be replaced stand for it: all the same, the agent answers what its router goes by."""
    agent = guarded.agent
    guarded.allow(guarded.key)
    guarded.await_status(200, guarded.key)
    full = [agent.state / ".access.json.new", agent.state / "wanted" / ".access.json.new"]
    for path in full:
        path.mkdir()
    assert guarded.allow().revision == guarded.revision
    assert guarded.ask(guarded.key).status_code == 401
    assert not (agent.state / "access.json").exists()
    agent.child("serving.router").send_signal(signal.SIGKILL)
    until(lambda: agent.infra.access_revision("eu").revision == guarded.revision, why=lambda: "the next one has it")
    guarded.await_status(401, guarded.key)
    assert guarded.ask(guarded.foreign).status_code == 404
    for path in full:
        path.rmdir()
    until((agent.state / "access.json").exists, why=lambda: "it is written again")
    assert agent.infra.observe("eu").access_behind_seconds is None


def test_a_list_that_the_router_refuses_is_not_acknowledged_and_ends_the_old_one(hasty):
    hasty.allow(hasty.key)
    hasty.await_status(200, hasty.key)
    assert hasty.allow(policies="nonsense").revision < hasty.revision
    refused = hasty.await_status(503, hasty.key)
    assert "out of date" in refused.text
    assert hasty.agent.infra.access_revision("eu").revision == 0
    assert hasty.agent.infra.observe("eu").access_behind_seconds > 0.5
    hasty.allow(hasty.key)
    hasty.await_status(200, hasty.key)
    assert hasty.agent.infra.observe("eu").access_behind_seconds is None


def test_a_refused_list_closes_the_models_that_the_old_one_left_open(hasty):
    hasty.allow(predictions="open")
    hasty.await_status(200)
    hasty.allow(policies="nonsense", predictions="open")
    until(lambda: hasty.agent.infra.access_revision("eu").revision == 0, why=lambda: "the old list has ended")
    assert hasty.ask().status_code == 200, "it is open by the newest list, too"
    hasty.allow(policies="nonsense")
    hasty.await_status(401)
    hasty.await_status(503, hasty.key)


def test_a_region_that_lost_its_list_answers_nobody_until_it_gets_one(guarded):
    agent = guarded.agent
    guarded.serve(revision=2, access="open")
    guarded.allow(guarded.key)
    guarded.await_status(401)
    agent.kill()
    router = agent.child("serving.router")
    (agent.state / "wanted" / "access.json").write_text("{")
    (agent.state / "access.json").unlink()
    agent.launch()
    router.send_signal(signal.SIGKILL)
    assert "lost its list" in guarded.await_status(503).text
    guarded.allow(guarded.key)
    guarded.await_status(200, guarded.key)
    assert guarded.ask().status_code == 401


def test_a_region_that_sends_requests_on_sends_the_credential_and_the_other_one_checks_it(
    new_agent, snapshot, tmp_path
):
    uri, held = snapshot
    peers = tmp_path / "peers.json"
    shared = {"artifacts": uri, "real": True, "peers": peers, "environment": NO_HOSTS}  # one host between them
    agents = [new_agent(name, **shared).start() for name in ("eu", "us")]
    peers.write_text(json.dumps({agent.region: agent.peer_url for agent in agents}))
    eu, us = (Guarded(agent, held, agent.region) for agent in agents)
    us.key, us.foreign = eu.key, eu.foreign
    us.serve()
    us.allow(us.key)
    eu.allow(us.key)

    def sent_on():
        try:
            eu.serve(to="us")
        except Exception as error:  # noqa: BLE001 - an agent reads a new peers file a moment after it was written
            return "no region" not in str(error)
        return True

    until(sent_on, why=lambda: "eu has read its peers")
    answer = eu.await_status(200, eu.key)
    assert answer.headers["x-ipnext-region"] == "us"
    assert eu.ask().status_code == 401
    assert eu.ask(eu.foreign).status_code == 404
    assert eu.ask(eu.key, **{"x-ipnext-generation": "7"}).status_code == 404
    assert eu.ask(**{"x-ipnext-generation": "7"}).status_code == 401, "which generations there are is not for everybody"


def names_in_the_code():
    """Every header of ours that is written anywhere in the code."""
    files = [file for folder in ("ipnext", "serving") for file in (ROOT / folder).rglob("*.py")]
    found = {name for file in files for name in re.findall(r"x-ipnext(?:-[a-z]+)+", file.read_text().lower())}
    return sorted(found)


def test_every_header_of_ours_is_one_that_clients_may_send_or_one_that_is_taken_from_them():
    assert set(names_in_the_code()) == {*CLIENT_HEADERS, *INNER_HEADERS}
    assert not set(CLIENT_HEADERS) & set(INNER_HEADERS)


@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
def test_no_header_of_ours_but_the_documented_ones_gets_through_the_gateway(shared_agent, builder, spell):
    model = builder(f"steered-{spell.__name__}")
    shared_agent.serve(model, {1: (1,), 2: (2,)}, {1: 1.0})
    shared_agent.infra.route(model.table(2, {1: 1.0}, served=[1, 2]))
    url = f"{shared_agent.gateway}/v2/models/{model.model}"

    def seen(headers, path="/infer"):
        answer = shared_agent.client.post(url + path, json={"until": None}, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["steering"]

    plain = seen({})
    assert plain == {"x-ipnext-generation": "1", "x-ipnext-chosen-by": "weight"}
    for name in names_in_the_code():
        if name not in CLIENT_HEADERS:
            assert seen({spell(name): SAID}) == plain, name
            assert seen([(spell(name), SAID), (name, "again")]) == plain, name
            assert seen({spell(name): SAID}, "/versions/2/infer") == {"x-ipnext-generation": "2"}, name
            pinned = {"x-ipnext-generation": "2", spell(name): SAID}
            assert seen(pinned) == {"x-ipnext-generation": "2"}, name
    assert seen({"x-ipnext-deadline-ms": "60000", "x-ipnext-session": "s"}) == plain | {
        "x-ipnext-deadline-ms": "60000",
        "x-ipnext-session": "s",
    }
