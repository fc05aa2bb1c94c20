"""Where the supply has no room for a safe way.

Refused with the surge, dipping as the owner allows, or waiting for supply.
"""

# ruff: noqa: F811 - fixtures are arguments of the same name

import asyncio
from datetime import timedelta

import pytest

from activities.planning import drift
from activities.planning.drift import record_repair
from activities.transition.activities import TransitionActivities
from activities.transition.draft import Draft
from ipnext.errors import Unavailable
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.temporal import control
from tests.fleets import two_regions
from tests.waiting import PATIENCE_SECONDS
from tests.workflows.entity.test_two_running import shows
from tests.workflows.entity.test_waiting_changes import freeze, frozen, thaw  # noqa: F401 - fixtures

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


@pytest.fixture
def in_vain(monkeypatch):
    """The change of each attempt to plan waves that found no supply.

    The first one is made with the stages before it.
    """
    found, read = [], Draft.read

    def reading(repository, stage):
        try:
            return read(repository, stage)
        except Unavailable:
            found.append(stage.change_id)
            raise

    monkeypatch.setattr(Draft, "read", reading)
    return found


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


async def test_one_that_waits_gives_way_to_a_newer_publish(house, model, full, submit, ended, until, in_vain):
    await full(whenShort="wait", waitSeconds=3600)
    second, third = house.publish(model, 2), house.publish(model, 3)
    await submit(second)
    await until(lambda: in_vain.count(second.id) > 1)

    await submit(third)
    found = await ended(second)
    house.apply_fleet(two_regions(10, 0))

    assert (found.state, found.reason) == (ChangeState.SUPERSEDED, Reason.SUPERSEDED)
    assert (await ended(third)).state is ChangeState.DONE


async def test_one_that_waits_takes_no_supply_in_a_pause_and_in_a_freeze(
    house, model, full, submit, ended, until, client, freeze, thaw, in_vain
):
    await full(whenShort="wait", waitSeconds=3600)
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: in_vain.count(change.id) > 1)

    await control(client, model, ControlAction.PAUSE, ControlAsked(by="anna"))
    await asyncio.wait_for(shows(client, model, change, "paused"), timeout=PATIENCE_SECONDS)
    house.apply_fleet(two_regions(10, 0))
    freeze()
    await control(client, model, ControlAction.RESUME, ControlAsked(by="anna"))
    await until(frozen(house, change))
    with house.store.read() as unit:
        assert unit.find_transition(change.id) is None
    await thaw()

    assert (await ended(change)).state is ChangeState.DONE


async def test_a_repair_passes_one_that_waits(house, model, full, submit, until, in_vain, monkeypatch):
    monkeypatch.setattr(drift, "WAITS_AFTER", timedelta(0))
    await full(whenShort="wait", waitSeconds=3600)
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: in_vain.count(change.id) > 1)

    with house.store.begin(model) as unit:
        table = unit.route(model, "us-east")
        shares = tuple(share.model_copy(update={"generation": 2}) for share in table.shares)
        unit.put_route(table.model_copy(update={"revision": table.revision + 1, "shares": shares}))
    with house.store.begin(model) as unit:
        repair = record_repair(unit, model)
    await submit(repair)

    await until(lambda: house.change(repair.id).state.final)
    assert house.shares(model)["us-east"] == {1: 1.0}
    assert house.change(change.id).state is ChangeState.RUNNING


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
