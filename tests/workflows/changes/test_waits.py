"""Waits for replicas hold up nothing that is urgent, and cost a rollout nothing while no worker works."""

import asyncio
import base64
import contextlib
import json
from datetime import datetime, timedelta

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from activities.planning.solver import ThreadSolver
from ipnext import names
from ipnext.devfile import read_devfile
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.payloads import DATA_CONVERTER
from ipnext.temporal import control
from tests.fleets import two_regions
from tests.workflows.regions.drains import EUROPE, regions, replans_ended, stored_destinations
from workflows.worker import WORKFLOWS, engine_of, lifecycle_activities, planner_activities, worker_of

SLOTS = 4
DEADLINE_SECONDS = 3600.0
AWAY = timedelta(hours=10)
"""How long no worker works."""


@pytest.fixture
def few_slots(house, client):
    """Workers whose lifecycle queue has few slots, for as long as the context is open."""

    @contextlib.asynccontextmanager
    async def serve():
        devfile, engine = read_devfile(), engine_of(lambda: client, asyncio.get_running_loop())
        ours = lifecycle_activities(house.store, house.artifacts, house.infrastructure, engine)
        lifecycle = devfile.group(names.LIFECYCLE_QUEUE).model_copy(update={"activity_slots": SLOTS})
        async with (
            worker_of(client, lifecycle, ours, read_devfile().timing),
            worker_of(client, devfile.group(names.URGENT_QUEUE), ours, devfile.timing),
            worker_of(
                client,
                devfile.group(names.PLANNER_QUEUE),
                planner_activities(house.store, ThreadSolver()),
                devfile.timing,
            ),
        ):
            yield

    return serve


def told(house, model):
    with house.store.read() as repository:
        return repository.deployments(model)


async def test_a_lost_region_and_a_rollback_pass_publishes_that_wait_for_their_replicas_in_all_slots(
    house, model, few_slots, *, submit, carried_out, ended, drains, until
):
    async with few_slots():
        house.apply(model)
        for seed in (1, 2):
            await carried_out(house.publish(model, seed))
        house.infrastructure.stall()
        waiting = []
        for number in range(SLOTS):
            name = f"{model}-{number}"
            house.apply(name, demand=[{"region": "us-east", "qps": 50}], rollout={"deadlineSeconds": 600})
            waiting.append(house.publish(name, 1))
            await submit(waiting[-1])
        await until(lambda: all(told(house, change.model) for change in waiting))

        house.infrastructure.cut(EUROPE)
        await drains.ask(disaster=True)
        await drains.reaches(DrainState.DRAINING, DrainState.DRAINED)
        back = house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1)
        await submit(back)
        await until(lambda: house.change(back.id).state not in {ChangeState.RECORDED, ChangeState.QUEUED})

        assert {share.to for share in house.infrastructure.table(model, "us-east").shares} == {"us-east"}
        assert {house.change(change.id).state for change in waiting} == {ChangeState.RUNNING}
        house.infrastructure.release()
        for change in (*waiting, back):
            assert (await ended(change)).state is ChangeState.DONE


@pytest.fixture
def usual_queue_full(house, client):
    """Workers without a slot for activities of the usual queue, for as long as the context is open."""

    @contextlib.asynccontextmanager
    async def serve():
        devfile, engine = read_devfile(), engine_of(lambda: client, asyncio.get_running_loop())
        ours = lifecycle_activities(house.store, house.artifacts, house.infrastructure, engine)
        theirs = planner_activities(house.store, ThreadSolver())
        async with (
            worker_of(client, devfile.group(names.LIFECYCLE_QUEUE), (), devfile.timing),
            worker_of(client, devfile.group(names.URGENT_QUEUE), ours, devfile.timing),
            worker_of(client, devfile.group(names.PLANNER_QUEUE), theirs, devfile.timing),
        ):
            yield

    return serve


async def test_a_full_usual_queue_holds_up_no_lost_region_no_rollback_and_no_pause(
    house, model, serving, usual_queue_full, *, client, submit, carried_out, ended, drains, until
):
    async with serving():
        house.apply(model)
        for seed in (1, 2):
            await carried_out(house.publish(model, seed))
    async with usual_queue_full():
        house.infrastructure.cut(EUROPE)
        await drains.ask(disaster=True)
        await drains.reaches(DrainState.DRAINED)
        await replans_ended(house, until)
        assert regions(house, model) == {"us-east"} == stored_destinations(house, model)

        back = house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1)
        await submit(back)
        assert (await ended(back)).state is ChangeState.DONE

        waiting, newer = (house.publish(model, seed) for seed in (3, 4))
        await submit(waiting)
        await control(client, model, ControlAction.PAUSE, ControlAsked(by="anna"))
        assert house.condition(model, ConditionType.PROGRESSING).reason is Reason.PAUSED

        house.infrastructure.mend(EUROPE)
        await drains.ask_back()
        await drains.reaches(DrainState.RETURNED)
        await submit(newer)
        assert not house.change(waiting.id).state.final, "its validation has no slot"


@pytest.fixture
def planner_full(house, client):
    """Workers without a slot of the planner queue, for as long as the context is open."""

    @contextlib.asynccontextmanager
    async def serve():
        devfile, engine = read_devfile(), engine_of(lambda: client, asyncio.get_running_loop())
        ours = lifecycle_activities(house.store, house.artifacts, house.infrastructure, engine)
        async with (
            worker_of(client, devfile.group(names.LIFECYCLE_QUEUE), ours, devfile.timing),
            worker_of(client, devfile.group(names.URGENT_QUEUE), ours, devfile.timing),
        ):
            yield

    return serve


