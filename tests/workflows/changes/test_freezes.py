"""A change of a frozen model waits before it takes any supply, and goes on by itself, when it is let, or not at all."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from temporalio.testing import ActivityEnvironment

from activities.deployment.freeze_activities import FreezeActivities
from activities.planning.move_window import MoverActivities
from ipnext import names
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.replans.moves import MoveTurn
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.freeze import FreezeAnswer, FreezeManifest
from ipnext.model.registry.registry import GenerationState
from ipnext.temporal import connect, control, signal_freeze_change, submit_change
from tests.waiting import PATIENCE_SECONDS
from workflows import policies
from workflows.stages.freeze_wait import pause_before

LONG = 3600.0
SHORT = 15.0
"""Its end is waited for, and a busy machine is to come to it before."""

STOP_PASSED_ON = EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED


def freeze_manifest(
    name: str, seconds: float, *, kinds=("publish", "apply", "move"), **scope: list[str]
) -> FreezeManifest:
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    end = (now + timedelta(seconds=seconds)).replace(microsecond=0)
    spec = {"reason": "the shop is full", "windows": [{"start": now, "end": end}], "scope": scope, "kinds": kinds}
    return FreezeManifest.model_validate(
        {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": name}, "spec": spec}
    )


@dataclass
class Ice:
    """Freezes of one test, and its model."""

    house: Any
    client: Client
    model: str
    submit: Callable[[Change], Awaitable[None]]
    until: Callable[[Callable[[], Any]], Awaitable[Any]]

    def freeze(self, seconds: float = LONG, *, name: str = "sale", **more: list[str]) -> None:
        """Freeze the model, or what is named, for some seconds."""
        manifest = freeze_manifest(name, seconds, **(more or {"models": [self.model]}))
        with self.house.store.begin() as unit:
            unit.put_freeze(manifest, expected_version=None)

    async def lift(self, name: str = "sale") -> None:
        """Lift a freeze and tell the runs that wait, as the API does."""
        with self.house.store.begin() as unit:
            unit.delete_freeze(name, expected_version=None)
        await self.tell()

    async def tell(self) -> None:
        with self.house.store.read() as unit:
            waiting = unit.frozen_changes()
        for change in waiting:
            await signal_freeze_change(self.client, change)

    async def frozen(self, change: Change) -> Change:
        """Submit a change that a freeze holds back, and see that it waits."""
        await self.submit(change)
        return await self.waiting(change)

    async def waiting(self, change: Change) -> Change:
        found = self.house.change
        return await self.until(lambda: now if (now := found(change.id)).reason is Reason.FROZEN else None)


@pytest.fixture
def ice(house, client, model, submit, until) -> Ice:
    house.apply(model)
    return Ice(house, client, model, submit, until)


@pytest.fixture
def slow_answers(monkeypatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Set once a run asks for freezes and is frozen; to set so that it gets the answer.

    For workers that begin after it.
    """
    asked, answers = threading.Event(), threading.Event()
    freeze_of = FreezeActivities.freeze_of

    @activity.defn(name="freeze_of", no_thread_cancel_exception=True)
    def slow(self, stage: StageInput) -> FreezeAnswer:
        answer = freeze_of(self, stage)
        if activity.info().activity_type == "freeze_of" and answer.frozen is not None:
            asked.set()
            assert answers.wait(PATIENCE_SECONDS)
        return answer

    monkeypatch.setattr(FreezeActivities, "freeze_of", slow)
    yield asked, answers
    answers.set()


