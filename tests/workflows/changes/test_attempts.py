"""Pauses between the attempts of one wait.

Short at first, and so few in all that the longest wait fits into a history.
"""

import asyncio
from datetime import timedelta

import pytest
from temporalio.exceptions import ActivityError, ApplicationError

from ipnext.model.lifecycle.changes.transition_run import WaveInput
from ipnext.model.value import LONGEST_SECONDS
from tests.workflows.activity_errors import failed_activity
from workflows import attempts, policies
from workflows.attempts import Interruption, PatienceOver, within_deadline, within_patience

MOST_EVENTS = 51_200
"""Of one run, by the server's default limit."""

EVENTS = 17
"""Of one attempt, the pause after it, and the question for freezes."""


@pytest.fixture
def pauses(monkeypatch):
    """Pauses between attempts of which none succeeds."""
    found = []

    async def perform(*_):
        raise failed_activity(ApplicationError("no supply", 0.2, type="Unavailable"))

    async def sleep(pause, **_):
        found.append(pause.total_seconds())

    async def wait_condition(met, **limits):
        found.append(limits["timeout"].total_seconds())
        if not met():
            raise TimeoutError

    monkeypatch.setattr(attempts, "perform", perform)
    monkeypatch.setattr(attempts, "raise_if_cancelled", lambda: None)
    monkeypatch.setattr(attempts.workflow, "sleep", sleep)
    monkeypatch.setattr(attempts.workflow, "wait_condition", wait_condition)
    return found


async def nothing():
    """No interruption."""


UNINTERRUPTED = Interruption(lambda: False, nothing)


def wait_for_supply(seconds):
    wave = WaveInput(model="m", transition_id="t", generation=1, index=0, deadline_seconds=1)
    with pytest.raises(PatienceOver, match="no supply"):
        asyncio.run(
            within_patience(policies.PLAN_TRANSITION, wave, "plan", seconds=seconds, interruption=UNINTERRUPTED)
        )


def wait_for_replicas(seconds):
    wave = WaveInput(model="m", transition_id="t", generation=1, index=0, deadline_seconds=seconds)
    with pytest.raises(ActivityError):
        asyncio.run(within_deadline(policies.ENSURE_CAPACITY, wave, "scale up"))


WAITS = pytest.mark.parametrize("wait", [wait_for_supply, wait_for_replicas])


@WAITS
def test_the_longest_wait_that_a_manifest_may_ask_for_fits_into_one_history(pauses, wait):
    wait(LONGEST_SECONDS)

    assert len(pauses) * EVENTS < MOST_EVENTS / 2
    assert sum(pauses) >= 0.95 * LONGEST_SECONDS


@WAITS
def test_no_pause_is_longer_than_a_hundredth_of_the_wait_before_it(pauses, wait):
    wait(timedelta(days=30).total_seconds())

    before = 0.0
    for pause in pauses:
        assert pause <= max(15.0, 1.01 * before / 100 + 1)
        before += pause + 0.2


def test_a_wait_as_long_as_the_default_is_looked_at_every_15_seconds(pauses):
    wait_for_supply(policies.SUPPLY_PATIENCE.total_seconds())

    assert max(pauses) == 15.0


def test_an_interruption_ends_a_wait_at_once(pauses):
    wave = WaveInput(model="m", transition_id="t", generation=1, index=0, deadline_seconds=1)

    async def end():
        return wave

    woken = Interruption(lambda: True, end)
    found = asyncio.run(within_patience(policies.PLAN_TRANSITION, wave, "plan", seconds=600, interruption=woken))

    assert (found, len(pauses)) == (wave, 1)
