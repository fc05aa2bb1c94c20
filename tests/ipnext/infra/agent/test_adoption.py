"""A region goes on while its agent is dead, and the next agent goes on from there: nothing is started again."""

import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import httpx
import psutil
import pytest

from tests.processes import command_line, gone, runs
from tests.waiting import PATIENCE_SECONDS, until


def pids(agent):
    """All processes of the region but the agent."""
    return {process.pid for process in agent.children()}


def table(agent, model):
    """Generations that the router's table names for a model, and the URLs of its hosts."""
    models = json.loads((agent.state / "router.json").read_text())["models"]
    [one] = [one for one in models if one["model"] == model]
    return [s["generation"] for s in one["served"]], {e["url"] for e in one["endpoints"]}


def served_by(agent, model):
    """Generation of an answer; None if there is none."""
    with suppress(httpx.TransportError):
        return agent.infer(model).headers.get("x-ipnext-generation")
    return None


def test_no_request_fails_when_the_agent_is_killed_and_the_next_one_adopts_all(new_agent, builder, load):
    agent, model = new_agent().start(), builder("lasting")
    agent.serve(model, {1: (1,), 2: (2,)}, {1: 1.0}, replicas=2, revision=7)
    before, gateway = pids(agent), agent.gateway
    with load(agent, "lasting") as clients:
        agent.kill()
        seen = clients.answers.total()
        until(lambda: clients.answers.total() > seen + 50, why=lambda: "requests are answered without an agent")
        agent.start()
        agent.await_ready(model.key(), 2, replicas=2)
        assert pids(agent) == before
        assert agent.infra.observe("eu").routes == {"lasting": 7}
        agent.infra.route(model.table(8, {2: 1.0}))
        assert agent.infer("lasting").headers["x-ipnext-generation"] == "2"
        agent.infra.apply(model.deployment({2: (2,)}, replicas=3))
        agent.await_ready(model.key(), 2, replicas=3)
        assert before < pids(agent)
        agent.infra.apply(model.deployment({2: (2,)}, replicas=1))
        until(lambda: len(agent.replicas(model.key())) == 1, why=lambda: "two hosts leave")
    assert {status for status, _ in clients.answers} == {200}, clients.bad[:3]
    assert agent.gateway == gateway
    children = agent.children()
    agent.end()
    assert gone(children)


def test_agents_that_are_killed_one_after_the_other_leave_all_as_it_was(new_agent, builder, load):
    agent, model = new_agent().start(), builder("steady")
    agent.serve(model, {1: (1,)}, {1: 1.0}, replicas=2)
    before = pids(agent)
    with load(agent, "steady") as clients:
        for _ in range(3):
            agent.kill()
            agent.start()
            agent.await_ready(model.key(), 1, replicas=2)
    assert pids(agent) == before
    assert {status for status, _ in clients.answers} == {200}, clients.bad[:3]


def test_a_host_that_loads_as_the_agent_is_killed_becomes_ready_under_the_next_one(new_agent, builder, tmp_path):
    agent, model, gate = new_agent().start(), builder("loading"), tmp_path / "gate"
    agent.infra.apply(model.deployment({1: (1,)}, load_until=str(gate)))
    [replica] = until(lambda: [r for r in agent.replicas(model.key()) if r.pid], why=lambda: "it is started")
    agent.kill()
    agent.start()
    gate.touch()
    agent.await_ready(model.key(), 1)
    assert [r.pid for r in agent.replicas(model.key())] == [replica.pid]


def test_a_host_that_is_asked_for_as_the_agent_is_killed_runs_once(new_agent, builder):
    agent, model = new_agent().start(), builder("asked")
    for number in range(5):
        agent.infra.apply(model.deployment({1: (1,)}, replicas=number + 1))
        agent.kill()
        agent.start()
    agent.await_ready(model.key(), 1, replicas=5)
    words = [command_line(p) for p in agent.children()]
    names = [f"asked.dense.cpu.{number}" for number in range(5)]
    assert [sum(name in line for line in words) for name in names] == [1] * 5
    assert {r.restarts for r in agent.replicas(model.key())} == {0}


def test_a_host_that_drains_as_the_agent_is_killed_finishes_its_requests_and_ends(new_agent, builder, tmp_path):
    patience = {"IPNEXT_AGENT_DRAIN_SECONDS": str(PATIENCE_SECONDS)}
    agent, model, gate = new_agent(environment=patience).start(), builder("leaving"), tmp_path / "gate"
    agent.serve(model, {1: (1,)}, {1: 1.0}, replicas=2)
    before = {r.pid: r.url for r in agent.replicas(model.key())}
    results = []
    asking = [threading.Thread(target=lambda: results.append(agent.infer("leaving", until=gate))) for _ in range(8)]
    for one in asking:
        one.start()
    until(lambda: sum(t.in_flight for t in agent.infra.observe("eu").traffic) == 8, why=lambda: "all are under way")
    agent.infra.apply(model.deployment({1: (1,)}, replicas=1))
    drains = lambda url: httpx.get(f"{url}/control/state", trust_env=False, timeout=60).json()["draining"]  # noqa: E731
    [leaving] = until(lambda: [pid for pid, url in before.items() if drains(url)], why=lambda: "one drains")
    agent.kill()
    agent.start()
    until(lambda: len(table(agent, "leaving")[1]) == 1, why=lambda: "it is not routed to")
    assert psutil.pid_exists(leaving)
    gate.touch()
    for one in asking:
        one.join()
    assert [answer.status_code for answer in results] == [200] * 8
    until(lambda: not psutil.pid_exists(leaving), why=lambda: "it ends")
    assert [r.pid for r in agent.replicas(model.key())] == [pid for pid in before if pid != leaving]


