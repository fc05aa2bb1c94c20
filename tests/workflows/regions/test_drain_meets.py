"""Drains meet what is under way: a replan, its moves, a transition, another drain; and minds are changed."""

import threading
import time

import pytest

from activities.planning.solver import ThreadSolver
from ipnext import names
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.temporal import control, wake_replan
from tests.fleets import two_regions
from tests.workflows.regions.drains import DEMAND, EUROPE, regions, replans_ended, stored_destinations


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


async def test_a_transition_under_way_sends_nothing_back_to_a_lost_region_and_does_not_wait_for_it(
    house, kit, model, workers, *, carried_out, submit, ended, until, drains
):
    """Users in the region that is left were answered in the lost one, too: there was no room for all of them."""
    house.apply_fleet(kit.FLEET.replace("us-east, hardware: cpu, units: 40", "us-east, hardware: cpu, units: 4"))
    house.apply(model, rollout={"canary": 0.1, "maxStep": 0.2, "holdSeconds": 0.5, "deadlineSeconds": 180})
    await carried_out(house.publish(model, 1))
    assert EUROPE in {share.to for share in house.infrastructure.table(model, "us-east").shares}
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: any(2 in found for found in house.shares(model).values()))
    house.infrastructure.cut(EUROPE)
    await drains.ask(disaster=True)
    await until(lambda: stored_destinations(house, model) == {"us-east"})
    first = len(house.infrastructure.history)

    assert (await ended(change)).state is ChangeState.DONE
    for moment in house.infrastructure.history[first:]:
        table = moment.routes[model, "us-east"]
        assert {share.to for share in table.shares} == {"us-east"}, moment.subject
        assert sum(share.fraction for share in table.shares) == pytest.approx(1.0)
    assert {share.generation for share in house.infrastructure.table(model, "us-east").shares} == {2}


async def test_a_planned_drain_becomes_a_disaster_on_the_way(house, model, serving, carried_out, *, drains, until):
    solver = HeldSolver()
    async with serving(solver):
        house.apply(model)
        await carried_out(house.publish(model, 1))
        await drains.ask()
        await until(solver.searching.is_set)
        house.infrastructure.cut(EUROPE)

        await drains.ask(disaster=True)
        solver.go.set()
        drain = await drains.reaches(DrainState.DRAINED)

    assert drain.disaster
    assert stored_destinations(house, model) == {"us-east"}


async def test_a_region_asked_back_while_it_is_checked_never_leaves(
    house, model, serving, carried_out, *, drains, until
):
    solver = HeldSolver()
    async with serving(solver):
        house.apply(model)
        await carried_out(house.publish(model, 1))
        await drains.ask()
        await until(solver.searching.is_set)
        await drains.ask_back()
        solver.go.set()

        await drains.reaches(DrainState.RETURNED)
        await replans_ended(house, until)

    assert EUROPE in regions(house, model)
    with house.store.read() as repository:
        assert ChangeKind.MOVE not in {change.kind for change in repository.changes(model)}


async def test_of_two_drains_at_once_the_later_is_checked_without_both(house, two_served, drains, until):
    await drains.ask(EUROPE)
    await drains.ask("us-east")

    settled = (DrainState.DRAINED, DrainState.REFUSED)
    one, other = await drains.reaches(*settled), await drains.reaches(*settled, region="us-east")

    assert {one.state, other.state} == {DrainState.DRAINED, DrainState.REFUSED}
    left = ({"us-east", EUROPE} - {drain.region for drain in (one, other) if drain.state is DrainState.DRAINED}).pop()
    assert regions(house, two_served[0]) == {left}


