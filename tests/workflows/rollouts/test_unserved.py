"""Users' regions that nothing serves: never by mistake, never behind a `Ready`, and refused with the reason."""

import pytest

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.temporal import control, signal_freeze_change
from tests.fleets import two_regions
from tests.workflows.changes.test_freezes import freeze_manifest

pytestmark = pytest.mark.usefixtures("workers")

SMALL = [{"region": "us-east", "qps": 100}, {"region": "eu-west", "qps": 0.09}]
"""Less in eu-west than a replica is worth by price."""


def ready_of(house, model):
    return house.condition(model, ConditionType.READY)


async def test_a_small_region_out_of_the_others_latency_is_served_from_its_own_supply(house, model, carried_out):
    house.apply_fleet(two_regions(10, 10))
    house.apply(model, demand=SMALL, latencyToleranceMs=50)

    change = await carried_out(house.publish(model, 1))

    assert change.state is ChangeState.DONE, change
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    assert ready_of(house, model).status == "True"


async def test_a_region_without_supply_is_not_ready_and_its_gateway_knows_why(house, model, carried_out):
    house.apply_fleet(two_regions(10, 0))
    house.apply(model, demand=SMALL, latencyToleranceMs=50)

    change = await carried_out(house.publish(model, 1))

    assert change.state is ChangeState.DONE, change
    ready = ready_of(house, model)
    assert (ready.status, ready.reason) == ("False", Reason.NO_CAPACITY)
    assert "no region serves users of eu-west: latency eu-west, supply eu-west/cpu;" in ready.message
    with house.store.read() as repository:
        tables = {table.region: table for table in repository.routes(model)}
    assert tables["eu-west"].shares == ()
    assert "supply eu-west/cpu" in tables["eu-west"].unmet_rules
    assert house.infrastructure.table(model, "eu-west") == tables["eu-west"]


@pytest.mark.parametrize("supply", [10, 0])
async def test_a_region_that_is_named_without_demand_holds_up_no_other_region(house, model, carried_out, supply):
    """Out of the other region's latency, with supply of its own and without: no replica is worth anything there."""
    house.apply_fleet(two_regions(10, supply))
    house.apply(
        model, demand=[{"region": "us-east", "qps": 100}, {"region": "eu-west", "qps": 0}], latencyToleranceMs=50
    )

    change = await carried_out(house.publish(model, 1))

    assert change.state is ChangeState.DONE, change
    with house.store.read() as repository:
        tables = {table.region: table.shares for table in repository.routes(model)}
    assert [share.to for share in tables["us-east"]] == ["us-east"]
    assert tables["eu-west"] == ()
    ready = ready_of(house, model)
    assert ready.status == "False", "a region that the manifest names and nothing serves is never behind a Ready"
    assert "no region serves users of eu-west" in ready.message


def refusals(house, model):
    """Region -> why its gateway refuses the model's users."""
    tables = {region: house.infrastructure.table(model, region) for region in ("us-east", "eu-west")}
    return {region: table.unmet_rules for region, table in tables.items() if table is not None and table.refuses}


@pytest.mark.usefixtures("reconciler")
async def test_a_model_that_never_served_is_refused_with_the_reason_in_the_regions_of_its_users(
    house, model, carried_out, until
):
    house.apply(model)
    await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-apply"))
    why = ("no snapshots are published",)
    await until(lambda: refusals(house, model) == {"us-east": why, "eu-west": why})

    house.apply(model, demand=[{"region": "us-east", "qps": 100}])
    await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-again"))
    await until(lambda: refusals(house, model) == {"us-east": why})

    house.apply(model, demand=SMALL)
    assert (await carried_out(house.publish(model, 1))).state is ChangeState.DONE
    assert refusals(house, model) == {}
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}

    await carried_out(house.ask(model, ChangeKind.RETIRE, f"{model}-retire"))
    assert house.infrastructure.table(model, "us-east") is None


@pytest.mark.usefixtures("reconciler")
async def test_after_a_refused_first_publish_users_are_told_its_reason_but_not_its_message(
    house, model, carried_out, until
):
    house.apply_fleet(two_regions(0, 0))
    house.apply(model)

    change = await carried_out(house.publish(model, 1))

    assert change.state is ChangeState.REFUSED
    why = (f"generation 1 does not serve ({change.reason})",)
    await until(lambda: refusals(house, model) == {"us-east": why, "eu-west": why})


@pytest.mark.usefixtures("reconciler")
async def test_a_model_that_is_retired_before_it_served_is_known_to_no_gateway(house, model, carried_out, until):
    house.apply(model)
    await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-apply"))
    await until(lambda: len(refusals(house, model)) == 2)

    await carried_out(house.ask(model, ChangeKind.RETIRE, f"{model}-retire"))

    with house.store.read() as repository:
        assert repository.routes(model) == ()
    await until(lambda: refusals(house, model) == {})


ELSEWHERE = [{"region": "us-east", "qps": 100}]


def reasons(house, model):
    with house.store.read() as repository:
        return {condition.reason for condition in repository.conditions(model)}


def conditions(house, model):
    asked = (ConditionType.SERVING, ConditionType.UP_TO_DATE, ConditionType.READY)
    return {condition: house.condition(model, condition).status for condition in asked}


SERVES_THE_OLD = {ConditionType.SERVING: "True", ConditionType.UP_TO_DATE: "False", ConditionType.READY: "False"}


