"""One mover for each model.

Runs that are terminated lose no change, leave no traffic behind, and no two transitions meet.
"""

import asyncio
import threading

import pytest
from sqlalchemy import update
from temporalio.testing import ActivityEnvironment

from activities.deployment.activities import DeploymentActivities
from activities.transition.activities import TransitionActivities
from ipnext import names
from ipnext.api.workflow_engine.resubmission import Resubmission
from ipnext.api.workflow_engine.temporal import TemporalLifecycle
from ipnext.errors import Conflict, FenceLost, Unavailable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.changes.entity import ModelEntityState
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.changes.transition_run import WaveInput
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.planning.transition import TransitionState
from ipnext.store.changes.transitions import TRANSITIONS, Transitions
from ipnext.store.repository import Repository
from ipnext.temporal import control

pytestmark = pytest.mark.usefixtures("workers")

HELD = {"canary": 0.1, "maxStep": 0.9, "holdSeconds": 3600, "deadlineSeconds": 180}
CHANGES = ("apply", "route", "delete", "unroute")
OPEN = {TransitionState.PLANNED, TransitionState.RUNNING}


def all_on(generation: int) -> dict[str, dict[int, float]]:
    return {region: {generation: 1.0} for region in ("us-east", "eu-west")}


def refused(house) -> int:
    """How often a region that is cut off was asked for replicas."""
    return sum(moment.refused == "RegionUnreachable" for moment in house.infrastructure.calls("apply"))


@pytest.fixture
def meetings(monkeypatch):
    """(new transition, open one) of the same model, as the new one is written down."""
    found, save = [], Transitions.save_transition

    def noted(self, record, **more):
        if record.state in OPEN:
            others = [
                other for other in self.transitions(record.model) if other.id != record.id and other.state in OPEN
            ]
            found.extend((record.id, other.id) for other in others)
        return save(self, record, **more)

    monkeypatch.setattr(Transitions, "save_transition", noted)
    return found


@pytest.fixture
def at_rest(house, model, until):
    """Wait until every change has ended; then the store and the gateways agree, and no transition is open."""

    async def settled(generation: int) -> None:
        def ended():
            with house.store.read() as repository:
                return all(change.state.final for change in repository.changes(model))

        await until(ended)
        with house.store.read() as repository:
            assert repository.model(model).serving_generation == generation
            assert {found.state for found in repository.transitions(model)}.isdisjoint(OPEN)
        assert house.shares(model) == all_on(generation)
        assert {held for held in house.held(model).values() if generation not in held} == set()

    return settled


@pytest.fixture
def queued(house, submit):
    """Submit a change, and write down that it is queued, as the outbox does."""

    async def taken(change):
        await submit(change)
        with house.store.begin(change.model) as repository:
            repository.update_change(change.id, state=ChangeState.QUEUED)
        return change

    return taken


@pytest.fixture
async def canary(house, model, carried_out, queued, until):
    """Generation 1 serves; a publish of generation 2 holds its canary, and one of generation 3 waits behind it."""
    house.apply(model)
    await carried_out(house.publish(model, 1))
    house.apply(model, rollout=HELD)
    second = await queued(house.publish(model, 2))
    routed = "generation 2, wave 1"
    await until(lambda: house.condition(model, ConditionType.ROUTES_READY).message == routed)
    return second, await queued(house.publish(model, 3))


@pytest.fixture
def terminate(client, model):
    """End runs by hand: `entity`, or `lifecycle` and `transition` of a change."""

    async def ended(what, change=None):
        found = {
            "entity": lambda: names.model_workflow_id(model),
            "lifecycle": lambda: names.lifecycle_workflow_id(model, change.id),
            "transition": lambda: names.transition_workflow_id(change.id),
        }[what]()
        await client.get_workflow_handle(found).terminate("by hand")

    return ended


@pytest.fixture
def promote(client, model, house, ended):
    """Let a change hold no canary, as soon as it moves."""

    async def promoted(change):
        while not house.change(change.id).state.final:
            try:
                await control(client, model, ControlAction.PROMOTE, ControlAsked(), change_id=change.id)
                break
            except Conflict:
                await asyncio.sleep(0.05)
        return await ended(change)

    return promoted


