"""Places of stages in a worker: a share of its slots, held until the attempt's thread has ended."""

import dataclasses
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.runtime.stage_places import StagePlaces
from ipnext.model.lifecycle.stages import PLACES_TAKEN


def run(places, activity_type):
    """Run an activity of that name in a worker with these places."""

    async def execute_activity(asked):
        return asked

    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(environment.info, activity_type=activity_type)
    intercepted = places.intercept_activity(SimpleNamespace(execute_activity=execute_activity))
    return environment.run(intercepted.execute_activity, "done")


async def test_a_further_stage_is_refused_without_an_attempt_and_work_of_the_platform_is_not():
    places = StagePlaces(8)
    with ExitStack() as taken:
        for _ in range(2):
            taken.enter_context(places.take())
        with pytest.raises(
            ApplicationError, match="2 attempts at stages run in this worker; allowed: 2 of its 8"
        ) as no:
            await run(places, "stage.audit")
        assert (no.value.type, no.value.non_retryable) == (PLACES_TAKEN, True)
        assert await run(places, "record_stage") == "done"
    assert await run(places, "stage.audit") == "done", "a place is free again"


def test_a_small_worker_has_a_place():
    places = StagePlaces(2)
    with places.take(), pytest.raises(ApplicationError):
        places.take().__enter__()
