"""The outbox ends when it is told to, whenever that is; and it submits only what is its own."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ipnext.api.workflow_engine.outbox import Outbox
from ipnext.api.workflow_engine.port import MemoryLifecycle
from ipnext.errors import Unavailable
from ipnext.model.lifecycle.workflow_namespace import WorkflowNamespace
from ipnext.store.store import Store
from tests.waiting import PATIENCE_SECONDS


@pytest.mark.parametrize("turns", range(12))
async def test_it_ends_even_where_a_wake_and_the_end_come_together(tmp_path: Path, turns: int) -> None:
    store = Store.open(f"sqlite:///{tmp_path / 'record.db'}")
    store.migrate()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            outbox = Outbox(store, MemoryLifecycle(), interval_seconds=60)
            async with outbox.running():
                await asyncio.sleep(0.05)
                outbox._woken.set()
                for _ in range(turns):
                    await asyncio.sleep(0)
    finally:
        store.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """With one recorded drain, which an outbox has to tell the engine of."""
    with closing(Store.open(f"sqlite:///{tmp_path / 'record.db'}")) as opened:
        opened.migrate()
        with opened.begin() as repository:
            repository.add_drain("eu")
        yield opened


async def test_it_submits_nothing_of_a_record_that_another_platform_has(store: Store) -> None:
    with store.begin() as repository:
        repository.belong_to(WorkflowNamespace(id="another", name="default", address="there:7233"))
    lifecycle = MemoryLifecycle()
    outbox = Outbox(store, lifecycle)
    for _ in range(2):
        assert not await outbox.submit_pending()
        assert outbox.foreign
    assert lifecycle.drains_told == []
    with store.read() as repository:
        assert repository.unsubmitted_drains(), "it waits for the platform that has the record"


async def test_it_takes_a_record_that_nobody_has_and_asks_again_while_the_engine_is_down(store: Store) -> None:
    lifecycle = MemoryLifecycle()
    outbox = Outbox(store, lifecycle)
    lifecycle.down = True
    assert not await outbox.submit_pending()
    assert not outbox.foreign
    lifecycle.down = False
    assert await outbox.submit_pending()
    assert lifecycle.drains_told == ["eu"]
    with store.read() as repository:
        assert repository.belongs_to() == await lifecycle.namespace()


class DeafTo(MemoryLifecycle):
    """Takes no signal for some regions."""

    def __init__(self, *regions: str) -> None:
        super().__init__()
        self.deaf_to = set(regions)

    async def signal_drain(self, region: str) -> None:
        if region in self.deaf_to:
            raise Unavailable("no worker")
        await super().signal_drain(region)


async def test_a_drain_that_is_not_taken_has_the_alarm_of_a_change_and_holds_up_no_other(store: Store) -> None:
    with store.begin() as repository:
        repository.add_drain("us")
    lifecycle = DeafTo("eu")
    outbox = Outbox(store, lifecycle, interval_seconds=0.01)

    def message() -> str:
        with store.read() as repository:
            drain = repository.drain("eu")
        assert drain is not None
        return drain.message

    while not message():
        await outbox.submit_pending()

    assert lifecycle.drains_told == ["us"]
    assert [attempt.change_id for attempt in outbox.stuck] == ["drain-eu-1"]
    assert message().startswith("not submitted yet: no worker, tried ")
    lifecycle.deaf_to.clear()
    while lifecycle.drains_told != ["us", "eu"] or outbox.stuck:
        await outbox.submit_pending()
    assert message() == ""


async def test_replans_that_are_not_taken_have_the_alarm_of_a_change(store: Store) -> None:
    with store.begin() as repository:
        repository.mark_submitted(repository.unsubmitted_drains())
        repository.add_replan("first", "manual")
        repository.add_replan("second", "manual")
    lifecycle = MemoryLifecycle()
    lifecycle.down = True
    outbox = Outbox(store, lifecycle, interval_seconds=0.01)
    outbox._ours = True  # the namespace was read before Temporal went away

    while not outbox.stuck:
        await outbox.submit_pending()

    assert [(attempt.change_id, attempt.tries) for attempt in outbox.stuck] == [("first", 3)]
    lifecycle.down = False
    while outbox.stuck:
        await outbox.submit_pending()
    assert lifecycle.replans_woken
    with store.read() as repository:
        assert not repository.due_replans()
