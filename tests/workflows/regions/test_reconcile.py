"""After a fault ends, regions follow the store and users follow the generation that serves, without a person."""

import contextlib

import pytest

from ipnext.api.workflow_engine.outbox import Outbox
from ipnext.api.workflow_engine.temporal import TemporalLifecycle
from ipnext.errors import RegionUnreachable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.temporal import control

pytestmark = pytest.mark.usefixtures("workers")

PACE = {"canary": 0.5, "maxStep": 1.0, "deadlineSeconds": 180}
ONE_SERVES = {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}


@pytest.fixture
async def outbox(house, temporal_address, monkeypatch):
    """The API's own: it submits what the platform records by itself."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)
    async with Outbox(house.store, TemporalLifecycle(ui_url="http://127.0.0.1")).running():
        yield


@pytest.fixture
def served(house, model, carried_out):
    async def serve(**rollout):
        house.apply(model, rollout={**PACE, **rollout})
        assert (await carried_out(house.publish(model, 1))).state is ChangeState.DONE

    return serve


def repairs(house, model):
    with house.store.read() as repository:
        return [change for change in repository.changes(model) if change.kind is ChangeKind.REPAIR]


def followed(house, model):
    """Region -> what its gateway sends by now, as the infrastructure has it."""
    tables = {region: house.infrastructure.table(model, region) for region in ("us-east", "eu-west")}
    return {region: {s.generation: s.fraction for s in t.shares} for region, t in tables.items() if t is not None}


@pytest.mark.usefixtures("outbox", "reconciler")
async def test_a_region_away_beyond_the_deadline_is_repaired_once_it_is_back(house, model, served, until, client):
    await served()
    house.apply(model, rollout={**PACE, "deadlineSeconds": 5, "approval": "canary"})
    change = house.publish(model, 2)
    await until(lambda: house.shares(model)["eu-west"].get(2) == 0.5)

    house.infrastructure.cut("eu-west")
    await control(client, model, ControlAction.ABORT, ControlAsked(by="anna"), change_id=change.id)
    await until(lambda: house.change(change.id).state.final)
    assert house.change(change.id).state is ChangeState.ROLLED_BACK
    assert "not all of the way back was done then" in house.change(change.id).message
    assert house.shares(model)["eu-west"] == {1: 0.5, 2: 0.5}

    house.infrastructure.mend("eu-west")
    await until(lambda: followed(house, model) == ONE_SERVES)
    await until(lambda: all(found.state.final for found in repairs(house, model)))
    assert repairs(house, model)[0].state is ChangeState.DONE


@pytest.mark.usefixtures("reconciler")
async def test_what_a_region_missed_is_told_again(house, model, served, until):
    await served()
    with house.store.read() as repository:
        key = next(d.key for d in repository.deployments(model) if d.key.region == "eu-west")
        table = repository.route(model, "eu-west")

    house.infrastructure.delete(key)
    house.infrastructure.unroute(model, "eu-west")

    await until(lambda: house.infrastructure.deployment(key) is not None)
    await until(lambda: house.infrastructure.table(model, "eu-west") == table)


@pytest.mark.usefixtures("reconciler")
async def test_a_table_that_the_store_never_wrote_down_is_replaced_by_the_stored_one(house, model, served, until):
    await served()
    with house.store.read() as repository:
        table = repository.route(model, "eu-west")

    house.infrastructure.route(table.model_copy(update={"revision": table.revision + 7, "shares": ()}))

    def stored():
        with house.store.read() as repository:
            return repository.route(model, "eu-west").revision

    await until(lambda: stored() == table.revision + 8)
    await until(lambda: followed(house, model) == ONE_SERVES)


@pytest.mark.usefixtures("reconciler")
async def test_replicas_of_a_model_that_left_the_store_end_and_strangers_stay(house, model, served, until):
    await served()
    with house.store.read() as repository:
        found = next(d for d in repository.deployments(model) if d.key.region == "eu-west")
    extra = found.model_copy(update={"key": found.key.model_copy(update={"part": "left"})})
    stranger = found.model_copy(update={"key": found.key.model_copy(update={"model": "nobody-knows"})})
    house.infrastructure.apply(stranger)
    house.infrastructure.apply(extra)

    await until(lambda: house.infrastructure.deployment(extra.key) is None)
    assert house.infrastructure.deployment(stranger.key) is not None


@pytest.mark.usefixtures("outbox", "reconciler")
async def test_a_pause_does_not_stop_a_repair(house, model, served, until, client):
    await served()
    await control(client, model, ControlAction.PAUSE, ControlAsked(by="anna"))
    with house.store.begin(model) as repository:
        table = repository.route(model, "eu-west")
        astray = tuple(share.model_copy(update={"generation": 9}) for share in table.shares)
        repository.put_route(table.model_copy(update={"revision": table.revision + 1, "shares": astray}))

    await until(lambda: repairs(house, model))
    await until(lambda: followed(house, model) == ONE_SERVES)


async def test_an_unreachable_region_fails_no_pass(house, model, served, reconciler, until):
    await served()
    house.infrastructure.cut("eu-west")
    with contextlib.suppress(RegionUnreachable):
        house.infrastructure.observe("eu-west")
    with house.store.read() as repository:
        key = next(d.key for d in repository.deployments(model) if d.key.region == "us-east")

    house.infrastructure.delete(key)

    await until(lambda: house.infrastructure.deployment(key) is not None)
    assert (await reconciler.describe()).status.name == "RUNNING"
