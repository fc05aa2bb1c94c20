"""The bounded queue before a part's passes.

What waits together is answered together, in bounds, and nothing else changes.
"""

import asyncio
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from ipnext.errors import DeadlineExceeded, InvalidInput, LoadFailed, Unavailable
from ipnext.model.registry.registry import Signature, TensorSpec
from serving.host.batching import InferenceQueue
from serving.host.served_part import BatchLimits, ServedPart, batch_limits
from tests.waiting import PATIENCE_SECONDS, eventually

FAR = time.monotonic() + 3600


class Doubling:
    """Doubles `x`. A negative number is refused; `gate` holds passes up."""

    rows_are_independent = True
    size_bytes = 8
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype="INT64", shape=(-1,)),),
        outputs=(TensorSpec(name="y", datatype="INT64", shape=(-1,)),),
    )

    def __init__(self):
        self.passes = []
        self.threads = set()
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()

    def infer(self, inputs):
        self.started.set()
        assert self.gate.wait(PATIENCE_SECONDS)
        self.passes.append(len(inputs["x"]))
        self.threads.add(threading.get_ident())
        if (inputs["x"] < 0).any():
            msg = "inputs: a negative number"
            raise InvalidInput(msg)
        return {"y": inputs["x"] * 2}

    def warm_up(self):
        pass

    def close(self):
        pass


@pytest.fixture
async def queue():
    queue = InferenceQueue(threads=1, waiting=8)
    yield queue
    queue.close()


@pytest.fixture
def part():
    return Doubling()


def ask(queue, served, *numbers, deadline=FAR, on_end=lambda: None):
    inputs = {"x": np.array(numbers)}
    return queue.submit(served, inputs, deadline=deadline, finish=lambda out: out["y"].tolist(), on_end=on_end)


def quick(part, **limits):
    """A part whose passes are known to be short."""
    served = ServedPart(part, BatchLimits(**limits))
    served.costs.note(512, 1e-6)
    return served


async def test_a_pass_of_unknown_length_runs_in_a_thread_and_a_short_one_in_the_loop(queue, part):
    ends = []
    assert await ask(queue, ServedPart(part, BatchLimits()), 3, on_end=lambda: ends.append(threading.get_ident())) == [
        6
    ]
    assert threading.get_ident() not in part.threads
    assert ends == [threading.get_ident()]
    part.threads.clear()
    assert await ask(queue, quick(part), 3) == [6]
    assert part.threads == {threading.get_ident()}
    assert queue.pending == 0


async def test_requests_that_wait_together_run_in_one_pass_and_each_gets_its_own_rows(queue, part):
    served = quick(part)
    works = [ask(queue, served, 1), ask(queue, served, 2, 3), ask(queue, served, 4)]
    assert await asyncio.gather(*works) == [[2], [4, 6], [8]]
    assert part.passes == [4]


async def test_requests_that_come_while_a_pass_runs_make_the_next_one(queue, part):
    served = ServedPart(part, BatchLimits())
    served.costs.note(512, 0.009)  # within the limit of 10 ms, too long for the loop
    part.gate.clear()
    first = ask(queue, served, 1)
    await asyncio.to_thread(part.started.wait)
    others = [ask(queue, served, number) for number in (2, 3, 4)]
    part.gate.set()
    assert await asyncio.gather(first, *others) == [[2], [4], [6], [8]]
    assert part.passes == [1, 3]


@pytest.mark.parametrize(
    ("limits", "passes"), [({"max_rows": 2}, [2, 1]), ({"latency_ms": 1e-9}, [1, 1, 1]), ({"off": True}, [1, 1, 1])]
)
async def test_a_pass_keeps_within_the_parts_limits(queue, part, limits, passes):
    served = quick(part, **limits)
    assert await asyncio.gather(*(ask(queue, served, number) for number in (1, 2, 3))) == [[2], [4], [6]]
    assert part.passes == passes


async def test_a_part_whose_rows_depend_on_each_other_runs_each_request_alone(queue, part):
    part.rows_are_independent = False
    served = quick(part)
    await asyncio.gather(*(ask(queue, served, number) for number in (1, 2)))
    assert part.passes == [1, 1]


async def test_another_shape_or_another_part_is_never_joined(queue, part):
    served, other = quick(part), quick(Doubling())
    wide = queue.submit(
        served, {"x": np.array([[1, 2]])}, deadline=FAR, finish=lambda out: out["y"].tolist(), on_end=lambda: None
    )
    works = [ask(queue, served, 1), wide, ask(queue, other, 5), ask(queue, served, 2)]
    assert await asyncio.gather(*works) == [[2], [[2, 4]], [10], [4]]
    assert part.passes == [1, 2]


async def test_one_bad_request_in_a_pass_fails_alone(queue, part):
    served = quick(part)
    good, bad, also_good = ask(queue, served, 1), ask(queue, served, -1), ask(queue, served, 3)
    assert await good == [2]
    with pytest.raises(InvalidInput, match="negative"):
        await bad
    assert await also_good == [6]


async def test_a_full_queue_refuses_and_does_not_tell_an_end(queue, part):
    part.gate.clear()
    works = [ask(queue, ServedPart(part, BatchLimits()), 1) for _ in range(9)]
    with pytest.raises(Unavailable, match="full with 9 requests"):
        ask(queue, ServedPart(part, BatchLimits()), 1, on_end=lambda: pytest.fail("must not be called"))
    part.gate.set()
    await asyncio.gather(*works)
    assert await ask(queue, quick(part), 7) == [14]


