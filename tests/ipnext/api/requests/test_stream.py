"""The stream of events: what subscribers hear, what they are spared, and where it ends."""

import asyncio
import contextlib

import httpx
import pytest

from ipnext.api.requests.shared_answers import SharedAnswers
from ipnext.api.requests.stream import BEAT, BUFFERED, Stream, UnfilteredListener
from ipnext.api.services.region_observer import RegionObserver
from ipnext.errors import RateLimited, Unavailable
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture
async def stream(rooms):
    observer = RegionObserver(rooms.infrastructure, keep_seconds=0)
    made = Stream(rooms.store, SharedAnswers(observer.states, rooms.store.revision).look, most=3, look_seconds=0.01)
    yield made
    await made.close()
    observer.close()


def happen(rooms, text):
    with rooms.store.begin() as unit:
        unit.add_event(None, "Test", text)


async def heard(messages, until):
    """What comes, up to the first message with this text."""
    found = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for message in messages:
            found.append(message.decode())
            if until in found[-1]:
                return found
    raise AssertionError(found)


def ids(found):
    return [int(line[4:]) for message in found for line in message.splitlines() if line.startswith("id: ")]


async def test_an_event_is_sent_with_its_ordinal_as_id(rooms, stream):
    messages = stream.subscribe(None)
    assert await heard(messages, "changed") == ["event: changed\ndata: {}\nretry: 2000\n\n"]
    happen(rooms, "one")
    happen(rooms, "two")
    found = await heard(messages, "two")
    assert ids(found) == [1, 2]
    await messages.aclose()


async def test_what_happened_before_is_not_sent_to_one_that_comes_for_the_first_time(rooms, stream):
    happen(rooms, "old")
    messages = stream.subscribe(None)
    await heard(messages, "changed")
    happen(rooms, "new")
    assert ids(await heard(messages, "new")) == [2]
    await messages.aclose()


async def test_one_that_comes_back_hears_each_event_since_its_last_one_once(rooms, stream):
    other = stream.subscribe(None)
    await heard(other, "changed")
    for text in ("one", "two", "three"):
        happen(rooms, text)
    await heard(other, "three")
    messages = stream.subscribe(1)
    assert ids(await heard(messages, "three")) == [2, 3]
    happen(rooms, "four")
    assert ids(await heard(messages, "four")) == [4]
    await messages.aclose()
    await other.aclose()


async def test_a_write_without_an_event_is_told_as_a_change(rooms, stream):
    messages = stream.subscribe(None)
    await heard(messages, "changed")
    happen(rooms, "first look")
    await heard(messages, "first look")
    rooms.seed("ranker")
    assert ids(await heard(messages, "event: changed")) == []
    await messages.aclose()


async def test_no_more_than_the_most_may_subscribe(rooms, stream):
    open_ones = [stream.subscribe(None) for _ in range(3)]
    for messages in open_ones:
        await heard(messages, "changed")
    assert stream.subscribers == 3
    with pytest.raises(Unavailable, match="3 streams are open"):
        stream.subscribe(None)
    await open_ones[0].aclose()
    again = stream.subscribe(None)
    await heard(again, "changed")
    for messages in (*open_ones[1:], again):
        await messages.aclose()
    assert stream.subscribers == 0


class Holder(UnfilteredListener):
    """A listener of a principal."""

    def __init__(self, holder):
        self.holder = holder


async def test_one_principal_takes_no_stream_of_the_others(rooms):
    stream = Stream(rooms.store, _nothing, most=8, look_seconds=PATIENCE_SECONDS)
    open_ones = [stream.subscribe(None, Holder("viewer")) for _ in range(2)]
    late = stream.subscribe(None, Holder("viewer"))
    for messages in open_ones:
        await heard(messages, "changed")
    assert [message async for message in late] == [], "asked for while there was room, and begun when there was none"
    with pytest.raises(RateLimited, match="2 streams of yours are open"):
        stream.subscribe(None, Holder("viewer"))
    others = [stream.subscribe(None, Holder(name)) for name in ("admin", "operator")]
    for messages in others:
        await heard(messages, "changed")
    await open_ones[0].aclose()
    await heard(again := stream.subscribe(None, Holder("viewer")), "changed")
    for messages in (open_ones[1], again, *others):
        await messages.aclose()
    assert stream.subscribers == 0
    await stream.close()


async def test_one_that_does_not_read_is_cut_off_after_its_buffer_and_holds_up_no_other(rooms, stream):
    slow, quick = stream.subscribe(None), stream.subscribe(None)
    await heard(slow, "changed")
    await heard(quick, "changed")
    for number in range(BUFFERED + 50):
        happen(rooms, f"event {number}.")
        if number % 50 == 0:
            await heard(quick, f"event {number}.")
    await heard(quick, f"event {BUFFERED + 49}.")
    async with asyncio.timeout(PATIENCE_SECONDS):
        left = [message async for message in slow]
    assert 0 < len(left) <= BUFFERED
    numbers = ids(message.decode() for message in left)
    back = stream.subscribe(numbers[-1])
    rest = ids(await heard(back, f"event {BUFFERED + 49}."))
    assert numbers + rest == list(range(1, BUFFERED + 51)), "by its id it misses none"
    for messages in (quick, back):
        await messages.aclose()


async def test_silence_is_broken_by_heartbeats(rooms):
    quiet = Stream(rooms.store, _nothing, look_seconds=PATIENCE_SECONDS, beat_seconds=0.01)
    messages = quiet.subscribe(None)
    await heard(messages, "changed")
    assert await heard(messages, ": beat") == [BEAT.decode()]
    await messages.aclose()
    await quiet.close()


async def test_every_stream_ends_with_the_api(rooms, stream):
    messages = stream.subscribe(None)
    await heard(messages, "changed")
    await stream.close()
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert [message async for message in messages if b"id:" in message] == []
    with pytest.raises(Unavailable):
        stream.subscribe(None)


async def test_nobody_looks_while_nobody_listens(rooms, stream):
    messages = stream.subscribe(None)
    await heard(messages, "changed")
    task = stream._task
    await messages.aclose()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await task
    assert stream.subscribers == 0


def test_the_stream_is_served_with_its_type_and_resumes_by_its_header(live):
    happen(live.rooms, "one")
    happen(live.rooms, "two")
    headers = {"Last-Event-ID": "1"}
    with (
        httpx.Client(timeout=PATIENCE_SECONDS, headers=live.rooms.headers) as client,
        client.stream("GET", f"{live.url}/v1/events/stream", headers=headers) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith("id: ")) == "id: 2"
    assert (
        httpx.get(f"{live.url}/v1/events/stream", headers={"Last-Event-ID": "x", **live.rooms.headers}).status_code
        == 400
    )


async def _nothing():
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    raise asyncio.CancelledError
