"""Errors of activities for their workflows: an unforeseen one is final once it has come often, an outage never."""

from dataclasses import replace

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor

from activities.runtime import errors
from activities.runtime.errors import BUG_ATTEMPTS, TypedFailures
from ipnext.errors import Unavailable
from ipnext.model.echoes import MESSAGE_CHARACTERS

OUTAGE, BUG = Unavailable("the database does not answer"), RuntimeError("can't start new thread")


class Ends(ActivityInboundInterceptor):
    """An activity whose attempts end one after the other as it is told: an error, or None for success."""

    def __init__(self, *ends):
        self.ends = list(ends)

    async def execute_activity(self, input):  # noqa: A002, ARG002
        end = self.ends.pop(0)
        if end is not None:
            raise end


async def finals(failures, *ends, activity_id="1"):
    """Whether each attempt was final; None for a success."""
    run, found = failures.intercept_activity(Ends(*ends)).execute_activity, []
    for attempt in range(1, len(ends) + 1):
        environment = ActivityEnvironment()
        environment.info = replace(environment.info, attempt=attempt, activity_id=activity_id)
        try:
            await environment.run(run, None)
            found.append(None)
        except ApplicationError as error:
            found.append(error.non_retryable)
    return found


async def test_one_unforeseen_error_after_an_outage_is_tried_again():
    assert await finals(TypedFailures(), *[OUTAGE] * 20, BUG, None) == [*[False] * 21, None]


async def test_an_unforeseen_error_that_keeps_coming_is_final_though_an_outage_comes_between():
    ends = [*[BUG] * (BUG_ATTEMPTS - 1), OUTAGE, BUG]

    assert await finals(TypedFailures(), *ends) == [*[False] * BUG_ATTEMPTS, True]


async def test_each_activity_has_a_count_of_its_own():
    failures, some = TypedFailures(), [BUG] * (BUG_ATTEMPTS - 1)

    assert not any(await finals(failures, *some, activity_id="1"))
    assert not any(await finals(failures, *some, activity_id="2"))
    assert await finals(failures, BUG, activity_id="1") == [True]


async def test_an_activity_that_has_ended_is_counted_from_the_start():
    failures = TypedFailures()

    await finals(failures, *[BUG] * (BUG_ATTEMPTS - 1), None)

    assert await finals(failures, BUG) == [False]


async def test_an_error_of_megabytes_is_cut_so_that_temporal_takes_it():
    run = TypedFailures().intercept_activity(Ends(RuntimeError("x" * 5_000_000))).execute_activity

    with pytest.raises(ApplicationError) as found:
        await ActivityEnvironment().run(run, None)

    assert (len(found.value.message), found.value.__cause__) == (MESSAGE_CHARACTERS, None)
    assert found.value.message.startswith("RuntimeError: xxx")


@pytest.mark.usefixtures("few_counted")
async def test_so_many_activities_are_counted_and_no_more():
    failures = TypedFailures()

    for number in range(5):
        await finals(failures, BUG, activity_id=str(number))

    assert len(failures._unforeseen._found) == 2


@pytest.fixture
def few_counted(monkeypatch):
    monkeypatch.setattr(errors, "MOST_COUNTED", 2)
