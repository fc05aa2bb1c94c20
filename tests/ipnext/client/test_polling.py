"""How often a client that waits looks at the state, on a clock of the test."""

from itertools import pairwise

import pytest

from ipnext.client import polling
from ipnext.client.polling import poll


class Clock:
    """Stands in for the module `time`: it goes on as someone sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(polling, "time", clock)
    return clock


def looks(clock: Clock, timeout_seconds: float) -> list[float]:
    """Return the seconds after which a wait looks that never finds what it waits for."""
    begun = clock.now
    return [clock.now - begun for _ in poll(timeout_seconds)]


def test_a_wait_looks_at_once_and_for_the_last_time_as_its_time_is_over(clock: Clock) -> None:
    assert looks(clock, 0.0) == [0.0]
    found = looks(clock, 7.0)
    assert (found[0], found[-1]) == (0.0, pytest.approx(7.0))


def test_a_long_wait_looks_less_often_and_ends_late_by_a_tenth_and_a_second_at_most(clock: Clock) -> None:
    found = looks(clock, 600.0)
    pauses = [later - before for before, later in pairwise(found)]
    assert pauses[:10] == pytest.approx([0.2] * 10)
    assert all(pause <= max(0.2, 0.1 * before) + 1e-6 for before, pause in zip(found, pauses, strict=False))
    assert max(pauses) == pytest.approx(1.0)
    assert len(found) < 650