async def test_an_entity_that_is_terminated_loses_nothing_and_its_run_is_awaited(
    house, model, canary, terminate, queued, promote, ended, meetings, at_rest
):
    second, third = canary
    await terminate("entity")
    fourth = await queued(house.publish(model, 4))

    assert (await promote(second)).state is ChangeState.DONE
    assert (await promote(fourth)).state is ChangeState.DONE
    assert (await ended(third)).state is ChangeState.SUPERSEDED
    assert meetings == []
    await at_rest(4)


async def test_a_change_waits_for_the_way_back_of_a_lifecycle_that_was_terminated(
    house, model, canary, terminate, promote, ended, until, meetings, at_rest
):
    second, third = canary
    house.infrastructure.cut("eu-west")
    await terminate("lifecycle", second)
    await until(lambda: refused(house) > 100 or meetings)
    begun = house.change(third.id).state
    house.infrastructure.mend("eu-west")

    assert begun is ChangeState.QUEUED

    assert (await ended(second)).state is ChangeState.ROLLED_BACK
    assert (await promote(third)).state is ChangeState.DONE
    assert meetings == []
    await at_rest(3)


async def test_a_publish_that_comes_while_a_retired_entity_ends_is_carried_out(
    house, model, client, carried_out, submit, ended, until, monkeypatch
):
    house.apply(model)
    await carried_out(house.publish(model, 1))
    write, noting, going_on = Repository.set_condition, threading.Event(), threading.Event()

    def slowly(self, name, condition, status, reason, message=""):
        if reason is Reason.PAUSED and not going_on.is_set():
            noting.set()
            raise Unavailable("the store is away")
        write(self, name, condition, status, reason, message)

    monkeypatch.setattr(Repository, "set_condition", slowly)
    pausing = asyncio.create_task(control(client, model, ControlAction.PAUSE, ControlAsked(by="ann")))
    await until(noting.is_set)
    retire = house.ask(model, ChangeKind.RETIRE, f"{model}-retire")
    await submit(retire)
    assert (await ended(retire)).state is ChangeState.DONE
    entity = client.get_workflow_handle(names.model_workflow_id(model))
    while (await entity.query(names.MODEL_STATE, result_type=ModelEntityState)).running is not None:  # noqa: ASYNC110 - it is asked
        await asyncio.sleep(0.05)
    house.apply(model)
    again = house.ask(model, ChangeKind.ROLLBACK, f"{model}-again", generation=1)
    await submit(again)
    going_on.set()
    await pausing

    assert (await ended(again)).state is ChangeState.DONE


async def test_a_transition_that_is_terminated_is_reverted_and_the_next_change_runs(
    house, model, canary, terminate, promote, ended, meetings, at_rest
):
    second, third = canary
    await terminate("transition", second)

    assert (await ended(second)).state is ChangeState.ROLLED_BACK
    assert (await promote(third)).state is ChangeState.DONE
    assert meetings == []
    await at_rest(3)


async def test_what_a_lifecycle_and_its_transition_moved_goes_back_if_both_are_terminated(
    house, model, canary, terminate, promote, ended, meetings, at_rest
):
    second, third = canary
    await terminate("lifecycle", second)
    await terminate("transition", second)

    assert (await ended(second)).state is ChangeState.ROLLED_BACK
    assert (await promote(third)).state is ChangeState.DONE
    assert meetings == []
    await at_rest(3)


@pytest.mark.parametrize("runs", [("entity",), ("entity", "lifecycle"), ("entity", "lifecycle", "transition")])
async def test_what_was_acknowledged_is_carried_out_although_its_entity_has_gone(
    house, model, client, canary, terminate, promote, ended, meetings, at_rest, runs
):
    second, third = canary
    for run in runs:
        await terminate(run, second)

    engine = TemporalLifecycle(ui_url="")
    engine._client = client
    again = await Resubmission(house.store, engine, open_seconds=0).look()

    assert again == [names.model_workflow_id(model)]
    kept = ChangeState.DONE if runs == ("entity",) else ChangeState.ROLLED_BACK
    assert (await (promote if runs == ("entity",) else ended)(second)).state is kept
    assert (await promote(third)).state is ChangeState.DONE
    assert meetings == []
    assert await Resubmission(house.store, engine, open_seconds=0).look() == []
    await at_rest(3)


async def test_a_transition_is_reverted_although_its_revert_is_terminated_too(
    house, model, canary, terminate, promote, ended, until, at_rest
):
    second, third = canary
    house.infrastructure.cut("eu-west")
    await terminate("transition", second)
    await until(lambda: refused(house))
    await terminate("transition", second)
    house.infrastructure.mend("eu-west")

    assert (await ended(second)).state is ChangeState.ROLLED_BACK
    with house.store.read() as repository:
        assert repository.transition(second.id).fence == 2
    assert (await promote(third)).state is ChangeState.DONE
    await at_rest(3)