async def test_a_cancelled_request_that_waits_is_skipped_and_its_end_is_told(queue, part):
    part.gate.clear()
    served, ended = ServedPart(part, BatchLimits()), asyncio.Event()
    first = ask(queue, served, 1)
    await asyncio.to_thread(part.started.wait)
    second = ask(queue, served, 2, on_end=ended.set)
    second.cancel()
    part.gate.set()
    await first
    await asyncio.wait_for(ended.wait(), PATIENCE_SECONDS)
    assert part.passes == [1]


async def test_a_cancelled_request_that_runs_ends_later(queue, part):
    part.gate.clear()
    ended = asyncio.Event()
    work = ask(queue, ServedPart(part, BatchLimits()), 1, on_end=ended.set)
    await asyncio.to_thread(part.started.wait)
    work.cancel()
    await asyncio.sleep(0)
    assert not ended.is_set()
    assert queue.pending == 1
    part.gate.set()
    await asyncio.wait_for(ended.wait(), PATIENCE_SECONDS)
    assert queue.pending == 0


async def test_the_deadline_ends_a_request_that_runs_and_one_that_waits(part):
    """By a clock that stands still no deadline has passed before its timer is there, however slow the machine is."""
    queue = InferenceQueue(threads=1, waiting=8, clock=lambda: 0.0)
    part.gate.clear()
    served = ServedPart(part, BatchLimits())
    running = ask(queue, served, 1, deadline=0.05)
    await asyncio.to_thread(part.started.wait)
    waiting = ask(queue, served, 2, deadline=0.05)
    for work in (running, waiting):
        with pytest.raises(DeadlineExceeded):
            await work
    part.gate.set()
    late = ask(queue, quick(part), 3, deadline=-1.0)
    with pytest.raises(DeadlineExceeded):
        await late
    await eventually(lambda: not queue.pending)
    assert part.passes == [1]
    queue.close()


def test_limits_come_from_the_parts_settings():
    assert batch_limits({}) == BatchLimits()
    assert batch_limits({"batching": {"maxRows": 8, "latencyMs": 2.5}}) == BatchLimits(max_rows=8, latency_ms=2.5)
    assert batch_limits({"batching": False}).off
    for wrong in (3, {"rows": 1}, {"maxRows": 0}, {"maxRows": 1.5}, {"latencyMs": "x"}):
        with pytest.raises(LoadFailed, match=r"settings\.batching"):
            batch_limits({"batching": wrong})


async def test_a_short_pass_runs_at_once_when_nothing_waits_and_not_right_after_another(queue, part, monkeypatch):
    clock = SimpleNamespace(
        perf_counter=lambda: 0.0, monotonic=time.monotonic
    )  # else, a busy machine's pass takes long
    monkeypatch.setattr("serving.host.batching.time", clock)
    served, inputs = quick(part), {"x": np.array([1, 2])}
    assert queue.is_free_for(served, inputs)
    assert queue.run(served, inputs)["y"].tolist() == [2, 4]
    assert not queue.is_free_for(served, inputs), "what came meanwhile has not been read yet"
    for _ in range(3):
        await asyncio.sleep(0)
    assert queue.is_free_for(served, inputs)
    assert (served.tally.pass_requests.count, served.tally.queued.count) == (1, 1)


async def test_requests_read_together_after_a_pass_are_joined(queue, part):
    served = quick(part)
    queue.run(served, {"x": np.array([1])})
    works = [ask(queue, served, number) for number in (1, 2, 3)]
    assert await asyncio.gather(*works) == [[2], [4], [6]]
    assert part.passes == [1, 3]


async def test_the_queue_is_free_for_no_pass_of_unknown_length_nor_while_another_waits(queue, part):
    inputs = {"x": np.array([1])}
    assert not queue.is_free_for(ServedPart(part, BatchLimits()), inputs)
    served = quick(part)
    work = ask(queue, served, 1)
    assert not queue.is_free_for(served, inputs)
    await work


async def test_a_pass_that_fails_at_once_raises_and_leaves_the_queue_as_it_was(queue, part):
    served = quick(part)
    with pytest.raises(InvalidInput, match="negative"):
        queue.run(served, {"x": np.array([-1])})
    assert queue.pending == 0
    assert await ask(queue, served, 3) == [6]


async def test_a_crowd_of_one_part_does_not_keep_anothers_request_waiting(queue, part):
    crowded, few = ServedPart(part, BatchLimits(off=True)), ServedPart(Doubling(), BatchLimits())
    part.gate.clear()
    crowd = [ask(queue, crowded, number) for number in range(6)]
    one = ask(queue, few, 5)
    assert await asyncio.to_thread(part.started.wait, 20)
    part.gate.set()
    assert await one == [10]
    assert sum(work.done() for work in crowd) <= 2
    assert await asyncio.gather(*crowd) == [[2 * number] for number in range(6)]


async def test_a_full_queue_refuses_the_newest_of_the_crowd_rather_than_another_parts_request(queue, part):
    crowded, few = ServedPart(part, BatchLimits(off=True)), ServedPart(Doubling(), BatchLimits())
    part.gate.clear()
    ends = []
    crowd = [ask(queue, crowded, number, on_end=lambda n=number: ends.append(n)) for number in range(9)]
    await asyncio.to_thread(part.started.wait, 20)
    one = ask(queue, few, 5)
    part.gate.set()
    assert await one == [10]
    with pytest.raises(Unavailable, match="full"):
        await crowd[-1]
    assert await asyncio.gather(*crowd[:-1]) == [[2 * number] for number in range(8)]
    assert sorted(ends) == list(range(9))
    assert queue.pending == 0
