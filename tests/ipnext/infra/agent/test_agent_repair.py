"""What somebody changes at a host's or a router's control routes is corrected by the agent."""

import threading

import httpx
import psutil
import pytest

from ipnext.infra.assignment import differs
from ipnext.infra.control import HOST_BYTES
from ipnext.infra.host.repair import FailedLoads, HostRepair
from ipnext.infra.settings import AgentSettings
from ipnext.model.deployment.host_control import HeldGeneration, HostedSnapshot, HostFailure, HostHolds, HostState
from tests.processes import command_line, gone
from tests.waiting import until

HOLD = HostedSnapshot(model="m", part="p", engine="torch", snapshot=1, digest="d", uri="file:///s/1", generations=(1,))


def put_holds(url, holds=()):
    body = {"holds": list(holds), "coming": [], "drain_seconds": 0}
    httpx.put(f"{url}/control/holds", json=body, trust_env=False, timeout=60).raise_for_status()


def drain(url):
    httpx.post(f"{url}/control/drain", trust_env=False, timeout=60).raise_for_status()


def state(url):
    return HostState.model_validate_json(httpx.get(f"{url}/control/state", trust_env=False, timeout=60).content)


def router_url(process):
    command = process.cmdline()
    return f"http://127.0.0.1:{command[command.index('--port') + 1]}"


def test_a_host_that_was_told_to_hold_nothing_gets_its_snapshots_again(shared_agent, builder):
    model = builder("emptied")
    shared_agent.serve(model, {1: (1,)}, {1: 1.0})
    [replica] = shared_agent.replicas(model.key())
    put_holds(replica.url)
    until(
        lambda: [held.generation for held in state(replica.url).ready] == [1],
        why=lambda: f"it has its snapshot again: {state(replica.url)}",
    )
    until(lambda: shared_agent.infer("emptied").status_code == 200, why=lambda: "requests are answered again")
    assert [(r.pid, r.restarts) for r in shared_agent.replicas(model.key())] == [(replica.pid, 0)]


def test_a_host_whose_state_has_no_end_is_read_to_the_limit_and_reported(shared_agent, builder):
    model = builder("endless")
    shared_agent.serve(model, {1: (1,)}, {1: 1.0})
    [replica] = shared_agent.replicas(model.key())
    own = {"model": "endless", "part": "dense", "engine": "torch", "snapshot": 1, "digest": "d1", "uri": "file:///s/1"}
    put_holds(replica.url, [own | {"generations": [1], "settings": {"endless_state": True}}])
    until(
        lambda: f"larger than {HOST_BYTES} bytes" in (shared_agent.replicas(model.key())[0].message or ""),
        why=lambda: f"the replica says why: {shared_agent.replicas(model.key())}",
    )


def test_a_host_that_was_told_to_hold_more_drops_it_again(shared_agent, builder):
    model = builder("overfull")
    shared_agent.serve(model, {1: (1,)}, {1: 1.0})
    [replica] = shared_agent.replicas(model.key())
    hold = {"model": "other", "part": "x", "engine": "torch", "snapshot": 9, "digest": "d", "uri": "file:///s/9"}
    own = {"model": "overfull", "part": "dense", "engine": "torch", "snapshot": 1, "digest": "d1", "uri": "file:///s/1"}
    put_holds(replica.url, [hold | {"generations": [7], "settings": {}}, own | {"generations": [1], "settings": {}}])
    until(
        lambda: {held.generation for held in state(replica.url).ready} == {1},
        why=lambda: f"it has its own snapshot alone: {state(replica.url)}",
    )


def test_a_host_that_was_told_to_hold_other_bytes_under_the_same_numbers_gets_its_own_again(shared_agent, builder):
    model = builder("swapped")
    shared_agent.serve(model, {1: (1,)}, {1: 1.0})
    [replica] = shared_agent.replicas(model.key())
    own = state(replica.url)
    hold = {
        "model": "swapped",
        "part": "dense",
        "engine": "torch",
        "snapshot": 1,
        "digest": "other",
        "uri": "file:///s/1",
    }
    put_holds(replica.url, [hold | {"generations": [1], "settings": {}}])
    until(lambda: state(replica.url).stamped == own.stamped, why=lambda: f"its agent's: {state(replica.url)}")
    assert [held.generation for held in state(replica.url).ready] == [1]


@pytest.mark.parametrize(("stamped", "sends"), [("mine", False), ("other", True), ("", True), (None, False)])
def test_holds_of_another_stamp_are_replaced(stamped, sends):
    told = None if stamped is None else HostHolds(holds=(), stamp=stamped).stamp_digest
    seen = HostState(ready=(HeldGeneration(model="m", part="p", generation=1, snapshot=1),), stamped=told)
    assert HostRepair(AgentSettings()).must_send(seen, HostHolds(holds=(HOLD,)), stamp="mine") == sends


def test_each_loss_is_corrected_at_once_and_one_that_lasts_now_and_then():
    sent = HostHolds(holds=(HOLD,))
    ready = HeldGeneration(model="m", part="p", generation=1, snapshot=1)
    whole, empty = HostState(ready=(ready,)), HostState()
    repair = HostRepair(AgentSettings(load_retry_seconds=3600))
    told = [repair.must_send(seen, sent) for seen in (whole, empty, empty, whole, empty, empty)]
    assert told == [False, True, False, False, True, False]
    assert HostRepair(AgentSettings(load_retry_seconds=1e-9)).must_send(empty, sent)


