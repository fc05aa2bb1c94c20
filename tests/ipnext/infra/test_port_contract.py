"""One contract for all implementations of the port: the fake, and agents whose hosts are processes or pods."""

import threading
import zlib

import pytest

from ipnext.errors import InvalidInput, NotFound, RegionUnreachable, StaleWrite, Unavailable
from ipnext.infra.agent.http_api import LONGEST_POLL_SECONDS
from ipnext.infra.fake.infrastructure import MemoryInfrastructure
from ipnext.infra.local_agents import LocalProcessInfrastructure
from ipnext.model.deployment.replica import ReplicaPhase
from ipnext.model.deployment.route_table import Shadow
from ipnext.model.gate.live import TimedReplica, TimingRound
from ipnext.model.value import digest_of
from tests.waiting import until

pytestmark = pytest.mark.allow_hosts(["127.0.0.0/8"])  # addresses of pods
AGENTS = {"local_process": "shared_agent", "kubernetes": "shared_pod_agent"}


@pytest.fixture(params=["memory", *(pytest.param(name, marks=pytest.mark.integration) for name in AGENTS)])
def infra(request):
    if request.param == "memory":
        return MemoryInfrastructure(["eu"])
    return request.getfixturevalue(AGENTS[request.param]).infra


@pytest.fixture
def model(builder, request):
    """A model of the test's own: all tests share one agent."""
    return builder(f"m{zlib.crc32(request.node.name.encode())}")


@pytest.fixture
def replicas(infra):
    def replicas(key):
        return [replica for replica in infra.observe("eu").replicas if replica.key == key]

    return replicas


@pytest.fixture
def ready(replicas):
    def ready(key, generation, count=1):
        held = lambda: [r for r in replicas(key) if generation in r.ready]  # noqa: E731
        until(lambda: len(held()) == count, why=lambda: f"{count} ready for {generation}: {replicas(key)}")
        return held()

    return ready


def test_regions_are_named(infra):
    assert infra.regions() == ("eu",)


def test_a_region_without_an_agent_can_not_be_reached_and_the_others_are_named(infra):
    with pytest.raises(RegionUnreachable, match=r"'mars' has no agent; .*eu"):
        infra.observe("mars")


@pytest.mark.parametrize("beside", [0, 100], ids=["one", "many"])
def test_a_look_at_some_models_tells_of_them_alone(infra, builder, ready, beside):
    shown, hidden = builder("shown"), builder("shown-not")
    for model in (shown, hidden):
        infra.apply(model.deployment({1: (1,)}))
        ready(model.key(), 1)
        infra.route(model.table(1, {1: 1.0}))
    named = ["shown", *(f"nobody-{number}" for number in range(beside))]

    found = infra.observe("eu", named)

    whole = infra.observe("eu")
    assert {r.key.model for r in found.replicas} == found.routes.keys() == {"shown"}
    assert {count.model for count in found.traffic} <= {"shown"}
    assert {r.key.model for r in whole.replicas} >= {"shown", "shown-not"} <= whole.routes.keys()
    assert found.gateway_url == whole.gateway_url
    nothing = infra.observe("eu", [])
    assert (nothing.replicas, nothing.routes, nothing.traffic) == ((), {}, ())
    for model in (shown, hidden):
        infra.unroute(model.model, "eu")
        infra.delete(model.key())


def test_an_applied_deployment_becomes_ready(infra, model, ready):
    infra.apply(model.deployment({1: (1,)}, replicas=2))
    found = ready(model.key(), 1, 2)
    assert {replica.phase for replica in found} == {ReplicaPhase.RUNNING}
    assert len({replica.id for replica in found}) == 2


def test_what_a_region_was_sent_last_is_told_by_its_digests(infra, model, ready):
    deployment, table = model.deployment({1: (1,)}), model.table(1, {1: 1.0})
    infra.apply(model.deployment({1: (1,)}, replicas=2))
    infra.apply(deployment)
    ready(model.key(), 1)
    infra.route(table)

    found = infra.read_applied("eu")

    assert [held.digest for held in found.sets if held.key == model.key()] == [digest_of(deployment)]
    assert found.tables[model.model] == digest_of(table)
    infra.unroute(model.model, "eu")
    infra.delete(model.key())
    left = infra.read_applied("eu")
    assert model.model not in left.tables
    assert model.key() not in {held.key for held in left.sets}


