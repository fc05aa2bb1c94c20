"""Regions go and come back: planned without a request lost, a disaster at once; and minds are changed on the way."""

import contextlib
import threading
import time

import pytest
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.service import RPCError

from activities.drains import DrainActivities
from activities.returning import Returning
from activities.solving import ThreadSolver
from ipnext import names
from ipnext.model.deployment import DeploymentKey, ReplicaPhase
from ipnext.model.drain import DrainInput, DrainSeen, DrainState
from ipnext.model.lifecycle import ChangeKind, ChangeState, ReplanState
from ipnext.model.status import Reason
from ipnext.temporal import tell_drain, wake_replan

DEMAND = {"us-east": 350.0, "eu-west": 180.0}
EUROPE = "eu-west"


class HeldSolver:
    """Holds the searches until it is let go."""

    def __init__(self) -> None:
        self.searching = threading.Event()
        self.go = threading.Event()
        self.searches = 0

    def solve(self, problem, *, beat):
        self.searches += 1
        self.searching.set()
        while not self.go.is_set():
            beat("held by the test")
            time.sleep(0.02)
        return ThreadSolver().solve(problem, beat=beat)


@pytest.fixture(autouse=True)
async def idle(client):
    """All tests share one server: none may leave a drain or a replan behind."""
    yield
    for left in (names.REPLAN_ID, names.drain_workflow_id(EUROPE), names.drain_workflow_id("us-east")):
        with contextlib.suppress(RPCError):
            await client.get_workflow_handle(left).terminate("its test has ended")


@pytest.fixture
def asked(house, client):
    """Ask for a drain, as the API and its outbox do."""

    async def ask(region=EUROPE, **more):
        with house.store.begin() as repository:
            drain = repository.add_drain(region, **more)
        await tell_drain(client, region)
        return drain

    return ask


@pytest.fixture
def back(house, client):
    """Ask a region back."""

    async def ask(region=EUROPE):
        with house.store.begin() as repository:
            repository.ask_return(region)
        await tell_drain(client, region)

    return ask


@pytest.fixture
def reaches(house, until):
    """Wait until a region's drain is in one of some states."""

    async def wait(*states, region=EUROPE):
        return await until(lambda: found if (found := drain_of(house, region)).state in states else None)

    return wait


@pytest.fixture
async def two_models(house, model, carried_out, workers):
    found = (model, f"{model}-b")
    for name in found:
        house.apply(name)
        await carried_out(house.publish(name, 1))
    return found


def drain_of(house, region=EUROPE):
    with house.store.read() as repository:
        return repository.drain(region)


def regions(house, model):
    with house.store.read() as repository:
        return {d.key.region for d in repository.deployments(model)}


def destinations(house, model):
    """Where the gateways that are left send a model's requests."""
    tables = [house.infrastructure.table(model, region) for region in DEMAND]
    return {share.to for table in tables if table for share in table.shares if share.fraction > 0}


def stored_destinations(house, model):
    with house.store.read() as repository:
        return {share.to for table in repository.routes(model) for share in table.shares}


async def replans_ended(house, until):
    def all_ended():
        with house.store.read() as repository:
            return all(replan.state.final for replan in repository.replans())

    await until(all_ended)


async def test_a_planned_drain_moves_every_model_away_and_no_capacity_floor_breaks(
    house, kit, two_models, asked, reaches, client
):
    await asked(reason="new racks")

    drain = await reaches(DrainState.DRAINED)

    assert (drain.models_left, drain.replicas_left, drain.traffic_left_qps) == (0, 0, 0.0)
    assert (drain.reason, drain.cause, drain.replans) == ("new racks", Reason.SUCCEEDED, 1)
    for name in two_models:
        assert regions(house, name) == {"us-east"}
        assert destinations(house, name) == {"us-east"}
        kit.check_floor(house.infrastructure, name, DEMAND)
    with house.store.read() as repository:
        assert repository.replan(drain.replan_id).trigger == "drain"
    handle = client.get_workflow_handle(names.drain_workflow_id(EUROPE))
    shown = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    assert "drained" in shown.current_details
    assert (await handle.query(names.DRAIN_PROGRESS, result_type=DrainSeen)).state is DrainState.DRAINED


