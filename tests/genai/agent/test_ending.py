"""Streams through a whole region whose router, host or agent is told to end."""

import os
import signal

import httpx
import pytest

from tests.genai.support.hosts import complete
from tests.genai.support.regions import ENDLESS, LONG, region
from tests.processes import gone
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.usefixtures("subprocesses")


@pytest.fixture
def bed(shelf, tmp_path):
    """Two engines answer for generation 1."""
    with region(shelf, tmp_path) as bed:
        bed.deploy({1: 2})
        bed.agent.await_ready(bed.key, 1, replicas=2)
        bed.route({1: 1.0}, served=[1])
        yield bed


def under_way(agent):
    return sum(count.in_flight for count in agent.infra.observe("eu").traffic)


def test_a_router_that_is_told_to_end_is_replaced_while_it_finishes_its_streams(bed):
    router = bed.agent.child("serving.router")
    running = bed.begun(LONG)
    router.terminate()
    asked, counted = [], []
    while len(running.pieces) < LONG - 20:
        asked.append(complete(bed.url))
        counted.append(under_way(bed.agent))
    assert running.ended() == LONG
    assert [answer.text for answer in asked if answer.status_code != 200] == []
    assert set(counted[:-1]) == {1}, "the stream of the former router"
    until(lambda: gone([router]))
    assert bed.agent.child("serving.router").pid != router.pid
    assert complete(bed.url).status_code == 200


def test_a_host_that_is_told_to_end_leaves_routing_and_finishes_its_streams(bed):
    running = [bed.begun(LONG) for _ in range(2)]
    victim = bed.agent.replicas(bed.key)[0]
    os.kill(victim.pid, signal.SIGTERM)
    asked = []
    while not all(one.over for one in running):
        asked.append(complete(bed.url).status_code)
    assert [one.ended() for one in running] == [LONG, LONG]
    assert set(asked) == {200}
    until(lambda: victim.pid not in [one.pid for one in bed.agent.replicas(bed.key)])
    bed.agent.await_ready(bed.key, 1, replicas=2)


def test_an_agent_that_is_told_to_end_finishes_the_streams_of_its_region(bed):
    running, family = bed.begun(LONG), bed.agent.children()
    bed.agent.process.send_signal(signal.SIGTERM)
    assert running.ended() == LONG
    assert bed.agent.process.wait(PATIENCE_SECONDS) == 0
    assert gone(family)


def test_an_agent_that_is_told_twice_ends_at_once(bed):
    running, family = bed.begun(ENDLESS), bed.agent.children()
    bed.agent.process.send_signal(signal.SIGTERM)
    until(lambda: refuses(bed.url))
    assert not running.over
    bed.agent.process.send_signal(signal.SIGTERM)
    assert bed.agent.process.wait(PATIENCE_SECONDS) == 0
    assert isinstance(running.ended(), httpx.HTTPError)
    assert gone(family)


def test_how_far_an_engine_is_that_starts_comes_to_the_region_and_ends_with_its_answer(shelf, tmp_path):
    with region(shelf, tmp_path, engine={"ttft_ms": 8000}) as bed:
        bed.deploy({1: 1})
        until(
            lambda: any("vLLM answers its first request, " in replica.note for replica in bed.agent.replicas(bed.key))
        )
        bed.agent.await_ready(bed.key, 1)
        (replica,) = bed.agent.replicas(bed.key)
        assert (replica.starts, replica.note) == ((), "")


def refuses(url):
    """Whether nobody listens any more."""
    try:
        httpx.get(f"{url}/v2/health/live", timeout=60)
    except httpx.ConnectError:
        return True
    except httpx.TransportError:  # it was in the queue of the listener as that closed
        return False
    return False
