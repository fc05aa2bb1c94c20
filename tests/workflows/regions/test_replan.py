"""Replanning the fleet: worth it or not, through the entities, one at a time, and never losing the plan in force."""

import contextlib
import threading
import time

import pytest
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError

from activities.planning.policy import PlanningPolicy
from activities.planning.solver import SolveFailed, ThreadSolver
from ipnext import names
from ipnext.errors import Infeasible
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.replans.replan import ReplanState, ScheduledReplan
from ipnext.model.lifecycle.status import Reason
from ipnext.temporal import wake_replan
from tests.fleets import two_regions

DEMAND = {"us-east": 350.0, "eu-west": 180.0}

WITHOUT_EUROPE = two_regions(west=None)

DEAR_AMERICA = two_regions(east_cost=2.0)


class GatedSolver:
    """Holds every search until it is let go, and sees to it that no two run at once."""

    def __init__(self, *, failures=()) -> None:
        self.searching = threading.Event()
        self.go = threading.Event()
        self.searches = 0
        self.together = 0
        self._failures = list(failures)
        self._running = 0

    def solve(self, problem, *, beat):
        self.searches += 1
        self._running += 1
        self.together = max(self.together, self._running)
        self.searching.set()
        try:
            while not self.go.is_set():
                beat("held by the test")
                time.sleep(0.02)
            if self._failures:
                raise self._failures.pop(0)
            return ThreadSolver().solve(problem, beat=beat)
        finally:
            self._running -= 1


@pytest.fixture
def replanned(house, client, until):
    """Ask for a replan, and wait for its end."""

    async def ask(replan_id="r1", trigger="manual", **more):
        house.ask_replan(replan_id, trigger, **more)
        await wake_replan(client)
        return await until(lambda: found if (found := house.replan(replan_id)).state.final else None)

    return ask


@pytest.fixture(autouse=True)
async def idle(client):
    """Each test has a store of its own and all share one server: none may leave the replan workflow behind."""
    yield
    with contextlib.suppress(RPCError):
        await client.get_workflow_handle(names.REPLAN_ID).terminate("its test has ended")


@pytest.fixture
async def two_models(house, model, carried_out, workers):
    """Two models that serve; demand at both ends with a tolerance of 100 ms keeps each near its users."""
    found = (model, f"{model}-b")
    for name in found:
        house.apply(name)
        await carried_out(house.publish(name, 1))
    return found


def in_force(house):
    with house.store.read() as repository:
        return repository.plan_in_force_id()


def placed(house, model):
    with house.store.read() as repository:
        return repository.placement(model)


def regions(house, model):
    with house.store.read() as repository:
        return {d.key.region for d in repository.deployments(model)}


async def test_a_plan_that_is_as_good_as_it_gets_stays_in_force(house, two_models, replanned):
    before = in_force(house)

    replan = await replanned()

    assert (replan.state, replan.models) == (ReplanState.KEPT, ())
    assert in_force(house) == before
    with house.store.read() as repository:
        line = repository.plan_entry(replan.plan_id)
    assert (line.outcome, line.scope, line.trigger) == ("kept", None, "manual")
    assert line.use.wall_seconds > 0
    assert line.input_digest


async def test_lost_supply_moves_every_model_to_where_supply_is(house, kit, two_models, replanned):
    house.apply_fleet(WITHOUT_EUROPE)

    replan = await replanned(trigger="supply")

    assert replan.state is ReplanState.ADOPTED
    assert set(replan.models) == set(two_models)
    assert in_force(house) == replan.plan_id
    with house.store.read() as repository:
        assert repository.plan_entry(replan.plan_id).moves == replan.moves > 0
        for name in two_models:
            assert repository.changes(name, limit=1)[0].state is ChangeState.DONE
    for name in two_models:
        assert regions(house, name) == {"us-east"}
        kit.check_floor(house.infrastructure, name, DEMAND)
        assert house.condition(name).status == "True"