async def test_applying_a_fleet_keeps_a_drain_and_a_publish_stays_out_of_the_region(
    house, kit, model, two_models, *, asked, reaches, carried_out
):
    await asked()
    await reaches(DrainState.DRAINED)
    house.apply_fleet(kit.FLEET.replace("unitCost: 1.0", "unitCost: 3.0"))

    change = await carried_out(house.publish(model, 2))

    assert change.state is ChangeState.DONE
    assert regions(house, model) == {"us-east"}
    assert drain_of(house).state is DrainState.DRAINED


async def test_a_drain_that_the_others_cannot_carry_is_refused_with_the_models_and_rules_and_nothing_moves(
    house, kit, two_models, asked, reaches
):
    house.apply_fleet(
        kit.FLEET.replace("region: us-east, hardware: cpu, units: 40", "region: us-east, hardware: cpu, units: 18")
    )
    await asked()

    drain = await reaches(DrainState.REFUSED)

    assert drain.cause is Reason.NO_CAPACITY
    assert any(name in drain.message for name in two_models)
    assert "requests/s" in drain.message
    assert "supply us-east/cpu" in drain.message
    assert EUROPE in regions(house, two_models[0])
    with house.store.read() as repository:
        assert repository.replans() == ()
        assert repository.drains() == ()


async def test_force_drains_all_the_same_and_the_rest_serves_what_it_can(house, kit, two_models, asked, reaches, until):
    house.apply_fleet(
        kit.FLEET.replace("region: us-east, hardware: cpu, units: 40", "region: us-east, hardware: cpu, units: 18")
    )
    await asked(force=True)

    await until(lambda: drain_of(house).replan_id)
    await replans_ended(house, until)

    with house.store.read() as repository:
        assert sum(item.qps for item in repository.unmet()) > 0
        assert {row.region for name in two_models for row in repository.placement(name).replicas} == {"us-east"}


async def test_users_that_only_the_drained_region_reaches_in_time_are_named(
    house, model, workers, carried_out, asked, reaches
):
    house.apply(model, latencyToleranceMs=20)
    await carried_out(house.publish(model, 1))
    await asked()

    drain = await reaches(DrainState.REFUSED)

    assert f"{model}: 180 requests/s of {EUROPE}" in drain.message
    assert "latency" in drain.message


async def test_a_region_asked_back_counts_again_and_the_next_plan_uses_it(
    house, two_models, asked, back, reaches, until
):
    await asked()
    await reaches(DrainState.DRAINED)

    await back()
    drain = await reaches(DrainState.RETURNED)
    await replans_ended(house, until)

    with house.store.read() as repository:
        replan = repository.replan(drain.replan_id)
    assert (drain.replans, replan.trigger, replan.state) == (2, "drain", ReplanState.ADOPTED)
    await until(lambda: all(EUROPE in regions(house, name) for name in two_models))


async def test_a_lost_region_gets_no_traffic_at_once_and_the_planner_repairs_without_it(
    house, kit, two_models, asked, *, reaches, until, client
):
    house.infrastructure.cut(EUROPE)
    await asked(disaster=True)

    await reaches(DrainState.DRAINING, DrainState.DRAINED)
    for name in two_models:
        table = house.infrastructure.table(name, "us-east")
        assert {share.to for share in table.shares} == {"us-east"}
        assert stored_destinations(house, name) == {"us-east"}
    drain = await reaches(DrainState.DRAINED)
    await replans_ended(house, until)

    assert drain.replans == 1
    for name in two_models:
        with house.store.read() as repository:
            placed = repository.placement(name)
        assert {row.region for row in placed.replicas} == {"us-east"}
        assert sum(row.count for row in placed.replicas) == 12
        for key in (
            DeploymentKey(model=name, part=part, region="us-east", hardware="cpu") for part in ("sparse", "dense")
        ):
            assert house.infrastructure.deployment(key).replicas == 6


