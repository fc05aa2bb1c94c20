"""The number that rises with each change: waits end at its rise, and at once where it has risen before."""

import asyncio

from ipnext.revision import Revision

LONG = 3600.0


def test_a_wait_for_a_number_that_has_passed_returns_at_once():
    async def run():
        revision = Revision()
        revision.rise()
        await revision.wait_change(1, wait_seconds=LONG)
        await revision.wait_change(0, wait_seconds=LONG)

    asyncio.run(run())


def test_all_waits_end_at_the_next_rise_and_not_before():
    async def run():
        revision = Revision()
        waits = [asyncio.create_task(revision.wait_change(1, wait_seconds=LONG)) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert not any(wait.done() for wait in waits)
        revision.rise()
        await asyncio.gather(*waits)
        again = asyncio.create_task(revision.wait_change(2, wait_seconds=LONG))
        await asyncio.sleep(0.01)
        assert not again.done()
        again.cancel()

    asyncio.run(run())


def test_a_wait_ends_when_its_time_is_over_and_leaves_the_others():
    async def run():
        revision = Revision()
        other = asyncio.create_task(revision.wait_change(1, wait_seconds=LONG))
        await revision.wait_change(1, wait_seconds=0.01)
        assert not other.done()
        revision.rise()
        await other

    asyncio.run(run())
