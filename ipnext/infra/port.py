"""The port to core infrastructure: apply, route, observe, await a change, drain, delete.

Callers are the activities. Every call is idempotent. Implementations: `local_process` (real processes, through one
agent for each region) and `memory` (the fake; it passes the same contract test).
"""

from collections.abc import Collection, Sequence
from typing import Protocol, runtime_checkable

from ipnext.model.deployment import Deployment, DeploymentKey, RegionState, RouteTable
from ipnext.model.logs import LogQuery, ReplicaLog
from ipnext.model.predictions import AccessList, KeyUseReport


class Infrastructure(Protocol):
    """What IPnext asks of whatever runs containers. Raises Unavailable where a region can't be reached."""

    def regions(self) -> tuple[str, ...]:
        """Names of the regions that can be told something."""

    def apply(self, deployment: Deployment) -> None:
        """Make this the wanted state of its replica set. Returns at once; `observe` tells when it is true.

        New snapshots are loaded side by side into running replicas; snapshots no longer named are unloaded once no
        request uses them; surplus replicas leave routing, finish their requests and end. A generation with processes
        of its own comes up in that many replicas that hold nothing else, new ones where none has it yet.
        """

    def route(self, table: RouteTable) -> None:
        """Put a route table in force and return once the region's gateway follows it.

        What the table no longer names is forgotten later, once requests that were just on their way have arrived.
        An older revision than the one in force is refused with StaleWrite; the same one changes nothing.
        """

    def observe(self, region: str, models: Collection[str] | None = None) -> RegionState:
        """What the region runs, which routes its gateway follows, what its router counted: of some models, None: of all.

        Who looks at one model names it: what all of a region's models run is a long answer.
        """

    def await_change(self, region: str, models: Collection[str], token: str, *, seconds: float) -> None:
        """Return once these models' replicas or routes are not as `token` says, at the latest after `seconds`.

        The token is that of an `observe` of the same models. A region may return early; it does not return late.
        """

    def prefetch(self, region: str, uris: Sequence[str]) -> None:
        """Have the region fetch snapshots that a deployment will name soon. Returns at once; what fails is fetched later."""

    def delete(self, key: DeploymentKey) -> None:
        """Drain and end a replica set. Deleting what is not there changes nothing."""

    def unroute(self, model: str, region: str) -> None:
        """Take a model out of a region's gateway."""

    def put_access(self, region: str, access: AccessList) -> None:
        """Keep this as the list by which the region checks predictions; it is in force a moment later, and outlives all processes.

        An older revision than the one in force is refused with StaleWrite; the same one changes nothing.
        """

    def access_revision(self, region: str) -> int:
        """Revision of the list that the region has; 0: none."""

    def key_uses(self, region: str) -> KeyUseReport:
        """When API keys asked the region for predictions last, to the minute, as far as its processes remember."""


@runtime_checkable
class LogKeeper(Protocol):
    """What an infrastructure has beside that where it keeps what its replicas write."""

    def regions(self) -> tuple[str, ...]:
        """Names of the regions that can be told something."""

    def logs(self, region: str, query: LogQuery) -> tuple[ReplicaLog, ...]:
        """The logs of a region's replicas, of those that have ended too, by the time they were written last."""
