"""What an agent does when its processes, or it itself, are killed, hang or end."""

import json
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress

import httpx
import pytest

from ipnext.model.deployment.host_control import HostState
from ipnext.model.deployment.replica import ReplicaPhase
from tests.processes import gone
from tests.waiting import PATIENCE_SECONDS, until


def answers(agent, model):
    """Whether the model answers right now; a connection that broke is a no."""
    with suppress(httpx.TransportError):
        return agent.infer(model).status_code == 200
    return False


def host_state(url):
    return HostState.model_validate_json(httpx.get(f"{url}/control/state", trust_env=False, timeout=60).content)


def test_a_killed_host_leaves_routing_at_once_and_comes_back(shared_agent, builder, load):
    model = builder("crashing")
    shared_agent.serve(model, {1: (1,)}, {1: 1.0}, replicas=2)
    victim = shared_agent.replicas(model.key())[0]
    with load(shared_agent, "crashing") as clients:
        os.kill(victim.pid, signal.SIGKILL)
        until(
            lambda: victim.url not in (shared_agent.state / "router.json").read_text(),
            why=lambda: "it leaves the table",
        )
        until(
            lambda: victim.pid not in [r.pid for r in shared_agent.replicas(model.key())],
            why=lambda: "the crash is seen",
        )
        shared_agent.await_ready(model.key(), 1, replicas=2)
    again = next(r for r in shared_agent.replicas(model.key()) if r.id == victim.id)
    assert again.restarts == 1
    assert "SIGKILL" in again.message
    # Requests inside the killed host are tried again as a whole by the router.
    assert {status for status, _ in clients.answers} == {200}, clients.bad[:3]


def test_a_host_that_never_starts_is_tried_again_and_again_with_its_reason(new_agent, builder):
    agent = new_agent(
        environment={"IPNEXT_AGENT_HOST_COMMAND": '["{python}", "-c", "raise SystemExit(\'no GPU here\')"]'}
    )
    agent.start()
    model = builder("hopeless")
    agent.infra.apply(model.deployment({1: (1,)}))
    until(lambda: [r for r in agent.replicas(model.key()) if r.restarts >= 3], why=lambda: "three restarts")
    until(
        lambda: [r for r in agent.replicas(model.key()) if r.phase is ReplicaPhase.FAILED],
        why=lambda: "the phase between them",
    )
    assert "no GPU here" in agent.replicas(model.key())[0].message


def test_a_hanging_host_leaves_routing_and_returns_when_it_goes_on(new_agent, builder):
    pace = {"IPNEXT_AGENT_UNANSWERED_SECONDS": "3", "IPNEXT_AGENT_HUNG_SECONDS": str(PATIENCE_SECONDS)}
    agent, model = new_agent(environment=pace).start(), builder("hanging")
    agent.serve(model, {1: (1,)}, {1: 1.0}, replicas=2)
    victim = agent.replicas(model.key())[0]
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        until(lambda: victim.url not in (agent.state / "router.json").read_text(), why=lambda: "it leaves the table")
        agent.await_ready(model.key(), 1, replicas=1)
        agent.await_followed()
        assert {agent.infer("hanging").json()["parts"]["dense"]["pid"] for _ in range(6)}.isdisjoint({victim.pid})
    finally:
        os.kill(victim.pid, signal.SIGCONT)
    agent.await_ready(model.key(), 1, replicas=2)


@pytest.mark.parametrize("what", ["stand_in_router", "envoy"])
def test_a_killed_router_or_envoy_comes_back_as_it_was(shared_agent, builder, what):
    model = builder(f"after-{what.replace('_', '-')}")
    shared_agent.serve(model, {1: (1,)}, {1: 1.0})
    gateway = shared_agent.gateway
    victim = shared_agent.child(what)
    victim.kill()
    until(lambda: not victim.is_running(), why=lambda: "it is gone")
    until(lambda: answers(shared_agent, model.model), why=lambda: "requests are answered again")
    until(
        lambda: shared_agent.infra.observe("eu").routes.get(model.model) == 1,
        why=lambda: "its routes are reported again",
    )
    assert shared_agent.gateway == gateway


