"""How an agent lets a replica go over from one snapshot to another: what it tells host and router, and when."""

import json
import time
import zlib
from types import SimpleNamespace

import httpx
import pytest

from ipnext.infra.agent.reconciler import _by_worth
from ipnext.infra.router.table import Terms, routed_models
from tests.waiting import until


def swapping(model, own, *, digests="d", **settings):
    """The deployment with these counts by generation, each generation of the snapshot of its number."""
    found = model.deployment({generation: (generation,) for generation in own}, digest=digests, **settings)
    return found.model_copy(update={"own": own, "replicas": sum(own.values()), "swap": True})


def table_of(agent, model):
    models = json.loads((agent.state / "router.json").read_text())["models"]
    return next(one for one in models if one["model"] == model.model)


def answering(agent, model):
    """Generations that the router's table has endpoints for."""
    return sorted(g for endpoint in table_of(agent, model)["endpoints"] for g in endpoint["generations"])


@pytest.fixture
def gate(tmp_path):
    """A file that is not there yet."""
    return tmp_path / "gate"


@pytest.fixture
def serving(shared_agent, builder, request):
    """Starts replicas of generation 1 of a model of the test's own; the router may answer with generation 2 too."""

    def start(replicas, **settings):
        model = builder(f"swap{zlib.crc32(request.node.name.encode())}")
        shared_agent.infra.apply(swapping(model, {1: replicas}, **settings))
        shared_agent.await_ready(model.key(), 1, replicas)
        shared_agent.infra.route(model.table(1, {1: 1.0}, served=[1, 2]))
        return model

    return start


def test_the_former_snapshot_answers_until_the_next_one_is_at_hand(shared_agent, serving, gate):
    """As the way back does: what is wanted is told again before it has come to that."""
    model = serving(1, fetch_until=str(gate))
    shared_agent.infra.apply(swapping(model, {2: 1}, fetch_until=str(gate)))
    ended = time.monotonic() + 0.7
    while time.monotonic() < ended:
        assert answering(shared_agent, model) == [1]
        time.sleep(0.05)
    assert shared_agent.infer(model.model, generation=1).status_code == 200
    shared_agent.infra.apply(swapping(model, {2: 1}, fetch_until=str(gate)))
    gate.touch()
    shared_agent.await_ready(model.key(), 2)
    assert answering(shared_agent, model) == [2]


def test_what_is_wanted_back_before_the_next_one_is_at_hand_never_leaves(shared_agent, serving, gate):
    model = serving(1, fetch_until=str(gate))
    (before,) = shared_agent.replicas(model.key())
    shared_agent.infra.apply(swapping(model, {2: 1}, fetch_until=str(gate)))
    shared_agent.infra.apply(swapping(model, {1: 1}, fetch_until=str(gate)))
    gate.touch()
    ended = time.monotonic() + 1.0
    while time.monotonic() < ended:
        assert answering(shared_agent, model) == [1]
        time.sleep(0.05)
    assert [(r.id, r.pid, r.ready) for r in shared_agent.replicas(model.key())] == [(before.id, before.pid, (1,))]


def test_a_replica_that_has_not_left_stays_and_none_that_has_gone_over_leaves_in_its_stead(shared_agent, serving, gate):
    """A wave is undone while its replica still fetches.

    The one of the wave before answers on for the next generation.
    """
    model = serving(3)
    shared_agent.infra.apply(swapping(model, {1: 2, 2: 1}))
    shared_agent.await_ready(model.key(), 2)
    before = {r.id: r.ready for r in shared_agent.replicas(model.key())}
    shared_agent.infra.apply(swapping(model, {1: 1, 2: 2}, fetch_until=str(gate)))
    shared_agent.infra.apply(swapping(model, {1: 2, 2: 1}, fetch_until=str(gate)))
    gate.touch()
    ended = time.monotonic() + 1.0
    while time.monotonic() < ended:
        assert answering(shared_agent, model) == [1, 1, 2]
        time.sleep(0.05)
    assert {r.id: r.ready for r in shared_agent.replicas(model.key())} == before


