"""Deadlines of people run only while workers work.

The wait is made of pieces, and an absence of workers counts for one at most.
"""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from ipnext.model.lifecycle.changes.controls import ControlAsked
from ipnext.model.lifecycle.changes.transition_run import TransitionInput, WaveInput, WaveResult
from ipnext.model.lifecycle.status import Reason
from workflows import policies, transition
from workflows.transition import TransitionWorkflow

DAY = 86400.0
AWAY = timedelta(hours=10)
WAVE = WaveInput(model="m", transition_id="t", generation=1, index=0, deadline_seconds=1)


@pytest.fixture
def waits(monkeypatch):
    """The time-outs of waits of which none is answered. After each one no worker works for hours."""
    found, now = [], [datetime(2026, 1, 1, tzinfo=UTC)]

    async def wait_condition(_, **limits):
        found.append(limits["timeout"].total_seconds())
        now[0] += limits["timeout"] + AWAY
        raise TimeoutError

    monkeypatch.setattr(transition.workflow, "wait_condition", wait_condition)
    monkeypatch.setattr(transition.workflow, "now", lambda: now[0])
    monkeypatch.setattr(transition.workflow, "cancellation_reason", lambda: None)
    return found


@pytest.fixture
def steered(monkeypatch):
    async def look(*_, **__):
        return WaveResult(ok=True)

    def build(seconds):
        wanted = {"model": "m", "generation": 1, "waves": 2, "deadline_seconds": 1, "change_id": "c"}
        held = ControlAsked(by="ann")
        run = TransitionWorkflow(
            TransitionInput(transition_id="t", manual_deadline_seconds=seconds, held=held, **wanted)
        )
        monkeypatch.setattr(run, "_show", lambda _: None)
        monkeypatch.setattr(run, "_look", look)
        return run

    return build


def approval(run):
    return run._person(WAVE)


def end_of_a_pause(run):
    return run._unheld()


WAITS = pytest.mark.parametrize("wait", [approval, end_of_a_pause])


@WAITS
@pytest.mark.parametrize("seconds", [1.0, 600.0, DAY, 30 * DAY])
def test_the_whole_time_is_waited_although_no_worker_works_between(steered, waits, wait, seconds):
    result = asyncio.run(wait(steered(seconds)))

    assert (result.ok, result.reason, result.unanswered) == (False, Reason.DEADLINE_EXCEEDED, True)
    assert sum(waits) == pytest.approx(seconds)


@WAITS
def test_an_absence_counts_for_a_small_part_of_the_time(steered, waits, wait):
    asyncio.run(wait(steered(DAY)))

    assert max(waits) == DAY / policies.MOST_WAIT_LOOKS


@WAITS
def test_the_longest_wait_fits_into_one_history(steered, waits, wait):
    asyncio.run(wait(steered(30 * DAY)))

    assert len(waits) <= policies.MOST_WAIT_LOOKS + 1
