"""Emergencies of one model: none that waits holds up another one that can go at once."""

# ruff: noqa: F811 - fixtures are arguments of the same name

import pytest

from activities.transition.draft import Draft
from ipnext import names
from ipnext.errors import Unavailable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.status import Reason
from ipnext.temporal import control
from tests.workflows.changes.test_refused_manifest import GIB, parts
from tests.workflows.entity.test_waiting_changes import PACE, freeze, frozen, moves, served, served_twice  # noqa: F401 - fixtures
from tests.workflows.regions.drains import EUROPE, regions

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


def sets_of(house, model):
    """What runs: replica set -> generations, replicas, and the rows that a batch of it may have."""
    with house.store.read() as unit:
        return {
            str(d.key): (d.generations, d.replicas, d.settings["batching"]["maxRows"]) for d in unit.deployments(model)
        }


@pytest.fixture
async def outgrown(house, model, carried_out, waits):
    """Generation 1 serves; a publish with another manifest is placed by that one, and waits for supply.

    What ran, and the publish.
    """
    house.apply(model, parts=parts(GIB, 8), rollout={**PACE, "keepWarm": 0})
    assert (await carried_out(house.publish(model, 1))).state is ChangeState.DONE
    before = sets_of(house, model)
    fewer = [{"region": "us-east", "qps": 50}, {"region": "eu-west", "qps": 50}]
    house.apply(model, parts=parts(2 * GIB, 512), demand=fewer, rollout={**PACE, "keepWarm": 0})
    return before, await waits(ChangeKind.PUBLISH)


async def test_a_repair_goes_by_what_serves_and_not_by_the_publish_that_it_passes(
    house, model, outgrown, supply, carried_out, ended
):
    before, publish = outgrown
    with house.store.read() as unit:
        placed = unit.placement(model)

    repair = await carried_out(house.ask(model, ChangeKind.REPAIR, f"{model}-repair"))

    assert repair.state is ChangeState.DONE, repair.message
    assert sets_of(house, model) == before
    assert house.change(publish.id).state is ChangeState.RUNNING
    with house.store.read() as unit:
        assert unit.placement(model) == placed, "what the publish waits to go to"
    supply.waits.clear()
    assert (await ended(publish)).state is ChangeState.DONE
    assert {found[1:] for found in sets_of(house, model).values()} == {(1, 512)}
    assert {found[0] for found in sets_of(house, model).values()} == {(2,)}


async def test_after_the_publish_was_aborted_what_serves_is_planned_as_before(
    house, model, outgrown, supply, carried_out, ended, client
):
    before, publish = outgrown
    await carried_out(house.ask(model, ChangeKind.REPAIR, f"{model}-repair"))

    await control(client, model, ControlAction.ABORT, ControlAsked(by="anna"), change_id=publish.id)
    assert (await ended(publish)).state is ChangeState.REFUSED
    repair = await carried_out(house.ask(model, ChangeKind.REPAIR, f"{model}-repair-2"))

    assert repair.state is ChangeState.DONE, repair.message
    assert sets_of(house, model) == before