@pytest.mark.usefixtures("reconciler")
async def test_users_of_a_region_that_a_frozen_manifest_adds_are_told_that_it_waits(
    house, client, model, submit, carried_out, ended, until
):
    house.apply_fleet(two_regions(10, 10))
    house.apply(model, demand=ELSEWHERE)
    await carried_out(house.publish(model, 1))
    with house.store.begin() as unit:
        unit.put_freeze(freeze_manifest("sale", 3600, models=[model]), expected_version=None)

    house.apply(model, demand=SMALL)
    change = house.ask(model, ChangeKind.APPLY, f"{model}-more")
    await submit(change)

    why = ("revision 2 of the manifest does not serve (Frozen)",)
    await until(lambda: refusals(house, model) == {"eu-west": why})
    assert house.shares(model) == {"us-east": {1: 1.0}}
    assert conditions(house, model) == SERVES_THE_OLD

    with house.store.begin() as unit:
        unit.override_freezes(change.id, who="ann", reason="users wait", passes=None)
    await signal_freeze_change(client, change)
    assert (await ended(change)).state is ChangeState.DONE
    assert refusals(house, model) == {}
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}


@pytest.mark.usefixtures("reconciler")
async def test_users_of_a_region_that_a_manifest_adds_while_the_model_is_paused_are_told_that_it_waits(
    house, client, model, submit, carried_out, ended, until
):
    house.apply_fleet(two_regions(10, 10))
    house.apply(model, demand=ELSEWHERE)
    await carried_out(house.publish(model, 1))
    await control(client, model, ControlAction.PAUSE, ControlAsked(by="ann"))

    house.apply(model, demand=SMALL)
    change = house.ask(model, ChangeKind.APPLY, f"{model}-more")
    assert conditions(house, model) == SERVES_THE_OLD
    await submit(change)

    why = ("revision 2 of the manifest does not serve (Pending)",)
    await until(lambda: refusals(house, model) == {"eu-west": why})
    assert conditions(house, model) == SERVES_THE_OLD

    await control(client, model, ControlAction.RESUME, ControlAsked(by="ann"))
    assert (await ended(change)).state is ChangeState.DONE
    assert refusals(house, model) == {}
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    assert set(conditions(house, model).values()) == {"True"}


@pytest.mark.usefixtures("reconciler")
async def test_users_of_a_region_that_a_manifest_adds_during_a_rollout_are_told_that_it_waits(
    house, client, model, submit, carried_out, ended, until
):
    """The rollout waits for an approval with a part of the traffic moved."""
    rollout = {"canary": 0.1, "maxStep": 1, "approval": "canary"}
    house.apply_fleet(two_regions(10, 10))
    house.apply(model, demand=ELSEWHERE)
    await carried_out(house.publish(model, 1))
    house.apply(model, demand=ELSEWHERE, rollout=rollout)
    running = house.publish(model, 2)
    await submit(running)
    await until(lambda: Reason.AWAITING_APPROVAL in reasons(house, model))

    house.apply(model, demand=SMALL, rollout={**rollout, "approval": "none"})
    change = house.ask(model, ChangeKind.APPLY, f"{model}-more")
    await submit(change)
    await until(lambda: set(refusals(house, model)) == {"eu-west"})

    await control(client, model, ControlAction.APPROVE, ControlAsked(by="ann"), change_id=running.id)
    assert (await ended(running)).state is ChangeState.DONE
    assert (await ended(change)).state is ChangeState.DONE
    assert refusals(house, model) == {}
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}


@pytest.mark.usefixtures("reconciler")
async def test_users_of_a_region_that_a_refused_manifest_adds_are_told_its_reason(house, model, carried_out, until):
    house.apply_fleet(two_regions(10, 0))
    house.apply(model, demand=ELSEWHERE, latencyToleranceMs=50)
    await carried_out(house.publish(model, 1))

    house.apply(model, demand=SMALL, latencyToleranceMs=50, budgetPerHour=0)
    change = await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-more"))

    assert change.state is ChangeState.REFUSED, change
    why = (f"revision 2 of the manifest does not serve ({change.reason})",)
    await until(lambda: refusals(house, model) == {"eu-west": why})
    assert conditions(house, model) == SERVES_THE_OLD

    house.apply(model, demand=ELSEWHERE, latencyToleranceMs=50)
    assert (await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-back"))).state is ChangeState.DONE
    await until(lambda: refusals(house, model) == {})
    with house.store.read() as repository:
        assert [table.region for table in repository.routes(model)] == ["us-east"]


@pytest.mark.usefixtures("reconciler")
async def test_a_model_does_not_depend_on_a_region_that_only_a_refused_manifest_names(house, model, carried_out, until):
    house.apply_fleet(two_regions(10, 0))
    house.apply(model, demand=ELSEWHERE, latencyToleranceMs=50)
    await carried_out(house.publish(model, 1))
    house.apply(model, demand=SMALL, latencyToleranceMs=50, budgetPerHour=0)
    await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-more"))
    await until(lambda: set(refusals(house, model)) == {"eu-west"})

    house.infrastructure.cut("eu-west")
    repaired = await carried_out(house.ask(model, ChangeKind.REPAIR, f"{model}-repair"))

    assert repaired.state is ChangeState.DONE, repaired
    assert conditions(house, model) == SERVES_THE_OLD
