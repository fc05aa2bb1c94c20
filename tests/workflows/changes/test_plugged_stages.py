"""Stages of another distribution in the runs of changes: judged before traffic moves, and never the end of a run."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from temporalio.client import WorkflowHistory
from temporalio.common import SearchAttributeKey
from temporalio.worker import Replayer

from activities.runtime import stage_places
from ipnext import names
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.failure_cause import cause_in
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.freeze import FreezeManifest
from ipnext.model.registry.registry import GenerationState
from ipnext.payloads import DATA_CONVERTER
from ipnext.stages.kinds import StageKinds
from ipnext.temporal import control, signal_freeze_change
from tests.plugin_packages import write_distribution
from workflows.worker import WORKFLOWS

CODE = """
import asyncio
from datetime import timedelta

from temporalio import activity, workflow

from ipnext.stages.port import Stage, StageAnswer, StageRequest

asked, running = [], []


@activity.defn(name="stage.audit")
def audit(request: StageRequest) -> StageAnswer:
    asked.append(request)
    even = request.generation % 2 == 0
    return StageAnswer(passed=not even, message="the gap is too wide" if even else "", evidence={"gap": 0.3})


@activity.defn(name="stage.raising")
def raising(request: StageRequest) -> StageAnswer:
    raise RuntimeError("no room")


@activity.defn(name="stage.odd")
def odd(request: StageRequest) -> dict:
    return {"passed": "perhaps"}


@activity.defn(name="stage.large")
def large(request: StageRequest) -> dict:
    return {"passed": True, "message": "x" * (2**21 - 250)}


@activity.defn(name="stage.binary")
def binary(request: StageRequest) -> bytes:
    return bytes([255])


@activity.defn(name="stage.endless")
def endless(request: StageRequest) -> dict:
    return {"passed": True, "evidence": {"gap": 10**4400}}


@activity.defn(name="stage.slow")
async def slow(request: StageRequest) -> StageAnswer:
    running.append(request.change_id)
    await asyncio.sleep(3600)
    return StageAnswer(passed=True)


opened = []


@activity.defn(name="stage.gated")
async def gated(request: StageRequest) -> StageAnswer:
    running.append(request.change_id)
    while request.change_id not in opened:
        await asyncio.sleep(0.02)
    return StageAnswer(passed=True)


@workflow.defn(name="stage.review", sandboxed=False)
class Review:
    @workflow.run
    async def run(self, request: StageRequest) -> StageAnswer:
        return StageAnswer(passed=request.settings["passes"], message="as asked")


@activity.defn(name="stage.forgotten")
def forgotten(request: StageRequest) -> StageAnswer:
    return StageAnswer(passed=True)