def test_a_route_change_that_the_agent_died_in_is_completed_in_order(new_agent, builder, load):
    impatient = {"IPNEXT_AGENT_UNANSWERED_SECONDS": "2"}
    agent, model = new_agent(environment=impatient).start(), builder("changing")
    agent.serve(model, {1: (1,), 2: (2,)}, {1: 1.0})
    router = agent.child("stand_in_router")
    with load(agent, "changing") as clients:
        router.send_signal(signal.SIGSTOP)  # it does not confirm: the agent waits before it changes Envoy
        try:
            changing = threading.Thread(target=lambda: _ignored(agent.infra.route, model.table(2, {2: 1.0})))
            changing.start()
            until(lambda: table(agent, "changing")[0] == [1, 2], why=lambda: "the router is to serve both")
            agent.kill()
            changing.join()
            agent.launch()
            ended = time.monotonic() + 1.0
            while time.monotonic() < ended:
                assert agent.infra.observe("eu").routes == {"changing": 1}, "Envoy waits for the router"
        finally:
            router.send_signal(signal.SIGCONT)
        until(lambda: served_by(agent, "changing") == "2", why=lambda: "Envoy follows")
        until(lambda: table(agent, "changing")[0] == [2], why=lambda: "the router forgets the former generation")
        assert agent.infra.observe("eu").routes == {"changing": 2}
    assert {status for status, _ in clients.answers} == {200}, clients.bad[:3]
    assert agent.child("stand_in_router").pid == router.pid


def _ignored(call, *arguments):
    with suppress(Exception):
        call(*arguments)


def test_what_ended_while_no_agent_ran_is_started_again(new_agent, builder):
    agent, model = new_agent().start(), builder("ended")
    agent.serve(model, {1: (1,)}, {1: 1.0}, replicas=2)
    victims = [agent.child("stand_in_router"), psutil.Process(agent.replicas(model.key())[0].pid)]
    others = pids(agent) - {victim.pid for victim in victims}
    agent.kill()
    for victim in victims:
        victim.kill()
    until(lambda: gone(victims), why=lambda: "they are gone")
    agent.start()
    agent.await_ready(model.key(), 1, replicas=2)
    until(lambda: served_by(agent, "ended") == "1", why=lambda: "requests are answered")
    assert others < pids(agent)
    assert len(pids(agent)) == len(others) + 2


def test_a_hot_swap_that_the_agent_died_in_goes_on(new_agent, builder, tmp_path, load):
    agent, model, gate = new_agent().start(), builder("swapping"), tmp_path / "gate"
    first = model.deployment({1: (1,)}, fetch_until=str(gate)).model_copy(update={"own": {1: 1}, "swap": True})
    second = model.deployment({2: (2,)}, fetch_until=str(gate)).model_copy(update={"own": {2: 1}, "swap": True})
    agent.infra.apply(first)
    agent.await_ready(model.key(), 1)
    agent.infra.route(model.table(1, {1: 1.0}, served=[1, 2]))
    [before] = agent.replicas(model.key())
    with load(agent, "swapping") as clients:
        agent.infra.apply(second)
        until(lambda: [r for r in agent.replicas(model.key()) if r.coming == (2,)], why=lambda: "it fetches")
        agent.kill()
        agent.start()
        assert [(r.pid, r.ready) for r in agent.replicas(model.key())] == [(before.pid, (1,))]
    assert {status for status, _ in clients.answers} == {200}, clients.bad[:3]
    gate.touch()
    agent.await_ready(model.key(), 2)
    assert [r.pid for r in agent.replicas(model.key())] == [before.pid]


def test_a_region_whose_agent_never_comes_back_ends(new_agent, builder):
    agent = new_agent(environment={"IPNEXT_AGENT_SUCCESSOR_SECONDS": "0.5"}).start()
    agent.serve(builder("left"), {1: (1,)}, {1: 1.0})
    children = agent.children()
    agent.kill()
    until(lambda: gone(children), why=lambda: f"all end: {[command_line(p) for p in children if runs(p)]}")
    agent.start()
    until(lambda: served_by(agent, "left") == "1", why=lambda: "all comes back")


