"""Regions go and come back: planned without a request lost, a disaster at once."""

from temporalio.testing import ActivityEnvironment

from activities.regions.activities import DrainActivities
from activities.regions.recovery import RegionRecovery
from ipnext import names
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.deployment.replica import ReplicaPhase
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.regions.drain import DrainInput, DrainSeen, DrainState
from ipnext.model.lifecycle.replans.replan import ReplanState
from ipnext.model.lifecycle.status import Reason
from tests.workflows.regions.drains import (
    DEMAND,
    EUROPE,
    destinations,
    drain_of,
    regions,
    replans_ended,
    stored_destinations,
)


async def test_a_planned_drain_moves_every_model_away_and_no_capacity_floor_breaks(
    house, kit, two_served, drains, client
):
    await drains.ask(reason="new racks")

    drain = await drains.reaches(DrainState.DRAINED)

    assert (drain.models_left, drain.replicas_left, drain.traffic_left_qps) == (0, 0, 0.0)
    assert (drain.reason, drain.cause, drain.replans) == ("new racks", Reason.SUCCEEDED, 1)
    for name in two_served:
        assert regions(house, name) == {"us-east"}
        assert destinations(house, name) == {"us-east"}
        kit.check_floor(house.infrastructure, name, DEMAND)
    with house.store.read() as repository:
        assert repository.replan(drain.replan_id).trigger == "drain"
    handle = client.get_workflow_handle(names.drain_workflow_id(EUROPE))
    await drains.shows("drained")
    assert (await handle.query(names.DRAIN_PROGRESS, result_type=DrainSeen)).state is DrainState.DRAINED


async def test_applying_a_fleet_keeps_a_drain_and_a_publish_stays_out_of_the_region(
    house, kit, model, two_served, *, drains, carried_out
):
    await drains.ask()
    await drains.reaches(DrainState.DRAINED)
    house.apply_fleet(kit.FLEET.replace("unitCost: 1.0", "unitCost: 3.0"))

    change = await carried_out(house.publish(model, 2))

    assert change.state is ChangeState.DONE
    assert regions(house, model) == {"us-east"}
    assert drain_of(house).state is DrainState.DRAINED


async def test_a_drain_that_the_others_cannot_carry_is_refused_with_the_models_and_rules_and_nothing_moves(
    house, kit, two_served, drains
):
    house.apply_fleet(
        kit.FLEET.replace("region: us-east, hardware: cpu, units: 40", "region: us-east, hardware: cpu, units: 18")
    )
    await drains.ask()

    drain = await drains.reaches(DrainState.REFUSED)

    assert drain.cause is Reason.NO_CAPACITY
    assert any(name in drain.message for name in two_served)
    assert "requests/s" in drain.message
    assert "supply us-east/cpu" in drain.message
    assert EUROPE in regions(house, two_served[0])
    with house.store.read() as repository:
        assert repository.replans() == ()
        assert repository.drains() == ()


async def test_force_drains_all_the_same_and_the_rest_serves_what_it_can(house, kit, two_served, drains, until):
    house.apply_fleet(
        kit.FLEET.replace("region: us-east, hardware: cpu, units: 40", "region: us-east, hardware: cpu, units: 18")
    )
    await drains.ask(force=True)

    await until(lambda: drain_of(house).replan_id)
    await replans_ended(house, until)

    with house.store.read() as repository:
        assert sum(item.qps for item in repository.unmet()) > 0
        assert {row.region for name in two_served for row in repository.placement(name).replicas} == {"us-east"}


async def test_users_that_only_the_drained_region_reaches_in_time_are_named(house, model, workers, carried_out, drains):
    house.apply(model, latencyToleranceMs=20)
    await carried_out(house.publish(model, 1))
    await drains.ask()

    drain = await drains.reaches(DrainState.REFUSED)

    assert f"{model}: 180 requests/s of {EUROPE}" in drain.message
    assert "latency" in drain.message


async def test_a_region_asked_back_counts_again_and_the_next_plan_uses_it(house, two_served, drains, until):
    await drains.ask()
    await drains.reaches(DrainState.DRAINED)

    await drains.ask_back()
    drain = await drains.reaches(DrainState.RETURNED)
    await replans_ended(house, until)

    with house.store.read() as repository:
        replan = repository.replan(drain.replan_id)
    assert (drain.replans, replan.trigger, replan.state) == (2, "drain", ReplanState.ADOPTED)
    await until(lambda: all(EUROPE in regions(house, name) for name in two_served))


async def test_a_lost_region_gets_no_traffic_at_once_and_the_planner_repairs_without_it(
    house, kit, two_served, *, drains, until, client
):
    house.infrastructure.cut(EUROPE)
    await drains.ask(disaster=True)

    await drains.reaches(DrainState.DRAINING, DrainState.DRAINED)
    for name in two_served:
        table = house.infrastructure.table(name, "us-east")
        assert {share.to for share in table.shares} == {"us-east"}
        assert stored_destinations(house, name) == {"us-east"}
    drain = await drains.reaches(DrainState.DRAINED)
    await replans_ended(house, until)

    assert drain.replans == 1
    for name in two_served:
        with house.store.read() as repository:
            placed = repository.placement(name)
        assert {row.region for row in placed.replicas} == {"us-east"}
        assert sum(row.count for row in placed.replicas) == 12
        for key in (
            DeploymentKey(model=name, part=part, region="us-east", hardware="cpu") for part in ("sparse", "dense")
        ):
            assert house.infrastructure.deployment(key).replicas == 6


