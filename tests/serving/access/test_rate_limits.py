"""Token buckets, by a clock that stands until it is moved."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.access.rate_limits import Rate, RateLimiter


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_burst_passes_and_then_the_steady_rate(clock):
    limiter, rate = RateLimiter(clock=clock), Rate(2.0, 3.0)
    assert [limiter.take([("k", rate)]) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert limiter.take([("k", rate)]) == pytest.approx(0.5)
    clock.now += 0.5
    assert limiter.take([("k", rate)]) == 0.0
    assert limiter.take([("k", rate)]) == pytest.approx(0.5)


def test_a_quiet_time_fills_no_more_than_the_burst(clock):
    limiter, rate = RateLimiter(clock=clock), Rate(1.0, 2.0)
    limiter.take([("k", rate)])
    clock.now += 1000.0
    assert [limiter.take([("k", rate)]) > 0 for _ in range(3)] == [False, False, True]


def test_what_one_bucket_refuses_is_taken_from_none(clock):
    limiter, key, owner = RateLimiter(clock=clock), Rate(1.0, 1.0), Rate(1.0, 5.0)
    assert limiter.take([("a", key), ("owner", owner)]) == 0.0
    assert [limiter.take([("a", key), ("owner", owner)]) > 0 for _ in range(10)] == [True] * 10
    others = [limiter.take([(f"b{n}", key), ("owner", owner)]) for n in range(5)]
    assert [seconds > 0 for seconds in others] == [False] * 4 + [True], "the owner's bucket had four left"


def test_the_longest_wait_of_all_buckets_is_told(clock):
    limiter = RateLimiter(clock=clock)
    slow, fast = Rate(0.1, 1.0), Rate(10.0, 1.0)
    limiter.take([("slow", slow), ("fast", fast)])
    assert limiter.take([("slow", slow), ("fast", fast)]) == pytest.approx(10.0)


def test_a_lower_limit_is_in_force_at_once(clock):
    limiter = RateLimiter(clock=clock)
    limiter.take([("k", Rate(100.0, 100.0))])
    assert limiter.take([("k", Rate(1.0, 1.0))]) == 0.0
    assert limiter.take([("k", Rate(1.0, 1.0))]) == pytest.approx(1.0)


def test_buckets_that_are_full_are_forgotten_first_and_an_empty_one_is_not(clock):
    limiter, rate = RateLimiter(clock=clock, most=10), Rate(1.0, 1.0)
    for number in range(9):
        limiter.take([(number, rate)])
    clock.now += 5.0
    limiter.take([("empty", rate)])
    for number in range(100, 109):
        limiter.take([(number, rate)])
    assert len(limiter) <= 10
    assert limiter.take([("empty", rate)]) > 0.0


def test_a_bucket_that_lacks_most_is_kept_the_longest(clock):
    limiter, rate = RateLimiter(clock=clock, most=100), Rate(0.001, 4.0)
    for _ in range(4):
        limiter.take([("empty", rate)])
    for number in range(1000):
        limiter.take([(number, rate)])
    assert limiter.take([("empty", rate)]) > 0.0, "it would start full again"


def test_all_buckets_are_looked_at_seldom(clock, monkeypatch):
    limiter, looks = RateLimiter(clock=clock, most=160), []
    forget = RateLimiter._forget
    monkeypatch.setattr(RateLimiter, "_forget", lambda *given: looks.append(1) or forget(*given))
    for number in range(1160):
        limiter.take([(number, Rate(0.001, 1.0))])
    assert len(limiter) <= 160
    assert len(looks) == 1000 / 10


def test_there_are_never_more_buckets_than_the_limit(clock):
    limiter = RateLimiter(clock=clock, most=10)
    for number in range(1000):
        limiter.take([(number, Rate(0.001, 1.0))])
    assert len(limiter) == 10


@given(
    rate=st.floats(0.5, 50.0),
    burst=st.integers(1, 20),
    waits=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=200),
)
def test_no_span_of_time_lets_more_through_than_the_burst_and_the_rate(rate, burst, waits):
    clock = Clock()
    limiter, began = RateLimiter(clock=clock), clock.now
    passed = 0
    for wait in waits:
        clock.now += wait
        passed += limiter.take([("k", Rate(rate, float(burst)))]) == 0.0
    assert passed <= burst + rate * (clock.now - began) + 1e-6
