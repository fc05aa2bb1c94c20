"""Validators of others that have faults of their own: told by their names, and no fault of the candidate."""

import sys
from dataclasses import replace

import pytest
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor

from activities.runtime.errors import TypedFailures
from activities.validation.runs import MOST_REFUSALS, ValidatorError, run_validators
from activities.validation.validator import FunctionValidator, fail_check, pass_check
from ipnext.errors import Unavailable
from ipnext.model.lifecycle.status import Reason


def later_fault(candidate):
    yield pass_check("mine", candidate.manifest.name)
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (lambda _: sys.exit(3), "validator 'mine' ended with SystemExit: 3"),
        (lambda _: 1 / 0, "validator 'mine' ended with ZeroDivisionError: division by zero"),
        (lambda _: 42, "validator 'mine' ended with TypeError: 'int' object is not iterable"),
        (lambda _: None, "validator 'mine' ended with TypeError: 'NoneType' object is not iterable"),
        (lambda _: [None], "validator 'mine' gave None; allowed: results of"),
        (lambda _: ["good"], "validator 'mine' gave 'good'; allowed: results of"),
        (later_fault, "validator 'mine' ended with ZeroDivisionError"),
    ],
)
def test_a_fault_names_the_validator(candidate, check, told):
    with pytest.raises(ValidatorError) as caught:
        tuple(run_validators(candidate(), [FunctionValidator("mine", check)]))
    assert str(caught.value).startswith(told)


def test_what_the_platform_itself_raises_stays_what_it_is(candidate):
    def check(_):
        msg = "the artifact store does not answer"
        raise Unavailable(msg)

    with pytest.raises(Unavailable):
        tuple(run_validators(candidate(), [FunctionValidator("mine", check)]))


def test_results_are_taken_one_at_a_time_and_many_refusals_stop_a_validator(candidate):
    made = []

    def endless(_):
        while True:
            made.append(1)
            yield fail_check("mine", str(len(made)), Reason.SCHEMA_MISMATCH, "no")

    results = run_validators(candidate(), [FunctionValidator("mine", endless)])
    assert next(results).subject == "1"
    assert len(made) == 1
    assert 1 + sum(1 for _ in results) == len(made) == MOST_REFUSALS


def test_a_validation_that_is_to_end_waits_for_no_further_result(candidate):
    def endless(_):
        while True:
            yield pass_check("mine", "x")

    def ended(_):
        raise CancelledError

    with pytest.raises(CancelledError):
        sum(1 for _ in run_validators(replace(candidate(), beat=ended), [FunctionValidator("mine", endless)]))


def test_good_results_are_passed_on(candidate):
    (result,) = run_validators(candidate(), [FunctionValidator("mine", lambda _: [pass_check("mine", "x", "3 rows")])])
    assert (result.check, result.subject, result.passed, result.message) == ("mine", "x", True, "3 rows")


async def test_an_activity_that_leaves_the_program_has_failed_once():
    class Leaves(ActivityInboundInterceptor):
        def __init__(self):
            pass

        async def execute_activity(self, input):  # noqa: A002, ARG002
            sys.exit(3)

    run = TypedFailures().intercept_activity(Leaves()).execute_activity
    with pytest.raises(ApplicationError) as caught:
        await ActivityEnvironment().run(run, None)
    assert (str(caught.value), caught.value.non_retryable) == ("InternalError: SystemExit: 3", False)