async def test_a_lost_region_is_repaired_though_checks_and_placements_have_all_slots_of_the_planner(
    house, model, serving, planner_full, *, carried_out, drains, until
):
    async with serving():
        house.apply(model)
        await carried_out(house.publish(model, 1))
    async with planner_full():
        house.infrastructure.cut(EUROPE)
        await drains.ask(disaster=True)
        await drains.reaches(DrainState.DRAINED)
        await replans_ended(house, until)
        assert regions(house, model) == {"us-east"} == stored_destinations(house, model)


async def test_runs_of_emergencies_go_before_those_of_usual_changes(
    house, model, serving, *, client, submit, carried_out, ended, drains, until
):
    async def priority(run):
        found = await client.get_workflow_handle(run).describe()
        return found.raw_description.workflow_execution_info.priority.priority_key

    def runs(change):
        return names.lifecycle_workflow_id(model, change.id), names.transition_workflow_id(change.id)

    async with serving():
        house.apply(model)
        usual = await carried_out(house.publish(model, 1))
        await carried_out(house.publish(model, 2))
        back = house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1)
        await submit(back)
        await ended(back)
        await drains.ask(disaster=True)
        await drains.reaches(DrainState.DRAINED)
        await replans_ended(house, until)

    assert [await priority(run) for run in runs(usual)] == [3, 3]
    assert [await priority(run) for run in runs(back)] == [1, 1]
    assert await priority(names.model_workflow_id(model)) == 2
    assert [await priority(run) for run in (names.drain_workflow_id(EUROPE), names.REPLAN_ID)] == [1, 1]


async def test_a_deadline_does_not_run_while_no_worker_works(house, model, serving, *, client, submit, ended, until):
    """The history is replayed as if ten hours had passed during the first look at the replicas, or right after it."""
    async with serving():
        house.apply(model, rollout={"canary": 1, "maxStep": 1, "deadlineSeconds": DEADLINE_SECONDS})
        house.infrastructure.stall()
        change = house.publish(model, 1)
        await submit(change)
        await until(lambda: told(house, model))
    looks = len(house.infrastructure.calls("observe"))
    async with serving():
        await until(lambda: len(house.infrastructure.calls("observe")) > looks)
        house.infrastructure.release()
        found = await ended(change)
    assert found.state is ChangeState.DONE, found

    history = await history_of(client, names.transition_workflow_id(change.id))
    assert len(attempts(history, "ensure_capacity")) > 1, "it looked again"
    await replay_as_if_away(history, "ensure_capacity")


async def test_a_gate_waits_for_answers_only_while_workers_work(house, model, serving, *, client, carried_out):
    """The pauses between its looks count; the history is replayed as if ten hours had passed during the first look."""
    gate = {"minRequests": 10**9, "waitSeconds": 4, "onTooFew": "pass"}
    async with serving():
        house.apply(model, rollout={"canary": 1, "maxStep": 1, "gate": gate})
        found = await carried_out(house.publish(model, 1))
    assert found.state is ChangeState.DONE, found

    history = await history_of(client, names.transition_workflow_id(found.id))
    looks = attempts(history, "check_gate")
    told = [json.loads(base64.b64decode(look["input"]["payloads"][0]["data"])) for look in looks]
    assert [wave.get("watched_seconds", 0.0) for wave in told if not wave.get("early")] == [0.0, 2.0, 4.0]
    await replay_as_if_away(history, "check_gate")


async def test_a_change_waits_for_supply_only_while_workers_work(house, model, serving, *, client, carried_out):
    """The history is replayed as if ten hours had passed during the first attempt to plan the waves."""
    async with serving():
        house.apply_fleet(two_regions(8, 0))
        rollout = {"refresh": "replace", "whenShort": "wait", "waitSeconds": 6}
        house.apply(model, demand=[{"region": "us-east", "qps": 400}], latencyToleranceMs=50, rollout=rollout)
        await carried_out(house.publish(model, 1))
        found = await carried_out(house.publish(model, 2))
    assert "not in time: waiting for supply" in found.message

    history = await history_of(client, names.lifecycle_workflow_id(model, found.id))
    assert len(attempts(history, "plan_transition")) > 1
    await replay_as_if_away(history, "plan_transition")


async def history_of(client, run):
    return {"run": run, **(await client.get_workflow_handle(run).fetch_history()).to_json_dict()}


def attempts(history, activity):
    scheduled = [event.get("activityTaskScheduledEventAttributes", {}) for event in history["events"]]
    return [found for found in scheduled if found.get("activityType") == {"name": activity}]


async def replay_as_if_away(history, activity):
    """Replay a run as if no worker had worked for long after an activity was scheduled first.

    Its commands stay the same.
    """
    for attributes in attempts(history, activity):
        assert float(attributes["scheduleToCloseTimeout"].removesuffix("s")) > AWAY.total_seconds()
    names_of = [
        event.get("activityTaskScheduledEventAttributes", {}).get("activityType") for event in history["events"]
    ]
    for event in history["events"][names_of.index({"name": activity}) + 1 :]:
        event["eventTime"] = (datetime.fromisoformat(event["eventTime"]) + AWAY).isoformat()
    replayer = Replayer(workflows=WORKFLOWS, data_converter=DATA_CONVERTER)
    await replayer.replay_workflow(WorkflowHistory.from_json(history.pop("run"), history))