async def test_a_lost_region_that_only_it_reached_in_time_is_answered_from_afar(
    house, model, workers, carried_out, *, drains, until
):
    house.apply(model, latencyToleranceMs=20)
    await carried_out(house.publish(model, 1))
    house.infrastructure.cut(EUROPE)
    await drains.ask(disaster=True)
    await drains.reaches(DrainState.DRAINED)
    await replans_ended(house, until)

    with house.store.read() as repository:
        assert repository.placement(model).unmet == ()
        assert {share.to for share in repository.placement(model).traffic} == {"us-east"}
    again = await carried_out(house.publish(model, 2))
    assert again.state is ChangeState.DONE, again
    assert regions(house, model) == {"us-east"}


async def test_a_lost_region_is_told_what_is_wanted_before_it_comes_back(
    house, two_served, *, drains, until, carried_out
):
    name = two_served[0]
    house.infrastructure.cut(EUROPE)
    await drains.ask(disaster=True)
    await drains.reaches(DrainState.DRAINED)
    await replans_ended(house, until)
    assert (await carried_out(house.publish(name, 2))).state is ChangeState.DONE
    await drains.ask_back()
    await until(lambda: "can't be reached" in drain_of(house).message)
    assert drain_of(house).state is DrainState.RETURNING
    with house.store.read() as repository:
        assert [drain.lost for drain in repository.drains()] == [True]

    house.infrastructure.mend(EUROPE)
    await drains.reaches(DrainState.RETURNED)

    table = house.infrastructure.table(name, EUROPE)
    assert {share.generation for share in table.shares} == {2}, (
        "its gateway does not answer with what was replaced meanwhile"
    )
    await replans_ended(house, until)
    await until(lambda: all(EUROPE in regions(house, found) for found in two_served))
    state = house.infrastructure.observe(EUROPE)
    generations = {g for replica in state.replicas if replica.key.model == name for g in replica.ready}
    assert 2 in generations


async def test_users_whom_no_other_region_answered_are_answered_again_when_their_region_is_back(
    house, model, carried_out, workers
):
    """A disaster has dropped their shares; the hosts of the region are ready as it comes back."""
    house.apply(model, demand=[{"region": EUROPE, "qps": 80}], latencyToleranceMs=10)
    await carried_out(house.publish(model, 1))
    with house.store.begin() as repository:
        table = repository.route(model, EUROPE)
        dropped = table.model_copy(update={"shares": (), "revision": table.revision + 1})
        repository.put_route(dropped)
    house.infrastructure.route(dropped)

    RegionRecovery(house.store, house.infrastructure, EUROPE).reconcile()

    assert house.shares(model) == {EUROPE: {1: 1.0}}


async def test_a_region_is_told_what_changes_write_while_it_comes_back(house, model, carried_out, workers):
    """A run that frees what a lost region held strikes it off the store only.

    As the region comes back it is told again.
    """
    house.apply(model, demand=[{"region": EUROPE, "qps": 80}], latencyToleranceMs=10)
    await carried_out(house.publish(model, 1))
    drains = DrainActivities(house.store, house.infrastructure, lambda: None, lambda *_: None)
    with house.store.begin() as repository:
        drain = repository.add_drain(EUROPE, disaster=True)
        repository.update_drain(drain.id, state=DrainState.RETURNING)
        former = {found.key for found in repository.deployments() if found.key.region == EUROPE}
        table = repository.route(model, EUROPE)
        repository.put_route(table.model_copy(update={"shares": (), "revision": table.revision + 1}))
    route = house.infrastructure.route

    def freed_meanwhile(told):
        route(told)
        with house.store.begin() as repository:
            for key in former:
                repository.delete_deployment(key)

    house.infrastructure.route = freed_meanwhile
    seen = ActivityEnvironment().run(drains.return_region, DrainInput(region=EUROPE))

    assert seen.state is DrainState.RETURNED
    left = house.infrastructure.observe(EUROPE).replicas
    assert not former & {replica.key for replica in left if replica.phase is not ReplicaPhase.DRAINING}


async def test_a_region_gets_what_users_were_sent_to_last_though_that_change_ends_while_it_comes_back(
    house, model, carried_out, workers
):
    """A run that had nowhere to send its users is done, its change a moment later.

    What served before is no answer any more.
    """
    house.apply(model, demand=[{"region": EUROPE, "qps": 80}], latencyToleranceMs=10)
    await carried_out(house.publish(model, 1))
    newer = house.publish(model, 2)
    await carried_out(newer)
    drains = DrainActivities(house.store, house.infrastructure, lambda: None, lambda *_: None)
    with house.store.begin() as repository:
        drain = repository.add_drain(EUROPE, disaster=True)
        repository.update_drain(drain.id, state=DrainState.RETURNING)
        table = repository.route(model, EUROPE)
        repository.put_route(table.model_copy(update={"shares": (), "revision": table.revision + 1}))
        repository.update_model(model, serving_generation=1)
    route = house.infrastructure.route

    def ended_meanwhile(told):
        route(told)
        with house.store.begin() as repository:
            repository.update_model(model, serving_generation=2)

    house.infrastructure.route = ended_meanwhile
    seen = ActivityEnvironment().run(drains.return_region, DrainInput(region=EUROPE))

    assert seen.state is DrainState.RETURNED
    assert house.shares(model) == {EUROPE: {2: 1.0}}
