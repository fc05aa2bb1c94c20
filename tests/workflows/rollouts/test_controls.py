"""What a person says to a rollout, on a real server.

Pause, resume, approve, promote, abort, and newer publishes meanwhile.
"""

import asyncio
from threading import Event

import pytest
from temporalio.api.sdk.v1 import WorkflowMetadata

from activities.validation.documents import json_process
from activities.validation.documents.parsing import SMALL_BYTES
from ipnext import names
from ipnext.errors import Conflict
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.changes.entity import ModelEntityState
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.temporal import control
from tests.waiting import PATIENCE_SECONDS
from workflows import policies

pytestmark = pytest.mark.usefixtures("workers")

DETAILS = "__temporal_workflow_metadata"
ANNA = ControlAsked(by="anna", reason="looks odd")
EVERYWHERE_1 = {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
EVERYWHERE_2 = {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}
EVERYWHERE_3 = {"us-east": {3: 1.0}, "eu-west": {3: 1.0}}
PACE = {"canary": 0.1, "maxStep": 1.0, "deadlineSeconds": 180}
CANARY_2 = {"us-east": {1: 0.9, 2: 0.1}, "eu-west": {1: 0.9, 2: 0.1}}


@pytest.fixture
def say(client, model):
    async def said(action, asked=ANNA, change=None):
        return await control(client, model, action, asked, change_id=change.id if change else None)

    return said


@pytest.fixture
def rolled_out(house, model, client, carried_out):
    """Generation 1 serves, and nothing runs; the manifest's rollout is as given."""

    async def prepare(**rollout):
        house.apply(model, rollout=PACE)
        assert (await carried_out(house.publish(model, 1))).state is ChangeState.DONE
        house.apply(model, rollout={**PACE, **rollout})
        await idle(client.get_workflow_handle(names.model_workflow_id(model)))

    return prepare


async def idle(entity):
    """Until an entity runs nothing."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await entity.query(names.MODEL_STATE, result_type=ModelEntityState)).running:  # noqa: ASYNC110 - it is asked, it tells nothing by itself
            await asyncio.sleep(0.02)


@pytest.fixture
def stopped_at(client):
    """Wait until the page of a change's transition has some words."""

    async def stopped(words, change):
        run = client.get_workflow_handle(names.transition_workflow_id(change.id))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while words not in (await run.query(DETAILS, result_type=WorkflowMetadata)).current_details:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)

    return stopped


def held_back(house, model):
    """The reason that holds the model's changes, if any."""
    with house.store.read() as repository:
        found = [c for c in repository.conditions(model) if c.type is ConditionType.PROGRESSING and c.status == "False"]
    return found[0].reason if found else None


@pytest.fixture
def asks(house, model, submit, until):
    """Publish generation 2, and wait until its canary waits for a person."""

    async def publish():
        change = house.publish(model, 2)
        await submit(change)
        await until(lambda: held_back(house, model) is Reason.AWAITING_APPROVAL)
        return change

    return publish


async def test_a_canary_waits_for_an_approval_and_then_goes_on(house, model, rolled_out, asks, say, ended):
    await rolled_out(approval="canary")
    change = await asks()
    assert house.shares(model) == CANARY_2

    answer = await say(ControlAction.APPROVE, change=change)

    assert "wave 1 of 2 is approved by anna: looks odd" in answer.message
    assert (await ended(change)).state is ChangeState.DONE
    assert house.shares(model) == EVERYWHERE_2
    assert held_back(house, model) is None


async def test_a_wave_that_nobody_approves_in_time_goes_back(house, model, rolled_out, carried_out):
    await rolled_out(approval="canary", manualDeadlineSeconds=0.5)
    change = await carried_out(house.publish(model, 2))

    assert (change.state, change.reason) == (ChangeState.ROLLED_BACK, Reason.DEADLINE_EXCEEDED)
    assert "nobody approved wave 1 of 2 within 0.5 s" in change.message
    assert house.shares(model) == EVERYWHERE_1
    assert held_back(house, model) is None


async def test_a_bad_canary_goes_back_while_it_waits_for_an_approval(house, model, rolled_out, asks, ended):
    await rolled_out(approval="canary", manualDeadlineSeconds=600)
    change = await asks()
    house.infrastructure.answer_with(model, 2, errors=1.0)

    end = await ended(change)

    assert (end.state, end.reason) == (ChangeState.ROLLED_BACK, Reason.GATE_FAILED)
    assert house.shares(model) == EVERYWHERE_1


async def test_what_waits_for_no_approval_can_not_be_approved(model, rolled_out, say, house, carried_out):
    await rolled_out()
    done = await carried_out(house.publish(model, 2))

    with pytest.raises(Conflict, match=r"nothing of .* moves now"):
        await say(ControlAction.APPROVE, change=done)


async def test_each_wave_but_the_last_asks_where_the_manifest_says_so(
    house, model, rolled_out, asks, say, ended, until
):
    await rolled_out(approval="each", maxStep=0.5)
    change = await asks()
    for _ in range(2):
        await until(lambda: held_back(house, model) is Reason.AWAITING_APPROVAL)
        await say(ControlAction.APPROVE, change=change)
        await until(lambda: held_back(house, model) is None or house.change(change.id).state.final)

    assert (await ended(change)).state is ChangeState.DONE


