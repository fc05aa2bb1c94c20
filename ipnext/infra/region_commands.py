"""Command lines of a region's hosts and router, from the settings of its agent. Pure functions."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ipnext.infra.process.host_user import HostUser
from ipnext.infra.process.places import address_fields
from ipnext.infra.settings import HOST_COMMAND, VLLM_HOST_COMMAND, AgentSettings

OWN_HOSTS: Final = (HOST_COMMAND[:3], VLLM_HOST_COMMAND[:3])
"""First words of commands whose program changes its user itself. Other programs of an operator run as the agent's
user."""


@dataclass(frozen=True, kw_only=True)
class HostPaths:
    """Where the command of a host finds what it needs."""

    python: str
    """The interpreter."""
    cache: Path
    """Directory of fetched snapshots."""
    store_environment: Path | None
    """File with the variables for the artifact store; None: it needs none."""


@dataclass(frozen=True, kw_only=True)
class RegionCommands:
    """The command lines of one region's programs."""

    region: str
    artifacts: str
    settings: AgentSettings
    host_user: HostUser | None = None
    """User of hosts and engines; None: that of whoever starts them."""

    def host_command(
        self, name: str, url: str, *, engine: str, memory_bytes: int | None, paths: HostPaths
    ) -> Sequence[str]:
        """Return the command line of an engine's host. `memory_bytes` is its memory limit, if there is one."""
        fields = {"id": name, "artifacts": self.artifacts, "cache": str(paths.cache), "python": paths.python}
        endpoint = self.settings.s3_endpoint_url
        more = [*self._names(), *(["--s3-endpoint-url", endpoint] if endpoint else [])]
        more += ["--memory-bytes", str(memory_bytes)] if memory_bytes is not None else []
        if engine == "torch" and self.settings.load_seconds is not None:
            more += ["--load-seconds", str(self.settings.load_seconds)]
        more += self.reserve_arguments
        if self.settings.host_confinement != "available":  # the default of hosts
            more += [f"--confinement={self.settings.host_confinement}"]
        more += [f"--readable={path}" for path in self.settings.host_readable]
        more += [f"--writable={path}" for path in self.settings.host_writable]
        if self.host_user is not None and self.is_own(engine):
            more += [f"--user={self.host_user.argument}"]
        if paths.store_environment is not None and self.is_own(engine):
            more += ["--store-environment", str(paths.store_environment)]
        if engine == "vllm":
            more += [f"--allow-argument={name}" for name in self.settings.engine_arguments_allow]
            more += [f"--allow-environment={name}" for name in self.settings.engine_environment_allow]
            more += [f"--inherit-environment={name}" for name in self.settings.engine_environment_inherit]
        return [*self._fill_template(self.host_template(engine), url, **fields), *more]

    @property
    def reserve_arguments(self) -> Sequence[str]:
        """Return the arguments by which whatever fetches leaves the reserve; none for the default."""
        reserve = self.settings.disk_reserve_bytes
        default = AgentSettings.model_fields["disk_reserve_bytes"].default
        return [] if reserve == default else ["--disk-reserve-bytes", str(reserve)]

    def host_template(self, engine: str) -> Sequence[str]:
        """Return the command template of an engine's hosts, with its fields."""
        return self.settings.vllm_host_command if engine == "vllm" else self.settings.host_command

    def router_command(self, table: Path, url: str, *, access: Path) -> Sequence[str]:
        """Return the command line of the router process."""
        fields = {"table": str(table), "access": str(access)}
        return [*self._fill_template(self.settings.router_command, url, **fields), *self._names()]

    def is_own(self, engine: str) -> bool:
        """Return whether the hosts of an engine are a program of this package."""
        return tuple(self.host_template(engine)[:3]) in OWN_HOSTS

    def _names(self) -> Sequence[str]:
        """Return the allowed hosts and origins as arguments of host and router."""
        names = (f"--allowed-host={name}" for name in self.settings.allowed_hosts)
        return [*names, *(f"--allowed-origin={origin}" for origin in self.settings.allowed_origins)]

    def _fill_template(self, template: Sequence[str], url: str, **fields: str) -> Sequence[str]:
        given = {"python": sys.executable, "region": self.region, **address_fields(url), **fields}
        return [part.format(**given) for part in template]
