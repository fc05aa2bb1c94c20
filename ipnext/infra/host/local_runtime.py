"""Hosts as processes of this machine, on Unix sockets or loopback ports."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from ipnext.infra.context import RegionContext
from ipnext.infra.host.limit import machine_bytes, most_hosts
from ipnext.infra.host.logs import read_logs
from ipnext.infra.host.memory_watch import MemoryWatch
from ipnext.infra.host.runtime import Adopted, HostIdentity
from ipnext.infra.process.child import LoggedCommand
from ipnext.infra.process.notes import HostNote, as_note, find_notes
from ipnext.infra.process.spawn import Note, StartedProcess
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.deployment.logs import LogQuery, ReplicaLog


class LocalHost:
    """The host of one replica on this machine."""

    def __init__(self, site: RegionContext, identity: HostIdentity, note: Callable[[], HostNote]) -> None:
        self._site, self._identity, self._write_note = site, identity, note
        undeclared = site.settings.host_memory_bytes or machine_bytes() // 2
        self._memory = MemoryWatch(site.settings.host_memory_allowance_bytes, undeclared)
        self._memory_bytes: int | None = None
        self.url = ""
        """URL of its sockets or port."""
        self._program = LoggedCommand(
            self._command,
            log_file=site.log_file(identity.name),
            environment=site.host_environment(identity.engine),
            log_limit_bytes=site.settings.log_limit_bytes,
            spawn=site.processes.spawn(identity.name, self._note),
        )

    @property
    def obstacle(self) -> str | None:
        """None: a process that was started runs."""
        return None

    @property
    def log(self) -> str:
        """The file with its output."""
        return str(self._site.log_file(self._identity.name))

    def set_memory(self, size_bytes: int | None) -> None:
        """Set the memory limit of its next start; None: that of the settings."""
        self._memory_bytes = size_bytes

    def adopt(self, note: HostNote) -> None:
        """Keep address and limit of a running host."""
        self.url = note.url
        self._site.places.adopt(self._identity.name, note.url)
        self._memory.budget_bytes = note.memory_bytes

    async def start(self) -> StartedProcess:
        """Start the process. OSError, LookupError, ValueError."""
        return await self._program.start()

    def describe_end(self, status: int) -> str:
        """Return how it ended."""
        return self._program.describe_end(status)

    def read_last_output(self) -> str:
        """Return the last lines of its log."""
        return self._program.read_last_output()

    def find_excess(self, process: StartedProcess) -> str | None:
        """Return how much memory it takes if that is more than it may."""
        return None if process.pid is None else self._memory.excess(process.pid)

    def forget(self) -> None:
        """Release its sockets or its port."""
        self._site.places.forget(self._identity.name, self.url)

    def _command(self) -> Sequence[str]:
        self._memory.budget_bytes = self._memory_bytes
        identity, site = self._identity, self._site
        template = site.host_template(identity.engine)
        self.url = site.places.choose(identity.name, template, model=identity.key.model)
        return site.host_command(identity.name, self.url, engine=identity.engine, memory_bytes=self._memory_bytes)

    def _note(self) -> Note:
        return as_note(self._write_note())


class LocalHosts:
    """`HostRuntime` of processes that the region's supervisor starts and stores notes with."""

    shares_disk: Final = True

    def __init__(self, site: RegionContext) -> None:
        self._site = site

    @property
    def most_hosts(self) -> int:
        """Number of hosts for which the machine has memory."""
        return most_hosts()

    async def start(self) -> None:
        """Do nothing: the supervisor's client knows what runs."""

    async def stop(self) -> None:
        """Do nothing."""

    def program(self, identity: HostIdentity, note: Callable[[], HostNote]) -> LocalHost:
        """Return the host of a replica."""
        return LocalHost(self._site, identity, note)

    def note(self, name: str, note: HostNote) -> None:
        """Replace the note of a running host."""
        self._site.processes.note(name, as_note(note))

    async def wait_noted(self, name: str) -> None:
        """Do nothing: the supervisor reads notes in order, also those of an agent that has ended since."""

    def keep_available(self, key: DeploymentKey, replicas: int) -> None:
        """Do nothing: whoever ends processes of this machine asks nobody."""

    def show_serving(self, name: str, *, serving: bool) -> None:
        """Do nothing: nobody else asks."""

    def find_adopted(self) -> Mapping[str, Adopted]:
        """Return the hosts that ran before this agent."""
        return find_notes(self._site.processes, HostNote)

    async def read_logs(self, query: LogQuery, *, running: Collection[str]) -> tuple[ReplicaLog, ...]:
        """Return the logs of hosts and their engines, also of ended ones."""
        return await asyncio.to_thread(
            read_logs, self._site.logs, query, region=self._site.region, running=set(running)
        )
