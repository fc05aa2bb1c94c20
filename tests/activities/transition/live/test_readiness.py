"""Which replicas can be timed now, and whether it makes sense to wait for others."""

import pytest

from activities.transition.gate.timed_parts import TimedPart
from activities.transition.live.readiness import is_as_before, read_readiness
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import Replica, ReplicaPhase

PART = TimedPart("rank", new=None, serving=None, replay=None)
EU, US = ("rank", "eu", "cpu"), ("rank", "us", "cpu")


def replica(name, *ready, region="eu", hardware="cpu", phase=ReplicaPhase.RUNNING, restarts=0):
    key = DeploymentKey(model="m", part="rank", region=region, hardware=hardware)
    return Replica(id=name, key=key, phase=phase, ready=ready, restarts=restarts)


def state(*replicas, region="eu"):
    return RegionState(region=region, gateway_url="http://gateway", replicas=replicas)


def read(*states, wanted=(EU, US), part=PART):
    return read_readiness(states, part, 2, 1, wanted=frozenset(wanted))


def test_the_first_kind_with_ready_replicas_of_both_generations_is_timed():
    found = read(state(replica("a", 1), replica("b", 2)), state(replica("c", 1, 2, region="us"), region="us"))
    assert (found.pair.region, [each.id for each in found.pair.new]) == ("eu", ["b"])
    assert [each.id for each in found.pair.serving] == ["a"]


@pytest.mark.parametrize("missing", [(), (replica("a", 1, phase=ReplicaPhase.STARTING),), (replica("a", 3),)])
def test_a_serving_replica_that_is_not_ready_is_waited_for(missing):
    found = read(state(replica("b", 2), *missing), wanted=[EU])
    assert found.pair is None
    assert (found.may_be_timed, found.lacks_new) == (True, False)
    assert found.text == "no replica of generation 1 is ready on cpu in eu"
    assert found.evidence == [{"region": "eu", "hardware": "cpu", "new": 1, "serving": 0}]


def test_a_new_generation_without_a_ready_replica_is_told_apart():
    found = read(state(replica("a", 1)), wanted=[EU])
    assert (found.may_be_timed, found.lacks_new) == (True, True)
    assert found.text == "no replica of generation 2 is ready on cpu in eu"


def test_nothing_is_waited_for_if_no_kind_has_to_hold_both_generations():
    other = TimedPart("rank", new=None, serving=None, replay=None, kinds=frozenset({"gpu"}))
    assert not read(state(replica("b", 2)), wanted=[]).may_be_timed
    assert not read(state(replica("b", 2)), wanted=[EU], part=other).may_be_timed


@pytest.mark.parametrize(
    ("now", "same"), [([replica("a", 1)], True), ([replica("a", 1, restarts=1)], False), ([replica("a")], False)]
)
def test_a_replica_that_restarted_or_went_is_not_as_before(now, same):
    assert is_as_before([state(*now)], replica("a", 1), 1) is same
    assert not is_as_before([state()], replica("a", 1), 1)
