"""A retirement completes once no gateway knows the model any more, whatever becomes of its run."""

import asyncio
import logging

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.exceptions import ActivityError, ApplicationError

from ipnext import names
from ipnext.errors import RegionUnreachable, Unavailable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.changes.lifecycle_run import Done, StageInput
from ipnext.model.lifecycle.status import Reason
from ipnext.store.repository import Repository
from ipnext.temporal import begin_entity, control, is_open
from tests.waiting import PATIENCE_SECONDS
from tests.workflows.activity_errors import failed_activity
from workflows import policies
from workflows.stages import retirement


@pytest.fixture
def keep_replicas(house, monkeypatch):
    """Let a region not answer when replicas are to end, until the returned function is called."""
    away, delete = [True], house.infrastructure.delete

    def deleted(key):
        if away[0] and key.region == "eu-west":
            msg = "region 'eu-west' does not answer"
            raise RegionUnreachable(msg)
        delete(key)

    monkeypatch.setattr(house.infrastructure, "delete", deleted)
    return lambda: away.clear() or away.append(False)


@pytest.fixture
async def withdrawn(house, model, carried_out, submit, until, keep_replicas):
    """A retirement that has removed the model's routes, and can't end its replicas yet."""
    house.apply(model)
    await carried_out(house.publish(model, 1))
    change = house.ask(model, ChangeKind.RETIRE, f"{model}-retire")
    await submit(change)

    def routes():
        with house.store.read() as unit:
            return unit.routes(model)

    await until(lambda: not routes())
    return change


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("end", ["terminate", "cancel"])
async def test_a_retirement_whose_run_is_ended_from_outside_completes(
    house, model, withdrawn, client, ended, keep_replicas, end
):
    run = client.get_workflow_handle(names.lifecycle_workflow_id(model, withdrawn.id))
    await (run.terminate("by hand") if end == "terminate" else run.cancel())
    keep_replicas()

    assert (await ended(withdrawn)).state is ChangeState.DONE
    assert (house.held(model), house.shares(model)) == ({}, {})
    with house.store.read() as unit:
        record = unit.model(model)
    assert (record.retired, record.serving_generation) == (True, None)


@pytest.mark.usefixtures("workers")
async def test_entities_that_begin_after_the_retirement_end_once_nothing_is_left(house, model, client, carried_out):
    async def over():
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await is_open(client, names.model_workflow_id(model)):  # noqa: ASYNC110 - it is asked
                await asyncio.sleep(0.05)

    house.apply(model)
    retirement = house.ask(model, ChangeKind.RETIRE, f"{model}-retire")
    assert (await carried_out(retirement)).state is ChangeState.DONE
    await over()
    late = await carried_out(house.ask(model, ChangeKind.REPAIR, f"{model}-late"))
    assert (late.state, late.message) == (ChangeState.SUPERSEDED, "the model is retired")
    await over()
    await begin_entity(client, model)
    await over()


@pytest.mark.usefixtures("workers")
async def test_a_pause_that_begins_the_entity_of_a_retired_model_is_answered_before_it_ends(
    house, model, client, carried_out, monkeypatch
):
    house.apply(model)
    retirement = house.ask(model, ChangeKind.RETIRE, f"{model}-retire")
    assert (await carried_out(retirement)).state is ChangeState.DONE
    write, failures = Repository.set_condition, [True]

    def fails_once(self, name, condition, status, reason, message=""):
        if reason is Reason.PAUSED and failures:
            failures.clear()
            raise Unavailable("the store is away")
        write(self, name, condition, status, reason, message)

    monkeypatch.setattr(Repository, "set_condition", fails_once)
    while await is_open(client, names.model_workflow_id(model)):  # noqa: ASYNC110 - it is asked
        await asyncio.sleep(0.05)
    answer = await control(client, model, ControlAction.PAUSE, ControlAsked(by="ann"))
    assert (answer.message, failures) == ("paused by ann", [])
    entity = client.get_workflow_handle(names.model_workflow_id(model))
    kinds = {event.event_type async for event in entity.fetch_history_events()}
    assert EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED not in kinds, "it ended before its handler"


def test_a_release_is_tried_again_after_errors_that_no_retry_heals(monkeypatch):
    failure = failed_activity(ApplicationError("a bug", type="InternalError", non_retryable=True))
    answers, paused = [failure, failure, Done()], []

    async def perform(step, _argument, _summary):
        assert step is policies.RELEASE_MODEL
        if isinstance(answer := answers.pop(0), ActivityError):
            raise answer
        return answer

    async def sleep(pause, **_):
        paused.append(pause)

    monkeypatch.setattr(retirement, "perform", perform)
    monkeypatch.setattr(retirement.workflow, "sleep", sleep)
    monkeypatch.setattr(retirement.workflow, "logger", logging.getLogger("test"))

    stage = StageInput(model="m", change_id="c", kind=ChangeKind.RETIRE, generation=0)
    asyncio.run(retirement.release(stage))

    assert (answers, paused) == ([], [retirement.RELEASE_AGAIN] * 2)
