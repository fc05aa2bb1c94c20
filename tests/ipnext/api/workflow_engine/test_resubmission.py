"""What was acknowledged and has no run gets one again.

Entities of models, drains and the replan, these and no others.
"""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ipnext import names
from ipnext.api.workflow_engine.port import MemoryLifecycle
from ipnext.api.workflow_engine.resubmission import Resubmission
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAsked
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.lifecycle.replans.replan import ReplanState
from ipnext.model.lifecycle.workflow_namespace import WorkflowNamespace
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.manifest.sources import SourceSpec
from ipnext.model.registry.sources import Listing
from ipnext.store.sources.sources import WatchedSource
from ipnext.store.store import Store
from tests.waiting import eventually
from tests.workflows.house import manifest

MODELS = tuple(f"m{n:02}" for n in range(12))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Each model has a running change and a queued one behind it; one more has a change that has ended."""
    with closing(Store.open(f"sqlite:///{tmp_path / 'record.db'}")) as opened:
        opened.migrate()
        with opened.begin() as repository:
            for name in (*MODELS, "idle"):
                repository.put_model(parse_manifest(manifest(name)), expected_version=None)
                for number, state in enumerate((ChangeState.RUNNING, ChangeState.QUEUED), 1):
                    repository.add_change(name, ChangeKind.APPLY, change_id=f"{name}-{number}")
                    repository.update_change(f"{name}-{number}", state=ChangeState.DONE if name == "idle" else state)
        yield opened


def resubmission(store: Store, lifecycle: MemoryLifecycle, **more: float) -> Resubmission:
    return Resubmission(store, lifecycle, open_seconds=0, **more)


async def with_entities(store: Store) -> MemoryLifecycle:
    """Every change was submitted once."""
    lifecycle = MemoryLifecycle()
    for name in MODELS:
        with store.read() as repository:
            for change in repository.open_changes(name):
                await lifecycle.submit(change)
    return lifecycle


async def test_entities_that_are_missing_begin_once(store: Store) -> None:
    lifecycle = await with_entities(store)
    lifecycle.entities -= {"m03", "m07", "idle"}

    first = await resubmission(store, lifecycle).look()
    assert await resubmission(store, lifecycle).look() == []

    assert sorted(lifecycle.entities_begun) == ["m03", "m07"]
    assert first == ["model/m03", "model/m07"]


@pytest.mark.parametrize("kind", sorted(set(ChangeKind) - {ChangeKind.PUBLISH}))
async def test_a_change_of_any_kind_needs_the_entity_of_its_model(drained: Store, kind: ChangeKind) -> None:
    with drained.begin() as repository:
        repository.add_change("idle", kind, change_id="c1")
        repository.update_change("c1", state=ChangeState.RUNNING)
    lifecycle = MemoryLifecycle()
    lifecycle.fleet_runs |= {names.drain_workflow_id(region) for region in REGIONS}

    assert await resubmission(drained, lifecycle).look() == ["model/idle"]


async def test_a_change_that_was_just_recorded_is_left_alone(store: Store) -> None:
    lifecycle = await with_entities(store)
    lifecycle.entities.clear()

    await Resubmission(store, lifecycle, open_seconds=3600).look()

    assert lifecycle.entities_begun == []


async def test_nothing_is_asked_of_the_engine_if_nothing_is_open(store: Store) -> None:
    with store.begin() as repository:
        for name in MODELS:
            for change in repository.open_changes(name):
                repository.update_change(change.id, state=ChangeState.DONE)
    lifecycle = MemoryLifecycle()
    lifecycle.down = True

    assert await resubmission(store, lifecycle).look() == []


async def test_an_engine_that_is_down_is_asked_again(store: Store) -> None:
    lifecycle = await with_entities(store)
    lifecycle.entities.discard("m05")
    lifecycle.down = True
    async with resubmission(store, lifecycle, every_seconds=0.02).running():
        await asyncio.sleep(0.1)
        assert lifecycle.entities_begun == []
        lifecycle.down = False
        await eventually(lambda: lifecycle.entities_begun == ["m05"])


async def test_nothing_of_a_record_of_another_platform_is_submitted(store: Store) -> None:
    with store.begin() as repository:
        repository.belong_to(WorkflowNamespace(id="another", name="default", address="there:7233"))
    lifecycle = await with_entities(store)
    lifecycle.entities.clear()

    assert await resubmission(store, lifecycle).look() == []
    assert lifecycle.entities_begun == []


async def test_so_many_entities_are_asked_at_once_and_no_more(store: Store) -> None:
    class Busy(MemoryLifecycle):
        asked = most = 0

        async def runs(self, _: str) -> bool:
            self.asked += 1
            self.most = max(self.most, self.asked)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self.asked -= 1
            return False

        async def begin_entity(self, _: str) -> None:
            raise TimeoutError

    lifecycle = Busy()

    assert await resubmission(store, lifecycle, at_once=4).look() == []
    assert lifecycle.most == 4


REGIONS = ("eu", "us", "asia", "africa")


@pytest.fixture
def drained(store: Store) -> Store:
    """Four drains that the engine has taken: planned, of a lost region, asked back, drained. No change is open."""
    with store.begin() as repository:
        for name in MODELS:
            for change in repository.open_changes(name):
                repository.update_change(change.id, state=ChangeState.DONE)
        for region in REGIONS:
            repository.add_drain(region, disaster=region == "us")
        repository.ask_return("asia")
        repository.update_drain("drain-eu-1", state=DrainState.DRAINING)
        repository.update_drain("drain-africa-1", state=DrainState.DRAINED)
        repository.mark_submitted([drain for region in REGIONS if (drain := repository.drain(region))])
    return store


async def test_drains_that_go_on_and_have_no_run_begin_lost_regions_first(drained: Store) -> None:
    lifecycle = MemoryLifecycle()

    first = await resubmission(drained, lifecycle).look()
    assert await resubmission(drained, lifecycle).look() == []

    assert first == ["drain/us", "drain/asia", "drain/eu"]
    assert lifecycle.drains_told == ["us", "asia", "eu"]


async def test_a_drain_that_the_engine_has_not_taken_yet_is_left_to_the_outbox(drained: Store) -> None:
    lifecycle = MemoryLifecycle()
    lifecycle.fleet_runs |= {"drain/us", "drain/asia"}
    with drained.begin() as repository:
        repository.add_drain("eu", force=True)

    assert await resubmission(drained, lifecycle).look() == []


async def test_a_run_that_ended_while_it_was_looked_for_is_not_begun(drained: Store) -> None:
    class Late(MemoryLifecycle):
        async def runs(self, workflow_id: str) -> bool:
            with drained.begin() as repository:
                repository.update_drain("drain-eu-1", state=DrainState.DRAINED)
            return await super().runs(workflow_id)

    lifecycle = Late()
    lifecycle.fleet_runs |= {"drain/us", "drain/asia"}

    assert await resubmission(drained, lifecycle).look() == []
    assert lifecycle.drains_told == []


@pytest.mark.parametrize("state", [ReplanState.QUEUED, ReplanState.PLANNING, ReplanState.MOVING])
async def test_a_replan_that_was_taken_and_has_no_run_begins(store: Store, state: ReplanState) -> None:
    lifecycle = await with_entities(store)
    with store.begin() as repository:
        repository.add_replan("r1", "manual")
        repository.queue_replans(["r1"])
        if state is not ReplanState.QUEUED:
            repository.claim_replans("p1", run_id="run")
    with store.begin("p1") as repository:
        if state is ReplanState.MOVING:
            repository.update_replans("p1", state=state)

    assert await resubmission(store, lifecycle).look() == [names.REPLAN_ID]
    assert await resubmission(store, lifecycle).look() == []
    assert lifecycle.replans_woken == 1


async def test_no_replan_begins_for_those_that_a_pause_holds_back_or_that_have_ended(store: Store) -> None:
    lifecycle = await with_entities(store)
    with store.begin() as repository:
        repository.add_replan("ended", "manual")
        repository.claim_replans("p1", run_id="run")
    with store.begin("p1") as repository:
        repository.update_replans("p1", state=ReplanState.KEPT)
    with store.begin() as repository:
        repository.add_replan("waits", "manual")
        repository.queue_replans(["waits"])
        repository.pause_moves("by hand")

    assert await resubmission(store, lifecycle).look() == []
    with store.begin() as repository:
        repository.add_replan("of-a-drain", "drain")
        repository.queue_replans(["of-a-drain"])
    assert await resubmission(store, lifecycle).look() == [names.REPLAN_ID]


async def test_a_drain_begins_although_the_look_at_the_models_takes_long(drained: Store) -> None:
    class Slow(MemoryLifecycle):
        async def runs(self, workflow_id: str) -> bool:
            if workflow_id.startswith("model/"):
                await asyncio.Event().wait()
            return await super().runs(workflow_id)

    lifecycle = Slow()
    with drained.begin() as repository:
        for name in MODELS:
            repository.add_change(name, ChangeKind.APPLY, change_id=f"{name}-3")
            repository.update_change(f"{name}-3", state=ChangeState.QUEUED)

    async with resubmission(drained, lifecycle).running():
        await eventually(lambda: lifecycle.drains_told == ["us", "asia", "eu"])


def running_runs() -> set[str]:
    return {names.lifecycle_workflow_id(name, f"{name}-1") for name in MODELS}


async def test_the_entity_of_a_change_that_lost_its_run_looks_again(store: Store) -> None:
    lifecycle = await with_entities(store)
    lifecycle.change_runs = running_runs() - {"lifecycle/m03/m03-1"}

    found = await resubmission(store, lifecycle, lost_seconds=0).recover_lost_changes()

    assert (found, lifecycle.looked_again, lifecycle.entities_begun) == (["lifecycle/m03/m03-1"], ["m03"], [])


async def test_a_change_that_was_recorded_a_while_ago_may_have_no_run_yet(store: Store) -> None:
    lifecycle = await with_entities(store)

    assert not await resubmission(store, lifecycle, lost_seconds=3600).recover_lost_changes()


async def test_a_change_that_waits_behind_no_other_one_needs_its_run(store: Store) -> None:
    lifecycle = await with_entities(store)
    lifecycle.change_runs = running_runs()
    with store.begin() as repository:
        for name in ("m03", "m07"):
            repository.update_change(f"{name}-1", state=ChangeState.DONE)
        repository.put_pause("m07", ControlAsked(by="ann"))

    await resubmission(store, lifecycle, lost_seconds=0).recover_lost_changes()

    assert lifecycle.looked_again == ["m03"]


@pytest.mark.parametrize(
    ("kind", "before", "paused", "looks"),
    [
        (ChangeKind.ROLLBACK, None, True, True),
        (ChangeKind.RETIRE, None, True, True),
        (ChangeKind.REPAIR, None, True, True),
        (ChangeKind.APPLY, None, True, False),
        (ChangeKind.ROLLBACK, ChangeKind.APPLY, False, True),
        (ChangeKind.RETIRE, ChangeKind.MOVE, True, True),
        (ChangeKind.REPAIR, ChangeKind.APPLY, False, False),
        (ChangeKind.REPAIR, ChangeKind.APPLY, True, False),
        (ChangeKind.ROLLBACK, ChangeKind.RETIRE, False, False),
    ],
)
async def test_a_lost_change_that_passes_what_is_before_it_is_found(
    drained: Store, kind: ChangeKind, before: ChangeKind | None, paused: bool, looks: bool
) -> None:
    lifecycle = MemoryLifecycle()
    with drained.begin() as repository:
        if before is not None:
            repository.add_change("idle", before, change_id="before")
            repository.update_change("before", state=ChangeState.RUNNING)
            lifecycle.change_runs = {names.lifecycle_workflow_id("idle", "before")}
        repository.add_change("idle", ChangeKind.APPLY, change_id="blocked")
        repository.add_change("idle", kind, change_id="lost")
        for change_id in ("blocked", "lost"):
            repository.update_change(change_id, state=ChangeState.QUEUED)
        if paused:
            repository.put_pause("idle", ControlAsked(by="ann"))

    await resubmission(drained, lifecycle, lost_seconds=0).recover_lost_changes()

    assert lifecycle.looked_again == (["idle"] if looks else [])


async def test_lost_changes_are_looked_for_all_the_time(store: Store) -> None:
    lifecycle = await with_entities(store)
    lifecycle.change_runs = running_runs()

    async with resubmission(store, lifecycle, lost_seconds=0, every_seconds=0.005).running():
        await asyncio.sleep(0.1)
        assert lifecycle.looked_again == []
        lifecycle.change_runs.discard("lifecycle/m05/m05-1")
        await eventually(lambda: "m05" in lifecycle.looked_again)


async def test_a_watch_that_is_missing_begins_again_unless_its_system_was_polled(store: Store) -> None:
    lifecycle = await with_entities(store)
    spec = SourceSpec.model_validate({"name": "nightly", "part": "dense", "directory": {"path": "/in"}})
    with store.begin("m00") as unit:
        unit.put_sources("m00", [WatchedSource(spec=spec, part="dense", upstream="/in")])

    watch = names.watch_workflow_id("directory", "/in")
    assert await resubmission(store, lifecycle).look() == [watch]
    assert await resubmission(store, lifecycle).look() == [], "it runs"
    lifecycle.fleet_runs.clear()
    with store.begin_free(()) as unit:
        unit.note_listing(unit.source("m00", "nightly"), Listing(cursor="c"))
    assert await resubmission(store, lifecycle).look() == [], "it was polled"
    assert lifecycle.watches_woken == [("directory", "/in")]
