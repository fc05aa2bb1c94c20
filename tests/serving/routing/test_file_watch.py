"""What follows a directory is told of each new file at once, and otherwise left alone."""

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from ipnext.infra.process.atomic_file import replace_file
from serving.routing import file_watch
from serving.routing.file_watch import notices
from tests.waiting import PATIENCE_SECONDS, eventually

QUIET_SECONDS = 0.3


@pytest.fixture(autouse=True)
def seldom(monkeypatch):
    """Only a notice can bring what a test waits for."""
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 10 * PATIENCE_SECONDS)


class Followed:
    """Counts items while it follows."""

    def __init__(self):
        self.items = 0

    async def follow(self, directory):
        async for _ in notices(directory):
            self.items += 1

    async def more_than(self, items):
        await eventually(lambda: self.items > items)
        return self.items

    async def quiet(self):
        """Wait until there are no items for a while, and how many there were by then."""
        before = -1
        while before != self.items:
            before = self.items
            await asyncio.sleep(QUIET_SECONDS)
        return before


@asynccontextmanager
async def followed(directory):
    found = Followed()
    task = asyncio.create_task(found.follow(directory))
    yield found
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_the_first_item_comes_at_once_and_then_none_while_nothing_changes(tmp_path):
    async with followed(tmp_path) as found:
        await found.more_than(0)
        await asyncio.sleep(QUIET_SECONDS)
        assert found.items == 1


def written(path, content):
    path.write_bytes(content)
    return path


def renamed(path, content):
    """From elsewhere, so that the rename alone can be noticed."""
    written(path.parent.with_name("elsewhere"), content).rename(path)


@pytest.mark.parametrize("put", [replace_file, written, renamed])
async def test_each_file_that_is_put_into_it_is_told(tmp_path, put):
    async with followed(tmp_path) as found:
        for number in range(3):
            items = await found.quiet()
            put(tmp_path / "table.json", b"%d" % number)
            await found.more_than(items)


async def test_a_change_while_nobody_waits_is_not_missed(tmp_path):
    following = notices(tmp_path)
    await anext(following)
    written(tmp_path / "one", b"")
    await asyncio.sleep(QUIET_SECONDS)
    await asyncio.wait_for(anext(following), PATIENCE_SECONDS)
    await following.aclose()


async def test_the_directory_may_come_later_and_go_and_come_again(tmp_path):
    directory = tmp_path / "routes"
    async with followed(directory) as found:
        for _ in range(2):
            await found.more_than(found.items + 3)  # polled while it is not there
            directory.mkdir()
            items = await found.quiet()
            written(directory / "table.json", b"")
            await found.more_than(items)
            (directory / "table.json").unlink()
            directory.rmdir()


async def test_without_notices_it_is_polled(tmp_path, monkeypatch):
    def none_left():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(file_watch, "Inotify", none_left)
    async with followed(tmp_path) as found:
        await found.more_than(5)


async def test_one_that_gives_no_notices_is_looked_at_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.05)
    async with followed(tmp_path) as found:
        await found.more_than(5)