async def test_a_pause_outlives_the_entity_that_was_asked_for_it(
    house, model, client, carried_out, queued, terminate, ended
):
    house.apply(model)
    await carried_out(house.publish(model, 1))
    await control(client, model, ControlAction.PAUSE, ControlAsked(by="ann", reason="odd"))
    await terminate("entity")

    second = await queued(house.publish(model, 2))
    entity = client.get_workflow_handle(names.model_workflow_id(model))
    while (state := await entity.query(names.MODEL_STATE, result_type=ModelEntityState)).held is None:  # noqa: ASYNC110 - the entity is asked, it tells nothing
        await asyncio.sleep(0.05)
    assert state.held == ControlAsked(by="ann", reason="odd")
    assert (state.running, [change.id for change in state.queue]) == (None, [second.id])
    await terminate("entity")

    await control(client, model, ControlAction.RESUME, ControlAsked(by="ann"))
    assert (await ended(second)).state is ChangeState.DONE


async def test_an_abort_stops_a_run_that_an_entity_of_before_started(
    house, model, client, canary, terminate, promote, ended, at_rest
):
    second, third = canary
    await terminate("entity")

    asked = ControlAsked(by="ann", reason="bad answers")
    answer = await control(client, model, ControlAction.ABORT, asked, change_id=second.id)
    promoting = asyncio.create_task(promote(third))

    assert answer.change_id == second.id
    first = await ended(second)
    assert (first.state, first.reason) == (ChangeState.ROLLED_BACK, Reason.ABORTED)
    assert first.message == "aborted by ann: bad answers"
    assert (await ended(third)).state is ChangeState.DONE
    await promoting
    await at_rest(3)


async def test_a_rollback_stops_a_run_that_an_entity_of_before_started(
    house, model, canary, terminate, submit, ended, at_rest
):
    second, third = canary
    await terminate("entity")
    back = house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1)
    await submit(back)

    stopped = await ended(second)
    assert (stopped.state, stopped.reason) == (ChangeState.ROLLED_BACK, Reason.ROLLED_BACK)
    assert back.id in stopped.message
    assert (await ended(third)).state is ChangeState.SUPERSEDED
    assert (await ended(back)).state is ChangeState.DONE
    await at_rest(1)


async def test_an_activity_of_a_run_that_lost_its_transition_changes_nothing(house, model, canary, ended, promote):
    second, third = canary
    with house.store.begin(model) as repository:
        repository.take_over_transition(second.id, fence=0)
    before, wave = (
        len(house.infrastructure.calls(*CHANGES)),
        WaveInput(transition_id=second.id, model=model, generation=2, index=0, deadline_seconds=5),
    )
    activities = TransitionActivities(house.store, house.infrastructure)
    for late in (activities.ensure_capacity, activities.shift_traffic, activities.release_capacity):
        for back in (False, True):
            with pytest.raises(FenceLost):
                ActivityEnvironment().run(late, wave.model_copy(update={"back": back}))
    assert len(house.infrastructure.calls(*CHANGES)) == before
    with house.store.begin(model) as repository:
        former = update(TRANSITIONS).where(TRANSITIONS.c.id == second.id).values(fence=0)
        repository.connection().execute(former)
    assert (await promote(second)).state is ChangeState.DONE
    assert (await promote(third)).state is ChangeState.DONE


async def test_no_other_change_begins_to_move_while_a_transition_is_open(house, model, canary, promote):
    second, third = canary
    stage = StageInput(model=model, change_id=third.id, kind=ChangeKind.PUBLISH, generation=3)
    moving, retiring = (
        TransitionActivities(house.store, house.infrastructure),
        DeploymentActivities(house.store, house.infrastructure),
    )
    for begin in (moving.plan_transition, retiring.withdraw_model):
        with pytest.raises(Unavailable, match=f"'{second.id}' still moves"):
            begin(stage)
    with house.store.read() as repository:
        assert repository.find_transition(third.id) is None
    assert house.shares(model)["us-east"] == {1: 0.9, 2: 0.1}
    assert (await promote(second)).state is ChangeState.DONE
    assert (await promote(third)).state is ChangeState.DONE
