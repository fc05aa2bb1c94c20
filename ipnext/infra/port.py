"""The port to core infrastructure: apply, route, observe, await a change, drain, delete.

Callers are the activities. Every call is idempotent. Implementations: `local_agents` (real processes, through one
agent for each region) and `fake` (in memory; it passes the same contract test).
"""

from collections.abc import Collection, Sequence
from typing import Protocol, runtime_checkable

from ipnext.model.access.predictions import AccessList, AccessRevision, KeyUseReport
from ipnext.model.deployment.applied_state import AppliedState
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.logs import LogQuery, ReplicaLog
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.gate.live import RoundTimes, TimingRound


class Infrastructure(Protocol):
    """Operations of a container infrastructure. They raise Unavailable if a region cannot be reached."""

    def regions(self) -> tuple[str, ...]:
        """Return the names of the regions that accept calls."""

    def apply(self, deployment: Deployment) -> None:
        """Make this the desired state of its replica set. Returns at once; `observe` reports when it is reached.

        New snapshots are loaded side by side into running replicas; snapshots no longer named are unloaded once no
        request uses them; surplus replicas leave routing, finish their requests and end. A generation with separate
        processes comes up in that many replicas that hold nothing else, new ones if none has it yet.
        """

    def route(self, table: RouteTable) -> None:
        """Put a route table in force and return once the region's gateway has applied it.

        Generations that the table no longer names are removed later, once requests already on the network have arrived.
        An older revision than the one in force is refused with StaleWrite; the same one changes nothing.
        """

    def observe(self, region: str, models: Collection[str] | None = None) -> RegionState:
        """Return the region's replicas, its gateway's routes and its router's counters.

        They are those of some models, or of all if None. Name the models if you need only some: the answer for all
        models of a region is long.
        """

    def read_applied(self, region: str) -> AppliedState:
        """Return digests of all deployments and route tables that the region was sent last.

        They count whether it has reached them or not.

        The answer is as long as the region is large: callers compare a region that was away, and call it once.
        """

    def await_change(self, region: str, models: Collection[str], token: str, *, seconds: float) -> None:
        """Return once the replicas or routes of these models differ from `token`, at the latest after `seconds`.

        The token comes from an `observe` of the same models. A region may return early; it does not return late.
        """

    def prefetch(self, region: str, uris: Sequence[str]) -> None:
        """Have the region fetch snapshots that a deployment will name soon.

        Returns at once; hosts fetch later if that fails.
        """

    def time_replicas(self, region: str, asked: TimingRound) -> RoundTimes:
        """Send requests to two replicas of the region in turns, and return their times; after `asked.seconds` at most.

        Neither gateway nor router has these requests: they count for no client, quota, demand or gate. Raises NotFound
        if the region has no such replica, or it is not ready for its generation.
        """

    def delete(self, key: DeploymentKey) -> None:
        """Drain and end a replica set. Deleting a missing one changes nothing."""

    def unroute(self, model: str, region: str) -> None:
        """Remove a model from a region's gateway."""

    def put_access(self, region: str, access: AccessList) -> AccessRevision:
        """Store this as the list by which the region checks predictions, which outlives all processes.

        Return the one in force. An older revision than the one in force is refused with StaleWrite, and so is the same
        one with other content.
        """

    def access_revision(self, region: str) -> AccessRevision:
        """Return revision and digest of the list that the region's router goes by."""

    def key_uses(self, region: str) -> KeyUseReport:
        """Return when each API key last requested predictions in the region.

        The times are to the minute, as far as its processes remember.
        """


@runtime_checkable
class LogKeeper(Protocol):
    """The additional operations of an infrastructure that stores its replicas' output."""

    def regions(self) -> tuple[str, ...]:
        """Return the names of the regions that accept calls."""

    def logs(self, region: str, query: LogQuery) -> tuple[ReplicaLog, ...]:
        """Return the logs of a region's replicas, including ended ones, by the time of the last write."""