def test_a_host_counts_as_ready_only_once_the_router_sends_to_it(shared_agent, builder):
    late = builder("late")
    shared_agent.infra.route(late.table(1, {}, served=[1]))
    router = shared_agent.child("stand_in_router")
    router.send_signal(signal.SIGSTOP)
    try:
        shared_agent.infra.apply(late.deployment({1: (1,)}))
        until(lambda: endpoints(shared_agent, "late") == [(1,)], why=lambda: "the table names the host")
        seen = shared_agent.replicas(late.key())
    finally:
        router.send_signal(signal.SIGCONT)
    shared_agent.await_ready(late.key(), 1)
    assert [replica.ready for replica in seen] == [()]


def endpoints(agent, model):
    """What the router's table says of a model's hosts."""
    models = json.loads((agent.state / "router.json").read_text())["models"]
    return [tuple(found["generations"]) for one in models if one["model"] == model for found in one["endpoints"]]


def test_a_route_waits_for_a_router_that_is_just_coming_back(shared_agent, builder):
    model = builder("patient")
    shared_agent.serve(model, {1: (1,), 2: (2,)}, {1: 1.0})
    shared_agent.child("stand_in_router").kill()
    shared_agent.infra.route(model.table(2, {2: 1.0}))
    assert shared_agent.infer("patient").headers["x-ipnext-generation"] == "2"


def test_a_terminated_agent_finishes_requests_and_leaves_nothing(new_agent, builder, tmp_path):
    """It may take ten minutes over that, and ends with the last request."""
    agent, gate = new_agent(environment={"IPNEXT_AGENT_SHUTDOWN_DRAIN_SECONDS": "600"}).start(), tmp_path / "gate"
    agent.serve(builder("last"), {1: (1,)}, {1: 1.0}, replicas=2)
    children = agent.children()
    assert len(children) == 5, children  # two hosts, router, Envoy and their supervisor
    results = []
    asking = threading.Thread(target=lambda: results.append(agent.infer("last", until=gate).status_code))
    asking.start()
    until(lambda: any(c.in_flight for c in agent.infra.observe("eu").traffic), why=lambda: "the request is under way")
    agent.process.send_signal(signal.SIGTERM)
    time.sleep(1.0)
    assert agent.process.poll() is None
    gate.touch()
    assert agent.process.wait(PATIENCE_SECONDS) == 0
    asking.join()
    assert results == [200]
    assert gone(children)


def test_a_second_agent_on_the_same_directory_is_refused(new_agent):
    agent = new_agent().start()
    command = agent.process.args
    second = subprocess.run(
        command, env=agent.environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert second.returncode == 2
    assert "another agent runs on" in second.stderr


def test_a_dropped_generation_is_held_until_its_requests_are_answered(shared_agent, builder, tmp_path):
    model, gate = builder("lingering"), tmp_path / "gate"
    shared_agent.serve(model, {1: (1,)}, {1: 1.0})
    shared_agent.infra.apply(model.deployment({1: (1,), 2: (2,)}))
    shared_agent.await_ready(model.key(), 2)
    results = []
    asking = threading.Thread(target=lambda: results.append(shared_agent.infer("lingering", until=gate)))
    asking.start()
    until(
        lambda: [t for t in shared_agent.infra.observe("eu").traffic if t.model == "lingering" and t.in_flight],
        why=lambda: "asked",
    )
    shared_agent.infra.route(model.table(2, {2: 1.0}))
    shared_agent.infra.apply(model.deployment({2: (2,)}))
    host = shared_agent.replicas(model.key())[0].url
    ended = time.monotonic() + 1.0
    while time.monotonic() < ended:
        assert {ready.generation for ready in host_state(host).ready} == {1, 2}
        time.sleep(0.05)
    gate.touch()
    asking.join()
    assert results[0].headers["x-ipnext-generation"] == "1"
    until(lambda: len(host_state(host).ready) == 1, why=lambda: "the host is told to hold less")
