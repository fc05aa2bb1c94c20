"""While a change of a model waits, regions follow the store."""

from datetime import UTC, datetime, timedelta

import pytest

from ipnext.model.controls import ControlAction, ControlAsked
from ipnext.model.freeze import FreezeManifest
from ipnext.model.lifecycle import ChangeKind, ChangeState
from ipnext.model.status import Reason
from ipnext.temporal import control

pytestmark = pytest.mark.usefixtures("workers", "reconciler")

PACE = {"canary": 0.5, "maxStep": 1.0, "deadlineSeconds": 180}


@pytest.fixture
def served(house, model, carried_out):
    async def serve(**rollout):
        house.apply(model, rollout=PACE)
        assert (await carried_out(house.publish(model, 1))).state is ChangeState.DONE
        house.apply(model, rollout={**PACE, **rollout})

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


def frozen(house, change):
    return lambda: house.change(change.id).reason is Reason.FROZEN


def repairs(house, model):
    with house.store.read() as unit:
        return [change for change in unit.changes(model) if change.kind is ChangeKind.REPAIR]


def forget(house, model):
    """A region loses a replica set and its table, as after a restart without its state. Returns what the store has of both."""
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