def waiting(infra, model, token):
    """A thread that waits, for long, until the region is not as the token says."""
    call = lambda: infra.await_change("eu", [model.model], token, seconds=LONGEST_POLL_SECONDS)  # noqa: E731
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def test_a_wait_for_a_change_ends_with_the_change(infra, model, ready):
    infra.apply(model.deployment({1: (1,)}))
    ready(model.key(), 1)
    before = infra.observe("eu", [model.model])
    waits = waiting(infra, model, before.token)
    infra.apply(model.deployment({1: (1,), 2: (2,)}))
    until(lambda: not waits.is_alive(), why=lambda: f"the wait ends: {infra.observe('eu', [model.model])}")
    ready(model.key(), 2)
    assert infra.observe("eu", [model.model]).token != before.token


def test_a_wait_for_what_has_changed_already_ends_at_once(infra, model, ready):
    infra.apply(model.deployment({1: (1,)}))
    ready(model.key(), 1)
    waits = waiting(infra, model, "of another state")
    until(lambda: not waits.is_alive(), why=lambda: "the wait ends")


def test_a_wait_for_a_change_ends_without_one_when_its_time_is_over(infra, model, ready):
    infra.apply(model.deployment({1: (1,)}))
    ready(model.key(), 1)
    token = infra.observe("eu", [model.model]).token
    infra.await_change("eu", [model.model], token, seconds=0.01)
    assert infra.observe("eu", [model.model]).token == token


def test_what_other_models_do_is_no_change(infra, model, builder, ready):
    infra.apply(model.deployment({1: (1,)}))
    ready(model.key(), 1)
    token = infra.observe("eu", [model.model]).token
    other = builder(f"{model.model}-other")
    infra.apply(other.deployment({1: (1,)}))
    ready(other.key(), 1)
    assert infra.observe("eu", [model.model]).token == token
    infra.delete(other.key())


def test_applying_the_same_twice_changes_nothing(infra, model, ready, replicas):
    infra.apply(model.deployment({1: (1,)}))
    before = ready(model.key(), 1)
    infra.apply(model.deployment({1: (1,)}))
    assert replicas(model.key()) == before


def test_a_new_snapshot_becomes_ready_beside_the_old_one(infra, model, ready):
    infra.apply(model.deployment({1: (1,)}))
    before = ready(model.key(), 1)
    infra.apply(model.deployment({1: (1,), 2: (2, 3)}))
    after = ready(model.key(), 3)
    assert after[0].ready == (1, 2, 3)
    assert (after[0].pid, after[0].url) == (before[0].pid, before[0].url)


def test_a_dropped_snapshot_leaves(infra, model, ready):
    infra.apply(model.deployment({1: (1,), 2: (2,)}))
    ready(model.key(), 1)
    infra.apply(model.deployment({2: (2,)}))
    ready(model.key(), 1, 0)
    assert ready(model.key(), 2)[0].ready == (2,)


def test_more_replicas_join_and_surplus_ones_end(infra, model, ready, replicas):
    infra.apply(model.deployment({1: (1,)}, replicas=1))
    first = ready(model.key(), 1)[0]
    infra.apply(model.deployment({1: (1,)}, replicas=3))
    ready(model.key(), 1, 3)
    infra.apply(model.deployment({1: (1,)}, replicas=1))
    until(lambda: len(replicas(model.key())) == 1, why=lambda: "the surplus ends")
    assert replicas(model.key())[0].id == first.id


def apart(deployment, own):
    """The deployment with processes of its own for each generation."""
    return deployment.model_copy(update={"own": own, "replicas": sum(own.values())})


