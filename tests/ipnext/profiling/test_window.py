"""Figures of one concurrency, from moments that the test names."""

import pytest

from ipnext.profiling.window import MeasuringWindow, percentile


@pytest.fixture
def window():
    found = MeasuringWindow(2)
    found.open(10.0)
    return found


def test_only_what_arrives_while_it_is_open_counts(window):
    window.next(9.0, 9.9, 5)
    window.next(9.9, 10.1, 5)
    window.first(10.0, 10.5, 1)
    window.close(12.0)
    window.next(11.9, 12.1, 5)
    step = window.step(output_tokens=3)
    assert (step.tokens_per_second, step.requests_per_second, step.seconds) == (3.0, 1.0, 2.0)
    assert step.itl_p99_ms == pytest.approx(200)


def test_what_was_sent_while_it_was_open_tells_its_first_token_however_late(window):
    window.first(9.9, 10.2, 1)
    window.close(12.0)
    window.first(11.9, 15.9, 1)
    step = window.step(output_tokens=1)
    assert (step.requests, step.ttft_p99_ms) == (1, pytest.approx(4000))
    assert step.tokens_per_second == 0.5


def test_requests_of_prompts_are_counted_as_they_end(window):
    for at in (10.5, 11.0, 11.5):
        window.first(at - 0.1, at, 8)
        window.note_end(at, 8)
    window.close(12.0)
    step = window.step(output_tokens=0)
    assert (step.tokens_per_second, step.requests_per_second, step.itl_p50_ms) == (12.0, 1.5, None)
    assert window.prompt_tokens == [8, 8, 8]


def test_requests_of_others_are_those_beyond_its_own(window):
    window.first(10.0, 10.1, 1)
    window.saw_load(2.0, 2)
    window.saw_load(5.0, 2)
    window.saw_load(None, 2)
    window.close(11.0)
    assert window.step(output_tokens=1).others_running == 3


def test_percentiles_are_values_that_were_seen():
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([3.0], 0.5)) == (50, 99, 3)
    assert percentile([], 0.5) == 0
