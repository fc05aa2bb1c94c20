"""The real embedded infrastructure: one agent process for each region, called over HTTP."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final, Self, TypeVar
from urllib.parse import urlencode

from pydantic import ValidationError

from ipnext.components.settings import ComponentSettings
from ipnext.errors import RegionUnreachable
from ipnext.infra.agent_clients import AgentClients
from ipnext.infra.error_body import error_from
from ipnext.model.access.predictions import AccessList, AccessRevision, KeyUseReport
from ipnext.model.deployment.applied_state import AppliedState
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.logs import LogQuery, ReplicaLog
from ipnext.model.deployment.prefetch import MOST_SNAPSHOTS, Prefetch
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.gate.live import RoundTimes, TimingRound
from ipnext.model.validation_errors import first_line
from ipnext.model.value import Value
from ipnext.model.wire import decode

LOGS = tuple[ReplicaLog, ...]

LARGEST_STATE_BYTES: Final = 64 * 2**20
"""Most bytes of an answer that is as long as the region is large: as much as an agent accepts in a request."""
LARGEST_ANSWER_BYTES: Final = 2**20
"""Most bytes of any other answer."""

Found = TypeVar("Found")

MOST_NAMED = 64
"""Most models named in one observation; for more, whose names would make the URL too long, all are requested."""


class LocalProcessInfrastructure:
    """Client of the agents. Safe to use from several threads; close it, or use it as a context manager.

    `agents` maps each region to the URL of its agent. `timeout_seconds` limits a call that waits for the gateway: keep
    it above the agent's `confirm_seconds`. Other calls end after `answer_seconds`: an agent that hangs must not use up
    a step's deadline.
    """

    def __init__(
        self,
        agents: Mapping[str, str],
        *,
        timeout_seconds: float = 30.0,
        answer_seconds: float = 3.0,
        components: ComponentSettings | None = None,
    ) -> None:
        """`components` has the certificate for agents at https://. InvalidInput if it is needed and missing."""
        self._agents = {region: str(url).rstrip("/") for region, url in agents.items()}
        self._clients = AgentClients(self._agents, components)
        self._gateway_seconds = timeout_seconds
        self._answer_seconds = answer_seconds

    def regions(self) -> tuple[str, ...]:
        """Return the names of the regions that have an agent."""
        return tuple(self._agents)

    def apply(self, deployment: Deployment) -> None:
        """See the port."""
        self._call("PUT", deployment.key.region, "/deployments", deployment)

    def route(self, table: RouteTable) -> None:
        """See the port."""
        self._call("PUT", table.region, f"/routes/{table.model}", table, seconds=self._gateway_seconds)

    def observe(self, region: str, models: Collection[str] | None = None) -> RegionState:
        """See the port."""
        if models is None or len(models) > MOST_NAMED:
            return _own_state(region, self._read(RegionState, "GET", region, "/state")).only(models)
        named = f"/state?{urlencode(_model_query(models))}"
        return _own_state(region, self._read(RegionState, "GET", region, named))

    def read_applied(self, region: str) -> AppliedState:
        """See the port."""
        found = self._read(AppliedState, "GET", region, "/applied", seconds=self._gateway_seconds)
        return found.model_copy(update={"sets": tuple(one for one in found.sets if one.key.region == region)})

    def await_change(self, region: str, models: Collection[str], token: str, *, seconds: float) -> None:
        """See the port."""
        query = urlencode([*_model_query(models), ("token", token), ("seconds", str(seconds))])
        self._call("GET", region, f"/changes?{query}", seconds=self._answer_seconds + seconds)

    def prefetch(self, region: str, uris: Sequence[str]) -> None:
        """See the port."""
        self._call("POST", region, "/prefetches", Prefetch(uris=tuple(uris[:MOST_SNAPSHOTS])))

    def time_replicas(self, region: str, asked: TimingRound) -> RoundTimes:
        """See the port."""
        seconds = self._answer_seconds + asked.seconds
        return self._read(RoundTimes, "POST", region, "/timings", asked, seconds=seconds)

    def delete(self, key: DeploymentKey) -> None:
        """See the port."""
        self._call("DELETE", key.region, f"/deployments/{key.model}/{key.part}/{key.hardware}")

    def unroute(self, model: str, region: str) -> None:
        """See the port."""
        self._call("DELETE", region, f"/routes/{model}", seconds=self._gateway_seconds)

    def put_access(self, region: str, access: AccessList) -> AccessRevision:
        """See the port."""
        return self._read(AccessRevision, "PUT", region, "/access", access, seconds=self._gateway_seconds)

    def access_revision(self, region: str) -> AccessRevision:
        """See the port."""
        return self._read(AccessRevision, "GET", region, "/access")

    def key_uses(self, region: str) -> KeyUseReport:
        """See the port."""
        return self._read(KeyUseReport, "GET", region, "/access/uses")

    def logs(self, region: str, query: LogQuery) -> tuple[ReplicaLog, ...]:
        """See the port. It is a POST because the known positions of many logs are too long for a URL."""
        return self._read(LOGS, "POST", region, "/logs", query)

    def close(self) -> None:
        """Close all connections."""
        self._clients.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(
        self,
        kind: type[Found],
        method: str,
        region: str,
        path: str,
        body: Value | None = None,
        *,
        seconds: float | None = None,
    ) -> Found:
        """Return a region's answer as a value. RegionUnreachable if it is none of this kind."""
        content = self._call(method, region, path, body, seconds=seconds, most_bytes=LARGEST_STATE_BYTES)
        try:
            return decode(kind, content)
        except ValidationError as error:
            msg = (
                f"the agent of region {region!r} answered {method} {path.partition('?')[0]} with an invalid "
                f"value: {_first(error)}"
            )
            raise RegionUnreachable(msg) from error

    def _call(
        self,
        method: str,
        region: str,
        path: str,
        body: Value | None = None,
        *,
        seconds: float | None = None,
        most_bytes: int = LARGEST_ANSWER_BYTES,
    ) -> bytes:
        answer = self._clients.call(
            region,
            method,
            self._url(region) + path,
            body.model_dump_json() if body is not None else None,
            most_bytes=most_bytes,
            seconds=min(self._answer_seconds if seconds is None else seconds, self._gateway_seconds),
        )
        if answer.status >= 400:
            raise error_from(answer.status, answer.content, source=f"the agent of region {region!r}")
        return answer.content

    def _url(self, region: str) -> str:
        if region not in self._agents:
            known = ", ".join(self._agents) or "none"
            msg = f"region {region!r} has no agent; IPNEXT_AGENTS names: {known}"
            raise RegionUnreachable(msg)
        return self._agents[region]


def _model_query(models: Collection[str]) -> list[tuple[str, str]]:
    return [("model", model) for model in models or ("",)]


def _own_state(region: str, state: RegionState) -> RegionState:
    """Leave out what an agent says of other regions: what is done about it would reach their agents."""
    if state.region == region and all(replica.key.region == region for replica in state.replicas):
        return state
    own = tuple(replica for replica in state.replicas if replica.key.region == region)
    return state.model_copy(update={"region": region, "replicas": own})


def _first(error: ValidationError) -> str:
    """Return the first fault of an answer, without the answer itself."""
    return first_line(error, "body")[:200]