async def test_a_lost_region_that_only_it_reached_in_time_is_answered_from_afar(
    house, model, workers, carried_out, *, asked, reaches, until
):
    house.apply(model, latencyToleranceMs=20)
    await carried_out(house.publish(model, 1))
    house.infrastructure.cut(EUROPE)
    await asked(disaster=True)
    await reaches(DrainState.DRAINED)
    await replans_ended(house, until)

    with house.store.read() as repository:
        assert repository.placement(model).unmet == ()
        assert {share.to for share in repository.placement(model).traffic} == {"us-east"}
    again = await carried_out(house.publish(model, 2))
    assert again.state is ChangeState.DONE, again
    assert regions(house, model) == {"us-east"}


async def test_a_lost_region_is_told_what_is_wanted_before_it_comes_back(
    house, two_models, asked, back, *, reaches, until, carried_out
):
    name = two_models[0]
    house.infrastructure.cut(EUROPE)
    await asked(disaster=True)
    await reaches(DrainState.DRAINED)
    await replans_ended(house, until)
    assert (await carried_out(house.publish(name, 2))).state is ChangeState.DONE
    await back()
    await until(lambda: "can't be reached" in drain_of(house).message)
    assert drain_of(house).state is DrainState.RETURNING
    with house.store.read() as repository:
        assert [drain.lost for drain in repository.drains()] == [True]

    house.infrastructure.mend(EUROPE)
    await reaches(DrainState.RETURNED)

    table = house.infrastructure.table(name, EUROPE)
    assert {share.generation for share in table.shares} == {2}, (
        "its gateway does not answer with what was replaced meanwhile"
    )
    await replans_ended(house, until)
    await until(lambda: all(EUROPE in regions(house, found) for found in two_models))
    state = house.infrastructure.observe(EUROPE)
    generations = {g for replica in state.replicas if replica.key.model == name for g in replica.ready}
    assert 2 in generations


async def test_a_transition_under_way_sends_nothing_back_to_a_lost_region_and_does_not_wait_for_it(
    house, kit, model, workers, *, carried_out, submit, ended, until, asked, reaches
):
    """Users in the region that is left were answered in the lost one, too: there was no room for all of them."""
    house.apply_fleet(kit.FLEET.replace("us-east, hardware: cpu, units: 40", "us-east, hardware: cpu, units: 4"))
    house.apply(model, rollout={"canary": 0.1, "maxStep": 0.2, "holdSeconds": 0.5, "deadlineSeconds": 20})
    await carried_out(house.publish(model, 1))
    assert EUROPE in {share.to for share in house.infrastructure.table(model, "us-east").shares}
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: any(2 in found for found in house.shares(model).values()))
    house.infrastructure.cut(EUROPE)
    await asked(disaster=True)
    await until(lambda: stored_destinations(house, model) == {"us-east"})
    first = len(house.infrastructure.history)

    assert (await ended(change)).state is ChangeState.DONE
    for moment in house.infrastructure.history[first:]:
        table = moment.routes[model, "us-east"]
        assert {share.to for share in table.shares} == {"us-east"}, moment.subject
        assert sum(share.fraction for share in table.shares) == pytest.approx(1.0)
    assert {share.generation for share in house.infrastructure.table(model, "us-east").shares} == {2}


async def test_a_planned_drain_becomes_a_disaster_on_the_way(
    house, model, serving, carried_out, *, asked, reaches, until
):
    solver = HeldSolver()
    async with serving(solver):
        house.apply(model)
        await carried_out(house.publish(model, 1))
        await asked()
        await until(solver.searching.is_set)
        house.infrastructure.cut(EUROPE)

        await asked(disaster=True)
        solver.go.set()
        drain = await reaches(DrainState.DRAINED)

    assert drain.disaster
    assert stored_destinations(house, model) == {"us-east"}


async def test_a_region_asked_back_while_it_is_checked_never_leaves(
    house, model, serving, carried_out, *, asked, back, reaches, until
):
    solver = HeldSolver()
    async with serving(solver):
        house.apply(model)
        await carried_out(house.publish(model, 1))
        await asked()
        await until(solver.searching.is_set)
        await back()
        solver.go.set()

        await reaches(DrainState.RETURNED)
        await replans_ended(house, until)

    assert EUROPE in regions(house, model)
    with house.store.read() as repository:
        assert ChangeKind.MOVE not in {change.kind for change in repository.changes(model)}


