"""Where the supply has no room for a safe way: refused with the surge, dipping as the owner allows, or waiting for supply."""

import pytest

from activities.transition.activities import TransitionActivities
from ipnext.model.lifecycle import ChangeState
from ipnext.model.status import ConditionType, Reason
from tests.fleets import two_regions

pytestmark = pytest.mark.usefixtures("workers")

DEMAND = [{"region": "us-east", "qps": 400}]
PACE = {"canary": 0.25, "maxStep": 0.25, "deadlineSeconds": 180, "refresh": "replace"}


@pytest.fixture
def full(house, model, carried_out):
    """Generation 1 serves with four replicas of each part on exactly the units there are, in processes of its own."""

    async def prepare(**rollout):
        house.apply_fleet(two_regions(8, 0))
        house.apply(model, demand=DEMAND, latencyToleranceMs=50, rollout={**PACE, **rollout})
        first = await carried_out(house.publish(model, 1))
        assert first.state is ChangeState.DONE, first

    return prepare


def ready_of(moment, model, generation):
    """QPS that the fewest-replicated part of a generation can do."""
    return min(moment.ready_qps(model, part, "us-east", generation) for part in ("sparse", "dense"))


async def test_without_room_a_rollout_is_refused_before_anything_moves_and_names_the_surge(
    house, model, full, carried_out
):
    await full()

    change = await carried_out(house.publish(model, 2))

    assert (change.state, change.reason) == (ChangeState.REFUSED, Reason.TRANSITION_REFUSED)
    assert "us-east/cpu" in change.message
    assert house.shares(model)["us-east"] == {1: 1.0}


async def test_with_a_dip_allowed_it_goes_and_says_by_how_much(house, model, full, carried_out):
    await full(whenShort="dip", maxDip=0.25)
    before = len(house.infrastructure.history)

    change = await carried_out(house.publish(model, 2))

    assert change.state is ChangeState.DONE, change
    assert "dips: " in change.message
    assert house.shares(model)["us-east"] == {2: 1.0}
    for moment in house.infrastructure.history[before:]:
        for generation in (1, 2):
            sent = moment.sent_qps(model, "us-east", generation, {"us-east": 400.0})
            assert ready_of(moment, model, generation) >= 0.75 * sent - 1e-6, (moment.number, moment.call)


async def test_one_that_waits_goes_on_when_supply_comes(house, model, full, submit, ended, until):
    await full(whenShort="wait", waitSeconds=180)
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: house.change(change.id).state is ChangeState.RUNNING)

    house.apply_fleet(two_regions(10, 0))

    assert (await ended(change)).state is ChangeState.DONE


async def test_one_that_waits_for_too_long_is_refused_with_the_last_reason(house, model, full, carried_out):
    await full(whenShort="wait", waitSeconds=6)

    change = await carried_out(house.publish(model, 2))

    assert (change.state, change.reason) == (ChangeState.REFUSED, Reason.TRANSITION_REFUSED)
    assert "not in time: waiting for supply" in change.message


async def test_a_way_back_takes_no_more_than_there_is(house, model, full, carried_out, monkeypatch):
    """Each part has a fifth unit: enough for the way there replica by replica, not for both generations at once."""
    await full()
    house.apply_fleet(two_regions(10, 0))
    before = len(house.infrastructure.history)
    note = TransitionActivities._note

    def failing(self, wave, condition, result, **more):
        note(self, wave, condition, result, **more)
        if condition is ConditionType.ROUTES_READY and house.shares(model)["us-east"].get(2, 0) >= 0.5:
            house.infrastructure.answer_with(model, 2, errors=1.0)

    monkeypatch.setattr(TransitionActivities, "_note", failing)
    change = await carried_out(house.publish(model, 2))

    assert (change.state, change.reason) == (ChangeState.ROLLED_BACK, Reason.GATE_FAILED), change
    assert house.shares(model)["us-east"] == {1: 1.0}
    for moment in house.infrastructure.history[before:]:
        units = sum(d.replicas * d.units for key, d in moment.deployments.items() if key.region == "us-east")
        assert units <= 10, (moment.number, moment.call)
