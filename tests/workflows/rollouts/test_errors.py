"""Rollouts that fail: the traffic is back where it was, and the reason says why."""

import threading

import pytest

from activities.runtime.failed_attempts import EVENT
from activities.transition import traffic_shift as routing
from activities.transition.activities import TransitionActivities
from ipnext.errors import Unavailable
from ipnext.model.deployment.route_table import RouteShare
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.transition_run import WaveInput
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.planning.transition import TransitionState
from ipnext.model.registry.registry import GenerationState

pytestmark = pytest.mark.usefixtures("workers")

DEMAND = {"us-east": 350.0, "eu-west": 180.0}
OLD = {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}


@pytest.fixture
async def serves_one(house, model, carried_out):
    """Generation 1 serves."""
    house.apply(model)
    await carried_out(house.publish(model, 1))


async def test_a_generation_that_answers_with_errors_fails_its_gate_and_the_traffic_goes_back(
    house, kit, model, serves_one, carried_out
):
    house.infrastructure.answer_with(model, 2, errors=0.3)

    change = await carried_out(house.publish(model, 2))

    assert (change.state, change.reason) == (ChangeState.ROLLED_BACK, Reason.GATE_FAILED)
    assert house.shares(model) == OLD
    assert set(house.held(model).values()) == {(1,)}, "what was added is released"
    kit.check_floor(house.infrastructure, model, DEMAND)
    with house.store.read() as repository:
        assert repository.generation(model, 2).state is GenerationState.FAILED
        assert repository.transitions(model, limit=1)[0].state is TransitionState.ROLLED_BACK
    ready = house.condition(model)
    assert (ready.status, ready.reason) == ("False", Reason.GATE_FAILED)


async def test_a_step_that_fails_again_and_again_is_an_event_and_no_longer_told_at_the_end(
    house, model, serves_one, carried_out
):
    house.infrastructure.fail_next("route", Unavailable("the disk is full"), times=3)

    change = await carried_out(house.publish(model, 2))

    assert (change.state, change.is_retried) == (ChangeState.DONE, False)
    with house.store.read() as repository:
        told = [event.message for event in repository.events(model) if event.kind == EVENT]
    assert len(told) == 1
    assert told[0].startswith("shift traffic is tried again: ")
    assert told[0].endswith(": the disk is full")


async def test_answers_that_are_not_finite_fail_the_gate(house, model, serves_one, carried_out):
    house.infrastructure.answer_with(model, 2, non_finite=0.05)

    change = await carried_out(house.publish(model, 2))

    assert (change.state, change.reason) == (ChangeState.ROLLED_BACK, Reason.GATE_FAILED)
    assert "non-finite" in change.message
    assert house.shares(model) == OLD


@pytest.fixture
async def gated(house, model, carried_out):
    """Generation 1 serves, and what comes after it must answer as fast and much the same."""
    gate = {"maxLatencyRatio": 2, "maxLatencyMs": {"p99": 100}, "maxDrift": 0.25, "waitSeconds": 60, "onTooFew": "fail"}
    house.apply(model, rollout={"canary": 0.1, "maxStep": 0.5, "gate": gate})
    await carried_out(house.publish(model, 1))


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"seconds": 0.009}, "of generation 1: ratio"),
        ({"seconds": 0.3}, "allowed 100 ms"),
        ({"prediction": 0.8}, "drift of output 'output'"),
    ],
    ids=["slower", "slow", "shifted"],
)
async def test_a_generation_that_answers_otherwise_goes_back_at_its_canary_once_enough_is_known(
    house, model, gated, carried_out, answers, words
):
    """Twenty answers come between two looks: a hundred are waited for."""
    house.infrastructure.answer_with(model, 2, **answers)

    change = await carried_out(house.publish(model, 2))

    assert (change.state, change.reason) == (ChangeState.ROLLED_BACK, Reason.GATE_FAILED)
    assert words in change.message
    assert house.shares(model) == OLD
    with house.store.read() as repository:
        assert repository.transitions(model, limit=1)[0].waves_done == 0


async def test_a_look_during_the_hold_says_nothing_of_a_region_that_is_away(house, model, serves_one):
    with house.store.read() as repository:
        found = repository.transitions(model, limit=1)[0]
    wave = WaveInput(transition_id=found.id, model=model, generation=1, index=0, deadline_seconds=1)
    gate = TransitionActivities(house.store, house.infrastructure).check_gate
    house.infrastructure.cut("eu-west")

    assert gate(wave.model_copy(update={"early": True})).ok
    with pytest.raises(Unavailable, match="eu-west"):
        gate(wave)


async def test_a_generation_that_answers_alike_passes_its_gates_and_a_rollback_is_not_compared(
    house, model, gated, carried_out
):
    change = await carried_out(house.publish(model, 2))
    assert change.state is ChangeState.DONE, change.message

    house.infrastructure.answer_with(model, 1, prediction=0.9, seconds=0.2)
    back = await carried_out(house.ask(model, ChangeKind.ROLLBACK, "back", generation=1))

    assert back.state is ChangeState.DONE, back.message


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("LoadFailed", Reason.LOAD_FAILED),
        ("OutOfMemory", Reason.OUT_OF_MEMORY),
        ("ArtifactDigestMismatch", Reason.ARTIFACT_DIGEST_MISMATCH),
    ],
)
async def test_a_snapshot_that_no_host_can_load_ends_the_wait_at_once(house, kit, model, carried_out, code, reason):
    house.apply(model, rollout={"deadlineSeconds": 3600})
    await carried_out(house.publish(model, 1))
    dense = house.source(kit.DENSE, kit.weights(77))
    house.infrastructure.fail_load(dense.manifest.digest, code=code, message="broken on purpose")

    change = await carried_out(house.publish(model, 2, dense=dense))

    assert (change.state, change.reason) == (ChangeState.ROLLED_BACK, reason)
    assert "broken on purpose" in change.message
    assert house.shares(model) == OLD