def test_a_generation_with_processes_of_its_own_comes_up_in_new_ones_and_the_former_ones_end(
    infra, model, ready, replicas
):
    infra.apply(model.deployment({1: (1,)}, replicas=2))
    before = {replica.id for replica in ready(model.key(), 1, 2)}
    infra.apply(apart(model.deployment({1: (1,), 2: (2,)}), {1: 2, 2: 1}))
    (first,) = ready(model.key(), 2)
    assert first.ready == (2,)
    assert {replica.id for replica in ready(model.key(), 1, 2)} == before, (
        "the former ones go on, without the new snapshot"
    )
    assert first.id not in before
    infra.apply(apart(model.deployment({1: (1,), 2: (2,)}), {1: 1, 2: 2}))
    ready(model.key(), 2, 2)
    ready(model.key(), 1, 1)
    infra.apply(apart(model.deployment({2: (2,)}), {2: 2}))
    until(lambda: len(replicas(model.key())) == 2, why=lambda: f"the former ones end: {replicas(model.key())}")
    after = ready(model.key(), 2, 2)
    assert first.id in {replica.id for replica in after}
    assert {replica.ready for replica in after} == {(2,)}


def test_processes_go_over_where_they_are_told_to_swap_and_none_is_started_or_ends(infra, model, ready, replicas):
    def swapping(own):
        told = {generation: (generation,) for generation in own}
        infra.apply(apart(model.deployment(told), own).model_copy(update={"swap": True}))

    swapping({1: 3})
    before = {replica.id: replica.pid for replica in ready(model.key(), 1, 3)}
    for own in ({1: 2, 2: 1}, {1: 1, 2: 2}, {2: 3}, {1: 1, 2: 2}, {1: 3}):
        swapping(own)
        for generation, count in own.items():
            ready(model.key(), generation, count)
        assert {replica.id: replica.pid for replica in replicas(model.key())} == before, own
    swapping({1: 3, 2: 1})
    ready(model.key(), 2, 1)
    assert {r.id for r in ready(model.key(), 1, 3)} == set(before), "where there is no process to take, one is started"


def test_processes_of_one_generation_take_the_next_one_in_place_when_told_so(infra, model, ready):
    infra.apply(apart(model.deployment({1: (1,)}), {1: 1}))
    before = ready(model.key(), 1)
    infra.apply(model.deployment({1: (1,), 2: (2,)}))
    after = ready(model.key(), 2)
    assert [(r.id, r.ready) for r in after] == [(before[0].id, (1, 2))]


def test_a_snapshot_that_cannot_be_loaded_is_reported_and_the_others_stay_ready(infra, model, ready, replicas):
    if isinstance(infra, MemoryInfrastructure):
        infra.fail_load("bad2")
    good = model.deployment({1: (1,)})
    infra.apply(good)
    ready(model.key(), 1)
    broken = model.deployment({2: (2,)}, digest="bad").holds
    infra.apply(good.model_copy(update={"holds": (*good.holds, *broken)}))
    until(lambda: [r for r in replicas(model.key()) if r.failures], why=lambda: "a failure is reported")
    replica = replicas(model.key())[0]
    assert [(f.snapshot, f.generations, f.code) for f in replica.failures] == [(2, (2,), "LoadFailed")]
    assert replica.ready == (1,)


def test_a_route_is_in_force_once_it_returns(infra, model):
    infra.route(model.table(3, {1: 1.0}))
    assert infra.observe("eu").routes[model.model] == 3


def test_the_same_route_again_changes_nothing(infra, model):
    for _ in range(2):
        infra.route(model.table(3, {1: 1.0}))
    assert infra.observe("eu").routes[model.model] == 3


def test_an_older_route_is_stale(infra, model):
    infra.route(model.table(3, {1: 1.0}))
    with pytest.raises(StaleWrite, match="revision 2 was given"):
        infra.route(model.table(2, {1: 1.0}))
    assert infra.observe("eu").routes[model.model] == 3


def test_other_content_under_the_same_revision_is_stale(infra, model):
    infra.route(model.table(3, {1: 1.0}))
    with pytest.raises(StaleWrite, match="other content"):
        infra.route(model.table(3, {2: 1.0}))


def test_a_share_to_an_unknown_region_is_refused(infra, model):
    with pytest.raises(InvalidInput, match=r"shares\.0\.to.*mars"):
        infra.route(model.table(1, {("mars", 1): 1.0}))


def test_a_share_to_a_generation_that_is_not_served_is_refused(infra, model):
    with pytest.raises(InvalidInput, match=r"shares\.0\.generation.*served: 2"):
        infra.route(model.table(1, {1: 1.0}, served=[2]))


