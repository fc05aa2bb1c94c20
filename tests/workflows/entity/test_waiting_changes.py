"""While a change of a model waits, regions follow the store and repairs are carried out all the same."""

from datetime import UTC, datetime, timedelta

import pytest

from ipnext import names
from ipnext.api.workflow_engine.outbox import Outbox
from ipnext.api.workflow_engine.temporal import TemporalLifecycle
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.freeze import FreezeManifest
from ipnext.temporal import control, signal_freeze_change
from tests.workflows.regions.drains import regions

pytestmark = pytest.mark.usefixtures("workers", "reconciler")

PACE = {"canary": 0.5, "maxStep": 1.0, "deadlineSeconds": 180}
ONE_SERVES = {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
THREE_SERVES = {"us-east": {3: 1.0}, "eu-west": {3: 1.0}}
TWO_SERVES = {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}


@pytest.fixture
async def outbox(house, temporal_address, monkeypatch):
    """The API's own: it submits what the platform records by itself."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)
    async with Outbox(house.store, TemporalLifecycle(ui_url="http://127.0.0.1")).running():
        yield


@pytest.fixture
def served(house, model, carried_out):
    async def serve(**rollout):
        house.apply(model, rollout=PACE)
        assert (await carried_out(house.publish(model, 1))).state is ChangeState.DONE
        house.apply(model, rollout={**PACE, **rollout})

    return serve


@pytest.fixture
def served_twice(house, model, served, carried_out):
    async def serve():
        await served()
        assert (await carried_out(house.publish(model, 2))).state is ChangeState.DONE

    return serve


@pytest.fixture
def freeze(house, model):
    """Freeze the changes of the model for an hour."""

    def ask(*kinds):
        start = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
        windows = [{"start": start, "end": start + timedelta(hours=1)}]
        spec = {"reason": "sale", "windows": windows, "scope": {"models": [model]}, "kinds": kinds or ("publish",)}
        manifest = {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": "sale"}, "spec": spec}
        with house.store.begin() as unit:
            unit.put_freeze(FreezeManifest.model_validate(manifest), expected_version=None)

    return ask


@pytest.fixture
def thaw(house, client):
    """Lift the freeze, and tell the runs that wait, as the API does."""

    async def lift():
        with house.store.begin() as unit:
            unit.delete_freeze("sale", expected_version=None)
        with house.store.read() as unit:
            waiting = unit.frozen_changes()
        for change in waiting:
            await signal_freeze_change(client, change)

    return lift


def frozen(house, change):
    return lambda: house.change(change.id).reason is Reason.FROZEN


def send_astray(house, model):
    """Send users of a region to generation 1 while 2 serves, as a revert may leave it."""
    with house.store.begin(model) as unit:
        table = unit.route(model, "eu-west")
        shares = tuple(share.model_copy(update={"generation": 1}) for share in table.shares)
        served = [found for found in table.served if found.generation == 2]
        served += [found.model_copy(update={"generation": 1}) for found in served]
        astray = {"revision": table.revision + 1, "shares": shares, "served": tuple(served)}
        unit.put_route(table.model_copy(update=astray))


def repairs(house, model):
    with house.store.read() as unit:
        return [change for change in unit.changes(model) if change.kind is ChangeKind.REPAIR]


def forget(house, model):
    """A region loses a replica set and its table, as after a restart without its state.

    Returns what the store has of both.
    """
    with house.store.read() as unit:
        stored = next(d for d in unit.deployments(model) if d.key.region == "eu-west")
        table = unit.route(model, "eu-west")
    house.infrastructure.delete(stored.key)
    house.infrastructure.unroute(model, "eu-west")
    return stored, table


def remembers(house, model, stored, table):
    found = house.infrastructure.deployment(stored.key)
    held = found is not None and (found.replicas, found.generations) == (stored.replicas, stored.generations)
    return held and house.infrastructure.table(model, "eu-west") == table


async def test_a_region_that_comes_back_in_a_freeze_is_told_again(house, model, served, freeze, submit, until):
    await served()
    freeze()
    change = house.publish(model, 2)
    await submit(change)
    await until(frozen(house, change))

    was = forget(house, model)

    await until(lambda: remembers(house, model, *was))
    assert house.change(change.id).reason is Reason.FROZEN


@pytest.mark.parametrize("rollout", [{"holdSeconds": 600}, {"approval": "canary"}], ids=["hold", "approval"])
async def test_a_region_that_comes_back_between_two_steps_is_told_the_state_of_the_wave(
    house, model, served, submit, until, client, rollout
):
    await served(**rollout)
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: house.shares(model).get("eu-west", {}).get(2) == 0.5 == house.shares(model)["us-east"].get(2))
    await until(lambda: rests(house, change))

    was = forget(house, model)

    await until(lambda: remembers(house, model, *was))
    assert house.shares(model)["eu-west"] == {1: 0.5, 2: 0.5}
    assert not house.change(change.id).state.final
    assert repairs(house, model) == [], "users of the canary are where the wave sends them"
    await control(client, model, ControlAction.ABORT, ControlAsked(by="anna"), change_id=change.id)
    await until(lambda: house.change(change.id).state.final)


async def test_a_region_that_comes_back_in_a_pause_is_told_the_state_of_the_wave(
    house, model, served, submit, until, client
):
    await served(holdSeconds=2)
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: house.shares(model).get("eu-west", {}).get(2) == 0.5)
    await control(client, model, ControlAction.PAUSE, ControlAsked(by="anna"), change_id=change.id)
    await until(lambda: waves_done(house, change) == 1)

    was = forget(house, model)

    await until(lambda: remembers(house, model, *was))
    await control(client, model, ControlAction.RESUME, ControlAsked(by="anna"), change_id=change.id)
    await until(lambda: house.change(change.id).state is ChangeState.DONE)


def rests(house, change):
    with house.store.read() as unit:
        return unit.transition(change.id).rests


def waves_done(house, change):
    with house.store.read() as unit:
        return unit.transition(change.id).waves_done


@pytest.mark.usefixtures("outbox")
async def test_a_repair_passes_a_publish_that_is_frozen_and_leaves_it_frozen(
    house, model, served_twice, freeze, thaw, submit, until
):
    await served_twice()
    freeze()
    change = house.publish(model, 3)
    await submit(change)
    await until(frozen(house, change))

    send_astray(house, model)

    await until(lambda: [found.state for found in repairs(house, model)] == [ChangeState.DONE])
    assert house.shares(model) == TWO_SERVES
    assert house.change(change.id).reason is Reason.FROZEN
    assert house.condition(model, ConditionType.UP_TO_DATE).reason is Reason.FROZEN
    await thaw()
    await until(lambda: house.change(change.id).state is ChangeState.DONE)
    assert house.shares(model) == THREE_SERVES


@pytest.mark.usefixtures("outbox")
async def test_a_repair_passes_what_waits_for_the_end_of_a_pause(house, model, served_twice, submit, until, client):
    await served_twice()
    await control(client, model, ControlAction.PAUSE, ControlAsked(by="anna"))
    change = house.publish(model, 3)
    await submit(change)

    send_astray(house, model)

    await until(lambda: [found.state for found in repairs(house, model)] == [ChangeState.DONE])
    assert house.shares(model) == TWO_SERVES
    assert house.change(change.id).state is ChangeState.QUEUED
    await control(client, model, ControlAction.RESUME, ControlAsked(by="anna"))
    await until(lambda: house.change(change.id).state is ChangeState.DONE)


@pytest.mark.usefixtures("outbox")
async def test_an_entity_that_begins_anew_carries_out_the_repair_before_it_follows_what_is_frozen(
    house, model, served_twice, freeze, thaw, submit, until, client
):
    await served_twice()
    freeze()
    change = house.publish(model, 3)
    await submit(change)
    await until(frozen(house, change))

    await client.get_workflow_handle(names.model_workflow_id(model)).terminate()
    send_astray(house, model)

    await until(lambda: [found.state for found in repairs(house, model)] == [ChangeState.DONE])
    await thaw()
    await until(lambda: house.change(change.id).state is ChangeState.DONE)


@pytest.mark.usefixtures("outbox")
async def test_a_rollback_ends_a_frozen_publish_that_a_repair_has_passed(
    house, model, served_twice, freeze, submit, until
):
    await served_twice()
    freeze()
    change = house.publish(model, 3)
    await submit(change)
    await until(frozen(house, change))
    send_astray(house, model)
    await until(lambda: [found.state for found in repairs(house, model)] == [ChangeState.DONE])

    rollback = house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1)
    await submit(rollback)

    await until(lambda: house.change(rollback.id).state is ChangeState.DONE)
    assert house.change(change.id).state is ChangeState.SUPERSEDED


@pytest.mark.usefixtures("outbox")
async def test_a_repair_waits_for_a_run_that_moves_the_model(house, model, served, submit, until, client):
    await served(holdSeconds=600)
    change = house.publish(model, 3)
    await submit(change)
    await until(lambda: house.shares(model).get("eu-west", {}).get(2) == 0.5)
    repair = house.ask(model, ChangeKind.REPAIR, f"repair-{model}-asked")
    await submit(repair)

    await until(lambda: rests(house, change))
    assert house.change(repair.id).state in {ChangeState.RECORDED, ChangeState.QUEUED}
    await control(client, model, ControlAction.PROMOTE, ControlAsked(by="anna"), change_id=change.id)
    await until(lambda: house.change(repair.id).state is ChangeState.DONE)
    assert house.change(change.id).state is ChangeState.DONE
    assert house.shares(model) == TWO_SERVES


async def test_a_move_away_from_a_lost_region_passes_freeze_pause_and_a_frozen_publish(
    house, model, served, freeze, submit, until, client, drains
):
    await served()
    freeze("publish", "move")
    change = house.publish(model, 2)
    await submit(change)
    await until(frozen(house, change))
    await control(client, model, ControlAction.PAUSE, ControlAsked(by="anna"))

    house.infrastructure.cut("eu-west")
    await drains.ask(disaster=True)

    await until(lambda: moves(house, model))
    await until(lambda: moves(house, model)[0].state.final)
    assert moves(house, model)[0].state is ChangeState.DONE, moves(house, model)[0].message
    assert regions(house, model) == {"us-east"}
    assert house.change(change.id).reason is Reason.FROZEN


async def test_another_move_waits_behind_a_frozen_publish(house, model, served, freeze, submit, until):
    await served()
    freeze()
    change = house.publish(model, 2)
    await submit(change)
    await until(frozen(house, change))
    with house.store.read() as unit:
        plan_id = unit.placement(model).plan_id
    move = house.ask(model, ChangeKind.MOVE, f"move-{model}", plan_id=plan_id)
    await submit(move)
    repair = house.ask(model, ChangeKind.REPAIR, f"repair-{model}-asked")
    await submit(repair)

    await until(lambda: house.change(repair.id).state is ChangeState.DONE)
    assert house.change(move.id).state in {ChangeState.RECORDED, ChangeState.QUEUED}


def moves(house, model):
    with house.store.read() as unit:
        return [change for change in unit.changes(model) if change.kind is ChangeKind.MOVE]
