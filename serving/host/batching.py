"""The bounded queue before a part's forward passes. Requests that wait at the same time share a pass.

No request is delayed to fill a batch, and none by the backlog of another part (serving.host.fair_queue). Requests
gather while a pass runs. If the part's rows are independent, the next pass takes as many of them as its limits allow. A
pass that is predicted to be short runs in the event loop, because the handoff to a thread and back costs about as much.
A longer pass, or one without a prediction, runs in a thread.
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
"""A pass predicted to be shorter runs in the event loop, which reads and answers nothing else until it ends."""

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
    """Return a key that is equal for requests that can share a pass; unique if an input has another number of rows."""
    if any(array.shape[:1] != (rows,) for array in inputs.values()):
        return object()
    return tuple(array.shape[1:] for array in inputs.values())


class InferenceQueue:
    """Runs at most `threads` passes at once and queues at most `waiting` further requests. Used from one event loop."""

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
        """Whether the event loop has read all requests that arrived during the last pass."""
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
        """Queue a request whose inputs fit the part's signature.

        The future gives the result of `finish` on its outputs. If `begun` is given, that pass is completed and shared
        with no other request.

        Unavailable if the queue is full, unless a part with a longer queue can drop its newest request. `deadline` is a
        time of the clock; the future fails with DeadlineExceeded if it passes. The queue calls `on_end` once, in the
        event loop, when the part has finished the request or the request is skipped. Cancelling the future skips a
        waiting request; a pass that runs cannot be stopped and ends later.
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
        """Whether a request can run at once.

        Nothing waits or has just arrived, and its pass is predicted to be short.
        """
        return self._rested and not self._pending and self._is_short(served, _rows(inputs))

    def run(self, served: ServedPart, inputs: Arrays, begun: StartedPass | None = None) -> Arrays:
        """Run a request in the event loop, if `is_free_for` is true, and return its outputs.

        Raises the part's errors.
        """
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
        """Let the event loop read requests that arrived during a pass before the next one, so that they share it."""
        if self._rested:
            self._rested = False
            self._loop.call_soon(self._loop.call_soon, self._rest_over)

    def _rest_over(self) -> None:
        self._rested = True

    def _is_short(self, served: ServedPart, rows: int) -> bool:
        predicted = served.costs.predict(rows)
        return predicted is not None and predicted <= INLINE_SECONDS

    def begin(self, served: ServedPart, inputs: Arrays, late: frozenset[str]) -> StartedPass | None:
        """Compute the share of a pass that needs no late input.

        This is done if the queue is idle and the whole pass is predicted to be short.

        `inputs` are all other inputs, and fit the signature. None if the pass cannot begin, also if the part refuses
        the inputs: `submit` then reports the error.
        """
        if self._pending or not self._is_short(served, _rows(inputs)):
            return None
        staged = served.stage(late)
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
        """Run the pump after the event loop's pending reads, so that requests that arrive together share a pass."""
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
            done.add_done_callback(partial(self._finish_batch, batch, began))
        self._watch(self._waiting)

    def _runs_inline(self, batch: Sequence[_Job[Any]]) -> bool:
        return self._is_short(batch[0].served, sum(job.rows for job in batch))

    def _take(self) -> list[_Job[Any]]:
        """Return the oldest request of the part whose turn it is, and those that can share its pass.

        Empty if all requests of the part were cancelled or are past their deadline.
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
        """Set deadline timers for requests that keep waiting; a pass in the event loop needs no such timer."""
        for job in jobs:
            if job.timer is None:
                job.timer = self._loop.call_later(max(0.0, job.deadline - self._clock()), job.expire)

    def _finish_batch(
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
    """Return each request's outputs or error. If a joint pass fails, each request is run again alone."""
    if len(batch) == 1:
        return [_alone(batch[0])]
    served = batch[0].served
    joined = {name: np.concatenate([job.inputs[name] for job in batch]) for name in batch[0].inputs}
    began = time.perf_counter()
    try:
        outputs = served.part.infer(joined)
    except Exception:  # noqa: BLE001  # any error is judged request by request
        return [_alone(job) for job in batch]
    served.costs.note(sum(job.rows for job in batch), time.perf_counter() - began)
    return _split_outputs(batch, outputs)


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


def _split_outputs(batch: Sequence[_Job[Any]], outputs: Arrays) -> list[Arrays | Exception]:
    parted: list[Arrays | Exception] = []
    start = 0
    for job in batch:
        end = start + job.rows
        parted.append({name: array[start:end] for name, array in outputs.items()})
        start = end
    return parted
