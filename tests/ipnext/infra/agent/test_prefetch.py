"""An agent fetches snapshots before a deployment names them."""

import asyncio
import os
import sys
from types import SimpleNamespace

import psutil
import pytest

from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.infra.agent.prefetch import LANES, LINE_BYTES, MOST_WAITING, PrefetchProcess, PrefetchQueue
from tests.ipnext.conftest import write_snapshot
from tests.processes import command_line
from tests.waiting import eventually, until


@pytest.fixture
def store(tmp_path):
    return FileArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def stored(store, tmp_path):
    """Keep a snapshot with this content: its uri and its digest."""

    def keep(content):
        directory = tmp_path / content
        manifest = write_snapshot(directory, content.encode())
        return ingest_directory(store, directory).uri, manifest.digest

    return keep


@pytest.fixture
def agent(new_agent, store):
    return new_agent(artifacts=store.uri).start()


def fetching(agent):
    """The process that fetches ahead: the agent's own child."""
    found = psutil.Process(agent.process.pid).children()
    return next((child for child in found if "serving.snapshots.fetch_process" in command_line(child)), None)


def test_what_is_asked_for_lies_in_the_cache_of_the_region(agent, stored):
    asked = [stored("first"), stored("second")]

    agent.infra.prefetch("eu", [uri for uri, _ in asked])

    for _, digest in asked:
        until(
            lambda d=digest: (agent.state / "cache" / d / "file-0.txt").is_file(), why=lambda: "the snapshot is fetched"
        )


def test_one_that_can_not_be_fetched_holds_up_no_other(agent, stored, store):
    uri, digest = stored("good")

    agent.infra.prefetch("eu", [f"{store.uri}/snapshots/{'0' * 64}", "s3://elsewhere/snapshots/x", "nothing", uri])

    until((agent.state / "cache" / digest / "file-0.txt").is_file, why=lambda: "the last one is fetched")
    assert [path.name for path in (agent.state / "cache").iterdir()] == [digest]


def test_another_process_fetches_when_the_first_has_ended(agent, stored):
    (first, _), (second, digest) = stored("first"), stored("second")
    agent.infra.prefetch("eu", [first])
    until(lambda: fetching(agent), why=lambda: "a process fetches").kill()

    def fetched():
        agent.infra.prefetch("eu", [second])
        return (agent.state / "cache" / digest / "file-0.txt").is_file()

    until(fetched, why=lambda: "another process fetches")


@pytest.mark.parametrize("how", ["end", "kill"])
def test_it_ends_with_its_agent(agent, stored, how):
    uri, _ = stored("some")
    agent.infra.prefetch("eu", [uri])
    process = until(lambda: fetching(agent), why=lambda: "a process fetches")

    getattr(agent, how)()

    until(lambda: not process.is_running(), why=lambda: "no process is left behind")


def test_a_uri_that_no_store_has_is_refused_for_its_length(agent):
    answer = agent.client.post(f"http://127.0.0.1:{agent.port}/prefetches", json={"uris": ["x" * 3000]})
    assert answer.status_code == 400
    assert "uris" in answer.json()["message"]


class Babbling(PrefetchProcess):
    """Its process answers with more than a line may have, and stays."""

    @property
    def _command(self):
        answer = f"import sys, time; sys.stdin.readline(); print('x' * {3 * LINE_BYTES}, flush=True); time.sleep(600)"
        return [sys.executable, "-c", answer]


@pytest.mark.usefixtures("subprocesses")
async def test_a_process_that_can_not_be_understood_is_ended(tmp_path):
    babbling = Babbling(SimpleNamespace(cache=tmp_path, environment=lambda: dict(os.environ), store_variables={}))
    others = psutil.Process().children()  # servers that tests share

    assert "limit" in await babbling.fetch("file:///nowhere")

    assert [child for child in psutil.Process().children() if child not in others] == []


class Held(PrefetchQueue):
    """Fetches in memory; uris that begin with `hang` never come."""

    def __init__(self, **more):
        super().__init__(None, **more)
        self.fetched, self.asked, self.most, self._now, self.ended = [], [], 0, 0, 0

    def fetcher(self):
        held = self

        class Fetching:
            async def fetch(self, uri):
                held.asked.append(uri)
                held._now += 1
                held.most = max(held.most, held._now)
                try:
                    await asyncio.sleep(0 if not uri.startswith("hang") else 3600)
                finally:
                    held._now -= 1
                held.fetched.append(uri)
                return ""

            async def end(self):
                held.ended += 1

        return Fetching()


@pytest.fixture
async def held():
    prefetching = Held(patience_seconds=0)
    yield prefetching
    await prefetching.stop()


async def test_a_fetch_that_hangs_holds_up_its_own_batch_only(held):
    held.begin(["hang", "behind"])
    held.begin(["one", "two"])
    held.begin(["three"])

    await eventually(lambda: sorted(held.fetched) == ["one", "three", "two"])
    assert "behind" not in held.asked


async def test_no_more_batches_are_fetched_side_by_side_than_there_are_lanes(held):
    for number in range(LANES + 3):
        held.begin([f"hang-{number}"])

    await eventually(lambda: len(held.asked) == LANES)
    for _ in range(100):
        await asyncio.sleep(0)
    assert (held.most, held.asked) == (LANES, [f"hang-{number}" for number in range(LANES)])


async def test_a_snapshot_that_is_being_fetched_takes_no_second_lane(held):
    for _ in range(LANES + 1):
        held.begin(["hang"])
    held.begin(["other", "hang"])

    await eventually(lambda: held.fetched == ["other"])
    assert held.asked == ["hang", "other"]


async def test_one_lane_stays_for_the_next_batch_and_the_others_end(held):
    held.begin(["hang"])
    for number in range(LANES):
        held.begin([f"{number}"])
    await eventually(lambda: len(held.fetched) == LANES)
    await eventually(lambda: len(held._lanes) == 2)

    held.begin(["later"])
    await eventually(lambda: "later" in held.fetched)
    await held.stop()
    assert not held._lanes


async def test_what_is_beyond_the_bound_is_left_to_the_hosts(held):
    held.begin(f"hang-{number}" for number in range(MOST_WAITING + 10))
    assert len(held._known) == MOST_WAITING
    held.begin(["one more"])
    assert "one more" not in held._known
