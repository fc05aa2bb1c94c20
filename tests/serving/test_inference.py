"""The bounded queue before the inference threads."""

import asyncio
import threading

import pytest

from ipnext.errors import Unavailable
from serving.inference import InferenceQueue


@pytest.fixture
def queue():
    queue = InferenceQueue(threads=1, waiting=2)
    yield queue
    queue.close()


async def test_a_result_comes_back_and_the_end_is_told_once_in_the_loop(queue):
    ends = []
    loop_thread = threading.get_ident()
    work = queue.submit(threading.get_ident, on_end=lambda: ends.append(threading.get_ident()))
    assert await work != loop_thread
    assert ends == [loop_thread]
    assert queue.pending == 0


async def test_an_error_comes_back(queue):
    ends = []
    with pytest.raises(ZeroDivisionError):
        await queue.submit(lambda: 1 // 0, on_end=lambda: ends.append(1))
    assert ends == [1]


async def test_a_full_queue_refuses_and_does_not_tell_an_end(queue):
    gate = threading.Event()
    works = [queue.submit(gate.wait, on_end=lambda: None) for _ in range(3)]
    with pytest.raises(Unavailable, match="full with 3 requests"):
        queue.submit(gate.wait, on_end=lambda: pytest.fail("must not be called"))
    gate.set()
    await asyncio.gather(*works)
    assert await queue.submit(lambda: 7, on_end=lambda: None) == 7


async def test_a_cancelled_call_that_waits_is_skipped_and_its_end_is_told(queue):
    gate, ran, ended = threading.Event(), [], asyncio.Event()
    first = queue.submit(gate.wait, on_end=lambda: None)
    second = queue.submit(lambda: ran.append(1), on_end=ended.set)
    second.cancel()
    gate.set()
    await first
    await asyncio.wait_for(ended.wait(), 5)
    assert not ran


async def test_a_cancelled_call_that_runs_ends_later(queue):
    gate, started, ended = threading.Event(), threading.Event(), asyncio.Event()

    def call():
        started.set()
        gate.wait()

    work = queue.submit(call, on_end=ended.set)
    await asyncio.to_thread(started.wait)
    work.cancel()
    await asyncio.sleep(0)
    assert not ended.is_set()
    assert queue.pending == 1
    gate.set()
    await asyncio.wait_for(ended.wait(), 5)
    assert queue.pending == 0
