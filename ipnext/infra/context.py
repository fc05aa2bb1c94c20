"""Shared context of one agent's parts: the region, its directory, settings, ports and HTTP session."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ipnext.components.http_sessions import HttpSessions
from ipnext.infra.envoy.public_listener import PublicListener
from ipnext.infra.envoy.tls import PeerTls
from ipnext.infra.process.engine_addresses import EngineAddresses
from ipnext.infra.process.host_user import HostUser
from ipnext.infra.process.places import ProcessAddresses
from ipnext.infra.process.ports import LOOPBACK
from ipnext.infra.process.spawn import ChildProcesses, Processes
from ipnext.infra.region_commands import HostPaths, RegionCommands
from ipnext.infra.settings import AgentSettings
from ipnext.network.allowed_hosts import AllowedHosts
from ipnext.process.inherited_environment import inherited_environment
from ipnext.process.store_environment import store_variables, write_store_environment

VLLM_COMMAND = "IPNEXT_VLLM_COMMAND"
"""Variable with another command of engines; without the field `socket` they listen on ports."""
HOST_VARIABLES = ("IPNEXT_NATIVE_LIBRARY_KEYS_FILE", VLLM_COMMAND, "IPNEXT_VLLM_PYTHON")
"""Variables of the agent that hosts read, beyond those of `ipnext.process.inherited_environment`."""


@dataclass(frozen=True, kw_only=True)
class RegionContext:
    """One region on this machine. Created once, in the agent's entry point."""

    region: str
    directory: Path
    artifacts: str
    gateway_port: int
    settings: AgentSettings
    places: ProcessAddresses
    session: HttpSessions
    peer_port: int = 0
    """Port to which the gateways of other regions send requests."""
    peer_tls: PeerTls | None = None
    """Certificates for mTLS between the gateway and those of other regions; None: clear text."""
    listener: PublicListener = field(default_factory=PublicListener)
    """The listener for clients."""
    host_user: HostUser | None = None
    """User of hosts and engines; None: the agent's."""
    processes: Processes = field(default_factory=ChildProcesses)
    """Starts all processes of the region, and finds those that ran before this agent."""

    @property
    def cache(self) -> Path:
        """Directory in which all hosts of the region keep their fetched snapshots."""
        return self.directory / "cache"

    @property
    def gateway_url(self) -> str:
        """URL to which clients send requests."""
        return self.listener.url_at(self.gateway_port)

    @property
    def peer_url(self) -> str:
        """URL to which the gateways of other regions send requests; empty if they can't."""
        if not self.peer_port:
            return ""
        scheme = "http" if self.peer_tls is None else "https"
        return f"{scheme}://{LOOPBACK}:{self.peer_port}"

    @property
    def logs(self) -> Path:
        """Directory of the output of all processes."""
        return self.directory / "logs"

    def log_file(self, name: str) -> Path:
        """Return the file of a process's output."""
        return self.logs / f"{name}.log"

    @property
    def host_paths(self) -> HostPaths:
        """Where hosts of this machine find what they need."""
        variables = self.store_environment_file if self.store_variables else None
        return HostPaths(python=sys.executable, cache=self.cache, store_environment=variables)

    def host_command(
        self,
        name: str,
        url: str,
        *,
        engine: str = "torch",
        memory_bytes: int | None = None,
        paths: HostPaths | None = None,
    ) -> Sequence[str]:
        """Return the command line of an engine's host process.

        `memory_bytes` is its memory limit, if there is one; `paths` are those of this machine unless it runs elsewhere.
        """
        paths = paths or self.host_paths
        return self.commands.host_command(name, url, engine=engine, memory_bytes=memory_bytes, paths=paths)

    @property
    def commands(self) -> RegionCommands:
        """The command lines of the region's programs."""
        return RegionCommands(
            region=self.region, artifacts=self.artifacts, settings=self.settings, host_user=self.host_user
        )

    @property
    def reserve_arguments(self) -> Sequence[str]:
        """Return the arguments by which whatever fetches leaves the reserve; none for the default."""
        return self.commands.reserve_arguments

    def host_template(self, engine: str) -> Sequence[str]:
        """Return the command template of an engine's hosts, with its fields."""
        return self.commands.host_template(engine)

    def router_command(self, table: Path, url: str) -> Sequence[str]:
        """Return the command line of the router process."""
        return self.commands.router_command(table, url, access=self.access_file)

    @property
    def access_file(self) -> Path:
        """File of the list by which the router checks predictions, next to its table."""
        return self.directory / "access.json"

    @property
    def allowed_hosts(self) -> AllowedHosts:
        """Names and origins that all listeners of the region accept."""
        return AllowedHosts(self.settings.allowed_hosts, self.settings.allowed_origins)

    def environment(self, *names: str) -> Mapping[str, str]:
        """Return the environment of child processes.

        Listed variables of this one, and those that the operator or `names` name. None of the platform's, of the
        artifact store's or of other services' credentials is listed.
        """
        allowed = (*HOST_VARIABLES, *self.settings.host_environment_inherit, *names)
        own = {"OMP_NUM_THREADS": str(self.settings.threads), "PYTHONUNBUFFERED": "1"}
        return {**inherited_environment(os.environ, allowed=allowed), **own}

    @property
    def router_environment(self) -> Mapping[str, str]:
        """The environment of the router, with the files by which it reaches hosts on other machines."""
        files = {name: getattr(self.settings, f"router_{name}_file") for name in ("certificate", "key", "ca")}
        given = {f"IPNEXT_COMPONENT_{name.upper()}_FILE": str(file) for name, file in files.items() if file}
        return {**self.environment("IPNEXT_TRUST_DOMAIN"), **given}

    def host_environment(self, engine: str) -> Mapping[str, str]:
        """Return the environment of an engine's hosts. A host program of the operator fetches by itself."""
        inherited = self.settings.engine_environment_inherit if engine == "vllm" else ()
        found = self.environment(*inherited)
        return found if self.commands.is_own(engine) else {**found, **self.store_variables}

    def engine_addresses(self, engine: str) -> EngineAddresses:
        """Return where engines of this kind listen: those of an own torch host nowhere."""
        if engine != "vllm" and self.commands.is_own(engine):
            return EngineAddresses()
        template, command = " ".join(self.host_template(engine)), os.environ.get(VLLM_COMMAND, "")
        has_sockets = "{sockets}" in template
        return EngineAddresses(
            sockets=has_sockets, ports=not has_sockets or (command != "" and "{socket}" not in command)
        )

    @property
    def store_variables(self) -> Mapping[str, str]:
        """Variables for processes that fetch from the artifact store; none for a directory."""
        return {} if self.artifacts.startswith("file:") else store_variables(os.environ)

    @property
    def store_environment_file(self) -> Path:
        """File of `store_variables`, for the processes that fetch for hosts."""
        return self.directory / "store-environment.json"

    def keep_store_environment(self) -> None:
        """Write the file of the store's variables.

        It is for hosts that start from now on, and for later fetches of those that run.
        """
        write_store_environment(self.store_environment_file, self.store_variables)
