"""Models with acknowledged changes and no entity get one again: these and no others."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ipnext.api.lifecycle import MemoryLifecycle
from ipnext.api.resubmission import Resubmission
from ipnext.model.lifecycle import ChangeKind, ChangeState
from ipnext.model.manifest import parse_manifest
from ipnext.model.workflow_namespace import WorkflowNamespace
from ipnext.store.session import Store
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
    assert [change.id for change in first] == ["m03-1", "m07-1"]


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

    assert await resubmission(store, lifecycle).look() == ()


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

    assert await resubmission(store, lifecycle).look() == ()
    assert lifecycle.entities_begun == []


async def test_so_many_entities_are_asked_at_once_and_no_more(store: Store) -> None:
    class Busy(MemoryLifecycle):
        asked = most = 0

        async def entity_runs(self, _: str) -> bool:
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
