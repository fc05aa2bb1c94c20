"""A drain or a replan whose run was terminated gets a run again by the platform itself, and never two."""

import asyncio
import contextlib
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError
from temporalio.service import RPCError

from ipnext import names
from ipnext.api.workflow_engine.outbox import Outbox
from ipnext.api.workflow_engine.resubmission import Resubmission
from ipnext.api.workflow_engine.temporal import TemporalLifecycle
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.lifecycle.replans.replan import ReplanState
from ipnext.temporal import signal_drain, wake_replan
from tests.fleets import two_regions
from tests.workflows.regions.drains import EUROPE, drain_of, regions, replans_ended, stored_destinations
from workflows.drain import DrainWorkflow
from workflows.replan import ReplanWorkflow
from workflows.worker import WORKFLOWS

DRAIN = names.drain_workflow_id(EUROPE)


@pytest.fixture
def engine(client):
    found = TemporalLifecycle(ui_url="http://127.0.0.1")
    found._client = client
    return found


@pytest.fixture
def look(house, engine):
    """One look of the API for runs that are missing; the ids of those that it began."""

    async def looked():
        return await Resubmission(house.store, engine, open_seconds=0).look()

    return looked


@pytest.fixture
def told(house, drains):
    """Ask for a drain, which the workflow engine then has taken."""

    async def ask(**more):
        drain = await drains.ask(**more)
        with house.store.begin() as unit:
            unit.mark_submitted([drain])

    return ask


@pytest.fixture
def terminate(client):
    async def ended(*workflow_ids):
        for workflow_id in workflow_ids:
            await client.get_workflow_handle(workflow_id).terminate("by hand")

    return ended


@pytest.fixture(autouse=True)
async def idle(client):
    """All tests share one server: none may leave the replan behind."""
    yield
    with contextlib.suppress(RPCError):
        await client.get_workflow_handle(names.REPLAN_ID).terminate("its test has ended")


@pytest.fixture
async def draining(house, two_served, told, drains):
    """A planned drain whose models can't move yet."""
    house.infrastructure.stall()
    await told()
    await drains.reaches(DrainState.DRAINING)
    return two_served


@pytest.fixture
async def moving(house, kit, client, two_served, until):
    """A replan whose models can't move yet."""
    house.infrastructure.stall()
    house.apply_fleet(two_regions(west=None))
    house.ask_replan("r1")
    await wake_replan(client)
    await until(lambda: house.replan("r1").state is ReplanState.MOVING)
    return two_served


async def test_a_disaster_whose_run_was_terminated_before_it_began_is_carried_out(
    house, model, serving, carried_out, *, told, terminate, look, drains
):
    async with serving():
        house.apply(model)
        await carried_out(house.publish(model, 1))
    house.infrastructure.cut(EUROPE)
    await told(disaster=True)
    await terminate(DRAIN)

    assert await look() == [DRAIN]

    async with serving():
        assert (await drains.reaches(DrainState.DRAINED)).disaster
        assert stored_destinations(house, model) == {"us-east"}


@pytest.fixture
def other_commands(monkeypatch):
    """From now on a workflow begins with another command than those that began before."""

    def changed(workflow_type, first):
        method = getattr(workflow_type, first)

        async def later(self, *arguments):
            await workflow.sleep(0.01)
            return await method(self, *arguments)

        monkeypatch.setattr(workflow_type, first, later)

    return changed


async def test_a_drain_and_a_replan_whose_histories_do_not_replay_end_and_are_begun_again(
    house, model, serving, carried_out, *, told, look, drains, client, until, other_commands
):
    async with serving():
        for name in (model, f"{model}-b"):
            house.apply(name)
            await carried_out(house.publish(name, 1))
        house.infrastructure.stall()
        await told()
        await drains.reaches(DrainState.DRAINING)
        await until(lambda: any(replan.state is ReplanState.MOVING for replan in replans(house)))
    runs = {name: (await client.get_workflow_handle(name).describe()).run_id for name in (DRAIN, names.REPLAN_ID)}
    other_commands(DrainWorkflow, "_try")
    other_commands(ReplanWorkflow, "_compute")

    async with serving():
        await signal_drain(client, EUROPE)
        await wake_replan(client)
        for name, run_id in runs.items():
            with pytest.raises(WorkflowFailureError):
                await client.get_workflow_handle(name, run_id=run_id).result()
        house.infrastructure.release()

        assert await look() == [DRAIN, names.REPLAN_ID]

        await drains.reaches(DrainState.DRAINED)
        await replans_ended(house, until)


async def test_a_planned_drain_whose_run_was_terminated_goes_on(house, draining, terminate, look, drains):
    await terminate(DRAIN)
    house.infrastructure.release()

    assert DRAIN in await look()

    await drains.reaches(DrainState.DRAINED)
    assert {regions(house, name) == {"us-east"} for name in draining} == {True}