async def test_a_dry_run_tells_what_would_move_and_moves_nothing(house, two_models, replanned):
    house.apply_fleet(WITHOUT_EUROPE)
    before = in_force(house)

    replan = await replanned(dry_run=True)

    assert (replan.state, replan.models, replan.moves) == (ReplanState.DRY_RUN, (), 0)
    assert in_force(house) == before
    with house.store.read() as repository:
        record = repository.plan(replan.plan_id)
        assert record.outcome == "dry_run"
        assert record.diff.moves > 0
        assert record.message.startswith("dry run: the plan in force no longer holds")
        assert [c.kind for c in repository.changes(two_models[0])] == [ChangeKind.PUBLISH]


async def test_a_cap_on_the_moves_is_kept_and_the_next_replan_goes_on(house, two_models, replanned):
    house.apply_fleet(WITHOUT_EUROPE)

    first = await replanned("r1", max_moves=4)
    with house.store.read() as repository:
        started = repository.plan_entry(first.plan_id)
        unmet = sum(item.qps for item in repository.unmet())
    second = await replanned("r2")

    assert (first.state, second.state) == (ReplanState.ADOPTED, ReplanState.ADOPTED)
    assert 0 < started.moves <= 4
    assert unmet > 0
    with house.store.read() as repository:
        assert repository.unmet() == ()


@pytest.mark.parametrize(("dead_band", "state"), [(0.5, ReplanState.KEPT), (0.02, ReplanState.ADOPTED)])
async def test_what_saves_less_than_the_dead_band_moves_nothing(
    house, model, *, serving, carried_out, replanned, dead_band, state
):
    async with serving(policy=PlanningPolicy(dead_band=dead_band)):
        house.apply(model)
        await carried_out(house.publish(model, 1))
        house.apply_fleet(DEAR_AMERICA)

        replan = await replanned()

        assert replan.state is state
        assert bool(replan.models) is (state is ReplanState.ADOPTED)
        moves = ChangeKind.MOVE in {change.kind for change in changes_of(house, model)}
        assert moves is (state is ReplanState.ADOPTED)
        assert ("within the dead band of 50.0%" in replan.message) is (state is ReplanState.KEPT)


def changes_of(house, model):
    with house.store.read() as repository:
        return repository.changes(model)


async def test_replans_that_wait_share_one_plan_and_one_that_comes_later_gets_the_next(
    house, model, client, serving, carried_out, until
):
    solver = GatedSolver()
    async with serving(solver):
        house.apply(model)
        await carried_out(house.publish(model, 1))
        house.ask_replan("first", "schedule")
        house.ask_replan("joins", "manual")
        await wake_replan(client)
        await until(solver.searching.is_set)
        house.ask_replan("later", "manual")
        house.apply_fleet(WITHOUT_EUROPE)
        await wake_replan(client)
        await wake_replan(client)
        solver.go.set()
        first, joined, later = [
            await until(lambda name=name: found if (found := house.replan(name)).state.final else None)
            for name in ("first", "joins", "later")
        ]

    assert first.plan_id == joined.plan_id != later.plan_id
    assert (solver.searches, solver.together) == (2, 1)
    assert (first.state, joined.state, later.state) == (ReplanState.KEPT, ReplanState.KEPT, ReplanState.ADOPTED)
    assert regions(house, model) == {"us-east"}, "the one under way did not know of the newest fleet, the next one does"
    with house.store.read() as repository:
        assert repository.plan_entry(first.plan_id).trigger == "schedule, manual"


async def test_a_dry_run_shares_its_plan_with_no_other(house, two_models, client, until):
    house.ask_replan("real")
    house.ask_replan("dry", dry_run=True)
    house.ask_replan("capped", max_moves=1)
    await wake_replan(client)
    found = [
        await until(lambda name=name: found if (found := house.replan(name)).state.final else None)
        for name in ("real", "dry", "capped")
    ]

    assert len({replan.plan_id for replan in found}) == 3