async def test_of_two_drains_at_once_the_later_is_checked_without_both(house, two_models, asked, reaches, until):
    await asked(EUROPE)
    await asked("us-east")

    settled = (DrainState.DRAINED, DrainState.REFUSED)
    one, other = await reaches(*settled), await reaches(*settled, region="us-east")

    assert {one.state, other.state} == {DrainState.DRAINED, DrainState.REFUSED}
    left = ({"us-east", EUROPE} - {drain.region for drain in (one, other) if drain.state is DrainState.DRAINED}).pop()
    assert regions(house, two_models[0]) == {left}


async def test_a_drain_during_a_replan_is_followed_by_a_plan_without_the_region(
    house, kit, model, serving, *, carried_out, asked, reaches, client, until
):
    solver = HeldSolver()
    async with serving(solver):
        house.apply(model)
        await carried_out(house.publish(model, 1))
        house.ask_replan("before")
        await wake_replan(client)
        await until(solver.searching.is_set)
        await asked(force=True)
        await reaches(DrainState.DRAINING)
        solver.go.set()

        await reaches(DrainState.DRAINED)

    assert house.replan("before").state.final
    assert regions(house, model) == {"us-east"}
    kit.check_floor(house.infrastructure, model, DEMAND)


async def test_a_drain_whose_run_was_terminated_goes_on_when_it_is_asked_again(
    house, two_models, asked, reaches, client, until
):
    house.infrastructure.stall()
    await asked()
    await reaches(DrainState.DRAINING)
    await client.get_workflow_handle(names.drain_workflow_id(EUROPE)).terminate("by hand")
    house.infrastructure.release()

    await asked()

    await reaches(DrainState.DRAINED)


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

    told = Returning(house.store, house.infrastructure).bring_up(EUROPE)
    with house.store.begin() as repository:
        assert told.written(repository, EUROPE)

    assert house.shares(model) == {EUROPE: {1: 1.0}}


async def test_a_region_stays_out_while_changes_write_what_it_was_not_told(house, model, carried_out, workers):
    """A run that frees what a lost region held strikes it off the store only; as the region comes back it is told again."""
    house.apply(model, demand=[{"region": EUROPE, "qps": 80}], latencyToleranceMs=10)
    await carried_out(house.publish(model, 1))
    drains = DrainActivities(house.store, house.infrastructure, lambda: None)
    with house.store.begin() as repository:
        drain = repository.add_drain(EUROPE, disaster=True)
        repository.update_drain(drain.id, state=DrainState.RETURNING)
        former = {found.key for found in repository.deployments() if found.key.region == EUROPE}
        table = repository.route(model, EUROPE)
        repository.put_route(table.model_copy(update={"shares": (), "revision": table.revision + 1}))
    apply = house.infrastructure.apply

    def freed_meanwhile(deployment):
        apply(deployment)
        with house.store.begin() as repository:
            repository.delete_deployment(deployment.key)

    house.infrastructure.apply = freed_meanwhile
    first = drains.return_region(DrainInput(region=EUROPE))
    house.infrastructure.apply = apply
    then = drains.return_region(DrainInput(region=EUROPE))

    assert (first.state, then.state) == (DrainState.RETURNING, DrainState.RETURNED)
    left = house.infrastructure.observe(EUROPE).replicas
    assert not former & {replica.key for replica in left if replica.phase is not ReplicaPhase.DRAINING}


async def test_a_region_gets_what_users_were_sent_to_last_though_that_change_ends_while_it_comes_back(
    house, model, carried_out, workers
):
    """A run that had nowhere to send its users is done, its change a moment later: what served before is no answer any more."""
    house.apply(model, demand=[{"region": EUROPE, "qps": 80}], latencyToleranceMs=10)
    await carried_out(house.publish(model, 1))
    newer = house.publish(model, 2)
    await carried_out(newer)
    drains = DrainActivities(house.store, house.infrastructure, lambda: None)
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
    first = drains.return_region(DrainInput(region=EUROPE))
    house.infrastructure.route = route
    then = drains.return_region(DrainInput(region=EUROPE))

    assert (first.state, then.state) == (DrainState.RETURNING, DrainState.RETURNED)
    assert house.shares(model) == {EUROPE: {2: 1.0}}
