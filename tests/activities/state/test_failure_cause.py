"""The place of a failure: the slot, region and host behind a wave that does not come through."""

from types import SimpleNamespace

import pytest
from temporalio.testing import ActivityEnvironment

from activities.runtime.deadline import beat
from activities.state.desired import read_facts
from activities.state.failure_cause import first_lacking, note_first, worst_region
from activities.state.observed import first_failure
from activities.state.routes.served_generations import served_generation
from activities.state.wave_state import ModelWaveState
from activities.transition.traffic_shift import Gateways
from ipnext.errors import RouteFailed, Unavailable
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import LoadFailure, Replica, ReplicaPhase
from ipnext.model.lifecycle.failure_cause import Cause, Place, cause_in
from ipnext.model.lifecycle.regions.unserved_regions import binding_reason
from ipnext.model.lifecycle.status import Reason

SLOT = ("dense", "us-east", "cpu")


def replica(number, *, ready=(), phase=ReplicaPhase.RUNNING, restarts=0):
    key = DeploymentKey(model="m", part="dense", region="us-east", hardware="cpu")
    log = f"/logs/{number}.log"
    return Replica(id=f"m.dense.cpu.{number}", key=key, phase=phase, ready=ready, restarts=restarts, log=log)


def state_of(*replicas):
    return {"us-east": RegionState(region="us-east", gateway_url="u", replicas=replicas)}


def counted(region, requests, errors=0, non_finite=0):
    return SimpleNamespace(region=region, requests=requests, errors=errors, non_finite=non_finite)


def test_the_host_that_is_furthest_from_ready_is_named():
    wanted = ModelWaveState(counts={(SLOT, 2): 3})
    down = replica(2, phase=ReplicaPhase.FAILED, restarts=2)
    found = first_lacking("m", wanted, state_of(replica(0, ready=(2,)), replica(1), down))
    assert found == Place(part="dense", region="us-east", hardware="cpu", host="m.dense.cpu.2", log="/logs/2.log")


def test_a_load_that_failed_is_its_adapters_where_it_is_of_one():
    broken = LoadFailure(snapshot=7, generations=(2,), code="LoadFailed", message="rank 8", adapter="style")
    holding = replica(0).model_copy(update={"failures": (broken,)})
    found = first_failure("m", 2, state_of(holding).values())
    assert found.place == Place(part="style", region="us-east", hardware="cpu", host="m.dense.cpu.0", log="/logs/0.log")
    own = holding.model_copy(update={"failures": (broken.model_copy(update={"adapter": None}),)})
    assert first_failure("m", 2, state_of(own).values()).place.part == "dense"


def test_a_slot_without_any_replica_has_no_host_and_a_silent_region_no_place():
    wanted = ModelWaveState(counts={(SLOT, 2): 1})
    assert first_lacking("m", wanted, state_of()) == Place(part="dense", region="us-east", hardware="cpu")
    assert first_lacking("m", wanted, {}) == Place()
    assert first_lacking("m", wanted, state_of(replica(0, ready=(2,)))) == Place()


def test_the_region_with_the_largest_fraction_of_bad_answers_since_the_wave_began():
    before = [counted("eu", 1000, errors=900), counted("us", 0)]
    now = [counted("eu", 1100, errors=901), counted("us", 50, non_finite=5)]
    assert worst_region(before, now) == "us"
    assert worst_region(before, [counted("eu", 1100, errors=900)]) is None
    assert worst_region(before, [counted("eu", 10, errors=1)]) == "eu", "a router that started anew"


def test_the_first_cause_of_a_change_stays_and_a_region_that_is_named_is_its_place(house):
    house.apply("m")
    first = Cause(change="c1", reason=Reason.REGION_UNREACHABLE, message="region 'eu-west' can't be reached")
    later = first.model_copy(update={"message": "later"})
    with house.store.begin() as unit:
        for cause in (first, later):
            note_first(unit, "m", cause, regions=("eu-west", "us-east"))
        (event,) = (e for e in unit.events("m") if cause_in(e.detail))
    assert cause_in(event.detail) == first.model_copy(update={"place": Place(region="eu-west")})


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (["budget owner a", "budget model m"], Reason.OVER_BUDGET),
        (["budget owner a", "supply eu/cpu"], Reason.NO_CAPACITY),
        (["latency eu"], Reason.PLANNER_INFEASIBLE),
        ([], Reason.NO_CAPACITY),
    ],
)
def test_the_rules_that_bind_have_one_reason(rules, reason):
    assert binding_reason(rules) is reason


def gateways(house):
    house.apply("m")
    house.publish("m", 1)
    with house.store.read() as unit:
        facts = read_facts(unit, "m", 1)
    return Gateways(house.store, house.infrastructure, facts, beat=beat)


def test_a_gateway_that_does_not_follow_is_no_unreachable_region(house):
    house.infrastructure.fail_next("route", Unavailable("Envoy takes no routes"))
    with pytest.raises(RouteFailed, match="the gateway of region 'eu-west' does not follow"):
        ActivityEnvironment().run(_follow, gateways(house))


def test_an_attempt_that_was_cancelled_tells_no_gateway_anything(house):
    environment = ActivityEnvironment()
    environment.cancel()
    with pytest.raises(BaseException, match="cancelled"):
        environment.run(_follow, gateways(house))
    assert house.infrastructure.calls("route") == ()


def _follow(found):
    found._followed = {"eu-west": 0}
    found._put("eu-west", (), (served_generation(found._facts, 1),))
