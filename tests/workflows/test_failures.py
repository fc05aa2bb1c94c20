"""Rollouts that fail: the traffic is back where it was, and the reason says why."""

import pytest

from ipnext.model.lifecycle import ChangeState
from ipnext.model.registry import GenerationState
from ipnext.model.rollout import TransitionState
from ipnext.model.status import Reason

pytestmark = pytest.mark.usefixtures("workers")

DEMAND = {"us-east": 350.0, "eu-west": 180.0}
OLD = {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}


@pytest.fixture
async def serves_one(house, model, carried_out):
    """Generation 1 serves."""
    house.apply(model, rollout={"canary": 0.1, "maxStep": 0.5, "deadlineSeconds": 1.5})
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


async def test_answers_that_are_not_finite_fail_the_gate(house, model, serves_one, carried_out):
    house.infrastructure.answer_with(model, 2, non_finite=0.05)

    change = await carried_out(house.publish(model, 2))

    assert (change.state, change.reason) == (ChangeState.ROLLED_BACK, Reason.GATE_FAILED)
    assert "non-finite" in change.message
    assert house.shares(model) == OLD


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


async def test_replicas_that_never_get_ready_end_at_the_deadline(house, model, carried_out):
    house.apply(model, rollout={"deadlineSeconds": 1})
    house.infrastructure.stall()

    change = await carried_out(house.publish(model, 1))

    assert (change.state, change.reason) == (ChangeState.ROLLED_BACK, Reason.DEADLINE_EXCEEDED)
    assert "ready for generation 1" in change.message
    assert house.held(model) == {}
    with house.store.read() as repository:
        assert repository.placement(model) is None, "the plan claims no supply for what does not run"


async def test_a_region_that_stays_away_is_named(house, model, serves_one, carried_out):
    house.infrastructure.cut("eu-west")

    change = await carried_out(house.publish(model, 2))

    assert (change.state, change.reason) == (ChangeState.ROLLED_BACK, Reason.REGION_UNREACHABLE)
    assert "eu-west" in change.message
    assert house.shares(model) == OLD


async def test_a_region_that_comes_back_in_time_delays_only(house, model, carried_out, until, submit, ended):
    house.apply(model, rollout={"deadlineSeconds": 60})
    await carried_out(house.publish(model, 1))
    house.infrastructure.cut("eu-west")
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: any(m.refused == "Unavailable" for m in house.infrastructure.calls("apply")))

    house.infrastructure.mend("eu-west")

    assert (await ended(change)).state is ChangeState.DONE
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}
