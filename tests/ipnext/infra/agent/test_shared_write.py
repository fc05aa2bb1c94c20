"""Many callers, few writes.

None returns before its own change is in force, and an error is told to those it concerns.
"""

import asyncio

import pytest

from ipnext.errors import Unavailable
from ipnext.infra.agent import shared_write
from ipnext.infra.agent.shared_write import SharedWrite
from tests.waiting import eventually


class File:
    """Holds the desired state as it was written, and a reader that follows only as far as it is let."""

    def __init__(self):
        self.desired, self.written, self.followed = set(), [], asyncio.Condition()
        self.in_force, self.faults = 0, {}

    def write(self):
        self.written.append(frozenset(self.desired))
        version = len(self.written)
        if version in self.faults:
            raise self.faults[version]
        return version

    async def confirmed(self, version):
        async with self.followed:
            await self.followed.wait_for(lambda: self.in_force >= version)

    async def follow(self, version):
        async with self.followed:
            self.in_force = version
            self.followed.notify_all()


async def put(file, shared, name):
    """Return what is in force when the caller is answered."""
    file.desired.add(name)
    await shared.done()
    return file.written[file.in_force - 1]


async def ask(file, shared, names):
    tasks = [asyncio.create_task(put(file, shared, name)) for name in names]
    await asyncio.sleep(0)
    return tasks


def test_callers_that_come_while_a_write_is_under_way_share_the_next_one():
    async def run():
        file = File()
        shared = SharedWrite(file.write, file.confirmed)
        first = await ask(file, shared, ["a"])
        await eventually(lambda: file.written)
        others = await ask(file, shared, [f"m{n}" for n in range(50)])
        await file.follow(1)
        await asyncio.gather(*first)
        await eventually(lambda: len(file.written) == 2)
        assert not any(one.done() for one in others)
        await file.follow(2)
        answers = await asyncio.gather(*others)
        assert all(f"m{n}" in answer for n, answer in enumerate(answers))
        assert file.written == [frozenset({"a"}), frozenset(file.desired)]

    asyncio.run(run())


def test_a_caller_does_not_return_with_a_write_that_began_before_it_came():
    async def run():
        file = File()
        shared = SharedWrite(file.write, file.confirmed)
        first = await ask(file, shared, ["a"])
        await eventually(lambda: file.written)
        late = await ask(file, shared, ["b"])
        await file.follow(1)
        await asyncio.gather(*first)
        await asyncio.sleep(0.01)
        assert not late[0].done()
        await file.follow(2)
        assert "b" in await late[0]

    asyncio.run(run())


def test_a_failed_write_is_told_to_those_that_share_it_and_the_next_one_is_made():
    async def run():
        file = File()
        file.faults[2] = OSError("disk full")
        shared = SharedWrite(file.write, file.confirmed)
        first = await ask(file, shared, ["a"])
        await eventually(lambda: file.written)
        failed = await ask(file, shared, ["b", "c"])
        await file.follow(1)
        await asyncio.gather(*first)
        told = await asyncio.gather(*failed, return_exceptions=True)
        assert [str(one) for one in told] == ["disk full", "disk full"]
        again = await ask(file, shared, ["d"])
        await file.follow(3)
        assert await again[0] == {"a", "b", "c", "d"}

    asyncio.run(run())


def test_a_reader_that_does_not_follow_holds_up_the_next_file_only_for_a_while(monkeypatch):
    monkeypatch.setattr(shared_write, "HEAD_START_SECONDS", 0.01)

    async def run():
        file = File()
        shared = SharedWrite(file.write, file.confirmed)
        first = await ask(file, shared, ["a"])
        await eventually(lambda: file.written)
        later = await ask(file, shared, ["b"])
        await eventually(lambda: len(file.written) == 2)
        await file.follow(2)
        await asyncio.gather(*first, *later)

    asyncio.run(run())


def test_a_confirmation_that_fails_is_told_to_its_callers_and_to_no_later_one():
    async def run():
        file, refused = File(), asyncio.Event()

        async def confirmed(version):
            if version == 1:
                await refused.wait()
                msg = "does not follow"
                raise Unavailable(msg)

        shared = SharedWrite(file.write, confirmed)
        first = await ask(file, shared, ["a"])
        await eventually(lambda: file.written)
        later = await ask(file, shared, ["b"])
        refused.set()
        with pytest.raises(Unavailable, match="does not follow"):
            await first[0]
        await later[0]

    asyncio.run(run())


def test_a_caller_that_is_cancelled_stops_no_write_that_others_share():
    async def run():
        file = File()
        shared = SharedWrite(file.write, file.confirmed)
        leaving, staying = await ask(file, shared, ["a", "b"])
        await eventually(lambda: file.written)
        leaving.cancel()
        await file.follow(1)
        assert await staying == {"a", "b"}

    asyncio.run(run())