@pytest.fixture
def owner():
    """A process that agents' regions are to end with."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("agent_runs", [True, False])
def test_a_region_goes_on_without_its_agent_as_long_as_its_owner_and_ends_with_it(
    new_agent, builder, owner, agent_runs
):
    agent = new_agent(environment={"IPNEXT_AGENT_SUCCESSOR_SECONDS": "0"}, owner=owner.pid).start()
    agent.serve(builder("owned"), {1: (1,)}, {1: 1.0})
    gateway, children = agent.gateway, agent.children()
    if not agent_runs:
        agent.kill()
        log = agent.state / "logs" / "supervisor.log"
        until(lambda: "agent disconnected" in log.read_text(), why=log.read_text)
        assert httpx.post(f"{gateway}/v2/models/owned/infer", json={}, trust_env=False, timeout=60).status_code == 200
    owner.kill()
    until(lambda: gone(children), why=lambda: f"all end: {[command_line(p) for p in children if runs(p)]}")
    until(lambda: agent.process.poll() is not None, why=lambda: "the agent ends")
    assert not [p for p in psutil.process_iter() if str(agent.state) in command_line(p)]


def test_an_agent_whose_owner_has_ended_runs_nothing(new_agent, owner):
    owner.kill()
    owner.wait()
    agent = new_agent(owner=owner.pid)
    with pytest.raises(AssertionError, match="owner"):
        agent.start()


def test_a_supervisor_that_is_killed_takes_all_along_and_the_agent_starts_all_again(new_agent, builder):
    agent, model = new_agent().start(), builder("again")
    agent.serve(model, {1: (1,)}, {1: 1.0}, replicas=2)
    gateway, former, supervisor = agent.gateway, agent.children(), agent.supervisor
    supervisor.kill()
    until(lambda: gone(former), why=lambda: f"all end: {[command_line(p) for p in former if runs(p)]}")
    until(lambda: served_by(agent, "again") == "1", why=lambda: "requests are answered again")
    agent.await_ready(model.key(), 1, replicas=2)
    assert agent.gateway == gateway
    assert agent.supervisor.pid != supervisor.pid
    until(lambda: not supervisor.is_running(), why=lambda: "the former one is no zombie")


def test_an_agent_replaces_a_supervisor_that_hangs(new_agent, builder):
    agent = new_agent(environment={"IPNEXT_AGENT_HUNG_SECONDS": "2"}).start()
    model = builder("hung")
    agent.serve(model, {1: (1,)}, {1: 1.0})
    former, supervisor = agent.children(), agent.supervisor
    agent.kill()
    supervisor.send_signal(signal.SIGSTOP)
    agent.start()
    until(lambda: gone(former), why=lambda: f"all end: {[command_line(p) for p in former if runs(p)]}")
    until(lambda: served_by(agent, "hung") == "1", why=lambda: "requests are answered again")


def test_the_socket_of_a_supervisor_is_this_users_alone(new_agent):
    agent = new_agent().start()
    assert (agent.state / "supervisor.sock").stat().st_mode & 0o777 == 0o600


LEAVES = {"IPNEXT_AGENT_SIGTERM": "leave"}


def stop(agent, number=signal.SIGTERM):
    """Send a signal; return the exit status."""
    agent.process.send_signal(number)
    return agent.process.wait(PATIENCE_SECONDS)


def test_an_agent_that_leaves_at_sigterm_is_restarted_under_load_without_a_failed_request(new_agent, builder, load):
    agent, model = new_agent(environment=LEAVES).start(), builder("restarted")
    agent.serve(model, {1: (1,), 2: (2,)}, {1: 1.0}, replicas=2, revision=3)
    before = pids(agent)
    with load(agent, "restarted") as clients:
        for revision in (4, 5):
            assert stop(agent) == 0
            seen = clients.answers.total()
            until(lambda seen=seen: clients.answers.total() > seen + 50, why=lambda: "requests are answered")
            agent.start()
            agent.await_ready(model.key(), 2, replicas=2)
            agent.infra.route(model.table(revision, {1 + revision % 2: 1.0}, served=[1, 2]))
            assert pids(agent) == before
    assert {status for status, _ in clients.answers} == {200}, clients.bad[:3]
    children = agent.children()
    assert stop(agent, signal.SIGINT) == 0
    assert gone(children)


def test_a_region_that_no_agent_comes_back_to_ends(new_agent, builder):
    agent = new_agent(environment=LEAVES | {"IPNEXT_AGENT_SUCCESSOR_SECONDS": "0.2"}).start()
    agent.serve(builder("lonely"), {1: (1,)}, {1: 1.0})
    children = agent.children()
    assert stop(agent) == 0
    until(lambda: gone(children), why=lambda: "nothing of the region is left")


def test_a_region_that_its_agent_has_left_ends_with_its_owner(new_agent, builder):
    with subprocess.Popen(["sleep", "infinity"]) as owner:
        agent = new_agent(environment=LEAVES, owner=owner.pid).start()
        agent.serve(builder("owned"), {1: (1,)}, {1: 1.0})
        children = agent.children()
        assert stop(agent) == 0
        assert all(runs(child) for child in children)
        owner.kill()
    until(lambda: gone(children), why=lambda: "nothing of the region is left")
