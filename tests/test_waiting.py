"""Waits look often at first, and more rarely the longer they are."""

from types import SimpleNamespace

import httpx
import pytest

from tests import waiting
from tests.waiting import LATENESS, PATIENCE_SECONDS, RAREST_SECONDS, eventually, until


class Clock:
    """Time that passes by pauses alone."""

    def __init__(self):
        self.now = 0.0
        self.pauses = []

    def pause(self, seconds):
        self.now += seconds
        self.pauses.append(seconds)

    async def pause_task(self, seconds):
        self.pause(seconds)


@pytest.fixture
def clock(monkeypatch):
    """For this module alone: an event loop in another thread that reads such a clock sleeps for hours afterwards."""
    found = Clock()
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: found.now, sleep=found.pause))
    monkeypatch.setattr(waiting, "asyncio", SimpleNamespace(sleep=found.pause_task))
    return found


def wait_in_thread(found, **more):
    return until(found, **more)


def wait_in_task(found, **more):
    """Driven by hand: an event loop has the clock, too."""
    with pytest.raises(StopIteration) as ended:
        eventually(found, **more).send(None)
    return ended.value.value


@pytest.fixture(params=[wait_in_thread, wait_in_task])
def wait(request):
    return request.param


def test_pauses_are_a_tenth_of_the_wait_between_two_limits(clock, wait):
    assert wait(lambda: clock.now >= 30, every_seconds=0.02)
    begun = 0.0
    for pause in clock.pauses:
        assert pause == pytest.approx(min(RAREST_SECONDS, max(0.02, LATENESS * begun)))
        begun += pause
    assert clock.pauses[0] == 0.02
    assert clock.pauses[-1] == RAREST_SECONDS
    assert len(clock.pauses) < 200, "instead of 1,500"


def test_what_is_there_is_not_waited_for(clock, wait):
    assert wait(lambda: "found") == "found"
    assert clock.pauses == []


def test_patience_ends_with_the_reason(clock):
    with pytest.raises(AssertionError, match="it did not happen within 3 s: it rains"):
        until(lambda: None, why=lambda: "it rains", seconds=3)
    assert clock.now < 3 * (1 + LATENESS) + RAREST_SECONDS


def test_a_client_without_a_timeout_is_patient():
    assert httpx.Client().timeout == httpx.AsyncClient().timeout == httpx.Timeout(PATIENCE_SECONDS)
