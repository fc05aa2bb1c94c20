"""The port below a region's replicas: what starts hosts, stores notes with them, and finds those that run already.

`local_runtime` implements it by processes of this machine, `ipnext.infra.kubernetes.runtime` by pods of a cluster. The
reconciler decides when a host starts, what it loads and when it ends; a runtime only does it.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from ipnext.infra.process.child import Program
from ipnext.infra.process.notes import HostNote
from ipnext.infra.process.spawn import StartedProcess
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.deployment.logs import LogQuery, ReplicaLog

Adopted = tuple[HostNote, StartedProcess]
"""A host that a former agent started, and the note that this agent stored with it."""


@dataclass(frozen=True, kw_only=True)
class HostIdentity:
    """The replica that a host runs for."""

    key: DeploymentKey
    number: int
    engine: str

    @property
    def name(self) -> str:
        """Its name; no other replica of the region has it."""
        return f"{self.key.model}.{self.key.part}.{self.key.hardware}.{self.number}"


class HostProgram(Program, Protocol):
    """The host of one replica, started again after each end."""

    @property
    def url(self) -> str:
        """URL of the running host; empty while it has none."""

    @property
    def obstacle(self) -> str | None:
        """Why a host that was started does not run yet, such as an image that can't be pulled."""

    @property
    def log(self) -> str:
        """Where its output is, for people."""

    def set_memory(self, size_bytes: int | None) -> None:
        """Set the memory limit of its next start; None: the runtime's."""

    def adopt(self, note: HostNote) -> None:
        """Continue with a host that runs already. Call it before anything else."""

    def find_excess(self, process: StartedProcess) -> str | None:
        """Return how much memory the running host takes, as text, if that is too much; else None."""

    def forget(self) -> None:
        """Release what it occupies beyond its process; it has ended for good."""


class HostRuntime(Protocol):
    """Starts the hosts of a region."""

    @property
    def shares_disk(self) -> bool:
        """Whether hosts read the snapshots that the agent has fetched."""

    @property
    def most_hosts(self) -> int:
        """The number of hosts that may run at once if the settings say nothing."""

    async def start(self) -> None:
        """Find the hosts that run already. Call it once, first. Unavailable."""

    async def stop(self) -> None:
        """Stop the runtime's own work. Hosts continue."""

    def program(self, identity: HostIdentity, note: Callable[[], HostNote]) -> HostProgram:
        """Return the host of a replica; `note` is called at each start."""

    def note(self, name: str, note: HostNote) -> None:
        """Replace the note of a running host; do nothing if it does not run."""

    async def wait_noted(self, name: str) -> None:
        """Return once the last note of this host is stored. Unavailable."""

    def keep_available(self, key: DeploymentKey, replicas: int) -> None:
        """Keep a replica set of this size, 0 for none, from disruptions that the runtime can refuse."""

    def show_serving(self, name: str, *, serving: bool) -> None:
        """Show the runtime whether a running host has snapshots that requests are sent to."""

    def find_adopted(self) -> Mapping[str, Adopted]:
        """Return the hosts that ran before this agent and still run, by name."""

    async def read_logs(self, query: LogQuery, *, running: Collection[str]) -> tuple[ReplicaLog, ...]:
        """Return the output of hosts, by the time of the last write. `running` are the names of running ones."""