async def test_a_drain_and_its_replan_that_were_terminated_together_go_on(
    house, draining, terminate, look, *, drains, until
):
    await until(lambda: any(replan.state is ReplanState.MOVING for replan in replans(house)))
    await terminate(DRAIN, names.REPLAN_ID)
    house.infrastructure.release()

    assert await look() == [DRAIN, names.REPLAN_ID]

    await drains.reaches(DrainState.DRAINED)
    await replans_ended(house, until)


async def test_a_return_whose_run_was_terminated_goes_on(house, two_served, told, terminate, look, *, drains, client):
    await told(disaster=True)
    await drains.reaches(DrainState.DRAINED)
    house.infrastructure.cut(EUROPE)
    with house.store.begin() as unit:
        back = unit.ask_return(EUROPE)
    await signal_drain(client, EUROPE)
    with house.store.begin() as unit:
        unit.mark_submitted([back])
    await terminate(DRAIN)
    house.infrastructure.mend(EUROPE)

    assert DRAIN in await look()

    await drains.reaches(DrainState.RETURNED)


async def test_a_replan_whose_run_was_terminated_while_models_moved_is_answered(house, moving, terminate, look, until):
    await terminate(names.REPLAN_ID)
    house.infrastructure.release()

    assert await look() == [names.REPLAN_ID]

    await until(lambda: house.replan("r1").state.final)
    await until(lambda: {EUROPE in regions(house, name) for name in moving} == {False})


async def test_a_replan_that_a_pause_holds_back_begins_once_the_pause_is_over(house, moving, terminate, look, until):
    with house.store.begin() as unit:
        unit.pause_moves("by hand")
    await terminate(names.REPLAN_ID)
    house.infrastructure.release()

    assert names.REPLAN_ID not in await look()

    with house.store.begin() as unit:
        unit.resume_moves()
    assert await look() == [names.REPLAN_ID]
    await until(lambda: house.replan("r1").state.final)


async def test_runs_that_are_open_are_not_begun_again(house, draining, look, *, client, until):
    await until(lambda: any(replan.state is ReplanState.MOVING for replan in replans(house)))
    before = [await run_of(client, found) for found in (DRAIN, names.REPLAN_ID)]

    assert await look() == []

    assert [await run_of(client, found) for found in (DRAIN, names.REPLAN_ID)] == before


async def test_looks_at_the_same_time_begin_one_run(house, draining, terminate, look, *, client, drains):
    await terminate(DRAIN)
    house.infrastructure.release()

    await asyncio.gather(*(look() for _ in range(8)))

    await drains.reaches(DrainState.DRAINED)
    open_runs = [run async for run in client.list_workflows(f"WorkflowId = '{DRAIN}' AND ExecutionStatus = 'Running'")]
    assert len(open_runs) <= 1


@pytest.mark.parametrize("more", [{}, {"disaster": True}])
async def test_the_same_drain_asked_again_begins_at_once(house, engine, draining, terminate, told, *, drains, more):
    if more:
        await told(**more)
        await drains.reaches(DrainState.DRAINING, DrainState.DRAINED)
    with contextlib.suppress(RPCError):
        await terminate(DRAIN)
    house.infrastructure.release()
    async with Outbox(house.store, engine).running():
        with house.store.begin() as unit:
            unit.add_drain(EUROPE, **more)

        await drains.reaches(DrainState.DRAINED)
    assert drain_of(house).disaster == bool(more)


def test_the_documentation_names_who_begins_each_workflow_again():
    text = (Path(__file__).parents[3] / "docs" / "lifecycle.md").read_text(encoding="utf-8")
    table = text.split("### Who begins a run again")[1].split("\n#")[0]
    ids = {
        names.MODEL_WORKFLOW: names.model_workflow_id("MODEL"),
        names.LIFECYCLE_WORKFLOW: names.lifecycle_workflow_id("MODEL", "CHANGE"),
        names.TRANSITION_WORKFLOW: names.transition_workflow_id("CHANGE"),
        names.REPLAN_WORKFLOW: names.REPLAN_ID,
        names.SCHEDULED_REPLAN_WORKFLOW: "replan/schedule-TIME",
        names.DRAIN_WORKFLOW: names.drain_workflow_id("REGION"),
        names.RECONCILE_WORKFLOW: "reconcile-TIME",
        names.COLLECT_WORKFLOW: "collect-TIME",
        names.WATCH_WORKFLOW: names.watch_workflow_id("KIND", "UPSTREAM"),
        names.PICK_UP_WORKFLOW: names.pick_up_workflow_id("MODEL"),
    }
    assert {vars(found)["__temporal_workflow_definition"].name for found in WORKFLOWS} == set(ids), (
        "a workflow that nobody begins again?"
    )
    assert [found for found in ids.values() if f"| `{found}`" not in table] == []
    assert [kind for kind in ChangeKind if f"`{kind.value}`" not in table] == []


def replans(house):
    with house.store.read() as unit:
        return unit.replans()


async def run_of(client, workflow_id):
    found = await client.get_workflow_handle(workflow_id).describe()
    assert found.status is WorkflowExecutionStatus.RUNNING
    return found.run_id
