"""The queue before a part's forward passes: bounded, and what waits together is answered together.

No request waits for others to come, and none for the crowd of another part (serving.host.fair_queue). While a pass runs, requests gather; the next pass takes as many of them as fit into
the part's limits, where the part answers each row by itself. A pass that is known to be short runs in the event loop,
for handing it to a thread and back takes about as long; a longer one, or one not yet known, runs in a thread.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Generic, TypeVar

import numpy as np

from ipnext.errors import DeadlineExceeded, IPnextError, Unavailable
from serving.host.fair_queue import FairQueue
from serving.host.served_part import ServedPart, StartedPass
from serving.protocol.tensors import Array

INLINE_SECONDS: Final = 0.005
"""A pass predicted to be shorter runs in the event loop: so long nothing else is read or answered."""

Arrays = Mapping[str, Array]
R = TypeVar("R")


class _Job(Generic[R]):
    __slots__ = (
        "begun",
        "deadline",
        "finish",
        "form",
        "future",
        "inputs",
        "on_end",
        "queued_at",
        "rows",
        "served",
        "timer",
    )

    def __init__(
        self,
        served: ServedPart,
        inputs: Arrays,
        *,
        deadline: float,
        finish: Callable[[Arrays], R],
        on_end: Callable[[], None],
        begun: StartedPass | None,
    ) -> None:
        self.begun = begun
        self.served = served
        self.queued_at = 0.0
        self.inputs = inputs
        self.deadline = deadline
        self.finish = finish
        self.on_end = on_end
        self.future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle | None = None
        self.rows = _rows(inputs)
        self.form = _form(inputs, self.rows) if begun is None else object()

    @property
    def part(self) -> ServedPart:
        return self.served

    def settle(self, outcome: Arrays | Exception) -> None:
        if self.future.done():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
            return
        try:
            self.future.set_result(self.finish(outcome))
        except Exception as error:  # noqa: BLE001  # handed to the request, which judges it
            self.future.set_exception(error)

    def expire(self) -> None:
        if not self.future.done():
            self.future.set_exception(DeadlineExceeded("the deadline passed"))


def _rows(inputs: Arrays) -> int:
    return max((array.shape[0] for array in inputs.values() if array.ndim), default=1)


def _form(inputs: Arrays, rows: int) -> object:
    """Equal for requests that can be joined; an input of another number of rows makes a request stand alone."""
    if any(array.shape[:1] != (rows,) for array in inputs.values()):
        return object()
    return tuple(array.shape[1:] for array in inputs.values())


class InferenceQueue:
    """Runs passes, at most `threads` at once; at most `waiting` requests more may wait. Used from one event loop."""

    def __init__(self, *, threads: int = 1, waiting: int = 256, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="inference")
        self._threads = threads
        self._limit = threads + waiting
        self._clock = clock
        self._waiting: FairQueue[_Job[Any]] = FairQueue()
        self._pending = 0
        self._running = 0
        self._scheduled = False
        self._rested = True
        """Whether all that had come while the last pass ran has been read."""
        self._loop = asyncio.get_running_loop()

    @property
    def pending(self) -> int:
        """Requests that run or wait."""
        return self._pending

    def submit(
        self,
        served: ServedPart,
        inputs: Arrays,
        *,
        deadline: float,
        finish: Callable[[Arrays], R],
        on_end: Callable[[], None],
        begun: StartedPass | None = None,
    ) -> asyncio.Future[R]:
        """What `finish` makes of the outputs of a request whose inputs fit the part's signature.

        A pass that has `begun` goes on from there, by itself.

        Unavailable when the queue is full; the newest request of a part with more that wait makes place. `deadline` is a time of the clock; the future is DeadlineExceeded then.
        `on_end` is called once, in the event loop, when the part is done with the request or it is skipped. Cancelling
        the future skips a request that waits; a pass that runs cannot be stopped and ends later.
        """
        if self._pending >= self._limit:
            self._make_place(served)
        job = _Job(served, inputs, deadline=deadline, finish=finish, on_end=on_end, begun=begun)
        job.queued_at = self._clock()
        self._pending += 1
        self._waiting.add(job)
        if self._running < self._threads:
            self._schedule()
        else:
            self._watch([job])
        return job.future

    def _make_place(self, served: ServedPart) -> None:
        full = Unavailable(f"the queue is full with {self._pending} requests; try again")
        newest = self._waiting.shed(served)
        if newest is None:
            raise full
        newest.settle(full)
        self._skip(newest)

    def is_free_for(self, served: ServedPart, inputs: Arrays) -> bool:
        """Whether a request may be answered at once: nothing waits or has just come, and its pass is known to be short."""
        return self._rested and not self._pending and self._is_short(served, _rows(inputs))

    def run(self, served: ServedPart, inputs: Arrays, begun: StartedPass | None = None) -> Arrays:
        """The outputs of a request that the queue is free for. Raises what the part raises."""
        rows, tally = _rows(inputs), served.tally
        began = time.perf_counter()
        try:
            outputs = served.part.infer(inputs) if begun is None else begun.staged.complete(begun.state, inputs)
        finally:
            self._rest()
        seconds = time.perf_counter() - began
        self._waiting.rest()
        tally.queued.observe(0.0)
        tally.note_pass(1, rows, seconds)
        served.costs.note(rows, seconds + (0.0 if begun is None else begun.seconds))
        return outputs

    def _rest(self) -> None:
        """Requests that came during a pass are read in the next turn of the event loop; those are to be joined."""
        if self._rested:
            self._rested = False
            self._loop.call_soon(self._loop.call_soon, self._rest_over)

    def _rest_over(self) -> None:
        self._rested = True

    def _is_short(self, served: ServedPart, rows: int) -> bool:
        predicted = served.costs.predict(rows)
        return predicted is not None and predicted <= INLINE_SECONDS

    def begin(self, served: ServedPart, inputs: Arrays, late: frozenset[str]) -> StartedPass | None:
        """Compute what needs no late input, if nothing else has to be done now and the whole pass is known to be short.

        `inputs` are all the others, and fit the signature. None also where the part refuses them; `submit` will say why.
        """
        if self._pending or not self._is_short(served, _rows(inputs)):
            return None
        staged = served.staged(late)
        if staged is None:
            return None
        began = time.perf_counter()
        try:
            state = staged.begin(inputs)
        except IPnextError:
            return None
        return StartedPass(staged, state, time.perf_counter() - began)

    def close(self) -> None:
        """Take no more passes; those that run finish in the background."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _schedule(self) -> None:
        """After what else the event loop has to read now: requests that came together are answered together."""
        if not self._scheduled and self._running < self._threads:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        while self._waiting and self._running < self._threads:
            batch = self._take()
            if not batch:
                continue
            began = self._clock()
            if self._runs_inline(batch):
                self._deliver(batch, began, _outcomes(batch))
                if self._waiting:
                    self._schedule()
                break
            self._running += 1
            self._watch(batch)
            done = self._loop.run_in_executor(self._pool, _outcomes, batch)
            done.add_done_callback(partial(self._delivered, batch, began))
        self._watch(self._waiting)

    def _runs_inline(self, batch: Sequence[_Job[Any]]) -> bool:
        return self._is_short(batch[0].served, sum(job.rows for job in batch))

    def _take(self) -> list[_Job[Any]]:
        """Of the part whose turn it is, the request that waits longest, and those that can be answered together with it.

        None where all of the part's are over.
        """
        now = self._clock()
        batch: list[_Job[Any]] = []
        left: deque[_Job[Any]] = deque()
        rows = 0
        line = self._waiting.next()
        while line:
            job = line.popleft()
            if job.future.done() or job.deadline <= now:
                self._skip(job)
            elif not batch or (_alike(batch[0], job) and _fits(job.served, rows + job.rows)):
                batch.append(job)
                rows += job.rows
                job.served.tally.queued.observe(now - job.queued_at)
                if not job.served.joins:
                    break
            else:
                left.append(job)
        left.extend(line)
        self._waiting.put_back(left)
        return batch

    def _skip(self, job: _Job[Any]) -> None:
        self._pending -= 1
        self._end(job)
        job.expire()

    def _end(self, job: _Job[Any]) -> None:
        if job.timer is not None:
            job.timer.cancel()
        job.on_end()

    def _watch(self, jobs: Iterable[_Job[Any]]) -> None:
        """Tell those that wait on when their time is over; a pass in the event loop needs no such timer."""
        for job in jobs:
            if job.timer is None:
                job.timer = self._loop.call_later(max(0.0, job.deadline - self._clock()), job.expire)

    def _delivered(
        self, batch: Sequence[_Job[Any]], began: float, done: asyncio.Future[list[Arrays | Exception]]
    ) -> None:
        self._running -= 1
        if not done.cancelled():
            self._deliver(batch, began, done.result())
        self._schedule()

    def _deliver(self, batch: Sequence[_Job[Any]], began: float, outcomes: Sequence[Arrays | Exception]) -> None:
        self._rest()
        served, seconds = batch[0].served, self._clock() - began
        self._waiting.spend(served, seconds)
        served.tally.note_pass(len(batch), sum(job.rows for job in batch), seconds)
        self._pending -= len(batch)
        for job, outcome in zip(batch, outcomes, strict=True):
            job.settle(outcome)
            self._end(job)


