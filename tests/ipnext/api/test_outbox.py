"""The outbox ends when it is told to, whenever that is."""

import asyncio
from pathlib import Path

import pytest

from ipnext.api.lifecycle import MemoryLifecycle
from ipnext.api.outbox import Outbox
from ipnext.store.session import Store
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
