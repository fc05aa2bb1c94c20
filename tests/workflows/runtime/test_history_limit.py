"""Runs that the server ends because their history is too long.

Nothing acknowledged is lost, and no traffic stays behind.
"""

import asyncio

import pytest

from ipnext import names
from ipnext.api.workflow_engine.resubmission import Resubmission
from ipnext.api.workflow_engine.temporal import TemporalLifecycle
from ipnext.errors import IPnextError
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.status import ConditionType
from ipnext.model.planning.transition import TransitionState
from ipnext.temporal import control

pytestmark = pytest.mark.usefixtures("workers")

LIMIT_EVENTS = 120
HELD = {"canary": 0.1, "maxStep": 0.9, "holdSeconds": 3600, "deadlineSeconds": 180}


@pytest.fixture
def server_limits():
    return {"limit.historyCount.error": LIMIT_EVENTS, "limit.historyCount.warn": LIMIT_EVENTS - 20}


@pytest.fixture
def temporal_address(own_temporal):
    return own_temporal


@pytest.fixture
def terminated(client, model):
    """Types of the model's runs that the server has ended."""

    async def found():
        runs = [run async for run in client.list_workflows("ExecutionStatus = 'Terminated'") if model in run.id]
        return {run.workflow_type for run in runs}

    return found


@pytest.fixture
def resubmission(house, client):
    """What an API does each minute, at once."""
    engine = TemporalLifecycle(ui_url="")
    engine._client = client
    return Resubmission(house.store, engine, open_seconds=0)


@pytest.fixture
def said(client, model, resubmission):
    """Ask for an action; where nothing answers, or there is nothing to act on, the platform looks after its runs."""

    async def ask(action, change_id=None):
        try:
            await control(client, model, action, ControlAsked(by="ann"), change_id=change_id)
        except IPnextError:
            await resubmission.look()
            return False
        return True

    return ask


async def test_runs_that_meet_the_limit_of_their_history_lose_no_change(
    house, model, carried_out, submit, until, said, terminated, resubmission
):
    house.apply(model)
    await carried_out(house.publish(model, 1))
    house.apply(model, rollout=HELD)
    second = house.publish(model, 2)
    await submit(second)
    await until(lambda: house.condition(model, ConditionType.ROUTES_READY).message == "generation 2, wave 1")
    house.apply(model)
    third = house.publish(model, 3)
    await submit(third)
    with house.store.begin(model) as repository:
        repository.update_change(third.id, state=ChangeState.QUEUED)  # as the outbox does

    while not (ended := await terminated()):
        await said(ControlAction.PAUSE)
        await said(ControlAction.RESUME)
    assert ended <= {names.MODEL_WORKFLOW, names.LIFECYCLE_WORKFLOW, names.TRANSITION_WORKFLOW}
    await said(ControlAction.RESUME)
    while not (house.change(second.id).state.final or await said(ControlAction.PROMOTE, second.id)):  # noqa: ASYNC110 - it is asked
        await asyncio.sleep(0.2)
    while not house.change(third.id).state.final:
        await resubmission.look()
        await asyncio.sleep(0.2)

    assert house.change(second.id).state.final
    assert house.change(third.id).state is ChangeState.DONE
    with house.store.read() as repository:
        assert repository.model(model).serving_generation == 3
        states = {found.state for found in repository.transitions(model)}
    assert states.isdisjoint({TransitionState.PLANNED, TransitionState.RUNNING})
    assert house.shares(model) == {region: {3: 1.0} for region in ("us-east", "eu-west")}