async def test_the_schedule_asks_once_for_each_of_its_runs(house, client, two_models, until):
    for _ in range(2):
        await client.execute_workflow(
            names.SCHEDULED_REPLAN_WORKFLOW,
            ScheduledReplan(id="hourly"),
            id=f"{names.REPLAN_ID}/schedule-{two_models[0]}",
            task_queue=names.LIFECYCLE_QUEUE,
        )
    replan = await until(lambda: found if (found := house.replan("hourly")).state.final else None)

    assert (replan.trigger, replan.state) == ("schedule", ReplanState.KEPT)
    with house.store.read() as repository:
        assert len(repository.replans()) == 1


FAILURES = [
    (Infeasible("supply us-east/cpu cannot hold it"), Reason.PLANNER_INFEASIBLE, 1),
    (SolveFailed("the planner took longer than 120 s and was ended"), Reason.PLANNER_FAILED, 1),
    (SolveFailed("the planner was killed after 3 s", died=True), Reason.PLANNER_FAILED, 3),
]


@pytest.mark.parametrize(("failure", "reason", "searches"), FAILURES, ids=["infeasible", "too long", "killed"])
async def test_a_planner_that_fails_leaves_the_plan_in_force_and_says_why_wherever_one_looks(
    house, model, client, *, serving, carried_out, replanned, failure, reason, searches
):
    solver = GatedSolver(failures=[failure] * searches)
    solver.go.set()
    async with serving(solver):
        house.apply(model)
        await carried_out(house.publish(model, 1))
        before = in_force(house)

        replan = await replanned()
        handle = client.get_workflow_handle(names.REPLAN_ID)
        result = await handle.result()
        shown = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
        attributes = (await handle.describe()).typed_search_attributes

    assert reason.value in shown.current_details
    assert failure.message in shown.current_details
    assert attributes[SearchAttributeKey.for_keyword(names.STAGE_ATTRIBUTE)] == "failed"
    assert result["reason"] == reason.value
    assert (replan.state, replan.reason) == (ReplanState.FAILED, reason)
    assert solver.searches == searches
    assert failure.message in replan.message
    assert in_force(house) == before
    with house.store.read() as repository:
        line = repository.plan_entry(replan.plan_id)
        event = repository.events(limit=1)[0]
    assert (line.outcome, line.reason) == ("failed", reason)
    assert line.message == f"{failure.message}; the plan in force stays"
    assert (event.kind, failure.message in event.message) == ("ReplanFailed", True)


async def test_a_planner_that_was_killed_once_is_tried_again(house, model, serving, carried_out, replanned):
    solver = GatedSolver(failures=[SolveFailed("the planner was killed after 3 s", died=True)])
    solver.go.set()
    async with serving(solver):
        house.apply(model)
        await carried_out(house.publish(model, 1))

        replan = await replanned()

    assert (replan.state, solver.searches) == (ReplanState.KEPT, 2)


async def test_a_replan_without_a_fleet_fails_and_says_so(kit, tmp_path, client, serving, house, replanned):
    with house.store.begin() as repository:
        repository.connection().exec_driver_sql("DELETE FROM fleet")
    async with serving():
        replan = await replanned()

    assert (replan.state, replan.reason) == (ReplanState.FAILED, Reason.PLANNER_FAILED)
    assert "no fleet is applied yet" in replan.message
    with house.store.read() as repository:
        assert repository.plan_entry(replan.plan_id).outcome == "failed"


async def test_a_model_that_is_published_while_the_planner_works_keeps_its_newer_place(
    house, kit, model, client, *, serving, carried_out, until
):
    solver = GatedSolver()
    other = f"{model}-b"
    async with serving(solver):
        for name in (model, other):
            house.apply(name)
            await carried_out(house.publish(name, 1))
        house.apply_fleet(WITHOUT_EUROPE)
        house.ask_replan("r1")
        await wake_replan(client)
        await until(solver.searching.is_set)
        house.apply(other, demand=[{"region": "us-east", "qps": 100}])
        applied = await carried_out(house.ask(other, ChangeKind.APPLY, f"{other}-apply"))
        newer = placed(house, other)
        solver.go.set()
        replan = await until(lambda: found if (found := house.replan("r1")).state.final else None)

    assert applied.state is ChangeState.DONE
    assert (replan.state, replan.models) == (ReplanState.ADOPTED, (model,))
    assert placed(house, other) == newer
    assert f"{other} was placed while the planner worked" in replan.message
    assert regions(house, model) == {"us-east"}
    kit.check_floor(house.infrastructure, model, DEMAND)


