"""The only engine of a model goes over while it streams: who waits for whom, and how long, through a whole region."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.genai.support.hosts import complete
from tests.genai.support.regions import ENDLESS, LONG, region
from tests.processes import get_from
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("subprocesses")


@pytest.fixture
def beds(shelf, tmp_path):
    """Makes a region where one engine answers for generation 1, which may go over to 2."""
    engine = {"weights": "{directory}", "reload_ms": 100}

    def start(**told):
        made = region(shelf, tmp_path, engine=engine, swap=True, **told)
        regions.append(made)
        bed = made.__enter__()
        bed.deploy({1: 1}, own={1: 1})
        bed.agent.await_ready(bed.key, 1)
        bed.route({1: 1.0}, served=[1, 2])
        return bed

    regions = []
    yield start
    for made in regions:
        made.__exit__(None, None, None)


def goes_over(bed):
    """The engine is on its way to generation 2; returns once the router offers it no more."""
    bed.deploy({2: 1}, own={2: 1})
    until(lambda: not bed.offered)


def test_a_request_waits_for_the_streams_of_before_and_is_answered_by_what_comes(beds):
    bed = beds()
    running = bed.begun(LONG)
    goes_over(bed)
    with ThreadPoolExecutor(1) as asking:
        asked = asking.submit(complete, bed.url)
        until(lambda: running.over)
        answer = asked.result()
    assert running.ended() == LONG
    assert (answer.status_code, answer.headers["x-ipnext-generation"]) == (200, "2")


def test_a_request_that_has_waited_as_long_as_the_model_says_is_told_why(beds):
    bed = beds(swap_wait_seconds=0.5)
    running = bed.begun(ENDLESS)
    goes_over(bed)
    answer = complete(bed.url)
    assert not running.over
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    error = answer.json()["error"]
    assert error["type"] == "ServiceUnavailableError"
    assert (
        "none was ready within 0.5 s (rollout.swapWaitSeconds); requests from before that they still answer: 1"
        in error["message"]
    )


def test_a_stream_that_goes_on_beyond_the_drain_is_cut_and_the_engine_goes_over(beds):
    bed = beds(drain_seconds=1.5)
    running = bed.begun(ENDLESS)
    goes_over(bed)
    until(lambda: running.over)
    assert isinstance(running.ended(), httpx.RemoteProtocolError)
    bed.agent.await_ready(bed.key, 2)
    answer = complete(bed.url)
    assert (answer.status_code, answer.headers["x-ipnext-generation"]) == (200, "2")
    [swap] = get_from(bed.agent.child("serving.genai.host"), "/control/state").json()["swaps"]
    assert (swap["state"], swap["snapshot"]) == ("swapped", 2), swap
