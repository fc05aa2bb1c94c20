"""The walk through a transition, and its revert, as a pure generator.

It asks for activities and timers and takes their ends. The order is that of workflows/transition.py; a test holds it to
the recorded histories.
"""

from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

from activities.state.wave_state import Back
from ipnext.model.lifecycle.changes.transition_run import WaveResult
from ipnext.model.lifecycle.status import Reason
from workflows import policies

BACK = ("ensure_capacity", "shift_traffic", "release_capacity")
WAITS = frozenset({"timer", "pause", "person"})
"""Commands that only wait: for the time, for the end of a pause, for an approval."""


def never() -> bool:
    """Nobody asks for anything."""
    return False


class Way(NamedTuple):
    """What a walk knows of its transition, and what it hears. Named as in workflows/transition.py."""

    waves: int
    back: Back = "at_once"
    asks: tuple[bool, ...] = ()
    """Waves that wait for a person."""
    patience: float = 0.0
    """Seconds that a person is waited for."""
    stopping: Callable[[], bool] = never
    """It was asked to stop, or gives way to a newer change."""
    held: Callable[[], bool] = never
    promoted: Callable[[], bool] = never


class Command(NamedTuple):
    """What is asked for next. A wait has its seconds."""

    name: str
    index: int
    back: bool = False
    baseline: Any = ()
    seconds: float = 0.0
    early: bool = False
    by_waves: bool = False


class Walked(NamedTuple):
    """How the walk ended."""

    done: bool
    waves_done: int
    reason: Reason = Reason.SUCCEEDED
    message: str = ""


class Failed(Exception):
    """An activity that no retry healed."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Stopped(Exception):
    """The run was cancelled, and what it waited for has ended."""


Walk = Generator[Command, Any, Walked]
Step = Generator[Command, Any, WaveResult]


def walk(way: Way) -> Walk:
    """All waves, or some and then back."""
    for index in range(way.waves):
        failed = yield from _outcome(way, index)
        if failed is not None:
            return (yield from walk_back(way, index, failed))
    return Walked(done=True, waves_done=way.waves)


def _outcome(way: Way, index: int) -> Generator[Command, Any, WaveResult | None]:
    try:
        result = yield from _wave(way, index)
    except Failed as error:
        return _stop_result() if way.stopping() else WaveResult(ok=False, reason=error.reason, message=str(error))
    except Stopped:
        return _stop_result()
    if result.ok and way.stopping() and index + 1 < way.waves:
        return _stop_result()
    return None if result.ok else result


def _wave(way: Way, index: int) -> Step:
    stop = yield from _wait_for_resume(way, index)
    if stop is not None:
        return stop
    result = yield Command("ensure_capacity", index)
    if not result.ok:
        return result
    stop = yield from _wait_for_resume(way, index)
    if stop is not None:
        return stop
    shifted = yield Command("shift_traffic", index)
    result = (yield from _watch(way, index, shifted)) if shifted.ok else shifted
    if result.ok and index < len(way.asks) and way.asks[index] and not way.promoted():
        result = yield from _approval(way, index, shifted)
    if not result.ok:
        return result
    try:
        return (yield Command("release_capacity", index))
    except Failed:
        if index + 1 < way.waves:
            raise
        return WaveResult(ok=True)


def _wait_for_resume(way: Way, index: int) -> Generator[Command, Any, WaveResult | None]:
    if way.stopping():
        return _stop_result()
    if not way.held() or (yield from _until(way, Command("pause", index, seconds=way.patience))):
        return None
    return WaveResult(ok=False, reason=Reason.DEADLINE_EXCEEDED, message="paused for too long")


def _watch(way: Way, index: int, shifted: WaveResult) -> Step:
    """Hold, with looks at the answers meanwhile where it is long, and judge them at the end."""
    left = shifted.hold_seconds
    if left >= policies.SHORTEST_WATCHED_SECONDS:
        every = max(policies.GATE_EVERY_SECONDS, left / policies.MOST_LOOKS)
        while left > every and not way.promoted():
            yield from _until(way, Command("timer", index, seconds=every))
            left -= every
            result = yield Command("check_gate", index, baseline=shifted.baseline, early=True)
            if not result.ok:
                return result
    if left > 0 and not way.promoted():
        yield from _until(way, Command("timer", index, seconds=left))
    return (yield Command("check_gate", index, baseline=shifted.baseline))


def _approval(way: Way, index: int, shifted: WaveResult) -> Step:
    """Wait for a person, with looks at the answers meanwhile."""
    left, every = way.patience, max(policies.GATE_EVERY_SECONDS, way.patience / policies.MOST_WAIT_LOOKS)
    while left > 0:
        answer = yield from _until(way, Command("person", index, seconds=min(every, left)))
        left -= every
        if answer == "approved":
            return WaveResult(ok=True, message="approved")
        if answer == "newer":
            return WaveResult(ok=False, reason=Reason.SUPERSEDED, message="gave way to what is newer")
        result = yield Command("check_gate", index, baseline=shifted.baseline, early=True)
        if not result.ok:
            return result
    return WaveResult(ok=False, reason=Reason.DEADLINE_EXCEEDED, message="nobody approved it")


def _until(way: Way, wait: Command) -> Generator[Command, Any, Any]:
    """What ended a wait. A walk that is to end begins none."""
    if way.stopping():
        raise Stopped
    return (yield wait)


def walk_back(way: Way, index: int, failed: WaveResult) -> Walk:
    """In one step, or wave by wave where the supply does not hold all of it at once."""
    by_waves, left = way.back == "by_waves", list[str]()
    for wave in list_undone_waves(way, index):
        for name in BACK:
            try:
                result = yield Command(name, wave, back=True, by_waves=by_waves)
                left += [] if result.ok else [f"{name}: {result.message}"]
            except Failed as error:
                left.append(f"{name}: {error}")
    message = failed.message + (f"; left undone: {'; '.join(left)}" if left else "")
    return Walked(done=False, waves_done=index, reason=failed.reason, message=message)


def list_undone_waves(way: Way, index: int) -> Iterable[int]:
    """The waves of a revert, in their order."""
    return range(index, -1, -1) if way.back == "by_waves" else (index,)


def _stop_result() -> WaveResult:
    return WaveResult(ok=False, reason=Reason.ROLLED_BACK, message="stopped")