stages = {
    "audit": Stage(name="audit", activity=audit),
    "raising": Stage(name="raising", activity=raising, attempts=2),
    "odd": Stage(name="odd", activity=odd),
    "large": Stage(name="large", activity=large),
    "binary": Stage(name="binary", activity=binary),
    "endless": Stage(name="endless", activity=endless),
    "slow": Stage(name="slow", activity=slow),
    "gated": Stage(name="gated", activity=gated),
    "review": Stage(name="review", workflow=Review),
    "nowhere": Stage(
        name="nowhere", activity="stage.nowhere", queue="no-worker", schedule_to_close=timedelta(seconds=2)
    ),
    "lacking": Stage(name="lacking", activity="stage.lacking", queue="ipnext-lifecycle", attempts=2),
}
globals().update(stages)
"""
STAGES = ("audit", "raising", "odd", "large", "binary", "endless", "slow", "gated", "review", "nowhere", "lacking")


@pytest.fixture
def plugged(tmp_path, monkeypatch):
    """The module of a distribution with stages, installed for the workers of this test."""
    name = f"plugged_{tmp_path.name.lower().replace('-', '_')}"
    write_distribution(tmp_path / "packages", name, CODE, {"ipnext.stages": {n: f"{name}:{n}" for n in STAGES}})
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    return __import__(name)


@pytest.fixture
async def workers(plugged, serving):
    async with serving(stages=StageKinds()):
        yield


pytestmark = pytest.mark.usefixtures("workers")


def after_validation(stage, **settings):
    return {"stage": stage, "after": "validation", "settings": settings}


def reported(house, model, generation):
    with house.store.read() as repository:
        report = repository.report(model, generation)
    return {check.check: check for check in report.checks if check.check.startswith("stage.")}


def events(house, model):
    with house.store.read() as repository:
        return [event for event in repository.events(model, limit=100) if event.kind == "StageEnded"]


def state_of(house, change):
    with house.store.read() as repository:
        return repository.change(change.id).state


async def test_a_stage_refuses_a_generation_with_evidence_and_lets_another_serve(
    house, model, plugged, carried_out, client
):
    house.apply(model, lifecycle=[after_validation("audit", limit=0.1), after_validation("review", passes=True)])
    first = await carried_out(house.publish(model, 1))
    assert first.state is ChangeState.DONE, first.message
    second = await carried_out(house.publish(model, 2))
    assert (second.state, second.reason) == (ChangeState.REFUSED, Reason.STAGE_REFUSED)
    assert second.message == "stage audit: the gap is too wide"
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}

    request = plugged.asked[-1]
    assert (request.kind, request.generation, request.serving_generation) == ("publish", 2, 1)
    assert request.settings == {"limit": 0.1}
    assert request.snapshots.keys() == {"sparse", "dense"} == request.serving.keys()
    with house.store.read() as repository:
        stored = repository.snapshot(model, "sparse", 2)
        assert repository.generation(model, 2).state is GenerationState.REFUSED
    assert (request.snapshots["sparse"].digest, request.snapshots["sparse"].uri) == (stored.digest, stored.uri)

    found = reported(house, model, 2)["stage.audit"]
    assert (found.passed, found.reason, found.evidence) == (False, Reason.STAGE_REFUSED, {"gap": 0.3})
    assert reported(house, model, 1)["stage.review"].passed
    validated = house.condition(model, ConditionType.VALIDATED)
    assert (validated.status, validated.reason) == ("False", Reason.STAGE_REFUSED)
    cause = next(found for event in events(house, model) if (found := cause_in(event.detail)))
    assert (cause.change, cause.place.step) == (second.id, "stage audit")

    for change in (first, second):
        handle = client.get_workflow_handle(names.lifecycle_workflow_id(model, change.id))
        history = WorkflowHistory.from_json(handle.id, (await handle.fetch_history()).to_json())
        await Replayer(workflows=WORKFLOWS, data_converter=DATA_CONVERTER).replay_workflow(history)


async def test_a_stage_without_an_answer_ends_its_change_by_name(house, model, carried_out):
    told = {
        "raising": "stage raising: RuntimeError: no room (after its attempts, at most 2)",
        "odd": "stage odd: its answer is {'passed': 'perhaps'}; needed: passed (true or false), message (text) and",
        "large": "stage large: its answer has 2096930 bytes; allowed: 262144",
        "binary": "stage binary: its answer is 1 bytes that are no JSON",
        "endless": "stage endless: its answer can't be read as JSON: ",
        "nowhere": "stage nowhere: it gave no answer within its 2 s on the task queue no-worker: is a worker of",
        "lacking": "stage lacking: no worker of the task queue ipnext-lifecycle has activity stage.lacking of",
        "absent": "stage absent: spec.lifecycle.0: no stage 'absent' is installed here",
    }
    for stage in told:
        house.apply(f"{model}-{stage}", lifecycle=[after_validation(stage)])
    changes = [house.publish(f"{model}-{stage}", 1) for stage in told]
    ended = dict(zip(told, await asyncio.gather(*map(carried_out, changes)), strict=True))
    for stage, change in ended.items():
        assert (change.state, change.reason) == (ChangeState.REFUSED, Reason.STAGE_FAILED), change.message
        assert change.message.startswith(told[stage])
        assert reported(house, f"{model}-{stage}", 1)[f"stage.{stage}"].reason is Reason.STAGE_FAILED
        assert any(cause_in(event.detail) for event in events(house, f"{model}-{stage}"))


async def test_a_running_stage_ends_with_an_abort_and_with_a_newer_publish(
    house, model, plugged, submit, carried_out, ended, until, client
):
    house.apply(model, lifecycle=[after_validation("slow")])
    first = house.publish(model, 1)
    await submit(first)
    await until(lambda: first.id in plugged.running)
    assert "stage slow" in house.condition(model, ConditionType.VALIDATED).message
    second = house.publish(model, 2)
    await submit(second)
    await until(lambda: second.id in plugged.running)
    assert (await ended(first)).state is ChangeState.SUPERSEDED
    await control(client, model, ControlAction.ABORT, ControlAsked(by="anna", reason="enough"))
    aborted = await ended(second)
    assert (aborted.state, aborted.reason) == (ChangeState.REFUSED, Reason.ABORTED)


async def test_stages_take_a_share_of_the_slots_and_a_further_one_waits_for_a_place(
    house, model, plugged, submit, ended, until, client, monkeypatch
):
    monkeypatch.setattr(stage_places, "SHARE", 64)
    changes = []
    for name in (model, f"{model}-next"):
        house.apply(name, lifecycle=[after_validation("gated")])
        changes.append(house.publish(name, 1))
    first, second = changes
    await submit(first)
    await until(lambda: first.id in plugged.running)
    await submit(second)
    await until(lambda: state_of(house, second) is ChangeState.RUNNING)
    handle = client.get_workflow_handle(names.lifecycle_workflow_id(second.model, second.id))

    async def failures():
        history = await handle.fetch_history()
        return [event for event in history.events if event.HasField("activity_task_failed_event_attributes")]

    while len(await failures()) < 2:  # noqa: ASYNC110 - the server has it
        await asyncio.sleep(0.05)
    assert second.id not in plugged.running
    plugged.opened.extend([first.id, second.id])
    for change in changes:
        assert (await ended(change)).state is ChangeState.DONE


async def test_a_pause_is_kept_before_the_next_stage(house, model, plugged, submit, ended, until, client):
    house.apply(model, lifecycle=[after_validation("gated"), {"stage": "audit", "after": "gated"}])
    house.publish(model, 1)
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: change.id in plugged.running)
    anna = ControlAsked(by="anna")
    await control(client, model, ControlAction.PAUSE, anna)
    plugged.opened.append(change.id)
    handle = client.get_workflow_handle(names.lifecycle_workflow_id(model, change.id))

    async def stage():
        attributes = (await handle.describe()).typed_search_attributes
        return attributes.get(SearchAttributeKey.for_keyword(names.STAGE_ATTRIBUTE))

    while await stage() != "paused":  # noqa: ASYNC110 - the server has it
        await asyncio.sleep(0.05)
    assert plugged.asked == []
    await control(client, model, ControlAction.RESUME, anna)
    assert (await ended(change)).reason is Reason.STAGE_REFUSED
    assert [request.generation for request in plugged.asked] == [2]


async def test_a_freeze_that_begins_during_a_later_stage_is_waited_for(
    house, model, plugged, submit, ended, until, client
):
    house.apply(model, lifecycle=[{"stage": "gated", "after": "freeze"}])
    change = house.publish(model, 1)
    await submit(change)
    await until(lambda: change.id in plugged.running)
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    spec = {
        "reason": "the shop is full",
        "windows": [{"start": now, "end": now + timedelta(hours=1)}],
        "scope": {"models": [model]},
    }
    freeze = {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": model}, "spec": spec}
    with house.store.begin() as unit:
        unit.put_freeze(FreezeManifest.model_validate(freeze), expected_version=None)
    plugged.opened.append(change.id)
    await until(lambda: house.change(change.id).reason is Reason.FROZEN)
    with house.store.begin() as unit:
        unit.delete_freeze(model, expected_version=None)
    await signal_freeze_change(client, change)
    assert (await ended(change)).state is ChangeState.DONE