def shadows(infra, model):
    """Keys of the comparisons of a model."""
    return [found.key for found in infra.observe("eu", [model.model]).shadows]


def test_a_shadow_is_compared_once_the_route_returns_and_until_another_one_has_none(infra, model):
    shadow = Shadow(served=model.served(2), share=0.5, seed=9)
    table = model.table(1, {1: 1.0})
    infra.route(table)
    assert shadows(infra, model) == []
    infra.route(table.model_copy(update={"revision": 2, "shadow": shadow}))
    assert shadows(infra, model) == [(model.model, 2, 9)]
    infra.route(table.model_copy(update={"revision": 3, "shadow": shadow.model_copy(update={"seed": 10})}))
    assert shadows(infra, model) == [(model.model, 2, 10)]
    infra.route(table.model_copy(update={"revision": 4}))
    assert shadows(infra, model) == []


@pytest.fixture
def timing(model, ready):
    """A round on the first ready replicas of generations 2 and 1."""

    def timing():
        new, serving = (TimedReplica(id=ready(model.key(), number)[0].id, generation=number) for number in (2, 1))
        bodies = ('{"inputs": []}', "{}")
        return TimingRound(
            model=model.model,
            part="dense",
            new=new,
            serving=serving,
            bodies=bodies,
            requests=16,
            concurrency=2,
            seconds=20,
        )

    return timing


def test_two_replicas_are_timed_and_no_router_counts_it(infra, model, timing):
    infra.apply(model.deployment({1: (1,), 2: (2,)}))
    infra.route(model.table(1, {1: 1.0}))
    found = infra.time_replicas("eu", timing())
    for times in (found.new, found.serving):
        assert (len(times.single), len(times.together), times.failed) == (8, 4, 0)
        assert all(seconds > 0 for seconds in (*times.single, *times.together))
    assert not [count for count in infra.observe("eu", [model.model]).traffic if count.generation == 2]


def test_a_replica_that_is_not_ready_for_its_generation_is_not_timed(infra, model, timing):
    infra.apply(model.deployment({1: (1,), 2: (2,)}))
    asked = timing()
    for wrong in (TimedReplica(id=asked.new.id, generation=3), TimedReplica(id="other", generation=2)):
        with pytest.raises(NotFound, match=f"no replica {wrong.id!r} of {model.model}/dense is ready"):
            infra.time_replicas("eu", asked.model_copy(update={"new": wrong}))


def test_a_deleted_deployment_ends(infra, model, ready, replicas):
    infra.apply(model.deployment({1: (1,)}))
    ready(model.key(), 1)
    infra.delete(model.key())
    until(lambda: not replicas(model.key()), why=lambda: "it ends")


def test_deleting_and_unrouting_what_is_not_there_changes_nothing(infra, model):
    infra.delete(model.key())
    infra.unroute(model.model, "eu")
    assert model.model not in infra.observe("eu").routes


def test_an_unrouted_model_may_start_over_at_any_revision(infra, model):
    infra.route(model.table(9, {1: 1.0}))
    infra.unroute(model.model, "eu")
    infra.route(model.table(1, {1: 1.0}))
    assert infra.observe("eu").routes[model.model] == 1


@pytest.fixture(params=["memory", "local_process"])
def cut_off(request):
    """An infrastructure whose region can't be reached."""
    if request.param == "memory":
        memory = MemoryInfrastructure(["eu"])
        memory.cut("eu")
        yield memory
        return
    with LocalProcessInfrastructure({"eu": "http://127.0.0.1:9"}, timeout_seconds=1) as local:
        yield local


@pytest.mark.parametrize("call", ["apply", "route", "observe", "read_applied", "delete", "unroute"])
def test_a_region_out_of_reach_is_unavailable_and_named(cut_off, builder, call):
    model = builder("far")
    calls = {
        "apply": lambda: cut_off.apply(model.deployment({1: (1,)})),
        "route": lambda: cut_off.route(model.table(1, {1: 1.0})),
        "observe": lambda: cut_off.observe("eu"),
        "read_applied": lambda: cut_off.read_applied("eu"),
        "delete": lambda: cut_off.delete(model.key()),
        "unroute": lambda: cut_off.unroute("far", "eu"),
    }
    with pytest.raises(Unavailable, match="region 'eu'"):
        calls[call]()