@pytest.mark.parametrize(
    ("state", "lacks"),
    [
        ({"ready": [1]}, False),
        ({"loading": [1]}, False),
        ({"failures": [1]}, False),
        ({}, True),
        ({"ready": [2]}, True),
        ({"ready": [1], "loading": [2]}, True),
        ({"ready": [1], "failures": [2]}, False),
    ],
)
def test_what_a_host_has_is_compared_by_generation(state, lacks):
    one = {"model": "m", "part": "p", "snapshot": 1}
    told = {kind: [one | {"generation": g} for g in numbers] for kind, numbers in state.items() if kind != "failures"}
    failed = [one | {"generations": [g], "code": "c", "message": "m"} for g in state.get("failures", ())]
    assert differs(HostState.model_validate({**told, "failures": failed}), HostHolds(holds=(HOLD,))) == lacks


def test_a_host_that_drains_unasked_is_replaced(shared_agent, builder, load):
    model = builder("drained")
    shared_agent.serve(model, {1: (1,)}, {1: 1.0}, replicas=2)
    victim = shared_agent.replicas(model.key())[0]
    process = psutil.Process(victim.pid)
    with load(shared_agent, "drained") as clients:
        drain(victim.url)
        until(lambda: gone([process]), why=lambda: "it ends")
        shared_agent.await_ready(model.key(), 1, replicas=2)
    assert {status for status, _ in clients.answers} == {200}, clients.bad[:3]


def test_a_host_that_drains_unasked_finishes_what_it_has(new_agent, builder, tmp_path):
    agent, model, gate = (
        new_agent(environment={"IPNEXT_AGENT_DRAIN_SECONDS": "120"}).start(),
        builder("busy"),
        tmp_path / "gate",
    )
    agent.serve(model, {1: (1,)}, {1: 1.0})
    [victim] = agent.replicas(model.key())
    results = []
    asking = threading.Thread(target=lambda: results.append(agent.infer("busy", until=gate).status_code))
    asking.start()
    until(lambda: state(victim.url).in_flight, why=lambda: "the host has it")
    drain(victim.url)
    until(lambda: agent.replicas(model.key())[0].ready == (), why=lambda: "it leaves routing")
    gate.touch()
    asking.join()
    assert results == [200]
    until(lambda: agent.replicas(model.key())[0].pid not in (None, victim.pid), why=lambda: "it is replaced")
    agent.await_ready(model.key(), 1)


@pytest.fixture
def routed(new_agent):
    """An agent with a real router, and no hosts."""
    own = '["{python}", "-m", "serving.router", "--port", "{port}", "--region", "{region}", "--table", "{table}"]'
    return new_agent(environment={"IPNEXT_AGENT_ROUTER_COMMAND": own, "IPNEXT_AGENT_GRACE_SECONDS": "2"}).start()


def routers(agent):
    return [p for p in agent.children() if "serving.router --port" in command_line(p)]


def test_routers_that_drain_unasked_are_replaced_and_end(routed):
    """However often: in the end there is one."""
    seen = []
    for _ in range(3):
        [now] = until(lambda: [p for p in routers(routed) if p not in seen], why=lambda: "there is another one")
        url = router_url(now)
        until(lambda url=url: answers(url), why=lambda: "it answers")
        drain(url)
        seen.append(now)
    until(lambda: gone(seen), why=lambda: f"all that drain end: {[command_line(p) for p in seen]}")
    [last] = until(lambda: routers(routed), why=lambda: "one is left")
    until(lambda: answers(router_url(last)), why=lambda: "it answers")
    until(lambda: routed.get("/v2/health/live") == 200, why=lambda: "the gateway answers")
    assert len(routers(routed)) == 1


def answers(url):
    try:
        return httpx.get(f"{url}/v2/health/live", trust_env=False, timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def test_a_router_that_drains_as_the_agent_is_killed_is_replaced_by_the_next_one(routed):
    [former] = routers(routed)
    routed.kill()
    drain(router_url(former))
    routed.start()
    until(lambda: gone([former]), why=lambda: "it ends")
    until(lambda: len(routers(routed)) == 1, why=lambda: "there is another one")
    until(lambda: routed.get("/v2/health/live") == 200, why=lambda: "the gateway answers")


def test_a_gateway_that_was_ended_comes_back(shared_agent):
    [former] = [p for p in shared_agent.children() if "envoy" in command_line(p)]
    former.terminate()
    until(lambda: gone([former]), why=lambda: "it ends")
    until(lambda: shared_agent.get("/v2/health/live") == 200, why=lambda: "another one answers")


def test_a_load_that_failed_stays_told_until_its_snapshot_is_at_hand():
    """A look between a failure and the end of the next try sees the failure.

    It ends a rollout, whenever the look comes.
    """
    failure = HostFailure(model="m", part="p", snapshot=1, generations=(1,), code="MemoryExceeded", message="no room")
    ready = HeldGeneration(model="m", part="p", generation=1, snapshot=1)
    again = HostState(loading=(ready,))
    loads = FailedLoads()

    for seen, told in (
        (again, ()),
        (HostState(failures=(failure,)), (failure,)),
        (again, (failure,)),
        (HostState(ready=(ready,)), ()),
    ):
        loads.see(seen, [HOLD], [])
        assert loads.all == told
    loads.see(HostState(failures=(failure,)), [], [HOLD])
    loads.see(again, [], [HOLD])
    assert loads.all == (failure,), "of what a host is to go over to"
    loads.see(HostState(fetched=("d",)), [], [HOLD])
    assert loads.all == ()
    loads.see(HostState(failures=(failure,)), [], [])
    assert loads.all == (), "of a snapshot that nothing wants"
