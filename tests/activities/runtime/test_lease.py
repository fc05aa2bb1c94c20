"""A worker that stood still notices it by its own clock, before it writes."""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest

from activities.runtime.lease import ActivityHeartbeats, felt, still_ours
from ipnext.errors import Unavailable


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_while_its_heart_beats_an_attempt_may_write(clock):
    pulse = ActivityHeartbeats(2.0, clock=clock)
    with felt(pulse):
        for _ in range(20):
            clock.now += 0.5
            pulse.beat()
            still_ours()


def test_after_a_standstill_it_may_not_though_no_one_told_it(clock):
    with felt(ActivityHeartbeats(2.0, clock=clock)):
        clock.now += 1.6

        with pytest.raises(Unavailable, match="stood still"):
            still_ours()


def test_heartbeats_that_come_again_do_not_bring_it_back(clock):
    pulse = ActivityHeartbeats(2.0, clock=clock)
    clock.now += 3.0
    pulse.beat()
    clock.now += 0.1

    with felt(pulse), pytest.raises(Unavailable, match="another one may have its work"):
        still_ours()


def test_a_heartbeat_that_was_sent_on_late_is_counted_from_when_it_was_given(clock):
    """The engine may have heard the last beat half a second before this clock counts from."""
    pulse = ActivityHeartbeats(2.0, clock=clock)
    clock.now += 1.4
    assert not pulse.overtaken
    clock.now += 0.2
    assert pulse.overtaken


def test_the_thread_of_an_activity_feels_the_pulse_of_its_attempt_alone(clock):
    mine, other = ActivityHeartbeats(2.0, clock=clock), ActivityHeartbeats(2.0, clock=clock)
    with ThreadPoolExecutor(1) as threads:
        with felt(mine):
            context = copy_context()
        clock.now += 1.6
        with felt(other):
            other.beat()
        with pytest.raises(Unavailable):
            threads.submit(context.run, still_ours).result()
        threads.submit(still_ours).result()