async def test_a_drain_during_a_replan_is_followed_by_a_plan_without_the_region(
    house, kit, model, serving, *, carried_out, drains, client, until
):
    solver = HeldSolver()
    async with serving(solver):
        house.apply(model)
        await carried_out(house.publish(model, 1))
        house.ask_replan("before")
        await wake_replan(client)
        await until(solver.searching.is_set)
        await drains.ask(force=True)
        await drains.reaches(DrainState.DRAINING)
        solver.go.set()

        await drains.reaches(DrainState.DRAINED)

    assert house.replan("before").state.final
    assert regions(house, model) == {"us-east"}
    kit.check_floor(house.infrastructure, model, DEMAND)


async def test_a_drain_whose_run_was_terminated_goes_on_when_it_is_asked_again(
    house, two_served, drains, client, until
):
    house.infrastructure.stall()
    await drains.ask()
    await drains.reaches(DrainState.DRAINING)
    await client.get_workflow_handle(names.drain_workflow_id(EUROPE)).terminate("by hand")
    house.infrastructure.release()

    await drains.ask()

    await drains.reaches(DrainState.DRAINED)


class Scene:
    """A replan's move of one model waits behind a publish of it that holds, when the region that it goes to is lost."""

    def __init__(self, house, model) -> None:
        self.house, self.slow, self.near = house, model, f"{model}-near"

    def first_move(self):
        """The slow model's move by the plan from before, if it was asked yet."""
        with self.house.store.read() as repository:
            moves = [c for c in repository.changes(self.slow) if c.kind is ChangeKind.MOVE]
        return min(moves, key=lambda change: change.sequence, default=None)


@pytest.fixture
def lost_behind_a_hold(house, model, workers, *, carried_out, submit, drains, client, until):
    """Lose Europe while the publish of generation 2 holds, until it is told; the other model was there only."""
    scene = Scene(house, model)

    async def play():
        house.apply(scene.slow)
        house.apply(scene.near, demand=[{"region": EUROPE, "qps": 80}], latencyToleranceMs=10)
        await carried_out(house.publish(scene.slow, 1))
        await carried_out(house.publish(scene.near, 1))
        pace = {"canary": 0.5, "maxStep": 0.5, "deadlineSeconds": 1200}
        house.apply(scene.slow, rollout={**pace, "holdSeconds": 1000})
        publish = house.publish(scene.slow, 2)
        await submit(publish)
        await until(lambda: any(2 in found for found in house.shares(scene.slow).values()))
        house.bring(scene.slow, rollout=pace)
        house.apply_fleet(two_regions(east_cost=2.0))
        house.ask_replan("before")
        await wake_replan(client)
        await until(scene.first_move)
        assert EUROPE in planned_regions(house, scene.slow)
        house.infrastructure.cut(EUROPE)
        await drains.ask(disaster=True)
        return scene, publish

    return play


async def test_the_repair_of_a_disaster_waits_for_no_move_that_is_under_way(
    house, lost_behind_a_hold, client, until, ended
):
    scene, publish = await lost_behind_a_hold()

    await until(lambda: regions(house, scene.near) == {"us-east"})
    await until(lambda: stored_destinations(house, scene.near) == {"us-east"})

    assert not house.change(publish.id).state.final
    assert not scene.first_move().state.final or scene.first_move().state is ChangeState.SUPERSEDED
    await control(client, scene.slow, ControlAction.ABORT, ControlAsked(by="anna", reason="seen"), change_id=publish.id)
    await ended(publish)


async def test_a_move_by_a_plan_from_before_a_loss_goes_nowhere_and_the_repair_places_the_model(
    house, kit, lost_behind_a_hold, *, client, drains, ended, until
):
    scene, publish = await lost_behind_a_hold()
    await until(lambda: stored_destinations(house, scene.slow) == {"us-east"})
    seen = ControlAsked(by="anna", reason="seen")
    await control(client, scene.slow, ControlAction.PROMOTE, seen, change_id=publish.id)

    assert (await ended(publish)).state is ChangeState.DONE
    await drains.reaches(DrainState.DRAINED)
    await replans_ended(house, until)

    for name in (scene.slow, scene.near):
        assert regions(house, name) == {"us-east"}
        assert stored_destinations(house, name) == {"us-east"}
    kit.check_floor(house.infrastructure, scene.slow, DEMAND)
    first = scene.first_move()
    assert first.state.final
    assert EUROPE not in target_regions(house, first), (
        "it goes nowhere, or by the plan of the repair if that is in force as it begins"
    )