async def test_replicas_that_never_get_ready_end_at_the_deadline(house, model, carried_out, quick_waits):
    house.apply(model, rollout={"deadlineSeconds": 60})
    house.infrastructure.stall()

    change = await carried_out(house.publish(model, 1))

    assert (change.state, change.reason) == (ChangeState.ROLLED_BACK, Reason.DEADLINE_EXCEEDED)
    assert "ready for generation 1" in change.message
    assert house.held(model) == {}
    with house.store.read() as repository:
        assert repository.placement(model) is None, "the plan claims no supply for what does not run"


async def test_a_region_that_stays_away_is_named(house, model, serves_one, carried_out):
    house.apply(model, rollout={"canary": 0.1, "maxStep": 0.5, "deadlineSeconds": 1.5})
    house.infrastructure.cut("eu-west")

    change = await carried_out(house.publish(model, 2))

    assert (change.state, change.reason) == (ChangeState.ROLLED_BACK, Reason.REGION_UNREACHABLE)
    assert "eu-west" in change.message
    assert house.shares(model) == OLD


async def test_a_region_that_comes_back_in_time_delays_only(house, model, carried_out, until, submit, ended):
    house.apply(model, rollout={"deadlineSeconds": 180})
    await carried_out(house.publish(model, 1))
    house.infrastructure.cut("eu-west")
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: any(m.refused == "RegionUnreachable" for m in house.infrastructure.calls("apply")))

    house.infrastructure.mend("eu-west")

    assert (await ended(change)).state is ChangeState.DONE
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}


async def test_traffic_waits_for_replicas_that_ended_after_they_were_ready(house, model, carried_out, monkeypatch):
    """As in a pause between a wave's capacity and its traffic."""
    house.apply(model, rollout={"refresh": "replace", "deadlineSeconds": 180})
    await carried_out(house.publish(model, 1))
    note, crashed = TransitionActivities._note, []

    def crashing(self, wave, condition, result, **more):
        if condition is ConditionType.CAPACITY_READY and wave.generation == 2 and not crashed:
            held = house.infrastructure.history[-1].ready
            crashed.extend(key for (key, generation) in held if generation == 2)
            for key in crashed:
                for replica in house.infrastructure.observe(key.region).replicas:
                    if replica.key == key and 2 in replica.ready:
                        house.infrastructure.crash(key, int(replica.id.rpartition(".")[2]))
            house.infrastructure.stall()
            threading.Timer(1.0, house.infrastructure.release).start()
        note(self, wave, condition, result, **more)

    monkeypatch.setattr(TransitionActivities, "_note", crashing)
    change = await carried_out(house.publish(model, 2))

    assert crashed
    assert change.state is ChangeState.DONE
    for moment in house.infrastructure.calls("route"):
        for part in ("sparse", "dense"):
            for region in DEMAND:
                sent = moment.sent_qps(model, region, 2, DEMAND)
                assert moment.ready_qps(model, part, region, 2) >= sent


async def test_a_run_whose_users_were_sent_back_around_a_lost_region_brings_no_more_of_them_at_once_than_it_may(
    house, model, serves_one, carried_out, monkeypatch
):
    """As if a region had held all of the canary, and were lost and came back before the second wave."""
    house.apply(model, rollout={"canary": 0.1, "maxStep": 0.5, "deadlineSeconds": 180})
    note, sent_back = TransitionActivities._note, []

    def around(self, wave, condition, result, **more):
        if condition is ConditionType.CAPACITY_READY and wave.index == 1 and not (wave.back or sent_back):
            with house.store.begin(model) as repository:
                for table in repository.routes(model):
                    shares = (RouteShare(to=table.region, generation=1, fraction=1.0),)
                    back = table.model_copy(update={"shares": shares, "revision": table.revision + 1})
                    house.infrastructure.route(back)
                    sent_back.append(repository.put_route(back))
        note(self, wave, condition, result, **more)

    monkeypatch.setattr(TransitionActivities, "_note", around)
    change = await carried_out(house.publish(model, 2))

    assert sent_back
    assert (change.state, change.reason) == (ChangeState.ROLLED_BACK, Reason.REGION_UNREACHABLE)
    assert "60% of those of us-east would come to the new generation at once, and 50% may" in change.message
    assert house.shares(model) == OLD
    routes = [moment.routes for moment in house.infrastructure.calls("route")]
    shares = [share for found in routes for (name, _), t in found.items() if name == model for share in t.shares]
    assert max(share.fraction for share in shares if share.generation == 2) == pytest.approx(0.1)


async def test_gateways_follow_by_the_demand_that_the_waves_were_planned_for(
    house, model, serves_one, carried_out, monkeypatch
):
    """Its owner asks for less before traffic moves: the users of now are still there."""
    followed, note, asked = routing.follow_routes, TransitionActivities._note, []

    def less(self, wave, condition, result, **more):
        if condition is ConditionType.CAPACITY_READY and wave.index == 0:
            house.apply(model, demand=[{"region": "us-east", "qps": 35}], rollout={"canary": 0.1, "maxStep": 0.5})
        note(self, wave, condition, result, **more)

    def remembered(*tables, demand, parts):
        asked.append(dict(demand))
        return followed(*tables, demand=demand, parts=parts)

    monkeypatch.setattr(TransitionActivities, "_note", less)
    monkeypatch.setattr(routing, "follow_routes", remembered)
    change = await carried_out(house.publish(model, 2))

    assert change.state is ChangeState.DONE, change.message
    assert asked
    assert [demand for demand in asked if demand != DEMAND] == []