async def test_a_plan_that_came_too_late_for_what_was_placed_meanwhile_is_made_again(
    house, model, client, serving, carried_out, until
):
    solver = GatedSolver()
    other = f"{model}-b"
    tight = two_regions(14, None)
    async with serving(solver):
        house.apply(model)
        await carried_out(house.publish(model, 1))
        house.apply(other, demand=[{"region": "us-east", "qps": 10}])
        await carried_out(house.publish(other, 1))
        house.apply_fleet(tight)
        house.ask_replan("r1")
        await wake_replan(client)
        await until(solver.searching.is_set)
        house.apply_fleet()
        house.apply(other, demand=[{"region": "us-east", "qps": 600}])
        await carried_out(house.ask(other, ChangeKind.APPLY, f"{other}-apply"))
        solver.go.set()
        replan = await until(lambda: found if (found := house.replan("r1")).state.final else None)

    assert solver.searches == 2, "the first plan gave units away that had been placed meanwhile"
    assert replan.state is ReplanState.KEPT


async def test_a_replan_that_waits_stops_further_moves_and_the_next_plan_brings_them_about(
    house, model, client, serving, carried_out, until
):
    found = (model, f"{model}-b")
    async with serving(policy=PlanningPolicy(window=1)):
        for name in found:
            house.apply(name)
            await carried_out(house.publish(name, 1))
        house.apply_fleet(WITHOUT_EUROPE)
        house.infrastructure.stall()
        house.ask_replan("r1")
        await wake_replan(client)
        await until(lambda: ChangeKind.MOVE in {c.kind for name in found for c in changes_of(house, name)})
        house.ask_replan("r2", "supply")
        await wake_replan(client)
        house.infrastructure.release()
        first, second = [
            await until(lambda name=name: found if (found := house.replan(name)).state.final else None)
            for name in ("r1", "r2")
        ]

    assert first.state is ReplanState.ADOPTED
    assert "1 models move by what it finds" in first.message
    assert second.plan_id != first.plan_id
    for name in found:
        assert regions(house, name) == {"us-east"}, (first.message, second.message)


async def test_a_replan_that_is_stopped_by_hand_ends_and_says_so(house, model, client, serving, carried_out, until):
    solver = GatedSolver()
    async with serving(solver):
        house.apply(model)
        await carried_out(house.publish(model, 1))
        before = in_force(house)
        house.ask_replan("r1")
        await wake_replan(client)
        await until(solver.searching.is_set)
        await client.get_workflow_handle(names.REPLAN_ID).cancel()
        replan = await until(lambda: found if (found := house.replan("r1")).state.final else None)

    assert (replan.state, replan.reason) == (ReplanState.FAILED, Reason.PLANNER_FAILED)
    assert "stopped by hand" in replan.message
    assert in_force(house) == before


async def test_a_move_to_a_placement_that_a_newer_plan_has_changed_is_superseded(house, model, carried_out, workers):
    house.apply(model)
    await carried_out(house.publish(model, 1))
    old = in_force(house)
    house.apply(model, demand=[{"region": "us-east", "qps": 100}])
    await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-apply"))

    change = await carried_out(house.ask(model, ChangeKind.MOVE, f"{model}-move", plan_id=old))

    assert (change.state, change.reason) == (ChangeState.SUPERSEDED, Reason.SUPERSEDED)


async def test_a_publish_of_another_model_does_not_supersede_a_move(house, model, carried_out, workers):
    house.apply(model)
    await carried_out(house.publish(model, 1))
    own = placed(house, model).plan_id
    house.apply(f"{model}-b")
    await carried_out(house.publish(f"{model}-b", 1))

    change = await carried_out(house.ask(model, ChangeKind.MOVE, f"{model}-move", plan_id=own))

    assert in_force(house) != own
    assert change.state is ChangeState.DONE
