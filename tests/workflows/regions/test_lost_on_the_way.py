"""A region is declared lost while a change of a model is on its way there.

What was acknowledged comes through where it can.
"""

import pytest

from activities.regions.failover import RegionFailover
from activities.regions.recovery import RegionRecovery
from ipnext.api.workflow_engine.outbox import Outbox
from ipnext.api.workflow_engine.temporal import TemporalLifecycle
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.registry import GenerationState
from ipnext.names import again_id
from tests.fleets import two_regions
from tests.workflows.regions.drains import EUROPE, regions

pytestmark = pytest.mark.usefixtures("workers", "outbox")

IN_EUROPE = [{"region": EUROPE, "qps": 80}]


@pytest.fixture
async def outbox(house, temporal_address, monkeypatch):
    """The API's own: it submits what the platform records by itself."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)
    async with Outbox(house.store, TemporalLifecycle(ui_url="http://127.0.0.1")).running():
        yield


@pytest.fixture
def on_its_way(house, model, until, drains):
    """Publish a first generation that is loaded in Europe only, and lose Europe before it is ready."""

    async def publish(*, east=40, newer=False):
        house.apply_fleet(two_regions(east=east, east_cost=2.0))
        house.apply(model, demand=IN_EUROPE)
        house.infrastructure.stall()
        change = house.publish(model, 1)
        await until(lambda: regions(house, model) == {EUROPE})
        if newer:
            house.publish(model, 2)
        house.infrastructure.cut(EUROPE)
        await drains.ask(disaster=True)
        house.infrastructure.release()
        return change

    return publish


def changes(house, model, kind=ChangeKind.PUBLISH):
    with house.store.read() as repository:
        return [change for change in repository.changes(model) if change.kind is kind]


def generation(house, model, number):
    with house.store.read() as repository:
        return repository.generation(model, number)


async def test_a_publish_whose_region_is_lost_serves_where_there_is_room(house, model, on_its_way, ended):
    change = await on_its_way()

    first = await ended(change)
    again = await ended(again_id(model, change.sequence))

    assert (first.state, first.reason) == (ChangeState.ROLLED_BACK, Reason.REGION_UNREACHABLE)
    assert f"carried out again on the regions that are left as change {again.id}" in first.message
    assert (again.state, again.generation) == (ChangeState.DONE, 1), again.message
    assert generation(house, model, 1).state is GenerationState.SERVING
    assert regions(house, model) == {"us-east"}


async def test_a_publish_that_nothing_else_can_serve_ends_with_what_to_do(house, model, on_its_way, ended):
    change = await on_its_way(east=1)

    await ended(change)
    again = await ended(again_id(model, change.sequence))

    assert (again.state, again.reason) == (ChangeState.REFUSED, Reason.NO_CAPACITY)
    assert "eu-west is out of service (declared lost)" in again.message
    assert "`ipnext undrain eu-west`" in again.message
    assert len(changes(house, model)) == 2


async def test_a_publish_that_a_newer_one_replaces_is_not_carried_out_again(house, model, on_its_way, ended):
    change = await on_its_way(newer=True)

    assert (await ended(change)).state is ChangeState.ROLLED_BACK
    newer, first = changes(house, model)

    assert (await ended(newer)).state is ChangeState.DONE
    assert (first.id, len(changes(house, model))) == (change.id, 2)
    assert generation(house, model, 2).state is GenerationState.SERVING


async def test_a_publish_that_nobody_approved_is_not_carried_out_again(
    house, model, carried_out, submit, until, drains, ended
):
    house.apply_fleet(two_regions())
    pace = {"canary": 0.1, "maxStep": 1.0, "deadlineSeconds": 180}
    house.apply(model, demand=[*IN_EUROPE, {"region": "us-east", "qps": 80}], rollout=pace)
    assert (await carried_out(house.publish(model, 1))).state is ChangeState.DONE
    house.apply(model, rollout={**pace, "approval": "canary", "manualDeadlineSeconds": 6})
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: waits_for_approval(house, model))
    assert EUROPE in regions(house, model)
    await drains.ask(disaster=True)

    first = await ended(change)

    assert (first.state, first.reason) == (ChangeState.ROLLED_BACK, Reason.DEADLINE_EXCEEDED)
    assert first.message.startswith("nobody approved wave 1")
    assert [found.generation for found in changes(house, model)] == [2, 1]


def waits_for_approval(house, model):
    with house.store.read() as repository:
        return any(found.reason is Reason.AWAITING_APPROVAL for found in repository.conditions(model))


def send_around(house):
    """Declare Europe lost and send its users elsewhere, but let no plan repair it yet."""
    house.infrastructure.cut(EUROPE)
    with house.store.begin() as repository:
        repository.add_drain(EUROPE, disaster=True)
    return RegionFailover(house.store, house.infrastructure).send_around(EUROPE)


def bring_back(house):
    """Europe is in service again, as the store has it."""
    house.infrastructure.mend(EUROPE)
    RegionRecovery(house.store, house.infrastructure, EUROPE).reconcile()
    with house.store.begin() as repository:
        drain = repository.drain(EUROPE)
        repository.update_drain(drain.id, state=DrainState.RETURNED)


@pytest.fixture
def nowhere(house, model, carried_out):
    """Generation 1 serves in Europe only, and Europe is lost: no region answers the model."""

    async def lose(few):
        house.apply_fleet(two_regions(east=40, east_cost=2.0))
        gate = {"maxDrift": 0.25, "waitSeconds": 60, "onTooFew": few}
        house.apply(model, demand=IN_EUROPE, rollout={"gate": gate, "canary": 0.5})
        await carried_out(house.publish(model, 1))
        assert send_around(house).unanswered == (model,)

    return lose


async def test_a_generation_that_can_be_compared_with_nothing_gets_no_traffic_if_too_few_answers_fail(
    house, model, nowhere, carried_out
):
    await nowhere("fail")

    change = await carried_out(house.publish(model, 2))

    assert (change.state, change.reason) == (ChangeState.ROLLED_BACK, Reason.GATE_FAILED), change.message
    assert "generation 1 serves and answers nobody now, so there is nothing to compare with" in change.message
    sent = {
        share.generation
        for moment in house.infrastructure.history
        for found in moment.routes.values()
        for share in found.shares
    }
    assert sent == {1}


async def test_a_generation_that_can_be_compared_with_nothing_serves_if_too_few_answers_pass(
    house, model, nowhere, carried_out
):
    await nowhere("pass")

    change = await carried_out(house.publish(model, 2))

    assert (change.state, change.generation) == (ChangeState.DONE, 2), change.message


async def test_a_rollback_is_not_compared_though_nothing_answers(house, model, nowhere, carried_out):
    await nowhere("fail")
    await carried_out(house.publish(model, 2))

    change = await carried_out(house.ask(model, ChangeKind.ROLLBACK, "back", generation=1))

    assert change.reason is not Reason.GATE_FAILED, change.message


def ready_for(house, model, region):
    """Requests per second that the weakest part of a model answers in a region."""
    with house.store.read() as repository:
        found = [d for d in repository.deployments(model) if d.key.region == region]
    parts = {d.key.part for d in found}
    return min(sum(d.replicas * d.qps for d in found if d.key.part == part) for part in parts)


def users_of(house, model, region):
    """Requests per second that go to a region, of 80 from each."""
    with house.store.read() as repository:
        tables = repository.routes(model)
    return 80 * sum(share.fraction for table in tables for share in table.shares if share.to == region)


async def test_a_change_that_goes_back_to_what_a_disaster_left_short_asks_for_a_plan_that_mends_it(
    house, kit, model, carried_out, until, ended
):
    house.apply_fleet(two_regions(east=40))
    house.apply(model, demand=[{"region": "us-east", "qps": 80}, *IN_EUROPE])
    await carried_out(house.publish(model, 1))
    assert regions(house, model) == {"us-east", EUROPE}
    send_around(house)
    bring_back(house)
    assert users_of(house, model, "us-east") == 160 > ready_for(house, model, "us-east")
    dense = house.source(kit.DENSE, kit.weights(77))
    house.infrastructure.fail_load(dense.manifest.digest, code="LoadFailed", message="broken on purpose")

    change = await carried_out(house.publish(model, 2, dense=dense))

    assert change.state is ChangeState.ROLLED_BACK
    with house.store.read() as repository:
        asked = [(replan.id, replan.trigger) for replan in repository.replans()]
    assert asked == [(f"shortage-{model}-{change.sequence}", "shortage")]
    await until(lambda: users_of(house, model, "us-east") <= ready_for(house, model, "us-east"))


async def test_a_way_back_leaves_users_their_answers_whose_region_came_back_meanwhile(
    house, kit, model, nowhere, submit, ended, until
):
    await nowhere("pass")
    house.infrastructure.stall()
    dense = house.source(kit.DENSE, kit.weights(77))
    house.infrastructure.fail_load(dense.manifest.digest, code="LoadFailed", message="broken on purpose")
    change = house.publish(model, 2, dense=dense)
    await submit(change)
    await until(lambda: "us-east" in regions(house, model))
    bring_back(house)
    answered = house.infrastructure.table(model, EUROPE).shares
    first = len(house.infrastructure.history)

    house.infrastructure.release()

    assert (await ended(change)).state is ChangeState.ROLLED_BACK
    assert {(share.to, share.generation) for share in answered} == {(EUROPE, 1)}
    assert {moment.routes[model, EUROPE].shares for moment in house.infrastructure.history[first:]} == {answered}
    assert regions(house, model) == {EUROPE}
