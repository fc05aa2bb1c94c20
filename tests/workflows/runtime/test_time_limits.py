"""Time limits are settings: they reach the engine's commands and every run, and no workflow decides by them."""

import asyncio
import contextlib

import pytest
from temporalio.service import RPCError

from activities.planning.solver import ThreadSolver
from ipnext import names
from ipnext.devfile import read_devfile
from ipnext.infra.settings import AgentSettings
from ipnext.model.lifecycle.replans.replan import ScheduledReplan
from ipnext.platform.schedules import schedules_of
from ipnext.settings import PlatformSettings
from ipnext.temporal import connect, signal_drain, submit_change, wake_replan
from ipnext.timing import Timing
from workflows.worker import engine_of, lifecycle_activities, planner_activities, worker_of

UNUSUAL = Timing(heartbeat_seconds=31, record_seconds=47, workflow_task_seconds=29)
"""Limits that no default has."""


@pytest.fixture
async def unusual_client(temporal_address):
    return await connect(address=temporal_address, timing=UNUSUAL)


@pytest.fixture
def unusual_workers(house, unusual_client):
    """Workers with unusual limits, for as long as the context is open."""

    @contextlib.asynccontextmanager
    async def serve():
        devfile, engine = read_devfile(), engine_of(lambda: unusual_client, asyncio.get_running_loop())
        ours = lifecycle_activities(house.store, house.artifacts, house.infrastructure, engine)
        theirs = planner_activities(house.store, ThreadSolver())
        async with (
            worker_of(unusual_client, devfile.group(names.LIFECYCLE_QUEUE), ours, UNUSUAL),
            worker_of(unusual_client, devfile.group(names.URGENT_QUEUE), ours, UNUSUAL),
            worker_of(unusual_client, devfile.group(names.PLANNER_QUEUE), theirs, UNUSUAL),
        ):
            yield

    return serve


async def task_seconds(client, workflow_id):
    told = await client.get_workflow_handle(workflow_id).describe()
    return told.raw_description.execution_config.default_workflow_task_timeout.ToTimedelta().total_seconds()


async def scheduled(client, workflow_id):
    """Activity -> how it was scheduled."""
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    events = (event.activity_task_scheduled_event_attributes for event in history.events)
    return {attributes.activity_type.name: attributes for attributes in events if attributes.activity_type.name}


async def test_a_change_runs_by_the_limits_of_the_workers_settings(
    house, model, unusual_client, unusual_workers, until
):
    async with unusual_workers():
        house.apply(model)
        change = house.publish(model, 1)
        await submit_change(unusual_client, change)
        await until(lambda: house.change(change.id).state.final)
    run = names.lifecycle_workflow_id(model, change.id)
    steps = await scheduled(unusual_client, run)
    assert steps["begin_change"].heartbeat_timeout.ToSeconds() == UNUSUAL.heartbeat_seconds
    assert steps["begin_change"].start_to_close_timeout.ToSeconds() == UNUSUAL.record_seconds
    assert steps["prepare_change"].heartbeat_timeout.ToSeconds() == UNUSUAL.busy_heartbeat.total_seconds()
    for workflow_id in (names.model_workflow_id(model), run, names.transition_workflow_id(change.id)):
        assert await task_seconds(unusual_client, workflow_id) == UNUSUAL.workflow_task_seconds, workflow_id


async def test_replans_and_drains_begin_with_the_limit_of_who_starts_them(unusual_client, unusual_workers):
    for left in (names.REPLAN_ID, names.drain_workflow_id("us-east")):
        with contextlib.suppress(RPCError):  # all tests share one server
            await unusual_client.get_workflow_handle(left).terminate("of another test")
    async with unusual_workers():
        await wake_replan(unusual_client)
        await signal_drain(unusual_client, "us-east")
        assert await task_seconds(unusual_client, names.REPLAN_ID) == UNUSUAL.workflow_task_seconds
        assert await task_seconds(unusual_client, names.drain_workflow_id("us-east")) == UNUSUAL.workflow_task_seconds


def test_what_the_schedules_start_has_it_too():
    settings = PlatformSettings(workflow_task_seconds=UNUSUAL.workflow_task_seconds)
    replan, *others = (found.schedule.action for found in schedules_of(settings))
    assert {found.task_timeout for found in (replan, *others)} == {UNUSUAL.workflow_task}
    assert replan.args == [ScheduledReplan()]


def test_the_embedded_platform_is_quicker_than_the_defaults_for_a_cluster(monkeypatch):
    cluster, devfile = PlatformSettings().timing, read_devfile()
    assert cluster == Timing()
    for name, seconds in devfile.timing:
        assert seconds < getattr(cluster, name), name
    for name, seconds in devfile.agents:
        assert seconds < getattr(AgentSettings(), name), name

    for name, value in {**devfile.worker_settings(), **devfile.agent_settings()}.items():
        monkeypatch.setenv(name, value)
    assert PlatformSettings().timing == devfile.timing
    given = AgentSettings()
    assert {name: getattr(given, name) for name in type(devfile.agents).model_fields} == devfile.agents.model_dump()
