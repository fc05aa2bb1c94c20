"""Streams through a whole region (agent, Envoy, router, host, the mock engine) whose router, host or agent is told to end."""

import os
import signal
import threading
from contextlib import suppress

import httpx
import pytest

from ipnext.model.deployment import Deployment, HeldSnapshot
from tests.genai.hosts import complete, mock_command, stream, until
from tests.ipnext.infra.conftest import Builder, RunningAgent
from tests.processes import gone

pytestmark = pytest.mark.timeout(300)

ITL_MS = 20
LONG, ENDLESS = 250, 5000
"""Tokens of a stream of five seconds, beyond every grace time on the way; of one that takes longer than a test."""


class Bed:
    """A region in which generation 1 of a model is answered by two engines."""

    def __init__(self, agent, shelf):
        self.agent, self.model = agent, Builder("chat", parts=("llm",))
        agent.infra.apply(self.deployment(shelf))
        agent.await_ready(self.model.key("llm"), 1, replicas=2)
        table = self.model.table(1, {1: 1.0})
        served = tuple(one.model_copy(update={"engines": {"llm": "vllm"}}) for one in table.served)
        agent.infra.route(table.model_copy(update={"served": served}))
        self.url = agent.gateway

    def deployment(self, shelf):
        source = shelf.published[1]
        held = HeldSnapshot(snapshot=1, digest=source.manifest.digest, uri=source.uri, generations=(1,))
        told = {"engine": "vllm", "units": 1, "qps": 1, "holds": (held,), "drain_seconds": 60.0}
        return Deployment(key=self.model.key("llm"), replicas=2, settings={"graceSeconds": 0.5}, **told)

    def begun(self, tokens):
        """A stream that has begun."""
        return Stream(self.url, tokens)


class Stream:
    """Read by a thread of its own, from its first piece on."""

    def __init__(self, url, tokens):
        self.pieces, self.error = [], None
        self._thread = threading.Thread(target=self._read, args=(url, tokens), daemon=True)
        self._thread.start()
        until(lambda: self.pieces or self.error)

    def _read(self, url, tokens):
        try:
            self.pieces.extend(stream(url, tokens=tokens))
        except httpx.HTTPError as error:
            self.error = error

    @property
    def over(self):
        return not self._thread.is_alive()

    def whole(self):
        """How many pieces came; the error where it broke."""
        self._thread.join(120)
        return self.error or len(self.pieces)


@pytest.fixture
def bed(shelf, tmp_path):
    environment = {"IPNEXT_VLLM_COMMAND": mock_command(itl_ms=ITL_MS)}
    agent = RunningAgent("eu", tmp_path, real=True, artifacts=shelf.store.uri, environment=environment).start()
    try:
        yield Bed(agent, shelf)
    finally:
        with suppress(ProcessLookupError):
            agent.kill()
        agent.close()


def test_a_router_that_is_told_to_end_is_replaced_while_it_finishes_its_streams(bed):
    router = bed.agent.child("serving.router")
    running = bed.begun(LONG)
    router.terminate()
    asked = []
    while not running.over:
        asked.append(complete(bed.url).status_code)
        under_way = [count.in_flight for count in bed.agent.infra.observe("eu").traffic]
        assert sum(under_way) == 1 or running.over or len(running.pieces) > LONG - 20, "the old router's stream counts"
    assert running.whole() == LONG
    assert len(asked) > 2
    assert set(asked) == {200}
    until(lambda: gone([router]))
    assert bed.agent.child("serving.router").pid != router.pid
    assert complete(bed.url).status_code == 200


def test_a_host_that_is_told_to_end_leaves_routing_and_finishes_its_streams(bed):
    running = [bed.begun(LONG) for _ in range(2)]
    victim = bed.agent.replicas(bed.model.key("llm"))[0]
    os.kill(victim.pid, signal.SIGTERM)
    asked = []
    while not all(one.over for one in running):
        asked.append(complete(bed.url).status_code)
    assert [one.whole() for one in running] == [LONG, LONG]
    assert set(asked) == {200}
    until(lambda: victim.pid not in [one.pid for one in bed.agent.replicas(bed.model.key("llm"))])
    bed.agent.await_ready(bed.model.key("llm"), 1, replicas=2)


def test_an_agent_that_is_told_to_end_finishes_the_streams_of_its_region(bed):
    running, family = bed.begun(LONG), bed.agent.children()
    bed.agent.process.send_signal(signal.SIGTERM)
    assert running.whole() == LONG
    assert bed.agent.process.wait(30) == 0
    assert gone(family)


def test_an_agent_that_is_told_twice_ends_at_once(bed):
    running, family = bed.begun(ENDLESS), bed.agent.children()
    bed.agent.process.send_signal(signal.SIGTERM)
    until(lambda: refuses(bed.url))
    assert not running.over
    bed.agent.process.send_signal(signal.SIGTERM)
    assert bed.agent.process.wait(30) == 0
    assert isinstance(running.whole(), httpx.HTTPError)
    assert gone(family)


def refuses(url):
    """Whether nobody listens any more."""
    try:
        httpx.get(f"{url}/v2/health/live", timeout=5)
    except httpx.ConnectError:
        return True
    return False
