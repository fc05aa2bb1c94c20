"""A drain of a host is a lease: it ends if neither an agent looks at the host nor a signal follows."""

import asyncio

from serving.http.drain_lease import DrainLease
from tests.waiting import eventually


async def test_a_drain_that_nothing_follows_is_over():
    drain = DrainLease(lease_seconds=0.05)
    assert not drain.on
    drain.begin()
    assert drain.on
    await eventually(lambda: not drain.on)


async def test_a_look_at_the_host_renews_the_lease_and_begins_none():
    drain = DrainLease(lease_seconds=1.0)
    drain.renew()
    assert not drain.on
    drain.begin()
    first = drain._over
    drain.renew()
    assert (drain.on, first.cancelled(), drain._over.cancelled()) == (True, True, False)
    drain.end()


async def test_a_host_that_ends_does_not_open_again():
    drain = DrainLease(lease_seconds=0.0)
    drain.begin()
    drain.end()
    drain.renew()
    for _ in range(3):
        await asyncio.sleep(0)
    assert drain.on