def _alike(first: _Job[Any], job: _Job[Any]) -> bool:
    return first.form == job.form


def _fits(served: ServedPart, rows: int) -> bool:
    if rows > served.limits.max_rows:
        return False
    predicted = served.costs.predict(rows)
    return predicted is not None and predicted * 1000 <= served.limits.latency_ms


def _outcomes(batch: Sequence[_Job[Any]]) -> list[Arrays | Exception]:
    """Each request's outputs, or why it has none. A pass that fails is run again for each request by itself."""
    if len(batch) == 1:
        return [_alone(batch[0])]
    served = batch[0].served
    joined = {name: np.concatenate([job.inputs[name] for job in batch]) for name in batch[0].inputs}
    began = time.perf_counter()
    try:
        outputs = served.part.infer(joined)
    except Exception:  # noqa: BLE001  # whatever it is, it is judged request by request
        return [_alone(job) for job in batch]
    served.costs.note(sum(job.rows for job in batch), time.perf_counter() - began)
    return _parted(batch, outputs)


def _alone(job: _Job[Any]) -> Arrays | Exception:
    began = time.perf_counter()
    try:
        begun = job.begun
        outputs = job.served.part.infer(job.inputs) if begun is None else begun.staged.complete(begun.state, job.inputs)
    except Exception as error:  # noqa: BLE001  # handed to the request, which judges it
        return error
    earlier = 0.0 if begun is None else begun.seconds
    job.served.costs.note(job.rows, time.perf_counter() - began + earlier)
    return outputs


def _parted(batch: Sequence[_Job[Any]], outputs: Arrays) -> list[Arrays | Exception]:
    parted: list[Arrays | Exception] = []
    start = 0
    for job in batch:
        end = start + job.rows
        parted.append({name: array[start:end] for name, array in outputs.items()})
        start = end
    return parted
