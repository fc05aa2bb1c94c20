"""The steps of a drain's run: one that fails is tried again at the next look."""

import asyncio
import logging
from types import SimpleNamespace

import pytest
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError

from ipnext.model.lifecycle.regions.drain import DrainInput, DrainSeen, DrainState
from tests.workflows.activity_errors import failed_activity
from workflows import drain, policies
from workflows.drain import DrainWorkflow

LOST = DrainSeen(state=DrainState.DRAINING, disaster=True, misrouted=1)
AROUND = DrainSeen(state=DrainState.DRAINING, disaster=True)
OVER = DrainSeen(state=DrainState.DRAINED, disaster=True)


REFUSED = failed_activity(ApplicationError("no such region", type="InvalidInput", non_retryable=True))


@pytest.fixture
def play(monkeypatch):
    """Run a drain whose steps have these answers. Returns the steps, the texts of the page and the number of waits."""
    performed, shown, waits = [], [], []

    async def wait(*_, **__):
        waits.append(1)
        raise TimeoutError

    monkeypatch.setattr(drain.workflow, "upsert_search_attributes", lambda _: None)
    monkeypatch.setattr(drain.workflow, "set_current_details", shown.append)
    monkeypatch.setattr(drain.workflow, "logger", logging.getLogger("test"))
    monkeypatch.setattr(drain.workflow, "wait_condition", wait)
    monkeypatch.setattr(drain.workflow, "cancellation_reason", lambda: None)
    info = SimpleNamespace(is_continue_as_new_suggested=lambda: False)
    monkeypatch.setattr(drain.workflow, "info", lambda: info)

    def run(*answers):
        left = list(answers)

        async def perform(step, _asked, _summary):
            performed.append(step.name)
            if isinstance(answer := left.pop(0), ActivityError):
                raise answer
            return answer

        monkeypatch.setattr(drain, "perform", perform)
        asked = DrainInput(region="eu")
        seen = asyncio.run(DrainWorkflow(asked).run(asked))
        assert (seen, left) == (OVER, [])
        return performed, shown, len(waits)

    return run


LOOK, ROUTE = policies.LOOK_AT_DRAIN.name, policies.ROUTE_AROUND.name


def test_a_step_that_fails_is_tried_again_and_the_page_shows_why(play):
    performed, shown, waits = play(LOST, REFUSED, LOST, AROUND, OVER)

    assert (performed, waits) == ([LOOK, ROUTE, LOOK, ROUTE, LOOK], 2)
    assert any("route_around failed and is tried again: no such region" in text for text in shown)


def test_nothing_is_done_by_a_state_that_could_not_be_read(play):
    performed, _, waits = play(LOST, AROUND, REFUSED, OVER)

    assert (performed, waits) == ([LOOK, ROUTE, LOOK, LOOK], 2)


def test_a_cancellation_ends_the_run(play):
    with pytest.raises(ActivityError):
        play(failed_activity(CancelledError("by hand")))