async def test_a_promoted_run_holds_no_more_and_asks_no_one(house, model, rolled_out, submit, until, say, ended):
    await rolled_out(holdSeconds=600, approval="each", maxStep=0.3)
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: house.shares(model) == CANARY_2)

    await say(ControlAction.PROMOTE, change=change)

    assert (await ended(change)).state is ChangeState.DONE
    assert house.shares(model) == EVERYWHERE_2


async def test_a_promoted_run_still_keeps_its_gates(house, model, rolled_out, submit, until, say, ended):
    await rolled_out(holdSeconds=600, maxStep=0.3)
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: house.shares(model) == CANARY_2)
    house.infrastructure.answer_with(model, 2, errors=1.0)

    await say(ControlAction.PROMOTE, change=change)

    end = await ended(change)
    assert (end.state, end.reason) == (ChangeState.ROLLED_BACK, Reason.GATE_FAILED)


async def test_a_paused_run_stops_at_its_next_step_and_goes_on_when_resumed(
    house, model, rolled_out, submit, until, say, stopped_at, ended
):
    """What ends its hold is a promotion: the pause comes before, however late it is."""
    await rolled_out(holdSeconds=600)
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: house.shares(model) == CANARY_2)

    await say(ControlAction.PAUSE)
    await say(ControlAction.PROMOTE, change=change)
    await stopped_at("wave 2 of 2: paused by anna", change)
    await asyncio.sleep(0.5)
    while_paused = house.shares(model)
    reason = held_back(house, model)
    await say(ControlAction.RESUME)

    assert while_paused == CANARY_2
    assert reason is Reason.PAUSED
    assert (await ended(change)).state is ChangeState.DONE
    assert held_back(house, model) is None


async def test_a_pause_that_lasts_too_long_ends_the_run(house, model, rolled_out, submit, until, say, ended):
    await rolled_out(holdSeconds=600, manualDeadlineSeconds=1)
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: house.shares(model) == CANARY_2)
    await say(ControlAction.PAUSE)
    await say(ControlAction.PROMOTE, change=change)

    end = await ended(change)

    assert (end.state, end.reason) == (ChangeState.ROLLED_BACK, Reason.DEADLINE_EXCEEDED)
    assert "paused for more than 1 s by anna: looks odd" in end.message
    assert house.shares(model) == EVERYWHERE_1
    assert held_back(house, model) is Reason.PAUSED


async def test_a_paused_model_takes_publishes_and_begins_the_newest_when_resumed(
    house, model, client, rolled_out, submit, say, ended
):
    await rolled_out()
    await say(ControlAction.PAUSE)
    second, third = house.publish(model, 2), house.publish(model, 3)
    for change in (second, third):
        await submit(change)
    state = await client.get_workflow_handle(names.model_workflow_id(model)).query(
        names.MODEL_STATE, result_type=ModelEntityState
    )

    await say(ControlAction.RESUME)

    assert (state.running, [waiting.id for waiting in state.queue]) == (None, [third.id])
    assert state.held == ANNA
    assert (await ended(second)).state is ChangeState.SUPERSEDED
    assert (await ended(third)).state is ChangeState.DONE


async def test_a_rollback_passes_a_pause_and_leaves_it(house, model, rolled_out, submit, until, say, ended):
    await rolled_out(holdSeconds=600)
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: house.shares(model) == CANARY_2)
    await say(ControlAction.PAUSE)

    back = house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1)
    await submit(back)

    assert (await ended(back)).state is ChangeState.DONE
    assert (await ended(change)).state is ChangeState.ROLLED_BACK
    assert house.shares(model) == EVERYWHERE_1
    assert held_back(house, model) is Reason.PAUSED


async def test_a_rollback_runs_before_what_waits_longer(house, model, rolled_out, submit, say, ended):
    await rolled_out()
    await say(ControlAction.PAUSE)
    house.apply(model, rollout={"canary": 1.0, "deadlineSeconds": 180})
    waiting = house.ask(model, ChangeKind.APPLY, f"{model}-apply")
    back = house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1)
    for change in (waiting, back):
        await submit(change)

    assert (await ended(back)).state is ChangeState.DONE
    assert not house.change(waiting.id).state.final
    await say(ControlAction.RESUME)
    assert (await ended(waiting)).state is ChangeState.DONE


async def test_an_aborted_run_goes_back_and_says_who_wanted_it(house, model, rolled_out, submit, until, say, ended):
    await rolled_out(holdSeconds=600)
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: house.shares(model) == CANARY_2)

    await say(ControlAction.ABORT)

    end = await ended(change)
    assert (end.state, end.reason, end.message) == (
        ChangeState.ROLLED_BACK,
        Reason.ABORTED,
        "aborted by anna: looks odd",
    )
    assert house.shares(model) == EVERYWHERE_1