def test_who_was_to_go_over_does_where_the_same_is_told_again(shared_agent, serving, gate):
    model = serving(2)
    shared_agent.infra.apply(swapping(model, {1: 1, 2: 1}, fetch_until=str(gate)))
    shared_agent.infra.apply(swapping(model, {1: 1, 2: 1}, fetch_until=str(gate)))
    gate.touch()
    shared_agent.await_ready(model.key(), 2)
    assert [(r.id[-1], r.ready) for r in shared_agent.replicas(model.key())] == [("0", (1,)), ("1", (2,))]


def test_those_that_are_to_go_over_are_worth_less_than_those_that_stay_and_more_than_those_that_answer_nothing():
    """So the same ones go, told the same again, though others of the former snapshot are younger."""
    kinds = [("silent", (), True), ("leaving soon", (1,), False), ("young", (1,), True), ("youngest", (1,), True)]
    found = [SimpleNamespace(name=k, ready=r, stays=s, number=number) for number, (k, r, s) in enumerate(kinds)]

    assert [replica.name for replica in _by_worth(found)] == ["young", "youngest", "leaving soon", "silent"]


def test_a_next_snapshot_that_cannot_be_had_is_told_while_the_former_one_answers_on(shared_agent, serving):
    model = serving(1)
    shared_agent.infra.apply(swapping(model, {2: 1}, digests="bad"))
    until(lambda: [r for r in shared_agent.replicas(model.key()) if r.failures], why=lambda: "a failure is told")
    (replica,) = shared_agent.replicas(model.key())
    assert [(f.generations, f.message) for f in replica.failures] == [((2,), "cannot be had")]
    assert replica.ready == (1,)


def test_the_table_says_what_is_coming_from_when_it_is_fetched_until_the_replica_is_ready(shared_agent, serving, gate):
    gate.touch()
    fetched = gate.with_name("fetched")
    settings = {"fetch_until": str(fetched), "load_until": str(gate)}
    model = serving(1, **settings)
    gate.unlink()
    assert (table_of(shared_agent, model)["swap"], table_of(shared_agent, model)["coming"]) == (True, [])
    shared_agent.infra.apply(swapping(model, {2: 1}, **settings))
    until(lambda: table_of(shared_agent, model)["coming"] == [2], why=lambda: "it fetches")
    assert answering(shared_agent, model) == [1]
    fetched.touch()
    until(lambda: answering(shared_agent, model) == [], why=lambda: "it leaves")
    assert table_of(shared_agent, model)["coming"] == [2]
    (replica,) = shared_agent.replicas(model.key())
    assert (replica.coming, replica.going_over) == ((2,), "goes over to generation 2")
    assert replica.log.endswith(f"/logs/{replica.id}.log")
    gate.touch()
    until(lambda: answering(shared_agent, model) == [2], why=lambda: "it is ready")
    assert table_of(shared_agent, model)["coming"] == []
    assert shared_agent.replicas(model.key())[0].coming == ()


def test_a_replica_that_crashes_on_its_way_comes_up_with_what_is_wanted_of_it(shared_agent, serving):
    model = serving(2, fetch_seconds=600.0)
    before = {r.id: r.pid for r in shared_agent.replicas(model.key())}
    shared_agent.infra.apply(swapping(model, {1: 1, 2: 1}, fetch_seconds=600.0))
    victim = shared_agent.child(f"{model.key().model}.{model.key().part}.cpu.1")
    victim.kill()
    shared_agent.await_ready(model.key(), 2)
    after = {r.id: (r.pid, r.ready) for r in shared_agent.replicas(model.key())}
    assert {ready for _, ready in after.values()} == {(1,), (2,)}
    assert [name for name, (pid, _) in after.items() if before[name] != pid] == [
        name for name, (_, ready) in after.items() if ready == (2,)
    ]


def test_the_table_says_what_is_coming_if_a_part_that_crashed_holds_it_before_the_others(shared_agent, builder, gate):
    """Neither generation is complete meanwhile: requests wait for the part that fetches and are not refused."""
    model, settings = builder("swapparts", parts=("dense", "head")), {"fetch_until": str(gate)}
    for part in model.parts:
        shared_agent.infra.apply(swapping(model, {1: 1}, part=part, **settings))
    for part in model.parts:
        shared_agent.await_ready(model.key(part), 1)
    shared_agent.infra.route(model.table(1, {1: 1.0}, served=[1, 2]))
    for part in model.parts:
        shared_agent.infra.apply(swapping(model, {2: 1}, part=part, **settings))
    shared_agent.child(f"{model.model}.head.cpu.").kill()
    shared_agent.await_ready(model.key("head"), 2)
    assert answering(shared_agent, model) == [1, 2]
    assert table_of(shared_agent, model)["coming"] == [2]
    gate.touch()
    until(lambda: answering(shared_agent, model) == [2, 2], why=lambda: "both parts have it")
    assert table_of(shared_agent, model)["coming"] == []


