"""Requests that schemathesis generates from the OpenAPI schema.

No 5xx, and no answer that the schema does not document.
"""

import traceback

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyFailure
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.python.asgi import shutdown_lifespans
from schemathesis.specs.openapi.checks import ignored_auth, negative_data_rejection, positive_data_acceptance

from ipnext.api.authorization.authentication import is_public
from tests.ipnext.api.surface import SHOWN
from tests.tiers import scaled

KNOWN = {
    "name": SHOWN,
    "change_id": f"{SHOWN}-b",
    "region": "eu",
    "plan_id": "plan-1",
    "generation": 1,
    "part": "dense",
    "number": 1,
    "owner": "search",
}
"""Path parameters of objects that are there."""

EXAMPLES = 6
"""Of each operation, of good requests and as many of bad ones; half of them ask about objects that are there."""
FEWEST = 2
"""In the profile `fast`. The first example is the simplest one, about an object that is not there."""

NOT_CHECKED = (positive_data_acceptance, negative_data_rejection, ignored_auth)
"""More than the schema decides what is refused, and requests are changed here after they were generated."""

ENDLESS = "/v1/events/stream"


@pytest.fixture
def schema(two_owners):
    app = two_owners.app()
    found = schemathesis.openapi.from_dict(app.openapi())
    found.app = app
    found.config.update(base_url="http://localhost")
    yield found
    shutdown_lifespans()


def operations(schema):
    """Reads first: they find what was seeded."""
    found = [result.ok() for result in schema.get_all_operations()]
    return sorted((one for one in found if one.path != ENDLESS), key=lambda one: one.method != "get")


def judge(operation, mode, headers, *, examples, statuses=None):
    """What is wrong with the answers to generated requests of an operation."""
    faults = {}

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), is_known=st.booleans())
    def ask(case, is_known):
        if is_known:
            case.path_parameters |= {name: KNOWN[name] for name in case.path_parameters.keys() & KNOWN.keys()}
        answer = case.call(headers=headers)
        if answer.status_code >= 500 or (statuses and answer.status_code not in statuses):
            faults[answer.status_code] = (
                f"{operation.label}: {answer.status_code} {answer.text[:300]} to {case.as_curl_command()}"
            )
        try:
            case.validate_response(answer, excluded_checks=NOT_CHECKED)
        except (Failure, FailureGroup) as failure:
            for each in getattr(failure, "exceptions", (failure,)):
                faults[str(each)] = f"{operation.label}: {each} to {case.as_curl_command()}"

    run_despite_parser(ask)
    return list(faults.values())


def run_despite_parser(ask):
    """CPython keeps one depth for all syntax trees that it builds (python/cpython#106905).

    So one of the thousands that Hypothesis has built here may fail if the garbage collector runs meanwhile, whatever
    was asked. The examples are the same the next time.
    """
    for _ in range(3):
        try:
            return ask()
        except (SystemError, FlakyFailure) as failure:
            if "AST constructor recursion depth" not in "".join(traceback.format_exception(failure)):
                raise
    return ask()


def has_input(operation):
    """Whether there is something that can be wrong in a request."""
    return bool(operation.body or operation.query or operation.path_parameters)


def test_generated_requests_get_documented_answers_and_no_5xx(schema, two_owners):
    faults = []
    for operation in operations(schema):
        for mode in schemathesis.GenerationMode:
            if mode is schemathesis.GenerationMode.POSITIVE or has_input(operation):
                faults += judge(operation, mode, two_owners.headers, examples=max(FEWEST, scaled(EXAMPLES)))
    assert not faults, "\n\n".join(faults)


def test_generated_requests_without_a_credential_are_refused_as_documented(schema):
    faults = []
    for operation in operations(schema):
        statuses = None if is_public(operation.path) else {401}
        faults += judge(operation, schemathesis.GenerationMode.POSITIVE, {}, examples=2, statuses=statuses)
    assert not faults, "\n\n".join(faults)