async def test_a_run_that_is_aborted_before_any_traffic_moved_is_refused(
    house, model, rolled_out, submit, until, say, ended
):
    await rolled_out()
    await say(ControlAction.PAUSE)
    await say(ControlAction.RESUME)
    house.infrastructure.stall()
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: house.change(change.id).state is ChangeState.RUNNING)

    await say(ControlAction.ABORT)

    end = await ended(change)
    assert end.reason is Reason.ABORTED
    assert end.state in {ChangeState.REFUSED, ChangeState.ROLLED_BACK}
    house.infrastructure.release()
    assert house.shares(model) == EVERYWHERE_1


async def test_an_abort_waits_for_no_document_that_is_being_parsed(
    house, kit, model, rolled_out, submit, until, say, ended, monkeypatch
):
    """Nothing in Python stops a parser: the validation is given up while it goes on."""
    await rolled_out()
    begun, let_go, read = Event(), Event(), json_process.load_bounded

    def slow(content, **limits):
        if len(content) > SMALL_BYTES:
            begun.set()
            assert let_go.wait(PATIENCE_SECONDS)
        return read(content, **limits)

    monkeypatch.setattr(json_process, "load_bounded", slow)
    large = {"compiled.json": b"[" + b" " * SMALL_BYTES + b"]"}
    change = house.publish(model, 2, dense=house.source(kit.DENSE, kit.weights(2), more=large))
    await submit(change)
    await until(begun.is_set)

    await say(ControlAction.ABORT)

    end = await ended(change)
    parsed = let_go.is_set()
    let_go.set()
    assert (end.state, end.reason, parsed) == (ChangeState.REFUSED, Reason.ABORTED, False)
    assert house.shares(model) == EVERYWHERE_1


async def test_with_nothing_that_runs_there_is_nothing_to_abort_or_resume(rolled_out, say):
    await rolled_out()

    with pytest.raises(Conflict, match="there is nothing to abort"):
        await say(ControlAction.ABORT)
    with pytest.raises(Conflict, match="is not paused"):
        await say(ControlAction.RESUME)


async def test_a_run_that_waits_for_a_person_gives_way_to_a_newer_publish(
    house, model, rolled_out, asks, submit, until, say, ended
):
    await rolled_out(approval="canary")
    second = await asks()
    third = house.publish(model, 3)
    await submit(third)

    gone = await ended(second)
    assert (gone.state, gone.reason) == (ChangeState.ROLLED_BACK, Reason.SUPERSEDED)
    assert third.id in gone.message
    await until(lambda: held_back(house, model) is Reason.AWAITING_APPROVAL)
    await say(ControlAction.APPROVE, change=third)
    assert (await ended(third)).state is ChangeState.DONE
    assert house.shares(model) == EVERYWHERE_3


async def test_a_publish_that_waits_for_a_person_is_not_given_up_for_a_newer_apply(
    house, model, rolled_out, asks, submit, say, ended
):
    """An apply takes what serves: the generation that was published would be lost."""
    await rolled_out(approval="canary")
    second = await asks()
    applied = house.ask(model, ChangeKind.APPLY, f"{model}-apply")
    await submit(applied)
    await say(ControlAction.APPROVE, change=second)

    assert (await ended(second)).state is ChangeState.DONE
    assert (await ended(applied)).state is ChangeState.DONE
    assert house.change(applied.id).sequence > house.change(second.id).sequence


@pytest.mark.parametrize(("on_newer", "state"), [("turn", ChangeState.ROLLED_BACK), ("finish", ChangeState.DONE)])
async def test_a_rollout_turns_to_a_newer_publish_where_the_manifest_says_so(
    house, model, rolled_out, submit, until, say, ended, on_newer, state
):
    await rolled_out(holdSeconds=600, onNewer=on_newer)
    second = house.publish(model, 2)
    await submit(second)
    await until(lambda: house.shares(model) == CANARY_2)
    house.apply(model, rollout=PACE)
    third = house.publish(model, 3)
    await submit(third)
    if on_newer == "finish":
        await say(ControlAction.PROMOTE, change=second)

    assert (await ended(second)).state is state
    assert (await ended(third)).state is ChangeState.DONE
    assert house.shares(model) == EVERYWHERE_3


async def test_a_model_that_always_turns_finishes_something(house, model, rolled_out, submit, until, say, ended):
    """Each run holds when the next publish comes; the last of them holds on though one has come."""
    await rolled_out(holdSeconds=600, onNewer="turn")
    changes = []
    for generation in range(2, policies.MOST_TURNS + 3):
        changes.append(house.publish(model, generation))
        await submit(changes[-1])
        await until(lambda new=generation: all(new in found for found in house.shares(model).values()))
    house.apply(model, rollout=PACE)
    changes.append(house.publish(model, policies.MOST_TURNS + 3))
    await submit(changes[-1])
    await say(ControlAction.PROMOTE, change=changes[-2])

    ends = [(await ended(change)).state for change in changes]
    assert ends == [*[ChangeState.ROLLED_BACK] * policies.MOST_TURNS, ChangeState.DONE, ChangeState.DONE]
