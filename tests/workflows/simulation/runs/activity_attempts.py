"""One activity until it has ended.

Attempts, retries and deadlines as the engine keeps them, and workers that die in between.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ipnext.devfile import read_devfile
from ipnext.errors import FenceLost, Unavailable
from ipnext.model.lifecycle.status import Reason
from tests.workflows.simulation.transitions.walk import Failed, Stopped

HEARTBEAT_SECONDS = read_devfile().timing.heartbeat_seconds
"""After this long a dead worker's activity is given to another one."""


BETWEEN = "traffic"
"""Steps of this beginning move one gateway of several."""


class Crashed(Exception):
    """The worker is gone: the attempt ended somewhere, and no one was told."""


class Cancelled(Exception):
    """The activity saw that it was cancelled."""


@dataclass
class Attempt:
    """What an activity knows of itself."""

    scheduled: float
    cancelled: Callable[[], bool]
    signals: tuple[Any, ...]
    fence: Callable[[], None] = lambda: None
    """Raises FenceLost if the run of the attempt may write nothing more."""
    late: bool = False
    """Its worker stood still for longer than its heartbeat may be late."""
    gone: Callable[[], bool] = lambda: False
    """Its run was ended from outside, and a heartbeat has told so."""

    def check(self) -> None:
        """Before each write, as activities/runtime/lease.py and fence.py: another one may have its work.

        Unavailable, FenceLost.
        """
        if self.late:
            msg = "the worker stood still, and another one may have its work"
            raise Unavailable(msg)
        if self.gone():
            msg = "the run of this activity has ended"
            raise FenceLost(msg)
        self.fence()


class AtWork(NamedTuple):
    """An attempt that is under way, and what it still has to do."""

    name: str
    attempt: Attempt
    steps: Generator[Any, Any, Any]


class OutOfTries(Failed):
    """No attempt of so many as an activity has came to its end."""


@dataclass(frozen=True)
class Limits:
    """`total` seconds for all attempts, or `tries` attempts.

    `keeps`: the activity ends itself then, and has a grace.
    """

    total: float | None = None
    tries: int | None = None
    first_retry: float = 0.5
    most_retry: float = 5.0
    keeps: bool = False

    @property
    def all(self) -> float | None:
        """Seconds after which it is given up."""
        return None if self.total is None else self.total + (30.0 if self.keeps else 0.0)


Body = Callable[[Attempt], Generator[Any, Any, Any]]


def perform(
    world: Any, run: Any, name: str, body: Body, limits: Limits, *, shielded: bool = False
) -> Generator[Any, Any, Any]:
    """What the activity answers. Failed where its time is over; Stopped where cancelling ended it."""
    clock, asked = world.clock, run.cancels
    scheduled, pause = clock.now, limits.first_retry
    end = float("inf") if limits.all is None else scheduled + limits.all
    signals = () if shielded else (run.signal,)
    why, tries = Unavailable("no attempt ended"), 0
    while True:
        tries += 1
        world.tell("activity", f"{run.name}: {name}")
        fence = partial(world.journal.check_fence, run.change.id, run.token)
        attempt = Attempt(scheduled, lambda: not shielded and run.cancels > asked, signals, fence)
        try:
            owner = clock.current
            at_work = run.at_work[owner] = AtWork(name, attempt, body(attempt))
            answer = yield from _run_attempt(world, run.change.model, *at_work)
        except Cancelled:
            raise Stopped from None
        except Crashed:
            wait = HEARTBEAT_SECONDS
        except Unavailable as error:
            world.tell("again", str(error))
            why, wait, pause = error, pause, min(pause * 2, limits.most_retry)
        else:
            run.at_work.pop(owner, None)
            world.invariants.changes.check_deadline(name, clock.now - scheduled, limits)
            return answer
        run.at_work.pop(owner, None)
        if tries == limits.tries:
            yield (wait, ())
            raise OutOfTries(Reason.INTERNAL_ERROR, str(why))
        if clock.now + wait > end:
            yield (max(0.0, end - clock.now), ())
            raise Failed(Reason.REGION_UNREACHABLE, str(why))
        until = clock.now + wait
        while clock.now < until:
            yield (until - clock.now, attempt.signals)
            if attempt.cancelled():
                raise Stopped


def _run_attempt(
    world: Any, model: str, name: str, attempt: Attempt, steps: Generator[Any, Any, Any]
) -> Generator[Any, Any, Any]:
    """Run one attempt, with the faults that are drawn for it. A step is what no crash divides."""
    fate, done = world.faults.fate(), 0
    while True:
        if fate.dies_after == done:
            yield from _end_worker(world, model, fate, name, attempt, steps)
        try:
            wish = next(steps)
        except StopIteration as ended:
            if fate.unheard:
                world.faults.count("unacknowledged")
                raise Crashed from None
            return ended.value
        if isinstance(wish, str):
            done += 1
            world.tell("step", f"{model}: {wish}")
            world.invariants.look(model, f"{name}: {wish}", between=wish.startswith(BETWEEN))
            yield world.faults.latency()
        else:
            yield wish


def linger(world: Any, run: Any, process: Any) -> None:
    """A run was ended from outside: the attempt that is under way goes on until its worker hears of that."""
    at_work = run.at_work.pop(process, None)
    if at_work is None:
        return
    name, attempt, steps = at_work
    heard = world.clock.now + world.terminations.heartbeat()
    attempt.gone = lambda: bool(world.clock.now >= heard)
    body = _continue_ended(world, run.change.model, name, (attempt, steps))
    world.clock.spawn(f"lingering {name}", body, after=world.terminations.latency())


def _continue_ended(
    world: Any, model: str, name: str, at_work: tuple[Attempt, Generator[Any, Any, Any]]
) -> Generator[Any, Any, None]:
    attempt, steps = at_work
    world.faults.count("an activity outlives its run")
    try:
        for wish in steps:
            if isinstance(wish, str):
                world.invariants.look(model, f"lingering {name}: {wish}", between=wish.startswith(BETWEEN))
                yield world.terminations.latency()
            elif attempt.gone():
                return
            else:
                yield (wish[0] if isinstance(wish, tuple) else wish, ())
    except (Cancelled, Failed, FenceLost, Unavailable):
        return


def _end_worker(
    world: Any, model: str, fate: Any, name: str, attempt: Attempt, steps: Generator[Any, Any, Any]
) -> Generator[Any, Any, Any]:
    """A killed worker does nothing more. One that only stood still goes on, beside the attempt that replaced it."""
    if fate.wakes_after:
        world.faults.count("stalled worker")
        attempt.late = fate.wakes_after > HEARTBEAT_SECONDS
        world.clock.spawn(f"late {name}", _continue_late(world, model, name, steps), after=fate.wakes_after)
    else:
        world.faults.count("worker killed")
        steps.close()
    raise Crashed
    yield


def _continue_late(world: Any, model: str, name: str, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    try:
        for wish in steps:
            if not isinstance(wish, str):
                return
            world.invariants.look(model, f"late {name}: {wish}", between=wish.startswith(BETWEEN))
            yield world.faults.latency()
    except (FenceLost, Unavailable):
        return