async def test_a_publish_in_a_freeze_waits_with_its_reason_and_goes_on_by_itself(ice, house, workers, ended):
    change = house.publish(ice.model, 1)
    ice.freeze(SHORT)

    waiting = await ice.frozen(change)

    assert waiting.state is ChangeState.RUNNING
    assert "frozen until" in waiting.message
    assert "the shop is full (freeze sale)" in waiting.message
    ready, planned = house.condition(ice.model), house.condition(ice.model, ConditionType.PLANNED)
    assert (ready.status, ready.reason, planned.reason) == ("False", Reason.FROZEN, Reason.FROZEN)
    assert house.condition(ice.model, ConditionType.VALIDATED).status == "True", (
        "what can be done before is done before"
    )
    with house.store.read() as unit:
        assert unit.placement(ice.model) is None, "it holds no supply"

    done = await ended(change)

    assert (done.state, done.reason) == (ChangeState.DONE, Reason.SUCCEEDED)
    assert house.shares(ice.model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    assert house.condition(ice.model).status == "True"
    with house.store.read() as unit:
        kinds = [event.kind for event in unit.events(ice.model)]
    assert kinds.index("Thawed") < kinds.index("Frozen")


async def test_a_freeze_that_is_lifted_early_lets_go_at_once(ice, house, workers, ended):
    ice.freeze()
    change = house.publish(ice.model, 1)
    await ice.frozen(change)

    await ice.lift()

    assert (await ended(change)).state is ChangeState.DONE


async def test_a_freeze_that_is_added_to_one_that_ends_makes_the_wait_longer(ice, house, workers, ended):
    change = house.publish(ice.model, 1)
    ice.freeze(SHORT)
    first = await ice.frozen(change)
    ice.freeze(name="stocktaking")

    longer = await ice.until(lambda: found if (found := house.change(change.id)).message != first.message else None)

    assert "freeze stocktaking" in longer.message
    await ice.lift("stocktaking")
    assert (await ended(change)).state is ChangeState.DONE


async def test_an_overridden_change_passes_and_what_it_passed_is_told(ice, house, workers, ended):
    ice.freeze()
    change = house.publish(ice.model, 1)
    await ice.frozen(change)
    with house.store.begin(ice.model) as unit:
        unit.override_freezes(change.id, who="ann", reason="a security fix", passes=None)

    await ice.tell()

    assert (await ended(change)).state is ChangeState.DONE
    with house.store.read() as unit:
        thawed = next(event for event in unit.events(ice.model) if event.kind == "Thawed")
    assert "passes sale: overridden by ann: a security fix" in thawed.message


async def test_a_rollback_passes_at_once_and_ends_the_publish_that_waits(ice, house, workers, carried_out, ended):
    await carried_out(house.publish(ice.model, 1))
    await carried_out(house.publish(ice.model, 2))
    ice.freeze()
    publish = house.publish(ice.model, 3)
    await ice.frozen(publish)

    back = await carried_out(house.ask(ice.model, ChangeKind.ROLLBACK, f"{ice.model}-back", generation=1))

    assert back.state is ChangeState.DONE
    assert house.shares(ice.model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    stopped = await ended(publish)
    assert (stopped.state, stopped.reason) == (ChangeState.SUPERSEDED, Reason.SUPERSEDED)
    with house.store.read() as unit:
        assert unit.generation(ice.model, 3).state is GenerationState.SUPERSEDED
        assert unit.transitions(ice.model, limit=1)[0].change_id == back.id, "no traffic of generation 3 ever moved"


async def test_a_publish_that_is_stopped_while_it_asks_for_freezes_ends(
    ice, house, client, slow_answers, serving, carried_out, ended, until
):
    """The answer comes after the stop was asked, and says that the publish is frozen."""
    asked, answers = slow_answers
    async with serving():
        await carried_out(house.publish(ice.model, 1))
        await carried_out(house.publish(ice.model, 2))
        ice.freeze()
        publish = house.publish(ice.model, 3)
        await ice.submit(publish)
        await until(asked.is_set)

        rollback = house.ask(ice.model, ChangeKind.ROLLBACK, f"{ice.model}-back", generation=1)
        await ice.submit(rollback)
        run = client.get_workflow_handle(names.lifecycle_workflow_id(ice.model, publish.id))
        while not any(event.event_type == STOP_PASSED_ON for event in (await run.fetch_history()).events):  # noqa: ASYNC110 - the server tells
            await asyncio.sleep(0.05)
        answers.set()

        assert (await ended(publish)).state is ChangeState.SUPERSEDED
        assert (await ended(rollback)).state is ChangeState.DONE


async def test_of_three_publishes_in_a_freeze_only_the_newest_serves(ice, house, workers, ended):
    ice.freeze()
    first, second, third = (house.publish(ice.model, seed) for seed in (1, 2, 3))
    await ice.frozen(first)

    await ice.frozen(second)
    await ice.frozen(third)

    for gone, newer in ((first, second), (second, third)):
        gave_way = await ended(gone)
        assert (gave_way.state, gave_way.reason) == (ChangeState.SUPERSEDED, Reason.SUPERSEDED)
        assert gave_way.message == f"gave way to {newer.id}, which is newer"
    await ice.lift()
    assert (await ended(third)).state is ChangeState.DONE
    assert house.shares(ice.model) == {"us-east": {3: 1.0}, "eu-west": {3: 1.0}}


async def test_a_publish_that_waits_gives_way_to_no_apply_for_that_brings_none_of_its_snapshots(
    ice, house, workers, carried_out, submit, ended
):
    await carried_out(house.publish(ice.model, 1))
    ice.freeze()
    publish = house.publish(ice.model, 2)
    await ice.frozen(publish)

    applied = house.ask(ice.model, ChangeKind.APPLY, f"{ice.model}-apply")
    await submit(applied)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2):  # nothing tells that it goes on waiting
            await ended(publish)
    await ice.lift()

    ends = [await ended(change) for change in (publish, applied)]
    assert [change.state for change in ends] == [ChangeState.DONE] * 2
    assert house.shares(ice.model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}


async def test_a_freeze_that_begins_in_a_pause_holds_back_what_had_passed_it_before(
    ice, house, client, workers, until, ended
):
    ice.freeze()
    publish = house.publish(ice.model, 1)
    await ice.frozen(publish)
    await control(client, ice.model, ControlAction.PAUSE, ControlAsked(by="anna"))
    await ice.lift()
    run = client.get_workflow_handle(names.lifecycle_workflow_id(ice.model, publish.id))
    while (await run.describe()).search_attributes[names.STAGE_ATTRIBUTE] != ["paused"]:  # noqa: ASYNC110 - the server tells
        await asyncio.sleep(0.05)

    ice.freeze(name="stocktaking")
    await control(client, ice.model, ControlAction.RESUME, ControlAsked(by="anna"))

    waiting = await until(
        lambda: now if "stocktaking" in (now := house.change(publish.id)).message or now.state.final else None
    )
    assert waiting.state is ChangeState.RUNNING
    await ice.lift("stocktaking")
    assert (await ended(publish)).state is ChangeState.DONE


async def test_a_freeze_of_a_region_holds_back_what_may_touch_it_and_nothing_else(
    ice, house, workers, carried_out, ended
):
    ice.freeze(regions=["eu-*"])
    here, there = f"{ice.model}-us", f"{ice.model}-eu"
    house.apply(here, demand=[{"region": "us-east", "qps": 50}])
    house.apply(there, demand=[{"region": "us-east", "qps": 50}, {"region": "eu-west", "qps": 50}])
    held = house.publish(there, 1)
    await ice.frozen(held)

    free = await carried_out(house.publish(here, 2))

    assert free.state is ChangeState.DONE
    assert house.change(held.id).reason is Reason.FROZEN
    with house.store.read() as unit:
        assert (unit.placement(here) is None, unit.placement(there) is None) == (False, True)
    await ice.lift()
    await ended(held)


async def test_a_frozen_move_waits_and_no_replan_waits_for_it(ice, house, workers, carried_out, ended):
    await carried_out(house.publish(ice.model, 1))
    ice.freeze()
    with house.store.begin() as unit:
        plan_id = unit.placement(ice.model).plan_id
        unit.list_moves("replan", [ice.model])
    mover = MoverActivities(house.store, lambda change: asyncio.run(submit_elsewhere(ice.client, change)))
    turn = MoveTurn(plan_id="replan", window=1)
    await asyncio.to_thread(ActivityEnvironment().run, mover.move_models, turn)
    move = house.change(names.move_id(plan_id, ice.model))
    await ice.frozen(move)

    seen = await asyncio.to_thread(ActivityEnvironment().run, mover.move_models, turn)

    assert (seen.progress.held_models, seen.progress.busy) == ((ice.model,), 0)
    assert house.condition(ice.model).status == "True", "a move leaves Ready as it is"
    await ice.lift()
    assert (await ended(move)).state is ChangeState.DONE


async def submit_elsewhere(client, change) -> None:
    """From a thread of its own, with a connection of its own."""
    await submit_change(await connect(address=client.service_client.config.target_host), change)


async def test_a_retirement_waits_only_where_a_freeze_says_so(ice, house, workers, carried_out, ended):
    await carried_out(house.publish(ice.model, 1))
    ice.freeze(kinds=["retire"], models=[ice.model])
    change = house.ask(ice.model, ChangeKind.RETIRE, f"{ice.model}-retire")

    await ice.frozen(change)

    assert house.condition(ice.model).status == "True", "it serves on"
    await ice.lift()
    assert (await ended(change)).state is ChangeState.DONE


async def test_a_retirement_that_waits_for_a_freeze_is_aborted_and_the_model_serves_on(
    ice, house, workers, carried_out, ended
):
    await carried_out(house.publish(ice.model, 1))
    ice.freeze(kinds=["retire"], models=[ice.model])
    change = house.ask(ice.model, ChangeKind.RETIRE, f"{ice.model}-retire")
    await ice.frozen(change)

    asked = ControlAsked(by="anna", waiting=change.id)
    await control(ice.client, ice.model, ControlAction.ABORT, asked, change_id=change.id)

    done = await ended(change)
    assert (done.state, done.reason) == (ChangeState.REFUSED, Reason.ABORTED)
    assert set(house.shares(ice.model)) == {"us-east", "eu-west"}
    assert house.condition(ice.model).status == "True"


async def test_a_rollback_passes_a_retirement_that_waits_for_a_freeze(ice, house, workers, carried_out, ended):
    """As one from a denied snapshot: users would ask for a retirement to be taken back first."""
    await carried_out(house.publish(ice.model, 1))
    await carried_out(house.publish(ice.model, 2))
    ice.freeze(kinds=["retire"], models=[ice.model])
    retirement = house.ask(ice.model, ChangeKind.RETIRE, f"{ice.model}-retire")
    await ice.frozen(retirement)

    back = await carried_out(house.ask(ice.model, ChangeKind.ROLLBACK, f"{ice.model}-back", generation=1))

    assert back.state is ChangeState.DONE, back.message
    assert [set(shares) for shares in house.shares(ice.model).values()] == [{1}, {1}]
    assert house.change(retirement.id).reason is Reason.FROZEN
    await ice.lift()
    assert (await ended(retirement)).state is ChangeState.DONE
    assert not house.shares(ice.model)


async def test_a_worker_that_is_gone_while_a_change_is_frozen_loses_nothing(ice, house, serving, ended):
    change = house.publish(ice.model, 1)
    ice.freeze(SHORT)
    async with serving():
        await ice.frozen(change)

    async with serving():
        done = await ended(change)

    assert done.state is ChangeState.DONE


def test_looks_are_hourly_and_further_apart_where_much_is_left():
    hour = policies.FREEZE_LOOKS_EVERY
    assert pause_before(timedelta(minutes=5)) == timedelta(minutes=5)
    assert pause_before(timedelta(hours=30)) == hour
    assert pause_before(timedelta(days=96)) == timedelta(days=2)
    assert pause_before(timedelta(seconds=-3)) == timedelta(seconds=1)