async def test_a_way_back_to_a_region_that_was_lost_leaves_no_user_unanswered_and_a_rollback_reaches_what_is_left(
    house, model, workers, *, carried_out, submit, ended, until, drains
):
    """Generation 1 was in us-east only, its canary elsewhere.

    What came with it answers until the rollback has brought 1 there.
    """
    house.apply_fleet(two_regions(west=None))
    house.apply(model, rollout={"canary": 0.5, "maxStep": 0.5, "deadlineSeconds": 1200}, survive="none")
    await carried_out(house.publish(model, 1))
    assert regions(house, model) == {"us-east"}
    house.apply_fleet(two_regions(east=1))
    house.apply(model, rollout={"canary": 0.5, "maxStep": 0.5, "holdSeconds": 1000, "deadlineSeconds": 1200})
    publish = house.publish(model, 2)
    await submit(publish)
    await until(lambda: any(2 in found for found in house.shares(model).values()))
    house.infrastructure.cut("us-east")
    await drains.ask("us-east", disaster=True)
    await until(lambda: stored_destinations(house, model) == {EUROPE})
    first = len(house.infrastructure.history)

    rollback = house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1)
    await submit(rollback)

    stopped = await ended(publish)
    assert stopped.state is ChangeState.ROLLED_BACK
    assert "not all of the way back was done then" in stopped.message
    assert "generation 2 goes on answering users of eu-west" in stopped.message
    assert (await ended(rollback)).state is ChangeState.DONE
    assert {share.generation for share in house.infrastructure.table(model, EUROPE).shares} == {1}
    for moment in house.infrastructure.history[first:]:
        shares = moment.routes[model, EUROPE].shares
        assert {share.to for share in shares} == {EUROPE}, moment.subject
        assert sum(share.fraction for share in shares) == pytest.approx(1.0)


async def test_a_rollback_goes_back_to_what_is_left_before_the_planner_has_repaired(
    house, model, serving, *, carried_out, submit, drains, until, client
):
    """The plan in force places the model in both regions.

    A publish holds up its move, and the search for another plan is held.
    """
    solver = HeldSolver()
    solver.go.set()
    async with serving(solver):
        house.apply_fleet(two_regions(west=None))
        house.apply(model)
        await carried_out(house.publish(model, 1))
        house.apply(model, rollout={"canary": 0.5, "maxStep": 0.5, "holdSeconds": 1000, "deadlineSeconds": 1200})
        await submit(house.publish(model, 2))
        await until(lambda: any(2 in found for found in house.shares(model).values()))
        house.apply_fleet(two_regions())
        house.ask_replan("before")
        await wake_replan(client)
        await until(lambda: planned_regions(house, model) == {"us-east", EUROPE})
        solver.go.clear()
        house.infrastructure.cut(EUROPE)
        await drains.ask(disaster=True)

        back = await carried_out(house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1))

        assert back.state is ChangeState.DONE, back
        assert house.shares(model)["us-east"] == {1: 1.0}
        assert stored_destinations(house, model) == {"us-east"}
        solver.go.set()
        await drains.reaches(DrainState.DRAINED)
        await replans_ended(house, until)


def target_regions(house, change):
    """Regions that the waves of a change lead to; none if it ended without a transition or was refused."""
    with house.store.read() as repository:
        record = repository.find_transition(change.id)
    if record is None or record.transition.refused:
        return set()
    return {row.region for row in record.transition.to.replicas}


def planned_regions(house, model):
    with house.store.read() as repository:
        return {row.region for row in repository.placement(model).replicas}