def test_an_agent_that_starts_in_the_middle_of_a_hot_swap_completes_it(new_agent, builder, tmp_path):
    agent, model, gate = new_agent().start(), builder("again"), tmp_path / "gate"
    agent.infra.apply(swapping(model, {1: 2}, fetch_until=str(gate)))
    agent.await_ready(model.key(), 1, 2)
    before = {replica.pid for replica in agent.replicas(model.key())}
    agent.infra.apply(swapping(model, {1: 1, 2: 1}, fetch_until=str(gate)))
    agent.kill()
    agent.start()
    assert [replica.ready for replica in agent.replicas(model.key())] == [(1,), (1,)]
    gate.touch()
    agent.await_ready(model.key(), 1)
    agent.await_ready(model.key(), 2)
    assert {replica.pid for replica in agent.replicas(model.key())} == before


def test_under_load_no_request_fails_while_replicas_go_over_one_by_one(shared_agent, serving, load):
    model = serving(2, load_seconds=0.3)
    with load(shared_agent, model.model) as clients:
        shared_agent.infra.apply(swapping(model, {1: 1, 2: 1}, load_seconds=0.3))
        shared_agent.await_ready(model.key(), 2)
        shared_agent.infra.route(model.table(2, {2: 1.0}, served=[1, 2]))
        shared_agent.infra.apply(swapping(model, {2: 2}, load_seconds=0.3))
        shared_agent.await_ready(model.key(), 2, 2)
    assert {status for status, _ in clients.answers} == {200}, clients.bad[:3]
    assert {generation for _, generation in clients.answers} == {"1", "2"}


def test_the_table_names_what_comes_to_the_models_that_it_serves_alone(builder):
    served = {name: (builder(name).served(1),) for name in ("m", "n")}
    m, n = routed_models(served, (), [("m", 3), ("m", 2), ("m", 3), ("other", 9)], {"m": Terms(swap=True)})
    assert [(one.coming, one.swap) for one in (m, n)] == [((2, 3), True), ((), False)]


def test_a_host_is_told_only_after_the_router_has_let_its_engine_go(shared_agent, serving):
    """A router that hangs does not follow: nothing is taken away from it."""
    model = serving(1)
    router = shared_agent.child("stand_in_router")
    router.suspend()
    try:
        shared_agent.infra.apply(swapping(model, {2: 1}))
        until(lambda: answering(shared_agent, model) == [], why=lambda: "the table is without it")
        time.sleep(0.5)
        assert [r.ready for r in shared_agent.replicas(model.key())] == [()]
        assert host_state(shared_agent.replicas(model.key())[0].url)["ready"][0]["generation"] == 1
    finally:
        router.resume()
    shared_agent.await_ready(model.key(), 2)


def host_state(url):
    return httpx.get(f"{url}/control/state", trust_env=False, timeout=60).json()


def test_no_part_leaves_before_all_that_go_over_have_at_hand_what_comes(shared_agent, serving):
    """One that went over alone would leave no generation whole. One that is wanted back keeps no other waiting."""
    model = serving(1)
    shared_agent.infra.apply(swapping(model, {1: 1}, part="head", fetch_seconds=600.0))
    shared_agent.await_ready(model.key("head"), 1)
    shared_agent.infra.apply(swapping(model, {2: 1}, part="head", fetch_seconds=600.0))
    shared_agent.infra.apply(swapping(model, {2: 1}))
    ended = time.monotonic() + 1.0
    while time.monotonic() < ended:
        assert answering(shared_agent, model) == [1, 1]
        time.sleep(0.05)
    shared_agent.infra.apply(swapping(model, {1: 1}, part="head", fetch_seconds=600.0))
    shared_agent.await_ready(model.key(), 2)
    assert answering(shared_agent, model) == [1, 2]
