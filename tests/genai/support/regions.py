"""A whole region (agent, Envoy, router, hosts of the mock engine) with one generative model, and streams through it."""

import threading
from contextlib import contextmanager, suppress

import httpx

from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment
from ipnext.model.deployment.router_table import RouterTable
from tests.e2e.conftest import NO_HOSTS
from tests.genai.support.hosts import mock_command, stream
from tests.ipnext.infra.conftest import Builder, RunningAgent
from tests.processes import get_from
from tests.waiting import PATIENCE_SECONDS, until

ITL_MS = 20
LONG, ENDLESS = 250, 5000
"""Tokens of a stream of five seconds, beyond every grace time on the way; of one that takes longer than a test."""


class Bed:
    """Generation N of the model is snapshot N of the shelf. What a deployment says beside, `told` says."""

    def __init__(self, agent, shelf, **told):
        self.agent, self.shelf, self.told = agent, shelf, told
        self.model = Builder("chat", parts=("llm",))
        self.key = self.model.key("llm")
        self.url = agent.gateway

    def deploy(self, counts, **told):
        """Processes for each generation."""
        held = tuple(self._held(number) for number in counts)
        given = {"engine": "vllm", "units": 1, "qps": 1, "holds": held, "drain_seconds": 60.0}
        given |= {"replicas": sum(counts.values()), "settings": {"graceSeconds": 0.5}}
        self.agent.infra.apply(Deployment(key=self.key, **(given | self.told | told)))

    def _held(self, number):
        source = self.shelf.published[number]
        return AssignedSnapshot(snapshot=number, digest=source.manifest.digest, uri=source.uri, generations=(number,))

    def route(self, shares, *, served):
        table = self.model.table(1, shares, served=served)
        generating = tuple(one.model_copy(update={"engines": {"llm": "vllm"}}) for one in table.served)
        self.agent.infra.route(table.model_copy(update={"served": generating}))

    @property
    def offered(self):
        """Whether the router may send a request to an engine: by the table that it was told, or by one of before."""
        told = RouterTable.model_validate_json((self.agent.state / "router.json").read_bytes())
        state = get_from(self.agent.child("serving.router"), "/control/state").json()
        return state["revision"] < told.revision or any(one.generations for m in told.models for one in m.endpoints)

    def begun(self, tokens, **asked):
        """A stream that has begun."""
        return Stream(self.url, tokens, **asked)


@contextmanager
def region(shelf, directory, *, engine=None, **told):
    """A bed that ends with its agent. `engine`: options of the mock engine."""
    environment = {"IPNEXT_VLLM_COMMAND": mock_command(itl_ms=ITL_MS, **(engine or {})), **NO_HOSTS}
    agent = RunningAgent("eu", directory, real=True, artifacts=shelf.store.uri, environment=environment)
    try:
        yield Bed(agent.start(), shelf, **told)
    finally:
        with suppress(ProcessLookupError):
            agent.kill()
        agent.close()


class Stream:
    """Read by a thread of its own, from its first piece on."""

    def __init__(self, url, tokens, **asked):
        self.pieces, self.error = [], None
        self._thread = threading.Thread(target=self._read, args=(url, tokens, asked), daemon=True)
        self._thread.start()
        until(lambda: self.pieces or self.error)

    def _read(self, url, tokens, asked):
        try:
            self.pieces.extend(stream(url, tokens=tokens, **asked))
        except httpx.HTTPError as error:
            self.error = error

    @property
    def over(self):
        return not self._thread.is_alive()

    def ended(self):
        """How many pieces came; the error where it broke."""
        self._thread.join(PATIENCE_SECONDS)
        return self.error or len(self.pieces)
