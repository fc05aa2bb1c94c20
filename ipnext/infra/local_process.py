"""The real embedded infrastructure: one agent process for each region, reached over loopback HTTP."""

from collections.abc import Mapping
from typing import Self

import httpx

from ipnext.errors import NotFound, Unavailable
from ipnext.infra.error_body import error_from
from ipnext.model.deployment import Deployment, DeploymentKey, RegionState, RouteTable
from ipnext.model.value import Value

JSON = {"content-type": "application/json"}


class LocalProcessInfrastructure:
    """Speaks to the agents. Safe to use from several threads; close it, or use it as a context manager.

    `agents` maps each region to the URL of its agent. `timeout_seconds` limits one call; a `route` waits for the
    gateway, so keep it above the agent's `confirm_seconds`.
    """

    def __init__(self, agents: Mapping[str, str], *, timeout_seconds: float = 30.0) -> None:
        self._agents = {region: str(url).rstrip("/") for region, url in agents.items()}
        timeout = httpx.Timeout(timeout_seconds, connect=min(2.0, timeout_seconds))
        # Loopback only: a proxy from the environment must not get in between.
        self._client = httpx.Client(timeout=timeout, trust_env=False)

    def regions(self) -> tuple[str, ...]:
        """Names of the regions that have an agent."""
        return tuple(self._agents)

    def apply(self, deployment: Deployment) -> None:
        """See the port."""
        self._call("PUT", deployment.key.region, "/deployments", deployment)

    def route(self, table: RouteTable) -> None:
        """See the port."""
        self._call("PUT", table.region, f"/routes/{table.model}", table)

    def observe(self, region: str) -> RegionState:
        """See the port."""
        return RegionState.model_validate_json(self._call("GET", region, "/state"))

    def delete(self, key: DeploymentKey) -> None:
        """See the port."""
        self._call("DELETE", key.region, f"/deployments/{key.model}/{key.part}/{key.hardware}")

    def unroute(self, model: str, region: str) -> None:
        """See the port."""
        self._call("DELETE", region, f"/routes/{model}")

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: str, region: str, path: str, body: Value | None = None) -> bytes:
        url = self._url(region) + path
        content = body.model_dump_json() if body is not None else None
        try:
            answer = self._client.request(method, url, content=content, headers=JSON if content else None)
        except httpx.TransportError as error:
            msg = f"the agent of region {region!r} did not answer {method} {url}: {error!r}; is it running?"
            raise Unavailable(msg) from error
        if answer.is_error:
            raise error_from(answer.status_code, answer.content, source=f"the agent of region {region!r}")
        return answer.content

    def _url(self, region: str) -> str:
        if region not in self._agents:
            msg = f"no region {region!r}; known: {', '.join(self._agents) or 'none'}"
            raise NotFound(msg)
        return self._agents[region]
