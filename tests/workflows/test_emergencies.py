"""Emergencies of one model: none that waits holds up another one that can go at once."""

# ruff: noqa: F811 - fixtures are arguments of the same name

import pytest

from activities.transition.draft import Draft
from ipnext import names
from ipnext.errors import Unavailable
from ipnext.model.lifecycle import ChangeKind, ChangeState
from ipnext.model.status import Reason
from tests.workflows.drains import EUROPE, regions
from tests.workflows.test_waiting_changes import freeze, frozen, moves, served, served_twice  # noqa: F401 - fixtures

pytestmark = pytest.mark.usefixtures("workers")


class Supply:
    """What is short of supply: the changes `waits`, each of which finds none whenever it plans its waves."""

    def __init__(self):
        self.waits, self.tried = set(), []


@pytest.fixture
def supply(monkeypatch):
    found, read = Supply(), Draft.read

    def reading(repository, stage):
        if stage.change_id in found.waits:
            found.tried.append(stage.change_id)
            msg = "waiting for supply"
            raise Unavailable(msg)
        return read(repository, stage)

    monkeypatch.setattr(Draft, "read", reading)
    return found


@pytest.fixture
def waits(house, model, supply, submit, until):
    """Submit a change that waits for supply, until it does so between two attempts."""

    async def call(kind, **more):
        change = (
            house.publish(model, 2)
            if kind is ChangeKind.PUBLISH
            else house.ask(model, kind, f"{model}-{kind.value}", **more)
        )
        supply.waits.add(change.id)
        await submit(change)
        await until(lambda: supply.tried.count(change.id) > 1)
        return change

    return call


@pytest.fixture
def lose(house, model, drains, until):
    """Lose a region, and return the end of the model's move out of it."""

    async def call():
        house.infrastructure.cut(EUROPE)
        await drains.ask(disaster=True)
        await until(lambda: moves(house, model))
        await until(lambda: moves(house, model)[0].state.final)
        return moves(house, model)[0]

    return call


@pytest.mark.parametrize(("kind", "to"), [(ChangeKind.REPAIR, 2), (ChangeKind.ROLLBACK, 1)])
async def test_a_failover_passes_an_emergency_that_waits_which_goes_on_afterwards(
    house, model, served_twice, waits, supply, lose, ended, kind, to
):
    await served_twice()
    change = await waits(kind, generation=1 if kind is ChangeKind.ROLLBACK else None)

    failover = await lose()

    assert (failover.state, regions(house, model)) == (ChangeState.DONE, {"us-east"}), failover.message
    assert house.change(change.id).state is ChangeState.RUNNING
    supply.waits.clear()
    assert (await ended(change)).state is ChangeState.DONE
    assert house.shares(model)["us-east"] == {to: 1.0}
    assert regions(house, model) == {"us-east"}, "it goes on from what the failover left"


async def test_a_failover_passes_a_repair_that_itself_passes_a_frozen_publish(
    house, model, served_twice, freeze, submit, until, waits, supply, lose, ended
):
    await served_twice()
    freeze()
    publish = house.publish(model, 3)
    await submit(publish)
    await until(frozen(house, publish))
    repair = await waits(ChangeKind.REPAIR)

    failover = await lose()

    assert (failover.state, regions(house, model)) == (ChangeState.DONE, {"us-east"}), failover.message
    assert house.change(repair.id).state is ChangeState.RUNNING
    supply.waits.clear()
    assert (await ended(repair)).state is ChangeState.DONE
    assert house.change(publish.id).reason is Reason.FROZEN


async def test_a_rollback_stops_a_move_that_waits_and_the_next_plan_tells_what_is_to_move_then(
    house, model, served_twice, waits, carried_out, ended
):
    await served_twice()
    with house.store.read() as unit:
        plan_id = unit.placement(model).plan_id
    move = await waits(ChangeKind.MOVE, plan_id=plan_id)

    rollback = await carried_out(house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1))

    assert rollback.state is ChangeState.DONE
    assert (await ended(move)).state is ChangeState.SUPERSEDED
    with house.store.read() as unit:
        assert [replan.id for replan in unit.replans()] == [names.shortage_replan_id(model, move.sequence)]


async def test_a_repair_waits_behind_a_failover_that_waits(
    house, model, served_twice, supply, submit, until, drains, ended
):
    await served_twice()
    house.infrastructure.cut(EUROPE)

    def all_moves(repository, stage, read=Draft.read):
        if stage.kind is ChangeKind.MOVE:
            supply.waits.add(stage.change_id)
        return read(repository, stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Draft, "read", all_moves)
        await drains.ask(disaster=True)
        await until(lambda: len(supply.tried) > 1)
        failover = moves(house, model)[0]
        repair = house.ask(model, ChangeKind.REPAIR, f"{model}-repair")
        await submit(repair)
        tried = len(supply.tried)
        await until(lambda: len(supply.tried) > tried + 1)
        assert house.change(repair.id).state in {ChangeState.RECORDED, ChangeState.QUEUED}
    supply.waits.clear()
    assert (await ended(failover)).state is ChangeState.DONE
    assert (await ended(repair)).state is ChangeState.DONE
