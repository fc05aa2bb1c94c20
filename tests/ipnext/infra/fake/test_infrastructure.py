"""What the fake offers beyond the port: faults to switch on, and a history to read."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ipnext.errors import NotFound, Unavailable
from ipnext.infra.fake import infrastructure
from ipnext.infra.fake.infrastructure import MemoryInfrastructure
from ipnext.model.deployment.replica import ReplicaPhase
from ipnext.model.deployment.route_table import Shadow
from ipnext.model.gate.shadow import ShadowComparison
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture
def infra():
    return MemoryInfrastructure(["eu", "us"])


@pytest.fixture
def model(builder):
    return builder("m")


def replicas(infra):
    return infra.observe("eu").replicas


def test_replicas_get_ready_at_the_observe_asked_for(model):
    infra = MemoryInfrastructure(["eu"], observes_until_ready=3)
    infra.apply(model.deployment({1: (1,)}))
    seen = [replicas(infra)[0] for _ in range(3)]
    assert [replica.ready for replica in seen] == [(), (), (1,)]
    assert [replica.phase for replica in seen] == [ReplicaPhase.STARTING, ReplicaPhase.STARTING, ReplicaPhase.RUNNING]


def test_a_stalled_set_gets_ready_once_released(infra, model):
    infra.stall(model.key())
    infra.apply(model.deployment({1: (1,)}))
    assert [replicas(infra)[0].ready for _ in range(3)] == [(), (), ()]
    infra.release(model.key())
    assert replicas(infra)[0].ready == (1,)


def test_a_load_failure_has_the_code_asked_for_and_can_be_healed(infra, model):
    infra.fail_load("d1", code="ArtifactMissing")
    infra.apply(model.deployment({1: (1,)}))
    assert [failure.code for failure in replicas(infra)[0].failures] == ["ArtifactMissing"]
    infra.heal_load("d1")
    assert replicas(infra)[0].ready == (1,)


def test_a_region_that_is_cut_off_can_be_mended(infra):
    infra.cut("us")
    with pytest.raises(Unavailable):
        infra.observe("us")
    infra.observe("eu")
    infra.mend("us")
    infra.observe("us")


def test_a_crashed_replica_loads_again(infra, model):
    infra.apply(model.deployment({1: (1,)}, replicas=2))
    replicas(infra)
    infra.crash(model.key(), 1)
    assert infra.history[-1].ready[model.key(), 1] == 2  # seen at the next call
    infra.stall()
    assert [(r.ready, r.restarts) for r in replicas(infra)] == [((1,), 0), ((), 1)]
    with pytest.raises(NotFound):
        infra.crash(model.key(), 7)


def test_traffic_follows_the_shares_with_the_errors_asked_for(infra, model, builder):
    infra.apply(model.deployment({1: (1,), 2: (2,)}))
    infra.observe("eu")
    infra.route(model.table(1, {1: 0.8, 2: 0.2}))
    infra.route(builder("m", "us").table(1, {("eu", 2): 1.0}))
    infra.answer_with("m", 2, errors=0.5, non_finite=0.1)
    counts = {count.generation: count for count in infra.observe("eu").traffic}
    assert (counts[1].requests, counts[1].errors) == (80, 0)
    assert (counts[2].requests, counts[2].errors, counts[2].non_finite) == (120, 60, 12)


def test_traffic_to_a_generation_that_no_replica_holds_is_all_errors(infra, model):
    infra.route(model.table(1, {1: 1.0}))
    count = infra.observe("eu").traffic[0]
    assert count.requests == count.errors == 100


def test_a_comparison_is_reported_by_the_region_whose_table_has_the_shadow(infra, model):
    found = ShadowComparison(model="m", generation=2, seed=9, chosen=7, compared=7)
    infra.compare("eu", found)
    assert infra.observe("eu").shadows == ()
    shadow = Shadow(served=model.served(2), share=0.5, seed=9)
    infra.route(model.table(1, {1: 1.0}).model_copy(update={"shadow": shadow}))
    assert infra.observe("eu").shadows == (found,)
    assert infra.observe("us").shadows == ()


def test_a_call_can_fail_before_or_after_its_effect(infra, model):
    infra.fail_next("apply", Unavailable("before"))
    with pytest.raises(Unavailable, match="before"):
        infra.apply(model.deployment({1: (1,)}))
    assert infra.deployment(model.key()) is None
    infra.fail_next("route", Unavailable("after"), after_effect=True)
    with pytest.raises(Unavailable, match="after"):
        infra.route(model.table(1, {1: 1.0}))
    assert infra.table("m", "eu") == model.table(1, {1: 1.0})
    infra.route(model.table(1, {1: 1.0}))


def test_the_history_tells_capacity_and_traffic_at_each_moment(infra, model):
    infra.apply(model.deployment({1: (1,)}, replicas=3))
    infra.observe("eu")
    infra.route(model.table(1, {1: 1.0}))
    infra.apply(model.deployment({1: (1,)}, replicas=2))
    capacity = [moment.ready_qps("m", "dense", "eu", 1) for moment in infra.history]
    assert capacity == [0, 300, 300, 200]
    assert [moment.call for moment in infra.history] == ["apply", "observe", "route", "apply"]
    assert infra.history[2].sent_qps("m", "eu", 1, {"eu": 250.0}) == 250.0
    assert infra.history[2].generations_with_traffic("m") == {("eu", 1)}
    assert [moment.subject for moment in infra.calls("route")] == ["m@1"]


def test_refused_calls_are_in_the_history_with_their_code(infra, model):
    infra.route(model.table(2, {1: 1.0}))
    with pytest.raises(Exception, match="revision 1"):
        infra.route(model.table(1, {1: 1.0}))
    assert infra.history[-1].refused == "StaleWrite"


def test_calls_from_many_threads_are_all_recorded(infra, builder):
    def work(number):
        model = builder(f"m{number}")
        infra.apply(model.deployment({1: (1,)}))
        infra.route(model.table(1, {1: 1.0}))
        infra.observe("eu")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(50)))
    assert [moment.number for moment in infra.history] == list(range(1, 151))


def test_who_waits_for_a_change_is_not_woken_by_who_only_looks(infra, model, monkeypatch):
    """Two activities that wait would wake each other without a pause."""
    monkeypatch.setattr(infrastructure, "LONGEST_WAIT_SECONDS", PATIENCE_SECONDS)
    infra.apply(model.deployment({1: (1,)}))
    infra.stall()
    token = infra.observe("eu", [model.model]).token
    waiting = threading.Thread(
        target=infra.await_change, args=("eu", [model.model], token), kwargs={"seconds": PATIENCE_SECONDS}
    )
    waiting.start()
    for _ in range(20):
        infra.observe("eu", [model.model])
        waiting.join(0.01)
    assert waiting.is_alive()
    infra.apply(model.deployment({1: (1,)}, replicas=2))
    waiting.join(PATIENCE_SECONDS)
    assert not waiting.is_alive()
